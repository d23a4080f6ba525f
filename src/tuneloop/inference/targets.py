"""What a name stands for: a run, an adapter, a model, a GGUF file, an endpoint, a file of predictions.

A new engine for models on this machine is one file with an `EngineKind` and its place in `ENGINES`: it serves and is
measured by that. Another kind of target is one file with the methods of `answer.Target`, and its line in `open_target`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from tuneloop.core.errors import UserError
from tuneloop.core.urls import masked
from tuneloop.inference.answer import EngineKind, ModelTarget, Target
from tuneloop.inference.client import Endpoint, EndpointTarget
from tuneloop.inference.llamacpp import target as llamacpp
from tuneloop.inference.local import serving as local
from tuneloop.inference.predictions import PredictionsTarget, read_answers

ENGINES = (llamacpp.KIND, local.KIND)  # ours takes what no other one claims
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
    return open_model(name, base=base, template=template)


def open_model(name: str, *, base: str = "", template: str = "") -> ModelTarget:
    """A model on this machine, by the engine that claims its name; see `open_target`."""
    return engine_for(name).target(name, base, template)


def engine_for(name: str, engine: str = "auto") -> EngineKind:
    """The engine of that name, or the one that claims the name of a model."""
    return next(kind for kind in ENGINES if kind.name == engine or (engine == "auto" and kind.claims(name)))
