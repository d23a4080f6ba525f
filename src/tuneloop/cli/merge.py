"""`tuneloop merge`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tuneloop.cli.console import Result
from tuneloop.cli.parameters import argument, screen
from tuneloop.combine import AUTO, MergeOptions, TaskJudgeOptions
from tuneloop.core.flag import flag
from tuneloop.core.ui import say

if TYPE_CHECKING:
    from tuneloop.records.merge import MergeRecord, TaskDeployment


def command(
    adapters: list[str] = argument("ADAPTER...", "Runs, artifacts, NAME@ALIAS or PEFT folders, all of one base."),
    out: str = flag(..., "RUN", "Folder of the merged run.", "-o"),
    *,
    how: MergeOptions,
    judging: TaskJudgeOptions,
) -> Result:
    """Merge adapters of one base into one, in the folder of a run.

    What is merged is the product of each adapter's matrices, so adapters may differ in rank, scale and modules. With
    the test rows of all tasks, each task judges the merged model, and one that loses too much stays with its expert.
    Exit status 1: a task lost more than allowed.
    """
    from tuneloop.combine import MergeSettings, can_judge, merge_runs, merge_tasks, open_experts

    settings = MergeSettings(how.method, _numbers(how.weights), how.rank)
    with screen("merging"):
        experts = open_experts(adapters, how.base)
        why_not = "" if judging.no_judge or len(experts) < 2 else can_judge(experts)
        if judging.no_judge or why_not or len(experts) < 2:
            if settings.method == AUTO:
                reason = why_not or "leave --no-judge out"
                raise typer.BadParameter(f"--method auto judges by each task's rows: {reason}")
            if why_not:
                say(f"task      not judged: {why_not}")
            record: MergeRecord | None = merge_runs(experts, settings, Path(out))
            deployment = None
        else:
            record, deployment = merge_tasks(experts, settings, Path(out), judging)
    tasks = deployment.to_json() if deployment else None
    answer = {"path": out, **(record.to_json() if record else {}), "deployment": tasks}
    routed = deployment is not None and (record is None or record.routed)
    return Result(answer, _lines(record, deployment, out), int(bool(routed)))


def _lines(record: MergeRecord | None, deployment: TaskDeployment | None, out: str) -> Iterator[str]:
    from tuneloop.combine import unshown

    for warning in unshown(record.tasks) if record else ():
        yield f"warn: {warning}"
    for route in deployment.routes if deployment else ():
        yield f"{route.task} -> {route.target}"
    for task in record.tasks if record else ():
        share = f"{task.kept.value:.0%} [{task.kept.low:.0%}, {task.kept.high:.0%}]" if task.kept else "no gain shown"
        more = "" if task.random is None else f"  with a random adapter {task.random:.3f}"
        more += "  pooled: not trained (--pooled RUN)" if task.pooled is None else f"  pooled {task.pooled:.3f}"
        values = f"{task.metric} base {task.base:.3f}  expert {task.expert:.3f}  merged {task.merged:.3f}"
        yield f"  {task.task}: {values}  kept {share}{more}"
    if record:
        yield f"{out}  ({record.method}, rank {record.rank}, {record.lost:.1%} of the length lost)"
    else:
        yield "Nothing is merged: each task stays with its expert."


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise typer.BadParameter(f"--weights takes numbers with commas, as in 1,0.5: not {text!r}") from None
