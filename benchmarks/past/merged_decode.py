"""What merging a served adapter into the base gains: tokens per second of the processor, next to the base and to the adapter alongside it.

    python benchmarks/past/merged_decode.py [--base smollm2-135m] [--rows 4] [--tokens 24] [--rounds 3]

The adapter is random, of rank 16 on all linear layers. Prompts are answered one at a time and all together, by one thread, in turns; the
fastest round of each counts. Under a minute. The answers are compared: rounding to the weights' dtype changes some.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from tuneloop.inference.local.generate import answer_requests
from tuneloop.inference.request import Request
from tuneloop.models.adapters import BASE
from tuneloop.models.load import Model, load_model
from tuneloop.models.lora import LoraShape, adapter_state, add_lora, lora_layers, save_adapter, target_names
from tuneloop.models.shared import add_adapter, merge_adapter

QUESTIONS = (
    "Name three uses of a paper clip.",
    "Why is the sky blue? Answer in two sentences.",
    "Write a short letter to a landlord about a broken heater.",
    "What should one look for when buying a used bicycle?",
)


def random_adapter(base: str, folder: Path) -> Path:
    """Write a LoRA of random weights that changes answers a little."""
    model = load_model(base)
    shape = LoraShape(16, 32.0, 0.0, target_names(model.net, "all-linear"))
    add_lora(model.net, shape, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in lora_layers(model.net).values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.002)
    save_adapter(folder, adapter_state(model.net), shape, base, model.fingerprint)
    return folder


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
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = random_adapter(given.base, Path(scratch))
        side, merged = load_model(given.base), load_model(given.base)
        name = add_adapter(side, folder)
        merge_adapter(merged, folder)
    asked = [QUESTIONS[i % len(QUESTIONS)] for i in range(given.rows)]
    prompts = [side.template.prompt_ids([{"role": "user", "content": question}]) for question in asked]
    print(
        f"{'at a time':>9} {'base':>7} {'alongside':>9} {'merged':>7} {'merged / alongside':>18} {'equal answers':>13}"
    )
    ways = {"base": (side, BASE), "alongside": (side, name), "merged": (merged, name)}
    for at_once in (1, len(prompts)):
        speeds, answers = dict.fromkeys(ways, 0.0), {}
        for _ in range(given.rounds):
            for way, (model, adapter) in ways.items():
                speed, answers[way] = answered(model, prompts, adapter, given.tokens, at_once)
                speeds[way] = max(speeds[way], speed)
        equal = sum(a == b for a, b in zip(answers["alongside"], answers["merged"], strict=True))
        print(
            f"{at_once:>9} {speeds['base']:>7.1f} {speeds['alongside']:>9.1f} {speeds['merged']:>7.1f} "
            f"{speeds['merged'] / speeds['alongside']:>18.2f} {equal:>6} of {len(prompts)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
