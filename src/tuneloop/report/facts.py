"""What a run folder says, read once for both reports, and how its figures are written.

Every file may be missing (a run in progress, a run without baselines) or cut short: a report shows
what there is. Text from the user or from a model is made safe to print here, once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, read_yaml
from tuneloop.evaluate.metrics import declare_from, headline_of, lower_is_better, metric_of
from tuneloop.records.dataset import MANIFEST, DatasetManifest
from tuneloop.records.record import R, as_record

TUNED = "tuned"
# The order in which systems stand in tables and charts; unknown ones come before the tuned model.
CONTENDERS = (
    "majority class",
    "zero-shot",
    "zero-shot calibrated",
    "few-shot",
    "few-shot calibrated",
    "tf-idf + logistic regression",
    "MiniLM + logistic regression",
)
MOST_OWN = 2  # columns of the user's own metrics; the page has a table of all
# Control characters would reach the terminal as commands, or break the page; newline and tab stay.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class RunFacts:
    """The files of a run folder; an empty value stands for a file that is missing.

    Args:
        config: `config.yaml`, the resolved recipe.
        dataset: `dataset/dataset.json`, or that of the data set that the run began from.
        evaluation: `eval.json`; `gate`, `time`, `plan`, `environment`, `run` likewise.
        steps, validations, findings: training records of `metrics.jsonl`, validation records, and what the monitors found, by step.
        samples: rows of `samples.jsonl`.
        problems: files that are there and could not be read, in words.
    """

    path: Path
    run: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    dataset: DatasetManifest | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    time: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def result(self) -> str:
        """Name of the folder with what was trained: `adapter`, or `model` of a full run; empty before there is one."""
        return str(self.run.get("adapter") or self.run.get("weights") or "")


@dataclass(frozen=True)
class Score:
    """A metric's value and 95 % interval; the bounds are NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class SystemFacts:
    """One line of the comparison.

    Args:
        scores: one for each shown metric; None where it was not measured.
        p: p-value of the paired comparison on this line on the first metric, adjusted for the other systems, or None;
            see `reference_system`.
        delta: the gain of the tuned model over this system in it, or None; where all are compared with one (`reference_system`),
            this system's gain over that one. Positive: the tuned model (this system) is better, whichever way the
            metric runs. `gain_header` says it for tables.
        verdict: the comparison's verdict, or an empty string.
    """

    name: str
    scores: tuple[Score | None, ...]
    p: float | None = None
    delta: Score | None = None
    verdict: str = ""
    tuned: bool = False


# --- reading -----------------------------------------------------------------------------------


def read_run(path: Path | str) -> RunFacts:
    """Read what there is in a run folder.

    Raises:
        UserError: the folder does not exist, or holds none of a run's files.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError("No such run folder", where=str(path), next_step="give a folder under runs/")
    problems: list[str] = []
    found = {name: _mapping(path / file, problems) for name, file in RUN_FILES.items()}
    declare_from(found["evaluation"])
    sources = section(section(found["config"]).get("data")).get("sources") or [""]
    # the run may have begun from a data set that was prepared elsewhere
    places = (path / "dataset" / MANIFEST, Path(str(sources[0])) / MANIFEST)
    dataset = next((_record(DatasetManifest, place, problems) for place in places if place.is_file()), None)
    records = _lines(path / "metrics.jsonl", problems)
    samples = _lines(path / "samples.jsonl", problems)
    if not any(found.values()) and dataset is None and not records and not samples and not problems:
        names = ", ".join([*RUN_FILES.values(), "metrics.jsonl"])
        raise UserError(
            "Not a run folder: it holds none of a run's files", where=str(path), next_step=f"a run has {names}"
        )
    return RunFacts(
        path=path,
        **found,
        dataset=dataset,
        steps=_by_step(r for r in records if "loss" in r),
        validations=_by_step(r for r in records if "val_loss" in r),
        findings=[r for r in records if "finding" in r and number(r.get("step")) is not None],
        samples=samples,
        problems=problems,
    )


RUN_FILES = {
    "run": "run.json",
    "config": "config.yaml",
    "plan": "plan.json",
    "environment": "environment.json",
    "evaluation": "eval.json",
    "gate": "gate.json",
    "time": "time.json",
}


def _record(kind: type[R], path: Path, problems: list[str]) -> R | None:
    value = _mapping(path, problems)
    try:
        return as_record(kind, value, str(path)) if value else None
    except UserError as error:
        problems.append(clean(f"{path.name} could not be read: {error.what}"))
        return None


def _mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = read_yaml(path) if path.suffix == ".yaml" else read_json(path)
    except (UserError, OSError) as error:
        what = error.what if isinstance(error, UserError) else str(error.strerror)
        problems.append(clean(f"{path.name} could not be read: {what}"))
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} could not be read: it holds no mapping")
        return {}
    return {clean(key): clean_all(item) for key, item in value.items()}


def _lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The records of a JSON Lines file; damaged lines (a run writes its last one now) are counted."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"{path.name} could not be read: {error.strerror}")
        return []
    records, damaged = [], 0
    for line in text.split("\n"):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                records.append(clean_all(record))
            else:
                damaged += 1
    if damaged:
        problems.append(f"{path.name}: {count(damaged, 'unreadable line')} left out")
    return records


def _by_step(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records in step order; a step that was repeated after a resume counts once, the later one."""
    latest = {r["step"]: r for r in records if number(r.get("step")) is not None}
    return [latest[step] for step in sorted(latest)]


def clean(text: object) -> str:
    """Text without control characters and lone surrogates."""
    return UNPRINTABLE.sub("\ufffd", str(text).replace("\r\n", "\n"))


def clean_all(value: Any) -> Any:
    """`clean` for every string of a JSON-like value."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(key): clean_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean_all(item) for item in value]
    return value


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def section(value: object) -> dict[str, Any]:
    """A mapping, or an empty one where a file holds something else."""
    return value if isinstance(value, dict) else {}


# --- figures -----------------------------------------------------------------------------------


def count(n: float, unit: str = "") -> str:
    """A count with thin groups of three and its unit in the right number: `1,234 rows`."""
    text = f"{n:,.0f}"
    return f"{text} {unit}{'' if text == '1' or not unit else 's'}".strip()


def short_count(n: float | None) -> str:
    """A large count in three digits: `1.24 M`."""
    if n is None:
        return "–"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(n) >= size:
            return f"{n / size:.3g} {letter}"
    return f"{n:,.0f}" if n == int(n) else f"{n:.3g}"


def figure(value: float | None, metric: str = "accuracy") -> str:
    """A metric's value in a table, by its own number format."""
    return metric_of(metric).figure(value)


def interval(score: Score | None, metric: str = "accuracy") -> str:
    """A 95 % interval: `[0.81, 0.92]`, or an empty string where there is none."""
    if score is None or not (math.isfinite(score.low) and math.isfinite(score.high)):
        return ""
    return f"[{figure(score.low, metric)}, {figure(score.high, metric)}]"


def with_interval(score: Score | None, metric: str = "accuracy") -> str:
    """`0.87 [0.81, 0.92]`."""
    return f"{figure(score.value if score else None, metric)} {interval(score, metric)}".strip()


def signed(value: float, metric: str = "accuracy") -> str:
    """A change of a metric: `+0.12`, `−3.4`."""
    return f"{'+' if value >= 0 else '−'}{figure(abs(value), metric)}"


def p_value(p: float | None) -> str:
    """`p < 0.001`, `p = 0.034`."""
    if p is None:
        return "–"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def minutes(value: float | None) -> str:
    """Minutes as `4.2 min`, hours from two hours on."""
    if value is None:
        return "–"
    if value >= 120:
        return f"{value / 60:.1f} h"
    return f"{value:.1f} min" if value >= 0.1 else f"{value * 60:.0f} s"


def gib(value: float | None) -> str:
    """`1.3 GiB`."""
    if value is None:
        return "–"
    return f"{value:.1f} GiB" if value >= 0.1 or value == 0 else f"{value * 1024:.0f} MiB"


def usd(value: float | None, figures: int = 1) -> str:
    """`$0.01`; smaller amounts keep one figure, or more, so that they do not read as nothing."""
    if value is None:
        return "–"
    if value == 0:
        return "$0"
    if value < 1e-5:
        return "< $0.00001"
    if value >= 10 ** (figures - 3):  # cents have as many figures
        return f"${value:,.2f}"
    return f"${float(f'{value:.{figures}g}'):.7f}".rstrip("0")


# --- the comparison ----------------------------------------------------------------------------


def shown_metrics(evaluation: Mapping[str, Any]) -> list[str]:
    """The two to four metrics of the closing table, the one that decides (`primary`) first.

    Fields' accuracies come next (a structured answer), then the headline metrics of labels, or of texts where text is
    generated, then those of the user's own.
    """
    names, first = list(section(evaluation.get("metrics"))), str(evaluation.get("primary") or "")
    if not names:  # only baselines so far
        names = list(dict.fromkeys(n for b in section(evaluation.get("baselines")).values() for n in section(b)))
    fields = [n for n in names if n.endswith(".accuracy")][:2]
    if evaluation.get("task") == "classification" and not fields:
        wanted = headline_of("labels")
    elif evaluation.get("task") in ("generation", "chat") or fields:
        wanted = [*fields, *headline_of("texts")][:3]
    else:
        wanted = headline_of("labels" if "accuracy" in names else "texts")
    own = [name for name in section(evaluation.get("own_metrics")) if metric_of(name).headline][:MOST_OWN]
    shown = list(dict.fromkeys([*([first] if first else []), *wanted, *own]))
    return [n for n in shown if n in names] or names[:2]


def contenders(evaluation: Mapping[str, Any], metrics: Sequence[str]) -> list[SystemFacts]:
    """The lines of the comparison: the base model, the cheap alternatives, the tuned model last."""
    baselines = section(evaluation.get("baselines"))
    known = [name for name in CONTENDERS if name in baselines]
    lines = [
        _system_facts(evaluation, name, section(baselines[name]), metrics)
        for name in [*known, *(name for name in baselines if name not in known)]
    ]
    if section(evaluation.get("metrics")):
        own = str(evaluation.get("name") or TUNED)
        lines.append(_system_facts(evaluation, own, evaluation["metrics"], metrics, tuned=True))
    return lines


def _system_facts(
    evaluation: Mapping[str, Any], name: str, values: Mapping[str, Any], metrics: Sequence[str], *, tuned: bool = False
) -> SystemFacts:
    p, delta, verdict = None, None, ""
    own, first = str(evaluation.get("name") or TUNED), reference_system(evaluation)
    if metrics and name != (first or own):
        for pair in evaluation.get("comparisons") or []:
            sides = (pair.get("a"), pair.get("b"))
            if pair.get("metric") == metrics[0] and name in sides and (first or own) in sides:
                sign = 1.0 if sides[1] == (name if first else own) else -1.0
                sign = -sign if lower_is_better(metrics[0]) else sign
                p = number(pair.get("p_holm"))  # the verdict is by this one
                p, verdict = number(pair.get("p")) if p is None else p, str(pair.get("verdict") or "")
                low, high = (sign * (math.nan if v is None else v) for v in corrected_bounds(pair))
                if (value := number(pair.get("delta"))) is not None:
                    delta = Score(sign * value, *((low, high) if sign > 0 else (high, low)))
    return SystemFacts(
        name=name,
        scores=tuple(score_of(values.get(metric)) for metric in metrics),
        p=p,
        delta=delta,
        verdict=verdict,
        tuned=tuned,
    )


def corrected_bounds(pair: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The interval that goes with a comparison's `p_holm`; in an `eval.json` without it, the plain one."""
    low, high = number(pair.get("low_holm")), number(pair.get("high_holm"))
    return (number(pair.get("low")), number(pair.get("high"))) if low is None or high is None else (low, high)


def gain_header(evaluation: Mapping[str, Any]) -> tuple[str, str]:
    """What the gains of a comparison are, for a column's head and in a sentence or two."""
    held, own = reference_system(evaluation), str(evaluation.get("name") or TUNED)
    head = f"gain over {held}" if held else f"gain of {own}"
    what = f"of each line over {held}; positive means that the line is better." if held else ""
    what = what or f"of {own} over each line; positive means that {own} is better."
    return head, f"Gain: {what} {_correction(evaluation)}".strip()


def _correction(evaluation: Mapping[str, Any]) -> str:
    """What intervals and p-values of the gains are corrected for; empty for a single comparison."""
    pairs = [pair for pair in evaluation.get("comparisons") or [] if pair.get("metric") == evaluation.get("primary")]
    tests = max((number(pair.get("tests")) or 1 for pair in pairs), default=1)
    return f"Its interval and p-value are corrected for {tests:.0f} comparisons (Holm)." if tests > 1 else ""


def verdict_line(evaluation: Mapping[str, Any]) -> str:
    """The verdict in one sentence; empty where there is none yet."""
    said = section(evaluation.get("verdict")).get("sentence")
    words = evaluation.get("words")
    return str(said or (words[0] if isinstance(words, list) and words else ""))


def limit_words(facts: RunFacts) -> list[str]:
    """What a run with a limit on its time left out, and what it would take without; nothing where nothing was left out."""
    words = facts.time.get("words")
    return [str(word) for word in words] if isinstance(words, list) else []


EFFECTS = (
    "forgetting",
    "lm_eval",
    "memorisation",
    "canaries",
)  # parts of an evaluation about what tuning did besides its task


def more_words(evaluation: Mapping[str, Any]) -> list[str]:
    """What an evaluation says besides its verdict: the side effects of tuning, consistency, and what requests cost."""
    said = [section(evaluation.get(part)).get("words") for part in EFFECTS]
    lists = [section(evaluation.get("consistency")).get("words"), evaluation.get("ladder_words")]
    return [str(line) for line in [*said, *(line for each in lists if isinstance(each, list) for line in each)] if line]


def reference_system(evaluation: Mapping[str, Any]) -> str:
    """The system that all others were compared with, where that is not the evaluation's own; empty otherwise."""
    own = str(evaluation.get("name") or TUNED)
    pairs = {(str(pair.get("a")), str(pair.get("b"))) for pair in evaluation.get("comparisons") or []}
    firsts = {a for a, _ in pairs}
    return firsts.pop() if len(firsts) == 1 and len(pairs) > 1 and any(own not in pair for pair in pairs) else ""


def score_of(value: object) -> Score | None:
    """A metric of `eval.json`: `{"value", "low", "high"}` or a bare number."""
    if isinstance(value, Mapping):
        bare, low, high = (number(value.get(key)) for key in ("value", "low", "high"))
        if bare is None:
            return None
        return Score(bare, math.nan if low is None else low, math.nan if high is None else high)
    bare = number(value)
    return None if bare is None else Score(bare)


def is_right(sample: Mapping[str, Any], prediction: object = None) -> bool | None:
    """Whether an answer equals the reference, for rows with a label; None where that says little.

    Args:
        sample: a row of `samples.jsonl`.
        prediction: the answer to judge; default: the tuned model's.
    """
    if sample.get("label") is None:
        return None
    if prediction is None and "predicted_label" in sample:  # as the scorer matched it
        return bool(sample["predicted_label"] == sample["label"])
    answer = sample.get("prediction") if prediction is None else prediction
    return _bare(answer) == _bare(sample.get("reference") or sample["label"])


def _bare(text: object) -> str:
    first = str(text or "").strip().split("\n")[0]
    return first.strip(" \t\"'`.,;:!?*").casefold()


# --- what was predicted, what it took ----------------------------------------------------------


@dataclass(frozen=True)
class Promise:
    """A predicted figure and the measured one, written out.

    Args:
        inside: whether it kept to its range.
        words: how it compares: `as predicted`, `took 38 % less`, `took 12 % more`; empty where nothing was predicted.
    """

    name: str
    predicted: str
    actual: str
    inside: bool | None = None
    words: str = ""


def off_words(actual: float | None, low: float | None, high: float | None, expected: float | None) -> str:
    """How a figure compares with its prediction: `as predicted` within the range, else `took 38 % less` or `took 2.1 times as much`."""
    if actual is None or low is None or high is None or not expected:
        return ""
    if low <= actual <= high:
        return "as predicted"
    ratio = actual / expected
    if ratio >= 2:
        return f"took {ratio:.1f} times as much"
    return f"took {abs(100 * (ratio - 1)):.0f}\u00a0% {'more' if ratio > 1 else 'less'}"


def promises(facts: RunFacts) -> list[Promise]:
    """Time, memory and money: predicted against actual. Lines without either figure are left out."""
    run, plan = facts.run, facts.plan
    said = section(run.get("predicted"))
    time, cost, memory = (section(plan.get(key)) for key in ("time", "cost", "memory"))

    def hours(key: str) -> float | None:
        value = number(time.get(key))
        return None if value is None else value * 60

    def first(*values: float | None) -> float | None:
        return next((v for v in values if v is not None), None)

    expected = first(number(said.get("minutes")), hours("hours"))
    low, high = first(number(said.get("low")), hours("low")), first(number(said.get("high")), hours("high"))
    seconds = number(run.get("seconds"))
    took = None if seconds is None else seconds / 60
    span = f"  ({minutes(low)} to {minutes(high)})" if low is not None and high is not None else ""
    peak, real_peak = (
        first(number(said.get("peak_gib")), number(memory.get("peak_gib"))),
        number(run.get("peak_memory_gib")),
    )
    price, paid = first(number(said.get("usd")), number(cost.get("usd"))), number(run.get("usd"))
    dearest = first(number(cost.get("high")), None if price is None else price * 1.25)

    def line(
        name: str,
        predicted: str,
        actual: str,
        value: float | None,
        bounds: tuple[float | None, float | None, float | None],
    ) -> Promise:
        words = off_words(value, *bounds)
        return Promise(name, predicted, actual, words == "as predicted" if words else None, words)

    near = (None, None) if peak is None else (0.85 * peak, 1.15 * peak)
    cheapest = first(number(cost.get("low")), None if price is None else price * 0.75)
    lines = [
        line("training time", minutes(expected) + (span if expected is not None else ""), minutes(took), took, (low, high, expected)),
        line("peak memory", gib(peak), gib(real_peak), real_peak, (*near, peak)),
        line("cost", usd(price), usd(paid), paid, (cheapest, dearest, price)),
    ]  # fmt: skip
    return [line for line in lines if (line.predicted, line.actual) != ("–", "–")]


def used(run: Mapping[str, Any]) -> str:
    """The model FLOP utilisation in `run.json` with the peak that it is a share of; empty where it was not measured."""
    mfu = section(run.get("mfu"))
    value, peak = number(mfu.get("value")), number(mfu.get("peak_gflops"))
    if peak is None:
        return ""
    if value is None or value > 1:
        return f"not known: the machine was busy when its peak was measured ({peak:,.0f} GFLOP/s)"
    return f"{100 * value:.0f}\u00a0% of {peak:,.0f} GFLOP/s, the measured peak"
