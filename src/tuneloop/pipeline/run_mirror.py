"""A run that an object store keeps too: what is there comes first, checkpoints follow as they are written, the result last."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneloop.core.machine import is_first
from tuneloop.core.object_store import open_store
from tuneloop.core.ui import busy, say
from tuneloop.core.units import counted
from tuneloop.pipeline.context import RunContext
from tuneloop.recipe import Recipe
from tuneloop.records.run import RUN
from tuneloop.training.distributed import local_rank

CHECKPOINTS = "checkpoints"


@contextmanager
def stored(recipe: Recipe, folder: Path) -> Iterator[None]:
    """Work on a run's folder that `recipe.store` keeps as well; without a store nothing is done.

    Of several processes on a machine one fetches and sends.

    Raises:
        UserError: the store refuses or does not answer.
    """
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
    """Send the checkpoints that this machine has written, and drop in the store those that are dropped here.

    Raises:
        UserError: the store refuses or does not answer; the checkpoint on this machine's disk stays.
    """
    if not job.recipe.store:
        return
    if local_rank() != 0:
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
    kept = {file.stem for file in here.glob("*.pt")}
    store.remove([name for name in there if name.startswith(f"{CHECKPOINTS}/") and _checkpoint_of(name) not in kept])


def _how_far(names: Iterable[str]) -> tuple[bool, int]:
    """Whether a run's files say that it is finished, and the step of its last checkpoint."""
    known = set(names)
    steps = [int(found[1]) for name in known if (found := re.fullmatch(rf"{CHECKPOINTS}/step-(\d+)\.pt", name))]
    return RUN in known, max(steps, default=-1)


def _checkpoint_of(name: str) -> str:
    """`step-0000010` of `checkpoints/step-0000010.pt` and of `checkpoints/step-0000010.shards/...`."""
    return name.split("/")[1].split(".")[0]
