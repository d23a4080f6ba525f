"""Records of many shapes to conversations: which shape they have, by what is configured, by a sample, or by what
LLaMA-Factory's `dataset_info.json` says.

A `Format` recognises a sample of records and makes a conversation of each, or raises `Refused`. All share the checks in
`turns.ordered`: contents are strings, roles take turns, the last turn is an answer.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tuneloop.core.errors import UserError, did_you_mean, in_shell
from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.draft import (
    FORMATS,
    NEARLY,
    TEXT_NAMES,
    Draft,
    Format,
    FormatGuess,
    Parsed,
    Record,
    RecordSample,
    Rejection,
    add_format,
    as_value,
    checked_parser,
    filled,
    is_about,
    mostly,
)
from tuneloop.data.formats.exchanges import LOGS, with_whole_exchange
from tuneloop.data.formats.shapes import (
    ABOUT_NAMES,
    ABSENT,
    ALPACA,
    CLASSIFY,
    CLASSIFY_MANY,
    FIELDS,
    LABEL_NAMES,
    MESSAGES,
    NO_LABELS,
    PAIR,
    PAIRS,
    PREFERENCE,
    RANKED,
    SHAREGPT,
    SHAREGPT_ROLES,
    TEXT,
    TEXT_LABEL,
    THUMBS,
    TURN_COLUMNS,
    answer_columns,
    is_data,
    lookup,
    repeat_items,
    template_columns,
    with_thumbs,
)
from tuneloop.data.formats.turns import PLAIN_KEYS, ROLES, Refused, TurnKeys, error_answer, with_whole_contents
from tuneloop.data.sources.parse import json_type

__all__ = [
    "CLASSIFY", "CLASSIFY_MANY", "FORMATS", "NO_LABELS", "ROLES", "TEXT_NAMES", "Draft", "Format", "FormatGuess",
    "Parsed", "Refused", "Rejection", "add_format", "check_columns", "checked_parser", "detect", "error_answer",
    "filled", "guess_from_info", "parse_record", "template_columns", "with_whole_texts",
]  # fmt: skip
IN_TURNS = ("turns", "prompt", "completion", "chosen", "rejected", "answers")

_OURS = (PREFERENCE, LOGS, SHAREGPT, MESSAGES, ALPACA, PAIR, TEXT_LABEL, TEXT, THUMBS, FIELDS)
FORMATS.update((form.name, form) for form in _OURS)


def parse_record(value: Any, guess: FormatGuess, config: PrepareConfig) -> Parsed | Rejection:
    """A record as a conversation in the OpenAI form, or why it can't be one. Total: no JSON value raises."""
    try:
        if not isinstance(value, dict):
            raise Refused("wrong_type", f"a record must be an object, not {json_type(value)}")
        return FORMATS[guess.name].parse(value, guess, config)
    except Refused as refused:
        return Rejection(refused.reason, refused.detail)
    except RecursionError:
        return Rejection("wrong_type", "nested too deeply")


def with_whole_texts(value: dict[str, Any], guess: FormatGuess) -> dict[str, Any]:
    """A record with the texts put together that are in pieces (streams, contents in parts), else the record itself. To
    be done before texts are looked at, since a value may be cut between two pieces. Total, as `parse_record` is.
    """
    columns = guess.columns
    try:
        if guess.name == "logs" and {"request", "response"} <= columns.keys():
            return with_whole_exchange(value, columns["request"], columns["response"])
        for role, column in columns.items():
            cell = value.get(column) if role in IN_TURNS else None
            turns = [cell] if type(cell) is dict else cell
            if type(turns) is list and (whole := with_whole_contents(turns, guess.keys.content)) is not turns:
                value = {**value, column: whole if turns is cell else whole[0]}
    except RecursionError:
        pass
    return value


SENTENCE = 4  # words of a column's name from which on it is taken for a value: the file has no header line
MOST_KEYS = 30  # of objects that an instruction names
MOST_ANSWERS, LEAST_ANSWERS = 1000, 20  # that are looked at for labels, and below which they show none
LONGEST_LABEL = 60  # characters
_ANSWERED = ("messages", "sharegpt", "logs", "alpaca", "prompt_completion", "fields")  # formats with one answer
MOST_LABELS = 0.3  # distinct values of a column that may be a label, as a share of the records
# By LLaMA-Factory's name of a column its role here.
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_FURTHER = {name: name for name in ("system", "tools", "history", "chosen", "rejected")} | {"kto_tag": "thumb"}


def detect(records: Sequence[Record], config: PrepareConfig, entry: Mapping[str, Any] | None = None) -> FormatGuess:
    """The format of the records, from what is configured and what at least half of them show; if none fits, a
    UserError.

    `entry`: what a `dataset_info.json` says; it counts where nothing is configured and its columns are there.
    """
    sample, choice, guess = RecordSample(records), _format_of(config), None
    if choice == "fields":
        columns = {name: ", ".join(template_columns(text)) for name, text in templates_of(config)}
        names = [column for _, text in templates_of(config) for column in template_columns(text)]
        guess = FormatGuess("fields", columns, f"templates: from {columns['input']} to {columns['output']}")
    else:
        if entry is not None and choice == "auto":
            with suppress(UserError):  # an entry that can't be read, or tells of other columns, is never required
                guess = guess_from_info(entry)
            needed = ("turns", "instruction", "output", "chosen", "rejected", "answers", "text")
            if guess and not sample.is_usual(*(name for role, name in guess.columns.items() if role in needed)):
                guess = None
        guess = guess or _find_in_any_case(sample, config, choice)
        if guess is None:
            raise _no_format(sample, config, choice)
        names = list(guess.columns.values())
        guess = replace(guess, reason=guess.reason + _notes(sample, guess, choice))
    # A text in a column with objects or arrays in nearly all records is a mistake.
    objects = (name for name in names if mostly((as_value(lookup(r, name)) for r in sample), is_data, NEARLY))
    guess = replace(guess, texts=sample.text_columns(names), objects=frozenset(objects))
    if not (labels := _labels_in_answers(sample, guess, config)):
        return guess
    note = f"; their answers are {len(labels)} labels, so answers are judged as such (data.task=generation: as texts)"
    return replace(guess, labelled=True, reason=guess.reason + note)


def _labels_in_answers(sample: RecordSample, guess: FormatGuess, config: PrepareConfig) -> set[str]:
    """The different answers of a sample, where by their looks they are labels: at least three records each, none of
    them long, JSON or a number, and one answer a record; else none."""
    if config.task != "auto" or config.labels is not None or guess.name not in _ANSWERED:
        return set()
    answers = []
    for record in sample[:: 1 + len(sample) // MOST_ANSWERS]:
        with suppress(Refused, RecursionError):
            turns = FORMATS[guess.name].parse(record, guess, config).messages
            if sum(turn["role"] == "assistant" for turn in turns) > 1 or turns[-1].get("tool_calls"):
                return set()
            answers.append(turns[-1]["content"].strip())
    labels = set(answers)
    short = all(len(label) <= LONGEST_LABEL and "\n" not in label and label[:1] not in "{[" for label in labels)
    few = len(answers) >= LEAST_ANSWERS and 2 <= len(labels) <= len(answers) / 3
    return labels if few and short and any(map(_is_words, labels)) else set()


def _notes(sample: RecordSample, guess: FormatGuess, choice: str) -> str:
    """Notes on what was configured, on columns of one name, and on columns that look like an answer and are none."""
    note, used = ", as configured" if choice != "auto" else "", list(dict.fromkeys(guess.columns.values()))
    twins = [f"{name!r}, not {f'{name}_2'!r}" for name in used if f"{name}_2" in sample.columns]
    if twins:  # readers of tables number columns of one name
        note += f"; taken is {', '.join(twins)} (columns of one name are numbered)"
    if guess.name not in ("text", "text_label", "alpaca", "prompt_completion", "messages", "sharegpt"):
        return note
    rest = [name for name in answer_columns(sample) if name not in used]
    if guess.name == "text":
        others = [name for name in sample.columns if name not in used and not is_about(name, ABOUT_NAMES)]
        rest += [name for name in others if sample.mostly(name, lambda v: isinstance(v, int | float))]
    return note + (f"; not used: {', '.join(map(repr, rest))}" if rest else "")


def _format_of(config: PrepareConfig) -> str:
    if config.format not in ("auto", *FORMATS):
        step = did_you_mean(config.format, ("auto", *FORMATS), f"known: auto, {', '.join(FORMATS)}")
        raise UserError(f"Unknown format: {config.format}", where="data.format", next_step=step)
    if config.input is not None or config.output is not None:
        if config.format not in ("auto", "fields"):
            message = f"Templates (data.input, data.output) don't go with format={config.format}"
            raise UserError(message, next_step="leave out data.format, or the templates")
        if config.input is None or config.output is None:
            missing = "input" if config.input is None else "output"
            raise UserError(f"Missing key 'data.{missing}'", next_step=f"set data.{missing}='...{{column}}...' as well")
        return "fields"
    if config.format == "fields":
        step = "set data.input='{column}' and data.output='{column}'"
        raise UserError("format=fields needs templates", next_step=step)
    if config.text is None and config.label is None:
        return config.format
    if config.format == "text" and config.label is None:
        return "text"
    if config.format not in ("auto", "text_label"):
        message = f"data.text and data.label don't go with format={config.format}"
        raise UserError(message, next_step="leave out data.format, or data.text and data.label")
    return "text_label"


def _find_in_any_case(sample: RecordSample, config: PrepareConfig, choice: str) -> FormatGuess | None:
    names = {name.casefold(): name for name in sample.columns}
    plain = all(low == name for low, name in names.items()) or len(names) < len(sample.columns)
    if config.text or config.label or plain:
        return _find(sample, config, choice)
    low = RecordSample({name.casefold(): value for name, value in record.items()} for record in sample)
    if (guess := _find(low, config, choice)) is None:
        return None
    columns = {role: names[column] for role, column in guess.columns.items()}
    reason = re.sub(r"'([^']+)'", lambda match: repr(names.get(match[1], match[1])), guess.reason)
    return replace(guess, columns=columns, reason=reason)


def _find(sample: RecordSample, config: PrepareConfig, choice: str) -> FormatGuess | None:
    present = {name.casefold() for name in sample.columns}
    for form in FORMATS.values():
        if not all(map(present.intersection, form.needs)):
            continue
        if form.find and (choice in (form.name, "auto") or (choice == "thumbs" and form.rated)):
            guess = form.find(sample, config)
            if guess and choice in ("auto", "thumbs") and (form.rated or form.name == "logs"):
                guess = with_thumbs(guess, sample, choice)
            if guess:
                return guess
    return None


def _is_words(value: Any) -> bool:
    return isinstance(value, str) and any(letter.isalpha() for letter in value)


def _likely_settings(sample: RecordSample) -> list[str]:
    """Settings for columns whose values look like a text and its label, or a text and an answer; empty where none do.
    Objects and arrays are answers, and come first. Of texts that are equally long the last one is taken: what people
    wrote tends to follow what was made of it.
    """
    answers = answer_columns(sample)
    columns = [name for name in sample.columns if name not in answers and sample.nearly(name, _is_words)]
    texts = {name: [str(value) for value in sample.of(name) if value is not None] for name in columns}
    distinct = {name: len(set(values)) for name, values in texts.items()}
    labels = [name for name in columns if 2 <= distinct[name] <= MOST_LABELS * len(texts[name])]
    length = {name: sum(len(value.split()) for value in texts[name]) / len(texts[name]) for name in columns}
    prose = [name for name in columns if distinct[name] > 0.5 * len(texts[name]) and length[name] >= 2]
    if columns and answers:
        text = max(columns, key=lambda name: sum(map(len, texts[name])) / len(texts[name]))
        prompts = [name for name in answers if name.casefold() in {pair[0] for pair in PAIRS}]
        if prompts and prose:
            return [f"data.input={{{prompts[0]}}}", f"data.output={{{text}}}"]
        if len(answers) == 1 and repeat_items(sample, answers[0]):
            return [f"data.text={text}", f"data.label={answers[0]}"]
        return _extraction(sample, text, answers)
    if labels and prose:
        longest = max(length[name] for name in prose)
        text = [name for name in prose if length[name] >= 0.9 * longest][-1]
        return [f"data.text={text}", f"data.label={min(labels, key=distinct.__getitem__)}"]
    if len(prose) == len(columns) == 2:
        return [f"data.input={{{prose[0]}}}", f"data.output={{{prose[1]}}}"]
    return []


def _extraction(sample: RecordSample, text: str, answers: Sequence[str]) -> list[str]:
    output, values = "{" + answers[0] + "}", [as_value(value) for value in sample.of(answers[0])]
    if len(answers) > 1:
        output = "{{" + ",".join(f"{json.dumps(name, ensure_ascii=False)}:{{{name}}}" for name in answers) + "}}"
        values = [{name: as_value(record.get(name)) for name in answers} for record in sample]
    lists = 2 * sum(isinstance(value, list) for value in values) > len(values)
    keys = _keys(values)
    keys = keys and f"the key{'s' if ',' in keys else ''} {keys}"
    description = f"{'a list of objects' if lists else 'an object'} with {keys}" if keys else f"a list: {answers[0]}"
    instruction = f"Extract from the text, as JSON, {description}. Answer with the JSON only."
    return [f"data.instruction={instruction}", f"data.input={{{text}}}", f"data.output={output}"]


def _keys(values: Iterable[Any], depth: int = 3) -> str:
    """The keys of objects, those of the objects inside them in brackets: `name, address (city, street)`."""
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    inner: dict[str, list[Any]] = {}
    for item in items:
        for key, value in item.items() if isinstance(item, dict) and depth else ():
            if key.isprintable():
                inner.setdefault(key, []).append(value)
    fields = [(key, _keys(key_values, depth - 1)) for key, key_values in list(inner.items())[:MOST_KEYS]]
    return ", ".join(f"{key} ({keys})" if keys else key for key, keys in fields)


def _no_format(sample: RecordSample, config: PrepareConfig, choice: str) -> UserError:
    columns = list(sample.columns)
    names = ", ".join(repr(name) for name in columns[:12])
    step = (
        "name the columns with data.text=COLUMN data.label=COLUMN, or write templates: "
        "data.input='{COLUMN}' data.output='{COLUMN}'"
    )
    if choice == "auto":
        usual = {*TURN_COLUMNS, *TEXT_NAMES, *LABEL_NAMES, *(name for pair in (*PAIRS, *RANKED) for name in pair)}
        folded = {name.casefold(): name for name in columns}
        likely = _likely_settings(sample)
        if config.instruction is not None:
            likely = [setting for setting in likely if "instruction" not in setting.split("=")[0]]
        if likely:
            step = f"by their values, this may fit: {in_shell(likely)}; else {step}"
        for name in sorted(folded.keys() - usual):
            numbers = not sample.mostly(folded[name], _is_words)
            if not numbers and (near := difflib.get_close_matches(name, usual, 1, 0.85)):
                step = f"is {folded[name]!r} meant to be {near[0]!r}? Rename it, or " + step
                break
        if any(len(name.split()) >= SENTENCE for name in columns):
            step = "is there no header line? Write one first, as in text,label; else " + step
            likely = []
        message = "Can't tell the format of the records"
        if answers := answer_columns(sample) if likely else []:
            message += (
                f": {' and '.join(map(repr, answers))} {'looks' if len(answers) == 1 else 'look'} like the answer"
            )
        return UserError(message, where=f"columns: {names or '(none)'}", next_step=step, settings=likely)
    other = _find(sample, config, "auto") if choice != "text_label" else None
    if other is not None:
        step = f"they look like {other.name} ({other.reason}): leave out data.format, or " + step
    message = f"The records don't look like {choice}, which has {FORMATS[choice].shape}"
    return UserError(message, where=f"columns: {names or '(none)'}", next_step=step)


def check_columns(records: Sequence[Record], config: PrepareConfig) -> None:
    """Refuse a configured column that no record has. Raises UserError: with the nearest column."""
    configured = {f"data.{name}": template_columns(text) for name, text in templates_of(config)}
    single = {"data.text": config.text, "data.label": config.label, "data.split.stratify": config.split.stratify}
    configured |= {key: [column] for key, column in single.items() if column is not None}
    sample_columns = RecordSample(records).columns
    for key, columns in configured.items():
        for column in columns:
            inside = any(lookup(record, column) not in (None, ABSENT) for record in records)
            if column not in sample_columns and not inside:
                others = f"columns: {', '.join(list(sample_columns)[:12])}"
                step = did_you_mean(column, sample_columns, others, shown=repr)
                raise UserError(f"No record has the column {column!r}", where=key, next_step=step)


def templates_of(config: PrepareConfig) -> list[tuple[str, str]]:
    return [(k, v) for k, v in (("input", config.input), ("output", config.output)) if v is not None]


def guess_from_info(entry: Mapping[str, Any]) -> FormatGuess:
    """The format that an entry of LLaMA-Factory's `dataset_info.json` describes.

    Read are `formatting` (alpaca, sharegpt, openai), `columns`, `tags` and `ranking`; its defaults are kept: alpaca,
    with columns `instruction`, `input`, `output`; sharegpt with `conversations`, `from`, `value`. A formatting that is
    not known, or columns of images, audio or video, are UserErrors.
    """
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    formatting = entry.get("formatting", "alpaca")
    objects = isinstance(columns, Mapping) and isinstance(tags, Mapping)
    if not objects or formatting not in ("alpaca", "sharegpt", "openai"):
        message = f"Can't read the entry with formatting {formatting!r}"
        step = "formatting is alpaca, sharegpt or openai; columns and tags are objects"
        raise UserError(message, where="dataset_info.json", next_step=step)
    if media := [name for name in ("images", "videos", "audios") if columns.get(name)]:
        raise UserError(f"{media[0]} can't be trained on", where="dataset_info.json", next_step="give text data only")
    roles = _named(columns, _FURTHER)
    if formatting == "alpaca":
        names = _named(columns, _ALPACA)
        if names.keys() == {"instruction"} and "chosen" not in roles:
            return FormatGuess("text", {"text": names["instruction"]}, "dataset_info.json: one column of text")
        roles = (names or {name: name for name in ("instruction", "input", "output")}) | roles
        if "chosen" in roles:
            roles.pop("output", None)
        if "instruction" not in roles or not {"output", "chosen"} & roles.keys():
            step = "name both in columns: prompt and response (or chosen and rejected)"
            raise UserError("The entry names no prompt or no response", where="dataset_info.json", next_step=step)
        name, keys = "alpaca", PLAIN_KEYS
    else:
        name, usual = ("messages", "messages") if formatting == "openai" else ("sharegpt", "conversations")
        roles, keys = {"turns": str(columns.get("messages") or usual)} | roles, _tagged(tags, name)
    if entry.get("ranking") or "chosen" in roles:
        if "chosen" not in roles and "output" in roles:  # older files: the output is a list, the better one first
            roles["answers"] = roles.pop("output")
        else:
            roles.setdefault("chosen", "chosen")
            roles.setdefault("rejected", "rejected")
        name = "preference"
    elif "thumb" in roles:
        name = "thumbs"
    return FormatGuess(name, roles, f"dataset_info.json: {formatting}", keys=keys)


def _named(columns: Mapping[str, Any], roles: Mapping[str, str]) -> dict[str, str]:
    return {role: str(columns[name]) for name, role in roles.items() if columns.get(name)}


def _tagged(tags: Mapping[str, Any], name: str) -> TurnKeys:
    ours = {"user": "user", "assistant": "assistant", "system": "system"}
    ours |= {"observation": "tool", "function": "function_call"}
    spellings = {tag: str(tags[f"{tag}_tag"]) for tag in ours if tags.get(f"{tag}_tag")}
    roles = {spelling.casefold(): ours[tag] for tag, spelling in spellings.items()}
    role, content = ("role", "content") if name == "messages" else ("from", "value")
    usual = frozenset(spellings.values()) | (frozenset() if name == "messages" else SHAREGPT_ROLES)
    role, content = str(tags.get("role_tag") or role), str(tags.get("content_tag") or content)
    roles = {spelling: role for spelling, role in roles.items() if ROLES.get(spelling) != role}
    return TurnKeys(role, content, roles, usual, separate_calls=name == "sharegpt")
