"""`tuneloop ui`: see and steer runs, data, models and servers on a local page."""

from __future__ import annotations

from tuneloop.cli.console import Result, print_live, show, split_arguments
from tuneloop.cli.parameters import argument, output, screen
from tuneloop.core.files import build_config
from tuneloop.core.flag import flag, switch
from tuneloop.core.units import counted


def command(
    arguments: list[str] | None = argument(
        "[FOLDER|KEY=VALUE]...", "Folders to look into; default: this one. Settings, as in port=8141.", None
    ),
    store: list[str] = flag([], "STORE,...", "Servers' stores elsewhere: a folder, a file or a postgresql:// URL."),
    read_only: bool = switch("Start, change and ask nothing."),
    export: str = flag("", "FOLDER", "Write the pages as files that open from disk, and end."),
    pages: list[str] = flag([], "NAMES", "With --export: only these, as in home,runs,run; default: all."),
    no_texts: bool = switch("With --export: without rows, prompts, answers and settings."),
) -> Result | None:
    """Show runs, data, models and servers on a local page, live.

    It reads the files and stores that are there and keeps nothing of its own: closing it loses nothing. The address
    that is printed when it is ready, with --json as one line, holds the secret without which nothing is shown.
    """
    from tuneloop.web import WebConfig, export_to, make_sources, serve_pages

    folders, settings = split_arguments(arguments)
    config = build_config(WebConfig, {}, settings)
    sources = make_sources(folders, store, read_only=read_only, local=config.loopback)

    if export:
        with screen("writing the pages"):
            files = export_to(sources, export, pages, texts=not no_texts)
        return Result({"path": export, "pages": len(files)}, [f"{counted(len(files), 'page')} in {export}"])

    def ready(address: str) -> None:
        if output().as_json:
            show(Result({"address": address, "read_only": sources.read_only}), as_json=True)
        elif not output().quiet:
            print_live(f"tuneloop ui: {address}  (Ctrl-C ends it; nothing is lost)", err=True)

    serve_pages(sources, config, ready)
    return None
