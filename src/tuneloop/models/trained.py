"""What training leaves in a run's folder, put back into the base model: an adapter of any kind, or all weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object
from tuneloop.models.load import Model
from tuneloop.models.methods import USUAL, layout_of, method_of_folder
from tuneloop.models.names import PACKAGED, known_name

OWN = "tuneloop.json"  # next to trained weights: what base they are for, and their task


def load_trained(model: Model, run: Path) -> None:
    """Put a run's result, see `trained_folder`, into its base model. Raises UserError: none, or another base's."""
    folder = trained_folder(run)
    method = method_of_folder(folder) or USUAL  # which says why it can't load an adapter of another kind
    assert method.load is not None
    method.load(model, folder)
    model.net.eval()


def trained_folder(run: Path) -> Path:
    """Where a run's result is: `adapter/`, `model/`, or the folder itself. Raises UserError: no result is there."""
    for folder in (run / "adapter", run / "model", run):
        if layout_of(folder):
            return folder
    raise UserError("No adapter and no model of a finished run is here", where=str(run), next_step="check the path")


def target_kind(target: str) -> Literal["run", "adapter", "model"]:
    """A finished run, an adapter alone, or else a model. Raises UserError: a run that has not finished training."""
    folder = Path(target)
    if (folder / "run.json").is_file():
        return "run"
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if folder.is_dir() and (folder / "config.yaml").is_file():
        step = "run its command again: it continues"
        raise UserError("This run has not finished training", where=target, next_step=step)
    return "model"


def base_of_adapter(folder: Path) -> str:
    """The base model that an adapter names. Raises UserError: it names none."""
    name = read_json_object(folder / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError("The adapter doesn't name its base model", where=str(folder), next_step="give --base MODEL")
    return PACKAGED if known_name(name) == PACKAGED else name  # its folder in a cache may be another machine's
