"""`tuneloop advise`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from tuneloop.cli.console import Debug, Json, Quiet, Settings, print_json, screen, split_arguments

if TYPE_CHECKING:
    from tuneloop.plan.advise import Advice

# What is asked when the command is called bare on a terminal: key, words, kind. Enter leaves it unknown.
QUESTIONS: tuple[tuple[str, str, type], ...] = (
    ("rows", "How many examples do you have?", int),
    ("task", "What is the task (classification, generation, chat)?", str),
    ("queries_per_day", "How many queries a day?", float),
    ("baseline_prompt_tokens", "How many tokens does a query's prompt take today, examples included?", float),
    ("prompt_tokens", "How many would it take without examples and instructions?", float),
    ("answer_tokens", "How many tokens does an answer take?", float),
    ("few_shot", "What share of test answers does today's best prompt get right (0 to 1)?", float),
    ("test_rows", "On how many test rows was that?", int),
    ("target", "What quality do you need (0 to 1)?", float),
    ("latency_ms", "In how many milliseconds must an answer be there?", float),
    ("budget_usd", "What may it cost, in dollars?", float),
    ("gpu", "Which GPU do you have (as in h100-sxm)?", str),
    ("facts_change", "Do the answers rest on facts that change (yes, no)?", bool),
)


def command(
    source: str = typer.Argument(
        "", help="Prepared data set, run, or evaluation to start from.", metavar="[DATASET|RUN|EVAL.json]"
    ),
    settings: Settings = None,
    measure: bool = typer.Option(
        False, "--measure", help="Measure the untouched model and cheap classifiers on the test rows first."
    ),
    evaluation: str = typer.Option("", "--eval", help="Measured results: an eval.json or its folder.", metavar="FILE"),
    metric: str = typer.Option("", "--metric", help="The metric that decides."),
    model: str = typer.Option("", "--model", "-m", help="Base model [llama-3.1-8b; smollm2-135m with --measure]."),
    task: str = typer.Option(None, "--task", help="classification, generation or chat."),
    rows: int = typer.Option(None, "--rows", help="Examples to train on."),
    labels: int = typer.Option(None, "--labels", help="Number of labels."),
    tokens_per_row: float = typer.Option(None, "--tokens-per-row", help="Tokens of a training row."),
    epochs: float = typer.Option(None, "--epochs", help="Passes over the examples [3]."),
    queries_per_day: float = typer.Option(None, "--queries-per-day", help="Volume."),
    baseline_prompt_tokens: float = typer.Option(
        None, "--baseline-prompt-tokens", help="Tokens of a query's prompt today."
    ),
    prompt_tokens: float = typer.Option(None, "--prompt-tokens", help="Tokens of the tuned model's prompt."),
    answer_tokens: float = typer.Option(None, "--answer-tokens", help="Tokens of an answer."),
    usd_per_million_input: float = typer.Option(None, "--usd-per-million-input", help="Price of 1M tokens read."),
    usd_per_million_output: float = typer.Option(None, "--usd-per-million-output", help="Price of 1M tokens written."),
    baseline_usd_per_million_input: float = typer.Option(
        None, "--baseline-usd-per-million-input", help="Price of 1M tokens read by today's model, where it is another."
    ),
    baseline_usd_per_million_output: float = typer.Option(
        None, "--baseline-usd-per-million-output", help="Price of 1M tokens written by it."
    ),
    zero_shot: float = typer.Option(None, "--zero-shot", help="Share right without examples, measured by you."),
    few_shot: float = typer.Option(None, "--few-shot", help="Share right with examples in the prompt."),
    classifier: float = typer.Option(None, "--classifier", help="Share right of a cheap classifier."),
    test_rows: int = typer.Option(None, "--test-rows", help="Rows that these were measured on."),
    target: float = typer.Option(None, "--target", help="Quality that is needed."),
    latency_ms: float = typer.Option(None, "--latency-ms", help="Milliseconds to an answer."),
    budget: float = typer.Option(None, "--budget", help="Dollars for everything upfront."),
    gpu: str = typer.Option(None, "--gpu", help="The GPU at hand; else the cheapest that fits is rented."),
    gpus: int = typer.Option(None, "--gpus", help="How many."),
    tier: str = typer.Option(None, "--tier", help="on-demand, spot or reserved."),
    usd_per_gpu_hour: float = typer.Option(None, "--usd-per-gpu-hour", help="What the GPU costs you."),
    prices: str = typer.Option(None, "--prices", help="Your own price file.", metavar="FILE"),
    months: float = typer.Option(None, "--months", help="Horizon of savings [12]."),
    retrain_months: float = typer.Option(None, "--retrain-months", help="Months between retrainings [never]."),
    engineer_hours: float = typer.Option(None, "--engineer-hours", help="Hours of engineering [16]."),
    usd_per_engineer_hour: float = typer.Option(
        None, "--usd-per-engineer-hour", help="What they cost [0: not counted]."
    ),
    rows_to_label: int = typer.Option(None, "--rows-to-label", help="Examples that people still have to write."),
    usd_per_labeller_hour: float = typer.Option(None, "--usd-per-labeller-hour", help="What their hours cost."),
    serving: str = typer.Option(
        None, "--serving", help="How the tuned model is billed: token, batch, real-time, hybrid."
    ),
    facts_change: bool = typer.Option(
        None, "--facts-change/--facts-stay", help="Whether answers rest on facts that change."
    ),
    new_domain: bool = typer.Option(
        None, "--new-domain/--known-domain", help="Whether the model has to learn much that is new."
    ),
    html: str = typer.Option("", "--html", help="Write a page with table and charts.", metavar="FILE"),
    out: str = typer.Option("", "--out", "-o", help="Folder for --measure [evals/advise-NAME]."),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say whether to fine-tune at all, how, and when it pays. Exit status 1: don't."""
    given = {
        key: value for key, value in locals().items() if key not in NOT_FACTS and value is not None and value != ""
    }
    if "budget" in given:
        given["budget_usd"] = given.pop("budget")
    places, settings = split_arguments([source, *(settings or [])])
    if len(places) > 1:
        raise typer.BadParameter(f"{places[1]} is one place too many")
    source = places[0] if places else ""
    if not source and not given and not evaluation and not settings and sys.stdin.isatty() and sys.stderr.isatty():
        given = _ask()
    from tuneloop.plan.advise import advise

    advice = advise(_question(source, evaluation, metric, given, _Measuring(measure, out, settings, quiet)))
    if html:
        from tuneloop.report.advise_html import write_advise_page

        write_advise_page(advice.to_json(), html)
    if as_json:
        print_json({**advice.to_json(), "html": html or None})
    else:
        _print(advice, html)
    if advice.answer == "dont":
        raise typer.Exit(1)


NOT_FACTS = ("source", "settings", "measure", "evaluation", "metric", "html", "out", "as_json", "quiet", "debug")


class _Measuring:
    """Whether and where to measure."""

    def __init__(self, wanted: bool, out: str, settings: list[str], quiet: bool) -> None:
        self.wanted, self.out, self.settings, self.quiet = wanted, out, settings, quiet


def _question(source: str, evaluation: str, metric: str, given: Mapping[str, Any], measuring: _Measuring) -> Any:
    """What flags say, over what the source and measured results say."""
    from tuneloop.plan.advise import make_question
    from tuneloop.plan.measured import known_of
    from tuneloop.types import UserError

    known: dict[str, Any] = {}
    if measuring.wanted:
        if not source:
            raise UserError("Measure on what?", where="--measure", next_step="tuneloop advise DATASET --measure")
        from tuneloop.pipeline.baselines import measure_alone
        from tuneloop.pipeline.recipes import recipe_of

        with screen(measuring.quiet) as shown:
            recipe = recipe_of(source, measuring.settings, model=str(given.get("model", "")))
            folder, dataset = measure_alone(recipe, measuring.out, progress=shown.progress, say=shown.say)
        known = {"model": recipe.model, **known_of(dataset.path), **known_of(folder, metric)}
    elif measuring.settings:
        raise UserError(
            f"{measuring.settings[0]} sets nothing here",
            where="advise",
            next_step="settings belong to --measure; give facts as flags",
        )
    elif source:
        known = known_of(source, metric)
    if evaluation:
        known |= known_of(evaluation, metric)
    facts = dict(given)
    if by_hand := _by_hand(facts):
        if known.get("measured"):
            raise UserError("Measured results are given twice", where="advise",
                            next_step="leave out --zero-shot, --few-shot and --classifier, or the evaluation")  # fmt: skip
        known["measured"] = by_hand
    return make_question({**known, **facts})


def _by_hand(facts: dict[str, Any]) -> Any:
    """What people measured themselves, taken out of the flags; None where nothing is given."""
    from tuneloop.plan.measured import by_hand
    from tuneloop.types import UserError

    test_rows = facts.pop("test_rows", None)
    names = {"zero_shot": "zero-shot", "few_shot": "few-shot", "classifier": "your classifier"}
    values = {name: facts.pop(key) for key, name in names.items() if key in facts}
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(
                f"{name} is {value}; it is a share from 0 to 1", where="advise", next_step="write 80 % as 0.8"
            )
    if test_rows is not None and not 1 <= test_rows <= 10**9:
        raise UserError(
            f"test rows are {test_rows}", where="--test-rows", next_step="give the rows measured on, 1 or more"
        )
    return by_hand(values, test_rows) if values else None


def _ask() -> dict[str, Any]:
    """The questions, on stderr; Enter leaves a fact unknown."""
    typer.echo("Enter leaves a question open; what is not known decides nothing.", err=True)
    given: dict[str, Any] = {}
    for key, words, kind in QUESTIONS:
        while True:
            text = typer.prompt(words, default="", show_default=False, err=True).strip()
            if not text:
                break
            try:
                given[key] = _read(text, kind)
                break
            except ValueError:
                typer.echo(f"  {text!r} is no answer to that; Enter leaves it open", err=True)
    return given


def _read(text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("y", "yes", "n", "no"):
            raise ValueError(text)
        return text.lower() in ("y", "yes")
    return text if kind is str else kind(text.replace(",", "").removeprefix("$"))


# --- on the terminal ---------------------------------------------------------------------------


def _say(console: Any, text: str, style: str = "", first: str = "", rest: str = "") -> None:
    """A paragraph with a hanging indent, at most 110 wide."""
    import textwrap

    from rich.text import Text

    width = min(console.width, 110)
    lines = textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
    console.print(Text("\n".join(lines), style=style))


def _print(advice: Advice, html: str) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    style = {"dont": "bold yellow", "prompt": "bold cyan", "tune": "bold green"}[advice.answer]
    _say(console, advice.headline, style)
    for i, reason in enumerate(advice.reasons):
        if i:
            _say(console, reason.says, "", "- ", "  ")
        _say(console, f"[{reason.rule}] {reason.source}", "dim", "  ", "  ")
    _print_ladder(advice, console)
    _print_options(advice, console)
    _print_rest(advice, console)
    if html:
        console.print(f"\nThe page: {html}", markup=False)


def _table(title: str, *columns: str) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), title=Text(title.strip(), style="bold"), title_justify="left"
    )
    for i, name in enumerate(columns):
        table.add_column(
            name, justify="left" if i == 0 else "right", header_style="dim", no_wrap=i > 0, min_width=0 if i else 14
        )
    return table


def _print_table(console: Any, table: Any) -> None:
    """A table after an empty line, without the blanks that fill its lines."""
    with console.capture() as shown:
        console.print(table)
    console.print("\n" + "\n".join(line.rstrip() for line in shown.get().splitlines()), markup=False, soft_wrap=True)


def _print_ladder(advice: Advice, console: Any) -> None:
    from tuneloop.report.advise_html import page_of_advice

    rungs = page_of_advice(advice.to_json())["ladder"]
    if not rungs:
        return
    table = _table(
        "\nMeasured; gain over the best prompt, tokens read, price of 1,000 queries",
        "contender",
        "quality",
        "gain",
        "tokens",
        "per 1,000",
        "training",
    )
    for c in rungs:
        table.add_row(c["name"], f"{c['value']} {c['bounds']}", c["gain"], c["tokens"], c["query"], c["training"])
    _print_table(console, table)


def _print_options(advice: Advice, console: Any) -> None:
    from tuneloop.report.advise_html import page_of_advice

    page = page_of_advice(advice.to_json())
    if page["alternatives"]:
        table = _table(
            "\nAlternatives", "", "quality", "upfront", "per 1,000", "a month", f"{page['months']} months", "pays back"
        )
        for a in page["alternatives"]:
            table.add_row(a["name"], a["quality"], a["upfront"], a["query"], a["month"], a["total"], a["pays"])
        _print_table(console, table)
    if page["bills"]:
        table = _table("\nA month on rented machines", "serving", "bill", "always on", "batch", "busy")
        for bill in page["bills"]:
            table.add_row(*bill)
        _print_table(console, table)


def _print_rest(advice: Advice, console: Any) -> None:
    training = advice.trainings.get(advice.method)
    if training and training.cost:
        from tuneloop.plan.advise_economy import hours_words

        cost, machine = training.cost, f"{training.job.gpus} x {training.job.gpu.key}"
        console.print()
        _say(
            console,
            f"Training: {hours_words(training.hours)} a run on {machine}; in all ${cost.p50:,.2f} (P50), ${cost.p90:,.2f} (P90)",
        )
    if advice.steps:
        console.print("\nNext", style="bold")
        for number, step in enumerate(advice.steps, 1):
            _say(console, step, "", f"  {number}. ", "     ")
    if advice.assumptions:
        console.print("\nAssumed", style="dim")
    for line in advice.assumptions:
        _say(console, line, "dim", "  - ", "    ")
    if advice.missing:
        _say(console, f"Not known: {', '.join(advice.missing)}", "dim", "", "  ")
