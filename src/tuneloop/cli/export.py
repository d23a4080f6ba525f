"""`tuneloop export`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output


def command(
    run: str = typer.Argument(..., help="Folder of a finished run.", metavar="RUN"),
    form: str = typer.Option(
        "",
        "--format",
        "-f",
        help="merged: a model by itself; adapter: for its base. Default: merged where the method can be merged.",
        metavar="NAME",
    ),
    out: str = typer.Option("", "--out", "-o", help="Folder of the artifact; default: artifacts/ID.", metavar="FOLDER"),
    force: bool = typer.Option(False, "--force", help="Overrule a gate that is not green; the artifact says so."),
    sign: str = typer.Option(
        "", "--sign", help="Sign all files with this private key of an elliptic curve, a PEM file.", metavar="KEY"
    ),
    *,
    output: Output,
) -> None:
    """Export a run as a folder that other tools can load, with a model card.

    It is refused while `tuneloop gate` says no, or has judged an earlier evaluation.
    """
    from pathlib import Path

    from tuneloop.workflows.export import export_run

    with screen(output.quiet, "exporting") as shown:
        artifact = export_run(
            Path(run),
            form,
            Path(out) if out else None,
            force=force,
            key=Path(sign) if sign else None,
            progress=shown.progress,
            say=shown.say,
        )
    if output.json:
        print_json({"path": str(artifact.folder), **artifact.manifest})
    else:
        size = sum(entry["bytes"] for entry in artifact.manifest["files"].values()) / 1e6
        print(f"{artifact.folder}  ({artifact.manifest['format']}, {size:,.0f} MB)")
