"""What people paste elsewhere: a comparison as a picture, and as a paragraph for a pull request."""

from __future__ import annotations

import math
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.evaluation.metrics import percentage, title_of
from tuneloop.report import facts as f
from tuneloop.report.answer import answer_of, by_value

FORMS = (".svg", ".png", ".pdf")
TUNED, OTHER = "#0f766e", "#64748b"


def plot_comparison(facts: f.RunFiles, file: Path) -> None:
    """Draw the metric that decides: a row for each system, a dot with its 95 % interval, the recommended one marked.

    `file`: ends in one of `FORMS`. Raises UserError: another form, nothing was measured, or matplotlib is missing.
    """
    if file.suffix.lower() not in FORMS:
        step = f"a name that ends in {', '.join(FORMS)}"
        raise UserError("No such form of a picture", where=str(file), next_step=step)
    metric = f.shown_metrics(facts.evaluation)[0]
    lines = by_value(f.systems_of(facts.evaluation, [metric]), metric)[::-1]
    if not lines:
        raise UserError("Nothing was measured that could be drawn", where=str(facts.path))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        step = "pip install 'tuneloop[track]'"
        raise UserError("A picture needs matplotlib", where="--plot", next_step=step) from None

    answer = answer_of(facts)
    recommended = answer.recommended if answer else ""
    scale = 100 if percentage(metric) else 1
    figure = Figure(figsize=(8, 0.9 + 0.42 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for row, line in enumerate(lines):
        score = line.scores[0]
        assert score is not None  # of `by_value`
        colour = TUNED if line.tuned else OTHER
        if math.isfinite(score.low + score.high):
            axes.plot([scale * score.low, scale * score.high], [row, row], color=colour, linewidth=2, alpha=0.5)
        axes.plot(scale * score.value, row, "o", color=colour, markersize=8 if line.tuned else 6)
    names = [f"{line.name} ✓" if line.name == recommended else line.name for line in lines]
    axes.set_yticks(range(len(lines)), names)
    axes.set_ylim(-0.6, len(lines) - 0.4)  # room for whole dots, also where there are two
    for label, line in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if line.tuned else "normal")
    axes.set_xlabel(f"{title_of(metric)}{', %' if scale == 100 else ''} ({facts.evaluation.n:,} rows, 95 % intervals)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)
    if answer:
        axes.set_title(f"{answer.verdict}.", loc="left", fontweight="bold")
    figure.savefig(file, dpi=160, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)


def summary_markdown(facts: f.RunFiles) -> str:
    """The answer as a paragraph in Markdown. Raises UserError: there is no verdict on one system."""
    if (answer := answer_of(facts)) is None:
        step = "name a run or an evaluation with a comparison of one system with others"
        raise UserError("There is no verdict to summarise", where=str(facts.path), next_step=step)
    costs = "; ".join(f"{name} {amount}" for name, amount in answer.costs)
    statistics = answer.statistics.removesuffix(".")
    return f"**{answer.verdict}.** {answer.sentence} ({statistics}).{f' Costs: {costs}.' if costs else ''}"
