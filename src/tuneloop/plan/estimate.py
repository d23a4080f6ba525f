"""What a run of tuneloop's own loop takes on this machine, its speed measured: memory, minutes and dollars, as ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuneloop.machine import GIB
from tuneloop.plan.shape import ModelShape


@dataclass(frozen=True)
class Work:
    """What a run computes.

    Args:
        steps: optimizer steps.
        tokens: trained tokens of all steps.
        supervised: those that the loss sees.
        val_tokens: validation tokens of all evaluations.
        micro_batches: shapes that occur: rows, padded length behind the shared beginning, length of that.
    """

    steps: int
    tokens: int
    supervised: int
    val_tokens: int
    micro_batches: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Machine:
    """Where it runs: capacity and present use in GiB, price in $/hour, speed measured in tokens a second."""

    name: str
    capacity_gib: float
    resident_gib: float
    usd_per_hour: float
    tokens_per_second: float


# Tokens a second of a validation pass relative to training: it has no backward pass, but computes shared instructions anew.
VALIDATION_SPEED = 1.8
# What the C library's heap holds beyond what is in use between two trims: 1.3 to 2.0 GiB on four runs of a 135M model
# on two cores (docs/results.md); a figure of experience, not a formula.
HEAP_SLACK_GIB = 1.5

# Spread of wall time around "tokens / measured speed" on shared processors: the probe lasts seconds, the run minutes.
TIME_LOW, TIME_HIGH = 0.85, 1.35


def memory_terms(
    shape: ModelShape, work: Work, adapter: int, rank: int, resident_gib: float, bytes_a_weight: int
) -> dict[str, float]:
    """Memory of LoRA training on a CPU in GiB, term by term; what is resident already counts as one term.

    A layer keeps for its gradient, for each token: its input, two normed inputs and the input of its second half (4 C),
    rotated queries and mixed values (2 H D), keys and values before and after the rotation (4 K D), three feed-forward
    activations (3 F) and the rank-sized products of seven matrices; besides, the keys and values that each row reads
    behind a shared beginning, and the attention weights of every row. The loss works on 256 positions of the
    vocabulary at a time: bf16 logits and fp32 probabilities.
    """
    keys, values = shape.key_heads * shape.head_size, shape.heads * shape.head_size

    def activations(rows: int, length: int, prefix: int) -> int:
        tokens = rows * length + prefix
        per_token = 4 * shape.hidden + 2 * values + 4 * keys + 3 * shape.feed_forward + 7 * rank
        read = rows * 2 * keys * (prefix + length) if prefix else 0
        weights = shape.heads * (rows * length * (length + prefix) + prefix * prefix)
        return (tokens * per_token + read + weights) * shape.layers * bytes_a_weight

    largest = max((activations(*micro) for micro in work.micro_batches), default=0)
    return {
        "weights and program (resident)": resident_gib,
        "adapter": adapter * 4 / GIB,
        "gradients": adapter * 4 / GIB,
        "optimizer": adapter * 8 / GIB,
        "checkpoint copies": adapter * 4 * 6 / GIB,  # the best adapter, the saved state and its serialised form
        "activations": largest / GIB,
        "freed buffers kept for reuse": min(HEAP_SLACK_GIB, 4 * largest / GIB),
        "loss": 256 * shape.vocabulary * (bytes_a_weight + 4) * 1.5 / GIB,
    }


def estimate(
    shape: ModelShape,
    work: Work,
    machine: Machine,
    *,
    model: str,
    rank: int,
    targets: list[str] | str,
    method: str = "lora",
    prefix_tokens: int = 0,
    bytes_a_weight: int = 2,
) -> dict[str, Any]:
    """The plan of a run on this machine, as `plan.json` holds it.

    Time is trained tokens over the measured speed of forward and backward passes, plus validation at
    `VALIDATION_SPEED` times that speed.
    """
    adapter = {"full": shape.parameters, "prefix": shape.prefix_parameters(prefix_tokens)}.get(
        method, shape.lora_parameters(rank, targets)
    )
    terms = memory_terms(shape, work, adapter, rank, machine.resident_gib, bytes_a_weight)
    peak = sum(terms.values())
    seconds = work.tokens / machine.tokens_per_second + work.val_tokens / (VALIDATION_SPEED * machine.tokens_per_second)
    hours = seconds / 3600
    usd = hours * machine.usd_per_hour
    fits = peak < 0.95 * machine.capacity_gib
    alternatives = []
    if not fits:
        alternatives.append({"change": "train.micro_batch_tokens=512", "why": "halves the activations"})
        alternatives.append({"change": "data.max_length=512", "why": "shorter rows need less for attention"})
    return {
        "version": 1,
        "model": model,
        "method": method,
        "gpu": machine.name,
        "gpus": 0 if machine.name.startswith("cpu") else 1,
        "fits": fits,
        "trainable_parameters": adapter,
        "total_parameters": shape.parameters,
        "steps": work.steps,
        "tokens": work.tokens,
        "memory": {
            "peak_gib": round(peak, 3),
            "capacity_gib": round(machine.capacity_gib, 2),
            "phase": "layer backward",
            "terms": {name: round(value, 4) for name, value in terms.items()},
        },
        "time": {
            "hours": hours,
            "low": hours * TIME_LOW,
            "high": hours * TIME_HIGH,
            "tokens_per_second": round(machine.tokens_per_second, 1),
        },
        "cost": {
            "usd": usd,
            "low": usd * TIME_LOW,
            "high": usd * TIME_HIGH,
            "breakdown": {"training": usd, "usd_per_hour": machine.usd_per_hour},
        },
        "assumptions": [
            f"speed expected from a measurement on this machine just now: {machine.tokens_per_second:.0f} tokens/s forward and backward",
            "early stopping not counted: it can only make the run shorter",
            f"price given: ${machine.usd_per_hour:g} an hour",
            "baselines and the final evaluation are not in these figures",
        ],
        "alternatives": alternatives,
    }
