"""Our test rows and scorers as a task of Inspect, for others to run again.

`scorers.py` in the folder holds the source of our own metrics, so that the scores are ours wherever it runs; it needs
nothing of tuneloop.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_jsonl, write_text
from tuneloop.core.units import counted
from tuneloop.evaluation.metrics import labels, text
from tuneloop.evaluation.metrics.kinds import are_structured, problem_of
from tuneloop.evaluation.metrics.labels import label_lists
from tuneloop.records.rows import Row, references_of

TOOLS = ("inspect",)


@dataclass(frozen=True)
class TaskRows:
    """What is exported: rows with their task, and how they are put to a model.

    Args:
        name: of the task; `labels`: allowed ones, None: the rows are texts; `max_tokens`: of an answer.
        model, url: what the written commands ask.
    """

    name: str
    rows: Sequence[Row]
    labels: Sequence[str] | None
    max_tokens: int
    model: str = "MODEL"
    url: str = "http://127.0.0.1:8100/v1"

    @property
    def metrics(self) -> list[str]:
        """The metrics that the task computes."""
        return ["exact_match", "token_f1"] if self.labels is None else ["accuracy"]


def write_task(task: TaskRows, tool: str, out: Path) -> str:
    """Write a task's folder; returns the command that runs it.

    Raises:
        UserError: an unknown tool, or rows that it can't put or these scorers can't score.
    """
    if tool not in TOOLS:
        raise UserError(f"No such tool {tool!r}", where="--as", next_step=f"choose {', '.join(TOOLS)}")
    _refuse_others(task)
    records = [
        {"id": row.id, "messages": row.prompt, "references": references_of(row), "label": row.label}
        | {"meta": {n: v for n, v in row.meta.items() if isinstance(v, str | int | float)}}
        for row in task.rows
    ]
    write_jsonl(out / "rows.jsonl", records)
    write_text(out / "scorers.py", _scorers(task))
    return _inspect(task, out)


def _refuse_others(task: TaskRows) -> None:
    where, step = task.name, "measure them with tuneloop evaluate"
    if not task.rows or not all(row.prompt for row in task.rows):
        raise UserError("There are no rows with prompts", where=where, next_step="give rows with prompts and answers")
    if any(problem_of(row) for row in task.rows):
        raise UserError("Programs with unit tests can't be exported", where=where, next_step=step)
    if any(row.tools for row in task.rows):
        raise UserError("Rows with tools can't be exported", where=where, next_step=step)
    several = task.labels is not None and label_lists(task.rows) is not None
    if several or (task.labels is None and are_structured([references_of(row) for row in task.rows])):
        subject = "Rows with several labels" if several else "Answers in JSON"
        raise UserError(f"{subject} can't be exported: a task scores one label or a text", where=where, next_step=step)


def _scorers(task: TaskRows) -> str:
    """The source of the metrics that a task needs, as it is here."""
    head = [
        '"""Scores of answers, as tuneloop computes them; written by `tuneloop data export`."""\n',
        "from __future__ import annotations\n",
        "import json\nimport string\nimport unicodedata\nfrom collections import Counter",
        "from collections.abc import Callable, Mapping, Sequence\nfrom pathlib import Path\n",
        'ROWS = [json.loads(line) for line in (Path(__file__).parent / "rows.jsonl").open(encoding="utf-8")]',
        'BY_ID = {row["id"]: row for row in ROWS}',
    ]
    if task.labels is None:
        head.append("_NO_ASCII_PUNCTUATION = str.maketrans('', '', string.punctuation)\n\n")
        parts: list[Any] = [text._squad_words, text.exact_match, text.token_f1]
        end = 'SCORES = {"exact_match": exact_match, "token_f1": token_f1}\n\n\n'
        end += "def score(metric: str, row: dict, answer: str) -> float:\n"
        end += '    return SCORES[metric](row["references"], answer)\n'
    else:
        head.append(f"LABELS = {list(task.labels)!r}\n\n")
        parts = [labels._folded, labels._bare, labels.label_matcher]
        end = 'SCORES = ("accuracy",)\n_LABEL_FORMS = (str.strip, _folded, _bare)\n'
        end += 'MATCH = label_matcher(LABELS, {row["references"][0]: row["label"] for row in ROWS})\n\n\n'
        end += "def score(metric: str, row: dict, answer: str) -> float:\n"
        end += '    return float(MATCH(answer) == row["label"])\n'
    sources = "\n\n".join(inspect.getsource(part) for part in parts)
    return "\n".join(head) + sources + "\n\n" + end


_INSPECT_TASK = '''"""{n} as a task of Inspect; written by `tuneloop data export`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import scorers
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig
from inspect_ai.scorer import Score, mean, scorer, stderr
from inspect_ai.solver import generate

TURNS = {{"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}}


def of(metric):
    @scorer(metrics=[mean(), stderr()], name=metric)
    def made():
        async def score(state, target):
            answer = state.output.completion
            return Score(value=scorers.score(metric, scorers.BY_ID[str(state.sample_id)], answer), answer=answer)

        return score

    return made()


@task
def {name}():
    samples = [
        Sample(
            id=row["id"],
            input=[TURNS[turn["role"]](content=turn["content"]) for turn in row["messages"]],
            target=row["references"],
            metadata=row["meta"],
        )
        for row in scorers.ROWS
    ]
    return Task(
        dataset=MemoryDataset(samples, name={name!r}),
        solver=generate(),
        scorer=[of(metric) for metric in {metrics!r}],
        config=GenerateConfig(temperature=0, max_tokens={max_tokens}),
    )
'''


def _inspect(task: TaskRows, out: Path) -> str:
    name = "".join(c if c.isalnum() else "_" for c in task.name)
    n, limit = counted(len(task.rows), "row"), task.max_tokens
    name = name if name[:1].isalpha() else f"rows_{name}"
    write_text(out / "task.py", _INSPECT_TASK.format(n=n, name=name, metrics=task.metrics, max_tokens=limit))
    url = task.url
    # Inspect takes no absolute path of a task.
    return f"cd {out} && inspect eval task.py --model openai-api/tuneloop/{task.model} --model-base-url {url}"
