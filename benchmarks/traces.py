"""Traces of another tool in bounded memory: killed twice, counted, and the commands and pages on them, as a table.

    python benchmarks/traces.py [--format litellm|otel] [--traces 1000000] [--data FOLDER] [--folder FOLDER]

Needs traces (the Azure LLM inference trace of 2023) and taskmaster4_feedback (not part of this repository) under FOLDER:
times and numbers of tokens of the one, texts of the other. `litellm`: a row a call. `otel`: a trace has a span with user
and session, a span in it and one or two calls in that, and all spans of the file are in random order, so that most
calls come long before what they belong to. The import is killed (-9) while it reads and while it stores, and finished;
then it runs once more. Numbers of calls, users and conversations, tokens and dollars must equal what was written.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import ui  # noqa: E402

USERS, SPANS_A_LINE = 9973, 64
Call = dict[str, Any]


def calls_of(data: Path, number: int, every: int) -> Iterator[Call]:
    """Calls with a time, tokens and texts; each trace has one, each `every`th a second one (0: none has)."""
    files = [file.read_text().splitlines() for file in sorted(data.glob("traces/azure_2023_*.csv"))]
    arrivals = [row for file in files for row in csv.DictReader(file)]
    lines = (data / "taskmaster4_feedback" / "all.jsonl").read_text("utf-8").splitlines()
    texts = [turn["content"] for line in lines for turn in json.loads(line)["messages"] if turn.get("content")]
    for i in range(number):
        row = arrivals[i % len(arrivals)]
        start = datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC)
        read, written = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        for part in range(2 if every and i % every == 0 else 1):
            yield {
                "trace": i, "part": part, "start": start + timedelta(days=i // len(arrivals), seconds=part),
                "seconds": 0.2 + 0.02 * written, "read": read, "written": written,
                "usd": read * 3e-7 + written * 12e-7, "user": f"user-{i % USERS}", "session": f"session-{i // 5}",
                "prompt": texts[(i + part) % len(texts)], "answer": texts[(i * 7 + 1) % len(texts)],
            }  # fmt: skip


def litellm_row(call: Call) -> dict[str, Any]:
    """A row of LiteLLM_SpendLogs."""
    first, end = (call["start"] + timedelta(seconds=seconds) for seconds in (0.2, call["seconds"]))
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": call["answer"]}}
    return {
        "request_id": f"chatcmpl-{call['trace']:08x}", "call_type": "acompletion", "spend": call["usd"],
        "prompt_tokens": call["read"], "completion_tokens": call["written"], "model": "gpt-4o-mini",
        "model_group": "support", "startTime": call["start"].isoformat(), "completionStartTime": first.isoformat(),
        "endTime": end.isoformat(), "end_user": call["user"], "session_id": call["session"], "status": "success",
        "messages": [{"role": "user", "content": call["prompt"]}], "response": {"choices": [choice]},
    }  # fmt: skip


def spans_of(call: Call) -> Iterator[dict[str, Any]]:
    """The call's span; with a trace's first call also the two around it."""
    trace, begin = f"{call['trace'] + 1:032x}", int(call["start"].timestamp() * 1e9)

    def span(id_: int, parent: int, name: str, values: dict[str, Any]) -> dict[str, Any]:
        attributes = [
            {"key": key, "value": {"stringValue" if isinstance(value, str) else "doubleValue": value}}
            for key, value in values.items()
        ]
        return {
            "traceId": trace, "spanId": f"{id_:016x}", "parentSpanId": f"{parent:016x}" if parent else "",
            "name": name, "startTimeUnixNano": str(begin), "endTimeUnixNano": str(begin + int(call["seconds"] * 1e9)),
            "attributes": attributes,
        }  # fmt: skip

    if not call["part"]:
        yield span(1, 0, "agent", {"user.id": call["user"], "session.id": call["session"]})
        yield span(2, 1, "chain", {})
    said = {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.usage.input_tokens": float(call["read"]), "gen_ai.usage.output_tokens": float(call["written"]),
        "gen_ai.usage.cost": call["usd"],
        "gen_ai.input.messages": json.dumps([{"role": "user", "content": call["prompt"]}]),
        "gen_ai.output.messages": json.dumps([{"role": "assistant", "content": call["answer"]}]),
    }  # fmt: skip
    yield span(3 + call["part"], 2, "chat", said)


def write(file: Path, format: str, data: Path, number: int) -> dict[str, float]:
    """Write the export; returns what must be in the store."""
    sums = {"calls": 0, "read": 0, "written": 0, "usd": 0.0}
    users, sessions, spans = set(), set(), []
    with file.open("w") as out:
        for call in calls_of(data, number, 3 if format == "otel" else 0):
            sums["calls"] += 1
            for name in ("read", "written", "usd"):
                sums[name] += call[name]
            users.add(call["user"])
            sessions.add(call["session"])
            if format == "litellm":
                out.write(json.dumps(litellm_row(call)) + "\n")
            else:
                spans += map(json.dumps, spans_of(call))
        random.Random(0).shuffle(spans)
        for i in range(0, len(spans), SPANS_A_LINE):
            some = ", ".join(spans[i : i + SPANS_A_LINE])
            out.write(f'{{"resourceSpans": [{{"scopeSpans": [{{"spans": [{some}]}}]}}]}}\n')
    return sums | {"users": len(users), "conversations": len(sessions)}


def measured(*text: str, until: Callable[[], bool] | None = None) -> tuple[float, int, str]:
    """Seconds, most memory in MB and output of a command, which is killed (-9) as soon as `until` says so."""
    with tempfile.TemporaryFile("w+") as out, open(os.devnull, "w") as nowhere:
        begin, peak = time.perf_counter(), 0
        process = subprocess.Popen([sys.executable, "-m", "tuneloop", *text], stdout=out, stderr=nowhere)
        while process.poll() is None:
            peak = max(peak, peak_mb(process.pid))
            if until is not None and until():
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.1)
        seconds = time.perf_counter() - begin
        if process.returncode not in ((0, 1, 3) if until is None else (-signal.SIGKILL,)):
            raise SystemExit(f"tuneloop {' '.join(text)} ended with {process.returncode}")
        out.seek(0)
        return seconds, peak, out.read()


def peak_mb(pid: int) -> int:
    """The most memory that a process has had until now; 0: it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


def in_store(path: Path) -> dict[str, float]:
    """What is in the store."""
    query = """SELECT count(*), count(DISTINCT id), sum(prompt_tokens), sum(completion_tokens), sum(usd),
        count(DISTINCT user), count(DISTINCT conversation) FROM requests"""
    with sqlite3.connect(f"file:{path / 'store.db'}?mode=ro", uri=True) as base:
        names = ("calls", "ids", "read", "written", "usd", "users", "conversations")
        return dict(zip(names, base.execute(query).fetchone(), strict=True))


def stored(path: Path) -> int:
    """How many requests are in the store while it is being written."""
    try:
        with sqlite3.connect(f"file:{path / 'store.db'}?mode=ro", uri=True, timeout=5) as base:
            return int(base.execute("SELECT coalesce(max(rowid), 0) FROM requests").fetchone()[0])
    except sqlite3.Error:
        return 0


def import_all(format: str, file: Path, path: Path, sums: dict[str, float]) -> None:
    """Import with two kills, check what is there, and import again."""
    text = ("import", format, str(file), "--store", str(path), "--json")
    calls, size = int(sums["calls"]), file.stat().st_size

    def read_half() -> bool:
        return sum(part.stat().st_size for part in path.glob("import-*.db")) > 0.3 * size

    runs = [measured(*text, until=read_half), measured(*text, until=lambda: stored(path) > calls // 3)]
    held = stored(path)
    runs.append(measured(*text))
    found = in_store(path)
    assert found.pop("ids") == calls, found
    assert all(math.isclose(found[name], sums[name], rel_tol=1e-9) for name in sums), (found, sums)
    assert held < calls and not list(path.glob("import-*.db*"))
    seconds, memory = sum(run[0] for run in runs), max(run[1] for run in runs)
    print(f"{calls:,} calls in {size / 1e6:,.0f} MB of {format}; killed after {runs[0][0]:.0f} s while it read and after "
          f"{runs[1][0]:.0f} s more, with {held:,} stored")  # fmt: skip
    print(f"imported in {seconds:.0f} s ({calls / seconds:,.0f} a second), {memory} MB of memory; calls, users, "
          "conversations, tokens and dollars are those of the file")  # fmt: skip
    seconds, memory, answer = measured(*text)
    summary = json.loads(answer)
    assert (summary["requests"], summary["known"]) == (0, calls) and in_store(path)["calls"] == calls
    print(f"again: nothing new, {seconds:.0f} s, {memory} MB\n")


def show_commands(data: Path, folder: Path, location: Path) -> None:
    """Print what commands and pages take on the store."""
    rows = folder / "rows.jsonl"
    sides = (("user", "prompt"), ("assistant", "answer"))
    chats = [[{"role": role, "content": call[name]} for role, name in sides] for call in calls_of(data, 3000, 0)]
    rows.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    measured("prepare", str(rows), "--out", str(folder / "rows"), "--quiet")
    with sqlite3.connect(f"file:{location / 'store.db'}?mode=ro", uri=True) as base:
        end, request = base.execute("SELECT max(time), min(id) FROM requests").fetchone()
    window = ("--reference", str(folder / "rows"), "--until", end)
    commands = {
        "costs": ("costs", "--folder", str(location)),
        "monitor, a week": ("monitor", str(location), *window),
        "monitor, a day": ("monitor", str(location), *window, "--window", "1d"),
        "collect show": ("collect", "show", "--store", str(location)),
    }
    print("| command | seconds | MB |\n|---|---|---|")
    for name, command in commands.items():
        seconds, memory, _ = measured(*command, "--json")
        print(f"| {name} | {seconds:.1f} | {memory} |")
    print("\n| page | first after a start, ms | first time | median | most |\n|---|---|---|---|---|")
    paths = ("/", "/traffic", f"/traffic/{request}", "/traffic?text=order", "/traffic?text=zebra", "/quality", "/costs")
    starts = [ui.start_ms(path, location.parent, "") for path in paths]
    with ui.pages(location.parent, "") as (_, address, _):
        for path, start in zip(paths, starts, strict=True):
            page = ui.load_page(address, path, start)
            times = (page.start_ms, page.first_ms, page.median_ms, page.most_ms)
            print(f"| `{path}` | {' | '.join(f'{ms:.0f}' for ms in times)} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", choices=("litellm", "otel"), default="litellm")
    parser.add_argument("--traces", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--folder", type=Path, help="of the store, which stays; one that is there is only asked")
    options = parser.parse_args()
    if not (options.data / "taskmaster4_feedback").is_dir():
        sys.exit(f"No folder {options.data}/taskmaster4_feedback: name that of the data sets with --data")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "serve"
        if not (path / "store.db").is_file():
            file = Path(scratch) / "export.jsonl"
            sums = write(file, options.format, options.data, options.traces)
            import_all(options.format, file, path, sums)
        show_commands(options.data, folder, path)


if __name__ == "__main__":
    main()
