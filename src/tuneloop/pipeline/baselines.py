"""The baseline stage: what the base model and the cheap alternatives make of the test split."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, inside, sha256_file
from tuneloop.core.ui import busy, progress, say
from tuneloop.core.units import counted
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.constants import MAJORITY, strongest_constant
from tuneloop.evaluation.deciding import deciding_of, training_examples
from tuneloop.evaluation.evaluate import ScoredAnswers, sample_rows
from tuneloop.evaluation.prompt import AS_IT_IS, labels_shown
from tuneloop.models.methods import base_only
from tuneloop.models.names import MINILM_NAME
from tuneloop.pipeline.answers import Asking, ask, few_shot_examples, few_shot_prompt, reference_lengths, uses_choice
from tuneloop.pipeline.best_prompt import words_of_choice
from tuneloop.pipeline.context import RunContext, done_record
from tuneloop.pipeline.scoring import SystemAnswers, cost_of, headline, score, scoring_settings, write_scored
from tuneloop.recipe import Recipe
from tuneloop.records.evaluation import BaselinesManifest, Subject
from tuneloop.records.record import read_record, write_record
from tuneloop.records.rows import Dataset, Row

if TYPE_CHECKING:
    from tuneloop.evaluation.classical import Classical
    from tuneloop.pipeline.timed_baselines import TimedAnswers

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
    for some in _ask_all(job, dataset, rows, answered):
        answers |= some
        evaluations |= _score_all(job, dataset, rows, some)
    return _write(job, dataset, rows, evaluations, answers, key, began)


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
    from tuneloop.evaluation.results import load_evaluation

    return {name: load_evaluation(inside(folder, place)) for name, place in manifest.systems.items()}


def _ask_all(job: RunContext, dataset: Dataset, rows: Rows, answered: TimedAnswers | None) -> Iterator[Answers]:
    """The answers of all baselines, those of each way to ask as soon as they are there."""
    if answered is None:
        yield from _ask_base(job, dataset, rows)
    else:
        yield answered.answers
    with busy("cheap alternatives"):  # their libraries take a while to load
        constant = _ask_constant(job, dataset, rows)
    yield constant
    if dataset.train:
        yield _ask_classical(job, dataset, rows)


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
    return _write(job, dataset, rows, scored, answers, _baselines_key(job, dataset), began)


def _part(evaluation: ScoredAnswers, rows: Rows, manifest: BaselinesManifest, name: str) -> SystemAnswers:
    """A system's answers to some of its rows, with their share of what all took."""
    cost, further = manifest.costs[name], evaluation.measured.further
    place = {row.id: i for i, row in enumerate(evaluation.rows)}
    places = [place[row.id] for row in rows]
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


def _write(
    job: RunContext, dataset: Dataset, rows: Rows, evaluations: Evaluations, answers: Answers, key: str, began: float
) -> Evaluations:
    """Write `baselines/` and say which is worth its price; they took the time since `began` (`time.monotonic`)."""
    from tuneloop.evaluation.leaderboard import leaderboard, leaderboard_in_words

    folder = job.folder / "baselines"
    places = {name: name.replace(" ", "-").replace("+-", "") for name in evaluations}
    costs = {name: cost_of(job, result) for name, result in answers.items()}
    for name, evaluation in evaluations.items():
        subject = Subject(job.recipe.model, dataset.id, name=name, key=key)
        write_scored(folder / places[name], evaluation, subject, {name: costs[name]})
    entries = leaderboard(evaluations, costs)
    words = leaderboard_in_words(entries)
    manifest = BaselinesManifest.model_validate({
        "key": key, "n": len(rows), "systems": places, "costs": costs, "leaderboard": entries, "words": words,
        "seconds": round(time.monotonic() - began, 1),
        "notes": {name: result.note for name, result in answers.items() if result.note},
    })  # fmt: skip
    write_record(folder / BaselinesManifest.file, manifest)
    for sentence in words:
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
    by_kind = ask(job.model, dataset, rows, config, how, task=task)
    note = labels_shown(examples, dataset.train) if examples and dataset.task == "classification" else ""
    best = words_of_choice(job, settings) if examples else ""
    if examples and (best or settings.prompt):
        words = f"{settings.prompt or 'the instruction'}, with {counted(len(examples), 'example')}"
        note = f"Its prompt is {words}{best}. {note}".rstrip()
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
    config = job.recipe.evaluate
    metric, labels = deciding_of(dataset, config), dataset.manifest.labels
    constant = strongest_constant(training_examples(dataset), dataset.task, config, metric, labels)
    if constant is None:
        return {}
    return {MAJORITY: SystemAnswers([constant.answer] * len(rows), 0.0, note=constant.note)}


def constant_of(job: RunContext, dataset: Dataset, rows: Rows) -> Evaluations:
    """The strongest constant answer as a system: a baseline where no other one was measured."""
    return {name: score(job, dataset, rows, result) for name, result in _ask_constant(job, dataset, rows).items()}


def _ask_classical(job: RunContext, dataset: Dataset, rows: Rows) -> Answers:
    from tuneloop.evaluation.classical import MINILM_MISSING, minilm_system, tfidf_system

    if not job.recipe.baselines.classical:
        return {}
    examples = [row for row in dataset.train if row.shows_the_task]
    if dataset.task != "classification":
        return _classify_fields(job, examples, rows)
    if len({row.label for row in examples}) < 2:
        say("baselines warn: only one label in the training split: no classical baseline")
        return {}
    answers: Answers = {}
    progress("cheap alternatives", 0, 2)
    # An encoder's head is what the classifier on its vectors is.
    builds = (tfidf_system,) if job.recipe.model.lower() == MINILM_NAME else (tfidf_system, minilm_system)
    for place, build in enumerate(builds):
        fitted = build(examples)
        if fitted is None:
            say(f"baselines {MINILM_MISSING}")
        else:
            answers[fitted.name] = _timed(fitted, rows)
        progress("cheap alternatives", place + 1, 2)
    return answers


def _classify_fields(job: RunContext, examples: Rows, rows: Rows) -> Answers:
    """Answers whose fields are chosen by a classifier each, where any field holds labels."""
    from tuneloop.evaluation.classical import CLASSICAL, MINILM_MISSING
    from tuneloop.evaluation.field_classifiers import field_classifier, fields_that_are_labels

    fields = fields_that_are_labels(examples, job.recipe.evaluate.fields)
    if fields is None:
        return {}
    answers: Answers = {}
    for place, name in enumerate(CLASSICAL):
        progress("cheap alternatives", place, len(CLASSICAL))
        fitted = field_classifier(name, examples, fields)
        if fitted is None:
            say(f"baselines {MINILM_MISSING}")
        else:
            answers[name] = replace(_timed(fitted.classical, rows), note=fitted.note)
    progress("cheap alternatives", len(CLASSICAL), len(CLASSICAL))
    return answers


def _timed(fitted: Classical, rows: Rows) -> SystemAnswers:
    started = time.monotonic()
    answers = fitted.system(rows)
    return SystemAnswers(answers, time.monotonic() - started, training_seconds=fitted.seconds)


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
