"""Costs: by day, model, key and tier as the command says, with what was planned and where a machine pays."""

from __future__ import annotations

from pathlib import Path

import pytest
from traffic import BEGIN, request
from web_pages import pages_of

from tuneloop.core.units import usd_words
from tuneloop.records.record import write_record
from tuneloop.records.server import ServerState
from tuneloop.serving.costs import costs_of
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import opened
from tuneloop.web.pages.traffic import by_day


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A priced server with 90 requests in three days."""
    rows = [
        request(
            i, i / 30, key=f"k{i % 2}", tier="default", usd=0.01, seconds=2.0, prompt_tokens=50 + i, model=f"m{i % 3}"
        )
        for i in range(90)
    ]
    with opened(tmp_path / "serve", create=True) as store:
        insert(store, rows)
    config = {"prices": {"usd_per_hour": 1.5}}
    write_record(tmp_path / "serve" / ServerState.file, ServerState(base="llama-3.1-8b", config=config))
    return tmp_path


def test_the_numbers_are_those_of_the_command(folder: Path) -> None:
    html, costs = pages_of(folder).get("/costs"), costs_of(folder / "serve")
    assert costs.total.machine_usd is not None and costs.forecast is not None and costs.hosted
    for amount in (costs.total.usd, costs.total.machine_usd, costs.forecast.usd_per_hour, costs.hosted[0].usd):
        assert usd_words(amount) in html
    for name in ("m0", "m2", "k1", "default", costs.hosted[0].provider):
        assert name in html
    assert 'class="chart days' in html


def test_days_add_up(folder: Path) -> None:
    with opened(folder / "serve") as store:
        days = by_day(store, "")
    assert [day for day, *_ in days] == [f"{BEGIN:%Y-%m}-0{n}" for n in (1, 2, 3)]
    assert sum(usd for _, _, usd, _ in days) == pytest.approx(0.9)


def test_a_period_is_of_whole_days_which_the_store_has_sums_of(folder: Path) -> None:
    html = pages_of(folder).get(f"/costs?since={BEGIN:%Y-%m}-02T12:00:00Z")
    assert "60 requests" in html and f"whole days from {BEGIN:%Y-%m}-02 on" in html
    assert "whole days" not in pages_of(folder).get("/costs")


def test_a_period_and_an_empty_store(folder: Path, tmp_path: Path) -> None:
    html = pages_of(folder).get("/costs?since=24h")
    assert "0 requests" in html
    assert "Not a time" in pages_of(folder).get("/costs?since=soon", 404)
