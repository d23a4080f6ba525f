"""Folders that are kept in an object store as well: S3, Google Cloud Storage, Azure, or whatever else fsspec speaks."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import replacing

# What fsspec needs for a protocol besides itself.
_S3, _GCS = "'tuneloop[s3]'", "'tuneloop[gcs]'"
PACKAGES = {"s3": _S3, "s3a": _S3, "gs": _GCS, "gcs": _GCS, "az": "adlfs", "abfs": "adlfs"}
# Words of errors -> what they mean, and what to do.
_SIGNS: tuple[tuple[str, str, str], ...] = (
    (r"expiredtoken|token.{0,20}expired|expired.{0,20}(token|credential)|invalid_grant|invalid credentials",
     "The token has expired",
     "sign in again (aws sso login, or gcloud auth application-default login); the same command then continues"),
    (r"nosuchbucket|bucket does not exist|bucket.{0,40}not found|filenotfounderror \S*\bb/[^/\s]+/o(\s|$)",
     "There is no such bucket", "check the name, or make the bucket first"),
    (r"invalidaccesskeyid|signaturedoesnotmatch|invalidtoken",
     "The access key is not known there", "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    (r"nocredentials|unable to locate credentials|could not .{0,30}credentials|anonymous caller",
     "No credentials for the object store were found",
     "sign in (aws configure, gcloud auth application-default login), or set its variables of the environment"),
    (r"accessdenied|access denied|forbidden|403|permission|does not have storage",
     "No right to use this bucket", "give this user the rights to list, read, write and delete objects there"),
    (r"endpointconnection|cannot connect|could not connect|connection refused|name or service not known|timed? ?out",
     "The object store does not answer", "check the network, and a set AWS_ENDPOINT_URL or STORAGE_EMULATOR_HOST"),
    (r"filenotfounderror", "There is no such file in the object store", "check the address"),
)  # fmt: skip


@dataclass(frozen=True)
class Store:
    """A folder of an object store. Every method raises a `UserError` where the store refuses or does not answer."""

    url: str  # of the folder
    system: Any  # fsspec's file system
    path: str  # of the folder in it

    def inner(self, name: str) -> Store:
        return Store(f"{self.url}/{name}", self.system, f"{self.path}/{name}")

    def sizes(self) -> dict[str, int]:
        """Bytes of each file in the folder and below it, by its path within the folder; nothing where there is none."""
        with _clear(self.url):
            self.system.invalidate_cache()
            files = self.system.find(self.path, detail=True)
            return {name.removeprefix(self.path).lstrip("/"): int(about["size"]) for name, about in files.items()}

    def version(self, name: str) -> str:
        """What changes when a file of the folder does: its tag, or the time at which it was written."""
        with _clear(self._place(name)):
            about = self.system.info(self._path(name))
        keys = ("ETag", "etag", "LastModified", "mtime", "created")
        return str(next((about[key] for key in keys if about.get(key)), ""))

    def _path(self, name: str) -> str:
        return f"{self.path}/{name}".rstrip("/")

    def _place(self, name: str) -> str:
        return f"{self.url}/{name}".rstrip("/")

    def put(self, file: Path, name: str) -> None:
        """Copy a file into the folder."""
        with _clear(f"{self.url}/{name}"):
            self.system.put_file(str(file), f"{self.path}/{name}")

    def get(self, name: str, file: Path) -> None:
        """Copy a file out of the folder; it is there whole or not at all."""
        with _clear(self._place(name)), self.system.open(self._path(name), "rb") as source, replacing(file) as target:
            while part := source.read(1 << 22):
                target.write(part)

    def remove(self, names: list[str]) -> None:
        """Delete files of the folder."""
        for name in names:
            with _clear(f"{self.url}/{name}"):
                self.system.rm_file(f"{self.path}/{name}")

    def push(self, folder: Path, *, only: str = "", sizes: dict[str, int] | None = None) -> int:
        """Copy what the store has not, or has in another size; returns the number of files.

        Args:
            only: part of the folder, as `checkpoints`; empty: all of it.
            sizes: as `sizes`, where it was read already.
        """
        there = self.sizes() if sizes is None else sizes
        number = 0
        for file in sorted(path for path in (folder / only).rglob("*") if path.is_file()):
            if file.name.startswith("."):
                continue
            name = file.relative_to(folder).as_posix()
            if there.get(name) != file.stat().st_size or file.suffix in (".json", ".jsonl", ".yaml", ".html"):
                self.put(file, name)
                number += 1
        return number

    def pull(self, folder: Path, *, newer: bool = True, sizes: dict[str, int] | None = None) -> int:
        """Copy what this machine has not; returns the number of files.

        Args:
            newer: whether files that are here in another size are replaced too.
            sizes: as `sizes`, where it was read already.
        """
        number = 0
        for name, size in sorted((self.sizes() if sizes is None else sizes).items()):
            file = folder / name
            if not file.is_file() or (newer and file.stat().st_size != size):
                self.get(name, file)
                number += 1
        return number


def open_store(url: str) -> Store:
    """A folder of an object store by its address; UserError: an unknown kind of store, or its package is missing."""
    url = url.rstrip("/")
    kind = url.split("://", 1)[0]
    if "::" in url:  # fsspec would open a file within a file, or a copy of it elsewhere
        raise UserError("An address within an address", where=url, next_step="write it as s3://BUCKET/FOLDER")
    try:
        import fsspec
    except ImportError:
        step = f"pip install {PACKAGES.get(kind, 'fsspec')}"
        raise UserError("fsspec is not installed", where=url, next_step=step) from None
    try:
        # A kept listing would hide what other machines write: a file that grew would even be read as long as it was.
        fresh = {"use_listings_cache": False} if kind in ("s3", "s3a", "gs", "gcs") else {}
        system, path = fsspec.url_to_fs(url, **fresh)
    except ImportError:
        step = f"pip install {PACKAGES.get(kind, 'the package that fsspec names')}"
        raise UserError(f"What speaks {kind}:// is not installed", where=url, next_step=step) from None
    except Exception as error:  # of many packages: an address that is none, a service that does not answer
        step, reason = "write it as s3://BUCKET/FOLDER", _without_login(f"{error!s:.200}", url)
        raise UserError(f"Not an object store: {reason}", where=url, next_step=step) from None
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs each refusal with its traceback, and raises it too
    return Store(url, system, str(path).rstrip("/"))


@contextmanager
def _clear(url: str) -> Iterator[None]:
    """Turn what a store raises into words for the user."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        chain: list[str] = []
        at: BaseException | None = error
        while at is not None and len(chain) < 4:
            chain.append(f"{type(at).__name__} {at}")
            at = at.__cause__ or at.__context__
        text = " ".join(chain).lower()
        refusal = _without_login(f"{chain[0]:.200}", url)
        other = f"The object store refuses: {refusal}", "look at the bucket's rights and its region"
        message, step = next(((problem, step) for sign, problem, step in _SIGNS if re.search(sign, text)), other)
        raise UserError(message, where=url, next_step=step) from None


def _without_login(text: str, url: str) -> str:
    """What a service says of an address, without the password that is in it."""
    login = url.partition("://")[2].rpartition("@")[0]
    return text.replace(login, "***") if ":" in login else text
