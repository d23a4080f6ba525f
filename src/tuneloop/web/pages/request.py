"""One request: prompt, answer, times, cost, what people said of it; and a word of one's own on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from starlette.requests import Request

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object
from tuneloop.core.units import usd_words
from tuneloop.improve.feedback import add, current
from tuneloop.improve.monitor import answer_of
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest
from tuneloop.serving.store import Database, opened, read_feedback, read_requests
from tuneloop.web.pages.traffic import calls_of, line_of, plain_text, state_of, words_of
from tuneloop.web.rendering import prompt_as_read, weights_of
from tuneloop.web.search import FoundRequest, said_of
from tuneloop.web.sources import Sources
from tuneloop.web.stores import ShownStore, required, shown_store
from tuneloop.web.suites import add_to_suite, suites_of

MOST_TURNS = 50  # requests of a conversation
MOST_TEXT = 20_000  # characters of a text that are shown at first
CHOICES = {"up": ("thumbs", True), "down": ("thumbs", False)}
TEXTS = ("correction", "label", "comment")


def show(request: Request, sources: Sources) -> dict[str, Any]:
    """What the page shows."""
    shown = shown_store(request, sources)
    with opened(shown.place) as store:
        stored = _request(store, request.path_params["id"])
        said = feedback_on(store, stored)
        others = _conversation(store, stored)
        copies = [*read_requests(store, where="shadow = ?", values=[stored.id], shadow=True)] if stored.arm else []
    holds = {vote.id for vote in current(said)}
    texts = sources.texts
    rendered = prompt_as_read(stored, shown.state, sources) if request.query_params.get("read") and texts else ""
    return {
        "rendered": rendered, "others": [line_of(related, texts) for related in others],
        "store": shown, "one": stored, "turns": [_turn(turn) for turn in stored.prompt] if texts else [],
        "answer": answer_of(stored) if texts else "", "calls": [*map(_json, calls_of(stored))] if texts else [],
        "tools": _json(stored.tools) if stored.tools and texts else "",
        "kept": bool(stored.prompt),
        "state": state_of(stored.error, stored.finish) or "answered", "facts": _facts(stored),
        "said": [_said(vote, vote.id in holds, texts) for vote in reversed(said)], "seen": said[-1].id if said else "",
        "copies": [line_of(FoundRequest(copy, []), texts) for copy in copies],
        "labels": sorted(_labels(shown, stored, sources)), "most": MOST_TEXT,
        "suites": list(suites_of(sources)) if not sources.read_only else [],
    }  # fmt: skip


def act(request: Request, sources: Sources, form: dict[str, str]) -> str:
    """Store what a person says of the answer, or make it a row of a suite."""
    shown = shown_store(request, sources)
    id_, kind = request.path_params["id"], form.get("kind", "")
    with opened(shown.place) as store:
        stored = _request(store, id_)
        _refuse_later(feedback_on(store, stored), form.get("seen", ""), sources.who)
    if kind == "suite":
        word = _as_row(sources, stored, form)
    else:
        value: Any = CHOICES[kind][1] if kind in CHOICES else required(form, "value", f"The {kind}")
        if kind not in CHOICES and kind not in TEXTS:
            raise UserError(f"No such kind of feedback: {kind!r:.40}", next_step=", ".join((*CHOICES, *TEXTS)))
        values = {"request": id_, "kind": CHOICES[kind][0] if kind in CHOICES else kind, "value": value,
                  "user": f"reviewer:{sources.who or 'page'}", "source": "page",
                  "key": f"page:{form['once']}" if form.get("once") else None}  # fmt: skip
        _, new = add(shown.place, values)
        word = f"The {'thumb' if kind in CHOICES else kind} is stored" if new else "This was stored before"
    return sources.url("request", id=id_, store=shown.key, said=word)


def _refuse_later(said: list[Feedback], seen: str, who: str) -> None:
    """Say what another one said since the page was loaded, before it is overruled unseen."""
    later = [vote for vote in said if vote.id > seen and vote.user != f"reviewer:{who or 'page'}"]
    if later:
        last = later[-1]
        message = f"{(last.user or 'Someone').removeprefix('reviewer:')} has said something of this answer meanwhile"
        step = "go back, load the page again, and send yours if it still holds"
        raise UserError(message, where=words_of(last), next_step=step)


def _request(store: Database, id_: str) -> StoredRequest:
    stored = next(read_requests(store, where="id = ?", values=[id_], shadow=None), None)
    if stored is None:
        raise UserError("There is no such request any more", where=id_[:80], next_step="it may have been erased")
    return stored


def feedback_on(store: Database, request: StoredRequest) -> list[Feedback]:
    """All that was said of a request or of its conversation, in order."""
    where, values = "request = ?", [request.id]
    if request.conversation:
        where, values = f"{where} OR conversation = ?", [*values, request.conversation]
    return [*read_feedback(store, where=where, values=values)]


def _conversation(store: Database, request: StoredRequest) -> list[FoundRequest]:
    if not request.conversation:
        return []
    where = "conversation = ? AND COALESCE(key, '') = ? AND id != ?"
    every = read_requests(store, where=where, values=[request.conversation, request.key or "", request.id])
    rows = [*islice(every, MOST_TURNS)]
    said = said_of(store, rows)
    return [FoundRequest(row, said.get(row.id, [])) for row in rows]


def _turn(turn: Mapping[str, Any]) -> tuple[str, str]:
    text = plain_text(turn)
    if calls := turn.get("tool_calls"):
        text = f"{text}\n{_json(calls)}".strip()
    return str(turn.get("role", "")), text


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _facts(request: StoredRequest) -> list[tuple[str, str]]:
    route = request.route or {}
    tokens = f"{request.prompt_tokens or 0:,} read, {request.completion_tokens or 0:,} written"
    facts = [
        ("model", request.model), ("release", request.release or ""), ("weights", (request.adapter or "base")[:16]),
        ("first token", "" if request.ttft_ms is None else f"{request.ttft_ms:,.0f} ms"),
        ("whole answer", "" if request.total_ms is None else f"{request.total_ms:,.0f} ms"),
        ("ended", request.finish or ""),
        ("tokens", tokens), ("price", "" if request.usd is None else usd_words(request.usd)),
        ("engine", "" if request.seconds is None else f"{request.seconds:.3g} s"), ("tier", request.tier or ""),
        ("key", request.key or ""), ("user", request.user or ""), ("conversation", request.conversation or ""),
        ("arm", "" if request.arm is None else f"{request.arm}, {request.propensity or 0:.0%} meet the candidate"),
        ("fallback", request.fallback or ""), ("copy of", request.shadow or ""),
        ("router", f"{route.get('model', '')}: {route.get('why', '')}" if route else ""),
        ("training", "must not be trained on" if request.train == "no" else ""), ("error", request.error or ""),
        ("id", request.id),
    ]  # fmt: skip
    return [(name, value) for name, value in facts if value]


def _said(feedback: Feedback, holds: bool, texts: bool) -> dict[str, Any]:
    value = feedback.value if isinstance(feedback.value, str) and feedback.kind != "thumbs" and texts else ""
    who = (feedback.user or "").removeprefix("reviewer:")
    return {
        "words": words_of(feedback), "value": value, "who": who, "source": feedback.source or "", "holds": holds,
        "time": feedback.time[:16].replace("T", " "), "about": "conversation" if feedback.conversation else "",
    }  # fmt: skip


def _labels(shown: ShownStore, request: StoredRequest, sources: Sources) -> set[str]:
    """Labels that the model chooses from, where its weights are here and name them."""
    with suppress(OSError, ValueError, UserError):
        folder = Path(weights_of(request, shown.state, sources))
        path = folder / "adapter" if (folder / "adapter").is_dir() else folder
        task = read_json_object(path / "tuneloop.json", below=path).get("task") or {}
        return set(map(str, task.get("labels") or []))
    return set()


def _as_row(sources: Sources, request: StoredRequest, form: Mapping[str, str]) -> str:
    suites = suites_of(sources)
    name = form.get("suite", "")
    if name not in suites:
        raise UserError("This suite is not there any more", where=name[:80], next_step="choose another one")
    roles = [turn.get("role") for turn in request.prompt]
    if roles not in (["user"], ["system", "user"]):
        message = "A row of a suite is one question, with a system prompt or without"
        raise UserError(
            message, where=f"this conversation has {len(roles)} turns", next_step="choose its first request"
        )
    texts = [plain_text(turn) for turn in request.prompt]
    how = form.get("how", "equals")
    if how not in ("equals", "contains", "lacks"):
        raise UserError("No such condition", where=how[:40], next_step="equals, contains or lacks")
    row = {"prompt": texts[-1], "system": texts[0] if len(texts) > 1 else "", "request": request.id,
           how: required(form, "value", "What must hold")}  # fmt: skip
    return f"Added to {name}" if add_to_suite(suites[name], row) else f"{name} has this row already"
