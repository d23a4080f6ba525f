"""What retraining costs and how stale a model gets over years of drifting traffic, by when one retrains, as a table.

    python benchmarks/past/years.py [--years 5] [--worlds 200] [--first 1000] [--usd-per-answer 0.05] [--usd-per-cycle 20,60,200]

A world is simulated week by week. New kinds of requests appear, some at once and some over two months; the model answers 85 %
of those rightly that it knows and 25 % of a kind that it does not, and after a retraining as many more as it has seen
corrected rows of that kind: 25 % + 60 % n / (n + 50). Of 100 answers 3 are judged, and of those that are wrong 3 in 10 are put
right. A cycle takes three weeks, which is what its experiment lasts.

- `never`, `quarterly`, `always` (the next cycle begins when the last one has ended);
- `drift only`: at each alarm of a weekly test for unknown requests, whose false alarms are 2 a year;
- `ours`: the functions of `tuneloop improve` decide from what they know: feedback, corrections, alarms, the planner's cost,
  and what earlier cycles mended;
- `oracle`: knows what a cycle would mend, and begins it where the gain of the next quarter is above its cost. It does not know
  what comes after, so that waiting for more corrections can beat it.

Staleness is the share of wrong answers beyond those of a model that knows everything. `both` adds up what retraining and
wrong answers cost, with a 95 % interval of its mean over the worlds; the last column is the mean of what a policy costs more
than ours in the same world, with its interval. The rule of ours was chosen on worlds below 1000: `--first 1000` has others.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import binom

from tuneloop.improve.controller.controller import Facts, ProjectConfig, choose
from tuneloop.improve.monitor.detectors import level_of

KNOWN, UNKNOWN, LEARNED, HALF, FEW = 0.85, 0.25, 0.6, 50, 5
RATED, PUT_RIGHT = 0.03, 0.3
LASTS, QUARTER = 3, 13  # weeks
WINDOW, NOISE, DETECTORS = 500, 0.01, 10  # requests that are compared in a week; known ones that look unknown


@dataclass
class Kind:
    """A kind of requests: when it appears, its share in the end, weeks until then, corrected rows so far, and of the model in use."""

    since: int
    share: float
    weeks: int
    rows: float = 0.0
    learned: float = 0.0

    def now(self, week: int) -> float:
        """Its share of the traffic."""
        return self.share * min(1.0, max(0.0, (week - self.since + 1) / self.weeks))

    def right(self, rows: float) -> float:
        """How often a model is right that has seen so many rows of it."""
        return min(KNOWN, UNKNOWN + LEARNED * rows / (rows + HALF))


@dataclass
class World:
    """Traffic with its model, and what is known of both.

    Args:
        kinds: that appear; all else is known.
        per_week: requests.
        begun: week in which the running cycle began; -1: none runs. `last`: week in which one ended.
        frozen: rows of each kind that it trains on, and `trained_on` new corrections in all.
        judged, bad, corrections, alarms: since then, and `mended` of all cycles: what `Facts` holds.
    """

    rng: np.random.Generator
    kinds: list[Kind]
    per_week: int
    week: int = 0
    begun: int = -1
    frozen: list[float] = field(default_factory=list)  # rows of each kind that the running cycle trains on
    trained_on: int = 0
    last: int = 0
    judged: float = 0.0
    bad: float = 0.0
    corrections: int = 0
    alarms: int = 0
    mended: tuple[float, ...] = ()
    cycles: int = 0

    def wrong(self, rows: Callable[[Kind], float]) -> float:
        """Share of wrong answers of a model that has seen so many rows of each kind."""
        shares = [kind.now(self.week) for kind in self.kinds]
        right = sum(share * kind.right(rows(kind)) for share, kind in zip(shares, self.kinds, strict=True))
        return 1 - right - (1 - sum(shares)) * KNOWN

    def step(self, begin: Callable[[World], bool]) -> float:
        """A week; returns the excess of wrong answers."""
        wrong = self.wrong(lambda kind: kind.learned)
        rated = self.rng.binomial(self.per_week, RATED)
        bad = self.rng.binomial(rated, wrong)
        self.judged, self.bad = self.judged + rated, self.bad + bad
        for kind in self.kinds:
            put_right = self.rng.binomial(
                self.per_week, kind.now(self.week) * (1 - kind.right(kind.learned)) * RATED * PUT_RIGHT
            )
            kind.rows += put_right
            self.corrections += int(put_right)
        unknown = sum(
            kind.now(self.week) for kind in self.kinds if kind.learned < FEW
        )  # what its data set does not have
        found = self.rng.binomial(WINDOW, NOISE + unknown * (1 - NOISE))
        self.alarms += bool(binom.sf(found - 1, WINDOW, NOISE) <= level_of(2, 7, DETECTORS) * DETECTORS)
        if self.begun >= 0 and self.week - self.begun >= LASTS:
            self.end()
        if self.begun < 0 and begin(self):
            self.begun, self.frozen, self.trained_on = self.week, [kind.rows for kind in self.kinds], self.corrections
            self.cycles += 1
        self.week += 1
        return wrong - (1 - KNOWN)

    def end(self) -> None:
        """The candidate replaces the model where its experiment shows it to be better."""
        rows = dict(zip(map(id, self.kinds), self.frozen, strict=True))
        before, after = self.wrong(lambda kind: kind.learned), self.wrong(lambda kind: rows[id(kind)])
        users = self.per_week * LASTS * RATED / 2
        measured = before - after + self.rng.normal(0, math.sqrt(2 * before * (1 - before) / users))
        good = measured > 0.01
        share = self.trained_on / (self.trained_on + HALF) if self.trained_on else 1.0
        self.mended = (*self.mended, min(1.0, measured / before / share) if good else 0.0)
        if good:
            for kind, seen in zip(self.kinds, self.frozen, strict=True):
                kind.learned = seen
        self.begun, self.last = -1, self.week
        self.judged = self.bad = 0.0
        self.corrections = self.alarms = 0


def policies(usd_per_answer: float, usd_per_cycle: float) -> dict[str, Callable[[World], bool]]:
    """When a cycle begins, by name."""
    project = ProjectConfig.model_validate({
        "name": "years", "model": "m", "recipe": "r", "triggers": {"corrections": 50},
        "value": {"usd_per_answer": usd_per_answer},
    })  # fmt: skip

    def ours(world: World) -> bool:
        weeks = max(world.week - world.last, 1)
        facts = Facts(
            days=7.0 * weeks, feedback=10_000, corrections=world.corrections, alarms=world.alarms,
            requests_per_day=world.per_week / 7, bad=world.bad / world.judged if world.judged else math.nan,
            expected_usd=usd_per_cycle, expected_hours=1.0, fixed_shares=world.mended,
        )  # fmt: skip
        return choose(project, facts).begins

    def oracle(world: World) -> bool:
        later = replace(world, week=world.week + LASTS)
        gain = later.wrong(lambda kind: kind.learned) - later.wrong(lambda kind: kind.rows)
        return gain * usd_per_answer * world.per_week * QUARTER > usd_per_cycle

    return {
        "never": lambda world: False,
        "quarterly": lambda world: world.week - world.last >= QUARTER,
        "drift only": lambda world: world.alarms > 0,
        "always": lambda world: True,
        "ours": ours,
        "oracle": oracle,
    }


def world_of(seed: int, weeks: int, per_day: int, kinds_a_year: float) -> World:
    """A world by its seed: the same kinds appear under each policy."""
    rng = np.random.default_rng(seed)
    number = rng.poisson(kinds_a_year * weeks / 52)
    kinds = [
        Kind(int(rng.integers(0, weeks)), float(rng.uniform(0.01, 0.6 / max(number, 4))), int(rng.choice([1, 8])))
        for _ in range(number)
    ]
    return World(rng, kinds, per_day * 7)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--years", type=int, default=5)
    parser.add_argument("--worlds", type=int, default=200)
    parser.add_argument("--first", type=int, default=1000, help="seed of the first world")
    parser.add_argument("--requests-per-day", type=int, default=1000)
    parser.add_argument("--kinds-a-year", type=float, default=3.0)
    parser.add_argument("--usd-per-answer", type=float, default=0.05)
    parser.add_argument("--usd-per-cycle", default="20,60,200", help="prices, with commas")
    asked = parser.parse_args()
    begun = time.monotonic()
    print(
        f"{asked.worlds} worlds from {asked.first} on, of {asked.years} years, {asked.requests_per_day:,} requests a day, "
        f"${asked.usd_per_answer:g} an answer"
    )
    for price in map(float, asked.usd_per_cycle.split(",")):
        print(f"\n${price:g} a cycle\n")
        print(
            "| cycles begin | a year | retraining, $ a year | staleness, points | wrong answers, $ a year | both, $ a year | more than ours |"
        )
        print("|---|---|---|---|---|---|---|")
        both: dict[str, np.ndarray] = {}
        lines = {}
        for name, begin in policies(asked.usd_per_answer, price).items():
            found = np.array([lived(seed, begin, asked) for seed in range(asked.first, asked.first + asked.worlds)])
            cycles, stale = found.mean(axis=0)
            spent, lost = found[:, 0] * price, found[:, 1] * asked.usd_per_answer * asked.requests_per_day * 365.25
            both[name] = spent + lost
            lines[name] = (
                f"| {name} | {cycles:.1f} | {spent.mean():,.0f} | {100 * stale:.2f} | {lost.mean():,.0f} | {interval(both[name])} |"
            )
        for name, line in lines.items():
            print(f"{line} {'' if name == 'ours' else interval(both[name] - both['ours'])} |", flush=True)
    print(f"\n{time.monotonic() - begun:.0f} s")


def lived(seed: int, begin: Callable[[World], bool], asked: argparse.Namespace) -> tuple[float, float]:
    """Cycles a year and mean staleness of a world under a policy."""
    weeks = 52 * asked.years
    world = world_of(seed, weeks, asked.requests_per_day, asked.kinds_a_year)
    stale = float(np.mean([world.step(begin) for _ in range(weeks)]))
    return world.cycles / asked.years, stale


def interval(values: np.ndarray) -> str:
    """The mean with its 95 % interval."""
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
    mean = float(values.mean())
    return f"{mean:,.0f} [{mean - half:,.0f}, {mean + half:,.0f}]"


if __name__ == "__main__":
    main()
