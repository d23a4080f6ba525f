"""Options of a command from settings records: a parameter whose type is a `Config` becomes an option for each field.

A field gives the type, default, description and bounds of its option, and with a `Flag` its names. A parameter of a
command may be declared by `flag` as well. `--help`, `tuneloop schema` and callers in Python read the same fields.
Numbers are read as people write them: `3000`, `3,000`, `3_000`, `3e3`, `3k`, `1.5M`, `$600`.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from operator import ge, gt, le, lt
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

import typer
import typer.core
import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tuneloop.cli.console import Result, show
from tuneloop.core import terminal
from tuneloop.core.files import Config
from tuneloop.core.flag import Flag, flag, switch

SIZES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_DIGITS = r"[+-]?(?:\d{1,3}(?:[_,]\d{3})+|\d+|(?=\.\d))(?:\.\d*)?(?:e[+-]?\d{1,4})?"
NUMBER = re.compile(rf"({_DIGITS})([kmbgt]?)", re.ASCII | re.IGNORECASE)


def amount(text: str | float) -> float:
    """A number, in whole or in parts; else a typer.BadParameter, which typer completes with the option."""
    if not isinstance(text, str):
        return float(text)
    match = NUMBER.fullmatch(text.strip().removeprefix("$").strip())
    value = float(match[1].replace(",", "").replace("_", "")) * SIZES[match[2].lower()] if match else math.inf
    if not math.isfinite(value):
        raise typer.BadParameter(f"{text[:40]!r} is not a number; write it as 3000, 3_000, 3e3 or 3k")
    return value


def count(text: str | float) -> int:
    """A whole number; else a typer.BadParameter."""
    if isinstance(text, str) and re.fullmatch(r"[+-]?\d{1,300}", text.strip(), re.ASCII):
        return int(text)  # exact, however large
    value = amount(text)
    if value != int(value):
        raise typer.BadParameter(f"{str(text)[:40]!r} is not a whole number")
    return int(value)


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]


Parser = Callable[[Any], Any]
# By type of a field: how its text is read, and its placeholder in the help.
PARSERS: dict[Any, tuple[Parser, str]] = {int: (count, "N"), float: (amount, "X"), list: (_names, "NAMES")}
# How pydantic names a bound of a field -> how it is written, and whether it holds.
BOUNDS: dict[str, tuple[str, Any]] = {"ge": (">=", ge), "gt": (">", gt), "le": ("<=", le), "lt": ("<", lt)}


class Output(Config):
    """What all commands have in common."""

    PANEL: ClassVar[str] = "Output"

    as_json: bool = switch("Print exactly one JSON object on stdout.", "--json")
    quiet: bool = switch("Print no progress and no lines on the way.", "-q")
    debug: bool = switch("Show tracebacks.")
    trust_code: bool = switch("Run the Python files that a run's or another folder's settings name.")


_output: ContextVar[Output] = ContextVar("output")


def output() -> Output:
    """The options that all commands have in common, of the command that runs."""
    return _output.get()


def screen(doing: str = terminal.IDLE, *, brief: bool = False) -> AbstractContextManager[terminal.Screen]:
    """The screen of the command that runs; see `core.terminal.screen`."""
    return terminal.screen(output().quiet, doing, brief=brief)


def argument(metavar: str, help: str, default: Any = ...) -> Any:
    """A positional argument of a command, as the default of its parameter; without a default it must be given."""
    return typer.Argument(default, help=help, metavar=metavar)


SETTINGS = argument("[KEY=VALUE]...", "Settings, as in train.epochs=2.", None)
VERBOSE = switch("Print each stage's lines, and the whole report at the end: table, samples, what it took.")
SERVER = "The server's folder, or its store: a file or a postgresql:// URL."
STORE = flag("serve", "FOLDER", SERVER)
STORE_ARGUMENT = argument("[STORE]", SERVER, "serve")
KEEP_PERSONAL = switch("Leave personal data in texts as they are.")


def expanded(command: Callable[..., Result | None]) -> Callable[..., None]:
    """The command as typer takes it: its records' fields and those of Output are parameters; its result is printed."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    records: dict[str, tuple[type[BaseModel], list[str]]] = {}  # parameter -> record, names of its fields
    defaults: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        name, kind, default = parameter.name, hints[parameter.name], parameter.default
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            options = list(_options(kind))
            records[name] = kind, [option.name for option in options]
            parameters += options
        elif isinstance(default, FieldInfo):
            defaults[name] = default.default
            parameters.append(_option(name, kind, default))
        else:
            parameters.append(_parameter(name, kind, default))
    records["output"] = Output, list(Output.model_fields)
    parameters += _options(Output)

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, default in defaults.items():
            values[name] = default if values[name] is None else values[name]
        for name, (kind, fields) in records.items():
            stated = {field: value for field in fields if (value := values.pop(field)) is not None}
            # What bounds and types don't say is checked by the stage, whose messages name the option.
            values[name] = kind.model_construct(_fields_set=set(stated), **stated)
        _output.set(values.pop("output"))
        if (result := command(**values)) is not None:
            show(result, output().as_json)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


_PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None}


def built(name: str, part: Any, line: str = "") -> Any:
    """A command of click's.

    Args:
        part: a function that is one, or a module with the function `command`, or `commands` by name, or both. With both
            it is a group whose `usual` command is meant where none of the others is named.
        line: help of a group; default: by the module.
    """
    usual = part if callable(part) else getattr(part, "command", None)
    members = getattr(part, "commands", {})
    command, app = None, typer.Typer(**_PLAIN)
    if usual is not None:
        app.command(name, cls=Command)(expanded(usual))
        command = typer.main.get_command(app)
    if not members:
        return command
    line = line or (part.__doc__ or "").partition(": ")[2].capitalize()
    app = typer.Typer(name=name, help=line, cls=Group, no_args_is_help=True, **_PLAIN)
    app.callback()(lambda: None)
    group: Any = typer.main.get_command(app)
    for key, member in members.items():
        group.commands[key] = built(key, member)
    group.usual = command
    if command is not None:
        command.members = group  # type: ignore[attr-defined]
    return group


def given(options: BaseModel) -> dict[str, Any]:
    """The fields of a record that were on the command line."""
    return {name: getattr(options, name) for name in type(options).model_fields if name in options.model_fields_set}


def _options(kind: type[BaseModel]) -> Iterator[inspect.Parameter]:
    """An option for each field of a record, under the heading of the class that declares it."""
    fields = dict(kind.model_fields)
    for part in kind.__mro__:
        for name in inspect.get_annotations(part):
            if info := fields.pop(name, None):
                yield _option(name, info.annotation, info, getattr(part, "PANEL", None))


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _option(name: str, annotation: Any, info: FieldInfo, panel: str | None = None) -> inspect.Parameter:
    """The option of a field. What is not given is None, so that it differs from the default."""
    kind = get_origin(annotation) or annotation
    if kind in (Union, types.UnionType):
        part = next(part for part in get_args(annotation) if part is not type(None))
        kind = get_origin(part) or part
    mark = next((item for item in info.metadata if isinstance(item, Flag)), Flag())
    long = any(alias.startswith("--") for alias in mark.names)
    names = mark.names if long else (f"--{name.replace('_', '-')}", *mark.names)
    parser, metavar = PARSERS.get(kind, (None, "NAME" if kind is not bool else None))
    bounds = [(key, getattr(item, key)) for item in info.metadata for key in BOUNDS if hasattr(item, key)]
    default, help = info.default, info.description or ""
    if mark.show and default not in (None, "", False, []) and not info.is_required():
        help += f" [default: {f'{default:g}' if isinstance(default, float) else default}]"
    looks: dict[str, Any] = {"metavar": mark.metavar or metavar, "help": help, "show_default": False}
    parser = _within(parser, bounds) if parser else None
    required = ... if info.is_required() else None
    option = typer.Option(required, *names, parser=parser, rich_help_panel=panel, **looks)
    return _parameter(name, kind if kind in (bool, int, float) else str, option)


def _within(parser: Parser, bounds: list[tuple[str, float]]) -> Parser:
    """The parser of a number that has bounds."""

    def bounded(text: Any) -> Any:
        value = parser(text)
        if all(BOUNDS[key][1](value, bound) for key, bound in bounds):
            return value
        allowed = " and ".join(f"x{BOUNDS[key][0]}{bound:g}" for key, bound in bounds)
        raise typer.BadParameter(f"{text} is not in the range {allowed}.")

    return bounded


class Command(typer.core.TyperCommand):
    """A command whose help shows options under the headings of their records."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for the arguments, for options without a heading, and for each heading."""
        sections: dict[str, list[Any]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            usual = Output.PANEL if parameter.name == "help" else usual
            heading = getattr(parameter, "rich_help_panel", None) or usual
            if line := parameter.get_help_record(ctx):
                sections.setdefault(heading, []).append(line)
        for heading, lines in sections.items():
            if lines:
                with formatter.section(heading):
                    formatter.write_dl(lines)
        if members := getattr(self, "members", None):
            members.format_commands(ctx, formatter)


class Group(typer.core.TyperGroup):
    """Commands whose list has each one's whole first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the table of commands."""
        lines = {name: (command.help or "").split("\n\n")[0] for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, " ".join(line.split())) for name, line in lines.items()])
