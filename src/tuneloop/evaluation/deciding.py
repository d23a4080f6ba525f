"""The metric that decides about a data set's task, chosen from its rows and the settings before any answer is seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.metrics import structured
from tuneloop.evaluation.metrics.code import problem_of
from tuneloop.evaluation.metrics.labels import label_lists
from tuneloop.evaluation.metrics.objects import object_statistics
from tuneloop.evaluation.metrics.text import is_latin
from tuneloop.evaluation.primary import LabelUse, primary_metric
from tuneloop.evaluation.scoring import labels_of_fields
from tuneloop.records.rows import Row, references_of

CHOOSING = ("primary", "fields", "structured", "run_code", "json_schema")  # settings that the choice depends on
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
    field_labels = labels_of_fields(answers, config.fields)
    metrics, prose = set[str](), list[str]()
    for name in config.fields:
        metrics |= {f"{name}.{m}" for m in (("accuracy", "macro_f1") if name in field_labels else _of_texts(answers))}
    if config.structured is not False and (
        config.structured is True or config.json_schema or structured.are_structured(references)
    ):
        some = references[:_MEASURED]
        allowed = {name: list(counts) for name, counts in field_labels.items()}
        objects = object_statistics(some, answers[:_MEASURED], allowed, config.fields)
        metrics |= {name for family in objects.statistics for name in family.values}
        names = [field.name for field in objects.fields if field.kind == "prose"]
        prose = names if len(names) == len(objects.fields) else []
    else:
        if not config.fields and all(map(is_number, answers)):
            return "exact_match"
        metrics |= set(_of_texts(answers))
    used = {name: LabelUse(counts, {}) for name, counts in field_labels.items()}
    return primary_metric(task, [*config.fields, *prose], metrics, used)


def is_number(text: str) -> bool:
    """Whether an answer is a number and nothing else."""
    try:
        return float(text.strip().replace(",", "")) == float(text.strip().replace(",", ""))
    except ValueError:
        return False


def _of_texts(answers: Sequence[str]) -> tuple[str, ...]:
    return ("rougeL", "chrf") if is_latin(answers) else ("chrf",)
