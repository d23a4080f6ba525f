"""What deterministic answers cost our engine: tokens a second and latency, with and without, in turns.

    python benchmarks/serve_deterministic.py [--rounds 5] [--rows 1,4,16] [--threads 1] [--adapters 2]

SmolLM2-135M in bf16. Each round answers the same requests with `deterministic` off and on, the order changing from
round to round, for each number of rows at a time: prompts of 20 to 200 tokens, answers of 24; and labels, of 40. Given
are medians of the rounds' ratios: of the wall clock, and of the processor's time, which other programs disturb less. Then
it is counted how many answers are those of the same request alone.
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
    from tuneloop.inference.local.labels import label_ids, label_trie
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", default="1,4,16", help="rows that are computed at a time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--adapters", type=int, default=2, help="that the requests name in turn, next to the base")
    parser.add_argument("--requests", type=int, default=16, help="of a round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch
    from adapters import write_adapter

    from tuneloop.inference.request import Request
    from tuneloop.models.adapters import BASE
    from tuneloop.models.batch_invariance import batch_invariant
    from tuneloop.models.load import load_model
    from tuneloop.models.names import resolve
    from tuneloop.models.shared import add_adapter

    torch.set_num_threads(options.threads)
    base = Path(resolve("smollm2-135m"))
    model = load_model(str(base), dtype="bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        places = [write_adapter(base, Path(folder) / str(seed), seed, 0.02) for seed in range(options.adapters)]
        names = [BASE, *(add_adapter(model, place) for place in places)]
    requests = [
        Request(
            ids=model.template.prompt_ids([{"role": "user", "content": text}]),
            max_new_tokens=24,
            adapter=names[i % len(names)],
            logprobs=1,
        )
        for i, text in enumerate(questions(options.requests))
    ]
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
