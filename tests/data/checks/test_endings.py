"""Which answers are cut off, by how the others of a data set end: `Endings` of `data/checks/overview.py`."""

from __future__ import annotations

import pytest

from tuneloop.data.checks.overview import Endings, flags
from tuneloop.records.rows import Message

LEARNT = Endings.of(
    [
        f"The parcel number {i} is on its way and will be there by {day}."
        for i, day in enumerate(["Monday", "Tuesday", "Friday"] * 30)
    ]
)
FREE = Endings.of(
    [f"ok {word} done" for word in ("red", "blue", "green", "grey")] * 30
)  # hardly any end marks: nothing learnt


def flags_of(*answers: str) -> tuple[str, ...]:
    turns: list[Message] = []
    for answer in answers:
        turns += [{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": answer}]
    return flags(turns, None)


@pytest.mark.parametrize(
    "answer",
    [
        "I don't seem to have any information about",
        "Der Versand dauert zwei Tage und die",
        "Vous pouvez changer la date avec",
        "Puede cambiar la fecha de entrega para",
        "Può cambiare la data della",
        "You can choose tea, coffee,",
    ],
)
def test_words_that_go_on_show_a_cut_in_any_language(answer: str) -> None:
    assert FREE.is_cut(answer)


@pytest.mark.parametrize(
    "answer", ["Okay, it will be ready soon", "ja das ist richtig so", "1. Lion\n2. Giraffe\n3. Zebra"]
)
def test_whole_answers_without_an_end_mark_are_left_alone(answer: str) -> None:
    assert not FREE.is_cut(answer)


def test_among_answers_that_all_end_with_a_mark_a_sentence_without_one_is_cut_but_no_list_or_link() -> None:
    assert LEARNT.is_cut("The parcel is still at the sorting centre near you")
    assert not LEARNT.is_cut("Animals of the plains:\n1. Lion\n2. Giraffe\n3. Old grey elephant of the north plain")
    assert not LEARNT.is_cut("You find all of it at https://example.org/help")


def test_the_last_item_of_a_list_of_sentences_is_cut() -> None:
    steps = "1. Open the app.\n2. Choose the card.\n3. Press the button on the"
    assert FREE.is_cut(steps) and not FREE.is_cut(steps + " left.")


def test_chinese_answers_are_judged_by_each_other() -> None:
    learnt = Endings.of([f"您的第{i}号包裹已经发出,预计两天之内送达。" for i in range(60)])
    assert learnt.is_cut("您的包裹已经发出,预计两天之内送") and not learnt.is_cut("您的包裹已经发出,预计两天之内送达。")


@pytest.mark.parametrize(
    "answer",
    [
        "Steps:\n- open it\n- close it\n-",
        "First:\n1. Open it.\n2. Close it.\n3.",
        'I call {"name": "get_menu", "args": {"query"',
        'She said "we will be there',
        "Use this:\n```python\nprint(1)",
    ],
)
def test_open_lists_calls_quotes_and_fences_are_cut_off(answer: str) -> None:
    assert "cut_off" in flags_of(answer)


def test_a_number_or_quote_at_the_end_is_no_open_list_or_quotation() -> None:
    assert (
        flags_of("The sum is:\n42.") == () == flags_of('A screen of 24" fits you best.') == flags_of('He said "yes".')
    )


def test_an_answer_in_the_middle_of_a_chat_counts_as_well() -> None:
    assert "cut_off" in flags_of("Use this:\n```python\nprint(1)", "That is all.")
    assert "open_end" in flags_of("I am going to the", "That is all.")
