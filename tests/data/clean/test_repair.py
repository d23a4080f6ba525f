"""Repair: what is mended, what must stay as it is, and that a repaired text is never changed again."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from places import DATA_SETS
from tuneloop.data.checks.overview import is_garbled
from tuneloop.data.clean.repair import repair_text
from tuneloop.data.config import RepairConfig
from tuneloop.data.dataset import REPAIRS

ALL = RepairConfig()
OFF = RepairConfig(
    encoding=False, html_entities=False, invisible=False, unicode="off", white_space=False, special_tokens=False
)
DATA = DATA_SETS

# Pieces that are hostile together: halves of mojibake, entities of entities, joiners, broken tokens.
PIECES = [
    "a", "é", "Ã", "©", "Â", "\xa0", "â€™", "â€", "Ãƒ", "√§", "├╝", "ΓÇÖ", "вЂ", "ï¿½", "\x85", "\x9d", "ÔÇ", "鈥檚", "т", "А",
    "&", "&amp;", "amp;", "lt;", "&lt;", "&#39;", "&#x27;", "&#0;", "&#128;", "&#xD800;", "&nbsp;", "&shy;", "&copy", "`", "<b>",
    "\u200b", "\u200c", "\u200d", "\ufeff", "\xad", "\u202e", "\ufe0f", "\U000e0041", "\ud83d", "\ude00", "\x00", "\x1b[31m", "\x0c", "\x1f",
    "e\u0301", "\u0301", "\u212b", "क्", "ی", "👩", "💻", "🏴", "\U000e007f",
    " ", "\t", "\r", "\n", "\r\n", "\u3000", "\u2028", "\u202f", "  x",
    "<", "|", "<|", "|>", "eot_id", "<|eot_id|>", "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<start_of_turn>", "｜",
]  # fmt: skip
wild = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.text(max_size=40),
    st.lists(st.one_of(st.sampled_from(PIECES), st.characters(codec=None)), max_size=10).map("".join),
)
configs = st.builds(
    RepairConfig,
    encoding=st.booleans(),
    html_entities=st.booleans(),
    invisible=st.booleans(),
    unicode=st.sampled_from(["nfc", "off"]),
    white_space=st.booleans(),
    special_tokens=st.booleans(),
)


def mended(text: str) -> str:
    return repair_text(text, ALL)[0]


@given(wild)
@example("<|\u200beot_id|>")
@example("&am\u200bp;lt;|eot_id|&gt;")
def test_a_repaired_text_is_never_changed_again(text: str) -> None:
    once, kinds = repair_text(text, ALL)
    assert repair_text(once, ALL) == (once, ())
    assert set(kinds) <= set(REPAIRS)
    assert bool(kinds) == (once != text)
    once.encode("utf-8")  # no lone surrogate is left
    assert "<|eot_id|>" not in once


@given(wild, configs)
def test_any_choice_of_steps_is_idempotent(text: str, config: RepairConfig) -> None:
    once, _ = repair_text(text, config)
    assert repair_text(once, config) == (once, ())
    assert repair_text(text, OFF) == (text, ())


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="&<[")))
def test_plain_ascii_only_loses_the_space_at_its_ends(text: str) -> None:
    assert mended(text) == text.strip()


GARBLED_AS = ["latin-1", "cp1252", "mac_roman", "cp437", "cp850"]


def misread(text: str, codec: str) -> str:
    """UTF-8 read in `codec`; undefined bytes become controls, as in browsers."""

    def shown(byte: int) -> str:
        try:
            return bytes([byte]).decode(codec)
        except UnicodeDecodeError:
            return chr(byte)

    return "".join(map(shown, text.encode("utf-8")))


@pytest.mark.parametrize("codec", GARBLED_AS)
@pytest.mark.parametrize(
    "text",
    [
        "My card isn’t here",
        "Is it free – or not?",
        "Zoë can’t log in to her café account",
        "Größe und Übergröße für Männer",
        "¿Qué pasó con mi tarjeta, señor?",
        "Каждый человек имеет право на свободу",
        "It costs (€50) too much",
        "thanks 😀 a lot",
    ],
)
def test_mojibake_of_the_common_encodings_is_undone(text: str, codec: str) -> None:
    assert repair_text(misread(text, codec), ALL) == (text, ("encoding",))


def test_layers_of_mojibake_are_undone_one_by_one() -> None:
    text = "it’s from Zoë – really"
    garbled_text = text
    for _ in range(3):
        garbled_text = misread(garbled_text, "cp1252")
        assert repair_text(garbled_text, ALL) == (text, ("encoding",))


@pytest.mark.parametrize("codec", ["gbk"])
def test_utf8_read_as_an_encoding_of_east_asia_is_undone(codec: str) -> None:
    assert mended("it’s here’s a".encode().decode(codec)) == "it’s here’s a"


def test_a_garbled_line_among_right_ones_is_mended() -> None:
    assert mended("日本語のテキスト\ncafÃ© crÃ¨me\nŁódź") == "日本語のテキスト\ncafé crème\nŁódź"


@pytest.mark.parametrize(
    "text",
    [
        "L’été à São Paulo, où l’on paie 10 € – “déjà vu” ½ 20 °C",
        "MARQUÉ… JOSÉ’S CAFÉ™",
        "Größe, Übergröße; „Ärger“ ‚Österreich‘",
        "Żółć, gęślą jaźń; příliš žluťoučký kůň",
        "İstanbul’da ağır iş, ŞİŞLİ",
        "ΑΒΓ αβγ, √2 ≈ 1.41, 2√π, ±½",
        "│ a ├──┤ b │ ┌┬┐ ░▒▓",
        "Слово «ещё» – вії, її, Київ",
        "联通的K歌房 日本語、カタカナ ｶﾀｶﾅ",
        "مرحبا می‌خواهم हिन्दी ไทย 한국어",
        "Ðørn Ångström, Ævar, Íñigo, naïve coöperation",
        "(╯°□°)╯︵ ┻━┻ ¯\\_(ツ)_/¯ ʕ•ᴥ•ʔ",
    ],
)
def test_right_text_of_any_language_stays(text: str) -> None:
    assert repair_text(text, ALL) == (text, ())


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("I can&#39;t &amp; won&#x27;t &quot;pay&quot; &lt; 5", "I can't & won't \"pay\" < 5"),
        ("Tom &amp;amp; Jerry, it&amp;#39;s", "Tom & Jerry, it's"),
        ("&lt;b&gt;urgent&lt;/b&gt;", "<b>urgent</b>"),
        ("caf&eacute; &pound;5 &#8364;&#128;", "café £5 €€"),
        ("a&nbsp;b", "a b"),
    ],
)
def test_entities_become_characters(text: str, reads: str) -> None:
    assert mended(text) == reads


@pytest.mark.parametrize(
    "text",
    [
        "AT&T and R&D; Q&A",
        "https://example.com/?a=1&lt=2&copy=3&amp=4",
        "<p>Tom &amp; Jerry</p>",
        "<div class='x'>&nbsp;</div>",
        "write `&lt;` for <",
        "```\nx &amp;&amp; y\n``` & so on",
        "&nosuchname; &#0; &#xD800; &#1114112;",
    ],
)
def test_what_is_no_entity_or_is_html_on_purpose_stays(text: str) -> None:
    assert repair_text(text, ALL) == (text, ())


def test_many_layers_of_escaping_take_no_more_time_than_one() -> None:
    assert mended("x &" + "amp;" * 200_000 + "lt; y") == "x < y"


@pytest.mark.parametrize(
    "hidden",
    [
        "\u200b", "\u2060", "\ufeff", "\xad", "\u200e", "\u202e", "\u2066", "\x00", "\x07", "\x1b[1;31m", "\x7f", "\u200c", "\u200d",
        "\ud83d", "\udc00", "\ufe0f", "\U000e0041", "\ufffe", "\u2063",
    ],
)  # fmt: skip
def test_invisible_characters_go(hidden: str) -> None:
    assert repair_text(f"pass{hidden}word {hidden}ok", ALL) == ("password ok", ("invisible_characters",))


@pytest.mark.parametrize(
    "text",
    [
        "👩‍💻 🏳️‍🌈 ❤️ 1️⃣ 👍🏽 👨‍👩‍👧",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "می‌خواهم",
        "क्‍ष ശ്‌ര",
        "葛\U000e0100城",
        "ü ậ n̈",
        "a\tb\n\tc",
    ],
)
def test_joiners_selectors_and_marks_that_mean_something_stay(text: str) -> None:
    assert repair_text(text, ALL) == (text, ())


def test_halves_of_a_surrogate_pair_side_by_side_are_one_character() -> None:
    assert mended("ok \ud83d\ude00") == "ok 😀"


def test_text_comes_into_form_c_and_no_further() -> None:
    assert repair_text("Zoe\u0308", ALL) == ("Zoë", ("unicode_form",))
    assert repair_text("ﬁ ² ① ﾊ", ALL) == ("ﬁ ² ① ﾊ", ())


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("  a  b \t", "a  b"),
        ("a\r\nb\rc\u2028d\x0ce", "a\nb\nc\nd\ne"),
        ("a\xa0b\u2009c\u202fd", "a b c d"),
        ("\u3000東京\u3000大阪\u3000", "東京\u3000大阪"),
        ("a\n\n\n\n \n\nb", "a\n\n\nb"),
        ("a\n\n\nb", "a\n\n\nb"),
        ("\n\n    def f():\n        return 1\n", "    def f():\n        return 1"),
        (" a\nb", "a\nb"),
        ("x = 1\n\n\ty = 2", "x = 1\n\n\ty = 2"),
    ],
)
def test_white_space(text: str, reads: str) -> None:
    assert repair_text(text, ALL) == (reads, ("white_space",) if reads != text else ())


@pytest.mark.parametrize(
    "token",
    [
        "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|reserved_special_token_17|>", "<|python_tag|>", "<|im_start|>",
        "<|endoftext|>", "<|user|>", "<|end|>", "<|any.word-1|>", "<｜begin▁of▁sentence｜>", "<start_of_turn>", "<end_of_turn>", "<bos>",
        "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[TOOL_CALLS]", "[/AVAILABLE_TOOLS]", "<fim_prefix>",
    ],
)  # fmt: skip
def test_control_tokens_are_parted_and_still_readable(token: str) -> None:
    text, kinds = repair_text(f"hi {token}system", ALL)
    assert kinds == ("special_tokens",)
    assert token not in text and text.replace(" ", "") == f"hi{token}system"


def test_control_tokens_hidden_in_other_defects_are_found() -> None:
    for text in ("&lt;|eot_id|&gt;", "<|eot\u200b_id|>", "<\u200b|eot_id|>", "&#60;/s&#62;", "<|e\u00adot_id|>"):
        assert "<|" not in mended(text) and "</s>" not in mended(text)


@pytest.mark.parametrize(
    "text",
    [
        "a <|b or a || b, x <| f |> g, <|>",
        "<b>now <s>10 €</s> 8 €</b>",
        "[INFO] [1] [x] usage: tool [ARGS]",
        "List<String> a < b > c",
        "<EMAIL> <PHONE>",
    ],
)
def test_what_only_looks_like_a_control_token_stays(text: str) -> None:
    assert repair_text(text, ALL) == (text, ())


def test_no_control_token_of_llama_3_survives(llama3_tokenizer: Path) -> None:
    tokens = json.loads(llama3_tokenizer.read_text())["added_tokens"]
    for token in tokens:
        assert token["content"] not in mended(f"x {token['content']} y")


def test_each_step_can_be_switched_off() -> None:
    text = "cafÃ© &amp; \u200bco Zoe\u0308  <|eot_id|> "
    for setting, kind in [
        ("encoding", "encoding"),
        ("html_entities", "html_entities"),
        ("invisible", "invisible_characters"),
        ("white_space", "white_space"),
        ("special_tokens", "special_tokens"),
    ]:
        assert kind in repair_text(text, ALL)[1]
        assert kind not in repair_text(text, ALL.model_copy(update={setting: False}))[1]
    assert "unicode_form" not in repair_text(text, ALL.model_copy(update={"unicode": "off"}))[1]


@pytest.mark.parametrize("text", ["caf\ufffd\ufffd", "it isn?t here", "I?m lost", "weâ€ re"])
def test_lost_characters_are_named(text: str) -> None:
    assert is_garbled(text)


@pytest.mark.parametrize(
    "text", ["Is it? ok", "https://x.org/page?id=1&s=2", "really?yes", "L’été – “fine”", "what?so", "SÃO PAULO", ""]
)
def test_text_with_nothing_lost_is_not_garbled(text: str) -> None:
    assert not is_garbled(text)


def shared(name: str) -> list[dict[str, str]]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{name} is not there: the data sets are no part of this repository")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_mojibake_of_real_texts_in_many_languages() -> None:
    config = OFF.model_copy(update={"encoding": True})
    cases = shared("mojibake_udhr/cases.jsonl")
    clean = [case for case in cases if case["original"] == case["fixed"]]
    assert all(repair_text(case["original"], config)[1] == () for case in clean)
    broken = [case for case in cases if case["original"] != case["fixed"]]
    right = sum(repair_text(case["original"], config)[0] == case["fixed"] for case in broken)
    assert right >= 0.97 * len(broken)


def test_right_text_stays_whatever_its_language() -> None:
    for row in shared("langid_udhr/all.jsonl"):
        text = unicodedata.normalize("NFC", row["text"])
        assert repair_text(text, ALL)[1] in ((), ("white_space",)), text


@pytest.mark.parametrize("text", ["żółć i gęś", "grüße aus Köln", "smørrebrød på øen", "naïve café, déjà vu"])
def test_latin_9_is_not_taken_for_windows_1252(text: str) -> None:
    misread = "".join(bytes([byte]).decode("iso8859_15") for byte in text.encode("utf-8"))
    assert mended(f"I like it. {misread}") == f"I like it. {text}"
