"""The optimizers: AdamW, AdamW with states in 8 bits, and either of them inside the backward pass."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuneloop.models.sharded import whole
from tuneloop.train.config import TrainConfig
from tuneloop.train.methods import Trainable
from tuneloop.types import UserError

if TYPE_CHECKING:
    from torch import nn

BETAS = (0.9, 0.999)


def make_optimizer(trainable: Trainable, config: TrainConfig) -> Any:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101); the multiple of the learning rate stands in each parameter group as `ratio`.

    Raises:
        UserError: states in 8 bits are asked for and bitsandbytes is not installed.
    """
    import torch

    groups: dict[Any, list[nn.Parameter]] = {}
    for name, parameter in trainable.parameters.items():
        ratio = trainable.ratios.get(name, 1.0)
        # Updated one by one in the backward pass, each weight is a group of its own.
        groups.setdefault((ratio, name) if config.optimizer_in_backward else (ratio, ""), []).append(parameter)
    listed = [{"params": parameters, "ratio": ratio} for (ratio, _), parameters in groups.items()]
    settings: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "betas": BETAS}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(listed, fused=True, **settings)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "An optimizer with states in 8 bits needs the bitsandbytes package",
            where="train.optimizer",
            next_step="pip install bitsandbytes, or set train.optimizer=adamw",
        )
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
