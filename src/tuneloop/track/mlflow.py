"""MLflow: the run with its settings, curves, data set, comparison, samples and small files."""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import sha256_file
from tuneloop.core.foreign import parse_line
from tuneloop.records.dataset import DatasetManifest
from tuneloop.records.evaluation import SAMPLES, Estimate, EvaluationManifest, Metrics, Sample
from tuneloop.records.record import Record, as_line
from tuneloop.records.run import Environment, RunManifest
from tuneloop.track.follow import Follower, Point, flatten, forget, run_metrics, safe, save, to_float
from tuneloop.track.tracking import Status

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SMALL_FILES = (
    "report.html", "config.yaml", "plan.json", "run.json", "environment.json", "schedule.json",
    "eval.json", "samples.jsonl", "metrics.jsonl", "dataset/dataset.json", "dataset/rejects.jsonl", "dataset.json",
    "adapter/adapter_config.json",
)  # fmt: skip
DATASET_FILES = ("dataset.json", "train.jsonl", "val.jsonl", "test.jsonl", "general.jsonl")  # with `track.upload=data`
BATCH = 1000  # MLflow takes at most this many metrics in one call, and 100 params or tags


def open_run(follower: Follower) -> None:
    """Find the MLflow run of this folder, or create it with the config as parameters."""
    from mlflow.entities import Param
    from mlflow.tracking import MlflowClient

    client = follower.client = MlflowClient(tracking_uri=follower.uri)
    run = None
    if follower.state.run_id:
        with contextlib.suppress(Exception):  # deleted, or another database: start again
            run = client.get_run(follower.state.run_id)
    if run is None or run.info.lifecycle_stage != "active":
        forget(follower)
        experiment = _experiment_id(client, follower)
        tags = {"mlflow.source.name": "tuneloop", "mlflow.source.type": "LOCAL", "tuneloop.run": str(follower.run)}
        with contextlib.suppress(Exception):  # no such user in a container
            tags["mlflow.user"] = getpass.getuser()
        run = client.create_run(experiment, follower.started, tags, run_name=follower.run.name)
        follower.state.run_id = run.info.run_id
        save(follower)
    else:
        client.update_run(follower.state.run_id, status="RUNNING")
    _tags(follower, dict.fromkeys((follower.config.get("track") or {}).get("tags") or (), "true"))
    params = [Param(k, v) for k, v in flatten(follower.config).items() if k not in run.data.params]
    for i in range(0, len(params), 100):
        client.log_batch(follower.state.run_id, params=params[i : i + 100])


def _experiment_id(client: MlflowClient, follower: Follower) -> str:
    experiment = client.get_experiment_by_name(follower.experiment)
    if experiment is not None:
        if experiment.lifecycle_stage != "active":
            client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)
    artifact_uri = (Path("mlartifacts").resolve() / safe(follower.experiment)).as_uri() if follower.local else None
    # Some versions choose their views by this, others by the address: docs/tracking.md.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(follower.experiment, artifact_location=artifact_uri, tags=kind))


def _tags(follower: Follower, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    run_tags = [RunTag(safe(key), value[:4000]) for key, value in tags.items()]
    follower.client.log_batch(follower.state.run_id, tags=run_tags[:100])


def log_points(follower: Follower, points: Sequence[Point]) -> None:
    """Metrics by step."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(point.name, point.value, now, point.step) for point in points]
    for i in range(0, len(metrics), BATCH):
        follower.client.log_batch(follower.state.run_id, metrics=metrics[i : i + BATCH])


def log_file(follower: Follower, name: str, record: Record) -> None:
    """Metrics of the whole run, at step 0, and what MLflow shows with them."""
    log_points(follower, [Point(key, value, 0) for key, value in run_metrics(record).items()])
    if isinstance(record, Environment):
        _log_environment(follower, record)
    elif isinstance(record, DatasetManifest):
        _log_dataset(follower, record)
    elif isinstance(record, RunManifest):
        _tags(follower, {key: record[key] for key in ("method", "model", "stopped") if record[key]})
    elif isinstance(record, EvaluationManifest):
        _log_evaluation(follower, record)


def close_run(follower: Follower, status: Status) -> None:
    """Log the small files, and how the run ended."""
    _log_artifacts(follower)
    follower.client.set_terminated(follower.state.run_id, status)


def _log_environment(follower: Follower, environment: Environment) -> None:
    """The machine as tags, with the commit where MLflow looks for it; package versions are in the artifact."""
    elsewhere = ("version", "packages", "git_commit")
    facts = {key: value for key, value in environment.to_json().items() if key not in elsewhere}
    tags = {f"environment.{key}": value for key, value in flatten(facts).items()}
    if environment.git_commit:
        tags["mlflow.source.git.commit"] = environment.git_commit
    _tags(follower, tags)


def _log_dataset(follower: Follower, manifest: DatasetManifest) -> None:
    """The data set as an MLflow dataset input: id, content hash, columns, sizes and its place."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    splits = manifest.splits.by_name
    columns = [{"type": "string", "name": name, "required": True} for name in ("id", "messages")]
    if manifest.labels:
        columns.append({"type": "string", "name": "label", "required": True})
    profile = {
        "task": manifest.task, "counts": manifest.counts.to_json(), "labels": len(manifest.labels or ()),
        "tokens": {name: split.tokens.total if split.tokens else None for name, split in splits.items()},
        "sha256": {name: split.sha256 for name, split in splits.items()},
    }  # fmt: skip
    folder = follower.run / "dataset" if (follower.run / "dataset").is_dir() else follower.run
    source, schema = json.dumps({"uri": folder.as_uri()}), json.dumps({"mlflow_colspec": columns})
    name, digest = manifest.id[:500], manifest.hash[:36]  # MLflow's limits
    record = Dataset(name, digest, "local", source, schema, json.dumps(profile))
    dataset = DatasetInput(record, [InputTag("mlflow.data.context", "training")])
    follower.client.log_inputs(follower.state.run_id, [dataset])
    _tags(follower, {"dataset.id": manifest.id, "dataset.hash": manifest.hash})


def _log_evaluation(follower: Follower, evaluation: EvaluationManifest) -> None:
    """The comparison with intervals and the samples as tables, the verdict as description."""
    systems = {**evaluation.baselines, "tuned": evaluation.metrics}
    metrics = list(systems["tuned"]) or list(next(iter(systems.values()), {}))
    columns = ["system", *metrics, "p", *(f"{m} 95 %" for m in metrics)]
    _table(follower, "comparison.json", columns, _comparison_rows(evaluation, systems, metrics))
    samples = _samples(follower.run / SAMPLES)
    others = list(dict.fromkeys(name for sample in samples for name in sample.baselines))
    rows = [[s.id, s.prompt, s.reference, s.prediction, *map(s.baselines.get, others)] for s in samples]
    _table(follower, "samples.json", ["id", "prompt", "reference", "tuned", *others], rows)
    if evaluation.words:
        _tags(follower, {"mlflow.note.content": "\n\n".join(evaluation.words)})


def _comparison_rows(
    evaluation: EvaluationManifest, systems: Mapping[str, Metrics], metrics: Sequence[str]
) -> list[list[Any]]:
    pairs = [c for c in evaluation.comparisons if metrics and c.metric == metrics[0] and "tuned" in (c.a, c.b)]
    rows = []
    for name, scores in systems.items():
        estimates = [scores.get(metric, Estimate(math.nan)) for metric in metrics]
        cells = [None if math.isnan(score.value) else round(score.value, 4) for score in estimates]
        spans = ["" if math.isnan(score.low) else f"{score.low:.4g} to {score.high:.4g}" for score in estimates]
        pair = next((c for c in pairs if name != "tuned" and name in (c.a, c.b)), None)
        p = None if pair is None else to_float(pair.p_holm if pair.p_holm == pair.p_holm else pair.p)
        rows.append([name, *cells, p, *spans])
    return rows


def _samples(path: Path, most: int = 500) -> list[Sample]:
    """The first rows of `samples.jsonl`; the whole file is an artifact."""
    if not path.exists():
        return []
    samples: list[Sample] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, UserError):
                samples.append(as_line(Sample, parse_line(line), str(path), ""))
            if len(samples) == most:
                break
    return samples


def _table(follower: Follower, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table that MLflow's page shows: the format of `mlflow.log_table`, which itself would append on a rerun."""
    if not rows:
        return
    client, run_id = follower.client, follower.state.run_id
    client.log_dict(run_id, {"columns": list(columns), "data": [list(row) for row in rows]}, name)
    follower.state.tables = list(dict.fromkeys([*follower.state.tables, name]))
    tables = [{"path": path, "type": "table"} for path in follower.state.tables]
    client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(tables))


def _log_artifacts(follower: Follower) -> None:
    """The small files of the folder, those that changed since they were logged. The adapter's weights stay there."""
    seen, config, prepared = follower.state.artifacts, follower.config, follower.run / "dataset"
    files = [(name, follower.run / name) for name in SMALL_FILES]
    if "data" in (config.get("track") or {}).get("upload", ()):
        sources = (config.get("data") or {}).get("sources") or [""]
        folder = prepared if prepared.is_dir() else Path(sources[0])
        files += [(f"dataset/{name}", folder / name) for name in DATASET_FILES]
    for name, path in files:
        if path.exists() and seen.get(name) != (digest := sha256_file(path)):
            folder_there = str(Path(name).parent) if "/" in name else None
            follower.client.log_artifact(follower.state.run_id, str(path), folder_there)
            seen = follower.state.artifacts = {**seen, name: digest}
