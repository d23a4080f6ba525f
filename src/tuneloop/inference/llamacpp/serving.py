"""llama.cpp behind the serving protocol: its own server in a child process, a GGUF file with any number of LoRA files.

A crash in it ends the child and not the program. What llama.cpp alone would get wrong is taken care of here:

- Each request carries the scales of all adapters, since llama.cpp applies those that a request does not mention.
- Adapters are known here by the hash of their file; llama.cpp answers an unknown number by the base.
- Its prompt cache in memory is off: it gives one adapter's keys and values to another.
- Prompts are token ids from the template that was trained, and text comes from ids by the same tokenizer, so that what
  is served is token-identical to what was trained, however llama.cpp would cut it.
- Choices are scored whole, by the tree of labels as in the evaluation. A grammar would take the likeliest first token
  and be bound to the labels that begin so; that is another answer, and has no probability.
- An answer is checked against its JSON Schema: llama.cpp writes free text under one that it can't read.
- It never mixes adapters in a pass, and continues with the one of its first slot while there are requests for that. So
  adapters have turns: an answer is interrupted when another adapter has waited, and continues in its slot.
- A child that hangs is ended and started again: it writes nothing, and its `/health`, which has its own thread, is
  silent.
- A prompt is read to its end before anything else. So background work is requested in quanta: a piece of the prompt, or
  a few tokens, in a slot that keeps what was read. The next quantum continues behind it. `priority.py` says when one
  begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.files import sha256_file, user_errors_of_the_disk
from tuneloop.core.foreign import fast_json, parse_line
from tuneloop.core.http.timeouts import CHILD_HEALTHY_WITHIN, HANGS_AFTER, LOOK_EVERY, REVIVE_PAUSE
from tuneloop.core.http.wire import Broken, HttpRefused, Wire, message_of
from tuneloop.inference.grammar import compile_problem
from tuneloop.inference.labels import best_label
from tuneloop.inference.llamacpp.process import (
    ENGINE,
    LlamaCpp,
    cores,
    error_from,
    installed,
    need_llamacpp,
    need_wheel,
    spawn,
)
from tuneloop.inference.priority import Fair, Pace, Slots, Turns
from tuneloop.inference.protocol import (
    AdapterFacts,
    AnswerSoFar,
    EngineSettings,
    RenderingEngine,
    Served,
    milliseconds_since,
    unknown_adapter,
)
from tuneloop.inference.request import Request, Update, refused
from tuneloop.inference.stream import TextStream
from tuneloop.models.adapters import BASE
from tuneloop.models.chat import Template, load_template, with_template
from tuneloop.models.files import read_tokenizer
from tuneloop.records.completion import Completion, Finish, TokenLogprob

WHEEL, VERSION = "xllamacpp", "2026.10.11549"  # parameters are renamed between releases, so this one and no other
LEAST, PIECE, MOST = 8, 512, 32  # tokens of a prompt that are read in one quantum; that are written at most
SAMPLED = 8  # tokens of a quantum that are drawn with a temperature
ENDED = "engine: llama.cpp ended unexpectedly"
BROKE_OFF = "engine: the answer broke off"


def server_installed() -> bool:
    """Whether llama.cpp's server is here, in the version that is known."""
    return installed(WHEEL, VERSION)


class LlamaCppEngine(RenderingEngine):
    """See `ServingEngine`.

    Args:
        base: a GGUF file, or the folder of an artifact with one.
        adapters: LoRA files in GGUF, or folders of artifacts with one.
        settings: how it runs.
    """

    def __init__(
        self, base: Served, adapters: Sequence[Served] = (), settings: EngineSettings = EngineSettings()
    ) -> None:
        super().__init__(ENGINE, base, adapters, settings.slots)
        self.gives_way, self._settings = settings.background_slots > 0, settings
        self._files: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._client: Wire | None = None
        self._scorer: LlamaCpp | None = None
        self._running = False  # whether it was started, and not stopped since
        self._heard = 0.0  # when the server gave something last, of the monotonic clock
        self._reviving: asyncio.Future[bool] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._scoring, self._one_choice = asyncio.Lock(), asyncio.Lock()
        self._all_slots = settings.slots + settings.background_slots
        self._slots, self._background = Slots(range(settings.slots)), Slots(range(settings.slots, self._all_slots))
        self._turns, self._fair = Turns(settings.background_slots), Fair()
        self._reads, self._writes = Pace(LEAST, PIECE), Pace(1, MOST)

    @property
    def context(self) -> int:
        return self._settings.context

    @property
    def process(self) -> int | None:
        """Id of the child process; None: it is not running."""
        return None if self._process is None else self._process.pid

    # -- start and stop

    async def start(self) -> None:
        """Start the server and load everything; a server that has ended is started again.

        Raises:
            UserError: a wheel or a file is missing, llama.cpp refuses one, or it takes longer than allowed.
        """
        if self._process is not None and self._process.poll() is None:
            return
        await self._end()
        self._running = True
        try:
            await asyncio.to_thread(self._start)
        except BaseException:
            await self._end()
            raise
        if not self._running:  # it was stopped meanwhile
            await self._end()
        elif self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Start the server again when it has ended unexpectedly or hangs, though nothing is requested."""
        while self._running:
            await asyncio.sleep(LOOK_EVERY)
            if self._process is not None and await self._hangs():
                _kill(self._process)
            await self._revived()

    async def _hangs(self) -> bool:
        looked, process = time.monotonic(), self._process
        if self._client is None or looked - self._heard < HANGS_AFTER:  # a child that is being started has its deadline
            return False
        if await self.healthy(HANGS_AFTER):
            self._heard = time.monotonic()
            return False
        return self._heard < looked and process is self._process

    def _start(self) -> None:
        need_wheel(WHEEL, VERSION, "about 35 MB")
        need_llamacpp()
        file = gguf_file(self._base.source)
        self._files = [gguf_file(served.source) for served in self._served]
        settings, key = self._settings, secrets.token_urlsafe(16)
        setup = {"file": str(file), "adapters": list(map(str, self._files)), "slots": self._all_slots, "key": key}
        setup |= {"context": settings.context, "threads": settings.threads or cores()}
        adapters, templates = self.adapters, self._templates
        with self._spawned(setup) as address:
            if not templates:  # while the child loads; when it is started again they are known
                template = template_of(file, self._base.template)
                adapters, templates = {}, {BASE: template}
                for served, path in zip(self._served, self._files, strict=True):
                    name = sha256_file(path)
                    adapters[name] = AdapterFacts(name, served.source)
                    templates[name] = with_template(template, served.template)
            base = address()
        self._heard = time.monotonic()
        self._client = Wire(base, key)
        self.adapters, self._templates = adapters, templates

    @contextlib.contextmanager
    def _spawned(self, setup: dict[str, Any]) -> Iterator[Callable[[], str]]:
        """Start the child; gives a function that waits until the model is loaded, and returns the server's address.

        Raises:
            UserError: the log can't be written; from that function: the child ended, or was not ready in time.
        """
        if (log := self._settings.log) is None:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        else:
            with user_errors_of_the_disk(log):
                log.parent.mkdir(parents=True, exist_ok=True)
                self._log = log.open("w+b")
        until = time.monotonic() + self._settings.start_within
        ours, theirs = os.pipe()
        try:
            self._process = process = spawn("server", theirs, subprocess.PIPE, self._log, os.environ)
            os.close(theirs)
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # it ended at once: what it reports says so
                process.stdin.write(json.dumps(setup).encode() + b"\n")
                process.stdin.flush()

            def address() -> str:
                line = _read_line(ours, until)
                if line is None:
                    raise self._error(f"llama.cpp was not ready within {self._settings.start_within:g} s")
                if not line:
                    raise self._error(f"llama.cpp ended at its start (exit status {process.wait()})")
                try:
                    return str(parse_line(line)["address"])
                except (ValueError, KeyError, TypeError):
                    raise self._error(f"llama.cpp said {line.strip()[:60]!r} at its start, and no address") from None

            yield address
        finally:
            os.close(ours)

    def _error(self, message: str) -> UserError:
        step = "check the files and the memory that is free; export them again if they are damaged"
        return error_from(message, self._log, self.base, step)

    async def healthy(self, within: float = CHILD_HEALTHY_WITHIN) -> bool:
        """Whether the child is there and answers within some seconds."""
        if self._process is None or self._process.poll() is not None or self._client is None:
            return False
        try:
            await asyncio.wait_for(self._client.get("/health"), within)
            return True
        except (Broken, HttpRefused, TimeoutError):
            return False

    async def stop(self) -> None:
        """End the child and all that it started."""
        self._running = False
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        while self._reviving is not None:  # a child that is being started ends at once
            if self._process is not None and self._process.poll() is None:
                _kill(self._process)
            await asyncio.sleep(0.02)
        await self._end()

    async def _end(self) -> None:
        client, self._client = self._client, None
        process, self._process = self._process, None
        scorer, self._scorer = self._scorer, None
        if process is not None:
            _kill(process)
            await asyncio.to_thread(process.wait)
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
        if client is not None:
            await client.close()
        if scorer is not None:
            scorer.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    # -- answers

    async def _prepared(self, request: Request) -> Request | Completion:
        await self._revived()
        reason = await compile_problem(request.schema) if request.schema is not None else ""
        if not reason and self._client is None:
            reason = "engine: llama.cpp is not started"
        reason = reason or unknown_adapter(request.adapter, self.adapters)
        return refused(request, reason, ENGINE) if reason else self._with_ids(request)

    def _answer(self, request: Request) -> AsyncGenerator[Update, None]:
        if not (request.gives_way and request.schema is None and self.gives_way):
            return self._at_once_or_again(request)
        return self._choice_as_quantum(request) if request.choices else self._in_quanta(request)

    async def _at_once_or_again(self, request: Request) -> AsyncGenerator[Update, None]:
        """An answer that is requested once more where llama.cpp has ended before any part of it came."""
        came = False
        for last in (False, True):
            again = False
            async with aclosing(self._at_once(request)) as updates:
                async for update in updates:
                    ended = update.completion is not None and update.completion.error == ENDED
                    if again := ended and not came and not last:
                        break
                    came = True
                    yield update
            if not again:
                return
            if not await self._revived():
                yield Update(completion=refused(request, ENDED, ENGINE))
                return

    async def _choice_as_quantum(self, request: Request) -> AsyncGenerator[Update, None]:
        async with self._one_choice:
            began = await self._turns.begin(request.adapter, reads=True)
            try:
                completion = await self._choose(request)
            finally:
                self._turns.end(request.adapter, began, reads=True)
        yield Update(completion.text, completion)

    async def _revived(self) -> bool:
        """Start a server again that has ended unexpectedly; returns whether there is one now."""
        if self._reviving is None:
            if not self._running or (self._process is not None and self._process.poll() is None):
                return self._client is not None
            self._reviving = asyncio.ensure_future(self._revive())
        return await asyncio.shield(self._reviving)

    async def _revive(self) -> bool:
        try:
            await self.start()
            return True
        except UserError:
            until = time.monotonic() + REVIVE_PAUSE
            while self._running and time.monotonic() < until:  # requests get the error meanwhile
                await asyncio.sleep(0.1)
            return False
        finally:
            self._reviving = None

    async def _why_broken(self, process: subprocess.Popen[bytes] | None) -> str:
        """Why an answer broke off: connections may break a moment before the child is seen to have ended."""
        for _ in range(20):
            if process is None or process is not self._process or process.poll() is not None:
                return ENDED
            await asyncio.sleep(0.01)
        return BROKE_OFF

    async def _at_once(self, request: Request) -> AsyncGenerator[Update, None]:
        """An answer that is waited for: written in one slot, in as many turns as it takes."""
        self._turns.come(request.adapter)
        try:
            if request.choices:
                completion = await self._choose(request)
                yield Update(completion.text, completion)
                return
            answer = _AnswerInTokens(request, self._templates[request.adapter])
            slot = await self._slots.take(request.adapter, request.ids)
            try:
                while not answer.over:
                    await self._fair.enter(request.adapter)
                    try:
                        async with aclosing(self._turn(request, answer, slot)) as updates:
                            async for update in updates:
                                yield update
                    finally:
                        self._fair.leave()
            finally:
                self._slots.give(slot, request.adapter, (*request.ids, *answer.ids))
        finally:
            self._turns.go(request.adapter)

    async def _turn(self, request: Request, answer: _AnswerInTokens, slot: int) -> AsyncGenerator[Update, None]:
        """An answer to its end, or until another adapter has its turn. What is drawn or held to a schema is not cut,
        nor is what has a token that is not known for certain."""
        may_cut = not request.sampling.temperature and request.schema is None
        process, answer.before = self._process, len(answer.ids)
        left = request.max_new_tokens - answer.before
        part = replace(request, ids=(*request.ids, *answer.ids), max_new_tokens=left) if answer.ids else request
        body = body_of(part, self._scales(request.adapter)) | {"id_slot": slot}
        try:
            async with aclosing(self._wire().events("/completion", _json(body))) as events:
                async for data in events:
                    self._heard = time.monotonic()
                    event = fast_json(data)
                    if not answer.before and "timings" in event:  # in later turns the answer itself was read before
                        answer.cached = int(event["timings"].get("cache_n") or 0)
                    for update in answer.read(event) if not answer.over else ():
                        yield update
                    if answer.over and not event.get("stop"):  # llama.cpp would continue
                        return
                    exact = not answer.guessed and event.get("tokens_predicted") == len(answer.ids) - answer.before
                    more = not answer.over and len(answer.ids) < request.max_new_tokens
                    if may_cut and exact and more and self._fair.over(request.adapter):
                        return
        except HttpRefused as error:
            yield Update(completion=answer.failed(f"engine: {error.message}"))
            return
        except (Broken, ValueError):
            yield Update(completion=answer.failed(await self._why_broken(process)))
            return
        if not answer.over:
            yield Update(completion=answer.failed(ENDED))

    def _wire(self) -> Wire:
        if self._client is None:
            raise Broken("llama.cpp has ended")
        return self._client

    def _scales(self, adapter: str) -> list[float]:
        return [float(name == adapter) for name in self.adapters]

    async def _in_quanta(self, request: Request) -> AsyncGenerator[Update, None]:
        """A background answer: quantum by quantum, in one slot that keeps what was read."""
        answer = _AnswerInTokens(request, self._templates[request.adapter])
        slot = await self._background.take(request.adapter, request.ids)
        self._turns.row(request.adapter, 1)
        try:
            for attempt in range(3):  # where llama.cpp has ended, what is written stays, and the prompt is read again
                process = self._process
                try:
                    async with aclosing(self._to_the_end(request, answer, slot)) as updates:
                        async for update in updates:
                            yield update
                    return
                except (Broken, HttpRefused, ValueError, KeyError):
                    reason = await self._why_broken(process)
                    if reason != ENDED or attempt == 2 or not await self._revived():
                        yield Update(completion=answer.failed(reason))
                        return
        finally:
            self._turns.row(request.adapter, -1)
            self._background.give(slot, request.adapter, (*request.ids, *answer.ids))

    async def _to_the_end(self, request: Request, answer: _AnswerInTokens, slot: int) -> AsyncGenerator[Update, None]:
        read = 0
        while (piece := self._reads.tokens) < len(request.ids) - read:  # the rest is read with the first token
            read += piece
            self._reads.learn(piece, _seconds(await self._quantum(request, request.ids[:read], 0, slot)))
        while not answer.over:
            left = request.max_new_tokens - len(answer.ids)
            # Quanta of drawn answers have one length, so that a seed gives one answer.
            tokens = min(SAMPLED if request.sampling.temperature > 0 else self._writes.tokens, left)
            reply = await self._quantum(request, (*request.ids, *answer.ids), tokens, slot)
            count = len(reply.get("tokens") or [])
            if answer.ids:
                self._writes.learn(count, _seconds(reply))
            stop = reply.get("stop_type") != "limit" or not count or count >= left
            for update in answer.read(reply | {"stop": stop}):
                yield update

    async def _quantum(self, request: Request, ids: Sequence[int], tokens: int, slot: int) -> dict[str, Any]:
        sampling = replace(request.sampling, seed=request.sampling.seed + len(ids) - len(request.ids))
        part = replace(request, ids=ids, max_new_tokens=max(tokens, 1), sampling=sampling)
        body = body_of(part, self._scales(request.adapter))
        body |= {"stream": False, "id_slot": slot, "n_predict": tokens}
        began = await self._turns.begin(request.adapter, reads=not tokens)
        try:
            return dict(fast_json(await self._wire().post("/completion", _json(body))))
        finally:
            self._turns.end(request.adapter, began, reads=not tokens)

    async def _choose(self, request: Request) -> Completion:
        began, (tree, tokens) = time.perf_counter(), self._tree(request)
        try:
            async with self._scoring:
                logs = await asyncio.to_thread(self._scored, request, tokens)
        except UserError as error:
            return refused(request, f"engine: {error.what}", ENGINE)
        scores = {label: log / len(ids) for label, log, ids in zip(request.choices, logs, tokens, strict=True)}
        completion = best_label(scores, tree.tokens, len(request.ids), engine=ENGINE)
        return replace(completion, adapter=request.adapter, total_ms=milliseconds_since(began))

    def _scored(self, request: Request, tokens: Sequence[Sequence[int]]) -> list[float]:
        for again in (True, False):
            if self._scorer is None:  # the weights are mapped from the same file: they are in memory once
                self._scorer = LlamaCpp(gguf_file(self._base.source), self._files)
            try:
                self._scorer.apply(self._scales(request.adapter))
                return self._scorer.score(request.ids, tokens)
            except UserError:  # it has ended, or hangs
                self._scorer.close()
                self._scorer = None
                if not again:
                    raise
        raise AssertionError


class _AnswerInTokens(AnswerSoFar):
    """An answer whose text comes from its tokens."""

    def __init__(self, request: Request, template: Template) -> None:
        super().__init__(request, ENGINE)
        self.ends, self.encode = frozenset(template.end_ids), template.encode
        self.text = TextStream(template.decode, request.stop)
        self.before = 0  # tokens that were written before this turn
        self.guessed = False  # whether a token was found by its text
        self.over = False

    def read(self, event: Mapping[str, Any]) -> list[Update]:
        """The updates that an event of the server brings."""
        if "error" in event:
            return [Update(completion=self.failed(f"engine: {message_of(json.dumps(event))}"))]
        piece, ended = "", bool(event.get("stop"))
        finish: Finish = "length" if event.get("stop_type") == "limit" else "stop"
        probabilities = event.get("completion_probabilities") or []
        for number, token in enumerate(self._tokens(event)):
            self.first = self.first or time.perf_counter()
            self.ids.append(token)
            if self.request.logprobs is not None and number < len(probabilities):
                entry, top = probabilities[number], probabilities[number].get("top_logprobs", [])
                likeliest = tuple((int(t["id"]), float(t["logprob"])) for t in top[: self.request.logprobs])
                self.logprobs.append(TokenLogprob(int(entry["id"]), float(entry["logprob"]), likeliest))
            piece += "" if token in self.ends else self.text.push(token)
            if token in self.ends or self.text.stopped:
                ended, finish = True, "stop"
                break
        if not ended:
            return [Update(piece)] if piece else []
        piece += self.text.end()
        return [Update(piece, self._finished(finish))]

    def _tokens(self, event: Mapping[str, Any]) -> Sequence[int]:
        """The tokens of an event. Of a character in several tokens it has the whole text and the last one alone."""
        tokens: list[int] = event.get("tokens") or []
        count, text = event.get("tokens_predicted"), event.get("content")
        before = len(self.ids) - self.before
        if "stop_type" in event or not tokens or not text or not isinstance(count, int) or count <= before + 1:
            return tokens
        self.guessed, whole = True, self.encode(text)
        return whole if len(whole) == count - before and whole[-1] == tokens[-1] else tokens

    def _finished(self, finish: Finish, error: str = "") -> Completion:
        self.over = True
        return self.completion(self.text.text, finish, error)

    def failed(self, reason: str) -> Completion:
        """The answer of a request that failed."""
        return self._finished("error", reason)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _json(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # a schema that is nested deeply, or has larger numbers
        return json.dumps(body).encode()


def body_of(request: Request, scales: Sequence[float]) -> dict[str, Any]:
    """What is sent to llama.cpp's server, with the scales of all adapters."""
    sampling = asdict(request.sampling)
    body: dict[str, Any] = {
        "prompt": list(request.ids),
        "n_predict": request.max_new_tokens,
        "stream": True,
        "return_tokens": True,
        "cache_prompt": True,
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],  # our order
        "repeat_penalty": sampling.pop("repetition_penalty"),
        "repeat_last_n": len(request.ids) + request.max_new_tokens,
        **sampling,  # all others by the same names
    }
    if request.logprobs is not None:
        body["n_probs"] = max(request.logprobs, 1)
    if request.schema is not None:
        body["json_schema"] = dict(request.schema)
    return dict(body, lora=[{"id": number, "scale": scale} for number, scale in enumerate(scales)])


def gguf_file(source: str) -> Path:
    """The GGUF file of a name: itself, or the one in a folder.

    Raises:
        UserError: there is none, or more than one.
    """
    path = Path(source).expanduser()
    files = sorted(path.glob("*.gguf")) if path.is_dir() else [path] if path.is_file() else []
    if len(files) != 1:
        message = f"There are {len(files)} GGUF files here" if files else "There is no GGUF file here"
        step = "name the file; `tuneloop export RUN --format gguf` writes one"
        raise UserError(message, where=source, next_step=step)
    return files[0]


def template_of(file: Path, source: str = "") -> Template:
    """Tokenizer and chat template of a GGUF file: those next to it in an artifact, else the ones in it.

    Args:
        source: another chat template; empty: its own.

    Raises:
        UserError: no readable GGUF file, or a tokenizer that is not known here.
    """
    if (file.parent / "tokenizer.json").is_file() and (file.parent / "tuneloop.json").is_file():
        return with_template(load_template(file.parent), source)
    with tempfile.TemporaryDirectory() as folder:
        read_tokenizer(file, Path(folder))
        return with_template(load_template(Path(folder)), source)


def _read_line(pipe: int, until: float) -> str | None:
    """A line from a pipe; empty: it was closed; None: there was none in time."""
    data, readable = b"", select.poll()  # select.select takes no descriptor above 1,023
    readable.register(pipe, select.POLLIN)
    while not data.endswith(b"\n"):
        if not readable.poll(1000 * max(until - time.monotonic(), 0)):
            return None
        piece = os.read(pipe, 4096)
        if not piece:
            return ""
        data += piece
    return data.decode(errors="replace")


def _seconds(reply: Mapping[str, Any]) -> float:
    """Seconds that llama.cpp has computed for an answer."""
    times = reply.get("timings") or {}
    return (float(times.get("prompt_ms") or 0.0) + float(times.get("predicted_ms") or 0.0)) / 1000
