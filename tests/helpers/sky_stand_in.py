"""SkyPilot's package as far as it is asked: it knows what is there, counts requests, and fails where it is told to.

A test in `tests/deploy/test_skypilot_sdk.py` holds its calls against the signatures of the real package.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class NoCloudAccessError(Exception):
    """As `sky.exceptions` has it."""


class ResourcesUnavailableError(Exception):
    """As `sky.exceptions` has it."""


class ClusterNotUpError(Exception):
    """As `sky.exceptions` has it."""


class CommandError(Exception):
    """As `sky.exceptions` has it."""


class ApiServerAuthenticationError(RuntimeError):
    """As `sky.exceptions` has it."""


class StorageBucketGetError(Exception):
    """As `sky.exceptions` has it."""


class StorageError(Exception):
    """As `sky.exceptions` has it."""


@dataclass
class StandInSky:
    """What is there, and what fails.

    Args:
        usd_per_hour: of a machine, as the optimizer finds it.
        refuses: by name of a request what it raises.
        half_done: whether a start that fails has made something before.

    Attributes:
        there: name -> kind, of what costs money.
        asked: name of each request, with what it was given.
    """

    usd_per_hour: float | None = 2.0
    refuses: dict[str, BaseException] = field(default_factory=dict)
    half_done: bool = True
    there: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)

    def names(self) -> list[str]:
        """Of the requests."""
        return [name for name, _ in self.asked]

    def _make(self, kind: str, name: str, task: Any) -> Any:
        def work() -> Any:
            error = self.refuses.get("launch")
            if error is None or self.half_done:
                self.there[name] = kind
            if error is not None:
                raise error
            return (1, None)

        self.asked.append(("launch", task))
        return work

    def _request(self, name: str, given: Any, work: Any) -> Any:
        def answered() -> Any:
            if error := self.refuses.get(name):
                raise error
            return work()

        self.asked.append((name, given))
        return answered

    def _is_there(self, kind: str, name: str) -> list[Any]:
        return [SimpleNamespace(name=name)] if self.there.get(name) == kind else []

    def module(self) -> ModuleType:
        """The package."""
        sky = ModuleType("sky")
        sky.__spec__ = ModuleSpec("sky", None, is_package=True)
        sky.__path__ = []
        best = SimpleNamespace(
            cloud="AWS", region="us-east-1", instance_type="g6.xlarge", use_spot=False, get_cost=self._cost
        )

        class Task(SimpleNamespace):
            """A task."""

            @staticmethod
            def from_yaml_config(config: dict[str, Any], secrets_overrides: Any = None) -> Any:
                return Task(config=config, secrets=dict(secrets_overrides), num_nodes=config.get("num_nodes"), best_resources=best)  # fmt: skip

        class Dag:
            """Tasks."""

            def __init__(self) -> None:
                self.tasks: list[Any] = []

            def add(self, task: Any) -> None:
                self.tasks.append(task)

        def gone(name: str) -> None:
            self.there.pop(name, None)

        def queue(refresh: bool, skip_finished: bool = False, name_match: str | None = None) -> Any:
            rows = [SimpleNamespace(job_id=n, job_name=name) for n, name in enumerate(self.there) if name == name_match]
            return self._request("jobs.queue_v2", name_match, lambda: (rows, len(rows), {}, len(rows)))

        def cancel_jobs(job_ids: list[int]) -> Any:
            return self._request("jobs.cancel", job_ids, lambda: [gone(list(self.there)[n]) for n in job_ids])

        sky.Task, sky.Dag = Task, Dag  # type: ignore[attr-defined]
        sky.get = sky.stream_and_get = lambda request: request()  # type: ignore[attr-defined]
        sky.optimize = lambda dag: self._request("optimize", dag, lambda: dag)  # type: ignore[attr-defined]
        sky.launch = lambda task, cluster_name: self._make("cluster", cluster_name, task)  # type: ignore[attr-defined]
        sky.status = lambda names: self._request("status", names, lambda: self._is_there("cluster", names[0]))  # type: ignore[attr-defined]
        sky.down = lambda name: self._request("down", name, lambda: gone(name))  # type: ignore[attr-defined]
        sky.api_cancel = lambda request, silent: self._request("api_cancel", request, lambda: [])  # type: ignore[attr-defined]
        jobs = ModuleType("sky.jobs")
        jobs.launch = lambda task, name: self._make("job", name, task)  # type: ignore[attr-defined]
        jobs.queue_v2, jobs.cancel = queue, cancel_jobs  # type: ignore[attr-defined]
        sky.jobs = jobs  # type: ignore[attr-defined]
        return sky

    def _cost(self, seconds: float) -> float:
        if self.usd_per_hour is None:
            raise ValueError("no catalogue")
        return self.usd_per_hour * seconds / 3600


def installed(patch: pytest.MonkeyPatch, stand_in: StandInSky) -> StandInSky:
    """Make it the package that is imported."""
    sky = stand_in.module()
    for name, module in {"sky": sky, "sky.jobs": sky.jobs}.items():
        patch.setitem(sys.modules, name, module)
    return stand_in
