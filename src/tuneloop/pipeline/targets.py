"""Who answers, with the task that it was trained for: a run, an exported artifact, an adapter, a model or an endpoint.

A run keeps its task in `tuneloop.json` next to the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, read_json, write_json
from tuneloop.core.ui import say
from tuneloop.data.task import TaskSpec, read_task, task_spec
from tuneloop.inference.local.target import LocalTarget
from tuneloop.inference.protocol import ModelTarget, Target, as_model
from tuneloop.inference.targets import open_target
from tuneloop.models.names import is_local, resolve
from tuneloop.models.template import plain_source
from tuneloop.models.trained import OWN, trained_folder
from tuneloop.pipeline.answers import longest_answer, uses_choice
from tuneloop.pipeline.context import RunContext
from tuneloop.records.rows import Dataset
from tuneloop.registry import local_name

if TYPE_CHECKING:
    from tuneloop.inference.openai.target import Endpoint


@dataclass(frozen=True)
class TaskTarget:
    """A target, and what it was trained to answer; None where no one says it."""

    target: Target
    task: TaskSpec | None = None

    @property
    def name(self) -> str:
        """As the user gave it."""
        return self.target.name

    @property
    def local(self) -> LocalTarget | None:
        """The target, where it is a model on this machine."""
        return self.target if isinstance(self.target, LocalTarget) else None

    @property
    def model(self) -> ModelTarget | None:
        """The target, where its prompts become tokens here: a model on this machine, in whichever engine."""
        return as_model(self.target)

    def close(self) -> None:
        """End what computes; see `Target.close`."""
        self.target.close()

    def check(self) -> None:
        """Refuse the name of a model that is neither here nor on the hub, before rows are read for it."""
        if self.local is not None and self.task is None and not is_local(self.local.base):
            resolve(self.local.base)

    @property
    def scores_labels(self) -> bool:
        """Whether answers are labels that are scored, not text that is written."""
        choice = self.task is not None and self.task.answer == "choice" and bool(self.task.labels)
        return choice and not self.target.no_scores[0]

    @property
    def advice(self) -> str:
        """What to expect of an untuned base model, as a line; empty of others."""
        plain = self.task is None and self.model is not None and self.model.template.is_plain
        words = "a base model, without a chat template: it continues texts rather than answers; tune it first"
        return f"\n          {words}" if plain else ""

    @property
    def identity(self) -> str:
        """Hash of what answers depend on: the target and its task."""
        return content_hash([self.target.identity, self.task])


def open_with_task(
    name: str, *, base: str = "", task: str = "", endpoint: Callable[[str], Endpoint] | None = None
) -> TaskTarget:
    """The target of a name, with its task; no model is loaded yet.

    Args:
        name: see `open_target`; also a registered version, `NAME@ALIAS`.
        base, endpoint: see `open_target`.
        task: a run or artifact whose task is taken, where the target has none.

    Raises:
        UserError: there is nothing of that name, or a run that is not finished.
    """
    borrowed = open_with_task(task).task if task else None
    name = local_name(name)
    target = open_target(name, base=base, endpoint=endpoint)
    spec = borrowed if borrowed is not None else task_inside(target)
    if spec is not None and spec.chat_template:
        target = open_target(name, base=base, endpoint=endpoint, template=spec.chat_template)
    return TaskTarget(target, spec)


def target_summary(target: Target) -> dict[str, Any]:
    """What a summary says of a target."""
    model = as_model(target)
    base = model.untuned or target.base if model is not None else target.base if target.is_classifier else ""
    return {"target": target.name, "kind": target.kind, "base": base or None}


# --- the task ------------------------------------------------------------------------------------


def task_inside(target: Target) -> TaskSpec | None:
    """The task in a target's folder; None where it has none."""
    return _read_task(target.folder) if target.folder is not None and target.folder.is_dir() else None


def task_of_run(run: Path) -> TaskSpec | None:
    """The task of a finished run. None where its weights say none."""
    return _read_task(trained_folder(run))


def _read_task(folder: Path) -> TaskSpec | None:
    """The task in a folder's `tuneloop.json`, if it says one; a damaged file, or a later version, is refused."""
    file = folder / OWN
    value = read_json(file) if file.is_file() else None
    task = value.get("task") if isinstance(value, dict) else None
    return None if task is None else read_task(task, file)


def write_task(job: RunContext, dataset: Dataset) -> None:
    """Put what a data set teaches into `tuneloop.json`, next to the weights; if it says too little that is reported."""
    try:
        file, config, rows = trained_folder(job.folder) / OWN, job.recipe.evaluate, list(dataset.train)
        dataset = replace(dataset, train=rows, test=dataset.test or rows)
        task = task_spec(
            dataset,
            answer="choice" if dataset.task == "classification" and uses_choice(dataset, config) else "generate",
            max_new_tokens=longest_answer(job.template, dataset, config),
            chat_template=plain_source(job.template.source),
        )
        write_json(file, {**read_json(file), "task": task})
    except (UserError, ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())[:200]
        say(f"warn: what this model was trained to answer can't be kept with it: {why}")
