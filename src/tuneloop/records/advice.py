"""Whether to tune, and what that rests on: `advise.json`, and what `tuneloop advise --json` prints."""

from __future__ import annotations

from typing import Any, Literal

from tuneloop.records.plan import PlannedCost
from tuneloop.records.record import Part, Record


class AdviceReason(Part):
    """A rule that applied.

    Args:
        rule: its name in `rules.yaml`.
        kind: `answer`, `method` or `note`; `gives`: its answer or method.
        says: in words; `source`: where the rule comes from.
        facts: that it looked at.
    """

    rule: str
    kind: str
    gives: str = ""
    says: str
    source: str = ""
    facts: dict[str, Any] = {}


class Payback(Part):
    """When an alternative has paid for itself against today's prompt; None: never, and `why` says it in words."""

    usd_per_query_saved: float
    usd_per_month_saved: float
    queries: float | None = None
    days: float | None = None
    why: str = ""


class AdvisedAlternative(Part):
    """A way to answer the queries: what it costs, and when it pays back against the first one, today's prompt.

    Args:
        quality: the metric, where it was measured; `total_usd`: over the months of the case.
        why_never: why it never pays back, in words.
    """

    name: str
    upfront_usd: float
    usd_per_1000_queries: float
    usd_per_month: float
    total_usd: float
    prompt_tokens: float
    quality: float | None = None
    note: str = ""
    break_even_queries: float | None = None
    break_even_days: float | None = None
    saves_usd_per_month: float | None = None
    why_never: str = ""


class AssumptionSwing(Part):
    """What one assumption does to the net saving: its low and high value, and the dollars at each."""

    name: str
    low: float
    high: float
    at_low: float
    at_high: float

    @property
    def width(self) -> float:
        """How much the saving moves."""
        return abs(self.at_high - self.at_low)


class MonthlyBill(Part):
    """A month of serving on rented machines: some that always run, and hours of others that run when there is work."""

    mode: str
    usd: float
    replicas: int
    batch_hours: float
    utilisation: float
    usd_per_million: float


class TokenPrice(Part):
    """Dollars for 1 million tokens at the case's mix of prompt and answer, and what that rests on."""

    what: str
    usd_per_million: float
    basis: str


class AdvisedTraining(Part):
    """A training of one method on the machine that would be used.

    Args:
        hours: of one run; `usd_a_run`: the machine's price for them; `cost`: everything. None where it does not fit.
    """

    gpu: str
    gpus: int
    fits: bool
    peak_gib: float
    capacity_gib: float
    hours: float | None = None
    usd_a_run: float | None = None
    cost: PlannedCost | None = None


class MeasuredSystem(Part):
    """A measured system.

    Args:
        value, low, high: its metric with the interval; `gain_over_prompt`: over the best prompt.
        prompt_tokens: that it reads for a query; `usd_per_1000_queries`: as measured.
        recommended: whether it is the cheapest that is not significantly worse than the best.
    """

    name: str
    metric: str
    value: float
    low: float
    high: float
    gain_over_prompt: float | None = None
    prompt_tokens: float | None = None
    usd_per_1000_queries: float | None = None
    training_usd: float | None = None
    recommended: bool = False


class AdviceRecord(Record, noun="advice", file="advise.json", again="run `tuneloop advise` again"):
    """`advise.json`: the answer, and everything that it rests on.

    Args:
        answer: `tune`, `prompt` (measure and improve the prompt first) or `dont`.
        method: by which method; empty when the answer is no.
        headline: the answer in a sentence; `reasons`: the rules that applied, the deciding one first.
        steps: what to do, in order; `missing`: options that would tell more.
        break_even: of the method; `sensitivity`: of the method's net saving.
        monthly_bills: way of serving -> a month's bill; `trainings`: method -> its training.
        question: the options, and what was filled in.
        dataset_hash, source_hashes: of the data that it is about: the prepared set, or the files where only a sample of
            them was prepared.
    """

    answer: Literal["tune", "prompt", "dont"]
    method: str = ""
    headline: str
    reasons: list[AdviceReason]
    steps: list[str] = []
    missing: list[str] = []
    break_even: Payback | None = None
    alternatives: list[AdvisedAlternative] = []
    sensitivity: list[AssumptionSwing] = []
    monthly_bills: dict[str, MonthlyBill] = {}
    token_prices: list[TokenPrice] = []
    trainings: dict[str, AdvisedTraining] = {}
    leaderboard: list[MeasuredSystem] = []
    assumptions: list[str] = []
    question: dict[str, Any] = {}
    dataset_hash: str = ""
    source_hashes: list[str] = []
