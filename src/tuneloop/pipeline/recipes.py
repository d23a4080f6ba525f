"""Recipes from what people name: a recipe file, a prepared data set, a file of examples."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tuneloop.core.errors import UserError, in_shell
from tuneloop.core.files import nearest_path, write_text
from tuneloop.models.files import SHORT_NAMES
from tuneloop.models.nn import target_modules
from tuneloop.recipe import Recipe, load_recipe, make_recipe, recipe_for_sources
from tuneloop.records.rows import Reject

if TYPE_CHECKING:
    from tuneloop.data.formats import FormatGuess


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
