"""Requests without answers that a teacher answers as well: a transfer set, which labelled rows need not be large for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash
from tuneloop.data.config import DuplicatesConfig
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.rows import Dataset, Message, Row

if TYPE_CHECKING:
    from collections import Counter

SAMPLE = 2000  # records that show which columns there are
UNREADABLE = "not readable"


def unlabelled_rows(source: str, dataset: Dataset, dropped: Counter[str]) -> list[Row]:
    """The requests of a transfer set as rows without an answer, in the form of the rows of the data set that the student learns.

    Left out is what occurs in the data set's training rows or twice, and what is equal or near to a validation or test row,
    which would give it away.

    Args:
        source: a file of any format that `prepare` reads, with or without answers, or a prepared data set (its training rows).
        dropped: counts what is left out, by reason.

    Raises:
        UserError: no such file, other columns than the data set's, or nothing is left.
    """
    prompts = _prompts(source, dataset, dropped)
    label = "" if dataset.task == "classification" else None  # the teacher's answer will be it
    keys = {_prompt_key(row.prompt) for row in dataset.train}
    rows: list[Row] = []
    for messages, tools in prompts:
        key = _prompt_key(messages)
        if key in keys:
            dropped["there twice"] += 1
            continue
        keys.add(key)
        empty: Message = {"role": "assistant", "content": ""}
        rows.append(Row(key, [*messages, empty], label, tools, meta={"source": source}))
    clean = _without_contamination(rows, dataset)
    if len(clean) < len(rows):
        dropped["near a validation or test row"] += len(rows) - len(clean)
    if not clean:
        reasons = ", ".join(f"{count} {why}" for why, count in dropped.items())
        raise UserError(
            f"No request is left for the teacher ({reasons})", where=source, next_step="give other requests, or leave --prompts out"
        )  # fmt: skip
    return clean


def _prompt_key(messages: Iterable[Message]) -> str:
    return content_hash([[turn["role"], " ".join(turn["content"].split()).casefold()] for turn in messages])[:16]


def _prompts(source: str, dataset: Dataset, dropped: Counter[str]) -> list[tuple[list[Message], list[dict[str, Any]]]]:
    from tuneloop.data.dataset import load_dataset
    from tuneloop.data.formats import Rejection
    from tuneloop.data.sources.parse import SourceRecord
    from tuneloop.data.sources.read import read_records
    from tuneloop.data.task import prompt_reader, task_spec

    if (Path(source) / MANIFEST).is_file():
        return [(row.prompt, row.tools) for row in load_dataset(source).train]
    items = list(read_records([source]))
    records: list[Mapping[str, Any]] = [item.value for item in items if isinstance(item, SourceRecord)]
    if len(records) < len(items):
        dropped[UNREADABLE] += len(items) - len(records)
    if not records:
        raise UserError("The file holds no records", where=source, next_step="give JSON Lines, JSON, CSV or Parquet")
    spec = task_spec(dataset, answer="generate", max_new_tokens=1, chat_template="")
    read = prompt_reader(spec, records[:SAMPLE])
    prompts: list[tuple[list[Message], list[dict[str, Any]]]] = []
    for prompt in map(read, records):
        if isinstance(prompt, Rejection) or not prompt.messages:
            dropped[UNREADABLE] += 1
        else:
            prompts.append((prompt.messages, prompt.tools))
    return prompts


def _without_contamination(rows: list[Row], dataset: Dataset) -> list[Row]:
    """The rows that are neither equal nor near to a validation or test row."""
    from tuneloop.data.dedup.contamination import find_contamination, index_of
    from tuneloop.data.dedup.minhash import texts_of

    judging = [*dataset.val, *dataset.test]
    if not judging or not rows:
        return rows
    config = DuplicatesConfig(**dataset.manifest.config.get("duplicates", {}))
    leaks = find_contamination([texts_of(row) for row in rows], index_of([texts_of(row) for row in judging], config))
    return [row for row, leak in zip(rows, leaks, strict=True) if leak is None]
