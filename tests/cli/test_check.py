"""`tuneloop data check`: what it prints at 80 columns, its JSON, its exit status."""

from __future__ import annotations

import json
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
