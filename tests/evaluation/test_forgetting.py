"""What tuning has taken away and put in: figures that can be checked by hand."""

from __future__ import annotations

import math
import random

import pytest

from tuneloop.evaluation.forgetting import Ability, Completed, forgetting, memorisation


def able(scores: list[float], losses: list[float] | None = None) -> Ability:
    return Ability(scores, losses or [2.0] * len(scores), [2] * len(scores))


def test_the_score_is_the_lost_share_of_what_the_base_could_do() -> None:
    found = forgetting(able([1.0, 1.0, 0.5, 0.0] * 10), able([1.0, 0.5, 0.25, 0.0] * 10, [3.0] * 40))
    assert found["score"].value == pytest.approx(1 - 1.75 / 2.5)
    assert found["score"].low < found["score"].value < found["score"].high and found["score"].low > 0
    assert found["loss"].value == pytest.approx(0.5)
    assert found["words"].startswith("It has forgotten")


def test_equal_models_have_forgotten_nothing_and_better_ones_have_gained() -> None:
    rng = random.Random(0)
    scores = [rng.random() for _ in range(50)]
    same = forgetting(able(scores), able(scores))
    assert same["score"].value == same["score"].low == same["score"].high == 0
    assert same["words"].startswith("No forgetting")
    assert forgetting(able([s / 2 for s in scores]), able(scores))["words"].startswith("It has gained")


def test_a_base_that_can_nothing_has_nothing_to_forget() -> None:
    found = forgetting(able([0.0] * 5), able([0.0] * 5))
    assert math.isnan(found["score"].value) and "answers say nothing of forgetting" in found["words"]


def test_memorised_is_what_the_tuned_model_completes_beyond_the_base() -> None:
    base = [Completed(False, 20)] * 8 + [Completed(True, 20)] * 2 + [Completed(True, 2)] * 5
    tuned = (
        [Completed(True, 20)] * 6 + [Completed(False, 20)] * 2 + [Completed(True, 20)] * 2 + [Completed(True, 2)] * 5
    )
    found = memorisation(base, tuned)
    assert (found["n"], found["left_out"]) == (10, 5), "labels are left out"
    assert (found["share"].value, found["base"].value) == (0.8, 0.2)
    assert found["beyond"].value == pytest.approx(0.6) and found["beyond"].low > 0


def test_short_answers_alone_say_so() -> None:
    shared = [Completed(True, 20, shared=True)]
    assert memorisation(shared, shared)["share"] is None
    assert memorisation([Completed(True, 1)], [Completed(True, 1)])["share"] is None
