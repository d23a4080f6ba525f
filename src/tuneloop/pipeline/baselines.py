"""The baseline stage: what the base model and the cheap alternatives make of the test split."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, inside
from tuneloop.core.ui import busy, progress, say
from tuneloop.core.units import counted
from tuneloop.evaluation.evaluate import ScoredAnswers, decided_together, sample_rows
from tuneloop.evaluation.prompt import labels_shown
from tuneloop.evaluation.scoring import usual_answer
from tuneloop.models.methods import base_only
from tuneloop.pipeline.consistency import expected_consistency
from tuneloop.pipeline.context import RunContext, done_record, find_done
from tuneloop.pipeline.scoring import (
    answers_that_show_the_task,
    cost_of,
    headline,
    score,
    scoring_settings,
    write_scored,
)
from tuneloop.recipe import Recipe
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import AnswerCost, BaselinesManifest, Subject
from tuneloop.records.record import read_record, write_record
from tuneloop.records.rows import Dataset, Row

if TYPE_CHECKING:
    from tuneloop.evaluation.config import EvaluateConfig
    from tuneloop.pipeline.compared_systems import SystemAnswers
    from tuneloop.pipeline.timed_baselines import Answered

# Time of a token that is read relative to one that is written in a batch of rows: read tokens share one pass. An upper bound
# on processors (it is a tenth to a third there), so that answers are rather expected to take too long.
READ_TOKEN = 1 / 3


def baseline_stage(job: RunContext, dataset: Dataset, answered: Answered | None = None) -> dict[str, ScoredAnswers]:
    """What the base model and the cheap alternatives make of the test split.

    Args:
        answered: what the base model has answered already, to all rows of the sample.
    """
    from tuneloop.evaluation.results import load_evaluation

    recipe = job.recipe
    rows = sample_rows(dataset.test, recipe.evaluate.limit, seed=recipe.seed, stratum=dataset.stratum)
    if not rows:
        say("baselines no test rows: nothing will be proven (data.split.test is 0)")
        return {}
    folder = job.folder / "baselines"
    key = _baselines_key(job, dataset)
    done = done_record(BaselinesManifest, folder, key)
    if done:
        say("baselines already done")
    elif reuse_baselines(job, key):
        done = done_record(BaselinesManifest, folder, key)
    if done:
        return {name: load_evaluation(inside(folder, place)) for name, place in done.systems.items()}
    if answered is None and (before := measured_before(job, dataset)) and before.first_of(rows) == len(rows):
        say(f"baselines {before.words(len(rows))}")
        return _on_part(job, dataset, before.evaluations, before.listed, rows)
    began = time.monotonic() - (answered.seconds if answered else 0.0)
    asked: dict[str, SystemAnswers] = {}
    evaluations: dict[str, ScoredAnswers] = {}
    for some in _ask_all(job, dataset, rows, answered):
        asked |= some
        evaluations |= _score_all(job, dataset, rows, some)
    return _write(job, dataset, rows, evaluations, asked, key, began)


def _ask_all(
    job: RunContext, dataset: Dataset, rows: Sequence[Row], answered: Answered | None
) -> Iterator[Mapping[str, SystemAnswers]]:
    """The answers of all baselines, those of each way to ask as soon as they are there."""
    if answered is None:
        yield from _ask_base(job, dataset, rows)
    else:
        yield answered.asked
    with busy("cheap alternatives"):  # their libraries take a while to load
        majority = _ask_majority(job, dataset, rows)
    yield majority
    yield _ask_classical(job, dataset, rows)


def _score_all(
    job: RunContext, dataset: Dataset, rows: Sequence[Row], asked: Mapping[str, SystemAnswers]
) -> dict[str, ScoredAnswers]:
    """Score baselines' answers and say what came of them."""
    evaluations = {}
    for name, result in asked.items():
        evaluations[name] = score(job, dataset, rows, result)
        say(f"baseline  {name}: {headline(evaluations[name])}{f'; {result.note}' if result.note else ''}")
    return evaluations


def on_fewer_rows(
    job: RunContext, dataset: Dataset, baselines: Mapping[str, ScoredAnswers], rows: Sequence[Row]
) -> dict[str, ScoredAnswers]:
    """The baselines on some of their rows, in the place of those on all: there was no time to ask the tuned model the others."""
    return _on_part(job, dataset, baselines, read_record(BaselinesManifest, job.folder / "baselines"), rows)


def _on_part(
    job: RunContext,
    dataset: Dataset,
    baselines: Mapping[str, ScoredAnswers],
    listed: BaselinesManifest,
    rows: Sequence[Row],
) -> dict[str, ScoredAnswers]:
    """Write the baselines on some of their rows; `listed` is of all."""
    asked = {name: _part(evaluation, rows, listed, name) for name, evaluation in baselines.items()}
    began = time.monotonic() - listed.seconds * len(rows) / max(listed.n, 1)
    scored = _score_all(job, dataset, rows, asked)
    return _write(job, dataset, rows, scored, asked, _baselines_key(job, dataset), began)


def _part(evaluation: ScoredAnswers, rows: Sequence[Row], listed: BaselinesManifest, name: str) -> SystemAnswers:
    """A system's answers to some of its rows, with their share of what all took."""
    from tuneloop.pipeline.compared_systems import SystemAnswers

    cost, note = listed.costs[name], listed.notes.get(name, "")
    place = {row.id: i for i, row in enumerate(evaluation.rows)}
    kept, further = [place[row.id] for row in rows], evaluation.measured.further
    share = len(kept) / max(evaluation.n, 1)
    return SystemAnswers(
        [evaluation.answers[i] for i in kept], share * cost.seconds, cost.training_seconds or 0.0,
        round(share * (cost.computed_tokens or 0)), tuple(further[i] for i in kept) if further else (), note,
    )  # fmt: skip


@dataclass(frozen=True)
class Before:
    """Baselines that `advise --measure` has measured with the same data, model and settings: their answers cost nothing now.

    Args:
        folder: where they stand.
        listed: its `baselines.json`.
        evaluations: by name.
    """

    folder: Path
    listed: BaselinesManifest
    evaluations: dict[str, ScoredAnswers]

    def first_of(self, rows: Sequence[Row]) -> int:
        """How many of these rows, from the first on, they have answers to."""
        known = {row.id for evaluation in self.evaluations.values() for row in evaluation.rows}
        return next((i for i, row in enumerate(rows) if row.id not in known), len(rows))

    def asked(self, name: str, rows: Sequence[Row]) -> SystemAnswers:
        """A baseline's answers to some of the rows."""
        return _part(self.evaluations[name], rows, self.listed, name)

    def words(self, rows: int) -> str:
        """That so many rows are taken over."""
        return f"{counted(rows, 'row')} measured before by `tuneloop advise`, taken from {self.folder}"


def measured_before(job: RunContext, dataset: Dataset) -> Before | None:
    """The baselines that `advise --measure` has measured on most rows with all else as in this run; None where there are none."""
    from tuneloop.evaluation.results import load_evaluation

    recipe, rows = job.recipe, len(sample_rows(dataset.test, None, seed=job.recipe.seed))
    best: tuple[int, Path, BaselinesManifest] | None = None
    for folder in sorted(Path("evals").glob("advise-*/baselines")):
        number = _rows_of(folder)
        for limit in (number, None) if number == rows else (number,):
            part = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"limit": limit})})
            listed = done_record(BaselinesManifest, folder, _baselines_key(job, dataset, part))
            if listed and number and (best is None or number > best[0]):
                best = number, folder, listed
    if best is None:
        return None
    _, folder, listed = best
    return Before(
        folder, listed, {name: load_evaluation(inside(folder, place)) for name, place in listed.systems.items()}
    )


def _rows_of(folder: Path) -> int:
    """Rows of measured baselines; 0 where the file can't be read."""
    try:
        return read_record(BaselinesManifest, folder).n
    except UserError:
        return 0


def _baselines_key(job: RunContext, dataset: Dataset, recipe: Recipe | None = None) -> str:
    recipe = recipe or job.recipe
    return content_hash(
        [dataset.manifest.hash, job.fingerprint, recipe.baselines, scoring_settings(recipe), recipe.seed, 3]
    )


def _write(
    job: RunContext,
    dataset: Dataset,
    rows: Sequence[Row],
    evaluations: dict[str, ScoredAnswers],
    asked: Mapping[str, SystemAnswers],
    key: str,
    began: float,
) -> dict[str, ScoredAnswers]:
    """Write `baselines/` and say which of them is worth its price.

    Args:
        evaluations: of the answers in `asked`.
        began: by `time.monotonic`, so that the seconds since then are what the baselines took.
    """
    from tuneloop.evaluation.leaderboard import leaderboard, leaderboard_in_words

    folder = job.folder / "baselines"
    places = {name: name.replace(" ", "-").replace("+-", "") for name in evaluations}
    costs = {name: cost_of(job, result) for name, result in asked.items()}
    for name, evaluation in evaluations.items():
        subject = Subject(job.recipe.model, dataset.id, name=name, key=key)
        write_scored(job, folder / places[name], evaluation, subject, {name: costs[name]})
    entries = leaderboard(decided_together(evaluations), costs)
    words = leaderboard_in_words(entries)
    seconds = time.monotonic() - began
    listed = BaselinesManifest(
        key=key,
        n=len(rows),
        systems=places,
        costs={name: AnswerCost(**cost) for name, cost in costs.items()},
        leaderboard=entries,
        words=words,
        seconds=round(seconds, 1),
        notes={name: result.note for name, result in asked.items() if result.note},
    )
    write_record(folder / BaselinesManifest.file, listed)
    for sentence in words:
        say(f"          {sentence}")
    return evaluations


def expected_evaluation(
    listed: BaselinesManifest, config: EvaluateConfig | None = None, reference: float = math.inf
) -> float:
    """Seconds that asking and scoring the tuned model takes about: what the baselines took without few-shot and the cheap alternatives.

    The tuned model ends its answers where the references end, while zero-shot often writes on to the limit.

    Few-shot is asked later and reads more for each token that it writes. Where it was faster all the same, the machine was busy
    before, and its speed is taken.

    Args:
        listed: `baselines.json`.
        config: adds what asking rows several ways takes, where that is asked for.
        reference: tokens of a reference, on average; default: answers are as long as those of zero-shot.
    """
    seconds = {name: cost.seconds for name, cost in listed.costs.items()}
    again = expected_consistency(seconds, listed.n, config) if config else 0.0
    other = sum(
        cost.seconds + (cost.training_seconds or 0.0)
        for name, cost in listed.costs.items()
        if not name.startswith("zero-shot")
        and not name.endswith("calibrated")  # calibrated answers come with the others
    )
    zero, shorter = listed.costs.get("zero-shot"), 0.0
    if zero and listed.n:
        computed = zero.tokens if zero.computed_tokens is None else zero.computed_tokens
        shorter = zero.seconds * (1 - tuned_share(zero.tokens / listed.n, computed / listed.n, reference))
    return max(listed.seconds - other - _busy_before(listed.costs) - shorter, 0.0) + again


def mean_reference(job: RunContext, dataset: Dataset) -> float:
    """Tokens of a reference, on average; infinity where there are none."""
    from tuneloop.pipeline.compared_systems import reference_lengths

    lengths = reference_lengths(job.model.template, dataset)
    return sum(lengths) / len(lengths) if lengths else math.inf


def tuned_share(written: float, computed: float, reference: float) -> float:
    """What an answer of a reference's length takes, relative to one of zero-shot; at most 1.

    Args:
        written: tokens of an answer of zero-shot, on average; 0 where labels are scored, which costs the same for all.
        computed: tokens that were computed for it, with those of its prompt.
        reference: tokens of a reference.
    """
    if not written or reference >= written:
        return 1.0
    read = READ_TOKEN * max(computed - written, 0.0)
    return (read + reference) / (read + written)


def _busy_before(costs: Mapping[str, AnswerCost]) -> float:
    """Seconds that zero-shot took longer than it takes at few-shot's speed, by written tokens; 0 where it took less."""
    zero, few = costs.get("zero-shot"), costs.get("few-shot")
    if zero is None or few is None or not zero.tokens or not few.tokens:
        return 0.0
    return max(zero.seconds - few.seconds * zero.tokens / few.tokens, 0.0)


def _ask_base(job: RunContext, dataset: Dataset, rows: Sequence[Row]) -> Iterator[dict[str, SystemAnswers]]:
    wanted = job.recipe.baselines
    if wanted.zero_shot:
        with base_only(job.model.net):
            found = ask_base(job, dataset, rows)
        yield {f"zero-shot {kind}".strip(): result for kind, result in found.items()}
    if wanted.few_shot and (examples := base_examples(job, dataset, rows)):
        with base_only(job.model.net):
            found = ask_base(job, dataset, rows, examples)
        yield {f"few-shot {kind}".strip(): result for kind, result in found.items()}


def ask_base(
    job: RunContext, dataset: Dataset, rows: Sequence[Row], examples: Sequence[Row] = ()
) -> dict[str, SystemAnswers]:
    """The base's answers, with or without examples in the prompt; see `systems.ask`. The caller says that the base applies.

    Under a limit on the whole run, all time is for answers: the loss of the reference answers is not measured.
    """
    from tuneloop.pipeline.compared_systems import Asking, ask, uses_choice

    config = job.recipe.evaluate
    task = f"few-shot ({counted(len(examples), 'example')})" if examples else "zero-shot"
    calibrated = config.calibrate and uses_choice(dataset, config)
    how = Asking(examples, with_calibrated=calibrated, perplexity=not job.recipe.max_minutes)
    found = ask(job.model, dataset, rows, config, how, task=task)
    note = labels_shown(examples, dataset.train) if examples and dataset.task == "classification" else ""
    return {kind: replace(answers, note=note) for kind, answers in found.items()}


def base_examples(job: RunContext, dataset: Dataset, rows: Sequence[Row], most: int | None = None) -> list[Row]:
    """Few-shot's examples in the prompt of these rows.

    Args:
        most: how many; default: those of the settings, which is reported where some don't fit into the context.
    """
    from tuneloop.pipeline.compared_systems import few_shot_examples

    wanted = job.recipe.baselines
    wanted = wanted if most is None else wanted.model_copy(update={"few_shot": most})
    with busy("choosing few-shot's examples"):
        examples, warning = few_shot_examples(job.model, dataset, rows, wanted, job.recipe.evaluate, job.recipe.seed)
    if warning and most is None:
        say(f"baselines warn: {warning}")
    return examples


def _ask_majority(job: RunContext, dataset: Dataset, rows: Sequence[Row]) -> dict[str, SystemAnswers]:
    """The most frequent label of the training split, or value of each field, for every row.

    It costs nothing, so no setting turns it off.
    """
    from tuneloop.evaluation.classical import MAJORITY, majority_system
    from tuneloop.pipeline.compared_systems import SystemAnswers

    if dataset.task == "classification":
        found = majority_system(dataset.train)
        return {} if found is None else {found.name: SystemAnswers(found.system(rows), 0.0)}
    text = usual_answer(answers_that_show_the_task(dataset), job.recipe.evaluate.fields)
    return {} if text is None else {MAJORITY: SystemAnswers([Completion(text)] * len(rows), 0.0)}


def majority_of(job: RunContext, dataset: Dataset, rows: Sequence[Row]) -> dict[str, ScoredAnswers]:
    """Always answering the most frequent training label, as a baseline of rows that no other one was measured on."""
    return {name: score(job, dataset, rows, asked) for name, asked in _ask_majority(job, dataset, rows).items()}


def _ask_classical(job: RunContext, dataset: Dataset, rows: Sequence[Row]) -> dict[str, SystemAnswers]:
    from tuneloop.evaluation.classical import MINILM_MISSING, minilm_system, tfidf_system
    from tuneloop.pipeline.compared_systems import SystemAnswers

    if dataset.task != "classification" or not job.recipe.baselines.classical:
        return {}
    examples = [row for row in dataset.train if row.shows_the_task]
    if len({row.label for row in examples}) < 2:
        say("baselines warn: only one label in the training split: no classical baseline")
        return {}
    asked: dict[str, SystemAnswers] = {}
    progress("cheap alternatives", 0, 2)
    for place, build in enumerate((tfidf_system, minilm_system)):
        found = build(examples)
        if found is None:
            say(f"baselines {MINILM_MISSING}")
        else:
            started = time.monotonic()
            answers = found.system(rows)
            asked[found.name] = SystemAnswers(answers, time.monotonic() - started, training_seconds=found.seconds)
        progress("cheap alternatives", place + 1, 2)
    return asked


def reuse_baselines(job: RunContext, key: str) -> bool:
    """Take over baselines that `advise --measure` has measured on the same data with the same model and settings.

    Args:
        key: hash of all that they depend on.

    Returns:
        Whether there were any.
    """
    for folder in sorted(Path("evals").glob("advise-*/baselines")):
        if folder.resolve() != (job.folder / "baselines").resolve() and find_done(folder / "baselines.json", key):
            shutil.rmtree(job.folder / "baselines", ignore_errors=True)
            partial = job.folder / "baselines.part"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(folder, partial)
            partial.rename(job.folder / "baselines")
            say(f"baselines measured before by `tuneloop advise`, taken from {folder}")
            return True
    return False
