"""A limit on the time of a whole run, which baselines, training and evaluation share by this machine's measured speed.

The base model answers in rounds, see `baselines.py`, until its share of the time is used. What is left then, less
the evaluation to come, is the time of training. The choices are kept in `RUN/time.json`, so that the same command after
an interruption continues with them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneloop.core.files import content_hash, write_yaml
from tuneloop.core.machine import is_busy, processes
from tuneloop.core.ui import say
from tuneloop.core.units import counted, exactly, verb
from tuneloop.evaluation import sample_rows
from tuneloop.pipeline.answers.scoring import SystemAnswers
from tuneloop.pipeline.baselines import (
    TUNED,
    TimedAnswers,
    ask_tuned_within,
    ask_within,
    expected_evaluation,
    mean_reference,
    measured_before,
    with_best_prompt,
)
from tuneloop.pipeline.context import RunContext, identity, training_began
from tuneloop.pipeline.distributed import RunPart, distributed_run
from tuneloop.pipeline.plan import TRIAL, least_seconds, run_plan, sized, sizes_of
from tuneloop.recipe import Recipe
from tuneloop.records.evaluation import BaselinesManifest
from tuneloop.records.plan import MeasuredMachine, Plan
from tuneloop.records.record import done_record, read_record, write_record
from tuneloop.records.rows import Dataset
from tuneloop.records.run import FullRun, RunManifest, TimeChoices
from tuneloop.training import tokens_of

# Share of the time for the answers of all systems together; and the least share of training.
ANSWERS, TRAINING = 0.42, 0.15
# Kept for measuring the speed, the report and the end: seconds, and a share of the time.
RESERVE_SECONDS, RESERVE = 10.0, 0.03
ENOUGH = 1.05  # what a run may take, of its time, before it is reported that this is not enough


def limited(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with what has been chosen for its time in this folder before, if anything has."""
    choices = _kept_choices(recipe, folder)
    return _with_choices(recipe, choices) if choices else recipe


def _kept_choices(recipe: Recipe, folder: Path) -> TimeChoices | None:
    return done_record(TimeChoices, folder, _key(recipe)) if recipe.max_minutes else None


def _key(recipe: Recipe) -> str:
    return content_hash([identity(recipe), 2])


def _with_choices(recipe: Recipe, choices: TimeChoices) -> Recipe:
    changes: dict[str, Any] = {}
    if rows := choices.test_rows:
        changes["evaluate"] = recipe.evaluate.model_copy(update={"limit": min(rows, recipe.evaluate.limit or rows)})
    if choices.few_shot is not None:
        changes["baselines"] = recipe.baselines.model_copy(update={"few_shot": choices.few_shot})
    if minutes := choices.train_minutes:
        least = min(minutes, recipe.train.max_minutes or minutes)
        changes["train"] = recipe.train.model_copy(update={"max_minutes": least})
    return recipe.model_copy(update=changes)


class TimeLimit:
    """The time of one run.

    Args:
        job: its recipe is changed to what fits; `recipe`: as given.
        began: when the run began, by `time.monotonic`.
    """

    def __init__(self, job: RunContext, recipe: Recipe, began: float) -> None:
        self.job, self.recipe, self.began = job, recipe, began
        choices = _kept_choices(recipe, job.folder)
        self.choices = choices or TimeChoices(key=_key(recipe), max_minutes=recipe.max_minutes)
        self.warned = False
        self.least_training = 0.0  # seconds, that steps with a meaning take

    @property
    def whole(self) -> float:
        """Seconds of the whole run; 0 where there is no limit."""
        return 60 * (self.recipe.max_minutes or 0.0)

    @property
    def seconds(self) -> float:
        """Of the whole run, without what is kept for its end; 0 where there is no limit."""
        return max(self.whole * (1 - RESERVE) - RESERVE_SECONDS, 0.5 * self.whole)

    def choose_prompt(self, dataset: Dataset) -> None:
        """Give few-shot the best of several prompts, where the recipe requests that."""
        self.recipe = with_best_prompt(self.job, self.recipe, dataset)
        self.job.recipe = _with_choices(self.recipe, self.choices)

    def refuse_too_short(self, dataset: Dataset) -> None:
        """Before anything is spent on answers: refuse a run whose training would come to nothing, see
        `plan.least_seconds`. It measures the speed for that, for some seconds, where nothing of the run is there yet.
        """
        job, recipe = self.job, self.recipe
        begun = (job.folder / "baselines" / BaselinesManifest.file).is_file() or training_began(job.folder)
        minutes = recipe.train.max_minutes or self.seconds / 60
        if job.anyway or begun or not minutes or 60 * minutes < TRIAL or processes() > 1:
            return
        measured = sizes_of(job, dataset)
        config = sized(recipe.train, measured).model_copy(update={"max_minutes": minutes})
        speed = distributed_run(job, RunPart("measure", dataset.path, config, measured))
        spent = time.monotonic() - self.began if recipe.max_minutes else 0.0
        measured = replace(measured, tokens_per_second=speed, seconds_spent=spent)
        self.least_training = least_seconds(job, dataset, measured, config) - spent

    def ask_base(self, dataset: Dataset) -> TimedAnswers | None:
        """The base model's answers to the test rows that its time allows; None where that was chosen before."""
        job, recipe = self.job, self.recipe
        if not recipe.max_minutes or self.choices.all_test_rows is not None:
            return None
        rows = len(sample_rows(dataset.test, recipe.evaluate.limit, seed=recipe.seed))
        if not rows:
            self._keep(all_test_rows=0, test_rows=0)
            return None
        _ = job.model  # loaded before its answers are timed
        self.expect(0.0)
        left = self.seconds - (time.monotonic() - self.began)
        seconds = max(min(ANSWERS * left, left - self.least_training), 0.0)
        answered = ask_within(job, dataset, seconds, self.expect, measured_before(job, dataset))
        if recipe.evaluate.limit and answered.rows < rows:
            say(
                f"time      evaluate.limit={recipe.evaluate.limit} requests {counted(rows, 'test row')}; "
                f"max_minutes={recipe.max_minutes:g} leaves time for {answered.rows} of them"
            )
        fewer = answered.examples < answered.all_examples
        examples = {"few_shot": answered.examples, "all_few_shot": answered.all_examples} if fewer else {}
        free = {"reused_seconds": round(answered.free, 1)} if answered.free else {}
        self._keep(all_test_rows=rows, test_rows=answered.rows, **examples, **free)
        return answered

    def expect(self, seconds: float, training: float | None = None) -> None:
        """Say, once and as early as it is clear, that the limit can't be kept.

        Args:
            seconds: that answers still take; `training`: likewise, by default the least that it gets.
        """
        training = TRAINING * self.seconds if training is None else training
        total = time.monotonic() - self.began + seconds + training + 0.5 * (self.whole - self.seconds)
        if self.warned or total <= ENOUGH * self.whole:
            return
        self.warned, minutes = True, self.recipe.max_minutes or 0
        phrase = f"{total / 60:.0f}" if total >= 600 else f"{total / 60:.1f}"
        say(
            f"time      {exactly(minutes, 'minute')} {verb(minutes, 'is', 'are')} not enough on this machine, "
            f"as {_how_it_is()} as it is now: the run will take about {phrase} minutes in all.\n"
            "          Stop it with Ctrl-C and run the same command later, if you can: what is done is kept."
        )

    def give_training_all(self) -> None:
        """Training alone gets the whole time."""
        if self.recipe.max_minutes and self.choices.train_minutes is None:
            self._keep(train_minutes=self.recipe.max_minutes)

    def choose_training(self, dataset: Dataset) -> bool:
        """Choose how long training may take: what is left, less the evaluation. Whether it is chosen, now or before."""
        job, recipe = self.job, self.recipe
        if not recipe.max_minutes or self.choices.train_minutes is not None:
            return bool(recipe.max_minutes)
        folder = job.folder / "baselines"
        measured = (folder / BaselinesManifest.file).is_file()
        baselines = read_record(BaselinesManifest, folder) if measured else BaselinesManifest(systems={})
        evaluation = TUNED * expected_evaluation(baselines, recipe.evaluate, mean_reference(job, dataset))
        spent = max(time.monotonic() - self.began, baselines.seconds - self.choices.reused_seconds)
        seconds = max(self.seconds - spent - evaluation, TRAINING * self.seconds)
        self._keep(train_minutes=max(round(seconds / 60, 2), 0.01))
        say(
            f"time      {exactly(recipe.max_minutes, 'minute')} in all: {_rows_words(self.choices, 'is', 'are')}; "
            f"{spent / 60:.1f} minutes are spent, training may take {seconds / 60:.1f}, "
            f"the evaluation will take about {evaluation / 60:.1f}"
        )
        if examples := _examples_words(self.choices):
            say(f"          {examples}")
        self.expect(evaluation, seconds)
        return True

    def ask_tuned(self, dataset: Dataset) -> SystemAnswers:
        """The tuned model's answers to the rows that were chosen, or to fewer where the machine has become slower."""
        left = self.whole - RESERVE_SECONDS - (time.monotonic() - self.began)
        number, answers = ask_tuned_within(self.job, dataset, left)
        if self.choices.test_rows is not None and number < self.choices.test_rows:
            say(f"evaluate  time runs out: all are compared on {counted(number, 'row')}, not {self.choices.test_rows}")
            self._keep(test_rows=number)
        return answers

    def _keep(self, **changes: Any) -> None:
        job = self.job
        self.choices = self.choices.model_copy(update=changes)
        write_record(job.folder / TimeChoices.file, self.choices)
        job.recipe = _with_choices(self.recipe, self.choices)
        write_yaml(job.folder / "config.yaml", job.recipe.model_dump(mode="json"))

    def finish(self) -> None:
        """Keep what the run took, and what it would take without a limit."""
        if self.recipe.max_minutes and self.choices.took_minutes is None:
            took = (time.monotonic() - self.began) / 60
            self._keep(took_minutes=round(took, 2), full_run=_full_run(self.job, self.choices))
            self._keep(words=limit_words(self.choices, read_record(RunManifest, self.job.folder)))


def _how_it_is() -> str:
    return {True: "busy", False: "slow", None: "busy or slow"}[is_busy()]


def _full_run(job: RunContext, choices: TimeChoices) -> FullRun | None:
    """Minutes and extent of the same run without a limit, from what this one took; None where nothing was left out."""
    run, plan = read_record(RunManifest, job.folder), read_record(Plan, job.folder)
    dataset = job.dataset()
    rows, whole = run_plan(job, dataset, MeasuredMachine())  # of no known speed: nothing is left out
    some, every = choices.test_rows or 0, choices.all_test_rows or 0
    if some == every and run.total_steps >= len(whole.steps) and choices.few_shot is None:
        return None
    tokens = sum(tokens_of(rows[i]) for step in whole.steps for i in step.indices)
    stepping = (run.seconds - run.checking_seconds) / max(run.tokens, 1)
    validated = plan.validation.times * plan.validation.rows if plan.validation else 0
    checks = whole.validations * min(whole.val_rows, len(dataset.val)) * run.checking_seconds / max(validated, 1)
    training = (tokens * stepping + checks) / 60
    answers = plan.apart.baselines_minutes + plan.apart.evaluation_minutes if plan.apart else 0.0
    return FullRun(
        minutes=round(training + every / max(some, 1) * answers + 0.5, 1),
        training_minutes=round(training, 1),
        steps=len(whole.steps),
        epochs=job.recipe.train.epochs,
        test_rows=every,
    )


def _rows_words(choices: TimeChoices, singular: str, many: str) -> str:
    rows, every = choices.test_rows or 0, choices.all_test_rows or 0
    return (
        f"{'all ' if rows == every else f'{rows:,} of '}{counted(every, 'test row')} {verb(rows, singular, many)} used"
    )


def _examples_words(choices: TimeChoices) -> str:
    """What few-shot does not show for want of time; empty where it shows all."""
    number, every = choices.few_shot, choices.all_few_shot
    if number is None:
        return ""
    if not number:
        return "Few-shot is left out: reading even one of its examples takes too long here."
    return f"Few-shot shows {number} of {counted(every or 0, 'example')}: reading more takes too long here."


def limit_words(choices: TimeChoices, run: RunManifest) -> list[str]:
    """What a finished run with a limit left out, and what it would take without; nothing where nothing was left out."""
    full, examples = choices.full_run, _examples_words(choices)
    if not full:
        return []
    passes = "once" if full.epochs <= 1 else f"{full.epochs:g} times"
    narrower = ((choices.test_rows or 0) / max(choices.all_test_rows or 0, 1)) ** 0.5
    lines = [
        f"This run was held to {exactly(choices.max_minutes or 0, 'minute')} and took {choices.took_minutes:.1f}: "
        f"training saw {run.seen}, and {_rows_words(choices, 'was', 'were')}.{' ' if examples else ''}{examples}",
        f"A full run reads all rows {passes} and takes about {full.minutes:.0f} minutes on this machine: "
        "add max_minutes=null.",
    ]
    if narrower < 0.95:
        lines[1] += f" Its intervals are about {narrower:.1f} times as wide as these; its model may be better or not."
    return lines
