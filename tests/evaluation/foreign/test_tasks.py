"""Our rows as a task of Inspect: the scorers in it are ours, and what they can't put or score is refused."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core.errors import UserError
from tuneloop.evaluation.foreign.tasks import TaskRows, write_task
from tuneloop.evaluation.metrics.labels import label_matcher
from tuneloop.evaluation.metrics.text import exact_match, token_f1
from tuneloop.records.rows import Message, Row


def row(number: int, answer: str, label: str | None = None, **more: Any) -> Row:
    turns: list[Message] = [
        {"role": "system", "content": "Answer {{ briefly }}."},
        {"role": "user", "content": f"Question {number}?"},
        {"role": "assistant", "content": answer},
    ]
    return Row(f"r{number}", turns, label, meta={"topic": "a", "line": number}, **more)


LABELLED = TaskRows(
    "queues", [row(1, "billing", "billing"), row(2, "C", "C"), row(3, "C#", "C#")], ["C", "C#", "billing"], 32
)
TEXTS = TaskRows("texts", [row(1, "The answer."), row(2, "Naïve – yes")], None, 32)


def test_the_scorers_of_a_task_score_as_ours(tmp_path: Path) -> None:
    write_task(LABELLED, "inspect", tmp_path / "labels")
    write_task(TEXTS, "inspect", tmp_path / "texts")
    labels, texts = (runpy.run_path(str(tmp_path / kind / "scorers.py")) for kind in ("labels", "texts"))
    match = label_matcher(LABELLED.labels or [])
    for answer in ("Billing.", "c", "C#", "billing\nbecause", "other", ""):
        assert [labels["score"]("accuracy", labels["BY_ID"][r.id], answer) for r in LABELLED.rows] == [
            float(match(answer) == r.label) for r in LABELLED.rows
        ]
    for answer in ("the answer", "Naive yes", "NAÏVE yes", ""):
        for r in TEXTS.rows:
            scores = [texts["score"](metric, texts["BY_ID"][r.id], answer) for metric in TEXTS.metrics]
            assert scores == [exact_match([r.answer], answer), token_f1([r.answer], answer)]


def test_a_task_of_inspect_has_the_turns_and_the_scorers(tmp_path: Path) -> None:
    command = write_task(TEXTS, "inspect", tmp_path)
    source = (tmp_path / "task.py").read_text()
    compile(source, "task.py", "exec")
    assert "def texts():" in source and "max_tokens=32" in source and "['exact_match', 'token_f1']" in source
    assert f"cd {tmp_path} && inspect eval task.py --model openai-api/tuneloop/MODEL" in command
    first = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert [turn["role"] for turn in first["messages"]] == ["system", "user"] and first["references"] == ["The answer."]


@pytest.mark.parametrize(
    ("rows", "labels", "says"),
    [
        ([], None, "no rows with prompts"),
        ([row(1, '{"a": 1}'), row(2, '{"a": 2}')], None, "Answers in JSON"),
        ([row(1, "a", tools=[{"name": "f"}])], None, "Rows with tools"),
    ],
)
def test_what_a_task_can_not_hold_is_refused(tmp_path: Path, rows: list[Row], labels: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        write_task(TaskRows("t", rows, labels, 8), "inspect", tmp_path)
    with pytest.raises(UserError, match="No such tool 'helm'"):
        write_task(TEXTS, "helm", tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is half-written"
