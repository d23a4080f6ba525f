"""A merged model says what base and adapter say together, in our code and in plain Transformers; nothing else changes."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bf16 import NATIVE_BF16
from safetensors.torch import load_file
from tiny import WORDS

from tuneloop.core.errors import UserError
from tuneloop.models.load import load_model, read_weights
from tuneloop.models.trained import load_trained
from tuneloop.release.tuned_weights import Merge, merge

bits = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
MakeRun = Callable[..., Path]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "ranks": {"ranks": {"q_proj": 2, "layers.1.mlp.up_proj": 8}},
    "attention": {"targets": "attention"},
    "qlora": {"method": "qlora"},
}
EVERY = [pytest.param(kind, marks=bits) if kind == "qlora" else kind for kind in KINDS]
IDS = torch.randint(0, WORDS, (2, 24), generator=torch.Generator().manual_seed(0))


def logits_beside(base: Path, run: Path | None, dtype: str = "float32") -> torch.Tensor:
    """Of the base with the run's adapter next to it, or of the base alone."""
    model = load_model(str(base), dtype=dtype)
    if run is not None:
        load_trained(model, run)
    with torch.no_grad():
        return model.net.logits(model.hidden(IDS)).float()  # type: ignore[operator,no-any-return]


def plain_logits(folder: Path) -> torch.Tensor:
    """As Transformers computes a folder, without us."""
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        return net(IDS).logits.float()  # type: ignore[no-any-return]


def merged(base: Path, run: Path) -> tuple[Path, Merge]:
    out = run / "merged"
    done = merge(str(base), run / "adapter", out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(run / "adapter" / name, out)
    return out, done


@pytest.mark.parametrize("kind", EVERY)
def test_the_merged_model_computes_what_base_and_adapter_compute(
    kind: str, tiny_llama: Path, make_run: MakeRun
) -> None:
    run = make_run(**KINDS[kind])
    out, done = merged(tiny_llama, run)
    beside = logits_beside(tiny_llama, run)
    assert (beside - logits_beside(tiny_llama, None)).abs().max() > 0.5, "the adapter does something"
    torch.testing.assert_close(logits_beside(out, None), beside, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(plain_logits(out), beside, atol=1e-3, rtol=1e-3)
    assert done.tensors == (8 if kind == "attention" else 14)
    assert done.rounding < 1e-5, "an fp32 base takes the update as it is"


@pytest.mark.parametrize("parts", ["one file", "shards"])
def test_files_keep_names_dtypes_and_all_that_no_adapter_touches(
    parts: str, tiny_llama: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    size = "100KB" if parts == "shards" else "1GB"
    AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).save_pretrained(base, max_shard_size=size)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama / name, base)
    files = sorted(path.name for path in base.glob("*.safetensors*"))
    assert (len(files) > 2) == (parts == "shards")
    run = make_run(base=base, targets="attention")
    out, done = merged(base, run)
    assert sorted(path.name for path in out.glob("*.safetensors*")) == files
    before, after = read_weights(base), read_weights(out)
    assert list(before) == list(after)
    for name, tensor in after.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, before[name]) == ("self_attn" not in name), name
    assert 1e-4 < done.rounding < 0.2
    beside = logits_beside(base, run)
    moved = (beside - logits_beside(base, None)).norm()
    assert (logits_beside(out, None) - beside).norm() < 0.1 * moved, "bf16 holds three digits of a weight"
    if NATIVE_BF16:
        torch.testing.assert_close(plain_logits(out), logits_beside(out, None, "bfloat16"), atol=0.3, rtol=0.05)


def test_a_base_that_is_not_the_run_s_is_refused(tiny_llama: Path, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-6}))
    with pytest.raises(UserError, match="another base model"):
        merge(str(other), run / "adapter", tmp_path / "out")


def test_a_base_whose_weights_are_quantised_is_refused(tiny_llama: Path, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(UserError, match="quantised"):
        merge(str(other), run / "adapter", tmp_path / "out")


def test_an_update_that_the_base_s_dtype_can_t_hold_is_told(
    tiny_llama: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    base = shutil.copytree(tiny_llama, tmp_path / "half")
    state = {name: tensor.half() for name, tensor in load_file(tiny_llama / "model.safetensors").items()}
    state["model.layers.0.mlp.up_proj.weight"][:] = 65504.0
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    run = make_run(base=base)
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.0.mlp.up_proj"
    adapter[f"{stem}.lora_A.weight"][:] = adapter[f"{stem}.lora_B.weight"][:] = 100.0
    save_file(adapter, run / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"NaN or infinity in model.layers.0.mlp.up_proj.weight"):
        merge(str(base), run / "adapter", tmp_path / "out")


def test_a_truncated_weight_file_is_told(tiny_llama: Path, make_run: MakeRun, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    run = make_run(base=base)
    whole = (base / "model.safetensors").read_bytes()
    for cut in (5, 300, len(whole) - 100):
        (base / "model.safetensors").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"damaged|Can't read the weights|another base model"):
            merge(str(base), run / "adapter", tmp_path / "out")
