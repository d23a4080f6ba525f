"""Costs: by day, model, key and tier; planned next to actual; when a machine of one's own pays."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from starlette.requests import Request

from tuneloop.core.ids import since_time
from tuneloop.core.units import counted, hours_words, usd_words
from tuneloop.improve.report import LedgerCycle, day_chart, ledger_of
from tuneloop.records.server import Decision
from tuneloop.report.charts import chart_pair
from tuneloop.serving import costs_of
from tuneloop.serving.store import Database, opened, read_decisions
from tuneloop.web.pages.traffic import by_day
from tuneloop.web.sources import Sources
from tuneloop.web.stores import shown_store

PERIODS = {"0d": "today", "6d": "7 days", "29d": "30 days", "89d": "90 days", "": "all time"}  # sums of whole days
MOST_ROWS = 40  # of a table


def show(request: Request, sources: Sources) -> dict[str, Any]:
    """What the page shows."""
    shown = shown_store(request, sources)
    since = request.query_params.get("since", "")
    begin = since_time(since)[:10]
    costs = costs_of(shown.place, since=begin)
    with opened(shown.place) as store:
        days = by_day(store, begin)
        cycles = _cycles(store)
    in_usd = any(usd for _, _, usd, _ in days)
    bars = [
        (day, usd if in_usd else float(tokens), f"{day}: {usd_words(usd)}, {counted(tokens, 'token')}")
        for day, _, usd, tokens in days
    ]
    return {
        "store": shown, "since": since, "periods": PERIODS, "costs": costs, "usd": usd_words, "hours": hours_words,
        "days": chart_pair(day_chart, bars, "dollars a day, by prices of tokens" if in_usd else "tokens a day"),
        "groups": {by: costs.groups[by][:MOST_ROWS] for by in costs.groups},
        "left_out": {by: max(0, len(costs.groups[by]) - MOST_ROWS) for by in costs.groups},
        "per_million": costs.total.to_json()["usd_per_million_tokens"] or None, "cycles": cycles,
        "begin": begin,
    }  # fmt: skip


def _cycles(store: Database) -> list[tuple[str, LedgerCycle]]:
    """Retrainings of all projects with what they were expected to cost."""
    events: dict[str, list[Decision]] = defaultdict(list)
    for event in read_decisions(store, where="kind LIKE 'improve.%'"):
        events[event.subject].append(event)
    return [(name, cycle) for name, of in events.items() for cycle in ledger_of(of)]
