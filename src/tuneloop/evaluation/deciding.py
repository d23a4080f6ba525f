"""Which metric decides: it follows from the rows, how often references name each label, and the settings, so that it is
chosen before any answer is seen.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.metrics.custom import compile_fields, extract, values_repeat
from tuneloop.evaluation.metrics.declared import headline_of, metric_of
from tuneloop.evaluation.metrics.kinds import are_structured, is_latin, is_number, problem_of
from tuneloop.evaluation.metrics.labels import label_lists
from tuneloop.evaluation.metrics.objects import label_fields, object_statistics
from tuneloop.records.rows import Dataset, Row, references_of

IMPORTED = "imported"  # the task of evaluations that other tools have scored
# What decides about these where no one chose: the first that they have, else their first metric.
USUAL = ("accuracy", "acc", "exact_match", "match", "correct", "pass", "acc_norm", "includes", "score")
EVEN = 0.9  # two labels at 69 and 31 % have this evenness, four at 55, 15, 15 and 15 % are well below
FEWEST_ROWS = 5  # mean rows a label; macro averages over fewer are mostly noise, so accuracy decides


@dataclass(frozen=True)
class LabelUse:
    """Rows of each label by reference, and by what the answers say."""

    references: Mapping[str, int]  # label -> rows that have it
    answers: Mapping[str, int]  # label -> rows whose answer names it; answers outside the label set name none
    without: int = 0  # rows with a label whose answer names none; `labelled`: all rows with a label
    labelled: int = 0
    # label -> rows of the whole data set, where that is known: then every sample agrees on whether labels are uneven
    data_set: Mapping[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Labels of all rows together."""
        return sum(self.references.values())

    @property
    def _counts(self) -> Mapping[str, int]:
        return self.data_set or self.references

    @property
    def evenness(self) -> float:
        """Shannon entropy of the labels' shares over its largest possible value: 1 where all are equally frequent or
        fewer than two occur. Source: Pielou 1966, "The measurement of diversity in ... biological collections"."""
        counts, rows = self._counts, sum(self._counts.values())
        if len(counts) < 2:
            return 1.0
        shares = [n / rows for n in counts.values() if n]
        return -sum(share * math.log(share) for share in shares) / math.log(len(counts))

    @property
    def uneven(self) -> bool:
        """Whether accuracy would hide what becomes of the rare labels: evenness below 0.9, and 5 rows a label."""
        return self.evenness < EVEN and sum(self._counts.values()) >= FEWEST_ROWS * len(self._counts)

    @property
    def most_frequent(self) -> tuple[str, float]:
        """The label that most rows of the data set have (of these rows, where only they are known), and its share."""
        label, n = max(self._counts.items(), key=lambda item: (item[1], item[0]))
        return label, n / sum(self._counts.values())

    @property
    def never(self) -> list[str]:
        """Labels of the references that no answer names, the most frequent first."""
        missing = [label for label, n in self.references.items() if n and not self.answers.get(label)]
        return sorted(missing, key=lambda label: (-self.references[label], label))

    @property
    def only(self) -> str | None:
        """The label that every answer names, where several occur in the references; else None."""
        labels = [label for label, n in self.answers.items() if n]
        return labels[0] if len(labels) == 1 and len(self.references) > 1 and not self.without else None


def label_use(
    references: Iterable[Collection[str]], answers: Iterable[Collection[str]], data_set: Mapping[str, int] | None = None
) -> LabelUse:
    """Count labels: for each row those that it has, and those that its answer names; `data_set`: see `LabelUse`."""
    rights, counts = Counter[str](), Counter[str]()
    without = labelled = 0
    for right, answer in itertools.zip_longest(references, answers, fillvalue=()):
        rights.update(right)
        counts.update(answer)
        labelled += bool(right)
        without += bool(right) and not answer
    return LabelUse(dict(rights), dict(counts), without, labelled, dict(data_set or {}))


# What decides about JSON: the first that its rows have. Empty fields are no hits in `filled_f1`, so an answer that says
# nothing earns nothing; whole answers are too rarely right to tell systems apart.
OF_JSON = ("filled_f1", "object_accuracy")


def primary_metric(
    task: str,
    fields: Collection[str] = (),
    metrics: Collection[str] = (),
    labels_used: Mapping[str, LabelUse] | None = None,
    *,
    choice: str | None = None,
    recorded: str = "",
) -> str:
    """The metric that decides. It depends on the rows, never on the answers.

    Accuracy for labels, macro-F1 where they are uneven (`LabelUse.uneven`), micro-F1 where rows have several; pass@1
    for programs, the first field's of `evaluate.fields` (accuracy or macro-F1 likewise), F1 of the filled fields of
    JSON, else ROUGE-L.

    `metrics`: available names; where the first choice isn't among them (a field of free text, a script that ROUGE can't
    read), the next one is taken. `labels_used`: of the rows' labels ("") and of fields, by name. `choice`: the user's,
    `evaluate.primary`. `recorded`: what the data set's record names, which goes before all but that where the rows have
    it. Raises UserError: the user's choice is not available, or neither more nor less of it is better.
    """
    if choice is not None:
        if choice not in metrics or not metric_of(choice).compared:
            reason = "it has no better direction" if choice in metrics else "these rows have no such metric"
            compared = [name for name in metrics if metric_of(name).compared]
            next_step = did_you_mean(choice, compared, f"choose one of {', '.join(metrics)}")
            raise UserError(f"{choice!r} can't decide: {reason}", where="evaluate.primary", next_step=next_step)
        return choice
    if recorded in metrics:
        return recorded
    if task == IMPORTED:
        better = [name for name in metrics if metric_of(name).compared and not metric_of(name).lower_is_better]
        return next((name for name in (*USUAL, *better) if name in metrics), next(iter(metrics), ""))
    used = labels_used or {}
    first = []
    if task == "classification":
        several = "subset_accuracy" in metrics
        first = ["micro_f1" if several else "macro_f1" if "" in used and used[""].uneven else "accuracy"]
    choices = [*first, *(name for name in headline_of("programs") if name in metrics)]
    choices += [field_metric(name, metrics, used) for name in fields]
    choices += [name for name in OF_JSON if name in metrics]
    choices += headline_of("texts")
    return next((name for name in choices if name in metrics), choices[0])


def field_metric(name: str, metrics: Collection[str], labels_used: Mapping[str, LabelUse]) -> str:
    """The deciding metric of one field: accuracy or macro-F1 of labels, ROUGE-L or chrF of texts."""
    first = "macro_f1" if name in labels_used and labels_used[name].uneven else "accuracy"
    choices = [f"{name}.{metric}" for metric in (first, "accuracy", *headline_of("texts"))]
    return next((metric for metric in choices if metric in metrics), choices[0])


CHOOSING = ("primary", "fields", "structured", "run_code", "json_schema")  # settings that the choice depends on
EXAMPLES = 2000  # training answers that show which fields hold labels
_MEASURED = 500  # rows whose fields are looked at one by one


def deciding_metric(
    rows: Sequence[Row], task: str, config: EvaluateConfig, labels: Mapping[str, int] | None = None
) -> str:
    """The metric that decides: the user's (`evaluate.primary`), else what fits the rows, see `primary_metric`; of
    answers that are numbers the share of right ones (`exact_match`): ROUGE would see digits alike.

    `rows`: of the task, best those of training; `task`: as for `evaluate`; `labels`: rows of each label in the whole
    data set, default: of these rows. Empty where there are no rows.
    """
    if config.primary or not rows:
        return config.primary or ""
    if task == "classification":
        lists = label_lists(rows)
        several = () if lists is None else ("subset_accuracy",)
        counts = labels or Counter(row.label for row in rows if row.label is not None)
        return primary_metric(task, (), ("accuracy", "macro_f1", "micro_f1", *several), {"": LabelUse(counts, {})})
    if config.run_code is True or (config.run_code == "auto" and all(problem_of(row) for row in rows)):
        return primary_metric(task, (), ("pass@1",))
    references = [references_of(row) for row in rows]
    answers = [row[0] for row in references]
    is_json = config.structured is not False and (
        config.structured is True or bool(config.json_schema) or are_structured(references)
    )
    if not config.fields and not is_json:
        return "exact_match" if all(map(is_number, answers)) else primary_metric(task, (), _of_texts(answers))
    field_labels = labels_of_fields(answers, config.fields)
    metrics, prose = set[str](), list[str]()
    for name in config.fields:
        metrics |= {f"{name}.{m}" for m in (("accuracy", "macro_f1") if name in field_labels else _of_texts(answers))}
    if is_json:
        some = references[:_MEASURED]
        allowed = {name: list(counts) for name, counts in field_labels.items()}
        objects = object_statistics(some, answers[:_MEASURED], allowed, config.fields)
        metrics |= {name for family in objects.statistics for name in family.values}
        names = [field.name for field in objects.fields if field.kind == "prose"]
        prose = names if len(names) == len(objects.fields) else []
    else:
        metrics |= set(_of_texts(answers))
    used = {name: LabelUse(counts, {}) for name, counts in field_labels.items()}
    return primary_metric(task, [*config.fields, *prose], metrics, used)


def _of_texts(answers: Sequence[str]) -> tuple[str, ...]:
    return ("rougeL", "chrf") if is_latin(answers) else ("chrf",)


def labels_of_fields(answers: Sequence[str], fields: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """The fields of answers whose values repeat, with how often each value occurs: these are labels, the others are
    texts. `answers`: of the task, best those of training: a small test split does not show which values repeat;
    `fields`: patterns, see `evaluate.fields`; the fields of answers in JSON are found without."""
    fields_values = field_values(answers, fields)
    values_of = {name: [value for value in values if value is not None] for name, values in fields_values.items()}
    repeated = {name: values for name, values in values_of.items() if values and values_repeat(values)}
    return {name: dict(sorted(Counter(values).items())) for name, values in repeated.items()}


def field_values(answers: Sequence[str], fields: Mapping[str, str]) -> dict[str, list[str | None]]:
    """The values of fields by patterns, and of JSON fields that are labels; None where an answer lacks the field."""
    by_pattern = {name: [extract(p, text) for text in answers] for name, p in compile_fields(fields).items()}
    return label_fields(answers) | by_pattern if are_structured([[text] for text in answers]) else by_pattern


def label_counts(dataset: Dataset) -> dict[str, int]:
    """Rows of each label in all splits; empty where a split's manifest doesn't have them."""
    splits = [split.labels for split in dataset.manifest.splits.by_name.values()]
    return dict(sum((Counter(s) for s in splits if s), Counter())) if all(splits) else {}


def training_examples(dataset: Dataset) -> list[Row]:
    """The first training rows that show the task; of a large split the others are not read for it."""
    return [row for row in dataset.train[:EXAMPLES] if row.shows_the_task]


def deciding_of(dataset: Dataset, config: EvaluateConfig) -> str:
    """The metric that decides about a data set: what its record names, or what the settings choose from its rows where
    they have a say in it (`CHOOSING`) or the record names none; the same for every system, before any answers."""
    usual = EvaluateConfig()
    if dataset.manifest.deciding_metric and all(getattr(config, n) == getattr(usual, n) for n in CHOOSING):
        return dataset.manifest.deciding_metric
    rows = training_examples(dataset) or [row for row in dataset.test[:EXAMPLES] if row.has_reference]
    return deciding_metric(rows, dataset.task, config, label_counts(dataset))
