"""`tuneloop ab`: experiments with a candidate on live traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tuneloop.cli.console import plain_table, print_json
from tuneloop.cli.parameters import Output, given
from tuneloop.improve.config import ExperimentPlanOptions

if TYPE_CHECKING:
    from tuneloop.records.experiment import PlannedPower


def plan(*, options: ExperimentPlanOptions, output: Output) -> None:
    """Say what an experiment with this traffic can show, before anything is spent."""
    from tuneloop.improve.experiment_plan import plan_experiment

    found = plan_experiment(given(options))
    if output.json:
        print_json(found)
        return
    from rich.console import Console

    console = Console(highlight=False)
    for line in found.summary:
        console.print(line, markup=False)
    console.print("\nSimulated experiments that have ended by then", _power_table(found.power), sep="\n")
    table = plain_table("denser measure", "a day", "units", "days", "what to do")
    for way in found.denser:
        units = "-" if way.units is None else f"{way.units:,}"
        days = "-" if way.days is None else f"{way.days:,}"
        table.add_row(way.name, f"{way.units_per_day:,.0f}", units, days, way.how)
    console.print("\nUntil half of the candidates with that effect are promoted by another measure", table, sep="\n")


def _power_table(rows: list[PlannedPower]) -> Any:
    """A line for each true effect and a column for each time."""
    days = sorted({row.days for row in rows})
    table = plain_table("true effect", *(f"day {day:,}" for day in days))
    for effect in sorted({row.effect for row in rows}):
        of = {row.days: row for row in rows if row.effect == effect}
        if effect <= 0:
            table.add_row(f"{100 * effect:+.3g} points, rolled back", *(f"{of[day].rolled_back:.1%}" for day in days))
        table.add_row(f"{100 * effect:+.3g} points, promoted", *(f"{of[day].promoted:.1%}" for day in days))
    return table


commands = {"plan": plan}
