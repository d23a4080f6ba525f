import json
import math
import random

import pytest

from tuneloop.core.errors import UserError
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import evaluate
from tuneloop.evaluation.results import write_evaluation
from tuneloop.evaluation.scoring import AnswerStats
from tuneloop.evaluation.slices import (
    breakdown,
    breakdown_in_words,
    confusion_matrix,
    error_groups,
    per_class,
    slice_values,
    slices,
)
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Subject
from tuneloop.records.rows import Row

LABELS = ["billing", "delivery", "returns"]
FAST = EvaluateConfig(bootstrap=100)


def ticket(i, label, text=None, **meta):
    turns = [
        {"role": "user", "content": text or f"ticket number {i} about {label}"},
        {"role": "assistant", "content": label},
    ]
    return Row(f"r{i}", turns, label, meta={"source": "data/tickets.jsonl", "line": i, **meta})


def evaluated(n=300, wrong=lambda i, row: False, said="billing", **extra):
    rng = random.Random(0)
    rows = [
        ticket(
            i,
            LABELS[i % 3],
            channel=("mail", "chat")[i % 2],
            tier=i // 60,
            created=f"2024-{1 + i % 12:02}-03",
            score=rng.random(),
        )
        for i in range(n)
    ]
    answers = [Completion(said if wrong(i, row) else row.label) for i, row in enumerate(rows)]
    return evaluate(rows, answers, task="classification", labels=LABELS, config=FAST, seed=0, **extra)


def test_a_slice_that_is_worse_is_named_and_others_are_not():
    rng = random.Random(1)
    result = evaluated(wrong=lambda i, row: rng.random() < (0.5 if row.meta["channel"] == "chat" else 0.05), said="?")
    found = {(s.field, s.value): s for s in slices(result)}
    chat = found["channel", "chat"]
    assert chat.verdict == "worse" and chat.n == 150 and chat.delta < 0 and chat.p_holm >= chat.p
    assert found["channel", "mail"].verdict == "better"
    assert {s.verdict for key, s in found.items() if key[0] in ("tier", "score")} == {"not enough evidence"}
    assert "channel chat" in " ".join(breakdown_in_words(breakdown(result, {})))


def test_what_rows_have_in_common_is_found():
    values = slice_values(evaluated(measured=AnswerStats(languages=["de", "en"] * 150)))
    assert set(values) == {"label", "language", "channel", "tier", "created", "score"}
    assert values["tier"][299] == ("4",) and values["language"][0] == ("de",)
    assert len(set(values["score"])) == 4 and len(set(values["created"])) == 4
    assert values["created"][0][0].startswith("2024-01-03 to 2024-")


def test_fields_asked_for_are_the_only_ones_of_the_metadata_and_must_be_there():
    result = evaluated()
    assert set(slice_values(result, ["channel"])) == {"label", "channel"}
    with pytest.raises(UserError, match="'nowhere'"):
        slice_values(result, ["nowhere"])


def test_no_slice_is_worse_by_chance():
    alarms = 0
    for seed in range(20):
        wrong = {i for i in range(300) if random.Random(f"{seed} {i}").random() < 0.3}
        result = evaluated(wrong=lambda i, row, wrong=wrong: i in wrong, said="?")
        alarms += any(s.verdict != "not enough evidence" for s in slices(result))
    assert alarms <= 3


def test_lengths_of_texts_and_scores_that_are_no_shares_are_sliced():
    rows = [
        Row(
            f"r{i}",
            [
                {"role": "user", "content": "word " * (1 + i % 40) + str(i)},
                {"role": "assistant", "content": "one two three"},
            ],
        )
        for i in range(120)
    ]
    answers = [Completion("one two three" if len(r.messages[0]["content"]) < 100 else "one four five") for r in rows]
    config = EvaluateConfig(bootstrap=100, embedding=False)
    result = evaluate(rows, answers, task="generation", labels=None, config=config, seed=0)
    found = {s.value: s.verdict for s in slices(result) if s.field == "length"}
    assert list(found.values()).count("better") == 2 and list(found.values()).count("worse") >= 1
    assert all(name.endswith("words") for name in found)


def test_too_few_rows_give_no_slices_and_a_constant_score_no_verdict():
    assert slices(evaluated(n=6)) == []
    assert {s.verdict for s in slices(evaluated(n=60))} == {"not enough evidence"}


def test_labels_with_their_invalid_answers_and_confusions():
    result = evaluated(n=30, wrong=lambda i, row: i in (1, 4, 7), said="billing")
    result.answers[2:3] = [Completion("?")]
    result = evaluate(result.rows, result.answers, task="classification", labels=LABELS, config=FAST, seed=0)
    table = {c["label"]: c for c in per_class(result)}
    assert table["delivery"] == {
        "label": "delivery", "n": 10, "precision": 1.0, "recall": 0.7, "f1": pytest.approx(14 / 17), "predicted": 7, "invalid": 0,
    }  # fmt: skip
    assert table["returns"]["invalid"] == 1 and table["billing"]["predicted"] == 13
    matrix = confusion_matrix(result)
    assert ["delivery", "billing", 3] in matrix["cells"] and ["returns", None, 1] in matrix["cells"]
    assert sum(n for *_, n in matrix["cells"]) == 30
    found = breakdown(result, {})
    assert found["confusion_pairs"] == [{"label": "delivery", "predicted": "billing", "n": 3, "of": 10}]
    assert "delivery taken for billing (3 of 10 rows)" in " ".join(breakdown_in_words(found))


def test_rows_where_systems_disagree_are_listed():
    a, b = (
        evaluated(n=30, wrong=lambda i, row: i in (1, 4), said="returns"),
        evaluated(n=30, wrong=lambda i, row: i == 7, said="returns"),
    )
    found = breakdown(a, {"zero-shot": b})["disagreements"]["zero-shot"]
    assert (found["better"], found["worse"]) == (1, 2)
    assert {row["id"] for row in found["rows"]} == {"r1", "r4", "r7"}


def test_errors_are_grouped_by_what_the_rows_say():
    topics = [
        "my parcel never arrived at the door",
        "the card was charged twice this month",
        "where is my parcel now",
        "card fee charged again",
    ]
    rows = [ticket(i, LABELS[i % 3], f"{topics[i % 4]} {i}") for i in range(80)]
    result = evaluate(rows, [Completion("?")] * 80, task="classification", labels=LABELS, config=FAST, seed=0)
    groups = error_groups(result)
    assert len(groups) >= 2 and sum(g["n"] for g in groups) == 80
    assert any("parcel" in " ".join(g["terms"]) for g in groups) and any(
        "charged" in " ".join(g["terms"]) for g in groups
    )
    assert error_groups(evaluated(n=60)) == []


def test_wild_metadata_breaks_nothing():
    wild = [None, "", "\ud800", 3, True, [1], {"a": 1}, math.inf, -1, "2024-99-99", 10**40]
    rows = [ticket(i, LABELS[i % 3], created=wild[i % len(wild)], mixed=wild[(i * 7) % len(wild)]) for i in range(60)]
    result = evaluate(rows, [Completion("?")] * 60, task="classification", labels=LABELS, config=FAST, seed=0)
    assert breakdown(result, {})["slices"]


def test_the_file_holds_the_breakdown_in_bounded_lists(tmp_path):
    result = evaluated(wrong=lambda i, row: row.meta["channel"] == "chat" and i % 3 == 1)
    write_evaluation(tmp_path, result, Subject("m", "d", "test"))
    manifest = json.loads((tmp_path / "eval.json").read_text())
    assert {"primary", "per_class", "confusion", "confusion_pairs", "slices", "disagreements", "errors"} <= set(
        manifest
    )
    assert {"field", "value", "n", "score", "low", "high", "rest", "p", "p_holm", "verdict"} <= set(
        manifest["slices"][0]
    )
    assert any("Significantly worse" in sentence for sentence in manifest["words"])
