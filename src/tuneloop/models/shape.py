"""A model's sizes, from its `config.json`: what memory, time and trained parameters are counted from. Needs no
torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.models.families import FAMILIES, LLAMA, Family

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
# Gemma 2 is sized here and computed by Transformers: its scores have soft caps.
SIZED: Mapping[str, Family] = {**FAMILIES, "gemma2": Family(tied=True, four_norms=True)}


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a decoder that cost memory and time, from its `config.json`."""

    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    tied: bool
    context: int = 0
    qkv_bias: bool = False  # as the next four, small parameters of some architectures
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norms: int = 2

    @staticmethod
    def from_config(config: Mapping[str, Any], where: str = "config.json") -> ModelShape:
        """Read a `config.json`. Raises UserError: a number is missing or can't be, or a mixture of experts."""
        family = SIZED.get(str(config.get("model_type", "llama")), LLAMA)
        if any(config.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
            what = "The model is a mixture of experts, which the planner can't size"
            raise UserError(what, where=where, next_step="name a dense decoder")
        heads = _number(config, "num_attention_heads", where)
        hidden = _number(config, "hidden_size", where)
        if not config.get("head_dim") and hidden % heads:
            what = f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
            raise UserError(what, where=where, next_step="correct config.json, or give head_dim in it")
        bias = bool(config.get("attention_bias", False))
        return ModelShape(
            vocabulary=_number(config, "vocab_size", where),
            hidden=hidden,
            feed_forward=_number(config, "intermediate_size", where),
            layers=_number(config, "num_hidden_layers", where),
            heads=heads,
            key_heads=_number(config, "num_key_value_heads", where, heads),
            head_size=_number(config, "head_dim", where, hidden // heads),
            tied=bool(config.get("tie_word_embeddings", family.tied)),
            context=_number(config, "max_position_embeddings", where, 0),
            qkv_bias=bias or family.qkv_bias,
            o_bias=bias and not family.qkv_bias,
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=family.qk_norm,
            norms=4 if family.four_norms else 2,
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
            "q_proj": (self.hidden, self.queries), "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys), "o_proj": (self.queries, self.hidden),
            "gate_proj": (self.hidden, self.feed_forward), "up_proj": (self.hidden, self.feed_forward),
            "down_proj": (self.feed_forward, self.hidden),
        }  # fmt: skip

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


def target_modules(targets: Sequence[str] | str) -> tuple[str, ...]:
    """Matrices to adapt: `all-linear`, `attention`, `mlp`, or names as in `q,v`. Raises UserError: an unknown name."""
    every = (*ATTENTION, *FEED_FORWARD)
    groups = {"all-linear": every, "all": every, "attention": ATTENTION, "mlp": FEED_FORWARD}
    names = targets.split(",") if isinstance(targets, str) else targets
    matrices: set[str] = set()
    for name in (n.strip() for n in names):
        full = name if name in every else f"{name}_proj"
        if name not in groups and full not in every:
            choices = [*groups, *(n.removesuffix("_proj") for n in every)]
            step = did_you_mean(name, choices, f"choose from {', '.join(choices)}")
            raise UserError(f"No matrix {name!r} to adapt", where="targets", next_step=step)
        matrices.update(groups.get(name, (full,)))
    return tuple(name for name in every if name in matrices)


def _number(config: Mapping[str, Any], key: str, where: str, otherwise: int | None = None) -> int:
    value = config.get(key)
    if value is None and otherwise is not None:
        return otherwise
    if type(value) is int and 0 < value < 10**8:
        return value
    problem = f"no {key!r}" if value is None else f"{key} = {value!r}, which can't be"
    raise UserError(f"The model's configuration has {problem}", where=where, next_step="use a decoder's config.json")
