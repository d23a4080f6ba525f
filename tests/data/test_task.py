"""A raw record becomes the prompt that was trained, whatever the format, and what is not clear is told."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core.errors import UserError
from tuneloop.core.files import plain
from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.guess import Rejection
from tuneloop.data.prepare import TokenCount, prepare_dataset
from tuneloop.data.task import TaskPrompt, TaskSpec, prompt_reader, read_task, task_spec
from tuneloop.records.rows import Dataset, Row

CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q": "tea"}'}}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}


def words(i: int) -> str:
    rng = random.Random(i)
    return " ".join("".join(rng.choices("bdfgklmnprst", k=3)) + rng.choice("aeiou") for _ in range(8))


def dirty(i: int) -> str:
    """Text that repairs and redaction change: mojibake, an entity, an address, spaces, a control token."""
    return f"  cafÃ© {words(i)} &amp; mail anna{i}@example.com <|eot_id|>\u200b "


def with_chat(i: int) -> list[dict[str, Any]]:
    asked = {"role": "user", "content": dirty(i)}
    return [asked, {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "3 found"}, {"role": "assistant", "content": f"Found {i}."}]  # fmt: skip


def gpt(i: int) -> list[dict[str, str]]:
    return [{"from": "human", "value": dirty(i)}, {"from": "gpt", "value": "Which?"},
            {"from": "human", "value": words(i + 500)}, {"from": "gpt", "value": f"Answer {i}"}]  # fmt: skip


# By name: a record, the columns that hold the answer, and settings.
CASES: dict[str, tuple[Any, tuple[str, ...], dict[str, Any]]] = {
    "text and label": (lambda i: {"text": dirty(i), "label": f"l{i % 3}", "n": i}, ("label",), {}),
    "own names and instruction": (
        lambda i: {"body": dirty(i), "queue": f"q{i % 3}"}, ("queue",),
        {"text": "body", "label": "queue", "instruction": "Sort it."},
    ),
    "no instruction": (lambda i: {"text": dirty(i), "label": f"l{i % 3}"}, ("label",), {"instruction": ""}),
    "several labels": (
        lambda i: {"text": dirty(i), "labels": [["a", "b"], ["b"], []][i % 3]}, ("labels",), {},
    ),
    "templates": (
        lambda i: {"subject": words(i), "body": dirty(i), "queue": f"q{i % 3}", "meta": {"tier": "gold"}}, ("queue",),
        {"input": "{subject} ({meta.tier})\n\n{body}", "output": "Queue: {queue}", "instruction": "File it."},
    ),
    "alpaca": (
        lambda i: {"instruction": f"Say {words(i)}", "input": dirty(i), "output": f"Said {i}"}, ("output",), {},
    ),
    "question and answer": (
        lambda i: {"system": "Be brief.", "question": dirty(i), "answer": f"Well {i}"}, ("answer",), {},
    ),
    "messages": (lambda i: {"messages": [{"role": "system", "content": "You help."}, *with_chat(i)], "tools": [TOOL]}, (), {}),
    "messages under an instruction": (lambda i: {"messages": with_chat(i)}, (), {"instruction": "You help."}),
    "sharegpt": (lambda i: {"conversations": gpt(i)}, (), {}),
    "preferences": (
        lambda i: {"prompt": dirty(i), "chosen": f"Good {i}", "rejected": f"Bad {i}"}, ("chosen", "rejected"), {},
    ),
    "thumbs": (lambda i: {"prompt": dirty(i), "completion": f"It is {i}", "label": i % 2 == 0}, ("completion", "label"), {}),
    "logs": (
        lambda i: {
            "request": {"messages": [{"role": "user", "content": dirty(i)}], "model": "m"},
            "response": {"choices": [{"message": {"role": "assistant", "content": f"Yes {i}"}, "finish_reason": "stop"}]},
        },
        ("response",), {},
    ),
}  # fmt: skip


def prepared(tmp_path: Path, records: list[Any], **config: Any) -> tuple[Dataset, TaskSpec]:
    source = tmp_path / "data.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    settings = PrepareConfig(sources=[str(source)], split={"val": 0.0, "test": 0.1}, **config)  # type: ignore[arg-type]
    dataset = prepare_dataset(settings, name="job", seed=0, out=tmp_path / "out", measure=lambda row: TokenCount(40, 4))
    spec = task_spec(dataset, answer="generate", max_new_tokens=8, chat_template="")
    return dataset, read_task(json.loads(json.dumps(plain(spec))), "tuneloop.json")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("answered", [True, False], ids=["with answer", "without answer"])
def test_a_raw_record_becomes_the_prompt_of_its_training_row(case: str, answered: bool, tmp_path: Path) -> None:
    make, answers, config = CASES[case]
    records = [make(i) for i in range(40)]
    dataset, spec = prepared(tmp_path, records, **config)
    rows: list[Row] = [*dataset.train, *dataset.test]
    assert len(rows) == 40
    if not answered:
        records = [{name: value for name, value in record.items() if name not in answers} for record in records]
        for record in records:
            for turns in ("messages", "conversations"):
                if turns in record:
                    record[turns] = record[turns][:-1]
    read = prompt_reader(spec, records)
    for row in rows:
        made = read(records[row.meta["line"] - 1])
        assert made == TaskPrompt(row.prompt, row.tools), case
    shown = json.dumps([row.prompt for row in rows], ensure_ascii=False)
    assert "<EMAIL>" in shown and "café" in shown, "the repairs of training were at work"


def test_plain_text_is_gone_on_with(tmp_path: Path) -> None:
    dataset, spec = prepared(tmp_path, [{"text": f"{words(i)} cafÃ©"} for i in range(40)])
    row = dataset.train[0]
    assert not row.prompt
    read = prompt_reader(spec, [{"text": "Once cafÃ©"}])
    assert read({"text": "Once cafÃ©"}) == TaskPrompt([], continues="Once café")
    assert read({"text": " "}) == Rejection("empty_input", "column 'text' has no text")


@pytest.fixture
def tickets(tmp_path: Path) -> TaskSpec:
    return prepared(tmp_path, [{"text": words(i), "label": f"l{i % 3}"} for i in range(40)])[1]


def test_a_column_of_another_name_must_be_named(tickets: TaskSpec) -> None:
    wanted = [tickets.system, "Where is it?"]

    def asked(record: dict[str, Any], **options: Any) -> list[str]:
        made = prompt_reader(tickets, [record], **options)(record)
        assert isinstance(made, TaskPrompt)
        return [turn["content"] for turn in made.messages]

    with pytest.raises(UserError, match="trained on the columns 'text'; 'text' not there") as refused:
        prompt_reader(tickets, [{"ticket": "Where is it?"}])
    assert refused.value.where == "columns: 'ticket'" and "--column ticket" in refused.value.next_step
    assert asked({"ticket": "Where is it?"}, column="ticket") == wanted
    assert asked({"id": 3, "ticket": "Where is it?"}, column="ticket") == wanted
    assert asked({"messages": [{"role": "user", "content": "Where is it?"}]}) == wanted
    assert asked({"text": "Where is it?"}, system="Other.") == ["Other.", "Where is it?"]
    assert asked({"text": "Where is it?"}, system="") == ["Where is it?"]
    with pytest.raises(UserError, match="trained on the column 'text'") as raised:
        prompt_reader(tickets, [{"id": "3", "texts": "Where is it?"}])
    assert "'id', 'texts'" in raised.value.where and "--column texts" in raised.value.next_step
    with pytest.raises(UserError, match="No record has the column 'txt'") as raised:
        prompt_reader(tickets, [{"id": "3", "text": "Where is it?"}], column="txt")
    assert "did you mean 'text'?" in raised.value.next_step


def test_templates_need_all_their_columns(tmp_path: Path) -> None:
    records = [{"subject": words(i), "body": words(i + 99), "queue": f"q{i % 3}"} for i in range(40)]
    spec = prepared(tmp_path, records, input="{subject}\n{body}", output="{queue}")[1]
    with pytest.raises(UserError, match="'subject', 'body'; 'body' not there"):
        prompt_reader(spec, [{"subject": "Tea"}])
    read = prompt_reader(spec, [{"subject": "Tea", "body": "Late"}])
    assert read({"subject": "Tea"}) == Rejection("missing_field", "no column 'body'")


def test_an_untuned_model_is_asked_the_text_as_it_is() -> None:
    record = {"id": 1, "prompt": " cafÃ© bob@example.com "}
    made = prompt_reader(None, [record])(record)
    assert isinstance(made, TaskPrompt) and made.messages[-1]["content"].strip() == "cafÃ© bob@example.com"
    with pytest.raises(UserError, match="not clear which column"):
        prompt_reader(None, [{"a": "x", "b": "y"}])
    with pytest.raises(UserError, match="not clear which column"):
        prompt_reader(None, [{"question": "x", "input": "y"}])


def test_a_record_of_a_later_version_or_a_damaged_one_is_refused() -> None:
    with pytest.raises(UserError, match="newer tuneloop"):
        read_task({"version": 2, "kind": "chat"}, "m/tuneloop.json")
    with pytest.raises(UserError, match="can't be read") as raised:
        read_task({"version": 1, "kind": "poetry"}, "m/tuneloop.json")
    assert raised.value.where == "m/tuneloop.json"
