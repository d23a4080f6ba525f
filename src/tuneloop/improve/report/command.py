"""`tuneloop improve report`: one record of all that a server's store says of how it was kept good, and its page."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from tuneloop.core.files import write_text
from tuneloop.core.ids import utc
from tuneloop.core.units import counted
from tuneloop.improve.controller.controller import APPROVE, DECLINE, END, START, STEP, Cycle, cycles_of, number
from tuneloop.improve.experiment.state import DECISION, STOP, ExperimentState, experiments_of
from tuneloop.improve.experiment.state import START as EXPERIMENT_START
from tuneloop.improve.experiment.statistics import time_of
from tuneloop.improve.feedback.value import ConversationKey, by_request, mean_value
from tuneloop.improve.monitor.command import EVENT as MONITORED
from tuneloop.improve.report import record
from tuneloop.improve.report.html import ENDS, TONES, render_improve_page
from tuneloop.records.record import write_record
from tuneloop.records.server import Decision
from tuneloop.serving.store import Database, opened, read_decisions, read_feedback, store_folder, store_name

MOST_PERIODS = 45  # of traffic, that a chart shows legibly
KEYS = ("name", "candidate", "champion", "measure", "effect", "alpha")  # of a design, that an experiment's line shows


def write_improve_report(location: Path | str) -> tuple[Path, record.ImprovementReport]:
    """Write `improve/report.json` and `improve/report.html` next to a store, and give the page and its record.

    Raises UserError: there is no store, or the files can't be written.
    """
    report = report_of(location)
    folder = store_folder(location) / "improve"
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / record.ImprovementReport.file, report)
    page = folder / "report.html"
    write_text(page, render_improve_page(report))
    return page, report


def report_of(location: Path | str) -> record.ImprovementReport:
    """What a store says, in one record. Raises UserError: there is no store."""
    with opened(location) as store:
        events = list(read_decisions(store))
        first, last, total, usd = store.execute(
            "SELECT MIN(time), MAX(time), COUNT(*), COALESCE(SUM(usd), 0) FROM requests WHERE shadow IS NULL"
        ).fetchone()
        liked = _liked(store)
        periods, days = _periods(store, first, last, liked)
    by_project: dict[str, list[Decision]] = defaultdict(list)
    for event in events:
        if event.kind.startswith("improve."):
            by_project[event.subject].append(event)
    ledgers = [line for project_events in by_project.values() for line in ledger_of(project_events)]
    cycles = [cycle for project_events in by_project.values() for cycle in cycles_of(project_events)]
    experiments = experiments_of(event for event in events if event.kind.startswith("experiment."))
    windows = [event for event in events if event.kind == MONITORED]
    models = {state.design.model for state in experiments.values()} | {window.subject for window in windows}
    return record.ImprovementReport(
        name=", ".join(by_project) or ", ".join(sorted(models)) or store_folder(location).name,
        store=store_name(location),
        since=first or "",
        until=last or "",
        days=days,
        funnel=_funnel(total, len(liked), cycles, experiments),
        periods=periods,
        timeline=[line for event in events if (line := _timeline(event)) is not None],
        experiments=[experiment_line(state) for state in experiments.values()],
        windows=[monitored_window(window.data) for window in windows],
        cycles=ledgers,
        requests_usd=usd,
        training_usd=sum(line.usd for line in ledgers),
        training_hours=sum(line.hours for line in ledgers),
        notes=[] if total else ["No request was served yet."],
    )


def _liked(store: Database) -> dict[str, float]:
    """Request -> mean of what people said of it; feedback on a conversation counts for its last request."""
    last: dict[ConversationKey, list[str]] = {}
    query = (
        "SELECT COALESCE(key, ''), conversation, MAX(id) FROM requests WHERE conversation IS NOT NULL "
        "GROUP BY 1, 2 ORDER BY MIN(id)"
    )
    for key, name, id_ in store.read(query):
        last[key, name] = [id_]
        last.setdefault(name, [id_])
    feedback = by_request(read_feedback(store, origin=False), last)
    return {request: mean for request, of in feedback.items() if (mean := mean_value(of)) is not None}


def _periods(
    store: Database, first: str | None, last: str | None, liked: Mapping[str, float]
) -> tuple[list[record.TrafficPeriod], float]:
    """Traffic by day, or by as many days as keep the chart legible."""
    if not first or not last:
        return [], 1.0
    begin = time_of(first)
    whole = (time_of(last) - begin).total_seconds() / 86_400
    days = next((d for d in (1.0, 7.0, 30.0) if whole / d <= MOST_PERIODS), math.ceil(whole / MOST_PERIODS))
    if whole < 1:
        days = 1 / 24
    counts: dict[int, list[float]] = defaultdict(lambda: [0, 0, 0.0, 0.0])
    for id_, time, usd in store.read("SELECT id, time, COALESCE(usd, 0) FROM requests WHERE shadow IS NULL"):
        of = counts[int((time_of(time) - begin).total_seconds() / 86_400 / days)]
        of[0] += 1
        of[3] += usd
        if id_ in liked:
            of[1] += 1
            of[2] += liked[id_]
    periods = []
    for at in range(max(counts) + 1):
        number, rated, good, usd = counts.get(at, [0, 0, 0.0, 0.0])
        since, mean = utc((begin + timedelta(days=at * days)).timestamp()), good / rated if rated else math.nan
        period = record.TrafficPeriod(since=since, requests=int(number), rated=int(rated), liked=mean, usd=usd)
        periods.append(period)
    return periods, days


def _funnel(
    requests: int, rated: int, cycles: Sequence[Cycle], experiments: Mapping[str, ExperimentState]
) -> list[record.FunnelStep]:
    def done(step: str) -> list[Mapping[str, Any]]:
        return [cycle.done[step] for cycle in cycles if step in cycle.done]

    rows = [int((result.get("counts") or {}).get("sft", 0)) for result in done("collect")]
    outcome_names = {"promote": "promoted", "roll back": "rolled back", "": "running"}
    outcomes = [outcome_names.get(state.ended, state.ended) for state in experiments.values()]
    share = f"{rated / requests:.1%} of them" if requests else ""
    steps = [
        ("requests", requests, "answered and stored"), ("with judgements", rated, share),
        *([("training rows", rows[-1], f"collected for cycle {len(rows)}")] if rows else []),
        ("runs trained", len(done("train")), f"in {counted(len(cycles), 'cycle')}"),
        ("versions registered", len(done("register")), ""),
        ("experiments", len(experiments), ", ".join(f"{outcomes.count(w)} {w}" for w in dict.fromkeys(outcomes))),
        ("promoted", outcomes.count("promoted"), "versions that proved better"),
    ]  # fmt: skip
    return [record.FunnelStep(name=name, count=count, detail=detail) for name, count, detail in steps]


def _timeline(event: Decision) -> record.TimelineEvent | None:
    data, kind = event.data, event.kind

    def line(title: str, sentence: str = "", tone: Any = "plain") -> record.TimelineEvent:
        return record.TimelineEvent(time=event.time, kind=kind, title=title, sentence=sentence, tone=tone)

    if kind == MONITORED:
        if alarms := data.get("alarms"):
            since = f"{counted(data['requests'], 'request')} since {data['since'][:10]}"
            return line(f"alarm: {', '.join(alarms)}", since, "bad")
        return line("no alarm", (data.get("summary") or [""])[0])
    if kind == EXPERIMENT_START:
        design = data["design"]
        return line(f"experiment {event.subject} began", f"{design['candidate']} against {design['champion']}")
    if kind == DECISION:
        tone = TONES.get(data["outcome"], "plain")
        return line(f"{event.subject}: {ENDS.get(data['outcome'], 'continues')}", data["sentence"], tone)
    if kind == STOP:
        return line(f"{event.subject}: stopped by hand", str(data.get("why") or ""))
    if kind not in (START, DECLINE, STEP, APPROVE, END):
        return line(kind.replace(".", " "), str(data.get("why") or data.get("sentence") or ""))
    cycle = f"cycle {data['cycle']}"
    if kind == START:
        return line(f"{cycle} began", "; ".join([*data["reasons"], *([data["why"]] if data.get("why") else [])]))
    if kind == DECLINE:
        return line(f"no {cycle}", f"{'; '.join(data['reasons'])}, but {data['why']}")
    if kind == STEP:
        return line(f"{cycle}: {data['step']}", _result_words(data["step"], data["result"]))
    if kind == APPROVE:
        return line(f"{cycle}: {data['step']} was approved by a person")
    return line(f"{cycle} ended: {data['outcome']}", data["why"], "good" if data["outcome"] == "promoted" else "bad")


def _result_words(step: str, result: Mapping[str, Any]) -> str:
    counts = result.get("counts")
    if step == "collect" and isinstance(counts, Mapping):
        return ", ".join(f"{number:,} {name} rows" for name, number in counts.items() if number)
    if step == "register" and result.get("version") is not None:
        return f"version {result['version']}"
    return str(result.get("sentence") or result.get("status") or result.get("path") or "")


def experiment_line(state: ExperimentState) -> record.ExperimentLine:
    """An experiment from its start to now, for a report."""
    last = state.verdicts[-1] if state.verdicts else None
    sentence = last.sentence if last else ""
    if state.stopped:
        sentence = f"Stopped by hand: {state.why}." if state.why else "Stopped by hand."
    points = []
    for evidence in (verdict.evidence for verdict in state.verdicts):
        bounds = evidence.measure.model_dump(include={"units", "difference", "low", "high"})
        points.append(record.SequencePoint(days=evidence.days, share=evidence.share, **bounds))
    return record.ExperimentLine(
        **{key: getattr(state.design, key) for key in KEYS},
        registration=state.registration,
        started=state.started,
        outcome=state.ended,
        sentence=sentence,
        users=last.evidence.users if last else 0,
        candidate_users=last.evidence.candidate_users if last else 0,
        shadow_votes=last.evidence.shadow_votes if last else 0,
        shadow_copies=max((verdict.evidence.shadow_copies for verdict in state.verdicts), default=0),
        points=points,
        guardrails=last.evidence.guardrails if last else [],
    )


def monitored_window(data: Mapping[str, Any]) -> record.MonitoredWindow:
    """What a window of the monitor showed, for a report; `data`: of the event."""

    def strength(p: float, level: float) -> float:
        return math.log(max(p, 1e-300)) / math.log(level) if 0 < level < 1 else 0.0

    def words(finding: Mapping[str, Any]) -> str:
        distinct = f" Words: {', '.join(finding['words'])}." if finding.get("words") else ""
        return f"{finding['sentence']}.{distinct}" + (
            f" Next: {finding['next_step']}." if finding.get("next_step") else ""
        )

    detections = data.get("detections") or []
    quality = (data.get("quality") or {}).get("estimated")
    return record.MonitoredWindow(
        **{key: data[key] for key in ("since", "until", "requests", "alarms")},
        strengths={finding["name"]: strength(finding["p"], finding["level"]) for finding in detections},
        sentences=[words(finding) for finding in detections if finding["alarm"]],
        quality=math.nan if quality is None else quality,
    )


def ledger_of(events: Sequence[Decision]) -> list[record.LedgerCycle]:
    """The cycles of one project and what each cost, from its events in order."""
    began = {int(e.data["cycle"]): e.data for e in events if e.kind == START}
    steps: dict[int, list[record.LedgerStep]] = defaultdict(list)
    for data in (event.data for event in events if event.kind in (STEP, END)):
        result = _result_words(data["step"], data["result"])
        amounts = {name: data.get(name, 0.0) for name in ("hours", "usd")}
        steps[int(data["cycle"])].append(record.LedgerStep(step=data["step"], **amounts, result=result))
    return [
        record.LedgerCycle(
            **{key: getattr(cycle, key) for key in ("number", "began", "ended", "hours", "usd", "outcome", "why")},
            reasons=list(cycle.reasons),
            expected_usd=number(began[cycle.number]["facts"].get("expected_usd")),
            gain_usd=number(began[cycle.number].get("gain_usd")),
            steps=steps[cycle.number],
        )
        for cycle in cycles_of(events)
    ]
