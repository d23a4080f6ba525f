"""Two answers to one prompt, of which people prefer one."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from tuneloop.core.units import counted
from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.conversation import conversation, find_conversation, is_data, turn_keys
from tuneloop.data.formats.draft import Format, Parsed, prompt_turns, read_number, required, score_of, system_turn
from tuneloop.data.formats.sample import BESIDES, HISTORY, SYSTEM, TOOLS, FormatGuess, Record, RecordSample, mostly
from tuneloop.data.formats.turns import PLAIN_KEYS, Refused, TurnKeys, as_text, assistant, ordered, read_turns, user
from tuneloop.records.rows import Message

RANKED = (
    ("chosen", "rejected"), ("response_j", "response_k"), ("chosen_response", "rejected_response"),
    ("preferred", "dispreferred"), ("accepted", "rejected"), ("better", "worse"),
)  # fmt: skip
CANDIDATES = ("completions", "responses", "answers", "candidates", "outputs", "output")
_SHAPE = "chosen and rejected (or a list of two completions), and a prompt"


def preference(record: Record, guess: FormatGuess, config: PrepareConfig) -> Parsed:
    """Two answers to one prompt: the conversation ends with the better one, the other is in `extra`. Besides all that
    `ordered` refuses, equal answers and answers to different prompts raise `Refused`.
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
        prompt = prompt_turns(record, column, guess, repairs)
    else:
        prompt = system_turn(record, guess)
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
        return required(record, columns["chosen"], guess), required(record, columns["rejected"], guess)
    column = columns["answers"]
    answers = required(record, column, guess)
    if not isinstance(answers, list) or len(answers) < 2:
        raise Refused("wrong_type", f"column {column!r} is no array of two answers")
    scores = record.get(columns.get("scores", "")) or [score_of(answer) for answer in answers]
    if not isinstance(scores, list) or len(scores) != len(answers):
        raise Refused("wrong_type", f"there are not as many scores as answers in column {column!r}")
    numbers = [number for number in map(read_number, scores) if number is not None]
    if numbers and len(numbers) < len(answers):
        raise Refused("wrong_type", f"some answers in column {column!r} have no score")
    texts = []
    for answer in answers:
        names = ("text", "response", "completion", "answer", "content", "output")
        if isinstance(answer, dict) and not {"role", "from"} & answer.keys():  # the text, in an object with its score
            answer = next((answer[name] for name in names if isinstance(answer.get(name), str)), answer)
        texts.append(answer)
    if not numbers:
        if len(answers) > 2:
            raise Refused("no_preference", f"{counted(len(answers), 'answer')} in column {column!r} without scores")
        return texts[0], texts[1]
    best, worst = max(numbers), min(numbers)
    if best == worst:
        raise Refused("no_preference", "both answers have the same score")
    return texts[numbers.index(best)], texts[numbers.index(worst)]


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
        turns = [assistant(text)]
        if "\n\nHuman:" in text:  # with `Assistant:`, as in Anthropic's HH-RLHF
            _, *pieces = re.split(r"\n\n(Human|Assistant):", "\n\n" + text.strip())
            turn_of = {"Human": user, "Assistant": assistant}
            turns = [turn_of[name](piece.strip()) for name, piece in zip(pieces[::2], pieces[1::2], strict=True)]
    first = next((turn for turn in turns if turn["role"] != "system"), None)
    if first is not None and first["role"] == "user":  # the whole conversation
        return [*(turn for turn in prompt if turn["role"] == "system" and turns[0]["role"] != "system"), *turns]
    return [*({**turn} for turn in prompt), *turns]  # type: ignore[list-item]


def _find_preference(sample: RecordSample, config: PrepareConfig) -> FormatGuess | None:
    base = _find_prompt(sample)
    for pair in RANKED:
        if not sample.is_usual(*pair):
            continue
        better = sample.of(pair[0])
        if base is None and not mostly(better, lambda v: isinstance(v, list) or "\n\nHuman:" in str(v)):
            continue
        columns, keys = base or ({}, None)
        turns = turn_keys([v if isinstance(v, list) else [v] for v in better])
        columns = columns | dict(zip(("chosen", "rejected"), pair, strict=True)) | sample.further(SYSTEM, TOOLS)
        return FormatGuess("preference", columns, sample.seen(pair), keys=keys or turns or PLAIN_KEYS)
    for column in CANDIDATES if base else ():
        scores = sample.first(("scores", "ratings"))
        if sample.is_usual(column) and sample.mostly(column, functools.partial(_is_ranking, scored=scores is not None)):
            columns = {**base[0], "answers": column, **({"scores": scores} if scores else {})}  # type: ignore[index]
            how = "answers with scores" if scores else "answers, the better one first or with the higher score"
            return FormatGuess("preference", columns, sample.seen([column], f" as a list of {how}"))
    return None


def _find_prompt(sample: RecordSample) -> tuple[dict[str, str], TurnKeys | None] | None:
    if conversation := find_conversation(sample):
        return conversation.columns, conversation.keys
    for name in ("instruction", "prompt", "question", "query", "input", "user", "text"):
        if sample.is_usual(name) and not sample.mostly(name, is_data):
            columns = {"prompt": name}
            if name in ("instruction", "question", "query") and (input_ := sample.first(BESIDES)):
                columns["input"] = input_
            return columns | sample.further(SYSTEM, HISTORY), None
    return None


def _is_ranking(value: Any, scored: bool) -> bool:
    if not isinstance(value, list) or len(value) < 2:
        return False
    if all(isinstance(item, dict) for item in value):
        return scored or len(value) == 2 or all(score_of(item) is not None for item in value)
    return all(isinstance(item, str) for item in value) and (scored or len(value) == 2)


FORMAT = Format("preference", _SHAPE, preference, _find_preference)
