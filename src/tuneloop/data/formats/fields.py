"""Any columns, put into templates (`data.input`, `data.output`)."""

from __future__ import annotations

from dataclasses import replace

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.draft import Draft, Parsed, checked, refuse_text
from tuneloop.data.formats.registry import Format
from tuneloop.data.formats.sample import FormatGuess, Record
from tuneloop.data.formats.templates import column_text, fill, lookup, template_columns
from tuneloop.data.formats.turns import Refused, assistant, user


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


FORMAT = Format("fields", "columns that the templates name", fields)
