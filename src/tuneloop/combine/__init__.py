"""Several tuned models as one: adapters merged, requests routed to experts, a large model distilled to a small one."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # Train a student on what a teacher answers, against the same student on the labels alone.
    from tuneloop.combine.distill.command import distil as distil

    # What distilling will cost before the teacher is paid.
    from tuneloop.combine.distill.plan import plan_distillation as plan_distillation

    # A plan of distillation in sentences.
    from tuneloop.combine.distill.plan import plan_sentences as plan_sentences

    # How adapters are merged: method, weights, rank.
    from tuneloop.combine.merge.adapters import MergeSettings as MergeSettings

    # Adapters of one base become a run like any other.
    from tuneloop.combine.merge.command import merge_runs as merge_runs

    # The adapters that are to be merged, by run, artifact or registered name.
    from tuneloop.combine.merge.command import open_experts as open_experts

    # Why a merge can't be judged by task; empty where it can.
    from tuneloop.combine.merge.tasks import can_judge as can_judge

    # Merge and judge task by task, searching for settings where asked.
    from tuneloop.combine.merge.tasks import merge_tasks as merge_tasks

    # Tasks on which too few rows show a loss or a gain.
    from tuneloop.combine.merge.tasks import unshown as unshown

    # The method of merging that searches.
    from tuneloop.combine.options import AUTO as AUTO

    # Options of `distill`.
    from tuneloop.combine.options import DistilOptions as DistilOptions

    # Options of `merge`.
    from tuneloop.combine.options import MergeOptions as MergeOptions

    # Options of `route`.
    from tuneloop.combine.options import RouteOptions as RouteOptions

    # How a merged model is judged, task by task.
    from tuneloop.combine.options import TaskJudgeOptions as TaskJudgeOptions

    # The threshold below which a small model's answer goes to a large one.
    from tuneloop.combine.route.cascade import cascade_of as cascade_of

    # A cascade in sentences.
    from tuneloop.combine.route.cascade import cascade_sentences as cascade_sentences

    # What a router learns from: runs, outcomes, or a store.
    from tuneloop.combine.route.command import RouteSources as RouteSources

    # Judge a router on outcomes that it has not seen.
    from tuneloop.combine.route.command import eval_route as eval_route

    # Train a router.
    from tuneloop.combine.route.command import fit_route as fit_route

    # What a router's features come from.
    from tuneloop.combine.route.features import RouteJob as RouteJob

    # Which expert answers a request.
    from tuneloop.combine.route.router import Router as Router

    # A trained router from its folder.
    from tuneloop.combine.route.router import load_router as load_router

__getattr__, __dir__ = door(__name__)
