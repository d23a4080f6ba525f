"""What goes to the Hugging Face hub: what would be sent, and sending it in one commit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.records.artifact import ARTIFACT, SIGNATURE
from tuneloop.registry import read_intact

UNREACHABLE = "can't be reached"
PLACE = re.compile(r"hub:([\w-][\w.-]*/[\w.-]+)")


@dataclass(frozen=True)
class Push:
    """What goes to the hub."""

    repo: str  # `ORG/NAME`
    files: dict[str, int]  # name -> bytes
    url: str = ""  # of the commit; empty in a dry run


def push(folder: Path, destination: str, *, send: bool = False, public: bool = False) -> Push:
    """Upload an artifact as a model repository; see `upload`.

    Args:
        destination: `hub:ORG/NAME`.

    Raises:
        UserError: no such place, a changed artifact, no token, or a hub that refuses or can't be reached.
    """
    repo, manifest = repository_of(destination), read_intact(folder)
    names = [*manifest.files, ARTIFACT, *([SIGNATURE] if (folder / SIGNATURE).is_file() else [])]
    files: dict[str, Path | bytes] = {name: folder / name for name in names}
    return upload(repo, files, "model", f"tuneloop: {manifest.id}", send=send, public=public)


def repository_of(destination: str) -> str:
    """`ORG/NAME` of `hub:ORG/NAME`; UserError: it is another kind of place."""
    match = PLACE.fullmatch(destination)
    if match is None:
        raise UserError(f"Not a place on the hub: {destination!r}", where="DESTINATION", next_step="write hub:ORG/NAME")
    return match[1]


def upload(
    repo: str, files: Mapping[str, Path | bytes], kind: str, message: str, *, send: bool = False, public: bool = False
) -> Push:
    """Upload files, by their names in the repository, in one commit.

    Args:
        kind: of the repository, `model` or `dataset`.
        send: else nothing is sent, and only what would be is returned.
        public: for everyone to see, where the repository is new.

    Raises:
        UserError: no token, or a hub that refuses or can't be reached.
    """
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    planned = Push(repo, sizes)
    if not send:
        return planned
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    hub = HfApi()
    destination = f"hub:{repo}"
    try:
        hub.create_repo(repo, repo_type=kind, private=not public, exist_ok=True)
        added = [
            CommitOperationAdd(name, file if isinstance(file, bytes) else str(file)) for name, file in files.items()
        ]
        commit = hub.create_commit(repo, added, commit_message=message, repo_type=kind)
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        step = "set HF_TOKEN to one that may write there" if code in (401, 403) else "check the name, then push again"
        raise UserError(f"The hub refuses: {_first_line(error)}", where=destination, next_step=step) from None
    except Exception as error:
        # The network's failures are OSErrors, or of the HTTP library, which is another one in each major version.
        network = isinstance(error, OSError) or type(error).__module__.startswith(("http", "requests"))
        if not network and not isinstance(error, RuntimeError | ValueError):
            raise
        problem = f"The hub {UNREACHABLE if network else 'refuses'}: {_first_line(error)}"
        step = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, then push again: no file is sent twice"
        raise UserError(problem, where=hub.endpoint, next_step=step) from None
    return Push(repo, sizes, str(commit.commit_url))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
