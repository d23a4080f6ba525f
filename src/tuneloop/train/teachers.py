"""Whether a teacher can teach: its tokens, its chat template, and what is stored of its probabilities. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash
from tuneloop.core.units import counted
from tuneloop.inference.answer import with_template
from tuneloop.inference.local.target import LocalTarget, open_local
from tuneloop.models.load import load_tokenizer
from tuneloop.models.template import Rendered, Template, load_template
from tuneloop.records.rows import Row
from tuneloop.train.config import TrainConfig
from tuneloop.train.top_logits import TopStore, is_store, row_key

BY_TEXT = (
    "set train.divergence=universal, or let the student learn the teacher's answers: tuneloop distill --level text"
)


def keys_of(rows: Sequence[Rendered], config: TrainConfig) -> list[str]:
    """What is stored of each row is found by this; empty where the teacher is asked in each step.

    Raises:
        UserError: nothing is stored of some row, or for another temperature.
    """
    if not is_store(str(config.teacher)):
        return [""] * len(rows)
    if config.on_policy:
        raise UserError(
            "Stored probabilities say nothing of answers that the student writes", where="train.on_policy",
            next_step="name a run or a model as train.teacher",
        )  # fmt: skip
    store = TopStore.open(Path(str(config.teacher)).expanduser())
    if store.about.temperature != config.teacher_temperature:
        raise UserError(
            f"The probabilities were stored at a temperature of {store.about.temperature:g}", where=str(config.teacher),
            next_step=f"set train.teacher_temperature={store.about.temperature:g}, or store them again",
        )  # fmt: skip
    keys = [row_key(row) for row in rows]
    missing = sum(key not in store.rows for key in keys)
    if missing:
        raise UserError(
            f"Of {missing:,} of {counted(len(keys), 'row')} no probabilities are stored", where=str(config.teacher),
            next_step="store them for these rows and this student's chat template: tuneloop distill --level logits",
        )  # fmt: skip
    return keys


def check_teacher(row: Row, rendered: Rendered, template: Template, config: TrainConfig) -> None:
    """Refuse a teacher that is asked in each step and reads other tokens than the student.

    Raises:
        UserError: another vocabulary, or another chat template.
    """
    if is_store(str(config.teacher)):
        return
    refuse_other_tokens(open_teacher(str(config.teacher)), row, rendered, template)


def teachers_template(config: TrainConfig) -> Template:
    """The tokenizer and chat template of a teacher whose tokens are not the student's.

    Raises:
        UserError: the store does not hold them; the student is to write answers, which nobody puts into the teacher's tokens.
    """
    if config.on_policy:
        raise UserError(
            "A teacher with other tokens can't score what the student writes", where="train.on_policy",
            next_step="set train.on_policy=0, or choose a teacher with the student's tokens",
        )  # fmt: skip
    name = str(config.teacher)
    if not is_store(name):
        return own_template(open_teacher(name))
    folder = Path(name).expanduser()
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            "These probabilities were stored for a student with the teacher's own tokens", where=name,
            next_step="store them again: tuneloop distill --level logits train.divergence=universal",
        )  # fmt: skip
    return load_template(folder)


def own_template(teacher: LocalTarget) -> Template:
    """A teacher's tokenizer with the chat template that it was trained with."""
    return with_template(load_tokenizer(teacher.base), teacher.source)


def teacher_hash(config: TrainConfig) -> list[str]:
    """Identity of what `config.teacher` names, as a list; empty without."""
    if config.teacher is None:
        return []
    if is_store(config.teacher):
        about = TopStore.open(Path(config.teacher).expanduser()).about
        return [content_hash([about.teacher_key, about.top, about.temperature])]
    return [open_teacher(config.teacher).identity]


def open_teacher(name: str) -> LocalTarget:
    """A teacher by its name; its model is not loaded."""
    return open_local(name)


def refuse_other_tokens(teacher: LocalTarget, row: Row, rendered: Rendered, template: Template) -> None:
    """Refuse a teacher whose probabilities are of other tokens than the student's.

    Args:
        row, rendered: one of the rows, as the student reads it by its template.

    Raises:
        UserError: another vocabulary, or another chat template.
    """
    theirs = own_template(teacher)
    if not same_tokens(theirs, template):
        raise UserError("Teacher and student have different tokens", where=teacher.name, next_step=BY_TEXT)
    if theirs.render(row.messages, row.tools).ids != rendered.ids:
        raise UserError(
            "Teacher and student have different chat templates, so the teacher would judge a form that it has not learned",
            where=teacher.name, next_step=BY_TEXT,
        )  # fmt: skip


def same_tokens(one: Template, other: Template) -> bool:
    """Whether the same ids stand for the same tokens; one vocabulary may go on where the other ends."""
    known, theirs = (each.tokenizer.get_vocab() for each in (one, other))
    shared = min(len(known), len(theirs))
    return all(theirs.get(token) == place for token, place in known.items() if place < shared)
