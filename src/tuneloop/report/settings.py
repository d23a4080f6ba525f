"""Which settings of a run are not the defaults, and in which several runs differ."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tuneloop.core.errors import UserError
from tuneloop.core.files import FROM_FILE
from tuneloop.report.facts import clean, section
from tuneloop.workflows.recipe import Recipe

# Where a run lies and where its data come from differ always, and change no result.
NOT_SETTINGS = ("version", "output_dir")
LONGEST = 300  # characters of a value that a table shows


@dataclass(frozen=True)
class Changed:
    """A setting: its key as on the command line, its value, and the default; both written out."""

    key: str
    value: str
    default: str


def changed_settings(config: Mapping[str, Any]) -> list[Changed]:
    """Settings of a resolved config that are not the defaults, in its order.

    A learning rate is compared with the default of the run's method and loss.
    """
    plain = flat(Recipe().model_dump(mode="json"))
    train = section(config.get("train"))
    chosen = {key: train[key] for key in ("method", "loss") if key in train}
    with contextlib.suppress(ValidationError, UserError):  # a method of one's own, or a config of another version
        recipe = Recipe.model_validate({"train": chosen}, context=FROM_FILE)
        plain["train.learning_rate"] = recipe.train.learning_rate
    return [
        Changed(key, shown(value), shown(plain.get(key)))
        for key, value in flat(config).items()
        if key not in NOT_SETTINGS and value != plain.get(key, ...) and not (value in ({}, []) and not plain.get(key))
    ]


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(key, value of each) of the settings in which configs differ, in the order of the first."""
    each = [flat(config) for config in configs]
    keys = dict.fromkeys(key for one in each for key in one if key not in NOT_SETTINGS)
    return [
        (key, [shown(one.get(key)) for one in each])
        for key in keys
        if any(one.get(key) != each[0].get(key) for one in each[1:])
    ]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config by keys as on the command line: `train.epochs`."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def shown(value: object) -> str:
    """A value as it is written on the command line; `–` for one that is not set."""
    if value is None or value == "" or value == [] or value == {}:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    text = ", ".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)  # fmt: skip
    return clean(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")
