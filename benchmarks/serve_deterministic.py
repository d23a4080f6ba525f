"""What deterministic answers cost our engine: tokens a second and latency, with and without, in turns.

    python benchmarks/serve_deterministic.py [--rounds 5] [--rows 1,4,16] [--threads 1] [--adapters 2]

SmolLM2-135M in bf16. Each round answers the same requests with `deterministic` off and on, the order changing from
round to round, for each number of rows at a time: prompts of 20 to 200 tokens, answers of 24; and labels, of 40. Given
are medians of the rounds' ratios: of the wall clock, and of the processor's time, which other programs disturb less. Then
it is counted how many answers are those of the same request alone.

    python benchmarks/serve_deterministic.py --differences 24 [--rounds 6] [--tokens 48] [--dtype bfloat16]

Is another text under load a near tie or a fault? So many prompts are answered alone, and each round in an order and
company of its own, the next ones arriving while others are written. At the first token that differs, given is the gap
between the log probabilities that both tokens have alone. Given is as well by how much company changes the log
probability of a token that stays the same (`company`), and, for comparison, by how much another adapter does: a request
that was computed with another one's adapter or keys would show it (`other_adapter`, the median).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "helpers")]
WORDS = (
    "rain", "wind", "parcel", "refund", "account", "order", "city", "river", "table", "salt", "train", "why", "how",
    "long", "please", "cold", "summer", "ticket",
)  # fmt: skip


def questions(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.choice([8, 20, 60, 150]))) for _ in range(count)]


def written(model: Any, requests: Sequence[Any], rows: int) -> list[Any]:
    """Answers of an engine that computes so many rows at a time."""
    from tuneloop.inference.local.engine import Engine

    engine = Engine(model, rows=rows)
    tickets = [engine.submit(request) for request in requests]
    while engine.pending:
        engine.step()
    return [ticket.completion for ticket in tickets]


def chosen(model: Any, requests: Sequence[Any], rows: int) -> list[Any]:
    """Labels, of so many requests at a time."""
    from tuneloop.inference.labels import label_ids, label_trie
    from tuneloop.inference.local.scoring import choose_for

    labels = [f"{first} {second}" for first in WORDS[:8] for second in WORDS[8:13]]
    trie = label_trie(labels, label_ids(model.template, labels))
    groups = [requests[i : i + rows] for i in range(0, len(requests), rows)]
    return [answer for group in groups for answer in choose_for(model, group, trie, prune=True)]


def content(answer: Any) -> tuple[Any, ...]:
    return answer.text, answer.token_ids, answer.logprobs, answer.label_scores


def timed(work: Callable[[], list[Any]]) -> tuple[list[Any], tuple[float, float]]:
    """A result, and the seconds of the clock and of the processor that it took."""
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.perf_counter() - clock, time.process_time() - processor)


def in_company(model: Any, requests: Sequence[Any], rows: int, draw: random.Random) -> list[Any]:
    """Answers, by the requests' order, where they arrive one by one while others are being written."""
    from tuneloop.inference.local.engine import Engine

    engine, tickets = Engine(model, rows=rows), dict[int, Any]()
    left = draw.sample(range(len(requests)), len(requests))
    while left or engine.pending:
        for at in [left.pop() for _ in range(min(draw.choice([0, 0, 1, 1, 2, 5]), len(left)))]:
            tickets[at] = engine.submit(requests[at])
        if engine.pending:
            engine.step()
    return [tickets[at].completion for at in range(len(requests))]


def compared(alone: Any, other: Any) -> tuple[float | None, list[float]]:
    """The gap at the first token that differs (inf: the other one is not among those next to it alone; None: none
    differs), and changes of log probabilities before it."""
    changes: list[float] = []
    for ours, theirs in zip(alone.logprobs, other.logprobs, strict=False):
        if ours.id != theirs.id:
            return ours.logprob - dict(ours.top).get(theirs.id, -float("inf")), changes
        changes.append(abs(ours.logprob - theirs.logprob))
    return (None if len(alone.token_ids) == len(other.token_ids) else float("inf")), changes


def differences(model: Any, requests: Sequence[Any], names: Sequence[str], options: argparse.Namespace) -> None:
    """Print a line for each width of the batch, without and with `deterministic`."""
    from dataclasses import replace

    from tuneloop.models.nn.batch_invariance import batch_invariant

    def other(request: Any) -> Any:
        return replace(request, adapter=names[(names.index(request.adapter) + 1) % len(names)], max_new_tokens=1)

    for on in (False, True) if options.dtype == "bfloat16" else (False,):
        with batch_invariant(on):
            alone = [written(model, [request], 1)[0] for request in requests]
            first = [written(model, [other(request)], 1)[0].logprobs[0] for request in requests]
            control = [
                abs(a.logprobs[0].logprob - dict(b.top)[a.logprobs[0].id])
                for a, b in zip(alone, first, strict=True)
                if a.logprobs[0].id in dict(b.top)
            ]
            for rows in map(int, options.rows.split(",")):
                draw, gaps, changes, by_request = random.Random(rows), [], [], set()
                for _ in range(options.rounds):
                    answers = in_company(model, requests, rows, draw)
                    for at, (a, b) in enumerate(zip(alone, answers, strict=True)):
                        gap, those = compared(a, b)
                        changes += those
                        if gap is not None:
                            gaps.append(gap)
                            by_request.add(at)
                print(json.dumps({
                    "dtype": options.dtype, "deterministic": on, "rows": rows, "answers": options.rounds * len(requests),
                    "different": len(gaps), "of_prompts": len(by_request), "gaps": [round(g, 4) for g in sorted(gaps)],
                    "company": round(max(changes, default=0.0), 4),
                    "company_p99": round(sorted(changes)[int(0.99 * len(changes))], 4),
                    "other_adapter": round(statistics.median(control), 4), "tokens": len(changes),
                }), flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", default="1,4,16", help="rows that are computed at a time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--adapters", type=int, default=2, help="that the requests name in turn, next to the base")
    parser.add_argument("--requests", type=int, default=16, help="of a round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--differences", type=int, default=0, metavar="PROMPTS", help="look at what differs instead")
    parser.add_argument("--tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="for --differences")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch
    from adapters import write_adapter

    from tuneloop.inference.request import Request
    from tuneloop.models.adapters.assignment import BASE
    from tuneloop.models.adapters.shared import add_adapter
    from tuneloop.models.files.names import resolve
    from tuneloop.models.load import load_model
    from tuneloop.models.nn.batch_invariance import batch_invariant

    torch.set_num_threads(options.threads)
    base = Path(resolve("smollm2-135m"))
    model = load_model(str(base), dtype=options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        places = [
            write_adapter(base, Path(folder) / str(seed), seed, 0.1 if options.differences else 0.02)
            for seed in range(options.adapters)
        ]
        names = [BASE, *(add_adapter(model, path) for path in places)]
    requests = [
        Request(
            ids=model.template.prompt_ids([{"role": "user", "content": text}]),
            max_new_tokens=options.tokens,
            adapter=names[i % len(names)],
            logprobs=20 if options.differences else 1,
        )
        for i, text in enumerate(questions(options.differences or options.requests))
    ]
    if options.differences:
        differences(model, requests, names, options)
        return
    results = []
    for kind, answer in (("text", written), ("labels", chosen)):
        alone: dict[bool, list[Any]] = {}
        for on in (False, True):
            with batch_invariant(on):
                alone[on] = [content(answer(model, [request], 1)[0]) for request in requests]
        for rows in map(int, options.rows.split(",")):
            seconds: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
            same = {False: 0, True: 0}
            for turn in range(options.rounds):
                for on in (False, True) if turn % 2 else (True, False):
                    with batch_invariant(on):
                        answers, took = timed(partial(answer, model, requests, rows))
                    seconds[on].append(took)
                    same[on] = sum(content(a) == b for a, b in zip(answers, alone[on], strict=True))
            ratios = [
                statistics.median(a[i] / b[i] for a, b in zip(seconds[True], seconds[False], strict=True))
                for i in (0, 1)
            ]
            results.append({"kind": kind, "rows": rows, "time": ratios[0], "processor": ratios[1],
                            "same_off": same[False], "same_on": same[True], "of": len(requests)})  # fmt: skip
            if not options.json:
                print("  ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in results[-1].items()), flush=True)  # fmt: skip
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
