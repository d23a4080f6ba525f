"""Check what uv.lock names, and the lowest versions that pyproject.toml admits, against known vulnerabilities.

    python requirements/audit.py all.zip     # OSV's export for PyPI: https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip
    python requirements/audit.py FOLDER      # of OSV records (https://ossf.github.io/osv-schema/), one a JSON file
    python requirements/audit.py https://... # an address of such a zip

Exit status 0 only where every package was compared with records that are fresh: a hit, a package or a record that can't
be compared, an old or an empty export and an address that doesn't answer are exit status 1. What is accepted for a while
stands in accepted.toml, by the record's name, with a reason and a last day.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parent.parent
MAX_AGE_DAYS = 30  # of the newest record: OSV's export has new ones every day
Record = dict[str, Any]


class Pin(NamedTuple):
    """A version to compare, and the file that admits it."""

    name: str
    version: str
    origin: str


def locked(lock: dict[str, Any]) -> Iterator[Pin]:
    """Every package of uv.lock but this one. Those that come from elsewhere than an index have no version to compare."""
    for package in lock["package"]:
        if "editable" not in package["source"]:
            version = package.get("version", "") if "registry" in package["source"] else ""
            yield Pin(canonicalize_name(package["name"]), version, "uv.lock")


def floors(project: dict[str, Any]) -> Iterator[Pin]:
    """The lowest version of each requirement, where it names one."""
    extras = project["project"].get("optional-dependencies", {}).values()
    groups = project.get("dependency-groups", {}).values()
    lines = {
        *project.get("build-system", {}).get("requires", ()),
        *project["project"]["dependencies"],
        *(line for lines in (*extras, *groups) for line in lines),
    }
    for line in sorted(lines):
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            yield Pin(line, "", "pyproject.toml")
            continue
        for bound in requirement.specifier:
            if bound.operator in (">=", "==", "~="):
                yield Pin(canonicalize_name(requirement.name), bound.version, "pyproject.toml")


def records_at(source: str) -> Iterator[Record]:
    """The OSV records of a folder, a zip, a JSON file, or the address of a zip."""
    if source.startswith("https://"):
        with urllib.request.urlopen(source, timeout=60) as answer:
            yield from records_of_zip(answer.read())
    elif Path(source).is_dir():
        for path in sorted(Path(source).rglob("*.json")):
            yield json.loads(path.read_text(encoding="utf-8"))
    elif zipfile.is_zipfile(source):
        yield from records_of_zip(Path(source).read_bytes())
    else:
        yield json.loads(Path(source).read_text(encoding="utf-8"))


def records_of_zip(data: bytes) -> Iterator[Record]:
    """The records in a zip, in its order."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            if name.endswith(".json"):
                yield json.loads(archive.read(name))


def in_events(version: Version, events: list[dict[str, str]]) -> bool:
    """Whether a version lies in a range of OSV: from an `introduced` on, up to `fixed`, or to `last_affected` with it."""
    inside = False
    bounds = [(kind, text) for event in events for kind, text in event.items() if kind != "limit"]
    for kind, text in sorted(bounds, key=lambda bound: Version(bound[1])):
        bound = Version(text)
        if kind == "introduced":
            inside = inside or text == "0" or version >= bound
        elif version > bound or (version == bound and kind == "fixed"):
            inside = False
    return inside


def affects(affected: dict[str, Any], version: Version) -> bool:
    """Whether an entry of a record names a version. ValueError where it names neither versions nor a range of them."""
    ranges = [found["events"] for found in affected.get("ranges", ()) if found["type"] in ("ECOSYSTEM", "SEMVER")]
    listed = affected.get("versions", ())
    if not ranges and not listed:
        raise ValueError("no versions and no range")
    named = {text for text in listed if text == str(version)}
    for text in listed:
        try:
            named |= {text} if Version(text) == version else set()
        except InvalidVersion:
            continue  # a version that no installer takes
    return bool(named) or any(in_events(version, events) for events in ranges)


def accepted(folder: Path, today: date) -> set[str]:
    """The names of records that are accepted today."""
    path = folder / "requirements" / "accepted.toml"
    entries = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name for name, entry in entries.items() if entry["reason"] and entry["until"] >= today}


def findings(pins: list[Pin], records: list[Record], passes: set[str], today: date) -> tuple[list[str], list[str]]:
    """Vulnerabilities, and what could not be compared, each as a line."""
    hits, skipped = [], []
    versions: dict[str, list[tuple[Pin, Version]]] = {}
    for pin in pins:
        try:
            versions.setdefault(pin.name, []).append((pin, Version(pin.version)))
        except InvalidVersion:
            skipped.append(f"{pin.name} of {pin.origin} has no version to compare: {pin.version or 'none'}")
    newest, count = "", 0
    for record in records:
        name = record.get("id", "a record without a name")
        entries = [entry for entry in record.get("affected", ()) if entry.get("package", {}).get("ecosystem") == "PyPI"]
        newest, count = max(newest, record.get("modified", "") if entries else ""), count + bool(entries)
        if record.get("withdrawn") or passes & {name, *record.get("aliases", ())}:
            continue
        for entry in entries:
            for pin, version in versions.get(canonicalize_name(entry["package"]["name"]), ()):
                try:
                    hit = affects(entry, version)
                except (ValueError, KeyError, TypeError) as error:
                    skipped.append(f"{name} can't be compared with {pin.name} {pin.version}: {error}")
                    continue
                if hit:
                    aliases = ", ".join([name, *record.get("aliases", ())])
                    hits.append(f"{pin.name} {pin.version} of {pin.origin}: {aliases} {record.get('summary', '')}")
    if not count:
        skipped.append(f"all {len(pins)} packages: there are no records for PyPI in it")
    elif newest[:10] < str(today - timedelta(days=MAX_AGE_DAYS)):
        skipped.append(
            f"what was found since {newest[:10]}: the newest of {count} records is older than {MAX_AGE_DAYS} days"
        )
    return sorted(set(hits)), sorted(set(skipped))


def main() -> int:
    """Print what was found, what was skipped, and how much was compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("advisories", help="a folder, a zip or an https address of OSV records")
    parser.add_argument("--project", type=Path, default=ROOT, help="the folder of uv.lock and pyproject.toml")
    options = parser.parse_args()
    files = {name: tomllib.loads((options.project / name).read_text("utf-8")) for name in ("uv.lock", "pyproject.toml")}
    pins = [*locked(files["uv.lock"]), *floors(files["pyproject.toml"])]
    try:
        records = list(records_at(options.advisories))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        print(
            f"error: advisories could not be read from {options.advisories}: {reason}\nNothing was checked.\n"
            "next:  give a copy of OSV's export: make audit ADVISORIES=all.zip",
            file=sys.stderr,
        )
        return 1
    today = datetime.now(UTC).date()
    hits, skipped = findings(pins, records, accepted(options.project, today), today)
    for hit in hits:
        print(f"vulnerable: {hit}")
    for line in skipped:
        print(f"skipped: {line}")
    print(f"{len(pins)} versions compared with {len(records)} records: {len(hits)} vulnerable, {len(skipped)} skipped")
    return bool(hits or skipped)


if __name__ == "__main__":
    sys.exit(main())
