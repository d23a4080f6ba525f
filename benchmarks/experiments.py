"""How often experiments decide wrongly, and how soon rightly, when somebody looks every day, as a table.

    python benchmarks/experiments.py [--experiments 1000] [--days 120] [--users 80] [--jobs 2]

Each experiment is simulated day by day through the functions that decide real ones: new users are drawn into the arms
at the share of the day, rate with a chance of 75 % and like the answer at 60 % under the champion; the ramp follows the
decisions. Two other rules are read as often. The usual z-test for two shares reads the same users, and ends at the first
significant difference. Track-and-stop (Garivier & Kaufmann 2016, "Optimal best arm identification with fixed confidence")
draws users of its own at the shares that it thinks best, and stops by Chernoff's statistic; it is written from the paper,
with its threshold log((log t + 1) / delta), and looks once a day at the ratings that have matured, as the others do.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from tuneloop.improve.experiment.record import ExperimentDesign
from tuneloop.improve.experiment.statistics import AMOUNTS, Stage, Units, decide, evidence_of

RATED, BASE, INVALID, MATURATION_DAYS = 0.75, 0.6, 0.02, 3
Z = 1.959963984540054


@dataclass(frozen=True)
class Scenario:
    """What is true of the candidate.

    Args:
        name: of the scenario.
        effect: on the share of liked answers.
        invalid: how many times the champion's share of invalid answers.
        latency: how many times its latency.
    """

    name: str
    effect: float = 0.0
    invalid: float = 1.0
    latency: float = 1.0


SCENARIOS = (
    Scenario("no difference"),
    Scenario("5 points better", effect=0.05),
    Scenario("10 points better", effect=0.10),
    Scenario("5 points worse", effect=-0.05),
    Scenario("10 points worse", effect=-0.10),
    Scenario("20 points worse", effect=-0.20),
    Scenario("invalid answers x 3", invalid=3.0),
    Scenario("latency x 2", latency=2.0),
)


@dataclass(frozen=True)
class Result:
    """How one experiment ended by one rule: outcome (empty: not by then), day, users of the candidate by then."""

    outcome: str
    day: int
    harmed: int


RULES = ("ours", "z-test, peeked", "track-and-stop")


def experiment(seed: int, scenario: Scenario, days: int, users: int) -> tuple[Result, Result]:
    """One simulated experiment, looked at every day, by our rule and the z-test."""
    return compared(np.random.default_rng(seed), scenario, days, users)


def compared(rng: np.random.Generator, scenario: Scenario, days: int, users: int) -> tuple[Result, Result]:
    """By our rule, and by the z-test on the same users until ours ends and as if the share stayed then."""
    design = ExperimentDesign(name="x", model="m", candidate="c", champion="b", shadow=False, salt="s", most_days=days,
                              base=BASE, planned_units=3200)  # fmt: skip
    share, since = design.ramp[0], 0
    arms, chances, liked, came, bad, slow = [np.empty(0)] * 6
    ours = z = None
    for day in range(1, days + 1):
        n = rng.poisson(users)
        arm = rng.random(n) < share
        like = rng.random(n) < BASE + scenario.effect * arm
        rated = rng.random(n) < RATED
        wrong = rng.random(n) < INVALID * np.where(arm, scenario.invalid, 1.0)
        log_ms = rng.normal(0.0, 0.6, n) + np.log(np.where(arm, scenario.latency, 1.0))
        arms, chances = np.append(arms, arm), np.append(chances, np.full(n, share))
        came, liked = np.append(came, np.full(n, day)), np.append(liked, np.where(rated, like, np.nan))
        bad, slow = np.append(bad, wrong), np.append(slow, log_ms)
        inside = arms.astype(bool)
        outcome = np.where(came <= day - MATURATION_DAYS, liked, np.nan)
        if z is None and (said := naive(inside, outcome, design.least_units)):
            z = Result(said, day, int(inside.sum()))
        if ours is None:
            none = np.full(len(arms), np.nan)
            units = Units(
                candidate=inside, propensity=chances, outcome=outcome,
                affected={"invalid": bad.astype(bool), "dislikes": (liked == 0) & (came <= day - 1)},
                amounts=dict.fromkeys(AMOUNTS, none) | {"latency": slow},
            )  # fmt: skip
            verdict = decide(design, evidence_of(design, units, Stage(day, day - since, share)), f"day {day}")
            if verdict.outcome != "continue":
                ours = Result(verdict.outcome, day, int(inside.sum()))
            elif verdict.share != share:
                share, since = verdict.share, day
        if ours is not None:  # the z-test ends here, too: the candidate is gone
            return ours, z or Result("", day, int(inside.sum()))
    raise AssertionError("an experiment ends at its last day")


def naive(inside: np.ndarray, outcome: np.ndarray, least: int) -> str:
    """What the usual test of two shares says on one day: a direction, or nothing."""
    a, b = outcome[inside & ~np.isnan(outcome)], outcome[~inside & ~np.isnan(outcome)]
    if min(len(a), len(b)) < least:
        return ""
    pooled = (a.sum() + b.sum()) / (len(a) + len(b))
    error = math.sqrt(pooled * (1 - pooled) * (1 / len(a) + 1 / len(b)))
    score = (a.mean() - b.mean()) / error if error else 0.0
    return "promote" if score > Z else "roll back" if score < -Z else ""


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


def track_and_stop(
    scenario: Scenario, worlds: int, days: int, users: int, seed: int, delta: float = 0.05
) -> list[Result]:
    """Track-and-stop with two arms in many worlds at once: shares by D-tracking with forced exploration, once a day."""
    rng = np.random.default_rng(seed)
    drawn, seen = (
        np.zeros((worlds, 2)),
        np.zeros((worlds, 2, 2)),
    )  # users of an arm; its rated and liked ones that matured
    rates = np.array([BASE + scenario.effect, BASE])
    pending: list[np.ndarray] = []
    ended: list[Result | None] = [None] * worlds
    for day in range(1, days + 1):
        means = np.where(seen[:, :, 0] > 0, seen[:, :, 1] / np.maximum(seen[:, :, 0], 1), 0.5)
        total = drawn.sum(axis=1, keepdims=True)
        lacking = (drawn < np.sqrt(total) - 1) | (total == 0)
        share = np.where(lacking.all(axis=1), 0.5, np.where(lacking.any(axis=1), lacking[:, 0], best_share(*means.T)))
        came = rng.poisson(users, worlds)
        inside = rng.binomial(came, share)
        counts = np.stack([inside, came - inside], axis=1)
        rated = rng.binomial(counts, RATED)
        pending.append(np.stack([rated, rng.binomial(rated, rates)], axis=2))
        drawn += counts
        if day > MATURATION_DAYS:
            seen += pending.pop(0)
        number = np.maximum(seen[:, :, 0], 1)
        a, b = (seen[:, :, 1] / number).T
        pooled = seen[:, :, 1].sum(axis=1) / number.sum(axis=1)
        evidence = number[:, 0] * divergence(a, pooled) + number[:, 1] * divergence(b, pooled)
        over = (evidence > np.log((np.log(number.sum(axis=1)) + 1) / delta)) & (seen[:, :, 0].min(axis=1) >= 1)
        for at in np.flatnonzero(over):
            ended[at] = ended[at] or Result("promote" if a[at] > b[at] else "roll back", day, int(drawn[at, 0]))
    return [one or Result("", days, int(drawn[at, 0])) for at, one in enumerate(ended)]


def row(scenario: Scenario, rule: str, results: Sequence[Result]) -> str:
    """A line of the table."""

    def share(*outcomes: str) -> str:
        return f"{np.mean([r.outcome in outcomes for r in results]):.1%}"

    day = f"{np.median([r.day for r in results]):.0f}"
    back = [r.harmed for r in results if r.outcome == "roll back"]
    harmed = f"{np.median(back):.0f} ({np.quantile(back, 0.9):.0f})" if len(back) >= 20 else "-"
    cells = [scenario.name, rule, share("promote"), share("roll back"), share("futility", ""), day, harmed]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--days", type=int, default=120)
    parser.add_argument("--users", type=int, default=80, help="new users a day")
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    print(f"{asked.experiments:,} experiments each, {asked.users} new users a day, {asked.days} days, alpha 0.05\n")
    print(
        "| candidate | rule | promoted | rolled back | neither | median day | its users before it was rolled back: median (9 of 10) |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    begun = time.monotonic()
    with ProcessPoolExecutor(asked.jobs) as pool:
        for at, scenario in enumerate(SCENARIOS):
            one = partial(experiment, scenario=scenario, days=asked.days, users=asked.users)
            seeds = range(at * 1_000_000, at * 1_000_000 + asked.experiments)
            ours, peeked = zip(*pool.map(one, seeds, chunksize=10), strict=True)
            other = track_and_stop(scenario, asked.experiments, asked.days, asked.users, at)
            for rule, results in zip(RULES, (ours, peeked, other), strict=True):
                print(row(scenario, rule, results), flush=True)
    print(f"\n{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
