"""An evaluation is written, and read back as it was."""

import json

import pytest
from evaluations import FAST, cards_evaluation, labels_evaluation, row, written

from tuneloop.core.errors import UserError
from tuneloop.evaluation.evaluate import evaluate
from tuneloop.evaluation.paired import compare
from tuneloop.evaluation.results import ComparedWith, load_evaluation, write_evaluation
from tuneloop.evaluation.scoring import AnswerStats
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Subject


def test_what_is_written_keeps_the_contract(tmp_path):
    tuned, base = labels_evaluation(30, 0.9, seed=1), labels_evaluation(30, 0.5, seed=2)
    manifest = json.loads(written(tmp_path, tuned, {"zero-shot": base}).read_text())
    assert manifest["version"] == 1 and manifest["n"] == 30 and manifest["key"] == "abc"
    assert set(manifest["metrics"]["accuracy"]) == {"value", "low", "high"}
    assert manifest["baselines"]["zero-shot"]["macro_f1"]["value"] == base.metrics["macro_f1"].value
    assert {"a", "b", "metric", "delta", "low", "high", "p", "verdict"} <= set(manifest["comparisons"][0])
    assert manifest["words"]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [s["id"] for s in samples] == [r.id for r in tuned.rows]
    first = samples[0]
    assert first["prompt"] == "question 0" and first["reference"] == first["label"] == "label_0"
    assert first["baselines"] == {"zero-shot": base.answers[0].text}
    assert first["scores"]["accuracy"] in (0, 1)


@pytest.mark.parametrize("kind", ["labels", "cards"])
def test_what_is_loaded_is_what_was_written(tmp_path, kind):
    make = (
        (lambda k: labels_evaluation(30, k / 10, seed=k)) if kind == "labels" else (lambda k: cards_evaluation(12, k))
    )
    tuned, base = make(9), make(5)
    written(tmp_path, tuned, {"zero-shot": base})
    for loaded, original in ((load_evaluation(tmp_path), tuned), (load_evaluation(tmp_path, "zero-shot"), base)):
        assert loaded.metrics == original.metrics
        assert loaded.row_scores == original.row_scores
        assert loaded.rows == original.rows
    again = compare(
        "zero-shot", load_evaluation(tmp_path, "zero-shot"), "tuned", load_evaluation(tmp_path / "eval.json")
    )
    before = compare("zero-shot", base, "tuned", tuned)
    assert [*map(repr, again)] == [
        *map(repr, before)
    ]  # repr: from Python 3.13 on, records with nan differ from themselves


def test_hostile_text_several_references_and_perplexity_survive_the_files(tmp_path):
    rows = [row(0, "a", references=["a", "b"]), row(1, "\ud800 <script>\u2028\r\n")]
    answers = [Completion("b"), Completion("\ud800 \x00")]
    tuned = evaluate(rows, answers, task="chat", labels=None, config=FAST, seed=0, measured=AnswerStats(perplexity=2.0))
    written(tmp_path, tuned, {})
    loaded = load_evaluation(tmp_path)
    assert loaded.answers == answers
    assert loaded.row_scores == tuned.row_scores
    assert loaded.metrics["perplexity"].value == 2.0
    assert loaded.metrics["exact_match"].value == 0.5


def test_a_baseline_on_other_rows_leaves_no_finished_folder(tmp_path):
    with pytest.raises(UserError, match="other rows"):
        write_evaluation(
            tmp_path,
            labels_evaluation(20, 0.9),
            Subject("m", "d", "test"),
            ComparedWith({"zero-shot": labels_evaluation(21, 0.9)}, []),
        )
    assert not (tmp_path / "eval.json").exists()


def test_missing_and_damaged_evaluations_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="No evaluation"):
        load_evaluation(tmp_path)
    written(tmp_path, labels_evaluation(20, 0.9), {})
    with pytest.raises(UserError, match="no answers of 'few-shot'"):
        load_evaluation(tmp_path, "few-shot")
    lines = (tmp_path / "samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(UserError, match="19 rows"):
        load_evaluation(tmp_path)
    (tmp_path / "eval.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        load_evaluation(tmp_path)
