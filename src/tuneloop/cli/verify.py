"""`tuneloop verify`."""

from __future__ import annotations

from pathlib import Path

import typer

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import flag
from tuneloop.core.units import counted


def command(
    artifact: str = argument("ARTIFACT", "Folder of an exported artifact, or NAME@ALIAS."),
    key: str = flag("", "FILE", "Check the signature too: the signer's public key, a PEM file.", "-k"),
    *,
    output: Output,
) -> None:
    """Check that an artifact's files are as they were exported, and who signed them.

    Exit status 1: a file was changed, is missing or was added, or the signature is not valid.
    """
    from tuneloop.core.files import plain
    from tuneloop.registry.registered import local_name
    from tuneloop.registry.verify import verify

    with screen(output.quiet, "hashing") as shown:
        artifact = local_name(artifact)
        found = verify(Path(artifact), Path(key) if key else None)
    if output.json:
        print_json({"path": artifact, "intact": found.intact, **plain(found)})
    else:
        for what in ("changed", "missing", "added"):
            for name in getattr(found, what):
                print(f"{what:<9} {name}")
        if found.signature != "none":
            why = found.reason or {"unchecked": "give --key PUBLIC_KEY"}.get(found.signature, "")
            print(f"signature {found.signature}" + (f": {why}" if why else ""))
        print(f"{artifact}  {'intact' if found.intact else 'NOT intact'} ({counted(found.files, 'file')}, {found.id})")
    if not found.intact:
        raise typer.Exit(1)
