"""Answers to numbers, and two contenders' numbers to a paired comparison."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tuneloop.evaluate import metrics as m
from tuneloop.evaluate import uncertainty as u
from tuneloop.evaluate.config import EvaluateConfig
from tuneloop.evaluate.metrics import Array, Statistics
from tuneloop.types import Answer, Estimate, Row, UserError

# Metrics with the same row scores as another one, whose exact interval and test they share.
_SAME_AS = {"micro_f1": "accuracy"}


@dataclass(frozen=True)
class Evaluation:
    """One contender's answers to a split, scored.

    Args:
        task: `classification`, `generation` or `chat`.
        rows: the rows, in the order of everything below.
        answers: the contender's answers.
        labels: allowed labels (classification), else None.
        predictions: the label that each answer names; None outside the label set, and for tasks without labels.
        valid: whether an answer is in the label set and holds every field asked for.
        metrics: name -> value with 95 % interval.
        row_scores: metric -> one score a row, for metrics that have one (NaN: the row doesn't count).
        invalid: number of answers that aren't valid.
        fields: the patterns of `FIELD.METRIC`.
        notes: what a reader has to know about these numbers.
        signatures: sacrebleu's, by metric.
        seed, bootstrap: of the resamples.
        statistics, draws: what paired comparisons are computed from.
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

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.rows)


@dataclass(frozen=True)
class Comparison:
    """How far b is above a on one metric over the same rows.

    Args:
        delta: b - a; `low` and `high` are its 95 % interval.
        p: two-sided p-value of `test`.
        verdict: `better` (b), `worse` or `not enough evidence`.
    """

    a: str
    b: str
    metric: str
    delta: float
    low: float
    high: float
    p: float
    verdict: str
    test: str


def sample_rows(rows: Sequence[Row], limit: int | None, *, seed: int) -> list[Row]:
    """At most `limit` rows, a seeded sample in the order of the split; answers that were rated bad are no references."""
    rows = [row for row in rows if not row.rated_bad]
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def primary_metric(task: str, fields: Collection[str] = (), metrics: Collection[str] = ()) -> str:
    """The metric that decides: accuracy for labels, the first field's for structured answers, else ROUGE-L.

    Args:
        task: of the data set.
        fields: names of the fields scored by themselves.
        metrics: names at hand; where the first choice isn't among them (a field of free text, a script that ROUGE
            can't read), the next one is taken.
    """
    first = "accuracy" if task == "classification" else ""
    choices = [first] if first else []
    choices += [f"{name}.{metric}" for name in fields for metric in ("accuracy", "rougeL", "chrf")]
    choices += ["rougeL", "chrf"]
    return next((name for name in choices if name in metrics), choices[0])


def evaluate(
    rows: Sequence[Row],
    answers: Sequence[Answer],
    *,
    task: str,
    labels: Sequence[str] | None,
    config: EvaluateConfig,
    seed: int,
    perplexity: float | None = None,
) -> Evaluation:
    """Score answers, each metric with its 95 % interval.

    Shares of right answers get Wilson's interval; all else the bias-corrected percentile bootstrap over rows,
    corpus metrics (BLEU, chrF, macro-F1) computed anew from each resample.

    Args:
        rows: the split's rows.
        answers: one for each row, in order.
        task: `classification` scores labels, all else scores texts.
        labels: allowed labels; default: those of the rows.
        config: `fields` and `bootstrap` are used.
        seed: of the resamples; contenders that are to be compared share it.
        perplexity: measured elsewhere, carried along without an interval.

    Raises:
        UserError: no rows, another number of answers, repeated row ids, a row without label, a bad field.
    """
    rows, answers = list(rows), list(answers)
    _check_rows(rows, answers, task)
    notes: list[str] = []
    signatures: dict[str, str] = {}
    statistics: list[Statistics] = []
    predictions: list[str | None] = [None] * len(rows)
    valid = [True] * len(rows)
    allowed: list[str] | None = None
    if task == "classification":
        allowed = sorted(set(labels or ()) | {str(row.label) for row in rows})
        predictions = _predicted_labels(rows, answers, allowed)
        valid = [prediction is not None for prediction in predictions]
        statistics.append(m.label_statistics([row.label for row in rows], predictions))
        occurring = len({row.label for row in rows})
        if len(rows) < 5 * occurring:
            notes.append(
                f"{len(rows)} rows for {occurring} labels are fewer than 5 a label: trust accuracy; macro averages "
                "come out low and their intervals too narrow."
            )
    else:
        statistics += _text_statistics([m.references_of(row) for row in rows], answers, signatures, notes)
    for name, pattern in m.compile_fields(config.fields).items():
        references = [m.extract(pattern, m.references_of(row)[0]) for row in rows]
        found = [m.extract(pattern, answer.text[: m.LONGEST_SCORED]) for answer in answers]
        family, holds = _field_statistics(name, references, found, notes)
        statistics.append(family)
        valid = [ok and held for ok, held in zip(valid, holds, strict=True)]
    cut = sum(not answer.finished for answer in answers)
    if cut:
        notes.append(f"{cut} of {len(answers)} answers were cut off at the length limit (evaluate.max_new_tokens).")
    draws = u.bootstrap(statistics, len(rows), resamples=config.bootstrap, seed=seed)
    estimates = _estimates(statistics, draws)
    if perplexity is not None:
        estimates["perplexity"] = Estimate(float(perplexity), math.nan, math.nan)
    return Evaluation(
        task=task,
        rows=rows,
        answers=answers,
        labels=allowed,
        predictions=predictions,
        valid=valid,
        metrics=estimates,
        row_scores={name: scores for family in statistics for name, scores in family.row_scores.items()},
        invalid=valid.count(False),
        fields=dict(config.fields),
        notes=notes,
        signatures=signatures,
        seed=seed,
        bootstrap=config.bootstrap,
        statistics=statistics,
        draws=draws,
    )


def _check_rows(rows: list[Row], answers: list[Answer], task: str) -> None:
    if not rows:
        raise UserError("There are no rows to evaluate", next_step="choose another split, or a larger data.split.test")
    if len(rows) != len(answers):
        raise UserError(f"{len(answers)} answers came back for {len(rows)} rows", next_step="run the evaluation again")
    if len({row.id for row in rows}) != len(rows):
        raise UserError("Some rows have the same id", next_step="prepare the data set again")
    if task == "classification":
        unlabelled = next((row.id for row in rows if row.label is None), None)
        if unlabelled is not None:
            raise UserError(
                "A row of a classification split has no label",
                where=f"row {unlabelled}",
                next_step="prepare the data set again with data.label=COLUMN, or set data.task=generation",
            )


def _predicted_labels(rows: list[Row], answers: list[Answer], labels: list[str]) -> list[str | None]:
    """Labels named by the answers. A row's reference text ("Queue: billing") also stands for its label."""
    match = m.label_matcher(labels, {row.answer: row.label for row in rows if row.label is not None})
    return [match(answer.text) for answer in answers]


def _text_statistics(
    references: list[list[str]], answers: list[Answer], signatures: dict[str, str], notes: list[str]
) -> list[Statistics]:
    """The families of text metrics; adds to `signatures` and `notes`."""
    texts = [answer.text for answer in answers]
    scores = {
        "exact_match": [m.exact_match(r, t) for r, t in zip(references, texts, strict=True)],
        "token_f1": [m.token_f1(r, t) for r, t in zip(references, texts, strict=True)],
    }
    kept = [t[: max(m.LONGEST_SCORED, 4 * max(map(len, r)))] for r, t in zip(references, texts, strict=True)]
    longer = sum(len(k) < len(t) for k, t in zip(kept, texts, strict=True))
    if longer:
        notes.append(f"{longer} answers above {m.LONGEST_SCORED:,} characters were scored on their beginning.")
    if m.is_latin([text for row in references for text in row]):
        scores |= m.rouge(references, kept)
    else:
        notes.append("No ROUGE: it reads only a-z and 0-9, and most of these texts are in another script. Read chrF.")
    families = [m.mean_statistics(scores, right_or_wrong=["exact_match"])]
    for name, scorer in (("bleu", m.bleu_statistics), ("chrf", m.chrf_statistics)):
        family, signatures[name] = scorer(references, kept, name=name)
        families.append(family)
    return families


def _field_statistics(
    name: str, references: list[str | None], found: list[str | None], notes: list[str]
) -> tuple[Statistics, list[bool]]:
    """One field's metrics, and which answers hold it. Values that repeat are labels, others are texts."""
    known = [value for value in references if value is not None]
    if not known:
        raise UserError(
            "The field's pattern matches none of the reference answers",
            where=f"evaluate.fields.{name}",
            next_step="compare it with an answer of the split; ^ and $ are the ends of a line",
        )
    if len(known) < len(references):
        notes.append(f"{name}: {len(references) - len(known)} reference answers lack this field and don't count in it.")
    if m.values_repeat(known):
        match = m.label_matcher(sorted(set(known)))
        predictions = [None if value is None else match(value) for value in found]
        family = m.label_statistics(references, predictions, prefix=f"{name}.", every=False)
        holds = [r is None or p is not None for r, p in zip(references, predictions, strict=True)]
        return family, holds
    holds = [r is None or f is not None for r, f in zip(references, found, strict=True)]
    pairs = [([r or ""], f or "") for r, f in zip(references, found, strict=True)]
    if m.is_latin(known):
        metric, scores = "rougeL", m.rouge([r for r, _ in pairs], [f for _, f in pairs], ["rougeL"])["rougeL"]
    else:  # mean of sentence chrF
        metric = "chrf"
        scores = m.chrf_statistics([r for r, _ in pairs], [f for _, f in pairs])[0].row_scores["chrf"]
    counted = [math.nan if r is None else score for r, score in zip(references, scores, strict=True)]
    return m.mean_statistics({f"{name}.{metric}": counted}), holds


def _estimates(statistics: list[Statistics], draws: Mapping[str, Array]) -> dict[str, Estimate]:
    estimates = {}
    for family in statistics:
        for name, value in family.point_values().items():
            source = _SAME_AS.get(name, name)
            if source in family.right_or_wrong:
                right = [score for score in family.row_scores[source] if not math.isnan(score)]
                low, high = u.wilson_interval(int(sum(right)), len(right))
            else:
                low, high = u.bootstrap_interval(value, draws[name])
            estimates[name] = Estimate(value, low, high)
    return estimates


# --- comparison ----------------------------------------------------------------------------------


def compare(a_name: str, a: Evaluation, b_name: str, b: Evaluation) -> list[Comparison]:
    """Paired comparison of two contenders on the same rows, for each metric that both have.

    Right-or-wrong metrics: exact McNemar test, Agresti-Min interval. All else: paired bootstrap with the same
    resamples for both. Perplexity isn't compared: it comes without row scores.

    Raises:
        UserError: the two were not evaluated on the same rows, or against other references.
    """
    b = _in_the_order_of(a, b, a_name, b_name)
    exact = {name for family in a.statistics for name in family.right_or_wrong}
    comparisons = []
    for name in a.metrics:
        if name not in b.metrics or name not in a.draws or name not in b.draws:
            continue
        delta = b.metrics[name].value - a.metrics[name].value
        source = _SAME_AS.get(name, name)
        if source in exact:
            pairs = [(x, y) for x, y in zip(a.row_scores[source], b.row_scores[source], strict=True) if x == x]
            only_a, only_b = sum(x > y for x, y in pairs), sum(y > x for x, y in pairs)
            low, high = u.paired_shares_interval(only_a, only_b, len(pairs))
            p, test = u.mcnemar_p(only_a, only_b), "exact McNemar"
        else:
            differences = b.draws[name] - a.draws[name]
            low, high = u.bootstrap_interval(delta, differences)
            p, test = u.paired_bootstrap_p(delta, differences), "paired bootstrap"
        comparisons.append(Comparison(a_name, b_name, name, delta, low, high, p, u.verdict(low, high, p), test))
    return comparisons


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
    if a_ids == b_ids and (a.seed, a.bootstrap) == (b.seed, b.bootstrap):
        return b
    statistics = [
        Statistics(
            family.rows[np.array(order)],
            family.values,
            {name: [scores[j] for j in order] for name, scores in family.row_scores.items()},
            family.right_or_wrong,
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
        draws=u.bootstrap(statistics, a.n, resamples=a.bootstrap, seed=a.seed),
    )
