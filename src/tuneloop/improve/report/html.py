"""The page of `tuneloop improve report`, with its charts: timeline, funnel, confidence sequences, drift and costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from tuneloop.core.units import counted, exactly, hours_words, usd_words, verb
from tuneloop.core.written import count
from tuneloop.improve.experiment.record import LOSSES, GuardrailFinding
from tuneloop.improve.report.record import (
    ExperimentLine,
    ImprovementReport,
    LedgerCycle,
    MonitoredWindow,
    TrafficPeriod,
)
from tuneloop.report import page_template
from tuneloop.report.charts import WIDE, axis, chart_pair, fit, grid, svg_chart, svg_line, svg_path, svg_text

MOST_WINDOWS = 40  # of the monitor, the last ones


def traffic_chart(periods: Sequence[TrafficPeriod], width: float = WIDE) -> Markup:
    """Requests of each period as bars, the judged ones darker, and the mean judgement as a line below."""
    if not periods:
        return Markup("")
    narrow = width < 500
    left, right, top, middle, lower, bottom = 42.0, width - 8, 22.0, 140.0, 172.0, 250.0
    y = axis([0, *(p.requests for p in periods)], middle, top, steps=3, log=False)
    body = grid(y, left, right, across=True)
    step = (right - left) / len(periods)
    for at, period in enumerate(periods):
        x, wide = left + step * (at + 0.12), max(step * 0.76, 0.8)
        tip = f"{period.since[:10]}: {count(period.requests, 'request')}, {period.rated:,} of them judged"
        for kind, number in (("bar", period.requests), ("bar judged", period.rated)):
            if number:
                box = f'x="{x:.1f}" y="{y(number):.1f}" width="{wide:.1f}" height="{middle - y(number):.1f}"'
                body.append(f'<rect class="{kind}" {box}><title>{escape(tip)}</title></rect>')
    body.append(svg_text(left, 12, "requests, and those that were judged", "legend"))
    share = axis([0, 1], bottom, lower, steps=2, log=False)
    body += grid(share, left, right, across=True)
    points = [(left + step * (at + 0.5), share(p.liked)) for at, p in enumerate(periods) if p.liked == p.liked]
    body.append(svg_path(points, "train"))
    body += [f'<circle class="shape0" cx="{x:.1f}" cy="{v:.1f}" r="2.6"/>' for x, v in points]
    body.append(svg_text(left, lower - 9, "mean judgement, 0 bad to 1 good", "legend"))
    body.append(svg_text(left, bottom + 18, periods[0].since[:10], "tick"))
    if len(periods) > 1:
        body.append(svg_text(right, bottom + 18, periods[-1].since[:10], "tick", "end"))
    liked = [p.liked for p in periods if p.liked == p.liked]
    summary = f"{count(sum(p.requests for p in periods), 'request')} in {count(len(periods), 'period')}"
    summary += f"; mean judgement from {liked[0]:.2f} to {liked[-1]:.2f}" if liked else ""
    return svg_chart(width, bottom + (26 if narrow else 24), summary, body, "traffic")


def sequence_chart(line: ExperimentLine, width: float = WIDE) -> Markup:
    """The arms' difference at each decision with its always-valid bounds; empty before both arms had enough values."""
    points = [p for p in line.points if p.low == p.low and p.high == p.high]
    if not points:
        return Markup("")
    narrow = width < 500
    left, right, top, bottom = 50.0, width - 8, 26.0, 200.0
    y = axis([0.0, line.effect, *(v for p in points for v in (p.low, p.high))], bottom, top, steps=4, log=False)
    days = axis([0.0, max(p.days for p in line.points) or 1.0], left, right, steps=4 if narrow else 8, log=False)
    body = grid(y, left, right, across=True)
    body += [svg_text(days(tick), bottom + 17, f"{tick:g}", "tick", "middle") for tick in days.ticks]
    body.append(svg_text(right, bottom + 33, "days" if narrow else "days since the start", "tick", "end"))
    edge = [(days(p.days), y(p.high)) for p in points] + [(days(p.days), y(p.low)) for p in reversed(points)]
    body.append(f'<path class="band" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in edge)}Z"/>')
    body += [svg_line(left, y(0), right, y(0), "zero"), svg_line(left, y(line.effect), right, y(line.effect), "limit")]
    for p in points:
        at = days(p.days)
        bounds = f"{p.difference:+.3f} [{p.low:+.3f}, {p.high:+.3f}]"
        tip = f"day {p.days:.1f}: {bounds}, {counted(p.units, 'user')}, {p.share:.0%} meet it"
        whisker = svg_line(at, y(p.low), at, y(p.high), "whisker other")
        dot = f'<circle class="shape0" cx="{at:.1f}" cy="{y(p.difference):.1f}" r="3"/>'
        body.append(f"<g><title>{escape(tip)}</title>{whisker}{dot}</g>")
    body.append(svg_path([(days(p.days), y(p.difference)) for p in points], "train"))
    begin, legend = 0.0 if narrow else left, f"difference in {line.measure}, bounds valid at any time"
    body.append(svg_text(begin, 13, fit(legend, right - begin), "legend"))
    body.append(svg_text(left, bottom + 33, f"dashed: +{line.effect:g}, worth a promotion", "tick"))
    last = points[-1]
    summary = f"{line.name}: {last.difference:+.3f} [{last.low:+.3f}, {last.high:+.3f}] after {last.days:.1f} days"
    return svg_chart(width, bottom + 40, summary, body, "sequence")


def windows_chart(windows: Sequence[MonitoredWindow], width: float = WIDE) -> Markup:
    """Each detector's evidence in each window as a dot, the larger the more; alarms are filled in another colour."""
    narrow = width < 500
    windows = windows[-(12 if narrow else MOST_WINDOWS) :]
    names = list(dict.fromkeys(name for window in windows for name in window.strengths))
    if not names:
        return Markup("")
    left, right, pitch, top = 104.0, width - 12, 22.0, 8.0
    step = (right - left) / len(windows)
    body, bottom = [], top + pitch * len(names)
    for row, name in enumerate(names):
        y = top + pitch * (row + 0.5)
        body += [svg_line(left, y, right, y, "grid"), svg_text(0, y + 4, fit(name, left - 8), "name")]
        for at, window in enumerate(windows):
            if (strength := window.strengths.get(name)) is None:
                continue
            kind = "alarm" if name in window.alarms else "calm"
            radius = 2 + 6 * math.sqrt(min(max(strength, 0.0), 1.0))
            tip = f"{name}, {window.since[:10]} to {window.until[:10]}: {strength:.2f} of what an alarm takes"
            circle = f'cx="{left + step * (at + 0.5):.1f}" cy="{y:.1f}" r="{radius:.1f}"'
            body.append(f'<circle class="{kind}" {circle}><title>{escape(tip)}</title></circle>')
    body.append(svg_text(left, bottom + 17, windows[0].since[:10], "tick"))
    body.append(svg_text(right, bottom + 17, f"to {windows[-1].until[:10]}", "tick", "end"))
    alarms = sum(bool(window.alarms) for window in windows)
    summary = f"{count(len(names), 'detector')} in {count(len(windows), 'window')}, {alarms} of them with an alarm"
    return svg_chart(width, bottom + 24, summary, body, "windows")


ENDS = {
    "promote": "promoted", "roll back": "rolled back", "futility": "ended for futility", "stopped": "stopped by hand",
}  # fmt: skip
TONES = {"promote": "good", "promoted": "good", "roll back": "bad", "rolled back": "bad", "refused by the gate": "bad"}


def render_improve_page(report: ImprovementReport) -> str:
    """The page as text; one file, no network."""
    return page_template("improve.html.j2").render(page=page_of_improvement(report))


def page_of_improvement(report: ImprovementReport) -> dict[str, Any]:
    """Everything that the template shows, computed and written out."""
    most = max((step.count for step in report.funnel), default=0) or 1
    lede = [f"Experiment {e.name}: {e.sentence}" for e in report.experiments[-2:] if e.sentence]
    open_cycle = next((c for c in report.cycles if not c.outcome), None)
    if open_cycle is not None:
        lede.append(f"Cycle {open_cycle.number} continues; it began because of {'; '.join(open_cycle.reasons)}.")
    return {
        "title": f"{report.name}: {_headline(report)}", "headline": _headline(report), "name": report.name,
        "lede": lede, "numbers": _numbers(report), "notes": report.notes,
        "funnel": [(s.name, f"{s.count:,}", s.detail, 100 * s.count / most) for s in report.funnel],
        "traffic": chart_pair(traffic_chart, report.periods),
        "period": {1.0: "day", 7.0: "week", 30.0: "month"}.get(report.days, hours_words(report.days * 24)),
        "experiments": [experiment_part(line) for line in report.experiments],
        "windows": chart_pair(windows_chart, report.windows),
        "alarms": [(w.until[:10], s) for w in report.windows for s in w.sentences],
        "calm": sum(not w.alarms for w in report.windows), "monitored": len(report.windows),
        "cycles": [_cycle(line) for line in report.cycles],
        "timeline": [(_time(e.time), e.title, e.sentence, e.tone) for e in reversed(report.timeline)],
        "store": report.store,
    }  # fmt: skip


def _headline(report: ImprovementReport) -> str:
    outcomes = [line.outcome for line in report.experiments]
    outcomes += [c.outcome for c in report.cycles if "decide" not in {s.step for s in c.steps}]
    promoted = sum(outcome in ("promote", "promoted") for outcome in outcomes)
    back = sum(outcome in ("roll back", "rolled back", "refused by the gate") for outcome in outcomes)
    if not outcomes:
        return f"{count(sum(p.requests for p in report.periods), 'request')}, nothing tried yet"
    return f"{count(promoted, 'candidate')} promoted, {back} turned away"


def _numbers(report: ImprovementReport) -> list[tuple[str, str, str]]:
    requests = sum(p.requests for p in report.periods)
    rated = sum(p.rated for p in report.periods)
    users = sum(line.candidate_users for line in report.experiments if line.outcome != "promote")
    spent = usd_words(report.requests_usd + report.training_usd)
    rows = [
        ("requests", f"{requests:,}", f"{report.since[:10]} to {report.until[:10]}" if requests else ""),
        ("judged", f"{rated / requests:.0%}" if requests else "–", count(rated, "request")),
        ("cycles", str(len(report.cycles)), f"{hours_words(report.training_hours)} of the machine"),
        ("spent", spent, f"{usd_words(report.training_usd)} of it to improve"),
    ]
    if report.experiments:
        rows.append(("users who met a candidate that was not kept", f"{users:,}", "of all experiments"))
    return rows


def experiment_part(line: ExperimentLine) -> dict[str, Any]:
    """An experiment as its template shows it."""
    arms = f"{line.candidate} against {line.champion}, by {line.measure}"
    about = f"{arms}; smallest gain worth a promotion {line.effect:g}"
    users = f"{counted(line.users, 'user')}, {line.candidate_users:,} of them met the candidate"
    if line.shadow_copies:
        copies = f"{counted(line.shadow_copies, 'copy')} {verb(line.shadow_copies, 'was', 'were')} answered unseen"
        users += f"; {copies} before, {line.shadow_votes:,} of them judged"
    return {
        "name": line.name, "outcome": ENDS.get(line.outcome, "continues"), "tone": TONES.get(line.outcome, ""),
        "sentence": line.sentence or "Nothing was decided yet.", "chart": chart_pair(sequence_chart, line),
        "about": f"{about}, chance of a wrong decision {line.alpha:g}; registered {line.registration[:19]}",
        "users": users, "guardrails": [_guardrail(rail) for rail in line.guardrails],
    }  # fmt: skip


def _guardrail(rail: GuardrailFinding) -> tuple[str, ...]:
    arms = [_amount(rail.name, value) for value in (rail.candidate, rail.champion)]
    strength = f"{max(rail.strength, 0):.0%}"
    tolerated = f"a loss of {rail.tolerance:g}" if rail.name in LOSSES else exactly(rail.tolerance, "time")
    return rail.name, *arms, tolerated, strength, "bad" if rail.tripped else ""


def _amount(name: str, value: float) -> str:
    if value != value:
        return "–"
    units = {"latency": f"{value:,.0f} ms", "cost": usd_words(value), "length": f"{value:,.0f} tokens"}
    return units.get(name, f"{value:.3f}" if name in LOSSES else f"{value:.1%} of requests")


def _cycle(line: LedgerCycle) -> dict[str, Any]:
    priced = line.gain_usd == line.gain_usd
    expected = f"expected {usd_words(line.expected_usd)} of cost and {usd_words(line.gain_usd)} of gain"
    return {
        "number": line.number, "began": _time(line.began), "outcome": line.outcome or "continues",
        "tone": TONES.get(line.outcome, ""), "why": line.why, "reasons": "; ".join(line.reasons),
        "expected": expected if priced else "", "hours": hours_words(line.hours), "usd": usd_words(line.usd),
        "steps": [(s.step, hours_words(s.hours), usd_words(s.usd), s.result) for s in line.steps],
    }  # fmt: skip


def _time(text: str) -> str:
    return text[:16].replace("T", " ")
