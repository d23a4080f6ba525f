"""Time of a training run: its matrix products at the rate they reach, all else at the memory's, or the host's or the
links' pace if that is slower."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuneloop.core.machine import GIB
from tuneloop.planning.job import LossKernel, TrainingSetup
from tuneloop.planning.memory import STATE_BYTES, memory_of, weight_bytes

# A step's time is that of its matrix products, and of the bytes that everything between them moves; constants from the
# fitting half of the published runs. Products of narrow matrices reach less: half of it at this width, of what is
# reached far above.
HALF_WIDTH = 470
# of a product's rate in FlashAttention (arXiv 2307.08691, fig. 5); longer with heads under 128 wide
ATTENTION_SHARE, SMALL_HEADS = 0.75, 1.35
BANDWIDTH_SHARE = 0.8  # of the memory's nominal bandwidth
# Norms, rotation, sums and activations, against the count of `_traffic`: apart, or fused by Triton or torch.compile.
TRAFFIC: dict[LossKernel, float] = {
    "eager": 1.4, "triton": 0.39, "fused": 0.39, "compiled": 0.24, "chunked": 0.24, "tuneloop": 1.4,
}  # fmt: skip
LOGIT_BYTES: dict[LossKernel, float] = {  # moved for each logit of a token
    "eager": 49, "triton": 27, "fused": 13, "compiled": 22, "chunked": 16, "tuneloop": 16,
}  # fmt: skip
HEAD_FP32_BYTES = 80  # more for each width of a token and layer when the residual stream is fp32
ADAPTER_IN_BYTES, ADAPTER_OUT_BYTES = 8, 6  # dropout, casts and the sum around an adapter
SCORE_BYTES = 30  # for each score of attention that is not fused
UNPACK_BYTES = 5  # for each quantised weight and pass
# For each trained weight and update: where the optimizer is fused, and how often an unfused AdamW reads or writes a
# tensor of its states' width (PEFT's full run).
UPDATE_BYTES, UPDATE_ACCESSES = 22, 24
# Host time of a layer's pass, of an adapted matrix in it and of its gathering, in seconds; a backward pass counts as
# two. Short rows are bound by it, not by the GPU (Qwen's table of speed by length: 1.8B and 7B models take as long for
# 256 tokens as for 512).
LAUNCH_SECONDS, LAUNCH_ADAPTER_SECONDS, LAUNCH_GATHER_SECONDS, LAUNCH_COMPILED = 0.0008, 0.00009, 0.0003, 0.6
# Sharding apart from its transfers: hooks, copies, waiting. ZeRO: a published table of eight A800.
SHARDED = {"fsdp": 0.95, "zero2": 0.73, "zero3": 0.73}
# An update in the host's memory, and what its processes together move: torchtune's 70B on eight GPUs; ZeRO's table.
HOST_ADAM_BYTES, HOST_GB_S, HOST_ZERO_GB_S = 14, 100, 6
# Over 80 % of the published runs lie within this factor of the prediction (half held out: 91 % within 1.2).
SPREAD = 1.25
# Transfers hide behind computation but for this share of the shorter of both; through the host the GPU itself copies.
EXPOSED, EXPOSED_BY_HOST = 0.1, 0.3
LOAD_GB_S = 1.0  # reading weights from disk
COMPILE_MINUTES = 1.5
SAVE_GB_S, GPUS_A_MACHINE = 0.5, 8


@dataclass(frozen=True)
class Speed:
    """How fast a job runs."""

    tokens_per_second: float  # of all GPUs together, padding included
    tflop_per_token: float  # floating-point operations of a token in all passes, in 10^12
    share: float  # of the peak that is reached
    bound: str  # what sets the pace: compute, host or link


def flop_per_token(job: TrainingSetup) -> float:
    """Floating-point operations of one token in all passes.

    A matrix costs 2 a weight in the forward pass, 2 for the gradient of its input and 2 for its own (Kaplan et al.
    2020, arXiv 2001.08361, sec. 2.1); a frozen one saves the last, checkpointing adds a forward pass of the layers.
    Causal attention costs 2 S Q a layer forward (half of 4 S Q), and 2.5 times that backward (Dao 2023, arXiv
    2307.08691).
    """
    shape = job.shape
    matrices = 2 * shape.computed_parameters
    head = 2 * shape.embedding
    passes = 3 if job.full else 2
    adapter = job.footprint.flops * job.trainable
    return matrices * (passes + job.again) + head * passes + attention_flop_per_token(job) + adapter


def attention_flop_per_token(job: TrainingSetup) -> float:
    """Operations of one token in attention, in all passes."""
    return 2 * job.seq_len * job.shape.queries * job.shape.layers * (3.5 + job.again)


def speed_of(job: TrainingSetup) -> Speed:
    """Tokens a second of the job: the slowest of computing, the host's launches and the links."""
    gpu = job.gpu
    flops = flop_per_token(job)
    compute = job.tokens * flops / (gpu.tflops * 1e12 * gpu.matmul) if gpu.is_cpu else _compute_seconds(job)
    launch = LAUNCH_SECONDS + LAUNCH_ADAPTER_SECONDS * len(job.adapted)
    launch += LAUNCH_GATHER_SECONDS * (job.sharding in ("fsdp", "zero3"))
    host = job.shape.layers * launch * (3 + job.again) * (LAUNCH_COMPILED if job.kernels.fsdp == 2 else 1)
    host = 0.0 if gpu.is_cpu else host
    link = _link_seconds(job)
    update = 0.0
    if job.offload:  # gradients to the host, the update there, and weights back
        moved = 4 * job.trainable / job.gpus / (gpu.host_gb_s * 1e9)
        rate = HOST_ZERO_GB_S if job.sharding.startswith("zero") else HOST_GB_S
        update = (moved + job.trainable * HOST_ADAM_BYTES / (rate * 1e9)) / job.grad_accum
    exposed = EXPOSED if gpu.p2p else EXPOSED_BY_HOST
    seconds = max(compute, host, link) + exposed * min(compute, link) + update
    bound = max((compute, "compute"), (host, "host"), (link, "link"))[1]
    share = job.tokens * flops / seconds / (gpu.tflops * 1e12)
    return Speed(job.gpus * job.tokens / seconds, flops / 1e12, share, bound)


def _compute_seconds(job: TrainingSetup) -> float:
    """Seconds of a micro-batch on the GPU: products at the rate they reach, all else at the memory's."""
    shape, gpu = job.shape, job.gpu
    rate = gpu.tflops * 1e12 * gpu.matmul * (0.5 if job.dtype == "fp32" else 1.0)
    width = (1 + HALF_WIDTH / 4096) * shape.hidden / (shape.hidden + HALF_WIDTH)
    attention = attention_flop_per_token(job)
    products = (flop_per_token(job) - attention) / (rate * width)
    slow = SMALL_HEADS if shape.head_size < 128 else 1.0
    products += attention * (2 if job.attention == "eager" else 1) * slow / (rate * ATTENTION_SHARE)
    moved = job.tokens * _traffic(job)
    if job.quant != "none":
        moved += (2 + job.again) * shape.matrix_parameters * UNPACK_BYTES
    divided = 1 if job.sharding in ("none", "ddp") else job.gpus
    if not job.offload:
        update = float(UPDATE_BYTES)
        if job.kernels.foreach and job.optimizer in ("adamw", "adamw-bf16"):
            update = UPDATE_ACCESSES * (2 if job.optimizer == "adamw-bf16" else 4)
        moved += job.trainable * update / divided / job.grad_accum
    # A product takes as long as its operations or as reading its weights, which is what bounds few tokens.
    reading = (2 + job.again) * weight_bytes(job) / (gpu.gb_s * 1e9 * BANDWIDTH_SHARE)
    seconds = max(job.tokens * products, reading) + moved / (gpu.gb_s * 1e9 * BANDWIDTH_SHARE)
    seconds /= SHARDED.get(job.sharding, 1.0)
    if job.optimizer.startswith("paged"):  # states come and go as far as they do not fit together with all else
        states = job.trainable * STATE_BYTES[job.optimizer] / divided
        over = memory_of(job).required * GIB + states - gpu.gib * GIB
        seconds += 2 * max(over, 0.0) / (gpu.host_gb_s * 1e9) / job.grad_accum
    return seconds


def _traffic(job: TrainingSetup) -> float:
    """Bytes that a token moves in the GPU's memory between the matrix products, in all passes."""
    shape = job.shape
    passes = 2.5 + job.again
    layer: float = 72 * shape.hidden + 20 * (shape.queries + shape.keys) + 12 * shape.activated
    layer += HEAD_FP32_BYTES * shape.hidden * job.head_fp32
    layer *= TRAFFIC[job.loss_kernel] * passes
    if job.attention == "eager":
        layer += SCORE_BYTES * shape.heads * job.seq_len * passes
    ends = shape.adapted(job.adapted).values()
    layer += sum(ADAPTER_IN_BYTES * i + ADAPTER_OUT_BYTES * o for i, o in ends) * (passes - 0.5)
    logits = LOGIT_BYTES[job.loss_kernel] * (1.5 if job.head_fp32 else 1.0) * shape.vocabulary
    return (layer * shape.layers + logits) * (2 if job.dtype == "fp32" else 1)


def _link_seconds(job: TrainingSetup) -> float:
    share = (job.gpus - 1) / job.gpus
    weights = weight_bytes(job)
    trained = job.trainable * 2
    moved = {"none": 0.0, "ddp": 2 * trained, "zero2": 2 * trained}.get(job.sharding, 2 * weights + trained) * share
    seconds = moved / (job.gpu.link_gb_s * 1e9 * 0.7)
    if job.offload and job.sharding in ("fsdp", "zero3"):
        seconds += 2 * weights / job.gpus / (job.gpu.host_gb_s * 1e9)
    return seconds


def overhead_hours(job: TrainingSetup, evaluations: int = 0, evaluation_tokens: int = 0) -> dict[str, float]:
    """Hours apart from training: loading, compiling, evaluations (a forward pass each), a checkpoint (weights or
    adapter with the optimizer's moments), the result alone. Where weights are divided each machine writes its part."""
    gigabytes = weight_bytes(job) / 1e9
    result = gigabytes if job.full else job.trainable * 4 / 1e9
    writers = math.ceil(job.gpus / GPUS_A_MACHINE) if job.sharding in ("fsdp", "zero3") else 1
    speed = speed_of(job).tokens_per_second
    forward = 2 * job.shape.active_parameters / flop_per_token(job)
    return {
        "load": (gigabytes / LOAD_GB_S + 20) / 3600,
        "compile": COMPILE_MINUTES / 60 if job.kernels.fsdp == 2 else 0.0,
        "evaluate": evaluations * evaluation_tokens * forward / speed / 3600,
        "save": 3 * result / SAVE_GB_S / writers / 3600,
        "keep": result / SAVE_GB_S / writers / 3600,
    }
