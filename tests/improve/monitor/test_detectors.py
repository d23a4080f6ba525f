import math
import random
import zlib
from dataclasses import replace

import numpy as np
import pytest
from traffic import request, thumb

from tuneloop.improve.monitor import detectors as m

QUESTIONS = (
    "where is my parcel",
    "how do i pay the bill",
    "my password is lost",
    "the screen is broken",
    "cancel my order please",
)
LABELS = ("shipping", "billing", "account", "repair", "orders")
VECTORS = {label: np.eye(8)[i] for i, label in enumerate(LABELS)}


def ask(rng, label=None):
    i = rng.randrange(5) if label is None else LABELS.index(label)
    words = QUESTIONS[i].split()
    return " ".join([*words, str(rng.randrange(40))]), LABELS[i]


def embed(texts):
    """A stand-in: the question's own axis and some noise by text; what is not known lies elsewhere."""
    rows = []
    for text in texts:
        rng = np.random.default_rng(zlib.crc32(text.encode()))
        near = next((VECTORS[LABELS[i]] for i, q in enumerate(QUESTIONS) if text.startswith(q[:10])), np.eye(8)[7])
        vector = near + 0.2 * rng.normal(size=8)
        rows.append(vector / np.linalg.norm(vector))
    return np.array(rows)


HELPERS = m.Helpers(embed, lambda text: "de" if "ist" in text.split() else "en", lambda a, b: ["telling"])


def reference(n=400):
    rng = random.Random(0)
    return [ask(rng) for _ in range(n)]


def requests(n, start, seed, change=lambda i, text, label: {}):
    rng = random.Random(seed)
    made = []
    for i in range(start, start + n):
        text, label = ask(rng)
        fields = {
            "prompt": [{"role": "user", "content": text}],
            "completion": label,
            "total_ms": rng.lognormvariate(5, 0.4),
        }
        days = 28 + (i - 5000) / 200 * 7 if i >= 5000 else i / 400 * 28  # the window is the week after four others
        made.append(request(i, days, **{**fields, **change(i, text, label)}))
    return made


def report(change=lambda i, text, label: {}, *, feedback=(), seed=1, window=None, earlier=None, **options):
    now = requests(200, 5000, seed, change) if window is None else window
    earlier = requests(400, 0, 100 + seed) if earlier is None else earlier
    return m.monitor(reference(), now, earlier, feedback, HELPERS, m.MonitorOptions(model="m", **options), window_days=7)  # fmt: skip


def test_false_alarms_of_a_year_are_kept():
    # Of 16 windows with 2 accepted in a year of 52, 4 or more alarms have a chance of 1 in 400.
    alarms = sum(bool(report(seed=seed).alarms) for seed in range(16))
    assert alarms <= 3


def test_copies_of_a_text_count_once():
    """A data set has no copies and production has; the same questions by other users are no change."""
    window = requests(70, 5000, 3)
    copied = [replace(one, **{"id": f"{one.id}-{k}", "user": f"{one.user}-{k}"}) for one in window for k in range(6)]
    found = report(window=copied)
    assert not {"inputs", "novelty", "vocabulary", "length", "language", "labels", "output length"} & set(found.alarms)
    assert next(one for one in found.detections if one.name == "labels").rows[1] <= 70


@pytest.mark.parametrize("seed", range(4))
def test_hours_of_load_are_no_change_of_latency_and_a_slower_week_is(seed):
    """Requests of the same time wait behind each other: 50 slow ones in a row happen in calm weeks, too."""
    rng = random.Random(seed)
    pace = [rng.lognormvariate(0, 0.5) for _ in range(200)]  # of each part of a day

    def queued(i, text, label, times=1.0):
        days = 28 + (i - 5000) / 200 * 7 if i >= 5000 else i / 400 * 28
        return {"total_ms": 100 * times * pace[int(days * 4) % 200] * rng.lognormvariate(0, 0.1)}

    earlier = requests(400, 0, 100 + seed, queued)
    options = {"options": m.MonitorOptions(model="m"), "window_days": 7}

    def alarms(times):
        window = requests(200, 5000, seed, lambda i, text, label: queued(i, text, label, times))
        return m.monitor(reference(), window, earlier, (), HELPERS, **options).alarms

    assert "latency" not in alarms(1.0) and "latency" in alarms(3.0)


def test_the_level_is_divided_over_windows_and_detectors():
    assert m.level_of(2, 7, 10) * 10 * 365.25 / 7 == pytest.approx(2)
    assert m.level_of(2, 1, 10) == pytest.approx(m.level_of(2, 7, 10) / 7)


def says(text):
    return {"prompt": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("change", "detector"),
    [
        (lambda i, text, label: says(f"refund for the crypto wallet {i}") if i % 5 == 0 else {}, "inputs"),
        (lambda i, text, label: says(f"wo ist mein paket nummer {i}") if i % 6 == 0 else {}, "language"),
        (lambda i, text, label: says(text + " and some more words that nobody ever wrote before"), "length"),
        (lambda i, text, label: {"completion": "billing"} if i % 3 == 0 else {}, "labels"),
        (lambda i, text, label: {"finish": "length"} if i % 8 == 0 else {}, "outputs"),
        (lambda i, text, label: {"completion": "I'm sorry, but I cannot help with that."} if i % 4 == 0 else {}, "outputs"),
        (lambda i, text, label: {"total_ms": 900.0} if i % 3 == 0 else {}, "latency"),
    ],
)  # fmt: skip
def test_planted_changes_raise_the_alarm_that_names_them(change, detector):
    found = report(change)
    assert detector in found.alarms
    alarm = next(one for one in found.detections if one.name == detector)
    assert alarm.p <= alarm.level and alarm.next_step and len(alarm.requests) == m.SHOWN
    assert any(alarm.sentence in line and alarm.next_step in line for line in found.summary)
    if detector == "length":
        assert "characters" in alarm.sentence


def test_a_model_that_is_less_sure_of_its_labels_raises_an_alarm():
    def sure(low):
        chance = random.Random(low).uniform
        return lambda i, text, label: {
            "completion": {"role": "assistant", "content": label, "probability": chance(low, 1)}
        }

    earlier = requests(400, 0, 7, sure(0.7))
    assert "confidence" not in report(sure(0.7), earlier=earlier).alarms
    found = report(sure(0.4), earlier=earlier)
    assert found.alarms == ["confidence"]
    named = next(one for one in found.detections if one.name == "confidence").requests
    chances = {one.id: m.probability_of(one) for one in requests(200, 5000, 1, sure(0.4))}
    assert all(chances[name] < 0.5 for name in named)
    assert not {"confidence"} & ({one.name for one in report().detections} | set(report().skipped))


def test_the_named_requests_are_the_changed_ones():
    found = report(lambda i, text, label: says(f"refund for the crypto wallet {i}") if i % 5 == 0 else {})
    for name in ("inputs", "novelty", "vocabulary"):
        alarm = next(one for one in found.detections if one.name == name)
        assert sum(int(one[1:]) % 5 == 0 for one in alarm.requests) >= 4 and alarm.words == ["telling"]


def test_worse_feedback_raises_an_alarm_and_better_feedback_takes_nothing_back():
    good = [thumb(i, 1, i % 10 > 1, user=f"u{i}") for i in range(400)]
    bad = [thumb(i, 6, i % 10 > 5, user=f"u{i}") for i in range(5000, 5200)]
    steps = []
    for feedback in ([*good, *bad], [*(thumb(i, 1, i % 10 > 5, user=f"u{i}") for i in range(400)), *(thumb(i, 6, i % 10 > 1, user=f"u{i}") for i in range(5000, 5200))]):  # fmt: skip
        found = report(feedback=feedback)
        assert "feedback" in found.alarms
        steps.append(next(one.next_step for one in found.detections if one.name == "feedback"))
    assert "rollback" in steps[0] and "Nothing to take back" in steps[1]
    same = [thumb(i, 6, i % 10 > 1, user=f"u{i}") for i in range(5000, 5200)]
    assert "feedback" not in report(feedback=[*good, *same]).alarms


def test_one_user_who_floods_the_window_is_counted_once():
    window = [*requests(100, 5000, 1), *(request(i, 6, user="flood", **says("spam spam")) for i in range(6000, 7000))]
    found = report(window=window)
    assert found.alarms == [] and found.compared == 101 and found.requests == 1100


def test_too_few_requests_say_so():
    found = report(window=requests(20, 5000, 1))
    assert found.detections == [] and found.alarms == []
    assert "too little" in found.summary[0] and found.skipped


def test_texts_that_were_not_kept_leave_the_inputs_out():
    found = report(window=requests(200, 5000, 1, lambda i, text, label: {"prompt": []}))
    names = {one.name for one in found.detections}
    assert "latency" in names and "length" not in names and "length" in found.skipped


def test_a_new_release_is_named_beside_an_alarm():
    found = report(lambda i, text, label: {"completion": "billing", "release": "7"})
    assert any("release 7" in line for line in found.summary)


# --- quality without labels


def calibrated_world(rng, n, shift=0.0):
    """Probabilities that say too much: an answer of probability c is right with 0.5 + 0.4 (c - 0.5)."""
    chances = np.clip(rng.beta(6, 2, n) - shift, 0, 1)
    return chances, rng.random(n) < 0.5 + 0.4 * (chances - 0.5)


def test_the_estimate_is_calibrated_and_its_interval_covers():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(20):
        known = calibrated_world(rng, 400)
        chances, truth = calibrated_world(rng, 300, shift=0.1)
        found = m.estimate_quality(chances, list(zip(*known, strict=True)), seed=seed)
        covered += found.low <= truth.mean() <= found.high
        assert found.calibrated_on == 400
    assert covered >= 17
    assert m.estimate_quality(chances, []).estimated > truth.mean() - 0.2
    assert m.estimate_quality(chances, []).calibrated_on == 0
    few = [(0.9, False)] * 3
    assert math.isnan(m.estimate_quality(chances, few).before), "three judged answers are no measure of what was before"


@pytest.mark.parametrize(("labels", "before"), [(80, 0.75), (40, 0.75 * 40 / 240)])
def test_labels_calibrate_the_estimate_where_there_are_enough_and_thumbs_where_not(labels, before):
    def with_chance(i, text, label):
        return {"completion": {"role": "assistant", "content": label, "probability": 0.9 if i % 4 else 0.5}}

    earlier, window = requests(400, 0, 2, with_chance), requests(200, 5000, 1, with_chance)
    said = [one.completion["content"] if i % 4 else "another" for i, one in enumerate(earlier[:labels])]
    feedback = [thumb(i, 6, True, kind="label", value=text) for i, text in enumerate(said)]
    feedback += [thumb(i, 6, False) for i in range(100, 300)]  # people who like nothing
    found = report(earlier=earlier, window=window, feedback=feedback).quality
    assert found.before == pytest.approx(before)
    assert found.calibrated_on == (labels if labels == 80 else labels + 200)


def test_probabilities_in_the_store_give_an_estimate_and_judged_answers_a_check():
    def with_chance(i, text, label):
        return {"completion": {"role": "assistant", "content": label, "probability": 0.9 if i % 4 else 0.5}}

    window = requests(200, 5000, 1, with_chance)
    feedback = [thumb(5001, 6, True, user="u5001"), thumb(5002, 6, True, kind="label", value="no such", user="u5002")]
    found = report(window=window, feedback=feedback)
    assert found.quality.estimated == pytest.approx(0.8)
    assert (found.quality.judged, found.quality.measured) == (2, 0.5)
    lies = [thumb(5000 + i, 6, True, id=f"l{i}", kind="label", value="no such", voice="anyone") for i in range(100)]
    assert report(window=window, feedback=[*feedback, *lies]).quality.judged == 2
    assert report().quality is None and math.isnan(found.quality.before)
