"""Who answers, and how rows become answers.

A target is a model here, a GGUF file, an encoder, an endpoint or a file of predictions; with it comes the task that it
was trained for, which a run keeps in `tuneloop.json` next to the weights. `ask` is the one way to answers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, read_json, write_json
from tuneloop.core.ui import busy, progress, say
from tuneloop.core.units import counted, verb
from tuneloop.data import TaskSpec, read_task, task_spec
from tuneloop.evaluation import BaselinesConfig, EvaluateConfig
from tuneloop.evaluation.metrics import label_lists
from tuneloop.inference import Endpoint, LoadedTarget, ModelTarget, Request, Target, open_target
from tuneloop.inference.prompt import AS_IT_IS, PromptTemplate
from tuneloop.models import Model, minilm_embedder, trained_folder
from tuneloop.models.chat import Template, plain_source, with_tags
from tuneloop.models.files import MINILM_TITLE, is_local, resolve
from tuneloop.models.methods import OWN
from tuneloop.models.nn import batch_invariant, need_batch_invariance
from tuneloop.pipeline.answers.prompt import (
    MOST_EXAMPLES,
    MOST_LABELS,
    choose_examples,
    fit_examples,
    load_prompt,
    nearest_examples,
    prompt_turns,
    rarest_label,
)
from tuneloop.pipeline.answers.scoring import SystemAnswers
from tuneloop.pipeline.context import RunContext
from tuneloop.records.rows import Dataset, Message, Row, generous_limit
from tuneloop.registry import local_name

if TYPE_CHECKING:
    from tuneloop.inference import Endpoint


@dataclass(frozen=True)
class TaskTarget:
    """A target, and what it was trained to answer; None where no one says it."""

    target: Target
    task: TaskSpec | None = None

    @property
    def name(self) -> str:
        """As the user gave it."""
        return self.target.name

    @property
    def local(self) -> LoadedTarget | None:
        """The target, where our own engine computes in this process."""
        return self.target.local

    @property
    def model(self) -> ModelTarget | None:
        """The target, where its prompts become tokens here: a model on this machine, in whichever engine."""
        return self.target.reader

    def close(self) -> None:
        """End what computes; see `Target.close`."""
        self.target.close()

    def check(self) -> None:
        """Refuse the name of a model that is neither here nor on the hub, before rows are read for it."""
        if self.local is not None and self.task is None and not is_local(self.local.base):
            resolve(self.local.base)

    @property
    def scores_labels(self) -> bool:
        """Whether answers are labels that are scored, not text that is written."""
        choice = self.task is not None and self.task.answer == "choice" and bool(self.task.labels)
        return choice and not self.target.no_scores[0]

    @property
    def advice(self) -> str:
        """What to expect of an untuned base model, as a line; empty of others."""
        plain = self.task is None and self.model is not None and self.model.template.is_plain
        hint = "a base model, without a chat template: it continues texts rather than answers; tune it first"
        return f"\n          {hint}" if plain else ""

    @property
    def identity(self) -> str:
        """Hash of what answers depend on: the target and its task."""
        return content_hash([self.target.identity, self.task])


def open_with_task(
    name: str, *, base: str = "", task: str = "", endpoint: Callable[[str], Endpoint] | None = None
) -> TaskTarget:
    """The target of a name, with its task; no model is loaded yet.

    Args:
        name: see `open_target`; also a registered version, `NAME@ALIAS`.
        base, endpoint: see `open_target`.
        task: a run or artifact whose task is taken, where the target has none.

    Raises:
        UserError: there is nothing of that name, or a run that is not finished.
    """
    borrowed = open_with_task(task).task if task else None
    name = local_name(name)
    target = open_target(name, base=base, endpoint=endpoint)
    spec = borrowed if borrowed is not None else task_inside(target)
    if spec is not None and spec.chat_template:
        target = open_target(name, base=base, endpoint=endpoint, template=spec.chat_template)
    return TaskTarget(target, spec)


def target_summary(target: Target) -> dict[str, Any]:
    """What a summary says of a target."""
    model = target.reader
    base = model.untuned or target.base if model is not None else target.base if target.is_classifier else ""
    return {"target": target.name, "kind": target.kind, "base": base or None}


# --- the task ------------------------------------------------------------------------------------


def task_inside(target: Target) -> TaskSpec | None:
    """The task in a target's folder; None where it has none."""
    return _read_task(target.folder) if target.folder is not None and target.folder.is_dir() else None


def task_of_run(run: Path) -> TaskSpec | None:
    """The task of a finished run. None where its weights say none."""
    return _read_task(trained_folder(run))


def _read_task(folder: Path) -> TaskSpec | None:
    """The task in a folder's `tuneloop.json`, if it says one; a damaged file, or a later version, is refused."""
    file = folder / OWN
    value = read_json(file) if file.is_file() else None
    task = value.get("task") if isinstance(value, dict) else None
    return None if task is None else read_task(task, file)


def write_task(job: RunContext, dataset: Dataset) -> None:
    """Put what a data set teaches into `tuneloop.json`, next to the weights; if it says too little that is reported."""
    try:
        file, config, rows = trained_folder(job.folder) / OWN, job.recipe.evaluate, list(dataset.train)
        dataset = replace(dataset, train=rows, test=dataset.test or rows)
        task = task_spec(
            dataset,
            answer="choice" if dataset.task == "classification" and uses_choice(dataset, config) else "generate",
            max_new_tokens=longest_answer(job.template, dataset, config),
            chat_template=plain_source(job.template.source),
        )
        write_json(file, {**read_json(file), "task": task})
    except (UserError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        say(f"warn: what this model was trained to answer can't be kept with it: {reason}")


# --- answers --------------------------------------------------------------------------------------

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

    from tuneloop.models.nn import LlamaConfig

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
    embed = minilm_embedder()
    nearest = nearest_examples([row for row in dataset.train if row.shows_the_task], rows, k, embed=embed)
    limit = model.context - longest_answer(model.template, dataset, config) - 16
    fitting = []
    for row, examples in zip(rows, nearest, strict=True):
        while examples and len(model.template.prompt_ids(prompt_turns(row, examples=examples), row.tools)) > limit:
            examples = examples[1:]
        fitting.append(examples)
    return fitting, MINILM_TITLE if embed else "TF-IDF"


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

    def turns(self, rows: Rows) -> Sequence[Sequence[Message]]:
        """The prompt of each row."""
        return self.prompts or [prompt_turns(row, self.template, self.examples) for row in rows]


def ask(
    target: Target,
    dataset: Dataset,
    rows: Rows,
    config: EvaluateConfig,
    how: Asking = Asking(),
    *,
    task: str = "answering",
) -> dict[str, SystemAnswers]:
    """Answers to rows: `{"": ...}`, and `{"calibrated": ...}` when `how` requests it.

    Args:
        target: any one. Prompts become tokens here where its tokenizer is known.
        task: name for the progress display.

    Raises:
        UserError: a prompt is longer than the model's context, or there is none; `config` wants what it can't do.
    """
    started = time.monotonic()
    progress(task, 0, len(rows))  # reading the examples takes a while
    _refuse_settings(target, config)
    reader = target.reader
    choice = uses_choice(dataset, config) and not target.no_scores[0]
    turns = target.prompts(how.turns(rows))
    if reader is not None:
        ids = [reader.template.prompt_ids(prompt, row.tools) for prompt, row in zip(turns, rows, strict=True)]
        limit = 1 if choice else longest_answer(reader.template, dataset, config)
        prompts = [Request(ids=prompt) for prompt in ids]
        _refuse_too_long(reader.context, rows, ids)
    else:
        ids, limit = [], config.max_new_tokens or generous_limit(dataset.train[:2000] or dataset.test[:2000])
        prompts = [Request(messages, row.tools) for messages, row in zip(turns, rows, strict=True)]
    requests = [replace(prompt, max_new_tokens=limit, id=row.id) for prompt, row in zip(prompts, rows, strict=True)]
    labels = dataset.manifest.labels or []
    with batch_invariant(config.deterministic):
        if choice:  # calibration subtracts from every label's score, so every label's score is needed
            answers = list(target.score(requests, labels, exact=how.with_calibrated, task=task))
        else:
            answers = list(target.complete(requests, task=task))
    seconds = time.monotonic() - started
    fits_rows = reader is not None and reader.measures_losses and target.reader is target
    if reader is not None and fits_rows and how.measures_loss and dataset.task != "classification":
        rendered = [reader.template.render(row.messages, row.tools) for row in rows]
        fits = reader.fits(rendered, task=f"{task}: reference answers")
        answers = [replace(a, loss=fit.loss, loss_tokens=fit.tokens) for a, fit in zip(answers, fits, strict=True)]
    by_kind = {"": SystemAnswers(answers, seconds, computed=target.computed(ids, answers))}
    if reader is not None and choice and how.with_calibrated:
        with batch_invariant(config.deterministic):
            blank_row = _content_free(rows[0])
            (blank_turns,) = target.prompts(how.turns([blank_row]))
            blank = reader.template.prompt_ids(blank_turns, blank_row.tools)
            with busy(f"{task}: calibrating"):
                completions = reader.calibrated(answers, labels, Request(ids=blank))
        by_kind["calibrated"] = replace(by_kind[""], completions=completions, seconds=time.monotonic() - started)
    return by_kind


def _refuse_settings(target: Target, config: EvaluateConfig) -> None:
    """Refuse what a target can't do."""
    if config.answer == "choice" and target.no_scores[0]:
        reason, instead = target.no_scores
        raise UserError(reason, where="evaluate.answer", next_step=instead)
    if not config.deterministic:
        return
    if target.local is None:
        message, step = f"Only our own engine gives deterministic answers, not that of {target.name}", "leave it out"
        raise UserError(message, where="evaluate.deterministic", next_step=step)
    need_batch_invariance(target.local.model)


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
