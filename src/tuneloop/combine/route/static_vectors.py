"""Sentence vectors in microseconds: the mean of a text's tokens, each of which the packaged MiniLM has read by itself once.

It is what Model2Vec makes of a sentence transformer (Tulkens and van Dongen 2024), without its principal components: these would
differ from machine to machine, and a router's numbers with them. The order of words counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tuneloop.core.files import sha256_file, write_bytes
from tuneloop.core.ui import progress, without_bars
from tuneloop.models.names import cache_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

AT_ONCE = 1024  # tokens that are read together
VERSION = 1  # of the table


@dataclass(frozen=True)
class StaticVectors:
    """A function from texts to vectors of length one.

    Args:
        folder: of MiniLM, with its `tokenizer.json`.
        table: a vector for each token (tokens, 384).
    """

    folder: Path
    table: Array

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def __call__(self, texts: Sequence[str]) -> Array:
        """Vectors (texts, 384); of a text without a known word, zeros."""
        found = np.zeros((len(texts), self.table.shape[1]), dtype=np.float32)
        for i, text in enumerate(self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)):
            if text.ids:
                vector = self.table[text.ids].astype(np.float32).mean(0)
                found[i] = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return found


def open_static_vectors(folder: Path) -> StaticVectors:
    """Static vectors of a sentence model; the table is made once, in half a minute, and kept in the cache.

    Args:
        folder: of the packaged MiniLM.

    Raises:
        UserError: the cache can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save

    weights = next(iter(sorted(folder.glob("*.safetensors"))), folder / "config.json")
    file = cache_folder() / f"static-vectors-{VERSION}-{sha256_file(weights)[:12]}.safetensors"
    try:
        return StaticVectors(folder, load_file(file)["table"])
    except (OSError, KeyError, SafetensorError):  # not there, or damaged: it is made (again)
        pass
    table = _table(folder)
    write_bytes(file, save({"table": table}))
    return StaticVectors(folder, table)


def _table(folder: Path) -> Array:
    """A vector for each token: MiniLM's of the token by itself, their mean taken off, frequent ones shortened.

    Tokens stand in the vocabulary by how frequent they are, so the logarithm of a token's place is its weight, as Zipf's law has it.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    with without_bars():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False).eval()
    count = int(model.config.vocab_size)
    parts = []
    with torch.inference_mode():
        for start in range(0, count, AT_ONCE):
            tokens = torch.arange(start, min(start + AT_ONCE, count))
            ends = (torch.full_like(tokens, each) for each in (tokenizer.cls_token_id, tokenizer.sep_token_id))
            first, last = ends
            states = model(input_ids=torch.stack((first, tokens, last), 1)).last_hidden_state
            parts.append(states.mean(1).numpy())
            progress("reading each word once", min(start + AT_ONCE, count), count)
    vectors = np.concatenate(parts)
    vectors -= vectors.mean(0)
    weights = np.log(np.arange(1, count + 1, dtype=np.float32) + 1)
    found: Array = (vectors * weights[:, None]).astype(np.float16)
    return found
