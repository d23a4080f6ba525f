"""Weights in fewer bits: what each tensor became is counted, and importance is what inputs really are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_day import by_day
from shared_folder import made_once
from tiny import BEGIN_OF_TEXT

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_json
from tuneloop.inference.llamacpp.process import LlamaCpp, installed
from tuneloop.models.chat.template import load_template
from tuneloop.models.files.gguf import gguf_name
from tuneloop.release.gguf.convert import About, tensor_types, write_gguf
from tuneloop.release.quantise import NEED_IMPORTANCE, QUANTS, importance_of, quant_named, quantise
from tuneloop.release.tuned_weights import open_tuned

llamacpp = pytest.mark.skipif(not installed(), reason="llama-cpp-py-sync is not installed: nothing to quantise with")
SmallModel = Callable[[int], Path]


def write_small_model(folder: Path, like: Path, width: int) -> None:
    """A Llama of two layers of this width with the tiny model's tokenizer, as an f16 GGUF file."""
    from safetensors.torch import save_file

    from tuneloop.models.nn.llama import Llama, LlamaConfig

    template = load_template(like)
    config = {
        "model_type": "llama", "vocab_size": template.vocabulary, "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": 2, "num_attention_heads": width // 64, "num_key_value_heads": width // 64, "head_dim": 64,
        "tie_word_embeddings": True, "max_position_embeddings": 2048,
    }  # fmt: skip
    write_json(folder / "config.json", config)
    draw = torch.Generator().manual_seed(0)
    net = Llama(LlamaConfig.from_json(config))
    state = {
        name: torch.randn(p.shape, generator=draw) * 0.05 + ("norm" in name)
        for name, p in net.named_parameters()
        if name != "lm_head.weight"
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_gguf(open_tuned("", folder), template, folder / "f16.gguf", "f16", About("x"))


@pytest.fixture(scope="module")
def small_model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    """The f16 GGUF file of a small Llama of a width, made once."""

    def of_width(width: int) -> Path:
        made = made_once(
            tmp_path_factory, f"f16-of-{width}", lambda folder: write_small_model(folder, tiny_llama, width)
        )
        return made / "f16.gguf"

    return of_width


def written_as(quant: str, source: Path, out: Path) -> dict[str, int]:
    quantise(source, out, quant)
    types = tensor_types(out)
    main = "_".join(quant.split("_")[:2]).upper()
    assert sum(types.values()) == 20 and types["F32"] == 5 and types.get(main, 0) >= 5, (quant, types)
    return types


@llamacpp
def test_wide_rows_get_what_the_name_says(small_model: SmallModel, tmp_path: Path) -> None:
    source = small_model(256)
    for quant in ("q8_0", "q4_k_m"):
        written_as(quant, source, tmp_path / f"{quant}.gguf")
    files = (tmp_path / "q4_k_m.gguf", tmp_path / "q8_0.gguf", source)
    sizes = [file.stat().st_size for file in files]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3


@llamacpp
@pytest.mark.slow
@pytest.mark.parametrize("quant", by_day((name for name in QUANTS if name not in NEED_IMPORTANCE), 4))
def test_every_type_can_be_written(quant: str, small_model: SmallModel, tmp_path: Path) -> None:
    written_as(quant, small_model(256), tmp_path / "out.gguf")


@llamacpp
def test_narrow_rows_fall_back_and_the_count_says_so(small_model: SmallModel, tmp_path: Path) -> None:
    """576 wide, as SmolLM2 is, is no multiple of 256: q4_k_m is mostly something else."""
    quantise(small_model(576), tmp_path / "out.gguf", "q4_k_m")
    types = tensor_types(tmp_path / "out.gguf")
    assert types["Q5_0"] > types.get("Q4_K", 0)


@llamacpp
def test_importance_changes_how_weights_are_rounded(small_model: SmallModel, tmp_path: Path) -> None:
    source = small_model(256)
    quantise(source, tmp_path / "plain.gguf", "iq4_nl")
    names = [f"blk.{i}.{name}.weight" for i in range(2) for name in ("attn_q", "ffn_up")]
    draw = np.random.default_rng(0)
    importance = {name: draw.lognormal(0, 3, 256).astype(np.float32) for name in names}
    quantise(source, tmp_path / "weighted.gguf", "iq4_nl", importance)
    import gguf

    plain, weighted = (
        {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors}
        for name in ("plain", "weighted")
    )
    changed = {name for name in plain if not np.array_equal(plain[name], weighted[name])}
    assert changed == set(names)


def test_importance_is_the_mean_square_of_a_matrix_s_inputs(tiny_model: Any) -> None:
    rows = [[BEGIN_OF_TEXT, 1, 2, 3], [BEGIN_OF_TEXT, 5]]
    found = importance_of(tiny_model, rows)
    layer = tiny_model.net.model.layers[0]
    inputs = [layer.input_layernorm(tiny_model.net.model.embed_tokens(torch.tensor(ids))) for ids in rows]
    wanted = torch.cat(inputs).square().mean(0)
    np.testing.assert_allclose(found["blk.0.attn_q.weight"], wanted.numpy(), rtol=1e-4)
    assert set(found) == {
        gguf_name(f"model.layers.{i}.{part}.weight")
        for i in range(2)
        for part in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    }
    assert found["blk.1.ffn_down.weight"].shape == (128,)


@pytest.mark.parametrize(("asked", "near"), [("q4km", "q4_k_m"), ("Q8", "q8_0"), ("fp16", "f16")])
def test_an_unknown_type_is_refused_with_the_nearest(asked: str, near: str) -> None:
    with pytest.raises(UserError) as refused:
        quant_named(asked)
    assert f"did you mean {near}?" in str(refused.value.next_step)
    assert quant_named("Q4_K_M") == "q4_k_m"


@llamacpp
def test_a_file_that_is_none_ends_in_an_error_and_not_in_this_process(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(UserError, match=r"llama\.cpp"):
        quantise(tmp_path / "x.gguf", tmp_path / "y.gguf", "q8_0")
    with pytest.raises(UserError, match=r"llama\.cpp can't load the file"):
        LlamaCpp(tmp_path / "x.gguf")
