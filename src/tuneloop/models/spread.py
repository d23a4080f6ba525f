"""A model on several cards of one process: some layers on each, which compute one after the other.

For answers of a model that no single card has room for. Embeddings, the last norm and the vocabulary projection are on the first
card, where prompts begin and tokens are drawn. Several processes divide a model otherwise (`train.distributed`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tuneloop.core.device import CARD_SHARE, available, cards, cards_with_room
from tuneloop.core.errors import UserError
from tuneloop.core.machine import GIB

if TYPE_CHECKING:
    from torch import nn


def bytes_of(module: nn.Module) -> int:
    """Of a module's weights."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def cards_for(net: Any, layers: Sequence[nn.Module], *, smaller: float = 1.0) -> list[str]:
    """The card of each layer of a model whose weights are on none yet; empty: one has room for all, or there are no several.

    The fewest cards that have room are taken, and filled evenly: what is left on each is for keys and values.

    Args:
        smaller: what the layers' weights come to on a card, of what they are now.

    Raises:
        UserError: all cards together have not enough memory.
    """
    if len(cards()) < 2 or bytes_of(net) <= CARD_SHARE * available() * GIB:
        return []
    return on_cards(net, layers, cards_with_room(), smaller)


def on_cards(net: Any, layers: Sequence[nn.Module], rooms: dict[str, float], smaller: float = 1.0) -> list[str]:
    """`cards_for` by what there is room for on each (GiB)."""
    sizes = [bytes_of(layer) * smaller for layer in layers]
    rest = bytes_of(net) - sum(bytes_of(layer) for layer in layers)
    if not hasattr(net, "hidden"):  # our own Llama only
        return []
    free = {name: CARD_SHARE * gib * GIB for name, gib in rooms.items()}
    if rest + sum(sizes) <= next(iter(free.values())):
        return []
    for count in range(2, len(free) + 1):
        if found := _filled(sizes, rest, dict(list(free.items())[:count])):
            return found
    raise UserError(
        f"The model takes {(rest + sum(sizes)) / GIB:,.1f} GiB, and {len(rooms)} GPUs have {sum(rooms.values()):,.1f} GiB free",
        where="model", next_step="take more or larger GPUs, or a smaller model",
    )  # fmt: skip


def _filled(sizes: Sequence[float], rest: float, free: dict[str, float]) -> list[str]:
    """Layers in order on cards, each filled to the same share of its room; empty where they don't fit."""
    share = (rest + sum(sizes)) / sum(free.values())
    places: list[str] = []
    for i, (name, room) in enumerate(free.items()):
        taken, last = (rest if i == 0 else 0.0), i == len(free) - 1
        while len(places) < len(sizes) and taken + sizes[len(places)] <= room:
            if not last and taken + sizes[len(places)] / 2 > share * room:
                break
            taken += sizes[len(places)]
            places.append(name)
    return places if len(places) == len(sizes) else []


def put_on_cards(net: Any, places: Sequence[str], prepare: Callable[[nn.Module], None] | None = None) -> nn.Module:
    """Move each layer of our own Llama to its card, and the rest to the first, frozen and set to answer.

    Args:
        places: the card of each layer, from `cards_for`.
        prepare: what is done to a layer on its card, see `load_model`.
    """
    for layer, card in zip(net.model.layers, places, strict=True):
        layer.to(card)
        if prepare is not None:
            prepare(layer)
    first = next(iter(cards()))
    for rest in (net.model.embed_tokens, net.model.norm, net.lm_head):
        rest.to(first)
    if net.config.tied:
        net.lm_head.weight = net.model.embed_tokens.weight
    net.model.spread()
    found: nn.Module = net.requires_grad_(False).eval()
    return found
