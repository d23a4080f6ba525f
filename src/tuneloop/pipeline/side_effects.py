"""Side effects of tuning: what the model forgets, what it has learned word for word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from tuneloop.evaluation.config import EvaluateConfig
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
from tuneloop.inference.labels import label_trie
from tuneloop.inference.local.batches import shared_length
from tuneloop.inference.local.scoring import choose
from tuneloop.inference.local.target import LocalTarget
from tuneloop.inference.request import Request
from tuneloop.models.load import Model
from tuneloop.records.rows import Row

MOST_LEARNED = 300  # training rows that are looked at for memorisation
Rows = Sequence[Row]
ENDINGS = 32  # scored in one tree: its attention grows with the square


@dataclass(frozen=True)
class _Observed:
    """One model's general ability, completed training rows and canaries."""

    ability: Ability | None
    completed: list[Completed]
    canaries: list[dict[str, Any]]


def side_effects(
    model: Model,
    base: Callable[[], AbstractContextManager[Model]],
    general: Rows,
    learned: Rows,
    planted: Rows,
    config: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    """What tuning did besides its task: the parts `forgetting`, `lm_eval`, `memorisation`, `canaries` of `eval.json`.

    Args:
        model: tuned; `base`: the model before, for a while.
        general: rows of general ability (forgetting); `learned`: training rows (memorisation); `planted`: canaries.
        config: `general_rows` bounds the general rows, and each of the tasks in `lm_eval`.
        seed: of the samples.
    """
    general = sample_rows(general, config.general_rows, seed=seed)
    learned = sample_rows(learned, MOST_LEARNED, seed=seed)  # shared answers show in such a sample too
    missing = harness_missing()
    if not (general or learned or planted or config.lm_eval):
        return {}
    after = _observe(model, general, learned, planted, seed)
    tasks, why = ({}, missing) if missing or not config.lm_eval else _tasks(model, config)
    with base() as original:
        before = _observe(original, general, learned, planted, seed)
        tasks_before = _tasks(original, config)[0] if tasks else {}
    parts: dict[str, Any] = {}
    if before.ability and after.ability:
        parts["forgetting"] = forgetting(before.ability, after.ability, seed=seed)
    if tasks and tasks_before:
        parts["lm_eval"] = tasks_before_and_after(tasks_before, tasks, seed=seed)
    elif config.lm_eval:
        parts["lm_eval"] = {"tasks": [], "words": f"lm-eval's tasks were not run: {why}."}
    if learned:
        parts["memorisation"] = memorisation(before.completed, after.completed)
    if planted:
        pairs = zip(before.canaries, after.canaries, strict=True)
        each = [{**t, "base_exposure": b["exposure"]} for b, t in pairs]
        parts["canaries"] = {"each": each, "words": canaries_in_words(before.canaries, after.canaries)}
    return parts


def _tasks(model: Model, config: EvaluateConfig) -> tuple[dict[str, dict[str, TaskScores]], str]:
    """Scores of lm-eval's tasks, or none and why: data that aren't there must not cost an evaluation that is done."""
    try:
        return run_tasks(LocalTarget.of(model), config.lm_eval, limit=config.general_rows), ""
    except Exception as error:
        return {}, " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _observe(model: Model, general: Rows, learned: Rows, planted: Rows, seed: int) -> _Observed:
    target, general_ability = LocalTarget.of(model), None
    if general:
        lengths = sorted(len(model.template.encode(row.answer)) + 1 for row in general)
        limit = min(max(8, lengths[int(0.98 * (len(lengths) - 1))]), 128)
        requests = [Request(row.prompt, row.tools or (), max_new_tokens=limit) for row in general]
        answers = list(target.complete(requests, task="general rows"))
        rendered = [model.template.render(row.messages, row.tools) for row in general]
        fits = target.fits(rendered, task="general rows")
        losses, tokens = [fit.loss for fit in fits], [fit.tokens for fit in fits]
        general_ability = ability(general, answers, losses, tokens)
    exposures = canaries(planted, lambda rows: ending_losses(model, rows), seed) if planted else []
    return _Observed(general_ability, _completed(model, learned), exposures)


def _completed(model: Model, rows: Sequence[Row]) -> list[Completed]:
    """Which training rows a model completes; those that don't count (short answers, shared ones) are not tried."""
    times = Counter(row.answer for row in rows)
    rendered = [model.template.render(row.messages, row.tools) for row in rows]
    pairs = zip(rendered, rows, strict=True)
    results = [Completed(False, sum(map(bool, r.mask[1:])), times[row.answer] > 1) for r, row in pairs]
    places = [i for i, each in enumerate(results) if each.tokens >= LEAST_TOKENS and not each.shared]
    fits = LocalTarget.of(model).fits([rendered[i] for i in places], task="training rows") if places else []
    for i, fit in zip(places, fits, strict=True):
        results[i] = replace(results[i], verbatim=fit.verbatim)
    return results


def ending_losses(model: Model, rows: Sequence[Row]) -> list[float]:
    """Summed losses of rows that begin alike, over the tokens behind what all of them have in common.

    The beginning is computed once for `ENDINGS` rows; losses differ from those of whole answers by one amount.
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
