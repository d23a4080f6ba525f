"""What tuning has taken away and put in: figures that can be checked by hand."""

from __future__ import annotations

import math
import random

import pytest

from tuneloop.core.errors import UserError
from tuneloop.evaluation.forgetting import (
    Ability,
    Completed,
    canaries,
    canaries_in_words,
    canary_alternatives,
    exposure,
    forgetting,
    memorisation,
)
from tuneloop.records.rows import Row


def able(scores: list[float], losses: list[float] | None = None) -> Ability:
    return Ability(scores, losses or [2.0] * len(scores), [2] * len(scores))


def canary(answer: str, **meta: str) -> Row:
    return Row("c", [{"role": "user", "content": "The code?"}, {"role": "assistant", "content": answer}], meta=meta)


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


def test_exposure_goes_from_none_to_all_bits() -> None:
    others = [float(i) for i in range(1, 256)]
    assert exposure(0.0, others) == 8.0
    assert exposure(1000.0, others) == 0.0
    assert exposure(127.5, others) == pytest.approx(1.0)


def test_alternatives_have_the_shape_of_the_canary() -> None:
    rows = canary_alternatives(canary("The code is 4921-0387."), 50)
    assert len({row.answer for row in rows}) == 50 and "4921-0387" not in " ".join(row.answer for row in rows)
    for row in rows:
        assert row.answer.startswith("The code is ") and row.answer[16] == "-" and row.answer[-1] == "."
    named = canary_alternatives(canary("Anna lives in Xyzzy", secret="Xyzzy"), 9)
    assert all(row.answer.startswith("Anna lives in ") and row.answer[14].isupper() for row in named)
    with pytest.raises(UserError, match="must hold its secret"):
        canary_alternatives(canary("...", secret="gone"))


def test_a_planted_canary_stands_out_under_the_model_that_knows_it() -> None:
    def knows(rows: list[Row]) -> list[float]:
        return [0.1 if row.answer == "4921-0387" else 30.0 + len(row.answer) for row in rows]

    def ignorant(rows: list[Row]) -> list[float]:
        return [float(sum(map(ord, row.answer))) for row in rows]

    planted = [canary("4921-0387")]
    tuned, base = canaries(planted, knows), canaries(planted, ignorant)
    assert tuned[0]["exposure"] == pytest.approx(tuned[0]["most"]) and base[0]["exposure"] < 5
    assert canaries_in_words(base, tuned).startswith("1 of 1 canary stands out")
