"""Load a base model: our own Llama where the architecture allows, Transformers' classes for the rest.

A model that no single card has room for is spread over several cards of one process: its layers compute one after the
other; embeddings, the last norm and the vocabulary projection are on the first card, where prompts begin and tokens are
drawn. Several processes divide a model otherwise (`training.distributed`).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.device import CARD_SHARE, available, backend, cards, cards_with_room, default_dtype, in_use, put
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object
from tuneloop.core.foreign import BeyondLimits, opened_safetensors
from tuneloop.core.machine import GIB, processes
from tuneloop.models.adapters.assignment import is_mixed
from tuneloop.models.chat.template import Template, load_template
from tuneloop.models.files.names import is_encoder, resolve
from tuneloop.models.nn.families import language_config, module_name, part_of, reads_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Prepare = Callable[["nn.Module"], None]
PASS = 64  # tokens that take as long as one more forward and backward pass does alone


@dataclass(frozen=True)
class Model:
    """A loaded causal language model."""

    name: str  # as the user gave it
    folder: Path  # where its files are
    net: nn.Module  # the network; module names are Transformers', so adapters fit both
    template: Template  # tokenizer and chat template
    config: dict[str, Any]  # `config.json`
    fingerprint: str  # hash that identifies weights and tokenizer
    # Gets the answers of all processes that hold the same model; None: this one answers alone.
    workers: Callable[..., list[Any]] | None = None

    @property
    def context(self) -> int:
        """Tokens that the model can attend to."""
        net: Any = self.net  # Transformers knows what a model of several parts leaves out of its `config.json`
        text = language_config(self.config) if self.is_own else net.config.get_text_config().to_dict()
        return int(text.get("max_position_embeddings") or 2048)

    @property
    def head(self) -> Tensor:
        """The vocabulary projection's weight (V, C)."""
        net: Any = self.net
        return net.lm_head.weight if self.is_own else net.get_output_embeddings().weight  # type: ignore[no-any-return]

    @property
    def is_own(self) -> bool:
        """Whether our own Llama computes it."""
        from tuneloop.models.nn.llama import Llama

        return isinstance(self.net, Llama)

    @property
    def is_sharded(self) -> bool:
        """Whether its layers are on several cards, see `cards_for`."""
        return self.is_own and bool(self.net.decoder.cards)  # type: ignore[union-attr]

    @property
    def device(self) -> torch.device:
        """Where the weights are; of a model on several cards the first, which takes tokens and gives states."""
        return self.head.device

    def new_cache(self) -> Any:
        """An empty cache of keys and values."""
        if self.is_own:
            return self.net.new_cache()  # type: ignore[operator]
        from tuneloop.models.nn.fallback import new_cache

        return new_cache(self.net)

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Any = None,
        real_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T, C) before the vocabulary projection.

        Args:
            positions_BT: position of each token; default 0, 1, 2 ...
            mask: True where a query may look (B or 1, 1, T, S), S counting cached tokens first; default causal.
            cache: from `new_cache`; extended in place.
            real_BT: False for padding, whose states mean nothing; our own Llama does not compute them.
        """
        if self.is_own:
            return self.net.hidden(ids_BT, positions_BT, mask, cache, real_BT)  # type: ignore[operator,no-any-return]
        from tuneloop.models.nn.fallback import hidden

        return hidden(self.net, ids_BT, positions_BT, mask, cache)

    def shares(self, length: int, *, behind_prefix: bool = False) -> bool:
        """Whether the rows' common beginning is computed once: in our own Llama on a processor, up to a length where
        attention takes plain products; `behind_prefix`: as if a trained prefix were attached."""
        from tuneloop.models.nn.llama import by_products

        plain = not behind_prefix and self._has_plain_rows() and by_products(self.head, length)
        return plain and self.net.config.sees_all(length)  # type: ignore[union-attr,operator]

    @property
    def by_documents(self) -> bool:
        """Whether rows are best laid out one behind the other, without padding: in our own Llama on a GPU."""
        return self._has_plain_rows() and not backend(self.device).is_cpu

    def _has_plain_rows(self) -> bool:
        """Whether our own Llama computes all rows with one adapter and without a trained prefix."""
        from tuneloop.models.adapters.prefix import applied_prefix

        return self.is_own and not is_mixed() and applied_prefix(self.net.decoder) is None  # type: ignore[arg-type]

    def hidden_of_rows(self, indices_N: Tensor | None, ids_N: Tensor, lengths: Sequence[int]) -> Tensor:
        """Hidden states (N, C) of rows laid out one behind the other, if `by_documents`; at `indices_N`, or all."""
        return self.net.hidden_of_rows(indices_N, ids_N, lengths)  # type: ignore[operator,no-any-return]

    def hidden_at(self, picks_BT: Tensor, prefix_P: Tensor, ids_BT: Tensor, lengths: Sequence[int]) -> Tensor:
        """Hidden states (N, C) at some places of rows that all begin with `prefix_P`, which may be empty.

        Args:
            picks_BT: True at these places; on the host, so that nothing waits for a GPU.
            ids_BT: the rows behind what they share, padded on the right.
            lengths: tokens of each row that are not padding.
        """
        import torch

        from tuneloop.models.nn.llama import group_by_length

        P, (B, T) = len(prefix_P), ids_BT.shape
        if self.shares(P + T):
            return self.net.hidden_at(picks_BT, prefix_P, ids_BT, lengths)  # type: ignore[operator,no-any-return]
        joined = torch.cat((prefix_P.expand(B, -1), ids_BT), 1)
        if self.by_documents:
            real_BT = torch.arange(T) < torch.tensor(list(lengths))[:, None]
            whole = torch.cat((torch.ones(B, P, dtype=torch.bool), real_BT), 1)
            indices = torch.cat((torch.zeros(B, P, dtype=torch.bool), picks_BT), 1)[whole].nonzero()[:, 0]
            places = whole.flatten().nonzero()[:, 0]  # worked out on the host
            ids_N = joined.flatten().index_select(0, put(places, joined.device))
            return self.hidden_of_rows(put(indices, joined.device), ids_N, [P + n for n in lengths])
        # Long rows, rows behind a trained prefix and other architectures are computed with their padding, so rows of
        # similar length go together. Layers that are cut over processes are gathered at every pass, of which all
        # processes need as many: there all rows are one group.
        groups = [list(lengths)] if processes() > 1 else group_by_length(lengths, lambda rows, n: rows * (P + n) + PASS)
        parts, start = [], 0
        for group in groups:
            some, longest = slice(start, start + len(group)), max(group)
            hidden = self.hidden(joined[some, : P + longest])
            rows_N, places_N = (put(index, hidden.device) for index in picks_BT[some, :longest].nonzero().unbind(1))
            parts.append(hidden.flatten(0, 1).index_select(0, rows_N * (P + longest) + P + places_N))
            start = some.stop
        return torch.cat(parts)


def load_model(
    name: str, *, dtype: str = "auto", device: str = "", prepare: Prepare | None = None, alone: bool | None = None
) -> Model:
    """Load a model by folder, short name or hub name.

    Args:
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: see `core.device.default_dtype`.
        device: where the weights go; default: a GPU where there is one, or several where one has no room (`cards_for`).
        prepare: what is done to each layer once it is on the device, before the next one goes there: brought to four
            bits, a model needs no more room than it keeps.
        alone: whether this process may take all cards; default: if it is the only one.

    Raises:
        UserError: it can't be found, or its files are damaged.
    """
    import torch

    refuse_encoder(name)
    folder = resolve(name)
    config = config_of(folder)
    template = load_template(folder)
    net = _load_net(folder, config, default_dtype(device or None) if dtype == "auto" else getattr(torch, dtype))
    may_spread = not device and (processes() == 1 if alone is None else alone)
    net = place_where_room_is(net, prepare) if may_spread else place(net, device or in_use(), prepare)
    model = Model(name, folder, net, template, config, fingerprint(folder))
    _check_tokens(model)
    return model


def _check_tokens(model: Model) -> None:
    """Refuse a tokenizer with tokens beyond the embedding; those that were added and end nothing may be (Gemma 3's for
    images)."""
    template, rows = model.template, model.head.shape[0]
    known = max(template.tokenizer.get_vocab_size(with_added_tokens=False), *(i + 1 for i in template.end_ids))
    if known > rows:
        message = f"The tokenizer has {known:,} tokens and the model's embedding {rows:,}: they belong to two models"
        raise UserError(message, where=str(model.folder), next_step="take both from the same model")


def load_tokenizer(name: str) -> Template:
    """Only the tokenizer and template of a model: fast, and without torch."""
    refuse_encoder(name)
    return load_template(resolve(name))


def refuse_encoder(name: str) -> None:
    """Refuse an encoder where a language model is needed."""
    if is_encoder(name):
        message = "This is an encoder: it chooses labels, and writes no answers"
        step = f"train a head with tuneloop run DATA model={name}, or name a language model"
        raise UserError(message, where=name, next_step=step)


def place(net: nn.Module, device: str, prepare: Prepare | None = None) -> nn.Module:
    """Move a model to a device, layer by layer, frozen and in evaluation mode; see `load_model`."""
    if prepare is not None:
        for layer in layers_of(net):
            prepare(layer.to(device))
    return net.to(device).requires_grad_(False).eval()


def place_where_room_is(net: nn.Module, prepare: Prepare | None = None) -> nn.Module:
    """Move a model to the device in use, or to several cards of this process where one has no room for it."""
    from tuneloop.models.nn.quantised import SHARE_LEFT

    cards = cards_for(net, layers_of(net), smaller=1.0 if prepare is None else SHARE_LEFT)
    return put_on_cards(net, cards, prepare) if cards else place(net, in_use(), prepare)


def needs_several_cards(name: str, dtype: torch.dtype) -> bool:
    """Whether the cards that this process sees have room for a model only together; nothing is loaded. Raises
    UserError: there is no such model, or they have no room for it together either."""
    rooms = cards()
    if len(rooms) < 2:
        return False
    net = skeleton(resolve(name)).to(dtype)
    return bool(_cards_by_room(net, layers_of(net), rooms))


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def cards_for(net: Any, layers: Sequence[nn.Module], *, smaller: float = 1.0) -> list[str]:
    """The card of each layer of a model whose weights are on none yet; empty: one has room for all, or is the only one.

    The fewest cards that have room are taken, and filled evenly: what is left on each is for keys and values. `smaller`
    is what the layers' weights come to on a card, of what they are now. Raises UserError: all cards together have not
    enough memory.
    """
    if len(cards()) < 2 or _bytes(net) <= CARD_SHARE * available() * GIB:
        return []
    return _cards_by_room(net, layers, cards_with_room(), smaller)


def _cards_by_room(net: Any, layers: Sequence[nn.Module], rooms: dict[str, float], smaller: float = 1.0) -> list[str]:
    """`cards_for` by the room on each (GiB)."""
    sizes = [_bytes(layer) * smaller for layer in layers]
    rest = _bytes(net) - sum(map(_bytes, layers))
    if not hasattr(net, "hidden"):  # our own Llama only
        return []
    free = {name: CARD_SHARE * gib * GIB for name, gib in rooms.items()}
    total = rest + sum(sizes)
    if total <= next(iter(free.values())):
        return []
    for count in range(2, len(free) + 1):
        if places := _filled(sizes, rest, dict(list(free.items())[:count])):
            return places
    message = f"The model takes {total / GIB:,.1f} GiB, and {len(rooms)} GPUs have {sum(rooms.values()):,.1f} GiB free"
    raise UserError(message, where="model", next_step="take more or larger GPUs, or a smaller model")


def _filled(sizes: Sequence[float], rest: float, free: dict[str, float]) -> list[str]:
    """Layers in order on cards, each filled to the same share of its room; empty where they don't fit."""
    share = (rest + sum(sizes)) / sum(free.values())
    places: list[str] = []
    for i, (name, room) in enumerate(free.items()):
        load, last = (rest if i == 0 else 0.0), i == len(free) - 1
        while len(places) < len(sizes) and load + sizes[len(places)] <= room:
            if not last and load + sizes[len(places)] / 2 > share * room:
                break
            load += sizes[len(places)]
            places.append(name)
    return places if len(places) == len(sizes) else []


def put_on_cards(net: Any, places: Sequence[str], prepare: Prepare | None = None) -> nn.Module:
    """Move each layer of our own Llama to its card, see `cards_for`, the rest to the first; frozen, not training."""
    for layer, card in zip(net.decoder.layers, places, strict=True):
        layer.to(card)
        if prepare is not None:
            prepare(layer)
    first = next(iter(cards()))
    for rest in (net.decoder.embed_tokens, net.decoder.norm, net.lm_head):
        rest.to(first)
    net.tie()
    net.decoder.note_cards()
    return net.requires_grad_(False).eval()  # type: ignore[no-any-return]


def layers_of(net: Any) -> list[Any]:
    """The transformer blocks of our own Llama or of Transformers' models."""
    decoder = net.decoder if hasattr(net, "hidden") else net.get_decoder()
    return list(decoder.layers)


def _load_net(folder: Path, config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    import torch

    from tuneloop.models.nn.llama import Llama, LlamaConfig

    if not LlamaConfig.supports(config):
        from tuneloop.models.nn.fallback import load

        return load(folder, dtype)
    net = skeleton(folder)
    assert isinstance(net, Llama)
    weights = read_weights(folder)
    state = {key: weights.pop(key).to(dtype) for key in list(weights)}  # one tensor at a time is there in two dtypes
    table = next(name for name in net.state_dict() if name.endswith("embed_tokens.weight"))
    if net.config.tied and (embedding := state.get(table)) is not None:  # else reported below
        head = state.setdefault("lm_head.weight", embedding)
        if head.shape != embedding.shape or not torch.equal(head, embedding):
            raise _other_config("The weights hold a head of their own, and the configuration ties it", folder)
    expected = net.state_dict()
    for key, tensor in expected.items():
        weight = state.get(key)
        if weight is None or weight.shape != tensor.shape:
            problem = "is missing" if weight is None else f"has shape {tuple(weight.shape)}, not {tuple(tensor.shape)}"
            if key == "lm_head.weight" and weight is None:
                raise _other_config("lm_head.weight is missing, and the configuration does not tie it", folder)
            belongs = f"see that config.json, of a {config.get('model_type')!r} model, belongs to these weights, or "
            raise _damaged(f"Damaged model: {key} {problem}", folder, belongs)
    computed = ("rotary_emb.inv_freq",)  # not learned; files of old versions have it
    if odd := [key for key in state if key not in expected and not key.endswith(computed)]:
        kind = config.get("model_type")
        message = f"The weights hold {odd[0]}, which a {kind!r} model lacks: they belong to another config.json"
        raise _damaged(message, folder)
    net.load_state_dict({key: state[key] for key in expected}, assign=True)
    net.tie()
    return net


def _damaged(problem: str, path: Path, first: str = "") -> UserError:
    return UserError(problem, where=str(path), next_step=f"{first}download the model again")


def _other_config(problem: str, folder: Path) -> UserError:
    step = "set tie_word_embeddings as the weights have it, or download the model again"
    return UserError(f"{problem} to the embedding", where=str(folder / "config.json"), next_step=step)


def config_of(folder: Path) -> dict[str, Any]:
    """A model's `config.json`; one of more layers or wider than any model is refused before memory is taken for it. Of
    one that also reads pictures the files say whether it has a head of its own: configurations are often wrong."""
    config = read_json_object(folder / "config.json")
    nested = [config, *(value for value in config.values() if isinstance(value, dict))]
    for key, value in (item for part in nested for item in part.items()):
        limit = 2000 if key.endswith("layers") else 10**7
        if key.endswith(("layers", "size", "heads", "dim")) and type(value) is int and value > limit:
            message = f"The model's configuration has {key} = {value:,}, which can't be"
            raise _damaged(message, folder / "config.json")
    if part_of(config):
        config["tie_word_embeddings"] = True
        for file in weight_files(folder):
            with opened(file) as source:
                if any(name.endswith("lm_head.weight") for name in source.keys()):  # noqa: SIM118 - as above
                    config["tie_word_embeddings"] = False
    return config


def skeleton(folder: Path) -> nn.Module:
    """A model's modules, their weights without values: what it is made of, in no time and memory. Raises UserError:
    Transformers is needed for it and not installed, or does not know it."""
    import torch

    from tuneloop.models.nn.llama import Llama, LlamaConfig

    config = config_of(folder)
    if not LlamaConfig.supports(config):
        from tuneloop.models.nn.fallback import empty

        return empty(folder)
    with torch.device("meta"):
        return Llama(LlamaConfig.from_json(config))


def read_weights(folder: Path, wanted: Callable[[str], bool] = reads_text) -> dict[str, Tensor]:
    """Tensors of a folder's safetensors files by their names in Transformers: those that a model computes texts with.
    Raises UserError: there are none, or one is damaged or holds NaN."""
    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        with opened(file) as source:
            names = {name: module_name(name) for name in source.keys()}  # noqa: SIM118 - it is no dictionary
            state |= {new: source.get_tensor(name) for name, new in names.items() if wanted(new)}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise _damaged(f"The weights hold NaN or infinity in {name}", folder)
    return state


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file, to read tensors one by one. Raises UserError: it can't be read, or is damaged."""
    from safetensors import SafetensorError

    try:
        with opened_safetensors(file) as source:
            yield source
    except (SafetensorError, OSError, BeyondLimits) as error:
        raise _damaged(f"Can't read the weights: {error}", file) from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        files = read_json_object(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise _damaged("The index names no files of weights", index)
        names = sorted(set(files.values()))
    for name in names:
        if Path(name).name != name:
            raise _damaged(f"The index names a file elsewhere: {name!r}", index)
        if not (folder / name).is_file():
            step = "download it whole; weights in .bin form must be converted to safetensors"
            raise UserError(f"The model's folder has no {name}", where=str(folder), next_step=step)
    return [folder / name for name in names]


def fingerprint(folder: Path) -> str:
    """A hash that distinguishes models without reading all their bytes: of configuration, tokenizer, and each weight
    file's header, size and 64 evenly spaced blocks. A change of a few weights alone may go unseen."""
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    for file in weight_files(folder):
        size = file.stat().st_size
        with file.open("rb") as handle:
            header = struct.unpack("<Q", handle.read(8).ljust(8, b"\0"))[0]
            digest.update(handle.read(min(header, 64 << 20)))
            for block in range(64):
                handle.seek(block * max(size - 4096, 0) // 63)
                digest.update(handle.read(4096))
        digest.update(str(size).encode())
    return digest.hexdigest()


LLAMA_3_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
_LLAMA_3 = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "head_dim": 128,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 131072,
            "tie_word_embeddings": False, "rope_parameters": LLAMA_3_ROPE}  # fmt: skip


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    widths = {"hidden_size": hidden, "intermediate_size": intermediate}
    return {**_LLAMA_3, **widths, "num_hidden_layers": layers, "num_attention_heads": heads, **others}


# The `config.json` of Llama 3's sizes, and of one that a processor trains in seconds.
SIZES: dict[str, dict[str, Any]] = {
    "1b": _sizes(2048, 8192, 16, 32, head_dim=64, tie_word_embeddings=True),
    "3b": _sizes(3072, 8192, 28, 24, tie_word_embeddings=True),
    "8b": _sizes(4096, 14336, 32, 32),
    "70b": _sizes(8192, 28672, 80, 64),
    "tiny": _sizes(128, 256, 2, 4, num_key_value_heads=2, head_dim=32, vocab_size=2048),
}


def random_model(
    config: dict[str, Any], template: Template, *, dtype: torch.dtype, device: str = "", prepare: Prepare | None = None
) -> Model:
    """A Llama with random weights, frozen and in evaluation mode, of a `config.json` as in `SIZES`; `device` and
    `prepare` as of `load_model`, the latter before the next layer is made."""
    import torch

    from tuneloop.models.nn.llama import Llama, LlamaConfig

    kind = device or in_use()
    with torch.device("meta"):
        net = Llama(LlamaConfig.from_json(config)).to(dtype)
    torch.manual_seed(0)
    for layer in layers_of(net):
        _fill(layer, kind)
        if prepare is not None:
            prepare(layer)
    for rest in (net.decoder.embed_tokens, net.decoder.norm, net.lm_head):
        _fill(rest, kind)
    net.tie()
    net.requires_grad_(False).eval()
    return Model("random", Path("random"), net, template, config, "random 0")


def _fill(module: Any, device: str) -> None:
    """Give a module's weights memory and values: of matrices so that activations keep their size."""
    import torch

    module.to_empty(device=device)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, weight.shape[-1] ** -0.5)
            else:
                weight.fill_(1.0)
