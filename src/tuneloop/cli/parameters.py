"""Options of a command from settings records: a parameter whose type is a `Config` becomes one option for each of its fields.

A field gives the type, default, description and bounds of its option, and with a `Flag` its names. A parameter of a command
may be declared by `flag` as well. `--help`, `tuneloop schema` and callers in Python read the same fields.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from operator import ge, gt, le, lt
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

import typer
import typer.core
import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tuneloop.cli.console import Result, show
from tuneloop.cli.numbers import amount, count
from tuneloop.core.files import Config
from tuneloop.core.flag import Flag, flag, switch


def _names(text: str) -> list[str]:
    return [name for each in text.split(",") if (name := each.strip())]


# By type of a field: how its text is read, and what stands for it in the help.
PARSERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    int: (count, "N"), float: (amount, "X"), list: (_names, "NAMES"),
}  # fmt: skip
# How pydantic names a bound of a field -> how it is written, and whether it holds.
BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "ge": (">=", ge), "gt": (">", gt), "le": ("<=", le), "lt": ("<", lt),
}  # fmt: skip


class Output(Config):
    """What all commands have in common."""

    PANEL: ClassVar[str] = "Output"

    as_json: bool = switch("Print exactly one JSON object on stdout.", "--json")
    quiet: bool = switch("Print no progress and no lines on the way.", "-q")
    debug: bool = switch("Show tracebacks.")
    trust_code: bool = switch("Run the Python files that a run's or another folder's settings name.")


def argument(metavar: str, help: str, default: Any = ...) -> Any:
    """A positional argument of a command, as the default of its parameter; without a default it must be given."""
    return typer.Argument(default, help=help, metavar=metavar)


SETTINGS = argument("[KEY=VALUE]...", "Settings, as in train.epochs=2.", None)
SERVER = "The server's folder, or its store: a file or a postgresql:// URL."
STORE = flag("serve", "FOLDER", SERVER)
STORE_ARGUMENT = argument("[STORE]", SERVER, "serve")
KEEP_PERSONAL = switch("Leave personal data in texts as they are.")


def expanded(command: Callable[..., Result | None]) -> Callable[..., None]:
    """The command as typer takes it: with the fields of its records as parameters; what it returns is printed."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    records: dict[str, tuple[type[BaseModel], list[str]]] = {}  # parameter -> record, names of its fields
    defaults: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        name, kind, default = parameter.name, hints[parameter.name], parameter.default
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            options = list(_parameters(kind))
            records[name] = kind, [one.name for one in options]
            parameters += options
        elif isinstance(default, FieldInfo):
            defaults[name] = default.default
            parameters.append(_option(name, kind, default))
        else:
            parameters.append(_parameter(name, kind, default))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, default in defaults.items():
            values[name] = default if values[name] is None else values[name]
        for name, (kind, fields) in records.items():
            values[name] = _record(kind, {field: values.pop(field) for field in fields})
        if (result := command(**values)) is not None:
            show(result, values["output"].as_json)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def built(name: str, part: Any, line: str = "") -> Any:
    """A command of click's.

    Args:
        part: a function that is one, or a module with the function `command`, or `commands` by name, or both. With both it is
            a group whose `usual` command is meant where none of its own is named.
        line: help of a group; default: by the module.
    """
    usual = part if callable(part) else getattr(part, "command", None)
    members = getattr(part, "commands", {})
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    one = None
    if usual is not None:
        app.command(name, cls=Command)(expanded(usual))
        one = typer.main.get_command(app)
    if not members:
        return one
    line = line or (part.__doc__ or "").partition(": ")[2].capitalize()
    app = typer.Typer(
        name=name, help=line, cls=Group, no_args_is_help=True, add_completion=False, rich_markup_mode=None
    )
    app.callback()(lambda: None)
    group: Any = typer.main.get_command(app)
    for each, member in members.items():
        group.commands[each] = built(each, member)
    group.usual = one
    if one is not None:
        one.members = group  # type: ignore[attr-defined]
    return group


def given(options: BaseModel) -> dict[str, Any]:
    """The fields of a record that were on the command line."""
    return {name: getattr(options, name) for name in type(options).model_fields if name in options.model_fields_set}


def _record(kind: type[BaseModel], values: dict[str, Any]) -> BaseModel:
    """The record. What bounds and types don't say is checked by the stage that takes it, whose messages name the option."""
    stated = {name: value for name, value in values.items() if value is not None}
    return kind.model_construct(_fields_set=set(stated), **stated)


def _parameters(kind: type[BaseModel]) -> Iterator[inspect.Parameter]:
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
    kind = _plain(annotation)
    mark = next((one for one in info.metadata if isinstance(one, Flag)), Flag())
    long = any(each.startswith("--") for each in mark.names)
    names = mark.names if long else (f"--{name.replace('_', '-')}", *mark.names)
    parser, metavar = PARSERS.get(kind, (None, "NAME" if kind is not bool else None))
    bounds = [(key, getattr(one, key)) for one in info.metadata for key in BOUNDS if hasattr(one, key)]
    shown = mark.shown and info.default not in (None, "", False, []) and not info.is_required()
    option = typer.Option(
        ... if info.is_required() else None, *names, parser=_within(parser, bounds) if parser else None,
        metavar=mark.metavar or metavar, rich_help_panel=panel, show_default=False,
        help=f"{info.description or ''}{f' [default: {_shown(info.default)}]' if shown else ''}",
    )  # fmt: skip
    return _parameter(name, kind if kind in (bool, int, float) else str, option)


def _within(parser: Callable[[Any], Any], bounds: list[tuple[str, float]]) -> Callable[[Any], Any]:
    """The parser of a number that has bounds."""

    def bounded(text: Any) -> Any:
        value = parser(text)
        if all(BOUNDS[key][1](value, bound) for key, bound in bounds):
            return value
        allowed = " and ".join(f"x{BOUNDS[key][0]}{bound:g}" for key, bound in bounds)
        raise typer.BadParameter(f"{text} is not in the range {allowed}.")

    return bounded


def _plain(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(kind for kind in get_args(annotation) if kind is not type(None))
    return get_origin(annotation) or annotation


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class Command(typer.core.TyperCommand):
    """A command whose help shows options under the headings of their records."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for the arguments, for options without a heading, and for each heading."""
        sections: dict[str, list[Any]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            heading = "Arguments" if parameter.param_type_name == "argument" else "Options"
            heading = getattr(parameter, "rich_help_panel", None) or (
                Output.PANEL if parameter.name == "help" else heading
            )
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
        lines = {name: (each.help or "").split("\n\n")[0] for name, each in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, " ".join(line.split())) for name, line in lines.items()])
