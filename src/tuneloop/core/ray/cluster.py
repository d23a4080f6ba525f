"""A Ray cluster to work on: the one that is there, one at an address, or one that is started on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError

NAMESPACE = "tuneloop"  # of what stays on a cluster when its driver leaves
_CONNECTING = "ray"


def load_ray() -> Any:
    """Ray's module; UserError: it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent unless the user sets this
    try:
        import ray
    except ImportError:
        step = "pip install 'tuneloop[ray]', on each machine of the cluster"
        raise UserError("Ray is not installed", where=_CONNECTING, next_step=step) from None
    return ray


@contextlib.contextmanager
def on_ray(address: str = "") -> Iterator[Any]:
    """Ray's module, connected. A connection that is there already is used and left open.

    UserError: Ray is not installed, nothing answers, or the cluster has another version of Ray or Python.

    Args:
        address: `HOST:PORT`, or `ray://HOST:PORT` of a cluster that this machine is no part of; empty: `RAY_ADDRESS`,
            or this machine's cluster, or a new one on this machine, which ends with the work.
    """
    ray = load_ray()
    if ray.is_initialized():
        yield ray
        return
    target = address or os.environ.get("RAY_ADDRESS", "")
    try:
        _connect(ray, target)
    except Exception as error:
        with contextlib.suppress(Exception):
            ray.shutdown()
        raise refusal(error, target) from None
    try:
        yield ray
    finally:
        with contextlib.suppress(Exception):
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    """Connect, or start a node here, at the second try where a busy machine needs more than the half minute of Ray."""
    # No worker's prints among the lines that are meant for the user.
    quiet: dict[str, Any] = {"configure_logging": False, "include_dashboard": False, "log_to_driver": False}
    logging.getLogger("ray").setLevel(logging.ERROR)
    options = {} if address.startswith("ray://") else quiet
    noted = ""  # HOST:PORT of the cluster that Ray has noted for this machine
    with contextlib.suppress(OSError):
        folder = Path(os.environ.get("RAY_TMPDIR", "/tmp"))  # noqa: S108 - Ray's own
        noted = (folder / "ray" / "ray_current_cluster").read_text().strip()
    if not address and _is_gone(noted):
        logging.getLogger(__name__).warning("Ray's cluster %s has ended; a new one is started here", noted)
        address = "local"  # Ray itself would wait for it for minutes
    try:
        ray.init(address=address or None, namespace=NAMESPACE, **options)
    except Exception as error:
        if address not in ("", "local") or "timed out during startup" not in str(error):
            raise
        ray.shutdown()
        ray.init(address=address or None, namespace=NAMESPACE, **options)


def _is_gone(address: str) -> bool:
    """Whether a cluster was noted and no one answers there, as after a kill: its note stays."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return False
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return True
    return False


def refusal(error: BaseException, address: str) -> UserError:
    """What a failed connection to an address, or to a cluster on this machine, is to the user."""
    text = str(error)
    if "ersion mismatch" in text or "version is incompatible" in text:
        # Ray's message names the versions of the cluster and of this process, in this order.
        versions = [f"{name} {version}" for name, version in re.findall(r"\b(Ray|Python): ?([0-9][\w.+-]*)", text)]
        there, here = " with ".join(versions[:2]), " with ".join(versions[2:4])
        if len(versions) < 4:
            there, here = "another version of Ray", f"Ray {load_ray().__version__}"
        message = f"The cluster runs {there}, this machine has {here}"
        step = "install the same versions of Ray and Python on both: pip install ray==VERSION"
    elif "uthentication" in text or "auth token" in text.lower():
        message = "The cluster asks for its token, and there is none here, or another or an expired one"
        step = "`ray get-auth-token` on the cluster's head says it: set RAY_AUTH_TOKEN to it here"
    elif address:
        message, places = "No Ray cluster answers there", "ray://HOST:10001 from outside, HOST:6379 from its machines"
        step = f"check the address: {places}; `ray status` there"
    else:
        line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
        message, step = f"Ray does not start here: {line:.200}", "look into /tmp/ray"
    return UserError(message, where=address or "this machine", next_step=step)


def task_errors(ray: Any) -> tuple[type[BaseException], ...]:
    """What Ray raises when work was lost again and again, or could not be sent."""
    names = ("RaySystem", "WorkerCrashed", "RayActor", "ObjectLost", "NodeDied", "OutOfMemory")
    return tuple(getattr(ray.exceptions, f"{name}Error") for name in names)


def answer_of(ray: Any, reference: Any) -> Any:
    """What a task came to; its own error arrives as it was raised. UserError: lost several times, or no package."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, BaseException):
            raise error.cause from None
        if "No module named 'tuneloop" in str(error):
            message = "tuneloop is not installed on the machines of the cluster"
            step = "install the same version on each of them, or give it as the cluster's runtime environment"
            raise UserError(message, where=_CONNECTING, next_step=step) from None
        raise
    except task_errors(ray) as error:
        name = type(error).__name__
        message = f"The cluster lost the same work several times ({name}): there is probably too little memory"
        step = "give Ray fewer processors of each machine (ray start --num-cpus N), or add machines"
        raise UserError(message, where=_CONNECTING, next_step=step) from None


def last_line(error: BaseException) -> str:
    """What an error says, without its traceback: at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:300]


def cpus(ray: Any) -> int:
    """Processors of the cluster that is connected, at least 1."""
    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


def gpus(ray: Any) -> int:
    """GPUs of the cluster that is connected."""
    return int(ray.cluster_resources().get("GPU", 0))


def machines(ray: Any) -> int:
    """Machines of the cluster that is connected which have a processor to give."""
    return sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1) or 1


def address_of(target: str) -> str:
    """The address that `--on` names; empty: the cluster of this machine. The usual port of clients is added."""
    if target == "ray":
        return ""
    host = target.removeprefix("ray://").rstrip("/")
    if not host:
        raise UserError("Which cluster?", where="--on", next_step="write it as ray://HOST:10001")
    return f"ray://{host}" if ":" in host else f"ray://{host}:10001"


def whole_path(name: str) -> str:
    """A folder's path as another process finds it; any other name as it is."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name
