"""Experiments with a candidate on live traffic: who meets it, and what came of it, from the events of the log.

The unit is the user: drawn into an arm by a hash, kept in it, and counted once, with what came within one maturation
window, the same for both arms. Where the share has risen since, the champion's users are drawn again and count again.
`tally.py` says what that proves, `decision.py` what follows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tuneloop.core.files import content_hash
from tuneloop.core.lazy import Array, NDArray, np
from tuneloop.improve.experiment.record import ExperimentDesign
from tuneloop.improve.experiment.tally import LATER_WINDOWS, MOST_SLICES, UNHAPPY_VALUES, kinds_of
from tuneloop.improve.feedback.value import by_request, conversations_of, current, mean_value
from tuneloop.records.feedback import Feedback, value_of
from tuneloop.records.request import NOT_LOADED, StoredRequest

CANDIDATE, CHAMPION = "candidate", "champion"
FIRST_DAY = timedelta(days=1)  # of a user, by whose votes harm is seen before the window is over


def registration_hash(design: ExperimentDesign) -> str:
    """The hash of a registration, as it is in every decision: sha256 of its JSON with sorted keys."""
    return "sha256:" + content_hash(design.model_dump(mode="json"))


def place_of(design: ExperimentDesign, unit: str) -> float:
    """Position of a unit between 0 and 1, by its hash: below the candidate's share it meets the candidate.

    Args:
        unit: the user's pseudonym; where there is none the conversation, else the request.
    """
    digest = hashlib.sha256(f"{design.salt}\x1f{design.name}\x1f{unit}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7]) / 2**56


def assign(design: ExperimentDesign, unit: str, share: float, *, again: bool = False) -> str:
    """The arm of a unit that comes for the first time, or `again`; see `state.Arms`, which keeps the answer.

    Args:
        share: of units that are drawn now and meet the candidate; it is the propensity to be logged.
    """
    return CANDIDATE if place_of(design, f"{unit}\x1f{share:g}" if again else unit) < share else CHAMPION


def may_be_drawn_again(design: ExperimentDesign, drawn: str, now: str) -> bool:
    """Whether the window of a draw is over; times are ISO 8601."""
    return time_of(now) > time_of(drawn) + timedelta(hours=design.maturation_hours)


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
    requests: Array  # within its window; NaN: not matured
    votes: NDArray[np.int64]  # values of the measure within it
    guarded: Mapping[str, Array]  # by guardrail but `slices`, what it compares of the unit; NaN: nothing, or not yet
    slices: Mapping[str, NDArray[np.bool_]]  # by name, whether the unit is in it
    kinds: NDArray[np.int64]  # by what it did before its draw; see `tally.kinds_of`
    weekday: NDArray[np.int64]  # of its first request, in UTC; 0 is Monday
    dropped: int = 0  # requests of no one, or conversations, that were left out
    returned: int = 0  # units that came again, and `switched`, those of them that met the other arm without a new draw
    switched: int = 0


def units_of(
    design: ExperimentDesign,
    requests: Iterable[StoredRequest],
    feedback: Iterable[Feedback],
    at: datetime,
    earlier: Sequence[StoredRequest] = (),
) -> Units:
    """The units of an experiment, from its requests in order and the feedback on them, as they stood at a time.

    `earlier`: all requests for the model from `earlier_days` before the start on, with or without an arm.

    Requests without an arm, of another model, or with a propensity of 0 or 1 say nothing and are passed over. What came
    after `at` must have been left out.
    """
    counted = [r for r in requests if r.model == design.model and r.arm in (CANDIDATE, CHAMPION)]
    counted = [r for r in counted if r.propensity and 0 < r.propensity < 1]
    number = len(counted)
    counted = [r for r in counted if r.voice or r.user or r.conversation]
    draws = _draws_of(counted)
    people = [draw for draw in draws if len(draw) > 1 and not draw[0].voice]
    feedback_of = by_request(feedback, conversations_of(earlier or counted), every=True)
    rows = [_unit(design, draw, feedback_of, at) for draw in draws]
    return Units(
        candidate=np.array([row.candidate for row in rows], dtype=bool),
        propensity=np.array([row.propensity for row in rows], dtype=np.float64),
        outcome=np.array([row.outcome for row in rows], dtype=np.float64),
        likes=np.array([row.likes for row in rows], dtype=np.float64),
        dislikes=np.array([row.dislikes for row in rows], dtype=np.float64),
        checked=np.array([row.checked for row in rows], dtype=np.float64),
        requests=np.array([row.requests for row in rows], dtype=np.float64),
        votes=np.array([row.votes for row in rows], dtype=np.int64),
        guarded={name: np.array([row.guarded[name] for row in rows], dtype=np.float64) for name in GUARDED},
        slices=_slices(draws),
        kinds=_kinds(design, draws, earlier, feedback_of),
        weekday=np.array([time_of(draw[0].time).weekday() for draw in draws], dtype=np.int64),
        dropped=number - len(counted),
        returned=len(people),
        switched=sum(any(r.arm != draw[0].arm for r in draw) for draw in people),
    )


def _draws_of(requests: Iterable[StoredRequest]) -> list[list[StoredRequest]]:
    """Requests by the draws of their units, in the order of the first ones."""
    groups: dict[str, list[StoredRequest]] = {}
    for request in requests:
        groups.setdefault(unit_of(request), []).append(request)
    draws = [draw for group in groups.values() for draw in _draws(group)]
    return sorted(draws, key=lambda draw: (draw[0].time, draw[0].id))


def sampled_requests(design: ExperimentDesign, requests: Iterable[StoredRequest]) -> list[StoredRequest]:
    """The requests of the random sample by which its users count: those of their windows."""
    window = timedelta(hours=design.maturation_hours)
    drawn = [r for r in requests if r.propensity and 0 < r.propensity < 1 and in_sample(design, unit_of(r))]
    own = ((r, draw[0]) for draw in _draws_of(drawn) for r in draw)
    return [r for r, first in own if r.arm == first.arm and time_of(r.time) <= time_of(first.time) + window]


def _draws(group: Sequence[StoredRequest]) -> Iterator[list[StoredRequest]]:
    """A unit's requests from one draw of its arm to the next, which had a higher share. A voice is drawn once."""
    draw = [group[0]]
    for request in group[1:]:
        if not request.voice and (request.propensity or 0) > (draw[0].propensity or 0):
            yield draw
            draw = []
        draw.append(request)
    yield draw


def _kinds(
    design: ExperimentDesign,
    draws: Sequence[Sequence[StoredRequest]],
    earlier: Iterable[StoredRequest],
    feedback_of: Mapping[str, list[Feedback]],
) -> NDArray[np.int64]:
    """The kind of each draw's unit by the requests that it sent before, and by votes that had come by then."""
    requests_of: dict[str, list[StoredRequest]] = {}
    for request in earlier:
        requests_of.setdefault(unit_of(request), []).append(request)
    before = np.zeros((3, len(draws)))
    for at, draw in enumerate(draws):
        end = time_of(draw[0].time)
        begin = end - timedelta(days=design.earlier_days)
        past = [r for r in requests_of.get(unit_of(draw[0]), ()) if begin <= time_of(r.time) < end]
        if past:
            votes = [_votes_on(design, r, feedback_of, end) for r in past]
            before[:, at] = len(past), *_per_request(design, votes)
    return kinds_of(*before)


def _slices(draws: Sequence[Sequence[StoredRequest]]) -> dict[str, NDArray[np.bool_]]:
    """Which units are in which slice: by key and prompt length of the first request, the first few of each."""
    slices: dict[str, NDArray[np.bool_]] = {}
    for slice_of in (lambda r: f"key {r.key}", _length_slice):
        names = np.array([slice_of(draw[0]) for draw in draws], dtype=object)
        slices |= {name: names == name for name in list(dict.fromkeys(names))[: MOST_SLICES // 2]}
    return slices


def _length_slice(request: StoredRequest) -> str:
    limit = next((limit for limit in (64, 256, 1024) if request.prompt_tokens <= limit), None)
    return "prompts of more than 1024 tokens" if limit is None else f"prompts of at most {limit} tokens"


@dataclass(frozen=True)
class _Unit:
    candidate: bool
    propensity: float
    outcome: float
    likes: float
    dislikes: float
    checked: float
    requests: float
    votes: int
    guarded: Mapping[str, float]


def _unit(
    design: ExperimentDesign, group: Sequence[StoredRequest], feedback_of: Mapping[str, list[Feedback]], at: datetime
) -> _Unit:
    first = group[0]
    end = time_of(first.time) + timedelta(hours=design.maturation_hours)
    requests = [r for r in group if r.arm == first.arm and time_of(r.time) <= end]
    votes = [_votes_on(design, r, feedback_of, end) for r in requests]
    feedback = [vote for request_votes in votes for vote in request_votes]
    mean = mean_value(vote for vote in feedback if vote.kind == design.measure)
    over = at >= end
    outcome = mean if mean is not None and over else math.nan
    good, bad = _per_request(design, votes) if over else (math.nan, math.nan)
    check = None
    if over and design.sample > 0 and in_sample(design, unit_of(first)):  # a check may come later
        every = [vote for r in requests for vote in feedback_of.get(r.id, ()) if vote.kind == design.sample_kind]
        check = mean_value(current(vote for vote in every if vote.believed))
    values = [v for vote in feedback if vote.kind == design.measure and (v := _good(design, vote)) is not None]
    return _Unit(
        candidate=first.arm == CANDIDATE,
        propensity=first.propensity or math.nan,
        outcome=1 - outcome if design.lower_is_better else outcome,
        likes=bad if design.lower_is_better else good,
        dislikes=good if design.lower_is_better else bad,
        checked=math.nan if check is None else check,
        requests=float(len(requests)) if over else math.nan,
        votes=len(values),
        guarded={
            "invalid": sum(is_invalid(r) for r in requests) / len(requests),
            "dislikes": _first_day(design, requests, feedback_of, at),
            "unhappy": float(max(values) >= 0.5) if over and len(values) >= UNHAPPY_VALUES else math.nan,
            "later": _later(design, group, feedback_of, at),
            "latency": _mean_log(r.total_ms for r in requests),
            "cost": _mean_log(r.usd for r in requests),
            "length": _mean_log(r.completion_tokens for r in requests),
        },
    )


GUARDED = ("invalid", "dislikes", "unhappy", "later", "latency", "cost", "length")


def _good(design: ExperimentDesign, vote: Feedback) -> float | None:
    """How good a vote says that an answer is, 0 to 1; None: it does not say."""
    value = value_of(vote.kind, vote.value)
    return 1 - value if value is not None and design.lower_is_better and vote.kind == design.measure else value


def _first_day(
    design: ExperimentDesign, requests: Sequence[StoredRequest], feedback_of: Mapping[str, list[Feedback]], at: datetime
) -> float:
    """The mean of what a user's votes of any kind say on its first day; NaN: none, or the day is not over."""
    end = time_of(requests[0].time) + min(FIRST_DAY, timedelta(hours=design.maturation_hours))
    if at < end:
        return math.nan
    votes = [vote for r in requests if time_of(r.time) <= end for vote in _votes_on(design, r, feedback_of, end)]
    values = [value for vote in votes if (value := _good(design, vote)) is not None]
    return sum(values) / len(values) if values else math.nan


def _votes_on(
    design: ExperimentDesign, request: StoredRequest, feedback_of: Mapping[str, list[Feedback]], end: datetime
) -> list[Feedback]:
    """What held at a time of what its user said of a request, or a sender that names no other user.

    Reviewers and judges see some answers and not others, so they decide nothing here; neither do other users.
    """
    votes = [vote for vote in feedback_of.get(request.id, ()) if time_of(vote.time) <= end]
    own = [vote for vote in votes if vote.user in (None, request.user)]
    return current(vote for vote in own if vote.source not in ("review", "judge"))


def _per_request(design: ExperimentDesign, votes: Sequence[Sequence[Feedback]]) -> tuple[float, float]:
    """Good and bad values per request of a unit, rated or not. A request counts with the mean of its values."""
    means = [mean_value(opinion for opinion in vote if opinion.kind == design.measure) for vote in votes]
    good = sum(mean for mean in means if mean is not None)
    return good / len(votes), sum(1 - mean for mean in means if mean is not None) / len(votes)


def _later(
    design: ExperimentDesign, group: Sequence[StoredRequest], feedback_of: Mapping[str, list[Feedback]], at: datetime
) -> float:
    """The mean value of what follows a unit's window, until `LATER_WINDOWS` are over; NaN: none, or they are not."""
    window, first = timedelta(hours=design.maturation_hours), group[0]
    begin, end = time_of(first.time) + window, time_of(first.time) + LATER_WINDOWS * window
    if at < end or len(group) == 1:
        return math.nan
    requests = [r for r in group if r.arm == first.arm and begin < time_of(r.time) <= end]
    votes = [vote for r in requests for vote in _votes_on(design, r, feedback_of, end) if vote.kind == design.measure]
    mean = mean_value(votes)
    return math.nan if mean is None else 1 - mean if design.lower_is_better else mean


def is_invalid(request: StoredRequest) -> bool:
    """Whether an answer failed, was cut off, or came from the champion since the candidate failed."""
    return request.error is not None or request.finish == "length" or request.fallback not in (None, NOT_LOADED)


def _mean_log(values: Iterable[float | None]) -> float:
    logs = [math.log(value) for value in values if value is not None and 0 < value < math.inf]
    return sum(logs) / len(logs) if logs else math.nan


def time_of(text: str) -> datetime:
    """A stored time."""
    return datetime.fromisoformat(text)
