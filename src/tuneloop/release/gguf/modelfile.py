"""Ollama's `Modelfile` for a GGUF file: the trained chat template in Ollama's language, where an answer ends, the system turn.

Ollama reads the template in the file's metadata only to recognise the usual ones, so it is written out here. The beginning-of-text
token is left out: Ollama puts it first by itself where the GGUF file says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuneloop.core.errors import UserError

if TYPE_CHECKING:
    from tuneloop.models.template import Template

CONTENT = "\ue010"  # stands for a turn's text


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
    if system and '"""' not in system:  # nothing can stand for three quotes there
        lines.append(f'SYSTEM """{system}"""')
    lines += [*(f'PARAMETER stop "{stop}"' for stop in stops), "PARAMETER temperature 0"]
    return "\n".join(lines) + "\n"


def ollama_template(template: Template) -> str:
    """The chat template in Go's template language, from what it makes of one turn of each role.

    Raises:
        UserError: a template whose turns depend on more than their role and text.
    """
    first = template.variables.get("bos_token", "") if template.opens_with_bos else ""

    def written(*roles: str) -> str:
        turns = [{"role": role, "content": CONTENT} for role in roles]
        return template.text(turns).removeprefix(first)  # type: ignore[arg-type]

    system, user = written("system"), written("system", "user").removeprefix(written("system"))
    answer = written("system", "user", "assistant").removeprefix(system + user)
    opening = template.text([{"role": "user", "content": CONTENT}], prompt=True).removeprefix(
        template.text([{"role": "user", "content": CONTENT}])
    )
    whole = written("system", "user", "assistant", "user")
    if whole != system + user + answer + user or not answer.startswith(opening) or CONTENT not in answer:
        raise UserError(
            "The chat template can't be written for Ollama: its turns depend on those before",
            where="chat template",
            next_step="serve the file with llama.cpp, which reads the template that stands in it",
        )

    def turn(text: str, role: str) -> str:
        before, _, after = text.partition(CONTENT)
        return f'{{{{ if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}{{{{ end }}}}'

    body = "".join(turn(text, role) for text, role in ((system, "system"), (user, "user"), (answer, "assistant")))
    return f"{{{{ range .Messages }}}}{body}{{{{ end }}}}{opening}"  # without dashes, which would eat the template's own line breaks
