"""Has production changed, and does it matter? One window of requests against a data set and against the time before.

Each detector is an exact permutation test. The false alarms of a year, a setting, are divided over its windows and
the detectors of each. What goes together counts once: requests of a user, copies of a text, for latency requests of
a part of the time."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from tuneloop.core.lazy import np
from tuneloop.core.units import counted, verb
from tuneloop.improve.experiment.statistics import person_of, time_of
from tuneloop.improve.feedback.value import by_request, conversations_of, mean_value
from tuneloop.improve.monitor.canaries import SHARE, round_in_words
from tuneloop.improve.monitor.permutation import GroupDifference, categories_differ, numbers_differ, vectors_differ
from tuneloop.improve.monitor.record import CanaryRound, Detection, MonitorOptions, MonitorReport, QualityEstimate
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest

FEW = 50  # rows of a group below which nothing is said
MOST_BEFORE, MOST_NOW = 3000, 1500  # rows that are compared, chosen by the hashes of their ids
EARLIER_WINDOWS = 4  # what "earlier" is: the production of so many windows before this one
SHOWN = 5
WORD = re.compile(r"\w+")
REFUSES = re.compile(r"\b(?:i (?:can(?:no|')t|am unable|am not able)|i'm (?:unable|not able|sorry)|as an ai)\b", re.I)
TAILED = ("novelty", "vocabulary")  # a few rows far out are what they look for
BLOCKED = ("latency",)  # compared by parts of time
BLOCKS = 7  # of a window: days of a week
FEW_BLOCKS, FEW_IN_BLOCK = 5, 5  # parts, and requests of a part, below which nothing is said
CANARIES = "canaries"  # among the alarms: not a window's detector, see `canaries`
KNOWN_ENOUGH = 50  # judged answers from which probabilities are calibrated

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
    "labels": "label a random sample: did the mix of requests change, or does the model err? Train again, or roll back",
    "outputs": "look at these answers; if a release has changed, `tuneloop models rollback`",
    "confidence": f"label answers of which the model is least sure ({REVIEW}); if they are wrong, train again",
    "output length": "look at these answers; if a release has changed, `tuneloop models rollback`",
    "feedback": "compare with the release before (`tuneloop models rollback`), then train on the corrections "
    "(`tuneloop collect`)",
    "latency": "see `tuneloop top`: load, or longer requests; the model's answers need not be worse",
    "cost": "see `tuneloop costs`: longer requests or answers, or another tier",
}

MEASURED = {  # number of each request that a detector compares, and its unit
    "novelty": ("distance to the nearest row", ""),
    "vocabulary": ("share of unknown words", ""),
    "length": ("length", " characters"),
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


@dataclass(frozen=True)
class ComparedValues:
    """The values that one detector compares."""

    name: str  # of the detector
    against: Reference  # the reference or earlier production
    kind: Literal["vectors", "numbers", "categories"]  # of its values
    values: Sequence[Any]  # of before and of now, by row
    ids: Sequence[str]  # of the requests of now
    texts: tuple[Sequence[str], Sequence[str]] = ((), ())  # of both groups where words explain a difference, else empty
    unit: str = "distance of the distributions"  # what the size is of


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
    """Compare a window with a data set and with the production before it.

    `reference`: text and label of the data set's training rows; `window`, `earlier`: requests of one model, in order;
    `canaries`: rounds of canary prompts in it, which have their share of the false alarms.
    """
    now, before = _one_a_user(window, MOST_NOW), _one_a_user(earlier, MOST_BEFORE)
    feedback_of = by_request(feedback, conversations_of([*earlier, *window]))
    skipped: dict[str, str] = {}
    texts_now, texts_before = _one_a_text(now), _one_a_text(before)
    groups = [
        *_of_inputs(reference, texts_now, texts_before, helpers, skipped),
        *_of_production(now, before, feedback_of),
        *_of_answers(texts_now, texts_before),
        *_of_load(window, earlier, window_days),
    ]
    compared = []
    for one in groups:
        unit, least = ("parts of time", FEW_BLOCKS) if one.name in BLOCKED else ("rows", FEW)
        rows = [len(values) for values in one.values]
        if min(rows) < least:
            skipped[one.name] = f"{rows[1]} {unit} now and {rows[0]} before; {least} are needed"
        else:
            compared.append(one)
    level = level_of(options.false_alarms * (1 - SHARE if canaries else 1), window_days, len(compared))
    detections = [_detect(one, level, helpers, options.seed) for one in compared]
    alarms = [one.name for one in detections if one.alarm] + [CANARIES] * any(one.alarm for one in canaries)
    values: dict[str, Any] = {
        "model": options.model, "since": "", "until": "", "requests": len(window), "compared": len(now),
        "false_alarms_per_year": options.false_alarms, "detections": detections, "skipped": skipped, "alarms": alarms,
        "quality": _quality([*earlier, *window], {r.id for r in window}, feedback_of),
        "canaries": [one for one in canaries if one.changed], "canary_rounds": len(canaries),
    }  # fmt: skip
    report = MonitorReport(**values, summary=[])
    return report.model_copy(update={"summary": list(_summary(report, _releases(window) - _releases(earlier)))})


def _one_a_user(requests: Requests, most: int) -> list[StoredRequest]:
    """The first request of each user; of more than `most` those with the smallest hashes."""
    first: dict[str, StoredRequest] = {}
    for request in requests:
        first.setdefault(person_of(request), request)
    return _some(list(first.values()), most, lambda request: request.id)


def _one_a_text(requests: Requests) -> list[StoredRequest]:
    """The first request of each text: a data set has no copies, and those of production go together."""
    first: dict[str, StoredRequest] = {}
    for request in requests:
        first.setdefault(" ".join(question_of(request).casefold().split()) or request.id, request)
    return list(first.values())


def _some(rows: Sequence[Any], most: int, key: Callable[[Any], str]) -> list[Any]:
    if len(rows) <= most:
        return list(rows)
    hashed = sorted(range(len(rows)), key=lambda i: hashlib.sha256(key(rows[i]).encode("utf-8", "replace")).digest())
    return [rows[i] for i in sorted(hashed[:most])]


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
    reference: TrainingRows, now: Requests, before: Requests, helpers: Helpers, skipped: dict[str, str]
) -> Iterator[ComparedValues]:
    """What users ask, against the data set; labels against earlier production, else against the data set's."""
    rows = _some([row for row in reference if row[0]], MOST_BEFORE, lambda row: str(row[0]))
    texts = [text for text, _ in rows]
    requests = [request for request in now if question_of(request)]
    ids, questions = [request.id for request in requests], [question_of(request) for request in requests]
    both = (texts, questions)
    memory, rest = texts[::2], texts[1::2]
    if helpers.embed is None:
        skipped["inputs"] = skipped["novelty"] = "no embedder is installed"
    elif min(len(texts), len(questions)) >= FEW:
        vectors = np.asarray(helpers.embed([*texts, *questions]), dtype=np.float64)
        old, new = vectors[: len(texts)], vectors[len(texts) :]
        unit = "chance to tell a request of now from a row of the data set"
        yield ComparedValues("inputs", "reference", "vectors", (old, new), ids, both, unit)
        nearest = [1 - (some @ old[::2].T).max(axis=1) for some in (old[1::2], new)]
        yield ComparedValues("novelty", "reference", "numbers", nearest, ids, (rest, questions))
    words = {word for text in memory for word in WORD.findall(text.lower())}

    def unknown(text: str) -> float:
        tokens = WORD.findall(text.lower())
        return sum(word not in words for word in tokens) / len(tokens) if tokens else 0.0

    shares = [np.array([unknown(text) for text in some]) for some in (rest, questions)]
    yield ComparedValues("vocabulary", "reference", "numbers", shares, ids, (rest, questions))
    lengths = [np.array([len(text) for text in some], dtype=np.float64) for some in both]
    yield ComparedValues("length", "reference", "numbers", lengths, ids, both)
    if helpers.language is None:
        skipped["language"] = "no detector of languages is installed"
    else:
        spoken = [[helpers.language(text) for text in some] for some in both]
        unit = "share of requests in another language"
        yield ComparedValues("language", "reference", "categories", spoken, ids, both, unit)
    yield from _of_labels([label for _, label in rows if label], now, before)


def _of_labels(labels: Sequence[str], now: Requests, before: Requests) -> Iterator[ComparedValues]:
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


def _of_production(now: Requests, before: Requests, feedback_of: FeedbackOf) -> Iterator[ComparedValues]:
    """What kind of answers there were and how people judged them, against earlier production."""
    states = [[_state(request) for request in some] for some in (before, now)]
    unit, ids = "share of answers of another kind", [request.id for request in now]
    yield ComparedValues("outputs", "earlier", "categories", states, ids, unit=unit)
    rated = []
    for some in (before, now):
        means = [(r.id, mean_value(feedback_of.get(r.id, ()))) for r in some]
        rated.append([(name, "good" if mean >= 0.5 else "bad") for name, mean in means if mean is not None])
    votes = [[vote for _, vote in some] for some in rated]
    unit, ids = "share of rated answers that are taken otherwise", [name for name, _ in rated[1]]
    yield ComparedValues("feedback", "earlier", "categories", votes, ids, unit=unit)


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
        parts = [each for each in blocks.values() if len(each) >= FEW_IN_BLOCK]
        sides.append([(max(each)[1], math.exp(sum(math.log(ms) for ms, _ in each) / len(each))) for each in parts])
    yield _numbers("latency", *sides)


def _numbers(name: str, before: Sequence[tuple[str, float]], now: Sequence[tuple[str, float]]) -> ComparedValues:
    values = [np.array([value for _, value in some], dtype=np.float64) for some in (before, now)]
    return ComparedValues(name, "earlier", "numbers", values, [id_ for id_, _ in now])


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


def _detect(one: ComparedValues, level: float, helpers: Helpers, seed: int) -> Detection:
    test: Callable[..., GroupDifference] = vectors_differ
    if one.kind != "vectors":
        test = numbers_differ if one.kind == "numbers" else categories_differ
    if one.name in TAILED:
        test = partial(numbers_differ, upper_tail=True)
    difference = test(*one.values, level=level, seed=seed)
    alarm = difference.p <= level
    words = helpers.telling(*one.texts)[:SHOWN] if alarm and one.texts[0] else []
    order = np.argsort(-difference.foreign, kind="stable")[: SHOWN if alarm else 0].tolist()
    against = "the data set" if one.against == "reference" else "production before"
    change = f"{one.name}: no change is shown"
    if alarm:
        change = f"{one.name} {'differ' if one.name.endswith('s') else 'differs'} from {against}"
    values: dict[str, Any] = {
        "name": one.name, "compared_with": one.against, "p": difference.p, "level": level, "size": difference.size,
        "unit": one.unit, "alarm": alarm, "rows": [len(values) for values in one.values],
        "sentence": f"{change} ({_sized(one, difference)}, p {difference.p:.2g}, alarm below {level:.2g})",
        "next_step": _next_step(one) if alarm else "", "words": words, "requests": [one.ids[i] for i in order],
    }  # fmt: skip
    return Detection(**values)


def _next_step(one: ComparedValues) -> str:
    """What to do about an alarm. Where people like the answers more than before, nothing is to be undone."""
    if one.name == "feedback":
        before, now = (list(map(str, each)).count("good") / max(len(each), 1) for each in one.values)
        if now > before:
            return "people like the answers more than before: a better release, or other raters? Nothing to take back"
    return STEPS[one.name]


def _sized(one: ComparedValues, difference: GroupDifference) -> str:
    if one.kind == "categories":
        before, now = (Counter(map(str, values)) for values in one.values)
        shifts = {name: now[name] / now.total() - before[name] / before.total() for name in before | now}
        most = max(shifts, key=lambda name: abs(shifts[name]))
        return f"{most} from {before[most] / before.total():.1%} to {now[most] / now.total():.1%}"
    if one.kind == "numbers":
        word, middles = "median", [float(np.median(values)) for values in one.values]
        if middles[0] == middles[1]:  # a few rows far out change the mean alone
            word, middles = "mean", [float(np.mean(values)) for values in one.values]
        what, unit = MEASURED[one.name]
        return f"{word} {what} from {middles[0]:.4g} to {middles[1]:.4g}{unit}"
    return f"distinguished with a chance of {difference.size:.2f}; 0.5: alike"


def _quality(requests: Requests, current: set[str], feedback_of: FeedbackOf) -> QualityEstimate | None:
    """The estimate, from answers with a probability; what people said of earlier ones calibrates it.

    Labels alone do so where there are enough: some thumbs are down for right answers, corrections are of wrong ones.
    """
    chances = {r.id: chance for r in requests if (chance := probability_of(r)) is not None}
    now = [chance for name, chance in chances.items() if name in current]
    if len(now) < FEW:
        return None
    texts = {r.id: answer_of(r).strip() for r in requests if r.id in chances}
    right = _right(texts, feedback_of, ("label",))
    if sum(name not in current for name in right) < KNOWN_ENOUGH:
        means = {name: mean_value(feedback_of.get(name, ())) for name in texts}
        liked = {name: mean >= 0.5 for name, mean in means.items() if mean is not None}
        right = liked | _right(texts, feedback_of, ("label", "correction"))
    earlier = [(chances[name], truth) for name, truth in right.items() if name not in current]
    return estimate_quality(now, earlier, [truth for name, truth in right.items() if name in current])


def probability_of(request: StoredRequest) -> float | None:
    """The probability of the label that was chosen; None where the answer has none."""
    probability = request.completion.get("probability") if isinstance(request.completion, Mapping) else None
    return float(probability) if isinstance(probability, int | float) and 0 <= probability <= 1 else None


def _right(texts: Mapping[str, str], feedback: FeedbackOf, kinds: Sequence[str]) -> dict[str, bool]:
    right: dict[str, bool] = {}
    for name, text in texts.items():
        values = [one for one in feedback.get(name, ()) if one.kind in kinds and one.may_teach()]
        if values:
            right[name] = all(str(one.value).strip() == text for one in values)
    return right


def estimate_quality(
    chances: Sequence[float], earlier: Sequence[tuple[float, bool]], judged: Sequence[bool] = (), *, seed: int = 0
) -> QualityEstimate:
    """Accuracy of answers that no one has judged: the mean of their calibrated probabilities.

    Isotonic regression on the judged answers calibrates them; with fewer than 50 of these they are taken as they are.
    The interval is a bootstrap over both. It holds while an answer of some probability is as often right as before,
    which a new kind of request may break. Source: Guillory et al. 2021, "Predicting with confidence on unseen
    distributions"; Garg et al. 2022 show where it ends.

    `chances`: probabilities of the answers of the window; `earlier`: probability of earlier answers, and whether they
    were right; `judged`: whether answers of the window were right, where people said so.
    """
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(seed)
    values = np.asarray(chances, dtype=np.float64)
    scores = np.array([chance for chance, _ in earlier], dtype=np.float64)
    truths = np.array([truth for _, truth in earlier], dtype=np.float64)
    calibrated = len(earlier) >= KNOWN_ENOUGH and 0 < truths.sum() < len(truths)

    def mean(of: Any, by: Any) -> float:
        if not calibrated:
            return float(of.mean())
        fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores[by], truths[by])
        return float(fitted.predict(of).mean())

    everyone = np.arange(len(earlier))
    value = mean(values, everyone)
    draws = []
    for _ in range(100):
        resampled = values[rng.integers(0, len(values), len(values))]
        # The answers themselves are right or not by chance, too.
        spread = rng.normal(0, math.sqrt(max(value * (1 - value), 0.0) / len(values)))
        draws.append(mean(resampled, rng.integers(0, len(earlier), len(earlier)) if calibrated else everyone) + spread)
    low, high = np.percentile(draws, [2.5, 97.5])
    return QualityEstimate(
        estimated=value,
        low=max(0.0, float(low)),
        high=min(1.0, float(high)),
        before=float(truths.mean()) if len(truths) >= FEW else math.nan,
        calibrated_on=len(earlier) if calibrated else 0,
        measured=float(np.mean(judged)) if judged else math.nan,
        judged=len(judged),
    )


def _summary(report: MonitorReport, new_releases: set[str]) -> Iterator[str]:
    detectors, requests = counted(len(report.detections), "detector"), counted(report.requests, "request")
    alarms = sum(one.alarm for one in report.detections)
    if not report.detections:
        says = verb(report.requests, "says", "say")
        yield f"{requests} {says} too little: {FEW} users are needed, now and before."
    elif alarms:
        yield f"{alarms} of {detectors} {verb(alarms, 'raises', 'raise')} an alarm on {requests}."
    else:
        shows = verb(len(report.detections), "shows", "show")
        yield f"No alarm: {detectors} {shows} no change on {requests} ({counted(report.compared, 'user')})."
    for one in report.detections:
        if one.alarm:
            words = f"\n  Words: {', '.join(one.words)}." if one.words else ""
            yield f"{one.sentence}.{words}\n  Requests: {', '.join(one.requests)}.\n  Next: {one.next_step}."
    yield from map(round_in_words, report.canaries)
    if report.canary_rounds and not report.canaries:
        yield f"Canary prompts: sent {counted(report.canary_rounds, 'time')}, all answered as before."
    if report.alarms and new_releases:
        yield f"New in this window: release {', '.join(sorted(new_releases))}."
    if report.quality is not None:
        q = report.quality
        calibration = f"calibrated on {q.calibrated_on:,} judged answers"
        by = calibration if q.calibrated_on else "not calibrated, as the model says"
        loss = f"; before {q.before:.3f}" if q.before == q.before else ""
        if loss and report.alarms:
            more = [100 * (each - q.before) for each in (q.estimated, q.low, q.high)]
            loss += f", so about {more[0]:+.0f} points [{more[1]:+.0f}, {more[2]:+.0f}]"
        yield f"Estimated share of right answers: {q.estimated:.3f} [{q.low:.3f}, {q.high:.3f}], {by}{loss}."
        if q.judged:
            beyond = ", which is outside of the estimate: answers as sure as before are not right as often now"
            aside = "" if q.low <= q.measured <= q.high else beyond
            yield f"People judged {q.judged:,} of them: {q.measured:.3f} are right{aside}."
