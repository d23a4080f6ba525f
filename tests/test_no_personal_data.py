"""Values of all kinds are planted in every place of the sources; none stands in any file that a whole run and the commands after it write, in any encoding."""

from __future__ import annotations

import base64
import gzip
import html
import json
import random
import string
import urllib.parse
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Commands

THINGS = ["order", "parcel", "invoice", "box", "lamp", "kettle", "spoon", "voucher", "login", "account"]
PLACES = ["Oslo", "Bergen", "Turin", "Ghent", "Porto", "Graz", "Lyon", "Riga", "Cork", "Delft"]
LABELS = ["late", "refund", "praise"]


def luhn(digits: str) -> str:
    total = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(reversed(digits)))
    return digits + str(-total % 10)


def iban(number: int) -> str:
    body = f"37040044{number:010d}"
    check = 98 - int(body + "131400") % 97
    return f"DE{check:02d}{body}"


def letters(number: int) -> str:
    """A random key that happens to have no digit."""
    return "".join(random.Random(number).choices(string.ascii_letters, k=40))


# A text around the value, and the value; each number makes another one.
KINDS = [
    lambda n: ("write to {}", f"mia.berg{n}@mail-{n}.example.org"),
    lambda n: ("call {}", f"+49 30 2312{n:04d}"),
    lambda n: ("ring {} now", f"0871234{n:04d}"),
    lambda n: ("it is {} here", f"0400 12{n % 10} {n:03d}"),
    lambda n: ("on the card {}", luhn(f"41111111111{n:04d}")),
    lambda n: ("from {}", iban(7000 + n)),
    lambda n: ("SSN {}", f"5{n % 90 + 10:02d}-{n % 80 + 10}-{n + 1000}"),
    lambda n: ("with {}", f"sk-proj-{'aZbYcXdWeV'}{n:04d}KqLrMsNtOu"),
    lambda n: ("AWS {}", f"AKIA{n:04d}ABCDWXYZQRST"),
    lambda n: ("host {} fails", f"93.184.{n % 200 + 17}.{n % 150 + 101}"),
    lambda n: ("device {}", f"3c:22:fb:{n % 256:02x}:{n % 199 + 16:02x}:a{n % 10}"),
    lambda n: ("password: {}", f"Wq!{n:04d}zTr$"),
    lambda n: ("born on {}", f"{n % 28 + 1} March {1950 + n % 49}"),
    lambda n: ("I live at {}", f"{n + 100} Larkspur Street"),
    lambda n: ("see {}", f"https://bob{n}:pw{n:04d}x@host.example.com/"),
    lambda n: ("txt WIN to {}", f"8{n + 1234}"),
    lambda n: ("ring {} today", f"(415) 555-{n:04d}"),
    lambda n: ("my number is {}", f"020 7946 {n:04d}"),
    lambda n: ("call {}", f"+44 (0)20 7946 {n:04d}"),
    lambda n: ("call {}", f"0044 20 7947 {n:04d}"),
    lambda n: ("call {} free", f"0906170{n:04d}"),
    lambda n: ("Tel. {}", f"030/2319{n:04d}"),
    lambda n: ("mobile {}", f"+1-415-556-{n:04d}"),
    lambda n: ("with {}", f"sk-{letters(n)}"),
    lambda n: ("host {} fails", f"2001:db8:85a3::8a2e:370:{n + 4096:04x}"),
]  # fmt: skip


class Planted:
    """Hands out texts with values, and remembers these."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        number = len(self.values)
        frame, value = KINDS[number % len(KINDS)](number)
        value = value.removeprefix("https://").partition("@")[0] if "://" in value else value
        text = KINDS[number % len(KINDS)](number)[1]
        self.values[value] = path
        return frame.format(text)


def sources(folder: Path) -> Planted:
    """Three sources with values in texts, answers, labels, further columns, keys, rejected, doubled and broken records."""
    plant, rows = Planted(), []
    for i in range(150):
        thing, path = THINGS[i % 10], PLACES[(i * 7 + i // 10) % 10]
        row: dict[str, Any] = {
            "text": f"Case {i}: the {thing} sent to {path} on day {i * 13 % 29}, where is number {i * 37 % 101}?",
            "label": LABELS[i % 3],
            "note": f"{thing} in {path}",
        }
        if i < 48:
            row["text"] += " " + plant("text")
        elif i < 64:
            row["note"] += ", " + plant("answer")
        elif i < 80:
            row["comment"] = plant("further column")
        elif i < 90:
            row["agent"] = {"who": {"said": [plant("nested"), 1]}}
        elif i < 94:
            row["tags"] = ["new", plant("list")]
        elif i < 96:
            row["label"] = plant("label")
        elif i < 100:
            row["text"] += " " + plant("html").replace("@", "&#64;").replace("+", "&#43;")
        rows.append(row)
    rows += [rows[3], {**rows[5], "text": rows[5]["text"].replace("where", "whre")}]  # a copy, and nearly one
    rows += [{"text": "", "label": "late", "note": plant("empty text")}, {"text": None, "label": plant("wrong type")}]
    rows += [
        {"label": "late", "comment": plant("no text")},
        {"text": plant("too long") + " kettle" * 3000, "label": "late"},
    ]
    rows += [{"text": f"Case: the lamp {plant('unknown label')}", "label": None, plant("key"): 1}]
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)]
    lines += ['{"text": "cut off: ' + plant("broken line"), plant("no JSON at all")]
    (folder / "cases.jsonl").write_text("\n".join(lines) + "\n")
    with gzip.open(folder / "more.csv.gz", "wt") as file:
        file.write("text,label,note,phone\n")
        for i in range(12):
            file.write(f'"Case {200 + i}: the cup sent to Graz, {plant("csv")}?",{LABELS[i % 3]},cup,0151234{i:04d}\n')
    return plant


def chats(folder: Path) -> Planted:
    """Conversations with values in every kind of turn, in calls, tools and further columns, and in records that are rejected."""
    plant, rows = Planted(), []
    for i in range(120):
        who = plant("arguments of a call") if i % 4 == 0 else "x"
        function = {"name": "look_up", "arguments": json.dumps({"who": who, "n": i})}
        about = plant("description of a tool") if i == 0 else "looks up"
        names = {"type": "object", "properties": {"who": {"type": "string"}, "n": {"type": "integer"}}}
        turns: list[dict[str, Any]] = [
            {"role": "system", "content": f"Help customers. {plant('system turn') if i % 5 == 0 else ''}"},
            {"role": "user", "content": f"case {i} {THINGS[i % 10]} {PLACES[i * 7 % 10]}: {plant('user turn') if i % 3 == 0 else 'where'}"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
            {"role": "tool", "content": json.dumps({"found": plant("result") if i % 6 == 0 else 1}), "tool_call_id": "1"},
            {"role": "assistant", "content": f"It is at {i}. {plant('answer') if i % 7 == 0 else ''}"},
        ]  # fmt: skip
        row = {
            "messages": turns,
            "tools": [{"type": "function", "function": {"name": "look_up", "description": about, "parameters": names}}],
        }
        rows.append(row | ({"customer": plant("further column")} if i % 9 == 0 else {}))
    rows.append(
        {
            "messages": [
                {"role": "assistant", "content": plant("wrong order")},
                {"role": "system", "content": plant("late system turn")},
            ]
        }
    )
    rows.append({"messages": f"no list {plant('messages')}"})
    rows.append({"messages": [{"role": plant("role"), "content": "x"}]})
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return plant


def encodings(value: str) -> Iterator[bytes]:
    """A value as files may hold it."""
    for text in {
        value,
        json.dumps(value)[1:-1],
        html.escape(value),
        urllib.parse.quote(value),
        urllib.parse.quote_plus(value),
    }:
        yield text.encode()
        yield text.encode("utf-16-le")
    for skip in range(3):  # in Base64 with any number of bytes before it
        coded = base64.b64encode(b"\0" * skip + value.encode()).decode()
        yield coded[(skip * 8 + 5) // 6 : len(coded) - 4].encode()


def contents(path: Path) -> Iterator[bytes]:
    """What a file holds, and what is packed in it."""
    data = path.read_bytes()
    yield data
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    if data[:4] == b"\x28\xb5\x2f\xfd":
        from backports import zstd

        yield zstd.decompress(data)
    if data[:4] == b"PAR1":
        import pyarrow.parquet

        yield json.dumps(pyarrow.parquet.read_table(path).to_pylist(), default=str, ensure_ascii=False).encode()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            for name in packed.namelist():
                yield packed.read(name)


def trigrams(data: bytes) -> Any:
    """Every three bytes that follow each other, as numbers."""
    item = np.frombuffer(data, np.uint8).astype(np.uint32)
    return item[:-2] | item[1:-1] << 8 | item[2:] << 16


class Forms:
    """The forms of all values, looked for in megabytes: only those of which every three bytes stand in the data can stand there."""

    def __init__(self, values: Iterable[str]) -> None:
        every = [(value, form) for value in values for form in encodings(value)]
        self.short = [item for item in every if len(item[1]) < 3]
        self.forms = [item for item in every if len(item[1]) >= 3]
        parts = [trigrams(form) for _, form in self.forms]
        self.trigrams, self.starts = np.concatenate(parts), np.cumsum([0, *map(len, parts[:-1])])
        self.seen = np.zeros(1 << 24, bool)

    def values_in(self, data: bytes) -> list[str]:
        """The values of which a form stands in the data."""
        there = trigrams(data) if len(data) > 2 else np.zeros(0, np.uint32)
        self.seen[there] = True
        possible = np.logical_and.reduceat(self.seen[self.trigrams], self.starts).nonzero()[0]
        self.seen[there] = False
        found = [*(self.forms[i] for i in possible), *self.short]
        return list(dict.fromkeys(value for value, form in found if form in data))


def leaks(folder: Path, values: dict[str, str], given: set[Path]) -> list[str]:
    """Each value that stands in a file or in its name, with its place in the sources."""
    wanted = Forms(values)
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path not in given):
        for data in contents(path):
            found += [f"{path.relative_to(folder)}: {value} ({values[value]})" for value in wanted.values_in(data)]
        found += [f"name of {path}: {value}" for value in values if value in path.name]
    return found


@pytest.mark.parametrize("mode", ["placeholder", "pseudonym"])
@pytest.mark.parametrize("made", [sources, chats])
def test_prepare_writes_and_says_no_planted_value(
    made: Callable[[Path], Planted], mode: str, tiny_llama: Path, cli: Any, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    plant = made(given)
    assert len(plant.values) >= 100
    done = cli(
        "prepare", "given", "--out", "out", "--model", str(tiny_llama), "--show", "3", f"data.personal.mode={mode}", "data.allow_errors=true",
        env={"TUNELOOP_SECRET": "a secret for this test"},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    (tmp_path / "said.txt").write_text(done.stdout + done.stderr)
    found = leaks(tmp_path, plant.values, set(given.iterdir()))
    assert not found, f"{len(found)} leaks\n" + "\n".join(found[:60])
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_scan_finds_what_is_hidden_in_a_file(tmp_path: Path) -> None:
    value = "mia.berg7+x@mail.example.org"
    (tmp_path / "plain.txt").write_text(f"to {value}.")
    (tmp_path / "page.html").write_text(html.escape("<" + value + ">"))
    (tmp_path / "query.txt").write_text("?q=" + urllib.parse.quote(value))
    (tmp_path / "coded.txt").write_bytes(base64.b64encode(f"xy {value} z".encode()))
    (tmp_path / "wide.bin").write_bytes(value.encode("utf-16-le"))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(value.encode()))
    with zipfile.ZipFile(tmp_path / "folder.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("inner.txt", value * 9)
    (tmp_path / "none.txt").write_text("mia.berg8@mail.example.org")
    assert {line.partition(":")[0] for line in leaks(tmp_path, {value: "here"}, set())} == {
        "plain.txt", "page.html", "query.txt", "coded.txt", "wide.bin", "packed.gz", "folder.zip",
    }  # fmt: skip


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("made", [sources, chats])
def test_a_trained_run_and_the_commands_after_it_write_no_planted_value(
    made: Callable[[Path], Planted], tiny_llama: Path, commands_in_one_process: Commands, tmp_path: Path
) -> None:
    """Splits, pages, samples, metrics, checkpoints, adapter, artifact, review, MLflow's store, caches and what is said."""
    pytest.importorskip("mlflow")
    given = tmp_path / "given"
    given.mkdir()
    plant = made(given)
    raw = str(next(given.glob("*.jsonl")).relative_to(tmp_path))
    places = {"HOME": "home", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config", "TUNELOOP_CACHE": "cache/own"}
    store = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "TUNELOOP_LEDGER": str(tmp_path / "ledger.jsonl"),
        **{name: str(tmp_path / path) for name, path in places.items()},
    }
    trained = ["output_dir=run", "train.epochs=1", "train.rank=4", "evaluate.bootstrap=200", "data.allow_errors=true"]
    trained.append("evaluate.max_new_tokens=8")
    commands = [
        [
            "run",
            "given",
            f"model={tiny_llama}",
            *trained,
            "track.report_to=mlflow,tensorboard",
            "evaluate.consistency=2",
        ],
        ["evaluate", "run", "--split", "val"],
        ["evaluate", "run", "--data", raw, "--out", "raw-rows"],
        ["compare", "run", "run:zero-shot"],
        ["gate", "run", "--init", "--suite", "suite.yaml"],
        ["export", "run", "--out", "artifact"],
        ["compare", "run"],
        ["review", "run", "--no-serve"],
        ["data", "check", "run/dataset", "--against", raw],
        ["advise", raw, "--model", str(tiny_llama), "--out", "advice", "--html", "advice.html"],
        ["predict", "run", raw, "--out", "predicted.jsonl"],
    ]
    done = commands_in_one_process(commands, store)
    assert done.returncode == 0, done.stderr[-3000:]
    (tmp_path / "said.txt").write_text(done.stdout + done.stderr)
    for name in (
        "run/dataset/train.jsonl", "run/metrics.jsonl", "run/plan.json", "run/adapter/adapter_model.safetensors", "run/report.html",
        "run/samples.jsonl", "run/eval-val/samples.jsonl", "raw-rows/report.html", "artifact/artifact.json", "mlflow.db", "advice.html",
        "ledger.jsonl", "run/rating/review.json",
    ):  # fmt: skip
        assert (tmp_path / name).is_file(), name
    # The columns of the rows that are asked about are given back as they came, as the docs say.
    kept = {*given.iterdir(), tmp_path / "predicted.jsonl"}
    # A short code's five digits stand in a tokenizer and in decimals by chance: it is looked for with the word before it.
    values = {value if len(value) > 6 else f"to {value}": path for value, path in plant.values.items()}
    found = leaks(tmp_path, values, kept)
    assert not found, f"{len(found)} leaks\n" + "\n".join(found[:60])
