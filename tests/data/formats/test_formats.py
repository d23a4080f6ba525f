from __future__ import annotations

import json
from typing import Any

import pytest
from format_records import ANY, CELL, KEYS, SAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st

from places import DATA_SETS
from tuneloop.data.config import PrepareConfig
from tuneloop.data.dataset import REASONS, REPAIRS
from tuneloop.data.formats import Parsed, Rejection, detect, parse_record

DATA = DATA_SETS
FITTING = {
    "role_order": {"bad_turn_order"},
    "no_final_assistant": {"no_answer"},
    "tool_call_unanswered": {"unanswered_call"},
    "bad_tool_arguments": {"bad_arguments"},
    "error_output": {"error_output"},
    "missing_field": {"missing_field"},
    "wrong_type": {"wrong_type"},
    "empty_output": {"empty_output", "empty_input"},
    "unknown_role": {"unknown_role"},
}


@settings(max_examples=600, deadline=None)
@given(record=st.dictionaries(st.sampled_from(KEYS), CELL, max_size=8) | ANY, name=st.sampled_from(sorted(SAMPLES)))
def test_every_value_is_a_sound_conversation_or_rejected_with_a_reason(record: Any, name: str) -> None:
    config = PrepareConfig(input="{text}", output="{label}") if name == "fields" else PrepareConfig()
    guess = detect(SAMPLES[name], config)
    before = repr(record)
    parsed = parse_record(record, guess, config)
    assert repr(record) == before
    if isinstance(parsed, Rejection):
        assert parsed.reason in REASONS and parsed.detail
        return
    assert {repair["kind"] for repair in parsed.repairs} <= set(REPAIRS)
    assert all(isinstance(m["content"], str) for m in parsed.messages)
    last = parsed.messages[-1]
    assert last["role"] == "assistant" and (last["content"].strip() or last["tool_calls"])
    json.dumps([parsed.messages, parsed.tools, parsed.extra])
    if guess.name == "text":
        return
    assert any(m["role"] == "user" and m["content"].strip() for m in parsed.messages)
    calls = [c["id"] for m in parsed.messages[:-1] for c in m.get("tool_calls", [])]
    assert sorted(calls) == sorted(m["tool_call_id"] for m in parsed.messages if m["role"] == "tool")
    if "rejected" in parsed.extra:
        assert parsed.extra["rejected"] != parsed.messages[-len(parsed.extra["rejected"]) :]


@pytest.mark.parametrize("name", ["messy_chats", "messy_tickets"])
def test_injected_defects_of_structure_are_rejected_and_clean_rows_are_not(name: str) -> None:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not here")
    records: dict[int, Any] = {}
    for line, text in enumerate((folder / "messy.jsonl").read_bytes().split(b"\n"), 1):
        try:
            records[line] = json.loads(text.decode("utf-8-sig"))
        except ValueError:
            continue
    config = PrepareConfig()
    guess = detect(list(records.values()), config)
    parsed = {line: parse_record(record, guess, config) for line, record in records.items()}
    defects = json.loads((folder / "gold.json").read_text("utf-8"))["defects"]
    # The base data has calls of a tool without a name, which nobody injected.
    nameless = {n for n, p in parsed.items() if isinstance(p, Rejection) and "a tool call has no name" in p.detail}
    for defect in defects:
        line = defect["line"]
        if line in parsed and line not in nameless and (expected := FITTING.get(defect["type"])):
            found = parsed[line]
            words = {found.reason} if isinstance(found, Rejection) else {repair["kind"] for repair in found.repairs}
            assert words and words <= expected, (defect, found)
    for line in parsed.keys() - {defect["line"] for defect in defects} - nameless:
        assert isinstance(parsed[line], Parsed), (line, parsed[line])
