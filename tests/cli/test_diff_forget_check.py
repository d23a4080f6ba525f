"""diff, forget and check as commands: what they print at 80 columns, their JSON, their exit status."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneloop.cli.main import main
from tuneloop.core.files import read_json, sha256_file, write_json, write_jsonl
from tuneloop.data import checks
from tuneloop.data.config import PrepareConfig
from tuneloop.data.dataset import dataset_hash, label_counts, load_dataset, token_statistics
from tuneloop.models.load import fingerprint
from tuneloop.models.names import resolve
from tuneloop.records.rows import Dataset, Row

LONG = "a_label_with_a_name_that_is_much_longer_than_any_column_of_a_table_should_be"
Status = tuple[int, str, str]
Tuneloop = Callable[..., Status]


def rows(n: int, start: int = 0, label: str = LONG) -> list[Row]:
    return [
        Row(
            f"{len(label):02x}{i:014x}",
            [
                {"role": "user", "content": f"Where is parcel {i}, {'which I have been waiting for ' * 4}?"},
                {"role": "assistant", "content": label},
            ],
            label,
            meta={"source": "some/long/folder/of/a/team/with/exports/from_the_ticket_system.jsonl", "line": i, "user": f"u{i}"},
        )
        for i in range(start, start + n)
    ]  # fmt: skip


def write_dataset(folder: Path, **splits: list[Row]) -> Path:
    config = PrepareConfig(sources=["in.jsonl"])
    splits = {split: splits.get(split, []) for split in ("train", "val", "test")}
    hash_ = dataset_hash(splits, config, 0)
    about = {}
    for split, some in splits.items():
        write_jsonl(folder / f"{split}.jsonl", some)
        about[split] = {"path": f"{split}.jsonl", "rows": len(some), "sha256": sha256_file(folder / f"{split}.jsonl"),
                        "tokens": token_statistics([9] * len(some), 1), "labels": label_counts(some)}  # fmt: skip
    write_jsonl(folder / "rejects.jsonl", [])
    write_jsonl(folder / "repairs.jsonl", [])
    sizes = {split: len(some) for split, some in splits.items()}
    kept = sum(sizes.values())
    write_json(
        folder / "dataset.json",
        {"version": 1, "id": f"tickets-{hash_[:12]}", "name": "tickets", "hash": hash_, "task": "classification", "seed": 0,
         "sources": [], "config": config.model_dump(mode="json"), "splits": about, "rejected": {}, "repaired": {}, "checks": [],
         "counts": {"read": kept, "kept": kept, "rejected": 0, **sizes}},
    )  # fmt: skip
    return folder


@pytest.fixture
def tuneloop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tuneloop:
    """Run one of the three commands in `tmp_path`, 80 columns wide: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(checks, "check_dataset", some_checks, raising=False)

    def run(*arguments: str) -> Status:
        capsys.readouterr()
        status = main([*arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def some_checks(dataset: Dataset, *, against: Any = None) -> list[dict[str, Any]]:
    found = [
        {"name": "enough_rows", "level": "ok", "message": "fine", "rows": 3, "remedy": "nothing to do", "examples": []},
        {"name": "duplicates", "level": "warn", "message": f"{LONG} and " * 3, "rows": 3, "remedy": "drop them", "examples": []},
    ]  # fmt: skip
    if against is not None:
        message = f"{len(against)} rows: {against[0].messages[0]['content']}"
        found.append({"name": "drift", "level": "error", "message": message, "rows": 1, "remedy": "get more", "examples": []})  # fmt: skip
    return found


def fits(out: str) -> bool:
    return all(len(line) <= 80 for line in out.splitlines())


# --- diff


def test_diff_shows_what_changed(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_dataset(tmp_path / "a", train=rows(20), test=rows(5, 20))
    write_dataset(tmp_path / "b", train=[*rows(19), *rows(1, 20), *rows(4, 50, "other")], test=rows(4, 21))
    status, out, _ = tuneloop("diff", "a", "b", "--rows", "1")
    assert status == 0 and fits(out)
    assert re.search(r"^train +20 +24 +\+4$", re.sub(r" +$", "", out, flags=re.MULTILINE), re.MULTILINE)
    assert re.search(r"^added +4 +4 train", out, re.MULTILINE) and re.search(r"^removed +1 ", out, re.MULTILINE)
    assert "1 of A's test rows are trained on in B" in " ".join(out.split())
    assert out.count("for example") == 3
    status, out, _ = tuneloop("diff", "a", "b", "--json", "--rows", "0")
    found = json.loads(out)
    assert status == 0 and found["moved"] == {"test -> train": 1} and not found["identical"]
    assert not any(found["examples"].values())


def test_diff_of_the_same_data_says_so(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_dataset(tmp_path / "a", train=rows(3))
    status, out, _ = tuneloop("diff", "a", "a/dataset.json")
    assert status == 0 and "the same" in out


def test_diff_needs_two_data_sets(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_dataset(tmp_path / "a", train=rows(3))
    status, _, err = tuneloop("diff", "a", "b")
    assert status == 2 and "No complete data set" in err


# --- forget


def test_forget_removes_after_yes_only(tmp_path: Path, tuneloop: Tuneloop) -> None:
    folder = write_dataset(tmp_path / "a", train=rows(9), test=rows(3, 9))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    status, out, _ = tuneloop("forget", "a", "--match", "user=u4", "--dry-run")
    assert status == 0 and fits(out) and "train.jsonl:5" in out
    status, _, err = tuneloop("forget", "a", "--match", "user=u4")
    assert status == 2 and "--yes" in err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "report.html").write_text("parcel 4")
    status, out, _ = tuneloop("forget", "a", "--match", "user=u4", "--yes")
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
    status, out, _ = tuneloop("forget", "a", "--match", "user=u4", "--yes", *model)
    tokens = read_json(folder / "dataset.json")["splits"]["train"]["tokens"]
    assert status == 0 and "of_rows" not in tokens and tokens["min"] > 20 and "those from before" not in out


def test_forget_says_when_tokens_are_not_counted_again(tmp_path: Path, tuneloop: Tuneloop) -> None:
    folder = write_dataset(tmp_path / "a", train=rows(9), test=rows(3, 9))
    manifest = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", {**manifest, "model": "another"})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    status, _, err = tuneloop("forget", "a", "--match", "user=u4", "--yes", "--model", "smollm2-135m")
    assert status == 2 and "not measured with this model" in err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    status, out, _ = tuneloop("forget", "a", "--match", "user=u4", "--yes")
    assert status == 0 and "those from before" in out
    assert read_json(folder / "dataset.json")["splits"]["train"]["tokens"]["of_rows"] == 9


def test_forget_asks_at_a_terminal(tmp_path: Path, tuneloop: Tuneloop, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "a", train=rows(3))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer, left in ((False, 3), (True, 2)):
        monkeypatch.setattr("typer.confirm", lambda *_, answer=answer, **__: answer)
        assert tuneloop("forget", "a", "--match", "user=u1")[0] == int(not answer)
        assert len(load_dataset("a").train) == left


def test_forget_exits_with_1_when_nothing_matches(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_dataset(tmp_path / "a", train=rows(3))
    status, out, _ = tuneloop("forget", "a", "--match", "nobody", "--yes")
    assert status == 1 and fits(out) and "No row matches" in out and "line=" in out
    status, out, _ = tuneloop("forget", "a", "--match", "nobody", "--json")
    assert status == 1 and json.loads(out)["matched"] == 0


def test_forget_names_what_was_made_of_the_data(tmp_path: Path, tuneloop: Tuneloop) -> None:
    folder = write_dataset(tmp_path / "a", train=rows(30))
    shutil.copytree(folder, tmp_path / "runs" / "r" / "dataset")
    write_json(tmp_path / "runs" / "r" / "run.json", {"id": "r", "dataset": load_dataset(folder).id})
    status, out, _ = tuneloop("forget", "a", "--match", "WAITING for", "--dry-run")
    assert status == 0 and fits(out) and "and 10 more" in out
    assert "runs/r: trained on them" in out and "tuneloop forget runs/r/dataset" in out
    status, out, _ = tuneloop("forget", "a", "--match", r"parcel [12],", "--regex", "--yes", "--json")
    done = json.loads(out)
    assert (status, done["removed"], len(done["rows"]), done["was"] == done["id"]) == (0, 2, 2, False)
    assert [one["kind"] for one in done["descendants"]] == ["data set", "run"]


def test_forget_needs_a_pattern_that_is_one(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_dataset(tmp_path / "a", train=rows(3))
    assert tuneloop("forget", "a", "--match", "")[0] == 2
    assert tuneloop("forget", "a", "--match", "(", "--regex")[0] == 2
    assert tuneloop("forget", "b", "--match", "x")[0] == 2


# --- check


def test_check_prints_the_worst_first(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_dataset(tmp_path / "a", train=rows(3))
    status, out, _ = tuneloop("check", "a")
    assert status == 0 and fits(out) and out.startswith("warn") and "1 warn, 1 ok" in out
    assert "drop them" in out and "nothing to do" not in out


def test_check_exits_with_1_at_an_error(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_dataset(tmp_path / "a", train=rows(3))
    write_jsonl(tmp_path / "log.jsonl", [{"prompt": "Was ist das?"}, {"prompt": "\x1b[31mred"}, {"n": 1}])
    status, out, err = tuneloop("check", "a", "--against", "log.jsonl")
    assert status == 1 and out.startswith("error") and "2 rows: Was ist das?" in out
    assert "2 production records; 1 records without" in err
    status, out, _ = tuneloop("check", "a", "--against", "log.jsonl", "--json")
    found = json.loads(out)
    assert (status, found["level"], [c["level"] for c in found["checks"]]) == (1, "error", ["error", "warn", "ok"])


def test_check_sends_a_raw_file_to_prepare(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_jsonl(tmp_path / "raw.jsonl", [{"text": "a", "label": "b"}])
    status, _, err = tuneloop("check", "raw.jsonl")
    assert status == 2 and "tuneloop prepare raw.jsonl" in err
    assert tuneloop("check", "nowhere")[0] == 2
