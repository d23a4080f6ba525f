"""Advice: rules as data, an answer that may be no, and no guess about what is not known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import TOKENS, manifest_json

from tuneloop.advice.measured import (
    BaselineResults,
    SystemResult,
    by_hand,
    facts_from_results,
    from_evaluation,
    leaderboard,
    measured_of,
)
from tuneloop.advice.recommendation import AdviceInput, advise, make_question
from tuneloop.advice.rules import applies, decide, load_rules
from tuneloop.core.errors import UserError
from tuneloop.records.evaluation import Estimate, EvaluationManifest
from tuneloop.records.record import as_record


@pytest.fixture(autouse=True)
def no_prices_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def measured(few_shot: float, *, n: int = 400, wide: float = 0.02, **others: float) -> BaselineResults:
    names = {"classical": "tf-idf + logistic regression", "tuned": "tuned"}
    results = [SystemResult("zero-shot", few_shot / 2, few_shot / 2 - wide, few_shot / 2 + wide),
               SystemResult("few-shot", few_shot, few_shot - wide, few_shot + wide)]  # fmt: skip
    results += [SystemResult(names[name], value, value - wide, value + wide) for name, value in others.items()]
    return BaselineResults("accuracy", n, tuple(results))


PAYS = {"queries_per_day": 5e6, "baseline_prompt_tokens": 1000, "prompt_tokens": 100, "answer_tokens": 5}
NEVER = {"queries_per_day": 10, "baseline_prompt_tokens": 1000, "prompt_tokens": 100, "answer_tokens": 5,
         "usd_per_engineer_hour": 80}  # fmt: skip


def test_hosted_tuning_costs_its_trained_tokens_and_peoples_time_and_is_billed_like_the_others() -> None:
    facts = {"rows": 20_000, "tokens_per_row": 200, **PAYS, "usd_per_engineer_hour": 80, "retrain_months": 6}
    assert not any(row.option.name == "hosted tuning" for row in advise(AdviceInput(**facts)).options)  # type: ignore[arg-type]
    for serving in ("token", "real-time"):
        priced = advise(AdviceInput(**facts, usd_per_million_tuning=0.5, serving=serving))  # type: ignore[arg-type]
        options = {row.option.name: row.option for row in priced.options}
        hosted, own = options["hosted tuning"], options["LoRA"]
        assert hosted.upfront_usd == pytest.approx(16 * 80 + 3 * 20_000 * 200 * 0.5 / 1e6)
        assert hosted.rate == own.rate and hosted.prompt_tokens == own.prompt_tokens
        assert hosted.monthly_usd - own.monthly_usd == pytest.approx((hosted.upfront_usd - own.upfront_usd) / 6)
        assert "$0.50 for 1 million trained tokens (given)" in hosted.note


@pytest.mark.parametrize(
    ("facts", "rule", "answer", "method"),
    [
        ({"rows": 5}, "too-few-examples", "dont", ""),
        ({"rows": 5000, "facts_change": True}, "facts-change", "dont", ""),
        ({"rows": 5000, "budget_usd": 0.1}, "over-budget", "dont", ""),
        ({"rows": 5000, "model": "llama-3.3-70b", "gpu": "rtx4090"}, "nothing-fits", "dont", ""),
        ({"rows": 5000, "gpu": "cpu", "usd_per_gpu_hour": 0.1}, "too-slow-here", "dont", ""),
        ({"rows": 20000, "baseline_usd_per_million_input": 5, **PAYS}, "saves-however-served", "tune", "lora"),
        ({"rows": 20000, **PAYS, "queries_per_day": 1e5}, "saves-by-the-token", "prompt", "lora"),
        ({"rows": 5000, "gpu": "t4", "latency_ms": 5, "prompt_tokens": 100, "answer_tokens": 200}, "too-slow-however", "dont", ""),
        ({"rows": 5000, "measured": measured(0.5, tuned=0.8, classical=0.9)}, "classical-as-good-as-tuned", "dont", ""),
        ({"rows": 5000, "measured": measured(0.5, tuned=0.91, classical=0.9)}, "classical-as-good-as-tuned", "dont", ""),
        ({"rows": 5000, "target": 0.8, "measured": measured(0.5, classical=0.9)}, "classical-is-enough", "dont", ""),
        ({"rows": 5000, "target": 0.8, "measured": measured(0.9)}, "prompt-is-enough-cost-unknown", "dont", ""),
        ({"rows": 5000, "target": 0.8, "measured": measured(0.9), **NEVER}, "prompt-is-enough", "dont", ""),
        ({"rows": 5000, "target": 0.8, "measured": measured(0.9), **PAYS}, "tune-to-save", "tune", "lora"),
        ({"rows": 5000, "target": 0.89, "measured": measured(0.9)}, "prompt-may-be-enough", "prompt", "lora"),
        ({"rows": 5000, "target": 0.8, "measured": measured(0.5)}, "prompt-falls-short", "tune", "lora"),
        ({"rows": 5000, "measured": measured(0.5)}, "room-to-gain", "tune", "lora"),
        ({"rows": 5000, "measured": measured(0.5, classical=0.8)}, "room-to-gain", "tune", "lora"),
        ({"rows": 5000, "measured": measured(0.5, classical=0.95)}, "classical-leaves-little-room", "dont", ""),
        ({"rows": 5000, "target": 0.97, "measured": measured(0.5, classical=0.95)}, "prompt-falls-short", "tune", "lora"),
        ({"rows": 5000, "measured": measured(0.95)}, "little-room", "dont", ""),
        ({"rows": 5000, **NEVER}, "does-not-pay", "dont", ""),
        ({"rows": 5000}, "not-measured", "prompt", "lora"),
        ({"rows": 100, "target": 0.8, "measured": measured(0.5)}, "prompt-falls-short", "tune", "prefix"),
        ({"rows": 5000, "target": 0.8, "gpu": "t4", "measured": measured(0.5)}, "prompt-falls-short", "tune", "qlora"),
        ({"rows": 90_000, "new_domain": True, "target": 0.8, "measured": measured(0.5)}, "prompt-falls-short", "tune", "full"),
    ],
)  # fmt: skip
def test_the_rule_that_decides(facts: dict[str, Any], rule: str, answer: str, method: str) -> None:
    found = advise(AdviceInput(**facts))
    assert (found.reasons[0].rule, found.answer, found.method) == (rule, answer, method)
    assert found.headline.startswith(
        {"dont": "Don't fine-tune: ", "prompt": "Prompt first", "tune": "Fine-tune "}[answer]
    )
    json.dumps(found.record().to_json())


@pytest.mark.parametrize(
    ("model", "rule", "text"),
    [
        ("llama-3.2-1b", "lora", "LoRA on all linear layers: as good"),
        ("qwen3-30b-a3b", "lora-of-a-mixture", "LoRA on attention: the 128 experts of each layer stay as they are"),
    ],
)
def test_lora_is_said_to_be_on_the_layers_that_it_takes(model: str, rule: str, text: str) -> None:
    found = advise(AdviceInput(model=model, rows=5000, measured=measured(0.5)))
    (reason,) = [reason for reason in found.reasons if reason.kind == "method"]
    assert reason.rule == rule and reason.says.startswith(text)
    few = advise(AdviceInput(model=model, rows=5000, measured=measured(0.5), settings={"targets": "q,v"}))
    assert rule != "lora" or any(reason.says.startswith("LoRA on q, v: ") for reason in few.reasons)


def test_a_measured_comparison_decides_over_bare_values() -> None:
    better = replace(measured(0.7, tuned=0.9), verdict="better")
    assert advise(AdviceInput(rows=900, measured=better)).reasons[0].rule == "tuned-is-better"
    unclear = replace(measured(0.7, tuned=0.72), verdict="not enough evidence")
    assert advise(AdviceInput(rows=900, measured=unclear)).reasons[0].rule == "tuned-not-better"
    beats = replace(measured(0.5, tuned=0.91, classical=0.9), verdict="better", classical_verdict="better")
    assert advise(AdviceInput(rows=900, measured=beats)).reasons[0].rule == "tuned-is-better"


def test_every_rule_has_words_a_source_and_can_apply() -> None:
    rules = load_rules()
    assert len({rule.id for rule in rules}) == len(rules)
    for rule in rules:
        assert rule.source and rule.say
        if rule.kind == "answer":
            assert rule.gives in ("dont", "prompt", "tune"), rule.id
        if rule.kind == "method":
            assert rule.gives in ("prefix", "lora", "qlora", "full"), rule.id
        for conditions in rule.when.values():
            assert set(conditions) <= {"below", "at_least", "above", "is", "is_not", "known"}, rule.id


def test_what_is_not_known_makes_no_rule_apply() -> None:
    for rule in load_rules():
        if rule.when and not any("known" in conditions for conditions in rule.when.values()):
            assert not applies(rule, {}), rule.id
    assert [reason.rule for reason in decide({"adapted": "all linear layers"})["answer"]] == ["not-measured"]


def test_no_saving_is_named_without_baseline_prompt_and_volume() -> None:
    for left_out in ("queries_per_day", "baseline_prompt_tokens", "prompt_tokens"):
        found = advise(AdviceInput(rows=1000, **{k: v for k, v in PAYS.items() if k != left_out}))  # type: ignore[arg-type]
        said = found.record().to_json()
        assert said["alternatives"] == [] and said["break_even"] is None and said["sensitivity"] == []
        assert f"--{left_out.replace('_', '-')}" in said["missing"]


def test_alternatives_stand_beside_today_and_quality_only_where_measured() -> None:
    found = advise(AdviceInput(rows=1000, measured=measured(0.6, tuned=0.8), **PAYS)).record().to_json()
    names = [row["name"] for row in found["alternatives"]]
    assert names[:3] == ["today's prompt", "better prompt", "larger model (llama-3.3-70b)"]
    assert {"prefix tuning", "LoRA", "QLoRA", "full fine-tuning"} <= set(names)
    quality = {row["name"]: row["quality"] for row in found["alternatives"]}
    assert quality["today's prompt"] == 0.6 and quality["LoRA"] == 0.8 and quality["full fine-tuning"] is None
    assert set(found["monthly_bills"]) == {"batch", "real-time", "hybrid"}
    assert {swing["name"] for swing in found["sensitivity"]} >= {
        "queries a day",
        "baseline prompt tokens",
        "upfront dollars",
    }
    assert any(line["what"].startswith("own ") for line in found["token_prices"])


def test_serving_on_rented_machines_is_part_of_the_comparison() -> None:
    by_token = advise(AdviceInput(rows=1000, **PAYS)).record().to_json()
    rented = advise(AdviceInput(rows=1000, serving="real-time", **PAYS)).record().to_json()
    month = {row["name"]: row["usd_per_month"] for row in rented["alternatives"]}
    assert month["LoRA"] == pytest.approx(rented["monthly_bills"]["real-time"]["usd"])
    assert month["today's prompt"] == by_token["alternatives"][0]["usd_per_month"]


def test_distilling_is_an_alternative_where_a_smaller_model_has_a_price() -> None:
    found = advise(AdviceInput(model="llama-3.3-70b-instruct", rows=1000, **PAYS)).record().to_json()
    assert "distil into llama-3.1-8b" in [row["name"] for row in found["alternatives"]]


EVALUATION: dict[str, Any] = {
    "version": 1, "model": "m", "name": "tuned", "n": 50, "task": "classification",
    "metrics": {"macro_f1": {"value": 0.7, "low": 0.6, "high": 0.8}, "accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}},
    "baselines": {"few-shot": {"accuracy": {"value": 0.6, "low": None, "high": None}}},
    "comparisons": [{"a": "tuned", "b": "few-shot", "metric": "accuracy", "verdict": "worse", "test": "exact McNemar",
                     "delta": -0.2, "low": -0.3, "high": -0.1, "p": 0.001}],
    "costs": {"few-shot": {"prompt_tokens": 5000, "usd": 0.05}, "tuned": {"prompt_tokens": 500, "usd": 0.01}},
}  # fmt: skip


def told_by(metric: str = "", **changes: Any) -> BaselineResults:
    """What an evaluation says that differs in some keys."""
    return from_evaluation(as_record(EvaluationManifest, EVALUATION | changes, "eval.json"), "eval.json", metric)


def test_an_evaluation_tells_results_verdict_and_prompts() -> None:
    found = told_by()
    assert found.metric == "accuracy" and found.n == 50 and found.verdict == "better"
    assert found.prompt == SystemResult("few-shot", 0.6, 0.6, 0.6, right=0.6)
    assert found.tuned == SystemResult("tuned", 0.8, 0.7, 0.9, right=0.8)
    assert found.prompt_tokens == {"few-shot": 100, "tuned": 10}
    entries = leaderboard(found)
    assert [entry["name"] for entry in entries] == ["few-shot", "tuned"]
    assert entries[1]["gain_over_prompt"] == pytest.approx(0.2) and entries[1]["usd_per_1000_queries"] == pytest.approx(
        0.2
    )
    assert told_by("macro_f1").metric == "macro_f1"


def test_prices_of_requests_are_the_ladders_where_there_is_one() -> None:
    line = {"kind": "prompt", "metric": "accuracy", "value": 0.6, "low": 0.5, "high": 0.7, "gain": None, "gain_low": None,
            "gain_high": None, "p": None, "verdict": "", "training_seconds": 0, "training_usd": 0, "prompt_tokens": 9, "tokens": 1}  # fmt: skip
    prices = {"few-shot": 7.5, "tuned": None}
    found = told_by(leaderboard=[{**line, "name": name, "usd_per_1000": usd} for name, usd in prices.items()])
    assert found.usd_per_1000 == pytest.approx({"few-shot": 7.5, "tuned": 0.2})


@pytest.mark.parametrize("bad", [{"n": None}, {"metrics": []}, {"metrics": {"odd": {"value": 1, "low": 0, "high": 1}}, "baselines": {}},
                                 {"metrics": {"accuracy": {"value": None, "low": None, "high": None}}, "baselines": {}}])  # fmt: skip
def test_what_is_no_evaluation_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        told_by(**bad)


def test_a_data_set_a_run_and_an_evaluation_are_read(tmp_path: Path) -> None:
    counted = {**TOKENS, "total": 4000, "supervised": 400, "max": 200}
    dataset = manifest_json(splits={"train": {"rows": 40, "tokens": counted}})
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "dataset.json").write_text(json.dumps(dataset))
    assert facts_from_results(tmp_path)["rows"] == 40
    (tmp_path / "eval.json").write_text(json.dumps(EVALUATION))
    (tmp_path / "run.json").write_text(json.dumps({"version": 1, "model": "m", "usd": 0.5, "method": "prefix"}))
    found = facts_from_results(tmp_path)
    assert (found["rows"], found["tokens_per_row"], found["prompt_tokens"]) == (40, 100, 90)
    assert found["measured"].training_usd == 0.5 and found["measured"].method == "prefix"
    assert facts_from_results(tmp_path / "eval.json")["measured"].n == 50
    lone = tmp_path / "other.json"
    lone.write_text(json.dumps(EVALUATION))
    assert facts_from_results(lone)["model"] == "m"
    for wrong in (tmp_path / "none", tmp_path / "dataset" / "nothing.json"):
        with pytest.raises(UserError):
            facts_from_results(wrong)


@pytest.mark.parametrize(
    ("values", "flag"),
    [({"rows": -1}, "--rows"), ({"rows": 1.5}, "--rows"), ({"queries_per_day": 0}, "--queries-per-day"),
     ({"target": 1e9}, "--target"), ({"budget_usd": -5}, "--budget"), ({"task": "poetry"}, "--task"),
     ({"months": float("nan")}, "--months")],
)  # fmt: skip
def test_a_value_that_cant_be_names_its_flag(values: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError) as error:
        make_question(values)
    assert error.value.where == flag


def test_nothing_known_is_an_error_and_so_are_unknown_names() -> None:
    with pytest.raises(UserError, match="Nothing to go by"):
        advise(AdviceInput())
    with pytest.raises(UserError, match="llama-9"):
        advise(AdviceInput(rows=5, model="llama-9"))
    with pytest.raises(UserError, match="h101"):
        advise(AdviceInput(rows=5, gpu="h101"))


@given(
    rows=st.none() | st.integers(0, 10**7), target=st.none() | st.floats(0, 1), few=st.none() | st.floats(0, 1),
    tuned=st.none() | st.floats(0, 1), queries=st.none() | st.floats(1, 1e9), baseline=st.none() | st.floats(1, 1e5),
    gpu=st.sampled_from([None, "t4", "h100-sxm", "cpu"]), model=st.sampled_from(["smollm2-135m", "llama-3.1-8b", "llama-3.1-405b"]),
)  # fmt: skip
def test_any_question_gets_an_answer_with_a_reason(
    rows: int | None, target: float | None, few: float | None, tuned: float | None, queries: float | None,
    baseline: float | None, gpu: str | None, model: str,
) -> None:  # fmt: skip
    results = measured(few, **({"tuned": tuned} if tuned is not None else {})) if few is not None else None
    question = AdviceInput(rows=rows, target=target, measured=results, queries_per_day=queries, answer_tokens=20, gpu=gpu,
                        baseline_prompt_tokens=baseline, prompt_tokens=50, model=model)  # fmt: skip
    if rows is None and few is None and queries is None:
        return
    found = advise(question)
    assert found.reasons and found.answer in ("dont", "prompt", "tune")
    assert (found.method == "") == (found.answer == "dont")
    json.dumps(found.record().to_json(), allow_nan=False)


def test_results_that_people_measured_decide_with_an_interval_where_rows_are_known() -> None:
    found = by_hand({"few-shot": 0.9, "your classifier": 0.8}, 400)
    assert found.prompt is not None and found.classical is not None
    assert found.prompt.low == pytest.approx(0.8668, abs=1e-3)  # Wilson, by hand
    assert found.classical.name == "your classifier"
    assert by_hand({"few-shot": 0.9}, None).results[0].low == 0.9
    sure = advise(AdviceInput(rows=800, target=0.85, measured=found))
    assert (sure.answer, sure.reasons[0].rule) == ("dont", "prompt-is-enough-cost-unknown")
    unsure = advise(AdviceInput(rows=800, target=0.88, measured=found))
    assert (unsure.answer, unsure.reasons[0].rule) == ("prompt", "prompt-may-be-enough")


def test_where_this_machine_is_too_slow_renting_has_a_time_and_a_price() -> None:
    says = advise(AdviceInput(rows=5000, gpu="cpu")).headline
    assert "Rented, a run of LoRA takes" in says
    assert "$" in says


def test_peoples_time_is_named_beside_a_saving_that_leaves_it_out() -> None:
    notes = {reason.rule: reason.says for reason in advise(AdviceInput(rows=20000, **PAYS)).reasons}
    assert "an hour" in notes["people-not-counted"]
    counted = advise(AdviceInput(rows=20000, usd_per_engineer_hour=80, **PAYS))
    assert "people-not-counted" not in {reason.rule for reason in counted.reasons}


def test_a_distilled_model_without_a_price_by_the_token_runs_on_rented_machines() -> None:
    found = advise(AdviceInput(rows=20000, **PAYS))
    row = next(row for row in found.options if row.option.name == "distil into llama-3.2-3b")
    assert row.option.usd_per_query == 0
    assert row.option.monthly_usd > 100  # a machine that always runs
    assert "real-time" in row.option.note


def test_what_a_thousand_queries_cost_and_what_a_month_costs_agree() -> None:
    for serving in ("token", "real-time", "hybrid"):
        for row in advise(AdviceInput(rows=20000, serving=serving, **PAYS)).options:
            queries = PAYS["queries_per_day"] * 365 / 12
            assert row.usd_per_1000_queries * queries / 1000 == pytest.approx(row.usd_per_month), row.option.name
            assert row.usd_per_1000_queries > 0


def test_a_stand_in_counts_only_where_it_is_good_enough() -> None:
    def of(few_shot: float, **more: Any) -> tuple[str, str]:
        found = advise(
            AdviceInput(rows=900, measured=replace(measured(few_shot, **more), stand_in="smollm2-135m"), target=0.8)
        )
        return found.answer, found.reasons[0].rule

    assert of(0.5) == ("prompt", "stand-in-measured"), "that a small model falls short says nothing about the large one"
    assert of(0.95) == ("dont", "prompt-is-enough-cost-unknown")
    assert of(0.5, classical=0.9) == ("dont", "classical-is-enough"), "a classifier is no stand-in"


@pytest.mark.parametrize("stand_in", ["", "smollm2-135m"])
def test_a_classifier_that_is_right_on_nearly_all_rows_is_the_advice_also_where_macro_f1_decides(stand_in: str) -> None:
    def share(value: float) -> Estimate:
        return Estimate(value, value - 0.1, min(1.0, value + 0.1))

    systems = {"few-shot": {"macro_f1": share(0.11), "accuracy": share(0.05)},
                  "tf-idf + logistic regression": {"macro_f1": share(0.75), "accuracy": share(0.975)}}  # fmt: skip
    results = replace(measured_of(systems, {}, 40, "here", "macro_f1"), stand_in=stand_in)
    found = advise(AdviceInput(rows=2197, measured=results))
    assert (found.answer, found.reasons[0].rule) == ("dont", "classical-right-on-nearly-all")
    assert "is right on 97.5 % of your 40 test rows (macro_f1 0.750)" in found.headline
    less = {**systems, "tf-idf + logistic regression": {"macro_f1": share(0.6), "accuracy": share(0.7)}}
    results = replace(measured_of(less, {}, 40, "here", "macro_f1"), stand_in=stand_in)
    found = advise(AdviceInput(rows=2197, measured=results))
    assert found.answer != "dont"
    assert ("is right on 70.0 %" in found.headline) == bool(stand_in), "what the classifier reaches holds for any model"


def test_a_budget_takes_a_cheaper_method_where_there_is_one() -> None:
    big = AdviceInput(rows=90_000, new_domain=True, target=0.8, measured=measured(0.5), tokens_per_row=2000)
    full = advise(big)
    lora = full.trainings["lora"].cost
    assert full.method == "full" and lora and full.trainings["full"].cost
    assert lora.usd < full.trainings["full"].cost.usd
    found = advise(big.model_copy(update={"budget_usd": lora.usd * 1.01}))
    assert found.answer == "tune" and found.method == "lora"
    assert "lora-within-budget" in {reason.rule for reason in found.reasons}
    never = advise(big.model_copy(update={"budget_usd": 0.01}))
    assert never.answer == "dont" and never.reasons[0].rule == "over-budget"


def test_uneven_labels_are_judged_by_what_the_evaluation_goes_by() -> None:
    metrics = {
        "accuracy": {"value": 0.86, "low": 0.8, "high": 0.9},
        "macro_f1": {"value": 0.46, "low": 0.4, "high": 0.5},
    }
    both: dict[str, Any] = {"metrics": metrics, "baselines": {"zero-shot": metrics}}
    verdict = {"sentence": "", "name": "tuned", "outcome": "better"}
    assert told_by(**both).metric == "accuracy"
    assert told_by(**both, verdict={**verdict, "metric": "macro_f1"}).metric == "macro_f1"
    assert told_by(**both, verdict={**verdict, "metric": "gone"}).metric == "accuracy"
