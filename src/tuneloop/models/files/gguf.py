"""A GGUF file of one of the families, turned once into what the rest reads: config, safetensors, tokenizer."""

from __future__ import annotations

import contextlib
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_bytes, write_json, write_text
from tuneloop.core.foreign import LIMITS, LONGEST_ARRAY, BeyondLimits, opened
from tuneloop.models.nn.families import FAMILIES, LANGUAGE, LLAMA, PATTERN, Family

_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
# llama.cpp's architecture -> the family that its files are read as; a Mistral's say that they are a Llama's.
_READ_AS = {family.gguf: name for name, family in reversed(FAMILIES.items())}
OTHER_FILES = "use the model's safetensors folder"

# How a byte-level BPE vocabulary cuts text before merging, by the name GGUF gives it.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT4, _QWEN = (f"{_CONTRACTIONS}|{_PIECES}".replace("DIGITS", digits) for digits in ("{1,3}", ""))
# words are cut where a capital follows a small letter
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+END|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*END"
_CASED = _WORDS + r"|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
_LLAMA_3 = ("llama-bpe", "llama3", "llama-v3")
_WHOLE_WORDS = (*_LLAMA_3, "tekken")  # a word that is a token is not put together by merges
_PRE_TOKENIZERS = {
    **dict.fromkeys((*_DIGITS_APART, "gpt-2", "phi-2", "mpt", "olmo"), _GPT2),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan"), _QWEN),
    **dict.fromkeys((*_LLAMA_3, "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _GPT4),
    "tekken": _CASED.replace("END", "").replace("DIGITS", ""),
    **dict.fromkeys(("gpt-4o", "llama4"), _CASED.replace("END", f"{_CONTRACTIONS}?").replace("DIGITS", "{1,3}")),
}


def write_model(source: Path, folder: Path) -> None:
    """Dequantise a GGUF file of one of the families: to bf16 safetensors, config and tokenizer, loadable by
    Transformers too. Raises UserError: another model, or a damaged file."""
    with _user_errors_of_fields(source):
        _write_model(source, folder)


def read_tokenizer(source: Path, folder: Path) -> None:
    """Write the tokenizer and the chat template of a GGUF file into a folder, without its weights. Raises UserError:
    not a readable GGUF file, or a tokenizer that is not known here."""
    fields = _known_header(source).fields
    with _user_errors_of_fields(source):
        _write_tokenizer(fields, folder)


def read_config(source: Path) -> dict[str, Any]:
    """A GGUF file's sizes as a `config.json` has them. Raises UserError: see `write_model`."""
    header = _known_header(source)
    fields = header.fields
    kind = fields.get("general.architecture")
    if kind not in _READ_AS:
        raise UserError(f"The sizes of {kind!r} are not read from GGUF here", where=str(source), next_step=OTHER_FILES)
    with _user_errors_of_fields(source):
        return _config(fields) | {"tie_word_embeddings": _ties_head(source, header)}


@contextlib.contextmanager
def _user_errors_of_fields(source: Path) -> Iterator[None]:
    """Name the file whose fields are missing or contradict each other."""
    try:
        yield
    except (UserError, OSError, MemoryError, ImportError):
        raise
    except Exception as error:  # a foreign file: its numbers go into shapes, its names into the tokenizer
        message = f"lacks {error}" if isinstance(error, KeyError) else f"makes no sense: {error}"
        raise UserError(f"The GGUF file {message}", where=str(source), next_step=OTHER_FILES) from None


def _known_header(source: Path) -> Header:
    """The header of a GGUF file whose tokenizer is of a kind that is known here."""
    header = read_header(source)
    fields = header.fields
    tokenizer = fields.get("tokenizer.ggml.model")
    if tokenizer not in ("gpt2", "llama"):
        message = (
            f"A tokenizer of the kind {tokenizer!r} can't be read from GGUF here, only byte-level BPE and SentencePiece"
        )
        raise UserError(message, where=str(source), next_step=OTHER_FILES)
    pre = fields.get("tokenizer.ggml.pre", "")
    if tokenizer == "gpt2" and pre not in _PRE_TOKENIZERS and "tokenizer.ggml.tokens" in fields:
        raise UserError(f"GGUF pre-tokenizer {pre!r} is not known here", where=str(source), next_step=OTHER_FILES)
    return header


def _layer_names(family: Family) -> dict[str, str]:
    """llama.cpp's names of a layer's tensors -> Transformers'."""
    names = _LAYER | (_NORMS if family.qk_norm else {}) | (_FOUR_NORMS if family.four_norms else {})
    if not family.fused:
        return names
    apart = ("attn_q", "attn_k", "attn_v", "ffn_gate")
    return {name: module for name, module in names.items() if name not in apart} | _FUSED


def _write_model(source: Path, folder: Path) -> None:
    import gguf
    import torch
    from safetensors.torch import save

    header = _known_header(source)
    fields = header.fields
    kind = fields.get("general.architecture")
    if kind not in _READ_AS:
        message = f"The weights of a GGUF file of {kind!r} can't be read here, only of {', '.join(sorted(_READ_AS))}"
        step = "ask it with llama.cpp (engine=llama.cpp); to train, use the model's safetensors folder"
        raise UserError(message, where=str(source), next_step=step)
    config = _config(fields)
    family = FAMILIES[config["model_type"]]
    layer_names = _layer_names(family)
    try:
        reader = gguf.GGUFReader(source)
    except Exception as error:  # the library trusts its file
        raise _unreadable(source, error) from None
    tensors: dict[str, Any] = {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            config["rope_parameters"] = _llama3_rope(config, gguf.dequantize(tensor.data, tensor.tensor_type))
            continue
        block, part = re.fullmatch(r"(.+)\.(weight|bias)", tensor.name).groups()  # type: ignore[union-attr]
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)", block)
        layer_name = layer_names.get(match[2]) if match else None
        stem = f"model.layers.{match[1]}.{layer_name}" if match and layer_name else _TOP.get(block)
        if stem is None:
            raise ValueError(f"it has a tensor {tensor.name}, which this architecture lacks")
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        if family.interleaved and stem.endswith(("q_proj", "k_proj")):  # Transformers stacks the halves
            heads = config["num_attention_heads" if stem.endswith("q_proj") else "num_key_value_heads"]
            rows, rest = values.shape[0], values.shape[1:]
            values = values.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(rows, *rest)
        if family.zero_centred and stem.endswith("norm"):
            values = values - 1
        tensors[f"{stem}.{part}"] = values.to(torch.bfloat16).contiguous()
    config["tie_word_embeddings"] = _ties_head(source, header)
    if config["tie_word_embeddings"] and (head := tensors.pop("lm_head.weight", None)) is not None:
        sizes = {tensor.name: tensor.n_bytes for tensor in reader.tensors}
        if sizes["output.weight"] > sizes["token_embd.weight"]:  # one matrix, which is more precise there
            tensors["model.embed_tokens.weight"] = head
    write_bytes(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    _write_tokenizer(fields, folder)
    write_json(folder / "config.json", config)


SAMPLED, SAME_MATRIX = 512, 0.1  # rows that are compared; most that rounding to 4 bits moves a matrix, of its length


def _ties_head(source: Path, header: Header) -> bool:
    """Whether a file's head is its embedding: left out, or written a second time, perhaps in another type.

    In one type both are equal to the last bit then; in two types they differ by what rounding does. Where the library
    that unpacks types is not installed (for planning alone), a head that is in the file counts as one of its own.
    """
    table, head = "token_embd.weight", "output.weight"
    if head not in header.sizes or header.sizes.get(table) != header.sizes[head]:
        return head not in header.sizes
    try:
        import gguf
    except ImportError:
        return False
    import numpy as np

    width, rows = header.sizes[head]
    kinds = [gguf.GGMLQuantizationType(header.tensor_types[name]) for name in (table, head)]
    stored = []
    for name, kind in zip((table, head), kinds, strict=True):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = (rows, width // block * size)
        stored.append(np.memmap(source, np.uint8, mode="r", offset=header.starts[name], shape=shape))
    if kinds[0] == kinds[1]:
        return bool(np.array_equal(stored[0], stored[1]))
    some = slice(None, None, max(rows // SAMPLED, 1))
    first, second = (gguf.dequantize(np.array(part[some]), kind) for part, kind in zip(stored, kinds, strict=True))
    return bool(np.linalg.norm(first - second) < SAME_MATRIX * np.linalg.norm(second))


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    kind = fields["general.architecture"]
    name = _READ_AS[kind]
    family = FAMILIES[name]
    here = {key.removeprefix(f"{kind}."): value for key, value in fields.items() if key.startswith(f"{kind}.")}
    heads = here["attention.head_count"]
    head_size = (
        here.get("attention.key_length") or here.get("rope.dimension_count") or here["embedding_length"] // heads
    )
    gelu = family.activation == "gelu"
    activation = {"hidden_activation": "gelu_pytorch_tanh"} if gelu else {"hidden_act": "silu"}
    config = {
        "architectures": [_CLASSES[name]], "model_type": name,
        "vocab_size": here.get("vocab_size", len(fields["tokenizer.ggml.tokens"])),
        "hidden_size": here["embedding_length"], "intermediate_size": here["feed_forward_length"],
        "num_hidden_layers": here["block_count"], "num_attention_heads": heads,
        "num_key_value_heads": here.get("attention.head_count_kv", heads), "head_dim": head_size,
        "max_position_embeddings": here["context_length"],
        "rms_norm_eps": float(f"{here['attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": here.get("rope.freq_base", 10000.0), **activation, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"), "torch_dtype": "bfloat16",
    }  # fmt: skip
    if here.get("rope.dimension_count", head_size) != head_size:
        raise ValueError("only a part of each head has positions")
    scaling = here.get("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise ValueError(f"positions are scaled by {scaling!r}")
    if scaling == "linear" and here.get("rope.scaling.factor"):
        config["rope_scaling"] = {"rope_type": "linear", "factor": here["rope.scaling.factor"]}
    if family.window:
        config["sliding_window"] = here.get("attention.sliding_window") or None
    if name == "gemma3_text":  # which llama.cpp has in its code: the 27B model's scores, the pattern, the second base
        scale = config["hidden_size"] // heads if config["num_hidden_layers"] == 62 else head_size
        config |= {"query_pre_attn_scalar": scale, "sliding_window_pattern": PATTERN}
        config["rope_local_base_freq"] = family.local_theta
    return config


_CLASSES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "smollm3": "SmolLM3ForCausalLM", "phi3": "Phi3ForCausalLM",
    "gemma": "GemmaForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
}  # fmt: skip


def _llama3_rope(config: Mapping[str, Any], divisors: Any) -> dict[str, Any]:
    """Llama 3.1's stretched positions, of which a file has only what each frequency is divided by.

    Raises:
        ValueError: they are stretched in another way.
    """
    import torch

    from tuneloop.models.nn.llama import LlamaConfig, rope_frequencies

    rope = {
        "rope_type": "llama3", "rope_theta": config["rope_theta"], "factor": float(divisors.max()),
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    plain = rope_frequencies(LlamaConfig.from_json({**config, "rope_scaling": {}}))
    stretched = rope_frequencies(LlamaConfig.from_json({**config, "rope_parameters": rope}))
    if not torch.allclose(plain / stretched, torch.from_numpy(divisors.copy()).float(), rtol=1e-3):
        raise ValueError("its positions are not stretched as those of Llama 3.1")
    return rope


def gguf_name(name: str, family: Family = LLAMA) -> str | None:
    """The GGUF name of a tensor, from its name in Transformers; None: it has none."""
    stem, _, part = name.replace(f"model.{LANGUAGE}.", "model.").rpartition(".")
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    gguf_names = {there: here for here, there in (_layer_names(family) if match else _TOP).items()}
    block = gguf_names.get(match[2] if match else stem)
    if block is None or part not in ("weight", "bias"):
        return None
    return f"blk.{match[1]}.{block}.{part}" if match else f"{block}.{part}"


def permuted(weight: Any, heads: int) -> Any:
    """Rows of q or k (heads * D, ...) in llama.cpp's order, with rotary pairs side by side; Transformers has halves."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


class TokenKind(IntEnum):
    """Kinds of tokens, by llama.cpp's numbers."""

    NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


_SPACE = "\u2581"  # in the place of each space in SentencePiece's tokens


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds: list[int] = fields["tokenizer.ggml.token_type"]
    by_pieces = fields["tokenizer.ggml.model"] == "llama"
    tokenizer = _sentencepiece(fields) if by_pieces else _byte_level(fields)
    added = zip(tokens, kinds, strict=True)
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == TokenKind.CONTROL, normalized=False)
            for token, kind in added
            if kind in (TokenKind.CONTROL, TokenKind.USER_DEFINED)
        ]
    )
    write_text(folder / "tokenizer.json", tokenizer.to_str())

    def token(which: str) -> str | None:
        number = fields.get(f"tokenizer.ggml.{which}_token_id")
        return None if number is None else tokens[number]

    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", **{f"{ours}_token": token(name) for ours, name in names.items()},
        "add_bos_token": bool(fields.get("tokenizer.ggml.add_bos_token", by_pieces)),
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields.get(f"{fields['general.architecture']}.context_length"),
        "chat_template": fields.get("tokenizer.chat_template"),
    })  # fmt: skip


def _byte_level(fields: dict[str, Any]) -> Any:
    """A byte-level BPE tokenizer (`tokenizers.Tokenizer`), without its added tokens."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    pre = fields.get("tokenizer.ggml.pre", "")
    tokenizer = Tokenizer(BPE({t: i for i, t in enumerate(tokens)}, merges, ignore_merges=pre in _WHOLE_WORDS))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre in _DIGITS_APART else []
    steps.append(pre_tokenizers.Split(Regex(_PRE_TOKENIZERS[pre]), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if pre in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentencepiece(fields: dict[str, Any]) -> Any:
    """SentencePiece's BPE, which joins the neighbours whose piece has the highest score, as merges in that order."""
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    scores = fields["tokenizer.ggml.scores"]
    ids = {token: i for i, token in enumerate(tokens)}
    readable = (TokenKind.NORMAL, TokenKind.USER_DEFINED, TokenKind.UNUSED)
    usable = {token for token, kind in zip(tokens, kinds, strict=True) if kind in readable}
    pairs = []
    for token in usable:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in usable and right in usable:
                pairs.append((-scores[ids[token]], ids[token], ids[left], left, right))
    merges = [(left, right) for *_, left, right in sorted(pairs)]
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenKind.UNKNOWN), None)
    tokenizer = Tokenizer(BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    replace_spaces = normalizers.Replace(" ", _SPACE)
    after = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace_spaces])
        after.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = replace_spaces
    tokenizer.decoder = decoders.Sequence(after)
    return tokenizer


_START = struct.Struct("<4sIQQ")  # magic, version, tensors, fields
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_U32, _U64, _U32_U64 = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQ")
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Header:
    """The fields of a GGUF file by their names, and of each tensor llama.cpp's number of its type, its sizes (a row's
    length first) and where in the file it begins."""

    fields: dict[str, Any]
    tensor_types: dict[str, int]
    sizes: dict[str, tuple[int, ...]]
    starts: dict[str, int]


def read_header(file: Path) -> Header:
    """Read what comes before the weights. Raises UserError: not a little-endian GGUF file, or an incomplete one."""
    try:
        with opened(file) as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(_Reader(data))
    except (ValueError, OSError, struct.error, KeyError, OverflowError, MemoryError, RecursionError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"Not a readable GGUF file: {error}", where=str(file), next_step="download it again")


class _Reader:
    """Values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def numbers(self, layout: struct.Struct) -> tuple[Any, ...]:
        values = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return values

    def string(self) -> str:
        (size,) = self.numbers(_U64)
        piece = self.data[self.at : self.at + size]
        if len(piece) < size:
            raise ValueError("it ends within a text")
        self.at += size
        return piece.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.numbers(struct.Struct(f"<{_NUMBERS[kind]}"))[0]
        of, count = self.numbers(_U32_U64)
        if count > min(len(self.data), LONGEST_ARRAY) or of == _ARRAY:
            raise BeyondLimits(f"an array of {count:,} values")
        if of in _NUMBERS:
            return list(self.numbers(struct.Struct(f"<{count}{_NUMBERS[of]}")))
        return [self.value(of) for _ in range(count)]


def _header(reader: _Reader) -> Header:
    magic, version, tensors, count = reader.numbers(_START)
    if (parts := tensors + count) > LIMITS["gguf"].nodes:
        raise BeyondLimits(f"it has {parts:,} keys and tensors")
    if magic != b"GGUF":
        raise ValueError("it does not begin as one")
    if version not in (2, 3):
        raise ValueError(f"version {version} is not known here")
    fields = {}
    for _ in range(count):
        name = reader.string()
        fields[name] = reader.value(*reader.numbers(_U32))
    types, sizes, offsets = {}, {}, {}
    for _ in range(tensors):
        name = reader.string()
        (dimensions,) = reader.numbers(_U32)
        if dimensions > 8:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        sizes[name] = reader.numbers(struct.Struct(f"<{dimensions}Q"))
        (types[name],) = reader.numbers(_U32)
        (offsets[name],) = reader.numbers(_U64)  # behind the header
    if reader.at + max(offsets.values(), default=-1) >= len(reader.data):
        raise ValueError("it ends before its last weights")
    alignment = fields.get("general.alignment", 32)
    begin = -(-reader.at // alignment) * alignment
    return Header(fields, types, sizes, {name: begin + offset for name, offset in offsets.items()})
