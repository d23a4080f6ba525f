"""Calls of tools as the families of models write them: one table, by which answers are read and calls are written.

A chat template writes the calls of its family on its own. The table writes them where a template knows no tools, and
reads them from every model's answers: control tokens may be gone from these, as tokenizers leave them out of texts.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

from tuneloop.core.foreign import DECODER, parse_json

Tools = Mapping[str, Mapping[str, Any]]  # name of a tool -> its function's schema
Call = tuple[str, Any]  # name and arguments, which are an object, or text that is no JSON
NOT_A_CALL = (ValueError, SyntaxError, TypeError, AttributeError, RecursionError, MemoryError)
CODE = "code_interpreter"  # Llama's tool whose one argument, `code`, is written as it is


# --- what is inside a block of calls ------------------------------------------------------------------


def _values(text: str) -> Iterator[Any]:
    """The JSON values of a text, one after the other, with a comma, a semicolon or white space between them."""
    cursor = 0
    while cursor < len(text):
        value, cursor = DECODER.raw_decode(text, cursor)
        yield from value if isinstance(value, list) else [value]
        between = re.compile(r"[\s;,]*").match(text, cursor)
        cursor = between.end() if between else cursor


def _read_json(text: str, tools: Tools) -> list[Call]:
    calls = []
    for value in _values(text.strip()):
        inner = value.get("function")
        value = inner if isinstance(inner, dict) else value
        calls.append((value["name"], value.get("parameters", value.get("arguments", {}))))
    return calls


def _read_python(text: str, tools: Tools) -> list[Call]:
    """`f(a=1)`, a list of such, or Llama's `f.call(query="x")`."""
    body = ast.parse(text.strip(), mode="eval").body
    calls = []
    for node in body.elts if isinstance(body, ast.List | ast.Tuple) else [body]:
        if not isinstance(node, ast.Call) or node.args:
            raise ValueError("no call with named arguments")
        arguments: dict[str, Any] = {}
        for keyword in node.keywords:
            value = ast.literal_eval(keyword.value)
            arguments |= value if keyword.arg is None else {keyword.arg: value}
        calls.append((ast.unparse(node.func).removesuffix(".call"), arguments))
    return calls


def _read_python_tag(text: str, tools: Tools) -> list[Call]:
    """What follows Llama's python tag: JSON, a call of a built-in tool, or code."""
    for read in (_read_json, _read_python):
        try:
            calls = read(text, tools)
        except (*NOT_A_CALL, KeyError):
            continue
        if all(name in tools for name, _ in calls):
            return calls
    return [(CODE, {"code": text})]


def _read_tags(text: str, tools: Tools) -> list[Call]:
    """`<function=NAME>` with a `<parameter=KEY>` each, whose values are text, or JSON as the tool's schema says."""
    calls: list[Call] = []
    for name, body in re.findall(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", text, re.DOTALL):
        pairs = re.findall(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", body, re.DOTALL)
        if not pairs and body.strip():
            calls.append((name, parse_json(body)))
            continue
        types = (tools.get(name, {}).get("parameters") or {}).get("properties") or {}
        calls.append((name, {key: _typed(value, types.get(key)) for key, value in pairs}))
    return calls


def _typed(value: str, schema: Any) -> Any:
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        return value
    try:
        return parse_json(value)
    except ValueError:
        return value


def _read_names(text: str, tools: Tools) -> list[Call]:
    """`NAME{...}`, Mistral's since its eleventh tokenizer, and DeepSeek's, whose JSON is fenced."""
    head = re.compile(
        r"(?:function)?[\s,]*(?:<｜tool▁sep｜>)?([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?:```json)?\s*"
    )
    calls, cursor = [], 0
    while text[cursor:].strip():
        if (match := head.match(text, cursor)) is None:
            raise ValueError("no name")
        arguments, cursor = DECODER.raw_decode(text, match.end())
        cursor = re.compile(r"\s*(?:```)?\s*").match(text, cursor).end()  # type: ignore[union-attr]
        calls.append((match[1], arguments))
    return calls


def _read_channel(text: str, tools: Tools) -> list[Call]:
    """A name, what gpt-oss says of the format, and behind `<|message|>` the arguments."""
    name, _, arguments = text.partition("<|message|>")
    return [(re.split(r"[\s<]", name, maxsplit=1)[0], DECODER.raw_decode(arguments.strip())[0])]


# --- one call in a text -------------------------------------------------------------------------------


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write_json(name: str, arguments: Any, key: str = "arguments") -> str:
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{key}": {_json(arguments)}}}'


def _write_llama(name: str, arguments: Any) -> str:
    if name == CODE and isinstance(arguments, dict):
        return str(arguments.get("code", ""))
    return _write_json(name, arguments, "parameters")


def _write_python(name: str, arguments: Any) -> str:
    values = arguments if isinstance(arguments, dict) else {}
    if not all(key.isidentifier() and not iskeyword(key) for key in values):  # as `from`
        return f"{name}(**{values!r})"
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})"


def _write_tags(name: str, arguments: Any) -> str:
    pairs = arguments.items() if isinstance(arguments, dict) else ()
    inside = "".join(f"<parameter={key}>\n{_json(value)}\n</parameter>\n" for key, value in pairs)
    return f"<function={name}>\n{inside}</function>"


@dataclass(frozen=True)
class CallFormat:
    """How calls are written; `opening` and `closing` are around all calls of an answer, or around each."""

    name: str  # of the families that write so
    opening: str
    closing: str
    read: Callable[[str, Tools], list[Call]]
    write: Callable[[str, Any], str]
    between: str = ""  # two calls in one block; empty: each call has a block of its own
    signs: tuple[str, ...] = ()  # of a chat template without tools whose model is to write calls so


CALL_FORMATS = (
    CallFormat("qwen3-coder, nemotron", "<tool_call>\n<function=", "\n</tool_call>", _read_tags, _write_tags),
    CallFormat("hermes, qwen, smollm", "<tool_call>", "</tool_call>", _read_json, _write_json),
    CallFormat("llama custom", "<function=", "</function>", _read_tags, _write_tags),
    CallFormat("mistral", "[TOOL_CALLS]", "", _read_json, _write_json, ", "),
    CallFormat("mistral 11+", "[TOOL_CALLS]", "", _read_names, lambda name, a: f"{name}[ARGS]{_json(a)}"),
    CallFormat("granite, phi-4", "<|tool_call|>", "<|/tool_call|>", _read_json, _write_json, ", "),
    CallFormat("llama 3.1", "<|python_tag|>", "", _read_python_tag, _write_llama),
    CallFormat("deepseek", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", _read_names,
               lambda name, a: f"function<｜tool▁sep｜>{name}\n```json\n{_json(a)}\n```"),
    CallFormat("gpt-oss", "<|channel|>commentary to=functions.", "<|call|>", _read_channel,
               lambda name, a: f"{name} <|constrain|>json<|message|>{_json(a)}"),
    CallFormat("gpt-oss, as its template writes them", "to=functions.", "<|call|>", _read_channel,
               lambda name, a: f"{name}<|channel|>commentary json<|message|>{_json(a)}"),
    CallFormat("gemma tool_code", "```tool_code\n", "\n```", _read_python, _write_python),
    CallFormat("gemma 2 and 3, llama pythonic", "[", "]", _read_python, _write_python, ", ", ("<start_of_turn>",)),
    CallFormat("mistral, its control tokens left out", "", "", _read_names, lambda name, a: f"{name}{_json(a)}"),
    CallFormat("json", "", "", _read_json, _write_json, "\n"),
)  # fmt: skip


def read_calls(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[Call]]:
    """What an answer says before its calls, and these; no calls where it is anything else, or calls what is no tool."""
    known = {str(tool["function"]["name"]): tool["function"] for tool in tools}
    for form in CALL_FORMATS:
        # A block may come behind a text; calls without a control token are the whole answer.
        start = text.find(form.opening) if len(form.opening) > 1 else len(text) - len(text.lstrip())
        if start < 0 or not text.startswith(form.opening, start):
            continue
        try:
            calls = [call for inside in _blocks(form, text[start:].strip()) for call in form.read(inside, known)]
        except (*NOT_A_CALL, KeyError):
            continue
        if calls and all(isinstance(name, str) and name in known for name, _ in calls):
            return text[:start].strip(), calls
    return text, []


def _blocks(form: CallFormat, text: str) -> Iterator[str]:
    if form.read is _read_tags or len(form.opening) < 2:
        yield text
        return
    for block in text.split(form.opening)[1:]:
        yield block.partition(form.closing)[0] if form.closing else block


def write_calls(calls: Sequence[Call], form: CallFormat) -> str:
    """Calls as a format has them."""
    written = [form.write(name, arguments) for name, arguments in calls]
    if form.between:
        inside = form.between.join(written)
        in_list = form.read is _read_json and form.opening
        return f"{form.opening}{'[' if in_list else ''}{inside}{']' if in_list else ''}{form.closing}"
    if form.read is _read_tags:
        return "\n".join(f"<tool_call>\n{call_text}\n</tool_call>" for call_text in written)
    return "\n".join(f"{form.opening}{call_text}{form.closing}" for call_text in written)


def format_for(source: str) -> CallFormat:
    """How calls are written for a chat template that knows no tools."""
    return next((form for form in CALL_FORMATS if any(sign in source for sign in form.signs)), CALL_FORMATS[-1])


def may_be_calls(text: str, names: Sequence[str], *, first: bool) -> int:
    """From which character on a text that is being written may become calls; its length: nowhere.

    Args:
        text: what was not given out yet.
        first: whether nothing of the answer was given out, so that it may be calls without a control token.
    """
    start = len(text) - len(text.lstrip())
    begins = [beginning for name in names for beginning in (f"{name}{{", f"[{name}(")] if first else []
    begins += ["{", "[{"] if first else []
    if any(beginning.startswith(text[start:]) or text.startswith(beginning, start) for beginning in begins):
        return start
    openings = {form.opening.rstrip() for form in CALL_FORMATS if len(form.opening) > 1}
    places = [position for opening in openings if (position := text.find(opening)) >= 0]
    longest = max(map(len, openings))
    ends = range(max(len(text) - longest, 0), len(text))
    places += [index for index in ends if any(opening.startswith(text[index:]) for opening in openings)]
    return min(places, default=len(text))
