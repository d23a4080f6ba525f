"""SkyPilot by its own package: what it offers now, starting it, and taking down what was begun where that fails.

Written after skypilot 0.14's `sky` and `sky.jobs`: each call gives a request's id, `sky.get` its result.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_yaml
from tuneloop.core.ui import say

WHERE = "SkyPilot"
# What is taken down by name, and by which command.
DOWN = {"cluster": "sky down", "job": "sky jobs cancel -n"}


@dataclass(frozen=True)
class SkyJob:
    """What is to be started."""

    file: str  # with the task, in the project's folder
    name: str  # of the cluster or the managed job
    kind: Literal["cluster", "job"]  # which of these it is
    secrets: tuple[str, ...] = ()  # variables of the environment that are sent as secrets

    @property
    def down(self) -> str:
        return f"{DOWN[self.kind]} {self.name}"


@dataclass(frozen=True)
class Offer:
    """What SkyPilot would take now."""

    words: str  # cloud, region and machine
    usd_per_hour: float | None  # of all machines; None: it names no price


def load_sky() -> Any | None:
    """SkyPilot's package; None where it is not installed. What it prints goes to stderr."""
    if importlib.util.find_spec("sky") is None:
        return None
    os.environ.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")  # nothing is sent unless the user asks
    with contextlib.redirect_stdout(sys.stderr):
        try:
            sky = importlib.import_module("sky")
            importlib.import_module("sky.jobs")
        except ImportError:  # another package of that name, or one that is broken
            return None
    return sky if hasattr(sky, "stream_and_get") else None


def find_offer(sky: Any, job: SkyJob, folder: Path) -> Offer:
    """What SkyPilot's optimizer takes for a task now; it shows the others on stderr.

    A UserError says that no cloud is open to the user, that none has the machine, or that its server does not answer.
    """
    with _translated(job), contextlib.redirect_stdout(sys.stderr):
        dag = sky.Dag()
        dag.add(_task(sky, job, folder))
        plan = sky.stream_and_get(sky.optimize(dag))
        task = (plan or dag).tasks[0]
        best = task.best_resources
        if best is None:
            return Offer("a machine that SkyPilot does not name", None)
        parts = (best.cloud, best.region, best.instance_type)
        description = " ".join(str(part) for part in parts if part) + (
            ", which may be taken away" if best.use_spot else ""
        )
        machines = task.num_nodes or 1
        try:
            usd: float | None = machines * float(best.get_cost(3600))
        except Exception:  # its catalogue can't be read here
            usd = None
        return Offer(f"{f'{machines} x ' if machines > 1 else ''}{description}", usd)


def start(sky: Any, job: SkyJob, folder: Path) -> None:
    """Start a task and wait until it is there. Where that fails or is interrupted, what was begun is taken down again.

    Raises:
        UserError: something of that name is there already; it did not start, and what is left, if anything, is named.
        KeyboardInterrupt: the user gave up; nothing is left.
    """
    request: Any = None
    with contextlib.redirect_stdout(sys.stderr):
        with _translated(job):
            before = _there(sky, job)
            if before and job.kind != "job":
                step = f"`{job.down}` takes it down; another name is another one"
                raise UserError(f"There is a {job.kind} named {job.name} already", where=WHERE, next_step=step)
            task = _task(sky, job, folder)
        try:
            if job.kind == "cluster":
                request = sky.launch(task, cluster_name=job.name)
            else:
                request = sky.jobs.launch(task, name=job.name)
            sky.stream_and_get(request)
        except BaseException as error:
            left = _undo(sky, job, request, before)
            if isinstance(error, KeyboardInterrupt) and not left:
                say("up        interrupted; nothing was left there")
                raise
            raise refusal(error, job, left) from None


def _task(sky: Any, job: SkyJob, folder: Path) -> Any:
    config = read_yaml(folder / job.file, "task")
    if config.get("workdir"):
        config["workdir"] = str(folder.resolve())
    secrets = [(name, os.environ[name]) for name in job.secrets if os.environ.get(name)]
    return sky.Task.from_yaml_config(config, secrets_overrides=secrets)


def _there(sky: Any, job: SkyJob) -> list[Any]:
    """What has the job's name: a cluster by name, managed jobs by id, since their names may repeat."""
    if job.kind == "cluster":
        return [job.name] if sky.get(sky.status([job.name])) else []
    try:
        rows = sky.get(sky.jobs.queue_v2(refresh=False, skip_finished=True, name_match=job.name))[0]
    except Exception as error:
        if "ClusterNotUpError" in _kinds(error):  # there is no controller yet, so nothing that it controls
            return []
        raise
    return sorted({_field(row, "job_id") for row in rows if _field(row, "job_name") == job.name})


def _field(row: Any, name: str) -> Any:
    return row[name] if isinstance(row, dict) else getattr(row, name)


def _undo(sky: Any, job: SkyJob, request: Any, before: Sequence[Any]) -> str:
    """Take down what a start has begun; returns what is left, in words: empty where it is nothing."""
    if request is not None:
        with contextlib.suppress(Exception):  # it is over already
            sky.get(sky.api_cancel(request, silent=True))
    try:
        started = [entry for entry in _there(sky, job) if entry not in before]
        if not started:
            return ""
        if job.kind == "cluster":
            sky.get(sky.down(job.name))
        else:
            sky.get(sky.jobs.cancel(job_ids=started))
        left = job.kind == "cluster" and any(entry not in before for entry in _there(sky, job))
        return f"the cluster {job.name}" if left else ""
    except BaseException as error:
        return f"the {job.kind} {job.name}, perhaps ({_first_line(error)})"


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _first_line(error: BaseException) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # its messages have colours
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{lines[0] if lines else type(error).__name__:.200}"


# What SkyPilot raises -> what it means, and what to do. The first that fits counts.
_MEANINGS = (
    ("NoCloudAccessError", "SkyPilot has access to no cloud here", "`sky check` says what each cloud needs"),
    ("ApiServerAuthenticationError", "SkyPilot's server does not know you, or the token has expired",
     "`sky api login`"),
    ("PermissionDeniedError", "SkyPilot's server does not let you do this", "ask who keeps it, or `sky api login`"),
    ("ApiServerConnectionError", "SkyPilot's server does not answer",
     "`sky api info` says where it is; `sky api start`"),
    ("APIVersionMismatchError", "SkyPilot's server and its package here are of different versions",
     "pip install 'skypilot==VERSION' of the server"),
    ("CloudUserIdentityError InvalidCloudCredentials", "The cloud's credentials are no longer good",
     "sign in to the cloud again; `sky check` says whether it helped"),
    ("StorageError StorageSpecError", "The bucket can't be used",
     "name one that you may list, read, write and delete in: --bucket"),
    ("ResourcesUnavailableError", "No cloud of yours has this machine now, or none below the limit",
     "name another --gpu, raise the limit, or try later"),
)  # fmt: skip


def refusal(error: BaseException, job: SkyJob, left: str | None = None) -> UserError:
    """What an error of SkyPilot is to the user.

    Args:
        left: what is still there, in words; empty: nothing; None: nothing was begun.
    """
    kinds = _kinds(error)
    meaning = next((rest for names, *rest in _MEANINGS if kinds.intersection(names.split())), None)
    if isinstance(error, UserError):
        message, step = error.what, error.next_step
    elif isinstance(error, KeyboardInterrupt):
        message, step = "Interrupted", ""
    elif meaning:
        message, step = f"{meaning[0]} ({_first_line(error)})", meaning[1]
    else:
        message, step = f"SkyPilot refuses: {type(error).__name__}: {_first_line(error)}", "`sky api logs` says more"
    after = "nothing was started" if left is None else "nothing was left there"
    if left:
        after = f"still there, and perhaps paid: {left}; `{job.down}` takes it down"
    return UserError(message, where=WHERE, next_step=f"{after}; {step}".removesuffix("; "))


@contextlib.contextmanager
def _translated(job: SkyJob) -> Any:
    """Errors of SkyPilot before anything was started, as the user reads them."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise refusal(error, job) from None
