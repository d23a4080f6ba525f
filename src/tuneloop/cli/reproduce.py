"""`tuneloop reproduce`."""

from __future__ import annotations

from pathlib import Path

import typer

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import flag, switch


def command(
    target: str = argument("TARGET", "A run, an artifact, or NAME@ALIAS."),
    out: str = flag("", "FOLDER", "Folder of the second run; default: reproductions/ID.", "-o"),
    check: bool = switch("Only look whether data and environment are as they were; train nothing."),
    tolerance: float = typer.Option(
        1e-3, "--tolerance", min=0.0, help="Largest relative difference of losses that count as equal.", metavar="X"
    ),
    *,
    output: Output,
) -> None:
    """Train a run again and say whether the same came out.

    Data, settings and steps are those of the first run.

    Exit status 1: the second run departs from the first by more than the tolerance.
    """
    from tuneloop.release.reproduce import reproduce

    with screen(output.quiet, "reproducing") as shown:
        found = reproduce(target, Path(out) if out else None, check=check, tolerance=tolerance)
    if output.json:
        print_json(found.to_json())
    elif found.verdict == "identical":
        print(f"identical: the trained weights have the same bits  ({found.second})")
    elif found.verdict == "equal":
        print(
            f"equal within {found.largest:.2g}: {found.losses} losses, first differing at step {found.first_step}  ({found.second})"
        )
    elif found.verdict == "different":
        where = f"departs at step {found.first_step}" if found.first_step is not None else "has other steps"
        print(f"different: {where}, losses differ by up to {found.largest:.2g}  ({found.second})")
    else:
        print(f"{found.run} can be trained again from its {found.rows_from}")
    if found.verdict == "different":
        raise typer.Exit(1)
