"""Training: one loop for every method and loss, its plan of steps, its budget, its checks."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # All steps of a run, from the seed alone.
    from tuneloop.training.batches import plan_steps as plan_steps

    # Share of the planned speed below which a machine is busy.
    from tuneloop.training.budget import BUSY as BUSY

    # Steps below which a run shows little.
    from tuneloop.training.budget import FEW as FEW

    # Steps and validations that a run does in its time.
    from tuneloop.training.budget import RunPlan as RunPlan

    # Whether nothing can come of so few steps.
    from tuneloop.training.budget import is_too_little as is_too_little

    # A share of a speed in words.
    from tuneloop.training.budget import speed_words as speed_words

    # The settings `train` of a recipe.
    from tuneloop.training.config import TrainConfig as TrainConfig

    # What the device computes, next to the processor in fp32.
    from tuneloop.training.device_checks import self_test as self_test

    # A loaded teacher, which is queried in each step.
    from tuneloop.training.distil import teacher_model as teacher_model

    # Something of each process, on all of them.
    from tuneloop.training.distributed import gathered as gathered

    # The share of what this machine could have done that a run's gradients needed, by its peak now.
    from tuneloop.training.flops import measured_use as measured_use

    # What a training has besides its rows: general rows, ids, checkpoints to keep.
    from tuneloop.training.loop import TrainingJob as TrainingJob

    # That the machine was busy during a run.
    from tuneloop.training.loop import busy_words as busy_words

    # Train: every method, every loss.
    from tuneloop.training.loop import train as train

    # Hash of all that the result of a training depends on.
    from tuneloop.training.methods import training_key as training_key

    # What is about to be trained, and what would spoil it.
    from tuneloop.training.preflight import Preflight as Preflight

    # A teacher's probabilities, stored once.
    from tuneloop.training.probabilities import ProbabilityStore as ProbabilityStore

    # The rows of a run: to train on, to validate by, general ones.
    from tuneloop.training.rows import SplitRows as SplitRows

    # A row as token ids with its loss mask; of preferences both answers.
    from tuneloop.training.rows import TrainRow as TrainRow

    # Whether the loss can use a row.
    from tuneloop.training.rows import is_usable as is_usable

    # Tokens that a row trains on.
    from tuneloop.training.rows import tokens_of as tokens_of

    # Rows as ids and loss masks, for the loss of the settings.
    from tuneloop.training.rows import training_rows as training_rows

    # A run was stopped from outside, and is saved.
    from tuneloop.training.run import Preempted as Preempted

    # Tokens a second that a run will keep up.
    from tuneloop.training.speed import measure_speed as measure_speed

    # What steps compute, as the planner counts it.
    from tuneloop.training.speed import work_of as work_of

__getattr__, __dir__ = door(__name__)
