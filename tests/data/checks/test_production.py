from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from manifests import manifest_of

from places import DATA_SETS
from tuneloop.core.errors import UserError
from tuneloop.data.checks.drift import as_prepared, read_production

DATA = DATA_SETS


def asked(tmp_path: Path, *records: Any) -> tuple[list[list[str]], int]:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows, without = read_production([str(path)])
    assert all(row.messages[-1] == {"role": "assistant", "content": ""} for row in rows)
    return [[m["content"] for m in row.prompt] for row in rows], without


TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "Which one?"},
    {"role": "user", "content": "The red one."},
]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TURNS},
        {"messages": [*TURNS, {"role": "assistant", "content": "On its way."}]},
        {"request": {"body": {"model": "m", "messages": TURNS}}, "response": {"id": "r"}},
        {"conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(t["role"], "system"), "value": t["content"]} for t in TURNS]},
        {"messages": [{"role": t["role"], "content": [{"type": "text", "text": t["content"]}]} for t in TURNS]},
    ],
)  # fmt: skip
def test_the_users_turns_of_conversations_are_taken(tmp_path: Path, record: dict[str, Any]) -> None:
    assert asked(tmp_path, record) == ([["Where is it?", "The red one."]], 0)


@pytest.mark.parametrize(
    "record",
    [
        {"text": "Where is it?"},
        {"id": "7", "created": "2024-05-01", "message": "Where is it?"},
        {"prompt": "Where is it?", "latency": 0.2},
        {"Anfrage": "Where is it?", "n": 3},
        {"log": {"prompt": "Where is it?"}},
    ],
)
def test_the_text_column_is_taken(tmp_path: Path, record: dict[str, Any]) -> None:
    assert asked(tmp_path, record, record)[0] == [["Where is it?"]] * 2


def test_training_records_give_what_is_asked_and_not_what_is_answered(tmp_path: Path) -> None:
    assert asked(tmp_path, *[{"prompt": f"Where is {i}?", "completion": "There."} for i in range(5)])[0][1] == ["Where is 1?"]  # fmt: skip


def test_records_that_say_nothing_are_counted(tmp_path: Path) -> None:
    rows, without = asked(tmp_path, {"text": "hello"}, {"text": " "}, {"text": None}, {"n": 1})
    assert (rows, without) == ([["hello"]], 3)
    with pytest.raises(UserError, match="No record of 1"):
        asked(tmp_path, {"n": 1})


def test_real_logs_are_read() -> None:
    path = DATA / "taskmaster4_feedback" / "all.jsonl"
    if not path.is_file():
        pytest.skip("the shared data sets are not here")
    rows, without = read_production([str(path)])
    assert len(rows) + without == sum(1 for _ in path.open()) and without < 0.01 * len(rows)


def test_records_are_read_by_the_columns_of_the_data_set_and_keep_their_labels(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    records = [{"id": f"n{i}", "body": f"Where is it {i}?", "kind": "ask", "other": f"x {i}"} for i in range(20)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    form = {"name": "text_label", "columns": {"text": "body", "label": "kind"}}
    manifest = manifest_of(format=form, config={"text": None})
    rows, _ = read_production([str(path)], as_prepared(manifest, [str(path)]))
    assert [(r.messages[0]["content"], r.label) for r in rows[:1]] == [("Where is it 0?", "ask")]
    path.write_text("".join(json.dumps({"body": r["body"], "other": r["other"]}) + "\n" for r in records))
    rows, _ = read_production([str(path)], as_prepared(manifest, [str(path)]))
    assert [(r.messages[0]["content"], r.label) for r in rows[:1]] == [("Where is it 0?", None)]


def test_templates_of_the_data_set_make_the_same_question(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"text": "hello", "queue": "a"}) + "\n")
    config = {"input": "Ticket: {text}", "output": "{queue}"}
    manifest = manifest_of(format={"name": "fields", "columns": {}}, config=config)
    rows, _ = read_production([str(path)], as_prepared(manifest, [str(path)]))
    assert rows[0].messages[0]["content"] == "Ticket: hello"
