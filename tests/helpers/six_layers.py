"""The tiny Llama 3 with six layers, of which two do hardly anything."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from tuneloop.core.files import read_json


def write_six_layers(folder: Path, tiny_llama: Path) -> Path:
    """A model's folder; layers 2 and 3 add a thousandth of what the others add."""
    state = load_file(tiny_llama / "model.safetensors")
    for name, tensor in list(state.items()):
        if ".layers.1." in name:
            for i in range(2, 6):
                state[name.replace(".layers.1.", f".layers.{i}.")] = tensor.clone().roll(i, 0)
    for i in (2, 3):
        for end in ("self_attn.o_proj", "mlp.down_proj"):
            state[f"model.layers.{i}.{end}.weight"] *= 1e-3
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = read_json(tiny_llama / "config.json") | {"num_hidden_layers": 6}
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_llama / name).read_bytes())
    return folder
