"""A system's answers as an evaluation with its costs, in a line and in files."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.files import read_json
from tuneloop.core.stats.intervals import sums_by_cluster
from tuneloop.core.ui import busy
from tuneloop.core.units import counted
from tuneloop.evaluation.evaluate import ScoredAnswers, decided_together, evaluate
from tuneloop.evaluation.metrics import headline_of, lower_is_better, metric_of
from tuneloop.evaluation.scoring import AnswerStats, labels_of_fields
from tuneloop.models.adapters import ATTACHED
from tuneloop.models.names import known_name
from tuneloop.models.trained import OWN, trained_folder
from tuneloop.pipeline.context import RunContext
from tuneloop.recipe import Recipe
from tuneloop.records.completion import ENGINE, Completion
from tuneloop.records.evaluation import Subject
from tuneloop.records.rows import Dataset, Row
from tuneloop.records.run import RunManifest

if TYPE_CHECKING:
    from tuneloop.evaluation.retained_gain import Score
    from tuneloop.pipeline.compared_systems import SystemAnswers


AFTERWARDS = {
    "general",
    "general_rows",
    "memorisation",
    "canaries",
    "lm_eval",
    "consistency",
    "consistency_rows",
    "consistency_temperature",
}  # settings that baselines don't depend on


def scoring_settings(recipe: Recipe) -> dict[str, Any]:
    return recipe.evaluate.model_dump(mode="json", exclude={"samples", *AFTERWARDS})


EXAMPLES = 2000  # training answers that show which fields hold labels


def answers_that_show_the_task(dataset: Dataset) -> list[str]:
    """Answers of training rows, enough to see which of their fields hold labels."""
    return [row.answer for row in itertools.islice(dataset.train, EXAMPLES) if row.shows_the_task]


def score(job: RunContext, dataset: Dataset, rows: Sequence[Row], asked: SystemAnswers) -> ScoredAnswers:
    """A system's answers as an evaluation."""
    config = job.recipe.evaluate
    with busy("scoring answers"):
        labels, known = dataset.task == "classification", answers_that_show_the_task(dataset)
        counted = {"": _label_rows(dataset)} if labels else labels_of_fields(known, config.fields)
        found = evaluate(
            rows,
            with_adapter_hash(job, asked.completions),
            task=dataset.task,
            labels=dataset.manifest.labels,
            config=config,
            seed=job.recipe.seed,
            measured=AnswerStats(
                further=asked.further,
                field_labels={name: list(counts) for name, counts in counted.items() if name},
                label_rows=counted,
            ),
        )
        found.notes[:0] = [asked.note] if asked.note else []
        return found


def _label_rows(dataset: Dataset) -> dict[str, int]:
    """Rows of each label in all splits; empty where a split's manifest doesn't tell."""
    splits = [split.labels for split in dataset.manifest.splits.by_name.values()]
    return dict(sum((Counter(labels) for labels in splits if labels), Counter())) if all(splits) else {}


def with_adapter_hash(job: RunContext, answers: Sequence[Completion]) -> list[Completion]:
    """Answers of the run's own adapter say its hash; those of the base, of classifiers and of other servers stay as they are."""
    if not job.tuned:
        return list(answers)
    own = trained_folder(job.folder) / OWN
    name = str(read_json(own).get("hash", "")) if own.is_file() else ""
    return [replace(a, adapter=name) if a.engine == ENGINE and a.adapter == ATTACHED else a for a in answers]


def cost_of(job: RunContext, asked: SystemAnswers, training: RunManifest | None = None) -> dict[str, float]:
    """What a system's answers took on this machine, and what its training took before.

    Args:
        training: the run that it comes from; default: the system's own training.
    """
    price = job.recipe.plan.usd_per_hour / 3600
    seconds, usd = (
        (training.seconds, training.usd) if training else (asked.training_seconds, asked.training_seconds * price)
    )
    return {
        "seconds": round(asked.seconds, 3),
        "usd": asked.seconds * price,
        "prompt_tokens": asked.prompt_tokens,
        "tokens": asked.tokens,
        "computed_tokens": asked.computed,
        "training_seconds": round(seconds, 3),
        "training_usd": usd,
    }


def write_scored(
    job: RunContext,
    folder: Path,
    evaluation: ScoredAnswers,
    subject: Subject,
    costs: Mapping[str, Mapping[str, float]],
    *,
    baselines: Mapping[str, ScoredAnswers] | None = None,
    production: Sequence[Row] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write an evaluation with its comparisons and, where there are baselines, the leaderboard.

    Args:
        subject: what was evaluated; `more` may name another model.
        costs: of each system's answers.
        production: what users sent, to compare the test rows with.
        more: further parts of `eval.json`.
    """
    from tuneloop.data.checks.drift import tell_apart
    from tuneloop.evaluation.compare import adjusted, compare
    from tuneloop.evaluation.leaderboard import leaderboard, leaderboard_in_words
    from tuneloop.evaluation.production import against_production
    from tuneloop.evaluation.results import ComparedWith, write_evaluation

    name = subject.name
    *others, evaluation = decided_together({**(baselines or {}), name: evaluation}).values()
    baselines = dict(zip(baselines or {}, others, strict=True))
    with busy("comparing answers"):
        pairs = [c for other, baseline in baselines.items() for c in compare(other, baseline, name, evaluation)]
        pairs = adjusted(pairs, evaluation)
        more = {"costs": costs, **(more or {})}
        if baselines:
            entries = leaderboard({**baselines, name: evaluation}, costs, tuned=[name], comparisons=pairs)
            more = {"leaderboard": entries, "leaderboard_words": leaderboard_in_words(entries), **more}
        subject = replace(subject, model=known_name(str(more.pop("model", subject.model))))
        against = None if production is None else against_production(evaluation, production, tell_apart)
        write_evaluation(folder, evaluation, subject, ComparedWith(baselines, pairs, against), more)


def score_of(evaluation: ScoredAnswers, metric: str) -> Score:
    """A model's score by a metric, to be compared with that of another one on the same rows."""
    from tuneloop.evaluation.retained_gain import Score

    rows = next(family.rows for family in evaluation.statistics if metric in family.values)
    if evaluation.clusters is not None:
        rows = sums_by_cluster(rows, evaluation.clusters)
    value, draws = evaluation.metrics[metric].value, evaluation.draws[metric]
    return Score.of(value, draws, lower_is_better=lower_is_better(metric), rows=rows)


FEW_STEPS = 30  # below this a run is a trial, whatever came of it


def how_far_trained(run: RunManifest) -> str:
    """How far a run was trained, where its verdict needs that word: it has not seen all rows, or made only a few steps."""
    steps, seen, rows = run.steps, run.rows_seen, run.rows
    parts = []
    if 0 < steps < FEW_STEPS:
        parts.append(f"trained for {counted(steps, 'step')} only")
    if 0 < seen < rows:
        parts.append(f"saw {run.seen or f'{seen:,} of ' + counted(rows, 'row')}")
    return (
        f"it was {' and '.join(parts)}" if steps < FEW_STEPS and parts else f"it {' and '.join(parts)}" if parts else ""
    )


def headline(evaluation: ScoredAnswers) -> str:
    """The figures that matter, in a line."""
    wanted = dict.fromkeys(
        [
            evaluation.primary,
            *headline_of("labels"),
            *headline_of("JSON"),
            *headline_of("texts"),
            *evaluation.own_metrics,
        ]
    )

    def figure(name: str) -> str:
        estimate, digits = evaluation.metrics[name], metric_of(name).precise_decimals
        low, high = f"{estimate.low:.{digits}f}", f"{estimate.high:.{digits}f}"
        return f"{name} {estimate.value:.{digits}f} [{low}, {high}]"

    return ", ".join(figure(name) for name in wanted if name in evaluation.metrics)
