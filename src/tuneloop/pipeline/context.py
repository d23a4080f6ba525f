"""A job: a recipe at work in its folder, and how its stages find what is done already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.device import default_dtype, in_use, is_out_of_memory, needs_scaling, release_memory
from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, flat, read_json, read_yaml, sha256_file
from tuneloop.core.machine import is_first, processes
from tuneloop.core.threads import use_threads
from tuneloop.core.ui import busy, say
from tuneloop.inference.local import LocalTarget, Workers
from tuneloop.models import Model, fingerprint, load_model, load_tokenizer, load_trained, needs_several_cards
from tuneloop.models.chat import sets_of
from tuneloop.models.files import is_encoder, resolve
from tuneloop.models.methods import method_named
from tuneloop.recipe import CONFIG, Recipe, load_recipe
from tuneloop.records.dataset import MANIFEST, manifest_of_run
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.records.plan import Plan
from tuneloop.records.record import Record, read_record
from tuneloop.records.rows import Dataset, Row
from tuneloop.records.run import RUN, RunManifest
from tuneloop.report import write_page
from tuneloop.training import TrainRow, is_usable, training_rows

if TYPE_CHECKING:
    from tuneloop.models.chat import Template

BEGINNING = ("config.yaml", "environment.json")  # files that a run writes before its first stage


@dataclass
class RunContext:
    """A recipe at work: where it writes, how it reports, and what it has loaded so far."""

    recipe: Recipe  # resolved
    folder: Path  # of the run
    anyway: bool = False  # whether it trains even where its time is too short for a result
    tuned: bool = False  # whether the model holds the run's result
    on_record: Callable[[Mapping[str, Any]], None] = lambda record: None  # gets each record of the training's metrics
    workers: Workers | None = None  # the run's other processes, for their parts of the model's answers
    others_let_go: Callable[[], None] = lambda: None  # has the other processes free their devices

    @classmethod
    def of_run(cls, folder: Path) -> RunContext:
        """A finished run, by the recipe that it was made with."""
        return cls(load_recipe(folder / CONFIG), folder)

    @cached_property
    def is_encoder(self) -> bool:
        """Whether the model is an encoder, which has no prompts and no language to answer in."""
        return is_encoder(self.recipe.model)

    @cached_property
    def template(self) -> Template:
        """Tokenizer and chat template of the base model, as the recipe has reasoning in it."""
        config = self.recipe.train
        on = None if config.reasoning == "auto" else config.reasoning == "on"
        return load_tokenizer(self.recipe.model).with_reasoning(on=on, keep=config.earlier_reasoning == "keep")

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the base model."""
        with busy("opening the model"):  # unpacked the first time
            return fingerprint(resolve(self.recipe.model))

    @property
    def measured_with(self) -> str:
        """Identity of what rows are measured with: the base model, and what the recipe sets about reasoning; empty of
        an encoder, whose rows are measured with nothing."""
        if self.is_encoder:
            return ""
        sets = sets_of(self.template.source)
        return f"{self.fingerprint}-{content_hash(sets)[:8]}" if sets else self.fingerprint

    @cached_property
    def model(self) -> Model:
        """The base model, loaded when a stage first needs it."""
        use_threads()
        with busy("loading the model"):
            model = replace(self._loaded(), template=self.template)
            return model if model.is_sharded else replace(model, workers=self.workers)

    @property
    def target(self) -> LocalTarget:
        """The model as it stands, with an adapter or without, as what answers."""
        return LocalTarget.of(self.model)

    @cached_property
    def training_model(self) -> Model:
        """The base model as it is trained: the same; a second, divided one where several processes share a run."""
        if processes() == 1:
            return self.model
        self.__dict__.pop("model", None)  # a device may have room for one
        use_threads()
        with busy("loading the model"):
            model = load_model(self.recipe.model, dtype=self._dtype, device="cpu")
            return replace(model, template=self.template)

    @property
    def _dtype(self) -> str:
        """That of the device in use; half precision, which old GPUs have, is too coarse for weights that learn."""
        full, usual = method_named(self.recipe.train.method).footprint.all_weights, default_dtype()
        return "float32" if full and needs_scaling(usual) else str(usual).removeprefix("torch.")

    def _loaded(self) -> Model:
        """The base model; where it does not fit onto a GPU, as the method trains it (in four bits), or on several."""
        import torch

        prepare = method_named(self.recipe.train.method).prepare
        if prepare is None:
            alone = is_first() and needs_several_cards(self.recipe.model, getattr(torch, self._dtype))
            if alone:
                say("model     no GPU has room for it: its layers are on several, and one process asks it")
                self.others_let_go()
            return load_model(self.recipe.model, dtype=self._dtype, alone=alone)
        try:
            return load_model(self.recipe.model, dtype=self._dtype, device=in_use())
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        release_memory()
        say("model     it does not fit as it is: it is loaded and measured in the form that the method trains on")
        return load_model(self.recipe.model, dtype=self._dtype, prepare=prepare)

    def rendered(self, rows: Sequence[Row]) -> list[TrainRow]:
        """The rows that the loss can use, as ids and loss masks."""
        with busy("turning rows into tokens"):
            return training_rows(rows, self.template, self.recipe.train)

    def ids(self, rows: Sequence[Row]) -> list[str]:
        """Ids of the `rendered` rows."""
        return [row.id for row in rows if is_usable(row, self.recipe.train)]

    @cached_property
    def context(self) -> int:
        """Most tokens of a row that the base model was made for."""
        return int(read_json(resolve(self.recipe.model) / "config.json").get("max_position_embeddings") or 2**31)

    def dataset(self) -> Dataset:
        """The data set of the run, or the prepared one that it began with."""
        from tuneloop.data import load_dataset

        folder, sources = self.folder / "dataset", self.recipe.data.sources
        if not folder.is_dir() and not sources:
            step = "name a data set: --dataset FOLDER"
            raise UserError("This run has no data set", where=str(self.folder), next_step=step)
        return load_dataset(folder if folder.is_dir() else sources[0])

    def attach_trained(self) -> None:
        """Put the run's result into the model, unless training has just left it there."""
        if not self.tuned:
            load_trained(self.model, self.folder)
            self.tuned = True

    def mixed(self, rows: Sequence[Row]) -> list[bool]:
        """For each of the `rendered` rows whether it is general data that was blended in."""
        return ["mix" in row.meta for row in rows if is_usable(row, self.recipe.train)]


def default_folder(recipe: Recipe) -> Path:
    """`runs/NAME-HASH`: another recipe or other data make another folder, the same ones find theirs again."""
    from tuneloop.data.sources import find_files

    parts: list[Any] = [identity(recipe)]
    # A folder of sources leaves prepared data sets out; the manifest of one that is named has the hashes of its splits.
    prepared = [
        prepared_source for prepared_source in recipe.data.sources if (Path(prepared_source) / MANIFEST).is_file()
    ]
    raw = [prepared_source for prepared_source in recipe.data.sources if prepared_source not in prepared]
    parts += [[str(prepared_source), sha256_file(Path(prepared_source) / MANIFEST)] for prepared_source in prepared]
    parts += [[file.name, sha256_file(file.path)] for file in (find_files(raw) if raw or not prepared else ())]
    return Path("runs") / f"{recipe.name}-{content_hash(parts)[:8]}"


def folder_of(recipe: Recipe) -> Path:
    """The folder of a run: that of the settings, else the default one."""
    return Path(recipe.output_dir) if recipe.output_dir else default_folder(recipe)


def identity(recipe: Recipe) -> dict[str, Any]:
    """What makes a run another run: not how it is evaluated, priced or tracked, nor how many rejects are tolerated."""
    keys = {"model", "seed", "data", "train"} | ({"max_minutes"} if recipe.max_minutes else set())
    dump = recipe.model_dump(mode="json", include=keys)
    dump["data"].pop("allow_rejects")
    if dump["data"]["patch"] is None:  # so that runs of before there were patches stay the same ones
        dump["data"].pop("patch")
    return dump


def refuse_other_run(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder that holds a training, finished or not, with other settings; they are named."""
    old_file = folder / "config.yaml"
    if not old_file.is_file() or not training_began(folder):
        return
    old, new = flat(read_yaml(old_file)), flat(identity(recipe))
    changed = [key for key, value in new.items() if old.get(key) != value]
    if changed:
        some = ", ".join(f"{key}: {old.get(key)} there, {new[key]} now" for key in changed[:3])
        step = "choose another folder with output_dir=FOLDER, or delete this one"
        raise UserError(f"This folder holds a run with other settings ({some})", where=str(folder), next_step=step)


def training_began(folder: Path) -> bool:
    """Whether a run's folder holds a finished training, or checkpoints of one."""
    return (folder / RUN).is_file() or any((folder / "checkpoints").glob("step-*.pt"))


def report_stage(job: RunContext) -> Path:
    """`report.html`, from the run's files."""
    with busy("writing the report"):
        return write_page(job.folder)


def summary(folder: Path) -> dict[str, Any]:
    """A run as one object: what `tuneloop run --json` prints."""
    manifest, results = manifest_of_run(folder), [folder / name for name in ("model", "encoder", "adapter")]
    parts: dict[str, type[Record]] = {"plan": Plan, "run": RunManifest, "eval": EvaluationManifest}
    return {
        "path": str(folder),
        "adapter": str(next((result for result in results if result.is_dir()), results[-1])),
        "report": str(folder / "report.html"),
        "dataset": manifest.to_json() if manifest else None,
    } | {
        name: read_record(kind, folder).to_json() if (folder / kind.file).is_file() else None
        for name, kind in parts.items()
    }
