"""Mixtures of experts by the commands: trained through Transformers, answered, exported, and refused before it costs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tiny import BEGIN_OF_TEXT, END_OF_TURN, VOCABULARY

from tuneloop.core.files import read_json, read_jsonl

Cli = Callable[..., Any]
FAMILIES = {
    "mixtral": (transformers.MixtralConfig, {"num_local_experts": 4}),
    "qwen3_moe": (transformers.Qwen3MoeConfig, {"num_experts": 4, "moe_intermediate_size": 32}),
    "qwen2_moe": (
        transformers.Qwen2MoeConfig,
        {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 40},
    ),
    "gpt_oss": (transformers.GptOssConfig, {"num_local_experts": 4}),
}
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 2048,
    "bos_token_id": BEGIN_OF_TEXT, "eos_token_id": END_OF_TURN, "pad_token_id": None, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mixture with the tiny Llama's tokenizer, and a file of rows next to it."""
    config, more = FAMILIES[request.param]
    path = tmp_path_factory.mktemp("mixture") / request.param
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config(**SIZES, **more)).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama / name, path)
    rows = [
        {"text": f"The {thing} of order {i} is late", "label": thing} for i in range(20) for thing in ("box", "bill")
    ]
    (path.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def said_and_run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a short training said, and its folder."""
    from tuneloop.core.ui import reporting
    from tuneloop.pipeline.train import train_alone
    from tuneloop.recipe import make_recipe

    said: list[str] = []
    recipe = make_recipe({
        "name": "mixture", "model": str(folder), "output_dir": str(tmp_path_factory.mktemp("run") / "run"),
        "data": {"sources": [str(folder.parent / "rows.jsonl")]}, "track": {"report_to": "none"},
        "train": {"epochs": 1, "learning_rate": 0.02, "rank": 4},
    })  # fmt: skip
    with reporting(say=said.append):
        run, _ = train_alone(recipe)
    return "\n".join(said), run


def test_a_training_says_that_it_is_slower_and_of_how_many_parameters(
    said_and_run: tuple[str, Path], folder: Path
) -> None:
    said, run = said_and_run
    assert f"Transformers computes {folder.name}, more slowly" in said
    assert read_json(run / "run.json")["steps"] > 0
    (about,) = [line for line in read_json(run / "plan.json")["assumptions"] if "mixture of experts" in line]
    assert "parameters take memory" in about and "that a token passes through" in about


def test_a_tuned_mixture_answers_rows(said_and_run: tuple[str, Path], cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "new.jsonl").write_text('{"text": "The box of order 99 is late"}\n')
    done = cli("predict", str(said_and_run[1]), "new.jsonl", "--out", "answers.jsonl")
    assert done.returncode == 0, done.stderr
    assert read_jsonl(tmp_path / "answers.jsonl")[0]["prediction"] in ("box", "bill")


def test_merged_weights_and_the_adapter_give_plain_libraries_the_same_logits(
    said_and_run: tuple[str, Path], folder: Path, cli: Cli, tmp_path: Path
) -> None:
    for form in ("merged", "adapter"):
        done = cli("export", str(said_and_run[1]), "--format", form, "--out", form)
        assert done.returncode == 0, done.stderr
    ids = torch.randint(0, 8000, (2, 12), generator=torch.Generator().manual_seed(0))
    load = transformers.AutoModelForCausalLM.from_pretrained
    with torch.no_grad():
        merged = load(tmp_path / "merged", dtype=torch.float32)(input_ids=ids).logits
        base = load(folder, dtype=torch.float32)
        untuned = base(input_ids=ids).logits
        tuned = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")(input_ids=ids).logits
    torch.testing.assert_close(merged, tuned, atol=1e-4, rtol=1e-3)
    assert (tuned - untuned).abs().max() > 1e-3


def test_a_gguf_file_is_refused_with_the_way_to_one(said_and_run: tuple[str, Path], folder: Path, cli: Cli) -> None:
    done = cli("export", str(said_and_run[1]), "--format", "gguf", "--out", "gguf")
    assert done.returncode == 2
    assert repr(folder.name) in done.stderr and "--format merged" in done.stderr and "convert_hf_to_gguf" in done.stderr


@pytest.mark.parametrize(
    ("setting", "word"), [("train.method=prefix", "no prefix tuning"), ("train.targets=gate_proj", "'gate_proj'")]
)
def test_what_can_not_be_trained_is_refused_before_the_baselines(
    setting: str, word: str, folder: Path, cli: Cli
) -> None:
    if folder.name == "qwen2_moe" and word == "'gate_proj'":
        pytest.skip("its shared expert has such a layer")
    done = cli("run", str(folder.parent / "rows.jsonl"), f"model={folder}", setting, "output_dir=out")
    assert done.returncode == 2 and word in done.stderr and "baseline" not in done.stderr
