"""The families of dense decoders that our own model computes, by what differs from Llama.

A family is one entry of `FAMILIES`: the planner counts its parameters from it, `llama.py` builds its layers, and
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
# Models that also read pictures, whose language model is of a family above: what Transformers takes where their
# `text_config` is silent, as that of google/gemma-3-4b-it is on most numbers.
PICTURES: dict[str, dict[str, Any]] = {
    "gemma3": {
        "model_type": "gemma3_text", "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 131_072, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    },
    "mistral3": {"model_type": "mistral"},
}  # fmt: skip
LANGUAGE = "language_model"  # what Transformers calls that part of them
# How names of tensors begin in their files -> in Transformers' modules, which are the names here.
_FILE_NAMES = {
    f"{LANGUAGE}.model.": f"model.{LANGUAGE}.", f"{LANGUAGE}.lm_head.": "lm_head.",
    "vision_tower.": "model.vision_tower.", "multi_modal_projector.": "model.multi_modal_projector.",
}  # fmt: skip
PATTERN = 6  # of alternating windows: every so many layers one sees all
GELU = ("gelu_pytorch_tanh", "gelu")  # what Gemma's configurations call it


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a model of several parts the configuration of its language model, else the configuration itself."""
    text = config.get("text_config")
    if not isinstance(text, dict):
        return config
    whole = {key: config[key] for key in ("quantization_config", "tie_word_embeddings") if key in config}
    return {**PICTURES.get(str(config.get("model_type")), {}), **text, **whole}


def part_of(config: Mapping[str, Any]) -> str:
    """What the module of the language model is called in a model that also reads pictures; empty: it is no such one."""
    return LANGUAGE if config.get("model_type") in PICTURES and isinstance(config.get("text_config"), dict) else ""


def module_name(tensor: str) -> str:
    """A tensor's name by Transformers' modules, of its name in a file."""
    for old, new in _FILE_NAMES.items():
        if tensor.startswith(old):
            return new + tensor.removeprefix(old)
    return tensor


def reads_text(tensor: str) -> bool:
    """Whether a tensor, by its name in Transformers, is none of those that see pictures."""
    return not tensor.startswith(("model.vision_tower.", "model.multi_modal_projector."))


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a `config.json`; None: it is not in the table."""
    return FAMILIES.get(str(config.get("model_type")))


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` of a family in the table asks for nothing else than what the table says."""
    if "text_config" in config and not part_of(config):
        return False
    config = language_config(config)
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
    return tuple(window if is_local else 0 for is_local in local) if any(local) else ()


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
