"""A server that behaves as vLLM's documented API does, with the tiny model in it: for contract tests of its client."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from patience import HANG
from tuneloop.inference.local.serving import LocalEngine
from tuneloop.inference.protocol import BASE, Served
from tuneloop.inference.request import Request, Sampling

MODEL = "tiny"
TOGETHER = 1.0  # seconds in which requests count as one batch, where a test has them mixed


class StandIn:
    """A server in a thread.

    Args:
        base: folder of the model.
        preloaded: LoRA names that it was started with -> folders.
        version: of vLLM; empty: a server that has no `/version`, no LoRA and no token ids.
        holds: whether it holds answers to choices and schemas.
        lets_load: whether adapters may be added while it runs.
        generation: sampling settings of the base's `generation_config.json`, for what a request leaves out.
        tells_ids: whether it knows `return_token_ids`, as vLLM does from 0.10.2 on.
        most_logprobs: its `--max-logprobs`.
        tags: whether it takes structural tags of this form, as vLLM does where xgrammar holds its answers.
    """

    def __init__(
        self,
        base: Path,
        preloaded: dict[str, Path] | None = None,
        version: str = "0.12.1",
        holds: bool = True,
        lets_load: bool = True,
        tells_ids: bool = True,
        tags: bool = True,
        generation: dict[str, float] | None = None,
        most_logprobs: int = 20,
    ) -> None:
        self.most_logprobs = most_logprobs
        self.tells_ids, self.tags = tells_ids, tags
        self.base, self.names, self.version, self.holds, self.lets_load = (
            base,
            dict(preloaded or {}),
            version,
            holds,
            lets_load,
        )
        self.preloaded, self.generation = dict(preloaded or {}), dict(generation or {})
        self.bodies: list[dict[str, Any]] = []
        self.hashes: dict[str, str] = {}
        self.key = ""
        self.cached = 0  # tokens of prompts that its prefix cache has, with `--enable-prompt-tokens-details`
        self.cut = 0  # answers whose reader has gone
        self.engine: LocalEngine | None = None
        self.loading = asyncio.Lock()
        self.engine_died = False  # while what takes requests still lives
        self.mixes, self.adapter_began = False, 0.0  # whether the base gets an adapter's weights next to one

    async def _engine(self) -> LocalEngine:
        async with self.loading:
            if self.engine is None or len(self.engine.adapters) != len(self.names):
                if self.engine is not None:
                    await self.engine.stop()
                folders = [Served(str(folder)) for folder in self.names.values()]
                self.engine = LocalEngine(Served(str(self.base)), folders)
                await self.engine.start()
                self.hashes = dict(zip(self.names, self.engine.adapters, strict=True))
            return self.engine

    def __enter__(self) -> str:
        import uvicorn

        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.server = uvicorn.Server(uvicorn.Config(self.app(), log_level="critical", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        until = time.monotonic() + HANG
        while not self.server.started:
            assert time.monotonic() < until
            time.sleep(0.01)
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(HANG)
        if self.engine is not None:
            asyncio.run(self.engine.stop())

    def app(self) -> Any:
        from starlette.applications import Starlette
        from starlette.requests import Request as Asked
        from starlette.responses import JSONResponse, Response, StreamingResponse
        from starlette.routing import Route

        def error(status: int, message: str, kind: str = "", param: str | None = None) -> JSONResponse:
            kind = kind or HTTPStatus(status).phrase
            return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": status}}, status)

        async def models(asked: Asked) -> Any:
            if self.key and asked.headers.get("authorization") != f"Bearer {self.key}":
                return JSONResponse({"error": "Unauthorized"}, 401)
            adapters = [{"id": name, "parent": MODEL, "max_model_len": None} for name in self.names]
            return JSONResponse({"data": [{"id": MODEL, "parent": None, "max_model_len": 512}, *adapters]})

        async def version(asked: Asked) -> Any:
            return JSONResponse({"version": self.version}) if self.version else error(404, "Not Found")

        async def health(asked: Asked) -> Any:
            return Response(status_code=503 if self.engine_died else 200)

        async def load(asked: Asked) -> Any:
            body = await asked.json()
            if not self.lets_load:
                return error(404, "Not Found")
            name, path = body["lora_name"], body["lora_path"]
            if not (name and path) or name in self.names:
                return error(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
            if not Path(path).is_dir():
                return error(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
            self.names[name] = Path(path)
            return JSONResponse("Success")

        async def unload(asked: Asked) -> Any:
            name = (await asked.json())["lora_name"]
            if self.names.pop(name, None) is None:
                return error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
            return JSONResponse("Success")

        async def tokenize(asked: Asked) -> Any:
            body, engine = await asked.json(), await self._engine()
            ids = await (engine.render(body["messages"]) if "messages" in body else engine.tokenize(body["prompt"]))
            return JSONResponse({"tokens": list(ids), "count": len(ids)})

        async def answer(asked: Asked) -> Any:
            body, engine = await asked.json(), await self._engine()
            self.bodies.append(body)
            if body["model"] not in (MODEL, *self.names):
                return error(404, f"The model `{body['model']}` does not exist.", "NotFoundError", "model")
            if body.get("response_format", {}).get("type") == "structural_tag" and not self.tags:
                return error(400, "Invalid structural tag specification.")
            if not isinstance(body.get("max_tokens", 1), int):
                return error(400, "1 validation error", param="body.max_tokens")
            if (body.get("logprobs") or 0) > self.most_logprobs:
                return error(400, f"Requested sample logprobs of {body['logprobs']}, which is greater than max allowed")
            chat = asked.url.path.endswith("/chat/completions")
            if "allowed_token_ids" in body:
                return JSONResponse(await asyncio.to_thread(self.held_to_tokens, engine, body))
            if not body.get("stream", False):
                ids = {"token_ids": [64]} if body.get("return_token_ids") and self.tells_ids else {}
                return JSONResponse({"choices": [{"index": 0, "text": "a", "finish_reason": "length", **ids}]})
            return StreamingResponse(self.events(engine, body, chat), media_type="text/event-stream")

        routes = [
            Route("/v1/models", models), Route("/health", health), Route("/version", version), Route("/tokenize", tokenize, methods=["POST"]),
            Route("/v1/load_lora_adapter", load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", unload, methods=["POST"]),
            Route("/v1/completions", answer, methods=["POST"]), Route("/v1/chat/completions", answer, methods=["POST"]),
        ]  # fmt: skip

        return Starlette(routes=routes)

    def restart(self) -> None:
        """What was loaded while it ran is gone, as after a crash; what it was started with is there again."""
        self.names = dict(self.preloaded)

    def held_to_tokens(self, engine: LocalEngine, body: dict[str, Any]) -> dict[str, Any]:
        """Greedy tokens among the allowed ones behind each prompt, with log probabilities of the unconstrained model."""
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        choices = [{"index": i, **self.continued(engine, body, prompt)} for i, prompt in enumerate(prompts)]
        return {"choices": choices}

    def continued(self, engine: LocalEngine, body: dict[str, Any], prompt: list[int]) -> dict[str, Any]:
        """One prompt's choice; like vLLM it ends behind a stop token, which counts as written."""
        import torch

        from tuneloop.models.adapters.assignment import applied

        model, ids = engine._model, list(prompt)
        assert model is not None
        written, values, tops = [], [], []
        with torch.inference_mode(), applied(self.hashes.get(body["model"], BASE)):
            for _ in range(body["max_tokens"]):
                hidden = model.hidden(torch.tensor([ids]))[0, -1].float()
                logs = torch.log_softmax(hidden @ model.head.float().t(), -1)
                allowed = logs if not self.holds else logs[body["allowed_token_ids"]]
                best = int(allowed.argmax())
                token = best if not self.holds else body["allowed_token_ids"][best]
                top = logs.topk(body["logprobs"])
                near = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)) | {token: float(logs[token])}
                written.append(token)
                values.append(float(logs[token]))
                tops.append({f"token_id:{i}": value for i, value in near.items()})
                ids.append(token)
                if token in body.get("stop_token_ids", ()):
                    break
        names = [f"token_id:{token}" for token in written]
        logprobs = {"tokens": names, "token_logprobs": values, "top_logprobs": tops}
        return {"text": "", "finish_reason": "length", "logprobs": logprobs}

    def adapter_of(self, body: dict[str, Any]) -> str:
        if self.mixes and body["model"] == MODEL and time.monotonic() - self.adapter_began < TOGETHER:
            return next(iter(self.hashes.values()))
        return self.hashes.get(body["model"], BASE)

    async def events(self, engine: LocalEngine, body: dict[str, Any], chat: bool) -> AsyncIterator[str]:
        choices = body.get("structured_outputs", {}).get("choice") or body.get("guided_choice") or []
        drawn = {"temperature": 1.0, **self.generation, **body}  # a priority, as any other word, is not read
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        request = Request(
            messages=body.get("messages", ()), ids=body.get("prompt", ()), max_new_tokens=body["max_tokens"],
            adapter=self.adapter_of(body), stop=tuple(body.get("stop", ())),
            sampling=Sampling(**{name: drawn[name] for name in names if name in drawn}),
            logprobs=body.get("top_logprobs") if chat else body.get("logprobs"),
            choices=tuple(choices) if self.holds else (),
            schema=schema_of(body.get("response_format", {})) if self.holds else None,
        )  # fmt: skip
        if choices and self.holds:
            request = Request(**{name: getattr(request, name) for name in request.__slots__ if name != "logprobs"})
        done = False
        if body["model"] != MODEL:
            self.adapter_began = time.monotonic()
        try:
            async for update in engine.stream(request):
                last = update.completion
                text = {"delta": {"content": update.text}} if chat else {"text": update.text}
                choice: dict[str, Any] = {"index": 0, **text, "finish_reason": None}
                if last is not None:
                    choice["finish_reason"] = "length" if last.finish == "length" else "stop"
                    choice["token_ids"] = (
                        list(last.token_ids) if body.get("return_token_ids") and self.tells_ids else None
                    )
                    if last.logprobs is not None and not chat:
                        choice["logprobs"] = {
                            "tokens": [f"token_id:{logprob.id}" for logprob in last.logprobs],
                            "token_logprobs": [logprob.logprob for logprob in last.logprobs],
                            "top_logprobs": [{f"token_id:{i}": p for i, p in logprob.top} for logprob in last.logprobs],
                        }
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
                if last is not None:
                    usage: dict[str, Any] = {
                        "prompt_tokens": last.prompt_tokens,
                        "completion_tokens": last.completion_tokens,
                    }
                    usage["prompt_tokens_details"] = {"cached_tokens": self.cached} if self.cached else None
                    yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
            done = True
        finally:
            self.cut += not done


def schema_of(form: dict[str, Any]) -> dict[str, Any] | None:
    """The JSON Schema of a `response_format`, in either of its two forms."""
    if form.get("type") == "structural_tag":
        return dict(form["format"]["json_schema"])
    return form.get("json_schema", {}).get("schema")  # type: ignore[no-any-return]
