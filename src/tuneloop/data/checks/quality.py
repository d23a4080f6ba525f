"""Signs of a bad row that the row alone shows, found row by row in the workers of prepare.

A flag is a suspicion, not a reject. What depends on the other rows (short for this data set, truncated while its peers
are not) is decided in `checks`; here only the sign is noted, such as an answer with an open end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from tuneloop.data import repair
from tuneloop.data.formats.answers import error_answer
from tuneloop.data.pii.credentials import keys
from tuneloop.records.rows import Message

FLAGS = (
    "boilerplate",  # an assistant speaks of itself: "As an AI language model"
    "copied_answer",  # the answer is the input again
    "cut_off",  # a code fence, bracket or JSON that is not closed, or an ellipsis after much text
    "empty_answer",  # no letter or digit, or a word for nothing: null, N/A, undefined
    "empty_prompt",  # the user says next to nothing, or a word for nothing
    "error_output",  # the message of a failed call instead of an answer
    "garbled",  # characters that are lost for good: U+FFFD, remains of mojibake, "isn?t"
    "gibberish",  # hardly letters, one character over and over, or keys hit at random
    "html_leftovers",  # tags or entities in prose
    "open_end",  # the last sentence has no end mark
    "refusal",  # the assistant declines
    "repetition",  # the same words over and over
    "secret",  # looks like a key, token or password that was not redacted
)
_BIT = {flag: 1 << place for place, flag in enumerate(FLAGS)}

_END = frozenset(".!?…\"')]}>*`|:;。！？」』”’)»›।؟")
_NOTHING = frozenset(
    ("null", "n/a", "na", "nan", "undefined", "tbd", "todo", "nil", "[]", "{}", "<empty>", "[object object]", "none", "(null)")
)  # fmt: skip
_NO_LABEL = _NOTHING - {"none"}  # also what no question is: an export of tables writes null for a missing text
_BOILERPLATE = (  # looked for one by one: faster than one pattern, as hardly any text holds one
    "as an ai", "as an artificial intelligence", "as a language model", "as a large language model", "ai language model",
    "i am an ai", "i'm an ai", "i am just an ai", "i'm just an ai", "i am a language model", "i'm a language model",
    "i am a large language model", "i'm a large language model", "my knowledge cutoff", "my knowledge cut-off",
    "my training data", "my last update", "trained by openai", "developed by openai", "created by openai",
    "have personal opinions", "have personal experiences", "have personal feelings", "have real-time access",
)  # fmt: skip
_SELF = (" ai", "language model", "openai", "my training", "my knowledge", "my last", "have personal", "have real")
_REFUSAL = re.compile(
    r"\bi(?:'m| am)? ?(?:really |very |truly |so )?(?:sorry|afraid|unable|not able)\b[^.!?\n]{0,60}\b(?:can't|cannot|can not|"
    r"unable to|not able to|won't|couldn't) (?:assist|help|comply|fulfil|fulfill|provide|answer|do that|continue|generate|"
    r"create|write|engage|discuss|support)|^(?:unfortunately, |sorry, (?:but )?)?i (?:can't|cannot|can not|won't|will not|am unable to|"
    r"am not able to|'m unable to|'m not able to) (?:assist|help with|comply|fulfil|fulfill|provide|answer|do that|continue|generate|"
    r"create|engage|discuss)|\b(?:against|violates?) (?:my|our|openai's) (?:guidelines|polic|programming|terms)"
)
_TAG = re.compile(
    r"</?(?:p|br|div|span|b|i|u|a|td|tr|th|table|li|ul|ol|font|strong|em|h[1-6]|img|script|style|body)(?: [^<>]*)?/?>",
    re.I,
)
_ENTITY = re.compile(r"&(?:nbsp|amp|lt|gt|quot|apos|#\d{2,6}|#x[0-9a-f]{2,5});", re.I)
_SECRET_STARTS = (  # a sign that hardly any text holds, and what a secret with it may begin with
    ("_", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "sk_live_", "hf_")),
    ("-", ("-----BEGIN", "xox", "sk-", "glpat-")),
    ("A", ("AKIA", "ASIA", "AIza")),
    ("eyJ", ("eyJ",)),
)
_OPEN_QUOTE = re.compile(r'(?:^|[\s([{:])"(?=[^\W\d])[^"\n]*$')  # a quotation begins, and the text ends
_NEXT_ITEM = re.compile(r"\n[ \t]*([-*•]|(\d{1,3})[.)])$")  # a list's next item is only its mark
_MASH = re.compile(r"[bcdfghjklmnpqrstvwxz]{7,}", re.I)
_CONSONANTS = bytes(99 if chr(code).lower() in "bcdfghjklmnpqrstvwxz" else 32 for code in range(256))
_WORDS = re.compile(r"\w+")
_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_VOWELS = b"aeiouyAEIOUY"
_DIGITS_AND_SPACES = b"0123456789 \t\n"

PEEK = 400  # characters of a text that gibberish and refusals are looked for in
MUCH = 200  # characters from which an ellipsis at the end says that something is missing
NGRAM = 4
REPEATED = 0.4  # share of 4-grams that stood before in the same answer; Gopher's rules allow 0.15 in long documents


def flags(messages: Sequence[Message], label: str | None) -> tuple[str, ...]:
    """The flags of a row, in the order of `FLAGS`.

    Args:
        messages: the conversation; its last turn is the answer.
        label: the class, where the answer is one: then only the prompt and emptiness are looked at.
    """
    answer = messages[-1]["content"].strip()
    question, turns, parts = "", 0, []
    earlier: list[str] = []  # answers before the last one
    for message in messages:
        content = message["content"]
        parts.append(content)
        if message["role"] == "user":
            question, turns = content, turns + 1
        elif message["role"] == "assistant" and message is not messages[-1] and "weight" not in message:
            earlier.append(content)
    text = "\n".join(parts)
    flags_found: list[str] = []
    if question and not (turns > 1 and len(question) < 4):  # "y" can continue a conversation, not begin it
        _of_prompt(question, flags_found)
    _of_text(text, flags_found)
    if label is not None and len(answer) < 200:
        if not answer or answer.lower() in _NO_LABEL:
            flags_found.append("empty_answer")
    else:
        if not messages[-1].get("tool_calls"):
            _of_answer(answer, question, flags_found)
        for said in earlier:
            if said and not said.isspace():
                _of_end(said.strip(), flags_found)
    return tuple(sorted(flags_found)) if len(flags_found) > 1 else tuple(flags_found)


def as_bits(flags: Iterable[str]) -> int:
    """Flags as one number, a bit each."""
    bits = 0
    for flag in flags:
        bits |= _BIT[flag]
    return bits


def bit(flag: str) -> int:
    """The bit of a flag in the number that `as_bits` gives."""
    return _BIT[flag]


def is_open(answer: str) -> bool:
    """Whether an answer of three words, or twelve Chinese signs, or more ends without an end mark."""
    answer = answer.rstrip()
    return (
        bool(answer)
        and answer[-1] not in _END
        and (answer[-1].isalnum() or answer[-1] in ",-–—(/&+=，、")
        and (answer.count(" ") >= 2 or (not answer.isascii() and len(answer) >= 12 and answer[-1] >= "\u3040"))
    )


def _of_prompt(question: str, found: list[str]) -> None:
    head = question[:PEEK]
    if len(head) < 16 and head.isascii() and (sum(map(str.isalnum, head)) < 2 or head.strip().lower() in _NO_LABEL):
        found.append("empty_prompt")
        return
    if not head.isascii():
        if len(head) >= 8 and len(set(head)) <= 2:
            found.append("gibberish")
        return
    raw = head.encode()
    rest = raw.translate(None, _LETTERS)
    letters = len(raw) - len(rest)
    signs = len(rest.translate(None, _DIGITS_AND_SPACES))
    if (
        (signs > 4 and signs > 2 * letters and "```" not in head)
        or (len(raw) >= 6 and letters and len(set(raw[:8])) <= 2 and len(set(raw)) <= 2)
        or (letters >= 10 and len(raw.translate(None, _VOWELS)) > len(raw) - 0.08 * letters)
        or (
            letters < 80
            and b"ccccccc" in raw.translate(_CONSONANTS)
            and sum(map(len, _MASH.findall(head))) > 0.4 * letters
        )
    ):
        found.append("gibberish")


def _of_text(text: str, found: list[str]) -> None:
    if repair.garbled(text) is not None:
        found.append("garbled")
    if "<" in text:
        if ("```" not in text and _TAG.search(text) and "html" not in text.lower()) or (
            "&" in text and _ENTITY.search(text)
        ):
            found.append("html_leftovers")
    elif "&" in text and ";" in text and _ENTITY.search(text):
        found.append("html_leftovers")
    for sign, starts in _SECRET_STARTS:
        if sign in text:
            for start in starts:
                if start in text and next(keys(text), None):
                    found.append("secret")
                    return


def _of_answer(answer: str, question: str, found: list[str]) -> None:
    lower = answer.lower().replace("’", "'")
    if lower in _NOTHING or not any(map(str.isalnum, answer[:PEEK])):
        # An emoji can be an answer; null is what a failed call leaves behind.
        if error_answer(answer, question):
            found.append("error_output")
        elif lower in _NOTHING or answer.isascii():
            found.append("empty_answer")
        return
    if error_answer(answer, question):
        found.append("error_output")
        return
    if any([sign in lower for sign in _SELF]):
        for phrase in _BOILERPLATE:
            if phrase in lower and re.search(phrase + r"\b", lower):
                found.append("boilerplate")
                break
    head = lower[:PEEK]
    if (
        "can't" in head or "cannot" in head or "not " in head or "won't" in head or "unable" in head or "violat" in head
    ) and (_REFUSAL.search(head)):
        found.append("refusal")
    if (
        len(answer) >= 30
        and 0.8 * len(answer) <= len(question) <= 1.25 * len(answer)
        and _copied(lower, question.lower())
    ):
        found.append("copied_answer")
    if len(answer) >= 24 and _repeats(lower):
        found.append("repetition")
    _of_end(answer, found)


def _of_end(answer: str, found: list[str]) -> None:
    """Add `cut_off` or `open_end`, each once."""
    flag = "cut_off" if _unclosed(answer) else "open_end" if is_open(answer) else None
    if flag and flag not in found:
        found.append(flag)


def _copied(answer: str, question: str) -> bool:
    """Whether the answer is the input again, but for signs and a few words at the ends."""
    one, other = " ".join(_WORDS.findall(answer)), " ".join(_WORDS.findall(question.replace("’", "'")))
    short, long = sorted((one, other), key=len)
    return short.count(" ") >= 4 and short in long and len(short) >= 0.85 * len(long)


def _repeats(lower: str) -> bool:
    """Whether words come again and again.

    After the repetition rules of Rae et al. 2021 (Gopher, arXiv 2112.11446, table A1), with limits for answers of
    some lines: there a repeated word or two is no fault yet.
    """
    words = lower.split()
    n = len(words)
    if n < 6:
        return n <= 2 and len(set(lower)) * 8 <= len(lower)  # "hahahahaha..." and text without spaces
    if n < 20:
        return len(set(words)) <= 0.34 * n
    if 2 * len(set(words)) > n:  # so many different words leave no room for that many repeated 4-grams
        return False
    grams = n - NGRAM + 1
    distinct = len(set(zip(words, words[1:], words[2:], words[3:], strict=False)))
    return distinct < (1 - REPEATED) * grams and "```" not in lower and "|" not in lower


def _unclosed(answer: str) -> bool:
    if "```" in answer and answer.count("```") % 2:
        return True
    if answer[0] in "{[" and answer[-1] not in "}])" and len(answer) > 1:
        if answer[:2] in ('{"', '["', "[{", "[[") or answer[0] == "{":
            try:
                json.loads(answer)
            except ValueError:
                return True
        return answer[0] == "[" and "]" not in answer
    if '{"' in answer and answer.rfind('{"') > answer.rfind("}"):  # JSON in the middle
        return True
    if '"' in answer and is_open(answer) and _OPEN_QUOTE.search(answer):
        return True
    if answer[-1] in ".)-*•" and (begun := _NEXT_ITEM.search(answer)):
        mark, number = begun[1], begun[2]
        before = f"{int(number) - 1}{mark[-1]}" if number else mark
        return re.search(rf"^[ \t]*{re.escape(before)}[ \t]+\S", answer, re.M) is not None
    if "(" in answer and answer.rfind("(") > answer.rfind(")") and answer.count("(") > answer.count(")"):
        return not re.search(r"[:;=]-?\(", answer) and len(answer) - answer.rfind("(") < MUCH
    return len(answer) >= MUCH and (answer.endswith("...") or answer[-1] == "…")
