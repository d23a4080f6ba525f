"""Answers to numbers, and two contenders' numbers to a paired comparison."""

from __future__ import annotations

import difflib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from tuneloop.core import stats as u
from tuneloop.core.errors import UserError
from tuneloop.core.progress import Progress, no_progress
from tuneloop.core.stats import Array, Statistics
from tuneloop.evaluate import metrics as m
from tuneloop.evaluate import structured as js
from tuneloop.evaluate.calibration import calibration_statistics, confidences
from tuneloop.evaluate.config import EvaluateConfig
from tuneloop.evaluate.label_use import LabelUse, label_use
from tuneloop.evaluate.multilabel import label_lists, label_reader, multilabel_statistics, vocabulary
from tuneloop.records.completion import Answer
from tuneloop.records.evaluation import Comparison, Estimate, lower_is_better
from tuneloop.records.rows import Row

# Metrics with the same row scores as another one, whose exact interval and test they share.
_SAME_AS = dict.fromkeys(("micro_f1", "precision_micro", "recall_micro", "recall_weighted"), "accuracy")
_SAME_OF_MANY = {"subset_accuracy": "accuracy"}  # with several labels a row
_NO_DIRECTION = frozenset({"length_ratio"})  # neither more nor less of it is better
# The row's conversation, by the names that it usually has.
CLUSTER_NAMES = ("conversation_id", "conversation", "dialogue_id", "dialog_id", "dialogue", "session_id", "session",
                 "thread_id", "duplicate_cluster", "cluster")  # fmt: skip


@dataclass(frozen=True)
class AnswerStats:
    """What is known of answers beside their texts. Each list is empty or has an entry for each row.

    Args:
        losses, loss_tokens: sum of -log likelihood over the reference answer's tokens, and how many they are.
        confidence: probability of the answer's label; default: from the answers' scores.
        further: more answers to the same prompt, for pass@k.
        languages: of the prompt, for slices.
        row_scores: metrics measured elsewhere, as one score a row (NaN: the row doesn't count).
        complete: nothing else is to be measured that needs programs, models or files (answers read back from a folder).
    """

    losses: Sequence[float] = ()
    loss_tokens: Sequence[int] = ()
    confidence: Sequence[float] = ()
    further: Sequence[Sequence[str]] = ()
    languages: Sequence[str] = ()
    row_scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    complete: bool = False


@dataclass(frozen=True)
class Evaluation:
    """One contender's answers to a split, scored.

    Args:
        task: `classification`, `generation` or `chat`.
        rows: the rows, in the order of everything below.
        answers: the contender's answers.
        labels: allowed labels (classification), else None.
        predictions: the label that each answer names (several: joined by commas); None outside the label set, and for
            tasks without labels.
        valid: whether an answer is in the label set, holds every field asked for, is JSON where that is asked for.
        metrics: name -> value with 95 % interval.
        row_scores: metric -> one score a row, for metrics that have one (NaN: the row doesn't count).
        invalid: number of answers that aren't valid.
        fields: the patterns of `FIELD.METRIC`.
        notes: what a reader has to know about these numbers.
        signatures: what exactly was computed, by metric.
        seed, bootstrap: of the resamples.
        statistics, draws: what paired comparisons are computed from.
        measured: what was known or found out beside the texts, and can't be found out again from them.
        clusters: the cluster of each row; None where each row stands for itself.
        primary: the metric that decides; `primary_named`: the user has chosen it.
        labels_used: how often references and answers name each label: "" for the rows' labels, else by the field's name.
        code: how the answers' programs ended, and under which protections; empty without programs.
        cluster: `evaluate.cluster`.
        field_labels: the fields that hold labels, with these.
        label_rows: rows of each label in the whole data set, as far as they are known, named as in `labels_used`.
    """

    task: str
    rows: list[Row]
    answers: list[Answer]
    labels: list[str] | None
    predictions: list[str | None]
    valid: list[bool]
    metrics: dict[str, Estimate]
    row_scores: dict[str, list[float]]
    invalid: int
    fields: dict[str, str]
    notes: list[str]
    signatures: dict[str, str]
    seed: int
    bootstrap: int
    statistics: list[Statistics] = field(repr=False, compare=False)
    draws: dict[str, Array] = field(repr=False, compare=False)
    primary: str
    primary_named: bool = False
    labels_used: dict[str, LabelUse] = field(default_factory=dict)
    measured: AnswerStats = field(default_factory=AnswerStats, repr=False, compare=False)
    clusters: list[int] | None = None
    code: dict[str, Any] = field(default_factory=dict, compare=False)
    cluster: str | None = None
    field_labels: dict[str, Sequence[str]] = field(default_factory=dict)
    label_rows: dict[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def row_metric(self) -> str:
        """What single rows are judged by: the metric that decides, or where no row has a score in it (macro-F1) the nearest one."""
        name, dot, _ = self.primary.rpartition(".")
        near = (self.primary, f"{name}{dot}accuracy", "accuracy", "field_f1", "rougeL", "chrf")
        return next((m for m in near if m in self.row_scores and not lower_is_better(m)), self.primary)

    @property
    def deciding_labels(self) -> LabelUse | None:
        """The use of the labels (or of the field's values) that the deciding metric is about; None where there are none."""
        return self.labels_used.get(self.primary.rpartition(".")[0])

    @property
    def headline(self) -> list[str]:
        """The metrics that a verdict rests on, the one that decides first: a sure loss on any of them stands against a gain.

        Accuracy and macro-F1 of labels (micro-F1 too where rows have several), the deciding metric of each field of
        `evaluate.fields`, field-F1 and valid answers of JSON, pass@1, ROUGE-L and chrF of texts, the user's scorers, and the
        share of invalid answers.
        """
        labels = ["micro_f1"] if "subset_accuracy" in self.metrics else []
        fields = [_field_metric(name, self.metrics, self.labels_used) for name in self.fields]
        own = [name for name in self.measured.row_scores if name not in NOT_OWN and not name.startswith("pass@")]
        wanted = [self.primary, *labels, "accuracy", "macro_f1", *fields, "field_f1", "schema_valid", "pass@1", "rougeL", "chrf",
                  *own, "invalid_rate"]  # fmt: skip
        return [name for name in dict.fromkeys(wanted) if name in self.metrics]


@dataclass(frozen=True)
class PairedRows(Comparison):
    """A comparison whose rows are at hand.

    Args:
        interval_at: the difference's interval at a level of error; not written.
    """

    interval_at: Callable[[float], tuple[float, float]] = field(
        default=lambda level: (math.nan, math.nan), repr=False, compare=False, metadata={"written": False}
    )


def sample_rows(rows: Sequence[Row], limit: int | None, *, seed: int) -> list[Row]:
    """At most `limit` rows, a seeded sample in the order of the split; answers that were rated bad or have weight 0 are no references.

    A smaller sample is a part of every larger one of the same rows and seed.
    """
    rows = [row for row in rows if row.has_reference]
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(sample_order(len(rows), seed)[:limit])]


def sample_order(rows: int, seed: int) -> list[int]:
    """The order in which a seeded sample takes up so many rows."""
    return random.Random(seed).sample(range(rows), rows)


def check_ids(rows: Sequence[Row]) -> None:
    """Refuse rows that can't be told apart: answers, reviews and other runs name them by their ids."""
    counts = Counter(row.id for row in rows)
    if len(counts) != len(rows):
        row_id, times = counts.most_common(1)[0]
        raise UserError(
            "Some rows have the same id", where=f"row {row_id} ({times} times)", next_step="prepare the data set again"
        )


# Row scores measured elsewhere that are no scorers of the user's.
NOT_OWN = frozenset({"embedding", "schema_valid"})


def primary_metric(
    task: str,
    fields: Collection[str] = (),
    metrics: Collection[str] = (),
    labels_used: Mapping[str, LabelUse] | None = None,
    *,
    named: str | None = None,
) -> str:
    """The metric that decides. It depends on the rows, never on the answers.

    Accuracy for labels, macro-F1 where they are uneven (`LabelUse.uneven`), micro-F1 where rows have several; pass@1 for
    programs, the first field's for structured answers (accuracy or macro-F1 likewise), field-F1 for JSON, else ROUGE-L.

    Args:
        task: of the data set.
        fields: names of the fields scored by themselves.
        metrics: names at hand; where the first choice isn't among them (a field of free text, a script that ROUGE
            can't read), the next one is taken.
        labels_used: of the rows' labels ("") and of fields, by name.
        named: the user's choice, `evaluate.primary`.

    Raises:
        UserError: the named metric is not at hand, or neither more nor less of it is better.
    """
    if named is not None:
        if named not in metrics or named in _NO_DIRECTION:
            near = difflib.get_close_matches(named, [name for name in metrics if name not in _NO_DIRECTION], 1, 0.4)
            raise UserError(
                f"{named!r} can't decide: " + ("it has no better direction" if named in metrics else "these rows have no such metric"),
                where="evaluate.primary",
                next_step=f"did you mean {near[0]}?" if near else f"choose one of {', '.join(metrics)}",
            )  # fmt: skip
        return named
    used = labels_used or {}
    first = []
    if task == "classification":
        several = "subset_accuracy" in metrics
        first = ["micro_f1" if several else "macro_f1" if "" in used and used[""].uneven else "accuracy"]
    choices = [*first, *(name for name in ("pass@1",) if name in metrics)]
    choices += [_field_metric(name, metrics, used) for name in fields]
    choices += [name for name in ("field_f1",) if name in metrics]
    choices += ["rougeL", "chrf"]
    return next((name for name in choices if name in metrics), choices[0])


def _field_metric(name: str, metrics: Collection[str], labels_used: Mapping[str, LabelUse]) -> str:
    """The deciding metric of one field."""
    first = "macro_f1" if name in labels_used and labels_used[name].uneven else "accuracy"
    choices = [f"{name}.{metric}" for metric in (first, "accuracy", "rougeL", "chrf")]
    return next((metric for metric in choices if metric in metrics), choices[0])


@dataclass
class _Scoring:
    """What scoring gathers on its way through the kinds of metrics."""

    rows: list[Row]
    answers: list[Answer]
    config: EvaluateConfig
    measured: AnswerStats
    progress: Progress
    field_labels: dict[str, Sequence[str]] = field(default_factory=dict)
    label_rows: dict[str, Mapping[str, int]] = field(default_factory=dict)
    statistics: list[Statistics] = field(default_factory=list)
    signatures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    labels: list[str] | None = None
    predictions: list[str | None] = field(default_factory=list)
    valid: list[bool] = field(default_factory=list)
    valid_counts: bool = False  # whether anything says what a valid answer is
    found: dict[str, list[float]] = field(
        default_factory=dict
    )  # row scores that can't be computed from the texts again
    labels_used: dict[str, LabelUse] = field(default_factory=dict)
    code: dict[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        return [answer.text for answer in self.answers]

    @property
    def references(self) -> list[list[str]]:
        return [m.references_of(row) for row in self.rows]

    def need_valid(self, holds: Sequence[bool]) -> None:
        self.valid = [ok and held for ok, held in zip(self.valid, holds, strict=True)]
        self.valid_counts = True


def evaluate(
    rows: Sequence[Row],
    answers: Sequence[Answer],
    *,
    task: str,
    labels: Sequence[str] | None,
    config: EvaluateConfig,
    seed: int,
    perplexity: float | None = None,
    measured: AnswerStats | None = None,
    field_labels: Mapping[str, Sequence[str]] | None = None,
    label_rows: Mapping[str, Mapping[str, int]] | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Score answers, each metric with its 95 % interval.

    Shares of right answers get Wilson's interval; all else the bias-corrected percentile bootstrap, corpus metrics
    (BLEU, chrF, macro-F1) computed anew from each resample. Where rows belong together (a conversation, the same
    prompt), whole clusters are drawn, for shares too.

    Args:
        rows: the split's rows.
        answers: one for each row, in order.
        task: `classification` scores labels (`meta["labels"]`: several a row), all else scores texts.
        labels: allowed labels; default: those of the rows.
        field_labels: fields that hold labels, with these (`labels_of_fields`); default: those whose values repeat in the rows, which
            few rows don't tell.
        label_rows: rows of each label in the whole data set, for the rows' labels ("") and for fields by name: they tell whether labels
            are uneven, and so which metric decides. Default: those of the rows, which differ from sample to sample.
        config: what is measured, and how.
        seed: of the resamples; contenders that are to be compared share it.
        perplexity: measured elsewhere, carried along without an interval; better give `measured.losses`.
        measured: what is known beside the texts.
        progress: of unit tests.

    Raises:
        UserError: no rows, another number of answers, repeated row ids, a row without label, a bad field, schema or
            scorer.
    """
    s = _Scoring(
        list(rows), list(answers), config, measured or AnswerStats(), progress, dict(field_labels or {}), dict(label_rows or {})
    )  # fmt: skip
    _check_rows(s.rows, s.answers, task)
    s.predictions, s.valid = [None] * len(s.rows), [True] * len(s.rows)
    if task == "classification":
        _score_labels(s, labels)
    else:
        if any(text for row in s.references for text in row):  # programs may come with tests and no solution
            _score_texts(s)
        _score_code(s)
        _score_structure(s)
    for name, pattern in m.compile_fields(config.fields).items():
        references = [m.extract(pattern, row[0]) for row in s.references]
        found = [m.extract(pattern, answer.text[: m.LONGEST_SCORED]) for answer in s.answers]
        if all(value is None for value in references):
            raise UserError(
                "The field's pattern matches none of the reference answers",
                where=f"evaluate.fields.{name}",
                next_step="compare it with an answer of the split; ^ and $ are the ends of a line",
            )
        _score_field(s, name, references, found)
    _score_own(s)
    if s.measured.losses:
        s.statistics.append(m.loss_statistics(s.measured.losses, s.measured.loss_tokens))
    if s.valid_counts:
        invalid = [float(not ok) for ok in s.valid]
        s.statistics.append(m.mean_statistics({"invalid_rate": invalid}, right_or_wrong=["invalid_rate"]))
    return _evaluation(s, task, seed, perplexity)


def _evaluation(s: _Scoring, task: str, seed: int, perplexity: float | None) -> Evaluation:
    """Intervals, and everything put together."""
    cut = sum(not answer.finished for answer in s.answers)
    if cut:
        s.notes.append(f"{cut} of {len(s.answers)} answers were cut off at the length limit (evaluate.max_new_tokens).")
    clusters = u.cluster_numbers(cluster_keys(s.rows, s.config.cluster))
    if clusters is not None:
        drawn = max(clusters) + 1
        few = " They are few: the intervals are rough." if drawn < 20 else ""
        s.notes.append(f"{len(s.rows)} rows form {drawn} clusters that belong together; intervals draw clusters.{few}")
    draws = u.bootstrap(s.statistics, len(s.rows), resamples=s.config.bootstrap, seed=seed, clusters=clusters)
    estimates = _estimates(s.statistics, draws, clustered=clusters is not None)
    if perplexity is not None and "perplexity" not in estimates:
        estimates["perplexity"] = Estimate(float(perplexity), math.nan, math.nan)
    primary = primary_metric(task, list(s.config.fields), list(estimates), s.labels_used, named=s.config.primary)
    return Evaluation(
        task=task,
        rows=s.rows,
        answers=s.answers,
        labels=s.labels,
        predictions=s.predictions,
        valid=s.valid,
        metrics=estimates,
        row_scores={name: scores for family in s.statistics for name, scores in family.row_scores.items()},
        invalid=s.valid.count(False),
        fields=dict(s.config.fields),
        notes=s.notes,
        signatures=s.signatures,
        seed=seed,
        bootstrap=s.config.bootstrap,
        statistics=s.statistics,
        draws=draws,
        primary=primary,
        primary_named=s.config.primary is not None,
        labels_used=s.labels_used,
        measured=replace(s.measured, row_scores=s.found),
        clusters=clusters,
        code=s.code,
        cluster=s.config.cluster,
        field_labels=s.field_labels,
        label_rows=s.label_rows,
    )


def cluster_keys(rows: Sequence[Row], name: str | None) -> list[Hashable]:
    """What tells which rows belong together: a metadata field, and else the whole prompt."""
    names = (name,) if name else CLUSTER_NAMES
    used = next((n for n in names if any(row.meta.get(n) is not None for row in rows)), None)
    if name and used is None:
        raise UserError(
            f"No row has the metadata field {name!r}", where="evaluate.cluster", next_step="name a field of `meta`"
        )
    keys: list[Hashable] = []
    for row in rows:
        value = row.meta.get(used) if used else None
        if value is not None:
            keys.append(("field", json.dumps(value, sort_keys=True, default=str)))
        else:
            keys.append(("prompt", json.dumps(row.prompt, sort_keys=True) if row.prompt else row.id))
    return keys


def _check_rows(rows: list[Row], answers: list[Answer], task: str) -> None:
    if not rows:
        raise UserError("There are no rows to evaluate", next_step="choose another split, or a larger data.split.test")
    if len(rows) != len(answers):
        raise UserError(f"{len(answers)} answers came back for {len(rows)} rows", next_step="run the evaluation again")
    check_ids(rows)
    if task == "classification":
        unlabelled = next((row.id for row in rows if row.label is None), None)
        if unlabelled is not None:
            raise UserError(
                "A row of a classification split has no label",
                where=f"row {unlabelled}",
                next_step="prepare the data set again with data.label=COLUMN, or set data.task=generation",
            )


def _score_labels(s: _Scoring, labels: Sequence[str] | None) -> None:
    """Classification: one label a row, or several."""
    s.labels = sorted(set(labels or ()) | {str(row.label) for row in s.rows})
    lists = label_lists(s.rows)
    if lists is not None:
        s.labels = vocabulary(s.rows, labels)
        read = label_reader(s.labels)
        said = [read(answer.text) for answer in s.answers]
        s.predictions = [str(each) if not each.outside else None for each in said]
        s.need_valid([not e.outside and bool(e.labels) != e.none for e in said])
        s.labels_used[""] = label_use(lists, (each.labels for each in said), s.label_rows.get(""))
        s.statistics.append(multilabel_statistics(lists, said, s.labels))
        s.notes.append("Rows have several labels: accuracy counts a row as right when all its labels are right.")
    else:
        s.predictions = _predicted_labels(s.rows, s.answers, s.labels)
        s.need_valid([prediction is not None for prediction in s.predictions])
        s.labels_used[""] = label_use(_each([row.label for row in s.rows]), _each(s.predictions), s.label_rows.get(""))
        s.statistics.append(m.label_statistics([row.label for row in s.rows], s.predictions, known=s.labels))
        occurring = len({row.label for row in s.rows})
        if len(s.rows) < 5 * occurring:
            s.notes.append(
                f"{len(s.rows)} rows for {occurring} labels are fewer than 5 a label: macro averages come out low "
                "and their intervals too narrow. More rows would help (evaluate.limit, data.split.test)."
            )
    known = list(s.measured.confidence) or confidences(s.answers)
    if not all(map(math.isnan, known)):
        s.measured = replace(s.measured, confidence=known)
        s.statistics.append(calibration_statistics(known, s.statistics[0].row_scores["accuracy"]))


def _each(labels: Sequence[str | None]) -> list[tuple[str, ...]]:
    return [() if label is None else (label,) for label in labels]


def _predicted_labels(rows: list[Row], answers: list[Answer], labels: list[str]) -> list[str | None]:
    """Labels named by the answers. A row's reference text ("Queue: billing") also stands for its label."""
    match = m.label_matcher(labels, {row.answer: row.label for row in rows if row.label is not None})
    return [match(answer.text) for answer in answers]


def _score_texts(s: _Scoring) -> None:
    """Free text against its references."""
    references, texts = s.references, s.texts
    scores = {
        "exact_match": [m.exact_match(r, t) for r, t in zip(references, texts, strict=True)],
        "token_f1": [m.token_f1(r, t) for r, t in zip(references, texts, strict=True)],
    }
    kept = [t[: max(m.LONGEST_SCORED, 4 * max(map(len, r)))] for r, t in zip(references, texts, strict=True)]
    longer = sum(len(k) < len(t) for k, t in zip(kept, texts, strict=True))
    if longer:
        s.notes.append(f"{longer} answers above {m.LONGEST_SCORED:,} characters were scored on their beginning.")
    if m.is_latin([text for row in references for text in row]):
        scores |= m.rouge(references, kept)
    else:
        s.notes.append("No ROUGE: it reads only a-z and 0-9, and most of these texts are in another script. Read chrF.")
    scores["meteor"] = m.meteor(references, kept)
    s.signatures["meteor"] = "nltk, alpha 0.9, beta 3, gamma 0.5, exact and Porter stem, no synonyms"
    s.statistics.append(m.mean_statistics(scores, right_or_wrong=["exact_match"]))
    for name, scorer in (("bleu", m.bleu_statistics), ("chrf", m.chrf_statistics)):
        family, s.signatures[name] = scorer(references, kept, name=name)
        s.statistics.append(family)
    s.statistics.append(m.length_ratio(references, texts))
    _score_embedding(s, references, kept)
    if m.are_labels(references):
        s.notes.append("The reference answers are few and short: they are also scored as labels (accuracy, F1).")
        known = sorted({row[0] for row in references})
        match = m.label_matcher(known)
        named = [match(text) for text in texts]
        s.labels_used[""] = label_use(_each([row[0] for row in references]), _each(named))
        s.statistics.append(m.label_statistics([row[0] for row in references], named, known=known))
        s.need_valid([label is not None for label in named])


def _score_embedding(s: _Scoring, references: list[list[str]], texts: list[str]) -> None:
    from tuneloop.evaluate.embedding import EMBEDDER, embedder, similarity

    if "embedding" in s.measured.row_scores:
        scores = list(s.measured.row_scores["embedding"])
    elif s.config.embedding and not s.measured.complete and (embed := embedder()) is not None:
        scores = similarity(references, texts, embed)
    else:
        return
    s.found["embedding"] = scores
    s.signatures["embedding"] = f"cosine of {EMBEDDER}"
    s.statistics.append(m.mean_statistics({"embedding": scores}))


def _score_code(s: _Scoring) -> None:
    """Programs against their rows' unit tests."""
    from tuneloop.evaluate.code import code_facts, pass_scores, problem_of, run_tests
    from tuneloop.evaluate.sandbox import Limits

    scores = {name: list(x) for name, x in s.measured.row_scores.items() if name.startswith("pass@")}
    tested = [problem_of(row) is not None for row in s.rows]
    if not scores:
        if (
            s.measured.complete
            or s.config.run_code is False
            or not (any(tested) if s.config.run_code is True else all(tested))
        ):
            if s.config.run_code is True and not s.measured.complete:
                raise UserError(
                    "No row brings unit tests",
                    where="evaluate.run_code",
                    next_step="rows need the metadata `test` and `entry_point`, or `test_list`",
                )
            return
        further = list(s.measured.further) or [()] * len(s.rows)
        limits = Limits(seconds=s.config.code_seconds, memory=s.config.code_memory_mb << 20)
        texts = [[answer.text, *more] for answer, more in zip(s.answers, further, strict=True)]
        outcomes = run_tests(s.rows, texts, limits=limits, progress=s.progress)
        scores = pass_scores(outcomes)
        s.code = dict(code_facts(outcomes))
        locks = s.code["protections"]
        if not any("seccomp" in lock or "Landlock" in lock for lock in locks):
            s.notes.append("Programs ran with weak protection on this machine: " + "; ".join(locks) + ".")
    s.found |= scores
    binary = [name for name, each in scores.items() if set(each) <= {0.0, 1.0}]
    s.statistics.append(m.mean_statistics(scores, right_or_wrong=binary))


def _score_structure(s: _Scoring) -> None:
    """JSON answers: valid, conforming, right fields."""
    config, references = s.config, s.references
    if config.structured is False or not (
        config.structured is True or config.json_schema or js.are_structured(references)
    ):
        return
    conforms: list[float] | None = None
    if "schema_valid" in s.measured.row_scores:
        conforms = list(s.measured.row_scores["schema_valid"])
    elif config.json_schema and not s.measured.complete:
        check = js.schema_check(js.read_schema(config.json_schema))
        conforms = [float(js.parses(text) and check(js.parse(text))) for text in s.texts]
        broken = sum(not (js.parses(r[0]) and check(js.parse(r[0]))) for r in references)
        if broken:
            s.notes.append(f"{broken} reference answers do not fit the JSON schema themselves.")
    if conforms is not None:
        s.found["schema_valid"] = conforms
    family = js.structured_statistics(references, s.texts, conforms)
    s.statistics.append(family)
    s.need_valid([bool(ok) for ok in family.row_scores["valid_json"]])
    if conforms is not None:
        s.need_valid([bool(ok) for ok in conforms])
    fenced = sum("```" in t and js.are_structured([[m.unfenced(t)]]) and not js.parses(t) for t in s.texts)
    if fenced:
        s.notes.append(f"{fenced} answers would be valid JSON without the Markdown fence around it.")
    firsts = [row[0] for row in references]
    wanted = js.top_fields(firsts)
    found = js.top_fields(s.texts, list(wanted))
    for name, values in wanted.items():
        if name not in config.fields:
            _score_field(s, name, values, found[name])


def _score_own(s: _Scoring) -> None:
    """The user's scorers."""
    from tuneloop.evaluate.scorers import load_scorer, own_scores

    own = {n: list(x) for n, x in s.measured.row_scores.items() if n not in s.found}
    taken = {name for family in s.statistics for name in family.values}
    for name, place in s.config.scorers.items():
        if name in taken:
            raise UserError(
                f"The scorer's name {name!r} is a metric's already", where="evaluate.scorers", next_step="rename it"
            )
        if name not in own and not s.measured.complete:
            own[name], _ = own_scores(name, load_scorer(name, place), s.rows, s.texts)
    for name, scores in own.items():
        s.found[name] = scores
        binary = [name] if set(x for x in scores if not math.isnan(x)) <= {0.0, 1.0} else []
        s.statistics.append(m.mean_statistics({name: scores}, right_or_wrong=binary))


def labels_of_fields(answers: Sequence[str], fields: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """The fields of answers whose values repeat, with how often each value occurs: these are labels, the others are texts.

    Args:
        answers: of the task, best those of training: a small test split does not show which values repeat.
        fields: patterns, see `evaluate.fields`; the top fields of answers in JSON are found without.
    """
    found = {name: [m.extract(p, text) for text in answers] for name, p in m.compile_fields(fields).items()}
    if js.are_structured([[text] for text in answers]):
        found = js.top_fields(answers) | found
    known = {name: [value for value in values if value is not None] for name, values in found.items()}
    repeated = {name: values for name, values in known.items() if values and m.values_repeat(values)}
    return {name: dict(sorted(Counter(values).items())) for name, values in repeated.items()}


def _score_field(s: _Scoring, name: str, references: list[str | None], found: list[str | None]) -> None:
    """One field's metrics, and which answers hold it. Values that repeat are labels, others are texts."""
    known = [value for value in references if value is not None]
    if len(known) < len(references):
        s.notes.append(
            f"{name}: {len(references) - len(known)} reference answers lack this field and don't count in it."
        )
    if name in s.field_labels or m.values_repeat(known):
        labels = s.field_labels[name] = sorted({*known, *s.field_labels.get(name, ())})
        match = m.label_matcher(labels)
        predictions = [None if value is None else match(value) for value in found]
        family = m.label_statistics(references, predictions, prefix=f"{name}.", every=False, known=set(labels))
        said = [None if r is None else p for r, p in zip(references, predictions, strict=True)]
        s.labels_used[name] = label_use(_each(references), _each(said), s.label_rows.get(name))
        holds = [r is None or p is not None for r, p in zip(references, predictions, strict=True)]
        s.statistics.append(family)
        s.need_valid(holds)
        return
    holds = [r is None or f is not None for r, f in zip(references, found, strict=True)]
    pairs = [([r or ""], f or "") for r, f in zip(references, found, strict=True)]
    if m.is_latin(known):
        metric, scores = "rougeL", m.rouge([r for r, _ in pairs], [f for _, f in pairs], ["rougeL"])["rougeL"]
    else:  # mean of sentence chrF
        metric = "chrf"
        scores = m.chrf_statistics([r for r, _ in pairs], [f for _, f in pairs])[0].row_scores["chrf"]
    counted = [math.nan if r is None else score for r, score in zip(references, scores, strict=True)]
    s.statistics.append(m.mean_statistics({f"{name}.{metric}": counted}))
    s.need_valid(holds)


def _estimates(statistics: list[Statistics], draws: Mapping[str, Array], *, clustered: bool) -> dict[str, Estimate]:
    estimates = {}
    for family in statistics:
        same = _same_as(family)
        for name, value in family.point_values().items():
            source = same.get(name, name)
            low, high = u.bootstrap_interval(value, draws[name])
            # Resamples of rows that are all right, or all wrong, know no spread.
            if source in family.right_or_wrong and (not clustered or not low < high):
                right = [score for score in family.row_scores[source] if not math.isnan(score)]
                low, high = u.wilson_interval(int(sum(right)), len(right))
            estimates[name] = Estimate(value, low, high)
    return estimates


def _same_as(family: Statistics) -> Mapping[str, str]:
    return _SAME_OF_MANY if "subset_accuracy" in family.values else _SAME_AS


# --- comparison ----------------------------------------------------------------------------------


def compare(
    a_name: str, a: Evaluation, b_name: str, b: Evaluation, *, only: Collection[str] | None = None
) -> list[Comparison]:
    """Paired comparison of two contenders on the same rows, for each metric that both have (or for some of them, `only`).

    Right-or-wrong metrics: exact McNemar test, Agresti-Min interval. All else, and all where rows form clusters: paired
    bootstrap with the same resamples for both, with a p-value of no less than so few rows can give (`least_p`). Where the test
    finds no difference, the interval is widened to 0 if need be. Metrics without row scores (a perplexity measured elsewhere) and those without a better direction are left out. Several metrics
    are adjusted for: see `adjusted`.

    Raises:
        UserError: the two were not evaluated on the same rows, or against other references.
    """
    b = _in_the_order_of(a, b, a_name, b_name)
    families = [(name, family) for family in a.statistics for name in family.values if only is None or name in only]
    theirs = {name: family for family in b.statistics for name in family.values}
    comparisons = []
    for name, family in families:
        if name not in b.metrics or name not in a.draws or name not in b.draws or name in _NO_DIRECTION:
            continue
        delta = b.metrics[name].value - a.metrics[name].value
        source = _same_as(family).get(name, name)
        discordant: tuple[int, int] | tuple[None, None] = (None, None)
        apart: int | None
        if source in family.right_or_wrong and a.clusters is None and _right_or_wrong(b, source):
            pairs = [
                (x, y) for x, y in zip(a.row_scores[source], b.row_scores[source], strict=True) if x == x and y == y
            ]
            only_a, only_b = discordant = sum(x > y for x, y in pairs), sum(y > x for x, y in pairs)
            at = partial(_shares_interval, only_a, only_b, len(pairs))
            p, test, apart = u.mcnemar_p(only_a, only_b), EXACT, only_a + only_b
        else:
            differences = b.draws[name] - a.draws[name]
            at = partial(_bootstrap_interval, delta, differences)
            apart = _rows_apart(family, theirs.get(name), a.clusters)
            p = max(u.paired_bootstrap_p(delta, differences), 0.0 if apart is None else u.least_p(apart))
            test = "paired bootstrap" if a.clusters is None else "paired cluster bootstrap"
        low, high = at(u.ALPHA)
        if source in family.right_or_wrong:
            effect, kind = u.cohens_h(a.metrics[name].value, b.metrics[name].value), "Cohen's h"
        else:
            effect, kind = u.standardised(delta, low, high, a.n), "Cohen's d (paired)"
        smallest = u.detectable(low, high)
        low, high = u.with_zero((low, high)) if p >= u.ALPHA else (low, high)
        comparisons.append(
            PairedRows(
                a_name, b_name, name, delta, low, high, p, "", test, effect=effect, effect_kind=kind, detectable=smallest,
                only_a=discordant[0], only_b=discordant[1], apart=apart, interval_at=at,
            )
        )  # fmt: skip
    return adjusted(comparisons, a)


def _shares_interval(only_a: int, only_b: int, n: int, level: float) -> tuple[float, float]:
    return u.paired_shares_interval(only_a, only_b, n, level=level)


def _bootstrap_interval(delta: float, differences: Array, level: float) -> tuple[float, float]:
    return u.paired_bootstrap_interval(delta, differences, level=level)


EXACT = "exact McNemar"


def _rows_apart(family: Statistics, other: Statistics | None, clusters: Sequence[int] | None) -> int | None:
    """Rows (or clusters) whose figures differ between two sides; None where their figures can't be held against each other."""
    if other is None or other.layout != family.layout or other.rows.shape != family.rows.shape:
        return None
    differs = np.asarray(abs(other.rows - family.rows).sum(axis=1)).ravel() > 0
    return int(differs.sum()) if clusters is None else len(set(np.asarray(clusters)[differs].tolist()))


def adjusted(comparisons: Sequence[Comparison], evaluation: Evaluation) -> list[Comparison]:
    """Comparisons with p-values and intervals adjusted for each other (Holm), and the verdicts and rows needed that follow.

    The metric that decides is fixed before the data are seen: over it, only several pairs of contenders are adjusted
    for. The other headline metrics form a second family, so that a loss on one of them isn't lost among twenty figures
    that nobody decides by; all else forms a third. Metrics that are the same number by definition (micro-F1 and accuracy)
    count once. Each interval is at the level that Holm's procedure tests its comparison at, and reaches 0 where the procedure
    finds no difference; so intervals and p-values agree.

    Args:
        comparisons: of one or several pairs; giving all that are read together makes the adjustment honest.
        evaluation: what tells the metric that decides, the headline metrics and the number of rows.
    """
    keys = [(c.a, c.b, _SAME_AS.get(c.metric, c.metric) if c.test == EXACT else c.metric) for c in comparisons]
    p_of = {key: c.p for key, c in zip(reversed(keys), reversed(comparisons), strict=True)}
    headline = set(evaluation.headline) - {evaluation.primary}
    families: list[list[tuple[str, str, str]]] = [[], [], []]
    for key in p_of:
        families[0 if key[2] == evaluation.primary else 1 if key[2] in headline else 2].append(key)
    holm: dict[tuple[str, str, str], tuple[float, float, int]] = {}
    for family in families:
        p_values = [p_of[key] for key in family]
        tests = sum(not math.isnan(p) for p in p_values)
        for key, p_holm, level in zip(family, u.holm(p_values), u.holm_levels(p_values), strict=True):
            holm[key] = p_holm, level, tests
    found = []
    for key, c in zip(keys, comparisons, strict=True):
        p_holm, level, tests = holm[key]
        bounds = c.interval_at(level) if isinstance(c, PairedRows) else (c.low, c.high)
        low, high = bounds if p_holm < u.ALPHA else u.with_zero(bounds)
        seen = (-high, -low) if lower_is_better(c.metric) else (low, high)
        verdict, needed = u.verdict(*seen, p_holm), rows_needed(c, evaluation.n, level)
        more = None if needed is None or verdict != u.NOT_ENOUGH else max(1, needed - evaluation.n)
        found.append(
            replace(
                c, p_holm=p_holm, low_holm=low, high_holm=high, tests=tests, verdict=verdict, more_rows=more, rows_needed=needed
            )
        )  # fmt: skip
    return found


def rows_needed(c: Comparison, n: int, level: float) -> int | None:
    """Rows in all that show a difference as large as this one with 80 % power at a level; None where no number follows."""
    if c.only_a is not None and c.only_b is not None:
        return u.rows_for_pairs(c.only_a, c.only_b, n, level=level)
    half = u.Z95 * c.detectable / (u.Z95 + u.Z80)  # of the interval before it was widened to 0
    needed = u.rows_to_settle(c.delta, -half, half, n, level=level)
    if needed is None or not c.apart:
        return needed
    return max(needed, math.ceil(n * u.least_apart(level) / c.apart))  # so many must differ, or no test can show it


def _right_or_wrong(evaluation: Evaluation, metric: str) -> bool:
    return any(metric in family.right_or_wrong for family in evaluation.statistics)


def _in_the_order_of(a: Evaluation, b: Evaluation, a_name: str, b_name: str) -> Evaluation:
    """`b` with rows, scores and draws as `a` has them; refuses what can't be paired."""
    a_ids, b_ids = [row.id for row in a.rows], [row.id for row in b.rows]
    if set(a_ids) != set(b_ids):
        alone = next(iter(sorted(set(a_ids) ^ set(b_ids))))
        raise UserError(
            f"{a_name} and {b_name} were evaluated on different rows ({len(a_ids)} and {len(b_ids)}, "
            f"{len(set(a_ids) & set(b_ids))} shared)",
            where=f"row {alone} stands in one of them only",
            next_step="evaluate both on the same split with the same evaluate.limit and seed",
        )
    place = {row_id: i for i, row_id in enumerate(b_ids)}
    order = [place[row_id] for row_id in a_ids]
    for i, j in enumerate(order):
        if m.references_of(a.rows[i]) != m.references_of(b.rows[j]) or a.rows[i].label != b.rows[j].label:
            raise UserError(
                f"{a_name} and {b_name} were evaluated against different reference answers",
                where=f"row {a_ids[i]}",
                next_step="evaluate both on the same version of the data set",
            )
    if a_ids == b_ids and (a.seed, a.bootstrap, a.clusters) == (b.seed, b.bootstrap, b.clusters):
        return b
    statistics = [
        Statistics(
            family.rows[np.array(order)],
            family.values,
            {name: [scores[j] for j in order] for name, scores in family.row_scores.items()},
            family.right_or_wrong,
            family.layout,
        )
        for family in b.statistics
    ]
    return replace(
        b,
        rows=[b.rows[j] for j in order],
        answers=[b.answers[j] for j in order],
        predictions=[b.predictions[j] for j in order],
        valid=[b.valid[j] for j in order],
        row_scores={name: scores for family in statistics for name, scores in family.row_scores.items()},
        seed=a.seed,
        bootstrap=a.bootstrap,
        statistics=statistics,
        clusters=a.clusters,
        draws=u.bootstrap(statistics, a.n, resamples=a.bootstrap, seed=a.seed, clusters=a.clusters),
    )
