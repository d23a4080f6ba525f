"""`tuneloop ab`: experiments of a server's store are started, decided, stopped and replayed; shadow mode is judged."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import build_config, folder_holder, plain
from tuneloop.core.ids import utc, utc_now, uuid7
from tuneloop.evaluation import AnswerPair, Judge
from tuneloop.improve.experiment.decision import decide
from tuneloop.improve.experiment.record import ExperimentDesign, ExperimentOptions, ExperimentVerdict
from tuneloop.improve.experiment.state import (
    DECISION,
    EVENTS,
    START,
    STOP,
    ExperimentState,
    add_event,
    design_of,
    experiments_of,
    find,
    left_out,
)
from tuneloop.improve.experiment.statistics import (
    is_invalid,
    person_of,
    registration_hash,
    sampled_requests,
    time_of,
    units_of,
)
from tuneloop.improve.experiment.tally import evidence_of
from tuneloop.improve.feedback.value import by_request, conversations_of, current
from tuneloop.improve.monitor.detectors import answer_of
from tuneloop.records.feedback import SHADOW, Feedback
from tuneloop.records.record import read_record, write_record
from tuneloop.records.request import LEFT, StoredRequest
from tuneloop.records.server import ServerState
from tuneloop.serving import Candidate, check_candidate, read_keys
from tuneloop.serving.store import (
    Database,
    insert,
    is_database_url,
    last_place,
    opened,
    read_decisions,
    read_feedback,
    read_requests,
    refuse_rewritten,
    store_folder,
    store_name,
)


@dataclass(frozen=True)
class Replayed:
    """A decision of the log, made again."""

    logged: ExperimentVerdict  # logged, again: as it is in the log, and as it comes out now
    again: ExperimentVerdict
    same: bool  # whether outcome, share, sentence and evidence are the same
    follows: bool  # whether the logged decision follows from its own logged evidence


def registration_file(location: Path | str, name: str) -> Path:
    """Path of an experiment's registration."""
    return store_folder(location) / "experiments" / f"{name}.json"


def start(location: Path | str, name: str, settings: Mapping[str, Any], *, at: str = "") -> ExperimentState:
    """Register an experiment and begin it.

    `settings`: by the names of `ExperimentOptions`. `at`: the time; now where empty. Raises UserError: a bad setting, a
    name that is in use, another experiment with this model runs, or the server can't serve the candidate.
    """
    design = design_of(name, build_config(ExperimentOptions, settings), secrets.token_hex(8))
    check_candidate(store_folder(location), Candidate(design.model, design.candidate))
    file = registration_file(location, name)
    with opened(location) as store:
        others = experiments_of(read_decisions(store, where=EVENTS))
        if name in others:
            raise UserError(f"There is an experiment {name} already", where=str(file), next_step="choose another name")
        for other, state in others.items():
            if not state.ended and state.design.model == design.model:
                step = f"tuneloop ab stop {other}, or wait for its end"
                message = f"Experiment {other} with {design.model} still runs"
                raise UserError(message, where=store_name(location), next_step=step)
        whole = design.model_dump(mode="json")  # with the defaults of today, which later versions may change
        write_record(file, ExperimentDesign.model_validate(whole))
        data = {"design": whole, "registration": registration_hash(design)}
        event = add_event(store, START, name, data, key=f"{START}:{name}", at=at)
        if event is None:
            raise UserError(f"Another process has just started {name}", where=str(file), next_step="tuneloop ab show")
        return experiments_of([event])[name]


def wait_for_candidate(location: Path | str, name: str, seconds: float = 300.0) -> bool:
    """Wait until the server that works in the store's folder serves an experiment's candidate; False: none does yet.

    Raises UserError: the server can't serve it; the experiment is stopped then.
    """
    folder, until = store_folder(location), time.monotonic() + seconds
    if not (folder / ServerState.file).is_file():
        return False
    while folder_holder(folder) and time.monotonic() < until:
        reason = left_out(location, name)
        if reason:
            state = stop(location, name, f"the server can't serve the candidate: {reason}")
            step = "correct that and start another experiment; this one is stopped"
            raise UserError(
                f"The server can't serve the candidate: {reason}", where=state.design.candidate, next_step=step
            )
        if reason == "":
            return True
        time.sleep(0.2)
    return False


def not_served(location: Path | str, model: str) -> str:
    """What to know where a store's server lacks this model, so that no one meets a candidate.

    Empty: it has the model, or there is no server yet.
    """
    state = store_folder(location) / ServerState.file
    names = [served.name for served in read_record(ServerState, state).models] if state.is_file() else []
    if not names or model in names:
        return ""
    return f"the server has no model {model!r}, so no one meets the candidate; it has {', '.join(names)}"


def counts_users(location: Path | str) -> bool:
    """Whether users count one by one: the server believes a key in use, or callers without one, whom they name.

    True, too, where there is no server yet.
    """
    folder = store_folder(location)
    if not (folder / ServerState.file).is_file():
        return True
    open_rights = read_record(ServerState, folder).config.get("keys", {}).get("open_rights", [])
    if "users" in open_rights:
        return True
    return any(key.revoked is None and "users" in key.limits.rights for key in read_keys(folder))


def votes_of(feedback: Iterable[Feedback], experiment: str) -> list[Feedback]:
    """The judged pairs of a shadow mode: `judge_copies` alone writes them, under a key that no one can send."""
    key = f"{SHADOW}:{experiment}:"
    votes = [vote for vote in feedback if vote.kind == SHADOW and vote.value in (-1, 0, 1)]
    return [vote for vote in votes if (vote.key or "").startswith(key)]


def verdict_of(store: Database, state: ExperimentState, at: str, seen: int | None = None) -> ExperimentVerdict:
    """What follows from all that was stored before a time.

    `at`: ISO 8601 in UTC. `seen`: place of the last event that counts; None: all that is stored.
    """
    bound, seen_value = (" AND place <= ?", [seen]) if seen is not None else ("", [])
    days, when = state.design.earlier_days, time_of(at)
    where, values = f"model = ?{'' if days else ' AND arm IS NOT NULL'}{bound}", [state.design.model, *seen_value]
    since = utc(time_of(state.started).timestamp() - 86_400 * days) if days else state.started
    period: dict[str, Any] = {"since": since, "until": at}
    every = list(read_requests(store, **period, where=where, values=values, texts=False))
    feedback = list(read_feedback(store, **period, where=f"TRUE{bound}", values=seen_value))
    requests = [r for r in every if r.arm is not None and r.time >= state.started]
    units = units_of(state.design, requests, feedback, when, every if days else ())
    votes = [float(vote.value) for vote in current(votes_of(feedback, state.design.name))]
    copies = 0
    if state.in_shadow_mode:
        shadow = read_requests(store, **period, where=where, values=values, shadow=True, texts=False)
        copies = sum(copy.error != LEFT for copy in shadow if copy.arm is not None and copy.time >= state.started)
    verdict = decide(state.design, evidence_of(state.design, units, state.stage(when), votes, copies), at)
    return verdict.model_copy(update={"seen": seen})


def check(location: Path | str, name: str = "", *, at: str = "") -> tuple[ExperimentState, ExperimentVerdict]:
    """Decide on an experiment now, and log it. One that has ended gives its last decision again.

    `name`: of the experiment; empty: the one that runs. `at`: the time; now where empty. Returns the state before it,
    and the decision. Raises UserError: no such experiment, its registration was changed, it was stopped, or it would
    continue with a candidate that the server can't serve.
    """
    with opened(location) as store:
        refuse_rewritten(store, store_name(location))
        state = find(experiments_of(read_decisions(store, where=EVENTS)), name, location)
        name = state.design.name
        file = registration_file(location, name)
        if is_database_url(location) and not file.is_file():  # started on another machine; the database has it too
            write_record(file, state.design)
        refuse_changed(state, file)
        if state.ended == "stopped":
            raise UserError(f"{name} was stopped", where=store_name(location), next_step="start another one")
        if state.ended:
            return state, state.verdicts[-1]
        verdict = verdict_of(store, state, at or utc_now(), last_place(store))
        reason = left_out(location, name) if verdict.outcome == "continue" else ""
        if reason:
            step = f"tuneloop ab stop {name}, and start another one with a candidate that can be served"
            message = f"No one meets the candidate, the server can't serve it: {reason}"
            raise UserError(message, where=state.design.candidate, next_step=step)
        key = f"{DECISION}:{name}:{len(state.verdicts)}"  # two processes that decide: the first one counts
        if add_event(store, DECISION, name, verdict.to_json(), key=key, at=verdict.at) is None:
            again = experiments_of(read_decisions(store, where=EVENTS))[name]
            return state, again.verdicts[len(state.verdicts)]
        return state, verdict


def refuse_changed(state: ExperimentState, file: Path) -> None:
    """Refuse an experiment whose registration is not what it was.

    Raises UserError: the file is missing or was changed.
    """
    registration = registration_hash(read_record(ExperimentDesign, file))
    if registration != state.registration:
        step = f"restore it ({state.registration[:19]}...), or stop this experiment and start another one"
        raise UserError("The registration was changed after the start", where=str(file), next_step=step)


def stop(location: Path | str, name: str, reason: str) -> ExperimentState:
    """End an experiment by hand; the champion answers all. Raises UserError: no such experiment, or it has ended."""
    with opened(location) as store:
        state = find(experiments_of(read_decisions(store, where=EVENTS)), name, location)
        name = state.design.name
        if state.ended:
            message = f"{name} has ended: {state.ended}"
            raise UserError(message, where=store_name(location), next_step="tuneloop ab show")
        add_event(store, STOP, name, {"why": reason, "registration": state.registration}, key=f"{STOP}:{name}")
        return experiments_of(read_decisions(store, where=EVENTS))[name]


def replay(location: Path | str, name: str = "") -> list[Replayed]:
    """Make every decision of an experiment again from the log. Raises UserError: no such experiment."""
    replayed: list[Replayed] = []
    with opened(location) as store:
        events = list(read_decisions(store, where=EVENTS))
        name = find(experiments_of(events), name, location).design.name
        logged_events = [event for event in events if event.subject == name]
        for at, event in enumerate(logged_events):
            if event.kind == DECISION:
                logged = ExperimentVerdict.model_validate(event.data)
                state = experiments_of(logged_events[:at])[name]
                again = verdict_of(store, state, logged.at, logged.seen)
                follows = decide(state.design, logged.evidence, logged.at).model_copy(update={"seen": logged.seen})
                replayed.append(Replayed(logged, again, _same(logged, again), _same(logged, follows)))
    return replayed


def _same(a: ExperimentVerdict, b: ExperimentVerdict) -> bool:
    return bool(plain(a.model_dump(mode="json")) == plain(b.model_dump(mode="json")))


@dataclass(frozen=True)
class SampledRequest:
    """A request of a user in the random sample, without its arm, which whoever checks it should not know."""

    request: str  # its id
    user: str
    time: str
    question: str  # the last turn, and the answer to it
    answer: str
    checked: bool  # whether a check of it is stored


def sample_of(location: Path | str, name: str = "") -> list[SampledRequest]:
    """The requests of an experiment's random sample that count, oldest first.

    `name`: of the experiment; empty: the one that runs. Raises UserError: no such experiment, or it has no sample.
    """
    with opened(location) as store:
        state = find(experiments_of(read_decisions(store, where=EVENTS)), name, location)
        design = state.design
        if not design.sample:
            step = "tuneloop ab start NAME --sample 0.2 draws one, before the first user comes"
            raise UserError(f"{design.name} has no random sample", where=store_name(location), next_step=step)
        where = "model = ? AND arm IS NOT NULL"
        requests = list(read_requests(store, since=state.started, where=where, values=[design.model]))
        feedback = read_feedback(store, since=state.started, where="kind = ?", values=[design.sample_kind])
        checks = by_request((vote for vote in feedback if vote.believed), conversations_of(requests))
    sampled = sampled_requests(design, requests)
    return [
        SampledRequest(r.id, person_of(r), r.time, str(r.prompt[-1].get("content") or ""), answer_of(r), r.id in checks)
        for r in sampled
    ]


VOTES = {"a": -1, "tie": 0, "b": 1}  # b is the candidate
MOST = 1000  # pairs of one call
Pairs = Sequence[tuple[StoredRequest, StoredRequest]]  # requests and their copies
Verdict = tuple[int, str]  # 1, 0 or -1, and who says so


@dataclass(frozen=True)
class JudgedCopies:
    """What became of an experiment's copies."""

    experiment: str  # its name
    pairs: int  # copies without a verdict that were looked at
    votes: dict[str, int]  # new verdicts by source: `invalid`, one of both failed or was cut off; `equal` answers tie;
    # `people` have said what is right; `judge` is the model
    mean: float  # of these: 1 the candidate is better, -1 worse
    open: int  # pairs about which no one could say anything
    notes: list[str]  # what to know of the judge


def judge_copies(location: Path | str, name: str = "", *, judge: Judge | None = None) -> JudgedCopies:
    """Give a verdict on each pair of answers of a shadow mode that has none, as feedback of the kind `shadow`.

    `name`: of the experiment; empty: the one that runs. `judge`: a model that compares answers in both orders; None:
    only answers that failed, are equal, or of which people have said what is right, get a verdict. Raises UserError: no
    such experiment, or it has no shadow mode.
    """
    with opened(location) as store:
        state = find(experiments_of(read_decisions(store, where=EVENTS)), name, location)
        design = state.design
        if not design.shadow:
            step = "tuneloop ab start NAME begins one with it, unless --no-shadow is given"
            raise UserError(f"{design.name} has no shadow mode", where=store_name(location), next_step=step)
        feedback = current(read_feedback(store, since=state.started))
        judged_requests = {item.request for item in votes_of(feedback, design.name)}
        pairs = _pairs(store, state, judged_requests)
        answers = [
            vote for vote in feedback if vote.kind in ("label", "correction") and vote.request and vote.may_teach()
        ]
        right = {str(answer.request): str(answer.value).strip() for answer in answers}
        verdicts = {
            copy.id: plain for request, copy in pairs if (plain := _plain_verdict(request, copy, right.get(request.id)))
        }
        left = [pair for pair in pairs if pair[1].id not in verdicts and all(answer_of(side).strip() for side in pair)]
        notes: list[str] = []
        if judge is not None and left:
            judged, notes = _judged(left, right, judge)
            verdicts |= judged
        votes = [
            _vote(request, copy, *verdicts[copy.id], design.name) for request, copy in pairs if copy.id in verdicts
        ]
        insert(store, votes)
    values, sources = [vote.value for vote in votes], Counter(str(vote.user) for vote in votes)
    mean = sum(values) / len(values) if values else 0.0
    return JudgedCopies(design.name, len(pairs), dict(sources), mean, len(pairs) - len(votes), notes)


def _pairs(store: Database, state: ExperimentState, judged: Set[str | None]) -> Pairs:
    """Requests and their copies, in order, without those that are `judged`.

    Users' requests may be a million: only those that have a copy are read.
    """
    where, values = "model = ? AND arm IS NOT NULL", [state.design.model]
    every = read_requests(store, since=state.started, where=where, values=values, shadow=True)
    copies = [copy for copy in every if copy.error != LEFT and copy.shadow not in judged][:MOST]
    if not copies:
        return []
    ids = [copy.shadow for copy in copies]
    originals = read_requests(store, where=f"id IN ({', '.join('?' * len(ids))})", values=ids)
    seen = {request.id: request for request in originals}
    return [(seen[copy.shadow], copy) for copy in copies if copy.shadow in seen]


def _plain_verdict(request: StoredRequest, copy: StoredRequest, right: str | None) -> Verdict | None:
    failed = is_invalid(request), is_invalid(copy)
    if failed[0] != failed[1]:
        return (1 if failed[0] else -1), "invalid"
    champion, candidate = answer_of(request).strip(), answer_of(copy).strip()
    if champion == candidate:
        return (0, "equal") if champion else None
    if right is not None and right in (champion, candidate):
        return (1 if candidate == right else -1), "people"
    return None


def _judged(pairs: Pairs, right: Mapping[str, str], judge: Judge) -> tuple[dict[str, Verdict], list[str]]:
    rows = []
    for request, copy in pairs:
        turns = "\n\n".join(f"{turn.get('role')}: {turn.get('content') or ''}" for turn in request.prompt)
        rows.append(AnswerPair(copy.id, turns, answer_of(request), answer_of(copy), right.get(request.id, "")))
    result = judge.prefer(rows, ("champion", "candidate"))
    return {row.id: (VOTES[row.winner], "judge") for row in result.rows if row.winner is not None}, result.words


def _vote(request: StoredRequest, copy: StoredRequest, value: int, by: str, experiment: str) -> Feedback:
    key = f"{SHADOW}:{experiment}:{copy.id}"
    return Feedback(
        id=uuid7(), request=request.id, kind=SHADOW, value=value, user=by, source="judge", time=utc_now(), key=key
    )
