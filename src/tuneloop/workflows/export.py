"""The export: a run's result with all that is known of it, past the gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import plain
from tuneloop.core.progress import Progress, no_progress
from tuneloop.models.methods import method_named
from tuneloop.records.artifact import SIGNATURE
from tuneloop.records.record import read_record
from tuneloop.records.run import RunManifest
from tuneloop.workflows.report import summary
from tuneloop.workflows.run_context import load_run_recipe
from tuneloop.workflows.task import task_of_run

if TYPE_CHECKING:
    from tuneloop.release.export import Artifact, Origin
    from tuneloop.workflows.recipe import Recipe


def export_run(
    run: Path,
    wanted: str = "",
    out: Path | None = None,
    *,
    force: bool = False,
    key: Path | None = None,
    progress: Progress = no_progress,
    say: Callable[[str], None] = lambda line: None,
) -> Artifact:
    """Export a finished run.

    Args:
        run: its folder.
        wanted: `merged` or `adapter`; empty: what suits its method.
        out: the artifact's folder; default `artifacts/ID`.
        force: overrule a gate that is not green.
        key: private key that signs the artifact.

    Raises:
        UserError: no finished run, the wrong form, a gate that is not green, or whatever else the user can put right.
    """
    from tuneloop.evaluate.gate import release
    from tuneloop.release.bom import BOM
    from tuneloop.release.export import export, form_for
    from tuneloop.release.verify import check_private_key, sign

    if key is not None:
        check_private_key(key)  # before gigabytes are written
    method = finished_run(run).method
    recipe = load_run_recipe(run, [])  # which makes a method of the user's own known
    form = form_for(method_named(method), wanted)
    gate = release(run, force=force)
    say(
        f"gate      {gate['status'] if gate['status'] != 'none' else 'none was asked'}"
        + (", overruled" if gate["forced"] else "")
    )
    artifact = export(
        _origin(run, recipe, gate),
        form,
        out,
        progress=progress,
    )
    if BOM not in artifact.manifest["files"]:
        say(f"bom       {BOM} is not written: pip install 'tuneloop[release]'")
    if artifact.found:
        say("export    already there: the weights are kept, what is said of them is up to date")
    elif artifact.manifest["merge"]:
        merged = artifact.manifest["merge"]
        say(
            f"merge     {merged['tensors']} weights; rounding to the base's dtype took {merged['rounding']:.2%} of the update's length"
        )
    if key is not None:
        sign(artifact.folder, key)
        say(f"signed    {SIGNATURE}: check it with `tuneloop verify {artifact.folder} --key PUBLIC_KEY`")
    return artifact


def _origin(run: Path, recipe: Recipe, gate: Mapping[str, Any]) -> Origin:
    """What an artifact of a run is made of."""
    from tuneloop.release.export import Origin
    from tuneloop.report.table import comparison_as

    known = summary(run)
    return Origin(
        run,
        recipe.name,
        finished_run(run).to_json(),
        gate,
        evaluation=known["eval"],
        dataset=known["dataset"],
        table=comparison_as(known["eval"], "markdown") if known["eval"] else "",
        task=plain(task_of_run(run)),
        config=recipe.train.model_dump(mode="json"),
    )


def finished_run(run: Path) -> RunManifest:
    """The manifest of a finished run.

    Raises:
        UserError: there is no run, or it has not finished training.
    """
    if not (run / "run.json").is_file():
        begun = (run / "config.yaml").is_file()
        raise UserError(
            "This run has not finished training" if begun else "There is no run here (no run.json)",
            where=str(run),
            next_step="run its command again: it goes on"
            if begun
            else "name the folder that `tuneloop run` or `train` printed",
        )
    return read_record(RunManifest, run)
