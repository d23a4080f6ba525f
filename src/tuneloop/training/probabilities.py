"""A teacher's probabilities, stored once: of the answers that it writes meanwhile, of all other rows in a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.core.files import content_hash
from tuneloop.core.ui import say
from tuneloop.core.units import counted
from tuneloop.inference import Request
from tuneloop.models import load_tokenizer
from tuneloop.records.completion import Completion
from tuneloop.records.distillation import TeacherLogits
from tuneloop.records.rows import Dataset, Message, Row
from tuneloop.training.teachers import TopStore, layout_of, own_template, refuse_other_tokens, row_key

if TYPE_CHECKING:
    from torch import Tensor

    from tuneloop.inference import LoadedTarget
    from tuneloop.inference.local import ActiveRow
    from tuneloop.models.chat import Rendered, Template
    from tuneloop.training.config import TrainConfig

    States = dict[str, list[Tensor]]  # of an answer's tokens, by the request


@dataclass
class ProbabilityStore:
    """Stored probabilities of a teacher, in the form in which rows are read."""

    template: Template  # of the student; of a teacher with other tokens its own
    top: TopStore  # the folder
    written: int = 0  # rows that were stored while they were written

    @staticmethod
    def width(top: int) -> int:
        """Bytes of a position with so many tokens."""
        return layout_of(top).itemsize

    @staticmethod
    def open(
        cache: Path, local: LoadedTarget, key: str, row: Row, student: str, config: TrainConfig, top: int
    ) -> ProbabilityStore:
        """A teacher's store in a folder; what it holds from before stays.

        Args:
            key: the identity of the teacher and its task.
            row: by which the tokens of teacher and student are compared.
            student: whose tokenizer and template count.
            config: of its training: which divergence, at which temperature.
            top: tokens whose probabilities are stored at each position.

        Raises:
            UserError: teacher and student have different tokens or templates, and the divergence is not `universal`.
        """
        universal = config.divergence == "universal"
        template = own_template(local) if universal else load_tokenizer(student)
        if not universal:
            refuse_other_tokens(local, row, template.render(row.messages, row.tools), template)
        vocabulary = min(template.tokenizer.get_vocab_size(), local.model.head.shape[0])
        temperature = config.teacher_temperature
        about = TeacherLogits(
            teacher=local.name,
            teacher_key=key,
            vocabulary=vocabulary,
            top=min(top, vocabulary - 1),
            temperature=temperature,
        )
        parts = [about.teacher_key, about.top, temperature, *(["universal"] if universal else [])]
        folder = cache / f"logits-{content_hash(parts)[:12]}"
        if universal:
            template.save(folder)  # how the rows are read is next to what is stored of them
        return ProbabilityStore(template, TopStore.create(folder, about))

    def while_writing(self, teacher: LoadedTarget, requests: Sequence[Request]) -> list[Completion]:
        """The teacher's answers; stores what it finds likely at each token, from the states that it writes them from.

        Of an answer that the student reads as other tokens nothing is stored here: `complete` does that.
        """
        from tuneloop.inference.local import answer_requests

        rendered = [teacher.rendered(request) for request in requests]
        accepted = [rendered_row for rendered_row in rendered if isinstance(rendered_row, Request)]
        states: States = {}

        def watch(rows: Sequence[ActiveRow | None], hidden: Tensor) -> None:
            for row, state in zip(rows, hidden, strict=True):
                if row is not None:
                    states.setdefault(row.request.id, [])
                    if not row.new:  # its first token; again, where memory ran out before
                        states[row.request.id] = []
                    states[row.request.id].append(state)

        answers = answer_requests(teacher.model, accepted, watch=watch)
        self._keep(teacher, accepted, answers, states)
        rest = iter(answers)
        return [next(rest) if isinstance(rendered_row, Request) else rendered_row for rendered_row in rendered]

    def _keep(
        self, teacher: LoadedTarget, requests: Sequence[Request], answers: Sequence[Completion], states: States
    ) -> None:
        import torch

        from tuneloop.training.distil import store_states

        rows: list[Rendered] = []
        stored: list[Tensor] = []
        for request, answer in zip(requests, answers, strict=True):
            turn: Message = {"role": "assistant", "content": answer.text.strip()}
            if answer.finish != "stop" or not turn["content"]:
                continue  # not trained on
            row = self.template.render([*request.messages, turn], [dict(tool) for tool in request.tools])
            supervised = [token for token, weight in zip(row.ids, row.mask, strict=True) if weight]
            same = row.ids[: len(request.ids)] == list(request.ids) and supervised == list(answer.token_ids)
            if same and row_key(row) not in self.top.rows:
                rows.append(row)
                stored += states[request.id][: len(supervised)]
        if rows:
            store_states(teacher.model, rows, torch.stack(stored), self.top)
            self.written += len(rows)

    def complete(self, teacher: LoadedTarget, dataset: Dataset) -> None:
        """Read the training and validation rows that are not stored yet, in a pass of the teacher."""
        from tuneloop.training.distil import store_probabilities, stored_by

        rows: list[Row] = [*dataset.train, *dataset.val]
        rendered = [self.template.render(row.messages, row.tools) for row in rows]
        store_probabilities(teacher.model, rendered, self.top)
        stored_by.cache_clear()
        size = self.top.count * self.top.width
        positions = f"{self.top.count:,} positions: {size / 1e6:,.1f} MB, {self.top.width} bytes each"
        early = f"; of {counted(self.written, 'row')} stored while writing" if self.written else ""
        say(f"teacher   probabilities of {self.top.about.top} tokens at {positions}{early}")
