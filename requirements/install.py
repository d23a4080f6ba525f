"""Install what uv.lock names into this Python's environment: exact versions, each file with its hash.

    python requirements/install.py                    # what `tuneloop[all]` needs
    python requirements/install.py --add dev          # and what the tests need
    python requirements/install.py --uv --torch cuda  # with uv; PyTorch with CUDA whatever is found here

Nothing is resolved, and nothing but source.txt is built. PyTorch comes apart, by what the machine has:

cpu   (Linux without an NVIDIA card) a build that is installed or among the machine's own wheels (find-links of pip), in
      the range of pyproject.toml; or else the locked version from PyTorch's index of builds without CUDA. The lock has no
      hash of those builds.
cuda  (all others: on macOS and Windows it has no CUDA in it) the build that the lock has, with its hashes.
none  is left to you.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"


def torch_range() -> str:
    """The requirement of pyproject.toml."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (found,) = [line for line in project["optional-dependencies"]["train"] if line.startswith("torch")]
    return str(found)


def locked_torch() -> str:
    """The version that the lock has."""
    (found,) = re.findall(r"^torch==(\S+)", (FOLDER / "torch.txt").read_text(encoding="utf-8"), re.MULTILINE)
    return str(found)


def run(command: list[str]) -> bool:
    """Whether a command succeeded; it is shown before it runs."""
    print("+", " ".join(command), flush=True)
    return subprocess.run(command, check=False).returncode == 0


def install_torch(kind: str, locked: list[str]) -> bool:
    """Install PyTorch; `locked` is the command that installs a list with hashes."""
    if kind == "none":
        return True
    if kind == "cuda":
        return run([*locked, "--only-binary", ":all:", "-r", str(FOLDER / "torch.txt")])
    # pip in both cases: it is in all.txt, and knows the machine's own wheels.
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--only-binary", ":all:"]
    if run([*pip, "--quiet", "--no-index", torch_range()]):
        return True
    print(f"This machine has no wheel of {torch_range()}: asking PyTorch's index of builds without CUDA", flush=True)
    return run([*pip, "--index-url", CPU_BUILDS, f"torch=={locked_torch()}"])


def main() -> int:
    """Install the lists that were asked for; the exit status is 1 if anything is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", action="append", default=[], choices=("dev", "image", "models"), help="further lists")
    parser.add_argument("--torch", choices=("auto", "cpu", "cuda", "none"), default="auto")
    parser.add_argument("--uv", action="store_true", help="uv instead of pip")
    options = parser.parse_args()
    if options.uv:
        command = ["uv", "pip", "install", "--python", sys.executable]
    else:
        command = [sys.executable, "-m", "pip", "install", "--no-compile", "--progress-bar", "off"]
    locked = [*command, "--no-deps", "--require-hashes"]
    lists = [word for name in ("all", *options.add) for word in ("-r", str(FOLDER / f"{name}.txt"))]
    without_card = sys.platform == "linux" and shutil.which("nvidia-smi") is None
    kind = options.torch if options.torch != "auto" else "cpu" if without_card else "cuda"
    steps = [
        run([*locked, "--only-binary", ":all:", *lists])
        and run([*locked, "--no-build-isolation", "-r", str(FOLDER / "source.txt")]),
        install_torch(kind, locked),
    ]
    if not steps[1]:
        print(
            f"PyTorch was not installed: no build without CUDA was found here or at {CPU_BUILDS}\n"
            f"next: pip install a wheel of {torch_range()} into this environment, or --torch cuda for the one with CUDA",
            file=sys.stderr,
        )
    return not all(steps)


if __name__ == "__main__":
    sys.exit(main())
