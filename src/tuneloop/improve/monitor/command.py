"""`tuneloop monitor`: a window of a server's store against a data set and the time before."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import build_config, plain
from tuneloop.core.ids import clock, utc, utc_now
from tuneloop.core.urls import masked
from tuneloop.data import detect_language, load_dataset
from tuneloop.improve.experiment.state import add_event
from tuneloop.improve.experiment.statistics import time_of
from tuneloop.improve.monitor import canaries
from tuneloop.improve.monitor.detectors import CANARIES, EARLIER_WINDOWS, STEPS, Helpers, monitor
from tuneloop.improve.monitor.record import MonitorOptions, MonitorReport
from tuneloop.models import minilm_embedder
from tuneloop.records.record import read_record
from tuneloop.records.request import StoredRequest
from tuneloop.records.rows import Dataset, last_user_turn
from tuneloop.records.server import ServerState
from tuneloop.serving.store import Database, opened, read_decisions, read_feedback, read_requests, store_name

if TYPE_CHECKING:
    from tuneloop.pipeline.answers import TaskTarget

EVENT, IGNORE = "monitor.window", "monitor.ignore"
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_HOURS = {"s": 1 / 3600, "m": 1 / 60, "h": 1.0, "d": 24.0, "w": 168.0}


def _send_canaries(location: Path | str, dataset: Dataset, options: MonitorOptions, target: TaskTarget) -> None:
    if options.until:
        raise UserError("--ask asks now, and --until ends the window before", where="--until", next_step="leave it out")
    model = options.model
    if not model:
        until = utc_now()
        since = _before(until, days_of(options.window))
        with opened(location) as store:
            served = [r.model for r in read_requests(store, since=since, until=until, texts=False)]
        model = _only_model(served, location, since, until)
    due = canaries.rounds_due(location, model, (target.identity, None), 0)
    canaries.ask_target(location, model, canaries.rows_of(dataset, options.canaries), target, rounds=due)


def refuse_itself(location: Path | str, url: str) -> None:
    """Canary prompts that came through the server itself would be in its store as traffic.

    `location`: the server's folder, its store's file, or a database's URL, which doesn't say whose it is. Raises
    UserError: the URL is this server's.
    """
    folder = Path(location) if "://" not in str(location) else Path()
    state = (folder if folder.is_dir() else folder.parent) / ServerState.file
    if state.is_file() and url.removesuffix("/").removesuffix("/v1") == read_record(ServerState, state).address:
        message = "Canary prompts that are sent to this server would count as its traffic"
        step = "monitor.reference=DATASET in serve.yaml: it sends them itself; or --ask NAME@champion"
        raise UserError(message, where=f"--ask {masked(url)}", next_step=step)


def days_of(span: str, where: str = "--window") -> float:
    """A length of time in days: `7d`, `12h`, `2w`, `15m`, `30s`. Raises UserError: it is none."""
    match = _SPAN.fullmatch(span.strip().lower())
    days = float(match[1]) * _HOURS[match[2]] / 24 if match else 0.0
    if not 0 < days <= 366:
        raise UserError(f"Not a length of time: {span!r:.40}", where=where, next_step="write it as 7d, 12h or 2w")
    return days


def monitor_store(
    location: Path | str, reference: Path | str, settings: Mapping[str, Any], *, ask: TaskTarget | None = None
) -> MonitorReport:
    """Monitor one window, and log what was found as an event `monitor.window`.

    Args:
        reference: a prepared data set, whose training rows are compared with.
        settings: by the names of `MonitorOptions`.
        ask: to whom the canary prompts are sent first; None: to no one, but those that a server has sent count.

    Raises:
        UserError: there is no store, no data set, no request in the window, or there are several models in it.
    """
    options = build_config(MonitorOptions, settings)
    days, every = days_of(options.window), days_of(options.canaries_every, "--canaries-every")
    dataset = load_dataset(reference)
    if ask is not None:
        _send_canaries(location, dataset, options, ask)
    until = _time(options.until) if options.until else utc(clock() + 0.001)  # of this millisecond all
    since, begin = _before(until, days), _before(until, days * (1 + EARLIER_WINDOWS))
    with opened(location) as store:
        requests = list(read_requests(store, since=begin, until=until, texts=False))
        model = options.model or _only_model([r.model for r in requests if r.time >= since], location, since, until)
        requests = [r for r in requests if r.model == model]
        feedback = list(read_feedback(store, since=begin))  # people judge answers of a window when it is over, too
        level = canaries.canary_level(options.false_alarms, every)
        rows = {row.id: row for row in canaries.rows_of(dataset, options.canaries)}
        rounds = canaries.findings(store, model, rows, level, until)
        report = monitor(
            [(last_user_turn(row), row.label) for row in dataset.train if row.shows_the_task],
            [r for r in requests if r.time >= since],
            [r for r in requests if r.time < since],
            feedback,
            replace(helpers(), complete=_texts_of(store)),
            options.model_copy(update={"model": model}),
            window_days=days,
            canaries=[canary for canary in rounds if canary.time >= since],
        )
        config = {**options.model_dump(), "reference": dataset.id}
        report = _without_ignored(report, ignored(store, model, until))
        report = report.model_copy(update={"since": since, "until": until, "config": config})
        key = f"{EVENT}:{model}:{since}:{until}:{dataset.id}"
        # The log can't forget: the texts of canary prompts and their answers stay out of it.
        plainer = [canaries.without_texts(plain_round) for plain_round in report.canaries]
        texts, plain_texts = (
            map(canaries.round_in_words, report_rounds) for report_rounds in (report.canaries, plainer)
        )
        lines = dict(zip(texts, plain_texts, strict=True))
        summary = [lines.get(line, line) for line in report.summary]
        data = plain(report.model_copy(update={"canaries": plainer, "summary": summary}))
        add_event(store, EVENT, model, data, key=key)
    return report


def _texts_of(store: Database) -> Callable[[Sequence[StoredRequest]], None]:
    """Reads prompts and completions into requests that were read without: of a million requests few are compared."""
    known: set[str] = set()

    def complete(requests: Sequence[StoredRequest]) -> None:
        lacking = {request.id: request for request in requests if request.id not in known}
        known.update(lacking)
        for start in range(0, len(lacking), 500):
            names = list(lacking)[start : start + 500]
            for whole in read_requests(store, where=f"id IN ({', '.join('?' * len(names))})", values=names):
                lacking[whole.id].prompt, lacking[whole.id].completion = whole.prompt, whole.completion

    return complete


def ignore(location: Path | str, model: str, detectors: Sequence[str], until: str, reason: str = "") -> None:
    """Log, as an event `monitor.ignore`, that a person knows a change and wants to hear no more of it for a while.

    `detectors`: by the names of `improve.monitor.STEPS`, or `canaries`. `until`: ISO time; one that is over ends it.
    Raises UserError: there is no store, no such detector, or no time.
    """
    names = [*STEPS, CANARIES]
    if unknown := [name for name in detectors if name not in names]:
        raise UserError(f"No detector {unknown[0]!r:.40}", where="--ignore", next_step=f"one of {', '.join(names)}")
    if not model or not until:
        step = "--ignore inputs --ignore-until 2026-06-01 --model NAME"
        raise UserError("It is not said what to ignore, and until when", where="--ignore", next_step=step)
    data = {"detectors": list(detectors), "until": _time(until, "--ignore-until"), "why": reason}
    with opened(location) as store:
        add_event(store, IGNORE, model, data)


def ignored(store: Database, model: str, at: str) -> dict[str, str]:
    """Detectors that a person has said to ignore at a time, and until when; the last word on each holds."""
    until_by_name: dict[str, str] = {}
    for event in read_decisions(store, where=f"kind = '{IGNORE}' AND subject = ?", values=[model]):
        until_by_name |= dict.fromkeys(event.data["detectors"], str(event.data["until"]))
    return {name: until for name, until in until_by_name.items() if until > at}


def _without_ignored(report: MonitorReport, until_by_name: Mapping[str, str]) -> MonitorReport:
    silenced = {name: until_by_name[name] for name in report.alarms if name in until_by_name}
    if not silenced:
        return report
    line = f"Ignored, as a person said: {', '.join(f'{name} until {until[:10]}' for name, until in silenced.items())}."
    left = [name for name in report.alarms if name not in silenced]
    return report.model_copy(update={"alarms": left, "ignored": silenced, "summary": [*report.summary, line]})


def due_window(location: Path | str, window: str, model: str = "", *, now: str = "") -> str:
    """The end of the last whole window that was not compared yet; empty where there is none.

    Windows follow each other from the first request on, so that the false alarms of a year are divided over as many.

    `window`: its length, as in 7d. `model`: served name; empty: any. Raises UserError: there is no store, or the length
    is none.
    """
    days = days_of(window)
    condition, values = ("model = ? AND ", [model]) if model else ("", [])
    with opened(location) as store:
        first = store.execute(f"SELECT MIN(time) FROM requests WHERE {condition}shadow IS NULL", values).fetchone()[0]
        if first is None:
            return ""
        whole = int((time_of(now or utc_now()) - time_of(first)).total_seconds() / 86_400 / days)
        until = _before(first, -whole * days)
        where = f"kind = '{EVENT}'" + (" AND subject = ?" if model else "")
        compared = read_decisions(store, where=where, values=values)
        if whole < 1 or any(event.data.get("until") == until for event in compared):
            return ""
        query = f"SELECT 1 FROM requests WHERE {condition}time >= ? AND time < ? AND shadow IS NULL LIMIT 1"
        return until if store.execute(query, [*values, _before(until, days), until]).fetchone() else ""


def monitor_if_due(location: Path | str, reference: Path | str, settings: Mapping[str, Any]) -> MonitorReport | None:
    """Compare the last whole window, where that was not done yet; see `monitor_store`."""
    window = str(settings.get("window") or MonitorOptions().window)
    until = due_window(location, window, str(settings.get("model") or ""))
    return monitor_store(location, reference, {**settings, "until": until}) if until else None


def helpers() -> Helpers:
    """The embedder, language detector and word comparison of other stages, as far as their libraries are installed."""
    from tuneloop.data.checks import compare_with

    def language(text: str) -> str:
        code, sure = detect_language(text.lower())  # capital letters are no language
        return code if sure >= 0.8 and len(text) >= 20 else "not sure"

    detector: Callable[[str], str] | None = language
    try:
        detect_language("hello")
    except UserError:
        detector = None
    return Helpers(minilm_embedder(), detector, lambda before, now: compare_with(before, now).words_b)


def _time(text: str, where: str = "--until") -> str:
    try:
        moment = time_of(text)
    except ValueError:
        step = "write it as 2026-01-31 or 2026-01-31T12:00:00Z"
        raise UserError(f"Not a time: {text!r:.40}", where=where, next_step=step) from None
    return utc((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _before(time: str, days: float) -> str:
    return utc((time_of(time) - timedelta(days=days)).timestamp())


def _only_model(models: Sequence[str], location: Path | str, since: str, until: str) -> str:
    counts = Counter(models)
    if len(counts) == 1:
        return models[0]
    if not counts:
        message, step = f"No request from {since[:16]} to {until[:16]}", "--until TIME or --window 30d looks elsewhere"
        raise UserError(message, where=store_name(location), next_step=step)
    names = ", ".join(f"{name} ({number:,})" for name, number in counts.most_common(5))
    raise UserError("Several models answer in this window", where=names, next_step="--model NAME")
