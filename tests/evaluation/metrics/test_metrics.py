"""A metric of the user's own is like any other: evaluation, comparison, gate, pages and tables read what it declares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuneloop.core.errors import UserError
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import ScoredAnswers, evaluate
from tuneloop.evaluation.gate.decide import read_side, run_gate
from tuneloop.evaluation.gate.suite import Suite, SuiteSource, first_suite
from tuneloop.evaluation.metrics.custom import metric
from tuneloop.evaluation.metrics.declared import METRICS, metric_of
from tuneloop.evaluation.paired import compare
from tuneloop.evaluation.results import ComparedWith, load_evaluation, write_evaluation
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Subject
from tuneloop.records.rows import Row
from tuneloop.report.comparison import comparison_as
from tuneloop.report.facts import read_run, shown_metrics, systems_of
from tuneloop.report.html import write_page

FILE = """
import tuneloop

@tuneloop.metric("words too many", better="lower", scale="from 0", decimals=1, least_margin=0.5)
def wordy(prediction, reference):
    return max(0, len(prediction.split()) - len(reference.split()))

@tuneloop.metric("shouting", test="exact McNemar")
def shouts(prediction):
    return len(prediction)
"""
ROWS = [
    Row(f"r{i}", [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer number {i}"}])
    for i in range(40)
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def scored(file: Path, more: int, name: str = "wordy") -> ScoredAnswers:
    """Answers with so many words too many, one word more on every second row."""
    answers = [Completion(row.answer + " word" * (more + i % 2)) for i, row in enumerate(ROWS)]
    config = EvaluateConfig(scorers={name: f"{file}:{name}"}, bootstrap=200, embedding=False, primary=name)
    return evaluate(ROWS, answers, task="generation", labels=None, config=config, seed=0)


@pytest.fixture
def folder(file: Path, tmp_path: Path) -> Path:
    """The evaluation of a terse model, compared with a wordy one."""
    terse, long = scored(file, 0), scored(file, 4)
    out = tmp_path / "run"
    out.mkdir()
    write_evaluation(out, terse, Subject("m", "d", "test", key="k"), ComparedWith({"zero-shot": long}, compare("zero-shot", long, "tuned", terse)))  # fmt: skip
    return out


def test_fewer_is_better_in_the_comparison_and_in_the_verdict(folder: Path) -> None:
    saved = json.loads((folder / "eval.json").read_text())
    pair = next(c for c in saved["comparisons"] if c["metric"] == "wordy")
    assert pair["delta"] == pytest.approx(-4) and pair["verdict"] == "better" and pair["test"] == "paired bootstrap"
    assert (
        saved["own_metrics"]["wordy"] | {"title": "words too many", "better": "lower"} == saved["own_metrics"]["wordy"]
    )
    assert saved["verdict"]["sentence"].startswith(
        "Better than zero-shot: words too many 0.500, gain +4.000 on 40 test rows"
    )


def test_pages_and_tables_have_its_title_its_format_and_its_direction(folder: Path) -> None:
    facts = read_run(folder)
    metrics = shown_metrics(facts.evaluation)
    assert metrics[0] == "wordy"
    line = next(item for item in systems_of(facts.evaluation, metrics) if item.name == "zero-shot")
    assert line.delta is not None and line.delta.value == pytest.approx(4)  # the tuned model is better
    table = comparison_as(facts.evaluation, "markdown")
    assert "| words too many |" in table and "| 4.5 [" in table and "| 0.5 [" in table
    page = Path(write_page(folder)).read_text(encoding="utf-8")
    assert "words too many" in page


def test_a_gate_speaks_of_it_by_its_title_and_passes_the_better_side(folder: Path) -> None:
    suite = Suite.model_validate(
        {"version": 1, "name": "s", "metrics": [{"metric": "wordy", "margin": 0.5, "at_most": 1}]}
    )
    good = run_gate(suite, read_side(str(folder)), read_side(f"{folder}:zero-shot"))
    assert [check.status for check in good.checks] == ["pass", "pass"]
    assert good.checks[0].message.startswith("words too many (lower is better): gain +4 [")
    bad = run_gate(suite, read_side(f"{folder}:zero-shot"), read_side(str(folder)))
    assert [check.status for check in bad.checks] == ["fail", "fail"]


def test_a_first_suite_limits_it_from_above_with_its_own_least_margin(folder: Path) -> None:
    text = first_suite(SuiteSource("d", ROWS, "generation", evaluation=load_evaluation(folder)))
    entry = text.split('metric: "wordy"')[1].split("- metric")[0]
    assert "margin: 0.5" in entry and "at_most:" in entry


def test_a_declared_test_that_the_scores_do_not_fit_is_refused(file: Path) -> None:
    with pytest.raises(UserError, match="exact McNemar, compares right with wrong"):
        scored(file, 0, "shouts")


def test_a_metric_without_direction_is_shown_and_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FILE.replace('better="lower"', 'better="neither"').replace("wordy", "size"))
    config = EvaluateConfig(scorers={"size": f"{path}:size"}, bootstrap=200, embedding=False)
    answers = [Completion(row.answer) for row in ROWS]
    both = [evaluate(ROWS, answers, task="generation", labels=None, config=config, seed=0) for _ in range(2)]
    assert "size" in both[0].metrics
    assert "size" not in {c.metric for c in compare("a", both[0], "b", both[1])}


def test_a_bad_declaration_says_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="choose one of 'higher', 'lower', 'neither'"):
        metric("x", better="up")  # type: ignore[arg-type]


def test_the_name_of_a_metric_that_comes_with_tuneloop_is_taken(file: Path) -> None:
    config = EvaluateConfig(scorers={"bleu": f"{file}:wordy"}, bootstrap=200, embedding=False)
    with pytest.raises(UserError, match="'bleu' is a metric's already"):
        evaluate(ROWS, [Completion("x")] * len(ROWS), task="generation", labels=None, config=config, seed=0)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_title_a_meaning_and_one_number_format(name: str) -> None:
    known = METRICS[name]
    assert known.title and known.meaning
    assert known.figure(float("nan")) == "–" and known.in_words(float("nan")) == "unknown"
    field = metric_of(f"queue.{name}")
    assert (field.title, field.better, field.scale) == (f"queue {known.title}", known.better, known.scale)


def test_perplexity_is_compared_by_the_test_of_the_loss() -> None:
    def side(shift: float) -> ScoredAnswers:
        answers = [Completion("x", loss=2.0 + 0.1 * (i % 7) + shift * (i % 3), loss_tokens=3) for i in range(40)]
        config = EvaluateConfig(bootstrap=200, embedding=False)
        return evaluate(ROWS, answers, task="generation", labels=None, config=config, seed=0)

    pairs = {c.metric: c for c in compare("a", side(0.0), "b", side(-0.2))}
    assert pairs["perplexity"].p == pairs["loss"].p and pairs["perplexity"].p_holm == pairs["loss"].p_holm
    assert pairs["perplexity"].verdict == pairs["loss"].verdict == "better"
