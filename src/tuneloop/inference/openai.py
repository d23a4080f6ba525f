"""Any OpenAI-compatible server behind the serving protocol: vLLM, SGLang, a hosted API.

With a tokenizer at hand, prompts are token ids from the template that was trained, sent to `/v1/completions`; else the
turns go to `/v1/chat/completions`, and the server's own template renders them. Adapters are models of the server under
the hash of their content, and are never loaded again in place: a server's prefix cache would go on with the old one.

What gives way has a low priority where vLLM schedules by it. Where it does not, it is written in quanta: a few tokens at a
time behind those that are there, which vLLM's prefix cache still holds. The next quantum waits while people are answered.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tuneloop.core.errors import UserError
from tuneloop.core.urls import masked, split_login
from tuneloop.inference.answer import AdapterFacts, Served, named_adapter, rendered, unknown_adapter, with_template
from tuneloop.inference.local.engine import Update
from tuneloop.inference.local.stream import TextStream
from tuneloop.inference.priority import Turns
from tuneloop.inference.prompt import refused, schema_breach, schema_problem, with_ids
from tuneloop.inference.request import Request
from tuneloop.inference.retry import NO_QUOTA, is_busy
from tuneloop.inference.timeouts import HEALTHY_WITHIN, READY_PAUSE, START_WITHIN, TOKENS_WITHIN
from tuneloop.inference.wire import Broken, Refused, Wire, message_of, need_aiohttp
from tuneloop.models.adapters import ATTACHED, BASE
from tuneloop.models.load import load_tokenizer
from tuneloop.models.peft_layout import WEIGHTS, hash_of_adapter
from tuneloop.records.completion import Completion, Finish, TokenLogprob
from tuneloop.records.rows import Message

if TYPE_CHECKING:
    from tuneloop.models.template import Template

USUAL_CONTEXT = 8192  # where a server does not tell it
REFUSALS = {400: "rejected", 413: "rejected", 422: "rejected"}  # status -> word of the error; else `engine`
RENAMED = (0, 12)  # from this version of vLLM on, `guided_choice` is `structured_outputs`
QUANTUM = 32  # tokens of a quantum: two blocks of vLLM's prefix cache, of which it reads the last one again at most
GIVING_WAY = 1  # vLLM's priority of requests that give way; lower ones are computed earlier, and the usual is 0


@dataclass(frozen=True)
class EndpointSettings:
    """How a server is asked.

    Args:
        url: of the server or of its `/v1`.
        api_key: sent as a bearer token; kept nowhere.
        tokenizer: model or folder whose tokenizer renders prompts here; empty: the server renders them.
        slots: requests that are under way at the same time.
        context: tokens of a prompt with its answer; 0: what the server says.
        start_within: seconds until the server must be ready.
    """

    url: str
    api_key: str = field(default="", repr=False)
    tokenizer: str = ""
    slots: int = 64
    context: int = 0
    start_within: float = START_WITHIN


class EndpointEngine:
    """See `ServingEngine`.

    Args:
        base: the model, by the server's name of it.
        adapters: names of models that the server has already, or folders of adapters in PEFT's layout, which the server
            must be able to read; each is loaded under its hash.
        settings: the server.
    """

    def __init__(self, base: Served, adapters: Sequence[Served], settings: EndpointSettings) -> None:
        self._base, self._served, self._settings = base, tuple(adapters), settings
        self._url, self._login = split_login(settings.url)
        parts = urlsplit(self._url.strip())
        path = parts.path.rstrip("/").removesuffix("/v1")
        self.name = parts._replace(path=path, query="", fragment="").geturl()  # the address, without a login
        self.base, self.slots = base.source, settings.slots
        self.adapters: dict[str, AdapterFacts] = {}
        self._templates: dict[str, Template] = {}
        self._context = settings.context
        self._vllm: tuple[int, ...] = ()
        self._priorities = self._tells_ids = False
        self._turns = Turns()
        self._wire: Wire | None = None
        self._slots = asyncio.Semaphore(settings.slots)

    @property
    def context(self) -> int:
        """Tokens of a prompt with its answer."""
        return self._context or USUAL_CONTEXT

    @property
    def gives_way(self) -> bool:
        """Whether vLLM schedules by priority, or tells the tokens that quanta go on from; see `can_give_way`."""
        return self._priorities or self._by_quanta

    @property
    def _by_quanta(self) -> bool:
        return self._tells_ids and not self._priorities and BASE in self._templates

    @property
    def renders(self) -> bool:
        """Whether prompts become tokens, by a tokenizer here or by vLLM; else the server renders the turns."""
        return BASE in self._templates or bool(self._vllm)

    # -- start and stop

    async def start(self) -> None:
        """Wait until the server is ready, and see to it that it has the model and the adapters.

        Raises:
            UserError: it is no server, is not ready in time, or has no such model or adapter.
        """
        if self._wire is not None:
            return
        need_aiohttp(self.name, "llamacpp")
        if urlsplit(self.name).scheme not in ("http", "https") or not urlsplit(self.name).netloc:
            raise UserError(
                f"Not a server's URL: {masked(self._settings.url)!r}",
                where="url",
                next_step="as in http://localhost:8000/v1",
            )
        self._wire = Wire(self.name, self._settings.api_key, proxies=True, login=self._login)
        try:
            models = await self._ready()
            await self._prepare(models)
        except BaseException:
            await self.stop()
            raise

    async def _answer(
        self, path: str, body: Mapping[str, Any] | None = None, within: float = HEALTHY_WITHIN
    ) -> bytes:  # fmt: skip
        """What the server answers to a GET, or to a body.

        Raises:
            Broken, Refused: there is no answer with status 200.
        """
        assert self._wire is not None
        if body is None:
            return await self._wire.get(path, within)
        return await self._wire.post(path, json.dumps(body).encode(), within)

    async def _ready(self) -> dict[str, Any]:
        """The server's models by name, once it tells them."""
        until, why = time.monotonic() + self._settings.start_within, ""
        while True:
            try:
                return {str(each["id"]): each for each in json.loads(await self._answer("/v1/models"))["data"]}
            except Refused as error:
                why = error.in_words
                if error.status in (401, 403, 404):
                    break
            except Broken as error:
                why = str(error)
            except (ValueError, KeyError, TypeError) as error:
                why = type(error).__name__
            if time.monotonic() > until:
                break
            await asyncio.sleep(READY_PAUSE)
        raise UserError(
            f"The server does not tell its models ({why})", where=self.name,
            next_step="check the URL, the key, and whether it runs",
        )  # fmt: skip

    async def _prepare(self, models: Mapping[str, Any]) -> None:
        if self.base not in models:
            raise UserError(
                f"The server has no model {self.base!r}", where=self.name, next_step=f"it has {', '.join(models)}"
            )
        longest = models[self.base].get("max_model_len")
        self._context = self._context or (longest if isinstance(longest, int) else 0)
        self._vllm = await self._version()
        self._priorities = bool(self._vllm) and bool(await self._tried({"priority": GIVING_WAY}))
        self._tells_ids = bool(self._vllm) and "token_ids" in await self._tried({"return_token_ids": True})
        if self._settings.tokenizer:
            own = await asyncio.to_thread(load_tokenizer, self._settings.tokenizer)
            self._templates[BASE] = with_template(own, self._base.template)
        for served in self._served:
            await self._add(served, models)

    async def _add(self, served: Served, models: Mapping[str, Any]) -> None:
        folder = Path(served.source).expanduser()
        weights = folder / WEIGHTS
        name = await asyncio.to_thread(hash_of_adapter, folder) if weights.is_file() else served.source
        if name not in models:
            if not weights.is_file():
                raise UserError(
                    f"The server has no adapter {name!r}", where=self.name,
                    next_step=f"it has {', '.join(models)}; start it with --lora-modules {name}=FOLDER",
                )  # fmt: skip
            body = {"lora_name": name, "lora_path": str(folder.resolve())}
            try:
                await self._answer("/v1/load_lora_adapter", body, self._settings.start_within)
            except Refused as error:
                raise UserError(
                    f"The server does not load the adapter ({error.in_words})",
                    where=str(folder),
                    next_step=f"start it with --enable-lora and --lora-modules {name}={folder}, "
                    "or with VLLM_ALLOW_RUNTIME_LORA_UPDATING=true",
                ) from None
        self.adapters[name] = AdapterFacts(name, served.source)
        if BASE in self._templates:
            self._templates[name] = with_template(self._templates[BASE], served.template)

    async def _version(self) -> tuple[int, ...]:
        """vLLM's version; empty: another server."""
        try:
            version = re.match(r"(\d+)\.(\d+)", str(json.loads(await self._answer("/version"))["version"]))
        except (Broken, Refused, ValueError, KeyError, TypeError):
            return ()
        return tuple(map(int, version.groups())) if version else ()

    async def _tried(self, more: Mapping[str, Any]) -> Mapping[str, Any]:
        """What vLLM answers to a token with some field; empty where it refuses that. It refuses a priority unless it runs
        with `--scheduling-policy priority`."""
        body = {"model": self.base, "prompt": [1], "max_tokens": 1, **more}
        try:
            reply = json.loads(await self._answer("/v1/completions", body, self._settings.start_within))
            choice = reply["choices"][0]
        except (Broken, Refused, ValueError, KeyError, TypeError, IndexError):
            return {}
        return choice if isinstance(choice, dict) else {}

    async def healthy(self) -> bool:
        """Whether the server answers, and does not say that what computes behind it is not ready."""
        if self._wire is None:
            return False
        try:
            async with asyncio.timeout(HEALTHY_WITHIN):
                await self._wire.get("/v1/models")
                try:
                    await self._wire.get("/readyz")
                except Refused as error:  # only `tuneloop serve` has one
                    return error.status != 503
        except (Broken, Refused, TimeoutError):
            return False
        return True

    async def stop(self) -> None:
        """Close the connections; the server goes on."""
        wire, self._wire = self._wire, None
        self.adapters, self._templates = {}, {}
        if wire is not None:
            await wire.close()

    # -- asking

    async def tokenize(self, text: str) -> Sequence[int]:
        """Token ids of plain text, by the tokenizer here, else by the server's."""
        if BASE in self._templates:
            return await asyncio.to_thread(self._templates[BASE].encode, text)
        return await self._tokens({"model": self.base, "prompt": text, "add_special_tokens": False})

    async def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, adapter: str = BASE
    ) -> Sequence[int]:
        """Token ids of a conversation; see `ServingEngine.render`."""
        if why := unknown_adapter(adapter, self.adapters):
            raise UserError(why.partition(": ")[2], where="adapter", next_step="name one that is loaded, or base")
        if adapter in self._templates:
            return await asyncio.to_thread(rendered, self._templates[adapter], messages, tools)
        body = {"model": self._model(adapter), "messages": list(messages), "add_generation_prompt": True}
        return await self._tokens(body | ({"tools": list(tools)} if tools else {}))

    def _model(self, adapter: str) -> str:
        """The server's name of an adapter: its hash."""
        return adapter if adapter in self.adapters else self.base

    async def _tokens(self, body: dict[str, Any]) -> Sequence[int]:
        if self._wire is None:
            raise UserError("The engine is not started", where=self.name, next_step="await engine.start()")
        try:
            answer = await self._answer("/tokenize", body, TOKENS_WITHIN)
            return [int(token) for token in json.loads(answer)["tokens"]]
        except (Refused, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"The server does not tell tokens ({error if isinstance(error, Refused) else type(error).__name__})",
                where=self.name, next_step="name the model's tokenizer",
            ) from None  # fmt: skip

    async def stream(self, request: Request) -> AsyncIterator[Update]:
        """An answer as it is written; see `ServingEngine.stream`."""
        request = replace(request, adapter=named_adapter(request))
        made = self._prepared(request)
        if isinstance(made, Completion):
            yield Update(completion=made)
            return
        if not self._by_quanta:
            async with self._slots:
                async for update in self._written(made):
                    yield update
            return
        work = self._in_quanta if made.gives_way and made.schema is None else self._at_once
        async with aclosing(work(made)) as updates:
            async for update in updates:
                yield update

    async def _at_once(self, request: Request) -> AsyncGenerator[Update, None]:
        """An answer that somebody waits for: no quantum begins meanwhile but its share."""
        self._turns.come("")
        try:
            async with self._slots, aclosing(self._written(request)) as updates:
                async for update in updates:
                    yield update
        finally:
            self._turns.go("")

    async def _in_quanta(self, request: Request) -> AsyncGenerator[Update, None]:
        """An answer that gives way; each quantum goes on behind the tokens of those before. Of choices it is one."""
        text = TextStream(self._templates[request.adapter].decode, request.stop)
        answer, drawn = _Answer(request, self.name), request.sampling
        self._turns.row("", 1)
        try:
            while True:
                tokens = min(QUANTUM, request.max_new_tokens - len(answer.ids))
                seed = replace(drawn, seed=drawn.seed + len(answer.ids))
                ids = (*request.ids, *answer.ids)
                part = replace(request, ids=ids, max_new_tokens=tokens, stop=(), sampling=seed)
                answer.reason = ""
                failed = await self._quantum(request if request.choices else part, answer)
                if request.choices or failed is not None:
                    yield Update(completion=failed or answer.completed())
                    return
                new = answer.ids[len(ids) - len(request.ids) :]
                piece = "".join(text.push(token) for token in new)
                over = text.stopped or answer.reason != "length" or not new or len(answer.ids) >= request.max_new_tokens
                piece += text.end() if over else ""
                answer.text, answer.counts = text.text, (len(request.ids), len(answer.ids))
                if piece:
                    yield Update(piece)
                if over:
                    answer.reason = "stop" if text.stopped else answer.reason
                    yield Update(completion=answer.completed())
                    return
        finally:
            self._turns.row("", -1)

    async def _quantum(self, request: Request, answer: _Answer) -> Completion | None:
        """Have a few tokens written when it may be; returns a completion only where that failed."""
        began = await self._turns.begin("", reads=False)
        try:
            async with self._slots, aclosing(self._written(request, answer)) as updates:
                async for update in updates:
                    if update.completion is not None and update.completion.error:
                        return update.completion
        finally:
            self._turns.end("", began, reads=False)
        return None

    def _prepared(self, request: Request) -> Request | Completion:
        """A request that can be sent, with token ids where there is a tokenizer, or why it can't."""
        if self._wire is None:
            return refused(request, "engine: the engine is not started", self.name)
        why = unknown_adapter(request.adapter, self.adapters)
        if not why and request.schema is not None:
            why = schema_problem(request.schema)
        if not why and request.choices and not self._vllm:
            why = "no_choices: only vLLM is known to hold an answer to choices"
        if why:
            return refused(request, why, self.name)
        template = self._templates.get(request.adapter)
        if template is not None:
            return with_ids(template, self.context, request, engine=self.name)
        if request.ids or request.continues is not None or request.messages:
            return request
        return refused(request, "no_prompt: the request has no turns, no text and no tokens", self.name)

    async def _written(self, request: Request, answer: _Answer | None = None) -> AsyncGenerator[Update, None]:
        """What the server answers; added to what there is of an answer."""
        answer = answer or _Answer(request, self.name)
        place, body = self._body(request)
        wire = self._wire
        try:
            if wire is None:
                raise Broken("closed")
            async with aclosing(wire.events(place, json.dumps(body).encode())) as events:
                async for data in events:
                    if data and data != b"[DONE]" and (piece := answer.read(json.loads(data))):
                        yield Update(piece)
        except Refused as error:
            word = "busy" if is_busy(error.status, error.retry_after) else REFUSALS.get(error.status, "engine")
            failed = answer.failed(f"{NO_QUOTA if error.no_quota else word}: {error.in_words}")
            yield Update(completion=replace(failed, retry_after=error.retry_after))
            return
        except (Broken, ValueError, KeyError, TypeError, IndexError) as error:
            why = str(error) if isinstance(error, Broken) else type(error).__name__
            yield Update(completion=answer.failed(f"engine: the answer broke off ({why})"))
            return
        yield Update(completion=answer.completed())

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """The path and the body that are sent."""
        body = {"model": self._model(request.adapter)} | _drawn(request)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if request.sampling.temperature:
            body["top_p"] = request.sampling.top_p  # also 1, where the server's usual one is another
        if request.choices:
            choices = list(request.choices)
            held = {"structured_outputs": {"choice": choices}} if self._vllm >= RENAMED else {"guided_choice": choices}
            body |= held
        if request.schema is not None:
            asked = {"name": "answer", "schema": dict(request.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": asked}
        if request.gives_way and self._priorities:
            body["priority"] = GIVING_WAY
        if self._vllm:
            body |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
        if request.ids or request.continues is not None:
            prompt = list(request.ids) if request.ids else request.continues
            more = {} if request.logprobs is None else {"logprobs": request.logprobs}
            return "/v1/completions", body | {"prompt": prompt} | more
        if request.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.logprobs}
        return "/v1/chat/completions", body | _turns(request)


class _Answer:
    """What has come of one answer."""

    def __init__(self, request: Request, engine: str) -> None:
        self.request, self.engine = request, engine
        self.text = ""
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.reason = ""
        self.counts: tuple[int, int] | None = None
        self.began, self.first = time.perf_counter(), 0.0

    def read(self, event: Mapping[str, Any]) -> str:
        """The piece of text that an event of the server brings."""
        if "error" in event:
            raise ValueError(message_of(json.dumps(event)))
        usage = event.get("usage")
        if isinstance(usage, Mapping):
            self.counts = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        piece = ""
        for choice in event.get("choices") or []:
            piece += str(choice.get("text") or (choice.get("delta") or {}).get("content") or "")
            self.ids += choice.get("token_ids") or []
            self.reason = choice.get("finish_reason") or self.reason
            if self.request.logprobs is not None and choice.get("logprobs"):
                self.logprobs += _logprobs(choice["logprobs"])
        if piece:
            self.first = self.first or time.perf_counter()
            piece = piece if self.text else piece.lstrip()
            self.text += piece
        return piece

    def completed(self) -> Completion:
        """The answer, or what is wrong with it."""
        if not self.reason:
            return self.failed("engine: the answer broke off")
        request, text = self.request, self.text.strip()
        finish: Finish = "length" if self.reason == "length" else "choice" if request.choices else "stop"
        if request.choices and text not in request.choices:
            return self.failed("no_choices: the server did not hold its answer to the choices")
        broken = schema_breach(request.schema, text) if request.schema is not None and finish == "stop" else ""
        return self.failed(broken) if broken else self._completion(finish)

    def failed(self, why: str) -> Completion:
        """The answer of a request that failed."""
        return replace(self._completion("error"), error=why)

    def _completion(self, finish: Finish) -> Completion:
        read, written = self.counts or (len(self.request.ids), len(self.ids))
        now = time.perf_counter()
        return Completion(
            self.text.strip(), tuple(self.ids), finish, read, written,
            ttft_ms=round(1000 * (self.first - self.began), 3) if self.first else None,
            total_ms=round(1000 * (now - self.began), 3), engine=self.engine, adapter=self.request.adapter,
            logprobs=None if self.request.logprobs is None else tuple(self.logprobs),
        )  # fmt: skip


def _logprobs(said: Mapping[str, Any]) -> list[TokenLogprob]:
    """Log probabilities of written tokens, which the server names by their ids (`token_id:5`)."""
    if "content" in said:  # of chat completions
        return [
            TokenLogprob(
                _id(each["token"]), float(each["logprob"]),
                tuple((_id(t["token"]), float(t["logprob"])) for t in each.get("top_logprobs") or ()),
            )
            for each in said["content"] or ()
        ]  # fmt: skip
    tops = said.get("top_logprobs") or [None] * len(said["tokens"])
    return [
        TokenLogprob(_id(token), float(value), tuple((_id(t), float(p)) for t, p in (top or {}).items()))
        for token, value, top in zip(said["tokens"], said["token_logprobs"], tops, strict=True)
    ]


def _id(token: str) -> int:
    found = re.fullmatch(r"token_id:(\d+)", token)
    return int(found[1]) if found else -1


# --- what all who speak to such a server share -----------------------------------------------------


def body_of(request: Request, model: str) -> dict[str, Any]:
    """A request in the form of chat completions; an adapter is named in the place of the model, as servers of several do it."""
    named = model if request.adapter in (ATTACHED, BASE) else request.adapter
    top_p = {} if request.sampling.top_p == 1.0 else {"top_p": request.sampling.top_p}
    return {"model": named} | _turns(request) | _drawn(request) | top_p


def _turns(request: Request) -> dict[str, Any]:
    keep = ("role", "content", "tool_calls", "tool_call_id", "name")
    turns = [{key: turn[key] for key in keep if key in turn} for turn in request.messages]  # type: ignore[literal-required]
    return {"messages": turns} | ({"tools": list(request.tools)} if request.tools else {})


def _drawn(request: Request) -> dict[str, Any]:
    """How an answer is drawn and where it ends, but for `top_p`."""
    drawn = request.sampling
    body: dict[str, Any] = {"max_tokens": request.max_new_tokens, "temperature": drawn.temperature}
    if drawn.temperature:
        body["seed"] = drawn.seed
    if request.stop:
        body["stop"] = list(request.stop)
    # These are not OpenAI's, but vLLM's and llama.cpp's.
    more = {
        "top_k": (drawn.top_k, 0),
        "min_p": (drawn.min_p, 0.0),
        "repetition_penalty": (drawn.repetition_penalty, 1.0),
    }
    return body | {name: value for name, (value, usual) in more.items() if value != usual}


def read_reply(text: str) -> Completion | None:
    """The body of a chat completion as a reply; None where it is something else. Calls of tools become JSON."""
    try:
        value = json.loads(text)
        choice = value["choices"][0]
        message = choice["message"]
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, list):  # parts
            content = "".join(part["text"] for part in content if part.get("type") == "text")
        if content is None:
            content = message.get("refusal")
        if calls:
            wanted = [{"name": c["function"]["name"], "arguments": _parsed(c["function"]["arguments"])} for c in calls]
            content = "\n".join([*filter(None, [content]), *(json.dumps(c, ensure_ascii=False) for c in wanted)])
        if not isinstance(content, str):
            return None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    counts = value.get("usage")
    counts = counts if isinstance(counts, dict) else {}

    def count(name: str) -> int:
        found = counts.get(name)
        return found if isinstance(found, int) and found > 0 else 0

    clean = content.encode("utf-8", "replace").decode()  # lone surrogates can't be written to a file
    cut: Finish = "length" if choice.get("finish_reason") == "length" else "stop"
    read, written = count("prompt_tokens"), count("completion_tokens")
    said = value.get("model")
    served = said if isinstance(said, str) else ""
    return Completion(clean.strip(), finish=cut, prompt_tokens=read, completion_tokens=written, served=served)


def _parsed(arguments: Any) -> Any:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments
