"""Answers to per-row scores: each kind of answer by the metrics that fit it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.patterns import Pattern
from tuneloop.core.stats.intervals import Statistics, mean_statistics
from tuneloop.core.units import counted, verb
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.deciding import IMPORTED, LabelUse, label_use
from tuneloop.evaluation.metrics import structured
from tuneloop.evaluation.metrics import text as text_metrics
from tuneloop.evaluation.metrics.code import code_facts, pass_scores, run_tests
from tuneloop.evaluation.metrics.custom import compile_fields, extract, load_scorer, own_scores, values_repeat
from tuneloop.evaluation.metrics.declared import METRICS, declare, metric_of
from tuneloop.evaluation.metrics.kinds import are_structured, is_latin, parse, parses, problem_of
from tuneloop.evaluation.metrics.labels import (
    are_labels,
    label_lists,
    label_matcher,
    label_reader,
    label_statistics,
    multilabel_statistics,
    vocabulary,
)
from tuneloop.evaluation.metrics.objects import object_statistics
from tuneloop.evaluation.metrics.probabilities import calibration_statistics, confidences, loss_statistics
from tuneloop.evaluation.metrics.text import LONGEST_SCORED, exact_match, token_f1
from tuneloop.models import minilm_embedder
from tuneloop.models.files import MINILM_TITLE
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Row, references_of


@dataclass(frozen=True)
class AnswerStats:
    """What is known apart from rows and answers. Each list is empty or has an entry for each row."""

    further: Sequence[Sequence[str]] = ()  # more answers to the same prompt, for pass@k
    languages: Sequence[str] = ()  # of the prompt, for slices
    row_scores: Mapping[str, Sequence[float]] = field(default_factory=dict)  # measured elsewhere; NaN: doesn't count
    complete: bool = False  # nothing else is to be measured that needs programs, models or files
    perplexity: float | None = None  # measured elsewhere, without an interval; better give the answers' losses
    # fields that hold labels, with these (`labels_of_fields`); default: those whose values repeat in the rows
    field_labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # rows of each label in the whole data set, for the rows' labels ("") and for fields by name; default: of the rows
    label_rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    deciding: str = ""  # the metric that decides, as the data set's record has it; empty: what fits the rows


@dataclass
class Scoring:
    """What scoring gathers on its way through the kinds of metrics."""

    rows: list[Row]
    answers: list[Completion]
    config: EvaluateConfig
    measured: AnswerStats
    field_labels: dict[str, Sequence[str]] = field(default_factory=dict)
    statistics: list[Statistics] = field(default_factory=list)
    signatures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    labels: list[str] | None = None
    predictions: list[str | None] = field(default_factory=list)
    valid: list[bool] = field(default_factory=list)
    valid_counts: bool = False  # whether anything says what a valid answer is
    computed: dict[str, list[float]] = field(default_factory=dict)  # row scores that the texts alone don't give again
    labels_used: dict[str, LabelUse] = field(default_factory=dict)
    prose: list[str] = field(default_factory=list)  # the fields of JSON answers, where all are scored as texts
    code: dict[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        return [answer.text for answer in self.answers]

    @property
    def references(self) -> list[list[str]]:
        return [references_of(row) for row in self.rows]

    def add(self, scores: Mapping[str, list[float]], *, right_or_wrong: bool = True) -> None:
        """Metrics that are means of row scores; rows may be right or wrong where all scores are 0 or 1."""
        binary = [name for name, score in scores.items() if {x for x in score if not math.isnan(x)} <= {0.0, 1.0}]
        self.statistics.append(mean_statistics(scores, right_or_wrong=binary if right_or_wrong else ()))

    def need_valid(self, holds: Sequence[bool]) -> None:
        self.valid = [ok and more for ok, more in zip(self.valid, holds, strict=True)]
        self.valid_counts = True


def score_answers(s: Scoring, task: str, labels: Sequence[str] | None) -> None:
    """Score by every metric that fits the answers; see `evaluate`. Raises UserError: a bad field, schema or scorer."""
    s.predictions, s.valid = [None] * len(s.rows), [True] * len(s.rows)
    if task == IMPORTED:
        for name, scores in s.measured.row_scores.items():
            s.computed[name] = list(scores)
            s.add({name: s.computed[name]})
        return
    if task == "classification":
        _score_labels(s, labels)
    else:
        answered = any(text for row in s.references for text in row)  # programs may come with tests and no solution
        if answered and (s.config.structured is False or not are_structured(s.references)):
            _score_texts(s)
        _score_code(s)
        _score_structure(s)
    for name, pattern in compile_fields(s.config.fields).items():
        score_pattern(s, name, pattern)
    score_own(s)
    losses = [(a.loss, a.loss_tokens) for a in s.answers if a.loss is not None and a.loss_tokens is not None]
    if len(losses) == len(s.answers):
        s.statistics.append(loss_statistics([loss for loss, _ in losses], [tokens for _, tokens in losses]))
    if s.valid_counts:
        invalid = [float(not ok) for ok in s.valid]
        s.statistics.append(mean_statistics({"invalid_rate": invalid}, right_or_wrong=["invalid_rate"]))


def _score_labels(s: Scoring, labels: Sequence[str] | None) -> None:
    s.labels = sorted(set(labels or ()) | {str(row.label) for row in s.rows})
    lists = label_lists(s.rows)
    if lists is not None:
        s.labels = vocabulary(s.rows, labels)
        read = label_reader(s.labels)
        read_answers = [read(answer.text) for answer in s.answers]
        s.predictions = [str(answer) if not answer.outside else None for answer in read_answers]
        s.need_valid([not e.outside and bool(e.labels) != e.none for e in read_answers])
        s.labels_used[""] = label_use(lists, (answer.labels for answer in read_answers), s.measured.label_rows.get(""))
        s.statistics.append(multilabel_statistics(lists, read_answers, s.labels))
        s.notes.append("Rows have several labels: accuracy counts a row as right when all its labels are right.")
    else:
        # A row's reference text ("Queue: billing") also means its label.
        match = label_matcher(s.labels, {row.answer: row.label for row in s.rows if row.label is not None})
        s.predictions = [match(answer.text) for answer in s.answers]
        s.need_valid([prediction is not None for prediction in s.predictions])
        right = [row.label for row in s.rows]
        s.labels_used[""] = label_use(_each(right), _each(s.predictions), s.measured.label_rows.get(""))
        s.statistics.append(label_statistics(right, s.predictions, allowed=s.labels))
        occurring = len(set(right))
        if len(s.rows) < 5 * occurring:
            few = f"{counted(len(s.rows), 'row')} for {counted(occurring, 'label')} {verb(len(s.rows), 'is', 'are')}"
            s.notes.append(
                f"{few} fewer than 5 a label: macro averages come out low and their intervals too narrow. "
                "More rows would help (evaluate.limit, data.split.test)."
            )
    chances = confidences(s.answers)
    if not all(map(math.isnan, chances)):
        defined = [None if math.isnan(chance) else chance for chance in chances]
        s.answers = [replace(a, label_probability=chance) for a, chance in zip(s.answers, defined, strict=True)]
        s.statistics.append(calibration_statistics(chances, s.statistics[0].row_scores["accuracy"]))


def _each(labels: Sequence[str | None]) -> list[tuple[str, ...]]:
    return [() if label is None else (label,) for label in labels]


def _score_texts(s: Scoring) -> None:
    references, texts = s.references, s.texts
    pairs = list(zip(references, texts, strict=True))
    scores = {"exact_match": [exact_match(r, t) for r, t in pairs], "token_f1": [token_f1(r, t) for r, t in pairs]}
    shortened = [t[: max(LONGEST_SCORED, 4 * max(map(len, r)))] for r, t in pairs]
    longer = sum(len(k) < len(t) for k, t in zip(shortened, texts, strict=True))
    if longer:
        were, their = verb(longer, "was", "were"), verb(longer, "its", "their")
        long_ones = f"{counted(longer, 'answer')} above {LONGEST_SCORED:,} characters"
        s.notes.append(f"{long_ones} {were} scored on {their} beginning.")
    if is_latin([text for row in references for text in row]):
        scores |= text_metrics.rouge(references, shortened)
    else:
        s.notes.append("No ROUGE: it reads only a-z and 0-9, and most of these texts are in another script. Read chrF.")
    scores["meteor"] = text_metrics.meteor(references, shortened)
    s.signatures["meteor"] = "nltk, alpha 0.9, beta 3, gamma 0.5, exact and Porter stem, no synonyms"
    s.statistics.append(mean_statistics(scores, right_or_wrong=["exact_match"]))
    for name, scorer in (("bleu", text_metrics.bleu_statistics), ("chrf", text_metrics.chrf_statistics)):
        family, s.signatures[name] = scorer(references, shortened)
        s.statistics.append(family)
    s.statistics.append(text_metrics.length_ratio(references, texts))
    embedding = s.measured.row_scores.get("embedding")
    measures = embedding is None and s.config.embedding and not s.measured.complete
    if measures and (embed := minilm_embedder()) is not None:
        embedding = text_metrics.similarity(references, shortened, embed)
    if embedding is not None:
        s.computed["embedding"] = list(embedding)
        s.signatures["embedding"] = f"cosine of {MINILM_TITLE}"
        s.statistics.append(mean_statistics({"embedding": s.computed["embedding"]}))
    if are_labels(references):
        s.notes.append("The reference answers are few and short: they are also scored as labels (accuracy, F1).")
        names = sorted({row[0] for row in references})
        labels, firsts = list(map(label_matcher(names), texts)), [row[0] for row in references]
        s.labels_used[""] = label_use(_each(firsts), _each(labels))
        s.statistics.append(label_statistics(firsts, labels, allowed=names))
        s.need_valid([label is not None for label in labels])


def _score_code(s: Scoring) -> None:
    scores = {name: list(x) for name, x in s.measured.row_scores.items() if name.startswith("pass@")}
    tested = [problem_of(row) is not None for row in s.rows]
    if not scores:
        run = s.config.run_code
        if s.measured.complete or run is False or (run == "auto" and not all(tested)):
            return
        if not any(tested):
            needed = "rows need the metadata `test` and `entry_point`, or `test_list`"
            raise UserError("No row brings unit tests", where="evaluate.run_code", next_step=needed)
        further = list(s.measured.further) or [()] * len(s.rows)
        texts = [[answer.text, *more] for answer, more in zip(s.answers, further, strict=True)]
        outcomes = run_tests(s.rows, texts)
        scores = pass_scores(outcomes)
        s.code = dict(code_facts(outcomes))
        locks = s.code["protections"]
        if not any("seccomp" in lock or "Landlock" in lock for lock in locks):
            s.notes.append("Programs ran with weak protection on this machine: " + "; ".join(locks) + ".")
    s.computed |= scores
    s.add(scores)


def _score_structure(s: Scoring) -> None:
    config, references = s.config, s.references
    required = config.structured is True or config.json_schema
    if config.structured is False or not (required or are_structured(references)):
        return
    conforms: list[float] | None = None
    if "schema_valid" in s.measured.row_scores:
        conforms = list(s.measured.row_scores["schema_valid"])
    elif config.json_schema and not s.measured.complete:
        check = structured.schema_check(structured.read_schema(config.json_schema))
        conforms = [float(parses(text) and check(parse(text))) for text in s.texts]
        broken = sum(not (parses(r[0]) and check(parse(r[0]))) for r in references)
        if broken:
            s.notes.append(f"{broken} reference answers do not fit the JSON schema themselves.")
    if conforms is not None:
        s.computed["schema_valid"] = conforms
    s.statistics.append(structured.structured_statistics(references, s.texts, conforms))
    objects = object_statistics(references, s.texts, s.field_labels, config.fields)
    s.statistics += objects.statistics
    # A field that the reference has and the answer lacks is missing, not invalid: fields may be optional.
    pairs = zip(references, s.texts, strict=True)
    s.need_valid([parses(text) or not parses(row[0]) for row, text in pairs])
    names = {kind: [field.name for field in objects.fields if field.kind == kind] for kind in ("labels", "prose")}
    s.field_labels |= {name: s.field_labels.get(name, ()) for name in names["labels"]}
    prose = names["prose"]
    if len(prose) == len(objects.fields):
        s.prose = prose
    elif prose:
        need = "prose, scored as text; for a whole answer to be right it need only be there."
        s.notes.append(f"{', '.join(prose)}: {need}")
    if plain := sum(not parses(row[0]) for row in references):
        s.notes.append(f"Reference answers that are no JSON, for which an answer must be the same text: {plain}.")
    if objects.others:
        s.notes.append(f"Fields too rare for a line of their own, which count in whole answers: {objects.others}.")
    if conforms is not None:
        s.need_valid([bool(ok) for ok in conforms])
    fences = (t for t in s.texts if "```" in t and not parses(t))
    if fenced := sum(are_structured([[structured.unfenced(text)]]) for text in fences):
        s.notes.append(f"{counted(fenced, 'answer')} would be valid JSON without the Markdown fence around it.")


def score_own(s: Scoring) -> None:
    """Score by the user's scorers. Raises UserError: one has the name of a metric, or fails."""
    scores_of = {n: list(x) for n, x in s.measured.row_scores.items() if n not in s.computed}
    names = METRICS.keys() | {name for family in s.statistics for name in family.values}
    for name, scorer_path in s.config.scorers.items():
        if name in names:
            message = f"The scorer's name {name!r} is a metric's already"
            raise UserError(message, where="evaluate.scorers", next_step="rename it")
        if name not in scores_of and not s.measured.complete:
            scorer = load_scorer(name, scorer_path)
            scores_of[name] = own_scores(scorer, s.rows, s.texts)
            declare([scorer.metric])
    for name, scores in scores_of.items():
        s.computed[name] = scores
        s.add({name: scores}, right_or_wrong=metric_of(name).test != "paired bootstrap")


def score_pattern(s: Scoring, name: str, pattern: Pattern) -> None:
    """Score a field of `evaluate.fields`. Raises UserError: no reference has it."""
    references = [extract(pattern, row[0]) for row in s.references]
    values = [extract(pattern, answer.text[:LONGEST_SCORED]) for answer in s.answers]
    if all(value is None for value in references):
        message = "The field's pattern matches none of the reference answers"
        next_step = "compare it with an answer of the split; ^ and $ are the ends of a line"
        raise UserError(message, where=f"evaluate.fields.{name}", next_step=next_step)
    filled = [value for value in references if value is not None]
    if lacking := len(references) - len(filled):
        s.notes.append(f"{name}: {lacking} reference answers lack this field and don't count in it.")
    if name in s.field_labels or values_repeat(filled):
        labels = s.field_labels[name] = sorted({*filled, *s.field_labels.get(name, ())})
        match = label_matcher(labels)
        predictions = [None if value is None else match(value) for value in values]
        pairs = list(zip(references, predictions, strict=True))
        answers = _each([None if right is None else prediction for right, prediction in pairs])
        s.labels_used[name] = label_use(_each(references), answers, s.measured.label_rows.get(name))
        s.statistics.append(
            label_statistics(references, predictions, prefix=f"{name}.", every=False, allowed=set(labels))
        )
        s.need_valid([right is None or prediction is not None for right, prediction in pairs])
        return
    right_texts, texts = [[r or ""] for r in references], [f or "" for f in values]
    if is_latin(filled):
        metric, scores = "rougeL", text_metrics.rouge(right_texts, texts, ["rougeL"])["rougeL"]
    else:  # mean of sentence chrF
        metric, scores = "chrf", text_metrics.chrf_statistics(right_texts, texts)[0].row_scores["chrf"]
    counted = [math.nan if r is None else score for r, score in zip(references, scores, strict=True)]
    s.statistics.append(mean_statistics({f"{name}.{metric}": counted}))
    s.need_valid([r is None or f is not None for r, f in zip(references, values, strict=True)])
