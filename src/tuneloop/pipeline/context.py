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
from tuneloop.models.load import Model, fingerprint, load_model, load_tokenizer, needs_several_cards
from tuneloop.models.methods import method_named
from tuneloop.models.names import resolve
from tuneloop.models.trained import load_trained
from tuneloop.recipe import Recipe, load_recipe
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.record import R, read_record
from tuneloop.records.rows import Dataset, Row
from tuneloop.training.rows import TrainRow, is_usable, training_rows

if TYPE_CHECKING:
    from tuneloop.inference.local.target import Crew
    from tuneloop.models.template import Template


# Files that a run writes before its first stage.
BEGINNING = ("config.yaml", "environment.json")


@dataclass
class RunContext:
    """A recipe at work: where it writes, how it tells, and what it has loaded so far.

    Args:
        recipe: the resolved recipe.
        folder: of the run.
        tuned: whether the model holds the run's result.
        on_record: gets each record of the training's metrics.
        crew: asks the other processes of the run for their parts of the model's answers; None: there are none.
        others_let_go: has the other processes free their devices.
    """

    recipe: Recipe
    folder: Path
    tuned: bool = False
    on_record: Callable[[Mapping[str, Any]], None] = lambda record: None
    crew: Crew | None = None
    others_let_go: Callable[[], None] = lambda: None

    @cached_property
    def template(self) -> Template:
        """Tokenizer and chat template of the base model."""
        return load_tokenizer(self.recipe.model)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the base model."""
        with busy("opening the model"):  # unpacked the first time
            return fingerprint(resolve(self.recipe.model))

    @cached_property
    def model(self) -> Model:
        """The base model, loaded when a stage first needs it."""
        use_threads()
        with busy("loading the model"):
            model = self._loaded()
            return model if model.is_spread else replace(model, crew=self.crew)

    @cached_property
    def training_model(self) -> Model:
        """The base model as it is trained: the same, but where several processes share a run, one of its own that they divide."""
        if processes() == 1:
            return self.model
        self.__dict__.pop("model", None)  # a device may have room for one
        use_threads()
        with busy("loading the model"):
            return load_model(self.recipe.model, dtype=self._dtype, device="cpu")

    @property
    def _dtype(self) -> str:
        """That of the device in use, wherever weights are first; half precision, which old GPUs have, is too coarse for weights that learn."""
        full, usual = method_named(self.recipe.train.method).footprint.all_weights, default_dtype()
        return "float32" if full and needs_scaling(usual) else str(usual).removeprefix("torch.")

    def _loaded(self) -> Model:
        """The base model; where it does not fit onto a GPU, in the form that the method trains on (four bits), or else on several."""
        prepare = method_named(self.recipe.train.method).prepare
        if prepare is None:
            if alone := self._needs_several_cards():
                say("model     no GPU has room for it: its layers are on several, and one process asks it")
                self.others_let_go()
            return load_model(self.recipe.model, dtype=self._dtype, alone=alone)
        try:
            return load_model(self.recipe.model, dtype=self._dtype, device=in_use())
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        release_memory()
        say(
            "model     it does not fit as it is: it is loaded in the form that the method trains on, and measured in that"
        )
        return load_model(self.recipe.model, dtype=self._dtype, prepare=prepare)

    def _needs_several_cards(self) -> bool:
        import torch

        return is_first() and needs_several_cards(self.recipe.model, getattr(torch, self._dtype))

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

    def mixed(self, rows: Sequence[Row]) -> list[bool]:
        """For each of the `rendered` rows whether it is general data that was blended in."""
        return ["mix" in row.meta for row in rows if is_usable(row, self.recipe.train)]


def default_folder(recipe: Recipe) -> Path:
    """`runs/NAME-HASH`: another recipe or other data make another folder, the same ones find theirs again."""
    from tuneloop.data.sources.read import find_files

    parts: list[Any] = [identity(recipe)]
    # A folder of sources leaves prepared data sets out; one that is named itself is its manifest, which holds the hashes of its splits.
    prepared = [place for place in recipe.data.sources if (Path(place) / MANIFEST).is_file()]
    raw = [place for place in recipe.data.sources if place not in prepared]
    parts += [[str(place), sha256_file(Path(place) / MANIFEST)] for place in prepared]
    parts += [[file.name, sha256_file(file.path)] for file in (find_files(raw) if raw or not prepared else ())]
    return Path("runs") / f"{recipe.name}-{content_hash(parts)[:8]}"


def identity(recipe: Recipe) -> dict[str, Any]:
    """What makes a run another run: not how it is evaluated, priced or tracked, nor how many rejects are tolerated."""
    kept = {"model", "seed", "data", "train"} | ({"max_minutes"} if recipe.max_minutes else set())
    dump = recipe.model_dump(mode="json", include=kept)
    dump["data"].pop("allow_rejects")
    return dump


def refuse_other_run(folder: Path, recipe: Recipe) -> None:
    """A folder belongs to one run.

    Raises:
        UserError: it holds a finished or unfinished training with other settings; they are named.
    """
    old_file = folder / "config.yaml"
    trained = (folder / "run.json").is_file() or any((folder / "checkpoints").glob("step-*.pt"))
    if not old_file.is_file() or not trained:
        return
    old, new = flat(read_yaml(old_file)), flat(identity(recipe))
    changed = [key for key, value in new.items() if old.get(key) != value]
    if changed:
        shown = ", ".join(f"{key}: {old.get(key)} there, {new[key]} now" for key in changed[:3])
        raise UserError(
            f"This folder holds a run with other settings ({shown})",
            where=str(folder),
            next_step="choose another folder with output_dir=FOLDER, or delete this one",
        )


def find_done(manifest: Path, key: str) -> dict[str, Any] | None:
    """The stage's manifest, if it is there with this key."""
    if not manifest.is_file():
        return None
    try:
        value: dict[str, Any] = read_json(manifest)
    except UserError:
        return None  # damaged from outside: do the stage again
    return value if value.get("key") == key else None


def done_record(kind: type[R], folder: Path, key: str) -> R | None:
    """`find_done` of a record's file in a folder."""
    if not (folder / kind.file).is_file():
        return None
    try:
        found = read_record(kind, folder)
    except UserError:
        return None  # damaged from outside: do the stage again
    return found if getattr(found, "key", None) == key else None


def training_began(job: RunContext) -> bool:
    return (job.folder / "run.json").is_file() or any((job.folder / "checkpoints").glob("step-*.pt"))


def load_run_recipe(folder: Path, settings: list[str]) -> Recipe:
    """The recipe that a run was made with."""
    return load_recipe(folder / "config.yaml", settings)


def dataset_of(job: RunContext, of_run: bool, path: str) -> Dataset:
    """A run's own data set, or the one in a folder."""
    from tuneloop.data.dataset import load_dataset

    if of_run:
        own = job.folder / "dataset"
        if not own.is_dir() and not job.recipe.data.sources:
            raise UserError(
                "This run has no rows of its own", where=str(job.folder), next_step="name a data set: --dataset FOLDER"
            )
        return load_dataset(own if own.is_dir() else job.recipe.data.sources[0])
    return load_dataset(path)


def attach_trained(job: RunContext) -> None:
    """Put the run's result into the model, unless training has just left it there."""
    if not job.tuned:
        load_trained(job.model, job.folder)
        job.tuned = True
