"""QLoRA: LoRA on a base that is held in four bits (Dettmers et al. 2023, arXiv 2305.14314); see models/quantised.py.

It is LoRA in all but three things: the frozen matrices are brought to NF4 with double quantisation and stay so when the
adapter is taken out; `tuneloop.json` next to the adapter says so; and merging adds the update to the four-bit weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.models.methods.lora import LORA, load_adapter
from tuneloop.models.methods.lora import attach as attach_lora
from tuneloop.models.methods.method import Start, Trainable

if TYPE_CHECKING:
    from torch import nn

    from tuneloop.models.load import Model

_NF4 = """, quantization_config=BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
)"""


def prepare(net: nn.Module) -> None:
    """Bring all linear layers but the vocabulary projection to four bits, in place."""
    from tuneloop.models.quantised import quantise

    quantise(net)


def attach(start: Start) -> Trainable:
    """Low-rank matrices on a base in four bits."""
    prepare(start.model.net)
    return attach_lora(start, quantised=True)


def load(model: Model, folder: Path) -> None:
    """Put a saved adapter into its base model, in four bits."""
    prepare(model.net)
    load_adapter(model, folder)


QLORA = replace(
    LORA,
    name="qlora",
    title="QLoRA",
    about="LoRA on a base in 4 bits",
    long_title="QLoRA (LoRA on the base in four bits: NF4, double quantisation)",
    attach=attach,
    footprint=replace(
        LORA.footprint,
        quant="nf4-dq",
        saves="frozen weights in 4 bits",
        saves_over=lambda other: not other.has_virtual_tokens,
    ),
    quantised="nf4",
    prepare=prepare,
    load=load,
    peft_base=(_NF4, "BitsAndBytesConfig"),
)
