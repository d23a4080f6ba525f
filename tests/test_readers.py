"""No module reads what someone else may have written but by `core.foreign`, whose limits are in one table."""

import ast
from collections.abc import Iterator
from pathlib import Path

import tuneloop

SRC = Path(tuneloop.__file__).parent
PARSERS = {
    "json": {"load", "loads", "JSONDecoder"}, "orjson": {"loads"}, "torch": {"load"}, "gguf": {"GGUFReader"},
    "yaml": {"load", "load_all", "safe_load", "safe_load_all", "full_load", "unsafe_load", "parse"},
    "pickle": {"load", "loads", "Unpickler"}, "zipfile": {"ZipFile"}, "tarfile": {"open", "TarFile"},
    "safetensors": {"safe_open", "deserialize"}, "safetensors.torch": {"load", "load_file"},
    "safetensors.numpy": {"load", "load_file"}, "numpy": {"load"},
}  # fmt: skip
METHODS = {"FromString", "ParseFromString", "from_file", "from_buffer"}  # of protobuf's messages and of tokenizers
READERS = {"parse_json", "parse_line", "fast_json", "parse_yaml"}
WHOLE = {"read_text", "read_bytes", "read"}  # a file of any size

OWN = "what this program has written to itself: a message of its own process, or a file that no one else can write"
ITSELF = "a bounded reader itself"
ALLOWED = {
    "core/foreign.py": ITSELF,
    "core/text.py": OWN,
    "core/bounded_work.py": OWN,
    "data/sources/parse.py": ITSELF,  # rows: bytes of a line, levels, growth when unpacked
    "data/table.py": OWN,
    "evaluation/sandbox_child.py": OWN,
    "imports/otlp.py": ITSELF,  # fields are counted on the wire
    "inference/llamacpp/child.py": OWN,
    "models/files/gguf.py": ITSELF,  # the header was read within limits before
    "models/chat/template.py": ITSELF,  # tokenizers: bytes, tokens, steps
    "web/rendering.py": OWN,
}


def parses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines of a module where something is parsed, and by what."""
    names: dict[str, tuple[str, str]] = {}  # bound by an import: of which module, and which of its names
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: (alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            module, name = names.get(ast.unparse(node.value), ("", ""))
            if not name and node.attr in PARSERS.get(module, ()):
                yield node.lineno, f"{module}.{node.attr}"
            elif node.attr in METHODS:
                yield node.lineno, node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            module, name = names.get(node.id, ("", ""))
            if name in PARSERS.get(module, ()):
                yield node.lineno, f"{module}.{name}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in READERS:
            for part in ast.walk(node):
                if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and not part.args:
                    yield from [(part.lineno, f"{part.func.attr} of any size")] * (part.func.attr in WHOLE)


def test_nothing_foreign_is_read_but_by_the_bounded_reader() -> None:
    found: dict[str, list[str]] = {}
    for path in sorted(SRC.rglob("*.py")):
        module = path.relative_to(SRC).as_posix()
        for line, by in parses(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(module, []).append(f"{module}:{line}: {by}")
    beside = [hit for module, hits in found.items() if module not in ALLOWED for hit in hits]
    assert not beside, "read these by core/foreign.py:\n" + "\n".join(beside)
    assert not ALLOWED.keys() - found.keys(), "no reader is left there"


def test_each_way_to_parse_is_found() -> None:
    text = """
import json, pickle, orjson as fast
from yaml import safe_load as load
import safetensors.torch
json.loads(x); [*map(json.load, x)]; fast.loads(x); load(x); pickle.load(x); Message.FromString(x)
parse_json(path.read_text()); parse_yaml(file.read()); safetensors.torch.load_file(x)
parse_json(file.read(10)); json.dumps(x); parse_json(x)
"""
    assert sorted(line for line, _ in parses(ast.parse(text))) == [5] * 6 + [6] * 3
