"""A model that is no Llama goes through Transformers' classes with the same answers, adapters and training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from by_day import by_day
from safetensors.torch import load_file, save_file
from train_helpers import changed, losses, run

from pretend_gpu import pretend_gpu
from tuneloop.core.errors import UserError
from tuneloop.core.ui import reporting
from tuneloop.inference.labels import label_trie
from tuneloop.inference.local.answers import generate
from tuneloop.inference.local.scoring import choose
from tuneloop.models.adapters.assignment import BASE, applied
from tuneloop.models.adapters.lora import (
    LoraShape,
    adapter_state,
    add_lora,
    linear_places,
    lora_layers,
    remove_lora,
    save_adapter,
    target_names,
)
from tuneloop.models.adapters.shared import add_adapter
from tuneloop.models.chat.template import Rendered
from tuneloop.models.load import Model, load_model
from tuneloop.models.nn.shape import ATTENTION, FEED_FORWARD, nearest_matrices
from tuneloop.planning.catalogue.gpus import find_gpu
from tuneloop.planning.catalogue.shape import find_model
from tuneloop.planning.job import make_job
from tuneloop.release.tuned_weights import merge
from tuneloop.training.batches import Step
from tuneloop.training.checkpoint import State
from tuneloop.training.config import TrainConfig
from tuneloop.training.methods import attach
from tuneloop.training.optimizers import make_optimizer
from tuneloop.training.run import TrainingRun
from tuneloop.training.step import batch_loss, optimizer_step


@pytest.fixture(scope="module")
def granite_folder(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Granite (scaled scores and embeddings) with SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-granite")
    torch.manual_seed(0)
    config = transformers.GraniteConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.3, tie_word_embeddings=True,
        embedding_multiplier=2.0, attention_multiplier=0.3,
    )  # fmt: skip
    transformers.GraniteForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(smollm2 / name)
    return folder


@pytest.fixture
def granite(granite_folder: Path) -> Model:
    model = load_model(str(granite_folder), dtype="float32")
    assert not model.is_own
    return model


def prompts(model: Model) -> list[list[int]]:
    system = {"role": "system", "content": "You answer questions about the weather on far planets."}
    return [
        model.template.prompt_ids([system, {"role": "user", "content": q}])  # type: ignore[list-item]
        for q in ("Rain?", "Is it windy on Jupiter in the autumn, or does it only look so?", "Why")
    ]


def test_answers_equal_those_of_transformers(granite: Model, granite_folder: Path) -> None:
    theirs = transformers.GraniteForCausalLM.from_pretrained(granite_folder, dtype=torch.float32)
    for prompt, answer in zip(prompts(granite), generate(granite, prompts(granite), max_new_tokens=8), strict=True):
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=8, do_sample=False,
                eos_token_id=list(granite.template.end_ids), pad_token_id=granite.template.pad_id,
            )  # fmt: skip
        assert answer.text == granite.template.decode(out[0, len(prompt) :].tolist()).strip()


@pytest.mark.filterwarnings("error")
def test_loading_and_answering_draw_no_bars_and_warn_of_nothing(
    granite_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load_model(str(granite_folder), dtype="float32")
    list(generate(model, prompts(model)[:1], max_new_tokens=2))
    assert capfd.readouterr().err == ""


def test_choice_scores_equal_one_full_pass_a_label(granite: Model) -> None:
    labels = ["rain", "rain and wind", "wind"]
    tokens = [[*granite.template.encode(label), granite.template.end_ids[0]] for label in labels]
    for prompt, answer in zip(
        prompts(granite), choose(granite, prompts(granite), label_trie(labels, tokens)), strict=True
    ):
        for label, ids in zip(labels, tokens, strict=True):
            with torch.no_grad():
                logp = (granite.hidden(torch.tensor([prompt + ids]))[0] @ granite.head.t()).log_softmax(-1)
            expected = sum(float(logp[len(prompt) - 1 + i, t]) for i, t in enumerate(ids)) / len(ids)
            assert (answer.label_scores or {})[label] == pytest.approx(expected, abs=1e-4)


def test_a_cache_gives_what_reading_at_once_gives_and_selects_rows(granite: Model) -> None:
    ids = torch.randint(0, 49152, (2, 12))
    with torch.no_grad():
        whole = granite.hidden(ids)
        cache = granite.new_cache()
        granite.hidden(ids[:, :11], cache=cache)
        assert cache.length == 11
        rows = torch.tensor([1, 1, 0])
        mask = torch.ones(1, 1, 1, 12, dtype=torch.bool)
        last = granite.hidden(ids[rows, 11:], torch.tensor([[11]]), mask, cache.select(rows))
        assert cache.length == 11
    torch.testing.assert_close(last[:, 0], whole[rows, -1], atol=1e-4, rtol=1e-4)


def test_it_trains_with_an_adapter(granite: Model, tmp_path: Path) -> None:
    config = TrainConfig(rank=4, learning_rate=1e-2, lora_plus=1.0)
    trainable = attach(granite, config, seed=0)
    assert {name.rsplit(".", 1)[-1] for name in lora_layers(granite.net)} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    rows = [
        granite.template.render([{"role": "user", "content": q}, {"role": "assistant", "content": a}])
        for q, a in (("a", "yes"), ("b", "no, never"), ("c and d", "yes"))
    ]
    run = TrainingRun(granite, config, trainable, make_optimizer(trainable, config), State("key"), tmp_path)
    step = Step(((0, 1), (2,)), 0.0)
    losses = [optimizer_step(run, step, rows, 1e-2)[0] for _ in range(8)]
    assert losses[-1] < losses[0] - 0.5


def test_rows_behind_a_shared_beginning_have_the_loss_of_rows_alone(granite: Model) -> None:
    system = {"role": "system", "content": "You answer questions about the weather on far planets."}
    rows: list[Rendered] = [
        granite.template.render([system, {"role": "user", "content": q}, {"role": "assistant", "content": "No."}])  # type: ignore[list-item]
        for q in ("Rain?", "Wind from the south, is there any?")
    ]
    with torch.no_grad():
        together = float(batch_loss(granite, rows, 1.0))
        apart = sum(float(batch_loss(granite, [row], 1.0)) for row in rows)
    assert together == pytest.approx(apart, rel=1e-4)


def answers_and_scores(folder: Path) -> tuple[list[tuple[int, ...]], list[dict[str, float] | None]]:
    model = load_model(str(folder), dtype="float32")
    labels = ["rain", "rain and wind", "wind"]
    tokens = [[*model.template.encode(label), model.template.end_ids[0]] for label in labels]
    answers = generate(model, prompts(model), max_new_tokens=8)
    chosen = choose(model, prompts(model), label_trie(labels, tokens))
    return [answer.token_ids for answer in answers], [answer.label_scores for answer in chosen]


def test_on_a_gpu_it_answers_scores_and_trains_as_on_the_processor(granite_folder: Path, tmp_path: Path) -> None:
    answers, scores = answers_and_scores(granite_folder)
    config = changed(epochs=0.5, evaluations=2)
    run(granite_folder, tmp_path / "here", config)
    with pretend_gpu() as gpu:
        answers_there, scores_there = answers_and_scores(granite_folder)
        _, model = run(granite_folder, tmp_path / "there", config)
        assert model.device.type == "cuda" and not model.is_own
    assert answers_there == answers
    for here, there in zip(scores, scores_there, strict=True):
        assert there == pytest.approx(here, abs=1e-4)
    mine, theirs = (
        [loss for _, *both in losses(tmp_path / name) for loss in both if loss is not None]
        for name in ("here", "there")
    )
    assert theirs == pytest.approx(mine, rel=2e-4)
    assert not [kernel for kernel, _ in gpu.attention if kernel == "math"]


def test_weights_that_are_missing_are_not_drawn_at_random(granite_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(granite_folder, tmp_path / "damaged")
    weights = load_file(tmp_path / "damaged" / "model.safetensors")
    del weights["model.layers.1.input_layernorm.weight"]
    save_file(weights, tmp_path / "damaged" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.input_layernorm\.weight is missing"):
        load_model(str(tmp_path / "damaged"))


SMALL = {
    "vocab_size": 49152, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 49152, "num_kv_shared_layers": 0}
# What these do otherwise: windows of some layers or of all, scaled logits, joined matrices, norms in other places.
OTHERS: dict[str, dict[str, Any]] = {
    "gemma4_text": {"sliding_window": 16, "global_head_dim": 16, **PER_LAYER},
    "olmo3": {"sliding_window": 16}, "cohere2": {"sliding_window": 16}, "exaone4": {"sliding_window": 16},
    "ministral": {"sliding_window": 16}, "gpt_oss": {"sliding_window": 16, "num_local_experts": 4},
    "phi3": {"sliding_window": 16, "partial_rotary_factor": 0.5}, "granite": {"logits_scaling": 8.0},
    "glm4": {}, "gpt_neox": {}, "hunyuan_v1_dense": {},
}  # fmt: skip
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_state": 16, "mamba_n_groups": 1}
# A state is carried from token to token in some of their layers.
RECURRENT: dict[str, dict[str, Any]] = {
    "qwen3_5_text": LINEAR, "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * 2, "num_local_experts": 0, "shared_intermediate_size": 96,
        "mamba_d_head": 32, **MAMBA,
    },
    "falcon_h1": {"mamba_d_head": 16, "mamba_d_ssm": 64, **MAMBA},
}  # fmt: skip


def folder_of_kind(kind: str, smollm2: Path, folder: Path, **more: Any) -> Any:
    """A small random model of an architecture in a folder; Transformers' own."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SMALL, **more)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    theirs.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(smollm2 / name)
    return theirs


@pytest.mark.parametrize("kind", by_day(OTHERS | RECURRENT, 5))
def test_answers_labels_and_losses_of_other_architectures_are_those_of_their_own_pass(
    kind: str, smollm2: Path, tmp_path: Path
) -> None:
    theirs = folder_of_kind(kind, smollm2, tmp_path, **(OTHERS | RECURRENT)[kind])
    model = load_model(str(tmp_path), dtype="float32")
    assert not model.is_own and min(map(len, prompts(model))) > 16, "longer than the window"

    def logs(ids: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            return theirs(torch.tensor([list(ids)])).logits[0].log_softmax(-1)  # type: ignore[no-any-return]

    for prompt, answer in zip(prompts(model), generate(model, prompts(model), max_new_tokens=4), strict=True):
        last = logs([*prompt, *answer.token_ids])[len(prompt) - 1 : -1]
        assert all(row[token] > row.max() - 1e-3 for row, token in zip(last, answer.token_ids, strict=True))
    labels = ["rain", "rain and wind", "wind"]
    tokens = [[*model.template.encode(label), model.template.end_ids[0]] for label in labels]
    for prompt, chosen in zip(prompts(model), choose(model, prompts(model), label_trie(labels, tokens)), strict=True):
        for label, ids in zip(labels, tokens, strict=True):
            scores = logs([*prompt, *ids])[len(prompt) - 1 : -1]
            expected = sum(float(row[token]) for row, token in zip(scores, ids, strict=True)) / len(ids)
            assert (chosen.label_scores or {})[label] == pytest.approx(expected, abs=1e-4)
    ids = prompts(model)[1]
    row = Rendered(ids, [0] * (len(ids) - 4) + [1] * 4)
    expected = -sum(float(logs(ids)[i - 1, ids[i]]) for i in range(len(ids) - 4, len(ids)))
    with torch.no_grad():
        assert float(batch_loss(model, [row], 1.0)) == pytest.approx(expected, rel=1e-3)
    names = target_names(model.net, "all-linear")
    make_job(model=kind, shape=find_model("smollm2-135m")[1], gpu=find_gpu("cpu"), targets=nearest_matrices(names))


@pytest.mark.parametrize("kind", RECURRENT)
@torch.no_grad()
def test_rows_with_different_adapters_are_read_again_each_with_its_own(
    kind: str, smollm2: Path, tmp_path: Path
) -> None:
    folder_of_kind(kind, smollm2, tmp_path, **RECURRENT[kind])
    model = load_model(str(tmp_path), dtype="float32")
    targets = target_names(model.net, "all-linear")
    assert not any("mamba" in name and name.endswith("out_proj") for name in linear_places(model.net))
    shape = LoraShape(2, 4.0, 0.0, targets)
    add_lora(model.net, shape, seed=0)
    for layer in lora_layers(model.net).values():
        layer.lora_B.normal_(0.0, 0.2)
    save_adapter(tmp_path / "adapter", adapter_state(model.net), shape, "base", model.fingerprint)
    remove_lora(model.net)
    name = add_adapter(model, tmp_path / "adapter")
    ids = torch.randint(3, 49000, (2, 9), generator=torch.Generator().manual_seed(0))
    alone = []
    for row, adapter in zip(ids, (BASE, name), strict=True):
        with applied(adapter):
            alone.append(model.hidden(row[None])[0])
    with applied([BASE, name]):
        cache = model.new_cache()
        first = model.hidden(ids[:, :6], cache=cache)
        rest = model.hidden(ids[:, 6:], torch.arange(6, 9)[None], torch.ones(3, 9).tril(6).bool()[None, None], cache)
    torch.testing.assert_close(torch.cat((first, rest), 1), torch.stack(alone), atol=1e-4, rtol=1e-4)
    assert (alone[0] - alone[1]).abs().max() > 0.01 and cache.length == 9


EYES = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
MORE_EYES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}}
# What is special about the language model, and about what sees pictures.
SEEING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3_5": ({"model_type": "qwen3_5_text", **LINEAR}, {**EYES, "num_position_embeddings": 16}),
    "qwen3_vl": (
        {"model_type": "qwen3_vl_text", **ROPE},
        {**EYES, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    ),
    "qwen2_5_vl": ({"model_type": "qwen2_5_vl_text", **ROPE}, {**EYES, "fullatt_block_indexes": [0]}),
    "smolvlm": ({"model_type": "llama"}, {**MORE_EYES, "image_size": 28, "patch_size": 14}),
    "llava": (
        {"model_type": "llama"},
        {"model_type": "clip_vision_model", **MORE_EYES, "image_size": 28, "patch_size": 14},
    ),
    "internvl": ({"model_type": "qwen2"}, {**MORE_EYES, "image_size": [28, 28], "patch_size": [14, 14]}),
}


@pytest.mark.parametrize("kind", by_day(SEEING, 2))
def test_the_language_model_of_one_that_reads_pictures_is_answered_adapted_and_merged(
    kind: str, smollm2: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    text, eyes = SEEING[kind]
    config = transformers.AutoConfig.for_model(kind, text_config={**SMALL, **text}, vision_config=eyes)
    theirs = transformers.AutoModelForImageTextToText.from_config(config).eval().float()
    base = tmp_path / "base"
    theirs.save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).symlink_to(smollm2 / name)
    model = load_model(str(base), dtype="float32")
    for prompt, answer in zip(prompts(model), generate(model, prompts(model), max_new_tokens=4), strict=True):
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([[*prompt, *answer.token_ids]])).logits[0, len(prompt) - 1 : -1]
        assert all(row[token] > row.max() - 1e-3 for row, token in zip(logits, answer.token_ids, strict=True))
    places = linear_places(model.net)
    assert len(places) == (31 if kind == "qwen3_5" else 28) and not any("vis" in name for name in places)
    shape = LoraShape(2, 4.0, 0.0, target_names(model.net, "all-linear"))
    add_lora(model.net, shape, seed=0)
    with torch.no_grad():
        for layer in lora_layers(model.net).values():
            layer.lora_B.normal_(0.0, 0.2)
        tuned = model.hidden(torch.tensor(prompts(model)[:1])) @ model.head.T
    save_adapter(tmp_path / "adapter", adapter_state(model.net), shape, str(base), model.fingerprint)
    if kind == "qwen2_5_vl":  # whose files have other names than its modules
        with pytest.raises(UserError, match="name their weights in another way"):
            merge(str(base), tmp_path / "adapter", tmp_path / "out")
        return
    merge(str(base), tmp_path / "adapter", tmp_path / "out")
    merged = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = merged(input_ids=torch.tensor(prompts(model)[:1])).logits
    torch.testing.assert_close(logits, tuned, atol=1e-3, rtol=1e-3)


def test_an_architecture_that_can_not_be_answered_row_by_row_is_refused_with_a_way_out(
    smollm2: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "gpt2"
    config = transformers.GPT2Config(vocab_size=49152, n_embd=32, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(smollm2 / name)
    with pytest.raises(UserError, match="kind 'gpt2' can't be answered here") as error:
        load_model(str(folder))
    assert "llama.cpp" in error.value.next_step


def test_a_limit_of_logits_is_said(smollm2: Path, tmp_path: Path) -> None:
    folder_of_kind("gemma2", smollm2, tmp_path, sliding_window=16)
    said: list[str] = []
    with reporting(say=said.append):
        load_model(str(tmp_path))
    assert [line for line in said if "gemma2 limits its logits to 30" in line]


MIXTURES = {
    "mixtral": (transformers.MixtralForCausalLM, transformers.MixtralConfig, {"num_local_experts": 4}),
    "qwen3_moe": (
        transformers.Qwen3MoeForCausalLM, transformers.Qwen3MoeConfig, {"num_experts": 4, "moe_intermediate_size": 32},
    ),
    "qwen2_moe": (
        transformers.Qwen2MoeForCausalLM, transformers.Qwen2MoeConfig,
        {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 40},
    ),
    "gpt_oss": (transformers.GptOssForCausalLM, transformers.GptOssConfig, {"num_local_experts": 4}),
}  # fmt: skip


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_mixture_of_experts_answers_and_trains(kind: str, smollm2: Path, tmp_path: Path) -> None:
    model, config, more = MIXTURES[kind]
    torch.manual_seed(0)
    sizes = {"vocab_size": 49152, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
             "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2, "pad_token_id": 0}  # fmt: skip
    theirs = model(config(**sizes, **more)).eval()
    theirs.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(smollm2 / name)
    mixture = load_model(str(tmp_path), dtype="float32")
    for prompt, answer in zip(prompts(mixture), generate(mixture, prompts(mixture), max_new_tokens=4), strict=True):
        with torch.no_grad():
            logits = theirs.float()(torch.tensor([prompt])).logits[0, -1]
        assert answer.token_ids[0] == logits.argmax() or logits.topk(2)[0].diff().abs() < 1e-4
    trainable = attach(mixture, TrainConfig(rank=2), seed=0)
    planned = make_job(model=kind, shape=find_model(str(tmp_path))[1], gpu=find_gpu("cpu"), method="lora", rank=2)
    assert planned.trainable == sum(p.numel() for p in trainable.parameters.values())
    ids = prompts(mixture)[0]
    rows = [Rendered(ids, [0] * (len(ids) - 4) + [1] * 4)]
    before = batch_loss(mixture, rows, 4.0, TrainConfig())
    before.backward()
    assert all(p.grad is not None for p in trainable.parameters.values())


def test_an_architecture_that_no_library_knows_is_named(granite_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(granite_folder, tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "wonder"}))
    with pytest.raises(UserError, match="'wonder' is neither one of llama, mistral, qwen2") as error:
        load_model(str(folder))
    assert error.value.where.endswith("config.json") and "newer Transformers" in error.value.next_step


def test_the_language_model_of_one_that_reads_pictures_is_loaded_and_adapted(smollm2: Path, tmp_path: Path) -> None:
    text = {
        "vocab_size": 49200, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 24, "max_position_embeddings": 4096, "initializer_range": 0.3,
        "hidden_activation": "silu",  # no Gemma of ours
    }  # fmt: skip
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=49199, boi_token_index=49198, eoi_token_index=49197,
    )  # fmt: skip
    theirs = transformers.Gemma3ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    assert any(key.startswith("language_model.") for key in load_file(tmp_path / "model.safetensors"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(smollm2 / name)
    model = load_model(str(tmp_path), dtype="float32")
    ids = torch.randint(3, 49000, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(model.hidden(ids) @ model.head.T, theirs(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    assert model.context == 4096 and not model.is_own
    layers = linear_places(model.net)  # those that see pictures get no adapter, nor a name that plans don't know
    assert len(layers) == 7 * text["num_hidden_layers"] and not any("vision" in name for name in layers)
    assert target_names(model.net, "all-linear") == tuple(sorted((*ATTENTION, *FEED_FORWARD)))
