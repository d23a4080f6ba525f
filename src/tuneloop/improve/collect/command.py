"""`tuneloop collect`: a server's store becomes files that `prepare` reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import build_config, lock_folder, replacing, write_jsonl
from tuneloop.data import load_dataset
from tuneloop.data.pii import PersonalConfig, Redactor
from tuneloop.improve.collect.collect import CollectOptions, collect
from tuneloop.pipeline.answers import task_of_run
from tuneloop.records.record import read_record, write_record
from tuneloop.records.request import StoredRequest
from tuneloop.records.rows import Row
from tuneloop.records.server import CollectedManifest
from tuneloop.registry import open_registry, registered_name, run_folder_of, version_of
from tuneloop.serving import prompt_of
from tuneloop.serving.store import opened, read_feedback, read_requests, store_name

Place = Path | str
FILES = ("sft", "preference", "kto", "heldout", "must_pass")


def collect_store(
    location: Place, out: Place, settings: Mapping[str, Any], *, personal: PersonalConfig | None = None, run: Place = ""
) -> CollectedManifest:
    """Write a file for each of `FILES` that has rows, and `collect.json`.

    Args:
        out: folder for the files; those of an earlier collection are replaced.
        settings: by the names of `CollectOptions`.
        personal: what happens to personal data; replaced by default, also where the server kept them.
        run: in use: `train.jsonl` and `test.jsonl` are written, too, see `write_training_rows`; empty: they are not.

    Raises:
        UserError: there is no store, a setting is bad, no request has feedback, or the folder holds other files.
    """
    options = build_config(CollectOptions, settings)
    folder = Path(out)
    if folder.is_dir() and not (folder / CollectedManifest.file).is_file():
        own = {".lock", TRAIN, TEST, *(f"{name}.jsonl" for name in FILES)}
        if any(path.name not in own and path.suffix != ".tmp" for path in folder.iterdir()):
            raise UserError("The folder holds other files", where=str(folder), next_step="name a new folder with -o")
    # Copies, whose answers no user saw, and requests whose key refuses it are left out.
    where = f"shadow IS NULL{' AND model = ?' if options.model else ''} AND COALESCE(train, '') != 'no'"
    values = [options.model] if options.model else []
    with opened(location) as store:
        requests = list(read_requests(store, since=options.since, until=options.until, where=where, values=values))
        feedback = list(read_feedback(store, origin=False))
    collected = collect(requests, feedback, options)
    if not collected.with_feedback:
        step = "tuneloop collect show says what there is; tuneloop collect import FILE adds some"
        raise UserError(f"No request of {len(requests):,} has feedback", where=store_name(location), next_step=step)
    redactor = Redactor(personal or PersonalConfig())
    rows = {name: [redactor(row) for row in getattr(collected, name)] for name in FILES}
    with lock_folder(folder):
        (folder / CollectedManifest.file).unlink(missing_ok=True)
        for name, of in rows.items():
            (folder / f"{name}.jsonl").unlink(missing_ok=True)
            if of:
                write_jsonl(folder / f"{name}.jsonl", of)
        more, task = write_training_rows(run, rows["sft"], rows["heldout"], folder) if run else ({}, "")
        manifest = CollectedManifest(
            store=store_name(location),
            requests=len(requests),
            with_feedback=collected.with_feedback,
            counts={name: len(of) for name, of in rows.items()} | more,
            origins=dict(Counter(str(row["origin"]) for row in [*rows["sft"], *rows["heldout"]])),
            own=sum("own" in row for row in rows["sft"]),
            dropped={reason: number for reason, number in collected.dropped.items() if number},
            task=task,
            **options.model_dump(include={"since", "until", "heldout_share", "per_user", "own_share"}),
        )
        write_record(folder / CollectedManifest.file, manifest)
        return manifest


@dataclass(frozen=True)
class Written:
    """What became of the requests of a store."""

    out: str
    written: int = 0  # lines of the file
    failed: int = 0  # had an error in place of an answer
    without_text: int = 0  # whose texts were not kept (`log.content`)
    without_consent: int = 0  # whose key says `train: no`


def write_requests(
    location: Path | str, out: Path, *, since: str = "", model: str = "", personal: PersonalConfig | None = None
) -> Written:
    """Write answered requests as JSON Lines with `request` and `response`, in the order in which they came.

    `personal`: what happens to personal data in texts; replaced by default, also where the server kept them. Raises
    UserError: no store, or a file that can't be written.
    """
    if out.is_dir():
        raise UserError("A folder has this name", where=f"--out {out}", next_step="choose another name")
    counts: Counter[str] = Counter()
    redactor = Redactor(personal or PersonalConfig())
    condition = {"where": "model = ?", "values": [model]} if model else {}
    with opened(location) as store, replacing(out) as file:
        for request in read_requests(store, since=since, **condition):  # type: ignore[arg-type]
            line = exported(request)
            if line is not None:
                counts["written"] += 1
                line |= {name: redactor(line[name]) for name in ("request", "response")}
                file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            elif request.train == "no":
                counts["without_consent"] += 1
            else:
                counts["without_text" if request.error is None else "failed"] += 1
    return Written(str(out), **counts)


def exported(request: StoredRequest) -> dict[str, Any] | None:
    """A request as a log of a chat API, which `prepare` reads; None: it must not be trained on, or has no texts."""
    if not request.prompt or request.completion is None or request.error is not None or request.train == "no":
        return None
    message = request.completion
    if isinstance(message, str):
        message = {"role": "assistant", "content": message}
    message = {name: value for name, value in message.items() if name != "response"}  # see `ApiRequest.noted`
    body = {"model": request.model, "messages": request.prompt} | ({"tools": request.tools} if request.tools else {})
    reply = {"choices": [{"index": 0, "message": message, "finish_reason": request.finish}]}
    meta = ("time", "user", "conversation", "release", "adapter", "arm")
    columns = {name: value for name in meta if (value := getattr(request, name)) is not None}
    return {"request_id": request.id, "request": body, "response": reply, **columns}


TRAIN, TEST = "train.jsonl", "test.jsonl"
TASKS = ("classification", "generation", "chat")  # that `data.task` takes
# Settings with which a recipe reads these files, whatever its own data look like: conversations, prompts as trained.
AS_CHATS = (
    *(f"data.{key}=null" for key in ("text", "label", "labels", "instruction", "input", "output")),
    "data.format=messages", "data.split.stratify=null", "data.split.group=null", "data.split.by=content",
)  # fmt: skip


def write_training_rows(
    run: Path | str, sft: Sequence[Mapping[str, Any]], heldout: Sequence[Mapping[str, Any]], folder: Path
) -> tuple[dict[str, int], str]:
    """Write `train.jsonl` and `test.jsonl`: the run's own rows, then the collected ones.

    A client's turns become the prompt that the run was trained on: its instruction, its template. Nothing is replaced,
    only added: a model that is trained on its own answers alone gets worse.

    `run`: in use. Returns rows of each file, and the kind of task that the run has. Raises UserError: the run or its
    data set is missing, or it continues texts instead of answering.
    """
    run_folder = run_of(run)
    task = task_of_run(run_folder)
    if task is None or not (run_folder / "dataset" / "dataset.json").is_file():
        step = "name the run's folder, or leave --run out and write the recipe of a retraining yourself"
        message = "A run with its data set is needed, to write rows as it reads them"
        raise UserError(message, where=str(run), next_step=step)
    dataset = load_dataset(run_folder / "dataset")
    read = prompt_of(task)

    def rewritten(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in rows:
            turns = list(row["messages"])
            prompt = read(turns[:-1], row.get("tools") or [])
            if prompt.continues is not None:
                raise UserError("This run continues texts, and collected rows are answers", where=str(run))
            yield {**row, "messages": [*prompt.messages, turns[-1]]}

    train = [*_own(dataset.train, dataset.val), *rewritten(sft)]
    test = [*_own(dataset.test), *rewritten(heldout)]
    write_jsonl(folder / TRAIN, train)
    write_jsonl(folder / TEST, test)
    return {"train": len(train), "test": len(test)}, dataset.task


def run_of(name: Path | str) -> Path:
    """The folder of a run, by its path or by the name of a registered version."""
    if registered_name(str(name)) is None:
        return Path(name)
    folder = run_folder_of(version_of(open_registry(), str(name)))
    if folder is None:
        raise UserError("The run of this version is not available", where=str(name), next_step="name the run's folder")
    return folder


def _own(*splits: Iterable[Row]) -> Iterator[dict[str, Any]]:
    for rows in splits:
        for row in rows:
            if row.shows_the_task:
                values = {"messages": row.messages, "tools": row.tools, "label": row.label, "origin": "before"}
                yield {name: value for name, value in values.items() if value}


def settings_of_retraining(folder: Path) -> list[str]:
    """Settings behind a recipe with which it trains on collected rows, tested on users that are never trained on.

    Args:
        folder: that `tuneloop collect` wrote; with `--run` the rows are chats, whatever data the recipe was made for.
    """
    if not (folder / TRAIN).is_file():
        test = folder / "heldout.jsonl"
        more = [f"data.split.test={test}"] if test.is_file() else []
        return [f"data.sources={folder / 'sft.jsonl'}", *more]
    task = read_record(CollectedManifest, folder).task
    settings = [f"data.sources={folder / TRAIN}", *AS_CHATS]
    settings += [f"data.task={task}"] if task in TASKS else []
    return settings + ([f"data.split.test={folder / TEST}"] if (folder / TEST).stat().st_size else [])
