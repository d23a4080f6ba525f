"""How any target answers rows: a local model here or on Ray, a GGUF file, an endpoint, a file of predictions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.ray.actors import ordered_by_actors, usual_actors
from tuneloop.core.ray.cluster import address_of, on_ray
from tuneloop.core.ui import progress, say
from tuneloop.core.units import counted, verb
from tuneloop.core.urls import masked
from tuneloop.data.clean.pii import Redactor
from tuneloop.data.config import PersonalConfig
from tuneloop.data.load_eval_file import IDS
from tuneloop.data.sources.read import read_records
from tuneloop.evaluation.config import EvalOptions
from tuneloop.evaluation.metrics.code import problem_of
from tuneloop.evaluation.metrics.labels import label_matcher
from tuneloop.evaluation.metrics.text import EMBEDDER, embedder
from tuneloop.evaluation.predictions import answers_from
from tuneloop.evaluation.prompt import AS_IT_IS, choose_examples, load_prompt, nearest_examples, prompt_turns
from tuneloop.inference.local.target import LocalTarget
from tuneloop.inference.openai.target import Endpoint, EndpointTarget, usage
from tuneloop.inference.protocol import Kind, Target, as_model
from tuneloop.inference.request import GREEDY, Request, Sampling
from tuneloop.inference.requesting import failures
from tuneloop.inference.targets import PredictionsTarget, endpoint_of
from tuneloop.models.load import Model
from tuneloop.models.trained import template_of_adapter
from tuneloop.pipeline.compared_systems import (
    Asking,
    SystemAnswers,
    ask,
    few_shot_examples,
    nearest_few_shot,
    uses_choice,
)
from tuneloop.pipeline.context import RunContext, attach_trained
from tuneloop.pipeline.scoring import cost_of
from tuneloop.recipe import Recipe
from tuneloop.records.completion import Completion
from tuneloop.records.record import read_record
from tuneloop.records.rows import Dataset, Message, Reject, Row
from tuneloop.records.run import RunManifest

MOST_FAILURES = 100  # named in eval.json
PIECES = 8  # parts of the rows for each actor of Ray: what a lost one had is repeated


@dataclass(frozen=True)
class Question:
    """Who is evaluated on what."""

    target: Target
    options: EvalOptions
    settings: Sequence[str] = ()  # `key=value`, of the recipe; those of `evaluate.` may leave that out

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
class EvalJob:
    """An evaluation at work."""

    job: RunContext
    question: Question
    dataset: Dataset
    rows: Sequence[Row]  # to answer
    name: str = ""  # of the system in the result

    @property
    def training(self) -> RunManifest | None:
        """The training that the target comes from, where it is a run."""
        return read_record(RunManifest, self.job.folder) if self.question.kind == "run" else None

    @property
    def redactor(self) -> Redactor:
        """Replaces personal data in files as it was replaced in the data set."""
        return Redactor(personal_settings(self.job.recipe, self.question, self.dataset))


@dataclass(frozen=True)
class TargetAnswers:
    """Answers to all rows, and what is kept with them in `eval.json`."""

    system: SystemAnswers
    cost: dict[str, Any]
    notes: list[str]
    parts: dict[str, Any] = field(default_factory=dict)  # further parts of `eval.json`


def personal_settings(recipe: Recipe, question: Question, dataset: Dataset | None) -> PersonalConfig:
    """What happens to personal data in files: what the settings say, else what was done to the data set."""
    if dataset is None or any(setting.startswith("data.personal") for setting in question.settings):
        return recipe.data.personal
    return PersonalConfig.model_validate(dataset.manifest.config.get("personal", {}))


def answers_of_target(work: EvalJob) -> TargetAnswers:
    """A target's answers to the rows; refused where it can't answer these."""
    job, question, target = work.job, work.question, work.question.target
    if question.kind == "predictions":
        return _of_file(work)
    if not all(row.prompt for row in work.rows):
        what = "These rows are references without prompts: no model can answer them"
        step = "give rows with prompts, or answers with --predictions FILE"
        raise UserError(what, where=work.dataset.path, next_step=step)
    if isinstance(target, EndpointTarget):
        return _of_endpoint(work, target)
    if question.options.on and isinstance(target, LocalTarget):
        return _by_actors(work)
    if isinstance(target, LocalTarget) and question.kind in ("run", "adapter"):
        attach_trained(job)
    prompts, notes = _prompts(work)
    system = _asked(work, Asking(prompts=prompts), work.name)
    if (endpoint := endpoint_of(target)) is not None:
        return _from_endpoint(work, endpoint, system.completions, notes)
    return TargetAnswers(system, cost_of(job, system, work.training), notes)


def _asked(work: EvalJob, how: Asking, task: str) -> SystemAnswers:
    """A model's answers to the rows; one that is in another engine is closed behind them."""
    job, target = work.job, work.question.target
    other = None if isinstance(target, LocalTarget) else as_model(target)
    with closing(other) if other is not None else nullcontext(_answering(work)) as model:
        return ask(model, work.dataset, work.rows, job.recipe.evaluate, how, task=task)[""]


def _answering(work: EvalJob) -> Model:
    """The model of the job; behind an adapter of another trainer with the template that is next to it."""
    target, model = work.question.target, work.job.model
    if work.question.kind != "adapter" or not isinstance(target, LocalTarget) or target.trained is None:
        return model
    return replace(model, template=template_of_adapter(target.trained, model.template))


def answers_to_rewordings(work: EvalJob, sampling: Sequence[Sampling]) -> dict[str, SystemAnswers]:
    """A target's answers to rows, drawn as `sampling` says for each, by the system's name."""
    task, target = f"{work.name}, several ways", work.question.target
    if isinstance(target, EndpointTarget):
        replies, _ = _replies(work, target, sampling, task)
        cost = usage(target.endpoint, replies)
        say(endpoint_line(cost))
        return {work.name: SystemAnswers(list(replies), cost["seconds"])}
    return {work.name: _asked(work, Asking(prompts=_prompts(work)[0], sampling=sampling), task)}


# --- by actors of a Ray cluster ------------------------------------------------------------------


def _by_actors(work: EvalJob) -> TargetAnswers:
    """Answers of actors that each have the model; they are the same, since each depends on its row alone."""
    began, parts, notes = time.monotonic(), list[SystemAnswers](), list[str]()
    job, options, rows = work.job, work.question.options, list(work.rows)
    with on_ray(address_of(options.on)) as ray:
        actors = usual_actors(ray, options.actors)
        say(f"ray       {actors} {'actor answers' if actors == 1 else 'actors answer'}")
        size = max(-(-len(rows) // (PIECES * actors)), 1)
        pieces = [list(range(first, min(first + size, len(rows)))) for first in range(0, len(rows), size)]
        setting = (work.question, job.recipe, Path(job.folder).resolve(), work.dataset, rows)
        for part, part_notes in ordered_by_actors(ray, _actor, setting, pieces, actors):
            parts.append(part)
            notes = part_notes  # the same of each actor
            progress(work.name, sum(len(each.completions) for each in parts), len(rows))
    completions = [completion for part in parts for completion in part.completions]
    computed = sum(part.computed for part in parts)
    system = SystemAnswers(completions, time.monotonic() - began, computed=computed)
    return TargetAnswers(system, cost_of(job, system, work.training), notes)


Setting = tuple[Question, Recipe, Path, Dataset, list[Row]]


def _actor(setting: Setting) -> Callable[[list[int]], tuple[SystemAnswers, list[str]]]:
    """What answers rows, by their places, in an actor; it loads the model once."""
    question, recipe, folder, dataset, rows = setting
    job = RunContext(recipe, folder)
    if question.kind in ("run", "adapter"):
        attach_trained(job)
    work = EvalJob(job, question, dataset, rows)
    model, (prompts, notes) = _answering(work), _prompts(work)

    def answer(places: list[int]) -> tuple[SystemAnswers, list[str]]:
        how = Asking(prompts=None if prompts is None else [prompts[place] for place in places])
        return ask(model, dataset, [rows[place] for place in places], recipe.evaluate, how)[""], notes

    return answer


# --- from a file of predictions ------------------------------------------------------------------


def _of_file(work: EvalJob) -> TargetAnswers:
    """Answers from a file, rows without one and ids without a row, and what a reader has to know of them."""
    options, rows, dataset = work.question.options, work.rows, work.dataset
    file, redactor = options.predictions, work.redactor
    if options.data and Path(options.data).resolve() == Path(file).resolve():
        what = "The references can't be their own predictions"
        raise UserError(what, where=options.data, next_step="name two files")
    records = _read_predictions(file)
    if not any(problem_of(row) for row in rows):  # an answer is compared with a reference that was redacted too
        renamed = dataset.renamed
        ids = [{n: renamed[str(record[n])] for n in IDS if str(record.get(n)) in renamed} for record in records]
        records = [{**redactor(record), **new} for record, new in zip(records, ids, strict=True)]
    matches = answers_from(records, rows, file, all_rows=dataset.test, order=dataset.order)
    further = tuple(each[1:] for each in matches.answers)
    unused = sum(bool(more) and problem_of(row) is None for more, row in zip(further, rows, strict=True))
    missing, unknown, notes = matches.missing(rows), matches.unknown, []
    if unused:
        notes.append(f"{counted(unused, 'row')} {verb(unused, 'has', 'have')} several predictions: the first counts.")
    if missing:
        count, wrong = verb(len(missing), "has", "have"), verb(len(missing), "counts", "count")
        of_rows = f"{len(missing)} of {counted(len(rows), 'row')}"
        notes.append(f"{of_rows} {count} no prediction and {wrong} as wrong: {_some(missing)}.")
    if unknown:
        notes.append(f"{len(unknown)} predictions are for no row of these and were not used: {_some(unknown)}.")
    failed = [{"id": i, "error": "no prediction"} for i in missing]
    failed += [{"id": i, "error": "no such row"} for i in unknown]
    first = {row.id: each[0] for row, each in zip(rows, matches.answers, strict=True) if each}
    answers = list(PredictionsTarget(file, first).complete([Request(id=row.id) for row in rows]))
    if redacted := redactor.words(file, len(rows)):
        say(f"data      {redacted}")
    system = SystemAnswers(answers, 0.0, further=further if any(further) else ())
    return TargetAnswers(system, {}, notes, {"model": work.name} | _failures_part(failed))


def _read_predictions(file: str) -> list[Any]:
    """The records of a file of predictions; blank lines are passed over."""
    records = []
    for item in read_records([file]):
        if not isinstance(item, Reject):
            records.append(item.value)
        elif item.reason != "blank_line":
            what = f"A prediction can't be read ({item.reason}: {item.detail})"
            step = 'write one {"id": ..., "prediction": "..."} a line'
            raise UserError(what, where=f"{file}, line {item.line}", next_step=step)
    return records


def _failures_part(failed: list[dict[str, str]]) -> dict[str, Any]:
    return {"failures": failed[:MOST_FAILURES]} if failed else {}


def _some(ids: Sequence[str]) -> str:
    return ", ".join(each[:60] for each in ids[:3]) + (" ..." if len(ids) > 3 else "")


# --- from an endpoint ----------------------------------------------------------------------------


def _of_endpoint(work: EvalJob, target: EndpointTarget) -> TargetAnswers:
    """Answers of an endpoint of whose model nothing is known: it writes them."""
    if work.job.recipe.evaluate.answer == "choice":
        what = "An endpoint writes its answers; labels are scored where it is known what model it serves"
        step = "give --base MODEL, or --base RUN for its template too; or leave it at auto"
        raise UserError(what, where="evaluate.answer", next_step=step)
    replies, notes = _replies(work, target, None, work.name)
    if uses_choice(work.dataset, work.job.recipe.evaluate):
        label_of = label_matcher(work.dataset.manifest.labels or [])
        others = sum(label_of(reply.text) is None for reply in replies if not reply.error)
        if others:
            notes.append(
                f"{others} of {counted(len(replies), 'answer')} {verb(others, 'names', 'name')} no label: the endpoint "
                "writes them. With --base MODEL (or --base RUN, for its template) labels are scored, as of a run."
            )
    return _from_endpoint(work, target.endpoint, replies, notes)


def _from_endpoint(work: EvalJob, endpoint: Endpoint, replies: Sequence[Completion], notes: list[str]) -> TargetAnswers:
    """A server's answers with their costs, and notes on those that failed."""
    cost = usage(endpoint, replies)
    say(endpoint_line(cost))
    failed = [{"id": r.id, "error": reply.error} for r, reply in zip(work.rows, replies, strict=True) if reply.error]
    if failed:
        reasons = "; ".join(f"{reason} ({n})" for reason, n in failures(replies)[:3])
        notes.append(
            f"{len(failed)} of {counted(len(replies), 'request')} failed and count as wrong answers: {reasons}. "
            "The same command asks for these again; all others are kept."
        )
    if not any(reply.prompt_tokens for reply in replies):
        notes.append("The endpoint doesn't count tokens: costs are unknown.")
    parts = {"model": endpoint.model, "endpoint": masked(endpoint.address)} | _failures_part(failed)
    return TargetAnswers(SystemAnswers(list(replies), cost["seconds"]), cost, notes, parts)


def _replies(
    work: EvalJob, target: EndpointTarget, sampling: Sequence[Sampling] | None, task: str
) -> tuple[list[Completion], list[str]]:
    """An endpoint's replies to rows, and notes on their prompts; without `sampling` all are at temperature 0."""
    rows, dataset, limit = work.rows, work.dataset, work.job.recipe.evaluate.max_new_tokens
    prompts, notes = _prompts(work)
    limit = limit or generous_limit(dataset.train[:2000] or dataset.test[:2000])
    turns, sampling = prompts or [row.prompt for row in rows], sampling or [GREEDY] * len(rows)
    requests = [
        Request(messages, row.tools, max_new_tokens=limit, sampling=each, id=row.id)
        for messages, row, each in zip(turns, rows, sampling, strict=True)
    ]
    return list(target.complete(requests, task=task)), notes


def generous_limit(rows: Sequence[Row]) -> int:
    """Most tokens of an endpoint's answer: generous, for its tokens are unknown and it may think aloud."""
    lengths = sorted(len(row.answer) for row in rows)
    return max(256, min(lengths[int(0.98 * (len(lengths) - 1))], 4096))


def endpoint_line(cost: Mapping[str, Any]) -> str:
    """The requests to an endpoint and what they cost, in a line."""
    fresh = cost["requests"] - cost["cached"] - cost["failed"]
    lost = (
        f"; up to {counted(cost['lost'], 'further reply')} that did not arrive may be billed too"
        if cost["lost"]
        else ""
    )
    return (
        f"endpoint  {counted(cost['requests'], 'request')}: {fresh} sent, {cost['cached']} known from before, "
        f"{cost['failed']} failed, {counted(cost['retries'], 'retry')}; "
        f"{cost['prompt_tokens']:,} tokens read, {cost['tokens']:,} written; "
        f"${cost['usd_spent']:.4f} spent now, ${cost['usd']:.4f} in all{lost}"
    )


# --- prompts with a template or examples -----------------------------------------------------------


def _prompts(work: EvalJob) -> tuple[list[list[Message]] | None, list[str]]:
    """Each row's turns, with a template and examples where the options name them; None: its own. And notes."""
    options, rows = work.question.options, work.rows
    if not options.few_shot and not options.prompt:
        return None, []
    template = load_prompt(options.prompt) if options.prompt else AS_IT_IS
    examples, notes = _examples(work) if options.few_shot else ([[] for _ in rows], [])
    labels = work.dataset.manifest.labels
    return [prompt_turns(row, template, each, labels) for row, each in zip(rows, examples, strict=True)], notes


def _examples(work: EvalJob) -> tuple[list[Sequence[Row]], list[str]]:
    """The examples of each row; a local model's fit its context. And notes."""
    job, dataset, rows, options = work.job, work.dataset, work.rows, work.question.options
    k, recipe, local = options.few_shot, job.recipe, isinstance(work.question.target, LocalTarget)
    if not dataset.train:
        what = "Few-shot examples come from a training split, and there is none"
        step = "give the prepared data set too, with --dataset FOLDER"
        raise UserError(what, where="--few-shot", next_step=step)
    pool = [row for row in dataset.train if row.shows_the_task]
    if options.examples == "nearest":
        if local:
            nearest, how = nearest_few_shot(job.model, dataset, rows, k, recipe.evaluate)
        else:
            embed = embedder()
            nearest, how = nearest_examples(pool, rows, k, embed=embed), EMBEDDER if embed else "TF-IDF"
        notes = [f"Examples: the {k} nearest training rows of each row, by {how}."]
        if short := sum(len(each) < min(k, len(pool)) for each in nearest):
            fewer = f"{counted(short, 'row')} {verb(short, 'has', 'have')} fewer than {counted(k, 'example')}"
            notes.insert(0, f"{fewer}: the context holds no more.")
        return list(nearest), notes
    if not local:
        return [choose_examples(pool, k, seed=recipe.seed)] * len(rows), []
    settings = recipe.baselines.model_copy(update={"few_shot": k})
    examples, warning = few_shot_examples(job.model, dataset, rows, settings, recipe.evaluate, recipe.seed)
    return [examples] * len(rows), [warning] if warning else []
