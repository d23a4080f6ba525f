"""How well `tuneloop prepare` finds what is wrong: prepared data sets against gold, as a table.

    python benchmarks/data_gold.py [--data FOLDER] [--out FOLDER] [--set KEY=VALUE ...] [NAME ...]

Needs the data sets messy_tickets, messy_chats and banking77 (not part of this repository) under FOLDER: each of the messy ones
is a file with defects injected by a seeded script, and `gold.json` that names every one by its physical line. mojibake_ftfy and
mojibake_udhr are texts with what they should read as. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Name -> settings besides the defaults. The given test set of the tickets is the one that rows were leaked from.
JOBS: dict[str, list[str]] = {
    "messy_tickets": ["language=en", "split.test={data}/banking77/test.jsonl"],
    "messy_chats": ["language=en"],
}

# Texts that were read in the wrong encoding, and right ones that must stay; nothing but the encoding is repaired.
MOJIBAKE = ("mojibake_ftfy", "mojibake_udhr")
ENCODING_ALONE = [
    "format=text", "personal.mode=off", "duplicates.exact=false", "duplicates.near=false", "repair.html_entities=false",
    "repair.invisible=false", "repair.unicode=off", "repair.white_space=false", "repair.special_tokens=false",
]  # fmt: skip

# Defect -> the reasons that say it. Nothing else counts: a broken line that is read and then dropped as a copy is a miss.
FITTING: dict[str, set[str]] = {
    "broken_json": {"broken_json"},
    "wrong_type": {"wrong_type"},
    "missing_field": {"missing_field"},
    "empty_output": {"empty_output", "empty_input"},  # its `field` says which side of the row is empty
    "over_long": {"too_long"},
    "blank_line": {"blank_line"},
    "lone_surrogate": {"bad_encoding"},
    "role_order": {"bad_turn_order", "no_answer", "unanswered_call"},  # whichever the turned order breaks first
    "unknown_role": {"unknown_role"},
    "no_final_assistant": {"no_answer"},
    "tool_call_unanswered": {"unanswered_call"},
    "bad_tool_arguments": {"bad_arguments"},
    "error_output": {"error_output"},
    "truncated_output": {"truncated_output"},
}
# Defects that can also be reported: by a repair of this kind, or by a check that names the row in `flagged.jsonl`.
TOLD = {"unknown_role": "unknown_role", "error_output": "error_outputs", "truncated_output": "truncated_answers"}


@dataclass(frozen=True)
class Score:
    """One line of the table.

    Args:
        kind: the defect, or what is measured.
        n: how many there are.
        recall: share of them that was handled as it should be.
        goal: the lowest recall that is good enough; None: there is no goal.
        precision: share of what was done that was right; `precision_goal`: the lowest that is good enough.
        missed: lines where it was not, for a look at them.
    """

    kind: str
    n: int
    recall: float | None = None
    goal: float | None = None
    precision: float | None = None
    precision_goal: float | None = None
    missed: tuple[int, ...] = ()

    @property
    def met(self) -> bool | None:
        """Whether every goal is met; None without a goal. A share of nothing meets any."""
        pairs = [(self.recall, self.goal), (self.precision, self.precision_goal)]
        wanted = [(value, goal) for value, goal in pairs if goal is not None]
        return all(value is None or value >= goal for value, goal in wanted) if wanted else None


@dataclass(frozen=True)
class Outcome:
    """What became of the lines of one source, by physical line.

    Args:
        rows: line -> the rows in a split, with `split`.
        rejects: line -> its records in `rejects.jsonl`; repairs: likewise.
        flags: line -> checks that name it.
        ranking: lines by how likely their label is wrong, the most suspicious first.
        files: every output file as one text.
    """

    rows: dict[int, list[dict[str, Any]]]
    rejects: dict[int, list[dict[str, Any]]]
    repairs: dict[int, list[dict[str, Any]]]
    flags: dict[int, set[str]] = field(default_factory=dict)
    ranking: list[int] = field(default_factory=list)
    files: str = ""

    def reasons(self, line: int) -> set[str]:
        """The reasons for which the line was rejected."""
        return {record["reason"] for record in self.rejects.get(line, ())}

    def kinds(self, line: int) -> set[str]:
        """The kinds of its repairs."""
        return {record["kind"] for record in self.repairs.get(line, ())}

    def texts(self, line: int) -> list[str]:
        """The contents of the turns that stand in a split, tool arguments included."""
        return [text for row in self.rows.get(line, ()) for message in row["messages"] for text in _texts(message)]


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    if message.get("content"):
        yield message["content"]
    for call in message.get("tool_calls", ()):
        yield str(call["function"]["arguments"])


def read_outcome(folder: Path, source: str) -> Outcome:
    """Read a prepared data set.

    Args:
        folder: its folder.
        source: name of the source file; rows of other sources (a given test set) are left out.
    """

    def by_line(name: str) -> dict[int, list[dict[str, Any]]]:
        found: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for record in _records(folder / name):
            if Path(str(record["source"])).name == source:
                found[int(record["line"])].append(record)
        return found

    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for split in ("train", "val", "test"):
        for row in _records(folder / f"{split}.jsonl"):
            if Path(str(row["meta"]["source"])).name == source:
                rows[int(row["meta"]["line"])].append({**row, "split": split})
    suspects = [r for r in _records(folder / "label_errors.jsonl") if Path(str(r["source"])).name == source]
    kept = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".json", ".jsonl", ".html", ".txt")
    ]
    return Outcome(
        rows=rows,
        rejects=by_line("rejects.jsonl"),
        repairs=by_line("repairs.jsonl"),
        flags={line: {str(r["check"]) for r in some} for line, some in by_line("flagged.jsonl").items()},
        ranking=[int(record["line"]) for record in suspects],
        files="\n".join(path.read_text(encoding="utf-8", errors="replace") for path in kept),
    )


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.strip())


# --- scores --------------------------------------------------------------------------------------

Defects = list[dict[str, Any]]


@dataclass(frozen=True)
class Gold:
    """A messy file and what is known about it.

    Args:
        defects: type -> the injected defects, as in `gold.json`.
        line_of: id -> physical line, of every record that can be read.
        texts: line -> the texts of the record as they came.
        alike: id -> name of its group: records that are copies of each other by injection or by nature.
    """

    defects: dict[str, Defects]
    line_of: dict[str, int]
    texts: dict[int, list[str]]
    alike: dict[str, str]
    lines: int = 0

    @property
    def clean(self) -> list[int]:
        """Lines without any injected defect."""
        bad = {d["line"] for some in self.defects.values() for d in some}
        return [line for line in self.texts if line not in bad]


def read_gold(folder: Path) -> Gold:
    """Read `gold.json`, `messy.jsonl` and `clean.jsonl` of a messy data set."""
    gold = json.loads((folder / "gold.json").read_text(encoding="utf-8"))
    lines = (folder / "messy.jsonl").read_bytes().decode("utf-8-sig", "replace").split("\n")
    base = [
        json.loads(line) for line in (folder / "clean.jsonl").read_text(encoding="utf-8").split("\n") if line.strip()
    ]
    defects: dict[str, Defects] = defaultdict(list)
    for defect in gold["defects"]:
        defects[defect["type"]].append(defect)
    line_of, texts = {d["id"]: d["line"] for d in gold["defects"] if d["id"]}, {}
    for number, raw in enumerate(lines, 1):
        try:
            record = json.loads(raw)
        except ValueError:
            continue
        if isinstance(record, dict):
            line_of[record["id"]] = number
            texts[number] = list(_strings({k: v for k, v in record.items() if k not in ("id", "created")}))
    pairs = [(d["id"], d["of"]) for d in gold["defects"] if "of" in d]
    pairs += [(a, b) for a, b, *_ in gold["natural_near_pairs"]]
    first: dict[str, str] = {}
    for record in base:
        key = same_key(" ".join(_strings({k: v for k, v in record.items() if k not in ("id", "created", "feedback")})))
        pairs.append((first.setdefault(key, record["id"]), record["id"]))
    return Gold(defects, line_of, texts, groups(pairs), lines=len(lines))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def same_key(text: str) -> str:
    """A text up to Unicode form, white space and case."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def groups(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Union of pairs: id -> one name for all that hang together; ids that hang together with no other are left out."""
    above: dict[str, str] = {}

    def top(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    for a, b in pairs:
        above[top(a)] = top(b)
    sizes: dict[str, int] = defaultdict(int)
    for name in list(above):
        sizes[top(name)] += 1
    return {name: top(name) for name in above if sizes[top(name)] > 1}


def score_copies(gold: Gold, outcome: Outcome, kind: str, goal: float, precision_goal: float | None) -> Score:
    """Copies: of each injected pair one must be gone; what was dropped as a copy must be one, injected or natural."""
    some = gold.defects.get(kind, [])
    missed = [d["line"] for d in some if d["line"] in outcome.rows and gold.line_of.get(d["of"]) in outcome.rows]
    dropped = [line for line in outcome.rejects if kind in outcome.reasons(line)]
    id_of = {line: name for name, line in gold.line_of.items()}
    right = sum(1 for line in dropped if id_of.get(line) in gold.alike)
    return _share(kind, some, missed, goal, right / len(dropped) if dropped else None, precision_goal)


def score_reasons(gold: Gold, outcome: Outcome, kind: str, goal: float | None) -> Score:
    """Defects of a record: its physical line must be rejected for a fitting reason, or be mended."""
    some = gold.defects.get(kind, [])
    missed = [d["line"] for d in some if not _handled(kind, d, outcome)]
    return _share(kind, some, missed, goal)


def _handled(kind: str, defect: Mapping[str, Any], outcome: Outcome) -> bool:
    line = defect["line"]
    if outcome.reasons(line):
        return bool(outcome.reasons(line) & FITTING[kind])
    texts = [plain(text) for text in outcome.texts(line)]
    if not texts:
        return False
    if TOLD.get(kind) in outcome.kinds(line) | outcome.flags.get(line, set()):
        return True
    if kind == "broken_json" and defect.get("recoverable"):  # read as it was before it was broken, all of it, and told
        before = list(_strings({k: v for k, v in defect["original"].items() if k in ("text", "messages")}))
        return bool(outcome.kinds(line)) and any(text in {plain(t) for t in before} for text in texts)
    if kind == "over_long":
        return "cut" in outcome.kinds(line)
    return kind == "lone_surrogate" and plain(defect["fixed"]) in texts


def score_lost_characters(gold: Gold, outcome: Outcome) -> Score:
    """Mojibake that can't be undone: the row is gone, or a check names it."""
    some = [d for d in gold.defects.get("mojibake", []) if not d["recoverable"] and d["line"] in outcome.rows]
    missed = [d["line"] for d in some if "garbled_text" not in outcome.flags.get(d["line"], set())]
    return _share("mojibake (lossy, reported)", some, missed, None)


QUOTES = str.maketrans("‘’‚“”„", "'''\"\"\"")


def plain(text: str) -> str:
    """A text as it is compared: straight quotes, no white space at the ends."""
    return text.translate(QUOTES).strip()


def score_repairs(gold: Gold, outcome: Outcome, kind: str, repair: str, goal: float) -> Score:
    """Mended texts: a row that stays must read as gold says. Rows that go for another reason don't count.

    Precision is the share of clean rows that this repair left alone.
    """
    some = [d for d in gold.defects.get(kind, []) if d.get("recoverable", True) and d["line"] in outcome.rows]
    missed = [d["line"] for d in some if plain(d["fixed"]) not in map(plain, outcome.texts(d["line"]))]
    clean = gold.clean
    touched = sum(1 for line in clean if repair in outcome.kinds(line))
    return _share(kind, some, missed, goal, 1 - touched / len(clean) if clean else None, 1.0)


CONTROL = re.compile(r"<\|\w+\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>")


def score_special_tokens(gold: Gold, outcome: Outcome) -> Score:
    """No control token of the injected value may stand in a split."""
    some = gold.defects.get("special_tokens", [])
    missed = []
    for defect in some:
        tokens = CONTROL.findall(defect["value"]) or [defect["value"]]
        if any(token in text for text in outcome.texts(defect["line"]) for token in tokens):
            missed.append(defect["line"])
    return _share("special_tokens", some, missed, 1.0)


def score_personal(gold: Gold, outcome: Outcome) -> Score:
    """Structured personal data: no output file holds the value, no kept row a piece of it that it did not have elsewhere."""
    some = [(d["line"], s["value"]) for d in gold.defects.get("pii", []) for s in d["spans"] if s["structured"]]
    escaped = outcome.files
    missed = [
        line
        for line, value in some
        if value in escaped or json.dumps(value)[1:-1] in escaped or _left(gold, outcome, line, value)
    ]
    recall = 1 - len(missed) / len(some) if some else None
    return Score("pii (structured)", len(some), recall, 0.98, missed=tuple(missed))


PIECE = 4  # characters of a value that give it away


def _left(gold: Gold, outcome: Outcome, line: int, value: str) -> bool:
    """Whether a kept row, or the record of a reject, still holds a piece of the value."""
    elsewhere = " ".join(gold.texts.get(line, ())).replace(value, " ")
    records = [text for record in outcome.rejects.get(line, ()) for text in _strings(record.get("record"))]
    kept = re.sub(
        r"<[A-Z_]+>", " ", " ".join([*outcome.texts(line), *records])
    )  # MAIL in <EMAIL> is no piece of an address
    pieces = {run[i : i + PIECE] for run in re.findall(r"\w+", value) for i in range(len(run) - PIECE + 1)}
    return any(piece in kept and piece not in elsewhere for piece in pieces)


def score_lookalikes(gold: Gold, outcome: Outcome) -> Score:
    """Numbers that only look like personal data: precision is the share that was left alone."""
    some = [
        d
        for d in gold.defects.get("pii_lookalike", [])
        if d["line"] in outcome.rows or "personal_data" in outcome.reasons(d["line"])
    ]
    missed = [d["line"] for d in some if not any(d["value"] in text for text in outcome.texts(d["line"]))]
    precision = 1 - len(missed) / len(some) if some else None
    return Score("pii look-alikes", len(some), precision=precision, precision_goal=0.99, missed=tuple(missed))


def score_leaks(gold: Gold, outcome: Outcome) -> Score:
    """Rows of the given test set, or nearly: none may stand in a split."""
    some = gold.defects.get("test_leak", [])
    return _share("test_leak", some, [d["line"] for d in some if d["line"] in outcome.rows], 1.0)


def score_foreign(gold: Gold, outcome: Outcome) -> Score:
    """Rows in another language; precision is the share of clean rows that were not called foreign."""
    some = gold.defects.get("foreign_language", [])
    missed = [d["line"] for d in some if "wrong_language" not in outcome.reasons(d["line"])]
    clean = gold.clean
    wrong = sum(1 for line in clean if "wrong_language" in outcome.reasons(line))
    return _share("foreign_language", some, missed, 0.95, 1 - wrong / len(clean) if clean else None, 0.995)


def score_flips(gold: Gold, outcome: Outcome) -> Score:
    """Flipped labels: average precision of the ranking, over the rows that were kept.

    Copies under another label are wrong as well, but no flips: they count neither as hit nor as miss.
    """
    kept = {d["line"] for d in gold.defects.get("label_flip", []) if d["line"] in outcome.rows}
    skip = {d["line"] for d in gold.defects.get("conflicting_duplicate", [])}
    skip |= {gold.line_of[d["of"]] for d in gold.defects.get("conflicting_duplicate", []) if d["of"] in gold.line_of}
    ranking = [line for line in outcome.ranking if line not in skip - kept]
    value = average_precision(ranking, kept)
    return Score("label_flip (average precision)", len(kept), value if kept else None, 0.85)


def average_precision(ranking: list[int], wanted: set[int]) -> float:
    """Mean of the precision at the rank of each wanted line; one that is not ranked counts 0."""
    hits, total = 0, 0.0
    for rank, line in enumerate(ranking, 1):
        if line in wanted:
            hits += 1
            total += hits / rank
    return total / len(wanted) if wanted else 0.0


def score_account(gold: Gold, outcome: Outcome) -> Score:
    """Nothing is lost: every physical line stands in a split or among the rejects, and in one of them alone."""
    two = {d["line"] for d in gold.defects.get("broken_json", [])}  # two objects on a line may go two ways
    last = gold.lines if gold.texts.get(gold.lines) else gold.lines - 1  # a file ends with a line break
    lost = [n for n in range(1, last + 1) if n not in two and (n in outcome.rows) == (n in outcome.rejects)]
    return Score("lines accounted for", last, 1 - len(lost) / last if last else None, 1.0, missed=tuple(lost))


def _share(
    kind: str,
    some: Defects,
    missed: list[int],
    goal: float | None,
    precision: float | None = None,
    precision_goal: float | None = None,
) -> Score:
    recall = 1 - len(missed) / len(some) if some else None
    return Score(kind, len(some), recall, goal, precision, precision_goal, tuple(missed))


def score_all(gold: Gold, outcome: Outcome) -> list[Score]:
    """Every score that the gold has cases for."""
    by_reason: dict[str, float | None] = {
        "broken_json": 1.0, "wrong_type": 1.0, "missing_field": 1.0, "empty_output": 1.0, "over_long": 1.0, "blank_line": 1.0,
        "lone_surrogate": 1.0, "role_order": 1.0, "unknown_role": None, "no_final_assistant": 1.0, "tool_call_unanswered": 1.0,
        "bad_tool_arguments": 1.0, "error_output": None, "truncated_output": None,
    }  # fmt: skip
    scores = [
        score_account(gold, outcome),
        score_copies(gold, outcome, "exact_duplicate", 1.0, 0.995),
        score_copies(gold, outcome, "near_duplicate", 0.95, None),
        score_personal(gold, outcome),
        score_lookalikes(gold, outcome),
        score_repairs(gold, outcome, "mojibake", "encoding", 0.97),
        score_lost_characters(gold, outcome),
        score_repairs(gold, outcome, "html_entities", "html_entities", 1.0),
        score_repairs(gold, outcome, "invisible_chars", "invisible_characters", 1.0),
        score_special_tokens(gold, outcome),
        *(score_reasons(gold, outcome, kind, goal) for kind, goal in by_reason.items()),
        score_leaks(gold, outcome),
        score_foreign(gold, outcome),
        score_flips(gold, outcome),
    ]
    return [score for score in scores if score.n]


# --- the command ---------------------------------------------------------------------------------


def score_mojibake(cases: Path, out: Path) -> list[Score]:
    """Texts that must read as gold says, and right ones that must not change, each a row of its own.

    Those that ftfy's authors hold to be beyond it are told without a goal.
    """
    rows = list(_records(cases))
    out.mkdir(parents=True, exist_ok=True)
    texts = out.with_suffix(".jsonl")
    texts.write_text("".join(json.dumps({"text": row["original"]}) + "\n" for row in rows), encoding="utf-8")
    prepare(texts, out, ENCODING_ALONE)
    read = read_outcome(out, texts.name)
    groups: dict[str, list[int]] = defaultdict(list)
    for line, row in enumerate(rows, 1):
        row["wanted"] = row.get("fixed-encoding", row["fixed"])
        kind = "right texts left alone" if row["original"] == row["wanted"] else "mojibake repaired exactly"
        groups[kind if row.get("expect", "pass") == "pass" else f"{kind}, beyond ftfy"].append(line)
    scores = []
    for kind, lines in sorted(groups.items()):
        same: Callable[[str], str] = str if "right" in kind else plain  # right ones stay as they are, byte for byte
        missed = [n for n in lines if same(rows[n - 1]["wanted"]) not in map(same, read.texts(n))]
        goal = None if "beyond" in kind else 1.0 if "right" in kind else 0.97
        scores.append(Score(kind, len(lines), 1 - len(missed) / len(lines), goal, missed=tuple(missed)))
    return scores


def prepare(source: Path, out: Path, settings: Iterable[str]) -> None:
    """Run the command as a user would; a data set this broken needs the limit on rejects lifted."""
    command = [
        sys.executable,
        "-m",
        "tuneloop",
        "prepare",
        str(source),
        "--out",
        str(out),
        "allow_rejects=1",
        *settings,
    ]
    print("$", " ".join(["tuneloop", *command[3:]]), file=sys.stderr, flush=True)
    done = subprocess.run(
        [*command, "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in (0, 1) or not (out / "dataset.json").is_file():
        sys.exit(done.stderr)


def table(name: str, scores: Iterable[Score], *, lines: int = 5) -> str:
    """Markdown: one line a score, with the first lines that were missed."""
    show: Callable[[float | None], str] = lambda value: "" if value is None else f"{value:.1%}"  # noqa: E731
    rows = [
        f"| {name} | n | recall | goal | precision | goal | met | missed lines |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for s in scores:
        met = {True: "yes", False: "NO", None: ""}[s.met]
        missed = ", ".join(map(str, s.missed[:lines])) + (" …" if len(s.missed) > lines else "")
        cells = [s.kind, str(s.n), show(s.recall), show(s.goal), show(s.precision), show(s.precision_goal), met, missed]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*JOBS, *MOJIBAKE], help=f"of {', '.join([*JOBS, *MOJIBAKE])}")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, help="keep the data sets here; default: a folder that is removed")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a further setting of prepare")
    options = parser.parse_args()
    missing = [
        f
        for f in (
            *(f"{n}/{'gold.json' if n in JOBS else 'cases.jsonl'}" for n in options.names),
            "banking77/test.jsonl",
        )
        if not (options.data / f).is_file()
    ]
    if missing:
        sys.exit(f"{missing[0]} is not under {options.data}: give the folder of the data sets with --data")
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.names:
            folder, out = options.data / name, (options.out or Path(scratch)) / name
            if name in MOJIBAKE:
                scores = score_mojibake(folder / "cases.jsonl", out)
            else:
                prepare(folder / "messy.jsonl", out, [s.format(data=options.data) for s in JOBS[name]] + options.set)
                scores = score_all(read_gold(folder), read_outcome(out, "messy.jsonl"))
            print(table(name, scores), end="\n\n", flush=True)
            good &= all(score.met is not False for score in scores)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
