"""What a host has to know of an artifact to serve it, and the machine that it runs on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import Config
from tuneloop.core.flag import flag, switch

# A value of an option of vLLM: True is an option alone, a record is JSON.
Option = str | int | float | bool | Mapping[str, str]
Form = Literal["merged", "adapter", "gguf", "gguf-lora"]
HOURS_A_MONTH = 730.0
GIB = 2**30
USABLE = 0.9  # of a card's memory, what vLLM takes by default
BESIDES_GIB = 1.5  # what vLLM's kernels, graphs and activations need in addition to weights and cache
TOGETHER = 4  # answers at full length at once that the cache must hold


@dataclass(frozen=True)
class Card:
    """A GPU that a host rents out."""

    key: str  # as in `tuneloop plan`
    name: str  # in words
    gib: float  # memory
    usd_per_hour: float | None = None  # None where no price is known
    price: str = ""  # the price in words, with its provider and date
    rented: bool = False  # whether that is what a rented card costs, while the host's are one's own
    counts: tuple[int, ...] = (1, 2, 4, 8)  # how many of them a machine has
    bf16: bool = True  # whether it computes in bfloat16


@dataclass(frozen=True)
class Size:
    """What a served model takes."""

    weights_gib: float  # of all weights
    kv_bytes: float  # keys and values of one token
    context: int  # tokens that a prompt and its answer have at most

    @property
    def need_gib(self) -> float:
        """GiB that weights, the cache of `TOGETHER` long answers and the engine need."""
        return self.weights_gib + TOGETHER * self.context * self.kv_bytes / GIB + BESIDES_GIB


@dataclass(frozen=True)
class Machine:
    """Cards that hold a model together."""

    card: Card
    cards: int

    @property
    def usd_per_hour(self) -> float | None:
        """Dollars an hour of all cards; None: not known."""
        return None if self.card.usd_per_hour is None else self.cards * self.card.usd_per_hour


def choose_machine(size: Size, cards: Sequence[Card]) -> Machine:
    """The cheapest cards that hold a model; those without a known price come last, the smaller first.

    Several cards hold equal shares of it (tensor parallel), so that their number is a power of two. A UserError says
    that nothing the host rents out is large enough.
    """

    def holds(card: Card, number: int) -> bool:
        return number * card.gib * USABLE >= size.need_gib + (number - 1) * BESIDES_GIB

    fits = [Machine(card, number) for card in cards if (number := next(filter(partial(holds, card), card.counts), 0))]
    if not fits:
        largest = max(cards, key=lambda card: card.gib * card.counts[-1])
        most = largest.counts[-1]
        have = f"{most} x {largest.name} have {most * largest.gib * USABLE:,.0f}"
        message = f"No GPU there is large enough: {size.need_gib:,.0f} GiB are needed, {have}"
        step = "give a shorter --context, or export with --format gguf --quant q4_k_m"
        raise UserError(message, where="--gpu", next_step=step)
    priced = [machine for machine in fits if machine.usd_per_hour is not None]
    return min(
        priced or fits,
        key=lambda machine: (machine.usd_per_hour or 0.0, machine.cards * machine.card.gib, machine.card.key),
    )


@dataclass(frozen=True)
class Replicas:
    """What the replicas are for: how many are always on, how many at most, and how long an idle one is kept."""

    least: int = 1
    most: int = 1
    idle_minutes: float = 15.0


@dataclass(frozen=True)
class Demand:
    """Requests to a service, and what they take."""

    queries_per_day: float  # requests; `prompt_tokens` and `answer_tokens` of each on average
    prompt_tokens: float
    answer_tokens: float
    peak: float  # the busiest hour, as a multiple of the mean
    replicas: int  # that the busiest hour needs, half loaded, as the planner reckons


class DeployOptions(Config):
    """What the user says of a deployment; the fields are the command's options."""

    PANEL: ClassVar[str] = "Deployment"

    to: str = flag("", "HOST", "Where it is served.")
    hub: str = flag("", "ORG/NAME", "Where the artifact is on the Hugging Face hub (tuneloop models push).")
    name: str = flag("", "NAME", "Name of the service; default: by the artifact.")
    gpu: str = flag("", "GPU", "Card of a replica, as in plan; default: the cheapest that holds the model.")
    context: int = flag(0, "N", "Most tokens of a prompt and its answer; default: 4,096, or the model's if less.")
    usd_per_hour: float = flag(0.0, "USD", "Price of a card's hour; default: the planner's.", least=0, show=False)
    queries_per_day: float = flag(0.0, "N", "Requests a day, for which replicas are planned.", least=0, show=False)
    prompt_tokens: float = flag(400.0, "N", "Tokens of a request's prompt on average.", least=1)
    answer_tokens: float = flag(100.0, "N", "Tokens of an answer on average.", least=1)
    min_replicas: int | None = flag(None, "N", "Replicas that are always on; default: 1, on RunPod none.")
    max_replicas: int = flag(0, "N", "Most replicas; default: the least, or by --queries-per-day.", show=False)
    max_usd_per_month: float = flag(0.0, "USD", "Refuse more a month, with all replicas.", least=0, show=False)
    idle_minutes: float = flag(15.0, "M", "How long an idle replica above the least is kept.")
    priorities: bool = switch("Have vLLM schedule by priority, for a `tuneloop serve` with background work in front.")

    def traffic(self, needed: int = 1, least: int = 1) -> Replicas:
        """What the replicas are for. A UserError refuses numbers that can't be.

        Args:
            needed: replicas that the busiest hour needs.
            least: that are always on where the user names no number.
        """
        least = least if self.min_replicas is None else self.min_replicas
        most = self.max_replicas or max(least, needed, 1)
        least = min(least, most) if self.min_replicas is None else least
        if not 0 <= least <= most or most < 1 or self.idle_minutes <= 0:
            message, step = (
                "Replicas: 0 <= least <= most, and most at least 1",
                "as in --min-replicas 1 --max-replicas 3",
            )
            raise UserError(message, where="--min-replicas, --max-replicas", next_step=step)
        return Replicas(least, most, self.idle_minutes)


@dataclass(frozen=True)
class ServingJob:
    """An artifact that is to be served by a host."""

    name: str  # of the service: small letters, digits and dashes
    artifact: str  # its id
    form: Form  # of its weights
    base: str  # hub name of the base model
    repo: str  # `ORG/NAME` of the artifact on the Hugging Face hub; empty: it is in the project's own folder
    size: Size  # what it takes
    file: str = ""  # the GGUF file's name
    rank: int = 0  # of an adapter
    system: str = ""  # the turn that all training rows share, which callers have to send
    ends: tuple[int, ...] = ()  # tokens that end an adapter's answers; its base may end in another
    scores_labels: bool = False  # whether its answers are labels, whose probabilities are read
    priorities: bool = False  # whether vLLM schedules by priority
    machine: Machine | None = None  # None where the host chooses it
    traffic: Replicas = Replicas()  # replicas
    demand: Demand | None = None  # requests, where they were said

    @property
    def context(self) -> int:
        return self.size.context

    @property
    def cards(self) -> int:
        return self.machine.cards if self.machine else 1

    @property
    def model(self) -> str:
        """What the engine loads: the artifact itself, or the base of an adapter."""
        return self.base if self.form in ("adapter", "gguf-lora") else self.repo

    @property
    def half(self) -> bool:
        """Whether the card has no bfloat16, so that vLLM has to compute in half precision."""
        return self.machine is not None and not self.machine.card.bf16

    def usd_a_month(self) -> tuple[float, float] | None:
        """Dollars a month for the least and for the most replicas all the time; None: no price is known."""
        hour = self.machine.usd_per_hour if self.machine else None
        if hour is None:
            return None
        return self.traffic.least * hour * HOURS_A_MONTH, self.traffic.most * hour * HOURS_A_MONTH


REQUEST = "request.json"  # a first request, in the project's folder


def first_request(job: ServingJob, model: str, vllm: bool = True) -> dict[str, Any]:
    """A request of OpenAI's API as the model was trained and evaluated: its system turn, the likeliest answer.

    Args:
        model: its name in requests; empty: a request names none.
        vllm: whether vLLM answers, which learns from `stop_token_ids` where an adapter's answers end.
    """
    turns = [{"role": "system", "content": job.system}] if job.system else []
    messages = [*turns, {"role": "user", "content": "Hello"}]
    request = {**({"model": model} if model else {}), "messages": messages, "temperature": 0, "max_tokens": 256}
    return request | ({"stop_token_ids": list(job.ends)} if vllm and job.ends else {})


def chat_call(url: str, key: str = "", body: str = "@request.json") -> str:
    """A command that sends a chat request to a URL as the shell reads it, with a key such as `Bearer $API_KEY`."""
    authorization = f'-H "Authorization: {key}" ' if key else ""
    return f'curl {url} {authorization}-H "Content-Type: application/json" -d {body}'


def job_of(artifact: str) -> str:
    """The job's name in an artifact's id, as `tickets` of `tickets-merged-1a2b3c4d`; empty: it ends in no hash."""
    job = re.fullmatch(r"(.+)-[0-9a-f]{8,}", artifact)
    return re.sub(r"-(merged|adapter|gguf(-lora)?)(-[\w-]+)?$", "", job[1]) if job else ""


def service_name(text: str) -> str:
    """A name that every host takes: small letters, digits and dashes, at most 40, a letter first; else a UserError."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    name = re.sub(r"^[^a-z]+", "", name)[:40].rstrip("-")
    if not name:
        raise UserError(f"Not a name for a service: {text!r}", where="--name", next_step="as in --name support-tickets")
    return name


def engine_arguments(job: ServingJob) -> dict[str, Option]:
    """Options of `vllm serve` for this model, by their names without dashes.

    Sampling settings of the base's `generation_config.json` must not change answers that were evaluated without them.
    A merged model has its chat template in the tokenizer's files; with an adapter the tokenizer is the adapter's, since
    vLLM would render by the base's. An adapter is named by its artifact's id: two versions never share a name, so no
    cached prefix of one answers for the other. Labels are compared by log probabilities, which are rounded to eighths
    of a nat where the head computes in bf16, and of which a request gets 20 unless more are allowed.
    """
    options: dict[str, Option] = {"served-model-name": job.name, "max-model-len": job.context}
    options["generation-config"] = "vllm"
    if job.cards > 1:
        options["tensor-parallel-size"] = job.cards
    if job.half:
        options["dtype"] = "half"  # vLLM refuses bf16 weights there
    if job.scores_labels:
        from tuneloop.inference.openai import MOST_BRANCHES

        options |= {"hf-overrides": {"head_dtype": "float32"}, "max-logprobs": MOST_BRANCHES}
    if job.priorities:
        options["scheduling-policy"] = "priority"
    if job.form == "adapter":
        options |= {"served-model-name": "base", "tokenizer": job.repo, "enable-lora": True}
        options |= {"max-lora-rank": lora_rank(job.rank), "max-loras": LORA_SLOTS}
        options["lora-modules"] = f"{job.name}={job.repo}"
    return options


def command_line(options: Mapping[str, Option]) -> list[str]:
    """Options as words of a command."""
    arguments: list[str] = []
    for name, value in options.items():
        arguments += [f"--{name}"] if value is True else [f"--{name}", option_text(value)]
    return arguments


def option_text(value: Option) -> str:
    """The value of an option as a word; a record is JSON."""
    return json.dumps(value) if isinstance(value, Mapping) else f"{value}"


# One more than adapters: the next version is loaded and compared before it takes over, for which one slot would evict
# the present one; and vLLM on a processor gives rows of the base the last slot's weights once that has held an adapter.
LORA_SLOTS = 2
# vLLM allocates room for adapters in these ranks alone (vllm/config/lora.py, MaxLoRARanks).
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def lora_rank(rank: int) -> int:
    """The smallest of vLLM's sizes that holds an adapter's rank; a UserError refuses what it can't hold."""
    if rank > RANKS[-1]:
        message = f"vLLM holds adapters up to rank {RANKS[-1]}, this one has {rank}"
        raise UserError(message, where="adapter", next_step="export it with --format merged")
    return next(size for size in RANKS if rank <= size)


# The engine that the projects name: `make test-vllm` runs it. Version 0.23 takes the same options, ignoring a head in
# float32.
VLLM_VERSION = "0.32.0"
VLLM_IMAGE = f"vllm/vllm-openai:v{VLLM_VERSION}"
LLAMA_IMAGE = "ghcr.io/ggml-org/llama.cpp:server-cuda"
PORT = "8000"


def vllm_command(job: ServingJob) -> list[str]:
    """`vllm serve` for this model."""
    return ["vllm", "serve", job.model, "--port", PORT, *command_line(engine_arguments(job))]


def llama_command(job: ServingJob, folder: str) -> list[str]:
    """llama.cpp's server for a GGUF file in a folder; the template that is in the file is used."""
    return [
        "llama-server", "--model", f"{folder}/{job.file}", "--alias", job.name, "--host", "0.0.0.0", "--port", PORT,
        "--ctx-size", str(job.context * 4), "--parallel", "4", "--jinja", "--n-gpu-layers", "999",
    ]  # fmt: skip
