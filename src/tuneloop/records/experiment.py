"""Experiments: what one could show, what was registered before it, and what it decided."""

from __future__ import annotations

from typing import ClassVar, Literal

from tuneloop.records.record import Number, Part, Record

Outcome = Literal["promote", "roll back", "continue", "futility"]


class PlannedPower(Part):
    """What becomes of experiments with some true effect.

    Args:
        effect: the true difference of the rates.
        days, units: how far the experiments have come; `units` are rated ones.
        promoted, rolled_back: shares of the simulated experiments that have so ended by then.
    """

    effect: float
    days: int
    units: int
    promoted: float
    rolled_back: float


class DenserMeasure(Part):
    """Another way to measure, and what it takes.

    Args:
        name, how: what is measured, and what has to be done for it.
        units_per_day: units with a value, of both arms.
        units, days: until half of the experiments with the effect are promoted; None: not within the simulated time.
    """

    name: str
    how: str
    units_per_day: float
    units: int | None
    days: int | None


class ExperimentPlan(Record):
    """What an experiment with this traffic can show, by simulation.

    Args:
        requests_per_day, rated, base, effect, share, alpha: as they were asked for.
        units_per_day: rated units a day, and `candidate_units_per_day` of the candidate.
        units_one_look: rated units after which one look finds the effect with a chance of 50 %, and `days_one_look`.
        units_50, days_50, units_80, days_80: when half and 80 % of the experiments with the effect have been promoted, looked
            at every `look_every_days`; None: not within `days_simulated`.
        false_promotion: share of experiments without any effect that are promoted in `days_simulated`.
        false_promotion_z: the same by the usual z-test, read as often.
        power: by effect and time.
        denser: other measures with which it is quicker.
        simulations, seed: of the table.
        summary: in words.
    """

    title: ClassVar[str] = "an experiment's plan"
    file: ClassVar[str] = "ab-plan.json"
    again: ClassVar[str] = "run `tuneloop ab plan` again"

    requests_per_day: float
    rated: float
    base: float
    effect: float
    share: float
    alpha: float
    units_per_day: float
    candidate_units_per_day: float
    units_one_look: int
    days_one_look: int
    units_50: int | None
    days_50: int | None
    units_80: int | None
    days_80: int | None
    false_promotion: Number
    false_promotion_z: Number
    days_simulated: int
    look_every_days: int
    power: list[PlannedPower]
    denser: list[DenserMeasure]
    simulations: int
    seed: int
    summary: list[str]
