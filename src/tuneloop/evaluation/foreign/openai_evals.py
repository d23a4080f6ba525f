"""OpenAI's evaluations: output items of the Evals API, and the event log that `oaieval` writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuneloop.data.formats import first, objects
from tuneloop.evaluation.foreign.record import ForeignEvaluation, Observation, collected, text_of

TOOL = "OpenAI evals"
ITEM = "eval.run.output_item"


def claims_records(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these are output items, or events of `oaieval`."""
    first = records[0] if records else {}
    return first.get("object") == ITEM or "spec" in first or {"sample_id", "event_id", "type"} <= first.keys()


def claims(value: Any) -> bool:
    """Whether a JSON document is a page of output items."""
    items = value.get("data") if isinstance(value, dict) else None
    return isinstance(items, list) and bool(items) and isinstance(items[0], dict) and items[0].get("object") == ITEM


def read(source: str, value: Any) -> list[ForeignEvaluation]:
    """A page of output items, as the API lists them."""
    notes = ["The API had more items than this page holds (has_more)."] if value.get("has_more") else []
    return [collected(source, TOOL, _model(value["data"]), map(_output_item, value["data"]), notes)]


def read_records(source: str, records: Sequence[Mapping[str, Any]]) -> list[ForeignEvaluation]:
    """Output items, one a line; or the events of a run of `oaieval`."""
    if records[0].get("object") == ITEM:
        return [collected(source, TOOL, _model(records), map(_output_item, records))]
    systems = next((first(record, "spec.completion_fns") for record in records if "spec" in record), None)
    system = ", ".join(map(str, systems or ()))
    return [collected(source, TOOL, system, _events(records))]


def _model(items: Sequence[Mapping[str, Any]]) -> str:
    return str((items[0].get("sample") or {}).get("model") or "")


def _output_item(item: Mapping[str, Any]) -> Observation:
    sample, source = item.get("sample") or {}, item.get("datasource_item") or {}
    failure = str(first(sample, "error.message") or "")
    scores = {
        str(result.get("name", "score")): first(result, "score", "passed") for result in objects(item.get("results"))
    }
    text = next((source[n] for n in ("input", "question", "prompt") if isinstance(source.get(n), str)), None)
    own = source.get("id")
    return Observation(
        id=str(own if isinstance(own, str | int) else first(item, "datasource_item_id", "id")),
        scores={} if failure else scores,
        input=text or sample.get("input"),
        answer=str((sample.get("output") or [{}])[-1].get("content") or ""),
        error=failure,
        meta={n: v for n, v in source.items() if n not in ("id", "input")},
    )


def _events(records: Sequence[Mapping[str, Any]]) -> Iterator[Observation]:
    """The samples of an event log: what was drawn, and what was found of it."""
    prompts: dict[str, Any] = {}
    for record in records:
        data = record.get("data")
        if record.get("type") == "sampling" and isinstance(data, Mapping):
            prompts.setdefault(str(record.get("sample_id")), data.get("prompt"))
    for record in records:
        data, sample = record.get("data"), str(record.get("sample_id"))
        if record.get("type") not in ("match", "metrics") or not isinstance(data, Mapping):
            continue
        plain = {n: v for n, v in data.items() if isinstance(v, bool | int | float)}
        matched = {"match": data["correct"]} if isinstance(data.get("correct"), bool) else {}
        plain.pop("correct", None)
        expected = data.get("expected")
        yield Observation(
            id=sample,
            scores=matched | plain,
            input=prompts.get(sample),
            reference=expected if isinstance(expected, str) else text_of(expected),
            answer=str(data.get("sampled") or data.get("picked") or ""),
            epoch=str(record.get("type")),
        )
