"""Who is asked, with the task that it was trained for: a run, an exported artifact, an adapter, a model or an endpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuneloop.core.files import content_hash
from tuneloop.inference.local.target import LocalTarget, open_local
from tuneloop.inference.protocol import ModelTarget, Target, as_model
from tuneloop.inference.targets import open_target
from tuneloop.models.names import is_local, resolve
from tuneloop.pipeline.task import read_task_of, task_of_run
from tuneloop.registry.registered import local_name

if TYPE_CHECKING:
    from tuneloop.data.task import TaskSpec
    from tuneloop.inference.openai.target import Endpoint


@dataclass(frozen=True)
class TaskTarget:
    """A target, and what it was trained to answer; None where nobody says it."""

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

    def check(self) -> None:
        """Refuse the name of a model that can't be had, before rows are read and judged without it.

        Raises:
            UserError: nothing of that name is here or on the hub.
        """
        if self.local is not None and self.task is None and not is_local(self.local.base):
            resolve(self.local.base)

    @property
    def scores_labels(self) -> bool:
        """Whether answers are labels that are scored, not text that is written."""
        chosen = self.task is not None and self.task.answer == "choice" and bool(self.task.labels)
        return chosen and self.model is not None

    @property
    def identity(self) -> str:
        """Hash of what answers depend on: the target and its task."""
        return content_hash([self.target.identity, self.task])


def open_with_task(
    name: str, *, base: str = "", task: str = "", endpoint: Callable[[str], Endpoint] | None = None
) -> TaskTarget:
    """What a name stands for, with its task; no model is loaded yet.

    Args:
        name: see `open_target`; also a registered version, `NAME@ALIAS`.
        base, endpoint: see `open_target`.
        task: a run or artifact whose task is taken, where the target has none of its own.

    Raises:
        UserError: there is nothing of that name, or a run that is not finished.
    """
    lent = open_with_task(task).task if task else None
    name = local_name(name)
    own = open_target(name, base=base, endpoint=endpoint)
    found = lent if lent is not None else task_inside(own)
    if found is not None and isinstance(own, LocalTarget):
        own = open_local(name, base=base, template=found.chat_template)
    return TaskTarget(own, found)


def task_inside(target: Target) -> TaskSpec | None:
    """The task that a target's own folder says."""
    if isinstance(target, LocalTarget) and target.run is not None:
        return task_of_run(target.run)
    model = as_model(target)
    return read_task_of(model.folder) if model is not None and model.folder.is_dir() else None


def named(target: Target) -> dict[str, Any]:
    """What a summary says of a target."""
    model = as_model(target)
    base = (model.untuned or getattr(model, "base", "")) if model is not None else ""
    return {"target": target.name, "kind": target.kind, "base": base or None}
