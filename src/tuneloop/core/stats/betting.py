"""Betting on two arms: evidence that is valid from the first unit on, however unequal and changing the shares are.

A unit gets into the candidate's arm (A = 1) with a chance p that is known when it comes. For an outcome y in [0, 1] and
a guess m of it, made from the units before, the score (A - p)(y - m) has the expectation p (1 - p) (mean of the
candidate - mean of the champion). So a bettor whose wealth is multiplied by 1 + b (score - p (1 - p) d), with a stake b
that was set before the unit came, gains nothing on average where the difference is d, and wealth 1 / alpha is *ever*
reached with a chance of at most alpha (Ville 1939): no large sample is needed, and rare outcomes change nothing. The
score weighs units by the precision of their share, p (1 - p). Where the arms do not differ at all, the guarantee rests
on the draw alone: outcomes may drift, cycle, and depend on one another. Stakes are those that make wealth grow fastest
where the difference is some multiple of the registered effect; wealth is shared among several multiples.

Waudby-Smith & Ramdas 2023, "Estimating means of bounded random variables by betting"; Waudby-Smith et al. 2024,
"Anytime-valid off-policy inference for contextual bandits"; Howard et al. 2021, "Time-uniform, nonparametric,
nonasymptotic confidence sequences". Of counts: Lindon & Malek 2022, "Anytime-valid inference for multinomial count
data".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuneloop.core.lazy import Array, NDArray, np

GUESS_UNITS = 10.0  # units that the first guess of mean and variance counts for
MOST_LOST = 0.8  # share of the wealth that one unit may take
LEAST_VARIANCE = 1e-4


@dataclass(frozen=True)
class ArmClaim:
    """What is bet on: the difference of the arms is above (`sign` 1) or below (-1) `null`.

    Args:
        stakes: pairs of a share of the first wealth, and the distance from `null`, in effects, for which it is placed.
    """

    sign: int
    stakes: tuple[tuple[float, float], ...]
    null: float = 0.0


@dataclass(frozen=True)
class Book:
    """Bets on several experiments at once, one along the first axis of each array; a real one is one of 1.

    Args:
        claims: that are bet on.
        guess: of an outcome's mean before the first unit; None: the first unit only gives the guess.
        reach: how far an outcome may be from the guess; what is further counts as that far. None: outcomes are in
            [0, 1].
        n: units so far, of each kind (experiments, kinds); `total` of their outcomes, `squares` of the distances from
            their guesses.
        score, information: sums of the scores and of p (1 - p).
        log_wealth: of each claim, an array (experiments, stakes).
        best: log of the highest wealth of each claim after any unit, as a multiple of the first. What was proven once
            stays proven, so that nothing depends on when one looks.
    """

    claims: tuple[ArmClaim, ...]
    guess: float | None
    reach: float | None
    n: Array
    total: Array
    squares: Array
    score: Array
    information: Array
    log_wealth: tuple[Array, ...]
    best: tuple[Array, ...]

    @property
    def difference(self) -> Array:
        """The estimated difference of the arms, weighted by precision; NaN before the first unit."""
        nothing = np.full_like(self.score, np.nan)
        return np.asarray(np.divide(self.score, self.information, out=nothing, where=self.information > 0))

    def log_e(self, claim: int) -> Array:
        """Evidence for a claim by its place: it ever reaches log(1 / alpha) with a chance of at most alpha."""
        return self.best[claim]

    @property
    def error(self) -> Array:
        """The standard error of the estimated difference."""
        seen = np.maximum(self.n.sum(axis=-1), 1)
        variance = np.maximum(self.squares.sum(axis=-1) / seen, LEAST_VARIANCE)
        return np.asarray(np.sqrt(variance / np.maximum(self.information, 1e-9)))


def open_book(
    claims: Sequence[ArmClaim], experiments: int = 1, *, guess: float | None, reach: float | None = None, kinds: int = 1
) -> Book:
    """A book before the first unit; see `Book`. `kinds`: of units, each of which has guesses of its own."""
    sums: dict[str, Array] = {name: np.zeros((experiments, kinds)) for name in ("n", "total", "squares")}
    sums |= {name: np.zeros(experiments) for name in ("score", "information")}
    wealth = tuple(np.tile(np.log([share for share, _ in claim.stakes]), (experiments, 1)) for claim in claims)
    best = tuple(np.zeros(experiments) for _ in claims)
    return Book(tuple(claims), guess, reach, **sums, log_wealth=wealth, best=best)


def running_mean(
    values: Array,
    counted: NDArray[np.bool_],
    n: Array,
    total: Array,
    guess: float,
    kinds: NDArray[np.int64] | None = None,
) -> Array:
    """The mean of those of its kind before each unit along the last axis, with the guess as `GUESS_UNITS` more units.

    `n`, `total`: of the units before the first of these, by kind. Only those that are `counted` enter it.
    """
    means = np.zeros(values.shape)
    for kind, here in enumerate(_kinds(counted, n.shape[-1], kinds)):
        inside, part = counted & here, values * here
        before = total[:, kind, None] + np.cumsum(part, axis=-1) - part
        number = n[:, kind, None] + np.cumsum(inside, axis=-1) - inside
        means += here * (before + GUESS_UNITS * guess) / (number + GUESS_UNITS)
    return means


def _kinds(counted: NDArray[np.bool_], number: int, kinds: NDArray[np.int64] | None) -> list[NDArray[np.bool_]]:
    """Which units are of which kind; without kinds all are of the first one."""
    if kinds is None:
        return [np.full(counted.shape, kind == 0) for kind in range(number)]
    return [kinds == kind for kind in range(number)]


def place_bets(
    book: Book,
    candidate: NDArray[np.bool_],
    outcomes: Array,
    propensity: Array,
    effect: Array | float,
    kinds: NDArray[np.int64] | None = None,
    room: Array | float = 0.0,
) -> Book:
    """The book after more units, in their order along the last axis.

    Args:
        candidate: whether a unit is in the candidate's arm; arrays are (experiments, units).
        outcomes: NaN where a unit has none; it is passed over then, as where `propensity` is NaN.
        propensity: chance of the candidate's arm, above 0 and below 1.
        effect: the difference that stakes are placed for, positive, known before each unit.
        kinds: of units, from what was known before they were drawn. Guesses by kind are nearer to the outcomes, so
            less of a score is noise; the bets stay fair whatever the kinds are worth.
        room: how far an outcome may lie outside [0, 1], known before each unit.
    """
    counted = ~np.isnan(outcomes) & ~np.isnan(propensity)
    y, p = np.where(counted, outcomes, 0.0), np.where(counted, propensity, 0.5)
    m = _guesses(book, y, counted, kinds)
    residual = np.where(counted & ~np.isnan(m), y - m, 0.0)
    if book.reach is not None:
        residual = np.clip(residual, -book.reach, book.reach)
    squares = residual * residual
    guess = 0.0 if book.guess is None else book.guess
    first = guess * (1 - guess) if book.reach is None else (book.reach / 4) ** 2
    variance = np.maximum(running_mean(squares, counted, book.n, book.squares, first, kinds), LEAST_VARIANCE)
    placed = counted & ~np.isnan(m)
    score, weight = (candidate - p) * residual, np.where(placed, p * (1 - p), 0.0)
    over, under = (m + room, 1 - m + room) if book.reach is None else (np.full_like(p, book.reach),) * 2
    wealth, best = [], []
    for claim, log_wealth, highest in zip(book.claims, book.log_wealth, book.best, strict=True):
        shift = claim.sign * weight * claim.null
        arms = ((1 - p) * over, p * under) if claim.sign > 0 else ((1 - p) * under, p * over)
        worst = np.maximum(*arms) + shift
        most = MOST_LOST / np.maximum(np.where(placed, worst, 1.0), 1e-9)
        gain = claim.sign * score - shift
        stakes = np.minimum((effect / variance)[..., None] * [size for _, size in claim.stakes], most[..., None])
        path = log_wealth[:, None, :] + np.cumsum(np.log1p(stakes * gain[..., None]), axis=-2)
        wealth.append(path[:, -1, :] if path.shape[1] else log_wealth)
        best.append(np.maximum(highest, _log_sum(path).max(axis=-1, initial=0.0)))
    which = _kinds(counted, book.n.shape[-1], kinds)
    n, total, squared = (np.stack([(values * here).sum(-1) for here in which], -1) for values in (counted, y, squares))
    return replace(
        book,
        n=book.n + n,
        total=book.total + total,
        squares=book.squares + squared,
        score=book.score + score.sum(axis=-1),
        information=book.information + weight.sum(axis=-1),
        log_wealth=tuple(wealth),
        best=tuple(best),
    )


def _log_sum(logs: Array) -> Array:
    """The log of the sum of exponentials along the last axis."""
    most = logs.max(axis=-1)
    return np.asarray(most + np.log(np.exp(logs - most[..., None]).sum(axis=-1)))


def _guesses(book: Book, y: Array, counted: NDArray[np.bool_], kinds: NDArray[np.int64] | None) -> Array:
    """The guess of each outcome: the mean of those before; NaN for the first one where there is none."""
    if book.guess is not None:
        return running_mean(y, counted, book.n, book.total, book.guess, kinds)
    before = book.total + np.cumsum(y, axis=-1) - y
    number = book.n + np.cumsum(counted, axis=-1) - counted
    return np.asarray(np.divide(before, number, out=np.full_like(before, np.nan), where=number > 0))


def bound(
    claim: ArmClaim, data: tuple[NDArray[np.bool_], Array, Array], effect: float, alpha: float, *, guess: float
) -> float:
    """One bound of the difference, which is ever wrong with a chance of at most alpha, by bisection.

    Args:
        claim: with sign 1 the lower bound follows, the largest null that is refuted; with -1 the upper one.
        data: `candidate`, `outcomes` and `propensity` of `place_bets`, for one experiment.
        guess: see `Book`. Returns -1 or 1 where nothing is refuted.
    """
    inner, outer = float(claim.sign), -float(claim.sign)  # refuted from `outer` on up to the bound
    for _ in range(14):
        middle = (inner + outer) / 2
        book = place_bets(open_book([replace(claim, null=middle)], guess=guess), *data, effect)
        if float(book.log_e(0)[0]) >= -np.log(alpha):
            outer = middle
        else:
            inner = middle
    return outer


def negative_mean_log_e(values: Sequence[float] | Array, null: float = 0.0) -> float:
    """Evidence that values in [-1, 1] have a mean below `null`: log of an e-value, read at any time.

    Wealth is multiplied by 1 - b (value - null) for four stakes b, which share the first wealth.
    """
    most = 1 + abs(null)
    logs = [np.log1p(-(b / most) * (np.asarray(values, dtype=np.float64) - null)).sum() for b in (0.1, 0.25, 0.5, 0.9)]
    return float(np.logaddexp.reduce(np.array(logs))) - float(np.log(len(logs)))


RATIOS = (1.5, 2.5, 6.0)  # of odds, for which wealth is staked in equal parts


@dataclass(frozen=True)
class RateBook:
    """Bets that more of what happens than a share falls to the candidate, arrays with experiments first.

    Where the share p of users meets it and r times the champion's rate is tolerated, the share of the candidate is at
    most p r / (p r + 1 - p). Wealth is multiplied by 1 + b w (A - share) for a unit to which it happened with the
    weight w in [0, 1]: the likelihood ratio of Bernoulli variables where all weights are 1. Rare events suit it.
    """

    log_wealth: Array  # of each of `RATIOS`
    best: Array  # log of the highest wealth after any unit
    score: Array  # sum of w (A - share): above 0, more fell to the candidate than is tolerated


def open_rate_book(experiments: int = 1) -> RateBook:
    """The book before the first unit."""
    wealth = np.full((experiments, len(RATIOS)), -math.log(len(RATIOS)))
    return RateBook(wealth, np.zeros(experiments), np.zeros(experiments))


def bet_on_rate(book: RateBook, candidate: NDArray[np.bool_], weights: Array, share: Array) -> RateBook:
    """The book after more units, in their order along the last axis. `weights`: NaN where there is no unit."""
    happened = np.where(np.isnan(weights), 0.0, weights) * (candidate - share)
    stakes = [(ratio - 1) / (1 - share + ratio * share) for ratio in RATIOS]
    path = book.log_wealth[:, None, :] + np.cumsum(np.log1p(np.stack(stakes, -1) * happened[..., None]), axis=-2)
    best = np.maximum(book.best, _log_sum(path).max(axis=-1, initial=0.0))
    return RateBook(path[:, -1, :] if path.shape[1] else book.log_wealth, best, book.score + happened.sum(axis=-1))


def odds_log_e(counts: Array, shares: Array, ratio: float) -> Array:
    """Evidence that units fall into the first of two classes with odds that are `ratio` times what they should be: log
    of an e-value, the likelihood ratio, read at any time.

    Args:
        counts: of units, (..., shares, 2), the first class first.
        shares: of the first class, one after another.
    """
    inside, units = counts[..., 0], counts.sum(axis=-1)
    return np.asarray((inside * math.log(ratio) - units * np.log1p(shares * (ratio - 1))).sum(axis=-1))
