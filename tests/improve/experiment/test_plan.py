"""What an experiment can show: published figures, and the promise on false promotions."""

from __future__ import annotations

import json
import math

import pytest

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.improve.experiment import plan as e
from tuneloop.improve.experiment.walk import MOST_LOOKS

ASKED = {"requests_per_day": 1000, "rated": 0.03, "base": 0.6, "effect": 0.05, "share": 0.1, "missing": "random"}


@pytest.fixture(scope="module")
def plan():
    return e.plan_experiment(ASKED)


def test_five_points_at_a_tenth_of_the_traffic_take_thousands_of_rated_units(plan):
    # Betting on the registered effect: log(1 / alpha) / growth, and growth is p (1 - p) effect^2 / (2 variance).
    units = math.log(20) * 2 * 0.24 / (0.09 * 0.05**2)
    assert 0.65 * units < plan.units_50 < units < plan.units_80  # who looks daily ends earlier on average
    assert plan.days_50 == pytest.approx(plan.units_50 / 30, rel=0.05)
    text = " ".join(plan.summary)
    assert "Harm to a few users can't be seen unless they are a slice: a user gives 0.03 ratings" in text
    assert f"promoted after {plan.days_50:,} days" in text and "30 rated units" in text


def test_missing_ratings_and_users_who_return_cost_days(plan):
    dense = {**ASKED, "requests_per_day": 80, "rated": 0.75, "share": 0, "simulations": 200}
    days = [e.plan_experiment({**dense, **more}).days_50 for more in ({}, {"missing": "one-way"}, {"ramp": "2,5,10"})]
    assert days[0] < days[1] and days[0] < days[2]
    item, six = (e.plan_experiment({**dense, "requests_per_day": 480, "requests_per_user": n}) for n in (1, 6))
    assert "Harm to a few users" in " ".join(item.summary) and "Harm to a few users" not in " ".join(six.summary)
    assert six.units_per_day < item.units_per_day / 4 and six.days_50 > item.days_50
    assert e.plan_experiment({**dense, "users": 300}).days_50 is None  # too few to show it, ever
    assert e.plan_experiment({**dense, "missing": "any", "sample": 0}).days_50 is None  # a quarter is not rated
    checked, few = (e.plan_experiment({**dense, "missing": "any", "sample": share}) for share in (0.5, 0.1))
    assert days[0] / 1.2 < checked.days_50 < few.days_50 and "40 users a day of a random sample" in " ".join(
        checked.summary
    )


def test_days_are_looked_at_one_by_one_where_nothing_is_assumed_of_missing_ratings():
    plan = e.plan_experiment({"requests_per_day": 200, "rated": 0.9, "effect": 0.2, "missing": "any", "sample": 0})
    assert plan.look_every_days == 1 and plan.days_50 == pytest.approx(12.5, rel=0.15)


def test_the_ramp_follows_from_the_harm_that_is_accepted():
    asked = {**ASKED, "requests_per_day": 80, "rated": 0.75, "share": 0, "simulations": 100}
    careful, bold = (e.plan_experiment({**asked, "harm": harm}) for harm in (250, 2000))
    assert careful.ramp == "2,5,10" and bold.ramp in ("20,50", "30,50", "50") and bold.days_50 < careful.days_50
    assert "at most the 250 that you accept" in " ".join(careful.summary)


def test_false_promotions_stay_below_alpha(plan):
    assert plan.false_promotion <= 0.05 + 3.1 * (0.05 * 0.95 / plan.simulations) ** 0.5


def test_power_rises_with_time_and_effect_and_bad_candidates_are_rolled_back(plan):
    rows = {(row.effect, row.days): row for row in plan.power}
    days = sorted({day for _, day in rows})
    for effect in {effect for effect, _ in rows}:
        shares = [rows[effect, day].promoted for day in days]
        assert shares == sorted(shares)
    last = {effect: rows[effect, days[-1]] for effect, _ in rows}
    assert last[-0.05].rolled_back + last[-0.05].futile > 0.9 and last[-0.05].promoted < 0.01
    assert last[0.025].promoted < last[0.05].promoted
    assert last[0.1].promoted > 0.99


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
    assert plan.days_simulated <= e.MOST_DAYS + MOST_LOOKS


@pytest.mark.parametrize(
    "change",
    [
        {"base": 0.98},
        {"rated": 0},
        {"share": 1},
        {"effect": -0.1},
        {"alpha": 0.9},
        {"share": 0, "ramp": "100"},
        {"share": 0, "ramp": "x"},
        {"missing": "some"},
    ],
)
def test_numbers_that_cannot_be_are_refused(change):
    with pytest.raises(UserError):
        e.plan_experiment({**ASKED, **change})


def test_the_command_prints_one_object_or_a_table(capsys):
    sentence = ["ab", "plan", "--requests-per-day", "1000", "--rated", "0.03", "--simulations", "100"]
    assert main([*sentence, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["version"] == 1 and found["units_per_day"] == 30
    assert main(sentence) == 0
    text = capsys.readouterr().out
    assert "rolled back" in text and "users who meet a bad candidate" in text
    assert main(["ab", "plan", "--effect", "5", "--json"]) == 2
