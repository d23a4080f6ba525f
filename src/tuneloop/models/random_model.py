"""Models of any size with random weights, made where they are computed: for measuring what can't be downloaded or need not be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.device import in_use
from tuneloop.models.load import Model, layers_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tuneloop.models.template import Template

LLAMA_3_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
_LLAMA_3 = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "head_dim": 128,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 131072,
            "tie_word_embeddings": False, "rope_parameters": LLAMA_3_ROPE}  # fmt: skip
# The `config.json` of Llama 3's sizes, and of one that a processor trains in seconds.
SIZES: dict[str, dict[str, Any]] = {
    "1b": {**_LLAMA_3, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "head_dim": 64, "tie_word_embeddings": True},
    "3b": {**_LLAMA_3, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
           "tie_word_embeddings": True},
    "8b": {**_LLAMA_3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70b": {**_LLAMA_3, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "tiny": {**_LLAMA_3, "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
}  # fmt: skip


def random_model(
    config: dict[str, Any],
    template: Template,
    *,
    dtype: torch.dtype,
    device: str = "",
    prepare: Callable[[nn.Module], None] | None = None,
    seed: int = 0,
) -> Model:
    """A Llama with random weights, frozen and set to answer.

    Args:
        config: as a `config.json` has it, see `SIZES`.
        dtype: of the weights, as they are made.
        device: where they are made; default: that in use.
        prepare: as of `load_model`: a layer is brought to its form before the next one is made.
    """
    import torch

    from tuneloop.models.llama import Llama, LlamaConfig

    kind = device or in_use()
    with torch.device("meta"):
        net = Llama(LlamaConfig.from_json(config)).to(dtype)
    torch.manual_seed(seed)
    for layer in layers_of(net):
        _fill(layer, kind)
        if prepare is not None:
            prepare(layer)
    for rest in (net.model.embed_tokens, net.model.norm, net.lm_head):
        _fill(rest, kind)
    if config.get("tie_word_embeddings"):
        net.lm_head.weight = net.model.embed_tokens.weight
    net.requires_grad_(False).eval()
    return Model("random", Path("random"), net, template, config, f"random {seed}")


def _fill(module: Any, device: str) -> None:
    """Give a module's weights memory and values: of matrices so that what passes keeps its size."""
    import torch

    module.to_empty(device=device)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, weight.shape[-1] ** -0.5)
            else:
                weight.fill_(1.0)
