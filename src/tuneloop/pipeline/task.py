"""The task of a run: what its model was trained to answer, kept in `tuneloop.json` next to the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, write_json
from tuneloop.core.ui import say
from tuneloop.data.task import TaskSpec, read_task, task_spec
from tuneloop.models.template import plain_source
from tuneloop.models.trained import OWN, trained_folder
from tuneloop.pipeline.context import RunContext
from tuneloop.records.rows import Dataset


def task_of(job: RunContext, dataset: Dataset) -> TaskSpec:
    """What a data set teaches under a recipe."""
    from tuneloop.pipeline.compared_systems import longest_answer, uses_choice

    config, rows = job.recipe.evaluate, list(dataset.train)
    dataset = replace(dataset, train=rows, test=dataset.test or rows)
    return task_spec(
        dataset,
        answer="choice" if dataset.task == "classification" and uses_choice(dataset, config) else "generate",
        max_new_tokens=longest_answer(job.template, dataset, config),
        chat_template=plain_source(job.template.source),
    )


def write_task(job: RunContext, dataset: Dataset) -> None:
    """Put the task next to the trained weights, in `tuneloop.json`.

    A data set of another version may say too little: that is reported, and costs no training that is done.
    """
    try:
        file = trained_folder(job.folder) / OWN
        write_json(file, {**read_json(file), "task": task_of(job, dataset)})
    except (UserError, ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())[:200]
        say(f"warn: what this model was trained to answer can't be kept with it: {why}")


def read_task_of(folder: Path) -> TaskSpec | None:
    """The task in a folder's `tuneloop.json`, if it says one.

    Raises:
        UserError: the file is damaged, or of a later version.
    """
    file = folder / OWN
    value = read_json(file) if file.is_file() else None
    found = value.get("task") if isinstance(value, dict) else None
    return None if found is None else read_task(found, file)


def task_of_run(run: Path) -> TaskSpec | None:
    """The task of a finished run. None where its weights say none."""
    return read_task_of(trained_folder(run))
