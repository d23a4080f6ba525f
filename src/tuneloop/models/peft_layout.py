"""How PEFT writes a LoRA adapter: names of its tensors, the rank and scale of each module, what distinguishes two. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tuneloop.core.files import content_hash, read_json_object, sha256_file
from tuneloop.core.patterns import foreign_pattern

PEFT_PREFIX = "base_model.model."
A_END, B_END = ".lora_A.weight", ".lora_B.weight"
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_SCALES = (
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
)  # settings that change the update


def hash_of_adapter(folder: Path) -> str:
    """Hash of all that an adapter changes in a model: its tensors, and the settings by which they are scaled.

    Two adapters with equal matrices and another `lora_alpha` give other answers, so the hash of the tensors is not enough.

    Args:
        folder: in PEFT's layout.

    Raises:
        UserError: a file is missing or unreadable.
    """
    settings = read_json_object(folder / SETTINGS)
    scales = {key: settings[key] for key in _SCALES if settings.get(key)}
    return content_hash([sha256_file(folder / WEIGHTS), scales])


def scale_of(settings: Mapping[str, Any], stem: str) -> float:
    """What PEFT multiplies the update of a module by: alpha / rank, or alpha / sqrt(rank) with rsLoRA; alpha too may differ by module.

    Args:
        settings: `adapter_config.json`.
        stem: name of the module in the base model.
    """
    alpha = _of_pattern(settings.get("alpha_pattern"), stem, settings["lora_alpha"])
    rank = rank_of(settings, stem)
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def rank_of(settings: Mapping[str, Any], stem: str) -> int:
    """Rank of the update of a module."""
    return int(_of_pattern(settings.get("rank_pattern"), stem, settings["r"]))


def _of_pattern(pattern: Mapping[str, Any] | None, stem: str, usual: Any) -> Any:
    """A module's value: that of the first expression that its name ends with, as PEFT looks it up."""
    fits = (
        value for end, value in (pattern or {}).items() if foreign_pattern(rf"^(.*\.)?({end})$", SETTINGS).search(stem)
    )
    return next(fits, usual)


def stems_of(names: Iterable[str]) -> list[str]:
    """Names of the modules that tensors of a plain LoRA belong to, in order.

    Raises:
        ValueError: a tensor that is neither A nor B; its message is the tensor's name.
    """
    stems: dict[str, None] = {}
    for name in names:
        if not name.endswith((A_END, B_END)):
            raise ValueError(name)
        stems[name.removeprefix(PEFT_PREFIX).removesuffix(A_END).removesuffix(B_END)] = None
    return list(stems)
