"""A prompt and its answer: instruction and output, or other pairs of names, with a rating, or by templates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.conversation import conversation, is_data
from tuneloop.data.formats.draft import (
    Draft,
    Format,
    Parsed,
    answer_of,
    checked,
    checked_parser,
    prompt_turns,
    refuse_text,
)
from tuneloop.data.formats.ratings import opinion, read_thumb, scale_of
from tuneloop.data.formats.sample import BESIDES, HISTORY, NEARLY, SYSTEM, FormatGuess, Record, RecordSample, mostly
from tuneloop.data.formats.templates import column_text, fill, lookup, template_columns
from tuneloop.data.formats.text_label import find_text_label
from tuneloop.data.formats.turns import Refused, assistant, read_tools, read_turns, user

TEXT_SUMMARY = ("text", "summary")
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("prompt", "output"),
    ("question", "answer"), ("question", "response"), ("input", "output"), ("query", "response"),
    ("query", "answer"), ("instruction", "response"), ("instruction", "completion"), ("instruction", "answer"),
    ("input", "response"), ("user", "assistant"), ("human", "assistant"), ("problem", "solution"),
    ("dialogue", "summary"), ("document", "summary"), ("article", "summary"), ("article", "highlights"), TEXT_SUMMARY,
)  # fmt: skip


def alpaca(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """instruction, input, output, and system and history (pairs of earlier turns) where present."""
    columns = guess.columns
    turns = prompt_turns(record, columns["instruction"], guess)
    return Draft([*turns, assistant(answer_of(record, columns["output"], guess))])


def prompt_completion(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """A prompt and its answer, each as text or as turns (`role`, `content`)."""
    columns = guess.columns
    repairs: list[dict[str, Any]] = []
    turns = prompt_turns(record, columns["prompt"], guess, repairs)
    completion = record.get(columns["completion"])
    if isinstance(completion, list) and columns["completion"] not in guess.objects:
        turns += read_turns(completion, guess.keys, repairs)
    else:
        turns.append(assistant(answer_of(record, columns["completion"], guess)))
    tools = record.get("tools")
    return Draft(turns, repairs, read_tools(tools) if tools is not None else [])


def _find_alpaca(sample: RecordSample, config: PrepareConfig) -> FormatGuess | None:
    """instruction and output; other names of the output count where there is an input, or on request."""
    input_ = sample.first(BESIDES)
    outputs = (
        ("output", "response", "completion", "answer")
        if input_ or config.format in ("alpaca", "thumbs")
        else ("output",)
    )
    output = next((name for name in outputs if sample.is_usual("instruction", name)), None)
    if output is None:
        return None
    columns = {"instruction": "instruction", **({"input": input_} if input_ else {}), "output": output}
    columns |= sample.further(SYSTEM, HISTORY)
    return FormatGuess("alpaca", columns, sample.seen(["instruction", output]))


def _find_pair(sample: RecordSample, config: PrepareConfig) -> FormatGuess | None:
    for pair in PAIRS:
        if pair == TEXT_SUMMARY and config.format == "auto" and find_text_label(sample, config):
            continue  # a text with its class and a summary, as a ticket has them: the class is more often wanted
        data = [column for column in pair if sample.mostly(column, is_data)]
        # not an object in "response": that of an API, as it was logged
        if sample.is_usual(*pair) and data in ([], [pair[1]]) and data != ["response"]:
            columns = dict(zip(("prompt", "completion"), pair, strict=True))
            if pair[0] in ("question", "query", "instruction") and (input_ := sample.first(BESIDES)) not in (
                None,
                *pair,
            ):
                columns["input"] = str(input_)
            return FormatGuess("prompt_completion", columns | sample.further(SYSTEM, HISTORY), sample.seen(pair))
    return None


ALPACA = Format("alpaca", "instruction and output", checked_parser(alpaca), _find_alpaca, rated=True)
PAIR = Format(
    "prompt_completion",
    "prompt and completion, or other names for them",
    checked_parser(prompt_completion),
    _find_pair,
    rated=True,
)


THUMB_NAMES = (
    "kto_tag", "thumb", "thumbs", "thumbs_up", "thumb_up", "feedback", "user_feedback", "human_feedback", "vote",
    "liked", "is_liked", "reaction", "rating", "user_rating", "stars", "label",
)  # fmt: skip


def thumbs(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """A conversation, or a prompt and its answer, with a rating."""
    base = conversation if "turns" in guess.columns else alpaca if "instruction" in guess.columns else prompt_completion
    return base(record, guess, config)


def with_thumbs(guess: FormatGuess, sample: RecordSample, wanted: str) -> FormatGuess | None:
    """A guess with the column of thumbs or ratings, if there is one; None where it is needed and is not there."""
    for name in THUMB_NAMES:
        values = [value for value in map(opinion, sample.of(name)) if value is not None]
        if not values or name in guess.columns.values():
            continue
        scale = scale_of(values, name)
        if not mostly(values, lambda value, scale=scale: read_thumb(value, scale) is not None, NEARLY):  # type: ignore[misc]
            continue
        columns = {**guess.columns, "thumb": name}
        if guess.name == "logs" or (2 * len(values) < len(sample) and wanted != "thumbs"):
            return replace(guess, columns=columns, scale=scale)
        reason = f"{guess.reason}; {name!r} says which answers were good"
        return replace(guess, name="thumbs", columns=columns, reason=reason, scale=scale)
    return None if wanted == "thumbs" else guess


THUMBS = Format(
    "thumbs", "a conversation, or prompt and completion, and a column label, feedback or rating", checked_parser(thumbs)
)


def fields(record: Record, guess: FormatGuess, config: PrepareConfig) -> Parsed:
    """Any columns, put into the templates of the user turn and the answer.

    Columns of the answer stay in `meta` too: they are the fields of a structured answer.
    """
    inputs, outputs = template_columns(config.input or ""), template_columns(config.output or "")
    prompt = fill(config.input or "", record, texts=guess.texts, blank_ok=True)
    for column in outputs:
        refuse_text(lookup(record, column), column, guess)
    labels = config.task == "classification" or config.labels is not None
    answer = fill(config.output or "", record, texts=guess.texts, blank_ok=False, joined=labels)
    if inputs and all(not text or text.isspace() for text in (column_text(record, name) for name in inputs)):
        raise Refused("empty_input", f"no text in {', '.join(map(repr, inputs))}")
    # a composed answer, or an object, may well have `null` or an error in it
    as_logged = config.output == "{" + "".join(outputs) + "}" and not guess.objects & set(outputs)
    parsed = checked(Draft([user(prompt), assistant(answer)]), record, guess, config, errors=as_logged)
    return replace(parsed, used=frozenset(inputs) - frozenset(outputs))


FIELDS = Format("fields", "columns that the templates name", fields)
