import math
import random
import zlib
from dataclasses import replace

import numpy as np
import pytest
from traffic import request, thumb

from tuneloop.core.errors import UserError
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
    text = QUESTIONS[i].split()
    return " ".join([*text, str(rng.randrange(40))]), LABELS[i]


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
    copied = [
        replace(item, **{"id": f"{item.id}-{k}", "user": f"{item.user}-{k}"}) for item in window for k in range(6)
    ]
    found = report(window=copied, earlier=requests(400, 0, 103)[300:])  # one window before: none are pooled
    assert not {"inputs", "novelty", "vocabulary", "length", "language", "labels", "output length"} & set(found.alarms)
    assert next(detection for detection in found.detections if detection.name == "labels").rows[1] <= 70


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
    alarm = next(detection for detection in found.detections if detection.name == detector)
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
    named = next(detection for detection in found.detections if detection.name == "confidence").requests
    chances = {item.id: m.probability_of(item) for item in requests(200, 5000, 1, sure(0.4))}
    assert all(chances[name] < 0.5 for name in named)
    assert not {"confidence"} & ({detection.name for detection in report().detections} | set(report().skipped))


def test_the_named_requests_are_the_changed_ones():
    found = report(lambda i, text, label: says(f"refund for the crypto wallet {i}") if i % 5 == 0 else {})
    for name in ("inputs", "novelty", "vocabulary"):
        alarm = next(detection for detection in found.detections if detection.name == name)
        assert sum(int(item[1:]) % 5 == 0 for item in alarm.requests) >= 4 and alarm.words == ["telling"]


def test_worse_feedback_raises_an_alarm_and_better_feedback_does_not():
    good = [thumb(i, 1, i % 10 > 1, user=f"u{i}") for i in range(400)]
    bad = [thumb(i, 6, i % 10 > 5, user=f"u{i}") for i in range(5000, 5200)]
    found = report(feedback=[*good, *bad])
    assert "rollback" in next(
        detection.next_step for detection in found.detections if detection.name == "feedback" and detection.alarm
    )
    better = [
        *(thumb(i, 1, i % 10 > 5, user=f"u{i}") for i in range(400)),
        *(thumb(i, 6, i % 10 > 1, user=f"u{i}") for i in range(5000, 5200)),
    ]
    same = [thumb(i, 6, i % 10 > 1, user=f"u{i}") for i in range(5000, 5200)]
    for feedback in (better, [*good, *same]):
        assert "feedback" not in report(feedback=feedback).alarms


def weekly(change, weeks=12, since=4, per_week=50):
    """So few requests a week that one shows little; the change begins after some of them."""
    rng, made = random.Random(5), []
    for i in range(weeks * per_week):
        text, label = ask(rng)
        fields = {"prompt": [{"role": "user", "content": text}], "completion": label}
        made.append(request(i, i / per_week * 7, **{**fields, **(change(i, label) if i >= since * per_week else {})}))
    return made[:-per_week], made[-per_week:]


def test_a_change_that_no_week_shows_is_found_over_several():
    earlier, window = weekly(lambda i, label: {"completion": "billing"} if i % 8 == 0 else {})
    alone = report(window=window, earlier=earlier[:200])  # as if the weeks between had not been
    assert not {"labels", "agreement"} & set(alone.alarms)
    found = report(window=window, earlier=earlier)
    alarm = next(detection for detection in found.detections if detection.name == "agreement")
    assert alarm.alarm and alarm.windows > 1 and f"over {alarm.windows} windows" in alarm.sentence
    assert not report(window=weekly(lambda i, label: {})[1], earlier=weekly(lambda i, label: {})[0]).alarms


def test_answers_of_a_release_that_is_gone_say_nothing_of_now():
    """A bad release was rolled back a week ago: its answers raise no alarm any more."""
    earlier, window = weekly(lambda i, label: {"completion": "billing", "release": "2"} if i < 550 else {})
    assert not {"labels", "agreement"} & set(report(window=window, earlier=earlier).alarms)
    same = [replace(item, release=None) for item in earlier]
    assert {"labels", "agreement"} & set(report(window=window, earlier=same).alarms)


def wavering(seed, change=lambda i: {}, weeks=9, per_week=150):
    """Weeks of a production that a balanced data set does not look like, whose mix of topics and latency vary."""
    rng, made = random.Random(seed), []
    for week in range(weeks):
        mix = [share * rng.lognormvariate(0, 0.2) for share in (5, 2, 1, 1, 1)]
        pace = 100 * rng.lognormvariate(0, 0.1)
        for k in range(per_week):
            i = week * per_week + k
            text, label = ask(rng, rng.choices(LABELS, mix)[0])
            fields = {**says(text), "completion": label, "total_ms": pace * rng.lognormvariate(0, 0.1)}
            changed = change(i) if week == weeks - 1 else {}
            made.append(request(i, i / per_week * 7, **{**fields, **changed}))
    return {"window": made[-per_week:], "earlier": made[:-per_week]}


def test_what_weeks_usually_do_raises_no_alarm_and_a_new_topic_does():
    alarms = [report(**wavering(seed)).alarms for seed in range(12)]
    assert sum(map(bool, alarms)) <= 2, alarms  # one a year is accepted
    found = report(**wavering(0))
    assert any("no more than windows usually do" in detection.sentence for detection in found.detections)
    for seed in range(3):
        new = report(**wavering(seed, lambda i: says(f"refund for the crypto wallet {i}") if i % 8 == 0 else {}))
        assert new.alarms, seed


def test_while_weeks_are_learnt_only_large_changes_raise_an_alarm():
    early = [report(**wavering(seed, weeks=3)) for seed in range(6)]
    assert all(
        item.learning == 2 and "Learning what windows usually do: 2 of 4" in " ".join(item.summary) for item in early
    )
    assert sum(bool(item.alarms) for item in early) <= 1
    assert "outputs" in report(**wavering(0, lambda i: {"completion": None, "error": "HTTP 500"}, weeks=3)).alarms


def test_labels_in_turn_are_found_though_their_shares_stay():
    turned = dict(zip(LABELS, [*LABELS[1:], LABELS[0]], strict=True))
    found = report(lambda i, text, label: {"completion": turned[label]} if i % 4 == 0 else {})
    assert "agreement" in found.alarms and "labels" not in found.alarms


def test_few_right_labels_a_week_show_errors_that_nothing_else_does():
    """20 judged answers a week, of which 10 % are wrong and later 35 %; the traffic is as before."""

    def judged(share):
        rng = random.Random(3)
        found = []
        for i in range(0, 600, 2):  # 25 of 50
            wrong = rng.random() < (share if i >= 400 else 0.1)
            found.append(
                thumb(i, i / 50 * 7, True, kind="label", value="else" if wrong else labels[i], user="reviewer")
            )
        return found

    earlier, window = weekly(lambda i, label: {})
    labels = [item.completion for item in [*earlier, *window]]
    assert report(window=window, earlier=earlier, feedback=judged(0.35)).alarms == ["errors"]
    assert report(window=window, earlier=earlier, feedback=judged(0.1)).alarms == []


def test_a_value_that_is_not_a_number_decides_nothing():
    with pytest.raises(UserError, match="cost is not a number"):
        report(
            lambda i, text, label: {"usd": math.nan if i == 5003 else 0.01},
            earlier=requests(400, 0, 1, lambda *_: {"usd": 0.01}),
        )


def test_one_user_who_floods_the_window_is_counted_once():
    window = [*requests(100, 5000, 1), *(request(i, 6, user="flood", **says("spam spam")) for i in range(6000, 7000))]
    found = report(window=window)
    assert found.alarms == [] and found.compared == 101 and found.requests == 1100


def test_too_few_requests_say_so():
    found = report(window=requests(20, 5000, 1), earlier=requests(400, 0, 1)[370:])
    assert found.detections == [] and found.alarms == []
    assert "too little" in found.summary[0] and found.skipped


def test_texts_that_were_not_kept_leave_the_inputs_out():
    without = [requests(n, start, 1, lambda i, text, label: {"prompt": []}) for n, start in ((400, 0), (200, 5000))]
    found = report(earlier=without[0], window=without[1])
    names = {detection.name for detection in found.detections}
    assert "latency" in names and "length" not in names and "length" in found.skipped


def test_a_new_release_is_named_beside_an_alarm():
    found = report(lambda i, text, label: {"completion": "billing", "release": "7"})
    assert any("release 7" in line for line in found.summary)


# --- quality from few labels


def sampled(rights, start=5000, **fields):
    given = {"kind": "label", "user": "reviewer", **fields}
    truth = {item.id: item.completion for item in requests(200, 5000, 1)}
    values = [truth[f"r{start + i:06d}"] if right else "no such" for i, right in enumerate(rights)]
    return [thumb(start + i, 6, True, value=value, **given) for i, value in enumerate(values)]


def test_the_interval_of_the_share_of_right_answers_holds_the_truth():
    rng = np.random.default_rng(0)
    window = requests(200, 5000, 1)
    covered = 0
    for _ in range(200):
        rights = rng.random(20) < 0.9
        found = m.estimate_quality(window, (), {f"r{5000 + i:06d}": [item] for i, item in enumerate(sampled(rights))})
        assert found.estimated == rights.mean() and found.judged == 20 and math.isnan(found.before)
        covered += found.low <= 0.9 <= found.high
    assert covered >= 190


def test_without_labels_of_the_window_its_quality_is_not_said():
    """A model that does not know that it is wrong is as sure as before, and thumbs are given to what one likes."""

    def sure(i, text, label):
        return {"completion": {"role": "assistant", "content": label, "probability": 0.99}}

    liked = [thumb(5000 + i, 6, True) for i in range(100)]
    corrections = [thumb(5100 + i, 6, True, kind="correction", value="other") for i in range(50)]
    found = report(sure, earlier=requests(400, 0, 2, sure), feedback=[*liked, *corrections])
    assert found.quality is None and any("not known" in line for line in found.summary)
    assert report(feedback=sampled([True] * 9)).quality is None
    lies = [item.model_copy(update={"voice": "anyone"}) for item in sampled([False] * 30)]
    assert report(feedback=lies).quality is None


def test_votes_on_a_drawn_sample_count_as_labels_do():
    votes = [thumb(5000 + i, 6, i < 15, source="sample") for i in range(20)]
    found = report(feedback=votes)
    assert (found.quality.estimated, found.quality.judged) == (0.75, 20)
    assert any("from 20 judged" in line for line in found.summary)
    hidden = [item.model_copy(update={"source": "sample", "kind": "correction"}) for item in sampled([True] * 20)]
    assert report(feedback=hidden).quality.estimated == 1, "who writes the given answer says that it is right"
