"""What the steps of a preparation share, and the first look at its files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tuneloop.data.checks.label_errors import Embed
from tuneloop.data.config import PrepareConfig
from tuneloop.data.dedup.minhash import NO_FRAME, PromptFrame, shared_frame
from tuneloop.data.formats import FormatGuess, Parsed, check_columns, detect, parse_record
from tuneloop.data.process_record import RowProcessor
from tuneloop.data.sources.chunks import chunks
from tuneloop.data.sources.parse import SourceFile, SourceRecord, parse_chunk
from tuneloop.data.sources.read import entry_of
from tuneloop.data.split import Split
from tuneloop.data.spool import Table

SAMPLE = 2000  # records looked at to find the format
CHUNK = 1 << 18  # bytes of a chunk: small enough that all processes have some of a small source


@dataclass(frozen=True)
class Given:
    """A file to read; those of a given or frozen test set belong to a split, and may have a format of their own."""

    file: SourceFile
    split: Split | None
    guess: FormatGuess | None


@dataclass
class PrepareContext:
    """A preparation at work.

    Args:
        table: the rows.
        workers: processes to work in.
        encodings: how each source is encoded.
    """

    config: PrepareConfig
    seed: int
    out: Path
    files: list[Given]
    guess: FormatGuess
    processor: RowProcessor
    table: Table
    workers: int
    embed: Embed | None
    encodings: dict[str, str] = field(default_factory=dict)


def look_at(files: Sequence[SourceFile], config: PrepareConfig) -> tuple[FormatGuess, PromptFrame]:
    """The format, and what all prompts share, from the first records; a configured column that none of them has is refused."""
    items = (item for file in files for chunk in chunks(file, CHUNK) for item in parse_chunk(chunk))
    sample = list(itertools.islice((item.value for item in items if isinstance(item, SourceRecord)), SAMPLE))
    if not sample:
        return FormatGuess("none", {}, "no records"), NO_FRAME
    check_columns(sample, config)
    guess = detect(sample, config, entry_of(files[0]) if len(files) == 1 else None)
    parsed = (parse_record(value, guess, config) for value in sample[:500])
    turns = (m for p in parsed if isinstance(p, Parsed) for m in p.messages)
    frame = shared_frame([m["content"] for m in turns if m["role"] == "user"])
    return guess, replace(frame, ratings=True) if config.duplicates.keep == "best" else frame
