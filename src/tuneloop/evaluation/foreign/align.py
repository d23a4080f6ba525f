"""Evaluations by other tools on the items that all of them have: aligned by id or by input, ready for `compare`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.stats.intervals import Z80, Z95, PairedMean
from tuneloop.core.units import counted, verb
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.deciding import IMPORTED
from tuneloop.evaluation.evaluate import ScoredAnswers, evaluate
from tuneloop.evaluation.foreign.record import (
    ForeignEvaluation,
    ForeignItem,
    is_cost,
    key_of,
    less_is_better,
    named,
    text_of,
)
from tuneloop.evaluation.metrics.custom import own_metric
from tuneloop.evaluation.metrics.declared import declare, metric_of
from tuneloop.evaluation.paired import PairedRows
from tuneloop.evaluation.scoring import AnswerStats
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Comparison
from tuneloop.records.metric import Metric, Scale
from tuneloop.records.rows import Message, Row

DIFFERENCES = (0.01, 0.02, 0.05)  # for which the items that show them are counted
POSITIONS = ("idx", "index", "row_id")  # columns of ids that may be the places of rows
ALIKE = 0.8  # correlation of the item scores of two versions of one system; two unrelated systems have 0


@dataclass(frozen=True)
class Refereeing:
    """How evaluations by other tools are compared: the metric that decides, and what tells items of one source."""

    metric: str = ""
    cluster: str = ""
    slices: list[str] | None = None
    seed: int = 0


@dataclass(frozen=True)
class SharedItems:
    """Items that all evaluations have. `rows`: their items, one of each evaluation; `by`: `id` or `input`."""

    rows: list[list[ForeignItem]]
    by: str
    notes: list[str] = field(default_factory=list)


def shared_items(evaluations: Sequence[ForeignEvaluation]) -> SharedItems:
    """The items that all evaluations have, by id; by input where more are shared that way.

    An id under which two evaluations have different prompts is left out and named.

    Raises:
        UserError: fewer than two items are shared, or most ids mean different prompts.
    """
    by_id = [e.items for e in evaluations]
    by_key = [_by_key(e) for e in evaluations]
    first, *others = by_id
    ids = [i for i in first if all(i in items for items in others)]
    clashes = [i for i in ids if not _same_prompt([items[i] for items in by_id])]
    keys = [k for k in by_key[0] if all(k in items for items in by_key[1:])]
    same = [i for i in ids if i not in set(clashes)]
    tables, shared, by = (by_key, keys, "input") if len(keys) > len(same) else (by_id, same, "id")
    places = " and ".join(e.place for e in evaluations)
    if by == "id" and 2 * len(clashes) > len(ids):
        message = f"The same ids mean different prompts: {len(clashes)} of {counted(len(ids), 'shared id')}"
        step = "evaluate both on the same version of the items, with the same ids"
        raise UserError(message, where=f"{places}: {named(clashes)}", next_step=step)
    if len(shared) < 2:
        examples = "; ".join(f"{e.place}: {named(list(e.items))}" for e in evaluations)
        message = f"{counted(len(shared), 'item').capitalize() if shared else 'No item'} is shared, by id or by input"
        raise UserError(message, where=examples, next_step="evaluate all on the same items, with ids in common")
    if by == "id":
        _refuse_positions(evaluations)
    notes = []
    if by == "id" and clashes:
        are = f"{counted(len(clashes), 'id')} {verb(len(clashes), 'has', 'have')} different prompts"
        notes.append(f"{are} and {verb(len(clashes), 'is', 'are')} left out: {named(clashes)}.")
    if by == "input":
        notes.append("Items are aligned by their input: their ids differ.")
    for evaluation, items in zip(evaluations, tables, strict=True):
        if alone := [items[k].id for k in items if k not in set(shared) and items[k].id not in set(clashes)]:
            has = f"{evaluation.place} has {counted(len(alone), 'item')} that not all have"
            notes.append(f"{has}, left out: {named(alone)}.")
    return SharedItems([[items[k] for items in tables] for k in shared], by, notes)


def _refuse_positions(evaluations: Sequence[ForeignEvaluation]) -> None:
    """Ids that are the places of rows in their files say nothing of what is in the rows: a sorted file has the same."""
    for evaluation in evaluations:
        ids = list(evaluation.items)
        counting = evaluation.id_column in POSITIONS and any(
            ids == [str(k) for k in range(first, first + len(ids))] for first in (0, 1)
        )
        if counting and not any(item.key for item in evaluation.items.values()):
            message = f"Column {evaluation.id_column!r} only counts the rows: row 5 need not be the same item in both"
            step = "add a column with ids of the items, or with their inputs"
            raise UserError(message, where=evaluation.place, next_step=step)


def _by_key(evaluation: ForeignEvaluation) -> dict[str, ForeignItem]:
    """Items by their input; those with the same one as one item."""
    items: dict[str, ForeignItem] = {}
    for item in evaluation.items.values():
        if item.key and item.key in items:
            for name, values in item.scores.items():
                before = items[item.key].scores
                before[name] = [*before.get(name, ()), *values]
        elif item.key:
            items[item.key] = ForeignItem(**{**vars(item), "scores": dict(item.scores)})
    return items


def _same_prompt(items: Sequence[ForeignItem]) -> bool:
    """Whether no two inputs of the same kind differ."""
    kinds: dict[str, str] = {}
    for item in items:
        kind, _, digest = item.key.partition(":")
        if kinds.setdefault(kind, digest) != digest and digest:
            return False
    return True


def as_scored(evaluations: Sequence[ForeignEvaluation], how: Refereeing = Refereeing()) -> dict[str, ScoredAnswers]:
    """Evaluations on the items that they share, by place, as `compare` takes them.

    An item's value is the mean over its epochs; those that ended in an error count as failures. So does an item without
    a value in one evaluation.

    Raises:
        UserError: nothing is shared, no metric is, the metric of `how` is not, or scores are on different scales.
    """
    shared = shared_items(evaluations)
    metrics = [n for n in evaluations[0].metrics if all(n in e.metrics for e in evaluations)]
    if not metrics:
        listing = "; ".join(f"{e.place}: {', '.join(e.metrics[:5])}" for e in evaluations)
        raise UserError("No metric is in all of them", where=listing, next_step="score all with the same scorers")
    if how.metric and how.metric not in metrics:
        step = did_you_mean(how.metric, metrics, f"choose one of {', '.join(metrics)}")
        raise UserError(f"No metric {how.metric!r} is in all of them", where="--metric", next_step=step)
    for name in metrics:
        _refuse_other_scales(evaluations, name)
    declare(_metric(evaluations, name) for name in metrics)
    tables = [
        {n: [row[i].mean(n, _worst(evaluations, n)) for row in shared.rows] for n in metrics}
        for i in range(len(evaluations))
    ]
    notes = [*shared.notes, *_missing_as_failures(evaluations, shared, tables, metrics)]
    metrics = [n for n in metrics if sum(not math.isnan(x) for x in tables[0][n]) > 1]
    if not metrics or (how.metric and how.metric not in metrics):
        message = f"No two items have a score of {how.metric or 'any metric'} in all of them"
        raise UserError(
            message, where=" and ".join(e.place for e in evaluations), next_step="see the errors in the files"
        )
    for e in evaluations:
        if extra := [n for n in e.metrics if n not in metrics]:
            notes.append(f"Only in {e.place}, not compared: {', '.join(extra[:5])}.")
    if (most := max(e.epochs for e in evaluations)) > 1:
        notes.append(f"Scores are means over the epochs of an item, up to {most} of them.")
    rows = [_row(items[0]) for items in shared.rows]
    settings = {"cluster": how.cluster or None, "slices": how.slices, "primary": how.metric or None}
    config = EvaluateConfig.model_validate(settings)
    scored = {}
    for i, e in enumerate(evaluations):
        answers = [Completion(items[i].answer) for items in shared.rows]
        measured = AnswerStats(row_scores={n: tables[i][n] for n in metrics}, complete=True)
        evaluation = evaluate(
            rows, answers, task=IMPORTED, labels=None, config=config, seed=how.seed, measured=measured
        )
        evaluation.notes[:0] = [
            *(notes if i == len(evaluations) - 1 else ()),
            *(f"{e.place}: {note}" for note in e.notes),
        ]
        scored[e.place] = evaluation
    return scored


def _missing_as_failures(
    evaluations: Sequence[ForeignEvaluation],
    shared: SharedItems,
    tables: Sequence[dict[str, list[float]]],
    metrics: Sequence[str],
) -> list[str]:
    """Fill in the worst value where an item has a score in some evaluations and none in others, since answers fail
    where a system is bad: left out, they would hide a loss. Costs and times are left out instead, as is what has no
    score in any. A note for each metric and evaluation."""
    notes = []
    for name in metrics:
        cost, worst = is_cost(name), _worst(evaluations, name)
        some = [k for k in range(len(shared.rows)) if any(not math.isnan(table[name][k]) for table in tables)]
        unpaired = [k for k in some if any(math.isnan(table[name][k]) for table in tables)]
        for evaluation, table in zip(evaluations, tables, strict=True):
            missing = [k for k in some if math.isnan(table[name][k])]
            for k in missing:
                table[name][k] = worst
            if missing:
                lack = f"{counted(len(missing), 'item')} {verb(len(missing), 'has', 'have')} no score of {name}"
                counts = "does not count" if cost else f"counts as {worst:g}" if len(missing) == 1 else ""
                counts = counts or ("do not count" if cost else f"count as {worst:g}, the worst value")
                ids = named([shared.rows[k][0].id for k in missing])
                notes.append(f"{lack} in {evaluation.place} and {counts}: {ids}.")
        for k in unpaired if cost else ():
            for table in tables:
                table[name][k] = math.nan
        if none := len(shared.rows) - len(some):
            notes.append(f"{counted(none, 'item')} {verb(none, 'has', 'have')} no score of {name} in any of them.")
    return notes


def _worst(evaluations: Sequence[ForeignEvaluation], name: str) -> float:
    """The worst value of a metric, of one without limits the worst one seen; NaN: it is a cost, and no failure."""
    declared = metric_of(name)
    lowest, highest = 0.0, declared.out_of
    if declared.scale == "from 0":
        values = [v for e in evaluations for item in e.items.values() for v in item.scores.get(name, ()) if v == v]
        lowest, highest = min(values, default=0.0), max(values, default=0.0)
    return math.nan if is_cost(name) else highest if declared.lower_is_better else lowest


def _refuse_other_scales(evaluations: Sequence[ForeignEvaluation], name: str) -> None:
    """Shares of 1 are not compared with percent."""
    values = [[v for item in e.items.values() for v in item.scores.get(name, ()) if v == v] for e in evaluations]
    highest = [max(map(abs, scores)) for scores in values]
    most, least = max(highest), min(highest)
    if is_cost(name) or not 0 < least <= 1 < most or most < 10:
        return
    places = [e.place for e in evaluations]
    small, large = places[highest.index(least)], places[highest.index(most)]
    message = f"{name} goes up to {least:g} in {small} and to {most:g} in {large}"
    step = "give both on one scale: divide percent by 100"
    raise UserError(message, where=" and ".join(places), next_step=step)


def with_absent(pair: Comparison, evaluations: Sequence[ForeignEvaluation]) -> Comparison:
    """A comparison, to be `adjusted`, whose bounds for a margin hold whatever the items would have scored that one of
    the two lacks."""
    of_place = {e.place: e for e in evaluations}
    n, declared, by_key = pair.compared, metric_of(pair.metric), shared_items(evaluations).by == "input"
    if not isinstance(pair, PairedRows) or not n or is_cost(pair.metric) or declared.scale == "from 0":
        return pair
    a, b = (set(_by_key(of_place[x]) if by_key else of_place[x].items) for x in (pair.a, pair.b))
    lacking = (len(a - b), len(b - a)) if not declared.lower_is_better else (len(b - a), len(a - b))
    return replace(pair, margin_at=partial(_bounds_with_absent, pair.margin_at, n, lacking, declared.out_of))


def _bounds_with_absent(
    margin_at: Callable[..., tuple[float, float]], n: int, lacking: tuple[int, int], reach: float, level: float
) -> tuple[float, float]:
    """Bounds of the mean over n rows and those that one side lacks, which pull it down and up by `reach` each."""
    low, high = margin_at(level=level)
    down, up = lacking
    return (n * low - down * reach) / (n + down), (n * high + up * reach) / (n + up)


def _metric(evaluations: Sequence[ForeignEvaluation], name: str) -> Metric:
    """A metric by its name and values: `share` of right and wrong ones, in sentences in points, else by their range.
    Costs and times are shown and compared, and no verdict rests on them."""
    items = (item for e in evaluations for item in e.items.values())
    values = {v for item in items for v in item.scores.get(name, ()) if not math.isnan(v)}
    scale: Scale = "0..1" if min(values) >= 0 and max(values) <= 1 else "from 0"
    scale = "share" if values <= {0.0, 0.5, 1.0} else scale
    better, headline = "lower" if less_is_better(name) else "higher", "" if is_cost(name) else "own"
    return own_metric(name, better=better, scale=scale, headline=headline)


def _row(item: ForeignItem) -> Row:
    turns: list[Message] = [{"role": "user", "content": item.text}] if item.text else []
    return Row(item.id, [*turns, {"role": "assistant", "content": item.reference}], meta=dict(item.meta))


def of_ours(source: str, evaluation: ScoredAnswers) -> ForeignEvaluation:
    """An evaluation of ours in the same record, to be compared with those of other tools on the same rows."""
    items = {}
    for i, row in enumerate(evaluation.rows):
        scores = {name: [float(values[i])] for name, values in evaluation.row_scores.items()}
        text = text_of(row.prompt)
        answer = evaluation.answers[i].text
        items[row.id] = ForeignItem(row.id, key_of(text), text, row.answer, answer, scores, dict(row.meta))
    return ForeignEvaluation(source, "tuneloop", "", items, list(evaluation.notes))


# --- before anything is compared -----------------------------------------------------------------


@dataclass(frozen=True)
class Power:
    """What an evaluation can show, from one system's scores alone: the smallest difference seen with 80 % power.

    Args:
        items, clusters: how many; without clusters each item is one.
        unrelated: between two systems that agree no more than chance; `alike`: between two versions of one system,
            whose item scores correlate by 0.8.
        tool: that wrote the evaluation.
        items_for: difference -> items that would show it between two versions of one system; of metrics up to 1.
    """

    metric: str
    items: int
    clusters: int
    unrelated: float
    alike: float
    items_for: dict[str, int]
    tool: str = ""


def power_of(evaluation: ScoredAnswers) -> Power:
    """The variance of a paired difference is 2 (1 - r) times that of a mean; see Miller 2024, section 5."""
    scores = evaluation.row_scores[evaluation.primary]
    mean = PairedMean.of(scores, evaluation.clusters)
    unrelated = (Z95 + Z80) * math.sqrt(2) * mean.error
    alike = unrelated * math.sqrt(1 - ALIKE)
    n = sum(not math.isnan(score) for score in scores)
    sizes = DIFFERENCES if metric_of(evaluation.primary).scale in ("share", "0..1") and alike > 0 else ()
    needed = {f"{size:g}": math.ceil(n * (alike / size) ** 2) for size in sizes}
    return Power(evaluation.primary, n, mean.groups, unrelated, alike, needed)
