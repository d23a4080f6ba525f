"""Answers to rows from any OpenAI-compatible endpoint, by chat completions: the endpoint renders the turns.

This is what an endpoint gets of which nothing is known; `EngineTarget` asks a server whose model's tokenizer is here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, write_bytes
from tuneloop.core.http import timeouts
from tuneloop.core.http.wire import Broken, HttpRefused, Wire, finished, need_httptools
from tuneloop.core.urls import masked
from tuneloop.inference.endpoint import Endpoint
from tuneloop.inference.openai.api import body_of, read_reply
from tuneloop.inference.protocol import Kind, Target
from tuneloop.inference.request import Request, Requests
from tuneloop.inference.requesting import Body, FailedTry, Requester
from tuneloop.records.completion import Completion

# Parameters that some models refuse by name, and what is sent instead.
REPLACED: dict[str, str | None] = {
    "max_tokens": "max_completion_tokens", "temperature": None, "seed": None, "logprobs": None, "top_logprobs": None,
}  # fmt: skip
STEP = "check --endpoint, --model and the key; answers that came are kept, the same command requests the rest"


def complete(endpoint: Endpoint, requests: Requests, *, task: str = "asking") -> list[Completion]:
    """Answers to requests, in order; equal requests are made once.

    Raises:
        UserError: the endpoint refuses all requests (a wrong URL, key or model), or answers none of the first.
    """
    return finished(_completed(endpoint, requests, task))


async def _completed(endpoint: Endpoint, requests: Requests, task: str) -> list[Completion]:
    client = _Client(endpoint)
    bodies = [body_of(request, endpoint.model) for request in requests]
    keys = [content_hash([client.address, body]) for body in bodies]
    server = masked(client.address)
    requester = Requester(endpoint, server, f"{server} (model {endpoint.model})", STEP)
    try:
        return await requester.answers(keys, bodies, client.send, task)
    finally:
        await client.wire.close()


class _Client:
    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.address = endpoint, endpoint.address
        self.replaced: set[str] = set()
        need_httptools("--endpoint", "evaluate")
        if not (endpoint.api_key.isascii() and (endpoint.api_key or " ").isprintable()):
            message, step = "The API key holds characters that no header may hold", "set the variable to the key alone"
            raise UserError(message, where="--api-key-env", next_step=step)
        connect = min(timeouts.CONNECT_FAR_WITHIN, endpoint.timeout)
        self.wire = Wire(self.address, endpoint.api_key, True, endpoint.login, connect)

    async def send(self, key: str, body: Body) -> Completion | FailedTry:
        """One try, without the parameters that this model has refused."""
        # Not in the key: what is kept answers a request without them too.
        body = {
            **body,
            **({"logprobs": True, "top_logprobs": self.endpoint.logprobs} if self.endpoint.logprobs else {}),
        }
        names = {name: REPLACED[name] if name in self.replaced else name for name in body if name in REPLACED}
        accepted = {new: value for name, value in body.items() if (new := names.get(name, name)) is not None}
        try:
            content = json.dumps(accepted, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
            data = await self.wire.post("", content, self.endpoint.timeout, self.endpoint.most_bytes)
        except HttpRefused as error:
            return self._refusal(error, accepted)
        except Broken as error:
            return self._broken(error)
        except ValueError as error:
            return self._broken(Broken(type(error).__name__, "unsendable"))
        reply = read_reply(data.decode("utf-8", "replace"))
        if reply is None:
            return FailedTry("an answer that is not a chat completion", tries=2, lost=True)
        if self.endpoint.logprobs and self.endpoint.cache is not None:
            whole = self.endpoint.cache / key[:2] / f"{key}.reply.json"
            await asyncio.to_thread(write_bytes, whole, data)
        return replace(reply, engine=masked(self.address))

    def _broken(self, error: Broken) -> FailedTry:
        if error.kind == "large":
            return FailedTry(f"an answer above {self.endpoint.most_bytes >> 20} MiB", tries=0, lost=True)
        if error.kind == "late":
            return FailedTry(
                f"no {'whole ' if error.began else ''}answer in {self.endpoint.timeout:g} s", tries=2, lost=True
            )
        if error.kind == "unreachable":
            return FailedTry("nothing answers at this address", unreachable=True)
        if error.kind == "unsendable":
            return FailedTry(f"the request can't be sent ({error})", tries=0, fatal=True)
        return FailedTry(f"the connection broke off ({error})", lost=True)

    def _refusal(self, error: HttpRefused, sent: Mapping[str, Any]) -> FailedTry:
        status, reason = error.status, error.in_words
        if status in (400, 422):
            names = {name for name in REPLACED if name in sent and name in error.message}
            if names:  # it is made again in the words that this model takes
                self.replaced |= names
                return FailedTry(reason, wait=0.0)
        if status in timeouts.RETRIED and not error.no_quota:
            wait = error.retry_after or None  # 0 is no reason to hammer
            return FailedTry(reason, wait=wait, busy=timeouts.is_busy(status, wait))
        return FailedTry(reason, tries=0, fatal=status in timeouts.REFUSED)


@dataclass(frozen=True)
class EndpointTarget(Target):
    """A server and one of its models; chat completions give no log likelihood of a given answer."""

    name: str
    endpoint: Endpoint

    kind: ClassVar[Kind] = "endpoint"
    no_scores = (
        "An endpoint writes its answers; labels are scored where it is known what model it serves",
        "give --base MODEL, or --base RUN for its template too; or leave it at auto",
    )

    @property
    def identity(self) -> str:
        """Hash of the address and the model's name; what computes behind them may change."""
        return content_hash([self.endpoint.address, self.endpoint.model])

    def complete(self, requests: Requests, *, task: str = "asking") -> Iterator[Completion]:
        """Written answers; several requests at once, and equal ones once.

        Raises:
            UserError: the endpoint refuses all requests, or answers none of the first.
        """
        whys = [_why_not(request) for request in requests]
        possible = [request for request, reason in zip(requests, whys, strict=True) if not reason]
        answers = iter(complete(self.endpoint, possible, task=task) if possible else ())
        for known_reason in whys:
            yield (
                Completion(finish="error", error=known_reason, engine=masked(self.endpoint.address))
                if known_reason
                else next(answers)
            )


def _why_not(request: Request) -> str:
    if request.continues is not None:
        return "no_prompt: the model was trained on plain text, which no chat endpoint continues"
    if not request.messages:
        return "no_prompt: an endpoint takes turns, and the request has none"
    if request.logprobs is not None:
        return "no_logprobs: log probabilities of an endpoint's tokens are not read"
    return ""
