"""Tuned weights in 8 or 4 bits as vLLM reads them: the layout of compressed-tensors, written one tensor at a time.

`fp8`: each matrix in float8 (e4m3) with a scale a row; vLLM rounds what goes into it to float8 as well, with a scale a
token. `w4a16`: four bits a weight with a scale for each group of 128 weights of a row (of 32 where rows are narrow);
inputs stay in 16 bits. Scales are those of the least squared error among some that clip. Embeddings and head stay as
they are. What is packed, and how, is the library's own code: https://github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import replacing, write_json
from tuneloop.core.ui import progress
from tuneloop.models.nn import part_of
from tuneloop.records.artifact import Quantisation
from tuneloop.release.tuned_weights import TunedWeights

if TYPE_CHECKING:
    from torch import Tensor

SCHEMES = {"fp8": ("FP8_DYNAMIC", "float-quantized"), "w4a16": ("W4A16", "pack-quantized")}
WHEEL = "compressed-tensors"
GROUPS = (128, 32)  # weights of a row that share a scale: 128 is usual, narrow rows need 32
NARROW = 2048  # rows that are narrower
SHARD = 1 << 29  # bytes of a file, which are in memory twice while it is written
SHRUNK = (1.0, 0.95, 0.9, 0.85, 0.8)  # of the scale that clips nothing
_MATRIX = re.compile(r"layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")
INDEX = "model.safetensors.index.json"


def is_compressed(quant: str) -> bool:
    """Whether it is a type of weights of this layout."""
    return quant.lower() in SCHEMES


def need_compressed_tensors() -> None:
    """Check that the library that packs is there.

    Raises:
        UserError: it is missing, with the command that installs it.
    """
    try:
        import compressed_tensors  # noqa: F401
    except ImportError:
        raise UserError(
            f"{WHEEL} is not installed", where="--quant", next_step="pip install 'tuneloop[compressed]'"
        ) from None


def write_compressed(weights: TunedWeights, quant: str, out: Path) -> Quantisation:
    """Write weights in a type of `SCHEMES`, their index and `config.json`; returns the types of the files' tensors.

    Raises:
        UserError: the library is missing, no matrix that is known, a width that no group divides, no room.
    """
    import torch

    need_compressed_tensors()
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    language = part_of(weights.config)
    stem = f"model.{language}." if language else "model."
    matrices = [name for name in weights.shapes if _MATRIX.fullmatch(name.removeprefix(stem))]
    if not matrices:
        message = "No layers are named as a Llama's, so nothing would be in fewer bits"
        step = "export with --format merged alone, and quantise it with llm-compressor"
        raise UserError(message, where="--quant", next_step=step)
    scheme = _scheme(quant, [weights.shapes[name][1] for name in matrices])
    files, types = _Shards(out), Counter[str]()
    for count, name in enumerate(weights.shapes, 1):
        tensor = weights.tensor(name)
        if name in matrices:
            types[quant.upper()] += 1
            for end, part in _compressed(tensor, scheme, quant).items():
                files.add(f"{name.removesuffix('weight')}{end}", part)
        else:
            tensor = tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor
            types["BF16" if tensor.dtype == torch.bfloat16 else "F16"] += 1
            files.add(name, tensor)
        progress(f"compressing to {quant}", count, len(weights.shapes))
    files.close()
    config = {key: value for key, value in weights.config.items() if key != "torch_dtype"}
    settings = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=SCHEMES[quant][1],
        ignore=["lm_head", *(["re:.*vision_tower.*", "re:.*multi_modal_projector.*"] if language else [])],
        quantization_status=QuantizationStatus.COMPRESSED,
    )
    config |= {"dtype": "bfloat16", "quantization_config": settings.model_dump(mode="json", exclude_none=True)}
    write_json(out / "config.json", config)
    return Quantisation(name=quant, tensor_types=dict(types.most_common()))


def _scheme(quant: str, widths: list[int]) -> Any:
    """The library's description of how weights and inputs are stored."""
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

    scheme = preset_name_to_scheme(SCHEMES[quant][0], ["Linear"])
    if quant == "fp8":
        return scheme
    sizes = GROUPS if min(widths) >= NARROW else GROUPS[1:]
    group = next((size for size in sizes if all(width % size == 0 for width in widths)), None)
    if group is None:
        message = f"Rows of {min(widths):,} weights can't be divided into groups of {GROUPS[-1]}"
        raise UserError(message, where="--quant w4a16", next_step="take --quant fp8, or --format gguf --quant q4_k_m")
    args = scheme.weights.model_copy(update={"group_size": group})
    return scheme.model_copy(update={"weights": args})


def _compressed(weight: Tensor, scheme: Any, quant: str) -> dict[str, Tensor]:
    """A matrix as the layout has it: `weight` or `weight_packed`, `weight_scale`, `weight_shape`."""
    import torch
    from compressed_tensors.compressors.base import BaseCompressor

    exact = weight.float()
    if quant == "fp8":  # of each row (O, 1): its largest weight becomes the largest number of e4m3
        largest = torch.finfo(torch.float8_e4m3fn).max
        scale = _stored(exact.abs().amax(1, keepdim=True).clamp(min=1e-12) / largest)
    else:
        scale = _scale_int4(exact, scheme.weights.group_size)
    compressor = BaseCompressor.get_value_from_registry(SCHEMES[quant][1])
    packed: dict[str, Tensor] = compressor.compress({"weight": exact, "weight_scale": scale.float()}, scheme)
    packed["weight_scale"] = scale.to(torch.bfloat16)
    return packed


def _scale_int4(weight: Tensor, group: int) -> Tensor:
    """The scale of each group of a row (O, I / group) with the least squared error; numbers go from -8 to 7."""
    import torch

    parts = weight.reshape(len(weight), -1, group)
    whole = parts.abs().amax(-1).clamp(min=1e-12) / 7.5
    best, least = whole, torch.full_like(whole, float("inf"))
    for share in SHRUNK:
        scale = _stored(whole * share)
        rounded = (parts / scale[..., None]).round().clamp(-8, 7) * scale[..., None]
        error = (rounded - parts).square().sum(-1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def _stored(scale: Tensor) -> Tensor:
    """A scale as bf16 holds it, in fp32: weights are rounded by what is stored."""
    stored: Tensor = scale.bfloat16().float()
    return stored


@dataclass
class _Shards:
    """Files of at most `SHARD` bytes, written as they fill; their names have the number of all only at the end."""

    out: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)  # of the next file
    bytes: int = 0
    total: int = 0
    names: list[list[str]] = field(default_factory=list)  # of the tensors in each file

    def add(self, name: str, tensor: Tensor) -> None:
        if self.tensors and self.bytes + tensor.nbytes > SHARD:
            self._write()
        self.tensors[name] = tensor.contiguous()
        self.bytes += tensor.nbytes
        self.total += tensor.nbytes

    def _write(self) -> None:
        from safetensors.torch import save

        with replacing(self.out / f"part-{len(self.names)}.safetensors") as target:
            target.write(save(self.tensors, {"format": "pt"}))
        self.names.append(list(self.tensors))
        self.tensors, self.bytes = {}, 0

    def close(self) -> None:
        """Write the last file, give all their names, and write the index where there are several."""
        self._write()
        count = len(self.names)
        places: dict[str, str] = {}
        for number, names in enumerate(self.names):
            name = "model.safetensors" if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"
            (self.out / f"part-{number}.safetensors").rename(self.out / name)
            places |= dict.fromkeys(names, name)
        if count > 1:
            write_json(self.out / INDEX, {"metadata": {"total_size": self.total}, "weight_map": places})
