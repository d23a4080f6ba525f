"""Metrics of a corpus are sacrebleu's, of a resample too."""

import numpy as np
import pytest
import sacrebleu
from text_answers import ANSWERS, REFERENCES

from tuneloop.evaluation.metrics.text import bleu_statistics, chrf_statistics


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_corpus_and_sentence_values_are_sacrebleus(name):
    scorer = {"bleu": bleu_statistics, "chrf": chrf_statistics}[name]
    metric = {"bleu": sacrebleu.BLEU, "chrf": sacrebleu.CHRF}[name]()
    statistics, signature = scorer(REFERENCES, ANSWERS)
    streams = [[r[i] if i < len(r) else None for r in REFERENCES] for i in range(2)]
    assert statistics.point_values()[name] == pytest.approx(metric.corpus_score(ANSWERS, streams).score)
    assert signature == str(metric.get_signature())
    sentence = sacrebleu.sentence_bleu if name == "bleu" else sacrebleu.sentence_chrf
    assert statistics.row_scores[name] == pytest.approx(
        [sentence(a, r).score for a, r in zip(ANSWERS, REFERENCES, strict=True)]
    )


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_a_resample_has_sacrebleus_value_of_the_resampled_corpus(name):
    scorer = {"bleu": bleu_statistics, "chrf": chrf_statistics}[name]
    statistics, _ = scorer(REFERENCES, ANSWERS)
    drawn = [0, 0, 2, 3, 1]
    sums = np.asarray(statistics.rows)[drawn].sum(axis=0)[None]
    again, _ = scorer([REFERENCES[i] for i in drawn], [ANSWERS[i] for i in drawn])
    assert float(statistics.values[name](sums)[0]) == pytest.approx(again.point_values()[name])
