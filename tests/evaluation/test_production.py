import json
import random

import pytest

from tuneloop.core.errors import UserError
from tuneloop.data.checks.drift import tell_apart
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import evaluate
from tuneloop.evaluation.production import against_production
from tuneloop.evaluation.results import ComparedWith, write_evaluation
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Subject
from tuneloop.records.rows import Row

EASY = ["card pin change please", "card limit higher", "my card is blocked", "new card ordered"]
HARD = ["parcel lost on the way again", "refund for a broken parcel", "parcel came too late", "courier never rang"]


def row(i, text, label):
    return Row(f"r{i}", [{"role": "user", "content": text}, {"role": "assistant", "content": label}], label)


def mixed(n, hard, seed):
    rng = random.Random(seed)
    return [row(i, f"{rng.choice(HARD if rng.random() < hard else EASY)} {rng.randint(0, 999)}", "a") for i in range(n)]


def evaluated(hard=0.2, n=300):
    rows = mixed(n, hard, 1)
    answers = [
        Completion("b" if "parcel" in r.messages[0]["content"] or "courier" in r.messages[0]["content"] else "a")
        for r in rows
    ]
    return evaluate(
        rows, answers, task="classification", labels=["a", "b"], config=EvaluateConfig(bootstrap=200), seed=0
    )


def test_a_test_set_easier_than_production_is_told_and_its_score_reweighted():
    found = against_production(evaluated(hard=0.2), mixed(400, 0.8, 2), tell_apart)
    assert found.differs and found.score == pytest.approx(0.8, abs=0.07)
    assert found.reweighted.value == pytest.approx(0.2, abs=0.1)
    assert found.reweighted.low < found.reweighted.value < found.reweighted.high
    assert found.effective_rows < 200
    assert "parcel" in found.in_words() and "differs from production" in found.in_words()


def test_a_test_set_like_production_is_told_and_its_score_stays():
    found = against_production(evaluated(hard=0.5), mixed(400, 0.5, 2), tell_apart)
    assert not found.differs and "look like production" in found.in_words()
    assert found.reweighted.value == pytest.approx(found.score, abs=0.05)
    assert found.differs_in == []


def test_labels_and_lengths_are_compared():
    rows = [row(i, f"{' '.join(['more'] * 30)} parcel {i}", "b" if i % 4 else "a") for i in range(100)]
    found = against_production(evaluated(), rows, tell_apart)
    assert any("length" in part for part in found.differs_in) and any("labels" in part for part in found.differs_in)


def test_too_little_to_compare_is_the_users_error():
    with pytest.raises(UserError, match="at least 20"):
        against_production(evaluated(), mixed(5, 0.5, 1), tell_apart)
    with pytest.raises(UserError, match="no words to compare"):
        empty = [row(i, "", "a") for i in range(30)]
        against_production(
            evaluate(
                empty,
                [Completion("a")] * 30,
                task="classification",
                labels=["a", "b"],
                config=EvaluateConfig(bootstrap=100),
                seed=0,
            ),
            empty,
            tell_apart,
        )


def test_the_file_and_the_words_hold_it(tmp_path):
    found = evaluated()
    against = against_production(found, mixed(200, 0.9, 3), tell_apart)
    write_evaluation(tmp_path, found, Subject("m", "d", "test"), ComparedWith({}, [], production=against))
    manifest = json.loads((tmp_path / "eval.json").read_text())
    assert manifest["production"]["differs"] is True
    assert manifest["production"]["reweighted"]["value"] < manifest["production"]["score"]
    assert "differs from production" in manifest["words"][-1]
