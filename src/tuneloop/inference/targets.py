"""What a name means: a run, an adapter, a model, a GGUF file, an endpoint, a file of predictions.

A new engine for models on this machine is one file with an `EngineKind` and its place in `ENGINES`: it serves, and is
measured through what it serves. Another kind of target is one file with a subclass of `protocol.Target`, and its line
in `open_target`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, read_jsonl
from tuneloop.core.urls import masked
from tuneloop.inference import encoder
from tuneloop.inference.endpoint import Endpoint
from tuneloop.inference.engine_target import EngineTarget
from tuneloop.inference.llamacpp import target as llamacpp
from tuneloop.inference.local import serving as local
from tuneloop.inference.local.target import open_local
from tuneloop.inference.openai.serving import EndpointEngine, EndpointSettings, only_model
from tuneloop.inference.openai.target import EndpointTarget
from tuneloop.inference.prompt.target import PromptTarget, endpoint_of
from tuneloop.inference.prompt.turns import open_prompt
from tuneloop.inference.protocol import EngineKind, EngineSettings, Kind, Served, ServingEngine, Target
from tuneloop.inference.request import Requests
from tuneloop.models import target_kind
from tuneloop.models.files import is_local
from tuneloop.records.completion import Completion
from tuneloop.records.prompt import prompt_folder, read_prompt

ENGINES = (llamacpp.KIND, encoder.KIND, local.KIND)  # ours takes what no other one claims
ANSWERS = (".jsonl", ".json", ".csv", ".parquet")  # endings of files with predictions


def kind_of_name(name: str) -> Literal["endpoint", "predictions", "local"]:
    """What a name says: a URL is an endpoint, a file of rows holds predictions, all else is a model here."""
    if name.startswith(("http://", "https://")):
        return "endpoint"
    plain = name.removesuffix(".gz").removesuffix(".zst").lower()
    return "predictions" if plain.endswith(ANSWERS) and not Path(name).expanduser().is_dir() else "local"


def open_target(
    name: str,
    *,
    base: str = "",
    endpoint: Callable[[str], Endpoint] | None = None,
    answers: Callable[[str], Mapping[str, str]] | None = None,
    template: str = "",
) -> Target:
    """What a name means; nothing is loaded yet.

    Args:
        name: the folder of a run, artifact, adapter or model; a model's name; a GGUF file; a URL; a predictions file.
        base: the base of an adapter, by default the one that it names; of an endpoint see `open_endpoint`.
        endpoint: makes an endpoint from a URL.
        answers: reads predictions by the ids of their rows; default: JSON Lines with `id` and `prediction`.
        template: chat template that takes the place of the model's.

    Raises:
        UserError: there is nothing of that name, or a run that is not finished.
    """
    kind = kind_of_name(name)
    if kind == "predictions":
        return PredictionsTarget(name, (answers or read_answers)(name))
    if kind == "endpoint":
        if endpoint is None:
            raise UserError("An endpoint needs the name of a model", where=masked(name), next_step="give --model NAME")
        return open_endpoint(endpoint(name), base=base, template=template)
    return open_model(name, base=base, template=template)


def open_model(name: str, *, base: str = "", template: str = "") -> Target:
    """A model on this machine, by the engine that claims its name; see `open_target`."""
    return target_of(engine_for(name), name, base=base, template=template)


def target_of(kind: EngineKind, name: str, *, base: str = "", template: str = "") -> Target:
    """A model on this machine by an engine: in its own way of answering rows, else through what it serves."""
    if prompt_folder(name):
        prompt = open_prompt(name)
        if prompt.manifest.served_as:
            return PromptTarget(name, prompt, open_endpoint(endpoint_of(prompt), base=base, template=template))
        return PromptTarget(name, prompt, target_of(kind, base or prompt.manifest.model, template=template))
    if kind.target is not None:
        return kind.target(name, base, template)
    model = open_local(name, base=base, template=template)

    def engine() -> ServingEngine:
        adapters = [] if model.trained is None else [Served(str(model.trained), target.template.source)]
        plain = target.template.source if model.trained is None else ""
        return kind.serving(Served(model.base, plain), adapters, EngineSettings())

    target = EngineTarget(name, model, engine)
    return target


def open_endpoint(endpoint: Endpoint, *, base: str = "", template: str = "") -> Target:
    """A server's model: asked by token ids where it is known what it is, else by turns, which the server renders.

    Args:
        endpoint: its model is the server's name of one, or the folder of a run or adapter, which the server is given.
        base: what the model is, on this machine: a model, or the run or adapter of that name; empty: unknown. Of a run
            or adapter the base that it is for, where it names another one.
        template: chat template that takes the place of the trained one.
    """
    name, given = masked(endpoint.url), target_kind(endpoint.model) != "model"
    if not (given or base):
        return EndpointTarget(name, endpoint)
    model = open_local(endpoint.model if given else base, base=base if given else "", template=template)
    if given and model.trained is None:
        message, step = (
            "A server can be given adapters, and this run trained all weights",
            "give the server's name of it",
        )
        raise UserError(message, where=endpoint.model, next_step=f"--model NAME --base {endpoint.model}: {step}")
    url = endpoint.address.removesuffix("/chat/completions")

    def engine() -> ServingEngine:
        source, tokenizer = target.template.source, model.base if is_local(model.base) else str(model.trained)
        settings = EndpointSettings(
            url, endpoint.api_key, tokenizer, endpoint.concurrency, login=endpoint.login, start_within=endpoint.timeout
        )
        served = only_model([url], endpoint.api_key, endpoint.login) if given else endpoint.model
        adapters = [Served(str(model.trained), source)] if given else []
        return EndpointEngine(Served(served, source), adapters, settings)

    path = f"{masked(url)} (model {endpoint.model})"
    target = EngineTarget(name, model, engine, path, endpoint, endpoint)
    return target


def engine_for(name: str, engine: str = "auto") -> EngineKind:
    """The engine of that name, or the one that claims the name of a model; of a prompt that of its model."""
    if folder := prompt_folder(name):
        name = read_prompt(folder).model
    return next(kind for kind in ENGINES if kind.name == engine or (engine == "auto" and kind.claims(name)))


@dataclass(frozen=True)
class PredictionsTarget(Target):
    """Answers that were made elsewhere: a file's, by the ids of their rows, which are those of the requests."""

    name: str
    answers: Mapping[str, str]

    kind: ClassVar[Kind] = "predictions"
    takes_prompts: ClassVar[bool] = False
    no_scores = ("A file of answers can't score choices", "evaluate its texts")

    @property
    def identity(self) -> str:
        """Hash of the answers."""
        return content_hash(dict(self.answers))

    def complete(self, requests: Requests, *, task: str = "reading") -> Iterator[Completion]:
        """The answers of the file."""
        for request in requests:
            text = self.answers.get(request.id)
            if text is None:
                yield Completion(finish="error", error="no prediction", engine=self.kind)
            else:
                yield Completion(text, engine=self.kind)


def read_answers(file: str) -> dict[str, str]:
    """The answers in JSON Lines with `id` and `prediction`.

    Raises:
        UserError: no such file, it can't be read, or a line has no id or no text as prediction.
    """
    answers: dict[str, str] = {}
    for number, record in enumerate(read_jsonl(Path(file)), 1):
        row, text = (record.get("id"), record.get("prediction")) if isinstance(record, dict) else (None, None)
        if row is None or not isinstance(text, str):
            step = 'write {"id": ..., "prediction": "..."}'
            raise UserError("Not a prediction", where=f"{file}, line {number}", next_step=step)
        answers[str(row)] = text
    return answers
