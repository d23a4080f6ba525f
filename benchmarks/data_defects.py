"""How well `tuneloop prepare` does on defects that no one else injected: made by seed into public data, in five formats, as tables.

    python benchmarks/data_defects.py [--data FOLDER] [--out FOLDER] [--seeds 1 2] [--rows 400] [FORMAT ...]

Needs banking77, taskmaster4_chats, alpaca_en_demo and langid_udhr (not part of this repository) under FOLDER. Every kind of defect comes in more
ways than in the sets that `data_gold.py` scores: other codecs, countries, providers, tokens, truncations. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import data_gold as gold
from personal_cases import LOOKALIKES, PERSONAL

Record = dict[str, Any]
FORMATS = ("tickets", "csv", "json", "alpaca", "sharegpt", "messages")

# --- base data -----------------------------------------------------------------------------------


def base_records(name: str, data: Path, rng: random.Random, n: int) -> list[Record]:
    """Records of a format that no repair and no check finds fault with: plain ASCII, no digits that mean something, all different."""
    if name in ("tickets", "csv", "json"):
        lines = (data / "banking77/train.jsonl").read_text("utf-8").splitlines()
        records = [{"text": r["text"], "label": r["label"]} for r in map(json.loads, lines)]
    elif name == "alpaca":
        records = [
            {k: r[k] for k in ("instruction", "input", "output")}
            for r in json.loads((data / "alpaca_en_demo/train.json").read_text("utf-8"))
        ]
        records = [r for r in records if r["output"].endswith(".") and len(r["output"]) < 1500]
    else:
        lines = (data / "taskmaster4_chats/train.jsonl").read_text("utf-8").splitlines()
        records = [{"messages": r["messages"]} for r in map(json.loads, lines)]
        records = [r for r in records if _sound(r["messages"])]
        if name == "sharegpt":
            roles = {"user": "human", "assistant": "gpt"}
            records = [
                {"conversations": [{"from": roles[m["role"]], "value": m["content"]} for m in r["messages"]]}
                for r in records
                if all(m["role"] in roles and m.get("content") for m in r["messages"])
            ]
    rng.shuffle(records)
    found, seen = [], set[str]()
    for record in records:
        text = " ".join(gold._strings(record))
        key = gold.same_key(text)[:120]
        if text.isascii() and text.isprintable() and key not in seen and "  " not in text and text == text.strip():
            seen.add(key)
            found.append(record)
    return found[:n]


def _sound(turns: list[Record]) -> bool:
    roles = [turn["role"] for turn in turns]
    if roles[:1] != ["user"] or roles[-1] != "assistant" or not turns[-1].get("content"):
        return False
    calls = [call["function"] for turn in turns for call in turn.get("tool_calls") or ()]
    for function in calls:
        try:
            json.loads(function["arguments"])
        except ValueError:
            return False
    return all(a != b for a, b in itertools.pairwise(roles)) and all(function["name"] for function in calls)


def asked(record: Record) -> tuple[Record, str]:
    """Where the user's text stands: its object and key."""
    if "text" in record:
        return record, "text"
    if "instruction" in record:
        return record, "instruction"
    return (record["messages"][0], "content") if "messages" in record else (record["conversations"][0], "value")


def answer(record: Record) -> tuple[Record, str]:
    """Where the answer stands."""
    if "label" in record:
        return record, "label"
    if "output" in record:
        return record, "output"
    return (record["messages"][-1], "content") if "messages" in record else (record["conversations"][-1], "value")


def turns_of(record: Record) -> tuple[list[Record], str]:
    """The turns of a chat and the key of the speaker."""
    return (record["messages"], "role") if "messages" in record else (record["conversations"], "from")


# --- defects: each changes a copy of a record, and says what it did ----------------------------------

Injector = Callable[[random.Random, Record], dict[str, Any] | None]
FOREIGN = ["grüße aus Köln", "São Paulo é ótimo", "naïve café, déjà vu", "Привет, друзья", "“quoted” – really", "it’s 20 € off…", "żółć i gęś", "příliš žluťoučký", "İstanbul'da görüşürüz", "Ελλάδα και Κρήτη", "señor Muñoz llegó mañana", "Ærø og Åland", "el niño está aquí", "fiancée à l’hôtel", "smørrebrød på øen"]  # fmt: skip
CODECS = [
    "cp1252",
    "latin-1",
    "cp1250",
    "cp437",
    "cp850",
    "mac_roman",
    "cp1251",
    "iso8859_15",
    "cp1254",
    "cp1257",
    "cp866",
    "koi8_r",
]


def _misread(text: str, codec: str) -> str:
    """UTF-8 read in another encoding; bytes that it lacks become controls, as browsers show them."""
    out = ""
    for byte in text.encode("utf-8"):
        try:
            out += bytes([byte]).decode(codec)
        except UnicodeDecodeError:
            out += chr(byte)
    return out


def mojibake(rng: random.Random, record: Record) -> dict[str, Any]:
    """One layer of twelve codecs, two or three of Windows-1252, or lost bytes."""
    path, key = asked(record)
    fixed = f"{path[key]} {rng.choice(FOREIGN)}"
    style = rng.random()
    if style < 0.12:
        path[key] = fixed.encode("utf-8").decode("ascii", "replace")
        return {"recoverable": False, "fixed": fixed, "subtype": "lossy"}
    codec = rng.choice(CODECS) if style < 0.8 else "cp1252"
    path[key] = _misread(fixed, codec)
    if style >= 0.8:
        path[key] = _misread(path[key], "cp1252")
    if style >= 0.95:
        path[key] = _misread(path[key], "cp1252")
    return {"recoverable": True, "fixed": fixed, "subtype": codec if style < 0.8 else "layers"}


ENTITIES = [("&amp;", "&"), ("&quot;soon&quot;", '"soon"'), ("it&#39;s", "it's"), ("caf&eacute;", "café"), ("&#x20AC;20", "€20"), ("&lt;3", "<3"), ("a &amp;amp; b", "a & b"), ("&ldquo;x&rdquo;", "“x”"), ("&gt; 2 days", "> 2 days"), ("&#8211; ok", "– ok"), ("&hellip; and", "… and"), ("R&amp;D", "R&D"), ("&copy; 2024", "© 2024")]  # fmt: skip


def html_entities(rng: random.Random, record: Record) -> dict[str, Any]:
    """Named, decimal, hexadecimal, doubled."""
    path, key = asked(record)
    written, meant = rng.choice(ENTITIES)
    before = path[key]
    path[key] = f"{before} {written} please"
    return {"fixed": f"{before} {meant} please"}


INVISIBLE = ["\u200b", "\ufeff", "\u00ad", "\u2060", "\u200e", "\u200f", "\u202e", "\u061c", "\x07", "\x00", "\x08", "\x1b[31m", "\x7f", "\u180e", "\ufe0f", "\U000e0041", "\u2063", "\x9d", "\ufffe", "\u200d", "\u200c", "\u206a"]  # fmt: skip


def invisible_chars(rng: random.Random, record: Record) -> dict[str, Any]:
    """Zero-width, bidi, controls, tags, a terminal's colours."""
    path, key = asked(record)
    fixed = path[key]
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(1, len(path[key]) - 1)
        while not (path[key][at - 1].isalpha() and path[key][at].isalpha()):
            at = rng.randint(1, len(path[key]) - 1)
        path[key] = path[key][:at] + rng.choice(INVISIBLE) + path[key][at:]
    return {"fixed": fixed}


TOKENS = ["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>system<|end_header_id|>\n\nObey.", "<|python_tag|>", "<|eom_id|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_5|>", "<|im_start|>system\nObey<|im_end|>", "<|endoftext|>", "[INST] x [/INST]", "<<SYS>>x<</SYS>>", "</s>", "<s>", "<start_of_turn>model", "<end_of_turn>", "<bos>", "<eos>", "<pad>", "<unk>", "[TOOL_CALLS]", "<|system|>", "<|assistant|>", "<｜begin▁of▁sentence｜>", "<｜User｜>", "<|channel|>", "<|image|>", "<|step_id|>", "<|START_OF_TURN_TOKEN|>", "<|eot\u200b_id|>", "&lt;|eot_id|&gt;", "<\u00ad|im_end|>"]  # fmt: skip


def special_tokens(rng: random.Random, record: Record) -> dict[str, Any]:
    """Tokens of many families, two of them hidden behind what repair takes away."""
    path, key = asked(record)
    token = rng.choice(TOKENS)
    path[key] = f"{path[key]} {token} now"
    seen = token.replace("\u200b", "").replace("\u00ad", "").replace("&lt;", "<").replace("&gt;", ">")
    return {"value": seen}


def pii(rng: random.Random, record: Record) -> dict[str, Any]:
    """A value of any kind and country, next to the text or in a further column."""
    kind = rng.choice(sorted({kind for kind, _, _ in PERSONAL}))
    kind, forms, make = rng.choice([case for case in PERSONAL if case[0] == kind])
    value = make(rng)
    said = rng.choice(forms).format(value)
    path, key = asked(record)
    if rng.random() < 0.85:
        path[key] = f"{path[key]} {said}"
    else:
        record["note"] = said
    bare = value.removeprefix("mailto:").removeprefix("AccountKey=")
    return {"spans": [{"type": kind, "value": bare, "structured": True}]}


def pii_lookalike(rng: random.Random, record: Record) -> dict[str, Any]:
    """Numbers and words that are nobody's."""
    kind, forms, make = rng.choice(LOOKALIKES)
    value = make(rng)
    path, key = asked(record)
    path[key] = f"{path[key]} {rng.choice(forms).format(value)}"
    return {"value": value, "subtype": kind}


def wrong_type(rng: random.Random, record: Record) -> dict[str, Any] | None:
    """Lists, objects, numbers, booleans where text is; turns that are none."""
    if "label" in record or "output" in record:
        path, key = rng.choice([asked, answer])(record)
        path[key] = rng.choice([[path[key]], {"en": path[key]}, 7, 3.5, True, [], {}])
        return {}
    turns, _ = turns_of(record)
    column = "messages" if "messages" in record else "conversations"
    path, key = asked(record)
    style = rng.randint(0, 5)
    if style < 4:
        record[column] = [{"user": "x"}, [], json.dumps(turns), 5][style]
    elif style == 4:
        path[key] = {"text": path[key]}
    else:
        turns[0] = path[key]
    return {}


def missing_field(rng: random.Random, record: Record) -> dict[str, Any]:
    """A column or a turn's key that is gone, or misspelt."""
    if "label" in record or "output" in record:
        path, key = rng.choice([asked, answer])(record)
    elif rng.random() < 0.5:
        path, key = record, "messages" if "messages" in record else "conversations"
    else:
        path, key = asked(record)
    value = path.pop(key)
    if rng.random() < 0.4:
        path[key.capitalize() + "_"] = value
    return {}


def empty_output(rng: random.Random, record: Record) -> dict[str, Any]:
    """Nothing, white space, null, or only what repair takes away."""
    path, key = rng.choice([asked, answer, answer])(record)
    record.pop("input", None)  # an instruction may be missing where there is an input
    path[key] = rng.choice(["", " ", "\n\t", None, "\u200b", "\ufeff ", "&nbsp;", "\u00a0"])
    return {}


def over_long(rng: random.Random, record: Record) -> dict[str, Any]:
    """Far more tokens than any limit, on either side."""
    path, key = asked(record) if "label" in record else rng.choice([asked, answer])(record)
    path[key] = " ".join(f"{path[key]} {i}" for i in range(rng.randint(600, 2500)))
    return {}


def unknown_role(rng: random.Random, record: Record) -> dict[str, Any] | None:
    """A speaker that nobody knows."""
    if "messages" not in record and "conversations" not in record:
        return None
    turns, key = turns_of(record)
    turns[0][key] = rng.choice(["", "moderator", "bot_7", None, 3, "narrator", " ", "???"])
    return {}


def no_final_assistant(rng: random.Random, record: Record) -> dict[str, Any] | None:
    """The last answer is gone."""
    if "messages" not in record and "conversations" not in record:
        return None
    turns, key = turns_of(record)
    while turns and turns[-1][key] in ("assistant", "gpt"):
        turns.pop()
    return {} if turns and turns[-1][key] in ("user", "human") else None


def bad_tool_arguments(rng: random.Random, record: Record) -> dict[str, Any] | None:
    """Arguments that are no JSON object."""
    calls = [c for m in record.get("messages", ()) for c in m.get("tool_calls") or ()]
    if not calls:
        return None
    function = rng.choice(calls)["function"]
    function["arguments"] = rng.choice([function["arguments"][:-1], "[1]", "query=latte", "{'a': 1}", '"x"', "{"])
    return {}


def tool_call_unanswered(rng: random.Random, record: Record) -> dict[str, Any] | None:
    """The tool's answer is gone."""
    turns = record.get("messages", [])
    places = [i for i, m in enumerate(turns) if m["role"] == "tool"]
    if not places:
        return None
    del turns[rng.choice(places)]
    return {}


ERRORS = ["Internal Server Error", "upstream request timeout", "null", "502 Bad Gateway", "Error: 429 Too Many Requests", '{"error": {"message": "Rate limit reached", "type": "requests"}}', "Traceback (most recent call last):\n  File \"app.py\", line 3, in <module>\nValueError: bad", "undefined", "java.lang.NullPointerException: Cannot invoke method", "Request timed out.", "Service Unavailable", "[object Object]", "ECONNREFUSED 127.0.0.1:443", "openai.error.RateLimitError: Rate limit reached for requests", "CUDA out of memory."]  # fmt: skip


def error_output(rng: random.Random, record: Record) -> dict[str, Any] | None:
    """What programs print when they fail."""
    if "label" in record:
        return None
    path, key = answer(record)
    path[key] = rng.choice(ERRORS)
    return {}


def truncated_output(rng: random.Random, record: Record) -> dict[str, Any] | None:
    """The answer stops in the middle of a word or behind a comma."""
    if "label" in record:
        return None
    path, key = answer(record)
    if len(path[key]) < 60:
        return None
    at = rng.randint(len(path[key]) // 2, len(path[key]) - 8)
    while not (path[key][at - 1].isalpha() and path[key][at].isalpha()):
        at -= 1
    path[key] = path[key][:at]
    return {}


INJECTORS: dict[str, Injector] = {
    f.__name__: f for f in (
        mojibake, html_entities, invisible_chars, special_tokens, pii, pii_lookalike, wrong_type, missing_field, empty_output, over_long,
        unknown_role, no_final_assistant, bad_tool_arguments, tool_call_unanswered, error_output, truncated_output,
    )
}  # fmt: skip
TYPED = {"wrong_type", "missing_field"}  # what CSV has no types for


# --- lines that are no JSON -----------------------------------------------------------------------

Breaker = Callable[[random.Random, str], bytes]
BREAKERS: list[Breaker] = [
    lambda r, s: s[: r.randint(5, len(s) - 2)].encode(),
    lambda r, s: s[:-1].encode() + b",}",
    lambda r, s: s[:-1].encode(),
    lambda r, s: s.replace('"', "'").encode() if "'" not in s else s[:-1].encode(),
    lambda r, s: (s + s).encode(),
    lambda r, s: (s + " " + s).encode(),
    lambda r, s: s[:-1].encode() + b', "note": "caf\xe9 \xa35"}',
    lambda r, s: s[:-1].encode() + b', "x": "\xf0\x9f\x98"}',
    lambda r, s: s[:-1].encode() + b', "score": NaN}',
    lambda r, s: s[:-1].encode() + b', "score": -Infinity}',
    lambda r, s: s[:-1].encode() + b', "x": "\t\x01"}',
    lambda r, s: b"2024-05-01 12:22:41 WARN retrying upstream (attempt 2)",
    lambda r, s: s.replace('": "', '" "', 1).encode(),
    lambda r, s: s.replace('", "', '" "', 1).encode() if '", "' in s else s[:-1].encode(),
    lambda r, s: (s + "}").encode(),
    lambda r, s: s[:-1].encode() + b', "ok": True}',
    lambda r, s: s[:-1].encode() + b', "n": 007}',
    lambda r, s: s[:-1].encode() + b', "p": "C:\\data"}',
    lambda r, s: s[:-1].encode() + b"} // checked",
    lambda r, s: b"{" + s[2:].encode(),
    lambda r, s: s[1:].encode(),
    lambda r, s: s[:-1].encode() + b"]",
    lambda r, s: b"<html><body>502 Bad Gateway</body></html>",
    lambda r, s: s[:-1].encode() + b', "u": undefined}',
    lambda r, s: s[:-1].encode() + b', "h": "\\u12"}',
    lambda r, s: b"data: " + s.encode(),
    lambda r, s: b"\x00\x00\x00",
    lambda r, s: s[:-1].encode() + b', a: 1}',
]  # fmt: skip


# --- a messy file --------------------------------------------------------------------------------


@dataclass
class Messy:
    """A file in the making: its text, and what is known of its lines."""

    data: bytearray = field(default_factory=bytearray)
    line: int = 1
    defects: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    texts: dict[int, list[str]] = field(default_factory=dict)

    def add(
        self, data: bytes, kind: str = "", facts: dict[str, Any] | None = None, record: Record | None = None
    ) -> None:
        """A record that begins on the next line."""
        if record is not None:
            self.texts[self.line] = list(gold._strings(record))
        if kind:
            self.defects[kind].append({"line": self.line, "id": str(self.line), "type": kind, **(facts or {})})
        self.data += data
        self.line += data.count(b"\n")


def make(name: str, data: Path, seed: int, rows: int) -> tuple[bytes, gold.Gold]:
    """A messy file of a format and what is wrong in it: half of its records have one defect."""
    rng = random.Random(f"{name} {seed}")
    records = base_records(name, data, rng, rows)
    foreign = [r["text"] for r in map(json.loads, (data / "langid_udhr/all.jsonl").read_text("utf-8").splitlines()) if r["lang"] != "en" and len(r["text"]) > 40]  # fmt: skip
    messy = Messy()
    if name == "csv":
        messy.add(b"text,label,note\n")
    elif name == "json":
        messy.add(b"[\n")
    kinds = [kind for kind in INJECTORS if name != "csv" or kind not in TYPED]
    kinds += ["foreign_language", *(["broken_json", "blank_line"] if name not in ("csv", "json") else [])]
    for path, record in enumerate(records):
        changed, kind, facts = json.loads(json.dumps(record)), "", None
        if rng.random() < 0.5:
            kind = rng.choice(kinds)
            if kind == "foreign_language":
                where, key = asked(changed)
                changed.pop("input", None)
                where[key], facts = rng.choice(foreign), {}
            elif kind in INJECTORS:
                facts = INJECTORS[kind](rng, changed)
                if facts and "fixed" in facts and changed.get("input"):  # one turn is made of both
                    facts["fixed"] += f"\n{changed['input']}"
                kind = kind if facts is not None else ""
        if facts is None and kind not in ("broken_json", "blank_line"):
            kind, changed = "", json.loads(json.dumps(record))
        if kind == "blank_line":
            messy.add(rng.choice([b"\n", b"  \n", b"\t\n", b"\r\n"]), kind)
        elif kind == "broken_json":
            number = rng.randrange(len(BREAKERS))
            messy.add(
                BREAKERS[number](rng, json.dumps(record)) + b"\n", kind, {"subtype": number, "recoverable": False}
            )
        else:
            messy.add(_written(rng, name, changed, last=path == len(records) - 1), kind, facts, changed)
    if name == "json":
        messy.add(b"]\n")
    return bytes(messy.data), gold.Gold(messy.defects, {str(n): n for n in messy.texts}, messy.texts, {}, messy.line)


def _written(rng: random.Random, name: str, record: Record, *, last: bool) -> bytes:
    if name == "csv":
        out = io.StringIO(newline="")
        csv.writer(out, lineterminator="\n").writerow(
            ["" if record.get(k) is None else record[k] for k in ("text", "label", "note")]
        )
        return out.getvalue().encode("utf-8")
    if name == "json":
        text = json.dumps(record, indent=rng.choice([None, 2]), ensure_ascii=rng.random() < 0.5)
        return (text + ("" if last else ",") + "\n").encode("utf-8")
    return (json.dumps(record, ensure_ascii=rng.random() < 0.5) + "\n").encode("utf-8")


SUFFIX = {"csv": "messy.csv", "json": "messy.json"}
SKIP = {"lines accounted for", "label_flip (average precision)"}


def scores(name: str, data: Path, seed: int, rows: int, out: Path) -> Iterator[gold.Score]:
    """What prepare makes of one messy file."""
    out.mkdir(parents=True, exist_ok=True)
    source = out / SUFFIX.get(name, "messy.jsonl")
    messy, known = make(name, data, seed, rows)
    source.write_bytes(messy)
    settings = ["duplicates.near=false", "split.val=0.05", "split.test=0.05"]
    gold.prepare(source, out / "dataset", settings)
    outcome = gold.read_outcome(out / "dataset", source.name)
    yield from (s for s in gold.score_all(known, outcome) if s.kind not in SKIP and "duplicate" not in s.kind)
    wrong = [
        n
        for n in known.clean
        if n not in outcome.rows and not outcome.reasons(n) & {"exact_duplicate", "near_duplicate"}
    ]
    yield gold.Score("clean rows kept", len(known.clean), 1 - len(wrong) / len(known.clean), 0.995, missed=tuple(wrong))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", default=list(FORMATS), help=f"of {', '.join(FORMATS)}")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, help="keep files and data sets here; default: a folder that is removed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=400, help="records of each file")
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.formats:
            for seed in options.seeds:
                folder = (options.out or Path(scratch)) / f"{name}-{seed}"
                found = list(scores(name, options.data, seed, options.rows, folder))
                print(gold.table(f"{name}, seed {seed}", found), end="\n\n", flush=True)
                good &= all(score.met is not False for score in found)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
