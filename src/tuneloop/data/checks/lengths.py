"""Checks of lengths, the chat template and languages."""

from __future__ import annotations

import numpy as np

from tuneloop.core.units import counted, verb
from tuneloop.data.checks.answers import UNUSUAL, robust_z
from tuneloop.data.checks.overview import Overview, asked_of, examples_of, share_of
from tuneloop.data.checks.registry import Finding, Level, check
from tuneloop.data.language import foreign

SURE_TO_CONFIRM = ("und", "")  # codes of texts without a language


@check("length_outliers", "rows of unusual length")
def length_outliers(overview: Overview) -> Finding:
    rows = overview.rows()
    length = np.log1p(overview.columns["characters"][rows])
    if len(rows) < 20:
        return Finding("ok", "too few rows to call any unusual", 0)
    z = robust_z(length)
    found = rows[np.abs(z) > UNUSUAL]
    extreme = bool((length - np.median(length) > np.log(20)).any())
    share = len(found) / len(rows)
    level: Level = "warn" if share > 0.01 or extreme else "ok"
    message = "no unusually long or short rows"
    if len(found):
        message = f"{share_of(len(found), len(rows))} are unusually long or short for this data set"
        order = np.argsort(-np.abs(z[np.abs(z) > UNUSUAL]), kind="stable")
        found = found[order]
    remedy = "Look at the longest ones: pasted documents and logs make batches slow and teach little."
    return Finding(level, message, len(found), remedy, examples_of(overview, found))


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
    policies = {"reject": "truncate or data.too_long=split", "truncate": "split"}
    remedy = "Raise data.max_length as far as the model's context and memory allow"
    if other := policies.get(long.policy):
        remedy += f", or set data.too_long={other}"
    if n:
        message += f" (data.too_long={long.policy})"
    return Finding(level, message, n, f"{remedy}.", examples_of(overview, over))


@check("template", "rows that the chat template can't render, or that train nothing")
def template(overview: Overview) -> Finding:
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
        f"{counted(broken, 'row')} that the chat template can't render, {nothing:,} with nothing to learn"
        if n
        else "every row can be rendered and teaches something"
    )
    if neutralised:
        message += f"; control tokens in texts neutralised: {neutralised:,}"
    remedy = "Look at rejects.jsonl for template_error and no_supervised_token; another model's template may allow such turns."
    return Finding(level, message, n, remedy, examples_of(overview, silent))


@check("languages", "rows in another language")
def languages(overview: Overview) -> Finding:
    rows = overview.rows()
    code = overview.columns["language"][rows]
    names = overview.names.get("language", ())
    known = (code >= 0) & ~np.isin(code, [i for i, name in enumerate(names) if name in SURE_TO_CONFIRM])
    if not known.any():
        return Finding("ok", "languages were not looked at", 0)
    counts = np.bincount(code[known], minlength=len(names))
    main = names[int(counts.argmax())]
    others = rows[known & (code != counts.argmax())]
    looked = overview.some(others, 500)
    likely = [i for i in looked.tolist() if foreign(asked_of(overview.row(i)), main, sure=False)]
    sure = [i for i in likely if foreign(asked_of(overview.row(i)), main)]
    n = round(len(sure) * len(others) / max(len(looked), 1))
    asked = int((code >= 0).sum())
    share = n / asked
    message = f"mostly {main!r}; {share_of(n, asked)} in another language" if n else f"all rows seem to be in {main!r}"
    if doubtful := [i for i in likely if i not in sure]:
        message += f"; {len(doubtful):,} may be or not, and data.language keeps them"
    if asked < len(rows):
        message += f"; a sample of {counted(len(rows), 'row')}"
    if len(looked) < len(others):
        message += f", after a look at {len(looked)} of them"
    remedy = f"Set data.language={main} to leave them out, or keep them if the model shall speak these languages too."
    return Finding("warn" if share > 0.005 else "ok", message, n, remedy, examples_of(overview, [*sure, *doubtful]))
