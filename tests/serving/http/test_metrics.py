"""What `/metrics` says is what was counted, in the form that Prometheus reads."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tuneloop.records.request import StoredRequest
from tuneloop.serving.http.metrics import Metrics


def answered(ttft_ms: float, total_ms: float, tokens: int, tier: str = "default") -> StoredRequest:
    return StoredRequest(
        id="r", time="t", model="tickets", prompt=[], prompt_tokens=10, completion_tokens=tokens, ttft_ms=ttft_ms,
        total_ms=total_ms, usd=0.5, seconds=0.25, tier=tier,
    )  # fmt: skip


def test_requests_are_counted_by_model_tier_and_end() -> None:
    metrics = Metrics()
    for item in (answered(30, 130, 11), answered(600, 700, 11), answered(5, 5, 1)):
        metrics.count(item, "ok")
    metrics.count(answered(30, 130, 11, "flex"), "503")
    refused = StoredRequest(id="r", time="t", model="tickets", prompt=[], total_ms=1.0)
    metrics.count(refused, "429")
    found = {
        (sample.name, sample.labels.get("tier"), sample.labels.get("le") or sample.labels.get("status")): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }
    assert found["tuneloop_requests_total", "default", "ok"] == 3
    assert found["tuneloop_requests_total", "default", "429"] == 1
    assert found["tuneloop_requests_total", "flex", "503"] == 1
    assert found["gen_ai_server_time_to_first_token_bucket", "default", "0.005"] == 1, "a bound belongs to its bucket"
    assert found["gen_ai_server_time_to_first_token_bucket", "default", "0.05"] == 2
    assert found["gen_ai_server_time_to_first_token_bucket", "default", "+Inf"] == 3
    assert round(found["gen_ai_server_time_to_first_token_sum", "default", None], 6) == 0.635
    assert found["gen_ai_server_request_duration_count", "default", None] == 4, "refused ones last, too"
    assert found["gen_ai_server_time_per_output_token_count", "default", None] == 2
    assert found["tuneloop_usd_total", "default", None] == 1.5
    assert found["gen_ai_server_request_duration_count", "flex", None] == 1
