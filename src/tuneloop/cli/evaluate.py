"""`tuneloop evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from tuneloop.cli.console import Debug, Json, Quiet, Settings, print_json, screen, split_arguments

if TYPE_CHECKING:
    from tuneloop.inference.client import Endpoint

API_KEY = typer.Option("OPENAI_API_KEY", "--api-key-env", help="Environment variable with the endpoint's key.")
CONCURRENCY = typer.Option(8, "--concurrency", min=1, max=256, help="Requests to the endpoint at the same time.")
TIMEOUT = typer.Option(120.0, "--timeout", min=0.1, help="Seconds for one request to the endpoint.")
RETRIES = typer.Option(5, "--retries", min=0, max=20, help="Further tries of a request that may succeed later.")
PRICE_IN = typer.Option(0.0, "--usd-per-million-input", min=0, help="Price of 1M tokens that the endpoint reads.")
PRICE_OUT = typer.Option(0.0, "--usd-per-million-output", min=0, help="Price of 1M tokens that it writes.")
CACHE = typer.Option("", "--cache", help="Folder of the endpoint's answers; default: the user's cache.")
NO_CACHE = typer.Option(False, "--no-cache", help="Keep no answers of the endpoint.")


def command(
    target: str = typer.Argument(
        "", help="A run, an adapter, or a model: name, folder or GGUF file.", metavar="[RUN|ADAPTER|MODEL]"
    ),
    settings: Settings = None,
    endpoint: str = typer.Option("", "--endpoint", help="Ask an OpenAI-compatible server instead.", metavar="URL"),
    model: str = typer.Option("", "--model", "-m", help="The model, as the endpoint names it."),
    predictions: str = typer.Option(
        "", "--predictions", help='Answers made elsewhere instead: rows {"id" or "row", "prediction"}.', metavar="FILE"
    ),
    dataset: str = typer.Option("", "--dataset", "-d", help="Prepared data set; a run knows its own."),
    split: str = typer.Option("test", "--split", "-s", help="train, val or test."),
    data: str = typer.Option(
        "", "--data", "--references", help="A file whose rows are evaluated instead of a split's.", metavar="FILE"
    ),
    base: str = typer.Option("", "--base", help="An adapter's base; what a model was made from.", metavar="MODEL"),
    few_shot: int = typer.Option(0, "--few-shot", min=0, help="Examples in the prompt (from the training split)."),
    examples: str = typer.Option("balanced", "--examples", help="balanced, or the nearest of each row."),
    prompt: str = typer.Option(
        "", "--prompt", help="Template with {input}: text, or YAML of user and system.", metavar="FILE"
    ),
    production: str = typer.Option(
        "", "--production", help="What users sent: is the test like it, and the score reweighted.", metavar="FILE"
    ),
    name: str = typer.Option("", "--name", help="Of the contender; default: what kind it is."),
    out: str = typer.Option("", "--out", "-o", help="Folder for eval.json; default: the run's, or in evals/."),
    api_key_env: str = API_KEY,
    concurrency: int = CONCURRENCY,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
    usd_per_million_input: float = PRICE_IN,
    usd_per_million_output: float = PRICE_OUT,
    cache: str = CACHE,
    no_cache: bool = NO_CACHE,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure anything on any rows: a run, a model, an endpoint, or answers from a file.

    Settings of the recipe's evaluate section may follow: limit=100, general=FILE (forgetting), memorisation=true.
    Exit status 1: some requests to the endpoint have failed for good, or predictions and rows don't match one to one.
    """
    places, settings = split_arguments([target, *(settings or [])])
    if len(places) > 1:
        raise typer.BadParameter(f"{places[1]} is one target too many")
    if examples not in ("balanced", "nearest"):
        raise typer.BadParameter("--examples is balanced or nearest")
    if bool(endpoint) != bool(model):
        raise typer.BadParameter("--endpoint URL and --model NAME go together")
    server = None
    if endpoint:
        server = endpoint_of(
            endpoint, model, api_key_env, cache=cache, no_cache=no_cache, concurrency=concurrency, timeout=timeout, retries=retries,
            usd_per_million_input=usd_per_million_input, usd_per_million_output=usd_per_million_output,
        )  # fmt: skip
    from tuneloop.workflows.evaluations import EvalTarget, evaluate_target

    question = EvalTarget(
        places[0] if places else "", server, predictions, dataset, split, data, base, few_shot, examples, prompt,  # type: ignore[arg-type]
        production, name, out, settings,
    )  # fmt: skip
    with screen(quiet) as shown:
        found = evaluate_target(question, progress=shown.progress, say=shown.say)
    from tuneloop.core.files import read_json

    result = read_json(found.folder / "eval.json")
    if as_json:
        print_json({"path": str(found.folder), **result})
    else:
        _print(result)
        print(f"{found.folder / 'eval.json'}")
    if found.failed:
        raise typer.Exit(1)


def endpoint_of(
    url: str, model: str, api_key_env: str, *, cache: str = "", no_cache: bool = False, **settings: Any
) -> Endpoint:
    """An endpoint from options; answers are kept in the user's cache unless told otherwise."""
    from pathlib import Path

    from tuneloop.inference.client import Endpoint, key_from
    from tuneloop.models.names import cache_folder

    folder = None if no_cache else Path(cache) if cache else cache_folder() / "answers"
    endpoint = Endpoint(url, model, key_from(api_key_env), folder, **settings)
    _ = endpoint.address  # a wrong URL is told before anything is loaded
    return endpoint


def _print(result: dict[str, Any]) -> None:
    from tuneloop.report.facts import more_words

    for line in [*result["words"], *more_words(result)]:  # the verdict is the first
        print(line)
    for name, metric in result["metrics"].items():
        interval = "" if metric["low"] is None else f"  [{metric['low']:.3f}, {metric['high']:.3f}]"
        value = "unknown" if metric["value"] is None else f"{metric['value']:.3f}"
        print(f"  {name:<22} {value}{interval}")
    for note in result["notes"]:
        print(f"note: {note}")
