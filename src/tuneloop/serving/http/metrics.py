"""Counters and times of a server for Prometheus, with OpenTelemetry's names for generative AI where there are any."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuneloop.records.request import StoredRequest
    from tuneloop.serving.gateway import Gateway

_GAUGES = {
    "active": "Requests that are being answered.",
    "waiting": "Requests that wait.",
    "in_background": "Requests of batches and of the tier flex that are under way.",
    "predictions": "First tokens that were compared with their prediction.",
    "store_waiting": "Records that wait to be written.",
    "store_written": "Records in the store.",
    "store_spilled": "Records that went into the spill file.",
    "store_lost": "Records that could not be kept.",
    "store_dead": "Records that no store takes, in store.dead.jsonl.",
    "prediction_error": "Mean relative error of the predicted time to the first token.",
    "prediction_coverage": "Share of first tokens within the predicted bound.",
    "on_time": "First tokens within their deadline.",
    "late": "First tokens after their deadline.",
    "store_unsafe": "Records that were not written before their answer ended, for want of disk.",
    "shadow_waiting": "Copies that wait for a candidate's unseen answer.",
    "shadow_dropped": "Copies that were dropped for later ones.",
    "engines_out": "Engines that are left out until they answer their canaries.",
    "refused": "Requests that were refused for their deadline or a full queue.",
    "downgraded": "Requests that would have been late and were answered in the tier flex, by a setting of their key.",
}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass
class _Times:
    """A histogram: how many values fell into each bucket, and their sum."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count a value in seconds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has it: how many values were at most each bound."""
        return list(zip([*map(repr, self.bounds), "+Inf"], accumulate(map(float, self.counts)), strict=True))


@dataclass
class _Series:
    """What was counted of a model and tier. Plain numbers: a counter of the client library takes ten times as long."""

    duration: _Times = field(default_factory=lambda: _Times(_SECONDS))
    first: _Times = field(default_factory=lambda: _Times(_SECONDS))
    each: _Times = field(default_factory=lambda: _Times(_PER_TOKEN))
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0
    ended: Counter[str] = field(default_factory=Counter)


class Metrics:
    """The metrics of one server; OpenTelemetry's names, with underscores for dots as its Prometheus exporter has it."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Gauge

        self.registry = CollectorRegistry()
        self._series: dict[tuple[str, str], _Series] = defaultdict(_Series)
        self.registry.register(self)
        self.gauges = {name: Gauge(f"tuneloop_{name}", text, registry=self.registry) for name, text in _GAUGES.items()}

    def count(self, record: StoredRequest, status: str) -> None:
        """Take an answered or refused request in."""
        series = self._series[record.model, record.tier or "default"]
        series.ended[status] += 1
        if record.completion_tokens:
            series.prompt_tokens += record.prompt_tokens
            series.completion_tokens += record.completion_tokens
            series.usd += record.usd or 0.0
            series.seconds += record.seconds or 0.0
        if record.total_ms is not None:
            series.duration.observe(record.total_ms / 1000)
        if record.ttft_ms is not None and record.total_ms is not None:
            series.first.observe(record.ttft_ms / 1000)
            if record.completion_tokens > 1:
                rest = (record.total_ms - record.ttft_ms) / 1000 / (record.completion_tokens - 1)
                series.each.observe(max(rest, 0.0))

    def set_gauges(self, gateway: Gateway) -> dict[str, float]:
        """Set the gauges to the state of a server; returns it."""
        admission, counts, tally = gateway.admission, gateway.store.counts, gateway.admission.tally
        calibrations = [times.calibration for times in admission.models.values() if times.calibration.n]
        n = sum(calibration.n for calibration in calibrations) or 1
        values: dict[str, float] = {
            "active": len(admission.active), "waiting": admission.waiting, "in_background": admission.in_background,
            "store_waiting": gateway.store.waiting, "store_written": counts.stored, "store_spilled": counts.spilled,
            "store_lost": counts.losses, "store_dead": counts.dead, "store_unsafe": gateway.store.unsafe,
            "prediction_error": sum(calibration.error * calibration.n for calibration in calibrations) / n,
            "prediction_coverage": sum(calibration.coverage * calibration.n for calibration in calibrations) / n,
            "predictions": sum(calibration.n for calibration in calibrations),
            "on_time": tally.on_time, "late": tally.late, "refused": tally.refused, "downgraded": tally.downgraded,
            "shadow_waiting": len(gateway.copies.waiting), "shadow_dropped": gateway.copies.dropped,
            "engines_out": sum(bool(member.out) for member in getattr(gateway.engine, "members", ())),
        }  # fmt: skip
        for name, value in values.items():
            self.gauges[name].set(value)
        return values

    def collect(self) -> Iterator[Any]:
        """What was counted, in the form that the client library expects of a collector."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        labels = ["gen_ai_request_model", "tier"]
        requests = CounterMetricFamily("tuneloop_requests", "Requests by how they ended.", labels=[*labels, "status"])
        tokens = CounterMetricFamily("gen_ai_client_token_usage", "Tokens.", labels=[*labels, "gen_ai_token_type"])
        usd = CounterMetricFamily("tuneloop_usd", "Dollars by prices of tokens.", labels=labels)
        seconds = CounterMetricFamily("tuneloop_engine_seconds", "Seconds of the engine.", labels=labels)
        histograms = (
            ("duration", "request_duration", "Seconds of a request."),
            ("first", "time_to_first_token", "Seconds to the first token."),
            ("each", "time_per_output_token", "Seconds for each further token."),
        )
        times = {
            name: HistogramMetricFamily(f"gen_ai_server_{ending}", text, labels=labels)
            for name, ending, text in histograms
        }
        for whose, series in list(self._series.items()):
            for status, count in list(series.ended.items()):
                requests.add_metric([*whose, status], count)
            tokens.add_metric([*whose, "input"], series.prompt_tokens)
            tokens.add_metric([*whose, "output"], series.completion_tokens)
            usd.add_metric(whose, series.usd)
            seconds.add_metric(whose, series.seconds)
            for name, family in times.items():
                family.add_metric(whose, getattr(series, name).buckets(), getattr(series, name).sum)
        yield from (requests, *times.values(), tokens, usd, seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
