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

from tuneloop.report.differences import marked_against
from tuneloop.report.eval_charts import confusion_chart
from tuneloop.report.eval_html import render_evaluation, write_page
from tuneloop.report.eval_parts import REST, evaluation_parts
from tuneloop.report.html import render_report
from tuneloop.report.table import comparison_as
from tuneloop.types import UserError

MakeRun = Callable[..., Path]
HOSTILE = "<script>alert(1)</script>&_{}%"


def breakdown(labels: list[str]) -> dict[str, Any]:
    """What an evaluation of `labels` says beyond its metrics: each label is once taken for the next."""
    cells = [[a, a, 9] for a in labels] + [[a, b, 1] for a, b in zip(labels, [*labels[1:], None], strict=True)]
    slices = [
        {"field": "language", "value": value, "n": 40, "score": score, "low": score - 0.1, "high": score + 0.1,
         "rest": 0.9, "delta": score - 0.9, "p": 0.001, "p_holm": 0.004, "verdict": verdict}
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
    assert sections(page) == ["comparison", "labels", "slices", "calibration", "errors", "costs", "samples", "record"]
    text = text_of(page)
    assert "language: de" in text and "Expected calibration error 0.040 [0.020, 0.070]" in text
    assert "tf-idf + logistic regression" in text and "0.871" not in text
    assert "label_01 taken for label_02: 1 of 10" in page
    assert "<script>alert" not in page and not re.findall(r'(?:src|href)="(?!#)', page)


def test_the_run_has_the_same_parts(evaluated: Callable[..., Path]) -> None:
    page = render_report(evaluated(run=True))
    assert sections(page)[:6] == ["comparison", "labels", "slices", "calibration", "errors", "costs"]


def test_words_that_the_reference_lacks_are_marked(evaluated: Callable[..., Path]) -> None:
    page = render_evaluation(evaluated("generation"))
    assert "<mark>die Kundin</mark>" in page or "<mark>die</mark>" in page
    parts = marked_against("Refund the order today.", "Refund the whole order today.")
    assert [text.strip() for kind, text in parts if kind] == ["whole"]
    assert "".join(text for _, text in parts) == "Refund the whole order today."
    assert marked_against("one two three", "something else entirely") == [("", "something else entirely")]


def test_a_comparison_speaks_of_its_own_contender(evaluated: Callable[..., Path]) -> None:
    page = text_of(render_evaluation(evaluated(name="evals/new")))
    assert "Where evals/new errs" in page and "tuned model errs" not in page


def test_of_many_labels_those_with_errors_are_drawn_and_none_is_lost() -> None:
    labels = [f"l{i:02}" for i in range(60)]
    cells = [[a, a, 10] for a in labels] + [["l07", "l09", 3], ["l55", None, 2]]
    found = evaluation_parts({"confusion": {"labels": labels, "cells": cells}})["labels"]
    assert found["part"] and found["pairs"][0] == (3, "l07", "l09")
    chart = str(found["chart"])
    assert "l07 taken for l09: 3 of 13" in chart and REST in chart
    assert sum(map(int, re.findall(r": (\d+) of \d+ right", chart))) * 1 >= 2 * 590


@pytest.mark.parametrize(
    "damaged",
    [{"slices": 3}, {"slices": [{"score": None}]}, {"confusion": {"cells": [1, [2]]}}, {"calibration": {"bins": [{}]}},
     {"per_class": [{}]}, {"errors": [{"n": 1}]}, {"costs": {"tuned": None}}],
)  # fmt: skip
def test_a_damaged_part_is_left_out(evaluated: Callable[..., Path], damaged: dict[str, Any]) -> None:
    assert "comparison" in sections(render_evaluation(evaluated(**damaged)))


def test_a_folder_without_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        write_page(tmp_path)


def test_one_label_makes_no_matrix() -> None:
    assert confusion_chart(["a"], {("a", "a"): 3}) == ""


# --- tables ------------------------------------------------------------------------------------


def table(form: Any, evaluated: Callable[..., Path], **more: Any) -> str:
    return comparison_as(json.loads((evaluated(**more) / "eval.json").read_text()), form)


def test_markdown_has_a_row_for_each_contender(evaluated: Callable[..., Path]) -> None:
    head, rule, *rows = table("markdown", evaluated, name="a|b").splitlines()
    assert head.startswith("|  | accuracy | macro-F1 |") and set(rule) <= set("|- ")
    assert len(rows) == 7 and rows[-1].startswith("| a\\|b | 0.87 [0.84, 0.90] |")


def test_latex_is_escaped(evaluated: Callable[..., Path]) -> None:
    found = json.loads((evaluated() / "eval.json").read_text())
    assert "$<$ 0.001" in comparison_as(found, "latex")
    text = comparison_as(found | {"name": "50 % of_all & more"}, "latex")
    assert r"50 \% of\_all \& more & 0.87" in text
    assert text.count(r" \\") == 8 and text.endswith("\\end{tabular}\n")


def test_csv_has_every_metric_and_no_formulas(evaluated: Callable[..., Path]) -> None:
    rows = list(csv.reader(io.StringIO(table("csv", evaluated, name="=cmd()"))))
    assert rows[0][:4] == ["contender", "accuracy", "accuracy_low", "accuracy_high"]
    assert rows[-1][0] == "'=cmd()" and float(rows[-1][1]) == 0.871
    assert len({len(row) for row in rows}) == 1


def test_the_command_prints_tables_and_refuses_others(evaluated: Callable[..., Path], cli: Any) -> None:
    folder = str(evaluated())
    assert cli("report", folder, "--table", "csv").stdout.startswith("contender,accuracy")
    assert json.loads(cli("report", folder, "--json").stdout)["report"].endswith("report.html")
    assert cli("report", folder, "--table", "word").returncode == 2
