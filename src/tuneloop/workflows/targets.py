"""Who is asked: a run, an exported artifact, an adapter, a model or an endpoint, with the task that it was trained for."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, sha256_file
from tuneloop.models.names import refuse_missing_path
from tuneloop.models.trained import base_of_adapter, target_kind, trained_folder
from tuneloop.records.artifact import ArtifactManifest
from tuneloop.records.record import read_record
from tuneloop.records.run import RunManifest

if TYPE_CHECKING:
    from tuneloop.data.task import TaskSpec
    from tuneloop.inference.client import Endpoint
    from tuneloop.models.load import Model

ARTIFACT = "artifact.json"


@dataclass
class Target:
    """A model that can be asked; it is loaded when it is first needed.

    Args:
        name: as the user gave it.
        base: name of the base model, or of the model itself where nothing was trained; empty of an endpoint.
        trained: folder of an adapter on top of the base; None: the model is asked as it is.
        task: what it was trained to answer; None where nobody says it.
        endpoint: the server to ask instead.
        run: the run's folder, where the target is one.
    """

    name: str
    base: str = ""
    trained: Path | None = None
    task: TaskSpec | None = None
    endpoint: Endpoint | None = None
    run: Path | None = None

    @cached_property
    def model(self) -> Model:
        """The model with its adapter, and with the chat template that it was trained with."""
        from tuneloop.models.load import load_model, use_threads
        from tuneloop.models.template import plain_source
        from tuneloop.models.trained import load_trained

        use_threads()
        model = load_model(self.base)
        if self.trained is not None:
            load_trained(model, self.trained)
        template = self.task.chat_template if self.task is not None else ""
        if template and template != plain_source(model.template.source):
            model = replace(model, template=replace(model.template, source=template))
        return model

    def check(self) -> None:
        """Refuse the name of a model that can't be had, before rows are read and judged without it.

        Raises:
            UserError: nothing of that name is here or on the hub.
        """
        from tuneloop.models.names import is_local, resolve

        if self.endpoint is None and self.task is None and not is_local(self.base):
            resolve(self.base)

    @property
    def scores_labels(self) -> bool:
        """Whether answers are labels that are scored, not text that is written."""
        return (
            self.endpoint is None and self.task is not None and self.task.answer == "choice" and bool(self.task.labels)
        )

    @cached_property
    def identity(self) -> str:
        """Hash of what answers depend on: weights, tokenizer and task, or the server and its model."""
        from tuneloop.models.load import fingerprint
        from tuneloop.models.names import resolve

        if self.endpoint is not None:
            return content_hash([self.endpoint.address, self.endpoint.model, self.task])
        weights = [fingerprint(resolve(self.base))]
        if self.trained is not None:
            weights.append(sha256_file(self.trained / "adapter_model.safetensors"))
        return content_hash([weights, self.task])

    @property
    def untuned(self) -> str:
        """Name of the model before it was tuned; empty where nobody says it."""
        if self.trained is not None:
            return self.base
        if self.run is not None:
            return read_record(RunManifest, self.run).model
        artifact = Path(self.name) / ARTIFACT
        return read_record(ArtifactManifest, artifact).base.model if artifact.is_file() else ""


def open_target(
    name: str, *, base: str = "", task: str = "", endpoint: Callable[[str], Endpoint] | None = None
) -> Target:
    """What a name stands for; nothing is loaded yet.

    Args:
        name: a run's folder, an artifact's, an adapter's or a model's; a model's name; an endpoint's URL.
        base: the base of an adapter; default: the one that it names.
        task: a run or artifact whose task is taken, where the target has none of its own.
        endpoint: makes an endpoint from a URL.

    Raises:
        UserError: there is nothing of that name, or a run that is not finished.
    """
    lent = open_target(task).task if task else None
    if name.startswith(("http://", "https://")):
        if endpoint is None:
            raise UserError("An endpoint needs the name of a model", where=name, next_step="give --model NAME")
        return Target(name, endpoint=endpoint(name), task=lent)
    found = _open_local(name, base)
    return found if lent is None else replace(found, task=lent)


def _open_local(name: str, base: str) -> Target:
    from tuneloop.workflows.task import read_task_of, task_of_run

    folder, kind = Path(name).expanduser(), target_kind(name)
    if kind == "run":
        run, trained = read_record(RunManifest, folder), trained_folder(folder)
        task = task_of_run(folder)
        if not (trained / "adapter_config.json").is_file():
            return Target(name, str(trained), None, task, run=folder)  # all weights: a model by itself
        return Target(name, base or run.model, trained, task, run=folder)
    if kind == "adapter":
        return Target(name, base or _base_of(folder), folder, read_task_of(folder))
    _refuse_missing(name)
    return Target(name, name, None, read_task_of(folder) if folder.is_dir() else None)


def _base_of(folder: Path) -> str:
    """The base of an adapter: as the artifact or the run beside it names it, else as PEFT's settings do."""
    artifact, run = folder / ARTIFACT, folder.parent / "run.json"
    if artifact.is_file():
        return read_record(ArtifactManifest, artifact).base.model
    if folder.name == "adapter" and run.is_file():
        return read_record(RunManifest, run).model
    return base_of_adapter(folder)


def _refuse_missing(name: str) -> None:
    """Refuse a path that is not there: it is no name on the hub.

    Raises:
        UserError: with the nearest folder.
    """
    path = Path(name).expanduser()
    if path.exists() or len(path.parts) < 2 or not path.parent.is_dir():
        refuse_missing_path(name)
        return
    near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], 1, 0.5)
    raise UserError(
        "There is no run, artifact or model here",
        where=name,
        next_step=f"did you mean {path.parent / near[0]}?" if near else "check the path",
    )


def named(target: Target) -> dict[str, Any]:
    """What a summary says of a target."""
    kind = "endpoint" if target.endpoint else "run" if target.run else "adapter" if target.trained else "model"
    return {"target": target.name, "kind": kind, "base": target.untuned or target.base or None}
