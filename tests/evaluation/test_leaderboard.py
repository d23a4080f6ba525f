"""The leaderboard of systems."""

from __future__ import annotations

from verdicts import flipped, scored

from tuneloop.evaluation.alternatives.classifiers import TFIDF
from tuneloop.evaluation.alternatives.constants import MAJORITY
from tuneloop.evaluation.leaderboard import leaderboard_in_words, leaderboard_of
from tuneloop.evaluation.paired import adjusted, compare


def test_with_every_baseline_turned_off_the_ladder_is_empty() -> None:
    assert leaderboard_of({}, {}) == [] and leaderboard_in_words([]) == []


def test_the_gain_of_a_leaderboard_is_that_of_the_comparison_and_its_sentences_have_their_numbers() -> None:
    labels = ["a", "b"] * 25
    everyone = {name: scored(labels, flipped(labels, wrong, i)) for i, (name, wrong) in enumerate(SYSTEMS.items())}
    tuned = everyone["tuned"]
    pairs = [c for n, e in everyone.items() if n != "tuned" for c in compare(n, e, "tuned", tuned)]
    comparisons = adjusted(pairs, tuned)
    pair = next(c for c in comparisons if c.metric == "accuracy" and c.a == "few-shot")
    entries = {e.name: e for e in leaderboard_of(everyone, {}, tuned=["tuned"], comparisons=comparisons)}
    shown = entries["tuned"]
    assert (shown.gain_low, shown.gain_high, shown.p, shown.verdict) == (pair.low_holm, pair.high_holm, pair.p_holm, pair.verdict)  # fmt: skip
    del everyone["tuned"]
    alone = {e.name: e for e in leaderboard_of(everyone, {})}
    assert alone[TFIDF].p is not None and alone[TFIDF].p > 0.05  # corrected for four
    (sentence,) = leaderboard_in_words(list(alone.values()))
    assert sentence.startswith(f"{TFIDF} is not shown to differ from the base model (+") and "ties" not in sentence
    assert "95 % interval" in sentence and "corrected for 4 comparisons" in sentence


SYSTEMS = {"few-shot": 0.4, "zero-shot": 0.5, "few-shot calibrated": 0.45, MAJORITY: 0.5, TFIDF: 0.22, "tuned": 0.2}


def test_a_classifier_behind_the_constant_answer_is_called_better_than_nothing() -> None:
    labels = ["a"] * 60 + ["b"] * 40
    ahead = {"few-shot": scored(labels, ["b"] * 60 + ["a"] * 40), TFIDF: scored(labels, ["a"] * 90 + ["b"] * 10)}
    assert f"{TFIDF} is better" in leaderboard_in_words(leaderboard_of(ahead, {}))[0]
    constant = {MAJORITY: scored(labels, ["a"] * 100)}
    behind = {**constant, **ahead, TFIDF: scored(labels, ["b"] * 32 + ["a"] * 28 + ["b"] * 30 + ["a"] * 10)}
    assert leaderboard_in_words(leaderboard_of(behind, {})) == []
