"""How much is computed before it is looked at who else waits."""

from __future__ import annotations

from dataclasses import dataclass

QUANTUM = 0.03  # seconds of work that yields, as far as whole tokens allow
SHARE = 0.05  # of the time that such work gets where someone is being answered all the time


@dataclass
class Pace:
    """How many tokens a quantum takes, learned from those before: as many as are computed in `QUANTUM` seconds.

    Args:
        least, most: tokens of a quantum.
        each: seconds of a token; 0: nothing is known yet.
    """

    least: int
    most: int
    each: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of the next quantum."""
        return self.least if not self.each else min(max(int(QUANTUM / self.each), self.least), self.most)

    def learn(self, tokens: int, seconds: float) -> None:
        """Take a quantum in."""
        if tokens > 0:
            now = seconds / tokens
            self.each = now if not self.each else 0.8 * self.each + 0.2 * now
