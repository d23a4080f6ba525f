import json
import math
import time
from collections import Counter
from dataclasses import replace

import pytest
import sacrebleu
from evaluations import CARD, FAST, LABELS, cards, cards_evaluation, classification, labels_evaluation, row, written

from patience import slowness
from tuneloop.core.errors import UserError
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.deciding import primary_metric
from tuneloop.evaluation.evaluate import evaluate, sample_order, sample_rows
from tuneloop.evaluation.paired import compare
from tuneloop.evaluation.results import load_evaluation, write_evaluation
from tuneloop.evaluation.scoring import AnswerStats
from tuneloop.evaluation.verdict import decide, verdict_in_words
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Subject
from tuneloop.records.rows import Row


def programs_evaluation(*answers, further=()):
    test = "def check(f):\n    assert f(2) == 4\n"
    rows = [row(i, "def f(x): return 2 * x", test=test, entry_point="f") for i in range(len(answers))]
    measured = AnswerStats(further=further)
    return evaluate(
        rows, [Completion(a) for a in answers], task="generation", labels=None, config=FAST, seed=0, measured=measured
    )


def test_invalid_answers_are_wrong_and_counted():
    rows, _ = classification(4, 1.0)
    answers = [
        Completion(rows[0].label),
        Completion("no idea"),
        Completion(""),
        Completion(f"  {rows[3].label.upper()}."),
    ]
    result = evaluate(rows, answers, task="classification", labels=LABELS, config=FAST, seed=0)
    assert result.metrics["accuracy"].value == 0.5
    assert result.invalid == 2
    assert result.valid == [True, False, False, True]
    assert result.predictions == [rows[0].label, None, None, rows[3].label]


def test_few_rows_a_label_are_noted():
    assert any("fewer than 5 a label" in note for note in labels_evaluation(20, 0.9).notes)
    assert labels_evaluation(25, 0.9).notes == []


def test_every_classification_metric_has_an_interval_around_it():
    result = labels_evaluation(200, 0.8)
    assert list(result.metrics) == [
        "accuracy",
        "macro_f1",
        "micro_f1",
        "weighted_f1",
        "balanced_accuracy",
        "precision_macro",
        "recall_macro",
        "precision_micro",
        "recall_micro",
        "precision_weighted",
        "recall_weighted",
        "invalid_rate",
    ]
    for name, estimate in result.metrics.items():
        if name == "invalid_rate":
            continue
        assert 0 < estimate.low < estimate.value < estimate.high < 1
    assert result.metrics["micro_f1"] == result.metrics["accuracy"]


def test_the_same_seed_gives_the_same_evaluation_and_another_one_other_intervals():
    rows, answers = classification(50, 0.7)
    both = [evaluate(rows, answers, task="classification", labels=LABELS, config=FAST, seed=s) for s in (3, 3, 4)]
    assert both[0] == both[1]
    assert both[0].metrics["macro_f1"].low != both[2].metrics["macro_f1"].low


def test_generation_has_the_text_metrics_and_sacrebleus_corpus_values():
    result = cards_evaluation()
    expected = {"exact_match", "token_f1", "rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf"}
    assert expected <= set(result.metrics)
    texts, references = [a.text for a in result.answers], [r.answer for r in result.rows]
    assert result.metrics["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(texts, [references]).score)
    assert result.metrics["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score)
    assert "version:" in result.signatures["chrf"]


def test_fields_that_repeat_are_labels_and_others_texts():
    result = cards_evaluation()
    assert result.metrics["queue.accuracy"].value == pytest.approx(8 / 12)
    assert "queue.macro_f1" in result.metrics
    assert result.metrics["issue.rougeL"].value == 1.0
    assert result.invalid == 4  # "not access" is no queue
    assert primary_metric("generation", ["queue"], result.metrics) == "queue.accuracy"
    assert primary_metric("generation", ["issue"], result.metrics) == "issue.rougeL"


def test_a_missing_field_is_wrong_in_the_answer_and_left_out_in_the_reference():
    rows = [row(1, "Queue: a"), row(2, "Queue: b"), row(3, "nothing")]
    config = EvaluateConfig(bootstrap=100, fields={"queue": "Queue: (.+)"})
    answers = [Completion("Queue: a"), Completion("no queue"), Completion("Queue: b")]
    result = evaluate(rows, answers, task="generation", labels=None, config=config, seed=0)
    assert result.metrics["queue.accuracy"].value == 0.5
    assert result.invalid == 1
    assert any("1 reference answers lack" in note for note in result.notes)


def test_a_field_that_no_reference_has_is_refused():
    rows, answers = cards(3)
    config = EvaluateConfig(bootstrap=100, fields={"queue": "Warteschlange: (.+)"})
    with pytest.raises(UserError, match="none of the reference"):
        evaluate(rows, answers, task="generation", labels=None, config=config, seed=0)


def test_hostile_answers_are_scored_and_noted():
    rows, _ = cards(5)
    answers = [
        Completion(""),
        Completion("word " * 200_000),
        Completion("\ud800 \udfff"),
        Completion("\x00\u2028"),
        Completion("x", finish="length", prompt_tokens=1, completion_tokens=2),
    ]
    start = time.monotonic()
    result = evaluate(rows, answers, task="generation", labels=None, config=CARD, seed=0)
    assert time.monotonic() - start < 10 * slowness()
    assert all(0 <= e.value <= 100 for name, e in result.metrics.items() if name != "length_ratio")
    assert any("20,000 characters" in note for note in result.notes)
    assert any("1 of 5 answers was cut off" in note for note in result.notes)


def test_a_script_that_rouge_cannot_read_gets_no_rouge():
    rows = [row(i, text) for i, text in enumerate(["无法登录系统", "打印机坏了", "网络很慢"])]
    result = evaluate(rows, [Completion(r.answer) for r in rows], task="generation", labels=None, config=FAST, seed=0)
    assert "rougeL" not in result.metrics
    assert result.metrics["chrf"].value == pytest.approx(100)
    assert primary_metric("generation", (), result.metrics) == "chrf"
    assert any("ROUGE" in note for note in result.notes)


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_one_row_has_a_value(task):
    rows = [row(0, "a b c d", "a b c d")]
    result = evaluate(rows, [Completion("a b c d")], task=task, labels=None, config=FAST, seed=0)
    assert result.metrics[primary_metric(task, (), result.metrics)].value == 1.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows, answers: ([], []), "no rows"),
        (lambda rows, answers: (rows, answers[1:]), "19 answers"),
        (lambda rows, answers: ([rows[0]] * 20, answers), "same id"),
        (lambda rows, answers: ([row(99, "x"), *rows[1:]], answers), "no label"),
    ],
)
def test_what_cannot_be_scored_is_a_user_error(change, said):
    rows, answers = change(*classification(20, 1.0))
    with pytest.raises(UserError, match=said):
        evaluate(rows, answers, task="classification", labels=LABELS, config=FAST, seed=0)


def test_sampling_is_seeded_and_keeps_the_order():
    rows, _ = classification(50, 1.0)
    chosen = sample_rows(rows, 10, seed=1)
    assert chosen == sample_rows(rows, 10, seed=1) and len(chosen) == 10
    assert [rows.index(r) for r in chosen] == sorted(rows.index(r) for r in chosen)
    assert {r.id for r in chosen} < {r.id for r in sample_rows(rows, 30, seed=1)}, "a part of a larger sample"
    assert sample_rows(rows, None, seed=1) == sample_rows(rows, 99, seed=1) == rows


@pytest.mark.parametrize("grouped_by", ["label", "metadata"])
def test_a_sample_of_any_size_holds_each_group_by_its_share(grouped_by: str) -> None:
    sizes = {"often": 60, "sometimes": 30, "seldom": 10}
    names = [name for name, size in sizes.items() for _ in range(size)]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    if grouped_by == "label":
        rows, stratum = [Row(f"{i}", messages, label=name) for i, name in enumerate(names)], None
    else:
        rows, stratum = [Row(f"{i}", messages, meta={"queue": name}) for i, name in enumerate(names)], meta_queue
    group = dict(zip((row.id for row in rows), names, strict=True))
    for seed in range(20):
        order = sample_order(rows, seed, stratum)
        assert sorted(order) == list(range(100))
        for limit in range(1, 100):
            counts = Counter(group[row.id] for row in sample_rows(rows, limit, seed=seed, stratum=stratum))
            for name, size in sizes.items():
                assert abs(counts[name] - limit * size / 100) <= 2, (seed, limit, counts)
    assert len({tuple(sample_order(rows, seed, stratum)[:20]) for seed in range(20)}) == 20, "another seed, other rows"


def meta_queue(row: Row) -> str | None:
    return str(row.meta["queue"])


def test_answers_that_nobody_should_imitate_are_no_references() -> None:
    def row(name: str, weight: float, **meta: object) -> Row:
        return Row(
            name, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": weight}], meta=meta
        )

    rows = [row("learned", 1), row("not learned", 0), row("disliked", 1, thumb=False), row("general", 1, mix="g.jsonl")]
    assert [r.id for r in sample_rows(rows, None, seed=0)] == ["learned", "general"]
    assert [r.id for r in rows if r.shows_the_task] == ["learned"]


def test_rows_of_one_conversation_widen_the_interval():
    rows, answers = classification(200, 0.7, seed=3)
    alone = evaluate(rows, answers, task="classification", labels=LABELS, config=FAST, seed=0)
    # Ten rows a conversation, all right or all wrong: as good as twenty rows.
    together = [Row(r.id, r.messages, r.label, meta={"conversation_id": i // 10}) for i, r in enumerate(rows)]
    said = [Completion(r.label if (i // 10) % 3 else "") for i, r in enumerate(together)]
    clustered = evaluate(together, said, task="classification", labels=LABELS, config=FAST, seed=0)
    assert clustered.clusters is not None and max(clustered.clusters) == 19
    wide, narrow = clustered.metrics["accuracy"], alone.metrics["accuracy"]
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert any("200 rows form 20 clusters" in note for note in clustered.notes)
    plain = evaluate(
        together, [Completion(r.label) for r in together], task="classification", labels=LABELS, config=FAST, seed=0
    )
    assert plain.metrics["accuracy"].low < plain.metrics["accuracy"].high == 1.0
    assert {c.test for c in compare("a", clustered, "b", plain)} == {"paired cluster bootstrap"}


def test_rows_with_the_same_prompt_belong_together_and_a_missing_field_is_told():
    rows = [Row(f"r{i}", row(i // 2, "x").messages) for i in range(10)]
    result = evaluate(rows, [Completion("x")] * 10, task="generation", labels=None, config=FAST, seed=0)
    assert result.clusters == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    other = EvaluateConfig(bootstrap=100, cluster="user")
    with pytest.raises(UserError, match="'user'"):
        evaluate(rows, [Completion("x")] * 10, task="generation", labels=None, config=other, seed=0)


def test_losses_of_rows_give_perplexity_an_interval_and_a_comparison(tmp_path):
    rows, answers = cards(12)
    many = EvaluateConfig(bootstrap=2000)  # with few resamples no p-value is small enough for so many metrics
    losses = [[1.0 + i % 3 for i in range(12)], [0.5 + i % 3 / 3 for i in range(12)]]
    measured = [[replace(a, loss=x, loss_tokens=10) for a, x in zip(answers, loss, strict=True)] for loss in losses]
    a, b = (evaluate(rows, item, task="chat", labels=None, config=many, seed=0) for item in measured)
    ppl = a.metrics["perplexity"]
    assert ppl.value == pytest.approx(math.exp(sum(losses[0]) / 120)) and ppl.low < ppl.value < ppl.high
    assert {c.metric: c.verdict for c in compare("a", a, "b", b)}["perplexity"] == "better"
    written(tmp_path, b, {"zero-shot": a})
    assert load_evaluation(tmp_path).metrics == b.metrics
    assert load_evaluation(tmp_path, "zero-shot").metrics == a.metrics


def test_rows_with_unit_tests_are_run_once_and_the_outcome_is_kept(tmp_path, monkeypatch):
    right, wrong = "def f(x):\n    return 2 * x", "def f(x):\n    return x"
    tuned = programs_evaluation(right, wrong, right, further=[[wrong] * 9, [wrong] * 9, [right] * 9])
    assert tuned.primary == "pass@1"
    assert tuned.metrics["pass@1"].value == pytest.approx((0.1 + 0 + 1) / 3)
    assert tuned.metrics["pass@10"].value == pytest.approx(2 / 3)
    assert any("rlimits" in lock for lock in tuned.code["protections"])
    base = programs_evaluation(wrong, wrong, wrong)
    written(tmp_path, tuned, {"zero-shot": base})
    assert json.loads((tmp_path / "eval.json").read_text())["code"]["ended"] == {"passed": 11, "failed": 19}
    monkeypatch.setattr("tuneloop.evaluation.metrics.code.run_program", None)
    assert load_evaluation(tmp_path).metrics == tuned.metrics
    assert load_evaluation(tmp_path, "zero-shot").metrics == base.metrics


def test_code_without_tests_or_switched_off_is_not_run():
    rows, answers = cards(3)
    with pytest.raises(UserError, match="No row brings unit tests"):
        config = EvaluateConfig(bootstrap=100, run_code=True)
        evaluate(rows, answers, task="generation", labels=None, config=config, seed=0)


def test_few_rows_do_not_turn_a_field_of_labels_into_a_text(tmp_path):
    from tuneloop.evaluation.deciding import labels_of_fields

    config = EvaluateConfig(fields={"queue": r"Queue:\s*(\w+)"}, bootstrap=100)
    training = [f"Queue: {'abcdefgh'[i % 8]}\nCall them about case {i}." for i in range(80)]
    labels = labels_of_fields(training, {**config.fields, "rest": r"about (.+)"})
    assert labels == {"queue": dict.fromkeys("abcdefgh", 10)}  # what differs from row to row is a text
    rows = [row(i, text) for i, text in enumerate(training[:8])]
    answers = [Completion(text) for text in training[:7]] + [Completion("Queue: a")]
    few = evaluate(rows, answers, task="generation", labels=None, config=config, seed=0)
    assert "queue.rougeL" in few.metrics
    told = evaluate(
        rows, answers, task="generation", labels=None, config=config, seed=0, measured=AnswerStats(field_labels=labels)
    )
    assert told.metrics["queue.accuracy"].value == 7 / 8 and told.primary.startswith("queue.")
    write_evaluation(tmp_path, told, Subject("m", "d", "test", key="k"))
    again = load_evaluation(tmp_path)
    assert again.metrics["queue.accuracy"] == told.metrics["queue.accuracy"]


def test_always_the_usual_value_is_a_constant_alternative_and_named_by_it():
    rows = [row(i, f"Queue: {'ab'[i % 3 == 0]}\nIssue: {i}") for i in range(30)]
    config = EvaluateConfig(fields={"queue": r"^Queue: (.+)$"}, bootstrap=200)
    scored = {
        name: evaluate(rows, answers, task="generation", labels=None, config=config, seed=0)
        for name, answers in (
            ("majority class", [Completion("Queue: a\nIssue: 1")] * 30),
            ("tuned", [Completion(row.answer) for row in rows]),
        )
    }
    pairs = compare("majority class", scored["majority class"], "tuned", scored["tuned"])
    text = verdict_in_words(decide(scored, pairs, "tuned"), scored)
    assert 'always answering "a"' in text[0]
