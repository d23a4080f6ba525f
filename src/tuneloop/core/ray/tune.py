"""A search by Ray Tune: settings are tried in parallel on a cluster, and ASHA ends the worse ones early.

ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020) compares, whenever a trial has done a
share of its training, its loss with those that the others had there; two in three of them end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.ray.cluster import gpus, last_line, on_ray

KEPT = 3  # of so many settings that have come equally far one continues
LOSS = "val_loss"

Report = Callable[[float], None]


@dataclass(frozen=True)
class TrialOutcome:
    """What became of a setting."""

    reports: int  # validations that it came to
    loss: float | None  # at the last one; None: there was none
    error: str = ""  # why it failed; empty: it did not


Train = Callable[[Any, Any, Report], None]


def tune_on_ray(
    train: Train, setting: Any, trials: Sequence[Any], reports: int, folder: Path, address: str = ""
) -> list[TrialOutcome]:
    """Train with each of the trials' values as far as ASHA lets them, as many at a time as the cluster has room for.

    Returns what became of each trial, in their order. UserError: no cluster, or Ray Tune is not complete.

    Args:
        train: of a module's top level; `train(setting, trial, report)` calls `report` with each validation loss.
        reports: that a trial makes when it is not ended early.
        folder: for Ray's records; all machines see it.
    """
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints tables on stdout
    with on_ray(address) as ray:
        try:
            from ray import tune
            from ray.tune import FailureConfig, RunConfig
            from ray.tune.schedulers import ASHAScheduler
        except ImportError as error:
            message = f"Ray Tune is not complete here: {error}"
            raise UserError(message, where="ray", next_step="pip install 'tuneloop[ray]'") from None
        resources = {"gpu": 1, "cpu": 1} if gpus(ray) else {"cpu": 1}
        shared = ray.put((train, setting, list(trials)))
        most = max(reports, 1) + 1
        asha = ASHAScheduler(time_attr="training_iteration", max_t=most, grace_period=1, reduction_factor=KEPT)
        failures = FailureConfig(max_failures=1)
        tuner = tune.Tuner(
            tune.with_resources(_trial, resources),
            param_space={"number": tune.grid_search(list(range(len(trials)))), "shared": [shared]},
            tune_config=tune.TuneConfig(metric=LOSS, mode="min", scheduler=asha),
            run_config=RunConfig(name="tune", storage_path=str(folder), verbose=0, failure_config=failures),
        )
        results: dict[int, TrialOutcome] = {}
        for result in tuner.fit():
            metrics = result.metrics or {}
            number = (result.config or metrics.get("config") or {})["number"]
            failed = "" if result.error is None else last_line(result.error)
            results[number] = TrialOutcome(int(metrics.get("training_iteration", 0)), metrics.get(LOSS), failed)
        return [results.get(number, TrialOutcome(0, None, "it was not tried")) for number in range(len(trials))]


def _trial(config: dict[str, Any]) -> None:
    import ray
    from ray import tune

    train, setting, trials = ray.get(config["shared"][0])
    train(setting, trials[config["number"]], lambda loss: tune.report({LOSS: loss}))
