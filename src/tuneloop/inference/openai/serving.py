"""Any OpenAI-compatible server behind the serving protocol: vLLM, SGLang, a hosted API.

With a tokenizer, prompts are token ids from the template that was trained, sent to `/v1/completions`; else the turns go
to `/v1/chat/completions`, and the server's own template renders them. Adapters are models of the server under the hash
of their content, and are never loaded again in place: a server's prefix cache would continue with the old one.

Background work has a low priority where vLLM schedules by it, which it does not report. Where it does not, such work is
written in quanta: a few tokens at a time behind those that are there, which vLLM's prefix cache still holds. The next
one waits while people are answered.

Labels are scored as in an evaluation, by a search through short requests (`label_search`). A grammar would give another
answer: it binds the model to the labels that begin with its likeliest token. `logprob_token_ids` would name what is
read, but by its code vLLM 0.32's older model runner then gives other requests of the batch these instead of their own.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tuneloop.core.errors import UserError
from tuneloop.core.foreign import parse_json
from tuneloop.core.http.timeouts import (
    HEALTHY_WITHIN,
    MODELS_WITHIN,
    NO_QUOTA,
    READY_PAUSE,
    START_WITHIN,
    TOKENS_WITHIN,
    is_busy,
)
from tuneloop.core.http.wire import Broken, HttpRefused, Wire, fetched, message_of, need_httptools
from tuneloop.core.units import counted
from tuneloop.core.urls import masked, split_login
from tuneloop.inference.labels import best_label
from tuneloop.inference.openai.api import FURTHER_OPTIONS, options_of, read_logprobs, turns_of
from tuneloop.inference.openai.label_search import MOST_BRANCHES, Reading, Unconstrained, search_labels
from tuneloop.inference.openai.label_search import Path as LabelPath
from tuneloop.inference.priority import Turns
from tuneloop.inference.protocol import (
    AdapterFacts,
    AnswerSoFar,
    RenderingEngine,
    Served,
    milliseconds_since,
    unknown_adapter,
)
from tuneloop.inference.request import GREEDY, MOST_LOGPROBS, NO_PROMPT, Request, Update, refused, schema_problem
from tuneloop.inference.stream import TextStream
from tuneloop.models import load_tokenizer
from tuneloop.models.adapters import BASE, WEIGHTS, hash_of_adapter
from tuneloop.models.chat import THINK, reasoning_of, with_template
from tuneloop.records.completion import Completion, Finish
from tuneloop.records.rows import Message

USUAL_CONTEXT = 8192  # where a server does not state it
UNREACHABLE = "the engine cannot be reached"
REFUSALS = {400: "rejected", 413: "rejected", 422: "rejected"}  # status -> word of the error; else `engine`
RENAMED = (0, 12)  # from this version of vLLM on, `guided_choice` is `structured_outputs`
QUANTUM = 32  # tokens of a quantum: two blocks of vLLM's prefix cache, of which it reads the last one again at most
BACKGROUND = 1  # vLLM's priority of background requests; lower ones are computed earlier, and the usual is 0
MOST_SPACES = 22  # between tokens of JSON, where vLLM bounds them: as our own engine does, see `grammar.SPACES`
# Keywords that xgrammar passes over in a structural tag; under `json_schema` vLLM holds them by another grammar.
UNTAGGED = ("multipleOf", "format", "pattern", "patternProperties")
NOT_HELD = "no_choices: the server did not hold its answer to the choices"
# (server, adapter) -> engines of this process that use what one of them has loaded there.
USERS: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
# What is not the answer that is expected.
UNREADABLE = (Broken, HttpRefused, ValueError, KeyError, TypeError, IndexError)


@dataclass(frozen=True)
class EndpointSettings:
    """How a server is used."""

    url: str  # of the server or of its `/v1`
    api_key: str = field(default="", repr=False)  # sent as a bearer token; kept nowhere
    tokenizer: str = ""  # model or folder whose tokenizer renders prompts here; empty: the server renders them
    slots: int = 64  # requests that are under way at the same time
    context: int = 0  # tokens of a prompt with its answer; 0: what the server says
    priorities: bool = (
        False  # whether vLLM runs with `--scheduling-policy priority`; else it ignores a request's priority
    )
    start_within: float = START_WITHIN  # seconds until the server must be ready
    login: tuple[str, str] | None = field(default=None, repr=False)  # user and password, where the URL has none


class EndpointEngine(RenderingEngine):
    """See `ServingEngine`.

    Args:
        base: the model, by the server's name of it.
        adapters: names of models that the server has already, or folders of adapters in PEFT's layout, which the server
            must be able to read; each is loaded under its hash.
        settings: the server.
    """

    def __init__(self, base: Served, adapters: Sequence[Served], settings: EndpointSettings) -> None:
        url, login = split_login(settings.url)
        self._login = login or settings.login
        parts = urlsplit(url.strip())
        path = parts.path.rstrip("/").removesuffix("/v1")
        address = parts._replace(path=path, query="", fragment="").geturl()  # without a login
        super().__init__(address, base, adapters, settings.slots)
        self._settings, self._context = settings, settings.context
        self._vllm: tuple[int, ...] = ()  # its version; empty: another server
        self._priorities = self._returns_ids = self._bounds_spaces = self._branches = False
        self._loaded: dict[str, Served] = {}  # adapters that come from folders here
        self._turns = Turns()
        self._wire: Wire | None = None
        self._slots = asyncio.Semaphore(settings.slots)

    @property
    def context(self) -> int:
        return self._context or USUAL_CONTEXT

    @property
    def gives_way(self) -> bool:
        """Whether vLLM schedules by priority, or returns the tokens that quanta continue from; see `ServingEngine`."""
        return self._priorities or self._by_quanta

    @property
    def _by_quanta(self) -> bool:
        return self._returns_ids and not self._priorities and BASE in self._templates

    def renders(self, adapter: str) -> bool:
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
        need_httptools(self.name, "llamacpp")
        if urlsplit(self.name).scheme not in ("http", "https") or not urlsplit(self.name).netloc:
            message = f"Not a server's URL: {masked(self._settings.url)!r}"
            raise UserError(message, where="url", next_step="as in http://localhost:8000/v1")
        self._wire = Wire(self.name, self._settings.api_key, proxies=True, login=self._login)
        try:
            models = await self._ready()
            await self._prepare(models)
        except BaseException:
            await self.stop()
            raise

    async def _reply(self, path: str, body: Mapping[str, Any] | None = None, within: float = HEALTHY_WITHIN) -> Any:
        """What the server answers to a GET, or to a body; else an error of `UNREADABLE`."""
        assert self._wire is not None
        if body is None:
            return parse_json(await self._wire.get(path, within))
        return parse_json(await self._wire.post(path, json.dumps(body).encode(), within))

    async def _ready(self) -> dict[str, Any]:
        until, reason = time.monotonic() + self._settings.start_within, ""
        while True:
            try:
                return await self._models()
            except UNREADABLE as error:
                reason = _reason(error)
                if isinstance(error, HttpRefused) and error.status in (401, 403, 404):
                    break
            if time.monotonic() > until:
                break
            await asyncio.sleep(READY_PAUSE)
        step = "check the URL, the key, and whether it runs"
        raise UserError(f"The server does not tell its models ({reason})", where=self.name, next_step=step)

    async def _models(self) -> dict[str, Any]:
        return {str(model_entry["id"]): model_entry for model_entry in (await self._reply("/v1/models"))["data"]}

    async def _prepare(self, models: Mapping[str, Any]) -> None:
        if self.base not in models:
            step = f"it has {', '.join(models)}"
            raise UserError(f"The server has no model {self.base!r}", where=self.name, next_step=step)
        longest = models[self.base].get("max_model_len")
        self._context = self._context or (longest if isinstance(longest, int) else 0)
        try:
            version = re.match(r"(\d+)\.(\d+)", str((await self._reply("/version"))["version"]))
        except UNREADABLE:
            version = None
        self._vllm = tuple(map(int, version.groups())) if version else ()
        self._priorities = bool(self._vllm) and self._settings.priorities
        if self._vllm:  # token ids come from 0.10.2 on, bounded spaces from what holds answers by xgrammar
            self._returns_ids = "token_ids" in (await self._tried({"return_token_ids": True}) or {})
            self._branches = await self._tried({"logprobs": MOST_BRANCHES}) is not None  # --max-logprobs
            self._bounds_spaces = await self._tried({"response_format": _bounded({"type": "object"})}) is not None
        if self._settings.tokenizer:
            template = await asyncio.to_thread(load_tokenizer, self._settings.tokenizer)
            self._templates[BASE] = with_template(template, self._base.template)
        for served in self._served:
            name = await self._add(served, models)
            self.adapters = {**self.adapters, name: AdapterFacts(name, served.source)}
            if BASE in self._templates:
                self._templates[name] = with_template(self._templates[BASE], served.template)

    async def _add(self, served: Served, models: Mapping[str, Any]) -> str:
        """The server's name of an adapter, which is loaded where it is not there."""
        folder = Path(served.source).expanduser()
        is_folder = (folder / WEIGHTS).is_file()
        name = await asyncio.to_thread(hash_of_adapter, folder) if is_folder else served.source
        if is_folder:
            self._loaded[name] = served
        users = USERS[self.name, name]
        if name in models:
            users |= {id(self)} if users else set()
            return name
        if not is_folder:
            step = f"it has {', '.join(models)}; start it with --lora-modules {name}=FOLDER"
            raise UserError(f"The server has no adapter {name!r}", where=self.name, next_step=step)
        body = {"lora_name": name, "lora_path": str(folder.resolve())}
        assert self._wire is not None
        try:
            await self._wire.post("/v1/load_lora_adapter", json.dumps(body).encode(), self._settings.start_within)
        except HttpRefused as error:
            message = f"The server does not load the adapter ({error.in_words})"
            step = f"start it with --enable-lora and --lora-modules {name}={folder}, or with "
            step += "VLLM_ALLOW_RUNTIME_LORA_UPDATING=true"
            raise UserError(message, where=str(folder), next_step=step) from None
        users.add(id(self))
        return name

    async def _tried(self, option: Mapping[str, Any]) -> dict[str, Any] | None:
        """What comes of a request of one token with some option; None where the server refuses it."""
        body = {"model": self.base, "prompt": [1], "max_tokens": 1, **option}
        try:
            return dict((await self._reply("/v1/completions", body, self._settings.start_within))["choices"][0])
        except UNREADABLE:
            return None

    async def healthy(self) -> bool:
        """Whether the server answers, has all models, and does not say that what computes behind it is not ready.

        A vLLM that was restarted has lost the adapters that were loaded while it ran: they are loaded again.
        """
        if self._wire is None:
            return False
        try:
            async with asyncio.timeout(HEALTHY_WITHIN):
                models = await self._models()
                for url_path in ("/readyz", "/health"):  # of `tuneloop serve`; of vLLM, whose engine may have died
                    try:
                        await self._wire.get(url_path)
                    except HttpRefused as error:
                        if error.status == 503:
                            return False
            for name, served in self._loaded.items():
                if name not in models:
                    await self._add(served, models)
        except (*UNREADABLE, TimeoutError, UserError):
            return False
        return {self.base, *self.adapters} <= {*models, *self._loaded}

    async def stop(self) -> None:
        """Unload what no other engine of this process uses, and close the connections; the server keeps running."""
        wire, self._wire = self._wire, None
        if wire is not None:
            for name in self._loaded:
                users = USERS[self.name, name]
                if users == {id(self)}:
                    with suppress(*UNREADABLE):
                        body = json.dumps({"lora_name": name}).encode()
                        await wire.post("/v1/unload_lora_adapter", body, HEALTHY_WITHIN)
                users.discard(id(self))
            await wire.close()
        self.adapters, self._templates, self._loaded = {}, {}, {}

    # -- answers

    async def tokenize(self, text: str, *, adapter: str = BASE) -> Sequence[int]:
        """Token ids of plain text, by the tokenizer here, else by the server's."""
        if BASE in self._templates:
            return await super().tokenize(text)
        return await self._tokens({"model": self.base, "prompt": text, "add_special_tokens": False})

    async def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, adapter: str = BASE
    ) -> Sequence[int]:
        """Token ids of a conversation; see `ServingEngine.render`."""
        self._check_adapter(adapter)
        if adapter in self._templates:
            return await super().render(messages, tools, adapter=adapter)
        body = {"model": self._model(adapter), "messages": list(messages), "add_generation_prompt": True}
        return await self._tokens(body | ({"tools": list(tools)} if tools else {}))

    def _model(self, adapter: str) -> str:
        return adapter if adapter in self.adapters else self.base

    async def _tokens(self, body: dict[str, Any]) -> Sequence[int]:
        if self._wire is None:
            raise UserError("The engine is not started", where=self.name, next_step="await engine.start()")
        try:
            return [int(token) for token in (await self._reply("/tokenize", body, TOKENS_WITHIN))["tokens"]]
        except (HttpRefused, ValueError, KeyError, TypeError) as error:
            reason = str(error) if isinstance(error, HttpRefused) else type(error).__name__
            message, step = f"The server does not tell tokens ({reason})", "name the model's tokenizer"
            raise UserError(message, where=self.name, next_step=step) from None

    async def _prepared(self, request: Request) -> Request | Completion:
        reason = "" if self._wire is not None else "engine: the engine is not started"
        reason = reason or unknown_adapter(request.adapter, self.adapters)
        if not reason and request.schema is not None:
            reason = schema_problem(request.schema)
        if not reason and request.choices and not self._vllm:
            reason = "no_choices: only vLLM is known to hold an answer to choices"
        if not reason and request.adapter in self._templates:
            return self._with_ids(request)
        if not reason and not (request.ids or request.continues is not None or request.messages):
            reason = NO_PROMPT
        return refused(request, reason, self.name) if reason else request

    def _answer(self, request: Request) -> AsyncGenerator[Update, None]:
        in_quanta = self._by_quanta and request.gives_way and request.schema is None
        return self._in_quanta(request) if in_quanta else self._at_once(request)

    async def _at_once(self, request: Request) -> AsyncGenerator[Update, None]:
        """An answer that is waited for: no quantum begins meanwhile but its share."""
        self._turns.come("")
        try:
            async with self._slots, aclosing(self._written(_AnswerInText(request, self.name), request)) as updates:
                async for update in updates:
                    yield update
        finally:
            self._turns.go("")

    async def _in_quanta(self, request: Request) -> AsyncGenerator[Update, None]:
        """A background answer; each quantum continues behind the tokens of those before. Of choices it is one."""
        text = TextStream(self._templates[request.adapter].decode, request.stop)
        answer, sampling = _AnswerInText(request, self.name), request.sampling
        self._turns.row("", 1)
        try:
            while True:
                before = len(answer.ids)
                tokens = min(QUANTUM, request.max_new_tokens - before)
                part = replace(
                    request,
                    ids=(*request.ids, *answer.ids),
                    max_new_tokens=tokens,
                    stop=(),
                    sampling=replace(sampling, seed=sampling.seed + before),
                )
                answer.reason = ""
                failure = await self._quantum(answer, request if request.choices else part)
                if request.choices or failure is not None:
                    yield Update(completion=failure or answer.completed())
                    return
                new = answer.ids[before:]
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

    async def _quantum(self, answer: _AnswerInText, request: Request) -> Completion | None:
        """Have a few tokens written when it may be; returns a completion only where that failed."""
        began = await self._turns.begin("", reads=False)
        try:
            async with self._slots, aclosing(self._written(answer, request)) as updates:
                async for update in updates:
                    if update.completion is not None and update.completion.error:
                        return update.completion
        finally:
            self._turns.end("", began, reads=False)
        return None

    async def _written(self, answer: _AnswerInText, request: Request) -> AsyncGenerator[Update, None]:
        route, body = self._body(request)
        try:
            if self._wire is None:
                raise Broken("closed")
            if request.choices and request.adapter in self._templates:
                answer.choice = await self._choice(request)
                yield Update(completion=answer.completed())
                return
            async with aclosing(self._wire.events(route, json.dumps(body).encode())) as events:
                async for data in events:
                    if data and data != b"[DONE]" and (piece := answer.read(parse_json(data))):
                        yield Update(piece)
        except HttpRefused as error:
            word = "busy" if is_busy(error.status, error.retry_after) else REFUSALS.get(error.status, "engine")
            failure = answer.failed(f"{NO_QUOTA if error.no_quota else word}: {error.in_words}")
            yield Update(completion=replace(failure, retry_after=error.retry_after))
        except Unconstrained:
            yield Update(completion=answer.failed(NOT_HELD))
        except UNREADABLE as error:
            yield Update(completion=answer.failed(f"engine: {await self._fault(error, began=bool(answer.text))}"))
        else:
            yield Update(completion=answer.completed())

    async def _fault(self, error: Exception, *, began: bool) -> str:
        """Why there is no whole answer; where a part of it came, after a look whether the server is still there."""
        fault = None if began else error
        if began and self._wire is not None:
            try:
                await self._wire.get("/health", HEALTHY_WITHIN)
            except HttpRefused:  # it has no such path, and answers
                pass
            except Broken as now:
                fault = now
        dead = isinstance(fault, Broken) and fault.kind in ("unreachable", "")
        return f"{UNREACHABLE if dead else 'the answer broke off'} ({_reason(error)})"

    async def _choice(self, request: Request) -> Completion:
        """The likeliest label with its probability."""
        trie, ids = self._tree(request)
        settings = self._options(replace(request, sampling=GREEDY, stop=()))
        began = time.perf_counter()

        async def read(places: Sequence[LabelPath], allowed: Sequence[int], length: int) -> Sequence[Reading]:
            body = settings | {
                "prompt": [[*request.ids, *tail] for tail in places],
                "max_tokens": length,
                "allowed_token_ids": list(allowed),
                "logprobs": MOST_BRANCHES if self._branches and not places[0] else MOST_LOGPROBS,
            }
            reply = await self._reply("/v1/completions", body, self._settings.start_within)
            choices = sorted(reply["choices"], key=lambda choice: choice["index"])
            tokens = [read_logprobs(choice["logprobs"]) for choice in choices]
            return [[(token.id, {**dict(token.top), token.id: token.logprob}) for token in some] for some in tokens]

        scores = await search_labels(dict(zip(request.choices, ids, strict=True)), read)
        choice = best_label(scores, trie.tokens, len(request.ids), engine=self.name)
        return replace(choice, adapter=request.adapter, total_ms=milliseconds_since(began))

    def _options(self, request: Request) -> dict[str, Any]:
        """Model, sampling and scheduling; for vLLM all of it, as its defaults are those of `generation_config.json`."""
        body = {"model": self._model(request.adapter)} | options_of(request)
        if request.sampling.temperature or self._vllm:
            body["top_p"] = request.sampling.top_p
        if self._vllm:
            body |= {name: getattr(request.sampling, name) for name in FURTHER_OPTIONS}
            body |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
            if request.adapter in self._templates:
                body["stop_token_ids"] = list(self._templates[request.adapter].end_ids)
        if request.gives_way and self._priorities:
            body["priority"] = BACKGROUND
        return body

    def _held(self, schema: dict[str, Any]) -> dict[str, Any]:
        """What holds an answer to a schema; with any number of spaces a model can write them to its limit."""
        if self._bounds_spaces and not any(f'"{word}"' in json.dumps(schema) for word in UNTAGGED):
            return _bounded(schema)
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """The path and the body that are sent."""
        body = self._options(request) | {"stream": True, "stream_options": {"include_usage": True}}
        if request.choices:
            choices = list(request.choices)
            renamed = self._vllm >= RENAMED
            body |= {"structured_outputs": {"choice": choices}} if renamed else {"guided_choice": choices}
        if request.schema is not None:
            body["response_format"] = self._held(dict(request.schema))
        if request.ids or request.continues is not None:
            prompt = list(request.ids) if request.ids else request.continues
            more = {} if request.logprobs is None else {"logprobs": request.logprobs}
            return "/v1/completions", body | {"prompt": prompt} | more
        if request.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.logprobs}
        return "/v1/chat/completions", body | turns_of(request)


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as vLLM's structural tag, the only place where a request can bound white space."""
    inside = {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": MOST_SPACES}
    return {"type": "structural_tag", "format": inside}


def only_model(urls: Sequence[str], key: str, login: tuple[str, str] | None = None) -> str:
    """The model of the first server that answers, adapters left out.

    Raises:
        UserError: none answers, or it has several.
    """
    need_httptools(masked(urls[0]), "llamacpp")
    fault = ""
    for url in urls:
        try:
            address, own_login = split_login(url.rstrip("/").removesuffix("/v1"))
            answer = fetched(Wire(address, key, proxies=True, login=own_login or login), "/v1/models", MODELS_WITHIN)
            models = parse_json(answer)["data"]
            models = [model for model in models if model.get("task") != "embed"]
            models = [model for model in models if not model.get("parent")] or models  # vLLM's adapters have one
            names = [str(model["id"]) for model in models]
        except UNREADABLE as error:
            fault = masked(_reason(error))[:200]
            continue
        if len(names) == 1:
            return names[0]
        step = f"say which with base=NAME: {', '.join(names)[:300]}"
        raise UserError(f"The server has {counted(len(names), 'model')}", where=masked(url), next_step=step)
    message = f"The server does not tell its models ({fault})"
    raise UserError(message, where=masked(", ".join(urls)), next_step="check the URL and that it runs")


def _reason(error: Exception) -> str:
    if isinstance(error, HttpRefused):
        return error.in_words
    return str(error) if isinstance(error, Broken) else type(error).__name__


class _AnswerInText(AnswerSoFar):
    """An answer whose text comes from the server."""

    text, reason = "", ""  # what is written so far, and why the server ended it
    choice: Completion | None = None  # the label, where one was scored
    thinks = False  # whether the server is giving out reasoning apart from the answer

    def read(self, event: Mapping[str, Any]) -> str:
        """The piece of text that an event of the server brings."""
        if "error" in event:
            raise Broken(message_of(json.dumps(event)))
        usage = event.get("usage")
        if isinstance(usage, Mapping):
            self.counts = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
            details = usage.get("prompt_tokens_details")
            self.cached = int(details.get("cached_tokens") or 0) if isinstance(details, Mapping) else 0
        piece = ""
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            thought, text = reasoning_of(delta), str(choice.get("text") or delta.get("content") or "")
            if thought:  # as a model without a server's parser writes it
                piece += thought if self.thinks else f"{THINK[0]}{thought}"
                self.thinks = True
            if text and self.thinks:
                piece, self.thinks = f"{piece}{THINK[1]}", False
            piece += text
            self.ids += choice.get("token_ids") or []
            self.reason = choice.get("finish_reason") or self.reason
            if self.request.logprobs is not None and choice.get("logprobs"):
                self.logprobs += read_logprobs(choice["logprobs"])
        if piece:
            self.first = self.first or time.perf_counter()
            piece = piece if self.text else piece.lstrip()
            self.text += piece
        return piece

    def completed(self) -> Completion:
        """The answer, or what is wrong with it."""
        if self.choice is not None:
            return self.choice
        if not self.reason:
            return self.failed("engine: the answer broke off")
        request, text = self.request, self.text.strip()
        finish: Finish = "length" if self.reason == "length" else "choice" if request.choices else "stop"
        if request.choices and text not in request.choices:
            return self.failed(NOT_HELD)
        return self.completion(text, finish)

    def failed(self, reason: str) -> Completion:
        """The answer of a request that failed."""
        return self.completion(self.text.strip(), "error", reason)
