from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneloop.agents.roots import MOST_VALUES, Roots
from tuneloop.core.errors import UserError


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """One folder with a file, next to a secret."""
    (tmp_path / "open" / "data").mkdir(parents=True)
    (tmp_path / "open" / "rows.csv").write_text("text,label\na,b\n")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "keys.csv").write_text("text,label\nx,y\n")
    return Roots((tmp_path / "open",))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rows.csv",
        "data",
        "*.csv",
        "runs/new-run",
        "smollm2-135m",
        "org/name",
        "runs/a:few-shot",
        "models:/x@champion",
    ],
)
def test_places_within_and_names_of_models_are_allowed(roots: Roots, text: str) -> None:
    assert roots.place(text) == text


def test_an_absolute_place_within_the_folders_is_allowed(roots: Roots, tmp_path: Path) -> None:
    assert roots.place(str(tmp_path / "open" / "rows.csv"))
    assert Roots((tmp_path / "open", tmp_path / "secret")).place(str(tmp_path / "secret"))


@pytest.mark.parametrize(
    "text",
    [
        "/etc/passwd",
        "../secret/keys.csv",
        "data/../../secret/keys.csv",
        "data/..",
        "..\\secret",
        "~/x.csv",
        "~root/x.csv",
        "~",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "FILE:///etc/passwd",
        "https://example.org/rows.csv",
        "s3://bucket/rows.csv",
        "-",
        "--trust-code",
        "a\0b",
        "x" * 5000,
        "../secret:zero-shot",
        "rows.csv,/etc/passwd",
        "rows.csv, ~/x.csv",
        "split.test=/etc/passwd",
        "evaluate.limit=5",
        "/tm?/*",
    ],
)
def test_places_elsewhere_are_refused(roots: Roots, text: str) -> None:
    with pytest.raises(UserError, match="is refused"):
        roots.place(text)


@pytest.mark.parametrize(
    "text", ["out.csv", "out", "out/keys.csv", "out:zero-shot", "*.csv", "data", "o*", "**/*.csv", "data/inner"]
)
def test_links_that_lead_out_are_refused(roots: Roots, tmp_path: Path, text: str) -> None:
    (tmp_path / "open" / "out.csv").symlink_to(tmp_path / "secret" / "keys.csv")
    (tmp_path / "open" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "open" / "data" / "inner").symlink_to("../../secret")
    with pytest.raises(UserError, match="leads out of the server's folders"):
        roots.place(text)


def test_a_file_with_an_equals_sign_in_its_name_is_a_place(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "open" / "a=b.csv").write_text("text\n")
    assert roots.place("a=b.csv")


def test_a_link_that_stays_within_is_allowed(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "open" / "again.csv").symlink_to("rows.csv")
    assert roots.place("again.csv") and roots.place("*.csv")


def test_settings_become_words_of_a_command(roots: Roots) -> None:
    values = {
        "max_minutes": 2,
        "train": {"epochs": 1.5, "method": "lora"},
        "data": {"labels": ["-1", "ja 😀", "a=b"], "text": None},
    }
    assert roots.settings(values) == [
        "max_minutes=2",
        "train.epochs=1.5",
        'train.method="lora"',
        'data.labels=["-1", "ja 😀", "a=b"]',
        "data.text=null",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"output_dir": "/somewhere"},
        {"output_dir": "../out"},
        {"data": {"sources": ["../secret/keys.csv"]}},
        {"data": {"split": {"test": "/etc/passwd"}}},
        {"store": "s3://bucket/runs"},
        {"train": {"method": "mine.py"}},
        {"evaluate": {"scorers": {"f": "mine.py:score"}}},
        {"evaluate": {"lm_eval": ["task.yaml"]}},
        {"evaluate": {"lm_eval": "task.yaml,other"}},
        {"combined": "a.json,/etc/passwd"},
        {"--trust-code": "true"},
        {"train.epochs=1 --trust-code": 1},
        {"data": {"instruction": "/etc/passwd\nmore"}},
        {"data": {"instruction": "x" * MOST_VALUES}},
    ],
)
def test_settings_that_lead_out_or_name_code_are_refused(roots: Roots, values: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        roots.settings(values)


def test_what_a_recipe_names_is_checked_too(roots: Roots, tmp_path: Path) -> None:
    recipe = tmp_path / "open" / "recipe.yaml"
    good = {"name": "a", "data": {"sources": ["rows.csv"], "instruction": "Choose: a / b.\nBe brief."}}
    recipe.write_text(yaml.safe_dump(good))
    assert roots.recipe("recipe.yaml") == "recipe.yaml"
    for bad in ({"sources": ["../secret/keys.csv"]}, {"sources": [str(tmp_path / "secret")]}):
        recipe.write_text(yaml.safe_dump({"name": "a", "data": bad}))
        with pytest.raises(UserError, match="is refused"):
            roots.recipe("recipe.yaml")
    recipe.write_text(yaml.safe_dump({"name": "a", "train": {"method": "evil.py"}}))
    with pytest.raises(UserError, match="Code is not run"):
        roots.recipe("recipe.yaml")


def test_what_a_run_was_made_of_is_checked_too(roots: Roots, tmp_path: Path) -> None:
    run = tmp_path / "open" / "runs" / "a"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"sources": [str(tmp_path / "secret" / "keys.csv")]}}))
    with pytest.raises(UserError, match="is refused"):
        roots.recipe("runs/a")
