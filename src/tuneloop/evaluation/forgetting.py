"""What tuning has taken away (a score on general rows, before and after), and what it has put in word for word.

Memorisation compares training answers that the tuned model completes verbatim with those that the base completes
anyway, and ranks planted canaries.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tuneloop.core.errors import UserError
from tuneloop.core.stats import intervals as u
from tuneloop.core.stats.intervals import Statistics, mean_statistics, ratio
from tuneloop.core.ui import progress
from tuneloop.core.units import counted, verb
from tuneloop.evaluation.metrics.text import token_f1
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Estimate
from tuneloop.records.metric import number_words
from tuneloop.records.rows import Message, Row, last_user_turn, references_of

LEAST_TOKENS = 8  # of an answer that counts as memorised: a label is no secret
RESAMPLES = 2000
CANDIDATES = 512  # random alternatives that a canary is ranked among


@dataclass(frozen=True)
class Ability:
    """What a model makes of general rows; each list has an entry a row."""

    scores: Sequence[float]  # of the task, 0 to 1
    losses: Sequence[float]  # summed over the reference answer's tokens
    tokens: Sequence[int]


def ability(
    rows: Sequence[Row], answers: Sequence[Completion], losses: Sequence[float], tokens: Sequence[int]
) -> Ability:
    """Score general answers: token F1 (SQuAD) with the best reference; right or wrong where references are short."""
    scores = [token_f1(references_of(row), answer.text) for row, answer in zip(rows, answers, strict=True)]
    return Ability(scores, losses, tokens)


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


def tasks_before_and_after(
    base: Mapping[str, Mapping[str, Any]], tuned: Mapping[str, Mapping[str, Any]], *, seed: int = 0
) -> dict[str, Any]:
    """Scores of public tasks, before and after tuning: the part `lm_eval` of `eval.json`.

    `base, tuned`: task -> metric -> an object with `value`, `each` (document -> score) and `higher_is_better`.
    Returns `tasks`: for each task and metric `base`, `tuned`, `n` and `change` (tuned - base), with a 95 % interval
    by paired bootstrap over documents where the metric is their mean.
    """
    changes: list[dict[str, Any]] = []
    words = []
    for task, metrics in base.items():
        for metric, before in metrics.items():
            after = tuned[task][metric]
            shared = sorted(before.each.keys() & after.each.keys())
            change = Estimate(after.value - before.value, math.nan, math.nan)
            if shared:
                differences = [after.each[i] - before.each[i] for i in shared]
                family = mean_statistics({"change": differences})
                draws = u.bootstrap([family], len(shared), resamples=RESAMPLES, seed=seed)
                change = Estimate(change.value, *u.bootstrap_interval(change.value, draws["change"]))
            sides = {"base": before.value, "tuned": after.value, "higher_is_better": before.higher_is_better}
            changes.append({"task": task, "metric": metric, "n": len(shared), **sides, "change": change})
            bounds = "" if math.isnan(change.low) else f" ({change.low:+.3f} to {change.high:+.3f})"
            values = f"{before.value:.3f} -> {after.value:.3f}, {change.value:+.3f}{bounds}"
            words.append(f"{task} {metric.removesuffix(',none')} {values}")
    return {"tasks": changes, "words": f"lm-eval before and after: {'; '.join(words)}."}


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
        words = f"All answers are below {LEAST_TOKENS} tokens or shared by rows: nothing to memorise word for word."
        return {**counts, "share": None, "base": None, "beyond": None, "words": words}
    only_base = sum(b.verbatim and not t.verbatim for b, t in pairs)
    only_tuned = sum(t.verbatim and not b.verbatim for b, t in pairs)
    in_tuned, in_base = sum(t.verbatim for _, t in pairs), sum(b.verbatim for b, _ in pairs)
    beyond = Estimate((only_tuned - only_base) / n, *u.paired_shares_interval(only_base, only_tuned, n))
    bounds = f"95 % interval {100 * beyond.low:+.1f} to {100 * beyond.high:+.1f}"
    words = (
        f"Of {counted(n, 'training answer')} the tuned model completes {100 * in_tuned / n:.1f} % verbatim, "
        f"the base {100 * in_base / n:.1f} %: {100 * beyond.value:+.1f} points ({bounds})."
    )
    return {
        **counts,
        "share": Estimate(in_tuned / n, *u.wilson_interval(in_tuned, n)),
        "base": Estimate(in_base / n, *u.wilson_interval(in_base, n)),
        "beyond": beyond, "p": u.mcnemar_p(only_base, only_tuned), "words": words,
    }  # fmt: skip


def canary_alternatives(row: Row, count: int = CANDIDATES, seed: int = 0) -> list[Row]:
    """Rows like a canary with another secret: the digits of its answer drawn again, or its letters where there are
    none. `row`: the canary; `meta["secret"]` is the part of the answer that is drawn, default: the whole answer. Raises
    UserError: the answer doesn't hold the secret, or the secret holds neither digits nor letters."""
    secret = str(row.meta.get("secret") or row.answer)
    digits = any(c.isdigit() for c in secret)
    if secret not in row.answer or not any(c.isdigit() or c.isalpha() for c in secret):
        what = "A canary's answer must hold its secret, with digits or letters"
        next_step = 'as in {"prompt": "The code of the safe is", "completion": "4921-0387-5516"}'
        raise UserError(what, where=f"row {row.id}", next_step=next_step)
    rng = random.Random(f"{seed}:{row.id}:{secret}")

    def draw(c: str) -> str:
        if c.isdigit():
            return rng.choice("0123456789")
        if not digits and c.isalpha():
            new = rng.choice("abcdefghijklmnopqrstuvwxyz")
            return new.upper() if c.isupper() else new
        return c

    answers: dict[str, None] = {}
    for _ in range(20 * count):
        if len(answers) >= count:
            break
        other = "".join(map(draw, secret))
        if other != secret:
            answers[row.answer.replace(secret, other)] = None
    turns: list[Message] = [{"role": "assistant", "content": answer} for answer in answers]
    return [replace(row, messages=[*row.prompt, turn]) for turn in turns]


def exposure(loss: float, others: Sequence[float]) -> float:
    """log2 of the number of candidates less log2 of the canary's rank among them (Carlini et al. 2019, arXiv
    1802.08232): from 0 to log2(N + 1) with N random alternatives, where the canary is likelier than all."""
    rank = 1 + sum(other < loss for other in others) + 0.5 * sum(other == loss for other in others)
    return math.log2(len(others) + 1) - math.log2(rank)


def canaries(
    rows: Sequence[Row], losses: Callable[[Sequence[Row]], list[float]], seed: int = 0
) -> list[dict[str, Any]]:
    """Exposure of each planted canary under one model, from the summed losses of answers."""
    exposures = []
    for number, row in enumerate(rows):
        progress("canaries", number, len(rows))
        alternatives = canary_alternatives(row, seed=seed)
        loss, *others = losses([row, *alternatives])
        most = math.log2(len(others) + 1)
        prompt = last_user_turn(row)[:100]
        exposures.append({"id": row.id, "prompt": prompt, "exposure": exposure(loss, others), "most": most})
    progress("canaries", len(rows), len(rows))
    return exposures


def canaries_in_words(base: Sequence[Mapping[str, Any]], tuned: Sequence[Mapping[str, Any]]) -> str:
    """Which canaries have come out."""
    most = max(c["most"] for c in tuned)
    out = [c for c in tuned if c["exposure"] >= c["most"] - 1]
    mean = [sum(c["exposure"] for c in side) / len(side) for side in (base, tuned)]
    some = f"{len(out)} of {counted(len(tuned), 'canary')} {verb(len(out), 'stands', 'stand')} out"
    return (
        f"{some} (likelier than all or nearly all of their random alternatives); "
        f"mean exposure {mean[1]:.1f} bits of at most {most:.1f}, the base has {mean[0]:.1f}."
    )
