"""`route cascade` on two evaluations of the same rows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tuneloop.cli.main import main
from tuneloop.core.files import read_json

Said = pytest.CaptureFixture[str]


def evaluation(folder: Path, right: float, count: int = 200, confident: bool = True, offset: int = 0) -> str:
    """An evaluation of a model that is right on that share of rows, and the surer the more often."""
    rng = random.Random(right)
    folder.mkdir()
    about = {"version": 1, "name": folder.name, "dataset": "d", "split": "test", "n": count, "primary": "accuracy",
             "metrics": {"accuracy": {"value": right, "low": 0, "high": 1}}, "baselines": {}, "comparisons": [], "words": []}  # fmt: skip
    (folder / "eval.json").write_text(json.dumps(about))
    lines = []
    for i in range(offset, offset + count):
        confidence = rng.uniform(2 * right - 1, 1) if right < 1 else 1.0
        label = "ab"[i % 2]
        given = label if rng.random() < confidence else "ba"[i % 2]
        line: dict[str, Any] = {"id": f"r{i}", "prompt": f"p{i}", "reference": label, "prediction": given, "label": label, "predicted_label": given}  # fmt: skip
        lines.append(line | ({"confidence": confidence} if confident else {}))
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_a_cascade_is_chosen_on_one_half_and_judged_on_the_other(tmp_path: Path, capsys: Said) -> None:
    small, large = evaluation(tmp_path / "small", 0.7), evaluation(tmp_path / "large", 0.95)
    out = tmp_path / "c.json"
    assert main(["route", "cascade", small, large, "--cost", "1,10", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(out) and read_json(out)["threshold"] == found["threshold"]
    assert 60 < found["n"] < 140 and 1 <= found["cost"] <= 11 and found["metric"] == "accuracy"
    assert found["singles"][0]["quality"] < found["quality"]["value"] <= found["singles"][2]["quality"]
    assert main(["route", "cascade", small, large, "--max-cost", "3", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "the large model answers" in said and "recovered" in said
    assert read_json(out)["cost"] < 4


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (["--cost", "5,5"], "must cost more"),
        (["--cost", "1,10", "--max-cost", "0.5"], "No answer costs as little"),
        (["--cost", "one"], "two numbers"),
        (["UNSURE"], "confidence is not known"),
        (["OTHER"], "share 0 rows"),
        (["MISSING"], "There is no evaluation here"),
    ],
)
def test_what_is_wrong_is_said(message: list[str], text: str, tmp_path: Path, capsys: Said) -> None:
    small = evaluation(tmp_path / "small", 0.7, confident=message != ["UNSURE"])
    large = evaluation(tmp_path / "large", 0.95, offset=1000 if message == ["OTHER"] else 0)
    if message == ["MISSING"]:
        (Path(large) / "samples.jsonl").unlink()
    more = message if message[0].startswith("--") else []
    assert main(["route", "cascade", small, large, *more, "--out", str(tmp_path / "c.json")]) == 2
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error and not (tmp_path / "c.json").exists()
