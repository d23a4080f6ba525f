"""An adapter of random matrices, as a control: what merging with it costs is not what a second task costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tuneloop.combine.merge.adapters import Adapter
from tuneloop.core.files import write_bytes, write_json
from tuneloop.models.peft_layout import SETTINGS, WEIGHTS


def random_adapter(like: Adapter, out: Path, seed: int) -> Adapter:
    """An adapter with the shapes of another one and, in each matrix, normal entries of the same root mean square.

    Args:
        like: the adapter.
        out: folder that it is written to.
        seed: of the entries.
    """
    import torch
    from safetensors.torch import load_file, save

    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(tensor.shape, generator=generator) * tensor.float().square().mean().sqrt()
        for name, tensor in sorted(load_file(like.folder / WEIGHTS).items())
    }
    write_bytes(out / WEIGHTS, save(state, metadata={"format": "pt"}))
    write_json(out / SETTINGS, like.settings)
    return replace(like, name=f"random for {like.name}", folder=out)
