"""Divergences and their gradients equal an independent computation over the whole vocabulary, TRL's and torchtune's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import teacher_values
import torch
from torch import Tensor

from tuneloop.training.config import Divergence
from tuneloop.training.distil import of_logits, of_top
from tuneloop.training.teachers import TopProbabilities, top_of

KINDS = get_args(Divergence)
VALUES = json.loads(Path(teacher_values.FILE).read_text())


def expected(kind: str, mix: float, student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """By the definitions, in double precision, with autograd's gradient."""
    z = student.double().requires_grad_()
    p, q = (torch.softmax(item / temperature, -1) for item in (teacher.double(), z))

    def kl(x: Tensor, y: Tensor) -> Tensor:
        return (x * (x / y).log()).sum(-1)

    values = {
        "forward": lambda: kl(p, q),
        "reverse": lambda: kl(q, p),
        "skewed": lambda: kl(p, mix * p + (1 - mix) * q),
        "skewed-reverse": lambda: kl(q, mix * q + (1 - mix) * p),
        "jensen-shannon": lambda: mix * kl(p, mix * p + (1 - mix) * q) + (1 - mix) * kl(q, mix * p + (1 - mix) * q),
    }
    values["universal"] = lambda: (p.sort(-1).values - q.sort(-1).values).abs().sum(-1)
    value = values[kind]()
    (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_equal_the_definition(kind: Any, temperature: float) -> None:
    student, teacher = teacher_values.logits()
    before = student.clone(), teacher.clone()
    value, gradient = of_logits(kind, 0.3, student, teacher, temperature)
    wanted, of_wanted = expected(kind, 0.3, student, teacher, temperature)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient.double(), of_wanted, rtol=1e-4, atol=1e-6)
    assert torch.equal(student, before[0]) and torch.equal(teacher, before[1])


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_tokens_stored_it_is_that_of_the_whole_vocabulary(kind: Any) -> None:
    student, teacher = teacher_values.logits()
    ids, logp, log_tail = top_of(teacher, teacher.shape[1] - 1, 2.0)
    value, gradient = of_top(kind, 0.3, student, TopProbabilities(ids, logp.exp(), log_tail.exp()), 2.0)
    wanted, of_wanted = expected(kind, 0.3, student, teacher, 2.0)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient.double(), of_wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "universal"])
def test_with_few_tokens_it_is_that_of_these_and_one_outcome_for_the_rest(kind: Any) -> None:
    student, teacher = teacher_values.logits()
    ids, logp, log_tail = top_of(teacher, 5, 1.0)
    value, gradient = of_top(kind, 0.3, student, TopProbabilities(ids, logp.exp(), log_tail.exp()), 1.0)

    def merged(logits: Tensor) -> Tensor:
        """Logits of the outcomes; their softmax is what the tokens' softmax gives the outcomes."""
        rest = torch.full_like(logits, -torch.inf).copy_(logits).scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat((logits.gather(1, ids), rest), 1)

    wanted, _ = expected(kind, 0.3, merged(student), merged(teacher), 1.0)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-5)
    assert (value <= of_logits(kind, 0.3, student, teacher, 1.0)[0] + 1e-5).all()
    step = student - 1e-2 * gradient  # downhill, to first order by the gradient's square
    lower, _ = of_top(kind, 0.3, step, TopProbabilities(ids, logp.exp(), log_tail.exp()), 1.0)
    fall = 1e-2 * gradient.square().sum(-1)
    torch.testing.assert_close(value - lower, fall, rtol=0.05, atol=1e-5)


@pytest.mark.parametrize("case", VALUES["trl"], ids=lambda case: f"{case['beta']}-{case['temperature']}")
def test_values_are_those_of_trl(case: dict[str, float]) -> None:
    kind: Any = {0.0: "forward", 1.0: "reverse"}.get(case["beta"], "jensen-shannon")
    check(*of_logits(kind, case["beta"], *teacher_values.logits(), case["temperature"]), case)


@pytest.mark.parametrize("case", VALUES["universal"], ids=lambda case: str(case["temperature"]))
def test_the_universal_value_is_that_of_trl(case: dict[str, float]) -> None:
    student, teacher = teacher_values.logits()[0], teacher_values.of_few_tokens()
    value, gradient = of_logits("universal", 0.5, student, teacher, case["temperature"])
    assert float(value.mean()) == pytest.approx(case["loss"], rel=1e-4)
    assert float(gradient.norm() / len(value)) == pytest.approx(case["gradient"], rel=1e-4)


def test_the_universal_distance_of_few_stored_tokens_is_that_of_sorted_ones_and_the_rest() -> None:
    student, teacher = teacher_values.logits()[0], teacher_values.of_few_tokens()
    ids, logp, log_tail = top_of(teacher.clone(), 5, 1.0)
    top = TopProbabilities(ids, logp.exp(), log_tail.exp())
    value, gradient = of_top("universal", 0.5, student, top, 1.0)
    p, q = (torch.softmax(item, -1).sort(-1, descending=True).values for item in (teacher, student))
    rest = (p[:, 5:].sum(-1) - q[:, 5:].sum(-1)).abs()
    torch.testing.assert_close(value, (p[:, :5] - q[:, :5]).abs().sum(-1) + rest)
    fall = 1e-3 * gradient.square().sum(-1)
    lower, _ = of_top("universal", 0.5, student - 1e-3 * gradient, top, 1.0)
    torch.testing.assert_close(value - lower, fall, rtol=0.05, atol=1e-5)


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_values_are_those_of_torchtune(kind: Any) -> None:
    student, teacher = teacher_values.logits()
    value, gradient = of_logits(kind, 0.5, student, teacher, 1.0)
    if kind == "forward":  # it leaves out the teacher's own entropy, which no student changes
        p = torch.softmax(teacher, -1)
        value = value - (p * p.log()).sum(-1)
    check(value, gradient, VALUES["torchtune"][kind])


def check(value: Tensor, gradient: Tensor, wanted: dict[str, float]) -> None:
    learned = teacher_values.labels() >= 0
    assert float(value[learned].mean()) == pytest.approx(wanted["loss"], rel=1e-4)
    assert float(gradient[learned].norm() / learned.sum()) == pytest.approx(wanted["gradient"], rel=1e-4)
