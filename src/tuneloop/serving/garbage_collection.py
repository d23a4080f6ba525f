"""What the interpreter does by itself and answers wait for: its search for garbage, and threads that don't give way."""

from __future__ import annotations

import gc
import sys


def short_pauses() -> None:
    """Keep pauses short from now on: call it when all is loaded, and again when much of that has gone.

    A full search for garbage takes some 30 ms over the objects of a server with its libraries. What is there now is left
    out of it. Threads that compute or write are interrupted after half a millisecond in place of five.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.0005)
