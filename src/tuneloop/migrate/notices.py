"""When a hosted model stops, and what its tokens cost: what the service says, else a dated table with its source."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from tuneloop.core.foreign import packaged_yaml
from tuneloop.planning.catalogue import HostedPrice

TABLE = Path(__file__).with_name("openai.yaml")


class Stop(NamedTuple):
    """When a model stops: a day as in 2027-01-14, empty where none is known; and who says so."""

    day: str
    source: str


def base_of(model: str) -> str:
    """The base in the name of a fine-tune (`ft:BASE:ORGANISATION:NAME:ID`), of its checkpoint too; else the name."""
    return model.removeprefix("ft:").split(":")[0] if model.startswith("ft:") else model


def stop_of(model: str, base: str, listed: Mapping[str, Any]) -> Stop:
    """When a fine-tune stops.

    Args:
        model, base: its name and that of its base.
        listed: of the service's list of models, name -> `shutdown_date`, where it has one.
    """
    base = base_of(base)
    for name in (model, base):
        if day := _day(listed.get(name)):
            return Stop(day, "the service's list of models" + ("" if name == model else f", for {base}"))
    entry = _entry(base)
    if entry is None:
        return Stop("", "no date is announced in the service's list of models")
    notice = f"notice of {entry['notice']}: " if "notice" in entry else ""
    return Stop(str(entry["stops"]), f"{notice}{_table()['source']}")


def replacement_of(base: str) -> str:
    """The model that the service recommends in the place of a base; empty: none is known."""
    entry = _entry(base_of(base))
    return str(entry["replacement"]) if entry else ""


def price_of(model: str) -> HostedPrice | None:
    """What tokens of a fine-tune cost; None where the table does not know it."""
    entry = _entry(base_of(model)) if model.startswith("ft:") else None
    if entry is None or "input" not in entry:
        return None
    table = _table()["prices"]
    return HostedPrice("OpenAI", model, entry["input"], entry["output"], str(table["date"]), table["source"])


def no_new_jobs() -> tuple[date, str]:
    """From when OpenAI takes no new fine-tuning jobs, and the page that says so."""
    table = _table()
    return table["no_new_jobs"]["date"], f"notice of {table['no_new_jobs']['notice']}: {table['source']}"


def _entry(base: str) -> Mapping[str, Any] | None:
    bases: Mapping[str, Mapping[str, Any]] = _table()["bases"]
    if base in bases:
        return bases[base]
    # The name without a day stands for a snapshot: the one that fine-tuning takes, whose price is known, comes first.
    snapshots = [entry for name, entry in bases.items() if name[:-11] == base]
    return snapshots[0] if snapshots else None


def _day(value: Any) -> str:
    """A date of the service as a day; empty where it is none."""
    try:
        return date.fromisoformat(str(value)[:10]).isoformat()
    except ValueError:
        return ""


@functools.cache
def _table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = packaged_yaml(TABLE)
    return table
