"""`tuneloop batch`: a file or folder of requests, rows or documents answered without a server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import re
import shutil
import tempfile
from array import array
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder, remove_locked, replacing, sha256_file, user_errors_of_the_disk
from tuneloop.core.foreign import parse_line
from tuneloop.core.ray.actors import asked_actors, usual_actors
from tuneloop.core.ray.cluster import address_of, on_ray, whole_path
from tuneloop.core.ui import progress, quiet, say
from tuneloop.core.units import counted, verb
from tuneloop.data import TaskPrompt
from tuneloop.data.formats import Rejection
from tuneloop.data.sources import SourceRecord
from tuneloop.pipeline.answers import SAMPLE, Asker, Options, TaskTarget, each_row, open_with_task, refuse_no_rows
from tuneloop.serving.batch.batch import ERRORS, INPUT, JOURNAL, OUTPUT, STATE, Answer, BatchJob, answer_by, make_batch
from tuneloop.serving.batch.file import Line, any_twice, id_hash
from tuneloop.serving.batch.record import read_state
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import Caller, Gateway
from tuneloop.serving.models import deployment_of
from tuneloop.serving.server import gateway_of

URL = "/v1/chat/completions"
DOCUMENTS = (".txt", ".md", ".text", ".rst")
FIRST, LONGEST = 20, 1 << 24  # lines that show what a file holds, and bytes of one that are read


@dataclass(frozen=True)
class BatchInput:
    """What is answered."""

    source: Path  # a file of requests as OpenAI's batch API has them, a file of rows, or a folder of texts
    out: Path  # result; its errors come next to it
    window: str = ""  # time until it ends, whatever is left, as in 90m, 24h, 2d; empty: no limit
    hours: str = ""  # of the day in which it works, local time, as in 22-06; empty: all
    rows: int = 16  # answered at the same time, by each actor
    on: str = ""  # a Ray cluster whose actors answer, see `deploy/on_ray.py`; empty: this process does
    actors: int = 0  # how many; 0: one for each GPU, else for each machine
    column: str = ""  # of rows, the one that is the prompt; empty: those of training
    system: str | None = None  # of rows and texts, in place of the trained system turn; "" for none

    @property
    def errors(self) -> Path:
        """The file of errors."""
        return self.out.with_name(f"{self.out.stem}.errors.jsonl")

    @property
    def folder(self) -> Path:
        """Where the work is kept until it is done."""
        return self.out.with_name(f"{self.out.name}.batch")


def answer_batch(job: BatchInput, config: ServeConfig) -> dict[str, Any]:
    """Answer a batch to its end, or continue it; returns status, counts and files.

    Args:
        config: of the engine; its first adapter, or its base, answers.

    Raises:
        UserError: nothing to answer, another batch is under way in the same place, or a time is none.
    """
    seconds, _ = read_window(job.window), read_hours(job.hours)
    target = open_with_task(next(iter(config.adapters.values()), config.base))
    requests, folder, key = is_request_file(job.source), job.folder, _key(job, config)
    with lock_folder(folder, minor=(INPUT,), instead="--out FILE"):
        if (folder / STATE).exists() or (folder / JOURNAL).exists():
            if read_state(folder).key != key:
                step = "choose another --out, or delete that folder to give it up"
                raise UserError("Another batch is under way here", where=str(folder), next_step=step)
            say(f"batch     continues {folder}")
        else:
            with user_errors_of_the_disk(folder):
                if requests:
                    shutil.copyfile(job.source, folder / INPUT)
                else:
                    _write_rows(job, target)
            make_batch(folder, "", seconds=seconds, key=key)
        answering = _answer_on_ray if job.on else _answer
        status = asyncio.run(answering(job, config, target, requests))
        state = read_state(folder)
        if status == "failed":
            errors = (state.errors or {}).get("data") or [{}]
            message = str(errors[0].get("message", "The batch failed"))
            raise UserError(message, where=str(job.source), next_step=f"correct it and delete {folder}")
        with user_errors_of_the_disk(job.out):
            job.out.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / OUTPUT, job.out)
            shutil.copyfile(folder / ERRORS, job.errors)
            remove_locked(folder)
    return {"status": status, **state.request_counts.to_json(), "out": str(job.out), "errors": str(job.errors)}


async def _run(job: BatchInput, config: ServeConfig, answer: Answer, actors: int = 1, **options: Any) -> str:
    report, most = partial(progress, "batch"), int(config.limits.body_mb * 1e6)
    rows, room = job.rows * actors, _within(read_hours(job.hours))
    return await BatchJob(job.folder, answer, rows, room, report=report, most_bytes=most, **options).run()


async def _answer(job: BatchInput, config: ServeConfig, target: TaskTarget, requests: bool) -> str:
    deployment = deployment_of(config)
    await deployment.engine.start()
    try:
        gateway = gateway_of(config, deployment)
        gateway.batches_only = True
        try:
            return await _run(job, config, _answer_of(gateway, target, requests, job.folder))
        finally:
            await asyncio.to_thread(gateway.store.stop)
    finally:
        await deployment.engine.stop()


def _answer_of(gateway: Gateway, target: TaskTarget, requests: bool, folder: Path) -> Answer:
    """What answers a line of the batch in a folder by the gateway's first model."""
    name, model = next(iter(gateway.models.items()))
    plain_text = target.task is not None and target.task.format == "text"
    if not requests and not plain_text:  # the rows' prompts are made already; of plain texts they are made by the model
        gateway.models[name] = replace(model, read=None)
    return answer_by(gateway, Caller(), folder / JOURNAL, name)


async def _answer_on_ray(job: BatchInput, config: ServeConfig, target: TaskTarget, requests: bool) -> str:
    """As `_answer`, by actors; the journal is here, so that each row is done once whatever is lost there."""
    with on_ray(address_of(job.on)) as ray:
        actors = usual_actors(ray, job.actors)
        answer_ = verb(actors, "answers", "answer")
        say(f"ray       {counted(actors, 'actor')} {answer_}, {counted(job.rows, 'row')} at a time each")
        adapters = {name: whole_path(adapter_folder) for name, adapter_folder in config.adapters.items()}
        setting = config.model_copy(update={"adapters": adapters, "base": whole_path(config.base)}), requests
        async with asked_actors(ray, _actor, setting, actors, job.rows) as answer:
            return await _run(job, config, answer, actors, fatal=(UserError,))  # which says that all actors are lost


async def _actor(setting: tuple[ServeConfig, bool]) -> Answer:
    """What answers lines in an actor, which ends with it. No one reads its store: the driver's journal counts."""
    config, requests = setting
    config = config.model_copy(update={"folder": tempfile.mkdtemp(prefix="tuneloop-actor-")})
    target = open_with_task(next(iter(config.adapters.values()), config.base))
    deployment = deployment_of(config)
    await deployment.engine.start()
    with quiet():
        answer = _answer_of(gateway_of(config, deployment), target, requests, Path(config.folder))

    async def answer_and_forget(line: Line) -> dict[str, Any]:
        body = await answer(line)
        line.drop()
        return body

    return answer_and_forget


def _key(job: BatchInput, config: ServeConfig) -> str:
    """Hash of what a batch depends on."""
    options = [job.column, job.system] if job.column or job.system is not None else []
    digest = hashlib.sha256(json.dumps([config.adapters, config.base, *options], sort_keys=True).encode())
    for path in [job.source] if job.source.is_file() else _documents(job.source):
        digest.update(f"{path.relative_to(job.source.parent)}:{sha256_file(path)};".encode())
    return digest.hexdigest()


# --- input -----------------------------------------------------------------------------------------


def is_request_file(path: Path) -> bool:
    """Whether a file holds requests as OpenAI's batch API has them: one of its first lines is one."""
    if not path.is_file() or path.suffix.lower() != ".jsonl":
        return False
    with path.open("rb") as file:
        for raw in itertools.islice(filter(bytes.strip, iter(lambda: file.readline(LONGEST), b"")), FIRST):
            with contextlib.suppress(ValueError, RecursionError):
                value = parse_line(raw)
                if isinstance(value, dict) and "custom_id" in value and "body" in value:
                    return True
    return False


def _documents(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in DOCUMENTS and path.is_file())


def _write_rows(job: BatchInput, target: TaskTarget) -> None:
    """The rows or documents as requests, each as the model was trained."""
    rows = _rows(job)
    first: list[tuple[str, dict[str, Any] | Rejection]] = []
    records: list[dict[str, Any]] = []
    for name, value in rows:
        first.append((name, value))
        if not isinstance(value, Rejection):
            records.append(value)
            if len(records) == SAMPLE:
                break
    if not first:
        step = "name a file with rows, or a folder of texts"
        raise UserError("Nothing to answer", where=str(job.source), next_step=step)
    asker = Asker(target, Options(job.column, job.system), records) if records else None
    with replacing(job.folder / INPUT) as file:
        for name, value in itertools.chain(first, rows):
            if isinstance(value, Rejection):
                prompt: TaskPrompt | Rejection = value
            else:
                assert asker is not None
                prompt = asker.read(value)
            line: dict[str, Any] = {"custom_id": name, "method": "POST", "url": URL}
            if isinstance(prompt, Rejection):
                line["fault"] = [prompt.reason, prompt.detail]
            else:
                turns = prompt.messages or [{"role": "user", "content": prompt.continues or ""}]
                line["body"] = {"messages": turns} | ({"tools": prompt.tools} if prompt.tools else {})
            file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def _rows(job: BatchInput) -> Iterator[tuple[str, dict[str, Any] | Rejection]]:
    """Id and record of each row: of a document its path, else the column `id`, where its values differ, or the line."""
    source = job.source
    if source.is_dir():
        for path in _documents(source):
            name = path.relative_to(source).as_posix()
            try:
                yield name, {"text": path.read_bytes().decode("utf-8")}
            except UnicodeDecodeError as error:
                yield name, Rejection("bad_encoding", f"not UTF-8: {error}"[:200])
        return
    unique = _have_ids(str(source))
    for row in each_row(str(source)):
        line = f"line-{row.line}"
        if isinstance(row, SourceRecord):
            yield (str(row.value["id"]) if unique else line), dict(row.value)
        else:
            yield line, Rejection(row.reason, row.detail)


def _have_ids(file: str) -> bool:
    """Whether each record has another `id`, in eight bytes of memory each; UserError: no row can be sent."""
    hashes = array("Q")
    count, have_names, first = 0, True, None
    for row in each_row(file):
        count, first = count + 1, first or row
        if isinstance(row, SourceRecord):
            name = str(row.value.get("id", ""))
            have_names = have_names and bool(name)
            hashes.append(id_hash(name))
    refuse_no_rows(file, count, first, bool(hashes))
    return have_names and not any_twice(hashes)


def read_window(text: str) -> float | None:
    """`24h`, `90m` or `2d` in seconds; None for an empty text; UserError: it is no such time."""
    match = re.fullmatch(r"([1-9]\d{0,4})([mhd])", text)
    if text and match is None:
        raise UserError(f"Not a time: {text!r:.40}", where="--window", next_step="write it as 90m, 24h or 2d")
    return int(match[1]) * {"m": 60.0, "h": 3600.0, "d": 86400.0}[match[2]] if match else None


def read_hours(text: str) -> tuple[int, int] | None:
    """`22-06` as (22, 6); None for an empty text; UserError: these are no hours of a day."""
    match = re.fullmatch(r"(\d{1,2})-(\d{1,2})", text)
    hours = (int(match[1]), int(match[2])) if match else None
    if text and (hours is None or hours[0] > 23 or hours[1] > 24 or hours[0] == hours[1]):
        raise UserError(f"Not hours of the day: {text!r:.40}", where="--hours", next_step="write them as 22-06")
    return hours


def seconds_until(hours: tuple[int, int], now: datetime) -> float:
    """Seconds until a time lies within hours of the day; 0 where it does."""
    first, last = hours
    inside = first <= now.hour < last if first < last else now.hour >= first or now.hour < last
    if inside:
        return 0.0
    begin = now.replace(hour=first, minute=0, second=0, microsecond=0)
    return (begin - now if begin > now else begin + timedelta(days=1) - now).total_seconds()


def _within(hours: tuple[int, int] | None) -> Callable[[], Awaitable[None]] | None:
    if hours is None:
        return None

    async def wait() -> None:
        while (left := seconds_until(hours, datetime.now())) > 0:
            await asyncio.sleep(min(left, 60.0))

    return wait
