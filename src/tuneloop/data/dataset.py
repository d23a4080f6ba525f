"""A data set on disk: the splits, and `dataset.json`, which is written last and makes the folder complete.

Also the words of `rejects.jsonl` and `repairs.jsonl` and what each means, a fixed list for people and programs; and the
hashes by which rows, questions and data sets are the same.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import struct
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, inside, read_jsonl, sha256_file, write_jsonl
from tuneloop.core.foreign import fast_json
from tuneloop.data.config import NO_CONTENT, PrepareConfig
from tuneloop.data.sources.read import entry_of, find_files
from tuneloop.records.dataset import AGAIN, MANIFEST, Mix, SplitFile, read_manifest
from tuneloop.records.rows import Dataset, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"
Columns: TypeAlias = "Mapping[str, Array]"  # values by row, by the column's name

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)  # indices into SPLITS
UNDECIDED = -1  # of a row that no earlier data set holds
LEAK = -2  # of a row that belongs together with a test row, but may not be one

REASONS = {
    "bad_encoding": "bytes of a text or a table that are no UTF-8, or half of a surrogate pair",
    "bad_arguments": "the arguments of a tool call are no JSON object",
    "bad_turn_order": "turns in an order that no conversation has, such as an answer before any question",
    "blank_line": "an empty line between records; not counted as a defect",
    "broken_csv": "a quote that is not closed, or more cells than the header has",
    "broken_json": "not valid JSON (RFC 8259): the record, bytes that are no UTF-8, or JSON inside one of its columns",
    "conflicting_label": "the same text stands under another label or answer, and duplicates.conflicts drops such rows",
    "cut_reasoning": "an answer's reasoning (<think>) is never closed: the answer itself is missing",
    "cut_file": "the compressed file ends before its data does: everything after this line is missing",
    "empty_input": "no question: the text, the prompt or a user turn is empty",
    "empty_output": "nothing is answered: the label, the output or an assistant turn is empty",
    "error_output": "the answer is the message of a failed call, not an answer",
    "exact_duplicate": "equal to an earlier record up to Unicode form, white space and case; not counted as a defect",
    "forgotten": "removed on a person's request (tuneloop data forget)",
    "left_out": "left out on request, by a column's value (leave_out); not counted as a defect",
    "line_too_long": "one line or row of more than 4 MiB: skipped, not held in memory",
    "missing_field": "a column or key that the format needs is not there",
    "near_duplicate": "nearly equal to another record (duplicates.threshold); not counted as a defect",
    "no_answer": "the conversation does not end with the assistant's turn",
    "no_preference": "the chosen and the rejected answer are the same, or answer different prompts",
    "no_supervised_token": "nothing in the rendered row is trained on",
    "over_limit": "left out on request (limit_per_label); not counted as a defect",
    "personal_data": "holds personal data, and personal.mode is reject",
    "semantic_duplicate": "means the same as another record (duplicates.semantic); not counted as a defect",
    "split_leak": "the same as, or nearly, a row of the given or frozen test set: training on it spoils the test",
    "template_error": "the model's chat template can't render the conversation",
    "too_long": "more tokens than max_length",
    "truncated_output": "the logged response was cut off at a length limit, or its stream broke off",
    "unanswered_call": "a tool call that no tool turn answers before the conversation continues",
    "unknown_label": "a label outside data.labels",
    "unknown_role": "a turn of a speaker that no format knows",
    "wrong_language": "in another language than data.language",
    "wrong_type": "a value of another kind than the format needs: a record that is no object, a text that is a list",
}

HARMLESS = (  # don't count towards allow_rejects
    "blank_line", "exact_duplicate", "forgotten", "left_out", "near_duplicate", "over_limit", "semantic_duplicate",
    "split_leak",
)  # fmt: skip

REPAIRS = {
    "cut": "a row over max_length was cut (too_long=truncate)",
    "dropped_turn": "an empty system turn was left out",
    "encoding": "text that had been read in the wrong encoding (mojibake) was restored",
    "html_entities": "HTML entities became the characters that they mean",
    "json_syntax": "what JSON forbids was read (repair.json_syntax): raw control characters in strings, NaN, Infinity",
    "invisible_characters": "zero-width, control or soft-hyphen characters were removed",
    "merged_turns": "turns of one speaker in a row became one, joined by a line break",
    "patched": "an answer was corrected by `data.patch`",
    "pii": "personal data or a secret was replaced; `detail` names the kind, never the value",
    "special_tokens": "a model's control token inside a text was neutralised",
    "split": "a row over max_length became several (too_long=split); `meta` tells which part of which row",
    "trimmed": "white space around a label was removed",
    "unicode_form": "text was brought into Unicode normal form C",
    "unknown_role": "a name of a speaker that these data don't use otherwise was read as one of the known roles",
    "white_space": "line ends and exotic spaces were unified, white space at the ends removed",
}


def prepare_key(config: PrepareConfig, *, name: str, seed: int, model_fingerprint: str = "") -> str:
    """Hash of all that a prepared data set depends on; equal to the manifest's `key` when it need not be redone.

    `model_fingerprint`: what identifies the tokenizer and template that rows are measured with. Raises UserError: a
    source is missing or of an unsupported kind.
    """
    places = [
        *config.sources,
        *config.mix.sources,
        *([config.split.test] if isinstance(config.split.test, str) else []),
    ]
    data_sets = [*([config.split.freeze] if config.split.freeze else []), *config.mix.sources]
    manifests = [Path(folder) / MANIFEST for folder in data_sets if (Path(folder) / MANIFEST).is_file()]
    files = find_files([path for path in places if not (Path(path) / MANIFEST).is_file()])
    sources = [[file.name, sha256_of_source(file.path)] for file in files]
    sources += [[str(path), sha256_of_source(path)] for path in manifests]
    described = [[file.name, entry] for file in files if (entry := entry_of(file)) is not None]
    if config.patch is not None:
        sources.append(["patch", sha256_of_source(Path(config.patch))])
    if config.leave_out:
        sources.append(["leave_out", *sorted(config.leave_out)])
    settings = config.model_dump(mode="json", exclude=NO_CONTENT)
    facts = {"version": 1, "config": settings, "name": name, "seed": seed, "model": model_fingerprint}
    return content_hash({**facts, "sources": sources, **({"described": described} if described else {})})


def sha256_of_source(path: Path) -> str:
    """Hex SHA-256 of a source file. UserError: it can't be read, or is a pipe or device, which may have no end."""
    if path.exists() and not path.is_file():
        raise UserError("Not a regular file", where=str(path), next_step="name a file")
    try:
        return sha256_file(path)
    except OSError as error:
        message, step = f"Can't read the file: {error.strerror or error}", "check the file's permissions"
        raise UserError(message, where=str(path), next_step=step) from None


def normalised(text: str) -> str:
    """Text up to Unicode form (NFC), white space and case: what makes two rows the same."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split()).casefold()


normalised_often = functools.lru_cache(maxsize=1 << 10)(normalised)  # for what comes again and again


def prompt_key(row: Row) -> str:
    """The prompt of a row: the normalised system and user turns (in some data the task is in the system turn, under one
    and the same user turn); without a user turn, all turns.
    """
    has_question = any(message["role"] == "user" for message in row.messages)
    turns = []
    for message in row.messages:
        if message["role"] == "system" and has_question:
            turns.append("system: " + normalised_often(message["content"]))
        elif message["role"] == "user" or not has_question:
            turns.append(f"{message['role']}: {normalised(message['content'])}")
    return "\n".join(turns)


def key64(text: str | bytes) -> int:
    """The text's hash as a number of 64 bits, never 0: among a million texts two agree once in 10^7 times."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little") or 1


def keyed_hash(text: str, seed: int) -> bytes:
    """Eight bytes that depend on the text and the seed only: the order in which rows are dealt."""
    raw, key = text.encode("utf-8", "surrogatepass"), seed.to_bytes(16, "little", signed=False)
    return hashlib.blake2b(raw, digest_size=8, key=key).digest()


def shuffled(ids: Array, seed: int) -> Array:
    """Keys that put rows in another order for each seed, whatever the order of the sources."""
    import numpy as np

    return mixed_bits(ids ^ np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64))


def mixed_bits(numbers: Array) -> Array:
    """A hash of numbers of 64 bits (the finaliser of SplitMix64, Steele et al. 2014, doi 10.1145/2714064.2660195)."""
    import numpy as np

    mixed = numbers.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: Array = mixed ^ (mixed >> np.uint64(31))
    return hashed


def meta_key(row: Row) -> int:
    """Hash of a row's further columns; where the row stood does not count."""
    if not (further := {k: v for k, v in row.meta.items() if k not in ("source", "line")}):
        return 0
    try:
        return key64(orjson.dumps(further, option=orjson.OPT_SORT_KEYS))
    except (TypeError, orjson.JSONEncodeError):  # integers over 64 bits
        return key64(json.dumps(further, sort_keys=True))


def dataset_hash(
    splits: Mapping[str, Iterable[Row]], config: PrepareConfig, seed: int, mixed: Mix | None = None
) -> str:
    """Hash of what the splits hold and of the configuration, wherever the sources are. General rows are left out:
    `mixed`, what the manifest says of the mix, takes their place.
    """
    keys = {
        split: b"".join(struct.pack("<QQ", int(row.id, 16), meta_key(row)) for row in rows if "mix" not in row.meta)
        for split, rows in splits.items()
    }
    return hash_of_keys(keys, config, seed, mixed)


def hash_of_keys(splits: Mapping[str, bytes], config: PrepareConfig, seed: int, mixed: Mix | None) -> str:
    """`dataset_hash` of rows of which only id and `meta_key` are known: two numbers of 64 bits, low bytes first."""
    digest = hashlib.sha256(b"".join(split.encode() + keys for split, keys in splits.items())).hexdigest()
    settings = config.model_dump(mode="json", exclude={"sources", *NO_CONTENT})
    return content_hash({"content": digest, "config": settings, "seed": seed, "mix": mixed})


def token_statistics(tokens: Sequence[int], supervised: int) -> dict[str, Any]:
    """Total, supervised (trained on), min, p50, p90 (nearest rank), max and mean of tokens a row."""
    if not tokens:
        return {"total": 0, "supervised": 0, "min": 0, "p50": 0, "p90": 0, "max": 0, "mean": 0.0}
    ordered, n = sorted(tokens), len(tokens)
    p50, p90 = (ordered[(n * share + 99) // 100 - 1] for share in (50, 90))
    facts = {"total": sum(ordered), "supervised": supervised, "min": ordered[0], "p50": p50, "p90": p90}
    return facts | {"max": ordered[-1], "mean": round(sum(ordered) / n, 2)}


def write_splits(out: Path, splits: Mapping[str, Sequence[Row]], task: str) -> dict[str, SplitFile]:
    """Write rows as the splits of a data set in `out`, and say what its manifest says of them."""
    files = {}
    for split, rows in splits.items():
        file = out / f"{split}.jsonl"
        write_jsonl(file, rows)
        labels = label_counts(rows) if task == "classification" else None
        files[split] = SplitFile(path=file.name, rows=len(rows), sha256=sha256_file(file), labels=labels)
    return files


def label_counts(rows: Sequence[Row]) -> dict[str, int]:
    """Rows of each label, by name."""
    return dict(sorted(Counter(row.label for row in rows if row.label is not None).items()))


def read_rows(path: Path, records: Iterable[Any]) -> list[Row]:
    """The rows of a split's file, of the records in its lines; a record that is no row is a UserError."""
    rows = []
    for number, record in enumerate(records, 1):
        try:
            rows.append(row := Row.from_json(record))
            int(row.id, 16)  # hashes of data sets are made of it
        except ValueError as error:
            raise UserError(f"Not a row: {error}", where=f"{path}:{number}", next_step=AGAIN) from None
    return rows


class RowFile(Sequence[Row]):
    """The rows of a split's JSON Lines file, read as a whole at the first look; their number is known before."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path.resolve(), "size": self.size}

    @functools.cached_property
    def rows(self) -> list[Row]:
        """All rows; a file that can't be read, or holds what is no row, is a UserError."""
        if not self.path.is_file():
            raise UserError("A split of the data set is missing", where=str(self.path), next_step=AGAIN)
        return read_rows(self.path, read_jsonl(self.path))

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        first = index.stop or 0 if isinstance(index, slice) and index == slice(index.stop) else 0
        if first > 0 and "rows" not in vars(self):  # no more than these are read
            with contextlib.suppress(OSError, ValueError), self.path.open("rb") as lines:
                return read_rows(self.path, [fast_json(line) for line in itertools.islice(lines, first)])
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __add__(self, other: Sequence[Row]) -> list[Row]:
        return [*self.rows, *other]

    def __radd__(self, other: Sequence[Row]) -> list[Row]:
        return [*other, *self.rows]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def load_dataset(path: Path | str, *, verify: bool = True) -> Dataset:
    """Read a prepared data set; one that is missing, incomplete, damaged, or changed after it was written, is a
    UserError.

    `path`: its folder or its `dataset.json`; `verify`: check every split against the hash in the manifest.
    """
    folder = Path(path).parent if Path(path).name == MANIFEST else Path(path)
    manifest = read_manifest(folder)
    splits: dict[str, RowFile] = {}
    for split in SPLITS:
        about = manifest.splits.by_name[split]
        file = inside(folder, about.path or f"{split}.jsonl")
        if not file.is_file():
            raise UserError("A split of the data set is missing", where=str(file), next_step=AGAIN)
        if verify and sha256_of_source(file) != about.sha256:
            raise UserError("The split was changed after it was prepared", where=str(file), next_step=AGAIN)
        splits[split] = RowFile(file, about.rows)
    return Dataset(str(folder), manifest, splits["train"], splits["val"], splits["test"])
