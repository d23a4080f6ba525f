"""The Llama architecture, written for small batches on CPUs as much as for GPUs.

Module and parameter names are those of Transformers' `LlamaForCausalLM`, so that checkpoints load and
save unchanged and adapters keep their PEFT names. What differs is the arithmetic's order: heads that
share keys are computed together instead of repeating the keys, short rows use plain batched matrix
products (in bf16 on CPUs SDPA is slower below some 700 tokens), elementwise steps are fused by hand
with their gradients, and the vocabulary projection is left to the caller, who needs it for few positions.
Proven equal to Transformers in tests/models/test_llama.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Shape suffixes: B rows, T new tokens, S tokens attended to, H heads, K key heads, G = H / K, D head size, C hidden size.


@dataclass(frozen=True)
class LlamaConfig:
    """The numbers of a Llama model, read from a `config.json`."""

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

    @staticmethod
    def from_json(config: dict[str, Any]) -> LlamaConfig:
        """Read Transformers' `config.json`, of version 4 (`rope_scaling`) or 5 (`rope_parameters`)."""
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        return LlamaConfig(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            key_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            head_size=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            norm_eps=config.get("rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta") or config.get("rope_theta") or 10000.0,
            rope_scaling=dict(rope),
            tied=bool(config.get("tie_word_embeddings", False)),
            context=config.get("max_position_embeddings", 2048),
        )

    @staticmethod
    def supports(config: dict[str, Any]) -> bool:
        """Whether this module computes that model; others go through Transformers' own classes."""
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        return (
            config.get("model_type") == "llama"
            and not config.get("attention_bias")
            and not config.get("mlp_bias")
            and config.get("hidden_act", "silu") == "silu"
            and rope.get("rope_type", rope.get("type", "default")) in ("default", "llama3", "linear")
        )


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """Inverse frequencies (D / 2) of the rotary embedding.

    Source: Su et al. 2021 (arXiv 2104.09864); the `llama3` rescaling of long wavelengths as published with
    Llama 3.1: wavelengths above context/low_freq_factor are stretched, those below context/high_freq_factor
    kept, those between interpolated.
    """
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
    """Root-mean-square normalisation; keeps its input and one number a row for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True).add_(eps))
        ctx.save_for_backward(x, weight, scale)
        return wide.mul_(scale).to(x.dtype).mul_(weight) if wide is not x else (x * scale) * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (grad,) = grads
        x, weight, scale = ctx.saved_tensors
        normed = x.float() * scale
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad.float() * normed).flatten(0, -2).sum(0).to(weight.dtype)
        inner = grad.float() * weight.float()
        mean = (inner * normed).mean(-1, keepdim=True)
        return inner.sub_(normed.mul_(mean)).mul_(scale).to(x.dtype), grad_weight, None


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


class RmsNorm(nn.Module):
    """`LlamaRMSNorm`: x / rms(x) * weight, computed in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _RmsNorm.apply(x, self.weight, self.eps)
        return out


class KeyValues:
    """Keys and values of the tokens read so far, for each layer (B, K, S, D), in buffers that grow in steps."""

    STEP = 64

    def __init__(self, layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.lengths = [0] * layers

    @property
    def length(self) -> int:
        """Tokens held a row, padding included."""
        return self.lengths[0]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new tokens' keys and values and return all of them."""
        old, new = self.lengths[layer], self.lengths[layer] + keys.shape[2]
        for held, added in ((self.keys, keys), (self.values, values)):
            buffer = held[layer]
            if buffer is None or buffer.shape[2] < new:
                rows, heads, _, size = added.shape
                grown = added.new_empty(rows, heads, new + self.STEP, size)
                if buffer is not None:
                    grown[:, :, :old] = buffer[:, :, :old]
                held[layer] = buffer = grown
            buffer[:, :, old:new] = added
        self.lengths[layer] = new
        all_keys, all_values = self.keys[layer], self.values[layer]
        assert all_keys is not None and all_values is not None
        return all_keys[:, :, :new], all_values[:, :, :new]

    def select(self, rows: Tensor) -> KeyValues:
        """The same for some rows, or for rows repeated (B' indices); a copy."""
        chosen = KeyValues(len(self.keys))
        chosen.keys = [None if k is None else k[rows] for k in self.keys]
        chosen.values = [None if v is None else v[rows] for v in self.values]
        chosen.lengths = list(self.lengths)
        return chosen


def attend(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention with shared key heads (Ainslie et al. 2023, arXiv 2305.13245).

    Args:
        mask: True where a query may look (B or 1, 1, T, S); None: causal, T == S.

    Returns:
        Mixed values (B, T, H * D).
    """
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1], k_BKSD.shape[2]
    G = H // K
    if T > 700 or q_BHTD.is_cuda:
        out = F.scaled_dot_product_attention(
            q_BHTD, k_BKSD, v_BKSD, attn_mask=mask, is_causal=mask is None, enable_gqa=G > 1
        )
        return out.transpose(1, 2).reshape(B, T, H * D)
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q_BHTD.device).tril_()[None, None]
    # The G query heads of one key head stand one under the other: one product for all of them.
    scores = torch.matmul(q_BHTD.reshape(B, K, G * T, D) * (D**-0.5), k_BKSD.transpose(2, 3))
    scores = scores.view(B, K, G, T, S).masked_fill(~mask[:, :, None], float("-inf"))
    weights = torch.softmax(scores, -1)
    out = torch.matmul(weights.view(B, K, G * T, S), v_BKSD)
    return out.view(B, H, T, D).transpose(1, 2).reshape(B, T, H * D)


def rotate(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions; halves are paired as in Transformers (cos, sin: B or 1, 1, T, D)."""
    half = x_BHTD.shape[-1] // 2
    turned = torch.cat((x_BHTD[..., half:], x_BHTD[..., :half]), -1)
    return torch.addcmul(x_BHTD * cos, turned, sin)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.key_heads, self.head_size = layer, config.heads, config.key_heads, config.head_size
        self.q_proj = nn.Linear(config.hidden_size, config.heads * config.head_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.key_heads * config.head_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.key_heads * config.head_size, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_size, config.hidden_size, bias=False)

    def forward(
        self, x_BTC: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KeyValues | None
    ) -> Tensor:
        B, T, _ = x_BTC.shape
        q = self.q_proj(x_BTC).view(B, T, self.heads, self.head_size).transpose(1, 2)
        k = self.k_proj(x_BTC).view(B, T, self.key_heads, self.head_size).transpose(1, 2)
        v = self.v_proj(x_BTC).view(B, T, self.key_heads, self.head_size).transpose(1, 2)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        out: Tensor = self.o_proj(attend(q, k, v, mask))
        return out


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(_SwiGlu.apply(self.gate_proj(x), self.up_proj(x)))
        return out


class Layer(nn.Module):
    """One transformer block."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KeyValues | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class LlamaModel(nn.Module):
    """Embeddings, blocks and the last norm: ids in, hidden states out."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm = RmsNorm(config.hidden_size, config.norm_eps)

    def rope(self, positions_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, 1, T, D) at these positions; the sine's first half is negated for `rotate`."""
        angles = positions_BT[..., None].float() * rope_frequencies(self.config).to(positions_BT.device)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), -1)[:, None].to(dtype), torch.cat((-sin, sin), -1)[:, None].to(dtype)

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        if positions_BT is None:
            positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        x = self.embed_tokens(ids_BT)
        rope = self.rope(positions_BT, x.dtype)
        for layer in self.layers:
            x = layer(x, rope, mask, cache)
        out: Tensor = self.norm(x)
        return out


class Llama(nn.Module):
    """`LlamaForCausalLM` whose vocabulary projection is a step of its own."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def new_cache(self) -> KeyValues:
        """An empty cache."""
        return KeyValues(self.config.layers)

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """Hidden states (B, T, C) after the last norm.

        Args:
            ids_BT: token ids.
            positions_BT: position of each token; default 0, 1, 2 ...
            mask: True where a query may look (B or 1, 1, T, S); default causal.
            cache: extended in place by the new tokens.
        """
        out: Tensor = self.model(ids_BT, positions_BT, mask, cache)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary for hidden states (..., C)."""
        out: Tensor = self.lm_head(hidden)
        return out
