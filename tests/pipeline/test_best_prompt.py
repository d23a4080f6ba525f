"""Few-shot's prompt is chosen on validation rows, once, and stays the same in a rerun."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuneloop.core.ui import reporting
from tuneloop.evaluation.evaluate import sample_rows
from tuneloop.pipeline import baselines
from tuneloop.pipeline.baselines import ask_base, base_examples, with_best_prompt
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.prepare import prepare_stage
from tuneloop.recipe import Recipe, make_recipe
from tuneloop.records.evaluation import PromptChoice
from tuneloop.records.record import read_record
from tuneloop.records.rows import Dataset


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama: Path) -> Recipe:
    things = ["order", "parcel", "lamp", "kettle", "voucher"]
    with (tmp_path / "cases.jsonl").open("w") as file:
        for i in range(90):
            text = f"Case {i * 37 % 101}: the {things[i % 5]} sent on day {i * 13 % 29}, number {i * i}?"
            file.write(json.dumps({"text": text, "label": ["late", "refund", "praise"][i % 3]}) + "\n")
    (tmp_path / "prompt.yaml").write_text("system: Answer late, refund or praise.\n")
    return make_recipe(
        {
            "name": "cases", "model": str(tiny_llama), "output_dir": str(tmp_path / "run"),
            "data": {"sources": [str(tmp_path / "cases.jsonl")], "split": {"test": 0.3, "val": 0.3}},
            "baselines": {"few_shot": 4, "prompt": str(tmp_path / "prompt.yaml"), "prompt_rows": 6},
        }
    )  # fmt: skip


def prepared(recipe: Recipe) -> tuple[RunContext, Dataset]:
    job = RunContext(recipe, Path(recipe.output_dir or ""))
    return job, prepare_stage(job)


def test_the_prompt_with_the_best_validation_rows_is_taken_and_named(recipe: Recipe) -> None:
    job, dataset = prepared(recipe)
    chosen = with_best_prompt(job, recipe, dataset)
    choice = read_record(PromptChoice, job.folder / "baselines")
    tried = {(item.prompt, item.examples): item.value for item in choice.tried}
    assert set(tried) == {(recipe.baselines.prompt, n) for n in (4, 2, 8)} | {(None, 4)}
    best = choice.tried[0]
    assert best.value == max(tried.values()) and choice.metric == "accuracy" and choice.rows == 6
    assert (chosen.baselines.prompt, chosen.baselines.few_shot) == (best.prompt, best.examples)

    job.recipe = chosen
    rows = sample_rows(dataset.val, 6, seed=recipe.seed, stratum=dataset.stratum)
    answers = ask_base(job, dataset, rows, base_examples(job, dataset, rows))[""]
    right = [answer.text == row.answer for answer, row in zip(answers.completions, rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(best.value)
    assert f"with {best.examples} examples, the best of 4 on 6 validation rows." in answers.note


def test_a_rerun_takes_the_same_prompt_without_a_search(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    job, dataset = prepared(recipe)
    first = with_best_prompt(job, recipe, dataset)
    monkeypatch.setattr(baselines, "ask", None)
    assert with_best_prompt(job, recipe, dataset) == first


def test_a_limit_on_the_time_ends_the_search_after_the_prompt_as_set(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, dataset = prepared(recipe)
    limited = recipe.model_copy(update={"max_minutes": baselines.LEAST_MINUTES})
    monkeypatch.setattr(baselines, "SEARCH_SHARE", 0.0)
    lines: list[str] = []
    with reporting(lines.append):
        chosen = with_best_prompt(job, limited, dataset)
    assert (chosen.baselines.prompt, chosen.baselines.few_shot) == (recipe.baselines.prompt, 4)
    assert "the only one that there was time for, on 6 validation rows" in "\n".join(lines)


@pytest.mark.parametrize("change", [{"prompt_rows": 0}, {"few_shot": 0}])
def test_without_rows_or_examples_nothing_is_searched(recipe: Recipe, change: dict[str, int]) -> None:
    unchanged = recipe.model_copy(update={"baselines": recipe.baselines.model_copy(update=change)})
    job, dataset = prepared(unchanged)
    assert with_best_prompt(job, unchanged, dataset) == unchanged
    short = recipe.model_copy(update={"max_minutes": baselines.LEAST_MINUTES - 1})
    assert with_best_prompt(job, short, dataset) == short
    assert not (job.folder / "baselines" / PromptChoice.file).exists()
