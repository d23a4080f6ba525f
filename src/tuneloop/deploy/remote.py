"""Train elsewhere: prepare here, so that only checked and redacted rows leave, and write the project of a cluster."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_text, write_yaml
from tuneloop.core.ui import busy, say
from tuneloop.core.units import hours_expected, usd_words
from tuneloop.deploy.clusters import Cluster, ClusterJob, RemoteOptions, find_cluster, refuse_what_it_lacks
from tuneloop.deploy.deployment import service_name
from tuneloop.deploy.launch import Launch, Limit, launch_at, no_card
from tuneloop.deploy.project_text import evidence, shell_steps
from tuneloop.deploy.record import RemoteJob
from tuneloop.models.files import PACKAGED
from tuneloop.pipeline import RunContext, prepare_checked
from tuneloop.planning import plan_machines
from tuneloop.planning.catalogue import find_gpu
from tuneloop.recipe import Recipe, plan_settings
from tuneloop.records.record import read_record, write_record


@dataclass(frozen=True)
class RemoteProject:
    """A written project, the job in it, and the planner's words on it."""

    folder: Path
    cluster: Cluster
    job: ClusterJob
    plan: Mapping[str, Any]
    launch: Launch

    def price_words(self) -> str:
        """What the planner expects, in a sentence."""
        return price_words(self.plan, self.cluster)


def write_remote(recipe: Recipe, options: RemoteOptions, out: Path) -> RemoteProject:
    """Prepare the data, plan the run, and write the folder that a cluster needs: recipe, data set, files, README.

    Raises:
        UserError: no such cluster, no card there that fits, a price above the limit, or what preparing raises.
    """
    from tuneloop.pipeline import stand_in

    cluster = find_cluster(options.on)
    refuse_what_it_lacks(cluster, options)
    options = options.model_copy(update={"nodes": options.nodes or 1})
    if other := stand_in(recipe.model):
        note = f"rows are counted as {other} reads them, and again where it trains"
        say(f"note      {recipe.model} is not on this machine: {note}")
    job = RunContext(recipe.model_copy(update={"model": other or recipe.model}), out)
    with busy("preparing the data"):
        dataset = prepare_checked(job)
    plan = _planned(recipe, Path(dataset.path), cluster, options)
    _refuse_price(plan, cluster, options, out)
    hours = plan["time"]["hours"]
    training = ClusterJob(
        name=service_name(recipe.name),
        gpu=plan["gpu"],
        gpus=options.gpus or max(1, plan["gpus"] // options.nodes),
        nodes=options.nodes,
        spot=options.spot,
        bucket=options.bucket,
        gated=recipe.model.lower() != PACKAGED,
        max_usd_per_hour=round(options.max_usd / (hours * options.nodes), 4) if options.max_usd else 0.0,
    )
    folder = Path(dataset.path).resolve()
    if folder != (out / "dataset").resolve():
        shutil.copytree(folder, out / "dataset", dirs_exist_ok=True)
    values = recipe.model_dump(mode="json", exclude_unset=True, exclude={"data", "output_dir"})
    if options.bucket and cluster.bucket == "store":
        values = {"store": f"{options.bucket.rstrip('/')}/{training.name}", **values}
    write_yaml(out / "recipe.yaml", {**values, "data": {"sources": ["dataset"]}})
    for name, text in {**cluster.project(training), "README.md": readme(cluster, training, plan)}.items():
        write_text(out / name, text)
    job_values = {name: getattr(training, name) for name in ("name", "gpu", "gpus", "nodes", "spot")}
    cost = plan["cost"] if cluster.gpus else {}  # on own machines nothing is paid by the hour
    prices = {name: cost.get(name) for name in ("usd", "p90", "usd_per_hour")}
    minutes, created = round(60 * hours, 2), datetime.now(UTC).isoformat(timespec="seconds")
    record = RemoteJob(on=cluster.name, minutes=minutes, created=created, **job_values, **prices)
    write_record(out / RemoteJob.file, record)
    return RemoteProject(out, cluster, training, plan, _launch(cluster, training, plan, options.max_usd))


def _launch(cluster: Cluster, job: ClusterJob, plan: Mapping[str, Any], most_usd: float) -> Launch:
    """How a run elsewhere is started, and what that may cost."""
    variables = tuple(name for name in cluster.variables if job.gated or name != "HF_TOKEN")
    hours = plan["time"]["hours"]
    limit = Limit(hours, plan["cost"].get("usd"), most_usd)
    return launch_at(cluster, job, variables, limit=limit)


def _refuse_price(plan: Mapping[str, Any], cluster: Cluster, options: RemoteOptions, out: Path) -> None:
    """Refuse a price above the user's limit, and say so where it rose since the project was written."""
    if not cluster.gpus:
        return
    usd, card = plan["cost"]["usd"], f"{plan['gpus']} x {plan['gpu']}"
    if usd is None:
        if options.max_usd:
            message = f"No price of {card} on {cluster.title} is known, and there is a limit"
            step = "name another --gpu, write your price into ~/.config/tuneloop/prices.yaml, or leave the limit out"
            raise UserError(message, where="--max-usd", next_step=step)
        return
    before = read_record(RemoteJob, out) if (out / RemoteJob.file).is_file() else None
    rose = ""
    if before is not None and before.usd and usd > 1.01 * before.usd:
        rose = f", {usd_words(before.usd)} when it was planned on {before.created[:10]}"
        say(f"price     it is {usd_words(usd)} now{rose}")
    if options.max_usd and usd > options.max_usd:
        message = (
            f"Training on {card} is expected to cost {usd_words(usd)}{rose}: more than {usd_words(options.max_usd)}"
        )
        step = "name another --gpu, take --spot, or raise the limit; nothing was started"
        raise UserError(message, where="--max-usd", next_step=step)


def price_words(plan: Mapping[str, Any], cluster: Cluster) -> str:
    """What the planner expects, in a sentence."""
    if not cluster.gpus:
        return "Time and price depend on your machines: tuneloop plan RECIPE --gpu GPU says them."
    time, cost = plan["time"], plan["cost"]
    price = next((line for line in plan["assumptions"] if "an hour and GPU" in line), "")
    train = f"{plan['gpus']} x {plan['gpu']}: {hours_expected(time['hours'], time['low'], time['high'])} of training"
    if cost["usd"] is None:
        return f"{train}. No price of it there is known. Baselines and evaluation come on top."
    usd = f"{usd_words(cost['usd'])} expected, one time in ten more than {usd_words(cost['p90'])} ({price})"
    if cluster.own_machines:
        usd = f"on machines of your own, whose cost only you know; rented, {usd}"
    return f"{train}, {usd}. Baselines and evaluation come on top."


def readme(cluster: Cluster, job: ClusterJob, plan: Mapping[str, Any]) -> str:
    """The project's README."""
    return f"""# {job.name} on {cluster.title}

`recipe.yaml` and the prepared `dataset/`: personal data in it were redacted as the recipe says, before anything leaves.

{shell_steps(cluster.commands(job))}

## Price

{price_words(plan, cluster)}

{evidence(cluster)}"""


def _planned(recipe: Recipe, dataset: Path, cluster: Cluster, options: RemoteOptions) -> dict[str, Any]:
    """The planner's answer for the requested card, or for the cheapest that the cluster has and that fits."""
    settings: dict[str, Any] = {"model": recipe.model, **plan_settings(recipe), "dataset": str(dataset)}
    settings |= {"tier": "spot"} if options.spot else {}
    settings |= {"providers": cluster.providers} if cluster.providers else {}
    if options.gpu:
        key = find_gpu(options.gpu).key
        if cluster.gpus and key not in cluster.gpus:
            raise no_card(cluster, key)
        return plan_machines({**settings, "gpu": key, "gpus": max(options.gpus, 1) * options.nodes})
    number = options.gpus * options.nodes
    cards = {"gpus": number} if number else {}
    rows = plan_machines(settings | cards)["table"]
    rows = [row for row in rows if not cluster.gpus or row["gpu"] in cluster.gpus]
    fits = [row for row in rows if row["fits"] and (not number or row["gpus"] == number)]
    if not fits:
        step = "`tuneloop plan RECIPE` says what would make it fit; or name --gpu and --gpus"
        raise UserError(f"The run fits on no machine of {cluster.title} as it is", where="--on", next_step=step)
    best = min(fits, key=lambda row: (row["usd"] is None, row["usd"] or 0.0))
    return plan_machines({**settings, "gpu": best["gpu"], "gpus": best["gpus"]})
