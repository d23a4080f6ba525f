"""What a decision by bets needs to know of the users of an experiment, as sums that grow with each look.

Sums of many experiments are held at once, one along the first axis, for simulations; a real experiment is one of 1.
Users are counted when they come, with what guardrails may see at once, and once more when their window is over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tuneloop.core.lazy import Array, NDArray, np
from tuneloop.core.stats.betting import ArmClaim, Book, open_book, place_bets, running_mean
from tuneloop.core.stats.sequences import excess_log_e, ratio_log_e
from tuneloop.improve.experiment.record import ExperimentDesign

# Shares of a claim's wealth, and the distance from its null, in effects, for which each is staked. Little is left for
# others than the registered effect: each halving of its share costs it log(2) of the log(20) that are needed.
BETTER = ((0.9, 1.25), (0.1, 0.6))
WORSE = ((0.4, 1.5), (0.6, 4.0))
NO_GAIN = ((0.5, 1.0), (0.2, 2.5), (0.3, 5.0))
EXCESS = ((0.5, 1.0), (0.5, 3.0))
AMOUNT_REACH = 2.0  # a user's amount counts as at most e^2 = 7.4 times the mean so far, and at least 1 / 7.4
FIRST_RATED = 0.5  # guess of the share of requests with a value
RATES = ("invalid", "dislikes")  # guardrails on the share of users that are affected
AMOUNTS = ("latency", "cost", "length")  # guardrails on geometric means


@dataclass(frozen=True)
class Arrivals:
    """Users in order, arrays (experiments, users).

    Args:
        candidate: whether a user is in the candidate's arm.
        propensity: the chance of that; NaN: there is no such user.
    """

    candidate: NDArray[np.bool_]
    propensity: Array


@dataclass(frozen=True)
class Matured(Arrivals):
    """Users whose windows are over.

    Args:
        outcome: mean value; NaN where there is none.
        likes, dislikes: good and bad values per request.
        checked: mean value by the check of a random sample; NaN where there is none.
    """

    outcome: Array
    likes: Array
    dislikes: Array
    checked: Array | None = None


@dataclass(frozen=True)
class UserTally:
    """Sums so far. Counts are arrays (experiments, shares, 2): the candidate's users and the champion's.

    Args:
        shares: of new users that met the candidate, one after another.
        users, rated: all users, and those with a value.
        affected: by the name of a guardrail on a rate.
        sums: of the values in either arm, (experiments, 2).
        books: bets on `measure`, `likes`, `dislikes`, `worst`, `checked`, and guardrails on amounts.
        amounts: by guardrail, sums of logarithms and numbers in either arm, (experiments, 2, 2).
    """

    shares: Array
    users: Array
    rated: Array
    affected: Mapping[str, Array]
    sums: Array
    books: Mapping[str, Book]
    amounts: Mapping[str, Array] = field(default_factory=dict)


def empty_tally(design: ExperimentDesign, shares: Array, experiments: int = 1) -> UserTally:
    """The sums before the first user."""

    def counts() -> Array:
        return np.zeros((experiments, len(shares), 2))

    better, worse = ArmClaim(1, BETTER), ArmClaim(-1, WORSE)
    liked = 1 - design.base if design.lower_is_better else design.base
    books = {
        "measure": open_book([better, worse, ArmClaim(-1, NO_GAIN, design.effect)], experiments, guess=liked),
        "likes": open_book([better], experiments, guess=FIRST_RATED * liked),
        "dislikes": open_book([ArmClaim(-1, BETTER)], experiments, guess=FIRST_RATED * (1 - liked)),
        "worst": open_book([better], experiments, guess=liked),
        "checked": open_book([better], experiments, guess=liked),
    }
    rails = [rail for rail in design.guardrails if rail.name in AMOUNTS]
    books |= {
        rail.name: open_book(
            [ArmClaim(1, EXCESS, math.log(rail.tolerance))], experiments, guess=None, reach=AMOUNT_REACH
        )
        for rail in rails
    }
    return UserTally(
        shares=shares,
        users=counts(),
        rated=counts(),
        affected={name: counts() for name in RATES},
        sums=np.zeros((experiments, 2)),
        books=books,
        amounts={rail.name: np.zeros((experiments, 2, 2)) for rail in rails},
    )


def counts_of(tally: UserTally, users: Arrivals, which: NDArray[np.bool_]) -> Array:
    """How many of the users are in either arm at each share; see `UserTally`."""
    there = which & ~np.isnan(users.propensity)
    rows, _ = np.nonzero(there)
    steps = np.searchsorted(tally.shares, users.propensity[there])
    places = (rows * len(tally.shares) + steps) * 2 + ~users.candidate[there]
    return np.bincount(places, minlength=tally.users.size).reshape(tally.users.shape).astype(np.float64)


def with_arrivals(tally: UserTally, users: Arrivals) -> UserTally:
    """The sums after more users came."""
    return replace(tally, users=tally.users + counts_of(tally, users, np.ones(users.candidate.shape, dtype=bool)))


def with_affected(tally: UserTally, name: str, users: Arrivals, affected: NDArray[np.bool_]) -> UserTally:
    """The sums after more users were found to be affected by what a guardrail counts."""
    return replace(tally, affected={**tally.affected, name: tally.affected[name] + counts_of(tally, users, affected)})


def with_amounts(tally: UserTally, name: str, users: Arrivals, logs: Array) -> UserTally:
    """The sums after more users' amounts. `logs`: their logarithms; NaN: nothing was measured."""
    book = place_bets(tally.books[name], users.candidate, logs, users.propensity, EFFECT_OF_AMOUNTS)
    measured = ~np.isnan(logs) & ~np.isnan(users.propensity)
    values = np.where(measured, logs, 0.0)
    arms = (measured & users.candidate, measured & ~users.candidate)
    sums = np.stack([np.stack([(values * arm).sum(-1), arm.sum(-1)], -1) for arm in arms], 1)
    return replace(
        tally, books={**tally.books, name: book}, amounts={**tally.amounts, name: tally.amounts[name] + sums}
    )


EFFECT_OF_AMOUNTS = 0.25  # an excess over the tolerance, as a logarithm, for which stakes are placed


def with_matured(tally: UserTally, design: ExperimentDesign, users: Matured) -> UserTally:
    """The sums after the windows of more users are over."""
    arm, chance = users.candidate, users.propensity
    there = ~np.isnan(users.likes) & ~np.isnan(chance)
    books = dict(tally.books)
    likes, dislikes = books["likes"], books["dislikes"]
    values = np.where(there, users.likes + users.dislikes, 0.0)
    rated = running_mean(values, there, likes.n, likes.total + dislikes.total, FIRST_RATED)
    books["measure"] = place_bets(books["measure"], arm, users.outcome, chance, design.effect)
    if design.missing == "one-way" and not design.sample:
        books["likes"] = place_bets(likes, arm, users.likes, chance, design.effect * rated)
        books["dislikes"] = place_bets(dislikes, arm, users.dislikes, chance, design.effect * rated)
    if design.missing == "any" and not design.sample:
        worst = np.where(arm, users.likes, 1 - users.dislikes)
        books["worst"] = place_bets(books["worst"], arm, worst, chance, design.effect)
    if users.checked is not None:
        books["checked"] = place_bets(books["checked"], arm, users.checked, chance, design.effect)
    valued = ~np.isnan(users.outcome) & ~np.isnan(chance)
    outcome = np.where(valued, users.outcome, 0.0)
    sums = np.stack([(outcome * arm).sum(-1), (outcome * ~arm).sum(-1)], axis=-1)
    return replace(tally, books=books, rated=tally.rated + counts_of(tally, users, valued), sums=tally.sums + sums)


def rows_of(tally: UserTally, rows: Array) -> UserTally:
    """The sums of some of the experiments. `rows`: which, as numpy selects them along the first axis."""

    def some(book: Book) -> Book:
        arrays = {name: getattr(book, name)[rows] for name in ("n", "total", "squares", "score", "information")}
        wealth, best = (tuple(array[rows] for array in arrays) for arrays in (book.log_wealth, book.best))
        return replace(book, **arrays, log_wealth=wealth, best=best)

    return replace(
        tally,
        users=tally.users[rows],
        rated=tally.rated[rows],
        sums=tally.sums[rows],
        affected={name: counts[rows] for name, counts in tally.affected.items()},
        amounts={name: sums[rows] for name, sums in tally.amounts.items()},
        books={name: some(book) for name, book in tally.books.items()},
    )


@dataclass(frozen=True)
class Findings:
    """What the sums prove, arrays with one value for each experiment: multiples of the evidence that is needed.

    Args:
        ratio, rated_ratio: that users, or those with a value, do not fall into the arms as drawn.
        guardrails: of the design in order, (experiments, guardrails).
        better, worse, no_gain, promotion, more_likes, fewer_dislikes: see `record.Strengths`.
        means, difference: of the measure: plain means in either arm, (experiments, 2), and the weighted difference.
        affected: what guardrails compare, (experiments, guardrails, 2).
    """

    ratio: Array
    rated_ratio: Array
    guardrails: Array
    better: Array
    worse: Array
    no_gain: Array
    promotion: Array
    more_likes: Array
    fewer_dislikes: Array
    means: Array
    difference: Array
    affected: Array


def findings_of(design: ExperimentDesign, tally: UserTally) -> Findings:
    """What the sums prove."""
    books, needed = tally.books, math.log(1 / design.alpha)
    better, worse, no_gain = (books["measure"].log_e(claim) / needed for claim in range(3))
    likes, dislikes = books["likes"].log_e(0) / needed, books["dislikes"].log_e(0) / needed
    rated_ratio = _ratio(tally.rated, tally.shares, design.ratio_alpha)
    if design.sample:
        promotion = books["checked"].log_e(0) / needed
    elif design.missing == "one-way":
        promotion = np.minimum(likes, dislikes)
    elif design.missing == "any":
        promotion = books["worst"].log_e(0) / needed
    else:  # at random: then both arms are rated at the same rates
        promotion = np.where(rated_ratio >= 1, np.minimum(better, 0.0), better)
    means = [_means(tally, rail.name) for rail in design.guardrails]
    rails = [_guardrail(design, tally, rail.name, rail.tolerance) for rail in design.guardrails]
    return Findings(
        ratio=_ratio(tally.users, tally.shares, design.ratio_alpha),
        rated_ratio=rated_ratio,
        guardrails=np.stack([*rails, np.zeros_like(better)], axis=-1)[:, :-1],
        better=better,
        worse=worse,
        no_gain=no_gain,
        promotion=promotion,
        more_likes=likes,
        fewer_dislikes=dislikes,
        means=_ratio_of(tally.sums, tally.rated.sum(axis=1)),
        difference=books["measure"].difference,
        affected=np.stack([*means, np.zeros_like(tally.sums)], axis=1)[:, :-1],
    )


def _ratio(counts: Array, shares: Array, alpha: float) -> Array:
    """Evidence that units don't fall into the arms as drawn; the e-values of all shares multiply."""
    log_e = ratio_log_e(counts, np.stack([shares, 1 - shares], axis=-1)).sum(axis=-1)
    return np.asarray(log_e / math.log(1 / alpha))


def _guardrail(design: ExperimentDesign, tally: UserTally, name: str, tolerance: float) -> Array:
    """Evidence that more is affected than is tolerated; alpha is divided among all guardrails."""
    needed = math.log(len(design.guardrails) / design.alpha)
    if name in AMOUNTS:
        return tally.books[name].log_e(0) / needed
    tolerated = tally.shares * tolerance / (tally.shares * tolerance + 1 - tally.shares)
    counts = tally.affected[name]
    return np.asarray(excess_log_e(counts[..., 0], counts[..., 1], tolerated).sum(axis=-1) / needed)


def _means(tally: UserTally, name: str) -> Array:
    """What a guardrail compares, in either arm, (experiments, 2): shares of users, or geometric means; NaN: nothing."""
    if name in AMOUNTS:
        sums, numbers = tally.amounts[name][..., 0], tally.amounts[name][..., 1]
        return np.asarray(np.exp(_ratio_of(sums, numbers)))
    return _ratio_of(tally.affected[name].sum(axis=1), tally.users.sum(axis=1))


def _ratio_of(sums: Array, numbers: Array) -> Array:
    return np.asarray(np.divide(sums, numbers, out=np.full(sums.shape, np.nan), where=numbers > 0))
