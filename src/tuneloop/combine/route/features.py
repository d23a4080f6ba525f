"""What a router sees of a request: MiniLM's vectors, static ones, hashed words, or the base model's hidden states.

Static vectors are the mean of a text's tokens, each of which the packaged MiniLM has read alone, as Model2Vec does
(Tulkens and van Dongen 2024) without its principal components, which would differ from machine to machine. The order of
words does not count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from tuneloop.core.errors import UserError
from tuneloop.core.files import cache_folder, sha256_file, write_bytes
from tuneloop.core.foreign import load_safetensors
from tuneloop.core.threads import use_threads
from tuneloop.core.ui import progress, without_bars
from tuneloop.models import Model, load_model, minilm_embedder
from tuneloop.models.chat import read_tokenizer
from tuneloop.models.files import minilm_folder
from tuneloop.records.router import Features

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

WORDS = 4096  # features of `words`
LONGEST = 4_000  # characters of a request that are looked at
AT_ONCE = 1024  # tokens that are read together
VERSION = 1  # of the table


@dataclass(frozen=True)
class RouteJob:
    """How requests become vectors for a router that is fitted or judged."""

    features: Features  # what is seen of a text
    base: str = ""  # the model whose hidden states are seen
    rows: int = 600  # most rows of each task and split

    @cached_property
    def _model(self) -> Model:
        use_threads()
        return load_model(self.base)

    @cached_property
    def _static(self) -> StaticVectors:
        folder = minilm_folder()
        if folder is None:
            raise _no_embedder(self.features)
        return open_static_vectors(folder)

    def embed(self, texts: Sequence[str]) -> Array:
        """The features of texts, (texts, features)."""
        clean = [text[:LONGEST].encode("utf-8", "replace").decode() for text in texts]
        if not clean:
            return np.zeros((0, 1), dtype=np.float32)
        if self.features == "hidden":
            return self._hidden(clean)
        if self.features == "words":
            from sklearn.feature_extraction.text import HashingVectorizer

            table = HashingVectorizer(n_features=WORDS, ngram_range=(1, 2), alternate_sign=False).transform(clean)
            return np.asarray(table.toarray(), dtype=np.float32)
        if self.features == "static":
            return self._static(clean)
        embed = minilm_embedder()
        if embed is None:
            raise _no_embedder(self.features)
        parts = []
        for i in range(0, len(clean), 64):
            parts.append(np.asarray(embed(clean[i : i + 64]), dtype=np.float32))
            progress("embedding", min(i + 64, len(clean)), len(clean))
        return np.concatenate(parts)

    def _hidden(self, texts: Sequence[str]) -> Array:
        """Mean of the base model's last hidden states over a text's tokens."""
        import torch

        model, vectors = self._model, []
        with torch.inference_mode():
            for i, text in enumerate(texts):
                ids = model.template.encode(text)[: model.context] or model.template.encode(" ")
                states = model.hidden(torch.tensor([ids], device=model.device))[0]
                vectors.append(states.float().mean(0).cpu().numpy())
                progress("reading hidden states", i + 1, len(texts))
        return np.stack(vectors).astype(np.float32)


def features_of(name: str, base: str) -> Features:
    """The features of that name; empty: static vectors where MiniLM is installed, else words.

    Raises UserError: there are none of that name; hidden states without a base.
    """
    if not name:
        return "static" if minilm_folder() is not None else "words"
    if name == "hidden" and not base:
        raise UserError("Whose hidden states?", where="--features hidden", next_step="give --base MODEL")
    names: tuple[Features, ...] = get_args(Features)
    if name in names:
        return names[names.index(name)]
    step = "choose static, minilm, words or hidden"
    raise UserError(f"No features are called {name!r}", where="--features", next_step=step)


def _no_embedder(features: str) -> UserError:
    step = "pip install 'tuneloop[evaluate]', or give --features words"
    return UserError("The embedding model is not installed", where=f"--features {features}", next_step=step)


@dataclass(frozen=True)
class StaticVectors:
    """A function from texts to vectors of length one."""

    folder: Path  # of MiniLM, with its `tokenizer.json`
    table: Array  # a vector for each token (tokens, 384)

    @cached_property
    def _tokenizer(self) -> Any:
        return read_tokenizer(self.folder)

    def __call__(self, texts: Sequence[str]) -> Array:
        """Vectors (texts, 384); of a text without a known word, zeros."""
        vectors = np.zeros((len(texts), self.table.shape[1]), dtype=np.float32)
        for i, text in enumerate(self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)):
            if text.ids:
                vector = self.table[text.ids].astype(np.float32).mean(0)
                vectors[i] = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return vectors


def open_static_vectors(folder: Path) -> StaticVectors:
    """Static vectors of the MiniLM in a folder; the table is made once, in half a minute, and kept in the cache.

    Raises UserError: the cache can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save

    weights = next(iter(sorted(folder.glob("*.safetensors"))), folder / "config.json")
    file = cache_folder() / f"static-vectors-{VERSION}-{sha256_file(weights)[:12]}.safetensors"
    try:
        return StaticVectors(folder, load_safetensors(file, "np")["table"])
    except (OSError, KeyError, ValueError, SafetensorError):  # not there, or damaged: it is made (again)
        pass
    table = _table(folder)
    write_bytes(file, save({"table": table}))
    return StaticVectors(folder, table)


def _table(folder: Path) -> Array:
    """A vector for each token: MiniLM's of it alone, less their mean, times the logarithm of its rank (Zipf's law)."""
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
            first, last = (torch.full_like(tokens, end) for end in (tokenizer.cls_token_id, tokenizer.sep_token_id))
            states = model(input_ids=torch.stack((first, tokens, last), 1)).last_hidden_state
            parts.append(states.mean(1).numpy())
            progress("reading each word once", min(start + AT_ONCE, count), count)
    vectors = np.concatenate(parts)
    vectors -= vectors.mean(0)
    weights = np.log(np.arange(1, count + 1, dtype=np.float32) + 1)
    table: Array = (vectors * weights[:, None]).astype(np.float16)
    return table
