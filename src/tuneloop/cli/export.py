"""`tuneloop export`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import Debug, Json, Quiet, print_json, screen


def command(
    run: str = typer.Argument(..., help="Folder of a finished run.", metavar="RUN"),
    form: str = typer.Option(
        "",
        "--format",
        "-f",
        help="merged: a model by itself; adapter: for its base. Default: merged where the method can be merged.",
    ),
    out: str = typer.Option("", "--out", "-o", help="Folder of the artifact; default: artifacts/ID."),
    force: bool = typer.Option(False, "--force", help="Overrule a gate that is not green; the artifact says so."),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make a folder of a run that others can load, with a model card and where it comes from.

    Refused while `tuneloop gate` says no, or was asked about an earlier evaluation.
    """
    from pathlib import Path

    from tuneloop.workflows.export import export_run

    with screen(quiet) as shown:
        artifact = export_run(
            Path(run), form, Path(out) if out else None, force=force, progress=shown.progress, say=shown.say
        )
    if as_json:
        print_json({"path": str(artifact.folder), **artifact.manifest})
    else:
        size = sum(entry["bytes"] for entry in artifact.manifest["files"].values()) / 1e6
        print(f"{artifact.folder}  ({artifact.manifest['format']}, {size:,.0f} MB)")
