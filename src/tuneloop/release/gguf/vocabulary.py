"""A tokenizer and its chat template as the metadata of a GGUF file.

llama.cpp cuts text by a rule that it knows by name, and a wrong name changes tokens without a word. So the name is found by
what the tokenizer does: it cuts a text that holds whatever the known rules treat differently, and the pieces have a hash.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.units import counted

if TYPE_CHECKING:
    from tuneloop.models.template import Template

PROBE = (
    "Hello, I'm here; WE'LL see. You've, they'RE, 'tis  don't I'd\n\n \n  two\tthree \r\n\r\n  3 33 333 3333 33333 1,234.56 "
    "a1b22c333 x= 10 ½ ② ٣٤٥ Ünïcödé naïve ÉTÉ éa\u0301 中文字符 ひらがな 한국어 עברית हिन्दी ไทย 🚀 👩‍👩‍👧 (ok)!!! ... --->"
    " <b>tag</b> #$%^ foo_bar fooBar \u00a0\u3000\u200b\x1c end \n "
)
# First 16 hex digits of the SHA-256 of PROBE's pieces -> llama.cpp's name, and whether words are looked up whole before merging.
PRE_TOKENIZERS = {"1062347ed00421c6": ("llama-bpe", True), "c424f257c420a1a8": ("smollm", False)}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


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
    found = pre_tokenizer_hash(tokenizer)
    name, whole_words = PRE_TOKENIZERS.get(found, ("", False))
    model = tokenizer.model
    if not name or type(model).__name__ != "BPE" or bool(model.ignore_merges) != whole_words:
        known = ", ".join(name for name, _ in PRE_TOKENIZERS.values())
        raise UserError(
            f"The tokenizer cuts text in a way that is not known here (pre-tokenizer {found}; known: {known})",
            where="tokenizer.json",
            next_step="export with --format merged and convert it with llama.cpp's convert_hf_to_gguf.py",
        )
    return name


def vocabulary(template: Template, size: int) -> dict[str, Any]:
    """The fields `tokenizer.*` of a GGUF file.

    Args:
        template: tokenizer and chat template.
        size: rows of the model's embedding; ids that the tokenizer does not use become tokens that are never written.

    Raises:
        UserError: a tokenizer that llama.cpp would read differently, or one with more tokens than the model.
    """
    tokenizer = template.tokenizer
    pre = pre_tokenizer_of(tokenizer)
    added = tokenizer.get_added_tokens_decoder()
    used = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    if used > size:
        raise UserError(
            f"The tokenizer has {used:,} tokens, the model's embedding {counted(size, 'row')}",
            where="tokenizer.json",
            next_step="use the tokenizer that belongs to the model",
        )
    tokens, kinds = [], []
    for i in range(size):
        text = added[i].content if i in added else tokenizer.id_to_token(i)
        tokens.append(f"[PAD{i}]" if text is None else text)
        kinds.append((CONTROL if added[i].special else USER_DEFINED) if i in added else NORMAL if text else UNUSED)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    fields: dict[str, Any] = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": kinds,
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        "eos_token_id": template.end_ids[0],  # an answer ends here, also where the base's end of text is another token
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
