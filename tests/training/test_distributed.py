"""Two processes compute what one computes: losses, norms and weights; checkpoints can be taken over by another number."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bf16 import NATIVE_BF16, needs_bf16
from by_day import by_day
from hypothesis import given
from hypothesis import strategies as st
from train_helpers import changed, halted, make_rows, run

from patience import HANG
from pretend_gpu import Card, pretend_gpu
from tuneloop.cli.main import main
from tuneloop.core.files import read_jsonl
from tuneloop.models.load import load_model
from tuneloop.models.methods.shipped import method_named
from tuneloop.models.trained import load_trained
from tuneloop.training import distributed
from tuneloop.training.batches import plan_steps
from tuneloop.training.loop import learning_rate
from tuneloop.training.loss import mean_loss

# Does a list of jobs, given as JSON: settings, folder, the step before which the run is broken off, the environment.
SCRIPT = """
import contextlib, itertools, json, os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from train_helpers import changed, run
from tuneloop.training import loop
from tuneloop.pipeline.distributed import joined
class Stop(Exception): pass
whole = loop.optimizer_step
with joined():
    for job in json.loads(sys.argv[1]):
        steps = itertools.count(1)
        def step(*arguments):
            if next(steps) == job.get("until"):
                raise Stop
            return whole(*arguments)
        loop.optimizer_step = step
        os.environ.update(job.get("environment", {{}}))
        with contextlib.suppress(Stop):
            run(Path({model!r}), Path(job["out"]), changed(**job["config"]), **job["other"])
        for name in job.get("environment", {{}}):
            del os.environ[name]
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "dora": {"method": "lora", "dora": True, "l2_start": 0.01},
    "prefix": {"method": "prefix", "prefix_tokens": 4, "learning_rate": 1e-2},
    "full": {"method": "full", "learning_rate": 1e-3, "l2_start": 0.01},
    "qlora": {"method": "qlora"},
    "kl": {"method": "lora", "kl": 0.1},
    "dpo": {"loss": "dpo", "learning_rate": 5e-3},
    "kto": {"loss": "kto", "learning_rate": 5e-3},
    "bf16": {"method": "full", "learning_rate": 1e-3},
    "bf16-8bit": {"method": "full", "learning_rate": 1e-3, "optimizer": "adamw-8bit"},
}
COMPUTED = [name for name in METHODS if NATIVE_BF16 or "bf16" not in name]
# Method, processes that begin, processes that go on.
TAKEN_OVER = [("full", 2, 1), ("full", 1, 2), ("lora", 2, 1), ("bf16-8bit", 2, 1), ("bf16-8bit", 1, 2)]
UNTIL = 4


def job_of(method: str, out: Path, **more: Any) -> dict[str, Any]:
    other = {"dtype": "bfloat16"} if "bf16" in method else {}
    return {"config": {**METHODS[method], "epochs": 1, "evaluations": 2, **more}, "out": str(out), "other": other}


def here(tiny_llama: Path, job: dict[str, Any]) -> Any:
    """A job done by this process alone."""
    return run(tiny_llama, Path(job["out"]), changed(**job["config"]), **job["other"])[0]


def cut_job(folder: Path, method: str, first: int, then: int) -> dict[str, Any]:
    return job_of(method, folder / f"{method}-{first}-{then}", checkpoint_seconds=0.0)


def check_checkpoints(job: dict[str, Any], first: int) -> None:
    """The last one is of the step before the end; where two processes train all weights, each has written its part."""
    folder = Path(job["out"]) / "checkpoints"
    assert sorted(p.name for p in folder.glob("step-*.pt"))[-1] == f"step-{UNTIL - 1:07d}.pt"
    assert bool(list(folder.glob("*.shards"))) is (first == 2 and job["config"]["method"] == "full")


@pytest.fixture(scope="module")
def by_two(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, cli_environment: dict[str, str]) -> Path:
    """What two processes have trained, which are started once: by each method, and runs of another number of processes.

    `METHOD` is a whole run, `METHOD-2-1` one that they have begun, `METHOD-1-2` one that they have ended.
    """
    folder = tmp_path_factory.mktemp("two")
    jobs = [job_of(method, folder / method) for method in COMPUTED]
    jobs.append({**job_of("lora", folder / "replicated"), "environment": {"TUNELOOP_REPLICATE": "1"}})
    for case in TAKEN_OVER:
        if case[0] not in COMPUTED:
            continue
        job = cut_job(folder, *case)
        if case[1] == 2:
            job["until"] = UNTIL
        else:
            halted(tiny_llama, Path(job["out"]), UNTIL, changed(**job["config"]), **job["other"])
            check_checkpoints(job, 1)
        jobs.append(job)
    script = folder / "job.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), model=str(tiny_llama)))
    path = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), json.dumps(jobs)], text=True, stderr=subprocess.PIPE,
            env={**cli_environment, **path, "RANK": str(i), "LOCAL_RANK": str(i)},
        )
        for i in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=HANG)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)[-3000:]
    return folder


def figures(folder: Path) -> list[float]:
    keys = ("loss", "val_loss", "grad_norm", "kl", "l2_start")
    return [r[key] for r in read_jsonl(folder / "metrics.jsonl") for key in keys if key in r]


@pytest.mark.slow
@pytest.mark.parametrize("method", by_day(COMPUTED, 3))
def test_two_processes_have_the_losses_of_one(method: str, by_two: Path, tiny_llama: Path, tmp_path: Path) -> None:
    here(tiny_llama, job_of(method, tmp_path))
    item, two = figures(tmp_path), figures(by_two / method)
    assert len(item) > 10 and two == pytest.approx(item, rel=3e-2 if "bf16" in method else 2e-3, abs=1e-5)
    if method == "lora":  # each process may have the whole base
        assert figures(by_two / "replicated") == pytest.approx(item, rel=2e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "first", "then"),
    by_day((pytest.param(*c, marks=needs_bf16) if "bf16" in c[0] else c for c in TAKEN_OVER), 2),
)
def test_a_run_goes_on_with_another_number_of_processes(
    by_two: Path, tiny_llama: Path, tmp_path: Path, method: str, first: int, then: int
) -> None:
    whole = here(tiny_llama, job_of(method, tmp_path, checkpoint_seconds=0.0))
    job = cut_job(by_two, method, first, then)
    if then == 1:
        check_checkpoints(job, first)
        here(tiny_llama, job)
    cut, near = Path(job["out"]), 3e-2 if "bf16" in method else 2e-3
    item, two = figures(tmp_path), figures(cut)
    assert len(item) == len(two) and two == pytest.approx(item, rel=near, abs=1e-5)
    model = load_model(str(tiny_llama), dtype="float32")
    load_trained(model, cut)
    rows = make_rows(model.template, 8, offset=100)
    assert mean_loss(model, rows, changed())[0] == pytest.approx(whole.best_val_loss, rel=near)
    assert not (cut / "checkpoints").exists()
    loads_in_plain_libraries(cut, tiny_llama, str(METHODS[method]["method"]))


def loads_in_plain_libraries(folder: Path, base: Path, method: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if method == "full":
        net = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    else:
        net = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder / "adapter"
        )
    ours = load_model(str(base), dtype="float32")
    load_trained(ours, folder)
    ids = torch.tensor([ours.template.encode("Letter 3: please answer soon")])
    with torch.no_grad():
        torch.testing.assert_close(net(ids).logits, ours.hidden(ids) @ ours.head.t(), atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_torchrun_trains_and_only_the_first_process_speaks(
    cli_environment: dict[str, str], tiny_llama: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Which drawer for letter {i}?", "completion": ["red", "blue"][i % 2]} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()), "-m",
               "tuneloop", "train", "rows.jsonl", f"model={tiny_llama}", "train.epochs=1", "train.rank=2", "--out", "run", "--json"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, env=cli_environment, text=True, capture_output=True, timeout=HANG)
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = json.loads(done.stdout)  # exactly one object
    assert manifest["status"] == "finished" and (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()
    steps = [r["step"] for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert steps == list(range(1, manifest["steps"] + 1))
    assert done.stderr.count("preflight") == 1


@pytest.mark.nightly
@pytest.mark.slow
def test_a_run_starts_its_processes_itself(cli_environment: dict[str, str], tiny_llama: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Which drawer for letter {i}?", "completion": ["red", "blue"][i % 2]} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    command = ["train", str(tmp_path / "rows.jsonl"), f"model={tiny_llama}", "train.epochs=1", "train.rank=2"]
    assert main([*command, "--out", str(tmp_path / "alone"), "--quiet"]) == 0  # `auto`: this machine has no GPUs
    done = subprocess.run(
        [sys.executable, "-m", "tuneloop", *command, "train.gpus=2", "--out", "divided", "--json"],
        cwd=tmp_path, env=cli_environment, text=True, capture_output=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["status"] == "finished" and done.stderr.count("preflight") == 1
    alone = figures(tmp_path / "alone")
    assert figures(tmp_path / "divided") == pytest.approx(alone, rel=3e-2 if NATIVE_BF16 else 2e-3)


@pytest.mark.parametrize(
    ("method", "gib", "whole"),
    [("lora", 80.0, True), ("lora", 0.0005, False), ("full", 80.0, False), ("prefix", 80.0, True)],
)
def test_a_base_that_fits_is_whole_on_each_gpu(method: str, gib: float, whole: bool, tiny_model: Any) -> None:
    assert not distributed.replicates(tiny_model, method_named(method))  # on a processor
    with pretend_gpu(Card(gib=gib)):
        assert distributed.replicates(tiny_model, method_named(method)) is whole


# --- how work is divided


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), world=st.integers(1, 9))
def test_every_row_is_computed_once_and_all_processes_compute_as_many_groups(sizes: list[int], world: int) -> None:
    rows = iter(range(1000))
    groups = [[next(rows) for _ in range(size)] for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(world))
        dealt = []
        for i in range(world):
            patch.setenv("RANK", str(i))
            dealt.append(distributed.own_share(groups))
    assert len({len(share) for share in dealt}) == 1
    counted = sorted(row for share in dealt for group, counts in share if counts for row in group)
    assert counted == sorted(row for group in groups for row in group)
    if sum(sizes) >= world:  # nobody is idle where there are rows for all
        assert all(any(counts for _, counts in share) for share in dealt)


def test_the_plan_of_steps_and_the_schedule_do_not_know_of_processes(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, config = make_rows(tiny_model.template, 30), changed(epochs=1.5)
    alone = plan_steps(rows, config, 0), [learning_rate(i, 12, config) for i in range(12)]
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (plan_steps(rows, config, 0), [learning_rate(i, 12, config) for i in range(12)]) == alone
