"""`report.html` of a data set: one self-contained page, made from the files of its folder alone, and its charts."""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from tuneloop.core.files import write_text
from tuneloop.core.written import clean, count, number
from tuneloop.core.written import short_count as short
from tuneloop.records.dataset import DatasetManifest
from tuneloop.records.rows import DoubtfulLabel, DroppedCopy, Row
from tuneloop.report.charts.svg import WIDE, chart_pair, fit, svg_chart, svg_line, svg_text
from tuneloop.report.data import facts as d
from tuneloop.report.data.facts import SPLITS, Flow, FlowStage, most_first
from tuneloop.report.head import KeyNumber
from tuneloop.report.html import inline, page_template, source_lines, split_lines, tally, tokens_of_splits, yaml_text
from tuneloop.report.samples import Parts, from_difference, same_end, side_by_side

LONGEST_TEXT = 1200  # characters of one text that the page shows
LONGEST_VALUE = 240  # characters of one value of a rejected record
LONGEST_DIFF = 500  # characters of each side of a difference: the search for it takes quadratic time
MOST_KEYS = 8  # of a rejected record
OPEN = 8  # pairs and conflicts that are shown before the fold
Names = Callable[[object], str]  # shortens the paths of sources in a text
Hide = Callable[[str], str]  # hides personal data in a text


def write_data_report(dataset: Path | str, hide: Hide = str) -> Path:
    """Write `DATASET/report.html` from the files of the folder; a rerun renders it again.

    `dataset`: the folder; `hide`: takes personal data out of excerpts of records that may hold some, beyond what
    `mask` does. Raises UserError: no such folder, nothing of a data set in it, or it can't be written.
    """
    path = Path(dataset) / "report.html"
    write_text(path, render_data_report(dataset, hide))
    return path


def render_data_report(dataset: Path | str, hide: Hide = str) -> str:
    """The page as text; the arguments are those of `write_data_report`. Whatever the folder does not hold is left out.

    Raises UserError: no such folder, or nothing of a data set in it.
    """
    return page_template("data.html.j2").render(page=page_of(replace(d.read_data(dataset), hide=hide)))


def page_of(facts: d.DataFacts) -> dict[str, Any]:
    """Everything the template shows, computed and written out."""
    manifest = facts.manifest
    short_names, hide = source_names(manifest), mask_of(facts, raw=False)
    # The system turn that the chat template puts before the sampled rows; nothing where all have their own.
    sampled = [d.turns_of(row) for some in facts.samples.values() for row in some]
    has_system = all(turns and (turns[0][0] == "system" or len(turns) == 1) for turns in sampled)
    page: dict[str, Any] = {
        "title": manifest.name if manifest else facts.path.resolve().name,
        "id": manifest.id if manifest else facts.path.resolve().name,
        "words": _words(facts), "numbers": _numbers(facts), "problems": facts.problems,
        "flow": _chart(flow_chart, d.flow_of(facts)), "checks": _checks(manifest, short_names, hide),
        "shape": _shape(manifest), "samples": _samples(facts, hide),
        "template_adds": "" if has_system else cut((manifest and manifest.template_adds) or ""),
        "suspects": [_suspect(r, short_names, hide) for r in facts.label_errors],
        "conflicts": [_conflict(c, short_names, hide) for c in facts.conflicts],
        "conflicting": facts.conflicting,
        "read_in_part": any(n >= d.MOST_ROWS for n in facts.rows_read.values()),
        "most_rows": d.MOST_ROWS, "open": OPEN, "duplicates": _duplicates(facts, short_names),
        "repairs": _repairs(facts, short_names), "redacted": tally(facts.redacted),
        "replaced": manifest is None or manifest.personal_mode != "report",
        "rejects": _rejects(facts, short_names),
        "meanings": sorted((k.replace("_", " "), v) for k, v in (manifest.words if manifest else {}).items()),
        "sources": source_lines(manifest),
        "config": yaml_text(manifest.config if manifest else {}),
        "made_by": manifest.tool_version if manifest else "",
        "made_with": [
            (k, str(v)) for k in ("seed", "model", "hash") if manifest and (v := manifest[k]) not in (None, "")
        ],
        "path": str(facts.path),
    }  # fmt: skip
    names = {
        "flow": "Flow", "checks": "Checks",
        "shape": "Labels and lengths" if page["shape"] and page["shape"]["label_chart"] else "Lengths",
        "suspects": "Labels that look wrong", "conflicts": "Conflicts", "duplicates": "Duplicates",
        "repairs": "Repairs", "redacted": "Personal data", "rejects": "Rejects", "samples": "Samples",
    }  # fmt: skip
    page["sections"] = [*((key, name) for key, name in names.items() if page[key]), ("record", "Record")]
    return page


def _suspect(r: DoubtfulLabel, short_names: Names, hide: Hide) -> dict[str, Any]:
    score, at = f"{r.score:.2f}" if r.score >= 0.005 else "< 0.01", place(r.source, r.line, short_names) or r.id
    fields = {"label": r.label, "suggested": r.suggested, "split": r.split}
    return {**fields, "score": score, "text": cut(hide(r.text)), "place": at}


def _words(facts: d.DataFacts) -> list[str]:
    manifest = facts.manifest
    if manifest is None:
        return []
    counts, form, checks = manifest.counts, manifest.format, manifest.checks
    read_as = f" as {form.name}" + (f" ({form.reason})" if form.reason else "") if form else ""
    summary = [f"{count(counts.read, 'record')} read{read_as}; {count(counts.kept, 'row')} kept for {manifest.task}."]
    bad = [check.level for check in checks if check.level != "ok"]
    errors = f", {bad.count('error')} of them errors" if "error" in bad else ""
    if checks:
        bad_words = f"{len(bad)} of {count(len(checks), 'check')} want a look{errors}."
        summary.append(bad_words if bad else f"All {len(checks)} checks are fine.")
    return summary


def _numbers(facts: d.DataFacts) -> list[KeyNumber]:
    manifest, most = facts.manifest, next(iter(tally(facts.rejected)), None)
    rejected = manifest.counts.rejected if manifest else sum(facts.rejected.values())
    numbers = [KeyNumber("rejected", count(rejected), f"most: {most[0]}" if most else "")] if manifest or most else []
    if manifest is None:
        return numbers
    counts, tokens = manifest.counts, manifest.splits.train.tokens
    share = f"{_share(counts.kept, counts.read)} of the records" if counts.read else ""
    numbers.insert(0, KeyNumber("rows kept", count(counts.kept), share))
    numbers.append(KeyNumber("train rows", count(counts.train), f"{count(counts.val)} val, {count(counts.test)} test"))
    if manifest.labels:
        numbers.append(KeyNumber("labels", count(len(manifest.labels))))
    if tokens and tokens.total:
        numbers.append(KeyNumber("training tokens", short(tokens.total), f"{short(tokens.supervised)} supervised"))
    return numbers


def _share(part: float, whole: float) -> str:
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.0f} %" if percent in (0.0, 100.0) or 1 <= percent <= 99 else f"{percent:.1f} %"


def source_names(manifest: DatasetManifest | None) -> Names:
    """Shortens source paths to their file names where these are unambiguous, also inside a sentence."""
    paths = [source.path for source in manifest.sources] if manifest else []
    names = [Path(p).name for p in paths]
    short_of = {p: n for p, n in zip(paths, names, strict=True) if n and names.count(n) == 1}

    def short_names(text: object) -> str:
        text_or_none = str(text if text is not None else "")
        for path, name in short_of.items():
            text_or_none = text_or_none.replace(path, name)
        return text_or_none

    return short_names


def _chart(draw: Callable[..., Any], data: Any) -> Any:
    return chart_pair(draw, data) if data else ""


def _checks(manifest: DatasetManifest | None, short_names: Names, hide: Hide) -> dict[str, Any]:
    def example_of(example: object) -> dict[str, Any]:
        if not isinstance(example, dict):
            return {"place": "", "values": [("", cut(hide(short_names(inline(example))), LONGEST_VALUE))]}
        fields = [(str(k), v) for k, v in example.items() if k not in ("source", "line", "id")]
        values = [(k, cut(hide(inline(v)), LONGEST_VALUE)) for k, v in fields[:MOST_KEYS]]
        at = place(example.get("source"), example.get("line"), short_names)
        return {"place": at or str(example.get("id") or ""), "values": values}

    if manifest is None or not manifest.checks:
        return {}
    checks = []
    for check in d.checks_of(manifest):
        rows = count(check.rows, "row") if check.rows is not None and check.level != "ok" else ""
        fields = {"level": check.level, "name": check.name.replace("_", " "), "message": check.message, "rows": rows}
        checks.append({**fields, "remedy": check.remedy, "examples": [example_of(e) for e in check.examples[:10]]})
    return {"open": [c for c in checks if c["level"] != "ok"], "ok": [c for c in checks if c["level"] == "ok"]}


def _shape(manifest: DatasetManifest | None) -> dict[str, Any]:
    if manifest is None:
        return {}
    labels = {name: d.above_zero(split.labels or {}) for name, split in manifest.splits.by_name.items()}
    totals = label_totals(labels)
    languages = d.most_first(d.above_zero(manifest.languages or {}))
    whole, most = sum(n for _, n in languages), list(languages[:10])
    if len(languages) > 10:
        most.append((f"{len(languages) - 10} others", sum(n for _, n in languages[10:])))
    return {
        "rows": split_lines(manifest), "token_chart": tokens_of_splits(manifest), "limit": manifest.max_length,
        "label_chart": _chart(split_labels_chart, labels if totals else None),
        "labels": totals, "top": min(len(totals), TOP_LABELS),
        "rest": totals[TOP_LABELS :],
        "languages": [
            (name, _share(n, whole) if n >= 0.0005 * whole else "< 0.1 %", 100 * n / whole) for name, n in most
        ],
    }  # fmt: skip


def _samples(facts: d.DataFacts, hide: Hide) -> dict[str, Any]:
    rows = [row for some in facts.samples.values() for row in some]
    systems = {text for row in rows for role, text in d.turns_of(row)[:1] if role == "system"}
    # The same instruction in every row is shown once.
    shared = systems.pop() if len(systems) == 1 and len(rows) > 1 else None
    splits = []
    for split in (split for split in d.SPLITS if facts.samples.get(split)):
        total = facts.manifest.counts[split] if facts.manifest else None
        splits.append((split, total, [_sample(row, shared, hide) for row in facts.samples[split]]))
    return {"splits": splits, "system": cut(shared) if shared else ""} if splits else {}


def _sample(row: Row, shared: str | None, hide: Hide) -> dict[str, Any]:
    turns = d.turns_of(row)
    if turns and turns[0] == ("system", shared):
        turns = turns[1:]
    source, line = d.place_of(row)
    further = [(k, cut(hide(inline(v)), 80)) for k, v in row.meta.items() if k not in ("source", "line")]
    return {
        "place": f"{Path(source).name}:{line}" if source else row.id,
        "turns": [(role, cut(hide(text))) for role, text in turns],
        "tools": len(row.tools),
        "meta": further[:MOST_KEYS],
    }


def _conflict(conflict: d.Conflict, short_names: Names, hide: Hide) -> dict[str, Any]:
    places_of: dict[str, list[str]] = {}
    for entry in conflict.answers:
        places_of.setdefault(entry.answer, []).append(f"{short_names(entry.source)}:{entry.line} ({entry.split})")
    answers = []
    for answer, places in sorted(places_of.items(), key=lambda pair: -len(pair[1]))[:6]:
        first = ", ".join(places[:3]) + (", …" if len(places) > 3 else "")
        answers.append((cut(hide(answer), 400), len(places), first))
    return {"question": cut(hide(conflict.question), 600), "answers": answers, "more": max(len(places_of) - 6, 0)}


KINDS = ("near", "semantic", "exact")  # the doubtful ones first


def _duplicates(facts: d.DataFacts, short_names: Names) -> list[dict[str, Any]]:
    def doubt(record: DroppedCopy) -> tuple[int, float]:
        return (KINDS.index(record.kind) if record.kind in KINDS else 0, record.similarity)

    hide = mask_of(facts, raw=True)
    pairs = []
    for record in sorted(facts.duplicates, key=doubt):
        texts = from_difference(record.kept_text, record.text, LONGEST_DIFF)
        kept_parts, gone_parts = side_by_side(*(hide(text) for text in same_end(*texts, LONGEST_DIFF)))
        kept_place = place(record.kept_source, record.kept_line, short_names) or record.kept_id
        pairs.append({
            "kind": record.kind.replace("_", " "), "similarity": f"{record.similarity:.2f}",
            "why": short_names(record.why), "kept": kept_parts, "gone": gone_parts, "kept_place": kept_place,
            "place": place(record.source, record.line, short_names) or record.id,
        })  # fmt: skip
    return pairs


def _repairs(facts: d.DataFacts, short_names: Names) -> list[dict[str, Any]]:
    hide, descriptions = mask_of(facts, raw=True), facts.manifest.words if facts.manifest else {}
    total, kinds = facts.repaired, []
    for kind in sorted({*total, *facts.repairs} - {"pii"}, key=lambda k: (-total.get(k, 0.0), k)):
        examples = []
        for record in facts.repairs.get(kind, []):
            parts: Parts = []
            if record.before is not None or record.after is not None:
                before, after = (hide(text) if text is not None else "" for text in (record.before, record.after))
                parts = difference(*same_end(before, after, LONGEST_DIFF), combining=kind == "unicode_form")
            at, detail = place(record.source, record.line, short_names), clean(hide(short_names(record.detail)))
            examples.append({"place": at, "field": clean(record.field), "detail": detail, "parts": parts})
        n = total.get(kind, float(len(examples)))
        kinds.append(
            {"kind": kind.replace("_", " "), "n": n, "means": descriptions.get(kind, ""), "examples": examples}
        )
    return kinds


def _rejects(facts: d.DataFacts, short_names: Names) -> list[dict[str, Any]]:
    hide, meanings = mask_of(facts, raw=True), facts.manifest.words if facts.manifest else {}
    reasons = []
    for reason, n in d.most_first(facts.rejected):
        examples = []
        for reject in facts.rejects.get(reason, []):
            at, detail = (
                place(reject.source, reject.line, short_names),
                cut(hide(short_names(reject.detail)), LONGEST_VALUE),
            )
            # A record that was rejected for personal data holds the very values.
            values = [] if reason == "personal_data" else record_values(reject.record, hide)
            examples.append({"place": at, "detail": detail, "values": values})
        name, means = reason.replace("_", " "), meanings.get(reason, "")
        reasons.append({"reason": name, "n": n, "means": means, "examples": examples})
    return reasons


def record_values(record: object, hide: Hide = d.mask) -> list[tuple[str, str]]:
    """A rejected record, shortened: (key, value) of its first keys; a broken line is one value without a key."""

    def shown(value: object) -> str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        # Hidden before it is cut, so that no value is cut into something that is not recognised.
        return cut(hide(text[: 4 * LONGEST_VALUE]), LONGEST_VALUE)

    if record is None or record == "":
        return []
    if not isinstance(record, dict):
        return [("", shown(record))]
    values = [(key, shown(value)) for key, value in list(record.items())[:MOST_KEYS]]
    if len(record) > MOST_KEYS:
        values.append(("", f"and {count(len(record) - MOST_KEYS, 'further key')}"))
    return values


def mask_of(facts: d.DataFacts, *, raw: bool) -> Hide:
    """What hides personal data in excerpts.

    `facts`: the config in the manifest says what was done about personal data. `raw`: whether the excerpt is of a
    record as it came. Rows of the splits have been redacted, and are shown as they are, unless values were only to be
    reported.
    """
    mode = facts.manifest.personal_mode if facts.manifest else ""
    return (lambda text: d.mask(facts.hide(text))) if mode == "report" or (raw and mode != "off") else str


def cut(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text, cut with a note when it is too long for the page."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… ({count(len(text) - longest, 'more character')})"


def place(source: object, line: object, short_names: Names) -> str:
    """`file:line` of a record, or an empty string where it has no source."""
    at = number(line)
    return clean(short_names(source) + (f":{at:.0f}" if at is not None else "")) if source else ""


def difference(before: str, after: str, *, combining: bool = False) -> Parts:
    """What was deleted and inserted, word by word; what no eye could see in a change is written out.

    `before, after`: the texts; the search takes quadratic time in their length; `combining`: write combining
    characters out as well (a change of Unicode form is invisible otherwise). Returns (kind, text) in order, with kind
    `""` for what both have, `"del"` and `"ins"`.
    """
    a, b = (re.findall(r"\w+|\s|[^\w\s]", text) for text in (before, after))
    parts: Parts = []

    def add(kind: str, tokens: Sequence[str]) -> None:
        text = "".join(tokens)
        if text:
            visible_text = clean(text) if not kind else visible(text, combining=combining)
            if parts and parts[-1][0] == kind:
                parts[-1] = (kind, parts[-1][1] + visible_text)
            else:
                parts.append((kind, visible_text))

    for tag, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        add("" if tag == "equal" else "del", a[i:j])
        if tag != "equal":
            add("ins", b[k:m])
    return parts


def visible(text: str, *, combining: bool = False) -> str:
    """Text with invisible characters written out: `[U+200B]`, `↵`; plain spaces as `␣` where there is nothing else."""
    signs = {"\n": "↵\n", "\t": "⇥", " ": " " if text.strip() else "␣"}
    hidden = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs", *(("Mn", "Me") if combining else ()))
    for char in {*text} - {*signs}:
        signs[char] = f"[U+{ord(char):04X}]" if unicodedata.category(char) in hidden else char
    return "".join(signs[char] for char in text)


BEND = 6.0  # pixels: inner radius where a side exit turns
MOST_EXITS = 7  # reasons drawn for one stage; the rest are one exit
LINE = 19.0  # pixels between the lines next to the flow
TOP_LABELS = 30


def flow_chart(flow: Flow, width: float = WIDE) -> Markup:
    """Records from the sources to the splits: a band as wide as its rows, with an exit for each reason.

    A Sankey diagram that runs downwards, so that it can be read on a phone.
    """
    narrow = width < 500
    left, band = (88.0, 84.0) if narrow else (150.0, 240.0)
    end = left + band + (24.0 if narrow else 64.0)  # where exits end and their names begin
    scale = band / flow.read
    body = [*_station(0, "read", flow.read, width), _rect(left, 0, band, 40, "band")]
    y, before = 40.0, flow.read
    for stage in flow.stages:
        parts, height = _stage(stage, y, left, scale, before, end, width)
        body += parts
        y, before = y + height, stage.rows
    parts, height = _splits(flow, y, left, before * scale, width)
    exits = [f"{reason.replace('_', ' ')}: {count(n)}" for stage in flow.stages for reason, n in stage.exits]
    title = f"{count(flow.read, 'record')} read; {'; '.join(exits)}; "
    title += ", ".join(f"{name} {count(n)}" for name, n in flow.splits)
    return svg_chart(width, y + height, title, body + parts, "flow")


def _station(y: float, name: str, rows: float, width: float) -> list[str]:
    return [
        svg_line(0, y + 0.5, 70 if width < 500 else 130, y + 0.5, "rule"),
        svg_text(0, y + 17, name, "name"),
        svg_text(0, y + 33, count(rows), "tick"),
    ]


def _rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x:.2f}" y="{y:.2f}" width="{max(width, 0):.2f}" height="{height:.2f}"/>'


def _stage(
    stage: FlowStage, top: float, left: float, scale: float, before: float, end: float, width: float
) -> tuple[list[str], float]:
    exits = _gathered(stage.exits)
    body = _station(top, stage.name, stage.rows, width)
    right, y = left + before * scale, top + BEND + 6
    for reason, n in exits:
        thick = n * scale
        slot = max(LINE, thick + 5)
        body.append(_exit(right, right - thick, top, y, end, f"{reason.replace('_', ' ')}: {count(n)}"))
        body.append(_counted(end + 6, y + min(thick / 2, slot) + 4, n, reason, width))
        right -= thick
        y += slot
    if stage.changes and exits:
        y += 4
    for kind, n in _gathered(stage.changes):
        body.append(svg_line(right + 3, y, end, y, "leader"))
        body.append(_counted(end + 6, y + 4, n, kind, width))
        y += LINE
    height = max(48.0, y - top + 4)
    body.insert(0, _rect(left, top, stage.rows * scale, height, "band"))
    return body, height


def _gathered(pairs: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    if len(pairs) <= MOST_EXITS:
        return list(pairs)
    rest = pairs[MOST_EXITS - 1 :]
    return [*pairs[: MOST_EXITS - 1], (f"{len(rest)} other kinds", sum(n for _, n in rest))]


def _exit(right: float, left: float, top: float, y: float, end: float, tip: str) -> str:
    """A ribbon that comes down from `top` between `left` and `right`, turns, and ends level at `end`."""
    thick, outer = right - left, right - left + BEND
    return (
        f'<path class="exit" d="M{left:.2f} {top:.2f}L{right:.2f} {top:.2f}L{right:.2f} {y - BEND:.2f}'
        f"A{BEND:g} {BEND:g} 0 0 0 {right + BEND:.2f} {y:.2f}L{end:.2f} {y:.2f}L{end:.2f} {y + thick:.2f}"
        f'L{right + BEND:.2f} {y + thick:.2f}A{outer:.2f} {outer:.2f} 0 0 1 {left:.2f} {y - BEND:.2f}Z">'
        f"<title>{escape(tip)}</title></path>"
    )


def _counted(x: float, y: float, n: float, name: str, width: float) -> str:
    label = fit(name.replace("_", " "), width - x - len(count(n)) * 7 - 6)
    return (
        f'<text x="{x:.1f}" y="{y:.1f}"><tspan class="value">{count(n)}</tspan> '
        f'<tspan class="what">{escape(label)}</tspan></text>'
    )


def _splits(flow: Flow, top: float, left: float, band: float, width: float) -> tuple[list[str], float]:
    """The band divides into the splits; each is far enough from the next for its name."""
    total = sum(n for _, n in flow.splits)
    body = _station(top, "kept", total, width)
    x, below = left, left
    for name, n in flow.splits:
        wide = band * n / total if total else 0.0
        a, b, c, d = (f"{at:.2f}" for at in (x, x + wide, below, below + wide))
        y, mid, low, end = (f"{top + down:.2f}" for down in (0, 23, 46, 58))
        sides = f"C{b} {mid} {d} {mid} {d} {low}L{d} {end}L{c} {end}L{c} {low}C{c} {mid} {a} {mid} {a} {y}"
        body.append(f'<path class="part {name}" d="M{a} {y}L{b} {y}{sides}Z"/>')
        body += [svg_text(below, top + 76, name, "name"), svg_text(below, top + 92, count(n), "tick")]
        x += wide
        below += max(wide + 16, 62 if width < 500 else 84)
    if flow.added >= 1:
        note = f"{count(flow.added, 'row')} more than records: divided or mixed in"
        body.append(svg_text(0 if width < 500 else left, top + 112, note, "tick"))
        return body, 118.0
    return body, 98.0


def split_labels_chart(splits: Mapping[str, Mapping[str, object]], width: float = WIDE) -> Markup:
    """Rows of each of the `TOP_LABELS` most frequent labels: a bar whose parts are the splits (split -> label -> n)."""
    totals = label_totals(splits)
    if not totals:
        return Markup("")
    narrow = width < 500
    pitch, left, top = (34.0, 0.0, 26.0) if narrow else (22.0, 240.0, 26.0)
    longest = max(totals[0][1], 1.0)
    body, at = [], left
    for name in SPLITS:
        if splits.get(name):
            body.append(f'<rect class="part {name}" x="{at:.1f}" y="3" width="11" height="11"/>')
            body.append(svg_text(at + 16, 13, name, "legend"))
            at += 16 + 7 * len(name) + 18
    for i, (label, total) in enumerate(totals[:TOP_LABELS]):
        y = top + i * pitch
        bar_y, text_y = (y + 18, y + 13) if narrow else (y + 4, y + 14)
        room = width - 52 - left
        parts = [(s, n) for s in SPLITS if (n := number((splits.get(s) or {}).get(label)))]
        tip = f"{label}: " + ", ".join(f"{s} {count(n)}" for s, n in parts)
        x = left
        # The name first: a bar is drawn over the light edge that makes text readable.
        body.append(svg_text(0, text_y, fit(label, width - 20 if narrow else left - 12), "name"))
        body.append(f"<g><title>{escape(tip)}</title>")
        for s, n in parts:
            body.append(_rect(x, bar_y, max(room * n / longest - 0.6, 0.6), 12, f"part {s}"))
            x += room * n / longest
        body.append("</g>")
        body.append(svg_text(x + 6, bar_y + 10, count(total), "tick"))
    most = min(len(totals), TOP_LABELS)
    title = f"Rows of the {most} most frequent of {count(len(totals), 'label')}, by split"
    return svg_chart(width, top + pitch * most + 4, title, body, "labels")


def label_totals(splits: Mapping[str, Mapping[str, object]]) -> list[tuple[str, float]]:
    """(label, rows in all splits), the most frequent first."""
    totals: Counter[str] = Counter()
    for labels in splits.values():
        totals.update({label: number(n) or 0.0 for label, n in labels.items()})
    return list(most_first(totals))
