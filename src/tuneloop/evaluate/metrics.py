"""Scorers: from references and answers to numbers.

Every metric is a function of sums over rows (right answers, a label's hits, n-gram matches ...). A scorer
therefore returns those per-row figures, `Statistics`, and the functions that turn their sums into values. A
bootstrap resample is then one matrix product, and a new metric gets its interval and its paired test for nothing.

Scales: accuracy, F1, ROUGE from 0 to 1; BLEU and chrF from 0 to 100, as sacrebleu gives them.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.core.errors import UserError
from tuneloop.core.stats import Array as Array
from tuneloop.core.stats import Statistics as Statistics
from tuneloop.records.rows import Row

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")

# Longest-common-subsequence scores cost (answer tokens) x (reference tokens). Answers are short in practice
# (`max_new_tokens`); a longer one is scored on its beginning, and the evaluation says so.
LONGEST_SCORED = 20_000


LONGEST_LABEL = 60  # characters of an answer that may be a label without being called so


def references_of(row: Row) -> list[str]:
    """The accepted answers of a row: `meta["references"]` where it is a list of texts, else its last turn."""
    several = row.meta.get("references")
    if isinstance(several, list | tuple) and several and all(isinstance(text, str) for text in several):
        return list(several)
    return [row.answer]


def last_user_turn(row: Row) -> str:
    """The text that a row asks about: its last user turn (empty where there is none)."""
    return next((turn.get("content") or "" for turn in reversed(row.prompt) if turn["role"] == "user"), "")


# --- labels --------------------------------------------------------------------------------------


def label_matcher(labels: Sequence[str], spellings: Mapping[str, str] | None = None) -> Callable[[str], str | None]:
    """Make the function that finds which label a free answer names.

    The first line of the trimmed answer must equal a label: as it is, else regardless of case, else also without
    surrounding quotes and punctuation. Where a looser form fits two labels ("C" and "C#"), it decides nothing.

    Args:
        labels: the allowed labels.
        spellings: further texts that stand for a label (answer text -> label).

    Returns:
        A function from an answer to the label, or None for an answer outside the label set.
    """
    pairs = [(label, label) for label in labels] + list((spellings or {}).items())
    tables: list[dict[str, set[str]]] = []
    for form in _LABEL_FORMS:
        table: dict[str, set[str]] = {}
        for text, label in pairs:
            table.setdefault(form(text), set()).add(label)
        tables.append(table)

    def match(text: str) -> str | None:
        lines = text.strip().splitlines()
        # The whole trimmed text comes first, for labels of more than one line.
        for candidate in (text, lines[0] if lines else ""):
            for form, table in zip(_LABEL_FORMS, tables, strict=True):
                key = form(candidate)
                found = table.get(key, set()) if key else set()
                if len(found) == 1:
                    return next(iter(found))
        return None

    return match


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold().strip()


def _bare(text: str) -> str:
    """Without case and without the quotes, punctuation and spaces around it."""
    text = _folded(text)
    start, end = 0, len(text)
    while start < end and _is_wrapping(text[start]):
        start += 1
    while end > start and _is_wrapping(text[end - 1]):
        end -= 1
    return text[start:end]


def _is_wrapping(char: str) -> bool:
    return char.isspace() or char in "`´" or unicodedata.category(char).startswith("P")


_LABEL_FORMS: tuple[Callable[[str], str], ...] = (str.strip, _folded, _bare)


def label_statistics(
    references: Sequence[str | None],
    predictions: Sequence[str | None],
    *,
    prefix: str = "",
    every: bool = True,
    known: Collection[str] = (),
) -> Statistics:
    """Accuracy, F1, precision and recall over labels.

    The same as scikit-learn's functions with `zero_division=0`: macro averages run over the labels that references or
    predictions name, balanced accuracy over those of the references; micro averages over everything, so they equal
    accuracy. A prediction of None (an answer outside the label set) is wrong for every metric and no label of its own.
    Rows whose reference is None don't count.

    Args:
        references: the right label of each row.
        predictions: the label that the answer names.
        prefix: put before metric names ("queue.").
        every: all metrics; else accuracy and macro-F1.
        known: labels that get columns whether they occur or not, so that two contenders have the same columns.
    """
    from scipy import sparse

    counted = [pair for pair in zip(references, predictions, strict=True) if pair[0] is not None]
    names = sorted({label for pair in counted for label in pair if label is not None}.union(known))
    index = {label: i for i, label in enumerate(names)}
    k, n = len(names), len(references)
    places: list[tuple[int, int]] = []
    right: list[float] = []
    for i, (reference, prediction) in enumerate(zip(references, predictions, strict=True)):
        if reference is None:
            right.append(float("nan"))
            continue
        hit = prediction == reference
        right.append(float(hit))
        places += [(i, k + index[reference]), (i, 3 * k + 1)]  # support, counted
        if hit:
            places += [(i, index[reference]), (i, 3 * k)]  # hits of the label, right
        if prediction is not None:
            places.append((i, 2 * k + index[prediction]))  # predicted
    rows = sparse.csr_matrix(
        (np.ones(len(places)), ([p[0] for p in places], [p[1] for p in places])), shape=(n, 3 * k + 2)
    )
    chosen = _label_values(k) if every else {m: f for m, f in _label_values(k).items() if m in ("accuracy", "macro_f1")}
    accuracy = f"{prefix}accuracy"
    return Statistics(
        rows=rows,
        values={f"{prefix}{name}": function for name, function in chosen.items()},
        row_scores={accuracy: right},
        right_or_wrong=frozenset({accuracy}),
        layout=tuple(names),
    )


def _label_values(k: int) -> dict[str, Callable[[Array], Array]]:
    """Metric functions over sums laid out as hits (k), support (k), predicted (k), right, counted."""

    def accuracy(sums: Array) -> Array:
        return ratio(sums[:, 3 * k], sums[:, 3 * k + 1], empty=np.nan)

    def precision(sums: Array) -> Array:
        return ratio(sums[:, :k], sums[:, 2 * k : 3 * k])

    def recall(sums: Array) -> Array:
        return ratio(sums[:, :k], sums[:, k : 2 * k])

    def f1(sums: Array) -> Array:
        return ratio(2 * sums[:, :k], sums[:, k : 2 * k] + sums[:, 2 * k : 3 * k])

    def macro(each: Callable[[Array], Array]) -> Callable[[Array], Array]:
        def value(sums: Array) -> Array:
            present = (
                sums[:, k : 2 * k] + sums[:, 2 * k : 3 * k] > 0
            )  # a label missing from a resample isn't averaged there
            return ratio((each(sums) * present).sum(axis=1), present.sum(axis=1), empty=np.nan)

        return value

    def balanced(sums: Array) -> Array:
        return ratio(recall(sums).sum(axis=1), (sums[:, k : 2 * k] > 0).sum(axis=1), empty=np.nan)

    def weighted(each: Callable[[Array], Array]) -> Callable[[Array], Array]:
        def value(sums: Array) -> Array:
            support = sums[:, k : 2 * k]
            return ratio((each(sums) * support).sum(axis=1), support.sum(axis=1), empty=np.nan)

        return value

    return {
        "accuracy": accuracy,
        "macro_f1": macro(f1),
        "micro_f1": accuracy,
        "weighted_f1": weighted(f1),
        "balanced_accuracy": balanced,
        "precision_macro": macro(precision),
        "recall_macro": macro(recall),
        "precision_micro": accuracy,
        "recall_micro": accuracy,
        "precision_weighted": weighted(precision),
        "recall_weighted": accuracy,
    }


def ratio(above: Array, below: Array | NDArray[Any], *, empty: float = 0.0) -> Array:
    """Division of arrays; `empty` where `below` is not above 0."""
    below = np.asarray(below, dtype=np.float64)
    return np.divide(above, below, out=np.full_like(below, empty), where=below > 0)


# --- texts: one score a row ----------------------------------------------------------------------


def mean_statistics(scores: Mapping[str, list[float]], *, right_or_wrong: Sequence[str] = ()) -> Statistics:
    """Metrics that are means of row scores; NaN rows don't count."""
    names = list(scores)
    table = np.array([scores[name] for name in names], dtype=np.float64).T.reshape(-1, len(names))
    counted = ~np.isnan(table)
    rows = np.hstack([np.where(counted, table, 0.0), counted.astype(np.float64)])

    def mean_of(column: int) -> Callable[[Array], Array]:
        return lambda sums: ratio(sums[:, column], sums[:, len(names) + column], empty=np.nan)

    return Statistics(
        rows=rows,
        values={name: mean_of(i) for i, name in enumerate(names)},
        row_scores=dict(scores),
        right_or_wrong=frozenset(right_or_wrong),
        layout=tuple(names),
    )


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


def loss_statistics(losses: Sequence[float], tokens: Sequence[int]) -> Statistics:
    """Mean loss of the answers' tokens and its exponential, perplexity, from sums a row.

    Args:
        losses: for each row, the sum of -log likelihood (nats) over its answer's tokens.
        tokens: for each row, how many they are.
    """
    rows = np.array([losses, tokens], dtype=np.float64).T

    def loss(sums: Array) -> Array:
        return ratio(sums[:, 0], sums[:, 1], empty=np.nan)

    def perplexity(sums: Array) -> Array:
        return np.exp(np.minimum(loss(sums), 50.0))

    each = [float(x) for x in loss(rows)]
    return Statistics(
        rows,
        {"loss": loss, "perplexity": perplexity},
        {"loss": each, "perplexity": [float(np.exp(min(x, 50.0))) for x in each]},
    )


# --- texts: corpus metrics -----------------------------------------------------------------------


def bleu_statistics(
    references: Sequence[Sequence[str]], answers: Sequence[str], *, name: str = "bleu"
) -> tuple[Statistics, str]:
    """Corpus BLEU (0 to 100) from n-gram counts, and sacrebleu's signature.

    Row scores are sentence BLEU with effective order. Source: Papineni et al. 2002; Post 2018 (sacrebleu).
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    # sacrebleu's own significance tests read the same per-segment counts: lengths, then matches, then totals.
    counts = metric._extract_corpus_statistics(list(answers), _streams(references))
    order = metric.max_ngram_order

    def score(sums: Array, *, effective_order: bool = False) -> Array:
        return np.array(
            [
                BLEU.compute_bleu(
                    correct=[int(x) for x in row[2 : 2 + order]],
                    total=[int(x) for x in row[2 + order :]],
                    sys_len=int(row[0]),
                    ref_len=int(row[1]),
                    smooth_method=metric.smooth_method,
                    smooth_value=metric.smooth_value,
                    effective_order=effective_order,
                    max_ngram_order=order,
                ).score
                for row in sums
            ]
        )

    rows = np.array(counts, dtype=np.float64)
    sentences = [float(x) for x in score(rows, effective_order=True)]
    return Statistics(rows, {name: score}, {name: sentences}), str(metric.get_signature())


def chrf_statistics(
    references: Sequence[Sequence[str]], answers: Sequence[str], *, name: str = "chrf"
) -> tuple[Statistics, str]:
    """Corpus chrF (0 to 100) from character n-gram counts, and sacrebleu's signature.

    Source: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation"; sacrebleu's averaging, in
    which orders that neither side reaches don't count.
    """
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

    return Statistics(rows, {name: score}, {name: [float(x) for x in score(rows)]}), str(metric.get_signature())


def _streams(references: Sequence[Sequence[str]]) -> list[Any]:
    """References by row -> sacrebleu's streams, with None where a row has fewer."""
    most = max(len(row) for row in references)
    return [[row[i] if i < len(row) else None for row in references] for i in range(most)]


def unfenced(text: str) -> str:
    """The content of the first Markdown fence in a text, or the text where there is none."""
    found = re.search(r"```[^\n`]*\n(.*?)```", text, re.DOTALL)
    return found.group(1) if found else text


# --- fields --------------------------------------------------------------------------------------


def compile_fields(fields: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    """Check and compile field patterns; `^` and `$` mean the ends of a line.

    Raises:
        UserError: a pattern is no regular expression, or hasn't exactly one group.
    """
    compiled = {}
    for name, pattern in fields.items():
        where = f"evaluate.fields.{name}"
        try:
            compiled[name] = re.compile(pattern, re.MULTILINE)
        except re.error as error:
            raise UserError(
                f"Not a regular expression: {error}", where=where, next_step="write it as in 'Queue: (.+)'"
            ) from None
        if compiled[name].groups != 1:
            raise UserError(
                f"A field's pattern needs exactly one group, this one has {compiled[name].groups}: {pattern!r}",
                where=where,
                next_step="put (...) around the part to compare, and (?:...) around other groups",
            )
    return compiled


def extract(pattern: re.Pattern[str], text: str) -> str | None:
    """The trimmed content of the pattern's group, or None where it doesn't match."""
    found = pattern.search(text)
    return found.group(1).strip() if found and found.group(1) is not None else None


def values_repeat(values: Sequence[str]) -> bool:
    """Whether a field's values are few enough to be treated as labels: at most max(2, n / 3) different ones."""
    return len(set(values)) <= max(2, len(values) / 3)


def are_labels(references: Sequence[Sequence[str]]) -> bool:
    """Whether reference answers are labels in all but name: one each, short, on a line, and each met twice on average."""
    texts = [row[0].strip() for row in references]
    short = all(0 < len(text) <= LONGEST_LABEL and "\n" not in text and text[0] not in "{[" for text in texts)
    return short and all(len(row) == 1 for row in references) and 2 * len(set(texts)) <= len(texts)
