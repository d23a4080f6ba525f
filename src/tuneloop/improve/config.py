"""What `tuneloop ab` is asked."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from tuneloop.core.files import Config
from tuneloop.core.flag import Flag


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


class ExperimentOptions(Config):
    """What is registered before an experiment begins."""

    PANEL: ClassVar[str] = "Registration"

    model: Annotated[str, Flag(metavar="MODEL")] = Field("", description="Name under which the model is served.")
    candidate: Annotated[str, Flag(metavar="TARGET")] = Field(
        "@candidate", description="What the candidate is: NAME@ALIAS or another target."
    )
    champion: Annotated[str, Flag(metavar="TARGET")] = Field("@champion", description="What it is compared with.")
    ramp: Annotated[str, Flag(metavar="PERCENT,...")] = Field(
        "10,25,50,100", description="Shares of new users that meet the candidate, step by step."
    )
    measure: Annotated[str, Flag(metavar="KIND")] = Field("thumbs", description="Kind of feedback that decides.")
    lower_is_better: bool = Field(False, description="Little of the measure is good.")
    effect: float = Field(0.05, gt=0, lt=1, description="Smallest gain that is worth a promotion.")
    base: float = Field(0.6, gt=0, lt=1, description="The measure under the champion, about.")
    alpha: float = Field(0.05, ge=1e-6, le=0.5, description="Chance of a wrong decision that is accepted.")
    hold_days: float = Field(3.0, ge=0, description="Days that a step of the ramp lasts at least.")
    maturation_hours: float = Field(72.0, gt=0, description="Hours after a user's first request in which feedback counts.")  # fmt: skip
    most_days: float = Field(365.0, gt=0, description="Days after which the experiment ends.")
    shadow: Annotated[bool, Flag(("--shadow/--no-shadow",))] = Field(
        True, description="Begin with copies of requests that the candidate answers unseen, before anybody meets it."
    )
    shadow_copies: int = Field(100, ge=30, description="Copies after which shadow mode is over.")
