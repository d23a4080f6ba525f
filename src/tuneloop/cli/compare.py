"""`tuneloop compare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import typer

from tuneloop.cli.console import Screen, print_json, screen, terminal
from tuneloop.cli.endpoint import PricedEndpointOptions
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import flag
from tuneloop.evaluate.options import EvalOptions
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.records.record import read_record

if TYPE_CHECKING:
    from tuneloop.evaluate.evaluate import Evaluation
    from tuneloop.evaluate.judge import Judgement
    from tuneloop.workflows.judge import Judge


@dataclass(frozen=True)
class JudgeOptions:
    """A model as judge."""

    PANEL: ClassVar[str] = "Judge"

    judge: str = flag("", "MODEL|URL", "Let a model judge the pairs too: a local model, or an endpoint's URL.")
    judge_model: str = flag("", "NAME", "The judge, as the endpoint names it.")
    judge_prompt: str = flag("", "FILE", "Your own prompt, in the form of judge.yaml.")
    judge_rows: int = flag(200, "N", "Rows that are judged at most.", least=1)
    votes: str = flag("", "FOLDER", "Compare the judge with the votes of this review.")
    check_judge: str = flag("", "FILE", "Compare nothing else: measure the judge by people's preferences or thumbs.")

    def chosen(self, connection: PricedEndpointOptions) -> Judge | None:
        """The judge; None where none is asked for."""
        from tuneloop.workflows.judge import Judge

        if not self.judge:
            if self.check_judge or self.votes:
                raise typer.BadParameter("name the judge with --judge")
            return None
        if not self.judge.startswith(("http://", "https://")):
            return Judge(self.judge, None, self.judge_prompt, self.votes, self.judge_rows)
        if not self.judge_model:
            raise typer.BadParameter("name the endpoint's model with --judge-model")
        endpoint = connection.endpoint(self.judge, self.judge_model)
        return Judge(self.judge_model, endpoint, self.judge_prompt, self.votes, self.judge_rows)


def command(
    evaluations: list[str] = argument(
        "A B...",
        "Two or more folders with eval.json (FOLDER:NAME picks a baseline in it), or files of predictions.",
        None,
    ),
    references: str = flag("", "FILE", "Right answers for files of predictions.", "--references", "--data"),
    dataset: str = flag("", "FOLDER", "Or a prepared data set that has them.", "-d"),
    split: str = flag("test", "NAME", "Split of it: train, val or test.", "-s"),
    out: str = flag("", "FOLDER", "Folder for eval.json; default: in evals/.", "-o"),
    *,
    judging: JudgeOptions,
    connection: PricedEndpointOptions,
    output: Output,
) -> None:
    """Compare evaluations of the same rows, each with the first one.

    Differences are tested row by row. The verdict of a judge stands alongside the metrics.
    """
    judge = judging.chosen(connection)
    with screen(output.quiet, "comparing") as shown:
        if judging.check_judge:
            assert judge is not None
            result, words = _checked(judge, judging.check_judge, shown)
        else:
            against = EvalOptions(dataset=dataset, split=split, data=references)
            result, words = _compare(evaluations or [], out, judge, shown, against)
    if output.json:
        print_json(result)
        return
    if not judging.check_judge:
        from tuneloop.report.compare_terminal import print_comparison

        print_comparison(read_record(EvaluationManifest, Path(result["path"])), terminal(markup=False, highlight=False))
    for word in words:
        print(word)
    if not judging.check_judge:
        print(f"{result['path']}/eval.json")
        print(f"{result['path']}/report.html")


def _checked(judge: Judge, file: str, shown: Screen) -> tuple[dict[str, Any], list[str]]:
    from tuneloop.workflows.judge import check_judge

    found = check_judge(judge, file, shown.progress, shown.say)
    facts = {"judge": judge.model, "checks": [{**one.facts, "words": one.words} for one in found]}
    return facts, [word for one in found for word in one.words]


def _compare(
    evaluations: list[str], out: str, judge: Judge | None, shown: Screen, against: EvalOptions
) -> tuple[dict[str, Any], list[str]]:
    from tuneloop.workflows.compare import compare_evaluations, evaluate_files
    from tuneloop.workflows.judge import judge_evaluations, write_verdicts

    judged: list[Judgement] = []

    def ask(loaded: Mapping[str, Evaluation]) -> dict[str, Any]:
        assert judge is not None
        judged.append(judge_evaluations(judge, loaded, shown.progress, shown.say))
        return {"judge": judged[0].facts}

    folders = evaluate_files(evaluations, against, shown.say)
    found = compare_evaluations(evaluations, out, judge=ask if judge else None, folders=folders, say=shown.say)
    for judgement in judged:
        write_verdicts(found.folder, judgement)
    words = [word for judgement in judged for word in judgement.words]
    return {"path": str(found.folder), **read_record(EvaluationManifest, found.folder).to_json()}, words
