"""The page of `tuneloop advise --html`: the answer, why, what it costs, and what would change it; with its charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from tuneloop.core.units import counted, exactly, usd_words
from tuneloop.core.written import count, gib, minutes, usd
from tuneloop.evaluation.metrics import metric_of, metric_text
from tuneloop.models.methods import method_named, title_of
from tuneloop.records.advice import AdviceRecord, AdvisedAlternative, AssumptionSwing, MeasuredSystem
from tuneloop.report.charts.svg import WIDE, axis, chart_pair, fit, grid, short, svg_chart, svg_line, svg_path, svg_text
from tuneloop.report.html import page_template
from tuneloop.report.plan_terminal import shown_parts, until_kept_words
from tuneloop.report.quality import quality_chart

MOST_LINES = 6  # alternatives drawn in one chart


def dollars(value: float) -> str:
    """`$1,234`, `−$56`, `$0.42`: without cents from 100 dollars on."""
    if not math.isfinite(value):
        return "never"
    sign, size = "−" if value < 0 else "", abs(value)
    return f"{sign}${size:,.0f}" if size >= 100 else sign + usd(size)


def tornado_chart(swings: Sequence[AssumptionSwing], base: float, width: float = WIDE) -> Markup:
    """Each assumption's bar from the outcome at its low end to that at its high end, the widest first.

    `swings`: name, low, high, at_low, at_high of each; `base`: the outcome with everything as assumed.
    """
    if not swings:
        return Markup("")
    narrow = width < 500
    pitch, top = (46.0, 24.0) if narrow else (32.0, 24.0)
    left, right = (6.0, width - 6) if narrow else (290.0, width - 60)
    scale = axis([base, *(end for s in swings for end in (s.at_low, s.at_high))], left, right, log=False)
    bottom = top + pitch * len(swings)
    names = []  # drawn last, on the lines that they cross
    body = [mark.replace("$-", "−$") for mark in grid(scale, top, bottom, across=False, unit="$")]
    for i, swing in enumerate(swings):
        y = top + pitch * i + (28 if narrow else 9)
        ends = f"{_plain(swing.low)} to {_plain(swing.high)}"
        if narrow:
            names.append(svg_text(0, y - 8, f"{swing.name}: {ends}", "name paper"))
        else:
            body += [svg_text(0, y + 10, fit(swing.name, 165), "name"), svg_text(278, y + 10, ends, "tick", "end")]
        for end, value, outcome in (("low", swing.low, swing.at_low), ("high", swing.high, swing.at_high)):
            a, b = sorted((scale(base), scale(outcome)))
            tip = f"{swing.name} {_plain(value)}: {dollars(outcome)}"
            box = f'x="{a:.1f}" y="{y:.1f}" width="{max(b - a, 0.8):.1f}" height="13"'
            body.append(f'<rect class="swing {end}" {box}><title>{escape(tip)}</title></rect>')
    anchor = "middle" if not narrow else "start"
    body.append(svg_line(scale(base), top - 4, scale(base), bottom, "median"))
    body.append(svg_text(scale(base), 14, f"as assumed: {dollars(base)}", "legend", anchor))
    ranges = [f"{s.name}: {dollars(s.at_low)} to {dollars(s.at_high)}" for s in swings]
    title = f"Net saving when one assumption changes. {'; '.join(ranges)}"
    return svg_chart(width, bottom + 26, title, body + names, "tornado")


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cost_chart(rows: Sequence[AdvisedAlternative], months: float, advised: str, width: float = WIDE) -> Markup:
    """What the alternatives have cost in all after each month: upfront, then the monthly bill.

    `rows`: name, upfront_usd, usd_per_month of each, the baseline first; `advised`: the one that is advised.
    """
    if len(rows) < 2:
        return Markup("")
    narrow = width < 500
    lines = [rows[0], *(r for r in rows[1:] if r.name == advised)]
    lines += [r for r in rows[1:] if r not in lines][: MOST_LINES - len(lines)]
    left, right, top, bottom = (44.0, width - 8, 12.0, 220.0) if narrow else (64.0, width - 190, 12.0, 260.0)
    ends = [r.upfront_usd + months * r.usd_per_month for r in lines]
    scale = axis([0.0, *ends, *(r.upfront_usd for r in lines)], bottom, top, log=False)
    time = axis([0.0, months], left, right, steps=6, log=False)
    body = grid(scale, left, right, across=True, unit="$")
    body += [svg_text(time(tick), bottom + 17, f"{tick:g}", "tick", "middle") for tick in time.ticks]
    body.append(svg_text(right, bottom + 33, "months", "tick", "end"))
    kinds = ["train" if r.name == advised else "val" if i == 0 else "raw" for i, r in enumerate(lines)]
    for row, end, kind in zip(lines, ends, kinds, strict=True):
        body.append(svg_path([(time(0), scale(row.upfront_usd)), (time(months), scale(end))], kind))
    if narrow:
        height = bottom + 50.0
        for row, kind in zip(lines, kinds, strict=True):
            body += [svg_line(0, height - 4, 18, height - 4, kind), svg_text(24, height, row.name, "legend")]
            height += 17
    else:
        labels = [(scale(end), f"{fit(row.name, 118)} {dollars(end)}") for row, end in zip(lines, ends, strict=True)]
        body += [svg_text(time(months) + 8, y + 4, label, "legend") for y, label in _spread(labels, 15, bottom - 6)]
        height = bottom + 40
    totals = [f"{r.name} {dollars(e)}" for r, e in zip(lines, ends, strict=True)]
    title = f"Dollars in all after {exactly(months, 'month')}: {'; '.join(totals)}"
    return svg_chart(width, height, title, body, "costs")


def _spread(labels: Sequence[tuple[float, str]], gap: float, lowest: float) -> list[tuple[float, str]]:
    """Labels moved apart so that none covers another and none is below `lowest`, in their order from the top."""
    order, heights = sorted(labels, key=lambda label: label[0]), list[float]()
    for y, _ in order:
        heights.append(max(y, heights[-1] + gap) if heights else y)
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], lowest)
        lowest = heights[i] - gap
    return [(y, text) for y, (_, text) in zip(heights, order, strict=True)]


ANSWERS = {"dont": "Don't fine-tune", "prompt": "Prompt first", "tune": "Fine-tune"}


def render_advise_page(advice: AdviceRecord) -> str:
    """The page of an advice, as `tuneloop advise --json` prints it, as text; one file, no network."""
    return page_template("advise.html.j2").render(page=page_of_advice(advice))


def page_of_advice(advice: AdviceRecord) -> dict[str, Any]:
    """Everything that the template shows, computed and written out."""
    question, rows = advice.question, advice.alternatives
    method = title_of(advice.method)
    advised = next((row for row in rows if row.name == method), None)
    months = question["months"]
    net, numbers = 0.0, []
    training = advice.trainings.get(advice.method)
    cost = training.cost if training else None
    parts = shown_parts(cost) if cost else {}
    whole = sum(parts.values()) or 1.0
    if training and cost and training.hours is not None:
        usual, high = usd_words(cost.usd or 0.0), usd_words(cost.p90 or 0.0)
        numbers.append(("cost, expected", usual, f"one time in ten more than {high}"))
        numbers.append(("one run", minutes(training.hours * 60), f"{training.gpus} x {training.gpu}"))
    if advised:  # what it saves in all, without what it costs at first
        net = months * (advised.saves_usd_per_month or 0.0) - advised.upfront_usd
        queries = advised.why_never or f"{counted(advised.break_even_queries or 0, 'query')}"
        numbers.append(("pays back after", payback(advised.break_even_days), queries))
        numbers.append((f"saved in {exactly(months, 'month')}", dollars(net), "against today's prompt"))
    trainings, bills = [], []
    for name, t in advice.trainings.items():
        fits, priced = "fits" if t.fits else "does not fit", t.fits and t.cost and t.hours is not None
        memory = f"{gib(t.peak_gib)} of {gib(t.capacity_gib)}, {fits}"
        prices = (minutes((t.hours or 0.0) * 60), usd(t.usd_a_run)) if priced else ("–", "–")
        trainings.append((title_of(name), f"{t.gpus} x {t.gpu}", memory, *prices))
    for mode, bill in advice.monthly_bills.items():
        machines = count(bill.replicas, "machine") if bill.replicas else "none"
        bills.append((mode, dollars(bill.usd), machines, f"{bill.batch_hours:,.0f} h", f"{bill.utilisation:.0%}"))
    explained = (cost.explained or {}) if cost else {}
    return {
        "title": ANSWERS[advice.answer] + (f" {method_named(advice.method).how}" if advice.answer == "tune" else ""),
        "model": question["model"], "words": advice.reasons[0].says, "numbers": numbers,
        "reasons": advice.reasons, "steps": advice.steps, "missing": advice.missing,
        "alternatives": [_alternative(row, advice.leaderboard) for row in rows],
        "months": exactly(months, "month"), "method": method,
        "costs": chart_pair(cost_chart, rows, months, method),
        "tornado": chart_pair(tornado_chart, advice.sensitivity, net) if advice.sensitivity else "",
        "leaderboard": [_entry(c) for c in advice.leaderboard],
        "quality": chart_pair(quality_chart, advice.leaderboard),
        "bills": bills,
        "tokens": [(t.what, "$" + short(float(f"{t.usd_per_million:.3g}")), t.basis) for t in advice.token_prices],
        "trainings": trainings,
        "breakdown": [(name, explained[name], usd_words(n), n / whole) for name, n in parts.items()],
        "until_kept": until_kept_words(cost) if cost else "", "assumptions": advice.assumptions,
    }  # fmt: skip


def payback(days: float | None) -> str:
    """Days until the money is back, in words."""
    return "never" if days is None else "under a day" if days < 1 else counted(days, "day")


def _alternative(row: AdvisedAlternative, leaderboard: list[MeasuredSystem]) -> dict[str, str]:
    metric = leaderboard[0].metric if leaderboard else "accuracy"
    return {
        "name": row.name,
        "quality": metric_text(row.quality, metric) if row.quality is not None else "unknown",
        "upfront": dollars(row.upfront_usd),
        "query": usd_words(row.usd_per_1000_queries),
        "month": dollars(row.usd_per_month),
        "total": dollars(row.total_usd),
        # Nothing for today's way, and for one that saves nothing and costs nothing.
        "pays": payback(row.break_even_days) if row.saves_usd_per_month or row.upfront_usd else "",
        "note": row.note + (f"; {row.why_never}" if row.why_never else ""),
    }


def _entry(c: MeasuredSystem) -> dict[str, str]:
    gain = c.gain_over_prompt
    return {
        "name": f"{c.name} ✓" if c.recommended else c.name,
        "value": metric_text(c.value, c.metric),
        "bounds": "" if c.low == c.high else f"[{metric_text(c.low, c.metric)}, {metric_text(c.high, c.metric)}]",
        "gain": "" if gain is None else f"{gain:+.2f}".replace("-", "−"),
        "tokens": "" if c.prompt_tokens is None else count(c.prompt_tokens),
        "query": "" if c.usd_per_1000_queries is None else usd(c.usd_per_1000_queries),
        "training": "" if c.training_usd is None else usd(c.training_usd),
        "kind": "tuned" if c.name == "tuned" else "",
        "metric": metric_of(c.metric).title,
    }
