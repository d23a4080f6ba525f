"""The files of an artifact in GGUF: the weights, the tokenizer next to them, Ollama's Modelfile, the task."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_json, write_text
from tuneloop.models import trained_folder
from tuneloop.models.chat import load_template
from tuneloop.models.files import resolve
from tuneloop.models.methods import OWN
from tuneloop.records.artifact import Quantisation
from tuneloop.records.rows import Message
from tuneloop.release.gguf.convert import FLOAT_TYPES, About, FloatType, tensor_types, write_gguf
from tuneloop.release.gguf.lora import write_gguf_lora
from tuneloop.release.quantise import quant_named, quantise
from tuneloop.release.tuned_weights import TunedWeights, open_tuned

if TYPE_CHECKING:
    import numpy as np

    from tuneloop.models.chat import Template
    from tuneloop.release.artifact import Origin

LORA = "gguf-lora"

Importance = Callable[[], "Mapping[str, np.ndarray[Any, Any]]"]


@dataclass(frozen=True)
class GgufSettings:
    """How a GGUF file is written.

    Raises:
        UserError: there is no such type, or it can't be had.
    """

    form: str  # `gguf` or `gguf-lora`
    quant: str = ""  # a name of `quantise.QUANTS` or of `gguf.FLOAT_TYPES`; empty: f16, and f32 of an adapter
    importance: Importance | None = None  # which inputs matter; called when it is needed
    rows: str = ""  # what importance is computed from: a data set's name, as it goes into the artifact's id

    def __post_init__(self) -> None:
        is_lora = self.form == LORA
        quant = quant_named(self.quant or ("f32" if is_lora else "f16"))
        if is_lora and quant not in FLOAT_TYPES:
            step = f"choose {', '.join(FLOAT_TYPES)}; or quantise the whole model with --format gguf"
            message = f"The matrices of a LoRA file are not quantised, so not {quant}"
            raise UserError(message, where="--quant", next_step=step)
        if self.importance and quant in FLOAT_TYPES:
            message = f"Importance tells how to round, and {quant} is not quantised"
            raise UserError(message, where="--importance", next_step="leave it out, or add --quant q4_k_m")
        object.__setattr__(self, "quant", quant)


def write_gguf_model(origin: Origin, about: About, settings: GgufSettings, out: Path) -> Quantisation:
    """Write the files; what each tensor has become is counted in the file itself.

    Args:
        about: what the file says of itself.

    Raises:
        UserError: what GGUF or llama.cpp can't hold, a missing wheel, a full disk.
    """
    trained, model = trained_folder(origin.run), origin.manifest.model
    template = load_template(trained)
    file = f"{origin.name}-{'lora-' if settings.form == LORA else ''}{settings.quant}.gguf"
    system = str((origin.task or {}).get("system") or "")
    if settings.form == LORA:
        kind = cast(FloatType, settings.quant)
        write_gguf_lora(resolve(model), trained, out / file, kind, about.name)
        text = modelfile("base.gguf", template, system, adapter=file)
    else:
        text = modelfile(file, template, system)
        _write_whole(open_tuned(model, trained), template, about, settings, out / file)
    write_text(out / "Modelfile", text)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(trained / name, out / name)
    write_json(out / OWN, {"version": 1, "task": origin.task})
    return Quantisation(name=settings.quant, tensor_types=tensor_types(out / file))


def _write_whole(weights: TunedWeights, template: Template, about: About, settings: GgufSettings, out: Path) -> None:
    """All weights; what is quantised passes through an f16 file."""
    if settings.quant in FLOAT_TYPES:
        write_gguf(weights, template, out, settings.quant, about)
        return
    importance = settings.importance() if settings.importance else None
    whole = out.with_name(f".{out.stem}.f16.gguf")
    try:
        write_gguf(weights, template, whole, "f16", about)
        quantise(whole, out, settings.quant, importance)
    finally:
        whole.unlink(missing_ok=True)


CONTENT = "\ue010"  # in place of a turn's text


def modelfile(file: str, template: Template, system: str = "", adapter: str = "") -> str:
    """The text of a `Modelfile`.

    Args:
        file: name of the GGUF file next to it.
        system: the turn that all training rows share; empty: the one that the template itself puts first, if any.
        adapter: name of a LoRA file for that model.
    """
    stops = dict.fromkeys(template.tokenizer.id_to_token(i) for i in template.end_ids)
    lines = [f"FROM ./{file}"]
    if adapter:
        lines = [f"# Put the base model's GGUF file here as {file}.", *lines, f"ADAPTER ./{adapter}"]
    lines.append(f'TEMPLATE """{ollama_template(template)}"""')
    system = system or template.default_system
    if system and '"""' not in system:  # three quotes can't be escaped there
        lines.append(f'SYSTEM """{system}"""')
    lines += [*(f'PARAMETER stop "{stop}"' for stop in stops), "PARAMETER temperature 0"]
    return "\n".join(lines) + "\n"


def ollama_template(template: Template) -> str:
    """The chat template in Go's template language, from what it makes of one turn of each role.

    Raises:
        UserError: a template whose turns depend on more than their role and text.
    """
    first = template.variables.get("bos_token", "") if template.opens_with_bos else ""

    def text_of(*roles: str) -> str:
        turns = [{"role": role, "content": CONTENT} for role in roles]
        return template.text(turns).removeprefix(first)  # type: ignore[arg-type]

    system, user = text_of("system"), text_of("system", "user").removeprefix(text_of("system"))
    answer = text_of("system", "user", "assistant").removeprefix(system + user)
    turns: list[Message] = [{"role": "user", "content": CONTENT}]
    opening = template.text(turns, prompt=True).removeprefix(template.text(turns))
    whole = text_of("system", "user", "assistant", "user")
    if whole != system + user + answer + user or not answer.startswith(opening) or CONTENT not in answer:
        message = "The chat template can't be written for Ollama: its turns depend on those before"
        step = "serve the file with llama.cpp, which reads the template that is in it"
        raise UserError(message, where="chat template", next_step=step)

    def turn(text: str, role: str) -> str:
        before, _, after = text.partition(CONTENT)
        return f'{{{{ if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}{{{{ end }}}}'

    body = "".join(turn(text, role) for text, role in ((system, "system"), (user, "user"), (answer, "assistant")))
    # Without dashes, which would remove the template's own line breaks.
    return f"{{{{ range .Messages }}}}{body}{{{{ end }}}}{opening}"
