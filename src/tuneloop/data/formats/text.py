"""Plain text, to be learned as it is."""

from __future__ import annotations

from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.answers import error_answer
from tuneloop.data.formats.conversation import is_data
from tuneloop.data.formats.draft import Parsed, filled
from tuneloop.data.formats.registry import Format
from tuneloop.data.formats.sample import NO_CONTENT_NAMES, TOOLS, FormatGuess, Record, Sample, as_value, is_about
from tuneloop.data.formats.turns import Refused, assistant, short

ABOUT_NAMES = (
    "url", "source", "title", "subject", "lang", "language", "author", "meta", "licence", "license", "domain", "metadata",
    "attributes", "extra", "headers", "stats", "quality_signals", "embedding", "embeddings", "vector", "logprobs", "usage",
)  # fmt: skip


def text(record: Record, guess: FormatGuess, config: PrepareConfig) -> Parsed:
    """Plain text, to be learned as it is: one turn of the assistant, with no prompt."""
    said = filled(record, guess.columns["text"], "empty_output", guess)
    if kind := error_answer(said):
        raise Refused("error_output", f"column {guess.columns['text']!r} is {kind}: {short(said)}")
    return Parsed([assistant(said)], None, [], guess.used, [])


def _find_text(sample: Sample, config: PrepareConfig) -> FormatGuess | None:
    """One column of text, next to which there are only ids, numbers and facts about it."""
    known = [name for name in sample.columns if sample.is_usual(name)]
    strings = [name for name in known if sample.mostly(name, lambda value: isinstance(value, str))]
    lists = [name for name in known if sample.mostly(name, lambda value: isinstance(value, list))]
    spoken = [name for name in strings if not is_about(name, (*NO_CONTENT_NAMES, *ABOUT_NAMES))]
    low = {name.casefold(): name for name in strings}
    usual = next(
        (low[name] for name in ("text", "content", "document", "raw_content", "page_content") if name in low), None
    )
    column = config.text or usual or (spoken[0] if len(spoken) == 1 and _is_prose(sample, spoken[0]) else None)
    others = [*lists, *answer_columns(sample), *(name for name in spoken if name != column)]
    if column is None or (config.format == "auto" and others):
        return None
    return FormatGuess("text", {"text": column}, sample.seen([column], " and no other column of text"))


def answer_columns(sample: Sample) -> list[str]:
    """Columns of objects or arrays that may be answers: no facts about the record, no turns, no vectors."""
    about = (*NO_CONTENT_NAMES, *ABOUT_NAMES, *TOOLS[1])
    names = [name for name in sample.columns if name.isprintable() and not {"{", "}"} & set(name)]  # for a template
    return [name for name in names if not is_about(name, about) and sample.mostly(name, _is_answer)]


def _is_answer(value: Any) -> bool:
    value = as_value(value)
    return is_data(value) and not (isinstance(value, list) and len(value) > 32 and isinstance(value[0], float))


def _is_prose(sample: Sample, column: str) -> bool:
    return sample.mostly(column, lambda value: isinstance(value, str) and len(value.split()) > 3)


FORMAT = Format("text", "one column of text", text, _find_text)
