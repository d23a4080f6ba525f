"""An environment of its own for packages that are measured beside tuneloop."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def peers_python(folder: Path, packages: Sequence[str]) -> Path:
    """Python of an environment with some packages; what is not there is made."""
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.is_file() or done.read_text() != "\n".join(packages):
        print(f"installing {', '.join(packages)} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        done.write_text("\n".join(packages))
    return python
