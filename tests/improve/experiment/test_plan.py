"""What an experiment can show: published figures, and the promise on false promotions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.stats.sequences import best_rho2, contrast, running_bounds
from tuneloop.improve.experiment import plan as e

ASKED = {"requests_per_day": 1000, "rated": 0.03, "base": 0.6, "effect": 0.05, "share": 0.1}


@pytest.fixture(scope="module")
def plan():
    return e.plan_experiment(ASKED)


def test_five_points_at_a_tenth_of_the_traffic_take_about_9800_rated_units(plan):
    assert plan.units_one_look == pytest.approx(9800, rel=0.01)
    assert plan.days_one_look == math.ceil(plan.units_one_look / 30)
    assert plan.units_50 < plan.units_one_look < plan.units_80  # who looks daily ends earlier on average
    text = " ".join(plan.summary)
    assert "50% chance" in text and f"{plan.units_one_look:,}" in text and "30 rated units" in text


def test_false_promotions_stay_below_alpha_where_the_z_test_does_not(plan):
    assert plan.false_promotion <= 0.05
    assert plan.false_promotion_z > 0.12


def test_power_rises_with_time_and_effect_and_bad_candidates_are_rolled_back(plan):
    rows = {(row.effect, row.days): row for row in plan.power}
    days = sorted({day for _, day in rows})
    for effect in {effect for effect, _ in rows}:
        shares = [rows[effect, day].promoted for day in days]
        assert shares == sorted(shares)
    last = {effect: rows[effect, days[-1]] for effect, _ in rows}
    assert last[-0.05].rolled_back > 0.9 and last[-0.05].promoted < 0.01
    assert last[0.025].promoted < last[0.05].promoted
    assert last[0.1].promoted > 0.99


def test_denser_measures_are_proposed_and_quicker(plan):
    ways = {way.name: way for way in plan.denser}
    assert {"half of the traffic", "more ratings", "no edits, no retries", "label agreement", "shadow judging"} == set(
        ways
    )
    assert all(way.days < plan.days_one_look for way in plan.denser)
    assert all(
        way.name != "more ratings" for way in e.plan_experiment({**ASKED, "rated": 0.5, "simulations": 100}).denser
    )


def test_looks_on_counts_are_the_sequence_of_the_single_units():
    # One unit a look: then the arms' means before each look are those before each unit.
    rng = np.random.default_rng(0)
    n = 400
    arms = rng.random(n) < 0.3
    good = (rng.random(n) < 0.5 + 0.2 * arms).astype(np.int64)
    ones, zeros = arms.astype(np.int64), (~arms).astype(np.int64)
    mean, deviation = e._estimate(0.3, np.ones((1, n), np.int64), (ones[None], (good * ones)[None]), (zeros[None], (good * zeros)[None]))  # fmt: skip
    values = contrast(arms, good.astype(float), np.full(n, 0.3))
    means, _, _ = running_bounds(values, 0.05, best_rho2(n, 0.05))
    assert mean[0, -1] == pytest.approx(means[-1], abs=0.02)  # the first unit's mean is guessed as 1/2 instead of 0
    assert deviation[0, -1] == pytest.approx(values.std(), rel=0.02)


def test_the_same_seed_gives_the_same_plan():
    few = {**ASKED, "simulations": 100}
    assert e.plan_experiment(few) == e.plan_experiment(few)
    assert e.plan_experiment(few).power != e.plan_experiment({**few, "seed": 500}).power


@pytest.mark.parametrize(
    "change", [{"requests_per_day": 0.5}, {"requests_per_day": 1e9}, {"effect": 0.0001}, {"base": 0.001}]
)
def test_extreme_traffic_is_planned_too(change):
    plan = e.plan_experiment({**ASKED, "simulations": 100, **change})
    assert 0 <= plan.false_promotion <= 0.2 and plan.summary
    assert plan.days_simulated <= e.MOST_DAYS + e.MOST_LOOKS


@pytest.mark.parametrize("change", [{"base": 0.98}, {"rated": 0}, {"share": 1}, {"effect": -0.1}, {"alpha": 0.9}])
def test_numbers_that_cannot_be_are_refused(change):
    with pytest.raises(UserError):
        e.plan_experiment({**ASKED, **change})


def test_the_command_prints_one_object_or_a_table(capsys):
    words = ["ab", "plan", "--requests-per-day", "1000", "--rated", "0.03", "--simulations", "100"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["version"] == 1 and found["units_per_day"] == 30
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "rolled back" in text and "shadow judging" in text
    assert main(["ab", "plan", "--effect", "5", "--json"]) == 2
