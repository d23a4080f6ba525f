"""Peak memory of a training step, term by term.

A step passes through phases, and what is alive in one is freed in the next: the peak is the largest phase, not the sum
of all terms. Formulas count what autograd keeps (Korthikanti et al. 2022, arXiv 2205.05198, sec. 4, for Llama's layer),
what sharding leaves on a GPU (Rajbhandari et al. 2020, arXiv 1910.02054) and what NF4 takes (Dettmers et al. 2023,
arXiv 2305.14314). Where a count depends on the software, `job.KERNELS` says what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuneloop.core.machine import GIB
from tuneloop.planning.job import TrainingSetup

# Bytes a quantised weight takes. NF4: 4 bits and an fp32 scale for each 64; with double quantisation the scales take 8
# bits and an fp32 scale for each 256 of them (arXiv 2305.14314, sec. 3). int8: an fp32 scale a row, next to nothing.
QUANT_BYTES = {"nf4": 0.5 + 4 / 64, "nf4-dq": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
# Bytes of AdamW's two moments for a parameter. Paged states live in memory that the driver can move to the host.
STATE_BYTES = {"adamw": 8.0, "adamw-bf16": 4.0, "adamw-8bit": 2.0, "paged-adamw-8bit": 2.0, "sgd": 0.0}
OWN_SCALES = 2 * 4 / 64  # tuneloop's 8-bit moments: an fp32 scale for each 64
# What the driver, cuBLAS and the kernels take before the first tensor: 0.5 to 0.8 GiB on an A100.
CONTEXT_GIB = 0.6
CPU_GIB = 0.1  # what libraries take on a processor once they compute (12 runs of benchmarks/plan.py)
FP32_LOGITS = 3.75  # fp32 logits, their log-softmax, gradient and a part of a copy, on the same runs
# tuneloop's loop keeps freed blocks of the heap. What passes through a layer without being kept leaves holes: bytes a
# token and layer, in twice the layer's width and feed-forward (11 runs of a 135M model, in bf16 as in fp32); unpacking
# 4-bit matrices leaves up to twice as many. What oneDNN keeps for shapes is bounded.
HOLE_BYTES = 2
SHAPES_GIB = 0.04
OWN_QUERY_BLOCK = 96  # `QUERY_BLOCK` of models/nn/llama.py, which imports torch
NCCL_GIB = 0.6  # buffers of the collectives, once there are several GPUs
# What a run must have beyond its peak: holes between blocks of many sizes, as a share of the activations (more
# where gathered weights come and go between them: 70B on two A100 ran in one release and ran out of memory in another
# at a peak of 67 GiB) and of unfused logits.
FRAGMENTED, FRAGMENTED_SHARDED, FRAGMENTED_LOGITS = 0.115, 0.21, 0.1
# What the allocator keeps where memory is plenty (fitted to the fitting half of the runs with numbers of nvidia-smi,
# see `_reserved_blocks`): holes as a share of the activations, how much of the backward pass's blocks is not found in
# those of the logits, and from which size on (as a share of what the optimizer step needs) gradients and temporaries
# find room there.
HOLES, UNSHARED, ROOM_FROM = 0.2, 0.15, 0.75
# Blocks for the tensors of a step where each has another length, over those where all have the longest: each new
# longest row needs new blocks, and the old ones stay (ms-swift's benchmark: 2.4 in the middle at up to 2,048 tokens,
# 1.5 where the longest rows are rare).
VARIED = 2.2
GATHERS = 2  # FSDP units gathered at a time: the next one's weights come while one computes (its `limit_all_gathers`)
ACTIVATIONS = (
    "layer inputs", "second copies of layer inputs", "activations", "recomputed layer", "gradients of activations",
)  # fmt: skip
# bitsandbytes before 0.43 hangs each matrix's own copy of its input on the graph, which lives until the next
# micro-batch's loss is there: the inputs of this micro-batch and of a typical one before it (LitGPT's tables of 2023
# and 2024 need 1.0 and 1.3 to 1.8 times the first alone).
KEPT_INPUTS = 1.4
ZERO_LIVE = 1_000_000_000  # stage3_max_live_parameters and sub_group_size, by default


@dataclass(frozen=True)
class Memory:
    """Memory on one GPU in GiB."""

    phases: dict[str, dict[str, float]]  # for each phase the terms alive in it
    reserved: float  # what `nvidia-smi` will show: the allocator's blocks and the driver's context
    required: float  # what the device must have, or the run fails
    capacity: float  # what the device has
    context: float = 0.0  # what driver, kernels and NCCL take of `reserved` and `required`; torch does not count it

    @property
    def phase(self) -> str:
        """The phase with the peak."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def terms(self) -> dict[str, float]:
        """The terms of that phase."""
        return self.phases[self.phase]

    @property
    def peak(self) -> float:
        """Most memory allocated at a time."""
        return sum(self.terms.values())

    @property
    def fits(self) -> bool:
        """Whether the device has what is required."""
        return self.required <= self.capacity


def memory_of(job: TrainingSetup) -> Memory:
    """Peak memory of the job's step on one GPU, see the module."""
    static = {**_weights(job), **_optimizer(job)}
    gradients = _gradients(job)
    earlier = gradients if job.grad_accum > 1 else {}  # gradients of earlier micro-batches are there all the time
    layer, transient = layer_activations(job)
    waiting, doubled = _waiting_layers(job, layer)
    logits, head_gradient = _logits(job), {}
    if job.full:  # whole; in chunks it is summed up, and then there is a second one
        size = job.shape.embedding * (4 if job.kernels.tuneloop else job.activation_bytes)
        chunks = 2 if job.loss_kernel == "chunked" and "fsdp" not in job.sharding else 1
        head_gradient = {"head's gradient": float(size * chunks)}
    gathered = _gathered(job)
    # The deepest layer is recomputed and differentiated while the inputs of all others wait. Where some of the last
    # layers are kept, that is less than what these have held before.
    recomputed = {"recomputed layer": layer} if job.grad_ckpt and not job.kept_layers else {}
    passing = {} if job.grad_accum > 1 else _passing_gradients(job)
    casts = _casts(job)
    # An update in the backward pass, where no freed memory can be taken: 8-bit states are unpacked to fp32.
    within = job.optimizer_in_backward and job.optimizer == "adamw-8bit" and not job.kernels.foreach
    unpacked = {"optimizer's temporaries": job.shape.embedding * 4.0} if within else {}
    phases = {
        "loss": {**static, **casts, **gathered, **earlier, **waiting, **logits, **head_gradient, **unpacked},
        "layer backward": {
            **static, **({} if job.grad_ckpt else casts), **gathered, **earlier, **passing, **waiting, **doubled,
            **recomputed, "gradients of activations": transient,
            **({} if job.sharding == "fsdp" else head_gradient),
        },
        "last layer backward": {**static, **gathered, **gradients, "one layer": layer + transient},
        "optimizer step": {**static, **gradients, **_temporaries(job)},
    }  # fmt: skip
    if job.full and job.kernels.tuneloop:
        own = job.shape.embedding * _trained_bytes(job)
        cast = {"head's gradient in the weight's dtype": own if _trained_bytes(job) == 2 else 0.0}
        phases["loss backward"] = {**static, **gathered, **earlier, **waiting, **head_gradient, **cast}
        # A tied head's gradient waits for the embedding's, which is as large: autograd adds the two up.
        phases["last layer backward"] |= {"embedding's gradient": float(own * job.shape.tied)}
    phases = {phase: {name: size / GIB for name, size in terms.items() if size > 0} for phase, terms in phases.items()}
    return _with_overheads(job, phases)


def _with_overheads(job: TrainingSetup, phases: dict[str, dict[str, float]]) -> Memory:
    memory = Memory(phases, 0, 0, job.gpu.gib)
    if job.gpu.is_cpu:
        for terms in phases.values():
            passing = job.tokens * job.shape.layers * (job.shape.hidden + job.shape.activated)
            holes = float(HOLE_BYTES * passing)
            holes += min(holes, _unpacked_sizes(job)) if job.quant != "none" else 0.0
            terms["libraries and heap"] = SHAPES_GIB + holes / GIB if job.kernels.tuneloop else CPU_GIB
        return Memory(phases, memory.peak, memory.peak / 0.95, job.gpu.gib)
    holes = FRAGMENTED_SHARDED if job.sharding in ("fsdp", "zero3") else FRAGMENTED
    context = CONTEXT_GIB + NCCL_GIB * (job.gpus > 1)

    def with_holes(terms: dict[str, float]) -> float:
        activations = holes * sum(terms.get(name, 0.0) for name in ACTIVATIONS)
        return sum(terms.values()) + activations + FRAGMENTED_LOGITS * terms.get("logits", 0.0)

    required = context + max(map(with_holes, phases.values()))
    reserved = context + max(_reserved_blocks(job, phases), memory.peak)
    required = min(required, reserved)  # with all the blocks that it would keep a run has enough
    if reserved > job.gpu.gib:  # the allocator gives back blocks when it runs out, and keeps fewer from then on
        reserved = max((required + job.gpu.gib) / 2, required)
    return Memory(phases, reserved, required, job.gpu.gib, context)


def _unpacked_sizes(job: TrainingSetup) -> float:
    """Bytes of unpacked matrices that may leave holes: in each layer and pass, one takes the place of another of its
    size, so that there is at most one of each."""
    sizes = {inputs * outputs for inputs, outputs in job.shape.linear().values()}
    return 2.0 * job.shape.layers * sum(sizes) * _stored_bytes(job)


def _reserved_blocks(job: TrainingSetup, phases: dict[str, dict[str, float]]) -> float:
    """GiB of blocks that torch's caching allocator keeps where memory is plenty.

    It never gives a block back on its own, and divides a large one for small tensors but does not join small ones. So
    the blocks of the logits in all their sizes serve the backward pass, and the optimizer step where they are large
    enough; activations and the optimizer's tensors each have their own.
    """
    loss, backward, step = (phases[name] for name in ("loss", "layer backward", "optimizer step"))
    static = sum(min(gib, step[name]) for name, gib in loss.items() if name in step)
    waiting = loss.get("layer inputs", 0.0) + loss.get("activations", 0.0)
    logits = loss.get("logits", 0.0) * job.kernels.logit_blocks + loss.get("last hidden states", 0.0)
    in_passing = [name for name in ACTIVATIONS if name not in ("layer inputs", "activations")]
    passing = (1 + HOLES) * sum(backward.get(name, 0.0) for name in in_passing)
    update = sum(step.values()) - static
    shared = max(logits, passing) + UNSHARED * min(logits, passing)
    gathered = loss.get("gathered weights", 0.0) * (GATHERS if job.sharding == "fsdp" else 1)
    lengths = VARIED if job.varied else 1.0
    total = static + gathered + loss.get("cast weights", 0.0) + (1 + HOLES) * waiting + lengths * shared + update
    if job.full:  # an adapter's tensors are small, and torch keeps small ones apart
        total -= min(max(shared - ROOM_FROM * update, 0.0), update)
    return total


def _shards(job: TrainingSetup, noun: str) -> int:
    divided = job.sharding in ("fsdp", "zero3") or (job.sharding == "zero2" and noun != "weights")
    return job.gpus if divided else 1


def _stored_bytes(job: TrainingSetup) -> int:
    return 4 if job.dtype in ("fp32", "mixed", "autocast") else 2


def _trained_bytes(job: TrainingSetup) -> int:
    """Bytes of a trained weight: adapters are kept in fp32 unless the optimizer works in bf16."""
    if job.kernels.tuneloop:
        return 2 if _keeps_rests(job) else 4
    if job.full:
        return _stored_bytes(job)
    return 2 if job.optimizer == "adamw-bf16" and job.dtype != "fp32" else 4


def _keeps_rests(job: TrainingSetup) -> bool:
    """Whether bf16 weights learn together with what rounding takes from them (training/optimizers.py)."""
    return job.kernels.tuneloop and job.full and job.dtype != "fp32"


def weight_bytes(job: TrainingSetup) -> float:
    """Bytes of the model's own weights, undivided."""
    shape = job.shape
    if job.kernels.tuneloop and job.gpu.is_cpu:  # loaded whole, and packed then
        return float(shape.parameters * _stored_bytes(job))
    small = shape.parameters - shape.matrix_parameters
    width = 4 if job.head_fp32 else _stored_bytes(job)
    return shape.matrix_parameters * QUANT_BYTES.get(job.quant, _stored_bytes(job)) + small * width


def _weights(job: TrainingSetup) -> dict[str, float]:
    away = job.offload and job.sharding in ("fsdp", "zero3")
    terms = {"weights": 0.0 if away else weight_bytes(job) / _shards(job, "weights")}
    if job.kernels.tuneloop and job.gpu.is_cpu and _stored_bytes(job) == 2:
        # A file's weights are mapped and stay while one of them is in use; fp32 ones, which were converted, don't.
        terms["packed weights"] = job.shape.matrix_parameters * QUANT_BYTES.get(job.quant, 0.0)
    if not job.full:
        cast = job.activation_bytes if job.kernels.tuneloop and job.adapted and job.activation_bytes == 2 else 0
        terms["adapter"] = job.trainable * (_trained_bytes(job) + cast) / _shards(job, "weights")
    elif _keeps_rests(job):
        terms["what rounding takes from the weights"] = job.trainable * 2.0 / _shards(job, "weights")
    return terms


def _casts(job: TrainingSetup) -> dict[str, float]:
    """What torch.autocast made of the weights: kept for the backward pass, with checkpointing until the loss is there.
    Its cache takes leaves that need a gradient (ATen's `autocast_mode.cpp`): of frozen ones checkpointing leaves those
    of a layer. Views into FSDP's flat weights are all kept (ATorch's table: 12.5 GiB for 7B, adapters or not)."""
    if not job.autocast:
        return {}
    if job.grad_ckpt and not job.full and job.sharding != "fsdp":
        return {"cast weights": 2.0 * job.shape.layer_matrices}
    return {"cast weights": 2.0 * (job.shape.matrix_parameters + job.shape.embedding)}


def _optimizer(job: TrainingSetup) -> dict[str, float]:
    if job.offload or job.optimizer.startswith("paged"):
        return {}
    size = job.trainable * STATE_BYTES[job.optimizer]
    if job.kernels.tuneloop and job.optimizer == "adamw-8bit":
        size += job.trainable * OWN_SCALES
    if _keeps_rests(job) and job.optimizer == "adamw":  # the first moment is bf16
        size -= job.trainable * 2.0
    if job.optimizer == "adamw-8bit" and job.full and not job.optimizer_in_backward and not job.kernels.tuneloop:
        # Transformers keeps the embedding's moments in 32 bits
        size += job.shape.embedding * (8.0 - STATE_BYTES[job.optimizer])
    if job.sharding.startswith("zero") and job.full and job.dtype in ("bf16", "fp16"):
        size += 4 * job.trainable  # DeepSpeed's fp32 master weights
    return {"optimizer": size / _shards(job, "states")}


def _gradients(job: TrainingSetup) -> dict[str, float]:
    if job.optimizer_in_backward and job.grad_accum == 1:  # those of earlier micro-batches wait for the last one
        return {"gradients": _passing_gradients(job).get("gradients in flight", 0.0)}
    size = job.trainable * _trained_bytes(job)
    away = job.offload and job.sharding in ("fsdp", "zero3")
    terms = {"gradients": 0.0 if away else size / _shards(job, "gradients")}
    if job.sharding == "ddp":
        terms["reduction buckets"] = size
    if job.sharding.startswith("zero"):  # Transformers' auto
        terms["reduction buckets"] = 2 * min(job.shape.hidden**2, job.trainable) * _trained_bytes(job)
    return terms


def _passing_gradients(job: TrainingSetup) -> dict[str, float]:
    """A layer's whole gradient, before it is divided or applied."""
    if not job.full:
        return {}
    width = 2 if job.dtype == "mixed" and not job.autocast else _trained_bytes(job)
    return {"gradients in flight": job.shape.layer_matrices * width}


def _temporaries(job: TrainingSetup) -> dict[str, float]:
    if job.kernels.tuneloop:
        # AdamW goes through weights in stretches; the paged one of bitsandbytes sees a whole one, and its gradient, in
        # fp32.
        whole = 8.0 if _keeps_rests(job) and job.optimizer.startswith("paged") else 0.0
        return {"optimizer's temporaries": job.shape.embedding * whole / _shards(job, "states")}
    if job.sharding == "zero3" and job.full and job.dtype in ("bf16", "fp16") and not job.offload:
        # Its step goes through parts of `sub_group_size` weights: fp32 copies of their gradients, and AdamW's own.
        part = min(job.trainable / job.gpus, ZERO_LIVE)
        return {"optimizer's temporaries": part * 4.0 * (1 + (job.optimizer == "adamw"))}
    fused = job.sharding.startswith("zero")  # Adam over flat parts
    if job.offload or job.optimizer_in_backward or job.gpu.is_cpu or fused:
        return {}
    if job.optimizer == "adamw-8bit" and not job.kernels.foreach:
        return {"optimizer's temporaries": job.shape.embedding * 4.0}
    if job.kernels.foreach and job.optimizer in ("adamw", "adamw-bf16"):
        width = 2 if job.optimizer == "adamw-bf16" else 4
        return {"optimizer's temporaries": job.trainable * max(width, _trained_bytes(job)) / _shards(job, "states")}
    return {}


def _gathered(job: TrainingSetup) -> dict[str, float]:
    """Weights that are whole on each GPU while a layer works: that layer, and what belongs to no layer."""
    shape = job.shape
    width = 4 if job.autocast else job.activation_bytes
    layer = shape.layer_matrices * QUANT_BYTES.get(job.quant, width)
    if job.sharding == "fsdp":
        outside = shape.embedding * (1 if shape.tied else 2) * width
        return {"gathered weights": outside + layer}
    if job.sharding == "zero3":
        return {"gathered weights": max(min(ZERO_LIVE, shape.parameters) * job.activation_bytes, layer)}
    return {}


def layer_activations(job: TrainingSetup) -> tuple[float, float]:
    """Bytes that a layer keeps for its gradient apart from its input, and bytes of gradients alive at once within it.

    Counted in elements a token, for a layer of width C, queries Q, keys K, feed-forward F. A frozen matrix without an
    adapter does not need its input. Norms keep an fp32 copy (2 C in bf16) unless they are fused; attention keeps
    queries, keys, values and its result, with the keys repeated for each query unless the kernel groups them; the
    feed-forward keeps gate and up, and the activation and the product where needed.
    """
    shape, kernels, wide = job.shape, job.kernels, job.activation_bytes == 2
    hidden, forward = shape.hidden, shape.activated
    if kernels.tuneloop:
        return _loop_layer(job)
    norm = (2 * hidden if kernels.fp32_norms and wide else 0) + (hidden if kernels.fp32_norms and job.full else 0)
    grouped = job.attention == "flash" and kernels.fsdp == 1
    elements = 2 * norm + hidden  # two norms, and the input of the second half
    if job.autocast:  # which is fp32, as are the norms' results, before they are cast
        elements += 5 * hidden
    elements += hidden * job.needs("q_proj", "k_proj", "v_proj") + hidden * job.needs("gate_proj", "up_proj")
    elements += 2 * shape.queries + 2 * (shape.keys if grouped else shape.queries)
    elements += forward * (2 + kernels.silu)
    product = forward * job.needs("down_proj")
    elements += product
    if kernels.adapter_copies and wide:  # in fp32 nothing is cast
        elements += sum(inputs for inputs, _ in shape.adapted(job.adapted).values())
    elements += job.rank * len(job.adapted)
    stored: float = job.tokens * elements * job.activation_bytes
    if job.attention == "eager":  # fp32 softmax, its 16-bit copy
        stored += job.micro_batch * shape.heads * job.seq_len**2 * (4 + job.activation_bytes * wide)
    virtual = job.micro_batch * job.virtual_tokens
    stored += job.footprint.virtual_widths * (shape.queries + shape.keys) * virtual * job.activation_bytes
    if job.quant in ("nf4", "nf4-dq") and kernels.fsdp == 1 and not job.grad_ckpt:
        inputs = 4 * hidden + forward  # q, k and v as one, o, gate, up, down
        stored += KEPT_INPUTS * job.tokens * inputs * job.activation_bytes
    # dy and the residual's gradient; those of product, activation and up, when the product itself has been freed
    pointwise = job.tokens * (2 * hidden + (2 + kernels.silu) * forward - product) * job.activation_bytes
    unpacked = hidden * forward * 2 if job.quant != "none" else 0
    matrix = job.tokens * (2 * hidden + 2 * forward - product) * job.activation_bytes + unpacked
    return stored, max(pointwise, matrix, 0.0)


def _loop_layer(job: TrainingSetup) -> tuple[float, float]:
    """The same for tuneloop's own loop (models/nn/llama.py): norms and the activation keep only their inputs, adapters
    none of their own. Attention keeps rotated queries, each row's keys and values behind what all rows share, and where
    it takes plain products its weights."""
    shape = job.shape
    hidden, forward, rows, shared = shape.hidden, shape.activated, job.micro_batch, job.shared
    virtual = job.virtual_tokens
    short = job.seq_len + shared <= job.gpu.backend.products_below
    adapted = shape.adapted(job.adapted).values()
    inputs: float = hidden * (job.needs("q_proj", "k_proj", "v_proj") + job.needs("gate_proj", "up_proj"))
    inputs += forward * job.needs("down_proj")
    if job.dropout:  # each matrix has its own input, and a byte for each number of it that says whether it was dropped
        inputs = (1 + 1 / job.activation_bytes) * sum(tokens_in for tokens_in, _ in adapted)
    if job.dora:  # its result before the lengths
        inputs += sum(tokens_out for _, tokens_out in adapted)
    elements = hidden + inputs + shape.queries * (1 + (job.needs("o_proj") or not short))
    elements += forward * 2 + job.rank * len(job.adapted)
    elements += (shape.norms - 2) * hidden + (shape.queries + shape.keys) * shape.qk_norm  # what further norms read
    read = rows * (job.seq_len + shared + virtual) + shared
    stored: float = job.tokens * elements + 2 * shape.keys * read
    if short:
        # whole squares otherwise: with those the constants of the other methods were set
        of_row = _causal(job.seq_len) if virtual else job.seq_len**2
        stored += shape.heads * (rows * (job.seq_len * (shared + virtual) + of_row) + shared**2)
    passing = job.tokens * (2 * hidden + 3 * forward)
    # The lengths of the largest matrix, in fp32, of it and its update.
    lengths = hidden * forward * (2 * job.activation_bytes + 4) if job.dora else 0
    return float(stored * job.activation_bytes), float(max(passing * job.activation_bytes, lengths))


def _causal(length: int) -> float:
    """Attention weights of a row's queries to its keys, by blocks: `query_blocks` of models/nn/llama.py."""
    blocks = max(1, round(length / OWN_QUERY_BLOCK))
    return length**2 * (blocks + 1) / (2 * blocks)


def _waiting_layers(job: TrainingSetup, layer: float) -> tuple[dict[str, float], dict[str, float]]:
    """What waits for the backward pass: each layer's input, and without checkpointing all that it keeps. The second
    part grows during that pass: FSDP 1 with frozen weights keeps one more tensor of that size a layer (a measured fact:
    3.75 GiB on 32 layers, 9.7 GiB on 80, both within 1 % of it)."""
    shape = job.shape
    stream = 4 if job.head_fp32 or job.autocast else job.activation_bytes  # the residual stream's width
    layer_bytes = job.tokens * shape.hidden * stream
    inputs: float = 0.0 if job.offload_activations and job.grad_ckpt else layer_bytes * shape.layers
    doubled: dict[str, float] = {}
    if job.sharding == "fsdp" and job.kernels.fsdp == 1 and not job.full and job.grad_ckpt:
        doubled = {"second copies of layer inputs": layer_bytes * max(shape.layers - 2, 0)}
    terms: dict[str, float] = {"layer inputs": inputs}
    if layers := job.kept_layers if job.grad_ckpt else shape.layers:
        left_out = 0.0
        if job.kernels.tuneloop and not job.gpu.is_cpu and job.supervised:
            # In tuneloop's loop on a GPU the last layer is computed, behind attention, where something is supervised.
            elements = shape.hidden * (1 + job.needs("gate_proj", "up_proj"))
            elements += shape.activated * (2 + job.needs("down_proj"))
            left_out = float(max(job.tokens - job.supervised, 0) * elements * job.activation_bytes)
        terms["activations"] = layer * layers - left_out
    return terms, doubled


def _logits(job: TrainingSetup) -> dict[str, float]:
    """Logits in all their copies, and the hidden states in front of them."""
    states = 2 * job.tokens * job.shape.hidden * job.activation_bytes
    logits = job.kernels.logits * job.tokens * job.shape.vocabulary * 2
    if job.head_fp32 and job.loss_kernel == "eager":  # fp32: as they come, shifted, log-softmax, gradient
        logits = 4 * job.tokens * job.shape.vocabulary * 4
    if job.dtype == "fp32" and job.loss_kernel == "eager":
        logits = FP32_LOGITS * job.tokens * job.shape.vocabulary * 4
    if job.kernels.tuneloop:  # logits, whose place their gradient takes, and fp32 probabilities
        here = job.gpu.backend
        chunk = here.positions_at_once_full if job.full else here.positions_at_once
        chunk = min(chunk, job.supervised or job.tokens)
        few = here.softmax_rows or chunk
        logits = (chunk * job.activation_bytes + few * 4) * job.shape.vocabulary
    if job.loss_kernel == "fused":
        # chunks so small that their logits take as much as the hidden states, with fp32 sums
        logits = 3 * job.tokens * job.shape.hidden * 2
        if job.full:
            logits += job.shape.embedding * 4
    return {"logits": logits, "last hidden states": states}
