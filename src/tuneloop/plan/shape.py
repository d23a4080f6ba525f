"""A model's sizes: from the bundled table or from its `config.json`, with its exact number of parameters."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.models.names import refuse_missing_path

BUNDLED = Path(__file__).with_name("models.yaml")
_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "max_position_embeddings",
)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
# Architectures whose layers have Llama's seven matrices and two norms; what differs stands in `from_config`.
LIKE_LLAMA = {"llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "gemma", "gemma2", "gemma3_text"}
TIED_UNLESS_SAID = {"smollm3", "gemma", "gemma2", "gemma3_text"}  # what a config.json without the key means
FOUR_NORMS = {"gemma2", "gemma3_text"}  # before and after attention and feed-forward


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a decoder that cost memory and time, from its `config.json`.

    `qkv_bias`, `o_bias`, `mlp_bias`, `qk_norm` and `norms` tell the small parameters that some architectures have.
    """

    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    tied: bool
    context: int = 0
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norms: int = 2

    @staticmethod
    def from_config(config: Mapping[str, Any], where: str = "config.json") -> ModelShape:
        """Read a Transformers configuration.

        Raises:
            UserError: a number is missing or can't be, or the model is a mixture of experts.
        """
        kind = config.get("model_type", "llama")
        if any(config.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
            raise UserError(
                "The model is a mixture of experts, which the planner can't size",
                where=where,
                next_step="name a dense decoder",
            )
        heads = _number(config, "num_attention_heads", where)
        hidden = _number(config, "hidden_size", where)
        if not config.get("head_dim") and hidden % heads:
            raise UserError(
                f"hidden_size {hidden} is no multiple of num_attention_heads {heads}",
                where=where,
                next_step="correct config.json, or give head_dim in it",
            )
        bias = bool(config.get("attention_bias", False))
        return ModelShape(
            vocabulary=_number(config, "vocab_size", where),
            hidden=hidden,
            feed_forward=_number(config, "intermediate_size", where),
            layers=_number(config, "num_hidden_layers", where),
            heads=heads,
            key_heads=_number(config, "num_key_value_heads", where, heads),
            head_size=_number(config, "head_dim", where, hidden // heads),
            tied=bool(config.get("tie_word_embeddings", kind in TIED_UNLESS_SAID)),
            context=_number(config, "max_position_embeddings", where, 0),
            qkv_bias=bias or kind == "qwen2",
            o_bias=bias and kind != "qwen2",
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=kind in ("qwen3", "gemma3_text"),
            norms=4 if kind in FOUR_NORMS else 2,
        )

    @property
    def keys(self) -> int:
        """Width of the keys, and of the values."""
        return self.key_heads * self.head_size

    @property
    def queries(self) -> int:
        """Width of the queries, and of what attention gives."""
        return self.heads * self.head_size

    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's matrices by name."""
        return {
            "q_proj": (self.hidden, self.queries),
            "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys),
            "o_proj": (self.queries, self.hidden),
            "gate_proj": (self.hidden, self.feed_forward),
            "up_proj": (self.hidden, self.feed_forward),
            "down_proj": (self.feed_forward, self.hidden),
        }

    @property
    def layer_matrices(self) -> int:
        """Parameters in one layer's matrices."""
        return sum(i * o for i, o in self.linear().values())

    @property
    def matrix_parameters(self) -> int:
        """Parameters in the layers' matrices: each costs two operations a token and pass."""
        return self.layers * self.layer_matrices

    @property
    def layer_parameters(self) -> int:
        """All parameters of one layer."""
        small = self.norms * self.hidden
        small += (self.queries + 2 * self.keys) * self.qkv_bias + self.hidden * self.o_bias
        small += (2 * self.feed_forward + self.hidden) * self.mlp_bias + 2 * self.head_size * self.qk_norm
        return self.layer_matrices + small

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the head."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters; a tied head counts once."""
        return self.layers * self.layer_parameters + self.hidden + self.embedding * (1 if self.tied else 2)

    def lora_parameters(self, rank: int, targets: Sequence[str] | str) -> int:
        """Parameters of an adapter: rank * (inputs + outputs) for each adapted matrix."""
        shapes = self.linear()
        return self.layers * sum(rank * sum(shapes[name]) for name in target_modules(targets))

    def prefix_parameters(self, tokens: int) -> int:
        """Parameters of prefix tuning without a projection: a key and a value a layer and virtual token."""
        return self.layers * 2 * self.keys * tokens


def target_modules(targets: Sequence[str] | str) -> tuple[str, ...]:
    """Matrices that get an adapter, in a layer's order: `all-linear`, `attention`, `mlp`, or names as in `q,v`.

    Raises:
        UserError: a name that no matrix has.
    """
    every = (*ATTENTION, *FEED_FORWARD)
    groups = {"all-linear": every, "all": every, "attention": ATTENTION, "mlp": FEED_FORWARD}
    names = targets.split(",") if isinstance(targets, str) else targets
    found: set[str] = set()
    for name in (n.strip() for n in names):
        full = name if name in every else f"{name}_proj"
        if name not in groups and full not in every:
            known = [*groups, *(n.removesuffix("_proj") for n in every)]
            near = difflib.get_close_matches(name, known, 1)
            raise UserError(
                f"No matrix {name!r} to adapt",
                where="targets",
                next_step=f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}",
            )
        found.update(groups.get(name, (full,)))
    return tuple(name for name in every if name in found)


@functools.cache
def bundled_models() -> dict[str, ModelShape]:
    """The models of `models.yaml` by their short names."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    table = yaml.load(BUNDLED.read_text(encoding="utf-8"), Loader=loader)["models"]
    return {name: ModelShape.from_config(dict(zip(_KEYS, row, strict=True)), name) for name, row in table.items()}


def find_model(name: str) -> tuple[str, ModelShape, list[str]]:
    """A model by short name, hub name, folder or `config.json`; the bundled table needs no network.

    Returns:
        The name to show, the sizes, and what had to be assumed.

    Raises:
        UserError: nothing of that name, or a configuration that can't be read.
    """
    path = Path(name).expanduser()
    if path.is_dir() or path.suffix == ".json":
        return _from_file(name, path / "config.json" if path.is_dir() else path)
    short = _short(name)
    if short in bundled_models():
        return short, bundled_models()[short], []
    refuse_missing_path(name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_file(name, _from_hub(name))
    near = difflib.get_close_matches(short, list(bundled_models()), 3, 0.4)
    raise UserError(
        f"No model named {name!r}: no such short name, folder or hub name",
        where="model",
        next_step=(f"did you mean {' or '.join(near)}? Or" if near else "")
        + " name a folder with config.json, or org/name on the hub".removeprefix("" if near else " "),
    )


def _short(name: str) -> str:
    """`meta-llama/Meta-Llama-3.1-8B-Instruct` and the like as `llama-3.1-8b`."""
    short = name.rsplit("/", 1)[-1].lower().replace(":", "-")
    endings = (
        "-hf",
        "-instruct",
        "-it",
        "-chat",
        "-base",
        "-bnb-4bit",
        "-unsloth",
        "-fp8",
        "-intermediate-step-1431k-3t",
        "-v1.0",
    )
    while (shorter := short.removesuffix(next((e for e in endings if short.endswith(e)), ""))) != short:
        short = shorter
    short = short.removeprefix("meta-")
    if short.startswith("llama-3.") is False and short.startswith("llama3"):
        short = short.replace("llama3", "llama-3", 1)
    if short.startswith("llama2"):
        short = short.replace("llama2", "llama-2", 1)
    return {"tinyllama": "tinyllama-1.1b"}.get(short, short)


def _from_file(name: str, path: Path) -> tuple[str, ModelShape, list[str]]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"Can't read the model's configuration: {error.strerror}",
            where=str(path),
            next_step="name a folder with config.json",
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError("config.json is no valid JSON", where=str(path), next_step="download it again") from None
    if not isinstance(config, dict):
        raise UserError("config.json holds no object", where=str(path), next_step="download it again")
    assumed = []
    if isinstance(config.get("text_config"), dict):
        config = config["text_config"]
        assumed.append("only the language model of several parts is planned (text_config)")
    kind = config.get("model_type", "llama")
    if kind not in LIKE_LLAMA:
        assumed.append(f"architecture {kind!r} is sized as if it were a Llama: its parameters may be more or fewer")
    return name, ModelShape.from_config(config, str(path)), assumed


def _from_hub(name: str) -> Path:
    """The hub's `config.json` of a model: cache, then network."""
    import logging

    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            return Path(cached)
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would tell of each of its attempts
        return Path(hf_hub_download(name, "config.json"))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"The sizes of {name} are neither bundled nor in the hub's cache, and the hub gave no config.json ({type(error).__name__})",
            where="model",
            next_step=f"check the spelling and the network, or name a folder with its config.json; bundled: {', '.join(bundled_models())}",
        ) from None


def _number(config: Mapping[str, Any], key: str, where: str, otherwise: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        if otherwise is not None:
            return otherwise
        raise UserError(
            f"The model's configuration has no {key!r}", where=where, next_step="use a decoder's config.json"
        )
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**8:
        raise UserError(
            f"The model's configuration has {key} = {value!r}, which can't be",
            where=where,
            next_step="use a decoder's config.json",
        )
    return value
