"""Weights in compressed-tensors' layout: what the library unpacks is what was packed, and Transformers answers by it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tuneloop.core.errors import UserError
from tuneloop.models.adapters.lora import LoraShape, adapter_state, add_lora, lora_layers, save_adapter
from tuneloop.models.load import load_model
from tuneloop.release import compressed
from tuneloop.release.compressed import write_compressed
from tuneloop.release.tuned_weights import open_tuned

pytest.importorskip("compressed_tensors")


@pytest.fixture
def adapter(tiny_llama: Path, tmp_path: Path) -> Path:
    model, shape = load_model(str(tiny_llama), dtype="float32"), LoraShape(4, 8.0, 0.0, ("q_proj", "down_proj"))
    add_lora(model.net, shape, seed=0)
    with torch.no_grad():
        for layer in lora_layers(model.net).values():
            layer.lora_B.normal_(std=0.2)
    save_adapter(tmp_path / "adapter", adapter_state(model.net), shape, str(tiny_llama), model.fingerprint)
    return tmp_path / "adapter"


def written(quant: str, base: Path, adapter: Path, out: Path) -> Path:
    found = write_compressed(open_tuned(str(base), adapter), quant, out)
    layers = json.loads((base / "config.json").read_text())["num_hidden_layers"]
    assert found.name == quant and found.tensor_types[quant.upper()] == 7 * layers
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((base / name).read_bytes())
    return out


@pytest.mark.parametrize(("quant", "off"), [("fp8", 0.04), ("w4a16", 0.1)])
def test_what_the_library_unpacks_is_the_tuned_weight_within_its_bits(
    tiny_llama: Path, adapter: Path, tmp_path: Path, quant: str, off: float
) -> None:
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    out = written(quant, tiny_llama, adapter, tmp_path / quant)
    settings = QuantizationConfig.model_validate(json.loads((out / "config.json").read_text())["quantization_config"])
    compressor = BaseCompressor.get_value_from_registry(settings.format)
    stored, wanted = load_file(out / "model.safetensors"), open_tuned(str(tiny_llama), adapter)
    seen = set()
    for name in wanted.shapes:
        exact = wanted.tensor(name).float()
        if name in stored and not name.endswith("_proj.weight"):
            torch.testing.assert_close(stored[name].float(), exact, rtol=1e-2, atol=1e-6)
            seen.add(name)
            continue
        stem = name.removesuffix("weight")
        part = {key.removeprefix(stem): value for key, value in stored.items() if key.startswith(stem)}
        seen |= {f"{stem}{key}" for key in part}
        found = compressor.decompress(part, settings.config_groups["group_0"])["weight"].float()
        assert found.shape == exact.shape and (found - exact).norm() / exact.norm() < off
    assert seen == set(stored), "nothing else is in the file"


@pytest.mark.parametrize("quant", ["fp8", "w4a16"])
def test_transformers_answers_by_the_weights_that_were_packed(
    tiny_llama: Path, adapter: Path, tmp_path: Path, quant: str
) -> None:
    out = written(quant, tiny_llama, adapter, tmp_path / quant)
    other, plain = load_model(str(out), dtype="float32"), load_model(str(tiny_llama), dtype="float32")
    assert type(other.net).__module__.startswith("transformers.")
    unpacked = {name: weight.float() for name, weight in other.net.state_dict().items() if name.endswith("weight")}
    plain.net.load_state_dict(unpacked, strict=False)  # our own Llama with what was unpacked
    ids = torch.randint(0, 200, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = (m.hidden(ids).float() @ m.head.float().t() for m in (plain, other))
    off = float((ours - theirs).norm() / ours.norm())
    if quant == "w4a16":
        assert off < 1e-4
    else:  # what goes into a matrix is rounded to eight bits, too
        assert 1e-3 < off < 0.3


def test_large_models_are_written_in_parts_that_an_index_names(
    tiny_llama: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_file(written("fp8", tiny_llama, adapter, tmp_path / "whole") / "model.safetensors")
    monkeypatch.setattr(compressed, "SHARD", 30_000)
    out = written("fp8", tiny_llama, adapter, tmp_path / "parts")
    places = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(places.values())) > 2 and set(places) == set(whole)
    parts = {name: load_file(out / path)[name] for name, path in places.items()}
    assert all(torch.equal(parts[name].view(torch.uint8), whole[name].view(torch.uint8)) for name in whole)
    assert sorted(file.name for file in out.glob("*.safetensors")) == sorted(set(places.values()))


def test_what_is_missing_or_does_not_fit_is_said(
    tiny_llama: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(UserError, match="not installed") as caught:
        patch.setitem(sys.modules, "compressed_tensors", None)
        write_compressed(open_tuned(str(tiny_llama), adapter), "fp8", tmp_path / "x")
    assert "tuneloop[compressed]" in caught.value.next_step
    monkeypatch.setattr(compressed, "GROUPS", (128, 48))
    with pytest.raises(UserError, match="can't be divided into groups of 48") as caught:
        write_compressed(open_tuned(str(tiny_llama), adapter), "w4a16", tmp_path / "x")
    assert "--quant fp8" in caught.value.next_step and not list((tmp_path).glob("x/*"))
