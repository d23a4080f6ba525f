"""Counters and times of a server, for Prometheus, by the names of OpenTelemetry's conventions for generative AI where they exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuneloop.records.request import StoredRequest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class _Series:
    """The series of a model and tier."""

    duration: Any
    first: Any
    each: Any
    read: Any
    written: Any
    usd: Any
    seconds: Any


class Metrics:
    """The metrics of one server, in a registry of their own.

    The names are OpenTelemetry's with underscores in place of dots, as its exporter for Prometheus writes them.
    """

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        labels = ["gen_ai_request_model", "tier"]
        self.requests = Counter("tuneloop_requests", "Requests by how they ended.", [*labels, "status"], **own)
        self.duration = Histogram(
            "gen_ai_server_request_duration", "Seconds of a request.", labels, buckets=_SECONDS, **own
        )
        self.first = Histogram(
            "gen_ai_server_time_to_first_token", "Seconds to the first token.", labels, buckets=_SECONDS, **own
        )
        self.each = Histogram(
            "gen_ai_server_time_per_output_token", "Seconds for each further token.", labels, buckets=_PER_TOKEN, **own
        )
        self.tokens = Counter("gen_ai_client_token_usage", "Tokens.", [*labels, "gen_ai_token_type"], **own)
        self.usd = Counter("tuneloop_usd", "Dollars by prices of tokens.", labels, **own)
        self.seconds = Counter("tuneloop_engine_seconds", "Seconds of the engine.", labels, **own)
        self._known: dict[tuple[str, str], _Series] = {}
        self.gauges = {
            name: Gauge(f"tuneloop_{name}", text, **own)
            for name, text in (
                ("active", "Requests that are being answered."),
                ("waiting", "Requests that wait."),
                ("giving_way", "Requests of batches and of the tier flex that are under way."),
                ("predictions", "First tokens that were compared with their prediction."),
                ("store_waiting", "Records that wait to be written."),
                ("store_written", "Records in the store."),
                ("store_spilled", "Records that went into the spill file."),
                ("store_lost", "Records that could not be kept."),
                ("prediction_error", "Mean relative error of the predicted time to the first token."),
                ("prediction_coverage", "Share of first tokens within the predicted bound."),
                ("on_time", "First tokens within their deadline."),
                ("late", "First tokens after their deadline."),
                ("store_unsafe", "Records that were not written before their answer ended, for want of disk."),
                ("shadow_waiting", "Copies that wait for a candidate's unseen answer."),
                ("shadow_dropped", "Copies that gave way to later ones."),
                ("engines_out", "Engines that are left out until they answer their canaries."),
                ("refused", "Requests that were refused for their deadline or a full queue."),
            )
        }

    def count(self, record: StoredRequest, status: str) -> None:
        """Take an answered or refused request in."""
        labels = (record.model, record.tier or "default")
        known = self._known.get(labels)
        if known is None:  # looking a series up by its labels costs more than counting
            known = self._known[labels] = _Series(
                self.duration.labels(*labels), self.first.labels(*labels), self.each.labels(*labels),
                self.tokens.labels(*labels, "input"), self.tokens.labels(*labels, "output"),
                self.usd.labels(*labels), self.seconds.labels(*labels),
            )  # fmt: skip
        self.requests.labels(*labels, status).inc()
        if record.completion_tokens:
            known.read.inc(record.prompt_tokens)
            known.written.inc(record.completion_tokens)
            known.usd.inc(record.usd or 0.0)
            known.seconds.inc(record.seconds or 0.0)
        if record.total_ms is not None:
            known.duration.observe(record.total_ms / 1000)
        if record.ttft_ms is not None and record.total_ms is not None:
            known.first.observe(record.ttft_ms / 1000)
            if record.completion_tokens > 1:
                rest = (record.total_ms - record.ttft_ms) / 1000 / (record.completion_tokens - 1)
                known.each.observe(max(rest, 0.0))

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
