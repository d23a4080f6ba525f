"""`tuneloop advise`."""

from __future__ import annotations

import sys
import textwrap
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from tuneloop.advice import AdviseOptions
from tuneloop.cli.console import Result, one_place
from tuneloop.cli.parameters import SETTINGS, amount, argument, count, given, screen
from tuneloop.core.files import write_text
from tuneloop.core.flag import flag, switch
from tuneloop.core.terminal import plain_table
from tuneloop.core.units import usd_words

if TYPE_CHECKING:
    from tuneloop.advice import Advice

# The questions of the command when it is called bare on a terminal: key, words, kind. Enter leaves it unknown.
QUESTIONS: tuple[tuple[str, str, type], ...] = (
    ("rows", "How many examples do you have?", int),
    ("task", "What is the task (classification, generation, chat)?", str),
    ("queries_per_day", "How many queries a day?", float),
    ("baseline_prompt_tokens", "How many tokens does a query's prompt take today, examples included?", float),
    ("prompt_tokens", "How many tokens would it take without examples and instructions?", float),
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
    source: str = argument("[DATA|RECIPE.yaml|RUN|EVAL.json]", "Examples, data set, recipe, run or evaluation.", ""),
    settings: list[str] | None = SETTINGS,
    measure: bool = switch("Measure the base model and cheap classifiers on the test rows first."),
    html: str = flag("", "FILE", "Write a page with tables and charts."),
    out: str = flag("", "FOLDER", "Folder of the answer, data and measurements; default: evals/advise-NAME.", "-o"),
    verbose: bool = switch("Print sources, a month's bills, the parts of the cost and what is assumed, too."),
    *,
    options: AdviseOptions,
) -> Result:
    """Say whether to fine-tune at all, how, and when it pays off.

    What you know can be given as options; the rest is read from the data, or stays open. Exit status 1: don't
    fine-tune.
    """
    facts = given(options)
    source, settings = one_place(source, settings)
    if not source and not facts and not settings and sys.stdin.isatty() and sys.stderr.isatty():
        facts = _ask()
    from tuneloop.pipeline import advise_on

    doing = "measuring" if measure else "reading the data"
    with screen(doing) if source else nullcontext():
        advice = advise_on(source, facts, settings, measure=measure, out=out)
    if html:
        from tuneloop.report import render_advise_page

        write_text(html, render_advise_page(advice.record()))
    record = {**advice.record().to_json(), "html": html or None}
    return Result(record, partial(_print, advice, html, verbose), int(advice.answer == "dont"))


MOST_REASONS = 2  # next to the headline
HEADER, NAMES = 10, 16  # columns of a header before it is broken, and of a table's first column at least


def _ask() -> dict[str, Any]:
    """The questions, on stderr; Enter leaves a fact unknown."""
    typer.echo("Enter leaves a question open; what is not known decides nothing.", err=True)
    facts: dict[str, Any] = {}
    for key, question, kind in QUESTIONS:
        while text := typer.prompt(question, default="", show_default=False, err=True).strip():
            try:
                facts[key] = _read(text, kind)
                break
            except ValueError:
                typer.echo(f"  {text!r} does not answer that; Enter leaves it open", err=True)
    return facts


def _read(text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("y", "yes", "n", "no"):
            raise ValueError(text)
        return text.lower() in ("y", "yes")
    if kind is str:
        return text
    try:
        return count(text) if kind is int else amount(text)
    except typer.BadParameter as error:
        raise ValueError(error.message) from None


# --- on the terminal ---------------------------------------------------------------------------


def _say(console: Any, text: str, style: str = "", first: str = "", rest: str = "") -> None:
    """A paragraph with a hanging indent, at most 110 wide."""
    from rich.text import Text

    width = min(console.width, 110)
    lines = textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
    console.print(Text("\n".join(lines), style=style))


def _print(advice: Advice, html: str, verbose: bool, console: Any) -> None:
    style = {"dont": "bold yellow", "prompt": "bold cyan", "tune": "bold green"}[advice.answer]
    _say(console, advice.headline, style)
    if verbose and advice.reasons:
        _say(console, f"(rule {advice.reasons[0].rule}; source: {advice.reasons[0].source})", "dim")
    for reason in advice.reasons[1 : None if verbose else 1 + MOST_REASONS]:
        _say(console, reason.says, "", "- ", "  ")
    _print_leaderboard(advice, console)
    _print_options(advice, console, verbose)
    _print_cost(advice, console, verbose)
    _print_rest(advice, console, verbose)
    if html:
        console.print(f"\nThe page: {html}")


def _table(title: str, *columns: str) -> Any:
    from rich.text import Text

    table = plain_table(title=Text(title.strip(), style="bold"), title_justify="left")
    for i, name in enumerate(columns):
        header = "\n".join(textwrap.wrap(name, HEADER)) if i else name
        table.add_column(header, justify="left" if i == 0 else "right", header_style="dim", no_wrap=i > 0)
    return table


def _print_table(console: Any, table: Any) -> None:
    """A table after an empty line, without the blanks that fill its lines.

    Where the console is too narrow, names in the first column are broken at words, and what is still too wide runs
    over: a cut number says nothing.
    """
    from rich.measure import Measurement

    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    first = table.columns[0]
    names = max(len(line) for cell in (first.header, *first.cells) for line in str(cell).split("\n"))
    first.width = min(names, max(NAMES, names - max(0, needed - console.width)))
    width, console.width = console.width, max(console.width, needed)
    with console.capture() as capture:
        console.print(table)
    console.width = width
    console.print("\n" + "\n".join(line.rstrip() for line in capture.get().splitlines()), soft_wrap=True)


def _print_leaderboard(advice: Advice, console: Any) -> None:
    from tuneloop.report import page_of_advice

    rows = page_of_advice(advice.record())["leaderboard"]
    if not rows:
        return
    titles = {"gain": "gain over the best prompt", "tokens": "tokens read", "query": "1,000 queries"}
    keys = [key for key in (*titles, "training") if any(row[key] for row in rows)]
    names = [titles.get(key, key) for key in keys]
    table = _table("\nMeasured", "system", f"quality ({rows[0]['metric']})", *names)
    for row in rows:
        table.add_row(row["name"], f"{row['value']} {row['bounds']}", *(row[key] for key in keys))
    _print_table(console, table)


def _print_options(advice: Advice, console: Any, verbose: bool) -> None:
    from tuneloop.report import page_of_advice

    page = page_of_advice(advice.record())
    if page["alternatives"]:
        table = _table("\nAlternatives", "", "quality", "upfront", "per 1,000", "a month", page["months"], "pays back")
        for a in page["alternatives"]:
            table.add_row(a["name"], a["quality"], a["upfront"], a["query"], a["month"], a["total"], a["pays"])
        _print_table(console, table)
        for a in page["alternatives"]:
            if any(phrase in a["note"] for phrase in ("no price by the token", "trained tokens")):
                _say(console, f"{a['name']}: {a['note']}", "dim", "", "  ")
    if page["bills"] and verbose:
        table = _table("\nA month on rented machines", "serving", "bill", "always on", "batch", "busy")
        for bill in page["bills"]:
            table.add_row(*bill)
        _print_table(console, table)


def _print_cost(advice: Advice, console: Any, verbose: bool) -> None:
    from tuneloop.records.plan import PlannedCost
    from tuneloop.report import cost_lines, until_kept_words

    training = advice.trainings.get(advice.costed)
    about_money = advice.answer != "dont" or advice.reasons[0].rule in ("over-budget", "does-not-pay")
    if not (training and training.fits and training.cost and about_money):
        return
    gpu, cost = training.job.gpu, PlannedCost(**training.cost.to_json())
    machine = "this machine's processor" if gpu.is_cpu else f"{training.job.gpus} x {gpu.name}"
    about = f"{advice.question.model} with {advice.costed_name} on {machine}"
    if verbose:
        console.print(f"\nTraining {about}", style="bold")
        for line in cost_lines(cost):
            console.print(line, soft_wrap=True)
    else:
        console.print()
        _say(console, f"Training {about} costs {usd_words(cost.usd or 0.0)}. {until_kept_words(cost)}".rstrip())


def _print_rest(advice: Advice, console: Any, verbose: bool) -> None:
    if advice.steps:
        console.print("\nNext", style="bold")
        for number, step in enumerate(advice.steps, 1):
            _say(console, step, "", f"  {number}. ", "     ")
    if advice.assumptions and verbose:
        console.print("\nAssumed", style="dim")
    for line in advice.assumptions if verbose else ():
        _say(console, line, "dim", "  - ", "    ")
    if advice.missing:
        _say(console, f"Not known, and it would tell more: {', '.join(advice.missing)}", "dim", "", "  ")
    if not verbose:
        console.print("--verbose adds sources, the parts of the cost and what is assumed.", style="dim")
