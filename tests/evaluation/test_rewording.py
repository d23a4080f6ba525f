"""Rewordings keep what a text means: numbers, ids, addresses, code, quotes and labels stay, and the same row is reworded alike."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.evaluation.rewording import GREETINGS, KINDS, THANKS, fields_of, looks_like_code, rewordings

TICKET = (
    'Why was my transfer of $1,250.00 to Anna (order AB-1034, ref 77_x) declined? The page says "Payment Not Allowed" and '
    "https://bank.example/Help?id=5 does not explain `Error_Code`. Write to Me@Example.org or ask for the IBAN again."
)
KEPT = ["$1,250.00", "AB-1034,", "77_x", '"Payment Not Allowed"', "https://bank.example/Help?id=5", "`Error_Code`",
        "Me@Example.org", "IBAN"]  # fmt: skip

WORDS = st.sampled_from(
    ["The", "delivery", "Invoice", "was", "late", "B", "iPhone", "NASA", "12.5", "a_b", "x@y.org", "http://z.de/Q", '"As Is"',
     "`Foo()`", "transferred", "Müller", "é", "中文", "question?", "end.", "(maybe)", "don't", "{name}", "<b>", "\n", ";"]
)  # fmt: skip
TEXTS = st.lists(WORDS, min_size=1, max_size=25).map(" ".join) | st.text(max_size=60)


def fixed(text: str) -> list[str]:
    """Everything in a text that may not change."""
    quoted = re.findall(r'"[^"\n]*"|`[^`\n]*`|\{\w+\}|<\w>', text)
    return quoted + [w for w in text.split() if re.search(r"[\d_@/]|[A-Z]{2}|[a-z][A-Z]", w)]


@pytest.mark.parametrize("seed", ["a", "b", "c"])
def test_numbers_ids_addresses_code_and_quotes_stay(seed: str) -> None:
    found = rewordings(TICKET, seed)
    assert {kind for kind, _ in found} >= {"greeting", "thanks", "case", "punctuation", "whitespace", "typo"}
    for kind, text in found:
        assert all(part in text for part in KEPT), kind


@given(TEXTS, st.integers(0, 5).map(str))
def test_what_carries_meaning_by_its_spelling_stays(text: str, seed: str) -> None:
    for kind, new in rewordings(text, seed):
        if kind == "field order":
            continue
        missing = Counter(fixed(text)) - Counter(fixed(new))
        assert not {m for m in missing if m.rstrip(".!?") not in new}, (kind, new)


@given(TEXTS, st.integers(0, 5).map(str))
def test_each_kind_changes_what_it_says_and_no_more(text: str, seed: str) -> None:
    def letters(of: str) -> str:
        return re.sub(r"[\s.!?]+", "", of).lower()

    found = rewordings(text, seed)
    assert found == rewordings(text, seed), "the same row is reworded alike"
    assert len({new for _, new in found} | {text}) == len(found) + 1
    assert len({kind for kind, _ in found}) == len(found)
    for kind, new in found:
        if kind in ("case", "punctuation", "whitespace"):
            assert letters(new) == letters(text)
        elif kind == "greeting":
            assert new.endswith(text.lstrip()) and new.removesuffix(text.lstrip()).strip() in GREETINGS
        elif kind == "thanks":
            assert new.startswith(text.rstrip()) and new.removeprefix(text.rstrip()).strip() in THANKS
        elif kind == "typo":
            changed = [(a, b) for a, b in zip(text.split(), new.split(), strict=True) if a != b]
            assert 1 <= len(changed) <= 3 and all(sorted(a) == sorted(b) and a[0] == b[0] for a, b in changed)
        elif kind == "field order":
            assert sorted(new.split("\n")) == sorted(text.strip().split("\n")) or json.loads(new) == json.loads(text)


def test_a_document_is_greeted_in_a_paragraph_of_its_own() -> None:
    text = "Anna: where is the report?\nBert: on your desk."
    found = dict(rewordings(text, "1"))
    assert found["greeting"].partition("\n\n")[2] == text == found["thanks"].rpartition("\n\n")[0]


def test_rows_are_reworded_differently() -> None:
    assert len({tuple(rewordings(TICKET, str(seed))) for seed in range(10)}) > 5


def test_labels_in_a_text_stay_as_they_are() -> None:
    text = "Answer with Billing Question, delivery or Refunded Payment."
    for _, new in rewordings(text, "1", keep=["Billing Question", "Delivery", "refunded payment"]):
        assert "Billing Question" in new and "delivery" in new and "Refunded Payment" in new


def test_fields_change_places_and_keep_their_values() -> None:
    text = "Name: Anna Bell\nCity: Bonn\nCase: 1,204"
    found = dict(rewordings(text, "1"))
    assert sorted(found["field order"].split("\n")) == sorted(text.split("\n")) and found["field order"] != text
    assert "greeting" not in found and "thanks" not in found
    written = json.dumps({"b": 1.0, "a": {"z": [1, 2]}, "c": "ü"}, ensure_ascii=False, indent=2)
    mixed = dict(rewordings(written, "2"))["field order"]
    assert json.loads(mixed) == json.loads(written) and list(json.loads(mixed)) != ["b", "a", "c"]
    assert fields_of('{"a": 1.10, "b": 2}') is None, "written again its 1.10 would be 1.1"
    assert fields_of("Name: Anna\nand more text") is None
    assert fields_of("Note: one\nNote: two\nNote: three") is None
    assert fields_of("Step 1: mix\nStep 2: stir\nStep 3: bake") is None, "their order is what they mean"
    assert fields_of("Anna: Where is it?\nBert: On your desk.\nCarl: Is it?") is None, "people that talk"


@pytest.mark.parametrize(
    "code",
    ["def f(x):\n    return x", "SELECT name FROM people", "int main() {\n  return 0;\n}", "import os\nprint(1)"],
)
def test_programs_are_not_reworded(code: str) -> None:
    assert looks_like_code(code) and rewordings(code, "1") == []


@pytest.mark.parametrize("text", ["", "  \n", "x" * 30_000])
def test_nothing_and_very_long_texts_are_not_reworded(text: str) -> None:
    assert rewordings(text, "1") == []


def test_other_languages_get_no_english_words() -> None:
    kinds = {kind for kind, _ in rewordings("Was ist in dem Paket? Ich erwarte es seit Tagen.", "1")}
    assert kinds == {"case", "punctuation", "whitespace", "typo"}


def test_a_typo_never_makes_another_word_of_a_pair() -> None:
    for seed in range(50):
        assert KINDS["typo"]("the casual united silver", random.Random(seed), ()) is None


def test_hostile_texts_take_no_time() -> None:
    for piece in ("“", "<", "'a ", "ab" * 5, "\n", "中", '"', "{", "```", "a.b"):
        rewordings((piece * 20_000)[:20_000], "1")
