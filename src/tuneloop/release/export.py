"""The export: a run's result with all that is known of it, past the gate."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import plain
from tuneloop.core.ui import say
from tuneloop.core.units import counted
from tuneloop.evaluation import FEWEST_SHARED
from tuneloop.evaluation.gate import gate_for_release
from tuneloop.inference.llamacpp import installed, need_llamacpp
from tuneloop.models import trained_folder
from tuneloop.models.chat import MOST_ROWS, first_difference, load_template
from tuneloop.models.files import read_tokenizer
from tuneloop.models.methods import layout_of, method_named
from tuneloop.pipeline import RunContext
from tuneloop.pipeline.answers import task_of_run
from tuneloop.recipe import CONFIG, load_recipe
from tuneloop.records.artifact import EVALS, SIGNATURE, ArtifactManifest, SameAnswers
from tuneloop.records.dataset import manifest_of_run
from tuneloop.records.evaluation import EvaluationManifest, GateResult
from tuneloop.records.record import read_record
from tuneloop.records.run import RunManifest
from tuneloop.registry import check_private_key, sign
from tuneloop.release.artifact import Artifact, Measure, Origin, export, form_for
from tuneloop.release.bom import BOM
from tuneloop.release.compressed import is_compressed, need_compressed_tensors
from tuneloop.release.formats import AS_THEY_ARE, FORMS, OTHER_FORMS, WeightOptions
from tuneloop.release.gguf.artifact import GgufSettings
from tuneloop.release.gguf.lora import check_expressible
from tuneloop.release.measure import KL_ROWS, acceptable, kl_of_folder, measure_artifact, measure_lora, rows_to_measure
from tuneloop.release.quantise import QUANTS, importance_of
from tuneloop.report import comparison_as

if TYPE_CHECKING:
    import numpy as np

AUTO = "auto"
# What `auto` tries, the smallest first.
TRIED = ("q2_k", "q3_k_m", "iq4_xs", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16")


def export_run(
    run: Path,
    form: str = "",
    out: Path | None = None,
    *,
    weights: WeightOptions | None = None,
    force: bool = False,
    key: Path | None = None,
) -> Artifact:
    """Export a finished run.

    Args:
        form: `merged`, `adapter`, `gguf`, `gguf-lora`, of an encoder `encoder` or `onnx`; empty: what suits its method.
        out: the artifact's folder; default `artifacts/ID`.
        force: overrule a gate that is not green.
        key: private key that signs the artifact.

    Raises:
        UserError: no finished run, the wrong form, a gate that is not green, or whatever else the user can put right.
    """
    weights = weights or WeightOptions()
    if key is not None:
        check_private_key(key)  # before gigabytes are written
    manifest = finished_run(run)
    recipe = load_recipe(run / CONFIG)  # which makes a method of the user's own known
    form = _form_of(manifest, run, form)
    automatic = weights.quant.lower() == AUTO
    compressed = _compressed(form, weights)
    gguf = None if automatic or compressed else _gguf_settings(run, form, weights)
    measure = _measure(RunContext(recipe, run), form, weights)
    if automatic:
        _check_automatic(form, weights, measure)
    gate = gate_for_release(run, force=force)
    verdict = gate["status"] if gate["status"] != "none" else "none has judged it"
    say(f"gate      {verdict}{', overruled' if gate['forced'] else ''}")
    evaluation = read_record(EvaluationManifest, run) if (run / EvaluationManifest.file).is_file() else None
    origin = Origin(
        run,
        recipe.name,
        manifest,
        gate,
        evaluation=evaluation,
        dataset=manifest_of_run(run),
        table=comparison_as(evaluation, "markdown") if evaluation else "",
        task=plain(task_of_run(run)),
        config=recipe.train.model_dump(mode="json"),
    )
    if automatic and measure is not None:  # `_check_automatic` has seen to that
        artifact = _smallest(origin, weights, out, measure)
    else:
        artifact = export(origin, form, out, gguf=gguf, compressed=compressed, measure=measure)
    _prove_template(RunContext(recipe, run), artifact)
    artifact = _with_own_gate(artifact, origin, form, gguf, force)
    _say_result(artifact)
    if key is not None:
        sign(artifact.folder, key)
        say(f"signed    {SIGNATURE}: check it with `tuneloop models verify {artifact.folder} --key PUBLIC_KEY`")
    return artifact


def _form_of(manifest: RunManifest, run: Path, form: str) -> str:
    """The form that is exported: runs of an encoder and prompts have forms of their own."""
    layout = layout_of(trained_folder(run))
    if layout not in OTHER_FORMS:
        return form_for(method_named(manifest.method), form)
    title, forms = OTHER_FORMS[layout]
    if form and form not in forms:
        message = f"This run is {title}, which has no form {form!r}"
        raise UserError(message, where="--format", next_step=f"choose {' or '.join(forms)}")
    return form or forms[0]


def _prove_template(job: RunContext, artifact: Artifact) -> None:
    """See that what was exported renders the run's rows as they were trained, a GGUF file by what is in it.

    Raises:
        UserError: it does not, and is removed.
    """
    if artifact.manifest["format"] in AS_THEY_ARE:  # which have no template
        return
    try:
        dataset = job.dataset()
    except UserError:  # the run's data are elsewhere: nothing to render
        return
    rows = list(dataset.test) or list(dataset.val)
    whole = artifact.manifest["format"] == "gguf"  # a file of an adapter alone holds no tokenizer
    places = sorted(artifact.folder.glob("*.gguf")) if whole else [artifact.folder]
    for path in places:
        if not whole and not (path / "tokenizer.json").is_file():
            return
        with tempfile.TemporaryDirectory() as scratch:
            if whole:
                read_tokenizer(path, Path(scratch))
            exported = load_template(Path(scratch) if whole else path)
        if (row := first_difference(job.template, exported, rows)) is not None:
            message = f"The export renders row {row.id} otherwise than it was trained: its answers would be others"
            shutil.rmtree(artifact.folder)
            raise UserError(message, where=str(path), next_step="report this; export in another form meanwhile")
    say(f"template  {counted(min(len(rows), MOST_ROWS), 'row')} rendered as they were trained")


def _measure(job: RunContext, form: str, weights: WeightOptions) -> Measure | None:
    """What measures a GGUF file, or how far a model in fewer bits is from the run; None (and a line) if it can't be."""
    compressed = _compressed(form, weights)
    if not FORMS[form].weights and not compressed:
        return None
    if compressed:
        sample = rows_to_measure(job, min(weights.measure, KL_ROWS))
    else:
        sample = rows_to_measure(job, weights.measure) if installed() else "llama.cpp is not installed"
    if isinstance(sample, str):
        say(f"measure   not measured: {sample}")
        return None
    if compressed:
        return lambda folder, id_: kl_of_folder(sample, folder)
    if (rows := len(sample.rows)) < FEWEST_SHARED:
        more = rows < len(sample.dataset.test)
        step = f"give --measure {FEWEST_SHARED} or more" if more else "the data set has no more"
        needs = f"`gate` and `compare` need at least {FEWEST_SHARED} shared ones"
        say(f"warn: measured on {counted(rows, 'test row')}, and {needs}: {step}")
    measure = measure_artifact if form == "gguf" else measure_lora
    return lambda file, id_: measure(sample, file, file.stem.rpartition("-")[2], id_)


def _compressed(form: str, weights: WeightOptions) -> str:
    """The type of weights of a merged model for vLLM; empty: it keeps its base's."""
    if form != "merged" or not is_compressed(weights.quant):
        return ""
    need_compressed_tensors()
    if weights.importance:
        raise UserError("Only GGUF files are rounded by importance", where="--importance", next_step="leave it out")
    return weights.quant.lower()


def _with_own_gate(artifact: Artifact, origin: Origin, form: str, gguf: GgufSettings | None, force: bool) -> Artifact:
    """The artifact with the gate's verdict on its own metrics, where there is one: it counts instead of the run's."""
    folder = origin.run / EVALS / str(artifact.manifest["id"])
    if not (folder / GateResult.file).is_file():
        return artifact
    gate = gate_for_release(folder, force=force)
    if plain(gate) == artifact.manifest["gate"] or gguf is None:
        return artifact
    return export(replace(origin, gate=gate), form, artifact.folder, gguf=gguf)


def _check_automatic(form: str, weights: WeightOptions, measure: Measure | None) -> None:
    """Refuse to choose a type of weights that can't be measured."""
    need_llamacpp()
    if form != "gguf" or measure is None:
        reason, step = f"{form} has none", "add --format gguf"
        if form == "gguf":
            reason, step = "nothing can be measured here", "name a type such as q8_0"
        message = f"The smallest type of weights is found by measuring each, and {reason}"
        raise UserError(message, where="--quant auto", next_step=step)
    if weights.max_loss < 0 or (weights.max_gb is not None and weights.max_gb <= 0):
        message = "A limit below 0 is not possible"
        raise UserError(message, where="--max-loss, --max-gb", next_step="such as 0.01 and 5")
    if weights.importance:
        step = "name a type, or leave --importance out"
        raise UserError("auto weighs all inputs alike", where="--importance", next_step=step)
    GgufSettings(form, TRIED[-1])


def _smallest(origin: Origin, weights: WeightOptions, out: Path | None, measure: Measure) -> Artifact:
    """The smallest file that is not worse than allowed; the others that were tried are taken away again."""
    tried = []
    for quant in TRIED:
        artifact = export(origin, "gguf", out, gguf=GgufSettings("gguf", quant), measure=measure)
        manifest = ArtifactManifest.model_validate(artifact.manifest)
        assert manifest.evaluation is not None and manifest.cost is not None
        gb = manifest.cost.file_bytes / 1e9
        fits = weights.max_gb is None or gb <= weights.max_gb
        good = fits and acceptable(manifest.evaluation, weights.max_loss)
        say(f"tried     {quant}: {gb:.3g} GB; {manifest.evaluation.words[0]}")
        if good:
            return artifact
        tried.append(quant)
        if not artifact.existed:
            shutil.rmtree(artifact.folder)
        if not fits:
            break  # the next ones are larger
    within = f" within {weights.max_gb:g} GB" if weights.max_gb is not None else ""
    message = f"None of {', '.join(tried)} loses at most {weights.max_loss:g}{within}"
    raise UserError(message, where="--quant auto", next_step="allow more with --max-loss or --max-gb")


def _say_result(artifact: Artifact) -> None:
    if BOM not in artifact.manifest["files"]:
        say(f"bom       {BOM} is not written: pip install 'tuneloop[release]'")
    if artifact.existed:
        say("export    already there: the weights are kept, what is said of them is up to date")
    elif artifact.manifest["merge"]:
        merged = artifact.manifest["merge"]
        rounding = f"rounding to the base's dtype took {merged['rounding']:.2%} of the update's length"
        say(f"merge     {merged['tensors']} weights; {rounding}")
    if quantisation := artifact.manifest.get("quantisation"):
        say(f"tensors   {', '.join(f'{count} {kind}' for kind, count in quantisation['tensor_types'].items())}")
        if not artifact.manifest.get("measured") and quantisation.get("kl") is not None:
            say(f"measured  KL {quantisation['kl']:.2g} a token from the run; its answers were not measured")
    if quantisation and artifact.manifest.get("measured"):
        same, cost = artifact.manifest["same_answers"], artifact.manifest["cost"]
        say(f"measured  {artifact.manifest['evaluation']['words'][0]}")
        say(
            f"measured  the run's answer on {same['share']:.1%} of rows, KL {quantisation['kl']:.2g} a token; "
            f"{cost['file_bytes'] / 1e6:,.0f} MB, reads {cost['prompt_tokens_per_second']:,.0f} and writes "
            f"{cost['answer_tokens_per_second']:,.0f} tokens/s"
        )
        if text := SameAnswers.model_validate(same).others:
            say(f"measured {text}")


def _gguf_settings(run: Path, form: str, weights: WeightOptions) -> GgufSettings | None:
    quant, importance = weights.quant, weights.importance
    if not FORMS[form].weights:
        if quant or importance:
            message = "Only GGUF files and merged models for vLLM (fp8, w4a16) have a type of weights to choose"
            step = "add --format gguf, or choose --format merged --quant fp8"
            raise UserError(message, where="--quant" if quant else "--importance", next_step=step)
        return None
    if form == "gguf-lora":
        check_expressible(trained_folder(run))
    settings = GgufSettings(form, quant)
    if importance:
        job = RunContext.of_run(run)
        dataset = job.dataset()
        rows = dataset.train[:importance]

        def computed() -> Mapping[str, np.ndarray[Any, Any]]:
            job.attach_trained()
            return importance_of(job.model, [job.template.render(row.messages, row.tools).ids for row in rows])

        settings = GgufSettings(form, quant, computed, f"{dataset.manifest['hash']}, {len(rows)}")
    if settings.quant in QUANTS:
        need_llamacpp()
    return settings


def finished_run(run: Path) -> RunManifest:
    """The manifest of a finished run.

    Raises:
        UserError: there is no run, or it has not finished training.
    """
    if (run / "run.json").is_file():
        return read_record(RunManifest, run)
    if (run / "config.yaml").is_file():
        message, step = "This run has not finished training", "run its command again: it continues"
    else:
        message, step = "There is no run here (no run.json)", "name the folder that `tuneloop run` or `train` printed"
    raise UserError(message, where=str(run), next_step=step)
