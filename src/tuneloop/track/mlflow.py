"""MLflow: the run with its settings, curves, data set, comparison, samples and small files."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.files import sha256_file
from tuneloop.track import Status
from tuneloop.track.follow import Follower, Point, figures_of, flatten, forget, safe, save, to_float

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SMALL_FILES = (
    "report.html", "config.yaml", "plan.json", "run.json", "environment.json", "schedule.json", "learning_rate.json",
    "eval.json", "samples.jsonl", "metrics.jsonl", "dataset/dataset.json", "dataset/rejects.jsonl", "dataset.json",
    "adapter/adapter_config.json",
)  # fmt: skip
DATASET_FILES = ("dataset.json", "train.jsonl", "val.jsonl", "test.jsonl", "general.jsonl")  # with `track.upload=data`
BATCH = 1000  # MLflow takes at most this many metrics in one call, and 100 params or tags


def _client(follower: Follower) -> MlflowClient:
    if follower.client is None:
        from mlflow.tracking import MlflowClient

        follower.client = MlflowClient(tracking_uri=follower.uri)
    client: MlflowClient = follower.client
    return client


def open_run(follower: Follower) -> None:
    """Find the MLflow run of this folder, or create it with the config as parameters."""
    from mlflow.entities import Param

    client, state = _client(follower), follower.state
    run = None
    if state.get("run_id"):
        with contextlib.suppress(Exception):  # deleted, or another database: begin anew
            run = client.get_run(state["run_id"])
    if run is None or run.info.lifecycle_stage != "active":
        forget(follower)
        experiment = _experiment_id(client, follower)
        run = client.create_run(experiment, follower.started, _source_tags(follower), run_name=follower.run.name)
        state["run_id"] = run.info.run_id
        save(follower)
    else:
        client.update_run(state["run_id"], status="RUNNING")
    known = run.data.params
    params = [Param(k, v) for k, v in flatten(follower.config).items() if k not in known]
    for i in range(0, len(params), 100):
        client.log_batch(state["run_id"], params=params[i : i + 100])


def _experiment_id(client: MlflowClient, follower: Follower) -> str:
    found = client.get_experiment_by_name(follower.experiment)
    if found is not None:
        if found.lifecycle_stage != "active":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    place = (Path("mlartifacts").resolve() / safe(follower.experiment)).as_uri() if follower.local else None
    kind = {
        "mlflow.experimentKind": "custom_model_development"
    }  # some versions choose their views by this, others by the address: docs/train.md
    return str(client.create_experiment(follower.experiment, artifact_location=place, tags=kind))


def _source_tags(follower: Follower) -> dict[str, str]:
    import getpass

    tags = {"mlflow.source.name": "tuneloop", "mlflow.source.type": "LOCAL", "tuneloop.run": str(follower.run)}
    with contextlib.suppress(Exception):  # no such user in a container
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _tags(client: MlflowClient, follower: Follower, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(follower.state["run_id"], tags=[RunTag(safe(k), v[:4000]) for k, v in tags.items()][:100])


def log_points(follower: Follower, points: Sequence[Point]) -> None:
    """Figures by step."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(point.name, point.value, now, point.step) for point in points]
    for i in range(0, len(metrics), BATCH):
        _client(follower).log_batch(follower.state["run_id"], metrics=metrics[i : i + BATCH])


def log_file(follower: Follower, name: str, value: Mapping[str, Any]) -> None:
    """Figures of the whole run, at step 0, and what MLflow shows beside them."""
    log_points(follower, [Point(key, figure, 0) for key, figure in figures_of(name, value).items()])
    beside = {"environment.json": log_environment, "dataset/dataset.json": log_dataset,
              "dataset.json": log_dataset, "run.json": log_outcome, "eval.json": log_evaluation}  # fmt: skip
    if name in beside:
        beside[name](_client(follower), follower, value)


def close_run(follower: Follower, status: Status) -> None:
    """Log the small files, and how the run ended."""
    log_artifacts(_client(follower), follower)
    _client(follower).set_terminated(follower.state["run_id"], status)


def log_environment(client: MlflowClient, follower: Follower, environment: Mapping[str, Any]) -> None:
    """The machine as tags, with the commit where MLflow looks for it; package versions are in the artifact."""
    shown = {key: value for key, value in environment.items() if key not in ("version", "packages", "git_commit")}
    tags = {f"environment.{key}": value for key, value in flatten(shown).items()}
    if commit := environment.get("git_commit"):
        tags["mlflow.source.git.commit"] = str(commit)
    _tags(client, follower, tags)


def log_dataset(client: MlflowClient, follower: Follower, manifest: Mapping[str, Any]) -> None:
    """The data set as an MLflow dataset input: id, content hash, columns, sizes and where it lies."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    splits = {name: facts for name, facts in (manifest.get("splits") or {}).items() if isinstance(facts, dict)}
    columns = [{"type": "string", "name": name, "required": True} for name in ("id", "messages")]
    if manifest.get("labels"):
        columns.append({"type": "string", "name": "label", "required": True})
    profile = {
        "task": manifest.get("task"),
        "counts": manifest.get("counts"),
        "labels": len(manifest.get("labels") or ()),
        "tokens": {name: (facts.get("tokens") or {}).get("total") for name, facts in splits.items()},
        "sha256": {name: facts.get("sha256") for name, facts in splits.items()},
    }
    record = Dataset(
        name=str(manifest.get("id") or manifest.get("name") or "dataset")[:500],
        digest=str(manifest.get("hash") or manifest.get("id") or "unknown")[:36],  # MLflow's limit
        source_type="local",
        source=json.dumps(
            {"uri": (folder if (folder := follower.run / "dataset").is_dir() else follower.run).as_uri()}
        ),
        schema=json.dumps({"mlflow_colspec": columns}),
        profile=json.dumps(profile),
    )
    client.log_inputs(follower.state["run_id"], [DatasetInput(record, [InputTag("mlflow.data.context", "training")])])
    tags = {"dataset.id": str(manifest.get("id", "")), "dataset.hash": str(manifest.get("hash", ""))}
    _tags(client, follower, {key: value for key, value in tags.items() if value})


def log_outcome(client: MlflowClient, follower: Follower, run: Mapping[str, Any]) -> None:
    """How the run was made and ended, as tags."""
    _tags(client, follower, {key: str(run[key]) for key in ("method", "model", "stopped") if run.get(key)})


def log_evaluation(client: MlflowClient, follower: Follower, evaluation: Mapping[str, Any]) -> None:
    """The comparison with intervals and the samples as tables, the verdict as description."""
    contenders = {**(evaluation.get("baselines") or {}), "tuned": evaluation.get("metrics") or {}}
    metrics = list(contenders["tuned"]) or list(next(iter(contenders.values()), {}))
    _table(
        client,
        follower,
        "comparison.json",
        ["contender", *metrics, "p", *(f"{m} 95 %" for m in metrics)],
        _comparison_rows(evaluation, contenders, metrics),
    )
    samples = _samples(follower.run / "samples.jsonl")
    columns = [
        "id",
        "prompt",
        "reference",
        "tuned",
        *dict.fromkeys(k for s in samples for k in s.get("baselines") or {}),
    ]
    rows = [
        [
            s.get("id"),
            s.get("prompt"),
            s.get("reference"),
            s.get("prediction"),
            *[(s.get("baselines") or {}).get(k) for k in columns[4:]],
        ]
        for s in samples
    ]
    _table(client, follower, "samples.json", columns, rows)
    words = evaluation.get("words")
    if isinstance(words, list) and words:
        _tags(client, follower, {"mlflow.note.content": "\n\n".join(map(str, words))})


def _comparison_rows(
    evaluation: Mapping[str, Any], contenders: Mapping[str, Any], metrics: Sequence[str]
) -> list[list[Any]]:
    pairs = [
        c
        for c in evaluation.get("comparisons") or []
        if metrics and c.get("metric") == metrics[0] and "tuned" in (c.get("a"), c.get("b"))
    ]
    rows = []
    for name, scores in contenders.items():
        found = [scores[m] if isinstance(scores.get(m), dict) else {"value": scores.get(m)} for m in metrics]
        cells = [None if (value := to_float(score.get("value"))) is None else round(value, 4) for score in found]
        bounds = [[to_float(score.get(key)) for key in ("low", "high")] for score in found]
        spans = [f"{low:.4g} to {high:.4g}" if low is not None and high is not None else "" for low, high in bounds]
        p = next(
            (c.get("p_holm", c.get("p")) for c in pairs if name != "tuned" and name in (c.get("a"), c.get("b"))), None
        )
        rows.append([name, *cells, p, *spans])
    return rows


def _samples(path: Path, most: int = 500) -> list[dict[str, Any]]:
    """The first rows of `samples.jsonl`; the whole file is an artifact."""
    samples = []
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    value = json.loads(line)
                    if isinstance(value, dict):
                        samples.append(value)
                if len(samples) == most:
                    break
    return samples


def _table(
    client: MlflowClient, follower: Follower, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """A table that MLflow's page shows: the format of `mlflow.log_table`, which itself would append on a rerun."""
    if not rows:
        return
    run_id = follower.state["run_id"]
    client.log_dict(run_id, {"columns": list(columns), "data": [list(row) for row in rows]}, name)
    logged = follower.state.setdefault("tables", [])
    if name not in logged:
        logged.append(name)
    client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": path, "type": "table"} for path in logged]))


def log_artifacts(client: MlflowClient, follower: Follower) -> None:
    """The small files of the folder, those that changed since they were logged. The adapter's weights stay there."""
    seen = follower.state.setdefault("artifacts", {})
    for name, path in [*((name, follower.run / name) for name in SMALL_FILES), *_rows_to_upload(follower)]:
        if path.exists() and seen.get(name) != (digest := sha256_file(path)):
            client.log_artifact(follower.state["run_id"], str(path), str(Path(name).parent) if "/" in name else None)
            seen[name] = digest


def _rows_to_upload(follower: Follower) -> list[tuple[str, Path]]:
    """The data set's files, where `track.upload` asks for them; they may stand outside of the run's folder."""
    config = follower.config
    if "data" not in (config.get("track") or {}).get("upload", ()):
        return []
    own, given = follower.run / "dataset", (config.get("data") or {}).get("sources") or [""]
    folder = own if own.is_dir() else Path(given[0])
    return [(f"dataset/{name}", folder / name) for name in DATASET_FILES]
