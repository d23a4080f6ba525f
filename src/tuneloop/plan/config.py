"""What the planner can be told."""

from __future__ import annotations

from pydantic import Field

from tuneloop.files import Config


class PlanConfig(Config):
    """Prices and limits of the machine at hand."""

    usd_per_hour: float = Field(0.05, ge=0.0, description="price of this machine; 0.05 is two shared cloud cores")
