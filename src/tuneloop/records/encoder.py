"""An encoder with a head: `encoder.json`, which makes its folder complete."""

from __future__ import annotations

from typing import Literal

from tuneloop.core.lazy import Array, np
from tuneloop.records.record import Record

ENCODER, HEAD = "encoder.json", "head.safetensors"
ENCODER_FOLDER = "encoder"  # of a run: its result


class EncoderManifest(Record, noun="an encoder", file=ENCODER, again="train again: tuneloop run DATA model=ENCODER"):
    """`encoder.json`, next to `head.safetensors` with the head's weights.

    Args:
        base: name of the encoder whose vectors the head reads; empty: its files are in this folder.
        fingerprint: what identifies the encoder's files; `hash`: of the head and the encoder together.
        kind: `label`: one label a text; `labels`: any number of them.
        labels: in the order of the head's rows; `empty`: the answer where none applies; "": one always does.
        temperature: by which the head's scores are divided, so that probabilities say how often it is right.
        calibrated_on: the rows that gave it, in words.
        pooling, max_tokens, normalised: how a text becomes a vector.
    """

    base: str = ""
    fingerprint: str = ""
    hash: str = ""
    kind: Literal["label", "labels"] = "label"
    labels: list[str]
    empty: str = ""
    temperature: float = 1.0
    calibrated_on: str = ""
    pooling: Literal["mean", "cls"] = "mean"
    max_tokens: int = 256
    normalised: bool = True

    def log_probabilities(self, scores: Array) -> Array:
        """Log probabilities of labels by a head's scores (texts, labels), fp64."""
        scores = scores / self.temperature
        if self.kind == "labels":
            return -np.logaddexp(0.0, -scores)
        return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
