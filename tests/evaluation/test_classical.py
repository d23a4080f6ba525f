import importlib.util
import json
import math
import random

import pytest

from places import DATA_SETS
from tuneloop.core.errors import UserError
from tuneloop.evaluation import classical
from tuneloop.models.encoder import minilm_folder
from tuneloop.records.rows import Row

BANKING = DATA_SETS / "banking77"


def row(i, text, label):
    return Row(str(i), [{"role": "user", "content": text}, {"role": "assistant", "content": label or ""}], label)


WORDS = {"fruit": ["apple", "pear", "plum", "grape"], "tool": ["hammer", "saw", "drill", "wrench"]}
TRAIN = [row(i, f"I want a {WORDS[label][i // 2 % 4]} today", label) for i, label in enumerate(["fruit", "tool"] * 20)]
HOSTILE = [row("e", "", "fruit"), row("s", "\ud800 pear", "fruit"), row("m", "saw " * 250_000, "tool")]


def makers():
    yield classical.tfidf_system
    if minilm_folder() is not None:
        yield classical.minilm_system


@pytest.mark.parametrize("make", list(makers()))
def test_an_alternative_learns_and_gives_log_probabilities(make):
    trained = make(TRAIN)
    questions = [row("a", "a pear please", "fruit"), row("b", "where is the drill", "tool"), *HOSTILE]
    answers = trained.system(questions)
    assert [a.text for a in answers][:2] == ["fruit", "tool"]
    assert len(answers) == len(questions)
    for answer in answers:
        assert sum(math.exp(s) for s in answer.label_scores.values()) == pytest.approx(1, abs=1e-4)
        assert max(answer.label_scores, key=answer.label_scores.get) == answer.text
    assert trained.seconds > 0
    assert trained.system([]) == []


def several(i, words, labels):
    turns = [{"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": "x"}]
    return Row(str(i), turns, ", ".join(labels) or "none", meta={"labels": labels or ["none"]})


def test_rows_with_several_labels_get_a_decision_a_label_also_in_sets_never_seen():
    sets = [["fruit"], ["tool"], ["big"], ["big", "fruit"], []]
    words = {"fruit": "apple", "tool": "hammer", "big": "huge"}
    train = [several(i, [words[w] for w in sets[i % 5]] + ["today"], sets[i % 5]) for i in range(60)]
    answer = classical.tfidf_system(train).system
    asked = [several("a", ["a", "huge", "hammer"], []), several("b", ["nothing", "today"], []), train[3]]
    assert [a.text for a in answer(asked)] == ["big, tool", "none", "big, fruit"]
    never_empty = classical.tfidf_system([row for row in train if row.label != "none"]).system
    assert all(a.text not in ("", "none") for a in never_empty(asked))
    assert answer([]) == []


def test_training_twice_gives_the_same():
    one, two = classical.tfidf_system(TRAIN), classical.tfidf_system(TRAIN)
    assert one.system(HOSTILE) == two.system(HOSTILE)


def test_one_label_or_no_words_is_a_user_error():
    with pytest.raises(UserError, match="two labels"):
        classical.tfidf_system([row(1, "x", "only"), row(2, "y", None)])
    with pytest.raises(UserError, match="no words"):
        classical.tfidf_system([row(1, "", "a"), row(2, "", "b")])


def test_without_the_package_there_is_no_embedding_system(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setenv("TUNELOOP_CACHE", str(tmp_path))  # where it may have been fetched
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "minilm" in name else find(name))
    assert classical.minilm_system(TRAIN) is None


@pytest.mark.skipif(not BANKING.is_dir(), reason="banking77 isn't beside the repository (../shared/data)")
def test_real_intents_are_told_apart():
    def read(name):
        records = [json.loads(line) for line in (BANKING / name).read_text(encoding="utf-8").splitlines()]
        return [row(i, r["text"], r["label"]) for i, r in enumerate(records)]

    train, test = read("train.jsonl"), read("test.jsonl")
    labels = set(sorted({r.label for r in train})[:10])
    train = [r for r in train if r.label in labels]
    test = random.Random(0).sample([r for r in test if r.label in labels], 150)
    answers = classical.tfidf_system(train).system(test)
    assert sum(a.text == r.label for a, r in zip(answers, test, strict=True)) / len(test) > 0.9
