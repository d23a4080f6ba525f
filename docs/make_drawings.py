"""Draw the SVG pictures of the README, light and dark: the recording of a real run, and the life cycle.

    python docs/make_drawings.py                             # both, from docs/recordings/demo.jsonl
    python docs/make_drawings.py --record tuneloop demo      # runs the command first and records what it prints, and when
    python docs/make_drawings.py --log FILE                  # takes the lines of a log, the command first; a stage's end
                                                             # comes after the time that it says

A recording is one line of JSON for each printed line: seconds since the start, and the text. In the picture the lines appear
in the recorded order, at a pace of `SECONDS` for the whole run; where motion is not wanted all are there at once.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from html import escape
from pathlib import Path
from typing import IO

DOCS = Path(__file__).resolve().parent
IMAGES, RECORDING = DOCS / "images", DOCS / "recordings" / "demo.jsonl"
COLUMNS, LINE, LEFT, TOP, LETTER = 102, 18, 16, 50, 7.83  # characters; pixels; LETTER: width of one at 13 px
SECONDS = 12.0
PROGRESS = re.compile(r"[\w -]+(\([^)]*\))?: \d+/\d+ ")
FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
# Names of colours: paper, frame, ink, quiet ink, accent.
THEMES = {
    "light": ("#ffffff", "#d0d7de", "#1f2328", "#656d76", "#0550ae"),
    "dark": ("#0d1117", "#30363d", "#e6edf3", "#8d96a0", "#79c0ff"),
}
# Stage, its commands; the picture of the life cycle, from left to right.
STAGES = (
    ("Decide", "advise", "plan"),
    ("Data", "prepare", "data check"),
    ("Train", "run", "train"),
    ("Evaluate", "evaluate", "compare"),
    ("Release", "gate", "export"),
    ("Serve", "serve", "batch"),
    ("Improve", "monitor", "collect · ab"),
)


def is_stage(text: str) -> bool:
    """Whether a line says that a stage has ended. What else a log says of progress is overwritten on a screen."""
    return text.startswith("✓ ")


def record(command: list[str], place: Path = RECORDING) -> int:
    """Run a command and write down the lines that stay on the screen, each with its time. Returns its exit status."""
    began, lines = time.monotonic(), [(0.0, f"$ {' '.join(command)}")]

    def read(stream: IO[str], log: bool) -> None:
        for line in stream:
            print(line, end="", flush=True)
            if not log or is_stage(line):
                lines.append((round(time.monotonic() - began, 1), line.rstrip()))

    environment = {**os.environ, "COLUMNS": str(COLUMNS), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    log = threading.Thread(target=read, args=(process.stderr, True))
    log.start()
    read(process.stdout, False)  # type: ignore[arg-type]
    log.join()
    write(sorted(lines, key=lambda line: line[0]), place)
    return process.wait()


def read_log(log: Path) -> list[tuple[float, str]]:
    """The lines of a log that a screen keeps. A stage ends after the seconds or minutes at the end of its line."""
    lines, now = [], 0.0
    for text in log.read_text(encoding="utf-8").splitlines():
        took = re.search(r" ([\d.]+) (s|min)$", text) if is_stage(text) else None
        if took:
            now += float(took[1]) * (60 if took[2] == "min" else 1)
        if took or not PROGRESS.match(text):
            lines.append((round(now, 1), text.rstrip()))
    return lines


def write(lines: list[tuple[float, str]], place: Path) -> None:
    """Keep a recording, without blank lines at its end."""
    while lines and not lines[-1][1]:
        lines.pop()
    place.parent.mkdir(exist_ok=True)
    records = ({"seconds": seconds, "text": text} for seconds, text in lines)
    place.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records), encoding="utf-8")


def shown_lines(place: Path) -> list[tuple[float, str]]:
    """Seconds and text of each line of the picture; long lines are wrapped under their text."""
    shown = []
    for line in map(json.loads, place.read_text(encoding="utf-8").splitlines()):
        text = line["text"]
        indent = " " * (12 if is_stage(text) else len(text) - len(text.lstrip()))
        parts = textwrap.wrap(text, COLUMNS, subsequent_indent=indent, drop_whitespace=True) or [""]
        shown += [(line["seconds"], part) for part in parts]
    return shown


def terminal(lines: list[tuple[float, str]], title: str, theme: str) -> str:
    """A terminal in which the lines appear one after the other."""
    paper, frame, ink, quiet, accent = THEMES[theme]
    width, height = round(2 * LEFT + COLUMNS * LETTER), TOP + len(lines) * LINE + 12
    whole = max(lines[-1][0], 1.0)
    body = []
    for number, (seconds, text) in enumerate(lines):
        delay = seconds / whole * SECONDS
        stage, rest = (text[:12], text[12:]) if is_stage(text) else ("", text)
        first = f'<tspan class="s">{escape(stage)}</tspan>' if stage else ""
        kind = "l c" if text.startswith("$ ") else "l"
        body.append(
            f'<text xml:space="preserve" class="{kind}" x="{LEFT}" y="{TOP + number * LINE}" style="animation-delay:{delay:.1f}s">'
            f"{first}{escape(rest)}</text>"
        )
    style = (
        f".l{{font:13px {FONT};fill:{ink};white-space:pre;opacity:0;animation:a .01s forwards}}"
        f".s{{fill:{accent}}}.c{{font-weight:700}}@keyframes a{{to{{opacity:1}}}}"
        "@media (prefers-reduced-motion:reduce){.l{animation:none;opacity:1}}"
    )
    dots = "".join(f'<circle cx="{22 + 18 * i}" cy="18" r="5" fill="{frame}"/>' for i in range(3))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title><style>{style}</style>'
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8" fill="{paper}" stroke="{frame}"/>{dots}'
        f'<text x="{width / 2}" y="22" text-anchor="middle" style="font:12px {FONT};fill:{quiet}">{escape(title)}</text>'
        + "\n".join(["", *body, "</svg>\n"])
    )


def life_cycle(theme: str) -> str:
    """The stages as a row of boxes, and the way back from production to data."""
    paper, frame, ink, quiet, accent = THEMES[theme]
    wide, gap, high = 116, 22, 74
    width, height = 2 * LEFT + len(STAGES) * wide + (len(STAGES) - 1) * gap, 176
    title = "The life cycle: decide, data, train, evaluate, release, serve, improve, and back to data"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{title}"><title>{title}</title>'
        "<style>text{font-family:system-ui,-apple-system,'Segoe UI',sans-serif;text-anchor:middle}"
        f".m{{font-family:{FONT};font-size:12px}}</style>"
        f'<defs><marker id="m" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{quiet}"/></marker></defs>'
        f'<rect width="{width}" height="{height}" rx="8" fill="{paper}"/>'
    ]
    for number, (name, *commands) in enumerate(STAGES):
        x = LEFT + number * (wide + gap)
        middle = x + wide / 2
        parts.append(
            f'<rect x="{x}" y="14" width="{wide}" height="{high}" rx="8" fill="none" stroke="{frame}" stroke-width="1.5"/>'
        )
        parts.append(f'<text x="{middle}" y="37" font-size="15" font-weight="600" fill="{accent}">{name}</text>')
        for row, command in enumerate(commands):
            parts.append(f'<text class="m" x="{middle}" y="{57 + 18 * row}" fill="{ink}">{command}</text>')
        if number:
            parts.append(
                f'<path d="M{x - gap + 2} 51H{x - 3}" stroke="{quiet}" stroke-width="1.5" marker-end="url(#m)"/>'
            )
    data, last = LEFT + wide + gap + wide / 2, width - LEFT - wide / 2
    parts.append(
        f'<path d="M{last} {high + 15}V128Q{last} 136 {last - 8} 136H{data + 8}Q{data} 136 {data} 128V{high + 20}" fill="none" '
        f'stroke="{quiet}" stroke-width="1.5" marker-end="url(#m)"/>'
    )
    words = "requests and feedback become training data; the gate and an experiment decide about each new release"
    parts.append(f'<text x="{(data + last) / 2}" y="158" font-size="13" fill="{quiet}">{words}</text></svg>\n')
    return "\n".join(parts)


def drawings() -> dict[str, str]:
    """Name of each picture and its SVG."""
    lines = shown_lines(RECORDING)
    command = lines[0][1].removeprefix("$ ")
    pictures = {f"demo-{theme}.svg": terminal(lines, command, theme) for theme in THEMES}
    return pictures | {f"life-cycle-{theme}.svg": life_cycle(theme) for theme in THEMES}


def main(arguments: list[str]) -> int:
    """Command line."""
    if arguments[:1] == ["--record"] and (status := record(arguments[1:])) not in (0, 1):
        return status
    if arguments[:1] == ["--log"]:
        write(read_log(Path(arguments[1])), RECORDING)
    for name, picture in drawings().items():
        (IMAGES / name).write_text(picture, encoding="utf-8")
        print(f"{name}  {len(picture.encode()):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
