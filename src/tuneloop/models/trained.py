"""What training leaves in a run's folder, put back into the base model: an adapter of any kind, or all weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json
from tuneloop.models.load import Model, read_weights
from tuneloop.models.names import PACKAGED, known_name

OWN = "tuneloop.json"  # beside trained weights: what base they are for, and their task


def load_trained(model: Model, run: Path) -> None:
    """Put a run's result into its base model, in place.

    Args:
        run: a run's folder with `adapter/` or `model/`, or one of these itself.

    Raises:
        UserError: there is neither, or it is another base model's.
    """
    from tuneloop.models.lora import copy_tensors, load_adapter
    from tuneloop.models.prefix import load_prefix
    from tuneloop.models.quantised import quantise

    folder = trained_folder(run)
    if not (folder / "adapter_config.json").is_file():
        own = read_json(folder / "tuneloop.json")
        if own["base_fingerprint"] != model.fingerprint:
            raise UserError(
                "These weights were trained from another base model",
                where=str(folder),
                next_step="set model= to that one",
            )
        copy_tensors(read_weights(folder), dict(model.net.named_parameters()), str(folder))
    elif read_json(folder / "adapter_config.json").get("peft_type") == "PREFIX_TUNING":
        load_prefix(model.net, folder, model.fingerprint)
    else:
        own = folder / "tuneloop.json"
        if own.is_file() and read_json(own).get("quantised"):
            quantise(model.net)
        load_adapter(model.net, folder, model.fingerprint)
    model.net.eval()


def trained_folder(run: Path) -> Path:
    """Where a run's result is: `adapter/`, `model/`, or the folder itself.

    Raises:
        UserError: no result is there.
    """
    for folder in (run / "adapter", run / "model", run):
        if (folder / "adapter_config.json").is_file() or _are_all_weights(folder):
            return folder
    raise UserError("No adapter and no model of a finished run is here", where=str(run), next_step="check the path")


def _are_all_weights(folder: Path) -> bool:
    """Whether a full run's weights are here. A merged export has the same files, but is a model by itself: it has no base."""
    there = (folder / OWN).is_file() and (folder / "config.json").is_file()
    return there and "base_fingerprint" in read_json(folder / OWN)


def target_kind(target: str) -> Literal["run", "adapter", "model"]:
    """What a name or folder stands for: a finished run, an adapter by itself, or else a model.

    Raises:
        UserError: a run that has not finished training.
    """
    folder = Path(target)
    if (folder / "run.json").is_file():
        return "run"
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if folder.is_dir() and (folder / "config.yaml").is_file():
        raise UserError(
            "This run has not finished training", where=target, next_step="run its command again: it goes on"
        )
    return "model"


def base_of_adapter(folder: Path) -> str:
    """The base model that an adapter names.

    Raises:
        UserError: it names none.
    """
    named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise UserError("The adapter doesn't name its base model", where=str(folder), next_step="give --base MODEL")
    return PACKAGED if known_name(named) == PACKAGED else named  # its folder in a cache may be another machine's
