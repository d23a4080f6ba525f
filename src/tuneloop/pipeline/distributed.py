"""What several processes of one run do together, and what an object store keeps of the run."""

from __future__ import annotations

import glob
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tuneloop.core import device
from tuneloop.core.device import default_dtype, release_memory
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl
from tuneloop.core.machine import is_first, processes, rank
from tuneloop.core.object_store import open_store
from tuneloop.core.parent import environment_of_child
from tuneloop.core.ui import busy, quiet, say
from tuneloop.core.units import counted
from tuneloop.data import GENERAL_FILE, load_dataset
from tuneloop.inference.local import LocalTarget, SharedWork
from tuneloop.models import needs_several_cards
from tuneloop.models.files import is_encoder
from tuneloop.pipeline.context import RunContext
from tuneloop.recipe import Recipe
from tuneloop.records.plan import MeasuredMachine
from tuneloop.records.rows import Dataset, Row
from tuneloop.records.run import RUN
from tuneloop.training import gathered

if TYPE_CHECKING:
    from tuneloop.models.chat import Rendered
    from tuneloop.recipe import Recipe
    from tuneloop.training import TrainConfig

CHECKPOINTS = "checkpoints"


@contextmanager
def stored(recipe: Recipe, folder: Path) -> Iterator[None]:
    """Work on a run's folder that `recipe.store` keeps too, if set; on each machine one process fetches and sends."""
    if not recipe.store:
        yield
        return
    store = open_store(recipe.store)
    if local_rank() == 0:
        with busy("fetching what the object store has"):
            there = store.sizes()
            here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
            fetched = store.pull(folder, newer=_how_far(there) > _how_far(here), sizes=there)
        if fetched and is_first():
            say(f"store     {counted(fetched, 'file')} of this run were in {recipe.store}")
    yield
    if is_first():
        with busy("sending the run to the object store"):
            store.push(folder)
            store.remove([name for name in store.sizes() if name.startswith(f"{CHECKPOINTS}/")])
        say(f"store     the run is in {recipe.store}")


def keep_checkpoints(job: RunContext) -> None:
    """Send this machine's checkpoints, and drop in the store what is dropped here; `UserError`: the store refuses."""
    if not job.recipe.store or local_rank() != 0:
        return
    store, here = open_store(job.recipe.store), job.folder / CHECKPOINTS
    there = store.sizes()
    if is_first():
        for name in ("metrics.jsonl", "config.yaml", "plan.json", "schedule.json"):
            if (job.folder / name).is_file():
                store.put(job.folder / name, name)
    else:  # the first process alone drops old checkpoints: of its machine's shards this one does
        for shards in sorted(here.glob("*.shards"))[: -job.recipe.train.keep_checkpoints - 1]:
            shutil.rmtree(shards, ignore_errors=True)
    # Shards before the file that names them: a file that is there is complete.
    for shards in sorted(path for path in here.glob("*") if path.is_dir()):
        store.push(job.folder, only=f"{CHECKPOINTS}/{shards.name}", sizes=there)
    if not is_first():
        return
    for file in sorted(here.glob("*.pt")):
        name = f"{CHECKPOINTS}/{file.name}"
        if there.get(name) != file.stat().st_size:
            store.put(file, name)
    steps = {file.stem for file in here.glob("*.pt")}
    ours = [name for name in there if name.startswith(f"{CHECKPOINTS}/")]
    # `step-0000010` of `checkpoints/step-0000010.pt` and of `checkpoints/step-0000010.shards/...`.
    store.remove([name for name in ours if name.split("/")[1].split(".")[0] not in steps])


def _how_far(names: Iterable[str]) -> tuple[bool, int]:
    """Whether a run's files say that it is finished, and the step of its last checkpoint."""
    files = set(names)
    matches = (re.fullmatch(rf"{CHECKPOINTS}/step-(\d+)\.pt", name) for name in files)
    return RUN in files, max((int(match[1]) for match in matches if match), default=-1)


@dataclass(frozen=True)
class RunPart:
    """A part of a run that all its processes do together."""

    task: Literal["measure", "train"]  # the speed, or the training
    dataset: str  # its folder
    config: TrainConfig
    measured: MeasuredMachine = field(default_factory=MeasuredMachine)  # no setting: does not identify a run


@dataclass(frozen=True)
class SharedAnswers:
    """Answers that all processes give together."""

    work: SharedWork
    tuned: bool  # whether of the run's result; else of the base model


@dataclass(frozen=True)
class LetGo:
    """All processes but the first free their devices: it needs them all."""


def shared_out(recipe: Recipe, *, answers_only: bool = False) -> int | None:
    """Run the same command on each of several GPUs (`train.gpus`): the first's exit status; None: there is one GPU.

    Args:
        answers_only: nothing is trained, so that one process uses a model that needs several GPUs.
    """
    if is_encoder(recipe.model):
        return None
    count = processes_wanted(recipe.train.gpus)
    if count > 1 and answers_only and needs_several_cards(recipe.model, default_dtype()):
        return None
    return None if count == 1 else start_processes(count, [sys.executable, "-m", "tuneloop", *sys.argv[1:]])


@contextmanager
def leading(job: RunContext) -> Iterator[None]:
    """Of several processes that share a job the first does it; the others train and answer with it, silently."""
    with joined():
        if is_first():
            if processes() > 1:
                job.workers = lambda work: _answers(job, work)
                job.others_let_go = lambda: broadcast(LetGo())
            yield
            broadcast(None)
            return
        try:
            follower = RunContext(job.recipe, job.folder)
            while (part := broadcast()) is not None:
                if isinstance(part, LetGo):
                    _let_go(follower)
                elif isinstance(part, SharedAnswers):
                    if "training_model" in follower.__dict__:  # it may fill the device
                        _let_go(follower)
                    if part.tuned:
                        follower.attach_trained()
                    with quiet():
                        _own_part(follower, part.work)
                else:
                    _take_part(follower, part)
        except Exception as error:
            if lost_the_first(error):
                raise SystemExit(1) from None  # it has said why
            raise
        raise SystemExit(0)


def distributed_run(job: RunContext, part: RunPart) -> Any:
    """Do a part of the run with all processes."""
    broadcast(part)
    return _take_part(job, part)


def _take_part(job: RunContext, part: RunPart) -> Any:
    """A process's share of a part: a speed, or the result of training."""
    from tuneloop.training import TrainingJob, measure_speed, train

    model, seed = job.training_model, job.recipe.seed
    dataset = load_dataset(part.dataset)
    rows = job.rendered(dataset.train)
    if part.task == "measure":
        return measure_speed(model, rows, part.config, seed, kept_layers=part.measured.kept_layers)
    return train(
        model,
        rows,
        job.rendered(dataset.val),
        part.config,
        job.folder,
        seed=seed,
        job=TrainingJob(
            general=held_out(job, dataset),
            mixed=job.mixed(dataset.train),
            ids=job.ids(dataset.train),
            data_id=dataset.manifest.hash,
            measured=part.measured,
            saved=lambda: keep_checkpoints(job),
        ),
        log=lambda record: _report(job, record),
    )


def _answers(job: RunContext, work: SharedWork) -> list[Any]:
    """Answers of all processes, in the order of the rows; an error that any of them has met is raised."""
    broadcast(SharedAnswers(work, job.tuned))
    by_row: dict[int, Any] = {}
    for part in _own_part(job, work):
        if isinstance(part, Exception):
            raise part
        by_row |= part
    return [by_row[i] for i in range(len(work.rows))]


def _let_go(job: RunContext) -> None:
    """Free the device of what a following process has loaded."""
    for name in ("training_model", "model"):
        job.__dict__.pop(name, None)
    release_memory()


def _own_part(job: RunContext, work: SharedWork) -> list[Any]:
    """What each process has answered, by row, or the error that it has met: all of them wait here for each other."""
    result: dict[int, Any] | Exception
    try:
        result = work.part(LocalTarget.of(replace(job.model, workers=None)), rank(), processes())
    except Exception as error:
        result = error
    return gathered(result)


def held_out(job: RunContext, dataset: Dataset) -> list[Rendered]:
    """General rows that were held out of a mix: their loss shows what training forgets."""
    file = Path(dataset.path) / GENERAL_FILE
    rows = [Row.from_json(record) for record in read_jsonl(file)] if file.is_file() else []
    return [job.template.render(row.messages, row.tools) for row in rows]


def _report(job: RunContext, record: Mapping[str, Any]) -> None:
    """Say what the monitors find, and what the loop does about it."""
    job.on_record(record)
    if "finding" in record:
        rows = f"\n          rows of that step: {', '.join(record['rows'])}" if record["rows"] else ""
        tries = "; ".join(remedy for remedy in record["remedies"] if not remedy.startswith("look at these rows"))
        say(f"monitor   {record['sentence']}{rows}\n          try: {tries}")
    elif "event" in record:
        say(f"train     {record['message']}")


# --- processes that know of each other ------------------------------------------------------------

PATIENCE = timedelta(hours=24)  # processes wait for the first one while it prepares data


@contextmanager
def joined() -> Iterator[None]:
    """The processes connected: by NCCL between GPUs, by gloo between processors."""
    if processes() == 1:
        yield
        return
    import torch.distributed as dist

    device.use(local_rank())
    if dist.is_initialized():  # by Ray Train, which also ends it
        yield
        return
    dist.init_process_group(device.backend().collectives, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """Place of this process among those on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def processes_wanted(gpus: int | str) -> int:
    """Processes that a run should start for itself: one where it has been started as one of several (`torchrun`).
    `gpus`: `train.gpus`. Raises UserError: there are fewer GPUs."""
    if "WORLD_SIZE" in os.environ or gpus == 1:
        return 1
    if gpus == "auto" and len(glob.glob("/dev/nvidia[0-9]*") + glob.glob("/dev/dri/renderD*")) < 2:
        return 1  # known without loading torch
    import torch  # noqa: F401  # before it is loaded there are no GPUs, see `core.device`

    seen = len(device.names())
    if gpus == "auto":
        return max(seen, 1)
    if 0 < seen < int(gpus):
        message, step = f"{gpus} GPUs are requested, and torch sees {seen}", "set train.gpus=auto"
        raise UserError(message, where="train.gpus", next_step=f"{step}, or look at CUDA_VISIBLE_DEVICES")
    return int(gpus)


GRACE = 60.0  # seconds that processes have to end on their own once one of them has


def start_processes(count: int, command: Sequence[str]) -> int:
    """Run a command in so many processes that know of each other, as `torchrun` would; returns the first's exit status.
    The first alone has stdin and stdout. SIGTERM is passed on. When one ends, the others are killed after `GRACE`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        rendezvous = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    children = []
    for i in range(count):
        environment = {**environment_of_child(), **rendezvous, "RANK": str(i), "LOCAL_RANK": str(i)}
        stream = subprocess.DEVNULL if i else None
        children.append(subprocess.Popen(list(command), env=environment, stdin=stream, stdout=stream))

    def pass_on(number: int, frame: Any) -> None:
        for child in children:
            child.send_signal(number)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
    }
    try:
        ended = 0.0
        while any(child.poll() is None for child in children):
            if not ended and any(child.poll() is not None for child in children):
                ended = time.monotonic()
            if ended and time.monotonic() - ended > GRACE:
                for child in children:
                    child.kill()
            time.sleep(0.1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in children:
            if child.poll() is None:
                child.kill()
    statuses = [child.returncode for child in children]
    worst = statuses[0] or next((status for status in statuses if status), 0)
    return worst if worst >= 0 else 128 - worst


def broadcast(value: Any = None) -> Any:
    """Something picklable of the first process, on all of them; the others call it without a value."""
    if processes() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def lost_the_first(error: BaseException) -> bool:
    """Whether an error only says that another process has ended."""
    text = str(error)
    return processes() > 1 and isinstance(error, RuntimeError) and ("gloo" in text or "NCCL" in text)
