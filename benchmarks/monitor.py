"""How often the monitor raises an alarm without cause, and how often with one, as a table.

    python benchmarks/monitor.py --data FOLDER [--windows 200] [--planted 20] [--requests 500] [--gradual]

FOLDER holds banking77 as train.jsonl and test.jsonl (text, label), which is not part of this repository. The reference is
one half of the rows; windows are drawn from the other half, with users of one request each, and four windows before each
of them as earlier production. A stand-in model gives the true label nine times in ten. `weekly z-tests` reads the same
p-values at .05 each, as a dashboard with usual thresholds does. Alarms a year are for one window a week. With --gradual each
change comes over eight weeks, an eighth more of the requests each week, and the table says in which week the first alarm is.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tuneloop.improve.monitor import Helpers, MonitorOptions, monitor
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest
from tuneloop.workflows.monitor import helpers

Pair = tuple[str, str]
WEEKS = 52.18
HELD_OUT = 5  # intents that appear later
GRADUAL = 8  # weeks that a gradual change takes


@dataclass
class Cached:
    """An embedder that reads each text once."""

    embed: Callable[[Sequence[str]], np.ndarray]
    known: dict[str, np.ndarray]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of texts."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, np.asarray(self.embed(new), dtype=np.float32), strict=True))
        return np.stack([self.known[text] for text in texts])


def typos(rng: random.Random, text: str) -> str:
    """Two swapped or lost letters in every tenth of the text."""
    letters = list(text)
    for _ in range(max(2, len(letters) // 10)):
        i = rng.randrange(max(1, len(letters) - 1))
        letters[i : i + 2] = letters[i : i + 2][::-1] if rng.random() < 0.5 else letters[i : i + 1]
    return "".join(letters)


GERMAN = ("Meine Karte ist noch nicht angekommen", "Warum wurde meine Zahlung abgelehnt", "Ich möchte mein Konto schließen",
          "Wie kann ich meine PIN ändern", "Die Überweisung ist nicht angekommen", "Welche Gebühren fallen im Ausland an")  # fmt: skip


def planted(kind: str, rows: list[Pair], held: list[Pair], rng: random.Random) -> list[Pair]:
    """The rows of a window with a change; labels are what the model says."""
    n = len(rows)
    if kind.startswith("new intents"):
        share = 0.1 if "10 %" in kind else 0.3
        # The model knows no such label and gives one of its own.
        return [(rng.choice(held)[0], rng.choice(rows)[1]) if rng.random() < share else row for row in rows]
    if kind == "typos":
        return [(typos(rng, text), label) for text, label in rows]
    if kind == "second language, 5 %":
        return [
            (f"{rng.choice(GERMAN)}, {i}", label) if rng.random() < 0.05 else (text, label)
            for i, (text, label) in enumerate(rows)
        ]
    if kind == "twice as long":
        return [(f"{text} {rows[(i + 1) % n][0]}", label) for i, (text, label) in enumerate(rows)]
    if kind == "template":
        return [(f"Ticket from web form. Message: {text}", label) for text, label in rows]
    if kind == "prior shift":
        few = {label for label, _ in Counter(label for _, label in rows).most_common(8)}
        chosen = [row for row in rows if row[1] in few]
        return [rng.choice(chosen) if rng.random() < 0.3 else row for row in rows]
    if kind == "label swap":
        names = sorted({label for _, label in rows})
        other = dict(zip(names, names[1:] + names[:1], strict=True))
        swapped = set(names[:8])
        return [(text, "swapped " + other[label] if label in swapped else label) for text, label in rows]
    if kind == "wrong adapter":
        return [(text, rng.choice(("Of course! Here is a poem.", label))) for text, label in rows]
    return rows


KINDS = ("new intents, 10 %", "new intents, 30 %", "typos", "second language, 5 %", "twice as long", "template", "prior shift",
         "label swap", "wrong adapter")  # fmt: skip


def requests(rows: Sequence[Pair], start: int, labels: Sequence[str], rng: random.Random) -> list[StoredRequest]:
    """The rows as stored requests."""
    return [
        StoredRequest(
            id=f"r{start + i:07d}", time="2026-01-01T00:00:00Z", model="m", user=f"u{start + i}", finish="stop",
            prompt=[{"role": "user", "content": text}], total_ms=rng.lognormvariate(5, 0.5), usd=0.001,
            completion=label if rng.random() < 0.9 else rng.choice(labels),
        )
        for i, (text, label) in enumerate(rows)
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--planted", type=int, default=20)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--gradual", action="store_true", help="changes that come over eight weeks")
    parser.add_argument("--only", default="", help="changes whose names begin so")
    asked = parser.parse_args()
    rng = random.Random(0)
    lines = [line for name in ("train", "test") for line in (asked.data / f"{name}.jsonl").read_text().splitlines()]
    pairs = list(dict.fromkeys((row["text"], row["label"]) for row in map(json.loads, lines)))
    rng.shuffle(pairs)
    names = sorted({label for _, label in pairs})
    new = set(rng.sample(names, HELD_OUT))
    held, rest = [p for p in pairs if p[1] in new], [p for p in pairs if p[1] not in new]
    reference, pool = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    found = helpers()
    assert found.embed is not None, "install the packaged MiniLM"
    help_ = Helpers(Cached(found.embed, {}), found.language, lambda a, b: [])

    def window(kind: str, part: float = 1.0) -> tuple[bool, bool, list[str]]:
        drawn = rng.sample(pool, asked.requests)
        changed = planted(kind, drawn, held, rng)
        rows = [new if rng.random() < part else old for old, new in zip(drawn, changed, strict=True)]
        now = requests(rows, 0, names, rng)
        before = requests(rng.choices(pool, k=4 * asked.requests), 100_000, names, rng)
        votes = [Feedback(id=f"f{r.id}", request=r.id, kind="thumbs", value=rng.random() < 0.8, time=r.time)
                 for r in [*before, *now] if rng.random() < 0.1]  # fmt: skip
        report = monitor(
            reference, now, before, votes, help_, MonitorOptions(model="m", seed=rng.randrange(10**6)), window_days=7
        )
        return bool(report.alarms), any(one.p < 0.05 for one in report.detections), report.alarms

    def first_alarm(kind: str) -> tuple[int, int]:
        """Weeks until an alarm, of ours and of the usual tests; one more than there are: none."""
        weeks = [window(kind, (week + 1) / GRADUAL)[:2] for week in range(GRADUAL)]
        ours, usual = (next((i + 1 for i, found in enumerate(weeks) if found[at]), GRADUAL + 1) for at in (0, 1))
        return ours, usual

    begun = time.monotonic()
    if asked.gradual:
        print(
            "| change over eight weeks | times | first alarm, median week | none | weekly z-tests, median week |\n|---|---|---|---|---|"
        )
        for kind in KINDS:
            if kind.startswith(asked.only):
                found = [first_alarm(kind) for _ in range(asked.planted)]
                ours, usual = (float(np.median([pair[i] for pair in found])) for i in (0, 1))
                none = np.mean([pair[0] > GRADUAL for pair in found])
                print(f"| {kind} | {asked.planted} | {ours:g} | {none:.0%} | {usual:g} |", flush=True)
        print(f"\n{time.monotonic() - begun:.0f} s")
        return
    print(
        f"windows of {asked.requests} requests, reference of {len(reference):,} rows, at most 2 false alarms a year\n"
    )
    print("| change | windows | with an alarm | detectors | weekly z-tests |\n|---|---|---|---|---|")
    for kind, number in (("none", asked.windows), *((kind, asked.planted) for kind in KINDS)):
        if not kind.startswith(asked.only):
            continue
        results = [window(kind) for _ in range(number)]
        ours, usual = (float(np.mean([r[i] for r in results])) for i in (0, 1))
        which = ", ".join(
            f"{name} {count / number:.0%}"
            for name, count in Counter(name for r in results for name in r[2]).most_common(4)
        )
        year = [f", {share * WEEKS:.1f} a year" if kind == "none" else "" for share in (ours, usual)]
        print(f"| {kind} | {number} | {ours:.1%}{year[0]} | {which} | {usual:.1%}{year[1]} |", flush=True)
    print(f"\n{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
