"""A smaller model made of a larger one: the consecutive layers that change its states least are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_bytes, write_json
from tuneloop.models.load import Model, layers_of
from tuneloop.records.distillation import PrunedStudent

if TYPE_CHECKING:
    from torch import Tensor


def layers_to_drop(model: Model, texts: Sequence[Sequence[int]], layers: int) -> PrunedStudent:
    """Which consecutive layers to leave out so that `layers` are left.

    Those before and after which the states of the last token differ least in angle (Gromov et al. 2024, arXiv
    2403.17887, equations 6 and 7). The first and the last layer stay.

    `texts`: token ids of some conversations. Raises UserError: more layers than the model has, or fewer than two.
    """
    import torch
    from torch.nn.functional import cosine_similarity

    modules = layers_of(model.net)
    count = len(modules) - layers
    if layers < 2 or count < 1:
        what = f"A student of {layers} layers can't be made of a model of {len(modules)}"
        raise UserError(what, where=f"--layers {layers}", next_step=f"choose 2 to {len(modules) - 1}")
    before: list[Tensor] = []

    def watch(_: Any, inputs: Any) -> None:
        before.append(inputs[0][0, -1].float())

    hooks = [module.register_forward_pre_hook(watch) for module in modules]
    total = torch.zeros(len(modules) - count - 1)
    try:
        with torch.inference_mode():
            for ids in texts:
                before.clear()
                model.hidden(torch.tensor([list(ids)], device=model.device))
                states = torch.stack(before)
                near = cosine_similarity(states[1 : 1 + len(total)], states[1 + count : 1 + count + len(total)], dim=-1)
                total += near.clamp(-1, 1).arccos().cpu() / torch.pi
    finally:
        for hook in hooks:
            hook.remove()
    first = 1 + int(total.argmin())
    distance = float(total.min() / max(len(texts), 1))
    return PrunedStudent(layers=layers, of=len(modules), dropped=(first, first + count - 1), distance=distance)


def write_pruned(
    config: Mapping[str, Any], names: Iterable[str], tensor: Callable[[str], Tensor], pruned: PrunedStudent, out: Path
) -> None:
    """Write a model without some of its layers into a folder that has its tokenizer; `config.json` comes last.

    `config`: the model's `config.json`. `names`: of its tensors; `tensor` gives one.
    """
    from safetensors.torch import save

    first, last = pruned.dropped
    count = last - first + 1
    state: dict[str, Tensor] = {}
    dtype = None
    # The embedding first: its dtype counts, and an adapted weight comes in fp32.
    for name in sorted(names, key=lambda name: "embed" not in name):
        head, mark, rest = name.partition(".layers.")
        number, _, end = rest.partition(".")
        target = name
        if mark and number.isdigit():
            if first <= int(number) <= last:
                continue
            target = f"{head}.layers.{int(number) - count * (int(number) > last)}.{end}"
        value = tensor(name)
        dtype = dtype or value.dtype
        state[target] = value.to(dtype).contiguous()
    write_bytes(out / "model.safetensors", save(state, metadata={"format": "pt"}))
    settings = dict(config) | {"num_hidden_layers": pruned.layers}
    if isinstance(kinds := config.get("layer_types"), list):
        settings["layer_types"] = [*kinds[:first], *kinds[last + 1 :]]
    write_json(out / "config.json", settings)
