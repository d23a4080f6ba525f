"""How long a request will take, learned from those that were answered.

Of each model two lines are fitted by recursive least squares with forgetting (Ljung, System Identification, 11.2): the
time to the first token over the tokens of the prompt, the tokens of other prompts that are still to be read, and the
requests that are being answered; and the time for each further token over the latter. The length of an answer is the mean
of the last ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import mul

FORGETTING = 0.99  # weight of an observation falls by this with each later one: the last hundred count
ENOUGH = 10  # observations before a prediction is trusted: with four weights, fewer refuse without need


@dataclass
class Line:
    """A linear function of features, fitted as observations come.

    Args:
        size: of the features.
    """

    size: int
    weights: list[float] = field(default_factory=list)
    seen: int = 0
    _p: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights = self.weights or [0.0] * self.size
        self._p = [[1e4 if i == j else 0.0 for j in range(self.size)] for i in range(self.size)]

    def predict(self, features: Sequence[float]) -> float:
        """The value at some features."""
        return float(sum(map(mul, self.weights, features)))

    def learn(self, features: Sequence[float], value: float) -> None:
        """Take an observation in."""
        px = [sum(map(mul, row, features)) for row in self._p]
        scale = FORGETTING + sum(map(mul, features, px))
        step = (value - self.predict(features)) / scale
        self.weights = [w + p * step for w, p in zip(self.weights, px, strict=True)]
        for row, p in zip(self._p, px, strict=True):
            share = p / scale
            row[:] = [
                min(max((old - share * other) / FORGETTING, -1e6), 1e6) for old, other in zip(row, px, strict=True)
            ]
        self.seen += 1


@dataclass
class Calibration:
    """How predictions compare with what came of them.

    Args:
        n: predictions that were compared.
        error: running mean of |predicted - actual| / actual.
        coverage: running share that took no longer than the upper bound.
        spread: running mean of |predicted - actual|, in ms.
        margin: spreads that are added to a prediction to be an upper bound for `target` of all; it is moved after each one
            (a stochastic quantile, Robbins and Monro 1951).
    """

    target: float = 0.99
    n: int = 0
    error: float = 0.0
    coverage: float = 0.0
    spread: float = 0.0
    margin: float = 3.0

    def bound(self, predicted: float) -> float:
        """What a prediction in ms will hardly pass."""
        return predicted + self.margin * self.spread

    def learn(self, predicted: float, actual: float) -> None:
        """Compare a prediction with what came of it, both in ms."""
        if predicted <= 0 or actual <= 0:
            return
        self.n += 1
        share = max(1 / self.n, 0.02)
        inside = actual <= self.bound(predicted)
        self.error += share * (abs(predicted - actual) / actual - self.error)
        self.coverage += max(1 / self.n, 0.01) * (float(inside) - self.coverage)
        self.spread += share * (abs(predicted - actual) - self.spread)
        self.margin = min(max(self.margin + 0.5 * (self.target - float(inside)), 1.0), 10.0)


@dataclass
class ServiceTime:
    """What is known of a model's times.

    Args:
        learned: of the clock, when it last was.
    """

    first: Line = field(default_factory=lambda: Line(4))
    rest: Line = field(default_factory=lambda: Line(2))
    length: float = 0.0
    calibration: Calibration = field(default_factory=Calibration)
    learned: float = -math.inf

    @property
    def known(self) -> bool:
        """Whether there is enough to predict by."""
        return self.first.seen >= ENOUGH

    def first_ms(self, prompt_tokens: int, active: int, ahead: int = 0) -> float:
        """Milliseconds from the start of a request to its first token; 0 while nothing is known.

        Args:
            ahead: tokens of other prompts that are still to be read.
        """
        if not self.known:
            return 0.0
        return max(self.first.predict((1.0, prompt_tokens / 100, active, ahead / 100)), 0.1)

    def total_ms(self, prompt_tokens: int, active: int, longest: int) -> float:
        """Milliseconds that a request takes in all; 0 while nothing is known."""
        if not self.known:
            return 0.0
        each = max(self.rest.predict((1.0, active)), 0.0) if self.rest.seen else 0.0
        return self.first_ms(prompt_tokens, active) + each * min(self.length or longest, longest)

    def learn(
        self, prompt_tokens: int, active: int, tokens: int, first_ms: float, total_ms: float, ahead: int = 0
    ) -> None:
        """Take a request in that was answered to its end.

        Args:
            active: requests that were being answered when it began, itself included.
            ahead: tokens of other prompts that were still to be read then.
            first_ms, total_ms: from the start of its work.
        """
        if self.known:
            self.calibration.learn(self.first_ms(prompt_tokens, active, ahead), first_ms)
        self.first.learn((1.0, prompt_tokens / 100, active, ahead / 100), first_ms)
        if tokens > 1:
            self.rest.learn((1.0, active), (total_ms - first_ms) / (tokens - 1))
        self.length += (tokens - self.length) * max(0.05, 1 / self.first.seen)
