"""A person's rows: what tells them from all others; taken out of a data set, and found in what was made of it."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import html
import itertools
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder, read_json, replacing, sha256_file, user_errors_of_the_disk, write_json
from tuneloop.core.patterns import Pattern, compile_pattern
from tuneloop.data.checks.checks import check_dataset
from tuneloop.data.clean import language
from tuneloop.data.config import PersonalConfig, PrepareConfig
from tuneloop.data.dataset import SPLITS, dataset_hash, label_counts, read_rows, token_statistics
from tuneloop.data.diff import dataset_folder, read_lines, split_files
from tuneloop.data.formats.guess import FormatGuess, with_whole_texts
from tuneloop.data.mix import GENERAL_FILE
from tuneloop.data.pii.redact import KINDS, find, pseudonym_key, redact
from tuneloop.data.process_record import LANGUAGES_EVERY, Measure, question_text
from tuneloop.data.sources.read import read_records
from tuneloop.records import dataset as records
from tuneloop.records.dataset import AGAIN, MANIFEST, Check, DatasetManifest, Mix, SplitFile, read_manifest
from tuneloop.records.evaluation import EVALUATION
from tuneloop.records.record import Part, as_record, write_record
from tuneloop.records.rows import Dataset, Reject, Row
from tuneloop.records.run import RUN

_FIELD = re.compile(r"[\w.\-]+(?: [\w.\-]+)*")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
SEARCH_SECONDS = 10.0  # for one text; a plain expression takes milliseconds for the longest
SHORTEST_STAND_IN = 6  # characters: a shorter one, of a PIN, is in many texts by chance
NO_TEXT = ("source", "line", "mix")  # of `meta`: where a row comes from is no text of a person


def folded(text: str) -> str:
    """Text up to compatible Unicode forms (NFKC), invisible characters, white space and case."""
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class Matcher:
    """What tells a person's rows from the others.

    A text is looked for in all texts of a row, as a part of them, whatever its case, white space and Unicode form; in
    raw records also as broken or escaped encodings of it. `field=value` finds rows whose column has that very value
    (and those with that text in them). An empty pattern or an invalid regular expression is a UserError.
    """

    pattern: str  # the text, or `field=value`
    regex: bool = False  # the text, or the value, is a regular expression; case does not count
    pseudonyms: tuple[str, ...] = ()  # those of the value in data sets with pseudonyms; looked for as texts

    def __post_init__(self) -> None:
        if not folded(self.pattern) or not folded(self.value):
            raise UserError("Nothing to look for", where="--match", next_step="give a text, or field=value")
        if self.regex:
            try:
                self._expressions  # noqa: B018
            except ValueError as error:
                message = f"Not a valid regular expression: {error}"
                step = "correct it, or leave out --regex to look for the text as it stands"
                raise UserError(message, where=self.pattern, next_step=step) from None

    @property
    def hash(self) -> str:
        """SHA-256 of the pattern: proves that a request was met without naming the person."""
        return hashlib.sha256(self.pattern.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def field(self) -> str:
        """The column of `field=value`, else empty."""
        name, sign, _ = self.pattern.partition("=")
        return name.strip() if sign and _FIELD.fullmatch(name.strip()) else ""

    @property
    def value(self) -> str:
        """The value of `field=value`, else the whole pattern: what has pseudonyms."""
        return self.pattern.partition("=")[2].strip() if self.field else self.pattern

    @cached_property
    def _needles(self) -> tuple[str, ...]:
        texts = [*self.pseudonyms]
        if not self.regex:
            texts += [self.pattern, *_escaped(self.pattern)]
        return tuple(dict.fromkeys(filter(None, map(folded, texts))))

    @cached_property
    def _expressions(self) -> tuple[Pattern, Pattern]:
        flags = re.IGNORECASE | re.MULTILINE
        return compile_pattern(self.pattern, flags, SEARCH_SECONDS), compile_pattern(self.value, flags, SEARCH_SECONDS)

    def finds(self, record: Any, name: str = "") -> str | None:
        """The place where a record matches, as a short excerpt; None if it does not.

        `record`: a row, a repair, a raw record, or the text of one that could not be read; `name`: its id, which is no
        text.
        """
        if self.field and (value := self._in_fields(record)) is not None:
            return f"{self.field}={value}"
        text = "\n".join(_texts(record, name))
        if self.regex and (match := self._expressions[0].search(unicodedata.normalize("NFC", text))):
            return _excerpt(match.string, *match.span())
        flat = folded(text)
        for needle in self._needles:
            if (at := flat.find(needle)) >= 0:
                plain = " ".join(text.split())
                return _excerpt(plain if len(plain) == len(flat) else flat, at, at + len(needle))
        return None

    def _in_fields(self, record: Any) -> str | None:
        if isinstance(record, str):  # a line that could not be parsed: it holds both words
            both = all(folded(part) in folded(record) for part in (self.field, self.value))
            return self.value if both and not self.regex else None
        for value in _values_at(record, self.field.removeprefix("meta.").split(".")):
            text = value if isinstance(value, str) else json.dumps(value)
            if self.regex and self._expressions[1].search(text):
                return text
            if not self.regex and folded(text) == folded(self.value):
                return text
        return None


def _escaped(text: str) -> Iterator[str]:
    """How a record that was never repaired may hold a text: mojibake, JSON escapes, HTML entities."""
    for encoding in ("latin-1", "cp1252"):
        with contextlib.suppress(UnicodeError):
            yield text.encode("utf-8").decode(encoding)
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield html.escape(text)
    yield text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _values_at(record: Any, path: Sequence[str]) -> Iterator[Any]:
    """Scalars in the column `path` of a record or of its `meta`; of a list, each."""
    if not isinstance(record, Mapping):
        return
    whole = ".".join(path).casefold()
    for section in (record, record.get("meta")):
        for key, value in section.items() if isinstance(section, Mapping) else ():
            if str(key).casefold() == whole:
                values = value if isinstance(value, list) else [value]
                yield from (v for v in values if not isinstance(v, dict | list))
            elif len(path) > 1 and str(key).casefold() == path[0].casefold():
                yield from _values_at(value, path[1:])


def _texts(value: Any, name: str, key: str = "") -> Iterator[str]:
    """All strings and numbers in a record, without where it comes from."""
    if isinstance(value, str):
        if key not in ("role", "type") and value != name:
            yield value
    elif isinstance(value, Mapping):
        for inner, item in value.items():
            if not (key == "meta" and inner in NO_TEXT):
                yield from _texts(item, name, str(inner))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, name, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


def _excerpt(text: str, start: int, end: int, around: int = 16) -> str:
    left, right = max(0, start - around), min(len(text), end + around)
    return ("…" if left else "") + " ".join(text[left:right].split()) + ("…" if right < len(text) else "")


def pseudonyms_of(match: Matcher, config: PersonalConfig) -> tuple[str, ...]:
    """The pseudonyms of a pattern's value in a data set that was prepared with them; nothing in other modes. A value
    that is personal data only next to a word that names it (an account number) is tried as every kind that it can be. A
    key of the pseudonyms that is not set is a UserError.
    """
    if config.mode != "pseudonym" or match.regex:
        return ()
    key, value = pseudonym_key(config), match.value.strip()
    texts: list[str] = []
    for name in ("", match.field, *(kind.lower() for kind in KINDS)):
        findings = find(value, config, name)
        if findings and (not texts or findings[0].end - findings[0].start == len(value)):
            texts.append(redact(value, findings, config, key))
    return tuple(dict.fromkeys(text for text in texts if len(text) >= SHORTEST_STAND_IN))


REHEARSAL = ".rehearsal-"  # begins the name of the folder in which a removal is tried first
JOURNAL = ".forgetting.json"  # the manifest while a data set is being rewritten
# Each line is a row or a record; lines of other files only tell of some: repairs, duplicates, labels that look wrong.
ROW_FILES = (*(f"{split}.jsonl" for split in SPLITS), GENERAL_FILE, "rejects.jsonl")
LOOK = "look yourself whether it holds the rows, and fix or delete it"
DEPTH = 4  # folders below the root in which data sets and runs are looked for


Origin = tuple[str, int]  # a source and a line in it
Checks = Callable[[Dataset], list[Check]]


@dataclass(frozen=True)
class Hit:
    """A line that matches."""

    file: str  # of the data set
    line: int  # its number in the file
    id: str  # of its row
    source: str
    source_line: int
    excerpt: str  # why it matches
    general: bool = False  # whether its row was mixed in


@dataclass(frozen=True)
class SubjectRows:
    """A data set with the rows that match."""

    folder: Path  # of the data set
    manifest: DatasetManifest  # its manifest as it is
    hits: list[Hit]  # the matching rows, rows of the same source records, and lines of other files that tell of them
    report: bool  # whether there is a report, which may quote them
    others: list[str]  # further files of the folder that hold the text; they are not touched
    resumed: bool = False  # whether an earlier removal was interrupted and is to be completed

    @property
    def rows(self) -> int:
        """Rows and rejects among the hits."""
        return sum(hit.file in ROW_FILES for hit in self.hits)

    @property
    def ids(self) -> set[str]:
        """Ids of the rows."""
        return {hit.id for hit in self.hits if hit.id}

    @property
    def origins(self) -> dict[str, list[int]]:
        """The source records: lines by source. The sources themselves are the user's, and still hold them."""
        lines: dict[str, set[int]] = defaultdict(set)
        for hit in self.hits:
            if hit.source:
                lines[hit.source].add(hit.source_line)
        return {source: sorted(some) for source, some in sorted(lines.items())}


def find_rows(dataset: Path | str, match: Matcher) -> SubjectRows:
    """A person's rows in a data set's splits and rejects, and what other files tell of them; nothing is changed.

    Rows made of the same source record as a matching one are included (a long chat divided in several rows, a row used
    more than once), and rows whose record matches in the source, though personal data were taken out of the row, as
    long as the source is still as it was. Raises UserError: no complete data set there, a damaged one, or one from
    which another removal was interrupted.
    """
    folder = dataset_folder(dataset)
    resumed = not (folder / MANIFEST).is_file() and (folder / JOURNAL).is_file()
    if resumed:
        match_hash, manifest = _journal(folder)
        if match_hash != match.hash:
            step = "run that one again first, with the same --match; or prepare the data set again"
            raise UserError("An earlier removal from this data set was interrupted", where=str(folder), next_step=step)
    else:
        manifest = read_manifest(folder)
    splits = [path for path in split_files(folder, manifest).values() if path.is_file()]
    files = [*splits, folder / "rejects.jsonl", *_side_files(folder)]
    origins = {origin: f"in the source: {excerpt}" for origin, excerpt in _in_sources(manifest, match)}
    direct: dict[tuple[str, int], str] = {}
    for path in files:
        for number, record in _records(path):
            for origin, excerpt in _matches(path.name, record, match):
                direct[path.name, number] = excerpt
                if origin[0]:
                    origins.setdefault(origin, "another row of the same record matches")
    hits: list[Hit] = []
    ids: set[str] = set()
    for path in files:
        for number, record in _records(path):
            if record.get("reason") == "forgotten":
                continue
            name = str(record.get("id", "")) if path.name != "rejects.jsonl" else ""
            reason = direct.get((path.name, number)) or next(filter(None, map(origins.get, _origins(record))), None)
            if reason is None and path.name not in ROW_FILES and ids & {name, str(record.get("kept_id", ""))}:
                reason = "tells of a row that matches"
            if reason is not None:
                hits.append(Hit(path.name, number, name, *_origins(record)[0], reason, "mix" in record.get("meta", {})))
                ids |= {name} - {""}
    read_files = {path.name for path in files} | {"report.html", MANIFEST, JOURNAL}
    others = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in {*read_files, ".lock"} and not _is_leftover(path):
            with contextlib.suppress(OSError):
                if match.finds(path.read_bytes().decode("utf-8", "replace")) is not None:
                    others.append(path.name)
    return SubjectRows(folder, manifest, hits, (folder / "report.html").is_file(), others, resumed)


def _in_sources(manifest: DatasetManifest, match: Matcher) -> Iterator[tuple[Origin, str]]:
    """Records of the sources that match, streamed answers put together; lines of a changed source are others now."""
    form = manifest.format
    guess = FormatGuess(form.name if form else "", dict(form.columns) if form else {}, "")
    for about in manifest.sources:
        path = Path(about.path)
        with contextlib.suppress(UserError, OSError):
            if path.is_file() and sha256_file(path) == about.sha256:
                for item in read_records([str(path)]):
                    record = item.record if isinstance(item, Reject) else with_whole_texts(item.value, guess)
                    excerpt = match.finds(record)
                    if excerpt is not None:
                        yield (about.path, item.line), excerpt


def personal_settings(dataset: Path | str) -> PersonalConfig:
    """How personal data were treated in a data set; the default where no data set is, or one of another version."""
    folder = dataset_folder(dataset)
    with contextlib.suppress(UserError, OSError, ValueError):  # ValueError: settings of another version
        manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else _journal(folder)[1]
        return PersonalConfig.model_validate(manifest.config.get("personal", {}))
    return PersonalConfig()


def _journal(folder: Path) -> tuple[str, DatasetManifest]:
    path = folder / JOURNAL
    value = read_json(path)
    if not isinstance(value, dict) or "match_hash" not in value:
        raise UserError("The note on an interrupted removal is damaged", where=str(path), next_step=AGAIN)
    return str(value["match_hash"]), as_record(DatasetManifest, value.get("manifest"), str(path))


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.is_file():
        for number, (_, _, record) in enumerate(read_lines(path), 1):
            if isinstance(record, dict):
                yield number, record


def _side_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.jsonl") if path.name not in ROW_FILES)


def _matches(file: str, record: Mapping[str, Any], match: Matcher) -> Iterator[tuple[Origin, str]]:
    """Where a line of a data set's file matches: the source record concerned, and an excerpt."""
    if file == "rejects.jsonl":  # holds raw records, and details that may quote them
        parts = [record.get("record"), {"detail": record.get("detail")}]
        excerpts = [(_origins(record)[0], match.finds(part)) for part in parts if record.get("reason") != "forgotten"]
    elif file not in ROW_FILES:  # may tell of two rows: one, and one that was kept in its place
        texts = {k: v for k, v in record.items() if k.removeprefix("kept_") not in (*NO_TEXT, "id", "found")}
        halves = [{k: v for k, v in texts.items() if k.startswith("kept_") == of_kept} for of_kept in (False, True)]
        excerpts = [(origin, match.finds(half)) for origin, half in zip(_origins(record), halves, strict=False)]
    else:
        excerpts = [(_origins(record)[0], match.finds(record, str(record.get("id", ""))))]
    yield from ((origin, excerpt) for origin, excerpt in excerpts if excerpt is not None)


def _origins(record: Mapping[str, Any]) -> list[Origin]:
    """Source and line of a row or reject, or of the two rows that a line of another file tells of."""
    meta = record.get("meta", record)
    keys = (("source", "line"), *([("kept_source", "kept_line")] if "kept_source" in meta else []))
    lines = [line if isinstance(line := meta.get(key), int) else 0 for _, key in keys]
    return [(str(meta.get(source, "")), line) for (source, _), line in zip(keys, lines, strict=True)]


def _is_leftover(path: Path) -> bool:
    """Half of a file that a killed process left: see `tuneloop.core.files.write_bytes`."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


@dataclass(frozen=True)
class Descendant:
    """Something made from a data set."""

    kind: str
    path: str
    id: str
    rows: int | None  # of the person; None: weights, which can't be searched
    why: str
    advice: str


def descendants(subject: SubjectRows, match: Matcher, root: Path | str = ".") -> list[Descendant]:
    """Data sets, runs and evaluations below `root` (to a depth of 4) that come from a data set or hold its matching
    rows. Where nothing matches in the data set itself, only what holds matching rows is listed, and what came of that.

    `subject`: the data set, as it was before the rows were removed.
    """
    folders = []
    for path, inner, _ in os.walk(root):
        depth = len(Path(path).relative_to(root).parts)
        inner[:] = sorted(n for n in inner if depth < DEPTH and not n.startswith(".") and n != "checkpoints")
        folders.append(Path(path))
    names = _ids_and_hashes(subject.manifest) if subject.hits or subject.resumed else set()
    training_names = set(names) if subject.resumed or any(hit.file == "train.jsonl" for hit in subject.hits) else set()
    children: list[Descendant] = []
    for folder in folders:
        if (folder / MANIFEST).is_file() and folder.resolve() != subject.folder.resolve():
            try:
                child = _dataset_child(folder, subject, match, names)
            except UserError as error:
                children.append(Descendant("data set", str(folder), "", None, f"can't be read: {error.what}", LOOK))
                continue
            if child is not None:
                children.append(child)
                names_of_child = _ids_and_hashes(read_manifest(folder))
                names |= names_of_child
                training_names |= names_of_child if _count(folder / "train.jsonl", subject.ids, match) else set()
    for folder in folders:
        if (run := _dataset_use(folder / RUN)) is None:
            continue
        if run.dataset in training_names:
            advice = "train again on the new data set, or delete it: weights can remember rows"
            children.append(Descendant("run", str(folder), run.id, None, "trained on them", advice))
        elif run.dataset in names:
            reason, advice = "trained on the data set, but not on these rows", "its weights may stay"
            children.append(Descendant("run", str(folder), run.id, 0, reason, advice))
    for folder in folders:
        if (evaluation := _dataset_use(folder / EVALUATION)) is None:
            continue
        rows = _count(folder / "samples.jsonl", subject.ids, match)
        reason, advice = "measured on the data set as it was", "its metrics stay good for that one"
        if rows:
            reason, advice = f"quotes {rows} of the rows", "delete it, or evaluate again on the new data set"
        if rows or evaluation.dataset in names:
            children.append(Descendant("evaluation", str(folder), evaluation.name, rows, reason, advice))
    return children


def _ids_and_hashes(manifest: DatasetManifest) -> set[str]:
    last = manifest.forgotten
    removals = [last, *last.earlier] if last else []
    names = {manifest.id, manifest.hash, *(r.was for r in removals), *(r.was_hash for r in removals)}
    return {name for name in names if name}


class _DatasetUse(Part):
    """What a run or an evaluation says of its data set; all else in its file may be of any version."""

    id: str = ""
    name: str = ""
    dataset: str = ""


def _dataset_use(path: Path) -> _DatasetUse | None:
    with contextlib.suppress(UserError, OSError, ValueError):
        return _DatasetUse.model_validate(read_json(path), extra="ignore")
    return None


def _dataset_child(folder: Path, subject: SubjectRows, match: Matcher, ids: Collection[str]) -> Descendant | None:
    manifest = read_manifest(folder)
    files = [*split_files(folder, manifest).values(), folder / "rejects.jsonl"]
    rows = sum(_count(path, subject.ids, match) for path in files)
    config = manifest.config
    mix, split = config.get("mix") or {}, config.get("split") or {}
    places = [*(config.get("sources") or []), *(mix.get("sources") or []), split.get("freeze"), split.get("test")]
    paths = [Path(p).resolve() for p in places if isinstance(p, str) and p]
    uses_it = any(subject.folder.resolve() in (path, path.parent) for path in paths)
    if not rows and not _ids_and_hashes(manifest) & set(ids) and not (subject.hits and uses_it):
        return None
    reason = f"holds {rows} of the rows" if rows else "made from it"
    advice = f"tuneloop data forget {folder} --match ..." if rows else "prepare it again"
    return Descendant("data set", str(folder), manifest.id, rows, reason, advice)


def _count(path: Path, ids: Collection[str], match: Matcher) -> int:
    n = 0
    with contextlib.suppress(UserError, OSError):
        for _, record in _records(path):
            n += record.get("id") in ids or any(_matches(path.name, record, match))
    return n


@dataclass(frozen=True)
class Forgotten:
    """What became of a data set."""

    subject: SubjectRows  # what it held
    rows: int  # removed from splits and rejects
    old_id: str  # before and after
    new_id: str
    descendants: list[Descendant]  # what else was made from it
    files: list[str] = field(default_factory=list)  # files that were rewritten or deleted


def forget(
    dataset: Path | str,
    match: Matcher,
    *,
    runs_root: Path | str = ".",
    measure: Measure | None = None,
    checks: Checks | None = None,
    today: datetime.date | None = None,
) -> Forgotten:
    """Remove a person's rows from a data set, which gets a new hash and id, and list what was made from it.

    The rows go from the splits, from `rejects.jsonl` and `repairs.jsonl`; `report.html` is deleted. What stays is a
    line in `rejects.jsonl` with source, line and the reason `forgotten`, so that every record is accounted for, and
    `forgotten` in the manifest, with a hash of the pattern and never the pattern. The next removal completes an
    interrupted one.

    Args:
        runs_root: folder to search for data sets, runs and evaluations that come from it.
        measure: a row's length in tokens; without it the token statistics stay those from before, and say so.
        checks: the checks of a data set; default: `tuneloop.data.checks.check_dataset`.
        today: date of the removal.

    Raises:
        UserError: no complete data set there, a damaged one, or another process works in it.
    """
    folder = dataset_folder(dataset)
    if not folder.is_dir():
        read_manifest(folder)  # says what is missing
    with lock_folder(folder):
        for left in folder.glob(f"{REHEARSAL}*"):  # of a killed removal: it links to files that hold the rows
            shutil.rmtree(left)
        if (folder / MANIFEST).is_file():  # else an interrupted removal needs it
            (folder / JOURNAL).unlink(missing_ok=True)
        subject = find_rows(folder, match)
        children = descendants(subject, match, runs_root)
        old_id = subject.manifest.id
        if not subject.hits and not subject.resumed:
            return Forgotten(subject, 0, old_id, old_id, children)
        try:
            config = PrepareConfig.model_validate(subject.manifest.config)
        except ValueError:
            message = "The data set was prepared by another version"
            step = "delete the rows from its sources and run `tuneloop prepare` again"
            raise UserError(message, where=str(folder / MANIFEST), next_step=step) from None
        when = today or datetime.date.today()
        with user_errors_of_the_disk(folder):
            if not subject.resumed:
                _rehearse(subject, match, config, measure, when)
                write_json(folder / JOURNAL, {"match_hash": match.hash, "manifest": subject.manifest})
                (folder / MANIFEST).unlink()
            files = _remove(subject)
            manifest = _manifest_after(subject, match, config, measure, checks, when)
            write_record(folder / MANIFEST, manifest)
            (folder / JOURNAL).unlink()
    rows = manifest.forgotten.rows if manifest.forgotten else 0
    return Forgotten(subject, rows, old_id, manifest.id, children, [*files, MANIFEST])


def _rehearse(
    subject: SubjectRows, match: Matcher, config: PrepareConfig, measure: Measure | None, today: datetime.date
) -> None:
    """Do all of it in another folder, on links to the files: what can't be finished leaves the data set as it was."""
    for split, path in split_files(subject.folder, subject.manifest).items():
        if not path.is_file():
            raise UserError(f"The {split} split is missing: nothing was removed", where=str(path), next_step=AGAIN)
    with tempfile.TemporaryDirectory(dir=subject.folder, prefix=REHEARSAL) as scratch:
        copies = Path(scratch)
        for path in subject.folder.iterdir():
            if path.is_file():
                try:
                    os.link(path, copies / path.name)
                except OSError:  # a file system without links
                    shutil.copyfile(path, copies / path.name)
        rehearsed = replace(subject, folder=copies)
        _remove(rehearsed)
        try:
            _manifest_after(rehearsed, match, config, measure, lambda dataset: [], today)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            message = f"The manifest does not fit its files ({type(error).__name__}: {error}): nothing was removed"
            step = "delete the rows from its sources and run `tuneloop prepare` again"
            raise UserError(message, where=str(subject.folder / MANIFEST), next_step=step) from None


def _remove(subject: SubjectRows) -> list[str]:
    """Rewrite the files without the rows; `rejects.jsonl` first, so that no record drops out of the account."""
    folder = subject.folder
    lines = {(hit.file, hit.line) for hit in subject.hits}
    leftovers = [path for path in sorted(folder.iterdir()) if _is_leftover(path)]
    for path in leftovers:
        path.unlink()
    changed = [path.name for path in leftovers]
    files = split_files(folder, subject.manifest)
    counted = {"rejects.jsonl", *(files[split].name for split in SPLITS)}
    due = {(hit.source, hit.source_line) for hit in subject.hits if hit.file in counted and not hit.general}
    rejects = folder / "rejects.jsonl"
    due -= {_origins(record)[0] for _, record in _records(rejects) if record.get("reason") == "forgotten"}
    if due:
        tombs = ({"source": s, "line": n, "reason": "forgotten", "detail": "", "record": None} for s, n in sorted(due))
        new = (json.dumps(tomb, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n" for tomb in tombs)
        changed.append(_rewrite(rejects, itertools.chain(_lines_without(lines, rejects), new)))
    for path in [*_side_files(folder), *files.values()]:
        if any(name == path.name for name, _ in lines):
            changed.append(_rewrite(path, _lines_without(lines, path)))
    if subject.report:
        (folder / "report.html").unlink(missing_ok=True)
        changed.append("report.html")
    return changed


def _lines_without(places: Collection[tuple[str, int]], path: Path) -> Iterator[bytes]:
    for number, (_, line, _) in enumerate(read_lines(path) if path.is_file() else (), 1):
        if (path.name, number) not in places:
            yield line


def _rewrite(path: Path, lines: Iterable[bytes]) -> str:
    """Rewrite a file, whole or not at all; its name. The lines may come from the file itself."""
    with replacing(path) as file:
        file.writelines(lines)
    return path.name


def _manifest_after(
    subject: SubjectRows,
    match: Matcher,
    config: PrepareConfig,
    measure: Measure | None,
    checks: Checks | None,
    today: datetime.date,
) -> DatasetManifest:
    """The manifest of the rewritten files, counted from them: a removal that was interrupted is counted in full."""
    old, folder = subject.manifest, subject.folder
    files = split_files(folder, old)
    rows = {
        split: read_rows(path, (record for _, _, record in read_lines(path)))
        for split, path in files.items()
        if path.is_file()
    }
    reasons = Counter(str(record.get("reason")) for _, record in _records(folder / "rejects.jsonl"))
    repairs = [record for _, record in _records(folder / "repairs.jsonl")]
    sizes: dict[str, int] = {split: sum("mix" not in row.meta for row in rows[split]) for split in SPLITS}
    rows_left, rejected = sum(sizes.values()), reasons.total()
    changes: dict[str, Any] = {
        "splits": records.Splits(**{
            split: _split_after(was, files[split], rows[split], measure) for split, was in old.splits.by_name.items()
        }),
        "rejected": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "repaired": dict(sorted(Counter(str(record.get("kind")) for record in repairs).items())),
        "personal": _personal_after(old, repairs),
        "counts": old.counts.model_copy(
            update={"read": rows_left + rejected - old.counts.added, "kept": rows_left, "rejected": rejected, **sizes}
        ),
    }  # fmt: skip
    if old.mix:
        changes["mix"] = _mix_after(old.mix, rows, measure)
    if old.languages:
        # of the rows that prepare looked at, too: all, or a sample by their ids
        every = 1 if sum(old.languages.values()) >= old.counts.kept else LANGUAGES_EVERY
        task_rows = (row for some in rows.values() for row in some if "mix" not in row.meta)
        looked_at = (row for row in task_rows if int(row.id, 16) % every == 0)
        codes = Counter(language.detect_language(question_text(row))[0] for row in looked_at)
        changes["languages"] = dict(sorted(codes.items(), key=lambda pair: (-pair[1], pair[0])))
    new = old.model_copy(update=changes)
    rows_removed = _rows_with_content(old) - _rows_with_content(new)
    when, was = today.isoformat(), {"was": old.id, "was_hash": old.hash}
    removal = records.Removal(rows=rows_removed, when=when, match_hash=match.hash, **was)
    if last := old.forgotten:
        removal = removal.model_copy(update={"earlier": [*last.earlier, last.model_copy(update={"earlier": []})]})
    digest = dataset_hash({split: rows[split] for split in SPLITS}, config, old.seed or 0, new.mix)
    new = new.model_copy(update={"forgotten": removal, "hash": digest, "id": f"{old.name}-{digest[:12]}"})
    smaller = Dataset(str(folder), new, rows["train"], rows["val"], rows["test"])
    repeated = (checks or check_dataset)(smaller)
    names = {check.name for check in repeated}  # others, that prepare alone can do, stay without their examples
    others = [check.model_copy(update={"examples": []}) for check in old.checks if check.name not in names]
    return new.model_copy(update={"checks": [*repeated, *others]})


def _personal_after(old: DatasetManifest, repairs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Kinds of personal data that were replaced in the rows left; as before where the repairs don't count them."""
    kinds: Counter[str] = Counter()
    for record in repairs:
        if record.get("kind") == "pii":
            if "found" not in record:  # written before there was this key
                return old.personal
            kinds.update(record["found"])
    return dict(sorted(kinds.items()))


def _rows_with_content(manifest: DatasetManifest) -> int:
    rows = sum(split.rows for split in manifest.splits.by_name.values())
    held_out = sum(source.held_out for source in manifest.mix.sources) if manifest.mix else 0
    rejects = sum(n for reason, n in manifest.rejected.items() if reason != "forgotten")
    return rows + held_out + rejects


def _mix_after(mix: Mix, rows: Mapping[str, Sequence[Row]], measure: Measure | None) -> Mix:
    """The manifest's account of general rows with what is left of them; without `measure` tokens stay as they were."""
    left = {split: Counter(row.meta.get("mix") for row in some) for split, some in rows.items()}
    places = {"uses": "train", "test": "test", "held_out": "general"}
    sources = [
        source.model_copy(update={key: left.get(split, Counter())[source.name] for key, split in places.items()})
        for source in mix.sources
    ]
    sizes = {}
    for name, was in (("task", mix.task), ("general", mix.general)):
        some = [row for row in rows.get("train", ()) if ("mix" in row.meta) == (name == "general")]
        tokens = was.tokens
        if measure is not None and len(some) != was.rows:
            tokens = sum(measure(row).tokens for row in some)
        sizes[name] = records.RowsAndTokens(rows=len(some), tokens=tokens)
    of_general, of_task = (getattr(sizes[name], mix.by) for name in ("general", "task"))
    share = round(of_general / (of_general + of_task), 4) if of_general + of_task else 0.0
    return mix.model_copy(update={**sizes, "share": share, "sources": sources})


def _split_after(was: SplitFile, path: Path, rows: Sequence[Row], measure: Measure | None) -> SplitFile:
    """A split in the manifest, statistics of the task's rows; without `measure` the old ones, with their rows."""
    task_rows = [row for row in rows if "mix" not in row.meta]
    about: dict[str, Any] = {"rows": len(rows), "sha256": sha256_file(path)}
    if was.labels:
        about["labels"] = label_counts(task_rows)
    if was.rows != len(rows) and was.tokens:
        if measure is None:
            about["tokens"] = was.tokens.model_copy(update={"of_rows": was.tokens.of_rows or was.rows})
        else:
            counts = [measure(row) for row in task_rows]
            statistics = token_statistics([c.tokens for c in counts], sum(c.supervised for c in counts))
            about["tokens"] = records.TokenStatistics(**statistics)
    return was.model_copy(update=about)
