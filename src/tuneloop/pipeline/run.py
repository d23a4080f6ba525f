"""The main job: prepare, baselines, plan, train, evaluate, report, each from files to files.

A stage's manifest carries a key, the hash of all that it depends on. A stage whose manifest is there with the right
key is not repeated, so the same command after an interruption continues where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tuneloop.core.ui import busy, say
from tuneloop.pipeline.advise import remind
from tuneloop.pipeline.baselines import baseline_stage
from tuneloop.pipeline.context import report_stage
from tuneloop.pipeline.encoder import head_stage
from tuneloop.pipeline.evaluate import evaluate_stage
from tuneloop.pipeline.plan import plan_stage
from tuneloop.pipeline.timed_baselines import TimedAnswers
from tuneloop.pipeline.train import prepared_run, train_stage
from tuneloop.recipe import Recipe
from tuneloop.track import start_tracking

NO_PROMPTS = TimedAnswers(0)  # an encoder answers none


def run(recipe: Recipe, *, anyway: bool = False) -> Path:
    """Do the main job and return the run's folder. After a `UserError` finished stages stay finished.

    `anyway`: train also where the time is too short for a result, see `plan.least_seconds`.
    """
    with prepared_run(recipe, anyway=anyway) as (job, limit, dataset):
        remind(job, dataset)
        with busy("starting the tracker"):
            tracker = start_tracking(job.recipe.model_dump(mode="json"), job.folder, warn=say)
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
        try:
            with busy("measuring the baselines"):
                if not job.is_encoder:
                    limit.refuse_too_short(dataset)
                    limit.choose_prompt(dataset)
                answered = NO_PROMPTS if job.is_encoder else limit.ask_base(dataset)
                baselines = baseline_stage(job, dataset, answered)
            if job.is_encoder:
                head_stage(job, dataset)
            else:
                with busy("planning the training"):
                    plan_stage(job, dataset, lambda: limit.choose_training(dataset))
                with busy("training the model"):
                    train_stage(job, dataset)
            with busy("evaluating the tuned model"):
                evaluate_stage(job, dataset, baselines, limit=limit)
                limit.finish()
            report_stage(job)
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            with busy("handing the last metrics to the tracker"):
                tracker.finish(status)
    return job.folder
