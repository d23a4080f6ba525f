"""Settings of `tuneloop advise`: facts about the case, results that were measured, prices."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from tuneloop.core.files import Config
from tuneloop.core.flag import Flag, flag, option
from tuneloop.planning import CostOptions


class CaseOptions(Config):
    """Facts about the case; whatever is not given stays unknown."""

    PANEL: ClassVar[str] = "Your case"

    model: Annotated[str, Flag(("--model", "-m"), "MODEL")] = option(
        "Base model; with --measure the default is smollm2-135m.", "llama-3.1-8b", min_length=1
    )
    task: Literal["classification", "generation", "chat"] | None = option(
        "The task: classification, generation or chat."
    )
    rows: int | None = option("Examples to train on.", ge=0, le=10**9)
    labels: int | None = option("Number of labels.", ge=1, le=10**6)
    tokens_per_row: float | None = option("Tokens of a training row.", gt=0, le=10**6)
    epochs: float = option("Passes over the examples.", 3.0, gt=0, le=1000)
    queries_per_day: float | None = option("Queries a day.", gt=0, le=1e12)
    baseline_prompt_tokens: float | None = option("Tokens of a query's prompt today.", gt=0, le=10**7)
    prompt_tokens: float | None = option("Tokens of the tuned model's prompt.", gt=0, le=10**7)
    answer_tokens: float | None = option("Tokens of an answer.", ge=0, le=10**6)
    target: float | None = option("Quality that is needed, as 0.9.", ge=0, le=100)
    latency_ms: float | None = option("Milliseconds in which an answer is needed.", gt=0, le=10**7)
    facts_change: bool | None = flag(
        None, "", "Whether answers rest on facts that change.", "--facts-change/--facts-stay"
    )
    new_domain: bool | None = flag(
        None, "", "Whether the model has to learn much that is new.", "--new-domain/--known-domain"
    )
    gpu: str | None = flag(None, "GPU", "The GPU that you have; else the cheapest one that fits is rented.")
    gpus: int | None = option("Number of these GPUs.", ge=1, le=4096)
    budget_usd: float | None = flag(
        None, "", "Dollars that everything before the first query may cost.", "--budget", least=0, most=10**9
    )
    serving: Literal["token", "batch", "real-time", "hybrid"] = option(
        "How the tuned model is billed: token, batch, real-time or hybrid.", "token"
    )
    months: float = option("Months over which savings count.", 12.0, gt=0, le=120)
    retrain_months: float = option("Months between retrainings; 0 for never.", 0.0, ge=0, le=120)
    usd_per_million_input: float | None = option("Price of 1M tokens that the model reads.", ge=0, le=10**4)
    usd_per_million_output: float | None = option("Price of 1M tokens that it writes.", ge=0, le=10**4)
    baseline_usd_per_million_input: float | None = option(
        "Price of 1M tokens that today's model reads, where that is another.", ge=0, le=10**4
    )
    baseline_usd_per_million_output: float | None = option("Price of 1M tokens that it writes.", ge=0, le=10**4)
    usd_per_million_tuning: float | None = option(
        "Price of 1M tokens that a service (run --on) trains on.", ge=0, le=10**4
    )


class MeasuredOptions(Config):
    """What was measured, and where."""

    PANEL: ClassVar[str] = "Measured results"

    evaluation: str = flag("", "FILE", "An eval.json, or its folder, with measured results.", "--eval")
    metric: str = flag("", "NAME", "The metric that decides.")
    combined: str = flag("", "FILE,...", "Measured merges, routers, cascades and distillations: files or folders.")
    zero_shot: float | None = option("Share of right answers without examples, measured by you, as 0.6.")
    few_shot: float | None = option("Share of right answers with examples in the prompt.")
    classifier: float | None = option("Share of right answers of a cheap classifier.")
    test_rows: int | None = option("Test rows on which these were measured.")


class AdviseOptions(CaseOptions, MeasuredOptions, CostOptions):
    """The options of `tuneloop advise`."""
