"""A run that an object store keeps goes on from its checkpoint on another machine, which has nothing of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gcs_stand_in
import pytest
import s3_stand_in

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl
from tuneloop.core.object_store import Store, open_store
from tuneloop.core.ui import reporting
from tuneloop.pipeline.train import train_alone
from tuneloop.recipe import Recipe, make_recipe

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(params=["memory", "s3", "gs"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket: in fsspec's memory, and of servers that speak as S3 and as Google Cloud Storage."""
    if request.param == "gs":
        with gcs_stand_in.gcs_store(monkeypatch):
            yield f"gs://{gcs_stand_in.BUCKET}"
        return
    if request.param == "s3":
        with s3_stand_in.s3_store(monkeypatch):
            yield f"s3://{s3_stand_in.BUCKET}"
        return
    yield "memory://bucket"
    system = fsspec.filesystem("memory")
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, bucket: str) -> Recipe:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"The {'late' if n % 2 else 'early'} parcel {n * 7}", "label": "ab"[n % 2]} for n in range(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "rows", "model": str(tiny_llama), "data": {"sources": ["rows.jsonl"], "split": {"val": 0.2}},
        "train": {"epochs": 2, "rows_per_step": 8, "rank": 4, "checkpoint_steps": 2},
        "track": {"report_to": []}, "store": f"{bucket}/rows",
    }  # fmt: skip
    return make_recipe(values)


class Lost(Exception):
    """The machine is gone."""


@pytest.mark.slow
def test_another_machine_goes_on_from_the_checkpoint_and_the_result_is_there(recipe: Recipe, tmp_path: Path) -> None:
    _, alone = train_alone(recipe.model_copy(update={"output_dir": "alone", "store": ""}))

    def told(record: Mapping[str, Any]) -> None:
        if record.get("step") == 5:
            raise Lost

    with pytest.raises(Lost):
        train_alone(recipe.model_copy(update={"output_dir": "first"}), on_record=told)
    store = open_store(recipe.store)
    kept = [name for name in store.sizes() if name.startswith("checkpoints/step-")]
    assert kept == ["checkpoints/step-0000002.pt", "checkpoints/step-0000004.pt"]  # earlier ones were dropped there too
    said: list[str] = []
    with reporting(say=said.append):
        _, run = train_alone(recipe.model_copy(update={"output_dir": "second"}))
    assert run.resumed_at == 4 and any(f"were in {recipe.store}" in line for line in said)
    assert run.adapter_hash == alone.adapter_hash  # bit for bit
    assert [r for r in read_jsonl("second/metrics.jsonl") if r.get("step") == 3 and "loss" in r]
    there = store.sizes()
    assert {"run.json", "adapter/adapter_model.safetensors", "dataset/dataset.json"} <= set(there)
    assert not [name for name in there if name.startswith("checkpoints/")]
    again: list[str] = []
    with reporting(say=again.append):
        train_alone(recipe.model_copy(update={"output_dir": "third"}))
    assert any("already done" in line for line in again)


def test_a_bucket_without_rights_ends_in_words_and_the_checkpoint_on_the_disk_stays(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Store, file: Path, name: str) -> None:
        raise UserError("No right to use this bucket", where=f"{self.url}/{name}")

    monkeypatch.setattr(Store, "put", refuse)
    with pytest.raises(UserError, match="No right") as caught:
        train_alone(recipe.model_copy(update={"output_dir": "mine"}))
    assert caught.value.where.startswith(f"{recipe.store}/")
    assert list(Path("mine/checkpoints").glob("step-*.pt"))
