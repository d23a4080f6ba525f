"""A model's sizes, from its `config.json`: what memory, time and trained parameters are counted from. Needs no
torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.models.nn.families import FAMILIES, LLAMA, Family, language_config

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
SHARED_GATE = "shared_expert_gate"  # weighs a mixture's shared expert, and has an adapter if all linear layers have
# Joined or named otherwise in some architectures.
_JOINED = {
    "qkv_proj": ATTENTION[:3], "query_key_value": ATTENTION[:3], "gate_up_proj": FEED_FORWARD[:2],
    "dense": ATTENTION[3:], "out_proj": ATTENTION[3:], "dense_h_to_4h": FEED_FORWARD[1:2],
    "dense_4h_to_h": FEED_FORWARD[2:], "fc1": FEED_FORWARD[1:2], "fc2": FEED_FORWARD[2:],
}  # fmt: skip
# Sized here and computed by Transformers: Gemma 2, whose scores have soft caps, and mixtures of experts.
MIXTURES: Mapping[str, Family] = {
    "mixtral": LLAMA, "qwen2_moe": Family(qkv_bias=True), "qwen3_moe": Family(qk_norm=True),
    "gpt_oss": Family(qkv_bias=True),
}  # fmt: skip
SIZED: Mapping[str, Family] = {**FAMILIES, "gemma2": Family(tied=True, four_norms=True), **MIXTURES}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_ACTIVE = ("num_experts_per_tok", "experts_per_token", "num_experts_per_token")


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a decoder that cost memory and time, from its `config.json`.

    Of a mixture `feed_forward` is the width of an expert, of which each layer has `experts` and a token passes through
    `active`, and through one of the width `shared`, if any.
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
    qkv_bias: bool = False  # as the next four, small parameters of some architectures
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norms: int = 2
    fused: bool = False  # one matrix for queries, keys and values, and one for gate and up
    experts: int = 0
    active: int = 0
    shared: int = 0
    sinks: bool = False  # gpt-oss: a number for each head that takes a part of its attention

    @staticmethod
    def from_config(config: Mapping[str, Any], where: str = "config.json") -> ModelShape:
        """Read a `config.json`. Raises UserError: a number is missing or can't be, or a mixture of another kind."""
        config = language_config(config)
        kind = str(config.get("model_type", "llama"))
        family = SIZED.get(kind, LLAMA)
        experts = next((key for key in _EXPERTS if config.get(key)), "")
        dense = config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1
        if experts and (kind not in MIXTURES or dense):
            message = "The planner can't size this mixture of experts"
            step = f"name one of {', '.join(MIXTURES)} with experts in each layer, or a dense decoder"
            raise UserError(message, where=where, next_step=step)
        heads = _number(config, "num_attention_heads", where)
        hidden = _number(config, "hidden_size", where)
        if not config.get("head_dim") and hidden % heads:
            message = f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
            raise UserError(message, where=where, next_step="correct config.json, or give head_dim in it")
        bias = bool(config.get("attention_bias", False))
        return ModelShape(
            vocabulary=_number(config, "vocab_size", where),
            hidden=hidden,
            feed_forward=_number(config, "intermediate_size", where, None, "moe_intermediate_size"),
            layers=_number(config, "num_hidden_layers", where),
            heads=heads,
            key_heads=_number(config, "num_key_value_heads", where, heads),
            head_size=_number(config, "head_dim", where, hidden // heads),
            tied=bool(config.get("tie_word_embeddings", family.tied)),
            context=_number(config, "max_position_embeddings", where, 0),
            qkv_bias=bias or family.qkv_bias,
            o_bias=(bias and not family.qkv_bias) or kind == "gpt_oss",
            mlp_bias=bool(config.get("mlp_bias", kind == "gpt_oss")),
            qk_norm=family.qk_norm,
            norms=4 if family.four_norms else 2,
            fused=family.fused,
            experts=_number(config, experts, where) if experts else 0,
            active=_number(config, _ACTIVE[0], where, None, *_ACTIVE[1:]) if experts else 0,
            sinks=kind == "gpt_oss",
            shared=_number(config, "shared_expert_intermediate_size", where, 0) if experts else 0,
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
        """Inputs and outputs of a layer's matrices by name; of a mixture those of one expert."""
        return {
            "q_proj": (self.hidden, self.queries), "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys), "o_proj": (self.queries, self.hidden),
            "gate_proj": (self.hidden, self.feed_forward), "up_proj": (self.hidden, self.feed_forward),
            "down_proj": (self.feed_forward, self.hidden),
        }  # fmt: skip

    def adapted(self, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of what adapters of these matrices are next to, by name: joined ones have one, and experts
        none, for Transformers holds those of a layer as one tensor; the shared expert has its own matrices."""
        linear = self.linear()
        if self.experts:
            linear = {name: ends for name, ends in linear.items() if name in ATTENTION}
        if self.shared:
            up = self.hidden, self.shared
            linear |= {"gate_proj": up, "up_proj": up, "down_proj": (self.shared, self.hidden)}
        sizes = {name: ends for name, ends in linear.items() if name in names}
        if self.shared and len(sizes) == len(linear):
            sizes[SHARED_GATE] = self.hidden, 1
        for parts in (ATTENTION[:3], FEED_FORWARD[:2]) if self.fused else ():
            if any([sizes.pop(part, None) for part in parts]):
                sizes["+".join(parts)] = (self.hidden, sum(self.linear()[part][1] for part in parts))
        return sizes

    def adapted_words(self, names: Sequence[str]) -> str:
        """The layers that adapters of these matrices are next to, in words."""
        if not self.experts:
            every = len(names) == len(self.linear())
            return "all linear layers" if every else ", ".join(name.removesuffix("_proj") for name in names)
        parts = {"attention": ATTENTION, "the shared expert": FEED_FORWARD if self.shared else ()}
        return " and ".join(part for part, inside in parts.items() if any(name in names for name in inside))

    @property
    def activated(self) -> int:
        """Width of all that a token passes through in a layer's feed-forward part."""
        return self.feed_forward * (self.active or 1) + self.shared

    def _matrices_with(self, experts: int) -> int:
        """Parameters in a layer's matrices with so many of its experts, and what chooses among them."""
        attention = sum(i * o for name, (i, o) in self.linear().items() if name in ATTENTION)
        chooses = self.experts + bool(self.shared)
        return attention + self.hidden * (3 * (self.feed_forward * experts + self.shared) + chooses)

    @property
    def layer_matrices(self) -> int:
        """Parameters in one layer's matrices."""
        return self._matrices_with(self.experts or 1)

    @property
    def computed_parameters(self) -> int:
        """Parameters in the layers' matrices that a token meets: each costs two operations a token and pass."""
        return self.layers * self._matrices_with(self.active or 1)

    @property
    def active_parameters(self) -> int:
        """All parameters but those of the experts that a token does not pass through."""
        return self.parameters - self.matrix_parameters + self.computed_parameters

    @property
    def matrix_parameters(self) -> int:
        """Parameters in the layers' matrices."""
        return self.layers * self.layer_matrices

    @property
    def layer_parameters(self) -> int:
        """All parameters of one layer."""
        small = self.norms * self.hidden
        small += (self.queries + 2 * self.keys) * self.qkv_bias + self.hidden * self.o_bias
        small += (2 * self.feed_forward + self.hidden) * self.mlp_bias * (self.experts or 1)
        small += 2 * self.head_size * self.qk_norm + self.experts * self.mlp_bias + self.heads * self.sinks
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


def nearest_matrices(names: Iterable[str]) -> tuple[str, ...]:
    """The matrices that are sized here, of the linear layers that an architecture has: of joined ones their parts. What
    has no counterpart is left out; if nothing has one, all stand for them."""
    parts = {part for name in names for part in _JOINED.get(name, (name,))}
    every = (*ATTENTION, *FEED_FORWARD)
    return tuple(name for name in every if name in parts) or every


def _number(config: Mapping[str, Any], key: str, where: str, otherwise: int | None = None, *instead: str) -> int:
    """A number by its key, or by one of those that some mixtures have in its place."""
    value = next((config[alias] for alias in (*instead, key) if config.get(alias) is not None), None)
    if value is None and otherwise is not None:
        return otherwise
    if type(value) is int and 0 < value < 10**8:
        return value
    problem = f"no {key!r}" if value is None else f"{key} = {value!r}, which can't be"
    raise UserError(f"The model's configuration has {problem}", where=where, next_step="use a decoder's config.json")
