"""Turns of a conversation: from the many ways to write them to the OpenAI form, in an order that makes sense.

`read_turns` normalises one turn after the other; `ordered` merges, ties tools' answers to calls, refuses bad orders and
(`error_answer`) failures in place of answers, which teach a model to fail.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneloop.core.foreign import parse_json
from tuneloop.data.sources.parse import json_type
from tuneloop.models.chat import is_headless, split_reasoning
from tuneloop.records.rows import Message

_SPELLINGS = {
    "system": "system developer system_prompt",
    "user": "user human prompter customer client caller visitor guest enduser end_user end-user patient student "
    "question asker",
    "assistant": "assistant gpt chatgpt gpt4 gpt-4 claude gemini llama llm model ai bot chatbot agent "
    "virtual_assistant virtualassistant answer",
    "tool": "tool function observation ipython tool_response tool_result tool_results tool_output function_response "
    "function_result function_output tool-response function-response",
    "function_call": "function_call tool_call tool_calls function-call tool-call functioncall",
}
ROLES = {spelling: role for role, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_PLAIN = {"user": "user", "assistant": "assistant", "system": "system", "human": "user", "gpt": "assistant"}
_OURS = frozenset({"system", "user", "assistant", "tool"})
REASONING = ("reasoning_content", "reasoning", "thinking")  # keys of what the assistant thought before it answered
_PART_KEYS = frozenset({"type", "text", "content_type", "parts"})  # of a content in parts, as APIs write it


class Refused(Exception):
    """A record that a format can't use; never leaves `tuneloop.data.formats`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class TurnKeys:
    """How turns are written in some data."""

    role: str = "role"  # key of the speaker
    content: str = "content"  # key of what is said
    roles: Mapping[str, str] = field(default_factory=dict)  # spellings that only this data has, in lower case
    usual: frozenset[str] = frozenset()  # spellings of roles, as they are written, that the data shows often
    separate_calls: bool = False  # tool calls are turns of their own, so that two in a row are made at once
    greetings: frozenset[str] = frozenset()  # what conversations of this data often open with


PLAIN_KEYS = TurnKeys()


def as_text(value: Any, where: str, *, strings_only: bool = False) -> str:
    """A scalar as text, null and NaN as "". Raises Refused: an object or an array, or a number or boolean with
    `strings_only` (nearly all others are text).
    """
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if strings_only or isinstance(value, dict | list):
        raise Refused("wrong_type", f"{where} is {json_type(value)}, not text")
    try:
        return json.dumps(value) if isinstance(value, bool) else str(value)
    except ValueError:  # Python writes no integer of more than some thousand digits
        raise Refused("wrong_type", f"{where} is a number with too many digits") from None


def json_text(value: Any, where: str) -> str:
    """An object or array as compact JSON, keys in their order; what JSON can't hold (NaN, deep nesting) is refused."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        raise Refused("wrong_type", f"{where} can't be written as JSON") from None


def from_json(value: Any, where: str) -> Any:
    """A value that may be a JSON string; a string that is not JSON is refused."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except (ValueError, RecursionError):
        raise Refused("broken_json", f"{where} is not valid JSON") from None


def short(text: str, length: int = 60) -> str:
    """Text as it is quoted in details."""
    return repr(text if len(text) <= length else text[: length - 1] + "…")


def user(text: str) -> Message:
    """A turn of the user."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """A turn of the assistant."""
    return {"role": "assistant", "content": text}


def read_turns(value: Sequence[Any], keys: TurnKeys, repairs: list[dict[str, Any]]) -> list[Message]:
    """Turns in the OpenAI form, each on its own; an unusual spelling of a role is noted in `repairs`. Tools' answers
    are not yet tied to calls. Raises Refused: a turn that is no object, has no role or content, an unknown speaker,
    a malformed call.
    """
    turns: list[Message] = []
    role_key, content_key = keys.role, keys.content
    plain = {} if keys.roles else _PLAIN
    calls = 0
    for turn in value:
        if isinstance(turn, dict) and len(turn) == 2:
            role, content = turn.get(role_key), turn.get(content_key)
            if type(content) is str and type(role) is str and role in plain and (role in keys.usual or role in _OURS):
                turns.append({"role": plain[role], "content": content})  # type: ignore[typeddict-item]
                continue
        message = _read_turn(turn, len(turns) + 1, keys, calls, repairs)
        calls += len(message.get("tool_calls", ()))
        turns.append(message)
    return turns


def _read_turn(turn: Any, position: int, keys: TurnKeys, calls: int, repairs: list[dict[str, Any]]) -> Message:
    if not isinstance(turn, dict):
        raise Refused("wrong_type", f"turn {position} is {json_type(turn)}, not an object")
    if keys.role not in turn:
        raise Refused("missing_field", f"turn {position} has no {keys.role!r}")
    role = _role(turn[keys.role], position, keys, repairs)
    content = turn.get(keys.content)
    if role == "tool":
        return _tool_turn(turn, content, position, keys)
    if role == "function_call":
        values = from_json(content, f"the call of turn {position}")
        values = values if isinstance(values, list) else [values]
        return {"role": "assistant", "content": "", "tool_calls": _calls(values, position, calls)}
    calls_here = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    if keys.content not in turn and not calls_here:
        raise Refused("missing_field", f"turn {position} has no {keys.content!r}")
    items = content if isinstance(content, list) and content else [content]
    if role == "assistant" and all(isinstance(item, dict) and not _PART_KEYS & item.keys() for item in items):
        text = json_text(content, f"the content of turn {position}")
    else:
        text = content_text(content, position)
    message: Message = {"role": role, "content": text}  # type: ignore[typeddict-item]
    if role == "assistant" and (thought := _thought(turn, content)) is not None:
        message["reasoning_content"] = thought.strip()
    if calls_here:
        if role != "assistant" or not isinstance(calls_here, list):
            raise Refused("wrong_type", f"turn {position}: tool_calls of the {role}")
        message["tool_calls"] = _calls(calls_here, position, calls)
    weight = turn.get("weight")
    if weight is not None:
        if not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise Refused("wrong_type", f"turn {position} has a weight that is no number from 0 to 1")
        message["weight"] = int(weight) if weight in (0, 1) else weight
    name = turn.get("name")
    if isinstance(name, str) and name.strip():
        message["name"] = name
    return message


def _role(value: Any, position: int, keys: TurnKeys, repairs: list[dict[str, Any]]) -> str:
    if not isinstance(value, str):
        raise Refused("unknown_role", f"turn {position}: {short(str(value))}")
    spelling = value.strip().casefold()
    role = keys.roles.get(spelling) or ROLES.get(spelling)
    if role is None:
        raise Refused("unknown_role", f"turn {position}: {short(value)}")
    if value != role and value not in keys.usual:
        detail = f"{short(value)}: {role}"
        repairs.append({"kind": "unknown_role", "field": "messages", "turn": position, "detail": detail})
    return role


def _thought(turn: Mapping[str, Any], content: Any) -> str | None:
    """The reasoning of a turn, from a key of its own or parts of its content; None: there is none."""
    parts = [part.get("thinking") for part in _thinking(content)]
    parts = [part if isinstance(part, str) else _text_of_parts(part or ()) for part in parts]
    texts = [part for part in [*(turn.get(key) for key in REASONING), *parts] if isinstance(part, str)]
    return "\n".join(dict.fromkeys(texts)) if texts else None  # some exports have it under two names


def _thinking(content: Any) -> list[Mapping[str, Any]]:
    """The parts of a content that are reasoning, as Anthropic's and Mistral's APIs have them."""
    parts = content if isinstance(content, list) else ()
    return [part for part in parts if isinstance(part, dict) and part.get("type") == "thinking"]


def _with_thought(turn: Message, position: int) -> Message:
    """A turn whose text begins with its reasoning, as `<think>` has it, with both apart."""
    text = turn["content"]
    thought, answer = split_reasoning(text, opened=is_headless(text))
    if answer is None:
        raise Refused("cut_reasoning", f"turn {position}: its reasoning is never closed, so it has no answer")
    if thought is None:
        return turn
    earlier = turn.get("reasoning_content") or ""
    both = "\n".join(filter(None, (earlier, thought))) if thought != earlier else thought
    return {**turn, "content": answer, "reasoning_content": both}


def content_text(value: Any, position: int) -> str:
    """A turn's content as text; parts of type text are joined, and those of reasoning left out."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return as_text(value, f"the content of turn {position}", strings_only=True)
    if (text := _text_of_parts(value)) is None:
        raise Refused("wrong_type", f"turn {position} has a part that is no text")
    return text


def _text_of_parts(parts: Iterable[Any]) -> str | None:
    """A content in parts as one text; None if some part is no text."""
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if kind == "thinking":
            continue
        text = part.get("text") if kind in ("text", "input_text", "output_text") else part
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)


def with_whole_contents(turns: list[Any], content_key: str) -> list[Any]:
    """Turns with a text in place of each content in parts of text; themselves where none does."""
    if not any(type(turn) is dict and type(turn.get(content_key)) is list for turn in turns):
        return turns
    whole = []
    for turn in turns:
        parts = turn.get(content_key) if type(turn) is dict else None
        text = _text_of_parts(parts) if type(parts) is list and parts else None
        thought = _thought(turn, parts) if text is not None and _thinking(parts) else None
        further = {} if thought is None else {REASONING[0]: thought}
        whole.append(turn if text is None else {**turn, content_key: text, **further})
    return whole


def _calls(values: Iterable[Any], position: int, before: int) -> list[dict[str, Any]]:
    return [_call(value, position, f"call_{number}") for number, value in enumerate(values, before)]


def _call(value: Any, position: int, new_id: str) -> dict[str, Any]:
    """A call in the OpenAI form, the arguments as a JSON string; `new_id` is used where it has no id."""
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict):
        raise Refused("wrong_type", f"turn {position}: a tool call is no object")
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str):
        raise Refused("missing_field", f"turn {position}: a tool call has no name")
    call_id = value.get("id")
    return {
        "id": call_id if isinstance(call_id, str) and call_id else new_id,
        "type": "function",
        "function": {"name": name, "arguments": _arguments(arguments, position)},
    }


def _arguments(value: Any, position: int) -> str:
    """Arguments as the JSON text of an object; a string stays as it is written. None at all are `{}`."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "{}"
    try:
        parsed = parse_json(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise Refused("bad_arguments", f"turn {position}: {short(value)} is not valid JSON") from None
    if not isinstance(parsed, dict):
        raise Refused("bad_arguments", f"turn {position}: the arguments are {json_type(parsed)}, not an object")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tool_turn(turn: Mapping[str, Any], value: Any, position: int, keys: TurnKeys) -> Message:
    if keys.content not in turn:
        raise Refused("missing_field", f"turn {position} has no {keys.content!r}")
    textual = isinstance(value, list) and all(
        isinstance(p, str) or (isinstance(p, dict) and isinstance(p.get("text"), str)) for p in value
    )
    data = isinstance(value, dict | bool | int | float) or (isinstance(value, list) and not textual)
    text = json.dumps(value, ensure_ascii=False) if data else content_text(value, position)
    names = {key: turn[key] for key in ("tool_call_id", "name") if isinstance(turn.get(key), str) and turn[key]}
    return {"role": "tool", "content": text, **names}  # type: ignore[typeddict-item]


def read_tools(value: Any, where: str = "column 'tools'") -> list[dict[str, Any]]:
    """Tool definitions in the OpenAI form, from a list or a JSON string, wrapped or bare."""
    if value is None or (isinstance(value, str) and not value.strip()) or value != value:
        return []
    tools = from_json(value, where) or []
    tools = tools if isinstance(tools, list) else [tools]
    if not all(isinstance(tool, dict) for tool in tools):
        raise Refused("wrong_type", f"{where} is no array of objects")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def ordered(
    turns: Sequence[Message], keys: TurnKeys, repairs: list[dict[str, Any]], *, system: str = "", errors: bool = True
) -> list[Message]:
    """Turns as a conversation that can be learned from; what is changed is added to `repairs`.

    Turns of one speaker in a row are merged; empty system turns are dropped. A system turn may stand anywhere (Llama
    3's template renders it in its place). The assistant may speak first, once, as the greeting of many chat windows;
    but it calls no tool before a user turn.

    Args:
        system: text of the system turn for conversations without one, or "".
        errors: refuse answers that are error messages.

    Raises:
        Refused: reasoning that is never closed, empty turns, no user turn, no answer at the end, calls without answers
            and the reverse, nothing to train on.
    """
    builder = _ConversationBuilder(keys, repairs)
    for position, turn in enumerate(turns, 1):
        if turn["role"] == "assistant" and ("think>" in turn["content"] or "THINK]" in turn["content"]):
            turn = _with_thought(turn, position)
        content, role = turn["content"], turn["role"]
        if role == "tool":
            builder.tool(turn, position)
            continue
        if not content or content.isspace():
            if role == "system":
                repairs.append({"kind": "dropped_turn", "field": "messages", "turn": position})
                continue
            if role == "user":
                raise Refused("empty_input", f"turn {position} is empty")
            if "tool_calls" not in turn:
                raise Refused("empty_output", f"turn {position} is empty")
        elif errors and role == "assistant" and (kind := error_answer(content, builder.question)):
            raise Refused("error_output", f"turn {position} is {kind}: {short(content)}")
        if role == builder.role:
            builder.again(turn, position)
        else:
            builder.next(turn, position)
    return builder.end(system)


@dataclass(slots=True)
class _ConversationBuilder:
    """The conversation so far: what `ordered` remembers from turn to turn."""

    keys: TurnKeys
    repairs: list[dict[str, Any]]
    merged: list[Message] = field(default_factory=list)
    open: list[dict[str, Any]] = field(default_factory=list)  # calls without an answer yet
    role: str = ""
    question: str = ""
    greeting: str | None = None
    calls_merged: bool = False  # the last turn was made of several turns with calls
    nameless: int = 0  # the first turn that calls a tool without a name
    has_system: bool = False
    weights: bool = False  # some turn has one

    def next(self, turn: Message, position: int) -> None:
        role = turn["role"]
        if self.open and role in ("user", "assistant"):
            raise self._unanswered(position)
        if role == "user":
            self.question = turn["content"]
        elif role == "assistant":
            if not self.question:
                self.greeting = turn["content"]
            self._learn(turn, position)
        else:
            self.has_system = True
        self.role = role
        self.merged.append(turn)

    def again(self, turn: Message, position: int) -> None:
        """A turn of the same speaker as the last: one with it, unless a call's answer is missing between them."""
        first = self.merged[-1]
        if self.open and turn["content"]:
            raise self._unanswered(position)
        if first.get("weight") != turn.get("weight"):  # one is trained on, the other not
            self.next(turn, position)
            return
        if self.open and not self.keys.separate_calls:
            self.calls_merged = True
        merged: Message = {**first, "content": "\n".join(filter(None, (first["content"], turn["content"])))}
        if first.get("name") != turn.get("name"):
            merged.pop("name", None)
        if thoughts := [message["reasoning_content"] for message in (first, turn) if message.get("reasoning_content")]:
            merged["reasoning_content"] = "\n".join(thoughts)
        if "tool_calls" in turn:
            merged["tool_calls"] = [*first.get("tool_calls", ()), *turn["tool_calls"]]
        if not (self.open and self.keys.separate_calls):
            self.repairs.append({"kind": "merged_turns", "field": "messages", "turn": position})
        if self.role == "user":
            self.question = merged["content"]
        elif self.role == "assistant":
            self._learn(turn, position)
        self.merged[-1] = merged

    def _learn(self, turn: Message, position: int) -> None:
        if len(turn) == 2:
            return
        if "tool_calls" in turn:
            if not self.question:
                raise Refused("bad_turn_order", f"turn {position} calls a tool before any user turn")
            self.open = [*self.open, *turn["tool_calls"]]
            if not self.nameless and not all(call["function"]["name"].strip() for call in turn["tool_calls"]):
                self.nameless = position
        self.weights = self.weights or "weight" in turn

    def tool(self, turn: Message, position: int) -> None:
        """A tool's answer, tied to the call it answers: by its id, else the first call not yet answered."""
        if not self.open:
            problem = "a second answer to a call" if self.role == "tool" else "a tool's answer without a call before it"
            raise Refused("bad_turn_order", f"turn {position} is {problem}")
        call_id, name = turn.get("tool_call_id"), turn.get("name")
        if call_id is not None:
            call = next((call for call in self.open if call["id"] == call_id), None)
        else:
            call = next((call for call in self.open if call["function"]["name"] == name), self.open[0])
        if call is None:
            raise Refused(
                "bad_turn_order", f"turn {position} answers the call {short(str(call_id))}, which is not open"
            )
        self.open = [other for other in self.open if other is not call]
        turn["tool_call_id"] = call["id"]
        turn.setdefault("name", call["function"]["name"])
        self.calls_merged = self.calls_merged and bool(self.open)
        self.role = "tool"
        self.merged.append(turn)

    def end(self, system: str) -> list[Message]:
        turns = self.merged
        if not self.question:
            raise Refused("empty_input", "no user turn")
        if self.role != "assistant":
            raise Refused("no_answer", f"the last turn is the {self.role}'s")
        if self.calls_merged:
            raise self._unanswered(len(turns))
        if self.weights and all(turn.get("weight") == 0 for turn in turns if turn["role"] == "assistant"):
            raise Refused("no_supervised_token", "every turn of the assistant has weight 0")
        if self.nameless:  # reported last: an empty answer, or an error in its place, is more to the point
            raise Refused("missing_field", f"turn {self.nameless}: a tool call has no name")
        greetings = self.keys.greetings
        if self.greeting is not None and self.greeting not in greetings and turns[-1]["content"] in greetings:
            raise Refused("bad_turn_order", "the conversation ends with the greeting that others begin with")
        if system and not self.has_system:
            turns.insert(0, {"role": "system", "content": system})
        return turns

    def _unanswered(self, position: int) -> Refused:
        names = ", ".join(call["function"]["name"] for call in self.open)
        return Refused("unanswered_call", f"turn {position} continues before {names} has answered")


_PHRASE = r"""
    internal\ (?:server|service)?\ ?error | bad\ gateway | service\ (?:is\ )?(?:temporarily\ )?unavailable
  | gateway\ time-?\ ?out | too\ many\ requests | (?:api\ )?rate[ _]limit(?:ed)?\ (?:reached|exceeded|hit|error)
  | rate[ _]limit[ _](?:reached|exceeded|error) | quota\ exceeded | insufficient[ _]quota
  | (?:the\ )?(?:upstream|server|proxy|api|model|backend|gateway|network|read|connect|connection|socket|operation
      |llm)?\ ?(?:request|response|call|connection)?\ ?(?:has\ )?(?:timed\ ?out|time-?out(?:\ error)?)
  | upstream\ (?:connect|request|server|service)?\ ?(?:error|failure|failed|unavailable)
  | upstream\ connect\ error\ or\ disconnect/reset\ before\ headers.{0,160}
  | no\ healthy\ upstream | connection\ (?:was\ )?(?:reset|refused|aborted|closed|error)(?:\ by\ peer)?
  | broken\ pipe | socket\ hang\ up | context\ deadline\ exceeded
  | e(?:conn(?:reset|refused|aborted)|timedout|pipe)(?:\ \S{1,80})?
  | cuda\ (?:error|out\ of\ memory) | out\ of\ memory | segmentation\ fault | core\ dumped
  | (?:(?:the|that)\ )?(?:server|model|service|engine)\ is\ (?:currently\ )?
      (?:overloaded|unavailable|down|not\ available)
  | (?:an?\ )?(?:unexpected|internal|unknown|server|network|unhandled)\ (?:server\ )?(?:error|exception)
      (?:\ (?:has\ )?occurr?ed)?
  | an?\ (?:error|exception)\ (?:has\ )?occurr?ed
  | (?:oops\W{1,3})?something\ went\ wrong | failed\ to\ fetch | max(?:imum)?\ retries\ exceeded
  | request\ (?:failed|aborted|was\ aborted)
"""
_TAIL = r"""
    (?: \s*[.!…]{0,3} (?:\s*\(?\s*(?:please\ )?(?:try|retry|wait|contact|reduce|slow)\b.{0,160})?
      | \s*[:(\[;,-]\s?.{0,80}
      | \ (?:for|in|while|during|on|with|from|after)\ .{0,120}\d.{0,120}
      | \ (?:while|during)\ .{0,80} )
"""
_LEAD = (
    r"(?:\W{0,3}(?:error|fatal|failure|exception|http(?:/[\d.]{1,3})?|status(?:[ _]code)?|code)\b[\s:=#\]-]{0,4}){0,3}"
)
_STATUS_NAME = r"bad request|unauthori[sz]ed|forbidden|not found|conflict|gone|method not allowed|payload too large"

_HTTP = re.compile(
    rf"""{_LEAD} (?:[45]\d\d\b[\s:,-]{{0,4}})? (?:{_PHRASE}) {_TAIL}
       | {_LEAD} [45]\d\d\b [\s:,-]{{1,4}}
         (?:client\ error|server\ error|{_STATUS_NAME.replace(" ", chr(92) + " ")}) {_TAIL}
       | (?:http(?:/[\d.]{{1,3}})?\ ?(?:error|status)?|error(?:\ code)?|status(?:[ _]code)?)[\s:=]{{1,3}}[45]\d\d\b
         (?:\s?[-:({{].{{0,1000}}|[.!]?)""",
    re.IGNORECASE | re.VERBOSE,
)
_EXCEPTION = re.compile(
    r"(?:uncaught |unhandled |fatal |error: |exception: |exception in thread \S{1,60} )?"
    r"(?:[A-Za-z_]\w{0,60}\.){0,8}[A-Z]\w{0,60}(?:Error|Exception|Timeout|Interrupt): [^\n]{1,400}"
)
_FRAMES = re.compile(r"(?:\s*at |\s*File \"|\s*\.\.\. \d+ more|Caused by: |\s{2,}\S|goroutine \d|[\w./-]+:\d+\b)")
_LOG_LINE = re.compile(r"(?:\[(?:ERROR|FATAL|CRITICAL|error)\]|(?:ERROR|FATAL|CRITICAL)\b ?[:|-]) ?[^\n]{1,300}")
_TRACEBACK = re.compile(r"(?:error:? ?|```\w{0,10}\n)?Traceback \(most recent call last\)(?::|\s*$)", re.IGNORECASE)
_GOES_ON = re.compile(
    r"Traceback|During handling|The above exception|\s|[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b"
)
_PANIC = re.compile(r"panic: [^\n]{1,300}\n|thread '[^'\n]{1,60}' panicked at |Exception in thread \"")
_ERROR_PAGE = re.compile(
    r"<(?:!doctype html|html|head)[^>]{0,100}>.{0,300}?<title>[^<]{0,60}?(?:429|50[0-4]|52\d|bad gateway|unavailable|"
    r"server error|time-?out)",
    re.IGNORECASE | re.DOTALL,
)
_ERROR_OBJECT = re.compile(r"\[?\{\s*['\"]errors?['\"]\s*:\s*(?!null\b|None\b|false\b|False\b|\"\"|''|\[\]|\{\}|0\b)")
_NO_VALUE = frozenset({"null", "NULL", "undefined", "NaN", "[object Object]", "(null)", "<null>"})
_ENVELOPE_KEYS = (
    "error errors message code status statuscode status_code type detail details reason request_id requestid "
    "timestamp path param success ok errormessage errortype error_description error_code errorcode exception "
    "stacktrace stack trace name title instance object event_id traceid trace_id documentation_url"
)
_ENVELOPE = frozenset(_ENVELOPE_KEYS.split())
_NAMES_ERROR = ("error", "errors", "errormessage", "exception", "stacktrace", "error_description", "error_code")

# What all of them begin with, in lower case: nearly all answers are done with after this one match.
_MAYBE = re.compile(
    r"\s*(?:[\[{<(`#\"']|\W{0,3}(?:an? |the |that )?(?:internal|inter?rupted|bad|service|gateway|too many|(?:api )?rate"
    r"|quota|insufficient|upstream|server|proxy|api |model|backend|network|read|connect|socket|operation|llm|request"
    r"|response|call|time|no healthy|broken|context|econn|etimed|epipe|cuda|out of|segmentation|core|engine|unexpected"
    r"|unknown|unhandled|uncaught|error|exception|oops|something|failed|max|http|status|code|fatal|critical|failure"
    r"|traceback|panic|thread|null|undefined|nan\b|[45]\d\d\b|[a-z_][\w.]*+: ))"
)

_ABOUT_FAILURES = re.compile(
    r"\b(?:https?(?!:)|status codes?|error (?:codes?|messages?)|errors? mean|[45]\d\d)\b", re.IGNORECASE
)
_ABOUT_CODE = re.compile(
    r"\b(?:code|error|errors|exception|exceptions|traceback|stack ?trace|raises?|throws?|print(?:s|ed)?|"
    r"html|json|null|undefined|nan|javascript|python|java|sql|console|log|logs|program|script|function)\b",
    re.IGNORECASE,
)


def error_answer(text: str, question: str = "") -> str | None:
    """What kind of failure an answer is, or None when it is an answer.

    The text must be only the failure: a stack trace, an HTTP status line, an exception with its message, an error
    object in JSON, a server's error page, or a bare `null`. Where the question is about such things, the answer may be
    right.
    """
    if _MAYBE.match(text[:120].lower()) is None:
        return None
    text = text.strip()
    kind = _kind(text)
    if kind is None:
        return None
    about = _ABOUT_FAILURES if kind in ("an HTTP error", "an error object") else _ABOUT_CODE
    return None if about.search(question) else kind


def _kind(text: str) -> str | None:
    if text in _NO_VALUE:
        return "no value"
    if text[0] in "{[" and _is_error_object(text):
        return "an error object"
    if text[0] == "<":
        return "an error page" if len(text) < 20_000 and _ERROR_PAGE.match(text) else None
    if _TRACEBACK.match(text):
        return "a stack trace" if all(map(_GOES_ON.match, text.split("\n\n")[1:])) else None
    if len(text) <= 1500 and "\n" not in text:
        if _HTTP.fullmatch(text):
            return "an HTTP error"
        if _EXCEPTION.fullmatch(text) or _LOG_LINE.fullmatch(text):
            return "an exception"
        return None
    first, _, rest = text.partition("\n")
    frames = [line for line in rest.split("\n") if line.strip()]
    if _EXCEPTION.fullmatch(first) or _PANIC.match(text):
        return "a stack trace" if frames and all(map(_FRAMES.match, frames)) else None
    return None


def _is_error_object(text: str) -> bool:
    """JSON that has only an error in it; cut-off JSON and Python's way of writing it count too."""
    if len(text) > 20_000:
        return False
    try:
        value = parse_json(text)
    except (ValueError, RecursionError):
        return len(text) < 3000 and _ERROR_OBJECT.match(text) is not None
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    if not isinstance(value, dict) or not value:
        return False
    low = {key.casefold(): item for key, item in value.items()}
    if not low.keys() <= _ENVELOPE:
        return False
    codes = (low.get(name) for name in ("status", "statuscode", "status_code", "code"))
    if any(low.get(name) for name in _NAMES_ERROR) or any(isinstance(c, int) and 400 <= c < 600 for c in codes):
        return True
    message = low.get("message") or low.get("detail")
    status = re.compile(_STATUS_NAME, re.IGNORECASE)
    return isinstance(message, str) and bool(_HTTP.fullmatch(message) or status.fullmatch(message))
