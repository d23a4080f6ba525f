"""`tuneloop bill`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.cli.console import plain_table, print_json, terminal
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import flag, switch
from tuneloop.core.units import counted

if TYPE_CHECKING:
    from tuneloop.records.bill import Bill


def command(
    invoices: list[str] = argument(
        "[FILE]...", "Invoices: CSV with any usual columns, JSON, or a saved `sky cost-report`.", []
    ),
    folder: str = flag(".", "FOLDER", "Where runs, remote projects and deployments are looked for."),
    sky: bool = switch("Ask SkyPilot for its cost report."),
    rate: str = flag("", "CODE=X,...", "Dollars for one of another currency: EUR=1.08."),
    out: str = flag("", "FILE", "Write it as JSON too.", "-o"),
    *,
    output: Output,
) -> None:
    """Join what runs and deployments were to cost with what was paid.

    A paid line belongs to what it names: a run, a job elsewhere or a deployed service. What names nothing is listed.
    """
    from tuneloop.records.record import write_record
    from tuneloop.scale.bill import rates_of
    from tuneloop.workflows.bill import make_bill

    rates = rates_of([text for text in rate.split(",") if text])
    found = make_bill([Path(file) for file in invoices], [Path(folder)], rates, sky=sky)
    if out:
        write_record(Path(out), found)
    if output.as_json:
        print_json(found.to_json())
    else:
        _show(found)


def _show(found: Bill) -> None:

    from tuneloop.scale.bill import dollars, to_table

    table = plain_table("name", "host", "predicted", "paid", "paid / predicted")
    for row in to_table(found):
        table.add_row(*row)
    terminal().print(table)
    if found.predicted:
        ratio = found.paid / found.predicted
        print(f"\n{dollars(found.paid)} paid for what was to cost {dollars(found.predicted)}: {ratio:,.2f} times")
    if found.unmatched:
        many = counted(len(found.unmatched), "paid line")
        print(
            f"\n{many} ({dollars(found.unmatched_usd)}) {'belongs' if len(found.unmatched) == 1 else 'belong'} to nothing here:"
        )
        for one in found.unmatched[:20]:
            print(f"  {one.place}  {dollars(one.usd)}  {one.text[:90]}\n    {one.why}")
        if len(found.unmatched) > 20:
            print(f"  and {len(found.unmatched) - 20} more: --json lists all")
