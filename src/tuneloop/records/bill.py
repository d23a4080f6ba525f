"""What was predicted next to what was paid: `bill.json`."""

from __future__ import annotations

from typing import ClassVar

from tuneloop.records.record import Part, Record


class BillLine(Part):
    """A run or deployment with its invoices.

    Args:
        name: of the run, job or service.
        host: where it ran.
        kind: `run`, `job` (a run elsewhere) or `deployment`.
        predicted: dollars that were expected; None: nobody had said.
        paid: dollars of the invoices that name it; None: there are none.
        basis: how the prediction was made.
        invoices: where the paid lines stand, as FILE:LINE.
    """

    name: str
    host: str = ""
    kind: str
    predicted: float | None = None
    paid: float | None = None
    basis: str = ""
    invoices: list[str] = []

    @property
    def ratio(self) -> float | None:
        """Paid over predicted; None where one of them is missing."""
        return self.paid / self.predicted if self.paid is not None and self.predicted else None


class UnmatchedInvoice(Part):
    """A paid line that names nothing that was planned here, and why it was not joined."""

    place: str
    text: str
    usd: float
    why: str


class Bill(Record):
    """`bill.json`: what was predicted and what was paid.

    Args:
        lines: by run and host.
        unmatched: paid lines that belong to none of them.
        predicted, paid: sums of the lines that have both.
        unmatched_usd: sum of the lines that were not joined.
    """

    title: ClassVar[str] = "a bill"
    file: ClassVar[str] = "bill.json"
    again: ClassVar[str] = "run `tuneloop bill` again"

    lines: list[BillLine] = []
    unmatched: list[UnmatchedInvoice] = []
    predicted: float = 0.0
    paid: float = 0.0
    unmatched_usd: float = 0.0
