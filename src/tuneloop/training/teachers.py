"""Whether a teacher can teach: its tokens, its chat template, its stored probabilities. Needs no torch.

The store holds its likeliest next tokens: 770 bytes a position with 128 tokens. At each learned position K tokens are
kept with the logarithms of their probabilities, and that of all others together, in half precision, which is at most
1 % off down to a probability of 1e-7; all of a position are then scaled so that they and the tail add up to 1.

A folder holds `tokens.bin` (the positions of all rows, numpy records), `rows.jsonl` (which of them are whose) and
`teacher.json` (what they are of). Positions are appended and a row counts once its line stands, so a pass that was cut
short continues where it ended.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, drop_torn_line, read_jsonl, user_errors_of_the_disk
from tuneloop.core.lazy import np
from tuneloop.core.units import counted
from tuneloop.inference import LoadedTarget
from tuneloop.inference.local import open_local
from tuneloop.models import load_tokenizer
from tuneloop.models.chat import Rendered, Template, load_template, with_template
from tuneloop.records.distillation import TeacherLogits
from tuneloop.records.record import read_record, write_record
from tuneloop.records.rows import Row
from tuneloop.training.config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

TOKENS, ROWS = "tokens.bin", "rows.jsonl"
LEAST_LOG = -60.0  # of a probability


def is_store(name: str) -> bool:
    """Whether a teacher's name is a folder of stored probabilities."""
    return (Path(name).expanduser() / TeacherLogits.file).is_file()


def positions(row: Rendered) -> list[int]:
    """Where a learned token is predicted: places before learned tokens."""
    return [position - 1 for position in range(1, len(row.ids)) if row.mask[position] > 0]


def row_key(row: Rendered) -> str:
    """What a row's stored positions are found by: its tokens, and which of them are learned."""
    return content_hash([row.ids, [weight > 0 for weight in row.mask]])[:24]


@dataclass(frozen=True)
class TopProbabilities:
    """The likeliest tokens of a teacher at some positions."""

    ids_NK: Tensor
    p_NK: Tensor  # probabilities of the tokens `ids_NK`
    tail_N: Tensor  # probability of all other tokens together

    def part(self, which: slice) -> TopProbabilities:
        """Some of the positions."""
        return TopProbabilities(self.ids_NK[which], self.p_NK[which], self.tail_N[which])


def layout_of(top: int) -> np.dtype[np.void]:
    """How a position with so many tokens is stored."""
    return np.dtype([("ids", "<u4", top), ("log_p", "<f2", top), ("log_tail", "<f2")])


def pack(ids: np.ndarray, log_p: np.ndarray, log_tail: np.ndarray) -> np.ndarray:
    """Records (N) of positions: ids (N, top), logarithms of their probabilities, and of that of all others (N)."""
    packed = np.empty(len(ids), layout_of(ids.shape[1]))
    packed["ids"] = ids
    packed["log_p"], packed["log_tail"] = log_p.clip(LEAST_LOG, 0), log_tail.clip(LEAST_LOG, 0)
    return packed


def unpack(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids (N, top), their probabilities, and the tail's (N), which add up to 1."""
    p = np.exp(packed["log_p"].astype(np.float32))
    tail = np.exp(packed["log_tail"].astype(np.float32)).clip(0, 1)
    return packed["ids"].astype(np.int64), p * ((1 - tail) / p.sum(1))[:, None], tail


@dataclass
class TopStore:
    """A folder of stored positions."""

    folder: Path
    about: TeacherLogits  # what they are of
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)  # key of a row -> its first position, and how many
    _data: Any = None

    @property
    def width(self) -> int:
        """Bytes of a position."""
        return layout_of(self.about.top).itemsize

    @staticmethod
    def open(folder: Path) -> TopStore:
        """What is stored in a folder. Raises UserError: nothing is, or its files are damaged."""
        store = TopStore(folder, read_record(TeacherLogits, folder))
        file = folder / TOKENS
        size = file.stat().st_size // store.width if file.is_file() else 0
        for line in read_jsonl(folder / ROWS) if (folder / ROWS).is_file() else ():
            if line["first"] + line["positions"] > size:
                message = "A file of the teacher's probabilities is shorter than it was"
                raise UserError(message, where=str(file), next_step=f"delete {folder} and distil again")
            store.rows[line["row"]] = line["first"], line["positions"]
        return store

    @staticmethod
    def create(folder: Path, about: TeacherLogits) -> TopStore:
        """A folder to write to, or to continue. Raises UserError: it holds other probabilities, or can't be written."""
        with user_errors_of_the_disk(folder):
            if not (folder / TeacherLogits.file).is_file():
                folder.mkdir(parents=True, exist_ok=True)
                write_record(folder / TeacherLogits.file, about)
            if (folder / ROWS).is_file():
                drop_torn_line(folder / ROWS)
            store = TopStore.open(folder)
            if store.about != about:
                message, step = "Here are probabilities of another teacher", "choose another folder"
                raise UserError(message, where=str(folder), next_step=step)
            size = store.count * store.width
            if (folder / TOKENS).is_file() and (folder / TOKENS).stat().st_size > size:
                with (folder / TOKENS).open("r+b") as file:
                    file.truncate(size)
        return store

    @property
    def count(self) -> int:
        """Positions that rows have."""
        return max((first + some for first, some in self.rows.values()), default=0)

    def add(self, rows: Sequence[Rendered], packed: np.ndarray) -> None:
        """Append the positions of rows, in their order; they count when this returns."""
        first, lines = self.count, []
        for row in rows:
            some = len(positions(row))
            self.rows[row_key(row)] = first, some
            lines.append(json.dumps({"row": row_key(row), "first": first, "positions": some}) + "\n")
            first += some
        with user_errors_of_the_disk(self.folder):
            for name, data in ((TOKENS, packed.tobytes()), (ROWS, "".join(lines).encode())):
                with (self.folder / name).open("ab") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())

    def read(self, keys: Sequence[str]) -> TopProbabilities:
        """The positions of rows one behind the other, on the processor."""
        import torch

        if self._data is None:
            self._data = np.memmap(self.folder / TOKENS, layout_of(self.about.top), "r")
        parts = [self._data[first : first + some] for first, some in (self.rows[key] for key in keys)]
        ids, p, tail = unpack(np.concatenate(parts))
        return TopProbabilities(torch.from_numpy(ids), torch.from_numpy(p), torch.from_numpy(tail))


def top_of(logits_NV: Tensor, top: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest tokens of logits: ids, their log probabilities, and that of all others together (N)."""
    import torch

    scaled = logits_NV.float() / temperature
    values, ids = scaled.topk(top, -1, sorted=False)
    greatest = values.amax(-1, keepdim=True)
    # The likeliest are taken out: the tail is the sum of what is left, not a small difference from 1.
    rest = scaled.sub_(greatest).exp_().scatter_(1, ids, 0.0).sum(-1)
    values = values - greatest
    norm = (values.exp().sum(-1) + rest).log()
    return ids, values - norm[:, None], rest.clamp(min=torch.finfo(torch.float32).tiny).log() - norm


# --- whether it fits the student

BY_TEXT = "set train.divergence=universal, or learn from the teacher's answers: tuneloop distill --level text"


def keys_of(rows: Sequence[Rendered], config: TrainConfig) -> list[str]:
    """Keys of what is stored of rows; empty for a queried teacher. Raises UserError: nothing is stored of some row."""
    if not is_store(str(config.teacher)):
        return [""] * len(rows)
    if config.on_policy:
        message = "No probabilities are stored of answers that the student writes"
        raise UserError(message, where="train.on_policy", next_step="name a run or a model as train.teacher")
    store = TopStore.open(Path(str(config.teacher)).expanduser())
    temperature = store.about.temperature
    if temperature != config.teacher_temperature:
        message = f"The probabilities were stored at a temperature of {temperature:g}"
        step = f"set train.teacher_temperature={temperature:g}, or store them again"
        raise UserError(message, where=str(config.teacher), next_step=step)
    keys = [row_key(row) for row in rows]
    if missing := sum(key not in store.rows for key in keys):
        message = f"Of {missing:,} of {counted(len(keys), 'row')} no probabilities are stored"
        step = "store them for these rows and this student's chat template: tuneloop distill --level logits"
        raise UserError(message, where=str(config.teacher), next_step=step)
    return keys


def teachers_template(config: TrainConfig) -> Template:
    """The tokenizer and chat template of a teacher whose tokens are not the student's. Raises UserError: the store does
    not hold them; the student is to write answers, which are not converted to the teacher's tokens."""
    if config.on_policy:
        message = "A teacher with other tokens can't score what the student writes"
        step = "set train.on_policy=0, or choose a teacher with the student's tokens"
        raise UserError(message, where="train.on_policy", next_step=step)
    name = str(config.teacher)
    if not is_store(name):
        return own_template(open_local(name))
    folder = Path(name).expanduser()
    if not (folder / "tokenizer.json").is_file():
        message = "These probabilities were stored for a student with the teacher's own tokens"
        step = "store them again: tuneloop distill --level logits train.divergence=universal"
        raise UserError(message, where=name, next_step=step)
    return load_template(folder)


def own_template(teacher: LoadedTarget) -> Template:
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


def refuse_other_tokens(teacher: LoadedTarget, row: Row, rendered: Rendered, template: Template) -> None:
    """Refuse a teacher whose probabilities are of other tokens than the student's, by one row as the student reads it.
    Raises UserError: another vocabulary, or another chat template."""
    theirs = own_template(teacher)
    if not same_tokens(theirs, template):
        raise UserError("Teacher and student have different tokens", where=teacher.name, next_step=BY_TEXT)
    if theirs.render(row.messages, row.tools).ids != rendered.ids:
        message = "Teacher and student have different chat templates"
        message = f"{message}, so the teacher would judge a form that it has not learned"
        raise UserError(message, where=teacher.name, next_step=BY_TEXT)


def same_tokens(first: Template, other: Template) -> bool:
    """Whether the same ids mean the same tokens; one vocabulary may continue where the other ends."""
    ours, theirs = (template.tokenizer.get_vocab() for template in (first, other))
    shared = min(len(ours), len(theirs))
    return all(theirs.get(token) == token_id for token, token_id in ours.items() if token_id < shared)


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
    for number, position in enumerate(_places(teacher, of_teacher)):
        if position is not None:
            where[position].append(number)
    ours = _places(student, of_student)
    return tuple(where[index].popleft() if index is not None and where[index] else APART for index in ours)


def _places(row: Rendered, decode: Decode) -> list[int | None]:
    """Characters of the supervised text before each supervised token; None inside a character."""
    ids = [token for token, weight in zip(row.ids[1:], row.mask[1:], strict=True) if weight > 0]
    places: list[int | None] = []
    position, whole = 0, True
    for i, token in enumerate(ids):
        places.append(position if whole else None)
        before = list(ids[max(i - CONTEXT, 0) : i])
        text = decode([*before, token])
        position += len(text) - len(decode(before))
        whole = not text.endswith(BROKEN)
    return places
