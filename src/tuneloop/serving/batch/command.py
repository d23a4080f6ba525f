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
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import replacing, sha256_file, user_errors_of_the_disk
from tuneloop.core.ray.actors import asked_actors, usual_actors
from tuneloop.core.ray.cluster import address_of, on_ray, whole_path
from tuneloop.core.ui import progress, quiet, say
from tuneloop.core.units import counted
from tuneloop.data.formats import Rejection
from tuneloop.data.sources.parse import SourceRecord
from tuneloop.data.task import TaskPrompt
from tuneloop.pipeline.predict import SAMPLE, Asker, Options
from tuneloop.pipeline.predict_files import each_row, refuse_no_rows
from tuneloop.pipeline.targets import TaskTarget, open_with_task
from tuneloop.serving.batch.batch import ERRORS, INPUT, JOURNAL, OUTPUT, STATE, Answer, BatchJob, answer_by, make_batch
from tuneloop.serving.batch.file import any_twice, id_hash
from tuneloop.serving.batch.record import BatchState, read_state
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import Caller, Gateway, ServedModel
from tuneloop.serving.models import deployment_of
from tuneloop.serving.server import gateway_of

URL = "/v1/chat/completions"
DOCUMENTS = (".txt", ".md", ".text", ".rst")
FIRST, LONGEST = 20, 1 << 24  # lines that show what a file holds, and bytes of one that are read


@dataclass(frozen=True)
class BatchInput:
    """What is answered.

    Args:
        source: a file of requests as OpenAI's batch API has them, a file of rows, or a folder of texts.
        out: result; its errors come next to it.
        window: seconds until it ends, whatever is left; None: no limit.
        hours: of the day in which it works, local time, as (22, 6); None: all.
        rows: answered at the same time, by each actor.
        on: a Ray cluster whose actors answer, see `deploy/on_ray.py`; empty: this process does.
        actors: how many; 0: one for each GPU, else for each machine.
        column: of rows, the one that is asked; empty: those of training.
        system: of rows and texts, in place of the trained system turn; "" for none.
    """

    source: Path
    out: Path
    window: float | None = None
    hours: tuple[int, int] | None = None
    rows: int = 16
    on: str = ""
    actors: int = 0
    column: str = ""
    system: str | None = None

    @property
    def errors(self) -> Path:
        """The file of errors."""
        return self.out.with_name(f"{self.out.stem}.errors.jsonl")

    @property
    def folder(self) -> Path:
        """Where the work is kept until it is done."""
        return self.out.with_name(f"{self.out.name}.batch")


def answer_batch(given: BatchInput, config: ServeConfig) -> dict[str, Any]:
    """Answer a batch to its end, or go on with one that was interrupted.

    Args:
        config: of the engine; its first adapter, or its base, answers.

    Returns:
        Status, counts and files.

    Raises:
        UserError: nothing to answer, or another batch is under way in the same place.
    """
    target = open_with_task(next(iter(config.adapters.values()), config.base))
    requests = is_request_file(given.source)
    key = _key(given, config)
    if (given.folder / STATE).exists() or (given.folder / JOURNAL).exists():
        if read_state(given.folder).key != key:
            raise UserError(
                "Another batch is under way here", where=str(given.folder),
                next_step="choose another --out, or delete that folder to give it up",
            )  # fmt: skip
        say(f"batch     goes on with {given.folder}")
    else:
        new = not given.folder.exists()
        try:
            with user_errors_of_the_disk(given.folder):
                given.folder.mkdir(parents=True, exist_ok=True)
                if requests:
                    shutil.copyfile(given.source, given.folder / INPUT)
                else:
                    _write_rows(given, target)
        except UserError:
            if new:  # nothing was begun
                shutil.rmtree(given.folder, ignore_errors=True)
            raise
        make_batch(given.folder, "", seconds=given.window, key=key)
    answering = _answer_on_ray if given.on else _answer
    status = asyncio.run(answering(given, config, target, requests))
    state = read_state(given.folder)
    if status == "failed":
        raise UserError(_why(state), where=str(given.source), next_step=f"correct it and delete {given.folder}")
    with user_errors_of_the_disk(given.out):
        given.out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(given.folder / OUTPUT, given.out)
        shutil.copyfile(given.folder / ERRORS, given.errors)
        shutil.rmtree(given.folder)
    counts = state.request_counts.to_json()
    return {"status": status, **counts, "out": str(given.out), "errors": str(given.errors)}


def _why(state: BatchState) -> str:
    """Why a batch failed as a whole."""
    errors = (state.errors or {}).get("data") or [{}]
    return str(errors[0].get("message", "The batch failed"))


async def _answer(given: BatchInput, config: ServeConfig, target: TaskTarget, requests: bool) -> str:
    deployment = deployment_of(config)
    await deployment.engine.start()
    try:
        gateway = gateway_of(config, deployment)
        gateway.alone = True
        try:
            batch = BatchJob(
                given.folder, _answer_of(gateway, target, requests), given.rows, _within(given.hours),
                report=lambda done, total: progress("batch", done, total), most_bytes=int(config.limits.body_mb * 1e6),
            )  # fmt: skip
            return await batch.run()
        finally:
            await asyncio.to_thread(gateway.store.stop)
    finally:
        await deployment.engine.stop()


def _answer_of(gateway: Gateway, target: TaskTarget, requests: bool) -> Answer:
    """What answers a line by the gateway's first model."""
    name, model = next(iter(gateway.models.items()))
    if not requests:
        gateway.models[name] = _as_it_stands(model, target)
    return answer_by(gateway, Caller(), name)


async def _answer_on_ray(given: BatchInput, config: ServeConfig, target: TaskTarget, requests: bool) -> str:
    """As `_answer`, by actors; the journal is here, so that each row is done once whatever is lost there."""
    with on_ray(address_of(given.on)) as ray:
        actors = usual_actors(ray, given.actors)
        say(
            f"ray       {actors} {'actor answers' if actors == 1 else 'actors answer'}, {counted(given.rows, 'row')} at a time each"
        )
        named = {name: whole_path(place) for name, place in config.adapters.items()}
        setting = config.model_copy(update={"adapters": named, "base": whole_path(config.base)}), requests
        async with asked_actors(ray, _actor, setting, actors, given.rows) as answer:
            batch = BatchJob(
                given.folder, answer, given.rows * actors, _within(given.hours),
                report=lambda done, total: progress("batch", done, total), most_bytes=int(config.limits.body_mb * 1e6), fatal=(UserError,),  # all actors are lost
            )  # fmt: skip
            return await batch.run()


async def _actor(setting: tuple[ServeConfig, bool]) -> Answer:
    """What answers lines in an actor, which ends with it. Its store is its own: the driver's journal is what counts."""
    config, requests = setting
    config = config.model_copy(update={"folder": tempfile.mkdtemp(prefix="tuneloop-actor-")})
    target = open_with_task(next(iter(config.adapters.values()), config.base))
    deployment = deployment_of(config)
    await deployment.engine.start()
    with quiet():
        return _answer_of(gateway_of(config, deployment), target, requests)


def _as_it_stands(model: ServedModel, target: TaskTarget) -> ServedModel:
    """The model without the way from turns to prompts: the rows' prompts are made already. Of plain texts it is needed."""
    return model if target.task is not None and target.task.format == "text" else replace(model, read=None)


def _key(given: BatchInput, config: ServeConfig) -> str:
    """Hash of what a batch depends on."""
    asked = [given.column, given.system] if given.column or given.system is not None else []
    digest = hashlib.sha256(json.dumps([config.adapters, config.base, *asked], sort_keys=True).encode())
    for path in [given.source] if given.source.is_file() else _documents(given.source):
        digest.update(f"{path.relative_to(given.source.parent)}:{sha256_file(path)};".encode())
    return digest.hexdigest()


# --- input -----------------------------------------------------------------------------------------


def is_request_file(path: Path) -> bool:
    """Whether a file holds requests as OpenAI's batch API has them: one of its first lines is one."""
    if not path.is_file() or path.suffix.lower() != ".jsonl":
        return False
    with path.open("rb") as file:
        for raw in itertools.islice(filter(bytes.strip, iter(lambda: file.readline(LONGEST), b"")), FIRST):
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(raw)
                if isinstance(value, dict) and "custom_id" in value and "body" in value:
                    return True
    return False


def _documents(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in DOCUMENTS and path.is_file())


def _write_rows(given: BatchInput, target: TaskTarget) -> None:
    """The rows or documents as requests, each as the model was trained."""
    rows = _rows(given)
    first: list[tuple[str, dict[str, Any] | Rejection]] = []
    records: list[dict[str, Any]] = []
    for name, value in rows:
        first.append((name, value))
        if not isinstance(value, Rejection):
            records.append(value)
            if len(records) == SAMPLE:
                break
    if not first:
        raise UserError(
            "Nothing to answer", where=str(given.source), next_step="name a file with rows, or a folder of texts"
        )
    asker = Asker(target, Options(given.column, given.system), records) if records else None
    with replacing(given.folder / INPUT) as file:
        for name, value in itertools.chain(first, rows):
            prompt: TaskPrompt | Rejection
            if isinstance(value, Rejection):
                prompt = value
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


def _rows(given: BatchInput) -> Iterator[tuple[str, dict[str, Any] | Rejection]]:
    """Id and record of each row: of a document its path, else the column `id`, where its values differ, or the line."""
    source = given.source
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
    """Whether each record has an `id` of its own. Eight bytes of memory for each; UserError: there is no row that can
    be asked."""
    hashes = array("Q")
    count, named, first = 0, True, None
    for row in each_row(file):
        count, first = count + 1, first or row
        if isinstance(row, SourceRecord):
            name = str(row.value.get("id", ""))
            named = named and bool(name)
            hashes.append(id_hash(name))
    refuse_no_rows(file, count, first, bool(hashes))
    return named and not any_twice(hashes)


# --- when ------------------------------------------------------------------------------------------


def read_window(text: str) -> float | None:
    """`24h`, `90m` or `2d` in seconds; None for an empty text; UserError: it is no such time."""
    found = re.fullmatch(r"([1-9]\d{0,4})([mhd])", text)
    if text and found is None:
        raise UserError(f"Not a time: {text!r:.40}", where="--window", next_step="write it as 90m, 24h or 2d")
    return int(found[1]) * {"m": 60.0, "h": 3600.0, "d": 86400.0}[found[2]] if found else None


def read_hours(text: str) -> tuple[int, int] | None:
    """`22-06` as (22, 6); None for an empty text; UserError: these are no hours of a day."""
    found = re.fullmatch(r"(\d{1,2})-(\d{1,2})", text)
    if text and (found is None or int(found[1]) > 23 or int(found[2]) > 24 or int(found[1]) == int(found[2])):
        raise UserError(f"Not hours of the day: {text!r:.40}", where="--hours", next_step="write them as 22-06")
    return (int(found[1]), int(found[2])) if found else None


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
