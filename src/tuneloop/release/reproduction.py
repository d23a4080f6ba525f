"""Whether a run gave the same again: `reproduction.json`."""

from __future__ import annotations

from typing import ClassVar, Literal

from tuneloop.records.record import Part, Record

Verdict = Literal["identical", "equal", "different", "unchecked"]


class InputFile(Part):
    """A file that the run was made from, and what became of it."""

    name: str
    state: Literal["same", "changed", "missing"]


class EnvironmentChange(Part):
    """Something of the environment that is another one: a package, the processor, the code."""

    name: str
    then: str
    now: str


class Reproduction(Record):
    """`reproduction.json`: a run that was repeated.

    Args:
        run, folder: id of the first run, and where it is.
        second: folder of the second run; empty if it was not done.
        sources, splits: files of the data.
        rows_from: whether the second run used the prepared `splits` or prepared the `sources` again.
        differences: of the environment.
        verdict: `identical` (the same bits), `equal` (losses within `tolerance`), `different`, `unchecked`.
        first_step: at which losses first differ, and by more than the tolerance if the verdict is `different`.
        largest: largest relative difference of a loss.
        losses: how many were compared.
    """

    title: ClassVar[str] = "a reproduction"
    file: ClassVar[str] = "reproduction.json"
    again: ClassVar[str] = "reproduce the run again"

    run: str
    folder: str
    second: str = ""
    sources: list[InputFile] = []
    splits: list[InputFile] = []
    rows_from: Literal["splits", "sources"] = "splits"
    differences: list[EnvironmentChange] = []
    verdict: Verdict = "unchecked"
    first_step: int | None = None
    largest: float = 0.0
    losses: int = 0
    tolerance: float = 0.0
