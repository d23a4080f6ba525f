"""Runs as lines of a list, and a run's curves as they grow: from its files alone, whoever trains and wherever."""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from markupsafe import Markup

from tuneloop.agents import Job, lives
from tuneloop.core import written as w
from tuneloop.core.confined import leads_into
from tuneloop.core.errors import UserError
from tuneloop.core.foreign import fast_json, file_bytes, is_file, opened, parse_yaml
from tuneloop.evaluation.metrics import metric_of, percentage
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.evaluation import EVALUATION, Estimate
from tuneloop.records.record import read_record
from tuneloop.records.run import RUN
from tuneloop.report import KINDS, METRICS, model_name, outcome_in_short
from tuneloop.report.charts import dot_chart, small_curve
from tuneloop.web.growing import Curves, read_on
from tuneloop.web.index import Found
from tuneloop.web.sources import Sources

State = Literal["finished", "running", "stopped", "damaged"]
LONGEST = 110  # characters of a verdict in the list
FRESH = 120.0  # seconds since its files grew for which a run counts as running where its process can't be seen
LOCKS = Path("/proc/locks")
CONFIG = "config.yaml"
MOST_CURVE = 2 << 20  # bytes of metrics that are drawn in a list


@dataclass(frozen=True)
class RunLine:
    """One run of the list.

    Args:
        place: its folder, as far as it differs from the folders that are shown; `metrics`: value, low, high.
        loss: best validation loss; `usd`, `seconds`: that training took.
    """

    key: str
    path: Path
    place: str
    state: State
    changed: float
    model: str = ""
    dataset: str = ""
    method: str = ""
    steps: int = 0
    loss: float | None = None
    usd: float | None = None
    seconds: float | None = None
    primary: str = ""
    metrics: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    verdict: str = ""
    tags: Sequence[str] = ()
    gate: str = ""  # its status
    problem: str = ""

    @property
    def score(self) -> float | None:
        """The metric that decides."""
        return self.metrics[self.primary][0] if self.primary in self.metrics else None


def run_lines(sources: Sources) -> list[RunLine]:
    """All runs, the latest first; of very many at the start those that were read so far."""
    index, places = sources.index, sources.all("run")
    until = time.monotonic() + (math.inf if index.patience is None else index.patience)
    read = (found for found in places if index.has("line", found) or time.monotonic() < until)
    lines = [run_line(sources, found) for found in read]
    index.unread = len(places) - len(lines)
    return lines


def run_line(sources: Sources, found: Found) -> RunLine:
    """A run as a line; a file of a finished one is read again only when the folder has changed."""
    done = RUN in found.names
    stamp = (found.changed,) if done else (found.changed, _grown(found.path), holder(found.path))
    line = sources.index.facts("line", found, stamp, lambda found: _read(found, sources))
    if not done and line.state == "running" and not _works(found.path):
        line = _read(found, sources)
    return line


def _read(found: Found, sources: Sources) -> RunLine:
    path, problem = found.path, ""
    run: dict[str, Any] = {}
    evaluation, config, data, gate = dict(run), dict(run), dict(run), dict(run)
    try:
        run = _object(path / RUN) if RUN in found.names else {}
        evaluation = _object(path / EVALUATION) if EVALUATION in found.names else {}
        gate = _object(path / "gate.json") if "gate.json" in found.names else {}
        config = {} if run else _config(path / CONFIG)
        data = {} if run or "dataset" not in found.names else _object(path / "dataset" / MANIFEST)
    except FileNotFoundError:
        pass  # it is being made, or deleted
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problem = w.clean(f"can't be read: {str(error)[:200]}")
    state: State = "damaged" if problem else "finished" if run else "running" if _works(path) else "stopped"
    folder = next((root for root in sources.index.folders if leads_into(path, [root])), path)
    location = os.path.relpath(path, folder.resolve()) if path != folder.resolve() else path.name
    changed = max(found.changed, _grown(path)[0] / 1e9) if not run else found.changed
    files = w.section(config.get("data")).get("sources") or [""]
    dataset = run.get("dataset") or data.get("id") or evaluation.get("dataset") or Path(str(files[0])).name
    values: dict[str, Any] = {
        "model": model_name(run.get("model") or config.get("model") or evaluation.get("model") or ""),
        "dataset": w.clean(dataset),
        "method": w.clean(run.get("method") or w.section(config.get("train")).get("method") or ""),
        "steps": int(w.number(run.get("steps")) or 0),
        **{name: w.number(run.get(name)) for name in ("usd", "seconds")}, "loss": w.number(run.get("best_val_loss")),
        "primary": w.clean(evaluation.get("primary") or next(iter(w.section(evaluation.get("metrics"))), "")),
        "metrics": {
            w.clean(name): tuple(w.number(w.section(score).get(key)) for key in ("value", "low", "high"))
            for name, score in w.section(evaluation.get("metrics")).items()
        },
        "verdict": _verdict(evaluation), "problem": problem,
        "gate": w.clean(gate.get("status") or ""),
        "tags": [w.clean(tag) for tag in run.get("tags") or w.section(config.get("track")).get("tags") or []],
    }  # fmt: skip
    return RunLine(found.key, path, w.clean(location), state, changed, **values)


def _verdict(evaluation: dict[str, Any]) -> str:
    """The verdict in a few words; numbers have columns."""
    verdict = w.section(evaluation.get("verdict"))
    standings = [w.section(standing) for standing in verdict.get("standings") or []]
    about = [standing for standing in standings if standing.get("against") == verdict.get("against")]
    gain = w.number(about[0].get("gain")) if about else None
    if (
        gain is not None
        and len({standing.get("name") for standing in standings}) == 1
        and about[0].get("kind") in KINDS
    ):
        return w.clean(outcome_in_short(str(about[0].get("outcome")), about[0]["kind"], str(about[0]["against"]), gain))
    sentence = w.clean(next(iter(evaluation.get("words") or []), ""))
    return w.between_words(sentence.partition(": ")[0], LONGEST)


def _object(path: Path) -> dict[str, Any]:
    value = fast_json(file_bytes(path, "json", below=path.parent))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no object")
    return value


def _config(path: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError):
        value = parse_yaml(file_bytes(path, "yaml", below=path.parent))
        if not isinstance(value, dict):
            raise ValueError(f"{path.name} holds no mapping")
        return value
    return {}


def _grown(path: Path) -> tuple[int, int]:
    """Time and size of a run's metrics."""
    with suppress(OSError):
        status = os.stat(path / METRICS)
        return status.st_mtime_ns, status.st_size
    return 0, 0


def _works(path: Path) -> bool:
    """Whether something works on a run: the process of its lock, or one elsewhere that has just written."""
    return holder(path) is not None or time.time() - _grown(path)[0] / 1e9 < FRESH


def holder(folder: Path) -> int | None:
    """The process of this account that holds a folder; the lock itself is not touched.

    Where the system lists its locks, that list says which process it is, and that process has the very file open; what
    the file says is anyone's. Elsewhere it counts where a process of that number runs tuneloop.
    """
    with suppress(OSError, ValueError), opened(folder / ".lock", below=folder) as file:
        status = os.fstat(file.fileno())
        if not LOCKS.exists():
            pid = int(file.read(40).decode().removeprefix("pid "))
            command = subprocess.run(["ps", "-x", "-o", "command=", "-p", str(pid)], capture_output=True, text=True)
            return pid if "tuneloop" in command.stdout else None
        for line in LOCKS.read_text(encoding="utf-8").splitlines():
            fields_of_line = line.split()
            is_held = (
                "->" not in fields_of_line
                and len(fields_of_line) > 5
                and fields_of_line[5].endswith(f":{status.st_ino}")
            )
            if is_held and status.st_nlink == 1 and _has_open(int(fields_of_line[4]), status):
                return int(fields_of_line[4])
    with suppress(UserError):  # it was started on a page, and holds nothing yet
        if is_file(folder / Job.file, below=folder) and lives(job := read_record(Job, folder, below=folder), folder):
            return job.pid
    return None


def _has_open(pid: int, status: os.stat_result) -> bool:
    """Whether a process has a file open; of processes of other accounts that can't be seen."""
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            if os.path.samestat(os.stat(entry.path), status):
                return True
    return False


def score_picture(line: RunLine, metric: str) -> Markup:
    """A metric of a run as a dot with its interval, and a number; empty where it has none."""
    value, low, high = (*line.metrics.get(metric, ()), None, None, None)[:3]
    if value is None:
        return Markup("")
    score = Estimate(value, math.nan if low is None else low, math.nan if high is None else high)
    figure = percentage(metric) or metric_of(metric).figure
    return dot_chart(score, metric) + Markup(' <b class="figure">{}</b>').format(figure(value))


def loss_picture(sources: Sources, line: RunLine) -> Markup:
    """A run's training loss as a curve the size of a word; empty without one, or with so much of it that
    a list would be slow."""
    if not 0 < _grown(line.path)[1] <= MOST_CURVE:
        return Markup("")
    found = sources.find("run", line.key)
    kept = curves(sources, found)

    def draw(_: Found) -> Markup:
        losses = [(float(step.step), step.loss) for step in kept.between()[0] if math.isfinite(step.loss)]
        return small_curve(losses, "Training loss")

    return sources.index.facts("spark", found, kept.offset, draw)


def curves(sources: Sources, found: Found) -> Curves:
    """A run's curves up to now."""
    return read_on(sources.index.facts("curves", found, None, lambda _: Curves()), found.path / METRICS)


def asked_number(text: str) -> float | None:
    """A number that someone wrote; None: nothing. Raises UserError: it is none."""
    if not text.strip():
        return None
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise UserError("This is not a number", where=text[:80], next_step="write it as 0.8")


def asked_steps(query: Mapping[str, str]) -> tuple[float, float]:
    """First and last step of the curves that `from` and `to` of a query ask for. Raises UserError: no numbers."""
    first, last = (asked_number(query.get(name, "")) for name in ("from", "to"))
    return max(first or 0.0, 0.0), math.inf if last is None else last
