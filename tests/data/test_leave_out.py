"""Rows that are left out by a column's value: what a model wrote is not trained on, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuneloop.cli.main import main
from tuneloop.core.files import read_json, read_jsonl


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    text = [
        "apple",
        "bridge",
        "candle",
        "desert",
        "engine",
        "forest",
        "garden",
        "harbour",
        "island",
        "kettle",
        "ladder",
    ]
    lines = [
        {
            "prompt": f"Tell me of the {text[i % 11]} and the {text[(i * 5 + 1) % 11]} number {i * 37}",
            "completion": f"Yes, {i}.",
        }
        | ({} if i % 3 == 0 else {"origin": "human" if i % 3 == 1 else "model"})
        for i in range(30)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_what_a_model_wrote_is_in_the_rejects_and_in_no_split(rows: Path) -> None:
    assert main(["prepare", str(rows), "leave_out=origin=model", "-o", "d", "--quiet"]) == 0
    splits = [row for split in ("train", "val", "test") for row in read_jsonl(f"d/{split}.jsonl")]
    assert {row["meta"].get("origin") for row in splits} == {None, "human"}
    rejects = [reject for reject in read_jsonl("d/rejects.jsonl") if reject["reason"] == "left_out"]
    assert len(rejects) == 10 and len(splits) + len(read_jsonl("d/rejects.jsonl")) == 30
    assert {reject["detail"] for reject in rejects} == {"origin=model"}
    first = read_json("d/dataset.json")["key"]
    assert main(["prepare", str(rows), "-o", "e", "--quiet"]) == 0
    assert read_json("e/dataset.json")["key"] != first and "left_out" not in read_json("e/dataset.json")["rejected"]


def test_what_is_no_column_and_value_is_refused(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(rows), "leave_out=model", "-o", "d"]) == 2
    assert "COLUMN=VALUE" in capsys.readouterr().err
