"""An adapter added into its base model's weight files, one tensor at a time: memory for one tensor is enough.

The files keep the base's names, layout and dtypes; only the values of adapted weights change.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object, replacing, user_errors_of_the_disk, write_json
from tuneloop.core.ui import progress
from tuneloop.models.load import weight_files
from tuneloop.models.methods import WeightUpdate, method_of_folder
from tuneloop.models.names import resolve

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Merge:
    """What merging did.

    Args:
        tensors: weights that the adapter changed.
        rounding: length of all that was lost when they were stored in the base's dtype, as a share of the update's length.
    """

    tensors: int
    rounding: float


def merge(model: str, adapter: Path, out: Path) -> Merge:
    """Write the base model's weights with the adapter in them, its `config.json` and its index.

    An adapter that was trained on a base in four bits is added to what those four bits say: that is the model that was evaluated.

    Args:
        model: the base, by a name that resolves.
        adapter: folder of a method that can be merged.
        out: folder that the files go to; computed in fp32, stored in the base's dtypes.

    Raises:
        UserError: another base, a base that can't take an update, a damaged file, a full disk.
    """
    base = resolve(model)
    files = weight_files(base)
    headers = [_header(file) for file in files]
    change = _Change(update_of(base, adapter, {name for _, entries in headers for name in entries}))
    total, done = sum(len(entries) for _, entries in headers), 0
    for file, (head, entries) in zip(files, headers, strict=True):
        with replacing(out / file.name) as target:
            target.write(head)
            for tensor in _tensors(file, entries, change):
                target.write(tensor)
                done += 1
                progress("merging", done, total)
    if (base / INDEX).is_file():
        write_json(out / INDEX, read_json_object(base / INDEX))
    write_json(out / "config.json", read_json_object(base / "config.json"))
    return Merge(change.tensors, math.sqrt(change.lost / change.moved) if change.moved else 0.0)


def update_of(base: Path, adapter: Path, tensors: Collection[str]) -> WeightUpdate:
    """What an adapter does to its base's tensors.

    Args:
        base: folder of the base model.
        adapter: folder of a method that can be merged.
        tensors: names of those in the base's files.

    Raises:
        UserError: another base, or one that can't take an update.
    """
    if read_json_object(base / "config.json").get("quantization_config"):
        raise UserError(
            "The base model's own weights are quantised, so an adapter can't be added to them",
            where=str(base),
            next_step="export with --format adapter",
        )
    method = method_of_folder(adapter)
    if method is None or method.merge is None:
        raise UserError(
            "An adapter of this kind can't be merged", where=str(adapter), next_step="export with --format adapter"
        )
    update = method.merge(base, adapter)
    missing = update.names.difference(tensors)
    if missing:
        raise UserError(
            f"The base model's files name their weights in another way: they have no {sorted(missing)[0]}",
            where=str(base),
            next_step="export with --format adapter and merge it with PEFT",
        )
    return update


@dataclass
class _Change:
    """What happens to weights on their way, and how much of it by now.

    Args:
        update: which tensors change, and how.
        moved, lost: squared lengths of the update and of what rounding took.
    """

    update: WeightUpdate
    tensors: int = 0
    moved: float = 0.0
    lost: float = 0.0


def _header(file: Path) -> tuple[bytes, list[str]]:
    """The first bytes of a safetensors file as they stand, and the names of its tensors in the order of their bytes."""
    with user_errors_of_the_disk(file), file.open("rb") as handle:
        size = handle.read(8)
        text = handle.read(struct.unpack("<Q", size)[0]) if len(size) == 8 else b""
    try:
        entries: dict[str, Any] = json.loads(text)
    except ValueError:
        raise UserError("The weight file is damaged", where=str(file), next_step="download the model again") from None
    entries.pop("__metadata__", None)
    return size + text, sorted(entries, key=lambda name: entries[name]["data_offsets"])


def _tensors(file: Path, names: list[str], change: _Change) -> Iterator[bytes]:
    """The bytes of a file's tensors, one after another, changed where the adapter changes them."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as source:
            for name in names:
                tensor = source.get_tensor(name)
                if name in change.update.names:
                    tensor = _changed(name, tensor, change, file)
                yield tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    except SafetensorError as error:
        raise UserError(
            f"Can't read the weights: {error}", where=str(file), next_step="download the model again"
        ) from None


def _changed(name: str, tensor: Tensor, change: _Change, file: Path) -> Tensor:
    before, after = change.update.apply(name, tensor)
    stored = after.to(tensor.dtype)
    if not stored.isfinite().all():
        raise UserError(
            f"The merged weights hold NaN or infinity in {name}",
            where=str(file),
            next_step="the base is damaged, or its dtype can't hold the sum: export with --format adapter",
        )
    if after is not before:
        change.tensors += 1
        change.moved += float((after - before).norm()) ** 2
        change.lost += float((stored.float() - after).norm()) ** 2
    return stored
