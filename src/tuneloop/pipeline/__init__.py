"""The main job and its stages, from files to files, and what evaluates, predicts, compares and searches."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # Ways of getting answers for a task, with what each should cost.
    from tuneloop.pipeline.advise import advise_on as advise_on

    # A data set that stands for one that is not prepared yet.
    from tuneloop.pipeline.advise import stand_in as stand_in

    # Evaluations of the same rows compared with the first.
    from tuneloop.pipeline.compare import compare_evaluations as compare_evaluations

    # The same where other tools made some of them.
    from tuneloop.pipeline.compare import compare_foreign as compare_foreign

    # The rows of a split, as a task of another tool.
    from tuneloop.pipeline.compare import task_rows as task_rows

    # A recipe at work: its folder, its model, its data set.
    from tuneloop.pipeline.context import RunContext as RunContext

    # The folder of a recipe's run.
    from tuneloop.pipeline.context import folder_of as folder_of

    # A run as one object, as `--json` prints it.
    from tuneloop.pipeline.context import summary as summary

    # Start a command once for each GPU.
    from tuneloop.pipeline.distributed import shared_out as shared_out

    # A function that gives the answers of a run's tuned model.
    from tuneloop.pipeline.evaluate import answers_of as answers_of

    # Files of predictions measured, to be compared.
    from tuneloop.pipeline.evaluate import evaluate_files as evaluate_files

    # A target measured, with its alternatives.
    from tuneloop.pipeline.evaluate import evaluate_target as evaluate_target

    # Start an evaluation once for each GPU.
    from tuneloop.pipeline.evaluate import processes_to_start as processes_to_start

    # The plan of a training on a data set.
    from tuneloop.pipeline.plan import plan_data as plan_data

    # A plan in a line.
    from tuneloop.pipeline.plan import plan_line as plan_line

    # The measure by which the rows of a data set were counted.
    from tuneloop.pipeline.prepare import measure_of as measure_of

    # Sources to a prepared data set.
    from tuneloop.pipeline.prepare import prepare_alone as prepare_alone

    # The data set of a run; one with a check at `error` is refused.
    from tuneloop.pipeline.prepare import prepare_checked as prepare_checked

    # The best prompt for a model, kept like a run.
    from tuneloop.pipeline.prompt_stage import find_prompt as find_prompt

    # The main job: all stages, from files to files.
    from tuneloop.pipeline.run import run_job as run_job

    # Search over settings with several values.
    from tuneloop.pipeline.sweep import search_settings as search_settings

    # A short training for the ledger of the planner.
    from tuneloop.pipeline.train import calibrate_alone as calibrate_alone

    # Look at a training without starting it.
    from tuneloop.pipeline.train import preflight_alone as preflight_alone

    # Train as a finished run was trained.
    from tuneloop.pipeline.train import train_again as train_again

    # Prepare, plan and train, without an evaluation.
    from tuneloop.pipeline.train import train_alone as train_alone

__getattr__, __dir__ = door(__name__)
