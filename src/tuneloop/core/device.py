"""Where models are computed. What differs between the processor and the kinds of GPU is here and nowhere else.

A test holds that. Nothing here but `names_in_use` loads torch: before it is loaded, the device is the processor.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from tuneloop.core import machine
from tuneloop.core.errors import UserError
from tuneloop.core.machine import GIB

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# Names in the environment that choose the device and the dtype where a recipe does not.
DEVICE, DTYPE = "TUNELOOP_DEVICE", "TUNELOOP_DTYPE"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Backend:
    """One kind of device."""

    kind: str  # as torch names it
    products_below: int  # rows of fewer tokens attend by plain batched products: faster than SDPA there
    micro_batch_tokens: int  # tokens that are trained on at a time; on a GPU where memory is not known to hold more
    micro_batch_tokens_full: int  # the same where all weights learn
    positions_at_once: int  # positions projected onto the vocabulary at a time, which bounds memory
    positions_at_once_full: int  # the same where the projection learns
    softmax_rows: int  # of these, how many go through the softmax at a time; 0: all
    optimizer_stretch: int  # numbers that are updated in fp32 at a time: what a cache holds, or a kernel is worth
    tokens_unread: int  # of an answer that are written before the host reads them, which makes it wait
    # places by which buffers of keys and values grow; on a GPU a divisor of their length
    cache_step: int
    peak_sizes: tuple[int, ...]  # widths of the matrix products that measure the peak
    collectives: str  # what connects several processes

    @property
    def is_cpu(self) -> bool:
        return self.kind == "cpu"

    def has_fused_norm(self) -> bool:
        """Whether torch computes RMSNorm in one kernel forward and one backward here (CUDA, since torch 2.9)."""
        torch = sys.modules["torch"]
        return self.kind == "cuda" and hasattr(torch.ops.aten, "_fused_rms_norm_backward")


# In bf16, SDPA's blocks are 2 to 7 times slower below 700 tokens. Memory is short where all weights learn; the gradient
# of the projection is next to the logits.
_CPU = {
    "products_below": 700, "micro_batch_tokens": 2048, "micro_batch_tokens_full": 1024, "positions_at_once": 1024,
    "positions_at_once_full": 512, "softmax_rows": 32, "optimizer_stretch": 1 << 18, "tokens_unread": 1,
    "cache_step": 64, "peak_sizes": (128, 512, 1024, 2048),
}  # fmt: skip
CPU = Backend(kind="cpu", collectives="gloo", **_CPU)  # type: ignore[arg-type]
# A GPU's products need 8,192 rows and columns to reach their peak; each starts without waiting for the one before.
_GPU = {
    "products_below": 0, "micro_batch_tokens": 2048, "micro_batch_tokens_full": 2048, "positions_at_once": 256,
    "positions_at_once_full": 256, "softmax_rows": 0, "optimizer_stretch": 1 << 23, "tokens_unread": 8,
    "cache_step": 256, "peak_sizes": (2048, 4096, 8192),
}  # fmt: skip
BACKENDS = {
    "cpu": CPU,
    "cuda": Backend(kind="cuda", collectives="cpu:gloo,cuda:nccl", **_GPU),  # type: ignore[arg-type]
    "xpu": Backend(kind="xpu", collectives="cpu:gloo,xpu:xccl", **_GPU),  # type: ignore[arg-type]
    "mps": Backend(kind="mps", collectives="gloo", **_GPU),  # type: ignore[arg-type]
}


def backend(device: torch.device | str | None = None) -> Backend:
    """What is known of a device; default that of `in_use`."""
    kind = in_use() if device is None else str(device).partition(":")[0]
    return BACKENDS.get(kind, BACKENDS["cuda"])


def in_use() -> str:
    """The kind of device for models: `TUNELOOP_DEVICE`, else a GPU where there is one; UserError: it is not there."""
    torch = sys.modules.get("torch")
    requested = os.environ.get(DEVICE, "").partition(":")[0]
    if requested and requested not in BACKENDS:
        step = f"choose one of {', '.join(BACKENDS)}"
        raise UserError(f"There is no kind of device {requested!r}", where=DEVICE, next_step=step)
    if torch is None or requested == "cpu":
        return "cpu"

    def is_there(kind: str) -> bool:
        module = getattr(torch.backends if kind == "mps" else torch, kind, None)
        return module is not None and bool(module.is_available())

    kinds = [kind for kind in BACKENDS if kind != "cpu" and is_there(kind)]
    if requested and requested not in kinds:
        step = "unset it, or install the torch build of that device (docs/gpu.md)"
        raise UserError(f"torch sees no {requested} device here", where=DEVICE, next_step=step)
    return requested or (kinds[0] if kinds else "cpu")


def _gpu() -> Any:
    """torch's module of the GPU in use, as `torch.cuda`; None on the processor."""
    kind = in_use()
    return None if kind == "cpu" else getattr(sys.modules["torch"], kind)


def default_dtype(device: torch.device | str | None = None) -> torch.dtype:
    """What models are computed in: `TUNELOOP_DTYPE`, else bfloat16 where the device multiplies it natively.

    Without native bf16 a processor multiplies it some hundred times slower than float32, and computes in that. GPUs
    older than Ampere (capability 8.0) have half precision, whose loss must be scaled (`needs_scaling`). UserError: the
    environment names another dtype.
    """
    import torch

    if requested := os.environ.get(DTYPE):
        if requested not in DTYPES:
            step = f"choose one of {', '.join(DTYPES)}"
            raise UserError(f"Models can't be computed in {requested!r}", where=DTYPE, next_step=step)
        return getattr(torch, requested)  # type: ignore[no-any-return]
    kind = backend(device).kind
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    if kind in ("xpu", "mps"):
        return torch.bfloat16 if kind == "xpu" else torch.float32
    try:
        native = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        native = False
    return torch.bfloat16 if native else torch.float32


Varlen = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor", int], "torch.Tensor"]


def varlen_attention(device: torch.device, dtype: torch.dtype) -> Varlen | None:
    """A kernel for causal attention within rows that follow each other; None where there is none.

    It takes queries, keys and values (N, heads, D), where the rows end (int32, from 0) and the longest row's tokens:
    flash-attn's where it is installed, else torch's own (2.10 and later), on NVIDIA cards from Ampere on, in 16 bits.
    """
    import torch

    halves = (torch.float16, torch.bfloat16)
    if device.type != "cuda" or dtype not in halves or torch.cuda.get_device_capability() < (8, 0):
        return None
    if importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func

        def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, longest: int) -> torch.Tensor:
            mixed: torch.Tensor = flash_attn_varlen_func(q, k, v, ends, ends, longest, longest, causal=True)
            return mixed

        return flash
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return None
    if "enable_gqa" not in inspect.signature(varlen.varlen_attn).parameters:
        return None

    def torchs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, longest: int) -> torch.Tensor:
        options: dict[str, Any] = {"window_size": (-1, 0), "enable_gqa": q.shape[1] != k.shape[1]}
        mixed: Any = varlen.varlen_attn(q, k, v, ends, ends, longest, longest, **options)
        return mixed  # type: ignore[no-any-return]

    return torchs


def needs_scaling(dtype: torch.dtype) -> bool:
    """Whether gradients of this dtype vanish unless the loss is scaled up (Micikevicius et al. 2018, 1710.03740)."""
    return str(dtype) == "torch.float16"


def capacity() -> float:
    """Memory where models are computed: the GPU's as its driver reports it, else what this process may use."""
    gpu = _gpu()
    if gpu is None:
        return machine.memory_capacity()
    if hasattr(gpu, "mem_get_info"):
        return float(gpu.mem_get_info()[1]) / GIB
    return float(gpu.recommended_max_memory()) / GIB


def available() -> float:
    """What this process may come to use: on a GPU what is free and what torch holds already, no more."""
    gpu = _gpu()
    if gpu is None or not hasattr(gpu, "mem_get_info"):
        return capacity()
    return float(gpu.mem_get_info()[0] + gpu.memory_reserved()) / GIB


# Of a card's free memory that weights may take: the rest is for keys, values and what a pass computes.
CARD_SHARE = 0.85


def cards() -> dict[str, float]:
    """The cards that this process sees, with the memory (GiB) of each, none of them used; empty on the processor."""
    gpu = _gpu()
    if gpu is None or not hasattr(gpu, "mem_get_info"):
        return {}
    return {f"{in_use()}:{i}": gpu.get_device_properties(i).total_memory / GIB for i in range(gpu.device_count())}


def cards_with_room() -> dict[str, float]:
    """`cards` with what this process may come to use of each (GiB). Opening a card to see that takes 0.4 GiB of it."""
    gpu = _gpu()
    return {name: float(gpu.mem_get_info(i)[0] + gpu.memory_reserved(i)) / GIB for i, name in enumerate(cards())}


def memory_now() -> float:
    """In use now: torch's tensors on a GPU, else what is resident in this process."""
    gpu = _gpu()
    if gpu is None:
        return machine.resident_memory()
    return float(gpu.memory_allocated() if hasattr(gpu, "memory_allocated") else gpu.current_allocated_memory()) / GIB


def reset_peak_memory() -> None:
    """Start a new measurement of `peak_memory` (on a GPU, or on Linux; elsewhere the peak is the process's)."""
    gpu = _gpu()
    if gpu is None:
        machine.reset_peak_resident_memory()
    elif hasattr(gpu, "reset_peak_memory_stats"):
        gpu.reset_peak_memory_stats()


def peak_memory() -> float:
    """Most in use at a time since `reset_peak_memory`, see `memory_now`."""
    gpu = _gpu()
    if gpu is None:
        return machine.peak_resident_memory()
    peak = gpu.max_memory_allocated() if hasattr(gpu, "max_memory_allocated") else gpu.driver_allocated_memory()
    return float(peak) / GIB


def release_memory() -> None:
    """Give freed memory back to the system, on the processor and on a GPU, so that what is in use is what is needed."""
    gc.collect()
    machine.trim_memory()
    if (gpu := _gpu()) is not None:
        gpu.empty_cache()


@contextlib.contextmanager
def settled_memory() -> Iterator[None]:
    """What is there now (a million objects of the libraries, and the model) stays while the work lasts: the garbage
    collector does not look through it, which takes a fifth of a second each time."""
    release_memory()
    if gc.get_freeze_count():  # a caller has done it
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


# How torch, its allocators, oneDNN and CUDA's libraries say it; only a GPU has an error class.
NO_MEMORY = (
    "out of memory", "can't allocate memory", "could not create a primitive", "could not create a memory",
    "cublas_status_alloc_failed", "cudnn_status_alloc_failed", "cusolver_status_alloc_failed",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, here or on a GPU."""
    return isinstance(error, MemoryError) or any(phrase in str(error).lower() for phrase in NO_MEMORY)


Group = Sequence[T]


def in_parts(
    groups: Iterable[Group[T]],
    work: Callable[[Group[T]], None],
    size: Callable[[Group[T]], int],
    too_large: Callable[[T], UserError],
) -> None:
    """Do the work of each group; where memory runs out, of its halves, and of those of all others that are as large.

    Args:
        work: called again with parts of a group in which it failed, so it keeps a result only when it has all of them.
        size: what a group takes, in any unit.
        too_large: the error of a single member that does not fit.
    """
    left = list(groups)[::-1]
    limit: float = float("inf")
    while left:
        group = left.pop()
        if len(group) == 1 or size(group) < limit:
            if fits(partial(work, group)):
                continue
            if len(group) == 1:
                raise too_large(group[0])
            limit = min(limit, size(group))
        half = (len(group) + 1) // 2
        left += [group[half:], group[:half]]


def fits(work: Callable[[], object]) -> bool:
    """Do the work; False where memory ran out, which is then given back."""
    try:
        work()
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    release_memory()  # only here: while there is an error, it holds on to all tensors of the work
    return False


def names() -> list[str]:
    """Names of the GPUs in use, as their driver says them; empty on the processor and before torch is loaded."""
    gpu = _gpu()
    if gpu is None:
        return []
    if not hasattr(gpu, "get_device_name"):
        return ["Apple GPU"]
    return [gpu.get_device_name(i) for i in range(gpu.device_count())]


def names_in_use() -> list[str]:
    """`names` also before torch is loaded: it is loaded here where the system has a GPU, and only there."""
    if machine.cards():
        with contextlib.suppress(ImportError):
            import torch  # noqa: F401
    return names()


def wait() -> None:
    """Wait until the GPU has done its work, so that a time that is read now is its time."""
    if (gpu := _gpu()) is not None:
        gpu.synchronize()


def put(tensor: Any, device: torch.device) -> Any:
    """A tensor of the host on a device; on its way to a GPU no one waits for it."""
    if backend(device).is_cpu:
        return tensor
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def use(local_rank: int) -> None:
    """Let this process compute on one GPU of several."""
    gpu = _gpu()
    if gpu is not None and hasattr(gpu, "set_device"):
        gpu.set_device(local_rank)


def random_state() -> dict[str, Any]:
    """The state of the random numbers, of the processor and of the GPU in use: dropout draws its own on each."""
    import torch

    state = {"cpu": torch.get_rng_state()}
    if (gpu := _gpu()) is not None:
        state[in_use()] = gpu.get_rng_state()
    return state


def set_random_state(state: Any) -> None:
    """Draw on from what `random_state` gave; that of a device that is not in use is left out."""
    import torch

    if not isinstance(state, dict):  # checkpoints of before GPUs had one
        state = {"cpu": state}
    torch.set_rng_state(state["cpu"])
    gpu = _gpu()
    if gpu is not None and (device_state := state.get(in_use())) is not None:
        with contextlib.suppress(RuntimeError):  # another kind of generator
            gpu.set_rng_state(device_state)
