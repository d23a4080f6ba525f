"""GGUF weights in fewer bits, by llama.cpp's own code, and which inputs of each matrix matter most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.ui import busy, progress
from tuneloop.inference.llamacpp import LlamaCpp
from tuneloop.models.files import gguf_name
from tuneloop.release.gguf.convert import FLOAT_TYPES

if TYPE_CHECKING:
    import numpy as np

    from tuneloop.models import Model

# Names of llama.cpp's mixtures -> their numbers in `llama_ftype`. K-quants want rows of a multiple of 256, or fall
# back.
QUANTS = {
    "q8_0": 7, "q6_k": 18, "q5_k_m": 17, "q5_k_s": 16, "q5_1": 9, "q5_0": 8, "q4_k_m": 15, "q4_k_s": 14, "q4_1": 3,
    "q4_0": 2, "iq4_nl": 25, "iq4_xs": 30, "q3_k_l": 13, "q3_k_m": 12, "q3_k_s": 11, "q2_k": 10, "q2_k_s": 21,
}  # fmt: skip
NEED_IMPORTANCE = {"q2_k_s"}


def quant_named(name: str) -> str:
    """A type of weights as it is written here: `q4_k_m` for `Q4_K_M`.

    Raises:
        UserError: there is none of that name; the nearest one is named.
    """
    quant, types = name.lower(), [*FLOAT_TYPES, *QUANTS]
    if quant not in types:
        step = f"{did_you_mean(quant, types)} there are {', '.join(types)}".lstrip()
        raise UserError(f"No type of weights named {name!r}", where="--quant", next_step=step)
    return quant


def quantise(source: Path, out: Path, quant: str, importance: Mapping[str, np.ndarray[Any, Any]] | None = None) -> None:
    """Write a GGUF file in fewer bits.

    Args:
        source: in f32, f16 or bf16.
        quant: a key of `QUANTS`.
        importance: see `importance_of`.

    Raises:
        UserError: llama.cpp is not installed or refuses, or there is no room.
    """
    if quant in NEED_IMPORTANCE and not importance:
        raise UserError(f"{quant} needs to know which inputs matter", where="--quant", next_step="add --importance")
    with busy(f"quantising to {quant}"), LlamaCpp(patience=24 * 3600) as llama:
        llama.quantise(source, out, QUANTS[quant], importance)


def importance_of(model: Model, rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray[Any, Any]]:
    """How much each input of each matrix matters: the mean square of what it gets on these rows, by GGUF name.

    It is what llama.cpp calls an importance matrix: errors of weights count by it when their rounding is chosen.

    Args:
        rows: token ids, such as training rows.
    """
    import torch

    from tuneloop.models.adapters import linear_places

    sums: dict[str, torch.Tensor] = {}
    hooks = []
    net: Any = model.net
    for name, module in linear_places(net).items():
        there = gguf_name(f"{name}.weight", net.config.family)
        if there is None:
            continue

        def add(module: Any, inputs: tuple[torch.Tensor, ...], there: str = there) -> None:
            squares = inputs[0].float().square().flatten(0, -2).sum(0)
            sums[there] = sums[there] + squares if there in sums else squares

        hooks.append(module.register_forward_pre_hook(add))
    try:
        with torch.inference_mode():
            for count, ids in enumerate(rows, 1):
                model.hidden(torch.tensor([list(ids)], device=model.device))
                progress("importance of inputs", count, len(rows))
    finally:
        for hook in hooks:
            hook.remove()
    tokens = sum(map(len, rows))
    return {name: (total / tokens).cpu().numpy() for name, total in sums.items()}
