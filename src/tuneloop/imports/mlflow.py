"""MLflow: traces of its client's `search_traces`, and the same as JSON in files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.http.allowance import Allowance
from tuneloop.data.formats import Refused, as_value, first, objects
from tuneloop.imports.otel import span_parts
from tuneloop.imports.pages import refuse_endless
from tuneloop.imports.parts import Record, TraceFormat, TracePart, call, call_of, facts, score, text_of, version_of

PAGE = 100  # traces of a request
_CALLS = ("LLM", "CHAT_MODEL")
_AROUND = {"user": "mlflow.trace.user", "conversation": "mlflow.trace.session"}
_CALL = {
    "start": "start_time_unix_nano start_time",
    "end": "end_time_unix_nano end_time",
    "model": "mlflow.llm.model mlflow.spanInputs.model mlflow.spanOutputs.model",
    "prompt_tokens": "mlflow.chat.tokenUsage.input_tokens",
    "completion_tokens": "mlflow.chat.tokenUsage.output_tokens",
    "usd": "mlflow.llm.cost.total_cost",
}


def parts(record: Record) -> Iterator[TracePart]:
    """The parts of a trace; Refused: it is none of MLflow's."""
    info, data = as_value(record.get("info")), as_value(record.get("data"))
    if not isinstance(info, dict) or not isinstance(data, dict):
        raise Refused("wrong_type", "no trace of MLflow: info and data")
    trace = text_of(first(info, "trace_id", "request_id")) or ""
    about = {**_listed(info.get("tags")), **_listed(first(info, "trace_metadata", "request_metadata"))}
    values = facts(about, _AROUND)
    for prompt in objects(as_value(about.get("mlflow.linkedPrompts")))[:1]:
        values["release"] = version_of(prompt.get("name"), prompt.get("version"))
    yield TracePart("node", trace, trace, values=values)
    for span in objects(data.get("spans")):
        yield from _span(span, trace)
    for assessment in objects(info.get("assessments")):
        yield from _assessment(assessment, trace)


def _listed(value: Any) -> dict[str, Any]:
    if isinstance(value, list):  # the first version of the protocol
        return {str(tag.get("key")): tag.get("value") for tag in objects(value)}
    return value if isinstance(value, dict) else {}


def _span(span: Record, trace: str) -> Iterator[TracePart]:
    attributes = {key: _unquoted(as_value(value)) for key, value in (span.get("attributes") or {}).items()}
    id_ = text_of(first(span, "span_id", "context.span_id")) or ""
    parent = text_of(first(span, "parent_span_id", "parent_id")) or trace
    part = call_of({**span, **attributes}, _CALL, trace, id_, parent)
    if attributes.get("mlflow.spanType") not in _CALLS:
        (node, *_) = span_parts({**span, "attributes": attributes, "trace_id": trace, "span_id": id_})
        node.trace, node.id, node.parent, node.time = trace, id_, parent, part.time
        yield node
        return
    status = as_value(first(span, "status", "status_code"))
    code = status.get("code") if isinstance(status, dict) else status
    if str(code) in ("STATUS_CODE_ERROR", "ERROR", "2"):
        part.values["error"] = text_of(first({"status": status}, "status.message")) or "failed"
    prompt, answer = attributes.get("mlflow.spanInputs"), attributes.get("mlflow.spanOutputs")
    yield call(part, prompt, answer, attributes.get("mlflow.chat.tools"))


def _unquoted(value: Any) -> Any:
    """A text that MLflow has written as JSON."""
    return as_value(f"[{value}]")[0] if isinstance(value, str) and value[:1] == '"' and value[-1:] == '"' else value


def _assessment(record: Record, trace: str) -> Iterator[TracePart]:
    name, id_ = first(record, "assessment_name", "name"), text_of(record.get("assessment_id")) or ""
    value = first(record, "feedback.value", "expectation.value", "value")
    source = str(first(record, "source.source_type") or "human").casefold()
    more = {
        "time": first(record, "create_time", "create_time_ms"),
        "user": text_of(first(record, "source.source_id")),
        "source": f"mlflow.{source}"[:40],
    }
    about = text_of(record.get("span_id")) or ""
    if value is not None:
        is_correction = record.get("expectation") and isinstance(value, str)
        yield score(trace, id_, about, "correction" if is_correction else name, value, **more)
    if rationale := text_of(record.get("rationale")):
        yield score(trace, f"{id_}:rationale", about, "comment", rationale, **more)


def live(address: str, cursor: str) -> Iterator[tuple[str, Sequence[Record]]]:
    """All traces of a tracking server or its database, the oldest first."""
    try:
        from mlflow import MlflowClient
    except ImportError:
        step = "pip install 'tuneloop[track]', or name a file of traces"
        raise UserError("MLflow is not installed", where=address, next_step=step) from None
    page: str | None = cursor or None
    try:
        client = MlflowClient(address)
        some = client.search_experiments()
        places, taken = [experiment.experiment_id for experiment in some], Allowance()
        while some.token:
            some = client.search_experiments(page_token=some.token)
            places += [experiment.experiment_id for experiment in some]
            refuse_endless(taken.fault((experiment.experiment_id for experiment in some), some.token), address)
        how: dict[str, Any] = {"locations": places, "max_results": PAGE, "order_by": ["timestamp_ms ASC"]}
        taken = Allowance()
        while True:
            traces = client.search_traces(**how, page_token=page)
            page = traces.token
            fault = taken.fault((trace.info.trace_id for trace in traces), page or "")
            yield ("" if fault else page or ""), [trace.to_dict() for trace in traces]
            refuse_endless(fault, address)
            if not page:
                return
    except UserError:
        raise
    except Exception as error:  # MLflow's own, of its database's library, or of the network
        step = "name a tracking URI, http://HOST:5000 or sqlite:///mlflow.db; with a login set MLFLOW_TRACKING_TOKEN"
        raise UserError(f"MLflow refuses: {error!s:.200}", where=address, next_step=step) from None


PLACES = ("http://", "https://", "sqlite://", "postgresql://", "mysql://", "databricks")
FORMAT = TraceFormat("mlflow", "MLflow", parts, live, lambda source: source.startswith(PLACES))
