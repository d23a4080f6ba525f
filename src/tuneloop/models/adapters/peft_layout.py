"""How PEFT writes a LoRA adapter: tensor names, ranks and scales of modules, what distinguishes two. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneloop.core.files import content_hash, read_json_object, sha256_file
from tuneloop.core.patterns import foreign_pattern

PEFT_PREFIX = "base_model.model."
A_END, B_END = ".lora_A.weight", ".lora_B.weight"
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PICKLED = "adapter_model.bin"  # of PEFT up to 0.6 and of torchtune
_SCALES = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")  # change the update
# Settings that one product of two matrices can't say -> what they are.
_MORE_THAN_MATRICES = {
    "use_dora": "DoRA's learned lengths of weights",
    "modules_to_save": "whole layers besides the matrices (modules_to_save)",
    "fan_in_fan_out": "transposed layers (fan_in_fan_out)",
    "lora_bias": "biases of its matrices (lora_bias)",
    "layer_replication": "layers that are there twice (layer_replication)",
    "target_parameters": "weights that are no layer (target_parameters)",
    "alora_invocation_tokens": "matrices that count from some tokens on (alora_invocation_tokens)",
}
IN_BASE = ("modules_to_save", "target_parameters", "bias")  # what changes the base's own weights
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # with these the base's own weights stay as they are


def hash_of_adapter(folder: Path) -> str:
    """Hash of what an adapter changes: tensors and their scales. Raises UserError: a file is missing or unreadable."""
    settings = read_json_object(folder / SETTINGS)
    scales = {key: settings[key] for key in _SCALES if settings.get(key)}
    weights = PICKLED if (folder / PICKLED).is_file() and not (folder / WEIGHTS).is_file() else WEIGHTS
    return content_hash([sha256_file(folder / weights), scales])


def lora_settings(
    base: str, rank: int, alpha: float, targets: Sequence[str], ranks: Mapping[str, int], **others: Any
) -> dict[str, Any]:
    """`adapter_config.json` of a LoRA; `others` are settings that a plain one does not have, such as `use_dora`."""
    plain = {
        "peft_type": "LORA", "base_model_name_or_path": base, "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0,
        "target_modules": list(targets), "rank_pattern": dict(ranks), "alpha_pattern": {}, "bias": "none",
        "fan_in_fan_out": False, "init_lora_weights": True, "use_rslora": False, "use_dora": False,
        "modules_to_save": None, "task_type": "CAUSAL_LM", "revision": None, "inference_mode": True,
    }  # fmt: skip
    return plain | others


def more_than_matrices(settings: Mapping[str, Any]) -> str:
    """What an adapter holds that plain LoRA matrices can't say, in words; empty: nothing."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        return f"an adapter of the kind {kind}"
    parts = [matrix for key, matrix in _MORE_THAN_MATRICES.items() if settings.get(key)]
    if (start := settings.get("init_lora_weights", True)) not in _STARTS:
        parts.append(f"a base whose weights were changed first (init_lora_weights: {start})")
    return " and ".join([*parts, "trained biases"] if settings.get("bias") not in (None, "none") else parts)


def scale_of(settings: Mapping[str, Any], stem: str) -> float:
    """PEFT's factor of the update of the base's module `stem`: alpha / rank, or alpha / sqrt(rank) with rsLoRA."""
    alpha = _of_pattern(settings.get("alpha_pattern"), stem, settings["lora_alpha"])
    rank = rank_of(settings, stem)
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def rank_of(settings: Mapping[str, Any], stem: str) -> int:
    """Rank of the update of a module."""
    return int(_of_pattern(settings.get("rank_pattern"), stem, settings["r"]))


def _of_pattern(pattern: Mapping[str, Any] | None, stem: str, usual: Any) -> Any:
    """A module's value: that of the first expression that its name ends with, as PEFT looks it up."""
    for end, value in (pattern or {}).items():
        if foreign_pattern(rf"^(.*\.)?({end})$", SETTINGS).search(stem):
            return value
    return usual


def stems_of(names: Iterable[str]) -> list[str]:
    """Modules of a plain LoRA's tensors, in order. Raises ValueError with the name of one that is neither A nor B."""
    stems: dict[str, None] = {}
    for name in names:
        if not name.endswith((A_END, B_END)):
            raise ValueError(name)
        stems[name.removeprefix(PEFT_PREFIX).removesuffix(A_END).removesuffix(B_END)] = None
    return list(stems)
