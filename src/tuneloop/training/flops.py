"""How well a run used the machine: operations that its gradients needed over those that the machine could have done."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tuneloop.core.device import backend, default_dtype, wait
from tuneloop.core.errors import UserError
from tuneloop.models.methods import method_named
from tuneloop.models.nn import ModelShape
from tuneloop.training.rows import TrainRow, conversations

if TYPE_CHECKING:
    import torch

    from tuneloop.models import Model

DEFINITION = (
    "Model FLOP utilisation: floating-point operations that the gradients need, over the seconds of all optimizer "
    "steps, over the measured peak of large matrix products in the model's dtype. Needed are 2 a weight and token for "
    "the forward pass, 2 for the gradient of its input and, where all weights learn, 2 for its own; the vocabulary "
    "projection on supervised tokens only; causal attention. Padding, recomputation, the adapter, evaluations and "
    "checkpoints are not counted."
)


def needed_gflop(config: Mapping[str, Any], method: str, rows: Iterable[TrainRow]) -> float:
    """Operations that the gradient of these rows needs, in GFLOP.

    A matrix costs 2 a weight and token forward, 2 for the gradient of its input and 2 for its own (Kaplan et al. 2020,
    arXiv 2001.08361, sec. 2.1); frozen ones save the last. Causal attention costs 2 T C a token and layer forward (half
    of 4 T C), and twice that backward. See DEFINITION for what is left out. Rows count as often as they are trained on,
    of preferences all conversations. Raises UserError: `config` is not that of a dense decoder with a gated
    feed-forward part.
    """
    shape = ModelShape.from_config(config)
    body, head, attention = shape.computed_parameters, shape.embedding, 6 * shape.queries * shape.layers
    tokens = supervised = squares = 0
    for row in rows:
        for part in conversations(row):
            tokens += len(part.ids)
            squares += len(part.ids) ** 2
            supervised += sum(1 for weight in part.mask[1:] if weight)
    passes = 6 if method_named(method).footprint.all_weights else 4
    return (passes * (body * tokens + head * supervised) + attention * squares) / 1e9


def matmul_peak(dtype: torch.dtype | None = None, device: torch.device | str = "cpu", seconds: float = 0.3) -> float:
    """GFLOP/s of the best of some large matrix products on this machine now, by default in the dtype of its models, in
    about so many seconds: they grow while there is time for larger ones."""
    import torch

    dtype, best, began = dtype or default_dtype(), 0.0, time.perf_counter()
    for n in backend(device).peak_sizes:
        if best and 2 * n**3 / best / 1e9 > seconds / 2:
            break
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        a @ b  # a GPU's library looks for its kernel of this size first
        wait()
        size_began = time.perf_counter()
        for _ in range(64):
            start = time.perf_counter()
            a @ b
            wait()
            end = time.perf_counter()
            best = max(best, 2 * n**3 / (end - start) / 1e9)
            if end - size_began > seconds / 4 or end - began > seconds:
                break
    return best


def measured_use(
    model: Model, method: str, rows: Sequence[TrainRow], records: Iterable[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """`utilisation` by the peak of this machine, which is measured now in the model's dtype."""
    return utilisation(model.config, method, rows, records, matmul_peak(model.head.dtype, model.head.device))


def utilisation(
    config: Mapping[str, Any], method: str, rows: Sequence[TrainRow], records: Iterable[Mapping[str, Any]], peak: float
) -> dict[str, Any] | None:
    """The `mfu` of `run.json`, by the records of `metrics.jsonl`, whose rows are places, and `matmul_peak`; None: not
    countable, or before the first step. A share above 1 means a busy machine at the peak's time: `value` is None."""
    steps = [r for r in records if "loss" in r and r.get("rows") and r.get("tokens_per_second")]
    seconds = sum(r["tokens"] / r["tokens_per_second"] for r in steps)
    try:
        gflop = needed_gflop(config, method, (rows[i] for r in steps for i in r["rows"]))
    except UserError:
        return None
    if not steps or seconds <= 0 or peak <= 0:
        return None
    share = gflop / seconds / peak
    return {
        "value": share if share <= 1 else None, "needed_gflop": round(gflop, 1), "step_seconds": round(seconds, 2),
        "peak_gflops": round(peak, 1), "definition": DEFINITION,
    }  # fmt: skip
