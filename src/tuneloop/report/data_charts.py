"""Charts of a data set's report: where its records went, and how its labels are shared out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from tuneloop.report.charts import WIDE, fit, svg_chart, svg_line, svg_text
from tuneloop.report.data_facts import SPLITS, Flow, FlowStage, most_first
from tuneloop.report.facts import count, number

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
    x, place = left, left
    for name, n in flow.splits:
        wide = band * n / total if total else 0.0
        a, b, c, d = (f"{at:.2f}" for at in (x, x + wide, place, place + wide))
        y, mid, low, end = (f"{top + down:.2f}" for down in (0, 23, 46, 58))
        sides = f"C{b} {mid} {d} {mid} {d} {low}L{d} {end}L{c} {end}L{c} {low}C{c} {mid} {a} {mid} {a} {y}"
        body.append(f'<path class="part {name}" d="M{a} {y}L{b} {y}{sides}Z"/>')
        body += [svg_text(place, top + 76, name, "name"), svg_text(place, top + 92, count(n), "tick")]
        x += wide
        place += max(wide + 16, 62 if width < 500 else 84)
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
