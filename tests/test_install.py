"""The wheel in a fresh environment and an empty folder: what a user gets who has no clone of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from places import ROOT
from tuneloop.core.errors import INSTALL

pytestmark = [pytest.mark.slow, pytest.mark.world]
# An environment with torch is gigabytes, which come over the network: minutes on a fast one, an hour on a slow one.
fresh = pytest.mark.skipif("TUNELOOP_INSTALL" not in os.environ, reason="make test-install runs it")

MINUTES = 60  # that a step may take: torch for CUDA is large
LIGHT = "import sys; from importlib.metadata import distributions; print(*(d.name.lower() for d in distributions()))"


def without_checkout() -> dict[str, str]:
    """The environment without what leads to this checkout or its packages."""
    return {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "HF_HUB_OFFLINE")
    }


def do(command: list[str], cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=cwd, env=without_checkout(), capture_output=True, text=True, timeout=60 * MINUTES
    )
    assert done.returncode == status, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build writes into its source folder."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    do([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", "."], folder)
    (file,) = (folder / "dist").glob("*.whl")
    return file


def install(wheel: Path, extras: str, python: Path) -> None:
    do([str(python), "-m", "pip", "install", "--quiet", "--no-compile", f"{wheel}{extras}"], python.parent)


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the wheel and what it depends on, no extras."""
    environment = tmp_path_factory.mktemp("fresh") / "env"
    do([sys.executable, "-m", "venv", str(environment)], environment.parent)
    folder = environment / ("Scripts" if os.name == "nt" else "bin")
    install(wheel, "", folder / "python")
    return folder


def test_the_demo_adds_less_than_a_megabyte_to_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {
            Path(file.filename).name: file.compress_size
            for file in archive.infolist()
            if "pipeline/demo/" in file.filename
        }
    assert {"mails.jsonl.gz", "new.jsonl", "prompt.yaml", "recipe.yaml"} <= sizes.keys()
    assert sum(sizes.values()) < 1_000_000


@fresh
def test_the_light_installation_plans_and_advises_without_torch(scripts: Path, tmp_path: Path) -> None:
    program, empty = str(scripts / "tuneloop"), tmp_path / "empty"
    empty.mkdir()
    packages = do([str(scripts / "python"), "-c", LIGHT], empty).stdout.split()
    assert "torch" not in packages and "numpy" not in packages
    assert "demo" in do([program, "--help"], empty).stdout
    assert "max_minutes" in do([program, "schema"], empty).stdout
    assert "peak GiB" in do([program, "plan", "--model", "llama-3.1-8b"], empty).stdout
    assert "LoRA" in do([program, "advise", "--rows", "500"], empty).stdout
    refused = do([program, "demo"], empty, status=2)
    assert f"next:  {INSTALL}" in refused.stderr and "Traceback" not in refused.stderr
    assert not list(empty.iterdir())


@fresh
def test_the_installed_demo_reaches_a_verdict_in_an_empty_folder(wheel: Path, scripts: Path, tmp_path: Path) -> None:
    """The extras come on top of the light installation, as a user adds them."""
    empty = tmp_path / "empty"
    empty.mkdir()
    install(wheel, "[data,train,evaluate]", scripts / "python")
    done = do([str(scripts / "tuneloop"), "demo", "max_minutes=1", "track.report_to=none"], empty)
    assert "Fields right on " in done.stdout and "Ask it    tuneloop predict" in done.stdout
    (run,) = (empty / "runs").iterdir()
    assert (run / "report.html").is_file() and (run / "eval.json").is_file()


@fresh
@pytest.mark.skipif(shutil.which("uvx") is None, reason="needs uv")
def test_uvx_runs_the_demo_without_an_installation(wheel: Path, tmp_path: Path) -> None:
    command = ["uvx", "--python", sys.executable, "--from", f"{wheel}[data,train,evaluate]", "tuneloop"]
    done = do([*command, "demo", "max_minutes=1", "track.report_to=none"], tmp_path)
    assert "Fields right on " in done.stdout
    assert any((tmp_path / "runs").iterdir())
