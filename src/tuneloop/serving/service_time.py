"""How long a request will take, learned from those that were answered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import mul

FORGETTING = 0.99  # weight of an observation falls by this with each later one: the last hundred count
ENOUGH = 10  # observations before a prediction is trusted: with four weights, fewer refuse without need


@dataclass
class FittedLine:
    """A linear function, fitted by recursive least squares with forgetting (Ljung, System Identification, 11.2)."""

    size: int  # of the features
    weights: list[float] = field(default_factory=list)
    seen: int = 0
    _p: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights = self.weights or [0.0] * self.size
        self._p = [[1e4 if i == j else 0.0 for j in range(self.size)] for i in range(self.size)]

    def predict(self, features: Sequence[float]) -> float:
        """The value at these features."""
        return float(sum(map(mul, self.weights, features)))

    def learn(self, features: Sequence[float], value: float) -> None:
        """Take an observation in."""
        px = [sum(map(mul, row, features)) for row in self._p]
        scale = FORGETTING + sum(map(mul, features, px))
        step = (value - self.predict(features)) / scale
        self.weights = [w + p * step for w, p in zip(self.weights, px, strict=True)]
        for row, p in zip(self._p, px, strict=True):
            new = ((old - p / scale * other) / FORGETTING for old, other in zip(row, px, strict=True))
            row[:] = [min(max(value, -1e6), 1e6) for value in new]
        self.seen += 1


@dataclass
class TimeCalibration:
    """How predictions compare with what came of them."""

    target: float = 0.99
    n: int = 0  # predictions that were compared
    error: float = 0.0  # running mean of |predicted - actual| / actual
    coverage: float = 0.0  # running share that took no longer than the upper bound
    spread: float = 0.0  # running mean of |predicted - actual|, in ms
    # spreads that are added to a prediction to be an upper bound for `target` of all; it is moved after each
    # one (a stochastic quantile, Robbins and Monro 1951)
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
    """What is known of a model's times: two lines, and the mean length of its last answers."""

    # First token, in ms: by tokens of the prompt, requests being answered, tokens of other prompts still to be read.
    first: FittedLine = field(default_factory=lambda: FittedLine(4))
    rest: FittedLine = field(
        default_factory=lambda: FittedLine(2)
    )  # each further token, in ms: by requests being answered
    length: float = 0.0
    calibration: TimeCalibration = field(default_factory=TimeCalibration)
    learned: float = -math.inf  # of the clock, when it last was

    @property
    def known(self) -> bool:
        """Whether there is enough to predict by."""
        return self.first.seen >= ENOUGH

    def first_ms(self, prompt_tokens: int, active: int, ahead: int = 0) -> float:
        """Milliseconds from the start of a request to its first token, behind tokens of other prompts; 0: not known."""
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
            active, ahead: when it began: requests being answered, itself included; tokens of other prompts to be read.
            first_ms, total_ms: from the start of its work.
        """
        if self.known:
            self.calibration.learn(self.first_ms(prompt_tokens, active, ahead), first_ms)
        self.first.learn((1.0, prompt_tokens / 100, active, ahead / 100), first_ms)
        if tokens > 1:
            self.rest.learn((1.0, active), (total_ms - first_ms) / (tokens - 1))
        self.length += (tokens - self.length) * max(0.05, 1 / self.first.seen)
