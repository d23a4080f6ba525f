"""`tuneloop compare`: the verdict first, gains with one sign, and what differs between the runs' settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tuneloop.cli.main import app
from tuneloop.core.files import write_yaml
from tuneloop.evaluation.alternatives.constants import MAJORITY
from tuneloop.evaluation.comparison import notes_of
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import ScoredAnswers, evaluate
from tuneloop.evaluation.paired import compare
from tuneloop.evaluation.results import ComparedWith, write_evaluation
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import EvaluationManifest, Subject
from tuneloop.records.rows import Row


def run_folder(folder: Path, right: int, rate: float, **settings: object) -> Path:
    """A run's folder with an evaluation of 100 rows."""
    labels = ["a", "b"] * 50
    rows = [
        Row(f"r{i}", [{"role": "user", "content": f"text {i}"}, {"role": "assistant", "content": label}], label)
        for i, label in enumerate(labels)
    ]
    answers = [Completion(label if i < right else "ab"[label == "a"]) for i, label in enumerate(labels)]
    config = EvaluateConfig.model_validate({"bootstrap": 300, **settings})
    result = evaluate(rows, answers, task="classification", labels=["a", "b"], config=config, seed=0)
    write_evaluation(folder, result, Subject("m", "d", "test"))
    write_yaml(folder / "config.yaml", {"version": 1, "output_dir": str(folder), "train": {"learning_rate": rate}})
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path / "old", 60, 0.001)
    run_folder(tmp_path / "new", 95, 0.0002)
    return tmp_path


def said(*arguments: str) -> list[str]:
    found = CliRunner().invoke(app, ["compare", *arguments])
    assert found.exit_code == 0, (found.output, found.exception)
    return found.stdout.splitlines()


def test_the_first_line_is_the_verdict_and_settings_that_differ_are_listed(runs: Path) -> None:
    lines = said("old", "new")
    assert lines[0].startswith("Better than old: accuracy 95.0 %, +35.0 points")
    text = " ".join(" ".join(lines).split())
    assert "Gain: of new over each line; positive means that new is better" in text
    assert "train.learning_rate 0.001 0.0002" in text and "output_dir" not in text


def test_turned_round_it_is_worse_by_the_same_amount(runs: Path) -> None:
    lines = said("new", "old")
    assert lines[0].startswith("Worse than new") and "-35.0 points" in lines[0]


def test_with_the_same_settings_it_says_so(runs: Path) -> None:
    run_folder(runs / "again", 60, 0.001)
    assert "The runs have the same settings." in said("old", "again")


def test_several_are_each_told_against_the_first(runs: Path) -> None:
    run_folder(runs / "again", 60, 0.001)
    lines = said("old", "new", "again")
    assert lines[0].startswith("Against old, by accuracy on 100 test rows:")
    assert "new better (+35.0 points)" in lines[0] and "again not enough evidence (+0.0 points)" in lines[0]


def with_constant(folder: Path, right: int) -> Path:
    """An evaluation whose baselines have the constant answer, right on 80 of 100 rows."""
    labels = ["a"] * 80 + ["b"] * 20
    rows = [
        Row(f"r{i}", [{"role": "user", "content": f"text {i}"}, {"role": "assistant", "content": label}], label)
        for i, label in enumerate(labels)
    ]

    def scored(texts: list[str]) -> ScoredAnswers:
        config = EvaluateConfig.model_validate({"bootstrap": 300, "primary": "accuracy"})
        answers = list(map(Completion, texts))
        return evaluate(rows, answers, task="classification", labels=["a", "b"], config=config, seed=0)

    wrong = ["ab"[label == "a"] for label in labels]
    result, constant = scored([*labels[:right], *wrong[right:]]), scored(["a"] * 100)
    pairs = compare(MAJORITY, constant, "tuned", result)
    write_evaluation(folder, result, Subject("m", "d", "test"), ComparedWith({MAJORITY: constant}, pairs))
    return folder


def test_a_system_that_is_behind_the_constant_answer_is_not_better_than_another_one(runs: Path) -> None:
    with_constant(runs / "useless", 20)
    with_constant(runs / "less_useless", 60)
    with_constant(runs / "useful", 99)
    lines = said("useless", "less_useless")
    assert lines[0].startswith('Worse than always answering "a"'), lines[0]
    manifest = json.loads((runs / "evals" / "compare-useless-less_useless" / "eval.json").read_text())
    assert manifest["verdict"]["outcome"] == "worse" and {"useless", MAJORITY} == set(manifest["baselines"])
    lines = said("useless", "useful")
    assert lines[0].startswith("Better than useless"), "the constant is named where it is ahead"
    lines = said("useless", "useful", "less_useless")
    assert 'No better than always answering "a"' in lines[0] and lines[0].endswith(": less_useless.")
    found = CliRunner().invoke(app, ["compare", "useless", "less_useless", "--fail-if", "worse"])
    assert found.exit_code == 0, "what must not be worse was named"


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_table_fits_the_terminal_with_gain_and_verdict_of_each_line(
    runs: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    long = "a-run-with-a-long-name-59cb4f92"
    run_folder(runs / long, 61, 0.001)
    monkeypatch.setenv("COLUMNS", str(width))
    lines = said("old", "new", long)
    start = next(i for i, line in enumerate(lines) if "verdict" in line and "gain" in line)
    table = lines[start : start + lines[start:].index(next(x for x in lines[start:] if not x.strip()))]
    assert max(len(line.rstrip()) for line in table) <= width
    text = "\n".join(table)
    assert "better" in text and "p < 0.001" in text and "[0.2" in text  # the interval of the gain is whole
    assert any(line.rstrip().endswith("not enough") for line in table)
    assert any(line.rstrip().endswith("evidence") for line in table)
    columns = lines[start].replace(" F1", "").split()
    left_out = any(line.startswith("On the page, too wide for here:") for line in lines)
    assert left_out == ("macro-F1" not in columns), columns


def test_a_system_of_an_evaluation_brings_its_own_notes_and_no_others() -> None:
    manifest = EvaluationManifest.model_validate(
        {"version": 1, "name": "tuned", "n": 1, "metrics": {}, "baselines": {"few-shot": {}, "few-shot calibrated": {}},
         "notes": ["3 rows are odd.", "few-shot: 2 answers were cut.", "few-shot calibrated: 1 answer was cut."]}
    )  # fmt: skip
    assert notes_of(manifest) == notes_of(manifest, "tuned") == ["3 rows are odd."]
    assert notes_of(manifest, "few-shot") == ["2 answers were cut."]
