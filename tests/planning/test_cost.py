"""What a run costs: interruptions by formula and by simulation, and a sum that adds up."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import manifest_json

from tuneloop.advice.economics import trainings
from tuneloop.advice.measured import facts_from_results
from tuneloop.advice.recommendation import AdviceInput
from tuneloop.core.errors import UserError
from tuneloop.planning.catalogue.prices import Price, load_prices
from tuneloop.planning.cost import (
    ONE_RUN,
    Efforts,
    Interruptions,
    best_checkpoint_hours,
    checkpoint_hours,
    cost_of,
    expected_hours,
    lognormal_sigma,
)
from tuneloop.planning.options import plan_machines
from tuneloop.records.plan import PlannedCost
from tuneloop.report.plan_terminal import cost_lines

PRICE = Price("A", "h100-sxm", 1, "on-demand", 2.0, "2026-11-01", "https://a")
BARE = Efforts(setup_hours=0, evaluation_hours=0, runs=1, failed_share=0, storage_gb=0, hours_spread=1)
STEADY = Interruptions(save_minutes=0)


def simulate(work: float, how: Interruptions, source: random.Random) -> float:
    """One run, interrupted at random: the definition that the formula must match."""
    clock = done = 0.0
    interval, save, restart = (how.checkpoint_minutes or 0) / 60, how.save_minutes / 60, how.restart_minutes / 60
    next_fault = source.expovariate(how.per_hour)
    while done < work - 1e-9:
        need = min(interval, work - done) + save
        if clock + need <= next_fault:
            clock += need
            done += min(interval, work - done)
            continue
        clock = next_fault
        while True:  # restarts are interrupted too
            next_fault = clock + source.expovariate(how.per_hour)
            if clock + restart <= next_fault:
                clock += restart
                break
            clock = next_fault
    return clock


@pytest.mark.parametrize("per_hour", [0.02, 0.2, 1.0])
def test_the_expected_time_is_that_of_simulated_runs(per_hour: float) -> None:
    how = Interruptions(per_hour, checkpoint_minutes=30, save_minutes=3, restart_minutes=12)
    source = random.Random(1)
    mean = sum(simulate(10, how, source) for _ in range(3000)) / 3000
    assert expected_hours(10, how) == pytest.approx(mean, rel=0.03)


def test_what_writing_checkpoints_takes_is_told_apart_from_what_interruptions_do() -> None:
    how = Interruptions(1 / 3000, save_minutes=15)
    found = cost_of(1, 1, 1, 1, PRICE, efforts=BARE, how=how)
    assert found.breakdown["checkpoints"] == pytest.approx(0.25 * PRICE.usd_per_hour)  # one, at the end
    assert 0 < found.breakdown["interruptions"] < 0.01 * PRICE.usd_per_hour
    often = cost_of(1, 1, 1, 1, PRICE, efforts=BARE, how=replace(how, checkpoint_minutes=15))
    assert often.breakdown["checkpoints"] == pytest.approx(4 * found.breakdown["checkpoints"])
    steady = cost_of(1, 1, 1, 1, PRICE, efforts=BARE, how=replace(how, per_hour=0.0))
    assert steady.breakdown["interruptions"] == pytest.approx(0, abs=1e-9)


def test_the_last_checkpoint_is_the_result_alone() -> None:
    how = Interruptions(0.1, checkpoint_minutes=30, save_minutes=6, last_minutes=2)
    assert checkpoint_hours(2, how) == pytest.approx((3 * 6 + 2) / 60)
    assert expected_hours(2, replace(how, last_minutes=None)) - expected_hours(2, how) == pytest.approx(4 / 60)
    assert checkpoint_hours(0.5, Interruptions(save_minutes=6, last_minutes=2)) == pytest.approx(2 / 60)


@given(work=st.floats(0.01, 1000), per_hour=st.floats(0, 0.5), save=st.floats(0.01, 30))
def test_checkpoints_take_no_more_than_what_is_added_to_the_work(work: float, per_hour: float, save: float) -> None:
    how = Interruptions(per_hour, save_minutes=save)
    hours = expected_hours(work, how)
    assert work + checkpoint_hours(work, how) <= hours * (1 + 1e-9)


def test_the_best_interval_is_best() -> None:
    how = Interruptions(0.1, save_minutes=2, restart_minutes=10)
    best = best_checkpoint_hours(2 / 60, 10) * 60
    at = {
        minutes: expected_hours(20, replace(how, checkpoint_minutes=minutes)) for minutes in (best / 2, best, best * 2)
    }
    assert at[best] == min(at.values())
    assert best_checkpoint_hours(0.01, 100) == pytest.approx(math.sqrt(2 * 0.01 * 100), rel=0.02), "Young's first term"


def test_without_interruptions_only_checkpoints_take_time() -> None:
    assert expected_hours(5, Interruptions(save_minutes=0)) == 5
    assert expected_hours(5, Interruptions(checkpoint_minutes=60, save_minutes=6)) == pytest.approx(5.5)


def test_a_run_that_is_always_interrupted_is_refused() -> None:
    with pytest.raises(UserError, match="never ends"):
        cost_of(10, 9, 11, 1, PRICE, how=Interruptions(per_hour=60, checkpoint_minutes=120))


def test_bare_training_is_price_times_hours() -> None:
    """$1.19 x 3 h = $3.57, $2.69 x 8 h = $21.52 and $21.60 x 12 h = $259.20."""
    for usd, hours, total in ((1.19, 3, 3.57), (2.69, 8, 21.52), (21.60 / 8, 12, 259.20)):
        gpus = 8 if total > 200 else 1
        cost = cost_of(hours, hours, hours, gpus, replace(PRICE, usd_per_hour=usd), efforts=BARE, how=STEADY)
        assert cost.usd == pytest.approx(total) and cost.p50 == cost.p90 == pytest.approx(total)


def test_the_breakdown_adds_up_and_everything_assumed_is_said() -> None:
    efforts = Efforts(usd_per_engineer_hour=80, rows_to_label=500, usd_per_labeller_hour=20)
    cost = cost_of(4, 3, 6, 2, PRICE, efforts=efforts)
    assert sum(cost.breakdown.values()) == pytest.approx(cost.usd)
    assert all(usd > 0 for usd in cost.breakdown.values())
    assert cost.low < cost.p50 < cost.usd < cost.p90, "a long tail: the mean is above the middle"
    said = " ".join(cost.assumptions)
    for word in (
        "$2 an hour",
        "3 training runs",
        "10%",
        "interruption",
        "setup",
        "GB kept",
        "500 rows",
        "engineering at $80",
    ):
        assert word in said, word
    assert cost.to_json()["high"] == cost.p90


def test_spot_takes_longer_and_whole_machines_are_paid() -> None:
    spot = replace(PRICE, tier="spot", usd_per_hour=1.0)
    assert cost_of(20, 18, 24, 1, spot).hours > cost_of(20, 18, 24, 1, PRICE).hours > 20
    of_eight = replace(PRICE, gpus=8)
    assert cost_of(4, 4, 4, 1, of_eight, efforts=BARE, how=STEADY).usd == pytest.approx(4 * 2.0 * 8)


@pytest.mark.parametrize(
    ("hours", "low", "high", "efforts"),
    [
        (-1, -1, 1, Efforts()),
        (math.nan, 1, 2, Efforts()),
        (math.inf, 1, math.inf, Efforts()),
        (5, 6, 7, Efforts()),
        (1, 1, 1, Efforts(runs=-1)),
        (1, 1, 1, Efforts(hours_spread=0.5)),
        (1, 1, 1, Efforts(failed_share=2)),
    ],
)
def test_impossible_numbers_are_refused(hours: float, low: float, high: float, efforts: Efforts) -> None:
    with pytest.raises(UserError):
        cost_of(hours, low, high, 1, PRICE, efforts=efforts)


@given(st.floats(0.01, 500), st.floats(1, 3), st.integers(1, 64), st.sampled_from(["on-demand", "spot", "reserved"]))
def test_the_range_is_ordered_and_more_gpus_never_cost_less(hours: float, wide: float, gpus: int, tier: str) -> None:
    price = replace(PRICE, tier=tier)  # type: ignore[arg-type]
    item, more = (cost_of(hours, hours / wide, hours * wide, n, price) for n in (gpus, gpus + 1))
    assert item.low <= item.p50 <= item.p90 and item.usd > 0
    assert more.usd >= item.usd


def test_the_spread_is_that_of_the_given_percentiles() -> None:
    sigma = lognormal_sigma(2, 8)
    assert 4 * math.exp(1.2815515594 * sigma) == pytest.approx(8)
    assert lognormal_sigma(3, 3) == 0


def test_a_spot_machine_that_is_taken_away_takes_longer_and_checkpoints_bound_the_loss() -> None:
    asked = {"model": "llama-3.1-8b", "gpu": "a100-80gb", "tokens": 10**9, "tier": "spot"}
    hours = [plan_machines({**asked, **more})["time"]["hours"] for more in (
        {"interruptions_per_hour": 0.0}, {}, {"interruptions_per_hour": 1.0}, {"interruptions_per_hour": 1.0, "checkpoint_minutes": 60},
    )]  # fmt: skip
    assert hours == sorted(hours) and hours[3] > 1.5 * hours[0]
    with pytest.raises(UserError, match="never ends"):
        plan_machines({**asked, "interruptions_per_hour": 5000, "checkpoint_minutes": 60})


def test_what_stands_around_a_run_is_counted_in_its_plan() -> None:
    asked = {"model": "llama-3.1-8b", "gpu": "a100-80gb", "tokens": 10**6}
    alone = plan_machines(asked)["cost"]
    around = plan_machines(
        {**asked, "runs": 3, "setup_hours": 1.0, "rows_to_label": 600, "usd_per_labeller_hour": 30.0, "engineer_hours": 2.0,
         "usd_per_engineer_hour": 100.0}
    )["cost"]  # fmt: skip
    assert around["breakdown"]["training"] == pytest.approx(3 * alone["breakdown"]["training"])
    assert alone["breakdown"]["setup"] == 0 < around["breakdown"]["setup"]
    # 10 hours of labelling and 2 of engineering: hours times their price, as anyone would reckon
    assert around["breakdown"]["data preparation"] == pytest.approx(300)
    assert around["breakdown"]["engineering"] == pytest.approx(200)
    assert around["low"] < around["p50"] < around["p90"] and around["usd"] == pytest.approx(
        sum(around["breakdown"].values())
    )
    with pytest.raises(UserError, match="setup hours"):
        plan_machines({**asked, "setup_hours": -1.0})


def test_hours_times_their_price_is_what_the_bill_shows_and_every_part_says_how_it_comes_about() -> None:
    cost = cost_of(0.5, 0.4, 0.6, 1, PRICE, efforts=replace(ONE_RUN, engineer_hours=10, usd_per_engineer_hour=50))
    assert cost.breakdown["engineering"] == pytest.approx(500)
    assert cost.explained["engineering"] == "10 hours x $50 an hour"
    assert cost.explained["training"] == "1 run of 30 minutes x $2 an hour"
    assert cost.breakdown["training"] == pytest.approx(1.0)
    lines = cost_lines(PlannedCost(**cost.to_json()))
    shown = [float(line.split()[0].lstrip("$").replace(",", "")) for line in lines if line.startswith("  ")]
    assert sum(shown) == pytest.approx(cost.usd, abs=0.02), (
        "the parts that are printed add up to the total that is printed"
    )
    assert lines[0].startswith("Cost of this run: $501 ") and "expected" in lines[0]


def test_what_several_runs_cost_stands_beside_one_run_and_nowhere_else() -> None:
    item = cost_of(2, 1.5, 2.5, 1, PRICE, efforts=ONE_RUN)
    three = cost_of(2, 1.5, 2.5, 1, PRICE, efforts=replace(ONE_RUN, runs=3, setup_hours=0.5, evaluation_hours=0.5))
    assert item.until_kept == pytest.approx(three.breakdown) and three.until_kept is None
    assert "--runs 3 --setup-hours 0.5 --evaluation-hours 0.5" in cost_lines(PlannedCost(**item.to_json()))[-1]
    assert not any("--runs" in line for line in cost_lines(PlannedCost(**three.to_json())))


@given(
    model=st.sampled_from(["llama-3.2-1b", "llama-3.1-8b", "llama-3.3-70b"]), rows=st.integers(50, 200_000),
    tokens=st.floats(10, 3000), epochs=st.sampled_from([1.0, 3.0]), longest=st.integers(16, 4000),
    gpu=st.sampled_from(["rtx4090", "l40s", "a100-80gb", "h100-sxm", "mi300x"]), tier=st.sampled_from(["on-demand", "spot"]),
    engineer=st.sampled_from([0.0, 50.0]), runs=st.sampled_from([1.0, 3.0]),
)  # fmt: skip
def test_plan_and_advise_name_one_price_with_the_same_parts(
    model: str, rows: int, tokens: float, epochs: float, longest: int, gpu: str, tier: Any, engineer: float, runs: float,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    total = max(int(rows * min(tokens, longest)), 1)
    folder = tmp_path_factory.mktemp("data")
    counted = {"total": total, "mean": total / rows, "p50": longest // 2, "p90": longest, "max": longest}
    (folder / "dataset.json").write_text(json.dumps(manifest_json(splits={"train": {"rows": rows, "tokens": counted}})))
    shared: dict[str, Any] = {"model": model, "epochs": epochs, "gpu": gpu, "tier": tier, "engineer_hours": 10.0,
                              "usd_per_engineer_hour": engineer, "runs": runs}  # fmt: skip
    for method, training in trainings(AdviceInput(**facts_from_results(folder), **shared), load_prices()).items():
        plan = plan_machines({**shared, "method": method, "dataset": str(folder)})
        assert plan["fits"] == training.fits
        if training.cost and training.fits:
            assert plan["cost"] == training.cost.to_json()
            assert sum(training.cost.breakdown.values()) == pytest.approx(training.cost.usd)


def test_without_a_machine_named_both_choose_the_same_one(tmp_path: Path) -> None:
    counted = {"total": 300_000, "mean": 100.0, "p50": 90, "p90": 200, "max": 400}
    (tmp_path / "dataset.json").write_text(
        json.dumps(manifest_json(splits={"train": {"rows": 3000, "tokens": counted}}))
    )
    shared = {"model": "llama-3.1-8b", "epochs": 3.0}
    plan = plan_machines({**shared, "method": "lora", "dataset": str(tmp_path)})
    training = trainings(AdviceInput(**facts_from_results(tmp_path), **shared), load_prices())["lora"]
    assert training.cost and plan["cost"] == training.cost.to_json()
    assert (plan["gpu"], plan["gpus"]) == (training.job.gpu.key, training.job.gpus)
