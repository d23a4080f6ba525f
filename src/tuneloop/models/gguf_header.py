"""What stands before the weights of a GGUF file: its fields and the type of each tensor.

The library `gguf` reads them too, but makes an array of each of a vocabulary's strings: seconds, where this takes some
hundredths. The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError

_START = struct.Struct("<4sIQQ")  # magic, version, tensors, fields
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_U32, _U64, _U32_U64 = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQ")
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Header:
    """The fields of a GGUF file by their names, and llama.cpp's number of each tensor's type."""

    fields: dict[str, Any]
    tensor_types: dict[str, int]


def read_header(file: Path) -> Header:
    """Read what stands before the weights.

    Raises:
        UserError: not a GGUF file, one that ends too early, or one for processors with the other order of bytes.
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(_Reader(data))
    except (ValueError, OSError, struct.error, KeyError, OverflowError, MemoryError, RecursionError) as error:
        raise UserError(f"Not a readable GGUF file: {error}", where=str(file), next_step="download it again") from None


class _Reader:
    """Values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def numbers(self, layout: struct.Struct) -> tuple[Any, ...]:
        found = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return found

    def string(self) -> str:
        (size,) = self.numbers(_U64)
        piece = self.data[self.at : self.at + size]
        if len(piece) < size:
            raise ValueError("it ends within a text")
        self.at += size
        return piece.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.numbers(struct.Struct(f"<{_NUMBERS[kind]}"))[0]
        of, count = self.numbers(_U32_U64)
        if count > len(self.data):
            raise ValueError("an array is longer than the file")
        if of in _NUMBERS:
            return list(self.numbers(struct.Struct(f"<{count}{_NUMBERS[of]}")))
        return [self.value(of) for _ in range(count)]


def _header(reader: _Reader) -> Header:
    magic, version, tensors, count = reader.numbers(_START)
    if magic != b"GGUF":
        raise ValueError("it does not begin as one")
    if version not in (2, 3):
        raise ValueError(f"version {version} is not known here")
    fields = {}
    for _ in range(count):
        name = reader.string()
        fields[name] = reader.value(*reader.numbers(_U32))
    types = {}
    for _ in range(tensors):
        name = reader.string()
        (dimensions,) = reader.numbers(_U32)
        if dimensions > 8:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        reader.numbers(struct.Struct(f"<{dimensions}Q"))
        (types[name],) = reader.numbers(_U32)
        reader.numbers(_U64)  # where it stands
    return Header(fields, types)
