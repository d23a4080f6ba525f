"""What a name means: a run, an adapter, a model, a GGUF file, an endpoint, a file of predictions.

A new engine for models on this machine is one file with an `EngineKind` and its place in `ENGINES`: it serves and is
measured by that. Another kind of target is one file with a subclass of `protocol.Target`, and its line in
`open_target`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, read_jsonl
from tuneloop.core.urls import masked
from tuneloop.inference.llamacpp import target as llamacpp
from tuneloop.inference.local import serving as local
from tuneloop.inference.openai.target import Endpoint, EndpointTarget
from tuneloop.inference.protocol import EngineKind, Kind, ModelTarget, Target
from tuneloop.inference.request import Requests
from tuneloop.records.completion import Completion

ENGINES = (llamacpp.KIND, local.KIND)  # ours takes what no other one claims
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
        base: the base of an adapter; default: the one that it names.
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
        return EndpointTarget(masked(name), endpoint(name))
    return open_model(name, base=base, template=template)


def open_model(name: str, *, base: str = "", template: str = "") -> ModelTarget:
    """A model on this machine, by the engine that claims its name; see `open_target`."""
    return engine_for(name).target(name, base, template)


def engine_for(name: str, engine: str = "auto") -> EngineKind:
    """The engine of that name, or the one that claims the name of a model."""
    return next(kind for kind in ENGINES if kind.name == engine or (engine == "auto" and kind.claims(name)))


@dataclass(frozen=True)
class PredictionsTarget(Target):
    """Answers that were made elsewhere: a file's, by the ids of their rows, which are those of the requests."""

    name: str
    answers: Mapping[str, str]

    kind: ClassVar[Kind] = "predictions"
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
