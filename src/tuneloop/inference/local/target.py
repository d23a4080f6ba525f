"""Runs, artifacts, adapters, models and GGUF files, answered by our own engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.files import content_hash
from tuneloop.core.threads import use_threads
from tuneloop.inference.answer import Kind, with_template
from tuneloop.inference.local.engine import Engine, Update
from tuneloop.inference.local.grammar import Grammars, why_not_written
from tuneloop.inference.local.scoring import AnswerFit, LabelTrie, answer_fits, choose_for
from tuneloop.inference.local.workers import Crew, SharedWork
from tuneloop.inference.prompt import label_tree, refused, with_ids
from tuneloop.inference.request import Request, with_adapter
from tuneloop.models.adapters import applied_now, is_mixed
from tuneloop.models.load import Model, fingerprint, load_model
from tuneloop.models.names import refuse_missing_path, resolve
from tuneloop.models.peft_layout import hash_of_adapter
from tuneloop.models.template import Rendered, Template
from tuneloop.models.trained import base_of_adapter, load_trained, target_kind, trained_folder
from tuneloop.records.artifact import ArtifactManifest
from tuneloop.records.completion import Completion
from tuneloop.records.record import read_record
from tuneloop.records.run import RunManifest

ARTIFACT = "artifact.json"


@dataclass
class LocalTarget:
    """A model on this machine; it is loaded when it is first needed.

    Args:
        name: as the user gave it.
        base: name of the base model, or of the model itself where nothing was trained.
        trained: folder of an adapter on top of the base; None: the model is asked as it is.
        run: the run's folder, where the target is one.
        source: chat template that takes the place of the model's; empty: its own.
    """

    name: str
    base: str
    trained: Path | None = None
    run: Path | None = None
    source: str = ""
    shares_prompts: ClassVar[bool] = True

    @staticmethod
    def of(model: Model) -> LocalTarget:
        """A target from a model that is loaded already, with what is attached to it."""
        target = LocalTarget(model.name, model.name)
        target.__dict__["model"] = model
        return target

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
        return replace(model, template=with_template(model.template, self.source))

    @property
    def template(self) -> Template:
        """Tokenizer and chat template."""
        return self.model.template

    @property
    def folder(self) -> Path:
        """The adapter's folder, or the model's."""
        return self.trained or Path(self.name).expanduser()

    def served_on(self, base: str) -> tuple[str, str | None]:
        """Its own base, and its adapter's folder."""
        return self.base, None if self.trained is None else str(self.trained)

    def close(self) -> None:
        """Nothing: the model stays for who else uses it."""

    @property
    def context(self) -> int:
        """Tokens that the model reads, its answer included."""
        return self.model.context

    def load(self) -> None:
        """Load the model."""
        _ = self.model

    @cached_property
    def identity(self) -> str:
        """Hash of weights, tokenizer and template."""
        weights = [fingerprint(resolve(self.base))]
        if self.trained is not None:
            weights.append(hash_of_adapter(self.trained))
        return content_hash([weights, self.source])

    @property
    def untuned(self) -> str:
        """Name of the model before it was tuned; empty where nobody says it."""
        if self.trained is not None:
            return self.base
        if self.run is not None:
            return read_record(RunManifest, self.run).model
        artifact = Path(self.name) / ARTIFACT
        return read_record(ArtifactManifest, artifact).base.model if artifact.is_file() else ""

    def rendered(self, request: Request, room: int = 1) -> Request | Completion:
        """A request with its prompt as tokens, or why it can't be asked.

        Args:
            room: tokens that must fit behind the prompt.
        """
        return with_ids(self.template, self.context, request, room=room)

    def complete(self, requests: Sequence[Request], *, task: str = "answering") -> Iterator[Completion]:
        """Written answers; all are there when the first one comes."""
        asked = [with_adapter(request) for request in requests]
        if (crew := self._crew(asked)) is not None:
            return iter(crew(SharedWork("complete", asked, {"task": task})))
        return self._written(asked, task)

    def _written(self, requests: Sequence[Request], task: str) -> Iterator[Completion]:
        from tuneloop.inference.local.generate import answer_requests

        made = [self._writable(request) for request in requests]
        asked = [each for each in made if isinstance(each, Request)]
        answers = iter(answer_requests(self.model, asked, grammars=self.grammars, task=task))
        for each in made:
            yield next(answers) if isinstance(each, Request) else each

    def _crew(self, rows: Sequence[object]) -> Crew | None:
        """Who answers these rows together with this process; None: it does so alone."""
        return self.model.crew if len(rows) > 1 and not is_mixed() else None

    @cached_property
    def grammars(self) -> Grammars:
        """What answers under a JSON Schema may be."""
        return Grammars(self.template, self.model.head.shape[0])

    def _writable(self, request: Request) -> Request | Completion:
        why = why_not_written(request, lambda: self.grammars)
        return refused(request, why) if why else self.rendered(request)

    def stream(self, request: Request) -> Iterator[Update]:
        """One written answer in pieces as they come."""
        return self._streamed(with_adapter(request))

    def _streamed(self, request: Request) -> Iterator[Update]:
        made = self.rendered(request)
        if isinstance(made, Completion):
            yield Update(completion=made)
        else:
            yield from Engine(self.model).stream(made)

    def score(
        self,
        requests: Sequence[Request],
        labels: Sequence[str],
        *,
        exact: bool = False,
        lead: str = "",
        task: str = "scoring labels",
    ) -> Iterator[Completion]:
        """The likeliest label of each request by choice scoring; all are there when the first one comes."""
        asked = [with_adapter(request) for request in requests]
        if (crew := self._crew(asked)) is not None:
            options = {"labels": list(labels), "exact": exact, "lead": lead, "task": task}
            return iter(crew(SharedWork("score", asked, options)))
        return self._scored(asked, labels, exact, lead, task)

    def _scored(
        self, requests: Sequence[Request], labels: Sequence[str], exact: bool, lead: str, task: str
    ) -> Iterator[Completion]:
        tree = self.label_tree(labels, lead)
        opening = self.template.encode(lead) if lead else []
        made = [self.rendered(request, len(opening) + max(tree.lengths)) for request in requests]
        if lead:
            made = [replace(m, ids=[*m.ids, *opening]) if isinstance(m, Request) else m for m in made]
        asked = [each for each in made if isinstance(each, Request)]
        answers = iter(choose_for(self.model, asked, tree, prune=not exact, task=task))
        for each in made:
            yield next(answers) if isinstance(each, Request) else each

    def fits(self, rows: Sequence[Rendered], *, task: str = "reference answers") -> list[AnswerFit]:
        """How well the model foresees given answers, the supervised tokens of each row."""
        if (crew := self._crew(rows)) is not None:
            return crew(SharedWork("fits", list(rows), {"task": task}, applied_now()))
        return answer_fits(self.model, rows, task=task)

    def label_tree(self, labels: Sequence[str], lead: str = "") -> LabelTrie:
        """Labels as the tokens of whole answers, or of the rest of an answer that begins with `lead`."""
        return label_tree(self.template, labels, lead)


# --- what a name stands for ------------------------------------------------------------------------


def open_local(name: str, *, base: str = "", template: str = "") -> LocalTarget:
    """What a folder or name stands for; nothing is loaded yet.

    Raises:
        UserError: there is nothing of that name, or a run that is not finished.
    """
    folder, kind = Path(name).expanduser(), target_kind(name)
    if kind == "run":
        trained = trained_folder(folder)
        if not (trained / "adapter_config.json").is_file():
            return LocalTarget(name, str(trained), None, folder, template)  # all weights: a model by itself
        return LocalTarget(name, base or read_record(RunManifest, folder).model, trained, folder, template)
    if kind == "adapter":
        return LocalTarget(name, base or _base_of(folder), folder, None, template)
    refuse_missing(name)
    return LocalTarget(name, name, source=template)


def _base_of(folder: Path) -> str:
    """The base of an adapter: as the artifact or the run alongside it names it, else as PEFT's settings do."""
    artifact, run = folder / ARTIFACT, folder.parent / "run.json"
    if artifact.is_file():
        return read_record(ArtifactManifest, artifact).base.model
    if folder.name == "adapter" and run.is_file():
        return read_record(RunManifest, run).model
    return base_of_adapter(folder)


def refuse_missing(name: str) -> None:
    """Refuse a path that is not there: it is no name on the hub.

    Raises:
        UserError: with the nearest folder.
    """
    path = Path(name).expanduser()
    if path.exists() or len(path.parts) < 2 or not path.parent.is_dir():
        refuse_missing_path(name)
        return
    step = did_you_mean(
        path.name, [other.name for other in path.parent.iterdir()], "check the path", shown=path.parent.joinpath
    )
    raise UserError("There is no run, artifact or model here", where=name, next_step=step)
