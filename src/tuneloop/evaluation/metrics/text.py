"""Texts against their references: exact match, token F1, ROUGE, METEOR, length, BLEU and chrF of the whole split, and
similarity of meaning by sentence embeddings.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from tuneloop.core.lazy import np
from tuneloop.core.stats.intervals import Array, Statistics, ratio
from tuneloop.records.metric import Metric

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# Longest-common-subsequence scores cost (answer tokens) x (reference tokens). Answers are short in practice
# (`max_new_tokens`); a longer one is scored on its beginning, and the evaluation says so.
LONGEST_SCORED = 20_000

METRICS = (
    Metric("exact_match", "exact match", "share", test="exact McNemar", meaning="answers that equal a reference"),
    Metric("token_f1", "token F1", meaning="overlap of words, as in SQuAD"),
    Metric("rouge1", "ROUGE-1", meaning="overlap of stemmed words"),
    Metric("rouge2", "ROUGE-2", meaning="overlap of pairs of stemmed words"),
    Metric("rougeL", "ROUGE-L", headline="texts", meaning="longest common subsequence of stemmed words"),
    Metric("rougeLsum", "ROUGE-Lsum", meaning="the same line by line"),
    Metric("meteor", "METEOR", meaning="words and stems in both, with a penalty for another order; no synonyms"),
    Metric("length_ratio", "length ratio", "from 0", "neither", "none",
           meaning="words of the answers over words of the references"),
    Metric("bleu", "BLEU", "0..100", meaning="n-grams of words, of the whole split"),
    Metric("chrf", "chrF", "0..100", headline="texts", meaning="n-grams of characters, of the whole split"),
    Metric("embedding", "similarity of meaning", meaning="cosine of MiniLM vectors"),
)  # fmt: skip


def exact_match(references: Sequence[str], answer: str) -> float:
    """1 if the trimmed answer equals one of the trimmed references, else 0."""
    return float(answer.strip() in {reference.strip() for reference in references})


def token_f1(references: Sequence[str], answer: str) -> float:
    """Overlap of word bags, the best over the references, 0 to 1: the F1 of SQuAD (Rajpurkar et al. 2016) with its
    normalisation (lower case, no punctuation, no English articles); punctuation is Unicode's."""
    answer_words = Counter(_squad_words(answer))
    bags = [Counter(_squad_words(reference)) for reference in references]
    return max(
        2 * (bag & answer_words).total() / (bag.total() + answer_words.total()) if bag or answer_words else 1.0
        for bag in bags
    )


def _squad_words(text: str) -> list[str]:
    text = text.lower()
    if text.isascii():
        bare = text.translate(_NO_ASCII_PUNCTUATION)
    else:
        bare = "".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return [word for word in bare.split() if word not in ("a", "an", "the")]


_NO_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge(
    references: Sequence[Sequence[str]], answers: Sequence[str], kinds: Sequence[str] = ROUGE
) -> dict[str, list[float]]:
    """ROUGE F1 of each row, with Porter stemming, the best over its references, 0 to 1. The package rouge-score reads
    only a-z and 0-9 (`is_latin` tells whether that makes sense). rougeLsum takes lines as sentences. Source: Lin 2004,
    "ROUGE: a package for automatic evaluation of summaries"."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    # The kinds of ROUGE and several references ask for the stems of a text repeatedly.
    tokenize = lru_cache(maxsize=10_000)(DefaultTokenizer(use_stemmer=True).tokenize)
    scorer = RougeScorer(list(kinds), tokenizer=SimpleNamespace(tokenize=tokenize))
    rows = [scorer.score_multi(list(row), answer) for row, answer in zip(references, answers, strict=True)]
    return {kind: [float(row[kind].fmeasure) for row in rows] for kind in kinds}


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

    stemmer = SimpleNamespace(stem=lru_cache(maxsize=100_000)(PorterStemmer().stem))
    no_synonyms = SimpleNamespace(synsets=lambda word: [])  # WordNet without its data
    return [
        float(meteor_score([_words(r) for r in row], _words(answer), stemmer=stemmer, wordnet=no_synonyms))
        for row, answer in zip(references, answers, strict=True)
    ]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def length_ratio(references: Sequence[Sequence[str]], answers: Sequence[str]) -> Statistics:
    """Words of all answers over words of their references (the one nearest in length); 1: equally long."""
    rows, scores = np.zeros((len(answers), 2)), []
    for i, (row, answer) in enumerate(zip(references, answers, strict=True)):
        length = len(answer.split())
        right = min((len(text.split()) for text in row), key=lambda n: (abs(n - length), n))
        rows[i] = length, right
        scores.append(length / right if right else float("nan"))
    function = {"length_ratio": lambda sums: ratio(sums[:, 0], sums[:, 1], empty=np.nan)}
    return Statistics(rows, function, {"length_ratio": scores})


def bleu_statistics(references: Sequence[Sequence[str]], answers: Sequence[str]) -> tuple[Statistics, str]:
    """Corpus BLEU (0 to 100) from n-gram counts, and sacrebleu's signature. Row scores are sentence BLEU with effective
    order. Source: Papineni et al. 2002; Post 2018 (sacrebleu)."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    # sacrebleu's own significance tests read the same per-segment counts: lengths, then matches, then totals.
    counts = metric._extract_corpus_statistics(list(answers), _streams(references))
    order = metric.max_ngram_order

    options = {"smooth_method": metric.smooth_method, "smooth_value": metric.smooth_value, "max_ngram_order": order}

    def sentence(row: Array, effective_order: bool) -> float:
        answer, reference, *numbers = map(int, row)
        sizes = {"correct": numbers[:order], "total": numbers[order:], "sys_len": answer, "ref_len": reference}
        return float(BLEU.compute_bleu(**sizes, **options, effective_order=effective_order).score)

    def score(sums: Array, *, effective_order: bool = False) -> Array:
        return np.array([sentence(row, effective_order) for row in sums])

    rows = np.array(counts, dtype=np.float64)
    sentences = [float(x) for x in score(rows, effective_order=True)]
    return Statistics(rows, {"bleu": score}, {"bleu": sentences}), str(metric.get_signature())


def chrf_statistics(references: Sequence[Sequence[str]], answers: Sequence[str]) -> tuple[Statistics, str]:
    """Corpus chrF (0 to 100) from character n-gram counts, and sacrebleu's signature. Source: Popović 2015, "chrF:
    character n-gram F-score for automatic MT evaluation"; sacrebleu's averaging, in which orders that neither side
    reaches don't count."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    rows = np.array(metric._extract_corpus_statistics(list(answers), _streams(references)), dtype=np.float64)
    factor = float(metric.beta**2)

    def score(sums: Array) -> Array:
        answer, reference, match = sums[:, 0::3], sums[:, 1::3], sums[:, 2::3]
        reached = (answer > 0) & (reference > 0)
        orders = reached.sum(axis=1)
        precision = ratio((ratio(match, answer) * reached).sum(axis=1), orders)
        recall = ratio((ratio(match, reference) * reached).sum(axis=1), orders)
        return 100 * ratio((1 + factor) * precision * recall, factor * precision + recall)

    return Statistics(rows, {"chrf": score}, {"chrf": [float(x) for x in score(rows)]}), str(metric.get_signature())


def _streams(references: Sequence[Sequence[str]]) -> list[Any]:
    most = max(len(row) for row in references)
    return [[row[i] if i < len(row) else None for row in references] for i in range(most)]


def similarity(
    references: Sequence[Sequence[str]], answers: Sequence[str], embed: Callable[[Sequence[str]], Any]
) -> list[float]:
    """Cosine of each answer with its nearest reference, -1 to 1; MiniLM reads the first 256 tokens, mostly English. An
    empty answer has 0. A high score is no proof: "is" and "is not" lie close together."""
    texts = list(dict.fromkeys([_clean(t) for row in references for t in row] + [_clean(t) for t in answers]))
    vectors = embed(texts)
    index = {text: i for i, text in enumerate(texts)}
    scores = []
    for row, answer in zip(references, answers, strict=True):
        vector = vectors[index[_clean(answer)]]
        best = max(float(vectors[index[_clean(text)]] @ vector) for text in row)
        scores.append(best if answer.strip() else 0.0)
    return scores


def _clean(text: str) -> str:
    # Tokenizers outside Python refuse lone surrogates; beyond this length no token is read.
    return text[:10_000].encode("utf-8", "replace").decode()
