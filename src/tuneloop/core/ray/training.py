"""Training by Ray Train: processes of a cluster train in one run; a lost one costs the steps since its checkpoint."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.object_store import open_store
from tuneloop.core.ray.cluster import last_line, on_ray
from tuneloop.core.ui import in_this_context, quiet, reporting, say
from tuneloop.core.urls import is_url

RESTARTS = 8  # of a training whose processes or machines are lost, before it is given up
PATIENCE = 24 * 3600  # seconds that processes wait for the first one, which prepares and evaluates
POLL = 1.0  # seconds between looks at what the processes say


@dataclass(frozen=True)
class Workers:
    """Processes of a training."""

    count: int  # how many; with fewer machines the training continues with as many as there is room for
    gpu: bool  # whether each has a GPU
    storage: str  # folder for Ray's own records, which all machines see


class Notes:
    """What the processes of a training report to its driver; an actor that outlives them."""

    def __init__(self) -> None:
        self.lines: list[str] = []  # for the user
        self.refusal: UserError | None = None  # trying again would not help

    def say(self, line: str) -> None:
        self.lines.append(line)

    def refuse(self, error: UserError) -> None:
        self.refusal = self.refusal or error

    def verdict(self) -> UserError | None:
        return self.refusal

    def since(self, number: int) -> list[str]:
        """The lines behind the first `number`."""
        return self.lines[number:]


def train_on_ray(name: str, work: Callable[[Any], None], setting: Any, workers: Workers) -> None:
    """Call `work(setting)` in processes of the cluster that know of each other as those of `torchrun` do.

    When a process or its machine is lost, all are started again, on the machines that are left: `work` continues from
    its checkpoint. UserError: by `work`, or too many were lost.
    """
    with on_ray() as ray:
        try:
            from ray.train import FailureConfig, RunConfig, ScalingConfig
            from ray.train.torch import TorchConfig, TorchTrainer
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
        except ImportError as error:
            message = f"Ray Train is not complete here: {error}"
            raise UserError(message, where="ray", next_step="pip install 'tuneloop[ray]'") from None
        # Here, where the driver is: on a machine that is lost the notes would be lost too.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        notes = ray.remote(Notes).options(num_cpus=0, scheduling_strategy=here).remote()
        number = (1, workers.count) if workers.count > 1 else 1
        failures = FailureConfig(max_failures=RESTARTS)
        trainer = TorchTrainer(
            _guarded,
            train_loop_config={"work": work, "setting": setting, "notes": notes},
            torch_config=TorchConfig(timeout_s=PATIENCE),
            scaling_config=ScalingConfig(num_workers=number, use_gpu=workers.gpu, placement_strategy="SPREAD"),
            run_config=RunConfig(name=name, **_storage(workers.storage), failure_config=failures),
        )
        over = threading.Event()
        reading = threading.Thread(target=in_this_context(_pass_on), args=(ray, notes, over), daemon=True)
        reading.start()
        failed: BaseException | None = None
        try:
            failed = trainer.fit().error
        except Exception as error:
            failed = error
        finally:
            over.set()
            reading.join()
        if refusal := ray.get(notes.verdict.remote()):
            raise refusal
        if failed is not None:
            message = f"The training was lost {RESTARTS + 1} times on the cluster: {last_line(failed)}"
            step = "look at `ray status` and Ray's logs; the same command continues from the last checkpoint"
            raise UserError(message, where="ray", next_step=step)


def _storage(location: str) -> dict[str, Any]:
    """Where Ray keeps its records: a folder, or one of an object store."""
    if not is_url(location):
        return {"storage_path": location}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    store = open_store(location)
    return {"storage_path": store.path, "storage_filesystem": PyFileSystem(FSSpecHandler(store.system))}


def _pass_on(ray: Any, notes: Any, over: threading.Event) -> None:
    """Say what the processes say, until the training is over."""
    seen = 0
    while True:
        last = over.wait(POLL)
        for line in ray.get(notes.since.remote(seen)):
            seen += 1
            say(line)
        if last:
            return


def _guarded(config: dict[str, Any]) -> None:
    """The function of each process. After an error of the user all are started again once, and end at once."""
    import ray

    notes = config["notes"]
    if ray.get(notes.verdict.remote()) is not None:
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    first = os.environ.get("RANK", "0") == "0"
    try:
        with reporting(say=lambda line: ray.get(notes.say.remote(line))) if first else quiet():
            config["work"](config["setting"])
    except UserError as error:
        ray.get(notes.refuse.remote(error))
        raise RuntimeError(error.what) from None
    except SystemExit as end:  # of a process that only took part, and has done so
        if end.code:
            raise RuntimeError("another process of this training was lost") from None
