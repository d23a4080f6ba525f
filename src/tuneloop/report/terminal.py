"""The closing report on the terminal: the comparison, samples, what was predicted, paths, the next command."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console as Plain
from rich.table import Table
from rich.text import Text

from tuneloop.report.comparison import comparison_table, on_terminal
from tuneloop.report.facts import (
    RunFacts,
    between_words,
    count,
    limit_words,
    more_words,
    next_commands,
    number,
    promises,
    read_run,
    section,
    shown_metrics,
    systems_of,
    used,
    verdict_line,
)
from tuneloop.report.samples import JudgedSample, OrderedSamples, choose

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SIDE_BY_SIDE = 100  # columns from which samples stand next to each other
LONGEST_PROMPT, LONGEST_ANSWER = 240, 420  # characters; the report has more
MOST_LINES = 8


def print_closing(run: Path, console: Console) -> None:
    """Print the closing report of a run; on a plain (non-terminal) console without colour."""
    parts = closing_table(run, console.width)
    if "utf" in (console.encoding or "").lower():
        for part in parts:
            console.print(part)
        return
    # A console of another encoding would end the job at the first arrow or umlaut.
    buffer = io.StringIO()
    plain = Plain(file=buffer, width=console.width, color_system=None, safe_box=True)
    for part in parts:
        plain.print(part)
    text = buffer.getvalue()
    for mark, ascii_mark in zip("✓✗–−…·─━", ("+", "x", "-", "-", "...", "-", "-", "="), strict=True):
        text = text.replace(mark, ascii_mark)
    console.file.write(text.encode(console.encoding or "ascii", "replace").decode(console.encoding or "ascii"))


def closing_table(run: Path, width: int = 80) -> list[RenderableType]:
    """The parts of the closing report, in order, laid out for `width` columns; raises as `read_run` does."""
    facts = read_run(run)
    metrics = shown_metrics(facts.evaluation)
    lines = systems_of(facts.evaluation, metrics)
    parts: list[RenderableType] = []
    evaluation = facts.evaluation
    verdict = verdict_line(evaluation)
    if verdict:
        parts += [Text(""), Text(verdict, style="bold"), *map(Text, limit_words(facts))]
    if lines:
        table = comparison_table(evaluation, metrics, lines)
        rows = f" on {count(evaluation.n, 'row')} of the {evaluation.split} split" if evaluation.n else ""
        title = f"Comparison{rows}, with 95 % intervals{f'. {table.note}' if table.compared else ''}"
        parts += [Text(""), on_terminal(table, width, title=title)]
    parts += [Text(word) for word in [*evaluation.words, *more_words(evaluation)] if word != verdict]
    if outcome := promises(facts):
        parts.append(_promises_table(outcome))
    if share := used(facts.run.mfu if facts.run else None):
        parts.append(Text(f"How well the steps used this machine (MFU): {share}."))
    if facts.samples:
        wanted = number(section(facts.config.get("evaluate")).get("samples"))
        choice = choose(facts)
        shown = choice.rows[: 5 if wanted is None else int(wanted)]
        if shown:
            heading = f"{len(shown)} of {count(len(choice.rows), 'row')}"
            parts += [Text(""), Text(heading, style="bold"), Text(choice.in_words())]
            parts.append(
                samples_side_by_side(shown, choice)
                if fit_side_by_side(shown, width)
                else samples_stacked(shown, choice)
            )
    parts += [Text(""), _paths(facts), *[Text(problem, style="yellow") for problem in facts.problems]]
    return parts


def _promises_table(outcome: Sequence[Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("")
    table.add_column("predicted", overflow="fold")
    table.add_column("actual", style="bold", no_wrap=True)
    table.add_column("", no_wrap=True)
    for line in outcome:
        table.add_row(line.name, line.predicted, line.actual, Text(line.words, "green" if line.inside else "yellow"))
    return table


def fit_side_by_side(samples: Sequence[JudgedSample], width: int) -> bool:
    """Whether samples fit in columns: the terminal is wide, and no word of an answer would be broken."""
    if width < SIDE_BY_SIDE:
        return False
    texts = [text for t in samples for text in (t.reference, t.answer, *(answer for _, answer, _ in t.answers))]
    columns = max(len(t.answers) for t in samples) + 2
    room = (width - 2 * columns) * 3 // (3 * columns + 4) - 3
    return all(len(word) <= room for text in texts for word in _short(text, LONGEST_ANSWER).split())


def samples_side_by_side(samples: Sequence[JudgedSample], choice: OrderedSamples) -> Table:
    """A column each for the prompt with what the row tells, the reference and every system."""
    table = Table(box=box.SIMPLE_HEAD, show_lines=False, pad_edge=False, padding=(0, 1), expand=True)
    table.add_column("prompt", ratio=4, overflow="fold")
    for name in ("reference", *choice.names, choice.own):
        table.add_column(name, ratio=3, overflow="fold", style="bold" if name == choice.own else "")
    for i, t in enumerate(samples):
        prompt = Text(f"{t.why}\n" if t.why else "", style="dim").append(_prompt(t), style="not dim")
        answers = {name: _judged(answer, right) for name, answer, right in t.answers}
        cells = [answers.get(name, Text("")) for name in choice.names]
        table.add_row(prompt, Text(_short(t.reference, LONGEST_ANSWER)), *cells, _judged(t.answer, t.right))
        if i + 1 < len(samples):
            table.add_row()
    return table


def samples_stacked(samples: Sequence[JudgedSample], choice: OrderedSamples) -> Table:
    """For narrow terminals: what the row tells, the prompt, then one line (or more) an answer."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0), expand=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(ratio=1, overflow="fold")
    for t in samples:
        table.add_row()
        if t.why:
            table.add_row("", Text(t.why, style="dim"))
        table.add_row("prompt", Text(_prompt(t), style="italic"))
        table.add_row("reference", Text(_short(t.reference, LONGEST_ANSWER)))
        for name, answer, right in t.answers:
            table.add_row(name, _judged(answer, right))
        table.add_row(
            Text(choice.own, style="bold green"), Text("", style="bold").append_text(_judged(t.answer, t.right))
        )
    return table


def _prompt(t: JudgedSample) -> str:
    return _short(t.sample.prompt, LONGEST_PROMPT)


def _judged(answer: str, right: bool | None) -> Text:
    """An answer, with a mark in front where right and wrong are plain to see."""
    text = Text()
    if right is not None:
        text.append("✓\u00a0" if right else "✗\u00a0", style="green" if right else "red")
    return text.append(_short(answer, LONGEST_ANSWER) or "(no answer)")


def _short(value: str, longest: int) -> str:
    """At most `MOST_LINES` lines and `longest` characters, with an ellipsis; tabs would break the columns."""
    text = value.strip().replace("\t", "    ")
    lines = text.split("\n")
    cut = "\n".join(lines[:MOST_LINES])
    if len(lines) > MOST_LINES or len(cut) > longest:
        return between_words(cut, longest) + "…"
    return cut


def _paths(facts: RunFacts) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    if facts.result:
        table.add_row(facts.result, Text(str(facts.path / facts.result)))
    table.add_row("report", Text(str(facts.path / "report.html")))
    for i, command in enumerate(next_commands(facts)):
        table.add_row("next" if i == 0 else "", Text(command, style="bold cyan"))
    return table
