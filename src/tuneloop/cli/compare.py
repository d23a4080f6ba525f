"""`tuneloop compare`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from tuneloop.cli.console import Debug, Json, Quiet, Screen, print_json, screen
from tuneloop.cli.evaluate import API_KEY, CACHE, CONCURRENCY, PRICE_IN, PRICE_OUT, TIMEOUT, endpoint_of

if TYPE_CHECKING:
    from tuneloop.evaluate.evaluate import Evaluation
    from tuneloop.evaluate.judge import Judgement
    from tuneloop.workflows.evaluations import EvalTarget
    from tuneloop.workflows.judge import Judge


def command(
    evaluations: list[str] = typer.Argument(
        None,
        help="Two or more folders with eval.json (FOLDER:NAME picks a baseline in it), or files of predictions.",
        metavar="A B...",
    ),
    references: str = typer.Option(
        "", "--references", "--data", help="What files of predictions are held against.", metavar="FILE"
    ),
    dataset: str = typer.Option("", "--dataset", "-d", help="Or a prepared data set."),
    split: str = typer.Option("test", "--split", "-s", help="Of the data set: train, val or test."),
    out: str = typer.Option("", "--out", "-o", help="Folder for eval.json; default: in evals/."),
    judge: str = typer.Option(
        "", "--judge", help="Let a model judge the pairs too: a local model, or an endpoint's URL."
    ),
    judge_model: str = typer.Option("", "--judge-model", help="The judge, as the endpoint names it."),
    judge_prompt: str = typer.Option(
        "", "--judge-prompt", help="Your own prompt, in the form of judge.yaml.", metavar="FILE"
    ),
    judge_rows: int = typer.Option(200, "--judge-rows", min=1, help="Rows that are judged at most."),
    votes: str = typer.Option("", "--votes", help="Folder of a review: hold the judge against its votes."),
    check_judge: str = typer.Option(
        "", "--check-judge", help="Instead: hold the judge against preferences or thumbs of people.", metavar="FILE"
    ),
    api_key_env: str = API_KEY,
    concurrency: int = CONCURRENCY,
    timeout: float = TIMEOUT,
    usd_per_million_input: float = PRICE_IN,
    usd_per_million_output: float = PRICE_OUT,
    cache: str = CACHE,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare evaluations of the same rows, paired, against the first. A judge's verdict stands beside the metrics."""
    chosen = None
    if judge or check_judge or votes:
        if not judge:
            raise typer.BadParameter("name the judge with --judge")
        chosen = _judge(
            judge, judge_model, judge_prompt, votes, judge_rows, api_key_env, cache=cache, concurrency=concurrency, timeout=timeout,
            usd_per_million_input=usd_per_million_input, usd_per_million_output=usd_per_million_output,
        )  # fmt: skip
    with screen(quiet) as shown:
        if check_judge:
            from tuneloop.workflows.judge import check_judge as check

            assert chosen is not None
            judgements = check(chosen, check_judge, shown.progress, shown.say)
            result: dict[str, Any] = {
                "judge": chosen.model,
                "checks": [{**j.facts, "words": j.words} for j in judgements],
            }
            words = [word for judgement in judgements for word in judgement.words]
        else:
            from tuneloop.workflows.evaluations import EvalTarget

            against = EvalTarget(dataset=dataset, split=split, data=references)
            result, words = _compare(evaluations or [], out, chosen, shown, against)
    if as_json:
        print_json(result)
        return
    if not check_judge:
        from rich.console import Console

        from tuneloop.report.compare_terminal import print_comparison

        print_comparison(result, evaluations, Console(markup=False, highlight=False))
    for word in words:
        print(word)
    if not check_judge:
        print(f"{result['path']}/eval.json")
        print(f"{result['path']}/report.html")


def _judge(judge: str, model: str, prompt: str, votes: str, rows: int, api_key_env: str, **endpoint: Any) -> Judge:
    from tuneloop.workflows.judge import Judge

    if judge.startswith(("http://", "https://")):
        if not model:
            raise typer.BadParameter("name the endpoint's model with --judge-model")
        return Judge(model, endpoint_of(judge, model, api_key_env, **endpoint), prompt, votes, rows)
    return Judge(judge, None, prompt, votes, rows)


def _compare(
    evaluations: list[str], out: str, judge: Judge | None, shown: Screen, against: EvalTarget
) -> tuple[dict[str, Any], list[str]]:
    """The comparison's eval.json with its place, and what the judge says."""
    from tuneloop.core.files import read_json
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
    return {"path": str(found.folder), **read_json(found.folder / "eval.json")}, words
