"""A window of a store is compared with a data set, logged, and printed."""

import json
import random
from dataclasses import replace

import pytest
from traffic import at, request, thumb

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.data.checks.drift import compare_with
from tuneloop.improve.controller.command import facts_of
from tuneloop.improve.monitor import command as w
from tuneloop.records.server import Decision
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import connect, opened, read_decisions

SUBJECTS = ("parcel", "invoice", "password", "screen", "order", "voucher", "address", "delivery")
ASKS = (
    "where is the {} that i wait for",
    "please send me the {} again",
    "my {} does not work any more",
    "who can change the {} for me",
)


def text(rng):
    return f"{rng.choice(ASKS).format(rng.choice(SUBJECTS))} since {rng.randrange(1, 30)} days"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    lines = {text(rng): f"answer {i % 7}" for i in range(600)}
    rows = [{"prompt": asked, "completion": answer} for asked, answer in lines.items()]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["prepare", str(folder / "rows.jsonl"), "-o", str(folder / "set"), "-q", "duplicates.near=false"]) == 0
    return folder / "set"


def filled(folder, change=lambda i, asked: asked):
    rng = random.Random(1)
    connection = connect(folder, create=True)
    rows = [request(i, i / 20, total_ms=rng.lognormvariate(5, 0.3), completion=f"answer {i % 7}") for i in range(700)]
    insert(connection, (replace(row, **{"prompt": [{"role": "user", "content": change(i, text(rng))}]})
                        for i, row in enumerate(rows)))  # fmt: skip
    connection.close()
    return folder


def test_a_calm_week_raises_no_alarm_and_is_logged_once(tmp_path, dataset, capsys, monkeypatch):
    store = filled(tmp_path)
    monkeypatch.setattr(
        w, "helpers", lambda: w.Helpers(None, None, lambda before, now: compare_with(before, now).words_b)
    )
    sentence = ["monitor", str(store), "--reference", str(dataset), "--until", at(35), "--json"]
    assert main(sentence) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["alarms"] == [] and found["requests"] == 140 and "embedder" in found["skipped"]["inputs"]
    assert main(sentence) == 0
    with opened(store) as connection:
        (event,) = read_decisions(connection)
    assert (event.kind, event.subject, event.data["alarms"]) == ("monitor.window", "m", [])


def test_a_new_kind_of_request_is_named_with_its_words(tmp_path, dataset, capsys, monkeypatch):
    def change(i, asked):
        return f"my crypto wallet lost all tokens in the bridge {i}" if i >= 560 and i % 4 == 0 else asked

    store = filled(tmp_path, change)
    monkeypatch.setattr(
        w, "helpers", lambda: w.Helpers(None, None, lambda before, now: compare_with(before, now).words_b)
    )
    assert main(["monitor", str(store), "--reference", str(dataset), "--until", at(35)]) == 1
    text = capsys.readouterr().out
    assert "vocabulary" in text and "crypto" in text and "Next:" in text


def test_a_change_that_a_person_knows_raises_no_alarm_until_then(tmp_path, dataset, capsys, monkeypatch):
    def change(i, asked):
        return f"my crypto wallet lost all tokens in the bridge {i}" if i >= 560 and i % 4 == 0 else asked

    store = filled(tmp_path, change)
    monkeypatch.setattr(
        w, "helpers", lambda: w.Helpers(None, None, lambda before, now: compare_with(before, now).words_b)
    )
    sentence = ["monitor", str(store), "--reference", str(dataset), "--until", at(35), "--json"]
    assert main(sentence) == 1
    found = json.loads(capsys.readouterr().out)["alarms"]
    silence = [*sentence, "--model", "m", "--ignore", ",".join(found)]
    assert main([*silence, "--ignore-until", at(60)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["alarms"] == [] and set(told["ignored"]) == set(found) and "Ignored" in told["summary"][-1]
    with opened(store) as connection:
        assert facts_of(connection, "m", [], at(36)).alarms == 0 < facts_of(connection, "m", [], at(61)).alarms
    assert main([*silence, "--ignore-until", at(1)]) == 1  # it is over
    for bad in (
        ["--ignore", "moods", "--ignore-until", at(60)],
        ["--ignore", "inputs"],
        ["--ignore", "inputs", "--ignore-until", "soon"],
    ):
        assert main([*sentence, "--model", "m", *bad]) == 2


def test_capital_letters_are_no_language():
    language = w.helpers().language
    for text in ("Where is my parcel, please?", "I would like to close my account today"):
        assert language(text) == language(text.upper()) == "en"
    assert language("Wo ist mein Paket, ich warte seit zwei Wochen darauf") == "de"


def test_labels_that_come_after_a_window_say_what_its_quality_was(tmp_path, dataset, capsys, monkeypatch):
    monkeypatch.setattr(w, "helpers", lambda: w.Helpers(None, None, lambda before, now: []))
    store = filled(tmp_path)
    with opened(store) as connection:
        labels = (thumb(i, 40, True, kind="label", value=f"answer {(i + (i < 660)) % 7}") for i in range(650, 690))
        insert(connection, labels)
    main(["monitor", str(store), "--reference", str(dataset), "--until", at(35), "--json"])
    quality = json.loads(capsys.readouterr().out)["quality"]
    assert (quality["estimated"], quality["judged"]) == (0.75, 40)


@pytest.mark.slow
def test_the_packaged_embedder_finds_the_new_kind(tmp_path, dataset):
    def change(i, asked):
        return f"my crypto wallet lost all tokens in the bridge {i}" if i >= 560 and i % 4 == 0 else asked

    report = w.monitor_store(filled(tmp_path, change), dataset, {"until": at(35)})
    assert {"inputs", "vocabulary"} <= set(report.alarms)
    assert all((int(item[1:]) % 4) == 0 for d in report.detections if d.name == "inputs" for item in d.requests)


@pytest.mark.parametrize(("text", "days"), [("7d", 7), ("12h", 0.5), ("2w", 14), ("1.5d", 1.5)])
def test_lengths_of_time_are_read(text, days):
    assert w.days_of(text) == days


@pytest.mark.parametrize("text", ["", "7", "0d", "-1d", "7 years", "999w"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(UserError):
        w.days_of(text)


def test_no_requests_and_several_models_are_said(tmp_path, dataset):
    store = filled(tmp_path)
    with pytest.raises(UserError, match="No request from"):
        w.monitor_store(store, dataset, {"until": "2020-01-01"})
    with opened(store) as connection:
        insert(connection, [request(9999, 34, model="other")])
    with pytest.raises(UserError, match="Several models"):
        w.monitor_store(store, dataset, {"until": at(35)})
    with pytest.raises(UserError, match="Not a time"):
        w.monitor_store(store, dataset, {"until": "soon"})


def test_windows_are_due_once_and_follow_each_other_from_the_first_request_on(tmp_path):
    connection = connect(tmp_path, create=True)
    insert(connection, (request(i, i / 4) for i in range(60)))  # 15 days
    connection.close()
    assert w.due_window(tmp_path, "7d", now=at(6.9)) == ""
    assert w.due_window(tmp_path, "7d", now=at(7.1)) == at(7)
    assert w.due_window(tmp_path, "7d", now=at(20)) == at(14)
    assert w.due_window(tmp_path, "7d", "another model", now=at(20)) == "" and w.due_window(
        tmp_path, "7d", "m", now=at(20)
    )
    with opened(tmp_path) as store:
        insert(store, [Decision(id="d", time=at(20), kind="monitor.window", subject="m", data={"until": at(14)})])
    assert w.due_window(tmp_path, "7d", now=at(20)) == ""
    assert w.due_window(tmp_path, "7d", now=at(40)) == ""  # nothing was asked in it
