"""Random models of each family in `models/nn/families.py`, as Transformers' own classes write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tuneloop.models.load import read_weights
from tuneloop.models.nn.llama import Llama, LlamaConfig

SIZES: dict[str, Any] = {
    "vocab_size": 211, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama with biases": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig, {"sliding_window": None}),
    "mistral with a window": (transformers.MistralForCausalLM, transformers.MistralConfig, {"sliding_window": 24}),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config, {}),
    "qwen2 with a window": (
        transformers.Qwen2ForCausalLM, transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2},
    ),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True}),
    "smollm3": (transformers.SmolLM3ForCausalLM, transformers.SmolLM3Config, {"no_rope_layer_interval": 2}),
    "phi3": (transformers.Phi3ForCausalLM, transformers.Phi3Config, {"num_key_value_heads": 4}),
    "gemma": (transformers.GemmaForCausalLM, transformers.GemmaConfig, {"head_dim": 16}),
    "gemma3": (
        transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig,
        {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 40, "sliding_window_pattern": 2},
    ),
}  # fmt: skip


def folder_of(name: str, folder: Path, **others: Any) -> Any:
    """A random model of a family in a folder; Transformers' own."""
    model, config, changes = MODELS[name]
    torch.manual_seed(1)
    theirs = model(config(**{**SIZES, **changes, **others}, attn_implementation="eager")).eval()
    for key, parameter in theirs.named_parameters():  # zeros and ones would hide a forgotten weight
        if parameter.dim() == 1:
            centre = 0.0 if ("norm" in key and "gemma" in name) or key.endswith("bias") else 1.0
            torch.nn.init.uniform_(parameter, centre - 0.5, centre + 0.5)
    theirs.save_pretrained(folder)
    return theirs


def ours_of(folder: Path) -> Llama:
    """Our own model of a folder, without a tokenizer."""
    config = json.loads((folder / "config.json").read_text())
    assert LlamaConfig.supports(config)
    net = Llama(LlamaConfig.from_json(config))
    state = read_weights(folder)
    if net.config.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    net.load_state_dict(state)
    return net.eval()
