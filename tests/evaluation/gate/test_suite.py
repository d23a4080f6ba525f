"""A first suite: the gate takes it, the run that it was made from passes it, and a worse one does not."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tuneloop.cli.main import app
from tuneloop.core.errors import UserError
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import evaluate
from tuneloop.evaluation.gate.decide import read_side, run_gate
from tuneloop.evaluation.gate.suite import load_suite, write_first_suite
from tuneloop.evaluation.results import write_evaluation
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Subject
from tuneloop.records.rows import Row

QUEUE = {"queue": r"^Queue: (.+)$"}


def evaluated(folder: Path, wrong: float, *, cards: bool = False, n: int = 200, seed: int = 0) -> Path:
    rng, labels = random.Random(seed), ["cards", "loans", "fraud"]
    rows, answers = [], []
    for i in range(n):
        label = labels[0 if i % 10 < 7 else 1 if i % 10 < 9 else 2]  # 70, 20 and 10 %
        given = label if rng.random() >= wrong else labels[(labels.index(label) + 1) % 3]
        right, said = (f"Queue: {label}\nIssue: no {i}", f"Queue: {given}\nIssue: no {i}") if cards else (label, given)
        turns = [
            {"role": "user", "content": f'a "question": {i}\nand more #{i}'},
            {"role": "assistant", "content": right},
        ]
        rows.append(Row(f"{i:04}", turns, None if cards else label))
        answers.append(Completion(said))
    config = EvaluateConfig(bootstrap=300, embedding=False, fields=QUEUE if cards else {})
    task, names = ("generation", None) if cards else ("classification", labels)
    result = evaluate(rows, answers, task=task, labels=names, config=config, seed=0)
    write_evaluation(folder, result, Subject("m", "d", "test"), more={"costs": {"tuned": {"seconds": 2.0}}})  # fmt: skip
    return folder


@pytest.mark.parametrize("cards", [False, True])
def test_the_run_that_a_suite_was_made_from_passes_it_and_a_worse_one_does_not(tmp_path: Path, cards: bool) -> None:
    good = evaluated(tmp_path / "good", 0.05, cards=cards)
    suite = load_suite(write_first_suite(str(good), str(tmp_path / "suite.yaml")))
    assert len(suite.must_pass) == 3 and all(row.id for row in suite.must_pass)
    metrics = [limit.metric for limit in suite.metrics]
    assert metrics[0] == ("queue.macro_f1" if cards else "macro_f1")  # uneven labels
    again = evaluated(tmp_path / "again", 0.05, cards=cards)  # a gate refuses to compare a folder with itself
    assert run_gate(suite, read_side(str(again)), read_side(str(good))).status == "pass"
    near = evaluated(tmp_path / "near", 0.05, cards=cards, seed=1)
    statuses = {
        c.name: c.status
        for c in run_gate(suite, read_side(str(near)), read_side(str(good))).checks
        if c.kind == "metric"
    }
    assert "fail" not in statuses.values()  # an equally good model is not thrown out by its metrics
    bad = evaluated(tmp_path / "bad", 0.5, cards=cards, seed=2)
    assert run_gate(suite, read_side(str(bad)), read_side(str(good))).status == "fail"


def test_a_suite_of_a_prepared_data_set_asks_for_each_label_and_fits_the_number_of_rows(tmp_path: Path) -> None:
    text = [
        "card",
        "limit",
        "refund",
        "branch",
        "phone",
        "letter",
        "address",
        "rate",
        "fee",
        "statement",
        "name",
        "branch",
    ]
    rows = [
        {"text": f"my {label[:-1]} and the {text[i % 12]} of {text[(5 * i + i // 12) % 12]} {i}", "label": label}
        for i in range(96)
        for label in ("cards", "loans")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runner = CliRunner()
    where = [str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "d")]
    made = runner.invoke(app, ["prepare", *where, "split.test=0.3"])
    assert made.exit_code == 0, (made.output, made.exception)
    file = tmp_path / "first.yaml"
    found = runner.invoke(app, ["gate", "--init", str(tmp_path / "d"), "--suite", str(file)])
    assert found.exit_code == 0, found.output
    assert "tuneloop gate NEW_RUN" in found.output
    suite = load_suite(file)
    test = [json.loads(line) for line in (tmp_path / "d" / "test.jsonl").read_text().splitlines()]
    of = {row["id"]: row["label"] for row in test}
    assert {of[row.id] for row in suite.must_pass} == {"cards", "loans"}
    assert (
        suite.metrics[0].metric == "accuracy" and suite.metrics[0].margin is not None and suite.metrics[0].margin > 0.05
    )


def test_what_cannot_become_a_suite_is_said(tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    with pytest.raises(UserError, match="run, an evaluation or a prepared data set"):
        write_first_suite(str(tmp_path), str(file))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="not been evaluated"):
        write_first_suite(str(tmp_path), str(file))
    file.write_text("mine")
    with pytest.raises(UserError, match="there already"):
        write_first_suite(str(evaluated(tmp_path / "e", 0.1)), str(file))
    assert file.read_text() == "mine"


def test_a_gate_without_a_suite_names_the_way_to_a_first_one(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["gate", "runs/new", "--against", "runs/old"])
    assert found.exit_code == 2 and "--init" in found.output + str(getattr(found, "stderr", ""))


def invoices(folder: Path, wrong: int, indent: int | None = None) -> Path:
    cards = [
        {"number": f"R-{i}", "total": i, "note": f"please send {i} of them to the old address in town"}
        for i in range(40)
    ]
    rows = [
        Row(f"{i:04}", [{"role": "user", "content": f"mail {i}"}, {"role": "assistant", "content": json.dumps(card)}])
        for i, card in enumerate(cards)
    ]
    said = [{**card, "total": -1} if i < wrong else {**card, "note": "send them"} for i, card in enumerate(cards)]
    answers = [Completion(json.dumps(card, indent=indent)) for card in said]
    config = EvaluateConfig(bootstrap=300, embedding=False)
    result = evaluate(rows, answers, task="generation", labels=None, config=config, seed=0)
    write_evaluation(folder, result, Subject("m", "d", "test"), more={"costs": {"tuned": {"seconds": 2.0}}})
    return folder


def test_a_suite_of_answers_in_json_is_about_filled_fields_and_whole_answers(tmp_path: Path) -> None:
    good = invoices(tmp_path / "good", 4)
    suite = load_suite(write_first_suite(str(good), str(tmp_path / "suite.yaml")))
    assert suite.must_pass and not {row.id for row in suite.must_pass} & {f"{i:04}" for i in range(4)}
    assert [limit.metric for limit in suite.metrics][:2] == ["filled_f1", "object_accuracy"]
    again = invoices(tmp_path / "again", 4, indent=2)  # the same answers, written otherwise
    assert run_gate(suite, read_side(str(again)), read_side(str(good))).status == "pass"
    worse = invoices(tmp_path / "worse", 40)
    found = run_gate(suite, read_side(str(worse)), read_side(str(good)))
    assert found.status == "fail" and all(c.status == "fail" for c in found.checks if c.kind == "must_pass")
