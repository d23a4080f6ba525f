"""Statistics of the tokens of a split, of which often only a sample was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.data.dataset import token_statistics
from tuneloop.data.spool import Table


def tokens_of(table: Table, order: NDArray[np.int64]) -> dict[str, Any]:
    """Statistics of the rows' tokens; of rows that were not measured they are estimated from the characters."""
    columns = {name: table.columns[name][order] for name in ("tokens", "supervised", "characters", "answer_characters")}
    tokens, supervised = columns["tokens"], columns["supervised"]
    known = tokens >= 0
    if known.all() or not known.any():
        return token_statistics(tokens[known].tolist(), int(supervised[known].sum()))
    line = Line.through(columns["characters"][known], tokens[known])
    each = np.sort(np.where(known, tokens, np.rint(line.at(columns["characters"])).astype(np.int64)))
    total = line.total(columns["characters"])
    # supervised tokens follow the last answer or, in chats with several answers, the whole row
    of, supervised_line = max(
        ((name, Line.through(columns[name][known], supervised[known])) for name in ("answer_characters", "characters")),
        key=lambda pair: pair[1].fit,
    )
    return {
        **token_statistics(each.tolist(), supervised_line.total(columns[of])),
        "total": total,
        "mean": round(total / len(order), 2),
        "measured": int(known.sum()),
    }


@dataclass(frozen=True)
class Line:
    """The tokens of rows by their characters, fitted to the rows that were measured (Cochran 1977, Sampling Techniques, 7.1).

    That long rows are always measured does not make it too high, as it would the mean of the measured ones. The sums are whole
    numbers, so that no machine gets another result.

    Args:
        x, y: means of the characters and of what was measured.
        slope: of the line.
        fit: square of the correlation.
    """

    x: float
    y: float
    slope: float
    fit: float

    @staticmethod
    def through(characters: NDArray[Any], measured: NDArray[Any]) -> Line:
        """The line of least squares."""
        x, y = characters.astype(np.int64), measured.astype(np.int64)
        n, sum_x, sum_y = len(x), int(x.sum()), int(y.sum())
        spread_x, spread_y = n * int((x * x).sum()) - sum_x**2, n * int((y * y).sum()) - sum_y**2
        both = n * int((x * y).sum()) - sum_x * sum_y
        slope, fit = (
            both / spread_x if spread_x else 0.0,
            both**2 / (spread_x * spread_y) if spread_x and spread_y else 0.0,
        )
        return Line(sum_x / n, sum_y / n, slope, fit)

    def at(self, characters: NDArray[Any]) -> NDArray[Any]:
        """What rows of so many characters measure."""
        return np.maximum(self.y + self.slope * (characters - self.x), 1.0)

    def total(self, characters: NDArray[Any]) -> int:
        """What all rows measure together."""
        return round(len(characters) * self.y + self.slope * (int(characters.sum()) - len(characters) * self.x))
