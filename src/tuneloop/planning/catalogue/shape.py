"""A model's sizes by its name: from the bundled table, a folder, or the hub's `config.json`."""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.foreign import file_bytes, packaged_yaml, parse_json
from tuneloop.models.files import read_config, refuse_missing_path
from tuneloop.models.nn import SIZED, ModelShape, language_config, target_modules

BUNDLED = Path(__file__).with_name("models.yaml")
_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "tie_word_embeddings", "max_position_embeddings",
    "model_type", "num_experts", "num_experts_per_tok",
)  # fmt: skip
# What names end in that says nothing of sizes.
_ENDINGS = r"(-(hf|instruct|it|pt|chat|base|bnb-4bit|unsloth|fp8|intermediate-step-1431k-3t|v1\.0))+$"


@functools.cache
def bundled_models() -> dict[str, ModelShape]:
    """The models of `models.yaml` by their short names."""
    table = packaged_yaml(BUNDLED)["models"]
    # A Llama's row ends without its family, a dense model's without experts.
    return {name: ModelShape.from_config(dict(zip(_KEYS, row, strict=False)), name) for name, row in table.items()}


def find_model(name: str) -> tuple[str, ModelShape, list[str]]:
    """A model by short name, hub name, folder, `config.json` or GGUF file; the bundled table needs no network.

    Returns:
        The name to show, the sizes, and what had to be assumed.
    Raises UserError: nothing of that name, or a configuration that can't be read.
    """
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        shape = ModelShape.from_config(read_config(path), name)
        return name, shape, mixture_words(shape)
    if path.is_dir() or path.suffix == ".json":
        return _from_file(name, path / "config.json" if path.is_dir() else path)
    # `meta-llama/Meta-Llama-3.1-8B-Instruct` and the like as `llama-3.1-8b`
    short = re.sub(_ENDINGS, "", name.rsplit("/", 1)[-1].lower().replace(":", "-")).removeprefix("meta-")
    short = re.sub(r"^llama([23])", r"llama-\1", short)
    short = re.sub(r"^mixtral-8x7b.*", "mixtral-8x7b", short)
    short = re.sub(r"^mistral-7b.*", "mistral-7b", short)  # v0.1 and v0.2 have fewer tokens, v0.3 the most
    short = re.sub(r"^mistral-small-3\.1-24b.*", "mistral-small-3.1-24b", short)
    short = "tinyllama-1.1b" if short == "tinyllama" else short
    if short in bundled_models():
        shape = bundled_models()[short]
        return short, shape, [*_picture_words(short), *mixture_words(shape)]
    refuse_missing_path(name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_file(name, _from_hub(name))
    steps = (did_you_mean(short, bundled_models(), most=3), "name a folder with config.json, or org/name on the hub")
    step = " Or ".join(filter(None, steps))
    raise UserError(f"No model named {name!r}: no such short name, folder or hub name", where="model", next_step=step)


def _from_file(name: str, path: Path) -> tuple[str, ModelShape, list[str]]:
    try:
        config = parse_json(file_bytes(path, "json"))
    except OSError as error:
        message = f"Can't read the model's configuration: {error.strerror}"
        raise UserError(message, where=str(path), next_step="name a folder with config.json") from None
    except ValueError:
        raise UserError("config.json is not valid JSON", where=str(path), next_step="download it again") from None
    if not isinstance(config, dict):
        raise UserError("config.json holds no object", where=str(path), next_step="download it again")
    assumed = []
    if isinstance(config.get("text_config"), dict):
        config = dict(language_config(config))
        assumed.append("only the language model of several parts is counted (text_config)")
    kind, shape = config.get("model_type", "llama"), ModelShape.from_config(config, str(path))
    if kind not in SIZED:
        assumed.append(f"architecture {kind!r} is sized as if it were a Llama: its parameters may be more or fewer")
    return name, shape, [*assumed, *mixture_words(shape)]


def _picture_words(short: str) -> list[str]:
    billions = packaged_yaml(BUNDLED)["pictures"].get(short)
    text = f"what sees pictures ({billions} billion parameters) is not counted: only vLLM loads it, next to these"
    return [text] if billions else []


def mixture_words(shape: ModelShape) -> list[str]:
    """What a plan assumes of a mixture of experts; nothing of another model."""
    every, active = (f"{number / 1e9:.3g} billion" for number in (shape.parameters, shape.active_parameters))
    adapted = shape.adapted_words(target_modules("all-linear"))
    text = (
        f"a mixture of experts: all {every} parameters take memory, the {active} that a token passes through take time;"
        " Transformers trains it, slower than a dense model of as many active parameters here; adapters are next to"
        f" {adapted} alone"
    )
    return [text] if shape.experts else []


def _from_hub(name: str) -> Path:
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            return Path(cached)
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would tell of each of its attempts
        return Path(hf_hub_download(name, "config.json"))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        reason, names = type(error).__name__, ", ".join(bundled_models())
        message = f"The sizes of {name} are neither bundled, nor cached, nor given by the hub ({reason})"
        step = f"check the spelling and the network, or name a folder with its config.json; bundled: {names}"
        raise UserError(message, where="model", next_step=step) from None
