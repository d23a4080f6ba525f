"""Answers to a few validation rows at each validation, so that whoever watches a run sees them develop.

They are next to the checkpoints and go with them: the evaluation has all answers of a run that is done.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from tuneloop.core.files import user_errors_of_the_disk
from tuneloop.core.machine import processes
from tuneloop.core.ui import quiet
from tuneloop.inference.local import generate
from tuneloop.records.run import ANSWERS
from tuneloop.training.budget import forward_pace, limit_of
from tuneloop.training.rows import TrainRow, conversations
from tuneloop.training.run import OutOfTime, TrainingRun

ROWS, TOKENS = 3, 48  # rows that are answered, and tokens of an answer at most
SHARE = 0.02  # of the run's time: where an answer takes longer, there are fewer
LONGEST = 500  # characters of a prompt's end


def write_answers(run: TrainingRun, rows: Sequence[TrainRow]) -> None:
    """Append the answers of the weights as they are to the first validation rows; greedy, so no random number is drawn.

    A model that is divided over processes, or compiled, gives none: it would wait for its parts, or compile again.
    There are none either while they have taken more than `SHARE` of the run's time; where that is limited, none that
    would take more of it: what has begun is given up.
    """
    if processes() > 1 or run.config.compile or run.answering_seconds > SHARE * run.state.seconds:
        return
    began, limit = time.monotonic(), limit_of(run.config, run.state)
    ends_at = began + SHARE * limit - run.answering_seconds
    parts = [part for row in rows[:ROWS] if not (part := conversations(row)[0]).mask[0]]  # it begins with a prompt
    prompts = [part.ids[: sum(1 for _ in takewhile(lambda weight: not weight, part.mask))] for part in parts]
    decode = run.model.template.decode
    if began + forward_pace(run.state) * sum(map(len, prompts)) > ends_at:
        return

    def watch(*_: Any) -> None:
        if time.monotonic() > ends_at:
            raise OutOfTime

    try:
        with quiet():
            answers = generate(run.model, prompts, max_new_tokens=TOKENS, watch=None if math.isinf(limit) else watch)
    except OutOfTime:
        run.answering_seconds += time.monotonic() - began
        return
    lines = [
        {"prompt": decode(prompt)[-LONGEST:], "reference": decode(part.ids[len(prompt) :]), "answer": answer.text}
        for prompt, part, answer in zip(prompts, parts, answers, strict=True)
    ]
    path = run.out / ANSWERS
    with user_errors_of_the_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": run.state.step, "rows": lines}, ensure_ascii=False) + "\n")
    run.answering_seconds += time.monotonic() - began
