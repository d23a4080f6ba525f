"""What training leaves in a run's folder, put back into the base model: an adapter of any kind, or all weights."""

from __future__ import annotations

from pathlib import Path

from tuneloop.files import read_json
from tuneloop.models.load import Model, read_weights
from tuneloop.types import UserError


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
    for folder, sign in ((run / "adapter", "adapter_config.json"), (run / "model", "tuneloop.json"),
                         (run, "adapter_config.json"), (run, "tuneloop.json")):  # fmt: skip
        if (folder / sign).is_file():
            return folder
    raise UserError("No adapter and no model of a finished run is here", where=str(run), next_step="check the path")
