"""Plain text, to be learned as it is."""

from __future__ import annotations

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.answers import error_answer
from tuneloop.data.formats.draft import Parsed, filled
from tuneloop.data.formats.registry import Format
from tuneloop.data.formats.sample import NO_CONTENT_NAMES, FormatGuess, Record, Sample, is_about
from tuneloop.data.formats.turns import Refused, assistant, short

ABOUT_NAMES = (
    "url", "source", "title", "subject", "lang", "language", "author", "meta", "licence", "license", "domain",
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
    if column is None or (config.format == "auto" and (lists or [name for name in spoken if name != column])):
        return None
    return FormatGuess("text", {"text": column}, sample.seen([column], " and no other column of text"))


def _is_prose(sample: Sample, column: str) -> bool:
    return sample.mostly(column, lambda value: isinstance(value, str) and len(value.split()) > 3)


FORMAT = Format("text", "one column of text", text, _find_text)
