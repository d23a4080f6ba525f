"""The shapes of records that people write: conversations, a text and its label, a prompt and its answer, preferences.

Of each how a sample shows it (`find_...`), how a record becomes a conversation, and the `Format` with both.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.units import counted
from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.draft import (
    BESIDES,
    HISTORY,
    NEARLY,
    SYSTEM,
    TEXT_NAMES,
    TOOLS,
    Draft,
    Format,
    FormatGuess,
    Parsed,
    Record,
    RecordSample,
    answer_of,
    as_value,
    check_label,
    checked,
    checked_parser,
    filled,
    is_about,
    is_scalar,
    mostly,
    prompt_turns,
    raw_rating,
    read_number,
    read_thumb,
    refuse_text,
    required,
    scale_of,
    score_of,
    system_turn,
)
from tuneloop.data.formats.turns import (
    PLAIN_KEYS,
    ROLES,
    Refused,
    TurnKeys,
    as_text,
    assistant,
    error_answer,
    from_json,
    json_text,
    ordered,
    read_tools,
    read_turns,
    short,
    user,
)
from tuneloop.data.sources.parse import json_type
from tuneloop.records.rows import Message

TURN_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
TURN_KEYS = (
    ("role", "content"), ("from", "value"), ("role", "value"), ("role", "text"), ("role", "message"),
    ("from", "content"), ("from", "text"),
    *((speaker, content) for speaker in ("speaker", "author", "sender", "type")
      for content in ("text", "content", "message", "utterance", "value")),
)  # fmt: skip
SHAREGPT_ROLES = frozenset({"human", "gpt", "observation", "function_call"})


def conversation(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """Turns with calls and tools, of whatever keys: OpenAI's `messages`, ShareGPT's `conversations`."""
    columns = guess.columns
    column = columns["turns"]
    value = record.get(column)
    if type(value) is not list:
        value = required(record, column, guess)
        turns_read = from_json(value, f"column {column!r}") if column in guess.texts else value
        if not isinstance(turns_read, list):
            raise Refused("wrong_type", f"column {column!r} is {json_type(value)}, not an array of turns")
        value = turns_read
    if not value:
        raise Refused("wrong_type", f"column {column!r} is an empty array, not one of turns")
    repairs: list[dict[str, Any]] = []
    turns = read_turns(value, guess.keys, repairs)
    system = record.get(columns.get("system", "system"))
    if system is not None and not any(turn["role"] == "system" for turn in turns):
        turns = [*system_turn(record, guess), *turns]
    tools = columns.get("tools", "tools")
    return Draft(turns, repairs, read_tools(record.get(tools), f"column {tools!r}"))


def find_conversation(sample: RecordSample) -> FormatGuess | None:
    for column in TURN_COLUMNS:
        if sample.is_usual(column):
            lists = [as_value(value) for value in sample.of(column)]
            keys = turn_keys(lists)
            if keys and mostly(lists, functools.partial(has_turns, keys=keys)):
                name = "sharegpt" if keys.role == "from" else "messages"
                reason = sample.seen([column], f" with turns of {keys.role!r} and {keys.content!r}")
                return FormatGuess(name, {"turns": column, **sample.further(TOOLS, SYSTEM)}, reason, keys=keys)
    return None


def has_turns(turns: Any, keys: TurnKeys) -> bool:
    return isinstance(turns, list) and any(isinstance(turn, dict) and keys.role in turn for turn in turns)


def turn_keys(lists: Sequence[Any]) -> TurnKeys | None:
    """How turns are written in most of some lists of them."""
    turns = [[turn for turn in some if isinstance(turn, dict)] for some in lists if isinstance(some, list)]
    shapes = Counter(frozenset(tuple(turn) for turn in some) for some in turns)  # few, whatever the number of turns
    counts = {
        pair: sum(n for shape, n in shapes.items() if any(pair[0] in keys and pair[1] in keys for keys in shape))
        for pair in TURN_KEYS
    }
    role, content = max(counts, key=lambda pair: counts[pair])
    if not counts[role, content]:
        return None
    spellings: Counter[str] = Counter()
    openings: Counter[str] = Counter()
    for some in turns:
        pairs = [(turn.get(role), turn.get(content)) for turn in some]
        spellings.update({name for name, _ in pairs if isinstance(name, str)})
        first = (pair for pair in pairs if ROLES.get(str(pair[0]).casefold()) != "system")
        name, text = next(first, (None, None))
        alone = len(pairs) == 1  # an answer alone, as in a preference, opens nothing
        if ROLES.get(str(name).casefold()) == "assistant" and isinstance(text, str) and text and not alone:
            openings[text] += 1
    roles = {name for name in spellings if name.strip().casefold() in ROLES}
    if role not in ("role", "from") and 2 * sum(spellings[name] for name in roles) < spellings.total():
        return None  # a key such as "type" has many meanings
    separate = role == "from" or any(ROLES[name.strip().casefold()] == "function_call" for name in roles)
    usual = frozenset(name for name in roles if spellings[name] > 0.02 * len(turns))
    usual |= SHAREGPT_ROLES if role == "from" else frozenset()
    greetings = frozenset(text for text, number in openings.items() if number >= max(5, 0.05 * len(turns)))
    return TurnKeys(role, content, usual=usual, separate_calls=separate, greetings=greetings)


def is_data(value: Any) -> bool:
    """An object or an array, also as JSON in a string, but no array of turns, which are a text."""
    value = as_value(value)
    return not is_scalar(value) and not (
        has_turns(value, PLAIN_KEYS)
        and any({"content", "tool_calls"} & turn.keys() for turn in value if type(turn) is dict)
    )


def _format(name: str, shape: str) -> Format:
    def find(sample: RecordSample, config: PrepareConfig) -> FormatGuess | None:
        guess = find_conversation(sample)
        return guess if guess and guess.name == name else None

    return Format(name, shape, checked_parser(conversation), find, rated=True)


SHAREGPT = _format("sharegpt", "conversations: turns with from and value")
MESSAGES = _format("messages", "messages: turns with role and content")


CLASSIFY = "Classify the text. Answer with the label only."
CLASSIFY_MANY = (
    "Classify the text. Answer with all labels that apply, in alphabetical order, separated by commas; with none where "
    "none applies."
)
NO_LABELS = "none"  # the label of a row whose list of labels is empty
LABEL_NAMES = ("label", "labels", "category", "class", "intent", "target", "queue", "topic", "sentiment", "label_text")
LABEL_TEXTS = ("{}_text", "{}_name", "{}_str", "label_text", "label_name", "class_name", "category_name")
PLACEHOLDERS = frozenset(
    {"n/a", "na", "n.a.", "#n/a", "null", "nan", "undefined", "-", "--", "?", "???", "tbd", "todo", "(blank)", "<na>"}
)
FORM_NAMES = ("list", "array", "txt", "str", "string", "names")  # how a column's values are written
ABOUT_NAMES = (
    "url", "source", "title", "subject", "lang", "language", "author", "meta", "licence", "license", "domain",
    "metadata", "attributes", "extra", "headers", "stats", "quality_signals", "embedding", "embeddings", "vector",
    "logprobs", "usage",
)  # fmt: skip


def text_label(record: Record, guess: FormatGuess, config: PrepareConfig) -> Parsed:
    """A text and its class, or its classes."""
    columns = guess.columns
    text = filled(record, columns["text"], "empty_input", guess)
    repairs: list[dict[str, Any]] = []
    extra: dict[str, Any] = {}
    if guess.many_labels:
        labels = _labels(record, columns["label"], guess, config)
        label = ", ".join(labels)
        extra["labels"] = labels
    else:
        column = columns.get("label_name") or columns["label"]
        raw = filled(record, column, "empty_output", guess)
        label = raw.strip()
        if label != raw:
            repairs.append({"kind": "trimmed", "field": column})
        _check_class(label, column, guess, config)
    instruction = config.instruction
    if instruction is None:
        instruction = CLASSIFY_MANY if guess.many_labels else CLASSIFY
    messages: list[Message] = [user(text), assistant(label)]
    if instruction and not instruction.isspace():
        messages.insert(0, {"role": "system", "content": instruction})
    return Parsed(messages, label, [], guess.used, repairs, extra)


def _check_class(label: str, column: str, guess: FormatGuess, config: PrepareConfig) -> None:
    if config.labels is not None:
        check_label(label, config.labels)
    elif len(label) < 10 and label.casefold() in PLACEHOLDERS and label not in guess.classes:
        raise Refused("empty_output", f"column {column!r} is {short(label)}, which means no label")


def _labels(record: Record, column: str, guess: FormatGuess, config: PrepareConfig) -> list[str]:
    value = as_value(required(record, column, guess))
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


def find_text_label(sample: RecordSample, config: PrepareConfig) -> FormatGuess | None:
    """Columns by their configured or usual names, else the only two, where one repeats its values."""
    columns_seen = [name for name in sample.columns if sample.is_usual(name)]
    scalars = [name for name in columns_seen if sample.mostly(name, is_scalar)]
    lists = [name for name in columns_seen if sample.mostly(name, lambda value: is_label_list(as_value(value)))]
    label = config.label or _by_name(sample, [*lists, *scalars], LABEL_NAMES)
    text = config.text or _by_name(sample, [n for n in scalars if n not in (label, *lists)], TEXT_NAMES)
    rest = [n for n in scalars if not is_about(n) and n not in (text, label)]
    rest = [n for n in rest if not sample.mostly(n, lambda value: not is_scalar(as_value(value)))]  # JSON is no label
    guessed = ""
    if not (text and label):
        if (text or label) and len(rest) == 1:
            guessed = rest[0]
            if text and not config.text and not _repeats(sample, guessed):
                return None
        elif not text and not label and len(rest) == 2 and not any(repeat_items(sample, name) for name in lists):
            text, guessed = sorted(rest, key=lambda name: -_distinct(sample, name))
            if not _repeats(sample, guessed) or _distinct(sample, text) == _distinct(sample, guessed):
                return None
        else:
            return None
        text, label = text or guessed, label or guessed
    columns = {"text": text, "label": label}
    reason = sample.seen([text, label])
    if guessed == label:
        reason += f"; {label!r} is taken for the label: it has {_distinct(sample, label):,} different values"
    elif guessed:
        reason += f"; {text!r} is taken for the text: it is the only other column"
    if label in lists:
        reason += ", lists of labels"
    if sample.nearly(label, lambda v: isinstance(v, int) and not isinstance(v, bool)):
        names = [pattern.format(label) for pattern in LABEL_TEXTS]
        if name := next((n for n in names if n in columns_seen and n not in (text, label)), None):
            columns["label_name"] = name
            reason += f"; {name!r} has the names of the labels"
    return FormatGuess(
        "text_label",
        columns,
        reason,
        many_labels=label in lists,
        classes=_placeholder_classes(sample, columns),
        guessed=(f"data.text={text}", f"data.label={label}") if guessed == label else (),
    )


def _by_name(sample: RecordSample, columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column of a usual name, else one that ends in it, as `ticket_text` and `intent_list` do."""
    low = {name.casefold(): name for name in reversed(columns)}
    if usual := next((low[name] for name in names if name in low), None):
        return usual
    for name, column in low.items():
        *before, last = re.split(r"[^a-z0-9]+", name)
        if last in FORM_NAMES and len(before) > 0 and last not in names:
            *before, last = before
            before = before or [""]
        if before and last in names and not set(before) & set(LABEL_NAMES):
            return column
    return None


def is_label_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def repeat_items(sample: RecordSample, column: str) -> bool:
    """Whether a column has lists of texts with few enough different ones for labels, and at least two."""
    values = [value for value in map(as_value, sample.of(column)) if value is not None]
    items = [item for value in values if is_label_list(value) for item in value]
    differ = any(value != values[0] for value in values)
    return differ and all(map(is_label_list, values)) and 2 <= len(set(items)) <= len(items) / 3


def _distinct(sample: RecordSample, column: str) -> int:
    return len({str(value) for value in sample.of(column) if value is not None})


def _repeats(sample: RecordSample, column: str) -> bool:
    """Whether a column has few enough different values for classes; three rows of each are the least."""
    return 3 * _distinct(sample, column) <= len(sample)


def _placeholder_classes(sample: RecordSample, columns: Mapping[str, str]) -> frozenset[str]:
    """Placeholders such as "N/A" that are about as frequent as the other labels: they are classes."""
    values = sample.of(columns.get("label_name", columns["label"]))
    counts = Counter(value.strip() for value in values if isinstance(value, str))
    usual = sorted(number for name, number in counts.items() if name and name.casefold() not in PLACEHOLDERS)
    if not usual:
        return frozenset(counts)
    middle = usual[len(usual) // 2]
    return frozenset(
        n for n, number in counts.items() if n.casefold() in PLACEHOLDERS and number > 1 and 2 * number >= middle
    )


TEXT_LABEL = Format("text_label", "a column of text and one of labels", text_label, find_text_label)


def plain_text(record: Record, guess: FormatGuess, config: PrepareConfig) -> Parsed:
    """Plain text, to be learned as it is: one turn of the assistant, with no prompt."""
    content = filled(record, guess.columns["text"], "empty_output", guess)
    if kind := error_answer(content):
        raise Refused("error_output", f"column {guess.columns['text']!r} is {kind}: {short(content)}")
    return Parsed([assistant(content)], None, [], guess.used, [])


def _find_text(sample: RecordSample, config: PrepareConfig) -> FormatGuess | None:
    columns = [name for name in sample.columns if sample.is_usual(name)]
    strings = [name for name in columns if sample.mostly(name, lambda value: isinstance(value, str))]
    lists = [name for name in columns if sample.mostly(name, lambda value: isinstance(value, list))]
    contents = [name for name in strings if not is_about(name, ABOUT_NAMES)]
    low = {name.casefold(): name for name in strings}
    names = ("text", "content", "document", "raw_content", "page_content")
    column = config.text or next((low[name] for name in names if name in low), None)
    if not column and len(contents) == 1:
        prose = sample.mostly(contents[0], lambda value: isinstance(value, str) and len(value.split()) > 3)
        column = contents[0] if prose else None
    others = [*lists, *answer_columns(sample), *(name for name in contents if name != column)]
    if column is None or (config.format == "auto" and others):
        return None
    return FormatGuess("text", {"text": column}, sample.seen([column], " and no other column of text"))


def answer_columns(sample: RecordSample) -> list[str]:
    """Columns of objects or arrays that may be answers: no facts about the record, no turns, no vectors."""
    about = (*ABOUT_NAMES, "tools", "functions")
    names = [name for name in sample.columns if name.isprintable() and not {"{", "}"} & set(name)]  # for a template

    def is_answer(value: Any) -> bool:
        value = as_value(value)
        return is_data(value) and not (isinstance(value, list) and len(value) > 32 and isinstance(value[0], float))

    return [name for name in names if not is_about(name, about) and sample.mostly(name, is_answer)]


TEXT = Format("text", "one column of text", plain_text, _find_text)


TEXT_SUMMARY = ("text", "summary")
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("prompt", "output"),
    ("question", "answer"), ("question", "response"), ("input", "output"), ("query", "response"),
    ("query", "answer"), ("instruction", "response"), ("instruction", "completion"), ("instruction", "answer"),
    ("input", "response"), ("user", "assistant"), ("human", "assistant"), ("problem", "solution"),
    ("dialogue", "summary"), ("document", "summary"), ("article", "summary"), ("article", "highlights"), TEXT_SUMMARY,
)  # fmt: skip
THUMB_NAMES = (
    "kto_tag", "thumb", "thumbs", "thumbs_up", "thumb_up", "feedback", "user_feedback", "human_feedback", "vote",
    "liked", "is_liked", "reaction", "rating", "user_rating", "stars", "label",
)  # fmt: skip
ABSENT = object()


def alpaca(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """instruction, input, output, and system and history (pairs of earlier turns) where present."""
    turns = prompt_turns(record, guess.columns["instruction"], guess)
    return Draft([*turns, assistant(answer_of(record, guess.columns["output"], guess))])


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
    return Draft(turns, repairs, read_tools(record.get("tools")))


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


ALPACA = Format("alpaca", "instruction and output", checked_parser(alpaca), _find_alpaca, rated=True)
PAIR = Format(
    "prompt_completion",
    "prompt and completion, or other names for them",
    checked_parser(prompt_completion),
    _find_pair,
    rated=True,
)


def thumbs(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """A conversation, or a prompt and its answer, with a rating."""
    base = conversation if "turns" in guess.columns else alpaca if "instruction" in guess.columns else prompt_completion
    return base(record, guess, config)


def with_thumbs(guess: FormatGuess, sample: RecordSample, choice: str) -> FormatGuess | None:
    """A guess with the column of thumbs or ratings, if there is one; None where it is needed and is not there."""
    for name in THUMB_NAMES:
        values = [value for value in map(raw_rating, sample.of(name)) if value is not None]
        if not values or name in guess.columns.values():
            continue
        scale = scale_of(values, name)
        if sum(read_thumb(value, scale) is not None for value in values) < NEARLY * len(values):
            continue
        columns = {**guess.columns, "thumb": name}
        if guess.name == "logs" or (2 * len(values) < len(sample) and choice != "thumbs"):
            return replace(guess, columns=columns, scale=scale)
        reason = f"{guess.reason}; {name!r} says which answers were good"
        return replace(guess, name="thumbs", columns=columns, reason=reason, scale=scale)
    return None if choice == "thumbs" else guess


THUMBS = Format(
    "thumbs", "a conversation, or prompt and completion, and a column label, feedback or rating", checked_parser(thumbs)
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
    parts = []
    for literal, column in _pieces(template):
        parts.append(literal)
        if column is not None:
            value = column_text(record, column, texts, joined=joined or literal.endswith('"'))
            if not blank_ok and (not value or value.isspace()):
                raise Refused("empty_output", f"column {column!r} is empty")
            parts.append(value)
    return "".join(parts)


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


def fields(record: Record, guess: FormatGuess, config: PrepareConfig) -> Parsed:
    """Any columns, put into the templates of the user turn and the answer. Columns of the answer stay in `meta` too:
    they are the fields of a structured answer.
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


RANKED = (
    ("chosen", "rejected"), ("response_j", "response_k"), ("chosen_response", "rejected_response"),
    ("preferred", "dispreferred"), ("accepted", "rejected"), ("better", "worse"),
)  # fmt: skip
CANDIDATES = ("completions", "responses", "answers", "candidates", "outputs", "output")


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


PREFERENCE = Format(
    "preference", "chosen and rejected (or a list of two completions), and a prompt", preference, _find_preference
)
