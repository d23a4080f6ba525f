"""How the answers of a data set end, and which of them are cut off: learnt from the answers, whatever their language."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tuneloop.data.checks.quality import is_open

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_MARKS = frozenset('.!?…;:)]"”’。！？')

NEARLY_ALL = 0.97  # share of answers with an end mark from which one without it is suspicious by itself
KNOWN = 20  # times that a word must have been seen to know that it does not end sentences
SELDOM = 0.02
WHOLE = 2  # times that a longer word must have been seen for its beginning to count as a fragment,
FAR_MORE = 10  # and times more than the beginning itself


@dataclass(frozen=True)
class Endings:
    """What is known of the ends of many answers.

    Args:
        closed: share of the answers of six words or more that end with an end mark.
        words: how often each word stands anywhere; `last`: at the end of a sentence or answer.
        vocabulary: all words in order.
        answers: normalised answers in order, with how often each stands there.
    """

    closed: float
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
        long = closed = 0
        for answer in answers:
            text = answer.strip().lower()[-4000:]
            found = list(_WORD.finditer(text))
            words.update(match.group() for match in found)
            for match in found:
                if match.end() == len(text) or text[match.end()] in _MARKS or text[match.end()] == "\n":
                    last[match.group()] += 1
            times[text] += 1
            if len(found) >= 6:
                long += 1
                closed += not is_open(text)
        return Endings(closed / long if long >= 50 else 0.0, words, last, sorted(words), sorted(times), times)

    def is_cut(self, answer: str) -> bool:
        """Whether an answer without an end mark is cut off.

        Its last word is the beginning of a word that others use, or one that hardly ever ends a sentence here; or
        others go on where it stops; or nearly all others end with an end mark.
        """
        if not is_open(answer):
            return False
        text = answer.strip().lower()[-4000:]
        found = _WORD.findall(text)
        if not found:
            return False
        if self.closed >= NEARLY_ALL and len(found) >= 6:
            return True
        word = found[-1]
        if not text.endswith(word):  # a comma or dash
            return len(found) >= 4
        seen, ended = self.words[word] - 1, self.last[word] - 1  # without this answer itself
        if seen == ended and self._is_fragment(word, seen):
            return True
        if seen >= KNOWN and ended <= SELDOM * seen:
            return True
        return len(found) >= 4 and self._others_go_on(text)

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
        """Whether more answers begin with this one and go on with a word than stop here."""
        place, on = bisect_right(self.answers, text), 0
        while place < len(self.answers) and self.answers[place].startswith(text):
            if self.answers[place][len(text) : len(text) + 2].strip()[:1].isalnum():
                on += self.times[self.answers[place]]
            place += 1
        return on > self.times[text]
