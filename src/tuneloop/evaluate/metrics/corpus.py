"""BLEU and chrF: n-gram counts summed over the whole split, as sacrebleu computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuneloop.core.late import np
from tuneloop.core.stats import Array, Statistics, ratio
from tuneloop.records.metric import Metric

METRICS = (
    Metric("bleu", "BLEU", "0..100", meaning="n-grams of words, of the whole split"),
    Metric("chrf", "chrF", "0..100", headline="texts", meaning="n-grams of characters, of the whole split"),
)


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
