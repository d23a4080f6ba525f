"""`tuneloop top`: what a running server does, from two readings of its metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.http.timeouts import METRICS_WITHIN
from tuneloop.core.http.wire import Broken, HttpRefused, Wire, fetched, need_httptools
from tuneloop.core.urls import masked
from tuneloop.records.record import read_record
from tuneloop.records.server import ServerState
from tuneloop.serving.batch.record import read_state

Key = tuple[str, tuple[tuple[str, str], ...]]  # name of a series and its labels


@dataclass(frozen=True)
class Reading:
    """The metrics of a server at a time."""

    at: float  # of the clock, in seconds
    values: Mapping[Key, float]  # of each series


def readings_of_server(url: str, folder: Path, key: str, every: float) -> Iterator[dict[str, Any]]:
    """What a server did in each interval of so many seconds, without end; an empty `url`: that of the folder.

    Raises:
        UserError: none was started in the folder, it does not answer, or it needs a key.
    """
    address = url or _address_of(folder)
    before = read_metrics(address, time.monotonic(), key)
    while True:
        time.sleep(every)
        after = read_metrics(address, time.monotonic(), key)
        rates = view(before, after, after.at - before.at)
        yield {"address": masked(address), **rates, "batches": list(_batch_progress(folder))}
        before = after


def _address_of(folder: Path) -> str:
    if not (folder / ServerState.file).is_file():
        raise UserError("No server was started here", where=str(folder), next_step="name its folder with -f, or --url")
    return read_record(ServerState, folder).address


def read_metrics(url: str, now: float, key: str = "") -> Reading:
    """Read `/metrics` at `now` of the clock, in seconds; `key`: where one is needed; UserError: no such server."""
    from prometheus_client.parser import text_string_to_metric_families

    need_httptools(masked(url), "serve")
    try:
        text = fetched(Wire(url, key), "/metrics", METRICS_WITHIN).decode()
        families = list(text_string_to_metric_families(text))
    except (Broken, HttpRefused, ValueError) as error:
        if isinstance(error, HttpRefused) and error.status == 401:
            step = "export TUNELOOP_KEY=..., or name its variable: --api-key-env NAME"
            raise UserError("The server needs a key", where=masked(url), next_step=step) from None
        message = f"The server does not answer: {masked(str(error))}"[:200]
        raise UserError(message, where=masked(url), next_step="start it: tuneloop serve") from None
    samples = (sample for family in families for sample in family.samples)
    return Reading(now, {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples})


def difference(before: Reading | None, after: Reading) -> dict[Key, float]:
    """What the counters have grown by; all that they hold without an earlier reading, or after a restart."""
    earlier = {} if before is None else before.values
    grown = {key: value - earlier.get(key, 0.0) for key, value in after.values.items()}
    return dict(after.values) if any(value < 0 for key, value in grown.items() if key[0].endswith("_total")) else grown


def quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    """A quantile of a histogram by cumulated counts at upper bounds, linear within a bucket; None where it is empty."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    low = below = 0.0
    for bound in bounds:
        if buckets[bound] >= share * total:
            if math.isinf(bound):
                return low
            inside = buckets[bound] - below
            return low + (bound - low) * ((share * total - below) / inside if inside else 1.0)
        low, below = bound, buckets[bound]
    return low


def view(before: Reading | None, after: Reading, seconds: float) -> dict[str, Any]:
    """Rates, times and states; `seconds` between the readings, or since the server started."""
    grown = difference(before, after)

    def total(name: str, **labels: str) -> float:
        return sum(v for (n, ls), v in grown.items() if n == name and labels.items() <= dict(ls).items())

    tiers = sorted({dict(ls)["tier"] for n, ls in grown if n == "tuneloop_requests_total"})
    models = sorted({dict(ls)["gen_ai_request_model"] for n, ls in grown if n == "tuneloop_requests_total"})

    def rates(**labels: str) -> dict[str, float]:
        tokens = {**labels, "gen_ai_token_type": "output"}
        return {
            "requests_per_second": total("tuneloop_requests_total", **labels) / seconds,
            "tokens_per_second": total("gen_ai_client_token_usage_total", **tokens) / seconds,
        }

    states = (
        "active", "waiting", "in_background", "refused", "on_time", "late", "store_lost", "predictions",
        "prediction_error", "prediction_coverage",
    )  # fmt: skip
    return {
        **rates(),
        "usd_per_hour": total("tuneloop_usd_total") / seconds * 3600,
        "engine_share": min(total("tuneloop_engine_seconds_total") / seconds, 1.0),
        "tiers": {tier: _times(grown, tier) for tier in tiers},
        "models": {model: rates(gen_ai_request_model=model) for model in models},
        **{name: after.values.get((f"tuneloop_{name}", ()), 0.0) for name in states},
    }


def _times(grown: Mapping[Key, float], tier: str) -> dict[str, float | None]:
    buckets: dict[float, float] = {}
    for (name, labels), value in grown.items():
        by_name = dict(labels)
        if name == "gen_ai_server_time_to_first_token_bucket" and by_name.get("tier") == tier:
            bound = float(by_name["le"].replace("+Inf", "inf"))
            buckets[bound] = buckets.get(bound, 0.0) + value
    times = {f"ttft_p{int(100 * share)}_ms": quantile(share, buckets) for share in (0.5, 0.99)}
    return {name: None if value is None else 1000 * value for name, value in times.items()}


def _batch_progress(folder: Path) -> Iterator[dict[str, Any]]:
    """The batches of a server that are not over."""
    for path in sorted((folder / "batch" / "batches").glob("batch_*")):
        try:
            state = read_state(path)
        except UserError:
            continue
        if not state.over:
            yield {"id": state.id, "status": state.status, **state.request_counts.model_dump()}
