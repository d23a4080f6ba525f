"""A merged model judged by each expert's own rows, and what follows: which tasks are merged, and which stay with their expert."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.combine.merge.adapters import check_together
from tuneloop.combine.merge.command import Expert, merge_runs
from tuneloop.combine.merge.random_adapter import random_adapter
from tuneloop.combine.options import AUTO, JudgeOptions
from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash
from tuneloop.core.threads import use_threads
from tuneloop.core.ui import say
from tuneloop.core.units import counted
from tuneloop.evaluation.evaluate import FEWEST_SHARED, sample_rows
from tuneloop.models.load import Model, load_model
from tuneloop.models.methods import base_only
from tuneloop.models.names import resolve
from tuneloop.models.trained import load_trained, trained_folder
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.scoring import score, score_of
from tuneloop.records.merge import MergeRecord, SearchedMerge, TaskDeployment, TaskResult, TaskRoute
from tuneloop.records.record import read_record, write_record
from tuneloop.records.run import RUN

if TYPE_CHECKING:
    from tuneloop.combine.merge.merge import MergeSettings
    from tuneloop.combine.merge.search import Tried
    from tuneloop.evaluation.retained_gain import Score
    from tuneloop.records.rows import Row


@dataclass
class Judge:
    """Asks models for each task's rows. What was asked once is kept.

    Args:
        experts: each with its rows.
        options: how many rows; see there.
    """

    experts: Sequence[Expert]
    options: JudgeOptions
    _known: dict[tuple[str, str, str], Score] = field(default_factory=dict)
    _metrics: dict[str, str] = field(default_factory=dict)

    @cached_property
    def model(self) -> Model:
        """The base model, loaded once for all adapters."""
        use_threads()
        return load_model(self.experts[0].base)

    def rows(self, expert: Expert, split: str) -> list[Row]:
        """The task's rows, a seeded sample."""
        assert expert.dataset is not None and expert.recipe is not None, "only tasks with rows are judged"
        return sample_rows(
            getattr(expert.dataset, split), self.options.rows, seed=expert.recipe.seed, stratum=expert.dataset.stratum
        )

    def metric(self, expert: Expert) -> str:
        """The metric that decides the task."""
        return self._metrics[expert.name]

    def score(self, expert: Expert, split: str, folder: Path | None, name: str) -> Score:
        """What a model comes to on a task's rows.

        Args:
            folder: of an adapter; None: the base.
            name: of the model, under which the result is kept.
        """
        from tuneloop.pipeline.compared_systems import Asking, ask

        key = (expert.name, split, name)
        if key in self._known:
            return self._known[key]
        assert expert.dataset is not None and expert.recipe is not None and expert.run is not None
        job, rows = RunContext(expert.recipe, expert.run), self.rows(expert, split)
        job.__dict__["model"] = self.model
        ask_model = functools.partial(
            ask, self.model, expert.dataset, rows, expert.recipe.evaluate, Asking(perplexity=False),
            task=f"{name} on {expert.name}",
        )  # fmt: skip
        if folder is None:
            with base_only(self.model.net):
                asked = ask_model()[""]
        else:
            load_trained(self.model, folder)
            asked = ask_model()[""]
        found = score(job, replace(expert.dataset, test=rows), rows, asked)
        metric = self._metrics.setdefault(expert.name, found.primary)
        self._known[key] = score_of(found, metric)
        return self._known[key]

    def result(self, expert: Expert, merged: Path, name: str, controls: dict[str, Path]) -> TaskResult:
        """A task's figures on its test rows, next to those of the base, the expert and the controls."""
        from tuneloop.evaluation.retained_gain import difference, holds, kept_share

        base, own = (
            self.score(expert, "test", None, "base"),
            self.score(expert, "test", expert.adapter.folder, "expert"),
        )
        found = self.score(expert, "test", merged, name)
        kept, delta = kept_share(base, own, found), difference(own, found)
        fine, sure = holds(kept, delta, self.options.allow)
        more = {which: abs(self.score(expert, "test", place, which).value) for which, place in controls.items()}
        return TaskResult(
            task=expert.name, metric=self.metric(expert), split="test", n=len(self.rows(expert, "test")),
            base=abs(base.value), expert=abs(own.value), merged=abs(found.value), kept=kept, delta=delta, holds=fine, sure=sure, **more,
        )  # fmt: skip


def can_judge(experts: Sequence[Expert]) -> str:
    """Why the tasks can't be judged; empty where they can."""
    for one in experts:
        if one.dataset is None or one.recipe is None:
            return f"no rows are known for {one.name}"
        if not len(one.dataset.test):
            return f"{one.name} has no test rows"
    return ""


def merge_tasks(
    experts: Sequence[Expert], settings: MergeSettings, out: Path, options: JudgeOptions
) -> tuple[MergeRecord | None, TaskDeployment]:
    """Merge the tasks that can be merged; the others stay with their expert.

    As long as a task loses more than allowed, the one that keeps least is taken out, and the rest is merged again.

    Args:
        experts: each with its rows.
        settings: the method may be `auto`: then it is searched for on validation rows.
        out: folder of the merged run; `tasks.json` in it says which model answers which task.

    Returns:
        The merge, None where not even two tasks can be merged; and who answers what.

    Raises:
        UserError: adapters that don't go together; a search without validation rows.
    """
    check_together([one.adapter for one in experts])
    request = _request(experts, settings, options)
    if (found := _done(out, request)) is not None:
        say("merge     already done")
        return found
    judge = Judge(experts, options)
    _say_few(judge)
    searched: list[Tried] = []
    if settings.method == AUTO:
        searched = search(judge, settings)
        settings = max(searched, key=lambda one: one.worst).settings
        say(f"search    {settings.method} with weights {', '.join(f'{w:g}' for w in settings.weights)} keeps most")
    left, now, results = _those_that_hold(judge, settings)
    if len(left) < 2:
        deployment = _deployment(experts, [], out, results)
        write_record(out / TaskDeployment.file, deployment)
        return None, deployment
    record = merge_runs(left, now, out)
    if options.pooled:
        results |= _judged(judge, left, now, {"pooled": _pooled(left, out, Path(options.pooled))})
    tasks = [results[one.name] for one in experts]
    record = record.model_copy(
        update={
            "request": request,
            "routed": [one.name for one in experts if one not in left],
            "allowed": options.allow,
            "tasks": tasks,
            "searched": [_searched(one) for one in searched],
            "words": [*unshown(tasks), *record.words, *map(sentence, tasks)],
        }
    )
    deployment = _deployment(experts, left, out, results)
    write_record(out / TaskDeployment.file, deployment)
    write_record(out / MergeRecord.file, record)
    return record, deployment


def _those_that_hold(
    judge: Judge, settings: MergeSettings
) -> tuple[list[Expert], MergeSettings, dict[str, TaskResult]]:
    """The experts whose tasks can be merged, the settings with their weights, and each task's last figures."""
    weights = list(settings.weights) or [1.0] * len(judge.experts)
    left, results = list(judge.experts), dict[str, TaskResult]()
    while len(left) > 1:
        now = replace(settings, weights=tuple(weights))
        results |= _judged(judge, left, now, {})
        losing = [one for one in left if not results[one.name].holds]
        if not losing:
            return left, now, results
        worst = min(losing, key=lambda one: _kept(results[one.name]))
        say(f"task      {worst.name} {_loss(results[worst.name])}: it stays with its expert")
        del weights[left.index(worst)]
        left.remove(worst)
    return left, settings, results


def _request(experts: Sequence[Expert], settings: MergeSettings, options: JudgeOptions) -> str:
    """Hash of what was asked for; the order of the experts counts, for weights and sentences follow it."""
    rows = [one.dataset.manifest.hash if one.dataset else "" for one in experts]
    return content_hash([[one.adapter.hash for one in experts], rows, settings, options])


def _done(out: Path, request: str) -> tuple[MergeRecord, TaskDeployment] | None:
    if not all((out / name).is_file() for name in (MergeRecord.file, RUN, TaskDeployment.file)):
        return None
    record = read_record(MergeRecord, out)
    return (record, read_record(TaskDeployment, out)) if record.request == request else None


def _judged(
    judge: Judge, experts: Sequence[Expert], settings: MergeSettings, controls: dict[str, Path]
) -> dict[str, TaskResult]:
    """Each task's figures under one merge of these experts, with a control of random matrices for each."""
    name = f"merged {content_hash([[one.name for one in experts], settings])[:8]}"
    with tempfile.TemporaryDirectory() as scratch:
        merged = _merged(experts, settings, Path(scratch) / "merged")
        results = {}
        for i, one in enumerate(experts):
            random = _with_random(experts, i, settings, Path(scratch) / f"random{i}")
            results[one.name] = judge.result(one, merged, name, {"random": random, **controls})
            say(f"task      {sentence(results[one.name])}")
    return results


def _merged(experts: Sequence[Expert], settings: MergeSettings, out: Path) -> Path:
    from tuneloop.combine.merge.merge import base_shapes, merge_adapters

    base = (experts[0].base, base_shapes(resolve(experts[0].base)))
    return merge_adapters([one.adapter for one in experts], settings, base, out).folder


def _with_random(experts: Sequence[Expert], own: int, settings: MergeSettings, out: Path) -> Path:
    """One expert merged with random adapters in the place of the others."""
    others = [
        one if i == own else replace(one, adapter=random_adapter(one.adapter, out / f"r{i}", seed=i))
        for i, one in enumerate(experts)
    ]
    return _merged(others, settings, out / "merged")


def _pooled(experts: Sequence[Expert], out: Path, run: Path) -> Path:
    """One adapter trained on the rows of all tasks, by the first expert's settings: as many passes, so the same tokens in sum."""
    from tuneloop.pipeline.train import train_alone

    if not (run / RUN).is_file():
        like = experts[0].recipe
        assert like is not None and experts[0].dataset is not None
        rows = out / "dataset" if (out / "dataset").is_dir() else Path(experts[0].dataset.path)
        data = like.data.model_copy(update={"sources": [str(rows)]})
        track = like.track.model_copy(update={"report_to": ["none"]})
        again = like.model_copy(update={"data": data, "output_dir": str(run), "name": "pooled", "track": track})
        say(f"pooled    one adapter is trained on the rows of all tasks: {run}")
        train_alone(again)
    return trained_folder(run)


# --- search ------------------------------------------------------------------------------------


def search(judge: Judge, asked: MergeSettings) -> list[Tried]:
    """Try ways to merge on validation rows, for as long as there is time; the best is the one whose worst task keeps most.

    Raises:
        UserError: a task has no validation rows.
    """
    from tuneloop.combine.merge.search import first_round, next_settings

    for one in judge.experts:
        if one.dataset is None or not len(one.dataset.val):
            raise UserError(
                f"{one.name} has no validation rows to search on", where="--method auto",
                next_step="prepare its rows with data.split.val=0.1, or name a method",
            )  # fmt: skip
    ends, tried = time.monotonic() + 60 * judge.options.minutes, list[Any]()
    for settings in first_round(len(judge.experts), asked.rank, asked.density):
        if tried and time.monotonic() > ends:
            break
        tried.append(_try(judge, settings))
    while time.monotonic() < ends and (step := next_settings(tried)) is not None:
        tried.append(_try(judge, step))
    return tried


def _try(judge: Judge, settings: MergeSettings) -> Tried:
    from tuneloop.combine.merge.search import Tried
    from tuneloop.evaluation.retained_gain import point_share

    began, name = time.monotonic(), f"tried {content_hash(settings)[:8]}"
    with tempfile.TemporaryDirectory() as scratch:
        merged = _merged(judge.experts, settings, Path(scratch))
        shares = tuple(
            point_share(
                judge.score(one, "val", None, "base").value,
                judge.score(one, "val", one.adapter.folder, "expert").value,
                judge.score(one, "val", merged, name).value,
            )
            for one in judge.experts
        )
    found = Tried(settings, shares, time.monotonic() - began)
    weights = ", ".join(f"{weight:g}" for weight in settings.weights)
    say(f"search    {settings.method:<10} weights {weights}: the worst task keeps {found.worst:.0%}")
    return found


def _searched(one: Tried) -> SearchedMerge:
    return SearchedMerge(
        method=one.settings.method, weights=list(one.settings.weights), rank=one.settings.rank,
        density=one.settings.density, worst=one.worst, seconds=round(one.seconds, 2),
    )  # fmt: skip


# --- words -------------------------------------------------------------------------------------


def _kept(result: TaskResult) -> float:
    return result.kept.value if result.kept else 1.0 + result.delta.value


def _say_few(judge: Judge) -> None:
    for one in judge.experts:
        if (few := len(judge.rows(one, "test"))) < FEWEST_SHARED:
            say(f"warn: {_nothing_shown(one.name, few)}")


def unshown(tasks: Sequence[TaskResult]) -> list[str]:
    """The tasks that were merged though their rows can't show what that costs them: what a reader has to know first."""
    open_ = [one for one in tasks if one.holds and (one.n < FEWEST_SHARED or one.kept is None)]
    return [_nothing_shown(one.task, one.n, no_gain=one.kept is None) for one in open_]


def _nothing_shown(task: str, rows: int, *, no_gain: bool = False) -> str:
    why = ", where its expert shows no gain over the base" if no_gain else ""
    more = f". Judge by at least {FEWEST_SHARED} test rows" if rows < FEWEST_SHARED else ""
    return f"nothing can be shown for {task} on {counted(rows, 'test row')}{why}: a loss by merging would not be seen{more}"


def _loss(result: TaskResult) -> str:
    if result.kept is None:
        delta = result.delta
        return f"is worse than its expert ({delta.value:+.3f}, 95 % interval {delta.low:+.3f} to {delta.high:+.3f})"
    return f"keeps {result.kept.value:.0%} of its expert's gain"


def sentence(result: TaskResult) -> str:
    """A task's result as people read it."""
    figures = f"{result.metric} {result.base:.3f} (base), {result.expert:.3f} (expert), {result.merged:.3f} (merged)"
    if result.kept is None:
        return f"{result.task}: {figures}; the expert's gain is not shown on {counted(result.n, 'row')}"
    kept = result.kept
    return f"{result.task}: {figures}; keeps {kept.value:.0%} of the gain [{kept.low:.0%}, {kept.high:.0%}] on {counted(result.n, 'row')}"


def _deployment(
    experts: Sequence[Expert], merged: Sequence[Expert], out: Path, results: dict[str, TaskResult]
) -> TaskDeployment:
    routes = [
        TaskRoute(
            task=one.name,
            target=str(out) if one in merged else one.name,
            dataset=one.dataset.path if one.dataset else "",
            why=sentence(results[one.name]),
        )
        for one in experts
    ]
    return TaskDeployment(base=experts[0].base, routes=routes)
