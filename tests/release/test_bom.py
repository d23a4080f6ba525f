"""The bill of materials is what the official schema allows, and says what the artifact was made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core.files import read_json, write_json
from tuneloop.core.ui import reporting
from tuneloop.registry.integrity import verify
from tuneloop.release import bom
from tuneloop.release.export import export_run

pytest.importorskip("cyclonedx", reason="needs cyclonedx-python-lib")
MakeRun = Callable[..., Path]
DIGEST = "ab" * 32


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(make_run: MakeRun) -> Path:
    """A run with its data set's manifest."""
    folder = make_run()
    split = {"rows": 3, "sha256": DIGEST}
    counts = {"read": 9, "kept": 9, "rejected": 0, "train": 3, "val": 3, "test": 3}
    manifest = {
        "version": 1, "id": "tickets-0123456789ab", "hash": "c" * 64, "name": "tickets", "task": "classification",
        "sources": [{"path": "/home/ann/tickets.jsonl", "sha256": DIGEST, "rows": 9}], "config": {}, "counts": counts,
        "rejected": {}, "splits": {"train": split, "val": split, "test": split},
    }  # fmt: skip
    write_json(folder / "dataset" / "dataset.json", manifest)
    write_json(folder / "run.json", {**read_json(folder / "run.json"), "seconds": 7200.0, "tokens": 5})
    return folder


def properties(part: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in part["properties"]}


def test_it_is_valid_by_the_official_schema_and_names_all_that_went_in(run: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    artifact = export_run(run, "adapter")
    text = (artifact.folder / "artifact.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = json.loads(text)
    model = found["metadata"]["component"]
    assert model["type"] == "machine-learning-model" and model["name"] == artifact.manifest["id"]
    hashes = {part["name"]: part["hashes"][0]["content"] for part in model["components"]}
    known = {name: entry["sha256"] for name, entry in artifact.manifest["files"].items() if name != "artifact.cdx.json"}
    assert hashes == known
    told = properties(model)
    assert told["tuneloop:training.hours"] == "2.0" and told["tuneloop:train.rank"] == "16"
    metric = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]
    assert (metric["type"], metric["value"]) == ("accuracy", "0.75")
    assert metric["confidenceInterval"] == {"lowerBound": "0.6", "upperBound": "0.86"}
    base, data = sorted(found["components"], key=lambda part: part["type"], reverse=True)
    assert base["name"] == read_json(run / "run.json")["model"]
    assert data["type"] == "data" and {part["hashes"][0]["content"] for part in data["components"]} == {DIGEST}
    assert model["modelCard"]["modelParameters"]["datasets"] == [{"ref": data["bom-ref"]}]
    assert "/home/ann" not in text, "a folder of who prepared the data is nobody's business"


def test_a_broken_one_would_not_pass() -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    wrong = {"bomFormat": "CycloneDX", "specVersion": "1.6", "metadata": {"component": {"type": "model", "name": "x"}}}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(wrong)) is not None


def test_the_same_materials_make_the_same_text(run: Path) -> None:
    folder = export_run(run, "adapter").folder
    before = (folder / "artifact.cdx.json").read_bytes()
    export_run(run, "adapter")
    assert (folder / "artifact.cdx.json").read_bytes() == before and verify(folder).intact


def test_without_its_package_an_export_goes_on_and_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cyclonedx.model.bom", None)
    lines: list[str] = []
    with reporting(say=lines.append):
        artifact = export_run(run, "adapter")
    assert bom.BOM not in artifact.manifest["files"] and verify(artifact.folder).intact
    assert any("pip install 'tuneloop[release]'" in line for line in lines)
