"""The regression gate: may this candidate replace what is in use? Pass, fail, or not enough evidence to say.

All that a suite states must hold, so a pass needs no correction for several tests (intersection-union: Berger 1982).
"""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.files import content_hash, sha256_file
from tuneloop.core.patterns import compile_pattern
from tuneloop.core.units import counted
from tuneloop.evaluation.evaluate import ScoredAnswers, on_shared_rows, some_rows
from tuneloop.evaluation.gate.non_inferiority import Outcome, by_metric_and_slice, in_words, non_inferiority
from tuneloop.evaluation.gate.suite import ForgettingLimit, LatencyLimit, MetricLimit, MustPass, Status, Suite
from tuneloop.evaluation.metrics.declared import metric_of
from tuneloop.evaluation.metrics.labels import label_matcher
from tuneloop.evaluation.metrics.objects import right_as_a_whole
from tuneloop.evaluation.metrics.text import exact_match
from tuneloop.evaluation.results import evaluated_again, read_evaluation
from tuneloop.records import evaluation as records
from tuneloop.records.completion import Completion
from tuneloop.records.record import read_record, write_record
from tuneloop.records.rows import Row, last_user_turn, references_of

OUTCOMES: dict[Outcome, Status] = {"shown": "pass", "refuted": "fail", "not shown": "inconclusive"}
Ask = Callable[[Sequence[Row]], list[Completion]]


@dataclass(frozen=True)
class Side:
    """The candidate or the base: an evaluation's folder, read; `baseline` names the system in it, where it is one."""

    place: str
    folder: Path
    manifest: records.EvaluationManifest
    samples: dict[str, records.Sample]
    evaluation: ScoredAnswers = field(repr=False)
    baseline: str = ""

    @property
    def name(self) -> str:
        """The system's name in the evaluation."""
        return self.baseline or self.manifest.name


def read_side(source: str) -> Side:
    """Read `FOLDER` or `FOLDER:BASELINE`. Raises UserError: no complete evaluation there."""
    path, system = records.split_place(source)
    manifest, samples, baseline = read_evaluation(path, system)
    evaluation = evaluated_again(path, manifest, samples, baseline)
    return Side(source, path, manifest, {sample.id: sample for sample in samples}, evaluation, baseline)


def apply_suite(
    candidate: str,
    base: str,
    suite: Suite | float,
    *,
    out: str = "",
    model_of: Callable[[Path], Ask | None],
    columns_of: Callable[[Path], Mapping[str, Mapping[str, Any]]],
) -> tuple[records.GateResult, Path | None]:
    """Judge a candidate against what is in use, and store the result as `gate.json`.

    Args:
        candidate, base: `FOLDER` or `FOLDER:BASELINE`.
        suite: what must hold; a number: not worse by more than so many points.
        out: folder for the result; default: the candidate's. Of a baseline in a folder none is stored, since it is not
            a result of the run that the folder belongs to.
        model_of, columns_of: see `ask` and `fields` of `run_gate`, of the candidate's folder.

    Returns:
        The result, and its file if it was stored.

    Raises:
        UserError: see `run_gate`.
    """
    sides = read_side(candidate), read_side(base)
    folder, baseline = sides[0].folder, sides[0].baseline
    if isinstance(suite, Suite):
        ask = None if baseline else model_of(folder)
        result = run_gate(suite, *sides, ask=ask, fields=columns_of(folder))
    else:
        result = run_margin_gate(suite, *sides)
    path = None if baseline and not out else (Path(out) if out else folder) / records.GateResult.file
    if path:
        write_record(path, result)
    return result, path


def run_gate(
    suite: Suite,
    candidate: Side,
    base: Side,
    *,
    ask: Ask | None = None,
    fields: Mapping[str, Mapping[str, Any]] | None = None,
) -> records.GateResult:
    """Compare the candidate with what the suite demands; the result is what `gate.json` holds.

    `candidate`, `base`: two evaluations of the same rows. `ask`: gets answers from the candidate's model, for new
    prompts and to ask failed rows again. `fields`: row id -> further fields that slices may name (columns of the data
    set). Raises UserError: the suite names a metric, field or row that the evaluations don't have, or their rows
    differ.
    """
    fields = fields or {}
    _refuse_itself(candidate, base)
    shared = _sides_on_shared_rows(candidate, base)  # before any request, which takes a while
    rows_passed, flaky = _must_pass(suite, candidate, ask)
    rows = counted(shared[0].evaluation.n, "row")
    part = f" (on the {rows} that both answered)" if shared[0] is not candidate else ""
    checks = [
        *rows_passed,
        *(replace(c, message=c.message + part) for limit in suite.metrics for c in _metric(limit, *shared, fields)),
        *([_forgetting(suite.forgetting, candidate)] if suite.forgetting else []),
        *(_latency(suite.latency, candidate, base) if suite.latency else []),
    ]
    statuses = {check.status for check in checks}
    status: Status = "fail" if "fail" in statuses else "inconclusive" if "inconclusive" in statuses else "pass"
    name = records.SuiteName(name=suite.name, hash=content_hash(suite))
    return _result(status, name, candidate, base, checks, flaky)


def _refuse_itself(candidate: Side, base: Side) -> None:
    if candidate.folder.resolve() == base.folder.resolve() and candidate.name == base.name:
        next_step = "--against takes what is in use today: another run, or RUN:few-shot for a baseline in it"
        raise UserError("The candidate and the base are the same evaluation", where=base.place, next_step=next_step)


def _result(
    status: Status,
    suite: records.SuiteName,
    candidate: Side,
    base: Side,
    checks: list[records.GateCheck],
    flaky: list[records.FlakyRow],
) -> records.GateResult:
    sides = [records.GateSide(place=s.place, name=s.name, model=s.manifest.model) for s in (candidate, base)]
    return records.GateResult(
        status=status,
        suite=suite,
        candidate=sides[0],
        against=sides[1],
        evaluation=sha256_file(candidate.folder / records.EVALUATION),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        checks=checks,
        flaky=flaky,
    )


def _sides_on_shared_rows(candidate: Side, base: Side) -> tuple[Side, Side]:
    """Both sides on the rows that both answered, in the candidate's order."""
    shared = on_shared_rows({side.place: side.evaluation for side in (candidate, base)})
    if shared is None:
        return candidate, base
    ids = {row.id for row in shared[candidate.place].rows}
    sides = [
        replace(side, evaluation=shared[side.place], samples={i: s for i, s in side.samples.items() if i in ids})
        for side in (candidate, base)
    ]
    return sides[0], sides[1]


def status(run: Path | str) -> Literal["pass", "fail", "inconclusive", "stale", "none"]:
    """What the gate said about a run: `none` if it never ran, `stale` if the run was evaluated again since."""
    run = Path(run)
    if not (run / records.GateResult.file).is_file():
        return "none"
    result = read_record(records.GateResult, run / records.GateResult.file)
    evaluation = run / records.EVALUATION
    if not evaluation.is_file() or sha256_file(evaluation) != result.evaluation:
        return "stale"
    return result.status


def gate_for_release(run: Path | str, *, force: bool = False) -> dict[str, Any]:
    """What is to be recorded of the gate with something made from a run: `status`, `suite`, `forced`. A run that no
    gate has judged may pass: gates are a choice. `forced` says that one was overruled. Raises UserError: the gate is
    not green, or judged an earlier evaluation, and `force` is not given."""
    verdict = status(run)
    barred = verdict not in ("pass", "none")
    if barred and not force:
        result = read_record(records.GateResult, run)
        # A red gate also holds lines without enough evidence: the one that made it red is named.
        unmet = [check.message for check in result.checks if check.status == verdict]
        messages = {"fail": "The gate is red", "inconclusive": "The gate has not enough evidence"}
        raise UserError(
            messages.get(verdict, "The gate judged an earlier evaluation"),
            where=f"{Path(run) / 'gate.json'}" + (f": {unmet[0]}" if unmet and verdict != "stale" else ""),
            next_step="fix it and run `tuneloop gate` again, or overrule it with --force",
        )
    suite = read_record(records.GateResult, run).suite if verdict != "none" else None
    return {"status": verdict, "suite": suite and suite.model_dump(), "forced": barred}


def _must_pass(suite: Suite, side: Side, ask: Ask | None) -> tuple[list[records.GateCheck], list[records.FlakyRow]]:
    demands = suite.must_pass
    positions = {row.id: i for i, row in enumerate(side.evaluation.rows)}
    for demand in demands:
        if demand.id and demand.id not in positions:
            next_step = did_you_mean(demand.id, positions, f"ids are in {side.folder / 'samples.jsonl'}")
            raise UserError(f"The evaluation has no row {demand.id!r}", where="must_pass", next_step=next_step)
    tried = [
        [_passes(d, side, positions[d.id], side.evaluation.answers[positions[d.id]])] if d.id else [] for d in demands
    ]
    again = [i for i, outcomes in enumerate(tried) if not all(outcomes) or not outcomes]
    if ask is not None and again:
        # A new prompt is sent once before it is repeated.
        for attempt in range(suite.repeat + 1):
            due = [i for i in again if not tried[i] or (attempt and not all(tried[i]))]
            if due:
                answers = ask([_row(demands[i], side, positions) for i in due])
                for i, answer in zip(due, answers, strict=True):
                    at = positions[demands[i].id] if demands[i].id else None
                    tried[i].append(_passes(demands[i], side, at, answer))
    checks, flaky = [], []
    for demand, outcomes in zip(demands, tried, strict=True):
        name = demand.id or demand.prompt[:80]
        label = name
        if demand.id:  # an id alone does not say which row it is
            question = last_user_turn(side.evaluation.rows[positions[demand.id]])
            label = f'{demand.id} "{textwrap.shorten(question, 60, placeholder=" …")}"'
        passed, n = sum(outcomes), len(outcomes)
        if not n:
            problem = f"{label}: could not be queried: this evaluation has no model available"
            checks.append(records.GateCheck("must_pass", name, "inconclusive", problem, rows=0))
            continue
        outcome: Status = "pass" if passed == n else "fail" if not passed else suite.flaky
        sometimes = f"flaky: passes {passed} of {n} times" if passed else f"fails, {n} of {n} times"
        message = f"{label}: {'passes' if passed == n else sometimes}"
        checks.append(records.GateCheck("must_pass", name, outcome, message, value=passed / n, limit=1.0, rows=n))
        if len(set(outcomes)) > 1:
            flaky.append(records.FlakyRow(row=name, passed=sum(outcomes), asked=len(outcomes)))
    return checks, flaky


def _row(demand: MustPass, side: Side, positions: Mapping[str, int]) -> Row:
    if demand.id:
        row = side.evaluation.rows[positions[demand.id]]
        turns = side.samples[demand.id].messages
        return row if not turns else Row(row.id, [*turns, row.messages[-1]], row.label, row.tools, row.meta)
    turns = [{"role": "system", "content": demand.system}] if demand.system else []
    turns += [{"role": "user", "content": demand.prompt}, {"role": "assistant", "content": demand.equals or ""}]
    return Row(id=content_hash(turns)[:16], messages=turns)


def _passes(demand: MustPass, side: Side, at: int | None, answer: Completion) -> bool:
    text = answer.text.strip().casefold()
    if demand.has_condition:
        present = [demand.contains] if isinstance(demand.contains, str) else demand.contains
        absent = [demand.lacks] if isinstance(demand.lacks, str) else demand.lacks
        return (
            (demand.equals is None or text == demand.equals.strip().casefold())
            and all(part.casefold() in text for part in present)
            and not any(part.casefold() in text for part in absent)
            and (demand.matches is None or compile_pattern(demand.matches).search(answer.text) is not None)
        )
    assert at is not None  # a new prompt has a condition
    row, labels = side.evaluation.rows[at], side.evaluation.labels
    if labels is not None and row.label is not None:
        return label_matcher(labels, {row.answer: row.label})(answer.text) == row.label
    if "object_accuracy" in side.evaluation.metrics:
        return right_as_a_whole([references_of(row) for row in side.evaluation.rows], at, answer.text)
    return exact_match(references_of(row), answer.text) == 1.0


def _metric(
    limit: MetricLimit, candidate: Side, base: Side, fields: Mapping[str, Mapping[str, Any]]
) -> Iterator[records.GateCheck]:
    names = list(candidate.evaluation.metrics)
    if limit.metric not in names:
        next_step = did_you_mean(limit.metric, names, f"it has {', '.join(names)}")
        raise UserError(f"The evaluation has no metric {limit.metric!r}", where="metrics", next_step=next_step)
    for name, ids in _slices(limit, candidate, fields):
        sides = [side.evaluation if ids is None else some_rows(side.evaluation, ids) for side in (base, candidate)]
        if limit.margin is not None:
            yield _margin(limit.metric, name, limit.margin, *sides)
        if limit.at_least is not None:
            yield _bound(limit.metric, name, sides[1], limit.at_least, above=True)
        if limit.at_most is not None:
            yield _bound(limit.metric, name, sides[1], limit.at_most, above=False)


def _slices(
    limit: MetricLimit, side: Side, fields: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, set[str] | None]]:
    """(name, row ids) of the rows that an entry speaks of; None: all."""
    if not limit.slice and not limit.by:
        return [("", None)]
    ids = set(side.samples)
    for key, demand in limit.slice.items():
        values = _values(key, side, fields)
        ids &= {row for row, value in values.items() if str(value) == str(demand)}
        if not ids:
            options = ", ".join(sorted({str(value) for value in values.values()})[:12])
            raise UserError(f"No row has {key}: {demand}", where="metrics.slice", next_step=f"its values are {options}")
    name = "".join(f" [{key} {value}]" for key, value in limit.slice.items())
    if not limit.by:
        return [(name, ids)]
    groups: dict[str, set[str]] = defaultdict(set)
    for row, value in _values(limit.by, side, fields).items():
        if row in ids:
            groups[str(value)].add(row)
    large = {value: rows for value, rows in groups.items() if len(rows) >= limit.min_rows}
    if not large:
        message = f"No value of {limit.by} has {counted(limit.min_rows, 'row')}"
        raise UserError(message, where="metrics.min_rows", next_step="lower min_rows")
    return [(f"{name} [{limit.by} {value}]", rows) for value, rows in sorted(large.items())]


def _values(key: str, side: Side, fields: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    value_of: dict[str, Any] = {}
    for row, sample in side.samples.items():
        places = (vars(sample), sample.meta, fields.get(row) or {})
        values = [value for section in places if (value := section.get(key)) is not None]
        value_of |= {row: values[0]} if values else {}
    if not value_of:
        names = ", ".join(sorted({k for columns in fields.values() for k in columns} | {"label"}))
        raise UserError(f"The rows have no field {key!r}", where="metrics", next_step=f"slices by {names}")
    return value_of


def _title(metric: str, rows: str) -> str:
    declared = metric_of(metric)
    return f"{declared.title}{' (lower is better)' if declared.lower_is_better else ''}{rows}"


def _margin(metric: str, rows: str, margin: float, base: ScoredAnswers, candidate: ScoredAnswers) -> records.GateCheck:
    name, title = f"{metric}{rows}", _title(metric, rows)
    loss = non_inferiority(metric, margin, base, candidate)
    gain, status = loss.gain, OUTCOMES[loss.outcome]
    if metric not in candidate.metrics or metric not in base.metrics:
        return records.GateCheck("metric", name, status, f"{title}: not measured on both", limit=-margin)
    if loss.low is None or loss.high is None:
        message = f"{title}: gain {gain:+.4g} over the base, margin {margin:g} (no interval: the value alone decides)"
        return records.GateCheck("metric", name, status, message, gain, limit=-margin, rows=loss.rows)
    message = f"{title}: gain {gain:+.4g} [{loss.low:+.4g}, {loss.high:+.4g}] over the base, margin {margin:g}"
    message += f"; about {loss.rows_needed:,} rows would settle it" if loss.rows_needed else ""
    return records.GateCheck("metric", name, status, message, gain, loss.low, loss.high, -margin, loss.rows)


def run_margin_gate(points: float, candidate: Side, base: Side) -> records.GateResult:
    """Whether a candidate is not worse than the base by more than so many points, without a suite.

    The metric that decides must show it. Another headline metric or a slice of the rows fails the gate where it is
    refuted there. See `non_inferiority.by_metric_and_slice`.

    Raises:
        UserError: the sides are the same, or their rows differ.
    """
    _refuse_itself(candidate, base)
    shared = _sides_on_shared_rows(candidate, base)
    checks = []
    for loss in by_metric_and_slice(points, shared[1].evaluation, shared[0].evaluation):
        name = f"{loss.metric} [{loss.part}]" if loss.part else loss.metric
        status, gain = OUTCOMES[loss.outcome], None if math.isnan(loss.gain) else loss.gain
        checks.append(
            records.GateCheck(
                "metric", name, status, in_words(loss), gain, loss.low, loss.high, -loss.margin, loss.rows
            )
        )
    whole: Status = "fail" if any(check.status == "fail" for check in checks) else checks[0].status
    name = f"not worse by more than {points:g} points"
    suite = records.SuiteName(name=name, hash=content_hash([name]))
    return _result(whole, suite, candidate, base, checks, [])


def _bound(metric: str, rows: str, candidate: ScoredAnswers, limit: float, *, above: bool) -> records.GateCheck:
    name, title = f"{metric}{rows}", _title(metric, rows)
    if metric not in candidate.metrics:
        message = f"{title}: not measured on these rows"
        return records.GateCheck("metric", name, "inconclusive", message, rows=candidate.n)
    score = candidate.metrics[metric]
    return replace(_within(title, "metric", score, limit, above=above, rows=candidate.n), name=name)


def _within(
    title: str, kind: str, score: records.Estimate, limit: float, *, above: bool, rows: int | None = None
) -> records.GateCheck:
    bare = math.isnan(score.low) or math.isnan(score.high)
    low, high = (score.value, score.value) if bare else (score.low, score.high)
    worst, best, edge = (low, high, limit) if above else (-high, -low, -limit)
    status: Status = "pass" if worst >= edge else "fail" if best < edge else "inconclusive"
    text = f"{score.value:.4g}" + ("" if bare else f" [{low:.4g}, {high:.4g}]")
    message = f"{title}: {text}, at {'least' if above else 'most'} {limit:g}"
    check = records.GateCheck(kind, title, status, message, score.value, limit=limit, rows=rows)
    return check if bare else replace(check, low=low, high=high)


def _forgetting(limit: ForgettingLimit, side: Side) -> records.GateCheck:
    measured = side.manifest.forgetting
    if measured is None or math.isnan(measured.score.value):
        message = "forgetting: not measured in this evaluation"
        return records.GateCheck("forgetting", "forgetting", "inconclusive", message, limit=limit.at_most)
    return _within("forgetting", "forgetting", measured.score, limit.at_most, above=False)


def _latency(limit: LatencyLimit, candidate: Side, base: Side) -> Iterator[records.GateCheck]:
    seconds, base_seconds = _seconds(candidate), _seconds(base)
    ratio = seconds / base_seconds if seconds and base_seconds else None
    limits = (("seconds a row", seconds, limit.seconds_per_row), ("times the base's time", ratio, limit.ratio))
    for title, value, most in limits:
        if most is not None and value is None:
            yield records.GateCheck("latency", title, "inconclusive", f"latency: {title} not measured", limit=most)
        elif most is not None and value is not None:
            yield _within(title, "latency", records.Estimate(value), most, above=False, rows=candidate.evaluation.n)


def _seconds(side: Side) -> float | None:
    cost = side.manifest.costs.get(side.name)
    return cost.seconds / side.evaluation.n if cost and cost.seconds > 0 else None
