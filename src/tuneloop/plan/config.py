"""What the planner can be told."""

from __future__ import annotations

from pydantic import Field

from tuneloop.core.files import Config
from tuneloop.plan.prices import CPU_USD_PER_HOUR


class PlanConfig(Config):
    """Prices and limits of the machine at hand."""

    usd_per_hour: float = Field(
        CPU_USD_PER_HOUR, ge=0.0, description="price of this machine; 0.05 is two shared cloud cores"
    )
