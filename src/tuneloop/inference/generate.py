"""Answers from a model: free generation, choice scoring over a label trie, and loss on given answers.

All three read what prompts have in common once (few-shot examples, an instruction), work in batches of
similar length, and take rows as prompts of token ids. Which token comes next is said by `sampling.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuneloop.core.progress import Progress, busy, no_progress
from tuneloop.inference.sampling import GREEDY, Sampler, Sampling, greedy, highest
from tuneloop.models.load import Model
from tuneloop.models.template import Rendered
from tuneloop.records.completion import Answer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _Prompts:
    """Prompts split into what all share and the rest, left-padded in batches."""

    shared: list[int]
    rests: list[list[int]]


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the ids that all prompts start with, leaving each at least one of its own."""
    if len(prompts) < 2:
        return 0
    first, last = min(map(list, prompts)), max(map(list, prompts))
    length = min(len(p) for p in prompts) - 1
    for i in range(length):
        if first[i] != last[i]:
            return i
    return max(length, 0)


def _split(prompts: Sequence[Sequence[int]]) -> _Prompts:
    length = shared_length(prompts)
    if length < 8:  # not worth a pass of its own
        length = 0
    return _Prompts(list(prompts[0][:length]) if prompts else [], [list(p[length:]) for p in prompts])


def _batches(lengths: Sequence[int], tokens: int, rows: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, each at most `tokens` padded tokens and `rows` rows."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for i in order:
        longest = lengths[batch[0]] if batch else lengths[i]
        if batch and ((len(batch) + 1) * longest > tokens or len(batch) >= rows):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _read_shared(model: Model, shared: list[int], progress: Progress, task: str) -> Any:
    """Cache of the shared ids (one row), or None."""
    import torch

    if not shared:
        return None
    cache = model.new_cache()
    with busy(progress, f"{task}: reading what the prompts share"):
        model.hidden(torch.tensor([shared], device=model.device), cache=cache)
    return cache


@dataclass
class _Padded:
    """A left-padded batch behind a shared prefix: ids and positions (B, L), who is real (B, P + L), its mask."""

    ids: Tensor
    positions: Tensor
    real: Tensor
    lengths: Tensor
    mask: Tensor

    @property
    def own(self) -> Tensor:
        """Who is real behind the prefix (B, L)."""
        return self.real[:, -self.ids.shape[1] :]


def _pad(rests: Sequence[Sequence[int]], shared: int, pad_id: int, device: Any) -> _Padded:
    import torch

    longest = max(len(r) for r in rests)
    ids = torch.full((len(rests), longest), pad_id, dtype=torch.long)
    lengths = torch.tensor([len(r) for r in rests])
    for row, rest in enumerate(rests):
        ids[row, longest - len(rest) :] = torch.tensor(rest)
    steps = torch.arange(longest)
    positions = (steps - (longest - lengths)[:, None]).clamp(min=0) + shared
    real = torch.cat((torch.ones(len(rests), shared, dtype=torch.bool), steps >= (longest - lengths)[:, None]), 1)
    causal = torch.ones(longest, shared + longest, dtype=torch.bool).tril(shared)
    itself = torch.zeros(longest, shared + longest, dtype=torch.bool)
    itself[steps, shared + steps] = True  # padding looks at itself: no row of the softmax may be empty
    mask = (causal & real[:, None]) | itself
    return _Padded(
        ids.to(device), positions.to(device), real.to(device), lengths.to(device) + shared, mask[:, None].to(device)
    )


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sequence[Sampling] | None = None,
    batch_tokens: int = 24576,
    batch_rows: int = 64,
    progress: Progress = no_progress,
    task: str = "generating",
) -> list[Answer]:
    """Answers to prompts, greedy unless told otherwise.

    Args:
        prompts: token ids, each ending with the assistant's header (`Template.prompt_ids`).
        max_new_tokens: length at which an answer is cut.
        sampling: how the tokens of each answer are drawn, one a prompt; None: all greedily. An answer depends on its own
            prompt and sampling alone, not on the others.
        batch_tokens, batch_rows: bounds of one batch, prompt tokens included.
        progress: gets rows; a row that is being written counts by its share of `max_new_tokens`.

    Returns:
        One answer a prompt, in order.
    """
    import torch

    answers: list[Answer | None] = [None] * len(prompts)
    if not prompts:
        return []
    sampling = [GREEDY] * len(prompts) if sampling is None else sampling
    if len(sampling) != len(prompts):
        raise ValueError(f"{len(sampling)} samplings for {len(prompts)} prompts")
    with torch.inference_mode():
        split = _split(prompts)
        prefix = _read_shared(model, split.shared, progress, task)
        done = 0
        lengths = [len(r) + max_new_tokens for r in split.rests]
        progress(task, 0, len(prompts))
        for batch in _batches(lengths, batch_tokens, batch_rows):
            sampler = Sampler([sampling[i] for i in batch], model.device)
            ids = _decode(
                model, split, prefix, batch, max_new_tokens, sampler,
                lambda written, before=done: progress(task, before + written, len(prompts)),  # type: ignore[misc]
            )  # fmt: skip
            for i, new in zip(batch, ids, strict=True):
                finished = bool(new) and new[-1] in model.template.end_ids
                text = model.template.decode(new[:-1] if finished else new)
                answers[i] = Answer(text.strip(), len(prompts[i]), len(new), finished)
            done += len(batch)
            progress(task, done, len(prompts))
    return [answer for answer in answers if answer is not None]


def _decode(
    model: Model,
    split: _Prompts,
    prefix: Any,
    batch: list[int],
    limit: int,
    sampler: Sampler,
    written: Callable[[float], None],
) -> list[list[int]]:
    """Tokens of one batch; rows leave it when they have ended. `written` is told how many rows' work is done."""
    import torch

    device = model.device
    padded = _pad([split.rests[i] for i in batch], len(split.shared), model.template.pad_id, device)
    rows = len(batch)
    cache = model.new_cache() if prefix is None else prefix.select(torch.zeros(rows, dtype=torch.long, device=device))
    hidden = model.hidden(padded.ids, padded.positions, padded.mask, cache, padded.own)[:, -1]
    new: list[list[int]] = [[] for _ in batch]
    alive = list(range(rows))
    real, positions = padded.real, padded.lengths
    ends = torch.tensor(model.template.end_ids, device=device)
    for step in range(limit):
        token = sampler.next(hidden, model.head)
        ended = torch.isin(token, ends)
        for slot, value in enumerate(token.tolist()):
            row = alive[slot]
            if row >= 0:
                new[row].append(value)
        flags = ended.tolist()
        alive = [-1 if flags[slot] else row for slot, row in enumerate(alive)]
        left = sum(row >= 0 for row in alive)
        if not left or step + 1 == limit:
            break
        written(rows - left + left * (step + 1) / limit)
        if left <= 0.75 * len(alive):  # copying the cache pays when a quarter of the rows is gone
            keep = torch.tensor([slot for slot, row in enumerate(alive) if row >= 0], device=device)
            cache, real, positions, token = cache.select(keep), real[keep], positions[keep], token[keep]
            sampler.keep(keep)
            alive = [row for row in alive if row >= 0]
        real = torch.cat((real, torch.ones(len(alive), 1, dtype=torch.bool, device=device)), 1)
        hidden = model.hidden(token[:, None], positions[:, None], real[:, None, None], cache)[:, -1]
        positions = positions + 1
    return new


@dataclass(frozen=True)
class LabelTrie:
    """Labels as token sequences (end of turn included) in a prefix tree.

    Node 0 is the prompt's last token. Arrays run over the further nodes that have children (those that must be
    computed), in order of depth: `ids`, `depths`, `ancestors` (n, n; True: the column is on the row's path, itself
    included). `edges` are (label, parent node, token): summing over a label's edges gives its log likelihood.
    """

    labels: tuple[str, ...]
    lengths: tuple[int, ...]
    ids: tuple[int, ...]
    depths: tuple[int, ...]
    ancestors: tuple[tuple[bool, ...], ...]
    edges: tuple[tuple[int, int, int], ...]


def label_trie(labels: Sequence[str], tokens: Sequence[Sequence[int]]) -> LabelTrie:
    """Build the tree; `tokens[i]` are the ids of `labels[i]` with the end-of-turn token."""
    internal = sorted({tuple(t[:n]) for t in tokens for n in range(1, len(t))}, key=lambda path: (len(path), path))
    number = {path: i + 1 for i, path in enumerate(internal)} | {(): 0}
    ancestors = tuple(tuple(path[: len(other)] == other for other in internal) for path in internal)
    edges = tuple((i, number[tuple(t[:n])], t[n]) for i, t in enumerate(tokens) for n in range(len(t)))
    return LabelTrie(
        tuple(labels),
        tuple(len(t) for t in tokens),
        tuple(path[-1] for path in internal),
        tuple(len(path) for path in internal),
        ancestors,
        edges,
    )


def choose(
    model: Model,
    prompts: Sequence[Sequence[int]],
    trie: LabelTrie,
    *,
    content_free: Sequence[int] | None = None,
    prune: bool = False,
    batch_tokens: int = 4096,
    progress: Progress = no_progress,
    task: str = "scoring labels",
) -> list[Answer]:
    """Score every label under every prompt and answer with the best.

    A label's score is the mean log likelihood of its tokens, the end of turn included, so that long labels are not at
    a disadvantage. One forward pass a row computes the prompt and all labels: the tree's nodes follow the
    prompt, and each sees the prompt and its own path only.

    Args:
        prompts: token ids, each ending with the assistant's header.
        trie: the labels.
        content_free: a prompt without the text to classify; its scores are subtracted, which takes out the model's
            liking for some labels (Zhao et al. 2021, arXiv 2102.09690; Holtzman et al. 2021, arXiv 2104.08315).
        prune: look for the best label only. Labels that can't win any more are not computed to their end, and their
            scores are upper bounds; the best label and its score are the same.
    """
    import torch

    if not prompts:
        return []
    with torch.inference_mode():
        if content_free is not None:
            offset = _label_scores(model, [content_free], trie, batch_tokens)
        else:
            offset = torch.zeros(1, len(trie.labels))
        if prune:
            scores = _best_first(model, prompts, trie, offset, batch_tokens, progress, task)
        else:
            scores = _label_scores(model, prompts, trie, batch_tokens, progress, task) - offset
        answers = []
        for prompt, row in zip(prompts, scores.tolist(), strict=True):
            best = max(range(len(row)), key=row.__getitem__)
            answers.append(
                Answer(
                    trie.labels[best], len(prompt), trie.lengths[best], True, dict(zip(trie.labels, row, strict=True))
                )
            )
    return answers


@dataclass(frozen=True)
class _Tree:
    """A `LabelTrie` as tensors.

    Nodes (N) are counted from 0, the prompt's last token; arcs (A) lead from a node to each token that may follow it.

    Args:
        ids, depths: of the nodes behind the prompt (N - 1).
        sees: which of these each sees (N - 1, N - 1).
        arc_parent, arc_token: of each arc.
        arcs: the arcs that leave each node (N, most of them), filled up with -1.
        forks: nodes that more than one arc leaves (N).
        paths: each label's nodes behind the prompt, by depth (labels, depth), filled up with 0.
        shares: 1 / the label's length for the arcs on its way (labels, A): scores are their product with log probabilities.
        on_path: 1 for the label's nodes (labels, N).
    """

    ids: Tensor
    depths: Tensor
    sees: Tensor
    arc_parent: Tensor
    arc_token: Tensor
    arcs: Tensor
    forks: Tensor
    paths: Tensor
    shares: Tensor
    on_path: Tensor

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
        return logp @ self.shares.t()


def _label_scores(
    model: Model,
    prompts: Sequence[Sequence[int]],
    trie: LabelTrie,
    batch_tokens: int,
    progress: Progress = no_progress,
    task: str = "",
) -> Tensor:
    """Length-normalised log likelihoods (rows, labels), fp32."""
    import torch

    device = model.device
    split = _split(prompts)
    prefix = _read_shared(model, split.shared, progress, task)
    tree, nodes = _Tree.of(trie, device), len(trie.ids)
    out = torch.empty(len(prompts), len(trie.labels))
    done = 0
    progress(task, 0, len(prompts))
    for batch in _batches([len(r) + nodes for r in split.rests], batch_tokens, 64):
        padded = _pad([split.rests[i] for i in batch], len(split.shared), model.template.pad_id, device)
        rows, longest = padded.ids.shape
        seen = padded.real.shape[1]
        mask = torch.zeros(rows, 1, longest + nodes, seen + nodes, dtype=torch.bool, device=device)
        mask[:, :, :longest, :seen] = padded.mask
        mask[:, :, longest:, :seen] = padded.real[:, None, None]
        mask[:, :, longest:, seen:] = tree.sees
        ids = torch.cat((padded.ids, tree.ids.expand(rows, -1)), 1)
        positions = torch.cat((padded.positions, padded.lengths[:, None] - 1 + tree.depths), 1)
        cache = None if prefix is None else prefix.select(torch.zeros(rows, dtype=torch.long, device=device))
        own = torch.cat((padded.own, torch.ones(rows, nodes, dtype=torch.bool, device=device)), 1)
        hidden = model.hidden(ids, positions, mask, cache, own)[:, longest - 1 :]
        for row, i in enumerate(batch):
            logp = _token_scores(hidden[row], model.head, tree.arc_parent, tree.arc_token)
            out[i] = tree.scores(logp[None])[0].cpu()
            progress(task, done + row + 1, len(prompts))
        done += len(batch)
    return out


def _token_scores(hidden: Tensor, head: Tensor, at: Tensor, tokens: Tensor) -> Tensor:
    """log p of `tokens` (n) at the positions `at` (n) of hidden states (positions, C), fp32.

    The tokens are scored in fp32; the normaliser sums over the vocabulary, where rounding averages out.
    """
    picked = (hidden.float()[at] * head[tokens].float()).sum(-1)
    return picked - _log_normaliser(hidden, head)[at]


def _best_first(
    model: Model,
    prompts: Sequence[Sequence[int]],
    trie: LabelTrie,
    offset: Tensor,
    batch_tokens: int,
    progress: Progress,
    task: str,
) -> Tensor:
    """Scores (rows, labels) minus `offset` (1, labels) of which the greatest of each row is exact, the others upper bounds.

    A log probability is at most 0, so the sum over the tokens known so far, divided by the length, bounds a label's
    score from above. A row goes down its most promising label first, to the end; from then on it goes on with all labels
    whose bounds are not below the best finished one, until there is none.
    """
    import torch

    device = model.device
    split = _split(prompts)
    prefix = _read_shared(model, split.shared, progress, task)
    tree = _Tree.of(trie, device)
    out = torch.empty(len(prompts), len(trie.labels))
    depth = max(trie.lengths)
    done = 0
    progress(task, 0, len(prompts))
    for batch in _batches([len(r) + depth for r in split.rests], batch_tokens, 128):
        search = _Search(model, tree, [split.rests[i] for i in batch], len(split.shared), prefix, offset.to(device))
        left = torch.tensor(batch)
        while len(left):
            bounds = search.bounds()
            over = search.finished(bounds)
            out[left[over.cpu()]] = bounds[over].cpu()
            progress(task, done + int(over.sum()), len(prompts))
            if int(over.sum()) >= 0.25 * len(left):  # copying the cache pays when a quarter of the rows is gone
                done += int(over.sum())
                search.keep(~over)
                left, bounds, over = left[~over.cpu()], bounds[~over], over[~over]
            if len(left):
                search.expand(bounds, ~over)
    return out


class _Search:
    """The state of `_best_first` for one batch: what each row has computed of the tree, and where in the cache it lies."""

    def __init__(
        self, model: Model, tree: _Tree, rests: Sequence[Sequence[int]], shared: int, prefix: Any, offset: Tensor
    ) -> None:
        import torch

        self.model, self.tree, self.offset = model, tree, offset
        device, rows = model.device, len(rests)
        padded = _pad(rests, shared, model.template.pad_id, device)
        start = torch.zeros(rows, dtype=torch.long, device=device)
        self.cache = model.new_cache() if prefix is None else prefix.select(start)
        hidden = model.hidden(padded.ids, padded.positions, padded.mask, self.cache, padded.own)[:, -1]
        self.lengths = padded.lengths
        self.real = padded.real  # (rows, S): who in the cache is prompt
        nodes = len(tree.ids)
        self.place = torch.full((rows, nodes), -1, dtype=torch.long, device=device)  # of a node in the cache
        self.known = torch.zeros(rows, nodes + 1, dtype=torch.bool, device=device)
        self.logp = torch.zeros(rows, len(tree.arc_token), device=device)  # of an arc; 0 while unknown
        self._learn(torch.arange(rows, device=device), torch.zeros(rows, dtype=torch.long, device=device), hidden)

    def bounds(self) -> Tensor:
        """Upper bounds of the scores (rows, labels)."""
        return self.tree.scores(self.logp) - self.offset

    def _open(self) -> Tensor:
        """Which labels have nodes that are not computed (rows, labels)."""
        missing: Tensor = (~self.known).float() @ self.tree.on_path.t() > 0
        return missing

    def finished(self, bounds: Tensor) -> Tensor:
        """Which rows have a computed label that no other can exceed."""
        best = bounds.argmax(-1, keepdim=True)
        over: Tensor = ~self._open().gather(1, best)[:, 0]
        return over

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows only."""
        index = rows.nonzero()[:, 0]
        self.cache = self.cache.select(index)
        self.lengths, self.real, self.place = self.lengths[index], self.real[index], self.place[index]
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
        wanted = torch.zeros_like(self.known)
        which, at = (missing & (forks.cumsum(-1) - forks == 0)).nonzero(as_tuple=True)
        wanted[row[which], path[which, at]] = True
        return wanted

    def expand(self, bounds: Tensor, rows: Tensor) -> None:
        """Compute the next nodes of the labels that may win, in the rows (bool) that are not over."""
        import torch

        tree, device = self.tree, self.logp.device
        wanted = self._next(bounds, rows)
        row, node = wanted[:, 1:].nonzero(as_tuple=True)  # by row, and in a row by depth
        counts = wanted[:, 1:].sum(-1)
        column = torch.arange(len(row), device=device) - (counts.cumsum(0) - counts)[row]
        width, before = int(counts.max()), self.real.shape[1]
        self.place[row, node] = before + column
        shape = (len(wanted), width)
        ids = torch.zeros(shape, dtype=torch.long, device=device)
        depths = torch.ones(shape, dtype=torch.long, device=device)
        ids[row, column], depths[row, column] = tree.ids[node], tree.depths[node]
        mask = torch.zeros(*shape, before + width, dtype=torch.bool, device=device)
        mask[:, :, :before] = self.real[:, None]
        which, ancestor = tree.sees[node].nonzero(as_tuple=True)
        mask[row[which], column[which], self.place[row[which], ancestor]] = True
        own = torch.arange(width, device=device) < counts[:, None]
        hidden = self.model.hidden(ids, self.lengths[:, None] - 1 + depths, mask[:, None], self.cache, own)
        self.real = torch.cat((self.real, torch.zeros_like(own)), 1)
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

    softmax in one pass is faster on CPUs than exp and sum: the inverse of its maximum is the sum over exp(logit - highest). bf16 logits
    are rounded; that averages out over many tokens, but not where a few carry the sum, so the four highest enter it in fp32.
    """
    import torch

    out = []
    for part in torch.split(hidden, 256):
        logits = part @ head.t()
        top = logits.amax(-1).float()
        total = 1 / torch.softmax(logits, -1, dtype=torch.float32).amax(-1)
        high = highest(logits, 4)
        exact = (part.float()[:, None] * head[high].float()).sum(-1)
        few, few_exact = (torch.exp(x.float() - top[:, None]).sum(-1) for x in (logits.gather(1, high), exact))
        out.append(top + torch.log((total - few).clamp(min=0) + few_exact))
    return torch.cat(out)


@dataclass(frozen=True)
class AnswerFit:
    """How well a model foresees a row's supervised tokens.

    Args:
        loss: sum of -log likelihood.
        tokens: how many they are.
        verbatim: whether greedy decoding would write exactly these: each is the likeliest after those before it.
    """

    loss: float
    tokens: int
    verbatim: bool


def answer_fits(
    model: Model,
    rows: Sequence[Rendered],
    *,
    batch_tokens: int = 4096,
    progress: Progress = no_progress,
    task: str = "validating",
) -> list[AnswerFit]:
    """The fit of each row's supervised tokens, in order; one forward pass a row, in fp32 from the logits on."""
    import torch

    fits: list[AnswerFit | None] = [None] * len(rows)
    done = 0
    if rows:
        progress(task, 0, len(rows))
    with torch.inference_mode():
        for batch in _batches([len(r.ids) for r in rows], batch_tokens, 256):
            longest = max(len(rows[i].ids) for i in batch)
            ids = torch.full((len(batch), longest), model.template.pad_id, dtype=torch.long)
            learned = torch.zeros((len(batch), longest), dtype=torch.bool)
            for slot, i in enumerate(batch):
                ids[slot, : len(rows[i].ids)] = torch.tensor(rows[i].ids)
                learned[slot, : len(rows[i].ids)] = torch.tensor(rows[i].mask, dtype=torch.bool)
            ids, learned = ids.to(model.device), learned.to(model.device)
            hidden = model.hidden(ids)[:, :-1][learned[:, 1:]]
            targets = ids[:, 1:][learned[:, 1:]]
            losses, hits = [], []
            for part, wanted in zip(torch.split(hidden, 512), torch.split(targets, 512), strict=True):
                picked = (part.float() * model.head[wanted].float()).sum(-1)
                losses.append((_log_normaliser(part, model.head) - picked).double())
                hits.append(greedy(part, model.head) == wanted)
            counts = learned[:, 1:].sum(1).tolist()
            of_rows = zip(torch.split(torch.cat(losses), counts), torch.split(torch.cat(hits), counts), strict=True)
            for slot, (loss, hit) in enumerate(of_rows):
                fits[batch[slot]] = AnswerFit(float(loss.sum()), len(loss), bool(hit.all()) and len(hit) > 0)
            done += len(batch)
            progress(task, done, len(rows))
    return [fit for fit in fits if fit is not None]
