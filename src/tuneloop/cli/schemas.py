"""JSON Schema of every record, by name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import TypeAdapter

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.files import plain

# Name -> the module (of this package, where it is a bare name) and the class, and the file that holds it.
RECORDS: dict[str, tuple[str, str, str]] = {
    "dataset": ("dataset", "DatasetManifest", "`DATASET/dataset.json`"),
    "row": ("rows", "Row", "a line of `DATASET/{train,val,test}.jsonl`"),
    "reject": ("rows", "Reject", "a line of `DATASET/rejects.jsonl`"),
    "repair": ("rows", "Repair", "a line of `DATASET/repairs.jsonl`"),
    "duplicate": ("rows", "DroppedCopy", "a line of `DATASET/duplicates.jsonl`"),
    "label-error": ("rows", "DoubtfulLabel", "a line of `DATASET/label_errors.jsonl`"),
    "flagged": ("rows", "FlaggedRow", "a line of `DATASET/flagged.jsonl`"),
    "advice": ("advice", "AdviceRecord", "`ADVICE/advise.json`, and what `tuneloop advise --json` prints"),
    "plan": ("plan", "Plan", "`plan.json`"),
    "run": ("run", "RunManifest", "`RUN/run.json`"),
    "environment": ("run", "Environment", "`RUN/environment.json`"),
    "schedule": ("run", "Schedule", "`RUN/schedule.json`: how many steps, and when it is validated"),
    "step": ("run", "TrainingStep", "a line of `RUN/metrics.jsonl`: an optimizer step"),
    "validation": ("run", "Validation", "a line of `RUN/metrics.jsonl`: a validation"),
    "event": ("run", "Event", "a line of `RUN/metrics.jsonl`: something happened"),
    "finding": ("run", "FindingLine", "a line of `RUN/metrics.jsonl`: a monitor found something"),
    "trained": ("run", "TrainedWeights", "`tuneloop.json`, next to trained weights"),
    "tracking": ("tracking", "TrackingState", "`RUN/tracking*.json`: what a tracker was given"),
    "time": ("run", "TimeChoices", "`RUN/time.json`: what was chosen to keep a limit on the time"),
    "learning-rate": ("run", "LearningRate", "`RUN/learning_rate.json`: the rate that a range test has found"),
    "sweep": ("sweep", "SweepManifest", "`SWEEP/sweep.json`: a search over settings"),
    "evaluation": ("evaluation", "EvaluationManifest", "`eval.json`"),
    "sample": ("evaluation", "Sample", "a line of `samples.jsonl`, next to `eval.json`"),
    "baselines": ("evaluation", "BaselinesManifest", "`RUN/baselines/baselines.json`"),
    "gate": ("evaluation", "GateResult", "`RUN/gate.json`"),
    "review": ("review", "Review", "`REVIEW/review.json`"),
    "asked-again": ("side_effects", "AskedAgain", "a line of `consistency.jsonl`"),
    "judged": ("review", "JudgedRow", "a line of `judge.jsonl`"),
    "review-item": ("review", "ReviewItem", "a line of `REVIEW/items.jsonl`"),
    "vote": ("review", "Vote", "a line of `REVIEW/votes.jsonl`"),
    "artifact": ("artifact", "ArtifactManifest", "`ARTIFACT/artifact.json`"),
    "deploy": ("hosting", "HostedDeployment", "`deploy.json`: a project for a host"),
    "remote": ("hosting", "RemoteJob", "`remote.json`: a project that trains elsewhere"),
    "lineage": ("registry", "Lineage", "the tags `tuneloop.*` of a registered version"),
    "registry-event": ("registry", "RegistryEvent", "a tag `tuneloop.history.*` of a registered model"),
    "reproduction": ("reproduction", "Reproduction", "`reproductions/ID/reproduction.json`"),
    "merge": ("merge", "MergeRecord", "`RUN/merge.json`: how adapters were merged"),
    "distillation": ("distillation", "DistillationRecord", "`RUN/distillation.json`"),
    "teacher": (
        "distillation",
        "TeacherLogits",
        "`RUN/distill/logits-HASH/teacher.json`: a teacher's stored probabilities",
    ),
    "router": ("router", "RouterRecord", "`ROUTER/router.json`"),
    "cascade": ("router", "CascadeRecord", "`cascade.json`: when a larger model is asked"),
    "tasks": ("merge", "TaskDeployment", "`RUN/tasks.json`: which model answers which task"),
    "request": ("request", "StoredRequest", "a request that was served"),
    "server": ("server", "ServerState", "`serve/state.json`: the server that works in a folder"),
    "keys": ("api_key", "KeyFile", "`serve/keys.json`"),
    "decision": ("decision", "Decision", "something that was decided: an event of the store"),
    "experiment": ("experiment", "ExperimentDesign", "`serve/experiments/NAME.json`: what was registered"),
    "verdict": ("experiment", "ExperimentVerdict", "the data of an event `experiment.decision`"),
    "improvement": ("improvement", "ImprovementReport", "`serve/improve/report.json`"),
    "collected": ("collected", "CollectedManifest", "`collect.json`"),
    "monitor": (
        "monitoring",
        "MonitorReport",
        "what `tuneloop monitor --json` prints; the data of an event `monitor.window`",
    ),
    "ab-plan": ("experiment", "ExperimentPlan", "what `tuneloop ab plan --json` prints"),
    "feedback": ("feedback", "Feedback", "what a person said of an answer"),
}


def schema_of(name: str, records: Mapping[str, tuple[str, str, str]]) -> dict[str, Any]:
    """The JSON Schema of one of some records.

    Raises:
        UserError: there is no such record; the nearest name is offered.
    """
    if name not in records:
        step = f"{did_you_mean(name, records)} records: {', '.join(records)}".lstrip()
        raise UserError(f"No such record {name!r}", where="--record", next_step=step)
    module, kind, _ = records[name]
    adapter = TypeAdapter(getattr(import_module(module if "." in module else f"tuneloop.records.{module}"), kind))
    schema: dict[str, Any] = plain(adapter.json_schema())
    return schema
