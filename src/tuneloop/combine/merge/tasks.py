"""A merged model judged by each expert's own rows: which tasks are merged, and which stay with their expert."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.combine.merge.adapters import MergeSettings, check_together, random_adapter
from tuneloop.combine.merge.command import Expert, merge_runs
from tuneloop.combine.options import AUTO, TaskJudgeOptions
from tuneloop.combine.retained_gain import Score, difference, holds, kept_share, point_share
from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash
from tuneloop.core.threads import use_threads
from tuneloop.core.ui import say
from tuneloop.core.units import counted
from tuneloop.evaluation import FEWEST_SHARED, sample_rows
from tuneloop.models import Model, load_model, load_trained, trained_folder
from tuneloop.models.files import resolve
from tuneloop.models.methods import base_only
from tuneloop.pipeline import RunContext, train_alone
from tuneloop.pipeline.answers import Asking, ask, score
from tuneloop.records.merge import MergeRecord, SearchedMerge, TaskDeployment, TaskResult, TaskRoute
from tuneloop.records.record import read_record, write_record
from tuneloop.records.run import RUN

if TYPE_CHECKING:
    from tuneloop.records.rows import Row

Results = dict[str, TaskResult]  # by task
Experts = Sequence[Expert]


@dataclass
class TaskJudge:
    """Scores models on each task's rows, once each."""

    experts: Sequence[Expert]  # each with its rows
    options: TaskJudgeOptions
    _scores: dict[tuple[str, str, str], Score] = field(default_factory=dict)
    _metrics: dict[str, str] = field(default_factory=dict)  # that decides, by task

    @cached_property
    def model(self) -> Model:
        """The base model, loaded once for all adapters."""
        use_threads()
        return load_model(self.experts[0].base)

    def rows(self, expert: Expert, split: str) -> list[Row]:
        """The task's rows, a seeded sample."""
        assert expert.dataset is not None and expert.recipe is not None, "only tasks with rows are judged"
        rows, seed = getattr(expert.dataset, split), expert.recipe.seed
        return sample_rows(rows, self.options.rows, seed=seed, stratum=expert.dataset.stratum)

    def score(self, expert: Expert, split: str, folder: Path | None, name: str) -> Score:
        """The score of an adapter (None: of the base) on a task's rows, kept under the model's name."""
        key = (expert.name, split, name)
        if key in self._scores:
            return self._scores[key]
        assert expert.dataset is not None and expert.recipe is not None and expert.run is not None
        job, rows = RunContext(expert.recipe, expert.run), self.rows(expert, split)
        job.__dict__["model"] = self.model
        if folder is not None:
            load_trained(self.model, folder)
        settings, title = expert.recipe.evaluate, f"{name} on {expert.name}"
        with base_only(self.model.net) if folder is None else contextlib.nullcontext():
            answers = ask(job.target, expert.dataset, rows, settings, Asking(perplexity=False), task=title)[""]
        scored = score(job, replace(expert.dataset, test=rows), rows, answers)
        self._scores[key] = Score.of(scored, self._metrics.setdefault(expert.name, scored.primary))
        return self._scores[key]

    def result(self, expert: Expert, merged: Path, name: str, controls: dict[str, Path]) -> TaskResult:
        """A task's scores on its test rows, next to those of the base, the expert and the controls."""
        base = self.score(expert, "test", None, "base")
        before = self.score(expert, "test", expert.adapter.folder, "expert")
        after = self.score(expert, "test", merged, name)
        share, delta = kept_share(base, before, after), difference(before, after)
        fine, sure = holds(share, delta, self.options.allow)
        scores = {"base": base, "expert": before, "merged": after}
        scores |= {which: self.score(expert, "test", folder, which) for which, folder in controls.items()}
        return TaskResult(
            task=expert.name,
            metric=self._metrics[expert.name],
            split="test",
            n=len(self.rows(expert, "test")),
            kept=share,
            delta=delta,
            holds=fine,
            sure=sure,
            **{which: abs(score.value) for which, score in scores.items()},
        )


def can_judge(experts: Sequence[Expert]) -> str:
    """Why the tasks can't be judged; empty where they can."""
    for expert in experts:
        if expert.dataset is None or expert.recipe is None:
            return f"no rows are known for {expert.name}"
        if not len(expert.dataset.test):
            return f"{expert.name} has no test rows"
    return ""


def merge_tasks(
    experts: Sequence[Expert], settings: MergeSettings, out: Path, options: TaskJudgeOptions
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
    check_together([entry.adapter for entry in experts])
    hashes = [entry.dataset.manifest.hash if entry.dataset else "" for entry in experts]
    # The order of the experts counts, for weights and sentences follow it.
    request = content_hash([[entry.adapter.hash for entry in experts], hashes, settings, options])
    if all((out / name).is_file() for name in (MergeRecord.file, RUN, TaskDeployment.file)):
        earlier = read_record(MergeRecord, out)
        if earlier.request == request:
            say("merge     already done")
            return earlier, read_record(TaskDeployment, out)
    judge = TaskJudge(experts, options)
    for expert in experts:
        if (few := len(judge.rows(expert, "test"))) < FEWEST_SHARED:
            say(f"warn: {_nothing_shown(expert.name, few)}")
    attempts: list[TriedMerge] = []
    if settings.method == AUTO:
        attempts = search(judge, settings)
        settings = max(attempts, key=lambda attempt: attempt.worst).settings
        say(f"search    {settings.method} with weights {', '.join(f'{w:g}' for w in settings.weights)} keeps most")
    left, now, results = _tasks_that_hold(judge, settings)
    if len(left) < 2:
        return None, _deploy(experts, [], out, results)
    record = merge_runs(left, now, out)
    if options.pooled:
        results |= _judged(judge, left, now, {"pooled": _pooled(left, out, Path(options.pooled))})
    tasks = [results[entry.name] for entry in experts]
    fields = {
        "request": request, "routed": [entry.name for entry in experts if entry not in left], "allowed": options.allow,
        "tasks": tasks, "searched": [attempt.record for attempt in attempts],
        "words": [*unshown(tasks), *record.words, *map(sentence, tasks)],
    }  # fmt: skip
    record, deployment = record.model_copy(update=fields), _deploy(experts, left, out, results)
    write_record(out / MergeRecord.file, record)
    return record, deployment


def _tasks_that_hold(judge: TaskJudge, settings: MergeSettings) -> tuple[list[Expert], MergeSettings, Results]:
    """The experts whose tasks can be merged, the settings with their weights, and each task's last results."""
    weights = list(settings.weights) or [1.0] * len(judge.experts)
    left, results = list(judge.experts), dict[str, TaskResult]()
    while len(left) > 1:
        now = replace(settings, weights=tuple(weights))
        results |= _judged(judge, left, now, {})
        losing = [expert for expert in left if not results[expert.name].holds]
        if not losing:
            return left, now, results
        worst = min(losing, key=lambda expert: _kept(results[expert.name]))
        share, delta = results[worst.name].kept, results[worst.name].delta
        loss = f"is worse than its expert ({delta.value:+.3f}, 95 % interval {delta.low:+.3f} to {delta.high:+.3f})"
        if share:
            loss = f"keeps {share.value:.0%} of its expert's gain"
        say(f"task      {worst.name} {loss}: it stays with its expert")
        del weights[left.index(worst)]
        left.remove(worst)
    return left, settings, results


def _judged(judge: TaskJudge, experts: Experts, settings: MergeSettings, controls: dict[str, Path]) -> Results:
    """Each task's result under one merge, with a control for each: random adapters instead of the other experts."""
    name = f"merged {content_hash([[entry.name for entry in experts], settings])[:8]}"
    with tempfile.TemporaryDirectory() as scratch:
        merged = _merged(experts, settings, Path(scratch) / "merged")
        results = {}
        for i, expert in enumerate(experts):
            folder = Path(scratch) / f"random{i}"
            others = [
                expert if j == i else replace(other, adapter=random_adapter(other.adapter, folder / f"r{j}", seed=j))
                for j, other in enumerate(experts)
            ]
            random = _merged(others, settings, folder / "merged")
            results[expert.name] = judge.result(expert, merged, name, {"random": random, **controls})
            say(f"task      {sentence(results[expert.name])}")
    return results


def _merged(experts: Sequence[Expert], settings: MergeSettings, out: Path) -> Path:
    from tuneloop.combine.merge.merge import base_shapes, merge_adapters

    base = (experts[0].base, base_shapes(resolve(experts[0].base)))
    return merge_adapters([expert.adapter for expert in experts], settings, base, out).folder


def _pooled(experts: Sequence[Expert], out: Path, run: Path) -> Path:
    """One adapter trained on the rows of all tasks, by the first expert's settings: as many passes over them."""
    if not (run / RUN).is_file():
        like = experts[0].recipe
        assert like is not None and experts[0].dataset is not None
        rows = out / "dataset" if (out / "dataset").is_dir() else Path(experts[0].dataset.path)
        data = like.data.model_copy(update={"sources": [str(rows)]})
        track = like.track.model_copy(update={"report_to": ["none"]})
        say(f"pooled    one adapter is trained on the rows of all tasks: {run}")
        train_alone(
            like.model_copy(update={"data": data, "output_dir": str(run), "name": "pooled", "track": track}),
            anyway=True,
        )
    return trained_folder(run)


# --- search ------------------------------------------------------------------------------------


def search(judge: TaskJudge, least: MergeSettings) -> list[TriedMerge]:
    """Try ways to merge on validation rows while there is time; the best is that whose worst task keeps most.

    `least`: rank of the first attempts. Raises UserError: a task has no validation rows.
    """
    for expert in judge.experts:
        if expert.dataset is None or not len(expert.dataset.val):
            step = "prepare its rows with data.split.val=0.1, or name a method"
            message = f"{expert.name} has no validation rows to search on"
            raise UserError(message, where="--method auto", next_step=step)
    ends, tried = time.monotonic() + 60 * judge.options.minutes, list[TriedMerge]()
    for settings in first_round(len(judge.experts), least.rank):
        if tried and time.monotonic() > ends:
            break
        tried.append(_try(judge, settings))
    while time.monotonic() < ends and (further := next_settings(tried)) is not None:
        tried.append(_try(judge, further))
    return tried


def _try(judge: TaskJudge, settings: MergeSettings) -> TriedMerge:
    began, name = time.monotonic(), f"tried {content_hash(settings)[:8]}"
    with tempfile.TemporaryDirectory() as scratch:
        merged, shares = _merged(judge.experts, settings, Path(scratch)), []
        for expert in judge.experts:
            models = {"base": None, "expert": expert.adapter.folder, name: merged}
            scores = [judge.score(expert, "val", folder, model).value for model, folder in models.items()]
            shares.append(point_share(*scores))
    weights = ", ".join(f"{weight:g}" for weight in settings.weights)
    say(f"search    {settings.method:<10} weights {weights}: the worst task keeps {min(shares):.0%}")
    return TriedMerge(settings, tuple(shares), time.monotonic() - began)


# --- words -------------------------------------------------------------------------------------


def _kept(result: TaskResult) -> float:
    return result.kept.value if result.kept else 1.0 + result.delta.value


def unshown(tasks: Sequence[TaskResult]) -> list[str]:
    """The tasks that were merged though their rows can't show what that costs them: what a reader has to know first."""
    doubtful = [task for task in tasks if task.holds and (task.n < FEWEST_SHARED or task.kept is None)]
    return [_nothing_shown(task.task, task.n, no_gain=task.kept is None) for task in doubtful]


def _nothing_shown(task: str, rows: int, *, no_gain: bool = False) -> str:
    clause = ", where its expert shows no gain over the base" if no_gain else ""
    more = f". Judge by at least {FEWEST_SHARED} test rows" if rows < FEWEST_SHARED else ""
    message = f"nothing can be shown for {task} on {counted(rows, 'test row')}"
    return f"{message}{clause}: a loss by merging would not be seen{more}"


def sentence(result: TaskResult) -> str:
    """A task's result as people read it."""
    scores = f"{result.metric} {result.base:.3f} (base), {result.expert:.3f} (expert), {result.merged:.3f} (merged)"
    share, rows = result.kept, counted(result.n, "row")
    gain = (
        f"keeps {share.value:.0%} of the gain [{share.low:.0%}, {share.high:.0%}]"
        if share
        else "the expert's gain is not shown"
    )
    return f"{result.task}: {scores}; {gain} on {rows}"


def _deploy(experts: Experts, merged: Experts, out: Path, results: Results) -> TaskDeployment:
    routes = []
    for expert in experts:
        target, dataset = str(out) if expert in merged else expert.name, expert.dataset.path if expert.dataset else ""
        routes.append(TaskRoute(task=expert.name, target=target, dataset=dataset, why=sentence(results[expert.name])))
    deployment = TaskDeployment(base=experts[0].base, routes=routes)
    write_record(out / TaskDeployment.file, deployment)
    return deployment


SCALES = (1.0, 0.6)  # of the weighted sums; a sum of many tasks overshoots
STRONGER, WEAKER = 1.3, 0.85  # factors for the weight of the task that loses most, and of the others


@dataclass(frozen=True)
class TriedMerge:
    """Settings and what came of them."""

    settings: MergeSettings  # with a weight for each adapter
    shares: tuple[float, ...]  # what each task kept on validation rows
    seconds: float  # that merging and answering took

    @property
    def worst(self) -> float:
        """The share of the task that kept least."""
        return min(self.shares)

    @property
    def record(self) -> SearchedMerge:
        """As it is written down."""
        settings = {name: getattr(self.settings, name) for name in ("method", "rank")}
        weights = list(self.settings.weights)
        return SearchedMerge(**settings, weights=weights, worst=self.worst, seconds=round(self.seconds, 2))


def first_round(adapters: int, rank: int = 0) -> Iterator[MergeSettings]:
    """Settings that need no knowledge, quick ones first.

    `adapters`: how many there are. `rank`: of the result; 0: each method's own.
    """
    for scale in SCALES:
        yield MergeSettings("svd" if rank else "cat", (scale,) * adapters, rank)


def next_settings(tried: Sequence[TriedMerge]) -> MergeSettings | None:
    """A step from the best settings so far: more weight for the task that keeps least; None where that was tried.

    Args:
        tried: one or more.
    """
    best = max(tried, key=lambda attempt: attempt.worst)
    weakest = best.shares.index(best.worst)
    factors = (STRONGER if i == weakest else WEAKER for i in range(len(best.shares)))
    weights = tuple(round(w * factor, 4) for w, factor in zip(best.settings.weights, factors, strict=True))
    step = MergeSettings(best.settings.method, weights, best.settings.rank)
    return None if any(attempt.settings == step for attempt in tried) else step
