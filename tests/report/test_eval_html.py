"""The page of an evaluation by itself, its parts on the run's page, and the table to paste."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core.errors import UserError
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import evaluate
from tuneloop.evaluation.paired import compare
from tuneloop.evaluation.results import ComparedWith, write_evaluation
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Confusion, EvaluationManifest, Subject
from tuneloop.records.record import read_record
from tuneloop.records.rows import Row
from tuneloop.report.comparison import comparison_as
from tuneloop.report.eval_parts import REST, confusion_chart, evaluation_parts
from tuneloop.report.html import render_evaluation, render_report, write_page
from tuneloop.report.samples import marked_against

MakeRun = Callable[..., Path]
HOSTILE = "<script>alert(1)</script>&_{}%"


def breakdown(labels: list[str]) -> dict[str, Any]:
    """What an evaluation of `labels` says beyond its metrics: each label is once taken for the next."""
    cells = [[a, a, 9] for a in labels] + [[a, b, 1] for a, b in zip(labels, [*labels[1:], None], strict=True)]
    slices = [
        {"field": "language", "value": value, "n": 40, "score": score, "low": score - 0.1, "high": score + 0.1,
         "rest": 0.9, "delta": score - 0.9, "delta_low": score - 1.0, "delta_high": score - 0.8, "p": 0.001, "p_holm": 0.004, "verdict": verdict}
        for value, score, verdict in [("de", 0.6, "worse"), ("en", 0.95, "better"), (HOSTILE, 0.9, "not enough evidence")]
    ]  # fmt: skip
    return {
        "primary": "accuracy",
        "per_class": [{"label": a, "n": 10, "precision": 0.9, "recall": 0.9, "f1": 0.9, "predicted": 10, "invalid": 0} for a in labels],
        "confusion": {"labels": labels, "cells": cells},
        "slices": slices,
        "calibration": {
            "ece": {"value": 0.04, "low": 0.02, "high": 0.07},
            "bins": [{"low": 0.8, "high": 0.9, "n": 40, "confidence": 0.85, "accuracy": 0.8},
                     {"low": 0.9, "high": 1.0, "n": 90, "confidence": 0.97, "accuracy": 0.96}],
        },
        "errors": [{"terms": ["card", "lost"], "n": 7, "ids": ["a"], "example": HOSTILE}],
    }  # fmt: skip


@pytest.fixture
def evaluated(make_run: MakeRun) -> Callable[..., Path]:
    """An evaluation's folder by itself (or a run's) with all parts."""

    def make(kind: str = "classification", *, run: bool = False, labels: int = 5, **more: Any) -> Path:
        folder = make_run(kind)
        found = json.loads((folder / "eval.json").read_text())
        found |= breakdown([f"label_{i:02}" for i in range(labels)]) | more
        (folder / "eval.json").write_text(json.dumps(found))
        if not run:
            for path in folder.iterdir():
                if path.is_file() and path.name not in ("eval.json", "samples.jsonl"):
                    path.unlink()
        return folder

    return make


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', page)


def text_of(page: str) -> str:
    return re.sub(r"<[^>]+>", "", page.replace("<wbr>", ""))


def test_an_evaluation_by_itself_has_a_page_with_all_its_parts(evaluated: Callable[..., Path]) -> None:
    page = write_page(evaluated()).read_text()
    assert sections(page) == ["samples", "comparison", "labels", "slices", "calibration", "errors", "costs", "record"]
    text = text_of(page)
    assert "language: de" in text and "Expected calibration error 0.040 [0.020, 0.070]" in text
    assert "tf-idf + logistic regression" in text and "0.871" not in text
    assert "label_01 taken for label_02: 1 of 10" in page
    assert "<script>alert" not in page and not re.findall(r'(?:src|href)="(?!#)', page)


def test_the_run_has_the_same_parts(evaluated: Callable[..., Path]) -> None:
    page = render_report(evaluated(run=True))
    assert sections(page)[:7] == ["samples", "comparison", "labels", "slices", "calibration", "errors", "costs"]


EFFECTS = {
    "forgetting": {"score": {"value": 0.18, "low": 0.05, "high": 0.33}, "loss": {"value": 0.41, "low": 0.3, "high": 0.52}, "n": 80,
                   "base": {"token_f1": 0.31, "loss": 2.1}, "tuned": {"token_f1": 0.254, "loss": 2.51}, "words": "It has forgotten."},
    "memorisation": {"share": {"value": 0.5, "low": 0.25, "high": 0.75}, "base": {"value": 0.0, "low": 0.0, "high": 0.2},
                     "beyond": {"value": 0.5, "low": 0.2, "high": 0.75}, "words": f"Known by heart: {HOSTILE}"},
}  # fmt: skip


def test_side_effects_of_tuning_stand_on_the_page_with_before_and_after(evaluated: Callable[..., Path]) -> None:
    page = render_evaluation(evaluated(**EFFECTS))
    assert "effects" in sections(page)
    text = " ".join(text_of(page).split())
    for part in (
        "It has forgotten.", "token F10.3100.254−18.0 % [−33.0, −5.0]", "loss2.1002.510+0.410 [+0.300, +0.520]",
        "completed verbatim0.00 [0.00, 0.20]0.50 [0.25, 0.75]+0.500 [+0.200, +0.750]",
    ):  # fmt: skip
        assert part in text, part
    assert "<script>alert" not in page


def test_a_part_that_could_not_be_measured_says_why(evaluated: Callable[..., Path]) -> None:
    page = render_evaluation(evaluated(memorisation={"n": 0, "words": "All answers are shared: nothing to memorise."}))
    assert "nothing to memorise" in text_of(page) and "Training rows known by heart" in page


def test_gains_point_the_same_way_in_every_table_of_a_page(evaluated: Callable[..., Path]) -> None:
    entry = {
        **dict.fromkeys(("value", "low", "high", "training_seconds", "training_usd", "prompt_tokens", "tokens"), 0),
        "p": None,
        "metric": "accuracy",
        "gain": None,
        "gain_low": None,
        "gain_high": None,
        "verdict": "",
        "usd_per_1000": 0.026,
    }
    won = {"gain": 0.4, "gain_low": 0.24, "gain_high": 0.53, "verdict": "better", "usd_per_1000": 0.0037}
    leaderboard = [entry | {"name": "few-shot", "kind": "prompt"}, entry | won | {"name": "tuned", "kind": "tuned"}]
    costs = {
        "few-shot": {"seconds": 100.0, "usd": 0.001, "prompt_tokens": 150_000, "tokens": 5000, "training_seconds": 0.0},
        "tuned": {"seconds": 35.0, "usd": 0.001, "prompt_tokens": 20_000, "tokens": 5000, "training_seconds": 48.0, "training_usd": 0.00066},
    }  # fmt: skip
    folder = evaluated(leaderboard=leaderboard, costs=costs)
    found = evaluation_parts(read_record(EvaluationManifest, folder))["leaderboard"]
    few, tuned = found["lines"]
    assert (few["gain"], few["prompt"], few["seconds"], few["thousand"]) == (("+0.62", "[0.58, 0.67]"), "300", "200 ms", "$0.026")  # fmt: skip
    assert tuned["gain"] == ("", ""), "the tuned model gains nothing over itself"
    assert (tuned["training"], tuned["thousand"]) == ("0.8 min, $0.00066", "$0.0037")
    page = render_evaluation(folder)
    assert page.count("Gain: of tuned over each line; positive means that tuned is better.") == 2
    start = page.index('id="comparison"')
    comparison = page[start : page.index("</table>", start)]
    assert "+0.62" in comparison, "the same figure as in the other table"
    evaluation = read_record(EvaluationManifest, folder)
    before = evaluation_parts(evaluation.model_copy(update={"comparisons": []}))["leaderboard"]
    assert before["against"] == "Gain: of each line over few-shot; positive means that the line is better."


def test_disagreements_are_told(evaluated: Callable[..., Path]) -> None:
    rows = [{"id": "r0001", "score": 1.0, "other": 0.0}]
    apart = {"few-shot": {"metric": "accuracy", "better": 30, "worse": 4, "rows": rows}}
    page = render_evaluation(evaluated(disagreements=apart, judge={"words": ["It prefers A.", HOSTILE]}))
    assert {"disagreements", "judge"} <= set(sections(page))
    text = " ".join(text_of(page).split())
    assert "few-shot304" in text and "It prefers A." in text
    assert "<script>alert" not in page


def test_words_that_the_reference_lacks_are_marked(evaluated: Callable[..., Path]) -> None:
    page = render_evaluation(evaluated("generation"))
    assert "<mark>die Kundin</mark>" in page or "<mark>die</mark>" in page
    parts = marked_against("Refund the order today.", "Refund the whole order today.")
    assert [text.strip() for kind, text in parts if kind] == ["whole"]
    assert "".join(text for _, text in parts) == "Refund the whole order today."
    assert marked_against("one two three", "something else entirely") == [("", "something else entirely")]


def test_a_comparison_speaks_of_its_own_system(evaluated: Callable[..., Path]) -> None:
    page = text_of(render_evaluation(evaluated(name="evals/new")))
    assert "Where evals/new errs" in page and "tuned model errs" not in page


def test_of_many_labels_those_with_errors_are_drawn_and_none_is_lost() -> None:
    labels = [f"l{i:02}" for i in range(60)]
    cells: list[Any] = [(a, a, 10) for a in labels] + [("l07", "l09", 3), ("l55", None, 2)]
    evaluation = EvaluationManifest(n=605, metrics={}, confusion=Confusion(labels=labels, cells=cells))
    found = evaluation_parts(evaluation)["labels"]
    assert found["part"]
    chart = str(found["chart"])
    assert "l07 taken for l09: 3 of 13" in chart and REST in chart
    assert sum(map(int, re.findall(r": (\d+) of \d+ right", chart))) * 1 >= 2 * 590


@pytest.mark.parametrize(
    "damaged",
    [{"slices": 3}, {"slices": [{"score": None}]}, {"confusion": {"cells": [1, [2]]}}, {"calibration": {"bins": [{}]}},
     {"per_class": [{}]}, {"errors": [{"n": 1}]}, {"costs": {"tuned": None}}, {"forgetting": {"words": 3}}, {"consistency": {"values": []}},
     {"memorisation": {"share": 1}}, {"leaderboard": [{"name": "tuned", "gain": "x"}]}, {"judge": 3},
     {"disagreements": {"few-shot": {"rows": 3}}}],
)  # fmt: skip
def test_a_damaged_evaluation_is_named_and_the_rest_of_the_run_is_shown(
    evaluated: Callable[..., Path], damaged: dict[str, Any]
) -> None:
    page = render_report(evaluated(run=True, **damaged))
    key = next(iter(damaged))
    assert f"eval.json could not be read: The file is damaged: {key}" in text_of(page)
    assert {"training", "data", "samples"} <= set(sections(page)) and "comparison" not in sections(page)


def test_of_a_damaged_evaluation_alone_the_error_says_what_is_wrong(evaluated: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"eval\.json could not be read: The file is damaged: slices"):
        render_evaluation(evaluated(slices=3))


CONSISTENCY = {
    "rows": 20,
    "ways": 3,
    "asked": {"as it is": 20, "typo": 20, "case": 20},
    "values": {"agreement": {"value": 0.9, "low": 0.8, "high": 0.95}},
    "same_as_plain": {"typo": 0.8, "case": 1.0},
    "examples": [
        {"id": "r", "reference": "late", "ways": [{"kind": "as it is", "question": "Where <b>is</b> it?", "answer": "late"},
                                                  {"kind": "typo", "question": "Wheer is it?", "answer": "lost & found"}]},
        {"id": "s"},
    ],
    "words": ["Asked 3 ways, the tuned model has the same answer in 90.0 % of the pairs of answers on 20 rows."],
}  # fmt: skip


def test_consistency_is_a_section_with_kinds_and_contradictions(evaluated: Callable[..., Path]) -> None:
    page = render_evaluation(evaluated(consistency=CONSISTENCY))
    assert "consistency" in sections(page)
    part = page[page.index('id="consistency"') :]
    part = part[: part.index("</section>")]
    assert CONSISTENCY["words"][0] in part
    assert "0.90 [0.80, 0.95]" in part and part.index("typo") < part.index("0.80<")
    assert "same answer" in part and "right in every way" not in part
    assert "Wheer is it?" in part and "lost &amp; found" in part and "<b>is</b>" not in part


def test_a_folder_without_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        write_page(tmp_path)


def test_names_that_begin_alike_stay_apart_in_a_narrow_matrix() -> None:
    names = ["balance_not_updated_after_bank_transfer", "balance_not_updated_after_cheque_or_cash_deposit"]
    chart = str(confusion_chart(names, {(names[0], names[1]): 3}, 354))
    written = re.findall(r"<text[^>]*>([^<]*…[^<]*)</text>", chart)
    assert len(set(written)) == len(written) == 4


def test_a_confusion_matrix_says_which_axis_is_true_and_which_predicted() -> None:
    chart = str(confusion_chart(["a", "b"], {("a", "b"): 3, ("b", "b"): 1}))
    assert re.findall(r'class="legend"[^>]*>(\w+)<', chart) == ["predicted", "true"]


def test_one_label_makes_no_matrix() -> None:
    assert confusion_chart(["a"], {("a", "a"): 3}) == ""


# --- tables ------------------------------------------------------------------------------------


def table(form: Any, evaluated: Callable[..., Path], **more: Any) -> str:
    return comparison_as(read_record(EvaluationManifest, evaluated(**more)), form)


def test_markdown_has_a_row_for_each_system(evaluated: Callable[..., Path]) -> None:
    head, rule, *rows = table("markdown", evaluated, name="a|b").splitlines()
    assert head.startswith("|  | accuracy | macro-F1 |") and set(rule) <= set("|- ")
    assert len(rows) == 7 and rows[-1].startswith("| a\\|b | 0.87 [0.84, 0.90] |")


def test_latex_is_escaped(evaluated: Callable[..., Path]) -> None:
    found = read_record(EvaluationManifest, evaluated())
    assert "$<$ 0.001" in comparison_as(found, "latex")
    text = comparison_as(found.model_copy(update={"name": "50 % of_all & more"}), "latex")
    assert r"50 \% of\_all \& more & 0.87" in text
    assert text.count(r" \\") == 8 and text.endswith("\\end{tabular}\n")


def test_csv_has_every_metric_and_no_formulas(evaluated: Callable[..., Path]) -> None:
    rows = list(csv.reader(io.StringIO(table("csv", evaluated, name="=cmd()"))))
    assert rows[0][:4] == ["system", "accuracy", "accuracy_low", "accuracy_high"]
    assert rows[-1][0] == "'=cmd()" and float(rows[-1][1]) == 0.871
    assert len({len(row) for row in rows}) == 1


def test_the_command_prints_tables_and_refuses_others(evaluated: Callable[..., Path], cli: Any) -> None:
    folder = str(evaluated())
    assert cli("compare", folder, "--table", "csv").stdout.startswith("system,accuracy")
    assert json.loads(cli("compare", folder, "--json").stdout)["report"].endswith("report.html")
    assert cli("compare", folder, "--table", "word").returncode == 2


@pytest.mark.parametrize(
    ("verdict", "text"),
    [("not enough evidence", "The one slice is not significantly worse"), ("worse", "adjusted for the one slice")],
)
def test_one_slice_and_one_row_are_spoken_of_in_the_singular(
    evaluated: Callable[..., Path], verdict: str, text: str
) -> None:
    slices = [{**breakdown(["label_00", "label_01"])["slices"][0], "verdict": verdict}]
    page = text_of(render_evaluation(evaluated(slices=slices, n=1)))
    assert text in page and "1 slices" not in page and "1 rows" not in page


def test_the_table_of_a_page_names_the_verdict_of_the_headline(evaluated: Callable[..., Path]) -> None:
    claim = {"metric": "macro_f1", "outcome": "worse", "gain": -0.08, "low": -0.12, "high": -0.03, "p": 0.004}
    decides = {**claim, "metric": "accuracy", "outcome": "not enough evidence", "low": -0.3, "high": 0.2, "p": 0.8}
    standing = {
        "name": "tuned", "against": "few-shot", "kind": "prompt", "outcome": "worse", "gain": -0.08, "low": -0.3, "high": 0.2,
        "p": 0.8, "p_holm": 0.8, "claims": [decides, claim],
    }  # fmt: skip
    verdict = {"sentence": "s", "name": "tuned", "outcome": "worse", "metric": "accuracy", "standings": [standing]}
    folder = evaluated(verdict=verdict, primary="accuracy")
    assert "worse by macro-F1" in text_of(render_evaluation(folder))
    assert "| worse by macro-F1 |" in comparison_as(read_record(EvaluationManifest, folder), "markdown")


def test_answers_in_json_have_a_table_of_fields_and_wrong_ones_say_which_differ(tmp_path: Path) -> None:
    cards = [{"number": f"R-{i}", "total": i, "town": ["Ulm", "Bern"][i % 2]} for i in range(12)]
    rows = [
        Row(f"r{i}", [{"role": "user", "content": f"mail {i}"}, {"role": "assistant", "content": json.dumps(card)}])
        for i, card in enumerate(cards)
    ]
    config = EvaluateConfig(bootstrap=100, embedding=False)
    own, few = (
        evaluate(
            rows, [Completion(json.dumps({**card, **({"total": -1} if i < wrong else {})})) for i, card in enumerate(cards)],
            task="generation", labels=None, config=config, seed=0,
        )
        for wrong in (1, 6)
    )  # fmt: skip
    write_evaluation(
        tmp_path,
        own,
        Subject("m", "d", "test"),
        ComparedWith({"few-shot": few}, compare("few-shot", few, "tuned", own)),
    )
    page = re.sub(r"<[^>]+>", " ", render_evaluation(tmp_path).replace("<wbr>", ""))
    assert re.search(r"field\s+measured by\s+few-shot\s+tuned", page)
    assert re.search(r"total\s+exact match\s+0\.50 \[0\.25, 0\.75\]\s+0\.92 \[", page)
    assert "of few-shot" in page and "total is -1, not 0" in page
