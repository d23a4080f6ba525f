"""Load for a server while something is changed in it."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from typing import Any

from patience import HANG


class Load:
    """Requests at a steady rate from a thread, whatever becomes of the earlier ones."""

    def __init__(self, address: str, body: dict[str, Any], rate: float = 20.0) -> None:
        self.address, self.body, self.rate = address, json.dumps(body).encode(), rate
        self.found: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self.over = False
        self.thread = threading.Thread(target=self.run)

    def one(self) -> None:
        try:
            with urllib.request.urlopen(f"{self.address}/v1/chat/completions", self.body, timeout=HANG) as reply:
                said = json.load(reply)["choices"][0]["message"]["content"]
                self.found.append((reply.headers["x-tuneloop-release"], said))
        except Exception as error:
            self.faults.append(repr(error))

    def run(self) -> None:
        threads = []
        while not self.over:
            threads.append(threading.Thread(target=self.one))
            threads[-1].start()
            time.sleep(1 / self.rate)
        for thread in threads:
            thread.join()

    def __enter__(self) -> Load:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over = True
        self.thread.join()
