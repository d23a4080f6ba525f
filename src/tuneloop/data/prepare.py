"""The prepare stage: sources of any shape to train, val and test, with an account of every record."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneloop.data.checks import reject_share, run_checks
from tuneloop.data.config import PrepareConfig
from tuneloop.data.dataset import (
    MANIFEST,
    dataset_hash,
    label_counts,
    prepare_key,
    sha256_of_source,
    token_statistics,
)
from tuneloop.data.formats import (
    FormatGuess,
    Parsed,
    Rejection,
    check_columns,
    detect,
    parse_record,
)
from tuneloop.data.read import SourceFile, SourceRecord, find_files, read_file
from tuneloop.data.split import SPLITS, assign_splits, keyed_hash, normalised
from tuneloop.files import sha256_file, user_errors_of_the_disk, write_json, write_jsonl
from tuneloop.types import Dataset, Progress, Reject, Row, UserError, no_progress

SAMPLE = 2000  # records looked at to find the format
EVERY = 200  # rows between two reports of progress


@dataclass(frozen=True)
class Measured:
    """The length of a rendered row: all its tokens, and those that the loss is computed on."""

    tokens: int
    supervised: int


Measure = Callable[[Row], Measured]


@dataclass(frozen=True)
class Candidate:
    """A row on its way to a split, with all that is needed to reject it or account for it."""

    row: Row
    stratum: str
    record: dict[str, Any]
    repairs: list[dict[str, Any]]
    measured: Measured = Measured(0, 0)

    def reject(self, reason: str, detail: str) -> Reject:
        """The reject that its record becomes."""
        return Reject(self.row.meta["source"], self.row.meta["line"], reason, detail, self.record)


def prepare(
    config: PrepareConfig,
    *,
    name: str,
    seed: int,
    out: Path | str,
    measure: Measure,
    model: str = "",
    progress: Progress = no_progress,
) -> Dataset:
    """Read, parse, deduplicate, measure, split and write a data set.

    Every record read stands in one split or in `rejects.jsonl`; every change to one in `repairs.jsonl`.
    The same sources, configuration and seed give the same bytes.

    Args:
        config: what to read and how.
        name: name of the data set.
        seed: seed of the split.
        out: folder for the splits and `dataset.json`, which is written last.
        measure: a row's length in tokens with the model's chat template; `ValueError` if it can't be rendered.
        model: fingerprint of the model that `measure` stands for; part of the manifest's `key`.
        progress: told how far it is.

    Raises:
        UserError: missing or empty sources, no format that fits, a column that no record has, no valid rows,
            or more rejects than `allow_rejects`; then `rejects.jsonl` is there and `dataset.json` is not.
    """
    out = Path(out)
    files = find_files(config.sources)
    key = prepare_key(config, name=name, seed=seed, model_fingerprint=model)
    records, rejects, rows_of = _read(files, config, progress)
    if not records:
        _refuse_too_many(out, config, rejects, kept=0, read=len(rejects), files=files)
    check_columns([record.value for record in records], config)
    guess = detect([record.value for record in records[:SAMPLE]], config)

    kept, refused = _parse(records, guess, config)
    kept, copies = _without_copies(kept)
    kept, unfit = _measured(kept, config, measure, progress)
    rejects += refused + copies + unfit
    read = len(kept) + len(rejects)
    _refuse_too_many(out, config, rejects, kept=len(kept), read=read, files=files)

    splits, over = _split(kept, config, seed)
    rejects = _in_order(rejects + over, files)
    if not splits["train"]:
        raise UserError(
            "No rows are left for training",
            where=f"{read} records read, {len(kept)} of them valid",
            next_step="add data, or lower data.split.val and data.split.test",
        )
    manifest: dict[str, Any] = {
        "version": 1,
        "id": "",  # set with the hash
        "name": name,
        "hash": dataset_hash({split: [c.row for c in some] for split, some in splits.items()}, config, seed),
        "key": key,
        **_about(config, guess, kept),
        "sources": [{"path": f.name, "sha256": sha256_of_source(f.path), "rows": rows_of[f.name]} for f in files],
        "config": config.model_dump(mode="json"),
        "seed": seed,
        "model": model,
    }
    manifest["id"] = f"{name}-{manifest['hash'][:12]}"
    dataset = _write(out, manifest, splits, rejects)
    bad, of = reject_share(read, manifest["rejected"])
    progress("preparing", 1, 1, kept=read - len(rejects), rejected=len(rejects), defective=f"{bad}/{of}")
    return dataset


# --- reading and parsing -------------------------------------------------------------------------


def _read(
    files: Sequence[SourceFile], config: PrepareConfig, progress: Progress
) -> tuple[list[SourceRecord], list[Reject], dict[str, int]]:
    """The records, the unreadable ones, and how many of both each file gave; `limit` ends the reading."""
    records: list[SourceRecord] = []
    rejects: list[Reject] = []
    rows_of = {file.name: 0 for file in files}
    for number, file in enumerate(files):
        progress("reading", number, len(files), file=file.name)
        for item in read_file(file):
            if config.limit is not None and len(records) + len(rejects) >= config.limit:
                return records, rejects, rows_of
            rows_of[file.name] += 1
            if isinstance(item, Reject):
                rejects.append(item)
            else:
                records.append(item)
    progress("reading", len(files), len(files), records=len(records), rejected=len(rejects))
    if not records and not rejects:
        raise UserError("No records", where=", ".join(config.sources), next_step="name files with at least one record")
    return records, rejects, rows_of


def _parse(
    records: Sequence[SourceRecord], guess: FormatGuess, config: PrepareConfig
) -> tuple[list[Candidate], list[Reject]]:
    kept, rejects = [], []
    for record in records:
        parsed = parse_record(record.value, guess, config)
        if isinstance(parsed, Rejection):
            rejects.append(Reject(record.source, record.line, parsed.reason, parsed.detail, record.value))
        else:
            kept.append(_candidate(record, parsed, config))
    return kept, rejects


def _candidate(record: SourceRecord, parsed: Parsed, config: PrepareConfig) -> Candidate:
    row = Row(
        id=row_id(parsed),
        messages=parsed.messages,
        label=parsed.label,
        tools=parsed.tools,
        meta=_meta(record, parsed, config.split.stratify),
    )
    stratum = parsed.label or ""
    if config.split.stratify is not None:
        stratum = _stratum(record.value.get(config.split.stratify))
    return Candidate(row, stratum, record.value, parsed.repairs)


def _stratum(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def row_id(parsed: Parsed) -> str:
    """The first 16 hex digits of the hash of a row's content."""
    content: list[Any] = [parsed.messages, parsed.tools, parsed.label]
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _meta(record: SourceRecord, parsed: Parsed, stratify: str | None) -> dict[str, Any]:
    """Where the record stood, and its further columns: scalars, and flat lists of scalars."""
    meta: dict[str, Any] = {"source": record.source, "line": record.line}
    for column, value in record.value.items():
        if column in parsed.used and column != stratify:
            continue
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict | list) for v in value)):
            continue
        while column in meta:
            column += "_"
        meta[column] = None if isinstance(value, float) and not math.isfinite(value) else value
    return meta


def _task(config: PrepareConfig, guess: FormatGuess, kept: Sequence[Candidate]) -> str:
    if config.task != "auto":
        return config.task
    if guess.name == "text_label" or config.labels is not None:
        return "classification"
    for candidate in kept:
        if candidate.row.tools or sum(m["role"] == "assistant" for m in candidate.row.messages) > 1:
            return "chat"
    return "generation"


def _about(config: PrepareConfig, guess: FormatGuess, kept: Sequence[Candidate]) -> dict[str, Any]:
    """What kind of data it is, as the manifest tells it."""
    task = _task(config, guess, kept)
    about: dict[str, Any] = {
        "task": task,
        "format": {"name": guess.name, "columns": guess.columns, "reason": guess.reason},
    }
    if task == "classification":
        about["labels"] = config.labels or list(label_counts([candidate.row for candidate in kept]))
    return about


# --- dropping ------------------------------------------------------------------------------------


def _without_copies(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Reject]]:
    """The first of rows that are equal up to Unicode form, white space and case."""
    first: dict[bytes, Candidate] = {}
    rejects = []
    for candidate in candidates:
        row = candidate.row
        turns = [[m["role"], normalised(m["content"]), m.get("tool_calls")] for m in row.messages]
        text = json.dumps([turns, row.tools, normalised(row.label or "")], ensure_ascii=False, sort_keys=True)
        key = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
        before = first.setdefault(key, candidate)
        if before is not candidate:
            meta = before.row.meta
            rejects.append(candidate.reject("exact_duplicate", f"of {meta['source']}:{meta['line']}"))
    return list(first.values()), rejects


def _measured(
    candidates: Sequence[Candidate], config: PrepareConfig, measure: Measure, progress: Progress
) -> tuple[list[Candidate], list[Reject]]:
    """The rows that can be rendered, fit, and have something to learn, with their lengths."""
    kept, rejects = [], []
    for number, candidate in enumerate(candidates):
        if number % EVERY == 0:
            progress("measuring", number, len(candidates))
        try:
            measured = measure(candidate.row)
        except ValueError as error:
            rejects.append(candidate.reject("template_error", str(error)))
            continue
        if measured.tokens > config.max_length:
            detail = f"{measured.tokens} tokens, at most {config.max_length} (max_length)"
            rejects.append(candidate.reject("too_long", detail))
        elif measured.supervised < 1:
            rejects.append(candidate.reject("no_supervised_token", f"none of {measured.tokens} tokens is trained on"))
        else:
            kept.append(replace(candidate, measured=measured))
    progress("measuring", len(candidates), len(candidates))
    return kept, rejects


def _split(
    candidates: Sequence[Candidate], config: PrepareConfig, seed: int
) -> tuple[dict[str, list[Candidate]], list[Reject]]:
    """The splits, each in the order of the rows' keyed hashes; training rows beyond a label's limit are rejected."""
    assigned = assign_splits([c.row for c in candidates], [c.stratum for c in candidates], config.split, seed)
    splits: dict[str, list[Candidate]] = {split: [] for split in SPLITS}
    for candidate, split in zip(candidates, assigned, strict=True):
        splits[split].append(candidate)
    for some in splits.values():
        some.sort(key=lambda c: (keyed_hash(c.row.id, seed), c.row.id))
    over: list[Reject] = []
    if config.limit_per_label is not None:
        counts: Counter[str] = Counter()
        train = []
        for candidate in splits["train"]:
            counts[candidate.stratum] += 1
            if counts[candidate.stratum] <= config.limit_per_label:
                train.append(candidate)
            else:
                detail = f"{config.limit_per_label} rows of {candidate.stratum!r} are in train (limit_per_label)"
                over.append(candidate.reject("over_limit", detail))
        splits["train"] = train
    return splits, over


def _in_order(rejects: Sequence[Reject], files: Sequence[SourceFile]) -> list[Reject]:
    place = {file.name: number for number, file in enumerate(files)}
    return sorted(rejects, key=lambda reject: (place[reject.source], reject.line))


def _refuse_too_many(
    out: Path, config: PrepareConfig, rejects: Sequence[Reject], *, kept: int, read: int, files: Sequence[SourceFile]
) -> None:
    """Stop when too large a share of the records is defective, or nothing is left; the rejects are written first."""
    reasons = Counter(reject.reason for reject in rejects)
    bad, of = reject_share(read, reasons)
    if kept and bad <= config.allow_rejects * of:
        return
    _clear(out)
    write_jsonl(out / "rejects.jsonl", _in_order(rejects, files))
    if not kept:
        what = f"No valid rows in {read} records"
    else:
        what = f"{bad} of {of} records ({bad / of:.0%}) were rejected; {config.allow_rejects:.0%} are allowed"
    examples: dict[str, Reject] = {}
    for reject in _in_order(rejects, files):
        examples.setdefault(reject.reason, reject)
    top = []
    for reason, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:3]:
        example = examples[reason]
        detail = f": {' '.join(example.detail.split())[:100]}" if example.detail else ""
        top.append(f"{reason} {n}x, as {example.source}:{example.line}{detail}")
    step = f"look at {out / 'rejects.jsonl'}"
    if kept:
        step += f"; to go on all the same add allow_rejects={_allowing(bad / of)}"
    raise UserError(what, where="; ".join(top), next_step=step)


def _allowing(share: float) -> float:
    """A round value of `allow_rejects` that lets a share pass."""
    return next((limit for limit in (0.5, 0.75, 0.9) if share <= limit), 1.0)


# --- writing -------------------------------------------------------------------------------------


def _clear(out: Path) -> None:
    """Take an earlier manifest away, so that the folder is not complete while its files change."""
    with user_errors_of_the_disk(out / MANIFEST), contextlib.suppress(FileNotFoundError):
        (out / MANIFEST).unlink()


def _write(
    out: Path, manifest: dict[str, Any], splits: Mapping[str, Sequence[Candidate]], rejects: Sequence[Reject]
) -> Dataset:
    """The files of a data set, the manifest (completed here) last."""
    _clear(out)
    about: dict[str, Any] = {}
    for split, some in splits.items():
        path = out / f"{split}.jsonl"
        rows = [candidate.row for candidate in some]
        write_jsonl(path, rows)
        tokens = [candidate.measured.tokens for candidate in some]
        about[split] = {
            "path": path.name,
            "rows": len(rows),
            "sha256": sha256_file(path),
            "tokens": token_statistics(tokens, sum(candidate.measured.supervised for candidate in some)),
            "labels": label_counts(rows),
        }
    write_jsonl(out / "rejects.jsonl", rejects)
    repairs = [
        {"source": c.row.meta["source"], "line": c.row.meta["line"], "id": c.row.id, **repair}
        for some in splits.values()
        for c in some
        for repair in c.repairs
    ]
    repairs.sort(key=lambda repair: (repair["source"], repair["line"], repair["id"]))
    write_jsonl(out / "repairs.jsonl", repairs)
    reasons = Counter(reject.reason for reject in rejects)
    sizes = {split: len(some) for split, some in splits.items()}
    kept = sum(sizes.values())
    manifest["counts"] = {"read": kept + len(rejects), "kept": kept, "rejected": len(rejects), **sizes}
    manifest["rejected"] = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    manifest["repaired"] = dict(sorted(Counter(repair["kind"] for repair in repairs).items()))
    manifest["splits"] = about
    rows_of = {split: [candidate.row for candidate in some] for split, some in splits.items()}
    manifest["checks"] = run_checks(
        rows_of,
        task=manifest["task"],
        labels=manifest.get("labels", ()),
        read=kept + len(rejects),
        rejected=reasons,
    )
    write_json(out / MANIFEST, manifest)
    return Dataset(str(out), manifest, rows_of["train"], rows_of["val"], rows_of["test"])
