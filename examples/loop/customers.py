"""Simulated customers of a shop: they send tickets to a server and rate the answers. They know HTTP and nothing else.

    python customers.py http://127.0.0.1:8100 tickets.jsonl --model queue --customers 200 --seconds 60 --seed 1

Each line of the file is a ticket with its `text` and the `queue` in which it belongs, as its writer knows it. There are two
kinds of customers:

- **careful** ones, 4 of 10, rate every answer, rightly 95 times in 100, and name the right queue where it was wrong;
- **hasty** ones rate every other answer, call a wrong one good 15 times in 100 and a right one bad 10 times in 100.

The same seed sends the same tickets, at the same moments, and makes the same mistakes. One JSON object is printed: what was
sent, answered rightly, rated and refused.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CAREFUL = 0.4  # share of the careful customers
# Kind -> share of answers that are rated; of right ones called bad, of wrong ones called good; whether the queue is named.
KINDS = {"careful": (1.0, 0.05, 0.05, True), "hasty": (0.5, 0.10, 0.15, False)}
TRIES = 3


def post(url: str, path: str, body: dict[str, Any], user: str) -> dict[str, Any]:
    """Send JSON and read JSON; a server that is busy or away gets the request again a little later."""
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "x-tuneloop-user": user}
    for attempt in range(TRIES):
        try:
            request = urllib.request.Request(url + path, data, headers)
            with urllib.request.urlopen(request, timeout=120) as reply:
                found: dict[str, Any] = json.load(reply)
                return found
        except urllib.error.HTTPError as error:
            if error.code not in (429, 503) or attempt == TRIES - 1:
                raise
        except urllib.error.URLError:
            if attempt == TRIES - 1:
                raise
        time.sleep(2.0 * (attempt + 1))
    raise AssertionError("the last attempt returns or raises")


def visit(url: str, model: str, user: str, ticket: dict[str, str], seed: str) -> list[str]:
    """One customer: a ticket, its answer, and what is said of it. Returns what happened, in words."""
    rng = random.Random(seed)
    kind = "careful" if rng.random() < CAREFUL else "hasty"
    rates, bad_though_right, good_though_wrong, names = KINDS[kind]
    try:
        found = post(url, "/v1/classify", {"model": model, "input": ticket["text"]}, user)["data"][0]
    except (OSError, KeyError, ValueError):
        return ["refused"]
    right = found["label"] == ticket["queue"]
    happened = ["sent", kind, *(["right"] if right else [])]
    if rng.random() >= rates:
        return happened
    mistaken = rng.random() < (bad_though_right if right else good_though_wrong)
    said: list[dict[str, Any]] = [{"kind": "thumbs", "value": right != mistaken}]
    if names and not right and not mistaken:
        said.append({"kind": "label", "value": ticket["queue"]})
    for item in said:
        try:
            post(url, "/v1/feedback", {"request": found["id"], **item}, user)
        except (OSError, ValueError):
            return [*happened, "feedback refused"]
        happened.append(str(item["kind"]))
    return happened


def main() -> None:
    """Send the customers and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("tickets", type=Path)
    parser.add_argument("--model", default="queue")
    parser.add_argument("--customers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0, help="they come evenly over this time")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    tickets = [json.loads(line) for line in asked.tickets.read_text(encoding="utf-8").splitlines()]
    rng = random.Random(asked.seed)
    # Each ticket once before any comes a second time.
    order = [ticket for _ in range(asked.customers // len(tickets) + 1) for ticket in rng.sample(tickets, len(tickets))]
    counts: Counter[str] = Counter()
    lock = threading.Lock()
    begun = time.monotonic()

    def come(number: int) -> None:
        user = f"customer-{asked.seed}-{number}"
        happened = visit(asked.url, asked.model, user, order[number], f"{asked.seed}/{number}")
        with lock:
            counts.update(happened)

    with ThreadPoolExecutor(16) as pool:
        for number in range(asked.customers):
            time.sleep(max(0.0, begun + asked.seconds * number / asked.customers - time.monotonic()))
            pool.submit(come, number)
    names = ("sent", "right", "careful", "hasty", "thumbs", "label", "refused", "feedback refused")
    print(json.dumps({name.replace(" ", "_"): counts[name] for name in names}))


if __name__ == "__main__":
    main()
