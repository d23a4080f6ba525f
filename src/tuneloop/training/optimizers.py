"""The optimizers: AdamW, AdamW with states in 8 bits, and either of them inside the backward pass."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tuneloop.core.device import backend
from tuneloop.core.errors import UserError
from tuneloop.core.machine import processes
from tuneloop.core.sharded import local, whole
from tuneloop.models.methods import Trainable
from tuneloop.training.config import TrainConfig

BETAS = (0.9, 0.999)
EPSILON = 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq")
PLAIN = {"step", *MOMENTS}  # states of a parameter that torch's kernel updates as it is
FP8_MOST = 448.0  # of E4M3
BLOCK = 64  # neighbours in a row that share a scale: most widths are multiples of it, so processes divide whole blocks


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) by torch's fused kernel.

    Of fp32 parameters states and bits are those of `torch.optim.AdamW`, whose first optimizer would import torch's
    compiler: a second and 0.07 GiB of every run, and nothing here compiles updates.

    A bf16 parameter learns as an fp32 one would, for updates are thousands of times smaller than weights and bf16 holds
    three digits: what rounding to bf16 takes away is a state of 16 bits, which with the parameter gives the fp32
    number, put together a stretch at a time. Its first moment is held in bf16 (DeepSeek-V3, arXiv 2412.19437, sec.
    3.3), the second in fp32: bf16 would not see a decay of a thousandth. With the gradient that is 12 bytes a parameter
    instead of 18 with an fp32 copy.

    With `eight_bits` the moments of matrices are in 8 bits, in blocks with a scale each as Dettmers et al. 2022 (arXiv
    2110.02861) do: the first as FP8 (E4M3, Micikevicius et al. 2022, arXiv 2209.05433), of the second the fourth root,
    in even steps and never as zero: fine where most are, and no update is divided by what rounding has made nothing.
    `settings` (`lr`, `weight_decay`, `betas`) are of all groups that have no others.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], *, eight_bits: bool = False, **settings: Any) -> None:
        self.param_groups = [{"eps": EPSILON, **settings, **group} for group in groups]
        self.eight_bits = eight_bits
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        with torch.no_grad():
            for group in self.param_groups:
                plain = []
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    state = self._state(p)
                    state["step"].add_(1)
                    if state.keys() == PLAIN:
                        plain.append(p)
                    else:
                        _update_in_stretches(group, p, state)
                if plain:
                    _update(group, plain, [p.grad for p in plain], [self.state[p] for p in plain])

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if parameter in self.state:
            return self.state[parameter]
        state = self.state[parameter] = {"step": torch.zeros((), dtype=torch.float32, device=parameter.device)}
        if self.eight_bits and parameter.dim() > 1 and parameter.shape[-1] % BLOCK == 0:
            blocks = parameter.detach()[..., : parameter.shape[-1] // BLOCK]
            for name in MOMENTS:
                state[name] = torch.zeros_like(parameter, dtype=torch.uint8)
                state[f"{name}_scale"] = torch.zeros_like(blocks, dtype=torch.float32).contiguous()
        else:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
        if parameter.dtype == torch.bfloat16:
            state["rest"] = torch.zeros_like(parameter, dtype=torch.int16)
        return state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        for parameter in self._parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The states, by the parameters' places, as `torch.optim` writes them."""
        places = {parameter: position for position, parameter in enumerate(self._parameters())}
        return {
            "state": {places[parameter]: dict(state) for parameter, state in self.state.items()},
            "param_groups": [{**group, "params": [places[p] for p in group["params"]]} for group in self.param_groups],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over the states and the groups' settings."""
        parameters = self._parameters()
        self.state = {
            parameters[path]: {name: value.to(parameters[path].device, copy=True) for name, value in state.items()}
            for path, state in saved["state"].items()
        }
        self.param_groups = [
            {**old, "params": group["params"]}
            for group, old in zip(self.param_groups, saved["param_groups"], strict=True)
        ]

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def _update(
    group: Mapping[str, Any], parameters: list[Tensor], gradients: list[Tensor], states: Sequence[Mapping[str, Tensor]]
) -> None:
    steps, means, squares = ([s[name] for s in states] for name in ("step", *MOMENTS))
    settings = {name: group[name] for name in ("lr", "weight_decay", "eps")}
    settings |= {"beta1": group["betas"][0], "beta2": group["betas"][1], "amsgrad": False, "maximize": False}
    torch._fused_adamw_(parameters, gradients, means, squares, [], steps, **settings)


def _update_in_stretches(group: Mapping[str, Any], parameter: nn.Parameter, state: Mapping[str, Tensor]) -> None:
    """AdamW's step on a parameter in bf16, or with moments in 8 bits: a stretch at a time is fp32."""
    assert parameter.grad is not None
    weights, gradients = local(parameter).view(-1), local(parameter.grad).flatten()
    states = {name: local(tensor).view(-1) for name, tensor in state.items()}
    size = backend(parameter.device).optimizer_stretch
    for start in range(0, len(weights), size):
        part, blocks = slice(start, start + size), slice(start // BLOCK, (start + size) // BLOCK)
        weight, rest = weights[part], states["rest"][part] if "rest" in states else None
        wide = weight if rest is None else with_rest(weight, rest)
        codes = [states[name][part] for name in MOMENTS]  # of 8 bits with scales; else the moments
        scales = [states[f"{name}_scale"][blocks] for name in MOMENTS if f"{name}_scale" in states]
        if scales:
            mean, square = _mean_of(codes[0], scales[0]), _square_of(codes[1], scales[1])
        else:
            mean, square = (moment.float() for moment in codes)
        moments = {"exp_avg": mean, "exp_avg_sq": square}
        _update(group, [wide], [gradients[part].float()], [{"step": states["step"][0], **moments}])
        if scales:
            _pack_mean(mean, codes[0], scales[0])
            _pack_square(square, codes[1], scales[1])
        else:
            codes[0].copy_(mean)  # the second moment is fp32, and has been updated in place
        if rest is not None:
            round_off(wide, weight, rest)


def _pack_mean(mean: Tensor, codes: Tensor, scale: Tensor) -> None:
    """A first moment as FP8, of which each block has the whole range."""
    blocks = mean.view(-1, BLOCK)
    torch.amax(blocks.abs(), 1, out=scale)
    scaled = blocks / scale.mul_(1 / FP8_MOST).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes.view(torch.float8_e4m3fn).copy_(scaled.clamp_(-FP8_MOST, FP8_MOST).view(-1))


def _mean_of(codes: Tensor, scale: Tensor) -> Tensor:
    return codes.view(torch.float8_e4m3fn).float().view(-1, BLOCK).mul_(scale[:, None]).view(-1)


def _pack_square(square: Tensor, codes: Tensor, scale: Tensor) -> None:
    """A second moment as its fourth root in 255 steps of its block's greatest."""
    blocks = square.view(-1, BLOCK)
    torch.amax(blocks, 1, out=scale)
    share = blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes.copy_(share.sqrt_().sqrt_().mul_(255).round_().clamp_(min=1).view(-1))


def _square_of(codes: Tensor, scale: Tensor) -> Tensor:
    return codes.float().mul_(1 / 255).square_().square_().view(-1, BLOCK).mul_(scale[:, None]).view(-1)


def with_rest(weight: Tensor, rest: Tensor) -> Tensor:
    """The fp32 numbers of which these are the bf16 ones and what rounding took away: the lower 16 bits, with a sign."""
    return weight.view(torch.int16).to(torch.int32).bitwise_left_shift_(16).add_(rest).view(torch.float32)


def round_off(wide: Tensor, weight: Tensor, rest: Tensor) -> None:
    """Split fp32 into bf16 and rest. Their last bit is set: halfway between two bf16 numbers the rest needs a sign."""
    bits = wide.view(torch.int32).bitwise_or_(1)
    weight.copy_(wide)
    rest.copy_(bits)  # to 16 bits: the lower ones


def make_optimizer(trainable: Trainable, config: TrainConfig) -> Any:
    """AdamW, with states in 32 or 8 bits; the multiple of the learning rate is in each parameter group as `ratio`.
    Raises UserError: paged states are requested and bitsandbytes is not installed, or there are several processes."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for name, parameter in trainable.parameters.items():
        ratio = trainable.ratios.get(name, 1.0)
        key = name if config.optimizer_in_backward else ""  # updated in the backward pass, each weight is a group
        groups.setdefault((ratio, key), []).append(parameter)
    listed = [{"params": parameters, "ratio": ratio} for (ratio, _), parameters in groups.items()]
    settings: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "betas": BETAS}
    if config.optimizer != "paged-adamw-8bit":
        return AdamW(listed, eight_bits=config.optimizer == "adamw-8bit", **settings)
    if processes() > 1:
        step = "set train.optimizer=adamw-8bit"
        raise UserError("Paged states are not divided over processes", where="train.optimizer", next_step=step)
    if importlib.util.find_spec("bitsandbytes") is None:
        step = "pip install bitsandbytes, or set train.optimizer=adamw-8bit"
        message = "An optimizer with paged states needs the bitsandbytes package"
        raise UserError(message, where="train.optimizer", next_step=step)
    return _paged_adamw(listed, settings)


def _paged_adamw(groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> Any:
    """That of bitsandbytes, which updates bf16 parameters as if they were fp32, each joined with its rest."""
    from bitsandbytes.optim import PagedAdamW8bit

    class WithRests(PagedAdamW8bit):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.non_castable_tensor_keys.add("rest")

        def init_state(self, group: Any, p: nn.Parameter, *places: int) -> None:
            super().init_state(group, p, *places)
            if p.dtype == torch.bfloat16:
                self.state[p]["rest"] = torch.zeros_like(p, dtype=torch.int16)

        def update_step(self, group: Any, p: nn.Parameter, *places: int) -> None:
            rest = self.state[p].get("rest")
            if rest is None:
                return super().update_step(group, p, *places)  # type: ignore[no-any-return]
            assert p.grad is not None
            wide = torch.nn.Parameter(with_rest(p.detach(), rest))
            wide.grad, self.state[wide] = p.grad.float(), self.state[p]
            super().update_step(group, wide, *places)
            del self.state[wide]
            round_off(wide.detach(), p.detach(), rest)

    return WithRests(groups, **settings)


@dataclass
class UpdatesInBackward:
    """Updates each weight as soon as its gradient is there, and frees that: they never exist all at once (Lv et al.
    2023, arXiv 2306.09782). Their norm is known only behind the last update, so nothing is clipped."""

    optimizer: Any  # with a parameter group for each weight
    armed: bool = False  # set for the last micro-batch of a step; the gradients of those before add up
    squares: list[float] = field(default_factory=list)
    groups: dict[int, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.find_groups()

    def find_groups(self) -> None:
        """Look up each weight's group; an optimizer that is given a saved state makes new ones."""
        self.groups = {id(group["params"][0]): group for group in self.optimizer.param_groups}

    def __call__(self, weight: nn.Parameter) -> None:
        if not self.armed or weight.grad is None:
            return
        self.squares.append(float(whole(weight.grad.detach().float().norm())) ** 2)
        every, self.optimizer.param_groups = self.optimizer.param_groups, [self.groups[id(weight)]]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = every
        weight.grad = None

    def norm(self) -> float:
        """Of the gradients of the step that has ended; a new one begins."""
        norm, self.squares, self.armed = math.sqrt(sum(self.squares)), [], False
        return norm
