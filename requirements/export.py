"""Write uv.lock as lists of requirements with hashes, for pip and for uv: one version of each package, and no index.

    uv lock                               # after a change of dependencies in pyproject.toml
    python requirements/export.py         # writes requirements/*.txt
    python requirements/export.py --check # exit status 1 if a list is not what uv.lock says

all.txt has what `tuneloop[all]` needs. image.txt and dev.txt come on top of it: what images need, and the tests. torch.txt
is PyTorch as the index has it, with CUDA on Linux: a machine without a card takes another build (install.py).
publish.txt has what the release workflow uploads with, models.txt the wheels of packaged models, source.txt what has no
wheel and is built with setuptools from all.txt.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
IMAGE_EXTRAS = ("all", "postgres", "s3", "gcs", "compressed")
CUDA = re.compile(r"torch|triton|nvidia-.+|cuda-.+")
HEAD = "# Exported from uv.lock by requirements/export.py.\n"

Pins = dict[str, str]  # the lines of a package's requirement with its hashes, by name


def pins_of(*options: str) -> Pins:
    """What `uv export` writes for extras or a group of dependencies."""
    command = ["uv", "export", "--frozen", "--offline", "--quiet", "--no-emit-project", "--no-header", "--no-annotate"]
    text = subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    blocks = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    pins: Pins = {}
    for block in filter(None, blocks):  # a package may have two versions, for different markers
        name = block.partition("==")[0]
        pins[name] = pins.get(name, "") + block
    return pins


def lists_of_requirements() -> dict[str, str]:
    """The text of each list, by the name of its file."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    without_wheel = {package["name"] for package in lock["package"] if not package.get("wheels")}
    whole = pins_of("--extra", "all")
    image = pins_of(*(word for extra in IMAGE_EXTRAS for word in ("--extra", extra)))
    dev = pins_of("--extra", "dev")
    every = {**image, **dev}
    apart = {name for name in every if CUDA.fullmatch(name)}
    source = without_wheel & every.keys()
    lists = {
        "all": {name: pin for name, pin in whole.items() if name not in apart | source},
        "image": {name: pin for name, pin in image.items() if whole.get(name) != pin and name not in apart | source},
        "dev": {name: pin for name, pin in dev.items() if whole.get(name) != pin and name not in apart | source},
        "torch": {name: every[name] for name in apart},
        "source": {name: every[name] for name in source},
        "publish": {"uv": dev["uv"]},
        "models": pins_of("--only-group", "models"),
    }
    return {f"{name}.txt": HEAD + "".join(pins[key] for key in sorted(pins)) for name, pins in lists.items()}


def main() -> int:
    """Write the lists, or compare them with those that there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = []
    for name, text in lists_of_requirements().items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    print(f"{'stale' if check else 'written'}: {', '.join(stale) or 'none'}")
    return bool(check and stale)


if __name__ == "__main__":
    sys.exit(main())
