"""A job whose driver lives on the cluster: who started it from elsewhere may leave, and finds it again by its name."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.ray.cluster import answer_of, task_errors
from tuneloop.core.ui import reporting, say

PART = 8 << 20  # bytes of a file that are sent at once
POLL = 1.0  # seconds between looks at what the driver says
DATASET = "dataset"
LEFT_OUT = ("checkpoints", ".ray", ".lock")  # what is not brought back

Work = Callable[[Any, Path], None]


class Driver:
    """An actor that outlives its client: takes files, does the work in a thread, and gives files back."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder).expanduser()  # of the job, on the cluster
        self.lines: list[str] = []
        self.state = "new"
        self.error: UserError | None = None  # why it failed

    def write(self, name: str, data: bytes, first: bool) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb" if first else "ab") as file:
            file.write(data)

    def start(self, work: Work, setting: Any) -> None:
        """Begin `work(setting, folder)`, unless it was begun."""
        if self.state == "new":
            self.state = "running"
            threading.Thread(target=self._do, args=(work, setting), daemon=True).start()

    def _do(self, work: Work, setting: Any) -> None:
        try:
            with reporting(say=self.lines.append):
                work(setting, self.folder)
            self.state = "done"
        except UserError as error:
            self.error, self.state = error, "failed"
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"[:500]
            self.error = UserError(message, where="the cluster", next_step="look at Ray's logs")
            self.state = "failed"

    def look(self, since: int) -> tuple[str, list[str], UserError | None]:
        """State, the lines behind the first `since`, and why it failed."""
        return self.state, self.lines[since:], self.error

    def files(self) -> dict[str, int]:
        paths = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        names = {path.relative_to(self.folder): path.stat().st_size for path in paths}
        return {name.as_posix(): size for name, size in names.items() if name.parts[0] not in LEFT_OUT}

    def read(self, name: str, start: int) -> bytes:
        with (self.folder / name).open("rb") as file:
            file.seek(start)
            return file.read(PART)


def drive(ray: Any, name: str, work: Work, setting: Any, *, data: Path, remote: str, local: Path) -> None:
    """Have a cluster do a job, or follow the one of this name that it is doing, and bring the result here.

    Args:
        name: of the job: the same name finds it again.
        data: folder of the data set, whose files go into `remote`/dataset first.
        remote: folder of the job on the cluster.

    Raises:
        UserError: what the work raises; the driver's machine was lost.
        KeyboardInterrupt: the user leaves; the job continues.
    """
    try:
        driver = ray.get_actor(name)
        say(f"ray       {name} is at work there already: followed")
        fresh = False
    except ValueError:
        options = {"name": name, "lifetime": "detached", "num_cpus": 0, "max_concurrency": 4}
        driver, fresh = ray.remote(Driver).options(**options).remote(remote), True
        answer_of(ray, driver.look.remote(0))  # it is there, and so is the package
    try:
        if fresh:
            _send(ray, driver, data)
        ray.get(driver.start.remote(work, setting))
        seen = 0
        while True:
            state, lines, error = ray.get(driver.look.remote(seen))
            seen += len(lines)
            for line in lines:
                say(line)
            if state in ("done", "failed"):
                break
            time.sleep(POLL)
        if state == "done":
            _fetch(ray, driver, local)
        ray.kill(driver)
        if error is not None:
            raise error
    except KeyboardInterrupt:
        say(f"ray       {name} continues there; the same command comes back to it")
        raise
    except task_errors(ray):
        step = "run the same command again: it continues from the last checkpoint"
        raise UserError("The machine on which the job's driver was is lost", where=name, next_step=step) from None


def _send(ray: Any, driver: Any, folder: Path) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        name = (Path(DATASET) / path.relative_to(folder)).as_posix()
        with path.open("rb") as file:
            part, first = file.read(PART), True
            while part or first:
                ray.get(driver.write.remote(name, part, first))
                part, first = file.read(PART), False


def _fetch(ray: Any, driver: Any, local: Path) -> None:
    for name, size in ray.get(driver.files.remote()).items():
        path = local / name
        if path.is_file() and path.stat().st_size == size and path.suffix not in (".json", ".jsonl"):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        partly = path.with_name(f".{path.name}.part")
        with partly.open("wb") as file:
            while file.tell() < size:
                data = ray.get(driver.read.remote(name, file.tell()))
                if not data:
                    break
                file.write(data)
        shutil.move(partly, path)
