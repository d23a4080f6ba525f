"""`tuneloop data forget`: what it prints at 80 columns, its JSON, its exit status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from long_labels import Tuneloop, fits, rows, write_dataset

from tuneloop.core.files import read_json, write_json
from tuneloop.data.dataset import load_dataset
from tuneloop.models.files.names import resolve
from tuneloop.models.load import fingerprint


def test_forget_removes_after_yes_only(tmp_path: Path, tuneloop: Tuneloop) -> None:
    folder = write_dataset(tmp_path / "a", train=rows(9), test=rows(3, 9))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    status, out, _ = tuneloop("data", "forget", "a", "--match", "user=u4", "--dry-run")
    assert status == 0 and fits(out) and "train.jsonl:5" in out
    for wanted in ((), ("--user", "u4", "--match", "u4")):
        status, _, err = tuneloop("data", "forget", "a", *wanted)
        assert status == 2 and "--user or --match" in err
    status, _, err = tuneloop("data", "forget", "a", "--user", "u4")
    assert status == 2 and "--yes" in err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "report.html").write_text("parcel 4")
    status, out, _ = tuneloop("data", "forget", "a", "--match", "user=u4", "--yes")
    name = read_json(folder / "dataset.json")["id"]
    assert (
        status == 0
        and f"is now {name}" in out
        and "from_the_ticket_system.jsonl is not there, but they were in it, at line 4" in out
    )
    assert len(load_dataset(folder).train) == 8
    assert name in (report := (folder / "report.html").read_text()) and "parcel 4," not in report, "rendered anew"


@pytest.mark.parametrize("named", ["", "smollm2-135m"])
def test_forget_counts_tokens_again_with_the_model_they_were_counted_with(
    tmp_path: Path, tuneloop: Tuneloop, named: str
) -> None:
    folder = write_dataset(tmp_path / "a", train=rows(9), test=rows(3, 9))
    manifest = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", {**manifest, "model": fingerprint(resolve("smollm2-135m"))})
    model = ["--model", named] if named else []
    status, out, _ = tuneloop("data", "forget", "a", "--match", "user=u4", "--yes", *model)
    tokens = read_json(folder / "dataset.json")["splits"]["train"]["tokens"]
    assert status == 0 and "of_rows" not in tokens and tokens["min"] > 20 and "those from before" not in out


def test_forget_says_when_tokens_are_not_counted_again(tmp_path: Path, tuneloop: Tuneloop) -> None:
    folder = write_dataset(tmp_path / "a", train=rows(9), test=rows(3, 9))
    manifest = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", {**manifest, "model": "another"})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    status, _, err = tuneloop("data", "forget", "a", "--match", "user=u4", "--yes", "--model", "smollm2-135m")
    assert status == 2 and "not measured with this model" in err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    status, out, _ = tuneloop("data", "forget", "a", "--match", "user=u4", "--yes")
    assert status == 0 and "those from before" in out
    assert read_json(folder / "dataset.json")["splits"]["train"]["tokens"]["of_rows"] == 9


def test_forget_asks_at_a_terminal(tmp_path: Path, tuneloop: Tuneloop, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "a", train=rows(3))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer, left in ((False, 3), (True, 2)):
        monkeypatch.setattr("typer.confirm", lambda *_, answer=answer, **__: answer)
        assert tuneloop("data", "forget", "a", "--match", "user=u1")[0] == int(not answer)
        assert len(load_dataset("a").train) == left


def test_forget_exits_with_1_when_nothing_matches(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_dataset(tmp_path / "a", train=rows(3))
    status, out, _ = tuneloop("data", "forget", "a", "--match", "nobody", "--yes")
    assert status == 1 and fits(out) and "No row matches" in out and "line=" in out
    status, out, _ = tuneloop("data", "forget", "a", "--match", "nobody", "--json")
    assert status == 1 and json.loads(out)["matched"] == 0


def test_forget_names_what_was_made_of_the_data(tmp_path: Path, tuneloop: Tuneloop) -> None:
    folder = write_dataset(tmp_path / "a", train=rows(30))
    shutil.copytree(folder, tmp_path / "runs" / "r" / "dataset")
    write_json(tmp_path / "runs" / "r" / "run.json", {"id": "r", "dataset": load_dataset(folder).id})
    status, out, _ = tuneloop("data", "forget", "a", "--match", "WAITING for", "--dry-run")
    assert status == 0 and fits(out) and "and 10 more" in out
    assert "runs/r: trained on them" in out and "tuneloop data forget runs/r/dataset" in out
    status, out, _ = tuneloop("data", "forget", "a", "--match", r"parcel [12],", "--regex", "--yes", "--json")
    done = json.loads(out)
    assert (status, done["removed"], len(done["rows"]), done["was"] == done["id"]) == (0, 2, 2, False)
    assert [item["kind"] for item in done["descendants"]] == ["data set", "run"]


def test_forget_needs_a_pattern_that_is_one(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_dataset(tmp_path / "a", train=rows(3))
    assert tuneloop("data", "forget", "a", "--match", "")[0] == 2
    assert tuneloop("data", "forget", "a", "--match", "(", "--regex")[0] == 2
    assert tuneloop("data", "forget", "b", "--match", "x")[0] == 2
