"""What runs next to the answers of a server: experiments, monitoring, retraining. `improve.serve` has all of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import Gateway


@dataclass(frozen=True)
class Candidate:
    """What an experiment wants served.

    Args:
        model: name of the model in whose place it answers.
        source: run, artifact or registered version.
    """

    model: str
    source: str


class Experiments(Protocol):
    """The experiments of a server's store, as far as the server has to know of them."""

    @property
    def wanted(self) -> Mapping[str, Candidate]:
        """Their candidates, by the experiments' names, as last read."""

    def candidates(self) -> Mapping[str, Candidate]:
        """The same, read again."""

    def followed_by(self, gateway: Gateway) -> AbstractAsyncContextManager[None]:
        """Keep a gateway up to date for the time of a block."""


@dataclass(frozen=True)
class Companions:
    """What a server starts together with itself.

    Args:
        experiments: from the store's place.
        check: refuses settings of the rest before anything is loaded; gets the names of the tuned models.
        running: the rest, for the time of a block.
    """

    experiments: Callable[[str], Experiments]
    check: Callable[[ServeConfig, Collection[str]], None]
    running: Callable[[ServeConfig, Gateway], AbstractAsyncContextManager[None]]
