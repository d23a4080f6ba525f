"""Whether a teacher can teach: its tokens, its chat template, its stored probabilities. Needs no torch."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash
from tuneloop.core.units import counted
from tuneloop.inference.answer import with_template
from tuneloop.inference.local.target import LocalTarget, open_local
from tuneloop.models.load import load_tokenizer
from tuneloop.models.template import Rendered, Template, load_template
from tuneloop.records.rows import Row
from tuneloop.training.config import TrainConfig
from tuneloop.training.top_logits import TopStore, is_store, row_key

BY_TEXT = "set train.divergence=universal, or learn from the teacher's answers: tuneloop distill --level text"


def keys_of(rows: Sequence[Rendered], config: TrainConfig) -> list[str]:
    """Keys of what is stored of rows; empty for a queried teacher. Raises UserError: nothing is stored of some row."""
    if not is_store(str(config.teacher)):
        return [""] * len(rows)
    if config.on_policy:
        what = "No probabilities are stored of answers that the student writes"
        raise UserError(what, where="train.on_policy", next_step="name a run or a model as train.teacher")
    store = TopStore.open(Path(str(config.teacher)).expanduser())
    temperature = store.about.temperature
    if temperature != config.teacher_temperature:
        what = f"The probabilities were stored at a temperature of {temperature:g}"
        step = f"set train.teacher_temperature={temperature:g}, or store them again"
        raise UserError(what, where=str(config.teacher), next_step=step)
    keys = [row_key(row) for row in rows]
    if missing := sum(key not in store.rows for key in keys):
        what = f"Of {missing:,} of {counted(len(keys), 'row')} no probabilities are stored"
        step = "store them for these rows and this student's chat template: tuneloop distill --level logits"
        raise UserError(what, where=str(config.teacher), next_step=step)
    return keys


def teachers_template(config: TrainConfig) -> Template:
    """The tokenizer and chat template of a teacher whose tokens are not the student's. Raises UserError: the store does
    not hold them; the student is to write answers, which are not converted to the teacher's tokens."""
    if config.on_policy:
        what = "A teacher with other tokens can't score what the student writes"
        step = "set train.on_policy=0, or choose a teacher with the student's tokens"
        raise UserError(what, where="train.on_policy", next_step=step)
    name = str(config.teacher)
    if not is_store(name):
        return own_template(open_local(name))
    folder = Path(name).expanduser()
    if not (folder / "tokenizer.json").is_file():
        what = "These probabilities were stored for a student with the teacher's own tokens"
        step = "store them again: tuneloop distill --level logits train.divergence=universal"
        raise UserError(what, where=name, next_step=step)
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
    return [open_local(config.teacher).identity]


def refuse_other_tokens(teacher: LocalTarget, row: Row, rendered: Rendered, template: Template) -> None:
    """Refuse a teacher whose probabilities are of other tokens than the student's, by one row as the student reads it.
    Raises UserError: another vocabulary, or another chat template."""
    theirs = own_template(teacher)
    if not same_tokens(theirs, template):
        raise UserError("Teacher and student have different tokens", where=teacher.name, next_step=BY_TEXT)
    if theirs.render(row.messages, row.tools).ids != rendered.ids:
        what = "Teacher and student have different chat templates"
        what = f"{what}, so the teacher would judge a form that it has not learned"
        raise UserError(what, where=teacher.name, next_step=BY_TEXT)


def same_tokens(one: Template, other: Template) -> bool:
    """Whether the same ids mean the same tokens; one vocabulary may continue where the other ends."""
    ours, theirs = (each.tokenizer.get_vocab() for each in (one, other))
    shared = min(len(ours), len(theirs))
    return all(theirs.get(token) == place for token, place in ours.items() if place < shared)


CONTEXT = 16  # tokens before a token that are decoded with it: its text may depend on them
APART = -1  # a position that has no counterpart
BROKEN = "\ufffd"  # the decoded beginning of a character whose rest is in the next token

Decode = Callable[[Sequence[int]], str]


def aligned(student: Rendered, teacher: Rendered, of_student: Decode, of_teacher: Decode) -> tuple[int, ...]:
    """For each supervised position of the student the number of the teacher's that has read the same text, or `APART`.

    Two tokenizers cut a text differently. Where both have a border at the same character, each predicts what follows
    the same text. Supervised tokens alone count, so the prompts may be in different forms.

    Args:
        student, teacher: one conversation, rendered by either's template.
        of_student, of_teacher: text of token ids, control tokens left out.
    """
    where: defaultdict[int, deque[int]] = defaultdict(deque)
    for number, place in enumerate(_places(teacher, of_teacher)):
        if place is not None:
            where[place].append(number)
    ours = _places(student, of_student)
    return tuple(where[place].popleft() if place is not None and where[place] else APART for place in ours)


def _places(row: Rendered, decode: Decode) -> list[int | None]:
    """Characters of the supervised text before each supervised token; None inside a character."""
    ids = [token for token, weight in zip(row.ids[1:], row.mask[1:], strict=True) if weight > 0]
    places: list[int | None] = []
    place, whole = 0, True
    for i, token in enumerate(ids):
        places.append(place if whole else None)
        before = list(ids[max(i - CONTEXT, 0) : i])
        text = decode([*before, token])
        place += len(text) - len(decode(before))
        whole = not text.endswith(BROKEN)
    return places
