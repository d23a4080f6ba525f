"""The optimizers: AdamW, AdamW with states in 8 bits, and either of them inside the backward pass."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuneloop.models.sharded import whole
from tuneloop.train.config import TrainConfig
from tuneloop.train.methods import Trainable
from tuneloop.types import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

BETAS = (0.9, 0.999)


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) by torch's fused kernel, with the states of `torch.optim.AdamW` and its bits.

    The first optimizer that `torch.optim` makes imports torch's compiler: a second and 0.07 GiB of every run, and nothing here compiles updates.

    Args:
        groups: of parameters, with settings that differ from the common ones.
        settings: `lr`, `weight_decay` and `betas` of all groups that don't say otherwise.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], **settings: Any) -> None:
        self.param_groups = [{"eps": 1e-8, **settings, **group} for group in groups]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        import torch

        with torch.no_grad():
            for group in self.param_groups:
                learned = [p for p in group["params"] if p.grad is not None]
                if not learned:
                    continue
                states = [self._state(p) for p in learned]
                steps, means, squares = ([s[name] for s in states] for name in ("step", "exp_avg", "exp_avg_sq"))
                torch._foreach_add_(steps, 1)
                torch._fused_adamw_(
                    learned, [p.grad for p in learned], means, squares, [], steps,
                    lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"],
                    amsgrad=False, maximize=False,
                )  # fmt: skip

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        import torch

        if parameter not in self.state:
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self.state[parameter]

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


def make_optimizer(trainable: Trainable, config: TrainConfig) -> Any:
    """AdamW, with states in 32 or 8 bits; the multiple of the learning rate stands in each parameter group as `ratio`.

    Raises:
        UserError: states in 8 bits are asked for and bitsandbytes is not installed.
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
    import torch
    from bitsandbytes import optim

    # Paged states move to the host's memory when a GPU's is short; processors have nothing to page to.
    return (optim.PagedAdamW8bit if torch.cuda.is_available() else optim.AdamW8bit)(listed, **settings)


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
