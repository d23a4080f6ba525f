"""What changed between two data sets; and what all that looks into prepared data sets shares."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tuneloop.core.errors import UserError
from tuneloop.core.files import flat
from tuneloop.core.foreign import parse_line
from tuneloop.core.stats.tests import holm
from tuneloop.data.dataset import normalised, prompt_key
from tuneloop.data.mix import GENERAL_FILE
from tuneloop.records.dataset import AGAIN, MANIFEST, DatasetManifest, read_manifest
from tuneloop.records.rows import Row


def dataset_folder(path: Path | str) -> Path:
    """The folder of a data set that was named by it or by its `dataset.json`."""
    folder = Path(path)
    return folder.parent if folder.name == MANIFEST else folder


def split_files(folder: Path, manifest: DatasetManifest) -> dict[str, Path]:
    """The files with rows, by split: train, val, test, and general rows held out, if there are any."""
    files = {name: folder / (split.path or f"{name}.jsonl") for name, split in manifest.splits.by_name.items()}
    return files | ({"general": folder / GENERAL_FILE} if (folder / GENERAL_FILE).is_file() else {})


def read_lines(path: Path) -> Iterator[tuple[int, bytes, Any]]:
    """Offset in bytes, raw line and record of every line."""
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield offset, line, parse_line(line)
                    except (ValueError, RecursionError) as error:
                        where = f"{path}:{number}"
                        raise UserError(f"Not valid JSON: {error}", where=where, next_step=AGAIN) from None
                offset += len(line)
    except FileNotFoundError:
        raise UserError("A file of the data set is missing", where=str(path), next_step=AGAIN) from None
    except OSError as error:  # a folder, or no permission
        message = f"Can't read a file of the data set: {error.strerror}"
        raise UserError(message, where=str(path), next_step="put the file back") from None


class Spot(NamedTuple):
    """A row on disk: its split, and where its line begins."""

    split: str
    offset: int


@dataclass(frozen=True)
class LabelShift:
    """A label's rows and share of all rows, before (a) and after (b)."""

    label: str
    a: int
    b: int
    share_a: float
    share_b: float
    # that both shares are the same (two-proportion z-test, Holm over labels); 1 with fewer than 5 rows expected
    p: float = 1.0


@dataclass(frozen=True)
class DatasetDiff:
    """What changed from data set a to data set b."""

    a: dict[str, Any]  # `id`, `path`, `task`, `model`, `seed`, `tool_version`, `rows` and `tokens` (by split)
    b: dict[str, Any]
    same: int  # rows in both, in the same split
    added: dict[str, int]  # rows in b only, by split
    removed: dict[str, int]
    changed: dict[
        str, int
    ]  # rows whose question stayed: `label`, `answer`, `instruction` (the system turn), or `other`
    moved: dict[str, int]  # rows, also changed ones, that are in another split now, as `"test -> train"`
    labels: list[LabelShift]  # shifts of labels, the largest first
    # chi-square test that the labels' shares are the same; None without labels or scipy, or with too few rows. Rows in
    # both data sets make it cautious: a small p is evidence, a large one is not.
    labels_p: float | None
    config: list[dict[str, Any]]  # what differs: `{"key", "a", "b"}`
    sources: list[dict[str, Any]]  # what differs: `{"path", "a", "b"}`, with rows
    examples: dict[str, list[dict[str, Any]]]  # a few rows of each kind, with their texts

    @property
    def identical(self) -> bool:
        """Whether the rows and their splits are the same."""
        return not (self.added or self.removed or self.changed or self.moved)


def diff_datasets(a: Path | str, b: Path | str, *, examples: int = 3) -> DatasetDiff:
    """Compare two prepared data sets, row by row; one that is damaged or incomplete is a UserError.

    The files are streamed; ids (150 bytes a row of either) and hashes of what differs are held in memory, texts never.

    `examples`: rows of each kind to show.
    """
    folder_a, folder_b = dataset_folder(a), dataset_folder(b)
    manifest_a, manifest_b = read_manifest(folder_a), read_manifest(folder_b)
    files_a, files_b = split_files(folder_a, manifest_a), split_files(folder_b, manifest_b)
    ids_a, ids_b = _ids(files_a), _ids(files_b)
    both = [(key, ids_a[key], split) for key, split in ids_b.items() if key in ids_a]
    in_other_split = {key: old for key, old, now in both if old != now}
    moved = Counter(f"{old} -> {now}" for _, old, now in both if old != now)
    only_a, only_b = _facts(files_a, ids_a.keys() - ids_b.keys()), _facts(files_b, ids_b.keys() - ids_a.keys())
    pairs, removed, added = _changed_pairs(only_a, only_b)
    changed = Counter(kind for kind, _, _ in pairs)
    moved.update(f"{old.split} -> {now.split}" for _, old, now in pairs if old.split != now.split)
    rows_in_other_split = _facts(files_b, set(itertools.islice(in_other_split, examples)))
    shifts, p = _label_shifts(manifest_a, manifest_b)
    return DatasetDiff(
        a=_about(folder_a, manifest_a),
        b=_about(folder_b, manifest_b),
        same=len(both) - len(in_other_split),
        added=dict(Counter(spot.split for spot in added)),
        removed=dict(Counter(spot.split for spot in removed)),
        changed=dict(changed.most_common()),
        moved=dict(moved.most_common()),
        labels=shifts,
        labels_p=p,
        config=_config_changes(manifest_a, manifest_b),
        sources=_source_changes(manifest_a, manifest_b),
        examples={
            "added": [_example(files_b, spot) for spot in added[:examples]],
            "removed": [_example(files_a, spot) for spot in removed[:examples]],
            "changed": [
                _example(files_b, now) | {"kind": kind, "was": _example(files_a, old)}
                for kind, old, now in pairs[:examples]
            ],
            "moved": [
                _example(files_b, now) | {"was": {"split": in_other_split[fact.id]}}
                for now, fact in rows_in_other_split.items()
            ],
        },
    )


def _ids(files: Mapping[str, Path]) -> dict[int, str]:
    return {_number(row.id): split for split, path in files.items() for _, row in _row_lines(path)}


def _row_lines(path: Path) -> Iterator[tuple[int, Row]]:
    for number, (offset, _, value) in enumerate(read_lines(path), 1):
        try:
            yield offset, Row.from_json(value)
        except ValueError as error:
            raise UserError(f"Not a row: {error}", where=f"{path}:{number}", next_step=AGAIN) from None


def _number(text: str) -> int:
    """Eight bytes for a text: a Python integer takes half of a string's memory."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


class _Facts(NamedTuple):
    """Hashes of a row's id, of what it asks (with the system turn, and without) and answers."""

    id: int
    prompt: int
    question: int
    answer: int
    label: int


def _facts(files: Mapping[str, Path], ids: Collection[int]) -> dict[Spot, _Facts]:
    facts = {}
    for split, path in files.items() if ids else ():
        for offset, row in _row_lines(path):
            if (key := _number(row.id)) in ids:
                question = "\n".join(normalised(_content(m)) for m in row.messages if m["role"] == "user")
                answer = json.dumps(row.messages[-1], sort_keys=True)
                hashes = map(_number, (prompt_key(row), question, answer, row.label or ""))
                facts[Spot(split, offset)] = _Facts(key, *hashes)
    return facts


Pair = tuple[str, Spot, Spot]  # how it changed, before, after


def _changed_pairs(a: dict[Spot, _Facts], b: dict[Spot, _Facts]) -> tuple[list[Pair], list[Spot], list[Spot]]:
    """Rows with one prompt on both sides, then with the same turns of the user alone; and what is left of either."""
    pairs: list[Pair] = []
    for level in ("prompt", "question"):
        waiting: dict[int, list[Spot]] = defaultdict(list)
        for spot, fact in a.items():
            waiting[getattr(fact, level)].append(spot)
        for now, fact in list(b.items()):
            if olds := waiting.get(getattr(fact, level)):
                old = olds.pop(0)
                before, after = a.pop(old), b.pop(now)
                names = {"label": "label", "answer": "answer", "prompt": "instruction"}
                kinds = (kind for name, kind in names.items() if getattr(before, name) != getattr(after, name))
                pairs.append((next(kinds, "other"), old, now))
    return pairs, list(a), list(b)


def _content(message: Mapping[str, Any]) -> str:
    return str(message.get("content") or "")


def _example(files: Mapping[str, Path], spot: Spot) -> dict[str, Any]:
    with files[spot.split].open("rb") as file:
        file.seek(spot.offset)
        row = Row.from_json(parse_line(file.readline()))
    questions = [_content(m) for m in row.messages if m["role"] == "user"]
    answer = row.label if row.label is not None else _content(row.messages[-1])
    return {"id": row.id, "split": spot.split, "prompt": questions[-1] if questions else "", "answer": answer}


def _about(folder: Path, manifest: DatasetManifest) -> dict[str, Any]:
    splits = manifest.splits.by_name
    return {
        "id": manifest.id,
        "path": str(folder),
        **{name: getattr(manifest, name) for name in ("task", "model", "seed", "tool_version")},
        "rows": {name: split.rows for name, split in splits.items()},
        "tokens": {name: split.tokens.total if split.tokens else 0 for name, split in splits.items()},
    }


def _label_shifts(a: DatasetManifest, b: DatasetManifest) -> tuple[list[LabelShift], float | None]:
    counts_a, counts_b = _labels(a), _labels(b)
    total_a, total_b = counts_a.total(), counts_b.total()
    if not total_a or not total_b:
        return [], None
    names = sorted(counts_a | counts_b)
    p_values = holm([_same_share(counts_a[label], total_a, counts_b[label], total_b) for label in names])
    shifts = [
        LabelShift(label, counts_a[label], counts_b[label], counts_a[label] / total_a, counts_b[label] / total_b, p)
        for label, p in zip(names, p_values, strict=True)
    ]
    shifts.sort(key=lambda s: (-abs(s.share_b - s.share_a), s.label))
    return shifts, chi_square([s.a for s in shifts], [s.b for s in shifts])


def _same_share(a: int, of_a: int, b: int, of_b: int) -> float:
    """p-value of the two-proportion z-test, 1 where too little is expected for it."""
    pooled = (a + b) / (of_a + of_b)
    if pooled * min(of_a, of_b) < 5 or pooled == 1:
        return 1.0
    z = (a / of_a - b / of_b) / math.sqrt(pooled * (1 - pooled) * (1 / of_a + 1 / of_b))
    return math.erfc(abs(z) / math.sqrt(2))


def _labels(manifest: DatasetManifest) -> Counter[str]:
    return sum((Counter(split.labels or {}) for split in manifest.splits.by_name.values()), Counter())


def chi_square(a: Sequence[int], b: Sequence[int]) -> float | None:
    """p-value of Pearson's chi-square test of homogeneity of two samples' counts. Classes with fewer than 5 expected in
    either sample are taken together (Cochran 1954). None without scipy, and where fewer than two classes are left.
    """
    try:
        from scipy.stats import chi2_contingency
    except ImportError:
        return None
    share_a = sum(a) / (sum(a) + sum(b))
    columns, small = [], (0, 0)
    for x, y in zip(a, b, strict=True):
        if (x + y) * min(share_a, 1.0 - share_a) >= 5.0:
            columns.append((x, y))
        else:
            small = (small[0] + x, small[1] + y)
    columns += [small] if sum(small) else []
    return float(chi2_contingency(columns).pvalue) if len(columns) >= 2 else None


def _config_changes(a: DatasetManifest, b: DatasetManifest) -> list[dict[str, Any]]:
    flat_a, flat_b = ({"seed": m.seed, "model": m.model, **flat(m.config)} for m in (a, b))
    changes = [{"key": key, "a": flat_a.get(key), "b": flat_b.get(key)} for key in {**flat_a, **flat_b}]
    return [change for change in changes if change["key"] != "sources" and change["a"] != change["b"]]


def _source_changes(a: DatasetManifest, b: DatasetManifest) -> list[dict[str, Any]]:
    """Sources that are new, gone, or hold other bytes; a file that only moved is no change."""
    sides = [{source.path: source for source in m.sources} for m in (a, b)]
    hashes = [{source.sha256 for source in side.values()} for side in sides]
    changes = []
    for path in {**sides[0], **sides[1]}:
        old, new = sides[0].get(path), sides[1].get(path)
        if old and new:
            same = (old.sha256, old.rows) == (new.sha256, new.rows)
        else:
            same = any(side.sha256 in hashes[new is None] for side in (old, new) if side)
        if not same:
            changes.append({"path": path, "a": old and old.rows, "b": new and new.rows})
    return changes
