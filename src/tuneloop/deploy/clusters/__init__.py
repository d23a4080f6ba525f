"""Machines that train a recipe: a file each. A new one is one file here with a `CLUSTER`."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tuneloop import __version__
from tuneloop.core.errors import UserError
from tuneloop.core.files import Config
from tuneloop.core.flag import flag, switch
from tuneloop.core.units import counted
from tuneloop.deploy.hosts import find_named, records_of
from tuneloop.deploy.skypilot_sdk import SkyJob

EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs"}  # scheme of a bucket -> the extra that speaks to it


@dataclass(frozen=True)
class TrainingJob:
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
        """The command of each machine.

        Args:
            rendezvous: options by which `torchrun` finds the other machines.
        """
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
    """How many requests are answered at a time, here or on a Ray cluster; the fields are options of `tuneloop batch`."""

    PANEL: ClassVar[str] = "At a time"

    rows: int = flag(16, "N", "Requests that are answered at the same time, by each copy of the model.", least=1)
    on: str = flag("", "ray", "Answer by actors of a Ray cluster: ray, or ray://HOST:PORT.")
    actors: int = flag(0, "N", "Copies of the model there; default: one for each GPU, else for each machine.", least=0)


class RemoteOptions(RayOptions):
    """Where to train; the fields are options of `tuneloop run`."""

    PANEL: ClassVar[str] = "Elsewhere"

    on: str = flag("", "NAME", "Train on a Ray cluster (ray, ray://HOST:PORT), or write the project that trains elsewhere: "
                   "skypilot, kubernetes, slurm, torchrun or modal.")  # fmt: skip
    project: str = flag("", "FOLDER", "Folder of that project; default: remote/NAME-WHERE.")
    gpu: str = flag("", "GPU", "Card there; default: the cheapest that fits.")
    spot: bool = switch("Cheaper machines that may be taken away.")
    bucket: str = flag("", "URL", "Of an object store for checkpoints, as in s3://BUCKET.")
    max_usd: float = flag(0.0, "USD", "Don't start what is expected to cost more.", least=0, shown=False)
    dry_run: bool = switch("Write the project and its price, start nothing.")
    yes: bool = switch("Start it without asking.")


@dataclass(frozen=True)
class Cluster:
    """A place where a recipe is trained."""

    name: str  # on the command line
    title: str  # in words
    project: Callable[[TrainingJob], dict[str, str]]  # makes the files, name -> text
    commands: Callable[[TrainingJob], tuple[tuple[str, str], ...]]  # start, watch or fetch, end; each with what it does
    source: str  # source, as_of: the definition that the files follow, and the day on which it was read
    as_of: str
    checked: str  # checked, unchecked: how the files are checked without an account, and what is not
    unchecked: str
    gpus: Mapping[str, str] = field(default_factory=dict)  # the planner's cards there; empty: what the machines have
    nodes: int = 64  # the most machines of a job
    variables: tuple[str, ...] = ()  # of the environment, which putting it up needs
    providers: tuple[str, ...] = ()  # whose prices in the planner's table are paid there; empty: any
    own: bool = False  # whether the machines are the user's: a price of the table is what a rented one would cost
    spot: bool = False  # whether it can take machines that may be taken away
    bucket: Literal["mounted", "store", ""] = "store"  # `--bucket` is mounted, keeps the run too, or does nothing
    limits: tuple[str, ...] = ()  # what one should know
    sky: Callable[[TrainingJob], SkyJob] | None = None  # what SkyPilot's package starts in place of the commands


def is_ray(place: str) -> bool:
    """Whether `--on` names a Ray cluster: `ray`, or `ray://HOST:PORT`."""
    return place == "ray" or place.startswith("ray://")


def refuse_options_of_rented(options: RemoteOptions) -> None:
    """Refuse options of rented machines where a Ray cluster does the work.

    Raises:
        UserError: one was given.
    """
    rented = {"--gpu": options.gpu, "--spot": options.spot, "--project": options.project, "--max-usd": options.max_usd}
    rented |= {"--dry-run": options.dry_run}
    if wrong := [name for name, value in rented.items() if value]:
        raise UserError(
            f"{', '.join(wrong)} {'has' if len(wrong) == 1 else 'have'} no meaning on a Ray cluster: its machines are there already",
            where="--on", next_step="leave it out; --nodes and --gpus say how many of them train",
        )  # fmt: skip


def refuse_what_it_lacks(cluster: Cluster, options: RemoteOptions) -> None:
    """Refuse what a place can't do, where leaving it out unsaid would cost money or a checkpoint.

    Raises:
        UserError: it was asked for.
    """
    if (options.nodes or 1) > cluster.nodes:
        most = "one machine" if cluster.nodes == 1 else f"1 to {counted(cluster.nodes, 'machine')}"
        raise UserError(
            f"{cluster.title} runs a job on {most}", where="--nodes",
            next_step="leave it out, or choose another place" if cluster.nodes == 1 else "give a number in between",
        )  # fmt: skip
    if options.spot and not cluster.spot:
        raise UserError(
            f"--spot has no meaning on {cluster.title}", where="--spot",
            next_step="leave it out; --on skypilot takes such machines and replaces them",
        )  # fmt: skip
    if options.bucket and not cluster.bucket:
        raise UserError(
            f"{cluster.title} keeps the run in a place of its own", where="--bucket",
            next_step="leave it out; the project's README says how the run is fetched",
        )  # fmt: skip
    if options.bucket and "://" not in options.bucket:
        raise UserError(f"Not a bucket: {options.bucket!r}", where="--bucket", next_step="as in s3://NAME or gs://NAME")
    if options.spot and not options.bucket:
        raise UserError(
            "A machine that may be taken away takes its disk with it", where="--spot",
            next_step="name a bucket for the checkpoints: --bucket s3://NAME",
        )  # fmt: skip


def refuse_other_place(place: str) -> None:
    """Refuse what is no Ray cluster, where nothing else is possible.

    Raises:
        UserError: it is none.
    """
    if place and not is_ray(place):
        raise UserError(
            f"This command runs on a Ray cluster, not on {place!r}", where="--on",
            next_step="write --on ray, or --on ray://HOST:10001; `tuneloop run` knows further places",
        )  # fmt: skip


@functools.cache
def clusters() -> dict[str, Cluster]:
    """All of them by name."""
    return records_of(__name__, __path__, "CLUSTER", Cluster)


def find_cluster(name: str) -> Cluster:
    """One by its name.

    Raises:
        UserError: none of that name; the nearest is named.
    """
    what = f"No place {name!r} to run a recipe"
    return find_named(clusters(), name, what, "--on", more=("ray", "ray://HOST:10001"))
