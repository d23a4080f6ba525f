"""Repair of texts: wrong encodings, HTML entities, invisible characters, Unicode form, white space, control tokens.

Each step leaves a text alone that has no sign of its defect, and the whole is idempotent: a repaired
text is never changed again. What can't be repaired is not guessed at: it is the flag `garbled` of the row.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache, partial
from html import unescape
from html.entities import name2codepoint
from typing import NamedTuple

from tuneloop.data.config import RepairConfig

Step = Callable[[str], str]


def repair_text(text: str, config: RepairConfig) -> tuple[str, tuple[str, ...]]:
    """The repaired text, and the kinds of changes (words of `REPAIRS`) in the order of the steps; lone surrogates are
    fine.

    With `config.invisible` the result holds no lone surrogate.
    """
    if is_plain(text):
        return text, ()
    kinds: dict[str, None] = {}
    c = config
    steps = _steps(c.encoding, c.html_entities, c.invisible, c.unicode == "nfc", c.white_space, c.special_tokens)
    while True:
        before = text
        for kind, step in steps:
            fixed = step(text)
            if fixed != text:
                kinds[kind] = None
                text = fixed
        # What one step does may uncover work for an earlier one: an entity that was part of mojibake.
        if text == before:
            return text, tuple(kinds)


def is_plain(text: str) -> bool:
    """Whether a text has nothing that any step looks for: it is left as it is, whatever is switched on."""
    if not text.isascii() or not text.isprintable():
        return False
    return "&" not in text and "<" not in text and "[" not in text and text[:1] != " " and text[-1:] != " "


@cache
def _steps(encoding: bool, html: bool, invisible: bool, nfc: bool, space: bool, tokens: bool) -> list[tuple[str, Step]]:
    """The steps that are on, in their order: each may uncover work for those after it."""
    steps: list[tuple[bool, str, Step]] = [
        (encoding, "encoding", _fix_encoding),
        (html, "html_entities", _decode_entities),
        (invisible, "invisible_characters", _without_invisible),
        (nfc, "unicode_form", partial(unicodedata.normalize, "NFC")),
        (space, "white_space", _tidy_space),
        (tokens, "special_tokens", _neutralise),
    ]
    return [(kind, step) for on, kind, step in steps if on]


# --- Encoding ------------------------------------------------------------------------------------
#
# Mojibake: the bytes of UTF-8 read as another encoding. ftfy undoes what it is sure of; what it leaves are encodings
# that it doesn't know (DOS 850 and 866, KOI8, GBK ...) and texts with one or two damaged letters, where it has no
# single character pair that is odd enough. The second step looks at whole sequences instead: that characters of a text
# form valid UTF-8 by chance is rare, that the result then also is a letter that fits into its word is rarer still.

_PAIR = re.compile(r"[^\x00-\x7f]{2}|[\x80-\x9fÂÃ]")
_SINGLE_BYTE = (
    "cp1252", "mac_roman", "cp437", "cp850", "cp1250", "cp1251", "iso8859_2", "cp1254", "cp1257", "cp1253",
    "iso8859_15", "cp866", "koi8_r", "cp1255", "cp1256",
)  # fmt: skip
_MULTI_BYTE = ("gbk", "cp932")
_HAN_IN_WORD = re.compile(r"[A-Za-z][\u3400-\u9fff]|[\u3400-\u9fff\uff61-\uff9f][A-Za-z]")
# Signs that people type between letters of a word; any other sign in a word is odd.
_TYPOGRAPHIC = frozenset(
    "\xa0¡¿«»°·§£¥€©®™‘’‚‛“”„†‡•…‰′″‹›–—―‐‑‒−×÷½¼¾²³¹ºª±µ¶→←↑↓✓✔✗✘★☆≤≥≠≈\u200b\u200d\ufe0f\ufeff\ufffd"
)
_WORD_ENDS = frozenset("\xa0…’”“–—»")
# Letters that hardly any language needs, small ones in capitals and capitals in small letters, signs that no
# one types: where a result holds them, another encoding was the right one.
_STRANGE = re.compile(
    r"[\u0180-\u018e\u0190-\u019f\u01a2-\u01ae\u01b1-\u01cc\u01dd-\u0217\u021c-\u02af\u0700-\u085f\u2000-\u200a\u2028"
    r"\u2029\ue000-\uf8ff]"
    r"|[a-zà-öø-ÿ][À-ÖØ-Þ]"
)
# ISO 8859-15 differs from Latin-1 in eight places, where Windows-1252 has the same letters at other bytes; there the
# controls next to them would be signs.
_LATIN_9 = re.compile(
    "[ŠšŽžŒœŸ€].*[\x80\x82-\x8c\x8e\x91-\x9c\x9e\x9f]|[\x80\x82-\x8c\x8e\x91-\x9c\x9e\x9f].*[ŠšŽžŒœŸ€]"
)
_ENOUGH = 2
_ENOUGH_FOR_WESTERN = 3  # ftfy knows these best; where it holds back, one sequence can be what was meant


class _Codec(NamedTuple):
    """A single-byte encoding as a way to read UTF-8 wrongly."""

    name: str
    enough: int  # weight of the evidence that is needed
    bytes_of: dict[int, int]  # code point -> byte
    sequence: re.Pattern[str]  # one character of UTF-8, as the encoding shows it


@cache
def _codecs() -> tuple[list[_Codec], re.Pattern[str]]:
    """The single-byte encodings, and the pairs of characters that start a sequence in any of them."""
    codecs, leads, tails = [], set[str](), set[str]()
    for name in _SINGLE_BYTE:
        # readers show an undefined byte as the control of its number
        texts = [bytes([byte]).decode(name, "ignore") for byte in range(256)]
        signs = [text or chr(byte) for byte, text in enumerate(texts)]
        lead = {n: _class(signs[low:high]) for n, low, high in ((1, 0xC2, 0xE0), (2, 0xE0, 0xF0), (3, 0xF0, 0xF5))}
        tail = _class(signs[0x80:0xC0])
        sequence = "|".join(f"{lead[n]}{tail}{{{n}}}" for n in (1, 2, 3))
        bytes_of = {ord(signs[byte]): byte for byte in range(0x80, 0x100)}
        enough = _ENOUGH_FOR_WESTERN if name in ("cp1252", "cp1254", "iso8859_15") else _ENOUGH
        codecs.append(_Codec(name, enough, bytes_of, re.compile(sequence)))
        leads.update(signs[0xC2:0xF5])
        tails.update(signs[0x80:0xC0])
    return codecs, re.compile(_odd_pairs(leads, tails))


def _odd_pairs(leads: set[str], tails: set[str]) -> str:
    """A pattern for a lead and a tail that no word has next to each other: a sign, two scripts, a capital after a small
    letter. What is fixed elsewhere counts too: a lost byte (U+FFFD), a no-break space that became a plain one, C1
    controls.
    """
    scripts: dict[str, set[str]] = {}
    for c in leads:
        scripts.setdefault(_script(c) if c.isalpha() else "", set()).add(c)
    pairs = ["[ÂÃ][ \x80-\uffff]", "[\x80-\x9f]"]
    for script, some in scripts.items():
        others = {c for c in tails if not (script and c.isalpha() and _script(c) == script)}
        pairs.append(_class(some) + _class(others | {"\ufffd"}))
    capitals = {c for c in leads if c.isupper()}
    pairs.append(f"(?<=[a-zß-öø-ÿа-џ]){_class(capitals)}{_class(tails)}")
    # The first two bytes of quotation marks, dashes, the euro and the trade mark, where both are of one script.
    pairs.append("Ô[Çéä]|т[АВД]|вЂ")
    return "|".join(pairs)


def _class(characters: Iterable[str]) -> str:
    return "[" + "".join(map(re.escape, sorted(characters))) + "]"


def _fix_encoding(text: str) -> str:
    if text.isascii() or not _PAIR.search(text):
        return text
    if "\n" not in text:
        return _fix_line(text)
    # Lines of one text may come from different places: one that is right must not keep another from being fixed.
    return "\n".join(line if line.isascii() else _fix_line(line) for line in text.split("\n"))


def _fix_line(line: str) -> str:
    """Undo one layer of mojibake after the other. Each makes the line shorter or rids it of C1 controls, so it ends."""
    from ftfy import fix_encoding

    codecs, sign = _codecs()
    while _PAIR.search(line):
        fixed = line
        if sign.search(line):
            fixed = fix_encoding(line)
            strange = _strange(fixed) - _strange(line)
            latin_9 = _LATIN_9.search(line) is not None  # ftfy takes its letters for those of Windows-1252
            unlike = fixed == line or strange > 0 or latin_9
            if unlike or _strange(fixed):
                tried = [codec for codec in codecs if codec.name == "iso8859_15"] if latin_9 else codecs
                sure, other = max((_undo(line, codec) for codec in tried), key=lambda reading: reading[0])
                if sure and (unlike or _strange(other) < _strange(fixed)):
                    fixed = other
                elif 2 * strange > len(line) - len(fixed):
                    fixed = line
        if fixed == line and _HAN_IN_WORD.search(line):
            fixed = max((_undo_multi_byte(line, name) for name in _MULTI_BYTE), key=lambda reading: reading[0])[1]
        if fixed == line:
            return line
        line = fixed
    return line


def _undo(line: str, codec: _Codec) -> tuple[int, str]:
    """How sure it is that `line` was read in `codec`, and the line as it was; (0, line) below `_ENOUGH`."""
    pieces, weights, end, length = list[str](), list[int](), 0, 0
    decoded: list[tuple[int, str, str]] = []  # its place in the result, the sequence, its character
    for match in codec.sequence.finditer(line):
        try:
            character = bytes(codec.bytes_of[ord(c)] for c in match[0]).decode("utf-8")
        except UnicodeDecodeError:  # an overlong form or half a surrogate pair
            return 0, line
        pieces += [line[end : match.start()], character]
        length += match.start() - end
        decoded.append((length, match[0], character))
        length, end = length + 1, match.end()
    result = "".join([*pieces, line[end:]])
    for position, sequence, character in decoded:
        weight = _weight(result, position, sequence, character)
        if weight < 0:
            return 0, line
        weights.append(weight)
    sure = sum(weights)
    # Each non-ASCII character that is no part of a sequence speaks against this encoding.
    others = sum(1 for c in result if c > "\x7f") - len(decoded)
    if sure < codec.enough or sure <= others:
        return 0, line
    # No language of Latin script has more letters with marks than without: line art has.
    accented = sum(1 for _, _, character in decoded if "\x7f" < character < "\u0250")
    plain = sum(1 for c in result if c.isascii() and c.isalpha())
    return (sure, result) if accented < plain or not accented else (0, line)


def _weight(result: str, position: int, sequence: str, character: str) -> int:
    """How odd `sequence` was, and how well `character` fits its place in `result`: 2 is enough, -1: it can't be."""
    before, after = result[position - 1 : position] if position else "", result[position + 1 : position + 2]
    category = unicodedata.category(character)
    if character in _TYPOGRAPHIC or "\U0001f000" <= character <= "\U0001faff" or "\u2600" <= character <= "\u27bf":
        if len(sequence) == 2:  # two lines of a table may meet by chance; a line and a shade or a letter don't
            return 2 if "\u2500" <= sequence[0] <= "\u257f" and not "\u2500" <= sequence[1] <= "\u257f" else 1
        usual = sequence.istitle() or sequence.islower() or (sequence.isupper() and not before.islower())
        return 2 if _mixed(sequence) or not usual else 0
    if category[0] != "L":
        if category in ("So", "Sm"):  # a symbol of another layer of mojibake
            return 1 if len(sequence) == 3 and _mixed(sequence) else -1
        return 0 if category[0] in "MNP" or category == "Sc" else -1
    script = _script(character)
    neighbours = [c for c in (before, after) if c.isalpha()]
    if any(_script(c) != script for c in neighbours) or _strange(result[max(position - 1, 0) : position + 2]):
        return -1
    # whether the letter does not continue the word before it: a capital after a small letter, another script
    odd = before.isalpha() and ((before.islower() and sequence[0].isupper()) or _script(before) != _script(sequence[0]))
    if sequence[0].isalpha() and not odd:
        # A word may end so (É…, Ă™), and the next begin after it without a space; a sign after its first letter is odd.
        sign = not sequence[1:].isalpha() and sequence[1] not in _WORD_ENDS
        return 1 if sign and not before.isalpha() and after.isalpha() else 0
    if not _mixed(sequence):
        # All letters, as in the Turkish ş of Windows-1252: two capitals that continue a word of small letters.
        return 2 if len(neighbours) == 2 or (before.islower() and sequence.isupper()) else 1
    strong = not sequence[0].isalpha() and sequence[0] not in _TYPOGRAPHIC  # a line, a root: no word begins with it
    # At the end of a word it needs two letters before: after a single one a root sign may be a formula.
    at_end = position > 1 and result[position - 2 : position].isalpha()
    return 2 if len(neighbours) == 2 or (strong and after.isalpha()) or at_end else 1


def _mixed(sequence: str) -> bool:
    """Whether a sequence holds a character that is no letter, or letters of two alphabets."""
    return not sequence.isalpha() or len({_script(c) for c in sequence}) > 1


def _script(letter: str) -> str:
    """The script of a letter, by the first word of its name: LATIN, CYRILLIC ...; Japanese mixes three."""
    script = unicodedata.name(letter, "?").partition(" ")[0]
    return "CJK" if script in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA") else script


def _strange(text: str) -> int:
    return 0 if text.isascii() else len(_STRANGE.findall(text))


def _undo_multi_byte(line: str, codec: str) -> tuple[int, str]:
    """As `_undo`, for East Asian encodings, where a wrong character swallows a letter: the whole line must fit."""
    try:
        result = line.encode(codec).decode("utf-8")
    except UnicodeError:
        return 0, line
    sure = 0
    for position, c in enumerate(result):
        if c > "\x7f":
            weight = _weight(result, position, "√√√" if not c.isalpha() else "√√", c)
            if weight < 0:
                return 0, line
            sure += weight
    return (sure, result) if sure >= _ENOUGH else (0, line)


# The entities of HTML 4 and XML; those that HTML 5 added (&in; &int; &num; ...) are more often code than text.
_NAMES = "|".join(sorted({*name2codepoint, "apos"}, key=lambda name: (-len(name), name)))
# An ampersand that was escaped again and again is one unit: no number of layers takes more than one pass.
_ENTITY = re.compile(rf"&(?:(?:amp|#0*38|#[xX]0*26);)*(?:({_NAMES})|#(\d{{1,7}})|#[xX]([0-9a-fA-F]{{1,6}}));")
# Text that is HTML or XML on purpose: its entities belong there.
_MARKUP = re.compile(
    r"<(?:/[A-Za-z][\w:-]*|!--|!DOCTYPE|\?xml|(?:a|abbr|article|audio|b|blockquote|body|br|button|code|dd|div|dl|dt|em"
    r"|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|label|li|link|main|meta|nav|ol|option|p"
    r"|pre|script|section|select|small|span|strong|style|sub|sup|svg|table|tbody|td|textarea|th|thead|title|tr|u|ul"
    r"|video)(?=[\s/>])[^<>]*/?)>",
    re.I,
)
_QUOTED_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.S)


def _decode_entities(text: str) -> str:
    if "&" not in text or ";" not in text or not _ENTITY.search(text) or _MARKUP.search(text):
        return text
    if "`" not in text:
        return _ENTITY.sub(_entity, text)
    pieces, end = list[str](), 0  # what stands between backticks is shown as it is
    for code in _QUOTED_CODE.finditer(text):
        pieces += [_ENTITY.sub(_entity, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, _ENTITY.sub(_entity, text[end:])])


def _entity(match: re.Match[str]) -> str:
    name, decimal, hexadecimal = match.groups()
    if name:
        return "'" if name == "apos" else chr(name2codepoint[name])
    number = int(decimal) if decimal else int(hexadecimal, 16)
    if (number < 32 and number not in (9, 10, 13)) or number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
        return match[0]  # no character has this number
    return unescape(f"&#{number};")  # the numbers 128 to 159 mean Windows-1252 in HTML


# Scripts in which joiners (U+200C, U+200D) change what is read: Arabic, Syriac, N'Ko, the Indic scripts, Tibetan,
# Myanmar, Khmer, Mongolian and the like.
_JOINING = (
    "\u0600-\u07ff\u0840-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\u1a20-\u1b7f\ua8e0-\ua8ff\ua9e0-\uaadf\ufb50-"
    "\ufdff\ufe70-\ufefe\U00010a00-\U00010fff\U00011000-\U00011fff"
)
_EMOJI = "\xa9\xae\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_FLAG = "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"  # England, Scotland, Wales ...
_INVISIBLE = re.compile(
    rf"(?P<keep>{_FLAG})"
    r"|\x1b\[[0-9;?]*[A-Za-z]"  # colours of a terminal
    # Controls. Vertical tab, form feed and U+0085 part lines: the white-space step's business.
    r"|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]"
    # Soft hyphen, zero-width and bidi marks, byte order mark, annotations, tags, noncharacters, lone surrogates.
    r"|[\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff]"
    r"|[\U000e0000-\U000e007f\ud800-\udfff]"
    rf"|(?<![{_JOINING}])\u200c"
    rf"|(?<![{_JOINING}{_EMOJI}\ufe0f\U000e007f])\u200d|(?<=[{_EMOJI}\ufe0f])\u200d(?![{_EMOJI}])"
    # Variation selectors stand after an emoji, a sign, a keycap's digit or a character of East Asia.
    rf"|(?<![{_EMOJI}{_JOINING}0-9#*\u3000-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])[\ufe00-\ufe0f]"
    r"|(?<![\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])[\U000e0100-\U000e01ef]"
)
_CANDIDATE = re.compile(
    r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ud800-\udfff"
    r"\ufdd0-\ufdef\ufe00-\ufe0f\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e01ef]"
)  # all that _INVISIBLE may remove, as one class: many times faster where nothing has to go
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def _without_invisible(text: str) -> str:
    if not _CANDIDATE.search(text):
        return text
    if _SURROGATE_PAIR.search(text):  # UTF-16 that was never joined
        text = _SURROGATE_PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return _INVISIBLE.sub(lambda match: match["keep"] or "", text)


_LINE_END = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# The ideographic space (U+3000) is how Chinese and Japanese part words: it goes at the ends only. Mongolian joins
# its suffixes with U+202F.
_SPACE = re.compile(r"[\xa0\u2000-\u200a\u205f]|(?<![\u1800-\u18af])\u202f")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n){3,}")
_INDENTED = re.compile(r"\n(?: {2}|\t)[ \t]*\S")


def _tidy_space(text: str) -> str:
    """Line ends as \\n, spaces of other widths as a space, at most two blank lines in a row, none at the ends.

    Tabs and indentation inside stay, and so does that of the first line where further lines are indented: code.
    """
    if not text.isascii() or not text.isprintable():
        text = _LINE_END.sub("\n", text)
        if not text.isascii():
            text = _SPACE.sub(" ", text)
        if "\n" in text:
            text = _BLANK_LINES.sub("\n\n\n", text)
    stripped = text.strip()
    if text[:1] in " \t\n" and "\n" in stripped and _INDENTED.search(stripped):
        start = text.find(stripped)
        indent = text[text.rfind("\n", 0, start) + 1 : start]
        return indent + stripped if not indent.strip(" \t") else stripped
    return stripped


# --- Control tokens ------------------------------------------------------------------------------
#
# One space after the opening bracket. It can be seen, a reader still knows what stood there, it can be undone by
# hand, plain ASCII survives every later normalisation, and no tokenizer's list holds a token with it. A look-alike
# character instead of the bar would hide the change, an invisible one would be removed by the step above.

_NAMED = (
    "s|/s|bos|eos|unk|pad|BOS_TOKEN|EOS_TOKEN|EOD|start_of_turn|end_of_turn|start_of_image|end_of_image|"
    r"image_soft_token|start_of_audio|end_of_audio|unused\d+|fim_prefix|fim_middle|fim_suffix|fim_pad|"
    "file_separator|endoftext|<SYS>|</SYS>"
)
_BRACKETED = (
    "INST|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_RESULT|TOOL_CONTENT|SYSTEM_PROMPT|CALL_ID|IMG_BREAK|IMG_END|"
    "MODEL_SETTINGS|BEGIN_AUDIO|THINK"
)
_CONTROL = re.compile(
    # Llama 3, ChatML, Phi, Command R, Granite, Qwen ... and DeepSeek with bars of full width
    r"<(?=[|｜][\w.:/▁-]{1,80}[|｜]>)"
    rf"|<(?=(?:{_NAMED})>)"  # Llama 2, Gemma, code models
    rf"|\[(?=/?(?:{_BRACKETED})\])"  # Llama 2, Mistral
)
_STRUCK = re.compile(r"<s>[^<>\n]{1,200}</s>")
_TAG_OF_S = re.compile(r"</?s>")


def _neutralise(text: str) -> str:
    if ("<" not in text and "[" not in text) or not _CONTROL.search(text):
        return text
    if "<s>" in text and _STRUCK.search(text) and _MARKUP.search(_TAG_OF_S.sub("", text)):
        # In HTML a pair of <s> strikes out what stands between; alone it opens a conversation of Llama 2.
        pieces, end = list[str](), 0
        for struck in _STRUCK.finditer(text):
            inner = _CONTROL.sub(r"\g<0> ", struck[0][3:-4])
            pieces += [_CONTROL.sub(r"\g<0> ", text[end : struck.start()]), "<s>", inner, "</s>"]
            end = struck.end()
        return "".join([*pieces, _CONTROL.sub(r"\g<0> ", text[end:])])
    return _CONTROL.sub(r"\g<0> ", text)
