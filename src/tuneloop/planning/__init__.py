"""Memory, hours and dollars of a training before they are spent."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # The machine that a run is on, with its measured speed.
    from tuneloop.planning.at_hand import MachineAtHand as MachineAtHand

    # What a run computes.
    from tuneloop.planning.at_hand import RunWork as RunWork

    # The plan of a run on this machine, its speed measured.
    from tuneloop.planning.at_hand import estimate as estimate

    # Speed and memory that steps of the loop should have.
    from tuneloop.planning.at_hand import planned_step as planned_step

    # Micro-batches that fit into a GPU's memory.
    from tuneloop.planning.at_hand import sizes_on_gpu as sizes_on_gpu

    # Options of prices and of people's time.
    from tuneloop.planning.config import CostOptions as CostOptions

    # The settings `plan` of a recipe.
    from tuneloop.planning.config import PlanConfig as PlanConfig

    # The options of `tuneloop plan`.
    from tuneloop.planning.config import PlanOptions as PlanOptions

    # What a plan is wanted of: training, serving, history.
    from tuneloop.planning.config import PlanWanted as PlanWanted

    # A plan with what earlier runs here teach.
    from tuneloop.planning.ledger import corrected as corrected

    # Earlier runs, and how wrong their plans were.
    from tuneloop.planning.ledger import history as history

    # Add a finished run to the ledger.
    from tuneloop.planning.ledger import record_run as record_run

    # The speed of earlier runs like this one.
    from tuneloop.planning.ledger import usual_speed as usual_speed

    # Hours of a run from which a faster machine comes first.
    from tuneloop.planning.options import A_WEEK as A_WEEK

    # Tokens of a data set's rows.
    from tuneloop.planning.options import Lengths as Lengths

    # One machine for a job: memory, hours, dollars.
    from tuneloop.planning.options import MachineOption as MachineOption

    # A job, and the machines and prices in question.
    from tuneloop.planning.options import PlanRequest as PlanRequest

    # Tokens of rows by a data set's manifest.
    from tuneloop.planning.options import lengths_of as lengths_of

    # All machines for a job, the best first.
    from tuneloop.planning.options import machines as machines

    # The plan of a job on all machines, as `plan.json` holds it.
    from tuneloop.planning.options import plan_machines as plan_machines

    # The plan of a named model.
    from tuneloop.planning.options import plan_model as plan_model

    # Settings of a job as the loop takes them.
    from tuneloop.planning.options import usual_settings as usual_settings

    # Which machine to take, where the job runs here.
    from tuneloop.planning.recommend import recommendation_here as recommendation_here

    # What a plan of serving rests on.
    from tuneloop.planning.serve import assumptions as assumptions

    # Machines that serve a model.
    from tuneloop.planning.serve import plan_serving as plan_serving

__getattr__, __dir__ = door(__name__)
