"""The first screen: three to six words, one sentence, one chart, what it costs, what comes next."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tuneloop.advice.measured import from_evaluation, leaderboard
from tuneloop.records.evaluation import Outcome
from tuneloop.report.answer import Answer, answer_of, by_value
from tuneloop.report.facts import read_run, systems_of
from tuneloop.report.html import render_report
from tuneloop.report.terminal import print_closing

MakeRun = Callable[..., Path]
FOREST = "tf-idf + logistic regression"


def standing(outcome: Outcome, against: str, kind: str, gain: float = 0.1) -> dict[str, Any]:
    claim = {"metric": "accuracy", "outcome": outcome, "gain": gain, "low": gain - 0.05, "high": gain + 0.05, "p": 0.01,
             "tests": 3}  # fmt: skip
    return {"name": "tuned", "against": against, "kind": kind, "outcome": outcome, **{k: claim[k] for k in ("gain", "low", "high", "p", "tests")},
            "p_holm": 0.03, "detectable": 0.04, "rows_needed": None, "only_name": 3, "only_against": 1, "apart": 4,
            "claims": [claim]}  # fmt: skip


def run_with(run: Path, *standings: dict[str, Any], **more: Any) -> Path:
    """A run with a verdict; the first standing is the one that it is about."""
    path = run / "eval.json"
    first = standings[0]
    verdict = {"sentence": "All in one.", "name": "tuned", "outcome": first["outcome"], "against": first["against"],
               "metric": "accuracy", "standings": list(standings)}  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verdict": verdict} | more))
    return run


def priced(prices: dict[str, tuple[str, float]]) -> list[dict[str, Any]]:
    """A leaderboard: name of a system to its kind and the price of 1,000 answers."""
    entry = {"metric": "accuracy", "value": 0.8, "low": 0.7, "high": 0.9, "gain": None, "gain_low": None, "gain_high": None,
             "p": None, "verdict": "", "training_seconds": 1, "training_usd": 0, "prompt_tokens": 5, "tokens": 5}  # fmt: skip
    return [entry | {"name": name, "kind": kind, "usd_per_1000": usd} for name, (kind, usd) in prices.items()]


def answer(run: Path) -> Answer:
    found = answer_of(read_run(run))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("outcome", "against", "kind", "gain", "text"),
    [
        ("better", "few-shot", "prompt", 0.1, "Worth it"),
        ("promising", "few-shot", "prompt", 0.1, "Promising, not proven"),
        ("not enough evidence", FOREST, "classical", 0.01, "Not enough evidence"),
        ("not enough evidence", FOREST, "classical", -0.01, "Not better than a classifier"),
        ("worse", "few-shot", "prompt", -0.1, "Worse than a prompt"),
        ("worse", "majority class", "constant", -0.1, "Worse than a constant answer"),
        ("mixed", FOREST, "classical", 0.1, "Better and worse than a classifier"),
        ("worse", "runs/other", "prompt", -0.1, "Worse than runs/other"),
    ],
)
def test_the_verdict_has_at_most_six_words(
    make_run: MakeRun, outcome: Outcome, against: str, kind: str, gain: float, text: str
) -> None:
    found = answer(run_with(make_run(), standing(outcome, against, kind, gain)))
    assert found.verdict == text and len(text.split()) <= 6
    assert f" {'over' if gain > 0 else 'against'} {against} " in found.statistics


def test_labels_that_are_never_given_are_in_the_words(make_run: MakeRun) -> None:
    run = run_with(make_run(), standing("better", "few-shot", "prompt"))
    found = json.loads((run / "eval.json").read_text())
    label = {"precision": 0, "recall": 0, "f1": 0, "predicted": 0, "invalid": 0}
    found["per_class"] = [label | {"label": "a", "n": 88}, label | {"label": "b", "n": 12}]
    found["verdict"]["never"] = ["b"]
    (run / "eval.json").write_text(json.dumps(found))
    assert "blind" in answer(run).verdict


def test_the_sentence_is_in_per_cent_and_the_statistics_stand_apart(make_run: MakeRun) -> None:
    found = answer(run_with(make_run(), standing("better", "few-shot", "prompt")))
    assert re.fullmatch(
        r"\d+ % of the answers are right; the best prompt \(few-shot\) gets \d+ %\.( Use .*)?", found.sentence
    )
    for part in ("test rows", "+10.0 points", "+5.0 to +15.0", "p = 0.01", "3 comparisons"):
        assert part in found.statistics


@pytest.mark.parametrize(
    ("outcome", "recommended"),
    [("better", "tuned"), ("promising", "tuned"), ("not enough evidence", FOREST), ("worse", FOREST)],
)
def test_the_cheapest_that_none_is_proven_better_than_is_recommended(
    make_run: MakeRun, outcome: Outcome, recommended: str
) -> None:
    board = priced({"tuned": ("tuned", 0.1), FOREST: ("classical", 1e-5), "majority class": ("constant", 0.0)})
    constant = standing("not enough evidence", "majority class", "constant")
    run = run_with(make_run(), standing(outcome, FOREST, "classical"), constant, leaderboard=board)
    found = answer(run)
    assert found.recommended == recommended
    assert ("serve" in found.next) == (recommended == "tuned")
    system = "the tuned model" if recommended == "tuned" else recommended
    assert f"Use {system}: the cheapest that is not significantly worse" in found.sentence
    page = render_report(run)
    assert f"{recommended} ✓" in page and "Quality and cost: " in page and ("1,000 answers", "$0.10") in found.costs


@pytest.mark.parametrize(("deciding", "recommended"), [("worse", FOREST), ("better", "tuned")])
def test_where_metrics_disagree_the_one_that_decides_recommends_and_is_named(
    make_run: MakeRun, deciding: Outcome, recommended: str
) -> None:
    board = priced({"tuned": ("tuned", 0.1), FOREST: ("classical", 1e-5)})
    mixed = standing("mixed", FOREST, "classical")
    mixed["claims"][0]["outcome"] = deciding
    run = run_with(make_run(), mixed, leaderboard=board)
    found = answer(run)
    assert found.recommended == recommended and "By accuracy, use " in found.sentence
    assert from_evaluation(read_run(run).evaluation, str(run)).recommended == recommended


def test_what_is_cheaper_and_far_below_the_best_is_not_recommended_and_advise_agrees(make_run: MakeRun) -> None:
    minilm = "MiniLM + logistic regression"
    board = priced({"tuned": ("tuned", 0.1), FOREST: ("classical", 1e-5), minilm: ("classical", 1e-4)})
    both = standing("worse", minilm, "classical", -0.3), standing("worse", FOREST, "classical", -0.05)
    run = run_with(make_run(), *both, leaderboard=board)
    evaluation = json.loads((run / "eval.json").read_text())
    for name, value, expected in ((FOREST, 0.6, minilm), (FOREST, 0.84, FOREST)):
        scores = {minilm: 0.9, name: value}
        evaluation["baselines"] |= {
            n: {"accuracy": {"value": v, "low": v - 0.05, "high": v + 0.05}} for n, v in scores.items()
        }
        (run / "eval.json").write_text(json.dumps(evaluation))
        measured = from_evaluation(read_run(run).evaluation, str(run))
        assert answer(run).recommended == measured.recommended == expected
        assert [line.name for line in leaderboard(measured) if line.recommended] == [expected]


def test_the_best_system_stands_on_top(make_run: MakeRun) -> None:
    evaluation = read_run(make_run()).evaluation
    lines = by_value(systems_of(evaluation, ["accuracy"]), "accuracy")
    values = [line.scores[0].value for line in lines if line.scores[0]]
    assert values == sorted(values, reverse=True) and len(values) > 3


def test_the_rest_of_the_page_is_folded_where_it_begins_with_the_answer(make_run: MakeRun) -> None:
    run = make_run()
    assert "<details open>" in render_report(run), "no verdict yet: nothing is hidden"
    page = render_report(run_with(run, standing("better", "few-shot", "prompt")))
    assert re.findall(r"<h1[^>]*>(.*?)</h1>", page) == ["Worth it"] and "<details open>" not in page
    first = page[: page.index('id="examples"')]
    assert (
        first.index("<h1>")
        < first.index('class="chart forest')
        < first.index('class="costs"')
        < first.index("<summary>")
    )
    assert page.count('<article class="sample">') >= 3


def test_several_systems_against_one_keep_their_sentence(make_run: MakeRun) -> None:
    other = standing("better", "few-shot", "prompt") | {"name": "another"}
    assert answer_of(read_run(run_with(make_run(), standing("better", "few-shot", "prompt"), other))) is None


def test_a_run_ends_on_the_terminal_in_a_few_lines_and_with_verbose_in_all(make_run: MakeRun) -> None:
    run = run_with(make_run(), standing("better", "few-shot", "prompt"))

    def printed(verbose: bool) -> list[str]:
        file = io.StringIO()
        print_closing(run, Console(file=file, width=200), verbose)
        return file.getvalue().strip().splitlines()

    short = printed(False)
    assert len(short) <= 13 and short[0].startswith("Worth it. ") and any("━" in line for line in short)
    assert sum("report.html" in line for line in short) == 1 and short[-1].split()[:3] == ["next", "tuneloop", "serve"]
    assert len(printed(True)) > 2 * len(short)


def test_where_the_embedding_classifier_is_recommended_the_next_command_makes_it_a_run(make_run: MakeRun) -> None:
    minilm = "MiniLM + logistic regression"
    run = run_with(make_run(), standing("worse", minilm, "classical", -0.05))
    (run / "dataset").mkdir(exist_ok=True)
    found = answer(run)
    assert found.recommended == minilm and found.next == f"tuneloop run {run / 'dataset'} model=minilm"


def test_an_encoder_says_how_fast_it_answers(make_run: MakeRun) -> None:
    run = run_with(make_run(), standing("better", FOREST, "classical"))
    for file, changes in (("run.json", {"adapter": None, "weights": "encoder"}), ("eval.json", {})):
        value = json.loads((run / file).read_text()) | changes
        if file == "eval.json":
            value["costs"]["tuned"]["rows_per_second"] = 1234.5
        (run / file).write_text(json.dumps(value))
    assert "An encoder, which answered 1,234 rows a second" in answer(run).sentence
    assert answer(run).next == f"tuneloop serve {run}"
