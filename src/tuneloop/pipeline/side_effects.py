"""Side effects of tuning: what the model forgets, what it has learned word for word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from tuneloop.evaluation.evaluate import sample_rows
from tuneloop.evaluation.forgetting import LEAST_TOKENS, Ability, Completed, ability, forgetting, memorisation
from tuneloop.inference.local.target import LocalTarget
from tuneloop.inference.request import Request
from tuneloop.models.load import Model
from tuneloop.records.rows import Row

MOST_LEARNED = 300  # training rows that are looked at for memorisation
Rows = Sequence[Row]


def side_effects(
    model: Model,
    base: Callable[[], AbstractContextManager[Model]],
    general: Rows,
    learned: Rows,
    most_general: int,
    seed: int,
) -> dict[str, Any]:
    """What tuning did besides its task: the parts `forgetting` and `memorisation` of `eval.json`.

    Args:
        model: tuned; `base`: the model before, for a while.
        general: rows of general ability (forgetting), of which at most `most_general` are used; `learned`: training
            rows (memorisation).
        seed: of the samples.
    """
    general = sample_rows(general, most_general, seed=seed)
    learned = sample_rows(learned, MOST_LEARNED, seed=seed)  # shared answers show in such a sample too
    if not (general or learned):
        return {}
    after, after_learned = _ability(model, general), _completed(model, learned)
    with base() as original:
        before, before_learned = _ability(original, general), _completed(original, learned)
    parts: dict[str, Any] = {}
    if before and after:
        parts["forgetting"] = forgetting(before, after, seed=seed)
    if learned:
        parts["memorisation"] = memorisation(before_learned, after_learned)
    return parts


def _ability(model: Model, general: Rows) -> Ability | None:
    """What a model makes of general rows; None without rows."""
    if not general:
        return None
    target = LocalTarget.of(model)
    lengths = sorted(len(model.template.encode(row.answer)) + 1 for row in general)
    limit = min(max(8, lengths[int(0.98 * (len(lengths) - 1))]), 128)
    requests = [Request(row.prompt, row.tools or (), max_new_tokens=limit) for row in general]
    answers = list(target.complete(requests, task="general rows"))
    rendered = [model.template.render(row.messages, row.tools) for row in general]
    fits = target.fits(rendered, task="general rows")
    return ability(general, answers, [fit.loss for fit in fits], [fit.tokens for fit in fits])


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
