"""`tuneloop distill`."""

from __future__ import annotations

from pathlib import Path

import typer

from tuneloop.cli.console import Result, one_place
from tuneloop.cli.endpoint import EndpointOptions
from tuneloop.cli.parameters import SETTINGS, argument, screen
from tuneloop.combine import DistilOptions
from tuneloop.core.flag import flag


def command(
    teacher: str = argument("TEACHER", "Who answers: a run, a model, a GGUF file or an endpoint's URL."),
    student: str = argument("[STUDENT]", "The smaller model that learns; or give --layers.", ""),
    settings: list[str] | None = SETTINGS,
    dataset: str = flag(..., "DATASET", "Prepared data set whose training prompts the teacher answers.", "-d"),
    out: str = flag(..., "RUN", "Folder of the student's run.", "-o"),
    *,
    options: DistilOptions,
    connection: EndpointOptions,
) -> Result:
    """Train a small model on a large one's answers; was it worth it?

    Settings of the student's recipe may follow: train.epochs=3. The same student trained on the rows' own answers is
    the control. The teacher's answers are kept: the same command continues where it was cut short.
    """
    from tuneloop.combine import distil

    student, settings = one_place(student, settings, "student")
    if teacher.startswith(("http://", "https://")) and not options.model:
        raise typer.BadParameter("An endpoint's URL and --model NAME go together")
    endpoint = (lambda url: connection.endpoint(url, options.model)) if options.model else None
    if options.plan:
        from tuneloop.combine import plan_distillation, plan_sentences
        from tuneloop.recipe import make_recipe

        if not student:
            raise typer.BadParameter("--plan needs a student's name: its size is read from there")
        plan = plan_distillation(teacher, student, dataset, options, make_recipe({}, settings).train)
        return Result(plan.to_json(), plan_sentences(plan))
    with screen("distilling"):
        record = distil((teacher, student, dataset), Path(out), options, settings, endpoint)
    return Result({"path": out, **record.to_json()}, [*record.words, out])
