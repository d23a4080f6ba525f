"""Answers to validation rows while a run trains: they develop, change nothing of the training, and go with its end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from train_helpers import changed, losses, run

from tuneloop.records.run import ANSWERS
from tuneloop.training import answers, loop


@pytest.mark.parametrize("loss", ["supervised", "dpo"])
def test_answers_develop_and_training_is_the_same_without_them(
    tiny_llama: Path, tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    def log(record: dict[str, Any]) -> None:
        if "val_loss" in record:
            lines.append((tmp_path / "with" / ANSWERS).read_text(encoding="utf-8").splitlines()[-1])

    monkeypatch.setattr(answers, "SHARE", 1e9)
    config = changed(loss=loss, on_divergence="warn")
    run(tiny_llama, tmp_path / "with", config, log=log)
    written = [json.loads(line) for line in lines]
    assert [line["step"] for line in written] == [0, 3, 6, 9, 12]
    for line in written:
        assert len(line["rows"]) == answers.ROWS and all(row["prompt"] and row["reference"] for row in line["rows"])
    first, last = ([row["answer"] for row in line["rows"]] for line in (written[0], written[-1]))
    assert first != last
    assert not (tmp_path / "with" / ANSWERS).exists(), "they go with the checkpoints"
    monkeypatch.setattr(loop, "write_answers", lambda *_: None)
    run(tiny_llama, tmp_path / "without", config)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "with" / weights).read_bytes() == (tmp_path / "without" / weights).read_bytes()


def test_a_model_that_is_compiled_gives_none(tiny_model: Any, tmp_path: Path) -> None:
    class Run:
        config, out = changed(compile=True), tmp_path

    answers.write_answers(Run(), [])  # type: ignore[arg-type]
    assert not (tmp_path / ANSWERS).exists()


def test_what_takes_longer_than_its_share_of_the_time_waits(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = []

    def slowly(model: Any, prompts: Any, **_: Any) -> Any:
        times.append(time.sleep(1.0))
        return [SimpleNamespace(text="late") for _ in prompts]

    monkeypatch.setattr(answers, "generate", slowly)
    run(tiny_llama, tmp_path, changed())
    assert len(times) == 1, "a second is more than a fiftieth of this run"
