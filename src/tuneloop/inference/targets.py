"""Who answers, behind one small protocol: a run, an adapter, a model, a GGUF file, an endpoint, a file of predictions.

A new engine or kind of target is one file here, with the methods of `Target`, and its line in `open_target`. What a
target needs of a stage (the turns of a prompt, the labels to choose from) stands in the request or is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from tuneloop.core.errors import UserError
from tuneloop.core.progress import Progress, no_progress
from tuneloop.core.urls import masked
from tuneloop.inference.client import Endpoint, EndpointTarget
from tuneloop.inference.local.target import LocalTarget, open_folder_or_name
from tuneloop.inference.predictions import PredictionsTarget, read_answers
from tuneloop.inference.request import Request
from tuneloop.records.completion import Completion

if TYPE_CHECKING:
    from tuneloop.inference.engine import Update

Kind = Literal["run", "adapter", "model", "endpoint", "predictions"]


class Target(Protocol):
    """Somebody who answers requests.

    Each request gets one completion, in order; one that can't be answered has the finish `error` and says why. What makes
    all requests fail (no such model, a wrong key) is raised as a `UserError`.
    """

    @property
    def name(self) -> str:
        """As the user gave it."""

    @property
    def kind(self) -> Kind:
        """What it is."""

    @property
    def identity(self) -> str:
        """Hash of what its answers depend on."""

    def load(self) -> None:
        """Make it ready, so that the first answer does not wait for that."""

    def complete(
        self, requests: Sequence[Request], *, progress: Progress = no_progress, task: str = "answering"
    ) -> Iterator[Completion]:
        """Written answers."""

    def stream(self, request: Request) -> Iterator[Update]:
        """One written answer in pieces as they come; whoever stops reading cancels it."""

    def score(
        self,
        requests: Sequence[Request],
        labels: Sequence[str],
        *,
        exact: bool = False,
        lead: str = "",
        progress: Progress = no_progress,
        task: str = "scoring labels",
    ) -> Iterator[Completion]:
        """The likeliest label of each request, with scores.

        Args:
            exact: score every label to its end; else those that can't win have upper bounds.
            lead: text that the answer begins with, before the label.

        Raises:
            UserError: it can only write.
        """


ANSWERS = (".jsonl", ".json", ".csv", ".parquet")  # endings of files with predictions


def kind_of_name(name: str) -> Literal["endpoint", "predictions", "local"]:
    """What a target's name tells by itself: a URL is an endpoint, a file of rows holds predictions, all else is a model here."""
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
    """What a name stands for; nothing is loaded yet.

    Args:
        name: a run's folder, an artifact's, an adapter's or a model's; a model's name; a GGUF file; an endpoint's URL; a file
            of predictions.
        base: the base of an adapter; default: the one that it names.
        endpoint: makes an endpoint from a URL.
        answers: reads a file of predictions: the answer of each row's id; default: JSON Lines with `id` and `prediction`.
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
    from tuneloop.inference.llamacpp.target import GgufTarget, as_gguf

    file = as_gguf(name)
    if file is not None:
        return GgufTarget(name, file, template)
    return open_local(name, base=base, template=template)


def open_local(name: str, *, base: str = "", template: str = "") -> LocalTarget:
    """A run, artifact, adapter or model on this machine; see `open_target`."""
    return open_folder_or_name(name, base=base, template=template)
