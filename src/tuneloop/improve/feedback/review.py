"""From production to `tuneloop review` and back: answers that people should look at, and what they said of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, lock_folder, write_jsonl
from tuneloop.core.ids import uuid7
from tuneloop.data.pii import PersonalConfig, Redactor
from tuneloop.evaluation.review import ITEMS, load_review, read_votes, standing
from tuneloop.improve.experiment.statistics import person_of
from tuneloop.improve.feedback.value import by_request, conversations_of, mean_value
from tuneloop.improve.monitor.command import EVENT as MONITORED
from tuneloop.improve.monitor.detectors import SAMPLE, FeedbackOf, Requests, answer_of, probability_of, question_of
from tuneloop.records.feedback import Feedback
from tuneloop.records.record import write_record
from tuneloop.records.request import StoredRequest
from tuneloop.records.review import Review, ReviewedSystem, ReviewItem, Vote
from tuneloop.serving.store import insert, opened, read_decisions, read_feedback, read_requests, store_name

Place = Path | str
SYSTEM = "production"
RANDOM_PART = 0.4


@dataclass(frozen=True)
class ReviewQueue:
    """A queue: its folder, its rows, and these by the group for whose sake they were chosen."""

    folder: str
    rows: int
    strata: dict[str, int]


def draw_queue(
    location: Place,
    out: Place,
    *,
    rows: int = 40,
    since: str = "",
    model: str = "",
    seed: int = 0,
    hidden: bool = False,
    measure: bool = False,
) -> ReviewQueue:
    """Write a folder that `tuneloop review` shows to people.

    `hidden`: ask for the right answer without showing the given one, so that no one is led by it. `measure`: a sample
    of all answers, whatever was said of them. Raises UserError: there is no store, nothing to look at, or the folder
    holds a review.
    """
    folder = Path(out)
    if (folder / Review.file).is_file():
        raise UserError("There is a review in this folder", where=str(folder), next_step=f"tuneloop review {folder}")
    with opened(location) as store:
        where, values = ("model = ?", [model]) if model else ("", [])
        every = list(read_requests(store, since=since, where=where, values=values, shadow=None))
        requests = [request for request in every if request.shadow is None]
        feedback = by_request(read_feedback(store), conversations_of(requests))
        alarms = read_decisions(store, since=since, where=f"kind = '{MONITORED}'")
        detections = [detection for event in alarms for detection in event.data["detections"] if detection["alarm"]]
    copies = {request.shadow: answer_of(request) for request in every if request.shadow and answer_of(request)}
    groups = groups_of(
        requests, {} if measure else feedback, copies, {id_ for alarm in detections for id_ in alarm["requests"]}
    )
    queued = queue(requests, groups, rows, random_part=1.0 if measure else RANDOM_PART, seed=seed)
    if not queued:
        message = f"No request of {len(requests):,} can be looked at"
        step = "they failed, their texts were not kept, or people have said already what is right"
        raise UserError(message, where=store_name(location), next_step=step)
    redactor = Redactor(PersonalConfig())
    items = [_item(candidate, redactor, hidden) for candidate in queued]
    manifest = Review(
        key=content_hash([candidate.model_dump(mode="json") for candidate in items]),
        mode="rating",
        systems=[ReviewedSystem(name=SYSTEM, place=store_name(location))],
        share=len(items) / len(groups),
        seed=seed,
        items=len(items),
        populations={SYSTEM: dict(Counter(groups.values()))},
    )
    with lock_folder(folder):
        write_jsonl(folder / ITEMS, items)
        write_record(folder / Review.file, manifest)
    return ReviewQueue(str(folder), len(items), dict(Counter(candidate.stratum for candidate in queued)))


def _item(candidate: Queued, redactor: Redactor, hidden: bool) -> ReviewItem:
    request = candidate.request
    text = "(hidden: write the right answer)" if hidden else answer_of(request)
    return ReviewItem(
        id=content_hash([request.id])[:12],
        row=request.id,
        systems=(SYSTEM,),
        answers=(redactor(text),),
        messages=[redactor(dict(turn)) for turn in request.prompt],
        references=[],
        stratum=candidate.stratum,
        group=candidate.group,
    )


def store_votes(location: Path | str, folder: Path | str) -> tuple[int, int]:
    """Store what people said in a review of production as feedback; the same votes again add nothing.

    A thumb becomes `thumbs`, stars `rating`, a right answer `correction`, a note `comment`; the user is the reviewer.

    Returns new feedback, and votes. Raises UserError: there is no review, or it is not one of production.
    """
    review = load_review(folder)
    if review.systems != [SYSTEM]:
        step = "tuneloop review draw STORE -o FOLDER makes one; other votes: tuneloop review FOLDER --export"
        raise UserError("This is not a review of production", where=str(folder), next_step=step)
    votes, _ = read_votes(review.votes_path)
    rows = {item.id: item.row for item in review.items}
    votes_of_rows = [vote for vote in standing(votes).values() if vote.item in rows]
    redactor, key = Redactor(PersonalConfig()), review.manifest.key
    source = SAMPLE if all(item.stratum == "random" for item in review.items) else "review"
    feedback = [item for vote in votes_of_rows for item in _feedback(vote, rows[vote.item], key, source, redactor)]
    with opened(location) as store:
        return insert(store, feedback), len(votes_of_rows)


def _feedback(vote: Vote, request: str, review: str, source: str, redactor: Redactor) -> list[Feedback]:
    if vote.choice == "skip":
        return []
    values: Mapping[str, object] = {
        "thumbs": vote.thumb, "rating": vote.stars, "correction": vote.corrected or None, "comment": vote.note or None,
    }  # fmt: skip
    common: dict[str, Any] = {"request": request, "user": f"reviewer:{vote.reviewer}", "time": vote.time}
    feedback = []
    for kind, value in values.items():
        if value is not None:
            text = redactor(value) if isinstance(value, str) else value
            key = f"review:{review[:16]}:{vote.item}:{vote.reviewer}:{kind}:{vote.time}"
            feedback.append(Feedback(id=uuid7(), kind=kind, value=text, source=source, key=key, **common))
    return feedback


def queue_lines(queue: ReviewQueue) -> list[str]:
    """What was chosen, and why, a line each."""
    strata = queue.strata
    lines = [f"{strata['random']:>5}  random, for unbiased rates"] if strata.get("random") else []
    return lines + [f"{strata[name]:>5}  {name}: {origin}" for name, origin in GROUPS.items() if strata.get(name)]


UNSURE = 0.5  # probability of a label below which it is uncertain
# Groups in the order in which a request falls into one of them.
GROUPS = {
    "disliked": "people say that the answer is bad, and no one has said what is right",
    "disagreement": "a candidate that answered a copy unseen says something else",
    "drifting": "an alarm of the monitor names the request",
    "uncertain": f"its label has a probability below {UNSURE:g}, or the answer was cut off",
    "rest": "all else",
}


@dataclass(frozen=True)
class Queued:
    """A request to look at."""

    request: StoredRequest
    group: str
    stratum: str  # `random`, or the group for whose sake it was chosen


def groups_of(
    requests: Requests, feedback_of: FeedbackOf, copies: Mapping[str, str], alarming: Collection[str]
) -> dict[str, str]:
    """Request -> group of those that can be looked at: with a question and an answer, and no right answer known.

    `copies`: request -> what a candidate answered to its copy; `alarming`: requests that an alarm of the monitor names.
    """
    groups = {}
    for request in requests:
        feedback = feedback_of.get(request.id, ())
        text = answer_of(request).strip()
        if request.error is not None or not text or not question_of(request):
            continue
        if any(vote.kind in ("label", "correction") and vote.may_teach(request.key) for vote in feedback):
            continue
        mean, chance = mean_value(feedback), probability_of(request)
        if mean is not None and mean < 0.5:
            group = "disliked"
        elif request.id in copies and copies[request.id].strip() != text:
            group = "disagreement"
        elif request.id in alarming:
            group = "drifting"
        elif (chance is not None and chance < UNSURE) or request.finish == "length":
            group = "uncertain"
        else:
            group = "rest"
        groups[request.id] = group
    return groups


def queue(
    requests: Sequence[StoredRequest],
    groups: Mapping[str, str],
    rows: int,
    *,
    per_user: int = 3,
    random_part: float = RANDOM_PART,
    seed: int = 0,
) -> list[Queued]:
    """Draw what is looked at: a part at random from all, the rest in equal parts from the groups but `rest`.

    Args:
        per_user: that one user may have of the informative part.
    """
    rng = random.Random(seed)
    pool = [request for request in requests if request.id in groups]
    rng.shuffle(pool)
    sample = spread(pool, round(random_part * rows), rng)
    queued = [Queued(request, groups[request.id], "random") for request in sample]
    drawn = {request.id for request in sample}
    waiting = {name: [r for r in pool if groups[r.id] == name and r.id not in drawn] for name in GROUPS}
    rest = waiting.pop("rest")
    counts: Counter[str] = Counter()
    while len(queued) < rows and any(waiting.values()):
        for name, left in waiting.items():
            while left and len(queued) < rows:
                request = left.pop()
                if counts[person_of(request)] < per_user:
                    counts[person_of(request)] += 1
                    queued.append(Queued(request, name, name))
                    break
    queued += [Queued(request, "rest", "rest") for request in rest[: rows - len(queued)]]
    rng.shuffle(queued)  # a person who stops early has seen a fair part of each
    return queued


def spread(requests: Requests, number: int, rng: random.Random) -> list[StoredRequest]:
    """A systematic sample: each request has the same chance, and every degree of the model's sureness its share.

    So a mean over it needs no weights, and is as exact as one that is corrected by the probabilities.
    Source: Cochran 1977, "Sampling Techniques", chapter 8.
    """
    if number >= len(requests):
        return list(requests)
    ordered = sorted(requests, key=lambda request: probability_of(request) or 0.0)
    step, start = len(ordered) / max(number, 1), rng.random()
    return [ordered[int((i + start) * step)] for i in range(number)]
