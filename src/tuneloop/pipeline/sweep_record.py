"""What a search over settings found: `sweep.json`."""

from __future__ import annotations

from typing import Any, ClassVar

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


class SweepManifest(Record):
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

    title: ClassVar[str] = "a sweep"
    file: ClassVar[str] = "sweep.json"
    again: ClassVar[str] = "run `tuneloop sweep` again"

    key: str
    dataset: str
    axes: dict[str, list[Any]]
    rungs: list[float]
    trials: list[Trial] = []
    best: dict[str, Any] | None = None
    run: str = ""
    seconds: float = 0.0
