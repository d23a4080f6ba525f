"""The loss of a student that learns a teacher's next-token probabilities, stored ones or queried in each step.

With `train.on_policy` the student writes answers itself and the teacher scores them (GKD: Agarwal et al. 2023, arXiv
2306.13649). The soft part is multiplied by the square of the temperature, so that its gradient stays as large as the
hard part's (Hinton et al. 2015, arXiv 1503.02531, section 2).

The distance of next-token probabilities, with p the teacher, q the student, and m a mix of both:

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

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuneloop.core.device import backend, put
from tuneloop.core.errors import UserError
from tuneloop.core.machine import processes
from tuneloop.core.ui import progress
from tuneloop.inference import Request, Sampling
from tuneloop.inference.local import answer_requests, open_local
from tuneloop.models import Model, load_model, load_trained
from tuneloop.models.chat import Rendered
from tuneloop.models.nn import quantise
from tuneloop.training.config import LOSSES, Batch, Divergence, Loss, TrainConfig
from tuneloop.training.loss import (
    BATCH_TOKENS,
    HeadLoss,
    head_loss,
    in_batches,
    in_halves,
    learned_head,
    softmax_loss,
    supervised_states,
)
from tuneloop.training.rows import Taught, last_answer, supervised_tokens
from tuneloop.training.teachers import APART, TopProbabilities, TopStore, is_store, pack, positions, row_key, top_of

# Share of the first model in the mix that these compare with, as their papers recommend: a in the table above.
MIX = {"skewed": 0.1, "skewed-reverse": 0.1, "jensen-shannon": 0.5}
POSITIONS_AT_ONCE = 256  # whose probabilities exist in fp32 at a time, where a device takes a whole chunk at once
MORE_TOKENS = 16  # the student's answer may be twice as long as the row's, and by so many tokens


@functools.lru_cache(maxsize=1)
def stored_by(folder: str) -> TopStore:
    """The probabilities that are stored in a folder; it is read once."""
    return TopStore.open(Path(folder))


@functools.lru_cache(maxsize=1)
def teacher_model(name: str, bits: int = 16) -> Model:
    """A teacher that is queried in each step; it is loaded once, and let go by `teacher_model.cache_clear`."""
    target = open_local(name)
    model = load_model(target.base, prepare=quantise if bits == 4 else None)
    if target.trained is not None:
        load_trained(model, target.trained)
    return model


@dataclass(frozen=True)
class _Teacher:
    """What a teacher says of a batch's positions: its hidden states and head, or what is stored."""

    vocabulary: int  # tokens that both models know; of a teacher with other tokens, all of the student's
    hidden_NC: Tensor | None = None
    head_VC: Tensor | None = None
    top: TopProbabilities | None = None
    counts_N: Tensor | None = None  # 1 at positions that the teacher has too, 0 at others; None: it has all

    def of(self, part: slice) -> Callable[[slice], Tensor | TopProbabilities]:
        """For a chunk of positions: a function from a piece of the chunk to its logits, or to what is stored of it."""
        if self.top is not None:
            top = self.top.part(part)
            return top.part
        assert self.hidden_NC is not None and self.head_VC is not None
        logits = self.hidden_NC[part] @ self.head_VC.t()
        return lambda piece: logits[piece]


def distil(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """`1 - hard_weight` parts divergence from the teacher, `hard_weight` parts cross entropy of the rows' tokens."""
    config, rows = batch.config, batch.rows
    if config.on_policy and torch.is_grad_enabled():
        rows = _with_own_answers(batch.model, rows, config.on_policy)
    states = supervised_states(batch.model, rows, packed=config.packing)
    weights_N, head_VC = states.weights_N * batch.share, learned_head(batch.model)
    metrics: dict[str, Tensor] = {}
    soft_and_hard = _soft_and_hard(config, _teacher_of(batch, rows), states.targets_N, weights_N, metrics)
    return head_loss(states.hidden_NC, head_VC, weights_N, soft_and_hard), metrics


def _teacher_of(batch: Batch, rows: Sequence[Rendered]) -> _Teacher:
    config, vocabulary = batch.config, batch.model.head.shape[0]
    name, there = str(config.teacher), batch.model.device
    others = [row.theirs for row in rows if isinstance(row, Taught) and row.theirs is not None]
    index = None
    if others:  # for each supervised position of all rows its number among the teacher's, or `APART` (N)
        places: list[int] = []
        before = 0
        for row in rows:
            assert isinstance(row, Taught) and row.theirs is not None
            places += [position if position == APART else before + position for position in row.aligned]
            before += len(positions(row.theirs))
        index = torch.tensor(places)
    counts = None if index is None else put((index >= 0).float(), there)
    if is_store(name):
        store = stored_by(name)
        top = store.read([row.key for row in rows if isinstance(row, Taught)])
        which = slice(None) if index is None else index.clamp(min=0)
        top = TopProbabilities(*(put(part[which], there) for part in (top.ids_NK, top.p_NK, top.tail_N)))
        return _Teacher(vocabulary if others else min(vocabulary, store.about.vocabulary), top=top, counts_N=counts)
    model = teacher_model(name, config.teacher_bits)
    with torch.no_grad():
        hidden_NC = supervised_states(model, others or rows, packed=config.packing).hidden_NC
    if index is not None:
        return _Teacher(vocabulary, hidden_NC[put(index.clamp(min=0), there)], model.head.detach(), counts_N=counts)
    shared = min(vocabulary, model.head.shape[0])
    return _Teacher(shared, hidden_NC, model.head.detach()[:shared])


def _soft_and_hard(
    config: TrainConfig, teacher: _Teacher, targets_N: Tensor, weights_N: Tensor, metrics: dict[str, Tensor]
) -> HeadLoss:
    """The losses of a chunk of logits, which become their gradient; sums of both parts are put into `metrics`."""
    hard, temperature = config.hard_weight, config.teacher_temperature
    soft = (1 - hard) * temperature**2
    how = config.divergence, MIX.get(config.divergence, 0.0)

    def loss_of(logits: Tensor, part: slice, turn: bool) -> Tensor:
        teacher_of = teacher.of(part)
        few = backend(logits.device).softmax_rows or POSITIONS_AT_ONCE
        parts = []
        for start in range(0, len(logits), few):
            piece = slice(start, start + few)
            student, targets = logits[piece], targets_N[part][piece]
            hard_logits = student.clone() if turn else student
            shared, about = student[:, : teacher.vocabulary], teacher_of(piece)
            divergence = of_top if isinstance(about, TopProbabilities) else of_logits
            distances, gradient = divergence(*how, shared, about, temperature)  # type: ignore[arg-type]
            if teacher.counts_N is not None:
                counts = teacher.counts_N[part][piece]
                distances, gradient = distances * counts, gradient * counts[:, None]
            hard_losses = softmax_loss(hard_logits, targets, turn)
            if turn:
                student.copy_(hard_logits.mul_(hard))
                shared.add_(gradient.mul_(soft))
            parts.append(torch.stack((distances, hard_losses)))
        both = torch.cat(parts, 1)
        for name, loss in zip(("divergence", "hard_loss"), both @ weights_N[part], strict=True):
            metrics[name] = metrics[name] + loss if name in metrics else loss
        return soft * both[0] + hard * both[1]

    return loss_of


def _with_own_answers(model: Model, rows: Sequence[Rendered], share: float) -> list[Rendered]:
    """Rows with some answers written by the model as it is now, each counting as much as the row's own answer. Which
    rows and which draws follow from torch's random state, which checkpoints hold."""
    if processes() > 1:
        message = "Several processes can't write answers while they train"
        raise UserError(message, where="train.on_policy", next_step="set train.gpus=1")
    indices = [i for i, draw in enumerate(torch.rand(len(rows)).tolist()) if draw < share]
    seeds = torch.randint(2**31, (len(rows),)).tolist()
    requests = []
    for i in indices:
        begin, end = last_answer(rows[i])
        prompt, limit = rows[i].ids[: max(begin, 1)], 2 * (end - max(begin, 1)) + MORE_TOKENS
        requests.append(Request(ids=prompt, max_new_tokens=limit, sampling=Sampling(temperature=1.0, seed=seeds[i])))
    learning = model.net.training
    model.net.eval()
    try:
        answers = answer_requests(model, requests)
    finally:
        model.net.train(learning)
    out = list(rows)
    for i, request, answer in zip(indices, requests, answers, strict=True):
        prompt, ids = list(request.ids or ()), list(answer.token_ids)
        weight = supervised_tokens(rows[i]) / len(ids)
        out[i] = Rendered([*prompt, *ids], [0.0] * len(prompt) + [weight] * len(ids))
    return out


@torch.no_grad()
def store_probabilities(model: Model, rows: Sequence[Rendered], store: TopStore) -> None:
    """Write down what a teacher says at the supervised positions of rows that are not in a store yet."""
    left = [row for row in rows if row_key_of(row) not in store.rows]
    count = len(rows) - len(left)
    progress("storing the teacher's probabilities", count, len(rows))

    def add(group: Sequence[Rendered]) -> None:
        nonlocal count
        store_states(model, group, supervised_states(model, group).hidden_NC, store)
        count += len(group)
        progress("storing the teacher's probabilities", count, len(rows))

    in_halves(list(in_batches(left, BATCH_TOKENS))[::-1], add, "while the teacher's probabilities are stored")


@torch.no_grad()
def store_states(model: Model, rows: Sequence[Rendered], hidden_NC: Tensor, store: TopStore) -> None:
    """`store_probabilities` from a teacher's last states of all rows, one behind the other."""
    import numpy as np

    head_VC, there = model.head[: store.about.vocabulary], backend(model.device)
    parts: list[Any] = []
    for chunk in torch.split(hidden_NC, there.positions_at_once):
        for logits in torch.split(chunk @ head_VC.t(), there.softmax_rows or POSITIONS_AT_ONCE):
            likeliest = top_of(logits, store.about.top, store.about.temperature)
            parts.append([part.cpu().numpy() for part in likeliest])
    store.add(rows, pack(*(np.concatenate(part) for part in zip(*parts, strict=True))))


def row_key_of(row: Rendered) -> str:
    """What a row is found by in a store."""
    return row.key if isinstance(row, Taught) and row.key else row_key(row)


LOSSES["distil"] = Loss(distil, units=supervised_tokens)


# --- distances and their gradients

# Shape suffixes: N positions, V vocabulary, K tokens that are stored, M outcomes (V, or K and one for all others).

LEAST = 1e-9  # of a probability, where its logarithm is taken


def log_probabilities(logits_NV: Tensor, temperature: float) -> Tensor:
    """Log probabilities (fp32) of logits at a temperature."""
    return torch.log_softmax(logits_NV.float() / temperature if temperature != 1 else logits_NV.float(), -1)


def of_logits(
    kind: Divergence, mix: float, student_NV: Tensor, teacher_NV: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """A divergence over the whole vocabulary.

    Args:
        kind, mix: see the table at the top; `mix` is a.
        student_NV, teacher_NV: logits, of one vocabulary; with `universal` of any two.
        temperature: by which both are divided.

    Returns:
        The value at each position (N), and its gradient with respect to the student's logits (N, V), both fp32.
    """
    if kind == "universal":
        p_NV = torch.softmax(teacher_NV.float() / temperature, -1).sort(-1, descending=True).values
        return _of_sorted(student_NV, p_NV, None, temperature)
    log_p, log_q = (log_probabilities(logits, temperature) for logits in (teacher_NV, student_NV))
    q = log_q.exp()
    value_N, weighted_NV = _of_outcomes(kind, mix, log_p.exp(), log_p, q, log_q)
    return value_N, weighted_NV.sub_(q.mul_(weighted_NV.sum(-1, keepdim=True))).div_(temperature)


def of_top(
    kind: Divergence, mix: float, student_NV: Tensor, teacher: TopProbabilities, temperature: float
) -> tuple[Tensor, Tensor]:
    """`of_logits` over the teacher's likeliest tokens, at the same temperature, and one outcome for all others. At most
    that over the whole vocabulary; equal where both models divide the tail alike."""
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
