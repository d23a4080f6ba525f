"""The table of formats."""

from __future__ import annotations

from dataclasses import dataclass

from tuneloop.data.formats.draft import Parse
from tuneloop.data.formats.sample import Find


@dataclass(frozen=True)
class Format:
    """A shape of records.

    Args:
        name: as `data.format` names it.
        shape: what its records have, for messages.
        parse: makes a conversation of a record, or raises `Refused`.
        find: recognises the format in a sample of records; None: it must be configured.
        rated: a column of ratings alongside makes records of this format `thumbs`.
    """

    name: str
    shape: str
    parse: Parse
    find: Find | None = None
    rated: bool = False


# By name, in the order in which formats are looked for: a conversation may stand next to an instruction, an
# instruction next to a label.
FORMATS: dict[str, Format] = {}


def add_format(added: Format) -> None:
    """Make a format one of `FORMATS`; it is looked for before all others."""
    others = {name: form for name, form in FORMATS.items() if name != added.name}
    FORMATS.clear()
    FORMATS.update({added.name: added, **others})
