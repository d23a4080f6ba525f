"""Options of a command from records: a parameter whose type is a record becomes one option for each of its fields.

A record is either a pydantic `Config`, whose fields give type, default and description, or a dataclass whose fields are made
by `flag`; a parameter of a command may be made so as well. `--help`, `tuneloop schema` and callers in Python read the same
fields.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import typer
import typer.core

from tuneloop.cli.numbers import amount, count
from tuneloop.core.flag import Flag, switch

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

PARSERS: dict[Any, tuple[Callable[[Any], Any], str]] = {int: (count, "N"), float: (amount, "X")}


@dataclasses.dataclass(frozen=True)
class Output:
    """What all commands have in common."""

    PANEL: ClassVar[str] = "Output"

    json: bool = switch("Print exactly one JSON object on stdout.")
    quiet: bool = switch("Print no progress and no lines on the way.", "-q")
    debug: bool = switch("Show tracebacks.")
    trust_code: bool = switch("Run the Python files that a run's or another folder's settings name.")


def argument(metavar: str, help: str, default: Any = ...) -> Any:
    """A positional argument of a command, as the default of its parameter; without a default it must be given."""
    return typer.Argument(default, help=help, metavar=metavar)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer takes it: with the fields of its records as parameters."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    records: dict[str, tuple[Any, list[str]]] = {}  # parameter -> record, names of its fields
    for parameter in inspect.signature(command).parameters.values():
        name, kind, default = parameter.name, hints[parameter.name], parameter.default
        found = list(_parameters(kind))
        if found:
            records[name] = kind, [one.name for one in found]
        if isinstance(default, dataclasses.Field):
            default = _option_of_flag(name, default, None)
        parameters += found or [_parameter(name, kind, default)]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, (kind, fields) in records.items():
            values[name] = _record(kind, {field: values.pop(field) for field in fields})
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def given(options: BaseModel) -> dict[str, Any]:
    """The fields of a record that stood on the command line."""
    return {name: getattr(options, name) for name in type(options).model_fields if name in options.model_fields_set}


def _record(kind: Any, values: dict[str, Any]) -> Any:
    """The record. A config record's values are checked by the stage that takes them, whose messages name the option."""
    if not hasattr(kind, "model_construct"):
        return kind(**values)
    stated = {name: value for name, value in values.items() if value is not None and value != ""}
    return kind.model_construct(_fields_set=set(stated), **stated)


def _parameters(kind: Any) -> Iterator[inspect.Parameter]:
    """A parameter for each field of a record, nothing for any other type."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            if "flag" in field.metadata:
                words = get_origin(hints[field.name]) is Literal  # the stage says which there are
                annotation = str if words else hints[field.name]
                yield _parameter(field.name, annotation, _option_of_flag(field.name, field, kind))
    elif hasattr(kind, "model_fields"):
        for part in kind.__mro__:
            for name in inspect.get_annotations(part):
                if name in kind.model_fields:
                    info = kind.model_fields[name]
                    yield _parameter(name, *_option(name, info, getattr(part, "PANEL", None)))


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _option_of_flag(name: str, field: dataclasses.Field[Any], record: Any) -> Any:
    """The option that a field of a dataclass, or the default of a parameter, is."""
    flag: Flag = field.metadata["flag"]
    return typer.Option(
        field.default, *_names(name, flag), help=flag.help, metavar=flag.metavar or None, min=flag.least, max=flag.most,
        rich_help_panel=getattr(record, "PANEL", None), show_default=flag.shown,
    )  # fmt: skip


def _names(field: str, flag: Flag) -> tuple[str, ...]:
    """All names of an option, its field's own one included."""
    long = any(name.startswith("--") for name in flag.names)
    return flag.names if long else (f"--{field.replace('_', '-')}", *flag.names)


def _option(name: str, info: FieldInfo, panel: str | None) -> tuple[Any, Any]:
    """Type and option of a record's field. What is not given is None, so that it differs from the default."""
    kind = _plain(info.annotation)
    flag = next((one for one in info.metadata if isinstance(one, Flag)), Flag())
    parser, metavar = PARSERS.get(kind, (None, "NAME" if kind is not bool else None))
    kind = kind if kind in (bool, int, float) else str
    default = f" [default: {_shown(info.default)}]" if info.default not in (None, "", False) else ""
    option = typer.Option(
        None, *_names(name, flag), parser=parser, metavar=flag.metavar or metavar,
        help=f"{info.description or ''}{default}", rich_help_panel=panel, show_default=False,
    )  # fmt: skip
    return kind, option


def _plain(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


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
