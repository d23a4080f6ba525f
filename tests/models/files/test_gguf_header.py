"""A header as the library `gguf` writes it is read back, and a torn one is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tuneloop.core.errors import UserError
from tuneloop.models.files.gguf import read_header


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A GGUF file with a field of each kind."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"a.{kind}", 7 if kind.startswith("u") else -7)
    writer.add_float32("a.float32", 0.5)
    writer.add_float64("a.float64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "Grüße 🎈")
    writer.add_array("a.strings", ["Ġ", "", "Ġthe"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_tensor("one.weight", np.zeros((3, 32), np.float32))
    writer.add_tensor("two.weight", np.zeros(8, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_fields_and_types_are_those_that_the_library_reads(written: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(written)
    found = read_header(written)
    theirs = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert found.fields == theirs and len(theirs) == 15
    assert found.tensor_types == {tensor.name: int(tensor.tensor_type) for tensor in reader.tensors}


def test_a_file_that_ends_anywhere_in_its_header_is_told(written: Path, tmp_path: Path) -> None:
    import gguf

    whole, torn = written.read_bytes(), tmp_path / "torn.gguf"
    weights = min(int(tensor.data_offset) for tensor in gguf.GGUFReader(written).tensors)
    for size in range(0, weights - 64, 3):
        torn.write_bytes(whole[:size])
        with pytest.raises(UserError, match="Not a readable GGUF file"):
            read_header(torn)


@pytest.mark.parametrize(
    "at, value", [(0, b"GGML"), (4, b"\x09"), (16, b"\xff" * 8)], ids=["magic", "version", "count"]
)
def test_a_damaged_beginning_is_told(written: Path, at: int, value: bytes) -> None:
    data = bytearray(written.read_bytes())
    data[at : at + len(value)] = value
    written.write_bytes(bytes(data))
    with pytest.raises(UserError, match="Not a readable GGUF file"):
        read_header(written)
