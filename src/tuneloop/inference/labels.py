"""Labels as the tokens of answers, and what scores say of them: the best label, and how probable it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tuneloop.models.chat import Template
from tuneloop.records.completion import ENGINE, Completion
from tuneloop.records.rows import Message

TREES_KEPT = 64  # different sets of labels whose tokens an engine keeps
ANY_PROMPT: Sequence[Message] = ({"role": "user", "content": "x"},)  # what comes before an answer is not in its tokens


@dataclass(frozen=True)
class LabelTrie:
    """Labels as token sequences (end of turn included) in a prefix tree.

    Node 0 is the prompt's last token. Arrays run over the further nodes that have children (those that must be
    computed), in order of depth: `ids`, `depths`, `ancestors` (n, n; True: the column is on the row's path, itself
    included). `edges` are (label, parent node, token): summing over a label's edges gives its log likelihood.
    """

    labels: tuple[str, ...]
    lengths: tuple[int, ...]
    ids: tuple[int, ...]
    depths: tuple[int, ...]
    ancestors: tuple[tuple[bool, ...], ...]
    edges: tuple[tuple[int, int, int], ...]

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of each label."""
        return dict(zip(self.labels, self.lengths, strict=True))


def label_trie(labels: Sequence[str], tokens: Sequence[Sequence[int]]) -> LabelTrie:
    """Build the tree; `tokens[i]` are the ids of `labels[i]` with the end-of-turn token."""
    internal = sorted({tuple(t[:n]) for t in tokens for n in range(1, len(t))}, key=lambda path: (len(path), path))
    number = {path: i + 1 for i, path in enumerate(internal)} | {(): 0}
    return LabelTrie(
        labels=tuple(labels),
        lengths=tuple(len(t) for t in tokens),
        ids=tuple(path[-1] for path in internal),
        depths=tuple(len(path) for path in internal),
        ancestors=tuple(tuple(path[: len(other)] == other for other in internal) for path in internal),
        edges=tuple((i, number[tuple(t[:n])], t[n]) for i, t in enumerate(tokens) for n in range(len(t))),
    )


def label_ids(
    template: Template, labels: Sequence[str], prompt: Sequence[Message] = ANY_PROMPT, lead: str = ""
) -> list[list[int]]:
    """The tokens of each label as an answer to a prompt, the end of the turn included.

    Args:
        lead: text that the answer begins with; then the tokens are those of its rest.
    """
    if lead:
        return [[*template.encode(f" {label}"), template.end_ids[0]] for label in labels]
    before = len(template.prompt_ids(prompt))
    tokens = []
    for label in labels:
        rendered = template.render([*prompt, {"role": "assistant", "content": label}])
        end = max(i for i, supervised in enumerate(rendered.mask) if supervised) + 1
        tokens.append(rendered.ids[before:end])
    return tokens


class LabelTrees:
    """The tokens of labels, computed once for each set of them: rendering 77 labels takes tens of milliseconds."""

    def __init__(self) -> None:
        self._trees: dict[tuple[str, tuple[str, ...]], tuple[LabelTrie, list[list[int]]]] = {}

    def of(self, template: Template, labels: tuple[str, ...]) -> tuple[LabelTrie, list[list[int]]]:
        """The tree of labels as answers, and the tokens of each label."""
        key = template.source, labels
        if key not in self._trees:
            ids = label_ids(template, labels)
            while len(self._trees) >= TREES_KEPT:
                self._trees.pop(next(iter(self._trees)), None)
            self._trees[key] = label_trie(labels, ids), ids
        return self._trees[key]


def best_label(
    scores: dict[str, float], tokens: Mapping[str, int], prompt_tokens: int, shifted: bool = False, engine: str = ENGINE
) -> Completion:
    """The answer that choice scoring gives: the label with the highest score, and its probability.

    Args:
        scores: the mean log likelihood of each label's tokens.
        tokens: of each label.
        shifted: see `label_probability`.
    """
    best = max(scores, key=scores.__getitem__)
    probability: float | None = label_probability(scores, best, tokens, shifted=shifted)
    return Completion(
        best,
        finish="choice",
        prompt_tokens=prompt_tokens,
        completion_tokens=tokens[best],
        label_scores=scores,
        label_probability=probability if probability == probability else None,
        engine=engine,
    )


def calibrated(answer: Completion, offset: Mapping[str, float], tokens: Mapping[str, int]) -> Completion:
    """An answer by its scores, all exact, less an `offset` of each label; see `ModelTarget.calibrated`."""
    scores = {label: score - offset[label] for label, score in (answer.label_scores or {}).items()}
    return replace(best_label(scores, tokens, answer.prompt_tokens, True), total_ms=answer.total_ms)


def label_probability(
    scores: Mapping[str, float], label: str, tokens: Mapping[str, int], *, shifted: bool = False
) -> float:
    """The probability that a model writes a label, given that it writes one of the labels; NaN without a finite score.

    Scores are mean log likelihoods a token, so that long labels are at no disadvantage; times the label's tokens they
    are log probabilities. The probabilities of different labels add up to 1 at most, since each ends in the end of
    turn. So where labels that could not win were cut short, which makes their scores upper bounds, 1 bounds the sum,
    and the result is a lower bound.

    Args:
        scores: of all labels, by choice scoring.
        tokens: of each label, the end of turn included.
        shifted: the scores are calibrated (less those under an empty prompt): no probabilities, whose sum has no bound.
    """
    logs = {name: score * tokens[name] for name, score in scores.items()}
    if not shifted:  # rounding in 16 bits can lift a certain label a little above 1
        logs = {name: min(log, 0.0) for name, log in logs.items()}
    log_label = logs.get(label, math.nan)
    if not math.isfinite(log_label):
        return math.nan
    total = sum(math.exp(min(log - log_label, 700.0)) for log in logs.values())
    return 1.0 / total if shifted else max(1.0 / total, math.exp(log_label))


def label_distribution(answer: Completion, tokens: Mapping[str, int], top: int) -> dict[str, float]:
    """Probabilities of the likeliest labels, given that the model writes one of all: the answer's own label first.

    The answer is the label with the best mean a token; so another one may have the higher probability.

    Args:
        answer: of choice scoring, with exact scores of all labels.
        tokens: of each label, the end of turn included.
        top: how many.
    """
    logs = {label: min(score * tokens[label], 0.0) for label, score in (answer.label_scores or {}).items()}
    highest = max(logs.values())
    total = sum(math.exp(log - highest) for log in logs.values())
    order = sorted(logs, key=lambda label: (label != answer.text, -logs[label]))
    return {label: math.exp(logs[label] - highest) / total for label in order[:top]}
