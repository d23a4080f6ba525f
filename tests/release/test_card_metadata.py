"""The head of the card is what Hugging Face's own library reads, with the figures as they were measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tuneloop.records.artifact import ArtifactManifest
from tuneloop.records.record import as_record
from tuneloop.release.card import card_metadata
from tuneloop.release.export import export_run
from tuneloop.release.licences import licence_of

MANIFEST: Mapping[str, Any] = {
    "version": 1, "run": {"id": "run"}, "files": {},
    "id": "tickets-merged-0123", "format": "merged", "task": {"kind": "classification"}, "dataset": "tickets-01",
    "base": {"model": "llama-3.2-1b"},
    "evaluation": {
        "name": "tuned", "n": 40, "dataset": "tickets-01", "split": "test",
        "metrics": {"accuracy": {"value": 0.75, "low": 0.6, "high": 0.86}, "loss": {"value": None}},
    },
}  # fmt: skip


def read(manifest: Mapping[str, Any]) -> ModelCardData:
    record = as_record(ArtifactManifest, manifest, "artifact.json")
    text = f"---\n{card_metadata(record, licence_of(record.base.model))}\n---\n\n# A card\n"
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    return data


def test_the_hubs_library_reads_base_licence_data_and_figures() -> None:
    data = read(MANIFEST)
    assert (data.base_model, data.library_name, data.license) == ("meta-llama/Llama-3.2-1B", "transformers", "llama3.2")
    assert data.get("base_model_relation") == "finetune" and data.datasets == ["tickets-01"]
    assert data.model_name == "tickets-merged-0123"
    assert data.eval_results == [
        EvalResult(
            task_type="text-classification", dataset_type="tickets-01", dataset_name="tickets-01", dataset_split="test",
            metric_type="accuracy", metric_value=0.75,
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "library", "relation"),
    [("adapter", "peft", "adapter"), ("gguf", "gguf", "quantized"), ("merged", "transformers", "finetune")],
)
def test_each_format_names_the_library_that_loads_it(form: str, library: str, relation: str) -> None:
    data = read({**MANIFEST, "format": form})
    assert (data.library_name, data.get("base_model_relation")) == (library, relation)


def test_what_is_not_known_is_not_said(tmp_path: Path) -> None:
    data = read({**MANIFEST, "base": {"model": str(tmp_path)}, "evaluation": None, "dataset": ""})
    said = set(data.to_dict())
    assert not said & {"base_model", "base_model_relation", "license", "datasets", "model-index", "model_name"}


def test_an_artifacts_card_has_it(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    artifact = export_run(make_run(), "adapter")
    card = ModelCard.load(artifact.folder / "README.md")
    assert card.data.model_name == artifact.manifest["id"]
    assert card.data.eval_results[0].metric_value == 0.75
