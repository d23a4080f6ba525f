"""Where else it runs: hosts that serve an artifact, machines and services that train a recipe."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # How many requests are answered at a time, here or on a Ray cluster: options of `batch`.
    from tuneloop.deploy.clusters import BatchOptions as BatchOptions

    # How many processes of a Ray cluster train: options of `train`.
    from tuneloop.deploy.clusters import RayOptions as RayOptions

    # Where a recipe is trained: options of `run`.
    from tuneloop.deploy.clusters import RemoteOptions as RemoteOptions

    # Whether `--on` names a Ray cluster.
    from tuneloop.deploy.clusters import is_ray as is_ray

    # Whether `--on` names a service that trains.
    from tuneloop.deploy.clusters import is_service as is_service

    # Options of rented machines are refused on a Ray cluster.
    from tuneloop.deploy.clusters import refuse_options_of_rented as refuse_options_of_rented

    # A place other than Ray is refused, where nothing else is possible.
    from tuneloop.deploy.clusters import refuse_other_place as refuse_other_place

    # The project of an artifact for a host, with its price; nothing is written.
    from tuneloop.deploy.command import plan_deployment as plan_deployment

    # The files of that project, `deploy.json` last.
    from tuneloop.deploy.command import write_project as write_project

    # Host, traffic and limits of a deployment: the command's options.
    from tuneloop.deploy.deployment import DeployOptions as DeployOptions

    # What a service would train, and its price; nothing is sent.
    from tuneloop.deploy.hosted import plan_hosted as plan_hosted

    # The job at a service, started or continued, and followed.
    from tuneloop.deploy.hosted import run_hosted as run_hosted

    # Whether to start what costs money: `--yes`, or an answered question.
    from tuneloop.deploy.launch import confirmed as confirmed

    # A project is started after a yes, within its limit.
    from tuneloop.deploy.launch import launch_after_yes as launch_after_yes

    # A connection to a Ray cluster.
    from tuneloop.deploy.on_ray import cluster_of as cluster_of

    # A recipe trained by the machines of a Ray cluster.
    from tuneloop.deploy.on_ray import run_on_ray as run_on_ray

    # Data prepared here, and the project that trains on them elsewhere.
    from tuneloop.deploy.remote import write_remote as write_remote

__getattr__, __dir__ = door(__name__)
