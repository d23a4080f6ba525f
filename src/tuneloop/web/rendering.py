"""A stored prompt as the model read it, by the chat template of its weights, in a process that ends with its answer.

A tokenizer takes up to 150 MB, which would stay in the process of the pages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object
from tuneloop.models.chat import TemplateError, load_template
from tuneloop.models.files import resolve
from tuneloop.records.request import StoredRequest
from tuneloop.records.server import ServerState
from tuneloop.web.sources import Sources

MODULE = "tuneloop.web.rendering"
SECONDS = 60.0
MOST_RUNS = 300  # that are looked at


def prompt_as_read(request: StoredRequest, state: ServerState, sources: Sources) -> str:
    """The text that a request's prompt became. Raises UserError: its model is not here, or can't render it."""
    base = weights_of(request, state, sources)
    question = json.dumps({"place": base, "messages": request.prompt, "tools": request.tools})
    try:
        done = subprocess.run(
            [sys.executable, "-m", MODULE], input=question, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        step = "tuneloop chat shows prompts"
        raise UserError("The prompt could not be rendered", where=base, next_step=step) from None
    if "error" in answer:
        raise UserError(f"The prompt could not be rendered: {answer['error']}", where=base)
    return str(answer["text"])


def weights_of(request: StoredRequest, state: ServerState, sources: Sources) -> str:
    """The folder of the trained weights that answered, by their hash, else of what the server names; else the base."""
    if request.adapter in (None, "base") and request.model not in state.adapters:
        if not state.base:
            raise UserError("It is not known which model answered", where=request.model)
        return state.base
    for found in [*sources.all("artifact"), *sources.all("run")[:MOST_RUNS]]:
        for folder in (found.path / "adapter", found.path / "model", found.path):
            with suppress(OSError, UserError):
                if read_json_object(folder / "tuneloop.json", below=found.path).get("hash") == request.adapter:
                    return str(folder)
    if (source := state.adapters.get(request.model, "")) and Path(source).is_dir():
        return source
    message = "The weights that answered are not in these folders"
    step = "open the folder of their run: tuneloop ui FOLDER"
    raise UserError(message, where=(request.adapter or request.model)[:16], next_step=step)


def main() -> None:
    """Render the question on stdin."""
    question = json.load(sys.stdin)
    try:
        places = [Path(question["place"]) / inner for inner in ("", "adapter", "model")]
        folder = next((path for path in places if (path / "tokenizer.json").is_file()), None)
        template = load_template(folder if folder is not None else resolve(question["place"]))
        answer = {"text": template.text(question["messages"], question["tools"], prompt=True)}
    except (UserError, TemplateError) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
