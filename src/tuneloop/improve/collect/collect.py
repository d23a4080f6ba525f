"""Production to training data: rows to imitate, pairs, rated answers, and a share of users that is never trained on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from tuneloop.core.files import Config, content_hash
from tuneloop.core.flag import flag
from tuneloop.improve.experiment.statistics import person_of, unit_of
from tuneloop.improve.feedback.value import by_request, conversations_of, gives_answer, mean_value
from tuneloop.records.feedback import Feedback, right_answer, value_of
from tuneloop.records.request import StoredRequest
from tuneloop.records.rows import Message

GOOD, BAD = 0.75, 0.25  # means of a request's feedback from which its answer is liked, or disliked
ORIGINS = ("correction", "label", "resolved", "liked")  # failures first: what people corrected says the most
OWN = ("resolved", "liked")  # the answer is the model's own
HASHED = "sha256:"  # how the texts of a server begin that keeps their digests alone
DROPPED = {
    "failed": "the request failed, or its answer was cut", "not kept": "the store keeps no text of it",
    "no consent": "its key says that it must not be trained on", "contradicting": "people disagree about the answer",
    "unclear": "the feedback says neither good nor bad, or is a comment",
    "stranger": "the right answer came neither with the request's key nor with one that has the right `feedback`",
    "outvoted": "others of its key contradict the user who asked, whose word counts",
    "trained on": "a user who is kept for the test sent the same prompt as one who is trained on",
    "user's share": "its user has given as many rows as one may; users of keys without the right `users` are one",
    "own outputs": "the model's own answers have their share",
}  # fmt: skip


class CollectOptions(Config):
    """What is taken."""

    since: str = flag("", "TIME", "Only requests from then on, as in 2026-01-01.")
    until: str = flag("", "TIME", "Only requests before then, as in 2026-02-01.")
    model: str = Field("", description="Only requests to this model.")
    heldout_share: float = Field(0.1, ge=0, lt=1, description="Share of users whose rows are the test, never training.")
    per_user: int = Field(20, ge=1, description="Rows that one user may give to each file.")
    own_share: float = Field(1.0, ge=0, le=1, description="Largest share of the model's own answers among sft rows.")
    without_keys: str = flag("", "NAME,...", "API keys whose requests are not used.")


@dataclass(frozen=True)
class Collected:
    """Rows of each file; requests with feedback; and what was left out, by reason (see `DROPPED`)."""

    sft: list[dict[str, Any]]
    preference: list[dict[str, Any]]
    kto: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    must_pass: list[dict[str, Any]]
    with_feedback: int
    dropped: Counter[str]


@dataclass(frozen=True)
class _RatedAnswer:
    request: StoredRequest
    turn: Message  # the answer that was given; `answer` is its text, or its calls of tools as JSON
    answer: str
    user: str  # that it counts for, and `person` whom it says that it comes from
    person: str
    mean: float | None  # of all values, 0 bad to 1 good; None where none has one
    correction: str | None  # correction, label: the right answer as people gave it; an edited answer is a correction
    label: str | None
    resolved: bool  # a user says that it solved the matter
    over: tuple[str, ...] = ()  # requests whose answers to the same prompt people found worse

    @property
    def origin(self) -> str | None:
        """Where the answer to imitate comes from; None where there is none."""
        if self.correction is not None:
            return "correction"
        if self.label is not None:
            return "label"
        if self.mean is None or self.mean < GOOD:
            return None
        return "resolved" if self.resolved else "liked"

    @property
    def thumb(self) -> bool | None:
        """Whether the given answer is good; None where no one says so."""
        if self.correction is not None or (self.label is not None and self.label != self.answer.strip()):
            return False
        return None if self.mean is None or BAD < self.mean < GOOD else self.mean >= GOOD


Rated = Sequence[_RatedAnswer]
Pair = tuple[_RatedAnswer, Message, Message]  # whose prompt, the better and the worse answer


def is_held_out(user: str, share: float) -> bool:
    """Whether a user's rows are kept for the test. The same users always are, and a larger share adds to them."""
    digest = hashlib.sha256(f"tuneloop held out\x1f{user}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7]) / 2**56 < share


def collect(requests: Sequence[StoredRequest], feedback: Iterable[Feedback], options: CollectOptions) -> Collected:
    """Make training rows of stored requests.

    - `sft`: answers to imitate: corrected and labelled ones, then those that were resolved or liked.
    - `preference`: the correction over the given answer; a chosen answer over the other one, and a liked one over a
      disliked one, to the same prompt.
    - `kto`: single answers that were liked or disliked.
    - `heldout`: what would be in `sft`, of the users that are never trained on, without prompts that are trained on.
    - `must_pass`: corrected failures as demands on the next model, for a person to choose from.
    """
    feedback_of = by_request(feedback, conversations_of(requests))
    excluded = {name.strip() for name in options.without_keys.split(",") if name.strip()}
    dropped: Counter[str] = Counter()
    heldout: list[_RatedAnswer] = []
    rest: list[_RatedAnswer] = []
    with_feedback = [request for request in requests if request.id in feedback_of]
    for request in with_feedback:
        # Who may not teach may still say how good the answer is, but not what would be right.
        usable = [vote for vote in feedback_of[request.id] if not gives_answer(vote) or vote.may_teach(request.key)]
        if len(usable) < len(feedback_of[request.id]):
            dropped["stranger"] += 1
        if not usable:
            continue
        credible = _credible(request, usable)
        if len(credible) < len(usable):
            dropped["outvoted"] += 1
        answer = "no consent" if request.key in excluded else _rated_answer(request, credible)
        if isinstance(answer, str):
            dropped[answer] += 1
        else:
            (heldout if is_held_out(answer.person, options.heldout_share) else rest).append(answer)
    rest.sort(key=lambda rated: ORIGINS.index(rated.origin) if rated.origin else len(ORIGINS))  # stable: by time within
    most = options.per_user
    sft = _capped([rated for rated in rest if rated.origin], most, dropped)
    pairs = [*_pairs(rest), *_chosen(rest, requests, excluded, options.heldout_share, dropped)]
    paired = {id(rated) for rated in _capped([rated for rated, *_ in pairs], most, dropped)}
    imitated = _own_capped(sft, options.own_share, dropped)
    thumbs = _capped([rated for rated in rest if rated.thumb is not None and rated.answer], most, dropped)
    kept_pairs = [pair for pair in pairs if id(pair[0]) in paired]
    trained_on = {_prompt_key(rated) for rated in (*imitated, *thumbs, *(pair[0] for pair in kept_pairs))}
    unseen = [rated for rated in heldout if rated.origin and _prompt_key(rated) not in trained_on]
    if seen := sum(vote.origin is not None for vote in heldout) - len(unseen):
        dropped["trained on"] = seen
    heldout = _capped(unseen, most, dropped)
    return Collected(
        sft=[_sft_row(rated) for rated in imitated],
        preference=[_pair_row(*pair) for pair in kept_pairs],
        kto=[_row(rated, {"messages": [*rated.request.prompt, rated.turn]}, thumb=rated.thumb) for rated in thumbs],
        heldout=[_sft_row(rated) for rated in heldout],
        must_pass=[row for rated in sft if (row := _must_pass_row(rated)) is not None],
        with_feedback=len(with_feedback),
        dropped=dropped,
    )


def _credible(request: StoredRequest, feedback: Sequence[Feedback]) -> list[Feedback]:
    """Where the user who asked rated or corrected the answer: without what other users of the same key say.

    What is believed (commands, keys with the right `feedback`) holds next to it.
    """
    theirs = [vote for vote in feedback if request.user and vote.user == request.user]
    if not any(gives_answer(vote) or value_of(vote.kind, vote.value) is not None for vote in theirs):
        return list(feedback)
    return [vote for vote in feedback if vote.believed or vote.user == request.user]


def _prompt_key(rated: _RatedAnswer) -> str:
    """What two prompts have in common that differ in capitals and white space alone."""
    turns = rated.request.prompt
    return content_hash([[turn["role"], " ".join(str(turn.get("content") or "").casefold().split())] for turn in turns])


def _rated_answer(request: StoredRequest, feedback: Sequence[Feedback]) -> _RatedAnswer | str:
    """The answer of a request with what people said of it, or the reason (see `DROPPED`) why it is left out.

    An answer that failed or was cut off is used where a person wrote the right one.
    """
    failed = request.error is not None or request.finish == "length"
    if failed and not any(map(gives_answer, feedback)):
        return "failed"
    turn = _turn(request.completion) or (_assistant_turn("") if failed else None)
    prompt = [str(request_turn.get("content") or "") for request_turn in request.prompt]
    if turn is None or not prompt or any(text.startswith(HASHED) for text in (turn["content"], *prompt)):
        return "not kept"
    answer = json.dumps(turn["tool_calls"], sort_keys=True) if turn.get("tool_calls") else turn["content"]
    corrected = [(vote, text) for vote in feedback if (text := right_answer(vote.kind, vote.value)) is not None]
    corrections, labels = (
        [text for _, text in corrected],
        [str(vote.value) for vote in feedback if vote.kind == "label"],
    )
    if any(not text.strip() or text.startswith(HASHED) for text in corrections):
        return "not kept"
    corrected_ids = {
        id(vote) for vote, _ in corrected
    }  # a correction speaks for itself: here only opinions of the answer
    rated = [(vote, value_of(vote.kind, vote.value)) for vote in feedback if id(vote) not in corrected_ids]
    opinions = [(vote, value) for vote, value in rated if value is not None]
    values = [value for _, value in opinions]
    over = tuple(dict.fromkeys(str(vote.value) for vote in feedback if vote.kind == "choice"))
    if max(len(set(corrections)), len(set(labels))) > 1 or (values and max(values) - min(values) > 0.5):
        return "contradicting"
    if not (values or corrections or labels or over):
        return "unclear"
    user, person, mean = unit_of(request), person_of(request), mean_value(vote for vote, _ in opinions)
    correction, label = corrections[0] if corrections else None, labels[0] if labels else None
    resolved = any(vote.kind == "resolved" and value_of(vote.kind, vote.value) == 1.0 for vote in feedback)
    return _RatedAnswer(request, turn, answer, user, person, mean, correction, label, resolved, over)


def _turn(completion: Any) -> Message | None:
    """An answer as a turn, a text or calls of tools; None where it was not kept."""
    calls = completion.get("tool_calls") if isinstance(completion, Mapping) else None
    text = completion.get("content") if isinstance(completion, Mapping) else completion
    text = text if isinstance(text, str) else ""
    if calls:
        names = [str((call.get("function") or {}).get("name") or HASHED) for call in calls]
        return None if any(name.startswith(HASHED) for name in names) else _assistant_turn(text, tool_calls=calls)
    thought = completion.get("reasoning_content") if isinstance(completion, Mapping) else None
    further = {"reasoning_content": thought} if isinstance(thought, str) and not thought.startswith(HASHED) else {}
    return _assistant_turn(text, **further) if text.strip() else None


def _assistant_turn(text: str, **further: Any) -> Message:
    turn: Message = {"role": "assistant", "content": text, **further}  # type: ignore[typeddict-item]
    return turn


def _capped(rows: Rated, most: int, dropped: Counter[str]) -> list[_RatedAnswer]:
    numbers: Counter[str] = Counter()
    capped = []
    for rated in rows:
        numbers[rated.user] += 1
        if numbers[rated.user] <= most:
            capped.append(rated)
        else:
            dropped["user's share"] += 1
    return capped


def _own_capped(rows: Rated, share: float, dropped: Counter[str]) -> list[_RatedAnswer]:
    """All that people wrote, and of the model's own answers as many as make up the share."""
    theirs = [rated for rated in rows if rated.origin not in OWN]
    outputs = [rated for rated in rows if rated.origin in OWN]
    most = len(outputs) if share >= 1 else int(share / (1 - share) * len(theirs))
    dropped["own outputs"] += max(0, len(outputs) - most)
    return theirs + outputs[:most]


def _pairs(rows: Rated) -> list[Pair]:
    """Pairs of answers: corrected over given, then liked over disliked to the same prompt."""
    pairs: list[Pair] = []
    by_prompt: dict[str, list[_RatedAnswer]] = defaultdict(list)
    for rated in rows:
        if not rated.answer:  # it failed
            continue
        if rated.correction and rated.correction.strip() != rated.answer.strip():
            pairs.append((rated, _assistant_turn(rated.correction), rated.turn))
        by_prompt[content_hash(rated.request.prompt)].append(rated)
    for same in by_prompt.values():
        good = [entry for entry in same if entry.thumb is True]
        bad = [entry for entry in same if entry.thumb is False and entry.correction is None]
        pairs += [(a, a.turn, b.turn) for a, b in zip(good, bad, strict=False) if a.answer != b.answer]
    return pairs


def _chosen(
    rows: Rated, requests: Sequence[StoredRequest], excluded: set[str], heldout: float, dropped: Counter[str]
) -> list[Pair]:
    """Pairs of answers to the same prompt of which people chose one; where they choose both ways, neither."""
    choices = {(entry.request.id, other) for entry in rows for other in entry.over}
    by_id = {later.id: later for later in requests} if choices else {}
    pairs: list[Pair] = []
    for rated in rows:
        for name in rated.over:
            other = by_id.get(name)
            if other is None or other.key in excluded or other.prompt != rated.request.prompt:
                dropped["unclear"] += 1
                continue
            worse = _turn(other.completion) if other.error is None and other.finish != "length" else None
            if (name, rated.request.id) in choices:
                dropped["contradicting"] += 1
            elif worse is None or worse["content"].startswith(HASHED):
                dropped["failed" if worse is None else "not kept"] += 1
            elif rated.answer and worse != rated.turn and not is_held_out(person_of(other), heldout):
                pairs.append((rated, rated.turn, worse))
    return pairs


def _row(rated: _RatedAnswer, texts: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    request = rated.request
    tools = {"tools": request.tools} if request.tools else {}
    names = ("conversation", "release", "adapter")
    meta = {
        "request": request.id,
        "time": request.time,
        "user": rated.person,
        **{n: getattr(request, n) for n in names},
    }
    return {**texts, **tools, **more, **{name: value for name, value in meta.items() if value is not None}}


def _pair_row(rated: _RatedAnswer, better: Message, worse: Message) -> dict[str, Any]:
    return _row(rated, {"prompt": rated.request.prompt, "chosen": [better], "rejected": [worse]})


def _sft_row(rated: _RatedAnswer) -> dict[str, Any]:
    right = rated.correction or rated.label
    messages = [*rated.request.prompt, _assistant_turn(right) if right else rated.turn]
    output = {"own": True} if rated.origin in OWN else {}
    label = {"label": rated.label} if rated.label else {}
    return _row(rated, {"messages": messages}, **label, origin=rated.origin, **output)


def _must_pass_row(rated: _RatedAnswer) -> dict[str, Any] | None:
    """A corrected failure as a row that a gate's suite can demand; None where it is none, or more than one turn."""
    turns = list(rated.request.prompt)
    system = str(turns.pop(0).get("content") or "") if turns and turns[0].get("role") == "system" else ""
    right = rated.correction or rated.label
    if rated.thumb is not False or right is None or len(turns) != 1 or rated.request.tools:
        return None
    prompt = {"prompt": str(turns[0].get("content") or ""), **({"system": system} if system else {})}
    return {**prompt, "equals": right, "request": rated.request.id} if prompt["prompt"].strip() else None
