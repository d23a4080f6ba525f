"""Experiments of a store: started, decided, stopped and replayed, also through the command line."""

import json
import secrets
from dataclasses import replace

import pytest
from traffic import at, request, thumb, traffic

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.improve.experiment import command as ab
from tuneloop.improve.experiment.state import experiments_of, read_experiments
from tuneloop.improve.experiment.statistics import in_sample
from tuneloop.records.record import write_record
from tuneloop.records.server import ServedName, ServerState
from tuneloop.serving.keys import Limits, add_key, revoke_key
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import connect, opened, read_decisions

pytestmark = pytest.mark.usefixtures("each_database")

SETTINGS = {"model": "m", "shadow": False, "maturation_hours": 24.0, "ramp": "50,100", "missing": "one-way"}


@pytest.fixture
def store(tmp_path):
    connect(tmp_path, create=True).close()
    return tmp_path


def begun(store, **changes):
    return ab.start(store, "new", {**SETTINGS, **changes}, at=at(0))


def add(store, state, rates, users=600):
    with opened(store) as connection:
        for records in traffic(state.design, state.share, users, 5, rates=rates):
            insert(connection, records)


def test_a_good_candidate_is_promoted_and_every_decision_replays(store):
    state = begun(store)
    add(store, state, (0.9, 0.6))
    assert ab.check(store, at=at(0.5))[1].outcome == "continue"
    assert ab.check(store, at=at(2))[1].outcome in ("continue", "promote")
    _, verdict = ab.check(store, "new", at=at(10))  # which may have been decided already
    assert verdict.outcome == "promote"
    assert verdict.registration == state.registration
    done = ab.replay(store, "new")
    assert len(done) >= 2 and all(item.same and item.follows for item in done)
    assert ab.check(store, "new", at=at(11))[1].to_json() == verdict.to_json()  # it has ended: the same decision again


def test_earlier_votes_of_the_users_count_in_the_evidence_and_in_its_replay(store, monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", lambda size: "5a" * size)  # the salt, which decides who is in which arm
    proofs = []
    with opened(store) as connection:
        insert(connection, [request(9000 + i, -5.0, user=f"u{i}") for i in range(600)])
        insert(connection, [thumb(9000 + i, -4.9, True, user=f"u{i}") for i in range(0, 600, 2)])
    state = begun(store, earlier_days=30.0)
    with opened(store) as connection:
        requests, votes = traffic(state.design, state.share, 600, 5, rates=(0.75, 0.65))
        insert(connection, requests)
        insert(connection, votes[::2])  # as before, every second user never votes
        for days in (0.0, 30.0):
            changed = replace(state, design=state.design.model_copy(update={"earlier_days": days}))
            proofs.append(ab.verdict_of(connection, changed, at(7)).evidence.strengths)
    assert proofs[1].promotion > 1.2 * proofs[0].promotion and proofs[1].better == proofs[0].better
    ab.check(store, at=at(7))
    assert all(item.same and item.follows for item in ab.replay(store, "new"))


def test_a_bad_one_is_rolled_back(store):
    add(store, begun(store), (0.2, 0.8))
    _, verdict = ab.check(store, at=at(10))
    assert verdict.outcome == "roll back" and "Rolled back" in verdict.sentence
    assert read_experiments(store)["new"].ended == "roll back"


def test_no_second_experiment_with_the_same_model_or_name(store):
    begun(store)
    for name, reason in (("new", "already"), ("other", "still runs")):
        with pytest.raises(UserError, match=reason):
            ab.start(store, name, SETTINGS)
    ab.stop(store, "", "enough")
    assert ab.start(store, "other", SETTINGS).share == 0.5
    with pytest.raises(UserError, match="was stopped"):
        ab.check(store, "new")
    with pytest.raises(UserError, match="has ended"):
        ab.stop(store, "new", "")


def test_a_registration_that_was_changed_decides_nothing(store):
    begun(store)
    file = ab.registration_file(store, "new")
    file.write_text(file.read_text().replace('"effect": 0.05', '"effect": 0.01'))
    with pytest.raises(UserError, match="changed after the start"):
        ab.check(store, "new")


def test_what_came_before_a_decision_and_was_stored_after_it_changes_no_replay(store):
    """A request has the time at which it came, and is stored when its answer ends."""
    state = begun(store)
    with opened(store) as connection:
        requests, feedback = traffic(state.design, state.share, 300, 5, rates=(0.7, 0.6))
        requests, feedback = list(requests), list(feedback)
        insert(connection, requests[:200] + feedback[:150])
        late = ab.check(store, at=at(10))
        insert(connection, requests[200:] + feedback[150:])
    assert late[1].seen == 350
    assert any(entry.time < at(10) for entry in requests[200:])
    (item,) = ab.replay(store, "new")
    assert item.same and item.follows
    assert ab.check(store, at=at(11))[1].evidence.users > late[1].evidence.users
    assert all(entry.same for entry in ab.replay(store, "new"))


def test_an_erased_request_shows_in_the_replay(store):
    add(store, begun(store), (0.7, 0.6), users=200)
    ab.check(store, at=at(10))
    with opened(store) as connection:
        connection.execute("DELETE FROM requests WHERE id < 'r000050'")
    (item,) = ab.replay(store, "new")
    assert not item.same and item.follows


def test_two_processes_that_decide_at_once_leave_one_decision(store, monkeypatch):
    state = begun(store)
    add(store, state, (0.7, 0.6), users=100)
    real = ab.verdict_of
    seen = []

    def and_another_one(connection, before, when, last):
        found = real(connection, before, when, last)
        if when == at(4):
            seen.append(ab.check(store, at=at(3)))
        return found

    monkeypatch.setattr(ab, "verdict_of", and_another_one)
    found = ab.check(store, at=at(4))
    with opened(store) as connection:
        (only,) = experiments_of(read_decisions(connection))["new"].verdicts
    assert found[1].to_json() == seen[0][1].to_json() == only.to_json() and only.at == at(3)


def test_the_command_line_from_start_to_end(store, capsys):
    def run(*text):
        code = main(["ab", *text, "--store", str(store), "--json"])
        return code, json.loads(capsys.readouterr().out)

    code, made = run("start", "new", "--model", "m", "--no-shadow", "--ramp", "50,100", "--maturation-hours", "1e-6")
    assert code == 0 and made["share"] == 0.5
    code, found = run("check")
    assert code == 3 and found["outcome"] == "continue" and found["registration"] == made["registration"]
    code, found = run("replay", "new")
    assert code == 0 and found["same"]
    code, found = run("stop", "new", "--why", "a test")
    assert code == 0 and found["ended"] == "stopped"
    assert main(["ab", "show", "new", "--store", str(store)]) == 0
    assert "stopped by hand: a test" in capsys.readouterr().out
    code, found = run("show")
    assert code == 0 and [match["name"] for match in found["experiments"]] == ["new"]
    assert run("check", "nothing")[0] == 2
    assert main(["ab", "show", "new", "--store", str(store)]) == 0
    assert "stopped" in capsys.readouterr().out


def test_a_model_that_the_server_does_not_have_is_noted(store, capsys):
    state = ServerState(models=[ServedName(name="queue", adapter="base")])
    write_record(store / ServerState.file, state)
    main(["ab", "start", "new", "--model", "base", "--store", str(store), "--json"])
    made = json.loads(capsys.readouterr().out)
    assert "no model 'base'" in made["note"] and "it has queue" in made["note"]
    main(["ab", "start", "other", "--model", "queue", "--store", str(store), "--json"])
    assert json.loads(capsys.readouterr().out)["note"] == ""


def test_a_candidate_that_the_server_lost_decides_nothing(store, capsys):
    state = begun(store)
    add(store, state, (0.6, 0.6), users=20)
    write_record(store / ServerState.file, ServerState(candidates={"new": "its files are missing"}))
    assert main(["ab", "check", "--store", str(store)]) == 2
    said = capsys.readouterr().err
    assert "its files are missing" in said and "No one meets the candidate" in said
    assert not read_experiments(store)["new"].verdicts
    write_record(store / ServerState.file, ServerState(candidates={"new": ""}))
    assert ab.check(store, at=at(10))[1].outcome == "continue"


def test_the_random_sample_is_listed_without_arms(store, capsys):
    state = begun(store, sample=0.3)
    add(store, state, (0.6, 0.6), users=100)
    drawn = {f"u{i}" for i in range(100) if in_sample(state.design, f"u{i}")}
    some = sorted(drawn)[0]
    with opened(store) as connection:
        insert(connection, [thumb(int(some[1:]), 1, True, id="c1", kind="checked", user="ann", voice=None)])
    assert main(["ab", "sample", "--store", str(store), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {item["user"] for item in listed["requests"]} == drawn and listed["checked"] == 1
    assert "arm" not in listed["requests"][0] and listed["requests"][0]["question"].startswith("question")
    assert main(["ab", "sample", "--open", "--store", str(store), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["requests"]) == len(drawn) - 1
    assert main(["ab", "sample", "--store", str(store)]) == 0 and "1 checked" in capsys.readouterr().out
    ab.stop(store, "new", "")
    ab.start(store, "other", SETTINGS)
    assert main(["ab", "sample", "--store", str(store)]) == 2 and "no random sample" in capsys.readouterr().err


def test_users_whom_no_key_is_believed_to_name_are_noted(store, capsys):
    def noted(name, **config):
        write_record(store / ServerState.file, ServerState(config=config))
        assert main(["ab", "start", name, "--model", name, "--store", str(store)]) == 0
        return "no key has the right `users`" in capsys.readouterr().out

    assert noted("a") and not noted("b", keys={"open_rights": ["users"]})
    add_key(store, "plain", Limits(rights=["feedback"]))
    assert noted("c")
    add_key(store, "app", Limits(rights=["users"]))
    assert not noted("d")
    revoke_key(store, "app")
    assert noted("e")


def test_a_shadow_vote_that_judging_did_not_write_decides_nothing(store):
    state = ab.start(store, "new", {"model": "m"}, at=at(0))
    votes = [
        thumb(i, 1, True, kind="shadow", value=1, key=key)
        for i, key in enumerate((None, "x", "shadow:other:r", "api:1"))
    ]
    mine = thumb(9, 1, True, kind="shadow", value=-1, key="shadow:new:r9")
    with opened(store) as connection:
        insert(connection, [*votes, mine])
        evidence = ab.verdict_of(connection, state, at(2)).evidence
    assert (evidence.shadow_votes, evidence.shadow_mean) == (1, -1.0)
