"""How many steps a run did and when it was validated, kept in `schedule.json`, so that the run can be done again as it was.

With `config.max_minutes` both follow from the machine's speed, before the first step and again while the run goes (`budget.py`).
"""

from __future__ import annotations

from pathlib import Path

from tuneloop.models.sharded import is_first
from tuneloop.records.record import read_record, write_record
from tuneloop.records.run import Schedule, ScheduleChange
from tuneloop.train.checkpoint import State


def schedule_to_follow(out: Path) -> Schedule | None:
    """The schedule of an earlier run, where this one has to keep to it."""
    if not (out / Schedule.file).is_file():
        return None
    found = read_record(Schedule, out)
    return found if found.follow else None


def start_by(schedule: Schedule, state: State) -> None:
    """Plan a run as an earlier one was."""
    state.planned_steps = state.total_steps = schedule.planned_steps
    state.due, state.val_rows = list(schedule.due), schedule.val_rows
    change_by(schedule, state)


def change_by(schedule: Schedule, state: State) -> None:
    """Change what is left of a run where the earlier one changed it."""
    for change in schedule.changes:
        if change.step == state.step:
            state.turn, state.total_steps, state.due = change.turn, change.total_steps, list(change.due)


def keep_plan(out: Path, state: State, planned_due: list[int]) -> None:
    """Write the schedule as it was planned, or cut it back to the checkpoint that a run goes on from."""
    if not is_first():
        return
    known = read_record(Schedule, out) if state.step and (out / Schedule.file).is_file() else None
    if known is None:
        known = Schedule(planned_steps=state.planned_steps, due=planned_due, val_rows=state.val_rows)
    changes = [change for change in known.changes if 0 < change.step <= state.step]
    if state.step == 0 and state.total_steps != state.planned_steps:
        changes.append(_change(state))
    write_record(out / Schedule.file, known.model_copy(update={"changes": changes}))


def keep_change(out: Path, state: State) -> None:
    """Write down what has just been changed."""
    if is_first():
        known = read_record(Schedule, out)
        write_record(out / Schedule.file, known.model_copy(update={"changes": [*known.changes, _change(state)]}))


def _change(state: State) -> ScheduleChange:
    return ScheduleChange(step=state.step, turn=state.turn, total_steps=state.total_steps, due=list(state.due))
