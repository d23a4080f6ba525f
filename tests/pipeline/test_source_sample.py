"""Large sources are counted by a sample: near the truth, without a trace on the disk, for `advise` and `plan` alike."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tuneloop.cli.main import main
from tuneloop.core.ui import reporting
from tuneloop.pipeline import advise as sampled
from tuneloop.pipeline.advise import counted_data, remind
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.prepare import prepare_stage
from tuneloop.recipe import Recipe, make_recipe

WORDS = [f"{a}{b}" for a in ("lamp", "box", "door", "tea", "road", "wind", "salt", "moss") for b in ("s", "ed", "er", "ish", "ly", "ful")]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, where a tenth of a megabyte is large."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNELOOP_LEDGER", str(tmp_path / "ledger.jsonl"))
    monkeypatch.setattr(sampled, "LARGE", 100 << 10)
    monkeypatch.setattr(sampled, "SAMPLE", 60 << 10)
    monkeypatch.setattr(sampled, "CHUNK", 2 << 10)
    return tmp_path


def write(path: Path, rows: int = 1200) -> Path:
    draw = random.Random(1)
    lines = [
        json.dumps({"text": " ".join(draw.choices(WORDS, k=draw.randint(12, 60))), "label": draw.choice("abc"), "n": i})
        for i in range(rows)
    ]
    data = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def recipe(model: Path, source: Path) -> Recipe:
    return make_recipe({"model": str(model), "name": "t", "data": {"sources": [str(source)]}})


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_sample_tells_rows_and_tokens_within_its_error(name: str, here: Path, tiny_llama: Path) -> None:
    asked = recipe(tiny_llama, write(here / name))
    truth = prepare_stage(RunContext(asked, here / "whole")).manifest["splits"]["train"]
    said: list[str] = []
    with reporting(say=said.append), sampled.sampled_data(asked) as (dataset, text):
        counted = dataset.manifest["splits"]["train"]
        assert Path(dataset.path).is_dir()
    assert not Path(dataset.path).exists(), "a sample is no data set to train on"
    error = int(text.split("within ")[1].split("%")[0]) / 100
    assert 0.01 <= error < 0.2 and text in said[-1]
    for found, true in (
        (counted["rows"], truth["rows"]),
        (counted["tokens"]["total"], truth["tokens"]["total"]),
        (counted["tokens"]["supervised"], truth["tokens"]["supervised"]),
    ):
        assert found == pytest.approx(true, rel=2 * error)


def test_small_and_prepared_data_are_counted_whole(here: Path, tiny_llama: Path) -> None:
    small = recipe(tiny_llama, write(here / "small.jsonl", 100))
    with counted_data(small) as counted:
        assert counted.sample == "" and counted.hash
    large = recipe(tiny_llama, write(here / "large.jsonl"))
    prepare_stage(RunContext(large, here / "evals" / "advise-t"))
    with counted_data(large) as counted:
        assert counted.sample == "" and counted.path == "evals/advise-t/dataset"


def test_advise_and_plan_count_a_large_file_by_a_sample_and_say_so(
    here: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(here / "rows.jsonl")
    answers: list[dict[str, Any]] = []
    for command in (["advise", "rows.jsonl", "--model", str(tiny_llama)], ["plan", "rows.jsonl", "--model", str(tiny_llama), "--gpu", "l4"]):  # fmt: skip
        assert main([*command, "--json", "--quiet"]) in (0, 1)
        answers.append(json.loads(capsys.readouterr().out))
    for answer in answers:
        assert any("counted on a sample of" in line for line in answer["assumptions"])
    assert sorted(path.name for path in (here / "evals" / "advise-rows").iterdir()) == ["advise.json"]
    kept = here / "evals" / "advise-rows" / "advise.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "answer": "dont", "headline": "Don't."}))
    job, said = RunContext(recipe(tiny_llama, source), here / "run"), []
    dataset = prepare_stage(job)
    with reporting(say=said.append):
        remind(job, dataset)
    assert "Don't." in said[0], "advice on a sample is about the file's data set"
