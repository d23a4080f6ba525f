"""Parts of an answer that are scored on their own, as `FIELD.METRIC`, and whether answers are valid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tuneloop.core.errors import UserError
from tuneloop.core.patterns import Pattern, compile_pattern
from tuneloop.records.metric import Metric

METRICS = (
    Metric("invalid_rate", "invalid answers", "share", "lower", "exact McNemar", "fields", headline="valid answers",
           gained="valid answers",
           meaning="share of answers that name no allowed label, lack a field or are no JSON where that is required"),
)  # fmt: skip


def compile_fields(fields: Mapping[str, str]) -> dict[str, Pattern]:
    """Check and compile field patterns; `^` and `$` mean the ends of a line. Raises UserError: a pattern is no regular
    expression, or hasn't exactly one group."""
    compiled = {}
    for name, pattern in fields.items():
        where = f"evaluate.fields.{name}"
        try:
            compiled[name] = compile_pattern(pattern, re.MULTILINE)
        except ValueError as error:
            what = f"Not a regular expression: {error}"
            raise UserError(what, where=where, next_step="write it as in 'Queue: (.+)'") from None
        if compiled[name].groups != 1:
            what = f"A field's pattern needs exactly one group, this one has {compiled[name].groups}: {pattern!r}"
            next_step = "put (...) around the part to compare, and (?:...) around other groups"
            raise UserError(what, where=where, next_step=next_step)
    return compiled


def extract(pattern: Pattern, text: str) -> str | None:
    """The trimmed content of the pattern's group, or None where it doesn't match."""
    match = pattern.search(text)
    return match.group(1).strip() if match and match.group(1) is not None else None


def values_repeat(values: Sequence[str]) -> bool:
    """Whether a field's values are few enough to be treated as labels: at most max(2, n / 3) different ones."""
    return len(set(values)) <= max(2, len(values) / 3)
