"""The optimizers: AdamW, AdamW with states in 8 bits, and either of them inside the backward pass."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuneloop.models.sharded import local, whole
from tuneloop.train.config import TrainConfig
from tuneloop.train.distributed import processes
from tuneloop.train.methods import Trainable
from tuneloop.types import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

BETAS = (0.9, 0.999)
MOMENTS = ("exp_avg", "exp_avg_sq")
PLAIN = {"step", *MOMENTS}  # states of a parameter that torch's kernel updates as it is
BLOCK = 64  # neighbours in a row that share the scale of their 8 bits: most widths are multiples of it, so rows are divided over processes whole
# Numbers that are put together in fp32 at a time: on a processor they stay in its cache, on a GPU they are worth starting kernels for.
STRETCH, STRETCH_CUDA = 1 << 17, 1 << 23


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) by torch's fused kernel.

    Of fp32 parameters states and bits are those of `torch.optim.AdamW`, whose first optimizer would import torch's compiler: a second and 0.07 GiB
    of every run, and nothing here compiles updates.

    A bf16 parameter learns as an fp32 one would, for updates are thousands of times smaller than weights and bf16 holds three digits: what rounding to bf16
    takes away is a state of 16 bits, which with the parameter gives the fp32 number, put together a stretch at a time. Its first moment is held in bf16
    (DeepSeek-V3, arXiv 2412.19437, sec. 3.3), the second in fp32: bf16 would not see a decay of a thousandth. With the gradient that is 12 bytes a parameter
    instead of 18 with an fp32 copy.

    Args:
        groups: of parameters, with settings that differ from the common ones.
        tables: 256 numbers from -1 to 1 for moments in 8 bits, each times the greatest of its 64 neighbours (Dettmers et al. 2022,
            arXiv 2110.02861, whose blocks are larger), and 256 from 0 to 1; None: not in 8 bits. Vectors stay as they are.
        settings: `lr`, `weight_decay` and `betas` of all groups that don't say otherwise.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], *, tables: tuple[Tensor, Tensor] | None = None, **settings: Any
    ) -> None:
        self.param_groups = [{"eps": 1e-8, **settings, **group} for group in groups]
        self.tables = tables
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        import torch

        with torch.no_grad():
            for group in self.param_groups:
                learned = [p for p in group["params"] if p.grad is not None]
                states = [self._state(p) for p in learned]
                if states:
                    torch._foreach_add_([state["step"] for state in states], 1)
                plain = [(p, p.grad, s) for p, s in zip(learned, states, strict=True) if set(s) == PLAIN]
                if plain:
                    ours, gradients, theirs = zip(*plain, strict=True)
                    _update(group, ours, gradients, theirs)
                for p, state in zip(learned, states, strict=True):
                    if set(state) != PLAIN:
                        self._update_in_stretches(group, p, state)

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        import torch

        if parameter in self.state:
            return self.state[parameter]
        rounded = parameter.dtype == torch.bfloat16
        state = self.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter, dtype=torch.float32),
        }
        if rounded:
            state["rest"] = torch.zeros_like(parameter, dtype=torch.int16)
        if self.tables and parameter.dim() > 1 and parameter.shape[-1] % BLOCK == 0:
            for name in MOMENTS:
                state[name] = torch.zeros_like(parameter, dtype=torch.uint8)
                a_block = parameter.detach()[..., : parameter.shape[-1] // BLOCK]
                state[f"{name}_scale"] = torch.zeros_like(a_block, dtype=torch.float32).contiguous()
        return state

    def _update_in_stretches(
        self, group: Mapping[str, Any], parameter: nn.Parameter, state: Mapping[str, Tensor]
    ) -> None:
        """AdamW's step on a parameter in bf16, or with moments in 8 bits, of which a stretch at a time is put together in fp32."""
        assert parameter.grad is not None
        weights, gradients = local(parameter).view(-1), local(parameter.grad).flatten()
        states = {name: local(tensor).view(-1) for name, tensor in state.items()}
        tables = dict(zip(MOMENTS, (table.to(weights.device) for table in self.tables or ()), strict=False))
        size = STRETCH_CUDA if parameter.is_cuda else STRETCH
        for start in range(0, len(weights), size):
            part, blocks = slice(start, start + size), slice(start // BLOCK, (start + size) // BLOCK)
            weight, rest = weights[part], states["rest"][part] if "rest" in states else None
            wide = weight if rest is None else with_rest(weight, rest)
            moments = {}
            for name in MOMENTS:
                held, scale = states[name][part], states.get(f"{name}_scale")
                moments[name] = held.float() if scale is None else _from_eight_bits(held, scale[blocks], tables[name])
            _update(group, [wide], [gradients[part].float()], [{"step": states["step"][0], **moments}])
            for name, moment in moments.items():
                held, scale = states[name][part], states.get(f"{name}_scale")
                if scale is not None:
                    _into_eight_bits(moment, held, scale[blocks], tables[name])
                elif held is not moment:
                    held.copy_(moment)
            if rest is not None:
                weight.copy_(wide)
                rest.copy_(_rest(wide, weight))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        for parameter in self._parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The states, by the parameters' places, as `torch.optim` writes them."""
        places = {parameter: place for place, parameter in enumerate(self._parameters())}
        return {
            "state": {places[parameter]: dict(state) for parameter, state in self.state.items()},
            "param_groups": [{**group, "params": [places[p] for p in group["params"]]} for group in self.param_groups],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over the states and the groups' settings."""
        parameters = self._parameters()
        self.state = {
            parameters[place]: {name: value.to(parameters[place].device, copy=True) for name, value in state.items()}
            for place, state in saved["state"].items()
        }
        self.param_groups = [
            {**old, "params": group["params"]}
            for group, old in zip(self.param_groups, saved["param_groups"], strict=True)
        ]

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def _update(
    group: Mapping[str, Any],
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
) -> None:
    """AdamW's step on fp32 tensors, in place."""
    import torch

    steps, means, squares = ([s[name] for s in states] for name in ("step", "exp_avg", "exp_avg_sq"))
    torch._fused_adamw_(
        list(parameters), list(gradients), means, squares, [], steps,
        lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"],
        amsgrad=False, maximize=False,
    )  # fmt: skip


def _from_eight_bits(codes: Tensor, scale: Tensor, table: Tensor) -> Tensor:
    return (table[codes.int()].view(-1, BLOCK) * scale[:, None]).view(-1)


def _into_eight_bits(values: Tensor, codes: Tensor, scale: Tensor, table: Tensor) -> None:
    """The nearest numbers of the table, times the greatest magnitude of each block."""
    import torch

    blocks = values.view(-1, BLOCK)
    torch.amax(blocks.abs(), 1, out=scale)
    between = (table[1:] + table[:-1]) / 2
    codes.copy_(torch.bucketize((blocks / scale.clamp(min=1.2e-38)[:, None]).view(-1), between, out_int32=True))


def with_rest(weight: Tensor, rest: Tensor) -> Tensor:
    """The fp32 numbers of which these are the bf16 ones and what rounding took away."""
    import torch

    return (_bits(weight) + rest).view(torch.float32)


def _rest(wide: Tensor, weight: Tensor) -> Tensor:
    """What rounding fp32 numbers to these bf16 ones has taken away (int32, in the range of 16 bits)."""
    import torch

    # Halfway between two bf16 numbers, rounded down, it is 2^15, one too many: such a number loses its last digit.
    return (wide.view(torch.int32) - _bits(weight)).clamp_(max=2**15 - 1)


def _bits(weight: Tensor) -> Tensor:
    """The bits of bf16 numbers, as those of fp32 numbers (int32)."""
    import torch

    return weight.view(torch.int16).to(torch.int32) << 16


def make_optimizer(trainable: Trainable, config: TrainConfig) -> Any:
    """AdamW, with states in 32 or 8 bits; the multiple of the learning rate stands in each parameter group as `ratio`.

    Raises:
        UserError: states in 8 bits are asked for and bitsandbytes is not installed; paged ones, and there are several processes.
    """
    groups: dict[Any, list[nn.Parameter]] = {}
    for name, parameter in trainable.parameters.items():
        ratio = trainable.ratios.get(name, 1.0)
        # Updated one by one in the backward pass, each weight is a group of its own.
        groups.setdefault((ratio, name) if config.optimizer_in_backward else (ratio, ""), []).append(parameter)
    listed = [{"params": parameters, "ratio": ratio} for (ratio, _), parameters in groups.items()]
    settings: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "betas": BETAS}
    if config.optimizer == "adamw":
        return AdamW(listed, **settings)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "An optimizer with states in 8 bits needs the bitsandbytes package",
            where="train.optimizer",
            next_step="pip install bitsandbytes, or set train.optimizer=adamw",
        )
    if config.optimizer == "adamw-8bit":
        from bitsandbytes.functional import create_dynamic_map

        return AdamW(listed, tables=(create_dynamic_map(signed=True), create_dynamic_map(signed=False)), **settings)
    if processes() > 1:
        raise UserError(
            "Paged states are not divided over processes",
            where="train.optimizer",
            next_step="set train.optimizer=adamw-8bit",
        )
    from bitsandbytes.optim import PagedAdamW8bit

    return _with_rests(PagedAdamW8bit)(listed, **settings)


def _with_rests(kind: Any) -> Any:
    """An optimizer of bitsandbytes that updates bf16 parameters as if they were fp32: it sees one at a time, put together of it and its rest."""
    import torch

    class WithRests(kind):  # type: ignore[misc]
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
            p.copy_(wide)
            rest.copy_(_rest(wide.detach(), p.detach()))

    return WithRests


@dataclass
class UpdatesInBackward:
    """Updates each weight as soon as its gradient is there, and frees the gradient: they never exist all at once (Lv et al. 2023,
    arXiv 2306.09782). The norm over all gradients is known only behind the last update, so nothing is clipped.

    Args:
        optimizer: every weight a parameter group of its own.
        armed: set for the last micro-batch of a step; the gradients of those before add up.
    """

    optimizer: Any
    armed: bool = False
    squares: list[float] = field(default_factory=list)
    groups: dict[int, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.find_groups()

    def find_groups(self) -> None:
        """Look up each weight's group; an optimizer that is given a saved state makes new ones."""
        self.groups = {id(group["params"][0]): group for group in self.optimizer.param_groups}

    def __call__(self, weight: nn.Parameter) -> None:
        """A weight's gradient is there."""
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
        found, self.squares, self.armed = math.sqrt(sum(self.squares)), [], False
        return found
