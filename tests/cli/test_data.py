"""`tuneloop data check` and `data diff`: what they print at 80 columns, their JSON, their exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path

from long_labels import Tuneloop, fits, rows, write_dataset

from tuneloop.core.files import write_jsonl


def test_check_prints_the_worst_first(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_dataset(tmp_path / "a", train=rows(3))
    status, out, _ = tuneloop("data", "check", "a")
    assert status == 0 and fits(out) and out.startswith("warn") and "1 warn, 1 ok" in out
    assert "drop them" in out and "nothing to do" not in out


def test_check_exits_with_1_at_an_error(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_dataset(tmp_path / "a", train=rows(3))
    write_jsonl(tmp_path / "log.jsonl", [{"prompt": "Was ist das?"}, {"prompt": "\x1b[31mred"}, {"n": 1}])
    status, out, err = tuneloop("data", "check", "a", "--against", "log.jsonl")
    assert status == 1 and out.startswith("error") and "2 rows: Was ist das?" in out
    assert "2 production records; 1 record without" in err
    status, out, _ = tuneloop("data", "check", "a", "--against", "log.jsonl", "--json")
    found = json.loads(out)
    assert (status, found["level"], [c["level"] for c in found["checks"]]) == (1, "error", ["error", "warn", "ok"])


def test_check_sends_a_raw_file_to_prepare(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_jsonl(tmp_path / "raw.jsonl", [{"text": "a", "label": "b"}])
    status, _, err = tuneloop("data", "check", "raw.jsonl")
    assert status == 2 and "tuneloop prepare raw.jsonl" in err
    assert tuneloop("data", "check", "nowhere")[0] == 2


def test_diff_shows_what_changed(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_dataset(tmp_path / "a", train=rows(20), test=rows(5, 20))
    write_dataset(tmp_path / "b", train=[*rows(19), *rows(1, 20), *rows(4, 50, "other")], test=rows(4, 21))
    status, out, _ = tuneloop("data", "diff", "a", "b", "--rows", "1")
    assert status == 0 and fits(out)
    assert re.search(r"^train +20 +24 +\+4$", re.sub(r" +$", "", out, flags=re.MULTILINE), re.MULTILINE)
    assert re.search(r"^added +4 +4 train", out, re.MULTILINE) and re.search(r"^removed +1 ", out, re.MULTILINE)
    assert "1 of A's test rows are trained on in B" in " ".join(out.split())
    assert out.count("for example") == 3
    status, out, _ = tuneloop("data", "diff", "a", "b", "--json", "--rows", "0")
    found = json.loads(out)
    assert status == 0 and found["moved"] == {"test -> train": 1} and not found["identical"]
    assert not any(found["examples"].values())


def test_diff_of_the_same_data_says_so(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_dataset(tmp_path / "a", train=rows(3))
    status, out, _ = tuneloop("data", "diff", "a", "a/dataset.json")
    assert status == 0 and "the same" in out


def test_diff_needs_two_data_sets(tmp_path: Path, tuneloop: Tuneloop) -> None:
    write_dataset(tmp_path / "a", train=rows(3))
    status, _, err = tuneloop("data", "diff", "a", "b")
    assert status == 2 and "No complete data set" in err
