"""What fits into `max_minutes`: steps, validations and their rows, before the first step and again while the run goes.

A run that is not limited has the steps, validations and rows of its settings. In one that is, the validations and the
reference of preferences get at most a share of the time, steps get the rest. The number of steps follows the machine's
speed: where it turns out slower than measured, fewer are done, and the learning rate falls over those that are left, to
the same end; where it turns out faster, more are, on the schedule of a run that was planned with so many.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.machine import is_first
from tuneloop.records.plan import MeasuredMachine
from tuneloop.records.record import read_record, write_record
from tuneloop.records.run import Schedule, ScheduleChange
from tuneloop.training.batches import Step
from tuneloop.training.config import TrainConfig
from tuneloop.training.rows import SplitRows, TrainRow, UnpairedAnswer, reference_tokens, tokens_of

if TYPE_CHECKING:
    from tuneloop.training.checkpoint import State

FORWARD_SPEED = 2.5  # tokens a second without a backward pass over those with one; source in `planning/at_hand.py`
# Most of the time that validations and the reference may take, and rows below which there are fewer validations instead
# of fewer rows: a loss of a handful of rows can't choose between checkpoints.
CHECKING_SHARE, LEAST_ROWS = 0.2, 32
# Of the first validation, which is but a mark to compare with, at most this share of the time.
FIRST_SHARE = CHECKING_SHARE / 2
# A run may take so much of its time longer; steps are added when there is time for so many more, as a share of those
# done and of those left; its speed is known from so many steps, and is that of about the last so much of its time.
LATE, EARLY, KNOWN_FROM, RECENT = 0.02, 0.1, 3, 0.1
OVER = 1.05  # of its time, behind which no step may end as far as is known before it begins
# Steps whose rows get their reference together, and how far from the planned speed it must be to change their number.
REFERENCE_STEPS, SLOWER = 16, 1.3
# A run that its time limits to fewer steps than the first number shows nothing, or to fewer than the second which see
# less than so much of the rows.
FEWEST, FEW, FEW_ROWS = 5, 20, 0.1
BUSY, BUSY_AFTER = 0.5, 15.0  # share of the planned speed below which the machine is busy, after so many seconds


@dataclass(frozen=True)
class RunPlan:
    """What a run does."""

    steps: list[Step]  # all of them
    evaluations: int  # validations after the first one, which comes before the first step
    val_rows: int  # most rows of each
    forward_tokens: int  # read without a backward pass: by validations, the reference, and KTO's reference point

    @property
    def validations(self) -> int:
        """Validations, the one before the first step included."""
        return min(self.evaluations, len(self.steps)) + 1

    @property
    def seen(self) -> int:
        """Different rows of its steps."""
        return rows_seen(self.steps)

    def seen_words(self, rows: int) -> str:
        """What share of so many training rows it sees."""
        return seen_words(self.seen, rows, self.steps[-1].epoch if self.steps else 0.0)

    def least_seconds(self, rows: Sequence[TrainRow], measured: MeasuredMachine) -> float:
        """Seconds of its first steps, so many that they have a meaning, with their validations."""
        tokens = sum(tokens_of(rows[i]) for step in self.steps[:FEW] for i in step.indices)
        return tokens / max(measured.tokens_per_second, 1e-9) / (1 - CHECKING_SHARE) + measured.seconds_spent

    @staticmethod
    def of(steps: list[Step], rows: SplitRows, config: TrainConfig, seed: int, measured: MeasuredMachine) -> RunPlan:
        """All `steps` of a run, or those that fit into `config.max_minutes` with validations and the reference at the
        `measured` speed, as the run will keep it up; without one nothing is left out."""
        train = rows.train

        def plan_of(count: int, evaluations: int, most: int) -> RunPlan:
            val, general = sample(rows.val, most, seed), sample(rows.general, most, seed)
            once = sum(map(_read, val)) + sum(map(tokens_of, general))
            indices = [i for step in steps[:count] for i in step.indices]
            reference = sum(map(reference_tokens, val)) + sum(reference_tokens(train[i]) for i in set(indices))
            mismatched = sum(_read(train[i]) - tokens_of(train[i]) for i in indices)
            validations = min(evaluations, count) + 1
            return RunPlan(steps[:count], evaluations, most, once * validations + reference + mismatched)

        def time_of(plan: RunPlan) -> float:
            """In trained tokens."""
            trained = sum(tokens_of(train[i]) for step in plan.steps for i in step.indices)
            return trained + plan.forward_tokens / FORWARD_SPEED

        whole = plan_of(len(steps), config.evaluations, config.val_rows)
        if config.max_minutes is None or measured.tokens_per_second <= 0:
            return whole
        time = max(config.max_minutes * 60 - measured.seconds_spent, 0.0) * measured.tokens_per_second
        if time_of(whole) <= time:
            return whole
        evaluations, most = _validations(rows, config, time * CHECKING_SHARE * FORWARD_SPEED)
        fits = bisect.bisect_right(  # time grows with the number of steps
            range(1, len(steps) + 1), time, key=lambda count: time_of(plan_of(count, evaluations, most))
        )
        return plan_of(max(fits, 1), evaluations, most)


def _validations(rows: SplitRows, config: TrainConfig, tokens: float) -> tuple[int, int]:
    """How many validations, in addition to the first one, of how many rows take at most so many tokens: rather fewer
    rows, down to `LEAST_ROWS`, than fewer validations; at least one, of few rows."""
    val, general = rows.val, rows.general
    if not val and not general:
        return config.evaluations, config.val_rows
    limit = min(config.val_rows, max(len(val), len(general)))
    row_tokens = sum(map(_read, val)) / max(len(val), 1) + sum(map(tokens_of, general)) / max(len(general), 1)
    reference = sum(map(reference_tokens, val)) / max(len(val), 1)
    most = 0
    for evaluations in range(config.evaluations, 0, -1):
        most = int(tokens / max((evaluations + 1) * row_tokens + reference, 1))
        if most >= min(LEAST_ROWS, limit):
            return evaluations, min(most, limit)
    return 1, min(max(most, 1), limit)


def sample(rows: Sequence[Any], most: int, seed: int) -> list[Any]:
    """All rows, or `most` of them by chance."""
    return list(rows) if len(rows) <= most else random.Random(seed).sample(list(rows), most)


def _read(row: TrainRow) -> int:
    """Tokens of a row in a validation: KTO also asks how far the model has moved on another row's answer."""
    return tokens_of(row) + (len(row.other.ids) if isinstance(row, UnpairedAnswer) else 0)


def step_tokens(step: Step, rows: Sequence[TrainRow]) -> float:
    """What a step computes, in trained tokens."""
    trained = sum(tokens_of(rows[i]) for i in step.indices)
    return trained + (sum(_read(rows[i]) for i in step.indices) - trained) / FORWARD_SPEED


# --- while the run goes


def place_of(state: State, step: float) -> float:
    """A step's place in the planned schedule, in planned steps: the step itself, unless some have been left out."""
    since, position = state.turn
    return position + (step - since) * (state.planned_steps - position) / max(state.total_steps - since, 1)


def is_due(state: State) -> bool:
    """Whether a validation stands behind the step that has just been done."""
    before, now = place_of(state, state.step - 1), place_of(state, state.step)
    return any(before + 1e-6 < due <= now + 1e-6 for due in state.due)


def limit_of(config: TrainConfig, state: State) -> float:
    """Seconds that a run may take; infinite where time is not limited."""
    return math.inf if config.max_minutes is None else max(60 * config.max_minutes - state.spent, 1.0)


def forward_pace(state: State) -> float:
    """Seconds of a token without a backward pass, as far as is known; 0: not."""
    tokens, took = state.recent
    trained = took / tokens if tokens else 1 / state.planned_speed if state.planned_speed else 0.0
    return max(trained / FORWARD_SPEED, state.pace)


def refit_steps(
    state: State, steps: Sequence[Step], rows: Sequence[TrainRow], config: TrainConfig, seconds: float
) -> int:
    """Keep a run to its time: change `total_steps` to what fits at the recent speed, and return the difference.

    Only where that is worth it; no step is left where the next one would end too late. Validations that would take
    much more than their share of the rest are left out; the last one, behind the last step, stays. More steps than
    planned continue on the learning rate of a run planned with them. Rows of preferences got their reference before the
    first step, so their steps are never more than `steps_in_time` found. `steps`: of the whole recipe; `seconds`: of
    the run so far, the same in all its processes.
    """
    if config.max_minutes is None:
        return 0
    limit = limit_of(config, state)
    stepping = max(seconds - state.checking_seconds, 1e-9)
    fading = math.exp(-(stepping - state.timed) / (RECENT * limit))
    tokens, took = state.recent
    state.recent = (fading * tokens + step_tokens(steps[state.step - 1], rows), fading * took + stepping - state.timed)
    state.timed = stepping
    token_seconds = max(state.recent[1], 1e-9) / state.recent[0]  # seconds of a trained token
    ends = (
        state.step < state.total_steps and seconds + step_tokens(steps[state.step], rows) * token_seconds > OVER * limit
    )
    if state.step < min(KNOWN_FROM, state.total_steps) and not ends:
        return 0
    now = place_of(state, state.step)
    past, coming = [d for d in state.due if d <= now + 1e-6], [d for d in state.due if d > now + 1e-6]
    left = limit - seconds
    if coming and len(coming) * state.validation_seconds > 2 * CHECKING_SHARE * left:
        fitting = max(int(CHECKING_SHARE * left / max(state.validation_seconds, 1e-9)), 1)
        coming = coming[:: -math.ceil(len(coming) / fitting)][::-1]
    left += LATE * limit - max(len(coming), 1) * state.validation_seconds
    most = len(steps) if not any(map(reference_tokens, rows[:1])) else state.total_steps
    total, used = state.step, 0.0
    for step in steps[state.step : most]:
        used += step_tokens(step, rows) * token_seconds
        if used > left:
            break
        total += 1
    if state.step < state.total_steps and not ends:
        total = max(total, state.step + 1)
    more, rest = total - state.total_steps, state.total_steps - state.step
    if (0 <= more < max(EARLY * max(rest, state.step), 1)) and len(past) + len(coming) == len(state.due):
        return 0
    if more > 0:
        now = min(now, state.planned_steps * state.step / total)
        past, coming = [min(d, int(now)) for d in past], coming or [state.planned_steps]
    state.turn, state.total_steps, state.due = (state.step, now), total, past + coming
    return more


def steps_in_time(
    state: State,
    steps: Sequence[Step],
    rows: Sequence[TrainRow],
    config: TrainConfig,
    seconds: float,  # of the run so far
    token_seconds: float,  # seconds of a token in the reference
    referenced: int,  # steps whose rows have their reference
) -> int:
    """Steps that fit by the speed of the first references; as many as before where that is about the planned one."""
    if config.max_minutes is None or 1 / SLOWER < token_seconds * FORWARD_SPEED * state.planned_speed < SLOWER:
        return state.total_steps
    left = (1 - CHECKING_SHARE) * (limit_of(config, state) - seconds)
    seen = {i for step in steps[:referenced] for i in step.indices}
    for number, step in enumerate(steps):
        fresh = {*step.indices} - seen
        seen |= fresh
        left -= token_seconds * (
            FORWARD_SPEED * step_tokens(step, rows) + sum(reference_tokens(rows[i]) for i in fresh)
        )
        if left < 0:
            return max(number, 1)
    return len(steps)


def is_too_little(steps: int, whole: int, seen: float) -> bool:
    """Whether nothing can come of so many of the `whole` steps, which see a share `seen` of the rows."""
    return steps < min(FEWEST, whole) or (steps < min(FEW, whole) and seen < FEW_ROWS)


def speed_words(share: float) -> str:
    """A share of a speed in words: `a tenth of`."""
    names = {2: "half", 3: "a third of", 4: "a quarter of", 5: "a fifth of", 10: "a tenth of"}
    nearest = min(names, key=lambda n: abs(math.log(share * n)))
    close = abs(math.log(share * nearest)) < 0.1
    return names[nearest] if close else f"{max(100 * share, 1):.0f} % of"


def seen_words(seen: int, rows: int, epochs: float) -> str:
    """What share of the training rows a run sees: `1.6 % of the rows`, `all rows 3 times`."""
    if seen < rows:
        share = 100 * seen / rows
        return f"{share:.1f} % of the rows" if share < 10 else f"{min(share, 99):.0f} % of the rows"
    return "all rows once" if epochs <= 1 else f"all rows {epochs:.3g} times"


def rows_seen(steps: Sequence[Step], skipped: Collection[int] = ()) -> int:
    """Different rows of some steps, without those that were skipped (numbered from 1)."""
    return len({i for number, step in enumerate(steps, 1) if number not in skipped for i in step.indices})


def schedule_to_follow(out: Path) -> Schedule | None:
    """The schedule of an earlier run, where this one has to keep to it."""
    if not (out / Schedule.file).is_file():
        return None
    schedule = read_record(Schedule, out)
    return schedule if schedule.follow else None


def start_by(schedule: Schedule, state: State) -> None:
    """Plan a run as an earlier one was."""
    state.planned_steps = state.total_steps = schedule.planned_steps
    state.due, state.val_rows, state.read_rows = list(schedule.due), schedule.val_rows, schedule.read_rows
    change_by(schedule, state)


def change_by(schedule: Schedule, state: State) -> None:
    """Change what is left of a run where the earlier one changed it."""
    for change in schedule.changes:
        if change.step == state.step:
            state.turn, state.total_steps, state.due = change.turn, change.total_steps, list(change.due)


def keep_plan(out: Path, state: State, planned_due: list[int]) -> None:
    """Write the schedule as it was planned, or cut it back to the checkpoint that a run continues from."""
    if not is_first():
        return
    schedule = read_record(Schedule, out) if state.step and (out / Schedule.file).is_file() else None
    if schedule is None:
        schedule = Schedule(planned_steps=state.planned_steps, due=planned_due, val_rows=state.val_rows)
    changes = [change for change in schedule.changes if 0 < change.step <= state.step]
    if state.step == 0 and state.total_steps != state.planned_steps:
        changes.append(_change(state))
    write_record(out / Schedule.file, schedule.model_copy(update={"changes": changes}))


def keep_change(out: Path, state: State) -> None:
    """Write down what has just been changed, of the steps or, before the first one, of the validations' rows."""
    if is_first():
        schedule = read_record(Schedule, out)
        changes = [*schedule.changes, *([_change(state)] if state.step else [])]
        changed = schedule.model_copy(update={"changes": changes, "read_rows": state.read_rows})
        write_record(out / Schedule.file, changed)


def _change(state: State) -> ScheduleChange:
    return ScheduleChange(step=state.step, turn=state.turn, total_steps=state.total_steps, due=list(state.due))
