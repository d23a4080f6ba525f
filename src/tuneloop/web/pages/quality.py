"""Quality: the monitor's windows on a time axis, the words and requests behind each alarm, accuracy over time."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request

from tuneloop.core.errors import UserError
from tuneloop.core.ids import clock, since_time, utc
from tuneloop.improve.monitor import EVENT, MonitorReport, ignore, ignored
from tuneloop.improve.report import accuracy_chart, day_chart, monitored_window, windows_chart
from tuneloop.records.server import Decision
from tuneloop.report.charts import chart_pair
from tuneloop.serving.store import Database, opened, read_decisions, read_requests, store_name
from tuneloop.web.commands import command_line
from tuneloop.web.pages.traffic import line_of
from tuneloop.web.search import FoundRequest
from tuneloop.web.sources import Need, Sources
from tuneloop.web.stores import note_action, required, shown_store, store_key

MOST = 200  # windows that are read, the latest ones
DAYS = 90  # of thumbs
SHOWN = 30  # of them whose alarms are listed


def show(request: Request, sources: Sources) -> dict[str, Any]:
    """What the page shows."""
    shown = shown_store(request, sources)
    with opened(shown.place) as store:
        count = store.execute("SELECT subject, COUNT(*) FROM decisions WHERE kind = ? GROUP BY subject", [EVENT])
        numbers = {str(subject): int(number) for subject, number in count.fetchall()}
        model = request.query_params.get("model") or next(iter(sorted(numbers)), "")
        first = "SELECT number FROM decisions WHERE kind = ? AND subject = ? ORDER BY number DESC LIMIT 1 OFFSET ?"
        since = store.execute(first, [EVENT, model, MOST - 1]).fetchone()
        where = f"kind = '{EVENT}' AND subject = ?" + (" AND number >= ?" if since else "")
        events = [*read_decisions(store, where=where, values=[model, *(since or ())])]
        silenced = ignored(store, model, max((event.time for event in events), default=""))
        read = [(event, report) for event in events if (report := _report(event)) is not None]
        ids = [
            id_ for _, report in read[-SHOWN:] for alarm in report.detections if alarm.alarm for id_ in alarm.requests
        ]
        rows = read_requests(store, where=f"id IN ({', '.join('?' * len(ids))})", values=ids) if ids else ()
        thumbs = _thumbs(store)
        questions = {row.id: line_of(FoundRequest(row, []), sources.texts)["question"] for row in rows}
    reports, windows = [report for _, report in read], [monitored_window(event.data) for event, _ in read]
    return {
        "store": shown, "models": sorted(numbers), "model": model, "number": numbers.get(model, 0),
        "reports": reports[::-1][:SHOWN], "read": len(reports),
        "small": sum(not report.detections for report in reports),
        "calm": sum(bool(report.detections) and not report.alarms for report in reports),
        "windows": chart_pair(windows_chart, windows) if windows else "",
        "accuracy": chart_pair(accuracy_chart, [(r.until, r.quality) for r in reports if r.quality]),
        "thumbs": chart_pair(day_chart, thumbs, "share of thumbs that are up, by day") if thumbs else "",
        "ignored": silenced, "texts": sources.texts, "questions": questions,
    }  # fmt: skip


def _thumbs(store: Database) -> list[tuple[str, float, str]]:
    """Day, share of thumbs that are up, and both in words, of the last `DAYS` days."""
    query = """SELECT SUBSTR(time, 1, 10) AS day, SUM(CASE WHEN value = 'true' THEN 1 ELSE 0 END), COUNT(*)
        FROM feedback WHERE kind = 'thumbs' AND time >= ? GROUP BY day ORDER BY day"""
    rows = store.execute(query, [utc(clock() - DAYS * 86_400)]).fetchall()
    return [(day, up / number, f"{day}: {up:,} of {number:,} thumbs are up") for day, up, number in rows]


def _report(event: Decision) -> MonitorReport | None:
    """The report of a window; None: another version wrote it."""
    with suppress(ValidationError):
        return MonitorReport.model_validate(event.data)
    return None


def needs(sources: Sources) -> list[Need]:
    """Alarms of the latest window of each model."""
    wanted = []
    query = "kind = ? AND number IN (SELECT MAX(number) FROM decisions WHERE kind = ? GROUP BY subject)"
    for location in sources.stores:
        with suppress(UserError), opened(location) as store:
            for event in read_decisions(store, where=query, values=[EVENT, EVENT]):
                if alarms := event.data.get("alarms"):
                    address = sources.url("quality", store=store_key(location), model=event.subject)
                    title = f"{event.subject}: alarm of {', '.join(map(str, alarms))}"
                    wanted.append(Need(title, f"window to {str(event.data.get('until'))[:10]}", address, "bad"))
    return wanted


def act(request: Request, sources: Sources, form: dict[str, str]) -> str:
    """Note that a change is expected, so that its detector raises no alarm for a while."""
    shown = shown_store(request, sources)
    model, detector = required(form, "model", "The model"), required(form, "detector", "The detector")
    until = required(form, "until", "Until when")
    if since_time(until) != until:
        raise UserError("This is a time before now", where="until", next_step="a day to come, as in 2026-12-31")
    ignore(shown.place, model, [detector], until, form.get("why", "").strip())
    arguments = ["monitor", store_name(shown.place), "--ignore", detector, "--ignore-until", until, "--model", model]
    note_action(shown.place, sources, model, command_line(arguments))
    return sources.url("quality", store=shown.key, model=model, said=f"{detector} raises no alarm until {until}")
