"""Merges adapters of one base into one adapter, a module at a time: memory for one module's matrices is enough."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tuneloop.combine.merge import methods
from tuneloop.combine.merge.adapters import Adapter, MergeSettings, check_together
from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, read_json, replacing, write_json
from tuneloop.core.ui import progress
from tuneloop.core.units import counted
from tuneloop.models import skeleton
from tuneloop.models.adapters import A_END, B_END, PEFT_PREFIX, SETTINGS, WEIGHTS, linear_places, lora_settings
from tuneloop.models.methods import OWN

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MergedAdapter:
    """The adapter that a merge made."""

    folder: Path  # in PEFT's layout
    rank: int  # the largest of a module
    modules: int  # that the adapter changes
    lost: float  # length that was cut off to get the rank, as a share of the length of what the method gave
    hash: str  # of the tensors, as `run.json` has it
    parameters: int  # how many numbers it holds


Shapes = Mapping[str, tuple[int, ...]]  # of each linear layer or tensor, by its name
Base = tuple[str, Shapes]  # a model's name, and the shapes of its layers
Adapters = Sequence[Adapter]


def base_shapes(base: Path) -> dict[str, tuple[int, ...]]:
    """(outputs, inputs) of each linear layer of the base model in a folder, from its configuration."""
    layers = linear_places(skeleton(base)).items()
    return {name: tuple(layer.weight.shape) for name, layer in layers}  # type: ignore[arg-type]


def merge_adapters(adapters: Adapters, settings: MergeSettings, base: Base, out: Path) -> MergedAdapter:
    """Merge adapters into a new one. The order in which they are named does not matter, to the last bit.

    `base`: name of the base model, and the shapes of its layers, see `base_shapes`; `out`: folder of the new adapter,
    in PEFT's layout. Raises UserError: adapters that don't go together, a kind that can't be merged, settings that
    don't fit the method.
    """
    method = methods.merge_method(settings.method)
    check_together(adapters)
    weights = weights_of(adapters, settings, method)
    for adapter in adapters:
        adapter.check_shapes(dict(base[1]))
    pairs = sorted(zip(adapters, weights, strict=True), key=lambda pair: pair[0].hash)
    modules = sorted({module for entry in adapters for module in entry.modules})
    ranks = {module: _rank_of(module, [entry for entry, _ in pairs], settings, method, base[1]) for module in modules}
    job = _Merging([entry for entry, _ in pairs], [weight for _, weight in pairs], method, ranks)
    shapes = {
        f"{PEFT_PREFIX}{module}{end}": shape
        for module in modules
        for end, shape in ((A_END, (ranks[module], base[1][module][1])), (B_END, (base[1][module][0], ranks[module])))
    }
    digests: dict[str, str] = {}
    with replacing(out / WEIGHTS) as file:
        _write_header(file, shapes)
        for count, module in enumerate(modules, 1):
            for end, tensor in zip((A_END, B_END), job.merged(module), strict=True):
                data = tensor.contiguous().numpy().tobytes()
                digests[f"{PEFT_PREFIX}{module}{end}"] = hashlib.sha256(data).hexdigest()
                file.write(data)
            progress("merging", count, len(modules))
        for adapter, length in zip(job.adapters, job.length, strict=True):
            if length == 0:
                message = "The adapter changes nothing: all its B matrices are zero"
                raise UserError(message, where=str(adapter.folder), next_step="train it, or leave it out")
    merged = MergedAdapter(
        folder=out,
        rank=max(ranks.values()),
        modules=len(modules),
        lost=methods.lost_share(job.before, job.after),
        hash=content_hash(digests),
        parameters=sum(rows * columns for rows, columns in shapes.values()),
    )
    _write_settings(merged, ranks, base, adapters[0])
    return merged


def weights_of(adapters: Sequence[Adapter], settings: MergeSettings, method: methods.MergeMethod) -> list[float]:
    """The weight of each adapter, as the method takes it.

    Raises UserError: not one for each; not a number; all zero.
    """
    weights = list(settings.weights) or [1.0] * len(adapters)
    if len(weights) != len(adapters):
        message = f"{len(weights)} weights for {counted(len(adapters), 'adapter')}"
        step = "give one number for each adapter, as in --weights 1,0.5"
        raise UserError(message, where="--weights", next_step=step)
    if not all(map(math.isfinite, weights)) or not any(weights):
        raise UserError("Weights are numbers, and not all 0", where="--weights", next_step="write them as in 1,0.5")
    if not method.averages:
        return weights
    total = sum(sorted(weights))
    if total == 0:
        raise UserError("A mean needs weights whose sum is not 0", where="--weights", next_step="use --method svd")
    return [weight / total for weight in weights]


def _rank_of(
    module: str, adapters: Adapters, settings: MergeSettings, method: methods.MergeMethod, shapes: Shapes
) -> int:
    total, most = sum(adapter.rank(module) for adapter in adapters), min(shapes[module])
    if method.exact:
        if settings.rank and settings.rank < total:
            message = f"{method.name} keeps everything: the result has rank {total}"
            step = "leave --rank out, or use --method svd"
            raise UserError(message, where=f"--rank {settings.rank}", next_step=step)
        return total
    usual = (
        total if method.rank == "sum" else max(adapter.rank(name) for adapter in adapters for name in adapter.modules)
    )
    return min(settings.rank or usual, total, most)


@dataclass
class _Merging:
    adapters: Sequence[Adapter]
    weights: Sequence[float]
    method: methods.MergeMethod
    ranks: Mapping[str, int]
    before: float = 0.0  # squared length of what the method gave
    after: float = 0.0  # and of what is left of it at the ranks

    def __post_init__(self) -> None:
        self.length = [0.0] * len(self.adapters)  # squared, of what each adapter changes

    def merged(self, module: str) -> tuple[Tensor, Tensor]:
        """A and B (fp32) of a module's merged update; their scale is alpha / rank, with the largest rank as alpha."""
        there = [i for i, adapter in enumerate(self.adapters) if adapter.rank(module)]
        products = [self.adapters[i].update(module) for i in there]
        for i, product in zip(there, products, strict=True):
            self.length[i] += methods.squared_length(product)
        update = self.method.merge(products, [self.weights[i] for i in there])
        rank, length = self.ranks[module], methods.squared_length(update)
        self.before += length
        if self.method.exact:
            self.after += length
            b, a = update
        else:
            svd = methods.svd_of(update)
            self.after += float(svd.s[:rank].double().square().sum())
            b, a = methods.cut_to(svd, rank)
        return a.float(), (b * (rank / max(self.ranks.values()))).float()


def _write_header(file: BinaryIO, shapes: Shapes) -> None:
    """The head of a safetensors file whose fp32 tensors follow in this order: its length in 8 bytes, padded JSON."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (rows, columns) in shapes.items():
        end = offset + 4 * rows * columns
        entries[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


def _write_settings(merged: MergedAdapter, ranks: Mapping[str, int], base: tuple[str, Shapes], like: Adapter) -> None:
    """`tuneloop.json` and, last, `adapter_config.json`.

    It names modules by the last part of their names, or by whole names where not all layers of a name are changed.
    """
    origin = {"base_fingerprint": like.fingerprint}
    if (like.folder / OWN).is_file():
        quantised = read_json(like.folder / OWN).get("quantised")
        origin |= {"quantised": quantised} if quantised else {}
    write_json(merged.folder / OWN, {"version": 1, **origin, "hash": merged.hash})
    ends = {module.rsplit(".", 1)[-1] for module in ranks}
    alike = {module for module in base[1] if module.rsplit(".", 1)[-1] in ends}
    targets = sorted(ends) if alike == set(ranks) else sorted(ranks)
    pattern = {module: rank for module, rank in ranks.items() if rank != merged.rank}
    write_json(merged.folder / SETTINGS, lora_settings(base[0], merged.rank, merged.rank, targets, pattern))
