"""The metric that decides follows from a data set's rows, how often references name each label, and the settings."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from verdicts import HAM, flipped, rows_of, scored, verdict_of, write

from tuneloop.core.errors import UserError
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.deciding import LabelUse, deciding_metric, label_use
from tuneloop.evaluation.evaluate import evaluate
from tuneloop.evaluation.metrics.kinds import is_number
from tuneloop.evaluation.results import load_evaluation
from tuneloop.evaluation.scoring import AnswerStats
from tuneloop.evaluation.verdict import decide, verdict_in_words
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Row


@pytest.mark.parametrize(
    ("counts", "uneven"),
    [
        ([240, 40], True),  # 86 and 14 %
        ([70, 30], True),
        ([65, 35], False),
        ([40, 30, 20, 10], False),
        ([55, 15, 15, 15], True),
        ([5] * 77, False),
        ([100], False),
        ([7, 1], False),  # fewer than 5 rows a label: macro averages are noise
        ([9, 1], True),
    ],
)
def test_labels_are_uneven_by_the_evenness_of_their_shares(counts: list[int], uneven: bool) -> None:
    use = LabelUse({str(i): n for i, n in enumerate(counts)}, {})
    assert use.uneven is uneven


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 1000), min_size=1, max_size=30))
def test_evenness_is_a_share_that_is_one_for_equal_labels_and_does_not_depend_on_names(counts: dict[str, int]) -> None:
    use = LabelUse(counts, {})
    assert 0 <= use.evenness <= 1 + 1e-12
    assert LabelUse(dict.fromkeys(counts, 7), {}).evenness == pytest.approx(1)
    assert LabelUse({f"x{k}": n for k, n in counts.items()}, {}).evenness == pytest.approx(use.evenness)


def test_chance_in_a_small_sample_of_many_even_labels_does_not_make_them_uneven() -> None:
    rng = random.Random(0)
    for _ in range(50):
        drawn = [rng.choice(range(77)) for _ in range(385)]
        assert not label_use([[str(x)] for x in drawn], []).uneven


def test_uneven_labels_are_decided_by_macro_f1_and_even_ones_by_accuracy() -> None:
    assert scored(HAM, HAM).primary == "macro_f1"
    even = ["a", "b"] * 50
    assert scored(even, even).primary == "accuracy"
    assert scored(HAM, HAM).row_metric == "accuracy"  # slices and disagreements need a score of each row


def test_the_metric_that_decides_is_the_same_for_every_sample_of_a_data_set(tmp_path: Path) -> None:
    whole = {"flight": 740, "fare": 120, "airline": 60, "ground": 40, "number": 25, "meal": 15}
    drawn = [label for label, n in whole.items() for _ in range(n)]
    config = EvaluateConfig.model_validate({"bootstrap": 200, "embedding": False})
    for seed, size in ((0, 12), (1, 24), (2, 40), (3, 300)):
        labels = random.Random(seed).sample(drawn, size)
        found = evaluate(
            rows_of(labels), [Completion(x) for x in labels], task="classification", labels=list(whole), config=config, seed=0,
            measured=AnswerStats(label_rows={"": whole}),
        )  # fmt: skip
        assert found.primary == "macro_f1" and found.labels_used[""].references.keys() == set(labels)
        text = verdict_in_words(decide({"tuned": found}, [], "tuned"), {"tuned": found})
        assert '"flight" is 74 % of the rows' in " ".join(text)
        write(tmp_path / str(size), found, {"few-shot": found})
        assert load_evaluation(tmp_path / str(size)).primary == "macro_f1"
    alone = scored(few := ["flight"] * 5 + ["fare", "meal", "ground"], few)
    assert alone.primary == "accuracy"  # rows that nothing is known of besides themselves


def test_the_metric_that_decides_does_not_depend_on_the_answers() -> None:
    assert {scored(HAM, flipped(HAM, share, 1)).primary for share in (0, 0.3, 1)} == {"macro_f1"}


def test_the_user_may_name_the_metric_that_decides(tmp_path: Path) -> None:
    tuned = scored(HAM, HAM, primary="accuracy")
    assert tuned.primary == "accuracy"
    few = scored(HAM, flipped(HAM, 0.3, 1), primary="accuracy")
    found, text = verdict_of(tuned, few=few)
    assert found.metric == "accuracy" and any("evaluate.primary" in word for word in text)
    write(tmp_path, tuned, {"few-shot": few})
    assert load_evaluation(tmp_path).primary == "accuracy"  # also when it is read back to be compared


def test_a_metric_that_is_not_there_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="can't decide") as error:
        scored(HAM, HAM, primary="macro_f")
    assert "macro_f1" in str(error.value.next_step)


def answered(answers: list[Any], labelled: bool = False) -> list[Row]:
    texts = [answer if isinstance(answer, str) else json.dumps(answer) for answer in answers]
    return [
        Row(
            f"r{i}", [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": t}], t if labelled else None
        )
        for i, t in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("answers", "settings", "metric"),
    [
        ([{"queue": "a", "note": ""}] * 9, {}, "filled_f1"),
        ([{"queue": "", "tags": []}] * 9, {}, "object_accuracy"),
        ([{"queue": "a"}] * 9, {"structured": False}, "rougeL"),
        ([{"queue": "a"}] * 9, {"primary": "object_accuracy"}, "object_accuracy"),
        (["12", "3.5", "-1", "1,200"], {}, "exact_match"),
        (["12", "about 3"], {}, "rougeL"),
        (["荷物が遅れています", "返品です"], {}, "chrf"),
        (["Queue: a\nIssue: x", "Queue: b\nIssue: y"] * 6, {"fields": {"queue": "^Queue: (.+)$"}}, "queue.accuracy"),
        (["Queue: a"] * 20 + ["Queue: b"], {"fields": {"queue": "^Queue: (.+)$"}}, "queue.macro_f1"),
    ],
)
def test_answers_are_judged_by_what_fits_them(answers: list[Any], settings: dict[str, Any], metric: str) -> None:
    config = EvaluateConfig.model_validate(settings)
    assert deciding_metric(answered(answers), "generation", config) == metric


def test_labels_are_judged_by_how_even_they_are_in_the_whole_data_set() -> None:
    rows, config = answered(["a", "b"] * 10, labelled=True), EvaluateConfig()
    assert deciding_metric(rows, "classification", config) == "accuracy"
    assert deciding_metric(rows, "classification", config, {"a": 900, "b": 40}) == "macro_f1"
    several = [Row(row.id, row.messages, row.label, meta={"labels": ["a"]}) for row in rows]
    assert deciding_metric(several, "classification", config) == "micro_f1"
    assert deciding_metric([], "classification", config) == ""


def test_a_number_is_a_number_and_nothing_else() -> None:
    assert all(map(is_number, ("3", " -2.5 ", "1,200", "1e3"))) and not any(map(is_number, ("", "nan", "3 kg", "x")))
