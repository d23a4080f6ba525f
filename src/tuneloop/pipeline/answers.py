"""Answers to rows, from any target: a model here or on Ray, a GGUF file, an endpoint, a file of predictions.

`ask` is the one way to answers; `answers_of_target` puts the target of an evaluation in front of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.ray.actors import ordered_by_actors, usual_actors
from tuneloop.core.ray.cluster import address_of, on_ray
from tuneloop.core.ui import busy, progress, say
from tuneloop.core.units import counted, verb
from tuneloop.core.urls import masked
from tuneloop.data.clean.pii import Redactor
from tuneloop.data.config import PersonalConfig
from tuneloop.data.load_eval_file import IDS
from tuneloop.data.sources.read import read_records
from tuneloop.evaluation.config import BaselinesConfig, EvalOptions, EvaluateConfig
from tuneloop.evaluation.metrics.kinds import problem_of
from tuneloop.evaluation.metrics.labels import label_lists, label_matcher
from tuneloop.evaluation.metrics.text import EMBEDDER, embedder
from tuneloop.evaluation.predictions import answers_from
from tuneloop.evaluation.prompt import (
    AS_IT_IS,
    MOST_EXAMPLES,
    MOST_LABELS,
    PromptTemplate,
    choose_examples,
    fit_examples,
    load_prompt,
    nearest_examples,
    prompt_turns,
    rarest_label,
)
from tuneloop.inference.labels import calibrated
from tuneloop.inference.local.batches import shared_length
from tuneloop.inference.local.target import LocalTarget
from tuneloop.inference.openai.target import Endpoint, endpoint_line, usage
from tuneloop.inference.protocol import Kind, ModelTarget, Target, as_model
from tuneloop.inference.request import Request
from tuneloop.inference.requesting import failures
from tuneloop.inference.targets import PredictionsTarget
from tuneloop.models.batch_invariance import batch_invariant, need_batch_invariance
from tuneloop.models.load import Model
from tuneloop.models.reasoning import with_tags
from tuneloop.models.template import Template
from tuneloop.models.trained import template_of_adapter
from tuneloop.pipeline.context import RunContext, attach_trained
from tuneloop.pipeline.scoring import SystemAnswers, cost_of
from tuneloop.recipe import Recipe
from tuneloop.records.completion import Completion
from tuneloop.records.record import read_record
from tuneloop.records.rows import Dataset, Message, Reject, Row
from tuneloop.records.run import RunManifest

Rows = Sequence[Row]
CONTENT_FREE = "N/A"  # the text whose scores show which labels a model prefers in any case


def joined(parts: Sequence[SystemAnswers], order: Sequence[int]) -> SystemAnswers:
    """One system's answers to parts of some rows as one; `order`: for each row its place among those of the parts."""
    completions = [answer for part in parts for answer in part.completions]
    seconds, computed = sum(part.seconds for part in parts), sum(part.computed for part in parts)
    return replace(parts[0], completions=[completions[i] for i in order], seconds=seconds, computed=computed)


THINKING = 100  # first training rows that say whether answers reason


def uses_choice(dataset: Dataset, config: EvaluateConfig) -> bool:
    """Whether answers come from choice scoring."""
    if config.answer == "choice" and dataset.task != "classification":
        step = "set evaluate.answer=generate, or data.task=classification"
        raise UserError("Choice scoring needs labels, which are missing", where="evaluate.answer", next_step=step)
    if dataset.task != "classification" or config.answer == "generate":
        return False
    # Rows with several labels: the sets that training saw are not all there are, so the model writes its own. What
    # thinks before its label answers as it was trained.
    thinks = any(row.reasoning for row in dataset.train[:THINKING])
    return config.answer == "choice" or (label_lists(dataset.test) is None and not thinks)


def longest_answer(template: Template, dataset: Dataset, config: EvaluateConfig) -> int:
    """Most tokens that a model may write in answer to a row: a quarter over nearly all references, at most 1,024, or
    4,096 where references reason.

    The 98th percentile and not the maximum: one endless reference would make every rambling answer as long.
    """
    if config.max_new_tokens:
        return config.max_new_tokens
    lengths = reference_lengths(template, dataset) or [256]
    typical = lengths[min(int(0.98 * len(lengths)), len(lengths) - 1)]
    most = 4096 if any(row.reasoning for row in dataset.train[:THINKING]) else 1024
    return max(8, min(math.ceil(1.25 * typical), most))


def reference_lengths(template: Template, dataset: Dataset) -> list[int]:
    """Tokens of up to 2,000 references with their end, the shortest first; of test rows where there are no others."""
    rows = dataset.train[:2000] or dataset.test[:2000]
    return sorted(len(template.encode(with_tags(row.reasoning) + row.answer)) + 1 for row in rows)


def few_shot_examples(
    model: Model, dataset: Dataset, rows: Rows, baselines: BaselinesConfig, config: EvaluateConfig, seed: int
) -> tuple[list[Row], str | None]:
    """Examples for the prompt, from the training split only, and a warning when the context holds fewer."""
    labels = (dataset.manifest.labels or []) if dataset.task == "classification" else []
    many = len(labels) > MOST_LABELS
    number = baselines.few_shot
    if number == "auto":
        number = (MOST_EXAMPLES if many else len(labels)) if dataset.task == "classification" else 4
    candidates = [row for row in dataset.train if row.shows_the_task]
    candidates = [row for row in candidates if sum(m["role"] == "user" for m in row.messages) == 1] or candidates
    stratify = rarest_label(candidates) if many else dataset.stratum
    examples = choose_examples(candidates, number, seed=seed, stratify=stratify, frequent_first=many)
    prompts = ((prompt_turns(row, few_shot_prompt(baselines)), row.tools) for row in rows)
    longest = max((len(model.template.prompt_ids(turns, tools)) for turns, tools in prompts), default=0)
    room = model.context - longest - longest_answer(model.template, dataset, config) - 16

    def count(turns: list[Message]) -> int:
        return len(model.template.encode(model.template.text(turns), control=True))

    return fit_examples(examples, room, count)


def few_shot_prompt(baselines: BaselinesConfig) -> PromptTemplate:
    """What few-shot puts in place of a row's own turns. Raises UserError: no such file, or not a prompt."""
    return load_prompt(baselines.prompt) if baselines.prompt else AS_IT_IS


def reading_seconds(
    model: Model, examples: Rows, row: Row, most: int = 512, prompt: PromptTemplate = AS_IT_IS
) -> float:
    """What a model takes to read these examples, from the time of the first `most` tokens of a prompt with them.

    A token costs its products with the weights, and attention, which grows with the tokens before it.
    """
    import torch

    from tuneloop.models.llama import LlamaConfig

    ids = model.template.prompt_ids(prompt_turns(row, prompt, examples), row.tools)
    tokens = len(ids) - len(model.template.prompt_ids(row.prompt, row.tools))
    read = torch.tensor([ids[:most]], device=model.device)
    with torch.inference_mode():
        began = time.monotonic()
        model.hidden(read)[0, -1].float().sum().item()
        seconds = time.monotonic() - began
    try:
        c = LlamaConfig.from_json(dict(model.config))
    except KeyError:
        return seconds * tokens / read.numel()
    weights = c.hidden_size * c.head_size * (2 * c.heads + 2 * c.key_heads) + 3 * c.hidden_size * c.intermediate_size

    def work(n: int) -> float:
        return n * (weights + n * c.heads * c.head_size)

    return seconds * work(tokens) / work(read.numel())


def nearest_few_shot(
    model: Model, dataset: Dataset, rows: Rows, k: int, config: EvaluateConfig
) -> tuple[list[list[Row]], str]:
    """For each row its nearest training rows as examples, and by what: MiniLM where it is installed, else TF-IDF.

    Where the context holds fewer, a row's farthest examples are left out.
    """
    embed = embedder()
    nearest = nearest_examples([row for row in dataset.train if row.shows_the_task], rows, k, embed=embed)
    limit = model.context - longest_answer(model.template, dataset, config) - 16
    fitting = []
    for row, examples in zip(rows, nearest, strict=True):
        while examples and len(model.template.prompt_ids(prompt_turns(row, examples=examples), row.tools)) > limit:
            examples = examples[1:]
        fitting.append(examples)
    return fitting, EMBEDDER if embed else "TF-IDF"


@dataclass(frozen=True)
class Asking:
    """How rows become prompts."""

    examples: Rows = ()  # shown in the prompt as earlier turns
    template: PromptTemplate = AS_IT_IS  # what is put in place of a row's own turns
    prompts: Sequence[Sequence[Message]] | None = None  # each row's turns before its answer; None: its own
    with_calibrated: bool = False  # with choice scoring, also give the answers of calibrated scores
    perplexity: bool = True  # also measure the loss of references, where texts are written from the rows alone

    @property
    def measures_loss(self) -> bool:
        """Whether the loss of references is measured: they follow the rows' own turns."""
        return self.perplexity and self.prompts is None and not self.examples

    def prompt_ids(self, rows: Rows, template: Template) -> list[list[int]]:
        """The prompt of each row."""
        prompts = self.prompts
        if prompts is None:
            prompts = [prompt_turns(row, self.template, self.examples) for row in rows]
        return [template.prompt_ids(list(turns), row.tools) for turns, row in zip(prompts, rows, strict=True)]


def ask(
    model: Model | Target,
    dataset: Dataset,
    rows: Rows,
    config: EvaluateConfig,
    how: Asking = Asking(),
    *,
    task: str = "answering",
) -> dict[str, SystemAnswers]:
    """Answers to rows: `{"": ...}`, and `{"calibrated": ...}` when `how` requests it.

    Args:
        model: with or without an adapter, or any target. Prompts become tokens here where its tokenizer is known.
        task: name for the progress display.

    Raises:
        UserError: a prompt is longer than the model's context, or there is none; `config` wants what it can't do.
    """
    target = LocalTarget.of(model) if isinstance(model, Model) else model
    started = time.monotonic()
    progress(task, 0, len(rows))  # reading the examples takes a while
    _refuse_settings(target, config)
    reader = as_model(target)
    choice = uses_choice(dataset, config) and not target.no_scores[0]
    if reader is not None:
        ids = how.prompt_ids(rows, reader.template)
        limit = 1 if choice else longest_answer(reader.template, dataset, config)
        prompts = [Request(ids=prompt) for prompt in ids]
        _refuse_too_long(reader.context, rows, ids)
    else:
        ids, limit = [], config.max_new_tokens or generous_limit(dataset.train[:2000] or dataset.test[:2000])
        turns = how.prompts or [prompt_turns(row, how.template, how.examples) for row in rows]
        prompts = [Request(messages, row.tools) for messages, row in zip(turns, rows, strict=True)]
    requests = [replace(prompt, max_new_tokens=limit, id=row.id) for prompt, row in zip(prompts, rows, strict=True)]
    labels = dataset.manifest.labels or []
    with batch_invariant(config.deterministic):
        if choice:  # calibration subtracts from every label's score, so every label's score is needed
            answers = list(target.score(requests, labels, exact=how.with_calibrated, task=task))
        else:
            answers = list(target.complete(requests, task=task))
    seconds = time.monotonic() - started
    if reader is not None and how.measures_loss and reader.measures_losses and dataset.task != "classification":
        rendered = [reader.template.render(row.messages, row.tools) for row in rows]
        fits = reader.fits(rendered, task=f"{task}: reference answers")
        answers = [replace(a, loss=fit.loss, loss_tokens=fit.tokens) for a, fit in zip(answers, fits, strict=True)]
    computed = 0
    if target.shares_prompts:  # what all prompts share is computed once; other engines do not report it
        shared = shared_length(ids)
        computed = shared + sum(
            len(prompt) - shared + a.completion_tokens for prompt, a in zip(ids, answers, strict=True)
        )
    by_kind = {"": SystemAnswers(answers, seconds, computed=computed)}
    if reader is not None and choice and how.with_calibrated:
        with batch_invariant(config.deterministic):
            completions = _calibrated(reader, answers, labels, _content_free(rows[0]), how, task)
        by_kind["calibrated"] = replace(by_kind[""], completions=completions, seconds=time.monotonic() - started)
    return by_kind


def generous_limit(rows: Rows) -> int:
    """Most tokens of an answer of a model whose tokenizer is not known: generous, for it may think aloud."""
    lengths = sorted(len(row.answer) for row in rows)
    return max(256, min(lengths[int(0.98 * (len(lengths) - 1))], 4096))


def _refuse_settings(target: Target, config: EvaluateConfig) -> None:
    """Refuse what a target can't do."""
    if config.answer == "choice" and target.no_scores[0]:
        why, instead = target.no_scores
        raise UserError(why, where="evaluate.answer", next_step=instead)
    if not config.deterministic:
        return
    if not isinstance(target, LocalTarget):
        what, step = f"Only our own engine gives deterministic answers, not that of {target.name}", "leave it out"
        raise UserError(what, where="evaluate.deterministic", next_step=step)
    need_batch_invariance(target.model)


def _calibrated(
    target: ModelTarget, answers: Sequence[Completion], labels: Sequence[str], blank: Row, how: Asking, task: str
) -> list[Completion]:
    """The likeliest labels when the scores of a row without content are subtracted."""
    (ids,) = how.prompt_ids([blank], target.template)
    with busy(f"{task}: calibrating"):
        offset = next(target.score([Request(ids=ids)], labels, exact=True)).label_scores or {}
    tokens = target.label_tree(labels).tokens
    return [calibrated(answer, offset, tokens) for answer in answers]


def _refuse_too_long(context: int, rows: Rows, ids: Sequence[Sequence[int]]) -> None:
    """A prompt beyond the context would be answered from what the model has never learned to read."""
    long = [i for i, prompt in enumerate(ids) if len(prompt) >= context]
    if not long:
        return
    worst = max(long, key=lambda i: len(ids[i]))
    raise UserError(
        f"{len(long)} of {counted(len(ids), 'prompt')} {verb(len(long), 'is', 'are')} too long: "
        f"the longest takes {len(ids[worst]):,} tokens, the model reads {context:,}",
        where=f"row {rows[worst].id}",
        next_step="show fewer examples, or prepare with a smaller data.max_length",
    )


def _content_free(row: Row) -> Row:
    """The row with its last user turn replaced by something that says nothing."""
    messages = [dict(message) for message in row.messages]
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    messages[last]["content"] = CONTENT_FREE
    return replace(row, messages=messages)  # type: ignore[arg-type]


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
    if not target.takes_prompts:
        return _of_file(work)
    if not all(row.prompt for row in work.rows):
        what = "These rows are references without prompts: no model can answer them"
        step = "give rows with prompts, or answers with --predictions FILE"
        raise UserError(what, where=work.dataset.path, next_step=step)
    if question.options.on and target.in_process:
        return _by_actors(work)
    if target.in_process and question.kind in ("run", "adapter"):
        attach_trained(job)
    prompts, notes = _prompts(work)
    system = _asked(work, Asking(prompts=prompts), work.name)
    if target.endpoint is not None:
        return _from_endpoint(work, target.endpoint, system.completions, notes)
    return TargetAnswers(system, cost_of(job, system, work.training), notes)


def _asked(work: EvalJob, how: Asking, task: str) -> SystemAnswers:
    """A target's answers to the rows; one that is in another engine is closed behind them."""
    target = work.question.target
    with closing(target):
        if target.is_classifier:
            target.load()  # what is timed is its answers
        model = _answering(work) if target.in_process else target
        return ask(model, work.dataset, work.rows, work.job.recipe.evaluate, how, task=task)[""]


def _answering(work: EvalJob) -> Model:
    """The model of the job; behind an adapter of another trainer with the template that is next to it."""
    folder, model = work.question.target.folder, work.job.model
    if work.question.kind != "adapter" or folder is None:
        return model
    return replace(model, template=template_of_adapter(folder, model.template))


def answers_to_rewordings(work: EvalJob, rows: Sequence[Row]) -> list[Completion]:
    """A target's answers to rows in other words."""
    work = replace(work, rows=rows)
    answers = _asked(work, Asking(prompts=_prompts(work)[0], perplexity=False), f"{work.name}, several ways")
    if (endpoint := work.question.target.endpoint) is not None:
        say(endpoint_line(usage(endpoint, answers.completions)))
    return answers.completions


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


def _from_endpoint(work: EvalJob, endpoint: Endpoint, replies: Sequence[Completion], notes: list[str]) -> TargetAnswers:
    """A server's answers with their costs, and notes on those that failed."""
    if work.question.target.no_scores[0] and uses_choice(work.dataset, work.job.recipe.evaluate):
        label_of = label_matcher(work.dataset.manifest.labels or [])
        others = sum(label_of(reply.text) is None for reply in replies if not reply.error)
        if others:
            notes.append(
                f"{others} of {counted(len(replies), 'answer')} {verb(others, 'names', 'name')} no label: the endpoint "
                "writes them. With --base MODEL (or --base RUN, for its template) labels are scored, as of a run."
            )
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
    k, recipe, local = options.few_shot, job.recipe, work.question.target.in_process
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
