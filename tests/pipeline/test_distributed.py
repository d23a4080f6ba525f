"""Several processes answer the rows of an evaluation together, and it is the evaluation of one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from six_layers import write_six_layers

from pretend_gpu import Card, pretend_gpu
from tuneloop.cli.main import main
from tuneloop.core import device
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, read_jsonl
from tuneloop.core.ui import reporting
from tuneloop.inference.local.target import SharedWork
from tuneloop.inference.request import Request
from tuneloop.pipeline import distributed
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.distributed import _answers
from tuneloop.recipe import Recipe

GENERAL = [{"prompt": f"How many legs have {i} hens?", "completion": str(2 * i)} for i in range(7)]


# The command line, and a file for each part of the work that a process has done.
NOTED = """
import sys
from pathlib import Path
from tuneloop.cli.main import main
from tuneloop.inference.local.target import SharedWork
plain = SharedWork.part
def noted(self, target, rank, world, *rest):
    Path(f"{rank}-{self.call}-{self.adapter or 'tuned'}").touch()
    return plain(self, target, rank, world, *rest)
SharedWork.part = noted
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(make_tuned: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_tuned(data={"split": {"val": 0.0, "test": 0.4}})
    Path("general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GENERAL))
    asked = ["evaluate", str(run), "general=general.jsonl", "--quiet"]
    assert main([*asked, "--out", "one"]) == 0
    monkeypatch.setenv("PYTHONPATH", str(Path(distributed.__file__).parents[2]))
    assert distributed.start_processes(2, [sys.executable, "-c", NOTED, *asked, "--out", "two"]) == 0
    item, two = (read_json(Path(name, "eval.json")) for name in ("one", "two"))
    assert answers("two") == answers("one") and len(answers("two")) == item["n"] > 10
    for name, score in item["metrics"].items():  # batches of another size add in another order
        assert two["metrics"][name] == pytest.approx(score, rel=1e-6)
    for model in ("base", "tuned"):
        assert two["forgetting"][model]["loss"] == pytest.approx(item["forgetting"][model]["loss"], rel=1e-3)
    assert item["forgetting"]["base"]["loss"] != item["forgetting"]["tuned"]["loss"]
    parts = {path.name for path in Path().glob("?-*-*")}
    assert parts == {
        f"{i}-{part}" for i in range(2) for part in ("score-tuned", "complete-tuned", "fits-tuned", "fits-base")
    }


def answers(folder: str) -> list[dict[str, Any]]:
    return [
        {key: row[key] for key in ("id", "prediction", "label")} for row in read_jsonl(Path(folder, "samples.jsonl"))
    ]


def test_rows_are_dealt_in_turn_and_joined_in_order(monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> None:
    job = job_of(tiny_model)
    sent: list[Any] = []
    monkeypatch.setattr("tuneloop.pipeline.distributed.broadcast", sent.append)
    monkeypatch.setattr("tuneloop.pipeline.distributed.processes", lambda: 2)

    def others(own: Any) -> list[Any]:
        work = sent[-1].work
        other = work.part(Repeats(), 1, 2)
        return [dict.fromkeys(own, "own"), other]

    monkeypatch.setattr("tuneloop.pipeline.distributed.gathered", others)
    work = SharedWork("complete", [Request(ids=[i + 1], max_new_tokens=1) for i in range(5)], {})
    seen: list[float] = []
    with reporting(progress=lambda task, done, total, /, **info: seen.append(done / total)):
        found = _answers(job, work)
    assert found == ["own", 2, "own", 4, "own"] and seen[-1] == 1.0 and not sent[-1].tuned


def test_what_another_process_has_met_is_raised_here(monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> None:
    monkeypatch.setattr("tuneloop.pipeline.distributed.broadcast", lambda value: value)
    monkeypatch.setattr(
        "tuneloop.pipeline.distributed.gathered", lambda own: [own, UserError("No room on GPU 1", where="cuda:1")]
    )
    with pytest.raises(UserError, match="No room on GPU 1"), reporting(progress=print):
        _answers(job_of(tiny_model), SharedWork("complete", [Request(ids=[1], max_new_tokens=1)], {}))


class Repeats:
    """A target whose answer is the prompt's first token."""

    def complete(self, requests: list[Request]) -> list[int]:
        return [request.ids[0] for request in requests]


def job_of(model: Any) -> RunContext:
    job = RunContext(Recipe.model_validate({"data": {"sources": ["none.jsonl"]}}), Path("run"))
    job.__dict__["model"] = model
    return job


def test_what_several_gpus_train_has_the_dtype_of_the_gpus_and_not_of_the_host(
    monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    recipe = Recipe.model_validate({"model": str(tiny_llama), "data": {"sources": ["none.jsonl"]}})
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert device.default_dtype("cpu") is torch.float32
    with pretend_gpu():
        model = RunContext(recipe, Path("run")).training_model
        assert {p.dtype for p in model.net.parameters()} == {torch.bfloat16}
        assert model.device.type == "cpu", "it goes to the GPUs layer by layer"


def test_a_model_that_needs_several_cards_is_asked_by_the_first_process_alone(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneloop.core.device import CARD_SHARE
    from tuneloop.models.load import load_model

    folder = write_six_layers(tmp_path / "six", tiny_llama)
    weights = sum(p.numel() * p.element_size() for p in load_model(str(folder), dtype="bfloat16").net.parameters())
    recipe = Recipe.model_validate({"model": str(folder), "data": {"sources": ["x.jsonl"]}})
    freed: list[bool] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pretend_gpu(Card(gib=0.8 * weights / CARD_SHARE / 2**30), cards=2) as gpu:
        job = RunContext(recipe, tmp_path / "run")
        job.workers, job.others_let_go = lambda work: [], lambda: freed.append(True)
        assert job.model.is_sharded and job.model.workers is None and freed == [True]
        assert gpu.on_card[0] and gpu.on_card[1]
    with pretend_gpu(cards=2):
        job = RunContext(recipe, tmp_path / "run")
        job.workers, job.others_let_go = lambda work: [], lambda: freed.append(True)
        assert not job.model.is_sharded and job.model.workers is not None and freed == [True]


def test_a_process_that_ends_ends_the_others_and_says_its_status(tmp_path: Path) -> None:
    code = (
        "import os, sys, time, pathlib; rank = os.environ['RANK']; "
        f"pathlib.Path({str(tmp_path)!r}, rank + 'of' + os.environ['WORLD_SIZE']).touch(); sys.exit(3 if rank == '1' else 0)"
    )
    assert distributed.start_processes(2, [sys.executable, "-c", code]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0of2", "1of2"]
    waits = "import os, time; time.sleep(0 if os.environ['RANK'] == '0' else 600)"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "GRACE", 0.2)
        assert distributed.start_processes(2, [sys.executable, "-c", waits]) == 128 + 9


def test_as_many_processes_are_started_as_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.processes_wanted("auto") == 1 and distributed.processes_wanted(3) == 3
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["one", "two"])
    with pretend_gpu() as gpu:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
        assert gpu.card.name in distributed.device.names()
        assert distributed.processes_wanted("auto") == distributed.processes_wanted(4) == 4
        assert distributed.processes_wanted(1) == 1
        with pytest.raises(UserError, match="8 GPUs are requested, and torch sees 4"):
            distributed.processes_wanted(8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.processes_wanted("auto") == 1  # torchrun has started it
