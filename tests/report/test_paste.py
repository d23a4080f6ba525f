"""What is pasted elsewhere says what the report says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from report.test_answer import FOREST, MakeRun, run_with, standing
from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.report.facts import read_run
from tuneloop.report.paste import plot_comparison, summary_markdown


def test_the_chart_names_each_system_in_the_form_of_its_file(make_run: MakeRun, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    facts = read_run(run_with(make_run(), standing("better", FOREST, "classical")))
    for name, head in (("a.svg", b"<?xml"), ("a.png", b"\x89PNG"), ("a.PDF", b"%PDF")):
        plot_comparison(facts, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(head)
    assert "<dc:date>" not in (tmp_path / "a.svg").read_text()


def test_another_form_is_refused_before_anything_is_drawn(make_run: MakeRun, tmp_path: Path) -> None:
    facts = read_run(run_with(make_run(), standing("better", FOREST, "classical")))
    with pytest.raises(UserError, match="form"):
        plot_comparison(facts, tmp_path / "a.gif")


def test_the_paragraph_has_verdict_sentence_and_statistics(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(make_run(), standing("worse", FOREST, "classical", -0.1))
    assert summary_markdown(read_run(run)).startswith("**Worse than a classifier.** ")
    assert main(["compare", str(run), "--markdown", "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["markdown"]
    assert "\n" not in text and FOREST in text and "95 % interval" in text


def test_without_a_verdict_there_is_no_paragraph(make_run: MakeRun) -> None:
    with pytest.raises(UserError, match="no verdict"):
        summary_markdown(read_run(make_run()))
