"""Checks of answers, of signs that a row shows alone, of lengths, the chat template and languages."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from tuneloop.core.units import counted, verb
from tuneloop.data.checks import quality
from tuneloop.data.checks.endings import Endings
from tuneloop.data.checks.overview import Finding, Level, Overview, check, examples_of, question_of, share_of
from tuneloop.data.language import foreign
from tuneloop.data.split import Array
from tuneloop.records.rows import Row

ANSWERS_READ = 4_000  # answers that tell how answers end
UNUSUAL = 4.0  # robust z-score of a length from which a row is an outlier


def robust_z(values: Array) -> Array:
    """Distance from the median in median absolute deviations, scaled to a normal distribution's standard deviation.

    The deviation is at least a tenth, so that data of nearly one length has no outliers by a hair.
    """
    middle = np.median(values)
    scores: Array = (values - middle) / max(1.4826 * float(np.median(np.abs(values - middle))), 0.1)
    return scores


@check("short_answers", "answers far shorter than the rest", tasks=("generation", "chat"))
def short_answers(overview: Overview) -> Finding:
    rows = overview.rows()
    length = overview.columns["answer_characters"][rows]
    short = rows[:0]
    if len(rows) and np.median(length) >= 40:
        short = rows[robust_z(np.log1p(length)) < -UNUSUAL]
    share = len(short) / max(len(rows), 1)
    message = "no answers far shorter than the rest"
    if len(short):
        message = f"{share_of(len(short), len(rows))} have far shorter answers than the rest"
    remedy = "Look whether they are whole; a model that sees both answers short now and then."
    return Finding("warn" if share > 0.005 else "ok", message, len(short), remedy, examples_of(overview, short))


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
    level: Level = "ok" if len(truncated) < 3 or share < 0.003 else "warn" if share < 0.1 else "error"
    message = "no answer seems cut off"
    if len(truncated):
        message = f"{share_of(len(truncated), len(rows))} seem to end in mid-sentence, or with something not closed"
    if len(some) < int(suspicious.sum()):
        message += f"; of those without an end mark, a sample of {len(some):,} was looked at"
    remedy = "Generate these answers again with a higher length limit, or take them out: a model learns to stop early."
    return Finding(level, message, len(truncated), remedy, examples_of(overview, truncated))


@dataclass(frozen=True)
class _Sign:
    """A check that counts rows with a flag of `quality`.

    Args:
        warn: share of the rows above which it warns; error: above which it is an error.
        message: continues after the number of rows.
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


def _count_flagged(sign: _Sign, overview: Overview) -> Finding:
    rows = overview.rows()
    flagged = rows[(overview.columns["flags"][rows] & quality.bit(sign.flag)) > 0]
    share = len(flagged) / max(len(rows), 1)
    level: Level = "ok" if share <= sign.warn else "warn" if share <= sign.error else "error"
    text = f"{share_of(len(flagged), len(rows)) if len(flagged) else '0 rows'} {sign.message}"
    return Finding(level, text, len(flagged), sign.remedy, examples_of(overview, flagged))


for _sign in _SIGNS:
    check(_sign.name, f"rows that {_sign.message}")(functools.partial(_count_flagged, _sign))


SURE_TO_CONFIRM = ("und", "")  # codes of texts without a language


@check("length_outliers", "rows of unusual length")
def length_outliers(overview: Overview) -> Finding:
    rows = overview.rows()
    length = np.log1p(overview.columns["characters"][rows])
    if len(rows) < 20:
        return Finding("ok", "too few rows to call any unusual", 0)
    z = robust_z(length)
    unusual = rows[np.abs(z) > UNUSUAL]
    extreme = bool((length - np.median(length) > np.log(20)).any())
    share = len(unusual) / len(rows)
    level: Level = "warn" if share > 0.01 or extreme else "ok"
    message = "no unusually long or short rows"
    if len(unusual):
        message = f"{share_of(len(unusual), len(rows))} are unusually long or short for this data set"
        unusual = unusual[np.argsort(-np.abs(z[np.abs(z) > UNUSUAL]), kind="stable")]
    remedy = "Look at the longest ones: pasted documents and logs make batches slow and teach little."
    return Finding(level, message, len(unusual), remedy, examples_of(overview, unusual))


@check("too_long", "rows over data.max_length, and what they lose")
def too_long(overview: Overview) -> Finding:
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
        f"{counted(n, 'row')} {verb(n, 'is', 'are')} over {limit} ({share:.1%} lose something): {'; '.join(parts)}"
        if n
        else f"no row is over {limit}"
    )
    remedy = "Raise data.max_length as far as the model's context and memory allow"
    if other := {"reject": "truncate or data.too_long=split", "truncate": "split"}.get(long.policy):
        remedy += f", or set data.too_long={other}"
    if n:
        message += f" (data.too_long={long.policy})"
    return Finding(level, message, n, f"{remedy}.", examples_of(overview, over))


@check("template", "rows that the chat template can't render, or that train nothing")
def template(overview: Overview) -> Finding:
    broken = overview.rejected.get("template_error", 0)
    rows = overview.rows()
    silent = rows[overview.columns["supervised"][rows] == 0]
    nothing = overview.rejected.get("no_supervised_token", 0) + len(silent)
    neutralised = overview.repaired.get("special_tokens", 0)
    n = broken + nothing
    share = n / max(overview.read, len(rows), 1)
    level: Level = "ok" if not n else "warn" if share <= 0.05 else "error"
    message = "every row can be rendered and teaches something"
    if n:
        message = f"{counted(broken, 'row')} that the chat template can't render, {nothing:,} with nothing to learn"
    if neutralised:
        message += f"; control tokens in texts neutralised: {neutralised:,}"
    remedy = "Look at rejects.jsonl for template_error and no_supervised_token; another model's template may allow such turns."
    return Finding(level, message, n, remedy, examples_of(overview, silent))


@check("languages", "rows in another language")
def languages(overview: Overview) -> Finding:
    rows = overview.rows()
    code = overview.columns["language"][rows]
    names = overview.names.get("language", ())
    with_language = (code >= 0) & ~np.isin(code, [i for i, name in enumerate(names) if name in SURE_TO_CONFIRM])
    if not with_language.any():
        return Finding("ok", "languages were not looked at", 0)
    counts = np.bincount(code[with_language], minlength=len(names))
    main = names[int(counts.argmax())]
    others = rows[with_language & (code != counts.argmax())]
    looked = overview.some(others, 500)
    likely = [i for i in looked.tolist() if foreign(question_of(overview.row(i)), main, sure=False)]
    sure = [i for i in likely if foreign(question_of(overview.row(i)), main)]
    n = round(len(sure) * len(others) / max(len(looked), 1))
    detected = int((code >= 0).sum())
    share = n / detected
    message = (
        f"mostly {main!r}; {share_of(n, detected)} in another language" if n else f"all rows seem to be in {main!r}"
    )
    if doubtful := [i for i in likely if i not in sure]:
        message += f"; {len(doubtful):,} may be or not, and data.language keeps them"
    if detected < len(rows):
        message += f"; a sample of {counted(len(rows), 'row')}"
    if len(looked) < len(others):
        message += f", after a look at {len(looked)} of them"
    remedy = f"Set data.language={main} to leave them out, or keep them if the model shall speak these languages too."
    return Finding("warn" if share > 0.005 else "ok", message, n, remedy, examples_of(overview, [*sure, *doubtful]))
