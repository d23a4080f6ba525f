"""Training speed on this machine, next to Transformers' Trainer with PEFT and next to TRL, in one run.

    python benchmarks/train.py [--methods qv,all-linear,full] [--systems tuneloop,trainer,trl,plain] [--rows 160]
    python benchmarks/train.py --models qwen2.5-0.5b,qwen3-0.6b,gemma3-270m,mistral,smollm3,phi3 --methods all-linear --systems tuneloop,trainer

Each system trains one epoch of the same chats from the same base in a process of its own: the whole process counts, imports and loading included. The peers are installed
into an environment of their own (`--peers FOLDER`). Printed: tokens a second without padding, peak resident memory, the peak of matrix products measured around the process
and the share of it that needed operations reach (over the whole process, and for tuneloop over its optimizer steps), the loss on held-out chats afterwards,
computed by one function for all, and tuneloop's figures as multiples of the best peer's.

`--models` names models or their folders; those in SHAPES are random weights of a family in the published shape, or in the published width with fewer layers where a whole
one takes hours here. Their speed is that of the real ones, their losses say nothing. All read the tokens of the packaged model, which every vocabulary here holds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import peers_python

from tuneloop.core.device import default_dtype
from tuneloop.core.files import read_jsonl
from tuneloop.core.threads import use_threads
from tuneloop.models.chat.template import Rendered
from tuneloop.models.files.names import resolve
from tuneloop.models.load import load_model, load_tokenizer
from tuneloop.training.flops import matmul_peak, needed_gflop

HERE = Path(__file__).parent
MODEL = "smollm2-135m"
PEERS = ("torch>=2.4,<3", "transformers", "peft", "trl", "datasets", "accelerate")
ENVIRONMENT = dict(os.environ)  # what the systems get: `use_threads` changes that of this process
RATES = {"qv": 5e-4, "all-linear": 5e-4, "full": 3e-5}
# From the models' own config.json: Qwen2.5-0.5B, Qwen3-0.6B and Gemma 3 270M whole, Mistral 7B v0.3, SmolLM3-3B and Phi-3-mini with 3 or 4 of their layers.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
                     "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, "rope_theta": 1e6},
    "qwen3-0.6b": {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "head_dim": 128,
                   "num_key_value_heads": 8, "vocab_size": 151936, "tie_word_embeddings": True, "rope_theta": 1e6},
    "gemma3-270m": {"model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4, "head_dim": 256,
                    "num_key_value_heads": 1, "vocab_size": 262144, "sliding_window": 512, "query_pre_attn_scalar": 256},
    "mistral": {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 3, "num_attention_heads": 32,
                "num_key_value_heads": 8, "vocab_size": 49152, "sliding_window": None, "rope_theta": 1e6},
    "smollm3": {"model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 4, "num_attention_heads": 16,
                "num_key_value_heads": 4, "vocab_size": 128256, "tie_word_embeddings": True, "pad_token_id": 0},
    "phi3": {"model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 4, "num_attention_heads": 32,
             "num_key_value_heads": 32, "vocab_size": 49152, "pad_token_id": 0},
}  # fmt: skip


def folder_of(name: str, scratch: Path) -> Path:
    """Folder of a model; one of SHAPES is made, with random weights and the packaged model's tokenizer."""
    if name not in SHAPES:
        return resolve(name)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = scratch / name
    if not folder.is_dir():
        shape = {"bos_token_id": 1, "eos_token_id": 2, **SHAPES[name]}
        config = AutoConfig.for_model(shape.pop("model_type"), **shape)
        with torch.device("meta"):
            net = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        net.to_empty(device="cpu").tie_weights()
        noise = 0.02 * torch.randn(2**20, generator=torch.Generator().manual_seed(0)).bfloat16()
        for weight in net.parameters():  # drawing a billion numbers takes minutes, repeating a million seconds
            flat = weight.data.view(-1)
            for part in flat.split(len(noise)):
                part.copy_(noise[: len(part)] if weight.dim() > 1 else torch.ones(1))
        net.save_pretrained(folder)
        copy_tokenizer(resolve(MODEL), folder)
    return folder


def copy_tokenizer(model: Path, folder: Path) -> None:
    """A model's tokenizer, where a folder has none."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        source = model / name
        if source.is_file() and not (folder / name).exists():
            (folder / name).write_bytes(source.read_bytes())


def chats(folder: Path, most: int) -> list[Rendered]:
    """Rendered rows of at most 350 tokens: p10, p50, p90 about 60, 130, 280."""
    template = load_tokenizer(MODEL)
    rows = json.loads((folder / "train.json").read_text())
    turns = [((r["instruction"] + "\n" + (r.get("input") or "")).strip(), r["output"]) for r in rows]
    rendered = [
        template.render([{"role": "user", "content": q}, {"role": "assistant", "content": a}]) for q, a in turns
    ]
    return [r for r in rendered if len(r.ids) <= 350][:most]


def train_ours(job: dict[str, Any]) -> None:
    """The same job by tuneloop; see `train_peers.py` for the others."""
    from tuneloop.training.config import TrainConfig
    from tuneloop.training.loop import train

    use_threads()
    model = load_model(job["model"])
    shared = {
        "learning_rate": job["learning_rate"],
        "rows_per_step": job["batch"],
        "epochs": 1,
        "warmup": job["warmup_steps"] / job["steps"],
    }
    kinds = {"qv": {"targets": ["q_proj", "v_proj"]}, "all-linear": {"targets": "all-linear"}, "full": {}}
    method = "full" if job["method"] == "full" else "lora"
    if method == "lora":
        kinds[job["method"]] |= {"rank": job["rank"], "alpha": 2 * job["rank"], "lora_plus": 1.0}
    config = TrainConfig(method=method, **shared, **kinds[job["method"]])
    rows = [Rendered(r["ids"], [int(x >= 0) for x in r["labels"]]) for r in job["rows"]]
    train(model, rows, [], config, Path(job["out"]))


def val_loss(job: dict[str, Any], rows: list[Rendered]) -> float:
    """Mean loss of held-out answers under a system's result."""
    from tuneloop.inference.local.scoring import answer_fits
    from tuneloop.models.adapters.lora import load_adapter

    use_threads()
    out = Path(job["out"])
    adapter = next((p for p in (out / "adapter", out) if (p / "adapter_config.json").is_file()), None)
    full = next((p for p in (out / "model", out) if (p / "config.json").is_file()), None)
    if adapter is None and full is not None:
        copy_tokenizer(Path(job["model"]), full)
        model = load_model(str(full))
    else:
        model = load_model(job["model"])
        if adapter is not None:
            load_adapter(model.net, adapter)
    fits = answer_fits(model, rows)
    return sum(fit.loss for fit in fits) / sum(fit.tokens for fit in fits)


def run(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall seconds and peak resident GiB of a process."""
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{errors[-2000:]}")
    return time.monotonic() - began, usage.ru_maxrss / 2**20


@dataclass(frozen=True)
class Result:
    """What a system's process came to.

    Args:
        seconds, gib: of the whole process; `step_seconds` of its optimizer steps alone, 0 where they are not known.
        peak: GFLOP/s of large matrix products, in the dtype of this machine's models, just before or just after it, the greater: shared processors change by the minute.
        loss: on held-out chats.
    """

    seconds: float
    step_seconds: float
    gib: float
    peak: float
    loss: float


def compete(
    model: Path, method: str, system: str, rows: list[Rendered], held_out: list[Rendered], peers: Path
) -> Result:
    """One epoch of `rows` by a system."""
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "model": str(model), "method": method, "rank": 8, "batch": 8, "learning_rate": RATES[method], "steps": -(-len(rows) // 8),
            "warmup_steps": 1, "pad": load_tokenizer(MODEL).pad_id, "out": folder, "dtype": str(default_dtype()).removeprefix("torch."),
            "rows": [{"ids": r.ids, "labels": [i if m else -100 for i, m in zip(r.ids, r.mask, strict=True)]} for r in rows],
        }  # fmt: skip
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job))
        if system == "tuneloop":
            command = [sys.executable, __file__, "--job", str(path)]
        else:
            command = [str(peers_python(peers, PEERS)), str(HERE / "train_peers.py"), system, str(path)]
        use_threads()
        before = matmul_peak()
        seconds, gib = run(command, {**ENVIRONMENT, "HF_HUB_OFFLINE": "1"})
        peak = max(before, matmul_peak())
        metrics = Path(folder) / "metrics.jsonl"
        records = read_jsonl(metrics) if metrics.is_file() else []
        step_seconds = sum(r["tokens"] / r["tokens_per_second"] for r in records if "tokens_per_second" in r)
        return Result(seconds, step_seconds, gib, peak, val_loss(job, held_out))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "alpaca_en_demo")
    parser.add_argument("--models", default=MODEL)
    parser.add_argument("--methods", default="qv,all-linear,full")
    parser.add_argument("--systems", default="tuneloop,trainer,trl", help="also: plain (slow), trainer-autocast")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "tuneloop" / "benchmark-peers")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        train_ours(json.loads(Path(options.job).read_text()))
        return
    if not (options.data / "train.json").is_file():
        sys.exit(f"No train.json under {options.data}: give a folder in alpaca's format with --data")
    rows = chats(options.data, options.rows + 64)
    train_rows, held_out = rows[: options.rows], rows[options.rows :]
    lengths = sorted(len(r.ids) for r in train_rows)
    tokens = sum(lengths)
    print(
        f"{len(train_rows)} chats, {tokens:,} tokens (p10/50/90 {lengths[len(lengths) // 10]}/{lengths[len(lengths) // 2]}/{lengths[9 * len(lengths) // 10]}), "
        f"{sum(sum(r.mask[1:]) for r in train_rows) / tokens:.0%} learned"
    )
    print(
        f"{'model':<13} {'method':<11} {'system':<17} {'tokens/s':>8} {'seconds':>8} {'GiB':>6} {'GFLOP/s':>8} {'of peak':>8} {'in steps':>8} {'val loss':>9}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.models.split(","):
            model = folder_of(name, Path(scratch))
            for method in options.methods.split(","):
                show(name, model, method, train_rows, held_out, options)


def show(
    name: str, model: Path, method: str, rows: list[Rendered], held_out: list[Rendered], options: argparse.Namespace
) -> None:
    """A line for each system, and tuneloop's next to the best other."""
    tokens = sum(len(r.ids) for r in rows)
    config = json.loads((model / "config.json").read_text())
    gflop = needed_gflop(config, "full" if method == "full" else "lora", rows)
    results: dict[str, Result] = {}
    for system in options.systems.split(","):
        result = results[system] = compete(model, method, system, rows, held_out, options.peers)
        in_steps = f"{gflop / result.step_seconds / result.peak:.0%}" if result.step_seconds else ""
        print(
            f"{name:<13} {method:<11} {system:<17} {tokens / result.seconds:8.0f} {result.seconds:8.1f} {result.gib:6.2f} {result.peak:8.0f} "
            f"{gflop / result.seconds / result.peak:8.0%} {in_steps:>8} {result.loss:9.4f}",
            flush=True,
        )
    ours = results.pop("tuneloop", None)
    if ours and results:
        peer, best = min(results.items(), key=lambda item: item[1].seconds)
        print(
            f"{name:<13} {method:<11} tuneloop is {best.seconds / ours.seconds:.2f} times as fast as {peer}, with {ours.gib / best.gib:.0%} of its memory "
            f"and {ours.loss / best.loss - 1:+.1%} of its loss",
            flush=True,
        )


if __name__ == "__main__":
    main()
