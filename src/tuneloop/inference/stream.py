"""One answer as it is written, for people who wait for it; many at once are faster with `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tuneloop.inference.sampling import greedy
from tuneloop.models.load import Model


def stream_ids(model: Model, prompt: Sequence[int], *, max_new_tokens: int) -> Iterator[int]:
    """The ids of a greedy answer, one by one; that which ends the turn is the last.

    Args:
        prompt: token ids that end with the assistant's header.
        max_new_tokens: length at which the answer is cut.
    """
    import torch

    cache = model.new_cache()
    ids = torch.tensor([list(prompt)], device=model.device)
    positions = torch.arange(len(prompt), device=model.device)[None]
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            hidden = model.hidden(ids, positions, None, cache)[:, -1]
            token = int(greedy(hidden, model.head))
        yield token
        if token in model.template.end_ids:
            return
        ids = torch.tensor([[token]], device=model.device)
        positions = positions[:, -1:] + 1


def stream_text(model: Model, ids: Iterator[int]) -> Iterator[str]:
    """The text of ids in pieces as they come: characters that need several tokens come whole, outer white space not at all.

    The pieces together are the text that `generate` gives.
    """
    new: list[int] = []
    shown = ""
    for token in ids:
        if token not in model.template.end_ids:
            new.append(token)
        text = model.template.decode(new).strip()
        if len(text) > len(shown) and not text.endswith("\ufffd") and text.startswith(shown):
            yield text[len(shown) :]
            shown = text
    text = model.template.decode(new).strip()
    if len(text) > len(shown):
        yield text[len(shown) :]
