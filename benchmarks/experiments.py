"""How often experiments decide wrongly, and how soon rightly, when somebody looks every day, as a table.

    python benchmarks/experiments.py [--experiments 1000] [--days 120] [--users 80] [--jobs 2]

Each experiment is simulated day by day through the functions that decide real ones: new users are drawn into the arms
at the share of the day, rate with a chance of 75 % and like the answer at 60 % under the champion; the ramp follows the
decisions. Next to it, the usual z-test for two shares reads the same users as often: `z promoted` and `z rolled back` are
experiments in which it was significant in that direction first.
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

from tuneloop.improve.experiment import AMOUNTS, Stage, Units, decide, evidence_of
from tuneloop.records.experiment import ExperimentDesign

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
    """How one experiment ended: outcome, reason, day, users of the candidate by then; what the z-test said first."""

    outcome: str
    reason: str
    day: int
    harmed: int
    z: str


def experiment(seed: int, scenario: Scenario, days: int, users: int) -> Result:
    """One simulated experiment, looked at every day."""
    rng = np.random.default_rng(seed)
    design = ExperimentDesign(name="x", model="m", candidate="c", champion="b", shadow=False, salt="s", most_days=days,
                              base=BASE, planned_units=3200)  # fmt: skip
    share, since = design.ramp[0], 0
    arms, chances, liked, came, bad, slow = [np.empty(0)] * 6
    z = ""
    for day in range(1, days + 1):
        n = rng.poisson(users)
        arm = rng.random(n) < share
        like = rng.random(n) < BASE + scenario.effect * arm
        rated = rng.random(n) < RATED
        wrong = rng.random(n) < INVALID * np.where(arm, scenario.invalid, 1.0)
        log_ms = rng.normal(0.0, 0.6, n) + np.log(np.where(arm, scenario.latency, 1.0))
        arms, chances, came = (
            np.append(arms, arm),
            np.append(chances, np.full(n, share)),
            np.append(came, np.full(n, day)),
        )
        liked, bad, slow = (
            np.append(liked, np.where(rated, like, np.nan)),
            np.append(bad, wrong),
            np.append(slow, log_ms),
        )
        inside = arms.astype(bool)
        disliked = (liked == 0) & (came <= day - 1)
        outcome = np.where(came <= day - MATURATION_DAYS, liked, np.nan)
        none = np.full(len(arms), np.nan)
        units = Units(
            candidate=inside, propensity=chances, outcome=outcome,
            affected={"invalid": bad.astype(bool), "dislikes": disliked},
            amounts=dict.fromkeys(AMOUNTS, none) | {"latency": slow},
        )  # fmt: skip
        verdict = decide(design, evidence_of(design, units, Stage(day, day - since, share)), f"day {day}")
        z = z or naive(inside, outcome, design.least_units)
        if verdict.share != share:
            share, since = verdict.share, day
        if verdict.outcome != "continue":
            return Result(verdict.outcome, verdict.reason, day, int(inside.sum()), z)
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


def row(scenario: Scenario, results: Sequence[Result]) -> str:
    """A line of the table."""

    def share(outcome: str) -> str:
        return f"{np.mean([r.outcome == outcome for r in results]):7.1%}"

    day = f"{np.median([r.day for r in results]):5.0f}"
    ended = [r.harmed for r in results if r.outcome != "promote"]
    harmed = f"{np.median(ended):7.0f}" if len(ended) * 2 > len(results) else "      -"
    z = [f"{np.mean([r.z == outcome for r in results]):7.1%}" for outcome in ("promote", "roll back")]
    cells = [share("promote"), share("roll back"), share("futility"), day, harmed, *z]
    return f"| {scenario.name:<20} | " + " | ".join(cells) + " |"


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
        "| candidate | promoted | rolled back | futility | median day | candidate's users until it was taken away | z promoted | z rolled back |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    begun = time.monotonic()
    with ProcessPoolExecutor(asked.jobs) as pool:
        for at, scenario in enumerate(SCENARIOS):
            one = partial(experiment, scenario=scenario, days=asked.days, users=asked.users)
            seeds = range(at * 1_000_000, at * 1_000_000 + asked.experiments)
            print(row(scenario, list(pool.map(one, seeds, chunksize=10))), flush=True)
    print(f"\n{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
