"""Of models that also read pictures our own model computes the language model, under Transformers' names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from adapters import write_adapter
from peft import PeftModel
from pictures import KINDS, TEXT, folder_with_pictures
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tuneloop.models.adapters.assignment import applied
from tuneloop.models.adapters.prefix import add_prefix, prefix_of, remove_prefix, save_prefix
from tuneloop.models.adapters.shared import add_adapter
from tuneloop.models.load import Model, load_model
from tuneloop.models.methods.full import load as load_full
from tuneloop.models.methods.full import save_model
from tuneloop.models.nn.families import language_config
from tuneloop.models.nn.llama import Llama, LlamaConfig
from tuneloop.models.nn.quantised import quantisable, quantise
from tuneloop.models.nn.shape import ModelShape
from tuneloop.release.compressed import write_compressed
from tuneloop.release.gguf.convert import About, write_gguf
from tuneloop.release.tuned_weights import merge, open_tuned


def theirs_of(folder: Path) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def ids() -> torch.Tensor:
    return torch.randint(3, 49000, (2, 40), generator=torch.Generator().manual_seed(1))


def logits_of(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model.hidden(ids()) @ model.head.T


def equals(ours: torch.Tensor, theirs: Any) -> None:
    with torch.no_grad():
        torch.testing.assert_close(ours, theirs(input_ids=ids()).logits, atol=2e-4, rtol=2e-4)


@KINDS
def test_logits_and_names_are_those_of_transformers(kind: str, smollm2: Path, tmp_path: Path) -> None:
    theirs = folder_with_pictures(kind, smollm2, tmp_path)
    model = load_model(str(tmp_path), dtype="float32")
    assert isinstance(model.net, Llama) and model.context == 4096
    equals(logits_of(model), theirs)
    language = {name for name in theirs.state_dict() if "language_model" in name or "lm_head" in name}
    assert set(model.net.state_dict()) == language
    with safe_open(tmp_path / "model.safetensors", "pt") as file:  # Transformers' files have other names
        assert not language & set(file.keys())


@KINDS
def test_an_adapter_is_loaded_by_peft_next_to_no_layer_that_sees_pictures(
    kind: str, smollm2: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    theirs = folder_with_pictures(kind, smollm2, base)
    write_adapter(base, folder, 1, strength=0.3)
    model = load_model(str(base), dtype="float32")
    plain, name = logits_of(model), add_adapter(model, folder)

    with applied(name):
        adapted = logits_of(model)
    assert (adapted - plain).abs().max() > 0.1
    peft = PeftModel.from_pretrained(theirs, folder)
    equals(adapted, peft)
    assert not any("vision" in key for key in peft.state_dict() if "lora_" in key)
    assert not any("missing" in str(item.message) for item in recwarn)


def test_an_adapter_with_the_names_of_an_older_transformers_is_loaded(smollm2: Path, tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    folder_with_pictures("gemma3", smollm2, base)
    write_adapter(base, folder, 1, strength=0.3)
    model = load_model(str(base), dtype="float32")

    with applied(add_adapter(model, folder)):
        now = logits_of(model)
    (folder / "tuneloop.json").unlink()
    state = load_file(folder / "adapter_model.safetensors")
    older = {key.replace("model.language_model.", "language_model.model."): value for key, value in state.items()}
    assert older.keys() != state.keys()
    save_file(older, folder / "adapter_model.safetensors")
    model = load_model(str(base), dtype="float32")
    with applied(add_adapter(model, folder)):
        torch.testing.assert_close(logits_of(model), now)


@KINDS
def test_a_merged_model_reads_pictures_as_before(kind: str, smollm2: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    folder_with_pictures(kind, smollm2, base)
    adapter = write_adapter(base, tmp_path / "adapter", 1, strength=0.3)
    model = load_model(str(base), dtype="float32")
    name = add_adapter(model, adapter)
    assert merge(str(base), adapter, out).tensors == 7 * len(list(model.net.decoder.layers))

    with applied(name):
        equals(logits_of(model), theirs_of(out))
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before if "_proj" not in key or "vision" in key)


@KINDS
def test_fewer_bits_leave_what_sees_pictures_as_it_is(kind: str, smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    base, out = tmp_path / "base", tmp_path / "out"
    folder_with_pictures(kind, smollm2, base)
    adapter = write_adapter(base, tmp_path / "adapter", 1, strength=0.3)
    made_of = write_compressed(open_tuned(str(base), adapter), "fp8", out)
    assert (
        made_of.tensor_types["FP8"]
        == 7 * json.loads((base / "config.json").read_text())["text_config"]["num_hidden_layers"]
    )
    theirs = theirs_of(out)
    model = load_model(str(base), dtype="float32")

    plain, name = logits_of(model), add_adapter(model, adapter)
    with applied(name), torch.no_grad():
        both = torch.stack([x.flatten() for x in (theirs(input_ids=ids()).logits, logits_of(model), plain)])
    _, tuned, untuned = torch.corrcoef(both)[0]
    assert tuned > 0.9 and untuned < tuned - 0.1


@KINDS
def test_all_weights_are_saved_with_what_sees_pictures(kind: str, smollm2: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    folder_with_pictures(kind, smollm2, base)
    model = load_model(str(base), dtype="float32")
    with torch.no_grad():
        for weight in model.net.parameters():
            weight.mul_(1.01)
    save_model(out, model)
    equals(logits_of(model), theirs_of(out))
    again = load_model(str(base), dtype="float32")
    load_full(again, out)
    assert torch.equal(logits_of(again), logits_of(model))
    assert torch.equal(logits_of(load_model(str(out), dtype="float32")), logits_of(model))


def test_the_gguf_file_is_that_of_the_language_model_alone(smollm2: Path, tmp_path: Path) -> None:
    base, alone = tmp_path / "base", tmp_path / "alone"
    theirs = folder_with_pictures("gemma3", smollm2, base)
    model = load_model(str(base), dtype="float32")
    text = transformers.Gemma3ForCausalLM(theirs.config.text_config)
    text.load_state_dict({**{k.replace("language_model.", ""): v for k, v in model.net.state_dict().items()}})
    text.save_pretrained(alone)
    read: list[Any] = []
    for folder in (base, alone):
        out = tmp_path / f"{folder.name}.gguf"
        write_gguf(open_tuned(str(folder), folder), model.template, out, "f32", About("m", "", ""))
        file = gguf.GGUFReader(out)
        fields = {name: field.contents() for name, field in file.fields.items()}
        read.append((fields, {tensor.name: tensor.data.tobytes() for tensor in file.tensors}))
    assert read[0] == read[1] and len(read[0][1]) == 2 + 13 * 6


def test_a_head_of_its_own_is_found_whatever_the_configuration_says(smollm2: Path, tmp_path: Path) -> None:
    folder_with_pictures("mistral3", smollm2, tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    head = torch.randn(49200, 64)
    save_file({**state, "language_model.lm_head.weight": head}, file, {"format": "pt"})
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]
    model = load_model(str(tmp_path), dtype="float32")
    assert torch.equal(model.head, head)


def test_numbers_that_the_hub_s_gemma_3_4b_leaves_out_are_known() -> None:
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}  # fmt: skip
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}}
    theirs: Any = transformers.Gemma3Config(text_config=dict(text)).text_config
    with torch.device("meta"):
        expected = sum(p.numel() for p in transformers.Gemma3ForCausalLM(theirs).parameters())
        ours = sum(p.numel() for p in Llama(LlamaConfig.from_json(config)).parameters())
    assert LlamaConfig.supports(config)
    assert ours == expected == ModelShape.from_config(config).parameters == 3_880_263_168
    parsed = LlamaConfig.from_json(config)
    assert parsed.windows.count(1024) == 29 and parsed.rope_scaling["factor"] == 8.0
    assert (parsed.rope_theta, parsed.local_theta, parsed.score_scale) == (1e6, 1e4, 1.0)


def test_a_model_of_several_parts_of_another_kind_is_left_to_transformers() -> None:
    config = {"model_type": "llava", "text_config": {"model_type": "llama", **TEXT, "num_hidden_layers": 2}}
    assert not LlamaConfig.supports(config) and language_config(config)["model_type"] == "llama"


def test_a_template_in_a_file_of_the_processor_is_read(smollm2: Path, tmp_path: Path) -> None:
    folder_with_pictures("gemma3", smollm2, tmp_path)
    settings = json.loads((smollm2 / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").unlink()
    template = settings.pop("chat_template")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    expected = load_model(shutil.copytree(smollm2, tmp_path / "own").as_posix()).template.source
    assert load_model(str(tmp_path)).template.source == expected


@KINDS
@torch.no_grad()
def test_a_prefix_and_weights_in_four_bits_work_as_on_any_model(kind: str, smollm2: Path, tmp_path: Path) -> None:
    folder_with_pictures(kind, smollm2, tmp_path / "base")
    model = load_model(str(tmp_path / "base"), dtype="float32")
    add_prefix(model.net, [5, 6, 7])
    prefix = prefix_of(model.net)
    assert prefix is not None
    prefix.embeddings.mul_(1.5)
    tuned = logits_of(model)
    save_prefix(tmp_path / "prefix", model.net, str(model.folder), model.fingerprint)
    remove_prefix(model.net)
    assert (logits_of(model) - tuned).abs().max() > 0.1
    with applied(add_adapter(model, tmp_path / "prefix")):
        torch.testing.assert_close(logits_of(model), tuned)
    assert len(quantisable(model.net)) == 7 * len(model.net.decoder.layers)  # type: ignore[union-attr,arg-type]
    plain = logits_of(model)
    quantise(model.net)
    four_bits = logits_of(model)
    assert not torch.equal(four_bits, plain)
    assert torch.corrcoef(torch.stack((four_bits.flatten(), plain.flatten())))[0, 1] > 0.6
