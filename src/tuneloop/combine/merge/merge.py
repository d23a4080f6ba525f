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

from tuneloop.combine.merge.adapters import Adapter, check_together
from tuneloop.combine.merge.low_rank import Product, cut_to, lost_share, squared_length, svd_of, svd_of_dense
from tuneloop.combine.merge.methods import MergeMethod, ModuleUpdates, merge_method
from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, read_json, replacing, write_json
from tuneloop.core.ui import progress
from tuneloop.core.units import counted
from tuneloop.models.load import skeleton
from tuneloop.models.lora import linear_places
from tuneloop.models.peft_layout import A_END, B_END, PEFT_PREFIX, SETTINGS, WEIGHTS
from tuneloop.models.trained import OWN

if TYPE_CHECKING:
    from torch import Tensor


DENSITY = 0.5


@dataclass(frozen=True)
class MergeSettings:
    """How adapters are merged.

    Args:
        method: a name of `METHODS`.
        weights: of each adapter; empty: 1 for each.
        rank: of the result; 0: what the method says.
        density: share of entries that `ties` keeps.
    """

    method: str = "svd"
    weights: tuple[float, ...] = ()
    rank: int = 0
    density: float = DENSITY


@dataclass(frozen=True)
class MergedAdapter:
    """What a merge came to.

    Args:
        folder: in PEFT's layout.
        rank: the largest of a module.
        modules: that the adapter changes.
        lost: length that was cut off to get the rank, as a share of the length of what the method gave.
        hash: of the tensors, as `run.json` has it.
        parameters: how many numbers it holds.
    """

    folder: Path
    rank: int
    modules: int
    lost: float
    hash: str
    parameters: int


def base_shapes(base: Path) -> dict[str, tuple[int, ...]]:
    """(outputs, inputs) of each linear layer of a base model, from its configuration.

    Args:
        base: its folder.
    """
    return {name: tuple(layer.weight.shape) for name, layer in linear_places(skeleton(base)).items()}  # type: ignore[arg-type]


def merge_adapters(
    adapters: Sequence[Adapter], settings: MergeSettings, base: tuple[str, Mapping[str, tuple[int, ...]]], out: Path
) -> MergedAdapter:
    """Merge adapters into a new one. The order in which they are named does not matter, to the last bit.

    Args:
        base: name of the base model, and the shapes of its layers, see `base_shapes`.
        out: folder of the new adapter, in PEFT's layout.

    Raises:
        UserError: adapters that don't go together, a kind that can't be merged, settings that the method can't take.
    """
    method = merge_method(settings.method)
    check_together(adapters)
    weights = weights_of(adapters, settings, method)
    for one in adapters:
        one.check_shapes(dict(base[1]))
    pairs = sorted(zip(adapters, weights, strict=True), key=lambda pair: pair[0].hash)
    modules = sorted({module for one in adapters for module in one.modules})
    ranks = {module: _rank_of(module, [one for one, _ in pairs], settings, method, base[1]) for module in modules}
    job = _Merging([one for one, _ in pairs], [weight for _, weight in pairs], settings, method, ranks)
    shapes = {
        f"{PEFT_PREFIX}{module}{end}": shape
        for module in modules
        for end, shape in ((A_END, (ranks[module], base[1][module][1])), (B_END, (base[1][module][0], ranks[module])))
    }
    digests: dict[str, str] = {}
    with replacing(out / WEIGHTS) as file:
        _write_header(file, shapes)
        for done, module in enumerate(modules, 1):
            for end, tensor in zip((A_END, B_END), job.merged(module), strict=True):
                data = tensor.contiguous().numpy().tobytes()
                digests[f"{PEFT_PREFIX}{module}{end}"] = hashlib.sha256(data).hexdigest()
                file.write(data)
            progress("merging", done, len(modules))
        job.check()
    found = MergedAdapter(
        out, max(ranks.values()), len(modules), job.lost, content_hash(digests),
        sum(rows * columns for rows, columns in shapes.values()),
    )  # fmt: skip
    _write_settings(found, ranks, base, adapters[0])
    return found


def weights_of(adapters: Sequence[Adapter], settings: MergeSettings, method: MergeMethod) -> list[float]:
    """The weight of each adapter, as the method takes it.

    Raises:
        UserError: not one for each; not a number; all zero; a density that is no share.
    """
    weights = list(settings.weights) or [1.0] * len(adapters)
    if len(weights) != len(adapters):
        raise UserError(
            f"{len(weights)} weights for {counted(len(adapters), 'adapter')}", where="--weights",
            next_step="give one number for each adapter, as in --weights 1,0.5",
        )  # fmt: skip
    if not all(map(math.isfinite, weights)) or not any(weights):
        raise UserError("Weights are numbers, and not all 0", where="--weights", next_step="write them as in 1,0.5")
    if not 0 < settings.density <= 1:
        raise UserError("The density is a share above 0, at most 1", where="--density", next_step="try --density 0.5")
    if not method.averages:
        return weights
    total = sum(sorted(weights))
    if total == 0:
        raise UserError("A mean needs weights whose sum is not 0", where="--weights", next_step="use --method svd")
    return [weight / total for weight in weights]


def _rank_of(
    module: str,
    adapters: Sequence[Adapter],
    settings: MergeSettings,
    method: MergeMethod,
    shapes: Mapping[str, tuple[int, ...]],
) -> int:
    """Rank of a module's merged update."""
    there = [rank for one in adapters if (rank := one.rank(module))]
    total, most = sum(there), min(shapes[module])
    if method.exact:
        if settings.rank and settings.rank < total:
            raise UserError(
                f"{method.name} keeps everything: the result has rank {total}", where=f"--rank {settings.rank}",
                next_step="leave --rank out, or take --method svd",
            )  # fmt: skip
        return total
    usual = total if method.rank == "sum" else max(one.rank(name) for one in adapters for name in one.modules)
    return min(settings.rank or usual, total if method.rank != "sum" or not method.drops else most, most)


class _Merging:
    """A merge at work: what it has cut off by now, and which adapters have changed anything."""

    def __init__(
        self,
        adapters: Sequence[Adapter],
        weights: Sequence[float],
        settings: MergeSettings,
        method: MergeMethod,
        ranks: Mapping[str, int],
    ) -> None:
        self.adapters, self.weights, self.settings, self.method, self.ranks = adapters, weights, settings, method, ranks
        self.whole = self.kept = 0.0
        self.length = [0.0] * len(adapters)

    @property
    def lost(self) -> float:
        """Share of the length that was cut off."""
        return lost_share(self.whole, self.kept)

    def merged(self, module: str) -> tuple[Tensor, Tensor]:
        """A and B (fp32) of a module's merged update, to be used with the scale alpha / rank, alpha being the largest rank."""
        there = [i for i, one in enumerate(self.adapters) if one.rank(module)]
        products = [self.adapters[i].update(module) for i in there]
        for i, product in zip(there, products, strict=True):
            self.length[i] += squared_length(product)
        found = self.method.merge(ModuleUpdates(products, [self.weights[i] for i in there], self.settings.density))
        b, a = self._at_rank(found, self.ranks[module])
        alpha = max(self.ranks.values())
        return a.float(), (b * (self.ranks[module] / alpha)).float()

    def _at_rank(self, found: Product | Tensor, rank: int) -> Product:
        whole = squared_length(found)
        self.whole += whole
        if isinstance(found, Product) and self.method.exact:
            self.kept += whole
            return found
        svd = svd_of(found) if isinstance(found, Product) else svd_of_dense(found, rank)
        self.kept += float(svd.s[:rank].double().square().sum())
        return cut_to(svd, rank)

    def check(self) -> None:
        """Refuse an adapter that does nothing: it was never trained.

        Raises:
            UserError: it is named.
        """
        for one, length in zip(self.adapters, self.length, strict=True):
            if length == 0:
                raise UserError(
                    "The adapter changes nothing: all its B matrices are zero", where=str(one.folder),
                    next_step="train it, or leave it out",
                )  # fmt: skip


def _write_header(file: BinaryIO, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The head of a safetensors file whose fp32 tensors follow in this order: 8 bytes of its length, then JSON padded by spaces."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, (rows, columns) in shapes.items():
        end = place + 4 * rows * columns
        entries[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


def _write_settings(
    found: MergedAdapter, ranks: Mapping[str, int], base: tuple[str, Mapping[str, tuple[int, ...]]], like: Adapter
) -> None:
    """`tuneloop.json` and, last, `adapter_config.json`."""
    origin = {"base_fingerprint": like.fingerprint}
    if (like.folder / OWN).is_file():
        quantised = read_json(like.folder / OWN).get("quantised")
        origin |= {"quantised": quantised} if quantised else {}
    write_json(found.folder / OWN, {"version": 1, **origin, "hash": found.hash})
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": base[0],
        "r": found.rank,
        "lora_alpha": found.rank,
        "lora_dropout": 0.0,
        "target_modules": _targets(ranks, base[1]),
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != found.rank},
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "task_type": "CAUSAL_LM",
        "revision": None,
        "inference_mode": True,
    }
    write_json(found.folder / SETTINGS, settings)


def _targets(ranks: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The modules by the last part of their names, or by whole names where not all layers of a name are changed."""
    ends = {module.rsplit(".", 1)[-1] for module in ranks}
    alike = {module for module in shapes if module.rsplit(".", 1)[-1] in ends}
    return sorted(ends) if alike == set(ranks) else sorted(ranks)
