"""A prompt and its answer: instruction and output, or one of many other pairs of names."""

from __future__ import annotations

from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.conversation import is_data
from tuneloop.data.formats.draft import Draft, answer_of, checked_parser, prompt_turns
from tuneloop.data.formats.registry import Format
from tuneloop.data.formats.sample import BESIDES, HISTORY, SYSTEM, FormatGuess, Record, Sample
from tuneloop.data.formats.text_label import find_text_label
from tuneloop.data.formats.turns import assistant, read_tools, read_turns

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


def _find_alpaca(sample: Sample, config: PrepareConfig) -> FormatGuess | None:
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
    columns |= sample.alongside(SYSTEM, HISTORY)
    return FormatGuess("alpaca", columns, sample.seen(["instruction", output]))


def _find_pair(sample: Sample, config: PrepareConfig) -> FormatGuess | None:
    for pair in PAIRS:
        if pair == TEXT_SUMMARY and config.format == "auto" and find_text_label(sample, config):
            continue  # a text with its class and a summary, as a ticket has them: the class is more often wanted
        data = [column for column in pair if sample.mostly(column, is_data)]
        if (
            sample.is_usual(*pair) and data in ([], [pair[1]]) and data != ["response"]
        ):  # that of an API, as it was logged
            columns = dict(zip(("prompt", "completion"), pair, strict=True))
            if pair[0] in ("question", "query", "instruction") and (input_ := sample.first(BESIDES)) not in (
                None,
                *pair,
            ):
                columns["input"] = str(input_)
            return FormatGuess("prompt_completion", columns | sample.alongside(SYSTEM, HISTORY), sample.seen(pair))
    return None


ALPACA = Format("alpaca", "instruction and output", checked_parser(alpaca), _find_alpaca, rated=True)
PAIR = Format(
    "prompt_completion",
    "prompt and completion, or other names for them",
    checked_parser(prompt_completion),
    _find_pair,
    rated=True,
)
