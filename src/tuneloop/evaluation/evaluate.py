"""Answers to an evaluation: every metric that fits them, with its 95 % interval; again on rows that several share."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.stats import intervals as u
from tuneloop.core.stats.intervals import Array, Statistics
from tuneloop.core.units import counted, verb
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.deciding import (
    LabelUse,
    deciding_of,
    field_metric,
    label_counts,
    labels_of_fields,
    primary_metric,
    training_examples,
)
from tuneloop.evaluation.metrics.declared import METRICS, headline_of, lower_is_better, metric_of
from tuneloop.evaluation.scoring import AnswerStats, Scoring, score_answers
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Estimate
from tuneloop.records.metric import Headline
from tuneloop.records.rows import Dataset, Row

Stratum = Callable[[Row], str | None]  # the group of a row, None where it has none

FEWEST_SHARED = 20  # shared rows that are worth a comparison
# The row's conversation, by the names that it usually has.
CLUSTER_NAMES = (
    "conversation_id", "conversation", "dialogue_id", "dialog_id", "dialogue", "session_id", "session", "thread_id",
    "duplicate_cluster", "cluster",
)  # fmt: skip


@dataclass(frozen=True)
class ScoredAnswers:
    """One system's answers to a split, scored. Lists have an entry for each row, in the order of `rows`."""

    task: str  # `classification`, `generation` or `chat`
    rows: list[Row]
    answers: list[Completion]
    labels: list[str] | None  # allowed labels (classification), else None
    predictions: list[str | None]  # the label that each answer names (several: with commas); None without, or outside
    valid: list[bool]  # in the label set, with every requested field, JSON where that is requested
    metrics: dict[str, Estimate]  # name -> value with 95 % interval
    config: EvaluateConfig  # what was measured, and how
    notes: list[str]  # what a reader has to know about these numbers
    signatures: dict[str, str]  # what exactly was computed, by metric
    seed: int  # of the resamples
    statistics: list[Statistics] = field(repr=False, compare=False)  # and draws: for paired comparisons
    draws: dict[str, Array] = field(repr=False, compare=False)
    primary: str  # the metric that decides
    labels_used: dict[str, LabelUse] = field(default_factory=dict)  # of the rows' labels ("") and of fields, by name
    # what can't be found out again from the texts
    measured: AnswerStats = field(default_factory=AnswerStats, repr=False, compare=False)
    clusters: list[int] | None = None  # the cluster of each row; None where rows form none
    code: dict[str, Any] = field(default_factory=dict, compare=False)  # how the answers' programs ended; or empty

    @cached_property
    def row_scores(self) -> dict[str, list[float]]:
        """Metric -> one score a row, for metrics that have one (NaN: the row doesn't count)."""
        return {name: scores for family in self.statistics for name, scores in family.row_scores.items()}

    @property
    def invalid(self) -> int:
        """Number of answers that aren't valid."""
        return self.valid.count(False)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def row_metric(self) -> str:
        """What single rows are judged by: the metric that decides; where rows have no score in it, the nearest."""
        name, dot, _ = self.primary.rpartition(".")
        near = (self.primary, f"{name}{dot}accuracy", "accuracy", "field_accuracy", *headline_of("texts"))
        return next((m for m in near if m in self.row_scores and not lower_is_better(m)), self.primary)

    @property
    def deciding_labels(self) -> LabelUse | None:
        """The use of the labels (or of a field's values) that the deciding metric is about; None where there are
        none."""
        return self.labels_used.get(self.primary.rpartition(".")[0])

    @property
    def headline(self) -> list[str]:
        """The metrics that a verdict rests on, the one that decides first: a significant loss on any of them counts.

        Accuracy and macro-F1 of labels (micro-F1 too where rows have several), the deciding metric of each field of
        `evaluate.fields`, whole answers, fields right and F1 of filled fields of JSON, pass@1, ROUGE-L and chrF of
        texts, the user's scorers, and the share of invalid answers.
        """
        labels = ["micro_f1"] if "subset_accuracy" in self.metrics else []
        fields = [field_metric(name, self.metrics, self.labels_used) for name in self.config.fields]
        kinds: tuple[Headline, ...] = ("JSON", "programs", "texts")
        general = [name for kind in kinds for name in headline_of(kind)]
        custom = [name for name in self.own_metrics if metric_of(name).headline]
        names = [self.primary, *labels, *headline_of("labels"), *fields, *general, *custom]
        names += headline_of("valid answers")
        return [name for name in dict.fromkeys(names) if name in self.metrics]

    @property
    def own_metrics(self) -> list[str]:
        """The metrics of the user's scorers."""
        return [name for name in self.measured.row_scores if name not in METRICS]


def decided_by(metric: str, evaluations: Mapping[str, ScoredAnswers]) -> dict[str, ScoredAnswers]:
    """Systems that are compared, with the same metric that decides, as far as it was measured."""
    return {name: replace(e, primary=metric if metric in e.metrics else e.primary) for name, e in evaluations.items()}


def sample_rows(rows: Sequence[Row], limit: int | None, *, seed: int, stratum: Stratum | None = None) -> list[Row]:
    """At most `limit` rows, a seeded sample in the order of the split, without answers rated bad or of weight 0. A
    smaller sample is a part of every larger one of the same rows, strata and seed. `stratum`: see `sample_order`."""
    rows = [row for row in rows if row.has_reference]
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(sample_order(rows, seed, stratum)[:limit])]


def sample_order(rows: Sequence[Row], seed: int, stratum: Stratum | None = None) -> list[int]:
    """The order in which a seeded sample takes up rows, as places in `rows`.

    Each stratum's rows are spread evenly over the order, from a random start, so that a sample of any size holds each
    stratum by its share (proportional allocation: Cochran, Sampling Techniques, 1977, chapter 5). Results of a small
    sample then vary less than those of a simple random one; the intervals, which assume the latter, are conservative.

    `stratum`: the group of a row, None where it has none; default: its label.
    """
    rng = random.Random(seed)
    shuffled = rng.sample(range(len(rows)), len(rows))
    groups: dict[str | None, list[int]] = {}
    for index in shuffled:
        row = rows[index]
        groups.setdefault(row.label if stratum is None else stratum(row), []).append(index)
    when: dict[int, float] = {}
    for group in groups.values():  # in the order of the shuffle, so that equal rows and seeds give equal starts
        start = rng.random()
        when |= {position: (rank + start) / len(group) for rank, position in enumerate(group)}
    return sorted(shuffled, key=when.__getitem__)


def check_ids(rows: Sequence[Row]) -> None:
    """Refuse rows that share an id: answers, reviews and other runs name them by their ids."""
    counts = Counter(row.id for row in rows)
    if len(counts) != len(rows):
        row_id, times = counts.most_common(1)[0]
        where = f"row {row_id} ({times} times)"
        raise UserError("Some rows have the same id", where=where, next_step="prepare the data set again")


def evaluate(
    rows: Sequence[Row],
    answers: Sequence[Completion],
    *,
    task: str,
    labels: Sequence[str] | None,
    config: EvaluateConfig,
    seed: int,
    measured: AnswerStats | None = None,
) -> ScoredAnswers:
    """Score answers, each metric with its 95 % interval.

    Shares of right answers get Wilson's interval; all else the bias-corrected percentile bootstrap, corpus metrics
    (BLEU, chrF, macro-F1) computed again from each resample. Where rows belong together (a conversation, the same
    prompt), whole clusters are drawn, for shares too.

    `task`: `classification` scores labels (`meta["labels"]`: several a row), all else scores texts. `labels`: allowed
    labels; default: those of the rows. `seed`: of the resamples; systems that are to be compared share it. `measured`:
    what is known apart from the texts. Raises UserError: no rows, another number of answers, repeated ids, no label, a
    bad field, schema or scorer.
    """
    measured = measured or AnswerStats()
    s = Scoring(list(rows), list(answers), config, measured, dict(measured.field_labels))
    _check_rows(s.rows, s.answers, task)
    score_answers(s, task, labels)
    cut = sum(answer.finish == "length" for answer in s.answers)
    if cut:
        were = f"{counted(len(s.answers), 'answer')} {verb(cut, 'was', 'were')}"
        s.notes.append(f"{cut} of {were} cut off at the length limit (evaluate.max_new_tokens).")
    clusters = u.cluster_numbers(cluster_keys(s.rows, s.config.cluster))
    if clusters is not None:
        groups = max(clusters) + 1
        few = " They are few: the intervals are rough." if groups < 20 else ""
        form = f"{counted(len(s.rows), 'row')} {verb(len(s.rows), 'forms', 'form')} {counted(groups, 'cluster')}"
        s.notes.append(f"{form} that belong together; intervals draw clusters.{few}")
    draws = u.bootstrap(s.statistics, len(s.rows), resamples=s.config.bootstrap, seed=seed, clusters=clusters)
    estimates = _estimates(s.statistics, draws, clustered=clusters is not None)
    if s.measured.perplexity is not None and "perplexity" not in estimates:
        estimates["perplexity"] = Estimate(float(s.measured.perplexity), math.nan, math.nan)
    scored = [*config.fields, *s.prose]
    primary = primary_metric(
        task, scored, list(estimates), s.labels_used, choice=config.primary, recorded=measured.deciding
    )
    parts: dict[str, Any] = {f.name: getattr(s, f.name) for f in fields(ScoredAnswers) if hasattr(s, f.name)}
    parts["measured"] = replace(measured, row_scores=s.computed, field_labels=s.field_labels)
    parts |= {"metrics": estimates, "draws": draws, "primary": primary, "clusters": clusters}
    return ScoredAnswers(task=task, seed=seed, **parts)


def score_rows(
    dataset: Dataset,
    rows: Sequence[Row],
    answers: Sequence[Completion],
    config: EvaluateConfig,
    *,
    seed: int,
    further: Sequence[Sequence[str]] = (),
) -> ScoredAnswers:
    """`evaluate` for rows of a data set, whose record and training rows say what its labels are and what decides.

    `further`: more answers to the same prompts (pass@k), a list a row.
    """
    if dataset.task == "classification":
        label_rows = {"": label_counts(dataset)}
    else:
        label_rows = labels_of_fields([row.answer for row in training_examples(dataset)], config.fields)
    field_labels = {name: list(counts) for name, counts in label_rows.items() if name}
    deciding = deciding_of(dataset, config)
    measured = AnswerStats(further=further, field_labels=field_labels, label_rows=label_rows, deciding=deciding)
    labels = dataset.manifest.labels
    return evaluate(rows, answers, task=dataset.task, labels=labels, config=config, seed=seed, measured=measured)


def cluster_keys(rows: Sequence[Row], name: str | None) -> list[Hashable]:
    """What tells which rows belong together: a metadata field, and else the whole prompt."""
    names = (name,) if name else CLUSTER_NAMES
    used = next((n for n in names if any(row.meta.get(n) is not None for row in rows)), None)
    if name and used is None:
        message = f"No row has the metadata field {name!r}"
        raise UserError(message, where="evaluate.cluster", next_step="name a field of `meta`")
    keys: list[Hashable] = []
    for row in rows:
        value = row.meta.get(used) if used else None
        prompt = json.dumps(row.prompt, sort_keys=True) if row.prompt else row.id
        field_key = json.dumps(value, sort_keys=True, default=str)
        keys.append(("prompt", prompt) if value is None else ("field", field_key))
    return keys


def _check_rows(rows: list[Row], answers: list[Completion], task: str) -> None:
    if not rows:
        raise UserError("There are no rows to evaluate", next_step="choose another split, or a larger data.split.test")
    if len(rows) != len(answers):
        message = f"{len(answers)} answers came back for {counted(len(rows), 'row')}"
        raise UserError(message, next_step="run the evaluation again")
    check_ids(rows)
    unlabelled = next((row.id for row in rows if row.label is None), None)
    if task == "classification" and unlabelled is not None:
        next_step = "prepare the data set again with data.label=COLUMN, or set data.task=generation"
        raise UserError("A row of a classification split has no label", where=f"row {unlabelled}", next_step=next_step)


def _estimates(statistics: list[Statistics], draws: Mapping[str, Array], *, clustered: bool) -> dict[str, Estimate]:
    estimates = {}
    for family in statistics:
        for name, value in family.point_values().items():
            source = family.same.get(name, name)
            low, high = u.bootstrap_interval(value, draws[name])
            # Resamples of rows that are all right, or all wrong, know no spread.
            if source in family.right_or_wrong and (not clustered or not low < high):
                right = [score for score in family.row_scores[source] if not math.isnan(score)]
                low, high = u.wilson_interval(int(sum(right)), len(right))
            estimates[name] = Estimate(value, low, high)
    return estimates


def on_shared_rows(evaluations: Mapping[str, ScoredAnswers]) -> dict[str, ScoredAnswers] | None:
    """All evaluations, by place, on the rows that every one of them holds; None where they hold the same rows. Raises
    UserError: fewer than 20 rows are shared."""
    ids = {name: {row.id for row in evaluation.rows} for name, evaluation in evaluations.items()}
    shared = set.intersection(*ids.values())
    if all(row_ids == shared for row_ids in ids.values()):
        return None
    if len(shared) < FEWEST_SHARED:
        first, other = next((a, b) for a in ids for b in ids if ids[a] != ids[b])
        counts = f"{len(ids[first]):,} and {len(ids[other]):,}, {len(shared):,} shared"
        raise UserError(
            f"{first} and {other} were evaluated on different rows ({counts}; at least {FEWEST_SHARED} are needed)",
            where=f"{first}/samples.jsonl, {other}/samples.jsonl",
            next_step="evaluate both on the same rows: tuneloop evaluate RUN --data FILE, or --dataset DATASET",
        )
    return {name: some_rows(evaluation, shared) for name, evaluation in evaluations.items()}


def some_rows(all_rows: ScoredAnswers, ids: Collection[str]) -> ScoredAnswers:
    """An evaluation of some of its rows, scored again by the same settings."""
    places = [i for i, row in enumerate(all_rows.rows) if row.id in ids]

    def some(values: Sequence[Any]) -> list[Any]:
        return [values[i] for i in places] if values else []

    measured = all_rows.measured
    row_scores = {name: some(scores) for name, scores in measured.row_scores.items()}
    measured = replace(measured, further=some(measured.further), languages=some(measured.languages))
    # complete: what needs programs, models or files is not found out again
    measured = replace(measured, row_scores=row_scores, complete=True, perplexity=None)
    settings: dict[str, Any] = {name: getattr(all_rows, name) for name in ("task", "labels", "config", "seed")}
    return evaluate(some(all_rows.rows), some(all_rows.answers), measured=measured, **settings)
