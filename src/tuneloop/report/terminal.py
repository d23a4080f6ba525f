"""The closing report on the terminal: the comparison, samples, what was predicted, paths, the next command."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console as Plain
from rich.table import Table
from rich.text import Text

from tuneloop.core import written as w
from tuneloop.evaluation.metrics import metric_of, metric_text, percentage
from tuneloop.records.run import mfu_words
from tuneloop.report import facts as f
from tuneloop.report.answer import Answer, answer_of, by_value
from tuneloop.report.comparison import comparison_table, on_terminal
from tuneloop.report.samples import JudgedSample, OrderedSamples, choose

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SIDE_BY_SIDE = 100  # columns from which samples stand next to each other
LONGEST_PROMPT, LONGEST_ANSWER = 240, 420  # characters; the report has more
MOST_LINES = 8
BAR = 24  # characters of the longest bar
MOST_BARS = 6  # systems in the short end; the report has all


def print_closing(run: Path, console: Console, verbose: bool = False) -> None:
    """Print how a run ended, on a plain (non-terminal) console without colour.

    `verbose`: the whole report; else, where there is a verdict on one system, at most twelve lines.
    """
    facts = f.read_run(run)
    answer = None if verbose else answer_of(facts)
    parts = answer_lines(facts, answer, console.width) if answer else closing_table(facts, console.width)
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


def answer_lines(facts: f.RunFiles, answer: Answer, width: int) -> list[RenderableType]:
    """The answer in about twelve lines: verdict and sentence, a bar for each system, costs, paths, the next command."""
    metric = f.shown_metrics(facts.evaluation)[0]
    lines = by_value(f.systems_of(facts.evaluation, [metric]), metric)[:MOST_BARS]
    figure = percentage(metric) or (lambda value: metric_text(value, metric))
    values = [line.scores[0].value for line in lines if line.scores[0]]
    low, high = min(0.0, *values), max(metric_of(metric).out_of if percentage(metric) else 0.0, *values)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(width - 40, 12))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    for line, value in zip(lines, values, strict=True):
        style = "bold green" if line.tuned else ""
        length = round(BAR * (value - low) / (high - low)) if high > low else 0
        name = f"{line.name} ✓" if line.name == answer.recommended else line.name
        table.add_row(Text(name, style), Text("━" * length, style or "dim"), Text(figure(value), style))
    head = Text.assemble((f"{answer.verdict}. ", "bold"), answer.sentence)
    paths = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    paths.add_column(no_wrap=True, style="dim")
    paths.add_column(overflow="fold")
    paths.add_row("report", Text(str(facts.path / "report.html")))
    if answer.next:
        paths.add_row("next", Text(answer.next, style="bold cyan"))
    limits = [Text(line, style="yellow") for line in [*(facts.time.words[:1] if facts.time else []), *facts.problems]]
    costs = Text(" · ".join(f"{name} {amount}" for name, amount in answer.costs))
    return [Text(""), head, Text(answer.statistics, style="dim"), table, costs, *limits, paths]


def closing_table(facts: f.RunFiles, width: int = 80) -> list[RenderableType]:
    """The parts of the closing report, in order, laid out for `width` columns."""
    metrics = f.shown_metrics(facts.evaluation)
    lines = f.systems_of(facts.evaluation, metrics)
    parts: list[RenderableType] = []
    evaluation = facts.evaluation
    if verdict := f.verdict_line(evaluation):
        parts += [Text(""), Text(verdict, style="bold"), *map(Text, facts.time.words if facts.time else [])]
    if lines:
        table = comparison_table(evaluation, metrics, lines)
        rows = f" on {w.count(evaluation.n, 'row')} of the {evaluation.split} split" if evaluation.n else ""
        title = f"Comparison{rows}, with 95 % intervals{f'. {table.note}' if table.compared else ''}"
        parts += [Text(""), on_terminal(table, width, title=title)]
    parts += [Text(word) for word in [*evaluation.words, *f.more_words(evaluation)] if word != verdict]
    if outcome := f.promises(facts):
        promises = Table("", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        promises.add_column("predicted", overflow="fold")
        promises.add_column("actual", style="bold", no_wrap=True)
        promises.add_column("", no_wrap=True)
        for line in outcome:
            text = Text(line.words, "green" if line.inside else "yellow")
            promises.add_row(line.name, line.predicted, line.actual, text)
        parts.append(promises)
    if share := mfu_words(facts.run.mfu if facts.run else None):
        parts.append(Text(f"How well the steps used this machine (MFU): {share}."))
    if facts.samples:
        requested = w.number(w.section(facts.config.get("evaluate")).get("samples"))
        choice = choose(facts)
        samples = choice.rows[: 5 if requested is None else int(requested)]
        if samples:
            heading = f"{len(samples)} of {w.count(len(choice.rows), 'row')}"
            draw = samples_side_by_side if fit_side_by_side(samples, width) else samples_stacked
            parts += [Text(""), Text(heading, style="bold"), Text(choice.in_words()), draw(samples, choice)]
    parts += [Text(""), _paths(facts), *[Text(problem, style="yellow") for problem in facts.problems]]
    return parts


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
        prompt = Text(f"{t.why}\n" if t.why else "", style="dim")
        prompt.append(_short(t.sample.prompt, LONGEST_PROMPT), style="not dim")
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
        table.add_row("prompt", Text(_short(t.sample.prompt, LONGEST_PROMPT), style="italic"))
        table.add_row("reference", Text(_short(t.reference, LONGEST_ANSWER)))
        for name, answer, right in t.answers:
            table.add_row(name, _judged(answer, right))
        cell = Text("", style="bold").append_text(_judged(t.answer, t.right))
        table.add_row(Text(choice.own, style="bold green"), cell)
    return table


def _judged(answer: str, right: bool | None) -> Text:
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
        return w.between_words(cut, longest) + "…"
    return cut


def _paths(facts: f.RunFiles) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    if facts.result:
        table.add_row(facts.result, Text(str(facts.path / facts.result)))
    table.add_row("report", Text(str(facts.path / "report.html")))
    for i, command in enumerate(f.next_commands(facts)):
        table.add_row("next" if i == 0 else "", Text(command, style="bold cyan"))
    return table
