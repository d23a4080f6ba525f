"""`tuneloop rollback`."""

from __future__ import annotations

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import flag


def command(
    name: str = argument("NAME", "Name of the model in the registry."),
    why: str = flag("", "TEXT", "A reason, for the history."),
    *,
    output: Output,
) -> None:
    """Make the previous version the one in use again."""
    from tuneloop.registry.registered import open_registry
    from tuneloop.registry.versions import rollback

    with screen(output.quiet, "reading the registry") as shown:
        model = rollback(open_registry(), name, why=why)
    event = model.history[-1]
    if output.json:
        print_json({"name": name, "aliases": model.aliases, "event": event.to_json()})
    else:
        print(f"{name}@champion is version {event.model_version} again, no longer {event.before['champion']}")
