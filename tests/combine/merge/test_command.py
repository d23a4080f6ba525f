"""Merged runs are runs like any other: they are evaluated, asked, exported, and say what they came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneloop.cli.main import main
from tuneloop.core.files import read_json, read_jsonl, write_jsonl

Said = pytest.CaptureFixture[str]
MakeTuned = Callable[..., Path]
COLOURS = [
    {"text": f"the sky number {i} is {'grey' if i % 2 else 'blue'}", "label": ["dull", "bright"][i % 2]}
    for i in range(40)
]


@pytest.fixture
def experts(make_tuned: MakeTuned) -> list[str]:
    """Two runs on one base: tickets with three labels, colours with two."""
    first = make_tuned(name="tickets", data={"instruction": "Which queue?"})
    second = make_tuned(COLOURS, name="colours", data={"instruction": "Which weather?"})
    file = second / "adapter" / "adapter_model.safetensors"
    g = torch.Generator().manual_seed(5)
    state = {name: torch.randn(tensor.shape, generator=g) * 0.05 for name, tensor in load_file(file).items()}
    save_file(state, file)
    return [str(first), str(second)]


def told(said: Said, *arguments: str, status: int = 0) -> dict[str, Any]:
    """The object that a command prints."""
    assert main([*arguments, "--json"]) == status, said.readouterr().err
    found: dict[str, Any] = json.loads(said.readouterr().out)
    return found


def test_a_merged_run_is_evaluated_asked_and_exported(experts: list[str], capsys: Said) -> None:
    found = told(capsys, "merge", *experts, "--method", "cat", "--out", "both")
    assert found["rank"] == 8 and found["lost"] == 0 and [s["name"] for s in found["sources"]] == experts
    run = read_json(Path("both/run.json"))
    assert run["adapter_hash"] == found["hash"] == read_json(Path("both/adapter/tuneloop.json"))["hash"]
    result = told(capsys, "evaluate", "both")
    sizes = [len(read_jsonl(Path(f"{run}/dataset/test.jsonl"))) for run in experts]
    assert result["n"] == sum(sizes) and set(read_json(Path("both/dataset/dataset.json"))["labels"]) == {
        "late", "lost", "thanks", "dull", "bright"
    }  # fmt: skip
    of_one = told(capsys, "evaluate", "both", "--dataset", f"{experts[1]}/dataset")
    assert of_one["n"] == sizes[1]
    write_jsonl("asked.jsonl", [{"text": "the sky is blue"}])
    assert main(["predict", "both", "asked.jsonl", "--out", "answers.jsonl", "--task", experts[1]]) == 0
    assert read_jsonl(Path("answers.jsonl"))[0]["prediction"] in ("dull", "bright")
    capsys.readouterr()
    artifact = told(capsys, "export", "both", "--format", "adapter", "--out", "artifact")
    assert artifact["format"] == "adapter"
    again = told(capsys, "merge", "artifact", experts[0], "--out", "more")  # an artifact is an adapter, too
    assert again["rank"] == 8


def test_pooled_rows_are_kept_once_and_say_their_task(experts: list[str], capsys: Said) -> None:
    told(capsys, "merge", *experts, "--out", "both")
    rows = {split: read_jsonl(Path(f"both/dataset/{split}.jsonl")) for split in ("train", "val", "test")}
    ids = [row["id"] for split in rows.values() for row in split]
    parts = [read_jsonl(Path(f"{run}/dataset/{split}.jsonl")) for run in experts for split in ("train", "val", "test")]
    assert len(ids) == len(set(ids)) and set(ids) == {row["id"] for part in parts for row in part}
    assert {row["meta"]["task"] for row in rows["test"]} == set(experts)


def test_the_same_command_again_does_nothing_and_another_one_is_refused(experts: list[str], capsys: Said) -> None:
    told(capsys, "merge", *experts, "--out", "both")
    before = Path("both/adapter/adapter_model.safetensors").stat().st_mtime_ns
    told(capsys, "merge", *reversed(experts), "--out", "both")
    assert Path("both/adapter/adapter_model.safetensors").stat().st_mtime_ns == before
    assert main(["merge", *experts, "--out", "both", "--weights", "1,0.5"]) == 2
    assert "another run" in capsys.readouterr().err


def test_adapters_without_a_run_are_merged_without_rows(experts: list[str], capsys: Said, tmp_path: Path) -> None:
    for i, run in enumerate(experts):
        (Path(run) / "adapter").rename(tmp_path / f"plain{i}")
        (tmp_path / f"plain{i}" / "tuneloop.json").unlink()
    found = told(capsys, "merge", "plain0", "plain1", "--out", "both")
    assert found["sources"][0]["dataset"] == ""
    assert main(["evaluate", "both"]) == 2
    assert "no data set" in capsys.readouterr().err
    rows = read_jsonl(Path(f"{experts[0]}/dataset/test.jsonl"))
    assert told(capsys, "evaluate", "both", "--dataset", f"{experts[0]}/dataset")["n"] == len(rows)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["tickets", "tickets"], "The same adapter twice"),
        (["tickets", "nowhere/else"], "nowhere/else"),
        (["tickets", "colours", "--weights", "1,x"], "--weights takes numbers"),
        (["tickets", "colours", "--method", "lineal"], "did you mean linear"),
        (["tickets", "BASE"], "whole model and no adapter"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    arguments: list[str], text: str, experts: list[str], capsys: Said, tiny_llama: Path
) -> None:
    given = [{"tickets": experts[0], "colours": experts[1], "BASE": str(tiny_llama)}.get(a, a) for a in arguments]
    assert main(["merge", *given, "--out", "both"]) == 2
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error
    assert not Path("both/run.json").exists()
