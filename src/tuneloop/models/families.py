"""The families of dense decoders that our own model computes, by what differs from Llama.

A family is one entry of `FAMILIES`: the planner counts its parameters from it, `models/llama.py` builds its layers, and
GGUF files are read and written by it. What is not in the table (soft caps, experts, other positions) is left to
Transformers' classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """How a family's layers differ from Llama's."""

    qkv_bias: bool = False  # biases of queries, keys and values, whatever `attention_bias` says
    qk_norm: bool = False  # each head's queries and keys are normalised before they get their positions
    fused: bool = False  # one matrix for queries, keys and values, and one for gate and up
    four_norms: bool = False  # what attention and feed-forward give is normalised, too, before it is added
    zero_centred: bool = False  # norms multiply by 1 + weight
    scaled_embedding: bool = False  # embeddings times the root of the hidden size
    activation: Literal["silu", "gelu"] = "silu"  # of the gate; `gelu` is its tanh approximation
    tied: bool = False  # what a `config.json` without `tie_word_embeddings` means
    window: Literal["", "all", "alternating", "asked"] = ""  # which layers see only `sliding_window` tokens, see below
    unrotated_every: int = 0  # every so many layers one has no positions; 0: all have some
    theta: float = 10_000.0  # base of the positions where `config.json` has none
    local_theta: float = 0.0  # base of the positions in layers with a window; 0: as in the others
    gguf: str = ""  # what llama.cpp calls it in GGUF files
    interleaved: bool = False  # in GGUF the halves of each head's queries and keys take turns


LLAMA = Family(gguf="llama", interleaved=True)
_GEMMA = Family(zero_centred=True, scaled_embedding=True, activation="gelu", tied=True, gguf="gemma")
FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": replace(LLAMA, window="all"),
    "qwen2": Family(qkv_bias=True, window="asked", gguf="qwen2"),
    "qwen3": Family(qk_norm=True, window="asked", gguf="qwen3"),
    "smollm3": Family(tied=True, unrotated_every=4, gguf="smollm3", interleaved=True),
    "phi3": Family(fused=True, window="all", gguf="phi3"),
    "gemma": _GEMMA,
    "gemma3_text": replace(
        _GEMMA,
        qk_norm=True,
        four_norms=True,
        window="alternating",
        theta=1_000_000.0,
        local_theta=10_000.0,
        gguf="gemma3",
    ),
}
PATTERN = 6  # of alternating windows: every so many layers one sees all
GELU = ("gelu_pytorch_tanh", "gelu")  # what Gemma's configurations call it


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a `config.json`; None: it is not in the table."""
    return FAMILIES.get(str(config.get("model_type")))


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` of a family in the table asks for nothing else than what the table says."""
    family = family_of(config)
    if family is None or config.get("quantization_config") or config.get("use_bidirectional_attention"):
        return False
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if family.activation == "gelu" and not config.get("hidden_activation") and not config.get("hidden_act"):
        activation = GELU[0]
    caps = ("final_logit_softcapping", "attn_logit_softcapping")
    if any(config.get(cap) for cap in caps) or activation not in (GELU if family.activation == "gelu" else ("silu",)):
        return False
    return bool(family.window) or not config.get("use_sliding_window")


def windows_of(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """How many tokens each layer sees, itself included, 0: all of them; empty: no layer has a window.

    `all`: every layer where `sliding_window` is set. `asked`: those from `max_window_layers` on where
    `use_sliding_window` is. `alternating`: all but every sixth. `layer_types` says it for each layer where it is given.
    """
    family = family_of(config)
    window = config.get("sliding_window")
    if family is None or not family.window or type(window) is not int or window <= 0:
        return ()
    if family.window == "asked" and not config.get("use_sliding_window"):
        return ()
    types = config.get("layer_types")
    if isinstance(types, list) and len(types) == layers and family.window != "all":
        local = [kind == "sliding_attention" for kind in types]
    elif family.window == "alternating":
        pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or PATTERN
        local = [bool((layer + 1) % int(pattern)) for layer in range(layers)]
    else:
        first = int(config.get("max_window_layers") or 0) if family.window == "asked" else 0
        local = [layer >= first for layer in range(layers)]
    return tuple(window if each else 0 for each in local) if any(local) else ()


def unrotated_of(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """The layers without positions."""
    family = family_of(config)
    if family is None or not family.unrotated_every:
        return ()
    uses = config.get("no_rope_layers")  # of each layer 1 where it has positions, in spite of the name
    if isinstance(uses, list) and len(uses) == layers:
        return tuple(layer for layer, has in enumerate(uses) if not has)
    every = int(config.get("no_rope_layer_interval") or family.unrotated_every)
    return tuple(layer for layer in range(layers) if (layer + 1) % every == 0)
