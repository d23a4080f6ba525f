"""Models that our own Llama does not compute, through Transformers' classes, behind the same few functions."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object
from tuneloop.core.threads import adapt_threads
from tuneloop.core.ui import say, without_bars
from tuneloop.models.adapters.assignment import rows_of_tokens
from tuneloop.models.nn.families import FAMILIES

ROWS_AT_ONCE = 64  # that are read again in one pass
CLOSE = 0.2  # of the logits: two ways of computing a mixture in 16 bits may take other experts for a token


def load(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load any causal language model that Transformers knows. Raises UserError: it can't, or is not installed."""
    with _user_errors(folder), without_bars():
        net, about = _class_for(folder).from_pretrained(
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
    if compressor is not None or not getattr(net, "is_quantized", False):  # others in fewer bits need a GPU
        _check_answers(net, folder)
    return net  # type: ignore[no-any-return]


def empty(folder: Path) -> nn.Module:
    """The modules of such a model, their weights without values. Raises UserError: as `load`."""
    with _user_errors(folder), torch.device("meta"):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        net: nn.Module = _class_for(folder).from_config(config, trust_remote_code=False)
    return net


def _class_for(folder: Path) -> Any:
    """The class that makes a model of a folder: of one that also reads pictures that of both, as whose parts its files
    name their weights. Raises UserError: Transformers does not know the architecture."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    file = folder / "config.json"
    config = read_json_object(file)
    kind = config.get("model_type")
    if kind is not None and kind not in CONFIG_MAPPING:
        message = f"The architecture {kind!r} is neither one of {', '.join(FAMILIES)}, nor one of Transformers"
        step = "try a newer Transformers (pip install -U transformers), or ask its GGUF file with engine=llama.cpp"
        raise UserError(message, where=str(file), next_step=step)
    of_both = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind)
    alone = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and of_both not in (config.get("architectures") or ())
    return AutoModelForImageTextToText if of_both and not alone else AutoModelForCausalLM


@contextlib.contextmanager
def _user_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except ImportError:
        message = "This architecture, or its weights in fewer bits, needs another package"
        step = "pip install 'tuneloop[transformers]', and 'tuneloop[compressed]' for compressed-tensors weights"
        raise UserError(message, where=str(folder), next_step=step) from None
    except UserError:
        raise
    except Exception as error:  # whatever its classes raise for a configuration that makes no sense
        message = (str(error).splitlines() or [type(error).__name__])[0][:200]
        step = "check that it is a causal language model and complete"
        raise UserError(f"Transformers can't load this model: {message}", where=str(folder), next_step=step) from None


def _check_answers(net: Any, folder: Path) -> None:
    """Compare what is computed here, in two steps behind a cache, with the model's own pass; where layers carry a state
    from token to token, rows are read again at each step. Raises UserError: either way differs."""
    kind, ids = net.config.get_text_config().model_type, torch.arange(3, 11)[None]
    mask, rest = torch.ones(2, 8, dtype=torch.bool).tril(6)[None, None], torch.tensor([[6, 7]])
    cap, problem = _cap(net), "its logits are changed in a way that is not known here"
    for again in (False, True):
        net.reads_again = again
        try:
            with torch.no_grad():
                theirs = net(input_ids=ids).logits[0, -2:].float()
                net.get_decoder().layers  # noqa: B018  # adapters and cards are placed by it
                cache = new_cache(net)
                hidden(net, ids[:, :-2], None, None, cache)
                state = hidden(net, ids[:, -2:], rest, mask, cache.select(torch.tensor([0])))[0]
                ours = (state @ net.get_output_embeddings().weight.T).float()
        except Exception as error:  # whatever a class raises that has no such parts
            problem = f"{type(error).__name__}: {error}"
            continue
        if ((torch.tanh(ours / cap) * cap if cap else ours) - theirs).norm() <= CLOSE * theirs.norm():
            if cap:
                say(f"note      {kind} limits its logits to {cap:g}: probabilities and losses are without the limit")
            if again:
                say(f"note      {kind} carries a state from token to token: each token written reads its row again")
            return
    step = "ask its GGUF file with engine=llama.cpp, or a server of it by its URL, and tune a model of another family"
    message = f"Models of the kind {kind!r} can't be answered here: {problem}".splitlines()[0][:200]
    raise UserError(message, where=str(folder), next_step=step)


def _cap(net: Any) -> float:
    """The largest logit that a model lets through; 0: any."""
    return float(getattr(net.config.get_text_config(), "final_logit_softcapping", None) or 0.0)


def _logit_scale(net: Any) -> float:
    """What a model multiplies its logits by."""
    config = net.config.get_text_config()
    factors = (getattr(config, name, None) or 1.0 for name in ("logit_scale", "lm_head_multiplier"))
    return math.prod(map(float, factors)) / float(getattr(config, "logits_scaling", None) or 1.0)


class TransformersCache:
    """Transformers' cache with the operations that we need, and the positions of its tokens (B or 1, S)."""

    def __init__(self, inner: Any = None, positions: Tensor | None = None) -> None:
        from transformers import DynamicCache

        self.inner = inner if inner is not None else DynamicCache()
        self.positions = torch.empty(1, 0, dtype=torch.long) if positions is None else positions

    @property
    def length(self) -> int:
        """Tokens held a row, padding included."""
        return int(self.inner.get_seq_length())

    def select(self, rows: Tensor) -> TransformersCache:
        """The same for some rows, or for rows repeated; a copy."""
        inner = copy.deepcopy(self.inner)
        inner.batch_select_indices(rows)
        alike = len(self.positions) == 1
        return TransformersCache(inner, self.positions if alike else self.positions[rows.to(self.positions.device)])

    def extend(self, positions_BT: Tensor) -> Tensor:
        """Note the positions of further tokens; all of them (B or 1, S)."""
        rows = max(len(self.positions), len(positions_BT))
        both = self.positions.to(positions_BT.device).expand(rows, -1), positions_BT.expand(rows, -1)
        self.positions = torch.cat(both, 1)
        return self.positions

    def joined(self, other: TransformersCache, prefix: int = 0) -> TransformersCache:
        """The rows of both; see `KeyValues.joined`."""
        inner = copy.deepcopy(self.inner)
        length = max(self.length, other.length)

        def aligned(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (0, 0, length - x.shape[2], 0))

        for mine, theirs in zip(inner.layers, other.inner.layers, strict=True):
            mine.keys = torch.cat((aligned(mine.keys), aligned(theirs.keys)))
            mine.values = torch.cat((aligned(mine.values), aligned(theirs.values)))
        positions = [
            torch.nn.functional.pad(cache.positions, (length - cache.length, 0)).expand(cache.rows, -1)
            for cache in (self, other)
        ]
        return TransformersCache(inner, torch.cat(positions))

    @property
    def rows(self) -> int:
        """Rows held."""
        return int(self.inner.layers[0].keys.shape[0])

    def without_first(self, places: int, prefix: int = 0) -> TransformersCache:
        """Without so many places at the beginning; a copy."""
        inner = copy.deepcopy(self.inner)
        for layer in inner.layers:
            layer.keys, layer.values = layer.keys[:, :, places:], layer.values[:, :, places:]
        return TransformersCache(inner, self.positions[:, places:])


class ReadAgain:
    """In the place of a cache: the tokens (B, S), which are read again at each step."""

    def __init__(self, ids: Tensor | None = None) -> None:
        self.ids = torch.empty(1, 0, dtype=torch.long) if ids is None else ids

    @property
    def length(self) -> int:
        """Tokens held a row, padding included."""
        return self.ids.shape[1]

    def select(self, rows: Tensor) -> ReadAgain:
        """The same for some rows, or for rows repeated."""
        return ReadAgain(self.ids[rows.to(self.ids.device)])

    def joined(self, other: ReadAgain, prefix: int = 0) -> ReadAgain:
        """The rows of both; see `KeyValues.joined`."""
        length = max(self.length, other.length)
        return ReadAgain(
            torch.cat([torch.nn.functional.pad(batch.ids, (length - batch.length, 0)) for batch in (self, other)])
        )

    def without_first(self, places: int, prefix: int = 0) -> ReadAgain:
        """Without so many places at the beginning."""
        return ReadAgain(self.ids[:, places:])


def new_cache(net: Any) -> TransformersCache | ReadAgain:
    """An empty cache for a model that `load` has loaded."""
    return ReadAgain() if getattr(net, "reads_again", False) else TransformersCache()


@functools.cache
def _cache_argument(kind: Any) -> str:
    """What Transformers calls the cache: `cache` since 5.24, of models that follow."""
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


def hidden(
    net: nn.Module,
    ids_BT: Tensor,
    positions_BT: Tensor | None,
    mask: Tensor | None,
    cache: TransformersCache | ReadAgain | None,
) -> Tensor:
    """Hidden states (B, T, C) of a Transformers model, times what it multiplies its logits by; see `Model.hidden`."""
    adapt_threads()
    if isinstance(cache, ReadAgain) or (mask is not None and getattr(net, "reads_again", False)):
        return _read_again(net, ids_BT, mask, cache if isinstance(cache, ReadAgain) else ReadAgain())
    rows, length = ids_BT.shape
    decoder: Any = net.get_decoder()  # type: ignore[operator]
    before = 0 if cache is None else cache.length
    places = torch.arange(before, before + length, device=ids_BT.device)[None] if positions_BT is None else positions_BT
    known = places if cache is None else cache.extend(places)
    if positions_BT is not None:
        positions_BT = positions_BT.expand(ids_BT.shape)
    masks = None if mask is None else _masks(decoder, mask, places, known, next(net.parameters()).dtype, rows)
    with rows_of_tokens(torch.arange(rows, device=ids_BT.device).repeat_interleave(length), rows):
        inputs = {"input_ids": ids_BT, "attention_mask": masks, "position_ids": positions_BT}
        inputs[_cache_argument(decoder.__class__)] = cache.inner if cache is not None else None
        state: Tensor = decoder(**inputs, use_cache=cache is not None).last_hidden_state
    scale = _logit_scale(net)
    return state if scale == 1 else state * scale


def _read_again(net: Any, ids_BT: Tensor, mask: Tensor | None, cache: ReadAgain) -> Tensor:
    """`hidden`, where new tokens are read behind those that they see, from the first on; each branch as a row."""
    (B, T), S, device = ids_BT.shape, cache.length, ids_BT.device
    cache.ids = torch.cat((cache.ids.to(device).expand(B, -1), ids_BT), 1)
    causal = torch.ones(T, S + T, dtype=torch.bool, device=device).tril(S)
    seen_BTS = (causal if mask is None else mask[:, 0] & causal).expand(B, -1, -1)
    by_others = seen_BTS[:, :, S:] & ~torch.eye(T, dtype=torch.bool, device=device)
    ends = (~by_others.any(1) & seen_BTS[:, :, S:].diagonal(dim1=1, dim2=2)).nonzero().tolist()  # of branches
    paths = [(row, seen_BTS[row, end].nonzero()[:, 0]) for row, end in ends]
    states: Tensor = torch.zeros(B, T, net.get_output_embeddings().weight.shape[1], device=device)
    for start in range(0, len(paths), ROWS_AT_ONCE):
        some = paths[start : start + ROWS_AT_ONCE]
        read = torch.nn.utils.rnn.pad_sequence([cache.ids[row, path] for row, path in some], batch_first=True)
        rows = torch.tensor([row for row, _ in some], device=device).repeat_interleave(read.shape[1])
        with rows_of_tokens(rows, B):
            found = net.get_decoder()(input_ids=read, use_cache=False).last_hidden_state
        states = states.to(found.dtype)
        for (row, path), of_path in zip(some, found, strict=True):
            new = path >= S
            states[row, path[new] - S] = of_path[: len(path)][new]
    return states * _logit_scale(net)


def _masks(decoder: Any, mask: Tensor, places_BT: Tensor, known_BS: Tensor, dtype: torch.dtype, rows: int) -> Any:
    """What is added to scores, (B, 1, T, S): for all layers, or for each kind of layers where a model tells them apart.
    Layers with a window or chunks see of what the mask allows only the near positions."""
    config = decoder.config
    window, chunk = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    of_queries, of_keys = places_BT[:, None, :, None], known_BS[:, None, None, :]
    near = mask if not window else mask & (of_queries - of_keys < window)
    seen = {"full_attention": mask, "sliding_attention": near}
    if chunk:
        seen["chunked_attention"] = mask & (of_queries // chunk == of_keys // chunk)

    def added(some: Tensor) -> Tensor:
        bias = torch.zeros_like(some, dtype=dtype).masked_fill_(~some, torch.finfo(dtype).min)
        return bias.expand(rows, -1, -1, -1)

    if _tells_layers_apart(decoder.__class__):
        return {kind: added(seen[kind]) for kind in set(config.layer_types)}
    return added(mask if getattr(config, "use_sliding_window", True) is False else near)


@functools.cache
def _tells_layers_apart(kind: Any) -> bool:
    """Whether a model takes a mask for each kind of its layers."""
    return "isinstance(causal_mask_mapping" in inspect.getsource(kind.forward)
