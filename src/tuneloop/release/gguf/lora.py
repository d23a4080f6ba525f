"""A LoRA adapter as a GGUF file, for llama.cpp and Ollama on top of the base model's GGUF file.

llama.cpp scales each update by alpha / rank, with one alpha for all. PEFT's other scales (rsLoRA, patterns of ranks and
alphas) are therefore multiplied into B.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object
from tuneloop.models import fingerprint
from tuneloop.models.adapters import PEFT_PREFIX, more_than_matrices, rank_of, scale_of, stems_of
from tuneloop.models.files import gguf_name
from tuneloop.release.gguf.convert import (
    FloatType,
    add_fields,
    announce,
    as_llamacpp_has_it,
    as_numpy,
    config_for_llamacpp,
    tensors_of,
)

if TYPE_CHECKING:
    from torch import Tensor

MERGED = "export with --format gguf: there the adapter is part of the weights"


def check_expressible(adapter: Path) -> dict[str, Any]:
    """The settings of an adapter that a LoRA file can hold.

    Raises:
        UserError: it can't; the message says what, and that the merged format is the way out.
    """
    settings: dict[str, Any] = read_json_object(adapter / "adapter_config.json")
    if more := more_than_matrices(settings):
        is_prefix = settings.get("peft_type") == "PREFIX_TUNING"
        step = "export with --format adapter: a prefix can't be merged either" if is_prefix else MERGED
        raise UserError(f"A LoRA file of llama.cpp can't hold {more}", where="--format gguf-lora", next_step=step)
    return settings


def write_gguf_lora(model: Path, adapter: Path, out: Path, kind: FloatType, name: str) -> None:
    """Write an adapter's matrices, with their scales in B.

    Args:
        model: folder of the base model.
        adapter: folder in PEFT's layout.
        kind: type of the matrices.
        name: of the file's content.

    Raises:
        UserError: what a LoRA file can't hold, another base, a damaged file, a full disk.
    """
    import gguf

    from tuneloop.models.adapters import read_adapter

    settings = check_expressible(adapter)
    config = config_for_llamacpp(read_json_object(model / "config.json"))
    _, state = read_adapter(adapter, fingerprint(model))
    try:
        stems = stems_of(state)
    except ValueError as odd:
        message = f"A LoRA file of llama.cpp can't hold {odd}"
        raise UserError(message, where="--format gguf-lora", next_step=MERGED) from None
    alpha = float(max(rank_of(settings, stem) for stem in stems))
    tensors: dict[str, Tensor] = {}
    for stem in stems:
        there = gguf_name(f"{stem}.weight", config.family)
        if there is None:
            message = f"llama.cpp's {config.family.gguf} has no layer {stem}"
            raise UserError(message, where=str(adapter), next_step=MERGED)
        a, b = (state[f"{PEFT_PREFIX}{stem}.lora_{which}.weight"].float() for which in "AB")
        b = b * (scale_of(settings, stem) * rank_of(settings, stem) / alpha)  # llama.cpp multiplies by alpha / rank
        b = as_llamacpp_has_it(f"{stem}.weight", b, config)
        tensors |= {f"{there}.lora_a": a, f"{there}.lora_b": b}
    writer = gguf.GGUFWriter(out, config.family.gguf)
    add_fields(writer, {"general.type": "adapter", "general.name": name})
    add_fields(writer, {"adapter.type": str(settings["peft_type"]).lower(), "adapter.lora.alpha": alpha})
    for there, tensor in tensors.items():
        announce(writer, there, tuple(tensor.shape), kind)
    with tensors_of(writer, out):
        for there, tensor in tensors.items():
            writer.write_tensor_data(as_numpy(tensor, kind, there))
