"""A search trains every combination a little and the better ones longer, and goes on where it was cut short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core.errors import UserError
from tuneloop.pipeline import sweep as module
from tuneloop.pipeline.sweep import rungs_of, search_of, split_values, sweep
from tuneloop.recipe import Recipe, make_recipe
from tuneloop.records.record import read_record
from tuneloop.records.run import RunManifest
from tuneloop.records.sweep import SweepManifest


@pytest.mark.parametrize(
    ("text", "values"),
    [("1e-4,5e-4", ["1e-4", "5e-4"]), ("[q,v],[q,k,v]", ["[q,v]", "[q,k,v]"]), ("lora", ["lora"]), ("1,", ["1"])],
)
def test_commas_inside_brackets_belong_to_a_value(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_every_combination_is_searched_or_as_many_as_asked() -> None:
    search, fixed = search_of(["lr=1e-4,5e-4", "train.rank=4,8,16", "train.epochs=2"], 0, 0)
    assert search.axes == {"train.learning_rate": ["1e-4", "5e-4"], "train.rank": ["4", "8", "16"]}
    assert len(search.settings) == 6 and fixed == ["train.epochs=2"]
    few, _ = search_of(["lr=1e-4,5e-4", "train.rank=4,8,16"], 3, 0)
    assert len(few.settings) == 3 and few == search_of(["lr=1e-4,5e-4", "train.rank=4,8,16"], 3, 0)[0]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["train.rank=8"], "Nothing to search"),
        (["train.rank=8,8"], "twice"),
        (["data.max_length=512,1024"], "can't be searched"),
        (["epochs=1,2"], "can't be searched"),
    ],
)
def test_what_can_t_be_searched_is_said(texts: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        search_of(texts, 0, 0)


@pytest.mark.parametrize(("number", "rungs"), [(1, [1.0]), (2, [1.0]), (3, [1 / 3, 1.0]), (9, [1 / 9, 1 / 3, 1.0])])
def test_the_more_settings_the_smaller_the_first_share(number: int, rungs: list[float]) -> None:
    assert rungs_of(number) == pytest.approx(rungs)


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"text": f"The {'late' if n % 2 else 'early'} parcel number {n} of {n * 7}", "label": "ab"[n % 2]}
        for n in range(60)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "rows", "model": str(tiny_llama), "data": {"sources": ["rows.jsonl"]},
        "train": {"epochs": 3, "rows_per_step": 8, "rank": 4}, "evaluate": {"limit": 6},
        "baselines": {"few_shot": 0}, "track": {"report_to": []},
    }  # fmt: skip
    return make_recipe(values)


def test_the_best_by_validation_gets_all_passes_and_is_the_only_one_that_is_evaluated(
    recipe: Recipe, tmp_path: Path
) -> None:
    search, _ = search_of(["train.learning_rate=1e-6,1e-3,1e-2"], 0, 0)
    out = tmp_path / "sweep"
    found = sweep(recipe, search, out)
    first, full = ([trial for trial in found.trials if (trial.share == 1.0) is last] for last in (False, True))
    assert len(first) == 3 and len(full) == 1 and found.best == full[0].settings
    assert full[0].settings == min(first, key=lambda trial: trial.val_loss or 0.0).settings
    assert found.best != {"train.learning_rate": "1e-6"}
    evaluated = sorted(path.parent.name for path in out.glob("trials/*/eval.json"))
    assert evaluated == [Path(found.run).name]
    assert read_record(RunManifest, Path(found.run)).best_val_loss == full[0].val_loss
    assert read_record(SweepManifest, out) == found


def test_a_search_that_was_cut_short_goes_on_without_training_anything_again(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, _ = search_of(["train.learning_rate=1e-6,1e-3,1e-2"], 0, 0)
    real, trained = module.train_alone, []

    def counted(own: Recipe, **settings: Any) -> Any:
        if len(trained) == 2 and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            raise KeyboardInterrupt
        trained.append(own.train.learning_rate)
        return real(own, **settings)

    monkeypatch.setattr(module, "train_alone", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep(recipe, search, tmp_path / "sweep", evaluate=False)
    assert len(read_record(SweepManifest, tmp_path / "sweep").trials) == 2
    found = sweep(recipe, search, tmp_path / "sweep", evaluate=False)
    assert len(trained) == 4 and len(found.trials) == 4
    sweep(recipe, search, tmp_path / "sweep", evaluate=False)
    assert len(trained) == 4
    with pytest.raises(UserError, match="Another search"):
        sweep(recipe, search_of(["train.rank=2,4"], 0, 0)[0], tmp_path / "sweep")


def test_a_trial_that_fails_loses_and_all_failed_is_an_error(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, _ = search_of(["train.rank=4,8"], 0, 0)
    real = module.train_alone

    def fails(own: Recipe, **settings: Any) -> Any:
        if own.train.rank == 4:
            raise UserError("Out of memory")
        return real(own, **settings)

    monkeypatch.setattr(module, "train_alone", fails)
    found = sweep(recipe, search, tmp_path / "sweep", evaluate=False)
    assert found.best == {"train.rank": "8"}
    assert [trial.error for trial in found.trials] == ["Out of memory", ""]
    with pytest.raises(UserError, match="Every trial failed: Out of memory"):
        sweep(recipe, search_of(["train.learning_rate=1e-4,1e-3"], 0, 0)[0], tmp_path / "none", evaluate=False)
