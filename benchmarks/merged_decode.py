"""What merging a served adapter into the base gains: tokens per second of the processor, next to the base and to the adapter alongside it.

    python benchmarks/merged_decode.py RUN [--rows 4] [--tokens 32]

RUN is a finished LoRA run with test rows. Its prompts are answered one at a time and all together, by one thread, and the
answers compared: rounding to the weights' dtype changes some.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from tuneloop.core.files import read_jsonl
from tuneloop.inference.generate import answer_requests
from tuneloop.inference.request import Request
from tuneloop.models.adapters import BASE
from tuneloop.models.alongside import load_adapter_alongside, merge_adapter
from tuneloop.models.load import Model, load_model
from tuneloop.records.record import read_record
from tuneloop.records.rows import Row
from tuneloop.records.run import RunManifest


def answered(
    model: Model, prompts: list[list[int]], adapter: str, tokens: int, at_once: int
) -> tuple[float, list[tuple[int, ...]]]:
    """Tokens per second of the processor, and the answers."""
    requests = [Request(ids=prompt, max_new_tokens=tokens, adapter=adapter) for prompt in prompts]
    began, found = time.process_time(), []
    for start in range(0, len(requests), at_once):
        found += list(answer_requests(model, requests[start : start + at_once]))
    written = sum(each.completion_tokens for each in found)
    return written / (time.process_time() - began), [tuple(each.token_ids) for each in found]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = read_record(RunManifest, given.run).model
    side, merged = load_model(base), load_model(base)
    name = load_adapter_alongside(side, given.run)
    merge_adapter(merged, given.run)
    rows = [Row.from_json(line) for line in read_jsonl(given.run / "dataset" / "test.jsonl")][: given.rows]
    prompts = [side.template.prompt_ids(row.prompt, row.tools) for row in rows]
    print(
        f"{'at a time':>9} {'base':>7} {'alongside':>9} {'merged':>7} {'merged / alongside':>18} {'equal answers':>13}"
    )
    for at_once in (1, len(rows)):
        by_base, _ = answered(side, prompts, BASE, given.tokens, at_once)
        by_side, apart = answered(side, prompts, name, given.tokens, at_once)
        by_merged, together = answered(merged, prompts, name, given.tokens, at_once)
        equal = sum(a == b for a, b in zip(apart, together, strict=True))
        print(
            f"{at_once:>9} {by_base:>7.1f} {by_side:>9.1f} {by_merged:>7.1f} {by_merged / by_side:>18.2f} {equal:>6} of {len(rows)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
