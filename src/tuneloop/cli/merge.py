"""`tuneloop merge`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output
from tuneloop.core.flag import flag


def command(
    adapters: list[str] = typer.Argument(
        ..., metavar="ADAPTER...", help="Runs, artifacts, NAME@ALIAS or folders in PEFT's layout, all of one base."
    ),
    out: str = flag(..., "RUN", "Folder of the merged run.", "-o"),
    method: str = flag(
        "svd", "NAME", "How: linear, cat, svd, ties, dare-ties, della, tsv, core-space or knots; see docs/merge.md."
    ),
    weights: str = flag("", "X,Y,...", "A weight for each adapter; default: 1 for each."),
    rank: int = flag(0, "N", "Rank of the result; default: what the method says.", least=0),
    density: float = flag(0.5, "X", "Share of entries that methods keep which drop some."),
    base: str = flag("", "MODEL", "The base model, where an adapter doesn't name it."),
    *,
    output: Output,
) -> None:
    """Merge adapters of one base into one adapter, in the folder of a run.

    What is merged is the product of each adapter's matrices, so adapters may differ in rank, scale and modules.
    """
    from pathlib import Path

    from tuneloop.combine.merge import MergeSettings
    from tuneloop.workflows.merge import merge_runs, open_experts

    settings = MergeSettings(method, _numbers(weights), rank, density)
    with screen(output.quiet, "merging") as shown:
        experts = open_experts(adapters, base, say=shown.say)
        record = merge_runs(experts, settings, Path(out), progress=shown.progress, say=shown.say)
    if output.json:
        print_json({"path": out, **record.to_json()})
    else:
        print(f"{out}  ({record.method}, rank {record.rank}, {record.lost:.1%} of the length lost)")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise typer.BadParameter(
            f"--weights takes numbers with commas between them, as in 1,0.5: not {text!r}"
        ) from None
