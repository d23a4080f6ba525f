"""A data set is read back as it was written, and refused when it is incomplete or changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from ticket_files import measure, run, tickets, write

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_json
from tuneloop.data.config import PrepareConfig
from tuneloop.data.dataset import load_dataset, prepare_key, token_statistics
from tuneloop.data.prepare import prepare_dataset


def test_a_written_data_set_is_read_back_as_it_was(tmp_path: Path) -> None:
    records = [
        r | {"score": float("nan"), "tags": ["a"], "source": "crm", "line": 7, "deep": {"x": 1}} for r in tickets(40)
    ]
    dataset = run(tmp_path, records, repair={"json_syntax": True})
    assert load_dataset(tmp_path / "out") == dataset == load_dataset(tmp_path / "out" / "dataset.json")
    meta = dataset.train[0].meta
    assert meta["source_"] == "crm" and meta["line_"] == 7 and meta["score"] is None and meta["tags"] == ["a"]
    assert "deep" not in meta and meta["source"].endswith("data.jsonl")


def test_the_key_changes_with_all_that_the_result_depends_on(tmp_path: Path) -> None:
    source = write(tmp_path / "data.jsonl", tickets(20))
    config = PrepareConfig(sources=[source])
    key = prepare_key(config, name="job", seed=0, model_fingerprint="m")
    done = prepare_dataset(config, name="job", seed=0, out=tmp_path / "out", measure=measure, model="m")
    assert done.manifest["key"] == key == prepare_key(config, name="job", seed=0, model_fingerprint="m")
    others = [
        prepare_key(config, name="other", seed=0, model_fingerprint="m"),
        prepare_key(config, name="job", seed=1, model_fingerprint="m"),
        prepare_key(config, name="job", seed=0, model_fingerprint="n"),
        prepare_key(PrepareConfig(sources=[source], max_length=100), name="job", seed=0, model_fingerprint="m"),
    ]
    write(tmp_path / "data.jsonl", tickets(21))
    others.append(prepare_key(config, name="job", seed=0, model_fingerprint="m"))
    assert len({key, *others}) == 6


def test_an_incomplete_or_changed_data_set_is_not_loaded(tmp_path: Path) -> None:
    run(tmp_path, tickets(40))
    out = tmp_path / "out"
    with pytest.raises(UserError, match="No complete data set"):
        load_dataset(tmp_path / "nothing")
    text = (out / "test.jsonl").read_text()
    (out / "test.jsonl").write_text(text.replace("label_", "lebel_"))
    with pytest.raises(UserError, match="changed after it was prepared"):
        load_dataset(out)
    assert {row.label for row in load_dataset(out, verify=False).test} <= {f"lebel_{n}" for n in range(4)}
    (out / "test.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(UserError, match="Not a row"):
        list(load_dataset(out, verify=False).test)
    (out / "test.jsonl").unlink()
    with pytest.raises(UserError, match="missing"):
        load_dataset(out)
    write_json(out / "dataset.json", {"version": 2})
    with pytest.raises(UserError, match="A newer tuneloop wrote a data set"):
        load_dataset(out)


def test_token_statistics_by_hand() -> None:
    assert token_statistics(list(range(1, 11)), 5) == {
        "total": 55,
        "supervised": 5,
        "min": 1,
        "p50": 5,
        "p90": 9,
        "max": 10,
        "mean": 5.5,
    }
    assert token_statistics([], 0)["total"] == 0


def test_the_first_rows_are_read_without_the_others(tmp_path: Path) -> None:
    run(tmp_path, tickets(40))
    rows = load_dataset(tmp_path / "out").train
    assert rows[:3] == load_dataset(tmp_path / "out").train[0:3] and "rows" not in vars(rows)
    assert rows[:0] == [] and rows[:1000] == list(rows) and rows[:-1] == list(rows)[:-1]
