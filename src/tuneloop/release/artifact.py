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
from tuneloop.core.version import __version__
from tuneloop.models import trained_folder, weight_files
from tuneloop.models.chat import load_template
from tuneloop.models.files import resolve
from tuneloop.models.methods import OWN, Method
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
from tuneloop.release.bom import BOM, bill_of_materials
from tuneloop.release.card import measured_table, model_card
from tuneloop.release.compressed import SCHEMES, write_compressed
from tuneloop.release.formats import AS_THEY_ARE, FORMS, ONNX
from tuneloop.release.gguf.artifact import GgufSettings, write_gguf_model
from tuneloop.release.gguf.convert import FLOAT_TYPES, About
from tuneloop.release.licences import hub_name, licence_of
from tuneloop.release.onnx import write_onnx
from tuneloop.release.quantise import QUANTS
from tuneloop.release.tuned_weights import merge, open_tuned

LAYOUT = 3  # of the files; another one makes other ids
# What measuring a GGUF file leaves in the manifest, next to `evaluation`.
MEASURED = ("measured", "same_answers", "cost", "structured")
MANIFEST, CARD, NOTICE = "artifact.json", "README.md", "NOTICE"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# Of a model that also reads pictures: how they become its input.
PICTURE_FILES = ("preprocessor_config.json", "processor_config.json")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json", OWN)


@dataclass(frozen=True)
class Origin:
    """What an artifact is made of, and what is known of it."""

    run: Path  # the run's folder
    name: str  # of the job; ids begin with it
    manifest: RunManifest  # `run.json`
    gate: Mapping[str, Any]  # `status`, `suite` and `forced`, as the gate's `release` gives them
    evaluation: EvaluationManifest | None = None  # `eval.json`, if the run was evaluated
    dataset: DatasetManifest | None = None  # `dataset.json`, if it is available
    table: str = ""  # the evaluation's metrics as a Markdown table, for the card
    task: Mapping[str, Any] | None = None  # what it was trained to answer, as in the run's `tuneloop.json`, if known
    config: Mapping[str, Any] = field(default_factory=dict)  # the settings of its training


@dataclass(frozen=True)
class ArtifactMetrics:
    """What was measured of a GGUF file."""

    evaluation: EvaluationExcerpt  # its metrics, and their comparison with the run's
    same_answers: SameAnswers  # the share of rows that get the run's answer
    kl: float  # mean divergence of the next token's distribution from the run's, in nats
    cost: ArtifactCost  # what answering takes
    structured: SameAnswers | None = None  # the same where a server holds answers to the run's JSON Schema, if any


# Of a GGUF file, or of the folder of a model in fewer bits (then the divergence alone), and the artifact's id.
Measure = Callable[[Path, str], "ArtifactMetrics | float"]


@dataclass(frozen=True)
class Artifact:
    """An artifact."""

    folder: Path
    manifest: dict[str, Any] = field(repr=False)
    existed: bool = False  # its weights were there already


def form_for(method: Method, form: str) -> str:
    """The form that a run is exported in; empty: the method's usual one.

    Raises:
        UserError: there is no such form, or not of this method.
    """
    form = form or method.forms[0]
    if form not in FORMS:
        step = did_you_mean(form, FORMS, f"choose one of {', '.join(FORMS)}")
        types = {"gguf": (*FLOAT_TYPES, *QUANTS), "merged": tuple(SCHEMES)}
        for name, names in types.items():
            if form.lower() in names:
                step = f"it is a type of weights: --format {name} --quant {form.lower()}"
        raise UserError(f"No such format {form!r}", where="--format", next_step=step)
    weights = FORMS[form].weights or form
    if weights not in method.forms:
        message = method.no_form.get(weights, f"A run of {method.title} has no such form")
        raise UserError(message, where=f"--format {form}", next_step=f"export it with --format {method.forms[0]}")
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
    """Write the artifact; where it is written already, only what is said of it is brought up to date.

    The id depends on the trained weights with their scales, the base, the form and the type of weights alone.

    Args:
        form: see `form_for`.
        out: the artifact's folder; default `artifacts/ID`.
        compressed: of a merged model for vLLM: its type of weights, see `compressed.SCHEMES`; empty: as the base's.
        measure: what was measured of the same file before is kept.

    Raises:
        UserError: no result in the run, another base model, a folder with something else in it, a full disk.
    """
    trained = trained_folder(origin.run)
    gguf = (gguf or GgufSettings(form)) if FORMS[form].weights else None
    id_ = _id(origin, form, trained, gguf, compressed)
    folder = out or Path("artifacts") / id_
    earlier = _earlier(folder, id_)
    if earlier is not None:
        keys = ("created", "tuneloop", "merge", "quantisation", *MEASURED)
        parts: dict[str, Any] = {key: earlier[key] for key in keys if key in earlier}
        if earlier.get("measured"):
            parts["measured_evaluation"] = earlier["evaluation"]
        elif measure is not None and not (compressed and earlier["quantisation"].get("kl") is not None):
            parts |= _measured(measure, folder, id_, parts)
        return Artifact(folder, _describe(origin, form, id_, folder, parts), existed=True)
    partial = folder.parent / f".{folder.name}.partial"
    with lock_folder(partial):
        try:
            with user_errors_of_the_disk(partial):
                for path in partial.iterdir():  # what a killed export left
                    if path.name != ".lock":
                        path.unlink()
            parts = _write(origin, form, id_, partial, gguf, compressed)
            if measure is not None and "quantisation" in parts:
                parts |= _measured(measure, partial, id_, parts)
            manifest = _describe(origin, form, id_, partial, parts)
            with user_errors_of_the_disk(folder):
                (partial / ".lock").unlink()
                if folder.is_dir():  # empty or damaged
                    (folder / MANIFEST).unlink(missing_ok=True)
                    shutil.rmtree(folder)
                partial.rename(folder)
                sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # gigabytes that no one could use
            raise
    return Artifact(folder, manifest)


def _write(
    origin: Origin, form: str, id_: str, out: Path, gguf: GgufSettings | None, compressed: str
) -> dict[str, Any]:
    """Write all files but what is said of them; returns what belongs into the manifest."""
    trained, model = trained_folder(origin.run), origin.manifest.model
    created = datetime.now(UTC).isoformat(timespec="seconds")
    parts: dict[str, Any] = {"created": created, "tuneloop": __version__, "merge": None}
    if gguf:
        licence = licence_of(model)
        about = About(id_, hub_name(model), licence.id if licence else "")
        return parts | {"quantisation": write_gguf_model(origin, about, gguf, out).model_dump(mode="json")}
    if form in AS_THEY_ARE:
        _copy(trained, out, AS_THEY_ARE[form])
        if form == ONNX:
            write_onnx(trained, out)
        return parts
    if form == "adapter":
        _copy(trained, out, [*ADAPTER_FILES, *TOKENIZER_FILES])
        return parts
    is_adapter = (trained / "adapter_config.json").is_file()
    if compressed:
        parts["quantisation"] = write_compressed(open_tuned(model, trained), compressed, out).model_dump(mode="json")
    elif is_adapter:
        parts["merge"] = vars(merge(model, trained, out))
    else:
        _copy(trained, out, [*(file.name for file in weight_files(trained)), "config.json"])
    _copy(trained, out, TOKENIZER_FILES)
    if "vision_config" in read_json(out / "config.json"):
        _copy(resolve(model), out, [name for name in PICTURE_FILES if (resolve(model) / name).is_file()])
    write_json(out / "generation_config.json", _generation(resolve(model) if is_adapter else trained, trained))
    if origin.task is not None:
        write_json(out / OWN, {"version": 1, "task": origin.task})  # no base: it is a whole model
    return parts


def _measured(measure: Measure, folder: Path, id_: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    files = list(folder.glob("*.gguf"))
    results = measure(files[0] if files else folder, id_)
    if isinstance(results, float):  # of a model for vLLM the divergence alone
        return {"quantisation": {**parts["quantisation"], "kl": results}}
    records = ("same_answers", results.same_answers), ("cost", results.cost), ("structured", results.structured)
    return {
        "measured": True,
        "measured_evaluation": results.evaluation.model_dump(mode="json"),
        **{name: record.model_dump(mode="json") if record else None for name, record in records},
        "quantisation": {**parts["quantisation"], "kl": results.kl},
    }


def _id(origin: Origin, form: str, trained: Path, gguf: GgufSettings | None, compressed: str) -> str:
    """The artifact's id: by the content of the trained weights, not by where they are or when they are exported."""
    is_adapter = (trained / "adapter_config.json").is_file()
    files = [trained / name for name in AS_THEY_ARE.get(form, ()) if name != OWN]
    files = files or ([trained / "adapter_model.safetensors"] if is_adapter else weight_files(trained))
    with user_errors_of_the_disk(trained):
        weights = [sha256_file(file) for file in files]
    scales = read_json(trained / "adapter_config.json") if is_adapter else {}  # the same matrices, another model
    settings = {key: value for key, value in scales.items() if key not in ("base_model_name_or_path", "revision")}
    run, quant = origin.manifest, gguf.quant if gguf else compressed
    more: list[Any] = [[quant, gguf.rows]] if gguf else [quant] if quant else []
    identity = content_hash([LAYOUT, form, run.method, weights, settings, run.model_fingerprint, *more])
    return "-".join([origin.name, form, *([quant] if quant else []), identity[:12]])


def _earlier(folder: Path, id_: str) -> dict[str, Any] | None:
    """The manifest of this artifact if it was exported before and its files, but those written again, are whole."""
    other = ""
    if (folder / MANIFEST).is_file():
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
        if manifest.get("id") == id_:
            whole = all(
                (folder / name).is_file() and sha256_file(folder / name) == entry["sha256"]
                for name, entry in manifest["files"].items()
                if name not in (CARD, NOTICE, BOM)
            )
            return manifest if whole else None
        other = f"another artifact, {manifest.get('id')}"
    elif folder.exists() and not folder.is_dir():
        other = "a file"
    elif folder.is_dir() and any(folder.iterdir()):
        other = "a folder with other files"
    if other:
        raise UserError(f"Here is {other}", where=str(folder), next_step="choose another folder with --out FOLDER")
    return None


def _generation(base: Path, trained: Path) -> dict[str, Any]:
    """The base's way of generating, which also stops at the tokens that the tuned model was taught to end with."""
    file = base / "generation_config.json"
    if file.is_file():
        settings = read_json(file)
    else:
        settings = {"bos_token_id": read_json(base / "config.json").get("bos_token_id")}
    ends, template = settings.get("eos_token_id"), load_template(trained)
    ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
    ends = list(dict.fromkeys([*template.end_ids, *ends]))
    return {"pad_token_id": template.pad_id, **settings, "eos_token_id": ends}


def _describe(origin: Origin, form: str, id_: str, folder: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the card and, last, the manifest.

    Args:
        parts: `created`, `tuneloop` and `merge`: what belongs to the weights and stays when more becomes known of them.
    """
    run, evaluation = origin.manifest, origin.evaluation
    parts = dict(parts)
    excerpt = parts.pop("measured_evaluation", None)
    if not excerpt and evaluation:
        fields = ("name", "dataset", "split", "n", "primary", "metrics", "comparisons", "words")
        excerpt = {name: getattr(evaluation, name) for name in fields if name in evaluation.model_fields_set}
    licence = licence_of(run.model)
    manifest: dict[str, Any] = {
        "version": 1,
        "id": id_,
        "format": form,
        **parts,
        "run": {"id": run.id, "key": run.key},
        "method": run.method,
        "dataset": run.dataset,
        "task": origin.task,
        "base": {"model": run.model, "fingerprint": run.model_fingerprint, "licence": licence.id if licence else None},
        "gate": dict(origin.gate),
        "evaluation": excerpt,
    }
    if licence and licence.notice:
        write_text(folder / NOTICE, licence.notice + "\n")
    record = as_record(ArtifactManifest, {**plain(manifest), "files": {}}, MANIFEST)
    table = measured_table(record) if record.measured else origin.table
    write_text(folder / CARD, model_card(record, licence, origin.dataset, table))
    names = sorted(path.name for path in folder.iterdir() if path.name not in (MANIFEST, SIGNATURE, BOM, ".lock"))
    files = {name: _entry(folder / name) for name in names}
    bom = bill_of_materials(origin, record, files, licence)
    if bom is not None:
        write_text(folder / BOM, bom)
        files[BOM] = _entry(folder / BOM)
    manifest["files"] = plain(dict(sorted(files.items())))
    if (folder / MANIFEST).is_file() and read_json(folder / MANIFEST) != plain(manifest):
        (folder / SIGNATURE).unlink(missing_ok=True)  # what was signed is no longer so
    manifest = plain(manifest)
    write_json(folder / MANIFEST, manifest)
    return manifest


def _entry(file: Path) -> ArtifactFile:
    return ArtifactFile(bytes=file.stat().st_size, sha256=sha256_file(file))


def _copy(source: Path, out: Path, names: Iterable[str]) -> None:
    for name in names:
        with user_errors_of_the_disk(source / name), (source / name).open("rb") as file, replacing(out / name) as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
