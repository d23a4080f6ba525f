"""`tuneloop plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import typer

from tuneloop.cli.console import Debug, Json, Quiet, Settings, print_json, screen, split_arguments
from tuneloop.cli.numbers import amount, count


def command(
    source: str = typer.Argument(
        "",
        help="What is trained on, as for run: a file of examples, a prepared data set, a recipe, or a run.",
        metavar="[DATA|RECIPE.yaml|RUN]",
    ),
    settings: Settings = None,
    model: str = typer.Option("", "--model", "-m", help="Model: short name, hub name, folder or config.json."),
    gpu: str = typer.Option(None, help="Only this GPU, as in h100-sxm, or cpu.", show_default=False),
    gpus: int = typer.Option(
        None,
        parser=count,
        metavar="N",
        help="Only this many [1 of the GPU named by --gpu, else all counts].",
        show_default=False,
    ),
    gpu_memory: float = typer.Option(
        None, parser=amount, metavar="GIB", help="Memory of a card that the table does not know, or has otherwise."
    ),
    gpu_tflops: float = typer.Option(None, parser=amount, metavar="X", help="Its dense 16-bit peak in TFLOPS."),
    gpu_bandwidth: float = typer.Option(None, parser=amount, metavar="X", help="Its memory's bandwidth in GB/s."),
    gpu_link: float = typer.Option(
        None, parser=amount, metavar="X", help="GB/s to a neighbour: 56 with an NVLink bridge."
    ),
    gpu_price: float = typer.Option(None, parser=amount, metavar="X", help="What an hour of it costs."),
    method: str = typer.Option(None, help="full, lora, qlora or prefix."),
    sharding: str = typer.Option(None, help="none, ddp, fsdp, zero2 or zero3."),
    offload: bool = typer.Option(None, "--offload", help="Optimizer (and sharded weights) in the host's memory."),
    offload_activations: bool = typer.Option(None, "--offload-activations", help="Checkpointed layer inputs too."),
    seq_len: int = typer.Option(None, parser=count, metavar="N", help="Tokens of a row."),
    micro_batch: int = typer.Option(None, parser=count, metavar="N", help="Rows at once on a GPU."),
    grad_accum: int = typer.Option(None, parser=count, metavar="N", help="Micro-batches of a step."),
    grad_ckpt: bool = typer.Option(None, "--grad-ckpt/--no-grad-ckpt", help="Recompute layers in the backward pass."),
    attention: str = typer.Option(None, help="flash, sdpa or eager."),
    loss_kernel: str = typer.Option(None, help="eager, compiled, triton, chunked, fused or tuneloop (its own loop)."),
    dtype: str = typer.Option(
        None, help="bf16, fp16, fp32, mixed (fp32 weights) or autocast (those under torch.autocast)."
    ),
    optimizer: str = typer.Option(None, help="adamw, adamw-bf16, adamw-8bit, paged-adamw-8bit or sgd."),
    optimizer_in_backward: bool = typer.Option(None, "--optimizer-in-backward", help="Update as gradients arrive."),
    rank: int = typer.Option(None, parser=count, metavar="N", help="Rank of the adapter."),
    targets: str = typer.Option(None, help="all-linear, attention, mlp, or names as in q,v."),
    prefix_tokens: int = typer.Option(None, parser=count, metavar="N", help="Virtual tokens of prefix tuning."),
    quant: str = typer.Option(None, help="Frozen weights: nf4, nf4-dq, int8 or none."),
    head_fp32: bool = typer.Option(
        None, "--head-fp32", help="Embeddings, head and norms upcast, as PEFT prepares k-bit."
    ),
    packing: bool = typer.Option(None, "--packing/--no-packing", help="Rows are packed to the full length."),
    tokens: int = typer.Option(None, parser=count, metavar="N", help="Training tokens of one pass."),
    dataset: str = typer.Option(None, help="The same as DATA, as an option."),
    epochs: float = typer.Option(None, parser=amount, metavar="X", help="Passes over the data."),
    tier: str = typer.Option(None, help="on-demand, spot, community (private hosts) or reserved."),
    prices: str = typer.Option(None, help="Your own price file."),
    usd_per_gpu_hour: float = typer.Option(
        None, parser=amount, metavar="X", help="What an hour of the GPU named by --gpu costs."
    ),
    interruptions_per_hour: float = typer.Option(
        None,
        parser=amount,
        metavar="X",
        help="How often a machine is taken away or fails [spot: 0.1; else a GPU in 50,000 hours].",
    ),
    checkpoint_minutes: float = typer.Option(
        None, parser=amount, metavar="X", help="Minutes between checkpoints [the best interval]."
    ),
    runs: float = typer.Option(None, parser=amount, metavar="X", help="Training runs until one is kept [1]."),
    setup_hours: float = typer.Option(
        None, parser=amount, metavar="X", help="Paid machine hours before the first useful step [0]."
    ),
    evaluation_hours: float = typer.Option(
        None, parser=amount, metavar="X", help="Paid machine hours of evaluation after each run [0]."
    ),
    rows_to_label: int = typer.Option(
        None, parser=count, metavar="N", help="Examples that people still have to write or check [0]."
    ),
    usd_per_labeller_hour: float = typer.Option(
        None, parser=amount, metavar="X", help="What their hours cost, at a minute an example."
    ),
    engineer_hours: float = typer.Option(None, parser=amount, metavar="X", help="Hours of engineering [16]."),
    usd_per_engineer_hour: float = typer.Option(
        None, parser=amount, metavar="X", help="What they cost [0: not counted]."
    ),
    all_rows: bool = typer.Option(False, "--all", help="Show every machine, not the first ten."),
    calibrate: bool = typer.Option(
        False, "--calibrate", help="Train a few steps here and keep predicted and measured."
    ),
    history: bool = typer.Option(False, "--history", help="Show what was predicted and what came, run by run."),
    out: str = typer.Option("", "--out", "-o", help="Write plan.json to this folder."),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say what training takes: memory, hours, dollars. With --model alone for every GPU, at once and without torch; with a
    recipe or data set for this machine, measured. Exit status 1 when it does not fit."""
    asked = {
        name: value
        for name, value in locals().items()
        if name
        not in ("source", "settings", "model", "calibrate", "history", "out", "all_rows", "as_json", "quiet", "debug")
        and value is not None
    }
    if history:
        _history(as_json)
        return
    places, settings = split_arguments([source, *(settings or [])])
    if len(places) > 1 and places[0] != "prices":
        raise typer.BadParameter(f"{places[1]} is one place too many")
    source = places[0] if places else ""
    if source == "prices":
        from tuneloop.cli.prices import prices as show_prices

        show_prices([*places[1:], *settings], prices, as_json)
        return
    if calibrate:
        plan = _calibrated(source, [*settings, *_trained(asked)], model, quiet)
    elif source or asked.get("dataset"):
        plan = _of_data(source, settings, model, asked, _Output(out, quiet))
    else:
        plan = _table(settings, model, asked, out)
    if as_json:
        print_json(plan)
    elif "table" in plan:
        from tuneloop.report.plan_terminal import print_plan

        print_plan(plan, everything=all_rows)
    else:
        _print_measured(plan)
    if not plan["fits"]:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Output:
    """Where `plan.json` goes, and whether lines on the way are left out."""

    folder: str
    quiet: bool


def _table(settings: list[str] | None, model: str, asked: dict[str, Any], out: str) -> dict[str, Any]:
    """The plan of a model for all machines that are asked for."""
    from tuneloop.core.errors import UserError
    from tuneloop.plan.options import plan_machines

    if settings:
        raise UserError(
            f"{settings[0]!r} is a recipe's setting, and this plan is asked by options",
            where="plan",
            next_step="write it as an option (tuneloop plan --help), or name a recipe or data before it",
        )
    if not model:
        raise UserError(
            "Plan what? Neither a model nor data are named",
            where="plan",
            next_step="tuneloop plan --model llama-3.1-8b --method lora, or tuneloop plan DATA",
        )
    return _written(plan_machines({"model": model, **asked}), out)


def _written(plan: dict[str, Any], out: str) -> dict[str, Any]:
    """The plan, also as `plan.json` where a folder is named."""
    from pathlib import Path

    from tuneloop.core.files import write_json

    if out:
        write_json(Path(out) / "plan.json", plan)
    return plan


def _of_data(source: str, settings: list[str], model: str, asked: dict[str, Any], output: _Output) -> dict[str, Any]:
    """The plan of a run on data: of this machine and measured where nothing else is asked and the model is there; else by formula."""
    from pathlib import Path

    from tuneloop.core.errors import UserError
    from tuneloop.plan.options import plan_machines
    from tuneloop.plan.recommend import recommendation_here
    from tuneloop.workflows.advise import counted_data, stand_in
    from tuneloop.workflows.plan import plan_alone
    from tuneloop.workflows.recipes import plan_settings, recipe_of, refuse_missing_source

    if source and "dataset" in asked:
        raise UserError(
            f"{source} and --dataset both say what is trained on", where="--dataset", next_step="give one of them"
        )
    data = source or asked.pop("dataset")
    refuse_missing_source(data)
    if model and (Path(data) / "dataset.json").is_file() and not settings and (asked or stand_in(model)):
        return _written(plan_machines({"model": model, **asked, "dataset": data}), output.folder)
    recipe = recipe_of(data, settings, model=model)
    other = stand_in(recipe.model)
    with screen(output.quiet) as shown:
        if source and not asked and not other:
            plan = plan_alone(recipe, "", progress=shown.progress, say=shown.say)
            return _written({**plan, "recommendation": recommendation_here(plan)}, output.folder)
        read = recipe.model_copy(update={"model": other or recipe.model})
        with counted_data(read, progress=shown.progress, say=shown.say) as counted:
            plan = plan_machines({"model": recipe.model, **plan_settings(recipe), **asked, "dataset": counted.path})
    if counted.sample:
        plan["assumptions"].insert(0, counted.sample)
    if other:
        why = f"{recipe.model} is not on this machine"
        plan["assumptions"].insert(0, f"tokens are counted as {other} reads them, and time is by formula: {why}")
    return _written(plan, output.folder)


def _trained(asked: dict[str, Any]) -> list[str]:
    """Options as settings of a run."""
    from tuneloop.core.errors import UserError

    names = {"method": "train.method", "rank": "train.rank", "prefix_tokens": "train.prefix_tokens"}
    for name in asked:
        if name not in names:
            raise UserError(
                f"--{name.replace('_', '-')} is no option of --calibrate, which trains on this machine",
                where="plan --calibrate", next_step="leave it out, or write a recipe's setting, as in train.micro_batch_tokens=512",
            )  # fmt: skip
    return [f"{names[name]}={value}" for name, value in asked.items()]


def _calibrated(source: str, settings: list[str], model: str, quiet: bool) -> dict[str, Any]:
    """The plan of a short run here, and what came of it."""
    import json
    import tempfile
    from pathlib import Path

    from tuneloop.workflows.recipes import recipe_of
    from tuneloop.workflows.train import calibrate_alone

    with screen(quiet) as shown, tempfile.TemporaryDirectory() as scratch:
        if not source:  # examples of mixed length: their text does not matter
            source = str(Path(scratch) / "examples.jsonl")
            texts = (
                f"Row {i}: " + " ".join(f"word{(i * 7 + j) % 97}" for j in range(20 + i % 120)) for i in range(200)
            )
            rows = (
                json.dumps({"prompt": text, "completion": f"answer {i} of {text[-20:]}"})
                for i, text in enumerate(texts)
            )
            Path(source).write_text("\n".join(rows), encoding="utf-8")
        recipe = recipe_of(source, settings, model=model)
        plan = calibrate_alone(recipe, progress=shown.progress, say=shown.say)
    return plan


def _history(as_json: bool) -> None:
    from tuneloop.plan.ledger import read_ledger, summary

    found = summary(read_ledger())
    if as_json:
        print_json(found)
        return
    if not found["runs"]:
        print("No run is finished yet: `tuneloop run`, `train` and `plan --calibrate` each leave a line.")
        return
    print(f"{'when':<26}{'model':<16}{'method':<8}{'GiB said':>9}{'came':>8}{'minutes said':>14}{'came':>8}")
    for run in found["runs"]:
        said, came = run["predicted_minutes"], run["actual_minutes"]
        why = "machine was busy" if run["disturbed"] else "ended early"
        minutes = f"{said:>14.1f}{came:>8.1f}" if said and came else f"{why:>22}"
        print(
            f"{run['date']:<26}{run['model'][:15]:<16}{run['method']:<8}{run['predicted_gib']:>9.2f}{run['actual_gib']:>8.2f}{minutes}"
        )
    if not found["memory"]["runs"]:
        print("None of them was planned by today's formulas: no error is known yet, nothing is corrected.")
    for what in ("memory", "time"):
        if found[what]["runs"]:
            print(
                f"{what}: median error {found[what]['median_error']:.0%}, worst {found[what]['worst_error']:+.0%} "
                f"({found[what]['runs']} runs planned by today's formulas)"
            )


def _print_measured(plan: dict[str, Any]) -> None:
    from tuneloop.workflows.plan import plan_line

    print(plan_line(plan))
    for name, gib in plan["memory"]["terms"].items():
        print(f"  {gib:7.2f} GiB  {name}")
    print(f"  {plan['memory']['peak_gib']:7.2f} GiB  peak, of {plan['memory']['capacity_gib']:.1f} GiB")
    if measured := plan.get("measured"):
        print(
            f"  measured: {measured['peak_gib']:.2f} GiB, {measured['minutes']:.1f} minutes, {measured['tokens_per_second']:,.0f} tokens/s"
        )
        print(
            "  learned: `tuneloop plan --model ... --gpu` for this machine now goes by this speed (tuneloop plan --history)"
        )
    for line in plan["assumptions"]:
        print(f"  assumed: {line}")
    for change in plan["alternatives"]:
        print(f"  instead: {change['change']} ({change['why']})")
    if "recommendation" in plan:
        print(f"\nRecommendation: {plan['recommendation']}")
