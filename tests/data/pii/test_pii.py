"""Kinds of personal data in texts and records, and what replaces them."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import time
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patience import slowness
from places import DATA_SETS
from tuneloop.core.errors import UserError
from tuneloop.data.config import PersonalConfig
from tuneloop.data.pii.redact import (
    KINDS,
    PersonalSpan,
    _all_quiet,
    _analyzer,
    _scrubbed,
    _spans,
    find,
    is_quiet,
    redact,
    scrub,
)

DATA = DATA_SETS
CONFIG = PersonalConfig()
KEY = b"a key for tests"


def redacted(text: str, config: PersonalConfig = CONFIG, field: str = "") -> str:
    return redact(text, find(text, config, field), config, KEY)


GONE = [
    # the value stands between the signs; nothing else may be touched
    ("EMAIL", "write to «John.O'Brien+tag@sub.example.co.uk», thanks"),
    ("EMAIL", "联系邮箱是«jane@x.com»"),
    ("EMAIL", "«почта@пример.рф»"),
    ("EMAIL", "email=«jane@x.com»&x=1"),
    ("EMAIL", '«"john doe"@example.com»'),
    ("EMAIL", "«jane at example dot com»"),
    ("EMAIL", "«jane (at) example.com»"),
    ("EMAIL", "?user=«jane%40example.com»"),
    ("PHONE", "call «+33 6 12 34 56 78»"),
    ("PHONE", "«+55 (11) 91234-5678»"),
    ("PHONE", "appelez le «06 12 34 56 78» svp"),
    ("PHONE", "«0044 20 7946 0958»"),
    ("PHONE", "you can text «020 7946 0226» any time"),
    ("PHONE", "«+1 (415) 555-2671 ext. 42»"),
    ("PHONE", "«(212) 555-0131» or «415.555.0188»."),
    ("PHONE", "«090-1234-5678»"),
    ("PHONE", "Rückruf unter «030/12345678»"),
    ("PHONE", "my number is «4155550132»"),
    ("PHONE", "whatsapp «98765 43210»"),
    ("PHONE", "电话«13812345678»"),
    ("CREDIT_CARD", "«4111 1111 1111 1111» 12/27 123"),
    ("CREDIT_CARD", "cc:«5555-5555-5555-4444»"),
    ("CREDIT_CARD", "«378282246310005»"),
    ("CREDIT_CARD", "«3530 1113 3330 0000»"),
    ("CREDIT_CARD", "my card «30569309025904»"),
    ("CREDIT_CARD", "«４１１１ １１１１ １１１１ １１１１»"),
    ("IBAN", "refund to «gb82 west 1234 5698 7654 32» please"),
    ("IBAN", "IBAN:«DE89370400440532013000»."),
    ("IBAN", "«NO93 8601 1117 947» is mine"),
    ("US_SSN", "social security number «123-45-6789»"),
    ("US_SSN", "ssn: «123456789»"),
    ("US_SSN", "ITIN «912-70-1234»"),
    ("IP_ADDRESS", "from «203.0.113.7»:8080"),
    ("IP_ADDRESS", "[«2001:db8::1»]:443 and «fe80::1ff:fe23:4567:890a%eth0»"),
    ("MAC_ADDRESS", "mac «00:1A:2B:3C:4D:5E», «001a.2b3c.4d5e»"),
    ("URL_CREDENTIALS", "postgres://«admin:s3cr3t»@db.example.com/x"),
    ("URL_CREDENTIALS", "https://x.com/?api_key=«12345abcde»&page=2"),
    ("API_KEY", "token «sk-proj-abc123DEF456ghi789JKL»"),
    ("API_KEY", "my key is «sk-qWeRtZuIoPaSdFgHjKlYxCvBnM»"),
    ("API_KEY", "use «sk-proj-vKqTzRwXcMbNpLjHgFdSaQxZ» now"),
    ("API_KEY", "«sk-tgkzqwxbvrnpmcdhjfltswyqkz»"),
    ("API_KEY", "«AKIAIOSFODNN7EXAMPLE» aws_secret_access_key = «wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY»"),
    ("API_KEY", "«ghp_16C7e42F292c6912E7710c838347Ae178B4a»"),
    ("API_KEY", "«xoxb-123456789012-123456789012-abcdefABCDEF123456abcdef»"),
    ("API_KEY", "«hf_abcdefghijKLMNOPQRSTuvwx1234567890»"),
    ("API_KEY", "«eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U»"),
    ("API_KEY", "«-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA1\nab==\n-----END RSA PRIVATE KEY-----»\nbye"),
    ("API_KEY", 'api_key = "«a8f5f167f44f4964e6c998dee827110c»"'),
    ("API_KEY", "Authorization: Bearer «abcDEF123456ghiJKL»"),
    ("PASSWORD", "my password is «Tr0ub4dor&3»"),
    ("PASSWORD", '{"db_password": "«s3cret!»", "x": 1}'),
    ("PASSWORD", "Mein Passwort ist «geheim123», danke"),
    ("PASSWORD", "my PIN is «4821» and the CVV: «123»"),
    ("DATE_OF_BIRTH", "I was born on «March 5, 1985» in Leeds"),
    ("DATE_OF_BIRTH", '"date_of_birth": "«1985-03-05»"'),
    ("DATE_OF_BIRTH", "DOB: «05/03/1985»; geboren am «5. März 1985»; né le «5 mars 1985»"),
    ("DATE_OF_BIRTH", "生年月日：«1985年3月5日»"),
    ("STREET_ADDRESS", "I live at «202 Station Road, Leeds LS1 4AP»."),
    ("STREET_ADDRESS", "ship it to «350 Fifth Avenue, Apt 4B, New York, NY 10118»"),
    ("STREET_ADDRESS", "i live at «42 elm street» near you"),
    ("STREET_ADDRESS", "«12 rue de la Paix, 75002 Paris»"),
    ("STREET_ADDRESS", "«Hauptstraße 5, 10115 Berlin»"),
    ("STREET_ADDRESS", "«Calle Mayor 5, 28013 Madrid»"),
    ("STREET_ADDRESS", "«Keizersgracht 123, 1015 CJ Amsterdam»"),
    ("STREET_ADDRESS", "to «P.O. Box 123»"),
    ("PASSPORT", "my passport number is «L8337C2K»"),
    ("DRIVER_LICENSE", "my driver's license is «D1234567»"),
    ("BANK_ACCOUNT", "account number «12345678», sort code «20-00-00»"),
    ("CRYPTO_ADDRESS", "send to «bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq»"),
    ("CRYPTO_ADDRESS", "or «1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2»"),
    ("NATIONAL_ID", "NINO «AB 12 34 56 C»"),
    ("NATIONAL_ID", "DNI «12345678Z», cpf «111.444.777-35»"),
    ("NATIONAL_ID", "my BSN is «111222333»"),
    ("NATIONAL_ID", "national id number «29001011234567»"),
]


STAYS = """
order number 12345678
order #4155552671
my order id is 212-555-0188
ORD-41555526 and INV-2023-00012345
tracking number 1Z999AA10123456784
tracking 9400 1118 9922 3197 4284 90
my tracking number is 123456789
call me about order 4155550132
case number 20794605 please call
version 1.2.3.4
app version 12.16.1.3
Chrome 120.0.6099.109
127.0.0.1
timestamp 1700000000 or 1700000000000
2023-06-25 14:30:00
call me on 2023-06-25 14:30
call between 9-5 mon-fri, 10:30 or 11:45
$1,234,567.89 and GBP 12345678.00
tracking 378282333168028
4111 1111 1111 1112
DE89370400440532013001
GB82 WEST 1234 5698 7654 33
ISBN 978-3-16-148410-0
550e8400-e29b-41d4-a716-446655440000
12345678-1234-1234-1234-123456789012
commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b
@bankteam please, or contact @support
lodash@4.17.21
git@github.com:org/repo.git
std::vector<int> a::b
000-12-3456, 666-12-3456, 123-45-0000
my password is not working
forgot my password: help please
Password: required
password = getpass()
password = None
Use unique passwords: make sure they differ
max_tokens: 2048
pin code 560001
2 way street
5 minutes down the road
in the 20 Best Places
the square is 49 square units
go to gate 18
He was born in London
born in 1985
call 911
my account 2 days ago
3.14159265358979
1,000,000,000
EAN 4006381333931
sk-learn-contrib-package-name
sk-learn
sk-lightweightframework for small screens
sk-internationalizationsupport
sk-slovenska-republika-bratislava
sk-najneobhospodarovavatelnejsimi
sk-MyComponentNameProviderFactory
risk-assessment-methodology and desk-KnightsbridgeApartments
SKU 0412-345-678
coordinates 40.712776, -74.005974
IMEI 490154203237518
10 20 30 40 50 60
Windows 10, 2015 Edition
sent via phone 2 hours ago
at 2024-05-01 12:33 bdda spla we met
""".strip().splitlines()


PIECES = st.sampled_from(
    ["a@b.co", "4111 1111 1111 1111", "+49 30 23125 782", "12 Main Street", " is ", "password", ": ", "://", "@", "DE89", "born on ",
     "1990-01-01", "sk-", "x" * 20, "\\u0040", "\\n", "\u200b", "１２", "\ud800", "é", " ", "\n", "'", '"', "account number ", "12345678"]
)  # fmt: skip


WILD = st.lists(st.one_of(PIECES, st.text(max_size=12), st.text("0123456789-+(). ", max_size=20)), max_size=12).map(
    "".join
)


@pytest.mark.parametrize(("kind", "marked"), GONE, ids=[f"{k}-{m[:24]}" for k, m in GONE])
def test_the_whole_value_goes_and_nothing_else(kind: str, marked: str) -> None:
    text = re.sub("[«»]", "", marked)
    assert redacted(text) == re.sub("«[^»]*»", f"<{kind}>", marked)


@pytest.mark.parametrize("text", STAYS)
def test_look_alikes_stay(text: str) -> None:
    assert redacted(text) == text


def test_findings_are_in_order_and_hold_kinds_of_the_list() -> None:
    text = "jane@x.com, +49 30 23125 782, 4111111111111111, jane@x.com"
    found = find(text, CONFIG)
    assert [f.kind for f in found] == ["EMAIL", "PHONE", "CREDIT_CARD", "EMAIL"]
    assert found[0] == PersonalSpan("EMAIL", 0, 10)
    assert {f.kind for f in found} <= set(KINDS)


def test_invisible_characters_hide_nothing() -> None:
    text = "jane\u200b.doe@x\u00ad.com or 4111\u00a01111\u20111111\u202f1111"
    assert redacted(text) == "<EMAIL> or <CREDIT_CARD>"


def test_only_the_kinds_asked_for_are_found() -> None:
    config = PersonalConfig(kinds=["PHONE"])
    assert redacted("jane@x.com +49 30 23125 782", config) == "jane@x.com <PHONE>"


def test_region_decides_about_numbers_without_a_country_code() -> None:
    text = "it is 601 123 456 then"
    assert redacted(text) == text
    assert redacted(text, PersonalConfig(region="CZ")) == "it is <PHONE> then"


def test_an_unknown_kind_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="EMAILS") as error:
        find("x@y.org", PersonalConfig(kinds=["EMAILS"]))
    assert "EMAIL?" in error.value.next_step
    with pytest.raises(UserError, match="region"):
        find("x@y.org", PersonalConfig(region="Germany"))


def test_a_language_model_that_can_not_be_loaded_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def stub(name: str, **content: Any) -> None:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)

    def broken(**_: Any) -> Any:
        raise OSError("[E052] Can't find model directory\nmore")

    util = SimpleNamespace(get_installed_models=list, is_package=lambda name: name == "en_core_web_sm")
    stub("spacy", util=util)
    stub("presidio_analyzer", AnalyzerEngine=None, RecognizerRegistry=None)
    stub("presidio_analyzer.nlp_engine", NlpEngineProvider=broken)
    stub("presidio_analyzer.predefined_recognizers", SpacyRecognizer=None)
    _analyzer.cache_clear()
    with pytest.raises(UserError, match=r"can't be loaded: \[E052\] Can't find model directory\n") as error:
        find("My name is Jane", PersonalConfig(names=True))
    assert "en_core_web_sm" in str(error.value.where)


@pytest.mark.skipif(importlib.util.find_spec("presidio_analyzer") is not None, reason="presidio-analyzer is installed")
def test_names_without_the_analyzer_say_what_to_install() -> None:
    with pytest.raises(UserError) as error:
        find("My name is Jane", PersonalConfig(names=True))
    assert "pip install presidio-analyzer" in error.value.next_step


@given(WILD)
def test_findings_of_any_text_are_sorted_apart_and_inside(text: str) -> None:
    at = 0
    for finding in find(text, CONFIG):
        assert at <= finding.start < finding.end <= len(text)
        at = finding.end


@given(st.text(max_size=200))
def test_quiet_texts_hold_nothing(text: str) -> None:
    if is_quiet(text):
        assert _spans(text, CONFIG) == []


@given(WILD)
def test_a_known_value_goes_wherever_it_stands(text: str) -> None:
    value = "4242424242424242"
    assert value not in redacted(f"{text} | {value} | {text}")


@pytest.mark.parametrize(
    "hostile",
    ["1" * 50_000, "1 " * 30_000, "a@" * 30_000, "a." * 30_000 + "@b", "ab:" * 30_000, "Ab " * 30_000, "12 Main " * 8_000,
     "password is " * 8_000, "account number " * 8_000, "12 rue " + "de " * 30_000, "\\" * 60_000, "-----BEGIN PRIVATE KEY-----" * 2_000],
)  # fmt: skip
def test_no_text_takes_long(hostile: str) -> None:
    start = time.perf_counter()
    find(hostile, CONFIG)
    assert time.perf_counter() - start < 4 * slowness()  # linear: some 0.1 s; quadratic: minutes


def test_scrub_reaches_every_depth_keys_too_and_leaves_the_rest_as_it_is() -> None:
    record = {"id": 7, "nested": [{"a@b.co": "x", "n": ["call +49 30 23125 782", None, True, 1.5]}]}
    clean, kinds = scrub(record, CONFIG, None)
    assert clean == {"id": 7, "nested": [{"<EMAIL>": "x", "n": ["call <PHONE>", None, True, 1.5]}]}
    assert kinds == ["EMAIL", "PHONE"]
    harmless = {"id": 4111111111111111, "created": "1990-04-01", "text": "hello"}
    assert scrub(harmless, CONFIG, None) == (harmless, [])


def test_the_key_above_a_value_tells_what_it_is() -> None:
    record = {
        "phone": 4155550132, "order_id": 4155550132, "cardNumber": 4111111111111111, "pin": "1234", "dob": "1990-04-01", "password": "swordfish",
        "ssn": 123456789, "account_number": "12345678", "tokens": 4155550132,
    }  # fmt: skip
    clean, _ = scrub(record, CONFIG, None)
    assert clean == {
        "phone": "<PHONE>", "order_id": 4155550132, "cardNumber": "<CREDIT_CARD>", "pin": "<PASSWORD>", "dob": "<DATE_OF_BIRTH>",
        "password": "<PASSWORD>", "ssn": "<US_SSN>", "account_number": "<BANK_ACCOUNT>", "tokens": 4155550132,
    }  # fmt: skip


def test_broken_json_is_searched_with_its_escapes_undone() -> None:
    raw = r'{"email": "jane\u0040x.com", "tel": "\u002b49 30 23125 782", "a": "mail:\njoe@x.com\n", "q": "b\\u0040z.org'
    clean, kinds = scrub(raw, CONFIG, None)
    assert clean == r'{"email": "<EMAIL>", "tel": "<PHONE>", "a": "mail:\n<EMAIL>\n", "q": "<EMAIL>'
    assert kinds == ["EMAIL", "PHONE"]


def test_scrub_follows_the_mode() -> None:
    assert scrub("a@b.org", PersonalConfig(mode="off"), None) == ("a@b.org", [])
    assert scrub("a@b.org", PersonalConfig(mode="report"), None) == ("a@b.org", ["EMAIL"])
    assert scrub("a@b.org", PersonalConfig(mode="reject"), None) == ("<EMAIL>", ["EMAIL"])


@given(st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=9)),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8))  # fmt: skip
def test_scrub_takes_any_json_value(value: Any) -> None:
    clean, _ = scrub({"v": value, "secret_mail": "jane@x.com"}, CONFIG, None)
    assert "jane" not in json.dumps(clean)


@pytest.mark.parametrize("name", ["messy_tickets", "messy_chats"])
def test_injected_personal_data_goes_and_look_alikes_stay(name: str) -> None:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip("the data sets are not here")
    lines = (folder / "messy.jsonl").read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    values, found, lookalikes, touched = 0, 0, 0, 0
    for defect in json.loads((folder / "gold.json").read_text(encoding="utf-8"))["defects"]:
        if defect["type"] not in ("pii", "pii_lookalike"):
            continue
        text: Any = json.loads(lines[defect["line"] - 1])
        for part in re.findall(r"\w+", defect["field"]):
            text = text[int(part)] if part.isdigit() else text[part]
        covered = {i for f in find(text, CONFIG) for i in range(f.start, f.end)}
        if defect["type"] == "pii":
            structured = [span for span in defect["spans"] if span["structured"]]
            values += len(structured)
            found += sum(covered.issuperset(range(span["start"], span["end"])) for span in structured)
        else:
            lookalikes += 1
            touched += not covered.isdisjoint(range(defect["start"], defect["end"]))
    assert found >= 0.98 * values > 0
    assert touched <= 0.01 * lookalikes


def test_clean_tickets_are_left_alone() -> None:
    path = DATA / "banking77" / "test.jsonl"
    if not path.is_file():
        pytest.skip("the data sets are not here")
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert [text for text in texts if find(text, CONFIG)] == []


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("I live at Kerkstraat 12, 9000 Gent. Thank you", "Kerkstraat 12, 9000 Gent"),
        ("Via Roma 12, 20121 Milano. Grazie mille", "Via Roma 12, 20121 Milano"),
        ("12 Main Street, Springfield. Thanks", "12 Main Street, Springfield"),
        ("Lange Gasse 7, 1080 Wien\nThanks", "Lange Gasse 7, 1080 Wien"),
        ("12 Oak Avenue, St. Louis, MO 63101. Thanks", "12 Oak Avenue, St. Louis, MO 63101"),
    ],
)
def test_an_address_ends_with_its_town_not_with_the_next_sentence(text: str, address: str) -> None:
    (found,) = find(text, PersonalConfig())
    assert text[found.start : found.end] == address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("export KEY=pk.eyJ1IjoirVK1GWUsFYZj2CXqSf5dk4sa7.4OmR7hxbULw1tGvd7VVfa7", "export KEY=<API_KEY>"),
        ("I opened the app from 113.208.220.246", "I opened the app from <IP_ADDRESS>"),
        ("after updating to 2.4.14.4 it fails", "after updating to 2.4.14.4 it fails"),
        ("phone position -33.8636,151.2736", "phone position -33.8636,151.2736"),
        ("my card was refused at 173339552411", "my card was refused at 173339552411"),
        ("stop sending messages to 699 956 915", "stop sending messages to <PHONE>"),
        ("(37) 788-063-Office", "<PHONE>-Office"),
    ],
)
def test_neighbours_of_a_number_decide(text: str, expected: str) -> None:
    assert redacted(text) == expected


NAMES = st.sampled_from(["content", "phone", "dateOfBirth", "note", "a@b"])
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["I am anna@example.org", "my pin is 1234", "where is my parcel", "sk-abcdefghijklmnop"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(NAMES | TEXTS, part, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_a_value_that_is_passed_over_at_a_glance_holds_nothing_that_a_search_finds(value: Any) -> None:
    if _all_quiet(value, ""):
        kinds: set[str] = set()
        _scrubbed(value, CONFIG, None, "", kinds)
        assert not kinds


def test_an_unknown_kind_is_told_where_nothing_is_found_too() -> None:
    with pytest.raises(UserError, match="Unknown kind"):
        scrub({"text": "hello"}, PersonalConfig(kinds=["FOO"]), None)
