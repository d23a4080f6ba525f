"""A prompt and its answer: instruction and output, or other pairs of names, with a rating, or by templates."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats import draft
from tuneloop.data.formats.conversation import conversation, is_data
from tuneloop.data.formats.sample import BESIDES, HISTORY, NEARLY, SYSTEM, FormatGuess, Record, RecordSample
from tuneloop.data.formats.text_label import find_text_label
from tuneloop.data.formats.turns import Refused, as_text, assistant, json_text, read_tools, read_turns, user

TEXT_SUMMARY = ("text", "summary")
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("prompt", "output"),
    ("question", "answer"), ("question", "response"), ("input", "output"), ("query", "response"),
    ("query", "answer"), ("instruction", "response"), ("instruction", "completion"), ("instruction", "answer"),
    ("input", "response"), ("user", "assistant"), ("human", "assistant"), ("problem", "solution"),
    ("dialogue", "summary"), ("document", "summary"), ("article", "summary"), ("article", "highlights"), TEXT_SUMMARY,
)  # fmt: skip
_SHAPE = "prompt and completion, or other names for them"
THUMB_NAMES = (
    "kto_tag", "thumb", "thumbs", "thumbs_up", "thumb_up", "feedback", "user_feedback", "human_feedback", "vote",
    "liked", "is_liked", "reaction", "rating", "user_rating", "stars", "label",
)  # fmt: skip
ABSENT = object()


def alpaca(record: Record, guess: FormatGuess, config: PrepareConfig) -> draft.Draft:
    """instruction, input, output, and system and history (pairs of earlier turns) where present."""
    turns = draft.prompt_turns(record, guess.columns["instruction"], guess)
    return draft.Draft([*turns, assistant(draft.answer_of(record, guess.columns["output"], guess))])


def prompt_completion(record: Record, guess: FormatGuess, config: PrepareConfig) -> draft.Draft:
    """A prompt and its answer, each as text or as turns (`role`, `content`)."""
    columns = guess.columns
    repairs: list[dict[str, Any]] = []
    turns = draft.prompt_turns(record, columns["prompt"], guess, repairs)
    completion = record.get(columns["completion"])
    if isinstance(completion, list) and columns["completion"] not in guess.objects:
        turns += read_turns(completion, guess.keys, repairs)
    else:
        turns.append(assistant(draft.answer_of(record, columns["completion"], guess)))
    return draft.Draft(turns, repairs, read_tools(record.get("tools")))


def _find_alpaca(sample: RecordSample, config: PrepareConfig) -> FormatGuess | None:
    """instruction and output; other names of the output count where there is an input, or on request."""
    input_ = sample.first(BESIDES)
    outputs = ["output", "response", "completion", "answer"]
    some = outputs if input_ or config.format in ("alpaca", "thumbs") else outputs[:1]
    output = next((name for name in some if sample.is_usual("instruction", name)), None)
    if output is None:
        return None
    columns = {"instruction": "instruction", **({"input": input_} if input_ else {}), "output": output}
    columns |= sample.further(SYSTEM, HISTORY)
    return FormatGuess("alpaca", columns, sample.seen(["instruction", output]))


def _find_pair(sample: RecordSample, config: PrepareConfig) -> FormatGuess | None:
    for pair in PAIRS:
        if pair == TEXT_SUMMARY and config.format == "auto" and find_text_label(sample, config):
            continue  # a text with its class and a summary, as a ticket has them: the class is more often choice
        data = [column for column in pair if sample.mostly(column, is_data)]
        # not an object in "response": that of an API, as it was logged
        if sample.is_usual(*pair) and data in ([], [pair[1]]) and data != ["response"]:
            columns = dict(zip(("prompt", "completion"), pair, strict=True))
            input_ = sample.first(BESIDES)
            if pair[0] in ("question", "query", "instruction") and input_ and input_ not in pair:
                columns["input"] = input_
            return FormatGuess("prompt_completion", columns | sample.further(SYSTEM, HISTORY), sample.seen(pair))
    return None


ALPACA = draft.Format("alpaca", "instruction and output", draft.checked_parser(alpaca), _find_alpaca, rated=True)
PAIR = draft.Format("prompt_completion", _SHAPE, draft.checked_parser(prompt_completion), _find_pair, rated=True)


def thumbs(record: Record, guess: FormatGuess, config: PrepareConfig) -> draft.Draft:
    """A conversation, or a prompt and its answer, with a rating."""
    base = conversation if "turns" in guess.columns else alpaca if "instruction" in guess.columns else prompt_completion
    return base(record, guess, config)


def with_thumbs(guess: FormatGuess, sample: RecordSample, choice: str) -> FormatGuess | None:
    """A guess with the column of thumbs or ratings, if there is one; None where it is needed and is not there."""
    for name in THUMB_NAMES:
        values = [value for value in map(draft.raw_rating, sample.of(name)) if value is not None]
        if not values or name in guess.columns.values():
            continue
        scale = draft.scale_of(values, name)
        if sum(draft.read_thumb(value, scale) is not None for value in values) < NEARLY * len(values):
            continue
        columns = {**guess.columns, "thumb": name}
        if guess.name == "logs" or (2 * len(values) < len(sample) and choice != "thumbs"):
            return replace(guess, columns=columns, scale=scale)
        reason = f"{guess.reason}; {name!r} says which answers were good"
        return replace(guess, name="thumbs", columns=columns, reason=reason, scale=scale)
    return None if choice == "thumbs" else guess


THUMBS = draft.Format(
    "thumbs",
    "a conversation, or prompt and completion, and a column label, feedback or rating",
    draft.checked_parser(thumbs),
)


@functools.lru_cache(maxsize=64)
def _pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """A template as pairs (literal text, column or None); a brace that opens or closes nothing is a UserError."""
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
            where = f"{template!r}, character {match.start() + 1}"
            step = "write columns as {column}, and braces themselves as {{ and }}"
            raise UserError(f"A single {match[0]!r} in a template", where=where, next_step=step)
    return (*pieces, (literal + template[end:], None))


def template_columns(template: str) -> list[str]:
    """The columns that a template names, in order, each once; a malformed one is a UserError."""
    return list(dict.fromkeys(column for _, column in _pieces(template) if column is not None))


def fill(
    template: str, record: Mapping[str, Any], *, texts: Collection[str] = (), blank_ok: bool, joined: bool = False
) -> str:
    """A template with a record's values: `{column}`, `{column.key}` into objects; objects and arrays become JSON.

    Between quotes, as in `"{tags}"`, and where they are labels (`joined`) the items of an array are joined by ", ". A
    column that is missing or (unless `blank_ok`) has no text raises `Refused`.
    """
    filled = []
    for literal, column in _pieces(template):
        filled.append(literal)
        if column is not None:
            value = column_text(record, column, texts, joined=joined or literal.endswith('"'))
            if not blank_ok and (not value or value.isspace()):
                raise Refused("empty_output", f"column {column!r} is empty")
            filled.append(value)
    return "".join(filled)


def lookup(record: Mapping[str, Any], column: str) -> Any:
    """The value of `column`, or of a dotted path into objects; `ABSENT` where it is missing."""
    if column in record:
        return record[column]
    value: Any = record
    for key in column.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return ABSENT
        value = value[key]
    return value


def column_text(record: Mapping[str, Any], column: str, texts: Collection[str] = (), *, joined: bool = False) -> str:
    """The text of a column, or of a dotted path; objects and arrays as JSON. In the columns `texts` only strings are
    text: what is none there, or missing, is refused. `joined`: the plain items of an array are joined by ", ".
    """
    value, where = lookup(record, column), f"column {column!r}"
    if value is ABSENT:
        raise Refused("missing_field", f"no {where}")
    if isinstance(value, dict | list) and column not in texts:
        if joined and isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
            return ", ".join(as_text(item, where) for item in value)
        return json_text(value, where)
    return as_text(value, where, strings_only=column in texts)


def fields(record: Record, guess: FormatGuess, config: PrepareConfig) -> draft.Parsed:
    """Any columns, put into the templates of the user turn and the answer. Columns of the answer stay in `meta` too:
    they are the fields of a structured answer.
    """
    inputs, outputs = template_columns(config.input or ""), template_columns(config.output or "")
    prompt = fill(config.input or "", record, texts=guess.texts, blank_ok=True)
    for column in outputs:
        draft.refuse_text(lookup(record, column), column, guess)
    labels = config.task == "classification" or config.labels is not None
    answer = fill(config.output or "", record, texts=guess.texts, blank_ok=False, joined=labels)
    if inputs and all(not text or text.isspace() for text in (column_text(record, name) for name in inputs)):
        raise Refused("empty_input", f"no text in {', '.join(map(repr, inputs))}")
    # a composed answer, or an object, may well have `null` or an error in it
    as_logged = config.output == "{" + "".join(outputs) + "}" and not guess.objects & set(outputs)
    parsed = draft.checked(draft.Draft([user(prompt), assistant(answer)]), record, guess, config, errors=as_logged)
    return replace(parsed, used=frozenset(inputs) - frozenset(outputs))


FIELDS = draft.Format("fields", "columns that the templates name", fields)
