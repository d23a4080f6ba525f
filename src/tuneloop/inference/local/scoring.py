"""Choice scoring over a tree of labels, and the loss of given answers.

Both read what prompts have in common once, work in batches of similar length, and take rows as prompts of token ids.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tuneloop.core.device import in_parts
from tuneloop.core.ui import progress
from tuneloop.inference.labels import LabelTrie, best_label
from tuneloop.inference.local.batches import (
    batched_by_length,
    pad,
    places_taken,
    prompt_too_large,
    read_shared,
    split_prompts,
)
from tuneloop.inference.local.sampling import greedy, highest
from tuneloop.inference.protocol import AnswerFit
from tuneloop.inference.request import Request, with_adapter
from tuneloop.models import Model
from tuneloop.models.adapters import applied, check_adapter
from tuneloop.models.chat import Rendered
from tuneloop.models.nn import is_batch_invariant, product
from tuneloop.records.completion import Completion

if TYPE_CHECKING:
    from torch import Tensor

BATCH_TOKENS = 4096  # of one pass, padding included


def choose_for(
    model: Model, requests: Sequence[Request], trie: LabelTrie, *, prune: bool = False, task: str = "scoring labels"
) -> list[Completion]:
    """`choose` for requests with token ids, in order; those with the same adapter are answered together.

    Raises:
        UserError: an adapter is not loaded.
    """
    requests = [with_adapter(request) for request in requests]
    answers: dict[int, Completion] = {}
    for adapter in dict.fromkeys(request.adapter for request in requests):
        check_adapter(model, adapter)
        places = [i for i, request in enumerate(requests) if request.adapter == adapter]
        began = time.perf_counter()
        with applied(adapter):
            scored = choose(model, [requests[i].ids for i in places], trie, prune=prune, task=task)
        milliseconds = round(
            1000 * (time.perf_counter() - began) / len(places), 3
        )  # they are computed together: its share
        answers |= {i: replace(a, adapter=adapter, total_ms=milliseconds) for i, a in zip(places, scored, strict=True)}
    return [answers[i] for i in range(len(requests))]


def choose(
    model: Model,
    prompts: Sequence[Sequence[int]],
    trie: LabelTrie,
    *,
    prune: bool = False,
    task: str = "scoring labels",
) -> list[Completion]:
    """Score every label under every prompt and answer with the best.

    A label's score is the mean log likelihood of its tokens, the end of turn included, so that long labels are not at
    a disadvantage. One forward pass a row computes the prompt and all labels: the tree's nodes follow the
    prompt, and each sees the prompt and its own path only.

    Args:
        prompts: token ids, each ending with the assistant's header.
        trie: the labels.
        prune: look for the best label only. Labels that can't win any more are not computed to their end, and their
            scores are upper bounds; the best label and its score are the same.
    """
    import torch

    if not prompts:
        return []
    with torch.inference_mode():
        scores = (_best_first if prune else _label_scores)(model, prompts, trie, task)
    return [
        best_label(dict(zip(trie.labels, row, strict=True)), trie.tokens, len(prompt))
        for prompt, row in zip(prompts, scores.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class _Tree:
    """A `LabelTrie` as tensors.

    Nodes (N) are counted from 0, the prompt's last token; arcs (A) lead from a node to each token that may follow it.
    """

    ids: Tensor  # this and `depths`: of the nodes behind the prompt (N - 1)
    depths: Tensor
    sees: Tensor  # which of these each sees (N - 1, N - 1)
    arc_parent: Tensor  # this and `arc_token`: of each arc
    arc_token: Tensor
    arcs: Tensor  # the arcs that leave each node (N, most of them), filled up with -1
    forks: Tensor  # nodes that more than one arc leaves (N)
    paths: Tensor  # each label's nodes behind the prompt, by depth (labels, depth), filled up with 0
    shares: Tensor  # 1 / the label's length for the arcs on its way (labels, A); times log probabilities: scores
    on_path: Tensor  # 1 for the label's nodes (labels, N)

    @staticmethod
    def of(trie: LabelTrie, device: Any) -> _Tree:
        """The tensors of a trie on a device."""
        import torch

        nodes, labels = len(trie.ids), len(trie.labels)
        number = {arc: i for i, arc in enumerate(sorted({(parent, token) for _, parent, token in trie.edges}))}
        leaving: list[list[int]] = [[] for _ in range(nodes + 1)]
        for (parent, _), arc in number.items():
            leaving[parent].append(arc)
        most = max(map(len, leaving))
        paths: list[list[int]] = [[] for _ in trie.labels]
        shares, on_path = torch.zeros(labels, len(number)), torch.zeros(labels, nodes + 1)
        for label, parent, token in trie.edges:
            shares[label, number[parent, token]] = 1 / trie.lengths[label]
            on_path[label, parent] = 1
            if parent:
                paths[label].append(parent)
        deepest = max(map(len, paths))
        return _Tree(
            torch.tensor(trie.ids, dtype=torch.long, device=device),
            torch.tensor(trie.depths, dtype=torch.long, device=device),
            torch.tensor(trie.ancestors, dtype=torch.bool, device=device).reshape(nodes, nodes),
            torch.tensor([parent for parent, _ in number], device=device),
            torch.tensor([token for _, token in number], device=device),
            torch.tensor([some + [-1] * (most - len(some)) for some in leaving], device=device),
            torch.tensor([len(some) > 1 for some in leaving], device=device),
            torch.tensor([path + [0] * (deepest - len(path)) for path in paths], dtype=torch.long, device=device),
            shares.to(device),
            on_path.to(device),
        )

    def scores(self, logp: Tensor) -> Tensor:
        """Mean log likelihoods of the labels (rows, labels) from those of the arcs (rows, A)."""
        import torch

        if is_batch_invariant():  # one row at a time
            return torch.cat([row @ self.shares.t() for row in torch.split(logp, 1)])
        return logp @ self.shares.t()


def _label_scores(model: Model, prompts: Sequence[Sequence[int]], trie: LabelTrie, task: str) -> Tensor:
    """Length-normalised log likelihoods (rows, labels), fp32."""
    import torch

    device = model.device
    split = split_prompts(prompts)
    prefix = read_shared(model, split.shared, task)
    tree, nodes = _Tree.of(trie, device), len(trie.ids)
    out = torch.empty(len(prompts), len(trie.labels))
    count = 0
    progress(task, 0, len(prompts))

    def score(batch: Sequence[int]) -> None:
        nonlocal count
        padded = pad([[*split.rests[i], *trie.ids] for i in batch], len(split.shared), model.template.pad_id, device)
        rows, shared = len(batch), len(split.shared)
        at_row = torch.arange(rows, device=device)[:, None]
        # Columns of the prompt's last token, and of the nodes behind it.
        columns = padded.ends[:, None] - nodes - 1 + torch.arange(nodes + 1, device=device)
        of_nodes = columns[:, 1:]
        padded.positions[at_row, of_nodes] = padded.lengths[:, None] - nodes - 1 + tree.depths
        of_prompt = padded.real.clone()
        of_prompt[at_row, shared + of_nodes] = False
        padded.mask[at_row, 0, of_nodes] = of_prompt[:, None].expand(-1, nodes, -1)
        of_paths = tree.sees.expand(rows, -1, -1)
        padded.mask[at_row[..., None], 0, of_nodes[..., None], shared + of_nodes[:, None]] = of_paths
        cache = None if prefix is None else prefix.select(torch.zeros(rows, dtype=torch.long, device=device))
        hidden = model.hidden(padded.ids, padded.positions, padded.mask, cache, padded.real_ids)[at_row, columns]
        for row, i in enumerate(batch):
            logp = _token_scores(hidden[row], model.head, tree.arc_parent, tree.arc_token)
            out[i] = tree.scores(logp[None])[0].cpu()
            progress(task, count + row + 1, len(prompts))
        count += len(batch)

    _in_batches([len(rest) + nodes for rest in split.rests], 64, score, prompts)
    return out


def _in_batches(
    lengths: Sequence[int], rows: int, work: Callable[[Sequence[int]], None], ids: Sequence[Sequence[int]]
) -> None:
    """Work on rows (`ids`) in batches of similar length, in smaller ones where memory runs out."""
    batches = batched_by_length(lengths, BATCH_TOKENS, rows)
    in_parts(batches, work, partial(places_taken, lengths), lambda i: prompt_too_large(len(ids[i])))


def _token_scores(hidden: Tensor, head: Tensor, at: Tensor, tokens: Tensor) -> Tensor:
    """log p of `tokens` (n) at the positions `at` (n) of hidden states (positions, C), fp32.

    The tokens are scored in fp32; the normaliser sums over the vocabulary, where rounding averages out.
    """
    picked = (hidden.float()[at] * head[tokens].float()).sum(-1)
    return picked - _log_normaliser(hidden, head)[at]


def _best_first(model: Model, prompts: Sequence[Sequence[int]], trie: LabelTrie, task: str) -> Tensor:
    """Scores (rows, labels): the greatest of each row is exact, the others upper bounds.

    A log probability is at most 0, so the sum over the tokens known so far, divided by the length, bounds a label's
    score from above. A row goes down its most promising label first, to the end; from then on it continues with all
    labels whose bounds are not below the best finished one, until there is none.
    """
    import torch

    device = model.device
    split = split_prompts(prompts)
    prefix = read_shared(model, split.shared, task)
    tree = _Tree.of(trie, device)
    out = torch.empty(len(prompts), len(trie.labels))
    depth = max(trie.lengths)
    count = 0
    progress(task, 0, len(prompts))

    def search_best(batch: Sequence[int]) -> None:
        nonlocal count
        search = _Search(model, tree, [split.rests[i] for i in batch], len(split.shared), prefix)
        left = torch.tensor(batch)
        over_before = 0
        while len(left):
            bounds = search.bounds()
            over = search.finished(bounds)
            out[left[over.cpu()]] = bounds[over].cpu()
            progress(task, count + over_before + int(over.sum()), len(prompts))
            if int(over.sum()) >= 0.25 * len(left):  # copying the cache pays when a quarter of the rows is over
                over_before += int(over.sum())
                search.keep(~over)
                left, bounds, over = left[~over.cpu()], bounds[~over], over[~over]
            if len(left):
                search.expand(bounds, ~over)
        count += len(batch)

    _in_batches([len(rest) + depth for rest in split.rests], 128, search_best, prompts)
    return out


class _Search:
    """The state of `_best_first` for one batch: what each row has computed of the tree, and its place in the cache."""

    def __init__(self, model: Model, tree: _Tree, rests: Sequence[Sequence[int]], shared: int, prefix: Any) -> None:
        import torch

        self.model, self.tree = model, tree
        device, rows = model.device, len(rests)
        padded = pad(rests, shared, model.template.pad_id, device)
        start = torch.zeros(rows, dtype=torch.long, device=device)
        self.cache = model.new_cache() if prefix is None else prefix.select(start)
        hidden = padded.last(model.hidden(padded.ids, padded.positions, padded.mask, self.cache, padded.real_ids))
        self.lengths = padded.lengths
        self.real = padded.real  # (rows, S): who in the cache is prompt
        self.ends = shared + padded.ends  # the place in the cache of each row's next node
        self.trained_prefix = self.cache.length - padded.real.shape[1]  # places before these
        nodes = len(tree.ids)
        self.place = torch.full((rows, nodes), -1, dtype=torch.long, device=device)  # of a node in the cache
        self.known = torch.zeros(rows, nodes + 1, dtype=torch.bool, device=device)
        self.logp = torch.zeros(rows, len(tree.arc_token), device=device)  # of an arc; 0 while unknown
        self._learn(torch.arange(rows, device=device), torch.zeros(rows, dtype=torch.long, device=device), hidden)

    def bounds(self) -> Tensor:
        """Upper bounds of the scores (rows, labels)."""
        return self.tree.scores(self.logp)

    def _open(self) -> Tensor:
        missing: Tensor = (~self.known).float() @ self.tree.on_path.t() > 0
        return missing

    def finished(self, bounds: Tensor) -> Tensor:
        """Which rows have a computed label that no other can exceed."""
        best = bounds.argmax(-1, keepdim=True)
        over: Tensor = ~self._open().gather(1, best)[:, 0]
        return over

    def keep(self, rows: Tensor) -> None:
        """Continue with some rows only."""
        index = rows.nonzero()[:, 0]
        self.cache = self.cache.select(index)
        self.lengths, self.real, self.place = self.lengths[index], self.real[index], self.place[index]
        self.ends = self.ends[index]
        self.known, self.logp = self.known[index], self.logp[index]

    def _next(self, bounds: Tensor, rows: Tensor) -> Tensor:
        """The nodes to compute now (rows, nodes + 1): of each label that may win those down to its next fork."""
        import torch

        tree, unfinished = self.tree, self._open()
        reached = bounds.masked_fill(unfinished, float("-inf")).amax(-1, keepdim=True)
        first = torch.zeros_like(unfinished).scatter_(1, bounds.argmax(-1, keepdim=True), True)
        hopeful = torch.where(reached.isfinite(), bounds >= reached, first) & unfinished & rows[:, None]
        row, label = hopeful.nonzero(as_tuple=True)
        path = tree.paths[label]
        missing = (path > 0) & ~self.known[row[:, None], path]
        forks = (missing & tree.forks[path]).long()
        following = torch.zeros_like(self.known)
        which, at = (missing & (forks.cumsum(-1) - forks == 0)).nonzero(as_tuple=True)
        following[row[which], path[which, at]] = True
        return following

    def expand(self, bounds: Tensor, rows: Tensor) -> None:
        """Compute the next nodes of the labels that may win, in the rows (bool) that are not over."""
        import torch

        tree, device = self.tree, self.logp.device
        nodes = self._next(bounds, rows)[:, 1:]
        row, node = nodes.nonzero(as_tuple=True)  # by row, and in a row by depth
        counts = nodes.sum(-1)
        column = torch.arange(len(row), device=device) - (counts.cumsum(0) - counts)[row]
        width = int(counts.max())
        self.place[row, node] = self.ends[row] + column
        shape, seen = (len(nodes), width), int(self.ends.max()) + width
        ids = torch.zeros(shape, dtype=torch.long, device=device)
        depths = torch.ones(shape, dtype=torch.long, device=device)
        ids[row, column], depths[row, column] = tree.ids[node], tree.depths[node]
        mask = torch.zeros(*shape, seen, dtype=torch.bool, device=device)
        mask[:, :, : self.real.shape[1]] = self.real[:, None, :seen]  # rows with longer prompts may be over
        which, ancestor = tree.sees[node].nonzero(as_tuple=True)
        mask[row[which], column[which], self.place[row[which], ancestor]] = True
        real = torch.arange(width, device=device) < counts[:, None]
        if is_batch_invariant():
            places = self.trained_prefix + self.ends[:, None] + torch.arange(width, device=device)
            self.cache = self.cache.placed(places)
        hidden = self.model.hidden(ids, self.lengths[:, None] - 1 + depths, mask[:, None], self.cache, real)
        self.ends = self.ends + (counts if is_batch_invariant() else width)
        self._learn(row, node + 1, hidden[row, column])

    def _learn(self, row: Tensor, node: Tensor, hidden: Tensor) -> None:
        """Log probabilities of the arcs that leave computed nodes."""
        self.known[row, node] = True
        arcs = self.tree.arcs[node]
        which, column = (arcs >= 0).nonzero(as_tuple=True)
        arc = arcs[which, column]
        self.logp[row[which], arc] = _token_scores(hidden, self.model.head, which, self.tree.arc_token[arc])


def _log_normaliser(hidden: Tensor, head: Tensor) -> Tensor:
    """log sum exp over the vocabulary of hidden @ head' (rows), fp32, in blocks of rows.

    softmax in one pass is faster on CPUs than exp and sum: the inverse of its maximum is the sum over exp(logit -
    highest). bf16 logits are rounded; that averages out over many tokens, but not where a few carry the sum, so the
    four highest enter it in fp32.
    """
    import torch

    out = []
    for part in torch.split(hidden, 256):
        logits = product(part, head)
        top = logits.amax(-1).float()
        total = 1 / torch.softmax(logits, -1, dtype=torch.float32).amax(-1)
        high = highest(logits, 4)
        exact = (part.float()[:, None] * head[high].float()).sum(-1)
        few, few_exact = (torch.exp(x.float() - top[:, None]).sum(-1) for x in (logits.gather(1, high), exact))
        out.append(top + torch.log((total - few).clamp(min=0) + few_exact))
    return torch.cat(out)


def answer_fits(model: Model, rows: Sequence[Rendered], *, task: str = "validating") -> list[AnswerFit]:
    """The fit of each row's supervised tokens, in order; one forward pass a row, in fp32 from the logits on."""
    import torch

    fits: dict[int, AnswerFit] = {}
    if rows:
        progress(task, 0, len(rows))

    def fit(batch: Sequence[int]) -> None:
        fits.update(zip(batch, _fits_of(model, [rows[i] for i in batch]), strict=True))
        progress(task, len(fits), len(rows))

    ids = [row.ids for row in rows]
    with torch.inference_mode():
        _in_batches(list(map(len, ids)), 256, fit, ids)
    return [fits[i] for i in range(len(rows))]


def _fits_of(model: Model, rows: Sequence[Rendered]) -> list[AnswerFit]:
    import torch

    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), model.template.pad_id, dtype=torch.long)
    supervised = torch.zeros((len(rows), longest), dtype=torch.bool)
    for slot, row in enumerate(rows):
        ids[slot, : len(row.ids)] = torch.tensor(row.ids)
        supervised[slot, : len(row.ids)] = torch.tensor(row.mask, dtype=torch.bool)
    ids, supervised = ids.to(model.device), supervised.to(model.device)
    hidden = model.hidden(ids)[:, :-1][supervised[:, 1:]]
    targets = ids[:, 1:][supervised[:, 1:]]
    losses, hits = [], []
    for part, tokens in zip(torch.split(hidden, 512), torch.split(targets, 512), strict=True):
        picked = (part.float() * model.head[tokens].float()).sum(-1)
        losses.append((_log_normaliser(part, model.head) - picked).double())
        hits.append(greedy(part, model.head) == tokens)
    counts = supervised[:, 1:].sum(1).tolist()
    of_rows = zip(torch.split(torch.cat(losses), counts), torch.split(torch.cat(hits), counts), strict=True)
    return [AnswerFit(float(loss.sum()), len(loss), bool(hit.all()) and len(hit) > 0) for loss, hit in of_rows]
