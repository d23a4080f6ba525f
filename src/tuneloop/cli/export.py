"""`tuneloop export`."""

from __future__ import annotations

from pathlib import Path

from tuneloop.cli.console import Result
from tuneloop.cli.parameters import argument, screen
from tuneloop.core.flag import flag, switch
from tuneloop.release import FORMS, WeightOptions

FORMATS = "; ".join(f"{name}: {form.help}" for name, form in FORMS.items())


def command(
    run: str = argument("RUN", "Folder of a finished run."),
    form: str = flag("", "NAME", f"{FORMATS}. Default: merged where possible.", "--format", "-f"),
    out: str = flag("", "FOLDER", "Folder of the artifact; default: artifacts/ID.", "-o"),
    force: bool = switch("Overrule a gate that is not green; the artifact says so."),
    sign: str = flag("", "KEY", "Sign all files with this private key of an elliptic curve, a PEM file."),
    *,
    weights: WeightOptions,
) -> Result:
    """Export a run as a folder that other tools can load.

    A model card comes with it. It is refused while `tuneloop gate` says no, or has judged an earlier evaluation.
    """
    from tuneloop.release import export_run

    with screen("exporting"):
        folder, key = (Path(path) if path else None for path in (out, sign))
        artifact = export_run(Path(run), form, folder, force=force, weights=weights, key=key)
    size = sum(entry["bytes"] for entry in artifact.manifest["files"].values()) / 1e6
    line = f"{artifact.folder}  ({artifact.manifest['format']}, {size:,.0f} MB)"
    return Result({"path": str(artifact.folder), **artifact.manifest}, [line])
