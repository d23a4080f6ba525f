"""What hosts themselves say of valid files: their packages in environments of their own, and their schemas by address and hash.

`make test-hosts` makes both in `.hosts/`; without them the tests are skipped. Nothing of them is part of this project.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT

FOLDER = Path(os.environ.get("TUNELOOP_HOSTS") or ROOT / ".hosts")
PACKAGES = ("kubernetes-validate", "truss", "modal", "botocore", "boto3", "together", "fireworks-ai", "skypilot")
RAW = "https://raw.githubusercontent.com"
SCHEMAS = {
    "cog.json": (
        f"{RAW}/replicate/cog/6110c912377d4ded0f57165d305821a14a9a4418/pkg/config/data/config_schema_v1.0.json",
        "673c7e22064d1ce5ce9dae31296868cb81d55b6b52281e5cfb504e31a9f7393b",
    ),
    "compose.json": (
        f"{RAW}/compose-spec/compose-spec/170098ba07d9f53c383a41bfd4c5166b0a4529a6/schema/compose-spec.json",
        "1f91e091f16b2dd50ab8860e02bb391d22df553d91c145eacedb1b6eff9c3f0e",
    ),
    "runpod-args.py": (
        f"{RAW}/runpod-workers/worker-vllm/7a925039a53a10eab38d1764eb717a2ea5bdee07/src/args_builder.py",
        "992f1bdc389061603c837bb0c3a78ec71d2ab2bfbcab29e72e647009e331c0ae",
    ),
}


def schema(name: str) -> Path:
    """A host's definition, with the hash that it had when the files were written after it; skips without it."""
    path = FOLDER / "schemas" / name
    if not path.is_file():
        pytest.skip(f"{name} is not here: make test-hosts")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SCHEMAS[name][1], f"{name} is another version"
    return path


def in_environment(package: str, code: str, *arguments: Path | str, **environment: str) -> str:
    """What a piece of Python prints in the environment of a package; skips without that."""
    python = FOLDER / package / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"{package} has no environment here: make test-hosts")
    done = subprocess.run(
        [python, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=180, env={**os.environ, "PYTHONPATH": "", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-2000:]
    return done.stdout


def make() -> None:
    """Make the environments and fetch the schemas that are not there yet."""
    import httpx

    for package in PACKAGES:
        path = FOLDER / package
        if not (path / ".ready").is_file():
            subprocess.run([sys.executable, "-m", "venv", path], check=True)
            subprocess.run([path / "bin" / "pip", "install", "--quiet", package], check=True)
            (path / ".ready").touch()
    (FOLDER / "schemas").mkdir(exist_ok=True)
    for name, (url, digest) in SCHEMAS.items():
        if not (FOLDER / "schemas" / name).is_file():
            try:
                text = httpx.get(url, follow_redirects=True, timeout=60).raise_for_status().content
            except httpx.HTTPError as error:
                print(f"{url}: {error}; what {name} would check is skipped", file=sys.stderr)
                continue
            assert hashlib.sha256(text).hexdigest() == digest, url
            (FOLDER / "schemas" / name).write_bytes(text)


if __name__ == "__main__":
    make()
