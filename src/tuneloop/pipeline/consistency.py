"""The same rows in several wordings: which systems answer them, how long that takes, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_jsonl
from tuneloop.core.ui import busy, say
from tuneloop.core.units import counted, verb
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.consistency import FEWEST_WAYS, measure_consistency, ways_of
from tuneloop.evaluation.evaluate import sample_rows
from tuneloop.evaluation.prompt import AS_IT_IS
from tuneloop.models.load import Model
from tuneloop.pipeline.answers import Asking, ask, few_shot_examples, few_shot_prompt, uses_choice
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.scoring import SystemAnswers
from tuneloop.records.record import Part
from tuneloop.records.rows import Dataset, Message, Row

# Asks one or several systems: rows to each system's answers.
Ask = Callable[[Sequence[Row]], Mapping[str, SystemAnswers]]
ANSWERS = "consistency.jsonl"
PROMPTS = ("zero-shot", "few-shot")


class AskedAgain(Part):
    """A line of `consistency.jsonl`: a row in one of its wordings, and what each system answered.

    Args:
        id: of the row; `kind`: of the wording.
        messages: the turns before the answer.
    """

    id: str
    kind: str
    messages: list[Message]
    answers: dict[str, str]


def consistency_part(
    job: RunContext,
    folder: Path,
    dataset: Dataset,
    rows: Sequence[Row],
    systems: Sequence[Ask],
    *,
    name: str,
    costs: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The part `consistency` of `eval.json`, and every answer in `consistency.jsonl`; nothing where the setting is 0.

    What prevents it is reported, and the part is left out: the evaluation around it is done already.

    Args:
        rows: those that were evaluated; a sample of them is reworded.
        name: of the system that the evaluation is about.
        costs: system -> `seconds` that its answers to all `rows` took.
    """
    config, seed = job.recipe.evaluate, job.recipe.seed
    if not config.consistency:
        return {}
    labels = dataset.manifest.labels or ()
    sample = sample_rows(rows, config.consistency_rows, seed=seed)
    every = ways_of(sample, config.consistency, labels=labels)
    ways = [each for each in every if len(each) >= FEWEST_WAYS]
    if not ways:
        say("warn: consistency was not measured: programs and very long texts are not reworded")
        return {}
    questions = [way for each in ways for way in each]
    say(_planned(len(ways), len(questions), costs, len(rows)))
    answers: dict[str, SystemAnswers] = {}
    try:
        for ask_systems in systems:
            answers |= ask_systems([way.row for way in questions])
    except UserError as error:
        say(f"warn: consistency was not measured: {error.what} ({error.where})")
        return {}
    with busy("comparing answers"):
        texts = {name: result.completions for name, result in answers.items()}
        task = dataset.task
        part = measure_consistency(
            ways, texts, subject=name, task=task, labels=labels or None, config=config, seed=seed
        )
        part = replace(part, seconds={name: round(result.seconds, 3) for name, result in answers.items()})
        by_question = [{name: replies[i].text for name, replies in texts.items()} for i in range(len(questions))]
        lines = [
            AskedAgain(id=way.row.id, kind=way.kind, messages=way.row.prompt, answers=replies)
            for way, replies in zip(questions, by_question, strict=True)
        ]
        write_jsonl(folder / ANSWERS, lines)
    for line in part.words:
        say(f"evaluate  {line}")
    return {"consistency": part}


def expected_consistency(seconds: Mapping[str, float], n: int, config: EvaluateConfig) -> float:
    """Seconds to ask the tuned model and its base several ways, estimated; 0 where that is not set or unknown.

    Args:
        seconds: system -> what its answers to `n` rows took; the tuned model is as fast as zero-shot.
    """
    if not config.consistency or not n:
        return 0.0
    prompts = sum(seconds.get(name, 0.0) for name in PROMPTS)
    return (prompts + seconds.get("zero-shot", 0.0)) / n * min(n, config.consistency_rows) * config.consistency


def _planned(rows: int, questions: int, costs: Mapping[str, Mapping[str, Any]], n: int) -> str:
    """What asking takes, by the time that the same systems' answers took before."""
    names = [name for name in costs if name in (*PROMPTS, "tuned")]
    seconds = {name: float(costs[name]["seconds"]) / n * questions for name in names}
    line = (
        f"consistency {counted(rows, 'row')} {verb(rows, 'is', 'are')} put in several ways: "
        f"{counted(questions, 'question')} for each system"
    )
    minutes = sum(seconds.values()) / 60
    return f"{line}, about {minutes:.1f} minutes for {', '.join(seconds)}" if minutes >= 0.05 else line


# --- systems of a run -----------------------------------------------------------------------


def tuned_system(job: RunContext, dataset: Dataset) -> Ask:
    """Asks the model as it is loaded, with the run's result in it."""

    def tuned(rows: Sequence[Row]) -> dict[str, SystemAnswers]:
        how = Asking(perplexity=False)
        return {"tuned": ask(job.model, dataset, rows, job.recipe.evaluate, how, task="tuned, several ways")[""]}

    return tuned


def prompt_systems(job: RunContext, dataset: Dataset, base: Callable[[], AbstractContextManager[Model]]) -> Ask:
    """Asks the model before training, which `base` gives for a while, zero-shot and few-shot as the baselines do."""

    config, settings = job.recipe.evaluate, job.recipe.baselines

    def prompted(rows: Sequence[Row]) -> dict[str, SystemAnswers]:
        answers: dict[str, SystemAnswers] = {}
        if not (settings.zero_shot or settings.few_shot):
            return answers
        calibrated = config.calibrate and uses_choice(dataset, config)
        with base() as model:
            prompts: dict[str, Sequence[Row]] = {"zero-shot": ()} if settings.zero_shot else {}
            if settings.few_shot and dataset.train:
                few, _ = few_shot_examples(model, dataset, rows, settings, config, job.recipe.seed)
                prompts |= {"few-shot": few} if few else {}
            for name, examples in prompts.items():
                prompt = few_shot_prompt(settings) if examples else AS_IT_IS
                how = Asking(examples, prompt, with_calibrated=calibrated, perplexity=False)
                by_kind = ask(model, dataset, rows, config, how, task=f"{name}, several ways")
                answers |= {f"{name} {kind}".strip(): result for kind, result in by_kind.items()}
        return answers

    return prompted
