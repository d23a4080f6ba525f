"""How fast `prepare` is, stage by stage and as a whole, and how much memory it takes.

    python benchmarks/data_speed.py [--rows 100000] [--workers 2] [--data FOLDER] [--stages]

Rows are banking77's texts, repeated with variation so that few are copies. Prints rows a second and the peak memory of the
whole pipeline as one command would run it; with --stages also the time of each part on one core. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def varied(texts: list[tuple[str, str]], rows: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows with the words of `texts`, each copy with other words put in, so that they are not nearly the same."""
    rng = random.Random(seed)
    words = sorted({word for text, _ in texts for word in text.split()})
    for number in range(rows):
        text, label = texts[number % len(texts)]
        if number >= len(texts):
            said = text.split()
            for _ in range(max(len(said) // 3, 2)):
                said.insert(rng.randrange(len(said) + 1), rng.choice(words))
            text = " ".join(said)
        yield {"id": f"r{number}", "text": text, "label": label}


def whole(source: Path, out: Path, workers: int) -> dict[str, Any]:
    """Run the whole stage in a process of its own; seconds, rows and peak memory of it and its workers."""
    code = (
        "import sys, time, json, resource\n"
        "from tuneloop.data.config import PrepareConfig\n"
        "from tuneloop.data.prepare import prepare\n"
        "from tuneloop.models.load import load_tokenizer\n"
        "from tuneloop.pipeline import measure_with\n"
        "from tuneloop.report.data_html import write_data_report\n"
        "measure = measure_with(load_tokenizer('smollm2-135m'))\n"
        "start = time.perf_counter()\n"
        "d = prepare(PrepareConfig(sources=[sys.argv[1]], workers=int(sys.argv[3])), name='speed', seed=0, out=sys.argv[2], measure=measure)\n"
        "write_data_report(sys.argv[2])\n"
        "took = time.perf_counter() - start\n"
        "own, children = (resource.getrusage(w).ru_maxrss / 2**20 for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))\n"
        "print(json.dumps({'seconds': took, 'own_gib': own, 'worker_gib': children, 'counts': d.manifest['counts']}))\n"
    )
    command = [sys.executable, "-c", code, str(source), str(out), str(workers)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    facts: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return facts


def stages(source: Path, rows: int) -> list[tuple[str, float]]:
    """Rows a second of each part, on one core."""
    from tuneloop.data import duplicates, language, personal, repair
    from tuneloop.data.checks import quality
    from tuneloop.data.config import DuplicatesConfig, PersonalConfig, PrepareConfig, RepairConfig
    from tuneloop.data.formats import Parsed, detect, parse_record
    from tuneloop.data.sources.chunks import chunks
    from tuneloop.data.sources.parse import SourceRecord, parse_chunk
    from tuneloop.data.sources.read import find_files
    from tuneloop.types import Row

    measured: list[tuple[str, float]] = []

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        measured.append((name, rows / (time.perf_counter() - start)))
        return result

    (file,) = find_files([str(source)])
    config = PrepareConfig()
    items = timed("read and parse JSON", lambda: [item for chunk in chunks(file) for item in parse_chunk(chunk)])
    values = [item.value for item in items if isinstance(item, SourceRecord)]
    guess = detect(values[:2000], config)
    parsed = timed("format", lambda: [parse_record(value, guess, config) for value in values])
    made = [Row(str(i), p.messages, p.label) for i, p in enumerate(parsed) if isinstance(p, Parsed)]
    texts = [row.messages[-2]["content"] for row in made]
    timed("repair", lambda: [repair.repair_text(text, RepairConfig()) for text in texts])
    timed("personal data", lambda: [personal.find(text, PersonalConfig()) for text in texts])
    timed("language", lambda: [language.detect_language(text) for text in texts])
    timed("quality flags", lambda: [quality.flags(row.messages, row.label) for row in made])
    cut = timed("texts to compare", lambda: [duplicates.texts_of(row) for row in made])
    timed("sketches", lambda: duplicates.sketch(cut, DuplicatesConfig()))
    return measured


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stages", action="store_true", help="time of each part as well")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "banking77")
    options = parser.parse_args()
    path = options.data / "train.jsonl"
    if not path.is_file():
        sys.exit(f"banking77 is not under {options.data}: give its folder with --data")
    texts = [(r["text"], r["label"]) for r in map(json.loads, path.read_text(encoding="utf-8").splitlines())]
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "rows.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for record in varied(texts, options.rows):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        if options.stages:
            print("| part, one core | rows/s |\n|---|---|")
            for name, speed in stages(source, options.rows):
                print(f"| {name} | {speed:,.0f} |")
            print()
        facts = whole(source, Path(scratch) / "out", options.workers)
        print(
            f"| whole, {options.workers} processes | rows | seconds | rows/s | GiB main | GiB largest worker |\n|---|---|---|---|---|---|"
        )
        print(
            f"| read {facts['counts']['read']:,}, kept {facts['counts']['kept']:,} | {options.rows:,} | {facts['seconds']:.1f} "
            f"| {options.rows / facts['seconds']:,.0f} | {facts['own_gib']:.2f} | {facts['worker_gib']:.2f} |"
        )


if __name__ == "__main__":
    main()
