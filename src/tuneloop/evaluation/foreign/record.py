"""What every reader of another tool's evaluation gives: items, each with the values of its metrics."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.units import counted, verb

# Words that scorers write for right and wrong; C, I, P and N are Inspect's.
_VERDICTS = {
    "c": 1.0, "correct": 1.0, "true": 1.0, "yes": 1.0, "pass": 1.0, "passed": 1.0, "p": 0.5, "partial": 0.5,
    "i": 0.0, "incorrect": 0.0, "n": 0.0, "false": 0.0, "no": 0.0, "fail": 0.0, "failed": 0.0,
}  # fmt: skip
# Of these less is better, as a word of a metric's name; the first ones are no quality.
_COSTS = {"latency", "seconds", "ms", "cost", "usd", "tokens"}
_LOWER = {
    *_COSTS, "loss", "perplexity", "ppl", "error", "errors", "wer", "cer", "brier", "toxicity", "bias",
    "hallucination", "distance", "ece",
}  # fmt: skip
_NAMED = 3  # ids in a note
_LONGEST_VALUE = 200  # characters of metadata that is kept to slice and cluster by


@dataclass(frozen=True)
class Observation:
    """One sample of an evaluation, as a file has it.

    Args:
        id: of its item; `input`: what was put to the system, of any shape; `kind`: which inputs can be equal to it.
        scores: metric -> value as written (a number, a truth value, `C`); None: not scored.
        epoch: which repeat of the item it is, where that is said; `error`: why it has no answer.
        meta: further fields, to slice and cluster by.
    """

    id: str
    scores: Mapping[str, Any]
    input: Any = None
    kind: str = "text"
    reference: str = ""
    answer: str = ""
    epoch: str = ""
    error: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ForeignItem:
    """An item with the values of its metrics, one for each epoch or repeat; NaN: that one has no score.

    Args:
        key: hash of the input; empty: unknown. `text`: the input as people read it.
        failed: epochs that ended in an error, without any score.
    """

    id: str
    key: str
    text: str
    reference: str
    answer: str
    scores: dict[str, list[float]]
    meta: dict[str, Any]
    failed: int = 0

    def mean(self, metric: str, failure: float = math.nan) -> float:
        """The mean over the epochs that have a score, and over those that failed if these count; NaN: none has.
        `failure`: the value of an epoch that failed; NaN: it does not count."""
        values = [value for value in self.scores.get(metric, ()) if not math.isnan(value)]
        if values and not math.isnan(failure):
            values += [failure] * self.failed
        return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class ForeignEvaluation:
    """One system's evaluation by another tool.

    Args:
        place: as the user named it; `tool`: what wrote it; `system`: the model or provider in it, where it says one.
        notes: what a reader has to know: errors, repeats, values that are no scores.
        id_column: of a table, from which the ids are.
    """

    place: str
    tool: str
    system: str
    items: dict[str, ForeignItem]
    notes: list[str]
    id_column: str = ""

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that any item has a value of, in the order of the file."""
        names = dict.fromkeys(name for item in self.items.values() for name in item.scores)
        return [name for name in names if any(not math.isnan(item.mean(name)) for item in self.items.values())]

    @property
    def epochs(self) -> int:
        """The most values that an item has of a metric."""
        return max((len(values) for item in self.items.values() for values in item.scores.values()), default=0)


def less_is_better(metric: str) -> bool:
    """Whether the name of a metric says that less of it is better (a loss, an error rate, toxicity)."""
    return not _LOWER.isdisjoint(_words(metric))


def is_cost(metric: str) -> bool:
    """Whether the name of a metric says that it is a time, a price or a count of tokens."""
    return not _COSTS.isdisjoint(_words(metric))


def _words(name: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in name.casefold()).split()


def score_value(value: Any) -> float:
    """A score as a number: truth values and words for right and wrong are 1, 0.5 or 0; NaN for what is no number."""
    if isinstance(value, bool | int | float):
        return float(value) if math.isfinite(value) else math.nan
    if isinstance(value, str):
        word = value.strip().casefold()
        try:
            return score_value(_VERDICTS[word] if word in _VERDICTS else float(word))
        except ValueError:
            return math.nan
    return math.nan


def text_of(value: Any) -> str:
    """An input as people read it: a text, the last user turn of a conversation, else JSON."""
    if isinstance(value, str):
        return value
    turns = [turn for turn in value if isinstance(turn, Mapping)] if isinstance(value, list) else []
    users = [turn.get("content") for turn in turns if turn.get("role") == "user"]
    if users:
        last = users[-1]
        parts = last if isinstance(last, list) else []
        texts = [str(part["text"]) for part in parts if isinstance(part, Mapping) and "text" in part]
        return last if isinstance(last, str) else "\n".join(texts)
    return "" if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def key_of(value: Any, kind: str = "text") -> str:
    """Hash of an input; empty without one. Inputs of two kinds (a question, a tool's document) are never equal."""
    text = " ".join(text_of(value).split())
    return f"{kind}:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}" if text else ""


def named(ids: Sequence[str]) -> str:
    """Some ids, for a note: `a, b, c ...`."""
    return ", ".join(i[:60] for i in ids[:_NAMED]) + (" ..." if len(ids) > _NAMED else "")


def collected(
    source: str, tool: str, system: str, observations: Iterable[Observation], notes: Sequence[str] = ()
) -> ForeignEvaluation:
    """The samples of a file by item: epochs and repeats of one item together.

    Raises:
        UserError: no sample, no score in any of them, or two prompts under one id.
    """
    items: dict[str, ForeignItem] = {}
    times: Counter[tuple[str, str]] = Counter()
    failed: list[str] = []
    epochs: dict[tuple[str, str], bool] = {}  # whether any sample of it has a score
    for observation in observations:
        key = key_of(observation.input, observation.kind)
        meta = {n: v for n, v in observation.meta.items() if isinstance(v, bool | int | float) or _is_short(v)}
        fresh = ForeignItem(
            observation.id, key, text_of(observation.input), observation.reference, observation.answer, {}, meta
        )
        item = items.setdefault(observation.id, fresh)
        if item.key and key and item.key != key:
            message = "Two different prompts have the same id"
            step = "give every item an id of its own, or leave the ids out: items are then aligned by their input"
            raise UserError(message, where=f"{source}: id {observation.id}", next_step=step)
        for name, value in observation.scores.items():
            item.scores.setdefault(str(name), []).append(score_value(value))
        times[observation.id, observation.epoch] += 1
        epochs[observation.id, observation.epoch] = (
            epochs.get((observation.id, observation.epoch), False) or bool(observation.scores) or not observation.error
        )
        if observation.error:
            failed.append(observation.id)
    without = Counter(item_id for (item_id, _), scored in epochs.items() if not scored)
    items = {item_id: replace(item, failed=without[item_id]) for item_id, item in items.items()}
    notes = list(notes)
    if failed:
        count = f"{counted(len(failed), 'sample')} ended in an error"
        notes.append(f"{count} and {verb(len(failed), 'has', 'have')} no score: {named(failed)}.")
    if repeats := list(dict.fromkeys(item_id for (item_id, _), n in times.items() if n > 1)):
        ids = f"{counted(len(repeats), 'id')} {verb(len(repeats), 'occurs', 'occur')} more than once"
        notes.append(f"{ids} and {verb(len(repeats), 'is', 'are')} averaged: {named(repeats)}.")
    evaluation = ForeignEvaluation(source, tool, system, items, notes)
    if not evaluation.metrics:
        message = f"No scores in this {tool} file" if items else f"No samples in this {tool} file"
        message += f": {counted(len(failed), 'sample')} ended in an error" if failed else ""
        step = "score it with the tool that wrote it; a file of answers needs --references FILE"
        raise UserError(message, where=source, next_step=step)
    return evaluation


def _is_short(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_VALUE
