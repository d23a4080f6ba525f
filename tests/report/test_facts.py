"""Figures as people read them, and reading a run folder that is incomplete or damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneloop.core import written as w
from tuneloop.core.errors import UserError
from tuneloop.evaluation.metrics.declared import title_of
from tuneloop.evaluation.metrics.written import with_interval
from tuneloop.records.evaluation import Comparison, Estimate, EvaluationManifest, Sample
from tuneloop.records.run import RunManifest, limit_words
from tuneloop.report import facts as f


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (with_interval(Estimate(0.8712, 0.8101, 0.9249)), "0.87 [0.81, 0.92]"),
        (with_interval(Estimate(57.44, 55.31, 59.5), "chrf"), "57.4 [55.3, 59.5]"),
        (with_interval(Estimate(0.5)), "0.50"),
        (with_interval(None), "–"),
        (w.p_value(0.0000001), "p < 0.001"),
        (w.p_value(0.0341), "p = 0.034"),
        (w.minutes(4.21), "4.2 min"),
        (w.minutes(0.05), "3 s"),
        (w.minutes(300), "5.0 h"),
        (w.gib(1.31), "1.3 GiB"),
        (w.gib(0.04), "41 MiB"),
        (w.usd(0.012), "$0.01"),
        (w.usd(0.0035), "$0.004"),
        (w.usd(1234.5), "$1,234.50"),
        (w.usd(0), "$0"),
        (w.usd(0.0000017), "< $0.00001"),
        (w.usd(0.000078, 2), "$0.000078"),
        (w.usd(0.0263, 2), "$0.026"),
        (w.usd(0.123, 2), "$0.12"),
        (w.count(1, "row"), "1 row"),
        (w.count(1234, "row"), "1,234 rows"),
        (w.short_count(139_399_488), "139 M"),
        (title_of("queue.accuracy"), "queue accuracy"),
        (title_of("rougeL"), "ROUGE-L"),
    ],
)
def test_figures_read_as_people_write_them(shown: str, expected: str) -> None:
    assert shown == expected


@pytest.mark.parametrize(
    ("task", "names", "shown"),
    [
        ("classification", ["micro_f1", "macro_f1", "accuracy"], ["accuracy", "macro_f1"]),
        ("generation", ["bleu", "chrf", "rouge1", "rougeL"], ["rougeL", "chrf"]),
        ("generation", ["rougeL", "queue.accuracy", "queue.macro_f1", "chrf"], ["queue.accuracy", "rougeL", "chrf"]),
        ("generation", ["exact_match", "perplexity", "bleu"], ["exact_match", "perplexity"]),
    ],
)
def test_the_shown_metrics_follow_the_task(task: str, names: list[str], shown: list[str]) -> None:
    evaluation = EvaluationManifest(n=1, task=task, metrics={n: Estimate(1.0) for n in names})
    assert f.shown_metrics(evaluation) == shown


def test_a_comparison_is_read_the_right_way_round_whichever_side_is_tuned() -> None:
    evaluation = EvaluationManifest(
        n=40,
        metrics={"accuracy": Estimate(0.9)},
        baselines={"few-shot": {"accuracy": Estimate(0.5)}, "zero-shot": {"accuracy": Estimate(0.6)}},
        comparisons=[
            Comparison("few-shot", "tuned", "accuracy", 0.4, 0.3, 0.5, 0.01, "better"),
            Comparison("tuned", "zero-shot", "accuracy", -0.3, -0.35, -0.2, 0.02, "worse"),
        ],
    )
    zero, few, tuned = f.systems_of(evaluation, ["accuracy"])
    assert [line.name for line in (zero, few, tuned)] == ["zero-shot", "few-shot", "tuned"]
    assert few.delta == Estimate(0.4, 0.3, 0.5)
    assert zero.delta == Estimate(0.3, 0.2, 0.35)
    assert zero.p == 0.02 and tuned.p is None


def test_right_and_wrong_ignore_case_and_punctuation_but_not_the_word() -> None:
    row = Sample(id="1", label="card_lost", reference="card_lost", prediction=' "Card_Lost."\nBecause ...')
    assert f.is_right(row) is True
    assert f.is_right(row, "card_stolen") is False
    assert f.is_right(row, "") is False
    assert f.is_right(Sample(id="1", label=None, reference="a", prediction="a")) is None


def test_steps_that_a_resumed_run_repeats_count_once_in_order(tmp_path: Path) -> None:
    lines = [{"step": s, "loss": loss} for s, loss in [(1, 3.0), (2, 2.0), (3, 9.0), (2, 2.5), (3, 1.0)]]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in lines) + '{"step": 4, "lo', encoding="utf-8"
    )
    facts = f.read_run(tmp_path)
    assert [(r.step, r.loss) for r in facts.steps] == [(1, 3.0), (2, 2.5), (3, 1.0)]
    assert facts.problems == ["metrics.jsonl: 1 unreadable line left out"]


def test_a_damaged_file_is_named_and_the_rest_is_read(make_run: Callable[..., Path]) -> None:
    run = make_run()
    (run / "eval.json").write_text('{"metrics": ', encoding="utf-8")
    (run / "plan.json").write_text("[1, 2]", encoding="utf-8")
    facts = f.read_run(run)
    assert not facts.evaluated and facts.plan is None and facts.run and facts.run.steps == 240
    assert any("eval.json" in p for p in facts.problems) and any("plan.json" in p for p in facts.problems)


def test_control_characters_and_lone_surrogates_never_reach_a_report(make_run: Callable[..., Path]) -> None:
    facts = f.read_run(make_run())
    hostile = next(s for s in facts.samples if "<script>" in s.prompt)
    assert "\x1b" not in hostile.prompt and "\ud800" not in hostile.prompt
    hostile.prompt.encode("utf-8")


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_what_is_no_run_folder_is_refused_with_a_next_step(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        f.read_run(tmp_path / "run")
    assert caught.value.next_step


def test_a_time_that_the_limit_made_is_no_prediction_that_held() -> None:
    run = RunManifest(model="m", steps=42, planned_steps=2, total_steps=42)
    assert limit_words(run) == "the limit was reached; 42 steps, not the 2 predicted"
    assert not limit_words(run.model_copy(update={"total_steps": 2}))


def test_a_promise_is_kept_only_inside_its_range(make_run: Callable[..., Path]) -> None:
    run = make_run()
    kept = {p.name: p.inside for p in f.promises(f.read_run(run))}
    assert kept == {"training time": True, "peak memory": True, "cost": True}
    record = json.loads((run / "run.json").read_text())
    record.update(seconds=900, peak_memory_gib=3.0, usd=0.5)
    (run / "run.json").write_text(json.dumps(record))
    missed = {p.name: (p.inside, p.words) for p in f.promises(f.read_run(run))}
    assert {inside for inside, _ in missed.values()} == {False}
    assert all(text.startswith("took") and ("more" in text or "as much" in text) for _, text in missed.values())


@pytest.mark.parametrize(
    "actual,text",
    [
        (6.0, "took 40\u00a0% less"),
        (9.0, "as predicted"),
        (15.0, "took 50\u00a0% more"),
        (31.0, "took 3.1 times as much"),
    ],
)
def test_a_missed_prediction_says_in_which_direction(actual: float, text: str) -> None:
    assert w.off_words(actual, 8.0, 13.0, 10.0) == text
    assert w.off_words(actual, None, None, 10.0) == w.off_words(None, 8.0, 13.0, 10.0) == ""


def test_the_scorers_match_decides_about_the_own_answer_where_it_is_given() -> None:
    row = Sample(id="1", label="card_lost", reference="card_lost", prediction="card_lost", predicted_label=None)
    assert f.is_right(row) is False
    assert f.is_right(row.model_copy(update={"predicted_label": "card_lost"})) is True
