"""What distilling costs: storing a teacher's probabilities next to writing answers, and steps next to a plain step.

    python benchmarks/distill.py [--file FILE.jsonl of {"prompt", ...}] [--rows N] [--tokens N] [--times N]

The teacher is the packaged model, the student its first 15 layers, all of whose weights learn. Seconds are the processor's, the
median of repetitions that take turns, so that another job on the machine counts little. Every line has its baseline next to it:
storing while writing or in a second pass next to writing the answers, a step next to the plain step of the same rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL, LAYERS, TOP = "smollm2-135m", 15, 128
TOPICS = (
    "a lost parcel",
    "a broken lamp",
    "a refund",
    "an open tab at a bar",
    "a late train",
    "a new phone",
    "a lease",
    "a cat",
)


def prompts(file: str, rows: int) -> list[str]:
    """Texts to answer: of a file, or made."""
    if file:
        return [json.loads(line)["prompt"] for line in Path(file).read_text().splitlines()[:rows]]
    return [
        f"Write a polite letter, number {i}, about {TOPICS[i % len(TOPICS)]}, in six sentences." for i in range(rows)
    ]


def seconds(work: Callable[[], Any]) -> float:
    """Processor time of a piece of work."""
    began = time.process_time()
    work()
    return time.process_time() - began


def medians(works: dict[str, Callable[[], Any]], times: int) -> dict[str, float]:
    """Median seconds of each, taking turns; the first round is not counted."""
    rounds = [{name: seconds(work) for name, work in works.items()} for _ in range(times + 1)][1:]
    return {name: statistics.median(item[name] for item in rounds) for name in works}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", default="")
    for name, default in (("--rows", 32), ("--tokens", 48), ("--times", 5)):
        parser.add_argument(name, type=int, default=default)
    given = parser.parse_args()

    import torch

    from tuneloop.core.threads import use_threads
    from tuneloop.inference.local.answers import answer_requests, generate
    from tuneloop.inference.request import Request
    from tuneloop.models.chat.template import Rendered
    from tuneloop.models.load import load_model
    from tuneloop.records.distillation import TeacherLogits
    from tuneloop.training import distil
    from tuneloop.training.config import TrainConfig
    from tuneloop.training.loss import supervised_states
    from tuneloop.training.rows import Taught
    from tuneloop.training.step import batch_loss
    from tuneloop.training.teachers import TopStore, row_key

    use_threads()
    teacher, student = load_model(MODEL), load_model(MODEL)
    student.net.model.layers = student.net.model.layers[:LAYERS]  # type: ignore[union-attr]
    student.net.requires_grad_(True)
    ids = [teacher.template.prompt_ids([{"role": "user", "content": text}]) for text in prompts(given.file, given.rows)]
    answers = generate(teacher, ids, max_new_tokens=given.tokens)
    rows = [
        Rendered([*prompt, *answer.token_ids], [0.0] * len(prompt) + [1.0] * len(answer.token_ids))
        for prompt, answer in zip(ids, answers, strict=True)
    ]
    learned = sum(int(sum(row.mask)) for row in rows)
    about = TeacherLogits(teacher=MODEL, teacher_key="", vocabulary=teacher.head.shape[0], top=TOP, temperature=1.0)
    with tempfile.TemporaryDirectory() as scratch:
        places = iter(range(1000))

        def store() -> TopStore:
            made = TopStore.create(Path(scratch) / str(next(places)), about)
            distil.store_probabilities(teacher, rows, made)
            return made

        def write_and_store() -> None:
            states: dict[str, list[Any]] = {str(i): [] for i in range(len(ids))}

            def watch(some: Any, hidden: Any) -> None:
                for row, state in zip(some, hidden, strict=True):
                    if row is not None:
                        states[row.request.id].append(state)

            asked = [Request(ids=prompt, max_new_tokens=given.tokens, id=str(i)) for i, prompt in enumerate(ids)]
            answer_requests(teacher, asked, watch=watch)
            kept = TopStore.create(Path(scratch) / str(next(places)), about)
            distil.store_states(teacher, rows, torch.stack([item for state in states.values() for item in state]), kept)

        def forward() -> None:
            with torch.inference_mode():
                states = supervised_states(teacher, rows)
                for part in torch.split(states.hidden_NC, 512):
                    _ = part @ teacher.head.t()

        took = medians(
            {
                "write": lambda: generate(teacher, ids, max_new_tokens=given.tokens),
                "both": write_and_store,
                "forward": forward,
                "store": store,
            },
            given.times,
        )
        kept = store()
        print(
            f"{len(rows)} rows, {sum(map(len, ids)) / len(ids):.0f} tokens of prompt, {learned / len(rows):.0f} of answer"
        )
        print(f"writing the answers            {took['write']:7.2f} s")
        print(f"the same, {TOP} tokens stored    {took['both']:7.2f} s   {took['both'] / took['write']:.2f} of writing")
        print(
            f"a pass over them, not stored   {took['forward']:7.2f} s   {took['forward'] / took['write']:.2f} of writing"
        )
        print(
            f"the same, {TOP} tokens stored    {took['store']:7.2f} s   {took['store'] / took['write']:.2f} of writing"
        )
        print(f"bytes of a position            {kept.width:7d}")
        micro = rows[:8]
        plain = TrainConfig(method="full")
        live = TrainConfig(method="full", loss="distil", teacher=MODEL)
        stored = live.model_copy(update={"teacher": str(kept.folder)})
        keyed = [Taught(row.ids, row.mask, row_key(row)) for row in micro]

        def step(config: TrainConfig, some: Any) -> Callable[[], None]:
            def run() -> None:
                batch_loss(student, some, 1.0, config).backward()  # type: ignore[no-untyped-call]
                student.net.zero_grad(set_to_none=True)

            return run

        def teacher_forward() -> None:
            with torch.no_grad():
                supervised_states(teacher, micro)

        jensen = live.model_copy(update={"divergence": "jensen-shannon"})
        took = medians({
            "plain step": step(plain, micro), "teacher's forward pass": teacher_forward, "stored, forward KL": step(stored, keyed),
            "live, forward KL": step(live, keyed), "live, Jensen-Shannon": step(jensen, keyed),
        }, given.times)  # fmt: skip
    budget = 1.6 * took["plain step"] + took["teacher's forward pass"]
    for name, value in took.items():
        print(f"{name:30s} {value:7.2f} s   {value / took['plain step']:.2f} of a plain step")
    print(
        f"1.6 plain steps and a teacher's forward pass: {budget:.2f} s; live takes {took['live, forward KL'] / budget:.2f} of it"
    )


if __name__ == "__main__":
    main()
