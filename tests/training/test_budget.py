"""A run keeps to its time: what is planned, and what becomes of it when the machine is slower than it was."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from by_day import by_day
from train_helpers import changed, halted, make_rows, run

import tuneloop.training.loop as loop
from patience import slowness
from tuneloop.core.files import read_jsonl
from tuneloop.models.chat.template import Rendered
from tuneloop.models.load import load_model
from tuneloop.planning.at_hand import VALIDATION_SPEED
from tuneloop.records.plan import MeasuredMachine
from tuneloop.training import answers, loss
from tuneloop.training.batches import Step
from tuneloop.training.budget import (
    FORWARD_SPEED,
    RunPlan,
    is_due,
    is_too_little,
    place_of,
    refit_steps,
    rows_seen,
    seen_words,
    speed_words,
    step_tokens,
    steps_in_time,
)
from tuneloop.training.checkpoint import State
from tuneloop.training.config import TrainConfig
from tuneloop.training.loop import TrainingJob, learning_rate, scheduled_rate, train
from tuneloop.training.rows import PreferencePair, SplitRows, UnpairedAnswer, tokens_of

ROW = Rendered([1] * 10, [0] + [1] * 9)
ROWS = [ROW] * 400
STEPS = [Step(((i,),), (i + 1) / 400) for i in range(400)]


def planned(minutes: float | None, *, speed: float = 2.0, val: int = 0, rows: Any = ROWS, **more: Any) -> RunPlan:
    config = TrainConfig(max_minutes=minutes, **{"evaluations": 4, "val_rows": 100, **more})
    return RunPlan.of(STEPS, SplitRows(rows, rows[:val]), config, 0, MeasuredMachine(tokens_per_second=speed))


def seconds_of(plan: RunPlan, rows: Any = ROWS, speed: float = 2.0) -> float:
    return sum(step_tokens(step, rows) for step in plan.steps) / speed + checks_of(plan, rows, speed)


def checks_of(plan: RunPlan, rows: Any = ROWS, speed: float = 2.0) -> float:
    return plan.val_rows * 10 * plan.validations / FORWARD_SPEED / speed


def test_the_planner_and_the_loop_expect_the_same_of_passes_without_gradients() -> None:
    assert FORWARD_SPEED == VALIDATION_SPEED


def test_a_time_limit_cuts_the_plan_to_what_fits() -> None:
    assert len(planned(1.0).steps) == 12  # 120 tokens
    assert len(planned(0.001).steps) == 1
    assert planned(1.0, speed=1e9).steps == planned(None).steps == planned(1.0, speed=0.0).steps == STEPS


@pytest.mark.parametrize("minutes", [4.0, 5.0, 10.0, 20.0])
def test_validations_are_within_the_time_and_take_a_fifth_of_it_at_most(minutes: float) -> None:
    plan = planned(minutes, val=100)
    assert minutes * 60 * 0.9 < seconds_of(plan) <= minutes * 60
    assert checks_of(plan) <= 0.2 * minutes * 60
    assert plan.evaluations >= 1 and plan.val_rows >= 8


def test_with_less_time_there_are_first_fewer_rows_and_then_fewer_validations() -> None:
    whole, half, little = (planned(minutes, val=100) for minutes in (51.0, 30.0, 4.0))
    assert (whole.evaluations, whole.val_rows) == (4, 100)
    assert half.evaluations == 4 and 32 <= half.val_rows < 100
    assert little.evaluations < 4


def test_where_all_fits_nothing_is_left_out() -> None:
    plan = planned(50.5, val=100)
    assert (len(plan.steps), plan.evaluations, plan.val_rows) == (400, 4, 100)


@pytest.mark.parametrize("make", [lambda: PreferencePair(ROW, ROW), lambda: UnpairedAnswer(ROW, ROW, True)])
def test_the_reference_of_preferences_is_within_the_time(make: Any) -> None:
    rows = [make() for _ in range(400)]
    plan = planned(10.0, rows=rows)
    trained = sum(20 if isinstance(rows[i], PreferencePair) else 10 for step in plan.steps for i in step.indices)
    beside = {PreferencePair: 20, UnpairedAnswer: 30}[type(rows[0])] * len(
        plan.steps
    )  # the reference, and KTO's reference point
    took = (trained + beside / FORWARD_SPEED) / 2.0
    assert plan.forward_tokens == beside
    assert 0.9 * 600 < took <= 600


@pytest.mark.parametrize("slower, least, most", [(1.0, 400, 400), (3.0, 90, 140), (30.0, 1, 10)])
def test_a_reference_that_takes_too_long_leaves_out_steps(slower: float, least: int, most: int) -> None:
    rows = [
        PreferencePair(ROW, ROW)
    ] * 400  # a step trains on 20 tokens, the reference reads them: 8 of them besides 20
    state = state_of()
    state.planned_speed = 20.0
    config = TrainConfig(max_minutes=600 / 60)
    item = slower / 20.0 / FORWARD_SPEED
    assert least <= steps_in_time(state, STEPS, rows, config, 16 * 20 * item, item, referenced=16) <= most


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_slow_reference_is_within_the_time(
    loss: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.with_references

    def slow(model: Any, rows: Any) -> Any:
        time.sleep(0.01 * len(rows))
        return real(model, rows)

    monkeypatch.setattr(loop, "with_references", slow)
    monkeypatch.setattr(loop.budget, "REFERENCE_STEPS", 4)
    # How far it gets depends on the machine; a small rate learns nothing that a monitor would stop.
    limited = changed(loss=loss, max_minutes=3 / 60, epochs=1, val_rows=8, learning_rate=1e-5)
    result, _ = run(tiny_llama, tmp_path, limited, rows=800, measured=MeasuredMachine(tokens_per_second=1e5))
    assert result.planned_steps == 200  # their reference alone would take 8 seconds
    assert result.steps < 150 and result.seconds < 6 * slowness()


# --- while it runs


def state_of(total: int = 400, evaluations: int = 4) -> State:
    due = [round(total * (i + 1) / evaluations) for i in range(evaluations)]
    return State("key", planned_steps=total, total_steps=total, due=due)


def simulate(
    seconds_a_step: Any,
    minutes: float,
    check: float = 0.0,
    planned_steps: int = 400,
    evaluations: int = 4,
    state: State | None = None,
) -> tuple[State, float, int]:
    """A run whose step number n takes `seconds_a_step(n)`, with validations of `check` seconds: its state, seconds, validations."""
    state, config = state or state_of(planned_steps, evaluations), TrainConfig(max_minutes=minutes)
    state.checking_seconds = state.validation_seconds = seconds = check
    validations = 1
    while state.step < state.total_steps:
        seconds += seconds_a_step(state.step)
        state.step += 1
        if is_due(state):
            seconds, validations = seconds + check, validations + 1
            state.checking_seconds += check
        refit_steps(state, STEPS, ROWS, config, seconds)
    return state, seconds, validations


def test_a_run_that_keeps_its_speed_does_what_was_planned() -> None:
    state, _, validations = simulate(lambda n: 1.0, 400 / 60 + 20 / 60, check=4.0)
    assert (state.step, validations, state.turn) == (400, 5, (0, 0.0))


@pytest.mark.parametrize("slower", [1.3, 3.0, 10.0])
@pytest.mark.parametrize("from_step", [0, 200])
def test_a_machine_that_becomes_slower_still_ends_near_its_time(slower: float, from_step: int) -> None:
    minutes = 420 / 60
    state, seconds, validations = simulate(lambda n: slower if n >= from_step else 1.0, minutes, check=4.0)
    assert state.step < 400
    assert 0.8 * 420 < seconds < 1.1 * 420
    assert validations >= 2 and is_due(state), "the last step is validated"


@pytest.mark.parametrize("planned_steps", [1, 2, 9, 40])
@pytest.mark.parametrize("disturbed", [0, 1, 5])
def test_a_machine_that_becomes_faster_than_planned_uses_its_time(planned_steps: int, disturbed: int) -> None:
    """Planned at a tenth of the speed, as in a busy moment that may last for some steps more."""
    minutes = 350 / 60
    state, seconds, _ = simulate(lambda n: 10.0 if n < disturbed else 1.0, minutes, 2.0, planned_steps, evaluations=1)
    assert 0.85 * 350 < seconds < 1.05 * 350
    assert state.step > 0.85 * (350 - 10 * disturbed)
    assert is_due(state), "the last step is validated"


def test_steps_are_added_until_the_recipe_is_done_and_no_more() -> None:
    state, seconds, _ = simulate(lambda n: 1.0, 10_000 / 60, planned_steps=9)
    assert state.step == state.total_steps == len(STEPS) and seconds < 0.1 * 10_000


@pytest.mark.parametrize("planned_steps", [1, 9])
def test_steps_are_added_before_the_learning_rate_has_fallen(planned_steps: int) -> None:
    config = TrainConfig(learning_rate=1.0, warmup=0.0, schedule="linear", max_minutes=350 / 60)
    rates, state = [], state_of(planned_steps, 1)

    def seconds_a_step(n: int) -> float:
        rates.append(scheduled_rate(state, config))
        return 1.0

    simulate(seconds_a_step, 350 / 60, state=state)
    assert min(rates[:100]) > 0.65, "a schedule of nine steps is over after nine"
    assert rates[-1] < 0.05 and max(rates) <= 1.0


def test_rows_with_a_reference_get_no_steps_beyond_those_that_have_one() -> None:
    rows, state = [PreferencePair(ROW, ROW)] * 400, state_of(9, 1)
    state.step = 5
    assert refit_steps(state, STEPS, rows, TrainConfig(max_minutes=10.0), 5.0) == 0


def test_validations_that_turn_out_slow_become_fewer() -> None:
    _, seconds, validations = simulate(lambda n: 1.0, 420 / 60, check=60.0)
    assert validations < 5
    assert seconds < 1.15 * 420


def test_a_disturbance_that_passes_costs_few_steps() -> None:
    state, seconds, _ = simulate(lambda n: 10.0 if n < 10 else 1.0, 420 / 60)
    assert state.step > 250
    assert 0.9 * 420 < seconds < 1.05 * 420


def test_the_learning_rate_falls_to_its_end_over_the_steps_that_are_left() -> None:
    config = TrainConfig(learning_rate=1.0, warmup=0.0, max_minutes=1.0)
    state = state_of(100)
    before = [learning_rate(place_of(state, n), 100, config) for n in range(100)]
    state.turn, state.total_steps = (50, 50.0), 60
    after = [learning_rate(place_of(state, n), 100, config) for n in range(50, 60)]
    assert after[0] == before[50]
    assert after[-1] == pytest.approx(0.05, abs=0.001) and after == sorted(after, reverse=True)


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes 50 ms."""
    real = loop.optimizer_step

    def slow(*arguments: Any) -> Any:
        time.sleep(0.05)
        return real(*arguments)

    monkeypatch.setattr(loop, "optimizer_step", slow)


def test_a_run_whose_speed_was_overestimated_ends_in_time_and_says_so(
    tiny_llama: Path, tmp_path: Path, slow_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.budget, "BUSY_AFTER", 0.1)
    result, _ = run(
        tiny_llama, tmp_path, changed(max_minutes=4 / 60, epochs=100), measured=MeasuredMachine(tokens_per_second=1e6)
    )
    assert result.planned_steps == 600
    assert 3 <= result.steps == result.total_steps < 90
    assert result.seconds < 6 * slowness()
    assert result.best_step > 0, "the last step was validated"
    records = read_jsonl(tmp_path / "metrics.jsonl")
    said = {record["event"]: record["message"] for record in records if "event" in record}
    assert "is something else running on it?" in said["busy"]
    assert "fit into" in said["steps"]
    rates = [record["learning_rate"] for record in records if "loss" in record]
    assert rates[-1] < 0.6 * max(rates), "the learning rate has fallen, as far as a busy machine let it"
    assert result.speed_share is not None and result.speed_share < 0.1


def test_a_run_in_the_library_measures_its_speed_where_none_is_given(
    tiny_llama: Path, tmp_path: Path, slow_steps: None
) -> None:
    began = time.monotonic()
    result, _ = run(tiny_llama, tmp_path, changed(max_minutes=1 / 60, epochs=400))
    assert time.monotonic() - began < 10
    assert result.planned_tokens_per_second > 0
    assert result.steps < result.planned_steps or result.planned_steps < 2400


def test_a_resumed_run_goes_on_with_the_steps_and_validations_it_had(tiny_llama: Path, tmp_path: Path) -> None:
    limited = changed(max_minutes=1.0, val_rows=4, checkpoint_seconds=0.0)
    halted(tiny_llama, tmp_path, 3, limited, measured=MeasuredMachine(tokens_per_second=30.0))
    result, _ = run(tiny_llama, tmp_path, limited, measured=MeasuredMachine(tokens_per_second=9.0))
    whole, _ = run(tiny_llama, tmp_path / "whole", limited, measured=MeasuredMachine(tokens_per_second=30.0))
    assert result.resumed_at == 2
    assert (result.planned_steps, result.total_steps) == (whole.planned_steps, whole.total_steps)
    assert (result.adapter_hash, result.best_val_loss) == (whole.adapter_hash, whole.best_val_loss)


# --- by a clock that computing turns on


@dataclass
class Clock:
    """Seconds that pass only where something is computed: a token of a step, of a validation, of an answer."""

    step: Callable[[float], float]  # seconds a token, by the time that it is
    validation: Callable[[float], float]
    answer: float = 0.0  # seconds a token that is written
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clocked(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, list[Any]]]:
    """A run of a minute on a machine that was measured at 150 tokens a second: what it came to, and its records."""

    def clocked_run(clock: Clock, **more: Any) -> tuple[Any, list[Any]]:
        real_loss, real_value = loss.mean_loss, loss.LOSSES["supervised"].value

        def value(batch: Any) -> Any:
            if torch.is_grad_enabled():
                clock.now += clock.step(clock.now) * sum(map(tokens_of, batch.rows))
            return real_value(batch)

        def mean_loss(model: Any, rows: Any, *arguments: Any, **named: Any) -> Any:
            clock.now += clock.validation(clock.now) * sum(map(tokens_of, rows))
            return real_loss(model, rows, *arguments, **named)

        def generate(model: Any, prompts: Any, *, max_new_tokens: int, watch: Any) -> Any:
            for _ in range(max_new_tokens):
                clock.now += clock.answer
                watch()
            return [SimpleNamespace(text="red") for _ in prompts]

        monkeypatch.setattr("time.monotonic", clock)
        monkeypatch.setitem(loss.LOSSES, "supervised", replace(loss.LOSSES["supervised"], value=value))
        monkeypatch.setattr(loss, "mean_loss", mean_loss)
        monkeypatch.setattr(answers, "generate", generate)
        config = changed(**{"max_minutes": 1.0, "epochs": 100, "learning_rate": 1e-5, **more})
        result, _ = run(tiny_llama, tmp_path, config, measured=MeasuredMachine(tokens_per_second=150.0))
        return result, read_jsonl(tmp_path / "metrics.jsonl")

    return clocked_run


def busy_from(second: float, factor: float, until: float = math.inf) -> Callable[[float], float]:
    """Seconds a token of a step, where 150 tokens take one on a quiet machine."""
    return lambda now: 1 / 150 * (factor if second <= now < until else 1.0)


WEATHER = {
    "quiet": busy_from(math.inf, 1.0),
    "twice as slow": busy_from(0.0, 2.0),
    "five times": busy_from(0.0, 5.0),
    "busy half-way": busy_from(30.0, 20.0),
    "busy near the end": busy_from(55.0, 20.0),
    "busy at first": busy_from(0.0, 20.0, until=20.0),
}


@pytest.mark.parametrize(
    "validation, answer", [(0.4, 0.0), (4.0, 2.0), (50.0, 0.0)], ids=["usual", "slow", "very slow"]
)
@pytest.mark.parametrize("weather", by_day(WEATHER.values(), 2), ids=WEATHER)
def test_whatever_turns_slow_a_run_ends_within_a_tenth_of_its_time(
    clocked: Callable[..., Any], weather: Callable[[float], float], validation: float, answer: float
) -> None:
    """A validation takes 0.4 of a step's time a token, as expected, or much more; a row can't be divided."""
    result, _ = clocked(Clock(weather, lambda now: validation * weather(now), answer), micro_batch_tokens=64)
    row = 64 * max(weather(now) for now in range(60)) * max(validation, 1.0)
    assert result.seconds < 66.0 + row
    assert result.steps >= 1


def test_a_validation_before_the_first_step_reads_the_rows_that_it_has_time_for_and_later_ones_the_same(
    clocked: Callable[..., Any],
) -> None:
    result, records = clocked(Clock(busy_from(math.inf, 1.0), lambda now: 0.04), evaluations=2)
    read = next(record["message"] for record in records if record.get("event") == "validation")
    assert re.search(r"validations read \d rows?, not 8", read)
    assert math.isfinite(result.first_val_loss) and result.best_step > 0
    validations = [record["seconds"] for record in records if "val_loss" in record]
    assert len(validations) >= 2 and validations[0] < 0.1 * 60


def test_a_validation_that_cannot_end_does_not_begin(clocked: Callable[..., Any]) -> None:
    asked: list[float] = []
    result, _ = clocked(Clock(busy_from(0.0, 1.0), lambda now: asked.append(now) or 2.0))  # type: ignore[func-returns-value]
    assert len(asked) == 1, "the first row took 80 seconds: no other is begun"
    assert result.steps == 1 and result.best_step == 0


def test_an_answer_is_given_up_between_its_tokens(clocked: Callable[..., Any]) -> None:
    clock = Clock(busy_from(math.inf, 1.0), lambda now: 1e-6, answer=1.0)
    result, records = clocked(clock)
    first = next(record["seconds"] for record in records if "val_loss" in record)
    assert first <= 0.02 * 60 + 1.0, "a fiftieth of the time, and the token that had begun"
    assert result.seconds < 66.0


# --- in words


def test_the_share_of_the_data_is_said_in_words(tiny_llama: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_llama), dtype="float32")
    rows = make_rows(model.template, 24)
    result = train(model, rows, [], changed(epochs=0.5), tmp_path, job=TrainingJob(data_id="d"))
    assert (result.rows, result.rows_seen, result.seen) == (24, 12, "50 % of the rows")
    assert seen_words(16, 1000, 0.016) == "1.6 % of the rows"
    assert seen_words(999, 1000, 0.999) == "99 % of the rows"
    assert seen_words(24, 24, 1.0) == "all rows once" and seen_words(24, 24, 2.0) == "all rows 2 times"
    assert rows_seen(STEPS[:10], skipped=[3]) == 9


@pytest.mark.parametrize(
    "share,text", [(0.1, "a tenth of"), (0.5, "half"), (0.34, "a third of"), (0.07, "7 % of"), (0.001, "1 % of")]
)
def test_a_share_of_the_speed_is_said_in_words(share: float, text: str) -> None:
    assert speed_words(share) == text


@pytest.mark.parametrize(
    "steps, whole, seen, little",
    [(1, 72, 0.02, True), (4, 72, 0.5, True), (10, 72, 0.05, True), (10, 72, 0.2, False), (20, 9000, 0.01, False), (3, 3, 1.0, False)],
)  # fmt: skip
def test_a_run_that_time_cuts_to_a_few_steps_can_come_to_nothing(
    steps: int, whole: int, seen: float, little: bool
) -> None:
    assert is_too_little(steps, whole, seen) == little
