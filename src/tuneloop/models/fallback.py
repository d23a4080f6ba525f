"""Models that our own Llama does not compute, through Transformers' classes, behind the same few functions."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object
from tuneloop.core.threads import adapt_threads
from tuneloop.core.ui import without_bars
from tuneloop.models.adapters import rows_of_tokens
from tuneloop.models.families import FAMILIES


def load(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load any causal language model that Transformers knows. Raises UserError: it can't, or is not installed."""
    with _user_errors(folder), without_bars():
        from transformers import AutoModelForCausalLM

        _check_known(folder)
        net, about = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        if (missing := sorted(about["missing_keys"])) and not getattr(net, "is_quantized", False):
            raise ValueError(f"{missing[0]} is missing among its weights")  # else it is drawn at random
        compressor = getattr(getattr(net, "hf_quantizer", None), "compressor", None)
        if compressor is not None:  # only the whole model's forward pass would unpack, not the decoder's
            compressor.decompress_model(model=net)
    return net  # type: ignore[no-any-return]


def empty(folder: Path) -> nn.Module:
    """The modules of such a model, their weights without values. Raises UserError: as `load`."""
    with _user_errors(folder), torch.device("meta"):
        from transformers import AutoConfig, AutoModelForCausalLM

        _check_known(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        net: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return net


def _check_known(folder: Path) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    file = folder / "config.json"
    kind = read_json_object(file).get("model_type")
    if kind is not None and kind not in CONFIG_MAPPING:
        what = f"The architecture {kind!r} is neither one of {', '.join(FAMILIES)}, nor one of Transformers"
        step = "try a newer Transformers (pip install -U transformers), or ask its GGUF file with engine=llama.cpp"
        raise UserError(what, where=str(file), next_step=step)


@contextlib.contextmanager
def _user_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except ImportError:
        what = "This architecture, or its weights in fewer bits, needs another package"
        step = "pip install 'tuneloop[transformers]', and 'tuneloop[compressed]' for compressed-tensors weights"
        raise UserError(what, where=str(folder), next_step=step) from None
    except UserError:
        raise
    except Exception as error:  # whatever its classes raise for a configuration that makes no sense
        what = (str(error).splitlines() or [type(error).__name__])[0][:200]
        step = "check that it is a causal language model and complete"
        raise UserError(f"Transformers can't load this model: {what}", where=str(folder), next_step=step) from None


class TransformersCache:
    """Transformers' cache with the operations that we need."""

    def __init__(self, inner: Any = None) -> None:
        from transformers import DynamicCache

        self.inner = inner if inner is not None else DynamicCache()

    @property
    def length(self) -> int:
        """Tokens held a row, padding included."""
        return int(self.inner.get_seq_length())

    def select(self, rows: Tensor) -> TransformersCache:
        """The same for some rows, or for rows repeated; a copy."""
        inner = copy.deepcopy(self.inner)
        inner.batch_select_indices(rows)
        return TransformersCache(inner)

    def joined(self, other: TransformersCache, prefix: int = 0) -> TransformersCache:
        """The rows of both; see `KeyValues.joined`."""
        inner = copy.deepcopy(self.inner)
        length = max(self.length, other.length)

        def aligned(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (0, 0, length - x.shape[2], 0))

        for mine, theirs in zip(inner.layers, other.inner.layers, strict=True):
            mine.keys = torch.cat((aligned(mine.keys), aligned(theirs.keys)))
            mine.values = torch.cat((aligned(mine.values), aligned(theirs.values)))
        return TransformersCache(inner)

    def without_first(self, places: int, prefix: int = 0) -> TransformersCache:
        """Without so many places at the beginning; a copy."""
        inner = copy.deepcopy(self.inner)
        for layer in inner.layers:
            layer.keys, layer.values = layer.keys[:, :, places:], layer.values[:, :, places:]
        return TransformersCache(inner)


@functools.cache
def _cache_argument(kind: Any) -> str:
    """What Transformers calls the cache: `cache` since 5.24, of models that follow."""
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


def hidden(
    net: nn.Module, ids_BT: Tensor, positions_BT: Tensor | None, mask: Tensor | None, cache: TransformersCache | None
) -> Tensor:
    """Hidden states (B, T, C) of a Transformers model; see `Model.hidden`."""
    adapt_threads()
    dtype = next(net.parameters()).dtype
    bias = None
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
        bias = bias.expand(ids_BT.shape[0], -1, -1, -1)
    if positions_BT is not None:
        positions_BT = positions_BT.expand(ids_BT.shape)
    rows, length = ids_BT.shape
    with rows_of_tokens(torch.arange(rows, device=ids_BT.device).repeat_interleave(length), rows):
        decoder: Any = net.get_decoder()  # type: ignore[operator]
        inputs = {"input_ids": ids_BT, "attention_mask": bias, "position_ids": positions_BT}
        inputs[_cache_argument(decoder.__class__)] = cache.inner if cache is not None else None
        state: Tensor = decoder(**inputs, use_cache=cache is not None).last_hidden_state
    return state
