"""A prompt as the result of a run: found on validation rows, measured on the test rows, kept in the run's folder."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneloop.core import device, machine
from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, lock_folder, write_json, write_yaml
from tuneloop.core.ui import say
from tuneloop.evaluation import PromptOptions, ScoredAnswers, check_ids, sample_rows, write_scored
from tuneloop.inference import Endpoint, Target, open_target
from tuneloop.inference.prompt import KeptPrompt
from tuneloop.models.files import is_encoder, known_name
from tuneloop.pipeline.answers.prompt import load_prompt
from tuneloop.pipeline.answers.scoring import SystemAnswers, cost_of, headline, score
from tuneloop.pipeline.baselines import cheap_alternatives, write_baselines
from tuneloop.pipeline.context import BEGINNING, RunContext, folder_of, identity, report_stage
from tuneloop.pipeline.prepare import prepare_stage, refuse_errors
from tuneloop.pipeline.prompt_search import (
    Instructions,
    KeptAnswers,
    PromptCandidate,
    SearchBudget,
    candidates_of,
    kept_answers,
    search_prompt,
    write_found,
)
from tuneloop.recipe import Recipe
from tuneloop.records.evaluation import Subject
from tuneloop.records.prompt import OPTIMISED, PROMPT_RESULT, PromptManifest, PromptSearch
from tuneloop.records.record import done_record, read_record, write_record
from tuneloop.records.rows import Dataset, Row
from tuneloop.records.run import RUN, RunManifest

ANSWERS = "search/answers.jsonl"
TEST_CALLS = 3  # of each test row: no examples, plain few-shot, the prompt that was found


@dataclass(frozen=True)
class PromptJob:
    """A search at work."""

    job: RunContext
    options: PromptOptions
    target: Target  # who answers
    model: PromptManifest  # names who answers


def find_prompt(recipe: Recipe, options: PromptOptions = PromptOptions(), endpoint: Endpoint | None = None) -> Path:
    """Search the best prompt for a model, measure it on the test rows, and return the run's folder.

    Args:
        recipe: its `model` answers, unless there is an `endpoint`; its rows are prepared, or taken as prepared.

    Raises:
        UserError: whatever the user can put right; a budget that is too small for the test.
    """
    if endpoint is None and is_encoder(recipe.model):
        message, step = f"{recipe.model} is an encoder, which takes no prompt", "train its head: tuneloop run DATA"
        raise UserError(message, where="--model", next_step=f"{step} model={recipe.model}")
    name = "" if endpoint is None else endpoint.model
    folder = Path(recipe.output_dir) if recipe.output_dir else _folder(recipe, endpoint)
    job = RunContext(recipe, folder)
    with lock_folder(folder, minor=BEGINNING):
        write_yaml(folder / "config.yaml", recipe.model_dump(mode="json"))
        write_json(folder / "environment.json", machine.environment(device.names_in_use()))
        dataset = prepare_stage(job)
        refuse_errors(dataset, recipe)
        target = job.target if endpoint is None else open_target(endpoint.url, endpoint=lambda _: endpoint)
        shown = known_name(recipe.model) if endpoint is None else endpoint.url
        _measured(PromptJob(job, options, target, PromptManifest(model=shown, served_as=name)), dataset)
        report_stage(job)
    return folder


def _folder(recipe: Recipe, endpoint: Endpoint | None) -> Path:
    """`runs/NAME-prompt-HASH`, next to the trainings on the same rows."""
    asked = [] if endpoint is None else [endpoint.address, endpoint.model]
    name = folder_of(recipe).name.rpartition("-")[0] or recipe.name
    return Path("runs") / f"{name}-prompt-{content_hash([identity(recipe), *asked])[:8]}"


def _measured(work: PromptJob, dataset: Dataset) -> None:
    """Search, check and test within the budget, and write the run's files."""
    job, options, recipe = work.job, work.options, work.job.recipe
    key = content_hash([dataset.manifest.hash, work.target.identity, work.model, options, recipe.seed, 1])
    if done_record(RunManifest, job.folder, key):
        say("prompt    already done")
        return
    rows = sample_rows(dataset.test, recipe.evaluate.limit, seed=recipe.seed, stratum=dataset.stratum)
    check_ids(rows)
    if not dataset.train:
        message, step = (
            "There are no training rows to show as examples",
            "give more rows, or less to test and validation",
        )
        raise UserError(message, where=dataset.path, next_step=step)
    rows = rows[: max(options.calls // (2 * TEST_CALLS), 1)]
    endpoint = work.target.endpoint
    budget = SearchBudget(
        options.calls,
        options.max_usd,
        60 * options.max_minutes if options.max_minutes else None,
        0.0 if endpoint else recipe.plan.usd_per_hour / 3600,
        endpoint.usd if endpoint else None,
    )
    if options.max_usd is not None and endpoint and not endpoint.usd(1e6, 1e6):
        step = "give its prices: --usd-per-million-input X --usd-per-million-output X"
        raise UserError("What this endpoint costs is not known", where="--max-usd", next_step=step)
    began, left = time.monotonic(), options.calls - TEST_CALLS * len(rows)
    say(f"prompt    at most {options.calls:,} calls: {left:,} to search, {TEST_CALLS * len(rows):,} for the test")
    with kept_answers(job, dataset, work.target, budget, job.folder / ANSWERS) as asker:
        brought = _brought(options)
        candidates = candidates_of(dataset, work.target, job, work.model, brought)
        kept, search = search_prompt(asker, dataset, candidates, left)
        say(f"prompt    {search.words}")
        tested = _tested(asker, dataset, rows, kept, candidates[0])
        seconds = time.monotonic() - began
        spent = {
            "most_calls": options.calls,
            "calls": len(asker.calls),
            "tokens": budget.tokens,
            "usd": round(budget.spent_usd, 6),
        }
    search = search.model_copy(update={**spent, "key": key, "seconds": round(seconds, 1)})
    _write(work, dataset, kept.prompt, search)
    _write_evaluation(work, dataset, tested, key)


def _brought(options: PromptOptions) -> Instructions:
    template = load_prompt(options.prompt) if options.prompt else None
    rules = load_prompt_text(options.rules) if options.rules else ""
    return Instructions(template, rules)


def load_prompt_text(file: str) -> str:
    """A text of the user's. Raises UserError: no such file, no text, or an empty one."""
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise UserError("No text in UTF-8 is here", where=file, next_step="give --rules a text file") from None
    if not text:
        raise UserError("The rules are empty", where=file, next_step="write them, or leave --rules out")
    return text


@dataclass(frozen=True)
class Tested:
    """What the systems answered to the same test rows."""

    rows: list[Row]
    answers: dict[str, SystemAnswers]  # by system


def _tested(
    asker: KeptAnswers, dataset: Dataset, rows: list[Row], kept: PromptCandidate, plain: PromptCandidate
) -> Tested:
    """The answers to the test rows that the budget is enough for, by each system to the same ones."""
    bare = replace(plain.prompt, examples=())
    systems = {OPTIMISED: kept.prompt, "few-shot": plain.prompt, "zero-shot": bare}
    answers: dict[str, SystemAnswers] = {}
    for number, (name, prompt) in enumerate(systems.items()):
        share = 0.65 + 0.35 * (number + 1) / len(systems)
        if number and not plain.prompt.examples and prompt is plain.prompt:
            continue  # there are no examples to show
        result = asker.to(prompt, rows, share, task=name)
        if not number:
            rows = rows[: len(result.completions)]
            if not rows:
                message = "The budget leaves no test row"
                raise UserError(message, where="--calls, --max-usd, --max-minutes", next_step="allow more")
        if len(result.completions) == len(rows):
            answers[name] = result
        else:
            say(f"prompt    the budget leaves no time for {name} on all test rows: it is not compared")
    return Tested(rows, answers)


def _write(work: PromptJob, dataset: Dataset, prompt: KeptPrompt, search: PromptSearch) -> None:
    """Write the prompt; `run.json` comes last and makes it a run."""
    job, folder = work.job, work.job.folder
    write_found(folder, job, dataset, work.target, prompt, search)
    run = RunManifest(
        id=folder.resolve().name,
        key=search.key,
        method=OPTIMISED,
        model=prompt.manifest.served_as or prompt.manifest.model,
        model_fingerprint="" if prompt.manifest.served_as else job.fingerprint,
        dataset=dataset.id,
        rows=len(dataset.train),
        rows_seen=len(dataset.train),
        seconds=search.seconds,
        adapter_hash=prompt.hash,
        weights=PROMPT_RESULT,
        usd=search.usd,
        tags=job.recipe.track.tags,
    )
    write_record(folder / RUN, run)


def _write_evaluation(work: PromptJob, dataset: Dataset, tested: Tested, key: str) -> None:
    """Score what was answered, next to the cheap alternatives on the same rows, and write it."""
    job, rows = work.job, tested.rows
    others = {name: answers for name, answers in tested.answers.items() if name != OPTIMISED}
    others |= cheap_alternatives(job, dataset, rows)
    scored: dict[str, ScoredAnswers] = {}
    for name, answers in others.items():
        scored[name] = score(job, dataset, rows, answers)
        say(f"baseline  {name}: {headline(scored[name])}")
    began = time.monotonic() - sum(answers.seconds for answers in others.values())
    write_baselines(job, dataset, rows, scored, others, key, began)
    mine = score(job, dataset, rows, tested.answers[OPTIMISED])
    run = read_record(RunManifest, job.folder)
    costs: dict[str, Any] = {name: _cost(work, answers) for name, answers in others.items()}
    costs[OPTIMISED] = _cost(work, tested.answers[OPTIMISED], run)
    subject = Subject(run.model, dataset.id, "test", OPTIMISED, key)
    write_scored(job.folder, mine, subject, costs, baselines=scored)
    say(f"evaluate  {OPTIMISED}: {headline(mine)}")


def _cost(work: PromptJob, answers: SystemAnswers, run: RunManifest | None = None) -> dict[str, Any]:
    cost: dict[str, Any] = cost_of(work.job, answers, run)
    if (endpoint := work.target.endpoint) is not None and answers.completions[0].engine != "classical":
        cost |= endpoint.usage(answers.completions)
    return cost
