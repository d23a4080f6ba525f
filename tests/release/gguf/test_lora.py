"""A LoRA file does in llama.cpp what the adapter does here, whatever its scale; what it can't say is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import BEGIN_OF_TEXT, WORDS

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, write_json
from tuneloop.inference.llamacpp.process import LlamaCpp, installed
from tuneloop.models.chat.template import load_template
from tuneloop.models.load import load_model
from tuneloop.models.trained import load_trained
from tuneloop.release.gguf.convert import About, write_gguf
from tuneloop.release.gguf.lora import scale_of, write_gguf_lora
from tuneloop.release.tuned_weights import open_tuned

MakeRun = Callable[..., Path]
llamacpp = pytest.mark.skipif(
    not installed(), reason="llama-cpp-py-sync is not installed: no llama.cpp to compare with"
)


@pytest.fixture(scope="module")
def base_file(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "base.gguf"
    write_gguf(open_tuned("", tiny_llama), load_template(tiny_llama), out, "f32", About("base"))
    return out


@llamacpp
@pytest.mark.parametrize(
    "settings",
    [{}, {"rslora": True}, {"rslora": True, "ranks": {"q_proj": 8, "down_proj": 2}}, {"targets": "attention"}],
    ids=["plain", "rslora", "ranks of their own", "attention"],
)
def test_llamacpp_computes_the_adapter(
    settings: dict[str, Any], tiny_llama: Path, base_file: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(**settings)
    write_gguf_lora(tiny_llama, run / "adapter", tmp_path / "lora.gguf", "f32", "x")
    tuned = load_model(str(tiny_llama), dtype="float32")
    load_trained(tuned, run)
    draw = random.Random(0)
    ids = [BEGIN_OF_TEXT, *(draw.randrange(WORDS) for _ in range(30))]
    with torch.inference_mode():
        wanted = tuned.net.logits(tuned.hidden(torch.tensor([ids])))[0].numpy()  # type: ignore[operator]
    with LlamaCpp(base_file, [tmp_path / "lora.gguf"], exact=True) as llama:
        found = llama.logits(ids)
    with LlamaCpp(base_file, exact=True) as llama:
        base = llama.logits(ids)
    assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)
    assert np.linalg.norm(base - wanted) > 1e-2 * np.linalg.norm(wanted), "the adapter does something"


def test_scales_are_peft_s() -> None:
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 6, "rank_pattern": {"b": 2, r"layers\.1\.c": 8}, "alpha_pattern": {"c": 3}}
    net = torch.nn.ModuleDict({"b": torch.nn.Linear(8, 8), "layers": torch.nn.ModuleList(
        [torch.nn.ModuleDict({"c": torch.nn.Linear(8, 8), "d": torch.nn.Linear(8, 8)}) for _ in range(2)])})  # fmt: skip
    for rslora in (False, True):
        config = LoraConfig(**settings, use_rslora=rslora, target_modules=["b", "c", "d"])  # type: ignore[arg-type]
        theirs = get_peft_model(net, config)
        scales = {
            name: module.scaling["default"] for name, module in theirs.named_modules() if hasattr(module, "scaling")
        }
        for name, scale in scales.items():
            stem = name.removeprefix("base_model.model.")
            assert scale_of({**settings, "use_rslora": rslora}, stem) == pytest.approx(scale), stem
        assert len(set(scales.values())) >= 4
        net = theirs.unload()


@pytest.mark.parametrize(
    ("change", "message", "way_out"),
    [
        ({"use_dora": True}, "DoRA's learned lengths", "--format gguf:"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save", "--format gguf:"),
        ({"bias": "all"}, "trained biases", "--format gguf:"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING", "--format adapter"),
        ({"peft_type": "IA3"}, "IA3", "--format gguf:"),
    ],
)
def test_what_a_lora_file_cannot_hold_is_refused(
    change: dict[str, Any], message: str, way_out: str, tiny_llama: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    adapter = make_run() / "adapter"
    write_json(adapter / "adapter_config.json", {**read_json(adapter / "adapter_config.json"), **change})
    with pytest.raises(UserError, match=message) as refused:
        write_gguf_lora(tiny_llama, adapter, tmp_path / "lora.gguf", "f32", "x")
    assert way_out in str(refused.value.next_step) and not (tmp_path / "lora.gguf").exists()
