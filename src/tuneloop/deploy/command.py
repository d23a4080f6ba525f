"""Deploy an artifact: the project folder of a host, with the plan's price."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.advice import ModelFootprint, ServingGpu, serving_tokens_per_second
from tuneloop.advice import QueryTraffic as Requests
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object, write_json, write_text
from tuneloop.deploy import deployment
from tuneloop.deploy.hosts import Host, find_host, hosts, refuse_form
from tuneloop.deploy.launch import Launch, launch_at, no_card
from tuneloop.deploy.project_text import price_words, readme, request_text
from tuneloop.deploy.record import HostedDeployment
from tuneloop.models.chat import load_template
from tuneloop.models.files import SHORT_NAMES
from tuneloop.planning.catalogue import all_gpus, find_gpu, find_model, load_prices
from tuneloop.records.artifact import ArtifactManifest
from tuneloop.registry import read_intact

if TYPE_CHECKING:
    from tuneloop.models.nn import ModelShape

USUAL_CONTEXT = 4096  # where none is named: memory for more is paid all the time


@dataclass(frozen=True)
class Project:
    """What is in a project's folder: name -> text, for a deployment by a host."""

    host: Host
    job: deployment.ServingJob
    files: dict[str, str]
    launch: Launch

    def price_words(self) -> str:
        """The monthly price, in a sentence or two."""
        return price_words(self.host, self.job)

    def record(self) -> HostedDeployment:
        """What `deploy.json` says of it."""
        job, machine, demand, month = self.job, self.job.machine, self.job.demand, self.job.usd_a_month()
        values: dict[str, Any] = {
            "host": self.host.name, "name": job.name, "artifact": job.artifact, "format": job.form, "base": job.base,
            "hub": job.repo, "gpu": machine.card.key if machine else "", "gpus": job.cards if machine else 0,
            "context": job.context, "need_gib": round(job.size.need_gib, 2),
            "replicas": (job.traffic.least, job.traffic.most),
            "queries_per_day": demand.queries_per_day if demand else None,
            "replicas_needed": demand.replicas if demand else None,
            "usd_per_hour": machine.usd_per_hour if machine else None,
            "usd_per_month": (round(month[0], 2), round(month[1], 2)) if month else None,
            "created": datetime.now(UTC).isoformat(timespec="seconds"), "files": sorted(self.files),
        }  # fmt: skip
        return HostedDeployment(**values)


def plan_deployment(folder: Path, options: deployment.DeployOptions) -> Project:
    """The project of an artifact for a host; nothing is written.

    A UserError refuses a changed artifact, a host that can't serve its format, and cards that are not large enough.
    """
    if not options.to:
        raise UserError("Where to?", where="--to", next_step=f"name one of {', '.join(hosts())}")
    host = find_host(options.to)
    options.traffic(least=host.least)  # refuses numbers that can't be before anything is read
    manifest = read_intact(folder)
    refuse_form(host, manifest.format)
    if options.hub and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", options.hub):
        raise UserError(f"Not a place on the hub: {options.hub!r}", where="--hub", next_step="write ORG/NAME")
    if host.pulls and manifest.format not in ("gguf", "gguf-lora") and not options.hub:
        step = f"tuneloop models push {folder} hub:ORG/NAME --send, then deploy with --hub ORG/NAME"
        raise UserError(f"{host.title} loads the artifact from the Hugging Face hub", where="--hub", next_step=step)
    shape = find_model(str(folder) if (folder / "config.json").is_file() else manifest.base.model)[1]
    size = _size(folder, manifest, shape, options.context or None)
    machine = _machine(host, size, options)
    demand = _demand(options, shape, size, machine)
    job = deployment.ServingJob(
        name=deployment.service_name(options.name or deployment.job_of(manifest.id) or manifest.id),
        artifact=manifest.id,
        form=manifest.format,  # type: ignore[arg-type]
        base=SHORT_NAMES.get(manifest.base.model.lower(), manifest.base.model),
        repo=options.hub,
        size=size,
        file=next((name for name in manifest.files if name.endswith(".gguf")), ""),
        rank=_rank(folder),
        system=(manifest.task or {}).get("system") or "",
        ends=load_template(folder).end_ids if manifest.format == "adapter" else (),
        scores_labels=bool((manifest.task or {}).get("labels")),
        priorities=options.priorities,
        machine=machine,
        traffic=options.traffic(demand.replicas if demand else 1, host.least),
        demand=demand,
    )
    _refuse_price(job, host, options.max_usd_per_month)
    files = {**host.project(job), "README.md": readme(host, job)}
    if request := request_text(host, job):
        files[deployment.REQUEST] = request
    launch = launch_at(host, job, host.variables, environment={"ARTIFACT": str(folder.resolve())})
    return Project(host, job, files, launch)


def _refuse_price(job: deployment.ServingJob, host: Host, limit: float) -> None:
    month = job.usd_a_month()
    if limit and (month is None or month[1] > limit):
        price = f"${month[1]:,.0f} a month" if month else "an unknown price"
        step = "name a cheaper --gpu or fewer --max-replicas, or give --usd-per-hour; nothing was started"
        message = f"{host.title} costs {price}: the limit is ${limit:,.0f}"
        raise UserError(message, where="--max-usd-per-month", next_step=step)


def write_project(project: Project, out: Path) -> Path:
    """Write a project into a folder, `deploy.json` last; a UserError where a file there has another text."""
    for name, text in project.files.items():
        if (out / name).is_file() and (out / name).read_text() != text:
            step = "name another folder with --out, or remove it"
            raise UserError(f"There is another {name} already", where=str(out), next_step=step)
    for name, text in project.files.items():
        write_text(out / name, text)
        if text.startswith("#!"):
            (out / name).chmod(0o755)
    write_json(out / HostedDeployment.file, project.record().to_json())
    return out


def _size(folder: Path, manifest: ArtifactManifest, shape: ModelShape, context: int | None) -> deployment.Size:
    """Memory of the weights as they are stored, of an adapter with its base in 16 bits."""
    weights = sum(entry.bytes for name, entry in manifest.files.items() if name.endswith((".safetensors", ".gguf")))
    if manifest.format in ("adapter", "gguf-lora"):
        weights += 2 * shape.parameters
    most = shape.context or USUAL_CONTEXT
    if context is not None and not 16 <= context <= most:
        step = f"give 16 to {most:,}, which the model reads"
        raise UserError(f"A context of {context:,} tokens is not possible", where="--context", next_step=step)
    kv = 2 * 2 * shape.layers * shape.key_heads * shape.head_size  # keys and values in 16 bits
    return deployment.Size(weights / 2**30, kv, context or min(USUAL_CONTEXT, most))


def _demand(
    options: deployment.DeployOptions, shape: ModelShape, size: deployment.Size, machine: deployment.Machine | None
) -> deployment.Demand | None:
    """What the stated requests need, by the numbers of `advise`; None: none are stated, or the host needs no card."""
    if not options.queries_per_day or machine is None:
        return None
    requests = Requests(options.queries_per_day, options.prompt_tokens, options.answer_tokens)
    tokens = requests.prompt_tokens + requests.answer_tokens
    if tokens > size.context:
        message = f"Requests of {tokens:,.0f} tokens on average don't fit into a context of {size.context:,}"
        where = "--prompt-tokens, --answer-tokens"
        raise UserError(message, where=where, next_step="give fewer, or a larger --context")
    gpu, cards = all_gpus()[machine.card.key], machine.cards
    bytes_a_weight = size.weights_gib * 2**30 / shape.parameters
    model = ModelFootprint(shape.parameters, bytes_a_weight, size.kv_bytes, shape.active_parameters)
    card = ServingGpu(gpu.gib * 2**30 * cards, gpu.gb_s * 1e9 * cards, gpu.tflops * 1e12 * cards)
    rate = serving_tokens_per_second(model, card, requests.prompt_tokens, requests.answer_tokens)
    busiest = requests.queries_per_day / 86400 * requests.peak * tokens
    replicas = max(1, math.ceil(busiest / (rate * requests.headroom))) if rate else 1
    traffic = (requests.queries_per_day, requests.prompt_tokens, requests.answer_tokens, requests.peak)
    return deployment.Demand(*traffic, replicas)


def _rank(folder: Path) -> int:
    """The largest rank of an adapter; 0 where there is none."""
    config = folder / "adapter_config.json"
    if not config.is_file():
        return 0
    adapter = read_json_object(config)
    return max([int(adapter.get("r") or 0), *map(int, (adapter.get("rank_pattern") or {}).values())])


def _machine(host: Host, size: deployment.Size, options: deployment.DeployOptions) -> deployment.Machine | None:
    if not host.gpus:
        return None
    keys: Sequence[str] = [find_gpu(options.gpu).key] if options.gpu else list(host.gpus)
    if keys[0] not in host.gpus:
        raise no_card(host, keys[0])
    cards = [_card(key, host) for key in keys if key in all_gpus()]
    if options.usd_per_hour:
        price = f"${options.usd_per_hour:,.2f} an hour and card, as you say"
        cards = [replace(card, usd_per_hour=options.usd_per_hour, price=price, rented=False) for card in cards]
    return deployment.choose_machine(size, cards)


def _card(key: str, host: Host) -> deployment.Card:
    """A card with the host's own price, or else with the cheapest on demand, which its words say."""
    gpu, table = all_gpus()[key], load_prices()
    card = deployment.Card(key, gpu.name, gpu.gib, counts=host.counts.get(key, (1, 2, 4, 8)), bf16=gpu.bf16)
    prices = [
        offer for level in table.levels for offer in level if offer.gpu == key and offer.provider in host.providers
    ]
    if host.providers and not prices:  # its prices are not known here
        return card
    price = min(prices, key=lambda offer: offer.usd_per_hour, default=table.gpu(key))
    if price is None:
        return card
    return replace(card, usd_per_hour=price.usd_per_hour, price=price.words(), rented=host.own_machines)
