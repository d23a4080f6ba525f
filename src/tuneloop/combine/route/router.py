"""A router: from the features of a request to the quality that each model is expected to have, and to one of them or none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_bytes
from tuneloop.records.record import read_record, write_record
from tuneloop.records.router import RouterRecord

Array = NDArray[Any]

NONE = -1  # "none of these"
NUMBERS = "router.safetensors"
NEAREST = 5  # fitted rows whose mean similarity says whether a request is like them
SHARPNESS = 10.0  # of centroids: cosines are small numbers
LEAST = 1e-6


@dataclass(frozen=True)
class Router:
    """A fitted router.

    Args:
        record: what stands in `router.json`.
        numbers: `mean` (features), `rows` (fitted rows, features; unit vectors), `outcomes` (fitted rows, models), `weights`
            (features, models) and `bias` (models) of a regression, `centroids` (models, features).
    """

    record: RouterRecord
    numbers: dict[str, Array]

    @property
    def names(self) -> list[str]:
        """The models, in the order of their numbers."""
        return [route.name for route in self.record.routes]

    def centred(self, features: Array) -> Array:
        """Features as the fitted rows are kept: their mean taken off, of length one."""
        return unit(features - self.numbers["mean"])

    def quality(self, features: Array) -> Array:
        """Expected outcome of each model, (requests, models): probabilities that sum to one where a row belongs to one model."""
        plain = raw_quality(self.record, self.numbers, self.centred(features))
        return softened(plain, self.record.temperature, self.record.exclusive)

    def nearness(self, features: Array) -> Array:
        """Mean cosine with the nearest fitted rows, (requests)."""
        return nearness(self.centred(features), self.numbers["rows"])

    def choose(self, features: Array) -> Array:
        """The number of the model for each request, or NONE."""
        costs = np.array([route.cost for route in self.record.routes])
        best: Array = (self.quality(features) - self.record.price * costs).argmax(1)
        if self.record.threshold is None:
            return best
        return np.where(self.nearness(features) >= self.record.threshold, best, NONE)

    def save(self, folder: Path) -> None:
        """Write the numbers and, last, `router.json`."""
        from safetensors.numpy import save

        write_bytes(folder / NUMBERS, save({name: np.ascontiguousarray(value) for name, value in self.numbers.items()}))
        write_record(folder / RouterRecord.file, self.record)


def load_router(folder: Path) -> Router:
    """A fitted router.

    Raises:
        UserError: none was fitted, or its files are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not (folder / RouterRecord.file).is_file():
        raise UserError("There is no fitted router here", where=str(folder), next_step="tuneloop route fit first")
    record = read_record(RouterRecord, folder)
    try:
        return Router(record, load_file(folder / NUMBERS))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The router's numbers can't be read: {error}", where=str(folder / NUMBERS), next_step=RouterRecord.again
        ) from None


def unit(vectors: Array) -> Array:
    """Vectors of length one; those of length zero stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Array = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return found


def nearness(vectors: Array, rows: Array) -> Array:
    """Mean cosine of each vector with its nearest rows."""
    cosines = vectors @ rows.T
    count = min(NEAREST, rows.shape[0])
    found: Array = np.partition(cosines, -count, axis=1)[:, -count:].mean(1)
    return found


def raw_quality(record: RouterRecord, numbers: dict[str, Array], vectors: Array) -> Array:
    """Expected outcomes before calibration; see `Router.quality`."""
    if record.kind == "constant":
        return np.tile(numbers["outcomes"].mean(0), (vectors.shape[0], 1))
    if record.kind == "centroid":
        return _softmax(SHARPNESS * vectors @ numbers["centroids"].T)
    if record.kind == "knn":
        cosines = vectors @ numbers["rows"].T
        k = min(record.k, cosines.shape[1])
        near = np.argpartition(cosines, -k, axis=1)[:, -k:]
        weights = np.maximum(np.take_along_axis(cosines, near, 1), LEAST)
        shares = weights / weights.sum(1, keepdims=True)
        voted = np.einsum("nk,nkm->nm", shares, numbers["outcomes"][near])
        found: Array = (k * voted + numbers["outcomes"].mean(0)) / (k + 1)  # as if one average row were near, too
        return found
    logits = vectors @ numbers["weights"] + numbers["bias"]
    return _softmax(logits) if record.exclusive else _sigmoid(logits)


def softened(quality: Array, temperature: float, exclusive: bool) -> Array:
    """Probabilities with their log odds divided by a temperature (Guo et al. 2017, arXiv 1706.04599)."""
    clipped = np.clip(quality, LEAST, 1 - LEAST)
    if exclusive:
        return _softmax(np.log(clipped) / temperature)
    return _sigmoid(np.log(clipped / (1 - clipped)) / temperature)


def _sigmoid(logits: Array) -> Array:
    from scipy.special import expit

    found: Array = expit(logits)
    return found


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    found: Array = shifted / shifted.sum(1, keepdims=True)
    return found
