"""Recipes from what people name."""

from __future__ import annotations

from pathlib import Path

from tuneloop.core.files import write_json, write_yaml
from tuneloop.recipe import make_recipe, recipe_of


def a_run(folder: Path) -> Path:
    used = make_recipe(
        {"name": "mine", "model": "llama-3.2-1b", "seed": 3, "output_dir": "runs/first", "max_minutes": 5,
         "data": {"sources": ["a.csv"], "split": {"test": 0.3}}, "train": {"rank": 4, "epochs": 2}}
    )  # fmt: skip
    write_yaml(folder / "config.yaml", used)
    write_json(folder / "dataset" / "dataset.json", {"version": 1})
    return folder


def test_a_runs_folder_stands_for_its_data_set_model_and_training(tmp_path: Path) -> None:
    run = a_run(tmp_path / "first")
    recipe = recipe_of(str(run), [])
    assert recipe.data.sources == [str(run / "dataset")] and recipe.data.split.test != 0.3  # the data are split already
    assert (recipe.name, recipe.model, recipe.seed) == ("mine", "llama-3.2-1b", 3)
    assert (recipe.train.rank, recipe.train.epochs) == (4, 2)
    assert recipe.output_dir is None, "another run of it does not write into its folder"


def test_what_is_given_beside_a_run_comes_before_its_own(tmp_path: Path) -> None:
    recipe = recipe_of(str(a_run(tmp_path)), ["train.rank=64"], model="llama-3.1-8b")
    assert recipe.model == "llama-3.1-8b" and recipe.train.rank == 64 and recipe.train.epochs == 2
