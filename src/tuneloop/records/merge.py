"""How adapters were merged, and what it kept of each task: `merge.json`."""

from __future__ import annotations

from tuneloop.records.metric import number_words
from tuneloop.records.record import Number, Part, Record


class MergeSource(Part):
    """An adapter that went into a merge.

    Args:
        name: as the user gave it; `hash`: of its tensors and their scale.
        weight: that it counts with; `rank`: the largest of a module.
        run: the folder of its run, where that is available; `dataset`: the id of its rows.
    """

    name: str
    hash: str
    weight: float
    rank: int
    run: str = ""
    dataset: str = ""


class Share(Part):
    """A share with its 95 % interval; null where there is nothing to have a share of."""

    value: Number
    low: Number
    high: Number

    def in_words(self) -> str:
        """As a difference: `+0.012 [-0.003, +0.027]`."""
        value, low, high = (number_words(x, 3, signed=True) for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


class TaskResult(Part):
    """One task's rows, answered by the merged model, its expert and the controls.

    Args:
        task: the expert's name.
        metric: that decides; `n`: rows; `split`: that they are from.
        base, expert, merged, random: the metric's values; `random`: of the expert merged with an adapter of random
            matrices of the same size; `pooled`: of one adapter trained on all tasks' rows, where there is one.
        kept: share of the expert's gain over the base that the merged model has. None: that gain is not significant.
        delta: merged - expert, with its paired interval.
        holds: whether the share is at least what is required; `sure`: whether its interval says so, too.
    """

    task: str
    metric: str
    split: str
    n: int
    base: Number
    expert: Number
    merged: Number
    random: Number | None = None
    pooled: Number | None = None
    kept: Share | None = None
    delta: Share
    holds: bool
    sure: bool = False


class SearchedMerge(Part):
    """Settings that `--method auto` tried: the least share of a gain that a task kept on validation rows; time."""

    method: str
    weights: list[float]
    rank: int
    worst: Number
    seconds: float


class MergeRecord(
    Record, noun="a merge", file="merge.json", again="merge again: delete the folder and give the same command"
):
    """`merge.json`: adapters of one base as one adapter.

    Args:
        key: hash of all that the result depends on.
        method: how; `rank`: the largest of a module.
        lost: length cut off to get the rank, as a share of what the method gave; `hash`: of the merged tensors.
        sources: the adapters that are in it.
        routed: experts that are not: their tasks lost more than allowed.
        allowed: the most of an expert's gain that a task may lose, as a share; `tasks`: what each task kept.
        searched: what `--method auto` tried; `words`: all that in sentences.
        request: hash of the request, judging included.
    """

    key: str
    model: str
    model_fingerprint: str = ""
    method: str
    rank: int
    lost: float
    hash: str
    sources: list[MergeSource]
    routed: list[str] = []
    allowed: float | None = None
    tasks: list[TaskResult] = []
    searched: list[SearchedMerge] = []
    words: list[str] = []
    request: str = ""


class TaskRoute(Part):
    """Who answers a task: a target, by the name or folder that `serve` takes.

    Args:
        task: its name; `dataset`: the folder of its rows.
        target: the merged run, or the expert; `why`: in a sentence.
    """

    task: str
    target: str
    dataset: str = ""
    why: str = ""


class TaskDeployment(Record, noun="a list of tasks and their models", file="tasks.json", again="merge again"):
    """`tasks.json`: which model answers which task.

    Args:
        base: the base model of all adapters; it answers what belongs to no task.
        routes: one for each task.
    """

    base: str
    routes: list[TaskRoute]

    @property
    def targets(self) -> list[str]:
        """The models that have to be served, each once."""
        return list(dict.fromkeys(route.target for route in self.routes))
