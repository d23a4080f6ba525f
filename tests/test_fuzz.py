"""Mutated files of other people are refused in the package's own words, soon, by every parser; `benchmarks/fuzz.py` does it for minutes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fuzzing import PARSERS, fuzzed, write_seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("TUNELOOP_FUZZ_EXAMPLES", "8"))  # of each parser
SECONDS = 20.0  # of the processor's time for one file


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_a_mutated_file_is_read_or_refused(name: str, seeds: Path) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32))
    def each(seed: int) -> None:
        began = time.thread_time()
        fuzzed(PARSERS[name], seeds, seed)
        assert time.thread_time() - began < SECONDS

    each()


@pytest.mark.parametrize("name", ["GGUF header", "keys", "lines of a batch", "a run's recipe"])
def test_the_valid_file_is_read(name: str, tmp_path: Path, seeds: Path) -> None:
    PARSERS[name].parse(seeds)


def test_a_header_that_claims_too_much_is_refused_at_once(tmp_path: Path) -> None:
    from tuneloop.core.errors import UserError
    from tuneloop.models.files.gguf import read_header

    for tensors, fields in ((2**60, 0), (0, 2**60), (2**64 - 1, 2**64 - 1)):
        file = tmp_path / "x.gguf"
        file.write_bytes(
            b"GGUF" + (3).to_bytes(4, "little") + tensors.to_bytes(8, "little") + fields.to_bytes(8, "little")
        )
        with pytest.raises(UserError, match="Not a readable GGUF file"):
            read_header(file)
