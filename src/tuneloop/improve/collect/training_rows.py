"""Collected rows as a run reads them, with the rows that it was trained on: what its successor is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_jsonl
from tuneloop.data.dataset import load_dataset
from tuneloop.pipeline.task import task_of_run
from tuneloop.records.collected import CollectedManifest
from tuneloop.records.record import read_record
from tuneloop.records.rows import Row
from tuneloop.registry.registered import open_registry, registered_name, run_folder_of, version_of
from tuneloop.serving.models import prompt_of

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
    place = run_of(run)
    task = task_of_run(place)
    if task is None or not (place / "dataset" / "dataset.json").is_file():
        step = "name the run's folder, or leave --run out and write the recipe of a retraining yourself"
        what = "A run with its data set is needed, to write rows as it reads them"
        raise UserError(what, where=str(run), next_step=step)
    dataset = load_dataset(place / "dataset")
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
