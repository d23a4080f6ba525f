"""MLflow's evaluation tables: `eval_results_table.json` of a run, and the table of `mlflow.genai.evaluate` as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuneloop.data.formats import first, objects
from tuneloop.evaluation.foreign.record import ForeignEvaluation, Observation, collected, key_of, text_of

TOOL = "MLflow"
_INPUTS = ("inputs", "request", "input", "question", "prompt")
_ANSWERS = ("outputs", "predictions", "prediction", "response", "output")
_REFERENCES = ("ground_truth", "targets", "target", "expectations", "expected_response")


def claims(value: Any) -> bool:
    """Whether a JSON document is a table by columns and rows, as MLflow logs it."""
    return isinstance(value, dict) and isinstance(value.get("columns"), list) and isinstance(value.get("data"), list)


def claims_records(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these are rows of such a table."""
    names = records[0].keys() if records else ()
    return "assessments" in names or any(n.endswith("/value") or re.search(r"/v\d+/score$", n) for n in names)


def read(source: str, value: Any) -> list[ForeignEvaluation]:
    """A table by columns and rows."""
    return read_records(source, [dict(zip(value["columns"], row, strict=False)) for row in value["data"]])


def read_records(source: str, records: Sequence[Mapping[str, Any]]) -> list[ForeignEvaluation]:
    """The rows of a table."""
    return [collected(source, TOOL, "", _observations(records))]


def _is_score(name: str) -> bool:
    """`exact_match/value` of MLflow 3, `toxicity/v1/score` of MLflow 2."""
    return name.endswith(("/value", "/score"))


def _observations(records: Sequence[Mapping[str, Any]]) -> Iterator[Observation]:
    for record in records:
        by_name = {n.split("/")[0]: v for n, v in record.items() if _is_score(n)}
        scores = _assessed(record.get("assessments")) or by_name  # which has expectations too
        if not scores:  # metrics of one's own stand under their plain names
            others = {*_INPUTS, *_ANSWERS, *_REFERENCES, "id", "trace_id", "token_count"}
            scores = {n: v for n, v in record.items() if n not in others and isinstance(v, bool | int | float)}
        text, tags = first(record, *_INPUTS), record.get("tags")
        given = first(record, "id", "row_id")  # an id of a trace is another one in every run
        yield Observation(
            id=str(given if given is not None else key_of(text)),
            scores=scores,
            input=text,
            reference=text_of(first(record, *_REFERENCES)),
            answer=next((record[n] for n in _ANSWERS if isinstance(record.get(n), str)), ""),
            error=str(record.get("error") or ""),
            meta=tags if isinstance(tags, Mapping) else {},
        )


def _assessed(assessments: Any) -> dict[str, Any]:
    """Scorer -> value of the feedback of a trace; expectations are no scores, and a scorer that failed has none."""
    return {
        str(first(assessment, "assessment_name", "name")): assessment["feedback"].get("value")
        for assessment in objects(assessments)
        if isinstance(assessment.get("feedback"), Mapping)
    }
