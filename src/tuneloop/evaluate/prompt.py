"""A prompt of one's own for a system: a template around the rows' texts, from a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_yaml
from tuneloop.evaluate.few_shot import example_turns
from tuneloop.records.rows import Message, Row, last_user_turn

_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class PromptTemplate:
    """What is put in place of a row's own turns.

    Args:
        user: template of the last user turn; `{input}` is the row's own last user turn, `{labels}` the allowed labels,
            one a line, `{NAME}` a metadata field. Other braces stay as they are.
        system: template of the system turn; None: the row's own stays, "": there is none.
    """

    user: str = "{input}"
    system: str | None = None

    def turns(self, row: Row, labels: Sequence[str] | None) -> list[Message]:
        """The prompt of a row: its turns before the answer, with the templates filled in."""
        values = {name: str(value) for name, value in row.meta.items() if isinstance(value, str | int | float)}
        values |= {"input": last_user_turn(row), "labels": "\n".join(labels or ())}
        turns: list[Message] = [turn.copy() for turn in row.prompt]
        last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
        if last is not None:
            turns[last]["content"] = _fill(self.user, values)
        if self.system is not None:
            turns = [turn for turn in turns if turn["role"] != "system"]
            if self.system:
                turns.insert(0, {"role": "system", "content": _fill(self.system, values)})
        return turns


AS_IT_IS = PromptTemplate()


def load_prompt(file: str) -> PromptTemplate:
    """Read a template: a text file is that of the user turn; a YAML file has `user`, `system` or both.

    Raises:
        UserError: no such file, unknown keys, or a user template that leaves the row's text out.
    """
    path = Path(file)
    if path.suffix in (".yaml", ".yml"):
        values = read_yaml(path, "prompt")
        unknown = sorted(set(values) - {"user", "system"})
        if unknown or not all(isinstance(value, str) for value in values.values()):
            raise UserError(
                f"A prompt has the keys user and system, each a text{f', not {unknown[0]}' if unknown else ''}",
                where=file,
                next_step="see docs/evaluate.md",
            )
        template = PromptTemplate(**values)
    else:
        if not path.is_file():
            raise UserError("No such file", where=file, next_step="give --prompt a text or YAML file")
        try:
            template = PromptTemplate(path.read_text(encoding="utf-8").strip())
        except UnicodeDecodeError:
            raise UserError("Not a text in UTF-8", where=file, next_step="save it as UTF-8") from None
    if "{input}" not in template.user:
        raise UserError("The prompt leaves out the row's text", where=file, next_step="put {input} where it belongs")
    return template


def prompt_turns(
    row: Row, template: PromptTemplate = AS_IT_IS, examples: Sequence[Row] = (), labels: Sequence[str] | None = None
) -> list[Message]:
    """A row's whole prompt: system turn, examples as earlier turns under the same template, the row's turns."""
    turns = template.turns(row, labels)
    system = [turn for turn in turns if turn["role"] == "system"]
    rest = [turn for turn in turns if turn["role"] != "system"]
    shown: list[Message] = []
    for example in examples:
        asked = [turn for turn in template.turns(example, labels) if turn["role"] != "system"]
        shown += [*asked, example_turns(example)[-1]]
    return [*system, *shown, *rest]


def _fill(template: str, values: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda m: values.get(m[1], m[0]), template)
