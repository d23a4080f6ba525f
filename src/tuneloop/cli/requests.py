"""`tuneloop requests`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output
from tuneloop.core.flag import flag, switch
from tuneloop.core.ui import say


def command(
    out: str = flag(..., "FILE", "File of JSON lines.", "-o"),
    folder: str = flag("serve", "FOLDER", "The server's folder, or its store: a file or a postgresql:// URL.", "-f"),
    since: str = flag("", "TIME", "Only requests since then: 24h, 7d, 2026-01-31."),
    model: str = flag("", "NAME", "Only requests to this model.", "-m"),
    keep_personal: bool = switch("Leave personal data in texts as they are.", "--keep-personal"),
    *,
    output: Output,
) -> None:
    """Write served requests as a log that prepare reads.

    Each line has the request and the response as OpenAI's API has them, with time, user and release. Requests that
    failed, and those whose texts were not kept, are counted.
    """
    from tuneloop.data.config import PersonalConfig
    from tuneloop.improve.collect.requests import write_requests
    from tuneloop.serving.costs import since_time

    personal = PersonalConfig(mode="off") if keep_personal else None
    found = write_requests(folder, Path(out), since=since_time(since), model=model, personal=personal)
    if output.json:
        print_json(asdict(found))
        return
    with screen(output.quiet) as shown:
        say(
            f"requests  {found.written:,} in {found.out}; left out: {found.failed:,} failed, "
            f"{found.without_text:,} whose texts were not kept, {found.without_consent:,} that must not be trained on"
        )
        say(f"next:     tuneloop prepare {found.out}")
