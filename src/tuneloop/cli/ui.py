"""`tuneloop ui`: see and steer runs, data, models and servers on a local page."""

from __future__ import annotations

from tuneloop.cli.console import Result, print_live, show, split_arguments
from tuneloop.cli.parameters import argument, output
from tuneloop.core.flag import flag, switch


def command(
    arguments: list[str] | None = argument(
        "[FOLDER|KEY=VALUE]...", "Folders to look into; default: this one. Settings, as in port=8141.", None
    ),
    store: list[str] = flag([], "STORE,...", "Servers' stores elsewhere: a folder, a file or a postgresql:// URL."),
    read_only: bool = switch("Start, change and ask nothing."),
) -> Result | None:
    """Show runs, data, models and servers on a local page, live.

    It reads the files and stores that are there and keeps nothing of its own: closing it loses nothing. With --json one
    line with the address is printed when it is ready.
    """
    from tuneloop.core.files import build_config
    from tuneloop.web.serve import WebConfig, make_sources, serve_pages

    folders, settings = split_arguments(arguments)
    config = build_config(WebConfig, {}, settings)
    sources = make_sources(folders, store, read_only=read_only or not config.loopback)

    def ready(address: str) -> None:
        if output().as_json:
            show(Result({"address": address, "read_only": sources.read_only}), as_json=True)
        elif not output().quiet:
            print_live(f"tuneloop ui: {address}  (Ctrl-C ends it; nothing is lost)", err=True)

    serve_pages(sources, config, ready)
    return None
