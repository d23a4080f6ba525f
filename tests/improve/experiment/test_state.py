import pytest
from traffic import at, design, traffic

from tuneloop.core.errors import UserError
from tuneloop.improve.experiment.live import Arms
from tuneloop.improve.experiment.record import ExperimentOptions
from tuneloop.improve.experiment.state import DECISION, START, STOP, design_of, experiments_of
from tuneloop.improve.experiment.statistics import assign, registration_hash
from tuneloop.records.server import Decision


def event(number, kind, **data):
    return Decision(id=f"d{number}", time=at(number), kind=kind, subject="new", data=data)


def started(**changes):
    registered = design(**changes)
    return event(0, START, design=registered.model_dump(mode="json"), registration=registration_hash(registered))


def test_the_state_is_that_of_the_events():
    assert experiments_of([]) == {}
    state = experiments_of([started()])["new"]
    assert (state.share, state.ended, state.design) == (0.1, "", design())
    assert experiments_of([started(shadow=True)])["new"].share == 0.0
    stopped = experiments_of([started(), event(1, STOP, why="")])["new"]
    assert (stopped.ended, stopped.share) == ("stopped", 0.0)


def test_what_comes_after_the_end_changes_nothing():
    events = [started(), event(1, STOP, why=""), event(2, DECISION, nonsense=1)]
    assert experiments_of(events)["new"].ended == "stopped"


def test_users_keep_their_arm_when_the_share_rises():
    state = experiments_of([started()])["new"]
    arms = Arms(state)
    first = {f"u{i}": arms.arm_of(f"u{i}") for i in range(300)}
    later = Arms(experiments_of([started(ramp=[0.5, 1.0])])["new"], dict(arms.arms))
    assert all(later.arm_of(unit) == pair for unit, pair in first.items())
    assert later.arm_of("new one") == (assign(design(), "new one", 0.5), 0.5)


def test_users_who_return_after_their_window_are_drawn_again_when_the_share_has_risen():
    arms = Arms(experiments_of([started()])["new"])
    users = [f"u{i}" for i in range(300)]  # all came before the next step
    first = {user: arms.arm_of(user, at(1)) for user in users}
    same = Arms(arms.state, dict(arms.arms))
    assert all(same.arm_of(user, at(9)) == first[user] for user in users)  # the share is what it was
    risen = Arms(experiments_of([started(ramp=[0.5, 1.0])])["new"], dict(arms.arms))
    assert all(risen.arm_of(user, at(1.9)) == first[user] for user in users)  # within the window
    then = {user: risen.arm_of(user, at(9)) for user in users}
    assert all(then[user] == ("candidate", 1.0) for user in users if first[user][0] == "candidate")
    drawn = [then[user] for user in users if first[user][0] == "champion"]
    assert {propensity for _, propensity in drawn} == {0.5}
    assert 0.4 < sum(arm == "candidate" for arm, _ in drawn) / len(drawn) < 0.6
    assert all(risen.arm_of(user, at(30)) == then[user] for user in users)


def test_nobody_meets_a_candidate_in_shadow_mode_or_after_the_end():
    assert Arms(experiments_of([started(shadow=True)])["new"]).arm_of("u") is None
    assert Arms(experiments_of([started(), event(1, STOP)])["new"]).arm_of("u") is None


def test_options_become_a_registration():
    made = design_of("new", ExperimentOptions(model="queue", ramp="5, 20,100"), "s")
    assert made.ramp == [0.05, 0.2, 1.0]
    assert (made.candidate, made.champion) == ("queue@candidate", "queue@champion")


@pytest.mark.parametrize(
    ("name", "options"),
    [("new", {}), ("new", {"model": "m", "ramp": "ten"}), ("new", {"model": "m", "ramp": "50,10"}), ("a/b", {"model": "m"}),
     *(("new", {"model": "m", "measure": kind}) for kind in ("label", "shadow", "comment", "choice", "correction", "Up")),
     ("new", {"model": "m", "sample": 0.2, "sample_kind": "label"}),
     *(("new", {"model": "m", "guardrails": text}) for text in ("latency", "speed=2", "latency=-1", "latency=nan"))],
)  # fmt: skip
def test_what_cannot_be_registered_is_refused(name, options):
    with pytest.raises(UserError):
        design_of(name, ExperimentOptions(**options), "s")


def test_limits_of_guardrails_are_registered():
    made = design_of("new", ExperimentOptions(model="m", guardrails="latency=1.2, length=off"), "s")
    limits = {rail.name: rail.tolerance for rail in made.guardrails}
    assert limits["latency"] == 1.2 and "length" not in limits and limits["invalid"] == 1.5


def test_traffic_of_the_helper_follows_the_assignment():
    requests, votes = traffic(design(), 0.3, 50, 1)
    assert [r.arm for r in requests] == [assign(design(), f"u{i}", 0.3) for i in range(50)] and len(votes) == 50


def test_shadow_mode_lasts_as_many_copies_as_asked_for():
    options = ExperimentOptions(model="m", shadow_copies=30)
    assert (design_of("new", options, "s").shadow, design_of("new", options, "s").shadow_votes) == (True, 30)


@pytest.mark.parametrize("values", [{"base": 0.97}, {"base": 0.03, "lower_is_better": True}])
def test_a_gain_that_the_base_leaves_no_room_for_is_refused_with_a_smaller_one(values):
    with pytest.raises(UserError) as refused:
        design_of("new", ExperimentOptions(model="m", **values), "s")
    assert refused.value.where == "--effect" and "--effect 0.015" in str(refused.value.next_step)
    assert design_of("new", ExperimentOptions(model="m", effect=0.015, **values), "s").effect == 0.015
