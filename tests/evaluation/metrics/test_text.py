"""Metrics of texts have the values of the libraries that define them."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from text_answers import ANSWERS, REFERENCES

from tuneloop.core.stats.intervals import mean_statistics
from tuneloop.evaluation.metrics.kinds import is_latin
from tuneloop.evaluation.metrics.text import (
    ROUGE,
    bleu_statistics,
    chrf_statistics,
    exact_match,
    length_ratio,
    meteor,
    rouge,
    token_f1,
)
from tuneloop.records.rows import Row, references_of


def test_rouge_is_rouge_scores_best_reference_with_stemming():
    ours = rouge(REFERENCES, ANSWERS)
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    for kind in ROUGE:
        theirs = [
            max(scorer.score(r, a)[kind].fmeasure for r in refs) for refs, a in zip(REFERENCES, ANSWERS, strict=True)
        ]
        assert ours[kind] == pytest.approx(theirs)
    assert ours["rougeL"][1] < ours["rougeLsum"][1]  # lines count as sentences


def test_token_f1_is_squads():
    assert token_f1(["The cat sat."], "a cat sat") == 1.0
    assert token_f1(["cat sat down"], "cat ran") == pytest.approx(2 * 1 / 5)
    assert token_f1(["cat", "dog ran"], "dog ran") == 1.0
    assert token_f1(["„Größe“"], "größe") == 1.0
    assert token_f1(["cat"], "") == 0.0
    assert token_f1([""], "") == 1.0


def test_exact_match_trims_and_takes_any_reference():
    assert exact_match(["yes ", "yeah"], "\nyeah") == 1.0
    assert exact_match(["yes"], "Yes") == 0.0


def test_means_leave_out_rows_that_do_not_count():
    assert mean_statistics({"x": [1.0, math.nan, 0.0]}).point_values() == {"x": 0.5}


def test_references_come_from_meta_where_it_lists_texts():
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert references_of(Row("1", messages, meta={"references": ["b", "c"]})) == ["b", "c"]
    assert references_of(Row("1", messages, meta={"references": []})) == ["a"]
    assert references_of(Row("1", messages, meta={"references": [1]})) == ["a"]


def test_script_that_rouge_cannot_read_is_told():
    assert is_latin(["Größe ändern", "naïve café"])
    assert not is_latin(["无法登录 VPN"])


@given(st.lists(st.tuples(st.text(), st.text(st.characters(), max_size=40)), min_size=1, max_size=4))
def test_text_scorers_stay_in_range_on_wild_text(pairs):
    references, answers = [[r] for r, _ in pairs], [a for _, a in pairs]
    shares = [s for kind in rouge(references, answers).values() for s in kind]
    shares += [token_f1(r, a) for r, a in zip(references, answers, strict=True)]
    assert all(0 <= s <= 1 for s in shares)
    for scorer in (bleu_statistics, chrf_statistics):
        (value,) = scorer(references, answers)[0].point_values().values()
        assert 0 <= value <= 100 + 1e-9


def test_meteor_has_the_published_values_of_its_examples():
    # nltk's documentation; none of these sentences is matched by a synonym only.
    hypothesis = "It is a guide to action which ensures that the military always obeys the commands of the party"
    reference = "It is a guide to action that ensures that the military will forever heed Party commands"
    assert meteor([[reference]], [hypothesis]) == [pytest.approx(0.6944, abs=5e-5)]
    assert meteor([["this is a cat"]], ["non matching hypothesis"]) == [0.0]


def test_meteor_by_hand():
    # 3 of 3 words by equal words or stems, in one chunk: F 1, penalty 0.5 * (1 / 3) ** 3
    assert meteor([["the cats sat"]], ["the cat sat"]) == [pytest.approx(1 - 0.5 / 27)]
    # precision 1, recall 1/2, one chunk of one word
    f_mean = (1 * 0.5) / (0.9 * 1 + 0.1 * 0.5)
    assert meteor([["cat sat"]], ["cat"]) == [pytest.approx(f_mean * 0.5)]


def test_meteor_is_nltks_without_synonyms_and_takes_the_best_reference():
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import single_meteor_score

    class NoSynonyms:
        def synsets(self, word):
            return []

    def split(text):
        return re.findall(r"\w+|[^\w\s]", text)

    for references, answer, ours in zip(REFERENCES, ANSWERS, meteor(REFERENCES, ANSWERS), strict=True):
        item = [
            single_meteor_score(split(r), split(answer), stemmer=PorterStemmer(), wordnet=NoSynonyms())
            for r in references
        ]
        assert ours == pytest.approx(max(item), abs=1e-6)


def test_length_ratio_takes_the_nearest_reference():
    statistics = length_ratio([["a b", "a b c d"], ["x y z"]], ["1 2 3 4 5", "1"])
    assert statistics.point_values()["length_ratio"] == pytest.approx(6 / 7)
    assert statistics.row_scores["length_ratio"] == pytest.approx([5 / 4, 1 / 3])
