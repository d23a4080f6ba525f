"""lm-eval's tasks are run on our models, with the numbers of lm-eval's own; without the package the reason is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.forgetting import tasks_before_and_after
from tuneloop.evaluation.lm_eval import TaskScores, _until
from tuneloop.pipeline import side_effects as systems

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
WRITTEN = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))
    data = tmp_path / "data.jsonl"
    questions = [
        {"question": f"{i} + 1?", "choices": [str(i + 1), "a cat", f"{i} dogs"], "answer": 0} for i in range(8)
    ]
    data.write_text("".join(json.dumps(q) + "\n" for q in questions))

    def write(name: str, form: str) -> str:
        file = tmp_path / f"{name}.yaml"
        file.write_text(form.format(name=name, data=data))
        return str(file)

    return write


def test_log_likelihoods_and_scores_are_those_of_lm_evals_own_model(
    task: Callable[[str, str], str], tiny_llama: Path, tiny_model: Any
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    pytest.importorskip("transformers")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from tuneloop.evaluation.lm_eval import _harness_model, run_tasks
    from tuneloop.inference.local.target import LocalTarget

    files = [task("sums", CHOICE), task("said", WRITTEN)]
    own = HFLM(pretrained=str(tiny_llama), dtype="float32", device="cpu", batch_size=1)
    both = [
        simple_evaluate(m, tasks=files, bootstrap_iters=0) for m in (own, _harness_model(LocalTarget.of(tiny_model)))
    ]
    theirs, ours = ([[r for s in side["samples"]["sums"] for r in s["filtered_resps"]]] for side in both)
    assert [x[0] for x in ours[0]] == pytest.approx([x[0] for x in theirs[0]], abs=1e-3)
    assert [x[1] for x in ours[0]] == [x[1] for x in theirs[0]]
    assert both[0]["results"]["said"] == both[1]["results"]["said"]
    found = run_tasks(LocalTarget.of(tiny_model), files, limit=5)
    assert len(found["sums"]["acc,none"].each) == 5 and found["said"]["exact_match,none"].higher_is_better


def test_a_task_that_can_not_be_had_is_told_and_costs_nothing_else(tiny_model: Any) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    config = EvaluateConfig(lm_eval=["no_such_task_at_all"])
    found = systems.side_effects(tiny_model, lambda: nullcontext(tiny_model), [], [], [], config, 0)
    assert found["lm_eval"]["tasks"] == [] and "no_such_task_at_all" in found["lm_eval"]["words"]


def test_without_the_package_the_reason_is_told(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop.evaluation.lm_eval.PACKAGE", "no_such_package_here")
    config = EvaluateConfig(lm_eval=["arc_easy"])
    found = systems.side_effects(tiny_model, lambda: nullcontext(tiny_model), [], [], [], config, 0)
    assert "pip install lm-eval" in found["lm_eval"]["words"]


def test_tasks_are_compared_document_by_document() -> None:
    before = {
        "t": {"acc,none": TaskScores(0.75, {i: float(i % 4 > 0) for i in range(40)}), "ppl,none": TaskScores(9.0, {})}
    }
    after = {"t": {"acc,none": TaskScores(0.5, {i: float(i % 2) for i in range(40)}), "ppl,none": TaskScores(12.0, {})}}
    accuracy, perplexity = tasks_before_and_after(before, after)["tasks"]
    assert accuracy["change"].value == -0.25 and accuracy["change"].low < -0.25 < accuracy["change"].high < 0
    assert perplexity["change"].value == 3.0 and perplexity["n"] == 0


def test_answers_end_at_the_first_stop() -> None:
    assert _until("a b\nQ: c", ["Q:", "\n"]) == "a b" and _until("a", "") == "a"
