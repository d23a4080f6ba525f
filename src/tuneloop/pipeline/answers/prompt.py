"""Prompts: a template of the user's own around the rows' texts, and examples, the cheapest way to teach a model and so
the one that tuning has to beat."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_yaml
from tuneloop.core.units import counted, verb
from tuneloop.inference.prompt import AS_IT_IS, ExampleIndex, PromptTemplate, example_turns
from tuneloop.inference.prompt import prompt_turns as around
from tuneloop.records.rows import Message, Row, last_user_turn

MOST_LABELS = 80  # up to so many labels `auto` shows one example of each: measured to be good with 77
MOST_EXAMPLES = 40  # with more labels: a prompt of hundreds of examples fills the context and takes minutes to read


def choose_examples(
    train: Sequence[Row],
    k: int,
    *,
    seed: int,
    stratify: Callable[[Row], str | None] = lambda row: row.label,
    frequent_first: bool = False,
) -> list[Row]:
    """Choose `k` examples, class-balanced and seeded, whatever the order of the rows.

    Classes take turns, so that their numbers differ by one at most (as long as a class has rows left); with more
    classes than `k`, chance says which are shown. Rows above twice the median length are taken only when their class
    has no other. The examples come in random order, since models lean towards the last class they saw.

    `train`: rows of the training split only: a test row here would be a leak. `k`: number of examples; all rows where
    there are fewer. `stratify`: the class of a row, None where it has none. `frequent_first`: with more classes than
    `k` the most frequent ones are shown, instead of any.
    """
    rng = random.Random(seed)
    rows = list({(last_user_turn(row), row.answer): row for row in sorted(train, key=lambda row: row.id)}.values())
    if k < 1 or not rows:
        return []
    longest = 2 * median(_length(row) for row in rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(stratify(row) or "", []).append(row)
    queues = []
    for name in sorted(groups):
        short = [row for row in groups[name] if _length(row) <= longest]
        rng.shuffle(short)
        queues.append(short + sorted((row for row in groups[name] if _length(row) > longest), key=_length))
    rng.shuffle(queues)
    if frequent_first:
        queues.sort(key=len, reverse=True)
    examples: list[Row] = []
    while len(examples) < k and any(queues):
        for queue in queues:
            if queue and len(examples) < k:
                examples.append(queue.pop(0))
    rng.shuffle(examples)
    return examples


def labels_of(row: Row) -> list[str]:
    """The labels of a row: several, one, or none."""
    several = row.meta.get("labels")
    if isinstance(several, list) and several and all(isinstance(label, str) for label in several):
        return several
    return [] if row.label is None else [row.label]


def rarest_label(train: Sequence[Row]) -> Callable[[Row], str | None]:
    """The class of a row with several labels: the one of the fewest rows, so that examples show each label once."""
    counts = Counter(label for row in train for label in labels_of(row))
    return lambda row: min(labels_of(row), key=lambda label: (counts[label], label), default=None)


def labels_shown(examples: Sequence[Row], train: Sequence[Row]) -> str:
    """How many of the labels the examples show, as a sentence; empty where they show all."""
    some, every = ({label for row in rows for label in labels_of(row)} for rows in (examples, train))
    if every <= some:
        return ""
    show = f"{counted(len(examples), 'example')} in the prompt {verb(len(examples), 'shows', 'show')}"
    return f"The {show} {len(some)} of {counted(len(every), 'label')}."


def nearest_examples(
    train: Sequence[Row], rows: Sequence[Row], k: int, *, embed: Callable[[Sequence[str]], Any] | None = None
) -> list[list[Row]]:
    """For each row the `k` training rows whose last user turns are nearest to its own; see `ExampleIndex`."""
    return ExampleIndex(train, embed).nearest([last_user_turn(row) for row in rows], k)


def _length(row: Row) -> int:
    return len(last_user_turn(row)) + len(row.answer)


def fit_examples(
    examples: Sequence[Row], budget_tokens: int, count_tokens: Callable[[list[Message]], int]
) -> tuple[list[Row], str | None]:
    """Leave out the longest examples until the rest fits; with a warning if some were left out. `examples`: in the
    order of the prompt, which is kept. `budget_tokens`: tokens that all examples together may take: the context less
    the longest prompt and answer. `count_tokens`: tokens of one example's turns, template included."""
    costs = [count_tokens(example_turns(example)) for example in examples]
    places = list(range(len(examples)))
    while places and sum(costs[i] for i in places) > budget_tokens:
        places.remove(max(places, key=lambda i: costs[i]))
    if len(places) == len(examples):
        return list(examples), None
    warning = f"Only {len(places)} of {len(examples)} few-shot examples {verb(len(places), 'fits', 'fit')}: "
    warning += f"together they take {sum(costs):,} tokens, and the context has room for {max(budget_tokens, 0):,}."
    return [examples[i] for i in places], warning


def load_prompt(file: str) -> PromptTemplate:
    """Read a template: a text file is that of the user turn; a YAML file has `user`, `system` or both. Raises
    UserError: no such file, unknown keys, or a user template that leaves the row's text out."""
    path = Path(file)
    if path.suffix in (".yaml", ".yml"):
        values = read_yaml(path, "prompt")
        unknown = sorted(set(values) - {"user", "system"})
        if unknown or not all(isinstance(value, str) for value in values.values()):
            message = f"A prompt has the keys user and system, each a text{f', not {unknown[0]}' if unknown else ''}"
            raise UserError(message, where=file, next_step="see docs/evaluate.md")
        template = PromptTemplate(**values)
    else:
        if not path.is_file():
            raise UserError("No such file", where=file, next_step="give --prompt a text or YAML file")
        try:
            template = PromptTemplate(path.read_text(encoding="utf-8").strip())
        except UnicodeDecodeError:
            raise UserError("Not a text in UTF-8", where=file, next_step="save it as UTF-8") from None
    if "{input}" not in template.user:
        raise UserError("The prompt leaves out the row's text", where=file, next_step="put {input} where it belongs")
    return template


def prompt_turns(
    row: Row, template: PromptTemplate = AS_IT_IS, examples: Sequence[Row] = (), labels: Sequence[str] | None = None
) -> list[Message]:
    """A row's whole prompt: system turn, examples as earlier turns under the same template, the row's turns."""
    return around(row.prompt, template, examples, labels, row.meta)
