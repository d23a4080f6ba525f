"""LoRA adapters: put into a model's linear layers, written and read in PEFT's layout.

The adapter's matrices are fp32 masters; products run in the model's dtype. PEFT computes them in fp32 and in separate
autograd steps, which on CPUs costs more than the bf16 base product.
"""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tuneloop.core.device import put
from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, read_json_object, user_errors_of_the_disk, write_bytes, write_json
from tuneloop.core.foreign import load_pickled, load_safetensors
from tuneloop.core.patterns import foreign_pattern
from tuneloop.core.sharded import copied, distribute, whole
from tuneloop.core.threads import adapt_threads
from tuneloop.models.adapters.assignment import ATTACHED, Assignment, assignment, forward_assigned
from tuneloop.models.adapters.peft_layout import (
    IN_BASE,
    PEFT_PREFIX,
    PICKLED,
    lora_settings,
    more_than_matrices,
    rank_of,
    scale_of,
)
from tuneloop.models.nn.batch_invariance import is_batch_invariant, least_size
from tuneloop.models.nn.families import LANGUAGE, module_name
from tuneloop.models.nn.quantised import Nf4Linear

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "c_attn", "query_key_value", "dense")
RESTORE = "train again, or restore it"
MERGE = (
    "merge it and measure the model: AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload()"
    ".save_pretrained(MERGED), then tuneloop evaluate MERGED --base BASE"
)
AS_SERVED = "no merge gives the same: serve it with what trained it, then tuneloop evaluate URL --model NAME"

Scales = tuple[float, ...]
Bases = tuple[Nf4Linear | None, ...]


class _Products(torch.autograd.Function):
    """x W' + (z A') (scale B)' of layers that read the same input; z: x after dropout, None: x.

    As one step their gradients of x are summed by the products themselves, and the narrow products with the A matrices
    are one wide one. Weights may be frozen; a layer without an adapter has None for A and B. Keeps z and z A', and x
    where a weight learns. A base in four bits has no weight here and is unpacked for the moment in both passes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor | None, scales: Scales, bases: Bases, *tensors: Tensor | None) -> Any:
        layers = [_Parts(*tensors[i : i + 4]) for i in range(0, len(tensors), 4)]
        adapted = [layer for layer in layers if layer.a is not None]
        a = torch.cat([layer.a for layer in adapted]).to(x.dtype) if adapted else None  # type: ignore[misc]
        of_adapters = x if z is None else z
        low = of_adapters @ a.t() if a is not None else None
        widths = [layer.a.shape[0] for layer in adapted]  # type: ignore[union-attr]
        lows = iter(() if low is None else torch.split(low, widths, 1))
        b = [None if layer.b is None else (layer.b * s).to(x.dtype) for layer, s in zip(layers, scales, strict=True)]
        outs = []
        for layer, base, up in zip(layers, bases, b, strict=True):
            out = torch.nn.functional.linear(x, _unpacked(base, layer.weight, x.dtype), layer.bias)
            outs.append(out if up is None else out.addmm_(next(lows), up.t()))
        trains = any(ctx.needs_input_grad[4::4])
        adapter_input = of_adapters if adapted else None
        ctx.save_for_backward(x if trains else None, adapter_input, low, a, *b, *(la.weight for la in layers))
        ctx.scales, ctx.bases, ctx.shared, ctx.widths = scales, bases, z is None, widths
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.compiler.is_compiling():
            adapt_threads()
        x, z, low, a, *rest = ctx.saved_tensors
        count = len(grads)
        b, weights = rest[:count], rest[count:]
        grad_x = grad_z = None
        of_a: Iterator[Tensor] = iter(())
        if ctx.needs_input_grad[0]:
            for grad, base, weight in zip(grads, ctx.bases, weights, strict=True):
                unpacked = _unpacked(base, weight, grad.dtype)
                grad_x = grad @ unpacked if grad_x is None else grad_x.addmm_(grad, unpacked)
                del unpacked  # one of them is there at a time
        if a is not None:
            grad_low = torch.cat([grad @ up for grad, up in zip(grads, b, strict=True) if up is not None], 1)
            if ctx.shared and grad_x is not None:
                grad_x.addmm_(grad_low, a)
            elif ctx.needs_input_grad[1]:
                grad_z = grad_low @ a
            of_a = iter(torch.split((grad_low.t() @ z).float(), ctx.widths))
        lows = iter(() if low is None else torch.split(low, ctx.widths, 1))
        of_layers: list[Tensor | None] = []
        for i, (grad, up, scale) in enumerate(zip(grads, b, ctx.scales, strict=True)):
            to_weight, to_bias, _, _ = ctx.needs_input_grad[4 + 4 * i : 8 + 4 * i]
            of_layers += [grad.t() @ x if to_weight else None, grad.sum(0) if to_bias else None]
            of_layers += (None, None) if up is None else (next(of_a), (grad.t() @ next(lows)).float().mul_(scale))
        return grad_x, grad_z, None, None, *of_layers


def _unpacked(base: Nf4Linear | None, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    if base is not None:
        return base.weight.to(dtype)
    assert weight is not None
    return weight


class _Parts(NamedTuple):
    """What a layer of `_Products` computes with."""

    weight: Tensor | None
    bias: Tensor | None
    a: Tensor | None
    b: Tensor | None


def side_by_side(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """Outputs of layers with the same input: one autograd step for plain products, one product for all A in answers."""
    if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _outputs_without_gradient(layers, x)
    plain = [
        layer.is_plain if isinstance(layer, LoraLinear) else type(layer) in (nn.Linear, Nf4Linear) for layer in layers
    ]
    if not torch.is_grad_enabled() or assignment() is not None or not all(plain):
        return [layer(x) for layer in layers]
    scales: list[float] = []
    bases: list[Nf4Linear | None] = []
    tensors: list[Any] = []
    for layer in layers:
        base: Any = _base_of(layer)
        in_four_bits = isinstance(base, Nf4Linear)
        a, b, scale = (layer.lora_A, layer.lora_B, layer.scale) if isinstance(layer, LoraLinear) else (None, None, 1.0)
        scales.append(scale)
        bases.append(base if in_four_bits else None)
        tensors += [None if in_four_bits else base.weight, base.bias, a, b]
    flat = x.flatten(0, -2)
    outs: Any = _Products.apply(flat, None, tuple(scales), tuple(bases), *tensors)  # type: ignore[no-untyped-call]
    return [out.view(*x.shape[:-1], out.shape[-1]) for out in outs]


def _base_of(layer: nn.Module) -> nn.Module:
    return layer.base_layer if isinstance(layer, LoraLinear | Switch) else layer


def _outputs_without_gradient(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """`side_by_side` where the stacked A matrices are one product with x, whose parts go to the layers' B."""
    factors = _factors_of(layers, x)
    if factors is None:
        return [layer(x) for layer in layers]
    flat = x.flatten(0, -2)
    first = next(layer for layer, factor in zip(layers, factors, strict=True) if factor is not None)
    a, ranks_of_names = _stacked(first, factors)
    low = flat @ a.t()
    if ranks_of_names is not None:
        now = assignment()
        assert now is not None and now.which is not None
        low.mul_(ranks_of_names.index_select(0, now.which))
    lows = torch.split(low, [0 if factor is None else len(factor.a) for factor in factors], 1)
    outs = []
    for layer, part, of_layer in zip(layers, lows, factors, strict=True):
        out: Tensor = _base_of(layer)(flat)
        out = out if of_layer is None else out.addmm_(part, of_layer.b)
        outs.append(out.view(*x.shape[:-1], out.shape[-1]))
    return outs


class _Factors(NamedTuple):
    """What is added to a layer's output."""

    a: Tensor  # (R, inputs), of one adapter or of several stacked ones
    b: Tensor  # (R, outputs), times the scale
    ranks: Tensor | None = None  # for each of several adapters 1 at its ranks (names, R)


def _factors_of(layers: Sequence[nn.Module], x: Tensor) -> list[_Factors | None] | None:
    """What is added to each layer's output now; None where that is not products alone, or of fewer than two layers."""
    now = assignment()
    factors: list[_Factors | None] = []
    for layer in layers:
        if now is not None and now.mixed:
            if not isinstance(layer, Switch) or now.tokens or not layer.adds_products(now.names):
                return None
            factors.append(layer.factors_of_all(now.names, x.dtype))
            continue
        name = ATTACHED if now is None else now.names[0]
        update = layer.update(name) if isinstance(layer, Switch) else layer if name == ATTACHED else None
        if not isinstance(update, LoraLinear):
            factors.append(None)
        elif update.lora_magnitude_vector is not None or (update.dropout and update.training):
            return None
        else:
            factors.append(update.factors(x.dtype))
    return factors if sum(factor is not None for factor in factors) > 1 else None


def _stacked(first: nn.Module, factors: Sequence[_Factors | None]) -> tuple[Tensor, Tensor | None]:
    """The layers' A in one matrix, and their `ranks` in one; cached at the first that has some while they stay."""
    cached = vars(first).get("_stacked")  # of this thread: another one may put its own there
    if cached is None or any(factor is not before for factor, before in zip(factors, cached[0], strict=True)):
        some = [factor for factor in factors if factor is not None]
        ranks = [factor.ranks for factor in some if factor.ranks is not None]
        cached = list(factors), (torch.cat([factor.a for factor in some]), torch.cat(ranks, 1) if ranks else None)
        vars(first)["_stacked"] = cached
    return cached[1]


class LoraLinear(nn.Module):
    """A linear layer plus a low-rank update (Hu et al. 2021, arXiv 2106.09685).

    The base keeps its parameter objects, so tied or shared weights stay so. B starts at zero: the untrained adapter
    changes nothing. A starts as in PEFT, uniform in +-1/sqrt(inputs).

    `dora` also learns the length of each output's weights (Liu et al. 2024, arXiv 2402.09353).
    """

    def __init__(self, base: nn.Module, name: str, shape: LoraShape, generator: torch.Generator) -> None:
        super().__init__()
        self.base_layer = base
        self.scale, self.dropout = shape.scale_of(name), shape.dropout
        weight, rank = whole(self.weight), shape.rank_of(name)
        outputs, inputs = weight.shape
        bound = 1 / math.sqrt(inputs)
        a = torch.empty(rank, inputs, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
        b = torch.zeros(outputs, rank, dtype=torch.float32)
        self.lora_A = nn.Parameter(a.to(weight.device))
        self.lora_B = nn.Parameter(b.to(weight.device))
        self._cached: tuple[Any, _Factors] | None = None  # see `factors`
        self.lora_magnitude_vector: nn.Parameter | None = None
        if shape.dora:
            self.lora_magnitude_vector = nn.Parameter(weight.float().norm(dim=1))

    @property
    def weight(self) -> Tensor:
        """The base layer's weight, for code that looks at shapes and dtypes."""
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def is_plain(self) -> bool:
        """Whether it computes x W' + scale (x A') B' and nothing else."""
        dropped = self.dropout > 0 and self.training
        special = self.lora_magnitude_vector is not None or dropped
        return not special and isinstance(self.base_layer, nn.Linear | Nf4Linear)

    def parts(self) -> dict[str, nn.Parameter]:
        """What is trained, by its name in PEFT's files."""
        parameters = {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B}
        if self.lora_magnitude_vector is not None:
            parameters["lora_magnitude_vector"] = self.lora_magnitude_vector
        return parameters

    def forward(self, x: Tensor) -> Tensor:
        now = assignment()
        if now is None:
            return self.forward_alone(x)
        return forward_assigned(self.base_layer, lambda name: self if name == ATTACHED else None, x, now)

    def factors(self, dtype: torch.dtype) -> _Factors:
        """A and B in a dtype, for answers; cached if it does not learn: else half of what a GPU starts for a token."""
        if self.lora_A.requires_grad:
            return self._factors(dtype)
        state = (
            dtype,
            is_batch_invariant(),
            *((id(p), p.device, p.dtype, p._version) for p in (self.lora_A, self.lora_B)),
        )
        cached = self._cached  # of this thread: another one may put its own there
        if cached is None or cached[0] != state:
            cached = self._cached = state, self._factors(dtype)
        return cached[1]

    def _factors(self, dtype: torch.dtype) -> _Factors:
        a, b = self.lora_A.to(dtype), (self.lora_B * self.scale).to(dtype)
        if is_batch_invariant() and (missing := least_size(min(a.shape[1], len(b))) - len(a)) > 0:  # ranks of zeros
            a, b = torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing))
        return _Factors(a, b.t())

    def forward_alone(self, x: Tensor) -> Tensor:
        """The layer's output with this adapter on all tokens."""
        base = self.base_layer
        flat = x.flatten(0, -2)
        if not torch.is_grad_enabled() and not (self.dropout and self.training):
            return self.added(flat, base(flat)).view(*x.shape[:-1], -1)
        z = torch.dropout(flat, self.dropout, self.training) if self.dropout and self.training else None
        a, b = self.lora_A, self.lora_B
        bias: Tensor | None = base.bias  # type: ignore[assignment]
        inner = bias if self.lora_magnitude_vector is None else None
        four_bits = base if isinstance(base, Nf4Linear) else None
        tensors = (self.weight if four_bits is None else None, inner, a, b)
        y: Tensor
        (y,) = _Products.apply(flat, z, (self.scale,), (four_bits,), *tensors)  # type: ignore[no-untyped-call]
        if self.lora_magnitude_vector is not None:
            y = y * (self.lora_magnitude_vector / self._norms(a, b)).to(y.dtype)
            y = y if bias is None else y + bias
        return y.view(*x.shape[:-1], y.shape[-1])

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """The base layer's output `y` (tokens, outputs) of `x` (tokens, inputs) with the update; without gradients."""
        of_layer = self.factors(x.dtype)
        low = x @ of_layer.a.t()
        if self.lora_magnitude_vector is None:
            return y.addmm_(low, of_layer.b)
        bias: Tensor | None = self.base_layer.bias  # type: ignore[assignment]
        y = (y if bias is None else y - bias).addmm(low, of_layer.b)
        y = y * (self.lora_magnitude_vector / self._norms(self.lora_A, self.lora_B)).to(y.dtype)
        return y if bias is None else y + bias

    @torch.no_grad()
    def _norms(self, a: Tensor, b: Tensor) -> Tensor:
        """Lengths of the rows of W + scale B A (outputs); no gradient flows through them (DoRA's section 4.3)."""
        kind = self.weight.dtype
        return (self.weight + (self.scale * b.to(kind)) @ a.to(kind)).float().norm(dim=1)  # type: ignore[no-any-return]


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float, magnitude: Tensor | None = None) -> Tensor:
    """The one weight (fp32) that does what a base weight and its adapter do: W + scale B A. `magnitude`: with DoRA, the
    lengths that its rows get (Liu et al. 2024, arXiv 2402.09353, equation 5)."""
    merged = weight.float().addmm(b.float(), a.float(), alpha=scale)
    return merged if magnitude is None else merged * (magnitude.float() / merged.norm(dim=1))[:, None]


@dataclass(frozen=True)
class LoraShape:
    """What an adapter looks like."""

    rank: int
    alpha: float  # the update is scaled by alpha / rank, or alpha / sqrt(rank) with `rslora`
    dropout: float  # on the adapter's input, in training
    targets: tuple[str, ...]  # the ends of the names of the adapted modules
    ranks: tuple[tuple[str, int], ...] = ()  # (end of a module's name, rank) where it differs; the first match counts
    rslora: bool = False  # rank-stabilised scale (Kalajdzievski 2023, arXiv 2312.03732)
    dora: bool = False  # learn the lengths of the weights as well

    def rank_of(self, name: str) -> int:
        """Rank of the update of a module."""
        return next((rank for end, rank in self.ranks if f".{name}".endswith(f".{end}")), self.rank)

    def scale_of(self, name: str) -> float:
        """Factor of the update of a module."""
        rank = self.rank_of(name)
        return self.alpha / (math.sqrt(rank) if self.rslora else rank)


def target_names(net: nn.Module, targets: Sequence[str] | str) -> tuple[str, ...]:
    """The last name parts of the linear layers that get an adapter. `targets`: `all-linear` (every linear layer but the
    vocabulary projection), `attention`, or names. Raises UserError: a name that no linear layer of the model has."""
    linear = {name.rsplit(".", 1)[-1] for name in linear_places(net)}
    groups = {"all-linear": linear, "attention": linear & set(ATTENTION)}
    names = groups[targets] if isinstance(targets, str) and targets in groups else set(targets)
    if unknown := sorted(names - linear):
        step = f"choose from {', '.join(sorted(linear))}, or all-linear, or attention"
        raise UserError(f"The model has no linear layer named {unknown[0]!r}", where="train.targets", next_step=step)
    if not names:
        raise UserError("No linear layer to adapt", where="train.targets", next_step="set train.targets=all-linear")
    return tuple(sorted(names))


def add_lora(net: nn.Module, shape: LoraShape, seed: int) -> list[nn.Parameter]:
    """Put an adapter into `net`, freeze all else, and return its parameters; the start depends on the seed alone."""
    net.requires_grad_(False)
    layers = _new_layers(net, shape, seed)
    for name, layer in layers.items():
        _put_inside(net, name, layer)
    return list(_parameters_of(layers).values())


def _new_layers(net: nn.Module, shape: LoraShape, seed: int) -> dict[str, LoraLinear]:
    """An adapter's layers by module name, not yet put into the model."""
    generator = torch.Generator().manual_seed(seed)
    ends = tuple(f".{target}" for target in shape.targets)
    layers = {name: layer for name, layer in linear_places(net).items() if f".{name}".endswith(ends)}
    return {name: LoraLinear(_base_of(layer), name, shape, generator) for name, layer in layers.items()}


def _parameters_of(layers: Mapping[str, LoraLinear]) -> dict[str, nn.Parameter]:
    """What layers train, under PEFT's names."""
    return {
        f"{PEFT_PREFIX}{name}.{part}": parameter
        for name, layer in layers.items()
        for part, parameter in layer.parts().items()
    }


def lora_layers(net: nn.Module) -> dict[str, LoraLinear]:
    """The layers with an attached adapter, by module name; not those of added adapters."""
    inner = {name: layer.inner if isinstance(layer, Switch) else layer for name, layer in linear_places(net).items()}
    return {name: layer for name, layer in inner.items() if isinstance(layer, LoraLinear)}


def remove_lora(net: nn.Module) -> None:
    """Take the adapter out again; the base model is as it was."""
    for name, layer in lora_layers(net).items():
        _put_inside(net, name, layer.base_layer)


def _put(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, module)


def _put_inside(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one of that name, or into the switch there."""
    holder = net.get_submodule(name)
    if isinstance(holder, Switch):
        holder.inner = module
    else:
        _put(net, name, module)


class Switch(nn.Module):
    """A linear layer, with or without an attached adapter, and the updates of added adapters, by hash."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner  # nn.Linear, Nf4Linear or LoraLinear
        self.updates = nn.ModuleDict()
        self._cached: tuple[Any, _Factors | None] | None = None  # see `factors_of_all`

    @property
    def base_layer(self) -> nn.Module:
        """The layer without any adapter."""
        return self.inner.base_layer if isinstance(self.inner, LoraLinear) else self.inner

    @property
    def weight(self) -> Tensor:
        """The base layer's weight, for code that looks at shapes and dtypes."""
        return self.base_layer.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        now = assignment()
        if now is None:
            return self.inner(x)  # type: ignore[no-any-return]
        return forward_assigned(self.base_layer, self.update, x, now, None if x.device.type == "cpu" else self._add_all)

    def _add_all(self, x: Tensor, y: Tensor, now: Assignment) -> Tensor | None:
        """All updates' parts in two products: between them the ranks of other adapters than a token's are set to zero.
        None where one of them does more than add a product, or is attached and may change."""
        if not self.adds_products(now.names):
            return None
        factors = self.factors_of_all(now.names, x.dtype)
        if factors is None:
            return y
        assert now.which is not None and factors.ranks is not None
        low = (x @ factors.a.t()).mul_(factors.ranks.index_select(0, now.which))
        return y.addmm_(low, factors.b)

    def adds_products(self, names: Sequence[str]) -> bool:
        """Whether these adapters add products here, or nothing, and stay what they are."""
        updates = (self.update(name) for name in names)
        return ATTACHED not in names and not any(u is not None and u.lora_magnitude_vector is not None for u in updates)

    def factors_of_all(self, names: tuple[str, ...], dtype: torch.dtype) -> _Factors | None:
        """The updates' stacked A and B, cached for the last names; None where there is no update."""
        cached = self._cached  # of this thread: another one may put its own there
        if cached is None or cached[0] != (names, dtype):
            updates = [self.update(name) for name in names]
            factors = [None if u is None else u.factors(dtype) for u in updates]
            ones = [torch.ones(1, 0 if factor is None else len(factor.a)) for factor in factors]
            ranks: Tensor = torch.block_diag(*ones)  # type: ignore[no-untyped-call]
            some = [factor for factor in factors if factor is not None]
            stacked = None
            if some:
                a, b = torch.cat([factor.a for factor in some]), torch.cat([factor.b for factor in some])
                stacked = _Factors(a, b, put(ranks.to(dtype), a.device))
            cached = self._cached = (names, dtype), stacked
        return cached[1]

    def drop(self, name: str) -> None:
        """Take the adapter of that name out of this layer."""
        self._cached = None
        vars(self).pop("_stacked", None)
        if name in self.updates:
            del self.updates[name]

    def update(self, name: str) -> LoraLinear | None:
        """The adapter of that name in this layer."""
        layer = self.inner if name == ATTACHED else self.updates[name] if name in self.updates else None  # noqa: SIM401
        return layer if isinstance(layer, LoraLinear) else None


def switches(net: nn.Module) -> dict[str, Switch]:
    """The layers with added adapters, by module name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Switch)}


def add_saved_lora(net: nn.Module, folder: Path, base_fingerprint: str = "") -> str:
    """Load a LoRA adapter next to what `net` has, and return its hash; see `add_adapter`."""
    shape, state = _read_lora(net, folder, base_fingerprint)
    origin = folder / "tuneloop.json"
    quantised = origin.is_file() and read_json_object(origin).get("quantised")
    if quantised and not any(isinstance(m, Nf4Linear) for m in net.modules()):
        message, step = "The adapter was trained on a base in 4 bits, and this base is not", "load the base in 4 bits"
        raise UserError(message, where=str(folder), next_step=f"{step}, or merge the adapter")
    name, updates = state_hash(state), _new_layers(net, shape, seed=0)
    copy_tensors(state, _parameters_of(updates), str(folder))
    for path, update in updates.items():
        layer = net.get_submodule(path)
        switch = layer if isinstance(layer, Switch) else Switch(layer)
        loaded = switch.update(name)
        if loaded is not None and loaded.scale != update.scale:
            message = "The same tensors are loaded already, with another scale (lora_alpha)"
            raise UserError(message, where=str(folder), next_step="unload that adapter first")
        if loaded is None:  # one that is there may be in use
            switch.updates[name] = update.requires_grad_(False).eval()
            _put(net, path, switch)
    return name


@torch.no_grad()
def merge_into_base(net: nn.Module, name: str) -> None:
    """Write an added adapter into the base's weights, and take out whatever adapters there are. Passes then cost what
    the base's do. Rounding to the weights' dtype changes some answers, as in a merged export."""
    for path, switch in switches(net).items():
        update, base = switch.update(name), switch.base_layer
        if update is not None:
            a, b = update.lora_A, update.lora_B
            merged = merged_weight(switch.weight, a, b, update.scale, update.lora_magnitude_vector)
            switch.weight.copy_(merged.to(switch.weight.dtype))
        _put(net, path, base)


def linear_places(net: nn.Module) -> dict[str, nn.Module]:
    """The layers that may have an adapter, by the name that they have in the base model; adapted ones as they are. Of a
    model that also reads pictures these are the layers of its language model."""
    layers: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    find: Any = getattr(net, "get_decoder", None)  # Transformers' models have it
    decoder = find() if find else None
    within = next((f"{name}." for name, module in net.named_modules() if name and module is decoder), "")
    for name, module in net.named_modules():
        if any(word in type(module).__name__ for word in ("Mamba", "BambaMixer", "FalconH1Mixer")):
            inside = (*inside, f"{name}.out_proj")  # whose weight their kernels for GPUs take, without an adapter
        if not name.startswith(within) or (inside and name.startswith(inside)) or "lm_head" in name or "embed" in name:
            continue
        if isinstance(module, nn.Linear | Nf4Linear | LoraLinear | Switch):
            layers[name] = module
            inside = (*inside, f"{name}.")
    return layers


def adapter_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """What an adapter trains, under PEFT's names."""
    return _parameters_of(lora_layers(net))


def adapter_state(net: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names, copied, as any LoRA loads them."""
    state: dict[str, Tensor] = {}
    for name, layer in lora_layers(net).items():
        tensors = {part: copied(tensor.detach()) for part, tensor in layer.parts().items()}
        state |= {f"{PEFT_PREFIX}{name}.{part}": tensor.contiguous() for part, tensor in tensors.items()}
    return state


def copy_tensors(state: Mapping[str, Tensor], parameters: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into parameters by name. Raises UserError: one is missing, or has another shape or no place."""
    next_step = "use the base model and the settings that it was trained with"
    for key in state.keys() - parameters.keys():
        raise UserError(f"The adapter holds {key}, which this model has no place for", where=where, next_step=next_step)
    for key, parameter in parameters.items():
        tensor = state.get(key)
        if tensor is None or tensor.shape != parameter.shape:
            shapes = "" if tensor is None else f"has shape {tuple(tensor.shape)}, not {tuple(parameter.shape)}"
            message = f"The adapter does not fit this model: {key} {shapes or 'is missing'}"
            raise UserError(message, where=where, next_step=next_step)
        with torch.no_grad():
            parameter.copy_(distribute(tensor, parameter))


def save_adapter(
    folder: Path,
    state: dict[str, Tensor],
    shape: LoraShape,
    base_model: str,
    base_fingerprint: str,
    *,
    quantised: bool = False,  # whether the base was held in 4 bits, and so must be again
) -> None:
    """Write an adapter folder in PEFT's layout; `adapter_config.json` comes last, so a folder that has it is whole."""
    alpha = shape.alpha if shape.alpha % 1 else int(shape.alpha)
    others: dict[str, Any] = {"lora_dropout": shape.dropout, "use_rslora": shape.rslora, "use_dora": shape.dora}
    if any(f".{LANGUAGE}." in name for name in state):  # targets are ends of names, and what sees pictures has some too
        others["exclude_modules"] = rf"(?!.*\b{LANGUAGE}\b).*"
    settings = lora_settings(base_model, shape.rank, alpha, shape.targets, dict(shape.ranks), **others)
    origin = {"base_fingerprint": base_fingerprint} | ({"quantised": "nf4"} if quantised else {})
    write_peft(folder, state, settings, origin)


def write_peft(folder: Path, state: dict[str, Tensor], settings: Mapping[str, Any], origin: Mapping[str, str]) -> None:
    """Write tensors and settings as PEFT does, and next to them, in `tuneloop.json`, what base they are for."""
    from safetensors.torch import save

    write_bytes(folder / "adapter_model.safetensors", save(state, metadata={"format": "pt"}))
    write_json(folder / "tuneloop.json", {"version": 1, **origin, "hash": state_hash(state)})
    always = {"task_type": "CAUSAL_LM", "revision": None, "inference_mode": True}
    write_json(folder / "adapter_config.json", {**settings, **always})


def read_adapter(folder: Path, base_fingerprint: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of a PEFT folder. Raises UserError: there is none, it is damaged, or it was trained on
    another base model than that of `base_fingerprint`."""
    from safetensors import SafetensorError

    config = read_json_object(folder / "adapter_config.json")
    origin = read_json_object(folder / "tuneloop.json") if (folder / "tuneloop.json").is_file() else {}
    if base_fingerprint and origin.get("base_fingerprint", base_fingerprint) != base_fingerprint:
        message = f"The adapter was trained on another base model ({config.get('base_model_name_or_path')})"
        raise UserError(message, where=str(folder), next_step="set model= to the base that it was trained on")
    path = folder / "adapter_model.safetensors"
    pickled = folder / PICKLED
    try:
        if not path.is_file() and pickled.is_file():
            path, state = pickled, load_pickled(pickled)
        elif not path.is_file() and (own := [*folder.glob("adapter_model.pt"), *folder.glob("adapter_[0-9]*.pt")]):
            message = "These weights have torchtune's own names, not PEFT's"
            step = "name the folder of an epoch with adapter_model.safetensors, which torchtune writes next to them"
            raise UserError(message, where=str(own[0]), next_step=step)
        else:
            with user_errors_of_the_disk(path):
                state = load_safetensors(path)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        raise UserError(f"The adapter file is damaged: {error}", where=str(path), next_step=RESTORE) from None
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(f"The adapter holds NaN or infinity in {name}", where=str(path), next_step=RESTORE)
    return config, state


def load_adapter(net: nn.Module, folder: Path, base_fingerprint: str = "") -> LoraShape:
    """Put the LoRA of a PEFT folder into `net`. Raises UserError: there is none, or of another kind or base model."""
    shape, state = _read_lora(net, folder, base_fingerprint, alone=True)
    add_lora(net, shape, seed=0)
    copy_tensors(state, adapter_parameters(net), str(folder))
    return shape


def _read_lora(
    net: nn.Module, folder: Path, base_fingerprint: str, *, alone: bool = False
) -> tuple[LoraShape, dict[str, Tensor]]:
    """Shape and tensors of a folder; refused where its settings describe more than our LoRA does. `alone`: what of it
    changes the base itself is put there; no other adapter has that base then."""
    file = folder / "adapter_config.json"
    config = read_json_object(file)
    if odd := more_than_matrices({**config, "use_dora": False, **(dict.fromkeys(IN_BASE) if alone else {})}):
        plain = folder / "pissa_converted"  # LLaMA-Factory's
        step = f"name {plain}" if plain.is_dir() else AS_SERVED if "_niter_" in odd or "alora" in odd else MERGE
        raise UserError(f"Not a plain LoRA adapter: {odd}", where=str(file), next_step=step)
    _, state = read_adapter(folder, base_fingerprint)
    shape = shape_of(net, config)
    if (folder / "tuneloop.json").is_file():
        return shape, state
    state = {PEFT_PREFIX + module_name(name.removeprefix(PEFT_PREFIX)): tensor for name, tensor in state.items()}
    if alone:
        _put_in_base(net, config, state, str(folder))
    return _as_ours(shape, config, state, str(folder))


def _put_in_base(net: nn.Module, config: Mapping[str, Any], state: dict[str, Tensor], where: str) -> None:
    """Take from a state what is no matrix next to a linear layer, and change the base by it: what was trained whole
    (modules_to_save, biases), and products for embeddings, routers and stacked experts (PEFT's `ParamWrapper`)."""
    modules, linear = dict(net.named_modules()), linear_places(net)
    for key in [key for key in sorted(state) if not key.endswith((".lora_B.weight", ".lora_embedding_B"))]:
        name, _, part = key.removeprefix(PEFT_PREFIX).replace(".base_layer", "").partition(".lora_")
        module_name, last = (name, "") if part else name.rpartition(".")[::2]
        module, a = modules.get(module_name, net), state[key].float()
        weights = dict(module.named_parameters(recurse=False))
        if part:
            other = key.replace(f".lora_{part}", ".lora_B.weight" if part == "A.weight" else ".lora_embedding_B")
            with_dora = key.replace(part, "magnitude_vector") in state
            if module_name in linear or part not in ("A.weight", "embedding_A") or other not in state or with_dora:
                continue  # the rest has its place, or is refused
            b, transposed = state.pop(other).float(), getattr(module, "is_transposed", False)
            updates = {name: _product(a, b, weight, transposed) for name, weight in weights.items()}
            last, update = next(
                (update_pair for update_pair in updates.items() if update_pair[1] is not None), ("", None)
            )
            if update is not None:
                scale = scale_of(config, f"{module_name}.{last}" if update.ndim == 3 else module_name)
                a = weights[last] + scale * update
        state.pop(key)
        if last not in weights or weights[last].shape != a.shape:
            message, step = f"The adapter holds {key}, which this model has no place for", "name its base with --base"
            raise UserError(message, where=where, next_step=step)
        # A weight of its own: the base's may be that of another layer too (tied embeddings).
        setattr(module, last, nn.Parameter(distribute(a, weights[last]).to(weights[last]), requires_grad=False))


def _product(a: Tensor, b: Tensor, weight: Tensor, transposed: bool) -> Tensor | None:
    """The update of a weight that is no linear layer's; of experts (expert, out, in), or `transposed` (expert, in,
    out), whose A are one after the other and whose B take turns (PEFT). None: these are no matrices of this weight."""
    experts = len(weight) if weight.ndim == 3 else 1
    pair = a.ndim == b.ndim == 2 and len(a) == b.shape[1] and {len(b), a.shape[1]} == set(weight.shape[-2:])
    if not pair or weight.ndim not in (2, 3) or len(a) % experts:
        return None
    if weight.ndim == 2:
        return b @ a if len(b) == len(weight) else (b @ a).T
    b_ore, a_eri = b.reshape(len(b), -1, experts), a.reshape(experts, -1, a.shape[1])
    return torch.einsum("ore,eri->eio" if transposed else "ore,eri->eoi", b_ore, a_eri)


def _as_ours(
    shape: LoraShape, config: Mapping[str, Any], state: dict[str, Tensor], where: str
) -> tuple[LoraShape, dict[str, Tensor]]:
    """A LoRA of PEFT's as we have it: the modules are those that have tensors, whichever settings chose them, and a
    scale of their own (`alpha_pattern`) is in their matrices."""
    stems = {name.removeprefix(PEFT_PREFIX).partition(".lora_")[0] for name in state}
    if others := sorted(stem for stem in stems if "lm_head" in stem or "embed" in stem):
        message = f"The adapter also changes {others[0]}: it is not a plain LoRA"
        raise UserError(message, where=where, next_step=MERGE)
    ranks = {stem: rank_of(config, stem) for stem in sorted(stems)}
    dora = shape.dora or any(name.endswith(".lora_magnitude_vector") for name in state)  # torchtune's settings lack it
    shape = replace(shape, targets=tuple(sorted(stems)), ranks=tuple(ranks.items()), dora=dora)
    for stem in stems if config.get("alpha_pattern") else ():
        name = f"{PEFT_PREFIX}{stem}.lora_B.weight"
        state[name] = state[name] * (scale_of(config, stem) / shape.scale_of(stem))
    return shape, state


def shape_of(net: nn.Module, config: Mapping[str, Any]) -> LoraShape:
    """The shape that an `adapter_config.json` describes. Raises UserError: a setting is missing or can't be."""
    targets: Any = config.get("target_modules")
    ranks: Any = config.get("rank_pattern") or {}
    names = targets if isinstance(targets, list) else [targets]
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    dropout: Any = config.get("lora_dropout") or 0.0
    counts = [rank, *ranks.values()] if isinstance(ranks, dict) else [None]
    sound = {
        "target_modules": bool(names or config.get("target_parameters"))
        and all(isinstance(name, str) for name in names),
        "r, rank_pattern": all(type(count) is int and 0 < count <= 65536 for count in counts),
        "lora_alpha, lora_dropout": all(type(x) in (int, float) and abs(x) < 1e6 for x in (alpha, dropout)),
    }
    for name, is_sound in sound.items():
        if not is_sound:
            raise UserError(f"The adapter's settings can't be: {name}", where="adapter_config.json", next_step=RESTORE)
    if targets == "all-linear":
        targets = target_names(net, targets)
    elif isinstance(targets, str):  # a regular expression over module names
        pattern = foreign_pattern(targets, "target_modules")
        targets = [name for name in linear_places(net) if pattern.fullmatch(name)]
    variants = bool(config.get("use_rslora")), bool(config.get("use_dora"))
    return LoraShape(rank, float(alpha), float(dropout), tuple(sorted(targets)), tuple(ranks.items()), *variants)


def state_hash(state: dict[str, Tensor]) -> str:
    """Hash of tensors by name: equal exactly when all bits are equal."""
    digests = {
        name: hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in state.items()
    }
    return content_hash(digests)
