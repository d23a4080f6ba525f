"""The simulation of many adapters: what is kept, who is asked, and that a slower or smaller engine does worse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks.serve_adapters import Recent, Router, Setting, homes, planned_costs, shares, simulated, traffic
from benchmarks.simulated_server import Costs

SETTING = Setting(
    rate=40, seconds=3, adapters=12, prompt=400, answer=10, prefix=300, slots=12, prefixes=12, rows=8, load_ms=20,
    objective_ms=500, costs=Costs(2, 0.05, 5, 0.1),
)  # fmt: skip


def test_the_least_recently_used_name_goes() -> None:
    kept = Recent(2)
    assert [kept.use(name) for name in "abab"] == [False, False, True, True]
    assert not kept.use("c") and not kept.use("a") and kept.use("c")


def test_traffic_comes_at_the_rate_and_its_popularity_falls_by_rank() -> None:
    found = traffic(replace(SETTING, seconds=100), seed=1)
    assert len(found) == pytest.approx(4000, rel=0.1)
    first = sum(match.adapter == "a0" for match in found) / len(found)
    assert first == pytest.approx(shares(12)[0], rel=0.15) and sum(shares(12)) == pytest.approx(1)


def test_an_adapter_keeps_its_engines_when_another_one_comes() -> None:
    before, after = homes(SETTING, 6), homes(SETTING, 7)
    assert all(len(set(own)) == len(own) >= 2 for own in before.values())
    assert len(before["a0"]) > len(before["a11"]), "more traffic, more engines"
    moved = sum(not set(after[name]) & set(own) for name, own in before.items())
    assert moved <= 2


@pytest.mark.parametrize("router", ["turns", "least", "affinity"])
def test_enough_engines_keep_the_objective_and_too_few_refuse(router: Router) -> None:
    enough, few = simulated(SETTING, router, 3), simulated(replace(SETTING, rate=160), router, 1)
    assert enough.within > 0.98 and enough.refused < 0.02 and 0 < enough.busy < 0.9
    assert few.refused > 0.2 and few.busy > enough.busy
    assert enough.requests == sum(item.at >= 1 for item in traffic(SETTING, 0))


def test_a_router_by_adapter_finds_what_one_in_turns_does_not() -> None:
    small = replace(SETTING, prefixes=4, slots=4)
    turns, affinity = simulated(small, "turns", 4), simulated(small, "affinity", 4)
    assert affinity.hits > turns.hits + 0.15 and affinity.loaded < turns.loaded - 0.15
    assert affinity.busy < turns.busy


def test_what_is_not_kept_costs_time() -> None:
    kept, none = simulated(SETTING, "turns", 2), simulated(replace(SETTING, prefix=0), "turns", 2)
    assert kept.hits > 0.5 and none.hits == 0 and none.busy > 1.5 * kept.busy


def test_costs_are_the_planner_s() -> None:
    costs, left = planned_costs("llama-3.1-8b", "h100-sxm", 440, 64, 16.0)
    assert 20_000 < 1000 / costs.read < 60_000 and 3 < costs.step < 12 and 0 < costs.row < 1
    assert 0.9 * 80 - 40 < left < 0.9 * 80 - 30
