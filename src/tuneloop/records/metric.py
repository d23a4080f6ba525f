"""A metric: how its values are read, written and compared. `evaluation.metrics` has those that come with tuneloop."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from tuneloop.records.record import Number

Scale = Literal["share", "0..1", "0..100", "from 0"]
Better = Literal["higher", "lower", "neither"]
Test = Literal["exact McNemar", "paired bootstrap", "by its scores", "none"]
Needs = Literal["labels", "several labels", "references", "fields", "JSON", "programs", "losses", "scorer"]
Headline = Literal["", "labels", "several labels", "texts", "JSON", "programs", "own", "valid answers"]


@dataclass(frozen=True)
class Estimate:
    """A metric's value with its 95 % interval; the bounds are NaN where there is none."""

    value: Number
    low: Number = math.nan
    high: Number = math.nan


NOTHING = 1e-9  # differences nearer to 0 come of rounding


def number_words(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number with at least so many decimals, and more where it would read as 0 and is not."""
    if abs(value) < NOTHING:
        value = 0.0
    while value and round(value, decimals) == 0:
        decimals += 1
    return f"{value:{'+' if signed else ''}.{decimals}f}"


@dataclass(frozen=True)
class Metric:
    """What is the same for every value of a metric. Reports, tables, gate, advice and charts read it here.

    Args:
        name: in `eval.json` and in settings; `title`: as people read it.
        scale: `share` is a share of the rows, written in percent in sentences; `0..1` other values up to 1; `0..100`
            as sacrebleu gives BLEU; `from 0` without an upper bound.
        better: which direction is better; a metric that has `neither` is not compared and can't decide.
        test: of a paired comparison. `exact McNemar` where rows are right or wrong (a paired bootstrap where they form
            clusters), `by its scores`: that one where all scores are 0 or 1, else the paired bootstrap.
        needs: what must be there for it to be measured.
        headline: the kind of answers that it is a headline metric of: a verdict rests on it. Empty: a further metric.
        gained: what a system has more of when it improves, where that is not the title ("valid answers").
        decimals: in tables; `precise`: in sentences. Default: 2 and 3, out of 100 one.
        least_margin: differences below it are worth no argument; default: 0.02, out of 100 1.
        meaning: one line for the reference.
    """

    name: str
    title: str
    scale: Scale = "0..1"
    better: Better = "higher"
    test: Test = "paired bootstrap"
    needs: Needs = "references"
    headline: Headline = ""
    gained: str = ""
    decimals: int | None = None
    precise: int | None = None
    least_margin: float | None = None
    meaning: str = ""

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value is better."""
        return self.better == "lower"

    @property
    def compared(self) -> bool:
        """Whether two systems are compared by it."""
        return self.better != "neither" and self.test != "none"

    @property
    def right_or_wrong(self) -> bool:
        """Whether a row has 1, which is right, or 0; where `test` goes by the scores, they must say it too."""
        return self.test in ("exact McNemar", "by its scores") and self.better == "higher"

    @property
    def out_of(self) -> float:
        """The best value: 1 or 100 (1 too where there is no upper bound)."""
        return 100.0 if self.scale == "0..100" else 1.0

    @property
    def margin_step(self) -> float:
        """What limits of a gate are rounded to."""
        return 0.01 * (10 if self.out_of == 100 else 1)

    @property
    def smallest_margin(self) -> float:
        """The smallest margin that a gate's first suite proposes."""
        if self.least_margin is not None:
            return self.least_margin
        return 1.0 if self.out_of == 100 else 0.02

    @property
    def precise_decimals(self) -> int:
        """Decimals where a value is read closely."""
        return self.precise if self.precise is not None else 1 if self.out_of == 100 else 3

    @property
    def table_decimals(self) -> int:
        """Decimals in a table."""
        return self.decimals if self.decimals is not None else 1 if self.out_of == 100 else 2

    def figure(self, value: float | None) -> str:
        """A value in a table: `0.87`, out of 100 `45.1`."""
        if value is None or not math.isfinite(value):
            return "–"
        return f"{value:.{self.table_decimals}f}"

    def in_words(self, value: float) -> str:
        """A value in a sentence: `87.3 %` of a share, else `0.873`, out of 100 `45.1`."""
        if math.isnan(value):
            return "unknown"
        if self.scale == "share":
            return f"{100 * value:.1f} %"
        return f"{value:.{self.precise_decimals}f}"

    def change_in_words(self, size: float, *, signed: bool = False, unit: bool = True) -> str:
        """A difference in a sentence: `+4.2 points` of a share, else `+0.042`."""
        if math.isnan(size):
            return "unknown"
        share = self.scale == "share"
        text = number_words(100 * size if share else size, 1 if share else self.precise_decimals, signed=signed)
        return f"{text} points" if share and unit else text

    def change(self, size: float, *, signed: bool = False) -> str:
        """A difference in a table: `0.12`, `-3.4`."""
        return number_words(size, self.table_decimals, signed=signed)

    def of_field(self, field: str) -> Metric:
        """The metric of one field of structured answers: `queue.accuracy`, `queue accuracy`."""
        return replace(self, name=f"{field}.{self.name}", title=f"{field} {self.title}")
