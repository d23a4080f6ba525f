"""What the users of an experiment prove, by bets (`core/stats/betting.py`), which hold from the first user on.

Each reason to roll back has its part of alpha (`levels_of`), and so have the two ways to a promotion: the checks of a
random sample, and votes as far as the registration trusts them. What a decision needs to know are sums that grow with
each look. Sums of many experiments are held at once, one along the first axis, for simulations; a real experiment is
one of 1. Users are counted when they come, with what guardrails may see at once, and once more when their window is
over.

Angelopoulos et al. 2023, "Prediction-powered inference"; Csillag et al. 2025, "Prediction-powered e-values" (of a
sample's checks, with votes as predictions). Manski 1990, "Nonparametric bounds on treatment effects" (`any`); Lee 2009,
"Training, wages, and sample selection" (`one-way`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tuneloop.core.lazy import Array, NDArray, np
from tuneloop.core.stats.betting import (
    ArmClaim,
    Book,
    RateBook,
    bet_on_rate,
    bound,
    negative_mean_log_e,
    odds_log_e,
    open_book,
    open_rate_book,
    place_bets,
    running_mean,
)
from tuneloop.core.stats.tests import Z95
from tuneloop.improve.experiment.record import ArmDifference, Evidence, ExperimentDesign, GuardrailFinding, Strengths

if TYPE_CHECKING:
    from tuneloop.improve.experiment.statistics import Units

# Shares of a claim's wealth, and the distance from its null, in effects, for which each is staked. Little is left for
# others than the registered effect: each halving of its share costs it log(2) of the log(20) that are needed.
BETTER = ((0.9, 1.25), (0.1, 0.6))
WORSE = ((0.4, 1.5), (0.6, 4.0))
NO_GAIN = ((0.5, 1.0), (0.2, 2.5), (0.3, 5.0))
EITHER = ((0.5, 0.5), (0.5, 1.5))  # a difference of the rates of rating
EXCESS = ((0.5, 1.0), (0.5, 3.0))
SLICE_WORSE = ((0.5, 4.0), (0.5, 10.0))  # what is looked for is large
ODDS = ((0.35, 0.8), (0.25, 0.88), (0.15, 0.6), (0.05, 0.3), (0.1, 1.25), (0.1, 2.0))  # shares of wealth, odds ratios
# Parts of alpha among the reasons to roll back; a guardrail that is not here has 0.6. Nearly half is for votes of the
# first day, which stop harm soonest; log(2) of evidence is a day at 200 users.
PARTS = {"dislikes": 9.0, "worse": 4.0, "shadow": 2.0, "assignment": 0.4, "switched": 0.4}
VOTES = 0.1  # of alpha for promotions by votes where a sample is checked, too
AMOUNT_REACH = 2.0  # a user's amount counts as at most e^2 = 7.4 times the mean so far, and at least 1 / 7.4
KINDS = 5  # of users, by what they did before or voted now; see `kinds_of`
UNHAPPY_VALUES = 3  # of a user, or more, none of them good
FIRST_RATED = 0.5  # guess of the share of requests with a value
RATES = ("invalid",)  # guardrails on a share of requests, the mean of that of each user
AMOUNTS = ("latency", "cost", "length")  # guardrails on geometric means
MOST_SLICES = 8  # among which the evidence for the worst one is divided
LATER_WINDOWS = 2  # the measure of `later` is that from a user's first window on until so many are over
WEEK = 7  # days
MOST_SWITCHED = 0.01  # share of returning units that may meet the other arm, as where two servers see a step at once
LEAST_VALUED = 10  # users of either arm with a value of a guardrail, before its estimate holds a promotion back
DOUBT = 0.5  # standard errors of a slice below what is tolerated, which hold a promotion back: one of many is low


def levels_of(design: ExperimentDesign) -> dict[str, float]:
    """The part of alpha for each reason to roll back. Their sum is alpha, so that a candidate without a difference is
    ever rolled back with at most that chance, for whatever reason."""
    reasons = [rail.name for rail in design.guardrails] + ["worse", "assignment", "switched"]
    parts = {reason: PARTS.get(reason, 0.6) for reason in [*reasons, *["shadow"] * design.shadow]}
    levels = {reason: design.alpha * part / sum(parts.values()) for reason, part in parts.items()}
    return levels | ({"slices": levels["slices"] / MOST_SLICES} if "slices" in levels else {})


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
        waiting: whether a check may still come of the user, or of one who came before.
        slices: whether a user is in a slice, (experiments, users, slices).
        kinds: see `kinds_of`; None: nothing is known of what they did before.
        weekday: 0 to 6, of a user's first request; None: not known.
    """

    outcome: Array
    likes: Array
    dislikes: Array
    checked: Array | None = None
    waiting: NDArray[np.bool_] | None = None
    slices: NDArray[np.bool_] | None = None
    kinds: NDArray[np.int64] | None = None
    weekday: NDArray[np.int64] | None = None


Column = tuple[str, int]  # a book, and the place of one of its claims


def needed_by(design: ExperimentDesign) -> dict[Column, float]:
    """The evidence that each claim takes which a promotion, a loss of the measure or an excluded gain may rest on."""
    votes, half = (VOTES, 0.5) if design.sample else (1.0, 1.0)
    worse = levels_of(design)["worse"] * half
    levels = {("measure", 0): design.alpha * votes, ("measure", 1): worse, ("measure", 2): design.alpha * half}
    books = {"any": ["worst"], "one-way": ["likes per request", "dislikes per request"], "random": []}
    levels |= {(name, 0): design.alpha * votes for name in books[trusted(design)]}
    if design.sample:
        levels |= {("checked", 1): worse, ("checked", 2): design.alpha * half}
        levels["checked", 0] = design.alpha * (1 - VOTES)
    return {column: -math.log(level) for column, level in levels.items()}


def proven_by(evidence: Mapping[Column, Array]) -> dict[str, Array]:
    """What claims prove together, from multiples of the evidence that each takes (`needed_by`)."""
    of_votes = [of for (name, _), of in evidence.items() if name not in ("measure", "checked")]
    votes = np.minimum.reduce(of_votes or [evidence["measure", 0]])
    sample = evidence.get(("checked", 0))
    worse, no_gain = (
        np.maximum(evidence["measure", claim], evidence.get(("checked", claim), -math.inf)) for claim in (1, 2)
    )
    promotion = votes if sample is None else np.maximum(votes, sample)
    sample = np.zeros_like(votes) if sample is None else sample
    return {"votes": votes, "sample": sample, "promotion": promotion, "worse": worse, "no_gain": no_gain}


def trusted(design: ExperimentDesign) -> str:
    """What is assumed of missing votes: nothing where checks decide."""
    return "any" if design.sample else design.missing


def kinds_of(requests: Array, likes: Array, dislikes: Array) -> NDArray[np.int64]:
    """Kinds of users by their requests before they were drawn, and the good and bad values of these: without any
    request 0, without a value 1, else 2 to 4 by thirds of the share that is good."""
    valued = likes + dislikes
    good = np.divide(likes, valued, out=np.zeros_like(valued), where=valued > 0)
    rated = 2 + np.minimum((3 * good).astype(np.int64), 2)
    return np.asarray(np.where(requests == 0, 0, np.where(valued == 0, 1, rated)))


@dataclass(frozen=True)
class UserTally:
    """Sums so far. Counts are arrays (experiments, shares, 2): the candidate's users and the champion's.

    Args:
        shares: of new users that met the candidate, one after another.
        users, rated: all users, and those with a value.
        sums: of the values in either arm, (experiments, 2).
        books: bets on `measure`, `likes`, `dislikes` and `rated` per request, `worst`, `checked`, and by the names of
            guardrails; of slices `slice 0` and so on.
        rates: bets of guardrails on rates.
        checks: by what users have voted, see `kinds_of`, (experiments, kinds, 3): users, those who were checked, and
            the sum of what the checks say.
        weekdays: sums of what decides on a promotion, by day of the week, (experiments, 7, 3): of the scores of
            `core/stats/betting.py`, of p (1 - p), and of the scores' squares.
        amounts: by guardrail or slice, sums of logarithms, or values, and numbers in either arm, (experiments, 2, 2).
    """

    shares: Array
    users: Array
    rated: Array
    sums: Array
    books: Mapping[str, Book]
    rates: Mapping[str, RateBook]
    checks: Array
    weekdays: Array
    amounts: Mapping[str, Array] = field(default_factory=dict)


def empty_tally(design: ExperimentDesign, shares: Array, experiments: int = 1, slices: int = 0) -> UserTally:
    """The sums before the first user. `slices`: how many there are; at most `MOST_SLICES`."""
    liked = 1 - design.base if design.lower_is_better else design.base
    better, less = ArmClaim(1, BETTER), ArmClaim(-1, BETTER)
    of_measure = [better, ArmClaim(-1, WORSE), ArmClaim(-1, NO_GAIN, design.effect)]
    claims = {
        "measure": (of_measure, liked),
        "likes per request": ([better], FIRST_RATED * liked),
        "dislikes per request": ([less], FIRST_RATED * (1 - liked)),
        "rated": ([ArmClaim(1, EITHER), ArmClaim(-1, EITHER)], FIRST_RATED),
        "worst": ([better], liked),
        "checked": (of_measure, liked),
    }
    kinds = KINDS if design.earlier_days else 1
    books = {
        name: open_book(of_book, experiments, guess=guess, kinds=kinds) for name, (of_book, guess) in claims.items()
    }
    rates: dict[str, RateBook] = {}
    amounts: dict[str, Array] = {}
    for rail in design.guardrails:
        names = [f"slice {k}" for k in range(slices)] if rail.name == "slices" else [rail.name]
        for name in names:
            amounts[name] = np.zeros((experiments, 2, 2))
            if rail.name in RATES:
                rates[name] = open_rate_book(experiments)
            elif rail.name in AMOUNTS:
                claim = ArmClaim(1, EXCESS, math.log(rail.tolerance))
                books[name] = open_book([claim], experiments, guess=None, reach=AMOUNT_REACH)
            else:
                claim = ArmClaim(-1, SLICE_WORSE if rail.name == "slices" else WORSE, -rail.tolerance)
                guess, kinds_of_rail = (0.95, KINDS) if rail.name == "unhappy" else (liked, 1)
                books[name] = open_book([claim], experiments, guess=guess, kinds=kinds_of_rail)
    counts = np.zeros((experiments, len(shares), 2))
    return UserTally(
        shares=shares,
        users=counts,
        rated=counts,
        sums=np.zeros((experiments, 2)),
        books=books,
        rates=rates,
        checks=np.zeros((experiments, KINDS, 3)),
        weekdays=np.zeros((experiments, WEEK, 3)),
        amounts=amounts,
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


def with_values(
    tally: UserTally,
    design: ExperimentDesign,
    name: str,
    users: Arrivals,
    values: Array,
    votes: NDArray[np.int64] | None = None,
) -> UserTally:
    """The sums after more users' values of a guardrail, by its name, or of a slice; NaN: nothing there.

    `values`: shares of requests, logarithms of amounts, or values from 0 to 1. `votes`: of users, for `unhappy`, which
    is compared among users with as many.
    """
    books, rates = dict(tally.books), dict(tally.rates)
    if name in RATES:
        tolerance = next(rail.tolerance for rail in design.guardrails if rail.name == name)
        share = users.propensity * tolerance / (users.propensity * tolerance + 1 - users.propensity)
        rates[name] = bet_on_rate(rates[name], users.candidate, values, np.where(np.isnan(share), 0.5, share))
    else:
        effect = EFFECT_OF_AMOUNTS if name in AMOUNTS else design.effect
        kinds = np.clip(votes - UNHAPPY_VALUES, 0, KINDS - 1) if name == "unhappy" and votes is not None else None
        books[name] = place_bets(books[name], users.candidate, values, users.propensity, effect, kinds)
    measured = ~np.isnan(values) & ~np.isnan(users.propensity)
    values = np.where(measured, values, 0.0)
    arms = (measured & users.candidate, measured & ~users.candidate)
    sums = np.stack([np.stack([(values * arm).sum(-1), arm.sum(-1)], -1) for arm in arms], 1)
    return replace(tally, books=books, rates=rates, amounts={**tally.amounts, name: tally.amounts[name] + sums})


EFFECT_OF_AMOUNTS = 0.25  # the excess for which stakes are placed, as a logarithm


def with_matured(tally: UserTally, design: ExperimentDesign, users: Matured) -> UserTally:
    """The sums after the windows of more users are over."""
    arm, chance = users.candidate, users.propensity
    there = ~np.isnan(users.likes) & ~np.isnan(chance)
    valued = there & ~np.isnan(users.outcome)
    books, checks = dict(tally.books), tally.checks
    kinds = users.kinds if design.earlier_days else None
    books["measure"] = place_bets(books["measure"], arm, users.outcome, chance, design.effect, kinds)
    decides, values = "measure", users.outcome  # on a promotion
    if trusted(design) == "any":
        decides, values = "worst", np.where(arm, users.likes, 1 - users.dislikes)
        books["worst"] = place_bets(books["worst"], arm, values, chance, design.effect, kinds)
    else:
        rated, book = users.likes + users.dislikes, books["rated"]
        usual = running_mean(np.where(there, rated, 0.0), there, book.n, book.total, FIRST_RATED, kinds)
        per_request = {"likes per request": users.likes, "dislikes per request": users.dislikes, "rated": rated}
        for name, of_users in per_request.items():
            books[name] = place_bets(books[name], arm, of_users, chance, design.effect * usual, kinds)
    if design.sample:
        decides = "checked"
        values, room, checks = _completed(tally, design, users, there)
        books["checked"] = place_bets(books["checked"], arm, values, chance, design.effect, kinds, room)
    weekdays = _by_weekday(tally, design, users, decides, values)
    outcome = np.where(valued, users.outcome, 0.0)
    sums = np.stack([(outcome * arm).sum(-1), (outcome * ~arm).sum(-1)], axis=-1)
    counts = tally.rated + counts_of(tally, users, valued)
    tally = replace(tally, books=books, rated=counts, sums=tally.sums + sums, checks=checks, weekdays=weekdays)
    slices = np.zeros((*outcome.shape, 0), dtype=bool) if users.slices is None else users.slices
    for k in range(slices.shape[-1]):
        if f"slice {k}" in books:
            here = np.where(slices[..., k], users.outcome, np.nan)
            tally = with_values(tally, design, f"slice {k}", users, here)
    return tally


def _completed(
    tally: UserTally, design: ExperimentDesign, users: Matured, there: NDArray[np.bool_]
) -> tuple[Array, Array, Array]:
    """What checks of all users would say on average, from those of the random sample: the guess by what a user has
    voted, and of those who were checked what it misses, divided by their share. Its mean is that of the checks, whoever
    votes and however: votes only take noise away. Users in order; none of them counts before the checks that may still
    come. Returns the values, how far each may lie outside [0, 1], and `UserTally.checks` after them.
    """
    there = there if users.waiting is None else there & ~users.waiting
    checked = np.full(there.shape, np.nan) if users.checked is None else users.checked
    seen, says = there & ~np.isnan(checked), np.where(np.isnan(checked), 0.0, checked)
    votes = kinds_of(np.ones(there.shape), np.nan_to_num(users.likes), np.nan_to_num(users.dislikes))
    liked = 1 - design.base if design.lower_is_better else design.base
    guess = running_mean(says, seen, tally.checks[..., 1], tally.checks[..., 2], liked, votes)
    users_before, seen_before = (tally.checks[..., at].sum(axis=-1, keepdims=True) for at in (0, 1))
    share = running_mean(seen.astype(np.float64), there, users_before, seen_before, design.sample)
    values = np.where(there, guess + np.where(seen, (says - guess) / share, 0.0), np.nan)
    sums = [[(part * (votes == kind)).sum(-1) for part in (there, seen, says * seen)] for kind in range(KINDS)]
    return values, 1 / share - 1, tally.checks + np.moveaxis(np.array(sums), -1, 0)


def _by_weekday(tally: UserTally, design: ExperimentDesign, users: Matured, name: str, values: Array) -> Array:
    """The sums by day of the week after more users. `values`: those that decide on a promotion, of the book `name`."""
    if design.least_days < WEEK or users.weekday is None:
        return tally.weekdays
    book, valued = tally.books[name], ~np.isnan(values) & ~np.isnan(users.propensity)
    y, p = np.where(valued, values, 0.0), np.where(valued, users.propensity, 0.5)
    n, total = (sums.sum(axis=-1, keepdims=True) for sums in (book.n, book.total))
    score = (users.candidate - p) * (y - running_mean(y, valued, n, total, book.guess or 0.0))
    parts = np.stack([score, p * (1 - p), score * score], axis=-1) * valued[..., None]
    days = [(parts * (users.weekday == day)[..., None]).sum(axis=1) for day in range(WEEK)]
    return np.asarray(tally.weekdays + np.stack(days, axis=1))


def _whole_weeks_log_e(design: ExperimentDesign, weekdays: Array) -> Array:
    """Evidence that the candidate is better on the average of the days of the week, whatever the traffic and the share
    on each: the ratio of normal likelihoods for the stakes of `BETTER`. It only holds promotions back, so that its
    being right for many users alone costs nothing."""
    score, information, squares = np.moveaxis(weekdays, -1, 0)
    seen = information > 0
    number, weights = np.maximum(seen.sum(axis=-1), 1), np.where(seen, information, 1.0)
    mean = (score / weights).sum(axis=-1) / number
    variance = np.maximum((squares / weights**2).sum(axis=-1) / number**2, 1e-12)
    logs = [
        math.log(share) + (size * design.effect * mean - (size * design.effect) ** 2 / 2) / variance
        for share, size in BETTER
    ]
    return np.where(seen.any(axis=-1), np.logaddexp.reduce(np.array(logs)), 0.0)


@dataclass(frozen=True)
class Findings:
    """What the sums prove, arrays with one value for each experiment: multiples of the evidence that is needed.

    Args:
        ratio: that users do not fall into the arms as drawn; `unlikely`: that is likely already, at the level alpha.
        guardrails: of the design in order, (experiments, guardrails).
        held: whether the candidate seems to be worse than tolerated, (experiments, guardrails).
        suspected: whether votes of the first day are lower by more than a standard error.
        worst: place of the slice with most evidence, (experiments,).
        better, worse, no_gain, promotion, votes, sample, rates, whole_weeks: see `record.Strengths`.
        means, difference: of the measure: plain means in either arm, (experiments, 2), and the weighted difference;
            `estimate` is that of checks where there are any.
        compared: what guardrails compare, (experiments, guardrails, 2).
    """

    ratio: Array
    unlikely: NDArray[np.bool_]
    guardrails: Array
    held: NDArray[np.bool_]
    suspected: NDArray[np.bool_]
    worst: NDArray[np.int64]
    better: Array
    worse: Array
    no_gain: Array
    promotion: Array
    votes: Array
    sample: Array
    rates: Array
    whole_weeks: Array
    means: Array
    difference: Array
    estimate: Array
    compared: Array


def findings_of(design: ExperimentDesign, tally: UserTally) -> Findings:
    """What the sums prove."""
    books, needed, levels = tally.books, math.log(1 / design.alpha), levels_of(design)
    rated, better = books["rated"], books["measure"].log_e(0)
    rates = np.maximum(rated.log_e(0), rated.log_e(1)) / (needed + math.log(2))
    of = {(name, claim): books[name].log_e(claim) / least for (name, claim), least in needed_by(design).items()}
    if trusted(design) == "random":  # then both arms are rated alike
        unequal = (rates >= 1) | (abs(np.nan_to_num(rated.difference)) > Z95 * rated.error)
        of["measure", 0] = np.where(unequal, 0.0, of["measure", 0])
    odds = [math.log(weight) + odds_log_e(tally.users, tally.shares, ratio) for weight, ratio in ODDS]
    ratio = np.logaddexp.reduce(np.array(odds))
    slices = np.array([book.log_e(0) for name, book in books.items() if name.startswith("slice ")] or [0.0 * better])
    first = next(books[name] for name in ("dislikes", "measure") if name in tally.amounts or name == "measure")
    rails = [
        _rail(tally, rail.name, rail.tolerance, slices, -math.log(levels[rail.name])) for rail in design.guardrails
    ]
    none = (np.zeros((len(better), 0)), np.zeros((len(better), 0), dtype=bool), np.zeros((len(better), 0, 2)))
    proven, held, compared = (np.stack(parts, axis=1) for parts in zip(*rails, strict=True)) if rails else none
    return Findings(
        ratio=ratio / -math.log(levels["assignment"]),
        unlikely=ratio >= needed,
        guardrails=proven,
        held=held,
        suspected=np.nan_to_num(first.difference + first.error) < 0,
        worst=slices.argmax(axis=0),
        better=better / needed,
        **proven_by(of),
        rates=rates,
        whole_weeks=_whole_weeks_log_e(design, tally.weekdays) / needed,
        means=_ratio_of(tally.sums, tally.rated.sum(axis=1)),
        difference=books["measure"].difference,
        estimate=np.where(books["checked"].information > 0, books["checked"].difference, books["measure"].difference),
        compared=compared,
    )


def _rail(
    tally: UserTally, name: str, tolerance: float, slices: Array, needed: float
) -> tuple[Array, NDArray[np.bool_], Array]:
    """Of a guardrail: evidence that the candidate is worse than tolerated, whether it seems to be, and what it compares
    in either arm: means of users."""
    if name == "slices":
        books = [(key, book) for key, book in tally.books.items() if key.startswith("slice ")]
        low = [np.nan_to_num(book.difference) + DOUBT * book.error < -tolerance for _, book in books]
        sums = np.array([tally.amounts[key] for key, _ in books])
        worst = sums[slices.argmax(axis=0), np.arange(slices.shape[1])] if books else np.zeros((slices.shape[1], 2, 2))
        held = np.logical_or.reduce(low) if books else np.zeros(slices.shape[1], dtype=bool)
        return slices.max(axis=0) / needed, held, _ratio_of(worst[..., 0], worst[..., 1])
    sums, numbers = np.moveaxis(tally.amounts[name], -1, 0)
    means = _ratio_of(sums, numbers)
    if name in RATES:
        book = tally.rates[name]
        return book.best / needed, book.score > 1, means  # one user alone stops nothing
    difference, strength = np.nan_to_num(tally.books[name].difference), tally.books[name].log_e(0) / needed
    if name in AMOUNTS:
        return strength, difference > math.log(tolerance), np.exp(means)
    return strength, (difference < -tolerance) & (numbers.min(axis=-1) >= LEAST_VALUED), means


def _ratio_of(sums: Array, numbers: Array) -> Array:
    return np.asarray(np.divide(sums, numbers, out=np.full(sums.shape, np.nan), where=numbers > 0))


@dataclass(frozen=True)
class Stage:
    """How far an experiment has come."""

    days: float  # since its start
    step_days: float  # since its share was last changed
    share: float  # of new users that meet the candidate; 0 in shadow mode
    live_days: float = 0.0  # since users meet the candidate


def evidence_of(
    design: ExperimentDesign, units: Units, stage: Stage, shadow: Sequence[float] = (), copies: int = 0
) -> Evidence:
    """All that a decision is made from.

    Args:
        shadow: judged pairs in order, each 1 (the candidate is better), 0 or -1.
        copies: of requests that the candidate has answered unseen, or failed to answer; judged or not.
    """
    tally = tally_of(design, units)
    evidence = evidence_at(design, tally, findings_of(design, tally), 0, stage, list(units.slices))
    valued = ~np.isnan(units.outcome)
    data = (units.candidate[None, valued], units.outcome[None, valued], units.propensity[None, valued])
    bounds = {}
    if valued.any():
        guess = {"guess": 1 - design.base if design.lower_is_better else design.base}
        bounds["low"] = bound(ArmClaim(1, BETTER), data, design.effect, design.alpha, **guess)
        bounds["high"] = bound(ArmClaim(-1, WORSE), data, design.effect, design.alpha, **guess)
    votes, levels = np.asarray(shadow, dtype=np.float64), levels_of(design)
    worse = negative_mean_log_e(votes) / -math.log(levels.get("shadow", design.alpha)) if len(votes) else 0.0
    came_again = np.array([[units.switched, units.returned - units.switched]], dtype=np.float64)
    odds = [math.log(1 / 3) + odds_log_e(came_again, np.array([MOST_SWITCHED]), ratio) for ratio in (2.0, 5.0, 25.0)]
    strengths = evidence.strengths.model_copy(
        update={
            "shadow_worse": worse,
            "switched": max(0.0, float(np.logaddexp.reduce(odds))) / -math.log(levels["switched"]),
            "checked_units": int((~np.isnan(units.checked)).sum()),
        }
    )
    arms = (units.candidate, ~units.candidate)
    changes = {
        "measure": evidence.measure.model_copy(update=bounds), "strengths": strengths, "dropped": units.dropped,
        "requests": [_mean(units.requests[arm & ~np.isnan(units.requests)]) for arm in arms],
        "shadow_copies": max(copies, len(votes)), "shadow_votes": len(votes), "shadow_mean": _mean(votes),
    }  # fmt: skip
    return evidence.model_copy(update=changes)


def tally_of(design: ExperimentDesign, units: Units) -> UserTally:
    """The sums of one experiment's users; those whose windows are over come in the order of their first requests."""
    tally = empty_tally(design, np.unique(units.propensity), slices=len(units.slices))
    users = Arrivals(units.candidate[None], units.propensity[None])
    tally = with_arrivals(tally, users)
    for name in units.guarded:
        if name in tally.amounts:
            tally = with_values(tally, design, name, users, units.guarded[name][None], units.votes[None])
    last = np.flatnonzero(~np.isnan(units.checked))[-1:]
    waiting = np.arange(len(units.checked)) > (last[0] if len(last) else -1)
    matured = Matured(
        *(users.candidate, users.propensity, units.outcome[None], units.likes[None], units.dislikes[None]),
        checked=units.checked[None],
        waiting=waiting[None],
        slices=np.stack([*units.slices.values(), units.candidate], axis=-1)[None, :, :-1],
        kinds=units.kinds[None],
        weekday=units.weekday[None],
    )
    return with_matured(tally, design, matured)


def evidence_at(
    design: ExperimentDesign, tally: UserTally, findings: Findings, at: int, stage: Stage, slices: Sequence[str] = ()
) -> Evidence:
    """The evidence of one of a tally's experiments, without the bounds, which no decision needs.

    Args:
        at: place of the experiment on the first axis of the tally and its findings.
        slices: their names.
    """
    users, rated = tally.users[at].sum(axis=0), tally.rated[at].sum(axis=0)
    means = findings.means[at]
    rails = []
    for number, rail in enumerate(design.guardrails):
        strength, (candidate, champion) = float(findings.guardrails[at, number]), findings.compared[at, number]
        rails.append(
            GuardrailFinding(
                name=rail.name,
                tolerance=rail.tolerance,
                candidate=float(candidate),
                champion=float(champion),
                strength=strength,
                tripped=strength >= 1,
                held=bool(findings.held[at, number]),
                where=slices[int(findings.worst[at])] if slices and rail.name == "slices" else "",
            )
        )
    proven = ("better", "worse", "no_gain", "promotion", "votes", "sample", "rates", "whole_weeks")
    return Evidence(
        days=stage.days,
        step_days=stage.step_days,
        share=stage.share,
        users=int(users.sum()),
        candidate_users=int(users[0]),
        dropped=0,
        measure=ArmDifference(
            units=int(rated.sum()),
            candidate_units=int(rated[0]),
            candidate=float(means[0]),
            champion=float(means[1]),
            difference=float(findings.difference[at]),
            low=math.nan,
            high=math.nan,
        ),
        guardrails=rails,
        ratio_strength=float(findings.ratio[at]),
        unlikely=bool(findings.unlikely[at]),
        estimate=float(findings.estimate[at]),
        suspected=bool(findings.suspected[at]),
        live_days=stage.live_days,
        strengths=Strengths(**{name: float(getattr(findings, name)[at]) for name in proven}),
    )


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else math.nan
