import json
import math
import random
import re
import time
from dataclasses import replace

import pytest
import sacrebleu

from patience import slowness
from tuneloop.core.errors import UserError
from tuneloop.core.stats import holm
from tuneloop.evaluate.compare import adjusted, compare
from tuneloop.evaluate.config import EvaluateConfig
from tuneloop.evaluate.evaluate import evaluate, sample_rows
from tuneloop.evaluate.primary import primary_metric
from tuneloop.evaluate.results import ComparedWith, load_evaluation, write_evaluation
from tuneloop.evaluate.scoring import AnswerStats
from tuneloop.evaluate.verdict import decide
from tuneloop.evaluate.verdict_text import verdict_in_words
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Subject
from tuneloop.records.rows import Row

LABELS = [f"label_{i}" for i in range(5)]
FAST = EvaluateConfig(bootstrap=200)
CARD = EvaluateConfig(bootstrap=200, fields={"queue": r"^Queue: (.+)$", "issue": r"^Issue: (.+)$"})


def row(i, answer, label=None, **meta):
    turns = [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": answer}]
    return Row(f"r{i}", turns, label, meta=meta)


def classification(n, right, seed=0):
    """n rows and answers of which a share is right; the seed decides which."""
    rng = random.Random(seed)
    rows = [row(i, LABELS[i % 5], LABELS[i % 5]) for i in range(n)]
    answers = [Completion(r.label if rng.random() < right else LABELS[(i + 1) % 5]) for i, r in enumerate(rows)]
    return rows, answers


def labels_evaluation(n, right, seed=0):
    rows, answers = classification(n, right, seed)
    return evaluate(rows, answers, task="classification", labels=LABELS, config=FAST, seed=0)


def cards(n, wrong_every=0):
    issues = ["login", "printer", "network", "screen", "mail", "phone", "vpn", "disk"]
    rows = [
        row(i, f"Queue: {'hardware' if i % 2 else 'access'}\nIssue: {issues[i % 8]} fails case {i}\nDo: restart {i}")
        for i in range(n)
    ]
    answers = [
        Completion(r.answer.replace("Queue: ", "Queue: not ") if wrong_every and i % wrong_every == 0 else r.answer)
        for i, r in enumerate(rows)
    ]
    return rows, answers


def cards_evaluation(n=12, wrong_every=3):
    return evaluate(*cards(n, wrong_every), task="generation", labels=None, config=CARD, seed=0)


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
    assert any("1 of 5 answers were cut off" in note for note in result.notes)


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


def test_a_clear_gain_is_better_and_turned_round_worse():
    a, b = labels_evaluation(200, 0.6, seed=1), labels_evaluation(200, 0.9, seed=2)
    there = {c.metric: c for c in compare("few-shot", a, "tuned", b)}
    back = {c.metric: c for c in compare("tuned", b, "few-shot", a)}
    assert there.pop("invalid_rate").verdict == "not enough evidence"  # neither has any
    assert {c.verdict for c in there.values()} == {"better"}
    del back["invalid_rate"]
    assert {c.verdict for c in back.values()} == {"worse"}
    accuracy = there["accuracy"]
    assert accuracy.test == "exact McNemar"
    assert accuracy.delta == pytest.approx(b.metrics["accuracy"].value - a.metrics["accuracy"].value)
    assert accuracy.low < accuracy.delta < accuracy.high
    assert there["macro_f1"].test == "paired bootstrap"
    assert there["macro_f1"].p >= 1 / 201


def test_the_same_answers_do_not_differ():
    a = cards_evaluation()
    for c in compare("a", a, "b", a):
        assert (c.delta, c.p, c.verdict) == (0, 1, "not enough evidence")


def test_pairing_goes_by_id_not_by_order():
    a = labels_evaluation(60, 0.6, seed=1)
    rows, answers = classification(60, 0.8, seed=2)
    straight = evaluate(rows, answers, task="classification", labels=LABELS, config=FAST, seed=0)
    turned = evaluate(rows[::-1], answers[::-1], task="classification", labels=LABELS, config=FAST, seed=0)
    assert compare("a", a, "b", straight) == compare("a", a, "b", turned)


def test_other_rows_or_other_references_are_refused():
    a = labels_evaluation(20, 0.6)
    with pytest.raises(UserError, match="different rows"):
        compare("a", a, "b", labels_evaluation(21, 0.6))
    rows, answers = classification(20, 0.6)
    rows[3] = row(3, "label_0", "label_0")
    other = evaluate(rows, answers, task="classification", labels=LABELS, config=FAST, seed=0)
    with pytest.raises(UserError, match="different reference"):
        compare("a", a, "b", other)


def test_perplexity_is_carried_and_not_compared():
    rows, answers = cards(4)
    result = evaluate(
        rows, answers, task="chat", labels=None, config=FAST, seed=0, measured=AnswerStats(perplexity=3.5)
    )
    assert result.metrics["perplexity"].value == 3.5
    assert math.isnan(result.metrics["perplexity"].low)
    assert "perplexity" not in {c.metric for c in compare("a", result, "b", result)}


def test_sampling_is_seeded_and_keeps_the_order():
    rows, _ = classification(50, 1.0)
    chosen = sample_rows(rows, 10, seed=1)
    assert chosen == sample_rows(rows, 10, seed=1) and len(chosen) == 10
    assert [rows.index(r) for r in chosen] == sorted(rows.index(r) for r in chosen)
    assert {r.id for r in chosen} < {r.id for r in sample_rows(rows, 30, seed=1)}, "a part of a larger sample"
    assert sample_rows(rows, None, seed=1) == sample_rows(rows, 99, seed=1) == rows


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


def test_p_values_are_adjusted_and_the_metric_that_decides_is_not():
    a, b = labels_evaluation(120, 0.7, seed=1), labels_evaluation(120, 0.8, seed=2)
    found = {c.metric: c for c in compare("a", a, "b", b)}
    assert found["accuracy"].p_holm == found["accuracy"].p
    others = [c for c in found.values() if c.metric != "accuracy" and c.test != "exact McNemar"]
    assert all(c.p_holm >= c.p for c in others) and any(c.p_holm > c.p for c in others if c.p < 1)
    assert found["micro_f1"].p_holm == found["accuracy"].p_holm  # the same number by definition


def test_several_contenders_are_adjusted_for_together():
    base = labels_evaluation(200, 0.7, seed=1)
    pairs = [c for k in (2, 3, 4) for c in compare("base", base, f"m{k}", labels_evaluation(200, 0.75, seed=k))]
    first = [c.p for c in pairs if c.metric == "accuracy"]
    assert len(first) == 3
    together = [c for c in adjusted(pairs, base) if c.metric == "accuracy"]
    assert [c.p_holm for c in together] == pytest.approx(holm(first))


def test_effects_and_what_these_rows_could_have_shown_and_how_many_would():
    a, b = labels_evaluation(60, 0.75, seed=1), labels_evaluation(60, 0.85, seed=5)
    c = {c.metric: c for c in compare("a", a, "b", b)}["accuracy"]
    assert c.verdict == "not enough evidence" and c.more_rows and c.more_rows > 0
    assert c.effect_kind == "Cohen's h" and (c.effect > 0) == (c.delta > 0)
    assert c.detectable == pytest.approx((1.96 + 0.8416) * (c.high - c.low) / (2 * 1.96), rel=1e-3)
    sure = {c.metric: c for c in compare("a", labels_evaluation(300, 0.3), "b", labels_evaluation(300, 0.9, 1))}
    assert sure["accuracy"].verdict == "better" and sure["accuracy"].more_rows is None


def test_fewer_invalid_answers_and_less_calibration_error_are_better():
    rows, _ = classification(200, 1.0)

    def made(wrong, sure):
        texts = ["?" if i % wrong == 0 else r.label for i, r in enumerate(rows)]
        answers = [
            Completion(t, label_scores={r.label: math.log(sure), "x": math.log(1 - sure)})
            for t, r in zip(texts, rows, strict=True)
        ]
        return evaluate(rows, answers, task="classification", labels=LABELS, config=FAST, seed=0)

    found = {c.metric: c for c in compare("a", made(2, 0.99), "b", made(50, 0.97))}
    assert found["invalid_rate"].delta < 0 and found["invalid_rate"].verdict == "better"
    assert found["ece"].delta < 0 and found["ece"].verdict == "better"


def test_losses_of_rows_give_perplexity_an_interval_and_a_comparison(tmp_path):
    rows, answers = cards(12)
    many = EvaluateConfig(bootstrap=2000)  # with few resamples no p-value is small enough for so many metrics
    losses = [[1.0 + i % 3 for i in range(12)], [0.5 + i % 3 / 3 for i in range(12)]]
    measured = [[replace(a, loss=x, loss_tokens=10) for a, x in zip(answers, each, strict=True)] for each in losses]
    a, b = (evaluate(rows, each, task="chat", labels=None, config=many, seed=0) for each in measured)
    ppl = a.metrics["perplexity"]
    assert ppl.value == pytest.approx(math.exp(sum(losses[0]) / 120)) and ppl.low < ppl.value < ppl.high
    assert {c.metric: c.verdict for c in compare("a", a, "b", b)}["perplexity"] == "better"
    written(tmp_path, b, {"zero-shot": a})
    assert load_evaluation(tmp_path).metrics == b.metrics
    assert load_evaluation(tmp_path, "zero-shot").metrics == a.metrics


def programs_evaluation(*answers, further=()):
    test = "def check(f):\n    assert f(2) == 4\n"
    rows = [row(i, "def f(x): return 2 * x", test=test, entry_point="f") for i in range(len(answers))]
    measured = AnswerStats(further=further)
    return evaluate(
        rows, [Completion(a) for a in answers], task="generation", labels=None, config=FAST, seed=0, measured=measured
    )


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
    monkeypatch.setattr("tuneloop.evaluate.metrics.code.run_program", None)
    assert load_evaluation(tmp_path).metrics == tuned.metrics
    assert load_evaluation(tmp_path, "zero-shot").metrics == base.metrics


def test_code_without_tests_or_switched_off_is_not_run():
    rows, answers = cards(3)
    with pytest.raises(UserError, match="No row brings unit tests"):
        config = EvaluateConfig(bootstrap=100, run_code=True)
        evaluate(rows, answers, task="generation", labels=None, config=config, seed=0)


# --- files ---------------------------------------------------------------------------------------


def written(folder, tuned, baselines):
    comparisons = [c for name, b in baselines.items() for c in compare(name, b, "tuned", tuned)]
    return write_evaluation(
        folder,
        tuned,
        Subject("smollm2-135m", "demo-0123", "test", key="abc"),
        ComparedWith(baselines, comparisons),
        more={"costs": {"tuned": {"seconds": 1.5}}},
    )


def test_what_is_written_keeps_the_contract(tmp_path):
    tuned, base = labels_evaluation(30, 0.9, seed=1), labels_evaluation(30, 0.5, seed=2)
    manifest = json.loads(written(tmp_path, tuned, {"zero-shot": base}).read_text())
    assert manifest["version"] == 1 and manifest["n"] == 30 and manifest["key"] == "abc"
    assert set(manifest["metrics"]["accuracy"]) == {"value", "low", "high"}
    assert manifest["baselines"]["zero-shot"]["macro_f1"]["value"] == base.metrics["macro_f1"].value
    assert {"a", "b", "metric", "delta", "low", "high", "p", "verdict"} <= set(manifest["comparisons"][0])
    assert manifest["words"]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [s["id"] for s in samples] == [r.id for r in tuned.rows]
    first = samples[0]
    assert first["prompt"] == "question 0" and first["reference"] == first["label"] == "label_0"
    assert first["baselines"] == {"zero-shot": base.answers[0].text}
    assert first["scores"]["accuracy"] in (0, 1)


@pytest.mark.parametrize("kind", ["labels", "cards"])
def test_what_is_loaded_is_what_was_written(tmp_path, kind):
    make = (
        (lambda k: labels_evaluation(30, k / 10, seed=k)) if kind == "labels" else (lambda k: cards_evaluation(12, k))
    )
    tuned, base = make(9), make(5)
    written(tmp_path, tuned, {"zero-shot": base})
    for loaded, original in ((load_evaluation(tmp_path), tuned), (load_evaluation(tmp_path, "zero-shot"), base)):
        assert loaded.metrics == original.metrics
        assert loaded.row_scores == original.row_scores
        assert loaded.rows == original.rows
    again = compare(
        "zero-shot", load_evaluation(tmp_path, "zero-shot"), "tuned", load_evaluation(tmp_path / "eval.json")
    )
    assert again == compare("zero-shot", base, "tuned", tuned)


def test_hostile_text_several_references_and_perplexity_survive_the_files(tmp_path):
    rows = [row(0, "a", references=["a", "b"]), row(1, "\ud800 <script>\u2028\r\n")]
    answers = [Completion("b"), Completion("\ud800 \x00")]
    tuned = evaluate(rows, answers, task="chat", labels=None, config=FAST, seed=0, measured=AnswerStats(perplexity=2.0))
    written(tmp_path, tuned, {})
    loaded = load_evaluation(tmp_path)
    assert loaded.answers == answers
    assert loaded.row_scores == tuned.row_scores
    assert loaded.metrics["perplexity"].value == 2.0
    assert loaded.metrics["exact_match"].value == 0.5


def test_a_baseline_on_other_rows_leaves_no_finished_folder(tmp_path):
    with pytest.raises(UserError, match="other rows"):
        write_evaluation(
            tmp_path,
            labels_evaluation(20, 0.9),
            Subject("m", "d", "test"),
            ComparedWith({"zero-shot": labels_evaluation(21, 0.9)}, []),
        )
    assert not (tmp_path / "eval.json").exists()


def test_missing_and_damaged_evaluations_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="No evaluation"):
        load_evaluation(tmp_path)
    written(tmp_path, labels_evaluation(20, 0.9), {})
    with pytest.raises(UserError, match="no answers of 'few-shot'"):
        load_evaluation(tmp_path, "few-shot")
    lines = (tmp_path / "samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(UserError, match="19 rows"):
        load_evaluation(tmp_path)
    (tmp_path / "eval.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        load_evaluation(tmp_path)


# --- words ---------------------------------------------------------------------------------------


def words(tuned, **others):
    names = {"zero": "zero-shot", "few": "few-shot", "tfidf": "tf-idf + logistic regression"}
    evaluations = {names[key]: value for key, value in others.items()}
    comparisons = [c for name, other in evaluations.items() for c in compare(name, other, "tuned", tuned)]
    everyone = {**evaluations, "tuned": tuned}
    return " ".join(verdict_in_words(decide(everyone, comparisons, "tuned"), everyone))


def test_a_better_model_is_set_against_the_best_prompt():
    text = words(labels_evaluation(300, 0.95), zero=labels_evaluation(300, 0.3, 1), few=labels_evaluation(300, 0.6, 2))
    assert text.startswith("Better than few-shot: ") and "few-shot, the best prompt, has" in text
    assert "p < 0.001" in text
    assert "more test rows" not in text


def test_a_tie_with_the_cheap_alternative_is_said_plainly():
    text = words(
        labels_evaluation(300, 0.9, 1), few=labels_evaluation(300, 0.5, 2), tfidf=labels_evaluation(300, 0.9, 3)
    )
    assert "-0.7 points" in text and "is ahead, though these rows can't prove it. Use that one" in text
    text = words(labels_evaluation(300, 0.9, 3), tfidf=labels_evaluation(300, 0.9, 1))
    assert "No proven gain over tf-idf" in text and "Use tf-idf + logistic regression unless" in text


def test_a_cheap_alternative_that_wins_is_said_plainly():
    text = words(labels_evaluation(300, 0.6, 1), tfidf=labels_evaluation(300, 0.95, 2))
    assert "Worse than tf-idf" in text and "Use tf-idf + logistic regression: it trains in seconds" in text


def test_too_few_rows_are_said_with_a_number():
    def with_right(count):
        rows, _ = classification(40, 1.0)
        answers = [Completion(r.label if i < count else "") for i, r in enumerate(rows)]
        return evaluate(rows, answers, task="classification", labels=LABELS, config=FAST, seed=0)

    text = words(with_right(32), few=with_right(28))  # 4 rows apart: p = 0.125
    assert "No proven gain over few-shot" in text
    assert "more test rows would show it" in text


def test_a_worse_model_is_not_recommended():
    text = words(labels_evaluation(300, 0.3, 1), few=labels_evaluation(300, 0.9, 2))
    assert text.startswith("Worse than few-shot") and "Don't use" in text


def test_each_fact_of_a_verdict_is_said_once():
    tuned = labels_evaluation(300, 0.6, 1)
    text = words(tuned, few=labels_evaluation(300, 0.3, 2), tfidf=labels_evaluation(300, 0.95, 2))
    for pattern in (r"accuracy \d", r"\d test rows", r"tf-idf \+ logistic regression, the best"):
        assert len(re.findall(pattern, text)) == 1, text
    amounts = re.findall(r"[+-]\d+\.\d points", text)
    assert len(amounts) == len(set(amounts)) == 2


def test_comparisons_may_stand_the_other_way_round():
    tuned, few = labels_evaluation(300, 0.95), labels_evaluation(300, 0.6, 2)
    evaluations = {"tuned": tuned, "few-shot": few}
    there = decide(evaluations, compare("few-shot", few, "tuned", tuned), "tuned")
    assert there == decide(evaluations, compare("tuned", tuned, "few-shot", few), "tuned")
    assert there.outcome == "better"


def test_words_for_fields_and_without_baselines():
    alone = {"tuned": cards_evaluation()}
    sentences = verdict_in_words(decide(alone, [], "tuned"), alone)
    assert "queue accuracy 66.7 %" in sentences[0]
    assert "4 of its 12 answers" in sentences[-1]


def test_few_rows_do_not_turn_a_field_of_labels_into_a_text(tmp_path):
    from tuneloop.evaluate.scoring import labels_of_fields

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
