"""General abilities by tasks of lm-eval (EleutherAI's harness), which scores; tuneloop does the forward passes."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.python_file import need_trust
from tuneloop.inference.request import Request
from tuneloop.models.template import Rendered

if TYPE_CHECKING:
    from tuneloop.inference.local.target import LocalTarget

PACKAGE = "lm_eval"
MOST_NEW = 256  # tokens of an answer, where the task names no number


@dataclass(frozen=True)
class TaskScores:
    """One metric of one task: its value as lm-eval aggregates it."""

    value: float
    each: Mapping[int, float]  # the score of each document by its number; empty where it is no mean of scores
    higher_is_better: bool = True


def harness_missing() -> str:
    """Why no task can be run here; empty where they can."""
    missing = importlib.util.find_spec(PACKAGE) is None
    return "lm-eval is not installed (pip install lm-eval)" if missing else ""


def run_tasks(
    target: LocalTarget, tasks: Sequence[str], *, limit: int | None = None
) -> dict[str, dict[str, TaskScores]]:
    """Run tasks of lm-eval (names of tasks or groups, or YAML files): name -> metric -> scores. `limit`: documents of a
    task. Raises UserError: a file that a folder names and the user has not. Raises Exception: whatever lm-eval raises
    for an unknown task, or one whose data are neither cached nor to be had."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    for task in tasks:
        if task.endswith((".yaml", ".yml")):
            need_trust(task, "evaluate.lm_eval")  # `!function` in it is Python
    files = [str(Path(task).resolve()) if task.endswith((".yaml", ".yml")) else task for task in tasks]
    options = {"limit": limit, "bootstrap_iters": 0, "task_manager": TaskManager(), "log_samples": True}
    results = simple_evaluate(_harness_model(target), tasks=files, **options)
    tables: dict[str, dict[str, TaskScores]] = {}
    for task, samples in results["samples"].items():
        scores = tables[task] = {}
        for name, value in results["results"][task].items():
            if "," in name and "_stderr" not in name and isinstance(value, int | float):
                higher = results["higher_is_better"][task].get(name.partition(",")[0], True)
                scores[name] = TaskScores(float(value), _each(samples, name), bool(higher))
    return tables


def _each(samples: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    """The scores of a metric and filter, as in `acc,none`."""
    metric, _, kind = name.partition(",")
    mine = [sample for sample in samples if sample.get("filter", kind) == kind]
    if not all(isinstance(sample.get(metric), int | float) for sample in mine):
        return {}  # of sums, as perplexity is
    return {int(sample["doc_id"]): float(sample[metric]) for sample in mine}


def _harness_model(target: LocalTarget) -> Any:
    from lm_eval.api.model import LM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    template, context = target.template, target.context
    begin = template.encode(str(template.variables.get("bos_token") or ""), control=True) or [template.end_ids[0]]
    adds_bos = begin[:1] if template.tokenizer.encode("a").ids[:1] == begin[:1] else []

    def fits(pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        rows = []
        for before, after in pairs:
            ids = [*before, *after][-context:]
            supervised = min(len(after), len(ids) - 1)
            rows.append(Rendered(ids, [0.0] * (len(ids) - supervised) + [1.0] * supervised))
        return [(-fit.loss, fit.verbatim) for fit in target.fits(rows, task="lm-eval")]

    def split(context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both, tokenised together; spaces at the border belong to the continuation."""
        stem = context.rstrip()
        whole = template.encode(context + continuation)
        before = template.encode(stem)
        return [*(adds_bos or ([] if before else begin)), *before], whole[len(before) :]

    class HarnessModel(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return fits([split(*request.args) for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            sums = []
            for request in requests:
                ids = template.encode(request.args[0])
                windows = get_rolling_token_windows(
                    token_list=ids, prefix_token=begin[0], max_seq_len=context - 1, context_len=1
                )
                sums.append(sum(loss for loss, _ in fits([make_disjoint_window(window) for window in windows])))
            return sums

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            prompts = []
            for request in requests:
                limit = min(int(request.args[1].get("max_gen_toks") or MOST_NEW), context // 2)
                prompt = [*adds_bos, *template.encode(request.args[0])][limit - context :]
                prompts.append(Request(ids=prompt, max_new_tokens=limit))
            answers = target.complete(prompts, task="lm-eval")
            stops = [request.args[1].get("until") or () for request in requests]
            return [_until(answer.text, stop) for answer, stop in zip(answers, stops, strict=True)]

    return HarnessModel()


def _until(text: str, stops: str | Sequence[str]) -> str:
    for stop in filter(None, [stops] if isinstance(stops, str) else stops):
        text = text.split(stop)[0]
    return text
