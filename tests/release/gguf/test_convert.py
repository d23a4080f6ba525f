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
from adapters import write_adapter
from families import folder_of
from tiny import BEGIN_OF_TEXT, END_OF_TURN, VOCABULARY, WORDS

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, write_json
from tuneloop.inference.llamacpp.process import LlamaCpp, installed
from tuneloop.models.chat.template import load_template
from tuneloop.models.files.names import convert
from tuneloop.models.load import load_model
from tuneloop.models.trained import load_trained, trained_folder
from tuneloop.release.gguf import convert as writing
from tuneloop.release.gguf.convert import About, tensor_types, write_gguf
from tuneloop.release.gguf.lora import write_gguf_lora
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
    with pytest.raises(UserError, match="Models of the kind 'falcon' are not written"):
        other = replace(weights, config={**weights.config, "model_type": "falcon"})
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


# What llama.cpp computes as we do: where its code has a number fixed, the model has that number.
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "smollm3": {"no_rope_layer_interval": 4},
    "phi3": {},
    "gemma": {},
    "gemma3": {"num_hidden_layers": 7, "sliding_window_pattern": 6, "query_pre_attn_scalar": 16},
}


def family_folder(name: str, tiny_llama: Path, folder: Path) -> Any:
    """A random model of a family with the tiny Llama 3's tokenizer in a folder; Transformers' own."""
    ends = {"bos_token_id": BEGIN_OF_TEXT, "eos_token_id": END_OF_TURN, "pad_token_id": END_OF_TURN}
    theirs = folder_of(name, folder, vocab_size=VOCABULARY, **ends, **FAMILIES[name])
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama / file, folder / file)
    return theirs


@llamacpp
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_llamacpp_computes_each_family_and_the_file_becomes_the_model_again(
    name: str, tiny_llama: Path, tmp_path: Path
) -> None:
    theirs = family_folder(name, tiny_llama, tmp_path / "model")
    file = tmp_path / "x.gguf"
    write_gguf(open_tuned("", tmp_path / "model"), load_template(tmp_path / "model"), file, "f32", ABOUT)
    ids = some_ids(60)  # longer than the window
    with LlamaCpp(file, exact=True) as llama:
        nearest = 2e-3 if "gemma" in name else 1e-5  # llama.cpp looks gelu up in a table of 16 bits
        assert off(llama.logits(ids), theirs(torch.tensor([ids])).logits[0].numpy()) < nearest
    again = load_model(str(convert(file, tmp_path / "again")), dtype="float32")
    assert again.is_own
    wanted = load_model(str(tmp_path / "model"), dtype="bfloat16").net.state_dict()
    state = again.net.state_dict()
    assert state.keys() == wanted.keys()
    for key, tensor in state.items():
        torch.testing.assert_close(tensor, wanted[key].float(), atol=0.004 if "norm" in key else 0.0, rtol=0.0)


@torch.no_grad()
def test_the_stretched_positions_of_llama_3_come_back(tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    write_gguf(open_tuned("", tiny_llama), load_template(tiny_llama), file, "f32", ABOUT)
    again = load_model(str(convert(file, tmp_path / "again")), dtype="bfloat16")
    wanted = load_model(str(tiny_llama), dtype="bfloat16")
    assert again.config["rope_parameters"]["factor"] == 32
    ids = torch.tensor([some_ids(60)])
    assert torch.equal(again.hidden(ids), wanted.hidden(ids))


@llamacpp
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"phi3"}))  # whose targets have other names
@torch.no_grad()
def test_llamacpp_computes_an_adapter_of_each_family(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    family_folder(name, tiny_llama, folder)
    base, lora = tmp_path / "base.gguf", tmp_path / "lora.gguf"
    write_gguf(open_tuned("", folder), load_template(folder), base, "f32", ABOUT)
    adapter = write_adapter(folder, tmp_path / "adapter", seed=1)
    write_gguf_lora(folder, adapter, lora, "f32", "x")
    tuned = load_model(str(folder), dtype="float32")
    load_trained(tuned, adapter)
    wanted = tuned.net.logits(tuned.hidden(torch.tensor([some_ids(60)])))[0].numpy()  # type: ignore[operator]
    with LlamaCpp(base, [lora], exact=True) as llama:
        assert off(llama.logits(some_ids(60)), wanted) < (2e-3 if "gemma" in name else 1e-5)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("mistral with a window", {}, "its layers have a window"),
        ("qwen2 with a window", {}, "only some layers have a window"),
        ("gemma3", {}, "its windows or the positions"),
        ("smollm3", {}, "other layers than every fourth"),
        ("llama with biases", {}, "its layers have biases"),
    ],
)
def test_what_llamacpp_would_compute_otherwise_is_refused(
    name: str, change: dict[str, Any], reason: str, tiny_llama: Path, tmp_path: Path
) -> None:
    folder_of(name, tmp_path / "model", **change)
    weights = open_tuned("", tmp_path / "model")
    with pytest.raises(UserError, match=f"llama.cpp would compute this model otherwise: {reason}"):
        write_gguf(weights, load_template(tiny_llama), tmp_path / "x.gguf", "f16", ABOUT)
