"""Production traffic becomes training data with one command: `prepare` reads what `requests` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneloop.cli.main import main
from tuneloop.core.ids import uuid7
from tuneloop.data.config import PrepareConfig
from tuneloop.data.prepare import TokenCount, prepare_dataset
from tuneloop.records.request import StoredRequest
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import opened


def request(i: int, **fields: Any) -> StoredRequest:
    prompt: Any = [{"role": "user", "content": f"where is parcel number {i}, please"}]
    usual = {"model": "m", "prompt": prompt, "completion": f"it is in town {i}", "finish": "stop", "user": f"u{i}"}
    return StoredRequest(id=uuid7(), time=f"2026-01-{i + 1:02}T00:00:00.000Z", **{**usual, **fields})


def test_prepare_reads_what_was_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = [request(20, error="engine"), request(21, prompt=[], completion=None), request(22, model="other")]
    with opened(tmp_path, create=True) as store:
        insert(store, [*(request(i) for i in range(20)), *odd])
    out = tmp_path / "log.jsonl"
    told = ["collect", "requests", "-f", str(tmp_path), "-o", str(out), "--json"]
    assert main([*told, "-m", "m"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "out": str(out), "written": 20, "failed": 1, "without_text": 1, "without_consent": 0,
    }  # fmt: skip
    made = prepare_dataset(
        PrepareConfig(sources=[str(out)]), name="d", seed=0, out=tmp_path / "d", measure=lambda row: TokenCount(9, 4)
    )
    rows = [*made.train, *made.val, *made.test]
    assert made.manifest.format is not None and made.manifest.format.name == "logs" and len(rows) == 20
    assert {row.answer for row in rows} == {f"it is in town {i}" for i in range(20)}
    assert main([*told, "--since", "2026-01-23"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 1
    assert main(["collect", "requests", "-f", str(tmp_path / "none"), "-o", str(out)]) == 2
    assert main(["collect", "requests", "-f", str(tmp_path), "-o", str(tmp_path)]) == 2


def test_personal_data_are_replaced_on_the_way_out(tmp_path: Path) -> None:
    prompt: Any = [{"role": "user", "content": "I am bo@example.com"}]
    with opened(tmp_path, create=True) as store:
        insert(store, [request(0, prompt=prompt, completion="Hello bo@example.com")])
    out = tmp_path / "log.jsonl"
    assert main(["collect", "requests", "-f", str(tmp_path), "-o", str(out), "-q"]) == 0
    assert "bo@example.com" not in out.read_text() and out.read_text().count("<EMAIL>") == 2
    assert main(["collect", "requests", "-f", str(tmp_path), "-o", str(out), "-q", "--keep-personal"]) == 0
    assert out.read_text().count("bo@example.com") == 2
