"""Home: what is in production, what runs, what needs a person, the last verdicts."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup
from starlette.requests import Request

from tuneloop.core import written as w
from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc
from tuneloop.core.urls import masked
from tuneloop.evaluation.review import load_review, open_and_disputed
from tuneloop.records.record import read_record
from tuneloop.records.server import ServerState
from tuneloop.report.charts import sparkline, step_chart
from tuneloop.serving.store import Database, opened, store_folder
from tuneloop.web.pages import experiments, quality
from tuneloop.web.pages.run import progress_of
from tuneloop.web.runs import RunLine, curves, holder, run_lines, score_picture
from tuneloop.web.sources import Need, Sources
from tuneloop.web.stores import place_name

LATEST = 5  # verdicts
MOST_RUNNING = 4
WEEK = 7  # days of the small picture
MOST_REQUESTS = 2000  # of the last hour that are looked at, the latest ones


@dataclass(frozen=True)
class Production:
    """A server and its last hour.

    Args:
        running: whether its process is there; None: it is not on this machine, or there is no `state.json`.
        models: name, release; `of`: which requests the numbers are of; `rate`: requests, as people count them; times in
            milliseconds to the first token; `errors`: a share; `week`: its requests by day, as SVG.
    """

    name: str
    running: bool | None = None
    since: str = ""
    address: str = ""
    models: list[tuple[str, str]] = field(default_factory=list)
    of: str = "last hour"
    rate: str = "none"
    p50: float | None = None
    p99: float | None = None
    errors: float | None = None
    usd: float = 0.0
    week: str = ""
    problem: str = ""


def show(request: Request, sources: Sources) -> dict[str, Any]:
    """What the page shows."""
    lines = run_lines(sources)
    running = []
    for line in [line for line in lines if line.state == "running"][:MOST_RUNNING]:
        found = sources.find("run", line.key)
        kept = curves(sources, found)
        steps, _ = kept.between()
        draw = partial(step_chart, steps, "loss", "Training loss")
        chart = sources.index.facts("small", found, kept.offset, lambda _: draw())  # noqa: B023  # called at once
        running.append((line, progress_of(found, steps, kept), chart))
    return {
        "servers": [production(sources, store) for store in sources.stores], "running": running,
        "needs": needs(sources, lines) + quality.needs(sources) + experiments.needs(sources),
        "verdicts": [(line, score_picture(line, line.primary)) for line in lines if line.verdict][:LATEST],
        "runs": len(lines), "datasets": len(sources.all("dataset")), "stores": len(sources.stores),
    }  # fmt: skip


live = show


def rate_in_words(rate: float) -> str:
    """Requests as people count them: `3.2 a second`, `12 a minute`, `17 an hour`; `rate`: a second."""
    for unit, seconds in (("a second", 1), ("a minute", 60)):
        if rate * seconds >= 1:
            return f"{rate * seconds:.2g} {unit}"
    return f"{rate * 3600:.0f} an hour"


def production(sources: Sources, location: str) -> Production:
    """What a server serves, and what came in its last hour."""
    now = datetime.now(UTC)
    facts: dict[str, Any] = {"name": masked(place_name(sources, location))}
    with contextlib.suppress(UserError, OSError):
        state = read_record(ServerState, Path(store_folder(location)))
        facts |= {"since": state.started[:16].replace("T", " "), "address": state.address}
        facts["running"] = holder(store_folder(location)) is not None
        facts["models"] = [(w.clean(model.name), w.clean(model.release or model.source)) for model in state.models]
    try:
        with opened(location) as store:
            since = utc((now - timedelta(hours=1)).timestamp())
            query = """SELECT ttft_ms, error IS NOT NULL, time FROM requests
                WHERE time BETWEEN ? AND ? AND shadow IS NULL ORDER BY time DESC LIMIT ?"""
            latest = store.execute(query, [since, utc(now.timestamp()), MOST_REQUESTS]).fetchall()
            today = "SELECT COALESCE(SUM(usd), 0) FROM costs WHERE day = ?"
            (usd,) = store.execute(today, [now.strftime("%Y-%m-%d")]).fetchone()
            facts["week"] = week_chart(store, now)
    except UserError as error:
        return Production(**facts, problem=error.what)
    if (count := len(latest)) == MOST_REQUESTS:
        since, facts["of"] = latest[-1][2], f"last {w.count(count, 'request')}"
    seconds = (now - datetime.fromisoformat(since)).total_seconds()
    if times := sorted(row[0] for row in latest if row[0] is not None):
        facts |= {"p50": times[len(times) // 2], "p99": times[min(len(times) - 1, int(0.99 * len(times)))]}
    errors = sum(bool(row[1]) for row in latest) / count if count else None
    return Production(**facts, rate=rate_in_words(count / max(1.0, seconds)), errors=errors, usd=float(usd))


def week_chart(store: Database, now: datetime) -> Markup:
    """Requests of the last seven days, today's last."""
    days = [(now - timedelta(days=back)).strftime("%Y-%m-%d") for back in reversed(range(WEEK))]
    query = "SELECT day, SUM(requests) FROM costs WHERE day >= ? GROUP BY day"
    sums = dict(store.execute(query, [days[0]]).fetchall())
    return sparkline([(day, float(sums.get(day, 0))) for day in days], "Requests by day")


def needs(sources: Sources, lines: list[RunLine]) -> list[Need]:
    """Runs that stopped or whose gate waits, and reviews that are open."""
    wanted = []
    for line in lines[:200]:
        address = sources.url("run", key=line.key)
        if line.state in ("stopped", "damaged"):
            said = line.problem or "stopped before its end; the same command continues it"
            wanted.append(Need(line.place, said, address, "bad" if line.problem else "warn"))
        elif line.gate in ("fail", "inconclusive"):
            said = "the gate is failed" if line.gate == "fail" else "the gate has not enough evidence"
            wanted.append(Need(line.place, said, address))
    for found in sources.all("review"):
        with contextlib.suppress(OSError, UserError):
            wanted += _of_review(found.path)
    return wanted[:8]


def _of_review(path: Path) -> list[Need]:
    """Answers that no one has judged, and those about which reviewers differ."""
    review = load_review(path)
    (left, split), all_ = open_and_disputed(review), w.count(len(review.items), "answer")
    said = {f"{left:,} of {all_} open": left, f"reviewers differ about {split:,} of {all_}": split}
    return [Need(f"review {path.name}", f"{items}: tuneloop review {path}") for items, count in said.items() if count]
