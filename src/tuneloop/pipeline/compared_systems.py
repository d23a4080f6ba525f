"""Who is compared: ways to get answers to a split's rows from one model, each a row of the closing table."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.ui import busy, progress
from tuneloop.core.units import counted, verb
from tuneloop.evaluation.config import BaselinesConfig, EvaluateConfig
from tuneloop.evaluation.evaluate import sample_rows
from tuneloop.evaluation.forgetting import (
    LEAST_TOKENS,
    Ability,
    Completed,
    ability,
    canaries,
    canaries_in_words,
    forgetting,
    memorisation,
    tasks_before_and_after,
)
from tuneloop.evaluation.lm_eval import TaskScores, harness_missing, run_tasks
from tuneloop.evaluation.metrics.labels import label_lists
from tuneloop.evaluation.metrics.text import EMBEDDER, embedder
from tuneloop.evaluation.prompt import (
    MOST_EXAMPLES,
    MOST_LABELS,
    choose_examples,
    fit_examples,
    nearest_examples,
    prompt_turns,
    rarest_label,
)
from tuneloop.inference.answer import ModelTarget
from tuneloop.inference.local.batches import shared_length
from tuneloop.inference.local.sampling import GREEDY, Sampling
from tuneloop.inference.local.scoring import AnswerFit, calibrated, choose, label_trie
from tuneloop.inference.local.target import LocalTarget
from tuneloop.inference.request import Request
from tuneloop.models.load import Model
from tuneloop.models.template import Template
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Dataset, Message, Row

# What stands in for the text when a model's liking for labels is measured.
CONTENT_FREE = "N/A"


@dataclass(frozen=True)
class SystemAnswers:
    """A system's answers and what they took.

    Args:
        completions: one a row.
        seconds: to get them.
        training_seconds: spent before, on training.
        computed: tokens that were computed (what prompts share is computed once); 0: unknown.
        further: more answers to the same prompts, for pass@k; empty, or a list for each row.
        note: what a reader has to know about the prompts.
    """

    completions: list[Completion]
    seconds: float
    training_seconds: float = 0.0
    computed: int = 0
    further: tuple[Sequence[str], ...] = ()
    note: str = ""

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
    """The answers to parts of some rows as one.

    Args:
        parts: of one system, asked one after the other.
        order: for each row its place among those of the parts.
    """
    completions = [answer for part in parts for answer in part.completions]
    return replace(
        parts[0],
        completions=[completions[i] for i in order],
        seconds=sum(part.seconds for part in parts),
        computed=sum(part.computed for part in parts),
    )


def uses_choice(dataset: Dataset, config: EvaluateConfig) -> bool:
    """Whether answers come from choice scoring."""
    if config.answer == "choice" and dataset.task != "classification":
        raise UserError(
            "Choice scoring needs labels, and this data set has none",
            where="evaluate.answer",
            next_step="set evaluate.answer=generate, or data.task=classification",
        )
    if dataset.task != "classification" or config.answer == "generate":
        return False
    # Rows with several labels: the sets that training saw are not all there are, so the model writes its own.
    return config.answer == "choice" or label_lists(dataset.test) is None


def answer_limit(model: Model, dataset: Dataset, config: EvaluateConfig) -> int:
    """Longest answer that a model may write to a data set's rows; see `longest_answer`."""
    return longest_answer(model.template, dataset, config)


def longest_answer(template: Template, dataset: Dataset, config: EvaluateConfig) -> int:
    """Longest answer to generate: a quarter over nearly all references, at most 1,024 tokens.

    The 98th percentile and not the maximum: one endless reference would make every rambling answer as long.
    """
    if config.max_new_tokens:
        return config.max_new_tokens
    lengths = reference_lengths(template, dataset) or [256]
    typical = lengths[min(int(0.98 * len(lengths)), len(lengths) - 1)]
    return max(8, min(math.ceil(1.25 * typical), 1024))


def reference_lengths(template: Template, dataset: Dataset) -> list[int]:
    """Tokens of up to 2,000 references with their end, the shortest first."""
    known = dataset.train[:2000] or dataset.test[:2000]  # a file by itself: there its own references tell
    return sorted(len(template.encode(row.answer)) + 1 for row in known)


def few_shot_examples(
    model: Model, dataset: Dataset, rows: Sequence[Row], baselines: BaselinesConfig, config: EvaluateConfig, seed: int
) -> tuple[list[Row], str | None]:
    """Examples for the prompt, from the training split only, and a warning when the context holds fewer than asked for."""
    labels = (dataset.manifest.labels or []) if dataset.task == "classification" else []
    many = len(labels) > MOST_LABELS
    wanted = baselines.few_shot
    if wanted == "auto":
        wanted = (MOST_EXAMPLES if many else len(labels)) if dataset.task == "classification" else 4
    candidates = [row for row in dataset.train if row.shows_the_task]
    candidates = [row for row in candidates if sum(m["role"] == "user" for m in row.messages) == 1] or candidates
    examples = choose_examples(
        candidates,
        wanted,
        seed=seed,
        stratify=rarest_label(candidates) if many else dataset.stratum,
        frequent_first=many,
    )
    longest = max((len(model.template.prompt_ids(row.prompt, row.tools)) for row in rows), default=0)
    room = model.context - longest - answer_limit(model, dataset, config) - 16

    def count(turns: list[Message]) -> int:
        return len(model.template.encode(model.template.text(turns), control=True))

    return fit_examples(examples, room, count)


def reading_seconds(model: Model, examples: Sequence[Row], row: Row, most: int = 512) -> float:
    """What a model takes to read these examples, from the time of the first `most` tokens of a prompt with them.

    A token costs its products with the weights, and attention, which grows with the tokens before it.
    """
    import torch

    from tuneloop.models.llama import LlamaConfig

    ids = model.template.prompt_ids(prompt_turns(row, examples=examples), row.tools)
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
    model: Model, dataset: Dataset, rows: Sequence[Row], k: int, config: EvaluateConfig
) -> tuple[list[list[Row]], str]:
    """For each row its nearest training rows as examples (MiniLM where it is installed, else TF-IDF), and how they were found.

    Where the context holds fewer, a row's farthest examples are left out.
    """
    candidates = [row for row in dataset.train if row.shows_the_task]
    embed = embedder()
    chosen = nearest_examples(candidates, rows, k, embed=embed)
    limit = model.context - answer_limit(model, dataset, config) - 16
    kept = []
    for row, examples in zip(rows, chosen, strict=True):
        while examples and len(model.template.prompt_ids(prompt_turns(row, examples=examples), row.tools)) > limit:
            examples = examples[1:]
        kept.append(examples)
    return kept, EMBEDDER if embed else "TF-IDF"


@dataclass(frozen=True)
class Asking:
    """How a model is asked.

    Args:
        examples: shown in the prompt as earlier turns.
        prompts: each row's turns before its answer; default: its own, after the examples.
        with_calibrated: with choice scoring, also give the answers of calibrated scores.
        sampling: how each row's answer is drawn where it is written; None: greedily.
        perplexity: also measure the loss of the reference answers, where texts are written from the rows alone.
    """

    examples: Sequence[Row] = ()
    prompts: Sequence[Sequence[Message]] | None = None
    with_calibrated: bool = False
    sampling: Sequence[Sampling] | None = None
    perplexity: bool = True

    @property
    def measures_loss(self) -> bool:
        """Whether the loss of the reference answers is measured: they follow the rows' own turns, and answers are greedy."""
        return self.perplexity and self.prompts is None and not self.examples and self.sampling is None

    def prompt_ids(self, rows: Sequence[Row], template: Template) -> list[list[int]]:
        """The prompt of each row."""
        turns = (
            self.prompts if self.prompts is not None else [prompt_turns(row, examples=self.examples) for row in rows]
        )
        return [template.prompt_ids(list(each), row.tools) for each, row in zip(turns, rows, strict=True)]


def ask(
    model: Model | ModelTarget,
    dataset: Dataset,
    rows: Sequence[Row],
    config: EvaluateConfig,
    how: Asking = Asking(),
    *,
    task: str = "answering",
) -> dict[str, SystemAnswers]:
    """A model's answers to rows.

    Args:
        model: with or without an adapter, or a model in another engine.
        task: name for the progress display.

    Returns:
        `{"": ...}`, and `{"calibrated": ...}` when asked for.

    Raises:
        UserError: a prompt is longer than the model's context, or there is none.
    """
    started = time.monotonic()
    progress(task, 0, len(rows))  # reading the examples takes a while
    target: ModelTarget = LocalTarget.of(model) if isinstance(model, Model) else model
    ids, choice = how.prompt_ids(rows, target.template), uses_choice(dataset, config)
    limit = 1 if choice else longest_answer(target.template, dataset, config)
    requests = [
        Request(ids=prompt, max_new_tokens=limit, sampling=drawn, id=row.id)
        for prompt, drawn, row in zip(ids, how.sampling or [GREEDY] * len(rows), rows, strict=True)
    ]
    _refuse_too_long(target.context, rows, ids)
    if choice:
        return _chosen(target, dataset, rows, requests, how, started, task)
    answers = list(target.complete(requests, task=task))
    seconds = time.monotonic() - started
    if how.measures_loss and dataset.task != "classification":
        known = [target.template.render(row.messages, row.tools) for row in rows]
        fits = target.fits(known, task=f"{task}: reference answers")
        answers = [replace(a, loss=fit.loss, loss_tokens=fit.tokens) for a, fit in zip(answers, fits, strict=True)]
    return {"": SystemAnswers(answers, seconds, computed=_computed(target, ids, answers))}


def _chosen(
    target: ModelTarget,
    dataset: Dataset,
    rows: Sequence[Row],
    requests: Sequence[Request],
    how: Asking,
    started: float,
    task: str,
) -> dict[str, SystemAnswers]:
    """The likeliest labels, and where they are wanted those by calibrated scores."""
    labels, template = dataset.manifest.labels or [], target.template
    # Calibration subtracts from every label's score, so every label's score is needed.
    answers = list(target.score(requests, labels, exact=how.with_calibrated, task=task))
    seconds = time.monotonic() - started
    ids = [list(request.ids or ()) for request in requests]
    asked = {"": SystemAnswers(answers, seconds, computed=_computed(target, ids, answers))}
    if how.with_calibrated:
        blank = _content_free(rows[0])
        shown = template.prompt_ids(prompt_turns(blank, examples=how.examples), blank.tools)
        with busy(f"{task}: calibrating"):
            offset = next(target.score([Request(ids=shown)], labels, exact=True)).label_scores or {}
        tokens = target.label_tree(labels).tokens
        subtracted = [calibrated(answer, offset, tokens) for answer in answers]
        seconds = time.monotonic() - started
        asked["calibrated"] = replace(asked[""], completions=subtracted, seconds=seconds)
    return asked


def _refuse_too_long(context: int, rows: Sequence[Row], ids: Sequence[Sequence[int]]) -> None:
    """A prompt beyond the context would be answered from what the model has never learned to read."""
    long = [i for i, prompt in enumerate(ids) if len(prompt) >= context]
    if long:
        worst = max(long, key=lambda i: len(ids[i]))
        raise UserError(
            f"{len(long)} of {counted(len(ids), 'prompt')} {verb(len(long), 'is', 'are')} too long: the longest takes {len(ids[worst]):,} tokens, the model reads "
            f"{context:,}",
            where=f"row {rows[worst].id}",
            next_step="show fewer examples, or prepare with a smaller data.max_length",
        )


def _computed(
    target: ModelTarget, prompts: Sequence[Sequence[int]], answers: Sequence[Completion]
) -> int:  # fmt: skip
    """Tokens that answering has computed: what all prompts share counts once; 0: the engine does not tell."""
    if not target.shares_prompts:
        return 0
    shared = shared_length(prompts)
    return shared + sum(len(p) - shared for p in prompts) + sum(answer.completion_tokens for answer in answers)


def _content_free(row: Row) -> Row:
    """The row with its last user turn replaced by something that says nothing."""
    messages = [dict(message) for message in row.messages]
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    messages[last]["content"] = CONTENT_FREE
    return replace(row, messages=messages)  # type: ignore[arg-type]


# --- side effects of tuning --------------------------------------------------------------------

MOST_LEARNED = 300  # training rows that are looked at for memorisation
ENDINGS = 32  # scored in one tree: its attention grows with the square


@dataclass(frozen=True)
class _Looked:
    """One model's general ability, completed training rows and canaries."""

    ability: Ability | None
    completed: list[Completed]
    canaries: list[dict[str, Any]]


def side_effects(
    model: Model,
    base: Callable[[], AbstractContextManager[Model]],
    general: Sequence[Row],
    learned: Sequence[Row],
    planted: Sequence[Row],
    config: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    """What tuning has done besides its task: the parts `forgetting`, `lm_eval`, `memorisation` and `canaries` of `eval.json`.

    Args:
        model: tuned.
        base: the model before, for a while.
        general: rows of general ability, for forgetting.
        learned: training rows, for memorisation.
        planted: canaries.
        config: `general_rows` bounds the general rows, and each of the tasks in `lm_eval`.
        seed: of the samples.
    """
    general = sample_rows(general, config.general_rows, seed=seed)
    learned = sample_rows(learned, MOST_LEARNED, seed=seed)  # shared answers show in such a sample too
    missing = harness_missing()
    if not (general or learned or planted or config.lm_eval):
        return {}
    after = _look(model, general, learned, planted, seed)
    tasks, why = ({}, missing) if missing or not config.lm_eval else _tasks(model, config)
    with base() as original:
        before = _look(original, general, learned, planted, seed)
        tasks_before = _tasks(original, config)[0] if tasks else {}
    found: dict[str, Any] = {}
    if before.ability and after.ability:
        found["forgetting"] = forgetting(before.ability, after.ability, seed=seed)
    if tasks and tasks_before:
        found["lm_eval"] = tasks_before_and_after(tasks_before, tasks, seed=seed)
    elif config.lm_eval:
        found["lm_eval"] = {"tasks": [], "words": f"lm-eval's tasks were not run: {why}."}
    if learned:
        found["memorisation"] = memorisation(before.completed, after.completed)
    if planted:
        pairs = zip(before.canaries, after.canaries, strict=True)
        each = [{**t, "base_exposure": b["exposure"]} for b, t in pairs]
        found["canaries"] = {"each": each, "words": canaries_in_words(before.canaries, after.canaries)}
    return found


def _tasks(model: Model, config: EvaluateConfig) -> tuple[dict[str, dict[str, TaskScores]], str]:
    """Scores of lm-eval's tasks, or none and why: data that aren't there must not cost an evaluation that is done."""
    try:
        return run_tasks(LocalTarget.of(model), config.lm_eval, limit=config.general_rows), ""
    except Exception as error:
        return {}, " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _look(model: Model, general: Sequence[Row], learned: Sequence[Row], planted: Sequence[Row], seed: int) -> _Looked:
    target = LocalTarget.of(model)

    def fits(rows: Sequence[Row], task: str) -> list[AnswerFit]:
        rendered = [model.template.render(row.messages, row.tools) for row in rows]
        return target.fits(rendered, task=task)

    shown = None
    if general:
        lengths = sorted(len(model.template.encode(row.answer)) + 1 for row in general)
        limit = min(max(8, lengths[int(0.98 * (len(lengths) - 1))]), 128)
        requests = [Request(row.prompt, row.tools or (), max_new_tokens=limit) for row in general]
        answers = list(target.complete(requests, task="general rows"))
        known = fits(general, "general rows")
        shown = ability(general, answers, [f.loss for f in known], [f.tokens for f in known])
    exposed = canaries(planted, lambda rows: ending_losses(model, rows), seed) if planted else []
    return _Looked(shown, _completed(model, learned), exposed)


def _completed(model: Model, rows: Sequence[Row]) -> list[Completed]:
    """Which training rows a model completes; those that don't count (short answers, shared ones) are not asked."""
    times = Counter(row.answer for row in rows)
    rendered = [model.template.render(row.messages, row.tools) for row in rows]
    found = [
        Completed(False, sum(map(bool, r.mask[1:])), times[row.answer] > 1)
        for r, row in zip(rendered, rows, strict=True)
    ]
    asked = [i for i, each in enumerate(found) if each.tokens >= LEAST_TOKENS and not each.shared]
    chosen = [rendered[i] for i in asked]
    fits = LocalTarget.of(model).fits(chosen, task="training rows") if asked else []
    for i, fit in zip(asked, fits, strict=True):
        found[i] = replace(found[i], verbatim=fit.verbatim)
    return found


def ending_losses(model: Model, rows: Sequence[Row]) -> list[float]:
    """Summed losses of rows that begin alike, over the tokens behind what all of them have in common.

    The beginning is computed once for `ENDINGS` rows; losses differ from those of whole answers by the same amount in each row.
    """
    rendered = [model.template.render(row.messages, row.tools) for row in rows]
    common = shared_length([each.ids for each in rendered])
    if not common:
        return [fit.loss for fit in LocalTarget.of(model).fits(rendered)]
    endings = [each.ids[common : max(i for i, learned in enumerate(each.mask) if learned) + 1] for each in rendered]
    losses: list[float] = []
    for start in range(0, len(rows), ENDINGS):
        part = endings[start : start + ENDINGS]
        trie = label_trie([str(i) for i in range(len(part))], part)
        means = choose(model, [rendered[0].ids[:common]], trie)[0].label_scores or {}
        losses += [-means[str(i)] * len(ending) for i, ending in enumerate(part)]
    return losses
