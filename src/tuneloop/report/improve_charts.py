"""Charts of `improve/report.html`: traffic and how it was judged, confidence sequences, and the monitor's windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from tuneloop.core.units import counted
from tuneloop.records.improvement import ExperimentLine, MonitoredWindow, TrafficPeriod
from tuneloop.report.charts import WIDE, _line, _path, _svg, _text, axis, fit, grid
from tuneloop.report.facts import count

MOST_WINDOWS = 40  # of the monitor, the last ones


def traffic_chart(periods: Sequence[TrafficPeriod], width: float = WIDE) -> Markup:
    """Requests of each period as bars, the judged ones darker, and the mean judgement as a line below."""
    if not periods:
        return Markup("")
    narrow = width < 500
    left, right, top, middle, lower, bottom = 42.0, width - 8, 22.0, 140.0, 172.0, 250.0
    y = axis([0, *(p.requests for p in periods)], middle, top, wanted=3, log=False)
    body = grid(y, left, right, across=True)
    step = (right - left) / len(periods)
    for at, period in enumerate(periods):
        x, wide = left + step * (at + 0.12), max(step * 0.76, 0.8)
        tip = f"{period.since[:10]}: {count(period.requests, 'request')}, {period.rated:,} of them judged"
        for kind, number in (("bar", period.requests), ("bar judged", period.rated)):
            if number:
                body.append(
                    f'<rect class="{kind}" x="{x:.1f}" y="{y(number):.1f}" width="{wide:.1f}" height="{middle - y(number):.1f}">'
                    f"<title>{escape(tip)}</title></rect>"
                )
    body.append(_text(left, 12, "requests, and those that were judged", "legend"))
    share = axis([0, 1], bottom, lower, wanted=2, log=False)
    body += grid(share, left, right, across=True)
    points = [(left + step * (at + 0.5), share(p.liked)) for at, p in enumerate(periods) if p.liked == p.liked]
    body.append(_path(points, "train"))
    body += [f'<circle class="shape0" cx="{x:.1f}" cy="{v:.1f}" r="2.6"/>' for x, v in points]
    body.append(_text(left, lower - 9, "mean judgement, 0 bad to 1 good", "legend"))
    body.append(_text(left, bottom + 18, periods[0].since[:10], "tick"))
    if len(periods) > 1:
        body.append(_text(right, bottom + 18, periods[-1].since[:10], "tick", "end"))
    liked = [p.liked for p in periods if p.liked == p.liked]
    said = f"{count(sum(p.requests for p in periods), 'request')} in {count(len(periods), 'period')}"
    said += f"; mean judgement from {liked[0]:.2f} to {liked[-1]:.2f}" if liked else ""
    return _svg(width, bottom + (26 if narrow else 24), said, body, "traffic")


def sequence_chart(line: ExperimentLine, width: float = WIDE) -> Markup:
    """The difference of the arms at each decision with its always-valid bounds, and the share of the candidate.

    Empty before both arms had enough values.
    """
    points = [p for p in line.points if p.low == p.low and p.high == p.high]
    if not points:
        return Markup("")
    narrow = width < 500
    left, right, top, bottom = 50.0, width - 8, 26.0, 200.0
    y = axis([0.0, line.effect, *(v for p in points for v in (p.low, p.high))], bottom, top, wanted=4, log=False)
    days = axis([0.0, max(p.days for p in line.points) or 1.0], left, right, wanted=4 if narrow else 8, log=False)
    body = grid(y, left, right, across=True)
    body += [_text(days(tick), bottom + 17, f"{tick:g}", "tick", "middle") for tick in days.ticks]
    body.append(_text(right, bottom + 33, "days" if narrow else "days since the start", "tick", "end"))
    edge = [(days(p.days), y(p.high)) for p in points] + [(days(p.days), y(p.low)) for p in reversed(points)]
    body.append(f'<path class="band" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in edge)}Z"/>')
    body += [_line(left, y(0), right, y(0), "zero"), _line(left, y(line.effect), right, y(line.effect), "limit")]
    for p in points:
        at = days(p.days)
        tip = f"day {p.days:.1f}: {p.difference:+.3f} [{p.low:+.3f}, {p.high:+.3f}], {counted(p.units, 'user')}, {p.share:.0%} meet it"
        body.append(
            f"<g><title>{escape(tip)}</title>{_line(at, y(p.low), at, y(p.high), 'whisker other')}"
            f'<circle class="shape0" cx="{at:.1f}" cy="{y(p.difference):.1f}" r="3"/></g>'
        )
    body.append(_path([(days(p.days), y(p.difference)) for p in points], "train"))
    begin = 0.0 if narrow else left
    body.append(
        _text(begin, 13, fit(f"difference in {line.measure}, bounds valid at any time", right - begin), "legend")
    )
    body.append(_text(left, bottom + 33, f"dashed: +{line.effect:g}, worth a promotion", "tick"))
    last = points[-1]
    said = f"{line.name}: {last.difference:+.3f} [{last.low:+.3f}, {last.high:+.3f}] after {last.days:.1f} days"
    return _svg(width, bottom + 40, said, body, "sequence")


def windows_chart(windows: Sequence[MonitoredWindow], width: float = WIDE) -> Markup:
    """Each detector's evidence in each window as a dot, the larger the more; alarms are filled in another colour."""
    narrow = width < 500
    shown = list(windows)[-(12 if narrow else MOST_WINDOWS) :]
    names = list(dict.fromkeys(name for window in shown for name in window.strengths))
    if not names:
        return Markup("")
    left, right, pitch, top = 104.0, width - 12, 22.0, 8.0
    step = (right - left) / len(shown)
    body, bottom = [], top + pitch * len(names)
    for row, name in enumerate(names):
        y = top + pitch * (row + 0.5)
        body += [_line(left, y, right, y, "grid"), _text(0, y + 4, fit(name, left - 8), "name")]
        for at, window in enumerate(shown):
            strength = window.strengths.get(name)
            if strength is None:
                continue
            kind = "alarm" if name in window.alarms else "calm"
            radius = 2 + 6 * math.sqrt(min(max(strength, 0.0), 1.0))
            tip = f"{name}, {window.since[:10]} to {window.until[:10]}: {strength:.2f} of what an alarm takes"
            body.append(
                f'<circle class="{kind}" cx="{left + step * (at + 0.5):.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{escape(tip)}</title></circle>'
            )
    body.append(_text(left, bottom + 17, shown[0].since[:10], "tick"))
    body.append(_text(right, bottom + 17, f"to {shown[-1].until[:10]}", "tick", "end"))
    alarms = sum(bool(window.alarms) for window in shown)
    said = f"{count(len(names), 'detector')} in {count(len(shown), 'window')}, {alarms} of them with an alarm"
    return _svg(width, bottom + 24, said, body, "windows")
