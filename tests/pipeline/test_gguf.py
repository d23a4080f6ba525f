"""A GGUF artifact is measured through llama.cpp, compared with its run, and answers wherever a target is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder, read_json, read_yaml, write_json, write_yaml
from tuneloop.core.ui import reporting
from tuneloop.evaluation.config import EvalOptions
from tuneloop.evaluation.evaluate import FEWEST_SHARED
from tuneloop.inference.llamacpp.process import installed
from tuneloop.pipeline.answers.chat import open_chat
from tuneloop.pipeline.answers.predictions import predict
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.evaluate import evaluate_target
from tuneloop.records.artifact import NEAR_TIE, ArtifactManifest, EvaluationExcerpt, SameAnswers
from tuneloop.records.evaluation import Comparison
from tuneloop.records.record import read_record
from tuneloop.registry.registered import evaluation_place
from tuneloop.release.export import WeightOptions, export_run
from tuneloop.release.measure import acceptable, evaluation_of_run, parted, remove_stale_bases, rows_to_measure

MakeTuned = Callable[..., Path]


def tickets(n: int) -> list[dict[str, Any]]:
    text = ["where is it", "it is broken", "thank you"]
    return [{"text": f"{text[i % 3]}, order {i * 37}", "label": ["late", "lost", "thanks"][i % 3]} for i in range(n)]


pytestmark = pytest.mark.skipif(not installed(), reason="llama-cpp-py-sync is not installed")


def test_an_artifact_is_measured_and_says_what_it_lost(make_tuned: MakeTuned) -> None:
    run, said = make_tuned(tickets(120)), []
    with reporting(say=said.append):
        artifact = export_run(run, "gguf", weights=WeightOptions(quant="q8_0"))
    manifest = read_record(ArtifactManifest, artifact.folder)
    assert manifest.measured and manifest.evaluation is not None and manifest.cost is not None
    test = len((run / "dataset/test.jsonl").read_text().splitlines())
    assert manifest.evaluation.name == "q8_0" and manifest.evaluation.n == test > 5
    assert {(c.a, c.b) for c in manifest.evaluation.comparisons} == {("run", "q8_0")}
    assert manifest.same_answers is not None and manifest.same_answers.n == test and manifest.same_answers.share > 0.7
    assert manifest.quantisation is not None and 0 < (manifest.quantisation.kl or 0) < 0.1
    assert manifest.cost.file_bytes == manifest.files["tickets-q8_0.gguf"].bytes
    assert manifest.cost.answer_tokens_per_second > 0 and manifest.cost.peak_bytes > manifest.cost.file_bytes
    card = (artifact.folder / "README.md").read_text()
    assert "These metrics are this file's" in card and "| accuracy |" in card and "model-index" in card
    assert "This file was not measured" not in card and "nats on average" in card
    assert any(line.startswith("measured  On ") for line in said)
    assert not (artifact.folder / "samples.jsonl").exists(), "test rows do not travel"
    assert (run / "evals" / manifest.id / "samples.jsonl").is_file()
    assert any(line.startswith(f"warn: measured on {test} test rows") for line in said) == (test < FEWEST_SHARED)
    again = export_run(run, "gguf", weights=WeightOptions(quant="q8_0"))
    assert again.existed and again.manifest["evaluation"] == artifact.manifest["evaluation"]
    assert again.manifest["cost"] == artifact.manifest["cost"], "it is not measured a second time"
    said.clear()
    with reporting(say=said.append):
        export_run(run, "gguf", weights=WeightOptions(quant="q8_0", measure=1))
    few = f"warn: measured on 1 test row, and `gate` and `compare` need at least {FEWEST_SHARED} shared ones: give --measure {FEWEST_SHARED} or more"
    assert few in said


def test_a_merged_model_in_fp8_says_how_far_it_is_from_the_run_and_that_no_vllm_read_it(make_tuned: MakeTuned) -> None:
    pytest.importorskip("compressed_tensors")
    run, said = make_tuned(tickets(60)), []
    with reporting(say=said.append):
        artifact = export_run(run, "merged", weights=WeightOptions(quant="fp8"))
    manifest = read_record(ArtifactManifest, artifact.folder)
    assert manifest.format == "merged" and "-merged-fp8-" in manifest.id and not manifest.measured
    weights = manifest.quantisation
    assert weights is not None and weights.tensor_types["FP8"] == 14 and 0 < (weights.kl or 0) < 0.2
    assert any(line.startswith("measured  KL ") for line in said)
    card = (artifact.folder / "README.md").read_text()
    assert "No vLLM has read this file" in card and "This file was not measured" in card and "vllm serve" in card
    assert "base_model_relation: quantized" in card or "base_model:" not in card
    plain = read_record(ArtifactManifest, export_run(run, "merged").folder)
    assert plain.quantisation is None and plain.id != manifest.id, "the plain one is another artifact"
    assert (
        export_run(run, "merged", weights=WeightOptions(quant="fp8", measure=0)).manifest["quantisation"]
        == weights.model_dump()
    )
    with pytest.raises(UserError, match="rounded by importance"):
        export_run(run, "merged", weights=WeightOptions(quant="fp8", importance=5))
    with pytest.raises(UserError, match="have a type of weights") as caught:
        export_run(run, "adapter", weights=WeightOptions(quant="fp8"))
    assert "--format merged --quant fp8" in caught.value.next_step


def test_answers_that_differ_part_where_the_run_says_by_how_much(make_tuned: MakeTuned) -> None:
    rows = [
        {"prompt": f"{ticket['text']}?", "completion": f"it is {ticket['label']}: {n}"}
        for n, ticket in enumerate(tickets(60))
    ]
    run = make_tuned(rows)
    job = RunContext.of_run(run)
    asked, same = rows_to_measure(job, 5), SameAnswers(share=0.8, n=5)
    assert not isinstance(asked, str)
    theirs = evaluation_of_run(job, asked.dataset, asked.rows)
    assert parted(job, same, theirs, theirs) == same
    answers = [replace(theirs.answers[0], text="zebra"), *theirs.answers[1:]]
    found = parted(job, same, theirs, replace(theirs, answers=answers))
    assert (found.parted, found.ties) == (1, 0) and found.largest_gap is not None and found.largest_gap > NEAR_TIE
    assert "Of 1 other 0 part at a near tie" in found.others and not same.others
    longer = [replace(theirs.answers[0], text=f"{theirs.answers[0].text} zebra"), *theirs.answers[1:]]
    ended = parted(job, same, theirs, replace(theirs, answers=longer))
    assert ended.largest_gap is not None and ended.largest_gap > 0, (
        "the run prefers its end, by whichever token it ends"
    )


def test_a_lora_file_is_measured_on_its_base(make_tuned: MakeTuned) -> None:
    run = make_tuned(tickets(60))
    folder = export_run(run, "gguf-lora").folder
    manifest = read_record(ArtifactManifest, folder)
    assert manifest.measured and manifest.evaluation is not None and manifest.evaluation.name == "f32"
    assert manifest.same_answers is not None and manifest.same_answers.share == 1.0
    assert manifest.quantisation is not None and 0 <= (manifest.quantisation.kl or 0) < 1e-3, "the adapter applies"
    assert manifest.cost is not None and manifest.cost.file_bytes == manifest.files["tickets-lora-f32.gguf"].bytes
    assert "answered by llama.cpp on the base's GGUF file in f16" in (folder / "README.md").read_text()
    assert not list(run.glob(".base-*")), "the base's file is taken away"


def test_what_a_killed_export_left_goes_with_a_later_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (".base-killed", ".base-atwork"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "base.gguf").write_bytes(b"x")
    remove_stale_bases(tmp_path)
    assert len(list(tmp_path.glob(".base-*"))) == 2, "one that is new may be about to be locked"
    monkeypatch.setattr("tuneloop.release.measure.YOUNG", -1.0)
    with lock_folder(tmp_path / ".base-atwork"):
        remove_stale_bases(tmp_path)
    assert [left.name for left in tmp_path.glob(".base-*")] == [".base-atwork"]
    assert (tmp_path / ".base-atwork/base.gguf").is_file()


def test_structured_answers_are_asked_under_their_schema_and_texts_have_a_perplexity(make_tuned: MakeTuned) -> None:
    rows = [
        {"prompt": f"{ticket['text']}?", "completion": json.dumps({"queue": ticket["label"]})} for ticket in tickets(60)
    ]
    run = make_tuned(rows)
    schema = {"type": "object", "properties": {"queue": {"enum": ["late", "lost", "thanks"]}}, "required": ["queue"]}
    write_json(run / "schema.json", schema)
    config = read_yaml(run / "config.yaml")
    write_yaml(run / "config.yaml", {**config, "evaluate": {"json_schema": str(run / "schema.json"), "max_new_tokens": 24}})  # fmt: skip
    artifact = export_run(run, "gguf", weights=WeightOptions(quant="f32"))
    manifest = read_record(ArtifactManifest, artifact.folder)
    assert manifest.evaluation is not None and "perplexity" in manifest.evaluation.metrics
    pair = next(comparison for comparison in manifest.evaluation.comparisons if comparison.metric == "perplexity")
    assert abs(pair.delta) < 0.02 * manifest.evaluation.metrics["perplexity"].value, "as the run itself"
    assert manifest.structured is not None and manifest.structured.n == manifest.evaluation.n
    assert manifest.structured.share == 0, "a model of noise writes JSON under a schema only"
    assert "Held to its JSON Schema by llama.cpp's server" in (artifact.folder / "README.md").read_text()


def test_all_commands_ask_llamacpp_for_it(make_tuned: MakeTuned) -> None:
    run = make_tuned(tickets(60))
    folder = export_run(run, "gguf", weights=WeightOptions(quant="f16", measure=0)).folder
    assert not read_record(ArtifactManifest, folder).measured
    rows: list[Any] = [{"text": record["text"]} for record in tickets(6)]
    ours, theirs = list(predict(str(run), rows)), list(predict(str(folder), rows))
    assert [their.label for their in theirs] == [our.label for our in ours] and all(their.label for their in theirs)
    top = next(iter(predict(str(folder), rows[:1], top=3)))
    assert top.probabilities is not None and sum(top.probabilities.values()) == pytest.approx(1)
    chat = open_chat(str(folder))
    prompt = chat.rendered(chat.speakers[0], rows[0])
    assert prompt == open_chat(str(run)).rendered(open_chat(str(run)).speakers[0], rows[0])
    shown: list[str] = []
    assert chat.answer(chat.speakers[0], rows[0], shown.append).label == theirs[0].label
    (file,) = folder.glob("*.gguf")
    for name in (str(folder), str(file)):
        found = evaluate_target(name, EvalOptions(dataset=str(run / "dataset"), out=f"eval-{Path(name).name}"))
        samples = [json.loads(line) for line in (found.folder / "samples.jsonl").read_text().splitlines()]
        assert {sample["completion"]["engine"] for sample in samples} == {"llama.cpp"}
        assert read_json(found.folder / "eval.json")["n"] == len(samples) > 3
    several = evaluate_target(str(file), EvalOptions(dataset=str(run / "dataset"), out="ways"), ["consistency=2"])
    assert read_json(several.folder / "eval.json")["consistency"]["ways"] == 2


@pytest.mark.nightly
@pytest.mark.slow
def test_auto_takes_the_smallest_that_is_good_enough(make_tuned: MakeTuned, monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = make_tuned(tickets(60)), []
    monkeypatch.setattr("tuneloop.release.export.TRIED", ("q4_0", "q8_0", "f16"))
    monkeypatch.setattr("tuneloop.release.export.acceptable", lambda evaluation, most: evaluation.name != "q4_0")
    with reporting(say=said.append):
        found = export_run(run, "gguf", weights=WeightOptions(quant="auto"))
    assert found.manifest["quantisation"]["name"] == "q8_0" and len(list(Path("artifacts").iterdir())) == 1
    assert [line.split(":")[0] for line in said if line.startswith("tried")] == ["tried     q4_0", "tried     q8_0"]
    with pytest.raises(UserError, match=r"None of q4_0 loses at most 0\.01 within 1e-06 GB"):
        export_run(run, "gguf", weights=WeightOptions(quant="auto", max_gb=1e-6))
    for wanted, form in (
        (WeightOptions(quant="auto", measure=0), "gguf"),
        (WeightOptions(quant="auto"), "merged"),
        (WeightOptions(quant="auto", importance=3), "gguf"),
        (WeightOptions(quant="auto", max_loss=-1), "gguf"),
    ):
        with pytest.raises(UserError):
            export_run(run, form, weights=wanted)


@pytest.mark.parametrize(
    ("delta", "verdict", "good"),
    [
        (0.02, "better", True), (-0.005, "not enough evidence", True), (-0.005, "worse", False),
        (-0.03, "not enough evidence", False), (0.0, "not enough evidence", True),
    ],
)  # fmt: skip
def test_a_file_is_good_enough_if_it_lost_little_and_is_not_surely_worse(
    delta: float, verdict: str, good: bool
) -> None:
    pair = Comparison("run", "q", "accuracy", delta, delta - 0.01, delta + 0.01, 0.5, verdict)
    excerpt = EvaluationExcerpt(
        name="q", dataset="d", split="test", n=9, primary="accuracy", metrics={}, comparisons=[pair]
    )
    assert acceptable(excerpt, 0.01) is good


def test_the_gate_judges_the_artifact_and_not_only_its_run(make_tuned: MakeTuned, tmp_path: Path) -> None:
    run = make_tuned(tickets(120), name="run")
    shutil.move(run, tmp_path / "runs" / "run")
    run = tmp_path / "runs" / "run"
    evaluate_target(str(run))
    folder = export_run(run, "gguf", weights=WeightOptions(quant="q8_0")).folder
    path = Path(evaluation_place(str(folder)))
    assert path.resolve() == run / "evals" / folder.name
    suite = tmp_path / "suite.yaml"
    suite.write_text("name: strict\nmetrics: [{metric: accuracy, at_least: 0.999}]\n")
    assert main(["gate", str(folder), "--against", str(run), "--suite", str(suite), "-q"]) in (1, 3)
    assert (path / "gate.json").is_file() and not (run / "gate.json").is_file()
    with pytest.raises(UserError, match="The gate"):
        export_run(run, "gguf", weights=WeightOptions(quant="q8_0"))
    forced = export_run(run, "gguf", weights=WeightOptions(quant="q8_0"), force=True)
    assert forced.manifest["gate"]["forced"] and forced.manifest["gate"]["suite"]["name"] == "strict"
    assert forced.manifest["measured"] and "overruled with" in (folder / "README.md").read_text()
    assert export_run(run, "gguf", weights=WeightOptions(quant="f16", measure=0)).manifest["gate"]["status"] == "none"
    with pytest.raises(UserError, match="This artifact was not measured"):
        evaluation_place(str(next(Path("artifacts").glob("*f16*"))))


def test_an_export_that_renders_rows_otherwise_than_they_were_trained_leaves_nothing(
    make_tuned: MakeTuned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = make_tuned(tickets(120))
    monkeypatch.setattr("tuneloop.release.export.first_difference", lambda trained, exported, rows: rows[0])
    with pytest.raises(UserError, match="otherwise than it was trained"):
        export_run(run, "merged", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
