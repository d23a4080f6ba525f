"""How well duplicates and leaks are found, how stable splits are, and what it costs, as tables.

    python benchmarks/duplicates.py [--data FOLDER] [--rows N] [PART ...]

Parts: gold, short, clusters, leaks, split, speed, crowd, memory; default: all but memory, which is meant to run alone with --rows 1000000.
The first five need the data sets (not part of this repository) under FOLDER. A drop outside the gold pairs and the
listed natural pairs is counted as extra, whether it looks right or not.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tuneloop.data.config import DuplicatesConfig, SplitConfig
from tuneloop.data.dataset import SPLITS, key64, prompt_key
from tuneloop.data.dedup.contamination import find_contamination, index_of
from tuneloop.data.dedup.duplicates import find_conflicts, find_duplicates, find_links, preference
from tuneloop.data.dedup.minhash import RowTexts, sketch, texts_of
from tuneloop.data.prepare import SplitFacts, assign_splits
from tuneloop.records.rows import Row

CHUNK = 1000  # rows that are sketched at once


def read(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, without the lines that are none."""
    records = []
    for line in path.read_bytes().splitlines():
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except ValueError:
            continue
        if isinstance(value, dict):
            records.append(value)
    return records


def as_row(record: dict[str, Any]) -> Row | None:
    """A record of the data sets as a row; None if it is broken."""
    try:
        if "text" in record:
            turns: Any = [
                {"role": "user", "content": record["text"]},
                {"role": "assistant", "content": record.get("label", "")},
            ]
            row = Row(str(record.get("id", "")), turns, label=record.get("label", ""))
        else:
            turns = [{**turn, "content": turn.get("content") or ""} for turn in record["messages"]]
            row = Row(record["id"], turns, label=record.get("feedback"))
        texts_of(row)
        return row if isinstance(row.label, str) and all(isinstance(m["content"], str) for m in row.messages) else None
    except (KeyError, TypeError, AttributeError):
        return None


def sketches(texts: Sequence[RowTexts], config: DuplicatesConfig) -> dict[str, Any]:
    """Sketches of all rows, made a chunk at a time."""
    parts = [sketch(texts[i : i + CHUNK], config) for i in range(0, len(texts), CHUNK)]
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}


def reader(texts: Sequence[RowTexts]) -> Callable[[Sequence[int]], list[RowTexts]]:
    """What reads the texts of rows."""
    return lambda indices: [texts[i] for i in indices]


def duplicates_of(texts: Sequence[RowTexts], config: DuplicatesConfig) -> Any:
    """Sketch and search in one."""
    order = preference("first", count=len(texts))
    return find_duplicates(sketches(texts, config), reader(texts), config, rows=np.arange(len(texts)), order=order)


def gold(data: Path) -> None:
    """Recall of the injected duplicates, and what else is dropped."""
    print("set             exact        near         conflicts    dropped besides (of clean rows)")
    for name in ("messy_tickets", "messy_chats"):
        facts = json.loads((data / name / "gold.json").read_text())
        rows = [row for record in read(data / name / "messy.jsonl") if (row := as_row(record)) is not None]
        path = {row.id: number for number, row in enumerate(rows)}
        texts = [texts_of(row) for row in rows]
        found = duplicates_of(texts, DuplicatesConfig())
        of = {rows[i].id: rows[o].id for i, o in zip(found.dropped, found.of, strict=True)}
        question = np.array([key64(prompt_key(row)) for row in rows], dtype=np.uint64)
        kept = np.setdiff1d(np.arange(len(rows)), found.dropped)
        conflicts = [
            {rows[i].id for i in group}
            for group in find_conflicts(question, kept, preference("first", count=len(rows)))
        ]
        injected = {d["id"]: d for d in facts["defects"] if d["type"].endswith("_duplicate")}
        score: dict[str, list[bool]] = defaultdict(list)
        for defect in injected.values():
            if defect["id"] in path and defect["of"] in path:
                pair = {defect["id"], defect["of"]}
                hit = bool(pair & of.keys())
                if defect["type"] == "conflicting_duplicate":
                    hit = hit or any(pair <= group for group in conflicts)
                score[defect["type"]].append(hit)
        base = {i: injected[i]["of"] if i in injected else i for i in path}
        natural = {frozenset(pair[:2]) for pair in facts["natural_near_pairs"]}
        others = [i for i, o in of.items() if base[i] != base[o] and frozenset((base[i], base[o])) not in natural]
        parts = [
            f"{sum(score[kind]):>3} of {len(score[kind]):<4}"
            for kind in ("exact_duplicate", "near_duplicate", "conflicting_duplicate")
        ]
        print(f"{name:<14}  {'   '.join(parts)}  {len(others):>4} of {len(read(data / name / 'clean.jsonl'))}")


def with_typo(text: str, draw: random.Random) -> str:
    """A letter of one word of four letters and more left out, doubled, swapped with the next or replaced."""
    sentence = text.split()
    places = [number for number, word in enumerate(sentence) if word.isalpha() and len(word) >= 4]
    if places:
        path = draw.choice(places)
        word, at = sentence[path], draw.randrange(1, len(sentence[path]) - 1)
        other = draw.choice("abcdefghijklmnopqrstuvwxyz")
        middles = ("", word[at] * 2, word[at + 1] + word[at], other)
        kind = draw.randrange(4)
        sentence[path] = word[:at] + middles[kind] + word[at + (2 if kind == 2 else 1) :]
    return " ".join(sentence)


def with_courtesy(text: str, draw: random.Random) -> str:
    """The text with a "please" or the like before or behind it."""
    before, after = draw.choice(
        [("Please ", ""), ("please, ", ""), ("Hi, ", ""), ("hello ", ""), ("", " please"), ("", " Thanks!")]
    )
    return before + text + after


def with_other_meaning(text: str, draw: random.Random) -> str:
    """A negation put in, or two words swapped."""
    for word, other in (
        ("can", "cannot"),
        ("is", "is not"),
        ("do", "do not"),
        ("was", "was not"),
        ("have", "have not"),
    ):
        if f" {word} " in text and draw.random() < 0.5:
            return text.replace(f" {word} ", f" {other} ", 1)
    sentence = text.split()
    item, other_place = draw.sample(range(len(sentence)), 2)
    sentence[item], sentence[other_place] = sentence[other_place], sentence[item]
    return " ".join(sentence)


PLACES, MONEY = (
    ("Boston", "Dallas", "Paris", "Berlin", "Oslo", "Austin"),
    ("USD", "AUD", "EUR", "euros", "pounds", "dollars"),
)
NAMES, DAYS = (
    ("Anna", "Hanna", "Maria", "Marta", "Jon", "John", "Lukas", "Lucas"),
    ("Monday", "Friday", "Sunday", "Tuesday"),
)


def unlike_pair(draw: random.Random) -> tuple[str, str]:
    """Two short texts of different meaning that share nearly all of their words."""
    (a, b), (c, d), (m, n), (p, q) = (draw.sample(some, 2) for some in (PLACES, MONEY, NAMES, DAYS))
    x = draw.randrange(10, 999)
    return draw.choice(
        [
            (f"Book flights from {a} to {b}", f"Book flights from {b} to {a}"),
            (f"Send {x} {c} to {m}", f"Send {x + 10} {c} to {m}"),
            (f"Pay {m} {x} tomorrow", f"Pay {n} {x} tomorrow"),
            (f"Please change my {c} into cash", f"Please change my {d} into cash"),
            (f"Deliver it on {p}", f"Deliver it on {q}"),
            (f"Where is my iPhone {x % 9 + 8}", f"Where is my iPhone {x % 9 + 9}"),
            ("My top up", "My top-up failed"),
            ("I lost my card", "I cost my card"),
            ("Can I buy it in Iran", "Can I buy it in Iraq"),
            ("Please lock my card", "Please unlock my card"),
        ]
    )


def short(data: Path) -> None:
    """Texts of four to nine words: copies with a typo or a courtesy, and pairs of other meaning, each pair among 2,000 other texts."""
    draw = random.Random(3)
    read_all = [
        record["text"].strip() for name in ("train", "test") for record in read(data / "banking77" / f"{name}.jsonl")
    ]
    others = sorted({text for text in read_all if 4 <= len(text.split()) <= 9})
    draw.shuffle(others)
    kinds: dict[str, Callable[[str], tuple[str, str]]] = {
        "a typo": lambda text: (text, with_typo(text, draw)),
        "a courtesy": lambda text: (text, with_courtesy(text, draw)),
        "both": lambda text: (text, with_courtesy(with_typo(text, draw), draw)),
        "real, other meaning": lambda text: (text, with_other_meaning(text, draw)),
        "invented, other meaning": lambda _: unlike_pair(draw),
    }
    print("pairs that differ in       copies found   leaks found")
    for name, make in kinds.items():
        made = [make(text) for text in others[:500]]
        made = [pair for pair in made if pair[0] != pair[1]]
        index = index_of([RowTexts(item, "", "") for item, _ in made], DuplicatesConfig())
        leaks = find_contamination([RowTexts(other, "", "") for _, other in made], index)
        ones, seconds = [item for item, _ in made], [other for _, other in made]
        found = duplicates_of(
            [RowTexts(text, "", "") for text in [*ones, *others[500:2500], *seconds]], DuplicatesConfig()
        )
        of = dict(zip(found.dropped.tolist(), found.of.tolist(), strict=True))
        first = {text: number for number, text in reversed(list(enumerate(ones)))}
        copies = sum(of.get(len(ones) + 2000 + n) == first[item] for n, item in enumerate(ones))
        leaked = sum(leak is not None and ones[leak.test_row] == item for leak, item in zip(leaks, ones, strict=True))
        print(f"{name:<25}  {copies:>4} of {len(made)}   {leaked:>4} of {len(made)}")


def clusters(data: Path) -> None:
    """Pairs within clusters of records with typos, swapped and missing fields."""
    records = read(data / "neardup_febrl1" / "all.jsonl")
    texts = [RowTexts(record["text"], "", "") for record in records]
    members = defaultdict(list)
    for number, record in enumerate(records):
        members[record["cluster"]].append(number)
    wanted = {pair for group in members.values() for pair in combinations(sorted(group), 2)}
    print("febrl1 threshold  precision  recall    F1")
    for threshold in (0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8):
        found = duplicates_of(texts, DuplicatesConfig(threshold=threshold, on="user"))
        of = dict(zip(found.dropped.tolist(), found.of.tolist(), strict=True))
        groups = defaultdict(list)
        for number in range(len(texts)):
            leader = of.get(number, number)
            groups[of.get(leader, leader)].append(number)
        pairs = {pair for group in groups.values() for pair in combinations(sorted(group), 2)}
        right = len(pairs & wanted)
        precision, recall = right / max(len(pairs), 1), right / len(wanted)
        f1 = 2 * right / (len(pairs) + len(wanted))
        default = "  (default)" if threshold == DuplicatesConfig().threshold else ""
        print(f"{threshold:>16}  {precision:>9.3f}  {recall:>6.3f} {f1:>5.3f}{default}")


def leaks(data: Path) -> None:
    """Recall of injected leaks, and natural ones, between train and test of one data set."""
    config = DuplicatesConfig()
    test = [texts_of(row) for record in read(data / "banking77" / "test.jsonl") if (row := as_row(record))]
    began = time.perf_counter()
    index = index_of(test, config)
    print(f"index of {len(test)} test rows: {time.perf_counter() - began:.2f} s")
    facts = json.loads((data / "messy_tickets" / "gold.json").read_text())
    injected = {d["id"]: d["of_test"] for d in facts["defects"] if d["type"] == "test_leak"}
    for name in ("messy_tickets/messy.jsonl", "banking77/train.jsonl"):
        rows = [row for record in read(data / name) if (row := as_row(record))]
        texts = [texts_of(row) for row in rows]
        columns = sketches(texts, config)
        began = time.perf_counter()
        found = find_contamination(texts, index, columns)
        took = (time.perf_counter() - began) / len(texts) * 1e6
        hits = {row.id: leak for row, leak in zip(rows, found, strict=True) if leak is not None}
        right = sum(i in hits and hits[i].test_row == of for i, of in injected.items())
        kinds = Counter(leak.how for leak in found if leak is not None)
        recall = f", injected {right} of {len(injected)}" if "messy" in name else ""
        print(f"{name}: {took:.1f} µs a row, {dict(kinds)} of {len(rows)}{recall}")


def split(data: Path) -> None:
    """Shares, and rows that change their split when 10 % rows are added."""
    rows = [row for record in read(data / "banking77" / "train.jsonl") if (row := as_row(record))]
    question = np.array([key64(prompt_key(row)) for row in rows], dtype=np.uint64)
    stratum = np.unique([row.label for row in rows], return_inverse=True)[1]
    facts = SplitFacts(question, stratum, np.ones(len(rows), dtype=bool))
    print("seed  train    val      test     smallest..largest share of a label in test   moved by 10 % more rows")
    moved_by_all = []
    for seed in range(20):
        whole = assign_splits(facts, SplitConfig(), seed)
        some = np.random.default_rng(seed).permutation(len(rows))[: len(rows) * 10 // 11]
        fewer = SplitFacts(question[some], stratum[some], facts.labelled[some])
        moved = int((assign_splits(fewer, SplitConfig(), seed) != whole[some]).sum())
        moved_by_all.append(moved)
        if seed < 5:
            shares = [f"{(whole == number).mean():.4f}" for number in range(len(SPLITS))]
            of_label = np.bincount(stratum, whole == 2) / np.bincount(stratum)
            print(
                f"{seed:<5} {'   '.join(shares)}   {of_label.min():.3f}..{of_label.max():.3f}"
                f"                                  {moved} of {len(some)}"
            )
    print(f"20 seeds: {np.mean(moved_by_all):.1f} of {len(some)} rows move ({np.mean(moved_by_all) / len(some):.4%})")


def invented(data: Path, count: int, share: float = 0.05) -> list[RowTexts]:
    """Short rows: chains of word pairs of real ones, a share of them once more with a typo."""
    follows: dict[str, list[str]] = defaultdict(list)
    for record in read(data / "banking77" / "train.jsonl"):
        sentence = ["", *record["text"].split(), ""]
        for word, after in pairwise(sentence):
            follows[word].append(after)
    draw = random.Random(0)
    rows: list[str] = []
    while len(rows) < count:
        if rows and draw.random() < share:
            text = draw.choice(rows)
            at = draw.randrange(len(text))
            rows.append(text[:at] + draw.choice("abcdefgh") + text[at + 1 :])
            continue
        text, word = "", draw.choice(follows[""])
        while word and len(text) < 200:
            text += " " + word
            word = draw.choice(follows[word])
        if len(text) > 30:
            rows.append(text[1:])
    return [RowTexts(text, "", "") for text in rows]


def speed(data: Path, count: int) -> None:
    """Time of the parts on short rows."""
    config = DuplicatesConfig()
    rows = [row for record in read(data / "banking77" / "train.jsonl") if (row := as_row(record))]
    began = time.perf_counter()
    real = [texts_of(row) for row in rows]
    cut = time.perf_counter()
    sketches(real, config)
    done = time.perf_counter()
    print(
        f"texts_of {(cut - began) / len(rows) * 1e6:.1f} µs a row, sketch {(done - cut) / len(rows) * 1e6:.1f} µs a row"
    )
    texts = invented(data, count)
    columns = sketches(texts, config)
    order = preference("first", count=count)
    began = time.perf_counter()
    found = find_duplicates(columns, reader(texts), config, rows=np.arange(count), order=order)
    done = time.perf_counter()
    kept = np.setdiff1d(np.arange(count), found.dropped)
    question = columns["exact"][:, 0]
    linked = time.perf_counter()
    pairs, _ = find_links(columns, reader(texts), config.threshold, rows=kept, question=question)
    end = time.perf_counter()
    print(
        f"{count} rows: {len(found.dropped)} duplicates in {done - began:.2f} s, "
        f"{len(pairs)} links in {end - linked:.2f} s"
    )
    facts = SplitFacts(question, np.arange(count) % 77, np.ones(count, dtype=bool), links=pairs)
    began = time.perf_counter()
    assign_splits(facts, SplitConfig(), 0)
    print(f"splits of {count} rows: {time.perf_counter() - began:.2f} s")


def crowd(count: int = 200_000) -> None:
    """Many rows that are nearly the same: just above the threshold, and just below."""
    config = DuplicatesConfig()
    for text, name in ((16, "above the threshold"), (7, "around it")):
        stem = " ".join(
            ["please tell me where the parcel with this number has been left since monday", "and who took it"]
        )
        stem = " ".join(stem.split()[:text])
        texts = [RowTexts(f"{stem} {number:06d}", "", "") for number in range(count)]
        columns = sketches(texts, config)
        order = preference("first", count=count)
        began = time.perf_counter()
        found = find_duplicates(columns, reader(texts), config, rows=np.arange(count), order=order)
        print(f"{count} rows {name}: {len(found.dropped)} dropped in {time.perf_counter() - began:.1f} s")


def memory(count: int) -> None:
    """Peak memory of the search over sketches alone; the texts are made again when they are asked for."""
    config = DuplicatesConfig()
    columns = {
        name: column[:0] for name, column in sketch(numbered_rows(0, 1), config).items()
    }  # none is near the limit
    columns |= {
        name: np.empty((count, columns[name].shape[1]), dtype=columns[name].dtype)
        for name in ("exact", "prompt", "whole")
    }
    for begin in range(0, count, CHUNK):
        for name, part in sketch(numbered_rows(begin, min(CHUNK, count - begin)), config).items():
            columns[name][begin : begin + len(part)] = part
    size = sum(column.nbytes for column in columns.values())
    print(f"{count} rows, sketches {size / count:.0f} bytes a row; peak so far {peak():.0f} MiB")
    began = time.perf_counter()
    found = find_duplicates(
        columns,
        lambda indices: [numbered_rows(index, 1)[0] for index in indices],
        config,
        rows=np.arange(count),
        order=preference("first", count=count),
    )
    print(f"{len(found.dropped)} duplicates in {time.perf_counter() - began:.1f} s; peak {peak():.0f} MiB")


def numbered_rows(begin: int, count: int) -> list[RowTexts]:
    """Rows that depend on their number alone: random words; every twentieth is the row before it with a typo."""
    numbers = np.arange(begin, begin + count, dtype=np.uint64)
    copies = numbers % np.uint64(20) == 19
    sentence = ((numbers - copies)[:, None] * np.uint64(12) + np.arange(12, dtype=np.uint64)) * np.uint64(
        0x9E3779B97F4A7C15
    )
    sentence = (sentence ^ (sentence >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(52)
    texts = [" ".join(map(WORDS.__getitem__, row)) for row in sentence.tolist()]
    return [RowTexts(text[:-1] + "x" if copy else text, "", "") for text, copy in zip(texts, copies, strict=True)]


WORDS = ["".join(random.Random(8 * n + i).choice("aeiourstlnmdcp") for i in range(2 + n % 7)) for n in range(4096)]


def peak() -> float:
    """Peak resident memory in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "gold": lambda: gold(options.data),
        "short": lambda: short(options.data),
        "clusters": lambda: clusters(options.data),
        "leaks": lambda: leaks(options.data),
        "split": lambda: split(options.data),
        "speed": lambda: speed(options.data, options.rows),
        "crowd": crowd,
        "memory": lambda: memory(options.rows),
    }
    for name in options.parts or [name for name in parts if name != "memory"]:
        print(f"== {name}")
        parts[name]()


if __name__ == "__main__":
    main()
