"""Canary prompts: rows of the data set that are sent again and again. Did the answers change, though no release has?

An update of the engine, another base file or a swapped model behind a URL changes answers; some engines do so by
chance now and then. How often is counted from the rounds before, so that an alarm means more than that."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import plain
from tuneloop.core.ids import utc, utc_now, uuid7
from tuneloop.core.units import counted
from tuneloop.improve.experiment.state import add_event
from tuneloop.improve.experiment.statistics import time_of
from tuneloop.improve.monitor.record import CanaryRound, ChangedAnswer
from tuneloop.inference import Request, complete
from tuneloop.models.adapters import BASE
from tuneloop.records.completion import Completion
from tuneloop.records.request import StoredRequest
from tuneloop.records.rows import Dataset, Row, last_user_turn, references_of
from tuneloop.serving.store import Database, insert, opened, read_requests

if TYPE_CHECKING:
    from tuneloop.pipeline.answers import TaskTarget
    from tuneloop.serving import Gateway, ServedModel

Changes = list[ChangedAnswer]
MARK = "canary:"  # before the row's id, in a stored request's `shadow`
SHARE = 0.5  # of the false alarms of a year, for canaries where there are any; the detectors of windows have the rest
FIRST_ROUNDS = 5  # one after the other at first, which shows what chance does
DOUBT = 0.02  # changes by chance that are taken as seen before any answer was compared; their rate is Beta(0.02, 1)
TEXT = 200  # characters of a text that are shown
NEXT = (
    "nothing was released here: see what changed beneath the model (the engine or its version, the base model's file, "
)
NEXT += "the server behind the URL), then undo that or evaluate the model again"


@dataclass(frozen=True)
class Round:
    """One pass over the prompts, and its answers."""

    id: str  # of the round; `time` of its first request
    time: str
    answers: Mapping[str, StoredRequest]  # row -> its stored request

    @property
    def identity(self) -> tuple[str | None, str | None]:
        first = next(iter(self.answers.values()))
        return first.adapter, first.release


def canary_rows(rows: Iterable[Row], most: int) -> list[Row]:
    """The rows that become prompts: those with the smallest hashes, so the same ones every time."""
    hashed = ((hashlib.sha256(row.id.encode("utf-8", "replace")).digest(), row) for row in rows if row.shows_the_task)
    return [row for _, row in sorted(hashed, key=lambda pair: pair[0])[:most]]


def rounds_of(requests: Iterable[StoredRequest]) -> list[Round]:
    """Rounds in order, from the stored requests of one model in order; a round's name is their conversation."""
    canaries = [canary for canary in requests if (canary.shadow or "").startswith(MARK) and canary.conversation]
    rounds = []
    for name, group in groupby(canaries, key=lambda entry: entry.conversation or ""):
        members = list(group)
        rounds.append(Round(name, members[0].time, {(member.shadow or "")[len(MARK) :]: member for member in members}))
    return rounds


def canary_level(false_alarms: float, every_days: float) -> float:
    """The level of one round with which rounds raise at most their share of so many false alarms in a year.

    Args:
        false_alarms: of a year, all kinds.
    """
    return min(0.5, SHARE * false_alarms * every_days / 365.25)


def chance_of(changed: int, compared: int, changed_before: int, compared_before: int) -> float:
    """The chance of so many new answers if nothing has changed, after what earlier rounds showed: beta-binomial.

    `changed`, `compared`: answers of the round; `changed_before`, `compared_before`: answers of all rounds before.
    """
    from scipy.stats import betabinom

    if not changed:
        return 1.0
    a, b = DOUBT + changed_before, 1.0 + compared_before - changed_before
    return float(betabinom.sf(changed - 1, compared, a, b))


@dataclass
class _EarlierAnswers:
    # row -> the texts that it got from the release in use, with the request of each; the last one is the latest
    answers: dict[str, dict[str, str]] = field(default_factory=dict)
    compared: int = 0  # compared, changed: answers of all rounds, and new ones among them
    changed: int = 0


def follow(rounds: Sequence[Round], rows: Mapping[str, Row], level: float) -> list[CanaryRound]:
    """What each round shows against those before it.

    An answer is new where the release in use has never given it to this row. A new release begins again, and its first
    answers are compared with the last ones before it, without an alarm. New answers of a round with an alarm count as
    chance for the later ones as well: then no rate of chance raises more alarms than `level` allows for long.

    Args:
        rows: of the data set, as far as they are available.
    """
    earlier, identity, results = _EarlierAnswers(), None, []
    for entry in rounds:
        new_release = identity is not None and entry.identity != identity
        identity = entry.identity
        texts = {row: text for row, request in entry.answers.items() if (text := _text(request)) is not None}
        changed = [row for row, text in texts.items() if row in earlier.answers and text not in earlier.answers[row]]
        compared = sum(row in earlier.answers for row in texts)
        changes = [_changed(row, entry, earlier.answers[row], rows.get(row)) for row in changed]
        results.append(_finding(entry, changes, compared, earlier, level, new_release=new_release))
        if new_release:
            earlier.answers = {}
        else:
            earlier.compared, earlier.changed = earlier.compared + compared, earlier.changed + len(changed)
        for row, text in texts.items():
            earlier.answers.setdefault(row, {}).pop(text, None)
            earlier.answers[row][text] = entry.answers[row].id
    return results


def _text(request: StoredRequest) -> str | None:
    """The answer as it is compared, which may be a digest; None where there is none."""
    answer = request.completion
    text = answer.get("content") if isinstance(answer, Mapping) else answer
    return text.strip() if isinstance(text, str) and request.error is None else None


def _changed(row: str, entry: Round, earlier: Mapping[str, str], of: Row | None) -> ChangedAnswer:
    before, request_before = list(earlier.items())[-1]
    request = entry.answers[row]
    now = _text(request) or ""
    right = {text.strip() for text in references_of(of)} if of is not None and of.label is not None else None
    return ChangedAnswer(
        row=row,
        prompt=last_user_turn(of)[:TEXT] if of is not None else "",
        before=before[:TEXT],
        now=now[:TEXT],
        request_before=request_before,
        request_now=request.id,
        right_before=None if right is None else before in right,
        right_now=None if right is None else now in right,
    )


def _finding(
    entry: Round, changes: Changes, compared: int, earlier: _EarlierAnswers, level: float, *, new_release: bool
) -> CanaryRound:
    p = 1.0 if new_release else chance_of(len(changes), compared, earlier.changed, earlier.compared)
    alarm = bool(changes) and p <= level
    judged = [row_answer for row_answer in changes if row_answer.right_now is not None]
    right_before, right_now = (
        sum(bool(verdict.right_before) for verdict in judged),
        sum(bool(verdict.right_now) for verdict in judged),
    )
    failed = sum(_text(request) is None for request in entry.answers.values())
    if not compared:
        sentence = f"{counted(len(entry.answers), 'canary prompt')} sent for the first time"
    elif not changes:
        sentence = f"all of {counted(compared, 'canary prompt')} are answered as before"
    else:
        sentence = f"{len(changes)} of {counted(compared, 'canary prompt')} are answered otherwise than before"
        sentence += f", of these {right_before} rightly before and {right_now} now" if judged else ""
        sentence += "; a new release answers" if new_release else f" (p {p:.2g}, alarm below {level:.2g})"
    if failed:
        sentence += f"; {failed} got no answer"
    values: dict[str, Any] = {
        "round": entry.id, "time": entry.time, "adapter": entry.identity[0], "release": entry.identity[1],
        "new_release": new_release, "asked": len(entry.answers), "failed": failed, "compared": compared,
        "changed": changes, "chances": earlier.compared, "chance_changes": earlier.changed, "p": p, "level": level,
        "alarm": alarm, "right_before": right_before, "right_now": right_now, "known": len(judged),
        "sentence": sentence, "next_step": NEXT if alarm else "",
    }  # fmt: skip
    return CanaryRound(**values)


def round_in_words(entry: CanaryRound, most: int = 5) -> str:
    """A round in words, with the prompts and answers that differ."""
    answers = [
        f"{changed.prompt[:80]!r}: {changed.before[:60]!r} -> {changed.now[:60]!r}"
        if changed.prompt
        else f"row {changed.row}"
        for changed in entry.changed[:most]
    ]
    more = f" and {len(entry.changed) - most} others" if len(entry.changed) > most else ""
    sentence = f"{entry.sentence}. {'; '.join(answers)}{more}." if answers else f"{entry.sentence}."
    sentence = sentence[0].upper() + sentence[1:]
    return f"{sentence} Next: {entry.next_step}." if entry.alarm else sentence


def without_texts(entry: CanaryRound) -> CanaryRound:
    """As it may be in the log of decisions, from which nothing can be erased."""
    plain = [changed.model_copy(update={"prompt": "", "before": "", "now": ""}) for changed in entry.changed]
    return entry.model_copy(update={"changed": plain})


EVENT = "monitor.canaries"
TOKENS = 64  # of an answer
LOOKS_BACK = 400.0  # days


def rows_of(dataset: Dataset, most: int) -> list[Row]:
    """The rows of a data set that become prompts: of its test, which no training has seen; else of its training."""
    return canary_rows(dataset.test, most) or canary_rows(dataset.train, most)


def findings(store: Database, model: str, rows: Mapping[str, Row], level: float, until: str = "") -> list[CanaryRound]:
    """What each round before `until` shows against those before it; see `follow` and `canary_level`."""
    since = utc((time_of(until or utc_now()) - timedelta(days=LOOKS_BACK)).timestamp())
    where = f"model = ? AND shadow LIKE '{MARK}%'"
    requests = read_requests(store, since=since, until=until, where=where, values=[model], shadow=True)
    return follow(rounds_of(requests), rows, level)


def check_last(location: Path | str, model: str, rows: Sequence[Row], level: float) -> CanaryRound | None:
    """What the last round shows, which is logged as an event `monitor.canaries`; None: there was no round yet.

    Raises UserError: there is no store.
    """
    with opened(location) as store:
        rounds = findings(store, model, {row.id: row for row in rows}, level)
        if not rounds:
            return None
        key, data = f"{EVENT}:{model}:{rounds[-1].round}", plain(without_texts(rounds[-1]))
        add_event(store, EVENT, model, data, key=key)
    return rounds[-1]


def rounds_due(
    location: Path | str, model: str, identity: tuple[str | None, str | None], every_days: float, *, now: str = ""
) -> int:
    """How many rounds are due: several at first, one when the last one is old enough or another release answers.

    `identity`: adapter and release that answer now. Raises UserError: there is no store.
    """
    query = "SELECT time, adapter, release FROM requests WHERE model = ? AND shadow IS NOT NULL"
    query += f" AND shadow LIKE '{MARK}%' ORDER BY id DESC LIMIT 1"
    with opened(location) as store:
        last = store.execute(query, [model]).fetchone()
    if last is None:
        return FIRST_ROUNDS
    days = (time_of(now or utc_now()) - time_of(last[0])).total_seconds() / 86_400
    return int(days >= every_days or tuple(last[1:]) != identity)


def identity_of(model: ServedModel) -> tuple[str | None, str | None]:
    """Adapter and release of a served model, as its requests are stored."""
    return None if model.adapter == BASE else model.adapter, model.release or None


async def ask_gateway(gateway: Gateway, name: str, rows: Sequence[Row]) -> None:
    """Send the rows of a model that a server has, while no one else waits, and store the answers.

    Raises UserError: the engine ended, or another one replaced it.
    """
    engine, model, conversation = gateway.engine, gateway.models[name], uuid7()
    adapter, release = identity_of(model)
    writes = []
    for row in rows:
        await gateway.admission.wait_until_idle()
        if gateway.engine is not engine or gateway.admission.closed:
            raise UserError("Another engine answers now", where=name, next_step="the next look asks it")
        request = replace(_request(row), adapter=model.adapter, choices=model.labels, gives_way=engine.gives_way)
        began = time.perf_counter()
        answer = await complete(engine, request)
        record = _record(row, answer, conversation, model=name, adapter=adapter, release=release)
        record.total_ms = round(1000 * (time.perf_counter() - began), 3)
        writes.append(asyncio.wrap_future(gateway.store.add_durably(record)))
    await asyncio.gather(*writes, return_exceptions=True)


def ask_target(location: Path | str, name: str, rows: Sequence[Row], target: TaskTarget, *, rounds: int) -> None:
    """Send the rows to any target so many times, and store the answers as those of the model `name`.

    Raises UserError: there is no store, or the target can't answer.
    """
    requests = [_request(row) for row in rows]
    labels = target.task.labels if target.scores_labels and target.task is not None else None
    for i in range(rounds):
        task = f"asking canary prompts, round {i + 1} of {rounds}"
        ask = partial(target.target.score, requests, labels) if labels else partial(target.target.complete, requests)
        pairs = zip(rows, ask(task=task), strict=True)
        source = {"model": name, "adapter": target.identity, "release": None}
        conversation = uuid7()
        with opened(location) as store:
            insert(store, [_record(row, answer, conversation, **source) for row, answer in pairs])


def _request(row: Row) -> Request:
    return Request(row.prompt, row.tools or (), max_new_tokens=TOKENS)


def _record(row: Row, answer: Completion, conversation: str, **model: Any) -> StoredRequest:
    """An answer as it is stored: as a request of no one, so that no count of traffic has it."""
    chance = answer.label_probability
    text: dict[str, Any] | str | None = None if answer.error else answer.text
    if text is not None and chance is not None and chance == chance:
        text = {"role": "assistant", "content": answer.text, "probability": round(chance, 6)}
    values: dict[str, Any] = {
        "shadow": f"{MARK}{row.id}", "conversation": conversation, "train": "no", "tier": "canary", "usd": 0.0,
        "prompt": row.prompt, "tools": row.tools, "completion": text, "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens, "total_ms": answer.total_ms, "finish": answer.finish,
        "error": answer.error or None,
    }  # fmt: skip
    return StoredRequest(id=uuid7(), time=utc_now(), **model, **values)
