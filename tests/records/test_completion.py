"""A completion is written and read back whole."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from tuneloop.records.completion import Completion, TokenLogprob

WHOLE = Completion(
    text="late", token_ids=(5, 7), finish="choice", prompt_tokens=9, completion_tokens=2, ttft_ms=1.5, total_ms=3.0,
    label_scores={"late": -0.1, "lost": -2.0}, label_probability=0.9, loss=0.4, loss_tokens=2,
    logprobs=(TokenLogprob(5, -0.1, ((5, -0.1), (6, -3.0))), TokenLogprob(7, -0.2)), engine="tuneloop", adapter="ab12",
    cached=True, retries=1,
)  # fmt: skip


def test_what_is_written_is_read_back() -> None:
    again = Completion.from_json(json.loads(json.dumps(WHOLE.to_json())))
    assert again == WHOLE and (again.ttft_ms, again.total_ms) == (1.5, 3.0)


def test_defaults_are_left_out_and_unknown_keys_passed_over() -> None:
    assert Completion("a").to_json() == {"text": "a", "finish": "stop"}
    assert Completion.from_json({"text": "a", "of a later version": 1}) == Completion("a")


def test_numbers_that_json_does_not_know_become_null() -> None:
    written = json.dumps(replace(WHOLE, label_scores={"late": math.nan, "lost": -math.inf}).to_json(), allow_nan=False)
    scores = Completion.from_json(json.loads(written)).label_scores
    assert scores is not None and all(math.isnan(score) for score in scores.values())


@pytest.mark.parametrize("bad", [{"finish": "done"}, {"text": 3}, [], {"token_ids": 3}])
def test_what_is_no_completion_is_refused(bad: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        Completion.from_json(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("finish, whole", [("stop", True), ("choice", True), ("length", False), ("error", False)])
def test_cut_answers_are_not_finished(finish: str, whole: bool) -> None:
    assert Completion(finish=finish).finished == whole  # type: ignore[arg-type]
