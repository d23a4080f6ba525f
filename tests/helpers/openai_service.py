"""A service of OpenAI's API on this machine: fine-tuning jobs, files, batches, stored completions and answers, with faults.

Its answers have the shapes of OpenAI's published API; a test puts the official client before it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from local_http import Quiet, listening

KEY = "sk-test-4f1d"
BASE = "gpt-4o-mini-2024-07-18"
MODEL = f"ft:{BASE}:acme:tickets:AbC123"
Page = dict[str, Any]


WORDS = {
    "billing": "invoice charged twice refund card payment",
    "delivery": "parcel late courier tracking lost address",
    "returns": "broken wrong size exchange label send",
}
FILLERS = "the my order please help now again since monday really still today you know"


def tickets(n: int, seed: int) -> list[dict[str, object]]:
    """Rows as OpenAI's fine-tuning takes them; the n-th label is the same for every seed."""
    rng = random.Random(seed)
    rows: list[dict[str, object]] = []
    for i in range(n):
        label = list(WORDS)[i % 3]
        text = " ".join(
            [*rng.choices(WORDS[label].split(), k=4), *rng.choices(FILLERS.split(), k=8), str(rng.random())[2:7]]
        )
        system = {"role": "system", "content": "Which queue? billing, delivery or returns."}
        turns = [system, {"role": "user", "content": text}, {"role": "assistant", "content": label}]
        rows.append({"messages": turns})
    return rows


def as_lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def job(name: str = "ftjob-1", model: str | None = MODEL, **more: Any) -> dict[str, Any]:
    """A fine-tuning job as OpenAI describes it."""
    return {
        "id": name,
        "object": "fine_tuning.job",
        "model": BASE,
        "created_at": 1_772_300_000,
        "finished_at": 1_772_303_600 if model else None,
        "fine_tuned_model": model,
        "organization_id": "org-acme",
        "result_files": ["file-result"] if model else [],
        "status": "succeeded" if model else "failed",
        "validation_file": "file-val" if model else None,
        "training_file": "file-train",
        "hyperparameters": {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8},
        "trained_tokens": 5768 if model else None,
        "error": None if model else {"code": "bad", "message": "the file has 3 examples", "param": "training_file"},
        "seed": 7,
        **more,
    }


@dataclass
class Service:
    """What the service has, what is called, and its faults.

    Args:
        answer: text of a chat completion by its body.
        faults: METHOD PATTERN -> answers that come first, one a request: (status, headers, body), or "cut", after half
            of the real answer, or a status alone, after the request was taken.
        price: dollars that it puts a job at, where it names prices; `credit`: that the account may spend.
        before: called with each path, as something that changes lists meanwhile.
    """

    jobs: list[dict[str, Any]] = field(default_factory=lambda: [job()])
    models: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, tuple[dict[str, Any], bytes]] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)
    completions: list[dict[str, Any]] = field(default_factory=list)
    turns: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    answer: Callable[[dict[str, Any]], str] = lambda body: "ok"
    refuse: Callable[[dict[str, Any]], str] = lambda body: ""  # message of a refusal of a chat completion
    faults: dict[str, list[Any]] = field(default_factory=dict)
    before: Callable[[str], None] = lambda path: None
    ends: str = "succeeded"  # state of a job that was started here, in the end
    price: float = 0.004
    credit: float = 100.0
    unchecked: int = 1  # estimates that are refused because the file is not checked yet
    truth: dict[str, str] = field(default_factory=dict)  # question -> right answer, for tests that answer by it
    lists: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # further ones, by their paths
    most: int = 100  # items of a page
    calls: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def add_file(self, name: str, content: bytes, purpose: str = "fine-tune", filename: str = "rows.jsonl") -> None:
        """Put a file there."""
        facts = {
            "id": name, "object": "file", "bytes": len(content), "created_at": 1_772_299_000, "filename": filename,
            "purpose": purpose, "status": "processed",
        }  # fmt: skip
        self.files[name] = (facts, content)

    def add_completion(self, name: str, question: str, answer: str, created: int = 1_790_000_000) -> None:
        """Store a completion."""
        message = {"role": "assistant", "content": answer, "refusal": None, "annotations": []}
        self.completions.append(
            {
                "id": name, "object": "chat.completion", "model": MODEL, "created": created, "request_id": "req-1",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
                "usage": {"prompt_tokens": 40, "completion_tokens": 2, "total_tokens": 42}, "metadata": {}, "tools": None,
            }
        )  # fmt: skip
        self.turns[name] = [{"id": f"{name}-0", "role": "user", "content": question, "name": None}]

    def reply(self, method: str, target: str, body: bytes, kind: str = "") -> tuple[int, Any]:
        """Status and body of a request; bytes are a file. `kind`: media type of its body."""
        parts = urlsplit(target)
        path, query = parts.path.removeprefix("/v1"), {k: v[0] for k, v in parse_qs(parts.query).items()}
        lists = self.lists | {
            "/models": self.models,
            "/fine_tuning/jobs": self.jobs,
            "/files": [facts for facts, _ in self.files.values()],
            "/batches": self.batches,
            "/chat/completions": self.completions,
        }
        if method == "POST" and path == "/chat/completions":
            if message := self.refuse(json.loads(body)):
                return 400, {"error": {"message": message, "type": "invalid_request_error"}}
            answered = self._answered(json.loads(body))
            return 200, _streamed(answered) if json.loads(body).get("stream") else answered
        if (trained := self._training(method, path, body, kind)) is not None:
            return trained
        if path in lists:
            return self._page(lists[path], query)
        if found := re.fullmatch(r"/fine_tuning/jobs/([^/]+)/(events|checkpoints)", path):
            return self._page(self._of_job(unquote(found[1]), found[2]), query)
        if found := re.fullmatch(r"/chat/completions/([^/]+)/messages", path):
            return self._page(self.turns[found[1]], query)
        found = re.fullmatch(r"/files/([^/]+)/content", path)
        if found and (file := self.files.get(unquote(found[1]))):
            if (purpose := file[0]["purpose"]) in ("assistants", "vision", "user_data"):
                return 400, {"error": {"message": f"Not allowed to download files of purpose: {purpose}"}}
            return 200, file[1]
        return 404, {"error": {"message": f"No such object: {path}", "type": "invalid_request_error", "code": None}}

    def _training(self, method: str, path: str, body: bytes, kind: str) -> tuple[int, Any] | None:
        """Uploads and jobs, of OpenAI's API and of Together's; each look at a job brings it a step on."""
        if method == "POST" and path in ("/files", "/files/upload"):
            head = f"Content-Type: {kind}\r\n\r\n".encode()
            parts = {
                part.get_param("name", header="content-disposition"): part
                for part in message_from_bytes(head + body).walk()
            }
            name = f"file-{len(self.files)}"
            content = parts["file"].get_payload(decode=True)
            self.add_file(name, content, parts["purpose"].get_payload(), parts["file"].get_filename())
            return 200, self.files[name][0]
        if method == "POST" and path in ("/fine_tuning/jobs", "/fine-tunes"):
            order = json.loads(body)
            self.bodies.append(order)
            fresh = {"status": "queued", "result_files": [], "error": None, "hyperparameters": {}, "looks": 0}
            self.jobs.insert(0, {**job(f"ftjob-{len(self.jobs) + 1}", None), **order, **fresh})
            return 200, self.jobs[0]
        if path == "/fine-tunes":
            return 200, {"data": self.jobs}
        if path == "/fine-tunes/estimate-price":
            self.unchecked -= 1
            if self.unchecked >= 0:
                return 200, {"estimation_available": False, "unavailable_reason": "train_file_not_validated"}
            allowed = {"allowed_to_proceed": self.price <= self.credit, "user_limit": self.credit}
            tokens = {"estimated_train_token_count": 999, "estimated_eval_token_count": 0}
            return 200, {"estimation_available": True, "estimated_total_price": self.price, **allowed, **tokens}
        if path == "/finetune/download" or path.startswith("/signed/"):
            return 200, b"weights"
        if re.fullmatch(r"/fine-tunes/[^/]+/metrics", path):
            steps = [{"train/global_step": i, "train/loss": 1.0 / i, "train/epoch": 0.1} for i in (1, 2, 3)]
            return 200, {"metrics": [*steps, {"eval/global_step": 3, "eval/loss": 0.5}]}
        found = re.fullmatch(r"/(fine_tuning/jobs|fine-tunes)/([^/]+)(/cancel)?", path)
        item = next((entry for entry in self.jobs if found and entry["id"] == found[2]), None)
        if found is None or item is None:
            return None
        if found[3]:
            item["status"] = "cancelled"
        elif item["status"] in ("queued", "running"):
            item["looks"] += 1
            theirs = {"succeeded": "completed", "failed": "error"} if found[1] == "fine-tunes" else {}
            item["status"] = theirs.get(self.ends, self.ends) if item["looks"] > 1 else "running"
            if item["status"] in ("succeeded", "completed"):
                item |= {
                    "fine_tuned_model": MODEL,
                    "model_output_name": MODEL,
                    "trained_tokens": 999,
                    "token_count": 999,
                    "total_price": int(self.price * 1e9),
                }
            elif item["status"] != "running":
                item |= {
                    "error": {"message": "row 3 is bad"},
                    "events": [{"type": "job_error", "message": "row 3 is bad"}],
                }
        return 200, item

    def _page(self, items: list[dict[str, Any]], query: dict[str, str]) -> tuple[int, Page]:
        first = 0
        if after := query.get("after"):
            places = [i for i, item in enumerate(items) if item["id"] == after]
            if not places:
                return 404, {"error": {"message": f"No such object: {after}", "type": "invalid_request_error"}}
            first = places[0] + 1
        size = min(int(query.get("limit", 20)), self.most)
        data = items[first : first + size]
        ends = {"first_id": data[0].get("id"), "last_id": data[-1].get("id")} if data else {}
        return 200, {"object": "list", "data": data, "has_more": first + size < len(items), **ends}

    def _of_job(self, name: str, kind: str) -> list[dict[str, Any]]:
        if kind == "checkpoints":
            return [
                {
                    "id": f"ftckpt-{name}", "object": "fine_tuning.job.checkpoint", "created_at": 1_772_302_000,
                    "fine_tuned_model_checkpoint": f"{MODEL}:ckpt-step-90", "fine_tuning_job_id": name,
                    "metrics": {"step": 90, "train_loss": 0.4}, "step_number": 90,
                }
            ]  # fmt: skip
        return [
            {
                "id": f"ftevent-{i}", "object": "fine_tuning.job.event", "created_at": 1_772_300_000 + i, "level": "info",
                "message": f"Step {i}", "type": "metrics", "data": {"step": i, "train_loss": 1.0 / i},
            }
            for i in range(30, 0, -1)
        ]  # fmt: skip

    def _answered(self, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        text = self.answer(body)
        scores = {"content": [{"token": text, "logprob": -0.1, "bytes": None, "top_logprobs": []}], "refusal": None}
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [{**choice, "logprobs": scores if body.get("logprobs") else None}],
            "usage": {"prompt_tokens": 40, "completion_tokens": 2, "total_tokens": 42},
        }  # fmt: skip


def _streamed(answer: dict[str, Any]) -> bytes:
    """A chat completion as server-sent events: its text, why it ended, its usage."""
    (choice,), head = answer["choices"], {**answer, "object": "chat.completion.chunk"}
    deltas = [
        {"delta": choice["message"], "finish_reason": None},
        {"delta": {}, "finish_reason": choice["finish_reason"]},
    ]
    chunks = [{**head, "choices": [{"index": 0, **delta}], "usage": None} for delta in deltas]
    return b"".join(
        b"data: %b\n\n" % item
        for item in (*(json.dumps(chunk).encode() for chunk in (*chunks, {**head, "choices": []})), b"[DONE]")
    )


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    """Serve it; its address, with `/v1`, is in `url`."""

    class Handler(Quiet):
        def any(self) -> None:
            path, body = self.path, self.body()
            service.calls.append(f"{self.command} {path}")
            service.before(path)
            # Another server's files, which whoever has their address may fetch: the key must not get there.
            if self.headers.get("Authorization") != (None if "/signed/" in path else f"Bearer {KEY}"):
                self.answer(
                    401, {"error": {"message": "Incorrect API key provided: sk-***", "code": "invalid_api_key"}}
                )
                return
            fault = next(
                (
                    answers.pop(0)
                    for name, answers in service.faults.items()
                    if answers and re.search(name, service.calls[-1])
                ),
                None,
            )
            if isinstance(fault, tuple):
                status, headers, text = fault
                self.answer(status, {"error": {"message": text}}, headers)
                return
            status, value = service.reply(self.command, path, body, self.headers.get("Content-Type", ""))
            if isinstance(fault, int):
                status, value = fault, {"error": {"message": "upstream is gone"}}
            if fault == "cut":
                text = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text[: len(text) // 2])
                self.close_connection = True
                return
            self.answer(status, value)

        do_GET = do_POST = any

    with listening(Handler) as url:
        service.url = f"{url}/v1"
        yield service
