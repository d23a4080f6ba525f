"""A data set's rows, as they are in its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from typing_extensions import TypedDict  # typing's own one can't be read by pydantic before Python 3.12

from tuneloop.records.dataset import DatasetManifest


class Message(TypedDict, total=False):
    """One turn of a conversation, in the OpenAI form. `role` and `content` are always there.

    `tool_calls` holds `{"id", "type": "function", "function": {"name", "arguments"}}`, with the
    arguments as a JSON string; `tool_call_id` and `name` stand on the turn of role `tool`. `reasoning_content` is what
    the assistant thought before its content; empty: it shows that it thought nothing.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    reasoning_content: str
    tool_calls: list[dict[str, Any]]
    tool_call_id: str
    name: str
    weight: float


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


@dataclass(frozen=True)
class Row:
    """One record of a split: a conversation that ends with the assistant turn to learn.

    Args:
        id: stable identifier, derived from the content.
        messages: the conversation; the last turn is the assistant's.
        label: the class, for classification and for stratified splitting; else None.
        tools: JSON schemas of the tools that the conversation may call.
        meta: `source`, `line` and the source's further columns (the fields of a structured
            answer, a user id, a time ...).
    """

    id: str
    messages: list[Message]
    label: str | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> list[Message]:
        """The turns before the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The reference answer: the content of the last turn."""
        return self.messages[-1]["content"]

    @property
    def reasoning(self) -> str:
        """What the reference thinks before its answer; empty: nothing."""
        return self.messages[-1].get("reasoning_content", "")

    @property
    def rated_bad(self) -> bool:
        """Whether people rejected the answer: it must not be imitated, nor be a reference."""
        return self.meta.get("thumb") is False

    @property
    def has_reference(self) -> bool:
        """Whether the last answer is one to hold others against: not rated bad, not of weight 0."""
        return not self.rated_bad and self.messages[-1].get("weight") != 0

    @property
    def shows_the_task(self) -> bool:
        """Whether it is an example of the task: not general data that was blended in, with an answer to imitate."""
        return "mix" not in self.meta and self.has_reference

    def to_json(self) -> dict[str, Any]:
        """The record of a split's file."""
        record: dict[str, Any] = {"id": self.id, "messages": self.messages}
        if self.tools:
            record["tools"] = self.tools
        if self.label is not None:
            record["label"] = self.label
        record["meta"] = self.meta
        return record

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Row:
        """The inverse of `to_json`. `ValueError`: it is not a row; the message says why."""
        if not isinstance(record, Mapping):
            raise ValueError("it is no JSON object")
        name, messages, label = record.get("id"), record.get("messages"), record.get("label")
        tools, meta = record.get("tools", []), record.get("meta", {})
        if not isinstance(name, str) or not name:
            raise ValueError("its id is not a text")
        if not isinstance(messages, list) or not all(map(_is_message, messages)) or not messages:
            raise ValueError("its messages are not a list of {role, content}")
        if not (label is None or isinstance(label, str)):
            raise ValueError("its label is not a text")
        if not isinstance(tools, list) or not isinstance(meta, Mapping):
            raise ValueError("its tools are not a list, or its meta is not an object")
        return Row(id=name, messages=messages, label=label, tools=tools, meta=dict(meta))


def references_of(row: Row) -> list[str]:
    """The accepted answers of a row: `meta["references"]` where it is a list of texts, else its last turn."""
    several = row.meta.get("references")
    if isinstance(several, list | tuple) and several and all(isinstance(text, str) for text in several):
        return list(several)
    return [row.answer]


def last_user_turn(row: Row) -> str:
    """The text that a row asks about: its last user turn (empty where there is none)."""
    return next((turn.get("content") or "" for turn in reversed(row.prompt) if turn["role"] == "user"), "")


@dataclass(frozen=True)
class Reject:
    """An input record that is in no split, and why. `line` is the physical line (or row), from 1."""

    source: str
    line: int
    reason: str
    detail: str
    record: Any = None


@dataclass(frozen=True)
class Repair:
    """A change to one field of an input record.

    Args:
        id: of the row; None where the record became none.
        kind: a word of the fixed list; `field`: where it was: `messages[2].content`.
        before, after: excerpts of a text that was repaired; `detail`: in words.
        found: of kind `pii`: kind of personal data -> values; `tokens`: of kind `cut`: those that were cut off.
        part, whole: of kind `split`: the number of the part, and the id of the row that was divided.
    """

    source: str
    line: int
    id: str | None
    kind: str
    field: str
    before: str | None = None
    after: str | None = None
    detail: str | None = None
    found: dict[str, int] | None = None
    tokens: int | None = None
    part: int | None = None
    whole: str | None = None


@dataclass(frozen=True)
class DroppedCopy:
    """A row that was left out as a copy, and the one that stayed (`kept_*`).

    Args:
        similarity: 1 for an equal one; `kind`: `exact`, `near` or `split_leak`.
        why: the other one stayed; `text`, `kept_text`: both, for people.
    """

    source: str
    line: int
    id: str
    kept_source: str
    kept_line: int
    kept_id: str
    similarity: float
    kind: str
    why: str
    text: str
    kept_text: str


@dataclass(frozen=True)
class DoubtfulLabel:
    """A row whose label may be wrong.

    Args:
        split: that it is in; `suggested`: the label that a classifier gives it.
        score: how likely the classifier holds the row's own label; the least likely come first.
        confident: whether the classifier is sure of the other one.
    """

    source: str
    line: int
    id: str
    split: str
    label: str
    suggested: str
    score: float
    confident: bool
    text: str


@dataclass(frozen=True)
class FlaggedRow:
    """A row that a check has found, and what else the check says of it."""

    check: str
    source: str
    line: int
    id: str
    split: str


@dataclass(frozen=True)
class Dataset:
    """A prepared data set: the splits (read when they are first looked at) and the manifest (`dataset.json`).

    Args:
        order, renamed: where `test` is a file read to be evaluated: the id of each of its records, and, by a record's
            id that holds personal data, the one that its row has instead.
    """

    path: str
    manifest: DatasetManifest
    train: Sequence[Row]
    val: Sequence[Row]
    test: Sequence[Row]
    order: Sequence[str] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Name plus the first 12 hex digits of the content hash."""
        return self.manifest.id

    @property
    def task(self) -> str:
        """`classification`, `generation` or `chat`."""
        return self.manifest.task

    def stratum(self, row: Row) -> str | None:
        """The group by which splits and samples are balanced: a row's label, or its `split.stratify`; or None."""
        column = self.manifest.config.get("split", {}).get("stratify")
        value = row.meta.get(column) if column else None
        return row.label if row.label is not None or value is None else str(value)


def generous_limit(rows: Sequence[Row]) -> int:
    """Most tokens of an answer of a model whose tokenizer is not known: generous, for it may think aloud."""
    lengths = sorted(len(row.answer) for row in rows)
    return max(256, min(lengths[int(0.98 * (len(lengths) - 1))], 4096))
