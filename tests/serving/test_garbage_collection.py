"""What is loaded is left out of the search for garbage, and what has gone is given back."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

from tuneloop.serving.garbage_collection import short_pauses

SCRIPT = """
import gc, sys
from tuneloop.serving.garbage_collection import short_pauses
loaded = [[i] for i in range(100_000)]
short_pauses()
print(gc.get_freeze_count(), sys.getswitchinterval())
"""


class Ring:
    """An object that names itself, so that only the search for garbage finds it."""

    def __init__(self) -> None:
        self.me = self


def test_what_is_loaded_is_never_searched_again() -> None:
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    frozen, interval = told.split()
    assert int(frozen) > 100_000 and float(interval) < 0.001


def test_what_has_gone_since_is_given_back() -> None:
    before = sys.getswitchinterval()
    try:
        ring = Ring()
        gone = weakref.ref(ring)
        short_pauses()
        del ring
        gc.collect()
        assert gone() is not None, "it was left out of the search"
        short_pauses()
        assert gone() is None
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before)
