"""What loading sets up for the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Multiplies rows of 300 lengths, as training on rows of ever new lengths does, and prints the MiB that the heap then holds.
LENGTHS = """
import ctypes, torch
from tuneloop.models.load import use_threads
use_threads()
class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks used free top".split()]
libc = ctypes.CDLL("libc.so.6")
libc.mallinfo2.restype = Heap
weight = torch.ones(64, 64, dtype=torch.bfloat16)
torch.ones(8, 64, dtype=torch.bfloat16) @ weight
before = libc.mallinfo2().used
for length in range(9, 309):
    torch.ones(length, 64, dtype=torch.bfloat16) @ weight
print((libc.mallinfo2().used - before) / 2**20)
"""


def heap_growth(**environment: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", LENGTHS], env={**os.environ, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no glibc that tells what the heap holds: {done.stderr.splitlines()[-1]}")
    return float(done.stdout)


def test_rows_of_ever_new_lengths_do_not_fill_the_memory() -> None:
    unbounded = heap_growth(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024", LRU_CACHE_CAPACITY="1024")
    if unbounded < 20:
        pytest.skip("this processor multiplies bf16 without keeping anything for each shape")
    assert heap_growth() < unbounded / 2
