"""Records of many shapes to conversations: which shape they have, and one function for each shape.

A format's function takes a record and gives a `Draft`, the turns as they stand, or raises `Refused`.
`parse_record` then puts every draft through the same checks (`tuneloop.data.formats.turns.ordered`), so that all
formats keep the same promises: contents are strings, roles take turns, the last turn is an answer.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.answers import error_answer
from tuneloop.data.formats.detect import (
    PLACEHOLDERS,
    TEXT_NAMES,
    FormatGuess,
    check_columns,
    detect,
    guess_from_info,
    is_label_list,
)
from tuneloop.data.formats.logs import read_exchange, with_whole_exchange
from tuneloop.data.formats.ratings import opinion, read_number, read_thumb, score_of
from tuneloop.data.formats.templates import column_text, fill, template_columns
from tuneloop.data.formats.turns import (
    ROLES,
    Refused,
    as_text,
    assistant,
    from_json,
    ordered,
    read_tools,
    read_turns,
    short,
    user,
    with_whole_contents,
)
from tuneloop.data.sources.parse import json_type
from tuneloop.records.rows import Message

__all__ = [
    "CLASSIFY",
    "CLASSIFY_MANY",
    "ROLES",
    "TEXT_NAMES",
    "FormatGuess",
    "Parsed",
    "Rejection",
    "check_columns",
    "detect",
    "error_answer",
    "guess_from_info",
    "parse_record",
    "template_columns",
    "with_whole_texts",
]

CLASSIFY = "Classify the text. Answer with the label only."
CLASSIFY_MANY = "Classify the text. Answer with all labels that apply, in alphabetical order, separated by commas; with none where none applies."
NO_LABELS = "none"  # the label of a row whose list of labels is empty


@dataclass(frozen=True, slots=True)
class Parsed:
    """A record as a conversation.

    Args:
        messages: the turns; the last is the assistant's. Plain text is one turn of the assistant alone.
        label: the class, where the task has one.
        tools: the tools that may be called, in the OpenAI form.
        used: columns that went into the conversation.
        repairs: what was changed, each with at least `kind` and `field`.
        extra: further facts for `meta`: `rejected` (the turns of the worse answer; `shared_turns` where they
            take the place of more than the last turn), `thumb` and `rating`, `labels`, `model`.
    """

    messages: list[Message]
    label: str | None
    tools: list[dict[str, Any]]
    used: frozenset[str]
    repairs: list[dict[str, Any]]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejection:
    """Why a record is no training example: a word of the documented list, and the particulars.

    Args:
        tokens: of a row that is too long.
    """

    reason: str
    detail: str
    tokens: int = 0


@dataclass(slots=True)
class Draft:
    """What a format makes of a record, before the checks that all formats share."""

    turns: list[Message]
    repairs: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


Record = Mapping[str, Any]


# --- a record ------------------------------------------------------------------------------------


def parse_record(value: Any, guess: FormatGuess, config: PrepareConfig) -> Parsed | Rejection:
    """A record as a conversation in the OpenAI form, or why it is none.

    Total: no JSON value raises.
    """
    try:
        if not isinstance(value, dict):
            raise Refused("wrong_type", f"a record must be an object, not {json_type(value)}")
        return _PARSERS[guess.name](value, guess, config)
    except Refused as refused:
        return Rejection(refused.reason, refused.detail)
    except RecursionError:
        return Rejection("wrong_type", "nested too deeply")


def with_whole_texts(value: dict[str, Any], guess: FormatGuess) -> dict[str, Any]:
    """A record with the texts put together that it holds in pieces: streamed answers, contents in parts. Itself where there are none.

    To be done before texts are looked at: white space at the ends of a piece belongs to the text, and a value that is
    looked for may be cut between two. Total, as `parse_record` is.
    """
    columns = guess.columns
    try:
        if guess.name == "logs" and {"request", "response"} <= columns.keys():
            return with_whole_exchange(value, columns["request"], columns["response"])
        for role, column in columns.items():
            cell = value.get(column) if role in _IN_TURNS else None
            turns = [cell] if type(cell) is dict else cell
            if type(turns) is list and (whole := with_whole_contents(turns, guess.keys.content)) is not turns:
                value = {**value, column: whole if turns is cell else whole[0]}
    except RecursionError:
        pass
    return value


_IN_TURNS = ("turns", "prompt", "completion", "chosen", "rejected", "answers")


def _parsed(draft: Draft, record: Record, guess: FormatGuess, config: PrepareConfig, *, errors: bool = True) -> Parsed:
    """A draft that has passed the checks all formats share; `errors`: answers that are error messages are refused.

    Raises:
        Refused: see `tuneloop.data.formats.turns.ordered`, and labels that are not allowed.
    """
    classes = config.task == "classification" or config.labels is not None
    messages = ordered(
        draft.turns, guess.keys, draft.repairs, system=config.instruction or "", errors=errors and not classes
    )
    if "thumb" in guess.columns:
        _rate(record, guess, config, draft.extra)
    label = None
    if classes:
        label = messages[-1]["content"].strip()
        if config.labels is not None:
            _check_label(label, config.labels)
    return Parsed(messages, label, draft.tools, guess.used, draft.repairs, draft.extra)


def _check_label(label: str, labels: Collection[str]) -> None:
    if label not in labels:
        folded = {name.casefold(): name for name in labels}
        near = difflib.get_close_matches(label.casefold(), folded, 1, 0.6)
        raise Refused("unknown_label", f"{short(label)}" + (f": did you mean {folded[near[0]]!r}?" if near else ""))


def _required(record: Record, column: str, guess: FormatGuess) -> Any:
    if column not in record:
        needed = [name for role, name in guess.columns.items() if role in _NEEDED]
        expected = f" ({guess.name}: {', '.join(needed)} expected)" if column in needed else ""
        raise Refused("missing_field", f"no column {column!r}{expected}")
    return record[column]


_NEEDED = ("turns", "instruction", "output", "prompt", "completion", "text", "label", "chosen", "rejected", "answers")


def _text(record: Record, column: str | None, guess: FormatGuess) -> str:
    """A column's text, "" where it is not there."""
    value = record.get(column) if column else None
    return value if type(value) is str else as_text(value, f"column {column!r}", strings_only=column in guess.texts)


def _filled(record: Record, column: str, reason: str, guess: FormatGuess) -> str:
    text = record.get(column)
    if type(text) is not str:
        value = _required(record, column, guess)
        text = as_text(value, f"column {column!r}", strings_only=column in guess.texts)
    if not text or text.isspace():
        raise Refused(reason, f"column {column!r} is empty")
    return text


def _system(record: Record, guess: FormatGuess) -> list[Message]:
    text = _text(record, guess.columns.get("system", "system"), guess)
    return [{"role": "system", "content": text}] if text and not text.isspace() else []


def _rate(record: Record, guess: FormatGuess, config: PrepareConfig, extra: dict[str, Any]) -> None:
    """Add `thumb` and `rating` to what is known of a row. Rows without one are kept, unless thumbs are asked for."""
    column = guess.columns["thumb"]
    value = opinion(record.get(column))
    if value is None:
        if config.format == "thumbs":
            raise Refused("missing_field", f"column {column!r} has no rating")
        return
    rated = read_thumb(value, guess.scale)
    if rated is None:
        raise Refused("wrong_type", f"column {column!r} has no rating that can be read: {short(str(value))}")
    thumb, number = rated
    if thumb is not None:
        extra["thumb"] = thumb
    if number is not None:
        extra["rating"] = number


# --- the formats ---------------------------------------------------------------------------------


def text_label(record: Record, guess: FormatGuess, config: PrepareConfig) -> Parsed:
    """A text and its class, or its classes."""
    columns = guess.columns
    text = _filled(record, columns["text"], "empty_input", guess)
    repairs: list[dict[str, Any]] = []
    extra: dict[str, Any] = {}
    if guess.many_labels:
        labels = _labels(record, columns["label"], guess, config)
        label = ", ".join(labels)
        extra["labels"] = labels
    else:
        column = columns.get("label_name") or columns["label"]
        raw = _filled(record, column, "empty_output", guess)
        label = raw.strip()
        if label != raw:
            repairs.append({"kind": "trimmed", "field": column})
        _check_class(label, column, guess, config)
    instruction = config.instruction
    if instruction is None:
        instruction = CLASSIFY_MANY if guess.many_labels else CLASSIFY
    messages: list[Message] = [{"role": "user", "content": text}, {"role": "assistant", "content": label}]
    if instruction and not instruction.isspace():
        messages.insert(0, {"role": "system", "content": instruction})
    return Parsed(messages, label, [], guess.used, repairs, extra)


def _check_class(label: str, column: str, guess: FormatGuess, config: PrepareConfig) -> None:
    if config.labels is not None:
        _check_label(label, config.labels)
    elif len(label) < 10 and label.casefold() in PLACEHOLDERS and label not in guess.classes:
        raise Refused("empty_output", f"column {column!r} is {short(label)}, which stands for no label")


def _labels(record: Record, column: str, guess: FormatGuess, config: PrepareConfig) -> list[str]:
    """The labels of a list, each once, in alphabetical order."""
    value = _required(record, column, guess)
    if value is None:
        raise Refused("empty_output", f"column {column!r} is empty")
    if not is_label_list(value):
        raise Refused("wrong_type", f"column {column!r} is {json_type(value)}, not an array of labels")
    labels = sorted({label.strip() for label in value} - {""})
    if not labels:
        if value:
            raise Refused("empty_output", f"column {column!r} has only empty labels")
        return [NO_LABELS]  # others have some: that none applies is an answer too
    for label in labels:
        _check_class(label, column, guess, config)
    return labels


def text(record: Record, guess: FormatGuess, config: PrepareConfig) -> Parsed:
    """Plain text, to be learned as it is: one turn of the assistant, with no prompt."""
    said = _filled(record, guess.columns["text"], "empty_output", guess)
    if kind := error_answer(said):
        raise Refused("error_output", f"column {guess.columns['text']!r} is {kind}: {short(said)}")
    return Parsed([assistant(said)], None, [], guess.used, [])


def alpaca(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """instruction, input, output, and system and history (pairs of earlier turns) where present."""
    columns = guess.columns
    turns = _prompt(record, columns["instruction"], guess)
    return Draft([*turns, assistant(_filled(record, columns["output"], "empty_output", guess))])


def prompt_completion(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """A prompt and its answer, each as text or as turns (`role`, `content`)."""
    columns = guess.columns
    repairs: list[dict[str, Any]] = []
    turns = _prompt(record, columns["prompt"], guess, repairs)
    completion = record.get(columns["completion"])
    if isinstance(completion, list):
        turns += read_turns(completion, guess.keys, repairs)
    else:
        turns.append(assistant(_filled(record, columns["completion"], "empty_output", guess)))
    tools = record.get("tools")
    return Draft(turns, repairs, read_tools(tools) if tools is not None else [])


def _prompt(
    record: Record, column: str, guess: FormatGuess, repairs: list[dict[str, Any]] | None = None
) -> list[Message]:
    """System turn, earlier turns, and what is asked: the prompt with what stands beside it."""
    columns = guess.columns
    turns = _system(record, guess)
    history = record.get(columns.get("history", "history")) or []
    if history:
        turns += _history(history)
    value = _required(record, column, guess)
    if isinstance(value, list) and repairs is not None:
        return turns + read_turns(value, guess.keys, repairs)
    parts = (_text(record, column, guess), _text(record, columns.get("input"), guess))
    prompt = "\n".join([part for part in parts if part and not part.isspace()])
    if not prompt:
        raise Refused("empty_input", f"column {column!r} is empty")
    turns.append(user(prompt))
    return turns


def _history(value: Any) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise Refused("wrong_type", "column 'history' is no array of pairs")
    turns: list[Message] = []
    for question, answer in value:
        turns += [user(as_text(question, "column 'history'")), assistant(as_text(answer, "column 'history'"))]
    return turns


def conversation(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """Turns with calls and tools, of whatever keys: OpenAI's `messages`, ShareGPT's `conversations`."""
    columns = guess.columns
    column = columns["turns"]
    value = record.get(column)
    if type(value) is not list:
        value = _turn_list(_required(record, column, guess), column, guess)
    if not value:
        raise Refused("wrong_type", f"column {column!r} is an empty array, not one of turns")
    repairs: list[dict[str, Any]] = []
    turns = read_turns(value, guess.keys, repairs)
    system = record.get(columns.get("system", "system"))
    if system is not None and not any(turn["role"] == "system" for turn in turns):
        turns = [*_system(record, guess), *turns]
    tools = record.get(columns.get("tools", "tools"))
    return Draft(
        turns, repairs, read_tools(tools, f"column {columns.get('tools', 'tools')!r}") if tools is not None else []
    )


def _turn_list(value: Any, column: str, guess: FormatGuess) -> list[Any]:
    made = from_json(value, f"column {column!r}") if column in guess.texts else value
    if not isinstance(made, list):
        raise Refused("wrong_type", f"column {column!r} is {json_type(value)}, not an array of turns")
    return made


def logs(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """A logged request to a chat API and its response."""
    exchange = read_exchange(record, guess.columns["request"], guess.columns["response"])
    repairs: list[dict[str, Any]] = []
    turns = read_turns(exchange.turns, guess.keys, repairs)
    extra = {"model": exchange.model} if exchange.model else {}
    return Draft(turns, repairs, read_tools(exchange.tools, "the request's tools"), extra)


def thumbs(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """A conversation, or a prompt and its answer, with a rating beside it."""
    base = conversation if "turns" in guess.columns else alpaca if "instruction" in guess.columns else prompt_completion
    return base(record, guess, config)


def fields(record: Record, guess: FormatGuess, config: PrepareConfig) -> Parsed:
    """Any columns, put into the templates of the user turn and the answer.

    Columns of the answer stay in `meta` too: they are the fields of a structured answer.
    """
    inputs, outputs = template_columns(config.input or ""), template_columns(config.output or "")
    prompt = fill(config.input or "", record, texts=guess.texts, blank_ok=True)
    answer = fill(config.output or "", record, texts=guess.texts, blank_ok=False)
    if inputs and all(not text or text.isspace() for text in (column_text(record, name) for name in inputs)):
        raise Refused("empty_input", f"no text in {', '.join(map(repr, inputs))}")
    as_logged = (
        config.output == "{" + "".join(outputs) + "}"
    )  # a composed answer may well have `null` or an error in it
    parsed = _parsed(Draft([user(prompt), assistant(answer)]), record, guess, config, errors=as_logged)
    return replace(parsed, used=frozenset(inputs) - frozenset(outputs))


# --- preferences ---------------------------------------------------------------------------------


def preference(record: Record, guess: FormatGuess, config: PrepareConfig) -> Parsed:
    """Two answers to one prompt: the conversation ends with the better one, the other is in `extra`.

    Raises:
        Refused: the answers are equal, or answer different prompts, besides all that `ordered` refuses.
    """
    columns = guess.columns
    repairs: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] = []
    prompt: list[Message] = []
    if "turns" in columns:
        draft = conversation(record, guess, config)
        prompt, tools = draft.turns, draft.tools
        repairs += draft.repairs
    elif column := columns.get("prompt") or columns.get("instruction"):
        prompt = _prompt(record, column, guess, repairs)
    else:
        prompt = _system(record, guess)
    better, worse = _two_answers(record, guess)
    system = config.instruction or ""
    whole = ordered(_answered(prompt, better, guess, repairs), guess.keys, repairs, system=system)
    try:
        other = ordered(_answered(prompt, worse, guess, []), guess.keys, [], system=system, errors=False)
    except Refused as refused:
        raise Refused(refused.reason, f"the rejected answer: {refused.detail}") from None
    shared = 0
    while shared < min(len(whole), len(other)) and whole[shared] == other[shared]:
        shared += 1
    if shared == len(whole) or shared == len(other):
        raise Refused("no_preference", "the chosen and the rejected answer are the same")
    if "user" in (whole[shared]["role"], other[shared]["role"]):
        raise Refused("no_preference", "the chosen and the rejected answer stand after different prompts")
    extra: dict[str, Any] = {"rejected": other[shared:]}
    if shared < len(whole) - 1:
        extra["shared_turns"] = shared
    return Parsed(whole, None, tools, guess.used, repairs, extra)


def _two_answers(record: Record, guess: FormatGuess) -> tuple[Any, Any]:
    columns = guess.columns
    if "answers" not in columns:
        return _required(record, columns["chosen"], guess), _required(record, columns["rejected"], guess)
    column = columns["answers"]
    answers = _required(record, column, guess)
    if not isinstance(answers, list) or len(answers) < 2:
        raise Refused("wrong_type", f"column {column!r} is no array of two answers")
    scores = record.get(columns.get("scores", "")) or [score_of(answer) for answer in answers]
    if not isinstance(scores, list) or len(scores) != len(answers):
        raise Refused("wrong_type", f"there are not as many scores as answers in column {column!r}")
    numbers = [number for number in map(read_number, scores) if number is not None]
    if numbers and len(numbers) < len(answers):
        raise Refused("wrong_type", f"some answers in column {column!r} have no score")
    said = [_said(answer) for answer in answers]
    if not numbers:
        if len(answers) > 2:
            raise Refused("no_preference", f"{len(answers)} answers in column {column!r} without scores")
        return said[0], said[1]
    best, worst = max(numbers), min(numbers)
    if best == worst:
        raise Refused("no_preference", "both answers have the same score")
    return said[numbers.index(best)], said[numbers.index(worst)]


def _said(answer: Any) -> Any:
    """The text of an answer that stands in an object with its score."""
    names = ("text", "response", "completion", "answer", "content", "output")
    if isinstance(answer, dict) and not {"role", "from"} & answer.keys():
        return next((answer[name] for name in names if isinstance(answer.get(name), str)), answer)
    return answer


def _answered(
    prompt: Sequence[Message], answer: Any, guess: FormatGuess, repairs: list[dict[str, Any]]
) -> list[Message]:
    """The prompt with an answer, which may be a text, a turn, some turns, or the whole conversation."""
    if isinstance(answer, dict):
        answer = [answer]
    if isinstance(answer, list):
        turns = read_turns(answer, guess.keys, repairs)
    else:
        text = as_text(answer, "an answer")
        turns = _transcript(text) if "\n\nHuman:" in text else [assistant(text)]
    first = next((turn for turn in turns if turn["role"] != "system"), None)
    if first is not None and first["role"] == "user":  # the whole conversation
        return [*(turn for turn in prompt if turn["role"] == "system" and turns[0]["role"] != "system"), *turns]
    return [*({**turn} for turn in prompt), *turns]  # type: ignore[list-item]


def _transcript(text: str) -> list[Message]:
    """Turns of a text with `Human:` and `Assistant:` before them, as in Anthropic's HH-RLHF."""
    pieces = re.split(r"\n\n(Human|Assistant):", "\n\n" + text.strip())
    return [
        {"role": "user" if speaker == "Human" else "assistant", "content": said.strip()}
        for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def _checked(
    drafter: Callable[[Record, FormatGuess, PrepareConfig], Draft],
) -> Callable[[Record, FormatGuess, PrepareConfig], Parsed]:
    return lambda record, guess, config: _parsed(drafter(record, guess, config), record, guess, config)


_PARSERS: dict[str, Callable[[Record, FormatGuess, PrepareConfig], Parsed]] = {
    "alpaca": _checked(alpaca),
    "sharegpt": _checked(conversation),
    "messages": _checked(conversation),
    "prompt_completion": _checked(prompt_completion),
    "logs": _checked(logs),
    "thumbs": _checked(thumbs),
    "preference": preference,
    "text_label": text_label,
    "text": text,
    "fields": fields,
}
