"""LoRA adapters: put into a model's linear layers, written and read in PEFT's layout.

The adapter's matrices are fp32 masters; products run in the model's dtype. PEFT itself computes them in
fp32 and in separate autograd steps, which on CPUs costs more than the bf16 base product they ride on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tuneloop.files import content_hash, read_json, user_errors_of_the_disk, write_bytes, write_json
from tuneloop.types import UserError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "c_attn", "query_key_value", "dense")


class _LoraProduct(torch.autograd.Function):
    """x W' + scale (z A') B' with W frozen, z = x or x after dropout; keeps x, z and z A'."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        a, b = a.to(x.dtype), b.to(x.dtype)
        low = z @ a.t()
        out = torch.nn.functional.linear(x, weight, bias)
        ctx.save_for_backward(z, low, weight, a, b)
        ctx.scale, ctx.shared = scale, z is x
        return out.addmm_(low, b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        z, low, weight, a, b = ctx.saved_tensors
        grad_low = (grad @ b).mul_(ctx.scale)
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        grad_z = None
        if ctx.shared and grad_x is not None:
            grad_x.addmm_(grad_low, a)
        elif ctx.needs_input_grad[1]:
            grad_z = grad_low @ a
        grad_a = (grad_low.t() @ z).float()
        grad_b = (grad.t() @ low).float().mul_(ctx.scale)
        return grad_x, grad_z, None, None, grad_a, grad_b, None


class LoraLinear(nn.Module):
    """A linear layer plus a low-rank update (Hu et al. 2021, arXiv 2106.09685).

    The base keeps its parameter objects, so tied or shared weights stay so. B starts at zero: the
    untrained adapter changes nothing. A starts as in PEFT, uniform in +-1/sqrt(inputs).
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base_layer = base
        self.scale, self.dropout, self.active = scale, dropout, True
        bound = 1 / math.sqrt(base.in_features)
        a = torch.empty(rank, base.in_features, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
        device = base.weight.device
        self.lora_A = nn.Parameter(a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=torch.float32, device=device))

    @property
    def weight(self) -> Tensor:
        """The base layer's weight, for code that looks at shapes and dtypes."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            out: Tensor = self.base_layer(x)
            return out
        flat = x.flatten(0, -2)
        z = torch.dropout(flat, self.dropout, self.training) if self.dropout and self.training else flat
        base = self.base_layer
        parts = (flat, z, base.weight, base.bias, self.lora_A, self.lora_B, self.scale)
        y: Tensor = _LoraProduct.apply(*parts)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], y.shape[-1])


@dataclass(frozen=True)
class LoraShape:
    """What an adapter looks like: rank, alpha, dropout and the ends of the names of the modules it sits in."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


def target_names(net: nn.Module, targets: Sequence[str] | str) -> tuple[str, ...]:
    """The last name parts of the linear layers that get an adapter.

    Args:
        targets: `all-linear` (every linear layer but the vocabulary projection), `attention`, or names.

    Raises:
        UserError: a name that no linear layer of the model has.
    """
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear | LoraLinear) and "lm_head" not in name and "embed" not in name
    }
    linear.discard("base_layer")
    if targets == "all-linear":
        chosen = linear
    elif targets == "attention":
        chosen = linear & set(ATTENTION)
    else:
        chosen = set(targets)
        unknown = chosen - linear
        if unknown:
            raise UserError(
                f"The model has no linear layer named {sorted(unknown)[0]!r}",
                where="train.targets",
                next_step=f"choose from {', '.join(sorted(linear))}, or all-linear, or attention",
            )
    if not chosen:
        raise UserError("No linear layer to adapt", where="train.targets", next_step="set train.targets=all-linear")
    return tuple(sorted(chosen))


def add_lora(net: nn.Module, shape: LoraShape, seed: int) -> list[nn.Parameter]:
    """Put an adapter into `net` in place, freeze everything else, and return the adapter's parameters.

    The start values depend on the seed alone, not on the global random state.
    """
    net.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    ends = tuple(f".{target}" for target in shape.targets)
    places = [
        (name, module)
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) and f".{name}".endswith(ends) and "lm_head" not in name
    ]
    parameters: list[nn.Parameter] = []
    for name, module in places:
        layer = LoraLinear(module, shape.rank, shape.alpha / shape.rank, shape.dropout, generator)
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, layer)
        parameters += [layer.lora_A, layer.lora_B]
    return parameters


def lora_layers(net: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by module name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, LoraLinear)}


def remove_lora(net: nn.Module) -> None:
    """Take the adapter out again; the base model is as it was."""
    for name, layer in lora_layers(net).items():
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, layer.base_layer)


@contextmanager
def lora_disabled(net: nn.Module) -> Iterator[None]:
    """The untouched model for a while."""
    layers = list(lora_layers(net).values())
    before = [layer.active for layer in layers]
    for layer in layers:
        layer.active = False
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer.active = active


def adapter_state(net: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names, copied."""
    state = {}
    for name, layer in lora_layers(net).items():
        state[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A.detach().clone().cpu().contiguous()
        state[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B.detach().clone().cpu().contiguous()
    return state


def load_adapter_state(net: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Copy tensors under PEFT's names into the adapter that `net` has.

    Raises:
        UserError: a tensor is missing or has another shape: the adapter is another model's.
    """
    layers = lora_layers(net)
    expected = {f"base_model.model.{n}.lora_{m}.weight": (n, m) for n in layers for m in "AB"}
    for key in state.keys() - expected.keys():
        raise UserError(
            f"The adapter holds {key}, which this model has no place for",
            where=where,
            next_step="use the base model that the adapter was trained on",
        )
    for key, (name, which) in expected.items():
        parameter = layers[name].lora_A if which == "A" else layers[name].lora_B
        tensor = state.get(key)
        if tensor is None or tensor.shape != parameter.shape:
            found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}, not {tuple(parameter.shape)}"
            raise UserError(
                f"The adapter does not fit this model: {key} {found}",
                where=where,
                next_step="use the base model that the adapter was trained on",
            )
        with torch.no_grad():
            parameter.copy_(tensor)


def save_adapter(
    folder: Path, state: dict[str, Tensor], shape: LoraShape, base_model: str, base_fingerprint: str
) -> None:
    """Write an adapter folder in PEFT's layout; `adapter_config.json` comes last, so a folder that has it is whole."""
    from safetensors.torch import save

    write_bytes(folder / "adapter_model.safetensors", save(state, metadata={"format": "pt"}))
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": shape.rank,
            "lora_alpha": shape.alpha if shape.alpha % 1 else int(shape.alpha),
            "lora_dropout": shape.dropout,
            "target_modules": list(shape.targets),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "use_rslora": False,
            "use_dora": False,
            "modules_to_save": None,
            "revision": None,
        },
    )
    write_json(
        folder / "tuneloop.json", {"version": 1, "base_fingerprint": base_fingerprint, "hash": state_hash(state)}
    )


def load_adapter(net: nn.Module, folder: Path) -> LoraShape:
    """Put the adapter of a PEFT folder into `net`.

    Raises:
        UserError: no adapter there, a kind that is not plain LoRA, or one of another base model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_json(folder / "adapter_config.json")
    odd = [
        key
        for key in ("use_dora", "use_rslora", "fan_in_fan_out", "modules_to_save", "rank_pattern")
        if config.get(key)
    ]
    if config.get("peft_type") != "LORA" or odd:
        raise UserError(
            f"Not a plain LoRA adapter ({', '.join(odd) or config.get('peft_type')})",
            where=str(folder / "adapter_config.json"),
            next_step="merge it with PEFT first and use the merged model's folder",
        )
    targets = config["target_modules"]
    if targets == "all-linear":
        targets = target_names(net, targets)
    elif isinstance(targets, str):  # a regular expression over module names
        targets = [n for n, m in net.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(targets, n)]
    shape = LoraShape(
        config["r"], float(config["lora_alpha"]), float(config.get("lora_dropout", 0.0)), tuple(sorted(targets))
    )
    add_lora(net, shape, seed=0)
    path = folder / "adapter_model.safetensors"
    try:
        with user_errors_of_the_disk(path):
            state = load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"The adapter file is damaged: {error}", where=str(path), next_step="train again, or restore it"
        ) from None
    load_adapter_state(net, state, str(folder))
    return shape


def state_hash(state: dict[str, Tensor]) -> str:
    """Hash of an adapter's tensors: equal exactly when all bits are equal."""
    import hashlib

    digests = {
        name: hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in state.items()
    }
    return content_hash(digests)
