"""Rows asked several ways: by whom, how long that takes, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_jsonl
from tuneloop.core.ui import busy, say
from tuneloop.core.units import counted, verb
from tuneloop.evaluation.consistency import FEWEST_WAYS, Way, measure_consistency, ways_of
from tuneloop.evaluation.evaluate import sample_rows
from tuneloop.pipeline.context import RunContext
from tuneloop.records.rows import Dataset, Row
from tuneloop.records.side_effects import AskedAgain

if TYPE_CHECKING:
    from tuneloop.evaluation.config import EvaluateConfig
    from tuneloop.inference.local.sampling import Sampling
    from tuneloop.models.load import Model
    from tuneloop.pipeline.compared_systems import SystemAnswers

# Asks one or several systems: rows, and how each answer is drawn, to each system's answers.
Ask = Callable[[Sequence[Row], "Sequence[Sampling]"], Mapping[str, "SystemAnswers"]]
ANSWERS = "consistency.jsonl"


def consistency_part(
    job: RunContext,
    folder: Path,
    dataset: Dataset,
    rows: Sequence[Row],
    asks: Sequence[Ask],
    *,
    own: str,
    drawn: bool,
    costs: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The part `consistency` of `eval.json`, and every answer in `consistency.jsonl`; nothing where it isn't asked for.

    What prevents it is reported, and the part is left out: the evaluation around it is done already.

    Args:
        rows: those that were evaluated; a sample of them is asked.
        asks: the systems.
        own: the one that the evaluation is about.
        drawn: whether answers are written token by token, so that some can be drawn.
        costs: system -> `seconds` that its answers to all `rows` took.
    """
    config, seed = job.recipe.evaluate, job.recipe.seed
    if not config.consistency:
        return {}
    labels = dataset.manifest.labels or ()
    sample = sample_rows(rows, config.consistency_rows, seed=seed)
    every = ways_of(
        sample, config.consistency, draws=drawn, temperature=config.consistency_temperature, labels=labels, seed=seed
    )
    ways = [each for each in every if len(each) >= FEWEST_WAYS]
    if not ways:
        say(
            "warn: consistency was not measured: programs and very long texts are not reworded, and scored labels not drawn"
        )
        return {}
    questions = [way.row for each in ways for way in each]
    sampling = [way.sampling for each in ways for way in each]
    say(_planned(len(ways), len(questions), costs, len(rows)))
    answers: dict[str, SystemAnswers] = {}
    try:
        for ask in asks:
            answers |= ask(questions, sampling)
    except UserError as error:
        say(f"warn: consistency was not measured: {error.what} ({error.where})")
        return {}
    with busy("comparing answers"):
        found = measure_consistency(
            ways, {name: asked.completions for name, asked in answers.items()}, subject=own, task=dataset.task, labels=labels or None,
            config=config, seed=seed,
        )  # fmt: skip
        found = replace(found, seconds={name: round(asked.seconds, 3) for name, asked in answers.items()})
        write_jsonl(folder / ANSWERS, _records(ways, answers))
    for line in found.words:
        say(f"evaluate  {line}")
    return {"consistency": found}


def expected_consistency(seconds: Mapping[str, float], n: int, config: EvaluateConfig) -> float:
    """Seconds that asking the tuned model and its base several ways takes about; 0 where it isn't asked for, or nothing is known.

    Args:
        seconds: system -> what its answers to `n` rows took; the tuned model is as fast as zero-shot.
    """
    if not config.consistency or not n:
        return 0.0
    known = sum(seconds.get(name, 0.0) for name in PROMPTS)
    return (known + seconds.get("zero-shot", 0.0)) / n * min(n, config.consistency_rows) * config.consistency


def _planned(rows: int, questions: int, costs: Mapping[str, Mapping[str, Any]], n: int) -> str:
    """What asking takes, by the time that the same systems' answers took before."""
    known = {
        name: float(cost["seconds"]) / n * questions for name, cost in costs.items() if name in (*PROMPTS, "tuned")
    }
    line = f"consistency {counted(rows, 'row')} {verb(rows, 'is', 'are')} asked several ways: {counted(questions, 'question')} for each system"
    minutes = sum(known.values()) / 60
    return f"{line}, about {minutes:.1f} minutes for {', '.join(known)}" if minutes >= 0.05 else line


def _records(ways: Sequence[Sequence[Way]], answers: Mapping[str, SystemAnswers]) -> list[AskedAgain]:
    flat = [way for each in ways for way in each]
    return [
        AskedAgain(
            id=way.row.id,
            kind=way.kind,
            messages=way.row.prompt,
            seed=way.sampling.seed if way.sampling.temperature else None,
            answers={name: asked.completions[i].text for name, asked in answers.items()},
        )
        for i, way in enumerate(flat)
    ]


# --- systems of a run -----------------------------------------------------------------------

PROMPTS = ("zero-shot", "few-shot")


def is_drawn(job: RunContext, dataset: Dataset) -> bool:
    """Whether a model writes its answers to these rows, instead of scoring labels."""
    from tuneloop.pipeline.compared_systems import uses_choice

    return not uses_choice(dataset, job.recipe.evaluate)


def asked_tuned(job: RunContext, dataset: Dataset) -> Ask:
    """Asks the model as it is loaded, with the run's result in it."""
    from tuneloop.pipeline.compared_systems import Asking, ask

    def tuned(rows: Sequence[Row], sampling: Sequence[Sampling]) -> dict[str, SystemAnswers]:
        found = ask(
            job.model, dataset, rows, job.recipe.evaluate, Asking(sampling=sampling), task="tuned, several ways",
        )  # fmt: skip
        return {"tuned": found[""]}

    return tuned


def asked_prompts(job: RunContext, dataset: Dataset, base: Callable[[], AbstractContextManager[Model]]) -> Ask:
    """Asks the model before training, zero-shot and few-shot as the baselines do.

    Args:
        base: gives that model for a while.
    """

    def prompts(rows: Sequence[Row], sampling: Sequence[Sampling]) -> dict[str, SystemAnswers]:
        wanted = job.recipe.baselines
        if not (wanted.zero_shot or wanted.few_shot):
            return {}
        with base() as model:
            return _prompted(job, model, dataset, rows, sampling)

    return prompts


def _prompted(
    job: RunContext, model: Model, dataset: Dataset, rows: Sequence[Row], sampling: Sequence[Sampling]
) -> dict[str, SystemAnswers]:
    from tuneloop.pipeline.compared_systems import Asking, ask, few_shot_examples, uses_choice

    config, wanted = job.recipe.evaluate, job.recipe.baselines
    calibrated = config.calibrate and uses_choice(dataset, config)
    shown: dict[str, Sequence[Row]] = {"zero-shot": ()} if wanted.zero_shot else {}
    if wanted.few_shot and dataset.train:
        examples, _ = few_shot_examples(model, dataset, rows, wanted, config, job.recipe.seed)
        shown |= {"few-shot": examples} if examples else {}
    answers: dict[str, SystemAnswers] = {}
    for name, given in shown.items():
        found = ask(
            model, dataset, rows, config, Asking(given, with_calibrated=calibrated, sampling=sampling), task=f"{name}, several ways",
        )  # fmt: skip
        answers |= {f"{name} {kind}".strip(): asked for kind, asked in found.items()}
    return answers
