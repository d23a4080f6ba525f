"""What tuning has done besides its task: parts of `eval.json`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tuneloop.records.metric import Estimate
from tuneloop.records.record import Number, Part


class GeneralAbility(Part):
    """Mean token F1 and mean loss of a token on general rows."""

    token_f1: Number = math.nan
    loss: Number = math.nan


class Forgetting(Part):
    """What the base could do on general rows and the tuned model can't.

    Args:
        score: 1 - tuned / base of the mean task score: 0 nothing, 1 all; `loss`: growth of a token's mean loss (nats).
        metric: that scores answers; `n`: rows.
        base, tuned: before and after.
    """

    score: Estimate
    loss: Estimate | None = None
    metric: str = "token_f1"
    n: int = 0
    base: GeneralAbility = GeneralAbility()
    tuned: GeneralAbility = GeneralAbility()
    words: str = ""


class Memorisation(Part):
    """Training answers that are completed word for word.

    Args:
        n: answers that were looked at; `left_out`: others, of fewer than `least_tokens` tokens or shared by rows.
        share, base: of the tuned model and of the base; `beyond`: the difference, with its `p`.
    """

    n: int = 0
    left_out: int = 0
    least_tokens: int = 0
    share: Estimate | None = None
    base: Estimate | None = None
    beyond: Estimate | None = None
    p: Number | None = None
    words: str = ""


class AskedWay(Part):
    """A row in other words, and the answer to it."""

    kind: str
    question: str
    answer: str


class ContradictedRow(Part):
    """A row to which a system's answers differ, by its wording."""

    id: str = ""
    reference: str = ""
    ways: list[AskedWay] = []


@dataclass(frozen=True)
class Consistency:
    """The part `consistency` of `eval.json`.

    Args:
        rows, ways: how many rows were used, and how often each, at most; `asked`: questions of each kind.
        values: measure -> value with 95 % interval. `agreement`: share of a row's pairs of answers that are the same;
            `similarity`: token F1 of pairs (free texts); `always_right`: share of rows that are right in every way
            (labels).
        same_as_plain: kind -> share of answers that equal the answer to the row as it is.
        seconds: that the answers took.
        examples: rows on which the system contradicts itself most; `words`: what to take from it.
    """

    rows: int
    ways: int
    asked: dict[str, int]
    values: dict[str, Estimate]
    same_as_plain: dict[str, Number]
    seconds: float = 0.0
    examples: list[ContradictedRow] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
