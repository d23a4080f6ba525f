"""Two processes compute what one computes: losses, norms and weights; checkpoints can be taken over by another number."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from train_helpers import changed, halted, make_rows, run

from patience import HANG, native_bf16, needs_bf16
from pretend_gpu import Card, pretend_gpu
from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl
from tuneloop.models.load import load_model
from tuneloop.models.methods import method_named
from tuneloop.models.trained import load_trained
from tuneloop.train import distributed
from tuneloop.train.batches import plan_steps
from tuneloop.train.loop import learning_rate
from tuneloop.train.loss import mean_loss

# Reads a list of jobs as JSON: settings, folder, step after which the process ends itself.
SCRIPT = """
import json, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from train_helpers import changed, run
from tuneloop.train.distributed import joined
class Stop(Exception): pass
with joined():
    for job in json.loads(sys.argv[1]):
        def log(record):
            if job.get("until") and record["step"] >= job["until"] and "loss" in record:
                sys.exit(3)
        run(Path({model!r}), Path(job["out"]), changed(**job["config"]), log=log, **job.get("other", {{}}))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Start = Callable[..., None]


@pytest.fixture(scope="module")
def together(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, cli_environment: dict[str, str]) -> Start:
    """Run jobs one after the other in so many processes that share them; in this one where it is one."""
    script = tmp_path_factory.mktemp("script") / "job.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), model=str(tiny_llama)))

    def start(processes: int, *jobs: dict[str, Any], status: int = 0) -> None:
        if processes == 1:  # which is this one
            for job in jobs:
                config, out, other = changed(**job["config"]), Path(job["out"]), job.get("other", {})
                if "until" in job:
                    halted(tiny_llama, out, job["until"], config, **other)
                else:
                    run(tiny_llama, out, config, **other)
            return
        place = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        started = [
            subprocess.Popen(
                [sys.executable, str(script), json.dumps(jobs)], text=True, stderr=subprocess.PIPE,
                env={**cli_environment, **place, "RANK": str(i), "LOCAL_RANK": str(i)},
            )
            for i in range(processes)
        ]  # fmt: skip
        errors = [process.communicate(timeout=HANG)[1] for process in started]
        assert started[0].returncode == status, "\n".join(errors)[-3000:]

    return start


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "dora": {"method": "lora", "dora": True, "l2_start": 0.01},
    "pissa": {"method": "lora", "lora_init": "pissa"},
    "prefix": {"method": "prefix", "prefix_tokens": 4, "learning_rate": 1e-2},
    "full": {"method": "full", "learning_rate": 1e-3, "l2_start": 0.01},
    "qlora": {"method": "qlora"},
    "kl": {"method": "lora", "kl": 0.1},
    "dpo": {"loss": "dpo", "learning_rate": 5e-3},
    "kto": {"loss": "kto", "learning_rate": 5e-3},
    "bf16": {"method": "full", "learning_rate": 1e-3},
    "bf16-8bit": {"method": "full", "learning_rate": 1e-3, "optimizer": "adamw-8bit"},
}


def figures(folder: Path) -> list[float]:
    keys = ("loss", "val_loss", "grad_norm", "kl", "l2_start")
    return [r[key] for r in read_jsonl(folder / "metrics.jsonl") for key in keys if key in r]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_with_every_method(
    together: Start, tiny_llama: Path, tmp_path: Path
) -> None:
    methods = {name: c for name, c in METHODS.items() if native_bf16() or "bf16" not in name}

    def jobs(count: str) -> list[dict[str, Any]]:
        return [
            {
                "config": {**c, "epochs": 1},
                "out": str(tmp_path / count / name),
                "other": {"dtype": "bfloat16"} if "bf16" in name else {},
            }
            for name, c in methods.items()
        ]

    together(2, *jobs("two"))
    together(1, *jobs("one"))
    for name in methods:
        one, two = figures(tmp_path / "one" / name), figures(tmp_path / "two" / name)
        assert len(one) > 10 and two == pytest.approx(one, rel=3e-2 if "bf16" in name else 2e-3, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "first", "then"),
    [
        ("full", 2, 1),
        ("full", 1, 2),
        ("lora", 2, 1),
        pytest.param("bf16-8bit", 2, 1, marks=needs_bf16),
        pytest.param("bf16-8bit", 1, 2, marks=needs_bf16),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(
    together: Start, tiny_llama: Path, tmp_path: Path, method: str, first: int, then: int
) -> None:
    config = {**METHODS[method], "checkpoint_seconds": 0.0, "epochs": 1}
    other, near = ({"dtype": "bfloat16"}, 3e-2) if "bf16" in method else ({}, 2e-3)
    whole = run(tiny_llama, tmp_path / "whole", changed(**config), **other)[0]
    job = {"config": config, "out": str(tmp_path / "cut"), "other": other}
    together(first, {**job, "until": 4}, status=3)
    assert sorted(p.name for p in (tmp_path / "cut" / "checkpoints").glob("step-*.pt"))[-1] == "step-0000003.pt"
    assert bool(list((tmp_path / "cut" / "checkpoints").glob("*.shards"))) is (
        first == 2 and config["method"] == "full"
    )
    together(then, job)
    one, two = figures(tmp_path / "whole"), figures(tmp_path / "cut")
    assert len(one) == len(two) and two == pytest.approx(one, rel=near, abs=1e-5)
    model = load_model(str(tiny_llama), dtype="float32")
    load_trained(model, tmp_path / "cut")
    rows = make_rows(model.template, 8, offset=100)
    assert mean_loss(model, rows, changed())[0] == pytest.approx(whole.best_val_loss, rel=near)
    assert not (tmp_path / "cut" / "checkpoints").exists()
    loads_in_plain_libraries(tmp_path / "cut", tiny_llama, str(config["method"]))


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
    rows = [{"prompt": f"Which drawer for letter {i}?", "completion": ["red", "blue"][i % 2]} for i in range(60)]
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


@pytest.mark.slow
def test_a_run_starts_its_processes_itself_and_each_may_have_the_whole_base(
    cli_environment: dict[str, str], tiny_llama: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Which drawer for letter {i}?", "completion": ["red", "blue"][i % 2]} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    command = ["train", str(tmp_path / "rows.jsonl"), f"model={tiny_llama}", "train.epochs=1", "train.rank=2"]

    def trained(out: str, **environment: str) -> list[float]:
        done = subprocess.run(
            [sys.executable, "-m", "tuneloop", *command, "train.gpus=2", "--out", out, "--json"],
            cwd=tmp_path, env={**cli_environment, **environment}, text=True, capture_output=True, timeout=HANG,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout)["status"] == "finished" and done.stderr.count("preflight") == 1
        return figures(tmp_path / out)

    assert main([*command, "--out", str(tmp_path / "alone"), "--quiet"]) == 0  # `auto`: this machine has no GPUs
    alone = figures(tmp_path / "alone")
    near = 3e-2 if native_bf16() else 2e-3
    assert trained("whole", TUNELOOP_REPLICATE="1") == pytest.approx(alone, rel=near)
    assert trained("divided") == pytest.approx(alone, rel=near)


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
        with pytest.raises(UserError, match="8 GPUs are asked for, and torch sees 4"):
            distributed.processes_wanted(8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.processes_wanted("auto") == 1  # torchrun has started it


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
