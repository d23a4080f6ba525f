"""Compiled layers compute what plain ones do, once for all lengths of rows, and never answer for the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train_helpers import changed, make_rows

from tuneloop.models.adapters.assignment import BASE, applied
from tuneloop.models.adapters.lora import lora_layers
from tuneloop.models.load import load_model
from tuneloop.training.methods import attach, compile_layers


@pytest.mark.slow  # torch's compiler is imported
def test_layers_are_compiled_once_and_the_base_goes_around_what_is_compiled(tiny_llama: Path) -> None:
    from torch._dynamo.testing import CompileCounter

    from tuneloop.models.nn.llama import Documents

    model = load_model(str(tiny_llama), dtype="float32")
    config = changed()
    rows = make_rows(model.template, 6)
    attach(model, config, 0, rows)
    with torch.no_grad():
        for layer in lora_layers(model.net).values():
            layer.lora_B.normal_(std=0.1)
    batches = [([7, 5, 9], torch.arange(21)), ([4, 11, 6], torch.arange(21) + 3), ([9, 9], torch.arange(18) + 40)]
    decoder = model.net.model
    plain = [decoder.documents(lengths, ids).detach() for lengths, ids in batches]  # type: ignore[operator,union-attr]
    with torch.no_grad(), applied(BASE):
        base = decoder.documents(*batches[0])  # type: ignore[operator,union-attr]
    counter, attend = CompileCounter(), Documents.attend
    try:
        compile_layers(model.net, backend=counter)
        found, graphs = [], []
        for lengths, ids in batches:
            out = decoder.documents(lengths, ids)  # type: ignore[operator,union-attr]
            out.sum().backward()
            found.append(out.detach())
            graphs.append(counter.frame_count)
        with torch.no_grad(), applied(BASE):
            around = decoder.documents(*batches[0])  # type: ignore[operator,union-attr]
    finally:
        Documents.attend = attend  # type: ignore[method-assign]
    for item, other in zip(plain, found, strict=True):
        torch.testing.assert_close(item, other)
    torch.testing.assert_close(base, around)
    assert not torch.allclose(base, plain[0], atol=1e-3)
    assert 0 < graphs[0] == graphs[-1] <= 8, "rows of other lengths are computed by what is compiled already"
