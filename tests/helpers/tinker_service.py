"""A Tinker service on this machine, for the official client: it holds a model and computes what the requests say, with faults.

Requests and replies are those of tinker 0.38. Losses and gradients are plain PyTorch, not tuneloop's loop.
"""

from __future__ import annotations

import copy
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from local_http import Quiet, listening
from tinker.proto import tinker_public_pb2 as wire

from tuneloop.inference.local.generate import generate
from tuneloop.models.load import load_model
from tuneloop.training.config import TrainConfig
from tuneloop.training.methods import attach

KEY = "tml-test-7c2e"
BASE = "acme/tiny-llama"
ALPHA = 32.0


class Trained:
    """A model at the service: the base with its own LoRA matrices and AdamW."""

    def __init__(self, base: Path, rank: int, seed: int, mlp: bool) -> None:
        self.shape = {"rank": rank, "seed": seed, "mlp": mlp}
        self.model = load_model(str(base), dtype="float32")
        targets: Any = "all-linear" if mlp else "attention"
        self.adapter = attach(self.model, TrainConfig(rank=rank, alpha=ALPHA, targets=targets, lora_plus=1), seed)
        self.adam = torch.optim.AdamW(self.adapter.parameters.values())
        self.seq, self.waiting = 0, dict[int, Callable[[Trained], Any]]()

    def forward(self, request: Any) -> wire.ForwardBackwardOutput:
        """Log probabilities of each datum's targets; with a gradient of the weighted sum, unless it is forward only."""
        assert request.loss_fn == "cross_entropy"
        output, pieces = wire.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord"), list[np.ndarray[Any, Any]]()
        for datum in request.data:
            ids = np.frombuffer(b"".join(chunk.encoded_text.tokens for chunk in datum.model_input), dtype=np.int32)
            inputs = datum.loss_fn_inputs
            targets = torch.from_numpy(np.frombuffer(inputs["target_tokens"].dense, dtype=np.int64).copy())
            weights = torch.from_numpy(np.frombuffer(inputs["weights"].dense, dtype=np.float32).copy())
            assert inputs["weights"].dtype == wire.DTYPE_FLOAT32 and len(ids) == len(targets) == len(weights)
            with torch.set_grad_enabled(not request.forward_only):
                hidden = self.model.hidden(torch.from_numpy(ids.astype(np.int64))[None])[0]
                logprobs = torch.log_softmax(hidden @ self.model.head.t(), -1).gather(1, targets[:, None])[:, 0]
                if not request.forward_only:
                    (-logprobs * weights).sum().backward()  # type: ignore[no-untyped-call]
            pieces.append(logprobs.detach().numpy())
        record = output.loss_fn_outputs.add(num_datums=len(pieces))
        ends = np.cumsum([0, *(piece.nbytes for piece in pieces)], dtype=np.int64)
        tensor = record.fields["logprobs"]
        tensor.data, tensor.offsets, tensor.dtype = np.concatenate(pieces).tobytes(), ends.tobytes(), wire.DTYPE_FLOAT32
        return output

    def update(self, adam: dict[str, Any]) -> None:
        """AdamW's step with the settings of the request."""
        parameters = list(self.adapter.parameters.values())
        assert all(p.grad is not None for p in parameters), "an update without a gradient"
        if adam["grad_clip_norm"]:
            torch.nn.utils.clip_grad_norm_(parameters, adam["grad_clip_norm"])
        for group in self.adam.param_groups:
            group |= {"lr": adam["learning_rate"], "betas": (adam["beta1"], adam["beta2"])}
            group |= {name: adam[name] for name in ("eps", "weight_decay")}
        self.adam.step()
        self.adam.zero_grad()


@dataclass
class Service:
    """What the service has, and its faults.

    Args:
        saved: path of a checkpoint -> shape, weights, AdamW's state; `exported`: path -> folder of the files.
        faults: path of the API -> answers that come first: (status, message), or "cut": computed, and no reply.
        before: called with each path.
    """

    base: Path
    exports: Path
    models: dict[str, Trained] = field(default_factory=dict)
    saved: dict[str, tuple[dict[str, Any], Any, Any]] = field(default_factory=dict)
    exported: dict[str, Path] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, list[Any]] = field(default_factory=dict)
    before: Callable[[str], None] = lambda path: None
    calls: list[str] = field(default_factory=list)
    chats: list[dict[str, Any]] = field(default_factory=list)
    sessions: int = 0
    url: str = ""
    lock: threading.Condition = field(default_factory=threading.Condition)

    def reply(self, path: str, body: bytes) -> tuple[int, Any]:
        """Status and body of a request."""
        if path == "forward_backward":
            request = wire.ForwardBackwardRequest.FromString(body)
            return self._in_turn(request.model_id, request.seq_id, lambda one: one.forward(request))
        if path.startswith("files/"):
            return 200, (self.exports / path.removeprefix("files/")).read_bytes()
        if path.startswith("sessions/"):
            return 200, {}
        if path.endswith("external_weights_urls"):
            run, name = path.split("/")[1], path.split("/")[-2]
            folder = self.exported[f"tinker://{run}/external_weights/{name}"]
            files = {file.name: f"{self.url}/api/v1/files/{folder.name}/{file.name}" for file in folder.iterdir()}
            return 200, {"urls": files, "expires": "2027-01-01T00:00:00Z"}
        method = getattr(self, f"_{path.replace('/', '_')}", None)
        if method is None:
            return 404, {"detail": f"no {path}"}
        answer: tuple[int, Any] = method(json.loads(body or b"{}"))
        return answer

    def _in_turn(self, model: str, seq: int, work: Callable[[Trained], Any]) -> tuple[int, Any]:
        """Do a model's requests in their order; one that comes again, because its reply was lost, is not done again."""
        one = self.models[model]
        if seq > one.seq:
            one.waiting[seq] = work
        while (work_now := one.waiting.pop(one.seq + 1, None)) is not None:
            one.seq += 1
            self.results[f"{model}/{one.seq}"] = work_now(one)
            self.lock.notify_all()
        return 200, {"request_id": f"{model}/{seq}", "model_id": model}

    def _done(self, model: str, result: Any) -> tuple[int, Any]:
        self.results[f"{model}/made"] = result
        return 200, {"request_id": f"{model}/made", "model_id": model}

    def _client_config(self, body: Any) -> tuple[int, Any]:
        return 200, {"fwdbwd_max_chunk_len": 3}  # a step comes in several requests

    def _client_dynamic_config(self, body: Any) -> tuple[int, Any]:
        return 200, {}

    def _create_session(self, body: Any) -> tuple[int, Any]:
        self.sessions += 1
        return 200, {"type": "create_session", "session_id": f"session-{self.sessions}"}

    def _session_heartbeat(self, body: Any) -> tuple[int, Any]:
        return 200, {"type": "session_heartbeat"}

    def _get_server_capabilities(self, body: Any) -> tuple[int, Any]:
        models = [(BASE, 4096), ("acme/short-llama", 8)]
        return 200, {
            "supported_models": [
                {"model_name": name, "max_context_length": most, "trainable": True} for name, most in models
            ]
        }

    def _create_model(self, body: Any) -> tuple[int, Any]:
        lora, name = body["lora_config"], f"{body['session_id']}:train:{body['model_seq_id']}"
        assert body["base_model"] in (BASE, "acme/short-llama") and not lora["train_unembed"] and lora["train_attn"]
        self.models[name] = Trained(self.base, lora["rank"], lora["seed"], lora["train_mlp"])
        return self._done(name, {"type": "create_model", "model_id": name})

    def _get_info(self, body: Any) -> tuple[int, Any]:
        return 200, {"type": "get_info", "model_id": body["model_id"], "model_data": {"model_name": BASE}}

    def _optim_step(self, body: Any) -> tuple[int, Any]:
        def update(one: Trained) -> Any:
            one.update(body["adam_params"])
            return {"metrics": {}}

        return self._in_turn(body["model_id"], body["seq_id"], update)

    def _save_weights(self, body: Any) -> tuple[int, Any]:
        def save(one: Trained) -> Any:
            path = f"tinker://{body['model_id']}/weights/{body['path']}"
            self.saved[path] = (one.shape, one.adapter.state(), copy.deepcopy(one.adam.state_dict()))
            return {"type": "save_weights", "path": path}

        return self._in_turn(body["model_id"], body["seq_id"], save)

    def _load_weights(self, body: Any) -> tuple[int, Any]:
        if body["path"] not in self.saved:
            return 404, {"detail": f"no checkpoint {body['path']}"}
        shape, weights, adam = self.saved[body["path"]]
        name = f"{body['session_id']}:train:{body['model_seq_id']}"
        one = self.models[name] = Trained(self.base, **shape)
        one.adapter.load(weights, "there")
        if body["optimizer"]:
            one.adam.load_state_dict(adam)
        return self._done(name, {"type": "load_weights", "path": body["path"], "model_id": name})

    def _save_weights_for_sampler(self, body: Any) -> tuple[int, Any]:
        def save(one: Trained) -> Any:
            path = f"tinker://{body['model_id']}/sampler_weights/{body['path']}"
            self.saved[path] = (one.shape, one.adapter.state(), None)
            return {"type": "save_weights_for_sampler", "path": path}

        return self._in_turn(body["model_id"], body["seq_id"], save)

    def _save_weights_external(self, body: Any) -> tuple[int, Any]:
        def save(one: Trained) -> Any:
            path = f"tinker://{body['model_id']}/external_weights/{body['path']}"
            folder = self.exported[path] = self.exports / f"export-{len(self.exported)}"
            one.adapter.save(folder)
            for file in folder.iterdir():
                if not file.name.startswith("adapter_"):
                    file.unlink()
            return {"type": "save_weights_external", "path": path}

        return self._in_turn(body["model_id"], body["seq_id"], save)

    def _retrieve_future(self, body: Any) -> tuple[int, Any]:
        name = body["request_id"]
        self.lock.wait_for(lambda: name in self.results, timeout=2)
        result = self.results.get(name, {"type": "try_again", "request_id": name, "queue_state": "active"})
        return 200, result.SerializeToString() if isinstance(result, wire.ForwardBackwardOutput) else result

    def chat(self, body: Any) -> tuple[int, Any]:
        """A greedy answer of a saved model."""
        self.chats.append(body)
        shape, weights, _ = self.saved[body["model"]]
        one = self.models.setdefault(body["model"], Trained(self.base, **shape))
        one.adapter.load(weights, "there")
        template = one.model.template
        (answer,) = generate(one.model, [template.prompt_ids(body["messages"])], max_new_tokens=4)
        message = {"role": "assistant", "content": answer.text}
        used = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens, "total_tokens": 0}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return 200, {"id": "chat", "object": "chat.completion", "created": 1, "model": body["model"], "usage": used, "choices": [choice]}  # fmt: skip


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    """The service at an address of this machine."""

    class Handler(Quiet):
        def do_POST(self) -> None:
            body, path = self.body(), self.path.removeprefix("/api/v1/")
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            service.calls.append(path)
            service.before(path)
            if path == "/oai/api/v1/chat/completions":
                assert self.headers["Authorization"] == f"Bearer {KEY}"
                with service.lock:
                    return self.answer(*service.chat(json.loads(body)))
            if not path.startswith("files/") and self.headers.get("X-API-Key") != KEY:
                return self.answer(401, {"detail": "invalid API key"})
            assert not (path.startswith("files/") and self.headers.get("X-API-Key")), "the key went to a signed URL"
            fault = (service.faults.get(path) or [None]).pop(0)
            if isinstance(fault, tuple):
                return self.answer(fault[0], {"detail": fault[1]})
            with service.lock:
                status, answer = service.reply(path, body)
            if fault == "cut":
                self.close_connection = True
                return None
            is_proto = isinstance(answer, bytes) and not path.startswith("files/")
            return self.answer(status, answer, {"Content-Type": "application/x-protobuf"} if is_proto else None)

        do_GET = do_POST

    with listening(Handler) as address:
        service.url = address
        yield service
