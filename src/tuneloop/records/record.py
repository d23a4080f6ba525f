"""What all records share: how they are written, and how they are read by this version and by others.

What is stored outlives a release: each form of it has a number, and a step leads to it from the form before. A store, a
record's file and a line of a journal each have one list of steps, oldest first. A step that was released never changes;
whoever changes a form appends one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    WithJsonSchema,
    model_serializer,
)

from tuneloop.core.errors import UserError
from tuneloop.core.files import plain, read_json, read_jsonl, write_json

Form = TypeVar("Form")


@dataclass(frozen=True)
class MigrationStep(Generic[Form]):
    """A change of form.

    Args:
        version: number of the form that it leads to.
        title: what it changes, in a few words for the user.
        apply: makes the change; gets a connection to a store, or a JSON object of which it returns the new one.
    """

    version: int
    title: str
    apply: Callable[[Form], Any]


JsonSteps = tuple[MigrationStep[dict[str, Any]], ...]


def latest(steps: Sequence[MigrationStep[Form]]) -> int:
    """The number of the form that this version writes; the first form of a file has no step."""
    return steps[-1].version if steps else 1


def missing(steps: Sequence[MigrationStep[Form]], version: int, title: str, where: str) -> list[MigrationStep[Form]]:
    """The steps that lead from a form to the latest one, oldest first.

    Args:
        version: of what is there.
        title, where: what it is, as in "a store", and its file, for messages.

    Raises:
        UserError: a newer version of tuneloop wrote it.
        ValueError: the list of steps has a gap.
    """
    if version > latest(steps):
        message = f"A newer tuneloop wrote {title}: it is of version {version}, and this one reads {latest(steps)}"
        raise UserError(message, where=where, next_step="use that tuneloop: pip install --upgrade tuneloop")
    left = [step for step in steps if step.version > version]
    if [step.version for step in left] != [*range(version + 1, latest(steps) + 1)]:
        raise ValueError(f"{title}: no step leads from version {version} to {latest(steps)}")
    return left


def upgraded(value: dict[str, Any], steps: JsonSteps, title: str, where: str) -> dict[str, Any]:
    """A JSON object in the latest form; one without `version` is in the first. See `missing`."""
    for step in missing(steps, value.get("version", 1), title, where):
        value = {**step.apply(value), "version": step.version}
    return value


# A float that JSON holds as null where it is not a number.
Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    WithJsonSchema({"type": ["number", "null"]}),
]


class Part(BaseModel):
    """A part of a record. Unknown keys are refused when it is made; `read_record` keeps those of other versions."""

    # Of a hundred records a command reads a few: what checks one is built at its first use.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @model_serializer(mode="wrap")
    def _with_unknown_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**serialize(self), **(self.__pydantic_extra__ or {})}

    def __getitem__(self, key: str) -> Any:
        """A value by its key in the file: `dataset.manifest["counts"]["kept"]`."""
        try:
            return getattr(self, key)
        except AttributeError:
            raise KeyError(key) from None

    def to_json(self) -> dict[str, Any]:
        """The object that a file holds: every key that was given, in the order of the fields."""
        values: dict[str, Any] = plain(self.model_dump(exclude_unset=True))
        return values


class Record(Part):
    """What a file holds."""

    title: ClassVar[str]  # what the file is, for messages: "a run", "an evaluation"
    file: ClassVar[str]  # its usual name
    again: ClassVar[str]  # what to do when it is damaged
    migrations: ClassVar[JsonSteps] = ()  # from the forms of earlier versions to the one that is written

    version: int = 1

    def __init_subclass__(cls, *, noun: str = "", file: str = "", again: str = "", **options: Any) -> None:
        """Give a record's class its `title` (as `noun`: pydantic has a `title` too), `file` and `again`."""
        super().__init_subclass__(**options)
        if noun:
            cls.title, cls.file, cls.again = noun, file, again

    def to_json(self) -> dict[str, Any]:
        """The object that the file holds: the version, then every key that was given, in the order of the fields."""
        return {"version": self.version} | super().to_json() | {"version": latest(self.migrations)}


R = TypeVar("R", bound=Record)
P = TypeVar("P", bound=Part)
T = TypeVar("T")


def write_record(path: Path | str, record: Record) -> None:
    """Write a record's file atomically; `UserError`: the folder can't be written, or the disk is full."""
    write_json(path, record)


def read_record(kind: type[R], path: Path | str, *, below: Path | None = None) -> R:
    """Read a record's file, or the file of this record in a folder; other keys are kept, missing ones have defaults.

    One of an earlier version is brought to the form of this one, in memory. `below`: see `core.foreign.descriptor_of`.

    Raises:
        UserError: there is no such file, it is no JSON, is of a newer version, or a value in it is wrong.
    """
    path = Path(path)
    path = path / kind.file if path.is_dir() else path
    return as_record(kind, read_json(path, below=below), str(path))


def done_record(kind: type[R], folder: Path, key: str) -> R | None:
    """The manifest of a stage in a folder, if it is there with this key."""
    if not (folder / kind.file).is_file():
        return None
    try:
        record = read_record(kind, folder)
    except UserError:
        return None  # damaged from outside: the stage is repeated
    return record if getattr(record, "key", None) == key else None


def as_record(kind: type[R], value: Any, where: str) -> R:
    """A JSON value as a record; see `read_record`. `where`: the file that it comes from, for messages."""
    return checked(kind, value, where, partial(kind.model_validate, extra="allow"))


def checked(kind: type[Any], value: Any, where: str, validate: Callable[[dict[str, Any]], T]) -> T:
    """What `validate` makes of a JSON value, which is brought to the form of this version before.

    Args:
        kind: with the class attributes of a `Record`; `where`: the file that it comes from, for messages.
        validate: raises pydantic's `ValidationError`.

    Raises:
        UserError: it is of a newer version, or a value in it is wrong; the value is named.
    """
    if not isinstance(value, dict) or "version" not in value:
        fault = "it has no version" if isinstance(value, dict) else "it holds no JSON object"
    elif type(value["version"]) is not int or value["version"] < 1:
        fault = f"its version is {value['version']!r:.20}"
    else:
        return _validated(validate, upgraded(value, kind.migrations, kind.title, where), where, kind.again)
    raise UserError(f"Not {kind.title}: {fault}", where=where, next_step=kind.again)


def read_lines(kind: type[P], path: Path | str, again: str) -> list[P]:
    """Read the lines of a JSON Lines file, such as `samples.jsonl`; `again`: what to do when it is damaged.

    Raises:
        UserError: there is no such file, or a line is damaged; the line is named.
    """
    return [as_line(kind, value, f"{path}:{i}", again) for i, value in enumerate(read_jsonl(path), 1)]


def as_line(kind: type[P], value: Any, where: str, again: str) -> P:
    """A JSON value as a line's record; see `read_lines`. A wrong value is named."""
    return _validated(partial(kind.model_validate, extra="allow"), value, where, again)


def _validated(validate: Callable[[Any], T], value: Any, where: str, again: str) -> T:
    try:
        return validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join("".join(c if c.isprintable() else "?" for c in str(part)) for part in first["loc"])
        message = f"{key} is missing" if first["type"] == "missing" else f"{key}: {first['msg'].lower()}"
        raise UserError(f"The file is damaged: {message}", where=where, next_step=again) from None
