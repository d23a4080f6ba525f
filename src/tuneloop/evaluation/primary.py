"""Which metric decides: it follows from how often references name each label, never from the answers."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.evaluation.metrics import headline_of, metric_of

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
            why = "it has no better direction" if choice in metrics else "these rows have no such metric"
            compared = [name for name in metrics if metric_of(name).compared]
            next_step = did_you_mean(choice, compared, f"choose one of {', '.join(metrics)}")
            raise UserError(f"{choice!r} can't decide: {why}", where="evaluate.primary", next_step=next_step)
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
