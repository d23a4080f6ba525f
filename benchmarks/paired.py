"""How often a loss as large as the margin is falsely shown to be smaller, and how often equal systems pass.

    python benchmarks/paired.py [--replications 2000]

Each world has a true loss in the mean of bounded scores; the margin is that loss, so that "not worse by more than the
margin" is false and each rule should say so in at most 2.5 % of the cases. `tuneloop` is `core/stats/bounded.py`, as
`compare --margin`, the gate and non-inferiority use it.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import stats

from tuneloop.core.stats.bounded import bounded_interval
from tuneloop.core.stats.intervals import paired_shares_interval
from tuneloop.core.stats.tests import wilson_interval

SIZES = (20, 50, 100, 200)


def worlds(rng: np.random.Generator, n: int) -> dict[str, tuple[np.ndarray, float]]:
    """Differences of scores on n rows, and the true loss, by the name of the world."""
    noise = rng.normal(0, 0.02, n)
    rare, few = rng.random(n) < 0.05, rng.random(n) < 0.02
    tenth, halves = rng.random(n) < 0.1, rng.random(n)
    return {
        "5 % of rows lose all": (np.where(rare, -1.0, 0.0), 0.05),
        "5 % of rows lose all, others differ a little": (np.where(rare, -1.0, noise), 0.05),
        "2 % of rows lose all": (np.where(few, -1.0, 0.0), 0.02),
        "2 % of rows lose all, others differ a little": (np.where(few, -1.0, noise), 0.02),
        "10 % of rows lose half": (np.where(tenth, -0.5, 0.0), 0.05),
        "20 % right in one only, 13 % in the other": (np.where(halves < 0.2, -1.0, np.where(halves > 0.87, 1.0, 0.0)), 0.07),
        "all rows differ, normal": (np.clip(rng.normal(-0.05, 0.2, n), -1, 1), 0.05),
    }  # fmt: skip


def bootstrap_low(rows: np.ndarray, rng: np.random.Generator) -> float:
    return float(np.quantile(rows[rng.integers(0, len(rows), (500, len(rows)))].mean(axis=1), 0.025))


def t_low(rows: np.ndarray) -> float:
    return float(rows.mean() - stats.t.ppf(0.975, len(rows) - 1) * rows.std(ddof=1) / np.sqrt(len(rows)))


def print_worlds(replications: int) -> None:
    """False claims of "not worse", in percent, for each world, size and rule, with Wilson's interval of ours."""
    rng = np.random.default_rng(0)
    names = [name for name in worlds(rng, 20)]
    print(f"{replications:,} replications a cell; nominal: 2.5 %\n")
    print("| world | rows | tuneloop | bootstrap | paired t | Agresti and Min |\n|---|---|---|---|---|---|", flush=True)
    for n in SIZES:
        false = {name: np.zeros(4) for name in names}
        for _ in range(replications):
            for name, (rows, loss) in worlds(rng, n).items():
                binary = set(np.unique(rows)) <= {-1.0, 0.0, 1.0}
                shares = (
                    paired_shares_interval(int((rows < 0).sum()), int((rows > 0).sum()), n)[0] if binary else np.nan
                )
                lows = (bounded_interval(rows, 1.0)[0], bootstrap_low(rows, rng), t_low(rows), shares)
                false[name] += np.array(lows) > -loss
        for name, (ours, boot, t, shares) in false.items():
            low, high = wilson_interval(ours, replications)
            other = [f"{100 * x / replications:.1f}" for x in (boot, t)]
            binary = "lose all, others" not in name and "half" not in name and "normal" not in name
            other += [f"{100 * shares / replications:.1f}" if binary else "–"]
            cell = f"{100 * ours / replications:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            print(f"| {name} | {n} | {cell} | {' | '.join(other)} |", flush=True)
    print("\nEqual systems that pass a margin of 5 points, in percent: rows, tuneloop, bootstrap\n")
    for n in (50, 100, 200, 400):
        passed = np.zeros(2)
        for _ in range(replications // 4):
            chance = rng.random(n)
            rows = np.where(chance < 0.05, -1.0, np.where(chance > 0.95, 1.0, 0.0))
            passed += [bounded_interval(rows, 1.0)[0] > -0.05, bootstrap_low(rows, rng) > -0.05]
        print(f"| {n} | {' | '.join(f'{100 * x / (replications // 4):.0f}' for x in passed)} |", flush=True)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--replications", type=int, default=2000)
    print_worlds(arguments.parse_args().replications)
