"""Adapters that change a model's answers, each by its seed."""

from __future__ import annotations

from pathlib import Path

DEFAULT_TARGETS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


def write_adapter(base: Path, folder: Path, seed: int, strength: float = 0.1) -> Path:
    """Write a LoRA of random weights for a model, in PEFT's layout; returns its folder."""
    import torch

    from tuneloop.models.adapters.lora import LoraShape, adapter_state, add_lora, lora_layers, save_adapter
    from tuneloop.models.load import load_model

    shape = LoraShape(4, 8.0, 0.0, DEFAULT_TARGETS)
    model = load_model(str(base), dtype="float32")
    add_lora(model.net, shape, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model.net).values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * strength)
    save_adapter(folder, adapter_state(model.net), shape, str(base), model.fingerprint)
    return folder
