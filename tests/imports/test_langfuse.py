"""Langfuse: exports of its pages and its public API, with a server that limits, breaks off and changes meanwhile."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
from imported import brought, faults, stored
from local_http import Quiet, listening

from tuneloop.core.errors import UserError
from tuneloop.core.http import service, timeouts
from tuneloop.imports.formats import FORMATS
from tuneloop.imports.importing import ImportSummary, TraceSource, import_traces


def generation(name: str, **changes: Any) -> dict[str, Any]:
    """An observation of the type that calls a model."""
    return {
        "id": name, "traceId": "t1", "type": "GENERATION", "parentObservationId": None, "model": "gpt-4o",
        "startTime": "2026-09-21T14:00:00.000Z", "completionStartTime": "2026-09-21T14:00:00.250Z",
        "endTime": "2026-09-21T14:00:01.000Z", "usageDetails": {"input": 11, "output": 5, "total": 16},
        "costDetails": {"total": 0.003}, "promptName": "support", "promptVersion": 4, "level": "DEFAULT",
        "input": [{"role": "user", "content": f"question of {name}"}], "output": {"role": "assistant", "content": "yes"},
        **changes,
    }  # fmt: skip


TRACE = {"id": "t1", "timestamp": "2026-09-21T14:00:00Z", "name": "chat", "userId": "anna", "sessionId": "s1"}
SPAN = {"id": "s", "traceId": "t1", "type": "SPAN", "parentObservationId": None, "startTime": "2026-09-21T14:00:00Z"}


def test_a_trace_with_observations_and_scores_gives_calls_that_know_their_user(tmp_path: Path) -> None:
    scores = [
        {"id": "x", "name": "user-feedback", "value": 1, "dataType": "BOOLEAN", "source": "API", "observationId": "g1",
         "timestamp": "2026-09-21T15:00:00Z", "comment": "nice"},
        {"id": "y", "name": "Hallucination", "value": 0.2, "dataType": "NUMERIC", "source": "EVAL",
         "timestamp": "2026-09-21T15:00:00Z"},
    ]  # fmt: skip
    later = generation("g2", startTime="2026-09-21T14:00:05Z", endTime="2026-09-21T14:00:06Z", completionStartTime=None)
    outer = generation("outer", output="yes")
    inner = generation("inner", parentObservationId="outer", startTime="2026-09-21T14:00:00.1Z")
    record = {
        "trace": TRACE, "scores": scores,
        "observations": [later, generation("g1", parentObservationId="s"), SPAN, outer, inner],
    }  # fmt: skip
    summary = brought(tmp_path, "langfuse", [record])
    requests, said = stored(tmp_path)
    by_name = {asked_request.prompt[0]["content"].split()[-1]: asked_request for asked_request in requests}
    assert by_name.keys() == {"g1", "g2", "inner"} and summary.left_out == {"wraps_call": 1}
    request = by_name["g1"]
    assert (request.conversation, request.release, request.model, request.usd) == ("s1", "support/4", "gpt-4o", 0.003)
    assert (request.prompt_tokens, request.completion_tokens, request.ttft_ms, request.total_ms) == (
        11,
        5,
        250.0,
        1000.0,
    )
    assert len({asked_request.user for asked_request in requests}) == 1 and str(request.user).startswith("u-")
    assert {(item.kind, item.value, item.request) for item in said} == {
        ("thumbs", True, request.id), ("comment", "nice", request.id), ("hallucination", 0.2, by_name["g2"].id)
    }  # fmt: skip  # what is said of the trace is said of its last answer


def test_errors_texts_as_json_strings_and_blob_exports_in_snake_case(tmp_path: Path) -> None:
    records = [
        TRACE,
        generation("bad", level="ERROR", statusMessage="no quota", output=None),
        {"id": "snake", "trace_id": "t1", "type": "GENERATION", "start_time": "2026-09-21 14:00:00.000",
         "input": json.dumps([{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]), "output": "\"fine\"",
         "provided_model_name": "gpt", "usage_details": {"input": 2}, "total_cost": 0.5},
        {"id": "other", "timestamp": "2026-09-21T14:00:00Z", "input": "x", "output": "y"},
    ]  # fmt: skip
    summary = brought(tmp_path, "langfuse", records)
    requests, _ = stored(tmp_path)
    failed, snake = sorted(requests, key=lambda request: request.model == "gpt")
    assert failed.error == "no quota" and failed.completion is None
    assert (snake.prompt[0]["content"], snake.usd, snake.prompt_tokens) == ("hi", 0.5, 2)
    assert [(line["reason"], line["detail"]) for line in faults(summary)] == [("no_call", "other")]


class Langfuse(Quiet):
    """The lists of a project: by cursor, as version 3 has them, or by page, as version 2 has."""

    new: ClassVar[bool] = True
    troubles: ClassVar[list[str]] = []
    requests: ClassVar[list[str]] = []
    rows: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, query = url.path.removeprefix("/api/public"), {key: item[0] for key, item in parse_qs(url.query).items()}
        Langfuse.requests.append(path)
        if self.headers.get("Authorization") != f"Basic {base64.b64encode(b'pk:sk').decode()}":
            self.answer(401, {})
            return
        trouble = Langfuse.troubles.pop() if Langfuse.troubles else ""
        if trouble == "limit":
            self.answer(429, {}, {"Retry-After": "0"})
        elif trouble == "down":
            self.answer(503, {})
        elif trouble == "cut":
            self.answer(200, b'{"data": [', {"Content-Length": "5000"})
            self.close_connection = True
        elif trouble == "denied":
            self.answer(403, {})
        elif path == "/v2/observations" and Langfuse.new:
            at = self.parsed_cursor(query.get("cursor") or "")
            more = {"cursor": str(at + 2) + "x"} if at + 2 < len(Langfuse.rows) else {}
            self.answer(200, {"data": Langfuse.rows[at : at + 2], "meta": more})
        elif path in ("/observations", "/traces", "/scores") and not Langfuse.new:
            rows = {"/observations": Langfuse.rows, "/traces": [TRACE], "/scores": []}[path]
            page = int(query.get("page") or 1)
            shifted = max(0, 2 * page - 3) if page > 1 else 0  # a row more came at the beginning meanwhile
            meta = {"page": page, "totalPages": -(-len(rows) // 2) + (path == "/observations")}
            self.answer(200, {"data": rows[shifted : shifted + 2], "meta": meta})
        elif path == "/v3/scores" and Langfuse.new:
            subject = {"kind": "observation", "id": "g1", "traceId": "t1"}
            self.answer(200, {"data": [
                {"id": "x", "name": "rating", "value": 4, "dataType": "NUMERIC", "source": "ANNOTATION",
                 "timestamp": "2026-09-21T15:00:00Z", "subject": subject}], "meta": {}})  # fmt: skip
        else:
            self.answer(404, {})

    def parsed_cursor(self, text: str) -> int:
        return int(text.rstrip("x") or 0)


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of such a server, whose keys are set."""
    monkeypatch.setenv("LANGFUSE_PUBLIC_KEY", "pk")
    monkeypatch.setenv("LANGFUSE_SECRET_KEY", "sk")
    monkeypatch.setattr(timeouts, "backoff", lambda *_: 0.0)
    Langfuse.new, Langfuse.troubles, Langfuse.requests = True, [], []
    Langfuse.rows = [generation(f"g{n}", userId="anna", sessionId="s1") for n in range(1, 6)]
    with listening(Langfuse) as url:
        yield url


def from_service(address: str, folder: Path) -> ImportSummary:
    """The summary of an import of a whole project."""
    return import_traces(TraceSource(FORMATS["langfuse"], [address], lambda value: value), folder / "serve")


@pytest.mark.parametrize("new", [True, False])
def test_a_project_is_read_through_limits_outages_and_cut_answers(address: str, tmp_path: Path, new: bool) -> None:
    Langfuse.new, Langfuse.troubles = new, ["cut", "down", "limit"]
    summary = from_service(address, tmp_path)
    requests, said = stored(tmp_path)
    assert {request.prompt[0]["content"].split()[-1] for request in requests} == {f"g{n}" for n in range(1, 6)}
    assert {request.conversation for request in requests} == {"s1"} and len({request.user for request in requests}) == 1
    assert [(item.kind, item.value, item.source) for item in said] == [("rating", 4, "langfuse.annotation")] * new
    assert summary.requests == 5 and (new or summary.repeated > 0)  # a page that moved gives rows again
    assert from_service(address, tmp_path).requests == 0


def test_a_service_that_stays_away_is_left_with_what_was_read_and_continues_there(address: str, tmp_path: Path) -> None:
    Langfuse.troubles = ["down"] * (service.TRIES + 1) + ["none"]
    with pytest.raises(UserError, match="gives no whole answer: HTTP 503"):
        from_service(address, tmp_path)
    assert stored(tmp_path) == ([], [])
    before = len(Langfuse.requests)
    assert from_service(address, tmp_path).requests == 5
    assert Langfuse.requests[before:].count("/v2/observations") == 2  # of three pages the first was there


def test_keys_without_rights_wrong_ones_and_another_server(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Langfuse.troubles = ["denied"]
    with pytest.raises(UserError, match="refuses the keys: HTTP 403"):
        from_service(address, tmp_path)
    Langfuse.new = False
    monkeypatch.setattr(Langfuse, "do_GET", lambda self: self.answer(404, {}))
    with pytest.raises(UserError, match="There is no Langfuse here"):
        from_service(address, tmp_path)
    monkeypatch.delenv("LANGFUSE_SECRET_KEY")
    with pytest.raises(UserError, match="keys of Langfuse are not set"):
        from_service(address, tmp_path)


def test_keys_are_sent_to_no_other_host(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = {"Location": "http://elsewhere.invalid/api"}
    monkeypatch.setattr(Langfuse, "do_GET", lambda self: self.answer(302, {}, elsewhere))
    with pytest.raises(UserError, match="sends to another address"):
        from_service(address, tmp_path)
