"""The one place where messages become token ids and a loss mask, and where answers become text again.

A rendered row is what a server gives to the model: the chat template's text, tokenised as one string. Two departures
make it safe. Control tokens in a user's text are tokenised as the plain characters they are. And each assistant turn
starts a new piece, as it does when the model answers, so that the prompt's tokens are a prefix of the row's.

Limit: where a template joins text to the turn before without a control token between (none of the common ones does), a
server that tokenises the whole conversation can merge characters across that border.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object, write_json, write_text
from tuneloop.core.foreign import LIMITS, fast_json, file_bytes, parse_json
from tuneloop.models.chat.chat_jinja import MOST_SOURCE, Bounded
from tuneloop.models.chat.tool_calls import format_for, write_calls
from tuneloop.records.rows import Message

Turn = dict[str, Any]  # of a conversation as a template sees it, or the schema of a tool
# The Llama 3 conversation as Meta's own formatter writes it: no trimming and no injected system text, tools listed in
# the system turn as the model card shows, tool calls as ASCII JSON, tool results as `ipython`. It is saved with every
# Llama 3 adapter and model, so that a server renders what was trained, without `cut`, where the formatter cuts tokens.
LLAMA3_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + ('ipython' if message['role'] == 'tool' else message['role']) + '<|end_header_id|>\\n\\n' }}
{%- set calls = message.get('tool_calls') or [] %}
{%- if calls and calls[0]['function']['name'] == 'code_interpreter' %}{{- '<|python_tag|>' }}{%- endif %}
{{- message['content'] if message['content'] is string else '' }}
{%- for call in calls %}
{%- set f = call['function'] %}
{{- cut }}
{%- if f['name'] == 'code_interpreter' and f['arguments'] is mapping %}
{{- f['arguments']['code'] }}
{%- elif f['name'] in ['brave_search', 'wolfram_alpha', 'photogen'] and f['arguments'] is mapping %}
{{- f['name'] + '.call(query="' + f['arguments']['query'] + '")' }}
{%- else %}
{{- '{"type": "function", "name": ' + (f['name'] | tojson(ensure_ascii=true)) + ', "parameters": ' + \
(f['arguments'] if f['arguments'] is string else (f['arguments'] | tojson(ensure_ascii=true))) + '}' }}
{%- endif %}
{%- endfor %}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

# For models that come without a template (base models): each turn is "role:", its text and the end-of-text token.
PLAIN_TEMPLATE = """\
{%- for message in messages %}
{{- message['role'] + ':\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant:\\n' }}{%- endif %}
"""


# Private characters with a meaning while a template is at work: "\ue000N\ue001" is the N-th control string that a user
# typed, CUT where the text is tokenised apart, HOLE the content of a turn, THOUGHT and ANSWER the beginning and the end
# of a turn's reasoning, which the template does not write itself. Users' own are guarded too.
CUT, HOLE, THOUGHT, ANSWER = "\ue002", "\ue003", "\ue004", "\ue005"
_MARK = "\ue000[0-9]+\ue001"
_MISSING_CONTENT = re.compile(r"content('\]|\"\])? is (not )?none")  # of turns that only call tools
# What a template writes around reasoning, and what ends it; the first pair where it writes none.
_THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|channel|>analysis<|message|>", "<|end|>"))
# How a template treats reasoning is a part of its source, so that every program that renders it does the same: whether
# models think, by the names that Qwen and SmolLM, and Granite and DeepSeek, have for it; whether earlier turns keep
# their reasoning, by Qwen's.
_SETS = re.compile(r"(\{%- set (enable_thinking|thinking|preserve_thinking) = (true|false) %\}\n)*")
LONG = 50_000  # characters of a text that are tokenised in a way that lets other threads run
_ENCODING = threading.Lock()  # whether control tokens count is a state of the tokenizer, which several threads use


def _new_lock() -> None:
    global _ENCODING
    _ENCODING = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)  # another thread may have held it


@dataclass(frozen=True)
class Rendered:
    """A conversation as token ids; `mask` is the weight of a token in the loss, mostly 0 or 1."""

    ids: list[int]
    mask: list[float]


class TemplateError(ValueError):
    """The template can't render this conversation; the message says why."""


def _any_of(names: set[str]) -> str:
    """A pattern for any of the names, the longest that fits, as a tree of what they share at their beginning: one after
    the other, Llama 3's 256 are each tried at every `<` of a text, which takes four seconds for a megabyte of them."""
    shared = os.path.commonprefix(list(names))  # noqa: RUF071  # of characters, as is wanted here
    rests: dict[str, set[str]] = {}
    for name in names:
        rests.setdefault(name[len(shared) : len(shared) + 1], set()).add(name[len(shared) :])
    ends = rests.pop("", None)
    inner = "|".join(_any_of(rests[first]) for first in sorted(rests))
    return re.escape(shared) + (f"(?:{inner}){'?' if ends else ''}" if inner else "")


@dataclass(frozen=True)
class Template:
    """A tokenizer with its chat template."""

    tokenizer: Any  # a `tokenizers.Tokenizer`
    source: str  # the Jinja chat template
    variables: dict[str, Any]  # what the template sees (`bos_token`, `eos_token` ...)
    end_ids: tuple[int, ...]  # tokens that end an answer
    pad_id: int  # token that fills short rows; never seen by the loss
    # A regular expression: the rendered text is cut after each match and the parts are tokenised apart, as Meta's
    # formatter does at the end of a Llama 3 header. Empty: never.
    split_after: str
    settings: dict[str, Any]  # `tokenizer_config.json`, kept for saving

    def __getstate__(self) -> dict[str, Any]:
        """For another process: without what is made there again, of which a compiled template can't be sent."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def packed(self) -> bytes:
        """A line of JSON, for another process; see `unpacked_template`. Kept: Llama 3's takes a third of a second."""
        return json.dumps({**self.__getstate__(), "tokenizer": self.tokenizer.to_str()}).encode()

    @cached_property
    def digest(self) -> str:
        """A hash of all that it is."""
        return sha256(self.packed).hexdigest()

    @cached_property
    def _settings_of_reasoning(self) -> str:
        return sets_of(self.source)

    @property
    def thinks(self) -> bool:
        """Whether a turn's reasoning is a part of it; else it is left out of every turn."""
        return "{%- set enable_thinking = false" not in self._settings_of_reasoning

    @property
    def keeps_reasoning(self) -> bool:
        """Whether turns before the last question keep their reasoning; models are usually trained without it."""
        return "preserve_thinking = true" in self._settings_of_reasoning

    def with_reasoning(self, *, on: bool | None = None, keep: bool = False) -> Template:
        """The template with reasoning switched on or off (None: as its makers meant it), kept in earlier turns or not.

        What it sets is written into its source, which travels with an adapter and an export.
        """
        switch = [] if on is None else [("enable_thinking", on), ("thinking", on)]
        switch += [("preserve_thinking", True)] if keep else []
        sets = "".join(f"{{%- set {name} = {str(value).lower()} %}}\n" for name, value in switch)
        return replace(self, source=sets + self.source[len(self._settings_of_reasoning) :]) if sets else self

    @cached_property
    def _tags(self) -> tuple[str, str]:
        return next((pair for pair in _THOUGHTS if pair[0] in self.source), _THOUGHTS[0])

    @cached_property
    def _has_channels(self) -> bool:
        """Whether answers have channels in place of tags around their reasoning."""
        return "<|channel|>" in self.source and self.tokenizer.token_to_id("<|channel|>") is not None

    def opens_reasoning(self, ids: Sequence[int]) -> bool:
        """Whether a prompt ends with the tag that opens reasoning, which the answer then has not."""
        tail = self.tokenizer.decode(list(ids[-8:]), skip_special_tokens=False)
        return tail.rstrip().endswith(self._tags[0])  # type: ignore[no-any-return]

    @cached_property
    def _opens_reasoning(self) -> bool:
        """Whether a prompt ends with the tag that opens reasoning."""
        return self._attempt([{"role": "user", "content": HOLE}], prompt=True).rstrip().endswith(self._tags[0])

    @cached_property
    def _writes_reasoning(self) -> bool:
        """Whether the template itself writes the reasoning of a last turn."""
        turn: Turn = {"role": "assistant", "content": HOLE, "reasoning_content": CUT, "thinking": CUT}
        return CUT in self._attempt([{"role": "user", "content": "x"}, turn])

    @cached_property
    def _writes_empty(self) -> bool:
        """Whether the template writes an empty block into a last turn without reasoning."""
        turns: list[Turn] = [{"role": "user", "content": HOLE}, {"role": "assistant", "content": "x"}]
        return self._tags[1] in self._attempt(turns).partition(HOLE)[2]

    def _attempt(self, messages: list[Turn], *, prompt: bool = False) -> str:
        try:
            return self._filled(messages, (), prompt)
        except TemplateError:
            return ""

    @cached_property
    def default_system(self) -> str:
        """See `default_system_with`."""
        return self.default_system_with(())

    def default_system_with(self, tools: Sequence[dict[str, Any]]) -> str:
        """What the template writes before a conversation without a system turn, or "": what differs from the text with
        another system turn, without control tokens and headers."""
        user: Message = {"role": "user", "content": HOLE}
        try:
            plain, other = self.text([user], tools), self.text([{"role": "system", "content": CUT}, user], tools)
        except TemplateError:
            return ""
        head, _, tail = other.partition(CUT)
        before, after = plain.partition(HOLE)[0], tail.partition(HOLE)[0]
        if not (before.startswith(head) and before.endswith(after) and len(before) > len(head) + len(after)):
            return ""
        return before[len(head) : len(before) - len(after)].strip()

    @cached_property
    def preamble(self) -> str:
        """What the template writes before each system turn, or "", without control tokens and the name of the role."""
        try:
            head = self.text([{"role": "system", "content": CUT}, {"role": "user", "content": "x"}])
        except TemplateError:
            return ""
        lines = self._control.sub("\n", head.partition(CUT)[0]).splitlines() if CUT in head else []
        text = "\n".join(line for line in lines if line.strip() not in ("system", "developer")).strip()
        return text if len(re.findall("[A-Za-z]", text)) >= 10 else ""

    # -- text -> ids

    @cached_property
    def _compiled(self) -> Any:
        class Generation(Extension):
            """`{% generation %}` blocks, which some templates carry, rendered as their content."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser: Any) -> Any:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return nodes.Scope(body).set_lineno(line)

        def refuse(message: str) -> None:
            raise TemplateError(message)

        def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
            text = json.dumps(value, ensure_ascii=False, indent=indent)
            escaped = "[^\x00-\x7f\ue000-\ue005]"  # our marks stay as they are
            return re.sub(escaped, lambda m: json.dumps(m[0])[1:-1], text) if ensure_ascii else text

        def strftime_now(form: str) -> str:
            return datetime.datetime.now().strftime(form)

        if len(self.source) > MOST_SOURCE:
            raise TemplateError(f"the chat template is longer than {MOST_SOURCE:,} characters")
        environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = to_json
        environment.globals |= {"raise_exception": refuse, "strftime_now": strftime_now}
        environment.bound_filters()
        return environment, environment.from_string(self.source)

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Every string that the tokenizer would turn into a control token."""
        added = self.tokenizer.get_added_tokens_decoder().values()
        names = {token.content for token in added if token.content.strip()}
        try:
            return re.compile(_any_of(names) if names else r"(?!)")
        except RecursionError:  # a strange tokenizer, with thousands of names that begin with one another
            return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))

    @cached_property
    def handles_tools(self) -> bool:
        """Whether the template itself writes tool calls; otherwise they are written into the content."""
        return "tool_calls" in self.source

    @cached_property
    def lists_tools(self) -> bool:
        """Whether the template itself lists the tools that may be called."""
        return bool(re.search(r"\btools\b", self.source))

    def text(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, prompt: bool = False) -> str:
        """The conversation as the template writes it, control tokens as text. Raises TemplateError: it refuses."""
        return self._render(self._prepared(messages, tools), tools, prompt, cut="")

    def _render(self, messages: Sequence[Turn], tools: Sequence[Turn], prompt: bool, cut: str = CUT) -> str:
        text = self._filled(self._with_thoughts(messages), tools, prompt, cut)
        opening, closing = self._tags
        return text.replace(THOUGHT, f"{opening}\n").replace(ANSWER, f"\n{closing}\n\n") if THOUGHT in text else text

    def _with_thoughts(self, messages: Sequence[Turn]) -> Sequence[Turn]:
        """Turns whose reasoning is where the template writes it, at the beginning of a content, or left out."""
        asks = max((i for i, turn in enumerate(messages) if turn["role"] == "user"), default=-1)
        if self.keeps_reasoning and self.source.count("preserve_thinking") > 1:
            asks = -1  # the template itself keeps it
        turns: list[Turn] = []
        for i, turn in enumerate(messages):
            reasoning, now = turn.get("reasoning_content"), i > asks
            if reasoning is not None:
                turn = {name: value for name, value in turn.items() if name != "reasoning_content"}
            block = bool(reasoning) and self.thinks and (now or self.keeps_reasoning)
            if turn["role"] == "assistant" and i + 1 == len(messages) and not block:  # as its prompt begins it
                block = self._opens_reasoning and not self._writes_empty
            elif turn["role"] == "assistant" and self.keeps_reasoning and not now:
                block = block or self._writes_empty or self._opens_reasoning
            reasoning = reasoning if reasoning and self.thinks else ""
            if block and now and reasoning and self._writes_reasoning:
                turn = {**turn, "reasoning_content": reasoning, "thinking": reasoning}
            elif block:
                turn = {**turn, "content": f"{THOUGHT}{reasoning}{ANSWER}{turn['content'] or ''}"}
            turns.append(turn)
        return turns

    def _filled(self, messages: Sequence[Turn], tools: Sequence[Turn], prompt: bool, cut: str = CUT) -> str:
        values: dict[str, Any] = {"messages": messages, "tools": list(tools) or None if self.lists_tools else None}
        if values["tools"] is None and "tools is defined" in self.source and "tools is not none" not in self.source:
            del values["tools"]  # it would be gone through
        values |= {"add_generation_prompt": prompt, "cut": cut, **self.variables}
        try:
            environment, template = self._compiled
            text: str = environment.render(template, values)
        except TemplateError:
            raise
        except Exception as error:  # a template is a foreign program; whatever it raises concerns this row
            raise TemplateError(f"the chat template fails: {error}") from None
        return text

    def _prepared(self, messages: Sequence[Message], tools: Sequence[Turn]) -> list[Turn]:
        """Messages in the form that the template understands, tools and calls written out where it knows none."""
        prepared: list[Turn] = []
        for message in messages:
            turn: Turn = {**message, "content": message.get("content") or ""}
            turn.pop("weight", None)
            if "tool_call_id" in turn:
                turn["tool_call_id"] = self._call_id(turn["tool_call_id"])
            if turn.get("tool_calls"):
                calls = [self._plain_call(call) for call in turn.pop("tool_calls")]
                if self.handles_tools:
                    turn["tool_calls"] = calls
                    if not turn["content"] and _MISSING_CONTENT.search(self.source):
                        turn["content"] = None
                else:
                    pairs = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
                    turn["content"] = f"{turn['content']}\n{write_calls(pairs, format_for(self.source))}".strip()
            prepared.append(turn)
        if not self.handles_tools and any(turn["role"] == "tool" for turn in prepared) and "tool" not in self._takes:
            prepared = _as_users(prepared)
        if tools and not self.lists_tools:
            call = write_calls([("NAME", {})], format_for(self.source))
            schemas = (json.dumps(tool, ensure_ascii=False) for tool in tools)
            form = "JSON: " if call.startswith("{") else ""
            listing = "\n".join([f"You can call these functions. To call one, answer with {form}{call}", *schemas])
            start = 0 if prepared and prepared[0]["role"] == "system" else None
            if start is None and "system" not in self._takes:
                start = next((i for i, turn in enumerate(prepared) if turn["role"] == "user"), None)
            if start is not None:
                parts = (prepared[start]["content"], listing)
                parts = parts if prepared[start]["role"] == "system" else parts[::-1]
                prepared[start] = {**prepared[start], "content": "\n\n".join(parts).strip()}
            else:
                prepared.insert(0, {"role": "system", "content": listing})
        return prepared

    @cached_property
    def _takes(self) -> set[str]:
        """Which of the roles that some templates refuse or drop this one writes."""
        turns: list[Turn] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
        attempts = {
            "system": [{"role": "system", "content": HOLE}, turns[0]],
            "tool": [*turns, {"role": "tool", "content": HOLE, "name": "x", "tool_call_id": "a" * 9}],
        }
        return {role for role, attempt in attempts.items() if HOLE in self._attempt(attempt)}

    def _call_id(self, name: str) -> str:
        """The id of a call, as Mistral's templates demand it: nine letters and digits."""
        if not re.search(r"length (!=|<) 9", self.source) or re.fullmatch("[A-Za-z0-9]{9}", name):
            return name
        return sha256(name.encode("utf-8", "replace")).hexdigest()[:9]

    def _plain_call(self, call: dict[str, Any]) -> dict[str, Any]:
        """A tool call with its arguments as the template takes them: an object, or JSON; what is no JSON stays."""
        function = call.get("function", call)
        arguments = function.get("arguments", {})
        with contextlib.suppress(ValueError):
            arguments = parse_json(arguments) if isinstance(arguments, str) else arguments
        if self._wants_json and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        plain = {"type": "function", "function": {"name": function.get("name", ""), "arguments": arguments}}
        return {**plain, "id": self._call_id(str(call["id"]))} if call.get("id") else plain

    @cached_property
    def _wants_json(self) -> bool:
        """Whether the template takes a call's arguments as text only, as DeepSeek's do."""

        def attempt(arguments: Any) -> str:
            call = {"id": "a" * 9, "type": "function", "function": {"name": HOLE, "arguments": arguments}}
            turns: list[Turn] = [{"role": "user", "content": "x"}]
            return self._attempt([*turns, {"role": "assistant", "content": "", "tool_calls": [call]}])

        return self.handles_tools and not attempt({}) and bool(attempt("{}"))

    @cached_property
    def _encoder(self) -> Any:
        """The tokenizer with every added token a special one, so that encoding can leave all of them as text."""
        added = self.tokenizer.get_added_tokens_decoder().values()
        if all(token.special for token in added):
            return self.tokenizer
        from tokenizers import Tokenizer

        form = parse_json(self.tokenizer.to_str())
        form["added_tokens"] = [{**token, "special": True} for token in form["added_tokens"]]
        return Tokenizer.from_str(json.dumps(form))

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Token ids of a text; control tokens in it are plain characters unless `control`."""
        try:
            with _ENCODING:
                self._encoder.encode_special_tokens = not control
                if len(text) > LONG and threading.current_thread() is not threading.main_thread():
                    encoded = self._encoder.encode_batch([text], add_special_tokens=False)[0]  # lets other threads run
                else:
                    encoded = self._encoder.encode(text, add_special_tokens=False)
        except TypeError:
            raise TemplateError("the text has half a surrogate pair") from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust: a pattern of the tokenizer's takes too long on it
                raise
            raise TemplateError(f"the tokenizer can't read the text: {error!s:.160}") from None
        return encoded.ids  # type: ignore[no-any-return]

    def _encode_rendered(self, text: str, literals: Sequence[str]) -> list[int]:
        """Tokenise rendered text; marks become `literals`, which are plain characters of the text around them."""
        borders = f"(?<={self.split_after})|{CUT}" if self.split_after else CUT
        ids: list[int] = []
        for piece in filter(None, re.split(borders, text)):
            if "\ue000" not in piece:
                ids += self.encode(piece, control=True)
                continue
            for part in filter(None, re.split(f"({self._control.pattern})", piece)):
                plain = re.sub(_MARK, lambda m: literals[int(m[0][1:-1])], part)
                ids += self.encode(plain, control=plain == part)
        return ids

    def _guard(self, messages: Sequence[Turn], tools: Sequence[Turn]) -> tuple[list[Turn], list[Turn], list[str]]:
        """Replace control strings in the users' text, and in the tools, by marks; give the originals back."""
        literals: list[str] = []

        def mark(match: re.Match[str]) -> str:
            literals.append(match[0])
            return f"\ue000{len(literals) - 1}\ue001"

        def clean(value: Any) -> Any:
            if isinstance(value, str):
                # Marks that a user typed would be taken for ours: they are literals as well.
                return pattern.sub(mark, value.encode("utf-8", "replace").decode("utf-8"))
            if isinstance(value, dict):
                return {clean(key): clean(item) for key, item in value.items()}
            if isinstance(value, list):
                return [clean(item) for item in value]
            return value

        # Alternatives that begin with a character, and not with a class, are found 80 times as fast.
        marks = "".join(f"|{sign}[\ue000-\ue005]*" for sign in "\ue000\ue001\ue002\ue003\ue004\ue005")
        pattern = re.compile(self._control.pattern + marks)
        guarded = [{**{k: clean(v) for k, v in m.items() if k != "role"}, "role": m["role"]} for m in messages]
        return guarded, [clean(tool) for tool in tools], literals

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Ids of a prompt with the assistant's header. Raises TemplateError: the template refuses the conversation."""
        guarded, tools, literals = self._guard(self._prepared(messages, tools), tools)
        return self._encode_turns(guarded, tools, literals).ids

    def render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, reasoning: float = 1
    ) -> Rendered:
        """Ids and loss mask of a whole conversation: every assistant turn with its end-of-turn token is learned.

        A turn that the template writes otherwise once the conversation continues, as Qwen 3 does without its reasoning,
        is read and not learned: a server would never have it answered so. `reasoning`: the weight of the tokens of
        reasoning in the loss, next to 1 for those of the answer.

        A turn's `weight`, from 0 to 1, is that of its tokens in the loss; with 0 it is read and not supervised. A
        single assistant turn is plain text, which becomes a document without roles, as in pretraining: the token that
        opens all input (not learned, for nothing comes before it), the text, the token that ends a document. Raises
        TemplateError: the template refuses the conversation, or a prompt for the last turn is not how the row begins.
        """
        if len(messages) == 1 and messages[0]["role"] == "assistant" and not (tools or messages[0].get("tool_calls")):
            opening, end = self._frame_of_documents
            ids = self.encode(messages[0].get("content") or "")
            weight = messages[0].get("weight", 1)
            return Rendered([*opening, *ids, end], [0] * len(opening) + [weight] * (len(ids) + 1))
        guarded, tools, literals = self._guard(self._prepared(messages, tools), tools)
        weights = [message.get("weight", 1) for message in messages if message["role"] == "assistant"]
        return self._encode_turns(guarded, tools, literals, weights, reasoning)

    def document_ids(self, text: str) -> list[int]:
        """Ids of plain text that a model continues with: the opening token and the text, without an end."""
        return [*self._frame_of_documents[0], *self.encode(text.encode("utf-8", "replace").decode("utf-8"))]

    @property
    def opens_with_bos(self) -> bool:
        """Whether a conversation begins with `bos_token`, once: ChatML's opens each turn, others write none."""
        return bool(self._frame_of_documents[0])

    @cached_property
    def _frame_of_documents(self) -> tuple[list[int], int]:
        """What comes before a document, if `opens_with_bos`, and behind it: the end of a text, else of a turn."""
        turns: list[Message] = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
        bos, text = self.variables.get("bos_token"), self.text(turns)
        opens = bool(bos) and text.startswith(str(bos)) and text.count(str(bos)) == 1
        ends = [i for name, i in zip(self._end_strings, self.end_ids, strict=True) if name in _ENDS_OF_TEXT]
        return [self.tokenizer.token_to_id(bos)] if opens else [], (*ends, self.end_ids[0])[0]

    def _encode_turns(
        self,
        messages: list[Turn],
        tools: Sequence[Turn],
        literals: Sequence[str],
        weights: Sequence[float] | None = None,
        reasoning: float = 1,
    ) -> Rendered:
        """Ids and mask of a conversation with the weight of each answer or, without `weights`, of a prompt."""
        whole = self._render(messages, tools, prompt=weights is None)
        ids: list[int] = []
        mask: list[float] = []
        start = 0
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        for number, i in enumerate(answers):
            before = self._render(messages[:i], tools, True) if i else self._header_alone(messages, tools, whole)
            after = self._render(messages[: i + 1], tools, False)
            # Just behind the control token that ends the turn; what Phi-3 writes behind that ends the text.
            places = [(after.find(token, len(before)), token) for token in self._end_strings]
            end = min((path + len(token) for path, token in places if path >= 0), default=len(before))
            if not (whole.startswith(before) and after.startswith(before) and whole.startswith(after[:end])):
                if weights and i == answers[-1]:
                    raise TemplateError(
                        "the chat template rewrites earlier turns, so the answers' place can't be known"
                    )
                continue  # it is read as the template writes it by now, which is not how it was answered
            head = self._encode_rendered(whole[start : len(before)], literals)
            ids += head
            mask += [0] * len(head)
            answer = self._encode_rendered(whole[len(before) : end], literals)
            if not answer or answer[-1] not in self.end_ids:
                raise TemplateError("the chat template does not end the assistant's turn with an end-of-turn token")
            ids += answer
            mask += self._mask_of(answer, weights[number] if weights else 1, reasoning)
            start = end
        rest = self._encode_rendered(whole[start:], literals)
        return Rendered(ids + rest, mask + [0] * len(rest))

    def _mask_of(self, answer: list[int], weight: float, reasoning: float) -> list[float]:
        """The weights of an answer's tokens: those of its reasoning, with the tag that ends it, times `reasoning`."""
        closing = self._tags[1]
        if reasoning == 1 or closing not in self.tokenizer.decode(answer, skip_special_tokens=False):
            return [weight] * len(answer)
        begins = range(1, len(answer) + 1)
        end = begins[
            bisect_left(
                begins, True, key=lambda n: closing in self.tokenizer.decode(answer[:n], skip_special_tokens=False)
            )
        ]
        return [weight * reasoning] * end + [weight] * (len(answer) - end)

    def _header_alone(self, messages: list[Turn], tools: Sequence[Turn], whole: str) -> str:
        """What comes before the content of an assistant turn that opens the conversation."""
        opening = {**messages[0], "content": HOLE, "reasoning_content": ""}
        marked = self._render([opening, *messages[1:]], tools, False)
        before = marked[: max(marked.find(HOLE), 0)]
        return before if before and whole.startswith(before) else self._render([], tools, True)

    @cached_property
    def _end_strings(self) -> list[str]:
        return [self.tokenizer.id_to_token(i) for i in self.end_ids]

    # -- ids -> text

    def decode(self, ids: Sequence[int]) -> str:
        """Text of answer ids, control tokens left out; gpt-oss's stay: they say what is reasoning, and a call."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=not self._has_channels)  # type: ignore[no-any-return]

    @property
    def is_plain(self) -> bool:
        """Whether the model came without a chat template."""
        return self.source.endswith(PLAIN_TEMPLATE)

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return self.tokenizer.get_vocab_size(with_added_tokens=True)  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        """Write tokenizer and template so that Transformers renders the same ids."""
        write_text(folder / "tokenizer.json", self.tokenizer.to_str())
        settings = {k: v for k, v in self.settings.items() if k != "chat_template"}
        write_json(folder / "tokenizer_config.json", {**settings, "chat_template": plain_source(self.source)})


def _as_users(turns: list[Turn]) -> list[Turn]:
    """Turns with what tools answered in turns of the user, one for those in a row."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and turn["role"] == "tool" and merged[-1]["role"] == "user":
            merged[-1] = {**merged[-1], "content": f"{merged[-1]['content']}\n{turn['content']}"}
        else:
            merged.append({**turn, "role": "user"} if turn["role"] == "tool" else turn)
    return merged


def plain_source(source: str) -> str:
    """A chat template as other programs read it: without the mark where Llama 3's text is cut."""
    return source.replace("{{- cut }}\n", "")


def sets_of(source: str) -> str:
    """What the beginning of a template sets about reasoning."""
    match = _SETS.match(source)
    return match[0] if match else ""


# Tokens by which the common chat formats end a turn.
_ENDS_OF_TURN = [
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"
]  # fmt: skip
_ENDS_OF_TEXT = {"<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>"}


def unpacked_template(packed: bytes) -> Template:
    """A template from another process of this program."""
    from tokenizers import Tokenizer

    values = parse_json(packed)
    end_ids = tuple(values["end_ids"])
    return Template(**{**values, "tokenizer": Tokenizer.from_str(values["tokenizer"]), "end_ids": end_ids})


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder. Raises UserError: there is no `tokenizer.json`, or it is damaged or beyond a limit."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        step = "save one with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        raise UserError("The model has no tokenizer.json", where=str(folder), next_step=step)
    try:
        tokenizer = Tokenizer.from_buffer(_bounded_tokenizer(path))
    except Exception as error:
        message, step = f"Can't read the tokenizer: {error}", "download the model again"
        raise UserError(message, where=str(path), next_step=step) from None
    tokenizer.no_truncation()  # what was saved from another program's last call is none of the model's business
    tokenizer.no_padding()
    return tokenizer


def load_template(folder: Path) -> Template:
    """Read `tokenizer.json` and the chat template of a model's folder. Raises UserError: there is no fast tokenizer, or
    it is beyond a limit."""
    tokenizer = read_tokenizer(folder)
    files = (folder / "tokenizer_config.json", folder / "generation_config.json")
    settings, generation = (read_json_object(file) if file.is_file() else {} for file in files)
    tokens = {key: settings.get(key) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    tokens = {key: token.get("content") if isinstance(token, dict) else token for key, token in tokens.items()}
    variables = {key: _sound(token) for key, token in tokens.items() if isinstance(token, str) and token}
    source, split_after = template_source(folder, settings, tokenizer)
    names = [*_ENDS_OF_TURN, variables.get("eos_token", "")]
    if tokenizer.token_to_id("<|return|>") is not None:  # gpt-oss, whose answer continues behind its reasoning
        names[names.index("<|end|>")] = "<|call|>"
    end_ids = [i for i in (tokenizer.token_to_id(name) for name in names if name) if i is not None]
    size, more = tokenizer.get_vocab_size(with_added_tokens=True), generation.get("eos_token_id")
    more = [i for i in (more if isinstance(more, list) else [more]) if type(i) is int and 0 <= i < size]
    end_ids += [i for i in more if tokenizer.id_to_token(i) is not None]
    if not end_ids:
        step = "set eos_token in tokenizer_config.json"
        raise UserError("The tokenizer has no end-of-turn token", where=str(folder), next_step=step)
    pad = tokenizer.token_to_id(variables.get("pad_token") or "<|finetune_right_pad_id|>")
    pad_id = end_ids[0] if pad is None else pad
    return Template(tokenizer, source, variables, tuple(dict.fromkeys(end_ids)), pad_id, split_after, settings)


MOST_TOKENS, MOST_ADDED = LIMITS["tokenizer"].nodes, 200_000  # models that speak have 30,000 added tokens
MOST_STEPS, MOST_GROWTH = 100, 100  # of what changes a text before and after: steps, characters made of one


def _bounded_tokenizer(path: Path) -> bytes:
    """The text of a `tokenizer.json`. Raises ValueError: it is no JSON object, or would take hours or all memory."""
    text = file_bytes(path, "tokenizer")
    form = fast_json(text)
    model = form.get("model") or {}
    for name, part, most in (
        ("tokens", model.get("vocab"), MOST_TOKENS),
        ("merges", model.get("merges"), MOST_TOKENS),
        ("added tokens", form.get("added_tokens"), MOST_ADDED),
    ):
        if (count := len(part or ())) > most:
            raise ValueError(f"it has {count:,} {name}, and more than {most:,} are not read")
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        steps, growth, parts = 0, 1, [form.get(name)]
        while parts:
            part = parts.pop()
            if isinstance(part, list):
                parts += part
            elif isinstance(part, dict):
                steps += 1
                growth *= max(1, *(len(str(part.get(key, ""))) for key in ("content", "prepend")))
                parts += [value for value in part.values() if isinstance(value, list)]
            if steps > MOST_STEPS or growth > MOST_GROWTH:
                raise ValueError(f"its {name} has too many steps, or makes too much of a text")
    return text


def template_source(folder: Path, settings: dict[str, Any], tokenizer: Any) -> tuple[str, str]:
    """The chat template that a folder has, and the expression behind which Llama 3's text is cut."""
    file, saved = folder / "chat_template.jinja", settings.get("chat_template")
    older = folder / "chat_template.json"  # of models that also read pictures
    if saved is None and older.is_file():
        saved = read_json_object(older).get("chat_template")
    source = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else saved
    if isinstance(source, list):  # several named templates
        by_name = {str(entry.get("name")): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = by_name.get("default") or next(iter(by_name.values()), None)
    source = _sound(source) if isinstance(source, str) else ""
    is_llama3 = None not in map(tokenizer.token_to_id, ("<|start_header_id|>", "<|eot_id|>"))
    if is_llama3 and (not source or "<|start_header_id|>" in source):  # not ChatML or Alpaca on its tokenizer
        return (sets_of(saved) if isinstance(saved, str) else "") + LLAMA3_TEMPLATE, r"<\|end_header_id\|>\n\n"
    if source:
        return source, ""
    bos = settings.get("bos_token")
    bos = tokenizer.token_to_id(bos.get("content") if isinstance(bos, dict) else bos or "")
    opens = bos is not None and (settings.get("add_bos_token") or tokenizer.encode("").ids == [bos])
    return ("{{- bos_token }}\n" if opens else "") + PLAIN_TEMPLATE, ""  # Gemma answers badly without its first token


def _sound(text: str) -> str:
    """A text without halves of surrogate pairs, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def with_template(template: Template, source: str) -> Template:
    """A tokenizer with another chat template; an empty one: its own.

    One that is its own but for what it sets about reasoning keeps the places where Llama 3's text is cut.
    """
    if not source or source == plain_source(template.source):
        return template
    sets, own = sets_of(source), template.source[len(sets_of(template.source)) :]
    return replace(template, source=sets + own if source[len(sets) :] == plain_source(own) else source)
