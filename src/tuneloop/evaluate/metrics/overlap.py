"""Texts against their references, one score a row: exact match, token F1, ROUGE, METEOR, length."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tuneloop.core.late import np
from tuneloop.core.stats import Statistics, ratio
from tuneloop.records.metric import Metric

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


# Longest-common-subsequence scores cost (answer tokens) x (reference tokens). Answers are short in practice
# (`max_new_tokens`); a longer one is scored on its beginning, and the evaluation says so.
LONGEST_SCORED = 20_000

METRICS = (
    Metric("exact_match", "exact match", "share", test="exact McNemar", meaning="share of answers that equal a reference"),
    Metric("token_f1", "token F1", meaning="overlap of words, as in SQuAD"),
    Metric("rouge1", "ROUGE-1", meaning="overlap of stemmed words"),
    Metric("rouge2", "ROUGE-2", meaning="overlap of pairs of stemmed words"),
    Metric("rougeL", "ROUGE-L", headline="texts", meaning="longest common subsequence of stemmed words"),
    Metric("rougeLsum", "ROUGE-Lsum", meaning="the same line by line"),
    Metric("meteor", "METEOR", meaning="words and stems in both, with a penalty for another order; no synonyms"),
    Metric("length_ratio", "length ratio", "from 0", "neither", "none", meaning="words of the answers over words of the references"),
)  # fmt: skip


def exact_match(references: Sequence[str], answer: str) -> float:
    """1 if the trimmed answer equals one of the trimmed references, else 0."""
    return float(answer.strip() in {reference.strip() for reference in references})


def token_f1(references: Sequence[str], answer: str) -> float:
    """Overlap of word bags, the best over the references, 0 to 1.

    Source: the F1 of SQuAD (Rajpurkar et al. 2016), whose normalisation it takes (lower case, no punctuation, no
    English articles); punctuation is Unicode's, not only ASCII's.
    """
    words = _squad_words(answer)
    return max(_bag_f1(_squad_words(reference), words) for reference in references)


def _bag_f1(reference: list[str], answer: list[str]) -> float:
    if not reference or not answer:
        return float(reference == answer)
    common = sum((Counter(reference) & Counter(answer)).values())
    return 2 * common / (len(reference) + len(answer))


def _squad_words(text: str) -> list[str]:
    text = text.lower()
    if text.isascii():
        kept = text.translate(_NO_ASCII_PUNCTUATION)
    else:
        kept = "".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return [word for word in kept.split() if word not in ("a", "an", "the")]


_NO_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge(
    references: Sequence[Sequence[str]], answers: Sequence[str], kinds: Sequence[str] = ROUGE
) -> dict[str, list[float]]:
    """ROUGE F1 of each row, with Porter stemming, the best over its references, 0 to 1.

    The package rouge-score reads only a-z and 0-9 (`is_latin` tells whether that makes sense). rougeLsum takes lines
    as sentences.

    Source: Lin 2004, "ROUGE: a package for automatic evaluation of summaries".
    """
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    scorer = RougeScorer(list(kinds), tokenizer=_Remembering(DefaultTokenizer(use_stemmer=True)))
    rows = [scorer.score_multi(list(row), answer) for row, answer in zip(references, answers, strict=True)]
    return {kind: [float(row[kind].fmeasure) for row in rows] for kind in kinds}


class _Remembering:
    """A tokenizer that stems each text once: the kinds of ROUGE and several references ask for it repeatedly."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[str]] = {}

    def tokenize(self, text: str) -> list[str]:
        if text not in self._known:
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[text] = self._tokenizer.tokenize(text)
        return self._known[text]


def is_latin(texts: Sequence[str]) -> bool:
    """Whether most letters of the texts are a-z, which is all that ROUGE reads."""
    letters = ascii_letters = 0
    for text in texts:
        letters += sum(map(str.isalpha, text))
        ascii_letters += sum(c.isalpha() for c in text if c.isascii())
    return 2 * ascii_letters >= letters


def meteor(references: Sequence[Sequence[str]], answers: Sequence[str]) -> list[float]:
    """METEOR of each row, the best over its references, 0 to 1.

    Exactly: nltk's `meteor_score` (alpha 0.9, beta 3, gamma 0.5) with its matchers of equal words and of equal Porter
    stems, on lower-cased words and single signs; its WordNet synonyms are left out, since they need a download. Scores
    are at or below those with synonyms.

    Source: Lavie & Agarwal 2007, "METEOR: an automatic metric for MT evaluation with high levels of correlation with
    human judgments".
    """
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import meteor_score

    stemmer = _RememberingStemmer(PorterStemmer())
    return [
        float(meteor_score([_words(r) for r in row], _words(answer), stemmer=stemmer, wordnet=_NoSynonyms()))
        for row, answer in zip(references, answers, strict=True)
    ]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


class _RememberingStemmer:
    """A stemmer that stems each word once."""

    def __init__(self, stemmer: Any) -> None:
        self.stem = lru_cache(maxsize=100_000)(stemmer.stem)


class _NoSynonyms:
    """WordNet without its data."""

    def synsets(self, word: str) -> list[Any]:
        return []


def length_ratio(references: Sequence[Sequence[str]], answers: Sequence[str]) -> Statistics:
    """Words of all answers over words of their references (the one nearest in length); 1 is as long as asked for."""
    rows, scores = np.zeros((len(answers), 2)), []
    for i, (row, answer) in enumerate(zip(references, answers, strict=True)):
        said = len(answer.split())
        right = min((len(text.split()) for text in row), key=lambda n: (abs(n - said), n))
        rows[i] = said, right
        scores.append(said / right if right else float("nan"))
    return Statistics(
        rows, {"length_ratio": lambda sums: ratio(sums[:, 0], sums[:, 1], empty=np.nan)}, {"length_ratio": scores}
    )
