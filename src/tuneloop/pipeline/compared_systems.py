"""Who is compared: ways to get answers to a split's rows from one model, each a row of the closing table."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuneloop.core.errors import UserError
from tuneloop.core.ui import busy, progress
from tuneloop.core.units import counted, verb
from tuneloop.evaluation.config import BaselinesConfig, EvaluateConfig
from tuneloop.evaluation.metrics.labels import label_lists
from tuneloop.evaluation.metrics.text import EMBEDDER, embedder
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
from tuneloop.inference.protocol import ModelTarget
from tuneloop.inference.request import GREEDY, Request, Sampling
from tuneloop.models.batch_invariance import batch_invariant, need_batch_invariance
from tuneloop.models.load import Model
from tuneloop.models.reasoning import with_tags
from tuneloop.models.template import Template
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Dataset, Message, Row

Rows = Sequence[Row]
CONTENT_FREE = "N/A"  # the text whose scores show which labels a model prefers in any case


@dataclass(frozen=True)
class SystemAnswers:
    """A system's answers and what they took."""

    completions: list[Completion]  # one a row
    seconds: float  # to get them
    training_seconds: float = 0.0  # spent before
    computed: int = 0  # tokens that were computed (what prompts share is computed once); 0: unknown
    further: tuple[Sequence[str], ...] = ()  # more answers to the same prompts (pass@k), a list a row; or empty
    note: str = ""  # what a reader has to know about the prompts

    @property
    def perplexity(self) -> float | None:
        """exp of the mean loss of a reference token; None where it was not measured on all rows."""
        losses = [answer.loss for answer in self.completions if answer.loss is not None]
        if len(losses) < max(len(self.completions), 1):
            return None
        return math.exp(min(sum(losses) / max(sum(a.loss_tokens or 0 for a in self.completions), 1), 50.0))

    @property
    def prompt_tokens(self) -> int:
        """Tokens read, summed over the rows."""
        return sum(answer.prompt_tokens for answer in self.completions)

    @property
    def tokens(self) -> int:
        """Tokens written, summed over the rows."""
        return sum(answer.completion_tokens for answer in self.completions)


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
    """How rows become prompts, and how answers are drawn."""

    examples: Rows = ()  # shown in the prompt as earlier turns
    template: PromptTemplate = AS_IT_IS  # what is put in place of a row's own turns
    prompts: Sequence[Sequence[Message]] | None = None  # each row's turns before its answer; None: its own
    with_calibrated: bool = False  # with choice scoring, also give the answers of calibrated scores
    sampling: Sequence[Sampling] | None = None  # how each row's answer is drawn where it is written; None: greedily
    perplexity: bool = True  # also measure the loss of references, where texts are written from the rows alone

    @property
    def measures_loss(self) -> bool:
        """Whether the loss of references is measured: they follow the rows' own turns, and answers are greedy."""
        return self.perplexity and self.prompts is None and not self.examples and self.sampling is None

    def prompt_ids(self, rows: Rows, template: Template) -> list[list[int]]:
        """The prompt of each row."""
        prompts = self.prompts
        if prompts is None:
            prompts = [prompt_turns(row, self.template, self.examples) for row in rows]
        return [template.prompt_ids(list(turns), row.tools) for turns, row in zip(prompts, rows, strict=True)]


def ask(
    model: Model | ModelTarget,
    dataset: Dataset,
    rows: Rows,
    config: EvaluateConfig,
    how: Asking = Asking(),
    *,
    task: str = "answering",
) -> dict[str, SystemAnswers]:
    """A model's answers to rows: `{"": ...}`, and `{"calibrated": ...}` when `how` requests it.

    Args:
        model: with or without an adapter, or a model in another engine.
        task: name for the progress display.

    Raises:
        UserError: a prompt is longer than the model's context, or there is none.
    """
    started = time.monotonic()
    progress(task, 0, len(rows))  # reading the examples takes a while
    target: ModelTarget = LocalTarget.of(model) if isinstance(model, Model) else model
    ids, choice = how.prompt_ids(rows, target.template), uses_choice(dataset, config)
    limit = 1 if choice else longest_answer(target.template, dataset, config)
    requests = [
        Request(ids=prompt, max_new_tokens=limit, sampling=sampling, id=row.id)
        for prompt, sampling, row in zip(ids, how.sampling or [GREEDY] * len(rows), rows, strict=True)
    ]
    _refuse_too_long(target.context, rows, ids)
    labels = dataset.manifest.labels or []
    if config.deterministic:
        _need_our_engine(target)
    with batch_invariant(config.deterministic):
        if choice:  # calibration subtracts from every label's score, so every label's score is needed
            answers = list(target.score(requests, labels, exact=how.with_calibrated, task=task))
        else:
            answers = list(target.complete(requests, task=task))
    seconds = time.monotonic() - started
    if how.measures_loss and target.measures_losses and dataset.task != "classification":
        rendered = [target.template.render(row.messages, row.tools) for row in rows]
        fits = target.fits(rendered, task=f"{task}: reference answers")
        answers = [replace(a, loss=fit.loss, loss_tokens=fit.tokens) for a, fit in zip(answers, fits, strict=True)]
    computed = 0
    if target.shares_prompts:  # what all prompts share is computed once; other engines do not report it
        shared = shared_length(ids)
        computed = shared + sum(
            len(prompt) - shared + a.completion_tokens for prompt, a in zip(ids, answers, strict=True)
        )
    by_kind = {"": SystemAnswers(answers, seconds, computed=computed)}
    if choice and how.with_calibrated:
        with batch_invariant(config.deterministic):
            completions = _calibrated(target, answers, labels, _content_free(rows[0]), how, task)
        by_kind["calibrated"] = replace(by_kind[""], completions=completions, seconds=time.monotonic() - started)
    return by_kind


def _need_our_engine(target: ModelTarget) -> None:
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
