"""`tuneloop distill --plan`: what each step of distilling takes on rented machines, before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuneloop.advise.advise import make_question
from tuneloop.advise.economics import Serving, serving
from tuneloop.core.errors import UserError
from tuneloop.core.units import counted, exactly, usd_words
from tuneloop.data.dataset import load_dataset
from tuneloop.models.methods import WHOLE
from tuneloop.plan.options import plan_machines
from tuneloop.plan.prices import load_prices
from tuneloop.records.distillation import DistillationPlan, PlannedPart
from tuneloop.training.top_logits import Layout

if TYPE_CHECKING:
    from tuneloop.combine.options import DistilOptions
    from tuneloop.records.rows import Dataset
    from tuneloop.training.config import TrainConfig

STUDENT_GPU = "h100-sxm"  # where no other is named
MOST_GPUS = 8
ARITHMETIC_SHARE = 0.5  # of the peak that a pass over known text reaches, as in advise's serving speed
BF16 = 2  # bytes
FOUR_BITS = 0.56  # bytes of a weight in four bits, its scales included


@dataclass(frozen=True)
class Amount:
    """How much there is to read and write: rows, and mean tokens of a prompt and of an answer."""

    rows: int
    prompt: float
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
        raise UserError(
            "The tokens of the training rows are not counted", where=dataset.path,
            next_step="prepare again with --model: its tokenizer counts",
        )  # fmt: skip
    return Amount(split.rows, (tokens.total - tokens.supervised) / split.rows, tokens.supervised / split.rows)


def plan_distillation(
    teacher: str, student: str, dataset: str, options: DistilOptions, train: TrainConfig
) -> DistillationPlan:
    """Memory, hours and dollars of the teacher's answers, of its pass for probabilities, and of the student's training.

    Answers are written at the speed that `advise` expects of a server at full load. A pass takes 2 operations a weight and
    token at half of the cards' peak. The student's training, all its weights, is `plan`'s; a live teacher is whole on each of its
    cards.

    Args:
        teacher, student: models by name; their sizes come from `plan`'s table or their config.json.

    Raises:
        UserError: an unknown model, a teacher that no eight cards hold, tokens that were not counted.
    """
    epochs = train.epochs
    amount, prices = amount_of(load_dataset(dataset)), load_prices()
    question = make_question({"model": teacher})
    held = serving(question, prices, amount.prompt, amount.answer, "on-demand")
    if held is None:
        raise UserError("No machine in the table serves this teacher", where=teacher, next_step="name another teacher")
    parts, stored = [], 0.0
    if options.answers == "teacher":
        written = Amount(amount.rows * options.best_of, amount.prompt, amount.answer)
        parts.append(_part("the teacher writes", held, written.tokens / held.engine.tokens_per_second / 3600))
    if options.level != "text":
        passes = epochs if options.level == "live" else 1.0
        flops = 2.0 * held.shape.parameters * amount.tokens * passes
        rate = held.card.tflops * 1e12 * held.gpus * ARITHMETIC_SHARE
        parts.append(_part("the teacher's probabilities", held, flops / rate / 3600))
    if options.level == "logits":
        layout = Layout(min(options.top, held.shape.vocabulary - 1), held.shape.vocabulary)
        stored = layout.width * amount.rows * amount.answer
    live = 0.0
    if options.level == "live":
        live = held.shape.parameters * (FOUR_BITS if train.teacher_bits == 4 else BF16) / 2**30
    parts.append(_student(student, amount, epochs, live))
    return DistillationPlan(
        teacher=teacher, student=student, dataset=dataset, rows=amount.rows, prompt_tokens=amount.prompt,
        answer_tokens=amount.answer, epochs=epochs, parts=parts, stored_bytes=stored,
        hours=sum(part.hours for part in parts), usd=sum(part.usd or 0.0 for part in parts),
    )  # fmt: skip


def _part(what: str, held: Serving, hours: float) -> PlannedPart:
    """A part of the teacher's, on the machine that holds it."""
    return PlannedPart(
        what=what, machine=held.engine.source, gib=held.shape.parameters * BF16 / 2**30, hours=hours,
        usd=hours * held.engine.usd_per_hour,
    )  # fmt: skip


def _student(student: str, amount: Amount, epochs: float, live: float) -> PlannedPart:
    """The student's training on as few cards as hold it, each with a live teacher of so many GiB."""
    settings: dict[str, Any] = {
        "model": student, "gpu": STUDENT_GPU, "tokens": round(amount.tokens), "epochs": epochs, "method": WHOLE,
    }  # fmt: skip
    for count in (1, 2, 4, MOST_GPUS):
        plan = plan_machines({**settings, "gpus": count})
        gib = plan["memory"]["peak_gib"] + live
        if plan["fits"] and gib <= plan["memory"]["capacity_gib"]:
            machine = f"{plan['gpus']} x {plan['gpu']}"
            return PlannedPart(
                what="the student learns", machine=machine, gib=gib, hours=plan["time"]["hours"], usd=plan["cost"].get("usd")
            )  # fmt: skip
    teacher = f" next to a teacher of {live:,.0f} GiB on each of them" if live else ""
    raise UserError(
        f"No {MOST_GPUS} {STUDENT_GPU} hold the training of this student{teacher}", where=student,
        next_step="set train.teacher_bits=4, or take --level logits: then the teacher is not there" if live else "name a smaller one",
    )  # fmt: skip


def sentences(plan: DistillationPlan) -> Sequence[str]:
    """The plan in lines."""
    lines = [
        f"{counted(plan.rows, 'row')} of {plan.prompt_tokens:,.0f} tokens of prompt and {plan.answer_tokens:,.0f} of answer, "
        f"{exactly(plan.epochs, 'pass')}"
    ]
    for part in plan.parts:
        usd = usd_words(part.usd) if part.usd is not None else "no price"
        lines.append(f"  {part.what:<28} {part.hours:8.2f} hours  {usd:>8}  {part.gib:,.0f} GiB  {part.machine}")
    if plan.stored_bytes:
        lines.append(f"  stored probabilities         {plan.stored_bytes / 1e9:8.2f} GB")
    return [*lines, f"together {plan.hours:.2f} hours, {usd_words(plan.usd)}; estimates, nothing was run"]
