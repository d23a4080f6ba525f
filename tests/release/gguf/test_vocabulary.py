"""A tokenizer in a GGUF file gives the same tokens in llama.cpp, or is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chats import chats
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_json
from tuneloop.inference.llamacpp.process import LlamaCpp, installed
from tuneloop.models.chat.template import PLAIN_TEMPLATE, Template, load_template
from tuneloop.release.gguf.convert import About, pre_tokenizer_of, vocabulary, write_gguf
from tuneloop.release.tuned_weights import open_tuned

KEY = "tokenizer.ggml."
llamacpp = pytest.mark.skipif(
    not installed(), reason="llama-cpp-py-sync is not installed: no llama.cpp to compare with"
)


@pytest.fixture(scope="module")
def llama3_file(llama3_tokenizer: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 3's whole tokenizer on a model of nearly no weights."""
    folder = tmp_path_factory.mktemp("llama3")
    _tiny_model(folder, 128256)
    shutil.copy(llama3_tokenizer, folder / "tokenizer.json")
    shutil.copy(tiny_llama / "tokenizer_config.json", folder / "tokenizer_config.json")
    write_gguf(open_tuned("", folder), load_template(folder), folder / "x.gguf", "f16", About("x"))
    return folder / "x.gguf"


@pytest.fixture(scope="module")
def smollm_file(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model's tokenizer on a model of nearly no weights."""
    folder = tmp_path_factory.mktemp("small")
    _tiny_model(folder, load_template(smollm2).vocabulary)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2 / name, folder / name)
    write_gguf(open_tuned("", folder), load_template(folder), folder / "x.gguf", "f16", About("x"))
    return folder / "x.gguf"


@llamacpp
@pytest.mark.parametrize("which", ["llama3", "smollm"])
def test_two_hundred_chats_have_the_same_tokens_here_in_transformers_and_in_llamacpp(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    file = request.getfixturevalue(f"{which}_file")
    template = load_template(file.parent)
    template.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    bos = template.variables["bos_token"] if template.opens_with_bos else ""
    assert bool(bos) == (which == "llama3")
    asked = chats()
    wanted = [template.prompt_ids(turns, tools) for turns, tools in asked]
    texts = [template.text(turns, tools, prompt=True) for turns, tools in asked]
    with LlamaCpp(file) as llama:
        assert llama.tokenize(texts) == wanted
        served = llama.tokenize([text.removeprefix(bos) for text in texts], opening=True)
        assert served == wanted, "a server strips the template's BOS and puts the file's: one in all"
        assert set(template.end_ids) <= set(llama.facts["ends"]), "an answer stops where it was taught to"
        assert llama.facts["eos"] == template.end_ids[0]
        control = bos or "<|im_start|>"
        assert llama.tokenize([control], control=False) == [template.encode(control)], "typed by a user it is text"
    for (turns, tools), ids in zip(asked, wanted, strict=True):
        prepared = template._prepared(turns, tools)
        assert theirs.apply_chat_template(prepared, add_generation_prompt=True, return_dict=True)["input_ids"] == ids


def test_the_rule_that_cuts_text_is_found_by_what_it_does(tiny_llama: Path, smollm2: Path) -> None:
    assert pre_tokenizer_of(load_template(tiny_llama).tokenizer) == "llama-bpe"
    other = load_template(smollm2).tokenizer
    assert pre_tokenizer_of(other) == "smollm"
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    other.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    assert pre_tokenizer_of(other) == "smollm", "as the hub's file writes the same rule"


def _without_digits(tokenizer: Any) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _two_digits(tokenizer: Any) -> None:
    pattern = json.loads(tokenizer.to_str())["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    split = pre_tokenizers.Split(Regex(pattern.replace("{1,3}", "{1,2}")), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _composing(tokenizer: Any) -> None:
    tokenizer.normalizer = normalizers.NFC()


def _merging(tokenizer: Any) -> None:
    tokenizer.model.ignore_merges = False


@pytest.mark.parametrize("change", [_without_digits, _two_digits, _composing, _merging])
def test_an_unknown_rule_is_refused(change: Any, tiny_llama: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))
    change(tokenizer)
    with pytest.raises(UserError, match="cuts text in a way that is not known here") as refused:
        pre_tokenizer_of(tokenizer)
    assert "convert_hf_to_gguf.py" in str(refused.value.next_step)


def _with_tokens(template: Template) -> Template:
    template.tokenizer.add_tokens([AddedToken("<order>", special=False, normalized=False)])
    template.tokenizer.add_special_tokens([AddedToken("<|handover|>", special=True, normalized=False)])
    return template


def test_added_tokens_keep_their_kind_and_padding_is_never_written(smollm2: Path) -> None:
    template = _with_tokens(load_template(smollm2))
    size = template.vocabulary
    fields = vocabulary(template, size + 6)
    tokens, kinds = fields[f"{KEY}tokens"], fields[f"{KEY}token_type"]
    assert len(tokens) == len(kinds) == size + 6
    assert (tokens[size - 2 : size], kinds[size - 2 : size]) == (["<order>", "<|handover|>"], [4, 3])
    assert kinds[size:] == [5] * 6 and len(set(tokens)) == len(tokens)
    with pytest.raises(UserError, match="the model's embedding"):
        vocabulary(template, size - 1)


@llamacpp
def test_added_tokens_are_one_token_in_llamacpp(smollm2: Path, tmp_path: Path) -> None:
    import gguf

    template = _with_tokens(load_template(smollm2))
    size = template.vocabulary + 6
    out = tmp_path / "x.gguf"
    (tmp_path / "model").mkdir()
    _tiny_model(tmp_path / "model", size)
    write_gguf(open_tuned("", tmp_path / "model"), template, out, "f16", About("x"))
    assert gguf.GGUFReader(out).fields["llama.vocab_size"].contents() == size
    text = "your <order>12 <|handover|> now"
    with LlamaCpp(out) as llama:
        assert llama.tokenize([text]) == [template.encode(text, control=True)]


def _tiny_model(folder: Path, vocabulary_size: int) -> None:
    import torch
    from safetensors.torch import save_file

    from tuneloop.models.nn.llama import Llama, LlamaConfig

    config = {
        "model_type": "llama", "vocab_size": vocabulary_size, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32, "tie_word_embeddings": True, "max_position_embeddings": 2048,
    }  # fmt: skip
    write_json(folder / "config.json", config)
    net = Llama(LlamaConfig.from_json(config))
    state = {name: torch.ones(p.shape) for name, p in net.named_parameters() if name != "lm_head.weight"}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_template_that_writes_the_end_of_text_behind_turns_writes_the_same_one_in_a_gguf_file(smollm2: Path) -> None:
    chat = load_template(smollm2)  # <|im_end|> ends its turns, <|endoftext|> its texts
    ends = tuple(chat.tokenizer.token_to_id(name) for name in ("<|im_end|>", "<|endoftext|>"))
    base = replace(
        chat, source=PLAIN_TEMPLATE, end_ids=ends, variables={**chat.variables, "eos_token": "<|endoftext|>"}
    )
    for template, end in ((base, ends[1]), (replace(chat, end_ids=ends), ends[0])):
        fields = vocabulary(template, template.vocabulary)
        assert (fields[f"{KEY}eos_token_id"], fields[f"{KEY}eot_token_id"]) == (end, ends[0])
