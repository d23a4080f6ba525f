"""Llama's architecture and its relatives (`families.py`), written for small batches on CPUs as much as for GPUs.

Module and parameter names are those of Transformers' classes, so that checkpoints load and save unchanged and adapters
keep their PEFT names. What differs is the arithmetic's order: heads that share keys are computed together
instead of repeating the keys, short rows use plain batched matrix products (in bf16 on CPUs SDPA is slower below some
700 tokens), elementwise steps are fused by hand with their gradients, and the vocabulary projection is left to the
caller, who needs it for few positions. Proven equal to Transformers in tests/models/nn/test_llama.py.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuneloop.core.device import backend, put, varlen_attention
from tuneloop.core.errors import UserError
from tuneloop.core.threads import adapt_threads
from tuneloop.models.adapters.assignment import assignment, is_mixed, rows_of_tokens, some_rows, tokens_on
from tuneloop.models.adapters.lora import side_by_side
from tuneloop.models.nn import families
from tuneloop.models.nn.batch_invariance import BLOCK, LEAST_ROWS, is_batch_invariant, least_size, repeated
from tuneloop.models.nn.families import Family

# Shape suffixes: B rows, T new tokens, S attended tokens, H heads, K key heads, G = H / K, D head size, C hidden size.
ROPE_NUMBERS = {
    "linear": ("factor",),
    "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "factor"),
}


@dataclass(frozen=True)
class LlamaConfig:
    """The numbers of a model of one of the families, read from a `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] = field(default_factory=dict)
    tied: bool = False
    context: int = 8192
    family: Family = families.LLAMA
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    windows: tuple[int, ...] = ()  # tokens that each layer sees, 0: all; empty: no layer has a window
    unrotated: tuple[int, ...] = ()  # layers without positions
    local_theta: float = 0.0  # base of the positions in layers with a window; 0: as in the others
    score_scale: float = 1.0  # of attention's scores, over the usual head_size ** -0.5
    part: str = ""  # what Transformers calls the module of a language model that is one part of several

    @staticmethod
    def from_json(whole: Mapping[str, Any]) -> LlamaConfig:
        """Read Transformers' `config.json`, version 4 or 5. Raises UserError: a number is missing or can't be."""
        config = families.language_config(whole)
        family, rope = families.family_of(config) or families.LLAMA, _rope(config)
        layers = _count(config, "num_hidden_layers", most=2000)
        heads, hidden = _count(config, "num_attention_heads"), _count(config, "hidden_size")
        key_heads = _count(config, "num_key_value_heads", heads)
        head_size = _count(config, "head_dim", max(hidden // heads, 1))
        parsed = LlamaConfig(
            vocab_size=_count(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_count(config, "intermediate_size"),
            layers=layers,
            heads=heads,
            key_heads=key_heads,
            head_size=head_size,
            norm_eps=_positive(config, "rms_norm_eps", 1e-6),
            rope_theta=_positive(rope if rope.get("rope_theta") else config, "rope_theta", family.theta),
            rope_scaling=dict(rope),
            tied=bool(config.get("tie_word_embeddings", family.tied)),
            context=_count(config, "max_position_embeddings", 2048, most=10**9),
            family=family,
            qkv_bias=family.qkv_bias or bool(config.get("attention_bias")),
            o_bias=not family.qkv_bias and bool(config.get("attention_bias")),
            mlp_bias=bool(config.get("mlp_bias")),
            windows=families.windows_of(config, layers),
            unrotated=families.unrotated_of(config, layers),
            local_theta=_local_theta(config, family),
            score_scale=(head_size / _positive(config, "query_pre_attn_scalar", head_size)) ** 0.5,
            part=families.part_of(whole),
        )
        for key in ROPE_NUMBERS.get(rope.get("rope_type", rope.get("type", "")), ()):
            _positive(rope, key)
        if heads % key_heads or head_size % 2 or head_size * heads > 10**6:
            raise _wrong("num_attention_heads, num_key_value_heads, head_dim", (heads, key_heads, head_size))
        return parsed

    @staticmethod
    def supports(whole: Mapping[str, Any]) -> bool:
        """Whether this module computes that model; others go through Transformers' own classes."""
        config = families.language_config(whole)
        ropes = [_rope(config), _rope(config, "sliding_attention")]
        return families.is_plain(whole) and all(
            rope.get("rope_type", rope.get("type", "default")) in kinds
            and rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) in (None, 1.0)
            for rope, kinds in zip(ropes, (("default", "llama3", "linear"), ("default",)), strict=True)
        )

    @property
    def window(self) -> int:
        """Tokens that layers with a window see; 0: there is none."""
        return max(self.windows, default=0)

    def sees_all(self, length: int) -> bool:
        """Whether every layer sees rows of this length whole."""
        return not self.window or length <= self.window

    def rope_of(self, layer: int) -> str:
        """The positions of a layer: `global`, `local` or `none`."""
        if layer in self.unrotated:
            return "none"
        return "local" if self.local_theta and self.windows and self.windows[layer] else "global"

    @property
    def ropes(self) -> tuple[str, ...]:
        """The kinds of positions that layers have."""
        return tuple(dict.fromkeys(map(self.rope_of, range(self.layers))))


def _rope(config: Mapping[str, Any], layers: str = "full_attention") -> dict[str, Any]:
    """The positions of a kind of layers; `rope_parameters` of Transformers 5 may have some for each kind."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(rope, dict) and ("full_attention" in rope or "sliding_attention" in rope):
        rope = rope.get(layers) or {}
    elif layers != "full_attention":
        rope = {}
    if not isinstance(rope, dict):
        raise _wrong("rope_parameters", rope)
    return rope


def _local_theta(config: Mapping[str, Any], family: Family) -> float:
    if not family.local_theta:
        return 0.0
    rope = _rope(config, "sliding_attention")
    if rope.get("rope_theta"):
        return _positive(rope, "rope_theta")
    return _positive(config, "rope_local_base_freq", family.local_theta)


def _count(config: Mapping[str, Any], key: str, usual: int | None = None, most: int = 10**7) -> int:
    value = config.get(key) or usual
    if type(value) is not int or not 0 < value <= most:
        raise _wrong(key, value)
    return value


def _positive(config: Mapping[str, Any], key: str, usual: float | None = None) -> float:
    value = config.get(key) or usual
    if type(value) not in (int, float) or not 0 < value < 1e12:  # type: ignore[operator]
        raise _wrong(key, value)
    return float(value)  # type: ignore[arg-type]


def _wrong(key: str, value: object) -> UserError:
    message = f"The model's configuration has {key} = {value!r:.60}, which can't be"
    return UserError(message, where="config.json", next_step="download the model again")


def frequencies(config: LlamaConfig, kind: str) -> Tensor:
    """Inverse frequencies (D / 2) of a kind of positions, see `LlamaConfig.rope_of`; without positions all are zero."""
    if kind == "none":
        return torch.zeros(config.head_size // 2)
    if kind == "local":
        config = replace(config, rope_theta=config.local_theta, rope_scaling={})
    return rope_frequencies(config)


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """Inverse frequencies (D / 2) of the rotary embedding (Su et al. 2021, arXiv 2104.09864); with Llama 3.1's
    rescaling wavelengths above context/low_freq_factor are stretched, those below context/high_freq_factor kept, others
    interpolated."""
    steps = torch.arange(0, config.head_size, 2, dtype=torch.int64).float() / config.head_size
    inverse = 1.0 / (config.rope_theta**steps)
    scaling = config.rope_scaling
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        return inverse / float(scaling["factor"])
    if kind != "llama3":
        return inverse
    factor, old_context = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    wavelength = 2 * math.pi / inverse
    smooth = (old_context / wavelength - low) / (high - low)
    between = (1 - smooth) * inverse / factor + smooth * inverse
    scaled = torch.where(wavelength > old_context / low, inverse / factor, inverse)
    medium = (wavelength <= old_context / low) & (wavelength >= old_context / high)
    return torch.where(medium, between, scaled)


class _RmsNorm(torch.autograd.Function):
    """Root-mean-square normalisation; keeps its input for the gradient: without a kernel torch's takes more passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, centre: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.centre = eps, centre
        if centre:  # in 16 bits the sum would lose most of the weight
            return F.rms_norm(x.float(), weight.shape, weight.float() + centre, eps).to(x.dtype)
        return F.rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(wide.shape[-1])
        scale.add_(ctx.eps).rsqrt_()
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad.float() * wide).mul_(scale).flatten(0, -2).sum(0).to(weight.dtype)
        # With the scale s and g the gradient times the weight: s g - s^3 x mean(g x).
        inner = grad.float() * (weight.float() + ctx.centre)
        along = (inner * wide).mean(-1, keepdim=True).mul_(scale.pow(3)).neg_()
        return inner.mul_(scale).addcmul_(wide, along).to(x.dtype), grad_weight, None, None


class _SwiGlu(torch.autograd.Function):
    """silu(gate) * up; keeps only its two inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad)
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, grad_up


class _GeGlu(torch.autograd.Function):
    """gelu(gate) * up with gelu's tanh approximation; keeps only its two inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.gelu(gate, approximate="tanh").mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        gate, up = ctx.saved_tensors
        grad_up = F.gelu(gate, approximate="tanh").mul_(grad)
        grad_gate = torch.ops.aten.gelu_backward(grad * up, gate, approximate="tanh")
        return grad_gate, grad_up


class RmsNorm(nn.Module):
    """x / rms(x) * (centre + weight), computed in fp32; the centre is 1 where weights are learned around zero."""

    def __init__(self, size: int, config: LlamaConfig) -> None:
        super().__init__()
        self.eps, self.centre = config.norm_eps, float(config.family.zero_centred)
        self.weight = nn.Parameter(torch.full((size,), 1 - self.centre))

    def forward(self, x: Tensor) -> Tensor:
        if not self.centre and x.dtype == self.weight.dtype and backend(x.device).has_fused_norm():
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return _RmsNorm.apply(x, self.weight, self.eps, self.centre)  # type: ignore[no-untyped-call,no-any-return]


class KeyValues:
    """Keys and values of the tokens read so far, for each layer (B, K, S, D), in buffers that grow in steps.

    Attention reads whole buffers, the unused end masked: a narrowed view would be copied at every step. They grow as
    suits their device (None: the processor); `cards` of each layer, where they are on several.
    """

    keeps = True  # whether what extends it stays in it

    def __init__(self, layers: int, device: torch.device | None = None, cards: Sequence[torch.device] = ()) -> None:
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.lengths = [0] * layers
        self.device, self.cards = device or torch.device("cpu"), cards
        # The places of each row's next tokens (B, T), where they differ, see `placed`.
        self.at: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens held a row, padding included."""
        return self.lengths[0]

    @property
    def capacity(self) -> int:
        """Length of the buffers."""
        return 0 if self.keys[0] is None else self.keys[0].shape[2]

    def room_for(self, needed: int) -> int:
        """Length of new buffers that are to hold so many tokens, and a few more."""
        step = backend(self.device).cache_step
        in_blocks = not backend(self.device).is_cpu or is_batch_invariant()
        return (needed // step + 1) * step if in_blocks else needed + step

    def capacity_for(self, new: int) -> int:
        """Length of the buffers once `new` more tokens are in them."""
        needed = self.lengths[0] + new
        return self.capacity if self.capacity >= needed else self.room_for(needed)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new tokens' keys and values and return the buffers (B, K, `capacity_for`, D). With `at` each row's
        tokens are put at their places."""
        if self.at is not None:
            places = self.at.view(len(keys), 1, -1, 1).expand(keys.shape)
            for buffers, added in ((self.keys, keys), (self.values, values)):
                buffers[layer].scatter_(2, places, added)  # type: ignore[union-attr]
            self.lengths[layer] += keys.shape[2]
            return self.keys[layer], self.values[layer]  # type: ignore[return-value]
        old, new = self.lengths[layer], self.lengths[layer] + keys.shape[2]
        for buffers, added in ((self.keys, keys), (self.values, values)):
            buffer = buffers[layer]
            if buffer is None or buffer.shape[2] < new:
                shape = (added.shape[0], added.shape[1], self.room_for(new), added.shape[3])
                buffer = self._grow(buffers, layer, added, shape)
            buffer[:, :, old:new] = added
        self.lengths[layer] = new
        return self.keys[layer], self.values[layer]  # type: ignore[return-value]

    def _grow(self, buffers: list[Tensor | None], layer: int, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Put a larger buffer of the kind of `like` in the place of a layer's."""
        buffer, grown = buffers[layer], like.new_zeros(shape, device=self.cards[layer] if self.cards else like.device)
        if buffer is not None:
            grown[:, :, : self.lengths[layer]] = buffer[:, :, : self.lengths[layer]]
        buffers[layer] = grown
        return grown

    def reserve(self, rows: int, new: int, like: Tensor, shape: tuple[int, int]) -> None:
        """Make room for `new` more tokens in each of `rows` rows, in buffers of the kind of `like`; `shape`: (K, D)."""
        capacity = self.capacity_for(new)
        for buffers in (self.keys, self.values):
            for layer, buffer in enumerate(buffers):
                if buffer is None or buffer.shape[2] < capacity:
                    self._grow(buffers, layer, like, (rows, shape[0], capacity, shape[1]))

    def select(self, rows: Tensor | slice) -> KeyValues:
        """Some rows, or rows repeated (B' indices), as a copy; of a slice a window that shares the buffers."""
        on_cards = {card: rows.to(card) for card in dict.fromkeys(self.cards)} if isinstance(rows, Tensor) else {}
        at = [on_cards.get(card, rows) for card in self.cards or [self.device] * len(self.keys)]
        selected = self._mapped(lambda layer, buffer: buffer[at[layer]], self.length)
        selected.at = None if self.at is None else self.at[rows]
        return selected

    def _mapped(self, function: Callable[[int, Tensor], Tensor], length: int) -> KeyValues:
        """A cache with a function of each layer's buffers."""
        copied = KeyValues(len(self.keys), self.device, self.cards)
        copied.keys = [None if key is None else function(layer, key) for layer, key in enumerate(self.keys)]
        copied.values = [None if value is None else function(layer, value) for layer, value in enumerate(self.values)]
        copied.lengths = [length] * len(self.keys)
        return copied

    def joined(self, other: KeyValues, prefix: int = 0) -> KeyValues:
        """The rows of both; shorter ones get empty places behind the first `prefix`, which are the same in all rows, or
        at their ends where rows must not be shifted (`batch_invariance`)."""
        both = KeyValues(len(self.keys), self.device, self.cards)
        length = max(self.length, other.length)
        for into, mine, theirs in ((both.keys, self.keys, other.keys), (both.values, self.values, other.values)):
            for layer, (a, b) in enumerate(zip(mine, theirs, strict=True)):
                assert a is not None and b is not None
                rows = len(a)
                joined = a.new_zeros(rows + len(b), a.shape[1], self.room_for(length), a.shape[3])
                for part, buffer, n in ((joined[:rows], a, self.length), (joined[rows:], b, other.length)):
                    shift = 0 if is_batch_invariant() else length - n
                    part[:, :, :prefix] = buffer[:, :, :prefix]
                    part[:, :, prefix + shift : n + shift] = buffer[:, :, prefix:n]
                into[layer] = joined
        both.lengths = [length] * len(self.keys)
        return both

    def in_room_for(self, rows: int, capacity: int) -> KeyValues:
        """The same in buffers for more rows, which are empty, and so many tokens; a copy."""
        length = min(self.length, capacity)

        def enlarged(layer: int, buffer: Tensor) -> Tensor:
            larger = buffer.new_zeros(rows, buffer.shape[1], capacity, buffer.shape[3])
            larger[: len(buffer), :, :length] = buffer[:, :, :length]
            return larger

        return self._mapped(enlarged, length)

    def placed(self, at_BT: Tensor) -> KeyValues:
        """The same with room for tokens at places of their own in each row, which are appended next."""
        needed = int(at_BT.max()) + 1
        cache = self if self.capacity >= needed else self.in_room_for(len(at_BT), self.room_for(needed))
        cache.at, cache.lengths = at_BT, [needed - at_BT.shape[1]] * len(self.keys)
        return cache

    def without_first(self, places: int, prefix: int = 0) -> KeyValues:
        """Without so many places behind the first `prefix`; a copy."""
        index = [*range(prefix), *range(prefix + places, self.length)]
        return self._mapped(lambda layer, buffer: buffer[:, :, index], self.length - places)


def by_products(x: Tensor, length: int) -> bool:
    """Whether rows of this length take plain products instead of SDPA."""
    return length <= backend(x.device).products_below


def bias_of(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a query may look and minus infinity elsewhere: added to scores, once built for all layers."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def causal_mask(new: int, before: int, device: torch.device) -> Tensor:
    """True where `new` tokens behind `before` others may look (1, 1, new, before + new)."""
    return torch.ones(new, before + new, dtype=torch.bool, device=device).tril_(before)[None, None]


def last_keys(mask: Tensor, window: int) -> Tensor:
    """Of the keys that a query may look at (.., T, S) the last `window`; they are in order of their positions."""
    return mask & (mask.flip(-1).cumsum(-1).flip(-1) <= window)


def attend(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, bias: Tensor | None) -> Tensor:
    """Scaled dot-product attention with shared key heads (Ainslie et al. 2023, arXiv 2305.13245).

    Returns mixed values (B, T, H * D). `bias` is added to the scores (B or 1, 1, T, S) and hides from each query all
    keys from S - T behind its place; (.., G T, S) where it is that of a GPU's folded heads already, see `folds`; None:
    causal, the queries being the last T of S tokens.
    """
    B, H, T, D = q_BHTD.shape
    block_size = BLOCK * least_size(H * D * BLOCK) if is_batch_invariant() else 1
    if block_size > 1 and bias is not None:
        k_BKSD, v_BKSD, bias = _in_blocks(k_BKSD, v_BKSD, bias, block_size)
    K, S = k_BKSD.shape[1], k_BKSD.shape[2]
    G = H // K
    if bias is None or not (by_products(q_BHTD, T) or is_batch_invariant()):
        return _by_kernel(q_BHTD, k_BKSD, v_BKSD, bias).transpose(1, 2).reshape(B, T, H * D)
    keys_BKDS = k_BKSD.transpose(2, 3)
    mixed = []
    for block in query_blocks(T):
        # The G query heads of one key head are stacked: one product for all of them.
        n, seen = block.stop - block.start, S - T + block.stop
        seen = -(-seen // block_size) * block_size
        queries = q_BHTD[:, :, block].reshape(B, K, G * n, D) * (D**-0.5)
        scores = torch.matmul(queries, keys_BKDS[..., :seen]).view(B, H, n, seen)
        weights = torch.softmax(scores.add_(bias[:, :, block, :seen]), -1)
        mixed.append(torch.matmul(weights.view(B, K, G * n, seen), v_BKSD[:, :, :seen]).view(B, H, n, D))
    out = mixed[0] if len(mixed) == 1 else torch.cat(mixed, 2)
    return out.transpose(1, 2).reshape(B, T, H * D)


def _in_blocks(k_BKSD: Tensor, v_BKSD: Tensor, bias: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and bias with hidden places behind the last key, up to a whole number of blocks."""
    if not (missing := -k_BKSD.shape[2] % size):
        return k_BKSD, v_BKSD, bias
    k_BKSD, v_BKSD = (F.pad(x, (0, 0, 0, missing)) for x in (k_BKSD, v_BKSD))
    return k_BKSD, v_BKSD, F.pad(bias, (0, missing), value=float("-inf"))


def folds(T: int, K: int, D: int) -> bool:
    """Whether on a GPU the heads of a group become further queries: their mask is not larger than keys and values."""
    return T <= 2 * K * D


def _by_kernel(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, bias: Tensor | None) -> Tensor:
    """`attend` by torch's kernels (B, H, T, D), on a GPU always by one that holds no scores.

    The flash kernel takes grouped heads and no mask but the causal one, in which torch lets query i see key i: behind S
    - T other tokens as many queries are put in front, and their results dropped; a single query sees all and needs no
    mask. With another mask grouped heads would take the kernel that holds all scores: there the heads of a group become
    further queries, or, where the mask is larger than keys and values, these are repeated.
    """
    T, K, S, D = q_BHTD.shape[2], *k_BKSD.shape[1:]
    G = q_BHTD.shape[1] // K
    sdpa = F.scaled_dot_product_attention
    if bias is None:
        front = S - T if T > 1 else 0
        queries = F.pad(q_BHTD, (0, 0, front, 0)) if front else q_BHTD
        return sdpa(queries, k_BKSD, v_BKSD, is_causal=bool(T > 1), enable_gqa=bool(G > 1))[:, :, front:]
    if G == 1 or backend(q_BHTD.device).is_cpu:
        return sdpa(q_BHTD, k_BKSD, v_BKSD, attn_mask=bias, enable_gqa=G > 1)
    if folds(T, K, D):
        folded = bias if bias.shape[2] == G * T else bias.repeat(1, 1, G, 1)
        return sdpa(q_BHTD.reshape(-1, K, G * T, D), k_BKSD, v_BKSD, attn_mask=folded).view(q_BHTD.shape)
    return sdpa(q_BHTD, k_BKSD.repeat_interleave(G, 1), v_BKSD.repeat_interleave(G, 1), attn_mask=bias)


@dataclass(frozen=True)
class Packed:
    """A padded batch of which only the tokens at `places` are computed."""

    rows: int
    length: int
    places: Tensor  # (N), indices into rows * length; some again at the end, where products need more rows

    @staticmethod
    def of(real_BT: Tensor, least: int = 1) -> Packed | None:
        """From the places of real tokens, at least so many; None where nothing is padded."""
        places = real_BT.flatten().nonzero()[:, 0]
        rows, length = real_BT.shape
        if len(places) < least:
            return Packed(rows, length, repeated(places, least))
        return None if len(places) == rows * length else Packed(rows, length, places)

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (1, N, C)."""
        return x.reshape(self.rows * self.length, -1).index_select(0, self.places)[None]

    def unpack(self, x_1NC: Tensor) -> Tensor:
        """(1, N, C) -> (B, T, C), zero elsewhere."""
        out = x_1NC.new_zeros(self.rows * self.length, x_1NC.shape[-1])
        return out.index_copy_(0, self.places, x_1NC[0]).view(self.rows, self.length, -1)


class Documents:
    """Rows laid out one behind the other (1, N, C), each sees itself alone: GPU kernels take no mask of blocks."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths, self.longest = list(lengths), max(lengths)
        steps = torch.cat([torch.arange(n) for n in lengths])
        self.positions = put(steps, device)[None]
        ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        self.ends = put(ends, device)

    def to(self, device: torch.device) -> Documents:
        """The same on another card."""
        moved = copy.copy(self)
        moved.positions, moved.ends = self.positions.to(device), self.ends.to(device)
        return moved

    def attend(self, q_1HND: Tensor, k_1KND: Tensor, v_1KND: Tensor, window: int = 0) -> Tensor:
        """Causal attention within each row: mixed values (1, N, H * D). One kernel for all rows where there is one
        (`varlen_attention`) and no row is longer than the window, else one for each run of rows that are equally
        long."""
        whole = not window or self.longest <= window
        if whole and (kernel := varlen_attention(q_1HND.device, q_1HND.dtype)):
            q, k, v = (x[0].transpose(0, 1).contiguous() for x in (q_1HND, k_1KND, v_1KND))
            return kernel(q, k, v, self.ends, self.longest).reshape(1, sum(self.lengths), -1)
        out, start = [], 0
        for length, run in itertools.groupby(self.lengths):
            count = len(list(run))
            some = slice(start, start + count * length)
            q, k, v = (
                x[0, :, some].reshape(x.shape[1], count, length, -1).transpose(0, 1) for x in (q_1HND, k_1KND, v_1KND)
            )
            bias = None
            if window and length > window:
                bias = bias_of(last_keys(causal_mask(length, 0, q.device), window), q.dtype)
            mixed = attend(q, k, v, bias)  # (count, length, H * D)
            out.append(mixed.reshape(1, count * length, -1))
            start = some.stop
        return out[0] if len(out) == 1 else torch.cat(out, 1)


# Queries multiplied with the keys up to the last of them: what the causal mask hides behind a block is not computed.
QUERY_BLOCK = 96


def query_blocks(length: int) -> list[slice]:
    """Even blocks of at most about `QUERY_BLOCK` queries."""
    count = max(1, round(length / QUERY_BLOCK))
    edges = [length * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


GROUP_COST = 5000  # scores of a head that cost a layer's attention as much as a further group of rows


def group_by_length(lengths: Sequence[int], cost: Callable[[int, int], float]) -> list[list[int]]:
    """Lengths of neighbouring rows in the groups that cost least, each padded to its longest row; `cost` of a group is
    from its number of rows and the longest of their lengths."""
    runs = [list(run) for _, run in itertools.groupby(lengths)]
    costs, starts = [0.0], [0]  # of the first runs, and where their last group begins
    for end in range(1, len(runs) + 1):
        candidates = []
        rows = longest = 0
        for start in range(end - 1, -1, -1):
            rows, longest = rows + len(runs[start]), max(longest, runs[start][0])
            candidates.append((costs[start] + cost(rows, longest), start))
        least, begin = min(candidates)
        costs.append(least)
        starts.append(begin)
    groups, end = list[list[int]](), len(runs)
    while end:
        groups.insert(0, [length for run in runs[starts[end] : end] for length in run])
        end = starts[end]
    return groups


@dataclass(frozen=True)
class _Rows:
    """Neighbouring rows of a `Shared` layout."""

    count: int
    before: int  # tokens of the prefix
    length: int  # to which they are padded within attention
    of_keys: Tensor  # for the keys (count, K, before + length) their places among those of all tokens (tokens, K)
    from_keys: Tensor  # the way back, for the tokens of these rows


class Shared:
    """A batch laid out as one row: `prefix` tokens that all rows begin with, then the rest of each row, unpadded.

    Attention needs rows of one length with their heads first. Each place of a token and head there, and the way back,
    are worked out here once for all layers, so that a layer moves its queries, keys and values with one operation each.
    The prefix is a separate row, rests of similar `lengths` are put together. `turns`: cosines and sines (P + the
    longest, D) of each kind of positions.
    """

    def __init__(
        self, prefix: int, lengths: Sequence[int], heads: int, key_heads: int, turns: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        like = turns[0][0]
        device = like.device
        self.prefix, self.tokens = prefix, prefix + sum(lengths)
        self.rows: list[_Rows] = []
        of_queries, real, positions = list[Tensor](), list[Tensor](), list[Tensor]()
        start = 0
        groups = group_by_length(lengths, lambda rows, longest: rows * longest * (prefix + longest) + GROUP_COST)
        for group in ([[prefix]] if prefix else []) + groups:
            before, longest = min(start, prefix), max(group)
            counts, offsets = torch.tensor(group, device=device)[:, None], torch.arange(longest, device=device)
            real_BT = offsets < counts
            # Padding is computed as its row's last token: no real token looks at it, and its gradient is set to zero.
            tokens_BT = start + counts.cumsum(0) - counts + torch.minimum(offsets, counts - 1)
            behind = torch.arange(before, device=device).expand(len(group), -1)
            of_keys = _places(torch.cat((behind, tokens_BT), 1), key_heads)
            of_rest = torch.cat((torch.zeros_like(behind, dtype=torch.bool), real_BT), 1)
            from_keys = _inverse(of_keys, _by_heads(of_rest, key_heads), (start + sum(group)) * key_heads)
            self.rows.append(_Rows(len(group), before, longest, of_keys, from_keys[start * key_heads :]))
            of_queries += [_places(tokens_BT[:, block], heads) for block in query_blocks(longest)]
            real += [_by_heads(real_BT[:, block], heads) for block in query_blocks(longest)]
            positions.append((before + offsets.expand(len(group), -1))[real_BT])
            start += sum(group)
        self.of_queries, self.block_sizes = torch.cat(of_queries), [len(places) for places in of_queries]
        self.padding = (~torch.cat(real)).nonzero()[:, 0]
        self.from_queries = _inverse(self.of_queries, torch.cat(real), self.tokens * heads)
        at = torch.cat(positions)
        self.turn_keys = [(cos[at, None], sin[at, None]) for cos, sin in turns]
        scale = like.shape[-1] ** -0.5  # of the scores, put on the queries
        self.turn_queries = [(cos * scale, sin * scale) for cos, sin in self.turn_keys]
        widest = max(block.stop - block.start for rows in self.rows for block in query_blocks(rows.length))
        self.bias = bias_of(causal_mask(widest, 0, device), like.dtype)[0, 0]


def _by_heads(real_BT: Tensor, heads: int) -> Tensor:
    """The same for each head, heads first (B * heads * T)."""
    return real_BT[:, None].expand(-1, heads, -1).flatten()


def _places(tokens_BT: Tensor, heads: int) -> Tensor:
    """Places of these tokens' heads among those of all tokens (tokens, heads), heads first (B * heads * T)."""
    return (tokens_BT[:, None] * heads + torch.arange(heads, device=tokens_BT.device)[:, None]).flatten()


def _inverse(places: Tensor, real: Tensor, size: int) -> Tensor:
    """For each of `size` numbers the index at which it is in `places`, of those that are `real`."""
    out = torch.zeros(size, dtype=torch.long, device=places.device)
    out[places[real]] = real.nonzero()[:, 0]
    return out


def _turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    """`rotate` in one buffer, or the reverse; of all heads (N, H, D) with cos and sin (N, 1, D), or as in `rotate`."""
    half, sign = x.shape[-1] // 2, -1 if back else 1
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out


class _SharedAttention(torch.autograd.Function):
    """Rotary positions and causal attention of a `Shared` layout by plain products, with its gradient; by autograd it
    keeps more and sums gradients of halves and views one by one: 4 % of a whole training step."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Shared, rope: int) -> Tensor:
        turns = layout.turn_queries[rope], layout.turn_keys[rope]
        D = turns[0][0].shape[-1]
        q, k = (_turn(x.view(layout.tokens, -1, D), *turn) for x, turn in zip((q, k), turns, strict=True))
        H, K = q.shape[1], k.shape[1]
        queries = q.view(-1, D).index_select(0, layout.of_queries)
        mixed = torch.empty_like(queries)
        blocks = zip(torch.split(queries, layout.block_sizes), torch.split(mixed, layout.block_sizes), strict=True)
        saved: list[Tensor] = []
        for rows in layout.rows:
            keys, values = (x.view(-1, D).index_select(0, rows.of_keys).view(rows.count * K, -1, D) for x in (k, v))
            saved += [keys, values]
            for block in query_blocks(rows.length):
                of_block, to = next(blocks)
                size, end = block.stop - block.start, rows.before + block.stop
                # The query heads of one key head are stacked: one product for all of them.
                scores = torch.bmm(of_block.view(len(keys), -1, D), keys[:, :end].transpose(1, 2))
                scores.view(-1, size, end)[..., -size:].add_(layout.bias[:size, :size])
                weights = torch.softmax(scores, -1)
                torch.bmm(weights, values[:, :end], out=to.view(len(keys), -1, D))
                saved.append(weights)
        ctx.save_for_backward(queries, *saved)
        ctx.layout, ctx.turns = layout, turns
        return mixed.index_select(0, layout.from_queries).view(1, -1, H * D)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, *saved = ctx.saved_tensors
        layout: Shared = ctx.layout
        D, P = queries.shape[-1], layout.prefix
        to_mixed = grads[0].reshape(-1, D).index_select(0, layout.of_queries).index_fill_(0, layout.padding, 0)
        to_queries = torch.empty_like(queries)
        blocks = list(zip(*(torch.split(x, layout.block_sizes) for x in (queries, to_mixed, to_queries)), strict=True))
        of_prefix = [queries.new_zeros(()), queries.new_zeros(())]  # what the rests ask of its keys and values
        of_tokens: tuple[list[Tensor], list[Tensor]] = ([], [])
        for rows in reversed(layout.rows):
            places = query_blocks(rows.length)
            keys, values, *of_blocks = saved[-2 - len(places) :]
            del saved[-2 - len(places) :]
            to_keys = to_values = torch.empty(0)
            for block in reversed(places):  # the last one reaches all keys
                end, weights = rows.before + block.stop, of_blocks.pop()
                of_block, above, to = (x.view(len(keys), -1, D) for x in blocks.pop())
                to_weights = torch.bmm(above, values[:, :end].transpose(1, 2))
                to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
                torch.bmm(to_scores, keys[:, :end], out=to)
                parts = torch.bmm(to_scores.transpose(1, 2), of_block), torch.bmm(weights.transpose(1, 2), above)
                if block.stop == rows.length:
                    to_keys, to_values = parts
                else:
                    to_keys[:, :end] += parts[0]
                    to_values[:, :end] += parts[1]
            if P and not rows.before:  # the prefix comes last
                to_keys, to_values = to_keys + of_prefix[0], to_values + of_prefix[1]
            for i, grad in enumerate((to_keys, to_values)):
                of_tokens[i].append(grad.view(-1, D).index_select(0, rows.from_keys))
                if rows.before:
                    of_prefix[i] = of_prefix[i] + grad.view(rows.count, -1, *grad.shape[1:])[:, :, :P].sum(0)
        grad_q = to_queries.index_select(0, layout.from_queries).view(layout.tokens, -1, D)
        grad_k, grad_v = (torch.cat(parts[::-1]).view(layout.tokens, -1, D) for parts in of_tokens)
        (cos_q, sin_q), (cos_k, sin_k) = ctx.turns
        grad_q, grad_k = _turn(grad_q, cos_q, sin_q, back=True), _turn(grad_k, cos_k, sin_k, back=True)
        return *(x.flatten(1)[None] for x in (grad_q, grad_k, grad_v)), None, None


def rotate(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions; halves are paired as in Transformers (cos, sin: B or 1, 1, T, D)."""
    return _Rotation.apply(x_BHTD, cos, sin)  # type: ignore[no-untyped-call,no-any-return]


class _Rotation(torch.autograd.Function):
    """`_turn`, whose gradient is the reverse turn: half of the passes over memory that autograd's would take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, sin, back=True), None, None


@dataclass(frozen=True)
class ForwardPass:
    """What all layers of a forward pass share."""

    ropes: Sequence[tuple[Tensor, Tensor]]  # cosines and sines of each kind of positions
    bias: Tensor | None = None  # added to the scores of attention; None leaves causality to SDPA
    near: Tensor | None = None  # the same in layers with a window, where rows are longer than that
    cache: KeyValues | None = None  # extended by the new tokens
    layout: Shared | Packed | Documents | None = None  # of the rows, where they are not padded
    seen: int = 0  # tokens in the cache once it is extended, where no bias hides the rest of its buffers

    def to(self, device: torch.device) -> ForwardPass:
        """The same on another card."""
        layout = self.layout
        if isinstance(layout, Packed):
            layout = replace(layout, places=layout.places.to(device))
        elif isinstance(layout, Documents):
            layout = layout.to(device)
        bias, near = (None if tensor is None else tensor.to(device) for tensor in (self.bias, self.near))
        ropes = [(cos.to(device), sin.to(device)) for cos, sin in self.ropes]
        return replace(self, ropes=ropes, bias=bias, near=near, layout=layout)


def _picked(x_BTC: Tensor, indices: Tensor | None) -> Tensor:
    """Some of all tokens (1, N, C); without indices all of them, as they are."""
    return x_BTC if indices is None else x_BTC.reshape(1, -1, x_BTC.shape[-1]).index_select(1, indices)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_size, self.scale = layer, config.head_size, config.score_scale
        self.window = config.windows[layer] if config.windows else 0
        self.rope = config.ropes.index(config.rope_of(layer))
        self.widths = [n * config.head_size for n in (config.heads, config.key_heads, config.key_heads)]
        C, bias = config.hidden_size, config.qkv_bias
        if config.family.fused:
            self.qkv_proj = nn.Linear(C, sum(self.widths), bias=bias)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(C, width, bias=bias) for width in self.widths)
        self.o_proj = nn.Linear(self.widths[0], C, bias=config.o_bias)
        self.q_norm = RmsNorm(config.head_size, config) if config.family.qk_norm else None
        self.k_norm = RmsNorm(config.head_size, config) if config.family.qk_norm else None

    def _projected(self, x_BTC: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values before they get their positions (B, T, heads * D)."""
        if hasattr(self, "qkv_proj"):
            q, k, v = (x.contiguous() for x in torch.split(self.qkv_proj(x_BTC), self.widths, -1))
        else:
            q, k, v = side_by_side((self.q_proj, self.k_proj, self.v_proj), x_BTC)
        if self.q_norm is not None and self.k_norm is not None:
            heads = *x_BTC.shape[:-1], -1, self.head_size
            q, k = self.q_norm(q.view(heads)).flatten(-2), self.k_norm(k.view(heads)).flatten(-2)
        return (q if self.scale == 1 else q * self.scale), k, v

    def forward(self, x_BTC: Tensor, now: ForwardPass, indices: Tensor | None) -> Tensor:
        layout = now.layout
        q, k, v = self._projected(x_BTC)
        if isinstance(layout, Shared):
            shared: Tensor = _SharedAttention.apply(q, k, v, layout, self.rope)  # type: ignore[no-untyped-call]
            return self.o_proj(_picked(shared, indices))  # type: ignore[no-any-return]
        if isinstance(layout, Packed):
            q, k, v = layout.unpack(q), layout.unpack(k), layout.unpack(v)
        B, T, _ = q.shape
        q, k, v = (part.view(B, T, -1, self.head_size).transpose(1, 2) for part in (q, k, v))
        q, k = rotate(q, *now.ropes[self.rope]), rotate(k, *now.ropes[self.rope])
        if now.cache is not None:
            k, v = now.cache.extend(self.layer, k, v)
            if now.bias is None:
                k, v = k[:, :, : now.seen], v[:, :, : now.seen]
        bias = now.near if self.window and now.near is not None else now.bias
        out = layout.attend(q, k, v, self.window) if isinstance(layout, Documents) else attend(q, k, v, bias)
        mixed = layout.pack(out) if isinstance(layout, Packed) else out
        return self.o_proj(_picked(mixed, indices))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        C, width, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        if config.family.fused:
            self.gate_up_proj = nn.Linear(C, 2 * width, bias=bias)
        else:
            self.gate_proj, self.up_proj = nn.Linear(C, width, bias=bias), nn.Linear(C, width, bias=bias)
        self.down_proj = nn.Linear(width, C, bias=bias)
        self.gated: Any = _SwiGlu if config.family.activation == "silu" else _GeGlu

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "gate_up_proj"):
            gate, up = self.gate_up_proj(x).chunk(2, -1)
        else:
            gate, up = side_by_side((self.gate_proj, self.up_proj), x)
        return self.down_proj(self.gated.apply(gate, up))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """One transformer block."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config)
        self.mlp = FeedForward(config)
        self.four_norms = config.family.four_norms
        if self.four_norms:  # then the norm after attention is of its result, and not before the feed-forward layer
            self.pre_feedforward_layernorm = RmsNorm(config.hidden_size, config)
            self.post_feedforward_layernorm = RmsNorm(config.hidden_size, config)

    def forward(self, x: Tensor, now: ForwardPass, indices: Tensor | None = None) -> Tensor:
        mixed = self.self_attn(self.input_layernorm(x), now, indices)
        if self.four_norms:
            x = _picked(x, indices) + self.post_attention_layernorm(mixed)
            return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))  # type: ignore[no-any-return]
        x = _picked(x, indices) + mixed
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


READ_AT_ONCE = 2048  # tokens read at once into a cache: activations stay in the processor's cache, memory in bounds


class LlamaModel(nn.Module):
    """Embeddings, blocks and the last norm: ids in, hidden states out."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        # Given a weight, torch draws no random one: on the meta device alone that costs a second of imports.
        empty = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=empty)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm = RmsNorm(config.hidden_size, config)
        self._frequencies: list[Tensor] = []  # of each kind of positions, on the device
        self.cards: tuple[torch.device, ...] = ()  # of the layers, where they are on several

    def note_cards(self) -> None:
        """Take note of which card each layer is on."""
        self.cards = tuple(next(layer.parameters()).device for layer in self.layers)

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of tokens, as the first layer takes them."""
        x: Tensor = self.embed_tokens(ids)
        if not self.config.family.scaled_embedding:
            return x
        return x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype)  # rounded, as it was when it was trained

    def _biases(
        self, x: Tensor, new: int, mask: Tensor | None, cache: KeyValues | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What layers add to the scores of `new` tokens a row, and those with a window where rows are longer than that.

        None leaves causality to SDPA, and to all layers the same.
        """
        seen = new if cache is None else cache.length + new
        plain = mask is None and (cache is None or not backend(x.device).is_cpu)
        if plain and self.config.sees_all(seen):
            return None, None
        if mask is None:
            mask = causal_mask(new, seen - new, x.device)
        near = None if self.config.sees_all(seen) else last_keys(mask, self.config.window)
        longer = 0 if cache is None or plain else cache.capacity_for(new) - mask.shape[-1]
        bias = None if plain else self._bias(x, mask, longer)
        return bias, None if near is None else self._bias(x, near, longer)

    def _bias(self, x: Tensor, mask: Tensor, longer: int) -> Tensor:
        """What is added to scores, where the cache's buffers are so much longer than what they hold."""
        bias = bias_of(F.pad(mask, (0, longer), value=False) if longer else mask, x.dtype)
        groups = self.config.heads // self.config.key_heads
        new = mask.shape[-2]
        if not backend(x.device).is_cpu and groups > 1 and folds(new, self.config.key_heads, self.config.head_size):
            return bias.repeat(1, 1, groups, 1)  # once for all layers
        return bias

    def rope(self, positions_BT: Tensor, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Cosines and sines (B, 1, T, D) at these positions, of each kind; for `rotate` a sine's first half is
        negated."""
        if not self._frequencies or self._frequencies[0].device != positions_BT.device:
            kinds = self.config.ropes
            self._frequencies = [frequencies(self.config, kind).to(positions_BT.device) for kind in kinds]
        ropes = []
        for inverse in self._frequencies:
            angles = positions_BT[..., None].float() * inverse
            cos, sin = angles.cos(), angles.sin()
            ropes.append((torch.cat((cos, cos), -1)[:, None].to(dtype), torch.cat((-sin, sin), -1)[:, None].to(dtype)))
        return ropes

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValues | None = None,
        real_BT: Tensor | None = None,
    ) -> Tensor:
        rows, length = ids_BT.shape
        plain = positions_BT is None and mask is None and cache is None
        if plain and by_products(ids_BT, length) and self.config.sees_all(length):
            return self.after(0, [length] * rows, ids_BT.flatten()).view(rows, length, -1)
        if positions_BT is None:
            positions_BT = torch.arange(length, device=ids_BT.device)[None]
        if cache is None or not cache.keeps or rows * length <= READ_AT_ONCE:
            return self._read(ids_BT, positions_BT, mask, cache, real_BT)
        like, few = self.embed_tokens.weight, max(1, READ_AT_ONCE // length)
        cache.reserve(rows, length, like, (self.config.key_heads, self.config.head_size))
        parts = []
        for first in range(0, rows, few):
            some = slice(first, first + few)
            part, real = cache.select(some), None if real_BT is None else real_BT[some]
            # Padding on the left of all these rows is not even looked at; its place in the cache stays empty.
            skip = 0 if real is None or mask is None else int(real.any(0).long().argmax())
            part.lengths = [n + skip for n in part.lengths]
            positions = positions_BT.expand(rows, -1)[some, skip:]
            looks = None if mask is None else mask.expand(rows, -1, -1, -1)[some, :, skip:]
            with some_rows(some):
                read = self._read(ids_BT[some, skip:], positions, looks, part, None if real is None else real[:, skip:])
            parts.append(F.pad(read, (0, 0, skip, 0)))
        cache.lengths = part.lengths
        return torch.cat(parts)

    def after(self, prefix: int, lengths: Sequence[int], ids_N: Tensor, indices: Tensor | None = None) -> Tensor:
        """States (N, C) of short rows one behind the other, behind a beginning that they share (tokens: `lengths`,
        `prefix`); of all tokens or those at `indices`, for which alone the last layer computes."""
        c, x = self.config, self.embed(ids_N[None])
        ropes = self.rope(torch.arange(prefix + max(lengths), device=x.device)[None], x.dtype)
        turns = [(cos[0, 0], sin[0, 0]) for cos, sin in ropes]
        now = ForwardPass(ropes, layout=Shared(prefix, lengths, c.heads, c.key_heads, turns))
        if not is_mixed():
            return self._layers(x, now, indices)[0]
        if prefix or indices is not None:
            raise ValueError("rows with different adapters share no beginning")
        of_tokens = torch.tensor([row for row, n in enumerate(lengths) for _ in range(n)], device=x.device)
        with rows_of_tokens(of_tokens, len(lengths)):
            return self._layers(x, now)[0]

    def documents(self, lengths: Sequence[int], ids_N: Tensor, indices: Tensor | None = None) -> Tensor:
        """States (N, C) of rows one behind the other that share nothing, see `Documents`; `indices` as in `after`."""
        x = self.embed(ids_N[None])
        layout = Documents(lengths, x.device)
        return self._layers(x, ForwardPass(self.rope(layout.positions, x.dtype), layout=layout), indices)[0]

    def _read(
        self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor | None, cache: KeyValues | None, real_BT: Tensor | None
    ) -> Tensor:
        """`forward` of padded rows, all at once."""
        least = 1
        if is_batch_invariant():
            narrowest = self.config.hidden_size * self.config.key_heads * self.config.head_size
            least = max(LEAST_ROWS, least_size(narrowest))
            real_BT = torch.ones_like(ids_BT, dtype=torch.bool) if real_BT is None else real_BT
        packed = None if real_BT is None else Packed.of(real_BT, least)
        x = self.embed(ids_BT)
        new = ids_BT.shape[1]
        seen = new if cache is None else cache.length + new
        bias, near = self._biases(x, new, mask, cache)
        now = ForwardPass(self.rope(positions_BT, x.dtype), bias, near, cache, packed, seen)
        if not is_mixed():
            return self._packed(x, now)
        rows, length = ids_BT.shape
        of_tokens = torch.arange(rows, device=x.device).repeat_interleave(length)
        with rows_of_tokens(of_tokens if packed is None else of_tokens[packed.places], rows):
            return self._packed(x, now)

    def _packed(self, x: Tensor, now: ForwardPass) -> Tensor:
        if not isinstance(now.layout, Packed):
            return self._layers(x, now)
        return now.layout.unpack(self._layers(now.layout.pack(x), now))

    def _layers(self, x: Tensor, now: ForwardPass, indices: Tensor | None = None) -> Tensor:
        if self.cards:
            return self._layers_of_cards(x, now, indices)
        # Compiled layers know the attached adapter alone: torch's plain call goes around what is compiled.
        plain = assignment() is not None
        calls: list[Callable[..., Tensor]] = [layer._call_impl if plain else layer for layer in self.layers]
        *below, last = calls
        for layer in below:
            if not is_batch_invariant():  # another number of threads may sum in another order
                adapt_threads()
            x = layer(x, now)
        x = last(x, now, indices)
        return self.norm(x)  # type: ignore[no-any-return]

    def _layers_of_cards(self, x: Tensor, now: ForwardPass, indices: Tensor | None) -> Tensor:
        """`_layers` of a model on several cards: states go from one to the next, and at the end back to the first."""
        first, last = x.device, self.layers[-1]
        for card, run in itertools.groupby(zip(self.layers, self.cards, strict=True), key=lambda pair: pair[1]):
            x, now = x.to(card), now.to(card)
            with tokens_on(card):
                for layer, _ in run:
                    x = layer(x, now, indices.to(card)) if layer is last and indices is not None else layer(x, now)
        return self.norm(x.to(first))  # type: ignore[no-any-return]


class Llama(nn.Module):
    """A decoder of one of the families whose vocabulary projection is a separate step."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        decoder = LlamaModel(config)
        self.model = nn.ModuleDict({config.part: decoder}) if config.part else decoder  # the names are Transformers'
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie()

    @property
    def decoder(self) -> LlamaModel:
        """All but the vocabulary projection."""
        return self.model[self.config.part] if self.config.part else self.model  # type: ignore[index,return-value]

    def tie(self) -> None:
        """Make the vocabulary projection the embedding, where the model has one for both."""
        if self.config.tied:
            self.lm_head.weight = self.decoder.embed_tokens.weight

    def new_cache(self) -> KeyValues:
        """An empty cache."""
        return KeyValues(self.config.layers, self.lm_head.weight.device, self.decoder.cards)

    def hidden(self, *inputs: Any, **keywords: Any) -> Tensor:
        """Hidden states (B, T, C) after the last norm; arguments as of `Model.hidden`."""
        return self.decoder(*inputs, **keywords)  # type: ignore[no-any-return]

    def hidden_at(self, picks_BT: Tensor, prefix_P: Tensor, ids_BT: Tensor, lengths: Sequence[int]) -> Tensor:
        """Hidden states (N, C) at some places of rows that all begin with the same ids, which are computed once. Equal
        to `hidden` of the joined rows at these places; the gradient is too. Arguments as of `Model.hidden_at`."""
        P, T = len(prefix_P), ids_BT.shape[1]
        real_BT = torch.arange(T, device=ids_BT.device) < torch.tensor(lengths, device=ids_BT.device)[:, None]
        indices = P + picks_BT[real_BT].nonzero()[:, 0]
        return self.decoder.after(P, lengths, torch.cat((prefix_P, ids_BT[real_BT])), indices)

    def hidden_of_rows(self, indices_N: Tensor | None, ids_N: Tensor, lengths: Sequence[int]) -> Tensor:
        """Hidden states (N, C) at some places of rows one behind the other, see `LlamaModel.documents`."""
        return self.decoder.documents(lengths, ids_N, indices_N)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary for hidden states (..., C)."""
        return self.lm_head(hidden)  # type: ignore[no-any-return]
