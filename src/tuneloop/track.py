"""Logging runs to MLflow, from a follower process that can neither stop nor slow the run.

The run folder's files are the truth: `start_tracking` starts a second, low-priority process
(`python -m tuneloop.track`) that reads them as they appear and copies them to MLflow. So importing
MLflow (seconds), a slow or dead server, a locked database or a crash in there cost the training
nothing, and a run that goes on later continues the same MLflow run from where its log ends.

The two speak in JSON lines: the parent writes the settings and at the end `{"finish": STATUS}` (an
end without it means that the parent died); the follower answers with `{"warning": TEXT}`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from tuneloop.files import content_hash, read_json, sha256_file, write_json
from tuneloop.types import UserError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]

POLL_SECONDS = 3.0
RETRY_SECONDS = 30.0
LAST_SECONDS = 60  # the follower ends itself this long after its parent, whatever happens
LONGEST_PARAM = 500
BATCH = 1000  # MLflow takes at most this many metrics in one call, and 100 params or tags
# What makes a run another run; a changed evaluation of the same adapter belongs to the same one.
IDENTITY = ("name", "model", "seed", "data", "train")
# Set unless the user has: without them a dead server is retried for minutes, and MLflow reports usage.
QUICK_AND_QUIET = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


# --- the run's side ----------------------------------------------------------------------------


@dataclass
class Tracker:
    """The run's handle on its follower. Without a follower every call does nothing.

    Args:
        process: the follower, or None.
        warn: called once, with one sentence, when something does not work.
    """

    process: subprocess.Popen[str] | None
    warn: Callable[[str], None]
    warned: bool = False
    reader: threading.Thread | None = field(default=None, repr=False)

    def finish(self, status: Status = "FINISHED", *, timeout: float = 20.0) -> None:
        """Have the rest logged and close the MLflow run; never raises for what goes wrong there.

        Args:
            status: how the run ended.
            timeout: seconds to wait at most for the last writes.
        """
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(OSError, ValueError):
            assert process.stdin is not None
            process.stdin.write(json.dumps({"finish": status}) + "\n")
            process.stdin.close()
        if self.warned:  # it is down: one more try, and no long wait for it
            timeout = min(timeout, 6.0)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._warn_once(
                f"MLflow took more than {timeout:.0f} s to take the last figures; the run itself is complete"
            )
            process.kill()
            process.wait()
        if self.reader is not None:
            self.reader.join(2.0)
        if process.returncode not in (0, None, -signal.SIGKILL):
            self._warn_once(f"Logging to MLflow ended with status {process.returncode}; the run itself is complete")

    def _read(self, stream: TextIO) -> None:
        with contextlib.suppress(ValueError, OSError), stream:
            for line in stream:
                with contextlib.suppress(ValueError):
                    answer = json.loads(line)
                    if isinstance(answer, dict) and "warning" in answer:
                        self._warn_once(str(answer["warning"]))

    def _warn_once(self, text: str) -> None:
        if not self.warned:
            self.warned = True
            self.warn(text)


def start_tracking(
    recipe_dump: Mapping[str, Any],
    run: Path,
    *,
    warn: Callable[[str], None] = _to_stderr,
    poll_seconds: float = POLL_SECONDS,
) -> Tracker:
    """Begin, or continue, to log a run folder to MLflow; returns at once.

    Where it goes: `MLFLOW_TRACKING_URI`, else `mlflow.db` and `mlartifacts/` in the current folder.

    Args:
        recipe_dump: the resolved recipe as plain values; `track.report_to: none` turns this off.
        run: the run folder; `tracking.json` in it remembers the MLflow run.
        warn: told at most once that logging does not work. The run goes on in any case.
        poll_seconds: how often the folder is looked at.
    """
    track = recipe_dump.get("track") or {}
    if track.get("report_to", "mlflow") != "mlflow":
        return Tracker(None, warn)
    tracker = Tracker(None, warn)
    if importlib.util.find_spec("mlflow") is None:
        tracker._warn_once(
            "MLflow is not installed, so this run is not logged there: "
            "pip install 'tuneloop[track]', or set report_to=none"
        )
        return tracker
    settings = {
        "run": str(Path(run).resolve()),
        "config": recipe_dump,
        "experiment": track.get("experiment") or "tuneloop",
        "uri": os.environ.get("MLFLOW_TRACKING_URI") or "",
        "poll_seconds": poll_seconds,
        "started": int(time.time() * 1000),
    }
    source = str(Path(__file__).resolve().parent.parent)
    env = {**QUICK_AND_QUIET, **os.environ}
    env["PYTHONPATH"] = os.pathsep.join(p for p in (source, os.environ.get("PYTHONPATH")) if p)
    try:
        # A session of its own: Ctrl-C ends the run, and the follower then closes the log in order.
        process = subprocess.Popen(
            [sys.executable, "-m", "tuneloop.track"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=env,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(settings, default=str) + "\n")
        process.stdin.flush()
    except OSError as error:
        tracker._warn_once(f"Logging to MLflow could not start ({error}); the run goes on without it")
        return tracker
    tracker.process = process
    tracker.reader = threading.Thread(target=tracker._read, args=(process.stdout,), daemon=True)
    tracker.reader.start()
    return tracker


# --- the follower's side -----------------------------------------------------------------------


@dataclass
class Follower:
    """What the follower knows. `started` is in milliseconds since the epoch; `state` is `tracking.json`."""

    run: Path
    config: dict[str, Any]
    experiment: str
    uri: str
    local: bool
    started: int
    state: dict[str, Any]
    client: MlflowClient | None = None
    offset: int = 0
    opened: bool = False


def main(lines: TextIO | None = None) -> int:
    """Follow a run folder until the parent says that it ended, or dies."""
    with contextlib.suppress(OSError):
        os.nice(10)
    lines = lines or sys.stdin
    settings = json.loads(lines.readline() or "null")
    if not settings:
        return 1
    follower = make_follower(settings)
    warned, failed_at, status = False, -RETRY_SECONDS, ""
    while not status:
        if select.select([lines], [], [], settings["poll_seconds"])[0]:
            line = lines.readline()
            status = json.loads(line)["finish"] if line.strip() else "KILLED"
            signal.alarm(LAST_SECONDS)
        if not status and time.monotonic() - failed_at < RETRY_SECONDS:
            continue
        try:
            sync(follower, last=bool(status))
            if status:
                _client(follower).set_terminated(follower.state["run_id"], status)
        except Exception as error:
            failed_at = time.monotonic()
            if not warned:
                warned = True
                say(f"MLflow could not be written ({_reason(error)}); the run goes on without it")
    return 0


def say(text: str) -> None:
    """Tell the parent; it may be gone."""
    with contextlib.suppress(OSError, ValueError):
        print(json.dumps({"warning": text}), flush=True)


def _reason(error: BaseException) -> str:
    """The cause of a failure in one short line: the innermost message says most."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def make_follower(settings: Mapping[str, Any]) -> Follower:
    """The follower of a run folder, with what an earlier one has logged."""
    run, uri = Path(settings["run"]), settings["uri"]
    local = not uri
    if local:
        uri = f"sqlite:///{Path('mlflow.db').resolve()}"
    config = dict(settings["config"])
    identity = content_hash({key: config.get(key) for key in IDENTITY})
    try:
        state = read_json(run / "tracking.json")
    except (UserError, OSError):
        state = {}
    same = isinstance(state, dict) and state.get("uri") == uri and state.get("identity") == identity
    if not same or state.get("experiment") != settings["experiment"]:
        state = {"version": 1, "uri": uri, "experiment": settings["experiment"], "identity": identity}
    return Follower(run, config, settings["experiment"], uri, local, int(settings["started"]), state)


def _client(follower: Follower) -> MlflowClient:
    if follower.client is None:
        from mlflow.tracking import MlflowClient

        follower.client = MlflowClient(tracking_uri=follower.uri)
    return follower.client


def sync(follower: Follower, *, last: bool = False) -> None:
    """Log what is new in the folder. What was logged stands in `tracking.json` and is not logged again."""
    client = _client(follower)
    if not follower.opened:
        open_run(client, follower)
        follower.opened = True
    log_steps(client, follower)
    for name, log in LOGGED_FILES.items():
        _once(client, follower, name, log)
    if last:
        log_artifacts(client, follower)
    _save(follower)


def _save(follower: Follower) -> None:
    write_json(follower.run / "tracking.json", follower.state)


def _once(
    client: MlflowClient,
    follower: Follower,
    name: str,
    log: Callable[[MlflowClient, Follower, dict[str, Any]], None],
) -> None:
    """Log a file of the folder when it is there and not the one that was logged already."""
    path = follower.run / name
    if not path.exists():
        return
    seen, digest = follower.state.setdefault("seen", {}), sha256_file(path)
    if seen.get(name) != digest:
        value = read_json(path)
        if isinstance(value, dict):
            log(client, follower, value)
        seen[name] = digest


def open_run(client: MlflowClient, follower: Follower) -> None:
    """Find the MLflow run of this folder, or create it with the config as parameters."""
    from mlflow.entities import Param

    state = follower.state
    run = None
    if state.get("run_id"):
        with contextlib.suppress(Exception):  # deleted, or another database: begin anew
            run = client.get_run(state["run_id"])
    if run is None or run.info.lifecycle_stage != "active":
        for key in ("run_id", "train_step", "val_step", "seen", "artifacts"):
            state.pop(key, None)
        experiment = _experiment_id(client, follower)
        run = client.create_run(experiment, follower.started, _source_tags(follower), run_name=follower.run.name)
        state["run_id"] = run.info.run_id
        _save(follower)
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
    place = (Path("mlartifacts").resolve() / _safe(follower.experiment)).as_uri() if follower.local else None
    kind = {"mlflow.experimentKind": "custom_model_development"}  # else the page opens with its views for LLM calls
    return str(client.create_experiment(follower.experiment, artifact_location=place, tags=kind))


def _source_tags(follower: Follower) -> dict[str, str]:
    import getpass

    tags = {"mlflow.source.name": "tuneloop", "mlflow.source.type": "LOCAL", "tuneloop.run": str(follower.run)}
    with contextlib.suppress(Exception):  # no such user in a container
        tags["mlflow.user"] = getpass.getuser()
    return tags


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested config as `section.key -> text`; unset values are left out and long ones cut."""
    out: dict[str, str] = {}
    for key, value in config.items():
        name = _safe(f"{prefix}{key}")
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{name}."))
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            out[name] = text if len(text) <= LONGEST_PARAM else text[: LONGEST_PARAM - 1] + "…"
    return out


def _safe(name: str) -> str:
    """A name that MLflow takes for metrics, parameters and tags."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-. /") else "_" for c in name).strip()[:250] or "_"


# --- what is logged ----------------------------------------------------------------------------


def log_steps(client: MlflowClient, follower: Follower) -> None:
    """Metrics by step from the new lines of `metrics.jsonl`; a step that a resumed run repeats is logged once."""
    from mlflow.entities import Metric

    path, state = follower.run / "metrics.jsonl", follower.state
    if not path.exists():
        return
    if path.stat().st_size < follower.offset:  # cut back to a checkpoint
        follower.offset = 0
    with path.open("rb") as file:
        file.seek(follower.offset)
        block = file.read()
    block = block[: block.rfind(b"\n") + 1]  # the last line may still be in writing
    now, metrics = int(time.time() * 1000), []
    latest = {"train": state.get("train_step", -1), "val": state.get("val_step", -1)}
    for line in block.splitlines():
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError):
            continue
        kind = "val" if "val_loss" in record else "train"
        if step > latest[kind]:
            latest[kind] = step
            metrics += [Metric(name, value, now, step) for name, value in step_metrics(record, kind).items()]
    for i in range(0, len(metrics), BATCH):
        client.log_batch(state["run_id"], metrics=metrics[i : i + BATCH])
    follower.offset += len(block)
    state["train_step"], state["val_step"] = latest["train"], latest["val"]


def step_metrics(record: Mapping[str, Any], kind: str) -> dict[str, float]:
    """The figures of one line of `metrics.jsonl`: `train/loss`, `val/loss`, `train/learning_rate` ..."""
    out = {}
    for key, value in record.items():
        if (
            key not in ("step", "best")
            and isinstance(value, int | float)
            and not isinstance(value, bool)
            and value - value == 0
        ):
            out[f"{kind}/{_safe(key.removeprefix('val_'))}"] = float(value)
    return out


def _tags(client: MlflowClient, follower: Follower, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(follower.state["run_id"], tags=[RunTag(_safe(k), v[:4000]) for k, v in tags.items()][:100])


def _metrics(client: MlflowClient, follower: Follower, values: Mapping[str, float | None]) -> None:
    """Figures of the whole run: logged at step 0."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(_safe(k), v, now, 0) for k, v in values.items() if v is not None]
    for i in range(0, len(metrics), BATCH):
        client.log_batch(follower.state["run_id"], metrics=metrics[i : i + BATCH])


def log_environment(client: MlflowClient, follower: Follower, environment: dict[str, Any]) -> None:
    """The machine as tags, with the commit where MLflow looks for it; package versions are in the artifact."""
    shown = {key: value for key, value in environment.items() if key not in ("version", "packages", "git_commit")}
    tags = {f"environment.{key}": value for key, value in flatten(shown).items()}
    if commit := environment.get("git_commit"):
        tags["mlflow.source.git.commit"] = str(commit)
    _tags(client, follower, tags)


def log_dataset(client: MlflowClient, follower: Follower, manifest: dict[str, Any]) -> None:
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
        source=json.dumps({"uri": (folder if (folder := follower.run / "dataset").is_dir() else follower.run).as_uri()}),
        schema=json.dumps({"mlflow_colspec": columns}),
        profile=json.dumps(profile),
    )
    client.log_inputs(follower.state["run_id"], [DatasetInput(record, [InputTag("mlflow.data.context", "training")])])
    tags = {"dataset.id": str(manifest.get("id", "")), "dataset.hash": str(manifest.get("hash", ""))}
    _tags(client, follower, {key: value for key, value in tags.items() if value})


def log_plan(client: MlflowClient, follower: Follower, plan: dict[str, Any]) -> None:
    """What was predicted."""
    hours = _float((plan.get("time") or {}).get("hours"))
    values = {
        "usage/predicted_minutes": None if hours is None else hours * 60,
        "usage/predicted_peak_memory_gib": _float((plan.get("memory") or {}).get("peak_gib")),
        "usage/predicted_usd": _float((plan.get("cost") or {}).get("usd")),
    }
    _metrics(client, follower, values)


def log_outcome(client: MlflowClient, follower: Follower, run: dict[str, Any]) -> None:
    """What it took."""
    seconds = _float(run.get("seconds"))
    keys = (
        "peak_memory_gib",
        "usd",
        "tokens",
        "tokens_per_second",
        "steps",
        "best_step",
        "best_val_loss",
        "trainable_parameters",
    )
    values = {f"usage/{key}": _float(run.get(key)) for key in keys}
    values["usage/minutes"] = None if seconds is None else seconds / 60
    _metrics(client, follower, values)
    _tags(client, follower, {key: str(run[key]) for key in ("method", "model", "stopped") if run.get(key)})


def log_evaluation(client: MlflowClient, follower: Follower, evaluation: dict[str, Any]) -> None:
    """Scores as metrics, the comparison with intervals and the samples as tables, the verdict as description."""
    split = _safe(str(evaluation.get("split") or "test"))
    contenders = {**(evaluation.get("baselines") or {}), "tuned": evaluation.get("metrics") or {}}
    # The page sorts sections by name: "versus" puts the many bars of the others behind the curves.
    values = {
        f"{split if name == 'tuned' else f'versus {name}'}/{metric}": _float(
            score.get("value") if isinstance(score, dict) else score
        )
        for name, scores in contenders.items()
        for metric, score in scores.items()
    }
    _metrics(client, follower, values)
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
        cells = [None if (value := _float(score.get("value"))) is None else round(value, 4) for score in found]
        bounds = [[_float(score.get(key)) for key in ("low", "high")] for score in found]
        spans = [f"{low:.4g} to {high:.4g}" if low is not None and high is not None else "" for low, high in bounds]
        p = next((c.get("p") for c in pairs if name != "tuned" and name in (c.get("a"), c.get("b"))), None)
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
    for name in (
        "report.html",
        "config.yaml",
        "plan.json",
        "run.json",
        "environment.json",
        "eval.json",
        "samples.jsonl",
        "metrics.jsonl",
        "dataset/dataset.json",
        "dataset/rejects.jsonl",
        "dataset.json",
        "adapter/adapter_config.json",
    ):
        path = follower.run / name
        if path.exists() and seen.get(name) != (digest := sha256_file(path)):
            client.log_artifact(follower.state["run_id"], str(path), str(Path(name).parent) if "/" in name else None)
            seen[name] = digest


def _float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:
        return None
    return float(value)


LOGGED_FILES = {
    "environment.json": log_environment,
    "dataset/dataset.json": log_dataset,
    "dataset.json": log_dataset,  # of a data set that was prepared by itself
    "plan.json": log_plan,
    "run.json": log_outcome,
    "eval.json": log_evaluation,
}


if __name__ == "__main__":
    raise SystemExit(main())
