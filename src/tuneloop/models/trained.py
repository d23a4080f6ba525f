"""What training leaves in a run's folder, put back into the base model: an adapter of any kind, or all weights."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object, read_yaml
from tuneloop.core.ui import say
from tuneloop.models.chat.template import Template, load_template, template_source
from tuneloop.models.files.names import PACKAGED, is_local, known_name
from tuneloop.models.load import Model
from tuneloop.models.methods.shipped import USUAL, layout_of, method_of_folder

OWN = "tuneloop.json"  # next to trained weights: what base they are for, and their task


def load_trained(model: Model, run: Path) -> None:
    """Put a run's result, see `trained_folder`, into its base model. Raises UserError: none, or another base's."""
    folder = trained_folder(run)
    method = method_of_folder(folder) or USUAL  # which says why it can't load an adapter of another kind
    assert method.load is not None
    method.load(model, folder)
    model.net.eval()


def trained_folder(run: Path) -> Path:
    """Where a run's result is: `adapter/`, `model/`, `encoder/`, or the folder itself. Raises UserError: nowhere."""
    for folder in (run / "adapter", run / "model", run / "encoder", run):
        if layout_of(folder):
            return folder
    raise UserError("No adapter and no model of a finished run is here", where=str(run), next_step="check the path")


def target_kind(target: str) -> Literal["run", "adapter", "model"]:
    """A finished run, an adapter alone, or else a model. Raises UserError: training has not ended, or each of its
    epochs has a folder."""
    folder = Path(target)
    if (folder / "run.json").is_file():
        return "run"
    saved = [
        checkpoint
        for name in ("checkpoint-*", "epoch_*", "step_*")
        for checkpoint in folder.glob(f"{name}/*config.json")
    ]
    if saved and not any(folder.glob("*.safetensors")) and not any(folder.glob("*model*.bin")):
        last = max(saved, key=lambda file: int(re.sub(r"\D", "", file.parent.name) or 0)).parent
        message = "Checkpoints are here, but no model of an ended training"
        raise UserError(message, where=target, next_step=f"name one of them, as in {last}")
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if folder.is_dir() and (folder / "config.yaml").is_file():
        step = "run its command again: it continues"
        raise UserError("This run has not finished training", where=target, next_step=step)
    return "model"


def base_of_adapter(folder: Path) -> str:
    """The base model that an adapter names, by a name that means it here.

    A snapshot in a hub's cache of another machine is its hub name. A copy in 4 bits (`-bnb-4bit`, as Unsloth names
    them) is the model it was made from, unless the copy itself is here. Raises UserError: it names none, or a folder
    that is not here.
    """
    name = read_json_object(folder / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError("The adapter doesn't name its base model", where=str(folder), next_step="give --base MODEL")
    if known_name(name) == PACKAGED or is_local(name):
        return PACKAGED if known_name(name) == PACKAGED else name
    name = known_name(name)
    whole = re.sub(r"(-unsloth)?-bnb-(4|8)bit$", "", name)
    if whole != name:
        say(f"warn: the adapter names {name}, a copy in few bits: it is measured on {whole}")
        name = whole
    if Path(name).is_absolute() or name.startswith((".", "~")):
        message = "The adapter's base is a folder of another machine"
        raise UserError(message, where=f"{folder / 'adapter_config.json'}: {name}", next_step="give --base MODEL")
    return name


def template_of_adapter(folder: Path, base: Template) -> Template:
    """Tokenizer and chat template next to an adapter, as other trainers save them; what is missing is the base's."""
    file = folder / "tokenizer_config.json"
    settings = read_json_object(file) if file.is_file() else {}
    if (folder / OWN).is_file():  # ours: its template is in the task
        return base
    if (file := folder / "training_args.yaml").is_file() and (name := read_yaml(file, "settings").get("template")):
        say(f"warn: LLaMA-Factory trained with its template {name}; the chat template in the folder is used")
    if not ((folder / "chat_template.jinja").is_file() or settings.get("chat_template")):
        return base
    if (folder / "tokenizer.json").is_file():
        own = load_template(folder)
        if own.tokenizer.get_vocab_size() <= base.tokenizer.get_vocab_size():  # the base has no rows for more tokens
            return own
    source, split_after = template_source(folder, settings, base.tokenizer)
    return base if split_after else replace(base, source=source, split_after="")
