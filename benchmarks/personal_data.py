"""How much personal data is found and removed, and how much else is touched, as tables; presidio-analyzer next to it where installed.

    python benchmarks/personal_data.py [--data FOLDER] [--samples N] [--missed N] [--names] [--only DETECTOR] [--rows N] [--spacy MODEL]

Needs the data sets (not part of this repository) under FOLDER. A value counts as found when every character of it is covered, by whatever
kind; a look-alike as touched when any character is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tuneloop.data.config import PersonalConfig
from tuneloop.data.pii.redact import find

Spans = list[tuple[str, int, int]]
Detector = Callable[[str], Spans]

CLEAN = {
    "banking77": ("banking77/train.jsonl", "banking77/test.jsonl"),
    "dialogsum": ("dialogsum/dev.jsonl", "dialogsum/test_part1.jsonl"),
    "alpaca": ("alpaca_en_demo/train.json",),
    "taskmaster4": ("taskmaster4_chats/train.jsonl",),
    "general mix": ("general_mix/all.jsonl",),
    "instructions": ("selfinstruct_seed/seed_tasks.jsonl",),
    "tool calls": ("sharegpt_toolcall_demo/train.json",),
    "nlupp": ("nlupp_banking/all.jsonl",),
}
# Types of the sets that some kind of ours stands for. The rest (organisations, places, ages, titles) is not looked for.
STRUCTURED = {
    "EMAIL_ADDRESS",
    "PHONE_NUMBER",
    "CREDIT_CARD",
    "IBAN_CODE",
    "US_SSN",
    "IP_ADDRESS",
    "API_KEY",
    "US_DRIVER_LICENSE",
}


def ours(names: bool) -> Detector:
    """The package's own search."""
    config = PersonalConfig(names=names)
    return lambda text: [(f.kind, f.start, f.end) for f in find(text, config)]


def presidio(names: bool, model: str) -> Detector:
    """presidio-analyzer with its own recognizers over a spaCy model."""
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    settings = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]}
    engine = AnalyzerEngine(nlp_engine=NlpEngineProvider(nlp_configuration=settings).create_engine())
    # Named entities of dates, places and groups are no identifiers: the comparison is of what both look for.
    unwanted = {"DATE_TIME", "NRP", "ORGANIZATION", "LOCATION", "URL"} | (set() if names else {"PERSON"})
    wanted = [e for e in engine.get_supported_entities("en") if e not in unwanted]
    return lambda text: [(r.entity_type, r.start, r.end) for r in engine.analyze(text, language="en", entities=wanted)]


def records(path: Path) -> list[Any]:
    """The records of a JSON or JSON Lines file."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def texts(value: Any) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def gold_of_messy(folder: Path) -> tuple[list[tuple[str, list[dict[str, Any]]]], list[tuple[str, dict[str, Any]]]]:
    """Texts with their personal data, and texts with a look-alike each."""
    lines = (folder / "messy.jsonl").read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    personal, lookalikes = [], []
    for defect in json.loads((folder / "gold.json").read_text(encoding="utf-8"))["defects"]:
        if defect["type"] not in ("pii", "pii_lookalike"):
            continue
        value: Any = json.loads(lines[defect["line"] - 1])
        for part in re.findall(r"\w+", defect["field"]):
            value = value[int(part)] if part.isdigit() else value[part]
        if defect["type"] == "pii":
            personal.append((value, defect["spans"]))
        else:
            lookalikes.append((value, defect))
    return personal, lookalikes


def recall_table(detector: Detector, rows: list[tuple[str, list[dict[str, Any]]]], missed: int) -> None:
    """Print recall by gold type and precision by kind."""
    found, total = Counter[str](), Counter[str]()
    right, all_found = Counter[str](), Counter[str]()
    lost: dict[str, list[str]] = defaultdict(list)
    wrong: dict[str, list[str]] = defaultdict(list)
    for text, spans in rows:
        hits = detector(text)
        covered = {i for _, start, end in hits for i in range(start, end)}
        for span in spans:
            total[span["type"]] += 1
            if covered.issuperset(i for i in range(span["start"], span["end"]) if not text[i].isspace()):
                found[span["type"]] += 1
            else:
                lost[span["type"]].append(text[max(0, span["start"] - 30) : span["end"] + 10])
        for kind, start, end in hits:
            all_found[kind] += 1
            if any(span["start"] < end and start < span["end"] for span in spans):
                right[kind] += 1
            else:
                wrong[kind].append(text[max(0, start - 30) : end + 10])
    print("| gold type | values | found | recall |\n|---|---|---|---|")
    for kind in sorted(total):
        print(f"| {kind} | {total[kind]} | {found[kind]} | {found[kind] / total[kind]:.1%} |")
    n, hit = (sum(c[k] for k in total if k in STRUCTURED) for c in (total, found))
    print(f"| structured | {n} | {hit} | {hit / max(n, 1):.1%} |")
    print("\n| kind found | times | on a gold value | precision |\n|---|---|---|---|")
    for kind in sorted(all_found):
        print(f"| {kind} | {all_found[kind]} | {right[kind]} | {right[kind] / all_found[kind]:.1%} |")
    for name, examples in (("missed", lost), ("wrong", wrong)):
        for kind in sorted(examples) if missed else ():
            print(f"{name} {kind} ({len(examples[kind])}): {examples[kind][:missed]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--samples", type=int, default=0, help="findings in clean text shown for each kind")
    parser.add_argument("--missed", type=int, default=0, help="missed values shown for each type")
    parser.add_argument("--names", action="store_true", help="look for names of persons too")
    parser.add_argument("--only", choices=["tuneloop", "presidio"], help="one detector")
    parser.add_argument("--rows", type=int, help="rows of each clean set; default: all")
    parser.add_argument("--spacy", default="en_core_web_lg", help="presidio's spaCy model")
    options = parser.parse_args()
    if options.only != "presidio":
        report("tuneloop", ours(options.names), options)
    if options.only == "presidio" or (options.only is None and importlib.util.find_spec("presidio_analyzer")):
        report("presidio", presidio(options.names, options.spacy), options)


def report(name: str, detector: Detector, options: argparse.Namespace) -> None:
    """Print all tables of one detector."""
    print(f"\n# {name}")
    for folder in ("messy_tickets", "messy_chats"):
        personal, lookalikes = gold_of_messy(options.data / folder)
        print(f"\n## {folder}")
        recall_table(detector, personal, options.missed)
        touched = [
            d["value"] for text, d in lookalikes if any(s < d["end"] and d["start"] < e for _, s, e in detector(text))
        ]
        print(f"look-alikes touched: {len(touched)} of {len(lookalikes)} {touched[:9]}")
    print("\n## pii_synth_v2")
    rows = records(options.data / "pii_synth_v2" / "all.jsonl")
    recall_table(detector, [(row["text"], row["spans"]) for row in rows], options.missed)
    print("\n## clean text\n| set | rows | touched | share | µs a text | kinds |\n|---|---|---|---|---|---|")
    shown: dict[str, list[str]] = defaultdict(list)
    for title, files in CLEAN.items():
        rows = [row for file in files for row in records(options.data / file)][: options.rows]
        parts = [list(texts(row)) for row in rows]
        kinds, touched_rows, start = Counter[str](), 0, time.perf_counter()
        hits = [[detector(text) for text in row] for row in parts]
        seconds = time.perf_counter() - start
        for row, row_hits in zip(parts, hits, strict=True):
            touched_rows += any(row_hits)
            for text, spans in zip(row, row_hits, strict=True):
                for kind, a, b in spans:
                    kinds[kind] += 1
                    shown[kind].append(f"{title}: {text[max(0, a - 40) : a]}⟦{text[a:b]}⟧{text[b : b + 15]}")
        n = sum(map(len, parts))
        share = f"{touched_rows / len(rows):.2%}"
        print(f"| {title} | {len(rows)} | {touched_rows} | {share} | {seconds / n * 1e6:.1f} | {dict(kinds)} |")
    for kind in sorted(shown) if options.samples else ():
        step = max(1, len(shown[kind]) // options.samples)
        print(f"\n{kind} ({len(shown[kind])})", *(repr(s) for s in shown[kind][::step][: options.samples]), sep="\n  ")


if __name__ == "__main__":
    main()
