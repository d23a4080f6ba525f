"""Shadow mode judged: a candidate's unseen answers against those that users got, before anyone meets the candidate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.improve.experiment.command import EVENTS, find, votes_of
from tuneloop.improve.experiment.state import ExperimentState, experiments_of
from tuneloop.improve.experiment.statistics import is_invalid
from tuneloop.improve.feedback.value import current
from tuneloop.improve.monitor.detectors import answer_of
from tuneloop.records.feedback import SHADOW, Feedback
from tuneloop.records.request import LEFT, StoredRequest
from tuneloop.serving.store.database import Database
from tuneloop.serving.store.store import insert, opened, read_decisions, read_feedback, read_requests, store_name

if TYPE_CHECKING:
    from tuneloop.pipeline.judge import Judge

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


def judge_copies(place: Path | str, name: str = "", *, judge: Judge | None = None) -> JudgedCopies:
    """Give a verdict on each pair of answers of a shadow mode that has none, as feedback of the kind `shadow`.

    `name`: of the experiment; empty: the one that runs. `judge`: a model that compares answers in both orders; None:
    only answers that failed, are equal, or of which people have said what is right, get a verdict. Raises UserError: no
    such experiment, or it has no shadow mode.
    """
    with opened(place) as store:
        state = find(experiments_of(read_decisions(store, where=EVENTS)), name, place)
        design = state.design
        if not design.shadow:
            step = "tuneloop ab start NAME begins one with it, unless --no-shadow is given"
            raise UserError(f"{design.name} has no shadow mode", where=store_name(place), next_step=step)
        feedback = current(read_feedback(store, since=state.started))
        judged_requests = {one.request for one in votes_of(feedback, design.name)}
        pairs = _pairs(store, state, judged_requests)
        answers = [one for one in feedback if one.kind in ("label", "correction") and one.request and one.may_teach()]
        right = {str(one.request): str(one.value).strip() for one in answers}
        verdicts = {copy.id: plain for one, copy in pairs if (plain := _plain_verdict(one, copy, right.get(one.id)))}
        left = [pair for pair in pairs if pair[1].id not in verdicts and all(answer_of(each).strip() for each in pair)]
        notes: list[str] = []
        if judge is not None and left:
            judged, notes = _judged(left, right, judge)
            verdicts |= judged
        votes = [_vote(one, copy, *verdicts[copy.id], design.name) for one, copy in pairs if copy.id in verdicts]
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


def _plain_verdict(one: StoredRequest, copy: StoredRequest, right: str | None) -> Verdict | None:
    failed = is_invalid(one), is_invalid(copy)
    if failed[0] != failed[1]:
        return (1 if failed[0] else -1), "invalid"
    champion, candidate = answer_of(one).strip(), answer_of(copy).strip()
    if champion == candidate:
        return (0, "equal") if champion else None
    if right is not None and right in (champion, candidate):
        return (1 if candidate == right else -1), "people"
    return None


def _judged(pairs: Pairs, right: Mapping[str, str], judge: Judge) -> tuple[dict[str, Verdict], list[str]]:
    from tuneloop.evaluation.judge import AnswerPair, judge_pairs, load_judge_prompt

    rows = []
    for one, copy in pairs:
        turns = "\n\n".join(f"{turn.get('role')}: {turn.get('content') or ''}" for turn in one.prompt)
        rows.append(AnswerPair(copy.id, turns, answer_of(one), answer_of(copy), right.get(one.id, "")))
    prompt = load_judge_prompt("pairwise", judge.prompt)
    result = judge_pairs(rows, judge.choose(), prompt, names=("champion", "candidate"))
    return {row.id: (VOTES[row.winner], "judge") for row in result.rows if row.winner is not None}, result.words


def _vote(one: StoredRequest, copy: StoredRequest, value: int, by: str, experiment: str) -> Feedback:
    key = f"{SHADOW}:{experiment}:{copy.id}"
    return Feedback(
        id=uuid7(), request=one.id, kind=SHADOW, value=value, user=by, source="judge", time=utc_now(), key=key
    )
