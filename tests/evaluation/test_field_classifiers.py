import json

import pytest

from tuneloop.evaluation.classical import MINILM, TFIDF
from tuneloop.evaluation.field_classifiers import field_classifier, fields_that_are_labels
from tuneloop.models.encoder import minilm_folder
from tuneloop.records.rows import Row

QUEUES = {"billing": "invoice", "delivery": "parcel", "returns": "refund"}


def row(i, queue, answer):
    text = f"About my {QUEUES[queue]}, number {i}: what happens now?"
    return Row(str(i), [{"role": "user", "content": text}, {"role": "assistant", "content": answer}])


def card(i, queue):
    return json.dumps({"ticket": {"queue": queue, "urgent": queue == "billing"}, "number": i, "place": None})


TRAIN = [row(i, queue, card(i, queue)) for i, queue in enumerate([*QUEUES, "billing"] * 10)]
LINES = [row(i, queue, f"Queue: {queue}\nNumber {i} is noted.") for i, queue in enumerate([*QUEUES, "billing"] * 10)]


@pytest.mark.parametrize("name", [TFIDF, MINILM])
def test_each_field_with_labels_is_chosen_and_the_others_have_their_usual_value(name):
    if name == MINILM and minilm_folder() is None:
        pytest.skip("MiniLM is not installed")
    fitted = field_classifier(name, TRAIN, fields_that_are_labels(TRAIN, {}))
    queries = [row(100, "returns", ""), row(101, "billing", "")]
    answers = [json.loads(answer.text) for answer in fitted.classical.system(queries)]
    assert [answer["ticket"] for answer in answers] == [
        {"queue": "returns", "urgent": False}, {"queue": "billing", "urgent": True},
    ]  # fmt: skip
    assert all(answer.keys() == {"ticket", "number", "place"} and answer["place"] is None for answer in answers)
    assert len({answer["number"] for answer in answers}) == 1, "a number is no label: all rows get the same"
    assert "ticket.queue, ticket.urgent" in fitted.note
    assert fitted.classical.name == name and fitted.classical.seconds > 0
    assert fitted.classical.system([]) == []


def test_a_field_of_a_pattern_is_chosen_within_an_answer_of_the_usual_form():
    fields = fields_that_are_labels(LINES, {"queue": r"Queue: (\w+)"})
    fitted = field_classifier(TFIDF, LINES, fields)
    first, second = (answer.text for answer in fitted.classical.system([row(9, "delivery", ""), row(8, "returns", "")]))
    assert first.startswith("Queue: delivery\nNumber ") and second.startswith("Queue: returns\nNumber ")


def test_rows_without_a_field_do_not_teach_it():
    some = [*TRAIN, *(row(i, "returns", json.dumps({"number": i, "place": None})) for i in range(50, 55))]
    fitted = field_classifier(TFIDF, some, fields_that_are_labels(some, {}))
    (answer,) = fitted.classical.system([row(100, "delivery", "")])
    assert json.loads(answer.text)["ticket"]["queue"] == "delivery"


@pytest.mark.parametrize(
    "answers",
    [["free text of any kind", "and more of it"] * 4, [json.dumps({"number": i}) for i in range(8)],
     [json.dumps({"queue": "billing"})] * 8],
    ids=["texts", "numbers", "one label"],
)  # fmt: skip
def test_without_fields_of_several_labels_there_is_nothing_to_choose(answers):
    rows = [row(i, "billing", answer) for i, answer in enumerate(answers)]
    assert fields_that_are_labels(rows, {}) is None
