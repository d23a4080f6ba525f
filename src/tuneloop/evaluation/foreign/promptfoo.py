"""Results of promptfoo: `promptfoo eval --output results.json`, of versions 2 and 3; each provider and prompt apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuneloop.data.formats import first
from tuneloop.evaluation.foreign.record import ForeignEvaluation, Observation, collected, key_of

TOOL = "promptfoo"
_ERROR = 2  # `failureReason`: the provider failed; 1: an assertion did
_IDS = ("id", "item_id", "sample_id")
_INPUTS = ("input", "question", "prompt", "query", "text", "message")  # variables that hold the input


def claims(value: Any) -> bool:
    """Whether a JSON document is promptfoo's."""
    if not isinstance(value, dict):
        return False
    inner = value.get("results", value)
    lines = inner.get("results") if isinstance(inner, dict) else None
    return isinstance(lines, list) and bool(lines) and isinstance(lines[0], dict) and "vars" in lines[0]


def read(source: str, value: Any) -> list[ForeignEvaluation]:
    """One evaluation for each provider with each prompt."""
    lines = [line for line in value.get("results", value)["results"] if isinstance(line, Mapping)]
    prompts = dict.fromkeys(_prompt(line) for line in lines)
    systems: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        name = _provider(line) if len(prompts) == 1 else f"{_provider(line)} {_prompt(line)}".strip()
        systems.setdefault(name, []).append(line)
    return [collected(source, TOOL, name, _observations(results)) for name, results in systems.items()]


def _provider(line: Mapping[str, Any]) -> str:
    return str(first(line, "provider.label", "provider.id", "provider") or "")


def _prompt(line: Mapping[str, Any]) -> str:
    """The prompt's number, from 1: its text may be long."""
    number = line.get("promptIdx")
    return f"prompt {number + 1}" if isinstance(number, int) else str(first(line, "prompt.label") or "")[:40]


def _observations(lines: Sequence[Mapping[str, Any]]) -> Iterator[Observation]:
    for line in lines:
        variables, case = line.get("vars") or {}, line.get("testCase") or {}
        meta = {**(case.get("metadata") or {}), **(line.get("metadata") or {})}
        given = next((source[n] for source in (meta, variables) for n in _IDS if source.get(n) is not None), None)
        text = next((variables[n] for n in _INPUTS if isinstance(variables.get(n), str)), None)
        grading = line.get("gradingResult") or {}
        error = line.get("failureReason") == _ERROR or (line.get("error") and not grading)
        scores = {} if error else {"pass": line.get("success", grading.get("pass")), "score": line.get("score")}
        output = (line.get("response") or {}).get("output")
        yield Observation(
            # The place of a test changes with the filter that it was run with, its variables don't.
            id=str(given if given is not None else key_of(variables, "vars")),
            scores=scores | (line.get("namedScores") or {} if not error else {}),
            input=variables if text is None else text,
            kind="vars" if text is None else "text",
            answer=output if isinstance(output, str) else "",
            error=str(line.get("error") or "error") if error else "",
            meta={**{n: v for n, v in variables.items() if n not in _INPUTS}, **meta},
        )
