"""Machines that train a recipe: a file each, with the functions `project` and `commands` and the record `CLUSTER`."""

from __future__ import annotations

import functools
import shlex
from dataclasses import dataclass
from typing import ClassVar, Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import Config
from tuneloop.core.flag import flag, switch
from tuneloop.core.units import counted
from tuneloop.core.version import __version__
from tuneloop.deploy.hosts import JobSite, find_named, records_of

EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs"}  # scheme of a bucket -> the extra that speaks to it


@dataclass(frozen=True)
class ClusterJob:
    """A run that is to be done elsewhere."""

    name: str  # of the job: small letters, digits and dashes
    gpu: str  # card of the planner; `gpus`: how many a machine has; `nodes`: machines
    gpus: int = 1
    nodes: int = 1
    spot: bool = False  # whether machines may be taken away, at a lower price
    bucket: str = ""  # of the object store where checkpoints go, as in `s3://BUCKET`; empty: on the machine's own disk
    gated: bool = True  # whether the base needs a token to be read
    max_usd_per_hour: float = 0.0  # of a machine, above which a place that knows prices must not start it; 0: no limit

    @property
    def package(self) -> str:
        extra = EXTRAS.get(self.bucket.partition("://")[0], "")
        return f"tuneloop[all{',' if extra else ''}{extra}]=={__version__}"

    def command(self, out: str, rendezvous: str = "") -> str:
        """The command of each machine; by the options of `rendezvous`, `torchrun` finds the other machines."""
        run = f"-m tuneloop run recipe.yaml output_dir={shlex.quote(out) if '$' not in out else out}"
        if self.gpus * self.nodes == 1:
            return f"python {run}"
        return f"torchrun --nproc-per-node {self.gpus} {rendezvous + ' ' if rendezvous else ''}{run}"


class RayOptions(Config):
    """How many processes of a Ray cluster train; the fields are options of `tuneloop train`."""

    PANEL: ClassVar[str] = "Elsewhere"

    on: str = flag("", "ray", "Train on a Ray cluster: ray, or ray://HOST:PORT.")
    gpus: int = flag(0, "N", "Cards of a machine; default: as few as fit, on Ray all.", least=0)
    nodes: int = flag(0, "N", "Machines; default: 1, on Ray all of the cluster.", least=0)


class BatchOptions(Config):
    """How many requests are answered at a time, here or on a Ray cluster; the fields are options of `batch`."""

    PANEL: ClassVar[str] = "At a time"

    rows: int = flag(16, "N", "Requests that are answered at the same time, by each copy of the model.", least=1)
    on: str = flag("", "ray", "Answer by actors of a Ray cluster: ray, or ray://HOST:PORT.")
    actors: int = flag(0, "N", "Copies of the model there; default: one for each GPU, else for each machine.", least=0)


class RemoteOptions(RayOptions):
    """Where to train; the fields are options of `tuneloop run`."""

    PANEL: ClassVar[str] = "Elsewhere"

    on: str = flag(
        "",
        "NAME",
        "ray or ray://HOST:PORT; a project for skypilot, kubernetes, slurm, torchrun, modal; or a service that trains: "
        "openai, together, fireworks, the URL of a server of OpenAI's API.",
    )
    project: str = flag("", "FOLDER", "Folder of that project; default: remote/NAME-WHERE.")
    gpu: str = flag("", "GPU", "Card there; default: the cheapest that fits.")
    spot: bool = switch("Cheaper machines that may be taken away.")
    bucket: str = flag("", "URL", "Of an object store for checkpoints, as in s3://BUCKET.")
    max_usd: float = flag(0.0, "USD", "Don't start what is expected to cost more.", least=0, show=False)
    dry_run: bool = switch("Write the project and its price, start nothing.")
    yes: bool = switch("Start it without asking.")
    cancel: bool = switch("End the job that a service does.")


@dataclass(frozen=True, kw_only=True)
class Cluster(JobSite[ClusterJob]):
    """A place where a recipe is trained."""

    nodes: int = 64  # the most machines of a job
    spot: bool = False  # whether it can take machines that may be taken away
    bucket: Literal["mounted", "store", ""] = "store"  # `--bucket` is mounted, keeps the run too, or does nothing


def is_ray(target: str) -> bool:
    """Whether `--on` names a Ray cluster: `ray`, or `ray://HOST:PORT`."""
    return target == "ray" or target.startswith("ray://")


def is_service(target: str) -> bool:
    """Whether `--on` names a service that trains, by its name or by a URL; see `deploy.hosted`."""
    return target in ("openai", "together", "fireworks") or target.startswith(("http://", "https://"))


def refuse_options_of_rented(options: RemoteOptions) -> None:
    """Refuse, by a UserError, options of rented machines where a Ray cluster does the work."""
    rented = {"--gpu": options.gpu, "--spot": options.spot, "--project": options.project, "--max-usd": options.max_usd}
    if wrong := [name for name, value in {**rented, "--dry-run": options.dry_run}.items() if value]:
        has = "has" if len(wrong) == 1 else "have"
        message = f"{', '.join(wrong)} {has} no meaning on a Ray cluster: its machines are there already"
        raise UserError(message, where="--on", next_step="leave it out; --nodes and --gpus say how many of them train")


def refuse_what_it_lacks(cluster: Cluster, options: RemoteOptions) -> None:
    """Refuse, by a UserError, what a place can't do, where leaving it out unsaid would cost money or a checkpoint."""
    single = cluster.nodes == 1
    most = "one machine" if single else f"1 to {counted(cluster.nodes, 'machine')}"
    bucket_is_name = options.bucket and "://" not in options.bucket
    refusals = (
        ("--nodes", (options.nodes or 1) > cluster.nodes, f"{cluster.title} runs a job on {most}",
         "leave it out, or choose another place" if single else "give a number in between"),
        ("--spot", options.spot and not cluster.spot, f"--spot has no meaning on {cluster.title}",
         "leave it out; --on skypilot takes such machines and replaces them"),
        ("--bucket", options.bucket and not cluster.bucket, f"{cluster.title} keeps the run elsewhere",
         "leave it out; the project's README says how the run is fetched"),
        ("--bucket", bucket_is_name, f"Not a bucket: {options.bucket!r}", "as in s3://NAME or gs://NAME"),
        ("--spot", options.spot and not options.bucket, "A machine that may be taken away takes its disk with it",
         "name a bucket for the checkpoints: --bucket s3://NAME"),
    )  # fmt: skip
    for option, refused, message, step in refusals:
        if refused:
            raise UserError(message, where=option, next_step=step)


def refuse_other_place(target: str) -> None:
    """Refuse, by a UserError, what is no Ray cluster, where nothing else is possible."""
    if target and not is_ray(target):
        step = "write --on ray, or --on ray://HOST:10001; `tuneloop run` knows further places"
        raise UserError(f"This command runs on a Ray cluster, not on {target!r}", where="--on", next_step=step)


@functools.cache
def clusters() -> dict[str, Cluster]:
    """All of them by name."""
    return records_of(__name__, __path__, "CLUSTER")


def find_cluster(name: str) -> Cluster:
    """One by its name; a UserError names the nearest where there is none."""
    more = ("ray", "ray://HOST:10001", "openai", "together", "fireworks")
    return find_named(clusters(), name, f"No place {name!r} to run a recipe", "--on", more)
