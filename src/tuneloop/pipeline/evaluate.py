"""The evaluate stage: the tuned model on the same rows, and what tuning took away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.files import content_hash
from tuneloop.core.ui import say
from tuneloop.data.config import PrepareConfig
from tuneloop.data.load_eval_file import read_whole
from tuneloop.data.mix import GENERAL_FILE
from tuneloop.evaluation.evaluate import ScoredAnswers, check_ids, sample_rows
from tuneloop.models.load import Model, load_model
from tuneloop.models.methods import base_only, method_of_folder
from tuneloop.models.trained import trained_folder
from tuneloop.pipeline.baselines import on_fewer_rows
from tuneloop.pipeline.compared_systems import ask
from tuneloop.pipeline.consistency import consistency_part, is_drawn, prompt_systems, tuned_system
from tuneloop.pipeline.context import RunContext, attach_trained, dataset_of, done_record, load_run_recipe
from tuneloop.pipeline.scoring import (
    AFTERWARDS,
    cost_of,
    headline,
    how_far_trained,
    score,
    scoring_settings,
    write_scored,
)
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import BaselinesManifest, EvaluationManifest, Subject
from tuneloop.records.record import read_record
from tuneloop.records.rows import Dataset, Row
from tuneloop.records.run import RunManifest

if TYPE_CHECKING:
    from tuneloop.pipeline.time_limit import TimeLimit


def evaluate_stage(
    job: RunContext, dataset: Dataset, baselines: dict[str, ScoredAnswers], limit: TimeLimit | None = None
) -> None:
    """The tuned model on the same rows, and the paired comparison; all on fewer rows should the `limit` run out."""
    recipe = job.recipe
    rows = sample_rows(dataset.test, recipe.evaluate.limit, seed=recipe.seed, stratum=dataset.stratum)
    if not rows:
        return
    check_ids(rows)
    key = tuned_key(job, dataset, baselines)
    if done_record(EvaluationManifest, job.folder, key):
        say("evaluate  already done")
        return
    attach_trained(job)
    if limit and limit.seconds:
        answers = limit.ask_tuned(dataset)
        if len(answers.completions) < len(rows):
            recipe = job.recipe
            rows = sample_rows(dataset.test, recipe.evaluate.limit, seed=recipe.seed, stratum=dataset.stratum)
            baselines = on_fewer_rows(job, dataset, baselines, rows) if baselines else {}
            key = tuned_key(job, dataset, baselines)
    else:
        answers = ask(job.model, dataset, rows, recipe.evaluate, task="tuned")[""]
    evaluation, run = score(job, dataset, rows, answers), read_record(RunManifest, job.folder)
    costs = {"tuned": cost_of(job, answers, run)}
    if baselines and (job.folder / "baselines" / BaselinesManifest.file).is_file():
        manifest = read_record(BaselinesManifest, job.folder / "baselines")
        costs = {name: cost.to_json() for name, cost in manifest.costs.items()} | costs
    systems = [tuned_system(job, dataset), prompt_systems(job, dataset, lambda: base_model(job))]
    more, sampled = after_tuning(job, dataset), is_drawn(job, dataset)
    more |= consistency_part(job, job.folder, dataset, rows, systems, name="tuned", sampled=sampled, costs=costs)
    subject = Subject(recipe.model, dataset.id, "test", "tuned", key, how_far_trained(run))
    write_scored(job.folder, evaluation, subject, costs, baselines=baselines, more=more)
    say(f"evaluate  tuned: {headline(evaluation)}")


def after_tuning(
    job: RunContext, dataset: Dataset, base: Callable[[], AbstractContextManager[Model]] | None = None
) -> dict[str, Any]:
    """What tuning took away and what was learned word for word, the parts of `eval.json` that `side_effects` names.

    Forgetting is measured where general rows are named (`evaluate.general`) or were held out of a mix. `base` gives the
    model before for a while; default: the run's base.
    """
    from tuneloop.pipeline.side_effects import side_effects

    config = job.recipe.evaluate
    mixed = Path(dataset.path) / GENERAL_FILE
    place = config.general or (str(mixed) if mixed.is_file() and mixed.stat().st_size else None)
    general = read_whole(place, PrepareConfig()).rows if place else []
    planted = read_whole(config.canaries, PrepareConfig()).rows if config.canaries else []
    learned = [row for row in dataset.train if row.shows_the_task] if config.memorisation else []
    if not (general or learned or planted or config.lm_eval):
        return {}  # without a model
    base = base or (lambda: base_model(job))
    parts = side_effects(job.model, base, general, learned, planted, config, job.recipe.seed)
    for part in parts.values():
        say(f"evaluate  {part['words']}")
    return parts


@contextmanager
def base_model(job: RunContext) -> Iterator[Model]:
    """The model before training: with the adapter switched off, or loaded again where all weights were trained."""
    method = method_of_folder(trained_folder(job.folder))
    if method is None or method.disabled is None:
        yield load_model(job.recipe.model)
        return
    with base_only(job.model.net):
        yield job.model


def tuned_key(job: RunContext, dataset: Dataset, baselines: Mapping[str, ScoredAnswers]) -> str:
    """Hash of all that the tuned model's evaluation depends on."""
    recipe = job.recipe
    adapter, settings = read_record(RunManifest, job.folder).adapter_hash, scoring_settings(recipe)
    afterwards = recipe.evaluate.model_dump(mode="json", include=AFTERWARDS)
    parts = [adapter, dataset.manifest.hash, recipe.baselines, settings, sorted(baselines), recipe.seed, 3, afterwards]
    return content_hash(parts)


def answers_of(run: Path) -> Callable[[Sequence[Row]], list[Completion]] | None:
    """A function that gives the answers of a run's tuned model, loaded at its first call; None where there is no run.

    Rows of its test split are used as they are there; a new prompt gets the instruction that all of them share.
    """
    if not (run / "run.json").is_file():
        return None
    job = RunContext(load_run_recipe(run, []), run)

    def answers(rows: Sequence[Row]) -> list[Completion]:
        dataset = dataset_of(job, True, "")
        by_id = {row.id: row for row in dataset.test}
        shared = {row.messages[0]["content"] for row in dataset.test if row.messages[0]["role"] == "system"}
        instruction = shared.pop() if len(shared) == 1 else ""

        def instructed(row: Row) -> Row:
            if not instruction or row.messages[0]["role"] == "system":
                return row
            return replace(row, messages=[{"role": "system", "content": instruction}, *row.messages])

        attach_trained(job)
        questions = [by_id.get(row.id) or instructed(row) for row in rows]
        return ask(job.model, dataset, questions, job.recipe.evaluate, task="asking")[""].completions

    return answers
