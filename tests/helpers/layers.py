"""The layer of a test, from what it uses.

unit: in this process, without torch and without a server; torch: imports torch or computes with a model; process: starts processes or
servers; world: needs what is outside, such as a data set, a browser or Postgres. A test that uses several of these is in the last one.
A marker of a layer's name decides instead.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from places import ROOT

LAYERS = ("unit", "torch", "process", "world")
FOLDERS = [ROOT / "src", *(ROOT / "tests" / name for name in ("", "helpers", "training", "report")), ROOT]
# What puts a test that uses it into a layer: libraries, modules and functions of the tests and of the package, fixtures.
USES = {
    "torch": {
        "torch", "transformers", "peft", "bitsandbytes", "llama_models", "gguf", "mlflow", "model_signing", "pretend_gpu",
        "llama3_tokenizer", "tiny_llama", "smollm2", "cli", "tuneloop.cli.main", "tuneloop.api", "CliRunner",
    },
    "process": {
        "subprocess", "multiprocessing", "concurrent.futures.ProcessPoolExecutor", "os.fork", "asyncio.start_server", "ray", "socket", "http.server", "tuneloop.core.http_server",
        "tuneloop.evaluation.sandbox", "tuneloop.evaluation.metrics.code.run_tests", "tuneloop.evaluation.metrics.code.pass_scores",
        "moto", "gcp_storage_emulator", "tuneloop.track.start_tracking", "tracked_run.with_trackers", "cli_process", "commands_in_one_process",
    },
    "world": {"DATA_SETS", "browser", "postgres", "postgres_of_its_own", "host_definitions", "langchain_openai", "litellm"},
}  # fmt: skip
LOADS_TORCH = {"torch", "transformers", "peft", "bitsandbytes", "accelerate"}
# Those that are not in a function.
TOP_IMPORT = re.compile(r"^(?:import ([\w.]+)|from ([\w.]+) import (\([^)]*\)|[^\n#]*))", re.MULTILINE)


def layer_of(item: pytest.Item) -> str:
    """The layer of a test: its nearest marker, or the last of those that something it uses belongs to."""
    for mark in item.iter_markers():
        if mark.name in LAYERS:
            return mark.name
    uses = {*getattr(item, "fixturenames", ())} | reached(tuple(starts(item)))
    uses |= {mark for mark in ("browser", "ray") if item.get_closest_marker(mark)}
    if loads_torch(item.path):
        uses.add("torch")
    return next((layer for layer in reversed(LAYERS[1:]) if uses & USES[layer]), LAYERS[0])


def starts(item: pytest.Item) -> Iterator[tuple[Path, str]]:
    """Where the code of a test begins: its function and those of its fixtures, each with its file."""
    yield item.path, getattr(item, "originalname", item.name)
    info = getattr(item, "_fixtureinfo", None)
    for definitions in info.name2fixturedefs.values() if info else ():
        code = getattr(definitions[-1].func, "__code__", None)
        if code is not None and Path(code.co_filename).is_relative_to(ROOT / "tests"):
            yield Path(code.co_filename), definitions[-1].func.__name__
    yield item.path, "pytestmark"


@cache
def reached(begin: tuple[tuple[Path, str], ...]) -> frozenset[str]:
    """All names that these functions use, and the modules they come from, through the functions of the tests that they call."""
    names: set[str] = set()
    seen: set[tuple[Path, str]] = set()
    left = [*begin]
    while left:
        path = left.pop()
        if path not in seen:
            seen.add(path)
            uses, calls = used(*path)
            names |= uses
            left += calls
    return frozenset(names)


@cache
def used(file: Path, name: str) -> tuple[frozenset[str], tuple[tuple[Path, str], ...]]:
    """The names that one function uses, with the modules they come from; and which of them are functions of the tests."""
    names: set[str] = set()
    calls = []
    for full in definitions(file).get(name, ()):
        module, _, last = full.rpartition(".")
        names |= {full, module or last, full.split(".")[0]}
        origin = file_of(module) if module else file
        if origin is not None and origin.is_relative_to(ROOT / "tests"):
            calls.append((origin, last))
        if (module_file := file_of(full) or file_of(module)) is not None and loads_torch(module_file):
            names.add("torch")
    return frozenset(names), tuple(calls)


@cache
def definitions(file: Path) -> dict[str, set[str]]:
    """What each function, class and constant of a file uses: names of the file, and others by their modules' full names."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    above = {short: full for node in body for short, full in imported(node)}
    of: dict[str, set[str]] = {}
    for node in body:
        uses = set()
        for item in ast.walk(node):
            if isinstance(item, ast.Name):
                uses.add(above.get(item.id, item.id))
            elif isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name) and item.value.id in above:
                uses.add(f"{above[item.value.id]}.{item.attr}")
            elif isinstance(item, ast.Call) and ast.unparse(item.func) == "pytest.importorskip":
                uses.update(str(entry.value) for entry in ast.walk(item.args[0]) if isinstance(entry, ast.Constant))
            else:
                uses.update(full for _, full in imported(item))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            of.setdefault(node.name, set()).update(uses)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for item in ast.walk(target):
                    if isinstance(item, ast.Name):
                        of.setdefault(item.id, set()).update(uses)
    return of


@cache
def loads_torch(file: Path) -> bool:
    """Whether importing a file loads torch, through the files of this repository that it imports too."""
    seen: set[Path] = set()
    left = [file]
    while left:
        file = left.pop()
        if file not in seen:
            seen.add(file)
            libraries, files = at_the_top(file)
            if libraries & LOADS_TORCH:
                return True
            left += files
    return False


@cache
def at_the_top(file: Path) -> tuple[set[str], set[Path]]:
    """The libraries and the files of this repository that the top of a file imports."""
    names: set[str] = set()
    for module, origin, message in TOP_IMPORT.findall(file.read_text(encoding="utf-8")):
        names |= {module} if module else {origin, *(f"{origin}.{name}" for name in re.findall(r"\w+", message))}
    files = {item for name in names if (item := file_of(name)) is not None}
    return {name.split(".")[0] for name in names}, files


def imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Each name that an import statement binds, with its full name."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.asname or alias.name.split(".")[0], alias.name
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            yield alias.asname or alias.name, f"{node.module}.{alias.name}"


@cache
def file_of(module: str) -> Path | None:
    """The file of a module of this repository; None: it is of a library."""
    for folder in FOLDERS:
        path = folder.joinpath(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py") if module else ():
            if file.is_file():
                return file
    return None
