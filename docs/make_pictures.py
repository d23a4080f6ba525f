"""Make the pictures of the pages again: screenshots of real pages, by an installed Chromium.

    python docs/make_pictures.py [--work FOLDER] [--only NAME,NAME] [--demo]

It does the tutorial's run in FOLDER (a minute or two; what is done there already is not repeated) and takes the pictures.
The picture of the demo is made with `--demo`, which takes its 8 minutes. Needs playwright (of the `dev` extra), Pillow (mlflow
brings it), and `chromium` or `google-chrome`.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
IMAGES, TUTORIAL = ROOT / "docs" / "images", ROOT / "docs" / "tutorial.md"
WIDTH, COLOURS, MOST_BYTES = 1000, 48, 150_000


class Picture(NamedTuple):
    """A part of a page.

    Args:
        page: below the work folder.
        part: the element that the picture begins with.
        height: pixels at most.
    """

    page: str
    part: str = "body"
    height: int = 900


PICTURES = {
    "report": Picture("demo/report.html", height=1000),
    "data": Picture("runs/first/dataset/report.html", height=760),
    "suspects": Picture("runs/first/dataset/report.html", "#suspects", 420),
    "verdict": Picture("runs/first/report.html", height=860),
    "comparison": Picture("runs/first/report.html", "#comparison", 800),
    "samples": Picture("runs/first/report.html", "#samples", 760),
}


def tutorial_commands() -> list[str]:
    """The tutorial's commands up to the run."""
    blocks = re.findall(r"^```sh\n(.*?)^```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    last = next(i for i, block in enumerate(blocks) if block.startswith("tuneloop run "))
    first = next(block for block in blocks if block.startswith("awk "))
    return [first, blocks[last]]  # what stands between them looks and does not change anything


def make_runs(work: Path, demo: bool) -> None:
    """The runs that the pictures show."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "examples").exists():
        (work / "examples").symlink_to(ROOT / "examples")
    program = f'tuneloop() {{ {sys.executable} -m tuneloop "$@"; }}\n'
    if not (work / "runs/first/report.html").is_file():
        for block in tutorial_commands():
            subprocess.run(["bash", "-ec", program + block], cwd=work, check=True)
    if demo:
        subprocess.run(["bash", "-ec", f"{program}tuneloop demo output_dir={work}/demo"], cwd=work, check=True)  # fmt: skip


def take(browser: Any, file: Path, picture: Picture) -> bytes:
    """One picture as PNG with a palette, small enough to be shipped."""
    from PIL import Image

    page = browser.new_page(viewport={"width": WIDTH, "height": picture.height})
    page.goto(file.as_uri())
    box = page.locator(picture.part).first.bounding_box()
    clip = {"x": 0, "y": max(box["y"] - 12, 0), "width": WIDTH, "height": min(box["height"] + 24, picture.height)}
    shot = page.screenshot(full_page=True, clip=clip)
    page.close()
    small = io.BytesIO()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)  # fmt: skip
    if small.tell() > MOST_BYTES:
        sys.exit(f"{file.name} {picture.part}: {small.tell():,} bytes; take less height")
    return small.getvalue()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "pictures", help="folder of the runs")
    parser.add_argument("--only", default="", help="names of pictures, with commas")
    parser.add_argument("--demo", action="store_true", help="also do the demo's run")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("No Chromium: install chromium or google-chrome")
    work = options.work.resolve()
    make_runs(work, options.demo)
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, picture in PICTURES.items():
            file = work / picture.page
            if (options.only and name not in options.only.split(",")) or not file.is_file():
                continue
            (IMAGES / f"{name}.png").write_bytes(take(browser, file, picture))
            print(f"{name}.png  {(IMAGES / f'{name}.png').stat().st_size:,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
