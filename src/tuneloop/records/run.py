"""A training run: `run.json`, `environment.json`, the lines of `metrics.jsonl`, and what was chosen before it began."""

from __future__ import annotations

import math
from typing import Any

from tuneloop.core.units import counted
from tuneloop.records.record import Number, Part, Record

RUN = "run.json"
ANSWERS = "checkpoints/answers.jsonl"  # while it trains: answers to a few validation rows, at each validation


class Predicted(Part):
    """What the plan had said of a run: minutes with the bounds of the time, GiB at the peak, dollars."""

    minutes: float
    low: float
    high: float
    peak_gib: float
    usd: float = 0.0


class MachineUse(Part):
    """How well the steps used the machine.

    Args:
        value: operations that a step needs over what the machine could do in its time; None where it was too busy.
        needed_gflop, step_seconds: of a step; `peak_gflops`: of matrix products, measured.
        definition: all that in words.
    """

    value: float | None = None
    needed_gflop: Number = 0.0
    step_seconds: Number = 0.0
    peak_gflops: Number = 0.0
    definition: str = ""


class RunManifest(Record, noun="a run", file=RUN, again="train again: delete the file and give the same command"):
    """`run.json`: a finished run. It is written last and makes the folder complete.

    Args:
        id: the folder's name; `key`: hash of everything that the result depends on.
        model, model_fingerprint: the base model, and what identifies its files; `dataset`: the data set's id.
        steps, total_steps, planned_steps: done, to be done in the end, and planned at first.
        epochs: passes over the training rows.
        rows, rows_seen, seen: training rows, how many of them a step saw, and that in words.
        best_step, best_val_loss, first_val_loss: the step whose weights were kept; None: no validation rows.
        stopped: why training ended: `finished`, `early`, or what the monitors found.
        tokens, seconds, tokens_per_second: trained tokens, time with validations, the one by the other.
        checking_seconds: of these, validations and references.
        planned_tokens_per_second, speed_share: the speed in the plan (0: none), and what share of it was reached.
        adapter_hash: of the trained weights.
        resumed_at: step of the checkpoint from which the run continued; 0: none.
        findings: of the monitors, as in `metrics.jsonl`; `usd`: what training cost.
        adapter, weights: the folder with the result; one of the two.
        tags: words of the user's own, see `track.tags`.
    """

    id: str = ""
    key: str = ""
    status: str = "finished"
    method: str = ""
    model: str
    model_fingerprint: str = ""
    dataset: str = ""
    steps: int = 0
    total_steps: int = 0
    planned_steps: int = 0
    epochs: float = 0.0
    rows: int = 0
    rows_seen: int = 0
    seen: str = ""
    best_step: int = 0
    best_val_loss: float | None = None
    first_val_loss: float | None = None
    stopped: str = "finished"
    trainable_parameters: int = 0
    tokens: int = 0
    seconds: float = 0.0
    checking_seconds: float = 0.0
    tokens_per_second: float = 0.0
    planned_tokens_per_second: float = 0.0
    speed_share: float | None = None
    peak_memory_gib: float = 0.0
    adapter_hash: str = ""
    resumed_at: int = 0
    findings: list[dict[str, Any]] = []
    usd: float = 0.0
    predicted: Predicted | None = None
    mfu: MachineUse | None = None
    weights: str | None = None
    adapter: str | None = None
    tags: list[str] = []

    @property
    def result(self) -> str:
        """Name of the folder with what was trained: `adapter`, or `model` of a full run."""
        return self.adapter or self.weights or ""


class ScheduleChange(Part):
    """Behind which step what was left of a run was changed, see `train.checkpoint.State`."""

    step: int
    turn: tuple[int, float]
    total_steps: int
    due: list[int]


class Schedule(Record, noun="a schedule", file="schedule.json", again="delete the file and train again"):
    """`schedule.json`: how many steps a run did and when it was validated.

    Args:
        planned_steps: before the first step; `due`: places among these behind which validations stand.
        val_rows: most rows of a validation; `changes`: of both, to keep `max_minutes`.
        read_rows: of these, how many the first one had time for; 0: all.
        follow: it is an earlier run's, and this one has to keep to it.
    """

    planned_steps: int
    due: list[int]
    val_rows: int
    read_rows: int = 0
    changes: list[ScheduleChange] = []
    follow: bool = False


class Environment(
    Record, noun="an environment", file="environment.json", again="delete the file; the next run writes it"
):
    """`environment.json`: the machine and the versions that a run was made with.

    Args:
        cores, threads: that the process may use, and that it computes with; 0: not known.
    """

    tuneloop: str
    git_commit: str | None = None
    python: str = ""
    platform: str = ""
    cpu: str = ""
    cores: int = 0
    threads: int = 0
    memory_gib: float = 0.0
    gpu: list[str] = []
    packages: dict[str, str] = {}


class TrainedWeights(Record, noun="a note of trained weights", file="tuneloop.json", again="train again"):
    """`tuneloop.json`, next to trained weights.

    Args:
        base_fingerprint: what identifies the base model's files; empty: these weights are a whole model.
        quantised: how the base was stored while training; None: as it was.
        hash: of the trained weights; `task`: what they were trained to answer, see `data.task.TaskSpec`.
    """

    base_fingerprint: str = ""
    quantised: str | None = None
    hash: str = ""
    task: dict[str, Any] | None = None


class FullRun(Part):
    """The extent of the same run without a limit on its time, and the minutes that it would take."""

    minutes: float
    training_minutes: float
    steps: int
    epochs: float
    test_rows: int


class TimeChoices(
    Record, noun="a run's choices", file="time.json", again="delete the file and run the same command again"
):
    """`time.json`: what was chosen to keep a limit on the time of a run. What is None has not been chosen yet.

    Args:
        key: hash of everything that the choices depend on; `max_minutes`: the limit.
        test_rows: rows that all systems answer, of `all_test_rows`.
        few_shot: examples that few-shot shows, of `all_few_shot`; None: all of them.
        reused_seconds: of answers that were known before; `train_minutes`: that training may take.
        took_minutes: the whole run, in the end.
        full_run: the same run without a limit; None where nothing was left out.
        words: what was left out, in sentences.
    """

    key: str = ""
    max_minutes: float | None = None
    all_test_rows: int | None = None
    test_rows: int | None = None
    few_shot: int | None = None
    all_few_shot: int | None = None
    reused_seconds: float = 0.0
    train_minutes: float | None = None
    took_minutes: float | None = None
    full_run: FullRun | None = None
    words: list[str] = []


class TrainingStep(Part):
    """A line of `metrics.jsonl`: one optimizer step. `rows` are the numbers of its training rows."""

    step: int
    epoch: float = 0.0
    loss: Number
    learning_rate: Number = math.nan
    grad_norm: Number = math.nan
    tokens: int = 0
    tokens_per_second: Number = math.nan
    seconds: float = 0.0
    memory_gib: float = 0.0
    rows: list[int] = []


class Validation(Part):
    """A line of `metrics.jsonl`: one validation, and the loss on general rows where they are measured too."""

    step: int
    val_loss: Number | None = None
    best: bool | None = None
    general_loss: Number | None = None
    seconds: float = 0.0


class Event(Part):
    """A line of `metrics.jsonl`: a change of the course (`busy`, `threads`, `steps`, `rollback`, `out_of_memory`)."""

    step: int
    event: str
    message: str = ""


class FindingLine(Part):
    """A line of `metrics.jsonl`: what a monitor found.

    Args:
        finding: its kind; `rows`: ids of the training rows that it is about.
        sentence, remedies: what it is, and what to do.
    """

    step: int
    finding: str
    rows: list[str] = []
    sentence: str = ""
    remedies: list[str] = []


def limit_words(run: RunManifest) -> str:
    """That its limit, and not the prediction, made a run's time what it was; empty where its steps were those planned.
    A prediction of the time says something only then."""
    if not run.planned_steps or run.total_steps == run.planned_steps:
        return ""
    return f"the limit was reached; {counted(run.total_steps, 'step')}, not the {run.planned_steps:,} predicted"


def mfu_words(mfu: MachineUse | None) -> str:
    """The model FLOP utilisation of `run.json` with the peak that it is a share of; empty where it was not measured."""
    peak = mfu.peak_gflops if mfu else None
    if mfu is None or peak is None:
        return ""
    if mfu.value is None or mfu.value > 1:
        return f"not known: the machine was busy when its peak was measured ({peak:,.0f} GFLOP/s)"
    return f"{100 * mfu.value:.0f}\u00a0% of {peak:,.0f} GFLOP/s, the measured peak"
