"""Short texts are compared word by word."""

from __future__ import annotations

import numpy as np
import pytest

from tuneloop.data.config import DuplicatesConfig
from tuneloop.data.dedup.contamination import find_contamination, index_of
from tuneloop.data.dedup.duplicates import find_duplicates, preference
from tuneloop.data.dedup.minhash import (
    RowTexts,
    folded_words,
    one_edit_apart,
    prompt_similarity,
    same_meaning,
    shape_of,
    short_similarity,
    sketch,
    without_courtesies,
)

COPIES = [
    ("I lost my card", "I lost my crd"),
    ("I lost my card", "I losst my card"),
    ("I lost my card", "Please, I lost my card"),
    ("I lost my card", "i lost my card, thanks"),
    ("Are extra cards free?", "Hello there, are extra cards free? Thank you!"),
    ("Why did my top-up fail?", "Why did my top-up fial?"),
    ("What is my PIN?", "Waht is my PIN?"),
    ("How do I rest my passcode?", "How do I rest my pascode?"),
    ("Where is my refund", "hi please where is my refnud"),
    ("Don't you ship abroad?", "Don’t you ship abraod?"),
    ("Ich habe meine Karte verloren", "Ich habe meine Karte verlroen"),
    ("¿Dónde está mi tarjeta?", "¿Dónde está mi tarjtea?"),
]
OTHERS = [
    ("flights from Boston to Dallas", "flights from Dallas to Boston"),
    ("I need cheap flights from Boston to Berlin", "I need cheap flights from Berlin to Boston"),
    ("I can use my new card", "I cannot use my new card"),
    ("Can I use my card abroad", "Can't I use my card abroad"),
    ("My account was charged twice for it", "My account was not charged twice for it"),
    ("Where is my iPhone 14?", "Where is my iPhone 15?"),
    ("Send 114 EUR to Anna", "Send 14 EUR to Anna"),
    ("Please send 50 to Anna", "Please send 50 to Hanna"),
    ("Transfer all of it to Lukas", "Transfer all of it to Lucas"),
    ("I need USD, how do I convert it?", "I need AUD, how do I convert it?"),
    ("My top up", "My top-up failed"),
    ("I lost my card", "I cost my card"),
    ("I want to lend money", "I want to send money"),
    ("Please lock my card", "Please unlock my card"),
    ("Deliver it on May 11", "Deliver it on May 12"),
    ("Can you deliver it on monday afternoon", "Can you deliver it on sunday afternoon"),
    ("The price of the Galaxy S phone", "The price of the Galaxy A phone"),
    ("How do I transfer money to my account?", "How do I transfer money from my account?"),
]


def ask(*texts: str) -> list[RowTexts]:
    return [RowTexts(text, "", "") for text in texts]


def copies(*texts: str) -> dict[int, int]:
    rows = ask(*texts)
    config = DuplicatesConfig()
    found = find_duplicates(
        sketch(rows, config),
        lambda indices: [rows[i] for i in indices],
        config,
        rows=np.arange(len(rows)),
        order=preference("first", count=len(rows)),
    )
    return dict(zip(found.dropped.tolist(), found.of.tolist(), strict=True))


@pytest.mark.parametrize(("text", "other"), COPIES)
def test_a_typo_or_a_courtesy_makes_a_copy_and_a_leak(text: str, other: str) -> None:
    fillers = [pair[0] for pair in COPIES if pair[0] != text] + [text for pair in OTHERS for text in pair]
    found = copies(text, *(f for f in fillers if f != text), other)
    assert found.get(len([f for f in fillers if f != text]) + 1) == 0
    leak = find_contamination(ask(other), index_of(ask(text), DuplicatesConfig()))[0]
    assert leak is not None and leak.how == "near" and leak.similarity >= 0.8


@pytest.mark.parametrize(("text", "other"), OTHERS)
def test_another_meaning_is_neither_a_copy_nor_a_leak(text: str, other: str) -> None:
    assert copies(text, other) == {} == copies(other, text)
    assert find_contamination(ask(other), index_of(ask(text), DuplicatesConfig())) == [None]


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("What should I do once my card expires?", "Once my card expires, what should I do?"),
        ("How many disposable cards can you have?", "How many disposable card can you have?"),
        ("This exchange rate on my purchase is wrong.", "The exchange rate on my purchase is wrong."),
        ("Why didn`t it work today", "Why didn't it work today"),
    ],
)
def test_moved_clauses_and_other_forms_of_a_word_change_no_meaning(text: str, other: str) -> None:
    assert same_meaning(folded_words(text), folded_words(other), (text, other))


def test_longer_texts_are_left_to_jaccard_similarity() -> None:
    text = "my order number five has not come and I would like to know where it is now"
    other = text.replace("order", "ordre")
    assert short_similarity(folded_words(text), folded_words(other), (text, other)) == 0.0


LONG = "when I was at the bank in {} last week they told me that my new card would {} be sent to {} before the end of the month"


@pytest.mark.parametrize(
    ("item", "other", "same"),
    [
        (("Oslo", "surely", "Rome"), ("Rome", "surely", "Oslo"), False),
        (("Oslo", "surely", "Rome"), ("Oslo", "not", "Rome"), False),
        (("Oslo", "not", "Rome"), ("Oslo", "nto", "Rome"), True),
        (("Oslo", "first", "Rome"), ("Oslo", "last", "Rome"), False),
        (("Oslo", "surely", "Rome"), ("Oslo", "surely", "Roma"), True),
        (("Oslo", "surely", "4 Rome"), ("Oslo", "surely", "5 Rome"), True),
    ],
)
def test_longer_texts_differ_in_a_negation_an_opposite_or_exchanged_parts_too(
    item: tuple[str, str, str], other: tuple[str, str, str], same: bool
) -> None:
    assert copies(LONG.format(*item), LONG.format(*other)) == ({1: 0} if same else {})


def test_a_text_of_courtesies_alone_stays_as_it_is() -> None:
    assert without_courtesies(["hello"]) == ["hello"]
    assert without_courtesies(["good", "morning", "where", "is", "it", "please", "many", "thanks"]) == [
        "where",
        "is",
        "it",
    ]
    assert copies("Hello", "Hi", "Thanks", "please") == {}


def test_similarity_falls_with_each_edit() -> None:
    def similarity(text: str, other: str) -> float:
        return prompt_similarity(*map(shape_of, ask(text, other)))

    assert similarity("I lost my card", "I lost my crd") == pytest.approx(1 - 1 / 11)
    assert similarity("I lost my card", "please I lost my crd") == pytest.approx(1 - 2 / 11)


@pytest.mark.parametrize(
    ("u", "v", "apart"),
    [
        ("card", "crd", True),
        ("card", "ccard", True),
        ("card", "cadr", True),
        ("card", "cord", True),
        ("card", "card", False),
        ("card", "dcar", False),
        ("card", "cd", False),
        ("ab", "ba", True),
        ("a", "b", True),
        ("card", "cards", True),
        ("crad", "card", True),
        ("abcd", "badc", False),
    ],
)
def test_one_edit(u: str, v: str, apart: bool) -> None:
    assert one_edit_apart(u, v) is apart and one_edit_apart(v, u) is apart
