"""`tuneloop serve` as a process, and rows of several columns for what it serves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from patience import HANG

MakeTuned = Callable[..., Path]
ANSWERS = [{"subject": f"s{i}", "body": f"body of ticket {i}", "answer": f"answer {i}"} for i in range(40)]
FIELDS = {"input": "Subject: {subject}\n\n{body}", "output": "{answer}", "instruction": "Answer the ticket."}


@contextmanager
def running(*arguments: str, folder: Path, environment: dict[str, str], status: int = 0) -> Iterator[tuple[str, Any]]:
    """Address and process of `tuneloop serve`; at the end it is stopped by SIGTERM. `status`: with which it ends."""
    command = [sys.executable, "-m", "tuneloop", "serve", *arguments, "port=0", f"folder={folder}", "--json", "-q"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        assert "address" in line, process.stderr.read()
        yield json.loads(line)["address"], process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            _, said = process.communicate(timeout=HANG)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == status, (process.returncode, said)
