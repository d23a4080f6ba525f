"""`tuneloop evaluate`: the verdict is the first line, and always answering the most frequent label is always a baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tuneloop.cli.main import app
from tuneloop.pipeline.answers.scoring import how_far_trained
from tuneloop.records.run import RunManifest

WORDS = [
    "card",
    "limit",
    "refund",
    "branch",
    "phone",
    "letter",
    "address",
    "rate",
    "fee",
    "statement",
    "name",
    "parcel",
]


@pytest.fixture
def uneven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared data set, ham to spam as 5 to 1."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"text": f"{WORDS[i % 12]} and {WORDS[(5 * i + i // 12) % 12]} number {i}", "label": "ham" if i % 6 else "spam"}
        for i in range(240)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = CliRunner().invoke(app, ["prepare", "rows.jsonl", "--out", "d", "split.test=0.3", "split.val=0.1"])
    assert made.exit_code == 0, (made.output, made.exception)
    return tmp_path / "d"


def evaluated(dataset: Path, answer: str | None, split: str = "test") -> tuple[str, dict[str, object]]:
    """The first line, and `eval.json`, of predictions that are all `answer`, or right."""
    rows = [json.loads(line) for line in (dataset / f"{split}.jsonl").read_text().splitlines()]
    said = [{"id": row["id"], "prediction": answer or row["label"]} for row in rows]
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    arguments = [
        "evaluate",
        "--predictions",
        "answers.jsonl",
        "--dataset",
        "d",
        "--split",
        split,
        "--out",
        f"e-{answer}",
    ]
    found = CliRunner().invoke(app, [*arguments, "bootstrap=300"])
    assert found.exit_code == 0, (found.output, found.exception)
    result: dict[str, object] = json.loads((Path(f"e-{answer}") / "eval.json").read_text())
    return found.stdout.splitlines()[0], result


def test_ham_to_everything_is_no_gain_and_the_first_line_says_why(uneven: Path) -> None:
    line, result = evaluated(uneven, "ham")
    assert line.startswith('No proven gain over always answering "ham": macro-F1')
    assert 'and it answers "ham" to every row' in line.split(". ")[0]
    assert list(result["baselines"]) == ["majority class"]  # type: ignore[call-overload]
    assert result["primary"] == "macro_f1"


def test_right_answers_are_better_than_the_majority(uneven: Path) -> None:
    line, result = evaluated(uneven, None)
    assert line.startswith('Better than always answering "ham": macro-F1 1.000')
    assert result["verdict"]["sentence"] == line  # type: ignore[index]


def test_rows_of_the_validation_split_are_not_called_test_rows(uneven: Path) -> None:
    line, _ = evaluated(uneven, None, "val")
    assert "validation rows" in line and "test rows" not in line


@pytest.mark.parametrize(
    ("run", "text"),
    [
        ({"steps": 5, "rows_seen": 16, "rows": 1000, "seen": "1.6 % of the rows"}, "it was trained for 5 steps only and saw 1.6 % of the rows"),
        ({"steps": 200, "rows_seen": 16, "rows": 1000, "seen": "1.6 % of the rows"}, "it saw 1.6 % of the rows"),
        ({"steps": 200, "rows_seen": 1000, "rows": 1000, "seen": "all rows 3 times"}, ""),
        ({"steps": 1}, "it was trained for 1 step only"),
        ({}, ""),
    ],
)  # fmt: skip
def test_a_short_training_is_said(run: dict[str, Any], text: str) -> None:
    assert how_far_trained(RunManifest(model="m", **run)) == text
