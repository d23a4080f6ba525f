"""Experiments with a candidate on live traffic: who meets it, and what came of it, from the events of the log.

The unit is the user: drawn into an arm by a hash, which keeps the arm of the first request and counts once, with
what came within one maturation window, the same for both arms. `evidence.py` says what that proves, `decision.py` what
follows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tuneloop.core.files import content_hash
from tuneloop.core.lazy import Array, NDArray, np
from tuneloop.improve.experiment.record import LATER, ExperimentDesign
from tuneloop.improve.experiment.tally import AMOUNTS, RATES
from tuneloop.improve.feedback.value import by_request, conversations_of, mean_value
from tuneloop.records.feedback import Feedback, value_of
from tuneloop.records.request import NOT_LOADED, StoredRequest

CANDIDATE, CHAMPION = "candidate", "champion"


def registration_hash(design: ExperimentDesign) -> str:
    """The hash of a registration, as it is in every decision: sha256 of its JSON with sorted keys."""
    later = set(LATER) if design.method == "asymptotic" else None
    return "sha256:" + content_hash(design.model_dump(mode="json", exclude=later))


def place_of(design: ExperimentDesign, unit: str) -> float:
    """Position of a unit between 0 and 1, by its hash: below the candidate's share it meets the candidate.

    Args:
        unit: the user's pseudonym; where there is none the conversation, else the request.
    """
    digest = hashlib.sha256(f"{design.salt}\x1f{design.name}\x1f{unit}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7]) / 2**56


def assign(design: ExperimentDesign, unit: str, share: float) -> str:
    """The arm of a unit that comes for the first time.

    Call it once for each unit and keep the answer: a later share holds for new units only.

    Args:
        share: of new units that meet the candidate now; it is the propensity to be logged.
    """
    return CANDIDATE if place_of(design, unit) < share else CHAMPION


def in_sample(design: ExperimentDesign, unit: str) -> bool:
    """Whether a unit is in the random sample whose requests are checked; a draw that its arm has no part in."""
    return place_of(design, f"{unit}\x1fchecked") < design.sample


def unit_of(request: StoredRequest) -> str:
    """What a request is counted by: its user, else its conversation, else itself.

    Users whom a key names that is not believed are one together, and all callers without a key are one: a stranger
    can't count as many. See `StoredRequest.voice`.
    """
    return request.voice or person_of(request)


def person_of(request: StoredRequest) -> str:
    """Whom a request says that it comes from: its user, else its conversation, else itself."""
    return request.user or request.conversation or request.id


@dataclass(frozen=True)
class Units:
    """Units in the order of their first request, one value each."""

    candidate: NDArray[np.bool_]  # whether it is in the candidate's arm
    propensity: Array  # the chance of that when it came
    outcome: Array  # its mean value of the measure; NaN: none yet, or not matured
    likes: Array  # good and bad values per request of it, rated or not; NaN: not matured
    dislikes: Array
    checked: Array  # NaN: not in the random sample of users, not matured, or not checked
    affected: Mapping[str, NDArray[np.bool_]]  # guardrail on a rate -> whether it happened to the unit
    amounts: Mapping[str, Array]  # guardrail on an amount -> the unit's mean of logarithms; NaN: nothing measured
    dropped: int = 0  # conversations that were left out


def units_of(
    design: ExperimentDesign, requests: Iterable[StoredRequest], feedback: Iterable[Feedback], at: datetime
) -> Units:
    """The units of an experiment, from its requests in order and the feedback on them, as they stood at a time.

    Requests without an arm, of another model, or with a propensity of 0 or 1 say nothing and are passed over. What came
    after `at` must have been left out.
    """
    counted = [r for r in requests if r.model == design.model and r.arm in (CANDIDATE, CHAMPION)]
    counted = [r for r in counted if r.propensity and 0 < r.propensity < 1]
    mixed = _mixed_conversations(counted)
    counted = [r for r in counted if (r.voice, r.conversation) not in mixed]
    groups: dict[str, list[StoredRequest]] = {}
    for request in counted:
        groups.setdefault(unit_of(request), []).append(request)
    feedback_of = by_request(feedback, conversations_of(counted))
    rows = [_unit(design, group, feedback_of, at) for group in groups.values()]
    return Units(
        candidate=np.array([row.candidate for row in rows], dtype=bool),
        propensity=np.array([row.propensity for row in rows], dtype=np.float64),
        outcome=np.array([row.outcome for row in rows], dtype=np.float64),
        likes=np.array([row.likes for row in rows], dtype=np.float64),
        dislikes=np.array([row.dislikes for row in rows], dtype=np.float64),
        checked=np.array([row.checked for row in rows], dtype=np.float64),
        affected={name: np.array([row.affected[name] for row in rows], dtype=bool) for name in RATES},
        amounts={name: np.array([row.amounts[name] for row in rows], dtype=np.float64) for name in AMOUNTS},
        dropped=len(mixed),
    )


def _mixed_conversations(requests: Sequence[StoredRequest]) -> set[tuple[str | None, str | None]]:
    """Voice and name of conversations in which more than one release answered, as after a fallback."""
    seen: dict[tuple[str | None, str | None], set[tuple[str | None, str | None, str | None]]] = {}
    for r in requests:
        if r.conversation:
            seen.setdefault((r.voice, r.conversation), set()).add((r.arm, r.release, r.adapter))
    return {name for name, releases in seen.items() if len(releases) > 1}


@dataclass(frozen=True)
class _Unit:
    candidate: bool
    propensity: float
    outcome: float
    likes: float
    dislikes: float
    checked: float
    affected: Mapping[str, bool]
    amounts: Mapping[str, float]


def _unit(
    design: ExperimentDesign, group: Sequence[StoredRequest], feedback_of: Mapping[str, list[Feedback]], at: datetime
) -> _Unit:
    first = group[0]
    end = time_of(first.time) + timedelta(hours=design.maturation_hours)
    requests = [r for r in group if r.arm == first.arm and time_of(r.time) <= end]
    feedback_on = [one for r in requests for one in feedback_of.get(r.id, ())]  # a check may come later
    feedback = [one for one in feedback_on if time_of(one.time) <= end]
    mean = mean_value(one for one in feedback if one.kind == design.measure)
    over = at >= end
    outcome = mean if mean is not None and over else math.nan
    good, bad = _per_request(design, requests, feedback_of, end) if over else (math.nan, math.nan)
    sampled = over and design.sample > 0 and in_sample(design, unit_of(first))
    check = mean_value(one for one in feedback_on if one.kind == design.sample_kind) if sampled else None
    goods = [v for one in feedback if (v := value_of(one.kind, one.value)) is not None]
    return _Unit(
        candidate=first.arm == CANDIDATE,
        propensity=first.propensity or math.nan,
        outcome=1 - outcome if design.lower_is_better else outcome,
        likes=bad if design.lower_is_better else good,
        dislikes=good if design.lower_is_better else bad,
        checked=math.nan if check is None else check,
        affected={"invalid": any(is_invalid(r) for r in requests), "dislikes": any(value < 0.5 for value in goods)},
        amounts={
            "latency": _mean_log(r.total_ms for r in requests),
            "cost": _mean_log(r.usd for r in requests),
            "length": _mean_log(r.completion_tokens for r in requests),
        },
    )


def _per_request(
    design: ExperimentDesign,
    requests: Sequence[StoredRequest],
    feedback_of: Mapping[str, list[Feedback]],
    end: datetime,
) -> tuple[float, float]:
    """Good and bad values per request of a unit, rated or not. A request counts with the mean of its values."""
    good = bad = 0.0
    for request in requests:
        values = [one for one in feedback_of.get(request.id, ()) if time_of(one.time) <= end]
        mean = mean_value(one for one in values if one.kind == design.measure)
        if mean is not None:
            good, bad = good + mean, bad + 1 - mean
    return good / len(requests), bad / len(requests)


def is_invalid(request: StoredRequest) -> bool:
    """Whether an answer failed, was cut off, or came from the champion since the candidate failed."""
    return request.error is not None or request.finish == "length" or request.fallback not in (None, NOT_LOADED)


def _mean_log(values: Iterable[float | None]) -> float:
    logs = [math.log(value) for value in values if value is not None and value > 0]
    return sum(logs) / len(logs) if logs else math.nan


def time_of(text: str) -> datetime:
    """A stored time."""
    return datetime.fromisoformat(text)
