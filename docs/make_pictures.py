"""Make the pictures of the pages again: screenshots of real pages, by an installed Chromium.

    python docs/make_pictures.py [--work FOLDER] [--only NAME,NAME] [--demo] [--ui FOLDER]

It does the tutorial's run in FOLDER (a minute or two; what is done there already is not repeated) and takes the pictures.
The picture of the demo is made with `--demo`, which takes its 8 minutes. With `--ui FOLDER` only those of `tuneloop ui`
are taken, each in both themes, over a folder with a server and runs, such as that of `make loop`. Needs playwright (of
the `dev` extra), Pillow (mlflow brings it), and `chromium` or `google-chrome`.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
IMAGES, TUTORIAL = ROOT / "docs" / "images", ROOT / "docs" / "tutorial.md"
WIDTH, COLOURS, MOST_BYTES = 1000, 160, 150_000  # colours: so that a few red dots stay red


class Picture(NamedTuple):
    """A part of a page.

    Args:
        page: below the work folder.
        part: the element that the picture begins with.
        height: pixels at most.
        theme: `light` or `dark`.
    """

    page: str
    part: str = "body"
    height: int = 900
    theme: str = "light"


PICTURES = {
    "report": Picture("demo/report.html", height=1000),
    "data": Picture("runs/first/dataset/report.html", height=760),
    "suspects": Picture("runs/first/dataset/report.html", "#suspects", 420),
    "verdict": Picture("runs/first/report.html", height=860),
    "comparison": Picture("runs/first/report.html", "#comparison", 800),
    "samples": Picture("runs/first/report.html", "#samples", 760),
}
# Page of `tuneloop ui` -> its address, and what is clicked there to reach it.
UI: dict[str, tuple[str, ...]] = {
    "home": ("/",),
    "runs": ("/runs",),
    "run": ("/runs?sort=changed", "tbody th a"),
    "compare": ("/runs", "tbody input >> nth=0", "tbody input >> nth=1", "text=Compare the chosen ones"),
    "data": ("/data",),
    "dataset": ("/data", "tbody th a"),
    "playground": ("/playground",),
    "traffic": ("/traffic",),
    "request": ("/traffic?feedback=label", "tbody a"),
    "quality": ("/quality",),
    "experiments": ("/experiments",),
    "experiment": ("/experiments", "tbody th a"),
    "models": ("/models",),
    "costs": ("/costs",),
}
UI_WIDTH, UI_HEIGHT, SETTLED = 1100, 700, 1500  # pixels; milliseconds until what comes later is there


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
    page = browser.new_page(viewport={"width": WIDTH, "height": picture.height}, color_scheme=picture.theme)
    page.goto(file.as_uri())
    page.evaluate(
        "part => document.querySelectorAll(`${part} > details`).forEach(each => { each.open = true; })", picture.part
    )
    box = page.locator(picture.part).first.bounding_box()
    clip = {"x": 0, "y": max(box["y"] - 12, 0), "width": WIDTH, "height": min(box["height"] + 24, picture.height)}
    shot = page.screenshot(full_page=True, clip=clip)
    page.close()
    return with_palette(shot, f"{file.name} {picture.part}")


def with_palette(shot: bytes, name: str) -> bytes:
    """A screenshot with few colours, small enough to be shipped."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)  # fmt: skip
    if small.tell() > MOST_BYTES:
        sys.exit(f"{name}: {small.tell():,} bytes; take less height")
    return small.getvalue()


def take_ui(browser: Any, folder: Path, only: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Name and picture of each page of `tuneloop ui` over a folder, light and dark."""
    command = [sys.executable, "-m", "tuneloop", "ui", str(folder), "port=0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            opened = json.loads(process.stdout.readline())["address"]  # type: ignore[union-attr]
            address = opened.partition("/?")[0]
            size = {"width": UI_WIDTH, "height": UI_HEIGHT}
            for (name, (path, *clicks)), theme in itertools.product(UI.items(), ("light", "dark")):
                if only and f"ui-{name}" not in only:
                    continue
                page = browser.new_page(viewport=size, color_scheme=theme)
                page.goto(opened)
                page.goto(address + path)
                for selector in clicks:
                    page.locator(selector).first.click()
                page.wait_for_timeout(SETTLED)
                page.wait_for_selector("[hx-get]", state="detached")  # the registry, or a folder, is still being read
                yield f"ui-{name}-{theme}", with_palette(page.screenshot(), name)
                page.close()
        finally:
            process.terminate()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "pictures", help="folder of the runs")
    parser.add_argument("--only", default="", help="names of pictures, with commas")
    parser.add_argument("--demo", action="store_true", help="also do the demo's run")
    parser.add_argument("--ui", type=Path, help="folder that the pages of `tuneloop ui` show")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("No Chromium: install chromium or google-chrome")
    work = options.work.resolve()
    only = [name for name in options.only.split(",") if name]
    if not options.ui:
        make_runs(work, options.demo)
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        if options.ui:
            shots = take_ui(browser, options.ui, only)
        else:
            chosen = {name: one for name, one in PICTURES.items() if not only or name in only}
            there = ((name, work / one.page, one) for name, one in chosen.items() if (work / one.page).is_file())
            shots = ((name, take(browser, file, one)) for name, file, one in there)
        for name, data in shots:
            (IMAGES / f"{name}.png").write_bytes(data)
            print(f"{name}.png  {len(data):,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
