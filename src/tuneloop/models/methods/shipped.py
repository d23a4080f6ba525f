"""The training methods, each described by one `Method`: those that ship, in their files, and those that a user adds.

The planner, the advice, the trainer, reports, exports and loaders ask the record; none of them knows a method by its
name. A user's method is registered by `register`, or by naming its file: `train.method: path/to/file.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object, sha256_file
from tuneloop.core.python_file import run_python_file
from tuneloop.models.methods.full import FULL, OWN, has_all_weights
from tuneloop.models.methods.lora import LORA, QLORA
from tuneloop.models.methods.method import WHOLE, Footprint, Method, PlannedJob, Start, Trainable, WeightUpdate
from tuneloop.models.methods.prefix import PREFIX

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "SHIPPED", "USUAL", "WHOLE", "Footprint", "Method", "PlannedJob", "Start", "Trainable", "WeightUpdate", "base_only",
    "find_method", "layout_of", "method_named", "method_of_folder", "methods", "names_of_methods", "register",
    "title_of",
]  # fmt: skip

SHIPPED = (FULL, LORA, QLORA, PREFIX)
USUAL = LORA  # by default
_known: dict[str, Method] = {method.name: method for method in SHIPPED}
_of_files: dict[Path, Method] = {}  # run once: a run keeps the method that it began with


def methods() -> tuple[Method, ...]:
    """Those that ship, then those that were registered."""
    return tuple(_known.values())


def names_of_methods() -> str:
    """Their names as a sentence has them: `full, lora, ... or prefix`."""
    *first, last = _known
    return f"{', '.join(first)} or {last}"


def register(method: Method) -> Method:
    """Make a method of yours known, in place of one with its name. Raises UserError: a method that ships has it."""
    if any(method.name == shipped.name for shipped in SHIPPED):
        message = f"{method.name} is the name of a method that ships"
        raise UserError(message, where=method.name, next_step="choose another name")
    _known[method.name] = method
    return method


def find_method(name: str) -> Method | None:
    """The method of that name; None for an unknown one."""
    return _known.get(name)


def title_of(name: str) -> str:
    """Its title; of an unknown method the name."""
    return _known[name].title if name in _known else name


def method_named(name: str) -> Method:
    """The method of that name, or the one that a Python file describes, which runs in this process: name only files
    that you trust. Raises UserError: an unknown name; the file fails, or describes none or several."""
    if name in _known:
        return _known[name]
    if not name.endswith(".py"):
        step = f"choose {names_of_methods()}, or name the Python file that describes yours"
        raise UserError(f"No method {name!r}", where="train.method", next_step=step)
    where, path = f"train.method={name}", Path(name).expanduser().resolve()
    if path not in _of_files:
        module = run_python_file(name, where, "method's file")
        by_identity = {id(value): value for value in vars(module).values() if isinstance(value, Method)}
        defined = [method for method in by_identity.values() if method not in SHIPPED]
        if len(defined) != 1:
            number = f"{len(defined)} methods" if defined else "no method"
            step = "put one tuneloop.models.methods.Method(...) into a variable of the file"
            raise UserError(f"{name} describes {number} where one is needed", where=where, next_step=step)
        _of_files[path] = register(replace(defined[0], source=sha256_file(path)))
    return _of_files[path]


def layout_of(folder: Path) -> str:
    """The `Method.layout` of a saved folder, `encoder` or `prompt`; empty where no result of a run is here."""
    for kind, name in (("encoder", "encoder.json"), ("prompt", "prompt.yaml")):
        if (folder / name).is_file():
            return kind
    file = folder / "adapter_config.json"
    if file.is_file():
        return str(read_json_object(file).get("peft_type"))
    return WHOLE if has_all_weights(folder) else ""


def method_of_folder(folder: Path) -> Method | None:
    """The method that loads a saved folder; None where no method has its layout."""
    layout = layout_of(folder)
    quantised = bool(layout and (folder / OWN).is_file() and read_json_object(folder / OWN).get("quantised"))
    alike = [m for m in methods() if m.layout == layout and m.load]
    return next((m for m in alike if bool(m.quantised) == quantised), None)


@contextmanager
def base_only(net: nn.Module) -> Iterator[None]:
    """The model without what any method has attached to it, for a while."""
    with ExitStack() as stack:
        for disabled in dict.fromkeys(m.disabled for m in methods() if m.disabled):
            stack.enter_context(disabled(net))
        yield
