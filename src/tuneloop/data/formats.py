"""Records of many shapes to conversations: which shape they have, and one function for each shape.

A format's function takes a record and gives a `Draft`, the turns as they stand, or raises `Refused`.
`parse_record` then puts every draft through the same checks, so that all formats keep the same promises:
contents are strings, roles take turns, the last turn is an answer.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.read import json_type
from tuneloop.types import Message, UserError

CLASSIFY = "Classify the text. Answer with the label only."
TURN_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("input", "output"),
    ("query", "response"),
    ("instruction", "response"),
)
TEXT_NAMES = (
    "text",
    "sentence",
    "utterance",
    "message",
    "content",
    "body",
    "query",
    "question",
    "title",
    "description",
)
LABEL_NAMES = ("label", "category", "class", "intent", "target", "queue", "topic", "sentiment")
NO_CONTENT_NAMES = ("id", "uuid", "index", "idx", "created", "time", "timestamp", "date", "fold", "split")

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "function_call",
    "tool_call": "function_call",
}


@dataclass(frozen=True)
class FormatGuess:
    """The shape of the records: the format's name, its columns by role, and how it was found."""

    name: str
    columns: dict[str, str]
    reason: str


@dataclass(frozen=True)
class Parsed:
    """A record as a conversation.

    Args:
        messages: the turns; the last is the assistant's.
        label: the class, where the task has one.
        tools: the tools that may be called, in the OpenAI form.
        used: columns that went into the conversation.
        repairs: what was changed, each with at least `kind` and `field`.
    """

    messages: list[Message]
    label: str | None
    tools: list[dict[str, Any]]
    used: frozenset[str]
    repairs: list[dict[str, Any]]


@dataclass(frozen=True)
class Rejection:
    """Why a record is no training example: a word of the documented list, and the particulars."""

    reason: str
    detail: str


@dataclass
class Draft:
    """What a format makes of a record, before the checks that all formats share."""

    turns: list[Message]
    used: set[str]
    label: str | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    repairs: list[dict[str, Any]] = field(default_factory=list)


class Refused(Exception):
    """A record that a format can't use; never leaves this module."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


# --- which format --------------------------------------------------------------------------------


def detect(sample: Sequence[Mapping[str, Any]], config: PrepareConfig) -> FormatGuess:
    """The format of the records, from what is configured and what at least half of the sample shows.

    Raises:
        UserError: no format fits, or the configured one doesn't.
    """
    if config.input is not None or config.output is not None:
        if config.format not in ("auto", "fields"):
            raise UserError(
                f"Templates (data.input, data.output) don't go with format={config.format}",
                next_step="leave out data.format, or the templates",
            )
        if config.input is None or config.output is None:
            missing = "input" if config.input is None else "output"
            raise UserError(f"Missing key 'data.{missing}'", next_step=f"set data.{missing}='...{{column}}...' as well")
        templates = {name: ", ".join(template_columns(text)) for name, text in _templates(config)}
        return FormatGuess("fields", templates, "templates given")
    if config.format == "fields":
        raise UserError(
            "format=fields needs templates", next_step="set data.input='{column}' and data.output='{column}'"
        )
    named = config.text is not None or config.label is not None
    if named and config.format not in ("auto", "text_label"):
        raise UserError(
            f"data.text and data.label don't go with format={config.format}",
            next_step="leave out data.format, or data.text and data.label",
        )
    wanted = "text_label" if named else config.format
    for name, find in _FINDERS.items():
        if wanted in ("auto", name) and (columns := find(sample, config)):
            how = "columns" if config.format == "auto" and not named else "as configured: columns"
            return FormatGuess(name, columns, f"{how} {', '.join(columns.values())}")
    names = ", ".join(repr(name) for name in list(_columns(sample))[:12])
    what = "Can't tell the format of the records" if wanted == "auto" else f"The records don't look like {wanted}"
    raise UserError(
        what,
        where=f"columns: {names or '(none)'}",
        next_step="name the columns with data.text=COLUMN data.label=COLUMN, or write templates: "
        "data.input='{COLUMN}' data.output='{COLUMN}'",
    )


def check_columns(records: Sequence[Mapping[str, Any]], config: PrepareConfig) -> None:
    """Refuse a configured column that no record has.

    Raises:
        UserError: with the nearest column.
    """
    wanted = {f"data.{name}": template_columns(text) for name, text in _templates(config)}
    single = {"data.text": config.text, "data.label": config.label, "data.split.stratify": config.split.stratify}
    wanted |= {key: [column] for key, column in single.items() if column is not None}
    known = _columns(records)
    for key, columns in wanted.items():
        for column in columns:
            if column not in known and not any(_walk(record, column) is not None for record in records):
                near = difflib.get_close_matches(column, known, 1, 0.4)
                raise UserError(
                    f"No record has the column {column!r}",
                    where=key,
                    next_step=f"did you mean {near[0]!r}?" if near else f"columns: {', '.join(list(known)[:12])}",
                )


def _templates(config: PrepareConfig) -> list[tuple[str, str]]:
    return [(k, v) for k, v in (("input", config.input), ("output", config.output)) if v is not None]


def _columns(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Columns with the number of records that have them, in order of appearance."""
    counts: dict[str, int] = {}
    for record in records:
        for name in record:
            counts[name] = counts.get(name, 0) + 1
    return counts


def _usual(sample: Sequence[Mapping[str, Any]], *columns: str) -> bool:
    """Whether at least half of the records have all the columns."""
    return bool(sample) and 2 * sum(all(c in record for c in columns) for record in sample) >= len(sample)


def _find_turns(sample: Sequence[Mapping[str, Any]], keys: tuple[str, str]) -> dict[str, str] | None:
    for column in TURN_COLUMNS:
        turns = [record.get(column) for record in sample]
        fitting = sum(isinstance(t, list) and any(isinstance(m, dict) and keys[0] in m for m in t) for t in turns)
        if fitting and 2 * fitting >= sum(turn is not None for turn in turns) and _usual(sample, column):
            extra = {name: name for name in ("tools", "system") if any(name in record for record in sample)}
            return {"turns": column, **extra}
    return None


def _find_sharegpt(sample: Sequence[Mapping[str, Any]], config: PrepareConfig) -> dict[str, str] | None:
    return _find_turns(sample, ("from", "value"))


def _find_messages(sample: Sequence[Mapping[str, Any]], config: PrepareConfig) -> dict[str, str] | None:
    return _find_turns(sample, ("role", "content"))


def _find_alpaca(sample: Sequence[Mapping[str, Any]], config: PrepareConfig) -> dict[str, str] | None:
    if not _usual(sample, "instruction", "output"):
        return None
    known = _columns(sample)
    return {name: name for name in ("instruction", "input", "output", "system", "history") if name in known}


def _find_pair(sample: Sequence[Mapping[str, Any]], config: PrepareConfig) -> dict[str, str] | None:
    for prompt, completion in PAIRS:
        if _usual(sample, prompt, completion):
            return {"prompt": prompt, "completion": completion}
    return None


def _find_text_label(sample: Sequence[Mapping[str, Any]], config: PrepareConfig) -> dict[str, str] | None:
    """Columns by their configured or usual names, else the only two, where one repeats its values."""
    known = [name for name in _columns(sample) if _usual(sample, name)]
    low = {name.casefold(): name for name in reversed(known)}
    scalars = {
        name
        for name in known
        if 2 * sum(isinstance(r.get(name), dict | list) for r in sample) < sum(name in r for r in sample)
    }
    label = config.label or next((low[n] for n in LABEL_NAMES if low.get(n, "") in scalars), None)
    text = config.text or next((low[n] for n in TEXT_NAMES if low.get(n, "") in scalars and low[n] != label), None)
    if text and label:
        return {"text": text, "label": label}
    rest = [n for n in known if n in scalars and n.casefold() not in NO_CONTENT_NAMES and n not in (text, label)]
    if (text or label) and len(rest) == 1:
        return {"text": text or rest[0], "label": label or rest[0]}
    if text or label or len(rest) != 2:
        return None
    distinct = {name: len({str(record.get(name)) for record in sample}) for name in rest}
    label, text = sorted(rest, key=lambda name: distinct[name])
    return (
        {"text": text, "label": label}
        if 2 * distinct[label] <= len(sample) and distinct[text] > distinct[label]
        else None
    )


# Order matters: a conversation may stand beside an instruction, an instruction beside a label.
_FINDERS: dict[str, Callable[[Sequence[Mapping[str, Any]], PrepareConfig], dict[str, str] | None]] = {
    "sharegpt": _find_sharegpt,
    "messages": _find_messages,
    "alpaca": _find_alpaca,
    "prompt_completion": _find_pair,
    "text_label": _find_text_label,
}


# --- a record ------------------------------------------------------------------------------------


def parse_record(record: Mapping[str, Any], guess: FormatGuess, config: PrepareConfig) -> Parsed | Rejection:
    """A record as a conversation in the OpenAI form, or why it is none."""
    try:
        draft = _DRAFTERS[guess.name](record, guess.columns, config)
        system = (
            config.instruction if config.instruction is not None else CLASSIFY if guess.name == "text_label" else ""
        )
        messages = _checked_turns(draft, system)
        label = draft.label
        if label is None and (config.task == "classification" or config.labels is not None):
            label = messages[-1]["content"].strip()
        if config.labels is not None and label is not None:
            _check_label(label, config.labels)
    except Refused as refused:
        return Rejection(refused.reason, refused.detail)
    return Parsed(messages, label, draft.tools, frozenset(draft.used), draft.repairs)


def _check_label(label: str, labels: Collection[str]) -> None:
    if label not in labels:
        folded = {name.casefold(): name for name in labels}
        near = difflib.get_close_matches(label.casefold(), folded, 1, 0.6)
        raise Refused("unknown_label", f"{_short(label)}" + (f": did you mean {folded[near[0]]!r}?" if near else ""))


def _checked_turns(draft: Draft, system: str) -> list[Message]:
    """The draft's turns, merged and checked; what is changed is added to its repairs.

    Raises:
        Refused: empty turns, no answer at the end, no user turn.
    """
    turns: list[Message] = []
    for place, turn in enumerate(draft.turns, 1):
        content, role = turn["content"], turn["role"]
        if not content.strip():
            if role == "system":
                draft.repairs.append({"kind": "dropped_turn", "field": "messages", "turn": place})
                continue
            if role == "user":
                raise Refused("empty_input", f"turn {place} is empty")
            if role == "assistant" and not turn.get("tool_calls"):
                raise Refused("empty_output", f"turn {place} is empty")
        if turns and _mergeable(turns[-1], turn):
            turns[-1] = _merged(turns[-1], turn)
            draft.repairs.append({"kind": "merged_turns", "field": "messages", "turn": place})
        else:
            turns.append(turn)
    if not any(turn["role"] == "user" for turn in turns):
        raise Refused("empty_input", "no user turn")
    if turns[-1]["role"] != "assistant":
        raise Refused("no_answer", f"the last turn is the {turns[-1]['role']}'s")
    if system.strip() and not any(turn["role"] == "system" for turn in turns):
        turns.insert(0, {"role": "system", "content": system})
    return turns


def _mergeable(first: Message, second: Message) -> bool:
    """Turns of one speaker in a row; an answer after a call stays apart: in one turn it would come before."""
    if first["role"] != second["role"] or first["role"] not in ("user", "assistant"):
        return False
    if first.get("weight") != second.get("weight"):
        return False
    return not first.get("tool_calls") or not second["content"]


def _merged(first: Message, second: Message) -> Message:
    content = "\n".join(text for text in (first["content"], second["content"]) if text)
    merged: Message = {**first, "content": content}
    calls = [*first.get("tool_calls", []), *second.get("tool_calls", [])]
    if calls:
        merged["tool_calls"] = calls
    return merged


# --- values --------------------------------------------------------------------------------------


def _required(record: Mapping[str, Any], column: str) -> Any:
    if column not in record:
        raise Refused("missing_field", f"no column {column!r}")
    return record[column]


def _text(value: Any, where: str) -> str:
    """A scalar as text, null and NaN as "".

    Raises:
        Refused: an object or an array.
    """
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, dict | list):
        raise Refused("wrong_type", f"{where} is {json_type(value)}")
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _filled(record: Mapping[str, Any], column: str, reason: str) -> str:
    text = _text(_required(record, column), f"column {column!r}")
    if not text.strip():
        raise Refused(reason, f"column {column!r} is empty")
    return text


def _short(text: str, length: int = 60) -> str:
    return repr(text if len(text) <= length else text[: length - 1] + "…")


def _json(value: Any, where: str) -> Any:
    """A value that may stand as a JSON string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Refused("broken_json", f"{where} is not valid JSON") from None


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _system(record: Mapping[str, Any], used: set[str]) -> list[Message]:
    text = _text(record.get("system"), "column 'system'")
    used.add("system")
    return [{"role": "system", "content": text}] if text.strip() else []


# --- the formats ---------------------------------------------------------------------------------


def alpaca(record: Mapping[str, Any], columns: Mapping[str, str], config: PrepareConfig) -> Draft:
    """instruction, input, output, and system and history (pairs of earlier turns) where present."""
    used = {"instruction", "input", "output", "history"}
    instruction = _text(_required(record, "instruction"), "column 'instruction'")
    extra = _text(record.get("input"), "column 'input'")
    prompt = "\n".join(text for text in (instruction, extra) if text.strip())
    if not prompt:
        raise Refused("empty_input", "instruction and input are empty")
    output = _filled(record, "output", "empty_output")
    turns = _system(record, used)
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise Refused("wrong_type", "column 'history' is no array of pairs")
    for question, answer in history:
        turns += [_user(_text(question, "column 'history'")), _assistant(_text(answer, "column 'history'"))]
    return Draft([*turns, _user(prompt), _assistant(output)], used)


def prompt_completion(record: Mapping[str, Any], columns: Mapping[str, str], config: PrepareConfig) -> Draft:
    """A prompt and its answer, each as text or as turns (`role`, `content`)."""
    used = set(columns.values())
    turns: list[Message] = [] if "system" in used else _system(record, used)
    draft = Draft(turns, used)
    prompt = _required(record, columns["prompt"])
    completion = _required(record, columns["completion"])
    if isinstance(prompt, list):
        draft.turns += _turns(prompt)
    else:
        draft.turns.append(_user(_filled(record, columns["prompt"], "empty_input")))
    if isinstance(completion, list):
        draft.turns += _turns(completion)
    else:
        draft.turns.append(_assistant(_filled(record, columns["completion"], "empty_output")))
    return draft


def text_label(record: Mapping[str, Any], columns: Mapping[str, str], config: PrepareConfig) -> Draft:
    """A text and its class."""
    text = _filled(record, columns["text"], "empty_input")
    raw = _filled(record, columns["label"], "empty_output")
    label = raw.strip()
    repairs = [{"kind": "trimmed", "field": columns["label"]}] if label != raw else []
    return Draft([_user(text), _assistant(label)], set(columns.values()), label=label, repairs=repairs)


def fields(record: Mapping[str, Any], columns: Mapping[str, str], config: PrepareConfig) -> Draft:
    """Any columns, put into the templates of the user turn and the answer.

    Columns of the answer stay in `meta` too: they are the fields of a structured answer.
    """
    prompt = fill(config.input or "", record, blank_ok=True)
    answer = fill(config.output or "", record, blank_ok=False)
    inputs, outputs = template_columns(config.input or ""), template_columns(config.output or "")
    if inputs and not any(_value(record, column).strip() for column in inputs):
        raise Refused("empty_input", f"no text in {', '.join(map(repr, inputs))}")
    return Draft([_user(prompt), _assistant(answer)], set(inputs) - set(outputs))


def messages(record: Mapping[str, Any], columns: Mapping[str, str], config: PrepareConfig) -> Draft:
    """OpenAI turns: `role` and `content`, tool calls, null contents, contents in parts."""
    return _conversation(record, columns, _turns)


def sharegpt(record: Mapping[str, Any], columns: Mapping[str, str], config: PrepareConfig) -> Draft:
    """Turns as `from` and `value`; calls as turns of their own, the tools as a JSON string."""
    return _conversation(record, columns, _sharegpt_turns)


def _conversation(
    record: Mapping[str, Any], columns: Mapping[str, str], read: Callable[[list[Any]], list[Message]]
) -> Draft:
    used = {columns["turns"], "tools"}
    value = _required(record, columns["turns"])
    if not isinstance(value, list):
        raise Refused("wrong_type", f"column {columns['turns']!r} is {json_type(value)}, not an array")
    if not value:
        raise Refused("empty_input", f"column {columns['turns']!r} has no turns")
    turns = read(value)
    system = _system(record, used)
    if not any(turn["role"] == "system" for turn in turns):
        turns = [*system, *turns]
    return Draft(turns, used, tools=_tools(record.get("tools")))


_DRAFTERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, str], PrepareConfig], Draft]] = {
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "messages": messages,
    "prompt_completion": prompt_completion,
    "text_label": text_label,
    "fields": fields,
}


# --- turns ---------------------------------------------------------------------------------------


def _role(value: Any, place: int) -> str:
    role = ROLES.get(value.strip().casefold()) if isinstance(value, str) else None
    if role is None:
        raise Refused("unknown_role", f"turn {place}: {_short(str(value))}")
    return role


def _turns(value: Sequence[Any]) -> list[Message]:
    turns: list[Message] = []
    ids = _call_ids()
    for place, turn in enumerate(value, 1):
        if not isinstance(turn, dict):
            raise Refused("wrong_type", f"turn {place} is {json_type(turn)}")
        if "role" not in turn:
            raise Refused("missing_field", f"turn {place} has no role")
        role = _role(turn["role"], place)
        calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
        if role == "tool":
            turns.append(_tool_turn(turn.get("content"), place, turns, turn))
            continue
        if role not in ("system", "user", "assistant"):
            raise Refused("unknown_role", f"turn {place}: {_short(str(turn['role']))}")
        if "content" not in turn and not calls:
            raise Refused("missing_field", f"turn {place} has no content")
        message: Message = {"role": role, "content": _content(turn.get("content"), place)}  # type: ignore[typeddict-item]
        if calls:
            if role != "assistant" or not isinstance(calls, list):
                raise Refused("wrong_type", f"turn {place}: tool_calls of the {role}")
            message["tool_calls"] = [_call(call, place, ids) for call in calls]
        weight = turn.get("weight")
        if isinstance(weight, int) and not isinstance(weight, bool):
            message["weight"] = weight
        turns.append(message)
    return turns


def _sharegpt_turns(value: Sequence[Any]) -> list[Message]:
    turns: list[Message] = []
    ids = _call_ids()
    for place, turn in enumerate(value, 1):
        if not isinstance(turn, dict):
            raise Refused("wrong_type", f"turn {place} is {json_type(turn)}")
        for key in ("from", "value"):
            if key not in turn:
                raise Refused("missing_field", f"turn {place} has no {key!r}")
        role = _role(turn["from"], place)
        if role == "function_call":
            calls = _json(turn["value"], f"the function_call of turn {place}")
            calls = calls if isinstance(calls, list) else [calls]
            turns.append({"role": "assistant", "content": "", "tool_calls": [_call(c, place, ids) for c in calls]})
        elif role == "tool":
            turns.append(_tool_turn(turn["value"], place, turns, {}))
        else:
            turns.append({"role": role, "content": _content(turn["value"], place)})  # type: ignore[typeddict-item]
    return turns


def _content(value: Any, place: int) -> str:
    """A turn's content as text; parts of type text are joined."""
    if not isinstance(value, list):
        return _text(value, f"the content of turn {place}")
    parts = []
    for part in value:
        text = (
            part.get("text") if isinstance(part, dict) and part.get("type", "text") in ("text", "input_text") else part
        )
        if not isinstance(text, str):
            raise Refused("wrong_type", f"turn {place} has a part that is no text")
        parts.append(text)
    return "".join(parts)


def _call_ids() -> Iterator[str]:
    number = 0
    while True:
        yield f"call_{number}"
        number += 1


def _call(value: Any, place: int, ids: Iterator[str]) -> dict[str, Any]:
    """A call in the OpenAI form, the arguments as a JSON string; `id` is made up where there is none."""
    new_id = next(ids)
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict):
        raise Refused("wrong_type", f"turn {place}: a tool call is no object")
    name, arguments = function.get("name"), function.get("arguments", {})
    if not isinstance(name, str) or not name:
        raise Refused("missing_field", f"turn {place}: a tool call has no name")
    if not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    given = value.get("id")
    return {
        "id": given if isinstance(given, str) and given else new_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _tool_turn(value: Any, place: int, before: Sequence[Message], turn: Mapping[str, Any]) -> Message:
    """A tool's answer, tied to the call it answers: by its id, else the first call not yet answered."""
    content = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else ""
    if not content:
        textual = isinstance(value, list) and all(
            isinstance(p, str) or (isinstance(p, dict) and "text" in p) for p in value
        )
        is_data = isinstance(value, list) and not textual
        content = json.dumps(value, ensure_ascii=False) if is_data else _content(value, place)
    message: Message = {"role": "tool", "content": content}
    answered = {m["tool_call_id"] for m in before if m["role"] == "tool" and "tool_call_id" in m}
    calls = [call for m in before for call in m.get("tool_calls", [])]
    given = turn.get("tool_call_id")
    open_calls = [c for c in calls if (c["id"] == given if isinstance(given, str) else c["id"] not in answered)]
    call_id = given if isinstance(given, str) and given else open_calls[0]["id"] if open_calls else None
    name = turn.get("name") or (open_calls[0]["function"]["name"] if open_calls else None)
    if isinstance(call_id, str):
        message["tool_call_id"] = call_id
    if isinstance(name, str):
        message["name"] = name
    return message


def _tools(value: Any) -> list[dict[str, Any]]:
    """Tool definitions in the OpenAI form, from a list or a JSON string, wrapped or bare."""
    if isinstance(value, str) and not value.strip():
        return []
    tools = _json(value, "column 'tools'") or []
    tools = tools if isinstance(tools, list) else [tools]
    if not all(isinstance(tool, dict) for tool in tools):
        raise Refused("wrong_type", "column 'tools' is no array of objects")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


# --- templates -----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """A template as pairs (literal text, column or None).

    Raises:
        UserError: a brace that opens or closes nothing.
    """
    pieces: list[tuple[str, str | None]] = []
    literal, end = "", 0
    for match in re.finditer(r"\{\{|\}\}|\{([^{}]+)\}|[{}]", template):
        literal += template[end : match.start()]
        end = match.end()
        if match[0] in ("{{", "}}"):
            literal += match[0][0]
        elif match[1] is not None:
            pieces.append((literal, match[1].strip()))
            literal = ""
        else:
            raise UserError(
                f"A single {match[0]!r} in a template",
                where=f"{template!r}, character {match.start() + 1}",
                next_step="write columns as {column}, and braces themselves as {{ and }}",
            )
    return (*pieces, (literal + template[end:], None))


def template_columns(template: str) -> list[str]:
    """The columns that a template names, in order, each once.

    Raises:
        UserError: the template is malformed.
    """
    return list(dict.fromkeys(column for _, column in _pieces(template) if column is not None))


def fill(template: str, record: Mapping[str, Any], *, blank_ok: bool) -> str:
    """A template with a record's values: `{column}`, `{column.key}` into objects; lists joined by ", ".

    Raises:
        Refused: a column is missing, is an object, or (unless `blank_ok`) has no text.
    """
    filled = []
    for literal, column in _pieces(template):
        filled.append(literal)
        if column is not None:
            value = _value(record, column)
            if not blank_ok and not value.strip():
                raise Refused("empty_output", f"column {column!r} is empty")
            filled.append(value)
    return "".join(filled)


_ABSENT = object()


def _walk(record: Mapping[str, Any], column: str) -> Any:
    """The value of `column`, or of a dotted path into objects; None where there is none."""
    found = _lookup(record, column)
    return None if found is _ABSENT else found


def _lookup(record: Mapping[str, Any], column: str) -> Any:
    if column in record:
        return record[column]
    value: Any = record
    for key in column.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return _ABSENT
        value = value[key]
    return value


def _value(record: Mapping[str, Any], column: str) -> str:
    value = _lookup(record, column)
    if value is _ABSENT:
        raise Refused("missing_field", f"no column {column!r}")
    if isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        return ", ".join(_text(item, f"column {column!r}") for item in value)
    return _text(value, f"column {column!r}")
