"""How an evaluation is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneloop.records.evaluation import split_place


@pytest.mark.parametrize(
    ("path", "folder", "name"),
    [
        ("run", "run", ""), ("run/eval.json", "run", ""), ("run:few-shot", "run", "few-shot"),
        ("run/eval.json:few-shot", "run", "few-shot"), ("a:b", "a:b", ""), ("a:b:llama3:8b", "a:b", "llama3:8b"),
        ("run:llama3:8b", "run", "llama3:8b"), ("gone", "gone", ""), ("gone:x:y", "gone", "x:y"),
    ],
)  # fmt: skip
def test_folders_and_names_may_hold_colons(
    path: str, folder: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for made in ("run", "a:b"):
        Path(made).mkdir()
        (Path(made) / "eval.json").write_text("{}")
    assert split_place(path) == (Path(folder), name)
