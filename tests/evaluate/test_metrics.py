import math
import random
import re
import warnings

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sklearn import metrics as sk

from tuneloop.core.errors import UserError
from tuneloop.core.stats import mean_statistics
from tuneloop.evaluate.metrics.corpus import bleu_statistics, chrf_statistics
from tuneloop.evaluate.metrics.fields import compile_fields, extract
from tuneloop.evaluate.metrics.labels import label_matcher, label_statistics
from tuneloop.evaluate.metrics.losses import loss_statistics
from tuneloop.evaluate.metrics.overlap import ROUGE, exact_match, is_latin, length_ratio, meteor, rouge, token_f1
from tuneloop.records.rows import Row, references_of

LABELS = ["ant", "bee", "cat", "dog"]
TEXTS = [
    (["The quick brown fox jumps over the lazy dog."], "A quick brown fox jumped over lazy dogs"),
    (["Restart the router.\nThen call us."], "Then call us.\nRestart the router."),
    (["first version of it", "another accepted version"], "another version, accepted"),
    (["Größe ändern, bitte"], "Bitte Größe ändern"),
    (["one two three four five six"], ""),
]
REFERENCES = [r for r, _ in TEXTS]
ANSWERS = [a for _, a in TEXTS]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LABELS[:3]), st.sampled_from([*LABELS, None])), min_size=1, max_size=30))
def test_label_metrics_are_scikit_learns_with_answers_outside_the_labels_as_wrong(pairs):
    references, predictions = [a for a, _ in pairs], [b for _, b in pairs]
    ours = label_statistics(references, predictions).point_values()
    said = [p or "(invalid)" for p in predictions]
    named = sorted({*references, *predictions} - {None})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = {
            "accuracy": sk.accuracy_score(references, said),
            "macro_f1": sk.f1_score(references, said, average="macro", labels=named, zero_division=0),
            "micro_f1": sk.f1_score(references, said, average="micro", zero_division=0),
            "weighted_f1": sk.f1_score(references, said, average="weighted", labels=named, zero_division=0),
            "balanced_accuracy": sk.balanced_accuracy_score(references, said),
            "precision_macro": sk.precision_score(references, said, average="macro", labels=named, zero_division=0),
            "recall_macro": sk.recall_score(references, said, average="macro", labels=named, zero_division=0),
            "precision_micro": sk.precision_score(references, said, average="micro", zero_division=0),
            "recall_micro": sk.recall_score(references, said, average="micro", zero_division=0),
            "precision_weighted": sk.precision_score(
                references, said, average="weighted", labels=named, zero_division=0
            ),
            "recall_weighted": sk.recall_score(references, said, average="weighted", labels=named, zero_division=0),
        }
    assert ours == pytest.approx(theirs)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LABELS[:3]), st.sampled_from(LABELS)), min_size=1, max_size=30))
def test_where_all_answers_are_labels_averages_are_scikit_learns_own_defaults(pairs):
    references, predictions = [a for a, _ in pairs], [b for _, b in pairs]
    ours = label_statistics(references, predictions).point_values()
    for average in ("macro", "micro", "weighted"):
        for name, function in (("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
            key = f"{average}_f1" if name == "f1" else f"{name}_{average}"
            assert ours[key] == pytest.approx(function(references, predictions, average=average, zero_division=0))


def test_rows_without_a_reference_do_not_count():
    with_gap = label_statistics(["a", None, "b", "b"], ["a", "b", "a", "b"])
    without = label_statistics(["a", "b", "b"], ["a", "a", "b"])
    assert with_gap.point_values() == without.point_values()
    assert math.isnan(with_gap.row_scores["accuracy"][1])


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("card_arrival", "card_arrival"),
        ("  card_arrival \n", "card_arrival"),
        ('"Card_Arrival".', "card_arrival"),
        ("**card_arrival**", "card_arrival"),
        ("card_arrival\nbecause the card is late", "card_arrival"),
        ("the label is card_arrival", None),
        ("card arrival", None),
        ("", None),
        ("\n \n", None),
        ("C", "C"),
        ("c#", "C#"),
        ("'C'", None),  # fits C and C# once the punctuation is off: decides nothing
        ("\ud800", None),
        ("x" * 1_000_000, None),
    ],
)
def test_free_answers_match_a_label_or_none(answer, label):
    assert label_matcher(["card_arrival", "C", "C#"])(answer) == label


def test_a_reference_text_stands_for_its_label():
    match = label_matcher(["billing"], {"Queue: billing": "billing"})
    assert match("queue: Billing.") == "billing"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True), st.text())
def test_matching_never_fails_and_only_names_labels(labels, answer):
    found = label_matcher(labels)(answer)
    assert found is None or found in labels


def test_every_label_that_is_different_after_trimming_matches_itself():
    labels = ["a", "A", "a.", "b b", "?", "ß", "ss", "two\nlines"]
    match = label_matcher(labels)
    assert [match(label) for label in labels] == labels


def test_rouge_is_rouge_scores_best_reference_with_stemming():
    ours = rouge(REFERENCES, ANSWERS)
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    for kind in ROUGE:
        theirs = [
            max(scorer.score(r, a)[kind].fmeasure for r in refs) for refs, a in zip(REFERENCES, ANSWERS, strict=True)
        ]
        assert ours[kind] == pytest.approx(theirs)
    assert ours["rougeL"][1] < ours["rougeLsum"][1]  # lines count as sentences


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


@pytest.mark.parametrize(("pattern", "said"), [("Queue: (", "regular expression"), ("Queue", "one group")])
def test_a_bad_field_pattern_names_its_key(pattern, said):
    with pytest.raises(UserError, match=said) as error:
        compile_fields({"queue": pattern})
    assert error.value.where == "evaluate.fields.queue"


def test_fields_are_read_by_line():
    pattern = compile_fields({"queue": r"^Queue: (.+)$"})["queue"]
    assert extract(pattern, "Hello\nQueue:  billing \nIssue: x") == "billing"
    assert extract(pattern, "no queue") is None


def test_script_that_rouge_cannot_read_is_told():
    assert is_latin(["Größe ändern", "naïve café"])
    assert not is_latin(["无法登录 VPN"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text(st.characters(), max_size=40)), min_size=1, max_size=4))
def test_text_scorers_stay_in_range_on_wild_text(pairs):
    references, answers = [[r] for r, _ in pairs], [a for _, a in pairs]
    shares = [s for kind in rouge(references, answers).values() for s in kind]
    shares += [token_f1(r, a) for r, a in zip(references, answers, strict=True)]
    assert all(0 <= s <= 1 for s in shares)
    for scorer in (bleu_statistics, chrf_statistics):
        (value,) = scorer(references, answers)[0].point_values().values()
        assert 0 <= value <= 100 + 1e-9


def test_labels_in_the_hundreds_are_quick_and_right():
    rng = random.Random(0)
    names = [f"label {i}" for i in range(300)]
    references = [rng.choice(names) for _ in range(2000)]
    predictions = [r if rng.random() < 0.8 else rng.choice(names) for r in references]
    ours = label_statistics(references, predictions).point_values()["macro_f1"]
    assert ours == pytest.approx(sk.f1_score(references, predictions, average="macro", zero_division=0))


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
        each = [
            single_meteor_score(split(r), split(answer), stemmer=PorterStemmer(), wordnet=NoSynonyms())
            for r in references
        ]
        assert ours == pytest.approx(max(each), abs=1e-6)


def test_length_ratio_takes_the_nearest_reference():
    statistics = length_ratio([["a b", "a b c d"], ["x y z"]], ["1 2 3 4 5", "1"])
    assert statistics.point_values()["length_ratio"] == pytest.approx(6 / 7)
    assert statistics.row_scores["length_ratio"] == pytest.approx([5 / 4, 1 / 3])


def test_perplexity_comes_from_all_tokens_and_not_from_the_mean_of_rows():
    values = loss_statistics([2.0, 30.0], [2, 10]).point_values()
    assert values["loss"] == pytest.approx(32 / 12)
    assert values["perplexity"] == pytest.approx(math.exp(32 / 12))
