"""Results of DeepEval: `.latest_test_run.json`, files of a results folder, and a dumped `EvaluationResult`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tuneloop.data.formats import first, objects
from tuneloop.evaluation.foreign.record import ForeignEvaluation, Observation, collected, key_of

TOOL = "DeepEval"
_CASES = ("testCases", "test_cases", "test_results", "testResults")


def _cases(value: Any) -> list[dict[str, Any]]:
    value = value.get("testRunData", value) if isinstance(value, dict) else {}
    return objects(first(value, *_CASES))


def claims(value: Any) -> bool:
    """Whether a JSON document is a run of DeepEval."""
    return any("metricsData" in case or "metrics_data" in case for case in _cases(value))


def read(source: str, value: Any) -> list[ForeignEvaluation]:
    """A test run."""
    return [collected(source, TOOL, "", _observations(_cases(value)))]


def _observations(cases: list[dict[str, Any]]) -> Iterator[Observation]:
    for case in cases:
        metrics = objects(first(case, "metricsData", "metrics_data"))
        errors = [str(metric["error"]) for metric in metrics if metric.get("error")]
        scores = {
            str(metric.get("name")): None if metric.get("error") else first(metric, "score", "success")
            for metric in metrics
        }
        text, name = case.get("input"), str(case.get("name") or "")
        meta = first(case, "additionalMetadata", "additional_metadata", "metadata")
        own = "" if name.startswith("test_case_") else name  # `test_case_7` is a place in the run, not a name
        yield Observation(
            id=own or key_of(text) or name,
            scores=scores,
            input=text,
            reference=str(first(case, "expectedOutput", "expected_output") or ""),
            answer=str(first(case, "actualOutput", "actual_output") or ""),
            error=errors[0] if errors and len(errors) == len(metrics) else "",
            meta=meta if isinstance(meta, dict) else {},
        )
