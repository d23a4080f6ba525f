"""Which rows are about a person: a text is found however it is written, and wherever it stands in a row."""

from __future__ import annotations

import pytest
from prepared import row

from tuneloop.core.errors import UserError
from tuneloop.data.erase import Matcher


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("anna berg", "Dear ANNA\n  Berg!"),
        ("Müller", "mu\u0308ller"),
        ("Müller", "Frau MÃ¼ller"),
        ("Müller", "M\\u00fcller"),
        ("O'Brien & Co", "O&#x27;Brien &amp; Co"),
        ("anna@example.org", "ａnna@example.org"),
        ("annaberg", "anna\u200bberg"),
        ("STRASSE", "Hauptstraße"),
    ],
)
def test_a_text_is_found_however_it_is_written(pattern: str, text: str) -> None:
    assert Matcher(pattern).finds({"text": text}) is not None
    assert Matcher(pattern).finds({"text": "someone else"}) is None


def test_where_a_row_comes_from_is_no_text_of_it() -> None:
    item = row("hello", line=77).to_json()
    assert Matcher("in.jsonl").finds(item, item["id"]) is None
    assert Matcher(item["id"]).finds(item, item["id"]) is None
    assert Matcher("user").finds(item, item["id"]) is None, "roles are no texts"


def test_a_column_has_the_value_or_not() -> None:
    item = row("12 parcels", user_id=12, tags=["vip", "new"], customer="u1").to_json()
    for pattern in ("user_id=12", "USER_ID = 12", "meta.user_id=12", "tags=VIP", "customer=U1", "label=late"):
        assert Matcher(pattern).finds(item) is not None, pattern
    for pattern in ("user_id=1", "user_id=123", "tags=vi", "other=12", "customer=u"):
        assert Matcher(pattern).finds(item) is None, pattern


def test_a_text_with_an_equals_sign_is_found_as_text_too() -> None:
    assert Matcher("token=abc").finds({"text": "my token=abcdef"}) is not None


def test_raw_records_and_lines_that_were_never_parsed_are_searched() -> None:
    assert Matcher("user_id=7").finds({"user_id": "7", "text": "x"}) is not None
    assert Matcher("a.b=7").finds({"a": {"b": 7}}) is not None
    assert Matcher("user_id=u77").finds('{"user_id": "u77", "text": ') is not None
    assert Matcher("berg").finds(["a", {"b": "Anna Berg"}]) is not None


def test_regular_expressions() -> None:
    assert Matcher(r"par[ck]el \d+", regex=True).finds({"text": "The PARKEL 12"}) == "The PARKEL 12"
    assert Matcher(r"user=^u\d$", regex=True).finds({"meta": {"user": "u7"}}) is not None
    assert Matcher(r"user=^u\d$", regex=True).finds({"meta": {"user": "u77"}}) is None
    with pytest.raises(UserError, match="regular expression"):
        Matcher("(", regex=True)


@pytest.mark.parametrize("pattern", ["", "  ", "user_id=", "\u200b\u200b"])
def test_an_empty_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(UserError):
        Matcher(pattern)


def test_stand_ins_are_looked_for_as_well() -> None:
    matcher = Matcher("anna@example.org", pseudonyms=("EMAIL_3f2a",))
    assert matcher.finds({"text": "write to email_3f2a"}) is not None
    assert matcher.finds({"text": "anna@example.org"}) is not None
