"""Home: what it says of a server's last hour, however much came in it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from traffic import request
from web_pages import pages_of

from tuneloop.core.ids import utc
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import opened
from tuneloop.web.pages import home

COUNT = 40  # requests of the last hour, the latest first


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with a request every ten seconds; those of the oldest ten minutes failed, and one is of tomorrow."""
    now = datetime.now(UTC)
    times = [utc((now - timedelta(seconds=10 * i + 5)).timestamp()) for i in range(COUNT)]
    rows = [request(i, 0, time=at, ttft_ms=float(i), error="x" if i >= 30 else None) for i, at in enumerate(times)]
    copy = request(COUNT, 0, time=times[0], shadow="new", ttft_ms=9999.0)
    with opened(tmp_path / "serve", create=True) as store:
        insert(store, [*rows, copy, request(COUNT + 1, 0, time=utc((now + timedelta(days=1)).timestamp()))])
    return tmp_path


def numbers(html: str) -> dict[str, str]:
    """The numbers of a server by what stands above them."""
    return dict(re.findall(r'<dt>([^<]+)</dt><dd class="value">([^<]*)</dd>', html))


def test_a_server_with_little_traffic_has_the_numbers_of_its_last_hour(folder: Path) -> None:
    shown = numbers(pages_of(folder).get("/"))
    assert shown["requests, last hour"] == f"{COUNT} an hour" and shown["errors"] == "25.0 %"
    assert shown["first token p50 / p99"] == "20 / 39 ms"


def test_the_last_week_is_a_small_picture_with_todays_requests_last(folder: Path) -> None:
    page = pages_of(folder).get("/")
    bars = re.findall(r"<title>(\d{4}-\d\d-\d\d): (\d+)</title>", page)
    assert len(bars) == home.WEEK and bars[-1][0] == datetime.now(UTC).strftime("%Y-%m-%d")
    assert sum(int(number) for _, number in bars) == COUNT + 1, "a shadow costs too; nothing of tomorrow"


@pytest.mark.parametrize(("rate", "text"), [(3.2, "3.2 a second"), (0.2, "12 a minute"), (0.0047, "17 an hour")])
def test_rates_are_said_as_people_count(rate: float, text: str) -> None:
    assert home.rate_in_words(rate) == text


def test_of_much_traffic_the_latest_requests_are_read_and_the_page_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "MOST_REQUESTS", 20)
    shown = numbers(pages_of(folder).get("/"))
    rate, _, unit = shown["requests, last 20 requests"].partition(" ")
    assert 5.4 <= float(rate) <= 6.6 and unit == "a minute"  # 20 of 200 seconds
    assert shown["errors"] == "0.0 %" and shown["first token p50 / p99"] == "10 / 19 ms"
