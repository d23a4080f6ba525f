"""What is in a run's folder goes back into its base model, and into no other; bad files are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tuneloop.core.errors import UserError
from tuneloop.core.ui import reporting
from tuneloop.models.chat.template import load_template
from tuneloop.models.load import load_model
from tuneloop.models.trained import base_of_adapter, load_trained, target_kind, template_of_adapter
from tuneloop.training.config import TrainConfig
from tuneloop.training.methods import attach


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_nan_in_a_weight_file_is_told_before_anything_is_computed(tiny_llama: Path, tmp_path: Path) -> None:
    broken = copied(tiny_llama, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"NaN or infinity in model.layers.1.mlp.up_proj.weight"):
        load_model(str(broken), dtype="float32")


def test_large_weights_whose_sum_overflows_are_no_fault(tiny_llama: Path, tmp_path: Path) -> None:
    large = copied(tiny_llama, tmp_path / "large")
    state = load_file(large / "model.safetensors")
    state["model.norm.weight"] = torch.full((64,), 60000.0, dtype=torch.float16)
    save_file(state, large / "model.safetensors", metadata={"format": "pt"})
    load_model(str(large), dtype="float32")


@pytest.mark.parametrize("method", ["lora", "full", "prefix"])
def test_results_of_another_base_are_refused(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_llama), dtype="float32")
    trainable = attach(model, TrainConfig(method=method, prefix_text="Hello there"), 0)  # type: ignore[arg-type]
    folder = tmp_path / trainable.folder
    trainable.save(folder)
    trainable.detach()
    load_trained(load_model(str(tiny_llama), dtype="float32"), tmp_path)
    own = json.loads((folder / "tuneloop.json").read_text())
    (folder / "tuneloop.json").write_text(json.dumps({**own, "base_fingerprint": "other"}))
    with pytest.raises(UserError, match="another base model"):
        load_trained(load_model(str(tiny_llama), dtype="float32"), tmp_path)


def test_a_folder_without_a_result_is_told(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No adapter and no model"):
        load_trained(load_model(str(tiny_llama), dtype="float32"), tmp_path)


# --- folders of other trainers -------------------------------------------------------------------


def theirs(tiny_llama: Path, folder: Path, **settings: object) -> torch.Tensor:
    """An adapter by PEFT with these settings; the logits that PEFT then gives for some tokens."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    config = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
    torch.manual_seed(0)
    settings = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **settings}
    model = peft.get_peft_model(base, peft.LoraConfig(**config, **settings)).eval()
    model.save_pretrained(folder)
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0]
    return logits


def ours(tiny_llama: Path, folder: Path) -> torch.Tensor:
    model = load_model(str(tiny_llama), dtype="float32")
    load_trained(model, folder)
    with torch.inference_mode():
        return model.hidden(torch.tensor([[5, 6, 7, 8, 9]]))[0] @ model.head.t()


@pytest.mark.parametrize("settings", [
    {"use_rslora": True, "use_dora": True},
    {"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"v_proj": 2}},
    {"alpha_pattern": {"q_proj": 32}, "use_rslora": True},
    {"layers_to_transform": [1]},
    {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
    {"target_modules": r"model[.]layers[.]0[.](self_attn|mlp)[.](q_proj|down_proj)"},
    {"modules_to_save": ["lm_head", "norm"]},
    {"modules_to_save": ["embed_tokens"], "use_dora": True},
    {"target_modules": ["q_proj", "lm_head"], "alpha_pattern": {"lm_head": 32}, "use_rslora": True},
    {"target_modules": ["v_proj", "embed_tokens"]},
    {"target_modules": [], "target_parameters": ["self_attn.q_proj.weight", "mlp.up_proj.weight"]},
    {"bias": "lora_only"},
], ids=lambda s: " ".join(s))  # fmt: skip
def test_an_adapter_of_another_trainer_answers_as_in_peft(
    tiny_llama: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    logits = theirs(tiny_llama, tmp_path / "theirs", **settings)
    torch.testing.assert_close(ours(tiny_llama, tmp_path / "theirs"), logits, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["Qwen3Moe", "Mixtral"])
@pytest.mark.parametrize("settings", [
    {"target_modules": "all-linear"},
    {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
     "alpha_pattern": {r".*\.gate_up_proj": 32}, "rank_pattern": {r".*\.gate_up_proj": 2}},
    {"target_parameters": ["mlp.experts.down_proj"], "modules_to_save": ["lm_head"]},
], ids=lambda s: " ".join(s))  # fmt: skip
def test_an_adapter_of_a_mixture_changes_its_experts_as_in_peft(
    tiny_llama: Path, tmp_path: Path, kind: str, settings: dict[str, object]
) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "head_dim": 8}
    counts = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2}
    counts |= {"num_experts" if kind == "Qwen3Moe" else "num_local_experts": 4, "vocab_size": 8192}
    base = copied(tiny_llama, tmp_path / "base")
    (base / "model.safetensors").unlink()
    config = getattr(transformers, f"{kind}Config")(**sizes, **counts, tie_word_embeddings=True)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(base)
    logits = theirs(base, tmp_path / "theirs", **settings)
    torch.testing.assert_close(ours(base, tmp_path / "theirs"), logits, atol=1e-4, rtol=1e-3)


def test_a_whole_tensor_that_the_base_has_no_place_for_is_told(tiny_llama: Path, tmp_path: Path) -> None:
    theirs(tiny_llama, tmp_path, modules_to_save=["lm_head"])
    state = load_file(tmp_path / "adapter_model.safetensors")
    (name,) = (name for name in state if "lm_head" in name)
    a = torch.ones(4, 64)
    for odd in (
        {name: state[name][:-1].contiguous()},
        {name.replace("lm_head", "no_head"): state[name]},
        {name.replace(".weight", ".lora_A.weight"): a, name.replace(".weight", ".lora_B.weight"): torch.ones(3, 4)},
        {name.replace(".weight", ".lora_A.weight"): a},
        {name.replace(".weight", ".lora_embedding_A"): torch.ones(4), name.replace("weight", "lora_embedding_B"): a},
    ):
        rest = {key: tensor for key, tensor in state.items() if key != name}
        save_file({**rest, **odd}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(UserError, match=r"_head.*"):
            ours(tiny_llama, tmp_path)


def test_weights_of_older_peft_are_read_as_they_are(tiny_llama: Path, tmp_path: Path) -> None:
    logits = theirs(tiny_llama, tmp_path)
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.testing.assert_close(ours(tiny_llama, tmp_path), logits, atol=2e-4, rtol=1e-3)
    (tmp_path / "adapter_model.bin").write_bytes(b"not a file of torch")
    with pytest.raises(UserError, match="The adapter file is damaged"):
        ours(tiny_llama, tmp_path)
    (tmp_path / "adapter_model.bin").rename(tmp_path / "adapter_0.pt")
    with pytest.raises(UserError, match="torchtune's own names"):
        ours(tiny_llama, tmp_path)


# Names that `get_peft_regex` of Unsloth Zoo makes of all linear layers of a language model.
_NAMES = "(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
_PARTS = "self_attn|attention|attn|mixer|mlp|feed_forward|ffn|dense|mixer"
UNSLOTH = (
    rf"(?:.*?(?:language|text).*?(?:{_PARTS}).*?{_NAMES})|(?:\bmodel\.layers\.[\d]{{1,}}\.(?:{_PARTS})\.(?:{_NAMES}))"
)


def rewrite(folder: Path, **settings: object) -> dict[str, object]:
    """Settings of an adapter with these in the place of PEFT's; None: without."""
    file = folder / "adapter_config.json"
    values = {**json.loads(file.read_text()), **settings}
    values = {name: value for name, value in values.items() if value is not None}
    file.write_text(json.dumps(values))
    return values


def trainers_files(folder: Path) -> None:
    """What Transformers' Trainer writes next to a checkpoint's weights."""
    torch.save({"state": {}}, folder / "optimizer.pt")
    for name in ("scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 60, "log_history": []}))
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n")


def test_a_checkpoint_of_unsloth_is_found_in_its_output_folder(tiny_llama: Path, tmp_path: Path) -> None:
    for step in (60, 120):
        last = tmp_path / "outputs" / f"checkpoint-{step}"
        logits = theirs(tiny_llama, last, target_modules=UNSLOTH)
        trainers_files(last)
    fixed = {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True}
    rewrite(last, base_model_name_or_path="unsloth/llama-3.2-1b-instruct-unsloth-bnb-4bit", auto_mapping=fixed)
    with pytest.raises(UserError, match="Checkpoints are here") as error:
        target_kind(str(tmp_path / "outputs"))
    assert str(last) in str(error.value), "the last one, by number"
    assert target_kind(str(last)) == "adapter" and base_of_adapter(last) == "unsloth/llama-3.2-1b-instruct"
    torch.testing.assert_close(ours(tiny_llama, last), logits, atol=2e-4, rtol=1e-3)


def test_a_folder_of_axolotl_is_an_adapter_once_training_has_ended(tiny_llama: Path, tmp_path: Path) -> None:
    logits = theirs(tiny_llama, tmp_path)
    shutil.copy(tiny_llama / "config.json", tmp_path)  # it saves these settings before the first step
    last = copied(tmp_path, tmp_path / "checkpoint-9")
    trainers_files(last)
    assert target_kind(str(tmp_path)) == target_kind(str(last)) == "adapter"
    torch.testing.assert_close(ours(tiny_llama, tmp_path), logits, atol=2e-4, rtol=1e-3)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no model of an ended training") as error:
        target_kind(str(tmp_path))
    assert str(last) in str(error.value)


def test_an_epoch_of_torchtune_is_its_adapter_not_the_merged_weights_and_settings_next_to_it(
    tiny_llama: Path, tmp_path: Path
) -> None:
    epoch = tmp_path / "epoch_0"
    logits = theirs(tiny_llama, epoch, use_dora=True)
    written = ("r", "lora_alpha", "target_modules", "peft_type", "base_model_name_or_path")  # all that it writes
    settings = json.loads((epoch / "adapter_config.json").read_text())
    rewrite(epoch, **{name: None for name in settings if name not in written})
    for file in tiny_llama.iterdir():
        name = "model-00001-of-00001.safetensors" if file.name == "model.safetensors" else file.name
        shutil.copy(file, epoch / name)
    torch.save({}, epoch / "adapter_model.pt")
    (epoch / "adapter_model").mkdir()
    assert target_kind(str(epoch)) == "adapter"
    torch.testing.assert_close(ours(tiny_llama, epoch), logits, atol=2e-4, rtol=1e-3)
    with pytest.raises(UserError, match="Checkpoints are here") as error:
        target_kind(str(tmp_path))
    assert str(epoch) in str(error.value)


def test_a_folder_of_llama_factory_says_which_template_it_was_trained_with(tiny_llama: Path, tmp_path: Path) -> None:
    logits = theirs(tiny_llama, tmp_path)
    trainers_files(tmp_path)
    (tmp_path / "training_args.yaml").write_text("finetuning_type: lora\nstage: sft\ntemplate: alpaca\n")
    (tmp_path / "llamaboard_config.yaml").write_text("top.template: alpaca\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama / name, tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    said: list[str] = []
    with reporting(said.append):
        assert template_of_adapter(tmp_path, load_template(tiny_llama)).source == "{{ messages[0].content }}"
    assert len(said) == 1 and "trained with its template alpaca" in said[0]
    torch.testing.assert_close(ours(tiny_llama, tmp_path), logits, atol=2e-4, rtol=1e-3)


def test_pissa_of_llama_factory_is_measured_by_the_converted_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="pissa")
    model = peft.get_peft_model(base, config).eval()
    model.peft_config["default"].init_lora_weights = True  # as its PissaConvertCallback
    model.save_pretrained(tmp_path / "pissa_init")
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            parameter += 0.1 if "lora_B" in name else 0.0
        logits = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0]
    model.save_pretrained(tmp_path)
    init = str(tmp_path / "pissa_init")
    model.save_pretrained(tmp_path / "pissa_converted", path_initial_model_for_weight_conversion=init)
    with pytest.raises(UserError, match="a base whose weights were changed first") as error:
        ours(tiny_llama, tmp_path)
    assert f"name {tmp_path / 'pissa_converted'}" in str(error.value)
    torch.testing.assert_close(ours(tiny_llama, tmp_path / "pissa_converted"), logits, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"init_lora_weights": "pissa"}, "a base whose weights were changed first"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: olora"),
        ({"init_lora_weights": "pissa_niter_2"}, "init_lora_weights: pissa_niter_2"),
        ({"alora_invocation_tokens": [7]}, "alora_invocation_tokens"),
    ],
)
def test_what_is_more_than_a_lora_is_refused_with_how_to_measure_it(
    tiny_llama: Path, tmp_path: Path, settings: dict[str, object], says: str
) -> None:
    theirs(tiny_llama, tmp_path, **settings)
    with pytest.raises(UserError, match=says) as error:
        ours(tiny_llama, tmp_path)
    only_served = says.endswith(("_2", "_tokens"))  # PEFT gives other weights each time, or none
    assert ("evaluate URL --model NAME" if only_served else "evaluate MERGED --base BASE") in str(error.value)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("unsloth/llama-3.2-1b-instruct-unsloth-bnb-4bit", "unsloth/llama-3.2-1b-instruct"),
        ("/their/cache/hub/models--org--name/snapshots/0123", "org/name"),
        ("org/name", "org/name"),
        ("/their/cache/tuneloop/models/smollm2-135m", "smollm2-135m"),
    ],
)
def test_the_base_is_found_by_the_name_that_their_trainer_wrote(tmp_path: Path, name: str, base: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name}))
    assert base_of_adapter(tmp_path) == base


def test_a_base_in_a_folder_of_another_machine_is_refused_with_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/root/models/mine"}))
    with pytest.raises(UserError, match="folder of another machine") as error:
        base_of_adapter(tmp_path)
    assert "give --base MODEL" in str(error.value)


def test_the_template_next_to_an_adapter_is_used(tmp_path: Path) -> None:
    def write(folder: Path, text: int, **settings: str) -> Path:
        folder.mkdir()
        vocabulary = {"<|im_end|>": 0, **{f"w{i}": i + 1 for i in range(text)}}
        Tokenizer(WordLevel(vocabulary, unk_token="w0")).save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", **settings}))
        return folder

    base, adapter = load_template(write(tmp_path / "base", 5, chat_template="base")), tmp_path / "adapter"
    adapter.mkdir()
    assert template_of_adapter(adapter, base) is base
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": "theirs"}))
    own = template_of_adapter(adapter, base)
    assert own.source == "theirs" and own.tokenizer is base.tokenizer
    (adapter / "chat_template.jinja").write_text("in a file")
    assert template_of_adapter(adapter, base).source == "in a file"
    assert template_of_adapter(write(tmp_path / "all", 5, chat_template="all"), base).tokenizer is not base.tokenizer
    larger = template_of_adapter(write(tmp_path / "larger", 9, chat_template="larger"), base)
    assert larger.source == "larger" and larger.tokenizer is base.tokenizer, "the base has no rows for more tokens"
    (adapter / "tuneloop.json").write_text("{}")
    assert template_of_adapter(adapter, base) is base, "ours is in its task"
