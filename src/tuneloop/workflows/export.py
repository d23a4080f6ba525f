"""The export: a run's result with all that is known of it, past the gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import plain
from tuneloop.core.progress import Progress, no_progress
from tuneloop.inference.llamacpp import need_llamacpp
from tuneloop.models.methods import method_named
from tuneloop.models.trained import trained_folder
from tuneloop.records.artifact import SIGNATURE
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.records.record import read_record
from tuneloop.records.run import RunManifest
from tuneloop.workflows.evaluate import attach_trained
from tuneloop.workflows.report import manifest_of_run
from tuneloop.workflows.run_context import RunContext, dataset_of, load_run_recipe
from tuneloop.workflows.task import task_of_run

if TYPE_CHECKING:
    import numpy as np

    from tuneloop.release.export import Artifact, Origin
    from tuneloop.release.gguf_artifact import GgufSettings
    from tuneloop.workflows.recipe import Recipe


@dataclass(frozen=True)
class WeightsWanted:
    """How the weights of a GGUF file are wanted.

    Args:
        quant: their type; empty: f16, and f32 of an adapter.
        importance: training rows that show which weights matter when they are quantised; 0: all count alike.
    """

    quant: str = ""
    importance: int = 0


def export_run(
    run: Path,
    wanted: str = "",
    out: Path | None = None,
    *,
    weights: WeightsWanted | None = None,
    force: bool = False,
    key: Path | None = None,
    progress: Progress = no_progress,
    say: Callable[[str], None] = lambda line: None,
) -> Artifact:
    """Export a finished run.

    Args:
        run: its folder.
        wanted: `merged`, `adapter`, `gguf` or `gguf-lora`; empty: what suits its method.
        out: the artifact's folder; default `artifacts/ID`.
        weights: of a GGUF file.
        force: overrule a gate that is not green.
        key: private key that signs the artifact.

    Raises:
        UserError: no finished run, the wrong form, a gate that is not green, or whatever else the user can put right.
    """
    from tuneloop.evaluate.gate import release
    from tuneloop.release.export import export, form_for
    from tuneloop.release.verify import check_private_key, sign

    if key is not None:
        check_private_key(key)  # before gigabytes are written
    method = finished_run(run).method
    recipe = load_run_recipe(run, [])  # which makes a method of the user's own known
    form = form_for(method_named(method), wanted)
    gguf = _gguf_settings(run, form, weights or WeightsWanted(), progress)
    gate = release(run, force=force)
    say(
        f"gate      {gate['status'] if gate['status'] != 'none' else 'none was asked'}"
        + (", overruled" if gate["forced"] else "")
    )
    artifact = export(
        _origin(run, recipe, gate),
        form,
        out,
        gguf=gguf,
        progress=progress,
    )
    _tell(artifact, say)
    if key is not None:
        sign(artifact.folder, key)
        say(f"signed    {SIGNATURE}: check it with `tuneloop verify {artifact.folder} --key PUBLIC_KEY`")
    return artifact


def _tell(artifact: Artifact, say: Callable[[str], None]) -> None:
    """Say what has become of the weights."""
    from tuneloop.release.bom import BOM

    if BOM not in artifact.manifest["files"]:
        say(f"bom       {BOM} is not written: pip install 'tuneloop[release]'")
    if artifact.found:
        say("export    already there: the weights are kept, what is said of them is up to date")
    elif artifact.manifest["merge"]:
        merged = artifact.manifest["merge"]
        say(
            f"merge     {merged['tensors']} weights; rounding to the base's dtype took {merged['rounding']:.2%} of the update's length"
        )
    if quantisation := artifact.manifest.get("quantisation"):
        counted = ", ".join(f"{count} {kind}" for kind, count in quantisation["tensor_types"].items())
        say(f"tensors   {counted}")


def _origin(run: Path, recipe: Recipe, gate: Mapping[str, Any]) -> Origin:
    """What an artifact of a run is made of."""
    from tuneloop.release.export import Origin
    from tuneloop.report.table import comparison_as

    file = run / EvaluationManifest.file
    evaluation = read_record(EvaluationManifest, file) if file.is_file() else None
    return Origin(
        run,
        recipe.name,
        finished_run(run),
        gate,
        evaluation=evaluation,
        dataset=manifest_of_run(run),
        table=comparison_as(evaluation, "markdown") if evaluation else "",
        task=plain(task_of_run(run)),
        config=recipe.train.model_dump(mode="json"),
    )


def _gguf_settings(run: Path, form: str, wanted: WeightsWanted, progress: Progress) -> GgufSettings | None:
    """How a GGUF file is to be written; None for other forms.

    Raises:
        UserError: settings that are only for GGUF, or a type of weights that can't be had.
    """
    from tuneloop.release.export import AS_GGUF
    from tuneloop.release.gguf_artifact import GgufSettings
    from tuneloop.release.gguf_lora import check_expressible
    from tuneloop.release.quantise import QUANTS

    quant, importance = wanted.quant, wanted.importance
    if form not in AS_GGUF:
        if quant or importance:
            raise UserError(
                "Only GGUF files have a type of weights to choose",
                where="--quant" if quant else "--importance",
                next_step="add --format gguf",
            )
        return None
    if form == "gguf-lora":
        check_expressible(trained_folder(run))
    if not importance:
        settings = GgufSettings(form, quant)
    else:
        job = RunContext(load_run_recipe(run, []), run, progress)
        dataset = dataset_of(job, True, "")
        rows = dataset.train[:importance]

        def computed() -> Mapping[str, np.ndarray[Any, Any]]:
            from tuneloop.release.quantise import importance_of

            attach_trained(job)
            return importance_of(
                job.model, [job.template.render(row.messages, row.tools).ids for row in rows], progress
            )

        settings = GgufSettings(form, quant, computed, f"{dataset.manifest['hash']}, {len(rows)}")
    if settings.quant in QUANTS:
        need_llamacpp()
    return settings


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
