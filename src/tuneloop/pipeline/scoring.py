"""A system's answers as an evaluation with its costs, in a line and in files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneloop.core.files import read_json
from tuneloop.core.ui import busy
from tuneloop.core.units import counted
from tuneloop.evaluation.deciding import deciding_of, label_counts, labels_of_fields, training_examples
from tuneloop.evaluation.evaluate import ScoredAnswers, decided_by, evaluate
from tuneloop.evaluation.metrics import headline_of, lower_is_better, metric_of, title_of
from tuneloop.evaluation.scoring import AnswerStats
from tuneloop.models.adapters import ATTACHED
from tuneloop.models.names import known_name
from tuneloop.models.trained import OWN, trained_folder
from tuneloop.pipeline.context import RunContext
from tuneloop.recipe import Recipe
from tuneloop.records.completion import ENGINE, Completion
from tuneloop.records.evaluation import Estimate, Subject
from tuneloop.records.rows import Dataset, Row
from tuneloop.records.run import RunManifest
from tuneloop.report.facts import percentage

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
    config = job.recipe.evaluate
    with busy("scoring answers"):
        if dataset.task == "classification":
            label_rows = {"": label_counts(dataset)}
        else:
            label_rows = labels_of_fields([row.answer for row in training_examples(dataset)], config.fields)
        field_labels = {name: list(counts) for name, counts in label_rows.items() if name}
        evaluation = evaluate(
            rows,
            with_adapter_hash(job, answers.completions),
            task=dataset.task,
            labels=dataset.manifest.labels,
            config=config,
            seed=job.recipe.seed,
            measured=AnswerStats(
                further=answers.further,
                field_labels=field_labels,
                label_rows=label_rows,
                deciding=deciding_of(dataset, config),
            ),
        )
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


def write_scored(
    folder: Path,
    evaluation: ScoredAnswers,
    subject: Subject,
    costs: Mapping[str, Mapping[str, float]],
    *,
    baselines: Mapping[str, ScoredAnswers] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write an evaluation with its comparisons and, where there are baselines, the leaderboard.

    Args:
        subject: what was evaluated; `more` may name another model.
        costs: of each system's answers; `more`: further parts of `eval.json`.
    """
    from tuneloop.evaluation.compare import adjusted, compare
    from tuneloop.evaluation.leaderboard import leaderboard, leaderboard_in_words
    from tuneloop.evaluation.results import ComparedWith, write_evaluation

    name = subject.name
    baselines = decided_by(evaluation.primary, baselines or {})
    with busy("comparing answers"):
        pairs = [c for other, baseline in baselines.items() for c in compare(other, baseline, name, evaluation)]
        pairs = adjusted(pairs, evaluation)
        more = {"costs": costs, **(more or {})}
        if baselines:
            entries = leaderboard({**baselines, name: evaluation}, costs, tuned=[name], comparisons=pairs)
            more = {"leaderboard": entries, "leaderboard_words": leaderboard_in_words(entries), **more}
        subject = replace(subject, model=known_name(str(more.pop("model", subject.model))))
        write_evaluation(folder, evaluation, subject, ComparedWith(baselines, pairs), more)


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
    measured = {name: one.metrics[primary].value for name, one in systems.items() if primary in one.metrics}
    if not measured:
        return counted(len(systems), "system")
    best = (min if lower_is_better(primary) else max)(measured, key=measured.__getitem__)
    return f"best of {len(systems)}: {best}, {score_words(systems[best].metrics, primary)}"


def headline(evaluation: ScoredAnswers) -> str:
    """The metrics that matter, in a line."""
    kinds = [name for kind in ("labels", "JSON", "texts") for name in headline_of(kind)]
    words = []
    for name in dict.fromkeys([evaluation.primary, *kinds, *evaluation.own_metrics]):
        if (estimate := evaluation.metrics.get(name)) is not None:
            digits = metric_of(name).precise_decimals
            value, low, high = (f"{x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
            words.append(f"{name} {value} [{low}, {high}]")
    return ", ".join(words)
