"""What a loss gets of a data set's row: which tokens are supervised, pairs, thumbs."""

from __future__ import annotations

from typing import Any

import pytest

from tuneloop.core.errors import UserError
from tuneloop.models.chat.template import Rendered
from tuneloop.models.load import Model
from tuneloop.records.rows import Message, Row
from tuneloop.training.config import TrainConfig
from tuneloop.training.rows import PreferencePair, UnpairedAnswer, check_rows, training_rows

TALK: list[Message] = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First answer."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second answer."},
]


def row(messages: list[Message], **meta: Any) -> Row:
    return Row("id", messages, meta=meta)


def learned(model: Model, rendered: Rendered) -> str:
    ids = [i for i, weight in zip(rendered.ids, rendered.mask, strict=True) if weight]
    return str(model.template.tokenizer.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("assistant", "First answer.<|eot_id|>Second answer.<|eot_id|>"),
        ("last", "Second answer.<|eot_id|>"),
        ("all", "<|begin_of_text|>"),
    ],
)
def test_train_on_says_which_tokens_are_learned(tiny_model: Model, message: Any, text: str) -> None:
    (rendered,) = training_rows([row(TALK)], tiny_model.template, TrainConfig(train_on=message))
    assert isinstance(rendered, Rendered)
    found = learned(tiny_model, rendered)
    if message == "all":
        assert found.startswith(text) and "One?" in found and sum(rendered.mask) == len(rendered.ids)
    else:
        assert found == text


def test_turns_of_weight_zero_are_read_and_not_learned(tiny_model: Model) -> None:
    muted: list[Message] = [TALK[0], {**TALK[1], "weight": 0}, *TALK[2:]]  # type: ignore[misc]
    (rendered,) = training_rows([row(muted)], tiny_model.template, TrainConfig())
    assert isinstance(rendered, Rendered) and learned(tiny_model, rendered) == "Second answer.<|eot_id|>"


def test_a_pair_learns_only_where_the_answers_part(tiny_model: Model) -> None:
    config = TrainConfig(loss="dpo")
    worse: list[Message] = [{"role": "assistant", "content": "No idea."}]
    made = training_rows([row(TALK, rejected=worse), row(TALK)], tiny_model.template, config)
    (pair,) = made  # the row without a rejected answer is of no use
    assert isinstance(pair, PreferencePair)
    assert learned(tiny_model, pair.chosen) == "Second answer.<|eot_id|>"
    assert learned(tiny_model, pair.rejected) == "No idea.<|eot_id|>"
    begin = pair.chosen.mask.index(1)
    assert pair.chosen.ids[:begin] == pair.rejected.ids[:begin]
    early = row(TALK, rejected=[worse[0], TALK[2], {"role": "assistant", "content": "Nor now."}], shared_turns=1)
    (pair,) = training_rows([early], tiny_model.template, config)
    assert isinstance(pair, PreferencePair)
    assert learned(tiny_model, pair.chosen) == "First answer.<|eot_id|>Second answer.<|eot_id|>"
    assert learned(tiny_model, pair.rejected) == "No idea.<|eot_id|>Nor now.<|eot_id|>"


def test_a_thumb_row_carries_its_prompt_with_another_rows_answer(tiny_model: Model) -> None:
    other: list[Message] = [{"role": "user", "content": "Three?"}, {"role": "assistant", "content": "Third."}]
    rows = [row(TALK, thumb=True), row(other, thumb=False), row(other)]
    first, second = training_rows(rows, tiny_model.template, TrainConfig(loss="kto"))
    assert isinstance(first, UnpairedAnswer) and isinstance(second, UnpairedAnswer)
    assert (first.good, second.good) == (True, False)
    assert learned(tiny_model, first.answer) == "Second answer.<|eot_id|>"
    assert learned(tiny_model, first.other) == "Third.<|eot_id|>"
    begin = first.answer.mask.index(1)
    assert first.other.ids[:begin] == first.answer.ids[:begin]
    assert learned(tiny_model, second.other) == "Second answer.<|eot_id|>"


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_preferences_that_are_not_there_are_told(tiny_model: Model, loss: Any) -> None:
    with pytest.raises(UserError, match="No row has") as error:
        training_rows([row(TALK)], tiny_model.template, TrainConfig(loss=loss))
    assert "train.loss=supervised" in error.value.next_step


def test_rows_with_a_thumb_down_are_not_imitated(tiny_model: Model) -> None:
    assert len(training_rows([row(TALK, thumb=False), row(TALK, thumb=True)], tiny_model.template, TrainConfig())) == 1


def test_tokens_that_the_model_does_not_have_are_refused(tiny_model: Model) -> None:
    good = tiny_model.template.render(TALK)
    bad = Rendered([*good.ids[:-1], 128256], good.mask)
    check_rows([good], "training", 128256)
    with pytest.raises(UserError, match="Row 2 of the training split has the token 128256, and the model knows 128256"):
        check_rows([good, bad], "training", 128256)


def test_a_turn_of_half_the_weight_counts_half_in_the_loss(tiny_model: Any) -> None:
    from tuneloop.training.loss import mean_loss

    def row(*weights: float) -> Any:
        turns: list[Any] = []
        for path, weight in enumerate(weights):
            turns += [
                {"role": "user", "content": f"Letter {path}?"},
                {"role": "assistant", "content": ["red", "blue drawer"][path], "weight": weight},
            ]
        return tiny_model.template.render(turns)

    first, second, both = (mean_loss(tiny_model, [row(*w)], TrainConfig())[0] for w in ((1, 0), (0, 1), (1, 0.5)))
    n, m = (sum(1 for w in row(*weights).mask if w) for weights in ((1, 0), (0, 1)))
    assert both == pytest.approx((n * first + 0.5 * m * second) / (n + 0.5 * m), rel=1e-5)
