"""`tuneloop distill`."""

from __future__ import annotations

from pathlib import Path

import typer

from tuneloop.cli.console import Settings, print_json, screen, split_arguments
from tuneloop.cli.endpoint import EndpointOptions
from tuneloop.cli.parameters import Output, argument
from tuneloop.combine.options import DistilOptions
from tuneloop.core.flag import flag


def command(
    teacher: str = argument("TEACHER", "Who answers: a run, a model, a GGUF file or an endpoint's URL."),
    student: str = argument("[STUDENT]", "The smaller model that learns; or give --layers.", ""),
    settings: Settings = None,
    dataset: str = flag(..., "DATASET", "Prepared data set whose training prompts the teacher answers.", "-d"),
    out: str = flag(..., "RUN", "Folder of the student's run.", "-o"),
    *,
    options: DistilOptions,
    connection: EndpointOptions,
    output: Output,
) -> None:
    """Train a small model on a larger one's answers, and say whether it was worth it.

    Settings of the student's recipe may follow: train.epochs=3. The same student trained on the rows' own answers is the
    control. The teacher's answers are kept: the same command goes on where it was cut short.
    """
    from tuneloop.combine.distill.command import DistilInput, distil

    places, settings = split_arguments([student, *(settings or [])])
    places = [place for place in places if place]
    if len(places) > 1:
        raise typer.BadParameter(f"{places[1]} is one student too many")
    if teacher.startswith(("http://", "https://")) and not options.model:
        raise typer.BadParameter("An endpoint's URL and --model NAME go together")
    endpoint = (lambda url: connection.endpoint(url, options.model)) if options.model else None
    if options.plan:
        _plan(teacher, places, dataset, settings, options, output.json)
        return
    given = DistilInput(teacher, places[0] if places else "", dataset, settings, endpoint)
    with screen(output.quiet, "distilling") as shown:
        record = distil(given, Path(out), options)
    if output.json:
        print_json({"path": out, **record.to_json()})
    else:
        print("\n".join([*record.words, out]))


def _plan(
    teacher: str, places: list[str], dataset: str, settings: list[str], options: DistilOptions, as_json: bool
) -> None:  # fmt: skip
    from tuneloop.combine.distill.plan import plan_distillation, sentences
    from tuneloop.recipe import make_recipe

    if not places:
        raise typer.BadParameter("--plan needs a student's name: its size is read from there")
    found = plan_distillation(teacher, places[0], dataset, options, make_recipe({}, settings).train)
    if as_json:
        print_json(found.to_json())
    else:
        print("\n".join(sentences(found)))
