"""The recipe: all settings of a job, as one strict record. Stage settings live next to their stage."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, field_validator

from tuneloop.core.confined import PLACE, TEXT, confinement
from tuneloop.core.errors import UserError, in_shell
from tuneloop.core.files import Config, build_config, nearest_path, read_yaml, write_text
from tuneloop.core.python_file import trust_code
from tuneloop.data import PrepareConfig
from tuneloop.evaluation import BaselinesConfig, EvaluateConfig
from tuneloop.models.files import SHORT_NAMES
from tuneloop.models.nn import target_modules
from tuneloop.planning import PlanConfig
from tuneloop.records.rows import Reject
from tuneloop.training import TrainConfig

if TYPE_CHECKING:
    from tuneloop.data.formats import FormatGuess


class TrackConfig(Config):
    """Where runs are logged."""

    report_to: list[Literal["mlflow", "tensorboard", "wandb", "none"]] = Field(
        ["mlflow"], description="experiment trackers, one or several: mlflow, tensorboard, wandb; or none"
    )
    upload: list[Literal["data"]] = Field(
        [], description="what MLflow keeps with the small files; data: the rows, so that others can reproduce the run"
    )
    experiment: Annotated[str, TEXT] = Field(
        "tuneloop", description="MLflow experiment, and project of Weights & Biases"
    )
    tags: Annotated[list[str], TEXT] = Field(
        [], description="words of your own for the run, by which tuneloop ui and MLflow filter"
    )

    @field_validator("upload", mode="before")
    @classmethod
    def _one_name(cls, value: object) -> object:
        return [] if value in (None, "", "none") else [value] if isinstance(value, str) else value

    @field_validator("tags", mode="before")
    @classmethod
    def _split_tags(cls, value: object) -> object:
        return [tag.strip() for tag in value.split(",") if tag.strip()] if isinstance(value, str) else value

    @field_validator("report_to", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
        return ["none"] if names in ([], [""], None) else names

    @field_validator("report_to")
    @classmethod
    def _none_is_alone(cls, value: list[str]) -> list[str]:
        if "none" in value and len(value) > 1:
            raise ValueError("none excludes other trackers")
        return list(dict.fromkeys(value))


class Recipe(Config):
    """One job from raw examples to a measured adapter."""

    version: Literal[1] = 1
    name: Annotated[str, TEXT] = Field(
        "job", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, description="name of the job and its data set"
    )
    model: Annotated[str, PLACE] = Field("smollm2-135m", description="short name, hub name or folder of the base model")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random choice")
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="time of the complete run; by the measured speed it decides how long training is and how many test "
        "rows are used",
    )
    output_dir: Annotated[str | None, PLACE] = Field(None, description="folder of the run; default: runs/NAME-HASH")
    store: str = Field(
        "",
        description="folder of an object store (s3://BUCKET/FOLDER) that keeps the run too: any machine can resume it",
    )
    data: PrepareConfig = PrepareConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    plan: PlanConfig = PlanConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    track: TrackConfig = TrackConfig()


# Other tools' names and shorthands for our keys: Hugging Face, Axolotl, then our own habits.
ALIASES: dict[str, str] = {
    "model_name_or_path": "model",
    "base_model": "model",
    "learning_rate": "train.learning_rate",
    "lr": "train.learning_rate",
    "train.lr": "train.learning_rate",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "epochs": "train.epochs",
    "per_device_train_batch_size": "train.rows_per_step",
    "micro_batch_size": "train.rows_per_step",
    "warmup_ratio": "train.warmup",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_grad_norm",
    "lr_scheduler_type": "train.schedule",
    "lora_r": "train.rank",
    "lora_alpha": "train.alpha",
    "lora_dropout": "train.dropout",
    "sequence_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "report_to": "track.report_to",
    "allow_rejects": "data.allow_rejects",
    "sources": "data.sources",
}

CONFIG = "config.yaml"  # the recipe of a run, in its folder


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe that the user names: defaults < file < `key=value`. The Python files in it are the user's too.

    Raises:
        UserError: no such file, bad YAML, unknown key, bad value.
    """
    values = read_yaml(path)
    if Path(path).name != CONFIG:
        trust_code([values, *overrides])
    return make_recipe(values, overrides, where=str(path))


def make_recipe(values: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str = "") -> Recipe:
    """A recipe from a mapping and overrides; see `load_recipe`. For a page or an agent it names their folders alone."""
    recipe = build_config(Recipe, values, overrides, aliases=ALIASES, where=where)
    if (now := confinement()) is not None and now.roots is not None:
        now.roots.check(recipe)
    return recipe


def recipe_for_sources(places: list[str], settings: list[str], *, name: str = "", model: str = "") -> Recipe:
    """A recipe from source files, or a recipe file; settings may leave out `data.`, as in `split.test=0.2`."""
    if not places:
        raise UserError("No source given", next_step="tuneloop prepare FILE")
    keys = set(PrepareConfig.model_fields)
    settings = [f"data.{s}" if s.split("=")[0].split(".")[0] in keys else s for s in settings]
    settings += [f"{key}={value}" for key, value in (("model", model), ("name", name)) if value]
    if len(places) == 1 and places[0].endswith((".yaml", ".yml")):
        return load_recipe(places[0], settings)
    return make_recipe({"name": name_of(places[0]), "data": {"sources": places}}, settings)


def name_of(source: str) -> str:
    """A data set's name from its first source."""
    path = Path(source)
    stem = path.name.split(".")[0] or path.resolve().name
    if stem in ("train", "data", "all", "*"):
        stem = path.resolve().parent.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "data"


def recipe_of(source: str, settings: list[str], *, model: str = "", out: str = "") -> Recipe:
    """A recipe from a recipe file, a prepared data set, a file of examples, or a run (its data, model and training)."""
    settings = settings + ([f"output_dir={out}"] if out else [])
    run, file = Path(source), Path(source, "config.yaml")
    if not file.is_file() or not (run / "dataset" / "dataset.json").is_file():
        return recipe_for_sources([source], settings, model=model)
    keys = {"name", "model", "seed", "train", "plan"}
    values = load_recipe(file).model_dump(mode="json", include=keys, exclude_unset=True)
    settings += [f"model={model}"] if model else []
    return make_recipe({**values, "data": {"sources": [str(run / "dataset")]}}, settings, where=str(file))


def refuse_missing_source(source: str) -> None:
    """Refuse a place that is no file, folder or pattern of files; the nearest name is suggested."""
    from tuneloop.data.sources import named_sheet

    path, _ = named_sheet(source)
    if source != "-" and not os.path.exists(os.path.expanduser(path)) and not glob.glob(path):
        step = f"a model is named by --model {source}" if source in SHORT_NAMES else nearest_path(source)
        raise UserError("No such data set, file or recipe", where=source, next_step=step)


def plan_settings(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says about training, by the names of the planner's job; what it leaves out stays open."""
    train = recipe.train
    names = ("method", "rank", "prefix_tokens", "optimizer_in_backward", "packing", "epochs")
    settings: dict[str, Any] = {name: getattr(train, name) for name in names if name in train.model_fields_set}
    if "targets" in train.model_fields_set:
        settings["targets"] = target_modules(train.targets)
    if train.optimizer != "adamw":
        settings["optimizer"] = train.optimizer
    if train.gradient_checkpointing != "auto":
        settings["grad_ckpt"] = train.gradient_checkpointing == "always"
    return settings


def write_starter(source: str, out: str, settings: Sequence[str] = ()) -> tuple[Path, FormatGuess]:
    """Write a recipe for a file of examples to `out`, with the settings, and with what was found as comments.

    Raises:
        UserError: no record can be read, no format fits, or `out` is there already.
    """
    from tuneloop.data.formats import check_columns, detect
    from tuneloop.data.sources import read_records

    path = Path(out)
    if path.exists():
        raise UserError("That recipe is there already", where=out, next_step="choose another with --out FILE")
    recipe = recipe_for_sources([source], list(settings))
    records = (record.value for record in read_records([source]) if not isinstance(record, Reject))
    sample = _spread(records)
    if not sample:
        step = "look at the file: one JSON object a line, or a CSV"
        raise UserError("No record can be read", where=source, next_step=step)
    check_columns(sample, recipe.data)
    guess = detect(sample, recipe.data)
    if guess.guessed:
        step = f"name them, as in {in_shell(guess.guessed)}"
        raise UserError(
            f"Columns are only guessed: {guess.reason}", where=source, next_step=step, settings=guess.guessed
        )
    write_text(path, _starter(path, source, recipe, guess, [str(column) for column in sample[0]]))
    return path, guess


def _spread(records: Iterable[Any], number: int = 200, most: int = 20_000) -> list[Any]:
    """At least so many records from all over the first ones, if there are as many: files are often sorted by label."""
    sample, step = list[Any](), 1
    for index, record in enumerate(itertools.islice(records, most)):
        if index % step == 0:
            sample.append(record)
        if len(sample) == 2 * number:
            sample, step = sample[::2], 2 * step
    return sample


def _starter(path: Path, source: str, recipe: Recipe, guess: FormatGuess, names: Sequence[str]) -> str:
    """The text of a first recipe: what was set, and comments on what could be; `names`: the file's columns."""

    def block(values: Any, indent: str = "") -> str:
        lines = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000).splitlines()
        return "".join(f"{indent}{line}\n" for line in lines)

    rest = recipe.model_dump(mode="json", exclude_unset=True)
    name, model, data = rest.pop("name"), rest.pop("model", recipe.model), rest.pop("data")
    del data["sources"]
    train, plan = {"epochs": 3} | rest.pop("train", {}), rest.pop("plan", {})
    price = plan.pop("usd_per_hour", 0.05)
    columns = "".join(f"  # {column}\n" for column in names[:12])
    # The columns that hold question and answer come first.
    read = [column for column in guess.columns.values() if column in names]
    question, answer, *_ = [*read, *(column for column in names if column not in read), "text", "answer"]
    limit = "# max_minutes: 30              # of the whole run: a slow machine trains less and uses fewer test rows"
    templates = f"""  # To write your own prompt and answer from the columns:
  # instruction: "What the model should do, in a sentence or two."
  # input: "{{{question}}}"
  # output: "{{{answer}}}"
"""
    return f"""# A job for tuneloop: `tuneloop run {path}`. `tuneloop schema --keys` lists every setting.
version: 1
name: {name}
model: {model}            # or llama-3.2-1b-instruct, llama-3.1-8b-instruct, a folder, org/name on the hub

data:
  sources: [{source!r}]
{block(data, "  ") if data else ""}  # read as {guess.name}: {guess.reason}
  # columns of the first record:
{columns}{"" if "input" in data else templates}
train:
{block(train, "  ")}
{"" if "max_minutes" in rest else limit}
{block(rest) if rest else ""}
plan:
  usd_per_hour: {price}           # what this machine costs
{block(plan, "  ") if plan else ""}"""


def describe_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> list[tuple[str, str, str]]:
    """Every key of a recipe, or of a section, with its default and its meaning; sections flattened."""
    rows: list[tuple[str, str, str]] = []
    for name, info in section.model_fields.items():
        default = info.default_factory() if info.default_factory else info.default  # type: ignore[call-arg]
        if isinstance(default, BaseModel):
            rows += describe_keys(type(default), f"{prefix}{name}.")
        else:
            text = str(default).lower() if isinstance(default, bool) else str(default)
            rows.append((prefix + name, "" if default is None else text, info.description or ""))
    return rows
