"""The format that an entry of LLaMA-Factory's `dataset_info.json` describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.data.formats.conversation import SHAREGPT_ROLES
from tuneloop.data.formats.sample import FormatGuess
from tuneloop.data.formats.turns import PLAIN_KEYS, ROLES, TurnKeys


def guess_from_info(entry: Mapping[str, Any]) -> FormatGuess:
    """The format that an entry of LLaMA-Factory's `dataset_info.json` describes.

    Read are `formatting` (alpaca, sharegpt, openai), `columns`, `tags` and `ranking`; its defaults are kept:
    alpaca, with columns `instruction`, `input`, `output`; sharegpt with `conversations`, `from`, `value`.

    Raises:
        UserError: a formatting that is not known, or columns of images, audio or video.
    """
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    formatting = entry.get("formatting", "alpaca")
    if (
        not isinstance(columns, Mapping)
        or not isinstance(tags, Mapping)
        or formatting not in ("alpaca", "sharegpt", "openai")
    ):
        raise UserError(
            f"Can't read the entry with formatting {formatting!r}",
            where="dataset_info.json",
            next_step="formatting is alpaca, sharegpt or openai; columns and tags are objects",
        )
    if media := [name for name in ("images", "videos", "audios") if columns.get(name)]:
        raise UserError(f"{media[0]} can't be trained on", where="dataset_info.json", next_step="give text data only")
    made = _named(columns, _FURTHER)
    if formatting == "alpaca":
        given = _named(columns, _ALPACA)
        if given.keys() == {"instruction"} and "chosen" not in made:
            return FormatGuess("text", {"text": given["instruction"]}, "dataset_info.json: one column of text")
        name, made, keys = "alpaca", _alpaca_columns(given, made), PLAIN_KEYS
    else:
        name, usual = ("messages", "messages") if formatting == "openai" else ("sharegpt", "conversations")
        made, keys = {"turns": str(columns.get("messages") or usual)} | made, _tagged(tags, name)
    if entry.get("ranking") or "chosen" in made:
        if "chosen" not in made and "output" in made:  # older files: the output is a list, the better one first
            made["answers"] = made.pop("output")
        else:
            made.setdefault("chosen", "chosen")
            made.setdefault("rejected", "rejected")
        name = "preference"
    elif "thumb" in made:
        name = "thumbs"
    return FormatGuess(name, made, f"dataset_info.json: {formatting}", keys=keys)


# By LLaMA-Factory's name of a column its role here.
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_FURTHER = {name: name for name in ("system", "tools", "history", "chosen", "rejected")} | {"kto_tag": "thumb"}


def _named(columns: Mapping[str, Any], roles: Mapping[str, str]) -> dict[str, str]:
    """The columns that an entry names, by their roles here."""
    return {role: str(columns[name]) for name, role in roles.items() if columns.get(name)}


def _alpaca_columns(given: dict[str, str], further: dict[str, str]) -> dict[str, str]:
    """The columns of instruction and output.

    Raises:
        UserError: one of both is missing.
    """
    made = (given or {"instruction": "instruction", "input": "input", "output": "output"}) | further
    if "chosen" in made:
        made.pop("output", None)
    if "instruction" not in made or not {"output", "chosen"} & made.keys():
        raise UserError(
            "The entry names no prompt or no response",
            where="dataset_info.json",
            next_step="name both in columns: prompt and response (or chosen and rejected)",
        )
    return made


def _tagged(tags: Mapping[str, Any], name: str) -> TurnKeys:
    """The keys and roles of turns as LLaMA-Factory's tags name them."""
    ours = {name: name for name in ("user", "assistant", "system")} | {
        "observation": "tool",
        "function": "function_call",
    }
    given = {tag: str(tags[f"{tag}_tag"]) for tag in ours if tags.get(f"{tag}_tag")}
    roles = {spelling.casefold(): ours[tag] for tag, spelling in given.items()}
    role, content = ("role", "content") if name == "messages" else ("from", "value")
    usual = frozenset(given.values()) | (frozenset() if name == "messages" else SHAREGPT_ROLES)
    return TurnKeys(
        role=str(tags.get("role_tag") or role),
        content=str(tags.get("content_tag") or content),
        roles={spelling: role for spelling, role in roles.items() if ROLES.get(spelling) != role},
        usual=usual,
        separate_calls=name == "sharegpt",
    )
