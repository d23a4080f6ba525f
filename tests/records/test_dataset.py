"""A manifest that is damaged is said to be, with the value that is wrong; keys of other versions are left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.core.errors import UserError
from tuneloop.data.config import PrepareConfig
from tuneloop.data.prepare import TokenCount, prepare_dataset
from tuneloop.records.dataset import DatasetManifest, read_manifest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a real data set."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"text": f"Parcel {i} is late by {i * 7} days", "label": "ab"[i % 2]} for i in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = PrepareConfig(sources=[str(folder / "rows.jsonl")])
    made = prepare_dataset(config, name="rows", seed=0, out=folder / "out", measure=lambda row: TokenCount(9, 2))
    return made.manifest.to_json()


def test_what_prepare_writes_is_read_unchanged(manifest: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({**manifest, "of_a_later_version": 1}))
    assert read_manifest(tmp_path).to_json() == {**manifest, "of_a_later_version": 1}
    assert read_manifest(tmp_path / "dataset.json").id == manifest["id"]


@pytest.mark.parametrize(
    "text", ["[]", "{}", "5", "null", '{"version": 2}', '"dataset"', "{", "[" * 100_000, "1" * 10_000]
)
def test_what_is_no_manifest_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"Not a data set|A newer tuneloop|Not valid JSON"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (["counts"], 5, "counts"), (["counts", "read"], "many", "counts.read"), (["splits", "test"], [], "splits.test"),
        (["splits", "train", "rows"], -1, "splits.train.rows"), (["config"], [], "config"), (["hash"], None, "hash"),
        (["sources"], {"x": 1}, "sources"), (["labels"], [1], "labels.0"), (["checks"], [[]], "checks.0"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(
    manifest: dict[str, Any], tmp_path: Path, path: list[str], value: Any, named: str
) -> None:
    broken = json.loads(json.dumps(manifest))
    *parents, last = path
    folder = broken
    for parent in parents:
        folder = folder[parent]
    folder[last] = value
    (tmp_path / "dataset.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match=f"The file is damaged: {named}"):
        read_manifest(tmp_path)


@given(data=st.data())
def test_any_value_in_any_place_is_taken_or_refused_in_words(
    manifest: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    broken = {**manifest, data.draw(st.sampled_from(sorted(DatasetManifest.model_fields))): data.draw(JSON)}
    folder = tmp_path_factory.mktemp("any")
    (folder / "dataset.json").write_text(json.dumps(broken))
    try:
        assert read_manifest(folder).version == 1
    except UserError as error:
        assert error.next_step and "\n" not in error.what
