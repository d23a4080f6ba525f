"""What a run folder says, read once for reports, terminal and pages.

Every file may be missing or cut short. Text from the user or from a model is made safe to print here, once."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tuneloop.core import written as w
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, read_yaml
from tuneloop.core.foreign import BeyondLimits, is_file, lines_of, parse_line
from tuneloop.evaluation.metrics import claim_between, declare, headline_of, metric_of
from tuneloop.records.dataset import MANIFEST, DatasetManifest
from tuneloop.records.encoder import ENCODER_FOLDER
from tuneloop.records.evaluation import SAMPLES, Estimate, EvaluationManifest, GateResult, Sample
from tuneloop.records.plan import Plan
from tuneloop.records.prompt import PROMPT_RESULT
from tuneloop.records.record import P, Part, R, Record, as_line, as_record
from tuneloop.records.run import (
    Environment,
    FindingLine,
    RunManifest,
    TimeChoices,
    TrainingStep,
    Validation,
    limit_words,
)

# The order of systems in tables and charts; unknown ones come before the tuned model.
SYSTEMS = (
    "majority class",
    "zero-shot",
    "zero-shot calibrated",
    "few-shot",
    "few-shot calibrated",
    "tf-idf + logistic regression",
    "MiniLM + logistic regression",
)
MOST_OWN = 2  # columns of the user's own metrics; the page has a table of all
NOT_EVALUATED = EvaluationManifest(n=0, metrics={})
CONFIG, METRICS = "config.yaml", "metrics.jsonl"
RECORDS: tuple[type[Record], ...] = (RunManifest, Plan, Environment, EvaluationManifest, GateResult, TimeChoices)
# What a line of `metrics.jsonl` is, by a key that no other line has.
LINES: dict[str, type[TrainingStep | Validation | FindingLine]] = {
    "loss": TrainingStep, "val_loss": Validation, "finding": FindingLine,
}  # fmt: skip


@dataclass(frozen=True)
class RunFiles:
    """The files of a run folder; None, empty or `NOT_EVALUATED` where one is missing."""

    path: Path
    run: RunManifest | None = None
    config: dict[str, Any] = field(default_factory=dict)  # `config.yaml`, the resolved recipe
    dataset: DatasetManifest | None = None  # `dataset/dataset.json`, or that of the data set that the run began from
    plan: Plan | None = None
    environment: Environment | None = None
    evaluation: EvaluationManifest = NOT_EVALUATED  # `eval.json`; `gate`, `time`, `plan`, `environment`, `run` likewise
    gate: GateResult | None = None
    time: TimeChoices | None = None
    steps: list[TrainingStep] = field(default_factory=list)  # steps, validations, findings: of `metrics.jsonl`, by step
    validations: list[Validation] = field(default_factory=list)
    findings: list[FindingLine] = field(default_factory=list)  # of the monitors
    samples: list[Sample] = field(default_factory=list)  # rows of `samples.jsonl`
    problems: list[str] = field(default_factory=list)  # files that are there and could not be read, in words

    @property
    def result(self) -> str:
        """Name of the folder with what was trained: `adapter`, or `model` of a full run; empty before there is one."""
        return self.run.result if self.run else ""

    @property
    def evaluated(self) -> bool:
        """Whether there is an `eval.json`."""
        return self.evaluation is not NOT_EVALUATED

    @property
    def model(self) -> str:
        """The base model, as far as any file names it."""
        return str((self.run and self.run.model) or self.config.get("model") or self.evaluation.model)


@dataclass(frozen=True)
class SystemFacts:
    """One line of the comparison.

    Args:
        p: p-value of the paired comparison on this line on the first metric, adjusted for the other systems, or None;
            see `reference_system`.
        delta: the gain of the tuned model over this system in it, or None; where all are compared with one
            (`reference_system`), this system's gain over that one. Positive: the tuned model (this system) is better,
            whichever way the metric runs. `gain_header` says it for tables.
    """

    name: str
    scores: tuple[Estimate | None, ...]  # one for each shown metric; None where it was not measured
    p: float | None = None
    delta: Estimate | None = None
    verdict: str = ""  # the comparison's verdict, or an empty string
    tuned: bool = False


def read_run(path: Path | str) -> RunFiles:
    """Read what there is in a run folder, which may be another person's: no link in it is followed.

    Raises UserError: the folder does not exist, or holds none of a run's files.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError("No such run folder", where=str(path), next_step="give a folder under runs/")
    problems: list[str] = []
    records = {kind: _record(kind, path / kind.file, problems) for kind in RECORDS}
    config = _mapping(path / CONFIG, problems)
    # the run may have begun from a data set that was prepared elsewhere
    sources = w.section(config.get("data")).get("sources") or [""]
    places = (path / "dataset" / MANIFEST, Path(str(sources[0])) / MANIFEST)
    dataset = next((_record(DatasetManifest, p, problems) for p in places if is_file(p, below=p.parent)), None)

    def line_of(value: dict[str, Any]) -> TrainingStep | Validation | FindingLine | None:
        return next((as_line(kind, value, "", "") for key, kind in LINES.items() if key in value), None)

    lines = _lines(path / METRICS, problems, line_of)
    samples = _lines(path / SAMPLES, problems, lambda value: as_line(Sample, value, "", ""))
    if not any((*records.values(), config, dataset, lines, samples, problems)):
        names = ", ".join([CONFIG, *(kind.file for kind in RECORDS), METRICS])
        message = "Not a run folder: it holds none of a run's files"
        raise UserError(message, where=str(path), next_step=f"a run has {names}")

    def of(kind: type[R]) -> R | None:
        record = records[kind]
        return record if isinstance(record, kind) else None

    evaluation = of(EvaluationManifest) or NOT_EVALUATED
    declare(evaluation.own_metrics.values())
    return RunFiles(
        path=path,
        run=of(RunManifest),
        config=config,
        dataset=dataset,
        plan=of(Plan),
        environment=of(Environment),
        evaluation=evaluation,
        gate=of(GateResult),
        time=of(TimeChoices),
        steps=_by_step(line for line in lines if isinstance(line, TrainingStep)),
        validations=_by_step(line for line in lines if isinstance(line, Validation)),
        findings=[line for line in lines if isinstance(line, FindingLine)],
        samples=samples,
        problems=problems,
    )


def _record(kind: type[R], path: Path, problems: list[str]) -> R | None:
    value = _mapping(path, problems)
    try:
        return as_record(kind, value, str(path)) if value else None
    except UserError as error:
        problems.append(w.clean(f"{path.name} could not be read: {error.what}"))
        return None


def _mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        read: Any = read_yaml if path.suffix == ".yaml" else read_json
        value = read(path, below=path.parent)
    except (UserError, OSError) as error:
        message = error.what if isinstance(error, UserError) else str(error.strerror)
        problems.append(w.clean(f"{path.name} could not be read: {message}"))
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} could not be read: it holds no mapping")
        return {}
    return {w.clean(key): w.clean_all(item) for key, item in value.items()}


def _lines(path: Path, problems: list[str], record_of: Callable[[dict[str, Any]], P | None]) -> list[P]:
    """The records of a JSON Lines file; damaged lines (a run writes its last one now) are counted."""
    records, damaged = list[P](), 0
    try:
        for line in filter(bytes.strip, lines_of(path, below=path.parent)):
            try:
                value = parse_line(line.decode("utf-8", "replace"))
                if not isinstance(value, dict):
                    raise ValueError("no object")
                record = record_of(w.clean_all(value))
            except (ValueError, RecursionError, UserError):
                damaged += 1
            else:
                records += [] if record is None else [record]
    except FileNotFoundError:
        return []
    except (OSError, BeyondLimits) as error:
        problems.append(f"{path.name} could not be read: {getattr(error, 'strerror', error)}")
        return []
    if damaged:
        problems.append(f"{path.name}: {w.count(damaged, 'unreadable line')} left out")
    return records


Line = TypeVar("Line", TrainingStep, Validation)


def _by_step(records: Iterable[Line]) -> list[Line]:
    """Records in step order; a step that was repeated after a resume counts once, the later one."""
    latest = {record.step: record for record in records}
    return [latest[step] for step in sorted(latest)]


def given(record: Part | None, name: str) -> float | None:
    """A number of a record; None where its file does not hold it."""
    return w.number(getattr(record, name)) if record is not None and name in record.model_fields_set else None


def shown_metrics(evaluation: EvaluationManifest) -> list[str]:
    """The two to four metrics of the closing table, the one that decides (`primary`) first.

    Fields' accuracies come next (a structured answer), then the headline metrics of labels, or of texts where text is
    generated, then those of the user's own.
    """
    names, first = list(evaluation.metrics), evaluation.primary
    if not names:  # only baselines so far
        names = list(dict.fromkeys(name for metrics in evaluation.baselines.values() for name in metrics))
    fields = [n for n in names if n.endswith(".accuracy")][:2]
    if "object_accuracy" in names:
        usual = ["filled_f1", "object_accuracy", "field_accuracy", "valid_json"]
    elif evaluation.task == "classification" and not fields:
        usual = headline_of("labels")
    elif evaluation.task in ("generation", "chat") or fields:
        usual = [*fields, *headline_of("texts")][:3]
    else:
        usual = headline_of("labels" if "accuracy" in names else "texts")
    scorers = [name for name in evaluation.own_metrics if metric_of(name).headline][:MOST_OWN]
    columns = list(dict.fromkeys([*([first] if first else []), *usual, *scorers]))
    return [n for n in columns if n in names] or names[:2]


def systems_of(evaluation: EvaluationManifest, metrics: Sequence[str]) -> list[SystemFacts]:
    """The lines of the comparison: the base model, the cheap alternatives, the tuned model last."""
    baselines = evaluation.baselines
    usual = [name for name in SYSTEMS if name in baselines]
    values = [(name, baselines[name]) for name in [*usual, *(name for name in baselines if name not in usual)]]
    values += [(evaluation.name, evaluation.metrics)] if evaluation.metrics else []
    first, lines = reference_system(evaluation), []
    for i, (name, scores) in enumerate(values):
        claim, verdict = None, ""
        if metrics and name != (first or evaluation.name):
            about, against = (name, first) if first else (evaluation.name, name)
            claim, verdict = claim_between(evaluation, about, against, metrics[0])
        lines.append(
            SystemFacts(
                name=name,
                scores=tuple(finite(scores.get(metric)) for metric in metrics),
                p=w.number(claim.p) if claim else None,
                delta=Estimate(claim.gain, claim.low, claim.high) if claim and math.isfinite(claim.gain) else None,
                verdict=verdict,
                tuned=i == len(baselines),
            )
        )
    return lines


def gain_header(evaluation: EvaluationManifest) -> tuple[str, str]:
    """What the gains of a comparison are, for a column's head and in a sentence or two."""
    reference, system = reference_system(evaluation), evaluation.name
    head = f"gain over {reference}" if reference else f"gain of {system}"
    legend = f"of each line over {reference}; positive means that the line is better." if reference else ""
    legend = legend or f"of {system} over each line; positive means that {system} is better."
    tests = max((pair.tests for pair in evaluation.comparisons if pair.metric == evaluation.primary), default=1)
    corrected = f" Its interval and p-value are corrected for {tests} comparisons (Holm)." if tests > 1 else ""
    return head, f"Gain: {legend}{corrected}"


def verdict_line(evaluation: EvaluationManifest) -> str:
    """The verdict in one sentence; empty where there is none yet."""
    return (evaluation.verdict.sentence if evaluation.verdict else "") or next(iter(evaluation.words), "")


def more_words(evaluation: EvaluationManifest) -> list[str]:
    """What else an evaluation says: the side effects of tuning, consistency, and what requests cost."""
    parts = (evaluation.forgetting, evaluation.memorisation)
    consistency = evaluation.consistency.words if evaluation.consistency else []
    sentences = [*(part.words for part in parts if part), *consistency, *evaluation.leaderboard_words]
    return [line for line in sentences if line]


def reference_system(evaluation: EvaluationManifest) -> str:
    """The system that all others were compared with, where that is not the evaluation's own; empty otherwise."""
    pairs = {(pair.a, pair.b) for pair in evaluation.comparisons}
    firsts = {a for a, _ in pairs}
    others = any(evaluation.name not in pair for pair in pairs)
    return firsts.pop() if len(firsts) == 1 and len(pairs) > 1 and others else ""


def finite(estimate: Estimate | None) -> Estimate | None:
    """An estimate whose value is a number, or None."""
    return estimate if estimate is not None and math.isfinite(estimate.value) else None


def is_right(sample: Sample, prediction: str | None = None) -> bool | None:
    """Whether an answer equals the reference, for rows with a label; None where that says little.

    `prediction`: the answer to judge; default: the tuned model's.
    """
    if sample.label is None:
        return None
    if prediction is None and "predicted_label" in sample.model_fields_set:  # as the scorer matched it
        return sample.predicted_label == sample.label
    answer = sample.prediction if prediction is None else prediction
    first, second = (text.strip().split("\n")[0] for text in (answer, sample.reference or sample.label))
    marks = " \t\"'`.,;:!?*"
    return first.strip(marks).casefold() == second.strip(marks).casefold()


@dataclass(frozen=True)
class Promise:
    """A predicted number and the measured one, written out."""

    name: str
    predicted: str
    actual: str
    inside: bool | None = None  # whether it kept to its range
    words: str = ""  # `as predicted`, `took 38 % less`, `took 12 % more`; empty where nothing was predicted


def promises(facts: RunFiles) -> list[Promise]:
    """Time, memory and money: predicted against actual. Lines without either number are left out."""
    run, plan = facts.run, facts.plan
    promised, time, cost = run and run.predicted, plan and plan.time, plan and plan.cost
    in_minutes = [None if hours is None else 60 * hours for hours in (time.hours, time.low, time.high)] if time else []
    expected, low, high = in_minutes or (None, None, None)
    if promised:
        expected, low, high = promised.minutes, promised.low, promised.high
    seconds, real_peak, cost_paid = (given(run, name) for name in ("seconds", "peak_memory_gib", "usd"))
    took = None if seconds is None else seconds / 60
    span = f"  ({w.minutes(low)} to {w.minutes(high)})" if low is not None and high is not None else ""
    peak = promised.peak_gib if promised else plan.memory.peak_gib if plan else None
    price = promised.usd if promised else cost.usd if cost else None
    cheapest = cost.low if cost and cost.low is not None else None if price is None else price * 0.75
    most = cost.high if cost and cost.high is not None else None if price is None else price * 1.25

    def line(name: str, predicted: str, actual: str, value: float | None, bounds: Sequence[float | None]) -> Promise:
        low, high, expected = bounds
        line_words = w.off_words(value, low, high, expected)
        if name != "peak memory" and line_words == "as predicted" and run and (limited := limit_words(run)):
            return Promise(name, predicted, actual, None, limited)
        return Promise(name, predicted, actual, line_words == "as predicted" if line_words else None, line_words)

    near = (None, None) if peak is None else (0.85 * peak, 1.15 * peak)
    duration = w.minutes(expected) + (span if expected is not None else "")
    lines = [
        line("training time", duration, w.minutes(took), took, (low, high, expected)),
        line("peak memory", w.gib(peak), w.gib(real_peak), real_peak, (*near, peak)),
        line("cost", w.usd(price), w.usd(cost_paid), cost_paid, (cheapest, most, price)),
    ]
    return [line for line in lines if (line.predicted, line.actual) != ("–", "–")]


def next_commands(facts: RunFiles) -> list[str]:
    """Commands that make sense now, the likeliest first; a split without rows is not proposed."""
    if not facts.run:
        return []
    run = shlex.quote(str(facts.path))
    splits = facts.dataset.splits.by_name if facts.dataset else {}
    empty = {name for name, split in splits.items() if not split.rows}
    on_val = [] if "val" in empty else [f"tuneloop evaluate {run} --split val"]
    if facts.evaluated:
        ship = f"tuneloop {'serve' if facts.run.result in (ENCODER_FOLDER, PROMPT_RESULT) else 'export'} {run}"
        return [*on_val, f"tuneloop compare {run} OTHER_RUN", ship]
    if "test" not in empty:
        return [f"tuneloop evaluate {run}"]
    return on_val or [f"tuneloop evaluate {run} --data FILE"]
