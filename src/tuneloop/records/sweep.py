"""The record of a search over settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuneloop.records.record import Number, Part, Record


class Trial(Part):
    """Settings that were tried with a share of the training.

    Args:
        settings: key -> value, as on the command line.
        share: of the full number of passes.
        val_loss: the best validation loss; None: it failed.
        minutes: of training.
        run: its folder, inside the sweep's.
        error: why it failed.
    """

    settings: dict[str, Any]
    share: float
    val_loss: Number | None = None
    minutes: float = 0.0
    run: str
    error: str = ""


class SweepManifest(Record, noun="a sweep", file="sweep.json", again="run `tuneloop sweep` again"):
    """`sweep.json`: all trials of a search, and its winner.

    Args:
        key: hash of what the search depends on.
        dataset: id of the data set that all trials share.
        axes: the values that were searched, by key.
        rungs: shares of the training, the smallest first; each keeps the best third of the one before.
        trials: in the order in which they ended.
        best: settings of the winner; None: not decided yet.
        run: folder of the winner's run.
        seconds: of the whole search.
    """

    key: str
    dataset: str
    axes: dict[str, list[Any]]
    rungs: list[float]
    trials: list[Trial] = []
    best: dict[str, Any] | None = None
    run: str = ""
    seconds: float = 0.0

    def trial(self, settings: Mapping[str, str], share: float) -> Trial | None:
        """The trial of some settings with a share of the passes; None: not run yet."""
        return next((trial for trial in self.trials if trial.settings == settings and trial.share == share), None)


def as_typed(settings: Mapping[str, Any]) -> str:
    """Settings as on the command line."""
    return " ".join(f"{key}={value}" for key, value in settings.items())
