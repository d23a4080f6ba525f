"""`tuneloop mcp`: the way in for coding agents."""

from __future__ import annotations

import asyncio
import sys

from tuneloop.cli.console import Result, print_live
from tuneloop.cli.parameters import output
from tuneloop.core.errors import UserError
from tuneloop.core.flag import flag, switch

CLIENT = '{"mcpServers": {"tuneloop": {"command": "tuneloop", "args": ["mcp", "--root", "FOLDER", "--allow-write"]}}}'


def command(
    root: list[str] = flag(
        ["."], "FOLDER,...", "Folders whose files the agent may use; the first is where paths start."
    ),
    allow_write: bool = switch("Let the agent write files, train and measure; else it reads, plans and predicts."),
) -> Result | None:
    """Serve coding agents by the Model Context Protocol.

    It speaks on standard input and output; a client starts it. With --json the tools are listed and nothing is served.
    """
    try:
        from tuneloop.agents import make_server
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("mcp", "mcp_types"):
            raise
        step = "pip install 'tuneloop[mcp]'"
        raise UserError("The Model Context Protocol's SDK is missing or too old", next_step=step) from None
    server = make_server(root, allow_write=allow_write)
    if output().as_json:
        tools = [
            tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in asyncio.run(server.list_tools())
        ]
        return Result({"tools": tools, "roots": root, "allow_write": allow_write})
    if sys.stdin.isatty():
        print_live(f"A client starts this command; in its settings: {CLIENT}", err=True)
    server.run()
    return None
