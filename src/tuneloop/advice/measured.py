"""What is measured before advice is given: a data set, systems' results and costs, merges, routers, distillations."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import inside, nearest_path, read_json
from tuneloop.core.stats.tests import by_interval, wilson_interval
from tuneloop.core.units import counted, verb
from tuneloop.evaluation import recommended_system
from tuneloop.evaluation.metrics import claim_between, declare, likely_to_decide, lower_is_better
from tuneloop.models.methods import USUAL
from tuneloop.planning import lengths_of
from tuneloop.records.advice import MeasuredSystem
from tuneloop.records.dataset import DatasetManifest, read_manifest
from tuneloop.records.distillation import DistillationRecord
from tuneloop.records.evaluation import AnswerCost, BaselinesManifest, EvaluationManifest, LeaderboardEntry, Metrics
from tuneloop.records.merge import MergeRecord, Share
from tuneloop.records.record import Record, as_record, read_record
from tuneloop.records.router import CascadeRecord, RouterRecord
from tuneloop.records.run import RunManifest

CHEAP = ("logistic regression", "your classifier")  # in the names of cheap systems
CONSTANT = "majority class"  # always the most frequent label: neither a prompt nor a classifier


def _cheap(name: str) -> bool:
    return any(part in name for part in CHEAP)


@dataclass(frozen=True)
class SystemResult:
    """A system's value of the deciding metric with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float
    right: float | None = None  # share of rows that it has right, where that is known


@dataclass(frozen=True)
class BaselineResults:
    """Results on one test split."""

    metric: str  # the one that decides
    n: int  # test rows; 0: not known
    results: tuple[SystemResult, ...]  # of all systems
    verdict: str = ""  # the tuned model against the best prompt, in the words of the evaluation, or empty
    method: str = USUAL.name  # how the tuned model was trained
    prompt_tokens: Mapping[str, float] = field(default_factory=dict)  # system -> tokens read for a query
    usd_per_1000: Mapping[str, float] = field(default_factory=dict)  # system -> dollars of 1,000 queries, as measured
    classical_verdict: str = ""  # the tuned model against the best cheap alternative
    training_usd: float | None = None  # what the tuned model's training cost
    recommended: str = ""  # the cheapest system that is not significantly worse than the best; "": not known
    stand_in: str = ""  # the model that was measured in place of the one in question; "": that one itself

    @property
    def prompt(self) -> SystemResult | None:
        """The best way of prompting the base model."""
        return self._best([r for r in self.results if not _cheap(r.name) and r.name not in ("tuned", CONSTANT)])

    @property
    def classical(self) -> SystemResult | None:
        """The cheap alternative that is recommended, else the best one."""
        cheap = [r for r in self.results if _cheap(r.name)]
        return self._best([r for r in cheap if r.name == self.recommended] or cheap)

    @property
    def tuned(self) -> SystemResult | None:
        """The tuned model."""
        return next((r for r in self.results if r.name == "tuned"), None)

    def _best(self, results: Sequence[SystemResult]) -> SystemResult | None:
        sign = -1 if lower_is_better(self.metric) else 1
        return max(results, key=lambda r: sign * r.value, default=None)


def from_dataset(manifest: DatasetManifest) -> dict[str, Any]:
    """What a `dataset.json` says about the question."""
    train = manifest.splits.train
    tokens, rows = train.tokens, train.rows
    facts: dict[str, Any] = {"rows": rows, "task": manifest.task}
    if manifest.labels:
        facts["labels"] = len(manifest.labels)
    if rows and tokens and tokens.total:
        facts["tokens_per_row"] = tokens.total / rows
        facts["answer_tokens"] = tokens.supervised / rows
        facts["prompt_tokens"] = max(1.0, (tokens.total - tokens.supervised) / rows)
        facts["longest_row"] = max(8, tokens.max)
        facts["lengths"] = lengths_of(manifest, "dataset.json")
    return facts


def from_evaluation(manifest: EvaluationManifest, where: str, metric: str = "") -> BaselineResults:
    """What an `eval.json` says. Raises UserError: it has no such metric, or none that decides."""
    declare(manifest.own_metrics.values())
    systems = {manifest.name: manifest.metrics, **manifest.baselines}
    metric = metric or _decided_by(manifest)
    measured = with_prices(measured_of(systems, manifest.costs, manifest.n, where, metric), manifest.leaderboard)
    if manifest.verdict and measured.metric == manifest.verdict.metric:
        measured = replace(measured, recommended=recommended_system(manifest))
    verdict, classical = (
        claim_between(manifest, "tuned", best.name, measured.metric)[1] if best else ""
        for best in (measured.prompt, measured.classical)
    )
    return replace(measured, verdict=verdict, classical_verdict=classical)


def by_hand(values: Mapping[str, float], test_rows: int | None) -> BaselineResults:
    """Shares of right answers that people measured themselves, with Wilson's interval where `test_rows` is known."""
    results = []
    for name, value in values.items():
        low, high = wilson_interval(value * test_rows, test_rows) if test_rows and value <= 1 else (value, value)
        results.append(SystemResult(name, value, low, high))
    return BaselineResults("accuracy", test_rows or 0, tuple(results))


def measured_of(
    systems: Mapping[str, Metrics], costs: Mapping[str, AnswerCost], n: int, where: str, metric: str = ""
) -> BaselineResults:
    """Metrics and costs of systems as one record. Raises UserError: no system has the metric, or none decides."""
    metrics = list(dict.fromkeys(name for values in systems.values() for name in values))
    metric = metric or likely_to_decide(metrics) or ""
    if not metric:
        step = f"name one with --metric: {', '.join(metrics)}"
        raise UserError("No metric in it decides", where=where, next_step=step)
    results = []
    for name, values in systems.items():
        value = values.get(metric)
        if value is not None and not math.isnan(value.value):
            low, high = (value.value if math.isnan(end) else end for end in (value.low, value.high))
            right = values.get("accuracy")
            defined = right is not None and not math.isnan(right.value)
            results.append(SystemResult(name, value.value, low, high, right.value if right and defined else None))
    if not results:
        step = f"choose one of {', '.join(metrics)}"
        raise UserError(f"No system was measured by {metric!r}", where=where, next_step=step)
    read = {name: cost.prompt_tokens / n for name, cost in costs.items() if n and cost.prompt_tokens}
    spent = {name: cost.usd / n * 1000 for name, cost in costs.items() if n and cost.usd is not None}
    return BaselineResults(metric, n, tuple(results), prompt_tokens=read, usd_per_1000=spent)


def with_prices(measured: BaselineResults, leaderboard: Sequence[LeaderboardEntry]) -> BaselineResults:
    """Results with what 1,000 requests cost by the leaderboard: in production, unlike here, prompts are not shared."""
    prices = {line.name: line.usd_per_1000 for line in leaderboard if line.usd_per_1000 is not None}
    return replace(measured, usd_per_1000={**measured.usd_per_1000, **prices})


def _decided_by(manifest: EvaluationManifest) -> str:
    """The metric that an evaluation's own verdict goes by: macro-F1 where labels are uneven; else empty."""
    metric = manifest.verdict.metric if manifest.verdict else ""
    return metric if metric in manifest.metrics else ""


def holds_results(source: Path | str) -> bool:
    """Whether a place is a run, an evaluation, or a folder that `advise` has kept: results, not data to read."""
    path = Path(source)
    if path.is_dir():
        manifests = ("eval.json", "run.json", "baselines/baselines.json", "dataset/dataset.json")
        return any((path / name).is_file() for name in manifests)
    if path.name == "eval.json":
        return path.is_file()
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4096).lstrip()
    if start.startswith(b"{"):
        with contextlib.suppress(UserError):  # lines of JSON
            value = read_json(path)
            return isinstance(value, dict) and "metrics" in value
    return False


def facts_from_results(source: Path | str, metric: str = "") -> dict[str, Any]:
    """What a prepared data set, a run or an evaluation says about the question. `source`: a folder with `dataset.json`,
    a run's folder, or an evaluation (`eval.json` or its folder). `metric`: that decides; default: the one that its
    verdict goes by, else `likely_to_decide`. Raises UserError: it is not one of these."""
    path = Path(source)
    if path.suffix == ".json" and path.is_file():
        if path.name not in ("eval.json", "dataset.json"):
            return _facts_of_evaluation(path, metric)
        path = path.parent
    if not path.is_dir():
        raise UserError("No such data set, run or evaluation", where=str(source), next_step=nearest_path(path))
    facts: dict[str, Any] = {}
    for manifest in (path / "dataset.json", path / "dataset" / "dataset.json"):
        if manifest.is_file():
            facts |= from_dataset(read_manifest(manifest))
            break
    if (path / "eval.json").is_file():
        facts |= _facts_of_evaluation(path / "eval.json", metric)
    elif (path / "baselines" / "baselines.json").is_file():
        facts["measured"] = read_baselines(path / "baselines", metric)
    if (path / "run.json").is_file() and facts.get("measured"):
        run = read_record(RunManifest, path)
        facts["measured"] = replace(facts["measured"], training_usd=run.usd, method=run.method or USUAL.name)
    if not facts:
        step = "name a folder with dataset.json or eval.json"
        raise UserError("Neither a data set nor a run nor an evaluation", where=str(source), next_step=step)
    return facts


def _facts_of_evaluation(path: Path, metric: str) -> dict[str, Any]:
    manifest = read_record(EvaluationManifest, path)
    facts: dict[str, Any] = {"measured": from_evaluation(manifest, str(path), metric)}
    return facts | {key: manifest[key] for key in ("model", "task") if manifest[key]}


def read_baselines(folder: Path, metric: str = "") -> BaselineResults:
    """What `baselines.json` and its evaluations say: the base model and the cheap alternatives."""
    listed = read_record(BaselinesManifest, folder)
    manifests = {name: read_record(EvaluationManifest, inside(folder, path)) for name, path in listed.systems.items()}
    n = max((manifest.n for manifest in manifests.values()), default=0)
    metrics = {name: manifest.metrics for name, manifest in manifests.items()}
    metric = metric or next(filter(None, map(_decided_by, manifests.values())), "")
    return with_prices(measured_of(metrics, listed.costs, n, str(folder), metric), listed.leaderboard)


def leaderboard(measured: BaselineResults) -> list[MeasuredSystem]:
    """The systems from the base model to the tuned one, with gains over the best prompt and what queries cost."""
    best, sign = measured.prompt, -1 if lower_is_better(measured.metric) else 1
    order = {"zero-shot": 0, "few-shot": 1, **dict.fromkeys(CHEAP, 2), "tuned": 3}
    ranks = {r.name: next((n for part, n in order.items() if part in r.name), 3) for r in measured.results}

    def system(r: SystemResult) -> MeasuredSystem:
        values: dict[str, Any] = {
            "name": r.name, "metric": measured.metric, "value": r.value, "low": r.low, "high": r.high,
            "gain_over_prompt": sign * (r.value - best.value) if best and r.name != best.name else None,
            "prompt_tokens": measured.prompt_tokens.get(r.name),
            "usd_per_1000_queries": measured.usd_per_1000.get(r.name),
            "training_usd": measured.training_usd if r.name == "tuned" else None,
            "recommended": r.name == measured.recommended,
        }  # fmt: skip
        return MeasuredSystem(**values)

    return [system(r) for r in sorted(measured.results, key=lambda r: ranks[r.name])]


def combined_facts(files: Sequence[str]) -> dict[str, Any]:
    """Facts for the rules from `distillation.json`, `merge.json`, `router.json` and `cascade.json`, or folders that
    hold them. Raises UserError: there is none, or it is damaged."""
    merged: dict[str, Any] = {}
    for source in map(Path, files):
        paths = [source] if source.is_file() and source.name in READERS else [source / name for name in READERS]
        if not (paths := [path for path in paths if path.is_file()]):
            *names, last = READERS
            message, step = "Nothing was measured of merging, routing or distilling here", ", ".join(names)
            raise UserError(message, where=str(source), next_step=f"name a folder that holds {step} or {last}")
        for path in paths:
            kind, facts = READERS[path.name]
            merged |= facts(as_record(kind, read_json(path), str(path)))
    return merged


def _share(share: Share) -> str:
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def _on(value: float, n: int) -> str:
    return f"{value:.3f} on {counted(n, 'test row')}"


def _distilled(record: Any) -> dict[str, Any]:
    if (results := record.results) is None:
        return {}
    reached = f"{results.metric} {_on(results.student, results.n)}, its teacher {results.teacher:.3f}"
    sentence = f"A student was distilled: {reached}"
    if results.kept is not None:
        sentence += f" ({_share(results.kept)} of it kept)"
    student, teacher = results.student_cost, results.teacher_cost
    if student is not None and teacher is not None:
        sentence += f", at {teacher.rows_per_second / student.rows_per_second:.0%} of the teacher's time for an answer"
    over = results.over_control
    if over is None:
        return {"distilled_words": sentence + "."}
    sentence += f". Tuned on the same rows without a teacher it has {results.control:.3f}."
    return {"distilled_words": sentence, "distilled_helps": by_interval(over.low, over.high) == "better"}


def _merged(record: Any) -> dict[str, Any]:
    shares = {task.task: task.kept for task in record.tasks if task.kept is not None}
    if not shares:
        return {}
    worst = min(shares, key=lambda task: shares[task].value)
    adapters = f"{counted(len(record.sources), 'adapter')} {verb(len(record.sources), 'was', 'were')}"
    sentence = f"{adapters} merged by {record.method} into one of rank {record.rank}"
    sentence += f"; the worst task, {worst}, keeps {_share(shares[worst])} of its expert's gain."
    return {"merged_words": sentence, "merged_routed": ", ".join(record.routed), "merged_all": not record.routed}


def _routed(record: Any) -> dict[str, Any]:
    results = record.results
    if results is None or not results.singles:
        return {}
    best, quality = max(results.singles[:-1], key=lambda single: single.quality), results.quality
    bounds = f"[{quality.low:.3f}, {quality.high:.3f}] on {counted(results.n, 'test row')}"
    sentence = (
        f"A router has {quality.value:.3f} {bounds} at a mean cost of {results.cost:g}; "
        f"the best single model, {best.name}, has {best.quality:.3f} at {best.cost:g}."
    )
    return {"routed_words": sentence, "routed_exclusive": record.exclusive}


def _cascade(record: Any) -> dict[str, Any]:
    over, cost = record.over_large, f"{record.cost / record.costs[1]:.0%} of the large model's cost"
    sentence = (
        f"A cascade of {record.small} and {record.large} has {_on(record.quality.value, record.n)} at {cost}; "
        f"the difference to it is {over.value:+.3f} [{over.low:+.3f}, {over.high:+.3f}]."
    )
    return {"cascade_words": sentence, "cascade_pays": record.cost < record.costs[1] and not over.high < 0}


READERS: dict[str, tuple[type[Record], Callable[[Any], dict[str, Any]]]] = {
    DistillationRecord.file: (DistillationRecord, _distilled),
    MergeRecord.file: (MergeRecord, _merged),
    RouterRecord.file: (RouterRecord, _routed),
    CascadeRecord.file: (CascadeRecord, _cascade),
}
