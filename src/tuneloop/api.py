"""tuneloop from Python: a function for each stage, with the settings and files of the command line.

A run made here is a run: every command takes its folder.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Unpack

from tuneloop.advice import Advice, AdviseOptions
from tuneloop.core.errors import UserError
from tuneloop.core.files import Config, build_config, write_jsonl
from tuneloop.core.python_file import trust_code
from tuneloop.core.terminal import screen
from tuneloop.core.ui import Progress, reporting
from tuneloop.data import PrepareConfig
from tuneloop.evaluation import EvalOptions, PromptOptions
from tuneloop.improve import serve_until_stopped
from tuneloop.inference import Endpoint
from tuneloop.pipeline import (
    advise_on,
    compare_evaluations,
    evaluate_files,
    evaluate_target,
    find_prompt,
    plan_data,
    prepare_alone,
    run_job,
    train_alone,
)
from tuneloop.pipeline.answers import predict as predict
from tuneloop.planning import PlanOptions, plan_model
from tuneloop.recipe import Recipe, load_recipe, make_recipe, name_of
from tuneloop.records.evaluation import Estimate, EvaluationManifest
from tuneloop.records.plan import Plan
from tuneloop.records.record import read_record
from tuneloop.records.rows import Dataset
from tuneloop.records.run import RunManifest
from tuneloop.release import Artifact, WeightOptions, export_run
from tuneloop.serving import serve_config
from tuneloop.settings import (
    AdviseSettings,
    EvaluateSettings,
    ExportSettings,
    PlanSettings,
    PrepareSettings,
    RunSettings,
    ServeSettings,
    TrainSettings,
)
from tuneloop.training import TrainConfig

Place = str | os.PathLike[str]  # a run or an evaluation is one too
Data = Place | Sequence[Place] | Iterable[Mapping[str, Any]] | Dataset
Shown = bool | Progress


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Args:
        path: its folder, with `eval.json`, `samples.jsonl` and `report.html`.
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    @cached_property
    def record(self) -> dict[str, Any]:
        """All of `eval.json`."""
        return read_record(EvaluationManifest, self.path).to_json()

    @property
    def metrics(self) -> dict[str, Estimate]:
        """Each metric with its 95 % interval."""
        nan = float("nan")
        return {
            name: Estimate(*(nan if (value := entry[key]) is None else value for key in ("value", "low", "high")))
            for name, entry in self.record["metrics"].items()
        }

    @property
    def verdict(self) -> str:
        """What it comes to, in a sentence or two."""
        return " ".join(self.record["words"])


@dataclass(frozen=True)
class Run:
    """A finished run; its folder goes wherever a path goes.

    Args:
        path: its folder.
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def record(self) -> dict[str, Any]:
        """All of `run.json`: steps, losses, minutes, peak memory, cost."""
        return read_record(RunManifest, self.path).to_json()

    @property
    def evaluation(self) -> Evaluation:
        """How the tuned model does on the test split.

        Raises:
            UserError: it has not been evaluated.
        """
        if not (self.path / "eval.json").is_file():
            raise UserError("This run has no evaluation yet", where=str(self.path), next_step="tuneloop.evaluate(run)")
        return Evaluation(self.path)

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"


def prepare(
    data: Data,
    config: PrepareConfig | None = None,
    *,
    out: Place = "",
    name: str = "",
    model: str = "",
    seed: int | None = None,
    progress: Shown = False,
    **settings: Unpack[PrepareSettings],
) -> Dataset:
    """Turn examples of any shape into train, validation and test splits without a leak; the same as `tuneloop prepare`.

    Args:
        data: a file, glob or folder, several of them, or records in memory: anything that gives mappings (a list, a
            Hugging Face data set, `frame.to_dict("records")`). Those are written to `OUT.rows.jsonl` next to the data
            set, so that rejects and repairs can name lines.
        config: all settings in one record.
        out: folder of the data set; default: `datasets/NAME`.
        name: of the data set; default: that of the first file, `rows` for records in memory.
        model: its tokenizer and chat template measure the rows; default: the packaged model.
        seed: of the split.
        progress: True for bars on stderr, or a `Progress`.
        settings: those of a recipe's `data` section, as in `max_length=512, split={"stratify": "queue"}`.

    Returns:
        The data set: `train`, `val` and `test` rows, `manifest` (the content of `dataset.json`), `path`.

    Raises:
        UserError: no data, an unknown setting, more rejected rows than `allow_rejects`.
    """
    places = _places(data)
    name = name or (name_of(places[0]) if places else "rows")
    folder = Path(out) if out else Path("datasets") / name
    if not places:
        places = [str(_written(data, folder.with_name(f"{folder.name}.rows.jsonl")))]
    recipe = _recipe(name, model, seed, {"data": _section(config, settings) | {"sources": places}})
    with _shown(progress):
        return prepare_alone(recipe, str(folder))


def train(
    data: Dataset | Place,
    config: TrainConfig | None = None,
    *,
    out: Place = "",
    model: str = "",
    seed: int | None = None,
    anyway: bool = False,
    progress: Shown = False,
    **settings: Unpack[TrainSettings],
) -> Run:
    """Train on a prepared data set; the same as `tuneloop train`.

    Plans first and refuses what does not fit into memory. An interrupted run resumes from its last checkpoint.

    Args:
        data: what `prepare` returned, its folder, a file of examples, or a recipe.
        config: all settings in one record: `TrainConfig(max_minutes=5)`.
        out: folder of the run; default: `runs/NAME-HASH`.
        model: base model: a short name, a hub name or a folder; default: the packaged one.
        seed: of order and initial weights.
        anyway: train also where the time is too short for a result, which is refused else.
        progress: True for bars on stderr, or a `Progress`.
        settings: those of a recipe's `train` section, as in `epochs=2, learning_rate=1e-4, rank=8`.

    Returns:
        The run: its folder holds `run.json`, `metrics.jsonl`, `adapter/` (or `model/`) and `report.html`.

    `tuneloop.training.loop.train` is the bare loop on a loaded model and your own rows: weights and `metrics.jsonl`, no
    plan, no `run.json`.

    Raises:
        UserError: no data, an unknown setting, not enough memory, a folder that holds another run.
    """
    if isinstance(data, Iterable) and not isinstance(data, str):
        step = "dataset = tuneloop.prepare(records), then tuneloop.train(dataset)"
        raise UserError("Records are prepared before they are trained on", next_step=step)
    recipe = _recipe_of_run(data, model, seed, out, {"train": _section(config, settings)})
    with _shown(progress):
        return Run(train_alone(recipe, anyway=anyway)[0])


def evaluate(
    target: Place | Run,
    data: Data | None = None,
    *,
    train: Data | None = None,
    split: Literal["train", "val", "test"] = "test",
    few_shot: int = 0,
    base: str = "",
    name: str = "",
    out: Place = "",
    progress: Shown = False,
    **settings: Unpack[EvaluateSettings],
) -> Evaluation:
    """Measure a run, an adapter or a model on rows, with intervals; the same as `tuneloop evaluate`.

    Args:
        target: a run, its folder, an adapter's or a model's folder, a model's name, a GGUF file.
        data: a prepared data set, a file, or records in memory; default: the run's own data set.
        train: rows that an adapter's base gets as examples and classifiers learn from; default: some of `data`.
        split: of a prepared data set.
        few_shot: examples in the prompt, from the training split.
        base: of an adapter that does not name it.
        name: of the system in the result.
        out: folder of the result; default: the run's, or one in `evals/`.
        progress: True for bars on stderr, or a `Progress`.
        settings: those of a recipe's `evaluate` section, as in `limit=100, consistency=5`.

    Raises:
        UserError: no such target, no rows, an unknown setting.
    """
    trust_code(settings)
    with tempfile.TemporaryDirectory() as scratch, _shown(progress):
        path = _file_of(data, Path(scratch) / "rows.jsonl")
        examples = _file_of(train, Path(scratch) / "train.jsonl")
        prepared = (Path(path) / "dataset.json").is_file()
        options = EvalOptions(
            dataset=path if prepared else "",
            data="" if prepared else path,
            train=examples,
            split=split,
            few_shot=few_shot,
            base=base,
            name=name,
            out=str(out),
        )
        overrides = [f"evaluate.{setting}" for setting in _overrides(settings)]
        return Evaluation(evaluate_target(str(target), options, overrides).folder)


def run(
    recipe: Recipe | Mapping[str, Any] | Data,
    *,
    out: Place = "",
    model: str = "",
    seed: int | None = None,
    anyway: bool = False,
    progress: Shown = False,
    **settings: Unpack[RunSettings],
) -> Run:
    """Do the main job: prepare, baselines, plan, train, evaluate, report; the same as `tuneloop run`.

    Args:
        recipe: a recipe (a file, a mapping or a record), a file of examples, a prepared data set, or records in memory.
        out: folder of the run; default: `runs/NAME-HASH`.
        model: base model, where it is not the recipe's.
        seed: of every random choice.
        anyway: train also where the time is too short for a result, which is refused else.
        progress: True for bars on stderr, or a `Progress`.
        settings: of the recipe, by section: `train={"epochs": 1}, max_minutes=8`.

    Returns:
        The run; `run.evaluation.verdict` says what came of it.

    Raises:
        UserError: whatever can be put right; finished stages stay finished.
    """
    resolved = _resolved(recipe, model, seed, out, settings)
    with _shown(progress):
        return Run(run_job(resolved, anyway=anyway))


def prompt(
    recipe: Recipe | Mapping[str, Any] | Data,
    options: PromptOptions = PromptOptions(),
    *,
    out: Place = "",
    model: str = "",
    endpoint: Endpoint | None = None,
    seed: int | None = None,
    progress: Shown = False,
    **settings: Unpack[RunSettings],
) -> Run:
    """Search the best prompt for a model and measure it; the same as `tuneloop prompt`.

    Args:
        recipe: see `run`.
        options: what the search may use and spend: `PromptOptions(calls=400)`.
        out: folder of the result; default: `runs/NAME-prompt-HASH`.
        model: who answers, where it is not the recipe's.
        endpoint: a server that answers in its place.
        seed: of every random choice.
        progress: True for bars on stderr, or a `Progress`.
        settings: of the recipe, by section.

    Returns:
        The folder as a run: `predict` and `evaluate` take it.

    Raises:
        UserError: whatever can be put right; answers that came are kept.
    """
    with _shown(progress):
        return Run(find_prompt(_resolved(recipe, model, seed, out, settings), options, endpoint))


def _resolved(
    recipe: Recipe | Mapping[str, Any] | Data, model: str, seed: int | None, out: Place, settings: Any
) -> Recipe:
    trust_code(settings)
    if isinstance(recipe, Recipe):
        values: dict[str, Any] = recipe.model_dump(exclude_unset=True)
        return make_recipe(_merged(values, _top(model, seed, out) | settings))
    if isinstance(recipe, Mapping):
        trust_code(recipe)
        return make_recipe(_merged(dict(recipe), _top(model, seed, out) | settings))
    if isinstance(recipe, Dataset) or _places(recipe):
        return _recipe_of_run(recipe, model, seed, out, settings)
    rows = _written(recipe, Path(f"{out}.rows.jsonl") if out else Path("datasets") / "rows.rows.jsonl")
    return _recipe_of_run(rows, model, seed, out, settings)


def compare(
    *systems: Place,
    references: Place = "",
    dataset: Place = "",
    split: Literal["train", "val", "test"] = "test",
    out: Place = "",
    progress: Shown = False,
) -> Evaluation:
    """Compare evaluations of the same rows, each with the first one; the same as `tuneloop compare`.

    Args:
        systems: runs, evaluations or their folders (`FOLDER:NAME` picks a baseline in it), or files of predictions.
        references: file of right answers for files of predictions.
        dataset: a prepared data set that has them instead.
        split: of it.
        out: folder of the result; default: one in `evals/`.
        progress: True for bars on stderr, or a `Progress`.

    Raises:
        UserError: fewer than two systems, or rows that are not the same.
    """
    places = [os.fspath(system) for system in systems]
    answers = EvalOptions(dataset=os.fspath(dataset), data=os.fspath(references), split=split)
    with _shown(progress):
        folders = evaluate_files(places, answers)
        return Evaluation(compare_evaluations(places, os.fspath(out), folders=folders))


def advise(
    data: Place = "",
    *,
    measure: bool = False,
    out: Place = "",
    progress: Shown = False,
    **facts: Unpack[AdviseSettings],
) -> Advice:
    """Say whether to fine-tune at all, how, and when it pays off; the same as `tuneloop advise`.

    Args:
        data: a file of examples, a prepared data set, a recipe, a run or an evaluation; default: the facts alone.
        measure: ask the base model and cheap classifiers on the test rows first.
        out: folder that keeps the answer; default: `evals/advise-NAME`.
        progress: True for bars on stderr, or a `Progress`.
        facts: what you know, as in `rows=2000, queries_per_day=500, few_shot=0.7`.

    Returns:
        The advice: `answer` (`tune`, `prompt` or `dont`), `method`, `headline`, `reasons`, and all of it as `record()`.

    Raises:
        UserError: no such data, an unknown fact, or one that can't be.
    """
    with _shown(progress):
        return advise_on(os.fspath(data), _stated(AdviseOptions, facts, "advise"), measure=measure, out=os.fspath(out))


def plan(data: Place = "", *, model: str = "", progress: Shown = False, **options: Unpack[PlanSettings]) -> Plan:
    """Predict memory, hours and dollars of training; the same as `tuneloop plan`.

    Args:
        data: as for `run`: a file of examples, a prepared data set, a recipe or a run. Without options it is measured
            on this machine. Default: the model alone, for every GPU.
        model: a short name, a hub name or a folder.
        progress: True for bars on stderr, or a `Progress`.
        options: as in `method="lora", gpu="l40s", seq_len=2048`.

    Raises:
        UserError: neither data nor a model, an unknown option, or settings that exclude each other.
    """
    stated = _stated(PlanOptions, options, "plan") | ({"model": model} if model else {})
    with _shown(progress):
        return Plan.model_validate(plan_data(os.fspath(data), stated) if data else plan_model(stated))


def export(
    run: Place,
    *,
    form: Literal["", "merged", "adapter", "gguf", "gguf-lora"] = "",
    out: Place = "",
    force: bool = False,
    sign: Place = "",
    progress: Shown = False,
    **weights: Unpack[ExportSettings],
) -> Artifact:
    """Export a finished run as a folder that other tools load; the same as `tuneloop export`.

    Args:
        run: a run or its folder.
        form: of the weights; default: merged where possible.
        out: folder of the artifact; default: `artifacts/ID`.
        force: overrule a gate that is not green.
        sign: PEM file of the private key that signs all files.
        progress: True for bars on stderr, or a `Progress`.
        weights: of a GGUF file or compressed weights, as in `quant="q4_k_m", measure=100`.

    Returns:
        The artifact: its `folder`, and `manifest`, what `artifact.json` holds.

    Raises:
        UserError: no finished run, the wrong form, or a gate that is not green.
    """
    settings = build_config(WeightOptions, weights, where="export")
    folder, key = Path(out) if out else None, Path(sign) if sign else None
    with _shown(progress):
        return export_run(Path(run), form, folder, weights=settings, force=force, key=key)


def serve(*targets: Place, ready: Callable[[str], None] | None = None, **settings: Unpack[ServeSettings]) -> None:
    """Answer requests by OpenAI's API until SIGTERM or SIGINT; the same as `tuneloop serve`. It needs the main thread.

    Args:
        targets: runs, artifacts, `NAME@champion`, a model; or one `serve.yaml`.
        ready: is called with the address once requests are answered.
        settings: of a `serve.yaml`, as in `port=8130, keys={"required": False}`.

    Raises:
        UserError: nothing to serve, an unknown setting, a port in use.
    """
    config = serve_config([os.fspath(target) for target in targets], _overrides(settings))
    serve_until_stopped(config, ready=ready and (lambda address, gateway: ready(address)))


# --- from what is given to a recipe ----------------------------------------------------------------


def _file_of(data: Data | None, file: Path) -> str:
    """The first file or folder of data; records in memory are written to one. Empty: there is no data."""
    return "" if data is None else (_places(data) or [str(_written(data, file))])[0]


def _places(data: Data) -> list[str]:
    """The files that data names; none for records in memory.

    Raises:
        UserError: it is neither files nor records.
    """
    if isinstance(data, str | os.PathLike):
        return [str(data)]
    if isinstance(data, Dataset):
        return [data.path]
    if isinstance(data, Sequence) and data and all(isinstance(item, str | os.PathLike) for item in data):
        return [str(item) for item in data]
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise UserError(
            f"Not data: {type(data).__name__}",
            next_step="give a file, a folder, a prepared data set, or records: [{'text': ..., 'label': ...}, ...]",
        )
    return []


def _written(data: Any, path: Path) -> Path:
    """Records in memory as a file.

    Raises:
        UserError: one is no mapping, or there is none.
    """
    records = []
    for number, record in enumerate(data, 1):
        if not isinstance(record, Mapping):
            raise UserError(
                f"Record {number} is not a mapping but {type(record).__name__}",
                next_step="give dictionaries; of a pandas frame: frame.to_dict('records')",
            )
        records.append(dict(record))
    if not records:
        raise UserError("No records", next_step="give at least one dictionary with the columns of an example")
    try:
        write_jsonl(path, records)
    except TypeError as error:
        raise UserError(f"A record holds what JSON can't: {error}", next_step="give texts, numbers, lists") from None
    return path


def _section(config: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's section from a record and single settings, which come later."""
    return _merged(config.model_dump(exclude_unset=True) if config is not None else {}, settings)


def _merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings within mappings put together."""
    merged = dict(values)
    for key, value in more.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _top(model: str, seed: int | None, out: Place) -> dict[str, Any]:
    values = {"model": model or None, "seed": seed, "output_dir": str(out) or None}
    return {key: value for key, value in values.items() if value is not None}


def _recipe(name: str, model: str, seed: int | None, sections: Mapping[str, Any]) -> Recipe:
    trust_code(sections)
    return make_recipe({"name": name, **_top(model, seed, ""), **sections})


def _recipe_of_run(
    data: Dataset | Place | Data, model: str, seed: int | None, out: Place, sections: Mapping[str, Any]
) -> Recipe:
    """The recipe of a run: one from a file, or the defaults on data."""
    trust_code(sections)
    places = _places(data)
    if len(places) == 1 and places[0].endswith((".yaml", ".yml")):
        base = load_recipe(places[0]).model_dump(exclude_unset=True)
        return make_recipe(_merged(base, _top(model, seed, out) | dict(sections)), where=places[0])
    values = {"name": name_of(places[0]), "data": {"sources": places}, **_top(model, seed, out)}
    return make_recipe(_merged(values, sections))


def _stated(kind: type[Config], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values by the names of a record's fields, checked by it."""
    record = build_config(kind, values, where=where)
    return {name: getattr(record, name) for name in values}


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings as `key=value`."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


@contextmanager
def _shown(progress: Shown) -> Iterator[None]:
    """Progress as on a terminal, by a function of the caller's, or none."""
    if progress is True:
        with screen(quiet=False):
            yield
    elif callable(progress):
        with reporting(progress=progress):
            yield
    else:
        yield
