"""What is trained, put into its model: the method's own start, or what an earlier run came to.

The loop is one; a method (models/methods/) says which parameters it moves and how they are saved.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, read_json, sha256_file
from tuneloop.models import Model, layers_of, trained_folder
from tuneloop.models.methods import WHOLE, Method, Start, Trainable, layout_of, method_named
from tuneloop.training.batches import ORDER
from tuneloop.training.config import TrainConfig
from tuneloop.training.distributed import refuse_unsharded, regroup, shard
from tuneloop.training.rows import TrainRow, conversations
from tuneloop.training.teachers import teacher_hash

if TYPE_CHECKING:
    from torch import Tensor


def attach(model: Model, config: TrainConfig, seed: int, rows: Sequence[TrainRow] = ()) -> Trainable:
    """Put what is to be trained into the model, as it is before the first step; a method may start from texts of the
    training rows. Raises UserError: the method is impossible here, or `config.init` does not fit."""
    method = method_named(config.method)
    refuse_unsharded(model, method)
    shard(model, method)
    regroup(model)
    trainable = method.attach(Start(model, config, seed, [conversations(row)[0].ids for row in rows]))
    trainable = replace(trainable, folder=method.folder)
    if disabled := method.disabled:
        trainable = replace(trainable, base=lambda: disabled(model.net))
    if config.init:
        folder = trained_folder(Path(config.init))
        trainable.load(_earlier_parameters(folder, model, config, method), str(folder))
    return trainable


def init_hash(config: TrainConfig) -> str:
    """Identity of the weights that `config.init` names; empty without."""
    if not config.init:
        return ""
    folder = trained_folder(Path(config.init))
    origin = folder / "tuneloop.json"
    return str(read_json(origin)["hash"]) if origin.is_file() else sha256_file(folder / "adapter_model.safetensors")


def _earlier_parameters(folder: Path, model: Model, config: TrainConfig, method: Method) -> dict[str, Tensor]:
    where, layout = f"train.init={config.init}", layout_of(folder)
    if layout != method.layout:
        step = f"set model={folder}" if layout == WHOLE else "set train.method to the earlier run's"
        raise UserError(f"That run trained {layout}, and this one is {method.name}", where=where, next_step=step)
    if method.resume is None:
        message = f"{method.name} can't continue from an earlier run"
        raise UserError(message, where=where, next_step="leave train.init out")
    return method.resume(model, config, folder)


def training_key(config: TrainConfig, seed: int, data_id: str, fingerprint: str) -> str:
    """Hash of all that the result of a training depends on."""
    source = method_named(config.method).source
    parts = [config, seed, data_id, fingerprint, init_hash(config), 1]
    return content_hash([*parts, *([source] if source else []), *teacher_hash(config)])


def run_key(model: Model, config: TrainConfig, seed: int, data_id: str) -> str:
    """Hash of what a run's steps depend on."""
    hashes = [source] if (source := method_named(config.method).source) else []
    hashes += teacher_hash(config)
    return content_hash([config, seed, data_id, model.fingerprint, init_hash(config), ORDER, *hashes])


def recompute_layers(net: Any, on: bool, kept_layers: int = 0) -> None:
    """Compute layers again in the backward pass from their inputs (Chen et al. 2016, arXiv 1604.06174), but the last
    `kept_layers`, or no more. The gradient stays the same; dropout draws the same numbers again."""
    from torch.utils.checkpoint import checkpoint

    layers = layers_of(net)
    for index, layer in enumerate(layers):
        layer.__dict__.pop("forward", None)
        if on and index < len(layers) - kept_layers:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(net: Any, **options: Any) -> None:
    """torch.compile each layer in place, once for all lengths of rows: the parts before and behind attention, which is
    one kernel for rows one behind the other, whose lengths change with each batch."""
    import torch

    from tuneloop.models.nn import Documents

    if not getattr(Documents.attend, "_torchdynamo_disable", False):
        Documents.attend = torch.compiler.disable(Documents.attend)  # type: ignore[method-assign,no-untyped-call]
    for layer in layers_of(net):
        layer.compile(dynamic=True, **options)
