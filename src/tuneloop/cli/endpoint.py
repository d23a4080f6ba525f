"""Options of a target that answers, and of an OpenAI-compatible endpoint, which several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import typer

from tuneloop.cli.parameters import argument
from tuneloop.core.files import Config, cache_folder
from tuneloop.core.flag import flag, switch

if TYPE_CHECKING:
    from tuneloop.evaluation import Judge
    from tuneloop.inference import Endpoint


TARGET = argument("TARGET", "A run, artifact, adapter or model: folder, name or GGUF file; or an endpoint's URL.")


class ConnectionOptions(Config):
    """How an endpoint is reached."""

    PANEL: ClassVar[str] = "Endpoint"

    api_key_env: str = flag("OPENAI_API_KEY", "NAME", "Environment variable with the endpoint's key.")
    timeout: float = flag(120.0, "X", "Seconds for one request to the endpoint.", least=0.1)

    def endpoint(self, url: str, model: str) -> Endpoint:
        """The endpoint, one request at a time, no answer kept."""
        return _endpoint(url, model, self.api_key_env, timeout=self.timeout, concurrency=1)


class TargetOptions(Config):
    """How a target answers, for `predict` and `chat`."""

    model: str = flag("", "NAME", "The model, as an endpoint names it.", "-m")
    base: str = flag("", "MODEL", "Base of an adapter, default: the one that it names; of an endpoint, what it serves.")
    task: str = flag("", "TARGET", "Take instruction and columns from it: the run or artifact that an endpoint serves.")
    system: str | None = flag(None, "TEXT", 'System turn in place of the trained one; "" for none.')
    max_new_tokens: int | None = flag(None, "N", "Longest answer, in tokens; default: that of training.", least=1)

    def server(self, connection: ConnectionOptions) -> Callable[[str], Endpoint]:
        """What makes an endpoint of a URL."""

        def of(url: str) -> Endpoint:
            if not self.model:
                raise typer.BadParameter("an endpoint needs --model NAME")
            return connection.endpoint(url, self.model)

        return of


class EndpointOptions(ConnectionOptions):
    """How an endpoint is reached, and what becomes of its answers."""

    concurrency: int = flag(8, "N", "Requests to the endpoint at the same time.", least=1, most=256)
    retries: int = flag(5, "N", "Further tries of a request that may succeed later.", least=0, most=20)
    cache: str = flag("", "FOLDER", "Folder of its answers; default: in the user's cache.", show=False)
    no_cache: bool = switch("Keep no answers of the endpoint.")

    def endpoint(self, url: str, model: str) -> Endpoint:
        """The endpoint; answers are kept in the user's cache unless another place is named."""
        return self._priced(url, model)

    def _priced(self, url: str, model: str, **prices: float) -> Endpoint:
        cache = None if self.no_cache else self.cache
        numbers = {name: getattr(self, name) for name in ("timeout", "concurrency", "retries")}
        return _endpoint(url, model, self.api_key_env, cache=cache, **numbers, **prices)


class PricedEndpointOptions(EndpointOptions):
    """The same, with the endpoint's prices."""

    usd_per_million_input: float = flag(0.0, "X", "Price of 1M tokens that the endpoint reads.", least=0)
    usd_per_million_output: float = flag(0.0, "X", "Price of 1M tokens that it writes.", least=0)

    def endpoint(self, url: str, model: str) -> Endpoint:
        """The endpoint with its prices."""
        prices = {name: getattr(self, name) for name in ("usd_per_million_input", "usd_per_million_output")}
        return self._priced(url, model, **prices)


class JudgeChoice(Config):
    """A model as judge."""

    PANEL: ClassVar[str] = "Judge"

    judge: str = flag("", "MODEL|URL", "A model that compares the answers: a local model, or an endpoint's URL.")
    judge_model: str = flag("", "NAME", "The judge, as the endpoint names it.")
    judge_prompt: str = flag("", "FILE", "Your own prompt, in the form of judge.yaml.")

    def chosen(self, connection: ConnectionOptions, *more: Any) -> Judge | None:
        """The judge, with further fields of a `Judge`; None where none is requested."""
        from tuneloop.evaluation import Judge

        if not self.judge:
            return None
        if not self.judge.startswith(("http://", "https://")):
            return Judge(self.judge, None, self.judge_prompt, *more)
        if not self.judge_model:
            raise typer.BadParameter("name the endpoint's model with --judge-model")
        endpoint = connection.endpoint(self.judge, self.judge_model)
        return Judge(self.judge_model, endpoint, self.judge_prompt, *more)


def _endpoint(url: str, model: str, api_key_env: str, *, cache: str | None = None, **settings: float) -> Endpoint:
    """An endpoint; `cache` is a folder, "" for the user's cache, None to keep nothing."""
    from tuneloop.inference import Endpoint, key_from

    folder = None if cache is None else Path(cache) if cache else cache_folder() / "answers"
    endpoint = Endpoint(url, model, key_from(api_key_env), cache=folder, **settings)  # type: ignore[arg-type]
    _ = endpoint.address  # a wrong URL is refused before anything is loaded
    return endpoint
