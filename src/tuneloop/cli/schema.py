"""`tuneloop schema`, and the JSON Schema of every record by its name."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

from pydantic import TypeAdapter

from tuneloop.cli.answers import ANSWERS, ERROR, SAME, TYPES
from tuneloop.cli.console import Result
from tuneloop.cli.parameters import output
from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.files import plain
from tuneloop.core.flag import flag, switch

# Name -> the module and the class, and the file that holds it.
RECORDS: dict[str, tuple[str, str, str]] = {
    "dataset": ("records.dataset", "DatasetManifest", "`DATASET/dataset.json`"),
    "row": ("records.rows", "Row", "a line of `DATASET/{train,val,test}.jsonl`"),
    "reject": ("records.rows", "Reject", "a line of `DATASET/rejects.jsonl`"),
    "repair": ("records.rows", "Repair", "a line of `DATASET/repairs.jsonl`"),
    "duplicate": ("records.rows", "DroppedCopy", "a line of `DATASET/duplicates.jsonl`"),
    "label-error": ("records.rows", "DoubtfulLabel", "a line of `DATASET/label_errors.jsonl`"),
    "flagged": ("records.rows", "FlaggedRow", "a line of `DATASET/flagged.jsonl`"),
    "advice": ("records.advice", "AdviceRecord", "`ADVICE/advise.json`, and what `tuneloop advise --json` prints"),
    "plan": ("records.plan", "Plan", "`plan.json`"),
    "run": ("records.run", "RunManifest", "`RUN/run.json`"),
    "environment": ("records.run", "Environment", "`RUN/environment.json`"),
    "schedule": ("records.run", "Schedule", "`RUN/schedule.json`: how many steps, and when it is validated"),
    "step": ("records.run", "TrainingStep", "a line of `RUN/metrics.jsonl`: an optimizer step"),
    "validation": ("records.run", "Validation", "a line of `RUN/metrics.jsonl`: a validation"),
    "event": ("records.run", "Event", "a line of `RUN/metrics.jsonl`: something happened"),
    "finding": ("records.run", "FindingLine", "a line of `RUN/metrics.jsonl`: a monitor found something"),
    "trained": ("records.run", "TrainedWeights", "`tuneloop.json`, next to trained weights"),
    "encoder": ("records.encoder", "EncoderManifest", "`RUN/encoder/encoder.json`: an encoder with a head"),
    "job": ("agents.jobs", "Job", "`RUN/job.json`: the process of a run that a coding agent has started"),
    "tracking": ("track.record", "TrackingState", "`RUN/tracking*.json`: what a tracker has got"),
    "time": ("records.run", "TimeChoices", "`RUN/time.json`: what was chosen to keep a limit on the time"),
    "sweep": ("pipeline.sweep", "SweepManifest", "`SWEEP/sweep.json`: a search over settings"),
    "prompt": ("records.prompt", "PromptManifest", "`RUN/prompt.yaml`: a prompt for a model"),
    "prompt-search": ("records.prompt", "PromptSearch", "`RUN/search.json`: how a prompt was found"),
    "evaluation": ("records.evaluation", "EvaluationManifest", "`eval.json`"),
    "sample": ("records.evaluation", "Sample", "a line of `samples.jsonl`, next to `eval.json`"),
    "baselines": ("records.evaluation", "BaselinesManifest", "`RUN/baselines/baselines.json`"),
    "prompts": ("records.evaluation", "PromptChoice", "`RUN/baselines/prompts.json`"),
    "gate": ("records.evaluation", "GateResult", "`RUN/gate.json`"),
    "review": ("records.review", "Review", "`REVIEW/review.json`"),
    "asked-again": ("evaluation.consistency", "AskedAgain", "a line of `consistency.jsonl`"),
    "judged": ("records.review", "JudgedRow", "a line of `judge.jsonl`"),
    "review-item": ("records.review", "ReviewItem", "a line of `REVIEW/items.jsonl`"),
    "vote": ("records.review", "Vote", "a line of `REVIEW/votes.jsonl`"),
    "artifact": ("records.artifact", "ArtifactManifest", "`ARTIFACT/artifact.json`"),
    "deploy": ("deploy.record", "HostedDeployment", "`deploy.json`: a project for a host"),
    "remote": ("deploy.record", "RemoteJob", "`remote.json`: a project that trains elsewhere"),
    "migration": ("migrate.record", "Migration", "`FOLDER/migration.json`: what was copied from a hosted service"),
    "hosted": ("deploy.hosted", "HostedRun", "`RUN/hosted.json`: a run on a service's machines"),
    "lineage": ("registry.record", "Lineage", "the tags `tuneloop.*` of a registered version"),
    "registry-event": ("registry.record", "RegistryEvent", "a tag `tuneloop.history.*` of a registered model"),
    "reproduction": ("release.reproduction", "Reproduction", "`reproductions/ID/reproduction.json`"),
    "merge": ("records.merge", "MergeRecord", "`RUN/merge.json`: how adapters were merged"),
    "distillation": ("records.distillation", "DistillationRecord", "`RUN/distillation.json`"),
    "teacher": ("records.distillation", "TeacherLogits", "`RUN/distill/logits-*/teacher.json`: stored probabilities"),
    "router": ("records.router", "RouterRecord", "`ROUTER/router.json`"),
    "cascade": ("records.router", "CascadeRecord", "`cascade.json`: when a larger model answers"),
    "tasks": ("records.merge", "TaskDeployment", "`RUN/tasks.json`: which model answers which task"),
    "request": ("records.request", "StoredRequest", "a request that was served"),
    "server": ("records.server", "ServerState", "`serve/state.json`: the server that works in a folder"),
    "keys": ("serving.keys", "KeyFile", "`serve/keys.json`"),
    "decision": ("records.server", "Decision", "something that was decided: an event of the store"),
    "experiment": ("improve.experiment.record", "ExperimentDesign", "`serve/experiments/NAME.json`: a registration"),
    "verdict": ("improve.experiment.record", "ExperimentVerdict", "the data of an event `experiment.decision`"),
    "improvement": ("improve.report.record", "ImprovementReport", "`serve/improve/report.json`"),
    "collected": ("records.server", "CollectedManifest", "`collect.json`"),
    "monitor": ("improve.monitor.record", "MonitorReport", "what `monitor --json` prints; an event `monitor.window`"),
    "ab-plan": ("improve.experiment.record", "ExperimentPlan", "what `tuneloop ab plan --json` prints"),
    "feedback": ("records.feedback", "Feedback", "what a person said of an answer"),
    "task": ("data.task", "TaskSpec", "`task` in `ADAPTER/tuneloop.json` and `ARTIFACT/artifact.json`"),
    "serve": ("serving.config", "ServeConfig", "`serve.yaml`"),
    "plan-options": ("planning.config", "PlanOptions", "the options of `tuneloop plan`"),
    "advise-options": ("advice.config", "AdviseOptions", "the options of `tuneloop advise`"),
}


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of a record; a UserError offers the nearest name where there is none of this one."""
    if name not in RECORDS:
        step = f"{did_you_mean(name, RECORDS)} records: {', '.join(RECORDS)}".lstrip()
        raise UserError(f"No such record {name!r}", where="--record", next_step=step)
    module, kind, _ = RECORDS[name]
    adapter = TypeAdapter(getattr(import_module(f"tuneloop.{module}"), kind))
    schema: dict[str, Any] = plain(adapter.json_schema())
    return schema


def schema_of_answer(command: str) -> dict[str, Any]:
    """The JSON Schema of what a command prints with `--json`, an error included.

    Args:
        command: its words, as in `data check`.

    Raises:
        UserError: there is no such command; the nearest one is offered.
    """
    if (name := SAME.get(command, command)) not in ANSWERS:
        step = f"{did_you_mean(command, ANSWERS)} commands: {', '.join(ANSWERS)}".lstrip()
        raise UserError(f"No such command {command!r}", where="--answer", next_step=step)
    answers = [_schema(answer) for answer in ANSWERS[name]]
    parts = {part: schema for answer in answers for part, schema in answer.pop("$defs", {}).items()}  # refs name them
    return {"title": f"tuneloop {command} --json", "anyOf": [*answers, ERROR], **({"$defs": parts} if parts else {})}


def _schema(answer: str) -> dict[str, Any]:
    """The schema of one answer of the table."""
    terms = answer.split()
    record: dict[str, Any] = {"type": "object", "properties": {}}
    if answer.startswith("@"):
        record = schema_of(terms.pop(0)[1:])
        if "$ref" in record:  # it holds itself
            record = {**record["$defs"][record["$ref"].rpartition("/")[2]], "$defs": record["$defs"]}
    properties, required = dict(record["properties"]), [*record.get("required", ())]
    for word in terms:
        key, _, kind = word.rstrip("?~").partition(":")
        types = [TYPES[kind], *(["null"] if word.endswith("?") else [])] if kind else []
        properties[key] = {"type": types[0] if len(types) == 1 else types} if types else {}
        required += [] if word.endswith("~") else [key]
    return {**record, "properties": properties, "required": required, "additionalProperties": True}


def command(
    record: str = flag("", "NAME", "Print the schema of a file's record: such as dataset, run, plan or evaluation."),
    keys: bool = switch("Print a table of keys, defaults and meanings instead."),
    answer: str = flag("", "COMMAND", "Print the schema of what a command prints with --json, as in 'data check'."),
) -> Result:
    """Print the JSON Schema of a recipe, record or answer, or keys."""
    from tuneloop.recipe import Recipe, describe_keys

    if keys and not record and not output().as_json:
        lines = [f"{key:<28} {default:<16} {meaning}" for key, default, meaning in describe_keys()]
        return Result(None, lines)
    if answer:
        return Result(schema_of_answer(answer), [json.dumps(schema_of_answer(answer), indent=2)])
    schema = schema_of(record) if record else Recipe.model_json_schema()
    return Result(schema, [json.dumps(schema, indent=2)])
