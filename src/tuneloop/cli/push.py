"""`tuneloop push`."""

from __future__ import annotations

from pathlib import Path

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import switch
from tuneloop.core.units import counted


def command(
    artifact: str = argument("ARTIFACT", "Folder of an artifact, or NAME@ALIAS."),
    destination: str = argument("DESTINATION", "Where it goes: hub:ORG/NAME."),
    send: bool = switch("Upload; without it only what would be sent is shown."),
    public: bool = switch("Make a new repository public; it is private by default."),
    *,
    output: Output,
) -> None:
    """Upload an artifact to the Hugging Face hub. Nothing is sent without --send."""
    from tuneloop.core.files import plain
    from tuneloop.registry.registered import local_name
    from tuneloop.release.push import push

    with screen(output.quiet, "uploading" if send else "hashing") as shown:
        found = push(Path(local_name(artifact)), destination, send=send, public=public)
    if output.json:
        print_json({**plain(found), "sent": send})
        return
    for name, size in found.files.items():
        print(f"{size / 1e6:>12,.2f} MB  {name}")
    total = f"{counted(len(found.files), 'file')}, {sum(found.files.values()) / 1e6:,.1f} MB"
    print(f"sent {total}: {found.url}" if send else f"would send {total} to {found.repo}; add --send to do so")
