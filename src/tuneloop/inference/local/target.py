"""Runs, artifacts, adapters, models and GGUF files, answered by our own engine, by several processes if need be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.files import content_hash
from tuneloop.core.threads import use_threads
from tuneloop.core.ui import reporter, reporting
from tuneloop.inference.local.batches import shared_length
from tuneloop.inference.local.engine import Engine
from tuneloop.inference.local.scoring import answer_fits, choose_for
from tuneloop.inference.protocol import SCORING, AnswerFit, Kind, LoadedTarget
from tuneloop.inference.request import Request, Requests, Separation, Update, fit_checked, with_adapter
from tuneloop.models import (
    Model,
    base_of_adapter,
    fingerprint,
    load_model,
    load_trained,
    target_kind,
    template_of_adapter,
    trained_folder,
)
from tuneloop.models.adapters import ATTACHED, applied, applied_now, hash_of_adapter, is_mixed
from tuneloop.models.chat import Rendered, Template, with_template
from tuneloop.models.files import refuse_missing_path, resolve
from tuneloop.models.nn import is_batch_invariant
from tuneloop.records.artifact import ARTIFACT, ArtifactManifest
from tuneloop.records.completion import Completion
from tuneloop.records.record import read_record
from tuneloop.records.run import RunManifest


@dataclass(frozen=True)
class SharedWork:
    """Rows to be answered by several processes that hold the same model; each answers a part."""

    call: Literal["complete", "score", "fits"]  # the method of `LocalTarget` that answers them
    rows: Sequence[Any]  # requests, or rendered rows for `fits`
    options: Mapping[str, Any]  # further arguments of that method
    adapter: str = ATTACHED  # that applies to the rows, see `models/adapters/assignment.py`

    def part(self, target: LocalTarget, rank: int, world: int) -> dict[int, Any]:
        """The answers of one process by the places of their rows: every `world`th row, so that long ones are spread."""
        outer = reporter().progress
        places = range(rank, len(self.rows), world)

        def of_all(task: str, count: float, total: float, /, **info: float | str) -> None:
            outer(task, min(count * world, len(self.rows)), len(self.rows), **info)

        adapter = nullcontext() if self.adapter == ATTACHED else applied(self.adapter)
        with adapter, reporting(progress=of_all):
            answers = getattr(target, self.call)([self.rows[i] for i in places], **self.options)
            return dict(zip(places, answers, strict=True))


# Has all processes answer and returns the answers in the order of the rows.
Workers = Callable[[SharedWork], list[Any]]


@dataclass
class LocalTarget(LoadedTarget):
    """A model on this machine; it is loaded when it is first needed."""

    name: str  # as the user gave it
    base: str  # name of the base model, or of the model itself where nothing was trained
    trained: Path | None = None  # folder of an adapter on top of the base; None: the model as it is
    run: Path | None = None  # the run's folder, where the target is one
    source: str = ""  # chat template that takes the place of the model's; empty: its own

    @staticmethod
    def of(model: Model) -> LocalTarget:
        """A target from a model that is loaded already, with what is attached to it."""
        target = LocalTarget(model.name, model.name)
        target.__dict__["model"] = model
        return target

    @property
    def is_tuned(self) -> bool:
        return self.run is not None or self.trained is not None

    @property
    def kind(self) -> Kind:
        """A run, an adapter, or a model."""
        return "run" if self.run else "adapter" if self.trained else "model"

    @cached_property
    def model(self) -> Model:
        """The model with its adapter and template."""
        use_threads()
        model = load_model(self.base)
        if self.trained is not None:
            load_trained(model, self.trained)
            model = replace(model, template=template_of_adapter(self.trained, model.template))
        return replace(model, template=with_template(model.template, self.source))

    @property
    def template(self) -> Template:
        return self.model.template

    @property
    def folder(self) -> Path:
        """The adapter's folder, or the model's."""
        return self.trained or Path(self.base if self.run else self.name).expanduser()

    def served_on(self, base: str) -> tuple[str, str | None]:
        """The base that it names, and its adapter's folder."""
        return self.base, None if self.trained is None else str(self.trained)

    @property
    def context(self) -> int:
        return self.model.context

    @property
    def vocabulary(self) -> int:
        """Rows of the output matrix."""
        return int(self.model.head.shape[0])

    def load(self) -> None:
        """Load the model."""
        _ = self.model

    def close(self) -> None:
        """Free the model's memory; it is loaded again when it is needed."""
        self.__dict__.pop("model", None)

    @cached_property
    def identity(self) -> str:
        """Hash of weights, tokenizer and template."""
        weights = [fingerprint(resolve(self.base))]
        if self.trained is not None:
            weights.append(hash_of_adapter(self.trained))
        return content_hash([weights, self.source])

    @property
    def untuned(self) -> str:
        """Name of the model before it was tuned; empty where nothing says it."""
        if self.trained is not None:
            return self.base
        return read_record(RunManifest, self.run).model if self.run is not None else super().untuned

    def complete(self, requests: Requests, *, task: str = "answering") -> Iterator[Completion]:
        """Written answers; all are there when the first one comes."""
        from tuneloop.inference.local.answers import answer_requests

        requests = [with_adapter(request) for request in requests]
        if (workers := self._workers(requests)) is not None:
            return iter(workers(SharedWork("complete", requests, {"task": task})))

        def written(ready: list[Request]) -> list[Completion]:
            answers = answer_requests(self.model, ready, grammars=self.grammars, task=task)
            checked = [
                fit_checked(prepared_request, answer) for prepared_request, answer in zip(ready, answers, strict=True)
            ]
            return [
                Separation(prepared_request, self.template).of(fit.result())
                for prepared_request, fit in zip(ready, checked, strict=True)
            ]

        return self._answers([self.writable(request) for request in requests], written)

    def _answers(
        self, prepared: Sequence[Request | Completion], compute: Callable[[list[Request]], list[Completion]]
    ) -> Iterator[Completion]:
        answers = iter(compute([entry for entry in prepared if isinstance(entry, Request)]))
        for prepared_request in prepared:
            yield next(answers) if isinstance(prepared_request, Request) else prepared_request

    def _workers(self, rows: Sequence[object]) -> Workers | None:
        """What answers these rows in several processes; None: this one does so alone."""
        return self.model.workers if len(rows) > 1 and not (is_mixed() or is_batch_invariant()) else None

    def stream(self, request: Request) -> Iterator[Update]:
        """One written answer in pieces as they come."""
        ready = self.rendered(with_adapter(request))
        if isinstance(ready, Completion):
            return iter([Update(completion=ready)])
        separated = Separation(ready, self.template)

        def checked(update: Update) -> Update:
            completion = update.completion and fit_checked(ready, update.completion).result()
            return separated(replace(update, completion=completion))

        return map(checked, Engine(self.model).stream(ready))

    def score(
        self, requests: Requests, labels: Sequence[str], *, exact: bool = False, lead: str = "", task: str = SCORING
    ) -> Iterator[Completion]:
        """The likeliest label of each request by choice scoring; all are there when the first one comes."""
        requests = [with_adapter(request) for request in requests]
        if (workers := self._workers(requests)) is not None:
            options = {"labels": list(labels), "exact": exact, "lead": lead, "task": task}
            return iter(workers(SharedWork("score", requests, options)))
        tree = self.label_tree(labels, lead)
        opening = self.template.encode(lead) if lead else []
        ready = [self.rendered(request, len(opening) + max(tree.lengths)) for request in requests]
        if lead:
            ready = [replace(r, ids=[*r.ids, *opening]) if isinstance(r, Request) else r for r in ready]
        return self._answers(ready, lambda some: choose_for(self.model, some, tree, prune=not exact, task=task))

    def computed(self, prompts: Sequence[Sequence[int]], answers: Sequence[Completion]) -> int:
        """See `Target`."""
        shared = shared_length(prompts)
        return shared + sum(
            len(prompt) - shared + answer.completion_tokens for prompt, answer in zip(prompts, answers, strict=True)
        )

    def fits(self, rows: Sequence[Rendered], *, task: str = "reference answers") -> list[AnswerFit]:
        if (workers := self._workers(rows)) is not None:
            return workers(SharedWork("fits", list(rows), {"task": task}, applied_now()))
        return answer_fits(self.model, rows, task=task)


# --- what a name means -----------------------------------------------------------------------------


def open_local(name: str, *, base: str = "", template: str = "") -> LocalTarget:
    """What a folder or name means; nothing is loaded yet.

    Raises:
        UserError: there is nothing of that name, or a run that is not finished.
    """
    folder, kind = Path(name).expanduser(), target_kind(name)
    if kind == "run":
        trained = trained_folder(folder)
        if not (trained / "adapter_config.json").is_file():
            return LocalTarget(name, str(trained), None, folder, template)  # all weights: a whole model
        return LocalTarget(name, base or read_record(RunManifest, folder).model, trained, folder, template)
    if kind == "adapter":
        return LocalTarget(name, base or _base_of(folder), folder, None, template)
    if folder.exists() or len(folder.parts) < 2 or not folder.parent.is_dir():
        refuse_missing_path(name)
        return LocalTarget(name, name, source=template)
    others = [other.name for other in folder.parent.iterdir()]  # a path that is not there is no name on the hub
    step = did_you_mean(folder.name, others, "check the path", shown=folder.parent.joinpath)
    raise UserError("There is no run, artifact or model here", where=name, next_step=step)


def _base_of(folder: Path) -> str:
    """The base of an adapter: as the artifact or the run next to it names it, else as PEFT's settings do."""
    if (folder / ARTIFACT).is_file():
        return read_record(ArtifactManifest, folder / ARTIFACT).base.model
    if folder.name == "adapter" and (folder.parent / "run.json").is_file():
        return read_record(RunManifest, folder.parent).model
    return base_of_adapter(folder)
