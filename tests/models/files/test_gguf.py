"""The packaged GGUF becomes the model that Transformers reads from the same file, once."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from real_models import real_model
from tuneloop.core.errors import UserError
from tuneloop.inference.llamacpp.process import LlamaCpp, installed
from tuneloop.inference.llamacpp.serving import template_of
from tuneloop.models.files.gguf import read_header
from tuneloop.models.files.names import convert, packaged_gguf
from tuneloop.models.load import load_model, read_weights
from tuneloop.planning.catalogue.shape import find_model
from tuneloop.release.gguf.convert import About, write_gguf
from tuneloop.release.tuned_weights import open_tuned


@pytest.fixture
def small_gguf(llama3_tokenizer: Path, tmp_path: Path) -> tuple[Path, Any]:
    """A random Llama 3 of one layer as a GGUF file written with llama.cpp's own library, and its Transformers model."""
    pytest.importorskip("gguf")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    net = LlamaForCausalLM(LlamaConfig(
        vocab_size=261, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.3,
    )).eval()  # fmt: skip
    return _written(tmp_path / "tiny.gguf", net, llama3_tokenizer), net


def _written(path: Path, net: Any, llama3_tokenizer: Path, **types: str) -> Path:
    """The model as a GGUF file; `types`: of the embedding and the head, by llama.cpp's names."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    form = json.loads(llama3_tokenizer.read_text())["model"]
    vocabulary = sorted(form["vocab"], key=form["vocab"].__getitem__)[:257]  # the bytes and their first merge
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([*vocabulary, "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"])
    writer.add_token_types([1] * 257 + [3] * 4)
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)

    def permuted(weight: Any, heads: int) -> Any:  # llama.cpp's order of rotary pairs
        return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)

    state = {key: value.float().numpy() for key, value in net.state_dict().items()}
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "model.layers.0.input_layernorm": "blk.0.attn_norm", "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
        "model.layers.0.self_attn.q_proj": "blk.0.attn_q", "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
        "model.layers.0.self_attn.v_proj": "blk.0.attn_v", "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
        "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate", "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
        "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
    }  # fmt: skip
    for ours, theirs in names.items():
        weight = state[f"{ours}.weight"]
        heads = {"attn_q": 4, "attn_k": 2}.get(theirs.split(".")[-1])
        if heads:
            weight = permuted(weight, heads)
        kind = gguf.GGMLQuantizationType[types.get(theirs, "F32")]
        writer.add_tensor(f"{theirs}.weight", gguf.quantize(np.ascontiguousarray(weight), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_becomes_the_model_it_was_made_of(small_gguf: tuple[Path, Any], tmp_path: Path) -> None:
    path, net = small_gguf
    model = load_model(str(convert(path, tmp_path / "out")), dtype="float32")
    ids = torch.randint(0, 261, (2, 20))
    net.load_state_dict({k: v.to(torch.bfloat16).float() for k, v in net.state_dict().items()})
    with torch.no_grad():
        assert model.template.encode("a  ") == [ord("a") - 33, 256]
        torch.testing.assert_close(model.net.logits(model.hidden(ids)), net(ids).logits, atol=1e-3, rtol=1e-3)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("types", "changed", "tied"),
    [
        ({"token_embd": "Q8_0", "output": "Q8_0"}, 0.0, True),
        ({"token_embd": "Q4_0", "output": "F32"}, 0.0, True),
        ({"token_embd": "Q8_0", "output": "Q8_0"}, 0.3, False),
        ({"token_embd": "Q4_0", "output": "Q8_0"}, 1.0, False),
    ],
    ids=["twice", "twice in two types", "a trained head", "a trained head in another type"],
)
def test_a_tied_head_that_is_in_a_file_twice_is_one_matrix(
    small_gguf: tuple[Path, Any],
    llama3_tokenizer: Path,
    tmp_path: Path,
    types: dict[str, str],
    changed: float,
    tied: bool,
) -> None:
    net = small_gguf[1]
    with torch.no_grad():
        net.lm_head.weight.copy_(net.model.embed_tokens.weight + changed * torch.randn(261, 64))
    path = _written(tmp_path / "twice.gguf", net, llama3_tokenizer, **types)
    sizes = find_model(str(path))[1]
    model = load_model(str(convert(path, tmp_path / "out")), dtype="float32")
    assert model.net.config.tied is sizes.tied is tied  # type: ignore[union-attr]
    assert sizes.parameters == sum(p.numel() for p in {id(p): p for p in model.net.parameters()}.values())
    if tied:  # the more precise one is read
        torch.testing.assert_close(model.head, net.lm_head.weight, atol=0.02, rtol=0.02)
    assert ("lm_head.weight" not in read_weights(tmp_path / "out")) is tied, "exports write what is here"


def test_a_second_call_writes_nothing_and_another_source_is_converted_again(
    small_gguf: tuple[Path, Any], tmp_path: Path
) -> None:
    path, _ = small_gguf
    out = convert(path, tmp_path / "out")
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    convert(path, out)
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    (out / "source.json").write_text("{torn")  # a stamp that can't be read
    convert(path, out)
    assert json.loads((out / "source.json").read_text())["file"] == "tiny.gguf"
    stamp = (out / "source.json").read_text()
    path.touch()  # another copy of the same file, as a second environment has it
    convert(path, out)
    assert (out / "source.json").read_text() == stamp
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    convert(path, out)
    assert (out / "source.json").read_text() != stamp


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 100], ids=["empty", "torn", "foreign"])
def test_a_corrupt_file_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match="Not a readable GGUF"):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out" / "source.json").exists()


def test_a_missing_package_is_no_fault_of_the_file(
    small_gguf: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match="gguf"):
        convert(small_gguf[0], tmp_path / "folder")


def test_a_truncated_file_is_told(small_gguf: tuple[Path, Any], tmp_path: Path) -> None:
    path, _ = small_gguf
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match="Not a readable GGUF"):
        convert(path, tmp_path / "out")


def test_a_file_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="lacks"):
        convert(tmp_path / "x.gguf", tmp_path / "out")


@pytest.mark.nightly
@pytest.mark.slow
def test_the_packaged_weights_equal_what_transformers_reads(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = packaged_gguf()
    assert source is not None
    theirs = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    ours = read_weights(smollm2)
    expected = theirs.state_dict()
    assert set(expected) - set(ours) <= {"lm_head.weight"}
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, expected[name].to(torch.bfloat16), atol=0, rtol=0, msg=name)


TEXTS = [
    "Hello world, this is a test.\n\nNew  paragraph: 1234 x = 5; naïve 中文 🚀 end",
    "def f(x):\n    return x+1\n\n\n#  café  \t tabs <b>bold</b> don't I'LL \u00a0 \x1c",
    "<start_of_turn>user\nHi<end_of_turn>\n<|im_start|>system\nBe brief<|im_end|>",
]

LAST = 120  # positions whose logits are compared, of a vocabulary of 150,000 to 260,000 tokens


@pytest.mark.slow
@pytest.mark.world
@pytest.mark.parametrize(("name", "length"), [("gemma-3-270m", 600), ("qwen2.5-coder-0.5b", 240)])
@torch.no_grad()
def test_a_real_model_has_llamacpp_s_tokens_and_logits_here_and_written_again(
    name: str, length: int, tmp_path: Path
) -> None:
    """Gemma has a SentencePiece tokenizer and a window of 512 tokens; Qwen a byte-level one and biases."""
    file = real_model(name)
    if file is None:
        pytest.skip("make models fetches it")
    if not installed():
        pytest.skip("llama.cpp is not installed")
    model = load_model(str(file), dtype="float32")
    assert model.is_own
    again = tmp_path / "again.gguf"
    write_gguf(open_tuned("", model.folder), model.template, again, "bf16", About(name))
    expected = [model.template.tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    opening: list[int] = []
    for source in (file, again):
        with LlamaCpp(source, exact=True) as llama:
            assert llama.tokenize(TEXTS) == expected
            (ids,) = llama.tokenize(["The quick brown fox jumps over the lazy dog. " * 80], opening=True)
            theirs = torch.from_numpy(llama.logits(ids[:length])[-LAST:]).log_softmax(-1)
        if ids != opening:
            hidden = model.hidden(torch.tensor([ids[:length]]))[:, -LAST:]
            ours, opening = model.net.logits(hidden)[0].log_softmax(-1), ids  # type: ignore[operator]
        best = theirs.argmax(-1, keepdim=True)
        assert (ours.argmax(-1, keepdim=True) == best).float().mean() > 0.99
        assert (ours - theirs).gather(1, best).abs().mean() < 0.01  # both round products to 8 bits or less


SAMPLE = """It's 12345 of 1234567 words: "HTTPServer" can't parse camelCase, isn't it? WE'LL see...
  two  spaces,\ttabs\r\nand /paths/like/this.\n\n\n\nx = [1, 22, 333];  # a comment!!!
Ünïcödé, naïve café; 日本語のテキスト 2026-11-30 is 3.14159 % of $1,000,000.00   """


@pytest.fixture(scope="module")
def merges_across() -> tuple[list[str], list[str]]:
    """Tokens and merges learned from the sample without cutting it: they join what any cut divides."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers.models import BPE

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    lines = [SAMPLE[start : start + 40] for start in range(0, len(SAMPLE), 7)]
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet))
    form = json.loads(tokenizer.to_str())["model"]
    return sorted(form["vocab"], key=form["vocab"].__getitem__), [" ".join(pair) for pair in form["merges"]]


@pytest.mark.parametrize(
    "name", ["smollm", "command-r", "gpt-2", "qwen2", "dbrx", "llama-bpe", "glm4", "tekken", "gpt-4o", "llama4"]
)
def test_text_is_cut_as_llama_cpp_cuts_it(
    name: str, merges_across: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    llama_cpp = pytest.importorskip("llama_cpp")
    tokens, merges = merges_across
    path = tmp_path / "words.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list([*tokens, "<|im_end|>"])
    writer.add_token_types([1] * len(tokens) + [3])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    assert template_of(path).encode(SAMPLE) == theirs.tokenize(SAMPLE.encode(), add_bos=False)


@pytest.mark.parametrize("keys", [struct.pack("<QQ", 10**12, 0), struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1 << 60)])
def test_a_header_beyond_its_file_is_refused(tmp_path: Path, keys: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(struct.pack("<4sI", b"GGUF", 3) + keys)
    with pytest.raises(UserError, match="Not a readable GGUF file"):
        read_header(tmp_path / "a.gguf")
