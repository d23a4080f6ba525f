"""Canary prompts: rows of the data set that are asked again and again. Did the answers change, though no release has?

A model that nobody changed may still answer otherwise: after an update of the engine, with another base file, behind a URL
whose owner has swapped the model. Some engines also change an answer by chance now and then. How often they do is counted
from the rounds before, so that an alarm means more than that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from tuneloop.core.units import counted
from tuneloop.improve.monitor.record import CanaryRound, ChangedAnswer
from tuneloop.records.request import StoredRequest
from tuneloop.records.rows import Row, last_user_turn, references_of

MARK = "canary:"  # before the row's id, in a stored request's `shadow`
SHARE = 0.5  # of the false alarms of a year, where canaries are asked; the detectors of the windows have the others
FIRST_ROUNDS = 5  # asked one after the other at first, which shows what chance does
DOUBT = 0.02  # changes by chance that are taken as seen before any answer was compared; their rate is Beta(0.02, 1)
TEXT = 200  # characters of a text that are shown
NEXT = (
    "nothing was released here: see what changed beneath the model (the engine or its version, the base model's file, the server "
    "behind the URL), then put that back or evaluate the model again"
)


@dataclass(frozen=True)
class Round:
    """The prompts as they were asked once.

    Args:
        id: of the round; `time` of its first request.
        answers: row -> its stored request.
    """

    id: str
    time: str
    answers: Mapping[str, StoredRequest]

    @property
    def identity(self) -> tuple[str | None, str | None]:
        """The weights and the release that answered."""
        first = next(iter(self.answers.values()))
        return first.adapter, first.release


def canary_rows(rows: Iterable[Row], most: int) -> list[Row]:
    """The rows that are asked: those with the smallest hashes, so the same ones every time."""
    hashed = ((hashlib.sha256(row.id.encode("utf-8", "replace")).digest(), row) for row in rows if row.shows_the_task)
    return [row for _, row in sorted(hashed, key=lambda pair: pair[0])[:most]]


def rounds_of(requests: Iterable[StoredRequest]) -> list[Round]:
    """Rounds in order, from the stored requests of one model in order; a round's name is their conversation."""
    own = [one for one in requests if (one.shadow or "").startswith(MARK) and one.conversation]
    found = []
    for name, group in groupby(own, key=lambda one: one.conversation or ""):
        members = list(group)
        found.append(Round(name, members[0].time, {(one.shadow or "")[len(MARK) :]: one for one in members}))
    return found


def canary_level(false_alarms: float, every_days: float) -> float:
    """The level of one round with which rounds raise at most their share of so many false alarms in a year.

    Args:
        false_alarms: of a year, all kinds.
        every_days: between two rounds.
    """
    return min(0.5, SHARE * false_alarms * every_days / 365.25)


def chance_of(changed: int, compared: int, changed_before: int, compared_before: int) -> float:
    """The chance of so many new answers if nothing has changed, after what earlier rounds showed: beta-binomial.

    Args:
        changed, compared: answers of the round.
        changed_before, compared_before: answers of all rounds before.
    """
    from scipy.stats import betabinom

    if not changed:
        return 1.0
    a, b = DOUBT + changed_before, 1.0 + compared_before - changed_before
    return float(betabinom.sf(changed - 1, compared, a, b))


@dataclass
class _Known:
    """What earlier rounds have shown.

    Args:
        answers: row -> the texts that it got from the release in use, with the request of each; the last one is the latest.
        compared, changed: answers of all rounds, and new ones among them.
    """

    answers: dict[str, dict[str, str]] = field(default_factory=dict)
    compared: int = 0
    changed: int = 0


def follow(rounds: Sequence[Round], rows: Mapping[str, Row], level: float) -> list[CanaryRound]:
    """What each round shows against those before it.

    An answer is new where the release in use has never given it to this row. A new release begins anew, and its first
    answers are compared with the last ones before it, without an alarm. New answers of a round with an alarm count as chance
    for the later ones as well: then no rate of chance raises more alarms than `level` allows for long.

    Args:
        rounds: of one model, in order.
        rows: of the data set, as far as they are at hand.
        level: of a round.
    """
    known, identity, found = _Known(), None, []
    for one in rounds:
        new_release = identity is not None and one.identity != identity
        identity = one.identity
        texts = {row: text for row, request in one.answers.items() if (text := _text(request)) is not None}
        changed = [row for row, text in texts.items() if row in known.answers and text not in known.answers[row]]
        compared = sum(row in known.answers for row in texts)
        p = 1.0 if new_release else chance_of(len(changed), compared, known.changed, known.compared)
        changes = [_changed(row, one, known.answers[row], rows.get(row)) for row in changed]
        found.append(_finding(one, changes, new_release=new_release, compared=compared, before=known, p=p, level=level))
        if new_release:
            known.answers = {}
        else:
            known.compared, known.changed = known.compared + compared, known.changed + len(changed)
        for row, text in texts.items():
            known.answers.setdefault(row, {}).pop(text, None)
            known.answers[row][text] = one.answers[row].id
    return found


def _text(request: StoredRequest) -> str | None:
    """The answer as it is compared, which may be a digest; None where there is none."""
    found = request.completion
    text = found.get("content") if isinstance(found, Mapping) else found
    return text.strip() if isinstance(text, str) and request.error is None else None


def _changed(row: str, one: Round, earlier: Mapping[str, str], of: Row | None) -> ChangedAnswer:
    before, request_before = list(earlier.items())[-1]
    request = one.answers[row]
    now = _text(request) or ""
    right = {text.strip() for text in references_of(of)} if of is not None and of.label is not None else None
    return ChangedAnswer(
        row=row, prompt=last_user_turn(of)[:TEXT] if of is not None else "", before=before[:TEXT], now=now[:TEXT], request_before=request_before,
        request_now=request.id, right_before=None if right is None else before in right,
        right_now=None if right is None else now in right,
    )  # fmt: skip


def _finding(
    one: Round,
    changes: list[ChangedAnswer],
    *,
    new_release: bool,
    compared: int,
    before: _Known,
    p: float,
    level: float,
) -> CanaryRound:
    alarm = bool(changes) and p <= level
    judged = [each for each in changes if each.right_now is not None]
    right_before, right_now = (
        sum(bool(getattr(each, name)) for each in judged) for name in ("right_before", "right_now")
    )
    failed = sum(_text(request) is None for request in one.answers.values())
    if not compared:
        said = f"{counted(len(one.answers), 'canary prompt')} asked for the first time"
    elif not changes:
        said = f"all of {counted(compared, 'canary prompt')} are answered as before"
    else:
        said = f"{len(changes)} of {counted(compared, 'canary prompt')} are answered otherwise than before"
        said += f", of these {right_before} rightly before and {right_now} now" if judged else ""
        said += "; a new release answers" if new_release else f" (p {p:.2g}, alarm below {level:.2g})"
    if failed:
        said += f"; {failed} got no answer"
    return CanaryRound(
        round=one.id, time=one.time, adapter=one.identity[0], release=one.identity[1], new_release=new_release,
        asked=len(one.answers), failed=failed, compared=compared, changed=changes, chances=before.compared,
        chance_changes=before.changed, p=p, level=level, alarm=alarm, right_before=right_before, right_now=right_now,
        known=len(judged), sentence=said, next_step=NEXT if alarm else "",
    )  # fmt: skip


def round_in_words(one: CanaryRound, most: int = 5) -> str:
    """A round in words, with the prompts and answers that differ."""
    shown = [
        f"{each.prompt[:80]!r}: {each.before[:60]!r} -> {each.now[:60]!r}" if each.prompt else f"row {each.row}"
        for each in one.changed[:most]
    ]
    more = f" and {len(one.changed) - most} others" if len(one.changed) > most else ""
    said = f"{one.sentence}. {'; '.join(shown)}{more}." if shown else f"{one.sentence}."
    said = said[0].upper() + said[1:]
    return f"{said} Next: {one.next_step}." if one.alarm else said


def without_texts(one: CanaryRound) -> CanaryRound:
    """As it may stand in the log of decisions, from which nothing can be erased."""
    plain = [each.model_copy(update={"prompt": "", "before": "", "now": ""}) for each in one.changed]
    return one.model_copy(update={"changed": plain})
