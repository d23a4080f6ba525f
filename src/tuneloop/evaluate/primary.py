"""Which metric decides, and which others a verdict rests on."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.evaluate.label_use import LabelUse
from tuneloop.evaluate.metrics import headline_of, metric_of

WHOLE, PARTS = "object_accuracy", "field_accuracy"  # what decides about JSON, and where no answer is right as a whole


def primary_metric(
    task: str,
    fields: Collection[str] = (),
    metrics: Collection[str] = (),
    labels_used: Mapping[str, LabelUse] | None = None,
    *,
    named: str | None = None,
) -> str:
    """The metric that decides. It depends on the rows, never on the answers (but see `evaluate.decided_together`).

    Accuracy for labels, macro-F1 where they are uneven (`LabelUse.uneven`), micro-F1 where rows have several; pass@1 for
    programs, the first field's of `evaluate.fields` (accuracy or macro-F1 likewise), whole answers of JSON, else ROUGE-L.

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
        if named not in metrics or not metric_of(named).compared:
            why = "it has no better direction" if named in metrics else "these rows have no such metric"
            raise UserError(
                f"{named!r} can't decide: {why}",
                where="evaluate.primary",
                next_step=did_you_mean(
                    named, [name for name in metrics if metric_of(name).compared], f"choose one of {', '.join(metrics)}"
                ),
            )
        return named
    used = labels_used or {}
    first = []
    if task == "classification":
        several = "subset_accuracy" in metrics
        first = ["micro_f1" if several else "macro_f1" if "" in used and used[""].uneven else "accuracy"]
    choices = [*first, *(name for name in headline_of("programs") if name in metrics)]
    choices += [field_metric(name, metrics, used) for name in fields]
    choices += [name for name in (WHOLE, PARTS) if name in metrics]
    choices += headline_of("texts")
    return next((name for name in choices if name in metrics), choices[0])


def field_metric(name: str, metrics: Collection[str], labels_used: Mapping[str, LabelUse]) -> str:
    """The deciding metric of one field: accuracy or macro-F1 of labels, ROUGE-L or chrF of texts."""
    first = "macro_f1" if name in labels_used and labels_used[name].uneven else "accuracy"
    choices = [f"{name}.{metric}" for metric in (first, "accuracy", *headline_of("texts"))]
    return next((metric for metric in choices if metric in metrics), choices[0])
