"""Large sources counted by a sample: enough for advice and a plan, in seconds instead of minutes.

Chunks are taken evenly over the sources, `SAMPLE` to twice as many bytes, and prepared; counts are scaled by the bytes.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from tuneloop.core.ui import progress, say
from tuneloop.core.units import counted
from tuneloop.data.sources.chunks import chunks
from tuneloop.data.sources.parse import Chunk, SourceFile, SourceRecord, parse_chunk
from tuneloop.data.sources.read import entry_of, find_files
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.prepare import measure_with
from tuneloop.recipe import Recipe
from tuneloop.records.dataset import MANIFEST, DatasetManifest, SplitFile, Splits
from tuneloop.records.record import write_record
from tuneloop.records.rows import Dataset

LARGE = 8 << 20  # bytes of sources from which a sample is counted
SAMPLE = 1 << 20  # bytes
CHUNK = 1 << 15  # bytes: small, so that there are many
Z95 = 1.96


def is_large(recipe: Recipe) -> bool:
    """Whether a recipe's sources are counted by a sample: large ones that nothing else describes or limits."""
    if recipe.data.limit is not None or recipe.data.mix.sources or recipe.data.split.freeze is not None:
        return False
    files = find_files(recipe.data.sources, recipe.data.max_expansion)
    return sum(os.path.getsize(file.path) for file in files) > LARGE and not any(map(entry_of, files))


@dataclass
class _Sample:
    """Chunks at even distances, and the bytes of all of them; when they become too many, every second one goes."""

    chunks: list[Chunk] = field(default_factory=list)
    every: int = 1
    seen: int = 0
    total: int = 0

    def add(self, chunk: Chunk) -> None:
        self.total += _size(chunk)
        if self.seen % self.every == 0:
            self.chunks.append(chunk)
            if self.size > 2 * SAMPLE and len(self.chunks) > 2:
                self.chunks, self.every = self.chunks[::2], 2 * self.every
        self.seen += 1

    @property
    def size(self) -> int:
        return sum(map(_size, self.chunks))


def _size(chunk: Chunk) -> int:
    return len(chunk.data) or sum(len(item[1]) for item in chunk.items if isinstance(item, tuple) and len(item) == 2)


def _drawn(files: Sequence[SourceFile]) -> _Sample:
    size, before, sample = sum(os.path.getsize(file.path) for file in files), 0, _Sample()
    for file in files:
        for chunk in chunks(file, CHUNK):
            sample.add(chunk)
            progress("taking a sample", min(before + chunk.position, size), size)
        before += os.path.getsize(file.path)
    progress("taking a sample", size, size)
    return sample


@contextmanager
def sampled_data(recipe: Recipe) -> Iterator[tuple[Dataset, str]]:
    """A recipe's sources prepared in part, with the counts of the manifest scaled to all of them.

    The folder is a temporary one, since a sample is no data set to train on.

    Returns:
        the data set, while the context lasts, and how its counts came about, in words.
    """
    from tuneloop.data.prepare import prepare

    job = RunContext(recipe, Path())
    sample = _drawn(find_files(recipe.data.sources, recipe.data.max_expansion))
    with tempfile.TemporaryDirectory() as scratch:
        file, chunk_of_line = Path(scratch) / "sample.jsonl", []
        with file.open("wb") as lines:
            for number, chunk in enumerate(sample.chunks):
                for item in parse_chunk(chunk):
                    if isinstance(item, SourceRecord):
                        lines.write(orjson.dumps(item.value, default=str) + b"\n")
                        chunk_of_line.append(number)
        config = recipe.data.model_copy(update={"sources": [str(file)]})
        out, measure = Path(scratch) / "dataset", measure_with(job.template)
        dataset = prepare(config, name=recipe.name, seed=recipe.seed, out=out, measure=measure, model=job.fingerprint)
        error = _error(dataset, chunk_of_line, sample)
        scaled = _scaled(dataset.manifest, sample.total / max(sample.size, 1))
        write_record(out / MANIFEST, scaled)
        train = scaled.splits.train
        tokens, megabytes = (
            train.tokens.total if train.tokens else 0,
            f"{sample.size / 1e6:.1f} of {sample.total / 1e6:.0f} MB",
        )
        words = (
            f"counted on a sample of {counted(len(chunk_of_line), 'record')} ({megabytes}): "
            f"about {counted(train.rows, 'training row')}, {tokens:,} tokens, within {error:.0%} (95 %); "
            "copies were looked for in the sample alone"
        )
        say(f"data      {words}")
        yield replace(dataset, manifest=scaled), words


def _scaled(manifest: DatasetManifest, factor: float) -> DatasetManifest:
    """A manifest with the rows and tokens of its splits times a factor."""

    def scaled(split: SplitFile) -> SplitFile:
        changes: dict[str, Any] = {"rows": round(split.rows * factor)}
        if tokens := split.tokens:
            counts = {"total": round(tokens.total * factor), "supervised": round(tokens.supervised * factor)}
            changes["tokens"] = tokens.model_copy(update=counts)
        return split.model_copy(update=changes)

    splits = {name: scaled(split) for name, split in manifest.splits.by_name.items()}
    return manifest.model_copy(update={"splits": Splits(**splits)})


def _error(dataset: Dataset, chunk_of_line: Sequence[int], sample: _Sample) -> float:
    """Half the 95 % interval of the training rows' characters, which tokens follow, relative to them.

    The chunks are clusters, and a ratio to their bytes is estimated (Cochran 1977, Sampling Techniques, 6.3).
    """
    characters = [0.0] * len(sample.chunks)
    for row in dataset.train:
        texts = [str(message.get(key) or "") for message in row.messages for key in ("content", "tool_calls")]
        characters[chunk_of_line[int(row.meta["line"]) - 1]] += sum(map(len, texts))
    sizes, n = [_size(chunk) for chunk in sample.chunks], len(sample.chunks)
    total = sum(characters)
    if n < 2 or not total:
        return 1.0
    ratio = total / sum(sizes)
    squares = sum((length - ratio * size) ** 2 for length, size in zip(characters, sizes, strict=True))
    return Z95 * math.sqrt(squares * n / (n - 1)) / total
