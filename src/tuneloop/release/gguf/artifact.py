"""The files of an artifact in GGUF: the weights, the tokenizer next to them, Ollama's Modelfile, the task."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_json, write_text
from tuneloop.models.names import resolve
from tuneloop.models.template import load_template
from tuneloop.models.trained import OWN
from tuneloop.records.artifact import Quantisation
from tuneloop.release.gguf.convert import FLOAT_TYPES, About, FloatType, tensor_types, write_gguf
from tuneloop.release.gguf.lora import write_gguf_lora
from tuneloop.release.gguf.modelfile import modelfile
from tuneloop.release.quantise import quant_named, quantise
from tuneloop.release.tuned_weights import open_tuned

if TYPE_CHECKING:
    import numpy as np

MODELFILE, BASE_FILE = "Modelfile", "base.gguf"
LORA = "gguf-lora"

Importance = Callable[[], "Mapping[str, np.ndarray[Any, Any]]"]


@dataclass(frozen=True)
class GgufSettings:
    """How a GGUF file is written.

    Args:
        form: `gguf` or `gguf-lora`.
        quant: type of weights, a name of `quantise.QUANTS` or of `gguf.FLOAT_TYPES`; empty: f16, and f32 of an adapter.
        importance: which inputs matter; called when it is needed.
        rows: what importance is computed from: a data set's name, as it goes into the artifact's id.

    Raises:
        UserError: there is no such type, or it can't be had.
    """

    form: str
    quant: str = ""
    importance: Importance | None = None
    rows: str = ""

    def __post_init__(self) -> None:
        is_lora = self.form == LORA
        quant = quant_named(self.quant or ("f32" if is_lora else "f16"))
        if is_lora and quant not in FLOAT_TYPES:
            raise UserError(
                f"The matrices of a LoRA file are not quantised, so not {quant}",
                where="--quant",
                next_step=f"choose {', '.join(FLOAT_TYPES)}; or quantise the whole model with --format gguf",
            )
        if self.importance and quant in FLOAT_TYPES:
            raise UserError(
                f"Importance tells how to round, and {quant} is not quantised",
                where="--importance",
                next_step="leave it out, or add --quant q4_k_m",
            )
        object.__setattr__(self, "quant", quant)


@dataclass(frozen=True)
class GgufSource:
    """What is written.

    Args:
        name: of the model.
        model: the base, by a name that resolves.
        trained: folder of the trained weights.
        task: see `TaskSpec`; None where nobody knows.
        about: what the file says of itself.
    """

    name: str
    model: str
    trained: Path
    task: Mapping[str, Any] | None
    about: About


def write_gguf_model(source: GgufSource, settings: GgufSettings, out: Path) -> Quantisation:
    """Write the files; what each tensor has become is counted in the file itself.

    Raises:
        UserError: what GGUF or llama.cpp can't hold, a missing wheel, a full disk.
    """
    template = load_template(source.trained)
    file = f"{source.name}-{'lora-' if settings.form == LORA else ''}{settings.quant}.gguf"
    system = str((source.task or {}).get("system") or "")
    if settings.form == LORA:
        kind = cast(FloatType, settings.quant)
        write_gguf_lora(resolve(source.model), source.trained, out / file, kind, source.about.name)
        written = modelfile(BASE_FILE, template, system, adapter=file)
    else:
        written = modelfile(file, template, system)
        _write_whole(source, settings, out / file)
    write_text(out / MODELFILE, written)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source.trained / name, out / name)
    write_json(out / OWN, {"version": 1, "task": source.task})
    return Quantisation(name=settings.quant, tensor_types=tensor_types(out / file))


def _write_whole(source: GgufSource, settings: GgufSettings, out: Path) -> None:
    """All weights; what is quantised passes through an f16 file."""
    weights, template = open_tuned(source.model, source.trained), load_template(source.trained)
    if settings.quant in FLOAT_TYPES:
        write_gguf(weights, template, out, settings.quant, source.about)
        return
    importance = settings.importance() if settings.importance else None
    whole = out.with_name(f".{out.stem}.f16.gguf")
    try:
        write_gguf(weights, template, whole, "f16", source.about)
        quantise(whole, out, settings.quant, importance)
    finally:
        whole.unlink(missing_ok=True)
