"""`tuneloop route`: a router fitted to the rows of experts' tasks, or to what several models' answers were worth."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from tuneloop.combine.options import RouteOptions
from tuneloop.combine.route.features import RouteJob, features_of
from tuneloop.combine.route.router import Array, Outcomes, Router, fit_router, judge_router, load_router, price_for
from tuneloop.core.errors import UserError
from tuneloop.core.files import nearest_path
from tuneloop.core.ui import quiet
from tuneloop.data import PrepareConfig, detect_language, foreign, load_dataset, read_whole
from tuneloop.evaluation import sample_rows
from tuneloop.pipeline import RunContext
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.router import RouterRecord, RouteTarget
from tuneloop.records.rows import Dataset, Row, last_user_turn
from tuneloop.registry import local_name

SPLITS = ("train", "val", "test")
PARTS = (0.6, 0.8)  # of a file of outcomes: rows below the first fit, up to the second validate, the rest test
SMALLEST_PART = 10
LANGUAGE_ROWS = 200  # requests that show in which language a router is fitted


# --- rows --------------------------------------------------------------------------------------


def dataset_of_target(name: str) -> Dataset:
    """The rows of a run's task, or a prepared data set itself. Raises UserError: they are not available."""
    with quiet():
        folder = Path(local_name(name)).expanduser()
    if (folder / MANIFEST).is_file():
        return load_dataset(folder)
    if not (folder / "config.yaml").is_file():
        raise UserError("No rows are known for this model", where=name, next_step="name a run, or give --outcomes FILE")
    return RunContext.of_run(folder).dataset()


def task_texts(job: RouteJob, datasets: Sequence[Dataset], split: str) -> tuple[list[str], list[int]]:
    """The requests of all tasks, and the number of each one's task."""
    texts: list[str] = []
    tasks: list[int] = []
    for number, dataset in enumerate(datasets):
        rows: list[Row] = sample_rows(getattr(dataset, split), job.rows, seed=0, stratum=dataset.stratum)
        texts += [last_user_turn(row) for row in rows]
        tasks += [number] * len(rows)
    return texts, tasks


def language_of(texts: Sequence[str]) -> str:
    """The commonest language of some texts, as `en`; empty where it is unknown."""
    codes = Counter(code for code, probability in map(detect_language, texts[:LANGUAGE_ROWS]) if probability >= 0.5)
    return codes.most_common(1)[0][0] if codes else ""


def foreign_share(texts: Sequence[str], language: str) -> float:
    """The share of texts that are beyond doubt in another language."""
    return sum(foreign(text, language) for text in texts) / len(texts) if language and texts else 0.0


def task_rows(job: RouteJob, datasets: Sequence[Dataset], split: str) -> Outcomes:
    """Rows of all tasks, each worth 1 to its own model."""
    texts, tasks = task_texts(job, datasets, split)
    return Outcomes(job.embed(texts), np.eye(len(datasets), dtype=np.float32)[tasks])


@dataclass(frozen=True)
class OutcomeTable:
    """What models' answers to some prompts were worth."""

    prompts: list[str]
    names: list[str]  # of the models
    quality: Array  # (prompts, models), 0 to 1

    def part(self, which: str) -> OutcomeTable:
        """The rows to fit, to validate, or to test on: by a hash of the prompt, so equal prompts stay together."""
        inside = np.array([SPLITS[sum(place_of(prompt) >= end for end in PARTS)] == which for prompt in self.prompts])
        return OutcomeTable(list(compress(self.prompts, inside)), self.names, self.quality[inside])


def place_of(prompt: str) -> float:
    """The place of a text between 0 and 1, by its hash."""
    return int.from_bytes(hashlib.sha256(prompt.encode("utf-8", "replace")).digest()[:6], "big") / 2**48


def read_outcomes(file: Path, models: Sequence[str] = ()) -> OutcomeTable:
    """Read a CSV with a column `prompt` and a column for each model: true, false or a number from 0 to 1.

    `models`: columns to take; default: all that hold such values in every row. Raises UserError: no such file or
    column, or a value that is no outcome; its line is named.
    """
    if not file.is_file():
        raise UserError("No such file", where=str(file), next_step=nearest_path(file))
    csv.field_size_limit(2**24)
    with file.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle)
        rows = list(reader)
        columns = list(reader.fieldnames or [])
    if "prompt" not in columns or not rows:
        raise UserError("The file needs a column prompt, and rows", where=str(file), next_step="see docs/route.md")
    for name in models:
        if name not in columns:
            raise UserError(f"No column {name!r}", where=str(file), next_step=f"columns: {', '.join(columns)}")
    names = list(models) or [
        name for name in columns if name != "prompt" and all(_outcome(row.get(name)) is not None for row in rows)
    ]
    if len(names) < 2:
        message = "A router needs two models or more, each with a column of outcomes (true, false, or 0 to 1)"
        raise UserError(message, where=str(file), next_step="see docs/route.md")
    quality = np.zeros((len(rows), len(names)), dtype=np.float32)
    for i, row in enumerate(rows):
        for j, name in enumerate(names):
            value = _outcome(row.get(name))
            if value is None:
                message, step = (
                    f"{name} is not an outcome: {row.get(name)!r:.40}",
                    "write true, false, or a number from 0 to 1",
                )
                raise UserError(message, where=f"{file}, row {i + 1}", next_step=step)
            quality[i, j] = value
    return OutcomeTable([row["prompt"] or "" for row in rows], names, quality)


def _outcome(text: Any) -> float | None:
    word = str(text).strip().lower()
    if word in ("true", "false"):
        return float(word == "true")
    try:
        value = float(word)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def outside_texts(file: str) -> list[str]:
    """Requests that belong to no model, from a file of any format or a prepared data set.

    Raises UserError: it can't be read.
    """
    whole = (Path(file) / MANIFEST).is_file()
    rows: Sequence[Row] = dataset_of_target(file).test if whole else read_whole(file, PrepareConfig()).rows
    return [last_user_turn(row) or row.answer for row in rows]  # a plain text has no turn of a user: it is the request


# --- fit and eval ------------------------------------------------------------------------------


@dataclass(frozen=True)
class RouteSources:
    """What a router is fitted to, or judged on."""

    targets: Sequence[str] = ()  # runs, each with its own task; or none, with `outcomes`
    outcomes: str = ""  # a file, see `read_outcomes`
    costs: dict[str, float] | None = None  # of an answer, by model


def fit_route(sources: RouteSources, out: Path, options: RouteOptions) -> Router:
    """Fit a router, judge it on test rows, and write it.

    `options`: what it sees, and what an answer may cost at most, which sets the price of cost on validation rows.
    Raises UserError: too few models or rows, unknown names, a file that can't be read.
    """
    job = RouteJob(features_of(options.features, options.base), options.base, options.rows)
    train, val, test, like = _training_rows(job, sources)
    router = fit_router(train, val, like)
    if options.max_cost:
        router = router.updated(price=_price(router, val, options.max_cost))
    outside = job.embed(outside_texts(options.outside)) if options.outside else None
    if len(test):
        router = router.updated(results=judge_router(router, test, outside))
    router.save(out)
    return router


def _training_rows(job: RouteJob, sources: RouteSources) -> tuple[Outcomes, Outcomes, Outcomes, RouterRecord]:
    if bool(sources.targets) == bool(sources.outcomes):
        step = "name runs, each with its own task, or give --outcomes FILE"
        raise UserError("Route between what?", where="tuneloop route fit", next_step=step)
    costs = sources.costs or {}
    table = read_outcomes(Path(sources.outcomes)) if sources.outcomes else None
    names = table.names if table else sources.targets
    for name in costs:
        if name not in names:
            raise UserError(f"No model is called {name!r}", where="--cost", next_step=f"models: {', '.join(names)}")
    if table:
        parts = [table.part(which) for which in SPLITS]
        if min(len(part.prompts) for part in parts) < SMALLEST_PART:
            message = f"Too few rows to fit, validate and test on: {len(table.prompts)}"
            raise UserError(message, where=sources.outcomes, next_step="give 100 rows or more")
        train, val, test = (Outcomes(job.embed(part.prompts), part.quality) for part in parts)
        places: list[dict[str, str]] = [{} for _ in names]
        language = language_of(parts[0].prompts)
    else:
        datasets = [dataset_of_target(name) for name in names]
        if len({dataset.manifest.hash for dataset in datasets}) < len(datasets):
            step = "name models of different tasks, or give --outcomes FILE"
            message = "Two models have the same rows: nothing distinguishes their requests"
            raise UserError(message, where=", ".join(names), next_step=step)
        for name, dataset in zip(names, datasets, strict=True):
            if not len(dataset.val):
                raise UserError("There are no validation rows", where=name, next_step="prepare with data.split.val=0.1")
        train, val, test = (task_rows(job, datasets, split) for split in SPLITS)
        places = [{"dataset": dataset.path} for dataset in datasets]
        language = language_of(task_texts(job, datasets, "train")[0])
    pairs = zip(names, places, strict=True)
    targets = [RouteTarget(name=name, cost=costs.get(name, 0.0), **extra) for name, extra in pairs]
    base = job.base if job.features == "hidden" else ""
    fields = {"kind": "constant", "features": job.features, "base": base, "language": language, "routes": targets}
    like = RouterRecord.model_validate({**fields, "exclusive": not sources.outcomes, "source": sources.outcomes})
    return train, val, test, like


def _price(router: Router, val: Outcomes, most: float) -> float:
    costs = np.array([route.cost for route in router.record.routes])
    price = price_for(router.quality(val.features), costs, most)
    if not np.isfinite(price):
        message = f"No model is as cheap as {most:g}: the cheapest costs {costs.min():g}"
        raise UserError(message, where="--max-cost", next_step="raise it, or add a cheaper model")
    return price


def eval_route(folder: Path, outcomes: str = "", outside: str = "") -> Router:
    """A fitted router with its results on test rows.

    `outcomes`: a file, see `read_outcomes`; default: the one that the router was fitted to, or the tasks' test rows. Of
    a file, the rows that fitting never sees are used. `outside`: requests that belong to no model. Raises UserError: no
    router, other models in the file, no rows.
    """
    router = load_router(folder)
    record = router.record
    job = RouteJob(record.features, record.base)
    if record.exclusive:
        if outcomes:
            raise UserError("This router was fitted to tasks", where="--outcomes", next_step="leave it out")
        datasets = [dataset_of_target(route.dataset or route.name) for route in record.routes]
        test, texts = task_rows(job, datasets, "test"), task_texts(job, datasets, "test")[0]
    else:
        part = read_outcomes(Path(outcomes or record.source), router.names).part("test")
        test, texts = Outcomes(job.embed(part.prompts), part.quality), part.prompts
    if not len(test):
        raise UserError("There are no test rows", where=str(folder), next_step="give more rows")
    others = outside_texts(outside) if outside else []
    results = judge_router(router, test, job.embed(others) if outside else None)
    if share := foreign_share([*texts, *others], record.language):
        results = results.model_copy(update={"foreign": share})
    return router.updated(results=results)
