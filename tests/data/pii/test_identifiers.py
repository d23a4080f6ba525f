"""Numbers of persons, cards and accounts are known by their form and their check digits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.data.config import PersonalConfig
from tuneloop.data.pii import identifiers
from tuneloop.data.pii.redact import find, redact

CONFIG = PersonalConfig()
KEY = b"a key for tests"


def redacted(text: str, config: PersonalConfig = CONFIG, field: str = "") -> str:
    return redact(text, find(text, config, field), config, KEY)


FREE_IDS = [
    "AB123456C", "RSSMRA85T10A562S", "HEGG560427MVZRRL04", "X1234567L", "S1234567D", "A123456(3)", "131052-308T",
    "11010519491231002X", "1 85 05 78 006 084 91", "111.444.777-35", "85.07.30-033.28", "756.9217.0769.85",
    "12.345.678-5", "112-233-445 95", "811228-9874", "800101 5009 087", "2341 2341 2346",
]  # fmt: skip


NAMED_IDS = [
    ("Steuer-ID", "36574261809"), ("BSN", "111222333"), ("PESEL", "44051401359"), ("NIF", "501964843"), ("NHS", "943 476 5919"),
    ("SIN", "130 692 544"), ("TFN", "123 456 782"), ("TC kimlik", "10000000146"), ("fødselsnummer", "15108695088"), ("OIB", "33392005961"),
    ("EGN", "7523169263"), ("AMKA", "01013099997"), ("my number", "123456789018"), ("SVNR", "1237010180"), ("isikukood", "37605030299"),
    ("ИНН", "500100732259"), ("PPSN", "1234567T"), ("taiwan", "A123456789"),
]  # fmt: skip


def luhn_check_digit(digits: str) -> str:
    return next(d for d in "0123456789" if identifiers.luhn(digits + d))


@pytest.mark.parametrize("value", FREE_IDS)
def test_ids_with_a_form_of_their_own(value: str) -> None:
    assert identifiers.is_national_id(value)
    path = max(i for i, c in enumerate(value) if c.isdigit())
    wrong = value[:path] + str((int(value[path]) + 1) % 10) + value[path + 1 :]
    if value != "AB123456C":  # has no check digit
        assert not identifiers.is_national_id(wrong)


@pytest.mark.parametrize(("word", "value"), NAMED_IDS)
def test_ids_that_need_a_word_beside_them(word: str, value: str) -> None:
    assert redacted(f"{word}: {value}") == f"{word}: <NATIONAL_ID>"
    assert redacted(f"it says {value} there") in (f"it says {value} there", "it says <PHONE> there")


def test_a_wrong_digit_or_a_swap_makes_no_id() -> None:
    right = "234123412346"
    spaced = "{:.4} {:.4} {:.4}".format
    assert identifiers.is_national_id(spaced(right[:4], right[4:8], right[8:]))
    for i, c in enumerate(right):
        wrongs = [right[:i] + d + right[i + 1 :] for d in "0123456789" if d != c]
        swapped = right[:i] + right[i : i + 2][::-1] + right[i + 2 :]
        for wrong in [*wrongs, *([swapped] if swapped != right else [])]:
            assert not identifiers.is_national_id(spaced(wrong[:4], wrong[4:8], wrong[8:]))


def test_a_foreigners_number_in_belgium_and_sweden_and_a_recent_one_in_korea_count() -> None:
    assert identifiers.is_national_id("98.47.28-997.65")  # the month is 40 higher
    assert identifiers.is_national_id("701063-2391")  # the day is 60 higher
    assert identifiers.is_national_id("210315-3123456")  # no check digit since October 2020
    assert not identifiers.is_national_id("211315-3123456")


@given(st.from_regex(r"[0-9]{12,19}", fullmatch=True), st.sampled_from(["", " ", "-"]))
def test_digits_that_fail_luhn_are_no_card(digits: str, separator: str) -> None:
    if identifiers.luhn(digits):
        digits = digits[:-1] + str((int(digits[-1]) + 1) % 10)
    if separator:  # longer ones may be a card with its security code
        digits = digits[:16]
    text = separator.join(digits[i : i + 4] for i in range(0, len(digits), 4))
    assert identifiers.luhn(digits) or "CREDIT_CARD" not in {f.kind for f in find(f"card {text} here", CONFIG)}


@given(st.from_regex(r"4[0-9]{14}", fullmatch=True), st.sampled_from(["", " ", "-"]))
def test_every_card_of_a_known_range_goes(digits: str, separator: str) -> None:
    digits += luhn_check_digit(digits)
    text = separator.join(digits[i : i + 4] for i in range(0, 16, 4))
    assert redacted(f"paid with {text} today") == "paid with <CREDIT_CARD> today"


@given(
    st.sampled_from(sorted(identifiers.IBAN_LENGTHS)), st.text("0123456789", min_size=33, max_size=33), st.booleans()
)
def test_ibans_are_told_by_their_check_digits(country: str, digits: str, spaced: bool) -> None:
    body = digits[: identifiers.IBAN_LENGTHS[country] - 4]
    number = int("".join(str(int(c, 36)) for c in body + country + "00"))
    for check, right in ((98 - number % 97, True), ((98 - number % 97) % 97 + 1, False)):
        compact = f"{country}{check:02d}{body}"
        text = " ".join(compact[i : i + 4] for i in range(0, len(compact), 4)) if spaced else compact
        kinds = [f.kind for f in find(f"refund to {text} please", CONFIG)]
        assert kinds == (["IBAN"] if right else []) or (not right and identifiers.is_iban(compact))
