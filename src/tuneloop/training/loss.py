"""Losses: how far a micro-batch is from what is wanted, as one number whose gradient flows back into the model.

A new loss is a function from `Batch` to a tensor, and a row in `LOSSES`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tuneloop.core.device import Backend, backend, in_parts, put
from tuneloop.core.machine import processes
from tuneloop.core.ui import progress
from tuneloop.models import Model
from tuneloop.models.chat import Rendered
from tuneloop.training.batches import tokens_at_once, too_large
from tuneloop.training.config import LOSSES as LOSSES  # this module puts the shipped ones in
from tuneloop.training.config import Batch as Batch
from tuneloop.training.config import Context, TrainConfig
from tuneloop.training.config import Loss as Loss
from tuneloop.training.distributed import merged, own_share, summed
from tuneloop.training.rows import (
    PAIRS,
    RATINGS,
    PreferencePair,
    TrainRow,
    UnpairedAnswer,
    conversations,
    supervised_tokens,
    tokens_of,
    with_reference,
)

# Shape suffixes: N supervised positions, C hidden size, V vocabulary, B rows, T tokens.

PIECE = 32  # rows that are read at most before the clock is looked at
BATCH_TOKENS = 4096  # computed at once where no gradient is needed: more fit, and larger products are faster


def softmax_loss(logits: Tensor, targets: Tensor, turn: bool) -> Tensor:
    """Cross entropy of each row of logits; with `turn` they become its gradient in place."""
    rows = torch.arange(logits.shape[0], device=logits.device)
    top, picked = logits.amax(-1).float(), logits[rows, targets].float()
    # One softmax is far faster on CPUs than logsumexp; the normaliser follows from log p_max = max - logsumexp.
    probabilities = torch.softmax(logits, -1, dtype=torch.float32)
    losses = top - probabilities.amax(-1).log_() - picked
    if turn:
        probabilities[rows, targets] -= 1.0
        logits.copy_(probabilities)
    return losses


# The losses of a chunk of logits, of some positions; if the last argument is true, the logits become their gradient.
HeadLoss = Callable[[Tensor, slice, bool], Tensor]


class _HeadLoss(torch.autograd.Function):
    """Vocabulary projection, a loss of the logits and their gradients in chunks of rows, after Liger-Kernel's fused
    linear cross-entropy (Hsu et al. 2024, arXiv 2410.10989). The logits of a chunk exist once, and become their own
    gradient in place; with a frozen head the hidden states' gradient is ready when the forward pass ends."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, weights: Tensor, of: HeadLoss, chunk: int) -> Tensor:
        losses = torch.empty(len(weights), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(weights), chunk):
            part = slice(start, start + chunk)
            logits = hidden[part] @ weight.t()
            grad = logits if grad_hidden is not None or grad_weight is not None else None
            losses[part] = of(logits, part, grad is not None)
            if grad is None:
                continue
            # Weights are put on a position's C numbers, not the V of its row: one pass less over the largest buffer.
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[part]).mul_(weights[part, None])
            if grad_weight is not None:
                weighted = (hidden[part] * weights[part, None]).to(hidden.dtype)
                # In stretches of the vocabulary: a sum of two dtypes copies the product, as large as the whole head.
                for rows_of, columns in zip(torch.split(grad_weight, 4096), torch.split(grad, 4096, 1), strict=True):
                    rows_of.add_(columns.t() @ weighted)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return (losses * weights).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grad).to(ctx.weight_dtype)  # in place: it may be the largest tensor there is
        return None if grad_hidden is None else grad_hidden * grad, grad_weight, None, None, None


def head_cross_entropy(
    hidden_NC: Tensor, head_VC: Tensor, targets_N: Tensor, weights_N: Tensor, chunk: int = 0
) -> Tensor:
    """Sum over positions of weight * -log p(target), with the vocabulary projection inside.

    Args:
        hidden_NC: hidden states of the supervised positions only.
        head_VC: the projection's weight.
        targets_N: the next token at each position.
        weights_N: weight of each position (fp32); 1 / supervised tokens of the whole step gives their mean.
        chunk: positions projected at a time; bounds memory to chunk * V * 2 bytes on a processor, 10 on a GPU. 0:
            `positions_at_once`.
    """

    def of(logits: Tensor, part: slice, turn: bool) -> Tensor:
        few = backend(logits.device).softmax_rows or len(logits)
        pieces = zip(torch.split(logits, few), torch.split(targets_N[part], few), strict=True)
        return torch.cat([softmax_loss(some, of_some, turn) for some, of_some in pieces])

    return head_loss(hidden_NC, head_VC, weights_N, of, chunk)


def head_loss(hidden_NC: Tensor, head_VC: Tensor, weights_N: Tensor, of: HeadLoss, chunk: int = 0) -> Tensor:
    """Sum over positions of weight * a loss `of` their logits; other arguments as of `head_cross_entropy`."""
    size = chunk or positions_at_once(head_VC.requires_grad, backend(head_VC.device))
    return _HeadLoss.apply(hidden_NC, head_VC, weights_N, of, size)  # type: ignore[no-untyped-call,no-any-return]


def positions_at_once(learns: bool, on: Backend) -> int:
    """Positions that are projected at a time, by a projection that learns or one that does not."""
    return on.positions_at_once_full if learns else on.positions_at_once


# --- from rows to hidden states


@dataclass(frozen=True)
class SupervisedStates:
    """The supervised positions of a batch: hidden states that predict them, their ids, weights and rows."""

    hidden_NC: Tensor
    targets_N: Tensor
    weights_N: Tensor
    rows_N: Tensor


def supervised_states(model: Model, rows: Sequence[Rendered], *, packed: bool = False) -> SupervisedStates:
    """Hidden states where a supervised token is predicted; `packed` lays the rows one behind the other, unpadded.

    What all rows begin with (an instruction) is computed once. Rows are padded on the right, where a causal model never
    looks, so that no padding mask is needed; our own Llama computes the padding in attention only.
    """
    if packed:
        return _packed_states(model, rows)
    prefix = shared_prefix(rows)
    lengths = [len(row.ids) - prefix for row in rows]
    ids = torch.full((len(rows), max(lengths)), model.template.pad_id, dtype=torch.long)
    weights = torch.zeros(ids.shape, dtype=torch.float32)
    for slot, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids[slot, :length] = torch.tensor(row.ids[prefix:])
        weights[slot, :length] = torch.tensor(row.mask[prefix:], dtype=torch.float32)
    # Which positions are supervised is worked out here, not on a GPU, which the host would have to wait for.
    supervised, there = weights[:, 1:] > 0, model.device
    beginning = put(torch.tensor(rows[0].ids[:prefix], dtype=torch.long), there)
    hidden_NC = model.hidden_at(F.pad(supervised, (0, 1)), beginning, put(ids, there), lengths)
    targets, rows_N = ids[:, 1:][supervised], supervised.nonzero()[:, 0]
    return SupervisedStates(hidden_NC, put(targets, there), put(weights[:, 1:][supervised], there), put(rows_N, there))


def _packed_states(model: Model, rows: Sequence[Rendered]) -> SupervisedStates:
    """`supervised_states` of rows laid out as one: each begins at position 0 and sees itself alone."""
    there = model.device
    ids = torch.tensor([i for row in rows for i in row.ids])
    weights = torch.tensor([w for row in rows for w in [0, *row.mask[1:]]], dtype=torch.float32)
    lengths = [len(row.ids) for row in rows]
    row_of = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths))
    supervised = weights > 0  # never a row's first token, so the state before belongs to the same row
    before = put(supervised.nonzero()[:, 0] - 1, there)
    ids_N = put(ids, there)
    if model.by_documents:
        hidden_NC = model.hidden_of_rows(before, ids_N, lengths)
    else:
        positions = torch.cat([torch.arange(n) for n in lengths])
        mask = (row_of[:, None] == row_of) & (positions[:, None] >= positions)
        hidden_NC = model.hidden(ids_N[None], put(positions, there)[None], put(mask, there)[None, None])[0][before]
    targets, weights, row_of = (put(of_tokens[supervised], there) for of_tokens in (ids, weights, row_of))
    return SupervisedStates(hidden_NC, targets, weights, row_of)


def shared_prefix(rows: Sequence[Rendered]) -> int:
    """Tokens that all rows begin with and none of which is learned; 0 when too few to be worth it. The token behind
    them must not be learned either: its prediction is made at the last shared position."""
    if len(rows) < 2:
        return 0
    first, last = min(row.ids for row in rows), max(row.ids for row in rows)
    same = 0
    while same < len(first) - 1 and same < len(last) - 1 and first[same] == last[same]:
        same += 1
    supervised = min(next((i for i, weight in enumerate(row.mask) if weight), len(row.mask)) for row in rows)
    same = min(same, supervised - 1)
    return same if same >= 8 else 0


def log_likelihoods(model: Model, rows: Sequence[Rendered]) -> Tensor:
    """Log likelihood of each row's supervised tokens (B), fp32, with a gradient; logits exist a chunk at a time."""
    states = supervised_states(model, rows)
    out = torch.zeros(len(rows), dtype=torch.float32, device=states.hidden_NC.device)
    log_probs_N = _in_chunks(_log_probs, states.hidden_NC, learned_head(model), states.targets_N)
    return out.index_add(0, states.rows_N, log_probs_N)


def learned_head(model: Model) -> Tensor:
    """The vocabulary projection, apart from the graph where no gradient is wanted."""
    return model.head if torch.is_grad_enabled() else model.head.detach()


def _in_chunks(
    function: Callable[..., Tensor], hidden_NC: Tensor, head_VC: Tensor, others_N: Tensor, size: int = 256
) -> Tensor:
    """A function of logits, computed again in the backward pass so that those of one chunk exist at a time."""
    out = [
        checkpoint(function, part, head_VC, other_N, use_reentrant=False, preserve_rng_state=False)
        if torch.is_grad_enabled()
        else function(part, head_VC, other_N)
        for part, other_N in zip(torch.split(hidden_NC, size), torch.split(others_N, size), strict=True)
    ]
    return torch.cat(out)


def _log_probs(hidden_NC: Tensor, head_VC: Tensor, targets_N: Tensor) -> Tensor:
    return -F.cross_entropy((hidden_NC @ head_VC.t()).float(), targets_N, reduction="none")


def _divergence(hidden_NC: Tensor, head_VC: Tensor, reference_NC: Tensor) -> Tensor:
    """KL(tuned || reference) over the vocabulary at each position."""
    tuned = F.log_softmax((hidden_NC @ head_VC.t()).float(), -1)
    reference = F.log_softmax((reference_NC @ head_VC.t()).float(), -1)
    return (tuned.exp() * (tuned - reference)).sum(-1)


# --- losses


def supervised(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy of the supervised tokens, and with `kl` the divergence from the base model there."""
    states = supervised_states(batch.model, batch.rows, packed=batch.config.packing)
    weights = states.weights_N * batch.share
    loss = head_cross_entropy(states.hidden_NC, learned_head(batch.model), states.targets_N, weights)
    if not batch.config.kl:
        return loss, {}
    with torch.no_grad(), batch.base():
        reference = supervised_states(batch.model, batch.rows, packed=batch.config.packing).hidden_NC
    kl = (_in_chunks(_divergence, states.hidden_NC, learned_head(batch.model), reference) * weights).sum()
    return loss + batch.config.kl * kl, {"kl": kl.detach()}


def dpo(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """-log sigmoid(beta * preference beyond the reference's) (Rafailov et al. 2023, arXiv 2305.18290, equation 7)."""
    pairs: Sequence[PreferencePair] = batch.rows
    both = log_likelihoods(batch.model, [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
    reference = put(torch.tensor([pair.reference for pair in pairs]), both.device)
    ratios = both.view(2, -1).t() - reference  # chosen, rejected
    margins = batch.config.beta * (ratios[:, 0] - ratios[:, 1])
    metrics = {"reward_margin": margins, "reward_accuracy": (margins > 0).float()}
    return -F.logsigmoid(margins).sum() * batch.share, _summed(metrics, batch.share)


def kto(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """1 - sigmoid of how much likelier good answers (less likely bad ones) have become, beyond a general move. Source:
    Ethayarajh et al. 2024, arXiv 2402.01306, equation 7."""
    rated, config = batch.rows, batch.config
    now = log_likelihoods(batch.model, [row.answer for row in rated])
    good = put(torch.tensor([row.good for row in rated]), now.device)
    ratio = now - put(torch.tensor([row.reference[0] for row in rated]), now.device)
    signed = torch.where(good, ratio - batch.constant, batch.constant - ratio)
    weight = torch.where(good, config.desirable_weight, config.undesirable_weight)
    losses = weight * (1 - torch.sigmoid(config.beta * signed))
    # What a row's thumb asks for, in units of reward; its mean is the margin of a balanced batch.
    margins = 2 * config.beta * torch.where(good, ratio, -ratio)
    metrics = {"reward_margin": margins, "reward_accuracy": (signed > 0).float()}
    return losses.sum() * batch.share, _summed(metrics, batch.share)


@torch.no_grad()
def kto_reference_point(step: Batch) -> float:
    """How far the model has moved from the reference on answers to other prompts: KTO's z0, of the whole step."""
    rated: Sequence[UnpairedAnswer] = step.rows
    moves: list[Tensor] = []

    def move(rows: Sequence[UnpairedAnswer], counts: bool) -> None:
        now = log_likelihoods(step.model, [row.other for row in rows])
        distances = now - put(torch.tensor([row.reference[1] for row in rows]), now.device)
        if counts:
            moves.append(distances.sum())

    _divided(list(in_batches(rated, tokens_at_once(step.config))), move, "while KTO's reference point is computed")
    total = sum(torch.stack(moves).tolist()) if moves else 0.0
    return max(summed([total])[0] / len(rated), 0.0)


def _divided(groups: Sequence[Sequence[Any]], work: Callable[[Sequence[Any], bool], None], when: str) -> None:
    """This process's share of groups of rows; `work` takes a group, and whether it counts (`own_share`)."""
    if processes() == 1:
        in_halves(groups, lambda rows: work(rows, True), when)
        return
    for group, counts in own_share(groups):
        work(group, counts)


def in_halves(groups: Sequence[Sequence[Any]], work: Callable[[Sequence[Any]], None], when: str) -> None:
    """Work on groups of rows, on smaller ones where memory runs out; `when` as in `too_large`."""
    in_parts(
        groups, work, lambda rows: len(rows) * max(map(tokens_of, rows)), lambda row: too_large(tokens_of(row), when)
    )


def _summed(metrics: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    return {name: metric.detach().sum() * share for name, metric in metrics.items()}


LOSSES |= {
    "supervised": Loss(supervised, units=supervised_tokens),
    "dpo": Loss(dpo, rows=PAIRS),
    "kto": Loss(kto, constant=kto_reference_point, rows=RATINGS),
}


# --- over many rows, without a gradient


def in_batches(rows: Sequence[Any], tokens: int) -> Iterator[Sequence[Any]]:
    """Rows by length in groups of at most `tokens` tokens."""
    group: list[Any] = []
    for row in sorted(rows, key=tokens_of):
        if group and (len(group) + 1) * tokens_of(row) > tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


@torch.no_grad()
def mean_loss(
    model: Model, rows: Sequence[TrainRow], config: TrainConfig, *, base: Context = nullcontext
) -> tuple[float, dict[str, float]]:
    """The configured loss over rows as one step, and its metrics; `base` as in `Batch`."""
    loss = LOSSES[config.loss]
    whole = Batch(model, rows, 1 / sum(loss.units(row) for row in rows), config, base)
    whole = replace(whole, constant=loss.constant(whole))
    total, metrics = 0.0, dict[str, float]()
    count, size = 0, -(-len(rows) // processes())
    progress("validating", count, size)

    def add(group: Sequence[TrainRow], counts: bool) -> None:
        nonlocal total, count
        value, sums = loss.value(replace(whole, rows=group, share=whole.share * counts))
        total += float(value)
        for name, metric in sums.items():
            metrics[name] = metrics.get(name, 0.0) + float(metric)
        count = min(count + len(group), size)
        progress("validating", count, size)

    # The longest rows first, so that the time left is not underestimated.
    _divided(list(in_batches(rows, BATCH_TOKENS))[::-1], add, "while validating")
    total, *sums_of_all = summed([total, *metrics.values()])
    return total, dict(zip(metrics, sums_of_all, strict=True))


def loss_in_time(
    model: Model,
    rows: Sequence[TrainRow],
    config: TrainConfig,
    left: Callable[[], float],
    pace: float,
    *,
    base: Context = nullcontext,
) -> tuple[float, dict[str, float], int]:
    """`mean_loss` of the first rows, as many as there is time for, and how many these are.

    They are read in pieces: a row, and then at most as many as before, none begun that can't end.

    Args:
        left: seconds that are left, by the clock.
        pace: seconds a token, as far as is known before the first row; then it is measured.
    """
    units, loss, sums = 0.0, 0.0, dict[str, float]()
    count, tokens, began = 0, 0, time.monotonic()
    while count < len(rows):
        pace = (time.monotonic() - began) / tokens if tokens else pace
        lengths = itertools.accumulate(map(tokens_of, rows[count : count + min(max(count, 1), PIECE)]))
        fitting = sum(length * pace <= left() for length in lengths)
        if not (size := int(summed([fitting])[0] / processes())):
            break
        piece = rows[count : count + size]
        share = sum(map(LOSSES[config.loss].units, piece))
        value, metrics = mean_loss(model, piece, config, base=base)
        units, loss = units + share, loss + share * value
        sums = {name: sums.get(name, 0.0) + share * metric for name, metric in metrics.items()}
        count, tokens = count + size, tokens + sum(map(tokens_of, piece))
    return loss / max(units, 1e-9), {name: total / units for name, total in sums.items()}, count


@torch.no_grad()
def with_references(model: Model, rows: Sequence[TrainRow]) -> list[TrainRow]:
    """Rows with the log likelihoods that the model gives their answers now; supervised rows as they are. Once before
    training instead of in every step: the reference costs no second model and no second pass an epoch."""
    if all(isinstance(row, Rendered) for row in rows):
        return list(rows)
    finished: dict[int, TrainRow] = {}  # by place
    places = {id(row): row_index for row_index, row in enumerate(rows)}
    progress("reference", 0, len(rows))

    def refer(group: Sequence[TrainRow], counts: bool) -> None:
        firsts = log_likelihoods(model, [conversations(row)[0] for row in group]).tolist()
        others = [row.other if isinstance(row, UnpairedAnswer) else conversations(row)[1] for row in group]
        seconds = log_likelihoods(model, others).tolist()
        for row, values in zip(group, zip(firsts, seconds, strict=True), strict=True):
            finished[places[id(row)]] = with_reference(row, values)
        progress("reference", len(finished), len(rows))

    _divided(list(in_batches(rows, BATCH_TOKENS))[::-1], refer, "while the reference is computed")
    finished = merged(finished)
    return [finished[row_index] for row_index in range(len(rows))]
