"""`tuneloop review`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuneloop.cli.console import Result
from tuneloop.cli.parameters import STORE, STORE_ARGUMENT, argument, output, screen
from tuneloop.core.errors import UserError
from tuneloop.core.files import Config
from tuneloop.core.flag import flag, switch
from tuneloop.core.ui import reporting, say
from tuneloop.core.units import counted, verb


class SampleOptions(Config):
    """Which rows people see."""

    mode: str = flag("", "NAME", "pairwise or rating; default: by the number of evaluations.")
    share: float = flag(0.25, "X", "Share of the rows to look at.")
    rows: int = flag(0, "N", "Look at so many rows instead.", least=0, show=False)
    seed: int = flag(0, "N", "Seed of the sample, of its order, and of the sides.")
    dataset: str = flag("", "FOLDER", "Prepared data set with the complete conversations; a run knows its own.", "-d")
    out: str = flag("", "FOLDER", "Folder of the review; default: review/ in the first evaluation's folder.", "-o")


class ExportOptions(Config):
    """What becomes of the votes."""

    export: str = flag("", "NAME", "Write the votes as data: preference, kto or corrected.")
    to: str = flag("", "FILE", "File of --export; default: EXPORT.jsonl in the review's folder.")


def command(
    places: list[str] = argument(
        "A [B...]",
        "Evaluations: RUN or folder; FOLDER:NAME picks a baseline in it. One is rated, two or more are compared. Or "
        "the folder of a review.",
    ),
    host: str = flag("127.0.0.1", "NAME", "Address of the page; another one lets others on your network vote."),
    port: int = flag(0, "N", "Port of the page; 0 for a free one.", least=0, most=65535),
    no_serve: bool = switch("Only draw the sample, or show the results so far."),
    *,
    sample: SampleOptions,
    votes: ExportOptions,
) -> Result:
    """Let people judge answers on a local page without knowing whose they are.

    Then it reports agreement and ranking, and writes votes as data with --export.
    """
    from tuneloop.evaluation.review import results_of, serve

    with screen("preparing the pairs") as display:
        review = _review(places, sample)
        if votes.export:
            return _export(review, votes.export, votes.to)
        hint = "" if sample.rows else "; --rows 10 takes ten rows, in another folder (--out)"
        say(f"{counted(len(review.items), 'item')} in {review.folder}{hint}")
    if not no_serve:  # without a screen, which would count the time that people take to read
        with reporting(say=display.say):
            serve(review, host=host, port=port)
    answer = results_of(review)
    return Result(answer, _lines(answer))


def _review(places: list[str], sample: SampleOptions) -> Any:
    from tuneloop.evaluation.review import load_review, make_review, read_systems

    if len(places) == 1 and (Path(places[0]) / "review.json").is_file():
        return load_review(places[0])
    if sample.mode not in ("", "pairwise", "rating"):
        raise UserError(f"No such mode {sample.mode!r}", where="--mode", next_step="choose pairwise or rating")
    systems = read_systems(places)
    mode: Any = sample.mode or ("pairwise" if len(systems) > 1 else "rating")
    folder = Path(sample.out) if sample.out else systems[0].folder / ("review" if len(places) > 1 else "rating")
    conversations = _conversations(sample.dataset, [system.folder for system in systems])
    share = min(1.0, sample.rows / max(len(systems[0].samples), 1)) if sample.rows else sample.share
    return make_review(systems, folder, mode=mode, share=share, seed=sample.seed, conversations=conversations)


def _conversations(dataset: str, folders: list[Path]) -> dict[str, list[dict[str, Any]]]:
    from tuneloop.data import load_dataset

    for folder in [Path(dataset)] if dataset else [folder / "dataset" for folder in folders]:
        if dataset or (folder / "dataset.json").is_file():
            loaded = load_dataset(folder)
            rows = [row for split in (loaded.test, loaded.val, loaded.train) for row in split]
            return {row.id: [dict(turn) for turn in row.prompt] for row in rows}
    return {}


def _export(review: Any, kind: str, to: str) -> Result:
    from tuneloop.evaluation.review import export

    if kind not in ("preference", "kto", "corrected"):
        raise UserError(f"No such export {kind!r}", where="--export", next_step="choose preference, kto or corrected")
    record = export(review, kind, to or review.folder / f"{kind}.jsonl")  # type: ignore[arg-type]
    if not output().as_json:
        reasons = ", ".join(f"{n} {reason}" for reason, n in record["left_out"].items())
        conflicts = f"; {len(record['conflicts'])} corrected in more than one way" if record["conflicts"] else ""
        left_out = f"; left out: {reasons}" if reasons else ""
        say(f"{counted(record['rows'], 'row')} in {record['path']}{left_out}{conflicts}")
        say(f"next: {record['prepare']}")
    return Result(record)


def _lines(answer: dict[str, Any]) -> list[str]:
    reviewers = ", ".join(f"{name} {n}" for name, n in answer["reviewers"].items()) or "no one yet"
    lines = [f"{answer['reviewed']} of {counted(answer['items'], 'item')} reviewed ({reviewers}): {answer['folder']}"]
    for question, alpha in answer["agreement"].items():
        if alpha.value == alpha.value:
            lines.append(f"agreement on {question}: Krippendorff's alpha {_bounds(alpha)}")
    for pair in answer.get("pairs", []):
        if not pair["reviewed"]:
            continue
        names = (("wins_b", "win"), ("wins_a", "loss"), ("ties", "tie"))
        votes = ", ".join(counted(pair[key], word) for key, word in names)
        equal, rows = pair["equal_answers"], pair["rows"]
        same = f"{equal} of {counted(rows, 'answer')} {verb(equal, 'is', 'are')} equal"
        rate = _bounds(pair["win_rate"]["estimate"])
        lines.append(f"{pair['b']} against {pair['a']}: {votes}, {pair['both_bad']} both bad; {same}")
        lines.append(f"  wins (ties half) over all {counted(rows, 'row')}: {rate}: {pair['verdict']}")
        lines.append(f"  from the random part alone: {_bounds(pair['win_rate']['random'])}")
        lines += _tags(pair["tags"])
    if len(answer.get("ranking", {})) > 2:
        lines += [f"  {name:<24} strength {_bounds(value)}" for name, value in answer["ranking"].items()]
    for name, rating in answer.get("ratings", {}).items():
        if rating["reviewed"]:
            good, stars = (_bounds(rating[key]["estimate"]) for key in ("good", "stars"))
            lines += [f"{name}: good {good}, stars {stars}", *_tags(rating["tags"])]
    return lines


def _tags(counts: dict[str, int]) -> list[str]:
    return [f"  tags: {', '.join(f'{tag} {n}' for tag, n in counts.items())}"] if counts else []


def _bounds(estimate: Any) -> str:
    if estimate.value != estimate.value:
        return "not measured"
    interval = f" [{estimate.low:.2f}, {estimate.high:.2f}]" if estimate.low == estimate.low else ""
    return f"{estimate.value:.2f}{interval}"


def draw(
    store: str = STORE_ARGUMENT,
    out: str = flag(..., "FOLDER", "Folder of the review.", "-o"),
    rows: int = flag(40, "N", "Answers to look at.", least=1, most=1000),
    since: str = flag("", "TIME", "Only requests from then on, as in 2026-01-01."),
    model: str = flag("", "NAME", "Only requests to this model."),
    seed: int = flag(0, "N", "Seed of the draw.", least=0),
    hidden: bool = switch("Do not show the given answer, so that no one is led by it."),
    measure: bool = switch("Draw all of them at random: `monitor` measures quality by what people say."),
) -> Result:
    """Choose the answers that deserve a person's minutes, for `tuneloop review`.

    40 of 100 at random; the others are disliked, disagree with a candidate, stand out in an alarm, or are uncertain.
    """
    from tuneloop.improve.feedback import draw_queue, queue_lines

    queue = draw_queue(store, out, rows=rows, since=since, model=model, seed=seed, hidden=hidden, measure=measure)
    then = f"tuneloop review votes {queue.folder} --store {store}"
    lines = [f"{counted(queue.rows, 'answer')} in {queue.folder}", *queue_lines(queue)]
    return Result(queue, [*lines, f"next      tuneloop review {queue.folder}, then {then}"])


def votes(review: str = argument("FOLDER", "Of the review, from `review draw`."), store: str = STORE) -> Result:
    """Store what people said in a review of production as feedback."""
    from tuneloop.improve.feedback import store_votes

    added, number = store_votes(store, review)
    line = f"{added} pieces of feedback from {counted(number, 'vote')}"
    return Result({"added": added, "votes": number}, [line])


commands = {"draw": draw, "votes": votes}
