"""`tuneloop ui`: the pages on an address of this machine until stopped."""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlencode

from pydantic import Field

from tuneloop.core.access import of_owner, owners_secret
from tuneloop.core.errors import UserError
from tuneloop.core.files import Config
from tuneloop.web.index import Index
from tuneloop.web.sources import Sources
from tuneloop.web.speaker import close_all


class WebConfig(Config):
    """Settings of `tuneloop ui`."""

    host: str = Field("127.0.0.1", description="address to listen on; another than this machine's own only reads")
    port: int = Field(8140, ge=0, le=65535, description="port; 0 takes a free one")

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in ("127.0.0.1", "::1", "localhost")


def make_sources(
    folders: Sequence[str], stores: Sequence[str], *, read_only: bool = False, local: bool = True
) -> Sources:
    """The sources of some folders, of the current one by default. Raises UserError: one is not there."""
    paths = tuple(Path(folder) for folder in folders or ["."])
    for path in paths:
        if not path.is_dir():
            raise UserError("No such folder", where=str(path), next_step="tuneloop ui FOLDER")
    who = ""
    with contextlib.suppress(OSError, KeyError):  # a user without a name
        who = getpass.getuser()
    return Sources(Index(paths), tuple(stores), read_only or not local, local, who=who)


def export_to(sources: Sources, folder: str, names: Sequence[str] = (), *, texts: bool = True) -> list[Path]:
    """See `web.export.export_pages`. Raises UserError: the web packages are missing too."""
    try:
        from tuneloop.web.export import export_pages
    except ImportError as error:
        raise _missing(error) from None
    return export_pages(sources, Path(folder), names, texts=texts)


def _missing(error: ImportError) -> UserError:
    return UserError(f"Missing package {error.name}", next_step="pip install 'tuneloop[serve]'")


def serve_pages(sources: Sources, config: WebConfig, ready: Callable[[str], None]) -> None:
    """Serve until interrupted (Ctrl-C, SIGTERM); `ready` gets the address, with the secret that opens it, in time.

    Raises:
        UserError: the web packages are missing, the port is taken, or the secret of the environment is too short.
    """
    try:
        from tuneloop.core.http_server import GuardedServer, listen
        from tuneloop.web.apart import page_work
        from tuneloop.web.app import make_app
    except ImportError as error:
        raise _missing(error) from None
    secret = owners_secret()
    try:
        listening = listen(config.host, config.port)
    except OSError as error:
        message = f"Can't listen on {config.host}:{config.port}: {error.strerror}"
        raise UserError(
            message, where="port", next_step="choose another: port=8141, or port=0 for a free one"
        ) from None
    pages = page_work(1)
    pages.warm(sources)
    access = of_owner(secret, sources.who, read_only=sources.read_only)
    server = GuardedServer(make_app(sources, access, pages), log_level="warning", timeout_graceful_shutdown=1)
    address = f"[{config.host}]" if ":" in config.host else config.host
    ready(f"http://{address}:{listening.getsockname()[1]}{sources.base}/?{urlencode({'token': secret})}")
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    finally:
        pages.work.stop()
        close_all()
