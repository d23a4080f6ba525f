"""How an evaluation is named, and files of older versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneloop.records.evaluation import BaselinesManifest, EvaluationManifest, split_place
from tuneloop.records.record import as_record


@pytest.mark.parametrize(
    ("place", "folder", "name"),
    [
        ("run", "run", ""), ("run/eval.json", "run", ""), ("run:few-shot", "run", "few-shot"),
        ("run/eval.json:few-shot", "run", "few-shot"), ("a:b", "a:b", ""), ("a:b:llama3:8b", "a:b", "llama3:8b"),
        ("run:llama3:8b", "run", "llama3:8b"), ("gone", "gone", ""), ("gone:x:y", "gone", "x:y"),
    ],
)  # fmt: skip
def test_folders_and_names_may_hold_colons(
    place: str, folder: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for made in ("run", "a:b"):
        Path(made).mkdir()
        (Path(made) / "eval.json").write_text("{}")
    assert split_place(place) == (Path(folder), name)


def test_files_with_the_older_words_are_read_and_written_with_the_new_ones() -> None:
    entry = {"name": "few-shot", "kind": "prompt", "metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "gain": None,
             "gain_low": None, "gain_high": None, "p": None, "verdict": "", "training_seconds": 0, "training_usd": 0,
             "prompt_tokens": 9, "tokens": 1, "usd_per_1000": None}  # fmt: skip
    asked = {"rows": 2, "ways": 2, "asked": {}, "temperature": 0.7, "metric": "agreement", "likeness": "", "same_as_plain": {},
             "comparisons": [], "seconds": {}, "contenders": {"tuned": {"agreement": {"value": 1.0}}}}  # fmt: skip
    old = {"version": 1, "n": 2, "metrics": {}, "ladder": [entry], "ladder_words": ["Cheap."], "consistency": asked}
    found = as_record(EvaluationManifest, old, "eval.json")
    assert found.leaderboard[0].name == "few-shot" and found.leaderboard_words == ["Cheap."]
    assert found.consistency and list(found.consistency.systems) == ["tuned"]
    again = found.to_json()
    assert "ladder" not in again and as_record(EvaluationManifest, again, "eval.json") == found
    listed = {"version": 1, "contenders": {"few-shot": "few-shot"}, "ladder": [entry]}
    assert as_record(BaselinesManifest, listed, "baselines.json").systems == {"few-shot": "few-shot"}
