"""Predicted against measured: resident memory of small runs on this processor, and published runs on GPUs next to other estimators.

    python benchmarks/plan.py            # 24 runs of smollm2-135m, some 10 minutes on one core, then the published runs
    python benchmarks/plan.py 0:6        # only some of the runs
    python benchmarks/plan.py loop       # 37 runs of tuneloop's own loop, some 8 minutes on one core
    python benchmarks/plan.py families   # 12 runs of other families, to which nothing was fitted; with `make models`
    python benchmarks/plan.py published  # only the published runs
    python benchmarks/plan.py published PYTHON  # next to other estimators, see plan_others.py for what PYTHON must have

A run is three steps of plain Transformers and PEFT in a process of its own; its growth is the peak of resident memory over
what was resident before the model was loaded.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tuneloop.planning.catalogue.shape import find_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from families import folder_of
from published_runs import Point, read_points

from real_models import MODELS, real_model
from tuneloop.core.device import default_dtype
from tuneloop.models.files.names import resolve
from tuneloop.models.nn.shape import target_modules
from tuneloop.planning.at_hand import RunWork, loop_job
from tuneloop.planning.catalogue.gpus import find_gpu
from tuneloop.planning.job import TrainingSetup, make_job
from tuneloop.planning.memory import memory_of
from tuneloop.planning.speed import speed_of

HERE = Path(__file__).parent
POINTS = HERE.parent / "tests" / "planning" / "points"
USUAL: dict[str, Any] = {"method": "lora", "targets": "all-linear", "rank": 16, "seq_len": 256, "micro_batch": 2,
                         "grad_ckpt": False, "dtype": "fp32", "attention": "sdpa", "prefix_tokens": 20}  # fmt: skip
RUNS: list[dict[str, Any]] = [
    {},
    {"rank": 64},
    {"seq_len": 512},
    {"micro_batch": 4},
    {"grad_ckpt": True, "micro_batch": 4},
    {"method": "full"},
    {"method": "full", "grad_ckpt": True, "micro_batch": 4},
    {"method": "prefix"},
    {"dtype": "bf16", "micro_batch": 4},
    {"attention": "eager", "seq_len": 512},
    {"targets": "q,v", "micro_batch": 4},
    {"dtype": "bf16", "method": "full"},
    {"seq_len": 128, "micro_batch": 4, "rank": 8},
    {"seq_len": 384, "micro_batch": 1},
    {"seq_len": 768, "micro_batch": 1, "targets": "q,k,v,o"},
    {"seq_len": 128, "micro_batch": 8, "grad_ckpt": True, "rank": 32},
    {"seq_len": 512, "micro_batch": 3, "grad_ckpt": True},
    {"method": "full", "seq_len": 128, "micro_batch": 2},
    {"method": "full", "seq_len": 512, "micro_batch": 1},
    {"method": "prefix", "seq_len": 384, "micro_batch": 2, "prefix_tokens": 50},
    {"dtype": "bf16", "seq_len": 512, "micro_batch": 2, "targets": "q,v", "rank": 8},
    {"dtype": "bf16", "grad_ckpt": True, "seq_len": 256, "micro_batch": 6},
    {"attention": "eager", "micro_batch": 4, "targets": "q,v"},
    {"targets": "gate,up,down", "rank": 32, "seq_len": 192, "micro_batch": 3},
]


def native_bf16() -> bool:
    """Whether models are bf16 on this machine."""
    import torch

    return default_dtype() is torch.bfloat16


def cpu_job(run: dict[str, Any]) -> TrainingSetup:
    """The planner's job for a run here: AdamW keeps its states in the weights' dtype."""
    settings = {**USUAL, **run}
    settings["targets"] = target_modules(settings["targets"])
    if settings["dtype"] == "bf16" and settings["method"] == "full":
        settings["optimizer"] = "adamw-bf16"
    return make_job(model="smollm2-135m", shape=find_model("smollm2-135m")[1], gpu=find_gpu("cpu"), **settings)


def measure(run: dict[str, Any]) -> float:
    """GiB by which a process grows that does the run."""
    done = subprocess.run(
        [sys.executable, str(HERE / "plan_cpu_run.py"), json.dumps({**USUAL, **run})],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(json.loads(done.stdout.splitlines()[-1])["growth_gib"])


def table_of_cpu_runs(runs: list[dict[str, Any]]) -> None:
    """Predict, run and print."""
    print(f"{'run':<66}{'measured':>9}{'predicted':>10}{'error':>8}")
    errors = []
    if not native_bf16():
        print("without the runs in bf16, which this processor multiplies some hundred times slower than fp32")
        runs = [run for run in runs if run.get("dtype") != "bf16"]
    for run in runs:
        predicted = memory_of(cpu_job(run)).peak
        measured = measure(run)
        errors.append(predicted / measured - 1)
        text = " ".join(f"{key}={value}" for key, value in run.items()) or "as usual"
        print(f"{text:<66}{measured:>9.2f}{predicted:>10.2f}{errors[-1]:>+8.1%}", flush=True)
    within = sum(abs(error) <= 0.1 for error in errors)
    print(f"within 10 %: {within} of {len(errors)}; median {statistics.median(map(abs, errors)):.1%}\n")


OTHERS = ("accelerate", "fitcheck", "ftuneai")
LOOP_USUAL: dict[str, Any] = {"model": "smollm2-135m", "method": "lora", "rank": 16, "targets": "all-linear", "prefix_tokens": 64, "seq_len": 128, "micro_batch": 4,
                              "shared": 0, "learned": 0.5, "dtype": "auto", "steps": 4}  # fmt: skip
LOOP_RUNS: list[dict[str, Any]] = [
    {}, {"rank": 64}, {"seq_len": 256}, {"seq_len": 512, "micro_batch": 1}, {"micro_batch": 8}, {"method": "full"}, {"method": "prefix"},
    {"method": "qlora"}, {"dtype": "float32"}, {"shared": 128, "seq_len": 64}, {"steps": 10}, {"learned": 1.0, "micro_batch": 8},
    {"seq_len": 800, "micro_batch": 1}, {"seq_len": 384, "micro_batch": 2, "rank": 8}, {"targets": "q_proj,v_proj", "micro_batch": 6},
    {"targets": "attention", "seq_len": 200}, {"method": "full", "micro_batch": 8}, {"method": "prefix", "seq_len": 256},
    {"method": "qlora", "micro_batch": 8}, {"dtype": "float32", "micro_batch": 6}, {"shared": 200, "micro_batch": 8, "seq_len": 64},
    {"method": "prefix", "micro_batch": 10, "prefix_tokens": 20}, {"method": "full", "dtype": "float32"},
    {"rank": 32, "micro_batch": 16, "steps": 3}, {"seq_len": 64, "micro_batch": 6, "rank": 128},
    # nothing was fitted to those below
    {"seq_len": 96, "micro_batch": 12, "rank": 8}, {"method": "full", "seq_len": 64, "micro_batch": 12}, {"seq_len": 320, "micro_batch": 3},
    {"method": "prefix", "seq_len": 192, "micro_batch": 4, "prefix_tokens": 32}, {"method": "qlora", "seq_len": 256, "rank": 32},
    {"targets": "gate_proj,up_proj,down_proj", "seq_len": 160, "micro_batch": 5}, {"seq_len": 1000, "micro_batch": 1, "steps": 3},
    {"shared": 300, "micro_batch": 6, "seq_len": 48}, {"dtype": "float32", "seq_len": 224, "micro_batch": 2, "rank": 64},
    {"method": "full", "seq_len": 300, "micro_batch": 2}, {"seq_len": 40, "micro_batch": 24, "learned": 0.2},
    {"method": "prefix", "dtype": "float32", "micro_batch": 6},
]  # fmt: skip


# Models with real weights, and random ones of the sizes below, each with the settings of its runs.
FAMILY_RUNS: dict[str, list[dict[str, Any]]] = {
    "qwen2.5-coder-0.5b": [{}, {"seq_len": 256, "rank": 32}, {"method": "qlora"}, {"method": "prefix", "seq_len": 192}],
    "gemma-3-270m": [{}, {"method": "full", "seq_len": 96}],
    "qwen3": [{"seq_len": 200, "micro_batch": 6}, {"method": "full"}],
    "phi3": [{"seq_len": 320, "micro_batch": 2}, {"targets": "attention", "micro_batch": 8}],
    "mistral with a window": [{"seq_len": 384, "micro_batch": 3, "dtype": "float32"}],
    "smollm3": [{"method": "qlora", "micro_batch": 6, "rank": 8}],
}
RANDOM_SIZES = {"vocab_size": 49152, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
                "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 2048}  # fmt: skip


def folder_of_family(name: str, path: Path) -> str:
    """A model's folder: of a file that `make models` fetched, or of random weights with the packaged tokenizer."""
    if name in MODELS:
        if (file := real_model(name)) is None:
            sys.exit(f"No {MODELS[name].file}: run make models")
        return str(resolve(str(file)))
    folder = path / name.replace(" ", "-")
    sizes = {**RANDOM_SIZES, "num_key_value_heads": 12} if name == "phi3" else RANDOM_SIZES
    folder_of(name, folder, **sizes, **({"sliding_window": 128} if "window" in name else {}))
    for part in ("tokenizer.json", "tokenizer_config.json"):
        (folder / part).symlink_to(resolve("smollm2-135m") / part)
    return str(folder)


def table_of_families() -> None:
    """Predict, run and print runs of other families."""
    with tempfile.TemporaryDirectory() as path:
        folders = {name: folder_of_family(name, Path(path)) for name in FAMILY_RUNS}
        runs = [{"model": folders[name], **run} for name, runs in FAMILY_RUNS.items() for run in runs]
        table_of_loop_runs(runs)


def loop_growth(run: dict[str, Any]) -> float:
    """GiB by which a run of tuneloop's loop should grow a process that holds the model."""
    settings = {**LOOP_USUAL, **run}
    rows, length, shared = settings["micro_batch"], settings["seq_len"], settings["shared"]
    tokens = rows * length + shared
    work = RunWork(1, tokens, round(settings["learned"] * length) * rows, 0, ((rows, length, shared),))
    job = loop_job(
        find_model(settings["model"])[1], work, model=settings["model"], method=settings["method"], rank=settings["rank"],
        targets=settings["targets"], prefix_tokens=settings["prefix_tokens"], bytes_a_weight=2 if settings["dtype"] == "auto" and native_bf16() else 4,
    )  # fmt: skip
    memory = memory_of(job)
    return memory.peak - memory.terms["weights"]


def table_of_loop_runs(runs: list[dict[str, Any]]) -> None:
    """Predict, run and print."""
    print(f"{'tuneloop train':<66}{'measured':>9}{'predicted':>10}{'error':>8}")
    errors = []
    for run in runs:
        done = subprocess.run(
            [sys.executable, str(HERE / "plan_loop_run.py"), json.dumps({**LOOP_USUAL, **run})],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        measured = float(json.loads(done.stdout.splitlines()[-1])["growth_gib"])
        predicted = loop_growth(run)
        errors.append(predicted / measured - 1)
        text = (
            " ".join(Path(str(value)).name if key == "model" else f"{key}={value}" for key, value in run.items())
            or "as usual"
        )
        print(f"{text:<66}{measured:>9.2f}{predicted:>10.2f}{errors[-1]:>+8.1%}", flush=True)
    within = sum(abs(error) <= 0.1 for error in errors)
    print(f"within 10 %: {within} of {len(errors)}; median {statistics.median(map(abs, errors)):.1%}\n")


def others_gib(points: list[Point], python: str) -> list[dict[str, float | None]]:
    """GiB that the other estimators say, in the environment of `python`; nothing of them without one."""
    if not python:
        return [{} for _ in points]
    jobs = []
    for point in points:
        job = {
            **vars(point.job),
            "shape": vars(point.job.shape),
            "gib": point.job.gpu.gib,
            "parameters": point.job.shape.parameters,
        }
        jobs.append({name: value for name, value in job.items() if name != "gpu"})
    done = subprocess.run(
        [python, str(HERE / "plan_others.py")], input=json.dumps(jobs), capture_output=True, text=True, check=True
    )
    found: list[dict[str, float | None]] = json.loads(done.stdout)
    return found


def table_of_published_runs(python: str) -> None:
    """Errors by file and half, then of all, of the planner and of other estimators."""
    print(f"{'published runs':<30}{'peaks':>6}{'median':>8}{'in 8 %':>8}{'under 5 %':>11}{'fits':>12}{'speed in 20 %':>15}{'reserves':>10}{'median':>8}{'in 8 %':>8}{'under 5 %':>11}"
          + "".join(f"{tool:>12}" for tool in OTHERS * bool(python)))  # fmt: skip
    groups: dict[str, list[tuple[Point, dict[str, float | None]]]] = {}
    for path in sorted(POINTS.glob("*.yaml")):
        points = read_points(path)
        for point, said in zip(points, others_gib(points, python), strict=True):
            groups.setdefault(f"{path.stem}, {point.half}", []).append((point, said))
    for half in ("fit", "held out", "blind"):
        groups[f"all {half}"] = [run for name, runs in groups.items() if name.endswith(f", {half}") for run in runs]
    for name, runs in groups.items():
        print(_line(name, runs))
    print("\nthe other columns: median error over the peaks of the runs that the tool can say")


def _line(name: str, runs: list[tuple[Point, dict[str, float | None]]]) -> str:
    points = [point for point, _ in runs]
    errors = [memory_of(p.job).peak / p.gib - 1 for p in points if p.gib]
    speeds = [speed_of(p.job).tokens_per_second / p.tokens_per_second - 1 for p in points if p.tokens_per_second]
    judged = [p for p in points if p.gib or p.reserve_error is not None or not p.fits]
    reserves = [e for p in points if (e := p.reserve_error) is not None]
    right = sum(memory_of(p.job).fits == p.fits for p in judged)
    others = []
    for tool in OTHERS if runs[0][1] else ():
        pairs = [(said[tool], p.gib) for p, said in runs]
        others.append(f"{_median([value / gib - 1 for value, gib in pairs if value and gib]):>12}")
    return (
        f"{name:<30}{len(errors):>6}{_median(errors):>8}{_share(errors, 0.08):>8}{sum(e < -0.05 for e in errors):>11}"
        f"{f'{right} of {len(judged)}':>12}{_share(speeds, 0.2) + f' of {len(speeds)}':>15}"
        f"{len(reserves):>10}{_median(reserves):>8}{_share(reserves, 0.08):>8}{sum(e < -0.05 for e in reserves):>11}{''.join(others)}"
    )


def _median(errors: list[float]) -> str:
    return f"{statistics.median(map(abs, errors)):.1%}" if errors else "-"


def _share(errors: list[float], limit: float) -> str:
    return f"{sum(abs(e) <= limit for e in errors) / len(errors):.0%}" if errors else "-"


if __name__ == "__main__":
    message = sys.argv[1] if len(sys.argv) > 1 else ":"
    if message.startswith("loop"):  # loop, or loop:25:37
        first, _, last = message.removeprefix("loop").removeprefix(":").partition(":")
        table_of_loop_runs(LOOP_RUNS[int(first or 0) : int(last or len(LOOP_RUNS))])
        sys.exit()
    if message == "families":
        table_of_families()
        sys.exit()
    if message != "published":
        first, _, last = message.partition(":")
        table_of_cpu_runs(RUNS[int(first or 0) : int(last or len(RUNS))] or RUNS)
    table_of_published_runs(sys.argv[2] if len(sys.argv) > 2 else "")
