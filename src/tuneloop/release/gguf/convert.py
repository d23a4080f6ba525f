"""A run's tuned weights as a GGUF file, as llama.cpp and Ollama read it; one tensor at a time is in memory."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import user_errors_of_the_disk
from tuneloop.core.foreign import parse_json
from tuneloop.core.ui import progress
from tuneloop.core.units import counted
from tuneloop.models.chat import Template, plain_source
from tuneloop.models.files import TokenKind, gguf_name, permuted, read_header
from tuneloop.models.nn import PATTERN, reads_text
from tuneloop.release.tuned_weights import TunedWeights

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from tuneloop.models.nn import Family, LlamaConfig

FloatType = Literal["f32", "f16", "bf16"]
FLOAT_TYPES: tuple[FloatType, ...] = ("f32", "f16", "bf16")
CONVERT_ELSEWHERE = "export with --format merged and convert it with llama.cpp's convert_hf_to_gguf.py"


@dataclass(frozen=True)
class About:
    """What a GGUF file says of itself: its name, its base model, the base's licence."""

    name: str
    base: str = ""
    licence: str = ""


def write_gguf(weights: TunedWeights, template: Template, out: Path, kind: FloatType, about: About) -> None:
    """Write all tensors in one floating-point type; vectors stay fp32, as llama.cpp computes with them.

    Args:
        weights: of a model of one of the families (`models/nn/families.py`).
        template: the tokenizer, and the chat template that was trained.

    Raises:
        UserError: another architecture or one that llama.cpp would compute otherwise, a tokenizer that it does not
            know, values beyond the type, a full disk.
    """
    import gguf

    from tuneloop.models.nn import rope_frequencies

    config = config_for_llamacpp(dict(weights.config))
    names = _names(weights, config)
    writer = gguf.GGUFWriter(out, config.family.gguf)
    _describe(writer, config, kind, about)
    add_fields(writer, vocabulary(template, config.vocab_size))
    writer.add_chat_template(plain_source(template.source))
    rope = None
    # What llama.cpp divides each rotary frequency by, (D / 2), where a context was stretched.
    if _rope_type(config) == "llama3":
        plain = rope_frequencies(replace(config, rope_scaling={}))
        rope = (plain / rope_frequencies(config)).float().numpy()
        announce(writer, "rope_freqs.weight", rope.shape, "f32")
    kinds: dict[str, FloatType] = {name: "f32" if len(weights.shapes[name]) == 1 else kind for name in names}
    for name, there in names.items():
        announce(writer, there, weights.shapes[name], kinds[name])
    with tensors_of(writer, out):
        if rope is not None:
            writer.write_tensor_data(rope)
        for count, name in enumerate(names, 1):
            tensor = as_llamacpp_has_it(name, weights.tensor(name), config)
            writer.write_tensor_data(as_numpy(tensor, kinds[name], name))
            progress("writing GGUF", count, len(names))


def config_for_llamacpp(values: dict[str, Any]) -> LlamaConfig:
    """A model's numbers, from its `config.json`, where llama.cpp computes with them as we do.

    Raises:
        UserError: it does not: another architecture, or numbers that are fixed in its code.
    """
    from tuneloop.models.nn import LlamaConfig

    kind = values.get("model_type")
    if not LlamaConfig.supports(values):
        message = f"Models of the kind {kind!r} are not written as GGUF here"
        raise UserError(message, where="config.json", next_step=CONVERT_ELSEWHERE)
    config = LlamaConfig.from_json(values)
    family, usual = config.family, range(PATTERN - 1, config.layers, PATTERN)
    whole = [layer for layer, window in enumerate(config.windows) if not window]
    odd = ""
    if family.window == "asked" and config.windows:
        odd = "only some layers have a window"
    elif family.gguf == "llama" and config.windows:
        odd = "its layers have a window"  # llama.cpp has none for this architecture
    elif family.window == "alternating" and (whole != list(usual) or config.local_theta != family.local_theta):
        odd = "its windows or the positions within them are not the usual ones"
    elif config.unrotated and config.unrotated != tuple(range(3, config.layers, 4)):
        odd = "other layers than every fourth have no positions"
    elif config.mlp_bias or (config.o_bias and family.gguf != "llama") or (config.qkv_bias and not _has_biases(family)):
        odd = "its layers have biases"
    elif config.score_scale != 1 and config.layers != 62:  # Gemma 3 27B, which llama.cpp tells by its layers
        odd = "attention's scores have a scale of their own"
    if odd:
        message = f"llama.cpp would compute this model otherwise: {odd}"
        raise UserError(message, where="config.json", next_step="export with --format merged")
    return config


def _has_biases(family: Family) -> bool:
    return family.qkv_bias or family.gguf == "llama"


def as_llamacpp_has_it(name: str, tensor: Tensor, config: LlamaConfig) -> Tensor:
    """A tensor in llama.cpp's order of rotary pairs, and with what it adds to a norm's weight."""
    module = name.split(".")[-2]
    heads = {"q_proj": config.heads, "k_proj": config.key_heads}
    if config.family.interleaved and module in heads:
        return permuted(tensor, heads[module])  # type: ignore[no-any-return]
    return tensor.float() + 1 if config.family.zero_centred and module.endswith("norm") else tensor


@contextmanager
def tensors_of(writer: Any, out: Path) -> Iterator[None]:
    """Write what comes before the tensors' values, which the block writes; then see to it that the file is on the disk.

    Raises:
        UserError: the file can't be written, or the disk has no room for it.
    """
    size = sum(tensor.nbytes for tensor in writer.tensors[0].values())
    free = shutil.disk_usage(out.parent).free
    if size > free:
        message = f"The file takes {size / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB free"
        step = "free some space, or choose a folder on another disk with --out FOLDER"
        raise UserError(message, where=str(out.parent), next_step=step)
    with user_errors_of_the_disk(out):
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            yield
            writer.flush()
            os.fsync(writer.fout[0].fileno())
        finally:
            writer.close()


def add_fields(writer: Any, fields: Mapping[str, Any]) -> None:
    """Add metadata by keys; the type follows the value, with unsigned whole numbers."""
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in fields.items():
        add.get(type(value), writer.add_array)(key, value)


def tensor_types(file: Path) -> dict[str, int]:
    """How many tensors of each type a GGUF file holds: what its name promises is not what each tensor is."""
    import gguf

    counted = Counter(read_header(file).tensor_types.values())
    return {gguf.GGMLQuantizationType(kind).name: count for kind, count in counted.most_common()}


def _names(weights: TunedWeights, config: LlamaConfig) -> dict[str, str]:
    """Transformers' name of each tensor -> its name in the file; a head that is the embedding is not written twice."""
    names = {}
    for name in weights.shapes:
        there = gguf_name(name, config.family)
        if (name == "lm_head.weight" and config.tied) or not reads_text(name):
            continue
        if there is None:
            if name.endswith("rotary_emb.inv_freq"):  # computed, not learned; files of old versions have it
                continue
            message, step = f"llama.cpp's {config.family.gguf} has no tensor {name}", "export with --format merged"
            raise UserError(message, where=str(weights.files[name][0]), next_step=step)
        names[name] = there
    return names


def _describe(writer: Any, config: LlamaConfig, kind: FloatType, about: About) -> None:
    import gguf

    writer.add_type("model")
    writer.add_name(about.name)
    if about.licence:
        writer.add_license(about.licence)
    if about.base:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, about.base)
    ftypes = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}
    writer.add_file_type(gguf.LlamaFileType[ftypes[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    fields: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.context,
        "embedding_length": config.hidden_size,
        "block_count": config.layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.key_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": config.head_size,
        "rope.freq_base": float(config.rope_theta),
    }
    if _rope_type(config) == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_scaling["factor"])}
    if config.window:
        fields["attention.sliding_window"] = config.window
    add_fields(writer, {f"{config.family.gguf}.{key}": value for key, value in fields.items()})


def _rope_type(config: LlamaConfig) -> str:
    return str(config.rope_scaling.get("rope_type", config.rope_scaling.get("type", "default")))


def announce(writer: Any, name: str, shape: tuple[int, ...], kind: FloatType) -> None:
    """Add a tensor's name, shape and type, which come before all values."""
    import gguf
    import numpy as np

    size, count = (4 if kind == "f32" else 2), int(np.prod(shape))
    writer.add_tensor_info(name, shape, np.dtype(np.float16), size * count, gguf.GGMLQuantizationType[kind.upper()])


def as_numpy(tensor: Tensor, kind: FloatType, name: str) -> np.ndarray[Any, Any]:
    """Values in a type of the file; numpy has no bf16, so that one goes as the bits.

    Raises:
        UserError: a value is beyond the type's range.
    """
    import torch

    stored = tensor.to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]).contiguous()
    # The least and the greatest value need no further memory, and a thirtieth of the time that `isfinite` takes.
    if kind == "f16" and stored.numel() and not all(value.isfinite() for value in stored.aminmax()):
        message = f"{name} has values that f16 can't hold (beyond 65,504)"
        raise UserError(message, where="--quant f16", next_step="take --quant bf16")
    values: np.ndarray[Any, Any] = stored.view(torch.int16).numpy() if kind == "bf16" else stored.numpy()
    return values


PROBE = (
    "Hello, I'm here; WE'LL see. You've, they'RE, 'tis  don't I'd\n\n \n  two\tthree \r\n\r\n  3 33 333 3333 33333 "
    "1,234.56 a1b22c333 x= 10 ½ ② ٣٤٥ Ünïcödé naïve ÉTÉ éa\u0301 中文字符 ひらがな 한국어 "
    "עברית हिन्दी ไทย 🚀 👩‍👩‍👧 (ok)!!! ... --->"
    " <b>tag</b> #$%^ foo_bar fooBar \u00a0\u3000\u200b\x1c end \n "
)
# First 16 hex digits of the SHA-256 of PROBE's pieces -> llama.cpp's name, and whether words are looked up whole first.
PRE_TOKENIZERS = {
    "1062347ed00421c6": ("llama-bpe", True),
    "c424f257c420a1a8": ("smollm", False),
    "5f12ee62a542d5d8": ("qwen2", False),
}


def pre_tokenizer_hash(tokenizer: Any) -> str:
    """The hash of what a `tokenizers.Tokenizer` makes of `PROBE` before it merges."""
    text = tokenizer.normalizer.normalize_str(PROBE) if tokenizer.normalizer else PROBE
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(text) if tokenizer.pre_tokenizer else [(text, None)]
    return hashlib.sha256("\0".join(piece for piece, _ in pieces).encode()).hexdigest()[:16]


def pre_tokenizer_of(tokenizer: Any) -> str:
    """llama.cpp's name of the rule by which a tokenizer cuts text.

    Raises:
        UserError: it is not one of the known ones.
    """
    digest = pre_tokenizer_hash(tokenizer)
    name, whole_words = PRE_TOKENIZERS.get(digest, ("", False))
    model = tokenizer.model
    if not name or type(model).__name__ != "BPE" or bool(model.ignore_merges) != whole_words:
        names = ", ".join(name for name, _ in PRE_TOKENIZERS.values())
        message = f"The tokenizer cuts text in a way that is not known here (pre-tokenizer {digest}; known: {names})"
        raise UserError(message, where="tokenizer.json", next_step=CONVERT_ELSEWHERE)
    return name


def vocabulary(template: Template, size: int) -> dict[str, Any]:
    """The fields `tokenizer.*` of a GGUF file.

    Args:
        size: rows of the model's embedding; ids that the tokenizer does not use become tokens that are never written.

    Raises:
        UserError: a tokenizer that llama.cpp would read differently, or one with more tokens than the model.
    """
    tokenizer = template.tokenizer
    rules = parse_json(tokenizer.to_str())
    by_pieces = bool(rules["model"].get("byte_fallback"))
    kind: dict[str, Any] = _pieces(rules) if by_pieces else {"model": "gpt2", "pre": pre_tokenizer_of(tokenizer)}
    added = tokenizer.get_added_tokens_decoder()
    used = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    if used > size:
        message = f"The tokenizer has {used:,} tokens, the model's embedding {counted(size, 'row')}"
        raise UserError(message, where="tokenizer.json", next_step="use the tokenizer that belongs to the model")
    tokens, kinds = [], []
    for i in range(size):
        text = added[i].content if i in added else tokenizer.id_to_token(i)
        tokens.append(f"[PAD{i}]" if text is None else text)
        if i in added:
            kinds.append(TokenKind.CONTROL if added[i].special else TokenKind.USER_DEFINED)
        else:
            kinds.append(TokenKind.NORMAL if text else TokenKind.UNUSED)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in rules["model"]["merges"]]
    order: dict[str, Any] = {"merges": merges}
    if by_pieces:
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(merges):
            ranks.setdefault(merge.replace(" ", ""), rank)
        order = {"scores": [-float(ranks.get(token, len(merges))) for token in tokens]}
        kinds = [_kind_of_piece(text, of, rules["model"]["unk_token"]) for text, of in zip(tokens, kinds, strict=True)]
    named = tokenizer.token_to_id(template.variables.get("eos_token") or "")
    writes_eos = "eos_token" in template.source and named in template.end_ids  # of a base model that got a plain one
    fields: dict[str, Any] = {
        **kind,
        "tokens": tokens,
        "token_type": kinds,
        **order,
        # An answer ends here, also where the base's end of text is another token.
        "eos_token_id": named if writes_eos else template.end_ids[0],
        "eot_token_id": template.end_ids[0],
        "padding_token_id": template.pad_id,
        "add_bos_token": template.opens_with_bos,
        "add_eos_token": False,
    }
    for name in ("bos", "unk"):
        number = tokenizer.token_to_id(template.variables.get(f"{name}_token") or "")
        if number is not None:
            fields["unknown_token_id" if name == "unk" else "bos_token_id"] = number
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items()}


def _pieces(rules: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a SentencePiece tokenizer, from the `tokenizer.json` that it has become.

    Raises:
        UserError: spaces are treated in a way that llama.cpp does not know.
    """
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    prepend = {"type": "Prepend", "prepend": "\u2581"}
    normalizer, pre = rules["normalizer"], rules["pre_tokenizer"]
    # Gemma's splits at spaces, of which its normalizer leaves none.
    plain = pre is None or (pre["type"] == "Split" and pre["pattern"] == {"String": " "})
    for with_prefix, form in ((False, space), (True, {"type": "Sequence", "normalizers": [prepend, space]})):
        if plain and normalizer == form:
            return {"model": "llama", "add_space_prefix": with_prefix}
    message = "The tokenizer treats spaces in a way that is not known here"
    raise UserError(message, where="tokenizer.json", next_step=CONVERT_ELSEWHERE)


def _kind_of_piece(text: str, kind: TokenKind, unknown: str | None) -> TokenKind:
    if text == unknown:
        return TokenKind.UNKNOWN
    return TokenKind.BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", text) else kind
