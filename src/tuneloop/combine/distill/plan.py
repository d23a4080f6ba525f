"""`tuneloop distill --plan`: what each step of distilling takes on rented machines, before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuneloop.advice.advise import make_question
from tuneloop.advice.economics import Serving, serving
from tuneloop.core.errors import UserError
from tuneloop.core.units import counted, exactly, usd_words
from tuneloop.data.dataset import load_dataset
from tuneloop.models.methods import WHOLE
from tuneloop.planning.options import plan_machines
from tuneloop.planning.prices import load_prices
from tuneloop.records.record import Part
from tuneloop.training.teachers import Layout

if TYPE_CHECKING:
    from tuneloop.combine.options import DistilOptions
    from tuneloop.records.rows import Dataset
    from tuneloop.training.config import TrainConfig

STUDENT_GPU = "h100-sxm"  # where no other is named
MOST_GPUS = 8
ARITHMETIC_SHARE = 0.5  # of the peak that a pass over known text reaches, as in advise's serving speed
BF16 = 2  # bytes
FOUR_BITS = 0.56  # bytes of a weight in four bits, its scales included


class PlannedPart(Part):
    """A part of distilling as planned.

    Args:
        what: it does; `machine`: that it is planned on.
        gib: of weights, for the teacher; at the peak, of each card, for the student.
        hours, usd: it takes; None: there is no price.
    """

    what: str
    machine: str
    gib: float
    hours: float
    usd: float | None = None


class DistillationPlan(Part):
    """What distilling will take.

    Args:
        teacher, student, dataset: as the user named them.
        rows: that train; `prompt_tokens`, `answer_tokens`: mean of a row.
        epochs: of the student.
        parts: in their order; `hours`, `usd`: of all.
        stored_bytes: of the teacher's probabilities.
    """

    teacher: str
    student: str
    dataset: str
    rows: int
    prompt_tokens: float
    answer_tokens: float
    epochs: float
    parts: list[PlannedPart]
    stored_bytes: float = 0.0
    hours: float
    usd: float


@dataclass(frozen=True)
class Amount:
    """How much there is to read and write."""

    rows: int
    prompt: float  # prompt, answer: mean tokens of each
    answer: float

    @property
    def tokens(self) -> float:
        """Of all rows."""
        return self.rows * (self.prompt + self.answer)


def amount_of(dataset: Dataset) -> Amount:
    """The training rows of a data set, by the tokenizer that it was prepared with.

    Raises UserError: its tokens were not counted.
    """
    split = dataset.manifest.splits.train
    tokens = split.tokens if split is not None else None
    if split is None or tokens is None or not split.rows:
        step = "prepare again with --model: its tokenizer counts"
        raise UserError("The tokens of the training rows are not counted", where=dataset.path, next_step=step)
    return Amount(split.rows, (tokens.total - tokens.supervised) / split.rows, tokens.supervised / split.rows)


def plan_distillation(
    teacher: str, student: str, dataset: str, options: DistilOptions, train: TrainConfig
) -> DistillationPlan:
    """Memory, hours and dollars of the teacher's answers, of its pass for probabilities, and of the student's training.

    Answers are written at the speed that `advise` expects of a server at full load. A pass takes 2 operations a weight
    and token at half of the cards' peak. The student's training, all its weights, is `plan`'s; a live teacher is whole
    on each of its cards.

    `teacher`, `student`: models by name; their sizes come from `plan`'s table or their config.json. Raises UserError:
    an unknown model, a teacher that no eight cards hold, tokens that were not counted.
    """
    epochs = train.epochs
    amount, prices = amount_of(load_dataset(dataset)), load_prices()
    machine = serving(make_question({"model": teacher}), prices, amount.prompt, amount.answer, "on-demand")
    if machine is None:
        raise UserError("No machine in the table serves this teacher", where=teacher, next_step="name another teacher")
    parts, stored = [], 0.0
    if options.answers == "teacher":
        tokens = amount.tokens * options.best_of
        parts.append(_part("the teacher writes", machine, tokens / machine.engine.tokens_per_second / 3600))
    if options.level != "text":
        passes = epochs if options.level == "live" else 1.0
        flops = 2.0 * machine.shape.parameters * amount.tokens * passes
        rate = machine.card.tflops * 1e12 * machine.gpus * ARITHMETIC_SHARE
        parts.append(_part("the teacher's probabilities", machine, flops / rate / 3600))
    if options.level == "logits":
        layout = Layout(min(options.top, machine.shape.vocabulary - 1), machine.shape.vocabulary)
        stored = layout.width * amount.rows * amount.answer
    live = 0.0
    if options.level == "live":
        live = machine.shape.parameters * (FOUR_BITS if train.teacher_bits == 4 else BF16) / 2**30
    parts.append(_student(student, amount, epochs, live))
    fields: dict[str, Any] = {
        "teacher": teacher, "student": student, "dataset": dataset, "rows": amount.rows, "epochs": epochs,
        "prompt_tokens": amount.prompt, "answer_tokens": amount.answer, "parts": parts, "stored_bytes": stored,
        "hours": sum(part.hours for part in parts), "usd": sum(part.usd or 0.0 for part in parts),
    }  # fmt: skip
    return DistillationPlan(**fields)


def _part(what: str, machine: Serving, hours: float) -> PlannedPart:
    gib, usd = machine.shape.parameters * BF16 / 2**30, hours * machine.engine.usd_per_hour
    return PlannedPart(what=what, machine=machine.engine.source, gib=gib, hours=hours, usd=usd)


def _student(student: str, amount: Amount, epochs: float, live: float) -> PlannedPart:
    """The student's training on as few cards as hold it, each with a live teacher of so many GiB."""
    settings: dict[str, Any] = {
        "model": student, "gpu": STUDENT_GPU, "tokens": round(amount.tokens), "epochs": epochs, "method": WHOLE,
    }  # fmt: skip
    for count in (1, 2, 4, MOST_GPUS):
        plan = plan_machines({**settings, "gpus": count})
        gib = plan["memory"]["peak_gib"] + live
        if plan["fits"] and gib <= plan["memory"]["capacity_gib"]:
            machine, hours, usd = f"{plan['gpus']} x {plan['gpu']}", plan["time"]["hours"], plan["cost"].get("usd")
            return PlannedPart(what="the student learns", machine=machine, gib=gib, hours=hours, usd=usd)
    teacher = f" next to a teacher of {live:,.0f} GiB on each of them" if live else ""
    what = f"No {MOST_GPUS} {STUDENT_GPU} hold the training of this student{teacher}"
    step = (
        "set train.teacher_bits=4, or use --level logits, which needs no teacher there"
        if live
        else "name a smaller one"
    )
    raise UserError(what, where=student, next_step=step)


def sentences(plan: DistillationPlan) -> Sequence[str]:
    """The plan in lines."""
    tokens = f"{plan.prompt_tokens:,.0f} tokens of prompt and {plan.answer_tokens:,.0f} of answer"
    lines = [f"{counted(plan.rows, 'row')} of {tokens}, {exactly(plan.epochs, 'pass')}"]
    for part in plan.parts:
        usd = usd_words(part.usd) if part.usd is not None else "no price"
        lines.append(f"  {part.what:<28} {part.hours:8.2f} hours  {usd:>8}  {part.gib:,.0f} GiB  {part.machine}")
    if plan.stored_bytes:
        lines.append(f"  stored probabilities         {plan.stored_bytes / 1e9:8.2f} GB")
    return [*lines, f"together {plan.hours:.2f} hours, {usd_words(plan.usd)}; estimates, nothing was run"]
