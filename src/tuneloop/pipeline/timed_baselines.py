"""The base model's answers within a time: in rounds, by every prompt on the same rows, the clock read after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tuneloop.core.ui import busy, say
from tuneloop.evaluation.evaluate import sample_order, sample_rows
from tuneloop.models.methods import base_only
from tuneloop.pipeline.answers import Asking, ask, few_shot_prompt, joined, reading_seconds
from tuneloop.pipeline.baselines import MeasuredBefore, ask_base, base_examples, mean_reference, tuned_share
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.scoring import SystemAnswers
from tuneloop.records.rows import Dataset, Row

Rows = Sequence[Row]
Expect = Callable[[float], None]
LEAST = 4  # rows that zero-shot answers first, to learn how fast answers come
FIRST = 12  # rows of the first round where answers come fast enough
GROWTH = 3  # a further round has at most so many times the rows that were answered before it,
WORTH = 0.2  # and is left out where it would add less than this share of them
FEW_SHOT = 2.0  # what a row of few-shot takes relative to one of zero-shot, before any is measured
LEAST_ROWS = 24  # that should be answered: where few-shot's examples leave no time for that, fewer are shown
TUNED = 1.15  # what a row takes of the tuned model, relative to the base: it computes its adapter too
OUT_OF_TIME = 1.5  # few-shot is left out where the first round of all would take so many times the time
READING = 0.08  # most of the time of all answers that one reading of the examples may take: it is done in every round
ROWS_SHARE = 0.3  # the reading of examples is estimated: at least this share of a round counts as its rows'
FEWER = 0.7  # fewer examples are tried only where they are at most this share: a first round is lost then


@dataclass(frozen=True)
class TimedAnswers:
    """What the base model answered in its time."""

    rows: int  # how many; the seeded sample of this size
    answers: dict[str, SystemAnswers] = field(default_factory=dict)  # by baseline
    seconds: float = 0.0  # that these took
    free: float = 0.0  # of these, spent before on answers that were taken over
    examples: int = 0  # that few-shot shows
    all_examples: int = 0  # that it shows where there is time; equal where nothing was left out


@dataclass
class _Way:
    """A way to ask, and how fast it is."""

    name: str
    examples: Rows = ()
    reading: float = 0.0  # seconds in each round to read the examples
    parts: list[dict[str, SystemAnswers]] = field(default_factory=list)  # the answers of each round
    each: float = 0.0  # seconds a row of the last round, without that reading

    @property
    def seconds(self) -> float:
        return sum(part[""].seconds for part in self.parts)


@dataclass(frozen=True)
class _FirstRound:
    """Both ways after their first round."""

    zero: _Way
    few: _Way | None
    number: int  # rows of that round
    rows: Rows  # all that may be answered
    all_examples: int  # that few-shot shows where there is time

    @property
    def seconds(self) -> float:
        return self.zero.seconds + (self.few.seconds if self.few else 0.0)


def _sample(job: RunContext, dataset: Dataset) -> tuple[list[Row], list[int]]:
    """The rows of the sample in the order of the rounds, and the place of each among all test rows."""
    every = sample_rows(dataset.test, None, seed=job.recipe.seed)
    places = sample_order(every, job.recipe.seed, dataset.stratum)[: job.recipe.evaluate.limit]
    return [every[place] for place in places], places


def ask_within(
    job: RunContext,
    dataset: Dataset,
    seconds: float,
    expect: Expect = lambda seconds: None,
    before: MeasuredBefore | None = None,
) -> TimedAnswers:
    """The base model's answers to as many test rows as there is time for, by all prompts and the tuned model later.

    A first round by zero-shot, of at least `LEAST` rows, is always answered, so that there is something to compare.

    Args:
        seconds: for the answers of all of them.
        expect: is called with how many seconds the answers to come take at least, when the first are there.
        before: answers that are there already; they cost nothing, and rounds continue behind them.
    """
    config = job.recipe.evaluate
    rows, places = _sample(job, dataset)
    began = time.monotonic()
    reference = mean_reference(job, dataset)
    with base_only(job.model.net):
        first = before and _reused(job, dataset, rows, seconds, before)
        free = first.seconds if first else 0.0
        first = first or _first_round(job, dataset, rows, seconds, expect)
        zero, few, number = first.zero, first.few, first.number
        ways = [way for way in (zero if job.recipe.baselines.zero_shot else None, few) if way]
        while True:
            each, tuned = sum(way.each for way in ways), TUNED * zero.each * _share_of_tuned(zero, reference)
            several = zero.each * config.asked_again(len(first.rows))
            reading = sum(way.reading for way in ways)
            left = seconds - (time.monotonic() - began) - tuned * number - several - reading
            more = _more(number, len(first.rows), left / max(each + tuned, 1e-9))
            if not more:
                break
            for way in ways:
                _ask(job, dataset, way, first.rows[number : number + more])
            number += more
    order = sorted(range(number), key=places.__getitem__)
    answers = {
        f"{way.name} {kind}".strip(): joined([part[kind] for part in way.parts], order)
        for way in ways
        for kind in way.parts[0]
    }
    examples = len(few.examples) if few else 0
    return TimedAnswers(number, answers, sum(way.seconds for way in ways), free, examples, first.all_examples)


def _share_of_tuned(zero: _Way, reference: float) -> float:
    """What the tuned model's answers, as long as references (mean tokens), take relative to those of zero-shot."""
    parts = [part[""] for part in zero.parts]
    rows = max(sum(len(part.completions) for part in parts), 1)
    tokens, computed = sum(part.tokens for part in parts), sum(part.computed for part in parts)
    return tuned_share(tokens / rows, computed / rows, reference)


def _first_round(job: RunContext, dataset: Dataset, rows: Rows, seconds: float, expect: Expect) -> _FirstRound:
    few_shot = job.recipe.baselines.few_shot
    zero = _Way("zero-shot")
    _ask(job, dataset, zero, rows[:LEAST])
    leaves_time = (1 + FEW_SHOT + TUNED) * zero.each * FIRST < seconds
    number = min(len(rows), FIRST if leaves_time else LEAST)
    expect((TUNED + (FEW_SHOT if few_shot else 0.0)) * zero.each * number)
    if number > LEAST:
        _ask(job, dataset, zero, rows[LEAST:number])
    few, all_examples = None, 0
    if few_shot and (1 + FEW_SHOT + TUNED) * zero.each * number > OUT_OF_TIME * seconds:
        all_examples = len(base_examples(job, dataset, rows))  # left out, and said to be
    elif few_shot:
        few, all_examples = _few_shot(job, dataset, zero, rows, number, seconds)
    return _FirstRound(zero, few, number, rows, all_examples)


def _reused(
    job: RunContext, dataset: Dataset, rows: Rows, seconds: float, before: MeasuredBefore
) -> _FirstRound | None:
    """Earlier answers in place of a first round: to as many rows as the tuned model has time for; or nothing."""
    ready = before.first_of(rows)
    if "zero-shot" not in before.evaluations or ready < min(LEAST, len(rows)):
        return None
    each = before.answers("zero-shot", rows[:ready]).seconds / ready
    number = min(ready, max(int(seconds / max(TUNED * each, 1e-9)), LEAST))
    say(f"baselines {before.words(number)}")

    def way(name: str, examples: Rows = ()) -> _Way:
        part = {}
        for kind in ("", "calibrated"):
            if (full := f"{name} {kind}".strip()) in before.evaluations:
                answers = before.answers(full, rows[:number])
                # Further rows will have no loss.
                completions = [replace(a, loss=None, loss_tokens=None) for a in answers.completions]
                part[kind] = replace(answers, completions=completions)
        return _Way(name, examples, 0.0, [part], part[""].seconds / number)

    if "few-shot" not in before.evaluations:
        return _FirstRound(way("zero-shot"), None, number, rows, 0)
    examples = base_examples(job, dataset, rows)
    if ready < len(rows) and len(base_examples(job, dataset, rows[:ready])) != len(examples):
        rows = rows[:ready]  # longer rows leave room for fewer examples: those would be other prompts
    return _FirstRound(way("zero-shot"), way("few-shot", examples), number, rows, len(examples))


def ask_tuned_within(job: RunContext, dataset: Dataset, seconds: float) -> tuple[int, SystemAnswers]:
    """How many rows of the sample the tuned model has time for, at least `LEAST`, and its answers to them."""
    rows, places = _sample(job, dataset)
    began, number = time.monotonic(), 0
    parts: list[SystemAnswers] = []
    more = min(LEAST, len(rows))
    while more:
        some = rows[number : number + more]
        parts.append(ask(job.model, dataset, some, job.recipe.evaluate, Asking(perplexity=False), task="tuned")[""])
        number += more
        left = seconds - (time.monotonic() - began)
        more = _more(number, len(rows), left * len(some) / max(parts[-1].seconds, 1e-9))
    return number, joined(parts, sorted(range(number), key=places.__getitem__))


def _more(answered: int, rows: int, fitting: float) -> int:
    """Rows of the next round, of which so many fit into the time; 0: none."""
    left = rows - answered
    more = min(left if left <= 1.1 * fitting else int(fitting), GROWTH * answered, left)
    return more if more == left or more >= WORTH * answered else 0


def _ask(job: RunContext, dataset: Dataset, way: _Way, rows: Rows) -> None:
    way.parts.append(ask_base(job, dataset, rows, way.examples))
    took = way.parts[-1][""].seconds
    way.each = max(took - way.reading, ROWS_SHARE * took) / len(rows)


def _few_shot(
    job: RunContext, dataset: Dataset, zero: _Way, rows: Rows, number: int, seconds: float
) -> tuple[_Way | None, int]:
    """Few-shot after a first round of `number` rows, with the examples that there is time for; and how many it has."""
    examples = base_examples(job, dataset, rows)
    whole = len(examples)
    if not examples:
        return None, 0
    with busy("measuring few-shot"):
        prompt = few_shot_prompt(job.recipe.baselines)
        reading = reading_seconds(job.model, examples, rows[0], 512 if number > LEAST else 128, prompt)
    if reading > READING * seconds:
        examples = base_examples(job, dataset, rows, int(whole * READING * seconds / reading))
    if not examples:
        return None, whole
    reading *= len(examples) / whole
    few = _Way("few-shot", examples, reading)
    _ask(job, dataset, few, rows[:number])
    fewer = _fewer_examples(zero, few, seconds, number, len(rows))
    if fewer < len(examples):
        few = _Way("few-shot", base_examples(job, dataset, rows, fewer), reading * fewer / len(examples))
        _ask(job, dataset, few, rows[:number])
    return few, whole


def _fewer_examples(zero: _Way, few: _Way, seconds: float, number: int, rows: int) -> int:
    """How many examples few-shot should show after its first round of `number` rows: fewer where these leave no time
    for `LEAST_ROWS` rows, and there is enough to repeat the round and continue."""
    number_shown = len(few.examples)
    affordable = (seconds - 2 * few.reading) / LEAST_ROWS - (1 + TUNED) * zero.each
    if rows <= number or few.each <= max(affordable, 2 * zero.each):
        return number_shown
    fewer = max(int(number_shown * (affordable - zero.each) / (few.each - zero.each)), 1)
    each = zero.each + (few.each - zero.each) * fewer / number_shown
    repeated = number * each + few.reading * fewer / number_shown
    left = seconds - zero.seconds - few.seconds - TUNED * zero.each * number - repeated
    pays = left > WORTH * number * (each + (1 + TUNED) * zero.each)
    return fewer if fewer <= FEWER * number_shown and pays else number_shown
