"""A service with a fine-tune of tickets: training and validation files, results, stored completions."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai_service import BASE, KEY, MODEL, Service, as_lines, serving, tickets

from tuneloop.core.http import timeouts


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The service, started; the key is in the environment, and waits are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(timeouts, "backoff", lambda tries, pause=0.0, longest=0.0: 0.01)
    train, val = tickets(90, 1), tickets(60, 2)
    with serving(Service()) as item:
        item.add_file("file-train", as_lines(train), filename="train.jsonl")
        item.add_file("file-val", as_lines(val), filename="val.jsonl")
        table = base64.b64encode(b"step,train_loss\n1,2.0\n2,1.5\n")
        item.add_file("file-result", table, "fine-tune-results", "step_metrics.csv")
        item.models = [
            {"id": MODEL, "object": "model", "created": 1, "owned_by": "acme"},
            {"id": BASE, "object": "model", "created": 1, "owned_by": "openai", "shutdown_date": "2027-01-14"},
        ]
        for i in range(7):
            item.add_completion(f"chatcmpl-{i}", f"where is parcel {i}", "delivery", 1_790_000_000 + i * 43_200)
        item.truth = {str(r["messages"][1]["content"]): str(r["messages"][2]["content"]) for r in train + val}  # type: ignore[index]
        item.answer = lambda body: item.truth.get(body["messages"][-1]["content"], "billing")
        yield item
