"""What the users of an experiment prove, by bets (`core/stats/betting.py`), which hold from the first user on.

What a decision needs to know of them are sums that grow with each look. Sums of many experiments are held at once, one
along the first axis, for simulations; a real experiment is one of 1. Users are counted when they come, with what
guardrails may see at once, and once more when their window is over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tuneloop.core.lazy import Array, NDArray, np
from tuneloop.core.stats.betting import ArmClaim, Book, bound, negative_mean_log_e, open_book, place_bets, running_mean
from tuneloop.core.stats.sequences import excess_log_e, odds_log_e
from tuneloop.improve.experiment.record import ArmDifference, Evidence, ExperimentDesign, GuardrailFinding, Strengths

if TYPE_CHECKING:
    from tuneloop.improve.experiment.statistics import Units

# Shares of a claim's wealth, and the distance from its null, in effects, for which each is staked. Little is left for
# others than the registered effect: each halving of its share costs it log(2) of the log(20) that are needed.
BETTER = ((0.9, 1.25), (0.1, 0.6))
WORSE = ((0.3, 1.5), (0.5, 4.0))  # a fifth of alpha is left to the guardrails, which roll back, too
NO_GAIN = ((0.5, 1.0), (0.2, 2.5), (0.3, 5.0))
EXCESS = ((0.5, 1.0), (0.5, 3.0))
SLICE_WORSE = ((0.5, 4.0), (0.5, 10.0))  # what is looked for is large
ODDS = ((0.35, 0.8), (0.25, 0.88), (0.15, 0.6), (0.05, 0.3), (0.1, 1.25), (0.1, 2.0))  # shares of wealth, odds ratios
AMOUNT_REACH = 2.0  # a user's amount counts as at most e^2 = 7.4 times the mean so far, and at least 1 / 7.4
KINDS = 5  # of users, by what they did before; see `kinds_of`
FIRST_RATED = 0.5  # guess of the share of requests with a value
RATES = ("invalid", "dislikes", "unhappy")  # guardrails on the share of users that are affected
AMOUNTS = ("latency", "cost", "length")  # guardrails on geometric means
MOST_SLICES = 8  # among which the evidence for the worst one is divided
LATER_WINDOWS = 2  # the measure of `later` is that from a user's first window on until so many are over
HELD = 0.5  # of the evidence for a loss in a slice, with which nothing is promoted
WEEK = 7  # days
MOST_SWITCHED = 0.01  # share of returning units that may meet the other arm, as where two servers see a step at once
LEAST_LATER = 10  # users of either arm with a later value, before its estimate holds a promotion back


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
        slices: whether a user is in a slice, (experiments, users, slices).
        kinds: see `kinds_of`; None: nothing is known of what they did before.
        weekday: 0 to 6, of a user's first request; None: not known.
    """

    outcome: Array
    likes: Array
    dislikes: Array
    checked: Array | None = None
    slices: NDArray[np.bool_] | None = None
    kinds: NDArray[np.int64] | None = None
    weekday: NDArray[np.int64] | None = None


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
        affected: by the name of a guardrail on a rate.
        sums: of the values in either arm, (experiments, 2).
        books: bets on `measure`, `likes`, `dislikes`, `worst`, `checked`, `later`, `slice 0` and so on, and guardrails
            on amounts.
        weekdays: sums of what decides on a promotion, by day of the week, (experiments, 7, 3): of the scores of
            `core/stats/betting.py`, of p (1 - p), and of the scores' squares.
        amounts: by guardrail or slice, sums of logarithms, or values, and numbers in either arm, (experiments, 2, 2).
    """

    shares: Array
    users: Array
    rated: Array
    affected: Mapping[str, Array]
    sums: Array
    books: Mapping[str, Book]
    weekdays: Array
    amounts: Mapping[str, Array] = field(default_factory=dict)


def empty_tally(design: ExperimentDesign, shares: Array, experiments: int = 1, slices: int = 0) -> UserTally:
    """The sums before the first user. `slices`: how many there are; at most `MOST_SLICES`."""

    def counts() -> Array:
        return np.zeros((experiments, len(shares), 2))

    better, worse = ArmClaim(1, BETTER), ArmClaim(-1, WORSE)
    liked = 1 - design.base if design.lower_is_better else design.base
    kinds = KINDS if design.earlier_days else 1
    books = {
        "measure": open_book([better, worse, ArmClaim(-1, NO_GAIN, design.effect)], experiments, guess=liked),
        "likes": open_book([better], experiments, guess=FIRST_RATED * liked, kinds=kinds),
        "dislikes": open_book([ArmClaim(-1, BETTER)], experiments, guess=FIRST_RATED * (1 - liked), kinds=kinds),
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
    tolerances = {rail.name: rail.tolerance for rail in design.guardrails}
    names = ["later"] * ("later" in tolerances) + [f"slice {k}" for k in range(slices if "slices" in tolerances else 0)]
    for name in names:
        stakes, tolerance = (WORSE, tolerances["later"]) if name == "later" else (SLICE_WORSE, tolerances["slices"])
        books[name] = open_book([ArmClaim(-1, stakes, -tolerance)], experiments, guess=liked)
    return UserTally(
        shares=shares,
        users=counts(),
        rated=counts(),
        affected={name: counts() for name in RATES},
        sums=np.zeros((experiments, 2)),
        books=books,
        weekdays=np.zeros((experiments, WEEK, 3)),
        amounts={name: np.zeros((experiments, 2, 2)) for name in [*(rail.name for rail in rails), *names]},
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


def with_values(tally: UserTally, name: str, users: Arrivals, values: Array, effect: float) -> UserTally:
    """The sums after more users' values of a guardrail: logarithms of amounts, or the measure; NaN: nothing there.

    `effect`: the excess for which stakes are placed, as a logarithm or in the measure.
    """
    book = place_bets(tally.books[name], users.candidate, values, users.propensity, effect)
    measured = ~np.isnan(values) & ~np.isnan(users.propensity)
    values = np.where(measured, values, 0.0)
    arms = (measured & users.candidate, measured & ~users.candidate)
    sums = np.stack([np.stack([(values * arm).sum(-1), arm.sum(-1)], -1) for arm in arms], 1)
    return replace(
        tally, books={**tally.books, name: book}, amounts={**tally.amounts, name: tally.amounts[name] + sums}
    )


def with_amounts(tally: UserTally, name: str, users: Arrivals, logs: Array) -> UserTally:
    """The sums after more users' amounts. `logs`: their logarithms."""
    return with_values(tally, name, users, logs, EFFECT_OF_AMOUNTS)


EFFECT_OF_AMOUNTS = 0.25


def with_matured(tally: UserTally, design: ExperimentDesign, users: Matured) -> UserTally:
    """The sums after the windows of more users are over."""
    arm, chance = users.candidate, users.propensity
    there = ~np.isnan(users.likes) & ~np.isnan(chance)
    tally = _with_weekdays(tally, design, users)
    books = dict(tally.books)
    likes, dislikes = books["likes"], books["dislikes"]
    values = np.where(there, users.likes + users.dislikes, 0.0)
    kinds = users.kinds if design.earlier_days else None
    rated = running_mean(values, there, likes.n, likes.total + dislikes.total, FIRST_RATED, kinds)
    books["measure"] = place_bets(books["measure"], arm, users.outcome, chance, design.effect)
    if design.missing == "one-way" and not design.sample:
        books["likes"] = place_bets(likes, arm, users.likes, chance, design.effect * rated, kinds)
        books["dislikes"] = place_bets(dislikes, arm, users.dislikes, chance, design.effect * rated, kinds)
    if design.missing == "any" and not design.sample:
        worst = np.where(arm, users.likes, 1 - users.dislikes)
        books["worst"] = place_bets(books["worst"], arm, worst, chance, design.effect)
    if users.checked is not None:
        books["checked"] = place_bets(books["checked"], arm, users.checked, chance, design.effect)
    valued = ~np.isnan(users.outcome) & ~np.isnan(chance)
    outcome = np.where(valued, users.outcome, 0.0)
    sums = np.stack([(outcome * arm).sum(-1), (outcome * ~arm).sum(-1)], axis=-1)
    rated = tally.rated + counts_of(tally, users, valued)
    tally = replace(tally, books=books, rated=rated, sums=tally.sums + sums)
    slices = np.zeros((*outcome.shape, 0), dtype=bool) if users.slices is None else users.slices
    for k in range(slices.shape[-1]):
        if f"slice {k}" in books:
            here = np.where(slices[..., k], users.outcome, np.nan)
            tally = with_values(tally, f"slice {k}", users, here, design.effect)
    return tally


def _with_weekdays(tally: UserTally, design: ExperimentDesign, users: Matured) -> UserTally:
    """The sums by day of the week after more users, of the values that decide on a promotion."""
    if design.least_days < WEEK or users.weekday is None:
        return tally
    name, values = "measure", users.outcome
    if design.sample:
        name, values = "checked", np.full_like(values, np.nan) if users.checked is None else users.checked
    elif design.missing == "any":
        name, values = "worst", np.where(users.candidate, users.likes, 1 - users.dislikes)
    book, valued = tally.books[name], ~np.isnan(values) & ~np.isnan(users.propensity)
    y, p = np.where(valued, values, 0.0), np.where(valued, users.propensity, 0.5)
    score = (users.candidate - p) * (y - running_mean(y, valued, book.n, book.total, book.guess or 0.0))
    parts = np.stack([score, p * (1 - p), score * score], axis=-1) * valued[..., None]
    days = [(parts * (users.weekday == day)[..., None]).sum(axis=1) for day in range(WEEK)]
    return replace(tally, weekdays=tally.weekdays + np.stack(days, axis=1))


def _whole_weeks_log_e(design: ExperimentDesign, weekdays: Array) -> Array:
    """Evidence that the candidate is better on the average of the days of the week, whatever the traffic and the share
    on each: the ratio of normal likelihoods for the stakes of `BETTER`. It only holds promotions back, so that its
    being right for many users alone costs nothing."""
    score, information, squares = np.moveaxis(weekdays, -1, 0)
    seen = information > 0
    number, each = np.maximum(seen.sum(axis=-1), 1), np.where(seen, information, 1.0)
    mean = (score / each).sum(axis=-1) / number
    variance = np.maximum((squares / each**2).sum(axis=-1) / number**2, 1e-12)
    logs = [
        math.log(share) + (size * design.effect * mean - (size * design.effect) ** 2 / 2) / variance
        for share, size in BETTER
    ]
    return np.where(seen.any(axis=-1), np.logaddexp.reduce(np.array(logs)), 0.0)


@dataclass(frozen=True)
class Findings:
    """What the sums prove, arrays with one value for each experiment: multiples of the evidence that is needed.

    Args:
        ratio, rated_ratio: that users, or those with a value, do not fall into the arms as drawn.
        guardrails: of the design in order, (experiments, guardrails).
        held: whether the candidate seems to be worse than tolerated, (experiments, guardrails).
        worst: place of the slice with most evidence, (experiments,).
        better, worse, no_gain, promotion, more_likes, fewer_dislikes, whole_weeks: see `record.Strengths`.
        means, difference: of the measure: plain means in either arm, (experiments, 2), and the weighted difference.
        affected: what guardrails compare, (experiments, guardrails, 2).
    """

    ratio: Array
    rated_ratio: Array
    guardrails: Array
    held: NDArray[np.bool_]
    worst: NDArray[np.int64]
    better: Array
    worse: Array
    no_gain: Array
    promotion: Array
    more_likes: Array
    fewer_dislikes: Array
    whole_weeks: Array
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
    worst = _worst_slice(tally)
    means = [_means(tally, rail.name, worst) for rail in design.guardrails]
    rails = [_guardrail(design, tally, rail.name, rail.tolerance) for rail in design.guardrails]
    held = [_seems_worse(tally, rail.name, rail.tolerance, rails[at]) for at, rail in enumerate(design.guardrails)]
    return Findings(
        ratio=_ratio(tally.users, tally.shares, design.ratio_alpha),
        rated_ratio=rated_ratio,
        guardrails=np.stack([*rails, np.zeros_like(better)], axis=-1)[:, :-1],
        held=np.stack([*held, np.zeros(len(better), dtype=bool)], axis=-1)[:, :-1],
        worst=worst,
        better=better,
        worse=worse,
        no_gain=no_gain,
        promotion=promotion,
        more_likes=likes,
        fewer_dislikes=dislikes,
        whole_weeks=_whole_weeks_log_e(design, tally.weekdays) / needed,
        means=_ratio_of(tally.sums, tally.rated.sum(axis=1)),
        difference=books["measure"].difference,
        affected=np.stack([*means, np.zeros_like(tally.sums)], axis=1)[:, :-1],
    )


def _ratio(counts: Array, shares: Array, alpha: float) -> Array:
    """Evidence that units don't fall into the arms as drawn, but with odds that are `ODDS` times as high."""
    logs = [math.log(weight) + odds_log_e(counts, shares, ratio) for weight, ratio in ODDS]
    return np.asarray(np.logaddexp.reduce(np.array(logs)) / math.log(1 / alpha))


def _guardrail(design: ExperimentDesign, tally: UserTally, name: str, tolerance: float) -> Array:
    """Evidence that more is affected than is tolerated; alpha is divided among all guardrails."""
    needed = math.log(len(design.guardrails) / design.alpha)
    if name == "slices":
        return np.asarray(_slice_log_e(tally).max(axis=0) / (needed + math.log(MOST_SLICES)))
    if name not in RATES:
        return tally.books[name].log_e(0) / needed
    counts, tolerated = tally.affected[name], _tolerated(tally.shares, tolerance)
    return np.asarray(excess_log_e(counts[..., 0], counts[..., 1], tolerated).sum(axis=-1) / needed)


def _tolerated(shares: Array, tolerance: float) -> Array:
    """The candidate's share of the affected users that is tolerated, by the share of new users that meet it."""
    return np.asarray(shares * tolerance / (shares * tolerance + 1 - shares))


def _slice_log_e(tally: UserTally) -> Array:
    """Evidence for a loss in each slice, (slices, experiments); in one without users there is none."""
    logs = [book.log_e(0) for name, book in tally.books.items() if name.startswith("slice ")]
    return np.array(logs or [np.zeros(len(tally.sums))])


def _worst_slice(tally: UserTally) -> NDArray[np.int64]:
    return np.asarray(_slice_log_e(tally).argmax(axis=0))


def _seems_worse(tally: UserTally, name: str, tolerance: float, strength: Array) -> NDArray[np.bool_]:
    """Whether the candidate seems to be worse than tolerated, proven or not."""
    if name in RATES:
        return seem_more(name, tally.affected[name], tally.shares, tolerance)
    if name == "slices":
        return np.asarray(strength >= HELD)
    difference = np.nan_to_num(tally.books[name].difference)
    if name in AMOUNTS:
        return np.asarray(difference > math.log(tolerance))
    return np.asarray((difference < -tolerance) & (tally.amounts[name][..., 1].min(axis=-1) >= LEAST_LATER))


def seem_more(name: str, counts: Array, shares: Array, tolerance: float) -> NDArray[np.bool_]:
    """Whether more of the candidate's users seem to be affected than a guardrail on a rate tolerates. All but one
    count, so that a single one stops nothing; of unhappy users, who are few and are harmed, one more counts.

    Args:
        counts: of affected users, (experiments, shares, 2): the candidate's and the champion's.
        shares: of new users that met the candidate.
    """
    users, more = counts.sum(axis=-1), 1 if name == "unhappy" else -1
    tolerated = users @ _tolerated(shares, tolerance)
    return np.asarray((users.sum(axis=-1) > 0) & (counts[..., 0].sum(axis=-1) + more > tolerated))


def _means(tally: UserTally, name: str, worst: NDArray[np.int64]) -> Array:
    """What a guardrail compares, in either arm, (experiments, 2): shares of users, or means; NaN: nothing."""
    if name in RATES:
        return _ratio_of(tally.affected[name].sum(axis=1), tally.users.sum(axis=1))
    slices = [sums for key, sums in tally.amounts.items() if key.startswith("slice ")]
    if name == "slices":
        sums = np.array(slices)[worst, np.arange(len(worst))] if slices else np.zeros((len(worst), 2, 2))
    else:
        sums = tally.amounts[name]
    means = _ratio_of(sums[..., 0], sums[..., 1])
    return np.asarray(np.exp(means)) if name in AMOUNTS else means


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
    votes = np.asarray(shadow, dtype=np.float64)
    worse = negative_mean_log_e(votes) / math.log(1 / design.alpha) if len(votes) else 0.0
    switched = float(excess_log_e(units.switched, units.returned - units.switched, MOST_SWITCHED))
    strengths = evidence.strengths.model_copy(
        update={
            "shadow_worse": worse,
            "switched": max(0.0, switched) / math.log(1 / design.ratio_alpha),
            "checked_units": int((~np.isnan(units.checked)).sum()),
        }
    )
    changes = {
        "measure": evidence.measure.model_copy(update=bounds), "strengths": strengths, "dropped": units.dropped,
        "shadow_copies": max(copies, len(votes)), "shadow_votes": len(votes), "shadow_mean": _mean(votes),
    }  # fmt: skip
    return evidence.model_copy(update=changes)


def tally_of(design: ExperimentDesign, units: Units) -> UserTally:
    """The sums of one experiment's users; those whose windows are over come in the order of their first requests."""
    tally = empty_tally(design, np.unique(units.propensity), slices=len(units.slices))
    users = Arrivals(units.candidate[None], units.propensity[None])
    tally = with_arrivals(tally, users)
    for name in RATES:
        tally = with_affected(tally, name, users, units.affected[name][None])
    for name in AMOUNTS:
        if name in tally.amounts:
            tally = with_amounts(tally, name, users, units.amounts[name][None])
    if "later" in tally.books:
        tally = with_values(tally, "later", users, units.later[None], design.effect)
    values = (units.outcome[None], units.likes[None], units.dislikes[None], units.checked[None])
    slices = np.stack([*units.slices.values(), units.candidate], axis=-1)[None, :, :-1]
    matured = Matured(users.candidate, users.propensity, *values, slices, units.kinds[None], units.weekday[None])
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
    for place, rail in enumerate(design.guardrails):
        strength, (candidate, champion) = float(findings.guardrails[at, place]), findings.affected[at, place]
        rails.append(
            GuardrailFinding(
                name=rail.name,
                tolerance=rail.tolerance,
                candidate=float(candidate),
                champion=float(champion),
                strength=strength,
                tripped=strength >= 1,
                held=bool(findings.held[at, place]),
                where=slices[int(findings.worst[at])] if slices and rail.name == "slices" else "",
            )
        )
    proven = ("better", "worse", "no_gain", "promotion", "more_likes", "fewer_dislikes", "whole_weeks")
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
        rated_ratio_strength=float(findings.rated_ratio[at]),
        live_days=stage.live_days,
        strengths=Strengths(**{name: float(getattr(findings, name)[at]) for name in proven}),
    )


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else math.nan
