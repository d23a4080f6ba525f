"""Checks of answers, of signs that a row shows alone, of lengths, the chat template, languages, and the splits."""

from __future__ import annotations

import numpy as np

from tuneloop.core.stats.tests import holm
from tuneloop.core.units import counted, verb
from tuneloop.data.checks import quality
from tuneloop.data.checks.drift import chi_square, compare_with, kolmogorov_smirnov
from tuneloop.data.checks.labels import label_counts
from tuneloop.data.checks.overview import Finding, Overview, check, examples_of, finding_of, level_at, named, share_of
from tuneloop.data.checks.quality import Endings
from tuneloop.data.clean.language import foreign
from tuneloop.data.split import SPLITS, TEST, TRAIN, VAL, Array
from tuneloop.records.rows import Row

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
    unclosed = rows[(flags & quality.bit("cut_off")) > 0]
    suspicious = (flags & quality.bit("open_end") > 0) & (flags & quality.bit("error_output") == 0)
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
        flagged = rows[(overview.columns["flags"][rows] & quality.bit(flag)) > 0]
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
    thinks, empty, other = (rows[(flags & quality.bit(name)) > 0] for name in names)
    if not (len(thinks) or cut):
        return None
    missing = np.setdiff1d(rows, np.concatenate([thinks, empty]))
    parts = ((missing, "have none"), (empty, "have an empty one"), (other, "reason towards another answer"))
    detail = ", ".join(f"{len(some):,} {what}" for some, what in parts if len(some))
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


def _differ(what: str, measure: str, overview: Overview) -> Finding | None:
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
    differing = [(split, size) for (of, split, _, size), p in adjusted if of == what and p < 0.01 and size > 0.1]
    if not differing:
        return Finding("ok", f"{what} are spread alike over the splits", 0)
    sizes = ", ".join(f"{SPLITS[split]} ({measure} {size:.2f})" for split, size in differing)
    remedy = "Look whether rows of one group or time are in one split only: then the test is harder than the training."
    rows = sum(len(overview.rows(split)) for split, _ in differing)
    return Finding("warn", f"{what} of train differ from {sizes}", rows, remedy)


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
