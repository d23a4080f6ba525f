"""Memory and speed of serving a model: each format of an artifact on each GPU, or on this machine.

Memory is the weights, the keys and values of all requests at once, the logits and activations of a part of a prompt,
and the driver's context. Speed is the roofline (Williams et al. 2009, doi 10.1145/1498765.1498785; of decoders: Pope et
al. 2022, arXiv 2211.05102, and Yuan et al. 2024, arXiv 2402.16363): a step reads all weights and the keys and values of
each request, or computes 2 operations a weight and request, whichever takes longer. A prompt is bound by its
operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from tuneloop.core.errors import UserError
from tuneloop.core.machine import GIB
from tuneloop.core.units import counted
from tuneloop.models.nn import FEED_FORWARD, ModelShape
from tuneloop.planning.catalogue.gpus import COUNTS, Gpu
from tuneloop.planning.memory import CONTEXT_GIB, NCCL_GIB
from tuneloop.planning.speed import BANDWIDTH_SHARE
from tuneloop.records.plan import ServingFit

KV_BYTES = 2  # of a key or value: llama.cpp and vLLM keep them in 16 bits
PART = 512  # tokens of a prompt that are computed at once (llama.cpp's n_ubatch); vLLM takes 2,048 or more
# A step's host time for a layer, and the latency of its two all-reduces where a layer's matrices are divided over GPUs.
LAYER_SECONDS, REDUCE_SECONDS = 1e-5, 2e-5
# llama.cpp on a processor, by `benchmarks/release.py speeds` with 0.13 and 1 billion weights: a step's time for a layer
# apart from its matrices; what it reaches of the cores' rate when it reads a prompt; and, where blocks must be unpacked
# first, when it writes: then that bounds one row and not the memory.
CPU_LAYER_SECONDS, CPU_READS, CPU_UNPACKS = 1.5e-4, {"q8_0": 0.75}, 0.14
CPU_READS_FLOAT, CPU_READS_BLOCKS = 0.85, 0.5
MOST = 10**7  # tokens of context, and requests at a time
Engine = Literal["llama.cpp", "vLLM"]

# Bits of a weight by llama.cpp's block layouts (ggml-common.h: bytes of a block x 8 / weights of it).
BITS = {"f16": 16.0, "q8_0": 8.5, "q6_k": 6.5625, "q5_k": 5.5, "q4_k": 4.5, "q5_1": 6.0, "q5_0": 5.5}
NARROW = {"q6_k": "q8_0", "q5_k": "q5_1", "q4_k": "q5_0"}  # of rows whose width is no multiple of 256


@dataclass(frozen=True)
class ServedFormat:
    """A format of an artifact."""

    name: str  # as `--quant` names it
    engine: Engine  # that serves it
    main: str = ""  # type of most of its matrices (`BITS`); empty: of `bits` each
    bits: float = 16.0  # of a weight in the layers' matrices; embedding and head stay in 16
    better: str = ""  # type of the matrices that llama.cpp's mixture keeps in more bits


FORMATS = (
    ServedFormat("f16", "vLLM"),
    ServedFormat("q8_0", "llama.cpp", "q8_0", better="q8_0"),
    ServedFormat("q6_k", "llama.cpp", "q6_k", better="q6_k"),
    ServedFormat("q5_k_m", "llama.cpp", "q5_k", better="q6_k"),
    ServedFormat("q4_k_m", "llama.cpp", "q4_k", better="q6_k"),
    ServedFormat("fp8", "vLLM", bits=8.0),  # a scale for each row of a matrix
    ServedFormat("w4a16", "vLLM", bits=4.0 + 20 / 128),  # AWQ and GPTQ: a scale and a zero for each 128 weights
)


def plan_serving(
    shape: ModelShape, gpus: Sequence[Gpu], context: int, concurrency: int, count: int | None = None
) -> list[ServingFit]:
    """Each format on each GPU, on `count` of them, or on the fewest of 1, 2, 4 and 8 that hold it. `context`: tokens of
    a prompt with its answer. `concurrency`: requests that are answered at a time, each with so many tokens. Raises
    UserError: numbers that can't be, or a context that the model does not have."""
    for name, value in (("context", context), ("concurrency", concurrency)):
        if not 1 <= value <= MOST:
            raise UserError(f"--{name} is {value:,}", where=f"--{name}", next_step=f"give 1 to {MOST:,}")
    if shape.context and context > shape.context:
        step = f"give at most {shape.context}"
        raise UserError(f"The model reads {shape.context:,} tokens, not {context:,}", where="--context", next_step=step)

    def on(kind: ServedFormat, gpu: Gpu) -> ServingFit:
        served = partial(_served, shape, kind, gpu, context, concurrency)
        if (kind.name in ("fp8", "w4a16") and gpu.is_cpu) or (kind.name == "fp8" and not gpu.bf16):
            return replace(served(1), fits=False, one=None, all=None, prompt=None)
        *fewer, most = map(served, (1,) if gpu.is_cpu else (count,) if count else COUNTS)
        return next((fit for fit in fewer if fit.fits), most)

    return [on(kind, gpu) for gpu in gpus for kind in FORMATS]


def _served(shape: ModelShape, kind: ServedFormat, gpu: Gpu, context: int, concurrency: int, gpus: int) -> ServingFit:
    weights = weight_bytes(shape, kind)
    cache = cache_bytes(shape, context) * concurrency
    part = PART * (4 * shape.vocabulary + 8 * shape.hidden + 6 * shape.activated)
    driver = 0.0 if gpu.is_cpu else gpus * (CONTEXT_GIB + NCCL_GIB * (gpus > 1))
    peak = (weights + cache + gpus * part) / GIB + driver
    fits = peak <= gpus * gpu.gib
    speeds: dict[str, float] = {}
    if fits:
        step = _Step(shape, kind, gpu, gpus, weights)
        # A request is half written on average, so half of its keys and values are read.
        read = cache_bytes(shape, context) / 2
        speeds = {
            "one": 1 / step.seconds(1, read), "all": concurrency / step.seconds(concurrency, read),
            "prompt": step.prompt_tokens_per_second(context),
        }  # fmt: skip
    engine = "llama.cpp" if gpu.is_cpu else kind.engine
    capacity = gpus * gpu.gib
    return ServingFit(kind.name, engine, gpu.key, gpus, fits, weights / GIB, cache / GIB, peak, capacity, **speeds)


@dataclass(frozen=True)
class _Step:
    """What a forward pass takes. In llama.cpp each GPU has some layers, one works at a time; vLLM divides matrices."""

    shape: ModelShape
    kind: ServedFormat
    gpu: Gpu
    gpus: int
    weights: float

    @property
    def at_once(self) -> int:
        return self.gpus if self.kind.engine == "vLLM" else 1

    @property
    def operations(self) -> float:
        """Operations a second when a prompt is read."""
        share = 1.0
        if self.gpu.is_cpu:
            share = CPU_READS.get(self.kind.main, CPU_READS_BLOCKS if self.kind.main else CPU_READS_FLOAT)
        return self.gpu.tflops * 1e12 * self.gpu.matmul * self.at_once * share

    def unpacking(self) -> float:
        """Seconds to unpack all blocks of a file on a processor, for one row."""
        if not self.gpu.is_cpu or self.kind.main in ("", "q8_0"):
            return 0.0
        return 2 * self.shape.parameters / (self.gpu.tflops * 1e12 * CPU_UNPACKS)

    def seconds(self, requests: int, read: float) -> float:
        """Of one more token in each of some requests; `read`: bytes of keys and values of each."""
        shape = self.shape
        unread = 0 if shape.tied else self.weights * shape.embedding / shape.parameters  # the table of embeddings
        if shape.experts:  # those that no request passes through
            left_out = (1 - shape.active / shape.experts) ** requests
            idle = shape.matrix_parameters - shape.computed_parameters
            unread += self.weights * idle / shape.parameters * left_out / (1 - shape.active / shape.experts)
        moved = (self.weights - unread + requests * read) / (self.gpu.gb_s * 1e9 * BANDWIDTH_SHARE * self.at_once)
        computed = requests * 2 * (shape.computed_parameters + shape.embedding) / self.operations
        layer = CPU_LAYER_SECONDS if self.gpu.is_cpu else LAYER_SECONDS
        host = shape.layers * (layer + (2 * REDUCE_SECONDS if self.at_once > 1 else 0.0))
        return max(moved, computed, self.unpacking()) + host

    def prompt_tokens_per_second(self, context: int) -> float:
        """Of reading a prompt of half the context; attention costs 4 S Q a layer, half of it behind the causal mask."""
        shape = self.shape
        attention = shape.layers * 2 * shape.queries * context / 2
        return self.operations / (2 * shape.computed_parameters + attention)


def cache_bytes(shape: ModelShape, tokens: int) -> float:
    """Keys and values of a request of so many tokens."""
    return 2.0 * shape.layers * shape.keys * KV_BYTES * tokens


def weight_bytes(shape: ModelShape, kind: ServedFormat) -> float:
    """Bytes of a model's weights in a format. The mixtures are llama.cpp's (`llama_tensor_get_type` in its
    src/llama-quant.cpp): the head in q6_k or more; of q4_k_m and q5_k_m the values and the feed-forward's second matrix
    in more bits in the first and last eighth of the layers and in each third one between."""
    norms = 4.0 * (shape.layers * shape.norms * shape.hidden + shape.hidden)
    if not kind.main:
        ends = shape.embedding * (1 if shape.tied else 2)
        return norms + shape.matrix_parameters * kind.bits / 8 + ends * 2

    def stored(inputs: int, outputs: int, main: str) -> float:
        return inputs * outputs * BITS[NARROW.get(main, main) if inputs % 256 else main] / 8

    head = "q8_0" if kind.main == "q8_0" else "q6_k"
    total = norms + stored(shape.hidden, shape.vocabulary, head)  # one that is the embedding is written as a head
    total += 0 if shape.tied else stored(shape.hidden, shape.vocabulary, kind.main)
    for layer in range(shape.layers):
        eighth = shape.layers // 8
        more_bits = layer < eighth or layer >= 7 * shape.layers // 8 or (layer - eighth) % 3 == 2  # its `use_more_bits`
        wide = kind.better if more_bits else kind.main
        for name, (inputs, outputs) in shape.linear().items():
            weight_size = stored(inputs, outputs, wide if name in ("v_proj", "down_proj") else kind.main)
            total += weight_size * (shape.experts or 1 if name in FEED_FORWARD else 1)
    return total


def assumptions(context: int, concurrency: int) -> list[str]:
    """What the numbers rest on, in sentences."""
    return [
        f"{counted(concurrency, 'request')} at a time, each with room for {context:,} tokens; on average half is used",
        "keys and values in 16 bits; no adapter (a LoRA of rank 16 adds about 1 % to memory)",
        "GGUF files in llama.cpp, which gives each GPU some layers and is no faster on several; f16, fp8 and w4a16 in "
        "vLLM, which divides each matrix; fp8 and w4a16 need a GPU, and fp8 one of Ampere or newer",
        f"{BANDWIDTH_SHARE:.0%} of the memory's bandwidth; products at the 16-bit rate of the card, also of fp8",
        "not measured on a GPU: expect speeds within a factor of two, and memory within a tenth",
    ]
