"""`tuneloop costs`: what served requests cost, by the store of a server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tuneloop.advice import make_question, serving
from tuneloop.core.errors import UserError
from tuneloop.core.units import counted, hours_words, usd_words
from tuneloop.planning.catalogue import find_gpu, load_prices, priced
from tuneloop.records.record import read_record
from tuneloop.records.server import ServerState
from tuneloop.serving.store.database import Database
from tuneloop.serving.store.migrations import SUMS
from tuneloop.serving.store.store import opened, store_folder

MONTH_HOURS = 730.5
BY = ("model", "key", "tier")


@dataclass(frozen=True)
class CostRow:
    """What a group of requests used."""

    name: str
    requests: int
    failed: int  # got no whole answer, since the engine failed or the client left
    refused: int  # never ran, since a limit or their own fault kept them out (429, 400, 401, 404)
    prompt_tokens: int
    completion_tokens: int
    seconds: float  # of the engine; requests that ran at the same time share them
    usd: float  # by prices of tokens, of `priced_requests`
    priced_requests: int  # those that had such a price, with their tokens, read and written
    priced_tokens: int
    # share of the machine's price, its idle time included, by the seconds; None: no price was given
    machine_usd: float | None

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.prompt_tokens + self.completion_tokens

    def to_json(self) -> dict[str, Any]:
        """With the prices that follow from it: of the machine for all requests, else of those that had a price."""
        usd, tokens, requests = self.usd, self.priced_tokens, self.priced_requests
        if self.machine_usd is not None:
            usd, tokens, requests = self.machine_usd, self.tokens, self.requests
        return {
            **asdict(self),
            "usd_per_million_tokens": usd / tokens * 1e6 if tokens else None,
            "usd_per_request": usd / requests if requests else None,
        }

    def line(self, name: str) -> str:
        """It in a line of a table."""
        values = self.to_json()
        usd = self.usd if self.machine_usd is None else self.machine_usd
        million, request_usd = values["usd_per_million_tokens"] or 0, values["usd_per_request"] or 0
        requests = f"{name[:24]:<24} {self.requests:>9,} {self.failed:>7,} {self.refused:>7,}"
        work = f"{self.prompt_tokens:>12,} {self.completion_tokens:>12,} {self.seconds:>9,.1f}"
        return f"{requests} {work} {usd:>10,.4f} {million:>9,.3f} {request_usd:>10,.6f}"


@dataclass(frozen=True)
class Hosted:
    """The same tokens at a provider's price, and from which volume this machine is cheaper."""

    provider: str
    model: str
    date: str
    usd: float  # for the same tokens
    tokens_a_month: float | None  # at which both cost the same; None: no price of the machine was given
    reachable: bool | None  # whether this machine can do so many, working all the time


@dataclass(frozen=True)
class Forecast:
    """What the planner expects of a rented machine with this model and these prompts and answers."""

    machine: str  # GPUs, provider and price
    served_by: str  # the devices that served, where it is of another machine; empty: it is of these, or not known
    tokens_per_second: float  # read and written, at full load
    measured: float  # the same of this server while it worked
    usd_per_hour: float  # of the machine
    usd_per_million_full: float  # tokens, at full load
    usd_per_million: float | None  # tokens, at this server's utilisation


@dataclass(frozen=True)
class Costs:
    """What a server's requests cost."""

    since: str
    hours: float  # from the first request to the last one, or since the time of `--since`
    utilisation: float  # share of these hours in which the engine worked
    usd_per_hour: float
    total: CostRow
    groups: dict[str, list[CostRow]]
    hosted: list[Hosted]
    forecast: Forecast | None = None  # of the planner; None: it does not know the model, or there were no answers

    @property
    def month_usd(self) -> float | None:
        """What a month costs: the machine's hours, or requests at the pace of this time; None without a price, and
        where less than a day says little."""
        if self.usd_per_hour:
            return MONTH_HOURS * self.usd_per_hour
        return MONTH_HOURS * self.total.usd / self.hours if self.total.usd and self.hours >= 24 else None

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        groups = {by: [row.to_json() for row in rows] for by, rows in self.groups.items()}
        return {
            "since": self.since or None, "hours": self.hours, "utilisation": self.utilisation,
            "usd_per_hour": self.usd_per_hour or None, "month_usd": self.month_usd,
            "total": self.total.to_json(), "by": groups,
            "hosted": [asdict(hosted) for hosted in self.hosted],
            "forecast": asdict(self.forecast) if self.forecast else None,
        }  # fmt: skip

    def lines(self) -> Iterator[str]:
        """As `tuneloop costs` prints it."""
        number, hours = counted(self.total.requests, "request"), hours_words(self.hours)
        if (month := self.month_usd) is not None:
            yield f"At this pace a month costs about {usd_words(month)}."
        yield f"{number} in {hours}; the engine worked {100 * self.utilisation:.1f} % of that time"
        head = f"{'':<24} {'requests':>9} {'failed':>7} {'refused':>7} {'read':>12} {'written':>12} {'seconds':>9}"
        yield f"{head} {'USD':>10} {'USD/1M':>9} {'USD each':>10}"
        yield self.total.line("all")
        for by, rows in self.groups.items():
            yield from (by, *(row.line(f"  {row.name}") for row in rows))
        priced, of = self.total.priced_requests, self.total.requests
        if not self.usd_per_hour and 0 < priced < of:
            yield f"USD/1M and USD each are of the {priced:,} of {of:,} requests that had a price"
        if not self.usd_per_hour and not priced:
            yield "no prices: give --usd-per-hour, or set prices in serve.yaml"
        if (plan := self.forecast) is not None:
            speed = f"{plan.tokens_per_second:,.0f} tokens/s (here {plan.measured:,.0f} while it worked)"
            other = f", another machine than served ({plan.served_by})" if plan.served_by else ""
            line = f"planned on {plan.machine}{other}: {speed}, {plan.usd_per_million_full:,.3g} USD for 1M tokens"
            line += " at full load"
            yield line + ("" if plan.usd_per_million is None else f", {plan.usd_per_million:,.3g} when as idle as here")
        for hosted in self.hosted:
            line = f"{hosted.provider} {hosted.model} ({hosted.date}): {hosted.usd:,.4f} USD for the same tokens"
            if hosted.tokens_a_month is not None:
                line += f"; this machine is cheaper from {hosted.tokens_a_month / 1e6:,.0f}M tokens a month on"
                line += "" if hosted.reachable else ", which is more than it can do"
            yield line


def costs_of(location: Path | str, since: str = "", usd_per_hour: float | None = None, gpu: str = "") -> Costs:
    """What the requests of a server cost; UserError: there is no store.

    Args:
        location: the server's folder, or its store.
        since: ISO time; empty: all of them.
        usd_per_hour: of the machine; None: `prices.usd_per_hour` of the server's settings.
        gpu: of the planner's forecast; empty: the server's own, at the price of its machine, or a common one where
            the planner does not know that.
    """
    file = store_folder(location) / ServerState.file
    state = read_record(ServerState, file) if file.is_file() else ServerState()
    price = state.usd_per_hour if usd_per_hour is None else usd_per_hour
    with opened(location) as store:
        # Each alone is looked up in the index; both at once are not in SQLite.
        queries = (f"SELECT {function}(time) FROM requests WHERE time >= ?" for function in ("MIN", "MAX"))
        first, last = (store.execute(query, [since]).fetchone()[0] for query in queries)
        groups = _groups(store, since)
        rows = {by: _rows(groups, column) for column, by in enumerate(BY)}
        (whole,) = _rows(groups, None) or [("all", *[0] * len(SUMS))]
    span = (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds() if first else 0.0
    seconds = whole[5] or 0.0
    hours = max(span, seconds) / 3600
    machine = hours * price if price else None

    def row(values: Sequence[Any]) -> CostRow:
        name, *numbers = values
        sums = dict(zip(SUMS, numbers, strict=True))
        share = None if machine is None else machine * (sums["seconds"] / seconds if seconds else 0.0)
        return CostRow(name or "(none)", machine_usd=share, **sums)

    total = row(whole)
    busy = seconds / (hours * 3600) if hours else 0.0
    by_name = {by: [row(group) for group in groups] for by, groups in rows.items()}
    hosted, forecast = _hosted(state.base, total, price), _forecast(state, total, busy, price, gpu)
    return Costs(since, hours, busy, price, total, by_name, hosted, forecast)


def _forecast(state: ServerState, total: CostRow, busy: float, usd_per_hour: float, gpu: str) -> Forecast | None:
    answered = total.requests - total.failed - total.refused
    if not state.base or not answered or not total.seconds:
        return None
    means, own = (total.prompt_tokens / answered, total.completion_tokens / answered), _own_card(state)
    plan = None
    try:
        if own and not gpu:
            prices = priced(load_prices(), own, usd_per_hour / len(state.devices) or None, "on-demand")
            plan = serving(make_question({"model": state.base, "gpu": own}), prices, *means, "on-demand")
        if plan is None:
            question = make_question({"model": state.base, **({"gpu": gpu} if gpu else {})})
            plan = serving(question, load_prices(), *means, "on-demand")
    except UserError:
        if gpu:
            raise
        return None  # a model that the planner does not know
    if plan is None:
        return None
    engine, per_hour = plan.engine, plan.price.machines_usd(plan.gpus)
    full, used = engine.usd_per_million(1.0), engine.usd_per_million(busy) if busy else None
    served_by = ", ".join(dict.fromkeys(state.devices)) if plan.card.key != own else ""
    measured = total.tokens / total.seconds
    return Forecast(engine.source, served_by, engine.tokens_per_second, measured, per_hour, full, used)


def _own_card(state: ServerState) -> str:
    """The planner's name of the GPU that served; empty: a processor, several kinds, or one that it does not know."""
    kinds = set(state.devices)
    with contextlib.suppress(UserError):
        if len(kinds) == 1 and not (card := find_gpu(kinds.pop())).is_cpu:
            return card.key
    return ""


def _groups(store: Database, since: str) -> list[tuple[Any, ...]]:
    """Sums of requests by all of `BY` at once, from the store's sums of whole days and the rest of the first day."""
    days = f"SELECT {', '.join(BY)}, {', '.join(f'SUM({item})' for item in SUMS)} FROM costs WHERE day "
    by = f" GROUP BY {', '.join(BY)}"
    day = since[:10]
    if since == day:
        return store.execute(f"{days}>= ?{by}", [since]).fetchall()
    rest = f"SELECT {', '.join(BY)}, {', '.join(SUMS.values())} FROM requests"
    first = store.execute(f"{rest} WHERE time >= ? AND time < ?{by}", [since, f"{day}~"]).fetchall()
    return first + store.execute(f"{days}> ?{by}", [day]).fetchall()


def _rows(groups: Sequence[tuple[Any, ...]], column: int | None) -> list[tuple[Any, ...]]:
    """Sums by one of `BY`, or of all, those that took the most seconds first."""
    sums: dict[Any, list[Any]] = {}
    for group in groups:
        sum_ = sums.setdefault("all" if column is None else group[column] or "", [0] * len(SUMS))
        for at, value in enumerate(group[len(BY) :]):
            sum_[at] += value or 0
    return sorted(((name, *sums_of_name) for name, sums_of_name in sums.items()), key=lambda row: -row[5])


def _hosted(base: str, total: CostRow, usd_per_hour: float) -> list[Hosted]:
    rows = []
    for price in load_prices().hosted(base) if base else []:
        usd = (total.prompt_tokens * price.input + total.completion_tokens * price.output) / 1e6
        volume = reachable = None
        if usd_per_hour and usd and total.seconds:
            volume = usd_per_hour * MONTH_HOURS / (usd / total.tokens)
            reachable = volume <= total.tokens / total.seconds * MONTH_HOURS * 3600
        rows.append(Hosted(price.provider, price.model, price.date, usd, volume, reachable))
    return rows
