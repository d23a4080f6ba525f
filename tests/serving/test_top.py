"""`tuneloop top` shows what went on between two readings of a server's metrics."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path

import httpx
import pytest
from live_server import StubEngine, live

from tuneloop.cli.main import main
from tuneloop.serving.keys import add_key
from tuneloop.serving.top import Reading, quantile, read_metrics, view

CHAT = {"model": "stub", "messages": [{"role": "user", "content": "Hi"}]}


def test_a_server_with_keys_wants_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with live(tmp_path) as (address, _):
        arguments = ["top", "--url", address, "--once", "--every", "0.2"]
        key, _ = add_key(tmp_path, "anna")
        assert main(arguments) == 2 and "needs a key" in capsys.readouterr().err
        monkeypatch.setenv("TUNELOOP_KEY", key)
        assert main(arguments) == 0


def test_rates_times_and_models_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with live(tmp_path, StubEngine(pause=0.002), prices={"output": 1000.0}) as (address, _):
        httpx.post(f"{address}/v1/chat/completions", json=CHAT)
        before = read_metrics(address, 0.0)
        for _ in range(10):
            httpx.post(f"{address}/v1/chat/completions", json={**CHAT, "service_tier": "flex"})
        found = view(before, read_metrics(address, 2.0), 2.0)
        assert found["requests_per_second"] == 5 and found["tokens_per_second"] == 15
        assert found["models"]["stub"]["tokens_per_second"] == 15
        assert found["usd_per_hour"] == pytest.approx(0.03 / 2 * 3600)
        assert found["tiers"]["default"]["ttft_p50_ms"] is None, "nothing of that tier came between the readings"
        assert 1 <= found["tiers"]["flex"]["ttft_p50_ms"] <= found["tiers"]["flex"]["ttft_p99_ms"]
        asking = threading.Thread(
            target=lambda: (time.sleep(0.1), httpx.post(f"{address}/v1/chat/completions", json=CHAT))
        )
        asking.start()
        assert main(["top", "--url", address, "--once", "--every", "0.5"]) == 0
        said = capsys.readouterr().out
        assert "requests/s" in said and "came within the bound" in said
        assert found["predictions"] == 1  # of 11 requests the first 10 are learned from
        assert 0 <= found["prediction_coverage"] <= 1 and found["prediction_error"] > 0
        asking.join()
        assert main(["top", "--url", address, "--json", "--every", "0.2", "-f", str(tmp_path)]) == 0
        assert json.loads(capsys.readouterr().out)["batches"] == []
    assert main(["top", "--url", address]) == 2
    assert main(["top", "-f", str(tmp_path / "none")]) == 2


def test_quantiles_are_linear_within_a_bucket() -> None:
    buckets = {0.1: 50.0, 0.2: 100.0, math.inf: 100.0}
    assert quantile(0.5, buckets) == pytest.approx(0.1)
    assert quantile(0.75, buckets) == pytest.approx(0.15)
    assert quantile(0.99, {0.1: 0.0, math.inf: 5.0}) == pytest.approx(0.1)
    assert quantile(0.5, {}) is None and quantile(0.5, {0.1: 0.0, math.inf: 0.0}) is None


def test_a_server_that_was_restarted_gives_no_negative_rates() -> None:
    key = ("tuneloop_requests_total", (("gen_ai_request_model", "m"), ("status", "ok"), ("tier", "default")))
    found = view(Reading(0, {key: 100.0}), Reading(1, {key: 4.0}), 1.0)
    assert found["requests_per_second"] == 4
