"""The baseline stage: what the base model and the cheap alternatives make of the test split.

Under a limit on the run's time the base answers in rounds, by every prompt on the same rows, the clock read after each.
What few-shot shows may be chosen on validation rows before it meets a test row.
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, inside, sha256_file
from tuneloop.core.ui import busy, progress, say
from tuneloop.core.units import counted
from tuneloop.evaluation import (
    BaselinesConfig,
    EvaluateConfig,
    ScoredAnswers,
    leaderboard_in_words,
    leaderboard_of,
    load_evaluation,
    sample_order,
    sample_rows,
    write_scored,
)
from tuneloop.evaluation.alternatives import MAJORITY, constant_for, trained_classifiers
from tuneloop.evaluation.metrics import lower_is_better
from tuneloop.inference.prompt import AS_IT_IS
from tuneloop.models.files import MINILM_NAME
from tuneloop.models.methods import base_only
from tuneloop.pipeline.answers.asking import (
    Asking,
    ask,
    few_shot_examples,
    few_shot_prompt,
    joined,
    reading_seconds,
    reference_lengths,
    uses_choice,
)
from tuneloop.pipeline.answers.prompt import labels_shown
from tuneloop.pipeline.answers.scoring import SystemAnswers, cost_of, headline, score, scoring_settings
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.prompt_search import best_prompt
from tuneloop.recipe import Recipe
from tuneloop.records.evaluation import BaselinesManifest, PromptChoice, Subject, TriedPrompt
from tuneloop.records.prompt import OPTIMISED
from tuneloop.records.record import done_record, read_record, write_record
from tuneloop.records.rows import Dataset, Row

if TYPE_CHECKING:
    pass


Rows = Sequence[Row]
Answers = dict[str, SystemAnswers]  # by system
Evaluations = dict[str, ScoredAnswers]
# Time of a token that is read relative to one that is written in a batch of rows: read tokens share one pass. It is a
# tenth to a third on processors: the upper bound, so that estimates are rather too long.
READ_TOKEN = 1 / 3


def baseline_stage(job: RunContext, dataset: Dataset, answered: TimedAnswers | None = None) -> Evaluations:
    """What the base model and the cheap alternatives make of the test split; `answered`: what the base did already."""
    recipe = job.recipe
    rows = sample_rows(dataset.test, recipe.evaluate.limit, seed=recipe.seed, stratum=dataset.stratum)
    if not rows:
        say("baselines no test rows: nothing will be proven (data.split.test is 0)")
        return {}
    folder, key = job.folder / "baselines", _baselines_key(job, dataset)
    manifest = done_record(BaselinesManifest, folder, key)
    if manifest:
        say("baselines already done")
    elif reuse_baselines(job, key):
        manifest = done_record(BaselinesManifest, folder, key)
    if manifest:
        return _load(folder, manifest)
    if answered is None and (before := measured_before(job, dataset)) and before.first_of(rows) == len(rows):
        say(f"baselines {before.words(len(rows))}")
        return _on_part(job, dataset, before.evaluations, before.manifest, rows)
    began = time.monotonic() - (answered.seconds if answered else 0.0)
    answers: Answers = {}
    evaluations: Evaluations = {}
    asked = [_ask_all(job, dataset, rows, answered), *([] if answered else [_ask_optimised(job, dataset, rows)])]
    for some in itertools.chain(*asked):
        answers |= some
        evaluations |= _score_all(job, dataset, rows, some)
    return write_baselines(job, dataset, rows, evaluations, answers, key, began)


def measured_alternatives(job: RunContext, dataset: Dataset, rows: Rows) -> tuple[Evaluations, dict[str, Any]]:
    """What the base model and the cheap alternatives make of rows, with their costs: for what was trained elsewhere.

    Few-shot's examples and what classifiers learn are the data set's training rows; without any they are left out.
    """
    answers: Answers = {}
    for some in _ask_all(job, dataset, rows, None):
        answers |= some
    costs: dict[str, Any] = {name: cost_of(job, result) for name, result in answers.items()}
    return _score_all(job, dataset, rows, answers), costs


def _load(folder: Path, manifest: BaselinesManifest) -> Evaluations:
    return {name: load_evaluation(inside(folder, system)) for name, system in manifest.systems.items()}


def _ask_all(job: RunContext, dataset: Dataset, rows: Rows, answered: TimedAnswers | None) -> Iterator[Answers]:
    """The answers of all baselines, those of each way to ask as soon as they are there."""
    if answered is None:
        yield from _ask_base(job, dataset, rows)
    else:
        yield answered.answers
    yield cheap_alternatives(job, dataset, rows)


def cheap_alternatives(job: RunContext, dataset: Dataset, rows: Rows) -> Answers:
    """The answers of the strongest constant, and of classifiers that learn from the training rows."""
    with busy("cheap alternatives"):  # their libraries take a while to load
        constant = _ask_constant(job, dataset, rows)
        return constant | (_ask_classical(job, dataset, rows) if dataset.train else {})


def _score_all(job: RunContext, dataset: Dataset, rows: Rows, answers: Answers) -> Evaluations:
    """Score baselines' answers and report the results."""
    evaluations = {}
    for name, result in answers.items():
        evaluations[name] = score(job, dataset, rows, result)
        say(f"baseline  {name}: {headline(evaluations[name])}{f'; {result.note}' if result.note else ''}")
    return evaluations


def on_fewer_rows(job: RunContext, dataset: Dataset, baselines: Evaluations, rows: Rows) -> Evaluations:
    """The baselines on some of their rows, in place of those on all: the tuned model had no time for the others."""
    return _on_part(job, dataset, baselines, read_record(BaselinesManifest, job.folder / "baselines"), rows)


def _on_part(
    job: RunContext, dataset: Dataset, baselines: Evaluations, manifest: BaselinesManifest, rows: Rows
) -> Evaluations:
    """Write the baselines on some of their rows; `manifest` is of all."""
    answers = {name: _part(evaluation, rows, manifest, name) for name, evaluation in baselines.items()}
    began = time.monotonic() - manifest.seconds * len(rows) / max(manifest.n, 1)
    scored = _score_all(job, dataset, rows, answers)
    return write_baselines(job, dataset, rows, scored, answers, _baselines_key(job, dataset), began)


def _part(evaluation: ScoredAnswers, rows: Rows, manifest: BaselinesManifest, name: str) -> SystemAnswers:
    """A system's answers to some of its rows, with their share of what all took."""
    cost, further = manifest.costs[name], evaluation.measured.further
    row_of = {row.id: i for i, row in enumerate(evaluation.rows)}
    places = [row_of[row.id] for row in rows]
    share = len(places) / max(evaluation.n, 1)
    return SystemAnswers(
        [evaluation.answers[i] for i in places],
        share * cost.seconds,
        cost.training_seconds or 0.0,
        round(share * (cost.computed_tokens or 0)),
        tuple(further[i] for i in places) if further else (),
        manifest.notes.get(name, ""),
    )


@dataclass(frozen=True)
class MeasuredBefore:
    """Baselines that `advise --measure` has measured with the same data, model and settings: their answers are free."""

    folder: Path
    manifest: BaselinesManifest
    evaluations: Evaluations  # by name

    def first_of(self, rows: Rows) -> int:
        """How many of these rows, from the first on, they have answers to."""
        ids = {row.id for evaluation in self.evaluations.values() for row in evaluation.rows}
        return next((i for i, row in enumerate(rows) if row.id not in ids), len(rows))

    def answers(self, name: str, rows: Rows) -> SystemAnswers:
        """A baseline's answers to some of the rows."""
        return _part(self.evaluations[name], rows, self.manifest, name)

    def words(self, rows: int) -> str:
        """That so many rows are taken over."""
        return f"{counted(rows, 'row')} measured before by `tuneloop advise`, taken from {self.folder}"


def measured_before(job: RunContext, dataset: Dataset) -> MeasuredBefore | None:
    """The baselines that `advise --measure` has measured on most rows, with all else as in this run; or None."""
    recipe, rows = job.recipe, len(sample_rows(dataset.test, None, seed=job.recipe.seed))
    best: tuple[Path, BaselinesManifest] | None = None
    for folder in sorted(Path("evals").glob("advise-*/baselines")):
        try:
            number = read_record(BaselinesManifest, folder).n
        except UserError:
            continue
        for limit in (number, None) if number == rows else (number,):
            part = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"limit": limit})})
            manifest = done_record(BaselinesManifest, folder, _baselines_key(job, dataset, part))
            if manifest and number > (best[1].n if best else 0):
                best = folder, manifest
    return best and MeasuredBefore(*best, _load(*best))


def _baselines_key(job: RunContext, dataset: Dataset, recipe: Recipe | None = None) -> str:
    recipe = recipe or job.recipe
    parts = [dataset.manifest.hash, job.fingerprint, recipe.baselines, scoring_settings(recipe), recipe.seed, 5]
    prompt = [sha256_file(recipe.baselines.prompt)] if recipe.baselines.prompt else []
    return content_hash([*parts, *prompt])


def write_baselines(
    job: RunContext, dataset: Dataset, rows: Rows, evaluations: Evaluations, answers: Answers, key: str, began: float
) -> Evaluations:
    """Write `baselines/` and say which is worth its price; they took the time since `began` (`time.monotonic`)."""
    folder = job.folder / "baselines"
    places = {name: name.replace(" ", "-").replace("+-", "") for name in evaluations}
    costs = {name: cost_of(job, result) for name, result in answers.items()}
    for name, evaluation in evaluations.items():
        subject = Subject(job.recipe.model, dataset.id, name=name, key=key)
        write_scored(folder / places[name], evaluation, subject, {name: costs[name]})
    entries = leaderboard_of(evaluations, costs)
    sentences = leaderboard_in_words(entries)
    manifest = BaselinesManifest.model_validate({
        "key": key, "n": len(rows), "systems": places, "costs": costs, "leaderboard": entries, "words": sentences,
        "seconds": round(time.monotonic() - began, 1),
        "notes": {name: result.note for name, result in answers.items() if result.note},
    })  # fmt: skip
    write_record(folder / BaselinesManifest.file, manifest)
    for sentence in sentences:
        say(f"          {sentence}")
    return evaluations


def expected_evaluation(
    manifest: BaselinesManifest, config: EvaluateConfig | None = None, reference: float = math.inf
) -> float:
    """Seconds to ask and score the tuned model, estimated: what zero-shot took.

    The tuned model ends its answers where the references end, while zero-shot often writes on to the limit.
    Few-shot runs later and reads more for each token that it writes. Where it was faster all the same, the machine was
    busy before, and its speed is taken.

    Args:
        config: adds the time to ask rows several ways, where that is set.
        reference: tokens of a reference, on average; default: answers are as long as those of zero-shot.
    """
    costs = manifest.costs
    # Calibrated answers come with the others.
    others = [c for n, c in costs.items() if not n.startswith("zero-shot") and not n.endswith("calibrated")]
    other = sum(cost.seconds + (cost.training_seconds or 0.0) for cost in others)
    zero, few, shorter, busy_before = costs.get("zero-shot"), costs.get("few-shot"), 0.0, 0.0
    if zero and few and zero.tokens and few.tokens:
        busy_before = max(zero.seconds - few.seconds * zero.tokens / few.tokens, 0.0)
    again = 0.0
    if zero and manifest.n:
        again = zero.seconds / manifest.n * config.asked_again(manifest.n) if config else 0.0
        computed = zero.tokens if zero.computed_tokens is None else zero.computed_tokens
        shorter = zero.seconds * (1 - tuned_share(zero.tokens / manifest.n, computed / manifest.n, reference))
    return max(manifest.seconds - other - busy_before - shorter, 0.0) + again


def mean_reference(job: RunContext, dataset: Dataset) -> float:
    """Tokens of a reference, on average; infinity where there are none."""
    lengths = reference_lengths(job.model.template, dataset)
    return sum(lengths) / len(lengths) if lengths else math.inf


def tuned_share(answer: float, computed: float, reference: float) -> float:
    """What an answer of a reference's length takes, relative to one of zero-shot; at most 1.

    Args:
        answer: tokens of an answer of zero-shot, on average; 0 where labels are scored, which costs the same for all.
        computed: tokens that were computed for it, with those of its prompt.
        reference: tokens of a reference.
    """
    if not answer or reference >= answer:
        return 1.0
    read = READ_TOKEN * max(computed - answer, 0.0)
    return (read + reference) / (read + answer)


def _ask_base(job: RunContext, dataset: Dataset, rows: Rows) -> Iterator[Answers]:
    settings = job.recipe.baselines
    if settings.zero_shot:
        with base_only(job.model.net):
            answers = ask_base(job, dataset, rows)
        yield {f"zero-shot {kind}".strip(): result for kind, result in answers.items()}
    if settings.few_shot and (examples := base_examples(job, dataset, rows)):
        with base_only(job.model.net):
            answers = ask_base(job, dataset, rows, examples)
        yield {f"few-shot {kind}".strip(): result for kind, result in answers.items()}


def _ask_optimised(job: RunContext, dataset: Dataset, rows: Rows) -> Iterator[Answers]:
    """The base with the best prompt that a search finds, kept in `RUN/baselines/prompt`; nothing where none is better
    than few-shot, or the run has a limit on its time."""
    recipe, folder = job.recipe, job.folder / "baselines" / "prompt"
    if not recipe.baselines.search or recipe.max_minutes or not recipe.baselines.few_shot:
        return
    with base_only(job.model.net):
        found = best_prompt(job, dataset, recipe.baselines.search, folder)
        if found is None:
            return
        prompt, search = found
        how = Asking(prompts=prompt.turns([row.prompt for row in rows]), perplexity=False)
        answers = ask(job.target, dataset, rows, recipe.evaluate, how, task=OPTIMISED)[""]
    note = f"Its prompt: {search.kept}, in {folder}."
    yield {OPTIMISED: replace(answers, training_seconds=search.seconds, note=note)}


def ask_base(job: RunContext, dataset: Dataset, rows: Rows, examples: Rows = ()) -> Answers:
    """The base's answers, after `examples` if there are any; the caller applies the base.

    Under a limit on the whole run the loss of references is not measured: all time is for answers.
    """
    config = job.recipe.evaluate
    task = f"few-shot ({counted(len(examples), 'example')})" if examples else "zero-shot"
    calibrated = config.calibrate and uses_choice(dataset, config)
    settings = job.recipe.baselines
    prompt = few_shot_prompt(settings) if examples else AS_IT_IS
    how = Asking(examples, prompt, with_calibrated=calibrated, perplexity=not job.recipe.max_minutes)
    by_kind = ask(job.target, dataset, rows, config, how, task=task)
    note = labels_shown(examples, dataset.train) if examples and dataset.task == "classification" else ""
    best = words_of_choice(job, settings) if examples else ""
    if examples and (best or settings.prompt):
        prompt_name = f"{settings.prompt or 'the instruction'}, with {counted(len(examples), 'example')}"
        note = f"Its prompt is {prompt_name}{best}. {note}".rstrip()
    return {kind: replace(answers, note=note) for kind, answers in by_kind.items()}


def base_examples(job: RunContext, dataset: Dataset, rows: Rows, most: int | None = None) -> list[Row]:
    """Few-shot's examples in the prompt of these rows: `most`, or as set; then it is reported where some don't fit."""
    settings = job.recipe.baselines
    settings = settings if most is None else settings.model_copy(update={"few_shot": most})
    with busy("choosing few-shot's examples"):
        examples, warning = few_shot_examples(job.model, dataset, rows, settings, job.recipe.evaluate, job.recipe.seed)
    if warning and most is None:
        say(f"baselines warn: {warning}")
    return examples


def _ask_constant(job: RunContext, dataset: Dataset, rows: Rows) -> Answers:
    """The strongest constant answer by the training rows, for every row: free, so no setting turns it off."""
    constant = constant_for(dataset, job.recipe.evaluate)
    if constant is None:
        return {}
    return {MAJORITY: SystemAnswers([constant.answer] * len(rows), 0.0, note=constant.note)}


def constant_of(job: RunContext, dataset: Dataset, rows: Rows) -> Evaluations:
    """The strongest constant answer as a system: a baseline where no other one was measured."""
    return {name: score(job, dataset, rows, result) for name, result in _ask_constant(job, dataset, rows).items()}


def _ask_classical(job: RunContext, dataset: Dataset, rows: Rows) -> Answers:
    if not job.recipe.baselines.classical:
        return {}
    examples = [row for row in dataset.train if row.shows_the_task]
    # An encoder's head is what the classifier on its vectors is.
    minilm = job.recipe.model.lower() != MINILM_NAME
    answers: Answers = {}
    for fitted in trained_classifiers(examples, dataset.task, job.recipe.evaluate.fields, minilm=minilm):
        started = time.monotonic()
        completions = fitted.system(rows)
        seconds = time.monotonic() - started
        answers[fitted.name] = SystemAnswers(completions, seconds, training_seconds=fitted.seconds, note=fitted.note)
    return answers


def reuse_baselines(job: RunContext, key: str) -> bool:
    """Take over baselines that `advise --measure` has measured under this `key`; whether there were any."""
    for folder in sorted(Path("evals").glob("advise-*/baselines")):
        here, partial = job.folder / "baselines", job.folder / "baselines.part"
        if folder.resolve() != here.resolve() and done_record(BaselinesManifest, folder, key):
            shutil.rmtree(here, ignore_errors=True)
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(folder, partial)
            partial.rename(here)
            say(f"baselines measured before by `tuneloop advise`, taken from {folder}")
            return True
    return False


# --- the best prompt ------------------------------------------------------------------------------

SEARCH_SHARE = 0.05  # of a run's `max_minutes` for the search: a candidate that would pass it is not tried
LEAST_MINUTES = 4.0  # a shorter run has no time for a search
FEW = 8  # twice the examples are tried up to so many: reading more takes longer than what they can gain is worth


def with_best_prompt(job: RunContext, recipe: Recipe, dataset: Dataset) -> Recipe:
    """The recipe with what few-shot is given: the candidate that is best on `baselines.prompt_rows` validation rows.

    It is the recipe as it is where there is no search: not requested, no validation rows, no time.
    """
    settings = recipe.baselines
    rows = sample_rows(dataset.val, settings.prompt_rows, seed=recipe.seed, stratum=dataset.stratum)
    if not (settings.prompt_rows and settings.few_shot and rows and dataset.test):
        return recipe
    if recipe.max_minutes and recipe.max_minutes < LEAST_MINUTES:
        return recipe
    folder, parts = job.folder / "baselines", [dataset.manifest.hash, job.fingerprint, settings, recipe.seed, 1]
    prompt = [sha256_file(settings.prompt)] if settings.prompt else []
    key = content_hash([*parts, *prompt, scoring_settings(recipe), recipe.max_minutes])
    choice = done_record(PromptChoice, folder, key)
    if choice is None:
        choice = _search_prompt(job, recipe, dataset, rows, key)
        write_record(folder / PromptChoice.file, choice)
        say(f"prompts   {choice.words}")
    if not choice.tried:
        return recipe
    best = choice.tried[0]
    chosen = {"prompt": best.prompt, "few_shot": best.examples, "prompt_rows": 0}
    return recipe.model_copy(update={"baselines": settings.model_copy(update=chosen)})


def words_of_choice(job: RunContext, settings: BaselinesConfig) -> str:
    """`, the best of 4 on 8 validation rows` where these settings are what a search chose; else nothing."""
    folder = job.folder / "baselines"
    if not (folder / PromptChoice.file).is_file():
        return ""
    choice = read_record(PromptChoice, folder)
    chosen = bool(choice.tried) and choice.tried[0].prompt == settings.prompt
    return f", {choice.chosen}" if chosen else ""


def candidates(settings: BaselinesConfig, examples: int) -> list[BaselinesConfig]:
    """What is tried, the prompt as set first: with as many examples, half as many, twice as many, and the rows' own
    instruction in place of a file."""
    numbers = [examples, max(examples // 2, 1), *([2 * examples] if examples <= FEW else [])]
    tried = [settings.model_copy(update={"few_shot": number}) for number in dict.fromkeys(numbers)]
    return [*tried, *([settings.model_copy(update={"few_shot": examples, "prompt": None})] if settings.prompt else [])]


def _search_prompt(job: RunContext, recipe: Recipe, dataset: Dataset, rows: Sequence[Row], key: str) -> PromptChoice:
    began, model = time.monotonic(), job.model
    most = 60 * SEARCH_SHARE * recipe.max_minutes if recipe.max_minutes else float("inf")
    usual, _ = few_shot_examples(model, dataset, rows, recipe.baselines, recipe.evaluate, recipe.seed)
    listed = candidates(recipe.baselines, len(usual)) if usual else []
    tried: list[TriedPrompt] = []
    metric = ""
    for settings in listed:
        spent = time.monotonic() - began
        if tried and spent * (len(tried) + 1) / len(tried) > most:
            break
        progress("trying prompts", len(tried), len(listed))
        examples, _ = few_shot_examples(model, dataset, rows, settings, recipe.evaluate, recipe.seed)
        how = Asking(examples, few_shot_prompt(settings), perplexity=False)
        with base_only(model.net):
            answers = ask(job.target, dataset, rows, recipe.evaluate, how, task="trying prompts")[""]
        evaluation = score(job, dataset, rows, answers)
        metric, read = evaluation.primary, round(answers.prompt_tokens / len(rows))
        value = evaluation.metrics[metric].value
        tried.append(TriedPrompt(prompt=settings.prompt, examples=len(examples), value=value, tokens=read))
    sign = 1 if metric and lower_is_better(metric) else -1
    tried.sort(key=lambda way: (sign * way.value, way.tokens))  # of equally good ones, the cheapest
    seconds = round(time.monotonic() - began, 1)
    return PromptChoice(key=key, rows=len(rows), metric=metric, tried=tried, seconds=seconds)


# --- within a time ------------------------------------------------------------------------------

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
    return [every[index] for index in places], places


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
            seconds_a_row, tuned = sum(way.each for way in ways), TUNED * zero.each * _share_of_tuned(zero, reference)
            several = zero.each * config.asked_again(len(first.rows))
            reading = sum(way.reading for way in ways)
            left = seconds - (time.monotonic() - began) - tuned * number - several - reading
            more = _more(number, len(first.rows), left / max(seconds_a_row + tuned, 1e-9))
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
    seconds_a_row = before.answers("zero-shot", rows[:ready]).seconds / ready
    number = min(ready, max(int(seconds / max(TUNED * seconds_a_row, 1e-9)), LEAST))
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
        parts.append(ask(job.target, dataset, some, job.recipe.evaluate, Asking(perplexity=False), task="tuned")[""])
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
    seconds_a_row = zero.each + (few.each - zero.each) * fewer / number_shown
    repeated = number * seconds_a_row + few.reading * fewer / number_shown
    left = seconds - zero.seconds - few.seconds - TUNED * zero.each * number - repeated
    pays = left > WORTH * number * (seconds_a_row + (1 + TUNED) * zero.each)
    return fewer if fewer <= FEWER * number_shown and pays else number_shown
