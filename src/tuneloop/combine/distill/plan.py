"""`tuneloop distill --plan`: what each step of distilling takes on rented machines, before anything is spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tuneloop.advice import Serving, make_question, serving
from tuneloop.combine.distill.answers import unlabelled_rows
from tuneloop.combine.retained_gain import Score, difference
from tuneloop.core.errors import UserError
from tuneloop.core.units import counted, exactly, usd_words
from tuneloop.data import load_dataset
from tuneloop.evaluation import load_evaluation
from tuneloop.models.methods import WHOLE
from tuneloop.planning import plan_machines
from tuneloop.planning.catalogue import load_prices
from tuneloop.records.record import Part
from tuneloop.training import ProbabilityStore

if TYPE_CHECKING:
    from tuneloop.combine.options import DistilOptions
    from tuneloop.records.rows import Dataset
    from tuneloop.training import TrainConfig

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
        rows: that train; `further`: requests without answers; `prompt_tokens`, `answer_tokens`: mean of a row.
        epochs: of the student.
        parts: in their order; `hours`, `usd`: of all.
        stored_bytes: of the teacher's probabilities; `expected`: whether it should pay.
    """

    teacher: str
    student: str
    dataset: str
    rows: int
    further: int = 0
    prompt_tokens: float
    answer_tokens: float
    epochs: float
    parts: list[PlannedPart]
    expected: str
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
    epochs, loaded = train.epochs, load_dataset(dataset)
    amount, prices = amount_of(loaded), load_prices()
    further = len(unlabelled_rows(options.prompts, loaded, Counter())) if options.prompts else 0
    labelled, amount = amount.rows, replace(amount, rows=amount.rows + further)
    machine = serving(make_question({"model": teacher}), prices, amount.prompt, amount.answer, "on-demand")
    if machine is None:
        raise UserError("No machine in the table serves this teacher", where=teacher, next_step="name another teacher")
    parts, stored = [], 0.0
    if options.answers == "teacher" or further:
        requests = further if options.answers == "own" else amount.rows
        shots = options.few_shot * (amount.prompt + amount.answer)
        tokens = requests * (shots + amount.prompt + amount.answer) * options.best_of
        parts.append(_part("the teacher writes", machine, tokens / machine.engine.tokens_per_second / 3600))
    if options.level != "text":
        passes = epochs if options.level == "live" else 1.0
        flops = 2.0 * machine.shape.active_parameters * amount.tokens * passes
        rate = machine.card.tflops * 1e12 * machine.gpus * ARITHMETIC_SHARE
        parts.append(_part("the teacher's probabilities", machine, flops / rate / 3600))
    if options.level == "logits":
        width = ProbabilityStore.width(min(options.top, machine.shape.vocabulary - 1))
        stored = width * amount.rows * amount.answer
    live = 0.0
    if options.level == "live":
        live = machine.shape.parameters * (FOUR_BITS if train.teacher_bits == 4 else BF16) / 2**30
    parts.append(_student(student, amount, epochs, live))
    fields: dict[str, Any] = {
        "teacher": teacher, "student": student, "dataset": dataset, "rows": labelled, "further": further,
        "epochs": epochs, "expected": expectation(options.measured, labelled, further),
        "prompt_tokens": amount.prompt, "answer_tokens": amount.answer, "parts": parts, "stored_bytes": stored,
        "hours": sum(part.hours for part in parts), "usd": sum(part.usd or 0.0 for part in parts),
    }  # fmt: skip
    return DistillationPlan(**fields)


def expectation(measured: str, labelled: int, further: int) -> str:
    """Whether distilling should pay, by evaluations of teacher and student on the same rows.

    It paid where the teacher was shown to be better than the student tuned on the rows' own answers and had at least as
    many requests without answers to label as there were rows (docs/distill.md).

    Args:
        measured: folders of both evaluations, with a comma between; empty: nothing was measured.
        labelled, further: rows with their own answers, and requests without.

    Raises UserError: not two evaluations, or of different rows.
    """
    if not measured:
        return (
            "Whether it pays is not known: evaluate the teacher, and the student tuned on the rows' own answers, on the"
            " same rows, and give --measured TEACHER,STUDENT"
        )

    names = [name.strip() for name in measured.split(",")]
    if len(names) != 2:
        step = "give --measured TEACHER,STUDENT"
        raise UserError("Two evaluations say whether it should pay", where=measured, next_step=step)
    teacher, student = (load_evaluation(name) for name in names)
    if [row.id for row in teacher.rows] != [row.id for row in student.rows]:
        step = "evaluate both with the same --dataset and limit"
        raise UserError("The evaluations are of different rows", where=measured, next_step=step)
    delta = difference(Score.of(student, teacher.primary), Score.of(teacher, teacher.primary))
    gap = f"in {teacher.primary} the teacher differs from the student tuned on the rows' own answers by"
    if not delta.low > 0:
        return f"It should not pay: {gap} {delta.in_words()}, so it is not shown to be better"
    if further < labelled:
        more = f"fewer further requests ({further}) than rows ({labelled}): give more with --prompts"
        return f"It may pay: {gap} {delta.in_words()}, but there are {more}"
    return f"It should pay: {gap} {delta.in_words()}, and it labels {counted(further, 'further request')}"


def _part(task: str, machine: Serving, hours: float) -> PlannedPart:
    gib, usd = machine.shape.parameters * BF16 / 2**30, hours * machine.engine.usd_per_hour
    return PlannedPart(what=task, machine=machine.engine.source, gib=gib, hours=hours, usd=usd)


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
    message = f"No {MOST_GPUS} {STUDENT_GPU} hold the training of this student{teacher}"
    fewer = "set train.teacher_bits=4, or use --level logits, which needs no teacher there"
    step = fewer if live else "name a smaller one"
    raise UserError(message, where=student, next_step=step)


def plan_sentences(plan: DistillationPlan) -> Sequence[str]:
    """The plan in lines."""
    tokens = f"{plan.prompt_tokens:,.0f} tokens of prompt and {plan.answer_tokens:,.0f} of answer"
    further = f" and {counted(plan.further, 'further request')}" if plan.further else ""
    lines = [f"{counted(plan.rows, 'row')}{further} of {tokens}, {exactly(plan.epochs, 'pass')}"]
    for part in plan.parts:
        usd = usd_words(part.usd) if part.usd is not None else "no price"
        lines.append(f"  {part.what:<28} {part.hours:8.2f} hours  {usd:>8}  {part.gib:,.0f} GiB  {part.machine}")
    if plan.stored_bytes:
        lines.append(f"  stored probabilities         {plan.stored_bytes / 1e9:8.2f} GB")
    lines.append(f"together {plan.hours:.2f} hours, {usd_words(plan.usd)}; estimates, nothing was run")
    return [*lines, plan.expected]
