"""Sources on data hubs, in object stores and on web servers, as copies in the cache.

A copy's place follows from address, size and version, so that what has not changed is not fetched again. A data set of
the Hugging Face hub is pinned: its address is kept with the commit that its revision names.
"""

from __future__ import annotations

import http.client
import re
import shutil
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from tuneloop.core.confined import refuse_when_confined
from tuneloop.core.errors import UserError
from tuneloop.core.files import cache_folder, content_hash, make_folder, sha256_file, user_errors_of_the_disk
from tuneloop.core.object_store import open_store
from tuneloop.core.ui import progress
from tuneloop.core.urls import basic_login, masked, split_login

LEFT = 1 << 30  # bytes of the disk that stay free
TRIES = 5  # of a file that breaks off, each of which continues where the one before ended
PATIENCE = 60.0  # seconds without a byte
WAIT = 1.0  # seconds before the second try; twice as many before each further one
_NOT_IN_NAMES = re.compile(r"[^\w.-]|^\.+")  # of copies: no separators, control characters or hidden files
_DATASET = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+(?:/convert/[^/]+)?))?(/.*)?")


def fetched(url: str, readable: frozenset[str]) -> list[tuple[Path, str]]:
    """A file, or the files of a folder that can be read, as copies, each with its pinned address.

    `#sha256=DIGEST` behind the address of a file pins its content. `readable`: endings of names, as `.jsonl`. Raises
    UserError: there is none, the service refuses, does not answer or breaks off, or the disk has no room.
    """
    refuse_when_confined("Addresses are not opened", masked(url))
    url, mark, pin = url.partition("#sha256=")
    if mark or ("#" in url and _is_web(url)):
        if not re.fullmatch(r"[0-9a-fA-F]{64}", pin):
            step = "write #sha256= and 64 hexadecimal digits behind the address, as sha256sum prints them"
            raise UserError("What follows # is no SHA-256", where=masked(url + mark + pin), next_step=step)
        files = fetched(url, readable)
        if len(files) != 1:
            raise UserError(f"A SHA-256 is of one file, not of {len(files)}", where=masked(url))
        if (digest := sha256_file(files[0][0])) != pin.lower():
            files[0][0].unlink()
            message = f"Not the file that was meant: its SHA-256 is {digest}"
            raise UserError(message, where=masked(url), next_step="look at what has changed there")
        return files
    if _is_web(url):
        return [_from_web(url)]
    store = open_store(pinned(url))
    sizes = store.sizes()
    if not sizes:
        raise UserError("No such file", where=url, next_step="check bucket and path")
    names = [name for name in sorted(sizes) if (name or url).lower().endswith(tuple(readable))]
    files = []
    for number, name in enumerate(names):
        whole = f"{store.url}/{name}".rstrip("/")
        path = _place([whole, sizes[name], store.version(name)], whole)
        if not path.is_file():
            _refuse_full_disk(sizes[name], whole)
            progress("fetching", number, len(names))
            store.get(name, path)
        files.append((path, whole))
    return files


def pinned(url: str) -> str:
    """The address of a data set of the Hugging Face hub with the commit that its revision names; others as they are."""
    match = _DATASET.fullmatch(url)
    if match is None:
        if url.startswith("hf://"):
            step = "write hf://datasets/OWNER/NAME@REVISION/FILE; @REVISION may be left out"
            raise UserError("Not a data set of the hub", where=url, next_step=step)
        return url
    repo, revision, path = match.groups()
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return url
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = HfApi()
    try:
        sha = hub.dataset_info(repo, revision=revision, timeout=PATIENCE).sha
    except GatedRepoError:
        step = "accept its terms on its page, and set HF_TOKEN"
        raise UserError("The data set is gated", where=url, next_step=step) from None
    except RevisionNotFoundError:
        raise UserError(f"No revision {revision!r}", where=url, next_step="name a branch, tag or commit") from None
    except RepositoryNotFoundError:
        step = "check the name; for a private one set HF_TOKEN"
        raise UserError("No such data set on the hub", where=url, next_step=step) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(f"The hub refuses: {str(error).splitlines()[0]:.160}", where=url) from None
    except Exception as error:  # the network's, of another library in each major version; what is no answer of a hub
        step = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        raise UserError(f"The hub can't be reached: {error!s:.160}", where=hub.endpoint, next_step=step) from None
    if not re.fullmatch(r"[0-9a-f]{40}", str(sha)):
        raise UserError(f"The hub names no commit: {sha!r:.80}", where=hub.endpoint, next_step="check HF_ENDPOINT")
    return f"hf://datasets/{repo}@{sha}{path or ''}"


def _place(facts: list[object], address: str) -> Path:
    """Of a copy in the cache; the end of its name is that of the address's last part, by which its kind is known."""
    name = _NOT_IN_NAMES.sub("_", address.rpartition("/")[2])[-50:]  # of at most 4 bytes each
    return cache_folder() / "sources" / content_hash(facts)[:16] / (name or "data")


def _refuse_full_disk(size: int, where: str) -> None:
    folder = cache_folder()
    make_folder(folder)
    free = shutil.disk_usage(folder).free - LEFT
    if size > free:
        step = "free space, name another place with TUNELOOP_CACHE, or fetch a part"
        message = f"{size / 1e9:,.1f} GB do not fit: {max(free, 0) / 1e9:,.1f} GB are free in {folder}"
        raise UserError(message, where=where, next_step=step)


# --- web servers -------------------------------------------------------------------------------


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _from_web(url: str) -> tuple[Path, str]:
    """A file of a web server; one that breaks off continues, where the server says that it is still the same file."""
    shown = masked(url)
    part = _place([url], ".part")
    make_folder(part.parent)
    try:
        name = unquote(urlsplit(url).path)
        part.unlink(missing_ok=True)
        size, version = _fetch(url, part)
        path = _place([url, size, version], name)
        make_folder(path.parent)
        part.replace(path)
        return path, shown
    except (ValueError, http.client.InvalidURL) as error:
        raise UserError(f"Not an address: {error!s:.160}", where=shown, next_step="check the address") from None
    finally:
        part.unlink(missing_ok=True)


def _fetch(url: str, part: Path) -> tuple[int, str]:
    """Fetch a file whole; returns its size in bytes and its version."""
    shown, version, length, wait, fault = masked(url), "", -1, WAIT, ""
    for left in reversed(range(TRIES)):
        try:
            version, length = _continue(url, part, version, length)
            size = part.stat().st_size
            if length >= 0 and size > length:
                raise UserError(f"The server sent {size:,} bytes of a file of {length:,}", where=shown)
            if length < 0 or size == length:
                return size, version
            fault = f"it ended after {size:,} of {length:,} bytes"
        except HTTPError as error:
            fault = " ".join(f"{error.code} {error.reason}".split())[:160]
            if error.code < 500 and error.code not in (408, 416, 425, 429):
                step = "check the address" + (", and the key in it" if error.code in (401, 403) else "")
                raise UserError(f"The server refuses: {fault}", where=shown, next_step=step) from None
            if error.code == 416:
                part.unlink(missing_ok=True)
        except http.client.InvalidURL:
            raise
        except (URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            fault = str(getattr(error, "reason", "") or error or type(error).__name__)[:160]
        if left:
            time.sleep(wait)
            wait *= 2
    step = "check the address and the network, then try again"
    raise UserError(f"The file can't be fetched whole: {fault}", where=shown, next_step=step)


def _continue(url: str, part: Path, version: str, length: int) -> tuple[str, int]:
    """Fetch what is missing of a file; returns its version and its length in bytes, -1: not said."""
    start = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"}
    if start and version:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    address, login = split_login(url)
    request = Request(address, headers=headers)  # noqa: S310 - http or https
    if login is not None:
        request.add_unredirected_header("Authorization", basic_login(login))  # another host gets none
    with urlopen(request, timeout=PATIENCE) as reply, user_errors_of_the_disk(part):  # noqa: S310
        new = reply.headers.get("ETag") or reply.headers.get("Last-Modified") or ""
        says = reply.headers.get("Content-Length")
        if reply.status == 206 and new == version:
            mode, whole = "ab", length
        else:
            mode, start = "wb", 0
            whole = int(says) if says and says.isdigit() else -1
        _refuse_full_disk(max(whole - start, 0), masked(url))
        with part.open(mode) as file:
            try:
                while data := reply.read(1 << 20):
                    file.write(data)
                    progress("fetching", file.tell(), max(whole, file.tell()))
                    if whole < 0:
                        _refuse_full_disk(len(data), masked(url))
            except (http.client.IncompleteRead, TimeoutError, ConnectionError):
                pass  # what came stays; the next try continues there
        if whole < 0 and not reply.isclosed():
            raise ConnectionError("the connection was cut")
        return "" if new.startswith("W/") else new, whole
