"""An artifact on the Hugging Face hub: what would be sent, and sending it in one commit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.records.artifact import ARTIFACT, SIGNATURE
from tuneloop.registry.verify import read_intact

UNREACHABLE = "can't be reached"
PLACE = re.compile(r"hub:([\w-][\w.-]*/[\w.-]+)")


@dataclass(frozen=True)
class Push:
    """What goes to the hub."""

    repo: str  # `ORG/NAME`
    files: dict[str, int]  # name -> bytes
    url: str = ""  # of the commit; empty in a dry run


def push(folder: Path, place: str, *, send: bool = False, public: bool = False) -> Push:
    """Upload an artifact as a model repository.

    Args:
        place: `hub:ORG/NAME`.
        send: else nothing is sent, and only what would be is returned.
        public: for everyone to see, where the repository is new.

    Raises:
        UserError: no such place, a changed artifact, no token, or a hub that refuses or can't be reached.
    """
    match = PLACE.fullmatch(place)
    if match is None:
        raise UserError(f"Not a place on the hub: {place!r}", where="DESTINATION", next_step="write hub:ORG/NAME")
    manifest = read_intact(folder)
    names = [*manifest.files, ARTIFACT, *([SIGNATURE] if (folder / SIGNATURE).is_file() else [])]
    planned = Push(match[1], {name: (folder / name).stat().st_size for name in names})
    if not send:
        return planned
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    hub = HfApi()
    try:
        hub.create_repo(planned.repo, repo_type="model", private=not public, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=planned.repo, folder_path=folder, allow_patterns=names, commit_message=f"tuneloop: {manifest.id}"
        )
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        step = "set HF_TOKEN to one that may write there" if code in (401, 403) else "check the name, then push again"
        raise UserError(f"The hub refuses: {_first_line(error)}", where=place, next_step=step) from None
    except Exception as error:
        # The network's failures are OSErrors, or of the HTTP library, which is another one in each major version.
        network = isinstance(error, OSError) or type(error).__module__.startswith(("http", "requests"))
        if not network and not isinstance(error, RuntimeError | ValueError):
            raise
        what = f"The hub {UNREACHABLE if network else 'refuses'}: {_first_line(error)}"
        step = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, then push again: no file is sent twice"
        raise UserError(what, where=hub.endpoint, next_step=step) from None
    return Push(planned.repo, planned.files, str(commit.commit_url))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
