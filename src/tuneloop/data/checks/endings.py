"""How the answers of a data set end, and which of them are cut off: learnt from the answers, whatever their language."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tuneloop.data.checks.quality import is_open

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_MARKS = frozenset('.!?…;:)]"”’。！？')

# Words that a sentence hardly ever ends with, by language: articles, conjunctions, prepositions, auxiliaries before a verb.
_GO_ON = frozenset(
    re.findall(
        r"\w+",
        """
        the a an and or but nor of with from into onto about between because although whereas if than whose which your my our
        their its der die das ein eine einen einem einer und oder aber mit von zum zur bei nach seit weil dass wenn sowie für
        gegen ohne le la les un une des du et ou mais avec de dans pour sans sur chez parce que qui dont aux ce cette ces el
        los las y o pero con sin para por del al una unos unas porque su sus il lo gli i uno e ma di da con per tra fra nel
        nella della dello degli che os as um uma em com sem não do da dos das no na nos nas het een en maar van met voor naar
        omdat dat
        """,
    )
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
    """What is known of the ends of many answers.

    Args:
        closed: share of the answers that end with an end mark, by `_kind`; of kinds with enough answers.
        words: how often each word stands anywhere; `last`: at the end of a sentence or answer.
        vocabulary: all words in order.
        answers: normalised answers in order, with how often each stands there.
    """

    closed: dict[str, float]
    words: Counter[str]
    last: Counter[str]
    vocabulary: list[str]
    answers: list[str]
    times: Counter[str]

    @staticmethod
    def of(answers: Sequence[str]) -> Endings:
        """Learn from answers."""
        words: Counter[str] = Counter()
        last: Counter[str] = Counter()
        times: Counter[str] = Counter()
        of: Counter[str] = Counter()
        closed: Counter[str] = Counter()
        for answer in answers:
            text = answer.strip().lower()[-4000:]
            words_here = list(_WORD.finditer(text))
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

        The other items of its list all end with an end mark; its last word is the beginning of a word that
        others use, or one that hardly ever ends a sentence, here or in any text; or others continue where it stops; or nearly
        all others of its kind end with an end mark.
        """
        if not is_open(answer):
            return False
        text = answer.strip().lower()[-4000:]
        words = _WORD.findall(text)
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
        return len(words) >= 4 and unusual and self._others_go_on(text)

    def _is_fragment(self, word: str, seen: int) -> bool:
        """Whether a word that stands at ends only is the beginning of one that is far more frequent."""
        if len(word) < 2 or word.isdigit():
            return False
        wanted = max(WHOLE, FAR_MORE * seen)
        place = bisect_right(self.vocabulary, word)
        while place < len(self.vocabulary) and self.vocabulary[place].startswith(word):
            if self.words[self.vocabulary[place]] >= wanted:
                return True
            place += 1
        return False

    def _others_go_on(self, text: str) -> bool:
        """Whether more answers begin with this one and continue with a word than stop here."""
        place, on = bisect_right(self.answers, text), 0
        while place < len(self.answers) and self.answers[place].startswith(text):
            if self.answers[place][len(text) : len(text) + 2].strip()[:1].isalnum():
                on += self.times[self.answers[place]]
            place += 1
        return on > self.times[text]


def _kinds(text: str, words: int) -> list[str]:
    """What the share of answers with an end mark is known for: texts of six words or more, long ones, and those in Chinese signs."""
    if _CJK.match(text[-1:]) or _CJK.match(text[-2:-1]):
        return ["signs"] if len(text) >= 12 else []
    return ["words", "long"][: (words >= 6) + (words >= LONG)]


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
