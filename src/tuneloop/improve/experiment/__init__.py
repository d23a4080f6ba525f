"""Experiments with a candidate on live traffic: planned, started, decided, replayed."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # Decide on an experiment now, and log it.
    from tuneloop.improve.experiment.command import check as check

    # Whether users count one by one, or all of a key as one.
    from tuneloop.improve.experiment.command import counts_users as counts_users

    # Give verdicts on the pairs of answers of a shadow mode.
    from tuneloop.improve.experiment.command import judge_copies as judge_copies

    # What to know where the server lacks the model of an experiment.
    from tuneloop.improve.experiment.command import not_served as not_served

    # Path of an experiment's registration.
    from tuneloop.improve.experiment.command import registration_file as registration_file

    # Make every decision of an experiment again from the log.
    from tuneloop.improve.experiment.command import replay as replay

    # The requests of an experiment's random sample.
    from tuneloop.improve.experiment.command import sample_of as sample_of

    # Register an experiment and begin it.
    from tuneloop.improve.experiment.command import start as start

    # End an experiment by hand.
    from tuneloop.improve.experiment.command import stop as stop

    # Wait until the server serves the candidate.
    from tuneloop.improve.experiment.command import wait_for_candidate as wait_for_candidate

    # What an experiment with some traffic can show.
    from tuneloop.improve.experiment.plan import plan_experiment as plan_experiment

    # What may be assumed of missing votes, in words.
    from tuneloop.improve.experiment.record import MISSING as MISSING

    # What is registered before an experiment begins.
    from tuneloop.improve.experiment.record import ExperimentOptions as ExperimentOptions

    # What an experiment can show, by simulation.
    from tuneloop.improve.experiment.record import ExperimentPlan as ExperimentPlan

    # Traffic, ratings, and the effect to be found.
    from tuneloop.improve.experiment.record import ExperimentPlanOptions as ExperimentPlanOptions

    # What is known of an experiment.
    from tuneloop.improve.experiment.state import ExperimentState as ExperimentState

    # Add an event to the log of decisions.
    from tuneloop.improve.experiment.state import add_event as add_event

    # An experiment by its name, or the only one that runs.
    from tuneloop.improve.experiment.state import find as find

    # Why the server serves no candidate of an experiment.
    from tuneloop.improve.experiment.state import left_out as left_out

    # All experiments of a store.
    from tuneloop.improve.experiment.state import read_experiments as read_experiments

    # A stored time.
    from tuneloop.improve.experiment.statistics import time_of as time_of

__getattr__, __dir__ = door(__name__)
