"""How likely a model finds the reference answers: mean loss a token, and perplexity."""

from __future__ import annotations

from collections.abc import Sequence

from tuneloop.core.late import np
from tuneloop.core.stats import Array, Statistics, ratio
from tuneloop.records.metric import Metric

METRICS = (
    Metric("loss", "loss", "from 0", "lower", needs="losses", meaning="mean of -log likelihood of a reference token, in nats"),
    Metric("perplexity", "perplexity", "from 0", "lower", needs="losses", decimals=1, precise=1, meaning="e to the loss; compared by the test of the loss"),
)  # fmt: skip


def loss_statistics(losses: Sequence[float], tokens: Sequence[int]) -> Statistics:
    """Mean loss of the answers' tokens and its exponential, perplexity, from each row's summed loss (nats) and tokens."""
    rows = np.array([losses, tokens], dtype=np.float64).T

    def loss(sums: Array) -> Array:
        return ratio(sums[:, 0], sums[:, 1], empty=np.nan)

    def perplexity(sums: Array) -> Array:
        return np.exp(np.minimum(loss(sums), 50.0))

    each = [float(x) for x in loss(rows)]
    return Statistics(
        rows,
        {"loss": loss, "perplexity": perplexity},
        {"loss": each, "perplexity": [float(np.exp(min(x, 50.0))) for x in each]},
        same={"perplexity": "loss"},
    )
