"""Time of a training run: floating-point operations by method, over what the hardware reaches of its peak."""

from __future__ import annotations

from dataclasses import dataclass

from tuneloop.plan.job import Job
from tuneloop.plan.memory import weight_bytes

# Host time of a layer's pass, and of an adapted matrix in it, in seconds; a backward pass counts as two. Short rows are bound by it, not by the
# GPU (Qwen's table of speed by length: 1.8B and 7B models take as long for 256 tokens as for 512).
LAUNCH_SECONDS, LAUNCH_ADAPTER_SECONDS, LAUNCH_COMPILED = 0.0007, 0.00009, 0.6
COMPILED_GAIN = 1.1  # torchtune's table of optimization flags
FUSED_GAIN = 1.12  # fused norms, rotation and loss: fms-acceleration's table, 11 to 14 %
# Unpacking a quantised weight reads a half byte, writes two and reads them again, at half the bandwidth; once a pass.
UNPACK_BYTES, UNPACK_SHARE = 6, 0.5
EAGER_ATTENTION = 0.75
# Sharding beside its transfers: hooks, copies, waiting. ZeRO: a published table of eight A800.
SHARDED = {"fsdp": 0.95, "zero2": 0.7, "zero3": 0.7}
HOST_ADAM_BYTES, HOST_GB_S = 14, 100  # an update in the host's memory, and what all its processes together move
# 80 % of the published runs lie within this factor of the prediction.
SPREAD = 1.3
LOAD_GB_S = 1.0  # reading weights from disk
COMPILE_MINUTES = 1.5
SAVE_GB_S = 0.5


@dataclass(frozen=True)
class Speed:
    """How fast a job runs.

    Args:
        tokens_per_second: of all GPUs together, padding included.
        tflop_per_token: floating-point operations of a token in all passes, in 10^12.
        share: of the peak that is reached.
        bound: what sets the pace: compute, host or link.
    """

    tokens_per_second: float
    tflop_per_token: float
    share: float
    bound: str


def flop_per_token(job: Job) -> float:
    """Floating-point operations of one token in all passes.

    A matrix costs 2 a weight in the forward pass, 2 for the gradient of its input and 2 for its own (Kaplan et al. 2020, arXiv
    2001.08361, sec. 2.1); a frozen one saves the last, checkpointing adds a forward pass of the layers. Causal attention costs
    2 S Q a layer forward (half of 4 S Q), and 2.5 times that backward (Dao 2023, arXiv 2307.08691).
    """
    shape = job.shape
    matrices = 2 * shape.matrix_parameters
    head = 2 * shape.embedding
    attention = 2 * job.seq_len * shape.queries * shape.layers
    passes = 3 if job.full else 2
    again = 1 if job.grad_ckpt else 0
    adapter = 0 if job.full or job.method == "prefix" else 6 * job.trainable
    return matrices * (passes + again) + head * passes + attention * (3.5 + again) + adapter


def speed_of(job: Job) -> Speed:
    """Tokens a second of the job: the slowest of computing, the host's launches and the links."""
    gpu = job.gpu
    flops = flop_per_token(job)
    share = (gpu.full if job.full else gpu.adapter) * _gain(job)
    peak = gpu.tflops * 1e12 * (0.5 if job.dtype == "fp32" and not gpu.is_cpu else 1.0)
    compute = job.tokens * flops / (peak * share)
    compiled = job.kernels.fsdp == 2
    launches = (LAUNCH_SECONDS + LAUNCH_ADAPTER_SECONDS * len(job.adapted)) * (4 if job.grad_ckpt else 3)
    host = 0.0 if gpu.is_cpu else job.shape.layers * launches * (LAUNCH_COMPILED if compiled else 1)
    link = _link_seconds(job)
    if job.quant != "none":
        passes = 3 if job.grad_ckpt else 2
        compute += passes * job.shape.matrix_parameters * UNPACK_BYTES / (gpu.gb_s * 1e9 * UNPACK_SHARE)
    seconds = max(compute, host, link) + 0.1 * min(compute, link) + _host_update_seconds(job)
    bound = max((compute, "compute"), (host, "host"), (link, "link"))[1]
    return Speed(job.gpus * job.tokens / seconds, flops / 1e12, job.tokens * flops / seconds / peak, bound)


def _gain(job: Job) -> float:
    gain = {"eager": 1.0, "compiled": COMPILED_GAIN, "chunked": COMPILED_GAIN}.get(job.loss_kernel, FUSED_GAIN)
    gain *= SHARDED.get(job.sharding, 1.0)
    if job.attention == "eager":
        gain *= EAGER_ATTENTION
    return 1.0 if job.gpu.is_cpu else gain


def _link_seconds(job: Job) -> float:
    """Seconds a micro-batch moves data between GPUs, and to the host where weights live there."""
    share = (job.gpus - 1) / job.gpus
    weights = weight_bytes(job)
    trained = job.trainable * 2
    moved = {"none": 0.0, "ddp": 2 * trained, "zero2": 2 * trained, "fsdp": 2 * weights + trained,
             "zero3": 2 * weights + trained}[job.sharding] * share  # fmt: skip
    seconds = moved / (job.gpu.link_gb_s * 1e9 * 0.7)
    if job.offload and job.sharding in ("fsdp", "zero3"):
        seconds += 2 * weights / job.gpus / (job.gpu.host_gb_s * 1e9)
    return seconds


def _host_update_seconds(job: Job) -> float:
    """Seconds a micro-batch for gradients to the host, the update there, and weights back."""
    if not job.offload:
        return 0.0
    moved = 4 * job.trainable / job.gpus / (job.gpu.host_gb_s * 1e9)
    return (moved + job.trainable * HOST_ADAM_BYTES / (HOST_GB_S * 1e9)) / job.grad_accum


def overhead_hours(
    job: Job, evaluations: int = 0, evaluation_tokens: int = 0, checkpoints: int = 1
) -> dict[str, float]:
    """Hours besides training: loading, compiling, evaluations (a forward pass each), checkpoints."""
    gigabytes = weight_bytes(job) / 1e9
    written = (gigabytes * 3 if job.full else job.trainable * 12 / 1e9) * checkpoints
    speed = speed_of(job).tokens_per_second
    forward = 2 * job.shape.parameters / flop_per_token(job)
    return {
        "load": (gigabytes / LOAD_GB_S + 20) / 3600,
        "compile": COMPILE_MINUTES / 60 if job.kernels.fsdp == 2 else 0.0,
        "evaluate": evaluations * evaluation_tokens * forward / speed / 3600,
        "save": written / SAVE_GB_S / 3600,
    }
