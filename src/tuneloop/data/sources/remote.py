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

from tuneloop.core.errors import UserError
from tuneloop.core.files import cache_folder, content_hash, make_folder, sha256_file, user_errors_of_the_disk
from tuneloop.core.object_store import open_store
from tuneloop.core.ui import progress
from tuneloop.core.urls import masked

LEFT = 1 << 30  # bytes of the disk that stay free
TRIES = 5  # of a file that breaks off, each of which continues where the one before ended
PATIENCE = 60.0  # seconds without a byte
WAIT = 1.0  # seconds before the second try; twice as many before each further one
_DATASET = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+(?:/convert/[^/]+)?))?(/.*)?")


def fetched(url: str, readable: frozenset[str]) -> list[tuple[Path, str]]:
    """A file, or the files of a folder that can be read, as copies, each with its pinned address.

    `#sha256=DIGEST` behind the address of a file pins its content. `readable`: endings of names, as `.jsonl`. Raises
    UserError: there is none, the service refuses, does not answer or breaks off, or the disk has no room.
    """
    url, _, pin = url.partition("#sha256=")
    if pin:
        files = fetched(url, readable)
        if (digest := sha256_file(files[0][0])) != pin.lower() or len(files) > 1:
            files[0][0].unlink()
            what = f"Not the file that was meant: its SHA-256 is {digest}"
            raise UserError(what, where=masked(url), next_step="look at what has changed there")
        return files
    if url.startswith(("http://", "https://")):
        return [_from_web(url)]
    store = open_store(pinned(url))
    sizes = store.sizes()
    if not sizes:
        raise UserError("No such file", where=url, next_step="check bucket and path")
    names = [name for name in sorted(sizes) if (name or url).lower().endswith(tuple(readable))]
    files = []
    for number, name in enumerate(names):
        whole = f"{store.url}/{name}".rstrip("/")
        place = _place([whole, sizes[name], store.version(name)], Path(whole).name)
        if not place.is_file():
            _refuse_full_disk(sizes[name], whole)
            progress("fetching", number, len(names))
            store.get(name, place)
        files.append((place, whole))
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
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

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
    except HfHubHTTPError as error:
        raise UserError(f"The hub refuses: {str(error).splitlines()[0]:.160}", where=url) from None
    except Exception as error:  # the network's, of another library in each major version
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("http", "requests")):
            raise
        step = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        raise UserError(f"The hub can't be reached: {error!s:.160}", where=hub.endpoint, next_step=step) from None
    return f"hf://datasets/{repo}@{sha}{path or ''}"


def _place(facts: list[object], name: str) -> Path:
    return cache_folder() / "sources" / content_hash(facts)[:16] / name


def _refuse_full_disk(size: int, where: str) -> None:
    folder = cache_folder()
    make_folder(folder)
    free = shutil.disk_usage(folder).free - LEFT
    if size > free:
        step = "free space, name another place with TUNELOOP_CACHE, or fetch a part"
        what = f"{size / 1e9:,.1f} GB do not fit: {max(free, 0) / 1e9:,.1f} GB are free in {folder}"
        raise UserError(what, where=where, next_step=step)


# --- web servers -------------------------------------------------------------------------------


def _from_web(url: str) -> tuple[Path, str]:
    """A file of a web server; one that breaks off continues, where the server says that it is still the same file."""
    shown, name = masked(url), unquote(Path(urlsplit(url).path).name) or "data"
    part = _place([url], f"{name}.part")
    make_folder(part.parent)
    version, length, wait, fault = "", -1, WAIT, ""
    part.unlink(missing_ok=True)
    for left in reversed(range(TRIES)):
        try:
            version, length = _continue(url, part, version, length)
            size = part.stat().st_size
            if length >= 0 and size > length:
                raise UserError(f"The server sent {size:,} bytes of a file of {length:,}", where=shown)
            if length < 0 or size == length:
                place = _place([url, size, version], name)
                make_folder(place.parent)
                part.replace(place)
                return place, shown
            fault = f"it ended after {size:,} of {length:,} bytes"
        except HTTPError as error:
            fault = f"{error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 416, 425, 429):
                step = "check the address" + (", and the key in it" if error.code in (401, 403) else "")
                raise UserError(f"The server refuses: {fault}", where=shown, next_step=step) from None
            if error.code == 416:
                part.unlink(missing_ok=True)
        except (URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            fault = str(getattr(error, "reason", "") or error or type(error).__name__)
        if left:
            time.sleep(wait)
            wait *= 2
    part.unlink(missing_ok=True)
    step = "check the address and the network, then try again"
    raise UserError(f"The file can't be fetched whole: {fault}", where=shown, next_step=step)


def _continue(url: str, part: Path, version: str, length: int) -> tuple[str, int]:
    """Fetch what is missing of a file; returns its version and its length in bytes, -1: not said."""
    start = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"}
    if start and version:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    with urlopen(Request(url, headers=headers), timeout=PATIENCE) as reply, user_errors_of_the_disk(part):  # noqa: S310
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
