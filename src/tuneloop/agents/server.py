"""`tuneloop mcp`: tools and resources of the Model Context Protocol over the commands.

A tool runs a command as a process and answers what the command prints with `--json`: the same functions, records and
messages, and nothing that a stage leaves in memory. Lines of the command become progress notifications. When the client
cancels a call or vanishes, the command ends; only a run continues, see `jobs`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ToolError
from mcp_types import ToolAnnotations
from pydantic import Field

from tuneloop.advice import AdviseOptions
from tuneloop.agents.jobs import JobStatus, cancel_job, job_status, start_job
from tuneloop.core.confined import AGENT, Roots, confined, confining
from tuneloop.core.errors import UserError
from tuneloop.core.files import Config, build_config, write_jsonl
from tuneloop.core.flag import Flag
from tuneloop.core.foreign import opened, parse_json
from tuneloop.core.parent import environment_of_child
from tuneloop.core.version import __version__
from tuneloop.pipeline import folder_of
from tuneloop.planning import PlanOptions
from tuneloop.recipe import CONFIG, load_recipe, recipe_of

LARGEST = 60_000  # characters of an answer: what is larger is read as a resource
MOST_ROWS, LONGEST_ROW = 200, 20_000  # rows of one call of predict, and characters of each
RECORDS = (
    "run.json", "eval.json", "plan.json", "dataset.json", "advise.json", "baselines.json", "gate.json", "config.yaml",
    "environment.json", "job.json", "job.log", "metrics.jsonl", "samples.jsonl", "rejects.jsonl", "repairs.jsonl",
)  # fmt: skip
MOST_BYTES = 4_000_000  # of a resource
READ_ONLY = "This server is read-only: it was started without --allow-write"
INSTRUCTIONS = """Fine-tune a small language model on a file of examples, and find out whether it was worth it.
Order: advise (should one tune at all?), plan (memory, hours, dollars), prepare (look at counts, rejects and checks),
run (the whole job; it returns at once, or after wait_seconds), run_status, then predict. A run's verdict compares it
with prompts, classifiers and the majority class: repeat its sentences as they are, also where the answer is no. Paths
start at the server's first folder. Settings are a recipe's, nested: {"train": {"epochs": 2}, "max_minutes": 8}."""

Settings = Annotated[dict[str, Any], Field(description="settings of a recipe, nested, as in {'train': {'epochs': 2}}")]
Name = Annotated[str, Field(max_length=4096)]
Wait = Annotated[float, Field(ge=0, le=3600, description="seconds to wait for the end; progress is reported meanwhile")]
Row = dict[str, Any]


@dataclass(frozen=True)
class Workbench:
    """The tools, as methods.

    Args:
        roots: what may be read and written; commands start in the first folder.
        allow_write: whether tools may write files, train and measure.
    """

    roots: Roots
    allow_write: bool = False

    async def advise(
        self, ctx: Context, data: Name = "", facts: dict[str, Any] | None = None, measure: bool = False
    ) -> dict[str, Any]:
        """Say whether to fine-tune at all, how, and when it pays off; from data, from facts, or both.

        Facts are the options of `tuneloop advise`: {"rows": 2000, "queries_per_day": 500, "few_shot": 0.7}. With
        measure the base model and cheap classifiers answer the test rows first, which takes minutes.
        """
        if measure:
            self._may_write()
        with self._answering():
            arguments = [*self._source(data), *self._options(AdviseOptions, facts or {})]
            arguments += ["--measure"] if measure else []
            return await self._run(ctx, ["advise", *arguments], folder="" if self.allow_write or not data else "--out")

    async def plan(
        self, ctx: Context, data: Name = "", model: Name = "", options: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Predict memory, hours and dollars of training: of a model for every GPU, or of data on this machine.

        Options are those of `tuneloop plan`: {"gpu": "l40s", "method": "lora", "seq_len": 2048}.
        """
        with self._answering():
            stated = {**(options or {}), **({"model": model} if model else {})}
            return await self._run(ctx, ["plan", *self._source(data), *self._options(PlanOptions, stated)])

    async def prepare(
        self, ctx: Context, sources: list[Name], out: Name = "", model: Name = "", settings: Settings | None = None
    ) -> dict[str, Any]:
        """Turn files of any format into train, validation and test splits; every reject and repair is counted.

        Settings are those of a recipe's data section: {"label": "queue", "split": {"test": 0.2}}.
        """
        self._may_write()
        with self._answering():
            places = [self._recipe(source) for source in sources]
            arguments = [*places, *self.roots.settings(settings or {}), *self._places(out=out, model=model)]
            return await self._run(ctx, ["prepare", *arguments])

    async def run(
        self,
        ctx: Context,
        source: Name,
        model: Name = "",
        out: Name = "",
        settings: Settings | None = None,
        wait_seconds: Wait = 0,
    ) -> JobStatus:
        """Start the whole job on a recipe, a file of examples or a prepared data set: baselines, training, verdict.

        It works on when this server or its client ends: run_status finds it again by its folder, and the same call
        continues one that was cancelled or killed. Set max_minutes to limit its time.
        """
        self._may_write()
        with self._answering():
            arguments = [self._recipe(source), *self.roots.settings(settings or {})]
            arguments += [f"model={self.roots.place(model, 'model')}"] if model else []
            folder = out or await asyncio.to_thread(_folder, *arguments)
            self.roots.place(folder, "folder of the run")
            base = self.roots.base
            call = ["run", *arguments, f"output_dir={folder}"]
            await asyncio.to_thread(start_job, base / folder, call, base, self._environment())
            return await self._follow(ctx, folder, wait_seconds)

    async def run_status(self, ctx: Context, folder: Name, wait_seconds: Wait = 0) -> JobStatus:
        """How far a run is, and its verdict and metrics once it is done."""
        with self._answering():
            self.roots.place(folder, "folder of a run")
            return await self._follow(ctx, folder, wait_seconds)

    async def run_cancel(self, folder: Name) -> JobStatus:
        """End a run; training saves a checkpoint first, and the same call of run continues from it."""
        self._may_write()
        with self._answering():
            self.roots.place(folder, "folder of a run")
            return await asyncio.to_thread(cancel_job, self.roots.base / folder, folder)

    async def evaluate(
        self,
        ctx: Context,
        target: Name,
        dataset: Name = "",
        data: Name = "",
        split: Literal["train", "val", "test"] = "test",
        out: Name = "",
        settings: Settings | None = None,
    ) -> dict[str, Any]:
        """Measure a run, an adapter, a model or a file of predictions on rows, with intervals.

        Settings are those of a recipe's evaluate section: {"limit": 100}.
        """
        self._may_write()
        with self._answering():
            own_rows = (self.roots.base / target / "dataset").is_dir()  # else those that its recipe names
            target = self.roots.place(target, "target") if own_rows else self._recipe(target)
            arguments = [target, *self.roots.settings(settings or {}), f"--split={split}"]
            return await self._run(ctx, ["evaluate", *arguments, *self._places(dataset=dataset, data=data, out=out)])

    async def compare(
        self, ctx: Context, systems: list[Name], references: Name = "", dataset: Name = "", out: Name = ""
    ) -> dict[str, Any]:
        """Compare evaluations of the same rows, each with the first one; FOLDER:NAME picks a baseline of a run."""
        with self._answering():
            places = [self.roots.place(system, "system") for system in systems]
            predictions = any((self.roots.base / path).is_file() for path in places)
            if len(systems) == 1 or predictions or out:
                self._may_write()  # a page is written again, or what is measured is kept
            arguments = [*places, *self._places(references=references, dataset=dataset, out=out)]
            return await self._run(ctx, ["compare", *arguments], folder="" if self.allow_write else "--out")

    async def predict(
        self,
        ctx: Context,
        target: Name,
        rows: Annotated[list[Row], Field(max_length=MOST_ROWS)] | None = None,
        file: Name = "",
        out: Name = "",
        top: Annotated[int, Field(ge=0, le=1000)] = 0,
    ) -> dict[str, Any]:
        """Answer rows by a run, an artifact or a model: given ones ([{"text": "..."}]), or those of a file.

        The answers are in `predictions`, or in the file `out` (.jsonl or .csv). `top` gives labels' probabilities.
        """
        if out:
            self._may_write()
        with self._answering(), tempfile.TemporaryDirectory() as scratch:
            if bool(rows) == bool(file):
                raise UserError("Which rows?", next_step="give rows or a file, one of the two")
            if rows and any(len(json.dumps(row)) > LONGEST_ROW for row in rows):
                raise UserError("A row is too long", next_step=f"at most {LONGEST_ROW:,} characters; or a file")
            self.roots.place(target, "target")
            path = self.roots.place(file, "file") or str(Path(scratch) / "rows.jsonl")
            if rows:
                write_jsonl(path, rows)
            return await self._run(ctx, ["predict", target, path, *self._places(out=out), f"--top={top}"], rows=scratch)

    # --- resources -----------------------------------------------------------------------------

    def runs(self) -> str:
        """Runs, evaluations and data sets in the folders, with the names under which their records are read."""
        found = []
        for root in self.roots.folders:
            for path in sorted(root.glob("*/*/")) + sorted(root.glob("*/")):
                names = [name for name in (*RECORDS, "report.html") if (path / name).is_file()]
                if {"run.json", "job.json", "eval.json", "dataset.json", "advise.json"} & {*names}:
                    name = str(path.relative_to(root) if root == self.roots.base else path)
                    found.append(
                        {"folder": name, "records": [f"tuneloop://record/{record}/{name}" for record in names]}
                    )
        return json.dumps({"folders": found}, indent=1)

    def record(self, name: str, folder: str) -> str:
        """A record of a run, evaluation, data set or advice, or its page `report.html`."""
        if name not in (*RECORDS, "report.html"):
            raise ResourceError(f"No such record {name[:40]!r}: {', '.join((*RECORDS, 'report.html'))}")
        try:
            path = self.roots.base / self.roots.place(f"{folder}/{name}")
            with opened(path, below=path.parent) as file:
                data = file.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                raise ResourceError(f"{folder}/{name} has more than {MOST_BYTES:,} bytes: read the file itself")
            return data.decode("utf-8")
        except UserError as error:
            raise ResourceError(str(error)) from None
        except OSError as error:
            raise ResourceError(f"{folder}/{name}: {error.strerror}") from None

    # --- from a tool to a command --------------------------------------------------------------

    def _may_write(self) -> None:
        if not self.allow_write:
            raise ToolError(f"{READ_ONLY}. advise, plan, compare, predict and run_status work.")

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """A `UserError` as an answer of the tool; what is parsed here is checked as in the commands."""
        try:
            with confined(AGENT, self.roots):
                yield
        except UserError as error:
            raise ToolError(str(error)) from None

    def _recipe(self, source: str) -> str:
        """A source like any place; of a recipe, or a run's, everything that it names is checked as it is parsed."""
        self.roots.place(source, "source")
        recipe_of(source, [])
        if (file := self.roots.base / source / CONFIG).is_file():
            load_recipe(file)
        return source

    def _source(self, data: str) -> list[str]:
        return [self._recipe(data)] if data else []

    def _places(self, **places: str) -> list[str]:
        """Options of a command from places, by their names."""
        return [f"--{name}={self.roots.place(path, name)}" for name, path in places.items() if path]

    def _options(self, kind: type[Config], values: Mapping[str, Any]) -> list[str]:
        """Options of a command from a mapping, by the names of the record's fields."""
        self.roots.settings(values, "options")
        record, arguments = build_config(kind, values, where="options"), []
        for name in values:
            mark = next((item for item in kind.model_fields[name].metadata if isinstance(item, Flag)), Flag())
            long = next((option for option in mark.names if option.startswith("--")), f"--{name.replace('_', '-')}")
            value, (yes, _, no) = getattr(record, name), long.partition("/")
            if isinstance(value, bool):
                arguments += [yes] if value else [no] if no else []
            elif value is not None:
                arguments.append(f"{yes}={value}")
        return arguments

    def _environment(self, *scratch: str) -> dict[str, str]:
        """Of a command: it ends with this server, names these folders alone, and a read-only one downloads nothing."""
        own = tuple(Path(folder).resolve() for folder in scratch)
        environment = environment_of_child() | confining(AGENT, Roots((*self.roots.folders, *own)))
        return environment | ({} if self.allow_write else {"HF_HUB_OFFLINE": "1"})

    async def _run(self, ctx: Context, arguments: Sequence[str], *, folder: str = "", rows: str = "") -> dict[str, Any]:
        """What a command answers.

        Args:
            folder: the option for the folder that the command writes; it is thrown away.
            rows: a folder of this server's with what the command reads.

        Raises:
            ToolError: the command's error.
        """
        with tempfile.TemporaryDirectory() as scratch:
            arguments = [*arguments, *([f"{folder}={scratch}/written"] if folder else [])]
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tuneloop",
                *arguments,
                "--json",
                cwd=self.roots.base,
                env=self._environment(scratch, *([rows] if rows else [])),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=1 << 24,
                start_new_session=True,
            )
            assert process.stdout and process.stderr
            try:
                answer, lines = await asyncio.gather(process.stdout.read(), _report(ctx, process.stderr))
                status = await process.wait()
            finally:
                if process.returncode is None:  # the call was cancelled
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGTERM)
        try:
            record = parse_json(answer)
        except ValueError:
            raise ToolError(f"The command ended with status {status}: {' '.join(lines[-3:])}") from None
        if error := record.get("error") if status == 2 else None:
            raise ToolError(str(UserError(error["what"], where=error["where"], next_step=error["next"])))
        return _trimmed({"exit_status": status, **record})

    async def _follow(self, ctx: Context, folder: str, seconds: float) -> JobStatus:
        """The status of a run, after at most so many seconds of progress notifications."""
        began, doing = time.monotonic(), None
        while True:
            status = await asyncio.to_thread(job_status, self.roots.base / folder, folder)
            elapsed = time.monotonic() - began
            if status.doing != doing:
                doing = status.doing
                await ctx.report_progress(round(elapsed, 1), message=doing or status.state)
            if status.state != "running" or elapsed >= seconds:
                return status
            await asyncio.sleep(min(0.5, seconds))


def _folder(source: str, *settings: str) -> str:
    """The folder that a run would get."""
    return str(folder_of(recipe_of(source, [*settings])))


async def _report(ctx: Context, stream: asyncio.StreamReader) -> list[str]:
    """Send each line of a command as progress, by the seconds elapsed; the lines."""
    began, lines = time.monotonic(), []
    async for raw in stream:
        if line := raw.decode("utf-8", "replace").strip():
            lines.append(line)
            await ctx.report_progress(round(time.monotonic() - began, 3), message=line[:500])
    return lines


def _trimmed(record: dict[str, Any]) -> dict[str, Any]:
    """A record that fits an agent's context: its largest parts are left out, and named."""
    sizes = {key: len(json.dumps(value)) for key, value in record.items()}
    left_out = []
    while sum(sizes.values()) > LARGEST:
        largest = max(sizes, key=lambda key: sizes[key])
        left_out.append(largest)
        del sizes[largest]
    kept = {key: value for key, value in record.items() if key in sizes}
    return {**kept, "left_out": left_out} if left_out else kept


def make_server(folders: Sequence[str | Path], *, allow_write: bool = False) -> MCPServer[Any]:
    """The server for these folders; `run()` on it serves standard input and output until the client closes them.

    Raises:
        UserError: one is no folder.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError("No such folder", where=str(folder), next_step="name folders with --root FOLDER")
    bench = Workbench(Roots(tuple(Path(folder).resolve() for folder in folders)), allow_write)
    os.chdir(bench.roots.folders[0])  # names in recipes start here, as in the commands
    state = "" if allow_write else f"\n{READ_ONLY}; prepare, run, run_cancel and evaluate are refused."
    server: MCPServer[Any] = MCPServer(
        "tuneloop", instructions=INSTRUCTIONS + state, version=__version__, log_level="WARNING"
    )
    reading = (bench.advise, bench.plan, bench.compare, bench.predict, bench.run_status)
    for tool in (*reading, bench.prepare, bench.run, bench.run_cancel, bench.evaluate):
        hints = ToolAnnotations(read_only_hint=not allow_write or tool == bench.run_status, open_world_hint=False)
        server.add_tool(tool, description=inspect.getdoc(tool), annotations=hints)
    server.resource("tuneloop://runs", mime_type="application/json")(bench.runs)
    server.resource("tuneloop://record/{name}/{+folder}")(bench.record)
    return server
