"""Prefix tuning: keys and values of virtual tokens in front of every row (Li & Liang 2021, arXiv 2101.00190); layers in
models/adapters/prefix.py.

The prefix starts as those of real text: `prefix_text`, else the first training rows one after another, which begin with
the instruction. It is saved as PEFT's PREFIX_TUNING adapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tuneloop.core.confined import TEXT
from tuneloop.core.errors import UserError
from tuneloop.core.files import Config
from tuneloop.core.machine import is_first
from tuneloop.models.methods.method import Footprint, Method, PlannedJob, Start, Trainable, base_name, without_adapters

if TYPE_CHECKING:
    from torch import Tensor

    from tuneloop.models.load import Model

TOKENS = 64


class PrefixSettings(Config):
    """Settings of `train` that belong to prefix tuning."""

    prefix_tokens: int = Field(TOKENS, ge=1, le=4096, description="virtual tokens of prefix tuning")
    prefix_text: Annotated[str | None, TEXT] = Field(
        None, description="text that the prefix starts from; default: first training rows"
    )


def conflict(settings: Any) -> str | None:
    """What excludes each other in the settings."""
    if settings.packing:
        return "train.packing and train.method=prefix exclude each other: a prefix stands before every row"
    return None


def attach(start: Start) -> Trainable:
    """Put a prefix in front of the model's rows. Raises UserError: no text to start from, or no Llama."""
    from tuneloop.models.adapters.prefix import NAME, add_prefix, remove_prefix, save_prefix

    model, settings = start.model, start.settings
    assert isinstance(settings, PrefixSettings)
    net = model.net
    remove_prefix(net)
    texts = [model.template.encode(settings.prefix_text)] if settings.prefix_text else start.texts
    ids: list[int] = []
    while len(ids) < settings.prefix_tokens and any(texts):
        ids += [i for text in texts[: settings.prefix_tokens] for i in text]
    if not ids:
        message = "There is no text that the prefix could start from"
        raise UserError(message, where="train.prefix_text", next_step="set it")
    virtual = add_prefix(net, ids[: settings.prefix_tokens])

    def save(folder: Path) -> None:
        if is_first():
            save_prefix(folder, net, base_name(model), model.fingerprint)
            model.template.save(folder)

    return Trainable({NAME: virtual.embeddings}, save, detach=lambda: remove_prefix(net))


def load(model: Model, folder: Path) -> None:
    """Put a saved prefix in front of its base model's rows."""
    from tuneloop.models.adapters.prefix import load_prefix

    load_prefix(model.net, folder, model.fingerprint)


def resume(model: Model, settings: Any, folder: Path) -> dict[str, Tensor]:
    """The prefix of an earlier run."""
    from tuneloop.models.adapters.lora import read_adapter

    return read_adapter(folder, model.fingerprint)[1]


def add(model: Model, folder: Path) -> str:
    """Load a saved prefix next to other adapters."""
    from tuneloop.models.adapters.prefix import add_saved_prefix

    return add_saved_prefix(model.net, folder, model.fingerprint)


def trained(job: PlannedJob) -> int:
    """A key and a value for each layer and virtual token; there is no projection."""
    return job.shape.layers * 2 * job.shape.keys * job.prefix_tokens


PREFIX = Method(
    name="prefix",
    title="prefix tuning",
    about="virtual tokens",
    learning_rate=3e-2,
    attach=attach,
    footprint=Footprint(
        trained=trained,
        has_virtual_tokens=True,
        virtual_widths=10,  # 200 and 50 tokens of PEFT's method comparison
        usual={"prefix_tokens": TOKENS},
    ),
    settings=PrefixSettings,
    own_model=True,
    conflict=conflict,
    layout="PREFIX_TUNING",
    folder="adapter",
    load=load,
    add=add,
    resume=resume,
    disabled=without_adapters,
    forms=("adapter",),
    no_form={"merged": "A prefix can't be merged: it precedes the input and changes no weight"},
)
