"""The recipe: all settings of a job, as one strict record. Stage settings live next to their stage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

from tuneloop.core.confined import PLACE, TEXT, confinement
from tuneloop.core.errors import UserError
from tuneloop.core.files import Config, build_config, read_yaml
from tuneloop.core.python_file import trust_code
from tuneloop.data import PrepareConfig
from tuneloop.evaluation import BaselinesConfig, EvaluateConfig
from tuneloop.planning import PlanConfig
from tuneloop.training import TrainConfig


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
