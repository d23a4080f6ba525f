"""Sizes of models: exact to the last parameter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from local_http import Quiet, listening

from tuneloop.core.errors import UserError
from tuneloop.models.nn.shape import target_modules
from tuneloop.planning.catalogue.shape import bundled_models, find_model

EXACT = {
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    # Of the next three the hub's number less 416,867,184 that see pictures, and what joins them to the hidden size.
    "gemma-3-4b": 3_880_263_168,
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
    "mistral-small-3.1-24b": 23_572_403_200,  # as Mistral Small 3, which sees none
    "mistral-7b": 7_248_023_552,
    "phi-3-mini-4k": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "qwen3-30b-a3b": 30_532_122_624,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "mixtral-8x7b": 46_702_792_704,
}


def test_every_bundled_model_has_its_published_number_of_parameters() -> None:
    assert {name: shape.parameters for name, shape in bundled_models().items()} == EXACT


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Llama-3.3-70B-Instruct", "llama-3.3-70b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "tinyllama-1.1b"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
        ("meta-llama/Llama-3.1-405B-Instruct-FP8", "llama-3.1-405b"),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-unsloth-bnb-4bit", "llama-3.1-8b"),
        ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", "tinyllama-1.1b"),
        ("llama3.2:3b", "llama-3.2-3b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("Qwen/Qwen3-8B-Base", "qwen3-8b"),
        ("google/gemma-3-1b-pt", "gemma-3-1b"),
        ("google/gemma-3-27b-it", "gemma-3-27b"),
        ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", "mistral-small-3.1-24b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi-3-mini-4k"),
        ("HuggingFaceTB/SmolLM3-3B", "smollm3-3b"),
    ],
)
def test_hub_names_of_bundled_models_need_no_network(name: str, short: str) -> None:
    assert find_model(name)[0] == short


@pytest.mark.parametrize(
    "kind", ["llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "gemma", "gemma2", "gemma3_text"]
)
@pytest.mark.parametrize("tied", [True, False, None])
def test_parameters_of_a_config_are_transformers(kind: str, tied: bool | None, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"model_type": kind, "vocab_size": 320, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "tie_word_embeddings": tied}  # fmt: skip
    if tied is None:  # what the architecture means by a key that is not there
        del config["tie_word_embeddings"]
    if kind in ("phi3", "smollm3"):  # their own padding token is beyond this vocabulary
        config["pad_token_id"] = 0
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not find_model(str(tmp_path))[2]
    net = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    assert find_model(str(tmp_path))[1].parameters == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mixtral", {"num_local_experts": 4}),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 64}),
        ("qwen2_moe", {"num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 80}),
        ("gpt_oss", {"num_local_experts": 4}),
    ],
)
def test_a_mixture_is_sized_by_all_experts_and_by_those_of_a_token(
    kind: str, more: dict[str, Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    config = {**GOOD, "model_type": kind, "num_key_value_heads": 2, "head_dim": 12, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": 1, "pad_token_id": 0, **more}))
    _, shape, assumed = find_model(str(tmp_path))
    net = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    assert shape.parameters == sum(p.numel() for p in net.parameters())
    assert shape.parameters - shape.active_parameters == 2 * 3 * 3 * 48 * shape.feed_forward, (
        "3 of 4 experts in 2 layers"
    )
    adapted = "attention and the shared expert" if shape.shared else "attention"
    assert "mixture of experts" in assumed[0] and assumed[0].endswith(f"adapters are next to {adapted} alone")
    (tmp_path / "config.json").write_text(json.dumps({**config, **more}))
    with pytest.raises(UserError, match="num_experts_per_tok"):
        find_model(str(tmp_path))


GOOD = {"vocab_size": 320, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_attention_heads": 5}, "multiple"),
        ({"num_local_experts": 8}, "mixture"),
    ],
)
def test_a_config_that_can_not_be_is_refused(change: dict[str, Any], word: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in {**GOOD, **change}.items() if v is not None}))
    with pytest.raises(UserError, match=word) as caught:
        find_model(str(tmp_path))
    assert "config.json" in caught.value.where


def test_an_architecture_that_is_not_llamas_is_said_to_be_assumed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**GOOD, "model_type": "phi"}))
    assert "phi" in find_model(str(tmp_path))[2][0]


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        find_model("llama-3.1-9b")
    assert "llama-3.1-8b" in caught.value.next_step
    with pytest.raises(UserError) as caught:
        target_modules("q,vv")
    assert caught.value.next_step.startswith("did you mean")


def test_of_a_model_of_several_parts_the_language_model_is_planned(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llava", "text_config": {**GOOD, "model_type": "llama"}})
    )
    _, shape, assumed = find_model(str(tmp_path))
    assert shape.layers == 2
    assert "language model" in assumed[0]


class EmptyHub(Quiet):
    def do_HEAD(self) -> None:
        self.answer(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})


@pytest.mark.torch  # asks transformers
@pytest.mark.parametrize("offline", [True, False])
def test_a_model_that_the_hub_does_not_give_is_a_short_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], offline: bool
) -> None:
    from huggingface_hub import constants

    for setting, value in {"CACHE": str(tmp_path), "OFFLINE": offline}.items():
        monkeypatch.setattr(constants, f"HF_HUB_{setting}", value)
    with listening(EmptyHub) as address, pytest.raises(UserError) as refused:
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        find_model("nobody/nothing-7b")
    assert refused.value.where == "model"
    assert "nobody/nothing-7b" in refused.value.what and "\n" not in refused.value.what
    assert "smollm2-135m" in refused.value.next_step
    assert capfd.readouterr().err == ""
