"""Registered versions of artifacts: which is in use, whether it is intact, what the gate said of it."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # Refuse a key that can't sign before anything is exported.
    from tuneloop.registry.integrity import check_private_key as check_private_key

    # The manifest of an artifact.
    from tuneloop.registry.integrity import read_artifact as read_artifact

    # The manifest of an artifact whose files are all as exported.
    from tuneloop.registry.integrity import read_intact as read_intact

    # Sign an artifact.
    from tuneloop.registry.integrity import sign as sign

    # Compare an artifact's files with its manifest, and check its signature.
    from tuneloop.registry.integrity import verify as verify

    # A registered name: its versions, aliases and history.
    from tuneloop.registry.record import RegisteredModel as RegisteredModel

    # One version, with the artifact, run and data set that it came from.
    from tuneloop.registry.record import RegisteredVersion as RegisteredVersion

    # A change of an alias: when, why, and which gate allowed it.
    from tuneloop.registry.record import RegistryEvent as RegistryEvent

    # The evaluation that an artifact was measured by.
    from tuneloop.registry.registered import evaluation_of_artifact as evaluation_of_artifact

    # A path of an evaluation, also where a registered version is named.
    from tuneloop.registry.registered import evaluation_place as evaluation_place

    # The folder of a run by its id and key.
    from tuneloop.registry.registered import find_run as find_run

    # The local folder behind NAME@ALIAS; other names as they are.
    from tuneloop.registry.registered import local_name as local_name

    # The registry that the environment names.
    from tuneloop.registry.registered import open_registry as open_registry

    # Make a version the champion if its gate allows it.
    from tuneloop.registry.registered import promote_version as promote_version

    # A new version of an artifact, as candidate.
    from tuneloop.registry.registered import register_artifact as register_artifact

    # Name and alias or version of a target in the registry's notation; None for others.
    from tuneloop.registry.registered import registered_name as registered_name

    # The SQLite file of a local registry.
    from tuneloop.registry.registered import registry_file as registry_file

    # The run folder of a version, where it is on this machine.
    from tuneloop.registry.registered import run_folder_of as run_folder_of

    # The version that NAME@ALIAS means now.
    from tuneloop.registry.registered import version_of as version_of

    # Files of a version's run that the registry keeps.
    from tuneloop.registry.versions import fetch_run_files as fetch_run_files

    # All registered models.
    from tuneloop.registry.versions import read_models as read_models

    # A model once interrupted changes of it are finished.
    from tuneloop.registry.versions import read_settled as read_settled

    # The champion before this one becomes the champion again.
    from tuneloop.registry.versions import rollback as rollback

__getattr__, __dir__ = door(__name__)
