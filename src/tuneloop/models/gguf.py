"""A GGUF file of a Llama model, turned once into what the rest reads: config, safetensors, tokenizer."""

from __future__ import annotations

import contextlib
import json
import mmap
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder, sha256_file, user_errors_of_the_disk, write_bytes, write_json, write_text

_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
OTHER_FILES = "use the model's safetensors folder"

# How a byte-level BPE vocabulary cuts text before merging, by the name GGUF gives it.
_PRE_TOKENIZERS = {
    "smollm": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def convert(source: Path, folder: Path) -> Path:
    """Dequantise a GGUF file (Llama, byte-level BPE) once: to bf16 safetensors, config and tokenizer, loadable by
    Transformers too, and last `source.json`, which names the source. Raises UserError: another model, or no space."""
    last = folder / "source.json"
    stamp = {"file": source.name, "bytes": source.stat().st_size, "mtime_ns": source.stat().st_mtime_ns, "layout": 1}
    if _is_converted(last, stamp):
        return folder

    def waiting(holder: str) -> None:
        line = f"waiting   another tuneloop process ({holder}) is unpacking the model {source.stem}"
        print(line, file=sys.stderr, flush=True)

    with user_errors_of_the_disk(folder), lock_folder(folder, waiting=waiting):
        if _is_converted(last, stamp):  # by the process that was waited for
            return folder
        last.unlink(missing_ok=True)
        with _user_errors_of_fields(source):
            _write_model(source, folder)
        write_json(last, {**stamp, "sha256": sha256_file(source)})
    return folder


def _is_converted(last: Path, stamp: Mapping[str, Any]) -> bool:
    """Whether the file written last names the same source."""
    try:
        source = json.loads(last.read_text())
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(source, dict) and source.items() >= stamp.items()


def read_tokenizer(source: Path, folder: Path) -> None:
    """Write the tokenizer and the chat template of a GGUF file into a folder, without its weights. Raises UserError:
    not a readable GGUF file, or a tokenizer that is not known here."""
    fields = _fields(source)
    with _user_errors_of_fields(source):
        _write_tokenizer(fields, folder)


@contextlib.contextmanager
def _user_errors_of_fields(source: Path) -> Iterator[None]:
    """Name the file whose fields are missing or contradict each other."""
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # a foreign file: its numbers go into shapes, its names into the tokenizer
        what = f"lacks {error}" if isinstance(error, KeyError) else f"makes no sense: {error}"
        raise UserError(f"The GGUF file {what}", where=str(source), next_step=OTHER_FILES) from None


def _fields(source: Path) -> dict[str, Any]:
    """The fields of a GGUF file of a kind that is known here."""
    fields = read_header(source).fields
    kind = fields.get("general.architecture")
    if kind != "llama" or fields.get("tokenizer.ggml.model") != "gpt2":
        what = f"Only Llama models with a byte-level BPE tokenizer can be read from GGUF, not {kind!r}"
        raise UserError(what, where=str(source), next_step=OTHER_FILES)
    return fields


def _write_model(source: Path, folder: Path) -> None:
    import gguf
    import torch
    from safetensors.torch import save

    fields = _fields(source)
    config = _config(fields)
    try:
        reader = gguf.GGUFReader(source)
    except Exception as error:  # the library trusts its file
        raise _unreadable(source, error) from None
    tensors: dict[str, Any] = {}
    for tensor in reader.tensors:
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        stem = _TOP.get(tensor.name.removesuffix(".weight"))
        if match and match[2] in _LAYER:
            stem = f"model.layers.{match[1]}.{_LAYER[match[2]]}"
        if stem is None:
            continue
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        if stem.endswith(("q_proj", "k_proj")):  # llama.cpp interleaves rotary pairs, Transformers stacks the halves
            heads = config["num_attention_heads" if stem.endswith("q_proj") else "num_key_value_heads"]
            rows, columns = values.shape
            values = values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        tensors[f"{stem}.weight"] = values.to(torch.bfloat16).contiguous()
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    write_bytes(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    _write_tokenizer(fields, folder)
    write_json(folder / "config.json", config)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    llama = {key.removeprefix("llama."): value for key, value in fields.items() if key.startswith("llama.")}
    heads = llama["attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": llama.get("vocab_size", len(fields["tokenizer.ggml.tokens"])),
        "hidden_size": llama["embedding_length"], "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"], "num_attention_heads": heads,
        "num_key_value_heads": llama.get("attention.head_count_kv", heads),
        "head_dim": llama.get("rope.dimension_count", llama["embedding_length"] // heads),
        "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": float(f"{llama['attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": llama.get("rope.freq_base", 10000.0), "hidden_act": "silu", "attention_bias": False,
        "mlp_bias": False, "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"), "torch_dtype": "bfloat16",
    }  # fmt: skip


def gguf_name(name: str) -> str | None:
    """The GGUF name of a Llama's tensor, from its name in Transformers; None: it has none."""
    stem = name.removesuffix(".weight")
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    gguf_names = {there: here for here, there in (_LAYER if match else _TOP).items()}
    block = gguf_names.get(match[2] if match else stem)
    return None if block is None else f"blk.{match[1]}.{block}.weight" if match else f"{block}.weight"


def permuted(weight: Any, heads: int) -> Any:
    """Rows of q or k (heads * D, ...) in llama.cpp's order, with rotary pairs side by side; Transformers has halves."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds: list[int] = fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    pre = fields.get("tokenizer.ggml.pre", "")
    if pre not in _PRE_TOKENIZERS:
        raise UserError(f"GGUF pre-tokenizer {pre!r} is not known here", where=str(folder), next_step=OTHER_FILES)
    tokenizer = Tokenizer(BPE({t: i for i, t in enumerate(tokens)}, merges, ignore_merges=pre == "llama-bpe"))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    steps.append(pre_tokenizers.Split(Regex(_PRE_TOKENIZERS[pre]), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == 3]  # a control token
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    write_text(folder / "tokenizer.json", tokenizer.to_str())

    def token(which: str) -> str | None:
        number = fields.get(f"tokenizer.ggml.{which}_token_id")
        return None if number is None else tokens[number]

    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", **{f"{ours}_token": token(name) for ours, name in names.items()},
        "add_bos_token": bool(fields.get("tokenizer.ggml.add_bos_token", False)),
        "clean_up_tokenization_spaces": False, "model_max_length": fields.get("llama.context_length"),
        "chat_template": fields.get("tokenizer.chat_template"),
    })  # fmt: skip


_START = struct.Struct("<4sIQQ")  # magic, version, tensors, fields
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_U32, _U64, _U32_U64 = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQ")
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Header:
    """The fields of a GGUF file by their names, and llama.cpp's number of each tensor's type."""

    fields: dict[str, Any]
    tensor_types: dict[str, int]


def read_header(file: Path) -> Header:
    """Read what comes before the weights. Raises UserError: not a little-endian GGUF file, or an incomplete one."""
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
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
        if count > len(self.data):
            raise ValueError("an array is longer than the file")
        if of in _NUMBERS:
            return list(self.numbers(struct.Struct(f"<{count}{_NUMBERS[of]}")))
        return [self.value(of) for _ in range(count)]


def _header(reader: _Reader) -> Header:
    magic, version, tensors, count = reader.numbers(_START)
    if magic != b"GGUF":
        raise ValueError("it does not begin as one")
    if version not in (2, 3):
        raise ValueError(f"version {version} is not known here")
    fields = {}
    for _ in range(count):
        name = reader.string()
        fields[name] = reader.value(*reader.numbers(_U32))
    types, last = {}, -1
    for _ in range(tensors):
        name = reader.string()
        (dimensions,) = reader.numbers(_U32)
        if dimensions > 8:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        reader.numbers(struct.Struct(f"<{dimensions}Q"))
        (types[name],) = reader.numbers(_U32)
        last = max(last, *reader.numbers(_U64))  # its offset behind the header
    if reader.at + last >= len(reader.data):
        raise ValueError("it ends before its last weights")
    return Header(fields, types)
