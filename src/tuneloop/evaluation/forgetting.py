"""What tuning has taken away (a score on general rows, before and after), and what it has put in word for word.

Memorisation compares training answers that the tuned model completes verbatim with those that the base completes
anyway.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from tuneloop.core.lazy import np
from tuneloop.core.stats import intervals as u
from tuneloop.core.stats.intervals import Statistics, ratio
from tuneloop.core.units import counted
from tuneloop.evaluation.evaluate import sample_rows
from tuneloop.evaluation.metrics.text import token_f1
from tuneloop.inference import Request
from tuneloop.inference.local import LocalTarget
from tuneloop.models import Model
from tuneloop.records.evaluation import Estimate
from tuneloop.records.metric import number_words
from tuneloop.records.rows import Row, references_of

LEAST_TOKENS = 8  # of an answer that counts as memorised: a label is no secret
RESAMPLES = 2000
MOST_LEARNED = 300  # training rows that are looked at for memorisation
Rows = Sequence[Row]


@dataclass(frozen=True)
class Ability:
    """What a model makes of general rows; each list has an entry a row."""

    scores: Sequence[float]  # of the task, 0 to 1
    losses: Sequence[float]  # summed over the reference answer's tokens
    tokens: Sequence[int]


def forgetting(base: Ability, tuned: Ability, *, seed: int = 0) -> dict[str, Any]:
    """How much of what the base could do has been lost.

    The score is 1 - tuned / base of the mean task score: 0 nothing, 1 all; negative where tuning has helped. `loss` is
    the growth of the mean loss of a reference token in nats, the finer instrument. Intervals: paired bootstrap over the
    rows, the same on both sides.
    """
    n = len(base.scores)
    columns = [base.scores, tuned.scores, base.losses, tuned.losses, base.tokens]
    table = np.array(columns, dtype=np.float64).T  # (n, 5)

    functions = {
        "score": lambda sums: 1.0 - ratio(sums[:, 1], sums[:, 0], empty=np.nan),
        "loss": lambda sums: ratio(sums[:, 3] - sums[:, 2], sums[:, 4], empty=np.nan),
    }
    family = Statistics(table, functions, {})
    draws = u.bootstrap([family], n, resamples=RESAMPLES, seed=seed)
    score, loss = (
        Estimate(value, *u.bootstrap_interval(value, draws[name][~np.isnan(draws[name])]))
        for name, value in family.point_values().items()
    )
    losses = [sum(side.losses) / max(sum(side.tokens), 1) for side in (base, tuned)]
    return {
        "score": score, "loss": loss, "metric": "token_f1", "n": n,
        "base": {"token_f1": float(np.mean(base.scores)), "loss": losses[0]},
        "tuned": {"token_f1": float(np.mean(tuned.scores)), "loss": losses[1]},
        "words": _forgetting_in_words(score, loss, n),
    }  # fmt: skip


def _forgetting_in_words(score: Estimate, loss: Estimate, n: int) -> str:
    rows = counted(n, "general row")
    if math.isnan(score.value):
        nothing = f"On {rows} the base scores nothing: answers say nothing of forgetting"
        return f"{nothing}; the loss grew by {loss.value:+.3f}."
    way = "fell" if score.value >= 0 else "rose"
    low, high = sorted((abs(score.low), abs(score.high))) if score.low * score.high > 0 else (score.low, score.high)
    low_words, high_words = (number_words(100 * bound, 1) for bound in (low, high))
    amount = f"{100 * abs(score.value):.1f} % (95 % interval {low_words} to {high_words})"
    verdict = "It has gained on general rows, not forgotten" if score.high < 0 else "No forgetting is shown"
    verdict = "It has forgotten" if score.low > 0 else verdict
    change = f"{loss.value:+.3f} ({loss.low:+.3f} to {loss.high:+.3f})"
    return f"{verdict}: on {rows} the score {way} by {amount}, and the loss of a token changed by {change}."


@dataclass(frozen=True)
class Completed:
    """How a model completes a training row's answer."""

    verbatim: bool
    tokens: int  # of the answer
    shared: bool = False  # whether other rows have it too


def memorisation(base: Sequence[Completed], tuned: Sequence[Completed]) -> dict[str, Any]:
    """The share of training answers that the tuned model completes verbatim, beyond what the base does on the same
    rows.

    Completed means: greedy decoding after the row's prompt gives the answer token by token (Carlini et al. 2023,
    arXiv 2202.07646). Answers below 8 tokens, and those that several rows share, are left out: reproducing a label is
    the task, not memory.
    """
    pairs = [(b, t) for b, t in zip(base, tuned, strict=True) if b.tokens >= LEAST_TOKENS and not b.shared]
    n = len(pairs)
    counts: dict[str, Any] = {"n": n, "left_out": len(base) - n, "least_tokens": LEAST_TOKENS}
    if not n:
        sentence = f"All answers are below {LEAST_TOKENS} tokens or shared by rows: nothing to memorise word for word."
        return {**counts, "share": None, "base": None, "beyond": None, "words": sentence}
    only_base = sum(b.verbatim and not t.verbatim for b, t in pairs)
    only_tuned = sum(t.verbatim and not b.verbatim for b, t in pairs)
    in_tuned, in_base = sum(t.verbatim for _, t in pairs), sum(b.verbatim for b, _ in pairs)
    beyond = Estimate((only_tuned - only_base) / n, *u.paired_shares_interval(only_base, only_tuned, n))
    bounds = f"95 % interval {100 * beyond.low:+.1f} to {100 * beyond.high:+.1f}"
    sentence = (
        f"Of {counted(n, 'training answer')} the tuned model completes {100 * in_tuned / n:.1f} % verbatim, "
        f"the base {100 * in_base / n:.1f} %: {100 * beyond.value:+.1f} points ({bounds})."
    )
    return {
        **counts,
        "share": Estimate(in_tuned / n, *u.wilson_interval(in_tuned, n)),
        "base": Estimate(in_base / n, *u.wilson_interval(in_base, n)),
        "beyond": beyond, "p": u.mcnemar_p(only_base, only_tuned), "words": sentence,
    }  # fmt: skip


# --- of a model, before and after tuning ---------------------------------------------------------


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
    """What a model makes of general rows, by token F1 (SQuAD) with the best reference; None without rows."""
    if not general:
        return None
    target = LocalTarget.of(model)
    lengths = sorted(len(model.template.encode(row.answer)) + 1 for row in general)
    limit = min(max(8, lengths[int(0.98 * (len(lengths) - 1))]), 128)
    requests = [Request(row.prompt, row.tools or (), max_new_tokens=limit) for row in general]
    answers = list(target.complete(requests, task="general rows"))
    rendered = [model.template.render(row.messages, row.tools) for row in general]
    fits = target.fits(rendered, task="general rows")
    scores = [token_f1(references_of(row), answer.text) for row, answer in zip(general, answers, strict=True)]
    return Ability(scores, [fit.loss for fit in fits], [fit.tokens for fit in fits])


def _completed(model: Model, rows: Sequence[Row]) -> list[Completed]:
    """Which training rows a model completes; those that don't count (short answers, shared ones) are not tried."""
    times = Counter(row.answer for row in rows)
    rendered = [model.template.render(row.messages, row.tools) for row in rows]
    pairs = zip(rendered, rows, strict=True)
    results = [Completed(False, sum(map(bool, r.mask[1:])), times[row.answer] > 1) for r, row in pairs]
    places = [i for i, result in enumerate(results) if result.tokens >= LEAST_TOKENS and not result.shared]
    fits = LocalTarget.of(model).fits([rendered[i] for i in places], task="training rows") if places else []
    for i, fit in zip(places, fits, strict=True):
        results[i] = replace(results[i], verbatim=fit.verbatim)
    return results
