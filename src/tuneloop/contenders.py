"""Who is compared: ways to get answers to a split's rows from one model, each a row of the closing table."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tuneloop.evaluate.config import BaselinesConfig, EvaluateConfig
from tuneloop.evaluate.few_shot import choose_examples, fit_examples, with_examples
from tuneloop.models.generate import LabelTrie, answer_losses, choose, generate, label_trie
from tuneloop.models.load import Model
from tuneloop.types import Answer, Dataset, Message, Progress, Row, UserError, no_progress

# What stands in for the text when a model's liking for labels is measured.
CONTENT_FREE = "N/A"


@dataclass(frozen=True)
class Asked:
    """A contender's answers and what they took; `perplexity` is of the reference answers, where measured."""

    answers: list[Answer]
    seconds: float
    perplexity: float | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens read, summed over the rows."""
        return sum(answer.prompt_tokens for answer in self.answers)

    @property
    def tokens(self) -> int:
        """Tokens written, summed over the rows."""
        return sum(answer.tokens for answer in self.answers)


def uses_choice(dataset: Dataset, config: EvaluateConfig) -> bool:
    """Whether answers come from choice scoring."""
    if config.answer == "choice" and dataset.task != "classification":
        raise UserError(
            "Choice scoring needs labels, and this data set has none",
            where="evaluate.answer",
            next_step="set evaluate.answer=generate, or data.task=classification",
        )
    return dataset.task == "classification" and config.answer != "generate"


def answer_limit(model: Model, dataset: Dataset, config: EvaluateConfig) -> int:
    """Longest answer to generate: a quarter over nearly all references, at most 1,024 tokens.

    The 98th percentile and not the maximum: one endless reference would make every rambling answer as long.
    """
    if config.max_new_tokens:
        return config.max_new_tokens
    lengths = sorted(len(model.template.encode(row.answer)) + 1 for row in dataset.train[:2000])
    typical = lengths[min(int(0.98 * len(lengths)), len(lengths) - 1)]
    return max(8, min(math.ceil(1.25 * typical), 1024))


def few_shot_examples(
    model: Model, dataset: Dataset, rows: Sequence[Row], baselines: BaselinesConfig, config: EvaluateConfig, seed: int
) -> tuple[list[Row], str | None]:
    """Examples for the prompt, from the training split only, and a warning when the context holds fewer than asked for."""
    labels = dataset.manifest.get("labels") or []
    wanted = baselines.few_shot
    if wanted == "auto":
        wanted = len(labels) if dataset.task == "classification" else 4
    stratify = dataset.manifest["config"]["split"].get("stratify")

    def stratum(row: Row) -> str | None:
        value = row.meta.get(stratify) if stratify else None
        return row.label if row.label is not None or value is None else str(value)

    candidates = [row for row in dataset.train if row.shows_the_task]
    candidates = [row for row in candidates if sum(m["role"] == "user" for m in row.messages) == 1] or candidates
    examples = choose_examples(candidates, wanted, seed=seed, stratify=stratum)
    longest = max((len(model.template.prompt_ids(row.prompt, row.tools)) for row in rows), default=0)
    room = model.context - longest - answer_limit(model, dataset, config) - 16

    def count(turns: list[Message]) -> int:
        return len(model.template.encode(model.template.text(turns), control=True))

    return fit_examples(examples, room, count)


def ask(
    model: Model,
    dataset: Dataset,
    rows: Sequence[Row],
    config: EvaluateConfig,
    *,
    examples: Sequence[Row] = (),
    calibrated: bool = False,
    progress: Progress = no_progress,
    task: str = "answering",
) -> dict[str, Asked]:
    """A model's answers to rows.

    Args:
        model: with or without an adapter.
        examples: shown in the prompt as earlier turns.
        calibrated: with choice scoring, also give the answers of calibrated scores.
        task: name for the progress display.

    Returns:
        `{"": ...}`, and `{"calibrated": ...}` when asked for.
    """
    started = time.monotonic()
    prompts = [_prompt(model, row, examples) for row in rows]
    if not uses_choice(dataset, config):
        answers = generate(
            model, prompts, max_new_tokens=answer_limit(model, dataset, config), progress=progress, task=task
        )
        seconds = time.monotonic() - started
        perplexity = None
        if not examples and dataset.task != "classification":
            loss, _ = answer_losses(model, [model.template.render(row.messages, row.tools) for row in rows])
            perplexity = math.exp(min(loss, 50.0))
        return {"": Asked(answers, seconds, perplexity)}
    trie = labels_as_tokens(model, dataset, rows[0])
    # Calibration subtracts from every label's score, so every label's score is needed.
    answers = choose(model, prompts, trie, prune=not calibrated, progress=progress, task=task)
    seconds = time.monotonic() - started
    asked = {"": Asked(answers, seconds)}
    if calibrated:
        blank = _content_free(rows[0])
        offset = choose(model, [_prompt(model, blank, examples)], trie)[0].scores or {}
        asked["calibrated"] = Asked([_calibrated(answer, offset) for answer in answers], time.monotonic() - started)
    return asked


def labels_as_tokens(model: Model, dataset: Dataset, row: Row) -> LabelTrie:
    """The data set's labels as the tokens that the model would write, the end of the turn included."""
    labels: list[str] = dataset.manifest["labels"]
    prompt = row.prompt
    before = len(model.template.prompt_ids(prompt, row.tools))
    tokens = []
    for label in labels:
        rendered = model.template.render([*prompt, {"role": "assistant", "content": label}], row.tools)
        end = max(i for i, learned in enumerate(rendered.mask) if learned) + 1
        tokens.append(rendered.ids[before:end])
    return label_trie(labels, tokens)


def as_contender(
    model: Model, dataset: Dataset, config: EvaluateConfig, examples: Sequence[Row] = ()
) -> Callable[[Sequence[Row]], list[Answer]]:
    """A model as a plain function from rows to answers."""
    return lambda rows: ask(model, dataset, rows, config, examples=examples)[""].answers


def _prompt(model: Model, row: Row, examples: Sequence[Row]) -> list[int]:
    turns = with_examples(row, examples) if examples else row.prompt
    return model.template.prompt_ids(turns, row.tools)


def _content_free(row: Row) -> Row:
    """The row with its last user turn replaced by something that says nothing."""
    messages = [dict(message) for message in row.messages]
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    messages[last]["content"] = CONTENT_FREE
    return replace(row, messages=messages)  # type: ignore[arg-type]


def _calibrated(answer: Answer, offset: dict[str, float]) -> Answer:
    scores = {label: score - offset[label] for label, score in (answer.scores or {}).items()}
    return replace(answer, text=max(scores, key=scores.__getitem__), scores=scores)
