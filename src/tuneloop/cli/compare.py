"""`tuneloop compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import typer

from tuneloop.cli.answers import EXITS
from tuneloop.cli.console import Result
from tuneloop.cli.endpoint import JudgeChoice, PricedEndpointOptions
from tuneloop.cli.parameters import argument, output, screen
from tuneloop.core.errors import UserError
from tuneloop.core.files import Config, write_jsonl
from tuneloop.core.flag import flag, switch
from tuneloop.evaluation import EvalOptions
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.records.record import read_record

if TYPE_CHECKING:
    from rich.console import Console

    from tuneloop.evaluation import Judge, ScoredAnswers
    from tuneloop.records.review import JudgedRow


class AnswerOptions(Config):
    """Where the right answers are."""

    references: str = flag("", "FILE", "Right answers for files of predictions.", "--references", "--data")
    dataset: str = flag("", "FOLDER", "Or a prepared data set that has them.", "-d")
    split: str = flag("test", "NAME", "Split of it: train, val or test.", "-s")


class PasteOptions(Config):
    """What is written for others to look at."""

    PANEL: ClassVar[str] = "To paste"

    plot: str = flag("", "FILE", "Write the chart of the metric that decides: a .svg, .png or .pdf.")
    markdown: bool = switch("Print the verdict alone, as a paragraph in Markdown, for a pull request.")


class RefereeOptions(Config):
    """How the comparison is decided, and its line for CI."""

    PANEL: ClassVar[str] = "Decision"

    fail_if: str = flag("", "worse", "Exit 1 where a loss is shown, 3 where it is open, and print one line.")
    margin: float = flag(0.0, "X", "Points that may be lost: 2 accepts 87 % in place of 89 %.", least=0)
    metric: str = flag("", "NAME", "The metric that decides, of evaluations by other tools.")
    cluster: str = flag("", "FIELD", "Metadata field that items of one source share, of evaluations by other tools.")

    def check(self) -> None:
        """Raises UserError: an unknown condition, or a margin without one."""
        if self.fail_if not in ("", "worse"):
            raise UserError(f"No such condition {self.fail_if!r}", where="--fail-if", next_step="--fail-if worse")
        if self.margin and not self.fail_if:
            raise UserError("A margin of what?", where="--margin", next_step="add --fail-if worse")


class JudgeCheckOptions(JudgeChoice):
    """How much a model judges, and how it is checked."""

    PANEL: ClassVar[str] = "Judge"

    judge_rows: int = flag(200, "N", "Rows that are judged at most.", least=1)
    votes: str = flag("", "FOLDER", "Compare the judge with the votes of this review.")
    check_judge: str = flag("", "FILE", "Compare nothing else: measure the judge by people's preferences or thumbs.")


def command(
    evaluations: list[str] = argument(
        "A [B...]",
        "Folders with eval.json (FOLDER:NAME picks a baseline in it), files of predictions, or what other tools "
        "measured: Inspect, promptfoo, lm-eval, OpenAI evals, MLflow, DeepEval, ragas, CSV (FILE:NAME picks a system). "
        "One alone: its own comparison, or what it could show.",
        None,
    ),
    out: str = flag("", "FOLDER", "Folder for eval.json; default: in evals/.", "-o"),
    table: str = flag("", "NAME", "Print only the table of one folder's comparison, as markdown, latex or csv."),
    *,
    pasted: PasteOptions,
    answers: AnswerOptions,
    deciding: RefereeOptions,
    judging: JudgeCheckOptions,
    connection: PricedEndpointOptions,
) -> Result:
    """Compare evaluations of the same rows, each with the first one.

    Differences are tested row by row. The verdict of a judge is given with the metrics. One run, evaluation or
    comparison alone is shown as when it ended, and its report page is written again.
    Exit status with --fail-if worse: 0 not worse; 1 worse; 3 not enough evidence.
    """
    from tuneloop.evaluation.foreign import is_foreign

    deciding.check()
    scored_here = answers.references or answers.dataset or judging.judge or judging.check_judge
    if evaluations and not scored_here and any(map(is_foreign, evaluations)):
        with screen("comparing"):
            return _referee(evaluations, out, deciding)
    judge = judging.chosen(connection, judging.votes, judging.judge_rows)
    if judge is None and (judging.check_judge or judging.votes):
        raise typer.BadParameter("name the judge with --judge")
    if judge is None and evaluations and len(evaluations) == 1 and (table or Path(evaluations[0]).is_dir()):
        return _pasted(_of_one(Path(evaluations[0]), table), Path(evaluations[0]), pasted)
    if table:
        raise typer.BadParameter("--table prints the comparison of one folder: name one")
    with screen("comparing"):
        if judging.check_judge:
            assert judge is not None
            return _check_judge(judge, judging.check_judge)
        against = EvalOptions(dataset=answers.dataset, split=answers.split, data=answers.references)
        result, sentences = _compare(evaluations or [], out, judge, against)
    return _pasted(_decided(result, sentences, deciding), Path(result["path"]), pasted)


def _pasted(result: Result, folder: Path, pasted: PasteOptions) -> Result:
    """A comparison in a folder, with what others are shown of it."""
    from tuneloop.report import plot_comparison, read_run, summary_markdown

    if pasted.plot:
        plot_comparison(read_run(folder), Path(pasted.plot))
    if pasted.markdown:
        text = summary_markdown(read_run(folder))
        return replace(result, record={**result.record, "markdown": text}, text=[text])
    return result


def _decided(result: dict[str, Any], sentences: Sequence[str], deciding: RefereeOptions) -> Result:
    """The comparison; with `--fail-if` its line for CI and exit status."""
    from tuneloop.evaluation.gate import not_worse

    folder = Path(result["path"])
    if not deciding.fail_if:
        return Result(result, partial(_print, folder, sentences))
    ci = not_worse(read_record(EvaluationManifest, folder), deciding.margin)
    lines = [ci.message, *sentences, f"{folder}/eval.json", f"{folder}/report.html"]
    return Result({**result, "ci": vars(ci)}, lines[:1] if output().quiet else lines, EXITS[ci.status])


def _referee(places: list[str], out: str, deciding: RefereeOptions) -> Result:
    """Evaluations by other tools: compared, or of one alone what it could show."""
    from tuneloop.evaluation.foreign import Refereeing
    from tuneloop.evaluation.metrics import metric_of
    from tuneloop.pipeline import compare_foreign

    done = compare_foreign(places, out, Refereeing(deciding.metric, deciding.cluster))
    if isinstance(done, Path):
        folder = done
        return _decided({"path": str(folder), **read_record(EvaluationManifest, folder).to_json()}, [], deciding)
    if deciding.fail_if:
        raise UserError("Worse than what?", where=places[0], next_step="tuneloop compare A B --fail-if worse")
    power = done
    points = metric_of(power.metric).change_in_words
    alike, unrelated = points(power.alike), points(power.unrelated)
    needed = ", ".join(f"{points(float(size))}: {n:,}" for size, n in power.items_for.items())
    of = f"{power.items:,} items" + (f" in {power.clusters:,} clusters" if power.clusters < power.items else "")
    lines = [
        f"This evaluation ({of}) can see {alike} of {power.metric} between two versions of one system, and {unrelated} "
        "between unrelated ones (80 % power, p below 0.05)."
    ]
    lines += [f"Items that show a difference between two versions: {needed}."] if needed else []
    return Result({"place": places[0], **vars(power)}, lines)


def _print(folder: Path, sentences: Sequence[str], console: Console) -> None:
    from tuneloop.report import print_comparison

    print_comparison(read_record(EvaluationManifest, folder), console)
    for line in (*sentences, f"{folder}/eval.json", f"{folder}/report.html"):
        console.print(line, soft_wrap=True)


def _of_one(folder: Path, table: str) -> Result:
    """The comparison with which a run ends, its page written again."""
    from tuneloop.pipeline import summary
    from tuneloop.report import comparison_as, print_closing, write_page

    if table:
        if table not in ("markdown", "latex", "csv"):
            raise UserError(f"No such table {table!r}", where="--table", next_step="choose markdown, latex or csv")
        manifest = read_record(EvaluationManifest, folder / EvaluationManifest.file)
        text = comparison_as(manifest, table)  # type: ignore[arg-type]
        return Result({"table": text, "format": table}, [text.removesuffix("\n")])
    with screen("writing the report"):
        page = write_page(folder)
    return Result(
        summary(folder) | {"report": str(page)}, () if output().quiet else partial(print_closing, folder, verbose=True)
    )


def _check_judge(judge: Judge, file: str) -> Result:
    checks = judge.check(file)
    facts = {"judge": judge.model, "checks": [{**check.facts, "words": check.words} for check in checks]}
    return Result(facts, [sentence for check in checks for sentence in check.words])


def _compare(
    evaluations: list[str], out: str, judge: Judge | None, against: EvalOptions
) -> tuple[dict[str, Any], list[str]]:
    from tuneloop.pipeline import compare_evaluations, evaluate_files

    rows: list[JudgedRow] = []
    sentences: list[str] = []

    def ask(loaded: Mapping[str, ScoredAnswers]) -> dict[str, Any]:
        assert judge is not None
        judgement = judge.compare(loaded)
        rows.extend(judgement.rows)
        sentences.extend(judgement.words)
        return {"judge": judgement.facts}

    folders = evaluate_files(evaluations, against)
    folder = compare_evaluations(evaluations, out, judge=ask if judge else None, folders=folders)
    if rows:
        write_jsonl(folder / "judge.jsonl", rows)  # for people to look at
    return {"path": str(folder), **read_record(EvaluationManifest, folder).to_json()}, sentences
