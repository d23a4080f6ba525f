"""The loop's simulated customers: they know HTTP alone, come by their seed, and say what is true, most of the time."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from live_server import live

from places import ROOT
from tuneloop.serving.gateway import ServedModel
from tuneloop.serving.store.store import opened, read_feedback, read_requests

CUSTOMERS = ROOT / "examples" / "loop" / "customers.py"


def send(address: str, tickets: Path, seed: int = 1) -> dict[str, int]:
    text = [address, str(tickets), "--model", "queue", "--customers", "60", "--seconds", "0.5", "--seed", str(seed)]
    done = subprocess.run([sys.executable, str(CUSTOMERS), *text], capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("script", ["customers.py", "loop.py"])
def test_the_scripts_import_nothing_of_tuneloop(script: str) -> None:
    tree = ast.parse((CUSTOMERS.parent / script).read_text(encoding="utf-8"))
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names and not any(name.startswith("tuneloop") for name in names)


def test_no_ticket_is_both_trained_on_and_sent_and_the_new_line_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("loop", CUSTOMERS.parent / "loop.py")
    assert spec is not None and spec.loader is not None
    loop = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "loop", loop)
    spec.loader.exec_module(loop)
    tickets = ROOT / "examples" / "tickets" / "tickets.jsonl"
    asked = argparse.Namespace(tickets=tickets, first_rows=240, seconds=45.0)
    files = loop.divide(loop.Shop(tmp_path, asked))
    parts = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in files.items()}
    truth = {row["text"]: row["queue"] for row in map(json.loads, tickets.read_text(encoding="utf-8").splitlines())}
    texts = [row["text"] for name in ("first", "known", "launch", "after") for row in parts[name]]
    assert len(texts) == len(set(texts)), "customers send what no model has been trained on"
    assert all(truth[row["text"]] != row["queue"] for row in parts["planted"])
    lines = {name: {row["queue"] for row in rows} for name, rows in parts.items()}
    assert "subscription" not in lines["first"] | lines["known"] and "subscription" in lines["launch"] & lines["after"]


def test_two_kinds_of_customers_send_rate_and_put_right(tmp_path: Path) -> None:
    rows = [{"text": f"ticket {i}", "queue": ("billing", "delivery")[i % 2]} for i in range(80)]
    tickets = tmp_path / "tickets.jsonl"
    tickets.write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = {"queue": ServedModel("queue", labels=("billing", "delivery"))}  # the engine chooses the first one
    with live(tmp_path / "serve", models=models) as (address, _):
        found = send(address, tickets)
    assert found["sent"] == found["careful"] + found["hasty"] == 60 and found["refused"] == 0
    assert 10 <= found["careful"] <= 40 and found["thumbs"] < 60
    truth = {row["text"]: row["queue"] for row in rows}
    with opened(tmp_path / "serve") as store:
        asked = {request.id: request for request in read_requests(store)}
        said = list(read_feedback(store))
    assert len({entry.user for entry in asked.values()}) == 60
    right = {id_: truth[str(entry.prompt[-1]["content"])] == "billing" for id_, entry in asked.items()}
    assert sum(right.values()) == found["right"]
    for item in said:
        if item.kind == "label":
            assert item.value == truth[str(asked[item.request or ""].prompt[-1]["content"])] != "billing"
    thumbs = Counter(entry.value == right[entry.request or ""] for entry in said if entry.kind == "thumbs")
    assert thumbs[True] > 4 * thumbs[False]


def test_the_same_seed_sends_the_same_customers(tmp_path: Path) -> None:
    tickets = tmp_path / "tickets.jsonl"
    tickets.write_text("".join(json.dumps({"text": f"ticket {i}", "queue": "a"}) + "\n" for i in range(70)))
    models = {"queue": ServedModel("queue", labels=("a", "b"))}
    counts = []
    for number, seed in enumerate((1, 1, 2)):
        with live(tmp_path / str(number), models=models) as (address, _):
            counts.append(send(address, tickets, seed))
    assert counts[0] == counts[1] != counts[2]
