from __future__ import annotations

import os
from pathlib import Path

import pytest

from tuneloop.core.errors import UserError
from tuneloop.data.config import PrepareConfig
from tuneloop.data.dataset import prepare_key
from tuneloop.data.patch import PatchLine, add_to_patch, read_patch
from tuneloop.data.prepare import TokenCount, prepare_dataset
from tuneloop.records.rows import Dataset


def prepared(tmp_path: Path, patch: Path | None, name: str) -> Dataset:
    source = tmp_path / "in.jsonl"
    lines = [f'{{"text": "where is parcel {i} to street {i * 7}", "label": "{"ab"[i % 2]}"}}\n' for i in range(30)]
    source.write_text("".join(lines), encoding="utf-8")
    config = PrepareConfig(sources=[str(source)], patch=None if patch is None else str(patch))
    return prepare_dataset(config, name="t", seed=0, out=tmp_path / name, measure=lambda row: TokenCount(20, 2))


def test_a_patch_changes_its_rows_alone_and_only_where_the_answer_still_is_what_it_was(tmp_path: Path) -> None:
    plain = prepared(tmp_path, None, "plain")
    patch, source = tmp_path / "p" / "patch.jsonl", str(tmp_path / "in.jsonl")
    first = [
        PatchLine(source=source, line=1, was="a", becomes="b"),
        PatchLine(source=source, line=2, was="a", becomes="a"),
    ]
    add_to_patch(patch, first)
    add_to_patch(patch, [PatchLine(source=source, line=1, was="b", becomes="b but ana@example.com")])
    fixed = prepared(tmp_path, patch, "fixed")

    def answers(of: Dataset) -> dict[int, str]:
        return {row.meta["line"]: row.answer for split in (of.train, of.val, of.test) for row in split}

    before, after = answers(plain), answers(fixed)
    assert {line: text for line, text in after.items() if before[line] != text} == {1: "b but <EMAIL>"}
    assert fixed.manifest.repaired["patched"] == 1
    assert plain.manifest.config == fixed.manifest.config and "patch" not in plain.manifest.config


def test_another_patch_is_another_data_set_and_none_is_the_one_of_before(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "x", "label": "a"}\n', encoding="utf-8")
    patch = tmp_path / "patch.jsonl"
    config = PrepareConfig(sources=[str(tmp_path / "in.jsonl")])
    keys = [prepare_key(config, name="t", seed=0)]
    for becomes in ("b", "c"):
        add_to_patch(patch, [PatchLine(source="s", line=1, was="a", becomes=becomes)])
        keys.append(prepare_key(config.model_copy(update={"patch": str(patch)}), name="t", seed=0))
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"source": "s", "line": 1, "was": "a", "becomes": " "}', "empty"), ('{"source": "s"}', "line"), ("{", "JSON")],
)
def test_a_patch_that_is_damaged_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "patch.jsonl").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_patch(tmp_path / "patch.jsonl")
    with pytest.raises(UserError):
        read_patch(tmp_path / "none.jsonl")


def test_a_line_that_a_crash_cut_off_does_not_swallow_the_next_one(tmp_path: Path) -> None:
    patch = tmp_path / "patch.jsonl"
    add_to_patch(patch, [PatchLine(source="s", line=1, was="a", becomes="b")])
    with patch.open("a", encoding="utf-8") as file:
        file.write('{"source": "s", "li')
    add_to_patch(patch, [PatchLine(source="s", line=2, was="a", becomes="b")])
    assert list(read_patch(patch)) == [("s", 1), ("s", 2)]


def test_a_pipe_is_no_patch(tmp_path: Path) -> None:
    pipe = tmp_path / "patch.jsonl"
    os.mkfifo(pipe)  # to open it would wait for a writer for ever
    with pytest.raises(UserError, match="Not a regular file"):
        read_patch(pipe)
    with pytest.raises(UserError, match="Not a regular file"):
        prepared(tmp_path, pipe, "x")
