"""How often experiments decide wrongly, and how soon rightly, by the functions that decide real ones and by others.

    python benchmarks/experiments.py simulate --base .95 --ramp 10,25,50 --effect 0 --users-per-day 80 --rated .75 \
        --days 80 --replications 300 --seed 7741 [--json]         one world; `simulate --help` lists what may be true
    python benchmarks/experiments.py table [--replications 2000]   effects, by ours and by other rules
    python benchmarks/experiments.py worlds [--replications 2000]  no effect, or a loss, in many worlds
    python benchmarks/experiments.py people [--replications 400]   worlds that people have: votes that lean, more engaged
                                                                   users, weekends, slices; what must hold in each
    python benchmarks/experiments.py grid [--replications 2000]    no effect, for base rates, shares, traffic and looks
    python benchmarks/experiments.py plan [--replications 300]     `ab plan` compared with simulations of 40 cases

`--first` and `--last` select lines of the last four.

`simulated_experiments.py` lets users come, rate and mature; at each look the evidence of each experiment is
made by `evidence_at`, and `outcome_of` decides and moves the ramp. Other rules see users of the same kind, drawn into equal
halves from the first day on, without guardrails:

- z-test, peeked: the usual test of two shares at every look, ended by the first significant difference;
- fixed horizon: that test once, at the number of users that gives a power of 80 % for the registered effect;
- O'Brien-Fleming, Pocock: group-sequential designs with ten looks and the same power; their constants are quantiles of
  simulated Brownian paths;
- mSPRT: the mixture sequential probability ratio test of Johari et al. 2022, with the registered effect as the
  standard deviation of the mixture;
- track-and-stop (Garivier & Kaufmann 2016): shares that it thinks best, stopped by Chernoff's statistic with the
  threshold log((log t + 1) / delta).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice, product

import numpy as np
from simulated_experiments import SimulatedEnd, Stages, Verdicts, World, draw_users, simulate, verdicts_of

from tuneloop.core.errors import UserError
from tuneloop.core.stats.tests import wilson_interval
from tuneloop.improve.experiment.decision import outcome_of
from tuneloop.improve.experiment.record import ExperimentDesign
from tuneloop.improve.experiment.tally import Findings, Stage, UserTally, evidence_at

Z, POWER, LOOKS = 1.959963984540054, 0.8, 10
CHECKED = 20


def decided(design: ExperimentDesign, tally: UserTally, findings: Findings, stages: Stages) -> Verdicts:
    """What the functions that decide real experiments say of each of many.

    Where the stop rule on arrays lets an experiment continue as it is, they are believed but in one of `CHECKED` cases;
    both must agree wherever both are used.
    """
    verdicts = verdicts_of(design, tally, findings, stages)
    for at, quick in enumerate(verdicts):
        share = float(stages.share[at])
        if quick[0] == "continue" and quick[2] == share and at % CHECKED:
            continue
        stage = Stage(stages.days, float(stages.step_days[at]), share, stages.days)
        outcome, reason, later, _ = outcome_of(design, evidence_at(design, tally, findings, at, stage))
        if (outcome, later) != (quick[0], quick[2]):
            raise RuntimeError(
                f"{outcome} at {later:g} ({reason}), but on arrays {quick[0]} at {quick[2]:g} ({quick[1]})"
            )
        verdicts[at] = (outcome, reason, later)
    return verdicts


def registered(options: argparse.Namespace) -> ExperimentDesign:
    """The registration that options of `simulate` make, as `ab start` would."""
    from tuneloop.improve.experiment.record import ExperimentOptions
    from tuneloop.improve.experiment.state import design_of

    base = options.base if options.registered_base is None else options.registered_base
    settings = ExperimentOptions(
        model="m", ramp=options.ramp, effect=options.registered_effect, base=0.5, alpha=options.alpha,
        hold_days=options.hold_days, maturation_hours=options.maturation_hours, most_days=options.days,
        missing=options.missing, sample=options.sample, shadow=False, guardrails=options.guardrails,
        least_days=options.least_days, earlier_days=options.earlier_days if options.history else 0.0,
    )  # fmt: skip
    return design_of("simulated", settings, "salt").model_copy(update={"base": base})  # without room for a gain, too


def world_of(options: argparse.Namespace) -> World:
    """What is true, by options of `simulate`."""
    names = {field.name for field in fields(World)} - {"rated_factors"}
    factors = ("candidate_likes", "candidate_dislikes", "champion_likes", "champion_dislikes")
    values = {name: getattr(options, name) for name in names}
    return World(**values, rated_factors=tuple(getattr(options, f"rated_{name}") for name in factors))


@dataclass(frozen=True)
class Summary:
    """How simulated experiments ended: shares, the median of the days, users who met the candidate."""

    promoted: float
    rolled_back: float
    rolled_back_as_worse: float
    undecided: float
    futility: float
    median_day: float
    median_day_promoted: float | None
    candidate_users: float
    candidate_users_9_of_10: float


def summary_of(ends: Sequence[SimulatedEnd]) -> Summary:
    """`undecided` is all that was neither promoted nor rolled back; `futility` is the part whose gain was excluded."""

    def share(outcome: str, *reasons: str) -> float:
        return sum(end.outcome == outcome and (not reasons or end.reason in reasons) for end in ends) / len(ends)

    promoted, rolled_back = share("promote"), share("roll back")
    days = [end.day for end in ends if end.outcome == "promote"]
    met = [end.candidate_users for end in ends]
    return Summary(
        promoted=promoted, rolled_back=rolled_back, rolled_back_as_worse=share("roll back", "worse"),
        undecided=round(1 - promoted - rolled_back, 9), futility=share("futility", "no gain"),
        median_day=float(np.median([end.day for end in ends])),
        median_day_promoted=float(np.median(days)) if days else None,
        candidate_users=float(np.median(met)), candidate_users_9_of_10=float(np.quantile(met, 0.9)),
    )  # fmt: skip


def error_of(share: float, number: int) -> float:
    """The standard error of a simulated share."""
    return math.sqrt(max(share * (1 - share), 1 / number) / number)


def simulated(options: argparse.Namespace) -> tuple[Summary, dict[str, float]]:
    """One world; the summary and the standard errors of its shares."""
    ends = simulate(
        registered(options), world_of(options), experiments=options.replications, seed=options.seed, rule=decided
    )
    summary = summary_of(ends)
    names = ("promoted", "rolled_back", "rolled_back_as_worse", "undecided", "futility")
    return summary, {name: round(error_of(getattr(summary, name), len(ends)), 5) for name in names}


def print_world(options: argparse.Namespace) -> None:
    begun = time.monotonic()
    summary, errors = simulated(options)
    values = {**vars(summary), "standard_errors": errors, "replications": options.replications, "seed": options.seed}
    values["candidate_liked"] = min(1.0, max(0.0, options.base + options.effect))
    values["seconds"] = round(time.monotonic() - begun, 2)
    if options.json:
        print(json.dumps(values))
        return
    for name, value in values.items():
        print(f"{name:25} {value}")


# --- other rules


@dataclass(frozen=True)
class Halves:
    """Users in equal halves from the first day on, as each day's look sees them; arrays (experiments, days, 2).

    Args:
        n, total: users with a value in either arm, the candidate's first, and the sums of their values.
        met: users who have met the candidate, (experiments, days).
    """

    n: np.ndarray
    total: np.ndarray
    met: np.ndarray


def halves_of(design: ExperimentDesign, world: World, experiments: int, seed: int) -> Halves:
    """Users of a world for the other rules."""
    rng = np.random.default_rng([seed, 50])
    days, late = int(design.most_days), math.ceil(design.maturation_hours / 24)
    n, total = np.zeros((2, experiments, days, 2))
    met = np.zeros((experiments, days))
    for day in range(days):
        came = rng.poisson(world.users_per_day, experiments)
        users = draw_users(world, design, np.full(experiments, 0.5), came, rng).matured
        met[:, day] = (users.candidate & ~np.isnan(users.propensity)).sum(axis=1)
        if day + late < days:
            for arm, inside in enumerate((users.candidate, ~users.candidate)):
                valued = inside & ~np.isnan(users.outcome)
                n[:, day + late, arm] = valued.sum(axis=1)
                total[:, day + late, arm] = np.where(valued, users.outcome, 0.0).sum(axis=1)
    return Halves(n.cumsum(axis=1), total.cumsum(axis=1), met.cumsum(axis=1))


def z_scores(halves: Halves) -> np.ndarray:
    """The usual statistic of two shares at each look."""
    n = np.maximum(halves.n, 1)
    pooled = halves.total.sum(axis=-1) / n.sum(axis=-1)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n).sum(axis=-1))
    rates = halves.total / n
    difference = rates[..., 0] - rates[..., 1]
    return np.divide(difference, error, out=np.zeros_like(error), where=(error > 0) & (halves.n.min(axis=-1) >= 10))


def ended_at(halves: Halves, up: np.ndarray, down: np.ndarray, last: np.ndarray | None = None) -> list[SimulatedEnd]:
    """What becomes of each experiment: promoted or rolled back at the first look that says so, or over.

    Args:
        up, down: whether a look says so, (experiments, days).
        last: the day at which each is over at the latest; None: the last one.
    """
    days = up.shape[1]
    ends = []
    for at, (better, worse) in enumerate(zip(up, down, strict=True)):
        over = days - 1 if last is None else min(int(last[at]), days - 1)
        hits = np.flatnonzero((better | worse)[: over + 1])
        day = int(hits[0]) if len(hits) else over
        outcome = "futility" if not len(hits) else "promote" if better[day] else "roll back"
        reason = "worse" if outcome == "roll back" else "time"
        ends.append(SimulatedEnd(outcome, reason, day + 1, int(halves.met[at, day]), 0))
    return ends


def peeked(design: ExperimentDesign, halves: Halves) -> list[SimulatedEnd]:
    z = z_scores(halves)
    return ended_at(halves, z > Z, z < -Z)


def mixture_ratio(design: ExperimentDesign, halves: Halves) -> list[SimulatedEnd]:
    """mSPRT: sqrt(V / (V + n t^2)) exp(n^2 t^2 d^2 / (2 V (V + n t^2))) >= 1 / alpha, n pairs with a variance V."""
    n = halves.n.min(axis=-1)
    rates = halves.total / np.maximum(halves.n, 1)
    variance = np.maximum((rates * (1 - rates)).sum(axis=-1), 1e-9)
    difference, mixed = rates[..., 0] - rates[..., 1], variance + n * design.effect**2
    log_ratio = 0.5 * np.log(variance / mixed) + (n * design.effect * difference) ** 2 / (2 * variance * mixed)
    over = (log_ratio >= math.log(1 / design.alpha)) & (n >= 10)
    return ended_at(halves, over & (difference > 0), over & (difference < 0))


def boundaries(looks: int, shape: str, alpha: float) -> tuple[np.ndarray, float]:
    """Critical values of |z| at equally spaced looks, and the drift (mean of the last z) that has the power `POWER`."""
    steps = np.random.default_rng(0).standard_normal((200_000, looks)).cumsum(axis=1)
    at = np.arange(1, looks + 1)
    z, scale = steps / np.sqrt(at), np.sqrt(looks / at) if shape == "O'Brien-Fleming" else np.ones(looks)
    critical = np.quantile((np.abs(z) / scale).max(axis=1), 1 - alpha) * scale
    low, high = 1.0, 6.0
    for _ in range(30):
        drift = (low + high) / 2
        found = ((z + drift * np.sqrt(at / looks)) > critical).any(axis=1).mean()
        low, high = (low, drift) if found > POWER else (drift, high)
    return critical, drift


def sequential(looks: int, shape: str) -> Callable[[ExperimentDesign, Halves], list[SimulatedEnd]]:
    """A group-sequential design; with one look, a fixed horizon."""

    def rule(design: ExperimentDesign, halves: Halves) -> list[SimulatedEnd]:
        critical, drift = boundaries(looks, shape, design.alpha)
        users = (2 * drift / design.effect) ** 2 * design.base * (1 - design.base)
        z, number = z_scores(halves), halves.n.sum(axis=-1)
        passed = np.minimum(np.floor(number / users * looks).astype(int), looks)  # looks whose number is reached
        new = np.diff(passed, axis=1, prepend=0) > 0
        value = critical[np.maximum(passed, 1) - 1]
        last = np.where((passed >= looks).any(axis=1), (passed >= looks).argmax(axis=1), passed.shape[1] - 1)
        return ended_at(halves, new & (z > value), new & (z < -value), last)

    return rule


RULES: dict[str, Callable[[ExperimentDesign, Halves], list[SimulatedEnd]]] = {
    "z-test, peeked": peeked,
    "fixed horizon": sequential(1, "fixed"),
    "O'Brien-Fleming": sequential(LOOKS, "O'Brien-Fleming"),
    "Pocock": sequential(LOOKS, "Pocock"),
    "mSPRT": mixture_ratio,
}


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of two Bernoulli distributions."""
    p, q = np.clip(p, 1e-9, 1 - 1e-9), np.clip(q, 1e-9, 1 - 1e-9)
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def best_share(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The share of the first arm with which two Bernoulli arms are told apart soonest.

    It maximises w d(a, m) + (1 - w) d(b, m) with m = w a + (1 - w) b; there d(a, m) = d(b, m), which bisection finds.
    """
    low, high = np.zeros(len(a)), np.ones(len(a))
    for _ in range(30):
        w = (low + high) / 2
        m = w * a + (1 - w) * b
        more = divergence(a, m) > divergence(b, m)
        low, high = np.where(more, w, low), np.where(more, high, w)
    return np.where(np.abs(a - b) < 1e-6, 0.5, (low + high) / 2)


def track_and_stop(design: ExperimentDesign, world: World, experiments: int, seed: int) -> list[SimulatedEnd]:
    """Track-and-stop with two arms in many experiments at once: D-tracking with forced exploration, once a day."""
    rng = np.random.default_rng([seed, 60])
    late = math.ceil(design.maturation_hours / 24)
    drawn, seen = np.zeros((experiments, 2)), np.zeros((experiments, 2, 2))  # users; matured ones with a value, liked
    rates = np.array([world.base + world.effect, world.base])
    pending: list[np.ndarray] = []
    ends: list[SimulatedEnd | None] = [None] * experiments
    for day in range(1, int(design.most_days) + 1):
        means = np.where(seen[:, :, 0] > 0, seen[:, :, 1] / np.maximum(seen[:, :, 0], 1), 0.5)
        total = drawn.sum(axis=1, keepdims=True)
        lacking = (drawn < np.sqrt(total) - 1) | (total == 0)
        share = np.where(lacking.all(axis=1), 0.5, np.where(lacking.any(axis=1), lacking[:, 0], best_share(*means.T)))
        came = rng.poisson(world.users_per_day, experiments)
        inside = rng.binomial(came, share)
        counts = np.stack([inside, came - inside], axis=1)
        rated = rng.binomial(counts, world.rated)
        pending.append(np.stack([rated, rng.binomial(rated, rates)], axis=2))
        drawn += counts
        if day > late:
            seen += pending.pop(0)
        number = np.maximum(seen[:, :, 0], 1)
        a, b = (seen[:, :, 1] / number).T
        pooled = seen[:, :, 1].sum(axis=1) / number.sum(axis=1)
        evidence = number[:, 0] * divergence(a, pooled) + number[:, 1] * divergence(b, pooled)
        threshold = np.log((np.log(number.sum(axis=1)) + 1) / design.alpha)
        for at in np.flatnonzero((evidence > threshold) & (seen[:, :, 0].min(axis=1) >= 1)):
            outcome = "promote" if a[at] > b[at] else "roll back"
            ends[at] = ends[at] or SimulatedEnd(outcome, "worse", day, int(drawn[at, 0]), 0)
    over = int(design.most_days)
    return [end or SimulatedEnd("futility", "time", over, int(drawn[at, 0]), 0) for at, end in enumerate(ends)]


# --- tables


def print_table(options: argparse.Namespace) -> None:
    """Effects, by ours and by other rules."""
    design, world = registered(options), world_of(options)
    head = ["true effect", "rule", "promoted", "rolled back", "median day", "met the candidate: median (9 of 10)"]
    print(f"{options.replications:,} experiments a line; standard errors of shares are at most "
          f"{50 / math.sqrt(options.replications):.1f} points, of 5 % {100 * error_of(0.05, options.replications):.1f}\n")  # fmt: skip
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for effect in (0.0, 0.025, 0.05, 0.1, -0.05, -0.1, -0.2):
        here = replace(world, effect=effect)
        n, seed = options.replications, options.seed
        for missing, sample in (("any", 0.4), ("any", 0.2), ("one-way", 0.0), ("random", 0.0)):
            ours = design.model_copy(update={"missing": missing, "sample": sample})
            ends = simulate(ours, here, experiments=n, seed=seed, rule=decided)
            print_line(f"{effect:+.3g}", f"tuneloop, missing {missing}, sample {sample:g}", ends)
        halves = halves_of(design, here, n, seed)
        for name, rule in RULES.items():
            print_line(f"{effect:+.3g}", name, rule(design, halves))
        print_line(f"{effect:+.3g}", "track-and-stop", track_and_stop(design, here, n, seed))


def print_line(world: str, rule: str, ends: Sequence[SimulatedEnd]) -> None:
    s = summary_of(ends)
    met = f"{s.candidate_users:,.0f} ({s.candidate_users_9_of_10:,.0f})"
    cells = [world, rule, f"{s.promoted:.1%}", f"{s.rolled_back:.1%}", f"{s.median_day:.0f}", met]
    print(f"| {' | '.join(cells)} |", flush=True)


def skewed_worlds() -> Iterator[tuple[str, dict[str, object]]]:
    """Worlds without a gain, as changes of the options of `simulate`; those that once went wrong come first."""
    yield "95 % liked", {"base": 0.95}
    yield "95 % liked, ramp 2,5,10", {"base": 0.95, "ramp": "2,5,10"}
    for factor in (0.85, 0.7, 0.5):
        yield f"the candidate's dislikes rated {factor:g} times as often", {"rated_candidate_dislikes": factor}
    yield "5 points worse, its dislikes rated .6 times as often", {"effect": -0.05, "rated_candidate_dislikes": 0.6}
    yield "5 % liked", {"base": 0.05}
    yield "90 % liked", {"base": 0.9}
    yield "95 % liked, registered as .6", {"base": 0.95, "registered_base": 0.6}
    for base in (0.02, 0.3, 0.6, 0.98):
        yield f"{100 * base:g} % liked", {"base": base}
    yield "5 % liked, ramp 2,5,10", {"base": 0.05, "ramp": "2,5,10"}
    yield "95 % liked, half of the users", {"base": 0.95, "ramp": "50"}
    yield "95 % liked, 5 users a day", {"base": 0.95, "users_per_day": 5}
    yield "95 % liked, 5,000 users a day", {"base": 0.95, "users_per_day": 5000}
    for requests in (3, 20):
        more = {"requests": requests, "correlation": 0.3, "rated": 0.3}
        yield f"{requests} requests a user, correlated, 30 % rated", more
    yield "votes after 2 days on average", {"delay_days": 2.0}
    yield "300 users who return", {"population": 300}
    yield "95 % liked, hourly looks for 20 days", {"base": 0.95, "looks_per_day": 24, "days": 20}
    yield "95 % liked, weekly looks", {"base": 0.95, "looks_per_day": 1 / 7, "days": 119}
    yield "the candidate's likes rated 1.2 times as often", {"rated_candidate_likes": 1.2}
    halves = {"rated_candidate_dislikes": 0.5, "rated_champion_dislikes": 0.5}
    yield "dislikes rated half as often in both arms", halves
    both = {"rated_candidate_dislikes": 0.7, "rated_candidate_likes": 1.2}
    yield "likes rated 1.2, dislikes .7 times as often, missing: any", {**both, "missing": "any"}
    yield "the same, a random sample of 20 % checked", {**both, "sample": 0.2}


def grid_worlds() -> Iterator[tuple[str, dict[str, object]]]:
    """No effect: base rates by shares, traffic, requests a user, and looks."""
    bases, ramps = (0.02, 0.1, 0.5, 0.9, 0.98), ("2", "10,25,50", "50")
    for users, base, ramp in product((80, 5, 5000), bases, ramps):
        world = {"base": base, "ramp": ramp, "users_per_day": users}
        yield f"{100 * base:g} % liked, ramp {ramp}, {users:,} users a day", world
    for base, ramp in product(bases, ramps):
        more = {"requests": 20, "correlation": 0.3, "rated": 0.3}
        yield f"{100 * base:g} % liked, ramp {ramp}, 20 requests a user", {"base": base, "ramp": ramp, **more}
    for base, ramp in product(bases, ramps):
        more = {"looks_per_day": 24, "days": 30}
        yield f"{100 * base:g} % liked, ramp {ramp}, hourly looks", {"base": base, "ramp": ramp, **more}


Wanted = tuple[str, str, float]  # a share of `Summary`, "<=" or ">=", and its limit


def worlds_of_people() -> Iterator[tuple[str, dict[str, object], Wanted]]:
    """Worlds in which votes, users or weeks are not alike, as changes of the options of `simulate`, and what must hold.
    200 users a day, 75 % of requests are rated, 120 days."""
    least, most = ("promoted", ">=", 0.8), ("promoted", "<=", 0.05)
    leaning = ((1.1, 0.9, 0.0), (1.2, 0.7, 0.0), (1.3, 0.6, -0.05))
    for sample in (0.4, 0.0):
        for likes, dislikes, effect in leaning:
            rated = {"rated_candidate_likes": likes, "rated_candidate_dislikes": dislikes, "effect": effect}
            yield (
                f"likes rated {likes:g}, dislikes {dislikes:g} times, {effect:+g}, sample {sample:g}",
                {**rated, "sample": sample},
                most,
            )
    random = {"missing": "random", "sample": 0.0, "rated_candidate_dislikes": 0.85}
    yield "dislikes rated .85 times, registered as random", random, ("promoted", "<=", 0.2)
    for times in (0.8, 1.0, 1.3):
        rated = {"rated_candidate_likes": times, "rated_candidate_dislikes": times, "effect": 0.05, "sample": 0.2}
        yield f"+5 points, all rated {times:g} times, sample .2", rated, least
    yield "+5 points, the default", {"effect": 0.05}, least
    yield "+5 points, all rated, no sample", {"effect": 0.05, "rated": 1.0, "sample": 0.0}, least
    yield "6 requests a user instead of 3, +5 points", {"requests": 3.0, "engagement": 2.0, "effect": 0.05}, least
    yield "4.5 instead of 3, no difference", {"requests": 3.0, "engagement": 1.5}, ("rolled_back", "<=", 0.05)
    yield "4.5 instead of 3, +10 points", {"requests": 3.0, "engagement": 1.5, "effect": 0.1}, ("promoted", ">=", 0.9)
    sliced = {"slice_share": 0.1, "slice_effect": -0.2, "effect": 0.05}
    yield "a slice of 10 % loses 20 points, mean +5", sliced, ("promoted", "<=", 0.2)
    for first_day in (0, 3):
        weekends = {"weekly": 0.08, "users_per_day": 2000.0, "first_day": first_day}
        yield f"good on weekdays, bad at weekends, from day {first_day} of the week", weekends, most
    yield "-10 points", {"effect": -0.1}, ("rolled_back", ">=", 0.8)
    yield "-20 points", {"effect": -0.2}, ("rolled_back", ">=", 0.8)


def print_people(options: argparse.Namespace) -> None:
    """What becomes of experiments in those worlds, with Wilson intervals, and of other rules on users of the same kind."""
    head = ["world", "must", "promoted", "rolled back", "median day", "met the candidate", "mSPRT", "O'Brien-Fleming"]
    print(f"{options.replications:,} experiments a line; of other rules the share that they promote\n")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    usual = {"users_per_day": 200.0, "days": 120.0, "sample": 0.4}
    for name, changes, (share, sign, limit) in islice(worlds_of_people(), options.first, options.last):
        world = argparse.Namespace(**{**vars(options), **usual, **changes})
        summary, _ = simulated(world)
        value, n = getattr(summary, share), options.replications
        holds = value <= limit if sign == "<=" else value >= limit
        cells = [name, f"{share.replace('_', ' ')} {sign} {limit:.0%}: {'yes' if holds else 'NO'}"]
        for of_all in (summary.promoted, summary.rolled_back):
            low, high = wilson_interval(of_all * n, n)
            cells.append(f"{of_all:.1%} [{low:.1%}, {high:.1%}]")
        cells += [
            f"{summary.median_day:.0f}",
            f"{summary.candidate_users:,.0f} ({summary.candidate_users_9_of_10:,.0f})",
        ]
        halves = halves_of(registered(world), world_of(world), n, options.seed)
        for rule in ("mSPRT", "O'Brien-Fleming"):
            ends = RULES[rule](registered(world), halves)
            cells.append(f"{sum(end.outcome == 'promote' for end in ends) / n:.1%}")
        print(f"| {' | '.join(cells)} |", flush=True)


def print_worlds(options: argparse.Namespace) -> None:
    print_lines(options, skewed_worlds())


def print_grid(options: argparse.Namespace) -> None:
    print_lines(options, grid_worlds())


def print_lines(options: argparse.Namespace, worlds: Iterable[tuple[str, dict[str, object]]]) -> None:
    """False promotions and false roll-backs in many worlds."""
    head = ["world", "promoted", "rolled back", "as worse", "median day"]
    print(f"{options.replications:,} experiments a line\n")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for name, changes in islice(worlds, options.first, options.last):
        summary, errors = simulated(argparse.Namespace(**{**vars(options), **changes}))
        shares = [f"{getattr(summary, key):.2%} ± {errors[key]:.2%}" for key in ("promoted", "rolled_back")]
        cells = [name, *shares, f"{summary.rolled_back_as_worse:.2%}", f"{summary.median_day:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def planned_cases() -> Iterator[dict[str, object]]:
    """Forty cases, as options of `ab plan`."""
    for users, rated in ((80, 0.75), (300, 0.2)):
        for base in (0.3, 0.6, 0.85):
            for effect in (0.05, 0.1):
                for ramp in ("10,25,50", "5,10"):
                    yield {"requests_per_day": users, "rated": rated, "base": base, "effect": effect, "ramp": ramp}
    for requests in (3, 6):
        for correlation in (0.0, 0.4):
            for effect in (0.05, 0.1):
                more = {"requests_per_day": 80 * requests, "requests_per_user": requests, "correlation": correlation}
                yield {**more, "rated": 0.3, "effect": effect}
    for hold_days, maturation_hours in ((1.0, 24.0), (7.0, 168.0)):
        more = {"requests_per_day": 80, "rated": 0.75, "effect": 0.1}
        yield {**more, "hold_days": hold_days, "maturation_hours": maturation_hours}
    for users in (4000, 8000):
        yield {"requests_per_day": 300, "rated": 0.5, "effect": 0.1, "users": users}
    for missing in ("random", "any"):
        yield {"requests_per_day": 200, "rated": 0.9, "effect": 0.2, "missing": missing}
        yield {"requests_per_day": 200, "rated": 0.95, "effect": 0.15, "missing": missing}


def print_plan(options: argparse.Namespace) -> None:
    """`ab plan` compared with simulated decisions: days until half are promoted."""
    from tuneloop.improve.experiment.plan import plan_experiment

    print(f"{options.replications:,} simulated experiments a case\n")
    print("| case | planned days | simulated days | planned / simulated |\n|---|---|---|---|", flush=True)
    ratios = []
    for case in islice(planned_cases(), options.first, options.last):
        plan = plan_experiment(case)
        text = ["simulate", "--ramp", plan.ramp, "--replications", str(options.replications), "--missing", plan.missing]
        world = parser().parse_args(text)
        values = {
            "base": plan.base, "effect": plan.effect, "registered_effect": plan.effect, "rated": plan.rated,
            "requests": plan.requests_per_user, "users_per_day": plan.requests_per_day / plan.requests_per_user,
            "sample": plan.sample, "correlation": plan.correlation, "population": plan.users, "hold_days": plan.hold_days,
            "maturation_hours": plan.maturation_hours, "days": float(2 * (plan.days_50 or plan.days_simulated)),
        }  # fmt: skip
        world = argparse.Namespace(**{**vars(world), **values})
        ends = simulate(
            registered(world), world_of(world), experiments=options.replications, seed=options.seed, rule=decided
        )
        days = sorted(end.day if end.outcome == "promote" else math.inf for end in ends)[len(ends) // 2]
        ratio = (plan.days_50 or math.inf) / days if math.isfinite(days) else math.nan
        ratios.append(ratio)
        name = ", ".join(f"{key} {value}" for key, value in case.items())
        print(f"| {name} | {plan.days_50} | {days:g} | {ratio:.2f} |", flush=True)
    near = sum(1 / 1.15 <= ratio <= 1.15 for ratio in ratios)
    print(f"\n{near} of {len(ratios)} are within 15 %.")


def number(low: float, high: float, *, whole: bool = False, open_ends: str = "") -> Callable[[str], float]:
    """What reads an option's number. `open_ends`: of "low" and "high" those that are not allowed themselves."""

    def read(text: str) -> float:
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"not a {'whole ' * whole}number: {text!r:.40}") from None
        below = value <= low if "low" in open_ends else value < low
        above = value >= high if "high" in open_ends else value > high
        if math.isnan(value) or below or above:
            ends = (
                f"{'above' if 'low' in open_ends else 'from'} {low:g}",
                f"{'below' if 'high' in open_ends else 'to'} {high:g}",
            )
            raise argparse.ArgumentTypeError(f"{text} is not {' and '.join(ends)}")
        return value

    return read


SHARE, INSIDE, PART = number(0, 1), number(0, 1, open_ends="low, high"), number(0, 1, open_ends="high")
FACTOR, DAYS = number(0, 100), number(0, 3650, open_ends="low")
USERS = number(0, 1e6, open_ends="low")


def options_of(default_days: float) -> dict[str, tuple[float, Callable[[str], float], str]]:
    """Options that are numbers: their defaults, what reads them, and what they are."""
    world = World()
    return {
        "base": (world.base, INSIDE, "chance that the champion's answer is good"),
        "effect": (0.0, number(-1, 1), "how much higher the candidate's is; cut where it would pass 0 or 1"),
        "users-per-day": (world.users_per_day, USERS, "users who come a day"),
        "rated": (world.rated, SHARE, "chance that a request gets a value"),
        "requests": (1.0, number(1, 200), "of a user within the window, on average"),
        "correlation": (0.0, PART, "of the qualities of one user's answers"),
        "engagement": (1.0, number(0.1, 20), "times as many requests the candidate's users send"),
        "slice-share": (0.0, PART, "share of users who are a slice"),
        "slice-effect": (0.0, number(-1, 1), "the effect on them; the mean stays the effect"),
        "raters": (1.0, number(0, 1, open_ends="low"), "share of users who ever rate, so much more often"),
        "history": (0.0, number(0, 1000), "requests of a user before the experiment, on average"),
        "earlier-days": (30.0, number(0, 366), "of which an experiment uses them; 0: it does not"),
        "weekly": (
            0.0,
            number(-1, 1),
            "by how much the effect is more on five days of the week, 2.5 times less on two",
        ),
        "first-day": (0, number(0, 6, whole=True), "day of the week on which it begins"),
        "least-days": (7.0, number(0, 365), "full days before a promotion"),
        "delay-days": (0.0, number(0, 3650), "mean time until a value comes"),
        "looks-per-day": (1.0, number(0, 96, open_ends="low"), "how often is decided"),
        "invalid": (world.invalid, SHARE, "chance that an answer is invalid"),
        "invalid-factor": (1.0, FACTOR, "how many times that for the candidate"),
        "latency-factor": (1.0, FACTOR, "how many times the champion's latency the candidate's is; 0: not measured"),
        "checked": (1.0, SHARE, "chance that a user of the random sample is checked"),
        "lost": (0.0, PART, "chance that a user of the candidate vanishes from the log"),
        "harmed": (0.0, PART, "share of users to whom the candidate is terrible"),
        "returns": (0.0, SHARE, "chance that a user comes again after the window"),
        "later-effect": (0.0, number(-1, 1), "the effect then"),
        "sample": (0.4, SHARE, "share of users whose answers are checked"),
        "days": (default_days, DAYS, "after which an experiment ends"),
        "alpha": (0.05, number(1e-6, 0.5), "chance of a wrong decision"),
        "registered-effect": (0.05, INSIDE, "smallest gain worth a promotion"),
        "hold-days": (3.0, number(0, 3650), "that a step of the ramp lasts at least"),
        "maturation-hours": (72.0, number(0, 24 * 3650, open_ends="low"), "from a user's first request on"),
        "rated-candidate-likes": (1.0, FACTOR, "times as often the candidate's good answers are rated"),
        "rated-candidate-dislikes": (1.0, FACTOR, "times as often the candidate's bad answers are rated"),
        "rated-champion-likes": (1.0, FACTOR, "times as often the champion's good answers are rated"),
        "rated-champion-dislikes": (1.0, FACTOR, "times as often the champion's bad answers are rated"),
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = whole.add_subparsers(required=True)
    for name, run, days in (
        ("simulate", print_world, 80.0), ("table", print_table, 120.0), ("worlds", print_worlds, 80.0),
        ("people", print_people, 120.0), ("grid", print_grid, 80.0), ("plan", print_plan, 80.0),
    ):  # fmt: skip
        item = commands.add_parser(name)
        item.set_defaults(run=run)
        for key, (default, read, message) in options_of(days).items():
            item.add_argument(f"--{key}", type=read, default=default, metavar="NUMBER", help=f"{message} ({default:g})")
        item.add_argument("--registered-base", type=INSIDE, metavar="NUMBER", help="default: the true one")
        count = number(0, 10**7, whole=True)
        item.add_argument("--population", type=count, default=0, help="users who come again; 0: always new ones")
        item.add_argument("--harmed-slice", action="store_true", help="those who are harmed are a slice")
        item.add_argument("--guardrails", default="", help="as of `ab start`")
        item.add_argument(
            "--ramp", default="10,25,50", help="percent of new users that meet the candidate, step by step"
        )
        item.add_argument("--missing", default="any", choices=["random", "one-way", "any"])
        item.add_argument("--replications", type=number(1, 10**6, whole=True), default=300)
        item.add_argument("--seed", type=number(0, 2**63, whole=True), default=0)
        item.add_argument("--first", type=count, default=0, help="of worlds, grid and plan: the first line, from 0 on")
        item.add_argument("--last", type=count, default=10**7, help="the line before which it ends")
        item.add_argument("--json", action="store_true")
    return whole


def main() -> None:
    """Run one of the commands; a setting that can't be is one line, and exit status 2."""
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except UserError as error:
        sys.exit(print(f"error: {error}", file=sys.stderr) or 2)


if __name__ == "__main__":
    main()
