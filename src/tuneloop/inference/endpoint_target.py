"""A model behind an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuneloop.core.files import content_hash
from tuneloop.core.progress import Progress, no_progress
from tuneloop.core.urls import masked
from tuneloop.inference.client import Endpoint, complete
from tuneloop.inference.request import Request
from tuneloop.inference.text_only import TextTarget
from tuneloop.records.completion import Completion

if TYPE_CHECKING:
    from tuneloop.inference.targets import Kind


@dataclass(frozen=True)
class EndpointTarget(TextTarget):
    """A server and the model that is asked there; chat completions give no log likelihood of a given answer."""

    endpoint: Endpoint

    no_scores = ("An endpoint writes its answers, it can't score choices", "leave evaluate.answer at auto")

    @property
    def kind(self) -> Kind:
        """An endpoint."""
        return "endpoint"

    @property
    def identity(self) -> str:
        """Hash of the address and the model's name; what stands behind them may change."""
        return content_hash([self.endpoint.address, self.endpoint.model])

    def complete(
        self, requests: Sequence[Request], *, progress: Progress = no_progress, task: str = "asking"
    ) -> Iterator[Completion]:
        """Written answers; several requests are asked at once, and equal ones once.

        Raises:
            UserError: the endpoint refuses all requests, or answers none of the first.
        """
        whys = [_why_not(request) for request in requests]
        asked = [request for request, why in zip(requests, whys, strict=True) if not why]
        answers = iter(complete(self.endpoint, asked, progress=progress, task=task) if asked else ())
        for why in whys:
            yield Completion(finish="error", error=why, engine=masked(self.endpoint.address)) if why else next(answers)


def _why_not(request: Request) -> str:
    if request.continues is not None:
        return "no_prompt: the model was trained on plain text, which no chat endpoint goes on with"
    if not request.messages:
        return "no_prompt: an endpoint is asked in turns, and the request has none"
    if request.logprobs is not None:
        return "no_logprobs: log probabilities of an endpoint's tokens are not read"
    return ""
