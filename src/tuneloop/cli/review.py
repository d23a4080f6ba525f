"""`tuneloop review`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from tuneloop.cli.console import Debug, Json, Quiet, print_json, screen
from tuneloop.core.units import counted


def command(
    places: list[str] = typer.Argument(
        ...,
        help="Evaluations: RUN or folder; FOLDER:NAME picks a baseline in it. One is rated, two or more are compared. "
        "Or the folder of a review.",
        metavar="A [B...]",
    ),
    mode: str = typer.Option("", "--mode", help="pairwise or rating; default: by the number of evaluations."),
    share: float = typer.Option(0.25, "--share", help="Part of the rows to look at."),
    rows: int = typer.Option(0, "--rows", min=0, help="So many rows instead, as in --rows 10.", show_default=False),
    out: str = typer.Option(
        "", "--out", "-o", help="The review's folder; default: review/ beside the first evaluation."
    ),
    dataset: str = typer.Option(
        "", "--dataset", "-d", help="Prepared data set with the whole conversations; a run knows its own."
    ),
    host: str = typer.Option(
        "127.0.0.1", "--host", help="Address to serve on; another lets others on your network vote."
    ),
    port: int = typer.Option(0, "--port", min=0, max=65535, help="Port; default: a free one."),
    seed: int = typer.Option(0, "--seed", help="Of the sample, its order, and the sides."),
    no_serve: bool = typer.Option(False, "--no-serve", help="Only draw the sample, or show the results so far."),
    export: str = typer.Option(
        "", "--export", help="Write votes as data: preference, kto or corrected; then --to FILE."
    ),
    to: str = typer.Option("", "--to", help="File of --export; default: EXPORT.jsonl in the review's folder."),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """People judge answers on a local page, blind; then agreement, ranking, and their votes as data."""
    from tuneloop.evaluate.review.results import results
    from tuneloop.evaluate.review.server import serve

    with screen(quiet) as shown:
        review = _review(places, mode, rows or share, out, dataset, seed)
        if export:
            written = _export(review, export, to)
            if as_json:
                print_json(written)
            else:
                shown.say(f"{counted(written['rows'], 'row')} in {written['path']}" + _left(written))
                shown.say(f"next: {written['prepare']}")
            return
        hint = "" if rows else "; --rows 10 takes ten rows, in a folder of its own (--out)"
        shown.say(f"{counted(len(review.items), 'item')} in {review.folder}{hint}")
    if not no_serve:  # not with a screen at work: it would go on telling of the time that people take to read
        serve(review, host=host, port=port, say=shown.say)
    found = results(review)
    if as_json:
        print_json(found)
    else:
        for line in _lines(found):
            print(line)


def _review(places: list[str], mode: str, part: float, out: str, dataset: str, seed: int) -> Any:
    """The review; `part`: a share of the rows, or as an integer how many."""
    from tuneloop.core.errors import UserError
    from tuneloop.evaluate.review.items import load_review, make_review, read_contenders

    if len(places) == 1 and (Path(places[0]) / "review.json").is_file():
        return load_review(places[0])
    if mode not in ("", "pairwise", "rating"):
        raise UserError(f"No such mode {mode!r}", where="--mode", next_step="choose pairwise or rating")
    contenders = read_contenders(places)
    chosen: Any = mode or ("pairwise" if len(contenders) > 1 else "rating")
    folder = Path(out) if out else contenders[0].folder / ("review" if len(places) > 1 else "rating")
    conversations = _conversations(dataset, [contender.folder for contender in contenders])
    share = min(1.0, part / max(len(contenders[0].samples), 1)) if isinstance(part, int) else part
    return make_review(contenders, folder, mode=chosen, share=share, seed=seed, conversations=conversations)


def _conversations(dataset: str, folders: list[Path]) -> dict[str, list[dict[str, Any]]]:
    """Row id -> the turns before the answer, from the data set's splits."""
    from tuneloop.data.dataset import load_dataset

    given = [Path(dataset)] if dataset else [folder / "dataset" for folder in folders]
    for folder in given:
        if dataset or (folder / "dataset.json").is_file():
            loaded = load_dataset(folder)
            rows = [row for split in (loaded.test, loaded.val, loaded.train) for row in split]
            return {row.id: [dict(turn) for turn in row.prompt] for row in rows}
    return {}


def _export(review: Any, kind: str, to: str) -> dict[str, Any]:
    from tuneloop.core.errors import UserError
    from tuneloop.evaluate.review.results import export

    if kind not in ("preference", "kto", "corrected"):
        raise UserError(f"No such export {kind!r}", where="--export", next_step="choose preference, kto or corrected")
    return export(review, kind, to or review.folder / f"{kind}.jsonl")  # type: ignore[arg-type]


def _left(written: dict[str, Any]) -> str:
    left = ", ".join(f"{n} {reason}" for reason, n in written["left_out"].items())
    conflicts = f"; {len(written['conflicts'])} corrected in more than one way" if written["conflicts"] else ""
    return (f"; left out: {left}" if left else "") + conflicts


def _lines(found: dict[str, Any]) -> list[str]:
    """The results as a person reads them."""
    reviewers = ", ".join(f"{name} {n}" for name, n in found["reviewers"].items()) or "nobody yet"
    lines = [f"{found['reviewed']} of {found['items']} items reviewed ({reviewers}): {found['folder']}"]
    for question, alpha in found["agreement"].items():
        if alpha.value == alpha.value:
            lines.append(f"agreement on {question}: Krippendorff's alpha {_bounds(alpha)}")
    for pair in found.get("pairs", []):
        if not pair["reviewed"]:
            continue
        rate = pair["win_rate"]["estimate"]
        lines.append(
            f"{pair['b']} against {pair['a']}: {pair['wins_b']} wins, {pair['wins_a']} losses, {pair['ties']} ties, "
            f"{pair['both_bad']} both bad; {pair['equal_answers']} of {pair['rows']} answers are equal"
        )
        lines.append(f"  wins (ties half) over all {pair['rows']} rows: {_bounds(rate)}: {pair['verdict']}")
        lines.append(f"  from the random part alone: {_bounds(pair['win_rate']['random'])}")
        lines += _tags(pair["tags"])
    if len(found.get("ranking", {})) > 2:
        lines += [f"  {name:<24} strength {_bounds(value)}" for name, value in found["ranking"].items()]
    for name, figures in found.get("ratings", {}).items():
        if figures["reviewed"]:
            lines.append(
                f"{name}: good {_bounds(figures['good']['estimate'])}, stars {_bounds(figures['stars']['estimate'])}"
            )
            lines += _tags(figures["tags"])
    return lines


def _tags(counts: dict[str, int]) -> list[str]:
    return [f"  tags: {', '.join(f'{tag} {n}' for tag, n in counts.items())}"] if counts else []


def _bounds(estimate: Any) -> str:
    if estimate.value != estimate.value:
        return "not measured"
    interval = f" [{estimate.low:.2f}, {estimate.high:.2f}]" if estimate.low == estimate.low else ""
    return f"{estimate.value:.2f}{interval}"
