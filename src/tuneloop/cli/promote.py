"""`tuneloop promote`."""

from __future__ import annotations

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import flag


def command(
    name: str = argument("NAME", "Name of the model in the registry."),
    version: str = argument("[VERSION]", "Number or alias of the version; default: candidate.", ""),
    force: str = flag("", "REASON", "Overrule a gate that is not green or was not asked; the history keeps why."),
    why: str = flag("", "TEXT", "A reason, for the history."),
    *,
    output: Output,
) -> None:
    """Make a version of a model the one in use, if the gate allows it.

    It becomes the champion, and the champion so far becomes the previous one.
    """
    from tuneloop.registry.registered import promote_version

    with screen(output.quiet, "reading the registry") as shown:
        model = promote_version(name, version, force=force, why=why)
    if output.json:
        print_json({"name": name, "aliases": model.aliases, "event": model.history[-1].to_json()})
    else:
        previous = model.aliases.get("previous")
        print(f"{name}@champion is version {model.aliases['champion']}" + (f", before {previous}" if previous else ""))
