"""Has production changed, and does it matter? One window of requests against a data set and against the time before.

Each detector is an exact permutation test, of the last window and of the last 3 and 8 as one: a small or gradual
change shows where enough of it has come together. So the statistic is the largest over the moments at which a change
may have begun, in the manner of Lai 1995, "Sequential changepoint detection in quality control and dynamical systems".
The false alarms of a year, a setting, are divided over its windows and all tests of each (Bonferroni), which holds
however these depend on each other. What goes together counts once: requests of a user, copies of a text, for latency
requests of a part of the time.

Weeks differ in more than chance: the mix of topics, the load, and what a data set was balanced for. So an alarm takes
more, too, than the windows before show among themselves and against the data set: a prediction interval (Student's t)
of how far a window is from what chance divisions of its rows give."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, partial
from typing import Any, Literal

from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc
from tuneloop.core.lazy import Array, NDArray, np
from tuneloop.core.units import counted, verb
from tuneloop.improve.experiment.statistics import person_of, time_of
from tuneloop.improve.feedback.value import by_request, conversations_of, gives_answer, mean_value
from tuneloop.improve.monitor.canaries import SHARE, round_in_words
from tuneloop.improve.monitor.permutation import (
    GroupDifference,
    categories_differ,
    mean_rises,
    numbers_differ,
    places_differ,
    vectors_differ,
)
from tuneloop.improve.monitor.record import CanaryRound, Detection, MonitorOptions, MonitorReport, QualityEstimate
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest

FEW = 50  # rows of a group below which nothing is said
MOST = 2000  # rows of a group that are compared, chosen by the hashes of their ids
SCALES = (1, 3, 8)  # windows that are compared as one
EARLIER_WINDOWS = 12  # windows before this one of which anything is read
LEARNING = 4  # windows before this one, below which it is not known what windows usually do
PRIOR = 8  # windows that count as one standard deviation of chance in what windows usually do; three while learning
USUAL = 2.0  # excess that no window before has passed where windows differ by chance alone, which its p-value knows
FEW_LEARNT = 10  # rows of a window before this one, from which on it says something of what is usual
SHOWN = 5
WORD = re.compile(r"\w+")
REFUSES = re.compile(r"\b(?:i (?:can(?:no|')t|am unable|am not able)|i'm (?:unable|not able|sorry)|as an ai)\b", re.I)
COPY = 0.95  # similarity of two texts from which on one counts for both: a data set has no near copies either
BLOCKS = 7  # parts of a window by which latency is compared: days of a week
FEW_IN_BLOCK = 5  # requests of a part below which it is left out
LEAST = {"latency": (5, "parts of time"), "errors": (15, "judged answers")}  # of a group, in place of FEW rows
# Shares of the false alarms, in place of 1: these see what changes little else, and people worked for the few errors.
PRIORITY = {"errors": 4, "agreement": 3, "novelty": 3}
NEIGHBOURS = 5  # most similar rows of the data set, one of which should have the label of the answer
SAMPLE = "sample"  # source of what people said of answers that were drawn at random
CANARIES = "canaries"  # among the alarms: not a window's detector, see `canaries`
JUDGED = 10  # answers of a window that people judged, below which its quality is not known
DOUBT = 0.05  # chance that an interval does not hold the truth

Embed = Callable[[Sequence[str]], Any]
Reference = Literal["reference", "earlier"]
Requests = Sequence[StoredRequest]
FeedbackOf = Mapping[str, list[Feedback]]  # by request
TrainingRows = Sequence[tuple[str, str | None]]  # text and label

REVIEW = "`tuneloop review`"
STEPS = {
    "inputs": f"label some of these requests (`tuneloop review draw`, then {REVIEW}), and train again; or, if you know "
    "the change, `--ignore inputs --ignore-until TIME`",
    "novelty": "look whether these are a new kind of request; label them and train again",
    "vocabulary": "look at the words: a new product, or damaged texts? label some and train again, or fix the source",
    "length": "look whether a template or a client has changed; evaluate on some of these",
    "language": "evaluate on these by language; add rows in it, or send them elsewhere",
    "agreement": "look at these answers: similar rows of the data set have another label. If a release has changed, "
    "`tuneloop models rollback`",
    "errors": "people say that answers are wrong more often than before: if a release has changed, `tuneloop models "
    "rollback`; else train on what they say (`tuneloop collect`)",
    "labels": "label a random sample: did the mix of requests change, or does the model err? Train again, or roll back",
    "outputs": "look at these answers; if a release has changed, `tuneloop models rollback`",
    "confidence": f"label answers of which the model is least sure ({REVIEW}); if they are wrong, train again",
    "output length": "look at these answers; if a release has changed, `tuneloop models rollback`",
    "feedback": "compare with the release before (`tuneloop models rollback`), then train on the corrections "
    "(`tuneloop collect`)",
    "latency": "see `tuneloop top`: load, or longer requests; the model's answers need not be worse",
    "cost": "see `tuneloop costs`: longer requests or answers, or another tier",
}

TESTS: dict[str, Callable[..., GroupDifference]] = {
    "vectors": vectors_differ, "places": places_differ, "numbers": numbers_differ, "categories": categories_differ,
    "worse": mean_rises,
}  # fmt: skip
MEASURED = {  # number of each request that a detector compares, and its unit
    "vocabulary": ("share of unknown words", ""),
    "length": ("length", " characters"),
    "agreement": ("share of answers that are no label of the nearest rows", ""),
    "errors": ("probability of the answer less 1 where it is right", ""),
    "feedback": ("share of bad ratings", ""),
    "confidence": ("probability", ""),
    "output length": ("length", " characters"),
    "cost": ("cost", " USD"),
    "latency": ("time", " ms"),
}


@dataclass(frozen=True)
class Helpers:
    """Functions of other stages."""

    embed: Embed | None  # texts to vectors; None: there is no embedder
    language: Callable[[str], str] | None  # a text's language code; None: no one can tell
    telling: Callable[
        [Sequence[str], Sequence[str]], list[str]
    ]  # words that distinguish the second texts from the first
    complete: Callable[[Sequence[StoredRequest]], None] = lambda requests: None  # reads their texts, where these lack


@dataclass(frozen=True)
class ComparedValues:
    """The values that one detector compares."""

    name: str  # of the detector
    against: Reference  # the reference or earlier production
    kind: Literal["vectors", "places", "numbers", "categories", "worse"]  # worse: only a rise of the mean counts
    values: Sequence[Any]  # of before and of now, by row
    ids: Sequence[str]  # of the requests of now
    texts: tuple[Sequence[str], Sequence[str]] = ((), ())  # of both groups where words explain a difference, else empty
    unit: str = "distance of the distributions"  # what the size is of
    windows: int = 1  # that are compared as one


def level_of(false_alarms: float, window_days: float, detectors: int) -> float:
    """The level of one detector in one window with which windows raise at most so many false alarms in a year.

    `false_alarms`: in a year. `window_days`: length of a window; windows follow each other.
    """
    return min(0.5, false_alarms * window_days / 365.25) / max(1, detectors)


def monitor(
    reference: TrainingRows,
    window: Requests,
    earlier: Requests,
    feedback: Iterable[Feedback],
    helpers: Helpers,
    options: MonitorOptions,
    *,
    window_days: float,
    canaries: Sequence[CanaryRound] = (),
) -> MonitorReport:
    """Compare a window, and the last 3 and 8 as one, with a data set and with the production before them.

    `reference`: text and label of the data set's training rows; `window`, `earlier`: requests of one model, in order;
    `canaries`: rounds of canary prompts in it, which have their share of the false alarms.
    """
    feedback_of = by_request(feedback, conversations_of([*earlier, *window]))
    helpers.complete([request for some in (earlier, window) for request in some if request.id in feedback_of])
    helpers = replace(helpers, embed=_remembering(helpers.embed), language=helpers.language and cache(helpers.language))
    compare = partial(_comparisons, reference, feedback_of, helpers, window_days)
    skipped: dict[str, str] = {}
    compared: list[ComparedValues] = []
    for windows, recent, past in _pools(window, earlier, window_days):
        for detection in compare(recent, past, skipped, windows > 1):
            rows, (least, unit) = [len(values) for values in detection.values], LEAST.get(detection.name, (FEW, "rows"))
            if min(rows) >= least:
                compared.append(replace(detection, windows=windows))
            else:
                skipped[detection.name] = f"{rows[1]} {unit} now and {rows[0]} before; {least} are needed"
    level = level_of(options.false_alarms * (1 - SHARE if canaries else 1), window_days, 1)
    level /= max(1, sum(PRIORITY.get(entry.name, 1) for entry in compared))
    detections: dict[str, Detection] = {}
    groups = _groups(window, earlier, window_days)
    usual = cache(lambda windows: _usual(groups[windows - 1 :], partial(compare, skipped={}, pooled=windows > 1)))
    for detection in compared:
        if detection.name in detections and detections[detection.name].alarm:
            continue  # the shortest pool with an alarm says when it began
        tested = _detect(detection, level * PRIORITY.get(detection.name, 1), helpers, options.seed)
        if tested.alarm and groups and detection.name != "errors":  # of the few judged answers chance is most
            tested = _beyond(
                tested, usual(detection.windows).get(detection.name, []), len(groups) - detection.windows + 1
            )
        before = detections.get(detection.name)
        if before is None or (not tested.alarm, tested.p) < (not before.alarm, before.p):
            detections[detection.name] = tested
    alarms = [entry.name for entry in detections.values() if entry.alarm]
    values: dict[str, Any] = {
        "model": options.model, "since": "", "until": "", "requests": len(window),
        "compared": len(_one_a_user(window)), "false_alarms_per_year": options.false_alarms,
        "detections": list(detections.values()),
        "skipped": {name: reason for name, reason in skipped.items() if name not in detections},
        "alarms": alarms + [CANARIES] * any(canary.alarm for canary in canaries),
        "quality": estimate_quality(window, earlier, feedback_of),
        "canaries": [canary for canary in canaries if canary.changed], "canary_rounds": len(canaries),
        "learning": len(groups) if len(groups) < LEARNING else None,
    }  # fmt: skip
    report = MonitorReport(**values, summary=[])
    return report.model_copy(update={"summary": list(_summary(report, _releases(window) - _releases(earlier)))})


def _groups(window: Requests, earlier: Requests, window_days: float) -> list[list[StoredRequest]]:
    """The windows before this one, the last first."""
    groups: dict[int, list[StoredRequest]] = {}
    if window:
        begin = time_of(window[0].time)
        for request in earlier:
            ago = (begin - time_of(request.time)).total_seconds() / 86_400 / window_days
            groups.setdefault(math.ceil(ago), []).append(request)
    return [groups[ago] for ago in sorted(groups)]


def _usual(
    groups: Sequence[Requests], compare: Callable[[Requests, Requests], Iterator[ComparedValues]]
) -> dict[str, list[float]]:
    """By how much each window differs from the data set, or from the others, by detector."""
    values: dict[str, list[float]] = {}
    for group in groups:
        rest = [request for other in groups if other is not group for request in other]
        for detection in compare(group, rest):
            if min(len(side) for side in detection.values) >= min(FEW_LEARNT, LEAST.get(detection.name, (FEW, ""))[0]):
                values.setdefault(detection.name, []).append(TESTS[detection.kind](*detection.values, level=1.0).excess)
    return values


def _beyond(tested: Detection, usual: Sequence[float], windows: int) -> Detection:
    """An alarm, or none where windows usually differ as much. `usual`: excesses of the windows before."""
    from scipy.stats import t

    known, learning = len(usual), windows < LEARNING
    if not learning and max(usual, default=math.inf) <= USUAL:
        return tested
    mean = max(float(np.mean(usual)), 0.0) if known else 0.0
    squares = PRIOR * (9.0 if learning else 1.0) + float(((np.array(usual) - mean) ** 2).sum())
    degrees = PRIOR + max(known - 1, 0)
    reach = float(t.isf(tested.level, degrees)) * math.sqrt(squares / degrees * (1 + 1 / max(known, 1)))
    if tested.excess > mean + reach:
        return tested
    reason = (
        f"learning what windows usually do, {windows} of {LEARNING}" if learning else "no more than windows usually do"
    )
    sentence = f"{tested.sentence}: {reason}"
    return tested.model_copy(
        update={"alarm": False, "sentence": sentence, "next_step": "", "words": [], "requests": []}
    )


def _pools(window: Requests, earlier: Requests, window_days: float) -> Iterator[tuple[int, Requests, Requests]]:
    """How many windows are taken as one, their requests, and those before; as many windows as there were before.

    Answers of a release that no longer serves say nothing of now, and a pool is without them.
    """
    serving = {request.release for request in window}
    for windows in SCALES if window and earlier else (1,):
        since = ""
        if windows > 1:
            since = utc((time_of(window[0].time) - timedelta(days=window_days * (windows - 1))).timestamp())
            if since <= earlier[0].time:
                return
        recent = [request for request in earlier if since and request.time >= since]
        past = earlier[: len(earlier) - len(recent)]
        yield windows, [*(request for request in recent if request.release in serving), *window], past


def _comparisons(
    reference: TrainingRows,
    feedback_of: FeedbackOf,
    helpers: Helpers,
    window_days: float,
    recent: Requests,
    past: Requests,
    skipped: dict[str, str],
    pooled: bool,
) -> Iterator[ComparedValues]:
    """What detectors compare. `pooled`: several windows as one, whose inputs are compared with earlier production."""
    now, before = _one_a_user(recent), _one_a_user(past)
    helpers.complete([*now, *before])
    texts_now, texts_before = _one_a_text(now), _one_a_text(before)
    yield from _of_inputs(reference, texts_now, texts_before, helpers, skipped, pooled)
    yield from _of_production(now, before, feedback_of)
    yield from _of_errors(recent, past, feedback_of)
    yield from _of_answers(texts_now, texts_before)
    yield from _of_load(recent, past, window_days)


def _remembering(embed: Embed | None) -> Embed | None:
    """An embedder that reads each text once, since pools share most of their texts."""
    vectors: dict[str, Any] = {}

    def remembered(texts: Sequence[str]) -> Array:
        if embed is not None and (new := [text for text in dict.fromkeys(texts) if text not in vectors]):
            vectors.update(zip(new, np.asarray(embed(new), dtype=np.float32), strict=True))
        return np.stack([vectors[text] for text in texts])

    return remembered if embed is not None else None


def _one_a_user(requests: Requests) -> list[StoredRequest]:
    """A request of each user, any of a pool's windows; of more than `MOST` those with the smallest hashes."""
    first_requests: dict[str, StoredRequest] = {}
    for request in requests:
        user = person_of(request)
        if user not in first_requests or _hash(request.id) < _hash(first_requests[user].id):
            first_requests[user] = request
    return _some(list(first_requests.values()), lambda request: request.id)


def _one_a_text(requests: Requests) -> list[StoredRequest]:
    """The first request of each text: a data set has no copies, and those of production go together."""
    first: dict[str, StoredRequest] = {}
    for request in requests:
        first.setdefault(" ".join(question_of(request).casefold().split()) or request.id, request)
    return list(first.values())


def _first_copies(vectors: Array) -> NDArray[Any]:
    """Which of the vectors have no near copy among those before them."""
    return np.flatnonzero(np.tril(vectors @ vectors.T, -1).max(axis=1) < COPY)


def _some(rows: Sequence[Any], key: Callable[[Any], str]) -> list[Any]:
    if len(rows) <= MOST:
        return list(rows)
    hashed = sorted(range(len(rows)), key=lambda i: _hash(key(rows[i])))
    return [rows[i] for i in sorted(hashed[:MOST])]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def _releases(requests: Requests) -> set[str]:
    return {request.release for request in requests if request.release}


def question_of(request: StoredRequest) -> str:
    """The last turn of the user; empty where it was not kept."""
    turns = [str(turn.get("content") or "") for turn in request.prompt if turn.get("role") == "user"]
    return turns[-1] if turns and not turns[-1].startswith("sha256:") else ""


def answer_of(request: StoredRequest) -> str:
    """The text of the answer; empty where there is none."""
    completion = request.completion
    text = completion.get("content") if isinstance(completion, Mapping) else completion
    return text if isinstance(text, str) and not text.startswith("sha256:") else ""


def _of_inputs(
    reference: TrainingRows, now: Requests, before: Requests, helpers: Helpers, skipped: dict[str, str], pooled: bool
) -> Iterator[ComparedValues]:
    """What users ask, against the data set, or of a pool against earlier production; labels against earlier production,
    else against the data set's."""
    rows = _some([row for row in reference if row[0]], lambda row: str(row[0]))
    texts = [text for text, _ in rows]
    requests = [request for request in now if question_of(request)]
    ids, questions = [request.id for request in requests], [question_of(request) for request in requests]
    against: Reference = "earlier" if pooled else "reference"
    memory, rest = texts[::2], texts[1::2]  # a data set's own words are all known
    if pooled:
        texts = rest = [question for request in before if (question := question_of(request))]
    both = (texts, questions)
    if helpers.embed is None:
        skipped["inputs"] = skipped["novelty"] = "no embedder is installed"
    elif min(len(texts), len(questions)) >= FEW:
        vectors = np.asarray(helpers.embed([*texts, *questions]))
        old, new = vectors[: len(texts)], vectors[len(texts) :]
        unit = f"chance to tell a request of now from {'one before' if pooled else 'a row of the data set'}"
        yield ComparedValues("inputs", against, "vectors", (old, new), ids, both, unit)
        unit, first = "share of requests of now among the nearest of one of them", _first_copies(new)
        old = old[_first_copies(old)] if pooled else old
        yield ComparedValues("novelty", against, "places", (old, new[first]), [ids[i] for i in first], both, unit)
    words = {word for text in memory for word in WORD.findall(text.lower())}

    def unknown(text: str) -> float:
        tokens = WORD.findall(text.lower())
        return sum(word not in words for word in tokens) / len(tokens) if tokens else 0.0

    shares = [np.array([unknown(text) for text in some]) for some in (rest, questions)]
    yield ComparedValues("vocabulary", against, "worse", shares, ids, (rest, questions))
    lengths = [np.array([len(text) for text in some], dtype=np.float64) for some in both]
    yield ComparedValues("length", against, "numbers", lengths, ids, both)
    if helpers.language is None:
        skipped["language"] = "no detector of languages is installed"
    else:
        spoken = [[helpers.language(text) for text in some] for some in both]
        unit = "share of requests in another language"
        yield ComparedValues("language", against, "categories", spoken, ids, both, unit)
    yield from _of_labels([(text, label) for text, label in rows if label], now, before, helpers.embed)


def _of_labels(
    rows: Sequence[tuple[str, str]], now: Requests, before: Requests, embed: Embed | None
) -> Iterator[ComparedValues]:
    """Shares of the labels, and whether each is that of similar rows, which shows wrong ones that no one has judged."""
    labels = [label for _, label in rows]
    answers = [(request.id, answer_of(request).strip()) for request in now if answer_of(request)]
    old = [text for request in before if (text := answer_of(request).strip())]
    names = set(labels)
    new = [text for _, text in answers]
    if not names or not any(texts and 2 * sum(text in names for text in texts) >= len(texts) for texts in (old, new)):
        return  # no labels, or the model answers in sentences, now as before
    against: Reference = "earlier" if len(old) >= FEW else "reference"
    groups = (old if against == "earlier" else labels, new)
    values = [[text if text in names else "(none of the labels)" for text in some] for some in groups]
    unit, ids = "share of answers with another label", [name for name, _ in answers]
    yield ComparedValues("labels", against, "categories", values, ids, unit=unit)
    both = [[r for r in some if answer_of(r) and question_of(r)] for some in (before, now)]
    if embed is not None and all(both):
        known, names_of_rows = np.asarray(embed([text for text, _ in rows])), np.array(labels)
        apart = []
        for some in both:
            far = -(np.asarray(embed([question_of(r) for r in some])) @ known.T)
            nearest = np.argpartition(far, min(NEIGHBOURS, len(known)) - 1, axis=1)[:, :NEIGHBOURS]
            given = np.array([answer_of(r).strip() for r in some])
            apart.append((names_of_rows[nearest] != given[:, None]).all(axis=1).astype(np.float64))
        yield ComparedValues("agreement", "earlier", "worse", apart, [r.id for r in both[1]])


def _of_production(now: Requests, before: Requests, feedback_of: FeedbackOf) -> Iterator[ComparedValues]:
    """What kind of answers there were and how people judged them, against earlier production."""
    states = [[_state(request) for request in some] for some in (before, now)]
    unit, ids = "share of answers of another kind", [request.id for request in now]
    yield ComparedValues("outputs", "earlier", "categories", states, ids, unit=unit)
    rated = []
    for some in (before, now):
        means = [(r.id, mean_value(feedback_of.get(r.id, ()))) for r in some]
        rated.append([(name, float(mean < 0.5)) for name, mean in means if mean is not None])
    yield _numbers("feedback", *rated, kind="worse")


def _of_errors(recent: Requests, past: Requests, feedback_of: FeedbackOf) -> Iterator[ComparedValues]:
    """What people say is wrong, over what the probabilities of the answers let expect."""
    sides = []
    for some in (past, recent):
        right = _right(some, feedback_of)
        judged = _one_a_user([r for r in some if r.id in right])
        sides.append([(r.id, (probability_of(r) or 0.0) - right[r.id]) for r in judged])
    if any(sides):
        yield _numbers("errors", *sides, kind="worse")


def _of_answers(now: Requests, before: Requests) -> Iterator[ComparedValues]:
    """How sure the model is of its answers, how long they are and what they cost, against earlier production."""
    chances = [[(r.id, p) for r in some if (p := probability_of(r)) is not None] for some in (before, now)]
    if any(chances):
        yield _numbers("confidence", *chances)
    lengths = [[(r.id, float(len(answer_of(r)))) for r in some if answer_of(r)] for some in (before, now)]
    yield _numbers("output length", *lengths)
    yield _numbers("cost", *([(r.id, r.usd) for r in some if r.usd is not None] for some in (before, now)))


def _of_load(window: Requests, earlier: Requests, window_days: float) -> Iterator[ComparedValues]:
    """Latency, as the geometric mean of each part of the time: requests that wait behind the same ones go together."""
    sides = []
    for some in (earlier, window):
        blocks: dict[int, list[tuple[float, str]]] = {}
        for request in some:
            if request.total_ms is not None and request.total_ms > 0:
                at = time_of(request.time).timestamp() / 86_400 / window_days * BLOCKS
                blocks.setdefault(math.floor(at), []).append((request.total_ms, request.id))
        parts = [samples for samples in blocks.values() if len(samples) >= FEW_IN_BLOCK]
        sides.append(
            [(max(samples)[1], math.exp(sum(math.log(ms) for ms, _ in samples) / len(samples))) for samples in parts]
        )
    yield _numbers("latency", *sides)


def _numbers(
    name: str,
    before: Sequence[tuple[str, float]],
    now: Sequence[tuple[str, float]],
    *,
    kind: Literal["numbers", "worse"] = "numbers",
) -> ComparedValues:
    values = [np.array([value for _, value in some], dtype=np.float64) for some in (before, now)]
    return ComparedValues(name, "earlier", kind, values, [id_ for id_, _ in now])


def _state(request: StoredRequest) -> str:
    if request.error is not None:
        return "failed"
    if request.finish == "length":
        return "cut"
    text = answer_of(request)
    words = WORD.findall(text.lower())
    if REFUSES.search(text[:200]):
        return "refused"
    return "repeats itself" if len(words) >= 20 and len(set(words)) < len(words) / 4 else "answered"


def _detect(detection: ComparedValues, level: float, helpers: Helpers, seed: int) -> Detection:
    if detection.kind != "categories" and not all(np.isfinite(np.asarray(values)).all() for values in detection.values):
        step = "find the requests with such a value in the store, or the embedder that gives it"
        raise UserError(
            f"A value of {detection.name} is not a number: nothing is decided", where="monitor", next_step=step
        )
    difference = TESTS[detection.kind](*detection.values, level=level, seed=seed)
    alarm = difference.p <= level
    typical = helpers.telling(*detection.texts)[:SHOWN] if alarm and detection.texts[0] else []
    order = np.argsort(-difference.foreign, kind="stable")[: SHOWN if alarm else 0].tolist()
    against = "the data set" if detection.against == "reference" else "production before"
    change = f"{detection.name}: no change is shown"
    if alarm:
        change = f"{detection.name} {'differ' if detection.name.endswith('s') else 'differs'} from {against}"
    if detection.windows > 1:
        change += f" over {detection.windows} windows"
    values: dict[str, Any] = {
        "name": detection.name, "compared_with": detection.against, "p": difference.p, "level": level,
        "size": difference.size,
        "excess": difference.excess,
        "unit": "rise of the mean" if detection.kind == "worse" else detection.unit, "alarm": alarm,
        "rows": [len(values) for values in detection.values], "windows": detection.windows,
        "sentence": f"{change} ({_sized(detection, difference)}, p {difference.p:.2g}, alarm below {level:.2g})",
        "next_step": STEPS[detection.name] if alarm else "", "words": typical,
        "requests": [detection.ids[i] for i in order],
    }  # fmt: skip
    return Detection(**values)


def _sized(detection: ComparedValues, difference: GroupDifference) -> str:
    if detection.kind == "categories":
        before, now = (Counter(map(str, values)) for values in detection.values)
        shifts = {name: now[name] / now.total() - before[name] / before.total() for name in before | now}
        most = max(shifts, key=lambda name: abs(shifts[name]))
        return f"{most} from {before[most] / before.total():.1%} to {now[most] / now.total():.1%}"
    if detection.kind in ("numbers", "worse"):
        word, middles = "median", [float(np.median(values)) for values in detection.values]
        if detection.kind == "worse" or middles[0] == middles[1]:  # a few rows far out change the mean alone
            word, middles = "mean", [float(np.mean(values)) for values in detection.values]
        subject, unit = MEASURED[detection.name]
        return f"{word} {subject} from {middles[0]:.4g} to {middles[1]:.4g}{unit}"
    if detection.kind == "places":
        return f"some have {difference.size:.0%} requests of now among those most like them"
    return f"distinguished with a chance of {difference.size:.2f}; 0.5: alike"


def probability_of(request: StoredRequest) -> float | None:
    """The probability of the label that was chosen; None where the answer has none."""
    probability = request.completion.get("probability") if isinstance(request.completion, Mapping) else None
    return float(probability) if isinstance(probability, int | float) and 0 <= probability <= 1 else None


def _right(requests: Requests, feedback_of: FeedbackOf) -> dict[str, bool]:
    """Whether answers are right, of those that people judged without choosing which: labels, and drawn samples.

    A thumb is given to what one likes or dislikes, a correction to what is wrong: neither says how often answers are.
    """
    right: dict[str, bool] = {}
    for request in requests:
        feedback = [vote for vote in feedback_of.get(request.id, ()) if vote.kind == "label" or vote.source == SAMPLE]
        votes = [vote for vote in feedback if vote.may_teach()]
        texts, mean = [str(vote.value).strip() for vote in votes if gives_answer(vote)], mean_value(votes)
        if texts:
            right[request.id] = all(text == answer_of(request).strip() for text in texts)
        elif mean is not None:
            right[request.id] = mean > 0.5
    return right


def estimate_quality(window: Requests, earlier: Requests, feedback_of: FeedbackOf) -> QualityEstimate | None:
    """The share of right answers in a window, from those that people judged; None: fewer than 10 of it.

    The interval is exact (Clopper and Pearson 1934): it holds the truth with a chance of at least 95 % at any number of
    judged answers, if these are a sample of the window. Probabilities of the answers do not enter: where a model does
    not know that it is wrong, they can't tell.

    `window`, `earlier`: requests in order; `feedback_of`: what people said, by request.
    """
    from scipy.stats import beta

    judged, judged_before = (list(_right(some, feedback_of).values()) for some in (window, earlier))
    n, k = len(judged), sum(judged)
    if n < JUDGED:
        return None
    return QualityEstimate(
        estimated=k / n,
        low=float(beta.ppf(DOUBT / 2, k, n - k + 1)) if k else 0.0,
        high=float(beta.ppf(1 - DOUBT / 2, k + 1, n - k)) if k < n else 1.0,
        before=float(np.mean(judged_before)) if len(judged_before) >= FEW else math.nan,
        judged=n,
    )


def _summary(report: MonitorReport, new_releases: set[str]) -> Iterator[str]:
    detectors, requests = counted(len(report.detections), "detector"), counted(report.requests, "request")
    alarms = sum(entry.alarm for entry in report.detections)
    if not report.detections:
        says = verb(report.requests, "says", "say")
        yield f"{requests} {says} too little: {FEW} users are needed, now and before."
    elif alarms:
        yield f"{alarms} of {detectors} {verb(alarms, 'raises', 'raise')} an alarm on {requests}."
    else:
        shows = verb(len(report.detections), "shows", "show")
        yield f"No alarm: {detectors} {shows} no change on {requests} ({counted(report.compared, 'user')})."
    for detection in report.detections:
        if detection.alarm:
            terms = f"\n  Words: {', '.join(detection.words)}." if detection.words else ""
            ids = ", ".join(detection.requests)
            yield f"{detection.sentence}.{terms}\n  Requests: {ids}.\n  Next: {detection.next_step}."
    if report.learning is not None and report.detections:
        yield f"Learning what windows usually do: {report.learning} of {LEARNING}; until then only large changes show."
    yield from map(round_in_words, report.canaries)
    if report.canary_rounds and not report.canaries:
        yield f"Canary prompts: sent {counted(report.canary_rounds, 'time')}, all answered as before."
    if report.alarms and new_releases:
        yield f"New in this window: release {', '.join(sorted(new_releases))}."
    if (q := report.quality) is not None:
        loss = f"; before {q.before:.3f}" if q.before == q.before else ""
        if loss and report.alarms:
            more = [100 * (bound - q.before) for bound in (q.estimated, q.low, q.high)]
            loss += f", so about {more[0]:+.0f} points [{more[1]:+.0f}, {more[2]:+.0f}]"
        yield f"Share of right answers: {q.estimated:.3f} [{q.low:.3f}, {q.high:.3f}], from {q.judged:,} judged{loss}."
    else:
        yield f"Share of right answers: not known, fewer than {JUDGED} are judged (`tuneloop review draw --measure`)."
