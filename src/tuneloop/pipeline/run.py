"""The main job: prepare, baselines, plan, train, evaluate, report, each from files to files.

A stage's manifest carries a key, the hash of all that it depends on. A stage whose manifest is there with the right
key is not repeated, so the same command after an interruption continues where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tuneloop.core.ui import busy, say, stage
from tuneloop.core.units import counted
from tuneloop.pipeline.advise import remind
from tuneloop.pipeline.answers.scoring import score_words, strongest_words
from tuneloop.pipeline.baselines import TimedAnswers, baseline_stage
from tuneloop.pipeline.context import report_stage
from tuneloop.pipeline.encoder import head_stage
from tuneloop.pipeline.evaluate import evaluate_stage
from tuneloop.pipeline.plan import plan_stage, plan_words
from tuneloop.pipeline.train import prepared_run, train_stage, trained_words
from tuneloop.recipe import Recipe
from tuneloop.records.evaluation import EVALUATION, EvaluationManifest
from tuneloop.records.record import read_record
from tuneloop.track import start_tracking

NO_PROMPTS = TimedAnswers(0)  # an encoder answers none


def run_job(recipe: Recipe, *, anyway: bool = False) -> Path:
    """Do the main job and return the run's folder. After a `UserError` finished stages stay finished.

    `anyway`: train also where the time is too short for a result, see `plan.least_seconds`.
    """
    with prepared_run(recipe, anyway=anyway) as (job, limit, dataset):
        remind(job, dataset)
        with busy("starting the tracker"):
            tracker = start_tracking(job.recipe.model_dump(mode="json"), job.folder, warn=say)
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
        try:
            with stage("baselines", "measuring the baselines") as tell:
                if not job.is_encoder:
                    limit.refuse_too_short(dataset)
                    limit.choose_prompt(dataset)
                answered = NO_PROMPTS if job.is_encoder else limit.ask_base(dataset)
                baselines = baseline_stage(job, dataset, answered)
                tell(strongest_words(baselines))
            if job.is_encoder:
                with stage("train", "training a head on the encoder") as tell:
                    tell(f"a head on {counted(head_stage(job, dataset).rows, 'row')}")
            else:
                with stage("plan", "planning the training") as tell:
                    tell(plan_words(plan_stage(job, dataset, lambda: limit.choose_training(dataset))))
                with stage("train", "training the model") as tell:
                    tell(trained_words(train_stage(job, dataset)))
            with stage("evaluate", "evaluating the tuned model") as tell:
                evaluate_stage(job, dataset, baselines, limit=limit)
                limit.finish()
                if (job.folder / EVALUATION).is_file():
                    tuned = read_record(EvaluationManifest, job.folder)
                    tell(score_words(tuned.metrics, tuned.primary))
            report_stage(job)
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            with busy("handing the last metrics to the tracker"):
                tracker.finish(status)
    return job.folder
