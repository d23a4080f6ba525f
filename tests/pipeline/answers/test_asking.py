"""Who is compared, and that each one is asked fairly: examples fit the context, calibration subtracts what it should."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from manifests import manifest_of

from tuneloop.core.errors import UserError
from tuneloop.evaluation.config import BaselinesConfig, EvaluateConfig
from tuneloop.inference.labels import label_ids, label_trie
from tuneloop.inference.local.target import LocalTarget
from tuneloop.pipeline.answers.asking import CONTENT_FREE, Asking, ask, few_shot_examples, longest_answer, uses_choice
from tuneloop.pipeline.answers.prompt import prompt_turns
from tuneloop.records.rows import Dataset, Row

LABELS = ["delivery", "delivery delay", "refund"]
CHOICE = EvaluateConfig()
SHORT = EvaluateConfig(max_new_tokens=3)


def row(number: int, split: str, *, text: int = 4, label: str | None = None, task: str = "classification") -> Row:
    name = label or LABELS[number % 3]
    answer = name if task == "classification" else f"{name}, said {number} times"
    return Row(
        id=f"{split}-{number}",
        messages=[
            {"role": "system", "content": "Sort the ticket."},
            {"role": "user", "content": f"{split} {number} " + "box " * text},
            {"role": "assistant", "content": answer},
        ],
        label=name if task == "classification" else None,
        meta={"source": "x", "line": number},
    )


def dataset(task: str = "classification", train: list[Row] | None = None) -> Dataset:
    return Dataset(
        "nowhere",
        manifest_of(task=task, labels=LABELS if task == "classification" else None),
        train or [row(i, "train", task=task) for i in range(12)],
        [],
        [row(i, "test", task=task) for i in range(4)],
    )


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    from tuneloop.models.load import load_model

    return load_model(str(tiny_llama), dtype="float32")


def with_context(model: Any, tokens: int) -> Any:
    return dataclasses.replace(model, config={**model.config, "max_position_embeddings": tokens})


# --- choice and calibration ---------------------------------------------------------------------------


def test_choices_come_from_the_labels_and_free_answers_elsewhere() -> None:
    assert uses_choice(dataset(), CHOICE)
    assert not uses_choice(dataset(), EvaluateConfig(answer="generate"))
    assert not uses_choice(dataset("generation"), CHOICE)
    with pytest.raises(UserError, match="needs labels"):
        uses_choice(dataset("generation"), EvaluateConfig(answer="choice"))


def test_rows_with_several_labels_are_answered_freely_unless_choice_is_asked_for() -> None:
    several = dataset()
    for number, item in enumerate(several.test):
        item.meta["labels"] = LABELS[: 1 + number % 2]
    assert not uses_choice(several, EvaluateConfig())
    assert uses_choice(several, EvaluateConfig(answer="choice"))


def test_every_choice_is_a_label_with_a_score_for_each(model: Any) -> None:
    data = dataset()
    answers = ask(LocalTarget.of(model), data, data.test, CHOICE)[""].completions
    assert len(answers) == len(data.test)
    for answer in answers:
        assert set(answer.label_scores or {}) == set(LABELS)
        assert answer.text == max(answer.label_scores or {}, key=(answer.label_scores or {}).__getitem__)


def test_calibration_subtracts_what_a_row_without_content_scores(model: Any) -> None:
    data = dataset()
    blank = dataclasses.replace(
        data.test[0],
        messages=[data.test[0].messages[0], {"role": "user", "content": CONTENT_FREE}, data.test[0].messages[2]],
    )
    asked = ask(LocalTarget.of(model), data, data.test, CHOICE, Asking(with_calibrated=True))
    offset = ask(LocalTarget.of(model), data, [blank], CHOICE)[""].completions[0].label_scores or {}
    assert len({round(value, 3) for value in offset.values()}) > 1, "the model prefers some labels"
    for raw, calibrated in zip(asked[""].completions, asked["calibrated"].completions, strict=True):
        expected = {label: (raw.label_scores or {})[label] - offset[label] for label in LABELS}
        assert calibrated.label_scores == pytest.approx(expected, abs=1e-4)
        assert calibrated.text == max(expected, key=expected.__getitem__)


def test_a_row_without_content_has_no_preference_after_calibration(model: Any) -> None:
    blank = dataclasses.replace(
        row(0, "test", text=0),
        messages=[{"role": "user", "content": CONTENT_FREE}, {"role": "assistant", "content": "refund"}],
    )
    scores = (
        ask(LocalTarget.of(model), dataset(), [blank], CHOICE, Asking(with_calibrated=True))["calibrated"]
        .completions[0]
        .label_scores
        or {}
    )
    assert all(abs(score) < 1e-4 for score in scores.values())


def test_calibration_with_examples_keeps_the_examples(model: Any) -> None:
    data = dataset()
    plain = (
        ask(LocalTarget.of(model), data, data.test[:1], CHOICE, Asking(with_calibrated=True))["calibrated"]
        .completions[0]
        .label_scores
    )
    shown = (
        ask(LocalTarget.of(model), data, data.test[:1], CHOICE, Asking(data.train[:2], with_calibrated=True))[
            "calibrated"
        ]
        .completions[0]
        .label_scores
    )
    assert plain != shown


def test_labels_are_the_tokens_that_training_teaches(model: Any) -> None:
    data = dataset()
    trie = label_trie(LABELS, label_ids(model.template, LABELS, data.test[0].prompt))
    assert trie == LocalTarget.of(model).label_tree(LABELS), "what stands before an answer does not matter"
    assert trie.labels == tuple(LABELS)
    for number, label in enumerate(LABELS):
        tokens = [token for of, _, token in trie.edges if of == number]
        rendered = model.template.render([*data.test[0].prompt, {"role": "assistant", "content": label}])
        assert tokens == [token for token, learned in zip(rendered.ids, rendered.mask, strict=True) if learned]
        assert model.template.tokenizer.decode(tokens, skip_special_tokens=False) == f"{label}<|eot_id|>"


# --- examples in the prompt ---------------------------------------------------------------------------


def test_auto_is_one_example_a_label_and_else_four(model: Any) -> None:
    for task, count in (("classification", 3), ("generation", 4)):
        data = dataset(task)
        examples, warning = few_shot_examples(model, data, data.test, BaselinesConfig(), CHOICE, 0)
        assert len(examples) == count and warning is None
        if task == "classification":
            assert {example.label for example in examples} == set(LABELS)


def test_auto_shows_forty_examples_of_the_most_frequent_labels_where_there_are_many(model: Any) -> None:
    train = [row(i, "train", label=f"label {i % 90 if i < 180 else i % 45}") for i in range(270)]
    data = dataset("classification", train)
    data = replace(data, manifest=manifest_of(task="classification", labels=sorted({str(r.label) for r in train})))
    examples, warning = few_shot_examples(model, data, data.test, BaselinesConfig(), CHOICE, 0)
    assert len(examples) == 40 and warning is None
    assert {int(str(example.label).split()[1]) for example in examples} <= set(range(45))


def test_examples_come_from_the_training_split(model: Any) -> None:
    data = dataset()
    examples, _ = few_shot_examples(model, data, data.test, BaselinesConfig(few_shot=9), CHOICE, 0)
    assert len(examples) == 9
    assert {example.id for example in examples} <= {row.id for row in data.train}


@pytest.mark.parametrize("context", [100, 150, 250, 400])
def test_examples_prompt_and_answer_fit_the_context(model: Any, context: int) -> None:
    data = dataset("generation", [row(i, "train", text=10 * i, task="generation") for i in range(8)])
    small = with_context(model, context)
    examples, warning = few_shot_examples(small, data, data.test, BaselinesConfig(few_shot=8), SHORT, 0)
    assert len(examples) < 8
    assert warning and f"Only {len(examples)} of 8" in warning
    for test_row in data.test:
        prompt = model.template.prompt_ids(prompt_turns(test_row, examples=examples), test_row.tools)
        assert len(prompt) + longest_answer(small.template, data, SHORT) <= context


def test_a_context_with_room_for_none_gives_none(model: Any) -> None:
    data = dataset()
    examples, warning = few_shot_examples(with_context(model, 40), data, data.test, BaselinesConfig(), CHOICE, 0)
    assert examples == [] and warning and "Only 0 of 3" in warning


def test_the_same_seed_shows_the_same_examples(model: Any) -> None:
    data = dataset()

    def shown(seed: int) -> list[str]:
        return [e.id for e in few_shot_examples(model, data, data.test, BaselinesConfig(few_shot=4), CHOICE, seed)[0]]

    assert shown(1) == shown(1)
    assert len({tuple(shown(seed)) for seed in range(5)}) > 1


# --- free answers -------------------------------------------------------------------------------------


def test_the_longest_answer_follows_the_references(model: Any) -> None:
    train = [row(i, "train", task="generation") for i in range(99)]
    endless = dataclasses.replace(train[0], messages=[*train[0].prompt, {"role": "assistant", "content": "so " * 3000}])
    usual = longest_answer(model.template, dataset("generation", train), CHOICE)
    assert 8 <= usual < 40
    assert longest_answer(model.template, dataset("generation", [*train, endless]), CHOICE) == usual, (
        "one endless reference"
    )
    assert longest_answer(model.template, dataset("generation", [endless]), CHOICE) == 1024
    assert longest_answer(model.template, dataset("generation", train), SHORT) == 3


def test_free_answers_come_with_the_perplexity_of_the_references(model: Any) -> None:
    data = dataset("generation")
    asked = ask(LocalTarget.of(model), data, data.test, SHORT)[""]
    assert asked.perplexity is not None and asked.perplexity > 1
    assert 0 < asked.tokens <= 3 * len(data.test)
    assert asked.prompt_tokens == sum(len(model.template.prompt_ids(r.prompt, r.tools)) for r in data.test)
    assert ask(LocalTarget.of(model), data, data.test, SHORT, Asking(data.train[:1]))[""].perplexity is None
