"""How a student was distilled, and whether that was worth it: `distillation.json`."""

from __future__ import annotations

from tuneloop.records.merge import Share
from tuneloop.records.record import Number, Part, Record


class PrunedStudent(Part):
    """A student made of a model by leaving layers out.

    Args:
        layers: how many it has; `of`: how many the model has.
        dropped: the first and the last layer that were left out.
        distance: angle between the states before and after these layers, as a share of half a turn.
    """

    layers: int
    of: int
    dropped: tuple[int, int]
    distance: float


class ModelCost(Part):
    """What a model's answers to the test rows cost.

    Args:
        parameters: of the model; None: a server's.
        rows_per_second: answered.
        usd_per_1000: dollars of 1,000 answers: by the recipe's price of this machine, `usd_per_hour`, or by an
            endpoint's prices of tokens; None: there is no price.
    """

    parameters: int | None = None
    rows_per_second: float
    usd_per_1000: float | None = None
    usd_per_hour: float | None = None


class DistilledFigures(Part):
    """What came of it, on test rows.

    Args:
        metric: that decides; `n`: rows.
        teacher, control, student: the metric's values. `control` is the same student trained on the rows' own answers.
        kept: the student's value as a share of the teacher's; None of a metric of which less is better.
        closed: share of the gap between control and teacher that the student closes; None: no significant gap.
        over_control: student - control, with its paired interval.
        teacher_cost, student_cost: what their answers took.
    """

    metric: str
    n: int
    teacher: Number
    student: Number
    control: Number | None = None
    kept: Share | None = None
    closed: Share | None = None
    over_control: Share | None = None
    teacher_cost: ModelCost | None = None
    student_cost: ModelCost | None = None


class DistillationRecord(
    Record, noun="a distillation", file="distillation.json", again="distil again: the teacher's answers are kept"
):
    """`distillation.json`: a student that learned from a teacher's answers.

    Args:
        teacher: as the user named it; `teacher_key`: hash of what its answers depend on.
        student: the model that was trained; `pruned`: how it was made of the teacher.
        level: what was learned: `text`, `logits` (stored probabilities) or `live` ones; `answers`: whose, the
            `teacher`'s or the rows' `own`.
        dataset: id of the data set whose prompts were used.
        asked, kept: prompts, and answers that were trained on; `dropped`: reason -> answers.
        unlabelled: of the prompts, those that had no answer of their own.
        agreement: share of the kept answers that are the rows' own.
        results: metrics on test rows; None without any.
        words: all that in sentences.
    """

    teacher: str
    teacher_key: str
    student: str
    pruned: PrunedStudent | None = None
    level: str = "text"
    answers: str = "teacher"
    dataset: str
    asked: int
    kept: int
    dropped: dict[str, int] = {}
    unlabelled: int = 0
    agreement: float | None = None
    results: DistilledFigures | None = None
    words: list[str] = []


class TeacherLogits(
    Record, noun="a teacher's stored probabilities", file="teacher.json", again="delete the folder and distil again"
):
    """`teacher.json`: what the stored probabilities of a teacher are of.

    Args:
        teacher: as the user named it; `teacher_key`: hash of its weights and template.
        vocabulary: tokens that it knows; `top`: likeliest tokens that are kept at each position.
        temperature: by which its logits were divided.
    """

    teacher: str
    teacher_key: str
    vocabulary: int
    top: int
    temperature: float
