"""The best prompt: what few-shot shows, chosen on validation rows before it meets a test row."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tuneloop.core.files import content_hash, sha256_file
from tuneloop.core.ui import progress, say
from tuneloop.evaluation.config import BaselinesConfig
from tuneloop.evaluation.evaluate import sample_rows
from tuneloop.evaluation.metrics import lower_is_better
from tuneloop.models.methods import base_only
from tuneloop.pipeline.answers import Asking, ask, few_shot_examples, few_shot_prompt
from tuneloop.pipeline.context import RunContext, done_record
from tuneloop.pipeline.scoring import score, scoring_settings
from tuneloop.recipe import Recipe
from tuneloop.records.evaluation import PromptChoice, TriedPrompt
from tuneloop.records.record import read_record, write_record
from tuneloop.records.rows import Dataset, Row

SHARE = 0.05  # of a run's `max_minutes` for the search: a candidate that would pass it is not tried
LEAST_MINUTES = 4.0  # a shorter run has no time for a search
FEW = 8  # twice the examples are tried up to so many: reading more takes longer than what they can gain is worth


def with_best_prompt(job: RunContext, recipe: Recipe, dataset: Dataset) -> Recipe:
    """The recipe with what few-shot is given: the candidate that is best on `baselines.prompt_rows` validation rows.

    It is the recipe as it is where there is no search: not requested, no validation rows, no time.
    """
    settings = recipe.baselines
    rows = sample_rows(dataset.val, settings.prompt_rows, seed=recipe.seed, stratum=dataset.stratum)
    if not (settings.prompt_rows and settings.few_shot and rows and dataset.test):
        return recipe
    if recipe.max_minutes and recipe.max_minutes < LEAST_MINUTES:
        return recipe
    folder, parts = job.folder / "baselines", [dataset.manifest.hash, job.fingerprint, settings, recipe.seed, 1]
    prompt = [sha256_file(settings.prompt)] if settings.prompt else []
    key = content_hash([*parts, *prompt, scoring_settings(recipe), recipe.max_minutes])
    choice = done_record(PromptChoice, folder, key)
    if choice is None:
        choice = _search(job, recipe, dataset, rows, key)
        write_record(folder / PromptChoice.file, choice)
        say(f"prompts   {choice.words}")
    if not choice.tried:
        return recipe
    best = choice.tried[0]
    chosen = {"prompt": best.prompt, "few_shot": best.examples, "prompt_rows": 0}
    return recipe.model_copy(update={"baselines": settings.model_copy(update=chosen)})


def words_of_choice(job: RunContext, settings: BaselinesConfig) -> str:
    """`, the best of 4 on 8 validation rows` where these settings are what a search chose; else nothing."""
    folder = job.folder / "baselines"
    if not (folder / PromptChoice.file).is_file():
        return ""
    choice = read_record(PromptChoice, folder)
    chosen = bool(choice.tried) and choice.tried[0].prompt == settings.prompt
    return f", {choice.chosen}" if chosen else ""


def candidates(settings: BaselinesConfig, examples: int) -> list[BaselinesConfig]:
    """What is tried, the prompt as set first: with as many examples, half as many, twice as many, and the rows' own
    instruction in place of a file."""
    numbers = [examples, max(examples // 2, 1), *([2 * examples] if examples <= FEW else [])]
    tried = [settings.model_copy(update={"few_shot": number}) for number in dict.fromkeys(numbers)]
    return [*tried, *([settings.model_copy(update={"few_shot": examples, "prompt": None})] if settings.prompt else [])]


def _search(job: RunContext, recipe: Recipe, dataset: Dataset, rows: Sequence[Row], key: str) -> PromptChoice:
    began, model = time.monotonic(), job.model
    most = 60 * SHARE * recipe.max_minutes if recipe.max_minutes else float("inf")
    usual, _ = few_shot_examples(model, dataset, rows, recipe.baselines, recipe.evaluate, recipe.seed)
    listed = candidates(recipe.baselines, len(usual)) if usual else []
    tried: list[TriedPrompt] = []
    metric = ""
    for settings in listed:
        spent = time.monotonic() - began
        if tried and spent * (len(tried) + 1) / len(tried) > most:
            break
        progress("trying prompts", len(tried), len(listed))
        examples, _ = few_shot_examples(model, dataset, rows, settings, recipe.evaluate, recipe.seed)
        how = Asking(examples, few_shot_prompt(settings), perplexity=False)
        with base_only(model.net):
            answers = ask(model, dataset, rows, recipe.evaluate, how, task="trying prompts")[""]
        evaluation = score(job, dataset, rows, answers)
        metric, read = evaluation.primary, round(answers.prompt_tokens / len(rows))
        value = evaluation.metrics[metric].value
        tried.append(TriedPrompt(prompt=settings.prompt, examples=len(examples), value=value, tokens=read))
    sign = 1 if metric and lower_is_better(metric) else -1
    tried.sort(key=lambda each: (sign * each.value, each.tokens))  # of equally good ones, the cheapest
    seconds = round(time.monotonic() - began, 1)
    return PromptChoice(key=key, rows=len(rows), metric=metric, tried=tried, seconds=seconds)
