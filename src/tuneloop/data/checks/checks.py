"""What is worth knowing about a data set before money is spent on it: one record for each check.

The examples of a `Check` are up to ten `{"source", "line", "id", "split"}`, some with the label or word in question;
`flagged.jsonl` lists the rows. Only the check of production shows texts, without personal data. What takes long is done
on a sample chosen by hash, and the message says so.

A check is a function from an `Overview` to a `Finding` with the decorator `check`, in this file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuneloop.core.stats.tests import holm
from tuneloop.core.units import counted, verb
from tuneloop.data.checks.drift import chi_square, compare_with, compare_with_production, kolmogorov_smirnov
from tuneloop.data.checks.label_errors import Embed, LabelError, find_label_errors
from tuneloop.data.checks.overview import (
    CHECKS,
    CheckRows,
    Endings,
    Finding,
    Overview,
    bit,
    check,
    examples_of,
    finding_of,
    level_at,
    named,
    overview_of,
    share_of,
)
from tuneloop.data.clean.language import foreign
from tuneloop.data.dataset import HARMLESS, SPLITS, TEST, TRAIN, VAL, Array, normalised
from tuneloop.records.dataset import Check, LongRows
from tuneloop.records.rows import Dataset, DoubtfulLabel, FlaggedRow, Row

__all__ = [
    "CHECKS", "Check", "Finding", "LongRows", "Overview", "Suspects", "check",
    "check_dataset", "examples_of", "find_suspects", "overview_of", "reject_share", "run_checks", "slow_checks",
    "suspect_records",
]  # fmt: skip

LISTED = 1_000  # rows of a check that `flagged.jsonl` lists at most


def slow_checks(overview: Overview) -> tuple[str, ...]:
    """Names of the checks that take long and need only the rows, so that they can run next to other work."""
    return tuple(entry.name for entry in CHECKS.values() if entry.slow and entry.is_for(overview))


def run_checks(
    overview: Overview,
    *,
    suspects: Callable[[], Suspects] | None = None,
    slow: Mapping[str, Callable[[], Finding | None]] | None = None,
    against: Sequence[Row] | None = None,
    flagged: Callable[[Iterator[FlaggedRow]], None] | None = None,
) -> list[Check]:
    """All checks that apply, in the order of `CHECKS`.

    Args:
        suspects: gives the rows with doubtful labels; default: looked for here.
        slow: gives the findings of checks that `slow_checks` names; default: made here.
        against: rows from production to compare with the training rows.
        flagged: receives the rows of each check, whatever its level, at most 1,000 of each; not the doubtful labels.
    """
    elsewhere = dict(slow or {})
    if suspects is not None:
        elsewhere["label_errors"] = lambda: doubted_labels(overview, suspects())
    checks = [entry for entry in CHECKS.values() if entry.is_for(overview)]
    results = {c.name: elsewhere[c.name]() if c.name in elsewhere else c.run(overview) for c in checks}
    if against is not None:
        results["production"] = compare_with_production(overview, against)
    findings = {name: finding for name, finding in results.items() if finding is not None}
    if flagged is not None:
        rows = ((name, row) for name, finding in findings.items() for row in finding.checked.rows[:LISTED])
        flagged(FlaggedRow(name, **overview.example(row)) for name, row in rows)
    return [finding.as_check(name) for name, finding in findings.items()]


def check_dataset(
    dataset: Dataset, *, against: Sequence[Row] | None = None, measure: Callable[[Row], Any] | None = None
) -> list[Check]:
    """The checks of a prepared data set; a split that can't be read is a UserError.

    `against`: rows from production to compare it with; `measure`: a row's `tokens` and `supervised`, as prepare's.
    """
    return run_checks(overview_of(dataset, measure=measure), against=against)


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
        reason = "the model learns them by heart, and examples in the prompt often do as well"
        message = f"only {counted(n, 'training row')}: below {FEW_ROWS}, {reason}"
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
    metric = "an accuracy" if overview.task == "classification" else "a share of good answers"
    points = f"{half:.{1 if half < 1 else 2}g} points"
    message = f"{counted(n, 'test row')} {verb(n, 'tells', 'tell')} {metric} to about ± {points}"
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
def suspect_labels(overview: Overview) -> Finding:
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


ANSWERS_READ = 4_000  # answers that tell how answers end
UNUSUAL = 4.0  # robust z-score of a length from which a row is an outlier


def robust_z(values: Array) -> Array:
    """Distance from the median in median absolute deviations, scaled to a normal distribution's standard deviation.

    The deviation is at least a tenth, so that data of nearly one length has no outliers by a hair.
    """
    middle = np.median(values)
    distances: Array = (values - middle) / max(1.4826 * float(np.median(np.abs(values - middle))), 0.1)
    return distances


@check("short_answers", "answers far shorter than the rest", tasks=("generation", "chat"))
def short_answers(overview: Overview) -> Finding:
    rows = overview.rows()
    length = overview.columns["answer_characters"][rows]
    short = rows[:0]
    if len(rows) and np.median(length) >= 40:
        short = rows[robust_z(np.log1p(length)) < -UNUSUAL]
    good, bad = "no answers far shorter than the rest", "have far shorter answers than the rest"
    remedy = "Look whether they are whole; a model that sees both answers short now and then."
    return finding_of(overview, short, good, bad, remedy, warn=0.005)


def _answers(row: Row) -> list[str]:
    """What the assistant says, turn by turn; what is not trained is not looked at."""
    return [m["content"] for m in row.messages if m["role"] == "assistant" and m.get("weight") != 0]


@check("truncated_answers", "answers that were cut off", tasks=("generation", "chat"), slow=True)
def truncated_answers(overview: Overview) -> Finding:
    rows = overview.rows()
    flags = overview.columns["flags"][rows]
    unclosed = rows[(flags & bit("cut_off")) > 0]
    suspicious = (flags & bit("open_end") > 0) & (flags & bit("error_output") == 0)
    read = overview.some(rows, ANSWERS_READ)
    endings = Endings.of([answer for i in read.tolist() for answer in _answers(overview.row(i))])
    some = overview.some(rows[suspicious], ANSWERS_READ)
    cut = [i for i in some.tolist() if any(map(endings.is_cut, _answers(overview.row(i))))]
    truncated = np.unique(np.concatenate([unclosed, np.array(cut, dtype=np.int64)])).astype(np.int64)
    share = len(truncated) / max(len(rows), 1)
    level = "ok" if len(truncated) < 3 else level_at(share, 0.003, 0.1)
    good, bad = "no answer seems cut off", "seem to end in mid-sentence, or with something not closed"
    remedy = "Generate these answers again with a higher length limit, or take them out: a model learns to stop early."
    finding = finding_of(overview, truncated, good, bad, remedy)._replace(level=level)
    if len(some) == int(suspicious.sum()):
        return finding
    sampled = f"; of those without an end mark, a sample of {len(some):,} was looked at"
    return finding._replace(message=finding.message + sampled)


def _count_flagged(name: str, flag: str, warn: float, error: float, message: str, remedy: str) -> None:
    """The check of a flag: a warning above the share `warn`; `message` continues after the number of rows."""

    @check(name, f"rows that {message}")
    def count_flagged(overview: Overview) -> Finding:
        rows = overview.rows()
        flagged = rows[(overview.columns["flags"][rows] & bit(flag)) > 0]
        return finding_of(overview, flagged, f"0 rows {message}", message, remedy, warn, error)


_FLAG_CHECKS = (  # the arguments of `_count_flagged`
    ("empty_answers", "empty_answer", 0, 0.05, "answer nothing, as in N/A or ...",
     "Answer them or take them out: a model learns to say nothing."),
    ("error_outputs", "error_output", 0, 0.05, "answer with the message of a failed call",
     "Take them out: a model learns to fail."),
    ("boilerplate", "boilerplate", 0.005, 1, "let the assistant speak of itself as an AI",
     "Rewrite them if your assistant should not speak so."),
    ("refusals", "refusal", 0.02, 1, "decline the request",
     "Keep those that are meant: a model soon refuses what it should answer."),
    ("repetition", "repetition", 0.002, 0.1, "repeat themselves over and over",
     "Take them out: a model learns to loop."),
    ("copied_answers", "copied_answer", 0.01, 0.3, "give the input back as the answer",
     "Check the column that the answer is taken from."),
    ("gibberish", "gibberish", 0.005, 0.2, "ask in signs or random keys",
     "Take them out, unless users really write so and the answer fits."),
    ("empty_prompts", "empty_prompt", 0.005, 0.2, "ask next to nothing",
     "Check the column that the prompt is taken from."),
    ("html_leftovers", "html_leftovers", 0.01, 1, "hold HTML tags or entities",
     "Strip the tags if the model should not write them (data.repair.html_entities)."),
    ("garbled_text", "garbled", 0, 0.05, "hold characters that are lost for good (U+FFFD, remains of mojibake, isn?t)",
     "Export the data again as UTF-8: what is lost can't be repaired here."),
    ("secrets", "secret", 0, 0, "still hold what looks like a key or token",
     "Change these keys now, and prepare again with data.personal.mode=placeholder."),
)  # fmt: skip
for _arguments in _FLAG_CHECKS:
    _count_flagged(*_arguments)


@check("reasoning", "reasoning that is missing, empty or cut, or leads to another answer")
def reasoning(overview: Overview) -> Finding | None:
    rows, cut = overview.rows(), overview.rejected.get("cut_reasoning", 0)
    flags = overview.columns["flags"][rows]
    names = ("reasoning", "reasoning_empty", "reasoning_contradicts")
    thinks, empty, other = (rows[(flags & bit(name)) > 0] for name in names)
    if not (len(thinks) or cut):
        return None
    missing = np.setdiff1d(rows, np.concatenate([thinks, empty]))
    parts = ((missing, "have none"), (empty, "have an empty one"), (other, "reason towards another answer"))
    detail = ", ".join(f"{len(some):,} {description}" for some, description in parts if len(some))
    end = f"; reasoning of {counted(cut, 'further row')} is never closed, so {verb(cut, 'it is', 'they are')} left out"
    end = end if cut else ""
    good = f"{counted(len(thinks), 'row')} with reasoning, none without{end}"
    bad = f"lack the reasoning that others have, or contradict it: {detail}{end}"
    remedy = "Have reasoning in all rows or in none (train.reasoning=off), and look at those that contradict it."
    doubtful = np.unique(np.concatenate([missing, empty, other]))
    return finding_of(overview, doubtful, good, bad, remedy)._replace(level="warn" if len(doubtful) or cut else "ok")


NO_LANGUAGE = ("und", "")  # codes of texts without a language


@check("length_outliers", "rows of unusual length")
def length_outliers(overview: Overview) -> Finding:
    rows = overview.rows()
    length = np.log1p(overview.columns["characters"][rows])
    if len(rows) < 20:
        return Finding("ok", "too few rows to call any unusual", 0)
    distance = np.abs(robust_z(length))
    order = np.argsort(-distance, kind="stable")
    unusual = rows[order[distance[order] > UNUSUAL]]
    good, bad = "no unusually long or short rows", "are unusually long or short for this data set"
    remedy = "Look at the longest ones: pasted documents and logs make batches slow and teach little."
    finding = finding_of(overview, unusual, good, bad, remedy, warn=0.01)
    extreme = bool((length - np.median(length) > np.log(20)).any())
    return finding._replace(level="warn") if extreme else finding


@check("too_long", "rows over data.max_length, and what they lose")
def too_long(overview: Overview) -> Finding:
    long = overview.too_long
    tokens = overview.columns["tokens"]
    over = overview.rows()
    over = over[tokens[over] > overview.max_length] if overview.max_length else over[:0]
    shortened = long.rejected + long.cut + len(over)
    share = shortened / max(overview.read, len(overview.rows()), 1)
    limit = f"{overview.max_length:,} tokens" if overview.max_length else "max_length"
    excess = int((tokens[over] - overview.max_length).sum())
    parts = (
        (long.rejected, f"{long.rejected:,} left out with {long.rejected_tokens:,} tokens"),
        (long.cut, f"{long.cut:,} cut by {long.cut_tokens:,} tokens"),
        (long.split, f"{long.split:,} split, which loses nothing"),
        (len(over), f"{len(over):,} still longer, by {excess:,} tokens"),
    )
    n = shortened + long.split
    message = f"no row is over {limit}"
    if n:
        lose = f"({share:.1%} lose something): {'; '.join(part for rows, part in parts if rows)}"
        message = f"{counted(n, 'row')} {verb(n, 'is', 'are')} over {limit} {lose} (data.too_long={long.policy})"
    remedy = "Raise data.max_length as far as the model's context and memory allow"
    if other := {"reject": "truncate or data.too_long=split", "truncate": "split"}.get(long.policy):
        remedy += f", or set data.too_long={other}"
    return Finding(level_at(share, 0.01, 0.2), message, n, f"{remedy}.", examples_of(overview, over))


@check("template", "rows that the chat template can't render, or that train nothing")
def template(overview: Overview) -> Finding:
    broken = overview.rejected.get("template_error", 0)
    rows = overview.rows()
    silent = rows[overview.columns["supervised"][rows] == 0]
    nothing = overview.rejected.get("no_supervised_token", 0) + len(silent)
    neutralised = overview.repaired.get("special_tokens", 0)
    n = broken + nothing
    level = level_at(n / max(overview.read, len(rows), 1), 0, 0.05)
    message = "every row can be rendered and teaches something"
    if n:
        message = f"{counted(broken, 'row')} that the chat template can't render, {nothing:,} with nothing to learn"
    if neutralised:
        message += f"; control tokens in texts neutralised: {neutralised:,}"
    remedy = "Look in rejects.jsonl for template_error and no_supervised_token, or use another model's template."
    return Finding(level, message, n, remedy, examples_of(overview, silent))


@check("languages", "rows in another language")
def languages(overview: Overview) -> Finding:
    rows = overview.rows()
    code = overview.columns["language"][rows]
    names = overview.names.get("language", ())
    with_language = (code >= 0) & ~np.isin(code, [i for i, name in enumerate(names) if name in NO_LANGUAGE])
    if not with_language.any():
        return Finding("ok", "languages were not looked at", 0)
    counts = np.bincount(code[with_language], minlength=len(names))
    main = names[int(counts.argmax())]
    others = rows[with_language & (code != counts.argmax())]
    looked = overview.some(others, 500)
    likely = [i for i in looked.tolist() if foreign(overview.question(i), main, sure=False)]
    sure = [i for i in likely if foreign(overview.question(i), main)]
    n = round(len(sure) * len(others) / max(len(looked), 1))
    detected = int((code >= 0).sum())
    share = n / detected
    message = f"all rows seem to be in {main!r}"
    if n:
        message = f"mostly {main!r}; {share_of(n, detected)} in another language"
    if doubtful := [i for i in likely if i not in sure]:
        message += f"; {len(doubtful):,} may be or not, and data.language keeps them"
    if detected < len(rows):
        message += f"; a sample of {counted(len(rows), 'row')}"
    if len(looked) < len(others):
        message += f", after a look at {len(looked)} of them"
    remedy = f"Set data.language={main} to leave them out, or keep them if the model shall speak these languages too."
    return Finding("warn" if share > 0.005 else "ok", message, n, remedy, examples_of(overview, [*sure, *doubtful]))


# --- the splits against each other -------------------------------------------------------------

FEW_TO_COMPARE = 20  # rows of a split below which it is not compared with another
SPLIT_TEXTS = 800  # texts a split that a classifier tries to tell apart


@check("leaked_prompts", "prompts of val or test that are in train")
def leaked_prompts(overview: Overview) -> Finding:
    question = overview.columns["question"]
    measured = np.flatnonzero(overview.split > TRAIN)
    leaked = measured[np.isin(question[measured], question[overview.rows(TRAIN)])]
    of_test = int((overview.split[leaked] == TEST).sum())
    share = of_test / max(len(overview.rows(TEST)), 1)
    level = level_at(share, 0, 0.01) if of_test or not len(leaked) else "warn"
    message = "no prompt of val or test is in train"
    if len(leaked):
        message = f"{share_of(len(leaked), len(measured))} of val and test have a prompt that is in train"
    remedy = "Take these rows out of train, or split again: what was trained on measures nothing."
    return Finding(level, message, len(leaked), remedy, examples_of(overview, leaked))


@check("split_labels", "labels that are spread unevenly over the splits", tasks=("classification",))
def split_labels(overview: Overview) -> Finding | None:
    return _differ("labels", "Cramér's V", overview)


@check("split_lengths", "lengths that differ between the splits")
def split_lengths(overview: Overview) -> Finding | None:
    return _differ("lengths", "Kolmogorov-Smirnov distance", overview)


def _compared(overview: Overview) -> list[int]:
    if len(overview.rows(TRAIN)) < FEW_TO_COMPARE:
        return []
    return [split for split in (VAL, TEST) if len(overview.rows(split)) >= FEW_TO_COMPARE]


def _differ(subject: str, measure: str, overview: Overview) -> Finding | None:
    """Whether labels or lengths of other splits differ from train's; p-values are adjusted for their number (Holm)."""
    train, others = overview.rows(TRAIN), _compared(overview)
    if not others:
        return None
    length = overview.columns["characters"]
    trials: list[tuple[str, int, float, float]] = []  # what, split, p, size of the difference
    for split in others:
        distance, p = kolmogorov_smirnov(length[train], length[overview.rows(split)])
        trials.append(("lengths", split, p, distance))
        if overview.task == "classification" and overview.names["label"]:
            p, size = chi_square(label_counts(overview, TRAIN), label_counts(overview, split))
            trials.append(("labels", split, p, size))
    adjusted = zip(trials, holm([p for _, _, p, _ in trials]), strict=True)
    differing = [(split, size) for (of, split, _, size), p in adjusted if of == subject and p < 0.01 and size > 0.1]
    if not differing:
        return Finding("ok", f"{subject} are spread alike over the splits", 0)
    sizes = ", ".join(f"{SPLITS[split]} ({measure} {size:.2f})" for split, size in differing)
    remedy = "Look whether rows of one group or time are in one split only: then the test is harder than the training."
    rows = sum(len(overview.rows(split)) for split, _ in differing)
    return Finding("warn", f"{subject} of train differ from {sizes}", rows, remedy)


@check("split_wording", "a test split that is worded otherwise than train", slow=True)
def split_wording(overview: Overview) -> Finding | None:
    if TEST not in _compared(overview):
        return None
    test = overview.rows(TEST)
    samples = (overview.some(rows, SPLIT_TEXTS).tolist() for rows in (overview.rows(TRAIN), test))
    drift = compare_with(*([overview.question(i) for i in rows] for rows in samples), seed=overview.seed)
    auc = drift.auc
    if not auc.low > 0.55:  # NaN with too few texts
        return Finding("ok", "train and test are worded alike", 0)
    score = f"AUC {auc.value:.2f}, {auc.low:.2f} to {auc.high:.2f}"
    message = f"a classifier tells train from test by their words ({score})"
    if drift.words_b:
        message += f"; test has more of {named(drift.words_b)}"
    remedy = "Look at what the words have in common: results on the test will not look like those in training."
    return Finding("warn", message, len(test), remedy)
