"""Which shape records have: from what is configured, from a sample, or from LLaMA-Factory's `dataset_info.json`.

A finder looks for one format in the sample and says in a `FormatGuess` which columns play which role.
`tuneloop.data.formats` reads the records by it.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.logs import REQUEST_NAMES, RESPONSE_NAMES, looks_like_request, looks_like_response
from tuneloop.data.formats.ratings import opinion, read_thumb, scale_of, score_of
from tuneloop.data.formats.templates import ABSENT, lookup, template_columns
from tuneloop.data.formats.turns import PLAIN_KEYS, ROLES, Refused, TurnKeys, from_json

TURN_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
TURN_KEYS = (
    ("role", "content"),
    ("from", "value"),
    ("role", "value"),
    ("role", "text"),
    ("role", "message"),
    ("from", "content"),
    ("from", "text"),
    *((speaker, said) for speaker in ("speaker", "author", "sender", "type")
      for said in ("text", "content", "message", "utterance", "value")),
)  # fmt: skip
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("question", "answer"),
    ("question", "response"),
    ("input", "output"),
    ("query", "response"),
    ("query", "answer"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("instruction", "answer"),
    ("input", "response"),
    ("user", "assistant"),
    ("human", "assistant"),
    ("problem", "solution"),
)
BESIDES = ("input", "context", "passage")  # what a question or an instruction is about
RANKED = (
    ("chosen", "rejected"),
    ("response_j", "response_k"),
    ("chosen_response", "rejected_response"),
    ("preferred", "dispreferred"),
    ("accepted", "rejected"),
    ("better", "worse"),
)
CANDIDATES = ("completions", "responses", "answers", "candidates", "outputs", "output")
THUMB_NAMES = (
    "kto_tag",
    "thumb",
    "thumbs",
    "thumbs_up",
    "thumb_up",
    "feedback",
    "user_feedback",
    "human_feedback",
    "vote",
    "liked",
    "is_liked",
    "reaction",
    "rating",
    "user_rating",
    "stars",
    "label",
)
TEXT_NAMES = (
    "text",
    "sentence",
    "utterance",
    "message",
    "content",
    "body",
    "query",
    "question",
    "description",
    "title",
)
LABEL_NAMES = ("label", "labels", "category", "class", "intent", "target", "queue", "topic", "sentiment", "label_text")
LABEL_TEXTS = ("{}_text", "{}_name", "{}_str", "label_text", "label_name", "class_name", "category_name")
NO_CONTENT_NAMES = ("id", "uuid", "index", "idx", "created", "time", "timestamp", "date", "fold", "split")
ABOUT_NAMES = (
    "url",
    "source",
    "title",
    "subject",
    "lang",
    "language",
    "author",
    "meta",
    "licence",
    "license",
    "domain",
)
PLACEHOLDERS = frozenset(
    {"n/a", "na", "n.a.", "#n/a", "null", "nan", "undefined", "-", "--", "?", "???", "tbd", "todo", "(blank)", "<na>"}
)
_NEARLY = 0.9  # share of a column's values from which the others are of a wrong type


@dataclass(frozen=True)
class FormatGuess:
    """The shape of the records, as the sample shows it.

    Args:
        name: the format.
        columns: columns by role.
        reason: how it was found, for people.
        keys: how turns are written.
        texts: columns that hold strings in nearly all records; numbers and booleans there are refused.
        many_labels: the label is a list of labels.
        classes: labels that look like "no value" but are frequent enough to be classes.
        scale: lowest and highest rating, where thumbs are numbers.
    """

    name: str
    columns: dict[str, str]
    reason: str
    keys: TurnKeys = PLAIN_KEYS
    texts: frozenset[str] = frozenset()
    many_labels: bool = False
    classes: frozenset[str] = frozenset()
    scale: tuple[float, float] | None = None

    @functools.cached_property
    def used(self) -> frozenset[str]:
        """Columns that go into the conversation. Thumbs and class ids are further facts about it."""
        beside = {"thumb"} | ({"label"} if "label_name" in self.columns else set())
        used = {column for role, column in self.columns.items() if role not in beside}
        return frozenset(used | ({"system", "tools"} if self.name not in ("text_label", "text") else set()))


Record = Mapping[str, Any]
Sample = Sequence[Record]


# --- which format --------------------------------------------------------------------------------


def detect(sample: Sample, config: PrepareConfig, entry: Mapping[str, Any] | None = None) -> FormatGuess:
    """The format of the records, from what is configured and what at least half of the sample shows.

    Args:
        entry: what a `dataset_info.json` says of them; it counts where nothing is configured and its columns are there.

    Raises:
        UserError: no format fits, or the configured one doesn't.
    """
    wanted = _wanted(config)
    if wanted == "fields":
        columns = {name: ", ".join(template_columns(text)) for name, text in _templates(config)}
        named = [column for _, text in _templates(config) for column in template_columns(text)]
        return FormatGuess("fields", columns, "templates given", texts=_texts(sample, named))
    found = _as_described(sample, entry) if entry is not None and wanted == "auto" else None
    found = found or _find_in_any_case(sample, config, wanted)
    if found is None:
        raise _no_format(sample, config, wanted)
    return replace(
        found,
        reason=found.reason + (", as configured" if wanted != "auto" else "") + _numbered_twins(sample, found),
        texts=_texts(sample, found.columns.values()),
    )


def _numbered_twins(sample: Sample, guess: FormatGuess) -> str:
    """A word on columns that stand beside a used one under its name: readers of tables number those of one name."""
    names = _columns(sample)
    twins = [f"{name!r}, not {f'{name}_2'!r}" for name in dict.fromkeys(guess.columns.values()) if f"{name}_2" in names]
    return f"; taken is {', '.join(twins)} (columns of one name are numbered)" if twins else ""


def _as_described(sample: Sample, entry: Mapping[str, Any]) -> FormatGuess | None:
    """The format of an entry, unless it can't be read or the data have other columns: it is never required."""
    try:
        guess = guess_from_info(entry)
    except UserError:
        return None
    needed = ("turns", "instruction", "output", "chosen", "rejected", "answers", "text")
    return guess if _usual(sample, *(column for role, column in guess.columns.items() if role in needed)) else None


def _wanted(config: PrepareConfig) -> str:
    """The format that is asked for.

    Raises:
        UserError: settings that contradict each other.
    """
    if config.input is not None or config.output is not None:
        if config.format not in ("auto", "fields"):
            raise UserError(
                f"Templates (data.input, data.output) don't go with format={config.format}",
                next_step="leave out data.format, or the templates",
            )
        if config.input is None or config.output is None:
            missing = "input" if config.input is None else "output"
            raise UserError(f"Missing key 'data.{missing}'", next_step=f"set data.{missing}='...{{column}}...' as well")
        return "fields"
    if config.format == "fields":
        raise UserError(
            "format=fields needs templates", next_step="set data.input='{column}' and data.output='{column}'"
        )
    if config.text is None and config.label is None:
        return config.format
    if config.format == "text" and config.label is None:
        return "text"
    if config.format not in ("auto", "text_label"):
        raise UserError(
            f"data.text and data.label don't go with format={config.format}",
            next_step="leave out data.format, or data.text and data.label",
        )
    return "text_label"


def _find_in_any_case(sample: Sample, config: PrepareConfig, wanted: str) -> FormatGuess | None:
    """The format, whether columns are written `Question` or `question`."""
    names = {name.casefold(): name for name in _columns(sample)}
    if (
        config.text
        or config.label
        or all(low == name for low, name in names.items())
        or len(names) < len(_columns(sample))
    ):
        return _find(sample, config, wanted)
    found = _find([{name.casefold(): value for name, value in record.items()} for record in sample], config, wanted)
    if found is None:
        return None
    columns = {role: names[column] for role, column in found.columns.items()}
    reason = re.sub(r"'([^']+)'", lambda match: repr(names.get(match[1], match[1])), found.reason)
    return replace(found, columns=columns, reason=reason)


def _find(sample: Sample, config: PrepareConfig, wanted: str) -> FormatGuess | None:
    for name, find in _FINDERS.items():
        if wanted == name or (wanted == "auto" or (wanted == "thumbs" and name in _RATED)):
            found = find(sample, config)
            if found and wanted in ("auto", "thumbs") and name in (*_RATED, "logs"):
                found = _with_thumbs(found, sample, wanted)
            if found:
                return found
    return None


def _no_format(sample: Sample, config: PrepareConfig, wanted: str) -> UserError:
    known = list(_columns(sample))
    names = ", ".join(repr(name) for name in known[:12])
    step = (
        "name the columns with data.text=COLUMN data.label=COLUMN, or write templates: "
        "data.input='{COLUMN}' data.output='{COLUMN}'"
    )
    if wanted == "auto":
        usual = {*TURN_COLUMNS, *TEXT_NAMES, *LABEL_NAMES, *(name for pair in (*PAIRS, *RANKED) for name in pair)}
        folded = {name.casefold(): name for name in known}
        for name in sorted(folded.keys() - usual):
            if near := difflib.get_close_matches(name, usual, 1, 0.85):
                step = f"is {folded[name]!r} meant to be {near[0]!r}? Rename it, or " + step
                break
        return UserError("Can't tell the format of the records", where=f"columns: {names or '(none)'}", next_step=step)
    other = _find(sample, config, "auto") if wanted != "text_label" else None
    if other is not None:
        step = f"they look like {other.name} ({other.reason}): leave out data.format, or " + step
    return UserError(
        f"The records don't look like {wanted}, which has {_SHAPES[wanted]}",
        where=f"columns: {names or '(none)'}",
        next_step=step,
    )


def check_columns(records: Sample, config: PrepareConfig) -> None:
    """Refuse a configured column that no record has.

    Raises:
        UserError: with the nearest column.
    """
    wanted = {f"data.{name}": template_columns(text) for name, text in _templates(config)}
    single = {"data.text": config.text, "data.label": config.label, "data.split.stratify": config.split.stratify}
    wanted |= {key: [column] for key, column in single.items() if column is not None}
    known = _columns(records)
    for key, columns in wanted.items():
        for column in columns:
            if column not in known and not any(lookup(record, column) not in (None, ABSENT) for record in records):
                near = difflib.get_close_matches(column, known, 1, 0.4)
                raise UserError(
                    f"No record has the column {column!r}",
                    where=key,
                    next_step=f"did you mean {near[0]!r}?" if near else f"columns: {', '.join(list(known)[:12])}",
                )


def guess_from_info(entry: Mapping[str, Any]) -> FormatGuess:
    """The format that an entry of LLaMA-Factory's `dataset_info.json` describes.

    Read are `formatting` (alpaca, sharegpt, openai), `columns`, `tags` and `ranking`; its defaults are kept:
    alpaca, with columns `instruction`, `input`, `output`; sharegpt with `conversations`, `from`, `value`.

    Raises:
        UserError: a formatting that is not known, or columns of images, audio or video.
    """
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    formatting = entry.get("formatting", "alpaca")
    if (
        not isinstance(columns, Mapping)
        or not isinstance(tags, Mapping)
        or formatting not in ("alpaca", "sharegpt", "openai")
    ):
        raise UserError(
            f"Can't read the entry with formatting {formatting!r}",
            where="dataset_info.json",
            next_step="formatting is alpaca, sharegpt or openai; columns and tags are objects",
        )
    if media := [name for name in ("images", "videos", "audios") if columns.get(name)]:
        raise UserError(f"{media[0]} can't be trained on", where="dataset_info.json", next_step="give text data only")
    roles = {
        "system": "system",
        "tools": "tools",
        "history": "history",
        "chosen": "chosen",
        "rejected": "rejected",
        "kto_tag": "thumb",
    }
    made = {ours: str(columns[theirs]) for theirs, ours in roles.items() if columns.get(theirs)}
    name, keys = "alpaca", PLAIN_KEYS
    if formatting == "alpaca":
        base = {"prompt": "instruction", "query": "input", "response": "output"}
        given = {ours: str(columns[theirs]) for theirs, ours in base.items() if columns.get(theirs)}
        if columns and set(given) == {"instruction"} and not made.get("chosen"):
            return FormatGuess("text", {"text": given["instruction"]}, "dataset_info.json: one column of text")
        made = (given or {"instruction": "instruction", "input": "input", "output": "output"}) | made
        if "chosen" in made:
            made.pop("output", None)
        if "instruction" not in made or not {"output", "chosen"} & made.keys():
            raise UserError(
                "The entry names no prompt or no response",
                where="dataset_info.json",
                next_step="name both in columns: prompt and response (or chosen and rejected)",
            )
    else:
        name = "messages" if formatting == "openai" else "sharegpt"
        made = {"turns": str(columns.get("messages") or ("messages" if name == "messages" else "conversations"))} | made
        keys = _tagged(tags, name)
    if entry.get("ranking") or "chosen" in made:
        if "chosen" not in made and "output" in made:  # older files: the output is a list, the better one first
            made["answers"] = made.pop("output")
        else:
            made.setdefault("chosen", "chosen")
            made.setdefault("rejected", "rejected")
        name = "preference"
    elif "thumb" in made:
        name = "thumbs"
    return FormatGuess(name, made, f"dataset_info.json: {formatting}", keys=keys)


def _tagged(tags: Mapping[str, Any], name: str) -> TurnKeys:
    """The keys and roles of turns as LLaMA-Factory's tags name them."""
    ours = {
        "user": "user",
        "assistant": "assistant",
        "system": "system",
        "observation": "tool",
        "function": "function_call",
    }
    given = {tag: str(tags[f"{tag}_tag"]) for tag in ours if tags.get(f"{tag}_tag")}
    roles = {spelling.casefold(): ours[tag] for tag, spelling in given.items()}
    role, content = ("role", "content") if name == "messages" else ("from", "value")
    usual = frozenset(given.values()) | (frozenset() if name == "messages" else _SHAREGPT)
    return TurnKeys(
        role=str(tags.get("role_tag") or role),
        content=str(tags.get("content_tag") or content),
        roles={spelling: role for spelling, role in roles.items() if ROLES.get(spelling) != role},
        usual=usual,
        separate_calls=name == "sharegpt",
    )


_SHAREGPT = frozenset({"human", "gpt", "observation", "function_call"})


# --- what a sample shows -------------------------------------------------------------------------


def _templates(config: PrepareConfig) -> list[tuple[str, str]]:
    return [(k, v) for k, v in (("input", config.input), ("output", config.output)) if v is not None]


def _columns(records: Iterable[Record]) -> dict[str, int]:
    """Columns with the number of records that have them, in order of appearance."""
    counts: dict[str, int] = {}
    for record in records:
        for name in record:
            counts[name] = counts.get(name, 0) + 1
    return counts


def _count(sample: Sample, columns: Iterable[str]) -> int:
    return sum(all(column in record for column in columns) for record in sample)


def _usual(sample: Sample, *columns: str) -> bool:
    """Whether at least half of the records have all the columns."""
    return bool(sample) and 2 * _count(sample, columns) >= len(sample)


def _mostly(values: Iterable[Any], fits: Callable[[Any], bool], share: float = 0.5) -> bool:
    """Whether a share of the values that are not null fit, and at least one."""
    known = [value for value in values if value is not None]
    number = sum(map(fits, known))
    return number > 0 and number >= share * len(known)


def _values(sample: Sample, column: str) -> list[Any]:
    return [record.get(column) for record in sample]


def _texts(sample: Sample, columns: Iterable[str]) -> frozenset[str]:
    """Columns with strings in nearly all records: a number there is a mistake."""
    return frozenset(
        column for column in columns if _mostly(_values(sample, column), lambda value: isinstance(value, str), _NEARLY)
    )


def _present(sample: Sample, names: Iterable[str]) -> str | None:
    """The first of some columns that the sample has."""
    return next((name for name in names if any(name in record for record in sample)), None)


def _seen(sample: Sample, columns: Iterable[str], what: str = "") -> str:
    """How many records show some columns, as told to people."""
    columns = list(columns)
    number = _count(sample, columns)
    share = f"all {number:,}" if number == len(sample) else f"{number:,} of {len(sample):,}"
    return f"{share} records looked at have {' and '.join(map(repr, columns))}{what}"


def _beside(sample: Sample, *roles: tuple[str, tuple[str, ...]]) -> dict[str, str]:
    """Columns that go with others: for each role the first of its names that the sample has."""
    found = {role: _present(sample, names) for role, names in roles}
    return {role: column for role, column in found.items() if column is not None}


_SYSTEM = ("system", ("system", "system_prompt"))
_TOOLS = ("tools", ("tools", "functions"))
_HISTORY = ("history", ("history",))


# --- finders: each a format ----------------------------------------------------------------------


def _find_conversation(sample: Sample) -> FormatGuess | None:
    for column in TURN_COLUMNS:
        if _usual(sample, column):
            lists = [_as_list(value) for value in _values(sample, column)]
            keys = _keys(lists)
            if keys and _mostly(lists, functools.partial(_has_turns, keys=keys)):
                name = "sharegpt" if keys.role == "from" else "messages"
                reason = _seen(sample, [column], f" with turns of {keys.role!r} and {keys.content!r}")
                return FormatGuess(name, {"turns": column, **_beside(sample, _TOOLS, _SYSTEM)}, reason, keys=keys)
    return None


def _as_list(value: Any) -> Any:
    """A list of turns; one that stands as JSON in a string is read."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            return from_json(value, "")
        except Refused:
            return value
    return value


def _has_turns(turns: Any, keys: TurnKeys) -> bool:
    return isinstance(turns, list) and any(isinstance(turn, dict) and keys.role in turn for turn in turns)


def _keys(lists: Sequence[Any]) -> TurnKeys | None:
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
        said = [(turn.get(role), turn.get(content)) for turn in some]
        spellings.update({name for name, _ in said if isinstance(name, str)})
        first = next(((name, text) for name, text in said if ROLES.get(str(name).casefold()) != "system"), (None, None))
        if ROLES.get(str(first[0]).casefold()) == "assistant" and isinstance(first[1], str):
            openings[first[1]] += 1
    known = {name for name in spellings if name.strip().casefold() in ROLES}
    if role not in ("role", "from") and 2 * sum(spellings[name] for name in known) < spellings.total():
        return None  # a key such as "type" has many meanings
    separate = role == "from" or any(ROLES[name.strip().casefold()] == "function_call" for name in known)
    return TurnKeys(
        role,
        content,
        usual=frozenset(name for name in known if spellings[name] > 0.02 * len(turns))
        | (_SHAREGPT if role == "from" else set()),
        separate_calls=separate,
        greetings=frozenset(text for text, number in openings.items() if number >= max(5, 0.05 * len(turns))),
    )


def _find_sharegpt(sample: Sample, config: PrepareConfig) -> FormatGuess | None:
    found = _find_conversation(sample)
    return found if found and found.name == "sharegpt" else None


def _find_messages(sample: Sample, config: PrepareConfig) -> FormatGuess | None:
    found = _find_conversation(sample)
    return found if found and found.name == "messages" else None


def _find_alpaca(sample: Sample, config: PrepareConfig) -> FormatGuess | None:
    """instruction and output; other names of the output count where there is an input, or on request."""
    input_ = _present(sample, BESIDES)
    outputs = (
        ("output", "response", "completion", "answer")
        if input_ or config.format in ("alpaca", "thumbs")
        else ("output",)
    )
    output = next((name for name in outputs if _usual(sample, "instruction", name)), None)
    if output is None:
        return None
    columns = {"instruction": "instruction", **({"input": input_} if input_ else {}), "output": output}
    columns |= _beside(sample, _SYSTEM, _HISTORY)
    return FormatGuess("alpaca", columns, _seen(sample, ["instruction", output]))


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, dict | list)


def _is_data(value: Any) -> bool:
    """An object or an array, and not one of turns, which stand for a text."""
    return not _is_scalar(value) and not _has_turns(value, PLAIN_KEYS)


def _find_pair(sample: Sample, config: PrepareConfig) -> FormatGuess | None:
    for pair in PAIRS:
        if _usual(sample, *pair) and not any(_mostly(_values(sample, column), _is_data) for column in pair):
            columns = dict(zip(("prompt", "completion"), pair, strict=True))
            if pair[0] in ("question", "query", "instruction") and (input_ := _present(sample, BESIDES)) not in (
                None,
                *pair,
            ):
                columns["input"] = str(input_)
            return FormatGuess("prompt_completion", columns | _beside(sample, _SYSTEM, _HISTORY), _seen(sample, pair))
    return None


def _find_preference(sample: Sample, config: PrepareConfig) -> FormatGuess | None:
    """Two answers to one prompt: in two columns, the better first, or in a list of two."""
    base = _find_prompt(sample)
    for pair in RANKED:
        if not _usual(sample, *pair):
            continue
        better = _values(sample, pair[0])
        if base is None and not _mostly(
            better, lambda v: isinstance(v, list) or (isinstance(v, str) and "\n\nHuman:" in v)
        ):
            continue
        columns, keys = base or ({}, None)
        turns = _keys([v if isinstance(v, list) else [v] for v in better])
        columns = columns | dict(zip(("chosen", "rejected"), pair, strict=True)) | _beside(sample, _SYSTEM, _TOOLS)
        return FormatGuess("preference", columns, _seen(sample, pair), keys=keys or turns or PLAIN_KEYS)
    for column in CANDIDATES if base else ():
        scores = _present(sample, ("scores", "ratings"))
        if _usual(sample, column) and _mostly(
            _values(sample, column), functools.partial(_is_ranking, scored=scores is not None)
        ):
            columns = {**base[0], "answers": column, **({"scores": scores} if scores else {})}  # type: ignore[index]
            how = "answers with scores" if scores else "answers, the better one first or with the higher score"
            return FormatGuess("preference", columns, _seen(sample, [column], f" as a list of {how}"))
    return None


def _find_prompt(sample: Sample) -> tuple[dict[str, str], TurnKeys | None] | None:
    """The columns with what is asked, for formats with the answers apart."""
    conversation = _find_conversation(sample)
    if conversation:
        return conversation.columns, conversation.keys
    for name in ("instruction", "prompt", "question", "query", "input", "user", "text"):
        if _usual(sample, name) and not _mostly(_values(sample, name), _is_data):
            columns = {"prompt": name}
            if name in ("instruction", "question", "query") and (input_ := _present(sample, BESIDES)):
                columns["input"] = input_
            return columns | _beside(sample, _SYSTEM, _HISTORY), None
    return None


def _is_ranking(value: Any, scored: bool) -> bool:
    if not isinstance(value, list) or len(value) < 2:
        return False
    if all(isinstance(item, dict) for item in value):
        return scored or len(value) == 2 or all(score_of(item) is not None for item in value)
    return all(isinstance(item, str) for item in value) and (scored or len(value) == 2)


def _find_logs(sample: Sample, config: PrepareConfig) -> FormatGuess | None:
    known = {name.casefold(): name for name in reversed(_columns(sample)) if _usual(sample, name)}
    requests = [known[name] for name in REQUEST_NAMES if name in known]
    responses = [known[name] for name in RESPONSE_NAMES if name in known]
    for request in requests:
        asked = _values(sample, request)
        structured = _mostly(asked, looks_like_request)
        if structured and _mostly(asked, _is_answered):
            continue  # whole conversations: they need no response
        for response in responses:
            answers = _values(sample, response)
            if response == request or not (structured or _mostly(answers, looks_like_response)):
                continue
            if any(answer is not None for answer in answers):
                return FormatGuess(
                    "logs",
                    {"request": request, "response": response},
                    _seen(sample, [request, response], " of a chat API"),
                )
    return None


def _is_answered(value: Any) -> bool:
    """Whether a list of turns ends with the assistant's."""
    value = _as_list(value)
    last = value[-1] if isinstance(value, list) and value else None
    return isinstance(last, dict) and ROLES.get(str(last.get("role")).casefold()) == "assistant"


def _find_text_label(sample: Sample, config: PrepareConfig) -> FormatGuess | None:
    """Columns by their configured or usual names, else the only two, where one repeats its values."""
    known = [name for name in _columns(sample) if _usual(sample, name)]
    scalars = [name for name in known if _mostly(_values(sample, name), _is_scalar)]
    lists = [name for name in known if _mostly(_values(sample, name), is_label_list)]
    label = config.label or _by_name(sample, [*scalars, *lists], LABEL_NAMES)
    text = config.text or _by_name(sample, [n for n in scalars if n != label], TEXT_NAMES)
    rest = [n for n in scalars if not _is_about(n, NO_CONTENT_NAMES) and n not in (text, label)]
    guessed = ""
    if not (text and label):
        if (text or label) and len(rest) == 1:
            guessed = rest[0]
            if text and not config.text and not _repeats(sample, guessed):
                return None
        elif not text and not label and len(rest) == 2:
            text, guessed = sorted(rest, key=lambda name: -_distinct(sample, name))
            if not _repeats(sample, guessed) or _distinct(sample, text) == _distinct(sample, guessed):
                return None
        else:
            return None
        text, label = text or guessed, label or guessed
    columns = {"text": text, "label": label}
    reason = _seen(sample, [text, label])
    if guessed == label:
        reason += f"; {label!r} is taken for the label: it has {_distinct(sample, label):,} different values"
    elif guessed:
        reason += f"; {text!r} is taken for the text: it is the only other column"
    if label in lists:
        reason += ", lists of labels"
    if _mostly(_values(sample, label), lambda v: isinstance(v, int) and not isinstance(v, bool), _NEARLY):
        names = [pattern.format(label) for pattern in LABEL_TEXTS]
        if name := next((n for n in names if n in known and n not in (text, label)), None):
            columns["label_name"] = name
            reason += f"; {name!r} has the names of the labels"
    return FormatGuess("text_label", columns, reason, many_labels=label in lists, classes=_odd_classes(sample, columns))


def _by_name(sample: Sample, known: Sequence[str], names: Sequence[str]) -> str | None:
    """The column of a usual name, else one that ends in it, as `ticket_text` does."""
    low = {name.casefold(): name for name in reversed(known)}
    if found := next((low[name] for name in names if name in low), None):
        return found
    for name, column in low.items():
        *before, last = re.split(r"[^a-z0-9]+", name)
        if before and last in names and not set(before) & set(LABEL_NAMES):
            return column
    return None


def is_label_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _distinct(sample: Sample, column: str) -> int:
    return len({str(value) for value in _values(sample, column) if value is not None})


def _repeats(sample: Sample, column: str) -> bool:
    """Whether a column has few enough different values for classes; three rows of each are the least."""
    return 3 * _distinct(sample, column) <= len(sample)


def _odd_classes(sample: Sample, columns: Mapping[str, str]) -> frozenset[str]:
    """Placeholders such as "N/A" that are about as frequent as the other labels: they are classes."""
    values = _values(sample, columns.get("label_name", columns["label"]))
    counts = Counter(value.strip() for value in values if isinstance(value, str))
    usual = sorted(number for name, number in counts.items() if name and name.casefold() not in PLACEHOLDERS)
    if not usual:
        return frozenset(counts)
    middle = usual[len(usual) // 2]
    return frozenset(
        n for n, number in counts.items() if n.casefold() in PLACEHOLDERS and number > 1 and 2 * number >= middle
    )


def _find_text(sample: Sample, config: PrepareConfig) -> FormatGuess | None:
    """One column of text, beside which there are only ids, numbers and facts about it."""
    known = [name for name in _columns(sample) if _usual(sample, name)]
    strings = [name for name in known if _mostly(_values(sample, name), lambda value: isinstance(value, str))]
    lists = [name for name in known if _mostly(_values(sample, name), lambda value: isinstance(value, list))]
    spoken = [name for name in strings if not _is_about(name, (*NO_CONTENT_NAMES, *ABOUT_NAMES))]
    low = {name.casefold(): name for name in strings}
    usual = next(
        (low[name] for name in ("text", "content", "document", "raw_content", "page_content") if name in low), None
    )
    column = config.text or usual or (spoken[0] if len(spoken) == 1 and _is_prose(sample, spoken[0]) else None)
    if column is None or (config.format == "auto" and (lists or [name for name in spoken if name != column])):
        return None
    return FormatGuess("text", {"text": column}, _seen(sample, [column], " and no other column of text"))


def _is_about(name: str, names: Collection[str]) -> bool:
    """Whether a column is about the record, by its name: an id, a time, a source."""
    return name.casefold() in names or name.casefold().endswith(("_id", "_at", "-id"))


def _is_prose(sample: Sample, column: str) -> bool:
    return _mostly(_values(sample, column), lambda value: isinstance(value, str) and len(value.split()) > 3)


# Order matters: a conversation may stand beside an instruction, an instruction beside a label.
_FINDERS: dict[str, Callable[[Sample, PrepareConfig], FormatGuess | None]] = {
    "preference": _find_preference,
    "logs": _find_logs,
    "sharegpt": _find_sharegpt,
    "messages": _find_messages,
    "alpaca": _find_alpaca,
    "prompt_completion": _find_pair,
    "text_label": _find_text_label,
    "text": _find_text,
}
_RATED = ("sharegpt", "messages", "alpaca", "prompt_completion")  # formats that become thumbs with a rating
_SHAPES = {
    "preference": "chosen and rejected (or a list of two completions), and a prompt",
    "thumbs": "a conversation, or prompt and completion, and a column label, feedback or rating",
    "logs": "request and response",
    "sharegpt": "conversations: turns with from and value",
    "messages": "messages: turns with role and content",
    "alpaca": "instruction and output",
    "prompt_completion": "prompt and completion, or other names for them",
    "text_label": "a column of text and one of labels",
    "text": "one column of text",
}


# --- thumbs --------------------------------------------------------------------------------------


def _with_thumbs(found: FormatGuess, sample: Sample, wanted: str) -> FormatGuess | None:
    """A guess with the column of thumbs or ratings, if there is one; None where it is needed and is not there."""
    for name in THUMB_NAMES:
        values = [value for value in map(opinion, _values(sample, name)) if value is not None]
        if not values or name in found.columns.values():
            continue
        scale = scale_of(values, name)
        if not _mostly(values, lambda value, scale=scale: read_thumb(value, scale) is not None, _NEARLY):  # type: ignore[misc]
            continue
        columns = {**found.columns, "thumb": name}
        if found.name == "logs" or (2 * len(values) < len(sample) and wanted != "thumbs"):
            return replace(found, columns=columns, scale=scale)
        reason = f"{found.reason}; {name!r} says which answers were good"
        return replace(found, name="thumbs", columns=columns, reason=reason, scale=scale)
    return None if wanted == "thumbs" else found
