"""Checks of the number of rows, of labels, and of rows that contradict each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuneloop.core.units import counted, verb
from tuneloop.data.checks.label_errors import Embed, LabelError, find_label_errors
from tuneloop.data.checks.overview import CheckRows, Finding, Overview, check, examples_of, finding_of, level_at, named
from tuneloop.data.dataset import HARMLESS
from tuneloop.data.split import TEST, TRAIN, VAL, Array, normalised
from tuneloop.records.rows import DoubtfulLabel

FEW_ROWS = 100  # training rows below which a tuned model rarely beats a good prompt, and learns its rows by heart
TASK_ROWS, STYLE_ROWS, DOMAIN_ROWS = 500, 1_000, 5_000  # what a narrow task, a style and a field's language take
FEW_TEST_ROWS = 50  # a share of 50 % measured on fewer rows has a 95 % interval wider than ± 14 points
REJECT_SHARE = 0.05


def reject_share(read: int, rejected: Mapping[str, int]) -> tuple[int, int]:
    """Defective records, and of how many; blank lines, copies and rows left out on request count on neither side."""
    harmless = sum(rejected.get(reason, 0) for reason in HARMLESS)
    return sum(rejected.values()) - harmless, read - harmless


@check("enough_rows", "too few training rows for the task")
def enough_rows(overview: Overview) -> Finding:
    n = len(overview.rows(TRAIN))
    remedy = f"Collect at least {TASK_ROWS} rows, or put examples into the prompt instead."
    if n < FEW_ROWS:
        what = "the model learns them by heart, and examples in the prompt often do as well"
        message = f"only {counted(n, 'training row')}: below {FEW_ROWS}, {what}"
        return Finding("warn", message, n, remedy)
    uses = (
        (TASK_ROWS, f"enough to try a narrow task; {TASK_ROWS} to {STYLE_ROWS:,} make one good"),
        (STYLE_ROWS, f"good for a narrow task; a style takes {STYLE_ROWS:,}, a field's language {DOMAIN_ROWS:,}"),
        (DOMAIN_ROWS, f"good for a task or a style; a field's language takes {DOMAIN_ROWS:,}"),
    )
    use = next((use for below, use in uses if n < below), "good for a task, a style or a field's language")
    return Finding("ok", f"{counted(n, 'training row')}: {use}", n)


@check("val_size", "no validation rows")
def val_size(overview: Overview) -> Finding:
    n = len(overview.rows(VAL))
    if n:
        return Finding("ok", f"{counted(n, 'validation row')}", n)
    message = "no validation rows: training can't be stopped at its best step"
    return Finding("warn", message, 0, "Set data.split.val, for instance to 0.1.")


@check("test_size", "too few test rows for a result that means something")
def test_size(overview: Overview) -> Finding:
    n = len(overview.rows(TEST))
    remedy = f"Give the test split at least {FEW_TEST_ROWS} rows (data.split.test); 400 tell a share to ± 5 points."
    if n == 0:
        return Finding("warn", "no test rows: nothing can be proved with this data set", 0, remedy)
    half = 98.0 / n**0.5  # 1.96 standard errors of a share of one half, in points
    what = "an accuracy" if overview.task == "classification" else "a share of good answers"
    points = f"{half:.{1 if half < 1 else 2}g} points"
    message = f"{counted(n, 'test row')} {verb(n, 'tells', 'tell')} {what} to about ± {points}"
    return Finding("ok" if n >= FEW_TEST_ROWS else "warn", message, n, remedy)


@check("reject_share", "many defective records")
def defective_records(overview: Overview) -> Finding:
    bad, of = reject_share(overview.read, overview.rejected)
    share = bad / of if of else 0.0
    message = f"{bad:,} of {counted(of, 'record')} {verb(bad, 'is', 'are')} defective ({share:.1%})"
    if harmless := overview.read - of:
        reasons = sorted(((overview.rejected[r], r) for r in HARMLESS if overview.rejected.get(r)), reverse=True)
        message += f"; {harmless:,} more left out: {', '.join(f'{n:,} {reason}' for n, reason in reasons[:4])}"
    remedy = "Look at the reasons in rejects.jsonl: one cause is often behind most of them."
    return Finding("warn" if share > REJECT_SHARE else "ok", message, bad, remedy)


@check("cut_files", "source files that end before their data")
def cut_files(overview: Overview) -> Finding | None:
    # A cut file is one reject, whatever is missing of it, so no share of rejects shows it.
    n = overview.rejected.get("cut_file", 0)
    files = "a source file ends" if n == 1 else f"{n} source files end"
    message = f"{files} before the data do: no one knows how many records are missing"
    remedy = "Copy or download it again; rejects.jsonl names file and line under cut_file."
    return Finding("warn", message, n, remedy) if n else None


FEW_LABEL_ROWS = 5
NO_CLASSES = 0.9  # labels a row from which they can't be classes
LABEL_RATIO = 10.0
ALL_LABELS = 12_000  # up to so many rows every label is doubted, which takes 1 to 2 s
SOME_LABELS = 6_000  # of more rows those of a sample


@dataclass(frozen=True)
class Suspects:
    """What `find_label_errors` says of a data set."""

    errors: list[LabelError]  # the most suspicious first, `index` being the row's
    of: int  # rows whose label could be doubted; more than there are errors where a sample was looked at


def find_suspects(overview: Overview, *, embed: Embed | None = None) -> Suspects:
    """Rows whose label looks wrong, the most suspicious first: of all rows, or of a sample of more than 12,000.

    Rows that contradict each other under one text are left to the check `conflicting_labels`. `embed`: sentence
    embeddings, for a better look.
    """
    labelled = overview.rows()
    labelled = labelled[overview.columns["label"][labelled] >= 0]
    labelled = labelled[~np.isin(labelled, _contradictions(overview, _label_of(overview)))]
    # A label of a few rows, as sets of labels mostly are, can't be distinguished from a mistake.
    of_label = overview.columns["label"][labelled]
    labelled = labelled[np.bincount(of_label, minlength=1)[of_label] >= FEW_LABEL_ROWS]
    some = overview.some(labelled, SOME_LABELS if len(labelled) > ALL_LABELS else len(labelled))
    # in an order of their own: that of the sources and that of the files give the same verdicts
    rows = some[np.argsort(overview.columns["question"][some], kind="stable")].tolist()
    codes = overview.columns["label"][rows].tolist()
    texts, labels = [overview.question(i) for i in rows], [overview.names["label"][code] for code in codes]
    ranked = find_label_errors(texts, labels, seed=overview.seed, embed=embed)
    errors = [LabelError(rows[e.index], e.label, e.suggested, e.score, e.confident) for e in ranked]
    return Suspects(errors, len(labelled))


def suspect_records(overview: Overview, suspects: Suspects) -> list[DoubtfulLabel]:
    """The suspicious rows for people to look at: place, split, label, suggestion, score and text."""
    errors = [error for error in suspects.errors if error.label != error.suggested]
    texts = [overview.question(error.index)[:500] for error in errors]
    facts = [{name: getattr(e, name) for name in ("label", "suggested", "score", "confident")} for e in errors]
    places = [overview.example(error.index) for error in errors]
    return [DoubtfulLabel(**p, **f, text=text) for p, f, text in zip(places, facts, texts, strict=True)]


def label_counts(overview: Overview, split: int) -> Array:
    label = overview.columns["label"][overview.rows(split)]
    return np.bincount(label[label >= 0], minlength=len(overview.names["label"]))


@check("label_balance", "rare labels and uneven ones", tasks=("classification",))
def label_balance(overview: Overview) -> Finding:
    names = overview.names["label"]
    rows_of = Counter(dict(zip(names, label_counts(overview, TRAIN).tolist(), strict=True)))
    labels = list(overview.labels) or sorted(names)
    few = [label for label in labels if rows_of[label] < FEW_LABEL_ROWS]
    counts = Counter({label: n for label, n in sorted(rows_of.items()) if n})
    remedy = "Collect rows of the rare labels, merge labels, or limit the frequent ones (data.limit_per_label)."
    if counts.total() >= FEW_ROWS and len(counts) > NO_CLASSES * counts.total():
        size = f"{counted(len(counts), 'label')} for {counted(counts.total(), 'training row')}"
        message = f"{size}: nearly every row has a different one, as ids and answers do"
        remedy = "Name the column with a class (data.label), or have an answer written (data.input and data.output)."
        return Finding("error", message, counts.total(), remedy)
    if few:
        have = f"{len(few):,} of {counted(len(labels), 'label')} {verb(len(few), 'has', 'have')}"
        message = f"{have} fewer than {FEW_LABEL_ROWS} training rows: {named(few)}"
        rows, numbers = overview.rows(TRAIN), [number for number, name in enumerate(names) if name in set(few)]
        rows = rows[np.isin(overview.columns["label"][rows], numbers)]
        return Finding("warn", message, len(rows), remedy, examples_of(overview, rows))
    if not counts:
        return Finding("ok", "no labels", 0)
    (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
    shares = np.array(list(counts.values())) / counts.total()
    effective = float(np.exp(-(shares * np.log(shares)).sum()))  # Hill number of order 1
    sizes = f"{low} ({least!r}) to {high} ({most!r}) training rows each"
    message = f"{counted(len(counts), 'label')}, {sizes}; as diverse as {effective:.1f} labels of equal size"
    return Finding("warn" if high > LABEL_RATIO * low else "ok", message, low, remedy)


@check("unseen_labels", "labels that are tested but never trained", tasks=("classification",))
def unseen_labels(overview: Overview) -> Finding:
    missing = label_counts(overview, TRAIN) == 0
    measured = np.flatnonzero(overview.split > TRAIN)
    label = overview.columns["label"][measured]
    rows = measured[(label >= 0) & missing[label]]
    if not len(rows):
        return Finding("ok", "every label of val and test is in train", 0)
    names = sorted({overview.names["label"][i] for i in overview.columns["label"][rows].tolist()})
    remedy = "Collect training rows of these labels, or take their rows out of val and test."
    message = f"labels in val or test that train never shows: {named(names)}"
    return Finding("warn", message, len(rows), remedy, examples_of(overview, rows))


def _contradictions(overview: Overview, answer_of: Callable[[int], tuple[Any, Any]], most: int | None = None) -> Array:
    """Rows that share their prompt with a row of another answer; rows of one prompt follow each other.

    `answer_of` gives what else an answer depends on, and the answer; `most`: rows to look at.
    """
    rows = overview.rows()
    question = overview.columns["question"][rows]
    order = np.argsort(question, kind="stable")
    question, rows = question[order], rows[order]
    start = np.flatnonzero(np.concatenate([[True], question[1:] != question[:-1]])) if len(rows) else np.array([], int)
    size = np.diff(np.append(start, len(rows)))
    contradicting: list[int] = []
    looked = 0
    for first, n in zip(start[size > 1].tolist(), size[size > 1].tolist(), strict=True):
        if most is not None and looked + n > most:
            break
        looked += n
        answers: dict[Any, dict[Any, list[int]]] = {}
        for index in rows[first : first + n].tolist():
            context, answer = answer_of(index)
            answers.setdefault(context, {}).setdefault(answer, []).append(index)
        for different in answers.values():
            if len(different) > 1:
                contradicting += sorted(index for same in different.values() for index in same)
    return np.array(contradicting, dtype=np.int64)


def _label_of(overview: Overview) -> Callable[[int], tuple[None, int]]:
    column = overview.columns["label"]
    return lambda index: (None, int(column[index]))


def _answer_in_context(overview: Overview) -> Callable[[int], tuple[str, str]]:
    """The turns of the assistant and the tools so far, which a chat's answer depends on, and the answer."""

    def answer_of(index: int) -> tuple[str, str]:
        row = overview.row(index)
        turns = [m for m in row.prompt if m["role"] in ("assistant", "tool")]
        context = [(m["content"], str(m.get("tool_calls", ""))) for m in turns]
        return str(context), normalised(row.answer) + str(row.messages[-1].get("tool_calls", ""))

    return answer_of


@check("conflicting_labels", "one text with two labels", tasks=("classification",))
def conflicting_labels(overview: Overview) -> Finding:
    rows = _contradictions(overview, _label_of(overview))
    n = len(rows)
    shares = f"{counted(n, 'row')} {verb(n, 'shares its', 'share their')}"
    message = f"{shares} text with a row of another label" if n else "no text with two labels"
    examples = [
        overview.example(i, label=overview.names["label"][int(overview.columns["label"][i])])
        for i in rows[: overview.MOST_SHOWN].tolist()
        if overview.columns["label"][i] >= 0
    ]
    remedy = "Decide which label is right, or drop all such rows (data.duplicates.conflicts=drop)."
    return Finding("warn" if n else "ok", message, n, remedy, CheckRows(rows.tolist(), examples))


@check("label_errors", "labels that look wrong", tasks=("classification",))
def label_errors(overview: Overview) -> Finding:
    return doubted_labels(overview, find_suspects(overview))


def doubted_labels(overview: Overview, suspects: Suspects) -> Finding:
    """The check `label_errors`, of what `find_suspects` gives."""
    if not (looked := len(suspects.errors)):
        return Finding("ok", "too few labels to doubt any", 0)
    wrong = [error for error in suspects.errors if error.confident]
    share = len(wrong) / looked
    level = "ok" if len(wrong) < 3 or share < 0.01 else level_at(share, 0, 0.2)
    message = f"{len(wrong)} of {counted(looked, 'label')} {verb(len(wrong), 'looks', 'look')} wrong ({share:.1%})"
    if looked < suspects.of:
        message += f"; a sample of {counted(suspects.of, 'row')}"
    examples = [
        overview.example(e.index, label=e.label, suggested=e.suggested, score=e.score)
        for e in wrong[: overview.MOST_SHOWN]
    ]
    remedy = "Look through label_errors.jsonl from the top and correct what is wrong, above all in the test split."
    return Finding(level, message, len(wrong), remedy, CheckRows((), examples))


@check("conflicting_answers", "one prompt with two answers", tasks=("generation", "chat"))
def conflicting_answers(overview: Overview) -> Finding:
    rows = _contradictions(overview, _answer_in_context(overview), most=5_000)
    good, bad = "no prompt with two answers", "share their prompt with a row of another answer"
    remedy = "Keep the better answer where only one can be right; open questions may well have several."
    warn = 0.01 if overview.task == "generation" else 1.0  # a chat's answers to "thanks" differ, and should
    return finding_of(overview, rows, good, bad, remedy, warn)


@check("conflicting_ratings", "one answer that is liked and disliked", tasks=("generation", "chat"))
def conflicting_ratings(overview: Overview) -> Finding | None:
    if not any("thumb" in overview.row(i).meta for i in overview.some(overview.rows(), 200).tolist()):
        return None
    answer_of = _answer_in_context(overview)

    def rated(index: int) -> tuple[Any, bool | None]:
        thumb = overview.row(index).meta.get("thumb")
        return answer_of(index) if isinstance(thumb, bool) else index, thumb

    rows = _contradictions(overview, rated, most=5_000)
    n = len(rows)
    holds = f"{counted(n, 'row')} {verb(n, 'holds', 'hold')}"
    message = f"{holds} an answer that another row rates otherwise" if n else "no answer is liked and disliked"
    remedy = "Keep the better rated one (data.duplicates.keep=best), or drop all (data.duplicates.conflicts=drop)."
    return Finding("warn" if n else "ok", message, n, remedy, examples_of(overview, rows))
