"""Simulated experiments: users come, are drawn into the arms, rate or don't, and decisions move the ramp.

Many experiments are simulated at once. Their users are counted by the functions that count those of real ones
(`tally.py`), and the rule that decides those (`decision.endings`) decides what follows. `ab plan` simulates walks, which
take no longer with more traffic; tests compare both.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tuneloop.core.lazy import Array
from tuneloop.core.stats.betting import Book
from tuneloop.improve.experiment.decision import ENDINGS, Proven, endings, next_share, waits
from tuneloop.improve.experiment.record import ExperimentDesign
from tuneloop.improve.experiment.tally import (
    LATER_WINDOWS,
    UNHAPPY_VALUES,
    WEEK,
    Findings,
    Matured,
    UserTally,
    counts_of,
    empty_tally,
    findings_of,
    kinds_of,
    with_arrivals,
    with_matured,
    with_values,
)
from tuneloop.improve.experiment.walk import PlannedTraffic

CELLS = 200_000  # users of all experiments of a chunk that come between two looks, about


@dataclass(frozen=True)
class World(PlannedTraffic):
    """What is true of users and candidate, more than a plan knows.

    Args:
        raters: of the users ever rate, so much more often.
        history: requests of a user in the days before its draw, on average, answered by the champion.
        delay_days: mean of the exponential time until a value comes; the window cuts it off.
        looks_per_day: how often is decided.
        lost: chance that a user of the candidate vanishes from the log.
        engagement: how many times the champion's requests those of the candidate's users are.
        slice_share, slice_effect: share of users who are a slice, with an effect of their own; `effect` stays the mean.
        harmed: share of users to whom the candidate is terrible, so that they like nothing; `effect` stays the mean.
            `harmed_slice`: they are a slice.
        returns: chance that a user comes again when the window is over; the effect is `later_effect` then.
        invalid, invalid_factor: chance that a request's answer is invalid, how many times that for the candidate.
        latency_factor: how many times the champion's latency the candidate's is; 0: no latency is measured.
        checked: chance that a user of the random sample is checked.
        weekly: by how much more the effect is on the first five days of each week, and by 2.5 times as much less on the
            other two. `first_day` of the week, 0 to 6, on which the experiment begins.
    """

    engagement: float = 1.0
    slice_share: float = 0.0
    slice_effect: float = 0.0
    raters: float = 1.0
    history: float = 0.0
    delay_days: float = 0.0
    looks_per_day: float = 1.0
    invalid: float = 0.02
    invalid_factor: float = 1.0
    latency_factor: float = 1.0
    checked: float = 1.0
    lost: float = 0.0
    harmed: float = 0.0
    harmed_slice: bool = False
    returns: float = 0.0
    later_effect: float = 0.0
    weekly: float = 0.0
    first_day: int = 0


@dataclass(frozen=True)
class SimulatedEnd:
    """How a simulated experiment ended: outcome and reason (`open`: not by the last day), day, users by then."""

    outcome: str
    reason: str
    day: float
    candidate_users: int
    users: int


@dataclass(frozen=True)
class Stages:
    """How far experiments have come, arrays; `days` is that of all."""

    days: float
    step_days: Array
    share: Array


Verdicts = list[tuple[str, str, float]]  # outcome, reason, share
Rule = Callable[[ExperimentDesign, UserTally, Findings, Stages], Verdicts]


def verdicts_of(design: ExperimentDesign, tally: UserTally, findings: Findings, stages: Stages) -> Verdicts:
    """What the stop rule says of many experiments at once, and their shares from then on."""
    days = np.full(len(stages.share), stages.days)
    names = ("ratio", "unlikely", "suspected", "worse", "promotion", "no_gain", "whole_weeks", "estimate")
    proven = Proven(
        days=days, live_days=days, tripped=(findings.guardrails >= 1).any(axis=-1), held=findings.held.any(axis=-1),
        **{name: getattr(findings, name) for name in names},
    )  # fmt: skip
    waiting, units = waits(proven), tally.rated.sum(axis=1).min(axis=-1)
    verdicts: Verdicts = []
    for at, ending in enumerate(endings(design, proven)):
        outcome, reason = ENDINGS[ending]
        share = float(stages.share[at])
        if outcome == "continue" and not waiting[at]:
            share = next_share(design, share, float(stages.step_days[at]), float(units[at]))
        verdicts.append((outcome, reason, share if outcome == "continue" else 1.0 if outcome == "promote" else 0.0))
    return verdicts


def simulate(
    design: ExperimentDesign, world: World, *, experiments: int, seed: int, rule: Rule = verdicts_of
) -> list[SimulatedEnd]:
    """How simulated experiments end, until `most_days` of the design.

    Args:
        design: without shadow mode.
        rule: what follows at each look.
    """
    per_look = world.users_per_day / world.looks_per_day
    size = max(1, min(experiments, int(CELLS / max(1.0, per_look))))
    ends: list[SimulatedEnd] = []
    for number, first in enumerate(range(0, experiments, size)):
        rng = np.random.default_rng([seed, number])
        ends += _chunk(design, world, min(size, experiments - first), rng, rule)
    return ends


@dataclass(frozen=True)
class NewUsers:
    """Users who came between two looks, with all that will be known of them: `guarded` by guardrails."""

    matured: Matured
    guarded: Mapping[str, Array]
    votes: NDArray[np.int64]


def _chunk(
    design: ExperimentDesign, world: World, experiments: int, rng: np.random.Generator, rule: Rule
) -> list[SimulatedEnd]:
    steps = np.array([step for step in design.ramp if step < 1])
    tally = empty_tally(design, steps, experiments, slices=2 if world.harmed_slice or world.slice_share else 0)
    ends: list[SimulatedEnd | None] = [None] * experiments
    rows = np.arange(experiments)  # experiments that continue
    share, since = np.full(experiments, steps[0]), np.zeros(experiments)
    left = np.full(experiments, float(world.population or math.inf))
    again = np.zeros((experiments, len(steps)))  # the champion's users whose windows are over, by the step they met
    window = math.ceil(design.maturation_hours / 24 * world.looks_per_day)
    last = window * LATER_WINDOWS if world.returns else window
    known = {
        "dislikes": math.ceil(world.looks_per_day),
        "unhappy": window,
        "later": last if world.returns else last + 1,
    }  # else at once
    waiting: deque[NewUsers] = deque(maxlen=last + 1)
    for look in range(1, math.ceil(design.most_days * world.looks_per_day) + 1):
        now = look / world.looks_per_day
        came, back = _visitors(world, left, again * (steps < share[:, None]), rng)
        left, again, came = left - came, again - back, came + back.sum(axis=1)
        users = draw_users(world, design, share, came, rng, (look - 1) / world.looks_per_day)
        waiting.append(users)
        tally = with_arrivals(tally, users.matured)
        for name in users.guarded:
            if name in tally.amounts and len(waiting) > known.get(name, 0):
                seen = waiting[-1 - known.get(name, 0)]
                tally = with_values(tally, design, name, seen.matured, seen.guarded[name], seen.votes)
        if len(waiting) > window:
            ripe = waiting[-1 - window].matured
            tally = with_matured(tally, design, ripe)
            again += counts_of(tally, ripe, ~ripe.candidate)[..., 1]
        verdicts = rule(design, tally, findings_of(design, tally), Stages(now, now - since, share))
        met = tally.users.sum(axis=1)
        for at, (outcome, reason, _) in enumerate(verdicts):
            if outcome != "continue":
                ends[rows[at]] = SimulatedEnd(outcome, reason, now, int(met[at, 0]), int(met[at].sum()))
        later = np.array([new for _, _, new in verdicts])
        since = np.where(later != share, now, since)
        open_rows = np.array([outcome == "continue" for outcome, _, _ in verdicts])
        if not open_rows.any():
            break
        if not open_rows.all():
            tally, rows, left, since = rows_of(tally, open_rows), rows[open_rows], left[open_rows], since[open_rows]
            again = again[open_rows]
            waiting = deque((_some(users, open_rows) for users in waiting), maxlen=last + 1)
            later = later[open_rows]
        share = later
    return [end for end in ends if end is not None]


def _visitors(
    world: World, left: Array, again: Array, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Who is drawn: users who come for the first time, (experiments,), and the champion's who come again after a step
    of the ramp, (experiments, steps)."""
    visits = rng.poisson(world.users_per_day / world.looks_per_day, len(left))
    if not world.population:
        return visits, np.zeros(again.shape, dtype=np.int64)
    chance = 1 - (1 - 1 / world.population) ** visits
    return rng.binomial(left.astype(np.int64), chance), rng.binomial(again.astype(np.int64), chance[:, None])


def draw_users(
    world: World,
    design: ExperimentDesign,
    share: Array,
    came: NDArray[np.int64],
    rng: np.random.Generator,
    now: float = 0.0,
) -> NewUsers:
    """Users who come between two looks. `now`: days since the start at the first of the two."""
    shape = (len(came), max(1, int(came.max())))
    there = np.arange(shape[1]) < came[:, None]
    candidate = rng.random(shape) < share[:, None]
    if world.lost:
        there &= ~candidate | (rng.random(shape) >= world.lost)
    mean = np.where(candidate, world.requests * world.engagement, world.requests)
    requests = 1 + rng.poisson(mean - 1)
    harmed = rng.random(shape) < world.harmed if world.harmed else np.zeros(shape, dtype=bool)
    inside = rng.random(shape) < world.slice_share if world.slice_share else harmed
    slices = np.stack([inside, ~inside], axis=-1)
    effect = (world.effect + world.harmed * world.base) / (1 - world.harmed)  # on all others
    weekday = _weekdays(world, shape, now, rng)
    effects = effect + np.where(weekday < 5, world.weekly, -2.5 * world.weekly)
    if world.slice_share:
        others = (effect - world.slice_share * world.slice_effect) / (1 - world.slice_share)
        effects += np.where(inside, world.slice_effect, others) - effect
    habit = (rng.random(shape) < world.raters) / world.raters if world.raters < 1 else np.ones(shape)
    kinds = None
    if world.history:
        usual = _qualities(np.full(shape, world.base), world.correlation, rng)
        kinds = _history(world, usual, np.minimum(habit * world.rated, 1.0), rng)
        up, down = max(effect, 0.0) / (1 - world.base), max(-effect, 0.0) / world.base  # the mean differs by `effect`
        changed = np.clip(usual + up * (1 - usual) - down * usual, 0.0, 1.0)
        good_rate = np.where(candidate, np.where(harmed, 0.0, changed), usual)
    else:
        good_rate = np.where(candidate & harmed, 0.0, np.clip(world.base + effects * candidate, 0.0, 1.0))
        good_rate = _qualities(good_rate, world.correlation, rng)
    good = rng.binomial(requests, good_rate)
    in_time = 1 - math.exp(-design.maturation_hours / 24 / world.delay_days) if world.delay_days else 1.0
    rates = world.rated * np.array(world.rated_factors)
    chances = [np.minimum(habit * rate, 1.0) * in_time for rate in rates]
    likes = rng.binomial(good, np.where(candidate, chances[0], chances[2]))
    dislikes = rng.binomial(requests - good, np.where(candidate, chances[1], chances[3]))
    valued = likes + dislikes
    outcome = np.where(there & (valued > 0), likes / np.maximum(valued, 1), np.nan)
    checked = None
    if design.sample:
        drawn = there & (rng.random(shape) < design.sample * world.checked)
        checked = np.where(drawn, good / requests, np.nan)
    matured = Matured(
        candidate,
        np.where(there, share[:, None], np.nan),
        outcome,
        np.where(there, likes / requests, np.nan),
        np.where(there, dislikes / requests, np.nan),
        checked,
        slices=slices if world.harmed_slice or world.slice_share else None,
        kinds=kinds,
        weekday=weekday,
    )
    invalid = rng.binomial(requests, world.invalid * np.where(candidate, world.invalid_factor, 1.0)) / requests
    guarded = {"invalid": np.where(there, invalid, np.nan), "later": _later(world, there, candidate, rng)}
    if world.latency_factor:
        latency = rng.normal(0.0, 0.6, shape) + np.log(world.latency_factor) * candidate
        guarded["latency"] = np.where(there, latency, np.nan)
    soon = 1 - math.exp(-1 / world.delay_days) if world.delay_days else 1.0
    early = [rng.binomial(votes, soon / in_time) if world.delay_days else votes for votes in (likes, dislikes)]
    valued_early = early[0] + early[1]
    guarded["dislikes"] = np.where(there & (valued_early > 0), early[0] / np.maximum(valued_early, 1), np.nan)
    guarded["unhappy"] = np.where(there & (valued >= UNHAPPY_VALUES), likes > 0, np.nan)
    return NewUsers(matured, guarded, valued)


def _weekdays(world: World, shape: tuple[int, int], now: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """The day of the week, 0 to 6, on which each user comes."""
    within = rng.random(shape) / world.looks_per_day if world.looks_per_day < 1 else np.zeros(shape)
    return np.asarray(np.floor(world.first_day + now + within + 1e-9).astype(np.int64) % WEEK)


def _later(world: World, there: NDArray[np.bool_], candidate: NDArray[np.bool_], rng: np.random.Generator) -> Array:
    """Values of those who come again after their window."""
    if not world.returns:
        return np.full(there.shape, np.nan)
    back = there & (rng.random(there.shape) < world.returns * world.rated)
    return np.where(back, rng.random(there.shape) < world.base + world.later_effect * candidate, np.nan)


def _qualities(mean: Array, correlation: float, rng: np.random.Generator) -> Array:
    """The chance of each user that an answer is good."""
    if not correlation:
        return mean
    scale = (1 - correlation) / correlation
    return rng.beta(np.maximum(mean * scale, 1e-9), np.maximum((1 - mean) * scale, 1e-9))


def _history(world: World, quality: Array, rated: Array, rng: np.random.Generator) -> NDArray[np.int64]:
    """The kinds of users by what they did before their draw."""
    requests = rng.poisson(world.history, quality.shape)
    good = rng.binomial(requests, quality)
    likes, dislikes = rng.binomial(good, rated), rng.binomial(requests - good, rated)
    return kinds_of(requests.astype(np.float64), likes.astype(np.float64), dislikes.astype(np.float64))


def _some(users: NewUsers, rows: NDArray[np.bool_]) -> NewUsers:
    some = {name: array[rows] for name, array in vars(users.matured).items() if array is not None}
    return NewUsers(
        replace(users.matured, **some), {name: array[rows] for name, array in users.guarded.items()}, users.votes[rows]
    )


def share_of(ends: Sequence[SimulatedEnd], outcome: str, reason: str = "") -> float:
    """The share of experiments with an outcome, and where one is given with a reason."""
    return sum(end.outcome == outcome and reason in ("", end.reason) for end in ends) / len(ends)


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
        weekdays=tally.weekdays[rows],
        rates={
            name: replace(book, **{n: a[rows] for n, a in vars(book).items()}) for name, book in tally.rates.items()
        },
        checks=tally.checks[rows],
        amounts={name: sums[rows] for name, sums in tally.amounts.items()},
        books={name: some(book) for name, book in tally.books.items()},
    )
