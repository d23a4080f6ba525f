"""The page of `tuneloop improve report`: timeline, funnel, confidence sequences, drift, and what it all cost."""

from __future__ import annotations

from typing import Any

from tuneloop.core.units import counted, exactly, hours_words, usd_words, verb
from tuneloop.records.improvement import ExperimentLine, ImprovementReport, LedgerCycle
from tuneloop.report.charts import chart_pair
from tuneloop.report.facts import count
from tuneloop.report.html import page_template
from tuneloop.report.improve_charts import sequence_chart, traffic_chart, windows_chart

ENDS = {
    "promote": "promoted",
    "roll back": "rolled back",
    "futility": "ended for futility",
    "stopped": "stopped by hand",
}
TONES = {"promote": "good", "promoted": "good", "roll back": "bad", "rolled back": "bad", "refused by the gate": "bad"}


def render_improve_page(report: ImprovementReport) -> str:
    """The page as text; one file, no network."""
    return page_template("improve.html.j2").render(page=page_of_improvement(report))


def page_of_improvement(report: ImprovementReport) -> dict[str, Any]:
    """Everything that the template shows, computed and written out."""
    most = max((step.count for step in report.funnel), default=0) or 1
    return {
        "title": f"{report.name}: {_headline(report)}",
        "headline": _headline(report),
        "name": report.name,
        "lede": _lede(report),
        "figures": _figures(report),
        "notes": report.notes,
        "funnel": [(s.name, f"{s.count:,}", s.detail, 100 * s.count / most) for s in report.funnel],
        "traffic": chart_pair(traffic_chart, report.periods),
        "period": {1.0: "day", 7.0: "week", 30.0: "month"}.get(report.days, hours_words(report.days * 24)),
        "experiments": [_experiment(line) for line in report.experiments],
        "windows": chart_pair(windows_chart, report.windows),
        "alarms": [(_day(w.until), s) for w in report.windows for s in w.sentences],
        "calm": sum(not w.alarms for w in report.windows),
        "monitored": len(report.windows),
        "cycles": [_cycle(line) for line in report.cycles],
        "timeline": [(_time(e.time), e.title, e.sentence, e.tone) for e in reversed(report.timeline)],
        "store": report.store,
    }  # fmt: skip


def _headline(report: ImprovementReport) -> str:
    outcomes = [line.outcome for line in report.experiments] + [
        c.outcome for c in report.cycles if "decide" not in {s.step for s in c.steps}
    ]
    promoted = sum(outcome in ("promote", "promoted") for outcome in outcomes)
    back = sum(outcome in ("roll back", "rolled back", "refused by the gate") for outcome in outcomes)
    if not outcomes:
        return f"{count(sum(p.requests for p in report.periods), 'request')}, nothing tried yet"
    return f"{count(promoted, 'candidate')} promoted, {back} turned away"


def _lede(report: ImprovementReport) -> list[str]:
    """What happened last, in whole sentences."""
    lines = [f"{_name(e)}: {e.sentence}" for e in report.experiments[-2:] if e.sentence]
    open_cycle = next((c for c in report.cycles if not c.outcome), None)
    if open_cycle is not None:
        lines.append(f"Cycle {open_cycle.number} goes on; it began because of {'; '.join(open_cycle.reasons)}.")
    return lines


def _name(line: ExperimentLine) -> str:
    return f"Experiment {line.name}"


def _figures(report: ImprovementReport) -> list[tuple[str, str, str]]:
    requests = sum(p.requests for p in report.periods)
    rated = sum(p.rated for p in report.periods)
    users = sum(line.candidate_users for line in report.experiments if line.outcome != "promote")
    found = [
        ("requests", f"{requests:,}", f"{_day(report.since)} to {_day(report.until)}" if requests else ""),
        ("judged", f"{rated / requests:.0%}" if requests else "–", count(rated, "request")),
        ("cycles", str(len(report.cycles)), f"{hours_words(report.training_hours)} of the machine"),
        (
            "spent",
            usd_words(report.requests_usd + report.training_usd),
            f"{usd_words(report.training_usd)} of it to improve",
        ),
    ]
    if report.experiments:
        found.append(("users who met a candidate that was not kept", f"{users:,}", "of all experiments"))
    return found


def _experiment(line: ExperimentLine) -> dict[str, Any]:
    return {
        "name": line.name,
        "outcome": ENDS.get(line.outcome, "goes on"),
        "tone": TONES.get(line.outcome, ""),
        "sentence": line.sentence or "Nothing was decided yet.",
        "about": f"{line.candidate} against {line.champion}, by {line.measure}; smallest gain worth a promotion {line.effect:g}, chance of a "
        f"wrong decision {line.alpha:g}; registered {line.registration[:19]}",
        "chart": chart_pair(sequence_chart, line),
        "users": f"{counted(line.users, 'user')}, {line.candidate_users:,} of them met the candidate"
        + (f"; {counted(line.shadow_copies, 'copy')} {verb(line.shadow_copies, 'was', 'were')} answered unseen before, {line.shadow_votes:,} of them judged" if line.shadow_copies else ""),
        "guardrails": [
            (g.name, _amount(g.name, g.candidate), _amount(g.name, g.champion), exactly(g.tolerance, "time"), f"{max(g.strength, 0):.0%}",
             "bad" if g.tripped else "")
            for g in line.guardrails
        ],
    }  # fmt: skip


def _amount(name: str, value: float) -> str:
    if value != value:
        return "–"
    units = {"latency": f"{value:,.0f} ms", "cost": usd_words(value), "length": f"{value:,.0f} tokens"}
    return units.get(name, f"{value:.1%} of users")


def _cycle(line: LedgerCycle) -> dict[str, Any]:
    known = line.gain_usd == line.gain_usd
    return {
        "number": line.number,
        "began": _time(line.began),
        "outcome": line.outcome or "goes on",
        "tone": TONES.get(line.outcome, ""),
        "why": line.why,
        "reasons": "; ".join(line.reasons),
        "expected": f"expected {usd_words(line.expected_usd)} of cost and {usd_words(line.gain_usd)} of gain"
        if known
        else "",
        "hours": hours_words(line.hours),
        "usd": usd_words(line.usd),
        "steps": [(s.step, hours_words(s.hours), usd_words(s.usd), s.result) for s in line.steps],
    }


def _time(text: str) -> str:
    return text[:16].replace("T", " ")


def _day(text: str) -> str:
    return text[:10]
