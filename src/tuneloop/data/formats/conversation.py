"""Conversations: OpenAI's `messages`, ShareGPT's `conversations`, and turns under other keys."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.draft import Draft, Format, checked_parser, required, system_turn
from tuneloop.data.formats.sample import SYSTEM, TOOLS, FormatGuess, Record, RecordSample, as_value, is_scalar, mostly
from tuneloop.data.formats.turns import PLAIN_KEYS, ROLES, Refused, TurnKeys, from_json, read_tools, read_turns
from tuneloop.data.sources.parse import json_type

TURN_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
TURN_KEYS = (
    ("role", "content"), ("from", "value"), ("role", "value"), ("role", "text"), ("role", "message"),
    ("from", "content"), ("from", "text"),
    *((speaker, content) for speaker in ("speaker", "author", "sender", "type")
      for content in ("text", "content", "message", "utterance", "value")),
)  # fmt: skip
SHAREGPT_ROLES = frozenset({"human", "gpt", "observation", "function_call"})


def conversation(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """Turns with calls and tools, of whatever keys: OpenAI's `messages`, ShareGPT's `conversations`."""
    columns = guess.columns
    column = columns["turns"]
    value = record.get(column)
    if type(value) is not list:
        value = required(record, column, guess)
        turns_read = from_json(value, f"column {column!r}") if column in guess.texts else value
        if not isinstance(turns_read, list):
            raise Refused("wrong_type", f"column {column!r} is {json_type(value)}, not an array of turns")
        value = turns_read
    if not value:
        raise Refused("wrong_type", f"column {column!r} is an empty array, not one of turns")
    repairs: list[dict[str, Any]] = []
    turns = read_turns(value, guess.keys, repairs)
    system = record.get(columns.get("system", "system"))
    if system is not None and not any(turn["role"] == "system" for turn in turns):
        turns = [*system_turn(record, guess), *turns]
    tools = columns.get("tools", "tools")
    return Draft(turns, repairs, read_tools(record.get(tools), f"column {tools!r}"))


def find_conversation(sample: RecordSample) -> FormatGuess | None:
    for column in TURN_COLUMNS:
        if sample.is_usual(column):
            lists = [as_value(value) for value in sample.of(column)]
            keys = turn_keys(lists)
            if keys and mostly(lists, functools.partial(has_turns, keys=keys)):
                name = "sharegpt" if keys.role == "from" else "messages"
                reason = sample.seen([column], f" with turns of {keys.role!r} and {keys.content!r}")
                return FormatGuess(name, {"turns": column, **sample.further(TOOLS, SYSTEM)}, reason, keys=keys)
    return None


def has_turns(turns: Any, keys: TurnKeys) -> bool:
    return isinstance(turns, list) and any(isinstance(turn, dict) and keys.role in turn for turn in turns)


def turn_keys(lists: Sequence[Any]) -> TurnKeys | None:
    """How turns are written in most of some lists of them."""
    turns = [[turn for turn in some if isinstance(turn, dict)] for some in lists if isinstance(some, list)]
    shapes = Counter(frozenset(tuple(turn) for turn in some) for some in turns)  # few, whatever the number of turns
    counts = {
        pair: sum(n for shape, n in shapes.items() if any(pair[0] in keys and pair[1] in keys for keys in shape))
        for pair in TURN_KEYS
    }
    role, content = max(counts, key=lambda pair: counts[pair])
    if not counts[role, content]:
        return None
    spellings: Counter[str] = Counter()
    openings: Counter[str] = Counter()
    for some in turns:
        pairs = [(turn.get(role), turn.get(content)) for turn in some]
        spellings.update({name for name, _ in pairs if isinstance(name, str)})
        first = (pair for pair in pairs if ROLES.get(str(pair[0]).casefold()) != "system")
        name, text = next(first, (None, None))
        alone = len(pairs) == 1  # an answer alone, as in a preference, opens nothing
        if ROLES.get(str(name).casefold()) == "assistant" and isinstance(text, str) and text and not alone:
            openings[text] += 1
    roles = {name for name in spellings if name.strip().casefold() in ROLES}
    if role not in ("role", "from") and 2 * sum(spellings[name] for name in roles) < spellings.total():
        return None  # a key such as "type" has many meanings
    separate = role == "from" or any(ROLES[name.strip().casefold()] == "function_call" for name in roles)
    usual = frozenset(name for name in roles if spellings[name] > 0.02 * len(turns))
    usual |= SHAREGPT_ROLES if role == "from" else frozenset()
    greetings = frozenset(text for text, number in openings.items() if number >= max(5, 0.05 * len(turns)))
    return TurnKeys(role, content, usual=usual, separate_calls=separate, greetings=greetings)


def is_data(value: Any) -> bool:
    """An object or an array, also as JSON in a string, but no array of turns, which are a text."""
    value = as_value(value)
    return not is_scalar(value) and not (
        has_turns(value, PLAIN_KEYS)
        and any({"content", "tool_calls"} & turn.keys() for turn in value if type(turn) is dict)
    )


def _format(name: str, shape: str) -> Format:
    def find(sample: RecordSample, config: PrepareConfig) -> FormatGuess | None:
        guess = find_conversation(sample)
        return guess if guess and guess.name == name else None

    return Format(name, shape, checked_parser(conversation), find, rated=True)


SHAREGPT = _format("sharegpt", "conversations: turns with from and value")
MESSAGES = _format("messages", "messages: turns with role and content")
