"""What people and models judge: `review.json`, the lines of `items.jsonl`, `votes.jsonl` and `judge.jsonl`."""

from __future__ import annotations

from typing import Literal

from tuneloop.records.record import Part, Record
from tuneloop.records.rows import Message

ReviewMode = Literal["pairwise", "rating"]


class ReviewedSystem(Part):
    """A system: its name, where its answers are, and the SHA-256 of their file."""

    name: str
    place: str = ""
    sha256: str = ""


class Review(Record, noun="a review", file="review.json", again="start another one"):
    """`review.json`: what is reviewed, and how rows were drawn.

    Args:
        key: hash of everything that the draw depends on.
        share: of the evaluation's rows; `seed`: of the draw and the order; `items`: how many were drawn.
        populations: systems of an item, joined by a line break -> group -> rows in the evaluation.
    """

    key: str = ""
    mode: ReviewMode
    systems: list[ReviewedSystem]
    share: float = 1.0
    seed: int = 0
    items: int = 0
    populations: dict[str, dict[str, int]]


class ReviewItem(Part):
    """A line of `items.jsonl`: one thing to judge, a prompt with the answer of one system, or of two.

    Args:
        id: of the item; tells nothing about the systems.
        row: id of the row; `messages`: the conversation before the answer.
        references: accepted answers.
        stratum: why it was drawn: `random`, `disagreement`, `uncertain`, `rest`.
        group: the group of rows that it belongs to, however it was drawn.
    """

    id: str
    row: str
    systems: tuple[str, ...]
    answers: tuple[str, ...]
    messages: list[Message]
    references: list[str]
    label: str | None = None
    stratum: str
    group: str


class Vote(Part):
    """A line of `votes.jsonl`: what one reviewer said about one item.

    Args:
        time: UTC, ISO 8601.
        choice: `win`, `tie` or `both_bad` of two answers; `rating` of one; `skip` says nothing about the item.
        winner: the system that won; `shown`: the systems as they stood on the page, left to right.
        thumb, stars: up or down; 1 to 5.
        tags: words about the answer; of two answers `SYSTEM: word` says whose.
        corrected: the answer as it should be; `seconds`: how long the item was looked at.
    """

    item: str
    reviewer: str
    time: str
    choice: Literal["win", "tie", "both_bad", "rating", "skip"]
    winner: str | None = None
    shown: tuple[str, ...] = ()
    thumb: bool | None = None
    stars: int | None = None
    tags: tuple[str, ...] = ()
    corrected: str | None = None
    note: str = ""
    seconds: float | None = None


class JudgedRow(Part):
    """A line of `judge.jsonl`: what a model said of two answers to a row, or of one.

    Args:
        id: of the row.
        winner: `a`, `b` or `tie`; None: it named no verdict. `orders`: its verdicts with a first, and with b first.
        score: of one answer, from 1 to 5; `human`: what people said: the winner, or whether the answer is good.
        a, b: the systems.
    """

    id: str
    winner: str | None = None
    orders: list[str | None] = []
    score: int | None = None
    human: str | bool | None = None
    a: str | None = None
    b: str | None = None
