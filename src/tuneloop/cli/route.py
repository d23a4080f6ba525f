"""`tuneloop route`: send each request to the model that answers it best."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tuneloop.cli.console import Result
from tuneloop.cli.parameters import argument, screen
from tuneloop.combine import RouteOptions
from tuneloop.core.flag import flag
from tuneloop.core.units import counted

if TYPE_CHECKING:
    from tuneloop.combine import Router
    from tuneloop.records.router import RouterRecord


MOST_FOREIGN = 0.1  # share of requests in another language that is passed over in silence


def fit(
    targets: list[str] = argument("[RUN]...", "Runs, each with its own task and rows.", None),
    outcomes: str = flag("", "FILE", "A CSV instead: a column prompt, and one for each model: its answer's worth."),
    costs: str = flag("", "A=X,B=Y", "Cost of an answer by model, in any unit.", "--cost"),
    out: str = flag("router", "FOLDER", "Folder of the router.", "-o"),
    *,
    options: RouteOptions,
) -> Result:
    """Fit a router from requests to models, and say how good it is on rows that it has not seen.

    Several kinds are fitted; the best on validation rows is calibrated and kept.
    """
    from tuneloop.combine import RouteSources, fit_route

    sources = RouteSources(targets or [], outcomes, _costs(costs))
    with screen("fitting"):
        router = fit_route(sources, Path(out), options)
    lines = [*_lines(router, out)]
    results = router.record.results
    if results is not None and 0 < options.max_cost < results.cost:
        cost = f"{results.cost:g} on average, more than --max-cost {options.max_cost:g}"
        note = "which holds on the validation rows only; ask for less, or give more rows"
        lines.append(f"warn: on the test rows an answer costs {cost}, {note}")
    return Result({"path": out, **router.record.to_json()}, lines)


def judge(
    router: str = argument("[ROUTER]", "Folder of the router.", "router"),
    outcomes: str = flag("", "FILE", "A file of outcomes with the same models; default: that of the fit."),
    outside: str = flag("", "FILE", "Requests that belong to no model, to measure how many are recognised."),
) -> Result:
    """Measure a router on test rows, next to each model alone and the best choice for each row."""
    from tuneloop.combine import eval_route

    with screen("judging"):
        measured = eval_route(Path(router), outcomes, outside)
    return Result({"path": router, **measured.record.to_json()}, _lines(measured, router))


def cascade(
    small: str = argument("SMALL", "Evaluation of the model that answers first: a folder with eval.json."),
    large: str = argument("LARGE", "Evaluation of the larger model on the same rows."),
    costs: str = flag("1,10", "X,Y", "Cost of an answer of the small and of the large model, in any unit.", "--cost"),
    max_cost: float = flag(0.0, "X", "Most mean cost of an answer; 0: no limit.", least=0),
    out: str = flag("cascade.json", "FILE", "Where the threshold and its results are written.", "-o"),
) -> Result:
    """Find the confidence below which a larger model should answer in a small one's place.

    One half of the rows chooses the threshold, the other half judges it.
    """
    from tuneloop.combine import cascade_of, cascade_sentences

    try:
        first, other = (float(part) for part in costs.split(","))
    except ValueError:
        raise typer.BadParameter(f"--cost takes two numbers with a comma between them: not {costs!r}") from None
    record = cascade_of(small, large, (first, other), Path(out), max_cost)
    return Result({"path": out, **record.to_json()}, [*cascade_sentences(record), out])


def _lines(router: Router, out: str) -> Iterator[str]:
    record = router.record
    for candidate in record.candidates:
        yield f"  {candidate.kind:<9} validation quality {candidate.quality:.3f}, log loss {candidate.loss:.3f}"
    if record.results is not None:
        yield from _result_lines(record, record.results)
    yield f"{out}  ({record.kind} on {record.features})"


def _result_lines(record: RouterRecord, results: Any) -> Iterator[str]:
    label, quality = "routed right" if record.exclusive else "mean outcome", results.quality
    value = f"{quality.value:.3f} [{quality.low:.3f}, {quality.high:.3f}]"
    yield f"{label} {value} on {counted(results.n, 'test row')}, mean cost {results.cost:g}"
    for single in results.singles:
        yield f"  {single.name:<40} quality {single.quality:.3f}  cost {single.cost:g}"
    if gap := results.gap_recovered:
        share = f"{gap.value:.3f} [{gap.low:.3f}, {gap.high:.3f}]"
        yield f"gap between cheapest and best recovered, mean over costs: {share} (a coin: 0.5)"
    elif results.frontier:
        yield "no model alone is shown to be better than the cheapest, so there is no gap: see the outcomes above"
    if results.outside:
        strange = f"{results.caught:.1%} of {counted(results.outside, 'row')} from outside"
        yield f"none of these: {strange}, {1 - results.kept:.1%} of the models' own"
    if results.foreign > MOST_FOREIGN:
        language = f"another language than the rows that the router was fitted to ({record.language})"
        yield f"warn: {results.foreign:.0%} of these requests are in {language}; fit it on rows of their language, too"


def _costs(text: str) -> dict[str, float]:
    costs = {}
    for part in filter(None, text.split(",")):
        name, sign, value = part.rpartition("=")
        try:
            costs[name.strip()] = float(value)
        except ValueError:
            sign = ""
        if not sign or not name:
            raise typer.BadParameter(f"--cost takes MODEL=NUMBER pairs with commas between them: not {part!r}")
    return costs


commands = {"fit": fit, "eval": judge, "cascade": cascade}
