"""How far a student's next-token probabilities are from a teacher's, and the gradient of that.

With p the teacher, q the student, and m a mix of both:

| name | value | source |
|---|---|---|
| forward | KL(p, q) | Hinton et al. 2015, arXiv 1503.02531 |
| reverse | KL(q, p) | Gu et al. 2023, arXiv 2306.08543 |
| skewed | KL(p, m), m = a p + (1 - a) q | Ko et al. 2024, arXiv 2402.03898 |
| skewed-reverse | KL(q, m), m = a q + (1 - a) p | the same |
| jensen-shannon | a KL(p, m) + (1 - a) KL(q, m), m = a p + (1 - a) q | Agarwal et al. 2023, arXiv 2306.13649 |
| universal | sum of abs(p_i - q_i), both sorted, whatever tokens they are of | Boizard et al. 2024, arXiv 2402.12030 |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tuneloop.training.config import Divergence

# Shape suffixes: N positions, V vocabulary, K tokens that are stored, M outcomes (V, or K and one for all others).

LEAST = 1e-9  # of a probability, where its logarithm is taken


@dataclass(frozen=True)
class TopProbabilities:
    """The likeliest tokens of a teacher at some positions."""

    ids_NK: Tensor
    p_NK: Tensor  # probabilities of the tokens `ids_NK`
    tail_N: Tensor  # probability of all other tokens together

    def part(self, which: slice) -> TopProbabilities:
        """Some of the positions."""
        return TopProbabilities(self.ids_NK[which], self.p_NK[which], self.tail_N[which])


def log_probabilities(logits_NV: Tensor, temperature: float) -> Tensor:
    """Log probabilities (fp32) of logits at a temperature."""
    return torch.log_softmax(logits_NV.float() / temperature if temperature != 1 else logits_NV.float(), -1)


def of_logits(
    kind: Divergence, mix: float, student_NV: Tensor, teacher_NV: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """A divergence over the whole vocabulary.

    Args:
        kind, mix: see the table above; `mix` is a.
        student_NV, teacher_NV: logits, of one vocabulary; with `universal` of any two.
        temperature: by which both are divided.

    Returns:
        The value at each position (N), and its gradient with respect to the student's logits (N, V), both fp32.
    """
    if kind == "universal":
        p_NV = torch.softmax(teacher_NV.float() / temperature, -1).sort(-1, descending=True).values
        return _of_sorted(student_NV, p_NV, None, temperature)
    log_p, log_q = (log_probabilities(each, temperature) for each in (teacher_NV, student_NV))
    q = log_q.exp()
    value_N, weighted_NV = _of_outcomes(kind, mix, log_p.exp(), log_p, q, log_q)
    return value_N, weighted_NV.sub_(q.mul_(weighted_NV.sum(-1, keepdim=True))).div_(temperature)


def of_top(
    kind: Divergence, mix: float, student_NV: Tensor, teacher: TopProbabilities, temperature: float
) -> tuple[Tensor, Tensor]:
    """`of_logits` over the teacher's likeliest tokens, at the same temperature, and one outcome for all others.

    It is at most the divergence over the whole vocabulary, and equal to it where the tail's tokens have the same shares
    in both models.
    """
    if kind == "universal":
        return _of_sorted(student_NV, teacher.p_NK.sort(-1, descending=True).values, teacher.tail_N, temperature)
    q_NV = torch.softmax(student_NV if temperature == 1 else student_NV / temperature, -1, dtype=torch.float32)
    q_top = q_NV.gather(1, teacher.ids_NK)
    q_NV.scatter_(1, teacher.ids_NK, 0.0)  # so that the tail is a sum, not a small difference from 1
    tail_N1 = q_NV.sum(-1, keepdim=True).clamp_(min=LEAST)
    q = torch.cat((q_top, tail_N1), 1)
    p = torch.cat((teacher.p_NK, teacher.tail_N[:, None]), 1)
    value_N, weighted_NM = _of_outcomes(kind, mix, p, p.clamp(min=LEAST).log(), q, q.clamp(min=LEAST).log())
    total_N1 = weighted_NM.sum(-1, keepdim=True)
    q_NV.mul_((weighted_NM[:, -1:] / tail_N1 - total_N1) / temperature)  # a token of the tail has its share of it
    q_NV.scatter_(1, teacher.ids_NK, (weighted_NM[:, :-1] - q_top * total_N1) / temperature)
    return value_N, q_NV


def _of_sorted(student_NV: Tensor, p_NK: Tensor, tail_N: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """The distance of sorted probabilities, and its gradient with respect to the student's logits; `tail_N` of all
    tokens that `p_NK` leaves out, which count as one outcome; None: there are none."""
    q_NV = torch.softmax(student_NV.float() / temperature, -1)
    count = q_NV.shape[1] if tail_N is None else min(p_NK.shape[1], q_NV.shape[1])
    q_top, ids = q_NV.sort(-1, descending=True) if tail_N is None else q_NV.topk(count, -1)
    longer = max(p_NK.shape[1], count)
    q_padded, p_padded = (torch.nn.functional.pad(x, (0, longer - x.shape[1])) for x in (q_top, p_NK))
    apart = q_padded - p_padded
    value_N, signs_NV = apart.abs().sum(-1), torch.zeros_like(q_NV)
    if tail_N is not None:
        rest_N = q_NV.sum(-1) - q_top.sum(-1) - tail_N
        value_N, signs_NV = value_N + rest_N.abs(), rest_N.sign()[:, None].expand_as(q_NV).clone()
    weighted_NV = signs_NV.scatter_(1, ids, apart[:, :count].sign()).mul_(q_NV)
    return value_N, weighted_NV.sub_(q_NV.mul_(weighted_NV.sum(-1, keepdim=True))).div_(temperature)


def _of_outcomes(
    kind: Divergence, mix: float, p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor
) -> tuple[Tensor, Tensor]:
    """The divergence (N), and q times its derivative with respect to q (N, M), up to a multiple of q."""
    if kind == "forward":
        return (p * (log_p - log_q)).sum(-1), -p
    if kind == "reverse":
        weighted = q * (log_q - log_p)
        return weighted.sum(-1), weighted
    if kind == "skewed-reverse":
        m = (mix * q + (1 - mix) * p).clamp_(min=LEAST)
        ratio = log_q - m.log()
        return (q * ratio).sum(-1), q * ratio - mix * q * q / m
    m = (mix * p + (1 - mix) * q).clamp_(min=LEAST)
    log_m = m.log()
    of_teacher = (p * (log_p - log_m)).sum(-1)
    if kind == "skewed":
        return of_teacher, -(1 - mix) * p * q / m
    of_student = q * (log_q - log_m)
    return mix * of_teacher + (1 - mix) * of_student.sum(-1), (1 - mix) * of_student
