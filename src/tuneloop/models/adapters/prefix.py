"""Prefix tuning: keys and values of virtual tokens in front of every row (Li & Liang 2021, arXiv 2101.00190), in PEFT's
layout.

The prefix starts as the keys and values of real text, as if that text preceded every row; from random numbers the loss
starts at more than twice the value and never comes as low in the time that a small job has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuneloop.core.errors import UserError
from tuneloop.core.sharded import copied
from tuneloop.models.adapters.assignment import ATTACHED, assignment
from tuneloop.models.adapters.lora import RESTORE, copy_tensors, read_adapter, state_hash, write_peft
from tuneloop.models.nn.llama import KeyValues, Llama

# Shape suffixes: V virtual tokens, N layers, K key heads, D head size, B rows, S tokens.

NAME = "prompt_embeddings"  # of the tensor in PEFT's file


class Prefix(nn.Module):
    """The virtual tokens' keys and values in PEFT's order: for each token and layer the key heads, the value heads."""

    def __init__(self, values_V: Tensor, layers: int, key_heads: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(values_V.float())
        self.layers, self.key_heads = layers, key_heads

    @property
    def length(self) -> int:
        """Virtual tokens."""
        return self.embeddings.shape[0]

    def key_values(self, dtype: torch.dtype) -> Tensor:
        """Keys and values as attention takes them (N, 2, K, V, D)."""
        shaped = self.embeddings.to(dtype).view(self.length, self.layers, 2, self.key_heads, -1)
        return shaped.permute(1, 2, 3, 0, 4)


class _PrefixCache(KeyValues):
    """A cache that holds the prefix and keeps nothing of the rows: gradients can flow through it."""

    keeps = False

    def __init__(self, key_values_N2KVD: Tensor) -> None:
        super().__init__(len(key_values_N2KVD))
        self.parts = key_values_N2KVD
        self.lengths = [key_values_N2KVD.shape[3]] * len(key_values_N2KVD)

    def capacity_for(self, new: int) -> int:
        return self.length + new

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        rows = keys.shape[0]
        before_k, before_v = (part.expand(rows, -1, -1, -1).to(keys.device) for part in self.parts[layer])
        return torch.cat((before_k, keys), 2), torch.cat((before_v, values), 2)


def _prepend_prefix(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Prepend the prefix to the arguments of `LlamaModel.forward`, whose callers count tokens without it."""
    prefix = applied_prefix(module)
    if prefix is None:
        return None
    names = ("ids_BT", "positions_BT", "mask", "cache", "real_BT")
    values = dict.fromkeys(names) | dict(zip(names, arguments, strict=False)) | keywords
    ids, positions, mask, cache, real = (values[name] for name in names)
    assert isinstance(ids, Tensor)
    dtype: torch.dtype = module.embed_tokens.weight.dtype
    if positions is None:
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
    if mask is not None:
        mask = F.pad(mask, (prefix.length, 0), value=True)
    if cache is None:
        cache = _PrefixCache(prefix.key_values(dtype))
    elif not cache.length:  # a new one: its buffers begin with the prefix
        key_values = prefix.key_values(dtype)
        cards = module.cards or [ids.device] * len(key_values)
        pairs = [pair[:, None].to(card) for pair, card in zip(key_values, cards, strict=True)]
        cache.keys, cache.values = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        cache.lengths = [prefix.length] * prefix.layers
    return (ids, positions + prefix.length, mask, cache, real), {}


def add_prefix(net: nn.Module, ids: Sequence[int]) -> Prefix:
    """Freeze `net` and put a prefix in front of its rows: the keys and values of `ids`. Raises UserError: no Llama."""
    device = _llama(net).embed_tokens.weight.device
    cache = net.new_cache()  # type: ignore[operator]
    with torch.no_grad():
        net.hidden(torch.tensor([list(ids)], device=device), cache=cache)  # type: ignore[operator]
    V = len(ids)
    pairs = [torch.stack((k[0, :, :V], v[0, :, :V])).to(device) for k, v in zip(cache.keys, cache.values, strict=True)]
    values_V = torch.stack(pairs).permute(3, 0, 1, 2, 4).reshape(V, -1)  # from (N, 2, K, V, D)
    return _attach(net, values_V)


def _attach(net: nn.Module, values_V: Tensor) -> Prefix:
    net.requires_grad_(False)
    model = _llama(net)
    model.prefix = prefix = _new_prefix(model, values_V)
    return prefix


def _new_prefix(model: Any, values_V: Tensor) -> Prefix:
    """A prefix for a model, which looks for one from now on."""
    if getattr(model, "prefix_hook", None) is None:
        model.prefix_hook = model.register_forward_pre_hook(_prepend_prefix, with_kwargs=True)
    return Prefix(values_V, model.config.layers, model.config.key_heads).to(model.embed_tokens.weight.device)


def added_prefixes(net: nn.Module) -> dict[str, Prefix]:
    """The prefixes that were added, by hash; changing it changes what the model knows."""
    return getattr(getattr(net, "decoder", None), "prefixes", None) or {}


def applied_prefix(model: nn.Module) -> Prefix | None:
    """The prefix in front of a pass, as adapters are assigned now. Raises ValueError: its rows have different ones."""
    now = assignment()
    attached: Prefix | None = getattr(model, "prefix", None)
    if now is None:
        return attached
    loaded: dict[str, Prefix] = getattr(model, "prefixes", None) or {}
    prefixes = [attached if name == ATTACHED else loaded.get(name) for name in now.names]
    if any(other is not prefixes[0] for other in prefixes):
        raise ValueError("rows behind different prefixes can't share a pass")
    return prefixes[0]


def add_saved_prefix(net: nn.Module, folder: Path, base_fingerprint: str = "") -> str:
    """Load a prefix next to what `net` has, and return its hash; see `add_adapter`."""
    values, name = _read_prefix(net, folder, base_fingerprint)
    model = _llama(net)
    if getattr(model, "prefixes", None) is None:
        model.prefixes = {}
    model.prefixes.setdefault(name, _new_prefix(model, values).requires_grad_(False))  # one that is there may be in use
    return name


def _llama(net: nn.Module) -> Any:
    if not isinstance(net, Llama):
        message, step = "Prefix tuning works with tuneloop's own model only", "set train.method=lora"
        raise UserError(message, where="train.method", next_step=step)
    return net.decoder


def prefix_of(net: nn.Module) -> Prefix | None:
    """The prefix in front of this model's rows, if there is one."""
    return getattr(getattr(net, "decoder", None), "prefix", None)


def remove_prefix(net: nn.Module) -> None:
    """Take the prefix away; the base model is as it was."""
    if prefix_of(net) is not None:
        model = _llama(net)
        del model.prefix
        if not added_prefixes(net):
            model.prefix_hook.remove()
            del model.prefix_hook


def save_prefix(folder: Path, net: nn.Module, base_model: str, base_fingerprint: str) -> None:
    """Write the prefix as PEFT's PREFIX_TUNING adapter."""
    prefix, config = prefix_of(net), _llama(net).config
    assert prefix is not None
    settings = {
        "peft_type": "PREFIX_TUNING", "base_model_name_or_path": base_model, "num_virtual_tokens": prefix.length,
        "token_dim": config.key_heads * config.head_size, "num_attention_heads": prefix.key_heads,
        "num_layers": prefix.layers, "num_transformer_submodules": 1, "encoder_hidden_size": config.hidden_size,
        "prefix_projection": False,
    }  # fmt: skip
    state = {NAME: copied(prefix.embeddings.detach())}
    write_peft(folder, state, settings, {"base_fingerprint": base_fingerprint})


def load_prefix(net: nn.Module, folder: Path, base_fingerprint: str = "") -> Prefix:
    """Put the prefix of a PEFT folder in front of `net`'s rows. Raises UserError: it is damaged, or another model's."""
    return _attach(net, _read_prefix(net, folder, base_fingerprint)[0])


def _read_prefix(net: nn.Module, folder: Path, base_fingerprint: str) -> tuple[Tensor, str]:
    """The virtual tokens' keys and values (V, numbers) of a folder, and their hash."""
    config, state = read_adapter(folder, base_fingerprint)
    if config.get("prefix_projection"):
        step = "save it with PEFT as it computes"
        raise UserError("A prefix with a projection can't be loaded", where=str(folder), next_step=step)
    model = _llama(net)
    shape: Any = net.config
    width = 2 * shape.layers * shape.key_heads * shape.head_size
    tokens = config.get("num_virtual_tokens")
    if type(tokens) is not int or not 0 < tokens <= 65536:
        message = f"The adapter's settings can't be: num_virtual_tokens = {tokens!r:.60}"
        raise UserError(message, where=str(folder), next_step=RESTORE)
    empty = torch.zeros(tokens, width, device=model.embed_tokens.weight.device)
    copy_tensors(state, {NAME: empty}, str(folder))
    return empty, state_hash(state)
