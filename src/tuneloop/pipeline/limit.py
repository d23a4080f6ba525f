"""A limit on the time of a whole run: baselines, training and evaluation share it, by the measured speed of this machine.

First some test rows are asked, to learn what an answer takes: that says how many rows can be asked. What is left when the
baselines are there, less the evaluation to come, is the time of training. Both choices stand in `RUN/time.json`, so that the same
command after an interruption goes on with them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.files import content_hash, read_json, write_json, write_yaml
from tuneloop.pipeline.baselines import expected_evaluation
from tuneloop.pipeline.job import Job, find_done, identity
from tuneloop.recipe import Recipe
from tuneloop.types import Dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuneloop.types import Row

FILE = "time.json"
# Rows that are asked to learn what an answer takes; rows that are always asked, for fewer show nothing.
PROBE, LEAST_ROWS = 12, 24
# Share of the time in which rows are asked, by all systems together; and the least share of training.
ANSWERS, TRAINING = 0.45, 0.15
# What a row takes, relative to the probe: few-shot reads the examples, the tuned model computes its adapter too.
FEW_SHOT, TUNED = 1.6, 1.15
# Rows that are asked together take less each: 24 took .65 of what each of the 12 took, on one core.
TOGETHER = 0.75
# Kept for measuring the speed, the report and the end: seconds, and a share of the time.
RESERVE_SECONDS, RESERVE = 10.0, 0.04


def limited(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with what has been chosen for its time in this folder before, if anything has."""
    found = _chosen(recipe, folder)
    return _with_choices(recipe, found) if found else recipe


def _chosen(recipe: Recipe, folder: Path) -> dict[str, Any] | None:
    return find_done(folder / FILE, _key(recipe)) if recipe.max_minutes else None


def _key(recipe: Recipe) -> str:
    return content_hash([identity(recipe), 1])


def _with_choices(recipe: Recipe, found: Mapping[str, Any]) -> Recipe:
    changes: dict[str, Any] = {}
    if rows := found.get("test_rows"):
        changes["evaluate"] = recipe.evaluate.model_copy(update={"limit": min(rows, recipe.evaluate.limit or rows)})
    if minutes := found.get("train_minutes"):
        least = min(minutes, recipe.train.max_minutes or minutes)
        changes["train"] = recipe.train.model_copy(update={"max_minutes": least})
    return recipe.model_copy(update=changes)


class TimeLimit:
    """The time of one run.

    Args:
        job: its recipe is changed to what fits.
        recipe: as given.
        began: when the run began, by `time.monotonic`.
    """

    def __init__(self, job: Job, recipe: Recipe, began: float) -> None:
        self.job, self.recipe, self.began = job, recipe, began
        self.found: dict[str, Any] = _chosen(recipe, job.folder) or {}

    @property
    def seconds(self) -> float:
        """Of the whole run, without what is kept for its end; 0 where there is no limit."""
        whole = 60 * (self.recipe.max_minutes or 0.0)
        return max(whole * (1 - RESERVE) - RESERVE_SECONDS, 0.5 * whole)

    def choose_rows(self, dataset: Dataset) -> None:
        """Choose how many test rows are asked."""
        from tuneloop.evaluate.evaluate import sample_rows

        job, recipe = self.job, self.recipe
        if not recipe.max_minutes or "all_test_rows" in self.found:
            return
        rows = sample_rows(dataset.test, recipe.evaluate.limit, seed=recipe.seed)
        asked = len(rows)
        if len(rows) > LEAST_ROWS:
            each = _seconds_a_row(job, dataset, rows[:PROBE])
            left = self.seconds - (time.monotonic() - self.began)
            fitting = int(ANSWERS * left / each)
            asked = len(rows) if fitting > 0.9 * len(rows) else max(fitting, LEAST_ROWS)
            asked = min(asked, len(rows))
        self._keep({"all_test_rows": len(rows), "test_rows": asked})

    def give_training_all(self) -> None:
        """Training by itself gets the whole time."""
        if self.recipe.max_minutes and "train_minutes" not in self.found:
            self._keep({"train_minutes": self.recipe.max_minutes})

    def choose_training(self) -> None:
        """Choose how long training may take: what the baselines have left, less the evaluation to come."""
        job, recipe = self.job, self.recipe
        if not recipe.max_minutes or "train_minutes" in self.found:
            return
        file = job.folder / "baselines" / "baselines.json"
        listed = read_json(file) if file.is_file() else {"costs": {}}
        evaluation = TUNED * expected_evaluation(listed, recipe.evaluate)
        spent = max(time.monotonic() - self.began, listed.get("seconds", 0.0))
        left = self.seconds - spent - evaluation
        seconds = max(left, TRAINING * self.seconds)
        self._keep({"train_minutes": round(seconds / 60, 2)})
        rows, all_rows = self.found["test_rows"], self.found["all_test_rows"]
        asked = (
            f"all {rows:,} test rows are asked" if rows == all_rows else f"{rows:,} of {all_rows:,} test rows are asked"
        )
        job.say(
            f"time      {recipe.max_minutes:g} minutes in all: {asked}; {spent / 60:.1f} minutes are gone, training may take "
            f"{seconds / 60:.1f}, the evaluation will take about {evaluation / 60:.1f}"
        )
        if left < seconds:
            job.say("          too little is left on this machine: the run will take longer than its limit")

    def _keep(self, choices: Mapping[str, Any]) -> None:
        job = self.job
        self.found = {
            "version": 1,
            "key": _key(self.recipe),
            "max_minutes": self.recipe.max_minutes,
            **self.found,
            **choices,
        }
        write_json(job.folder / FILE, self.found)
        job.recipe = _with_choices(self.recipe, self.found)
        write_yaml(job.folder / "config.yaml", job.recipe.model_dump(mode="json"))

    def finish(self) -> None:
        """Keep what the run took, and what it would take without a limit."""
        if self.recipe.max_minutes and "took_minutes" not in self.found:
            took = (time.monotonic() - self.began) / 60
            self._keep({"took_minutes": round(took, 2), "full_run": _full_run(self.job, self.found)})


def _seconds_a_row(job: Job, dataset: Dataset, rows: Sequence[Row]) -> float:
    """What a test row takes when all systems are asked, measured on some by the untouched model."""
    from tuneloop.contenders import ask
    from tuneloop.models.lora import lora_disabled

    wanted = job.recipe.baselines
    with lora_disabled(job.model.net):
        began = time.monotonic()
        ask(job.model, dataset, rows, job.recipe.evaluate, progress=job.progress, task="measuring answers")
        each = (time.monotonic() - began) / len(rows)
    return TOGETHER * each * (TUNED + bool(wanted.zero_shot) + FEW_SHOT * bool(wanted.few_shot))


def _full_run(job: Job, found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Minutes and extent of the same run without a limit, from what this one took; None where nothing was left out."""
    from tuneloop.pipeline.job import dataset_of
    from tuneloop.pipeline.plan import run_plan
    from tuneloop.train.rows import tokens_of

    run, plan = read_json(job.folder / "run.json"), read_json(job.folder / "plan.json")
    dataset = dataset_of(job, True, "")
    rows, whole = run_plan(job, dataset, 0.0)  # of no known speed: nothing is left out
    more_rows = found["all_test_rows"] / max(found["test_rows"], 1)
    if found["test_rows"] == found["all_test_rows"] and run["total_steps"] >= len(whole.steps):
        return None
    tokens = sum(tokens_of(rows[i]) for step in whole.steps for i in step.indices)
    stepping = (run["seconds"] - run["checking_seconds"]) / max(run["tokens"], 1)
    validated = plan["validation"]["times"] * plan["validation"]["rows"]
    checks = whole.validations * min(whole.val_rows, len(dataset.val)) * run["checking_seconds"] / max(validated, 1)
    training = (tokens * stepping + checks) / 60
    asking = more_rows * sum((plan.get("apart") or {}).values())
    return {
        "minutes": round(training + asking + 0.5, 1),
        "training_minutes": round(training, 1),
        "steps": len(whole.steps),
        "epochs": job.recipe.train.epochs,
        "test_rows": found["all_test_rows"],
    }


def limit_lines(folder: Path) -> list[str]:
    """What is said at the end of a run with a limit: what it left out, and what it would take without."""
    if not (folder / FILE).is_file() or not (folder / "run.json").is_file():
        return []
    found, run = read_json(folder / FILE), read_json(folder / "run.json")
    full = found.get("full_run")
    if not full:
        return []
    passes = "once" if full["epochs"] <= 1 else f"{full['epochs']:g} times"
    narrower = (found["test_rows"] / max(found["all_test_rows"], 1)) ** 0.5
    lines = [
        f"This run was held to {found['max_minutes']:g} minutes and took {found['took_minutes']:.1f}: training saw {run['seen']}, and "
        f"{found['test_rows']:,} of {found['all_test_rows']:,} test rows were asked.",
        f"A full run reads all rows {passes} and takes about {full['minutes']:.0f} minutes on this machine: add max_minutes=null.",
    ]
    if narrower < 0.95:
        lines[-1] += (
            f" Its intervals are about {narrower:.1f} times as wide as these; whether it is better, only it can tell."
        )
    return lines
