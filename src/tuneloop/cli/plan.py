"""`tuneloop plan`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tuneloop.cli.console import Result, one_place
from tuneloop.cli.parameters import SETTINGS, argument, given, screen
from tuneloop.core.errors import UserError
from tuneloop.core.flag import flag, switch
from tuneloop.core.units import counted
from tuneloop.planning import PlanOptions, PlanWanted, assumptions, history, plan_model, plan_serving
from tuneloop.planning.catalogue import TIERS, all_gpus, find_gpu, find_model, load_prices, this_cpu, update_prices
from tuneloop.records.plan import PLAN, Plan
from tuneloop.records.record import write_record


def command(
    source: str = argument(
        "[DATA|RECIPE.yaml|RUN]", "As for run: examples, a prepared data set, a recipe, or a run.", ""
    ),
    settings: list[str] | None = SETTINGS,
    all_rows: bool = switch("Show every machine instead of the first ten.", "--all"),
    out: str = flag("", "FOLDER", "Folder in which to write plan.json.", "-o"),
    *,
    kind: PlanWanted,
    options: PlanOptions,
) -> Result:
    """Predict the memory, hours and dollars of training, for any GPU or for this machine.

    With --model alone it answers for every GPU, at once and without torch; with a recipe or data set for this machine,
    by measuring it. Exit status 1: it does not fit.
    """
    if kind.history:
        ledger = history()
        return Result(ledger, _history_lines(ledger))
    if kind.serve:
        return _serving(source, given(options), kind.context, kind.concurrency)
    source, settings = one_place(source, settings)
    stated = given(options)
    if kind.calibrate:
        model = stated.pop("model", "")
        plan = _calibrated(source, [*settings, *_training_settings(stated)], model)
    elif source or stated.get("dataset"):
        from tuneloop.pipeline import plan_data

        with screen("planning"):
            plan = plan_data(source, stated, settings)
    else:
        plan = plan_model(stated, settings)
    if out and not kind.calibrate:
        write_record(Path(out) / PLAN, Plan.model_validate(plan))
    if "table" not in plan:
        return Result(plan, _measured(plan), int(not plan["fits"]))
    from tuneloop.report import print_plan

    return Result(plan, lambda console: print_plan(plan, everything=all_rows), int(not plan["fits"]))


def prices(
    action: str = argument("[update]", "Fetch newer offers first.", ""),
    prices: str = flag("", "FILE", "Your own price file."),
) -> Result:
    """Show the price of every GPU, or with `update` fetch newer offers first."""
    if action not in ("", "update"):
        step = "tuneloop plan prices, or tuneloop plan prices update"
        raise UserError(f"No such thing to do with prices: {action}", where="plan prices", next_step=step)
    fetched = update_prices() if action else None
    table = load_prices(prices or None)
    offers = {gpu: {tier: of[0] for tier in TIERS if (of := table.offers(gpu, tier))} for gpu in all_gpus()}
    return Result({"fetched": fetched, "prices": offers}, _price_lines(fetched, offers))


def _price_lines(fetched: Mapping[str, Any] | None, offers: Mapping[str, Mapping[Any, Any]]) -> Iterator[str]:
    if fetched:
        yield f"{fetched['offers']:,} offers of {', '.join(fetched['providers'])} in {fetched['path']}"
    for gpu, tiers in offers.items():
        for i, price in enumerate(tiers.values()):
            yield f"{gpu if not i else '':14}{price.words()}"
        if not tiers:
            yield f"{gpu:14}no price"


def _serving(source: str, stated: dict[str, Any], context: int, concurrency: int) -> Result:
    model = stated.pop("model", "") or source
    wrong = [f"--{name.replace('_', '-')}" for name in stated if name not in ("gpu", "gpus")]
    if wrong or not model:
        step = "tuneloop plan --serve --model llama-3.1-8b --context 8192 --concurrency 16 --gpu l40s"
        message = f"{wrong[0]} has no meaning with --serve" if wrong else "Serve what? No model is named"
        raise UserError(message, where="plan --serve", next_step=step)
    name, shape, assumed = find_model(model)
    context = min(context, shape.context) if context == 8192 and shape.context else context
    machines = [find_gpu(stated["gpu"])] if "gpu" in stated else [*all_gpus().values(), this_cpu()]
    rows = plan_serving(shape, machines, context, concurrency, stated.get("gpus"))
    assumed = [*assumed, *assumptions(context, concurrency)]
    from tuneloop.report import serving_lines

    lines = [*serving_lines(name, rows, context, concurrency), *(f"  assumed: {line}" for line in assumed)]
    record = {"model": name, "context": context, "concurrency": concurrency, "served": rows, "assumptions": assumed}
    return Result(record, lines)


def _training_settings(stated: dict[str, Any]) -> list[str]:
    names = {"method": "train.method", "rank": "train.rank", "prefix_tokens": "train.prefix_tokens"}
    for name in stated:
        if name not in names:
            message = f"--{name.replace('_', '-')} is not an option of --calibrate, which trains on this machine"
            step = "leave it out, or write a recipe's setting, as in train.micro_batch_tokens=512"
            raise UserError(message, where="plan --calibrate", next_step=step)
    return [f"{names[name]}={value}" for name, value in stated.items()]


def _calibrated(source: str, settings: list[str], model: str) -> dict[str, Any]:
    from tuneloop.pipeline import calibrate_alone
    from tuneloop.recipe import recipe_of

    with screen("planning"), tempfile.TemporaryDirectory() as scratch:
        if not source:  # examples of mixed length: their text does not matter
            file = Path(scratch) / "examples.jsonl"
            words = [[f"word{(i * 7 + j) % 97}" for j in range(20 + i % 120)] for i in range(200)]
            texts = [f"Row {i}: {' '.join(row)}" for i, row in enumerate(words)]
            rows = [{"prompt": text, "completion": f"answer {i} of {text[-20:]}"} for i, text in enumerate(texts)]
            file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
            source = str(file)
        return calibrate_alone(recipe_of(source, settings, model=model))


def _history_lines(ledger: dict[str, Any]) -> Iterator[str]:
    if not ledger["runs"]:
        yield "No run is finished yet: `tuneloop run`, `train` and `plan --calibrate` each leave a line."
        return
    yield f"{'when':<26}{'model':<16}{'method':<8}{'GiB said':>9}{'came':>8}{'minutes said':>14}{'came':>8}"
    for run in ledger["runs"]:
        predicted, actual = run["predicted_minutes"], run["actual_minutes"]
        reason = "machine was busy" if run["disturbed"] else "ended early"
        minutes = f"{predicted:>14.1f}{actual:>8.1f}" if predicted and actual else f"{reason:>22}"
        gib = f"{run['predicted_gib']:>9.2f}{run['actual_gib']:>8.2f}"
        yield f"{run['date']:<26}{run['model'][:15]:<16}{run['method']:<8}{gib}{minutes}"
    if not ledger["memory"]["runs"]:
        yield "None of them was planned by today's formulas: no error is known yet, nothing is corrected."
    for quantity in ("memory", "time"):
        if ledger[quantity]["runs"]:
            error = f"median error {ledger[quantity]['median_error']:.0%}, worst {ledger[quantity]['worst_error']:+.0%}"
            yield f"{quantity}: {error} ({counted(ledger[quantity]['runs'], 'run')} planned by today's formulas)"


def _measured(plan: dict[str, Any]) -> Iterator[str]:
    from tuneloop.pipeline import plan_line

    yield plan_line(plan)
    for name, gib in plan["memory"]["terms"].items():
        yield f"  {gib:7.2f} GiB  {name}"
    yield f"  {plan['memory']['peak_gib']:7.2f} GiB  peak, of {plan['memory']['capacity_gib']:.1f} GiB"
    if measured := plan.get("measured"):
        speed = f"{measured['minutes']:.1f} minutes, {measured['tokens_per_second']:,.0f} tokens/s"
        yield f"  measured: {measured['peak_gib']:.2f} GiB, {speed}"
        yield "  learned: `tuneloop plan --model ... --gpu` for this machine uses this speed (tuneloop plan --history)"
    for line in plan["assumptions"]:
        yield f"  assumed: {line}"
    for change in plan["alternatives"]:
        yield f"  instead: {change['change']} ({change['why']})"
    if "recommendation" in plan:
        yield f"\nRecommendation: {plan['recommendation']}"


commands = {"prices": prices}
