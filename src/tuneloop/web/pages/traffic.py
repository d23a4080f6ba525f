"""Traffic: requests of a store, searched and filtered, newest first."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

from starlette.requests import Request

from tuneloop.core.units import counted
from tuneloop.improve.monitor import answer_of
from tuneloop.improve.report import DayBar, day_chart, latency_chart
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest
from tuneloop.records.rows import Message
from tuneloop.report.charts import chart_pair
from tuneloop.serving.store import Database, opened
from tuneloop.web.search import ERRORS, FEEDBACK, FoundRequest, choices, filter_of, search
from tuneloop.web.sources import Sources
from tuneloop.web.stores import shown_store

MOST_TIMES = 5000  # requests whose times are drawn, the latest ones
MANY = 1000  # newer requests that are counted
SHORT = 160  # characters of a text in the list


def show(request: Request, sources: Sources) -> dict[str, Any]:
    """What the page shows."""
    shown = shown_store(request, sources)
    wanted = filter_of(request.query_params)
    with opened(shown.place) as store:
        page = search(store, wanted, request.query_params.get("after", "")[:80])
        sums, lists, times = _by_day(store), choices(store), _times(store)
    bars = [_bar(sources, shown.key, *day) for day in sums]
    legend = "requests by day" + (", failed ones in red" if any(bar.failed for bar in bars) else "")
    return {
        "store": shown, "filter": wanted, "rows": [line_of(row, sources.texts) for row in page.rows],
        "after": page.cursor, "back_to": page.back_to[:19].replace("T", " "), "states": ERRORS, "kinds": FEEDBACK,
        "choices": lists, "days": chart_pair(day_chart, bars, legend) if len(bars) > 1 else "",
        "times": chart_pair(latency_chart, times),
        "newest": page.rows[0].request.time if page.rows else "",
        "chips": {
            chip: {name: value for name, value in wanted.values.items() if name != chip} for chip in wanted.values
        },
        "total": sum(number for _, number, _ in sums), "first": not request.query_params.get("after"),
    }  # fmt: skip


def live(request: Request, sources: Sources) -> dict[str, Any]:
    """How many requests came since the page was loaded; `newest`: time of its first one."""
    shown, query = shown_store(request, sources), "SELECT 1 FROM requests WHERE time > ? AND shadow IS NULL LIMIT ?"
    with opened(shown.place) as store:
        rows = store.execute(query, [request.query_params.get("newest", ""), MANY]).fetchall()
    return {"newer": len(rows), "many": MANY, "store": shown}


def _bar(sources: Sources, store: str, day: str, number: int, failed: int) -> DayBar:
    """A day's requests, which lead to their list."""
    tip = f"{day}: {counted(number, 'request')}" + (f", {failed:,} failed" if failed else "")
    until = str(date.fromisoformat(day) + timedelta(days=1))
    return DayBar(day, number, tip, failed, sources.url("traffic", store=store, since=day, until=until))


def _by_day(store: Database) -> list[tuple[str, int, int]]:
    """Day, requests, and how many of them failed."""
    query = "SELECT day, SUM(requests), SUM(failed) FROM costs GROUP BY day ORDER BY day"
    return [(day, int(number), int(failed)) for day, number, failed in store.execute(query).fetchall()]


def _times(store: Database) -> list[tuple[str, float, float]]:
    """Day, median and 99th percentile of the milliseconds to a whole answer, of the latest requests."""
    query = """SELECT time, total_ms FROM requests WHERE error IS NULL AND total_ms IS NOT NULL AND shadow IS NULL
        ORDER BY time DESC LIMIT ?"""
    rows = store.execute(query, [MOST_TIMES]).fetchall()
    days: dict[str, list[float]] = {}
    for time, milliseconds in reversed(rows):
        days.setdefault(time[:10], []).append(milliseconds)
    for times in days.values():
        times.sort()
    return [(day, times[len(times) // 2], times[int(0.99 * len(times))]) for day, times in days.items()]


def by_day(store: Database, since: str = "") -> list[tuple[str, int, float, int]]:
    """Day, requests, dollars by prices of tokens, and tokens, from the sums that the store keeps of whole days."""
    query = "SELECT day, SUM(requests), SUM(usd), SUM(prompt_tokens) + SUM(completion_tokens) FROM costs WHERE day >= ?"
    rows = store.execute(f"{query} GROUP BY day ORDER BY day", [since[:10]]).fetchall()
    return [(day, int(number), float(usd), int(tokens)) for day, number, usd, tokens in rows]


def line_of(found: FoundRequest, texts: bool) -> dict[str, Any]:
    """A request as the list shows it."""
    request = found.request
    last = next((turn for turn in reversed(request.prompt) if turn.get("role") == "user"), None)
    answer = answer_of(request) or ", ".join(f"{c.get('name')}(…)" for c in calls_of(request))
    return {
        "id": request.id, "time": request.time[:19].replace("T", " "), "model": request.model, "key": request.key or "",
        "question": _short(plain_text(last)) if texts and last else "",
        "answer": _short(answer) if texts else "",
        "milliseconds": request.total_ms, "state": state_of(request.error, request.finish), "arm": request.arm or "",
        "liked": found.liked, "feedback": ", ".join(dict.fromkeys(words_of(piece) for piece in found.feedback)),
    }  # fmt: skip


def calls_of(request: StoredRequest) -> list[Any]:
    """Functions that an answer calls."""
    calls = request.completion.get("tool_calls") if isinstance(request.completion, Mapping) else None
    return [call.get("function", call) for call in calls or []]


def state_of(error: str | None, finish: str | None) -> str:
    """How a request ended, in a word; empty where it was answered whole."""
    if finish == "refused":
        return "refused"
    return "failed" if error is not None else "cut off" if finish == "length" else ""


def words_of(feedback: Feedback) -> str:
    """Feedback in one or two words."""
    if feedback.kind == "thumbs":
        return "thumb up" if feedback.value else "thumb down"
    return f"{feedback.kind} {feedback.value:g}" if isinstance(feedback.value, float | int) else feedback.kind


def plain_text(turn: Message | Any) -> str:
    """The text of a turn, also of one in parts; what is no text is named."""
    content: Any = turn.get("content") if hasattr(turn, "get") else turn
    if isinstance(content, str):
        return content
    parts = [part if isinstance(part, dict) else {} for part in content] if isinstance(content, list) else []
    return "\n".join(str(part["text"]) if "text" in part else f"[{part.get('type', 'part')}]" for part in parts)


def _short(text: str) -> str:
    line = " ".join(text[: 4 * SHORT].split())
    return line if len(line) <= SHORT else line[: SHORT - 1] + "…"
