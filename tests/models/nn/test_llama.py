"""Our Llama computes what Transformers' does, in whatever order it does it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import ours_of
from hypothesis import given
from hypothesis import strategies as st
from tiny import VOCABULARY

from tuneloop.models.load import load_model
from tuneloop.models.nn.llama import (
    Llama,
    LlamaConfig,
    Shared,
    _RmsNorm,
    _SharedAttention,
    _SwiGlu,
    attend,
    bias_of,
    group_by_length,
)
from tuneloop.planning.at_hand import ModelShape

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,  # small, so that every branch of the rescaling is taken
}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


def pair(tmp_path: Path, rope: dict[str, Any] = PLAIN, **other: Any) -> tuple[Llama, Any]:
    """The same random model, ours and Transformers', read from the same files."""
    settings = {
        "vocab_size": 211, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 4096, "rope_parameters": rope,
        "tie_word_embeddings": False, "initializer_range": 0.3, **other,
    }  # fmt: skip
    torch.manual_seed(1)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    for parameter in theirs.parameters():  # norms of 1 would hide a forgotten weight
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    theirs.save_pretrained(tmp_path)
    return ours_of(tmp_path), theirs


def ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 211, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("rope", "other"),
    [
        (PLAIN, {}),
        (LLAMA3, {}),
        ({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, {}),
        (LLAMA3, {"num_key_value_heads": 4}),
        (LLAMA3, {"num_key_value_heads": 1, "tie_word_embeddings": True}),
        (PLAIN, {"head_dim": 16, "rms_norm_eps": 1e-3}),
    ],
    ids=["plain", "llama3", "linear", "no-groups", "one-key-head-tied", "odd-head-size"],
)
@torch.no_grad()
def test_hidden_states_and_logits_equal_those_of_transformers(tmp_path: Path, rope: Any, other: Any) -> None:
    ours, theirs = pair(tmp_path, rope, **other)
    x = ids(3, 90)
    expected = theirs(x, output_hidden_states=True)
    hidden = ours.hidden(x)
    torch.testing.assert_close(hidden, expected.hidden_states[-1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.logits(hidden), expected.logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_long_rows_take_the_other_kernel_and_give_the_same(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path, LLAMA3)
    x = ids(1, 800)
    torch.testing.assert_close(ours.logits(ours.hidden(x)), theirs(x).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("longest", [40, 720])
@torch.no_grad()
def test_left_padding_changes_nothing(tmp_path: Path, longest: int) -> None:
    ours, _ = pair(tmp_path, LLAMA3)
    lengths = [longest, longest - 7, 3]
    rows = [ids(1, length, seed=length)[0] for length in lengths]
    padded = torch.zeros(3, longest, dtype=torch.long)
    positions = torch.zeros(3, longest, dtype=torch.long)
    real = torch.zeros(3, longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        padded[i, longest - len(row) :] = row
        positions[i, longest - len(row) :] = torch.arange(len(row))
        real[i, longest - len(row) :] = True
    mask = torch.ones(longest, longest, dtype=torch.bool).tril() & real[:, None] | torch.eye(longest, dtype=torch.bool)
    hidden = ours.hidden(padded, positions, mask[:, None])
    for i, row in enumerate(rows):
        torch.testing.assert_close(hidden[i, longest - len(row) :], ours.hidden(row[None])[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("at_once", [1, 60, 4096])
@torch.no_grad()
def test_padding_that_is_not_computed_and_rows_read_in_parts_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    ours, _ = pair(tmp_path, LLAMA3)
    monkeypatch.setattr("tuneloop.models.nn.llama.READ_AT_ONCE", at_once)
    before, x, after = ids(1, 9, seed=3), ids(5, 30), ids(5, 2, seed=5)
    lengths = torch.tensor([30, 22, 14, 3, 1])
    real = torch.arange(30) >= 30 - lengths[:, None]
    positions = 9 + (torch.arange(30) - (30 - lengths[:, None])).clamp(min=0)
    seen = torch.cat((torch.ones(5, 9, dtype=torch.bool), real), 1)[:, None, None]
    mask = torch.ones(1, 1, 30, 39, dtype=torch.bool).tril(9) & seen
    cache = ours.new_cache()
    ours.hidden(before, cache=cache)
    cache = cache.select(torch.zeros(5, dtype=torch.long))
    read = ours.hidden(x, positions, mask, cache, real)
    behind = torch.cat((seen.expand(-1, -1, 2, -1), torch.ones(5, 1, 2, 2, dtype=torch.bool).tril()), -1)
    then = ours.hidden(after, 9 + lengths[:, None] + torch.arange(2), behind, cache)
    assert not read[~real].any()
    for i, length in enumerate(lengths.tolist()):
        alone = ours.hidden(torch.cat((before[0], x[i, 30 - length :], after[i]))[None])[0]
        torch.testing.assert_close(read[i, 30 - length :], alone[9:-2], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(then[i], alone[-2:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_reading_step_by_step_through_the_cache_equals_reading_at_once(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path, LLAMA3)
    x = ids(2, 150)
    whole = ours.hidden(x)
    cache = ours.new_cache()
    parts = [ours.hidden(x[:, :100], cache=cache)]
    for t in range(100, 150):  # crosses the cache's growth steps
        mask = torch.ones(1, 1, 1, t + 1, dtype=torch.bool)
        parts.append(ours.hidden(x[:, t : t + 1], torch.tensor([[t]]), mask, cache))
    assert cache.length == 150
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_selected_cache_is_a_copy_of_those_rows(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path)
    x = ids(3, 20)
    cache = ours.new_cache()
    ours.hidden(x[:, :19], cache=cache)
    mask = torch.ones(1, 1, 1, 20, dtype=torch.bool)
    path = torch.tensor([[19]])
    picked = torch.tensor([2, 0, 2])
    chosen = ours.hidden(x[picked, 19:], path, mask, cache.select(picked))
    assert cache.length == 19
    torch.testing.assert_close(chosen[:, 0], ours.hidden(x)[picked, -1], atol=1e-4, rtol=1e-4)


def grads_of(ours: Llama, out: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    used = [p for name, p in ours.named_parameters() if "lm_head" not in name]
    return list(torch.autograd.grad((out * weights).sum(), used))


@pytest.mark.parametrize("prefix", [1, 33, 710])
def test_rows_behind_a_shared_beginning_equal_the_joined_rows_gradient_included(tmp_path: Path, prefix: int) -> None:
    ours, _ = pair(tmp_path, LLAMA3)
    shared, rests = ids(1, prefix, seed=5)[0], ids(3, 17)
    joined = torch.cat((shared.expand(3, -1), rests), 1)
    wanted = torch.ones_like(rests, dtype=torch.bool)
    expected, got = ours.hidden(joined)[:, prefix:].flatten(0, 1), ours.hidden_at(wanted, shared, rests, [17] * 3)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    for ours_grad, plain_grad in zip(grads_of(ours, got), grads_of(ours, expected), strict=True):
        torch.testing.assert_close(ours_grad, plain_grad, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("prefix", [0, 9])
def test_rows_of_unequal_length_are_computed_without_their_padding_and_stay_the_same(
    tmp_path: Path, prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = pair(tmp_path, LLAMA3)
    shared, rests, lengths = ids(1, max(prefix, 1), seed=5)[0][:prefix], ids(3, 17), [5, 17, 1]
    real = torch.arange(17) < torch.tensor(lengths)[:, None]
    seen = []
    monkeypatch.setattr(
        ours.model.layers[0].mlp,
        "forward",
        lambda x, f=ours.model.layers[0].mlp.forward: seen.append(x.shape[1]) or f(x),
    )
    expected = ours.hidden_at(torch.ones_like(real), shared, rests, [17] * 3)[real.flatten()]
    got = ours.hidden_at(real, shared, rests, lengths)
    assert seen == [prefix + 3 * 17, prefix + sum(lengths)]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    for ours_grad, padded_grad in zip(grads_of(ours, got), grads_of(ours, expected), strict=True):
        torch.testing.assert_close(ours_grad, padded_grad, atol=2e-3, rtol=1e-3)


def test_the_last_layer_computes_only_what_is_wanted_of_it_and_the_gradient_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = pair(tmp_path, LLAMA3)
    shared, rests, lengths = ids(1, 9, seed=5)[0], ids(3, 17), [5, 17, 1]
    real = torch.arange(17) < torch.tensor(lengths)[:, None]
    wanted = real & (torch.arange(17) % 3 == 0)
    mlp, seen = ours.model.layers[-1].mlp, []
    monkeypatch.setattr(mlp, "forward", lambda x, f=mlp.forward: seen.append(x.shape[1]) or f(x))
    expected = ours.hidden_at(real, shared, rests, lengths)[wanted[real]]
    got = ours.hidden_at(wanted, shared, rests, lengths)
    assert seen == [sum(lengths), int(wanted.sum())]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for some_grad, all_grad in zip(grads_of(ours, got), grads_of(ours, expected), strict=True):
        torch.testing.assert_close(some_grad, all_grad, atol=1e-4, rtol=1e-4)


def test_gradients_equal_those_of_transformers(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path, LLAMA3)
    x = ids(2, 30)
    expected = dict(theirs.named_parameters())
    torch.nn.functional.cross_entropy(theirs(x).logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
    logits = ours.logits(ours.hidden(x))
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-3, msg=name)


def test_the_hand_written_gradient_of_swiglu_is_right() -> None:
    gate, up = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(_SwiGlu.apply, (gate, up))


@pytest.mark.parametrize("learn_weight", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_hand_written_norm_and_its_gradient_equal_plain_operations(dtype: torch.dtype, learn_weight: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 16).to(dtype).requires_grad_()
    weight = torch.rand(16).to(dtype).requires_grad_(learn_weight)
    grad = torch.randn(3, 5, 16).to(dtype)
    before = x.detach().clone()

    def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return weight.float() * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5))

    wanted = [x, weight] if learn_weight else [x]
    out = _RmsNorm.apply(x, weight, 1e-5, 0.0)
    ours = torch.autograd.grad(out, wanted, grad)
    expected = torch.autograd.grad(plain(x, weight), wanted, grad.float())
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 4e-2, "rtol": 3e-2}
    assert torch.equal(x.detach(), before), "the input was overwritten"
    torch.testing.assert_close(out.float(), plain(x, weight), **tolerance)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.float(), b.float(), **tolerance)


def test_attention_with_grouped_heads_equals_attention_with_repeated_keys() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 9, 8), torch.randn(2, 2, 13, 8), torch.randn(2, 2, 13, 8)
    mask = torch.rand(2, 1, 9, 13) > 0.4
    mask[..., 0] = True
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), attn_mask=mask
    )
    torch.testing.assert_close(
        attend(q, k, v, bias_of(mask, q.dtype)), expected.transpose(1, 2).reshape(2, 9, 48), atol=1e-5, rtol=1e-5
    )


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(0, 100))
def test_rows_are_put_together_where_they_cost_least(lengths: list[int], before: int) -> None:
    def of_group(rows: int, longest: int) -> int:
        return rows * longest * (before + longest) + 5000

    def cost(groups: list[list[int]]) -> int:
        return sum(of_group(len(g), max(g)) for g in groups)

    def divisions(rows: list[int]) -> Iterator[list[list[int]]]:
        for i in range(1, len(rows)):
            yield from ([rows[:i], *rest] for rest in divisions(rows[i:]))
        yield [rows]

    groups = group_by_length(lengths, of_group)
    assert [length for group in groups for length in group] == lengths
    assert cost(groups) == min(map(cost, divisions(lengths)))


def test_no_rest_of_a_shared_layout_sees_another() -> None:
    torch.manual_seed(0)
    angle = torch.arange(9.0)[:, None] * torch.rand(1, 8)
    layout = Shared(4, [5, 5, 5], 4, 2, [(angle.cos(), angle.sin())])
    q, k, v = torch.randn(1, 19, 4 * 8), torch.randn(1, 19, 2 * 8), torch.randn(1, 19, 2 * 8)
    before = _SharedAttention.apply(q, k, v, layout, 0)
    k[:, 9:14] += torch.randn(5, 16)  # the second rest
    after = _SharedAttention.apply(q, k, v, layout, 0)
    assert torch.equal(before[:, :9], after[:, :9]) and torch.equal(before[:, 14:], after[:, 14:])
    assert not torch.allclose(before[:, 9:14], after[:, 9:14])


@pytest.mark.parametrize(("prefix", "block"), [(0, 128), (3, 128), (0, 1), (4, 2)])
@pytest.mark.parametrize("lengths", [[3, 3], [3, 1, 2]])
def test_the_gradient_of_shared_attention_is_that_of_its_values(
    prefix: int, block: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.models.nn.llama.QUERY_BLOCK", block)
    torch.manual_seed(0)
    tokens = prefix + sum(lengths)
    shapes = [(1, tokens, heads * 4) for heads in (4, 2, 2)]
    q, k, v = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    angle = torch.arange(prefix + 3.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.3, 1.0, 0.3])
    sign = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    layout = Shared(prefix, lengths, 4, 2, [(angle.cos(), angle.sin() * sign)])

    def attention(*products: torch.Tensor) -> torch.Tensor:
        return _SharedAttention.apply(*products, layout, 0)

    assert torch.autograd.gradcheck(attention, (q, k, v))


def test_what_it_does_not_compute_is_left_to_transformers() -> None:
    llama: dict[str, Any] = {"model_type": "llama"}
    assert LlamaConfig.supports(llama)
    for odd in (
        {**llama, "hidden_act": "gelu"},
        {**llama, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {**llama, "rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
    ):
        assert not LlamaConfig.supports(odd), odd


def test_configurations_of_transformers_4_are_read_too() -> None:
    old = {
        "model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "rope_theta": 500000.0,
        "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"},
    }  # fmt: skip
    config = LlamaConfig.from_json(old)
    assert (config.rope_theta, config.rope_scaling["factor"], config.key_heads) == (500000.0, 8.0, 2)


def test_the_real_architecture_loads_from_a_folder(tiny_llama: Path) -> None:
    model = load_model(str(tiny_llama), dtype="float32")
    assert model.is_own
    assert model.head is model.net.model.embed_tokens.weight
    assert (
        sum(p.numel() for p in model.net.parameters()) == ModelShape.from_config(model.config, "config.json").parameters
    )
    theirs = transformers.LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    x = torch.randint(0, VOCABULARY, (2, 50))
    with torch.no_grad():
        torch.testing.assert_close(model.net.logits(model.hidden(x)), theirs(x).logits, atol=1e-4, rtol=1e-4)


def test_attention_by_blocks_equals_the_whole_behind_a_prefix_and_in_a_longer_buffer() -> None:
    torch.manual_seed(0)
    T, before, unused = 300, 70, 20
    S = before + T + unused
    q, k, v = (torch.randn(2, heads, length, 8, requires_grad=True) for heads, length in ((6, T), (2, S), (2, S)))
    mask = torch.ones(2, 1, T, S, dtype=torch.bool).tril(before)
    mask[1, :, 40:, :30] = False  # a row that does not see its first tokens
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), attn_mask=mask
    )
    found = attend(q, k, v, bias_of(mask, q.dtype))
    torch.testing.assert_close(found, expected.transpose(1, 2).reshape(2, T, 48), atol=1e-5, rtol=1e-5)
    grad = torch.randn_like(found)
    ours = torch.autograd.grad(found, (q, k, v), grad)
    theirs = torch.autograd.grad(expected.transpose(1, 2).reshape(2, T, 48), (q, k, v), grad)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
