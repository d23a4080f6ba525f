"""A GPU that is not there: tensors that say `cuda:0`, hold real numbers in this machine's memory, and keep a GPU's rules.

    with pretend_gpu(Card(gib=24)) as gpu:
        model = load_model(folder)          # its weights are on cuda:0
        ...
    gpu.waits                               # where the host waited for the GPU, and how often

What it shows: tensors of two devices in one operation (refused, as on a GPU), where the host waits (values read, shapes that
depend on data, copies), which attention kernel would run, how many kernels are launched, how many bytes live at most, and
what happens when memory runs out: an operation whose result does not fit raises torch's own error. A CUDA graph does again
what was recorded, on the memory it was recorded with, and can't be recorded where the host waits. With `values=False`
tensors have shapes and no values, so that models of any size go through it.

With `cards=2` there are `cuda:0` and `cuda:1`, each with a memory of its own.

What it can't show: speed, kernels' own rounding, kernels that are missing for a dtype, several streams.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from benchmarks.gpu import FREE
from torch.nn.attention import varlen as torch_varlen
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
CPU = torch.device("cpu")
BLOCK = 512  # bytes that CUDA's allocator hands out at least
GIB = 1024**3

VALUE_READ, SHAPE_READ, TO_HOST, TO_GPU = "value read", "shape depends on data", "copy to the host", "copy to the GPU"
READS_VALUE = {aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default}
READS_SHAPE = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.repeat_interleave.Tensor,
               aten.bincount.default}  # fmt: skip
INDEXES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
# What launches no kernel.
VIEWS = FREE | {"diagonal", "unfold", "chunk"}


class MixedDevices(RuntimeError):
    """What torch says of tensors on two devices."""


@dataclass(frozen=True)
class Card:
    """What the pretended driver reports."""

    name: str = "NVIDIA H100 80GB HBM3"
    gib: float = 79.11
    capability: tuple[int, int] = (9, 0)


class _Thread(threading.local):
    """What CUDA and torch keep for each thread.

    Args:
        recording: the CUDA graph that it records, if it does.
        creates: the card on which a tensor is that is made of no other one now; None: it is on the host.
        current: the card that "cuda" means.
    """

    recording: Graph | None = None
    creates: int | None = None
    current: int = 0


@dataclass
class Gpu:
    """What happened on the pretended GPU.

    Args:
        values: whether tensors hold numbers.
        waits: (kind, place in tuneloop) -> how often the host waited for the GPU.
        attention: (kernel, place) -> calls.
        launches: name of the operation -> kernels launched.
        live, peak: bytes of tensors now and at most, of all cards together.
        cards: how many there are.
        on_card: bytes of tensors now on each.
        refused: tensors for which there was no room.
        thread: what holds in this thread alone.
        graphs: how many have been recorded.
    """

    card: Card = field(default_factory=Card)
    values: bool = True
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    attention: Counter[tuple[str, str]] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    live: int = 0
    peak: int = 0
    refused: int = 0
    cards: int = 1
    on_card: Counter[int] = field(default_factory=Counter)
    thread: _Thread = field(default_factory=lambda: _Thread())
    graphs: int = 0
    _storages: dict[int, list[int]] = field(default_factory=dict)  # storage -> [tensors, bytes, card]
    # Again from the same thread where collecting garbage lets go of a tensor.
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def clear(self) -> None:
        """Count anew; what lives stays counted."""
        for counter in (self.waits, self.attention, self.launches):
            counter.clear()
        self.peak = self.live

    def leave_room(self, size: float) -> None:
        """Let the card have memory for so many bytes beyond what lives now."""
        self.card = replace(self.card, gib=(self.live + size) / GIB)

    def wait(self, kind: str) -> None:
        """Note that the host waits.

        Raises:
            RuntimeError: a graph is being recorded, which knows no values.
        """
        if self.thread.recording is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({kind}, {_place()})")
        self.waits[kind, _place()] += 1

    def record(self, work: Callable[[], object], tensors: Iterable[GpuTensor]) -> None:
        """Put work on tensors that has just been done into the graph that is being recorded, if there is one."""
        if self.thread.recording is not None and self.values:
            self.thread.recording.work.append(work)
            keys = {x.elem.untyped_storage()._cdata for x in tensors}
            self.thread.recording.found |= keys - self.thread.recording.own

    def is_held(self, key: int) -> bool:
        """Whether a tensor still stands on that storage."""
        return key in self._storages

    def hold(self, elem: torch.Tensor, card: int) -> _Held:
        """Count the bytes of what a new tensor stands on, until the tensor lets go of what is returned.

        Raises:
            torch.OutOfMemoryError: the card has not so many.
        """
        storage = elem.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        with self._lock:
            held = self._storages.setdefault(key, [0, size, card])
            held[0] += 1  # before anything may let go of it
            if held[0] == 1:
                if self.on_card[card] + size > self.card.gib * GIB:
                    self.refused += 1
                    del self._storages[key]
                    raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB.")
                if self.thread.recording is not None:
                    self.thread.recording.own.add(key)
                self.live += size
                self.on_card[card] += size
                self.peak = max(self.peak, self.live)
        return _Held(self, key)

    def let_go(self, key: int) -> None:
        """One tensor less stands on it."""
        with self._lock:
            held = self._storages[key]
            held[0] -= 1
            if not held[0]:
                self.live -= held[1]
                self.on_card[held[2]] -= held[1]
                del self._storages[key]


class _Held:
    """Lives as long as its tensor. (A weak reference to the tensor itself would keep torch from swapping parameters.)"""

    def __init__(self, gpu: Gpu, key: int) -> None:
        self.gpu, self.key = gpu, key

    def __del__(self) -> None:
        self.gpu.let_go(self.key)


_now: list[Gpu] = []


class GpuTensor(torch.Tensor):
    """A tensor on the pretended GPU; `elem` is the one that holds its numbers."""

    elem: torch.Tensor
    held: _Held
    card: int

    @staticmethod
    def __new__(cls, elem: torch.Tensor, card: int) -> GpuTensor:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, elem.size(), strides=elem.stride(), storage_offset=elem.storage_offset(), dtype=elem.dtype,
            layout=elem.layout, device=CPU, requires_grad=False,
        )  # fmt: skip
        made.elem, made.card = elem, card
        return made  # type: ignore[no-any-return]

    def __init__(self, elem: torch.Tensor, card: int) -> None:
        self.held = _now[-1].hold(elem, card)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"GpuTensor({self.elem})"

    device = property(lambda self: torch.device("cuda", self.card))  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def get_device(self) -> int:
        return self.card

    def __reduce_ex__(self, protocol: Any) -> Any:  # as a file is read with map_location="cpu"
        return self.elem.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> GpuTensor:
        with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
            made = memo[id(self)] = GpuTensor(self.elem.detach().clone(), self.card)
        if isinstance(self, torch.nn.Parameter):
            made._is_param = True  # type: ignore[attr-defined]  # as torch marks those of other classes
        return made.requires_grad_(self.requires_grad)  # type: ignore[return-value]

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.to("cpu")

    def cuda(self, *_: Any, **__: Any) -> GpuTensor:
        return self

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        device, dtype, copy = parse_to(args, kwargs)
        if device is not None and device.type == "cuda" and (card := card_of(device)) != self.card:
            if self.requires_grad and torch.is_grad_enabled():
                return _ToCard.apply(self, card, dtype)  # type: ignore[no-any-return,no-untyped-call]
            return to_card(self, card, dtype)
        if device is None or device.type == "cuda":
            if dtype is None or dtype == self.dtype:
                return self.clone() if copy else self
            return torch.Tensor.to(self, dtype)
        if device.type == "meta":
            return torch.empty(self.shape, dtype=dtype or self.dtype, device="meta")
        if self.requires_grad and torch.is_grad_enabled():
            return _ToHost.apply(self, dtype)  # type: ignore[no-any-return]
        return to_host(self, dtype)

    def tolist(self) -> Any:
        _now[-1].wait(VALUE_READ)
        return self.elem.tolist() if _now[-1].values else torch.ones(self.shape, dtype=self.dtype).tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def parse_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.device | None, torch.dtype | None, bool]:
    """Device, dtype and copy of a call of `Tensor.to`."""
    if args and isinstance(args[0], torch.Tensor):
        return args[0].device, args[0].dtype, bool(kwargs.get("copy"))
    copy = bool(kwargs.get("copy")) or (len(args) > 3 and args[3] is True)
    with torch._C.DisableTorchFunction():  # type: ignore[attr-defined]  # it makes no tensor on that device
        device, dtype, _, _ = torch._C._nn._parse_to(*args[:3], **{k: v for k, v in kwargs.items() if k != "copy"})
    return device, dtype, copy


def to_host(tensor: GpuTensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A copy in the host's memory; ones where there are no values."""
    _now[-1].wait(TO_HOST)
    if not _now[-1].values:
        return torch.ones(tensor.shape, dtype=dtype or tensor.dtype)
    return tensor.elem.detach().clone().to(dtype or tensor.dtype)


def card_of(device: Any) -> int:
    """The card that a device means.

    Raises:
        RuntimeError: there is none of that number.
    """
    index = device if isinstance(device, int) else torch.device(device).index
    card = _now[-1].thread.current if index is None else index
    if card >= _now[-1].cards:
        raise RuntimeError("CUDA error: invalid device ordinal")
    return card


def to_card(tensor: GpuTensor, card: int, dtype: torch.dtype | None = None) -> GpuTensor:
    """A copy on another card; nobody waits."""
    _now[-1].launches["copy between cards"] += 1
    with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        return GpuTensor(tensor.elem.detach().to(dtype or tensor.dtype, copy=True), card)


class _ToCard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: GpuTensor, card: int, dtype: torch.dtype | None) -> GpuTensor:
        ctx.card, ctx.dtype = x.card, x.dtype
        return to_card(x, card, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        assert isinstance(grads[0], GpuTensor)
        return to_card(grads[0], ctx.card, ctx.dtype), None, None


def to_gpu(tensor: torch.Tensor, dtype: torch.dtype | None = None, card: int | None = None) -> GpuTensor:
    """A copy on the pretended GPU; of pinned memory the host waits for none."""
    if not getattr(tensor, "is_in_pinned_memory", False) or _now[-1].thread.recording is not None:
        _now[-1].wait(TO_GPU)  # a graph would read the host's memory again, which by then holds something else
    with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        if not _now[-1].values:
            return GpuTensor(tensor.detach().to("meta", dtype or tensor.dtype), _chosen(card))
        return GpuTensor(tensor.detach().to(dtype or tensor.dtype, copy=True), _chosen(card))


def _chosen(card: int | None) -> int:
    return _now[-1].thread.current if card is None else card


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: GpuTensor, dtype: torch.dtype | None) -> torch.Tensor:
        ctx.dtype, ctx.card = x.dtype, x.card
        return to_host(x, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return to_gpu(grads[0], ctx.dtype, ctx.card), None


class _ToGpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dtype: torch.dtype | None, card: int) -> GpuTensor:
        ctx.dtype = x.dtype
        return to_gpu(x, dtype, card)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        assert isinstance(grads[0], GpuTensor)
        return to_host(grads[0], ctx.dtype), None, None


def _place() -> str:
    """The innermost line of tuneloop that is being run."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/tuneloop/" in name:
            return f"{name.split('/tuneloop/')[-1]}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, as a GPU would take or refuse it."""
    gpu = _now[-1]
    name = func._schema.name.split("::")[-1]
    tensors = [*tensors_in(args), *tensors_in(kwargs.values())]
    on_gpu = [t for t in tensors if isinstance(t, GpuTensor)]
    if not on_gpu and not (gpu.thread.creates is not None and not tensors):
        return func(*args, **kwargs)
    if func is aten.copy_.default and isinstance(args[0], GpuTensor):
        card = args[0].card  # between cards, too
    else:
        card = on_gpu[0].card if on_gpu else gpu.thread.creates or 0
        if len({t.card for t in on_gpu}) > 1:
            raise MixedDevices(
                f"Expected all tensors to be on the same device, but {func} got those of cards {[t.card for t in on_gpu]}"
            )
    if (
        func is aten._to_copy.default
        and (device := kwargs.get("device")) is not None
        and torch.device(device).type == "meta"
    ):
        return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device="meta")
    if func is aten.copy_.default and not isinstance(args[0], GpuTensor):
        gpu.wait(TO_HOST)
        return args[0].copy_(to_host(args[1]))
    _check_devices(gpu, func, args, tensors)
    if name not in VIEWS:
        gpu.launches[name] += 1
    if func in READS_VALUE:
        gpu.wait(VALUE_READ)
        if not gpu.values:
            return False if func is not aten._local_scalar_dense.default else 1
    if func in READS_SHAPE:
        gpu.wait(SHAPE_READ)
        if func is aten.nonzero.default and not gpu.values:  # as if nothing were zero
            return GpuTensor(torch.zeros(args[0].numel(), args[0].dim(), dtype=torch.long, device="meta"), card)
    if func in INDEXES and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
        gpu.wait(SHAPE_READ)

    def held(x: Any) -> Any:
        if isinstance(x, GpuTensor):
            return x.elem
        return x.to("meta") if isinstance(x, torch.Tensor) and not gpu.values and x.dim() else x

    inner = {k: v for k, v in kwargs.items() if k != "pin_memory"}
    if "device" in inner or (not tensors and not gpu.values):
        inner["device"] = CPU if gpu.values else torch.device("meta")
    held_args, held_kwargs = changed(held, args), {k: changed(held, v) for k, v in inner.items()}
    if gpu.thread.recording is not None and gpu.values:
        gpu.thread.recording.before += [(x, x.clone()) for x in _written(func, held_args, held_kwargs)]
    out = func(*held_args, **held_kwargs)
    if func in READS_VALUE:
        return out
    if gpu.thread.recording is not None and gpu.values and name not in VIEWS:
        gpu.record(lambda: _again(func, held_args, held_kwargs, out), on_gpu)
    returns = _returns(func)
    if returns == "its first argument":
        return args[0]

    def wrapped(x: Any) -> Any:
        return GpuTensor(x, card) if isinstance(x, torch.Tensor) and not isinstance(x, GpuTensor) else x

    made = changed(wrapped, out)
    return return_and_correct_aliasing(func, args, kwargs, made) if returns == "views" else made


@functools.cache
def _returns(func: Any) -> str:
    """What an operation returns: new tensors, its first argument, to which alone it has written, or views."""
    aliased = [i for i, argument in enumerate(func._schema.arguments) if argument.alias_info is not None]
    if not aliased:
        return "new tensors"
    in_place = aliased == [0] and func._schema.arguments[0].alias_info.is_write and len(func._schema.returns) == 1
    return "its first argument" if in_place and torch.Tag.inplace_view not in func.tags else "views"


def tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among the arguments of an operation; torch's own trees take four times as long."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def changed(change: Callable[[Any], Any], value: Any) -> Any:
    """An argument or a result, changed; of a list or a tuple each element."""
    if isinstance(value, list):
        return [changed(change, item) for item in value]
    if isinstance(value, tuple):
        return tuple(changed(change, item) for item in value)
    return change(value)


def _written(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors that an operation writes to."""
    named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [x for name in written for x in tree_leaves(named.get(name)) if isinstance(x, torch.Tensor)]


def _again(func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Do an operation once more on the same memory, its result into that of the first time."""
    for new, old in zip(tree_leaves(func(*args, **kwargs)), tree_leaves(out), strict=True):
        if isinstance(old, torch.Tensor) and new.data_ptr() != old.data_ptr():
            old.copy_(new)


class Graph:
    """A CUDA graph: what is launched while it is recorded, to be launched again on the same tensors.

    Args:
        work: in order.
        own: storages that recording has made, which a GPU keeps for the graph.
        found: those that were there, which somebody else has to keep: a GPU would read whatever is in their place.
        before: what recording has written to, as it was.
    """

    def __init__(self) -> None:
        self.work: list[Callable[[], object]] = []
        self.own: set[int] = set()
        self.found: set[int] = set()
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def capture_begin(self, **_: Any) -> None:
        _now[-1].thread.recording = self
        _now[-1].graphs += 1

    def capture_end(self) -> None:
        """What was done while it was recorded is undone: a GPU has not done it."""
        _now[-1].thread.recording = None
        with torch._C._DisableTorchDispatch(), torch.no_grad():  # type: ignore[attr-defined]
            for written, before in reversed(self.before):
                written.copy_(before)

    def replay(self) -> None:
        assert all(map(_now[-1].is_held, self.found)), "the graph reads memory that has been freed"
        _now[-1].launches["graph"] += 1
        with torch._C._DisableTorchDispatch(), torch.no_grad():  # type: ignore[attr-defined]
            for item in self.work:
                item()


def _check_devices(gpu: Gpu, func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    """Refuse what torch refuses: tensors of both devices, but for single numbers and indices of a tensor on the GPU."""
    others = [t for t in tensors if not isinstance(t, GpuTensor) and t.dim()]
    if not others:
        return
    if func is aten.copy_.default or func is aten._to_copy.default:
        gpu.wait(TO_GPU)
        return
    if func in INDEXES and isinstance(args[0], GpuTensor) and all(any(t is i for i in args[1]) for t in others):
        gpu.wait(TO_GPU)
        return
    raise MixedDevices(
        f"Expected all tensors to be on the same device, but {func} got cuda:0 and cpu {[tuple(t.shape) for t in others]}"
    )


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Where a call's result lies: which device it names, or else that of its tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        gpu = _now[-1]
        before, gpu.thread.creates = gpu.thread.creates, _creates_on_gpu(args, kwargs)
        try:
            if func is torch.Tensor.pin_memory:
                args[0].is_in_pinned_memory = True
                return args[0]
            if func in (torch.Tensor.to, torch.Tensor.cuda) and not isinstance(args[0], GpuTensor):
                named = torch.device("cuda"), None, False
                device, dtype, _ = named if func is torch.Tensor.cuda else parse_to(args[1:], kwargs)
                if _is_cuda(device):
                    x, card = args[0], card_of(device)
                    learns = x.requires_grad and torch.is_grad_enabled()
                    return _ToGpu.apply(x, dtype, card) if learns else to_gpu(x, dtype, card)  # type: ignore[no-untyped-call]
            if func is torch.dropout and isinstance(
                args[0], GpuTensor
            ):  # on a GPU one kernel, which keeps a byte a number
                return torch.native_dropout(*args)[0]
            if _is_cuda(kwargs.get("device")):
                return self._made(func, args, kwargs)
            return func(*args, **kwargs)
        finally:
            gpu.thread.creates = before

    def _made(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What a function makes that was told to make it on the GPU."""
        if isinstance(kwargs.get("generator"), torch.Generator) and kwargs["generator"].device.type == "cpu":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        needs_grad, card = bool(kwargs.pop("requires_grad", False)), card_of(kwargs["device"])
        kwargs["device"] = CPU
        made = func(*args, **kwargs)
        if not isinstance(made, GpuTensor):  # torch.tensor and its kin, which copy what they are given
            made = to_gpu(made, card=card)
        return made.requires_grad_() if needs_grad else made


def _creates_on_gpu(args: Any, kwargs: dict[str, Any]) -> int | None:
    device = kwargs.get("device")
    if device is not None:
        return card_of(device) if _is_cuda(device) else None
    tensors = itertools.chain(tensors_in(args), tensors_in(kwargs.values()))
    return next((x.card for x in tensors if isinstance(x, GpuTensor)), None)


# --- attention ---------------------------------------------------------------------------------------

_sdpa = torch.nn.functional.scaled_dot_product_attention


class _Flash(torch.autograd.Function):
    """Attention that keeps its inputs, its result and a sum for each query, as a fused kernel does."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, bias: Any, causal: bool, scale: float | None) -> Any:
        options = {"is_causal": causal, "scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
        with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
            mask = None if bias is None else bias.elem
            out = _elementwise_sdpa([x.elem.detach() for x in (q, k, v)], mask, options)
        ctx.options = options
        made = GpuTensor(out, q.card)
        elems = [x.elem.detach() for x in (q, k, v)]
        _now[-1].record(
            lambda: out.copy_(_elementwise_sdpa(elems, mask, options)), (q, k, v, *(() if bias is None else (bias,)))
        )
        sums = torch.empty(q.shape[:3], device=q.device)  # the kernel fills it
        ctx.save_for_backward(q, k, v, made, sums, *(() if bias is None else (bias,)))
        _now[-1].launches["attention"] += 1
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        q, k, v, _, _, *bias = ctx.saved_tensors
        with torch._C._DisableTorchDispatch(), torch.enable_grad():  # type: ignore[attr-defined]
            parts = [x.elem.detach().requires_grad_() for x in (q, k, v)]
            out = _elementwise_sdpa(parts, bias[0].elem if bias else None, ctx.options)
            found = torch.autograd.grad(out, parts, grads[0].elem)
        _now[-1].launches["attention backward"] += 1
        return *(GpuTensor(x, q.card) for x in found), None, None, None


def _elementwise_sdpa(parts: list[torch.Tensor], mask: torch.Tensor | None, options: dict[str, Any]) -> torch.Tensor:
    return _sdpa(*parts, attn_mask=mask, **options)  # type: ignore[arg-type]


def kernel_of(mask: Any, grouped: bool) -> str:
    """The kernel that SDPA takes (torch 2.5 to 2.13): with a mask and grouped heads only the one that holds all scores."""
    if mask is None:
        return "flash"
    return "math" if grouped else "efficient"


def attention(
    q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """SDPA; on the pretended GPU it notes its kernel."""
    if not isinstance(q, GpuTensor):
        return _sdpa(
            q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
    for x in (k, v, *(() if attn_mask is None else (attn_mask,))):
        if not isinstance(x, GpuTensor):
            raise MixedDevices("Expected all tensors to be on the same device, but attention got cuda:0 and cpu")
    if not q.dtype == k.dtype == v.dtype:
        raise RuntimeError("Expected query, key, and value to have the same dtype")
    kernel = kernel_of(attn_mask, enable_gqa and q.shape[1] != k.shape[1])
    _now[-1].attention[kernel, _place()] += 1
    if kernel == "math":  # the scores of all heads live at once
        torch.empty(*q.shape[:3], k.shape[2], device=q.device)
    return _Flash.apply(q, k, v, attn_mask, is_causal, scale)


def varlen(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
    window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """torch's attention of rows that lie one behind the other: one kernel for all of them."""
    assert window_size == (-1, 0) and cu_seq_q.dtype == torch.int32 and query.is_contiguous()
    gpu = _now[-1]
    gpu.attention["varlen", _place()] += 1
    # Without values all rows are taken to be as long as the longest.
    ends, out = cu_seq_q.elem.tolist() if gpu.values else [*range(0, len(query), max_q), len(query)], []
    for start, end in itertools.pairwise(ends):
        q, k, v = (x[start:end].transpose(0, 1)[None] for x in (query, key, value))
        out.append(_Flash.apply(q, k, v, None, True, None)[0].transpose(0, 1))  # type: ignore[no-untyped-call]
    gpu.launches["attention"] -= len(out) - 1
    return torch.cat(out)


# --- normalisation -----------------------------------------------------------------------------------

_rms_norm = torch.nn.functional.rms_norm


class _FusedNorm(torch.autograd.Function):
    """RMSNorm that keeps its input and a number for each row, as CUDA's kernel does (torch 2.9 and later)."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, eps: float) -> Any:
        with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
            elem, scale = x.elem.detach(), weight.elem.detach()
            out = _rms_norm(elem, scale.shape, scale, eps)
        _now[-1].record(lambda: out.copy_(_rms_norm(elem, scale.shape, scale, eps)), (x, weight))
        ctx.save_for_backward(x, weight, torch.empty(x.shape[:-1], device=x.device))
        ctx.eps = eps
        _now[-1].launches["rms_norm"] += 1
        return GpuTensor(out, x.card)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, _ = ctx.saved_tensors
        with torch._C._DisableTorchDispatch(), torch.enable_grad():  # type: ignore[attr-defined]
            parts = [part.elem.detach().requires_grad_() for part in (x, weight)]
            found = torch.autograd.grad(_rms_norm(parts[0], weight.shape, parts[1], ctx.eps), parts, grads[0].elem)
        _now[-1].launches["rms_norm backward"] += 1
        of_weight = GpuTensor(found[1], x.card) if ctx.needs_input_grad[1] else None
        return GpuTensor(found[0], x.card), of_weight, None


def rms_norm(x: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    """RMSNorm; on the pretended GPU one kernel forward and one backward."""
    if not isinstance(x, GpuTensor):
        return _rms_norm(x, normalized_shape, weight, eps)
    if not isinstance(weight, GpuTensor):
        raise MixedDevices("Expected all tensors to be on the same device, but rms_norm got cuda:0 and cpu")
    assert x.dtype == weight.dtype, "CUDA's kernel takes one dtype"
    return _FusedNorm.apply(x, weight, eps)


@contextlib.contextmanager
def in_this_thread() -> Iterator[None]:
    """Another thread than that of `pretend_gpu` computes on the pretended GPU too: torch keeps its modes for each thread."""
    with _Dispatch(), _Functions():
        yield


# --- the whole ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def pretend_gpu(card: Card = Card(), *, values: bool = True, cards: int = 1) -> Iterator[Gpu]:
    """Within it, torch has a GPU.

    Args:
        card: what its driver reports.
        values: whether tensors hold numbers; without, models of any size fit, and every value that is read is 1.
        cards: how many of them there are.
    """
    bitsandbytes: Any = None
    with contextlib.suppress(ImportError):  # imported later it would take its CUDA library, which is not there
        bitsandbytes = importlib.import_module("bitsandbytes")
    gpu = Gpu(card, values, cards=cards)

    def free(device: Any = None) -> int:
        return int(gpu.card.gib * GIB) - gpu.on_card[card_of("cuda" if device is None else device)]

    cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: gpu.cards,
        "current_device": lambda: gpu.thread.current,
        "set_device": lambda device: setattr(gpu.thread, "current", device),
        "get_device_name": lambda device=None: card.name,
        "get_device_capability": lambda device=None: card.capability,
        "get_device_properties": lambda device=None: SimpleNamespace(
            name=card.name, total_memory=int(gpu.card.gib * GIB), major=card.capability[0], minor=card.capability[1],
            multi_processor_count=132,
        ),
        "is_bf16_supported": lambda *args, **kwargs: card.capability >= (8, 0),
        "mem_get_info": lambda device=None: (free(device), int(gpu.card.gib * GIB)),
        "memory_allocated": lambda device=None: int(gpu.card.gib * GIB) - free(device),
        "memory_reserved": lambda device=None: int(gpu.card.gib * GIB) - free(device),
        "max_memory_allocated": lambda device=None: gpu.peak,
        "max_memory_reserved": lambda device=None: gpu.peak,
        "reset_peak_memory_stats": lambda device=None: setattr(gpu, "peak", gpu.live),
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: gpu.wait("synchronize"),
        "get_rng_state": lambda device="cuda": torch.get_rng_state(),
        "set_rng_state": lambda state, device="cuda": None,
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state_all": lambda states: None,
        "manual_seed_all": lambda seed: None,
        "CUDAGraph": Graph,
        "Stream": lambda *args, **kwargs: SimpleNamespace(wait_stream=lambda other: None),
        "current_stream": lambda device=None: SimpleNamespace(wait_stream=lambda other: None),
        "stream": lambda stream: contextlib.nullcontext(),
    }  # fmt: skip
    functions = _Functions()
    run_backward = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def with_functions(*args: Any, **kwargs: Any) -> Any:
        # Within a call that `_Functions` handles it is off; what custom gradients call has to pass it all the same.
        with functions:
            return run_backward(*args, **kwargs)

    patched: list[tuple[Any, str, Any]] = [
        *((torch.cuda, name, value) for name, value in cuda.items()),
        (torch, "inference_mode", torch.no_grad),
        (torch.autograd, "_engine_run_backward", with_functions),
        (torch.nn.functional, "scaled_dot_product_attention", attention),
        (torch.nn.functional, "rms_norm", rms_norm),
        (torch_varlen, "varlen_attn", varlen),
    ]
    if bitsandbytes is not None:  # it keeps its table of codes on the device of the first call, for the whole process
        patched.append((bitsandbytes.functional, "name2qmap", {}))
    before = [(location, name, getattr(location, name)) for location, name, _ in patched]
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    for path, name, value in patched:
        setattr(path, name, value)
    _now.append(gpu)
    try:
        with _Dispatch(), functions:
            yield gpu
    finally:
        _now.pop()
        for path, name, value in before:
            setattr(path, name, value)
        torch.__future__.set_swap_module_params_on_conversion(swap)
