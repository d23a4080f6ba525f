"""Evaluations by themselves: any target on any rows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, inside, lock_folder, sha256_file
from tuneloop.core.ray.actors import ordered_by_actors, usual_actors
from tuneloop.core.ray.cluster import address_of, on_ray
from tuneloop.core.ui import progress, say
from tuneloop.core.units import counted, verb
from tuneloop.core.urls import masked
from tuneloop.data.clean.pii import Redactor
from tuneloop.data.config import PersonalConfig, PrepareConfig
from tuneloop.data.load_eval_file import IDS, read_whole
from tuneloop.data.sources.read import read_records
from tuneloop.evaluation.config import EvalOptions
from tuneloop.evaluation.evaluate import ScoredAnswers, check_ids, sample_rows
from tuneloop.evaluation.metrics.code import problem_of
from tuneloop.evaluation.metrics.text import EMBEDDER, embedder
from tuneloop.evaluation.predictions import answers_from
from tuneloop.evaluation.prompt import AS_IT_IS, choose_examples, load_prompt, nearest_examples, prompt_turns
from tuneloop.inference.answer import Kind, Target, as_model
from tuneloop.inference.client import Endpoint, EndpointTarget, failures, usage
from tuneloop.inference.local.sampling import GREEDY, Sampling
from tuneloop.inference.local.target import LocalTarget
from tuneloop.inference.predictions import PredictionsTarget
from tuneloop.inference.request import Request
from tuneloop.inference.targets import open_model
from tuneloop.models.load import load_model
from tuneloop.pipeline.baselines import majority_of
from tuneloop.pipeline.consistency import Ask, asked_prompts, consistency_part, is_drawn
from tuneloop.pipeline.context import RunContext, attach_trained, dataset_of, load_run_recipe
from tuneloop.pipeline.distributed import leading, shared_out
from tuneloop.pipeline.evaluate import after_tuning, base_model, tuned_key
from tuneloop.pipeline.recipes import name_of, recipe_of
from tuneloop.pipeline.scoring import cost_of, how_far_trained, score, write_scored
from tuneloop.recipe import Recipe
from tuneloop.records.completion import Completion
from tuneloop.records.dataset import Counts, DatasetManifest, SplitFile, Splits
from tuneloop.records.evaluation import BaselinesManifest, Subject
from tuneloop.records.record import read_record
from tuneloop.records.rows import Dataset, Message, Reject, Row
from tuneloop.records.run import RunManifest
from tuneloop.registry.registered import local_name
from tuneloop.report.html import write_page

if TYPE_CHECKING:
    from tuneloop.pipeline.compared_systems import SystemAnswers

MOST_FAILURES = 100  # named in eval.json


@dataclass(frozen=True)
class _Question:
    """Who is evaluated on what.

    Args:
        settings: `key=value`, of the recipe; those of `evaluate.` may leave that out.
    """

    target: Target
    options: EvalOptions
    settings: Sequence[str] = ()

    @property
    def kind(self) -> Kind:
        """What kind of target it is."""
        return self.target.kind

    @property
    def name(self) -> str:
        """The target as the user gave it; empty where it is no model on this machine."""
        return self.target.name if self.kind in ("run", "adapter", "model") else ""

    @property
    def plain(self) -> bool:
        """Whether it is a run on its own split and prompts: its result belongs into the run's folder."""
        o = self.options
        return self.kind == "run" and not (o.dataset or o.data or o.few_shot or o.prompt or o.name)


@dataclass(frozen=True)
class Result:
    """Where an evaluation is, and how many answers are not there: requests that failed for good, rows without prediction."""

    folder: Path
    failed: int = 0


def evaluate_target(
    target: str | Endpoint, options: EvalOptions = EvalOptions(), settings: Sequence[str] = ()
) -> Result:
    """Get answers, score them, and write `eval.json`, `samples.jsonl` and the page.

    Args:
        target: a run, an adapter, a model's folder, name or GGUF file, a registered version (`NAME@ALIAS`), a server; empty with
            `options.predictions`.
        settings: `key=value`, of the recipe; those of `evaluate.` may leave that out.

    Raises:
        UserError: whatever the user can put right.
    """
    question = _question(target, options, settings)
    recipe = _recipe(question)
    _check_base(recipe, question)
    _check_consistency(recipe, question)
    job = RunContext(recipe, Path(question.name))
    with leading(job):
        return _evaluated(job, question)


def processes_to_start(target: str | Endpoint, options: EvalOptions, settings: Sequence[str] = ()) -> int | None:
    """Start the command once for each of several GPUs, where a model of this machine is asked; the exit status of the first, or None."""
    if options.on or not target or isinstance(target, Endpoint):
        return None
    question = _question(target, options, settings)
    local = isinstance(question.target, LocalTarget)
    return shared_out(_recipe(question), answers_only=True) if local else None


def _evaluated(job: RunContext, question: _Question) -> Result:
    """The evaluation, by the first of several processes."""
    recipe, kind = job.recipe, question.kind
    dataset, split = _rows_of(job, question)
    rows = sample_rows(dataset.test, recipe.evaluate.limit, seed=recipe.seed, stratum=dataset.stratum)
    if not rows:
        raise UserError(
            f"The {split} split is empty",
            where=dataset.path,
            next_step="choose another with --split, or give --data FILE",
        )
    check_ids(rows)
    name = question.options.name or _default_name(question)
    folder = Path(question.options.out) if question.options.out else _default_folder(question, dataset, split, name)
    with lock_folder(folder):
        unseen = _unseen(dataset, rows)
        asked, cost, more, notes = _ask(job, question, dataset, rows, name)
        evaluation = score(job, dataset, rows, asked)
        evaluation.notes[:0] = [*notes, *unseen]
        for note in [*notes, *unseen]:
            say(f"warn: {note}")
        if kind in ("run", "adapter", "model"):
            more |= _side_effects(job, question, dataset)
        baselines, costs = _baselines(job, rows) if question.plain and split == "test" else ({}, {})
        baselines = baselines or majority_of(job, dataset, rows)
        run = read_record(RunManifest, question.name) if kind == "run" else None
        more |= _consistency(job, question, dataset, rows, folder, name, costs | {name: cost})
        key = tuned_key(job, dataset, baselines) if question.plain else _key(recipe, dataset, question)
        production = _production(job, question, dataset) if question.options.production else None
        subject = Subject(recipe.model, dataset.id, split, name, key, how_far_trained(run) if run else "")
        costs |= {name: cost}
        write_scored(job, folder, evaluation, subject, costs, baselines=baselines, production=production, more=more)
        write_page(folder)
    return Result(folder, int(cost.get("failed", 0)) or len(more.get("failures", ())))


# --- what and on what --------------------------------------------------------------------------


def _question(target: str | Endpoint, options: EvalOptions, settings: Sequence[str]) -> _Question:  # fmt: skip
    """The target by a local name, and the rows by data set or split, which `data` may also name.

    Raises:
        UserError: no target is given, or several are; a run that is not finished.
    """
    if bool(target) == bool(options.predictions):
        raise UserError(
            "Evaluate what?" if not target else "One target at a time",
            where="tuneloop evaluate",
            next_step="name a run or a model, or give --endpoint URL --model NAME, or --predictions FILE",
        )
    if isinstance(target, str):
        target = local_name(target)
    if options.data in ("train", "val", "test") and not Path(options.data).exists():
        options = options.model_copy(update={"split": options.data, "data": ""})
    elif options.data and (Path(options.data) / "dataset.json").is_file() and not options.dataset:
        options = options.model_copy(update={"dataset": options.data, "data": ""})
    if options.split not in ("train", "val", "test"):
        raise UserError(f"No split named {options.split!r}", where="--split", next_step="choose train, val or test")
    if isinstance(target, Endpoint):
        return _Question(EndpointTarget(target.url, target), options, settings)
    if options.predictions:
        return _Question(PredictionsTarget(options.predictions, {}), options, settings)
    return _Question(open_model(target, base=options.base), options, settings)


def _recipe(question: _Question) -> Recipe:
    own = [
        f"evaluate.{s}" if "." not in s.split("=")[0] and s.split("=")[0] not in Recipe.model_fields else s
        for s in question.settings
    ]
    if question.kind == "run":
        recipe = load_run_recipe(Path(question.name), own)
        given = {"sources": [question.options.dataset]} if question.options.dataset else {}
        return recipe.model_copy(update={"data": recipe.data.model_copy(update=given)})
    if not question.options.dataset and not question.options.data:
        raise UserError(
            "Which rows?",
            where="--dataset",
            next_step="give a prepared data set with --dataset FOLDER, or a file with --data FILE"
            + (f" ({question.name} is not a run)" if question.kind == "model" else ""),
        )
    target = question.target
    model = target.base if isinstance(target, LocalTarget) else question.name
    return recipe_of(question.options.dataset or question.options.data, own, model=model)


def _rows_of(job: RunContext, question: _Question) -> tuple[Dataset, str]:
    """The data set with the rows to evaluate as its test split, and the name of where they are from."""
    own = question.kind == "run" and not question.options.dataset
    known = dataset_of(job, own, question.options.dataset) if own or question.options.dataset else None
    if not question.options.data:
        assert known is not None
        return replace(known, test=getattr(known, question.options.split)), question.options.split
    config = PrepareConfig.model_validate(known.manifest.config) if known else job.recipe.data
    config = config.model_copy(update={"personal": _personal(job.recipe, question, known)})
    needed = question.kind != "predictions"
    return _with_file(job, known, question.options.data, config, needed), Path(question.options.data).name


def _personal(recipe: Recipe, question: _Question, known: Dataset | None) -> PersonalConfig:
    """What happens to personal data in files: what the settings say, else what was done to the data set."""
    if known is None or any(setting.startswith("data.personal") for setting in question.settings):
        return recipe.data.personal
    return PersonalConfig.model_validate(known.manifest.config.get("personal", {}))


def _with_file(job: RunContext, known: Dataset | None, file: str, config: Any, prompts: bool) -> Dataset:
    """The rows of a file, next to what a data set says of the task."""
    whole = read_whole(file, config, prompts=prompts, redact=True)
    rows, task = whole.rows, known.task if known else whole.task
    if whole.personal:
        say(f"data      {whole.personal}")
    if whole.skipped:
        reasons = ", ".join(f"{n} {reason}" for reason, n in whole.skipped.items())
        say(f"warn: {counted(sum(whole.skipped.values()), 'record')} of {file} can't be evaluated ({reasons})")
    if task == "classification":
        rows = [row if row.label is not None else replace(row, label=row.answer) for row in rows]
    labels = known.manifest.labels if known else sorted({row.label for row in rows if row.label is not None})
    digest = sha256_file(file) if Path(file).is_file() else content_hash([row.to_json() for row in rows])
    changed = [config.personal] if whole.personal else []
    empty = SplitFile(rows=0, sha256="")
    manifest = DatasetManifest(
        id=f"{name_of(file)}-{digest[:12]}",
        hash=content_hash([digest, known.manifest.hash if known else None, *changed]),
        name=name_of(file),
        task=task,
        labels=labels if task == "classification" else None,
        config=known.manifest.config if known else {},
        counts=Counts(read=len(whole.order), kept=len(rows), rejected=len(whole.order) - len(rows)),
        rejected=whole.skipped,
        splits=Splits(train=empty, val=empty, test=empty),
    )
    return Dataset(file, manifest, known.train if known else [], [], rows, whole.order, whole.renamed)


def _unseen(dataset: Dataset, rows: Sequence[Row]) -> list[str]:
    """A note on labels that the training split has never shown."""
    if dataset.task != "classification" or not dataset.train:
        return []
    known = {row.label for row in dataset.train}
    strange = [row.label for row in rows if row.label not in known]
    if not strange:
        return []
    names = sorted({str(label) for label in strange})
    return [
        f"{len(strange)} of {counted(len(rows), 'row')} {verb(len(strange), 'has', 'have')} a label that no training row has: {', '.join(names[:5])}"
        f"{' ...' if len(names) > 5 else ''}."
    ]


def _default_name(question: _Question) -> str:
    if isinstance(question.target, EndpointTarget):
        name = question.target.endpoint.model
    elif question.options.predictions:
        name = Path(question.options.predictions).stem
    elif question.kind in ("run", "adapter"):
        name = "tuned"
    else:
        return "few-shot" if question.options.few_shot else "zero-shot"
    return f"{name} few-shot" if question.options.few_shot else name


def _default_folder(question: _Question, dataset: Dataset, split: str, name: str) -> Path:
    if question.plain:
        return Path(question.name) if split == "test" else Path(question.name) / f"eval-{split}"
    place = f"{name_of(name)}-{re.sub(r'[^A-Za-z0-9._-]+', '-', dataset.id)}-{name_of(split)}"
    if question.kind == "run":
        return Path(question.name) / "evals" / place
    return Path("evals") / (
        place if question.kind in ("endpoint", "predictions") else f"{name_of(question.name)}-{place}"
    )


def _key(recipe: Recipe, dataset: Dataset, question: _Question) -> str:
    asked: dict[str, Any] = {n: getattr(question.options, n) for n in ("predictions", "split", "few_shot", "examples")}
    asked["target"] = question.name
    if question.kind == "run":  # whose folder may be renamed
        run = read_record(RunManifest, question.name)
        asked["target"] = [run.id, run.key, run.adapter_hash]
    files = [
        sha256_file(file)
        for file in (question.options.prompt, question.options.predictions)
        if file and Path(file).is_file()
    ]
    asked_of = question.target
    server = [asked_of.endpoint.address, asked_of.endpoint.model] if isinstance(asked_of, EndpointTarget) else None
    settings = recipe.model_dump(
        mode="json", exclude={"output_dir": True, "data": {"sources"}}
    )  # places: the hash counts
    return content_hash([settings, dataset.manifest.hash, asked, files, server])


def _production(job: RunContext, question: _Question, dataset: Dataset) -> list[Row]:
    """What users sent, with personal data replaced: words of it are shown."""
    from tuneloop.data.checks.production import read_production

    redactor = Redactor(_personal(job.recipe, question, dataset))
    return [replace(row, messages=redactor(row.messages)) for row in read_production([question.options.production])[0]]


def _baselines(job: RunContext, rows: Sequence[Row]) -> tuple[dict[str, ScoredAnswers], dict[str, Any]]:
    """The run's baselines, as far as they were measured on the same rows, with their costs."""
    from tuneloop.evaluation.results import load_evaluation

    listed = job.folder / "baselines" / "baselines.json"
    if not listed.is_file():
        return {}, {}
    manifest, ids = read_record(BaselinesManifest, listed), {row.id for row in rows}
    found = {n: load_evaluation(inside(listed.parent, place)) for n, place in manifest.systems.items()}
    same = {n: e for n, e in found.items() if {row.id for row in e.rows} == ids}
    return same, {n: cost.to_json() for n, cost in manifest.costs.items() if n in same}


# --- answers -----------------------------------------------------------------------------------


def _ask(
    job: RunContext, question: _Question, dataset: Dataset, rows: Sequence[Row], name: str
) -> tuple[SystemAnswers, dict[str, Any], dict[str, Any], list[str]]:
    """Answers, what they took, further parts of `eval.json`, and notes."""
    from tuneloop.pipeline.compared_systems import Asking, ask

    if question.kind == "predictions":
        if (
            question.options.data
            and Path(question.options.data).resolve() == Path(question.options.predictions).resolve()
        ):
            raise UserError(
                "The references can't be their own predictions", where=question.options.data, next_step="name two files"
            )
        redactor = Redactor(_personal(job.recipe, question, dataset))
        asked, failed, notes = _predicted(question.options.predictions, dataset, rows, redactor)
        if found := redactor.words(question.options.predictions, len(rows)):
            say(f"data      {found}")
        return asked, {}, {"model": name} | ({"failures": failed[:MOST_FAILURES]} if failed else {}), notes
    if not all(row.prompt for row in rows):
        raise UserError(
            "These rows are references without prompts: no model can be asked",
            where=dataset.path,
            next_step="give rows with prompts, or answers with --predictions FILE",
        )
    if question.kind == "endpoint":
        return _ask_endpoint(job, question, dataset, rows, name)
    if question.options.on and isinstance(question.target, LocalTarget):
        return _ask_on_ray(job, question, dataset, rows, name)
    if question.kind in ("run", "adapter"):
        attach_trained(job)
    prompts, notes = _prompts(job, question, dataset, rows)
    other = None if isinstance(question.target, LocalTarget) else as_model(question.target)
    with closing(other) if other is not None else nullcontext(job.model) as model:
        how = Asking(prompts=prompts)
        asked = ask(model, dataset, rows, job.recipe.evaluate, how, task=name)[""]
    training = read_record(RunManifest, job.folder) if question.kind == "run" else None
    return asked, cost_of(job, asked, training), {}, notes


PIECES = 8  # parts of the rows for each actor: what a lost one had is done again


def _ask_on_ray(
    job: RunContext, question: _Question, dataset: Dataset, rows: Sequence[Row], name: str
) -> tuple[SystemAnswers, dict[str, Any], dict[str, Any], list[str]]:
    """As `_ask`, by actors that each have the model; the answers are the same, since each depends on its row alone."""
    from tuneloop.pipeline.compared_systems import SystemAnswers

    began, asked, notes = time.monotonic(), list[SystemAnswers](), list[str]()
    with on_ray(address_of(question.options.on)) as ray:
        actors = usual_actors(ray, question.options.actors)
        say(f"ray       {actors} {'actor answers' if actors == 1 else 'actors answer'}")
        size = max(-(-len(rows) // (PIECES * actors)), 1)
        pieces = [list(range(first, min(first + size, len(rows)))) for first in range(0, len(rows), size)]
        setting = (question, job.recipe, Path(job.folder).resolve(), dataset, list(rows))
        for part, said in ordered_by_actors(ray, _actor, setting, pieces, actors):
            asked.append(part)
            notes = said  # the same of each actor
            progress(name, sum(len(each.completions) for each in asked), len(rows))
    answers = SystemAnswers(
        [completion for part in asked for completion in part.completions], time.monotonic() - began,
        computed=sum(part.computed for part in asked),
    )  # fmt: skip
    training = read_record(RunManifest, job.folder) if question.kind == "run" else None
    return answers, cost_of(job, answers, training), {}, notes


def _actor(
    setting: tuple[_Question, Recipe, Path, Dataset, list[Row]],
) -> Callable[[list[int]], tuple[SystemAnswers, list[str]]]:
    """What answers rows, by their places, in an actor; it loads the model once."""
    from tuneloop.pipeline.compared_systems import Asking, ask

    question, recipe, folder, dataset, rows = setting
    job = RunContext(recipe, folder)
    if question.kind in ("run", "adapter"):
        attach_trained(job)
    prompts, notes = _prompts(job, question, dataset, rows)

    def answer(places: list[int]) -> tuple[SystemAnswers, list[str]]:
        some = [rows[place] for place in places]
        own = None if prompts is None else [prompts[place] for place in places]
        return ask(job.model, dataset, some, recipe.evaluate, Asking(prompts=own))[""], notes

    return answer


def _predicted(
    file: str, dataset: Dataset, rows: Sequence[Row], redactor: Redactor
) -> tuple[SystemAnswers, list[dict[str, str]], list[str]]:
    """Answers from a file, rows without one and ids without a row, and what a reader has to know of them."""
    from tuneloop.pipeline.compared_systems import SystemAnswers

    records = []
    for item in read_records([file]):
        if isinstance(item, Reject) and item.reason == "blank_line":
            continue
        if isinstance(item, Reject):
            raise UserError(
                f"A prediction can't be read ({item.reason}: {item.detail})",
                where=f"{file}, line {item.line}",
                next_step='write one {"id": ..., "prediction": "..."} a line',
            )
        records.append(item.value)
    if not any(problem_of(row) for row in rows):  # an answer is compared with a reference that was redacted too
        renamed = dataset.renamed
        own = [{n: renamed[str(record[n])] for n in IDS if str(record.get(n)) in renamed} for record in records]
        records = [{**redactor(record), **ids} for record, ids in zip(records, own, strict=True)]
    found = answers_from(records, rows, file, all_rows=dataset.test, order=dataset.order)
    further = tuple(each[1:] for each in found.answers)
    unused = sum(bool(more) and problem_of(row) is None for more, row in zip(further, rows, strict=True))
    notes = (
        [f"{counted(unused, 'row')} {verb(unused, 'has', 'have')} several predictions: the first counts."]
        if unused
        else []
    )
    missing, unknown = found.missing(rows), found.unknown
    if missing:
        notes.append(
            f"{len(missing)} of {counted(len(rows), 'row')} {verb(len(missing), 'has', 'have')} no prediction and {verb(len(missing), 'counts', 'count')} as wrong: {_some(missing)}."
        )
    if unknown:
        notes.append(f"{len(unknown)} predictions are for no row of these and were not used: {_some(unknown)}.")
    failed = [{"id": i, "error": "no prediction"} for i in missing] + [
        {"id": i, "error": "no such row"} for i in unknown
    ]
    first = {row.id: each[0] for row, each in zip(rows, found.answers, strict=True) if each}
    answers = list(PredictionsTarget(file, first).complete([Request(id=row.id) for row in rows]))
    return SystemAnswers(answers, 0.0, further=further if any(further) else ()), failed, notes


def _some(ids: Sequence[str]) -> str:
    return ", ".join(each[:60] for each in ids[:3]) + (" ..." if len(ids) > 3 else "")


def _prompts(
    job: RunContext, question: _Question, dataset: Dataset, rows: Sequence[Row]
) -> tuple[list[list[Message]] | None, list[str]]:
    """Each row's turns, with a template and examples where they are asked for; None: its own as they are."""
    if not question.options.few_shot and not question.options.prompt:
        return None, []
    template = load_prompt(question.options.prompt) if question.options.prompt else AS_IT_IS
    shown, notes = _examples(job, question, dataset, rows) if question.options.few_shot else ([[] for _ in rows], [])
    labels = dataset.manifest.labels
    return [prompt_turns(row, template, each, labels) for row, each in zip(rows, shown, strict=True)], notes


def _examples(
    job: RunContext, question: _Question, dataset: Dataset, rows: Sequence[Row]
) -> tuple[list[Sequence[Row]], list[str]]:
    """The examples of each row; a local model's fit its context."""
    from tuneloop.pipeline.compared_systems import few_shot_examples, nearest_few_shot

    if not dataset.train:
        raise UserError(
            "Few-shot examples come from a training split, and there is none",
            where="--few-shot",
            next_step="give the prepared data set too, with --dataset FOLDER",
        )
    k, recipe = question.options.few_shot, job.recipe
    pool = [row for row in dataset.train if row.shows_the_task]
    if question.options.examples == "nearest":
        if not isinstance(question.target, LocalTarget):
            embed = embedder()
            near, how = nearest_examples(pool, rows, k, embed=embed), EMBEDDER if embed else "TF-IDF"
        else:
            near, how = nearest_few_shot(job.model, dataset, rows, k, recipe.evaluate)
        short = sum(len(each) < min(k, len(pool)) for each in near)
        notes = (
            [
                f"{counted(short, 'row')} {verb(short, 'has', 'have')} fewer than {counted(k, 'example')}: the context holds no more."
            ]
            if short
            else []
        )
        return list(near), [*notes, f"Examples: the {k} nearest training rows of each row, by {how}."]
    if not isinstance(question.target, LocalTarget):
        return [choose_examples(pool, k, seed=recipe.seed)] * len(rows), []
    wanted = recipe.baselines.model_copy(update={"few_shot": k})
    examples, warning = few_shot_examples(job.model, dataset, rows, wanted, recipe.evaluate, recipe.seed)
    return [examples] * len(rows), [warning] if warning else []


def _ask_endpoint(
    job: RunContext, question: _Question, dataset: Dataset, rows: Sequence[Row], name: str
) -> tuple[SystemAnswers, dict[str, Any], dict[str, Any], list[str]]:
    from tuneloop.pipeline.compared_systems import SystemAnswers

    target = question.target
    assert isinstance(target, EndpointTarget)
    endpoint = target.endpoint
    if job.recipe.evaluate.answer == "choice":
        raise UserError(
            "An endpoint writes its answers, it can't score choices",
            where="evaluate.answer",
            next_step="leave it at auto",
        )
    replies, notes = _replies(job, question, dataset, rows, None, name)
    cost = usage(endpoint, replies)
    say(endpoint_line(cost))
    more: dict[str, Any] = {"model": endpoint.model, "endpoint": masked(endpoint.address)}
    failed = [{"id": row.id, "error": reply.error} for row, reply in zip(rows, replies, strict=True) if reply.error]
    if failed:
        more["failures"] = failed[:MOST_FAILURES]
        notes.append(_failures_in_words(replies))
    if not any(reply.prompt_tokens for reply in replies):
        notes.append("The endpoint doesn't count tokens: costs are unknown.")
    return SystemAnswers(list(replies), cost["seconds"]), cost, more, notes


def _replies(
    job: RunContext,
    question: _Question,
    dataset: Dataset,
    rows: Sequence[Row],
    sampling: Sequence[Sampling] | None,
    task: str,
) -> tuple[list[Completion], list[str]]:
    """An endpoint's replies to rows, and notes on their prompts; without `sampling` all are asked at temperature 0."""
    prompts, notes = _prompts(job, question, dataset, rows)
    limit = job.recipe.evaluate.max_new_tokens or _longest_answer(dataset)
    shown = prompts or [row.prompt for row in rows]
    requests = [
        Request(turns, row.tools, max_new_tokens=limit, sampling=drawn, id=row.id)
        for turns, row, drawn in zip(shown, rows, sampling or [GREEDY] * len(rows), strict=True)
    ]
    return list(question.target.complete(requests, task=task)), notes


def endpoint_line(cost: Mapping[str, Any]) -> str:
    """What asking an endpoint took, in a line."""
    asked = cost["requests"] - cost["cached"] - cost["failed"]
    return (
        f"endpoint  {counted(cost['requests'], 'request')}: {asked} asked, {cost['cached']} known from before, {cost['failed']} failed, "
        f"{counted(cost['retries'], 'retry')}; {cost['prompt_tokens']:,} tokens read, {cost['tokens']:,} written; "
        f"${cost['usd_spent']:.4f} spent now, ${cost['usd']:.4f} in all"
    )


def _failures_in_words(replies: Sequence[Completion]) -> str:
    reasons = failures(replies)
    shown = "; ".join(f"{reason} ({n})" for reason, n in reasons[:3])
    return (
        f"{sum(n for _, n in reasons)} of {counted(len(replies), 'request')} failed and count as wrong answers: {shown}. The same command asks "
        "for these again; all others are kept."
    )


def _longest_answer(dataset: Dataset) -> int:
    """Tokens that an endpoint may write: generous, for its tokens are unknown and it may think aloud."""
    rows = dataset.train[:2000] or dataset.test[:2000]
    lengths = sorted(len(row.answer) for row in rows)
    return max(256, min(lengths[int(0.98 * (len(lengths) - 1))], 4096))


def _side_effects(job: RunContext, question: _Question, dataset: Dataset) -> dict[str, Any]:
    """Forgetting and memorisation, for a model that has a base to be compared with."""
    if question.kind in ("run", "adapter"):
        return after_tuning(job, dataset)
    return (
        after_tuning(job, dataset, base=lambda: nullcontext(load_model(question.options.base)))
        if question.options.base
        else {}
    )


def _consistency(
    job: RunContext,
    question: _Question,
    dataset: Dataset,
    rows: Sequence[Row],
    folder: Path,
    name: str,
    costs: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The same rows asked several ways: of the target, and of the prompts of its base where it has one."""
    from tuneloop.pipeline.compared_systems import Asking, SystemAnswers, ask

    def target(questions: Sequence[Row], sampling: Sequence[Sampling]) -> dict[str, SystemAnswers]:
        task = f"{name}, several ways"
        if isinstance(question.target, EndpointTarget):
            replies, _ = _replies(job, question, dataset, questions, sampling, task)
            cost = usage(question.target.endpoint, replies)
            say(endpoint_line(cost))
            return {name: SystemAnswers(list(replies), cost["seconds"])}
        prompts, _ = _prompts(job, question, dataset, questions)
        how = Asking(prompts=prompts, sampling=sampling)
        return {name: ask(job.model, dataset, questions, job.recipe.evaluate, how, task=task)[""]}

    asks: list[Ask] = [target]
    if question.kind in ("run", "adapter"):
        asks.append(asked_prompts(job, dataset, lambda: base_model(job)))
    drawn = question.kind == "endpoint" or is_drawn(job, dataset)
    return consistency_part(job, folder, dataset, rows, asks, own=name, drawn=drawn, costs=costs)


def _check_consistency(recipe: Recipe, question: _Question) -> None:
    """Refuse to ask a file of answers again, before anything is read."""
    if recipe.evaluate.consistency and question.kind == "predictions":
        raise UserError(
            "A file of answers can't be asked in other words",
            where="evaluate.consistency",
            next_step="evaluate the model or the endpoint that wrote them, or leave consistency at 0",
        )
    if recipe.evaluate.consistency and question.kind == "model" and not isinstance(question.target, LocalTarget):
        raise UserError(
            "A GGUF file is asked for its likeliest answers only, so not in several ways",
            where="evaluate.consistency",
            next_step="evaluate the run, or leave consistency at 0",
        )


def _check_base(recipe: Recipe, question: _Question) -> None:
    """Refuse questions about what tuning has changed of a model whose base nobody names, before it is asked anything."""
    wanted = recipe.evaluate
    asked = wanted.general or wanted.memorisation or wanted.canaries or wanted.lm_eval
    if asked and question.kind not in ("run", "adapter") and not question.options.base:
        raise UserError(
            "What was this model made from? Forgetting and memorisation are differences to its base",
            where=question.name or "--base",
            next_step="give --base MODEL"
            if question.kind == "model"
            else "evaluate the model itself, with --base MODEL: an endpoint or a file of answers can't be compared with it",
        )
