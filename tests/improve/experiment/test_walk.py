"""The walk that `ab plan` makes: outcomes with their chances, and days that are those of the simulated decisions."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.simulated_experiments import World, draw_users, simulate
from traffic import design

from tuneloop.improve.experiment.walk import days_needed, outcomes_of, schedule_of, walk


@pytest.mark.parametrize(
    "world",
    [
        World(rated=0.3),
        World(requests=4, rated=0.2, rated_factors=(1.0, 0.5, 1.0, 1.0)),
        World(requests=3, correlation=0.4),
        World(requests=6, rated=0.6, base=0.3),
    ],
)
@pytest.mark.parametrize("candidate", [True, False])
def test_outcomes_have_the_chances_of_users_that_are_drawn(world, candidate):
    outcomes = outcomes_of(world, candidate=candidate)
    assert outcomes.chance.sum() == pytest.approx(1)
    rng = np.random.default_rng(0)
    drawn_users = draw_users(world, design(sample=1.0), np.array([0.5]), np.array([40_000]), rng)
    users = drawn_users.matured
    mine = users.candidate[0] == candidate
    assert outcomes.chance @ outcomes.good == pytest.approx(users.checked[0, mine].mean(), abs=0.012)
    for name, values in (("likes", users.likes), ("dislikes", users.dislikes), ("values", users.outcome)):
        drawn, exact = values[0, mine], getattr(outcomes, name)
        valued = ~np.isnan(exact)
        weights = outcomes.chance[valued] / outcomes.chance[valued].sum()
        assert np.nanmean(drawn) == pytest.approx(weights @ exact[valued], abs=0.012)
        spread = (weights @ exact[valued] ** 2 - (weights @ exact[valued]) ** 2) ** 0.5
        assert np.nanstd(drawn) == pytest.approx(spread, rel=0.03)
        assert np.isnan(drawn).mean() == pytest.approx(1 - outcomes.chance[valued].sum(), abs=0.012)


def test_the_ramp_waits_for_its_time_and_for_values():
    registered = design(ramp=[0.1, 0.5], hold_days=3.0, maturation_hours=72.0, least_units=10)
    many, few = (schedule_of(registered, World(users_per_day=users, rated=0.5), 60) for users in (1000, 20))
    assert list(many.step[:5]) == [0, 0, 0, 0, 1] and list(few.step[:10]) == [0] * 10 and few.step[-1] == 1
    returning = schedule_of(registered, World(users_per_day=100, population=300), 60)
    assert returning.new[:3].sum() < 300 < returning.new.sum()  # the champion's users are drawn again at the next step
    assert (
        returning.met[-1] == pytest.approx(300 * (1 - 0.9 * 0.5), rel=0.03)
        and returning.new[0] > 10 * returning.new[20]
    )


@pytest.mark.parametrize(
    ("world", "changes"),
    [(World(effect=0.1), {}), (World(effect=0.1, requests=4, correlation=0.3, rated=0.3), {}),
     (World(effect=0.1, base=0.8, users_per_day=300, rated=0.2), {"missing": "random", "base": 0.8}),
     (World(effect=0.2, users_per_day=200, rated=0.9), {"missing": "any", "effect": 0.2}),
     (World(effect=0.1, requests=3, rated=0.3), {"missing": "any", "sample": 0.3}),
     (World(effect=0.1, users_per_day=150, rated=0.5), {"missing": "any", "sample": 0.2})],
)  # fmt: skip
def test_days_are_those_of_simulated_decisions(world, changes):
    registered = design(
        **{"ramp": [0.1, 0.25, 0.5], "hold_days": 3.0, "maturation_hours": 72.0, "least_units": 10, "most_days": 90,
           "effect": 0.1, "guardrails": [], **changes}
    )  # fmt: skip
    looks = walk(registered, world, days=90, experiments=2000, seed=0)
    days = looks.days[(looks.promoted.mean(axis=0) >= 0.5).argmax()]
    ends = simulate(registered, world, experiments=300, seed=1)
    promoted = sorted(end.day if end.outcome == "promote" else 1e9 for end in ends)
    assert days == pytest.approx(promoted[len(ends) // 2], rel=0.15)


def test_days_follow_from_the_stake_that_grows_best():
    # Nothing is assumed of missing ratings: a true gain of 20 points shows as 8, too little for the stake on 25.
    registered = design(missing="any", effect=0.2, least_units=10)
    assert 5 < days_needed(registered, World(effect=0.2, users_per_day=200, rated=0.9), 0.5) < 12
    assert days_needed(registered, World(effect=0.2, users_per_day=200, rated=0.6), 0.5) == np.inf
