import importlib.util
import json
import math
import random

import pytest

from places import DATA_SETS
from tuneloop.core.errors import UserError
from tuneloop.evaluation.alternatives.classifiers import (
    MINILM,
    TFIDF,
    field_classifier,
    fields_that_are_labels,
    label_classifier,
)
from tuneloop.models.encoder import minilm_folder
from tuneloop.records.rows import Row

BANKING = DATA_SETS / "banking77"


def row(i, text, label):
    return Row(str(i), [{"role": "user", "content": text}, {"role": "assistant", "content": label or ""}], label)


WORDS = {"fruit": ["apple", "pear", "plum", "grape"], "tool": ["hammer", "saw", "drill", "wrench"]}
TRAIN = [row(i, f"I want a {WORDS[label][i // 2 % 4]} today", label) for i, label in enumerate(["fruit", "tool"] * 20)]
HOSTILE = [row("e", "", "fruit"), row("s", "\ud800 pear", "fruit"), row("m", "saw " * 250_000, "tool")]


def makers():
    yield TFIDF
    if minilm_folder() is not None:
        yield MINILM


@pytest.mark.parametrize("name", list(makers()))
def test_an_alternative_learns_and_gives_log_probabilities(name):
    trained = label_classifier(name, TRAIN)
    questions = [row("a", "a pear please", "fruit"), row("b", "where is the drill", "tool"), *HOSTILE]
    answers = trained.system(questions)
    assert [a.text for a in answers][:2] == ["fruit", "tool"]
    assert len(answers) == len(questions)
    for answer in answers:
        assert sum(math.exp(s) for s in answer.label_scores.values()) == pytest.approx(1, abs=1e-4)
        assert max(answer.label_scores, key=answer.label_scores.get) == answer.text
    assert trained.seconds > 0
    assert trained.system([]) == []


def several(i, text, labels):
    turns = [{"role": "user", "content": " ".join(text)}, {"role": "assistant", "content": "x"}]
    return Row(str(i), turns, ", ".join(labels) or "none", meta={"labels": labels or ["none"]})


def test_rows_with_several_labels_get_a_decision_a_label_also_in_sets_never_seen():
    sets = [["fruit"], ["tool"], ["big"], ["big", "fruit"], []]
    text = {"fruit": "apple", "tool": "hammer", "big": "huge"}
    train = [several(i, [text[w] for w in sets[i % 5]] + ["today"], sets[i % 5]) for i in range(60)]
    answer = label_classifier(TFIDF, train).system
    asked = [several("a", ["a", "huge", "hammer"], []), several("b", ["nothing", "today"], []), train[3]]
    assert [a.text for a in answer(asked)] == ["big, tool", "none", "big, fruit"]
    never_empty = label_classifier(TFIDF, [row for row in train if row.label != "none"]).system
    assert all(a.text not in ("", "none") for a in never_empty(asked))
    assert answer([]) == []


def test_training_twice_gives_the_same():
    item, two = label_classifier(TFIDF, TRAIN), label_classifier(TFIDF, TRAIN)
    assert item.system(HOSTILE) == two.system(HOSTILE)


def test_one_label_or_no_words_is_a_user_error():
    with pytest.raises(UserError, match="two labels"):
        label_classifier(TFIDF, [row(1, "x", "only"), row(2, "y", None)])
    with pytest.raises(UserError, match="no words"):
        label_classifier(TFIDF, [row(1, "", "a"), row(2, "", "b")])


def test_without_the_package_there_is_no_embedding_system(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setenv("TUNELOOP_CACHE", str(tmp_path))  # where it may have been fetched
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "minilm" in name else find(name))
    assert label_classifier(MINILM, TRAIN) is None


@pytest.mark.skipif(not BANKING.is_dir(), reason="banking77 isn't beside the repository (../shared/data)")
def test_real_intents_are_told_apart():
    def read(name):
        records = [json.loads(line) for line in (BANKING / name).read_text(encoding="utf-8").splitlines()]
        return [row(i, r["text"], r["label"]) for i, r in enumerate(records)]

    train, test = read("train.jsonl"), read("test.jsonl")
    labels = set(sorted({r.label for r in train})[:10])
    train = [r for r in train if r.label in labels]
    test = random.Random(0).sample([r for r in test if r.label in labels], 150)
    answers = label_classifier(TFIDF, train).system(test)
    assert sum(a.text == r.label for a, r in zip(answers, test, strict=True)) / len(test) > 0.9


# --- answers with fields ---------------------------------------------------------------------------

QUEUES = {"billing": "invoice", "delivery": "parcel", "returns": "refund"}


def request(i, queue, answer):
    text = f"About my {QUEUES[queue]}, number {i}: what happens now?"
    return Row(str(i), [{"role": "user", "content": text}, {"role": "assistant", "content": answer}])


def card(i, queue):
    return json.dumps({"ticket": {"queue": queue, "urgent": queue == "billing"}, "number": i, "place": None})


CARDS = [request(i, queue, card(i, queue)) for i, queue in enumerate([*QUEUES, "billing"] * 10)]
LINES = [
    request(i, queue, f"Queue: {queue}\nNumber {i} is noted.") for i, queue in enumerate([*QUEUES, "billing"] * 10)
]


@pytest.mark.parametrize("name", [TFIDF, MINILM])
def test_each_field_with_labels_is_chosen_and_the_others_have_their_usual_value(name):
    if name == MINILM and minilm_folder() is None:
        pytest.skip("MiniLM is not installed")
    fitted = field_classifier(name, CARDS, fields_that_are_labels(CARDS, {}))
    queries = [request(100, "returns", ""), request(101, "billing", "")]
    answers = [json.loads(answer.text) for answer in fitted.system(queries)]
    assert [answer["ticket"] for answer in answers] == [
        {"queue": "returns", "urgent": False}, {"queue": "billing", "urgent": True},
    ]  # fmt: skip
    assert all(answer.keys() == {"ticket", "number", "place"} and answer["place"] is None for answer in answers)
    assert len({answer["number"] for answer in answers}) == 1, "a number is no label: all rows get the same"
    assert "ticket.queue, ticket.urgent" in fitted.note
    assert fitted.name == name and fitted.seconds > 0
    assert fitted.system([]) == []


def test_a_field_of_a_pattern_is_chosen_within_an_answer_of_the_usual_form():
    fields = fields_that_are_labels(LINES, {"queue": r"Queue: (\w+)"})
    fitted = field_classifier(TFIDF, LINES, fields)
    first, second = (answer.text for answer in fitted.system([request(9, "delivery", ""), request(8, "returns", "")]))
    assert first.startswith("Queue: delivery\nNumber ") and second.startswith("Queue: returns\nNumber ")


def test_rows_without_a_field_do_not_teach_it():
    some = [*CARDS, *(request(i, "returns", json.dumps({"number": i, "place": None})) for i in range(50, 55))]
    fitted = field_classifier(TFIDF, some, fields_that_are_labels(some, {}))
    (answer,) = fitted.system([request(100, "delivery", "")])
    assert json.loads(answer.text)["ticket"]["queue"] == "delivery"


@pytest.mark.parametrize(
    "answers",
    [["free text of any kind", "and more of it"] * 4, [json.dumps({"number": i}) for i in range(8)],
     [json.dumps({"queue": "billing"})] * 8],
    ids=["texts", "numbers", "one label"],
)  # fmt: skip
def test_without_fields_of_several_labels_there_is_nothing_to_choose(answers):
    rows = [request(i, "billing", answer) for i, answer in enumerate(answers)]
    assert fields_that_are_labels(rows, {}) is None
