"""Deploy an artifact: the project folder of a host, with the plan's price."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.advise.economics import ModelFootprint, ServingGpu, serving_tokens_per_second
from tuneloop.advise.economics import QueryTraffic as Requests
from tuneloop.core.errors import UserError
from tuneloop.core.files import write_json, write_text
from tuneloop.deploy.deployment import (
    HOURS_A_MONTH,
    REQUEST,
    Card,
    Demand,
    Deployment,
    DeployWish,
    Machine,
    Size,
    choose_machine,
    job_of,
    service_name,
)
from tuneloop.deploy.hosts import Host, find_host, hosts, refuse_form
from tuneloop.deploy.launch import Launch, Limit
from tuneloop.deploy.project_text import readme, request_text
from tuneloop.deploy.record import HostedDeployment
from tuneloop.models.names import SHORT_NAMES
from tuneloop.plan.gpus import all_gpus, find_gpu
from tuneloop.plan.prices import load_prices
from tuneloop.plan.shape import find_model
from tuneloop.records.artifact import ArtifactManifest
from tuneloop.registry.verify import read_intact

if TYPE_CHECKING:
    from tuneloop.models.shape import ModelShape

USUAL_CONTEXT = 4096  # of a service where nobody names one: memory for more is paid all the time


@dataclass(frozen=True)
class Project:
    """What stands in a project's folder: name -> text, for a deployment by a host."""

    host: Host
    job: Deployment
    artifact: Path
    files: dict[str, str]


def plan_deployment(folder: Path, wish: DeployWish) -> Project:
    """The project of an artifact for a host; nothing is written.

    Raises:
        UserError: a changed artifact, a host that can't serve its format, no card that is large enough.
    """
    if not wish.to:
        raise UserError("Where to?", where="--to", next_step=f"name one of {', '.join(hosts())}")
    host = find_host(wish.to)
    wish.traffic()  # refuses numbers that can't be before anything is read
    manifest = read_intact(folder)
    refuse_form(host, manifest.format)
    if wish.hub and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", wish.hub):
        raise UserError(f"Not a place on the hub: {wish.hub!r}", where="--hub", next_step="write ORG/NAME")
    repo = wish.hub
    if host.pulls and manifest.format not in ("gguf", "gguf-lora") and not repo:
        raise UserError(
            f"{host.title} loads the artifact from the Hugging Face hub", where="--hub",
            next_step=f"tuneloop models push {folder} hub:ORG/NAME --send, then deploy with --hub ORG/NAME",
        )  # fmt: skip
    shape = _shape(folder, manifest)
    size = _size(folder, manifest, shape, wish.context or None)
    machine = _machine(host, size, wish)
    demand = _demand(wish, shape, size, machine)
    job = Deployment(
        name=service_name(wish.name or job_of(manifest.id) or manifest.id),
        artifact=manifest.id,
        form=manifest.format,  # type: ignore[arg-type]
        base=SHORT_NAMES.get(manifest.base.model.lower(), manifest.base.model),
        repo=repo,
        size=size,
        file=next((name for name in manifest.files if name.endswith(".gguf")), ""),
        rank=_rank(folder),
        system=(manifest.task or {}).get("system") or "",
        machine=machine,
        traffic=wish.traffic(demand.replicas if demand else 1),
        demand=demand,
    )
    month = job.usd_a_month()
    if wish.max_usd_per_month and (month is None or month[1] > wish.max_usd_per_month):
        raise UserError(
            f"{host.title} costs {f'${month[1]:,.0f} a month' if month else 'nobody knows what'}: the limit is ${wish.max_usd_per_month:,.0f}",
            where="--max-usd-per-month",
            next_step="name a cheaper --gpu or fewer --max-replicas, or say the price with --usd-per-hour; nothing was put up",
        )  # fmt: skip
    files = {**host.project(job), "README.md": readme(host, job)}
    if request := request_text(host, job):
        files[REQUEST] = request
    return Project(host, job, folder.resolve(), files)


def write_project(project: Project, out: Path) -> Path:
    """Write a project into a folder, with `deploy.json` last; files that a person changed there are not overwritten.

    Raises:
        UserError: a file there is another.
    """
    other = [
        name for name, text in project.files.items() if (out / name).is_file() and (out / name).read_text() != text
    ]
    if other:
        raise UserError(
            f"There is another {other[0]} already",
            where=str(out),
            next_step="name another folder with --out, or remove it",
        )
    for name, text in project.files.items():
        write_text(out / name, text)
        if text.startswith("#!"):
            (out / name).chmod(0o755)
    write_json(out / HostedDeployment.file, record_of(project).to_json())
    return out


def record_of(project: Project) -> HostedDeployment:
    """What `deploy.json` says of a project."""
    job = project.job
    month = job.usd_a_month()
    return HostedDeployment(
        host=project.host.name,
        name=job.name,
        artifact=job.artifact,
        format=job.form,
        base=job.base,
        hub=job.repo,
        gpu=job.machine.card.key if job.machine else "",
        gpus=job.cards if job.machine else 0,
        context=job.context,
        need_gib=round(job.size.need_gib, 2),
        replicas=(job.traffic.least, job.traffic.most),
        queries_per_day=job.demand.queries_per_day if job.demand else None,
        replicas_needed=job.demand.replicas if job.demand else None,
        usd_per_hour=job.machine.usd_per_hour if job.machine else None,
        usd_per_month=(round(month[0], 2), round(month[1], 2)) if month else None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files=sorted(project.files),
    )


def launch_of(project: Project, wish: DeployWish) -> Launch:
    """How a deployment is put up, and what that may cost."""
    host, job = project.host, project.job
    commands, month = host.commands(job), job.usd_a_month()
    limit = Limit(
        HOURS_A_MONTH * job.traffic.most, "a month with the most replicas", month[1] if month else None,
        wish.max_usd_per_month, "--max-usd-per-month",
    )  # fmt: skip
    return Launch(
        host.title, commands[0][0], commands[-1][0], host.variables, {"ARTIFACT": str(project.artifact)},
        host.sky(job) if host.sky else None, limit,
    )  # fmt: skip


def _shape(folder: Path, manifest: ArtifactManifest) -> ModelShape:
    config = folder / "config.json"
    return find_model(str(folder) if config.is_file() else manifest.base.model)[1]


def _size(folder: Path, manifest: ArtifactManifest, shape: ModelShape, context: int | None) -> Size:
    """Memory of the weights as they are stored, of an adapter with its base in 16 bits."""
    weights = sum(entry.bytes for name, entry in manifest.files.items() if name.endswith((".safetensors", ".gguf")))
    if manifest.format in ("adapter", "gguf-lora"):
        weights += 2 * shape.parameters
    most = shape.context or USUAL_CONTEXT
    if context is not None and not 16 <= context <= most:
        raise UserError(
            f"A context of {context:,} tokens is not possible", where="--context",
            next_step=f"give 16 to {most:,}, which the model reads",
        )  # fmt: skip
    kv = 2 * 2 * shape.layers * shape.key_heads * shape.head_size  # keys and values in 16 bits
    return Size(weights / 2**30, kv, context or min(USUAL_CONTEXT, most))


def _demand(wish: DeployWish, shape: ModelShape, size: Size, machine: Machine | None) -> Demand | None:
    """What the requests that were said need, by the figures of `advise`; None: nothing was said, or the host needs no card.

    Raises:
        UserError: the prompts and answers are longer than the context.
    """
    if not wish.queries_per_day or machine is None:
        return None
    asked = Requests(wish.queries_per_day, wish.prompt_tokens, wish.answer_tokens)
    if asked.prompt_tokens + asked.answer_tokens > size.context:
        raise UserError(
            f"Requests of {asked.prompt_tokens + asked.answer_tokens:,.0f} tokens on average don't fit into a context of {size.context:,}",
            where="--prompt-tokens, --answer-tokens", next_step="give fewer, or a larger --context",
        )  # fmt: skip
    gpu, cards = all_gpus()[machine.card.key], machine.cards
    model = ModelFootprint(shape.parameters, size.weights_gib * 2**30 / shape.parameters, size.kv_bytes)
    card = ServingGpu(gpu.gib * 2**30 * cards, gpu.gb_s * 1e9 * cards, gpu.tflops * 1e12 * cards)
    rate = serving_tokens_per_second(model, card, asked.prompt_tokens, asked.answer_tokens)
    busiest = asked.queries_per_day / 86400 * asked.peak * (asked.prompt_tokens + asked.answer_tokens)
    replicas = max(1, math.ceil(busiest / (rate * asked.headroom))) if rate else 1
    return Demand(asked.queries_per_day, asked.prompt_tokens, asked.answer_tokens, asked.peak, replicas)


def _rank(folder: Path) -> int:
    """The largest rank of an adapter; 0 where there is none."""
    config = folder / "adapter_config.json"
    if not config.is_file():
        return 0
    found = json.loads(config.read_text(encoding="utf-8"))
    return max([int(found.get("r") or 0), *map(int, (found.get("rank_pattern") or {}).values())])


def _machine(host: Host, size: Size, wish: DeployWish) -> Machine | None:
    """The cards of a replica; None where the host needs none."""
    gpu = wish.gpu
    if not host.gpus:
        return None
    wanted: Sequence[str] = list(host.gpus)
    if gpu:
        key = find_gpu(gpu).key
        if key not in host.gpus:
            raise UserError(
                f"{host.title} has no {all_gpus()[key].name}" if key in all_gpus() else f"{host.title} has no {gpu}",
                where="--gpu", next_step=f"it has {', '.join(host.gpus)}",
            )  # fmt: skip
        wanted = [key]
    cards = [_card(key, host) for key in wanted if key in all_gpus()]
    if wish.usd_per_hour:
        said = f"${wish.usd_per_hour:,.2f} an hour and card, as you say"
        cards = [replace(card, usd_per_hour=wish.usd_per_hour, price=said, rented=False) for card in cards]
    return choose_machine(size, cards)


def _card(key: str, host: Host) -> Card:
    """A card with the host's own price, or else with the cheapest on demand, which is said."""
    gpu, table = all_gpus()[key], load_prices()
    card = Card(key, gpu.name, gpu.gib, counts=host.counts.get(key, (1, 2, 4, 8)), bf16=gpu.bf16)
    own = [price for level in table.levels for price in level if price.gpu == key and price.provider in host.providers]
    if host.providers and not own:  # it has prices of its own, which are not known here
        return card
    price = min(own, key=lambda each: each.usd_per_hour, default=table.gpu(key))
    return (
        card if price is None else replace(card, usd_per_hour=price.usd_per_hour, price=price.words(), rented=host.own)
    )
