import math
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from traffic import BEGIN, at, design, request, thumb, traffic

from tuneloop.improve.experiment.decision import decide
from tuneloop.improve.experiment.state import guardrails_of
from tuneloop.improve.experiment.statistics import assign, in_sample, place_of, registration_hash, unit_of, units_of
from tuneloop.improve.experiment.tally import Stage, evidence_of
from tuneloop.records.request import NOT_LOADED

LATE = BEGIN + timedelta(days=60)


def verdict(registered, requests, feedback, *, days=30.0, share=0.5, when=LATE, votes=()):
    units = units_of(registered, requests, feedback, when)
    return decide(registered, evidence_of(registered, units, Stage(days, days, share), votes), at(days))


# --- who meets the candidate


def test_a_user_keeps_the_arm_and_arms_have_their_shares():
    registered = design()
    arms = [assign(registered, f"user-{i}", 0.25) for i in range(4000)]
    assert arms == [assign(registered, f"user-{i}", 0.25) for i in range(4000)]
    assert abs(arms.count("candidate") / 4000 - 0.25) < 0.03
    # Whoever met the candidate at a small share meets it at a larger one, too.
    assert all(assign(registered, f"user-{i}", 0.5) == "candidate" for i in range(4000) if arms[i] == "candidate")


def test_places_of_another_experiment_are_independent():
    pairs = np.array([[place_of(design(), f"u{i}"), place_of(design(name="other"), f"u{i}")] for i in range(3000)])
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.06
    assert pairs.min() >= 0 and pairs.max() < 1


def test_the_unit_is_the_user_then_the_conversation_then_the_request():
    assert unit_of(request(1, 0)) == "u1"
    assert unit_of(request(1, 0, user=None, conversation="c")) == "c"
    assert unit_of(request(1, 0, user=None)) == "r000001"


def test_all_that_a_voice_says_of_its_users_is_one_unit():
    requests = [request(i, 0, arm=("candidate", "champion")[i % 2], propensity=0.5, user=f"u{i}", conversation=f"c{i}",
                        voice=("anyone", "key:bot", None)[i % 3]) for i in range(12)]  # fmt: skip
    votes = [thumb(i, 0.1, True) for i in range(12)]
    units = units_of(design(), requests, votes, LATE)
    assert len(units.candidate) == 2 + 4 and list(units.outcome) == [1.0] * 6


def test_a_strangers_conversation_of_the_same_name_leaves_none_out():
    arms = {"arm": "candidate", "propensity": 0.5, "conversation": "c"}
    requests = [request(1, 0, user="a", adapter="new", **arms), request(2, 0.1, user="a", adapter="new", **arms),
                request(3, 0.2, adapter="old", voice="key:bot", **arms)]  # fmt: skip
    assert units_of(design(), requests, [], LATE).dropped == 0


def test_the_hash_changes_with_every_registered_value():
    assert registration_hash(design()) == registration_hash(design())
    assert (
        len(
            {
                registration_hash(design(**change))
                for change in ({}, {"effect": 0.04}, {"ramp": [0.1, 1.0]}, {"salt": "t"})
            }
        )
        == 4
    )


# --- what came of it


def test_a_user_counts_once_and_only_within_the_window_that_is_the_same_for_both_arms():
    requests = [
        request(1, 0.0, user="a", arm="candidate", propensity=0.5),
        request(2, 0.5, user="a", arm="candidate", propensity=0.5),
        request(3, 1.5, user="a", arm="candidate", propensity=0.5),  # after the window of a day
    ]
    votes = [thumb(1, 0.1, True, user="a"), thumb(2, 0.6, False, user="a"), thumb(3, 1.6, False, user="a")]
    units = units_of(design(), requests, votes, LATE)
    assert list(units.outcome) == [0.5] and list(units.candidate) == [True]
    assert math.isnan(units_of(design(), requests[:1], votes[:1], BEGIN + timedelta(hours=23)).outcome[0])
    late = [thumb(1, 1.2, False, user="a")]  # a late vote counts in neither arm
    assert math.isnan(units_of(design(), requests[:1], late, LATE).outcome[0])


def test_a_conversation_whose_later_turns_fell_back_counts_as_the_candidates_failure():
    requests, votes = traffic(design(), 0.5, 400, 1)
    inside = [r for r in requests if r.arm == "candidate"]
    later = [replace(r, id=f"t{r.id}", conversation=f"c{r.user}", adapter="old", fallback="HTTP 500")
             for i, r in enumerate(inside) if i % 5 < 2]  # fmt: skip
    first = [replace(r, conversation=f"c{r.user}", adapter="new" if r.arm == "candidate" else "old") for r in requests]
    found = verdict(design(), [*first, *later], votes)
    assert (found.outcome, found.reason) == ("roll back", "guardrail") and "invalid is 20" in found.sentence
    assert found.evidence.users == 400 and found.evidence.dropped == 0


def test_a_vote_after_the_window_does_not_delete_the_one_within_it():
    requests = [request(1, 0, arm="candidate", propensity=0.5)]
    votes = [thumb(1, 0.1, True), thumb(1, 0.2, False, id="f2"), thumb(1, 5, True, id="f3")]
    units = units_of(design(), requests, votes, LATE)
    assert units.outcome[0] == 0.0 and units.dislikes[0] == 1.0  # the last one within the window


@pytest.mark.parametrize(
    "change",
    [{"user": "someone else"}, {"user": "reviewer:ann", "source": "review"}, {"source": "judge"},
     {"user": None, "source": "review"}],
)  # fmt: skip
def test_only_the_user_who_got_an_answer_decides_on_it(change):
    requests = [request(i, 0, arm="candidate", propensity=0.5) for i in range(3)]
    other = thumb(1, 0.1, False, **change)
    units = units_of(design(), requests, [thumb(0, 0.1, True), other, thumb(2, 0.1, True, user=None)], LATE)
    assert units.outcome[0] == units.outcome[2] == 1.0 and math.isnan(units.outcome[1])
    assert list(np.isnan(units.guarded["dislikes"])) == [False, True, False]


def test_a_check_counts_from_believed_senders_only():
    registered = design(sample=1.0)
    requests = [request(i, 0, arm="candidate", propensity=0.5) for i in range(4)]
    checks = [thumb(i, 40, True, kind="checked", user="ann", voice=voice)
              for i, voice in enumerate(["anyone", "key:bot", "trusted:desk", None])]  # fmt: skip
    checked = units_of(registered, requests, checks, LATE).checked
    assert list(np.isnan(checked)) == [True, True, False, False]


def test_requests_of_no_one_are_no_units():
    registered = design(guardrails=[])
    requests, votes = traffic(registered, 0.5, 1500, 10, rates=(0.85, 0.6))
    rng = np.random.default_rng(0)
    bots = [request(10_000 + i, i / 200, user=None, arm=("candidate", "champion")[i % 2], propensity=0.5)
            for i in range(2000)]  # fmt: skip
    noise = [thumb(10_000 + i, i / 200, bool(rng.random() < 0.5), user=None) for i in range(2000)]
    found = verdict(registered, [*requests, *bots], [*votes, *noise])
    assert found.outcome == "promote" and (found.evidence.users, found.evidence.dropped) == (1500, 2000)


def test_arms_that_are_drawn_at_each_request_are_noticed():
    rng = np.random.default_rng(0)
    requests = [request(i, i / 100, user=f"u{i // 2}", arm=("candidate", "champion")[int(rng.random() < 0.5)],
                        propensity=0.5) for i in range(40)]  # fmt: skip
    found = verdict(design(), requests, [])
    assert (found.outcome, found.reason) == ("roll back", "assignment") and "other arm" in found.sentence
    kept = [replace(r, arm=requests[i - i % 2].arm) for i, r in enumerate(requests)]
    assert verdict(design(), kept, []).outcome == "continue"


@pytest.mark.parametrize(("lost", "most"), [(0.2, 2400), (0.1, 8000)])
def test_users_of_the_candidate_who_are_missing_stop_promotion_and_ramp(lost, most):
    """As soon as it is likely; it is proven later."""
    registered = design(guardrails=[])
    requests, votes = traffic(registered, 0.25, most, 20, rates=(0.9, 0.5))
    rng = np.random.default_rng(0)
    left = [r for r in requests if r.arm != "candidate" or rng.random() >= lost]
    looks = (verdict(registered, left[:users], votes, share=0.25) for users in range(400, most, 100))
    found = next(look for look in looks if look.reason == "assignment")
    assert (found.outcome, found.share) == ("continue", 0.25) and "seem to be missing" in found.sentence
    assert verdict(registered, requests, votes, share=0.25).outcome == "promote"


def test_users_who_are_drawn_again_count_again():
    champion = [request(1, 0, arm="champion", propensity=0.1, user="a"),
                request(2, 2, arm="candidate", propensity=0.5, user="a")]  # fmt: skip
    candidate = [request(3, 0, arm="candidate", propensity=0.1, user="b"),
                 request(4, 2, arm="candidate", propensity=1.0, user="b")]  # fmt: skip
    votes = [thumb(i, 2.5 if i % 2 == 0 else 0.5, i % 2 == 0, user="ab"[i > 2]) for i in (1, 2, 3, 4)]
    units = units_of(design(), [*champion, *candidate], votes, LATE)
    assert list(units.propensity) == [0.1, 0.1, 0.5] and list(units.candidate) == [False, True, True]
    assert list(units.outcome) == [0.0, 0.0, 1.0] and units.switched == 0


def test_what_users_did_before_their_draw_is_known_and_nothing_later():
    registered = design(earlier_days=60)
    drawn = [request(i, 0.0, user=user, arm="champion", propensity=0.5) for i, user in enumerate("abcdef")]
    past = [request(10 + i, -1.0, user=user) for i, user in enumerate("bcde")] + [request(20, -70.0, user="f")]
    votes = [thumb(11, -0.9, True, user="c"), thumb(12, -0.9, False, user="d"),
             thumb(13, 0.1, True, user="e"), thumb(20, -69.9, True, user="f"), thumb(2, 0.1, True, user="c")]  # fmt: skip
    units = units_of(registered, drawn, votes, LATE, sorted(past + drawn, key=lambda r: r.time))
    assert list(units.kinds) == [
        0,
        1,
        4,
        2,
        1,
        0,
    ]  # no request; no value; good; bad; a vote too late; a request too old
    assert list(units.outcome[:3]) == pytest.approx([math.nan, math.nan, 1.0], nan_ok=True)
    assert registration_hash(registered) != registration_hash(design(earlier_days=0))


def users_of(registered, users, rate, *, requests_each=1, days=20.0, seed=0, later=None):
    """Users in halves with several requests, all rated. `rate`, `later`: of liked answers, of a user's number and arm,
    within the window and after it."""
    rng = np.random.default_rng(seed)
    requests, votes = [], []
    for user in range(users):
        arm = assign(registered, f"u{user}", 0.5)
        for turn in range(requests_each):
            after = later is not None and turn >= requests_each // 2
            number, when = len(requests), days * user / users + turn / 100 + (1.2 if after else 0)
            more = {"key": "shop" if user % 20 == 0 else "app"}
            requests.append(request(number, when, user=f"u{user}", arm=arm, propensity=0.5, **more))
            liked = bool(rng.random() < (later if after else rate)(user, arm))
            votes.append(thumb(number, when + 0.01, liked, user=f"u{user}"))
    requests.sort(key=lambda r: r.time)
    return requests, votes


def harmful(user, arm):
    """Terrible for one user of twenty, better for all others: 4.9 points better on average."""
    return 0.6 if arm == "champion" else 0.0 if user % 20 == 0 else 0.683


def test_a_candidate_that_is_terrible_in_a_slice_is_rolled_back():
    data = users_of(design(), 3000, harmful)
    found = verdict(design(), *data)
    assert (found.outcome, found.reason) == ("roll back", "guardrail") and "thumbs of key shop is" in found.sentence
    without = design(guardrails=[rail for rail in design().guardrails if rail.name != "slices"])
    assert verdict(without, *data).reason != "guardrail"


def test_a_candidate_that_is_terrible_for_a_few_users_is_rolled_back():
    rails = [rail for rail in design().guardrails if rail.name not in ("slices", "later")]
    data = users_of(design(), 2000, harmful, requests_each=6)
    found = verdict(design(guardrails=rails), *data)
    assert (found.outcome, found.reason) == ("roll back", "guardrail") and "with a good vote" in found.sentence
    without = design(guardrails=[rail for rail in rails if rail.name != "unhappy"])
    assert verdict(without, *data).reason != "guardrail"


def test_a_candidate_that_is_liked_only_while_it_is_new_is_rolled_back():
    better = {"candidate": 0.8, "champion": 0.6}
    worse = {"candidate": 0.45, "champion": 0.6}
    data = users_of(design(), 2000, lambda user, arm: better[arm], requests_each=4, later=lambda user, arm: worse[arm])
    found = verdict(design(), *data)
    assert (found.outcome, found.reason) == ("roll back", "guardrail") and "after the window" in found.sentence
    as_before = users_of(design(), 2000, lambda u, arm: better[arm], requests_each=4, later=lambda u, arm: better[arm])
    assert verdict(design(), *as_before).outcome == "promote"


def test_invalid_answers_hold_a_gain_back_and_the_user_says_how_many_it_is_worth():
    requests, votes = traffic(design(), 0.5, 900, 10, rates=(0.85, 0.6))
    arms = {"candidate": 0, "champion": 0}

    def with_errors(item):
        arms[item.arm] += 1
        every = 33 if item.arm == "candidate" else 100
        return replace(item, error="timeout") if arms[item.arm] % every == 0 else item

    broken = [with_errors(item) for item in requests]
    found = verdict(design(), broken, votes)
    assert (found.outcome, found.reason) == ("continue", "guardrail") and "it seems that invalid is" in found.sentence
    assert verdict(design(), broken, votes, days=400).outcome == "futility"
    worth = design(guardrails=guardrails_of("invalid=5"))
    promoted = verdict(worth, broken, votes)
    assert promoted.outcome == "promote" and "invalid: 3.0% of requests, the champion's 0.9%" in promoted.sentence


def test_latency_is_held_to_the_ratio_that_the_user_sets():
    requests, votes = traffic(design(), 0.5, 900, 10, rates=(0.85, 0.6))
    rng = np.random.default_rng(0)
    slow = [replace(r, total_ms=100 * rng.lognormal(0.3 if r.arm == "candidate" else 0, 0.3)) for r in requests]
    assert verdict(design(), slow, votes).outcome == "promote"
    strict = verdict(design(guardrails=guardrails_of("latency=1.1")), slow, votes)
    assert (strict.outcome, strict.reason) == ("roll back", "guardrail") and "latency" in strict.sentence


def test_requests_outside_the_experiment_say_nothing():
    requests = [
        request(1, 0), request(2, 0, arm="candidate", propensity=1.0),
        request(3, 0, arm="candidate", propensity=0.5, model="other"), request(4, 0, arm="third", propensity=0.5),
    ]  # fmt: skip
    assert len(units_of(design(), requests, [], LATE).candidate) == 0


# --- what follows


def test_without_data_it_goes_on_and_the_share_stays():
    found = verdict(design(), [], [])
    assert (found.outcome, found.share) == ("continue", 0.5)
    assert "too few to compare" in found.sentence


def test_a_better_candidate_is_promoted_with_its_figures():
    found = verdict(design(), *traffic(design(), 0.5, 900, 10, rates=(0.85, 0.6)))
    assert (found.outcome, found.reason, found.share) == ("promote", "better", 1.0)
    assert found.evidence.measure.low > 0 and f"{found.evidence.measure.difference:+.4f}" in found.sentence


def test_a_worse_candidate_is_rolled_back():
    found = verdict(design(guardrails=[]), *traffic(design(), 0.5, 900, 10, rates=(0.4, 0.7)))
    assert (found.outcome, found.share) == ("roll back", 0.0)
    assert found.evidence.measure.high < 0


def test_less_is_better_where_it_is_registered():
    requests, votes = traffic(design(), 0.5, 900, 10, rates=(0.4, 0.7))
    assert verdict(design(guardrails=[], lower_is_better=True), requests, votes).outcome == "promote"


def test_dislikes_roll_back_before_the_window_is_over():
    registered = design(maturation_hours=72.0)
    requests, votes = traffic(registered, 0.5, 400, 0.5, rates=(0.2, 0.8))
    found = verdict(registered, requests, votes, days=1.6, when=BEGIN + timedelta(days=1.6))
    assert (found.outcome, found.reason) == ("roll back", "guardrail")
    assert "on the first day is 0.1" in found.sentence and found.evidence.measure.units == 0


@pytest.mark.parametrize(
    ("change", "name"),
    [({"error": "engine died", "finish": None}, "invalid"), ({"fallback": "HTTP 500"}, "invalid"),
     ({"total_ms": 400.0}, "latency"),
     ({"usd": 0.01}, "cost"), ({"completion_tokens": 90}, "length")],
)  # fmt: skip
def test_each_guardrail_takes_a_bad_candidate_back(change, name):
    requests, votes = traffic(design(), 0.5, 300, 1)
    rng = np.random.default_rng(0)
    noisy = [replace(r, **{"total_ms": 100 * rng.lognormal(0, 0.3), "usd": 0.001 * rng.lognormal(0, 0.3),
                                  "completion_tokens": int(20 * rng.lognormal(0, 0.3)) + 1}) for r in requests]  # fmt: skip
    assert verdict(design(), noisy, votes).outcome in ("continue", "futility")
    broken = [replace(r, **change) if r.arm == "candidate" and rng.random() < 0.8 else r for r in noisy]
    found = verdict(design(), broken, votes)
    assert (found.outcome, found.reason) == ("roll back", "guardrail")
    assert name in found.sentence


def test_a_candidate_that_is_not_loaded_yet_is_no_failure_of_its_answers():
    requests, votes = traffic(design(), 0.5, 300, 1)
    early = [replace(r, **{"fallback": NOT_LOADED}) if r.arm == "candidate" else r for r in requests]
    assert verdict(design(), early, votes).reason != "guardrail"


def test_a_broken_assignment_is_noticed_and_nothing_is_promoted():
    requests, votes = traffic(design(), 0.5, 900, 10, rates=(0.9, 0.5))
    lost = [r for i, r in enumerate(requests) if not (r.arm == "candidate" and i % 3 == 0)]  # an arm that loses users
    found = verdict(design(), lost, votes)
    assert (found.outcome, found.reason) == ("roll back", "assignment")


def test_arms_that_are_rated_at_different_rates_are_not_promoted():
    requests, votes = traffic(design(), 0.5, 900, 10, rates=(0.9, 0.5))
    arm = {r.id: r.arm for r in requests}
    kept = [v for i, v in enumerate(votes) if not (arm[v.request] == "candidate" and i % 2)]
    found = verdict(design(), requests, kept)
    assert (found.outcome, found.reason, found.share) == ("continue", "ratings", 0.5)
    assert verdict(design(), requests, kept, days=400).outcome == "futility"


def test_a_gain_that_is_excluded_and_a_time_that_is_over_end_it():
    requests, votes = traffic(design(), 0.5, 900, 10)
    assert verdict(design(effect=0.3), requests, votes).outcome == "futility"
    found = verdict(design(), requests[:20], votes[:20], days=365)
    assert (found.outcome, found.reason) == ("futility", "time")


def test_the_ramp_goes_on_only_after_its_time_and_with_values_in_both_arms():
    registered = design(guardrails=[])
    requests, votes = traffic(registered, 0.25, 400, 2, rates=(0.65, 0.6))
    units = units_of(registered, requests, votes, LATE)
    after = decide(registered, evidence_of(registered, units, Stage(5, 2, 0.25)), at(5))
    before = decide(registered, evidence_of(registered, units, Stage(5, 0.5, 0.25)), at(5))
    empty = decide(registered, evidence_of(registered, units_of(registered, [], [], LATE), Stage(5, 5, 0.25)), at(5))
    assert (after.share, before.share, empty.share) == (0.5, 0.25, 0.25)
    lower = units_of(registered, *traffic(registered, 0.25, 400, 2, rates=(0.52, 0.6), seed=2), LATE)
    waits = decide(registered, evidence_of(registered, lower, Stage(5, 2, 0.25)), at(5))
    assert waits.evidence.suspected and (waits.outcome, waits.share) == ("continue", 0.25)


def test_shadow_mode_needs_its_copies_and_takes_a_worse_candidate_back():
    registered = design(shadow=True, shadow_votes=100)
    rng = np.random.default_rng(0)
    even = rng.choice([-1.0, 0.0, 1.0], 120)
    assert verdict(registered, [], [], share=0.0, votes=even[:60]).share == 0.0
    passed = verdict(registered, [], [], share=0.0, votes=even)
    assert (passed.outcome, passed.share) == ("continue", 0.1)
    worse = verdict(registered, [], [], share=0.0, votes=rng.choice([-1.0, -1.0, -1.0, 0.0, 1.0], 200))
    assert (worse.outcome, worse.reason) == ("roll back", "shadow")
    assert verdict(registered, [], [], share=0.0, days=400).outcome == "futility"


def test_a_candidate_that_loses_every_copy_does_not_pass_shadow_mode():
    registered = design(shadow=True, shadow_votes=100, guardrails=[])
    lost = verdict(registered, [], [], share=0.0, votes=[-1.0] * 120)
    assert (lost.outcome, lost.reason) == ("roll back", "shadow")
    assert verdict(registered, [], [], share=0.0, votes=[1.0] * 120).share == 0.1


def test_a_strength_that_is_not_a_number_is_an_error():
    units = units_of(design(), [], [], LATE)
    evidence = evidence_of(design(), units, Stage(5, 5, 0.5))
    broken = evidence.model_copy(update={"strengths": evidence.strengths.model_copy(update={"promotion": math.nan})})
    with pytest.raises(ValueError, match="promotion"):
        decide(design(), broken, at(5))


def rated_less(requests, votes, arm, good, keep, seed=0):
    """Without some of an arm's good or bad votes. `keep`: the chance that one of these is given at all."""
    rng, arms = np.random.default_rng(seed), {r.id: r.arm for r in requests}
    return [v for v in votes if arms[v.request] != arm or v.value is not good or rng.random() < keep]


@pytest.mark.parametrize(("arm", "good"), [("candidate", False), ("champion", True)])
def test_votes_that_are_missing_in_one_arm_promote_no_one(arm, good):
    requests, votes = traffic(design(), 0.5, 3000, 10)
    fewer = rated_less(requests, votes, arm, good, 0.4)
    found = verdict(design(), requests, fewer)
    assert (found.outcome, found.reason) == ("continue", "ratings")
    assert found.evidence.measure.low > 0 and found.evidence.strengths.better >= 1
    assert "different rates of rating" in found.sentence and "times as often" in found.sentence
    at_random = verdict(design(missing="random"), requests, fewer)
    assert at_random.outcome == "continue" and "contradicts what was registered" in at_random.sentence
    assert at_random.evidence.strengths.rates >= 1


def test_missing_votes_that_could_be_anything_need_a_larger_gain():
    requests, votes = traffic(design(), 0.5, 3000, 10, rates=(0.75, 0.6))
    rng = np.random.default_rng(0)
    fewer = [v for v in votes if rng.random() < 0.8]
    assert verdict(design(), requests, fewer).outcome == "promote"
    assert verdict(design(missing="any"), requests, fewer).outcome == "continue"
    requests, votes = traffic(design(), 0.5, 3000, 10, rates=(0.95, 0.4))
    assert verdict(design(missing="any"), requests, [v for v in votes if rng.random() < 0.9]).outcome == "promote"


def test_a_random_sample_that_was_checked_decides_where_one_is_registered():
    registered = design(sample=0.3, guardrails=[], missing="any")
    requests, votes = traffic(registered, 0.5, 3000, 10, rates=(0.75, 0.6))
    users = {r.id: r.user for r in requests}
    drawn = [v for v in votes if in_sample(registered, users[v.request])]
    assert 0.25 < len(drawn) / len(votes) < 0.35
    checks = [v.model_copy(update={"id": f"c{v.id}", "kind": "checked", "time": at(50)}) for v in drawn]
    votes = votes[::2]  # what was checked need not have been rated
    without = verdict(registered, requests, votes)
    assert without.outcome == "continue" and "check the random sample" in without.sentence
    with_checks = verdict(registered, requests, votes + checks)
    assert with_checks.outcome == "promote" and with_checks.evidence.strengths.checked_units == len(checks)
    others = [v.model_copy(update={"id": f"d{v.id}", "kind": "checked"}) for v in votes if v not in drawn]
    assert verdict(registered, requests, votes + others).evidence.strengths.checked_units == 0


def test_many_answers_of_one_user_count_by_the_request():
    """Users who rate at least once are no proof that all was rated: half of the candidate's bad answers go unrated."""
    registered = design(guardrails=[])
    rng = np.random.default_rng(0)
    requests, votes = [], []
    for user in range(2000):
        arm = assign(registered, f"u{user}", 0.5)
        for _ in range(6):
            number, good = len(requests), bool(rng.random() < 0.6)
            requests.append(request(number, user / 200, user=f"u{user}", arm=arm, propensity=0.5))
            if good or arm == "champion" or rng.random() < 0.5:
                votes.append(thumb(number, user / 200 + 0.1, good, user=f"u{user}"))
    found = verdict(registered, requests, votes)
    assert found.evidence.measure.low > 0
    assert found.outcome == "continue" and found.evidence.strengths.votes < 1


def test_shadow_mode_ends_after_its_copies_where_nobody_can_judge_them():
    registered = design(shadow=True, shadow_votes=100)
    units = units_of(registered, [], [], LATE)
    stage = Stage(2, 2, 0.0)
    few, enough, none = (
        decide(registered, evidence_of(registered, units, stage, [0.0] * 10, copies), at(2)) for copies in (99, 100, 0)
    )
    assert few.share == 0.0 and "99 copies, 10 of them judged" in few.sentence
    assert enough.share == registered.ramp[0]
    nothing = decide(registered, evidence_of(registered, units, stage), at(2))
    assert nothing.share == none.share == 0.0 and "no copy yet" in nothing.sentence


def test_the_same_events_give_the_same_decision():
    requests, votes = traffic(design(), 0.5, 300, 5)
    assert verdict(design(), requests, votes).to_json() == verdict(design(), requests, votes).to_json()


@pytest.mark.parametrize("ramp", [[], [1.0], [0.5, 0.1], [0.0, 1.0], [0.1, 1.5], [0.1, 0.1]])
def test_a_ramp_that_does_not_rise_is_refused(ramp):
    with pytest.raises(ValueError, match="ramp"):
        design(ramp=ramp)


def test_nothing_is_promoted_before_whole_weeks_show_the_gain():
    registered = design(least_days=7, maturation_hours=24.0, guardrails=[])
    requests, votes = traffic(registered, 0.5, 1200, 12, rates=(0.85, 0.55))
    units = units_of(registered, requests, votes, LATE)
    assert len(set(units.weekday.tolist())) == 7
    early, late = (decide(registered, evidence_of(registered, units, Stage(d, d, 0.5, d)), at(d)) for d in (7.5, 12.0))
    assert (early.outcome, early.reason, late.outcome) == ("continue", "weeks", "promote"), late.sentence
    few = replace(units, weekday=np.where(units.candidate == (units.outcome > 0.5), 0, 6))
    held = decide(registered, evidence_of(registered, few, Stage(12, 12, 0.5, 12)), at(12))
    assert (held.outcome, held.reason) == ("continue", "weeks")
