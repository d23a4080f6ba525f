"""Answers with a rating."""

from __future__ import annotations

from dataclasses import replace

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.conversation import conversation
from tuneloop.data.formats.draft import Draft, checked_parser
from tuneloop.data.formats.prompt_completion import alpaca, prompt_completion
from tuneloop.data.formats.ratings import opinion, read_thumb, scale_of
from tuneloop.data.formats.registry import Format
from tuneloop.data.formats.sample import NEARLY, FormatGuess, Record, Sample, mostly

THUMB_NAMES = (
    "kto_tag", "thumb", "thumbs", "thumbs_up", "thumb_up", "feedback", "user_feedback", "human_feedback", "vote",
    "liked", "is_liked", "reaction", "rating", "user_rating", "stars", "label",
)  # fmt: skip


def thumbs(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """A conversation, or a prompt and its answer, with a rating."""
    base = conversation if "turns" in guess.columns else alpaca if "instruction" in guess.columns else prompt_completion
    return base(record, guess, config)


def with_thumbs(found: FormatGuess, sample: Sample, wanted: str) -> FormatGuess | None:
    """A guess with the column of thumbs or ratings, if there is one; None where it is needed and is not there."""
    for name in THUMB_NAMES:
        values = [value for value in map(opinion, sample.of(name)) if value is not None]
        if not values or name in found.columns.values():
            continue
        scale = scale_of(values, name)
        if not mostly(values, lambda value, scale=scale: read_thumb(value, scale) is not None, NEARLY):  # type: ignore[misc]
            continue
        columns = {**found.columns, "thumb": name}
        if found.name == "logs" or (2 * len(values) < len(sample) and wanted != "thumbs"):
            return replace(found, columns=columns, scale=scale)
        reason = f"{found.reason}; {name!r} says which answers were good"
        return replace(found, name="thumbs", columns=columns, reason=reason, scale=scale)
    return None if wanted == "thumbs" else found


FORMAT = Format(
    "thumbs", "a conversation, or prompt and completion, and a column label, feedback or rating", checked_parser(thumbs)
)
