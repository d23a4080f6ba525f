"""What `tuneloop ab plan` is asked."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tuneloop.core.files import Config


class ExperimentPlanOptions(Config):
    """Traffic, ratings, and the effect to be found."""

    PANEL: ClassVar[str] = "Traffic and effect"

    requests_per_day: float = Field(1000.0, gt=0, le=1e9, description="Requests a day, of both arms.")
    rated: float = Field(0.03, gt=0, le=1, description="Share of the requests that get a rating.")
    base: float = Field(0.6, gt=0, lt=1, description="Share of the ratings that are good today.")
    effect: float = Field(
        0.05, gt=0, lt=1, description="Smallest rise of that share that would be worth a new version."
    )
    share: float = Field(0.1, gt=0, lt=1, description="Share of the traffic that the candidate gets.")
    alpha: float = Field(0.05, ge=1e-6, le=0.5, description="Chance of a wrong decision that is accepted.")
    simulations: int = Field(1000, ge=100, le=20_000, description="Simulated experiments.")
    seed: int = Field(0, ge=0, description="Seed of the simulation.")
