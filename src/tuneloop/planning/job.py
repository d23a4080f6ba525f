"""A training job as the planner sees it: every setting that costs memory or time, checked for what can't be."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.models.methods import USUAL, Footprint, method_named, methods
from tuneloop.models.nn import ATTENTION, ModelShape, target_modules
from tuneloop.planning.catalogue.gpus import Gpu

Sharding = Literal["none", "ddp", "fsdp", "zero2", "zero3"]
Attention = Literal["flash", "sdpa", "eager"]
LossKernel = Literal["eager", "compiled", "triton", "chunked", "fused", "tuneloop"]
Dtype = Literal["bf16", "fp16", "fp32", "mixed", "autocast"]
Optimizer = Literal["adamw", "adamw-bf16", "adamw-8bit", "paged-adamw-8bit", "sgd"]
Quant = Literal["none", "int8", "nf4", "nf4-dq"]


@dataclass(frozen=True)
class Kernels:
    """What a choice of loss kernel says about the code around it, measured on the fitting half of published runs."""

    logits: float  # copies of the bf16 logits alive at the loss's peak (fp32 counts two)
    fp32_norms: bool  # norms keep an fp32 copy of their input
    silu: bool  # the activation is kept apart from the gate and the up projection
    adapter_copies: bool  # each adapted matrix keeps a copy of its input (dropout, or a cast to fp32 adapters)
    foreach: bool  # the optimizer works on lists with temporaries as large as the trained weights
    fsdp: int  # generation of PyTorch's FSDP; 1 keeps a second tensor of each layer's width where weights are frozen
    logit_blocks: float = 1.0  # blocks that the allocator keeps for them, over those alive: copies differ in size
    tuneloop: bool = (
        False  # tuneloop's loop: nothing is kept twice, logits exist for some supervised positions at a time
    )


# eager: Transformers' own loss; 7 copies before 4.45, which shifts a copy, 5 to 6 since: on the safe side. triton:
# cross-entropy kernels in place after the logits' upcast, with fused norms. fused: projection and loss in one
# (Liger-Kernel, arXiv 2410.10989): no logits. compiled, chunked: torch.compile as in torchtune; a chunk's logits are
# freed as its gradient is done.
KERNELS: dict[LossKernel, Kernels] = {
    "eager": Kernels(6.5, True, True, True, True, 1, 1.28),
    "triton": Kernels(4.0, False, True, True, True, 1, 1.8),
    "fused": Kernels(0.0, False, True, True, True, 1),
    "compiled": Kernels(5.5, False, False, False, False, 2, 1.28),
    "chunked": Kernels(1.125, False, False, False, False, 2, 1.28),
    "tuneloop": Kernels(0.0, False, False, False, False, 1, tuneloop=True),
}


@dataclass(frozen=True)
class TrainingSetup:
    """One way to train one model on one kind of machine."""

    model: str
    shape: ModelShape
    gpu: Gpu
    gpus: int = 1
    method: str = USUAL.name
    sharding: Sharding = "none"  # ddp: copies; fsdp, zero3: everything divided; zero2: gradients and optimizer states
    offload: bool = False  # optimizer states, and with fsdp or zero3 the weights too, live in the host's memory
    offload_activations: bool = False  # checkpointed layer inputs live there
    seq_len: int = 2048  # tokens a row is padded or packed to
    micro_batch: int = 1  # rows computed at once on a GPU
    grad_accum: int = 1
    grad_ckpt: bool = False  # layers are recomputed in the backward pass
    kept_layers: int = 0  # but for so many of the last ones (tuneloop's loop)
    attention: Attention = "sdpa"
    loss_kernel: LossKernel = "eager"
    # Of weights and computation. mixed: fp32 weights, bf16 computation: cast as they are gathered where they are
    # divided, else by torch.autocast (Trainer's `bf16=True`); autocast: by that in any case.
    dtype: Dtype = "bf16"
    optimizer: Optimizer = "adamw"  # with fp32 states (8 bytes a parameter), adamw-bf16 in bf16 (4), adamw-8bit 2
    optimizer_in_backward: bool = False  # each weight is updated, and its gradient freed, as soon as that is there
    rank: int = 16
    targets: tuple[str, ...] = field(default_factory=lambda: target_modules("all-linear"))  # matrices with an adapter
    prefix_tokens: int = 20  # virtual tokens of prefix tuning
    quant: Quant = "none"  # how frozen weights of matrices are kept
    head_fp32: bool = False  # ends, norms and residual stream are fp32: PEFT's `prepare_model_for_kbit_training`
    packing: bool = False  # rows are packed to `seq_len`, so nothing is padded
    varied: bool = False  # rows are of many lengths, `seq_len` at most: the allocator keeps more blocks
    # in tuneloop's loop:
    shared: int = 0  # tokens that all rows begin with and that are computed once, before `seq_len` of each row's own
    supervised: int = 0  # positions whose logits are needed, 0 for all
    dropout: bool = False  # the adapter drops some of its input
    dora: bool = False  # the adapter learns lengths

    @property
    def again(self) -> float:
        """Forward passes of all layers that recomputing adds."""
        return 1 - self.kept_layers / self.shape.layers if self.grad_ckpt else 0.0

    @property
    def kernels(self) -> Kernels:
        return KERNELS[self.loss_kernel]

    @property
    def footprint(self) -> Footprint:
        return method_named(self.method).footprint

    @property
    def full(self) -> bool:
        return self.footprint.all_weights

    @property
    def adapted(self) -> tuple[str, ...]:
        names = self.targets if self.footprint.low_rank else ()
        return tuple(name for name in names if not self.shape.experts or name in ATTENTION)

    @property
    def virtual_tokens(self) -> int:
        return self.prefix_tokens if self.footprint.has_virtual_tokens else 0

    def needs(self, *matrices: str) -> bool:
        """Whether one of the matrices is trained or adapted, so that its input is needed for a gradient."""
        return self.full or any(name in self.adapted for name in matrices)

    @property
    def trainable(self) -> int:
        return self.footprint.trained(self)

    @property
    def autocast(self) -> bool:
        """Whether torch.autocast casts fp32 weights: the casts live next to them, and the residual stream is fp32."""
        return self.dtype == "autocast" or (self.dtype == "mixed" and self.sharding in ("none", "ddp"))

    @property
    def tokens(self) -> int:
        """Tokens computed at once on a GPU."""
        return self.seq_len * self.micro_batch + self.shared

    @property
    def activation_bytes(self) -> int:
        return 4 if self.dtype == "fp32" else 2


@functools.cache
def _choices() -> dict[str, tuple[str, ...]]:
    hints = {name: get_args(kind) for name, kind in get_type_hints(TrainingSetup).items()}
    return {name: clauses for name, clauses in hints.items() if clauses and isinstance(clauses[0], str)}


def make_job(**settings: object) -> TrainingSetup:
    """A checked `TrainingSetup`, by its names; `quant`, where not given, and the method, also a Python file, by the
    method. Raises UserError: a word that is no choice, a number that can't be, settings that exclude each other."""
    for name, choices in _choices().items():
        value = settings.get(name)
        if value is not None and value not in choices:
            raise _no_choice(name, value, choices)
    name = str(settings.get("method") or USUAL.name)
    try:
        method = method_named(name)
    except UserError:
        if name.endswith(".py"):
            raise
        raise _no_choice("method", name, [method.name for method in methods()]) from None
    settings["method"] = method.name
    if settings.get("quant") in (None, "none"):
        settings["quant"] = method.footprint.quant
    stated: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    job = TrainingSetup(**stated)
    _check_numbers(job)
    _check_together(job)
    return job


def _no_choice(setting: str, value: object, choices: Sequence[str]) -> UserError:
    return UserError(
        f"Unknown {setting.replace('_', ' ')}: {value!r}",
        where=setting.replace("_", "-"),
        next_step=f"{did_you_mean(str(value), choices)} choices: {', '.join(choices)}".lstrip(),
    )


LIMITS = {
    "gpus": 4096, "seq_len": 2**20, "micro_batch": 4096, "grad_accum": 2**16, "rank": 4096, "prefix_tokens": 2**15,
}  # fmt: skip


def _check_numbers(job: TrainingSetup) -> None:
    for name, most in LIMITS.items():
        value = getattr(job, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            message = f"{name.replace('_', ' ')} is {value}; it is a whole number from 1 to {most:,}"
            step = f"give --{name.replace('_', '-')} a number in that range"
            raise UserError(message, where=name.replace("_", "-"), next_step=step)
    if job.shape.context and job.seq_len > job.shape.context:
        message = f"seq len is {job.seq_len:,}, and {job.model} knows positions up to {job.shape.context:,}"
        raise UserError(message, where="seq-len", next_step=f"use --seq-len {job.shape.context} or less")
    if job.adapted and job.rank > job.shape.hidden:
        message = f"rank {job.rank} is above the model's width {job.shape.hidden}: no low-rank adapter"
        raise UserError(message, where="rank", next_step="use --rank 16, or --method full")


def _check_together(job: TrainingSetup) -> None:
    quantised = next(method.name for method in methods() if method.footprint.quant != "none")
    on_cpu, foreign = job.gpu.is_cpu, not job.kernels.tuneloop  # foreign: another loop than tuneloop's
    refusals = (
        (job.full and job.quant != "none", "Full fine-tuning can't train quantised weights",
         f"use --method {quantised}, or leave --quant out"),
        (bool(job.shape.experts) and method_named(job.method).own_model,
         f"There is no {method_named(job.method).title} for a mixture of experts", f"use --method {USUAL.name}"),
        (job.sharding != "none" and job.gpus == 1, f"{job.sharding} needs at least two GPUs",
         "add --gpus 2, or use --sharding none"),
        (job.sharding == "none" and job.gpus > 1, f"{job.gpus} GPUs without a way to share the work",
         "choose --sharding ddp, fsdp, zero2 or zero3, or leave --sharding out"),
        (on_cpu and job.gpus > 1, "There is one processor here", "use --gpus 1"),
        (on_cpu and job.quant != "none" and foreign, "NF4 and int8 training needs a GPU", f"use --method {USUAL.name}"),
        (on_cpu and "8bit" in job.optimizer and foreign, "8-bit optimizers need a GPU", "use --optimizer adamw"),
        (job.dtype == "fp32" and job.attention == "flash", "FlashAttention has no fp32", "use --attention sdpa"),
        (job.attention == "flash" and not job.gpu.flash, f"FlashAttention does not run on {job.gpu.name}",
         "use --attention sdpa"),
        (job.optimizer_in_backward and job.grad_accum > 1 and foreign,
         "Updating in the backward pass leaves no gradients to accumulate", "use --grad-accum 1"),
        (job.optimizer_in_backward and job.sharding in ("ddp", "zero2", "zero3"),
         f"Updating in the backward pass does not go with {job.sharding}", "use --sharding fsdp"),
        (job.dtype in ("mixed", "autocast") and job.quant != "none", "Quantised weights have no fp32 original",
         "use --dtype bf16"),
        (job.optimizer == "sgd" and job.footprint.low_rank and job.offload and job.sharding == "none",
         "SGD keeps nothing that could be offloaded", "leave --offload out"),
        (on_cpu and job.shape.parameters * 2 > 4 * job.gpu.gib * 1024**3,
         f"{job.model} has {job.shape.parameters / 1e9:.0f} billion parameters: "
         f"no training on this machine's {job.gpu.gib:.0f} GiB", "name a GPU, as in --gpu h100-sxm --gpus 8"),
    )  # fmt: skip
    for wrong, message, step in refusals:
        if wrong:
            raise UserError(message, where="plan", next_step=step)
