"""A system's answers as an evaluation with its costs, in a line and in files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneloop.core.files import read_json
from tuneloop.core.ui import busy
from tuneloop.core.units import counted
from tuneloop.evaluation import ScoredAnswers, score_rows
from tuneloop.evaluation.metrics import headline_of, lower_is_better, metric_of, percentage, title_of
from tuneloop.models import trained_folder
from tuneloop.models.adapters import ATTACHED
from tuneloop.models.methods import OWN
from tuneloop.pipeline.context import RunContext
from tuneloop.recipe import Recipe
from tuneloop.records.completion import ENGINE, Completion
from tuneloop.records.evaluation import Estimate
from tuneloop.records.rows import Dataset, Row
from tuneloop.records.run import RunManifest

# Settings that baselines don't depend on.
AFTERWARDS = {
    "general", "general_rows", "memorisation", "consistency", "consistency_rows",
}  # fmt: skip
FEW_STEPS = 30  # below this a run is a trial, whatever came of it


@dataclass(frozen=True)
class SystemAnswers:
    """A system's answers and what they took."""

    completions: list[Completion]  # one a row
    seconds: float  # to get them
    training_seconds: float = 0.0  # spent before
    computed: int = 0  # tokens that were computed (what prompts share is computed once); 0: unknown
    further: tuple[Sequence[str], ...] = ()  # more answers to the same prompts (pass@k), a list a row; or empty
    note: str = ""  # what a reader has to know about the prompts

    @property
    def perplexity(self) -> float | None:
        """exp of the mean loss of a reference token; None where it was not measured on all rows."""
        losses = [answer.loss for answer in self.completions if answer.loss is not None]
        if len(losses) < max(len(self.completions), 1):
            return None
        return math.exp(min(sum(losses) / max(sum(a.loss_tokens or 0 for a in self.completions), 1), 50.0))

    @property
    def prompt_tokens(self) -> int:
        """Tokens read, summed over the rows."""
        return sum(answer.prompt_tokens for answer in self.completions)

    @property
    def tokens(self) -> int:
        """Tokens written, summed over the rows."""
        return sum(answer.completion_tokens for answer in self.completions)


def scoring_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that a baseline's evaluation depends on."""
    return recipe.evaluate.model_dump(mode="json", exclude={"samples", *AFTERWARDS})


def score(job: RunContext, dataset: Dataset, rows: Sequence[Row], answers: SystemAnswers) -> ScoredAnswers:
    """A system's answers as an evaluation."""
    completions = with_adapter_hash(job, answers.completions)
    with busy("scoring answers"):
        recipe = job.recipe
        evaluation = score_rows(dataset, rows, completions, recipe.evaluate, seed=recipe.seed, further=answers.further)
    evaluation.notes[:0] = [answers.note] if answers.note else []
    return evaluation


def with_adapter_hash(job: RunContext, answers: Sequence[Completion]) -> list[Completion]:
    """Answers of the run's adapter with its hash; those of the base, of classifiers and of servers as they are."""
    if not job.tuned:
        return list(answers)
    file = trained_folder(job.folder) / OWN
    name = str(read_json(file).get("hash", "")) if file.is_file() else ""
    return [replace(a, adapter=name) if a.engine == ENGINE and a.adapter == ATTACHED else a for a in answers]


def cost_of(job: RunContext, answers: SystemAnswers, training: RunManifest | None = None) -> dict[str, float]:
    """What a system's answers took here, and its training before: of the run `training`, else as the answers say."""
    price = job.recipe.plan.usd_per_hour / 3600
    seconds, usd = answers.training_seconds, answers.training_seconds * price
    if training:
        seconds, usd = training.seconds, training.usd
    return {
        "seconds": round(answers.seconds, 3),
        "rows_per_second": round(len(answers.completions) / answers.seconds, 2) if answers.seconds else 0.0,
        "usd": answers.seconds * price,
        "prompt_tokens": answers.prompt_tokens,
        "tokens": answers.tokens,
        "computed_tokens": answers.computed,
        "training_seconds": round(seconds, 3),
        "training_usd": usd,
    }


def how_far_trained(run: RunManifest) -> str:
    """How far a run was trained, where its verdict says so: it has not seen all rows, or made only a few steps."""
    steps, parts = run.steps, []
    if 0 < steps < FEW_STEPS:
        parts.append(f"trained for {counted(steps, 'step')} only")
    if 0 < run.rows_seen < run.rows:
        parts.append(f"saw {run.seen or f'{run.rows_seen:,} of ' + counted(run.rows, 'row')}")
    return f"it {'was ' if steps < FEW_STEPS else ''}{' and '.join(parts)}" if parts else ""


def score_words(metrics: Mapping[str, Estimate], primary: str) -> str:
    """The metric that decides in a few words, such as `fields right 79 %`; empty without it."""
    if (estimate := metrics.get(primary)) is None:
        return ""
    written = percentage(primary) or metric_of(primary).figure
    return f"{title_of(primary)} {written(estimate.value)}"


def strongest_words(systems: Mapping[str, ScoredAnswers]) -> str:
    """The best of several systems by the metric that decides, in a few words."""
    if not systems:
        return "no test rows"
    primary = next(iter(systems.values())).primary
    measured = {
        name: evaluation.metrics[primary].value for name, evaluation in systems.items() if primary in evaluation.metrics
    }
    if not measured:
        return counted(len(systems), "system")
    best = (min if lower_is_better(primary) else max)(measured, key=measured.__getitem__)
    return f"best of {len(systems)}: {best}, {score_words(systems[best].metrics, primary)}"


def headline(evaluation: ScoredAnswers) -> str:
    """The metrics that matter, in a line."""
    kinds = [name for kind in ("labels", "JSON", "texts") for name in headline_of(kind)]
    parts = []
    for name in dict.fromkeys([evaluation.primary, *kinds, *evaluation.own_metrics]):
        if (estimate := evaluation.metrics.get(name)) is not None:
            digits = metric_of(name).precise_decimals
            value, low, high = (f"{x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
            parts.append(f"{name} {value} [{low}, {high}]")
    return ", ".join(parts)
