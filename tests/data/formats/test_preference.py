"""Pairs of a better and a worse answer."""

from __future__ import annotations

from typing import Any

import pytest
from format_records import ASK, BAD, GOOD, GPT, HUMAN, SAY, parse, reason, turns

from tuneloop.data.formats import Parsed

MESSAGES = [ASK, SAY, {"role": "user", "content": "c"}]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a", "chosen": "good", "rejected": "bad"},
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "a", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"messages": [ASK], "chosen": GOOD, "rejected": BAD},
        {"conversations": [HUMAN], "chosen": GPT | {"value": "good"}, "rejected": GPT | {"value": "bad"}},
        {"instruction": "a", "input": "", "chosen": "good", "rejected": "bad"},
        {"question": "a", "response_j": "good", "response_k": "bad"},
        {"prompt": "a", "completions": ["good", "bad"]},
        {"prompt": "a", "completions": [{"response": "bad", "score": 2}, {"response": "good", "score": 4.5}]},
        {"prompt": "a", "completions": ["worse", "bad", "good"], "scores": [2, 1, 3]},
        {"instruction": "a", "input": "", "output": ["good", "bad"]},
        {"chosen": "\n\nHuman: a\n\nAssistant: good", "rejected": "\n\nHuman: a\n\nAssistant: bad"},
    ],
)
def test_preferences_end_with_the_better_answer_and_keep_the_other(record: dict[str, Any]) -> None:
    parsed = parse(record)
    assert turns(parsed) == [("user", "a"), ("assistant", "good")]
    assert isinstance(parsed, Parsed) and parsed.extra == {"rejected": [BAD]}
    assert parsed.used >= record.keys()


def test_answers_of_several_turns_share_only_their_beginning() -> None:
    chosen = [*MESSAGES, GOOD]
    rejected = [ASK, BAD, {"role": "user", "content": "c"}, SAY]
    parsed = parse({"chosen": chosen, "rejected": rejected})
    assert isinstance(parsed, Parsed)
    assert parsed.messages == chosen and parsed.extra == {"rejected": rejected[1:], "shared_turns": 1}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rejected": "good"}, "no_preference"),
        ({"rejected": ""}, "empty_output"),
        ({"chosen": None}, "empty_output"),
        ({"prompt": ""}, "empty_input"),
        ({"chosen": {"x": 1}}, "missing_field"),
        ({"chosen": "upstream request timeout"}, "error_output"),
        ({"chosen": [ASK, GOOD], "rejected": [{"role": "user", "content": "other"}, BAD]}, "no_preference"),
    ],
)
def test_pairs_without_a_preference_are_rejected(change: dict[str, Any], expected: str) -> None:
    plain = {"prompt": "a", "chosen": "good", "rejected": "bad"}
    assert reason(parse(plain | change, [plain])) == expected
