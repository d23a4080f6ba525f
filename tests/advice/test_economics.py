"""When tuning pays: figures that can be checked by hand, and no saving without a baseline."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.advice.economics import (
    DAYS_A_MONTH,
    HOURS_A_MONTH,
    Alternative,
    ModelFootprint,
    QueryTraffic,
    ServingGpu,
    ServingMachine,
    TokenRate,
    break_even,
    compare_options,
    monthly_bill,
    net_saving,
    sensitivity,
    serving_tokens_per_second,
    tornado,
    usd_per_million_tokens,
)
from tuneloop.core.errors import UserError

DIME = TokenRate(0.10, 0.10)


def option(name: str = "a", prompt: float = 500, answer: float = 0, **more: float) -> Alternative:
    return Alternative(name, prompt, answer, DIME, **more)  # type: ignore[arg-type]


def test_price_of_a_million_tokens_by_hand() -> None:
    """$3.60 an hour at 1,000 tokens/s is $1 for 3.6M tokens when always busy, twice that when half idle."""
    assert usd_per_million_tokens(3.6, 1000, 1.0) == pytest.approx(1.0)
    assert usd_per_million_tokens(3.6, 1000, 0.5) == pytest.approx(2.0)


@pytest.mark.parametrize(("rate", "share"), [(0, 1), (-1, 1), (math.nan, 1), (10, 0), (10, 1.5), (10, math.nan)])
def test_an_impossible_throughput_or_utilisation_is_refused(rate: float, share: float) -> None:
    with pytest.raises(UserError):
        usd_per_million_tokens(1, rate, share)


def test_a_million_requests_of_ten_tokens_cost_thirty_dollars_a_month() -> None:
    month = option(prompt=10).usd_per_month(1_000_000)
    assert month == pytest.approx(1.0 * DAYS_A_MONTH) and 30 < month < 31


def test_break_even_by_hand() -> None:
    tuned = option("tuned", prompt=100, upfront_usd=40)
    found = break_even(option(), tuned, 10_000)
    assert found.usd_per_query_saved == pytest.approx(400 * 0.10 / 1e6)
    assert found.queries == pytest.approx(40 / (400 * 0.10 / 1e6))
    assert found.days == pytest.approx(100)


def test_what_is_paid_monthly_can_eat_the_saving() -> None:
    tuned = option("tuned", prompt=100, upfront_usd=40, monthly_usd=1000)
    found = break_even(option(), tuned, 10_000)
    assert found.days is None and "monthly" in found.why and found.usd_per_month_saved < 0
    dearer = break_even(option(prompt=100), option("tuned", prompt=200, upfront_usd=1), 10)
    assert dearer.queries is None and "no less" in dearer.why


@pytest.mark.parametrize(("prompt", "volume"), [(0, 100), (500, 0), (500, None)])
def test_no_saving_is_named_without_baseline_prompt_and_volume(prompt: float, volume: float | None) -> None:
    with pytest.raises(UserError, match="baseline prompt and a volume"):
        break_even(option(prompt=prompt), option("tuned", prompt=10), volume)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_impossible_figures_are_refused(bad: float) -> None:
    with pytest.raises(UserError, match="Not a possible value"):
        break_even(option(), option("tuned", prompt=bad), 10)


@given(
    st.floats(1, 5000), st.floats(0, 5000), st.floats(0, 1e5), st.floats(0, 1e4), st.floats(1, 1e7)
)  # fmt: skip
def test_at_break_even_both_have_cost_the_same(
    before: float, after: float, upfront: float, monthly: float, volume: float
) -> None:
    a, b = option(prompt=before), option("b", prompt=after, upfront_usd=upfront, monthly_usd=monthly)
    found = break_even(a, b, volume)
    if found.days is None:
        assert b.usd_per_month(volume) >= a.usd_per_month(volume)
        return
    months = found.days / DAYS_A_MONTH
    if upfront and months < 1e9:
        spent = months * a.usd_per_month(volume), b.upfront_usd + months * b.usd_per_month(volume)
        assert spent[0] == pytest.approx(spent[1], rel=1e-6)


def test_quality_stays_beside_the_money() -> None:
    rows = compare_options([option(quality=0.8), option("b", prompt=50, quality=0.2, upfront_usd=5)], 1000, 12)
    assert [row.option.quality for row in rows] == [0.8, 0.2]
    assert rows[0].against is None and rows[1].against is not None
    assert rows[1].total_usd == pytest.approx(5 + 12 * rows[1].usd_per_month)


def test_the_tornado_is_sorted_by_what_moves_the_outcome() -> None:
    swings = tornado(lambda v: 10 * v["a"] + v["b"], {"a": 1, "b": 1}, {"b": (0, 2), "a": (0, 2)})
    assert [(s.name, s.at_low, s.at_high) for s in swings] == [("a", 1, 21), ("b", 10, 12)]


def test_sensitivity_agrees_with_the_table_at_the_given_values() -> None:
    a, b = option(answer=20), option("b", prompt=60, answer=20, upfront_usd=30, monthly_usd=2)
    swings = sensitivity(a, b, 20_000, 12, (20, 60))
    row = compare_options([a, b], 20_000, 12)[1]
    assert row.against is not None
    net = 12 * row.against.usd_per_month_saved - 30
    volume = next(s for s in swings if s.name == "queries a day")
    assert volume.at_low < net < volume.at_high
    upfront = next(s for s in swings if s.name == "upfront dollars")
    assert upfront.at_low == pytest.approx(net + 10) and upfront.at_high == pytest.approx(net - 30)
    values = {"queries a day": 20_000.0, "baseline prompt tokens": 500, "tuned prompt tokens": 60, "answer tokens": 20,
              "price of tokens": 1, "upfront dollars": 30, "monthly dollars": 2}  # fmt: skip
    assert net_saving(values, a, b, 12) == pytest.approx(net)


LLAMA_8B = ModelFootprint(8.03e9, 2, 2 * 32 * 8 * 128 * 2)
A100_40 = ServingGpu(40e9, 1.555e12, 312e12)


def test_serving_speed_is_near_published_runs() -> None:
    """vLLM, Llama 3.1 8B in bf16 on an A100 40 GB, one request of 1,024 + 128 tokens: 75 tokens/s written (johnmusgrave.com)."""
    speed = serving_tokens_per_second(LLAMA_8B, A100_40, 1024, 128, together=1)
    written = speed * 128 / (1024 + 128)
    assert 55 < written < 85


@pytest.mark.parametrize(("together", "measured"), [(4, 210), (8, 377), (16, 644), (32, 975), (48, 1190)])
def test_serving_speed_under_load_is_near_published_runs(together: int, measured: float) -> None:
    """vLLM, Mistral 7B in bf16 on an RTX 4090, 256 + 128 tokens, Poisson arrivals: tokens/s written (mushfiqrahman.dev/?p=1668)."""
    mistral, card = ModelFootprint(7.25e9, 2, 2 * 32 * 8 * 128 * 2), ServingGpu(23.52 * 1024**3, 1.008e12, 165.2e12)
    written = serving_tokens_per_second(mistral, card, 256, 128, together) / 3
    assert 0.8 * measured < written < 1.2 * measured


def test_serving_is_faster_together_and_impossible_where_the_model_does_not_fit() -> None:
    item, many = (serving_tokens_per_second(LLAMA_8B, A100_40, 500, 100, together=n) for n in (1, 64))
    assert many > 5 * item
    assert serving_tokens_per_second(LLAMA_8B, ServingGpu(16e9, 3e11, 65e12), 500, 100) == 0


MACHINE, SPOT = ServingMachine(2.0, 1000), ServingMachine(1.0, 1000)


def test_monthly_bills_by_hand() -> None:
    traffic = QueryTraffic(86_400, 90, 10, peak=3, batch_share=0.5, headroom=0.5)  # 100 tokens/s on the average
    alone = monthly_bill("real-time", traffic, MACHINE, SPOT)
    assert (
        alone.replicas == 1
        and alone.usd == pytest.approx(2 * HOURS_A_MONTH)
        and alone.utilisation == pytest.approx(0.1)
    )
    batch = monthly_bill("batch", traffic, MACHINE, SPOT)
    assert batch.replicas == 0 and batch.usd == pytest.approx(HOURS_A_MONTH * 0.1 / 0.9)
    hybrid = monthly_bill("hybrid", traffic, MACHINE, SPOT)
    assert hybrid.replicas == 1 and hybrid.batch_hours == 0, "what may wait fills the idle machine"


@given(st.floats(1, 1e8), st.floats(1, 8000), st.floats(1, 2000), st.floats(1, 10), st.floats(0, 1))
def test_bills_hold_all_traffic_and_batch_is_never_dearer_than_real_time(
    queries: float, prompt: float, answer: float, peak: float, share: float
) -> None:
    traffic = QueryTraffic(queries, prompt, answer, peak=peak, batch_share=share)
    bills = {mode: monthly_bill(mode, traffic, MACHINE, MACHINE) for mode in ("batch", "real-time", "hybrid")}  # type: ignore[arg-type]
    for bill in bills.values():
        able = bill.replicas * MACHINE.tokens_per_second * HOURS_A_MONTH * 3600
        able += bill.batch_hours * 3600 * MACHINE.tokens_per_second
        assert able >= traffic.tokens_per_month * 0.999999
        assert 0 <= bill.utilisation <= 1 and bill.usd > 0
    assert bills["batch"].usd <= bills["real-time"].usd * 1.0001
