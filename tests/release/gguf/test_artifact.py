"""A GGUF artifact holds all that serving it takes, says what its tensors are, and asks for what can't be had in time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, write_json
from tuneloop.inference.llamacpp.process import installed
from tuneloop.models.methods.shipped import method_named
from tuneloop.models.trained import trained_folder
from tuneloop.release.artifact import form_for
from tuneloop.release.export import WeightOptions, export_run
from tuneloop.release.gguf.artifact import GgufSettings

MakeRun = Callable[..., Path]
TASK = {
    "version": 1, "kind": "classification", "format": "text_label", "columns": {"text": "body", "label": "label"},
    "system": "Sort the ticket.", "labels": ["late", "lost"], "answer": "choice",
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.skipif(not installed(), reason="llama-cpp-py-sync is not installed: nothing to quantise with")
def test_a_quantised_artifact_is_whole_and_counts_its_tensors(make_run: MakeRun) -> None:
    run = make_run()
    trained = trained_folder(run)
    write_json(trained / "tuneloop.json", {**read_json(trained / "tuneloop.json"), "task": TASK})
    artifact = export_run(run, "gguf", weights=WeightOptions(quant="Q8_0"))
    manifest = artifact.manifest
    assert manifest["id"].startswith("tickets-gguf-q8_0-") and manifest["format"] == "gguf"
    assert manifest["quantisation"]["name"] == "q8_0"
    assert manifest["quantisation"]["tensor_types"] == {"Q8_0": 15, "F32": 6}
    assert set(manifest["files"]) - {"artifact.cdx.json"} == {
        "Modelfile", "README.md", "tickets-q8_0.gguf", "tokenizer.json", "tokenizer_config.json", "tuneloop.json",
    }  # fmt: skip
    assert {path.name for path in artifact.folder.iterdir()} == {*manifest["files"], "artifact.json"}, (
        "no f16 file is left"
    )
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((artifact.folder / name).read_bytes()).hexdigest() == entry["sha256"]
    card = (artifact.folder / "README.md").read_text()
    assert "15 Q8_0, 6 F32" in card and "library_name: gguf" in card and "from_pretrained" not in card
    assert "This file was not measured" in card and "model-index" not in card
    assert "quantitativeAnalysis" not in (artifact.folder / "artifact.cdx.json").read_text()
    assert 'SYSTEM """Sort the ticket."""' in (artifact.folder / "Modelfile").read_text()
    assert read_json(artifact.folder / "tuneloop.json")["task"].items() >= TASK.items()
    again = export_run(run, "gguf", weights=WeightOptions(quant="q8_0"))
    assert again.existed and again.manifest["quantisation"] == manifest["quantisation"]


def test_the_adapter_alone_is_an_artifact_too(make_run: MakeRun) -> None:
    artifact = export_run(make_run(rslora=True), "gguf-lora")
    assert "model-index" in (artifact.folder / "README.md").read_text()  # fp32, as it was evaluated
    assert artifact.manifest["quantisation"] == {"name": "f32", "tensor_types": {"F32": 28}, "kl": None}
    assert "ADAPTER ./tickets-lora-f32.gguf" in (artifact.folder / "Modelfile").read_text()


def test_what_makes_no_sense_is_refused_before_anything_is_written(make_run: MakeRun) -> None:
    run = make_run()
    for form, quant, reason in (
        ("gguf", "q4km", "did you mean q4_k_m"),
        ("gguf-lora", "q4_0", "not quantised"),
        ("merged", "q4_0", "add --format gguf"),
        ("ggfu", "", "did you mean gguf"),
    ):
        with pytest.raises(UserError) as refused:
            export_run(run, form, weights=WeightOptions(quant=quant))
        assert reason in f"{refused.value}" and not Path("artifacts").exists()
    with pytest.raises(UserError, match="is not quantised"):
        GgufSettings("gguf", "f16", dict)


@pytest.mark.parametrize(
    ("method", "form", "way_out"), [("prefix", "gguf", "adapter"), ("full", "gguf-lora", "merged")]
)
def test_a_method_that_cannot_be_written_so_says_what_can(method: str, form: str, way_out: str) -> None:
    with pytest.raises(UserError) as refused:
        form_for(method_named(method), form)
    assert f"--format {way_out}" in str(refused.value.next_step)


def test_dora_is_refused_as_a_lora_file_and_merged_into_a_whole_one(make_run: MakeRun) -> None:
    run = make_run(dora=True)
    with pytest.raises(UserError, match="DoRA") as refused:
        export_run(run, "gguf-lora")
    assert "--format gguf" in str(refused.value.next_step)
    assert export_run(run, "gguf").manifest["quantisation"]["tensor_types"] == {"F16": 15, "F32": 6}
