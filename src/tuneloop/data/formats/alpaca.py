"""Instruction and output."""

from __future__ import annotations

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.draft import Draft, checked_parser, filled, prompt_turns
from tuneloop.data.formats.registry import Format
from tuneloop.data.formats.sample import (
    BESIDES,
    HISTORY,
    SYSTEM,
    FormatGuess,
    Record,
    Sample,
    alongside,
    first_present,
    is_usual,
    seen,
)
from tuneloop.data.formats.turns import assistant


def alpaca(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """instruction, input, output, and system and history (pairs of earlier turns) where present."""
    columns = guess.columns
    turns = prompt_turns(record, columns["instruction"], guess)
    return Draft([*turns, assistant(filled(record, columns["output"], "empty_output", guess))])


def _find_alpaca(sample: Sample, config: PrepareConfig) -> FormatGuess | None:
    """instruction and output; other names of the output count where there is an input, or on request."""
    input_ = first_present(sample, BESIDES)
    outputs = (
        ("output", "response", "completion", "answer")
        if input_ or config.format in ("alpaca", "thumbs")
        else ("output",)
    )
    output = next((name for name in outputs if is_usual(sample, "instruction", name)), None)
    if output is None:
        return None
    columns = {"instruction": "instruction", **({"input": input_} if input_ else {}), "output": output}
    columns |= alongside(sample, SYSTEM, HISTORY)
    return FormatGuess("alpaca", columns, seen(sample, ["instruction", output]))


FORMAT = Format("alpaca", "instruction and output", checked_parser(alpaca), _find_alpaca, rated=True)
