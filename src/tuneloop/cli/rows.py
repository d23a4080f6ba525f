"""Rows as the model sees them, for `prepare --show` and `train --preflight`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuneloop.records.rows import Row

if TYPE_CHECKING:
    from rich.console import Console

    from tuneloop.models.template import Rendered, Template


def print_rows(model: str, rows: Sequence[Row], console: Console) -> None:
    """Print rendered rows: supervised tokens green and underlined (between markers without colour), control tokens dim."""
    from tuneloop.models.load import load_tokenizer

    template = load_tokenizer(model)
    titled = [
        (f"{r.id}  {r.meta.get('source')}:{r.meta.get('line')}", template.render(r.messages, r.tools)) for r in rows
    ]
    print_rendered(template, titled, console)


def print_rendered(template: Template, rows: Sequence[tuple[str, Rendered]], console: Console) -> None:
    """`print_rows` for rows that are rendered, each with a title."""
    from rich.text import Text

    plain = not console.is_terminal
    for title, rendered in rows:
        text = Text()
        text.append(f"--- {title}  ", style="bold")
        text.append(
            f"{len(rendered.ids)} tokens, {sum(1 for weight in rendered.mask if weight)} supervised\n", style="bold"
        )
        for ids, supervised in _runs(rendered.ids, rendered.mask):
            piece = template.tokenizer.decode(ids, skip_special_tokens=False)
            if plain and supervised:
                piece = f"[[{piece}]]"
            text.append(piece, style="green underline" if supervised else "dim")
        console.print(text, soft_wrap=True, highlight=False)
    console.print("supervised tokens are " + ("between [[ and ]]" if plain else "green and underlined"), style="dim")


def _runs(ids: Sequence[int], mask: Sequence[float]) -> list[tuple[list[int], float]]:
    runs: list[tuple[list[int], float]] = []
    for token, supervised in zip(ids, mask, strict=True):
        if not runs or runs[-1][1] != supervised:
            runs.append(([], supervised))
        runs[-1][0].append(token)
    return runs
