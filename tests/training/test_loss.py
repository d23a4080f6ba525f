"""The chunked loss is cross entropy, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tuneloop.training.loss import head_cross_entropy


def plain(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (F.cross_entropy(hidden.float() @ head.float().t(), targets, reduction="none") * weights).sum()


def case(dtype: torch.dtype, n: int = 37, learn_head: bool = True) -> list[torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(n, 16).to(dtype).requires_grad_()
    head = torch.randn(101, 16).to(dtype).requires_grad_(learn_head)
    return [hidden, head, torch.randint(0, 101, (n,)), torch.rand(n)]


@pytest.mark.parametrize("learn_head", [True, False])
@pytest.mark.parametrize("chunk", [1, 8, 37, 256])
def test_value_and_gradients_equal_cross_entropy_whatever_the_chunk(chunk: int, learn_head: bool) -> None:
    hidden, head, targets, weights = case(torch.float32, learn_head=learn_head)
    wanted = [hidden, head] if learn_head else [hidden]
    ours = head_cross_entropy(hidden, head, targets, weights, chunk)
    expected = plain(hidden, head, targets, weights)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(torch.autograd.grad(ours * 3, wanted), torch.autograd.grad(expected * 3, wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, head, targets, weights = case(torch.float32, learn_head=False)
    head_cross_entropy(hidden, head, targets, weights).backward()  # type: ignore[no-untyped-call]
    assert head.grad is None and hidden.grad is not None


def test_bf16_is_within_its_rounding() -> None:
    hidden, head, targets, weights = case(torch.bfloat16, learn_head=False)
    ours, expected = head_cross_entropy(hidden, head, targets, weights), plain(hidden, head, targets, weights)
    assert ours.item() == pytest.approx(expected.item(), rel=5e-3)
    (a,), (b,) = torch.autograd.grad(ours, [hidden]), torch.autograd.grad(expected, [hidden])
    assert float((a - b).float().norm() / b.float().norm()) < 2e-2


def test_without_a_gradient_it_is_only_the_value() -> None:
    hidden, head, targets, weights = case(torch.float32)
    with torch.no_grad():
        value = head_cross_entropy(hidden, head, targets, weights, 8)
    assert value.item() == pytest.approx(plain(hidden, head, targets, weights).item(), rel=1e-5)
    assert not value.requires_grad


def test_very_large_scores_do_not_overflow_and_certain_answers_cost_nothing() -> None:
    head = torch.eye(4) * 100
    hidden = torch.eye(4)[:2] * 10
    loss = head_cross_entropy(hidden, head, torch.tensor([0, 2]), torch.ones(2))
    assert float(loss) == pytest.approx(1000.0)
