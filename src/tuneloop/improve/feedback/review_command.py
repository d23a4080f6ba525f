"""From production to `tuneloop review` and back: answers that people should look at, and what they said of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, lock_folder, write_jsonl
from tuneloop.core.ids import uuid7
from tuneloop.data.clean.pii import Redactor
from tuneloop.data.config import PersonalConfig
from tuneloop.evaluation.review.items import ITEMS, load_review, read_votes, standing
from tuneloop.improve.feedback.review_queue import GROUPS, Queued, groups_of, queue
from tuneloop.improve.feedback.value import by_request, talks_of
from tuneloop.improve.monitor.command import EVENT as MONITORED
from tuneloop.improve.monitor.detectors import answered
from tuneloop.records.feedback import Feedback
from tuneloop.records.record import write_record
from tuneloop.records.review import Review, ReviewedSystem, ReviewItem, Vote
from tuneloop.serving.store.store import insert, opened, read_decisions, read_feedback, read_requests, store_name

SYSTEM = "production"


@dataclass(frozen=True)
class Drawn:
    """A queue: its folder, its rows, and these by the group for whose sake they were taken."""

    folder: str
    rows: int
    strata: dict[str, int]


def draw_queue(
    place: Path | str, out: Path | str, *, rows: int = 40, since: str = "", model: str = "", seed: int = 0, hidden: bool = False
) -> Drawn:  # fmt: skip
    """Write a folder that `tuneloop review` shows to people.

    Args:
        place: the store's file, or the server's folder.
        out: folder of the review; one that is there is refused.
        rows: how many answers.
        since: only requests from then on.
        model: only requests to this model.
        seed: of the draw.
        hidden: ask for the right answer without showing the given one, so that nobody is led by it.

    Raises:
        UserError: there is no store, nothing to look at, or the folder holds a review.
    """
    folder = Path(out)
    if (folder / Review.file).is_file():
        raise UserError("There is a review in this folder", where=str(folder), next_step=f"tuneloop review {folder}")
    with opened(place) as store:
        where, values = ("model = ?", [model]) if model else ("", [])
        every = list(read_requests(store, since=since, where=where, values=values, shadow=None))
        own = [request for request in every if request.shadow is None]
        said = by_request(read_feedback(store), talks_of(own))
        alarms = read_decisions(store, since=since, where=f"kind = '{MONITORED}'")
        named = {id_ for event in alarms for one in event.data["detections"] if one["alarm"] for id_ in one["requests"]}
    copies = {request.shadow: answered(request) for request in every if request.shadow and answered(request)}
    groups = groups_of(own, said, copies, named)
    chosen = queue(own, groups, rows, seed=seed)
    if not chosen:
        raise UserError(
            f"No request of {len(own):,} can be looked at", where=store_name(place),
            next_step="they failed, their texts were not kept, or people have said already what is right",
        )  # fmt: skip
    redactor = Redactor(PersonalConfig())
    items = [_item(one, redactor, hidden) for one in chosen]
    manifest = Review(
        key=content_hash([one.model_dump(mode="json") for one in items]), mode="rating",
        systems=[ReviewedSystem(name=SYSTEM, place=store_name(place))], share=len(items) / len(groups), seed=seed,
        items=len(items), populations={SYSTEM: dict(Counter(groups.values()))},
    )  # fmt: skip
    with lock_folder(folder):
        write_jsonl(folder / ITEMS, items)
        write_record(folder / Review.file, manifest)
    return Drawn(str(folder), len(items), dict(Counter(one.stratum for one in chosen)))


def _item(one: Queued, redactor: Redactor, hidden: bool) -> ReviewItem:
    request = one.request
    text = "(hidden: write the right answer)" if hidden else answered(request)
    return ReviewItem(
        id=content_hash([request.id])[:12], row=request.id, systems=(SYSTEM,), answers=(redactor(text),),
        messages=[redactor(dict(turn)) for turn in request.prompt], references=[], stratum=one.stratum, group=one.group,
    )  # fmt: skip


def store_votes(place: Path | str, folder: Path | str) -> tuple[int, int]:
    """Store what people said in a review of production as feedback; the same votes again add nothing.

    A thumb becomes `thumbs`, stars `rating`, a right answer `correction`, a note `comment`; the user is the reviewer.

    Returns:
        New feedback, and votes.

    Raises:
        UserError: there is no review, or it is not one of production.
    """
    review = load_review(folder)
    if review.systems != [SYSTEM]:
        raise UserError(
            "This is not a review of production", where=str(folder),
            next_step="tuneloop review draw STORE -o FOLDER makes one; other votes: tuneloop review FOLDER --export",
        )  # fmt: skip
    votes, _ = read_votes(review.votes_path)
    rows = {item.id: item.row for item in review.items}
    held = [vote for vote in standing(votes).values() if vote.item in rows]
    redactor = Redactor(PersonalConfig())
    found = [one for vote in held for one in _feedback(vote, rows[vote.item], review.manifest.key, redactor)]
    with opened(place) as store:
        return insert(store, found), len(held)


def _feedback(vote: Vote, request: str, review: str, redactor: Redactor) -> list[Feedback]:
    given: Mapping[str, object] = {
        "thumbs": vote.thumb, "rating": vote.stars, "correction": vote.corrected or None, "comment": vote.note or None,
    }  # fmt: skip
    return [
        Feedback(
            id=uuid7(), request=request, kind=kind, value=redactor(value) if isinstance(value, str) else value,
            user=f"reviewer:{vote.reviewer}", time=vote.time, source="review", key=f"review:{review[:16]}:{vote.item}:{vote.reviewer}:{kind}:{vote.time}",
        )
        for kind, value in given.items() if value is not None and vote.choice != "skip"
    ]  # fmt: skip


def queue_lines(drawn: Drawn) -> list[str]:
    """What was taken, and why, a line each."""
    lines = [f"{drawn.strata['random']:>5}  random, for unbiased rates"] if drawn.strata.get("random") else []
    return lines + [f"{drawn.strata[name]:>5}  {name}: {why}" for name, why in GROUPS.items() if drawn.strata.get(name)]
