"""Commands of tuneloop one after the other in one process, which takes a fraction of the time of as many processes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

# The first command that fails ends it.
SEVERAL = """
import json, sys
from tuneloop.cli.main import main
for arguments in json.loads(sys.argv[1]):
    print("$", *arguments, flush=True)
    if main(arguments) not in (0, 1):
        sys.exit(9)
"""
Commands = Callable[[list[list[str]], dict[str, str]], "subprocess.CompletedProcess[str]"]
