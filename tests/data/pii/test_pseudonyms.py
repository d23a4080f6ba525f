"""Each value gets one pseudonym of the same form, and the key decides which."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.core.errors import UserError
from tuneloop.data.config import PersonalConfig
from tuneloop.data.pii import identifiers, pseudonyms
from tuneloop.data.pii.redact import KINDS, find, pseudonym_key, redact

CONFIG = PersonalConfig()
PSEUDONYM = PersonalConfig(mode="pseudonym")
KEY = b"a key for tests"


def redacted(text: str, config: PersonalConfig = CONFIG, field: str = "") -> str:
    return redact(text, find(text, config, field), config, KEY)


def pseudonym(kind: str, value: str, key: bytes = KEY) -> str:
    return pseudonyms.pseudonym(kind, value, "US", key)


def test_one_value_has_one_pseudonym_however_it_is_written() -> None:
    assert (
        pseudonym("EMAIL", "Jane.Doe@X.com")
        == pseudonym("EMAIL", "jane.doe@x.com")
        == pseudonym("EMAIL", "jane.doe [at] x [dot] com")
    )
    assert (
        pseudonym("PHONE", "(415) 555-2671")
        == pseudonym("PHONE", "+1 415.555.2671")
        == pseudonym("PHONE", "4155552671")
    )
    cards = {re.sub(r"\D", "", pseudonym("CREDIT_CARD", c)) for c in ("4111111111111111", "4111 1111 1111 1111")}
    assert len(cards) == 1
    assert pseudonym("EMAIL", "jane@x.com") != pseudonym("EMAIL", "joe@x.com")
    assert pseudonym("EMAIL", "jane@x.com") != pseudonym("EMAIL", "jane@x.com", b"another key")


def test_stand_ins_are_of_the_same_form_and_nobodys() -> None:
    assert re.fullmatch(r"person-[0-9a-f]{8}@example\.com", pseudonym("EMAIL", "jane@x.com"))
    assert re.fullmatch(r"\+1 \d{3}-555-01\d\d", pseudonym("PHONE", "+1 415 555 2671"))
    assert pseudonym("PHONE", "+44 7911 123456").startswith("+44 20 7946 0")
    assert pseudonym("US_SSN", "123-45-6789").startswith("000-")
    assert re.fullmatch(r"198\.1[89]\.\d+\.\d+", pseudonym("IP_ADDRESS", "8.8.4.4"))
    assert pseudonym("IP_ADDRESS", "2a00::1:2").startswith("2001:db8:")
    assert not identifiers.is_national_id(pseudonym("NATIONAL_ID", "12345678Z"))
    card = pseudonym("CREDIT_CARD", "4111-1111-1111-1111")
    assert re.fullmatch(r"\d{4}(-\d{4}){3}", card)
    assert not identifiers.luhn(card.replace("-", ""))
    iban = pseudonym("IBAN", "DE89 3704 0044 0532 0130 00")
    assert re.fullmatch(r"DE00( \d{4}){4} \d\d", iban)
    assert not identifiers.is_iban(iban.replace(" ", ""))


@pytest.mark.parametrize("kind", [k for k in KINDS])
@given(value=st.text("0123456789AbcZ@.:- ", min_size=4, max_size=24))
def test_the_original_never_stands_in_its_pseudonym(kind: str, value: str) -> None:
    assert value not in pseudonym(kind, value)


def test_a_pseudonymised_text_keeps_who_is_who() -> None:
    text = "jane@x.com wrote to joe@x.com; JANE@x.com got no answer"
    a, b, c = re.findall(r"person-\w+@example\.com", redacted(text, PSEUDONYM))
    assert a == c != b


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNELOOP_SECRET", raising=False)
    assert pseudonym_key(CONFIG) is None
    with pytest.raises(UserError, match="TUNELOOP_SECRET"):
        pseudonym_key(PSEUDONYM)
    monkeypatch.setenv("TUNELOOP_SECRET", "s")
    monkeypatch.setenv("OTHER", "t")
    assert pseudonym_key(PSEUDONYM) == b"s"
    assert pseudonym_key(PersonalConfig(mode="pseudonym", secret="OTHER")) == b"t"
