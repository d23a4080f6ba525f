"""The base model asked within a time: in rounds, by every prompt on the same rows, with a look at the clock after each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tuneloop.core.ui import busy, say
from tuneloop.evaluation.evaluate import sample_order, sample_rows
from tuneloop.models.methods import base_only
from tuneloop.pipeline.baselines import Before, ask_base, base_examples, mean_reference, tuned_share
from tuneloop.pipeline.consistency import expected_consistency
from tuneloop.pipeline.context import RunContext
from tuneloop.records.rows import Dataset, Row

if TYPE_CHECKING:
    from tuneloop.pipeline.compared_systems import SystemAnswers

# Rows that zero-shot is asked first, to learn how fast answers come, and rows of the first round where they come fast enough. Each
# next round has at most so many times the rows that have been asked before it, and is left out where it would add less than this
# share of them.
LEAST, FIRST, GROWTH, WORTH = 4, 12, 3, 0.2
# What a row of few-shot takes relative to one of zero-shot, before any has been asked.
FEW_SHOT = 2.0
# Rows that should be asked: where few-shot's examples stand in the way of that, fewer are shown.
LEAST_ROWS = 24
# What a row takes of the tuned model, relative to the base: it computes its adapter too.
TUNED = 1.15
# Most of the time of all answers that reading the examples once may take: it is done in every round.
READING = 0.08
# The reading of examples is estimated: at least this share of a round counts as its rows'.
ROWS_SHARE = 0.3
# Fewer examples are asked anew only where they are at most this share: the first round with the others is lost then.
FEWER = 0.7


@dataclass(frozen=True)
class Answered:
    """What the base model answered in its time.

    Args:
        rows: how many; the seeded sample of this size.
        asked: the baselines' answers.
        seconds: that these took.
        free: seconds of these that were spent before, on answers that were taken over.
        examples, all_examples: that few-shot shows, and that it shows where there is time; equal where nothing was left out.
    """

    rows: int
    asked: dict[str, SystemAnswers] = field(default_factory=dict)
    seconds: float = 0.0
    free: float = 0.0
    examples: int = 0
    all_examples: int = 0


@dataclass
class _Way:
    """A way to ask: its examples, the seconds that reading them takes in each round, the answers of each round, and the seconds a
    row of the last one, without that reading."""

    name: str
    examples: Sequence[Row] = ()
    reading: float = 0.0
    parts: list[dict[str, SystemAnswers]] = field(default_factory=list)
    each: float = 0.0

    @property
    def seconds(self) -> float:
        return sum(part[""].seconds for part in self.parts)


def ask_within(
    job: RunContext,
    dataset: Dataset,
    seconds: float,
    expect: Callable[[float], None] = lambda seconds: None,
    before: Before | None = None,
) -> Answered:
    """Ask the base model as many test rows as can be answered in time by every baseline prompt and by the tuned model later.

    A first round, of at least `LEAST` rows, is always asked, so that there is something to compare.

    Args:
        seconds: for the answers of all of them.
        expect: is called with how many seconds the answers to come take at least, when the first are there.
        before: answers that are there already; they cost nothing, and rounds go on behind them.
    """
    config, wanted, seed = job.recipe.evaluate, job.recipe.baselines, job.recipe.seed
    every = sample_rows(dataset.test, None, seed=seed)
    places = sample_order(every, seed, dataset.stratum)[: config.limit]
    began = time.monotonic()
    rows: Sequence[Row] = [every[place] for place in places]
    reference = mean_reference(job, dataset)
    with base_only(job.model.net):
        begun = before and _taken(job, dataset, rows, seconds, before)
        free = begun.seconds if begun else 0.0
        begun = begun or _first_round(job, dataset, rows, seconds, expect)
        zero, few, number, all_examples, rows = begun.zero, begun.few, begun.number, begun.all_examples, begun.rows
        ways = [way for way in (zero if wanted.zero_shot else None, few) if way]
        while True:
            each, tuned = sum(way.each for way in ways), TUNED * zero.each * _share_of_tuned(zero, reference)
            took = {way.name: way.each for way in ways}
            several = expected_consistency(took, 1, config) * min(config.consistency_rows, len(rows))
            reading = sum(way.reading for way in ways)
            left = seconds - (time.monotonic() - began) - tuned * number - several - reading
            more = _more(number, len(rows), left / max(each + tuned, 1e-9))
            if not more:
                break
            for way in ways:
                _ask(job, dataset, way, rows[number : number + more])
            number += more
    order = sorted(range(number), key=places.__getitem__)
    shown = len(few.examples) if few else 0
    return Answered(number, _baselines(ways, order), sum(way.seconds for way in ways), free, shown, all_examples)


def _share_of_tuned(zero: _Way, reference: float) -> float:
    """What the tuned model's answers take, relative to those of zero-shot: they end where the references do.

    Args:
        reference: tokens of a reference, on average.
    """
    parts = [part[""] for part in zero.parts]
    rows = max(sum(len(part.completions) for part in parts), 1)
    written, computed = sum(part.tokens for part in parts), sum(part.computed for part in parts)
    return tuned_share(written / rows, computed / rows, reference)


@dataclass(frozen=True)
class _Begun:
    """Both ways after their first round.

    Args:
        number: rows of that round.
        rows: all that may be asked.
        all_examples: that few-shot shows where there is time.
    """

    zero: _Way
    few: _Way | None
    number: int
    rows: Sequence[Row]
    all_examples: int

    @property
    def seconds(self) -> float:
        return self.zero.seconds + (self.few.seconds if self.few else 0.0)


def _first_round(
    job: RunContext, dataset: Dataset, rows: Sequence[Row], seconds: float, expect: Callable[[float], None]
) -> _Begun:
    few_shot = job.recipe.baselines.few_shot
    zero = _Way("zero-shot")
    _ask(job, dataset, zero, rows[:LEAST])
    number = min(len(rows), FIRST if _is_fast(zero, seconds) else LEAST)
    expect((TUNED + (FEW_SHOT if few_shot else 0.0)) * zero.each * number)
    if number > LEAST:
        _ask(job, dataset, zero, rows[LEAST:number])
    few, all_examples = _few_shot(job, dataset, zero, rows, number, seconds) if few_shot else (None, 0)
    return _Begun(zero, few, number, rows, all_examples)


def _taken(job: RunContext, dataset: Dataset, rows: Sequence[Row], seconds: float, before: Before) -> _Begun | None:
    """What was answered before in the place of a first round: as many rows as the tuned model can be asked in time; or nothing."""
    known = before.first_of(rows)
    if "zero-shot" not in before.evaluations or known < min(LEAST, len(rows)):
        return None
    each = before.asked("zero-shot", rows[:known]).seconds / known
    number = min(known, max(int(seconds / max(TUNED * each, 1e-9)), LEAST))
    say(f"baselines {before.words(number)}")

    def way(name: str, examples: Sequence[Row] = ()) -> _Way:
        kinds = [kind for kind in ("", "calibrated") if f"{name} {kind}".strip() in before.evaluations]
        part = {}
        for kind in kinds:
            asked = before.asked(f"{name} {kind}".strip(), rows[:number])
            answers = [
                replace(a, loss=None, loss_tokens=None) for a in asked.completions
            ]  # further rows will have none
            part[kind] = replace(asked, completions=answers)
        return _Way(name, examples, 0.0, [part], part[""].seconds / number)

    if "few-shot" not in before.evaluations:
        return _Begun(way("zero-shot"), None, number, rows, 0)
    examples = base_examples(job, dataset, rows)
    if known < len(rows) and len(base_examples(job, dataset, rows[:known])) != len(examples):
        rows = rows[:known]  # longer rows leave room for fewer examples: those would be other prompts
    return _Begun(way("zero-shot"), way("few-shot", examples), number, rows, len(examples))


def ask_tuned_within(job: RunContext, dataset: Dataset, seconds: float) -> tuple[int, SystemAnswers]:
    """The tuned model's answers to the rows of the sample, or to the part of them that there is time for, and how many these are.

    A third of the rows is always asked.
    """
    from tuneloop.pipeline.compared_systems import Asking, ask, joined

    config, seed = job.recipe.evaluate, job.recipe.seed
    every = sample_rows(dataset.test, None, seed=seed)
    places = sample_order(every, seed, dataset.stratum)[: config.limit]
    began, number = time.monotonic(), 0
    parts: list[SystemAnswers] = []
    more = min(max(LEAST, math.ceil(len(places) / 3)), len(places))
    while more:
        rows = [every[place] for place in places[number : number + more]]
        parts.append(ask(job.model, dataset, rows, config, Asking(perplexity=False), task="tuned")[""])
        number += more
        left = seconds - (time.monotonic() - began)
        more = _more(number, len(places), left * len(rows) / max(parts[-1].seconds, 1e-9))
    return number, joined(parts, sorted(range(number), key=places.__getitem__))


def _more(asked: int, rows: int, fitting: float) -> int:
    """Rows of the next round, of which so many fit into the time; 0: none."""
    left = rows - asked
    more = min(left if left <= 1.1 * fitting else int(fitting), GROWTH * asked, left)
    return more if more == left or more >= WORTH * asked else 0


def _ask(job: RunContext, dataset: Dataset, way: _Way, rows: Sequence[Row]) -> None:
    way.parts.append(ask_base(job, dataset, rows, way.examples))
    took = way.parts[-1][""].seconds
    way.each = max(took - way.reading, ROWS_SHARE * took) / len(rows)


def _is_fast(zero: _Way, seconds: float) -> bool:
    """Whether a first round of `FIRST` rows leaves time for more, as far as zero-shot's first answers tell."""
    return (1 + FEW_SHOT + TUNED) * zero.each * FIRST < seconds


def _few_shot(
    job: RunContext, dataset: Dataset, zero: _Way, rows: Sequence[Row], number: int, seconds: float
) -> tuple[_Way | None, int]:
    """Few-shot after its first round, with as many examples as there is time for, or nothing; and how many are shown otherwise.

    Args:
        number: rows of the first round.
    """
    from tuneloop.pipeline.compared_systems import reading_seconds

    examples = base_examples(job, dataset, rows)
    whole = len(examples)
    if not examples:
        return None, 0
    with busy("measuring few-shot"):
        reading = reading_seconds(job.model, examples, rows[0], 512 if number > LEAST else 128)
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
    """How many examples few-shot should show after its first round: as many as it does, or fewer where these stand in the way of
    `LEAST_ROWS` rows and there is time left to ask anew and go on.

    Args:
        number: rows of that round.
        rows: of all rounds, where there is time.
    """
    shown = len(few.examples)
    affordable = (seconds - 2 * few.reading) / LEAST_ROWS - (1 + TUNED) * zero.each
    if rows <= number or few.each <= max(affordable, 2 * zero.each):
        return shown
    fewer = max(int(shown * (affordable - zero.each) / (few.each - zero.each)), 1)
    each = zero.each + (few.each - zero.each) * fewer / shown
    anew = number * each + few.reading * fewer / shown
    left = seconds - zero.seconds - few.seconds - TUNED * zero.each * number - anew
    pays = left > WORTH * number * (each + (1 + TUNED) * zero.each)
    return fewer if fewer <= FEWER * shown and pays else shown


def _baselines(ways: Sequence[_Way], order: Sequence[int]) -> dict[str, SystemAnswers]:
    """The answers of all rounds as baselines, by name."""
    from tuneloop.pipeline.compared_systems import joined

    return {
        f"{way.name} {kind}".strip(): joined([part[kind] for part in way.parts], order)
        for way in ways
        for kind in way.parts[0]
    }
