"""Alpaca records (instruction, input, output, history), and prompts with completions."""

from __future__ import annotations

from typing import Any

import pytest
from format_records import parse, reason, turns

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats import Rejection, detect, parse_record


def test_prompt_and_completion_may_be_texts_or_turns() -> None:
    assert turns(parse({"prompt": "p", "completion": "c"})) == [("user", "p"), ("assistant", "c")]
    record = {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
        "completion": [{"role": "assistant", "content": "c"}],
    }
    assert turns(parse(record)) == [("system", "s"), ("user", "p"), ("assistant", "c")]


def test_alpaca_joins_instruction_and_input_and_keeps_history() -> None:
    record = {"instruction": "Do", "input": "this", "output": "done", "system": "S", "history": [["q", "a"]]}
    assert turns(parse(record)) == [
        ("system", "S"),
        ("user", "q"),
        ("assistant", "a"),
        ("user", "Do\nthis"),
        ("assistant", "done"),
    ]
    assert turns(parse({"instruction": "Do", "input": None, "output": 3})) == [("user", "Do"), ("assistant", "3")]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"output": None}, "empty_output"),
        ({"output": "  "}, "empty_output"),
        ({"output": float("nan")}, "empty_output"),
        ({"instruction": " ", "input": ""}, "empty_input"),
        ({"instruction": {}}, "wrong_type"),
        ({"history": "x"}, "wrong_type"),
        ({"history": [["q"]]}, "wrong_type"),
    ],
)
def test_alpaca_records_with_a_hole_are_rejected(change: dict[str, Any], expected: str) -> None:
    assert reason(parse({"instruction": "Do", "input": "", "output": "done"} | change)) == expected


def test_a_missing_output_is_a_missing_field() -> None:
    config = PrepareConfig()
    guess = detect([{"instruction": "a", "output": "b"}], config)
    assert parse_record({"instruction": "a"}, guess, config) == Rejection(
        "missing_field", "no column 'output' (alpaca: instruction, output expected)"
    )
