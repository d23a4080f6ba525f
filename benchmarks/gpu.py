"""LoRA, QLoRA and full tuning of Llama 3's sizes on one GPU, next to what the planner and a roofline of the launches expect, and next to other libraries.

    python benchmarks/gpu.py                                     # 1B and 8B, rows of 512, 2,048 and 8,192 tokens
    python benchmarks/gpu.py --sizes 8b --methods lora --lengths 2048 --engines tuneloop peft liger
    python benchmarks/gpu.py --engines tuneloop trl torchtune --peers ~/peers    # each library in an environment of its own, made there
    python benchmarks/gpu.py --parts answers                     # tokens a second that are written, labels that are scored; beside vLLM
    python benchmarks/gpu.py --expected h100-sxm                 # without a GPU: what is expected of a card, nothing is run

Weights are random and made on the device, so nothing is downloaded. Each case is a process of its own with a limit of time, and a line of the table:
tokens a second; MFU (operations that the gradient needs, over the card's listed peak); the peak of tensors in GiB and the planner's; the planner's
tokens a second; MFU by the roofline, and launches of a step; the loss of the first batch, which all engines must share within rounding.

`peft` is Transformers with PEFT (full tuning: Transformers alone) and torch's fused AdamW; `liger` the same with Liger's kernels; `trl`, `torchtune` and
`unsloth` see `gpu_peers.py`. An engine that is not installed has a line that says so. On a processor `--sizes tiny` runs the same code, as its test does.

Of answers: greedy, 128 tokens behind 128, one row and 64 together, beside vLLM with random
weights; and prompts a second whose eight labels are scored. `roofline` is the reading of all weights for each token at 80 % of the memory's bandwidth.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tuneloop.core import device
from tuneloop.inference.labels import label_trie
from tuneloop.inference.local.engine import ActiveRow, DecodingBatch
from tuneloop.inference.local.scoring import choose
from tuneloop.inference.request import Request
from tuneloop.models.chat.template import Rendered
from tuneloop.models.load import SIZES, random_model
from tuneloop.models.methods.shipped import method_named
from tuneloop.models.nn.shape import ModelShape
from tuneloop.planning.at_hand import RunWork, loop_job, sizes_on_gpu
from tuneloop.planning.catalogue.gpus import Gpu, card_in_use, find_gpu, this_cpu
from tuneloop.planning.job import TrainingSetup
from tuneloop.planning.memory import memory_of
from tuneloop.planning.speed import speed_of
from tuneloop.records.plan import MeasuredMachine
from tuneloop.training.batches import Step
from tuneloop.training.checkpoint import State
from tuneloop.training.config import TrainConfig
from tuneloop.training.flops import needed_gflop
from tuneloop.training.methods import attach, recompute_layers
from tuneloop.training.optimizers import make_optimizer
from tuneloop.training.run import TrainingRun
from tuneloop.training.step import batch_loss, optimizer_step

PACKAGES: dict[str, tuple[str, ...]] = {
    "tuneloop": (),
    "peft": ("transformers", "peft"),
    "liger": ("transformers", "peft", "liger_kernel"),
    "trl": ("transformers", "peft", "trl"),
    "torchtune": ("torchtune",),
    "unsloth": ("unsloth",),
    "vllm": ("vllm",),
}
# What a library's own environment needs besides: torchtune 0.6 does not import with later ones.
PINS = {"torchtune": ("torch==2.8.*", "torchao==0.12.0")}
ENGINES = ("tuneloop", "peft", "liger", "trl", "torchtune", "unsloth")
WRITERS = ("tuneloop", "vllm")  # who answers
STEP_TOKENS = 16384  # of an optimizer step
LIMIT = 480  # seconds of a case
RANK = 16
TEMPLATE: Any = SimpleNamespace(pad_id=0, end_ids=(0,))
# Of a roofline: shares of the listed peak that wide products and flash attention reach, of the memory's bandwidth, and seconds of a launch on the host.
PRODUCTS, ATTENTION, BANDWIDTH, LAUNCH = 0.68, 0.40, 0.8, 7e-6
NARROW = 128  # a product with a side this narrow is bound by memory


@dataclass(frozen=True)
class Case:
    """A line of the table: the model's size, method, tokens of a row, who trains it, and for how many seconds it is measured."""

    size: str
    method: str
    length: int
    engine: str = "tuneloop"
    seconds: float = 5.0

    @property
    def config(self) -> TrainConfig:
        optimizer = "adamw-8bit" if self.method == "full" and self.engine == "tuneloop" else "adamw"
        return TrainConfig.model_validate(
            {"method": self.method, "rank": RANK, "optimizer": optimizer, "lora_plus": 1.0}
        )

    @property
    def rows(self) -> int:
        """Rows of an optimizer step."""
        return max(STEP_TOKENS // self.length, 1)


def job_of(case: Case, card: Gpu, sizes: MeasuredMachine, dtype: torch.dtype) -> TrainingSetup:
    """A step as the planner sees it."""
    return loop_job(
        _shape(case),
        _work(case, sizes.micro_batch_tokens),
        gpu=card,
        kept_layers=sizes.kept_layers,
        **_settings(case, dtype, sizes.recompute),
    )


def _shape(case: Case) -> ModelShape:
    return ModelShape.from_config(SIZES[case.size])


def _settings(case: Case, dtype: torch.dtype, recompute: bool) -> dict[str, Any]:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return {"model": case.size, "method": case.method, "rank": RANK, "targets": targets, "optimizer": case.config.optimizer,
            "grad_ckpt": recompute, "bytes_a_weight": dtype.itemsize}  # fmt: skip


def _work(case: Case, tokens: int) -> RunWork:
    at_once = min(max(tokens // case.length, 1), case.rows)
    every = case.rows * case.length
    return RunWork(1, every, every, 0, ((at_once, case.length, 0),), -(-case.rows // at_once))


def sizes_for(case: Case, card: Gpu, free_gib: float, dtype: torch.dtype) -> MeasuredMachine:
    """Rows at once, as a run chooses them by memory."""
    if card.is_cpu:
        return MeasuredMachine(2048, False)
    settings = _settings(case, dtype, False)
    return sizes_on_gpu(
        _shape(case), lambda tokens: _work(case, tokens), card, free_gib, may_recompute=True, **settings
    )


def rows_of(case: Case) -> list[Rendered]:
    """Random rows, all of their tokens supervised."""
    generator = torch.Generator().manual_seed(1)
    most = SIZES[case.size]["vocab_size"]
    ids = torch.randint(0, most, (case.rows, case.length), generator=generator).tolist()
    return [Rendered(row, [0, *[1] * (case.length - 1)]) for row in ids]


# --- what is expected


# What launches nothing.
FREE = frozenset(
    [
        "view",
        "_unsafe_view",
        "t",
        "transpose",
        "expand",
        "slice",
        "select",
        "split",
        "unbind",
        "permute",
        "unsqueeze",
        "squeeze",
        "detach",
        "alias",
        "as_strided",
        "split_with_sizes",
        "_reshape_alias",
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "lift_fresh",
        "narrow",
    ]
)


class Launches(TorchDispatchMode):
    """Counts operations, their floating-point operations and the bytes that they move, on tensors without values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.flop: Counter[str] = Counter()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        if name in FREE:
            return out
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        moved = sum(t.numel() * t.element_size() for t in tensors)
        self.count += 1
        if name in ("mm", "addmm", "addmm_"):
            a, b = args[-2:]
            sides = (a.shape[0], a.shape[1], b.shape[1])
            narrow = min(sides) <= NARROW
            self.flop["narrow" if narrow else "wide"] += 2 * sides[0] * sides[1] * sides[2]
            self.moved += moved if narrow else 0
        else:
            self.moved += moved
        return out

    def seconds(self, card: Gpu) -> float:
        """Of a step: products and attention at the rates they reach, all else at the memory's pace; or the host's launches, which are longer for small work."""
        computing = self.flop["wide"] / (PRODUCTS * card.tflops * 1e12) + self.flop["attention"] / (
            ATTENTION * card.tflops * 1e12
        )
        computing += self.moved / (BANDWIDTH * card.gb_s * 1e9)
        return max(computing, LAUNCH * self.count)


@contextlib.contextmanager
def _counted_kernels(launches: Launches) -> Iterator[None]:
    """SDPA and RMSNorm as one launch forward and one backward each, as torch has them on CUDA; attention keeps no scores."""

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Any, k: Any, v: Any) -> Any:
            ctx.save_for_backward(q, k, v)
            ctx.flop = 2 * q.numel() * k.shape[2]  # half of all scores, two products
            launches.flop["attention"] += ctx.flop
            launches.count += 1
            return torch.empty_like(q)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            launches.flop["attention"] += int(2.5 * ctx.flop)
            launches.count += 1
            return tuple(torch.empty_like(x) for x in ctx.saved_tensors)

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any) -> Any:
            ctx.save_for_backward(x, weight)
            ctx.bytes = x.numel() * x.element_size()
            launches.moved += 2 * ctx.bytes  # x read, the result written
            launches.count += 1
            return torch.empty_like(x)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            x, weight = ctx.saved_tensors
            launches.moved += 3 * ctx.bytes  # x and the gradient read, its gradient written
            launches.count += 1
            return torch.empty_like(x), torch.empty_like(weight) if ctx.needs_input_grad[1] else None

    before = F.scaled_dot_product_attention, F.rms_norm
    F.scaled_dot_product_attention = lambda q, k, v, **_: Attention.apply(q, k, v)  # type: ignore[assignment]
    F.rms_norm = lambda x, shape, weight, eps: Norm.apply(x, weight)  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.rms_norm = before  # type: ignore[assignment]


def launches_of(case: Case, at_once: int, recompute: bool, kept: int = 0) -> Launches:
    """What a micro-batch of `at_once` rows launches on a GPU, forward and backward; four bits count as the 16 that are unpacked."""
    base = replace(case, method="lora") if case.method == "qlora" else case
    model = random_model(SIZES[case.size], TEMPLATE, dtype=torch.bfloat16, device="meta")
    attach(model, base.config, 0)
    recompute_layers(model.net, recompute, kept)
    found, rows = Launches(), rows_of(case)[:at_once]
    with found, _counted_kernels(found):
        batch_loss(model, rows, 1.0, base.config).backward()  # type: ignore[no-untyped-call]
    return found


def expected(case: Case, card: Gpu, free_gib: float, dtype: torch.dtype) -> dict[str, Any]:
    """The planner's figures of a step on a card, and the roofline of its launches."""
    sizes = sizes_for(case, card, free_gib, dtype)
    job = job_of(case, card, sizes, dtype)
    memory = memory_of(job)
    found: dict[str, Any] = {**asdict(sizes), "planned_gib": round(memory.peak, 2), "fits": memory.required - memory.context <= free_gib,
                             "planned_tokens_per_second": round(speed_of(job).tokens_per_second)}  # fmt: skip
    if not card.is_cpu:
        launches = launches_of(case, job.micro_batch, sizes.recompute, sizes.kept_layers)
        needed = needed_gflop(SIZES[case.size], case.method, rows_of(case)[: job.micro_batch]) * 1e9
        found |= {
            "launches": launches.count * job.grad_accum,
            "roofline_mfu": round(needed / launches.seconds(card) / card.tflops / 1e12, 3),
        }
    return found


# --- what is measured


@dataclass(frozen=True)
class Writing:
    """A line of the table of answers: the model's size, rows together, and who answers."""

    size: str
    rows: int
    engine: str = "tuneloop"


PROMPT, NEW, LABELS = 128, 128, 8  # tokens of prompts and answers; labels, of three tokens each


def written(case: Writing) -> dict[str, Any]:
    """A line of the table of answers, or why there is none."""
    found: dict[str, Any] = asdict(case)
    missing = [name for name in PACKAGES[case.engine] if importlib.util.find_spec(name) is None]
    if missing:
        return {**found, "error": f"not installed: {', '.join(missing)}"}
    generator = torch.Generator().manual_seed(1)
    shape = (case.rows, PROMPT + LABELS * 3)
    ids = torch.randint(2, SIZES[case.size]["vocab_size"], shape, generator=generator).tolist()
    prompts, labels = (
        [row[:PROMPT] for row in ids],
        [ids[0][PROMPT + 3 * i : PROMPT + 3 * i + 3] for i in range(LABELS)],
    )
    names, dtype = device.names(), device.default_dtype()
    if names:
        card = card_in_use(names[0], device.capacity())
        read = _shape(Case(case.size, "lora", PROMPT)).parameters * dtype.itemsize
        found |= {"card": card.name, "roofline": round(case.rows * BANDWIDTH * card.gb_s * 1e9 / read)}
    try:
        if case.engine == "vllm":
            import gpu_peers

            labelled = [prompt + label for prompt in prompts for label in labels]
            rates = gpu_peers.vllm_rates(SIZES[case.size], prompts, NEW, labelled, str(dtype).removeprefix("torch."))
            rates["scored_rows_per_second"] = round(rates["scored_rows_per_second"] / LABELS, 1)
        else:
            rates = _own_rates(case, prompts, labels, dtype)
    except (RuntimeError, ImportError) as error:
        return {**found, "error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}"}
    return {**found, **rates}


def _own_rates(
    case: Writing, prompts: list[list[int]], labels: list[list[int]], dtype: torch.dtype
) -> dict[str, float]:
    """Tokens a second of our engine behind the prompts, and prompts a second whose labels are scored; the second time counts."""
    template: Any = SimpleNamespace(pad_id=0, end_ids=(), decode=lambda ids: "")
    model = random_model(SIZES[case.size], template, dtype=dtype)
    trie = label_trie([str(i) for i in range(len(labels))], labels)

    def written_in() -> float:
        batch = DecodingBatch(model)
        batch.join([ActiveRow(Request(ids=ids, max_new_tokens=NEW)) for ids in prompts])
        device.wait()
        began = time.perf_counter()
        while batch.active:
            batch.step(device.backend().tokens_unread)
        device.wait()
        return time.perf_counter() - began

    def scored_in() -> float:
        device.wait()
        began = time.perf_counter()
        choose(model, prompts, trie, prune=False)
        device.wait()
        return time.perf_counter() - began

    writing, scoring = (min(work(), work()) for work in (written_in, scored_in))
    return {
        "decode_tokens_per_second": round(len(prompts) * (NEW - 1) / writing, 1),
        "scored_rows_per_second": round(len(prompts) / scoring, 1),
    }


def ours(case: Case, sizes: MeasuredMachine, dtype: torch.dtype) -> tuple[Callable[[], float], list[Rendered]]:
    """A step of tuneloop's loop."""
    config, rows = case.config, rows_of(case)
    model = random_model(SIZES[case.size], TEMPLATE, dtype=dtype, prepare=method_named(case.method).prepare)
    trainable = attach(model, config, 0, rows)
    recompute_layers(model.net, sizes.recompute, sizes.kept_layers)
    model.net.train()
    run = TrainingRun(
        model, config, trainable, make_optimizer(trainable, config), State("benchmark"), Path("benchmark")
    )
    at_once = _work(case, sizes.micro_batch_tokens).micro_batches[0][0]
    step = Step(tuple(tuple(range(i, min(i + at_once, len(rows)))) for i in range(0, len(rows), at_once)), 0.0)
    return lambda: optimizer_step(run, step, rows, 1e-4)[0], rows


def transformers_net(case: Case, dtype: torch.dtype) -> Any:
    """Transformers' model with the weights of `ours`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    own = random_model(SIZES[case.size], TEMPLATE, dtype=dtype)
    with torch.device("meta"):
        net: Any = LlamaForCausalLM(LlamaConfig(**SIZES[case.size], attn_implementation="sdpa")).to(dtype)
    net = net.to_empty(device=own.device)
    with own.device:
        net.model.rotary_emb = type(net.model.rotary_emb)(net.config)  # its buffers are in no state
    net.load_state_dict(own.net.state_dict())
    return net


def theirs(case: Case, sizes: MeasuredMachine, dtype: torch.dtype) -> tuple[Callable[[], float], list[Rendered]]:
    """The same step by another library, on the same weights."""
    import gpu_peers

    if case.method == "qlora":
        raise NotImplementedError("four bits of random weights are not made by Transformers")
    rows = rows_of(case)
    at_once = _work(case, sizes.micro_batch_tokens).micro_batches[0][0]
    ids = [row.ids for row in rows]
    batches = [torch.tensor(ids[i : i + at_once]) for i in range(0, len(rows), at_once)]
    if case.engine == "torchtune":
        state = random_model(SIZES[case.size], TEMPLATE, dtype=dtype).net.state_dict()
        step = gpu_peers.torchtune_step(SIZES[case.size], state, batches, len(rows), RANK, case.method, sizes.recompute)
        return step, rows
    if case.engine == "unsloth":
        import unsloth  # noqa: F401  # before Transformers, whose classes it changes

        net = transformers_net(case, dtype)
        step = gpu_peers.unsloth_step(net, batches, len(rows), RANK, case.method, sizes.recompute, case.length)
        return step, rows
    if case.engine == "trl":
        net = transformers_net(case, dtype)
        return gpu_peers.trl_step(net, ids, at_once, RANK, case.method, sizes.recompute), rows
    return _peft_step(case, sizes, dtype, batches), rows


def _peft_step(case: Case, sizes: MeasuredMachine, dtype: torch.dtype, batches: list[Any]) -> Callable[[], float]:
    """Transformers and PEFT, with Liger's kernels where the engine is that."""
    from gpu_peers import steps_of
    from peft import LoraConfig, get_peft_model

    if case.engine == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    net = transformers_net(case, dtype)
    if case.method == "lora":
        net = get_peft_model(net, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
    if sizes.recompute:
        net.enable_input_require_grads()
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    net.train()
    return steps_of(net, batches, case.rows, lambda net, ids: net(input_ids=ids, labels=ids).loss)


def measured(case: Case) -> dict[str, Any]:
    """A case's line: figures, or why there are none."""
    found: dict[str, Any] = asdict(case)
    missing = [name for name in PACKAGES[case.engine] if importlib.util.find_spec(name) is None]
    if missing:
        return {**found, "error": f"not installed: {', '.join(missing)}"}
    names, dtype = device.names(), device.default_dtype()
    card = card_in_use(names[0], device.capacity()) if names else this_cpu()
    said = expected(case, card, device.available(), dtype)
    found |= {"card": card.name, **said}
    try:
        step, rows = (ours if case.engine == "tuneloop" else theirs)(
            case, MeasuredMachine(said["micro_batch_tokens"], said["recompute"]), dtype
        )
        first = step()
        step()
        device.release_memory()
        device.reset_peak_memory()
        device.wait()
        began, steps = time.perf_counter(), 0
        while not steps or time.perf_counter() - began < case.seconds:
            step()
            steps += 1
        device.wait()
        seconds = (time.perf_counter() - began) / steps
    except (RuntimeError, ImportError) as error:  # also what is not implemented
        reason = (
            "out of memory"
            if device.is_out_of_memory(error)
            else f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}"
        )
        return {**found, "error": reason}
    gflop = needed_gflop(SIZES[case.size], case.method, rows)
    return {
        **found, "tokens_per_second": round(case.rows * case.length / seconds), "peak_gib": round(device.peak_memory(), 2),
        "mfu": round(gflop / seconds / card.tflops / 1e3, 3), "loss": round(first, 4),
    }  # fmt: skip


COLUMNS = (
    ("size", "size"), ("method", "method"), ("length", "tokens"), ("engine", "engine"), ("tokens_per_second", "tokens/s"), ("mfu", "MFU"),
    ("peak_gib", "GiB"), ("planned_gib", "plan GiB"), ("planned_tokens_per_second", "plan tok/s"), ("roofline_mfu", "roofline MFU"),
    ("launches", "launches"), ("micro_batch_tokens", "at once"), ("recompute", "again"), ("loss", "loss"),
)  # fmt: skip


ANSWER_COLUMNS = (
    ("size", "size"), ("rows", "rows"), ("engine", "engine"), ("decode_tokens_per_second", "tokens/s"), ("roofline", "roofline tok/s"),
    ("scored_rows_per_second", "prompts scored/s"),
)  # fmt: skip


def line(found: dict[str, Any], columns: tuple[tuple[str, str], ...] = COLUMNS) -> str:
    """A line of the Markdown table."""
    cells = [str(found.get(key, "")) for key, _ in columns]
    return "| " + " | ".join(cells) + (f" {found['error']}" if "error" in found else "") + " |"


def run_apart(case: Case | Writing, peers: Path | None = None) -> dict[str, Any]:
    """A case in a process of its own: none leaves memory to the next, and a crash ends one line.

    Args:
        peers: folder of the environments of other libraries; None: all are in this one.
    """
    packages = [{"liger_kernel": "liger-kernel"}.get(name, name) for name in PACKAGES[case.engine]]
    python: Path | str = sys.executable
    try:
        if peers is not None and packages:
            from peers import peers_python

            python = peers_python(
                peers / case.engine, [*packages, *PINS.get(case.engine, ()), str(Path(__file__).parents[1])]
            )
        command = [str(python), __file__, "--case", json.dumps(asdict(case))]
        done = subprocess.run(command, text=True, capture_output=True, timeout=LIMIT)
    except subprocess.CalledProcessError:
        return {**asdict(case), "error": f"not to be installed: {', '.join(packages)}"}
    except subprocess.TimeoutExpired:
        return {**asdict(case), "error": f"longer than {LIMIT} seconds"}
    if done.returncode:
        return {**asdict(case), "error": (done.stderr.strip().splitlines() or ["ended without a word"])[-1][:100]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: list[str]) -> list[dict[str, Any]]:
    """Print the table; returns its lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["1b", "8b"], choices=list(SIZES))
    parser.add_argument("--methods", nargs="+", default=["lora", "qlora", "full"], choices=["lora", "qlora", "full"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048, 8192])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--parts", nargs="+", default=["training", "answers"], choices=["training", "answers"])
    parser.add_argument("--seconds", type=float, default=5.0, help="of measured steps of a case")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="an environment for each other library, made here")
    parser.add_argument("--expected", metavar="CARD", help="only what is expected of this card")
    parser.add_argument("--json", metavar="FILE", help="write the lines there too")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.case:
        case = json.loads(given.case)
        found = measured(Case(**case)) if "method" in case else written(Writing(**case))
        print(json.dumps(found))
        return [found]
    lines = _training(given) if "training" in given.parts else []
    if "answers" in given.parts and not given.expected:
        print("| " + " | ".join(title for _, title in ANSWER_COLUMNS) + " |\n" + "|---" * len(ANSWER_COLUMNS) + "|")
        for size in given.sizes:
            for rows in (1, 64):
                for engine in WRITERS:
                    lines.append(run_apart(Writing(size, rows, engine), given.peers))
                    print(line(lines[-1], ANSWER_COLUMNS), flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(lines, indent=1))
    return lines


def _training(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The table of training steps."""
    print("| " + " | ".join(title for _, title in COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    lines = []
    for size in given.sizes:
        for method in given.methods:
            for length in given.lengths:
                for engine in ["tuneloop"] if given.expected else given.engines:
                    case = Case(size, method, length, engine, given.seconds)
                    if given.expected:
                        card = find_gpu(given.expected)
                        lines.append({**asdict(case), **expected(case, card, card.gib - 0.6, torch.bfloat16)})
                    else:
                        lines.append(run_apart(case, given.peers))
                    print(line(lines[-1]), flush=True)
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
