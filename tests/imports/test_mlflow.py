"""MLflow: traces that its own client has logged come from its database, and the same as JSON from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from imported import brought, stored

from tuneloop.core.errors import UserError
from tuneloop.imports.formats import FORMATS
from tuneloop.imports.importing import TraceSource, import_traces

mlflow: Any = pytest.importorskip("mlflow", reason="needs mlflow")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of MLflow with three traces: of two calls with feedback, of a failure, and without a call."""
    from mlflow.entities import AssessmentSource, SpanType

    folder = tmp_path_factory.mktemp("mlflow")
    address = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(address)
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("chat", artifact_location=str(folder / "artifacts")))
    turns = [{"role": "user", "content": "Where is it?"}]
    with mlflow.start_span("agent", span_type=SpanType.AGENT) as root:
        mlflow.update_current_trace(metadata={"mlflow.trace.user": "anna", "mlflow.trace.session": "s1"})
        for answer in ("I look.", "On its way."):
            with mlflow.start_span("llm", span_type=SpanType.CHAT_MODEL) as span:
                span.set_inputs({"model": "gpt", "messages": turns})
                reply = {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop", "index": 0}
                span.set_outputs({"model": "gpt", "choices": [reply]})
                span.set_attribute(
                    "mlflow.chat.tokenUsage", {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13}
                )
    mlflow.flush_trace_async_logging()
    human = AssessmentSource(source_type="HUMAN", source_id="bob")
    mlflow.log_feedback(trace_id=root.trace_id, name="thumbs", value=True, rationale="quick", source=human)
    mlflow.log_expectation(trace_id=root.trace_id, name="answer", value="It comes today.", source=human)
    with pytest.raises(ValueError), mlflow.start_span("llm", span_type=SpanType.LLM) as span:
        span.set_inputs("plain text")
        raise ValueError("no quota")
    with mlflow.start_span("other", span_type=SpanType.TOOL):
        pass
    mlflow.flush_trace_async_logging()
    mlflow.set_tracking_uri(None)  # it also sets the variable of the environment
    return address


def test_traces_come_from_the_database_with_users_sessions_tokens_and_assessments(uri: str, tmp_path: Path) -> None:
    source = TraceSource(FORMATS["mlflow"], [uri], lambda value: value)
    summary = import_traces(source, tmp_path / "serve")
    requests, said = stored(tmp_path)
    assert summary.requests == 3 and summary.left_out == {"no_call": 1}
    by_answer = {str(asked_request.completion): asked_request for asked_request in requests}
    request = by_answer["On its way."]
    assert (request.model, request.prompt_tokens, request.completion_tokens, request.conversation) == (
        "gpt",
        9,
        4,
        "s1",
    )
    assert request.prompt == [{"role": "user", "content": "Where is it?"}] and str(request.user).startswith("u-")
    assert by_answer["None"].error is not None and by_answer["None"].prompt[0]["content"] == "plain text"
    assert {(item.kind, item.value) for item in said if item.request == request.id} == {
        ("thumbs", True), ("comment", "quick"), ("correction", "It comes today.")
    }  # fmt: skip
    assert import_traces(source, tmp_path / "serve").requests == 0


def test_the_same_traces_as_json_in_a_file_are_the_same_requests(uri: str, tmp_path: Path) -> None:
    import_traces(TraceSource(FORMATS["mlflow"], [uri], lambda value: value), tmp_path / "serve")
    records = [
        json.loads(json.dumps(record, default=str)) for _, some in FORMATS["mlflow"].live(uri, "") for record in some
    ]
    summary = brought(tmp_path, "mlflow", records)
    assert (summary.requests, summary.known) == (0, 6)


def test_a_database_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="MLflow refuses"):
        import_traces(TraceSource(FORMATS["mlflow"], [f"sqlite:///{tmp_path}/x.db"], dict), tmp_path / "serve")
