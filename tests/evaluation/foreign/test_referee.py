"""`tuneloop compare` on what other tools measured: page, JSON, the line for CI; and `tuneloop data export`."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tuneloop.cli.main import app, main
from tuneloop.core.errors import UserError
from tuneloop.evaluation.foreign.referee import read_all
from tuneloop.evaluation.results import load_evaluation
from tuneloop.pipeline.compare import task_rows


def table(path: Path, share: float, seed: int, n: int = 120) -> str:
    rng = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "question", "accuracy", "f1", "topic"])
        for i in range(n):
            right = rng.random() < (share if i % 2 else 0.6)
            writer.writerow(
                [f"q{i}", f"what is {i}?", int(right), round(rng.uniform(0, 0.3) + share / 2, 3), "ab"[i % 2]]
            )
    return str(path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "a.csv", 0.9, 1)
    table(tmp_path / "b.csv", 0.3, 2)
    return tmp_path


def answered(status: int, *text: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*text, "--json"])
    assert done.exit_code == status, (done.output, done.exception)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_two_tables_are_compared_and_written_as_any_comparison(here: Path) -> None:
    result = answered(0, "compare", "a.csv", "b.csv", "--out", "out")
    assert result["n"] == 120 and result["primary"] == "accuracy"
    (pair,) = (c for c in result["comparisons"] if c["metric"] == "accuracy")
    assert pair["test"] == "exact McNemar" and pair["verdict"] == "worse"
    assert "Slices" in (here / "out" / "report.html").read_text()
    assert load_evaluation(here / "out").metrics["accuracy"].value == pytest.approx(
        result["metrics"]["accuracy"]["value"]
    )


def test_slices_of_the_pair_are_compared_and_named(here: Path) -> None:
    result = answered(0, "compare", "a.csv", "b.csv", "--out", "out")
    slices = {(s["field"], s["value"]): s for s in result["slice_comparisons"]["b.csv"]}
    assert slices["topic", "b"]["verdict"] == "worse" and slices["topic", "a"]["verdict"] == "not enough evidence"
    assert any("topic b" in line for line in result["words"])


@pytest.mark.parametrize(("first", "second", "more", "status"), [
    ("a.csv", "b.csv", [], 1), ("b.csv", "a.csv", [], 0), ("a.csv", "copy.csv", [], 3), ("a.csv", "copy.csv", ["--margin", "5"], 0),
])  # fmt: skip
def test_the_exit_status_says_whether_it_is_worse(
    here: Path, first: str, second: str, more: list[str], status: int
) -> None:
    (here / "copy.csv").write_text((here / "a.csv").read_text())
    result = answered(status, "compare", first, second, "--fail-if", "worse", *more)
    assert result["ci"]["status"] == {0: "pass", 1: "fail", 3: "inconclusive"}[status]


def test_quiet_prints_one_line_for_ci(here: Path) -> None:
    done = CliRunner().invoke(app, ["compare", "a.csv", "b.csv", "--fail-if", "worse", "-q"])
    assert (
        done.exit_code == 1
        and len(done.stdout.splitlines()) == 1
        and done.stdout.startswith("fail: b.csv against a.csv")
    )


def test_one_alone_says_what_it_could_show(here: Path) -> None:
    power = answered(0, "compare", "a.csv")
    assert power["metric"] == "accuracy" and 0 < power["alike"] < power["unrelated"] < 1
    assert main(["compare", "a.csv", "--fail-if", "worse"]) == 2


def test_an_evaluation_of_ours_is_compared_with_one_of_another_tool(here: Path) -> None:
    answered(0, "compare", "a.csv", "b.csv", "--out", "out")
    result = answered(0, "compare", "out", "a.csv", "--out", "again")
    assert result["n"] == 120 and any(c["a"] == "out" for c in result["comparisons"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (["compare", "a.csv", "no.csv"], "No evaluation there"),
        (["compare", "a.csv", "a.csv"], "named twice"),
        (["compare", "a.csv", "b.csv", "--metric", "accurcy"], "did you mean accuracy?"),
        (["compare", "a.csv", "b.csv", "--cluster", "nothing"], "No row has the metadata field"),
        (["compare", "a.csv", "b.csv", "--fail-if", "bad"], "No such condition"),
        (["compare", "a.csv", "b.csv", "--margin", "2"], "--fail-if worse"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], text: list[str], says: str
) -> None:
    assert main(text) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_file_of_several_systems_alone_compares_them(here: Path) -> None:
    lines = [{"provider": {"id": name}, "promptIdx": 0, "vars": {"question": f"q{i}"}, "success": i % 3 > bad,
              "score": float(i % 3 > bad)} for name, bad in (("x", 0), ("y", 1)) for i in range(60)]  # fmt: skip
    (here / "p.json").write_text(json.dumps({"results": {"version": 3, "results": lines}}))
    result = answered(0, "compare", "p.json")
    assert result["name"] == "y" and list(result["baselines"]) == ["x"]
    with pytest.raises(UserError, match="The file holds 2 systems"):
        read_all({"p.json": "", "a.csv": ""})
    assert [e.system for e in read_all({"p.json:x": "", "p.json:y": ""})] == ["x", "y"]


def test_rows_are_exported_with_the_command_that_runs_them(here: Path) -> None:
    rows = [
        {"id": f"r{i}", "text": f"I am {w}, mail me at a{i}@example.org", "label": w}
        for i, w in enumerate(["late", "early"] * 5)
    ]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = answered(0, "data", "export", "rows.jsonl", "--as", "inspect", "-m", "m")
    assert result["metrics"] == ["accuracy"] and result["rows"] == 10 and "openai-api/tuneloop/m" in result["run"]
    assert "@example.org" not in (here / result["path"] / "rows.jsonl").read_text(), "personal data is replaced"
    assert task_rows("rows.jsonl", "test", "m", "u").max_tokens == 256


def scores(path: Path, values: list[float | str], head: str = "id") -> str:
    rows = "\n".join(f"{i},{value}" for i, value in enumerate(values))
    path.write_text(f"{head},accuracy\n{rows}\n")
    return str(path)


def test_scores_that_are_missing_where_it_was_wrong_do_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scores(tmp_path / "a.csv", [1] * 130 + [0] * 70, "item_id")
    scores(tmp_path / "b.csv", ["" if i % 4 == 0 else 1 for i in range(200)], "item_id")
    done = CliRunner().invoke(app, ["compare", "a.csv", "b.csv", "--fail-if", "worse", "--margin", "2", "--out", "out"])
    assert "on 200 items" in done.output
    (tmp_path / "b.csv").write_text("item_id,accuracy\n" + "".join(f"{i},1\n" for i in range(150)))
    done = CliRunner().invoke(app, ["compare", "a.csv", "b.csv", "--fail-if", "worse", "--margin", "2", "--out", "o2"])
    assert done.exit_code == 3, done.output


def test_rows_that_are_only_counted_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        scores(tmp_path / f"{name}.csv", [1, 0, 1, 1], "idx")
    done = CliRunner().invoke(app, ["compare", "a.csv", "b.csv"])
    assert isinstance(done.exception, UserError) and "Column 'idx' only counts the rows" in str(done.exception)
