"""Monitors read the metrics of a run as they come and name what is going wrong.

A finding is a kind, a step, the rows of that step's batch, a plain sentence and remedies in the order data, learning
rate, clipping, batch, epochs, dropout. All thresholds are relative: to the curve's own noise, and to where it started.
Limits: a step is judged by those before it, so the first ten are judged only by the start; and without a validation
split whether rows are memorised can't be seen before a row has been seen five times.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import mean, median, stdev
from typing import Any

from tuneloop.core.units import counted
from tuneloop.models.chat import Rendered
from tuneloop.training.config import TrainConfig, usual_rate
from tuneloop.training.rows import TrainRow

WINDOW, LEAST = 30, 10  # a step is compared with so many before it, and with no fewer than LEAST
# Robust z-score of a spike, for a full window; a short one knows its noise less well. The recorded healthy steps with
# their heavy tails reach 4.5.
SPIKE_Z = 6.0
LOST = 0.35  # part of the gain that a spike or rise loses again: near zero one hard row makes a high z-score
EXPLOSION = 20.0  # times the usual norm: norms vary by a factor of ten from batch to batch
LOW_RATE = 0.1  # share of the usual rate under which a run that does not fall has too low a rate
FLAT_STEPS, FLAT_SHARE = 100, 2 / 3  # steps without a fall that make a plateau, and the share of the run that they are
NEAR_ZERO = 0.05  # share of the starting loss that counts as near zero
# What the loss of guessing is estimated from: answers of so many tokens, tokens before one, rows at least; and about
# the size of a vocabulary, for tokens that no other answer has.
GUESS_TOKENS, GUESS_CONTEXT, LEAST_ROWS, VOCABULARY = 20_000, 3, 30, 50_000


@dataclass(frozen=True)
class TrainingFinding:
    """Something that goes wrong."""

    kind: str  # one of KINDS
    step: int  # optimizer step, from 1
    rows: tuple[str, ...]  # ids of the rows in that step's batch, where a batch is to blame; else empty
    sentence: str  # what is seen and what it means
    remedies: tuple[str, ...]  # what to do, in the order in which to try it

    def to_record(self) -> dict[str, Any]:
        """The line of `metrics.jsonl`."""
        rows, remedies = list(self.rows), list(self.remedies)
        return {"step": self.step, "finding": self.kind, "rows": rows, "sentence": self.sentence, "remedies": remedies}


@dataclass(frozen=True)
class MonitorFacts:
    """What the monitors know of a run in addition to its records; nothing of it is needed."""

    total_steps: int = 0  # steps planned
    rows: int = 0  # training rows
    learning_rate: float = 0.0  # the run's peak rate
    usual_rate: float = 0.0  # the method's default
    rows_per_step: int = 8  # as the next three, a setting that remedies name
    max_grad_norm: float = 1.0
    epochs: float = 1.0
    dropout: float = 0.0
    guess_loss: float | None = None  # loss of guessing from the answers alone, see `guess_loss`


@dataclass
class Monitors:
    """The curves so far, and what has been said about them. Feed it every record in order."""

    facts: MonitorFacts = field(default_factory=MonitorFacts)
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    epoch: float = 0.0
    validations: list[tuple[int, float]] = field(default_factory=list)
    reported: dict[str, int] = field(default_factory=dict)

    def feed(self, record: Mapping[str, Any], rows: Sequence[str] = ()) -> list[TrainingFinding]:
        """Take a step's or an evaluation's record of `metrics.jsonl`, where a loss that is no number may be None, and
        the ids of the step's rows; returns what is new."""
        step = int(record.get("step") or 0)
        if "val_loss" in record:
            self.validations.append((step, _number(record["val_loss"])))
            detectors = OF_EVALUATIONS
        elif "loss" in record:
            self.steps.append(step)
            self.losses.append(_number(record["loss"]))
            self.norms.append(_number(record.get("grad_norm", 0.0)))
            self.rates.append(_number(record.get("learning_rate", 0.0)))
            self.epoch = float(record.get("epoch") or self.epoch)
            detectors = OF_STEPS
        else:
            return []
        findings = []
        for kind, detect in detectors:
            # Events may come again, conditions are reported once, and what follows from another finding is not.
            if any(cause in self.reported for cause in FOLLOWS_FROM.get(kind, ())):
                continue
            if kind in self.reported and (kind not in OF_A_BATCH or step - self.reported[kind] <= LEAST):
                continue
            if sentence := detect(self):
                self.reported[kind] = step
                ids = tuple(rows) if kind in OF_A_BATCH else ()
                findings.append(TrainingFinding(kind, step, ids, sentence, remedies(kind, self.facts, ids)))
        return findings

    def go_back(self, step: int) -> None:
        """Forget what came after a step: the run continues from there."""
        n = sum(s <= step for s in self.steps)
        for curve in (self.steps, self.losses, self.norms, self.rates):
            del curve[n:]
        self.validations = [v for v in self.validations if v[0] <= step]
        self.reported = {kind: at for kind, at in self.reported.items() if at <= step}

    @property
    def start(self) -> float:
        """Loss of the base model: measured on validation rows, else that of the first step."""
        measured = [loss for step, loss in self.validations if step == 0 and math.isfinite(loss)]
        return measured[0] if measured else self.losses[0] if self.losses else float("nan")

    @property
    def share(self) -> float:
        """Share of the planned steps that is done; 1 when no plan is known."""
        return self.steps[-1] / self.facts.total_steps if self.facts.total_steps and self.steps else 1.0

    def recent(self, n: int) -> float:
        """Median of the last `n` losses."""
        return median(self.losses[-n:])


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def spread(values: Sequence[float]) -> float:
    """Standard deviation, robustly: the greater of what the median absolute deviation and the upper tail say of normal
    noise, and at least 2 % of the level: a curve without noise has no spikes of 1 %."""
    middle = median(values)
    deviations = sorted(abs(v - middle) for v in values)
    upper = sorted(values)[min(math.ceil(0.9 * len(values)), len(values) - 1)] - middle
    return max(1.4826 * median(deviations), upper / 1.2816, 0.02 * abs(middle), 1e-6)


def _expected(before: Sequence[float]) -> tuple[float, float]:
    """Where a curve goes next by the line through its window, and its noise about that line. The slope is the median of
    the slopes between all pairs (Theil 1950, Sen 1968): a spike in the window does not tilt it."""
    n = len(before)
    slope = median((before[j] - before[i]) / (j - i) for i in range(n) for j in range(i + 1, n))
    levelled = [value + slope * (n - i) for i, value in enumerate(before)]
    return median(levelled), spread(levelled)


def trend(losses: Sequence[float]) -> str:
    """The loss as the live display shows it: the median of the last ten steps and where it goes, by noise."""
    if not losses:
        return ""
    now = median(losses[-10:])
    before = losses[-30:-10]
    if len(before) < LEAST:
        return f"loss {now:.3f}"
    step = spread(before) / 2
    arrow = "↓" if now < median(before) - step else "↑" if now > median(before) + step else "→"
    return f"loss {now:.3f} {arrow}"


def guess_loss(answers: Sequence[tuple[int, ...]]) -> float | None:
    """Mean loss a token of a model that knows the answers and nothing about the questions.

    It predicts a token from the three before it in the answer, by the counts of all other rows, each length of context
    mixed with the next shorter one (Witten & Bell 1991, doi 10.1109/18.87000). Where answers recur, in whole or in
    part, that is about their entropy; of free text it is far above any model's loss. None where there is nothing to
    guess: few rows, or one answer.

    Args:
        answers: the supervised token ids of each row.
    """
    sample = random.Random(0).sample(answers, len(answers))
    ends = accumulate(len(answer) for answer in sample)
    answers_used = [answer for answer, end in zip(sample, ends, strict=True) if end <= GUESS_TOKENS and answer]
    if len(answers_used) < LEAST_ROWS or len(set(answers_used)) < 2:
        return None
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for answer in answers_used:
        for context, token in _grams(answer):
            counts[context][token] += 1
    sums = {context: following.total() for context, following in counts.items()}
    loss = -sum(_log_probability(answer, counts, sums) for answer in answers_used)
    guess = loss / sum(map(len, answers_used))
    return guess if guess > 0.02 else None


def _grams(answer: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Each token behind its contexts, the empty one first; -1 is before the answer."""
    padded = (-1, *answer)
    for end in range(1, len(padded)):
        for length in range(min(GUESS_CONTEXT, end) + 1):
            yield padded[end - length : end], padded[end]


def _log_probability(
    answer: tuple[int, ...], counts: Mapping[tuple[int, ...], Counter[int]], sums: Mapping[tuple[int, ...], int]
) -> float:
    """Of an answer by the counts of all, without its own."""
    grams = Counter(_grams(answer))
    own_sums, own_kinds = Counter[tuple[int, ...]](), Counter[tuple[int, ...]]()
    for (context, token), times in grams.items():
        own_sums[context] += times
        own_kinds[context] += counts[context][token] == times
    total, probability = 0.0, 1.0
    for context, token in _grams(answer):
        if not context:  # the next token begins
            total += math.log(probability)
            probability = 1 / VOCABULARY
        seen = sums[context] - own_sums[context]
        kinds = len(counts[context]) - own_kinds[context]
        if seen:
            probability = (counts[context][token] - grams[context, token] + kinds * probability) / (seen + kinds)
    return total + math.log(probability)


# --- what is looked for: each takes the monitors and gives a sentence, or an empty string --------


def _not_a_number(w: Monitors) -> str:
    if math.isfinite(w.losses[-1]) and math.isfinite(w.norms[-1]):
        return ""
    noun = "loss" if not math.isfinite(w.losses[-1]) else "gradient norm"
    return f"The {noun} at step {w.steps[-1]} is not a finite number: training has diverged."


def _above_the_start(w: Monitors) -> str:
    """In the first third of a run, eight steps in a row above the base model's loss, or four far above it."""
    last = w.losses[-8:]
    if len(last) < 4 or (w.share > 1 / 3 and len(w.losses) > 60):
        return ""
    # One step's loss is a poor measure of the start; in the second the weights have hardly moved yet.
    start, low, high = (w.start, 1.2, 1.5) if w.validations else (max(w.losses[:2]), 1.5, 2.0)
    lasting = len(last) == 8 and min(last) > low * start and median(last) > high * start
    if lasting or min(last[-4:]) > high * start:
        some = last if lasting else last[-4:]
        level = f"The loss is {median(some):.3g} over the last {counted(len(some), 'step')}"
        began = f"it began while the learning rate rose to {max(w.rates):g}: the rate is too high."
        return f"{level}, above the {w.start:.3g} of the base model; {began}"
    return ""


def _worse_than_base(w: Monitors) -> str:
    """Validation and training both worse than before the first step."""
    step, loss = w.validations[-1]
    if step == 0 or len(w.losses) < 8 or w.validations[0][0] != 0:
        return ""
    if loss > 1.1 * w.start and w.recent(8) > 0.9 * w.start and w.recent(8) > median(w.losses[:3]):
        change = f"After {counted(step, 'step')} the validation loss is {loss:.3g}, {w.start:.3g} before the first one"
        return f"{change}: the model gets worse, the learning rate is too high."
    return ""


def _lasting_rise(w: Monitors) -> str:
    """A median of ten steps above the lowest one so far, by noise and by a good part of what was gained."""
    if len(w.losses) < 3 * LEAST:
        return ""
    lowest, at = min((median(w.losses[i : i + LEAST]), i) for i in range(0, len(w.losses) - LEAST, LEAST // 2))
    now, last = w.recent(LEAST), w.losses[-LEAST:]
    noise = spread(w.losses[at : at + WINDOW])
    gain = max(w.start - lowest, 0.0)
    if now - lowest > max(4 * noise, LOST * gain) and min(last) > lowest + noise:
        rise = f"from {lowest:.3g} around step {w.steps[at]} to {now:.3g}"
        return f"The loss has risen {rise} and stays there: training diverges."
    return ""


def _spike(w: Monitors) -> str:
    """Far above where the last thirty steps lead, or the last twelve: a steep beginning makes a wide noise."""
    loss = w.losses[-1]
    for window in (WINDOW, LEAST + 2):
        before = w.losses[-1 - window : -1]
        if len(before) < LEAST:
            return ""
        earlier = w.losses[-1 - WINDOW : -1 - window]
        if window < WINDOW and (not earlier or median(before) > 0.5 * median(earlier)):
            return ""
        level, noise = _expected(before)
        z = (loss - level) / noise
        if z > SPIKE_Z * (1 + 5 / len(before)) and loss - level > LOST * max(w.start - level, 0.0):
            expected = f"the steps before lead to {level:.3g} ± {noise:.2g} (z = {z:.0f})"
            return f"The loss jumps to {loss:.3g} at step {w.steps[-1]}; {expected}."
    return ""


def _explosion(w: Monitors) -> str:
    norm, before = w.norms[-1], w.norms[-1 - WINDOW : -1]
    if not before or not math.isfinite(norm):
        return ""
    usual = median(before)
    if norm > EXPLOSION * usual and norm > 5 * max(w.norms[:LEAST][: len(w.norms) - 1]):
        factor = f"{norm / max(usual, 1e-12):,.0f} times that of the steps before"
        return f"The gradient norm is {norm:.3g} at step {w.steps[-1]}, {factor}."
    return ""


def _dead(w: Monitors) -> str:
    """Gradients of zero, or a loss that is the same at every step."""
    last, norms = w.losses[-20:], w.norms[-20:]
    if len(last) < 20 or median(last) < NEAR_ZERO * w.start:
        return ""
    if max(norms) < 1e-8 and min(w.rates[-20:]) > 0 and any(w.norms):
        return "The gradients have been zero for 20 steps: nothing is learned any more."
    if max(last) - min(last) < 1e-4 * abs(median(last)):
        return f"The loss has been {median(last):.4g} for 20 steps without moving: nothing reaches the weights."
    return ""


def _clearly_flat(values: Sequence[float], most: float) -> bool:
    """Whether the second half of `values` is lower by less than `most`, two standard errors included."""
    half = len(values) // 2
    fall = mean(values[:half]) - mean(values[half:])
    return fall + 2 * stdev(values) * math.sqrt(2 / half) < most


def _no_fall(w: Monitors) -> bool:
    """After half of the run, and 80 steps, the loss is where it was; validation losses have less noise and decide."""
    if len(w.losses) < 80 or w.share < 0.5:
        return False
    validated = [loss for step, loss in w.validations if step]
    if validated and w.validations[0][0] == 0:
        return 0.995 * w.start < min(validated) < 1.1 * w.start
    return _clearly_flat(w.losses, 0.01 * w.start) and w.recent(20) > 0.9 * w.start


def _too_low(w: Monitors) -> str:
    """A rate far below the usual one, and a loss that has hardly fallen or still falls as fast as in the beginning."""
    rate = max(w.rates, default=0.0)
    usual, n = w.facts.usual_rate, len(w.losses)
    low = rate < LOW_RATE * usual if usual else rate < 1e-6
    if not low or n < 30 or w.share < 0.5:
        return ""
    third = n // 3
    thirds = [median(w.losses[i * third : (i + 1) * third]) for i in range(3)]
    early, late = thirds[0] - thirds[1], thirds[1] - thirds[2]
    if _no_fall(w) or (thirds[2] > 0.5 * w.start and late > 0.4 * early):
        hint = f"; {usual:g} is usual" if usual else ""
        fall = f"After {counted(w.steps[-1], 'step')} the loss is {thirds[2]:.3g}, {w.start:.3g} at the start"
        return f"{fall}, and falls slowly: a learning rate of {rate:g} is too low{hint}."
    return ""


def _never_fell(w: Monitors) -> str:
    if len(w.losses) % LEAST or not _no_fall(w):
        return ""
    level = f"After {counted(w.steps[-1], 'step')} the loss is where it began ({w.recent(20):.3g})"
    return f"{level}: nothing is learned from these rows."


def _flat(w: Monitors) -> str:
    """A loss that fell, and then has not for two thirds of the run, well above zero."""
    n = len(w.losses)
    if n % LEAST or n < FLAT_STEPS / FLAT_SHARE or w.share < 0.5 or w.recent(FLAT_STEPS) < 2 * NEAR_ZERO * w.start:
        return ""
    tail = w.losses[-max(FLAT_STEPS, math.ceil(FLAT_SHARE * n)) :]
    began = w.steps[-len(tail)]
    before = [loss for step, loss in w.validations if step <= began]
    after = [loss for step, loss in w.validations if step > began]
    if before and after:
        falls = min(after) < 0.99 * min(before)
    else:
        falls = not _clearly_flat(tail, min(0.012 * mean(tail), 0.05 * (w.start - mean(tail))))
    return "" if falls else f"The loss has not fallen since step {began}: it stays at {mean(tail):.3g}."


def _no_better_than_guessing(w: Monitors) -> str:
    """Late in a run, and no longer falling, the validation loss is that of knowing the answers only, or above it."""
    guess = w.facts.guess_loss
    validated = [loss for step, loss in w.validations if step]
    if guess is None or not validated or len(w.losses) < 30 or w.share < 0.6:
        return ""
    loss = validated[-1]
    # A sound run falls through that level quickly; one that stays above it may only be slow.
    slow = 0.93 if loss < 1.1 * guess else 0.96
    still_falling = len(validated) > 1 and loss < slow * min(validated[:-1])
    if 0.95 * guess < loss < 2 * guess and not still_falling:
        level = f"The validation loss stays at {loss:.3g}; guessing from the answers alone costs {guess:.3g}"
        return f"{level}: nothing in the questions tells the answers."
    return ""


def _overfitting(w: Monitors) -> str:
    """Validation worse than its best twice in a row (or once by far), while the training loss kept falling."""
    validated = [(step, loss) for step, loss in w.validations if step]
    if len(validated) < 2:
        return ""
    best_at, best = min(validated[:-1], key=lambda v: v[1])
    later = [loss for step, loss in validated if step > best_at]
    step, loss = validated[-1]
    little = 0.01 * max(w.start - best, 0.0)  # of what was gained: near zero a few hard rows double the loss
    twice = len(later) >= 2 and min(later[-2:]) > 1.01 * best and loss > max(1.03 * best, best + little)
    if not twice and loss < max(1.15 * best, best + 5 * little):
        return ""
    n = max(min(best_at, step - best_at), 1)
    before = [v for s, v in zip(w.steps, w.losses, strict=True) if best_at - n < s <= best_at]
    after = w.losses[-n:]
    if not before or sum(after) / len(after) >= sum(before) / len(before):
        return ""
    rise = f"The validation loss rises, {best:.3g} at step {best_at} and {loss:.3g} at step {step}"
    return f"{rise}, while the training loss falls to {median(after):.3g}."


def _memorising(w: Monitors) -> str:
    """Training loss near zero on rows that were seen often, and no validation loss that says it was learned."""
    n = min(max(LEAST, round(len(w.losses) / max(w.epoch, 1))), 50)
    if len(w.losses) < 2 * LEAST or w.epoch < 3 or w.recent(n) > NEAR_ZERO * w.start:
        return ""
    validated, of_validation = [loss for step, loss in w.validations if step and math.isfinite(loss)], ""
    if w.validations:
        still_falling = validated[-1] < 0.95 * min(validated[:-1]) if validated[1:] else w.share < 1
        if not validated or still_falling or validated[-1] < max(10 * w.recent(n), NEAR_ZERO * w.start):
            return ""
        of_validation = f", {validated[-1]:.3g} on validation rows"
    elif w.epoch < 5:
        return ""
    rows = counted(w.facts.rows, "row") if w.facts.rows else "the rows"
    loss = f"the training loss is {w.recent(n):.2g}{of_validation}"
    return f"After {counted(w.epoch, 'pass')} over {rows} {loss}: they are known by heart."


Detect = Callable[[Monitors], str]
# The first that explains a curve comes first: what follows from it is not reported (FOLLOWS_FROM).
OF_STEPS: tuple[tuple[str, Detect], ...] = (
    ("divergence", _not_a_number),
    ("learning_rate_too_high", _above_the_start),
    ("divergence", _lasting_rise),
    ("gradient_explosion", _explosion),
    ("spike", _spike),
    ("learning_rate_too_low", _too_low),
    ("dead_loss", _dead),
    ("dead_loss", _never_fell),
    ("plateau", _flat),
    ("memorising", _memorising),
)
OF_EVALUATIONS: tuple[tuple[str, Detect], ...] = (
    ("learning_rate_too_high", _worse_than_base),
    ("overfitting", _overfitting),
    ("memorising", _memorising),
    ("plateau", _no_better_than_guessing),
)
KINDS = tuple(dict.fromkeys(kind for kind, _ in (*OF_STEPS, *OF_EVALUATIONS)))
OF_A_BATCH = ("spike", "gradient_explosion")  # their rows are named, and they may come again
_BROKEN = ("divergence", "learning_rate_too_high")
_STUCK = (*_BROKEN, "learning_rate_too_low", "dead_loss")
FOLLOWS_FROM: dict[str, tuple[str, ...]] = {
    "learning_rate_too_high": ("divergence",),
    "divergence": ("learning_rate_too_high",),
    **dict.fromkeys((*OF_A_BATCH, "learning_rate_too_low", "overfitting"), _BROKEN),
    "dead_loss": _STUCK,
    "plateau": (*_STUCK, "memorising", "overfitting"),
}


def remedies(kind: str, facts: MonitorFacts, rows: Sequence[str] = ()) -> tuple[str, ...]:
    """What to do about a finding, in the order data, learning rate, clipping, batch, epochs, dropout."""
    rate = facts.learning_rate
    look = f"look at these rows: {', '.join(rows)}" if rows else "look at the rows of that step"
    lower = f"train.learning_rate={rate / 3:.1g}" if rate else "lower train.learning_rate to a third"
    usual = facts.usual_rate
    # A rate of a hundred times the usual one needs more than a tenth.
    tenth = min(rate / 10, usual) if rate > usual > 0 else rate / 10
    far_lower = f"train.learning_rate={tenth:.1g}" if rate else "lower train.learning_rate to a tenth"
    higher = f"train.learning_rate={usual:g}" if usual else "raise train.learning_rate tenfold"
    clip = f"train.max_grad_norm={facts.max_grad_norm / 3:.1g}"
    batch = f"train.rows_per_step={2 * facts.rows_per_step}"
    fewer = f"train.epochs={max(round(facts.epochs / 3), 1)}"
    dropout = f"train.dropout={max(0.1, round(1.5 * facts.dropout, 2)):g}"
    more_rows = "add rows, of other kinds than these"
    broken = "`tuneloop data check` the data set for rows that are broken or of extreme length"
    labels = "check that each answer belongs to its question: `tuneloop data check` looks for label errors"
    by_kind: dict[str, tuple[str, ...]] = {
        "spike": (look, lower, clip, batch),
        "gradient_explosion": (look, lower, clip, batch),
        "divergence": (broken, lower, clip, batch),
        "learning_rate_too_high": (far_lower, clip, batch),
        "learning_rate_too_low": (higher, "more epochs"),
        "dead_loss": ("`tuneloop train --preflight` shows which tokens are supervised", higher),
        "plateau": (labels, lower, batch),
        "overfitting": (more_rows, lower, fewer, dropout),
        "memorising": (more_rows, fewer, dropout),
    }
    return by_kind[kind]


# Which setting says what happens; of what is not listed only a warning is given (patience ends a run that overfits).
POLICY = dict.fromkeys(OF_A_BATCH, "on_spike") | dict.fromkeys(_BROKEN, "on_divergence")


def policy(kind: str, config: TrainConfig) -> str:
    """What the settings want done about a finding: warn, stop or rollback."""
    return str(getattr(config, POLICY[kind])) if kind in POLICY else "warn"


def make_monitors(config: TrainConfig, rows: Sequence[TrainRow], total_steps: int) -> Monitors:
    """Monitors that know a run's settings and rows."""
    answers = [tuple(t for t, m in zip(r.ids, r.mask, strict=True) if m) for r in rows if isinstance(r, Rendered)]
    names = ("learning_rate", "rows_per_step", "max_grad_norm", "epochs", "dropout")
    settings = {name: getattr(config, name) for name in names}
    usual = usual_rate(config.method, config.loss)
    return Monitors(MonitorFacts(total_steps, len(rows), usual_rate=usual, guess_loss=guess_loss(answers), **settings))
