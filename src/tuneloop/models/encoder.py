"""Encoders: texts to vectors, and a head that reads labels from them.

Any encoder that Transformers loads, in the layout of sentence-transformers or plain (BERT, MPNet, ModernBERT, ...). A
head is a matrix; its folder names the encoder that it is for, as an adapter names its base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, write_bytes
from tuneloop.core.foreign import load_safetensors
from tuneloop.core.threads import use_threads
from tuneloop.core.ui import without_bars
from tuneloop.models.files.names import minilm_folder, resolve
from tuneloop.models.load import fingerprint
from tuneloop.records.encoder import ENCODER, ENCODER_FOLDER, HEAD, EncoderManifest
from tuneloop.records.record import read_record
from tuneloop.records.rows import Message

if TYPE_CHECKING:
    import numpy as np


LONGEST_TEXT = 20_000  # characters; beyond this a text adds time, hardly evidence
AT_ONCE = 64  # texts of a forward pass
UNSEEN = -100.0  # log probability of a label that the head has never seen


def encoder_folder(path: str | Path) -> Path | None:
    """The folder with `encoder.json` of a run, an artifact, or that folder itself; None: there is none."""
    folder = Path(path).expanduser()
    return next((folder for folder in (folder / ENCODER_FOLDER, folder) if (folder / ENCODER).is_file()), None)


def text_of_turns(messages: Sequence[Message]) -> str:
    """What an encoder reads of a conversation: its last user turn."""
    text = next((str(turn.get("content") or "") for turn in reversed(messages) if turn["role"] == "user"), "")
    return text[:LONGEST_TEXT].encode("utf-8", "replace").decode()  # tokenizers refuse lone surrogates


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder."""

    tokenizer: Any
    net: Any  # a `torch.nn.Module`
    pooling: Literal["mean", "cls"]
    max_tokens: int
    normalised: bool

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.net.config.hidden_size)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, those that mark beginning and end included; cut at `max_tokens`."""
        return (
            list(self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]) if texts else []
        )

    def vectors(self, ids: Sequence[Sequence[int]]) -> Any:
        """The vectors of some texts by their ids, with gradients where these are on: (texts, width)."""
        tokens = self.tokenizer.pad({"input_ids": [list(token_ids) for token_ids in ids]}, return_tensors="pt")
        return self.pooled(tokens["input_ids"], tokens["attention_mask"])

    def pooled(self, input_ids: Any, attention_mask: Any) -> Any:
        """The vectors of padded token ids (texts, tokens): (texts, width)."""
        import torch

        hidden_BTH = self.net(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask_BT1 = attention_mask.unsqueeze(-1)
        pooled_BH = hidden_BTH[:, 0]
        if self.pooling == "mean":
            pooled_BH = (hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1)
        return torch.nn.functional.normalize(pooled_BH, dim=1) if self.normalised else pooled_BH

    def embed_ids(self, ids: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        """Vectors of texts by their ids, fp32 (texts, width); those of similar length share a forward pass."""
        return self._embedded(sorted(range(len(ids)), key=lambda i: len(ids[i])), lambda batch: [ids[i] for i in batch])

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Vectors of texts, fp32 (texts, width)."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        return self._embedded(order, lambda batch: self.ids([texts[i] for i in batch]))

    def _embedded(
        self, order: Sequence[int], ids_of: Callable[[Sequence[int]], Sequence[Sequence[int]]]
    ) -> np.ndarray[Any, Any]:
        import numpy as np
        import torch

        vectors = np.empty((len(order), self.width), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), AT_ONCE):
                batch = order[start : start + AT_ONCE]
                vectors[batch] = self.vectors(ids_of(batch)).float().numpy()
        return vectors


def minilm_embedder() -> Callable[[Sequence[str]], Any] | None:
    """all-MiniLM-L6-v2 as a function from texts to unit vectors (texts, 384); None where `minilm_folder` gives None."""
    folder = minilm_folder()
    return None if folder is None else load_encoder(folder).embed


def load_encoder(folder: Path) -> Encoder:
    """The encoder in a folder with `config.json`, in fp32 on the processor.

    Raises:
        UserError: transformers or torch is missing, or Transformers can't load it.
    """
    use_threads()
    return _loaded(str(folder.resolve()), fingerprint(folder))


@lru_cache(maxsize=2)  # a server, its candidate and what is evaluated share one
def _loaded(path: str, identity: str) -> Encoder:
    folder = Path(path)
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        step = "pip install 'tuneloop[train]'"
        raise UserError("An encoder needs transformers and torch", where=path, next_step=step) from None
    try:
        with without_bars():
            safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
            net = AutoModel.from_pretrained(folder, **safe, dtype="float32", use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        message = f"This encoder can't be loaded: {' '.join(str(error).split())[:200]}"
        raise UserError(message, where=path, next_step="name a folder of sentence-transformers, or minilm") from None
    pooling, most, normalised = _how(folder, net.config)
    return Encoder(tokenizer, net.eval(), pooling, most, normalised)


def _how(folder: Path, config: Any) -> tuple[Literal["mean", "cls"], int, bool]:
    """How an encoder's texts become vectors: pooling, most tokens, whether they have length 1."""
    if (folder / ENCODER).is_file():
        own = read_record(EncoderManifest, folder)
        return own.pooling, own.max_tokens, own.normalised
    file = folder / "1_Pooling" / "config.json"
    pooling: Literal["mean", "cls"] = "mean"
    if file.is_file() and read_json(file).get("pooling_mode_cls_token"):
        pooling = "cls"
    places = int(getattr(config, "max_position_embeddings", 512) or 512)
    file = folder / "sentence_bert_config.json"
    most = min(int(read_json(file).get("max_seq_length") or 256) if file.is_file() else 256, places)
    return pooling, most, True


@dataclass(frozen=True)
class Head:
    """What reads labels from vectors: weight (labels, width) and bias (labels,), fp64."""

    weight: np.ndarray[Any, Any]
    bias: np.ndarray[Any, Any]

    def scores(self, vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The labels' scores for vectors (texts, width): (texts, labels), before the temperature."""
        import numpy as np

        table: np.ndarray[Any, Any] = vectors.astype(np.float64) @ self.weight.T + self.bias
        return table

    def save(self, file: Path) -> None:
        """Write it as safetensors."""
        import numpy as np
        from safetensors.numpy import save

        # safetensors writes the bytes as they lie, whatever their order.
        tensors = {"weight": np.ascontiguousarray(self.weight), "bias": np.ascontiguousarray(self.bias)}
        write_bytes(file, save(tensors))


def read_head(file: Path, labels: int) -> Head:
    """The head for so many labels in a file. Raises UserError: it is damaged, or for another number of labels."""
    from safetensors import SafetensorError

    try:
        tensors = load_safetensors(file, "np")
        head = Head(tensors["weight"], tensors["bias"])
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        message = f"The head of this encoder is damaged: {type(error).__name__}"
        raise UserError(message, where=str(file), next_step="train it again") from None
    if head.weight.ndim != 2 or len(head.weight) != labels or head.bias.shape != (labels,):
        message = f"The head has another shape than {labels} labels need"
        raise UserError(message, where=str(file), next_step="train it again")
    return head


@dataclass(frozen=True)
class Classifier:
    """An encoder with its head; the encoder is loaded when it is first needed."""

    folder: Path
    manifest: EncoderManifest

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder.

        Raises:
            UserError: it is not here, or another one than the head was trained on.
        """
        base_folder = resolve(self.manifest.base) if self.manifest.base else self.folder
        if self.manifest.base and fingerprint(base_folder) != self.manifest.fingerprint:
            message = f"This head was trained on another {self.manifest.base}"
            raise UserError(message, where=str(self.folder), next_step="train it again on this one")
        return load_encoder(base_folder)

    @cached_property
    def head(self) -> Head:
        """The head. Raises UserError: it is damaged."""
        return read_head(self.folder / HEAD, len(self.manifest.labels))

    def log_probabilities(self, ids: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        """Natural logarithms of the labels' probabilities, (texts, labels): they add up to 1 where each text has one
        label, else each label has its own."""
        return self.manifest.log_probabilities(self.head.scores(self.encoder.embed_ids(ids)))

    def answer(self, logs: np.ndarray[Any, Any]) -> str:
        """The likeliest label by one text's log probabilities; of several those with a probability of one half at
        least."""
        manifest = self.manifest
        if manifest.kind == "label":
            return manifest.labels[int(logs.argmax())]
        likely = [label for label, log in zip(manifest.labels, logs, strict=True) if log >= -0.6931471805599453]
        if not likely and not manifest.empty:  # some label applies to every text: the likeliest
            likely = [manifest.labels[int(logs.argmax())]]
        return ", ".join(likely) or manifest.empty

    def log_probabilities_of(self, logs: np.ndarray[Any, Any], labels: Sequence[str]) -> dict[str, float]:
        """One text's log probabilities of these labels; those that the head has never seen have `UNSEEN`."""
        by_label = dict(zip(self.manifest.labels, map(float, logs), strict=True))
        return {label: by_label.get(label, UNSEEN) for label in labels}


def open_classifier(path: str | Path) -> Classifier:
    """The encoder with a head in a run, an artifact or its own folder. Raises UserError: there is none."""
    folder = encoder_folder(path)
    if folder is None:
        message, step = "An encoder alone has no labels to answer with", f"train a head: tuneloop run DATA model={path}"
        raise UserError(message, where=str(path), next_step=step)
    return Classifier(folder, read_record(EncoderManifest, folder))
