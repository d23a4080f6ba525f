"""Values that a change of the code's shape must not move: losses, hashes, metrics, plans, replies, decisions, pages.

    python benchmarks/golden.py record FILE              # before the change
    python benchmarks/golden.py compare FILE [--tolerance 0]    # after it, on the same machine: to the last digit
    python benchmarks/golden.py compare --only data,serve --keep FOLDER    # some groups; the texts that are hashed

`benchmarks/golden.json` holds the values of the main branch; a test compares with a tolerance, since processors add in different
orders. Whoever means to change a value records that file again in the same commit, and says why; with `--only` the other groups'
values stay in it. What differs from run to run is replaced before it is compared (`constant`). Two minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import math
import os
import random
import re
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import tuneloop
from tuneloop.cli.main import main as command
from tuneloop.core.files import read_json, read_jsonl, read_yaml, write_json, write_jsonl, write_yaml
from tuneloop.training.device_checks import small_llama

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # as a script it has its own folder there
from benchmarks import golden_edges  # noqa: E402

GOLDEN = Path(__file__).with_name("golden.json")
RATE = {"learning_rate": 0.01, "epochs": 1, "rows_per_step": 16}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "qlora": {"method": "qlora", "rank": 4},
    "prefix": {"method": "prefix"},
    "full": {"method": "full", "learning_rate": 0.001},
    "dpo": {"loss": "dpo", "rank": 4},
    "kto": {"loss": "kto", "rank": 4},
}
DATA = {"dpo": "pairs", "kto": "thumbs"}  # the others train on labels
PLANS = [
    f"plan --model {model} --method {method} --gpu {gpu} --tokens 2000000 --seq-len 1024 --json"
    for model, gpu in (("llama-3.2-1b", "l4"), ("llama-3.1-8b", "a100-80gb"), ("llama-3.1-8b", "h100-sxm"), ("llama-3.3-70b", "h200"))
    for method in ("lora", "qlora", "full")
]  # fmt: skip


def write_sources(folder: Path) -> None:
    """Rows with labels, pairs and thumbs: three shapes of data."""
    tickets = [
        {"text": row["text"][:300], "label": row["queue"]}
        for row in read_jsonl(ROOT / "examples" / "tickets" / "tickets.jsonl")[:64]
    ]
    write_jsonl(folder / "labels.jsonl", tickets)
    write_jsonl(folder / "pairs.jsonl", [
        {"prompt": row["text"], "chosen": f"Queue: {row['label']}", "rejected": "I can't say."} for row in tickets
    ])  # fmt: skip
    write_jsonl(folder / "thumbs.jsonl", [
        {"prompt": row["text"], "completion": f"Queue: {row['label']}" if i % 2 else "I can't say.", "label": bool(i % 2)}
        for i, row in enumerate(tickets)
    ])  # fmt: skip


def dataset(folder: Path, model: str, name: str) -> Path:
    """A prepared set, made where it is not there yet."""
    if not (folder / name).is_dir():
        tuneloop.prepare(str(folder / f"{name}.jsonl"), out=folder / name, name=name, model=model, seed=0)
    return folder / name


def trained(folder: Path, model: str, name: str) -> Path:
    """A run of `METHODS`, made where it is not there yet."""
    out = folder / "runs" / name
    if not out.is_dir():
        rows = dataset(folder, model, DATA.get(name, "labels"))
        tuneloop.train(str(rows), out=out, model=model, seed=0, **(RATE | METHODS[name]))
    return out


def evaluated(folder: Path, model: str, name: str) -> Path:
    """An evaluation of the run `lora` (`tuned`) or of the base, made where it is not there yet."""
    out = folder / f"eval-{name}"
    if not out.is_dir():
        target = str(trained(folder, model, "lora")) if name == "tuned" else model
        tuneloop.evaluate(target, str(dataset(folder, model, "labels")), out=out, bootstrap=200)
    return out


def data_values(folder: Path, model: str) -> Iterator[tuple[str, Any]]:
    """Hashes and counts of the prepared sets."""
    for name in ("labels", "pairs", "thumbs"):
        manifest = read_json(dataset(folder, model, name) / "dataset.json")
        yield f"data.{name}.hash", manifest["hash"]
        yield f"data.{name}.rejected", manifest["rejected"]


def training_values(folder: Path, model: str, names: Sequence[str] = tuple(METHODS)) -> Iterator[tuple[str, Any]]:
    """Losses of methods and losses, step by step."""
    for name in names:
        records = read_jsonl(trained(folder, model, name) / "metrics.jsonl")
        yield f"train.{name}.losses", [record["loss"] for record in records if "grad_norm" in record]
        yield f"train.{name}.val_losses", [record["val_loss"] for record in records if "val_loss" in record]


def evaluation_values(folder: Path, model: str) -> Iterator[tuple[str, Any]]:
    """Metrics of a run, of its base, and of a file of predictions."""
    for name in ("tuned", "base"):
        yield f"evaluate.{name}", metrics_of(evaluated(folder, model, name))
    data = dataset(folder, model, "labels")
    rows = read_jsonl(data / "test.jsonl")
    answers = [{"id": row["id"], "prediction": row["label"] if i % 3 else "other"} for i, row in enumerate(rows)]
    write_jsonl(folder / "answers.jsonl", answers)
    out = folder / "eval-answers"
    output_of(
        "evaluate", folder / "answers.jsonl", "--dataset", data, "--out", out, "--quiet", "evaluate.bootstrap=200"
    )
    yield "evaluate.predictions", metrics_of(out)


def metrics_of(folder: Path) -> dict[str, list[float]]:
    """Each metric of an `eval.json` with its interval."""
    found = read_json(folder / "eval.json")["metrics"]
    return {name: [match["value"], match["low"], match["high"]] for name, match in found.items()}


def plan_values() -> Iterator[tuple[str, Any]]:
    """Memory and time of jobs on cards, by the formulas."""
    for line in PLANS:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            command(line.split())
        plan = json.loads(printed.getvalue())
        figures = [plan["memory"]["peak_gib"], plan["memory"]["required_gib"], plan["time"]["hours"]]
        yield " ".join(line.split()[:-5]), [plan["fits"], *figures]


# --- commands, and what of their output is constant ----------------------------------------------------


def output_of(*text: str | Path, statuses: Sequence[int] = (0,)) -> str:
    """What a command prints.

    Raises:
        RuntimeError: it ends with another exit status.
    """
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = command([str(word) for word in text])
    if status not in statuses:
        raise RuntimeError(f"exit status {status}: tuneloop {' '.join(map(str, text))}")
    return printed.getvalue()


@contextlib.contextmanager
def clock(day: float) -> Iterator[None]:
    """Stored events happen at this day of the traffic."""
    with mock.patch.dict(os.environ, {"TUNELOOP_CLOCK": f"{(BEGIN + timedelta(days=day)).timestamp()},0"}):
        yield


PATTERNS = [
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+00:00| UTC)?", "TIME"),
    (r"\d{1,2} [A-Z][a-z]+ 20\d\d|20\d\d-\d\d-\d\d", "DATE"),
    (r"127\.0\.0\.1:\d+", "HOST"),
    (r"api:[0-9a-f]{32}", "api:KEY"),  # of idempotency, with the request's id in it
]
MEASURED = [  # in pages of runs and evaluations
    (r'<svg class="chart [^>]*aria-label="Tokens a second.*?</svg>', "SPEED"),
    (r"\d[\d,.]* GiB", "MEMORY"),
    (r"\d[\d,.]* (ms|s|min|h)\b", "DURATION"),
    (r"\$\d[\d,.]*", "PRICE"),
    (r"\d[\d,.]* tokens/s", "SPEED"),
    (r"took\s+(?:\d+\s%\s\w+|[\d.]+\stimes\sas\smuch)", "took OTHERWISE"),
    (r"\d+\s%\sof\s\d+\sGFLOP/s,\sthe\smeasured\speak|not\sknown:\sthe\smachine\swas\sbusy[^<]*", "PEAK"),
    (r"width:[\d.]+%", "width:SOME"),
    (r"\b[0-9a-f]{40}(-dirty)?", "COMMIT"),
]
SHOWN = [(r'<svg class="chart [^>]*aria-label="Memory.*?</svg>', "MEMORY")]  # on pages of `tuneloop ui`
HASHES = [  # in an artifact's texts: hashes of files that name folders and times, their sizes, hours and dollars of the run
    (r"\b[0-9a-f]{64}\b", "HASH"),
    (r'"bytes": \d+', '"bytes": COUNT'),
    (r'"value": "\d+\.\d+"', '"value": MEASURED'),
]
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"
CLOCKED = {"ttft_ms", "total_ms", "seconds", "hours", "utilisation", "created", "created_at", "place", "chain", "head"}


def constant(text: str, folder: Path, more: Sequence[tuple[str, str]] = ()) -> str:
    """A text without what differs from run to run: the folder, times, addresses; ids become their number in the text.

    Args:
        folder: all files are below it.
        more: further patterns, and what each is replaced by.
    """
    text = text.replace("<wbr>", "")
    for path in (str(folder), str(folder).replace("_", "\\_")):  # as LaTeX writes it
        text = text.replace(path, "FOLDER")
    for pattern, word in [*more, *PATTERNS]:
        text = re.sub(pattern, word, text, flags=re.DOTALL)
    ids: dict[str, str] = {}
    return re.sub(UUID, lambda match: ids.setdefault(match[0], f"ID{len(ids)}"), text)


def unclocked(value: Any) -> Any:
    """A JSON value in which measured times and hashes over ids are `MEASURED`."""
    if isinstance(value, dict):
        return {k: "MEASURED" if k in CLOCKED and v is not None else unclocked(v) for k, v in value.items()}
    return [unclocked(item) for item in value] if isinstance(value, list) else value


def constant_json(value: Any, folder: Path, more: Sequence[tuple[str, str]] = ()) -> Any:
    """`constant` for a JSON value as a whole, so that an id has the same number everywhere in it."""
    return json.loads(constant(json.dumps(unclocked(value)), folder, more))


def digest(content: str | bytes) -> str:
    """SHA-256 of a text or of bytes, in hex."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def hashes_of(folder: Path, patterns: Sequence[str] = ("**/*",)) -> dict[str, str]:
    """The hash of each file below a folder by its path."""
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in files}


# --- a server ------------------------------------------------------------------------------------------


class Upstream(BaseHTTPRequestHandler):
    """An engine that says how many words it was sent; one that is to break answers with an error."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        models = {"object": "list", "data": [{"id": "stub", "object": "model", "max_model_len": 512}]}
        self._reply(*((200, json.dumps(models)) if self.path == "/v1/models" else (404, "{}")))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.path.endswith("/chat/completions")
        text = " ".join(turn["content"] for turn in body["messages"]) if chat else body.get("prompt", "")
        if "break" in text:
            return self._reply(500, '{"error": {"message": "it broke"}}')
        sentence = f"I read {len(text.split())} words, the last one is {text.split()[-1]} ".split(" ")
        sentence = sentence[: body["max_tokens"]]
        pieces: list[dict[str, Any]] = [{"content": f"{word} "} if chat else {"text": f"{word} "} for word in sentence]
        choices = [{"index": 0, "delta": piece} if chat else {"index": 0, **piece} for piece in pieces]
        choices.append({"index": 0, "finish_reason": "length" if len(sentence) == body["max_tokens"] else "stop"})
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": len(sentence)}
        events = [{"choices": [choice]} for choice in choices] + [{"choices": [], "usage": usage}]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        return self._reply(200, "".join(lines) + "data: [DONE]\n\n", "text/event-stream")

    def _reply(self, status: int, content: str, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content.encode())))
        self.end_headers()
        self.wfile.write(content.encode())


@contextlib.contextmanager
def upstream() -> Iterator[str]:
    """The address of a running `Upstream`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def serving(folder: Path, *text: str) -> Iterator[str]:
    """The address of `tuneloop serve`; once it is stopped, all that was sent is in its store."""
    line = [sys.executable, "-m", "tuneloop", "serve", *text, f"folder={folder}", "port=0", "--json", "--quiet"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield json.loads(server.stdout.readline())["address"]
        finally:
            server.terminate()


def reply_of(address: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Status and body of a reply; of a stream its lines."""
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = urllib.request.Request(address + path, content, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(sent, timeout=60) as reply:
            status, text = reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    if "\ndata: " in f"\n{text}":
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        return {"status": status, "events": [json.loads(line) if line[0] == "{" else line for line in lines]}
    with contextlib.suppress(ValueError):
        return {"status": status, "body": json.loads(text)}
    return {"status": status, "body": text}


def rows_of(store: Path) -> dict[str, list[dict[str, Any]]]:
    """What the tables of a store hold, in the order of storing."""
    with contextlib.closing(sqlite3.connect(store)) as database:
        database.row_factory = sqlite3.Row
        tables = ("requests", "feedback", "decisions", "costs")
        return {table: [dict(row) for row in database.execute(f"SELECT * FROM {table} ORDER BY 1")] for table in tables}


def user(text: str, **more: Any) -> dict[str, Any]:
    """A request with one turn of a user."""
    return {"model": "stub", "messages": [{"role": "user", "content": text}], **more}


def serve_values(folder: Path, model: str) -> Iterator[tuple[str, Any]]:
    """Replies and stored rows: before a stub, and of a run that chooses labels."""
    calls: dict[str, tuple[Any, ...]] = {
        "models": ("/v1/models",),
        "health": ("/healthz",),
        "chat": ("/v1/chat/completions", user("Where is my parcel?", user="anna", max_tokens=8)),
        "personal": (
            "/v1/chat/completions",
            user("Write to jane.doe@example.com or call +1 202 555 0143, says Jane Doe"),
        ),
        "chat_stream": (
            "/v1/chat/completions",
            user("Tell me more", stream=True, stream_options={"include_usage": True}),
        ),
        "cut": ("/v1/chat/completions", user("Be short, please", max_tokens=3, temperature=0.5, seed=7)),
        "completion": ("/v1/completions", {"model": "stub", "prompt": "Once upon a time", "max_tokens": 20}),
        "completion_stream": ("/v1/completions", {"model": "stub", "prompt": "Once more", "stream": True}),
        "responses": ("/v1/responses", {"model": "stub", "input": "What do you read?"}),
        "error": ("/v1/chat/completions", user("Please break")),
        "error_stream": ("/v1/chat/completions", user("Please break", stream=True)),
        "unknown_model": ("/v1/chat/completions", user("Hi") | {"model": "other"}),
        "no_turns": ("/v1/chat/completions", {"model": "stub"}),
        "no_json": ("/v1/chat/completions", b"{"),
        "no_labels": ("/v1/classify", {"model": "stub", "input": "Where is my parcel?"}),
        "no_route": ("/v1/nothing",),
    }
    with upstream() as engine, serving(folder / "served", engine, "prices.input=1", "prices.output=2") as address:
        replies = {name: reply_of(address, *call) for name, call in calls.items()}
        thumb = {"request": replies["chat"]["body"]["id"], "kind": "thumbs", "value": "up", "user": "anna"}
        once = {"idempotency-key": "k1"}
        replies["thumb"] = reply_of(address, "/v1/feedback", thumb, once)
        replies["thumb_again"] = reply_of(address, "/v1/feedback", thumb, once)
        comment = {"request": replies["personal"]["body"]["id"], "kind": "comment", "value": "Call me: +1 202 555 0143"}
        replies["comment"] = reply_of(address, "/v1/feedback", comment)
        replies["bad_feedback"] = reply_of(address, "/v1/feedback", thumb | {"value": "sideways"})
        replies["openapi"] = {"sha256": digest(json.dumps(reply_of(address, "/openapi.json"), sort_keys=True))}
    rows = rows_of(folder / "served" / "store.db")
    both = constant_json([replies, rows], folder)
    yield from ((f"serve.reply.{name}", reply) for name, reply in both[0].items())
    yield from ((f"serve.rows.{table}", stored) for table, stored in both[1].items())
    log = folder / "log.jsonl"
    output_of("collect", "requests", "--out", log, "--folder", folder / "served", "--quiet")
    yield "serve.requests", constant_json(read_jsonl(log), folder)
    yield "serve.costs", constant_json(json.loads(output_of("costs", "--folder", folder / "served", "--json")), folder)

    run = trained(folder, model, "lora")
    text = read_jsonl(folder / "labels.jsonl")[0]["text"]
    calls = {
        "classify": ("/v1/classify", {"model": "lora", "input": text, "top": 3}),
        "labelled_chat": ("/v1/chat/completions", user(text) | {"model": "lora"}),
        "base_chat": ("/v1/chat/completions", user("Say something") | {"model": "model", "max_tokens": 12}),
    }
    with serving(folder / "served-run", str(run)) as address:
        replies = {name: reply_of(address, *call) for name, call in calls.items()}
    both = constant_json([replies, rows_of(folder / "served-run" / "store.db")], folder)
    yield from ((f"serve.reply.{name}", reply) for name, reply in both[0].items())
    yield "serve.run.rows.requests", both[1]["requests"]


# --- production: a monitor and an experiment ------------------------------------------------------------


BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
THINGS = ("parcel", "invoice", "password", "screen", "order", "voucher", "address", "delivery")
QUESTIONS = (
    "where is the {} that i wait for",
    "please send me the {} again",
    "my {} does not work any more",
    "who can change the {} for me",
)


def question(rng: random.Random) -> str:
    """What a user writes."""
    return f"{rng.choice(QUESTIONS).format(rng.choice(THINGS))} since {rng.randrange(1, 30)} days"


def at(days: float) -> str:
    """So many days after the beginning of the traffic, as records hold a time."""
    return (BEGIN + timedelta(days=days)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def traffic(store: Path) -> None:
    """Five weeks of requests in an experiment's arms, with thumbs; in the last week some ask for something new."""
    rng = random.Random(1)
    requests, feedback = [], []
    arms: dict[int, str] = {}
    for i in range(700):
        day, arm = i / 20, arms.setdefault(i % 500, rng.choice(["candidate", "champion"]))
        new = i >= 560 and i % 4 == 0
        text = f"my crypto wallet lost all tokens in the bridge {i}" if new else question(rng)
        tokens = rng.randrange(10, 30)
        requests.append(
            {
                "id": f"r{i:06d}", "time": at(day), "key": "", "model": "m", "user": f"u{i % 500}", "arm": arm,
                "propensity": 0.5, "prompt": json.dumps([{"role": "user", "content": text}]), "tools": "[]",
                "completion": json.dumps(f"answer {i % 7}"), "prompt_tokens": 10, "completion_tokens": tokens,
                "total_ms": round(rng.lognormvariate(5, 0.3), 3), "finish": "stop", "usd": tokens / 1e5, "place": i + 1,
            }
        )  # fmt: skip
        good = rng.random() < (0.9 if arm == "candidate" else 0.4)
        feedback.append(
            {"request": f"r{i:06d}", "kind": "thumbs", "value": good, "user": f"u{i % 500}", "time": at(day + 1 / 24)}
        )
    columns = list(requests[0])
    names = ", ".join(f'"{name}"' for name in columns)
    holders = ", ".join("?" * len(columns))
    with contextlib.closing(sqlite3.connect(store)) as database, database:
        lines = [list(row.values()) for row in requests]
        database.executemany(f"INSERT INTO requests ({names}) VALUES ({holders})", lines)
        database.execute("UPDATE places SET last = ?", [len(lines)])
    write_jsonl(store.with_name("thumbs.jsonl"), feedback)
    with clock(40):
        output_of("collect", "import", store.with_name("thumbs.jsonl"), "--store", store.parent)


def production(folder: Path) -> Path:
    """A server's folder with traffic that was monitored, and an experiment that was decided on."""
    path = folder / "production"
    if path.is_dir():
        return path
    with upstream() as engine, serving(path, engine):  # makes the store
        pass
    (path / "state.json").unlink()  # of a server with another model
    # The salt of an experiment decides who meets which arm, and is drawn by `secrets`.
    with clock(0), mock.patch.object(secrets, "token_hex", lambda size: "5a" * size):
        design = ["--no-shadow", "--ramp", "50,100", "--hold-days", "2", "--maturation-hours", "24"]
        output_of("ab", "start", "newer", "--model", "m", "--store", path, *design)
    traffic(path / "store.db")
    for day in (5, 20, 36):
        with clock(day):
            output_of("ab", "check", "newer", "--store", path, statuses=(0, 1, 3))
    rng = random.Random(0)
    texts = {question(rng): f"answer {i % 7}" for i in range(500)}
    write_jsonl(folder / "asked.jsonl", [{"prompt": text, "completion": answer} for text, answer in texts.items()])
    tuneloop.prepare(str(folder / "asked.jsonl"), out=folder / "asked", name="asked", duplicates={"near": False})
    with clock(36):
        sentence = ["--reference", folder / "asked", "--until", at(35), "--json"]
        report = output_of("monitor", path, *sentence, statuses=(0, 1))
    (path / "report.json").write_text(report)
    return path


def monitor_values(folder: Path, model: str) -> Iterator[tuple[str, Any]]:
    """The report on a week in which some requests are new."""
    report = constant_json(read_json(production(folder) / "report.json"), folder)
    yield from ((f"monitor.{name}", value) for name, value in report.items())


def ab_values(folder: Path, model: str) -> Iterator[tuple[str, Any]]:
    """An experiment's decisions, made again from the log, and the log itself."""
    path = production(folder)
    replayed = json.loads(output_of("ab", "replay", "newer", "--store", path, "--json"))
    yield "ab.replay", constant_json(replayed, folder)
    events = [{"kind": row["kind"], "key": row["key"], "data": json.loads(row["data"])}
              for row in rows_of(path / "store.db")["decisions"] if row["kind"].startswith("experiment.")]  # fmt: skip
    yield "ab.events", constant_json(events, folder)
    planned = output_of("ab", "plan", "--simulations", "100", "--json")
    yield "ab.plan", json.loads(planned)


# --- several models ---------------------------------------------------------------------------------------


def merge_values(folder: Path, model: str) -> Iterator[tuple[str, Any]]:
    """Weights of adapters that were merged."""
    adapters = [trained(folder, model, name) for name in ("lora", "dpo")]
    for method in ("linear", "svd", "cat"):
        out = folder / f"merged-{method}"
        output_of("merge", *adapters, "--out", out, "--method", method, "--no-judge", "--quiet")
        yield f"merge.{method}", hashes_of(out, ["**/*.safetensors"])


def distill_values(folder: Path, model: str) -> Iterator[tuple[str, Any]]:
    """What a distillation takes on rented GPUs."""
    data = dataset(folder, model, "labels")
    for level in ("text", "logits"):
        text = ["--dataset", data, "--out", folder / "student", "--level", level, "--plan", "--json"]
        planned = output_of("distill", "llama-3.1-8b", "llama-3.2-1b", *text)
        yield f"distill.{level}", json.loads(planned) | {"dataset": "labels"}


def route_values(folder: Path, model: str) -> Iterator[tuple[str, Any]]:
    """A router's weights, and how good it is."""
    rng = random.Random(3)
    with (folder / "outcomes.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["prompt", "small", "large"])
        for _ in range(300):
            text = question(rng)
            lines.writerow([text, int("parcel" in text or rng.random() < 0.3), int(rng.random() < 0.9)])
    path = folder / "router"
    sentence = ["--features", "words", "--cost", "small=1,large=5", "--out", path, "--quiet", "--json"]
    fitted = output_of("route", "fit", "--outcomes", folder / "outcomes.csv", *sentence)
    yield "route.fit", constant_json(json.loads(fitted), folder)
    from safetensors.numpy import load_file

    weights = load_file(path / "router.safetensors")  # numbers rather than a hash: their last bits depend on threads
    yield (
        "route.weights",
        {name: [*of.shape, *of.ravel()[:20].tolist(), float(of.sum())] for name, of in weights.items()},
    )
    yield "route.eval", constant_json(json.loads(output_of("route", "eval", path, "--json", "--quiet")), folder)


def exported(folder: Path, model: str, form: str) -> Path:
    """An artifact of the run `lora`, made where it is not there yet."""
    out = folder / f"artifact-{form}"
    if not out.is_dir():
        text = ["--format", form, "--out", out, "--measure", "0", "--force", "--quiet"]
        output_of("export", trained(folder, model, "lora"), *text)
    return out


def export_values(folder: Path, model: str) -> Iterator[tuple[str, Any]]:
    """Files of artifacts."""
    for form in ("adapter", "merged", "gguf", "gguf-lora"):
        out = exported(folder, model, form)
        files = hashes_of(out)
        for path in out.iterdir():
            if path.suffix in (".json", ".md") and path.name != "tokenizer.json":
                files[path.name] = digest(constant(path.read_text(), folder, HASHES))
        yield f"export.{form}", files


def deploy_values(folder: Path, model: str) -> Iterator[tuple[str, Any]]:
    """The project for each host, by the hashes of its files, and what it is said to cost."""
    for host in golden_edges.HOSTS:
        artifact = exported(folder, model, golden_edges.FORMS.get(host, "merged"))
        out = folder / f"deploy-{host}"
        text = ["--to", host, "--hub", "acme/tickets", "--name", "tickets", "--context", "256", "--dry-run", "--json"]
        written = json.loads(output_of("deploy", artifact, *text, "--out", out, "--quiet"))
        files = {path.name: digest(constant(path.read_text(), folder, HASHES)) for path in out.iterdir()}
        yield f"deploy.{host}", [constant_json(written, folder, HASHES), files]


# --- pages ----------------------------------------------------------------------------------------------


PAGES = (
    "advice", "asked.report", "compared.report", "eval-base.report", "eval-tuned.report", "labels.report",
    "production.improve.report", "runs.lora.report",
)  # fmt: skip


def page_values(folder: Path, model: str) -> Iterator[tuple[str, Any]]:
    """Hash and length of each page, without what differs from run to run."""
    run = trained(folder, model, "lora")
    data = dataset(folder, model, "labels")
    tuned, base = evaluated(folder, model, "tuned"), evaluated(folder, model, "base")
    output_of("compare", run, "--quiet")
    output_of("compare", tuned, base, "--out", folder / "compared", "--quiet")
    suite = folder / "suite.yaml"
    output_of("gate", data, "--init", "--suite", suite, "--quiet")
    rules = read_yaml(suite)
    rules.pop("latency", None)  # what this machine takes decides nothing here
    write_yaml(suite, rules)
    sentence = ["--against", base, "--suite", suite, "--no-model", "--quiet"]
    output_of("gate", tuned, *sentence, statuses=(0, 1, 3))  # its outcome is on the evaluation's page
    output_of("compare", tuned, "--quiet")
    output_of("improve", "report", production(folder))
    advice = ["--gpu", "l4", "--queries-per-day", "1000", "--html", folder / "advice.html", "--out", folder / "advised"]
    output_of("advise", data, *advice, "--quiet", statuses=(0, 1))
    for name in PAGES:
        text = (folder / f"{name.replace('.', '/')}.html").read_text()
        yield f"page.{name}", constant(text, folder, [] if name == "advice" else MEASURED)


def web_values(folder: Path, model: str) -> Iterator[tuple[str, Any]]:
    """The pages of `tuneloop ui` over a run with its data and a store, as files."""
    shown = folder / "shown"
    if not shown.is_dir():
        shown.mkdir()
        for source in (trained(folder, model, "lora"), dataset(folder, model, "labels"), production(folder)):
            shutil.copytree(source, shown / source.name)
    output_of("ui", shown, "--export", folder / "ui", "--store", shown / "production", "--quiet", "--json")
    pages = sorted((folder / "ui").rglob("*.html"))
    keys = {key: "KEY" for page in pages for key in re.findall(r"-([0-9a-f]{12})$", page.stem)}  # of folders' paths
    for page in pages:
        name = re.sub(r"-[0-9a-f]{12}$", "", page.stem)
        yield f"web.{name}", constant(page.read_text(), folder, [*keys.items(), *MEASURED, *SHOWN])


def reference_values(folder: Path, model: str) -> Iterator[tuple[str, Any]]:
    """The pages of all commands and settings, which change with them."""
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    yield "reference", digest(b"".join(page.read_bytes() for page in pages))


# --- all of them ------------------------------------------------------------------------------------------


def stated(values: Iterator[tuple[str, Any]], folder: Path) -> Iterator[tuple[str, Any]]:
    """Values without what differs from run to run."""
    of_path = [(r"import-[0-9a-f]{12}", "import-KEY")]
    return ((name, constant_json(value, folder, of_path)) for name, value in values)


Values = Callable[[Path, str], Iterator[tuple[str, Any]]]
GROUPS: dict[str, Values] = {
    "data": data_values,
    "train": training_values,
    "evaluate": evaluation_values,
    "plan": lambda folder, model: plan_values(),
    "serve": serve_values,
    "monitor": monitor_values,
    "ab": ab_values,
    "merge": merge_values,
    "distill": distill_values,
    "route": route_values,
    "export": export_values,
    "deploy": deploy_values,
    "import": lambda folder, model: stated(golden_edges.import_values(folder, output_of), folder),
    "migrate": lambda folder, model: stated(golden_edges.migrate_values(folder, output_of, hashes_of), folder),
    "agents": lambda folder, model: stated(golden_edges.agent_values(folder), folder),
    "page": page_values,
    "web": web_values,
    "reference": reference_values,
}


def of_groups(values: Mapping[str, Any], groups: Collection[str]) -> dict[str, Any]:
    """The values of some groups; a value's name begins with that of its group."""
    return {name: value for name, value in values.items() if re.split(r"[. ]", name)[0] in groups}


def measure(groups: Sequence[str] = tuple(GROUPS), keep: Path | None = None) -> dict[str, Any]:
    """The values of some groups, by name.

    Args:
        keep: folder that gets the pages as they are compared; None: they are not kept.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        model = str(small_llama(folder / "model"))
        write_sources(folder)
        values = {name: value for group in groups for name, value in GROUPS[group](folder, model)}
    for name in [name for name in values if name.startswith(("page.", "web."))]:
        text = values[name]
        values[name] = {"sha256": digest(text), "characters": len(text)}
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{name.replace('/', '.')}.html").write_text(text)
    return values


def differences(golden: Any, found: Any, tolerance: float, name: str = "") -> list[str]:
    """Where two sets of values differ: numbers by more than `tolerance` of their size, all else at all."""
    if isinstance(golden, Mapping) and isinstance(found, Mapping):
        names = list(dict.fromkeys([*golden, *found]))
        return [
            d for key in names for d in differences(golden.get(key), found.get(key), tolerance, f"{name} {key}".strip())
        ]
    if isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        pairs = enumerate(zip(golden, found, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, tolerance, f"{name}[{i}]")]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (golden, found))
    same = math.isclose(golden, found, rel_tol=tolerance, abs_tol=tolerance) if numbers else golden == found
    return [] if same else [f"{name}: {golden} before, {found} now"]


def main() -> None:
    """Record or compare, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["record", "compare"])
    parser.add_argument("file", nargs="?", default=str(GOLDEN))
    parser.add_argument("--tolerance", type=float, default=0.0, help="0: to the last digit")
    parser.add_argument("--only", default=",".join(GROUPS), help="groups, with commas; default: %(default)s")
    parser.add_argument("--keep", type=Path, help="folder for the pages as they are compared, to see what differs")
    options = parser.parse_args()
    groups = options.only.split(",")
    if unknown := set(groups) - set(GROUPS):
        parser.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    values = measure(groups, options.keep)
    golden = read_json(options.file) if Path(options.file).is_file() else {}
    if options.do == "record":
        write_json(options.file, {**of_groups(golden, set(GROUPS) - set(groups)), **values})
    elif lines := differences(of_groups(golden, groups), values, options.tolerance):
        sys.exit("\n".join(lines))
    print(f"{len(values)} values {'recorded' if options.do == 'record' else 'are the same'}")


if __name__ == "__main__":
    os.environ["TUNELOOP_DTYPE"] = "float32"
    os.environ["TUNELOOP_LEDGER"] = os.devnull  # a plan must not depend on runs of this machine
    main()
