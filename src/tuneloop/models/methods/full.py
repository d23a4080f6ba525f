"""Full fine-tuning: all weights learn, in the model's dtype; the optimizers keep what rounding to bf16 takes away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from tuneloop.core.errors import UserError
from tuneloop.core.files import Config, read_json_object, write_bytes, write_json
from tuneloop.core.machine import is_first
from tuneloop.core.sharded import whole
from tuneloop.models.methods.method import WHOLE, Footprint, Method, Start, Trainable
from tuneloop.models.nn.families import part_of, reads_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tuneloop.models.load import Model

OWN = "tuneloop.json"


class FullSettings(Config):
    """Settings of `train` that belong to full fine-tuning."""

    optimizer_in_backward: bool = Field(
        False,
        description="of full: update each weight as soon as its gradient is there and free it; saves a number for each "
        "parameter where a step is one micro-batch; gradients are not clipped",
    )


def conflict(settings: Any) -> str | None:
    """What excludes each other in the settings."""
    if settings.optimizer_in_backward and settings.l2_start:
        return "train.optimizer_in_backward and train.l2_start exclude each other"
    return None


def attach(start: Start) -> Trainable:
    """Let all weights learn."""
    model = start.model
    parameters = dict(model.net.requires_grad_(True).named_parameters())
    ready: list[Callable[[nn.Parameter], None]] = []

    def notify(weight: Tensor) -> None:
        for call in ready:
            call(cast("nn.Parameter", weight))

    hooks = [p.register_post_accumulate_grad_hook(notify) for p in parameters.values()]  # type: ignore[no-untyped-call]

    def detach() -> None:
        for hook in hooks:
            hook.remove()
        model.net.requires_grad_(False)

    return Trainable(parameters, lambda folder: save_model(folder, model), detach, ready=ready)


def save_model(folder: Path, model: Model) -> None:
    """Write all weights with configuration and tokenizer, as Transformers loads them; `tuneloop.json` comes last. What
    of the base sees pictures comes along as it is."""
    from safetensors.torch import save

    from tuneloop.models.adapters.lora import state_hash
    from tuneloop.models.load import read_weights

    state = {}
    for name, p in model.net.named_parameters():  # one at a time: a device holds its share and one of them
        tensor = whole(p.detach())
        if is_first():
            state[name] = tensor.cpu().contiguous()
    if not is_first():
        return
    others = read_weights(model.folder, lambda name: not reads_text(name)) if part_of(model.config) else {}
    write_bytes(folder / "model.safetensors", save(state | others, metadata={"format": "pt"}))
    kind = str(next(iter(state.values())).dtype).removeprefix("torch.")
    config = {key: value for key, value in model.config.items() if key not in ("torch_dtype", "quantization_config")}
    write_json(folder / "config.json", {**config, "dtype": kind})
    generation = model.folder / "generation_config.json"
    if generation.is_file():
        write_json(folder / "generation_config.json", read_json_object(generation))
    model.template.save(folder)
    write_json(folder / OWN, {"version": 1, "base_fingerprint": model.fingerprint, "hash": state_hash(state)})


def has_all_weights(folder: Path) -> bool:
    """Whether a run's whole model is here. A merged export has the same files, but names no base."""
    complete = (folder / OWN).is_file() and (folder / "config.json").is_file()
    return complete and "base_fingerprint" in read_json_object(folder / OWN)


def load(model: Model, folder: Path) -> None:
    """Copy saved weights into their base model. Raises UserError: they are another base model's, or damaged."""
    from tuneloop.models.adapters.lora import copy_tensors
    from tuneloop.models.load import read_weights

    if read_json_object(folder / OWN)["base_fingerprint"] != model.fingerprint:
        message, step = "These weights were trained from another base model", "set model= to that one"
        raise UserError(message, where=str(folder), next_step=step)
    copy_tensors(read_weights(folder), dict(model.net.named_parameters()), str(folder))


def resume(model: Model, settings: Any, folder: Path) -> dict[str, Tensor]:
    """The weights of an earlier run. Raises UserError: it had another base model."""
    from tuneloop.models.load import read_weights

    if read_json_object(folder / OWN)["base_fingerprint"] != model.fingerprint:
        where, step = f"train.init={settings.init}", f"set model={folder}"
        raise UserError("That run had another base model", where=where, next_step=step)
    return read_weights(folder)


FULL = Method(
    name="full",
    title="full fine-tuning",
    about="all weights",
    long_title="all weights",
    learning_rate=1e-4,
    attach=attach,
    footprint=Footprint(lambda job: job.shape.parameters, all_weights=True, usual_on_gpu={"optimizer": "adamw-bf16"}),
    settings=FullSettings,
    exclusive={"optimizer_in_backward": "an adapter's gradients are small"},
    conflict=conflict,
    layout=WHOLE,
    load=load,
    resume=resume,
    no_form={"adapter": "This run trained all weights, so there is no adapter"},
)
