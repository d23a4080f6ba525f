"""A run's tuned weights, read one tensor at a time, each with its adapter added; and merged weight files."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object, replacing, user_errors_of_the_disk, write_json
from tuneloop.core.foreign import parse_json
from tuneloop.core.ui import progress
from tuneloop.models import config_of, opened, weight_files
from tuneloop.models.files import resolve
from tuneloop.models.methods import WeightUpdate, method_of_folder
from tuneloop.models.nn import module_name

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TunedWeights:
    """Tensors by their names in Transformers."""

    config: Mapping[str, Any]  # `config.json`
    files: Mapping[str, tuple[Path, str]]  # the safetensors file of each tensor, and its name there
    shapes: Mapping[str, tuple[int, ...]]  # of each tensor
    update: WeightUpdate | None = None  # what an adapter does to them; None: all weights were trained

    def tensor(self, name: str) -> Tensor:
        """A tensor: in fp32 where an adapter changes it, so that it is rounded once, else in the file's dtype.

        Raises:
            UserError: it can't be read, or holds NaN or infinity.
        """
        file, name_there = self.files[name]
        with opened(file) as source:
            tensor: Tensor = source.get_tensor(name_there)
        if self.update and name in self.update.names:
            tensor = self.update.apply(name, tensor)[1]
        if not tensor.sum(dtype=None).isfinite() and not tensor.isfinite().all():
            message, step = f"The weights hold NaN or infinity in {name}", "train again, or repair the base"
            raise UserError(message, where=str(file), next_step=step)
        return tensor


def open_tuned(model: str, trained: Path) -> TunedWeights:
    """The weights of a trained folder.

    Args:
        model: the base, by a name that resolves.
        trained: an adapter's folder or a whole model's.

    Raises:
        UserError: an adapter that can't be merged, another base, a damaged file.
    """
    is_adapter = (trained / "adapter_config.json").is_file()
    folder = resolve(model) if is_adapter else trained
    files, shapes = {}, {}
    for file in weight_files(folder):
        with opened(file) as source:
            for there in source.keys():  # noqa: SIM118 - it is no dictionary
                name = module_name(there)
                files[name], shapes[name] = (file, there), tuple(source.get_slice(there).get_shape())
    update = update_of(folder, trained, files) if is_adapter else None
    return TunedWeights(config_of(folder), files, shapes, update)


INDEX, AS_ADAPTER = "model.safetensors.index.json", "export with --format adapter"


@dataclass(frozen=True)
class Merge:
    """What merging did."""

    tensors: int  # weights that the adapter changed
    rounding: float  # length of what storing them in the base's dtype lost, as a share of the update's length


def merge(model: str, adapter: Path, out: Path) -> Merge:
    """Write the base model's weights with the adapter in them, its `config.json` and its index.

    An adapter that was trained on a base in four bits is added to what those four bits say: that is what was evaluated.
    The sum is computed in fp32 and stored in the base's dtypes.

    Args:
        model: the base, by a name that resolves.
        adapter: folder of a method that can be merged.

    Raises:
        UserError: another base, a base that can't take an update, a damaged file, a full disk.
    """
    import torch

    base = resolve(model)
    files = weight_files(base)
    headers = [_header(file) for file in files]
    change = _Change(update_of(base, adapter, {module_name(name) for _, entries in headers for name in entries}))
    total, count = sum(len(entries) for _, entries in headers), 0
    for file, (head, entries) in zip(files, headers, strict=True):
        with replacing(out / file.name) as target, opened(file) as source:
            target.write(head)
            for name in entries:
                tensor = source.get_tensor(name)
                if module_name(name) in change.update.names:
                    tensor = _changed(module_name(name), tensor, change, file)
                target.write(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
                count += 1
                progress("merging", count, total)
    if (base / INDEX).is_file():
        write_json(out / INDEX, read_json_object(base / INDEX))
    write_json(out / "config.json", read_json_object(base / "config.json"))
    return Merge(change.tensors, math.sqrt(change.rounding / change.moved) if change.moved else 0.0)


def update_of(base: Path, adapter: Path, tensors: Collection[str]) -> WeightUpdate:
    """What an adapter does to its base's tensors.

    Args:
        tensors: names of those in the base's files, as Transformers' modules have them.

    Raises:
        UserError: another base, or one that can't take an update.
    """
    if read_json_object(base / "config.json").get("quantization_config"):
        message = "The base model's own weights are quantised, so an adapter can't be added to them"
        raise UserError(message, where=str(base), next_step=AS_ADAPTER)
    method = method_of_folder(adapter)
    if method is None or method.merge is None:
        raise UserError("An adapter of this kind can't be merged", where=str(adapter), next_step=AS_ADAPTER)
    update = method.merge(base, adapter)
    missing = update.names.difference(tensors)
    if missing:
        message = f"The base model's files name their weights in another way: they have no {sorted(missing)[0]}"
        raise UserError(message, where=str(base), next_step=f"{AS_ADAPTER} and merge it with PEFT")
    return update


@dataclass
class _Change:
    """What happens to weights on their way, and how much of it by now."""

    update: WeightUpdate  # which tensors change, and how
    tensors: int = 0
    moved: float = 0.0  # squared length of the update
    rounding: float = 0.0  # and of what rounding took


def _header(file: Path) -> tuple[bytes, list[str]]:
    """The first bytes of a safetensors file, and the names of its tensors in the order of their bytes."""
    with user_errors_of_the_disk(file), file.open("rb") as handle:
        size = handle.read(8)
        text = handle.read(struct.unpack("<Q", size)[0]) if len(size) == 8 else b""
    try:
        entries: dict[str, Any] = parse_json(text)
    except ValueError:
        raise UserError("The weight file is damaged", where=str(file), next_step="download the model again") from None
    entries.pop("__metadata__", None)
    return size + text, sorted(entries, key=lambda name: entries[name]["data_offsets"])


def _changed(name: str, tensor: Tensor, change: _Change, file: Path) -> Tensor:
    before, after = change.update.apply(name, tensor)
    stored = after.to(tensor.dtype)
    if not stored.isfinite().all():
        message = f"The merged weights hold NaN or infinity in {name}"
        step = f"the base is damaged, or its dtype can't hold the sum: {AS_ADAPTER}"
        raise UserError(message, where=str(file), next_step=step)
    if after is not before:
        change.tensors += 1
        change.moved += float((after - before).norm()) ** 2
        change.rounding += float((stored.float() - after).norm()) ** 2
    return stored
