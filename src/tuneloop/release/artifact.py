"""A finished run as a folder that others can load, which tells where it comes from: `artifacts/ID/`.

The folder is written under another name and is renamed when it is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneloop import __version__
from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.files import (
    content_hash,
    lock_folder,
    plain,
    read_json,
    replacing,
    sha256_file,
    sync_folder,
    user_errors_of_the_disk,
    write_json,
    write_text,
)
from tuneloop.models.load import weight_files
from tuneloop.models.methods import Method
from tuneloop.models.names import resolve
from tuneloop.models.template import load_template
from tuneloop.models.trained import OWN, trained_folder
from tuneloop.records.artifact import (
    SIGNATURE,
    ArtifactCost,
    ArtifactFile,
    ArtifactManifest,
    EvaluationExcerpt,
    SameAnswers,
)
from tuneloop.records.dataset import DatasetManifest
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.records.record import as_record
from tuneloop.records.run import RunManifest
from tuneloop.release.bom import BOM, Materials, bill_of_materials
from tuneloop.release.card import measured_table, model_card
from tuneloop.release.compressed import SCHEMES, write_compressed
from tuneloop.release.formats import FORMS
from tuneloop.release.gguf.artifact import GgufSettings, GgufSource, write_gguf_model
from tuneloop.release.gguf.convert import FLOAT_TYPES, About
from tuneloop.release.licences import hub_name, licence_of
from tuneloop.release.merged_weights import merge
from tuneloop.release.quantise import QUANTS
from tuneloop.release.tuned_weights import open_tuned

LAYOUT = 3  # of the files; another one makes other ids
MEASURED = (
    "measured",
    "same_answers",
    "cost",
    "structured",
)  # what measuring a GGUF file leaves in the manifest, next to `evaluation`
MANIFEST, CARD, NOTICE = "artifact.json", "README.md", "NOTICE"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json", OWN)


@dataclass(frozen=True)
class Origin:
    """What an artifact is made of, and what is known of it.

    Args:
        run: the run's folder.
        name: of the job; ids begin with it.
        manifest: `run.json`.
        gate: `status`, `suite` and `forced`, as the gate's `release` gives them.
        evaluation: `eval.json`, if the run was evaluated.
        dataset: `dataset.json`, if it is at hand.
        table: the evaluation's figures as a Markdown table, for the card.
        task: what the model was trained to answer, as it stands in the run's `tuneloop.json`; None where nobody knows.
        config: the settings of its training.
    """

    run: Path
    name: str
    manifest: RunManifest
    gate: Mapping[str, Any]
    evaluation: EvaluationManifest | None = None
    dataset: DatasetManifest | None = None
    table: str = ""
    task: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """How it was trained."""
        return self.manifest.method


@dataclass(frozen=True)
class ArtifactFigures:
    """What was measured of a GGUF file.

    Args:
        evaluation: its figures, and their comparison with the run's.
        same_answers: the share of rows that get the run's answer.
        kl: mean divergence of the next token's distribution from the run's, in nats.
        cost: what answering takes.
        structured: the share of answers that stay the same where a server holds them to the run's JSON Schema; None: it has none.
    """

    evaluation: EvaluationExcerpt
    same_answers: SameAnswers
    kl: float
    cost: ArtifactCost
    structured: SameAnswers | None = None


# Of a GGUF file, or of the folder of a model in fewer bits (then the divergence alone), and the artifact's id.
Measure = Callable[[Path, str], "ArtifactFigures | float"]


@dataclass(frozen=True)
class Artifact:
    """Where an artifact is, its manifest, and whether its weights were there already."""

    folder: Path
    manifest: dict[str, Any] = field(repr=False)
    found: bool = False


def form_for(method: Method, wanted: str) -> str:
    """The form that a run is exported in: the one that is asked for, else the method's usual one.

    Raises:
        UserError: there is no such form, or not of this method.
    """
    form = wanted or method.forms[0]
    if form not in FORMS:
        step = did_you_mean(form, FORMS, f"choose one of {', '.join(FORMS)}")
        types = {"gguf": (*FLOAT_TYPES, *QUANTS), "merged": tuple(SCHEMES)}
        for name, known in types.items():
            if form.lower() in known:
                step = f"it is a type of weights: --format {name} --quant {form.lower()}"
        raise UserError(f"No such format {form!r}", where="--format", next_step=step)
    weights = FORMS[form].weights or form
    if weights not in method.forms:
        raise UserError(
            method.no_form.get(weights, f"A run of {method.title} has no such form"),
            where=f"--format {form}",
            next_step=f"export it with --format {method.forms[0]}",
        )
    return form


def export(
    origin: Origin,
    form: str,
    out: Path | None = None,
    *,
    gguf: GgufSettings | None = None,
    compressed: str = "",
    measure: Measure | None = None,
) -> Artifact:
    """Write the artifact, or find it written; then only what is said of it is brought up to date.

    Args:
        form: see `form_for`.
        out: the artifact's folder; default `artifacts/ID`.
        gguf: of a GGUF file: its type of weights and what else it takes.
        compressed: of a merged model for vLLM: its type of weights, see `compressed.SCHEMES`; empty: as the base's.
        measure: asks a GGUF file of a whole model; what was measured of the same file before is kept.

    Returns:
        Where it is. The id depends on the trained weights with their scales, the base, the form and the type of weights alone.

    Raises:
        UserError: no result in the run, another base model, a folder with something else in it, a full disk.
    """
    trained = trained_folder(origin.run)
    gguf = (gguf or GgufSettings(form)) if FORMS[form].weights else None
    id_ = _id(origin, form, trained, gguf, compressed)
    folder = out or Path("artifacts") / id_
    known = _known(folder, id_)
    if known is not None and _is_whole(folder, known):
        kept: dict[str, Any] = {
            key: known[key] for key in ("created", "tuneloop", "merge", "quantisation", *MEASURED) if key in known
        }
        if known.get("measured"):
            kept["measured_evaluation"] = known["evaluation"]
        elif measure is not None and not (compressed and known["quantisation"].get("kl") is not None):
            kept |= _measured(measure, folder, id_, kept)
        return Artifact(folder, _describe(origin, form, id_, folder, kept), found=True)
    partial = folder.parent / f".{folder.name}.partial"
    with lock_folder(partial):
        try:
            _empty(partial)
            made = _write(origin, form, id_, partial, _Weights(gguf, compressed, measure))
            manifest = _describe(origin, form, id_, partial, made)
            _take_place(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # gigabytes that nobody could use
            raise
    return Artifact(folder, manifest)


@dataclass(frozen=True)
class _Weights:
    """How the weights are wanted; see `export`."""

    gguf: GgufSettings | None
    compressed: str
    measure: Measure | None


def _write(origin: Origin, form: str, id_: str, out: Path, wanted: _Weights) -> dict[str, Any]:
    """Write all files but what is said of them; returns what belongs into the manifest."""
    trained = trained_folder(origin.run)
    made: dict[str, Any] = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "tuneloop": __version__, "merge": None
    }  # fmt: skip
    if wanted.gguf:
        source = _gguf_source(origin, id_, trained)
        made["quantisation"] = write_gguf_model(source, wanted.gguf, out).model_dump(mode="json")
    elif wanted.compressed:
        made["quantisation"] = _write_compressed(origin, wanted.compressed, trained, out)
    else:
        return made | {"merge": _write_model(origin, form, trained, out)}
    return made | _measured(wanted.measure, out, id_, made) if wanted.measure is not None else made


def _measured(measure: Measure, folder: Path, id_: str, made: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of the manifest that measuring the GGUF file in a folder gives."""
    files = list(folder.glob("*.gguf"))
    found = measure(files[0] if files else folder, id_)
    if isinstance(found, float):  # of a model for vLLM the divergence alone
        return {"quantisation": {**made["quantisation"], "kl": found}}
    return {
        "measured": True,
        "measured_evaluation": found.evaluation.model_dump(mode="json"),
        "same_answers": found.same_answers.model_dump(mode="json"),
        "cost": found.cost.model_dump(mode="json"),
        "structured": found.structured.model_dump(mode="json") if found.structured else None,
        "quantisation": {**made["quantisation"], "kl": found.kl},
    }


def _gguf_source(origin: Origin, id_: str, trained: Path) -> GgufSource:
    model = origin.manifest.model
    licence = licence_of(model)
    about = About(id_, hub_name(model), licence.id if licence else "")
    return GgufSource(origin.name, model, trained, origin.task, about)


def _id(origin: Origin, form: str, trained: Path, gguf: GgufSettings | None, compressed: str) -> str:
    """The artifact's id: by the content of the trained weights, not by where they are or when they are exported."""
    is_adapter = (trained / "adapter_config.json").is_file()
    files = [trained / "adapter_model.safetensors"] if is_adapter else weight_files(trained)
    with user_errors_of_the_disk(trained):
        weights = [sha256_file(file) for file in files]
    settings = (
        read_json(trained / "adapter_config.json") if is_adapter else {}
    )  # scales: the same matrices, another model
    settings = {key: value for key, value in settings.items() if key not in ("base_model_name_or_path", "revision")}
    more: list[Any] = [[gguf.quant, gguf.rows]] if gguf else [compressed] if compressed else []
    identity = content_hash([LAYOUT, form, origin.method, weights, settings, origin.manifest.model_fingerprint, *more])
    return "-".join([origin.name, form, *([gguf.quant] if gguf else [compressed] if compressed else []), identity[:12]])


def _known(folder: Path, id_: str) -> dict[str, Any] | None:
    """The manifest of this artifact if it was exported before.

    Raises:
        UserError: something else is in the folder.
    """
    other = ""
    if (folder / MANIFEST).is_file():
        known: dict[str, Any] = read_json(folder / MANIFEST)
        if known.get("id") == id_:
            return known
        other = f"another artifact, {known.get('id')}"
    elif folder.exists() and not folder.is_dir():
        other = "a file"
    elif folder.is_dir() and any(folder.iterdir()):
        other = "a folder with other files"
    if other:
        raise UserError(f"Here is {other}", where=str(folder), next_step="choose another folder with --out FOLDER")
    return None


def _is_whole(folder: Path, known: Mapping[str, Any]) -> bool:
    """Whether the files are as they were written; the card may have been edited: it is written again anyway."""
    return all(
        (folder / name).is_file() and sha256_file(folder / name) == entry["sha256"]
        for name, entry in known["files"].items()
        if name not in (CARD, NOTICE, BOM)
    )


def _write_model(origin: Origin, form: str, trained: Path, out: Path) -> dict[str, Any] | None:
    """The files that are loaded; what merging did, if anything was merged."""
    if form == "adapter":
        _copy(trained, out, [*ADAPTER_FILES, *TOKENIZER_FILES])
        return None
    if (trained / "adapter_config.json").is_file():
        model = origin.manifest.model
        merged = merge(model, trained, out)
        source = resolve(model)
    else:
        merged, source = None, trained
        _copy(trained, out, [*(file.name for file in weight_files(trained)), "config.json"])
    _write_surroundings(origin, source, trained, out)
    return vars(merged) if merged else None


def _write_compressed(origin: Origin, quant: str, trained: Path, out: Path) -> dict[str, Any]:
    """The files of a model in fewer bits, and what its tensors have become."""
    model = origin.manifest.model
    found = write_compressed(open_tuned(model, trained), quant, out)
    source = resolve(model) if (trained / "adapter_config.json").is_file() else trained
    _write_surroundings(origin, source, trained, out)
    return found.model_dump(mode="json")


def _write_surroundings(origin: Origin, source: Path, trained: Path, out: Path) -> None:
    """What stands next to the weights of a model by itself: tokenizer, its way of generating, its task."""
    _copy(trained, out, TOKENIZER_FILES)
    write_json(out / "generation_config.json", _generation(source, trained))
    if origin.task is not None:
        write_json(out / OWN, {"version": 1, "task": origin.task})  # no base: it is a model by itself


def _generation(base: Path, trained: Path) -> dict[str, Any]:
    """The base's way of generating, which also stops at the tokens that the tuned model was taught to end with."""
    file = base / "generation_config.json"
    settings = (
        read_json(file) if file.is_file() else {"bos_token_id": read_json(base / "config.json").get("bos_token_id")}
    )
    listed = settings.get("eos_token_id")
    listed = [] if listed is None else [listed] if isinstance(listed, int) else listed
    template = load_template(trained)
    return {
        "pad_token_id": template.pad_id,
        **settings,
        "eos_token_id": list(dict.fromkeys([*template.end_ids, *listed])),
    }


def _describe(origin: Origin, form: str, id_: str, folder: Path, made: Mapping[str, Any]) -> dict[str, Any]:
    """Write the card and, last, the manifest.

    Args:
        made: `created`, `tuneloop` and `merge`: what belongs to the weights and stays when more becomes known of them.
    """
    run, evaluation = origin.manifest, origin.evaluation
    made = dict(made)
    measured = made.pop("measured_evaluation", None)
    licence = licence_of(run.model)
    manifest: dict[str, Any] = {
        "version": 1,
        "id": id_,
        "format": form,
        **made,
        "run": {"id": run.id, "key": run.key},
        "method": origin.method,
        "dataset": run.dataset,
        "task": origin.task,
        "base": {"model": run.model, "fingerprint": run.model_fingerprint, "licence": licence.id if licence else None},
        "gate": dict(origin.gate),
        "evaluation": measured
        if measured
        else {
            key: getattr(evaluation, key)
            for key in ("name", "dataset", "split", "n", "primary", "metrics", "comparisons", "words")
            if key in evaluation.model_fields_set
        }
        if evaluation
        else None,
    }
    if licence and licence.notice:
        write_text(folder / NOTICE, licence.notice + "\n")
    record = as_record(ArtifactManifest, {**plain(manifest), "files": {}}, MANIFEST)
    table = measured_table(record) if record.measured else origin.table
    write_text(folder / CARD, model_card(record, licence, origin.dataset, table))
    names = sorted(path.name for path in folder.iterdir() if path.name not in (MANIFEST, SIGNATURE, BOM, ".lock"))
    files = {name: _entry(folder / name) for name in names}
    bom = bill_of_materials(Materials(record, files, licence, run, origin.dataset, origin.config))
    if bom is not None:
        write_text(folder / BOM, bom)
        files[BOM] = _entry(folder / BOM)
    manifest["files"] = plain(dict(sorted(files.items())))
    if (folder / MANIFEST).is_file() and read_json(folder / MANIFEST) != plain(manifest):
        (folder / SIGNATURE).unlink(missing_ok=True)  # what was signed is no longer said
    manifest = plain(manifest)
    write_json(folder / MANIFEST, manifest)
    return manifest


def _entry(file: Path) -> ArtifactFile:
    return ArtifactFile(bytes=file.stat().st_size, sha256=sha256_file(file))


def _copy(source: Path, out: Path, names: Iterable[str]) -> None:
    for name in names:
        with user_errors_of_the_disk(source / name), (source / name).open("rb") as file, replacing(out / name) as copy:
            shutil.copyfileobj(file, copy, 1 << 20)


def _empty(folder: Path) -> None:
    """Take away what a killed export left."""
    with user_errors_of_the_disk(folder):
        for path in folder.iterdir():
            if path.name != ".lock":
                path.unlink()


def _take_place(partial: Path, folder: Path) -> None:
    """Give the finished folder its name, in place of an empty or damaged one."""
    with user_errors_of_the_disk(folder):
        (partial / ".lock").unlink()
        if folder.is_dir():
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
        partial.rename(folder)
        sync_folder(folder.parent)
