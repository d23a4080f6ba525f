"""The controller: when a cycle begins, that it continues after a kill, and how it ends."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from traffic import request, thumb

from places import ROOT
from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder
from tuneloop.core.ids import utc_now
from tuneloop.core.ui import reporting
from tuneloop.improve.controller import command as w
from tuneloop.improve.controller.controller import (
    Cycle,
    Facts,
    ProjectConfig,
    Triggers,
    choose,
    command_of,
    cycles_of,
    reasons_to_begin,
)
from tuneloop.improve.experiment import command as ab
from tuneloop.records.server import Decision
from tuneloop.registry.registered import register_artifact
from tuneloop.release.export import export_run
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import connect, opened, read_decisions

STEPS = ["collect", "train", "evaluate", "gate", "export", "register", "experiment", "decide", "promote"]


@pytest.fixture
def store(tmp_path):
    connection = connect(tmp_path / "serve", create=True)
    insert(connection, (request(i, 0) for i in range(60)))  # of March 2026: long ago, so the calendar is due
    insert(connection, (thumb(i, 0, True) for i in range(60)))
    connection.close()
    return tmp_path / "serve"


def project(store, **changes):
    given = {"name": "queue", "store": str(store), "model": "m", "recipe": "r.yaml", "champion": "runs/old", "suite": "s.yaml",
             "triggers": {"every_days": 1}}  # fmt: skip
    return ProjectConfig.model_validate({**given, **changes})


class Runner:
    """Stands for the commands: each exits with 0 by default."""

    def __init__(self, **answers):
        self.answers, self.ran = answers, []

    def __call__(self, text):
        step = next(step for step in STEPS if text[: len(FIRST[step])] == FIRST[step])
        self.ran.append(step)
        found = self.answers.get(step, (0, {"path": step}))
        if isinstance(found, BaseException):
            raise found
        return found


FIRST = {"collect": ["collect"], "train": ["run"], "evaluate": ["evaluate"], "gate": ["gate"], "export": ["export"], "register": ["models", "register"],
         "experiment": ["ab", "start"], "decide": ["ab", "check"], "promote": ["models", "promote"]}  # fmt: skip


def test_a_good_candidate_goes_all_the_way(store):
    runner = Runner(decide=(0, {"outcome": "promote", "sentence": "Promoted after 9 days"}))
    done = w.improve(project(store), command=runner)
    assert runner.ran == STEPS
    assert (done.state, done.cycle) == ("ended", 1) and done.sentence == "promoted: Promoted after 9 days"
    assert all(item.follows for item in w.replay(project(store)))
    assert w.improve(project(store), command=runner).state == "idle"  # a day has not passed


@pytest.mark.parametrize(
    ("answers", "outcome", "last"),
    [
        ({"gate": (1, {"status": "fail"})}, "refused by the gate", "gate"),
        ({"gate": (3, {"status": "inconclusive"})}, "refused by the gate", "gate"),
        ({"decide": (1, {"outcome": "roll back", "sentence": "Rolled back after 80 users"})}, "rolled back", "decide"),
        ({"decide": (1, {"outcome": "futility", "sentence": "Ended"})}, "futility", "decide"),
    ],
)
def test_a_bad_one_ends_the_cycle_and_nothing_is_promoted(store, answers, outcome, last):
    runner = Runner(**answers)
    done = w.improve(project(store), command=runner)
    assert done.sentence.startswith(outcome) and runner.ran[-1] == last and "promote" not in runner.ran
    assert all(item.follows for item in w.replay(project(store)))


def test_a_cycle_without_a_new_row_ends_before_it_trains(store):
    collected = {"counts": {"sft": 0, "kto": 3}, "with_feedback": 129, "dropped": {"failed": 129}}
    runner = Runner(collect=(0, collected))
    done = w.improve(project(store), command=runner)
    assert runner.ran == ["collect"] and done.state == "ended"
    reason = "no new row to train on came of 129 requests with feedback; left out: 129 failed"
    assert done.sentence == f"nothing new: {reason}"
    assert all(item.follows for item in w.replay(project(store)))
    runner = Runner(collect=(0, collected))
    w.improve(project(store, name="pairs", steps={"train": ["run", "kto.yaml"]}), command=runner)
    assert runner.ran[:2] == ["collect", "train"]  # a recipe of one's own may read the other files


def test_a_step_that_prints_no_result_is_not_done(store):
    with pytest.raises(UserError, match="The step train of cycle 1 failed: its command ended without a result"):
        w.improve(project(store), command=Runner(train=(0, {})))
    assert w.improve(project(store), command=Runner(decide=(3, {"sentence": "Continues"}))).steps[0] == "train"


def compared(verdict):
    item = {"metric": "accuracy", "delta": 0.05, "low_holm": 0.01, "high_holm": 0.09, "verdict": verdict}
    return 0, {"path": "x", "comparisons": [item]}


class Starts(Runner):
    """The commands with a second training, from the run in use."""

    def __call__(self, text):
        if text[0] == "compare" or any(word.startswith("train.init=") for word in text):
            self.ran.append("choose" if text[0] == "compare" else "warm_start")
            return self.answers.get(self.ran[-1], (0, {"path": self.ran[-1]}))
        self.words = [*getattr(self, "words", []), list(text)]
        return super().__call__(text)


@pytest.mark.parametrize(
    ("answers", "ran", "run"),
    [
        ({"choose": compared("better")}, ["warm_start", "choose"], "warm"),
        ({"choose": compared("not enough evidence")}, ["warm_start", "choose"], "run"),
        ({"choose": compared("worse")}, ["warm_start", "choose"], "run"),
        ({"warm_start": (2, {"error": {"what": "The earlier adapter has rank 8, and this run 16"}})}, ["warm_start"], "run"),
        ({"choose": (2, {"error": {"what": "fewer than 20 rows"}})}, ["warm_start", "choose"], "run"),
    ],
)  # fmt: skip
def test_the_run_from_the_champion_goes_on_where_it_measures_better(store, answers, ran, run):
    asks = project(store, warm_start=True)
    runner = Starts(**answers)
    assert w.improve(asks, command=runner).state == "ended"
    assert runner.ran == [*STEPS[:2], *ran, *STEPS[2:]]
    used = [word for text in runner.words for word in text if word.endswith(("/1/run", "/1/warm")) and "=" not in word]
    assert used and {word.rsplit("/", 1)[1] for word in used} == {run}
    checked = w.replay(asks)
    assert all(item.follows for item in checked)
    with opened(store) as connection:
        log = [decision for decision in read_decisions(connection) if decision.data.get("step") == "choose"]
    assert log[0].data["result"]["chosen"] == run and log[0].data["result"]["sentence"]
    later = Runner()
    with opened(store) as connection:
        insert(connection, (thumb(i, 0, True, id=f"c{i}", kind="label", value="x", time=utc_now()) for i in range(3)))
    again = project(store, triggers={"every_days": 91, "corrections": 3})
    seen = []
    w.improve(again, command=lambda text: (seen.append(text), later(text))[1])
    assert next(text for text in seen if text[0] == "evaluate")[1].endswith(f"/1/{run}")


def test_a_warm_start_without_a_run_in_use_is_refused(store):
    with pytest.raises(UserError, match="warm_start needs the run in use"):
        w.improve(project(store, warm_start=True, champion=""), command=Starts())


def test_an_open_experiment_waits_and_the_next_pass_goes_on_there(store):
    runner = Runner(decide=(3, {"outcome": "continue", "sentence": "Continues at 10%"}))
    done = w.improve(project(store), command=runner)
    assert (done.state, done.sentence) == ("waiting", "Cycle 1, decide: Continues at 10%")
    again = Runner()
    assert w.improve(project(store), command=again).state == "ended" and again.ran == ["decide", "promote"]


@pytest.mark.parametrize("step", STEPS)
def test_a_controller_that_is_killed_goes_on_with_the_step_it_was_at(store, step):
    runner = Runner(**{step: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        w.improve(project(store), command=runner)
    again = Runner()
    assert w.improve(project(store), command=again).state == "ended"
    assert again.ran == STEPS[STEPS.index(step) :]
    assert all(item.follows for item in w.replay(project(store)))


def test_a_step_that_fails_says_why_and_is_tried_again(store):
    broken = {"error": {"what": "No such recipe", "where": "r.yaml", "next": "check the path"}}
    with pytest.raises(UserError, match="train of cycle 1 failed: No such recipe"):
        w.improve(project(store), command=Runner(train=(2, broken)))
    again = Runner()
    w.improve(project(store), command=again)
    assert again.ran[0] == "train"


def test_a_person_approves_first(store):
    asks = project(store, approve=["promote"])
    runner = Runner()
    assert w.improve(asks, command=runner).state == "needs approval" and runner.ran[-1] == "decide"
    assert w.improve(asks, command=runner).state == "needs approval"
    with pytest.raises(UserError, match="nothing to approve"):
        w.improve(asks, approve="train", command=runner)
    assert w.improve(asks, approve="promote", command=runner).state == "ended" and runner.ran[-1] == "promote"
    assert all(item.follows for item in w.replay(asks))


def test_two_controllers_at_once_are_refused(store):
    with lock_folder(store / "improve"), pytest.raises(UserError, match="working in this folder"):
        w.improve(project(store), command=Runner())


@pytest.mark.usefixtures("each_database")
def test_two_controllers_on_two_machines_are_refused_by_their_database(tmp_path, each_database):
    path = tmp_path / "serve"
    with opened(path, create=True) as elsewhere:
        assert elsewhere.alone("improve queue") and elsewhere.alone("improve other")
        if each_database == "sqlite":  # its file is on one machine, where the folder's lock says it
            assert w.improve(project(path), command=Runner()).state == "idle"
        else:
            with pytest.raises(UserError, match="Another controller of queue"):
                w.improve(project(path), command=Runner())
    assert w.improve(project(path), command=Runner()).state == "idle"


def test_the_gate_compares_with_the_run_that_was_promoted_last(store):
    w.improve(project(store), command=Runner())
    with opened(store) as connection:
        insert(connection, (thumb(i, 0, True, id=f"c{i}", kind="label", value="x", time=utc_now()) for i in range(3)))
    gates = []

    class Listening(Runner):
        def __call__(self, text):
            gates.extend([text] if text[0] == "evaluate" else [])
            return super().__call__(text)

    w.improve(project(store, triggers={"corrections": 2}), command=Listening())
    assert gates[0][1].endswith("improve/1/run")


def test_a_replay_finds_what_does_not_follow(store):
    w.improve(project(store), command=Runner(decide=(3, {})))
    with opened(store) as connection:
        data = {"cycle": 1, "step": "promote", "status": 0, "result": {}, "outcome": "promoted", "why": "so"}
        insert(connection, [Decision(id="ffff", time=utc_now(), kind="improve.end", subject="queue", data=data)])
    assert [item.follows for item in w.replay(project(store))][-1] is False


@pytest.mark.parametrize(
    ("facts", "number"),
    [
        (Facts(100, 500, 0, 0), 1), (Facts(1, 500, 200, 0), 1), (Facts(1, 500, 0, 1), 1), (Facts(100, 500, 300, 2), 3),
        (Facts(1, 500, 199, 0), 0), (Facts(1000, 49, 999, 9), 0),
    ],
)  # fmt: skip
def test_a_cycle_begins_for_reasons_and_never_without_feedback(facts, number):
    assert len(reasons_to_begin(Triggers(), facts)) == number


def test_a_command_of_ones_own_may_name_the_cycle(store):
    own = project(store, steps={"train": ["run", "{recipe}", "train.epochs=1", "output_dir={cycle}/run"]})
    w.improve(own, command=Runner(train=(3, {})))
    with opened(store) as connection:
        (cycle,) = cycles_of(read_decisions(connection, where="kind LIKE 'improve.%'"))
    assert command_of(cycle, "train", folder="f", champion="")[-1] == "output_dir=f/1/run"
    bad = project(store, steps={"train": ["run", "{nothing}"]})
    with pytest.raises(UserError, match="Unknown name in braces"):
        command_of(Cycle(1, bad, ()), "train", folder="f", champion="")


def test_real_commands_run_in_processes_of_their_own(store, tmp_path, capfd):
    file, recipe = tmp_path / "project.yaml", tmp_path / "recipe.yaml"
    file.write_text(json.dumps({"name": "queue", "store": str(store), "model": "m", "recipe": str(recipe),
                                "triggers": {"every_days": 1}}))  # fmt: skip
    recipe.write_text("name: nothing to train on\n")
    assert main(["improve", str(file), "--json", "-q"]) == 2  # collected, then the recipe is refused
    assert (store / "improve" / "1" / "collected" / "sft.jsonl").is_file()
    error = json.loads(capfd.readouterr().out)["error"]
    assert error["what"].startswith("The step train of cycle 1 failed")
    assert main(["improve", str(file), "--replay", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["same"] is True


@pytest.mark.parametrize("name", ["recipe", "suite", "champion"])
def test_a_missing_file_is_told_before_a_cycle_needs_it(store, tmp_path, capfd, name):
    (tmp_path / "recipe.yaml").touch()
    values = {"recipe": str(tmp_path / "recipe.yaml"), name: str(tmp_path / "recpe.yaml")}
    file = tmp_path / "project.yaml"
    file.write_text(json.dumps({"name": "queue", "store": str(store), "model": "m", **values}))
    for text in ([], ["--watch"]):
        assert main(["improve", str(file), *text, "-q"]) == 2
        said = capfd.readouterr().err
        assert f"The project's {name} is not there" in said and f"did you mean {tmp_path / 'recipe.yaml'}?" in said
    assert not (store / "improve").exists()


def test_a_champion_in_the_registry_and_a_training_without_a_recipe_need_no_file():
    w.check_files(
        ProjectConfig(name="q", model="m", recipe="none", champion="m@champion", steps={"train": ["run", "x.yaml"]})
    )


@pytest.mark.parametrize(
    "change", [{"approve": ["dance"]}, {"steps": {"train": []}}, {"model": None}, {"triggers": {"x": 1}}]
)
def test_a_project_with_a_bad_key_is_refused(tmp_path, change):
    file = tmp_path / "project.yaml"
    file.write_text(json.dumps({"name": "q", "model": "m", "recipe": "r", **change}))
    with pytest.raises(UserError):
        w.load_project(file)


WORTH = {"value": {"usd_per_answer": 0.02}, "triggers": {"every_days": 90}}
JUDGED = Facts(100, 500, 50, 0, requests_per_day=1000, bad=0.3, expected_usd=5.0, expected_hours=2.0)


@pytest.mark.parametrize(
    ("settings", "changes", "begins", "reason"),
    [
        (WORTH, {}, True, "expected gain $81.00: 1,000 requests a day for 90 days, 30.0% bad answers, 15.0% of them fixed"),
        (WORTH, {"requests_per_day": 10}, False, "expected gain $0.81"),  # costs 5
        (WORTH, {"fixed_shares": (0.0,) * 30, "expected_usd": 20.0}, False, "0.9% of them fixed (by 50 new corrections, from 30 earlier cycles)"),
        (WORTH, {"days": 5, "alarms": 1}, False, "for 5 days"),  # waiting has not cost much yet
        (WORTH, {"corrections": 0}, False, "0.0% of them fixed"),
        (WORTH, {"bad": math.nan}, False, "no answer was judged"),
        (WORTH, {"expected_usd": math.nan}, False, "the planner could not say"),
        ({"budget": {"usd": 10}}, {"spent_usd": 4.0}, True, ""),
        ({"budget": {"usd": 10}}, {"spent_usd": 6.0}, False, "is $10.00, $6.00 is spent and a cycle takes $5.00"),
        ({"budget": {"hours": 3}}, {"spent_hours": 2.0}, False, "3.00 hours, 2.00 hours is spent"),
        ({"budget": {"hours": 3}}, {"expected_hours": math.nan}, False, "the planner could not say"),
    ],
)  # fmt: skip
def test_a_cycle_has_to_be_worth_it_and_within_the_budget(settings, changes, begins, reason):
    given = ProjectConfig.model_validate({"name": "q", "model": "m", "recipe": "r", **settings})
    found = choose(given, replace(JUDGED, **changes))
    assert found.begins is begins and reason in found.why


def test_why_no_cycle_begins_is_logged_once_a_day_and_replays(store):
    asks = project(store, value={"usd_per_answer": 0.0001}, usd_per_hour=1.0)

    def plan(text):
        assert text == ["plan", "r.yaml"]
        return 0, {"time": {"hours": 3.0}, "cost": {"usd": 99.0}}

    for _ in range(2):
        done = w.improve(asks, command=plan)
        assert done.state == "idle" and "expected cost $3.00" in done.sentence
    assert [(item.what.split(":")[0], item.follows) for item in w.replay(asks)] == [("cycle 1 did not begin", True)]


def test_what_steps_take_is_logged_and_counts_for_the_budget_of_the_quarter(store, monkeypatch):
    clock = iter(range(0, 10**6, 1800))  # half an hour between two looks
    monkeypatch.setattr(w.time, "monotonic", lambda: next(clock))
    asks = project(store, usd_per_hour=2.0)
    w.improve(asks, command=Runner(decide=(0, {"evidence": {"measure": {"difference": 0.1}}})))
    with opened(store) as connection:
        (cycle,) = cycles_of(read_decisions(connection, where="kind LIKE 'improve.%'"))
        facts = w.facts_of(connection, "m", [cycle], utc_now())
    assert (cycle.hours, cycle.usd) == (4.5, 9.0) and (facts.spent_hours, facts.spent_usd) == (4.5, 9.0)
    assert cycle.bad == 0.0 and cycle.done["decide"]["difference"] == 0.1


def test_a_cycle_has_fixed_what_its_experiment_measured():
    ended = Cycle(
        1,
        ProjectConfig(name="q", model="m", recipe="r"),
        (),
        {"decide": {"difference": 0.1}},
        outcome="promoted",
        bad=0.4,
        corrections=50,
    )
    assert ended.fixed_share == 0.5  # 50 corrections teach half of what many would
    assert replace(ended, outcome="rolled back").fixed_share == 0 and replace(ended, bad=math.nan).fixed_share == 0


def test_watching_goes_on_after_a_failed_pass_and_says_what_is_new(store, tmp_path, monkeypatch):
    file = tmp_path / "project.yaml"
    file.write_text(json.dumps(project(store).model_dump(mode="json")))
    pauses, said = [], []
    monkeypatch.setattr(w.time, "sleep", pauses.append)
    answers = iter([(2, {"error": {"what": "No such recipe", "next": "check the path"}}), *([(0, {"path": "x"})] * 20)])
    with reporting(say=said.append):
        w.watch(
            file, every=60, command=lambda text: (0, {"path": "x"}) if text[0] != "run" else next(answers), passes=4
        )
    told = [line.split("  ", 1)[1] for line in said if line[:2] == "20"]
    assert (
        "failed: No such recipe" in told[0] and told[1].startswith("promoted") and told[2].startswith("Nothing to do")
    )
    assert len(told) == 3 and pauses == [60, 60, 60]


def test_the_length_of_a_pause_is_checked(store, tmp_path, capsys):
    file = tmp_path / "project.yaml"
    file.write_text(json.dumps(project(store).model_dump(mode="json")))
    assert main(["improve", str(file), "--watch", "--every", "soon"]) == 2
    assert "Not a length of time" in capsys.readouterr().err


def test_a_pass_compares_the_window_that_is_over_with_the_data_of_the_run_in_use(store, monkeypatch):
    asked = []
    monkeypatch.setattr(w, "monitor_if_due", lambda *given: asked.append(given))
    asks = project(store, monitor={"reference": "champion", "window": "2d"})
    w.improve(asks, command=Runner(decide=(3, {})))
    ((path, reference, settings),) = asked
    assert (path, reference) == (str(store), "runs/old/dataset")
    assert settings == {"model": "m", "window": "2d", "false_alarms": 1.0}


@pytest.mark.slow
def test_a_candidate_is_registered_once_though_the_controller_is_killed_before_it_logs_it(
    store, make_run, tmp_path, monkeypatch
):
    """The kill comes at the worst moment: the version is registered, and no event says so."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    artifact = export_run(make_run("runs/new"), "adapter").folder
    versions = []

    class Killed(Runner):
        def __call__(self, text):
            status, found = super().__call__(text)
            if text[:2] != ["models", "register"]:
                return status, found
            versions.append(register_artifact(artifact, "m").version)
            if len(versions) == 1:
                raise KeyboardInterrupt
            return 0, {"version": versions[-1]}

    with pytest.raises(KeyboardInterrupt):
        w.improve(project(store), command=Killed())
    assert w.improve(project(store), command=Killed()).state == "ended"
    assert versions == [versions[0]] * 2 and int(versions[0]) == 1


def test_in_shadow_mode_each_pass_judges_before_it_decides(store):
    ran = []

    def command(text):
        ran.append(text)
        if text[:2] == ["ab", "start"]:
            assert text[-1] == "--shadow"
            ab.start(store, text[2], {"model": "m"})
        return (3, {"sentence": "Shadow mode continues"}) if text[:2] == ["ab", "check"] else (0, {"path": "x"})

    asks = project(store, judge="llama-3.1-8b-instruct")
    assert w.improve(asks, command=command).state == "waiting"
    assert ran[-2] == ["ab", "judge", "queue-1", "--store", str(store), "--judge", "llama-3.1-8b-instruct"]
    assert ran[-1][:2] == ["ab", "check"]


def test_only_known_answers_of_the_model_count_and_one_user_begins_no_cycle(store):
    now = utc_now()
    with opened(store) as connection:
        insert(connection, [request(900, 0, model="other", conversation="t")])
        other = [
            thumb(i, 0, True, id=f"o{i}", request=f"gone{i}", kind="label", value="x", time=now) for i in range(300)
        ]
        other += [
            thumb(900, 0, True, id=f"p{i}", user=f"v{i}", kind="correction", value="x", time=now) for i in range(300)
        ]
        other += [thumb(0, 0, True, id="t1", request=None, conversation="t", kind="label", value="x", time=now)]
        insert(connection, other)
        insert(
            connection,
            (thumb(i, 0, True, id=f"q{i}", user="loud", kind="label", value="x", time=now) for i in range(60)),
        )
        insert(connection, (thumb(i, 0, True, id=f"b{i}", user="loud", value=False, time=now) for i in range(60)))
        facts = w.facts_of(connection, "m", [], now, enough=100)
        assert (facts.feedback, facts.corrections) == (60, w.PER_USER)
        assert w.facts_of(connection, "m", [], now, enough=7).feedback == 7
        assert facts.bad == pytest.approx(w.PER_USER / (60 + w.PER_USER))
        assert facts.requests_per_day * facts.days == pytest.approx(60)
        assert w.facts_of(connection, "nobody", [], now).feedback == 0


def test_strangers_begin_no_cycle_however_many_they_say_to_be(store):
    now = utc_now()
    with opened(store) as connection:
        begin = w.facts_of(connection, "m", [], now)
        for voice in ("anyone", "key:bot"):
            said = (
                thumb(i, 0, True, id=f"{voice}{i}", user=None, kind="label", value="x", time=now, voice=voice)
                for i in range(60)
            )
            insert(connection, said)
            bad = (thumb(i, 0, False, id=f"{voice}b{i}", user=None, time=now, voice=voice) for i in range(60))
            insert(connection, bad)
        facts = w.facts_of(connection, "m", [], now)
    assert begin.corrections == 0 and facts.corrections == w.PER_USER, "of the key's own requests, as of one user"
    assert facts.bad == pytest.approx(2 * w.PER_USER / (60 + 2 * w.PER_USER))


@pytest.mark.nightly
@pytest.mark.slow
def test_a_real_kill_at_each_step_leaves_each_of_them_once_in_the_log(tmp_path, cli_environment):
    program = ROOT / "tests" / "helpers" / "killed_controller.py"
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, env=cli_environment, check=False
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(STEPS) and all(line.endswith("True") for line in lines), done.stdout + done.stderr
