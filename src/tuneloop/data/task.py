"""What a tuned model was trained to answer, and how a raw record becomes the prompt that it was trained on.

`TaskSpec` travels with a model. `prompt_reader` takes a record without its answer through the repairs and the format's
function, with a placeholder for the answer: so the prompt's tokens are those of training.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.files import Config
from tuneloop.data.config import PersonalConfig, PrepareConfig, RepairConfig
from tuneloop.data.formats.draft import TEXT_NAMES, as_value
from tuneloop.data.formats.guess import ROLES, FormatGuess, Rejection, parse_record, template_columns
from tuneloop.data.formats.shapes import TURN_COLUMNS
from tuneloop.data.formats.turns import PLAIN_KEYS, TurnKeys
from tuneloop.data.pii.redact import pseudonym_key
from tuneloop.records.dataset import SourceFormat
from tuneloop.records.record import JsonSteps, upgraded
from tuneloop.records.rows import Dataset, Message

STEPS: JsonSteps = ()  # from what earlier versions wrote to `TaskSpec`
# Roles of columns that hold the question.
_QUESTION_ROLES = ("turns", "request", "instruction", "prompt", "text", "chosen")
PLACEHOLDER = "x"  # stands where the answer will be; never shown to a model
# Columns that hold the question, for models without a task.
PROMPT_NAMES = ("prompt", "question", "instruction", "input", *TEXT_NAMES)
# Roles of columns that formats look at, but for ratings and the answers of preferences.
_OF_PROMPTS = frozenset(
    ("turns", "tools", "system", "history", "instruction", "input", "output", "prompt", "completion", "text", "label",
     "label_name", "request", "response")
)  # fmt: skip


class TurnsSpec(Config):
    """How the training data wrote its turns: see `TurnKeys`."""

    role: str = "role"
    content: str = "content"
    roles: dict[str, str] = Field({})
    usual: list[str] = Field([])
    separate_calls: bool = False
    greetings: list[str] = Field([])

    def keys(self) -> TurnKeys:
        """As the formats take them."""
        usual, greetings = frozenset(self.usual), frozenset(self.greetings)
        return TurnKeys(self.role, self.content, self.roles, usual, self.separate_calls, greetings)


class TaskSpec(Config):
    """What a model was trained to answer; `task` in `tuneloop.json` and `artifact.json`."""

    version: Literal[1] = 1
    kind: Literal["classification", "generation", "chat"] = Field(description="one label, one answer, or conversations")
    format: str = Field(description="shape of the training records, as in dataset.json")
    columns: dict[str, str] = Field(description="the records' columns by role")
    turns: TurnsSpec | None = Field(None, description="how conversations were written")
    texts: list[str] = Field([], description="columns that hold strings only")
    many_labels: bool = Field(False, description="a row may have several labels")
    instruction: str | None = Field(None, description="data.instruction of the recipe")
    input: str | None = Field(None, description="data.input of the recipe: the template of the user turn")
    output: str | None = Field(None, description="data.output of the recipe: the template of the answer")
    system: str | None = Field(None, description="the system turn that all training rows share")
    labels: list[str] | None = Field(None, description="the allowed labels")
    answer: Literal["choice", "generate"] = Field(
        "generate", description="choice: labels are scored; else text is written"
    )
    max_new_tokens: int = Field(256, ge=1, description="longest answer to write, in tokens")
    repair: RepairConfig = RepairConfig()
    personal: PersonalConfig = PersonalConfig()
    chat_template: str = Field("", description="the Jinja chat template that was trained")

    @property
    def inputs(self) -> list[str]:
        """The columns without which there is no prompt."""
        if self.format == "fields":
            return template_columns(self.input or "")
        return [next((self.columns[role] for role in _QUESTION_ROLES if role in self.columns), "text")]

    @property
    def is_conversation(self) -> bool:
        """Whether the training records were conversations, so that a bare text is a user turn."""
        return "turns" in self.columns or "request" in self.columns or "chosen" in self.columns


def task_spec(
    dataset: Dataset, *, answer: Literal["choice", "generate"], max_new_tokens: int, chat_template: str
) -> TaskSpec:
    """The task that a prepared data set teaches.

    `answer`: how the evaluation gets answers, scored labels or written text; `max_new_tokens`: of the longest answer.
    """
    manifest = dataset.manifest
    form, config = manifest.format or SourceFormat(name="messages"), PrepareConfig.model_validate(manifest.config)
    turns = TurnsSpec.model_validate(form.turns) if form.turns else None
    rows = [row for row in dataset.train if "mix" not in row.meta]
    systems = {m["content"] if (m := row.messages[0])["role"] == "system" else None for row in rows}
    return TaskSpec(
        kind=manifest.task,
        format=form.name,
        columns=form.columns,
        turns=turns or (TurnsSpec(role="from", content="value") if form.name == "sharegpt" else None),
        texts=form.texts or [],
        many_labels=form.many_labels or (bool(rows) and all("labels" in row.meta for row in rows)),
        system=systems.pop() if len(systems) == 1 else None,
        labels=manifest.labels,
        answer=answer,
        max_new_tokens=max_new_tokens,
        chat_template=chat_template,
        **{name: getattr(config, name) for name in ("instruction", "input", "output", "repair", "personal")},
    )


def read_task(value: Any, where: str | Path) -> TaskSpec:
    """The record of a file. Raises UserError: it is damaged, or of a newer version."""
    try:
        if isinstance(value, dict) and type(value.get("version", 1)) is int:
            value = upgraded(value, STEPS, "what this model was trained on", str(where))
        return TaskSpec.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        message = f"What the model was trained on can't be read: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        step = "export the run again, or restore the file"
        raise UserError(message, where=str(where), next_step=step) from None


@dataclass(frozen=True)
class TaskPrompt:
    """The prompt of a model: the turns before its answer, and the tools that it may call.

    With `continues`, there are no turns: the model was trained on plain text, and continues this one.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    continues: str | None = None


ReadPrompt = Callable[[Mapping[str, Any]], TaskPrompt | Rejection]


def prompt_reader(
    spec: TaskSpec | None, sample: Sequence[Mapping[str, Any]], *, column: str = "", system: str | None = None
) -> ReadPrompt:
    """The function from a raw record to its prompt.

    Args:
        spec: what the model was trained on; None where that is unknown.
        sample: records, which show how they are written.
        column: the column with the question; default: those that were trained, or the only one.
        system: takes the place of the system turn; "" for none, None for that of training.

    Raises:
        UserError: needed columns are not there, or it is not clear which one is meant.
    """
    columns = list(dict.fromkeys(name for record in sample for name in record))
    if column and column not in columns:
        step = did_you_mean(column, columns, f"columns: {_listed(columns)}", shown=repr)
        raise UserError(f"No record has the column {column!r}", where="--column", next_step=step)

    def holds_turns(name: str) -> bool:
        values = [record[name] for record in sample if name in record]
        return any(isinstance(v, list) and all(isinstance(turn, dict) for turn in v) for v in values)

    conversation = next(filter(holds_turns, TURN_COLUMNS), None)
    if column and column == conversation:
        column = ""
    if not column and spec is not None and any(all(_has(record, name) for name in spec.inputs) for record in sample):
        return _as_trained(spec, system)
    if not column and conversation is not None:
        keys = TurnsSpec(role="from", content="value").keys() if conversation == "conversations" else PLAIN_KEYS
        return _reader(spec, FormatGuess("messages", {"turns": conversation, "tools": "tools"}, "", keys), system)
    return _as_text_column(spec, column or _only_column(spec, columns, sample), system)


def _has(record: Mapping[str, Any], name: str) -> bool:
    return name in record or name.split(".")[0] in record


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (" ..." if len(names) > 12 else "") if names else "(none)"


def _only_column(spec: TaskSpec | None, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str:
    # Of a model that was trained on one column another one must be named; lines of a text are in a column "text".
    needed = spec is not None and not spec.is_conversation and len(columns) == 1 and columns != ["text"]
    if spec is not None and (len(spec.inputs) > 1 or needed):
        missing = [name for name in spec.inputs if name not in columns]
        message = f"The model was trained on the columns {_listed(spec.inputs)}; {_listed(missing)} not there"
        step = "give records with these columns, as csv or jsonl"
        step += "" if len(spec.inputs) > 1 else f", or name the one with the question: --column {columns[0]}"
        raise UserError(message, where=f"columns: {_listed(columns)}", next_step=step)
    texts = [name for name in columns if any(isinstance(record.get(name), str) for record in sample)]
    usual = [name for name in texts if name.casefold() in PROMPT_NAMES] if spec is None else []
    candidates = columns if len(columns) == 1 else usual
    if len(candidates) == 1:
        return candidates[0]
    message, name, near = "It is not clear which column holds the question", "prompt", [*texts[:1], "NAME"]
    if spec:
        name = spec.inputs[0]
        message = f"The model was trained on the column {name!r}, and no record has it"
        near = [*difflib.get_close_matches(name, columns, 1, 0.6), *near]
    step = f"name the column with --column {near[0]}, or rename it to {name!r}"
    raise UserError(message, where=f"columns: {_listed(columns)}", next_step=step)


def _as_trained(spec: TaskSpec, system: str | None) -> ReadPrompt:
    """Records with the columns of training; of ratings and preferences only the prompt counts."""
    turns = (spec.turns or TurnsSpec()).keys()
    columns = {role: name for role, name in spec.columns.items() if role in _OF_PROMPTS}
    name = spec.format
    if name in ("preference", "thumbs"):
        if not {"turns", "instruction", "prompt"} & columns.keys():
            columns["turns"] = spec.columns["chosen"]
        name = "messages" if "turns" in columns else "alpaca" if "instruction" in columns else "prompt_completion"
    answer = {"alpaca": "output", "prompt_completion": "completion"}.get(name)
    if answer:
        columns.setdefault(answer, PLACEHOLDER)
    return _reader(spec, FormatGuess(name, columns, "", turns, frozenset(spec.texts), spec.many_labels), system)


def _as_text_column(spec: TaskSpec | None, column: str, system: str | None) -> ReadPrompt:
    if spec is None or spec.is_conversation:
        columns = {"prompt": column, "completion": PLACEHOLDER}
        return _reader(spec, FormatGuess("prompt_completion", columns, ""), system)
    trained, read = spec.inputs[0], _as_trained(spec, system)

    def renamed(record: Mapping[str, Any]) -> TaskPrompt | Rejection:
        if column not in record:
            return Rejection("missing_field", f"no column {column!r}")
        return read({**record, trained: record[column]})

    return renamed


def _reader(spec: TaskSpec | None, guess: FormatGuess, system: str | None) -> ReadPrompt:
    """Repairs, the format's function and the system turn, as in training."""
    from tuneloop.data.process_record import cleaned

    if spec is None:
        off = dict.fromkeys(RepairConfig.model_fields, False)
        config = PrepareConfig(personal=PersonalConfig(mode="off"), repair=RepairConfig.model_validate(off))
    else:
        output = PLACEHOLDER if spec.input is not None else None
        config = PrepareConfig(
            instruction=spec.instruction, input=spec.input, output=output, repair=spec.repair, personal=spec.personal
        )
    key = pseudonym_key(config.personal)
    needed = [guess.columns[role] for role in _QUESTION_ROLES if role in guess.columns][:1]
    if config.input:
        needed = template_columns(config.input)
    shared = spec.system if system is None and spec is not None else system

    def read(record: Mapping[str, Any]) -> TaskPrompt | Rejection:
        value = cleaned(dict(record), guess, config, key)
        if missing := [name for name in needed if not _has(value, name)]:
            return Rejection("missing_field", f"no column {_listed(missing)}")
        if guess.name == "text":
            text = value.get(guess.columns["text"])
            if not isinstance(text, str) or not text.strip():
                return Rejection("empty_input", f"column {guess.columns['text']!r} has no text")
            return TaskPrompt([], continues=text)
        parsed = parse_record(_with_placeholder(value, guess), guess, config)
        if isinstance(parsed, Rejection):
            return parsed
        turns = [turn for turn in parsed.messages[:-1] if system is None or turn["role"] != "system"]
        if shared and not any(turn["role"] == "system" for turn in turns):
            turns.insert(0, {"role": "system", "content": shared})
        return TaskPrompt(turns, parsed.tools)

    return read


def _with_placeholder(record: dict[str, Any], guess: FormatGuess) -> dict[str, Any]:
    """The record with something in place of its answer; a conversation that has its answer keeps it."""
    columns, values = guess.columns, dict(record)
    if guess.name == "text_label":
        values[columns["label"]] = [PLACEHOLDER] if guess.many_labels else PLACEHOLDER
        if "label_name" in columns:
            values[columns["label_name"]] = PLACEHOLDER
    elif "turns" in columns:
        values[columns["turns"]] = _with_answer(values.get(columns["turns"]), guess.keys)
    for role in ("output", "completion", "response"):
        if role in columns and guess.name != "fields":
            values[columns[role]] = PLACEHOLDER
    return values


def _with_answer(turns: Any, keys: TurnKeys) -> Any:
    """Turns whose last one is a placeholder answer; anything else as it is, for the format to refuse."""
    value, turns = turns, as_value(turns)
    if not isinstance(turns, list):
        return value
    if not turns or not isinstance(last := turns[-1], dict):
        return turns
    spelling = str(last.get(keys.role)).strip().casefold()
    role = keys.roles.get(spelling) or ROLES.get(spelling)
    calls = last.get("tool_calls") or last.get("function_call")
    if role == "function_call" or (role == "assistant" and calls):
        return turns
    spelled = next((name for name, ours in keys.roles.items() if ours == "assistant"), "assistant")
    return [*turns[: -1 if role == "assistant" else None], {keys.role: spelled, keys.content: PLACEHOLDER}]
