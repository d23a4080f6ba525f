"""A GGUF file says what the run says: the same tensors, the same tokens, the same logits, in llama.cpp itself."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import BEGIN_OF_TEXT, WORDS

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, write_json
from tuneloop.inference.llamacpp import LlamaCpp, installed
from tuneloop.models.load import load_model
from tuneloop.models.template import load_template
from tuneloop.models.trained import load_trained, trained_folder
from tuneloop.release.gguf import convert as writing
from tuneloop.release.gguf.convert import About, tensor_types, write_gguf
from tuneloop.release.tuned_weights import open_tuned

MakeRun = Callable[..., Path]
llamacpp = pytest.mark.skipif(
    not installed(), reason="llama-cpp-py-sync is not installed: no llama.cpp to compare with"
)
ABOUT = About("tickets", "some/base", "apache-2.0")


def written(run: Path, model: Path, out: Path, kind: Any = "f32") -> Path:
    trained = trained_folder(run)
    write_gguf(open_tuned(str(model), trained), load_template(trained), out, kind, ABOUT)
    return out


def ours(run: Path, model: Path, ids: list[int], dtype: str = "float32") -> np.ndarray[Any, Any]:
    tuned = load_model(str(model), dtype=dtype)
    load_trained(tuned, run)
    with torch.inference_mode():
        found: np.ndarray[Any, Any] = tuned.net.logits(tuned.hidden(torch.tensor([ids])))[0].float().numpy()  # type: ignore[operator]
    return found


def off(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """The length of the difference, relative to that of the logits."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def untied(tiny_llama: Path, out: Path) -> Path:
    """The tiny Llama with a head of its own."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_llama, out)
    state = load_file(out / "model.safetensors")
    generator = torch.Generator().manual_seed(2)
    state["lm_head.weight"] = torch.randn(state["model.embed_tokens.weight"].shape, generator=generator) * 0.2
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", {**read_json(out / "config.json"), "tie_word_embeddings": False})
    return out


def some_ids(count: int = 40) -> list[int]:
    draw = random.Random(0)
    return [BEGIN_OF_TEXT, *(draw.randrange(WORDS) for _ in range(count))]


@llamacpp
@pytest.mark.parametrize("head", ["tied", "untied"])
def test_llamacpp_computes_the_run_s_logits(head: str, tiny_llama: Path, make_run: MakeRun, tmp_path: Path) -> None:
    """Rotary pairs in llama.cpp's order, grouped heads, the stretched context, the head: one of them wrong is far off."""
    base = tiny_llama if head == "tied" else untied(tiny_llama, tmp_path / "untied")
    run = make_run(base=base)
    file = written(run, base, tmp_path / "x.gguf")
    with LlamaCpp(file, exact=True) as llama:
        assert off(llama.logits(some_ids()), ours(run, base, some_ids())) < 1e-5
    assert tensor_types(file) == {"F32": 20 + (head == "untied") + 1}, (
        "rope_freqs among them; a tied head stands there once"
    )


@llamacpp
@pytest.mark.parametrize(("kind", "dtype"), [("f16", "float16"), ("bf16", "bfloat16")])
def test_short_floats_cost_what_they_cost_here(
    kind: str, dtype: str, tiny_llama: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run()
    file = written(run, tiny_llama, tmp_path / "x.gguf", kind)
    wanted = ours(run, tiny_llama, some_ids())
    usual = off(ours(run, tiny_llama, some_ids(), dtype), wanted)
    with LlamaCpp(file, exact=True) as llama:
        assert off(llama.logits(some_ids()), wanted) < 1.5 * usual
    assert tensor_types(file) == {kind.upper(): 15, "F32": 6}, "vectors stay in fp32"


def test_all_weights_of_a_full_run_are_written(tiny_llama: Path, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(method="full")
    file = written(run, tiny_llama, tmp_path / "x.gguf")
    import gguf
    from safetensors.torch import load_file

    state = load_file(run / "model" / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert np.array_equal(tensors["token_embd.weight"].data, state["model.embed_tokens.weight"].numpy())
    assert np.array_equal(tensors["blk.1.ffn_up.weight"].data, state["model.layers.1.mlp.up_proj.weight"].numpy())
    assert "output.weight" not in tensors


def test_it_tells_what_it_is(tiny_llama: Path, tmp_path: Path) -> None:
    import gguf

    out = tmp_path / "x.gguf"
    write_gguf(open_tuned("", tiny_llama), load_template(tiny_llama), out, "bf16", ABOUT)
    fields = {name: field.contents() for name, field in gguf.GGUFReader(out).fields.items()}
    assert fields["general.name"] == "tickets" and fields["general.license"] == "apache-2.0"
    assert fields["general.base_model.0.name"] == "some/base" and fields["general.file_type"] == 32
    assert fields["llama.attention.head_count_kv"] == 2 and fields["llama.rope.dimension_count"] == 16
    assert "eot_id" in fields["tokenizer.chat_template"] and "cut" not in fields["tokenizer.chat_template"]


def test_another_architecture_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    weights = open_tuned("", tiny_llama)
    with pytest.raises(UserError, match="Only Llama models"):
        other = replace(weights, config={**weights.config, "model_type": "qwen2"})
        write_gguf(other, load_template(tiny_llama), tmp_path / "x.gguf", "f16", ABOUT)


def test_values_that_f16_cannot_hold_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"blk\.0.*can't hold") as refused:
        writing.as_numpy(torch.tensor([1.0, 70000.0]), "f16", "blk.0.x")
    assert "bf16" in str(refused.value.next_step)
    assert writing.as_numpy(torch.tensor([1.0, 70000.0]), "bf16", "blk.0.x").dtype == np.int16


def test_a_disk_without_room_is_told_before_anything_is_written(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"the disk has 0\.0 GB free"):
        write_gguf(open_tuned("", tiny_llama), load_template(tiny_llama), tmp_path / "x.gguf", "f32", ABOUT)
    assert not (tmp_path / "x.gguf").exists()
