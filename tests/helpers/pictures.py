"""Small random models that read pictures and texts, as Transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

TEXT = {
    "vocab_size": 49200, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 64, "max_position_embeddings": 4096, "initializer_range": 0.3,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
          "patch_size": 14}  # fmt: skip
TOKENS = {"image_token_index": 49199, "boi_token_index": 49198, "eoi_token_index": 49197}
PROCESSORS = {"gemma3": "Gemma3", "mistral3": "Pixtral"}
KINDS = pytest.mark.parametrize("kind", PROCESSORS)


def folder_with_pictures(kind: str, smollm2: Path, folder: Path) -> Any:
    """Write a model with a tokenizer and what turns pictures into numbers; returns Transformers' own."""
    torch.manual_seed(0)
    if kind == "gemma3":
        text: Any = {**TEXT, "num_hidden_layers": 6, "sliding_window": 24, "query_pre_attn_scalar": 64}
        config = transformers.Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, **TOKENS)
        theirs: Any = transformers.Gemma3ForConditionalGeneration(config)
    else:
        text = {**TEXT, "model_type": "mistral", "num_hidden_layers": 2, "sliding_window": None}
        vision = {**VISION, "model_type": "pixtral", "head_dim": 16}
        config = transformers.Mistral3Config(text_config=text, vision_config=vision, image_token_index=49199)
        theirs = transformers.Mistral3ForConditionalGeneration(config)
    theirs.eval().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(smollm2 / name)
    name = PROCESSORS[kind]
    settings = {"image_processor_type": f"{name}ImageProcessor", "size": {"height": 28, "width": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "processor_class": f"{name}Processor"}))
    return theirs
