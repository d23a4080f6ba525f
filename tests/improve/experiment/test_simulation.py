"""Simulated experiments: the worlds in which decisions are easily wrong, each with few replications, at night with more."""

from __future__ import annotations

import hypothesis
import pytest
from benchmarks.simulated_experiments import World, share_of, simulate
from by_day import by_day
from traffic import design

from tuneloop.improve.experiment.state import guardrails_of

RUNS = max(60, hypothesis.settings().max_examples)
MOST = 0.05 + 3.1 * (0.05 * 0.95 / RUNS) ** 0.5  # a share of 5 % stays below it in all but one of a thousand


def ends(world: World, *, runs: int = RUNS, **changes: object):
    given = {"most_days": 50, "maturation_hours": 72.0, "hold_days": 3.0, "least_units": 10, "base": world.base}
    return simulate(design(**{**given, "ramp": [0.1, 0.25, 0.5], **changes}), world, experiments=runs, seed=7)


@pytest.mark.parametrize(
    ("world", "changes"),
    by_day(
        [
            (World(base=0.95), {}),
            (World(base=0.95), {"ramp": [0.02, 0.05, 0.1]}),
            (World(base=0.95), {"base": 0.6}),
            (World(base=0.05), {}),
            (World(base=0.98, users_per_day=300), {}),
            (World(base=0.02, users_per_day=5), {}),
            (World(requests=6, correlation=0.4, rated=0.3), {}),
            (World(delay_days=2.0), {}),
            (World(base=0.9, looks_per_day=6), {"most_days": 20}),
            (World(population=300), {}),
            (World(harmed_slice=True, returns=0.5), {}),
            (World(history=10, raters=0.8, correlation=0.3), {"earlier_days": 60}),
        ],
        4,
    ),
)
def test_a_candidate_without_a_difference_is_seldom_promoted_or_rolled_back(world, changes):
    results = ends(world, **changes)
    assert share_of(results, "promote") <= MOST and share_of(results, "roll back") <= MOST


@pytest.mark.parametrize("factor", by_day([0.7, 0.85, 0.5], 1))
def test_bad_answers_that_are_rated_less_often_promote_no_one(factor):
    world = World(rated_factors=(1.0, factor, 1.0, 1.0))
    assert share_of(ends(world), "promote") <= MOST
    assert share_of(ends(World(effect=-0.05, rated_factors=(1.0, factor, 1.0, 1.0))), "promote") <= MOST


def test_where_missing_votes_may_be_anything_a_checked_sample_decides():
    both = (1.2, 0.7, 1.0, 1.0)  # good answers are rated more often, bad ones less often: nothing shows it
    assert share_of(ends(World(rated_factors=both), missing="any"), "promote") <= MOST
    assert share_of(ends(World(rated_factors=both), sample=0.5), "promote") <= MOST
    better = World(effect=0.2, rated_factors=both)
    assert share_of(ends(better, sample=0.5), "promote") > 0.9


def test_a_better_candidate_is_promoted_and_a_bad_one_leaves_after_few_users():
    better, bad = ends(World(effect=0.1)), ends(World(effect=-0.2))
    assert share_of(better, "promote") > 0.8
    assert share_of(bad, "promote") == 0 and all(end.day < 50 for end in bad)
    assert sorted(end.candidate_users for end in bad)[RUNS // 2] < 140


@pytest.mark.parametrize("effect", [-0.1, -0.2])
def test_what_ends_a_bad_candidate_is_called_harm(effect):
    assert share_of(ends(World(effect=effect, users_per_day=200)), "roll back") > 0.9


@pytest.mark.parametrize(("rated", "effect"), by_day([((1.2, 0.7), 0.0), ((1.1, 0.9), 0.0), ((1.3, 0.6), -0.05)], 1))
def test_by_default_nothing_is_promoted_by_who_votes(rated, effect):
    world = World(users_per_day=200, effect=effect, rated_factors=(*rated, 1.0, 1.0))
    assert share_of(ends(world, missing="any", sample=0.4), "promote") <= MOST
    assert share_of(ends(world, missing="any"), "promote") == 0


@pytest.mark.parametrize("times", by_day([1.3, 0.8, 1.0], 1))
def test_a_sample_finds_a_gain_whoever_votes(times):
    world = World(users_per_day=200, effect=0.05, rated_factors=(times, times, 1.0, 1.0))
    assert share_of(ends(world, missing="any", sample=0.2, most_days=90), "promote") > 0.8


def test_rates_of_rating_that_differ_contradict_random():
    world = World(users_per_day=200, rated_factors=(1.0, 0.7, 1.0, 1.0))
    assert share_of(ends(world, missing="random"), "promote") <= 0.15


def test_users_who_send_more_requests_are_no_harm():
    more = {"users_per_day": 200, "requests": 3.0}
    same, better = ends(World(**more, engagement=1.5)), ends(World(**more, engagement=2.0, effect=0.05))
    assert share_of(same, "roll back") <= MOST and share_of(same, "promote") <= MOST
    assert share_of(better, "promote") > 0.9
    assert share_of(ends(World(**more, engagement=1.5, effect=0.1)), "promote") > 0.9


def test_a_slice_that_loses_holds_a_gain_back():
    world = World(users_per_day=200, effect=0.05, slice_share=0.1, slice_effect=-0.2)
    assert share_of(ends(world, most_days=90), "promote") <= 0.2


def test_what_users_did_before_saves_days():
    world = World(effect=0.1, history=10, raters=0.8, correlation=0.4)
    days = [sum(end.day for end in ends(world, earlier_days=days)) for days in (0, 60)]
    assert days[1] < 0.9 * days[0]


def test_users_who_return_and_few_users_are_simulated():
    few = ends(World(population=100), runs=20)
    assert all(end.candidate_users <= 100 for end in few)
    fixed = ends(World(population=300), runs=20, most_days=45, missing="random")
    assert sorted(end.candidate_users for end in fixed)[10] > 100  # they do not stop the ramp
    assert all(end.outcome in ("futility", "roll back", "promote") for end in ends(World(users_per_day=0.5), runs=20))


@pytest.mark.parametrize(
    ("world", "changes"),
    [
        (World(effect=0.049, harmed=0.05, requests=6), {}),
        (World(effect=0.049, harmed=0.05, harmed_slice=True), {}),
        (World(effect=0.1, invalid_factor=3), {}),
        (World(effect=0.1, returns=0.5, later_effect=-0.1), {"most_days": 80}),
        (World(effect=0.1, latency_factor=1.3), {"guardrails": guardrails_of("latency=1.1")}),
    ],
)
def test_a_higher_mean_alone_promotes_no_one(world, changes):
    assert share_of(ends(world, **changes), "promote") <= MOST


def test_users_who_vanish_are_noticed():
    lost = ends(World(effect=0.1, lost=0.2, users_per_day=300))
    assert share_of(lost, "roll back", "assignment") > 0.5 and share_of(lost, "promote") <= 0.2


def test_the_same_seed_gives_the_same_ends():
    assert ends(World(), runs=10) == ends(World(), runs=10)


@pytest.mark.parametrize("first_day", by_day([0, 2], 1))
def test_good_days_alone_promote_no_one_where_whole_weeks_decide(first_day):
    world = World(weekly=0.08, first_day=first_day, users_per_day=1000)  # better on weekdays, worse at weekends
    results = ends(world, runs=60, most_days=20, least_days=7)
    assert share_of(results, "promote") == 0
    assert first_day or share_of(ends(world, runs=60, most_days=20), "promote") > 0.5


def test_whole_weeks_cost_a_steady_gain_nothing_but_the_first_one():
    early, late = (ends(World(effect=0.2, users_per_day=400), least_days=days) for days in (0, 7))
    assert share_of(late, "promote") > 0.95 and share_of(early, "promote") > 0.95
    assert min(end.day for end in late) >= 10 > min(end.day for end in early)
