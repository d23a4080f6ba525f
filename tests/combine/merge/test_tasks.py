"""Each task judges the merged model; one that loses too much stays with its expert."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shared_folder import made_once

from tuneloop.cli.main import main
from tuneloop.core.files import read_json, sha256_file, write_json, write_jsonl
from tuneloop.data.config import PrepareConfig
from tuneloop.data.prepare import TokenCount, prepare_dataset
from tuneloop.inference.labels import label_ids, label_trie
from tuneloop.inference.local.scoring import choose_for
from tuneloop.inference.request import Request
from tuneloop.models.load import load_model
from tuneloop.models.trained import load_trained

Said = pytest.CaptureFixture[str]
SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
TASKS = {"colours": ["red", "blue", "green"], "animals": ["owl", "cow", "goat"]}


@pytest.fixture
def path(
    make_tuned: Callable[..., Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path
) -> Path:
    """Two runs with random matrices. The rows of each have the answers that it gives: it is right on all of them."""

    def write(folder: Path) -> None:
        write_tasks(make_tuned, tiny_llama)
        shutil.copytree(tmp_path, folder / "place")

    made = made_once(tmp_path_factory, "merge-tasks", write)
    return Path(shutil.copytree(made / "place", tmp_path, dirs_exist_ok=True))


def write_tasks(make_tuned: Callable[..., Path], tiny_llama: Path) -> None:
    base = load_model(str(tiny_llama), dtype="float32")
    for number, (task, labels) in enumerate(TASKS.items()):
        rng = random.Random(number)
        texts = ["".join(rng.choices(SYLLABLES, k=9)) for _ in range(160)]
        instruction = {"instruction": f"What {task}?"}
        folder = make_tuned([{"text": "x y z", "label": label} for label in labels], instruction, task)
        file = folder / "adapter" / "adapter_model.safetensors"
        g = torch.Generator().manual_seed(number)
        save_file({n: torch.randn(t.shape, generator=g) * 0.25 for n, t in load_file(file).items()}, file)
        load_trained(base, folder)
        trie = label_trie(labels, label_ids(base.template, labels))
        turns = [[{"role": "system", "content": f"What {task}?"}, {"role": "user", "content": t}] for t in texts]
        asked = [Request(ids=base.template.prompt_ids(turn)) for turn in turns]
        said = [answer.text for answer in choose_for(base, asked, trie)]
        records = [{"text": t, "label": label} for t, label in zip(texts, said, strict=True)]
        shutil.rmtree(folder / "dataset")
        write_jsonl(f"{task}.jsonl", records)
        config = PrepareConfig(
            sources=[f"{task}.jsonl"], labels=labels, split={"val": 0.2, "test": 0.5}, **instruction  # type: ignore[arg-type]
        )  # fmt: skip
        prepare_dataset(config, name=task, seed=0, out=folder / "dataset", measure=lambda row: TokenCount(40, 4))


def told(said: Said, *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == status, said.readouterr().err
    found: dict[str, Any] = json.loads(said.readouterr().out)
    return found


@pytest.mark.nightly
@pytest.mark.slow
def test_on_six_rows_the_first_lines_and_the_record_say_that_nothing_can_be_shown(path: Path, capsys: Said) -> None:
    assert main(["merge", "colours", "animals", "--method", "cat", "--rows", "6", "--allow", "1", "--out", "few"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].startswith("warn: nothing can be shown for colours on 6 test rows")
    assert "warn: nothing can be shown for animals on 6 test rows" in printed.err
    text = read_json(Path("few") / "merge.json")["words"]
    assert [word.split(" on 6 test rows")[0] for word in text[:2]] == [f"nothing can be shown for {t}" for t in TASKS]
    assert all("Judge by at least 20 test rows" in word for word in text[:2])


@pytest.mark.slow
def test_each_task_judges_the_merged_model_beside_its_controls(path: Path, capsys: Said) -> None:
    found = told(capsys, "merge", "colours", "animals", "--method", "cat", "--allow", "1", "--out", "both")
    assert [task["task"] for task in found["tasks"]] == ["colours", "animals"]
    for task in found["tasks"]:
        assert task["expert"] > task["base"] + 0.2, task
        assert task["kept"]["low"] <= task["kept"]["value"] <= task["kept"]["high"]
        share = (task["merged"] - task["base"]) / (task["expert"] - task["base"])
        assert task["kept"]["value"] == pytest.approx(share) and task["random"] is not None
    assert read_json(Path("both/merge.json"))["tasks"] == found["tasks"]
    assert {route["target"] for route in read_json(Path("both/tasks.json"))["routes"]} == {"both"}


@pytest.mark.slow
def test_a_task_that_loses_too_much_stays_with_its_expert(path: Path, capsys: Said) -> None:
    found = told(
        capsys, "merge", "colours", "animals", "--weights", "1,0.001", "--method", "cat", "--out", "both", status=1
    )
    routes = {route["task"]: route["target"] for route in read_json(Path("both/tasks.json"))["routes"]}
    assert routes == {"colours": "colours", "animals": "animals"} == {
        route["task"]: route["target"] for route in found["deployment"]["routes"]
    }  # fmt: skip
    assert not Path("both/run.json").exists() and not Path("both/adapter").exists()
    told(capsys, "merge", "colours", "animals", "--weights", "1,0.001", "--out", "both", "--no-judge")
    assert Path("both/run.json").is_file()


@pytest.mark.nightly
@pytest.mark.slow
def test_a_search_goes_by_validation_rows_and_is_not_done_twice(path: Path, capsys: Said) -> None:
    command = ["merge", "colours", "animals", "--method", "auto", "--minutes", "0.1", "--rows", "40", "--allow", "9",
               "--pooled", "colours", "--out", "both"]  # fmt: skip
    found = told(capsys, *command)
    tried = found["searched"]
    assert tried and max(tried, key=lambda item: item["worst"])["method"] == found["method"]
    assert all(task["n"] == 40 and task["pooled"] is not None for task in found["tasks"])
    assert found["tasks"][0]["pooled"] == found["tasks"][0]["expert"], "that run is the first task's expert"
    before = Path("both/adapter/adapter_model.safetensors").stat().st_mtime_ns
    again = told(capsys, *command)
    assert again["searched"] == tried and Path("both/adapter/adapter_model.safetensors").stat().st_mtime_ns == before
    write_jsonl(Path("animals/dataset/val.jsonl"), [])
    manifest = read_json(Path("animals/dataset/dataset.json"))
    manifest["splits"]["val"] |= {"rows": 0, "sha256": sha256_file("animals/dataset/val.jsonl")}
    write_json(Path("animals/dataset/dataset.json"), manifest)
    assert main(["merge", "colours", "animals", "--method", "auto", "--out", "other"]) == 2
    assert "no validation rows" in capsys.readouterr().err
