"""One small run of tuneloop's own loop on the processor; prints how much resident memory grew.

Used by benchmarks/plan.py, one process a run: `python benchmarks/plan_loop_run.py '{"method": "lora", ...}'`.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> None:
    from tuneloop.core.device import memory_now, release_memory
    from tuneloop.models.chat.template import Rendered
    from tuneloop.models.load import load_model
    from tuneloop.training.config import TrainConfig
    from tuneloop.training.loop import train

    rows, length, shared = int(job["micro_batch"]), int(job["seq_len"]), int(job["shared"])
    rng = random.Random(0)
    beginning = [rng.randrange(1000, 40000) for _ in range(shared)]
    learned = max(round(job["learned"] * length), 1)

    def row() -> Rendered:
        ids = beginning + [rng.randrange(1000, 40000) for _ in range(length)]
        return Rendered(ids, [0.0] * (len(ids) - learned) + [1.0] * learned)

    model = load_model(str(job["model"]), dtype=str(job["dtype"]))
    config = TrainConfig.model_validate({
        "method": job["method"], "rank": job["rank"], "targets": job["targets"], "prefix_tokens": job["prefix_tokens"], "epochs": 1,
        "rows_per_step": rows, "micro_batch_tokens": rows * (shared + length), "evaluations": 1, "on_divergence": "warn",
    })  # fmt: skip
    train_rows, val_rows = [row() for _ in range(rows * int(job["steps"]))], [row() for _ in range(4)]
    release_memory()
    before = memory_now()
    with tempfile.TemporaryDirectory() as folder:
        done = train(model, train_rows, val_rows, config, Path(folder))
    print(json.dumps({"resident_gib": before, "growth_gib": done.peak_memory_gib - before}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
