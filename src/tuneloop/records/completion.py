"""One answer of a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What a contender said to one prompt.

    Args:
        text: the answer, without control tokens.
        prompt_tokens: tokens read.
        tokens: tokens written.
        finished: whether the model ended its turn (False: the length limit cut it).
        scores: for choice scoring, one length-normalised log likelihood for each label.
    """

    text: str
    prompt_tokens: int = 0
    tokens: int = 0
    finished: bool = True
    scores: dict[str, float] | None = None
